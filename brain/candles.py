"""Candle kernels: exchange time in, contiguous candles out, equal to the exchange's own klines.

A bar belongs to the exchange time of its trades. Bars are contiguous: one without trades is flat
at the previous close with volume 0, as klines show it. The forming bar always opens where the
newest closed one ends. A trade of a bar that is closed amends it in the history (and the flat bars
that repeat its close) and emits nothing. `trades` counts aggregate trades: the market sends those.

Branch-free highs and lows: a mispredicted branch costs more than both comparisons.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from brain.jit import step
from brain.state import (
    CLOSE,
    COUNT,
    HIGH,
    HISTORY,
    HISTORY_MASK,
    LOW,
    OPEN,
    QUOTE_VOLUME,
    TAKER,
    TIMEFRAMES,
    VOLUME,
    Arrays,
    Floats,
)
from records import TIMEFRAMES_MIN

STEP_MS: Final = np.array(TIMEFRAMES_MIN, np.int64) * 60_000
CLOSE_DELAY_MS: Final = 1_000  # after its end a silent bar waits so long for a late trade
assert len(STEP_MS) == TIMEFRAMES


@step
def start_forming(a: Arrays, s: int, t: int, open_ms: int) -> None:
    """An empty forming bar: COUNT 0 means that no price is in it yet."""
    a.forming_at[s, t] = open_ms
    for k in range(8):
        a.forming[s, t, k] = 0.0


@step
def add_trade(f: Floats, s: int, t: int, price: float, qty: float, bought: float) -> None:
    """One trade into the forming bar; `bought` is the quantity if the taker bought, else 0."""
    first = f[s, t, COUNT] == 0.0
    f[s, t, OPEN] = price if first else f[s, t, OPEN]
    f[s, t, HIGH] = price if first else max(f[s, t, HIGH], price)
    f[s, t, LOW] = price if first else min(f[s, t, LOW], price)
    f[s, t, CLOSE] = price
    f[s, t, VOLUME] += qty
    f[s, t, QUOTE_VOLUME] += price * qty
    f[s, t, TAKER] += bought
    f[s, t, COUNT] += 1.0


@step
def append_closed(a: Arrays, s: int, t: int) -> None:
    """The forming bar becomes the newest closed candle; a new empty one opens at its end."""
    n = a.counts[s, t]
    slot = n & HISTORY_MASK
    if a.forming[s, t, COUNT] == 0.0:
        price = a.closed[s, t, (n - 1) & HISTORY_MASK, CLOSE]
        for k in range(4):
            a.forming[s, t, k] = price
    for k in range(8):
        a.closed[s, t, slot, k] = a.forming[s, t, k]
    a.closed_at[s, t, slot] = a.forming_at[s, t]
    a.counts[s, t] = n + 1
    start_forming(a, s, t, a.forming_at[s, t] + STEP_MS[t])


@step
def closed_slot(a: Arrays, s: int, t: int, open_ms: int) -> int:
    """Where the closed candle of this open time lies, or -1 when it is not kept."""
    n = a.counts[s, t]
    if n == 0:
        return -1
    back = (a.closed_at[s, t, (n - 1) & HISTORY_MASK] - open_ms) // STEP_MS[t]
    if back < 0 or back >= min(n, HISTORY):
        return -1
    return (n - 1 - back) & HISTORY_MASK


@step
def amend_closed(
    a: Arrays, s: int, t: int, open_ms: int, price: float, qty: float, bought: float
) -> None:
    """A late trade: the candle that it belongs to, and the flat ones after it, are put right."""
    slot = closed_slot(a, s, t, open_ms)
    if slot < 0:
        return
    c = a.closed
    if c[s, t, slot, COUNT] == 0.0:
        c[s, t, slot, OPEN] = price
        c[s, t, slot, HIGH] = price
        c[s, t, slot, LOW] = price
    c[s, t, slot, HIGH] = max(c[s, t, slot, HIGH], price)
    c[s, t, slot, LOW] = min(c[s, t, slot, LOW], price)
    c[s, t, slot, CLOSE] = price
    c[s, t, slot, VOLUME] += qty
    c[s, t, slot, QUOTE_VOLUME] += price * qty
    c[s, t, slot, TAKER] += bought
    c[s, t, slot, COUNT] += 1.0
    newest = (a.counts[s, t] - 1) & HISTORY_MASK
    for _ in range(HISTORY):
        if slot == newest:
            return
        slot = (slot + 1) & HISTORY_MASK
        if c[s, t, slot, COUNT] != 0.0:
            return
        for k in range(4):
            c[s, t, slot, k] = price
