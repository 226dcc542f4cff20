"""History kernels: a symbol's life in the ring, and bars that came from the exchange.

SYMBOL begins a clean slate (of a known symbol the counters and open signals stay), BARs fill the
history silently, GAP counts what nobody will bring, DROP forgets. A CORRECTION replaces a kept
candle, has everything after it analysed anew, and makes the forming candles that hold it anew of
their parts: only so can a day that lost a trade be right before it is over.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from brain.candles import STEP_MS, append_closed, closed_slot, start_forming
from brain.closing import (
    N_BARS,
    N_CORRECTIONS,
    N_DUPLICATES,
    N_KLINES,
    N_LOST,
    W_BAR_MS,
    W_EMIT,
    W_SYMBOL,
    W_TIMEFRAME,
    analyse,
    count_outcomes,
)
from brain.events import Events
from brain.follow import disarm_all, follow_bar, refresh
from brain.indicators import reset_indicators
from brain.jit import step
from brain.smc import reset_structure
from brain.state import (
    ACTIVE,
    CLOSE,
    COUNT,
    DEGRADED,
    FOLLOWED,
    GAPS,
    HIGH,
    HISTORY,
    HISTORY_MASK,
    LAST_ID,
    LATE,
    LEVEL_ABOVE,
    LOST,
    LOW,
    NEWEST_ID,
    NEXT_END_MS,
    SKIPPED,
    TIMEFRAMES,
    TRADES,
    VOLUME,
    Arrays,
    Ints,
)
from records import CLOSED, CORRECTION, EXCHANGE, REFUSED


@step
def reset_analysis(a: Arrays, s: int, t: int) -> None:
    reset_indicators(a.ind[s, t])
    reset_structure(a.smc[s, t], a.zones[s, t])


@step
def announce(a: Arrays, raw: Ints, slot: int, s: int) -> None:
    """SYMBOL: a clean slate; of a known symbol the counters and open signals stay."""
    same = a.sym[s, ACTIVE] != 0
    for k in range(4):
        same = same and a.names[s, k] == raw[slot, 3 + k]
        a.names[s, k] = raw[slot, 3 + k]
    kept = (NEWEST_ID, TRADES, GAPS, LOST, SKIPPED, LATE)
    for k in range(a.sym.shape[1]):
        if not same or k not in kept:
            a.sym[s, k] = 0
    for k in range(LEVEL_ABOVE):
        a.px[s, k] = np.nan
    for t in range(TIMEFRAMES):
        start_forming(a, s, t, -1)
        a.counts[s, t] = 0
        reset_analysis(a, s, t)
    a.sym[s, ACTIVE], a.sym[s, DEGRADED] = 1, 1
    if not same:
        disarm_all(a, s)
    refresh(a, s)


@step
def forget(a: Arrays, s: int) -> None:
    """DROP: the row is nobody's."""
    disarm_all(a, s)
    for k in range(a.sym.shape[1]):
        a.sym[s, k] = 0
    for k in range(4):
        a.names[s, k] = 0
    for t in range(TIMEFRAMES):
        a.counts[s, t] = 0
        start_forming(a, s, t, -1)


@step
def _fill_forming(a: Arrays, s: int, t: int, r: Any, v: Any) -> None:
    f = a.forming
    f[s, t, 0], f[s, t, 1], f[s, t, 2], f[s, t, 3] = r.a, r.b, r.c, r.d
    f[s, t, 4], f[s, t, 5], f[s, t, 6], f[s, t, 7] = v.a, v.b, v.c, v.d


@step
def _rebuild(a: Arrays, s: int, t: int, ev: Events, where: Ints) -> None:
    """Indicators and structure from the kept candles, silently: one of them was wrong."""
    count = a.counts[s, t]
    reset_analysis(a, s, t)
    where[W_EMIT] = 0
    where[W_SYMBOL], where[W_TIMEFRAME] = s, t
    for at in range(max(count - HISTORY, 0) + 1, count + 1):
        where[W_BAR_MS] = a.closed_at[s, t, (at - 1) & HISTORY_MASK]
        analyse(a, s, t, at, ev, int(np.int64(0)), where)


@step
def _merge(f: Any, c: Any) -> None:
    """A later candle into a forming one; one without trades adds nothing."""
    if c[COUNT] == 0.0:
        return
    if f[COUNT] == 0.0:
        for k in range(8):
            f[k] = c[k]
        return
    f[HIGH], f[LOW], f[CLOSE] = max(f[HIGH], c[HIGH]), min(f[LOW], c[LOW]), c[CLOSE]
    for k in range(VOLUME, 8):
        f[k] += c[k]


