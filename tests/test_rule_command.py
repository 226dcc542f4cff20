"""`aegis rule`: a file that works, faults that are found, and a rule's way into the brain."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from brain_bench import lively_market, table
from test_brain_recording import Live
from test_brain_signals import Trading
from test_rule_hang import BODIES, MODULE

from brain import desk as desks
from brain.inputs import slow_rules, use_input
from brain.rules import SLOW_MAX, Candidate, as_rule, rule
from brain.view import CandleView
from maintenance import rule as command
from maintenance import rule_check
from maintenance.rule_market import market

ROOT = Path(__file__).resolve().parent.parent
HEAD = """
import random, time
from brain.rules import Candidate, rule
seen = {}

def buy(view):
    close = view.close()
    return Candidate(1, close, close * 0.99, close * 1.01, "x", 0.5)

@rule("planted", timeframes=("1m",))
def planted(view, params):
"""
HONEST = "    return buy(view) if view.close() > view.bars().open[-1] else None"
# what the rule does -> the rows that must fail for it
PLANTED = {
    "memory": (
        "    last = seen.get(view.symbol, 0.0)\n    seen[view.symbol] = view.close()\n"
        "    return buy(view) if view.close() > last else None",
        {"the same without memory", "the same answer twice"},
    ),
    "held on to the future": (
        "    seen[(view.symbol, view.bar_ms)] = view.close()\n"
        "    later = seen.get((view.symbol, view.bar_ms + 60_000), 0.0)\n"
        "    return buy(view) if later > view.close() else None",
        {"the same after it saw the future"},
    ),
    "the forming candle": (
        "    forming = float(view.arrays.forming[view.row, 0, 3])\n"
        "    return buy(view) if forming > view.close() * 1.00005 else None",
        {"sees the closed past only"},
    ),
    "another symbol": (
        "    return buy(view) if view.arrays.ind[view.row - 1, 0, 3] > 50.0 else None",
        {"sees the closed past only"},
    ),
    "changes what it is shown": (
        "    view.arrays.px[view.row, 5] = view.close() + len(seen)\n    return buy(view)",
        {"changes nothing"},
    ),
    "dice": ("    return buy(view) if random.random() < 0.5 else None", {"the same answer twice"}),
    "slow": ("    time.sleep(0.006)\n    return buy(view)", {"is quick"}),
    "raises": ("    return 1 / 0", {"never raises"}),
    "no trade": (
        '    return Candidate(1, float("nan"), 1.0, 2.0, "x", 0.5)', {"makes signals"}
    ),
    "never": ("    return None", {"makes signals"}),
}  # fmt: skip


@pytest.fixture
def planted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Writes a rule's file; its dotted name."""
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(rule_check, "MINUTES", 90)
    monkeypatch.setattr(rule_check, "TURN", 75)

    def write(body: str) -> str:
        (tmp_path / "planted_rule.py").write_text(HEAD + body + "\n")
        sys.modules.pop("planted_rule", None)
        return "planted_rule.planted"

    return write


def failed(rows: list[rule_check.Row]) -> set[str]:
    return {row.name for row in rows if not row.ok}


def test_an_honest_rule_passes_every_row(planted) -> None:
    rows = rule_check.check(planted(HONEST), 1_000.0)
    assert failed(rows) == set(), rule_check.table(rows)
    assert len(rows) == 10


@pytest.mark.parametrize("what", PLANTED)
def test_a_planted_fault_is_found_by_its_row(planted, what: str) -> None:
    body, wanted = PLANTED[what]
    rows = rule_check.check(planted(body), 5.0 if what == "slow" else 1_000.0)
    assert wanted <= failed(rows), rule_check.table(rows)


