"""The kill drill: SIGKILL and SIGSTOP real processes of a running system, and time its recovery.

    python tests/drill.py --times 5          every process five times, then the books
    python tests/drill.py --lanes 2 --processes feed.0,brain.1      of one lane only

Each blow falls just after risk has sent an entry while another position is open, so that a
position and an order are at stake. "Works again" is a fact from outside: ticks consumed by a new
process, a lease held by a new process and a decision made, a job done. At the end the system's
own summary must hold: no tick lost, no candle unequal, no entry doubled, books equal.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import redis

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import streams  # noqa: E402 - the root is put on the path first

KEYS = streams.Keys("sim")
# What to look for in a command line, by process.
MARKS = {
    "feed": "feed.main",
    "brain": "brain.main",
    "risk": "risk.main",
    "worker": "worker",
    "node": "maintenance.node",
    "venue": "venue.main",
    "beat": "beat",
}
LIMIT_S = {"worker": 60.0}
LIMIT_DEFAULT_S = 5.0


def environment(state_dir: Path, **more: str) -> dict[str, str]:
    """A clean environment for a system of its own: nothing of the caller's settings."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("AEGIS_", "REDIS_"))}
    return {**kept, "AEGIS_STATE_DIR": str(state_dir), "PYTHONPATH": str(ROOT), **more}


@dataclass(slots=True)
class System:
    """A running `up` and how to reach it."""

    process: subprocess.Popen[str]
    state_dir: Path
    r: redis.Redis
    venue_url: str

    def pid(self, name: str) -> int | None:
        """The youngest descendant that runs this process; `feed.1` is the feed of lane 1."""
        kind, _, lane = name.partition(".")
        found = [
            pid
            for pid, line in descendants(self.process.pid)
            if MARKS[kind] in line and (not lane or lane_of(line) == int(lane))
        ]
        return max(found, default=None)

    def rings(self) -> list[Path]:
        """Its ring files, by lane."""
        files = json.loads((self.state_dir / "up.json").read_text())["files"]
        return [Path(name) for name in files if name.endswith(".ring")]


def lane_of(line: str) -> int | None:
    """The lane in a command line's ring file, if it names one."""
    found = re.search(r"-(\d+)-[0-9a-f]{8}\.ring", line)
    return int(found[1]) if found else None


def descendants(root: int) -> list[tuple[int, str]]:
    """(pid, command line) of every process below `root`, zombies left out."""
    parents: dict[int, int] = {}
    lines: dict[int, str] = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            stat = (entry / "stat").read_text()
            line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue  # it ended while we looked
        state, parent = stat.rsplit(")", 1)[1].split()[:2]
        if state != "Z":
            parents[int(entry.name)] = int(parent)
            lines[int(entry.name)] = line

    def below(pid: int) -> bool:
        for _ in range(64):  # depth of a process tree, generously
            pid = parents.get(pid, 0)
            if pid == root:
                return True
            if pid <= 1:
                return False
        return False

    return [(pid, line) for pid, line in lines.items() if below(pid)]


@contextmanager
def running(state_dir: Path, *options: str, env: dict[str, str] | None = None) -> Iterator[System]:
    """`up` with these options until the block ends; then SIGTERM, and SIGKILL after 20 s."""
    argv = [sys.executable, "-m", "maintenance.cli", "up", *options]
    log = (state_dir.parent / f"{state_dir.name}.up.log").open("w+")
    process = subprocess.Popen(
        argv,
        cwd=ROOT,
        env=environment(state_dir, **(env or {})),
        stdout=subprocess.PIPE,
        stderr=log,
        text=True,
    )
    system = None
    try:
        found = wait_for(lambda: up_file(state_dir, process), 180, "up.json")
        system = System(process, state_dir, streams.connect(found["redis_url"]), found["venue_url"])
        yield system
    except BaseException:
        log.seek(0)
        sys.stderr.write(log.read()[-4000:])
        raise
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
        if system is not None:
            system.r.close()
        log.close()


def up_file(state_dir: Path, process: subprocess.Popen[str]) -> dict[str, Any] | None:
    if process.poll() is not None:
        raise AssertionError(f"up ended with {process.returncode}")
    path = state_dir / "up.json"
    if not path.exists():
        return None
    loaded: dict[str, Any] = json.loads(path.read_text())
    return loaded if loaded.get("redis_url") and loaded.get("venue_url") else None


def wait_for(look: Callable[[], Any], limit_s: float, what: str, pause_s: float = 0.02) -> Any:
    """The first true answer of `look`, or AssertionError once `limit_s` is over."""
    end = time.monotonic() + limit_s
    while time.monotonic() < end:
        found = look()
        if found:
            return found
        time.sleep(pause_s)
    raise AssertionError(f"waited {limit_s:.0f} s in vain for {what}")


def trading(r: redis.Redis) -> bool:
    return bool(r.scard(KEYS.positions))


def wait_for_entry(r: redis.Redis, limit_s: float = 60.0) -> bool:
    """Return right after risk has written an entry's intent while another position is open."""
    wait_for(lambda: trading(r), limit_s, "an open position")
    last = "$"
    end = time.monotonic() + limit_s
    while time.monotonic() < end:
        answer: Any = r.xread({KEYS.orders: last}, block=1000)
        for _, entries in answer or []:
            for entry_id, fields in entries:
                last = entry_id
                if fields.get("leg") == "entry" and fields.get("state") == "intent":
                    return trading(r)
    return False


