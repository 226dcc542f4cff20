"""docs/first-rule.md: every command in it is run, in its order, and does what the page says."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import drill
import pytest

import streams
from brain import smc
from maintenance import running

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "first-rule.md"
KEYS = streams.Keys("sim")
WANTED = {  # what a command must have printed
    "rule new": r"AEGIS_RULES=rules\.my_break\.my_break=shadow",
    "rule check my_break": r"ok +makes signals +\d+ candidates, [1-9]",
    "rule list": r"my_break +shadow +[1-9]",
    "status": r"funnel  rules asked [1-9]",
    "redis": "verdicts",
    "record": r"[1-9][\d,]* ticks",
    "replay": "equal to what the brain made of it live",
    "--recording": r"ok +the same on market\.aegisrec +[1-9]",
    "down": "stopped",
}


def check_shadow(state: Path) -> None:
    """The rule's signals are followed and told of, and none of them went to risk."""
    r: Any = streams.connect(running.read_state(state)["redis_url"])
    decided = [f for _, f in r.xrange(KEYS.decisions) if f.get("rule") == "my_break"]
    assert [f for f in decided if f["outcome"] == "shadow" and f["source"] == "brain"]
    assert not [f for f in decided if f["source"] == "risk"]
    assert not [f for _, f in r.xrange(KEYS.signals) if f["rule"] == "my_break"]
    ended = [f for _, f in r.xrange(KEYS.outcomes) if f["rule"] == "my_break"]
    assert ended and all(f["shadow"] == "1" for f in ended)
    r.close()


def blocks(kind: str) -> list[str]:
    found = re.findall(r"^```(\w*)\n(.*?)^```$", PAGE.read_text(), re.DOTALL | re.MULTILINE)
    return [text for name, text in found if name == kind]


def commands() -> list[str]:
    return [line for block in blocks("") for line in block.splitlines()]


def check_of(name: str, text: str, folder: Path) -> subprocess.CompletedProcess[str]:
    (folder / f"{name}.py").write_text(text)
    path = os.pathsep.join([str(ROOT), str(folder)])
    return subprocess.run(
        [sys.executable, "-m", "maintenance.cli", "rule", "check", f"{name}.{name}"], cwd=ROOT,
        capture_output=True, text=True, check=False, timeout=250,
        env={**os.environ, "PYTHONPATH": path, "AEGIS_RULE_MS": "500"},
    )  # fmt: skip


def test_the_rule_with_a_compiled_function_passes_its_check(tmp_path: Path) -> None:
    (text,) = blocks("python")
    done = check_of("my_pressure", text, tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"makes signals +\d+ candidates, [1-9]", done.stdout)


@pytest.mark.parametrize("decorators", ["@njit\n@rule('it')", "@rule('it')\n@njit"])
def test_a_rule_that_is_compiled_itself_is_one_sentence(tmp_path: Path, decorators: str) -> None:
    text = f"from numba import njit\nfrom brain.rules import rule\n{decorators}\n"
    done = check_of("it", text + "def it(view, params):\n    return None\n", tmp_path)
    assert done.returncode == 1
    (line,) = done.stdout.splitlines()
    assert line.startswith("FAIL  loads") and "hand the arrays of view.bars()" in line


def test_the_events_that_the_page_names_exist() -> None:
    (text,) = re.findall(r"`on` lists structure events \((.*?) …\)", PAGE.read_text(), re.DOTALL)
    assert set(re.findall(r"`(\w+)`", text)) <= set(smc.CODES)


@pytest.mark.system
@pytest.mark.timeout(600)
def test_every_command_of_the_page_does_what_it_says(tmp_path: Path) -> None:
    file = ROOT / "rules" / "my_break.py"
    assert not file.exists(), "a rule of this name is somebody's"
    environ = drill.environment(
        tmp_path / "state", AEGIS_RULE_MS="500", AEGIS_VENUE_RATE="500", AEGIS_SYMBOLS="6",
        PYTHONPATH=str(ROOT),
    )  # fmt: skip
    up: subprocess.Popen[bytes] | None = None
    seen = set()
    try:
        for line in commands():
            before, _, rest = line.partition("./aegis ")
            settings = dict(word.split("=", 1) for word in before.split())
            words = rest.split()
            argv = [sys.executable, "-m", "maintenance.cli", *words]
            env = environ | settings | {"PYTHONPATH": str(ROOT)}
            if words == ["up"]:
                with (tmp_path / "up.log").open("wb") as log:
                    up = subprocess.Popen(argv, cwd=tmp_path, env=env, stdout=log, stderr=log)
                continue
            if words == ["down"]:
                check_shadow(tmp_path / "state")
            name = next(key for key in reversed(WANTED) if key in line)
            end_s, text = time.monotonic() + 150, ""
            while True:  # the system may still be starting
                done = subprocess.run(argv, cwd=tmp_path, env=env, capture_output=True, text=True)
                text = done.stdout + done.stderr
                if re.search(WANTED[name], text) and done.returncode == 0:
                    break
                started = (tmp_path / "up.log").read_text() if up else ""
                assert up and time.monotonic() < end_s, f"{line}\n{text}\n{started[-3000:]}"
                time.sleep(1.0)
            seen.add(name)
        assert seen == set(WANTED)
        assert up is not None and up.wait(30) == 0
    finally:
        if up is not None and up.poll() is None:
            up.send_signal(signal.SIGTERM)
            up.wait(30)
        file.unlink(missing_ok=True)
        if file.parent.is_dir() and not [*file.parent.glob("*.py")]:
            for path in file.parent.rglob("*"):
                if path.is_file():
                    path.unlink()
            for path in [*file.parent.glob("*"), file.parent]:
                os.rmdir(path)  # noqa: PTH106 (a folder that is not empty is not ours to remove)
