"""The one jitted loop: records in, state and events out.

`consume` takes what lies in the ring from a sequence on, at most `limit` records, and stops early
in two cases: the event rows run low, or a candle closed on which a rule must be asked. Then it goes
on with a few more quotes and trades of other symbols, whose closes are asked about together with
the first, but touches nothing that a rule would see: it stops before any other record and before
the next one of a symbol that waits. That makes the answer independent of how the stream was cut
into batches: a signal is followed from the very next record of its symbol on. Rows may run out in
the middle of a record (many bars close at one CLOCK): W_PARTIAL says so, the record is taken again,
and what was done for it is not done twice. Coarse timeframes close first: as long as the 1m bar is
open, a symbol is not done.

Crash safety: WRITING holds symbol + 1 while that symbol's numbers change, C_SEQ the next record.
Every record is idempotent by itself too: trades by id, quotes by update id, bars by open time.
No allocation anywhere here; no clock but the market's.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import numpy.typing as npt

from barrier import keep_order, load_acquire, store_release
from brain.candles import (
    CLOSE_DELAY_MS,
    STEP_MS,
    add_trade,
    amend_closed,
    start_forming,
)
from brain.closing import (
    N_DUPLICATES,
    N_GAPS,
    N_LATE,
    N_MARKS,
    N_ORPHANS,
    N_QUOTES,
    N_RECORDS,
    N_SKIPPED,
    N_TRADES,
    W_KNOWN_NS,
    W_NEXT,
    W_PARTIAL,
    W_RECV_NS,
    W_STOP,
    WHERE,
    advance_bars,
    count_outcomes,
)
from brain.events import (
    CLOSE_EVENTS_MAX,
    EVENT,
    EVENTS,
    GONE,
    RESYNC,
    WHOLE,
    Events,
    emit,
)
from brain.features import FEATURES, measure, open_signal
from brain.follow import arm, disarm_all, follow_time, follow_trade, refresh_all
from brain.gather import NUMBERS, WHAT, gather, look
from brain.history import announce, forget, take_bar, take_gap
from brain.indicators import forming_indicators
from brain.jit import entry, step
from brain.state import (
    ACTIVE,
    ASK,
    ASK_QTY,
    BID,
    BID_QTY,
    BROKEN,
    C_CLOCK_NS,
    C_SEQ,
    DEGRADED,
    FOLLOWED,
    FUNDING,
    GAPS,
    HIGH,
    INDEX_PRICE,
    LAST,
    LAST_ID,
    LATE,
    LEVEL_ABOVE,
    LEVEL_BELOW,
    LOW,
    MARK_NS,
    MARK_PRICE,
    NEWEST_ID,
    NEXT_DEADLINE_MS,
    NEXT_END_MS,
    OPEN,
    OPEN_SIGNALS,
    QUOTE_ID,
    QUOTE_NS,
    SKIPPED,
    SUSPECT_UNTIL_NS,
    TIMEFRAMES,
    TRADE_NS,
    TRADES,
    WAITS,
    Arrays,
    Floats,
    Ints,
    memory_state,
)
from records import (
    BAR,
    BUYER_MAKER,
    CLOCK,
    DROP,
    GAP,
    HEALED,
    MARK,
    QUOTE,
    RECORD,
    SYMBOL,
    TIMEFRAMES_MIN,
    TRADE,
)
from records import DEGRADED as PRINT_DEGRADED
from ring import COUNTERS_MAX, HEAD, TAIL, WORDS, WRITING

RECORDS_MAX: Final = 8_192  # per call: signals are handled between calls
TOGETHER: Final = 64  # records taken while a rule waits: a few microseconds
SUSPECT_NS: Final = 2_000_000_000  # no signal for so long after a print far from the reference


@step
def _count_trade(
    a: Arrays, s: int, trade_id: int, stats: Ints, ev: Events, n: int, where: Ints
) -> int:
    """Continuity: each id once; a jump that nobody announced is a gap."""
    last, newest = a.sym[s, LAST_ID], a.sym[s, NEWEST_ID]
    if last > 0 and trade_id > last + 1:
        a.sym[s, GAPS] += 1
        a.sym[s, BROKEN] = 1  # the event below may die with us
        stats[N_GAPS] += 1
        n = emit(ev, n, RESYNC, 0, 0, s, 0, 0, where[W_KNOWN_NS], where[W_RECV_NS])
    elif last == 0 and newest > 0 and trade_id > newest + 1:
        a.sym[s, SKIPPED] += trade_id - newest - 1
        stats[N_SKIPPED] += trade_id - newest - 1
    if trade_id > newest:
        a.sym[s, NEWEST_ID] = trade_id
        a.sym[s, TRADES] += 1
        stats[N_TRADES] += 1
    a.sym[s, LAST_ID] = trade_id
    return n


@step
def _to_bars(
    a: Arrays, s: int, t_ms: int, ev: Events, n: int, where: Ints, stop_masks: Ints, stats: Ints
) -> tuple[int, bool]:
    """Every timeframe's forming bar reaches the trade's time, or is already past it."""
    fits = True
    for t in range(TIMEFRAMES - 1, -1, -1):
        open_ms = t_ms // STEP_MS[t] * STEP_MS[t]
        if a.forming_at[s, t] < 0:
            start_forming(a, s, t, open_ms)
        elif open_ms > a.forming_at[s, t]:
            n, done = advance_bars(a, s, t, open_ms, ev, n, where, stop_masks, stats)
            if not done:
                return n, False
        fits = fits and a.forming_at[s, t] == open_ms
    a.sym[s, NEXT_END_MS] = a.forming_at[s, 0] + STEP_MS[0] if fits else 0
    return n, True


@step
def _trade(
    a: Arrays, s: int, r: Any, ev: Events, n: int, where: Ints, stop_masks: Ints, stats: Ints
) -> tuple[int, bool]:
    """One trade: closes what ends before it, then joins the forming bars."""
    if r.id <= a.sym[s, LAST_ID]:
        stats[N_DUPLICATES] += 1
        return n, True
    if n + CLOSE_EVENTS_MAX + FOLLOWED > len(ev):
        return n, False
    t_ms, price, qty = r.exch_ns // 1_000_000, r.a, r.b
    inside = t_ms < a.sym[s, NEXT_END_MS] and t_ms >= a.forming_at[s, 0]
    if not inside:
        n, done = _to_bars(a, s, t_ms, ev, n, where, stop_masks, stats)
        if not done or n + 1 + 2 * FOLLOWED > len(ev):
            return n, False
        inside = t_ms < a.sym[s, NEXT_END_MS] and t_ms >= a.forming_at[s, 0]
    n = _count_trade(a, s, r.id, stats, ev, n, where)
    first = n
    n = follow_time(a, s, r.exch_ns, r.recv_ns, ev, n)
    n = follow_trade(a, s, price, r.exch_ns, r.recv_ns, ev, n)
    count_outcomes(ev, first, n, stats)
    a.px[s, LAST], a.sym[s, TRADE_NS] = price, r.exch_ns
    if r.flags & PRINT_DEGRADED:
        a.sym[s, SUSPECT_UNTIL_NS] = max(a.sym[s, SUSPECT_UNTIL_NS], r.exch_ns + SUSPECT_NS)
    bought = 0.0 if r.flags & BUYER_MAKER else qty
    if inside:
        for t in range(TIMEFRAMES):
            add_trade(a.forming, s, t, price, qty, bought)
        return n, True
    for t in range(TIMEFRAMES):
        open_ms = t_ms // STEP_MS[t] * STEP_MS[t]
        if open_ms == a.forming_at[s, t]:
            add_trade(a.forming, s, t, price, qty, bought)
        else:
            amend_closed(a, s, t, open_ms, price, qty, bought)
            if t == 0:
                a.sym[s, LATE] += 1
                stats[N_LATE] += 1
    return n, True


@step
def _clock(
    a: Arrays, words: Ints, r: Any, ev: Events, n: int, where: Ints, stop_masks: Ints, stats: Ints
) -> tuple[int, bool]:
    """Market time: close what is over, time out what is due, of every whole symbol."""
    now_ms = r.exch_ns // 1_000_000
    a.control[C_CLOCK_NS] = max(a.control[C_CLOCK_NS], r.exch_ns)
    for s in range(len(a.sym)):
        if a.sym[s, ACTIVE] == 0 or a.sym[s, DEGRADED] != 0 or a.forming_at[s, 0] < 0:
            continue
        if n + CLOSE_EVENTS_MAX + FOLLOWED > len(ev):
            return n, False
        first = n
        n = follow_time(a, s, r.exch_ns, r.recv_ns, ev, n)
        count_outcomes(ev, first, n, stats)
        if now_ms < a.forming_at[s, 0] + STEP_MS[0] + CLOSE_DELAY_MS:
            continue
        store_release(words, WRITING, s + 1)
        keep_order()
        for t in range(TIMEFRAMES - 1, -1, -1):
            open_ms = (now_ms - CLOSE_DELAY_MS) // STEP_MS[t] * STEP_MS[t]
            if a.forming_at[s, t] < 0 or open_ms <= a.forming_at[s, t]:
                continue
            n, done = advance_bars(a, s, t, open_ms, ev, n, where, stop_masks, stats)
            if not done:
                store_release(words, WRITING, 0)
                return n, False
        a.sym[s, NEXT_END_MS] = 0
        store_release(words, WRITING, 0)
    return n, True


@step
def _quote(sym: Ints, px: Floats, s: int, r: Any, stats: Ints) -> None:
    """The newest best bid and ask, by update id; an exchange that counts anew is told by time."""
    if r.id <= sym[s, QUOTE_ID] and r.exch_ns <= sym[s, QUOTE_NS]:
        stats[N_DUPLICATES] += 1
        return
    px[s, BID], px[s, BID_QTY], px[s, ASK], px[s, ASK_QTY] = r.a, r.b, r.c, r.d
    sym[s, QUOTE_ID], sym[s, QUOTE_NS] = r.id, r.exch_ns
    stats[N_QUOTES] += 1


@step
def _plain_trade(
    sym: Ints, px: Floats, forming_at: Ints, forming: Floats, s: int, r: Any, stats: Ints
) -> bool:
    """The common trade: next id, within every forming bar, reaching no followed level.

    False when it is any other; then nothing was done. Takes single arrays, not all of them: handing
    the whole state to a function costs more than what is done here.
    """
    t_ms = r.exch_ns // 1_000_000
    if (
        r.id != sym[s, LAST_ID] + 1
        or r.flags & PRINT_DEGRADED
        or t_ms >= sym[s, NEXT_END_MS]
        or t_ms < forming_at[s, 0]
        or r.id <= sym[s, NEWEST_ID]
    ):
        return False
    price, qty = r.a, r.b
    if sym[s, OPEN_SIGNALS] != 0 and (
        price >= px[s, LEVEL_ABOVE]
        or price <= px[s, LEVEL_BELOW]
        or t_ms >= sym[s, NEXT_DEADLINE_MS]
    ):
        return False
    sym[s, LAST_ID] = sym[s, NEWEST_ID] = r.id
    sym[s, TRADES] += 1
    sym[s, TRADE_NS] = r.exch_ns
    px[s, LAST] = price
    bought = 0.0 if r.flags & BUYER_MAKER else qty
    for t in range(TIMEFRAMES):
        add_trade(forming, s, t, price, qty, bought)
    stats[N_TRADES] += 1
    return True


@step
def _mark(a: Arrays, s: int, r: Any, stats: Ints) -> None:
    if r.exch_ns < a.sym[s, MARK_NS]:
        return
    a.px[s, MARK_PRICE], a.px[s, INDEX_PRICE], a.px[s, FUNDING] = r.a, r.b, r.c
    a.sym[s, MARK_NS] = r.exch_ns
    stats[N_MARKS] += 1


@step
def _record(
    a: Arrays, words: Ints, slots: Any, raw: Ints, slot: int, s: int, ev: Events, n: int,
    where: Ints, stop_masks: Ints, stats: Ints,
) -> tuple[int, bool]:  # fmt: skip
    """One record that is neither a quote nor a common trade."""
    r = slots[slot]
    done = True
    if r.kind == CLOCK:
        n, done = _clock(a, words, r, ev, n, where, stop_masks, stats)
    elif r.kind == TRADE:
        n, done = _trade(a, s, r, ev, n, where, stop_masks, stats)
    elif r.kind == MARK:
        _mark(a, s, r, stats)
    elif r.kind == BAR:
        volume = slots[(slot + 1) & (len(slots) - 1)]
        n, done = take_bar(a, s, r, volume, ev, n, where, stats)
    elif r.kind == SYMBOL:
        announce(a, raw, slot, s)
    elif r.kind == GAP:
        take_gap(a, s, r, stats)
    elif r.kind == HEALED:
        a.sym[s, DEGRADED] = 0
        n = emit(ev, n, WHOLE, 0, 0, s, 0, 0, a.control[C_CLOCK_NS], r.recv_ns)
    elif r.kind == DROP:
        forget(a, s)
        n = emit(ev, n, GONE, 0, 0, s, 0, 0, a.control[C_CLOCK_NS], r.recv_ns)
    return n, done


@entry
def consume(
    words: Ints, slots: Any, raw: Ints, a: Arrays, ev: Events, where: Ints, stop_masks: Ints,
    stats: Ints, seq: int, limit: int,
) -> tuple[int, int]:  # fmt: skip
    """Take records from `seq` on. Returns (next sequence, events written).

    words, slots  the ring's; raw is slots seen as int64[n, 8]
    ev            EVENT[EVENTS], written from row 0
    stop_masks    i8[T]: structure bits on which a rule must be asked, EVERY_CLOSE for any close
    """
    head = load_acquire(words, HEAD)
    end, begin, n, mask = min(head, seq + limit), seq, int(np.int64(0)), len(slots) - 1
    if where[W_PARTIAL] == 0:  # else this call goes on with the last one's record
        where[W_STOP] = 0
    stopped, where[W_PARTIAL] = False, 0
    sym, px, forming_at, forming, control = a.sym, a.px, a.forming_at, a.forming, a.control
    while seq < end:
        slot = seq & mask
        r = slots[slot]
        kind, s, done, width = r.kind, np.int64(r.symbol), True, 2 if r.kind == BAR else 1
        known = s < len(sym) and sym[s, ACTIVE] != 0
        if where[W_STOP] != 0 and seq > begin:
            if not stopped:
                stopped, end = True, min(end, seq + TOGETHER)
            if not known or (kind != QUOTE and kind != TRADE) or sym[s, WAITS] > begin:
                break
        store_release(words, WRITING, s + 1 if known or kind == SYMBOL else 0)
        keep_order()
        if kind == QUOTE and known:
            _quote(sym, px, s, r, stats)
        elif kind == TRADE and known and _plain_trade(sym, px, forming_at, forming, s, r, stats):
            pass
        elif n + CLOSE_EVENTS_MAX + 2 * FOLLOWED > len(ev) or seq + width > head:
            done = False
        elif kind == CLOCK or known or (kind == SYMBOL and s < len(sym)):
            where[W_KNOWN_NS], where[W_RECV_NS] = r.exch_ns, r.recv_ns
            where[W_NEXT], rows = seq + 1, n
            n, done = _record(a, words, slots, raw, slot, s, ev, n, where, stop_masks, stats)
            where[W_PARTIAL] = not done and n > rows
        else:
            stats[N_ORPHANS] += 1
        if done:
            seq += width
            store_release(control, C_SEQ, seq)
        store_release(words, WRITING, 0)
        if not done:
            break
    stats[N_RECORDS] += seq - begin
    store_release(words, TAIL, seq)
    return seq, n


@entry
def store_word(words: Ints, index: int, value: int) -> None:
    """A shared word, from Python."""
    store_release(words, index, value)


def raw_view(slots: npt.NDArray[Any]) -> Ints:
    """The slots as int64[n, 8]: names are copied as bits, never as floats."""
    return slots.view(np.int64).reshape(-1, RECORD.itemsize // 8)


def new_events(rows: int = EVENTS) -> npt.NDArray[Any]:
    """The event rows that `consume` fills."""
    return np.zeros(rows, EVENT)


def warm() -> None:
    """Compile or load every kernel with the types of real use."""
    words, slots = np.zeros(WORDS, np.int64), np.zeros(4, RECORD)
    state = memory_state(1)
    stats = np.zeros(COUNTERS_MAX, np.int64)
    where, masks = np.zeros(WHERE, np.int64), np.zeros(TIMEFRAMES, np.int64)
    store_word(words, HEAD, 1)
    consume(words, slots, raw_view(slots), state.arrays, new_events(), where, masks, stats, 0, 1)
    arm(state.arrays, 0, 0, 1, 0, 1, 0, 1, 1.0, 0.5, 2.0)
    disarm_all(state.arrays, 0)
    refresh_all(state.arrays)
    a = state.arrays
    whats, numbers = np.zeros((1, WHAT), np.int64), np.zeros((1, NUMBERS))
    gather(a, new_events(1), 0, whats, numbers)
    look(a, 0, 0, numbers[0])
    made = np.zeros(len(FEATURES))
    measure(a, 0, 0, 1, 0, 0, 0, made)
    open_signal(a, 0, 0, 1, 0, 1, 0, 1, 1.0, 0.5, 2.0, 0, 0, 0, made)
    row = np.zeros(a.ind.shape[-1])
    forming_indicators(a.ind[0, 0], a.forming[0, 0], 0, a.closed[0, 0], 0, 60_000, row)


assert len(TIMEFRAMES_MIN) == TIMEFRAMES and (OPEN, HIGH, LOW) == (0, 1, 2)
