"""Drives the brain's kernel in plain memory: records in, events and candles out."""

from __future__ import annotations

from typing import Any

import numpy as np

import records as rec
from brain import kernel
from brain.closing import W_PARTIAL, WHERE
from brain.state import HISTORY_MASK, TIMEFRAMES, State, memory_state
from ring import BRAIN_COUNTERS, COUNTERS_MAX, HEAD, WORDS

MINUTE_NS = 60_000_000_000
START_MS = 1_700_006_400_000 // 86_400_000 * 86_400_000 + 86_400_000 - 90 * 60_000  # 22:30 UTC
Row = tuple[Any, ...]


def trade(symbol: int, ms: int, trade_id: int, price: float, qty: float, flags: int = 0) -> Row:
    return (ms * 1_000_000, 1, trade_id, price, qty, 0.0, 0.0, symbol, rec.TRADE, flags, 0)


def clock(ms: int) -> Row:
    return (ms * 1_000_000, 1, 0, 0.0, 0.0, 0.0, 0.0, rec.NO_SYMBOL, rec.CLOCK, 0, 0)


def plain(kind: int, symbol: int, ms: int = 0, number: int = 0, a: float = 0.0) -> Row:
    return (ms * 1_000_000, 1, number, a, 0.0, 0.0, 0.0, symbol, kind, 0, 0)


def quote(symbol: int, ms: int, update: int, bid: float, ask: float) -> Row:
    return (ms * 1_000_000, 1, update, bid, 1.0, ask, 1.0, symbol, rec.QUOTE, 0, 0)


def bar(symbol: int, ms: int, minutes: int, values: tuple[float, ...], flags: int) -> list[Row]:
    o, h, low, c, volume, quoted, taker, trades = values
    ns = ms * 1_000_000
    return [
        (ns, 1, 0, o, h, low, c, symbol, rec.BAR, flags, minutes),
        (ns, 1, 0, volume, quoted, taker, trades, symbol, rec.BAR_VOLUME, flags, minutes),
    ]


def table(rows: list[Row], names: dict[int, str] | None = None) -> np.ndarray:
    """Rows as RECORDs; SYMBOL rows get their name."""
    out = np.array(rows, dtype=rec.RECORD)
    for index in np.flatnonzero(out["kind"] == rec.SYMBOL):
        symbol = int(out[index]["symbol"])
        rec.write_name(out, int(index), (names or {}).get(symbol, f"S{symbol}USDT"))
    return out


class Bench:
    """One kernel on one in-memory state; `feed` gives it records in batches."""

    def __init__(self, symbols: int = 1, state: State | None = None, event_rows: int = 8192):
        self.state = state or memory_state(symbols)
        self.words = np.zeros(WORDS, np.int64)
        self.stats = np.zeros(COUNTERS_MAX, np.int64)
        self.where = np.zeros(WHERE, np.int64)
        self.masks = np.zeros(TIMEFRAMES, np.int64)
        self.rows = kernel.new_events(event_rows)
        self.events: list[Any] = []
        self.seq = 0

    def feed(self, recs: np.ndarray, batch: int = 4096, on_events: Any = None) -> None:
        """Every record, `batch` at a time, through a ring that just fits them."""
        slots = np.zeros(1 << max(len(recs), 2).bit_length(), rec.RECORD)
        slots[: len(recs)] = recs
        raw, seq, held = kernel.raw_view(slots), 0, []
        while seq < len(recs):
            self.words[HEAD] = len(recs)
            before = seq
            seq, n = kernel.consume(
                self.words, slots, raw, self.state.arrays, self.rows, self.where, self.masks,
                self.stats, seq, batch,
            )  # fmt: skip
            self.events += [
                tuple(None if x != x else x for x in row) for row in self.rows[:n].tolist()
            ]
            held.append(self.rows[:n].copy())
            if on_events is not None and not self.where[W_PARTIAL] and any(map(len, held)):
                on_events(np.concatenate(held))  # of finished records only, as the engine does
            held = held if self.where[W_PARTIAL] else []
            assert seq > before or n > 0, "the kernel must move on"

    def count(self, name: str) -> int:
        return int(self.stats[BRAIN_COUNTERS.index(name)])

    def history(self, row: int, t: int) -> list[tuple[int, tuple[float, ...]]]:
        a = self.state.arrays
        n = int(a.counts[row, t])
        return [
            (int(a.closed_at[row, t, i & HISTORY_MASK]), tuple(a.closed[row, t, i & HISTORY_MASK]))
            for i in range(max(0, n - 128), n)
        ]

    def forming(self, row: int, t: int) -> tuple[int, tuple[float, ...]]:
        a = self.state.arrays
        return int(a.forming_at[row, t]), tuple(a.forming[row, t])


def announced(symbol: int = 0, healed: bool = True) -> list[Row]:
    rows = [plain(rec.SYMBOL, symbol)]
    return rows + ([plain(rec.HEALED, symbol)] if healed else [])


def random_market(
    seed: int, trades: int, symbol: int = 0, late: float = 0.0, start_ms: int = START_MS
) -> list[Row]:
    """Trades with silences and late prints, and a CLOCK now and then; ids from 1."""
    rng = np.random.default_rng(seed)
    rows, now_ms, price = [], start_ms, 1000.0
    for i in range(1, trades + 1):
        now_ms += (
            int(rng.exponential(3_000.0)) if rng.random() > 0.01 else int(rng.integers(400_000))
        )
        price = max(1.0, price + round(float(rng.normal()), 1))
        at = now_ms - int(rng.integers(120_000)) if rng.random() < late else now_ms
        rows.append(
            trade(symbol, at, i, price, round(float(rng.random()), 3), int(rng.integers(2)))
        )
        if rng.random() < 0.3:
            rows.append(clock(now_ms + int(rng.integers(3_000))))
    return rows


def lively_market(
    seed: int, symbols: int, minutes: int, sigma: float = 0.003, per_minute: int = 20
) -> list[Row]:
    """Driftless walks with quotes and clocks; `sigma` is one minute's deviation. Healed at once."""
    rng = np.random.default_rng(seed)
    rows = [row for s in range(symbols) for row in announced(s)]
    prices, step_ms = np.full(symbols, 100.0), 60_000 // per_minute
    for k in range(1, minutes * per_minute):
        ms = START_MS + k * step_ms
        prices *= np.exp(rng.normal(0.0, sigma / np.sqrt(per_minute), symbols))
        for s in range(symbols):
            price = round(float(prices[s]), 3)
            rows.append(quote(s, ms, k, price - 0.005, price + 0.005))
            rows.append(trade(s, ms, k, price, 1.0, int(rng.integers(2))))
        if k % 4 == 0:
            rows.append(clock(ms))
    return rows
