"""Bars that lost trades: which ones, and their replacement by the exchange's own candles.

An I/O shell. One task per symbol, finest timeframe first. A bar is replaced once it is over and its
symbol is LIVE: by then every trade of that time is published or declared lost, and none can come
after the correction that holds it. HEALED is never said while something that was lost still lacks
its correction, but for a coarser bar that is still forming: the reader makes that one of the finer
ones.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from dataclasses import replace
from typing import Final

import numpy as np

from clock import boot_ns
from feed import binance, heal
from feed.heal import Correction
from feed.lane import (
    GAP_COUNT,
    LIVE,
    LOSSY,
    LOST,
    REPORT,
    STAT,
    STATUS,
    UNKNOWN_SPAN_MS,
    Lane,
    note_loss,
)
from feed.outbox import ROOM_WAIT_S, Outbox
from feed.rest import Rest, RestError
from records import HEALED, TIMEFRAMES_MIN

log = logging.getLogger("feed.corrections")

TASKS_MAX: Final = 6
LIVE_WAIT_S: Final = 0.05
RETRY_S, RETRY_S_MAX = 1.0, 30.0  # doubled after each failure
LOOKS_MAX: Final = 4  # for a candle that REST does not have yet
FINEST_MIN: Final = TIMEFRAMES_MIN[0]


class Corrections:
    """One lane's. `names` is the table of live symbols, row -> name."""

    def __init__(self, lane_: Lane, rest: Rest, outbox: Outbox, names: Mapping[int, str]) -> None:
        self._lane, self._rest, self._outbox, self._names = lane_, rest, outbox, names
        self._planned: dict[int, dict[int, set[int]]] = {}  # row -> timeframe -> open times
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._gate = asyncio.Semaphore(TASKS_MAX)
        self._market_ms = 0

    def plan(self, row: int, from_ms: int, to_ms: int) -> None:
        """Trades between two market times are gone; from 0 on means since nobody knows when."""
        from_ms = from_ms or to_ms - UNKNOWN_SPAN_MS
        note_loss(self._lane, row, from_ms, to_ms)
        self._lane.symbols[row, LOSSY] = 1
        planned = self._planned.setdefault(row, {})
        for correction in heal.corrections(min(from_ms, to_ms), to_ms):
            planned.setdefault(correction.timeframe_min, set()).update(heal.opens(correction))

    def tick(self, market_ms: int) -> None:
        """Start what is due, and show how much is not right yet."""
        self._market_ms = market_ms
        wrong = 0
        for row, planned in self._planned.items():
            over = [found for t in planned if (found := heal.due(planned[t], t, market_ms))]
            wrong += len(planned.get(FINEST_MIN, ()))
            wrong += sum(1 for found in over if found.timeframe_min != FINEST_MIN)
            if over and row not in self._tasks:
                self._tasks[row] = asyncio.get_running_loop().create_task(self._work(row))
        self._lane.stats[STAT["uncorrected"]] = wrong
        for row, task in list(self._tasks.items()):
            if task.done():
                del self._tasks[row]
                task.result()  # our own mistake: die of it

    def forget(self, row: int) -> None:
        """The symbol leaves or starts anew."""
        self._planned.pop(row, None)
        task = self._tasks.pop(row, None)
        if task is not None:
            task.cancel()

    async def close(self) -> None:
        """Cancel everything and wait for it."""
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # --- inside ---

    def _next(self, row: int) -> Correction | None:
        planned = self._planned[row]
        found = (heal.due(planned[t], t, self._market_ms) for t in sorted(planned))
        return next((correction for correction in found if correction is not None), None)

    async def _work(self, row: int) -> None:
        wait_s, looks = RETRY_S, 0
        while (correction := self._next(row)) is not None:
            wanted = self._planned[row][correction.timeframe_min] & heal.opens(correction)
            correction = replace(correction, first_ms=min(wanted))
            try:
                candles = await self._candles(row, correction)
            except (RestError, binance.BadAnswer) as error:
                log.warning("correction symbol=%s reason=%s", self._names[row], error)
                await asyncio.sleep(wait_s)
                wait_s = min(2 * wait_s, RETRY_S_MAX)
                continue
            candles = candles[np.isin(candles[:, binance.OPEN_MS], list(wanted))]
            looks += 1
            if len(candles) < len(wanted) and looks < LOOKS_MAX:
                await asyncio.sleep(RETRY_S)
                continue
            if len(candles) < len(wanted):
                log.warning(
                    "no candle symbol=%s timeframe_min=%d missing=%d",
                    self._names[row], correction.timeframe_min, len(wanted) - len(candles),
                )  # fmt: skip
                self._planned[row][correction.timeframe_min] -= wanted - _opens(candles)
            await self._replace(row, correction.timeframe_min, candles)
            wait_s, looks = RETRY_S, 0

    async def _candles(self, row: int, correction: Correction) -> binance.Klines:
        span_ms = correction.timeframe_min * binance.MS_PER_MIN
        limit = (correction.last_ms - correction.first_ms) // span_ms + 1
        path = binance.klines_path(
            self._names[row], correction.timeframe_min, correction.first_ms,
            correction.last_ms + span_ms - 1, limit,
        )  # fmt: skip
        async with self._gate:
            body = await self._rest.fetch(path, binance.klines_weight(limit))
        return binance.parse_klines(body)

    async def _replace(self, row: int, timeframe_min: int, candles: binance.Klines) -> None:
        """Publish bars while the symbol is LIVE; one that loses more after that is planned anew."""
        planned, done = self._planned[row], 0
        while done < len(candles):
            if int(self._lane.symbols[row, STATUS]) != LIVE:
                await asyncio.sleep(LIVE_WAIT_S)
                continue
            bars = heal.bars(row, timeframe_min, candles[done:], heal.correction_flags(), boot_ns())
            published = self._outbox.emit(bars, 0) // 2
            planned[timeframe_min] -= _opens(candles[done : done + published])
            self._lane.stats[STAT["corrections"]] += published
            done += published
            if done < len(candles):
                await asyncio.sleep(ROOM_WAIT_S)
        if planned[timeframe_min]:
            return
        del planned[timeframe_min]
        if not planned and not self._loses(row):
            self._lane.lost[row] = 0
        if self._lane.symbols[row, LOSSY]:
            await self._say_healed(row)

    def _loses(self, row: int) -> bool:
        """Whether a loss is not planned yet: untold, or told since the last tick."""
        symbol = self._lane.symbols[row]
        return bool(symbol[GAP_COUNT] or symbol[REPORT] & LOST)

    def _is_right(self, row: int) -> bool:
        """Whether no 1m bar lacks its correction, and no coarser one that is over."""
        planned = self._planned[row]
        return FINEST_MIN not in planned and not any(
            heal.ended(planned[t], t, self._market_ms) for t in planned
        )

    async def _say_healed(self, row: int) -> None:
        """If the bars are right again, and no more was lost meanwhile. LIVE tells, UNSURE asks."""
        symbol = self._lane.symbols[row]
        while self._is_right(row):
            if self._loses(row):
                return  # its own correction will come here
            waits = symbol[STATUS] != LIVE  # then whoever makes it LIVE says HEALED
            if waits or self._outbox.emit(heal.marker(HEALED, row, boot_ns()), 0):
                symbol[LOSSY] = 0
                return
            await asyncio.sleep(ROOM_WAIT_S)


def _opens(candles: binance.Klines) -> set[int]:
    return set(candles[:, binance.OPEN_MS].astype(np.int64).tolist())
