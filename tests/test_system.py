"""The whole system as real processes: it trades, survives kills, drains, and refuses in words."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import drill
import pytest
from conftest import free_port

import streams

ROOT = Path(__file__).resolve().parent.parent
KEYS = streams.Keys("sim")
pytestmark = [pytest.mark.system, pytest.mark.timeout(400)]


def up_summary(state_dir: Path, *options: str, **env: str) -> dict[str, object]:
    done = subprocess.run(
        [sys.executable, "-m", "maintenance.cli", "up", "--summary", *options],
        cwd=ROOT,
        env=drill.environment(state_dir, **env),
        capture_output=True,
        text=True,
        timeout=300,
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    assert lines, f"exit {done.returncode}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    summary: dict[str, object] = json.loads(lines[-1])
    assert done.returncode == 0, (summary, done.stderr[-4000:])
    return summary


def compiled_kernels() -> dict[str, int]:
    """Every compiled kernel on disk by its name and time of making."""
    from maintenance import warm

    folder = warm.numba_cache_dir(".aegis")
    return {str(path): path.stat().st_mtime_ns for path in folder.rglob("*.nbc")}


def check_books(summary: dict[str, object]) -> None:
    assert summary["lost_ticks"] == 0
    assert summary["candles_unequal"] == 0
    assert int(str(summary["candles_checked"])) > 0
    assert summary["books_equal"] is True
    assert int(str(summary["positions_max_seen"])) <= 3


def test_it_trades_end_to_end_and_every_book_agrees(tmp_path: Path) -> None:
    summary = up_summary(tmp_path / "state", "--for", "30", "--symbols", "20", "--rate", "2000")
    check_books(summary)
    assert int(str(summary["entries"])) >= 3
    assert int(str(summary["stops_placed"])) >= int(str(summary["entries"]))


def test_a_real_tape_arrives_whole(tmp_path: Path, market_data: Path) -> None:
    tape = market_data / "raw_ws" / "usdm_btcusdt_20240808.gz"
    options = ("--for", "15", "--tape", str(tape), "--speed", "5", "--symbols", "8")
    summary = up_summary(tmp_path / "state", *options)
    check_books(summary)


def test_killed_processes_work_again_and_nothing_is_lost(tmp_path: Path) -> None:
    options = ("--for", "100", "--symbols", "20", "--rate", "1500", "--summary")
    with drill.running(tmp_path / "state", *options) as system:
        results = drill.drill(system, 1, ["feed", "brain", "risk", "node"], 1.0)
        summary = drill.summary_of(system.process, 200)
    assert len(results) == 5
    check_books(summary)
    assert summary["entries_doubled"] == 0


def test_keep_resumes_and_a_new_start_is_a_new_world(tmp_path: Path) -> None:
    state = tmp_path / "state"
    small = ("--for", "8", "--symbols", "5", "--rate", "500")
    first = up_summary(state, *small)
    kernels = compiled_kernels()
    kept = up_summary(state, *small, "--keep")
    fresh = up_summary(state, *small, AEGIS_LANES="2")
    assert kernels and compiled_kernels() == kernels  # a second start compiles none
    assert kept["world"] == first["world"]
    assert fresh["world"] != first["world"]
    check_books(fresh)
    assert (fresh["lanes"], fresh["misplaced"]) == (2, 0)


def test_ctrl_c_drains_and_leaves_nothing_behind(tmp_path: Path) -> None:
    state = tmp_path / "state"
    with drill.running(state, "--symbols", "5", "--rate", "500") as system:
        drill.wait_for(lambda: system.pid("risk") and system.pid("brain"), 60, "the processes")
        drill.wait_for(lambda: drill.consumed(system.r)[1] > 0, 60, "a tick")
        children = [pid for pid, _ in drill.descendants(system.process.pid)]
        started = time.monotonic()
        system.process.send_signal(signal.SIGINT)
        assert system.process.wait(30) == 0
        drained_s = time.monotonic() - started
    assert children
    alive = [pid for pid in children if Path(f"/proc/{pid}").exists()]
    assert alive == [], f"after {drained_s:.1f} s"
    tag_files = [
        p for p in Path("/dev/shm").glob("aegis-sim-*") if str(system.process.pid) in p.name
    ]
    assert tag_files == []


def test_the_procfile_runs_against_one_redis(tmp_path: Path, redis_url: str) -> None:
    env = drill.environment(
        tmp_path / "state",
        REDIS_URL=redis_url,
        AEGIS_VENUE_PORT=(port := str(free_port())),
        AEGIS_VENUE_URL=f"http://127.0.0.1:{port}",
        AEGIS_VENUE_RATE="1000",
        PATH=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        AEGIS_NO_VENV="1",
    )
    r = streams.connect(redis_url)
    log = (tmp_path / "honcho.log").open("w+")
    honcho = subprocess.Popen(
        [sys.executable, "-m", "honcho", "start"], cwd=ROOT, env=env, stdout=log, stderr=log
    )
    try:
        drill.wait_for(lambda: r.xlen(KEYS.fills), 120, "a fill")
        drill.wait_for(lambda: r.xlen(KEYS.commands), 90, "a job's command")
    finally:
        honcho.send_signal(signal.SIGTERM)
        code = honcho.wait(30)
        log.seek(0)
        text = log.read()
        r.close()
    assert code in (0, -signal.SIGTERM, 128 + signal.SIGTERM, 143), text[-3000:]
    assert "Traceback" not in text, text[-3000:]
