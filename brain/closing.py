"""Closing kernels: the forming bar becomes history, then indicators, structure and events.

One record may close many bars of many timeframes; where event rows run low the caller is told to
come again, and nothing is done twice.
"""

from __future__ import annotations

from typing import Final

from brain.candles import STEP_MS, append_closed, start_forming
from brain.events import CLOSE_EVENT, CLOSE_EVENTS_MAX, OUTCOME, TIMEOUT, Events, emit
from brain.indicators import step_indicators
from brain.jit import inlined, step
from brain.smc import step_structure
from brain.state import COUNT, DAYS, FOLLOWED, HISTORY, HISTORY_MASK, WAITS, Arrays, Ints
from ring import BRAIN_COUNTERS

EVERY_CLOSE: Final = -1  # a stop mask: ask at every close, whatever its structure

# where: the record at hand, handed through the kernels
(
    W_SYMBOL, W_TIMEFRAME, W_BAR_MS, W_KNOWN_NS, W_RECV_NS, W_EMIT, W_FLAGS,
    W_STOP,  # a candle closed on which a rule must be asked
    W_PARTIAL,  # rows ran out within a record: what it closes is not all closed yet
    W_NEXT,  # sequence behind the record: a symbol that waits for a rule is marked by it
) = range(10)  # fmt: skip
WHERE: Final = 10

_AT = {name: index for index, name in enumerate(BRAIN_COUNTERS)}
N_RECORDS, N_TRADES, N_QUOTES, N_MARKS = (_AT[x] for x in ("records", "trades", "quotes", "marks"))
N_BARS, N_GAPS, N_LOST, N_DUPLICATES = (
    _AT[x] for x in ("bars", "gaps", "lost_trades", "duplicates")
)
N_LATE, N_CLOSES, N_ORPHANS, N_CORRECTIONS = (
    _AT[x] for x in ("late", "closes", "orphans", "corrections")
)
N_SKIPPED, N_OUTCOMES, N_TIMEOUTS = (_AT[x] for x in ("skipped", "outcomes", "timeouts"))
N_KLINES = _AT["klines"]


@inlined
def analyse(a: Arrays, s: int, t: int, count: int, ev: Events, n: int, where: Ints) -> int:
    """Indicators, then structure, of the closed candle that `count` ends with."""
    slot = (count - 1) & HISTORY_MASK
    step_indicators(
        a.ind[s, t], a.closed[s, t, slot], a.closed_at[s, t, slot], a.closed[s, t], count - 1,
        STEP_MS[t],
    )  # fmt: skip
    return step_structure(
        a.smc[s, t], a.zones[s, t], a.ind[s, t], a.closed[s, t], a.closed_at[s, t], count,
        a.closed[s, DAYS], a.closed_at[s, DAYS], a.counts[s, DAYS], STEP_MS[t], ev, n, where,
    )  # fmt: skip


@inlined
def close_bar(
    a: Arrays, s: int, t: int, ev: Events, n: int, where: Ints, stop_masks: Ints, stats: Ints
) -> int:
    """The forming bar ends: history, indicators, structure, events. Needs CLOSE_EVENTS_MAX rows."""
    bar_ms = a.forming_at[s, t]
    append_closed(a, s, t)
    count = a.counts[s, t]
    where[W_SYMBOL], where[W_TIMEFRAME], where[W_BAR_MS] = s, t, bar_ms
    where[W_EMIT], where[W_FLAGS] = 1, 0
    row = n
    n = emit(ev, n, CLOSE_EVENT, 0, 0, s, t, bar_ms, where[W_KNOWN_NS], where[W_RECV_NS])
    n = analyse(a, s, t, count, ev, n, where)
    bar = a.closed[s, t, (count - 1) & HISTORY_MASK]
    ev[row].flags = where[W_FLAGS]
    ev[row].a, ev[row].b, ev[row].c = bar[0], bar[1], bar[2]
    ev[row].d, ev[row].e, ev[row].f = bar[3], bar[4], bar[5]
    if stop_masks[t] == EVERY_CLOSE or where[W_FLAGS] & stop_masks[t] != 0:
        where[W_STOP] = ev[row].code = 1
        a.sym[s, WAITS] = where[W_NEXT]
    stats[N_CLOSES] += 1
    return n


@step
def advance_bars(
    a: Arrays, s: int, t: int, open_ms: int, ev: Events, n: int, where: Ints, stop_masks: Ints,
    stats: Ints,
) -> tuple[int, bool]:  # fmt: skip
    """Close bars until the forming one opens at open_ms. False: event rows ran low, come again."""
    if a.forming[s, t, COUNT] == 0.0 and a.counts[s, t] == 0:
        start_forming(a, s, t, open_ms)
        return n, True
    for _ in range(HISTORY + 2):
        if a.forming_at[s, t] >= open_ms:
            return n, True
        if n + CLOSE_EVENTS_MAX + FOLLOWED > len(ev):
            return n, False
        n = close_bar(a, s, t, ev, n, where, stop_masks, stats)
        behind = (open_ms - a.forming_at[s, t]) // STEP_MS[t]
        if behind > HISTORY:  # a silence longer than the history: only its last bars are kept
            start_forming(a, s, t, open_ms - HISTORY * STEP_MS[t])
    return n, a.forming_at[s, t] >= open_ms


@step
def count_outcomes(ev: Events, first: int, n: int, stats: Ints) -> None:
    for i in range(first, n):
        if ev[i].kind == OUTCOME:
            stats[N_OUTCOMES] += 1
            if ev[i].code == TIMEOUT:
                stats[N_TIMEOUTS] += 1
