"""What a process owes its supervisor: it beats, it stops when asked, it keeps secrets."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import process

ROOT = Path(__file__).resolve().parent.parent


def test_a_beat_touches_the_file_and_not_too_often(tmp_path: Path) -> None:
    path = tmp_path / "beat"
    path.touch()
    os.utime(path, ns=(0, 0))
    heart = process.Heartbeat(str(path))
    heart.beat()
    first = path.stat().st_mtime_ns
    assert first > 0
    os.utime(path, ns=(0, 0))
    heart.beat()  # within the interval: not again
    assert path.stat().st_mtime_ns == 0


def test_without_a_supervisor_a_beat_is_nothing() -> None:
    process.Heartbeat(None).beat()


def test_a_heartbeat_file_that_is_gone_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        process.Heartbeat(str(tmp_path / "none")).beat()


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_asks_to_stop(signum: int) -> None:
    script = (
        "import process; process.install_signals(lambda: print('told', flush=True))\n"
        "print('up', flush=True)\n"
        "raise SystemExit(0 if process.stop.wait(20) else 1)\n"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", script], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert child.stdout is not None and child.stdout.readline() == "up\n"
    child.send_signal(signum)
    assert child.wait(20) == 0
    assert child.stdout.read() == "told\n"
    child.stdout.close()


def test_secrets_are_blotted_out_of_lines_and_tracebacks(
    capsys: pytest.CaptureFixture[str],
) -> None:
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    try:
        process.setup_logging("test", secrets=("s3cret-s3cret", "test"))
        try:
            raise ValueError("url?signature=s3cret-s3cret")
        except ValueError:
            logging.getLogger("x").exception("failed key=s3cret-s3cret in a test")
    finally:
        root.handlers[:] = before
        root.setLevel(level)
    shown = capsys.readouterr().err
    assert "s3cret" not in shown and "***" in shown
    assert "in a test" in shown  # short common words are no secrets


def test_fail_says_one_sentence_and_its_code(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        process.fail("Redis refuses: start it.", 2)
    assert caught.value.code == 2
    assert capsys.readouterr().err == "Redis refuses: start it.\n"
