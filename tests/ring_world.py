"""Both ends of a ring and the market behind them, in one thread: for tests that take every order.

`Market` is the truth. `Writer` is feed without its sockets: the real lane, decoder and history on
an event loop whose time is virtual; REST answers from the market. `Scout` reads each record at the
moment it becomes visible and knows what may come next; it raises at the first that may not.
"""

from __future__ import annotations

import asyncio
import json
from collections import defaultdict
from collections.abc import Iterator
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import numpy as np

from feed import decode as decoder
from feed import heal, lane, walk
from feed.binance import MS_PER_MIN, NS_PER_MS
from feed.history import History, reset_records
from feed.main import remember
from feed.rest import RestError
from records import (
    BAR,
    BAR_VOLUME,
    CLOCK,
    DROP,
    GAP,
    HEALED,
    MARK,
    NO_SYMBOL,
    QUOTE,
    RECORD,
    REFUSED,
    SYMBOL,
    TIMEFRAME_NAMES,
    TIMEFRAMES_MIN,
    TRADE,
)
from ring import FEED_COUNTERS, HEAD, TAIL, Ring

T0_MS = 1_795_000_020_000  # the start of a minute
EVENT_MS = 250  # market time between two events
BOUND_MS = 60_000
HEAL_TRADES_MAX = 8
HOUR_MS = 3_600_000
SETTLE_ROUNDS = 400
READS_A_ROUND = 5  # hours of bars go through a ring of eight slots
RECV_NS = 1_000_000_000


def frame(event: dict[str, Any]) -> bytes:
    """One unmasked text frame."""
    payload = json.dumps(event, separators=(",", ":")).encode()
    assert len(payload) < 1 << 16
    return b"\x81\x7e" + len(payload).to_bytes(2, "big") + payload


def price(row: int, number: int) -> float:
    """Every number of a print follows from its id, so that half a record cannot look whole."""
    return 100.0 + row + number % 89 / 100


def qty(row: int, number: int) -> float:
    return 1.0 + row + number % 31 / 10


class Market:
    """What the exchange made, by row; ids count from a number that differs by row."""

    def __init__(self, rows: int) -> None:
        self.names = [f"R{row}USDT" for row in range(rows)]
        self.now_ms = T0_MS
        self.times = [dict[int, int]() for _ in range(rows)]  # id -> market ms
        self.newest = [100 * (row + 1) for row in range(rows)]
        self.updates = 0
        self.refused: set[tuple[int, int]] = set()  # prints that came as no price at all
        self.untimely: set[tuple[int, int]] = set()  # and those that came at a wrong time

    def trade(self, row: int, bad: bool = False) -> int:
        """The next print of a row; its id."""
        self.now_ms += EVENT_MS
        self.newest[row] += 1
        self.times[row][self.newest[row]] = self.now_ms
        if bad:
            self.refused.add((row, self.newest[row]))
        return self.newest[row]

    def trade_frame(self, row: int, number: int) -> bytes:
        time_ms = self.times[row][number]
        shown = "0" if (row, number) in self.refused else f"{price(row, number):.2f}"
        return frame(
            {"e": "aggTrade", "E": time_ms, "a": number, "s": self.names[row], "p": shown,
             "q": f"{qty(row, number):.1f}", "T": time_ms, "m": False}
        )  # fmt: skip

    def quote_frame(self, row: int) -> bytes:
        self.now_ms += EVENT_MS
        self.updates += 1
        u = self.updates
        return frame(
            {"e": "bookTicker", "u": u, "s": self.names[row], "b": f"{99 + u % 7 / 10:.1f}",
             "B": f"{u}", "a": "104.0", "A": f"{u + 1}", "T": self.now_ms, "E": self.now_ms}
        )  # fmt: skip

    def mark_frame(self, row: int) -> bytes:
        self.now_ms += EVENT_MS
        self.updates += 1
        return frame(
            {"e": "markPriceUpdate", "E": self.now_ms, "s": self.names[row],
             "p": f"{100 + self.updates % 5}", "i": f"{self.updates}", "r": "0.1", "T": 5}
        )  # fmt: skip


