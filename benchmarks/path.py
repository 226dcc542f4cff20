"""The whole system at full load: venue, feed, ring, brain, Redis and risk, for a minute.

    ./aegis up --symbols 300 --rate 100000 --for 60 --summary

runs as it does for anybody, while CPU and memory of each of its processes are sampled; its own
summary holds every tick against the venue's ledger. Latencies are the difference of the rings'
histograms over the loaded time, warm-up left out: upper edges of buckets, true to a quarter.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

import ring as rings
from benchmarks.report import Result
from maintenance import node

ROOT: Final = Path(__file__).resolve().parent.parent
SAMPLE_S: Final = 1.0
SYMBOLS, RATE = 300, 100_000
IDLE_S, IDLE_SYMBOLS, IDLE_RATE = 15.0, 20, 20
IDLE_NOTE: Final = f"{IDLE_SYMBOLS} symbols, {IDLE_RATE} ticks/s"
EXTRA_S: Final = 300.0  # over the asked time: compiling, warm-up, the checks at the end
PARTS: Final = {
    "venue": ("venue",),
    "feed": ("feed",),
    "brain": ("brain",),
    "redis and risk": ("redis", "risk"),
}
TARGETS: Final = {"venue": 50.0, "feed": 15.0, "brain": 15.0, "redis and risk": 25.0}
TICKS: Final = os.sysconf("SC_CLK_TCK")


def cpu_s(pid: int) -> float:
    """CPU seconds that a process has used."""
    parts = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(parts[11]) + int(parts[12])) / TICKS


def pss_mb(pid: int) -> float:
    """Proportional share of memory, MB."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) / 1024
    return 0.0


def children(pid: int) -> dict[int, str]:
    """Every process below `pid`, with the words that started it."""
    found: dict[int, str] = {}
    waiting = [pid]
    while waiting:
        parent = waiting.pop()
        for entry in Path("/proc").iterdir():
            try:
                if not entry.name.isdigit() or int(entry.name) in found:
                    continue
                stat = (entry / "stat").read_text().rsplit(")", 1)[1].split()
                if int(stat[1]) == parent:
                    words = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
                    found[int(entry.name)] = words
                    waiting.append(int(entry.name))
            except (OSError, ValueError):
                continue  # it ended while we looked
    return found


def role(words: str) -> str:
    """What a process is, by its command."""
    for name in ("venue", "feed", "brain", "risk"):
        if f"{name}.main" in words:
            return name
    for name in ("worker", "beat", "node", "cli"):
        if f" {name}" in f" {words}" or f".{name}" in words:
            return name
    return "redis" if "-server" in words or "valkey" in words else "other"


class Sampler(threading.Thread):
    """CPU seconds and memory of each process over the loaded time."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self.pid, self.ending = pid, threading.Event()
        self.samples: list[tuple[float, dict[int, tuple[str, float]]]] = []
        self.pss: list[float] = []

    def run(self) -> None:
        while not self.ending.wait(SAMPLE_S):
            seen: dict[int, tuple[str, float]] = {}
            memory = 0.0
            for pid, words in {**children(self.pid), self.pid: "cli"}.items():
                try:
                    seen[pid] = (role(words), cpu_s(pid))
                    memory += pss_mb(pid)
                except OSError:
                    continue
            self.samples.append((time.monotonic(), seen))
            self.pss.append(memory)

    def shares(self, begin_s: float, end_s: float) -> dict[str, float]:
        """Percent of a core by role between two times."""
        inside = [s for s in self.samples if begin_s <= s[0] <= end_s]
        if len(inside) < 2:
            return {}
        (first_s, first), (last_s, last) = inside[0], inside[-1]
        used: dict[str, float] = {}
        for pid, (name, spent) in last.items():
            if pid in first:
                used[name] = used.get(name, 0.0) + spent - first[pid][1]
        return {name: 100 * spent / (last_s - first_s) for name, spent in used.items()}


class Histograms:
    """Looks at the rings of a running system, by time."""

    def __init__(self, state_dir: Path) -> None:
        self.state_dir = state_dir
        self.rings: list[rings.Ring] = []
        self.looks: list[tuple[float, npt.NDArray[np.int64]]] = []

    def look(self) -> None:
        """Keep what is counted by now; nothing while the rings are not there yet."""
        if not self.rings:
            try:
                files = json.loads((self.state_dir / "up.json").read_text())["files"]
                paths = [Path(name) for name in files if name.endswith(".ring")]
                self.rings = [rings.attach(path) for path in paths]
            except (OSError, ValueError, KeyError, rings.RingError):
                return
        if self.rings:
            self.looks.append((time.monotonic(), node.histograms(self.rings)))

    def percentiles(self, begin_s: float, end_s: float) -> dict[str, float]:
        """As the node's row has them, of what was counted between two times."""
        inside = [counts for at_s, counts in self.looks if begin_s <= at_s <= end_s]
        if len(inside) < 2:
            return {}
        fields = node.latency_fields(inside[-1] - inside[0])
        return {name: float(value) for name, value in fields.items()}

    def close(self) -> None:
        for each in self.rings:
            each.close()