@step
def _refold(a: Arrays, s: int, t: int, open_ms: int) -> None:
    """The forming candle of timeframe t out of finer ones, if it holds the corrected `open_ms` and
    all its parts are kept: the coarsest closed ones first, the forming 1m one last."""
    begin_ms = a.forming_at[s, t]
    if begin_ms < 0 or open_ms < begin_ms:
        return
    at_ms = begin_ms
    for k in range(t - 1, -1, -1):
        if at_ms < a.forming_at[s, k]:
            if closed_slot(a, s, k, at_ms) < 0:
                return
            at_ms = a.forming_at[s, k]
    start_forming(a, s, t, begin_ms)
    at_ms = begin_ms
    for k in range(t - 1, -1, -1):
        for _ in range(HISTORY):
            if at_ms >= a.forming_at[s, k]:
                break
            _merge(a.forming[s, t], a.closed[s, k, closed_slot(a, s, k, at_ms)])
            at_ms += STEP_MS[k]
    if a.forming_at[s, 0] == at_ms:  # else it is in a coarser candle already
        _merge(a.forming[s, t], a.forming[s, 0])


@step
def _closed_bar(
    a: Arrays, s: int, t: int, r: Any, v: Any, ev: Events, where: Ints, stats: Ints
) -> None:
    """A bar from the exchange: the next one is appended, a known one is corrected if it says so."""
    open_ms, known = r.exch_ns // 1_000_000, a.counts[s, t] > 0
    newest = a.closed_at[s, t, (a.counts[s, t] - 1) & HISTORY_MASK] if known else -1
    if known and open_ms <= newest:
        slot = closed_slot(a, s, t, open_ms)
        if not r.flags & CORRECTION or slot < 0:
            stats[N_DUPLICATES] += 1
            return
        bar = a.closed[s, t, slot]
        bar[0], bar[1], bar[2], bar[3] = r.a, r.b, r.c, r.d
        bar[4], bar[5], bar[6], bar[7] = v.a, v.b, v.c, v.d
        stats[N_CORRECTIONS] += 1
        _rebuild(a, s, t, ev, where)
        return
    if known and open_ms != newest + STEP_MS[t]:  # a hole: what came before it is of no use
        a.counts[s, t] = 0
        reset_analysis(a, s, t)
    a.forming_at[s, t] = open_ms
    _fill_forming(a, s, t, r, v)
    keep = v.d
    if keep == 0.0:  # a flat bar brings its own price; it may be the first
        a.forming[s, t, COUNT] = 1.0
    append_closed(a, s, t)
    a.closed[s, t, (a.counts[s, t] - 1) & HISTORY_MASK, COUNT] = keep
    where[W_SYMBOL], where[W_TIMEFRAME], where[W_BAR_MS] = s, t, open_ms
    where[W_EMIT] = 0
    analyse(a, s, t, a.counts[s, t], ev, int(np.int64(0)), where)


@step
def take_bar(
    a: Arrays, s: int, r: Any, v: Any, ev: Events, n: int, where: Ints, stats: Ints
) -> tuple[int, bool]:
    """BAR and its BAR_VOLUME: history, or the forming bar's beginning."""
    t = int(np.int64(-1))
    for k in range(TIMEFRAMES):
        if STEP_MS[k] == r.aux * 60_000:
            t = k
    if t < 0:
        return n, True
    if r.flags & EXCHANGE:
        stats[N_KLINES] += 1
        return n, True
    if n + 2 * FOLLOWED > len(ev):
        return n, False
    stats[N_BARS] += 1
    open_ms = r.exch_ns // 1_000_000
    a.sym[s, NEXT_END_MS] = 0
    if r.flags & CLOSED:
        _closed_bar(a, s, t, r, v, ev, where, stats)
        if r.flags & CORRECTION:
            for coarser in range(t + 1, TIMEFRAMES):
                _refold(a, s, coarser, open_ms)
        if t == 0:
            first = n
            n = follow_bar(a, s, open_ms, STEP_MS[t], r.a, r.b, r.c, r.recv_ns, ev, n)
            count_outcomes(ev, first, n, stats)
    elif a.forming_at[s, t] < 0 or open_ms == a.forming_at[s, t]:
        a.forming_at[s, t] = open_ms
        _fill_forming(a, s, t, r, v)
    else:
        stats[N_DUPLICATES] += 1
    return n, True


@step
def take_gap(a: Arrays, s: int, r: Any, stats: Ints) -> None:
    """Trades that nobody will bring: counted once, the symbol is not whole until HEALED.

    Ids of refused prints are no loss: the symbol goes on behind them.
    """
    end = r.id + np.int64(r.a) - 1
    if r.flags & REFUSED:
        a.sym[s, LAST_ID] = max(a.sym[s, LAST_ID], end)
        a.sym[s, NEWEST_ID] = max(a.sym[s, NEWEST_ID], end)
        return
    lost = end - max(a.sym[s, LAST_ID], r.id - 1)
    if lost > 0:
        a.sym[s, LOST] += lost
        stats[N_LOST] += lost
        a.sym[s, LAST_ID] = end
        a.sym[s, NEWEST_ID] = max(a.sym[s, NEWEST_ID], end)
    a.sym[s, DEGRADED] = 1
