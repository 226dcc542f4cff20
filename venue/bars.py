"""What the market has published: 1m candles and coarser ones, recent aggTrades, counts.

Candles are made of the venue's own published trades by trade time T, so that anybody who heard
every trade gets the same ones. A minute without a trade is a flat candle of no trades. A coarser
candle is folded from closed minutes; what was before birth comes in as the `seed` of the forming
ones. All memories are bounded: BARS_KEPT candles, half as many minutes of marks, and RING_TRADES
aggTrades over all symbols.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from venue.market import (
    AGG,
    BOOK,
    EVENT_MS,
    FLAG,
    ID,
    KIND,
    MARK,
    P1,
    P2,
    Q1,
    Q2,
    SYM,
    TRADE_MS,
    Ints,
)
from venue.symbols import FUNDING_INTERVAL_MS

TIMEFRAMES = ("1m", "5m", "15m", "1h", "1d")
SPAN_MS = np.array([60_000, 300_000, 900_000, 3_600_000, 86_400_000], np.int64)
OPEN_MS, OPEN, HIGH, LOW, CLOSE, VOLUME, QUOTE, TRADES, TAKER, TAKER_QUOTE = range(10)
FIRST, LAST = 10, 11  # trade ids since birth, 0 for none: generated history has no ids
BAR_COLS = 12
RING_COLS = 7  # id price qty first last T buyer_maker
RING_TRADES = 1 << 18  # aggTrades kept for REST over all symbols, a power of two for each
RING_LEAST = 256  # per symbol
BARS_KEPT = 150_000  # closed 1m candles kept over all symbols; coarser ones in shares below
BARS_LEAST, BARS_MOST = 300, 1500  # 1m candles per symbol
_SHARES = (1, 2, 4, 4, 8)
SETTLEMENTS_KEPT = 270  # of each symbol: 90 days of three


@dataclass(frozen=True, slots=True)
class Tape:
    """The published market: forming and closed candles, rings of trades, counters."""

    forming: Ints  # [timeframe, symbol, BAR_COLS]
    closed: Ints  # [symbol, all slots, BAR_COLS]: rings of one timeframe after the other
    base: Ints  # first slot of each timeframe, and the end
    count: Ints  # [timeframe, symbol] closed ever
    ring: Ints  # [symbol, slots, RING_COLS], slot = id % slots
    made: Ints  # [symbol, (trades, first id, last id, quotes, marks)]
    settled: Ints  # [slot, symbol, (ms, mark * 1e8)] of funding, slot = settlement % slots
    marks: Ints  # [symbol, slots, BAR_COLS] minutes of marks * 1e8, slot = minute % slots

    def state(self) -> dict[str, NDArray[Any]]:
        names = ("forming", "closed", "count", "made", "settled", "marks")
        return {name: getattr(self, name) for name in names}


def create(symbols: int, minute_ms: int, seeds: Ints) -> Tape:
    """`seeds[timeframe, symbol]`: the forming candles at birth (1m: only its last close counts)."""
    kept = max(BARS_LEAST, min(BARS_MOST, BARS_KEPT // symbols))
    base = np.cumsum([0] + [max(64, kept // share) for share in _SHARES])
    slots = RING_LEAST
    while slots * 2 * symbols <= RING_TRADES:
        slots *= 2
    forming = seeds.copy()
    forming[0, :, OPEN_MS] = minute_ms
    return Tape(
        forming,
        np.zeros((symbols, int(base[-1]), BAR_COLS), np.int64),
        base.astype(np.int64),
        np.zeros((len(TIMEFRAMES), symbols), np.int64),
        np.zeros((symbols, slots, RING_COLS), np.int64),
        np.zeros((symbols, 5), np.int64),
        np.zeros((SETTLEMENTS_KEPT, symbols, 2), np.int64),
        np.zeros((symbols, kept // 2, BAR_COLS), np.int64),
    )


@njit(cache=True)
def _merge(into: Ints, bar: Ints) -> None:
    """A later candle into a forming one; an untraded one adds nothing to a traded one."""
    if bar[TRADES] == 0:
        if into[TRADES] == 0:
            into[OPEN : CLOSE + 1] = bar[OPEN : CLOSE + 1]
        return
    if into[TRADES] == 0:
        into[OPEN : CLOSE + 1] = bar[OPEN : CLOSE + 1]
    else:
        into[HIGH] = max(into[HIGH], bar[HIGH])
        into[LOW] = min(into[LOW], bar[LOW])
        into[CLOSE] = bar[CLOSE]
    for c in range(VOLUME, FIRST):
        into[c] += bar[c]
    if into[FIRST] == 0:
        into[FIRST] = bar[FIRST]
    into[LAST] = max(into[LAST], bar[LAST])


@njit(cache=True)
def _flat(bar: Ints, open_ms: int, price: int) -> None:
    bar[OPEN_MS] = open_ms
    bar[OPEN : CLOSE + 1] = price
    bar[VOLUME:] = 0


@njit(cache=True)
def _close_before(
    forming: Ints, closed: Ints, base: Ints, count: Ints, spans: Ints, s: int, minute_ms: int
) -> None:
    """Closes every minute of one symbol that ends at or before `minute_ms`."""
    bar = forming[0, s]
    while bar[OPEN_MS] < minute_ms:
        end = bar[OPEN_MS] + 60_000
        for t in range(len(spans)):
            wide = forming[t, s]
            if t > 0:
                _merge(wide, bar)
            if wide[OPEN_MS] + spans[t] == end:
                slots = base[t + 1] - base[t]
                closed[s, base[t] + count[t, s] % slots] = wide
                count[t, s] += 1
                if t > 0:
                    _flat(wide, end, bar[CLOSE])
        _flat(bar, end, bar[CLOSE])


@njit(cache=True)
def _absorb(
    rows: Ints,
    n: int,
    forming: Ints,
    closed: Ints,
    base: Ints,
    count: Ints,
    ring: Ints,
    made: Ints,
    settled: Ints,
    marks: Ints,
    spans: Ints,
) -> None:
    for k in range(n):
        e = rows[k]
        s = e[SYM]
        if e[KIND] == BOOK:
            made[s, 3] += 1
        elif e[KIND] == MARK:
            made[s, 4] += 1
            minute = e[EVENT_MS] // 60_000
            mark = marks[s, minute % marks.shape[1]]
            if mark[OPEN_MS] != minute * 60_000:
                _flat(mark, minute * 60_000, e[P1])
            mark[HIGH] = max(mark[HIGH], e[P1])
            mark[LOW] = min(mark[LOW], e[P1])
            mark[CLOSE] = e[P1]
            mark[TRADES] += 1
            if e[EVENT_MS] % FUNDING_INTERVAL_MS == 0:
                slot = e[EVENT_MS] // FUNDING_INTERVAL_MS % settled.shape[0]
                settled[slot, s, 0] = e[EVENT_MS]
                settled[slot, s, 1] = e[P1]
        elif e[KIND] == AGG:
            bar = forming[0, s]
            if e[TRADE_MS] >= bar[OPEN_MS] + 60_000:
                _close_before(
                    forming, closed, base, count, spans, s, e[TRADE_MS] // 60_000 * 60_000
                )
            price, qty = e[P1], e[Q1]
            if bar[TRADES] == 0:
                bar[OPEN : CLOSE + 1] = price
            bar[HIGH] = max(bar[HIGH], price)
            bar[LOW] = min(bar[LOW], price)
            bar[CLOSE] = price
            bar[VOLUME] += qty
            bar[QUOTE] += price * qty
            bar[TRADES] += e[Q2] - e[P2] + 1
            if bar[FIRST] == 0:
                bar[FIRST] = e[P2]
            bar[LAST] = e[Q2]
            if e[FLAG] == 0:
                bar[TAKER] += qty
                bar[TAKER_QUOTE] += price * qty
            kept = ring[s, e[ID] % ring.shape[1]]
            kept[0] = e[ID]
            kept[1] = price
            kept[2] = qty
            kept[3] = e[P2]
            kept[4] = e[Q2]
            kept[5] = e[TRADE_MS]
            kept[6] = e[FLAG]
            made[s, 0] += 1
            if made[s, 1] == 0:
                made[s, 1] = e[ID]
            made[s, 2] = e[ID]


def absorb(tape: Tape, rows: Ints, n: int) -> None:
    """Takes the first n event rows into candles, ring and counts."""
    _absorb(
        rows,
        n,
        tape.forming,
        tape.closed,
        tape.base,
        tape.count,
        tape.ring,
        tape.made,
        tape.settled,
        tape.marks,
        SPAN_MS,
    )


@njit(cache=True)
def _settle(
    forming: Ints, closed: Ints, base: Ints, count: Ints, spans: Ints, minute_ms: int
) -> None:
    for s in range(forming.shape[1]):
        _close_before(forming, closed, base, count, spans, s, minute_ms)


def settle(tape: Tape, made_until_ms: float) -> None:
    """Closes the minutes that ended; right only when all events up to then were absorbed."""
    minute_ms = int(made_until_ms) // 60_000 * 60_000
    _settle(tape.forming, tape.closed, tape.base, tape.count, SPAN_MS, minute_ms)


def candles(tape: Tape, symbol: int, timeframe: int) -> Ints:
    """Kept closed candles, oldest first, then the forming one as it stands."""
    t, s = timeframe, symbol
    slots = int(tape.base[t + 1] - tape.base[t])
    total = int(tape.count[t, s])
    view = tape.closed[s, tape.base[t] : tape.base[t + 1]]
    order = np.arange(max(0, total - slots), total) % slots
    last = tape.forming[t, s].copy()
    if t > 0:
        _merge(last, tape.forming[0, s])
    return np.concatenate([view[order], last[None, :]])


@njit(cache=True)
def _fold(rows: Ints, starts: Ints, out: Ints) -> int:
    made = 0
    for k in range(rows.shape[0]):
        if made == 0 or out[made - 1, OPEN_MS] != starts[k]:
            out[made] = rows[k]
            out[made, OPEN_MS] = starts[k]
            made += 1
        else:
            _merge(out[made - 1], rows[k])
    return made


def fold(rows: Ints, starts: Ints) -> Ints:
    """Candles merged that have the same start."""
    out = np.zeros_like(rows)
    return out[: _fold(rows, starts, out)]


def mark_candles(tape: Tape, symbol: int) -> Ints:
    """Kept minutes of one symbol's marks, oldest first; TRADES counts the marks."""
    rows = tape.marks[symbol]
    kept: Ints = rows[rows[:, OPEN_MS] > 0]
    ordered: Ints = kept[np.argsort(kept[:, OPEN_MS])]
    return ordered


def trades(tape: Tape, symbol: int) -> Ints:
    """Kept aggTrades of one symbol, oldest first."""
    ring = tape.ring[symbol]
    rows: Ints = ring[ring[:, 0] > 0]
    ordered: Ints = rows[np.argsort(rows[:, 0], kind="stable")]
    return ordered


def settlements(tape: Tape) -> Ints:
    """Kept settlements of funding [n, symbol, (ms, mark * 1e8)], oldest first."""
    kept: Ints = tape.settled[tape.settled[:, 0, 0] > 0]
    ordered: Ints = kept[np.argsort(kept[:, 0, 0])]
    return ordered
