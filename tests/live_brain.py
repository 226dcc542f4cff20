"""A real brain process, and feed's side of the ring that it reads."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Final

import numpy as np

import barrier
import ring as rings

ROOT: Final = Path(__file__).resolve().parent.parent
LIVES: Final[list[subprocess.Popen[bytes]]] = []


def until(condition: object, what: str, limit_s: float = 20.0, poll_s: float = 0.01) -> None:
    for _ in range(int(limit_s / poll_s)):
        if condition():  # type: ignore[operator]
            return
        time.sleep(poll_s)
    raise AssertionError(f"never: {what}")


def brain_command(ring: rings.Ring, redis_url: str) -> tuple[list[str], dict[str, str]]:
    argv = [sys.executable, "-m", "brain.main", "--ring", str(ring.path)]
    argv += ["--world", "world", "--node", "n1"]
    return argv, {**os.environ, "REDIS_URL": redis_url, "AEGIS_MODE": "sim"}


def start_brain(ring: rings.Ring, redis_url: str, **more: str) -> subprocess.Popen[bytes]:
    """A brain that is ready; what still lives of them when its test ends is killed."""
    argv, environ = brain_command(ring, redis_url)
    ring.words[rings.BRAIN_READY] = 0
    brain = subprocess.Popen(argv, cwd=ROOT, env={**environ, **more})
    LIVES.append(brain)
    generation = ring.words[rings.GENERATION]
    ready = lambda: ring.words[rings.BRAIN_READY] == generation or brain.poll()  # noqa: E731
    until(ready, "ready", 240.0)  # it may have to compile its kernels
    assert brain.poll() is None
    return brain


def counter(ring: rings.Ring, name: str) -> int:
    return int(ring.brain_stats[rings.BRAIN_COUNTERS.index(name)])


class Feed:
    """The feed's side of a ring."""

    def __init__(self, ring: rings.Ring):
        self.ring = ring
        self.cursor = np.array([ring.words[rings.HEAD], ring.words[rings.TAIL]], np.int64)

    def write(self, recs: np.ndarray) -> None:
        """What closes a minute, then the rest of it, each when the brain ended its turn and Redis
        has its signals: they expire by the market's clock."""
        steps = np.flatnonzero(np.diff(recs["exch_ns"])) + 1
        minute = recs["exch_ns"] // 60_000_000_000
        opens = np.flatnonzero(np.diff(minute)) + 1
        after = steps[np.minimum(np.searchsorted(steps, opens, "right"), len(steps) - 1)]
        before = self.under_way()
        for piece in np.split(recs, np.unique(np.append(opens, after))):
            at = (int(self.cursor[0]) + np.arange(len(piece))) & self.ring.mask
            self.ring.slots[at] = piece
            self.cursor[0] += len(piece)
            barrier.publish(self.ring.words, self.cursor)
            until(self.consumed, "the brain consumes", poll_s=0.001)
            until(lambda: (self.under_way() <= before).all(), "Redis has it", poll_s=0.001)

    def consumed(self) -> bool:
        return bool(self.ring.words[rings.TAIL] == self.cursor[0])

    def under_way(self) -> np.ndarray:
        """Turns begun less turns ended, and signals made less signals written, in all lives."""
        turns, ended, made, written = (
            int(self.ring.brain_hist[rings.BRAIN_HISTS.index(name)].sum())
            for name in ("receive_to_brain_ns", "batch_records",
                         "receive_to_signal_ns", "receive_to_redis_ns")
        )  # fmt: skip
        return np.array([turns - ended, made - written])


def end_all() -> None:
    while LIVES:
        brain = LIVES.pop()
        if brain.poll() is None:
            brain.kill()
            brain.wait()
