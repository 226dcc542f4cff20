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
from feed.binance import AGG_TRADES_MAX, NS_PER_MS
from feed.corrections import Corrections
from feed.heal import Records
from feed.lane import COUNT, FIRST, HELD, LAST_ID, LAST_NS, LIVE, STAT, STATUS, UNSURE, Lane
from feed.outbox import ROOM_WAIT_S, Outbox
from feed.rest import Rest, RestError
from records import DROP, TIMEFRAMES_MIN

log = logging.getLogger("feed.history")

TASKS_MAX: Final = 6
FIRST_TRADE_S: Final = 3.0  # a symbol that does not trade for so long is warmed up to now
LOOK_S: Final = 0.02
LAG_WAIT_S: Final = 0.25  # REST may be behind the socket; doubled after each look
LAG_WAITS_MAX: Final = 4
RETRY_S: Final = 1.0  # doubled after each failure
RETRY_S_MAX: Final = 30.0
NEWEST_BARS: Final = 2  # 1m candles asked for beyond the closed ones: the minute itself, and a next


class History:
    """Warm-up and healing of one lane; what cannot be healed is corrected."""

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
        self._warming: set[int] = set()  # rows that wait for, or are in, their warm-up
        self._gate = asyncio.Semaphore(TASKS_MAX)
        self.names: dict[int, str] = {}
        self.outbox = Outbox(lane_)
        self._corrections = Corrections(lane_, rest, self.outbox, self.names)

    # --- asked for by main ---

    def warm_up(self, row: int) -> None:
        """Announce a HELD symbol's past: bars, the minute's trades, then the live ones."""
        self._warming.add(row)
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
        self._warming.discard(row)
        self._corrections.forget(row)
        self.outbox.forget(row)

    def lost(self, row: int, from_ms: int, to_ms: int) -> None:
        """Trades between two market times are gone and GAP says so: plan their bars' correction."""
        self._corrections.plan(row, from_ms, to_ms)

    def tick(self, market_ms: int) -> None:
        """Say what had no room, start the corrections whose bars are over."""
        self.outbox.flush()
        self._corrections.tick(market_ms)

    def say(self, row: int, records: Records) -> None:
        """Publish a symbol's records, in order, as room comes."""
        self.outbox.say(row, records)

    async def close(self) -> None:
        """Cancel everything and wait for it."""
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._corrections.close()

    # --- inside ---

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
                self._warming.discard(row)
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

    async def _trades(
        self, row: int, from_id: int | None, start_ms: int | None, limit: int = AGG_TRADES_MAX
    ) -> Records:
        path = binance.trades_path(self.names[row], from_id, start_ms, limit)
        body = await self._rest.fetch(path, binance.AGG_TRADES_WEIGHT)
        return binance.parse_trades(body, row, boot_ns())

    async def _klines(self, row: int, timeframe_min: int, minute_ms: int) -> binance.Klines:
        """Closed candles for a warm-up up to a minute; of 1m ones the newest too."""
        limit, end_ms = heal.bars_max(timeframe_min), heal.floor_ms(minute_ms, timeframe_min) - 1
        if timeframe_min == TIMEFRAMES_MIN[0]:
            limit, end_ms = limit + NEWEST_BARS, end_ms + NEWEST_BARS * binance.MS_PER_MIN
        path = binance.klines_path(self.names[row], timeframe_min, None, end_ms, limit)
        return binance.parse_klines(await self._rest.fetch(path, binance.klines_weight(limit)))

    # --- warm-up ---

    async def _warm(self, row: int) -> None:
        first_ms = await self._first_trade_ms(row)
        async with self._gate:
            if self._get(row, LAST_ID) == 0:  # else a run before this one came as far as the hole
                await self._begin(row, heal.floor_ms(first_ms, 1))
            await self._close_hole(row, told=np.iinfo(np.int64).max)

    async def _begin(self, row: int, minute_ms: int) -> None:
        """Everything up to the id from which the symbol is continuous."""
        answers = await asyncio.gather(*(self._klines(row, t, minute_ms) for t in TIMEFRAMES_MIN))
        history = dict(zip(TIMEFRAMES_MIN, answers, strict=True))
        fine = history[TIMEFRAMES_MIN[0]]
        trades = await self._minute_trades(row, minute_ms, fine)
        await self.outbox.publish(heal.warm_up_bars(row, history, minute_ms, boot_ns()))
        if trades is not None and len(trades):
            self._go_on_behind(row, int(trades["id"][0]) - 1, minute_ms)
            await self._publish_page(row, trades)
            return
        before, before_ms = await self._before_live(row, minute_ms)
        self._go_on_behind(row, before, minute_ms)
        if trades is None or before_ms >= minute_ms:
            # what came between the minute's start and there is in no bar of ours
            self.lost(row, minute_ms, max(before_ms, minute_ms))

    def _go_on_behind(self, row: int, last_id: int, minute_ms: int) -> None:
        self._lane.symbols[row, LAST_ID] = last_id
        self._lane.symbols[row, LAST_NS] = minute_ms * NS_PER_MS

    async def _before_live(self, row: int, minute_ms: int) -> tuple[int, int]:
        """(id, market ms at most) of the last trade before the first live one, be it waiting or
        still to come. One that waits from before the minute is in the bars: REST knows the last."""
        if self._waits(row, minute_ms):
            first_id, first_ms = self._first_waiting(row)
            return first_id - 1, first_ms
        found = await self._trades(row, None, None, 1)
        if not len(found):
            return 0, 0
        return int(found["id"][-1]), int(found["exch_ns"][-1]) // NS_PER_MS

    async def _minute_trades(
        self, row: int, minute_ms: int, fine: binance.Klines
    ) -> Records | None:
        """The minute's trades from its first on; None when they cost too much and a trade waits to
        begin with, or when REST does not have the first ones.

        `fine` holds the minute's candle and bounds the number of trades: klines count single ones,
        which are aggregated here.
        """
        opens, left = fine[:, binance.OPEN_MS], self._rest.left() - heal.CANDLES_RESERVE
        single = int(fine[opens >= minute_ms, binance.TRADES].sum())
        if not heal.worth_warming(single, left, len(self._warming)) and self._waits(row, minute_ms):
            return None
        for look in range(LAG_WAITS_MAX):
            trades = await self._trades(row, None, minute_ms)
            if len(trades):
                first = await self._is_first(row, trades, minute_ms, fine[opens == minute_ms])
                return trades if first else None
            if not self._waits(row, minute_ms):
                return trades
            await asyncio.sleep(LAG_WAIT_S * 2**look)
        return None  # REST stays behind the socket

    async def _is_first(
        self, row: int, trades: Records, minute_ms: int, candle: binance.Klines
    ) -> bool:
        """Whether `trades` begin with the minute's first one; the trade before it proves what the
        candle cannot."""
        told = heal.reaches_back(trades, candle)
        if told is None:
            found = await self._trades(row, int(trades["id"][0]) - 1, None, 1)
            told = heal.is_before(found, trades, minute_ms)
        return told

    def _waits(self, row: int, minute_ms: int) -> bool:
        """Whether the first trade that waits is of this minute or later."""
        first_id, first_ms = self._first_waiting(row)
        return first_id > 0 and first_ms >= minute_ms

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

    # --- holes ---

    async def _publish_page(self, row: int, trades: Records, after_id: int | None = None) -> None:
        """Publish of fetched trades what continues the symbol, up to the first waiting one.

        What was asked for `after_id` and begins later shows that REST does not keep the rest.
        """
        first_id, _ = self._first_waiting(row)
        stop = first_id - 1 if first_id else np.iinfo(np.int64).max
        inside = trades[trades["id"] <= stop]
        if after_id is not None and len(inside) and int(inside["id"][0]) > after_id + 1:
            gone = int(inside["id"][0]) - after_id - 1
            await self._give_up(row, gone, int(inside["exch_ns"][0]) // NS_PER_MS)
        begin = self._get(row, LAST_ID) + 1
        await self.outbox.publish(heal.in_sequence(inside, begin, stop), row)

    async def _mend(self, row: int) -> None:
        async with self._gate:
            if self._get(row, STATUS) == UNSURE:
                self._lane.symbols[row, STATUS] = HELD
            await self._close_hole(row)

    def _missing(self, row: int) -> int:
        """Trades missing before the first waiting one; -1 when none waits: nobody can tell."""
        first_id, _ = self._first_waiting(row)
        last_id = self._get(row, LAST_ID)
        if not first_id:
            return -1
        return max(0, first_id - last_id - 1) if last_id else 0

    async def _close_hole(self, row: int, told: int = 0) -> None:
        """Fetch or give up what is missing, hole by hole, until the symbol is LIVE.

        Holes behind id `told` are logged.
        """
        lags = 0
        while self._get(row, STATUS) == HELD:
            missing, last_id = self._missing(row), self._get(row, LAST_ID)
            if missing == 0:
                if lane.release(self._lane, row, boot_ns()) == 1:
                    await asyncio.sleep(ROOM_WAIT_S)
                continue
            if missing > 0 and told <= last_id:
                told = last_id + missing
                log.info("hole symbol=%s first=%d count=%d", self.names[row], last_id + 1, missing)
            if missing > 0 and (not self._worth_fetching(missing) or lags > LAG_WAITS_MAX):
                await self._give_up(row, missing, self._first_waiting(row)[1])
                continue
            if self._rest.left() < binance.AGG_TRADES_WEIGHT + heal.CANDLES_RESERVE:
                await self._rest.look()
                continue
            page = await self._trades(row, last_id + 1, None)
            await self._publish_page(row, page, last_id)
            lags = 0 if self._get(row, LAST_ID) > last_id else lags + 1
            if missing < 0 and self._missing(row) < 0 and len(page) < AGG_TRADES_MAX:
                if not self._is_live(row):
                    return  # the socket is down: asked for again when it is back
                if lane.release(self._lane, row, boot_ns()) == 1:  # up to date, but for the room
                    await asyncio.sleep(LAG_WAIT_S)
            elif lags:
                await asyncio.sleep(LAG_WAIT_S * 2 ** (lags - 1))

    def _worth_fetching(self, missing: int) -> bool:
        waiting, spent = int(self._lane.stats[STAT["held"]]), self._rest.spent
        left = heal.patience(spent + heal.CANDLES_RESERVE, waiting, len(self._lane.side))
        return heal.worth_fetching(missing, self._heal_trades_max, left)

    async def _give_up(self, row: int, count: int, to_ms: int) -> None:
        """Declare what comes next lost: GAP with its count, bars follow later."""
        first = self._get(row, LAST_ID) + 1
        from_ms = self._get(row, LAST_NS) // NS_PER_MS or to_ms - lane.UNKNOWN_SPAN_MS
        log.warning("hole lost symbol=%s first=%d count=%d", self.names[row], first, count)
        told = heal.gap(row, first, count, from_ms, to_ms, boot_ns())
        await self.outbox.publish(told, row)
        if self._get(row, STATUS) != HELD or self._get(row, LAST_ID) + 1 != first:
            return
        self._lane.symbols[row, LAST_ID] = first + count - 1
        self._lane.stats[STAT["lost_trades"]] += count
        self.lost(row, from_ms, to_ms)


def reset_records(row: int, name: str, drop: bool, recv_ns: int) -> Records:
    """SYMBOL, after a DROP when the reader may know an older state of this row."""
    announced = heal.announcement(row, name, recv_ns)
    if not drop:
        return announced
    return np.concatenate([heal.marker(DROP, row, recv_ns), announced])
