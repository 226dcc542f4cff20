"""Open virtual signals, followed on the tick path to stop, target or time-out.

Every signal is followed, traded or not: its end is what the system learns from. A trade is compared
with two cached prices per symbol, the nearest level above and below; only when one is reached is
the table walked. On a trade the stop comes before the target, and a time-out before both. On bars
(time that was not seen tick by tick) the stop comes first whenever a bar reached both.

Gross R: a loss at the price that touched the stop, a win at the target, a time-out at the last
price before it.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from barrier import keep_order
from brain.events import LOSS, OUTCOME, TIMEOUT, WIN, Events, emit
from brain.jit import entry, step
from brain.state import (
    F_BARS_FROM_MS,
    F_DEADLINE_MS,
    F_KEY,
    F_KNOWN_NS,
    F_SIDE,
    F_TIMEFRAME,
    FOLLOWED,
    L_ENTRY,
    L_STOP,
    L_TARGET,
    LAST,
    LEVEL_ABOVE,
    LEVEL_BELOW,
    NEXT_DEADLINE_MS,
    OPEN_SIGNALS,
    Arrays,
)

NEVER_MS: Final = np.iinfo(np.int64).max


@step
def refresh(a: Arrays, s: int) -> None:
    """Recompute what the tick path looks at."""
    above, below, deadline, open_signals = np.inf, -np.inf, NEVER_MS, 0
    for i in range(FOLLOWED):
        if a.follow[s, i, F_KEY] == 0:
            continue
        open_signals += 1
        deadline = min(deadline, a.follow[s, i, F_DEADLINE_MS])
        up = max(a.levels[s, i, L_STOP], a.levels[s, i, L_TARGET])
        down = min(a.levels[s, i, L_STOP], a.levels[s, i, L_TARGET])
        above, below = min(above, up), max(below, down)
    a.px[s, LEVEL_ABOVE], a.px[s, LEVEL_BELOW] = above, below
    a.sym[s, NEXT_DEADLINE_MS], a.sym[s, OPEN_SIGNALS] = deadline, open_signals


@entry
def refresh_all(a: Arrays) -> None:
    """After a death: whatever was armed or ended last, the tick path looks at all of it."""
    for s in range(len(a.sym)):
        refresh(a, s)


@step
def arm_step(
    a: Arrays, s: int, t: int, key: int, known_ns: int, deadline_ms: int, bars_from_ms: int,
    side: int, entry: float, stop: float, target: float,
) -> int:  # fmt: skip
    """Follow a signal from known_ns on. Returns its slot, or -1 when the table is full.

    Arming a key that is already followed changes nothing. key is not 0.
    """
    free = -1
    for i in range(FOLLOWED - 1, -1, -1):
        if a.follow[s, i, F_KEY] == key:
            return i
        if a.follow[s, i, F_KEY] == 0:
            free = i
    if free < 0:
        return -1
    row = a.follow[s, free]
    row[F_KNOWN_NS], row[F_DEADLINE_MS], row[F_SIDE] = known_ns, deadline_ms, side
    row[F_TIMEFRAME], row[F_BARS_FROM_MS] = t, bars_from_ms
    a.levels[s, free, L_ENTRY] = entry
    a.levels[s, free, L_STOP], a.levels[s, free, L_TARGET] = stop, target
    keep_order()  # the key last: a death before it leaves a free place, not half a signal
    row[F_KEY] = key
    refresh(a, s)
    return free


@entry
def arm(
    a: Arrays, s: int, t: int, key: int, known_ns: int, deadline_ms: int, bars_from_ms: int,
    side: int, entry: float, stop: float, target: float,
) -> int:  # fmt: skip
    """`arm_step` for Python."""
    return arm_step(a, s, t, key, known_ns, deadline_ms, bars_from_ms, side, entry, stop, target)


@entry
def disarm_all(a: Arrays, s: int) -> None:
    """Follow nothing on this symbol any more."""
    for i in range(FOLLOWED):
        a.follow[s, i, F_KEY] = 0
    refresh(a, s)


@step
def _end(
    a: Arrays, s: int, i: int, result: int, price: float, known_ns: int, recv_ns: int, ev: Events,
    n: int,
) -> int:  # fmt: skip
    """The outcome of one signal; its place is free again."""
    entry, stop, side = a.levels[s, i, L_ENTRY], a.levels[s, i, L_STOP], a.follow[s, i, F_SIDE]
    row, t = n, a.follow[s, i, F_TIMEFRAME]
    n = emit(ev, n, OUTCOME, result, side, s, t, 0, known_ns, recv_ns)
    ev[row].key = a.follow[s, i, F_KEY]
    ev[row].a = (price - entry) * side / abs(entry - stop)
    ev[row].b = price
    ev[row].c = (known_ns - a.follow[s, i, F_KNOWN_NS]) // 1_000_000
    a.follow[s, i, F_KEY] = 0
    return n


@step
def follow_time(a: Arrays, s: int, now_ns: int, recv_ns: int, ev: Events, n: int) -> int:
    """Time-outs at the last price before now. Needs FOLLOWED free rows in ev."""
    if now_ns // 1_000_000 < a.sym[s, NEXT_DEADLINE_MS] or a.sym[s, OPEN_SIGNALS] == 0:
        return n
    for i in range(FOLLOWED):
        if a.follow[s, i, F_KEY] == 0 or a.follow[s, i, F_DEADLINE_MS] > now_ns // 1_000_000:
            continue
        price = a.px[s, LAST]
        if price != price:  # nothing traded since it was armed
            price = a.levels[s, i, L_ENTRY]
        n = _end(a, s, i, TIMEOUT, price, now_ns, recv_ns, ev, n)
    refresh(a, s)
    return n


@step
def follow_trade(
    a: Arrays, s: int, price: float, exch_ns: int, recv_ns: int, ev: Events, n: int
) -> int:
    """One trade against the open signals. Needs FOLLOWED free rows in ev."""
    if price < a.px[s, LEVEL_ABOVE] and price > a.px[s, LEVEL_BELOW]:
        return n
    for i in range(FOLLOWED):
        if a.follow[s, i, F_KEY] == 0 or exch_ns < a.follow[s, i, F_KNOWN_NS]:
            continue
        side = a.follow[s, i, F_SIDE]
        if (price - a.levels[s, i, L_STOP]) * side <= 0.0:
            n = _end(a, s, i, LOSS, price, exch_ns, recv_ns, ev, n)
        elif (price - a.levels[s, i, L_TARGET]) * side >= 0.0:
            n = _end(a, s, i, WIN, a.levels[s, i, L_TARGET], exch_ns, recv_ns, ev, n)
    refresh(a, s)
    return n


@step
def follow_bar(
    a: Arrays, s: int, open_ms: int, step_ms: int, bar_open: float, high: float, low: float,
    recv_ns: int, ev: Events, n: int,
) -> int:  # fmt: skip
    """A closed bar of time that was not followed by ticks; the stop first. Needs FOLLOWED rows."""
    known_ns = (open_ms + step_ms) * 1_000_000
    for i in range(FOLLOWED):
        if a.follow[s, i, F_KEY] == 0 or open_ms < a.follow[s, i, F_BARS_FROM_MS]:
            continue
        side, stop = a.follow[s, i, F_SIDE], a.levels[s, i, L_STOP]
        worst, best = (low, high) if side > 0 else (high, low)
        if open_ms >= a.follow[s, i, F_DEADLINE_MS]:
            n = _end(a, s, i, TIMEOUT, bar_open, known_ns, recv_ns, ev, n)
        elif (worst - stop) * side <= 0.0:
            price = min(bar_open, stop) if side > 0 else max(bar_open, stop)
            n = _end(a, s, i, LOSS, price, known_ns, recv_ns, ev, n)
        elif (best - a.levels[s, i, L_TARGET]) * side >= 0.0:
            n = _end(a, s, i, WIN, a.levels[s, i, L_TARGET], known_ns, recv_ns, ev, n)
    refresh(a, s)
    return n
