"""Deadlines of the session: one timer of the event loop, set to the earliest.

An I/O shell of risk/main.py. Times are boot milliseconds, rounded up to whole ones: however many
deadlines fall into the same millisecond, they ring once; so it holds at most one time for each
millisecond up to the latest. A deadline that was given up rings all the same and finds nothing.
"""

from __future__ import annotations

import asyncio
import heapq
import math
from collections.abc import Callable


class Alarms:
    """Calls `ring` at each time that was asked for, or soon after."""

    def __init__(self, boot_ms: Callable[[], float], ring: Callable[[], None]) -> None:
        self._boot_ms = boot_ms
        self._ring = ring
        self._times: list[int] = []  # a heap, each time once
        self._asked: set[int] = set()
        self._handle: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        return len(self._times)

    def ask(self, at_ms: float) -> None:
        """Ring at a boot time; one that has passed rings in the loop's next turn."""
        at = math.ceil(max(at_ms, self._boot_ms()))
        if at in self._asked:
            return
        self._asked.add(at)
        heapq.heappush(self._times, at)
        if self._times[0] == at:
            self._set()

    def _set(self) -> None:
        """The timer, to the earliest."""
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None
        if self._times:
            delay_s = max(0.0, self._times[0] - self._boot_ms()) / 1000
            self._handle = asyncio.get_running_loop().call_later(delay_s, self._woken)

    def _woken(self) -> None:
        now_ms, rang = self._boot_ms(), False
        while self._times and self._times[0] <= now_ms:
            self._asked.discard(heapq.heappop(self._times))
            rang = True
        self._handle = None
        self._set()
        if rang:
            self._ring()

    def close(self) -> None:
        """Nothing rings any more."""
        self._times.clear()
        self._asked.clear()
        self._set()
