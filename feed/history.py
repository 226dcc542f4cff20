"""Carries plans of heal.py out: fetches history over REST and publishes it in order.

An I/O shell. One task per symbol at most, TASKS_MAX at a time, in the order in which symbols were
asked for. Every task can be cancelled or die at any await: what is published is always a prefix of
the right order, the kernel's state says how far it came, and the task is simply run again.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Final

import numpy as np

from clock import boot_ns
from feed import binance, heal, lane
from feed.binance import NS_PER_MS
from feed.heal import Correction, Records
from feed.lane import COUNT, FIRST, HELD, LAST_ID, LAST_NS, LIVE, STAT, STATUS, UNSURE, Lane
from feed.rest import Rest, RestError
from records import DROP, HEALED, TIMEFRAMES_MIN

log = logging.getLogger("feed.history")

TASKS_MAX: Final = 6
FIRST_TRADE_S: Final = 3.0  # a symbol that does not trade for so long is warmed up to now
ROOM_WAIT_S: Final = 0.005
LOOK_S: Final = 0.02
LAG_WAIT_S: Final = 0.25  # REST may be behind the socket
LAG_WAITS_MAX: Final = 8
RETRY_S: Final = 1.0  # doubled after each failure
RETRY_S_MAX: Final = 30.0
BARS_WEIGHT: Final = 1 + len(TIMEFRAMES_MIN)


class History:
    """Warm-up, healing and corrections of one lane."""

    def __init__(
        self,
        lane_: Lane,
        rest: Rest,
        heal_trades_max: int,
        is_live: Callable[[int], bool],
        on_whole: Callable[[int], None],
    ) -> None:
        self._lane, self._rest = lane_, rest
        self._heal_trades_max = heal_trades_max
        self._is_live = is_live  # whether the symbol's trades are flowing
        self._on_whole = on_whole  # told when a warm-up or healing is over
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._loose: set[asyncio.Task[None]] = set()
        self._gate = asyncio.Semaphore(TASKS_MAX)
        self.names: dict[int, str] = {}
        self._corrections: dict[tuple[int, int], Correction] = {}
        self._lossy: set[int] = set()  # GAP told, 1m bars not yet corrected: not HEALED

    # --- asked for by main ---

    def warm_up(self, row: int) -> None:
        """Announce a HELD symbol's past: bars, the minute's trades, then the live ones."""
        self._start(row, self._warm)

    def mend(self, row: int) -> None:
        """Close the hole behind which a symbol's trades wait."""
        self._start(row, self._mend)

    def busy(self, row: int) -> bool:
        """Whether something is being fetched for a symbol."""
        return row in self._tasks

    def forget(self, row: int) -> None:
        """Stop whatever runs for a symbol that is leaving or starting anew."""
        task = self._tasks.pop(row, None)
        if task is not None:
            task.cancel()
        self._lossy.discard(row)
        for key in [key for key in self._corrections if key[0] == row]:
            del self._corrections[key]

    def lost(self, row: int, from_ms: int, to_ms: int) -> None:
        """Trades between two market times are gone and GAP says so: plan their bars' correction."""
        self._lossy.add(row)
        for correction in heal.corrections(min(from_ms or to_ms, to_ms), to_ms):
            key = (row, correction.timeframe_min)
            self._corrections[key] = heal.merged(self._corrections.get(key), correction)

    def tick(self, market_ms: int) -> None:
        """Start the corrections whose bars are over."""
        for key, correction in list(self._corrections.items()):
            if correction.due_ms <= market_ms:
                del self._corrections[key]
                self._spawn(self._correct(key[0], correction))

    def say(self, records: Records) -> None:
        """Publish records, at once if there is room."""
        done = lane.emit(self._lane, records, 0)
        if done < len(records):
            self._spawn(self._emit_rest(records, done))

    async def close(self) -> None:
        """Cancel everything and wait for it."""
        tasks = [*self._tasks.values(), *self._loose]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # --- inside ---

    def _spawn(self, work: Awaitable[None]) -> None:
        task = asyncio.ensure_future(work)
        assert isinstance(task, asyncio.Task)
        self._loose.add(task)
        task.add_done_callback(self._loose.discard)

    def _start(self, row: int, work: Callable[[int], Awaitable[None]]) -> None:
        if row in self._tasks:
            return
        task = asyncio.get_running_loop().create_task(self._run(row, work))
        self._tasks[row] = task

        def ended(done: asyncio.Task[None]) -> None:
            if self._tasks.get(row) is done:
                del self._tasks[row]
            if not done.cancelled() and done.exception() is not None:
                log.error("history died symbol=%s", self.names.get(row), exc_info=done.exception())

        task.add_done_callback(ended)

    async def _run(self, row: int, work: Callable[[int], Awaitable[None]]) -> None:
        wait_s = RETRY_S
        while True:
            try:
                await work(row)
                if self._get(row, STATUS) == LIVE:
                    self._on_whole(row)
                return
            except (RestError, binance.BadAnswer) as error:
                log.warning("history symbol=%s reason=%s", self.names.get(row), error)
            await asyncio.sleep(wait_s)
            wait_s = min(2 * wait_s, RETRY_S_MAX)

    def _get(self, row: int, column: int) -> int:
        return int(self._lane.symbols[row, column])

    def _first_waiting(self, row: int) -> tuple[int, int]:
        """(id, market ms) of the first waiting trade, (0, 0) if none waits."""
        if self._get(row, COUNT) == 0:
            return 0, 0
        record = self._lane.side[self._get(row, FIRST)]
        return int(record["id"]), int(record["exch_ns"]) // NS_PER_MS

    async def _emit_rest(self, records: Records, begin: int, row: int | None = None) -> None:
        """Publish records[begin:] as room comes; trades only while their symbol is HELD."""
        while begin < len(records):
            if row is not None and self._get(row, STATUS) != HELD:
                return
            begin = lane.emit(self._lane, records, begin)
            if begin < len(records):
                await asyncio.sleep(ROOM_WAIT_S)

    async def _trades(self, row: int, from_id: int | None, start_ms: int | None) -> Records:
        await self._rest.budget(binance.AGG_TRADES_WEIGHT)
        path = binance.trades_path(self.names[row], from_id, start_ms)
        return binance.parse_trades(await self._rest.get(path), row, boot_ns())

    async def _klines(
        self, row: int, timeframe_min: int, start_ms: int | None, end_ms: int, limit: int
    ) -> binance.Klines:
        path = binance.klines_path(self.names[row], timeframe_min, start_ms, end_ms, limit)
        return binance.parse_klines(await self._rest.get(path))

    async def _warm(self, row: int) -> None:
        first_ms = await self._first_trade_ms(row)
        async with self._gate:
            minute_ms = heal.floor_ms(first_ms, 1)
            await self._rest.budget(BARS_WEIGHT)
            answers = await asyncio.gather(
                *(
                    self._klines(row, t, None, heal.floor_ms(minute_ms, t) - 1, heal.bars_max(t))
                    for t in TIMEFRAMES_MIN
                )
            )
            history = dict(zip(TIMEFRAMES_MIN, answers, strict=True))
            trades = await self._trades(row, None, minute_ms)
            await self._emit_rest(heal.warm_up_bars(row, history, minute_ms, boot_ns()), 0)
            await self._anchor(row, trades, minute_ms)
            await self._close_hole(row)

    async def _first_trade_ms(self, row: int) -> int:
        """Market time of the first live trade, or now when the symbol is quiet."""
        waited_s = 0.0
        while True:
            first_id, first_ms = self._first_waiting(row)
            newest_ms = int(self._lane.control[lane.NEWEST_MS])
            if first_id:
                return first_ms
            if waited_s >= FIRST_TRADE_S and newest_ms:
                return newest_ms
            await asyncio.sleep(LOOK_S)
            waited_s += LOOK_S

    async def _anchor(self, row: int, trades: Records, minute_ms: int) -> None:
        """Set the id from which the symbol is continuous: the one before minute M's first."""
        first_id, _ = self._first_waiting(row)
        if len(trades):
            before = int(trades["id"][0]) - 1
        elif first_id:
            before = first_id - 1
        else:
            newest = await self._rest.get(binance.trades_path(self.names[row], limit=1))
            found = binance.parse_trades(newest, row, boot_ns())
            before = int(found["id"][-1]) if len(found) else 0
        if self._get(row, STATUS) != HELD:  # the side buffer overflowed meanwhile: GAP tells
            return
        self._lane.symbols[row, LAST_ID] = before
        self._lane.symbols[row, LAST_NS] = minute_ms * NS_PER_MS
        await self._publish_page(row, trades)

    async def _publish_page(self, row: int, trades: Records) -> None:
        """Publish of fetched trades what continues the symbol, up to the first waiting one."""
        first_id, _ = self._first_waiting(row)
        begin = self._get(row, LAST_ID) + 1
        stop = first_id - 1 if first_id else np.iinfo(np.int64).max
        await self._emit_rest(heal.in_sequence(trades, begin, stop), 0, row)

    async def _mend(self, row: int) -> None:
        async with self._gate:
            if self._get(row, STATUS) == UNSURE:
                self._lane.symbols[row, STATUS] = HELD
            await self._close_hole(row)

    async def _close_hole(self, row: int) -> None:
        """Fetch or give up what is missing, hole by hole, until the symbol is LIVE."""
        lags = 0
        while self._get(row, STATUS) == HELD:
            missing = self._missing(row)
            if missing == 0:
                code = lane.release(self._lane, row, boot_ns(), int(row not in self._lossy))
                if code == 1:
                    await asyncio.sleep(ROOM_WAIT_S)
                continue
            waiting = int(self._lane.stats[STAT["held"]])
            left = heal.patience(self._rest.used_weight, waiting, len(self._lane.side))
            known = missing > 0
            if known and not heal.worth_fetching(missing, self._heal_trades_max, left):
                await self._give_up(row, missing)
                continue
            last_id = self._get(row, LAST_ID)
            page = await self._trades(row, last_id + 1, None)
            await self._publish_page(row, page)
            if self._get(row, LAST_ID) > last_id:
                lags = 0
                quiet = not known and len(page) < binance.AGG_TRADES_MAX
            else:
                lags += 1
                quiet = not known
            if quiet and self._missing(row) < 0:  # REST has no more and nothing waits: up to date
                if not self._is_live(row):
                    return  # the socket is down: asked for again when it is back
                lane.release(self._lane, row, boot_ns(), int(row not in self._lossy))
            elif lags > LAG_WAITS_MAX and self._missing(row) > 0:
                await self._give_up(row, self._missing(row))
            elif lags:
                await asyncio.sleep(LAG_WAIT_S)

    def _missing(self, row: int) -> int:
        """Trades missing before the first waiting one; -1 when none waits: nobody can tell."""
        first_id, _ = self._first_waiting(row)
        last_id = self._get(row, LAST_ID)
        if not first_id:
            return -1
        return max(0, first_id - last_id - 1) if last_id else 0

    async def _give_up(self, row: int, count: int) -> None:
        """Declare a hole lost: GAP with its count, the waiting trades go out, bars follow later."""
        first = self._get(row, LAST_ID) + 1
        _, to_ms = self._first_waiting(row)
        from_ms = self._get(row, LAST_NS) // NS_PER_MS or to_ms
        log.warning("hole lost symbol=%s first=%d count=%d", self.names[row], first, count)
        told = heal.gap(row, first, count, from_ms, to_ms, boot_ns())
        await self._emit_rest(told, 0, row)
        if self._get(row, STATUS) != HELD or self._get(row, LAST_ID) + 1 != first:
            return
        self._lane.symbols[row, LAST_ID] = first + count - 1
        self._lane.stats[STAT["lost_trades"]] += count
        self.lost(row, from_ms, to_ms)

    async def _correct(self, row: int, correction: Correction) -> None:
        """Replace the bars that lost trades; after the 1m ones the symbol is whole."""
        timeframe_min = correction.timeframe_min
        end_ms = correction.last_ms + timeframe_min * binance.MS_PER_MIN - 1
        try:
            await self._rest.budget(binance.AGG_TRADES_WEIGHT)
            candles = await self._klines(
                row, timeframe_min, correction.first_ms, end_ms, binance.KLINES_MAX
            )
        except (RestError, binance.BadAnswer) as error:
            log.warning("correction symbol=%s reason=%s", self.names.get(row), error)
            if row in self.names:
                key = (row, timeframe_min)
                self._corrections[key] = heal.merged(self._corrections.get(key), correction)
            return
        if row not in self.names:
            return
        flags = heal.correction_flags()
        await self._emit_rest(heal.bars(row, timeframe_min, candles, flags, boot_ns()), 0)
        self._lane.stats[STAT["corrections"]] += len(candles)
        if timeframe_min == TIMEFRAMES_MIN[0] and (row, timeframe_min) not in self._corrections:
            self._lossy.discard(row)
            if self._get(row, STATUS) == LIVE:
                self.say(heal.marker(HEALED, row, boot_ns()))


def reset_records(row: int, name: str, drop: bool, recv_ns: int) -> Records:
    """SYMBOL, after a DROP when the reader may know an older state of this row."""
    announced = heal.announcement(row, name, recv_ns)
    if not drop:
        return announced
    return np.concatenate([heal.marker(DROP, row, recv_ns), announced])
