"""What does a tick cost in the brain: 300 symbols, five timeframes, indicators and structure?

A market of random walks lies ready in a ring; the kernel takes it in batches, as it does live. In
market time the ticks are 10 us apart (100,000 a second), quotes and trades in turn, CLOCK every
100 ms; each run crosses minute boundaries, at which every symbol closes bars. Trades, quotes and
the 1m candles are held against a count and candles made by numpy from the same records.
"""

from __future__ import annotations

import time
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from benchmarks.report import Result
from brain import kernel
from brain.closing import WHERE
from brain.state import (
    COUNT,
    HIGH,
    LAST,
    LAST_ID,
    LOW,
    OPEN,
    TIMEFRAMES,
    VOLUME,
    State,
    bytes_per_symbol,
    memory_state,
)
from records import (
    BAR,
    BAR_VOLUME,
    CLOCK,
    CLOSED,
    HEALED,
    NO_SYMBOL,
    QUOTE,
    RECORD,
    SYMBOL,
    TIMEFRAMES_MIN,
    TRADE,
    write_name,
)
from ring import BRAIN_COUNTERS, COUNTERS_MAX, HEAD, WORDS

SYMBOLS: Final = 300
TICKS: Final = 1 << 21
ROUNDS: Final = 5
TICK_NS: Final = 10_000
BATCH: Final = 1024
HISTORY_BARS: Final = 120
START_MS: Final = 1_795_046_400_000 + 50_000  # ten seconds before a full minute, and an hour
MINUTE_MS: Final = 60_000


def history(symbols: int) -> npt.NDArray[Any]:
    """SYMBOL, closed bars of every timeframe, HEALED: what a warm-up publishes."""
    rng = np.random.default_rng(5)
    parts = []
    for row in range(symbols):
        first = np.zeros(1, RECORD)
        write_name(first, 0, f"S{row:03d}USDT")
        first["kind"], first["symbol"] = SYMBOL, row
        parts.append(first)
        for minutes in TIMEFRAMES_MIN:
            span_ms = minutes * MINUTE_MS
            opens = START_MS // span_ms * span_ms - span_ms * np.arange(HISTORY_BARS, 0, -1)
            made = np.zeros(2 * HISTORY_BARS, RECORD)
            walk = 100.0 + np.cumsum(rng.normal(0.0, 0.1, HISTORY_BARS + 1))
            made["symbol"], made["aux"], made["flags"] = row, minutes, CLOSED
            made["exch_ns"] = np.repeat(opens * 1_000_000, 2)
            made["kind"][0::2], made["kind"][1::2] = BAR, BAR_VOLUME
            made["a"][0::2], made["d"][0::2] = walk[:-1], walk[1:]
            made["b"][0::2] = np.maximum(walk[:-1], walk[1:]) + 0.05
            made["c"][0::2] = np.minimum(walk[:-1], walk[1:]) - 0.05
            for name in "abcd":
                made[name][1::2] = rng.uniform(1.0, 2.0, HISTORY_BARS)
            parts.append(made)
        last = np.zeros(1, RECORD)
        last["kind"], last["symbol"] = HEALED, row
        parts.append(last)
    return np.concatenate(parts)


