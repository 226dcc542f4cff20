"""Snapshots of the exchange's truth: one at a time, for all who asked before it was begun.

An I/O shell of risk/main.py. A snapshot costs the weight of four questions, so whoever asks while
one is under way waits for the next one, together with the others; failures pause longer and
longer, and a time that the exchange named is waited out.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, Final

from risk.events import Snap, SnapshotTaken
from risk.exchange import Exchange
from risk.rebuild import take_snapshot
from risk.recovery import FORCED, START

PAUSE_S: Final = (0.3, 5.0)  # first and longest pause after a failure
COLLECTS: Final = "snapshot"  # the one reason that only wants to be told


def merged(asked: list[Snap]) -> list[Snap]:
    """The most demanding reason once, and an answer for each further command."""

    def demand(snap: Snap) -> tuple[bool, bool, bool]:
        return snap.reason == START, snap.reason in FORCED, snap.reason != COLLECTS

    reason = max(asked, key=demand).reason
    first, *others = list(dict.fromkeys(s.command_id for s in asked if s.command_id)) or [""]
    return [Snap(reason, first), *(Snap(COLLECTS, command_id) for command_id in others)]


class Snapshots:
    """Takes what `Snap` effects ask for; answers each through `on_taken`."""

    def __init__(
        self,
        exchange: Exchange,
        epoch: int,
        clocks: tuple[Callable[[], float], Callable[[], float]],  # boot ms, market ms
        on_taken: Callable[[SnapshotTaken], None],
        spawn: Callable[[Coroutine[Any, Any, None]], None],
    ) -> None:
        self._exchange, self._epoch = exchange, epoch
        self._boot_ms, self._market_ms = clocks
        self._on_taken, self._spawn = on_taken, spawn
        self._asked: list[Snap] = []
        self._running = False
        self._made = 0

    def ask(self, snap: Snap) -> None:
        if snap not in self._asked:
            self._asked.append(snap)
        if not self._running:
            self._running = True
            self._spawn(self._run())

    async def _run(self) -> None:
        """Until nobody asks; who asks during a try joins the next one."""
        waiting: list[Snap] = []
        pause_s = PAUSE_S[0]
        while self._asked or waiting:
            await self._exchange.calm()
            waiting += self._asked
            self._asked = []
            self._made += 1
            snapshot = await take_snapshot(
                self._exchange, f"{self._epoch}-{self._made}", self._boot_ms(), self._market_ms()
            )
            if snapshot is None:
                await asyncio.sleep(pause_s)
                pause_s = min(pause_s * 2, PAUSE_S[1])
                continue
            for snap in merged(waiting):
                self._on_taken(SnapshotTaken(snapshot, snap.reason, snap.command_id))
            waiting, pause_s = [], PAUSE_S[0]
        self._running = False
