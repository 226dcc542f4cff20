"""What Python looks at after a kernel call, gathered in one pass: plain numbers in two tables.

A look at one element of an array costs Python as much as the kernel needs for ten trades, and all
symbols close their bars at the same moment. So of each event that Python must see one row of
integers is made, and of each close that a rule is asked at one row of numbers too: `tolist` of a
row is all that is left to do.

    whats     i8[n, WHAT]      G_*: kind, row of the event, symbol, times, flags, the symbol's state
    numbers   f8[n, NUMBERS]   X_*: newest candle, prices, trend, structure, indicators; closes only

Closes that are not the newest candle of their timeframe are history already: they are left out.
The numbers are those at the end of the records that were taken; the kernel stops behind a record
that a rule is to be asked at, so they are that record's.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np

from brain import smc
from brain.events import CLOSE_EVENT, OUTCOME, STRUCTURE, Events
from brain.indicators import EMA9, EMA21, EMA50, OUTPUTS
from brain.jit import entry, step
from brain.state import (
    ASK,
    BID,
    CLOSE,
    DEGRADED,
    HISTORY_MASK,
    LAST,
    MARK_PRICE,
    OPEN,
    QUOTE_NS,
    SUSPECT_UNTIL_NS,
    VOLUME,
    Arrays,
    Floats,
    Ints,
)
from records import TIMEFRAME_NAMES

GATHERED: Final = 64  # rows of both tables


class What(NamedTuple):
    """A row of `whats` in Python."""

    kind: int
    event: int  # its row among the events
    symbol: int
    timeframe: int
    bar_ms: int
    known_ns: int
    recv_ns: int
    flags: int
    candles: int
    degraded: int
    suspect_until_ns: int
    quote_ns: int
    name_0: int  # the symbol's name as it lies in the state
    name_1: int
    name_2: int
    name_3: int


(
    G_KIND, G_EVENT, G_SYMBOL, G_TIMEFRAME, G_BAR_MS, G_KNOWN_NS, G_RECV_NS, G_FLAGS, G_CANDLES,
    G_DEGRADED, G_SUSPECT_UNTIL_NS, G_QUOTE_NS, G_NAME,
) = range(13)  # fmt: skip
WHAT: Final = len(What._fields)
assert What._fields[G_NAME] == "name_0"
X_BID, X_ASK, X_MARK, X_LAST, X_TREND = range(VOLUME + 1, VOLUME + 6)  # behind open .. volume
X_STRUCTURE: Final = X_TREND + 1
STRUCTURE_OF: Final = (  # in the order of view.Structure
    smc.BIAS, smc.SWING + smc.BIAS, smc.P_HIGH, smc.P_LOW, smc.SWING + smc.P_HIGH,
    smc.SWING + smc.P_LOW, smc.POSITION, smc.SWEEP_LEVEL, smc.SWEEP_EXTREME, smc.SWEEP_MS,
    smc.SWEEP_SIDE, smc.SWEEP_POOL, smc.BREAK_MS, smc.DAY_HIGH, smc.DAY_LOW, smc.WEEK_HIGH,
    smc.WEEK_LOW,
)  # fmt: skip
X_INDICATORS: Final = X_STRUCTURE + len(STRUCTURE_OF)
NUMBERS: Final = X_INDICATORS + len(OUTPUTS)
TREND_OF: Final = tuple(
    (TIMEFRAME_NAMES.index(name), weight)
    for name, weight in (("1h", 0.4), ("15m", 0.3), ("5m", 0.2), ("1m", 0.1))
)
assert OPEN == 0 and VOLUME == 4


@step
def trend_of(a: Arrays, s: int) -> float:
    """See CandleView.trend."""
    total = known = 0.0
    for t, weight in TREND_OF:
        x, count = a.ind[s, t], a.counts[s, t]
        if count == 0 or x[EMA50] != x[EMA50]:
            continue
        close = a.closed[s, t, (count - 1) & HISTORY_MASK, CLOSE]
        if close > x[EMA50] and x[EMA9] > x[EMA21]:
            total += weight
        elif close < x[EMA50] and x[EMA9] < x[EMA21]:
            total -= weight
        known += weight
    return total / known if known > 0.0 else 0.0


@step
def numbers_of(a: Arrays, s: int, t: int, out: Floats) -> None:
    """One row of numbers."""
    count = a.counts[s, t]
    for k in range(VOLUME + 1):
        out[k] = a.closed[s, t, (count - 1) & HISTORY_MASK, k] if count > 0 else np.nan
    out[X_BID], out[X_ASK] = a.px[s, BID], a.px[s, ASK]
    out[X_MARK], out[X_LAST] = a.px[s, MARK_PRICE], a.px[s, LAST]
    out[X_TREND] = trend_of(a, s)
    for k in range(len(STRUCTURE_OF)):
        out[X_STRUCTURE + k] = a.smc[s, t, STRUCTURE_OF[k]]
    for k in range(len(OUTPUTS)):
        out[X_INDICATORS + k] = a.ind[s, t, k]


@entry
def look(a: Arrays, s: int, t: int, out: Floats) -> None:
    """The numbers of a symbol's newest candle."""
    numbers_of(a, s, t, out)


@entry
def gather(a: Arrays, ev: Events, begin: int, whats: Ints, numbers: Floats) -> tuple[int, int, int]:
    """Rows for the events from `begin` on. Returns (rows, next event, structure events passed)."""
    n = structures = 0
    for i in range(begin, len(ev)):
        e = ev[i]
        if e.kind == STRUCTURE:
            structures += 1
        if not (e.kind >= OUTCOME or (e.kind == CLOSE_EVENT and e.code != 0)):
            continue
        if n == len(whats):
            return n, i, structures
        s, t, row = e.symbol, e.timeframe, whats[n]
        if e.kind == CLOSE_EVENT:
            count = a.counts[s, t]
            if a.closed_at[s, t, (count - 1) & HISTORY_MASK] != e.bar_ms:
                continue
            row[G_CANDLES], row[G_DEGRADED] = count, a.sym[s, DEGRADED]
            row[G_SUSPECT_UNTIL_NS] = a.sym[s, SUSPECT_UNTIL_NS]
            row[G_QUOTE_NS] = a.sym[s, QUOTE_NS]
            numbers_of(a, s, t, numbers[n])
        row[G_KIND], row[G_EVENT], row[G_SYMBOL], row[G_TIMEFRAME] = e.kind, i, s, t
        row[G_BAR_MS], row[G_KNOWN_NS], row[G_RECV_NS] = e.bar_ms, e.known_ns, e.recv_ns
        row[G_FLAGS] = e.flags
        for k in range(4):
            row[G_NAME + k] = a.names[s, k]
        n += 1
    return n, len(ev), structures