class Rest:
    """What History asks of REST, answered from the market; `behind` hides its newest trades."""

    def __init__(self, market: Market) -> None:
        self.market, self.spent = market, 0
        self.down, self.behind = False, 0

    def left(self) -> int:
        return heal.weight_left(self.spent)

    async def look(self) -> None:
        await asyncio.sleep(1.0)

    async def fetch(self, path: str, weight: int) -> bytes:
        await asyncio.sleep(0.02)
        if self.down:
            raise RestError("down")
        parts = urlsplit(path)
        query = dict(parse_qsl(parts.query))
        row = self.market.names.index(query["symbol"])
        if parts.path.endswith("klines"):
            return json.dumps(self._klines(query)).encode()
        ids = [n for n in self.market.times[row] if n <= self.market.newest[row] - self.behind]
        if "fromId" in query:
            ids = [n for n in ids if n >= int(query["fromId"])]
        elif "startTime" in query:
            ids = [n for n in ids if self.market.times[row][n] >= int(query["startTime"])]
        else:
            ids = ids[-int(query["limit"]) :]
        return json.dumps([self._trade(row, n) for n in ids[: int(query["limit"])]]).encode()

    def _trade(self, row: int, number: int) -> dict[str, Any]:
        time_ms = self.market.times[row][number]
        figures = {"p": price(row, number), "q": qty(row, number)}
        return {"a": number, "T": time_ms, "m": False, **figures}

    def _klines(self, query: dict[str, str]) -> list[list[Any]]:
        """The newest candles asked for; their numbers are the brain's business."""
        minutes = dict(zip(TIMEFRAME_NAMES, TIMEFRAMES_MIN, strict=True))
        span_ms = minutes[query["interval"]] * MS_PER_MIN
        last_ms = int(query["endTime"]) // span_ms * span_ms
        limit = int(query["limit"]) if "startTime" in query else 2
        opens = [last_ms - n * span_ms for n in reversed(range(limit))]
        return [[ms, 1, 2, 1, 1, 5, 0, 5, 3, 2, 2] for ms in opens]


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop that never waits: its time jumps to the next thing that is due."""

    def __init__(self) -> None:
        super().__init__()
        self.now_s = 0.0
        really = self._selector.select  # type: ignore[attr-defined]

        def select(timeout: float | None = None) -> Any:
            self.now_s += timeout or 0.0
            return really(0)

        self._selector.select = select  # type: ignore[attr-defined]

    def time(self) -> float:
        return self.now_s


class Writer:
    """feed.main.Feed without tables and links: the same steps in the same order."""

    def __init__(self, ring: Ring, market: Market, rest: Rest, rows: int, side_slots: int) -> None:
        self.ring, self.market, self.rows = ring, market, range(rows)
        restarted = int(ring.words[HEAD]) > 0
        self.lane = lane.make_lane(ring, side_slots)
        self.lane.control[[lane.NEWEST_MS, lane.BOUND_MS]] = market.now_ms, BOUND_MS
        self.state = np.zeros(8, np.int64)
        self.loop = VirtualLoop()
        self.history = History(
            self.lane,
            rest,  # type: ignore[arg-type]
            HEAL_TRADES_MAX,
            lambda row: self.up and row not in self.to_warm,
            lambda row: None,
        )
        self.up, self.to_warm = False, set[int]()
        self.received = {"trades": 0, "levels": 0}
        self.base = self.counts()
        if restarted:
            remember(self.lane)
        for row in self.rows:
            self._run(lambda row=row: self._announce(row, restarted))

    def _run(self, work: Any, seconds: float = 0.0) -> Any:
        """`work` on the loop, then this much time for its tasks."""

        async def go() -> Any:
            made = work()
            await asyncio.sleep(seconds)
            return made

        return self.loop.run_until_complete(go())

    def counts(self) -> dict[str, int]:
        return dict(zip(FEED_COUNTERS, self.ring.feed_stats.tolist(), strict=False))

    def counted(self, name: str) -> int:
        """A counter since this writer's birth."""
        return self.counts()[name] - self.base[name]

    def column(self, name: str) -> Any:
        return self.lane.symbols[: len(self.rows), getattr(lane, name)]

    # --- feed.main, start to end ---

    def _announce(self, row: int, restarted: bool) -> None:
        last_id, last_ns = int(self.ring.last_ids[row]), int(self.lane.symbols[row, lane.LAST_NS])
        name = self.history.names[row] = self.market.names[row]
        if not restarted or last_id == 0:
            self.begin(row, restarted)
            return
        lane.set_symbol(self.lane, row, name, lane.UNSURE, last_id)
        self.lane.symbols[row, lane.LAST_NS] = last_ns
        lane.doubt(self.lane, row, RECV_NS)
        lost_from_ms, lost_to_ms = self.ring.lost[row].tolist()
        if lost_to_ms:
            self.history.lost(row, lost_from_ms, lost_to_ms)

    def begin(self, row: int, drop: bool) -> None:
        lane.set_symbol(self.lane, row, self.market.names[row], lane.HELD, 0)
        self.ring.last_ids[row] = self.ring.lost[row] = 0
        self.history.say(row, reset_records(row, self.market.names[row], drop, RECV_NS))
        self.to_warm.add(row)

    def connect(self) -> None:
        """The sockets are up and every stream is acked."""
        self.up = True
        self._run(self._on_acked)

    def _on_acked(self) -> None:
        for row in self.rows:
            if row in self.to_warm:
                self.to_warm.discard(row)
                self.history.warm_up(row)
            elif self.column("STATUS")[row] == lane.HELD:
                self.history.mend(row)

    def disconnect(self) -> None:
        self.up = False
        for row in self.rows:
            self.lane.symbols[row, lane.UPDATE_ID] = 0
            if self.column("STATUS")[row] == lane.LIVE:
                self.lane.symbols[row, lane.STATUS] = lane.UNSURE
                lane.doubt(self.lane, row, RECV_NS)

    def snapshot(self, row: int) -> None:
        """The brain asks for a symbol from its beginning."""
        self.history.forget(row)
        self._run(lambda: self.begin(row, True))
        if self.up:
            self._run(self._on_acked)

    def tick(self, market_ms: int) -> None:
        told = lane.flush(self.lane, RECV_NS)
        self._run(self._read_reports)
        clock = np.zeros(1, RECORD)
        clock["kind"], clock["symbol"], clock["exch_ns"] = CLOCK, NO_SYMBOL, market_ms * NS_PER_MS
        if told:
            lane.emit(self.lane, clock, 0)
        self._run(lambda: self.history.tick(market_ms))

    def _read_reports(self) -> None:
        symbols = self.lane.symbols
        for row in self.rows:
            what = int(symbols[row, lane.REPORT])
            symbols[row, lane.REPORT] = 0
            if what & lane.LOST:
                self.history.lost(row, *lane.take_loss(self.lane, row))
            if what & lane.HOLE and row not in self.to_warm:
                self.history.mend(row)

    def watch(self) -> None:
        """Two seconds after its ack a symbol that is still UNSURE is mended over REST."""
        if not self.up:
            return
        for row in self.rows:
            if self.column("STATUS")[row] == lane.UNSURE and not self.history.busy(row):
                self._run(lambda row=row: self.history.mend(row))

    def wait(self, seconds: float) -> None:
        self._run(lambda: None, seconds)

    def take(self, frames: list[bytes]) -> None:
        """One receipt of the socket, one pass of the kernel."""
        data = b"".join(frames)
        start, end = walk.SCRATCH_BYTES, walk.SCRATCH_BYTES + len(data)
        buffer = np.zeros(end + walk.SLACK_BYTES, np.uint8)
        buffer[start:end] = np.frombuffer(data, np.uint8)
        assert decoder.decode(buffer, start, end, RECV_NS, self.state, self.lane) == end

    def die(self) -> None:
        """SIGKILL: no task gets another step that could write."""
        for task in asyncio.all_tasks(self.loop):
            task.cancel()
        self._run(lambda: None)
        self.loop.close()