def test_a_rule_is_checked_on_a_recording_too(planted, tmp_path: Path) -> None:
    live = Live(tmp_path / "a.aegisrec", table(lively_market(3, 2, 120)))
    live.record()
    live.run(len(live.records))
    live.stop()
    (row,) = rule_check.check(planted(HONEST), 1_000.0, str(live.path))[-1:]
    assert row.ok and row.name == "the same on a.aegisrec" and not row.detail.startswith("0 ")
    held = PLANTED["held on to the future"][0]
    (row,) = rule_check.check(planted(held), 1_000.0, str(live.path))[-1:]
    assert not row.ok
    (row,) = rule_check.check(planted(HONEST), 1_000.0, str(tmp_path / "no"))[-1:]
    assert not row.ok and "cannot be read" in row.detail


@pytest.mark.parametrize("text, said", [
    ("def planted(view): return None", "1 arguments"), ("x = (", "was never closed"),
    ("import nowhere_at_all", "nowhere_at_all"), ("planted = 3", "no function"),
])  # fmt: skip
def test_what_is_no_rule_is_told(planted, tmp_path: Path, text: str, said: str) -> None:
    dotted = planted("    return None")
    (tmp_path / "planted_rule.py").write_text(text)
    (row,) = rule_check.check(dotted, 5.0)
    assert not row.ok and said in row.detail


def test_markets_with_one_seed_are_equal_up_to_the_turn() -> None:
    one, two = market(1, 2, 30, 20, other=1), market(1, 2, 30, 20, other=2)
    same = (one == two) | (np.isnan(one["a"]) & np.isnan(two["a"]))
    first = int(np.argmin(same))
    began_ns = int(one["exch_ns"][one["kind"] == 2][0])
    assert 0 < first < len(one)
    assert (int(one["exch_ns"][first]) - began_ns) // 60_000_000_000 in (19, 20)


# --- live ------------------------------------------------------------------------------------


def test_a_slow_rule_goes_to_shadow_then_off_by_inputs_that_a_replay_can_repeat() -> None:
    @rule("heavy")
    def heavy(view: CandleView, params: dict) -> Candidate | None:
        return None

    clock = iter(range(0, 10**12, 6_000_000))  # each look at the clock: 6 ms later
    trading = Trading(1, [as_rule(heavy)])
    states, lines = [], []

    def decide(rows: np.ndarray) -> None:
        list(desks.on_events(trading.desk, rows, lambda: next(clock)))
        for told in slow_rules(trading.desk):
            lines.extend(e.text for e in use_input(trading.desk, told))
            states.append((trading.desk.rules[0].asks, trading.desk.rules[0].state))

    trading.bench.feed(table(lively_market(1, 1, 40)), on_events=decide)
    assert states == [(SLOW_MAX, "shadow"), (2 * SLOW_MAX, "off")]
    assert "slow: 6.0 ms" in lines[0] and "now shadow" in lines[0] and "now off" in lines[1]
    assert trading.desk.masks[0] == 0


def test_now_and_then_a_slow_answer_is_forgiven() -> None:
    each = as_rule(lambda view, params: None)
    for spent in [9, 1, 9, 1, 9, 1] * 50:
        each.took(spent, 5)
    assert each.slow <= 1 and each.asks == 300 and each.spent_ns_max == 9


# --- the command -----------------------------------------------------------------------------


@dataclass
class Done:
    returncode: int
    stdout: str
    stderr: str
    group: int  # of its processes


def python(*words: str, **environ: str) -> Done:
    """A process as the front door starts it: the checkout before what the user's path names."""
    path = os.pathsep.join([str(ROOT), *filter(None, [environ.pop("PYTHONPATH", "")])])
    with subprocess.Popen(
        [sys.executable, *words], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True, env={**os.environ, **environ, "PYTHONPATH": path}, start_new_session=True,
    ) as process:  # fmt: skip
        try:
            out, errors = process.communicate(timeout=250)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            raise
    return Done(process.returncode, out, errors, process.pid)


def aegis(*words: str, **environ: str) -> Done:
    return python("-m", "maintenance.cli", *words, **environ)