def market(symbols: int, ticks: int, start_ms: int) -> npt.NDArray[Any]:
    """`ticks` trades and quotes, by symbol as 1 / rank, and a CLOCK each 100 ms."""
    rng = np.random.default_rng(7)
    weights = 1.0 / np.arange(1, symbols + 1)
    rows = rng.choice(symbols, ticks, p=weights / weights.sum())
    steps = rng.normal(0.0, 0.003, ticks)
    made = np.zeros(ticks, RECORD)
    made["symbol"], made["recv_ns"] = rows, 1
    made["exch_ns"] = start_ms * 1_000_000 + np.arange(ticks) * TICK_NS
    made["kind"] = np.where(np.arange(ticks) % 2 == 0, TRADE, QUOTE)
    made["flags"] = np.where(made["kind"] == TRADE, rng.integers(0, 2, ticks), 0)
    for row in range(symbols):
        mine = np.flatnonzero(rows == row)
        made["a"][mine] = np.round(100.0 + np.cumsum(steps[mine]), 4)
        for kind in (TRADE, QUOTE):
            those = mine[made["kind"][mine] == kind]
            made["id"][those] = np.arange(1, len(those) + 1)
    made["b"] = np.round(rng.uniform(0.1, 9.0, ticks), 3)
    made["c"], made["d"] = made["a"] + 0.01, made["b"]
    clocks = np.zeros(ticks * TICK_NS // 100_000_000, RECORD)
    clocks["kind"], clocks["symbol"] = CLOCK, NO_SYMBOL
    clocks["exch_ns"] = start_ms * 1_000_000 + np.arange(len(clocks)) * 100_000_000
    every = 100_000_000 // TICK_NS
    return np.insert(made, np.arange(len(clocks)) * every, clocks)


class Desk:
    """A kernel over one big ring in plain memory."""

    def __init__(self, symbols: int, records: npt.NDArray[Any]) -> None:
        self.state: State = memory_state(symbols)
        self.slots = np.zeros(1 << (len(records) - 1).bit_length(), RECORD)
        self.slots[: len(records)] = records
        self.raw = kernel.raw_view(self.slots)
        self.words = np.zeros(WORDS, np.int64)
        self.stats = np.zeros(COUNTERS_MAX, np.int64)
        self.where = np.zeros(WHERE, np.int64)
        self.masks = np.zeros(TIMEFRAMES, np.int64)
        self.events = kernel.new_events()
        self.seq, self.words[HEAD] = 0, len(records)

    def run(self, upto: int, batch: int) -> int:
        """Consume to `upto`; the events made."""
        made = 0
        while self.seq < upto:
            self.seq, n = kernel.consume(
                self.words, self.slots, self.raw, self.state.arrays, self.events, self.where,
                self.masks, self.stats, self.seq, min(batch, upto - self.seq),
            )  # fmt: skip
            made += n
        return made

    def count(self, name: str) -> int:
        return int(self.stats[BRAIN_COUNTERS.index(name)])


def check(desk: Desk, ticks: npt.NDArray[Any]) -> int:
    """Forming 1m candles against numpy's; raises on a difference. How many were compared."""
    trades = ticks[ticks["kind"] == TRADE]
    if desk.count("trades") != len(trades):
        raise RuntimeError(f"brain: {desk.count('trades')} trades of {len(trades)}")
    a, checked = desk.state.arrays, 0
    for row in range(desk.state.symbols_max):
        open_ns = int(a.forming_at[row, 0]) * 1_000_000
        mine = trades[(trades["symbol"] == row) & (trades["exch_ns"] >= open_ns)]
        if not len(mine) or a.forming[row, 0, COUNT] == 0:
            continue
        got = a.forming[row, 0, [OPEN, HIGH, LOW]].tolist()
        wanted = [mine["a"][0], mine["a"].max(), mine["a"].min()]
        volume = float(mine["b"].sum())
        if got != wanted or abs(a.forming[row, 0, VOLUME] - volume) > 1e-9 * volume:
            raise RuntimeError(f"brain: candle of row {row} is {got}, not {wanted}")
        checked += 1
    return checked


def run() -> list[Result]:
    """Nanoseconds per tick, with closes; the stall at a minute boundary; bytes per symbol."""
    past = history(SYMBOLS)
    ticks = market(SYMBOLS, TICKS, START_MS)
    kernel.warm()
    per_tick, boundary = [], []
    checked = closes = 0
    for _ in range(ROUNDS):
        desk = Desk(SYMBOLS, np.concatenate([past, ticks]))
        desk.run(len(past), 1 << 30)
        began_ns = time.perf_counter_ns()
        desk.run(desk.words[HEAD], BATCH)
        per_tick.append((time.perf_counter_ns() - began_ns) / TICKS)
        checked, closes = check(desk, ticks), desk.count("closes")
        boundary.append(minute_boundary(desk))
    return [
        Result(
            "brain, per tick", "ns", per_tick, 150.0,
            note=f"{SYMBOLS} symbols, 5 timeframes, {closes:,} closes, {checked} candles checked",
        ),
        Result("brain, minute boundary of all symbols", "ms", boundary, 2.0),
        Result("brain, state per symbol", "kB", [bytes_per_symbol() / 1000], 64.0),
    ]  # fmt: skip


def minute_boundary(desk: Desk) -> float:
    """Milliseconds of the CLOCK at midnight: it closes all five bars of every symbol, each with a
    trade in its last minute."""
    a, symbols = desk.state.arrays, desk.state.symbols_max
    day_ms = (int(a.forming_at[:, 0].max()) // 86_400_000 + 1) * 86_400_000
    before = np.zeros(symbols + 1, RECORD)
    before["kind"], before["symbol"] = TRADE, np.arange(symbols + 1)
    before["exch_ns"], before["recv_ns"] = (day_ms - 30_000) * 1_000_000, 1
    before["id"][1:] = a.sym[:, LAST_ID] + 1
    before["a"][1:], before["b"] = np.nan_to_num(a.px[:, LAST], nan=100.0) * 1.001, 1.0
    before["symbol"][1:] = np.arange(symbols)
    before[0]["kind"], before[0]["symbol"] = CLOCK, NO_SYMBOL
    midnight = before[:1].copy()
    midnight["exch_ns"] = (day_ms + 1_000) * 1_000_000
    closes, spent_ms = 0, 0.0
    for records in (before, midnight):
        at = desk.seq + np.arange(len(records))
        desk.slots[at & (len(desk.slots) - 1)] = records
        desk.words[HEAD] += len(records)
        closes, began_ns = desk.count("closes"), time.perf_counter_ns()
        desk.run(desk.words[HEAD], BATCH)
        spent_ms = (time.perf_counter_ns() - began_ns) / 1e6
    if desk.count("closes") - closes != symbols * TIMEFRAMES:
        raise RuntimeError(f"brain: {desk.count('closes') - closes} closes at midnight")
    return spent_ms