def consumed(r: redis.Redis) -> tuple[str, int]:
    """(brain pid, trades consumed) from the newest node row."""
    newest: Any = r.zrevrange(KEYS.nodes, 0, 0)
    row: Any = r.hgetall(KEYS.market(f"node:{newest[0]}")) if newest else {}
    return row.get("brain_pid", ""), int(row.get("brain.trades", 0))


def works_again(system: System, name: str, old_pid: int) -> bool:
    """Whether the successor of `old_pid` does its work."""
    new = system.pid(name)
    if new is None or new == old_pid:
        return False
    kind, _, lane = name.partition(".")
    if kind in ("feed", "brain", "node"):
        paths = system.rings()
        return all(
            trades_flow(system, path)
            for number, path in enumerate(paths)
            if not lane or number == int(lane)
        )
    if name == "risk":
        status: Any = system.r.hgetall(KEYS.status)
        return status.get("state") == "trading" and status.get("pid") == str(new)
    return True


def trades_flow(system: System, path: Path) -> bool:
    """The brain of now consumes trades of now: its counter moves between two looks."""
    import ring

    try:
        seen = ring.attach(path)
    except ring.RingError:
        return False
    lane = lane_of(path.name)
    feed, brain = int(seen.words[ring.FEED_PID]), int(seen.words[ring.BRAIN_PID])
    moved = False
    if feed == system.pid(f"feed.{lane}") and brain == system.pid(f"brain.{lane}"):
        index = ring.BRAIN_COUNTERS.index("trades")
        before = int(seen.brain_stats[index])
        time.sleep(0.05)
        moved = int(seen.brain_stats[index]) > before
    seen.close()
    return moved


def job_done_since(r: redis.Redis, start_ms: int) -> bool:
    """Whether a job asked of risk or written to equity is younger than `start_ms`."""
    newest: Any = r.xrevrange(KEYS.commands, count=1)
    return bool(newest) and int(newest[0][0].split("-")[0]) > start_ms


def blow(system: System, name: str, signum: int) -> dict[str, Any]:
    """One blow at the worst moment, and how long until the process works again."""
    at_stake = wait_for_entry(system.r)
    pid = system.pid(name)
    assert pid is not None, f"{name} is not running"
    now: Any = system.r.time()
    start_ms, start = now[0] * 1000 + now[1] // 1000, time.monotonic()
    os.kill(pid, signum)
    limit_s = LIMIT_S.get(name, LIMIT_DEFAULT_S)
    if name == "worker":
        wait_for(lambda: works_again(system, name, pid), limit_s, name)
        wait_for(lambda: job_done_since(system.r, start_ms), limit_s * 2, "a job")
    else:
        wait_for(lambda: works_again(system, name, pid), limit_s * 6, name)
    took_s = time.monotonic() - start
    return {
        "process": name,
        "signal": signal.Signals(signum).name,
        "position_and_entry_at_stake": at_stake,
        "works_again_s": round(took_s, 2),
        "within_limit": took_s <= limit_s,
    }


def drill(system: System, times: int, names: list[str], rest_s: float) -> list[dict[str, Any]]:
    """Every process `times` times, then SIGSTOP of risk as often; a rest between blows."""
    blows = [(name, signal.SIGKILL) for name in names] + [("risk", signal.SIGSTOP)]
    results = []
    for name, signum in blows:
        for _ in range(times):
            time.sleep(rest_s)
            results.append(blow(system, name, signum))
            print(json.dumps(results[-1]), flush=True)
    return results


def summary_of(process: subprocess.Popen[str], limit_s: float) -> dict[str, Any]:
    """The JSON object that `up --summary` prints last."""
    out, _ = process.communicate(timeout=limit_s)
    lines = [line for line in out.splitlines() if line.startswith("{")]
    assert lines, f"no summary in {out[-2000:]!r}"
    found: dict[str, Any] = json.loads(lines[-1])
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--times", type=int, default=5)
    parser.add_argument("--processes", default="feed,brain,risk,worker,node")
    parser.add_argument("--rate", default="2000")
    parser.add_argument("--symbols", default="40")
    parser.add_argument("--lanes", default="1")
    parser.add_argument("--rest", type=float, default=2.0, help="seconds between blows")
    parser.add_argument("--for", dest="seconds", type=int, help="how long the system runs in all")
    args = parser.parse_args()
    names = args.processes.split(",")
    if args.seconds is None:  # a blow needs an entry to fall on; a worker needs its next job
        args.seconds = 30 + args.times * sum(35 if name == "worker" else 8 for name in [*names, ""])
    with tempfile.TemporaryDirectory() as folder:
        state = Path(folder) / "state"
        options = ["--for", str(args.seconds), "--symbols", args.symbols, "--rate", args.rate]
        env = {"AEGIS_LANES": args.lanes}
        with running(state, *options, "--summary", env=env) as system:
            results = drill(system, args.times, names, args.rest)
            summary = summary_of(system.process, args.seconds + 120)
    for name in sorted({(r["process"], r["signal"]) for r in results}):
        took = [r["works_again_s"] for r in results if (r["process"], r["signal"]) == name]
        print(f"{name[0]:8} {name[1]:8} worst {max(took):6.2f} s  all {took}")
    print(json.dumps(summary))
    return 0 if all(r["within_limit"] for r in results) and summary["ok"] else 1


if __name__ == "__main__":
    raise SystemExit(main())