def load(seconds: float, symbols: int, rate: int, *more: str) -> dict[str, Any]:
    """One run: its summary, shares of CPU, memory, latencies."""
    with tempfile.TemporaryDirectory() as folder:
        state = Path(folder) / "state"
        env = {**os.environ, "AEGIS_STATE_DIR": str(state)}
        words = ["up", "--for", str(seconds), "--symbols", str(symbols), "--rate", str(rate)]
        argv = [sys.executable, "-m", "maintenance.cli", *words, "--summary", *more]
        began_s = time.monotonic()
        with subprocess.Popen(
            argv, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ) as process:
            sampler = Sampler(process.pid)
            sampler.start()
            histograms = Histograms(state)
            try:
                deadline_s = began_s + seconds + EXTRA_S
                while process.poll() is None and time.monotonic() < deadline_s:
                    time.sleep(SAMPLE_S)
                    histograms.look()
                out, err = process.communicate(timeout=EXTRA_S)
            finally:
                process.terminate()
                sampler.ending.set()
                histograms.close()
        lines = out.strip().splitlines()
        summary = json.loads(lines[-1]) if lines else {"ok": False, "stderr": err[-400:]}
    first_s = began_s + float(summary.get("first_tick_s") or 0.0)
    loaded = (first_s + 0.3 * seconds, first_s + seconds)
    return {
        "summary": summary,
        "cpu": sampler.shares(*loaded),
        "pss_mb": sampler.pss,
        "latency_us": histograms.percentiles(*loaded),
    }


def run(seconds: float = 60.0, symbols: int = SYMBOLS, rate: int = RATE) -> list[Result]:
    """The rows of the whole path."""
    found = load(seconds, symbols, rate)
    summary, seen = found["summary"], found["latency_us"]
    note = f"{symbols} symbols, {rate:,} ticks/s, {seconds:.0f} s"
    kept = {k: summary.get(k) for k in ("ticks", "lost_ticks", "conflated", "refused", "ok")}
    results = [
        Result("path, ticks", "M", [summary.get("ticks", 0) / 1e6], note=note, extra=kept),
        Result("path, lost", "ticks", [float(summary.get("lost_ticks", -1))], 0.0),
        Result("path, conflated", "ticks", [float(summary.get("conflated", -1))]),
        Result("path, start to first tick", "s", [float(summary.get("first_tick_s", 0.0))], 5.0),
    ]
    for name, roles in PARTS.items():
        share = sum(found["cpu"].get(each, 0.0) for each in roles)
        results.append(Result(f"path, CPU of {name}", "% of a core", [share], TARGETS[name]))
    for name, label, target in (
        ("buffer_p50_us", "path, feed's pass over a buffer p50", None),
        ("buffer_p99_us", "path, feed's pass over a buffer p99", None),
        ("receive_to_brain_p50_us", "path, socket to brain p50", None),
        ("receive_to_brain_p99_us", "path, socket to brain p99", None),
        ("receive_to_signal_p50_us", "path, socket to signal made p50", None),
        ("receive_to_signal_p99_us", "path, socket to signal made p99", None),
        ("receive_to_redis_p50_us", "path, socket to signal in Redis p50", 500.0),
        ("receive_to_redis_p99_us", "path, socket to signal in Redis p99", 3_000.0),
    ):
        if name in seen:
            results.append(Result(label, "us", [seen[name]], target, note="bucket's upper edge"))
    quiet = load(IDLE_S, IDLE_SYMBOLS, IDLE_RATE)["cpu"]
    share = sum(quiet.get(each, 0.0) for each in ("node", "feed", "brain"))
    results.append(
        Result("idle, CPU of node, feed and brain", "% of a core", [share], 3.0, note=IDLE_NOTE)
    )
    if found["pss_mb"]:
        results.append(
            Result("path, memory of everything", "MB PSS", [max(found["pss_mb"])], 450.0)
        )
    return results