class Scout:
    """Every published record in order, and what the next one may be."""

    def __init__(self, market: Market) -> None:
        self.market = market
        self.seen: list[bytes] = []
        self.last: dict[int, int] = defaultdict(int)
        self.known: set[int] = set()
        self.doubtful: set[int] = set()
        self.lossy: dict[int, set[int]] = defaultdict(set)  # minutes told lost, not corrected yet
        self.again: dict[int, int] = defaultdict(int)  # ids up to here may come twice: a death
        self.update: dict[tuple[int, int], int] = defaultdict(int)
        self.lost = self.trades = self.healed = self.clock_ns = 0

    def writer_died(self) -> None:
        self.again.update(self.last)

    def look(self, ring: Ring) -> None:
        """Take what the head has passed since the last look."""
        fresh = ring.slots[np.arange(len(self.seen), int(ring.words[HEAD])) & ring.mask]
        before = fresh[:0]
        for index, record in enumerate(fresh):
            row, kind = int(record["symbol"]), int(record["kind"])
            if kind == BAR_VOLUME:
                assert before["kind"] == BAR and before["symbol"] == row, "half a bar"
            elif kind == BAR:
                assert index + 1 < len(fresh), "half a bar is visible"
            getattr(self, f"_on_{_WORDS[kind]}")(row, record)
            before = record
            self.seen.append(record.tobytes())

    def _on_clock(self, row: int, record: Any) -> None:
        assert row == NO_SYMBOL and record["exch_ns"] >= self.clock_ns, "time goes back"
        self.clock_ns = int(record["exch_ns"])

    def _on_symbol(self, row: int, record: Any) -> None:
        self.known.add(row)
        self.last[row] = self.again[row] = 0
        self.doubtful.add(row)
        self.lossy[row].clear()

    def _on_drop(self, row: int, record: Any) -> None:
        self.known.discard(row)

    def _on_trade(self, row: int, record: Any) -> None:
        number = int(record["id"])
        assert row in self.known
        expected = (self.market.times[row][number] * NS_PER_MS, price(row, number))
        assert (record["exch_ns"], record["a"], record["b"]) == (*expected, qty(row, number))
        self._next(row, number, number)
        self.trades += 1

    def _next(self, row: int, first: int, last: int) -> None:
        """Ids first..last follow what was told, or tell again what a dead writer had told."""
        told = self.last[row]
        assert told == 0 or first <= told + 1, f"row {row}: {told} then {first}, nothing told"
        assert told == 0 or first == told + 1 or first <= self.again[row], f"{row}: {first} twice"
        self.last[row] = max(told, last)

    def _on_gap(self, row: int, record: Any) -> None:
        first, count = int(record["id"]), int(record["a"])
        assert row in self.known
        if count == 0:
            self.doubtful.add(row)
            told = self.last[row]  # 0: nothing yet, its history may end at any id
            assert told == 0 or first <= told + 1
            return
        ids = range(first, first + count)
        assert all(n in self.market.times[row] for n in ids), "lost what never was"
        self._next(row, first, first + count - 1)
        if record["flags"] & REFUSED:
            assert count == 1 and (row, first) in self.market.refused | self.market.untimely
            return
        self.lost += count
        self.doubtful.add(row)
        from_ms, to_ms = int(record["b"]), int(record["c"])
        first_ms = heal.floor_ms(from_ms or to_ms - lane.UNKNOWN_SPAN_MS, 1)
        assert to_ms > 0, f"row {row}: nobody knows when {first} was lost"
        opens = range(first_ms, heal.floor_ms(to_ms, 1) + 1, MS_PER_MIN)
        self.lossy[row].update(opens[-heal.CORRECTED_BARS_MAX :])
        assert to_ms > 0, f"row {row}: nobody knows when {first} was lost"

    def _on_healed(self, row: int, record: Any) -> None:
        assert row in self.known
        number, told = int(record["id"]), self.last[row]
        assert told == 0 or number in (0, told) or number <= self.again[row]
        self.last[row] = told or number  # a symbol that has not traded since its history
        assert not self.lossy[row], f"row {row} is HEALED before its bars are"
        self.doubtful.discard(row)

    def _on_bar(self, row: int, record: Any) -> None:
        assert row in self.known
        if not record["flags"] & heal.CORRECTION:
            assert self.last[row] == 0, f"row {row}: history behind live trades"
        elif record["aux"] == 1:
            self.lossy[row].discard(int(record["exch_ns"]) // NS_PER_MS)

    def _on_bar_volume(self, row: int, record: Any) -> None:
        assert record["d"] == 2.0 or record["d"] == 3.0 or record["d"] >= 0

    def _on_quote(self, row: int, record: Any) -> None:
        number = int(record["id"])
        bid = 99 + number % 7 / 10
        assert (record["b"], record["d"]) == (number, number + 1)
        assert abs(record["a"] - bid) < 1e-9 and record["c"] == 104.0
        self._newer(row, QUOTE, number)

    def _on_mark(self, row: int, record: Any) -> None:
        number = int(record["b"])
        assert (record["a"], record["c"], record["d"]) == (100 + number % 5, 0.1, 5.0)
        self._newer(row, MARK, number)

    def _newer(self, row: int, kind: int, number: int) -> None:
        assert number > self.update[row, kind], "an old level came after a newer one"
        self.update[row, kind] = number


def settling(writer: Writer, scout: Scout) -> Iterator[None]:
    """Rounds of everybody's work until all is whole; raises when that never comes.

    What nobody could hear of, the symbol's next trade tells.
    """
    market, words = writer.market, writer.ring.words
    if not writer.up:
        writer.connect()
    for _ in range(SETTLE_ROUNDS):
        market.now_ms += HOUR_MS
        writer.lane.control[lane.NEWEST_MS] = market.now_ms  # as a new anchor does
        writer.tick(market.now_ms)
        writer.watch()
        for _ in range(READS_A_ROUND):
            writer.wait(0.5 / READS_A_ROUND)
            scout.look(writer.ring)
            yield
            words[TAIL] = words[HEAD]
        behind = [row for row in writer.rows if scout.last[row] < market.newest[row]]
        live = bool(np.all(writer.column("STATUS") == lane.LIVE))
        waiting = writer.lane.control[lane.PENDING] + writer.counted("held")
        if live and not behind and not scout.doubtful and not waiting:
            return
        if live and not waiting:
            writer.take([market.trade_frame(row, market.trade(row)) for row in behind])
    raise AssertionError(
        f"no rest: {behind=} {scout.last} {market.newest} {scout.doubtful=} "
        f"{writer.lane.symbols.tolist()}"
    )


_WORDS = {
    TRADE: "trade", QUOTE: "quote", MARK: "mark", BAR: "bar", BAR_VOLUME: "bar_volume",
    SYMBOL: "symbol", DROP: "drop", GAP: "gap", HEALED: "healed", CLOCK: "clock",
}  # fmt: skip