def test_new_writes_a_rule_that_passes_its_check(tmp_path: Path) -> None:
    made = aegis("rule", "new", "my_break", "--folder", str(tmp_path / "mine"))
    assert made.returncode == 0, made.stderr
    (words,) = re.findall(r"check it +PYTHONPATH=(\S+) ./aegis rule check (\S+)", made.stdout)
    again = aegis("rule", "new", "my_break", "--folder", str(tmp_path / "mine"))
    assert again.returncode == 1 and again.stderr.count("\n") == 1 and "exists" in again.stderr
    more = {"PYTHONPATH": words[0], "AEGIS_RULE_MS": "500"}
    done = aegis("rule", "check", words[1], **more)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"makes signals +\d+ candidates, [1-9]", done.stdout)
    state = {"AEGIS_STATE_DIR": str(tmp_path / "s"), "REDIS_URL": ""}
    listed = aegis("rule", "list", AEGIS_RULES=f"{words[1]}=shadow", **more, **state)
    assert re.search(r"my_break +shadow +on 1m, 5m", listed.stdout), listed.stderr


@pytest.mark.parametrize("name", [*BODIES, "late"])
def test_a_check_of_a_rule_without_an_answer_ends_with_one_sentence(
    tmp_path: Path, name: str
) -> None:
    body = BODIES.get(name, "    time.sleep(0.35)")  # more than a limit, less than two
    (tmp_path / f"hang_{name}.py").write_text(MODULE.format(name=name, body=body, from_ms=0))
    more = {"PYTHONPATH": str(tmp_path), "AEGIS_RULE_LIMIT_MS": "300"}
    done = aegis("rule", "check", f"hang_{name}.{name}", **more)
    assert done.returncode == 1 and done.stdout == ""
    said = (
        rf"rule {name} gave no answer within 300 ms .* at MADE\dUSDT 1m \d+, and would be off: .*"
    )
    assert re.fullmatch(said, done.stderr.strip()), done.stderr
    with pytest.raises(ProcessLookupError):
        os.killpg(done.group, 0)  # nothing of it goes on


def test_a_check_of_a_module_that_never_loads_ends_with_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "never.py").write_text("while True:\n    pass\n")
    script = (
        "from maintenance import cli, rule_watch; rule_watch.LOAD_S = 0.5; "
        "raise SystemExit(cli.main(['rule', 'check', 'never.never']))"
    )
    done = python("-c", script, PYTHONPATH=str(tmp_path))
    assert done.returncode == 1 and done.stderr.startswith("never.never is not loaded within 0.5 s")
    assert done.stderr.count("\n") == 1


def test_a_rule_that_leaves_or_kills_the_process_does_not_pass_its_check(tmp_path: Path) -> None:
    bodies = {"leaves": "    raise SystemExit(0)", "kills": "    __import__('os').abort()"}
    for name, body in bodies.items():
        text = MODULE.format(name=name, body=body, from_ms=0)
        (tmp_path / f"it_{name}.py").write_text(text)
        done = aegis("rule", "check", f"it_{name}.{name}", PYTHONPATH=str(tmp_path))
        assert done.returncode == 1 and done.stdout == "", name


@pytest.mark.parametrize("name", ["My", "3x", "a-b", "class", "../x", ""])
def test_a_name_that_is_none_is_one_sentence(name: str) -> None:
    done = aegis("rule", "new", name)
    assert done.returncode == 2 and done.stderr.count("\n") == 1


def test_the_table_sums_over_brains() -> None:
    row = {
        "name": "r", "state": "on", "asked": 10, "candidates": 2, "signals": 1, "shadow": 0,
        "faults": 0, "mean_us": 10.0, "max_us": 20.0, "why": "",
    }  # fmt: skip
    other = {**row, "state": "shadow", "asked": 30, "mean_us": 30.0, "why": "slow"}
    text = command.render({"a": {"rules": [row]}, "b": {"rules": [other]}})
    assert re.search(r"^r +mixed +40 +4 +2 +0 +0 +25\.0 +20\.0  slow$", text, re.MULTILINE)
