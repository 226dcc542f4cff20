"""Exchange bytes to ring records in one pass: frames, JSON by key, firewall, continuity.

`decode` takes what lies in a receive buffer. It goes frame by frame,

    81 LL ..            FIN + text, 7-bit length           81 7E LL LL ..      16-bit
    81 7F LL*8 ..       64-bit; the mask bit is never set by a server

and stops at the first thing that is not a whole unmasked text frame, with a code: an unfinished
frame (more bytes will come), anything unusual (control frame, fragment, masked, reserved bits: the
sans-I/O protocol takes it), or a reply to a request. It makes no Python object and holds no GIL.

Each event ends in exactly one counter: published (trades, quotes, marks), held, conflated,
waiting or dropped (see lane.py), klines, ignored (COIN-M rows, st = 2), unknown_events, malformed,
or one refused_ counter of the firewall, asked in this order: symbol, missing or unreadable fields
(malformed), digits beyond exactness, non-market print, time out of bounds, not positive, crossed,
duplicate, out of order. Time bounds hang on the newest exchange time seen, never on our clock.
A refused trade with the next id uses that id up, so that it leaves no hole.

A print more than FAR_SHARE from the last quote's mid and from the mark (from whichever is known)
is a real trade: published, flagged DEGRADED.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from feed.fields import INTEGER_MAX, find_row, value_of, walk_object
from feed.lane import (
    _AGE_MARK,
    _AGE_QUOTE,
    _AGE_TRADE,
    _SKIP,
    BOUND_MS,
    GAP_COUNT,
    HELD,
    HOLE,
    LAST_ID,
    LIVE,
    LOOSE_IDS,
    LOSSY,
    MARK_PRICE,
    MID,
    NEWEST_HELD,
    NEWEST_MS,
    STAT,
    STATUS,
    UNSURE,
    UPDATE_ID,
    WHOLE,
    Lane,
    commit,
    doubt,
    forget_doubt,
    free_slots,
    hold,
    overflow,
    put_candle,
    put_level,
    put_refused,
    put_trade,
    report,
    write,
)
from feed.lane import COUNT as HELD_COUNT
from feed.shape import EVENT as SHAPE_EVENT
from feed.shape import HEAD_WORDS, SEEN, STRANGE, learn, ones, take, walk_usual
from feed.walk import (
    BOOL,
    INEXACT,
    KEY_ST,
    KEY_TWO,
    MALFORMED,
    OTHER,
    SLACK_BYTES,
    TEXT,
    Bytes,
    Table,
    _word,
    inlined,
    kernel,
    load1,
    load8,
    skip_space,
    skip_value,
)
from records import (
    BUYER_MAKER,
    DEGRADED,
    HEALED,
    TIMEFRAME_NAMES,
    TIMEFRAMES_MIN,
    TRADE,
)
from ring import CHANNELS

FAR_SHARE: Final = 0.1  # of the reference; a real move of 10 % within one quote is news by itself
MS_MAX: Final = 9_000_000_000_000  # beyond it nanoseconds leave int64
NS_PER_MS: Final = 1_000_000

# Words of a connection's `state`.
NEWEST_HERE_MS, CODE, AT, END = range(4)  # newest E on it; why the pass stopped and where
SIDE: Final = 4  # 0 or 1: which of its link's two connections this is
MORE, UNUSUAL, REPLY = 0, 1, 2  # codes
EVENT, LIST, ANSWER, BROKEN = range(4)  # what a payload is
AGG, SINGLE, BOOK, MARK_EVENT, KLINE, STRANGER = range(6)  # events; trade is SINGLE
BYTES_PER_PASS_MAX: Final = 1 << 40

_E, _EVENT_MS, _S, _P, _Q, _T, _M = (ord(c) - 65 for c in "eEspqTm")
_A, _TRADE_NO, _U, _B, _BID_QTY, _ASK_QTY = (ord(c) - 65 for c in "atubBA")
_INDEX, _RATE, _X = (ord(c) - 65 for c in "irX")
_K, _OPEN_MS, _I, _N, _x, _O, _H, _L, _C, _V, _BOUGHT = (ord(c) - 65 for c in "ktinxohlcvV")
_CANDLE: Final = np.array([_O, _H, _L, _C, _V, _Q, _BOUGHT])
_INTERVALS: Final = np.array(
    [
        (len(name), int.from_bytes(name.encode(), "little"), minutes)
        for name, minutes in zip(TIMEFRAME_NAMES, TIMEFRAMES_MIN, strict=True)
    ]
)
_AGG_TRADE, _TRADE, _TRADE_MASK = _word(b"aggTrade"), _word(b"trade"), (1 << 40) - 1
_BOOK, _BOOK_TAIL = _word(b"bookTick"), _word(b"okTicker")
_MARK, _MARK_TAIL = _word(b"markPric"), _word(b"ceUpdate")
_KLINE, _MARKET, _MARKET_MASK = _word(b"kline"), _word(b"MARKET"), (1 << 48) - 1

_STREAM_KEY: Final = _word(b'{"stream')


def _letters(text: str) -> int:
    return sum(1 << (ord(letter) - 65) for letter in text)


_NEEDED: Final = np.array([_letters(x) for x in ("ETaspqm", "ETtspqm", "ETusbBaA", "ETspir")])
_KNOWN: Final = np.array(
    [
        _letters(x) | 1 << KEY_ST | 1 << KEY_TWO
        for x in ("eEaspqflTm", "eETstpqXm", "eusbBaATE", "eEspPirT", "eEsk")
    ]
)
_FIXED: Final = _letters("eX")  # values that belong to a layout: what it is, and that it is real

CHANNEL_COUNT: Final = len(CHANNELS)
_FRAMES, _BYTES = STAT["frames"], STAT["bytes"]
_TRADES_IN, _QUOTES_IN, _MARKS_IN = (
    STAT[name] for name in ("trades_received", "quotes_received", "marks_received")
)
_UNKNOWN, _MALFORMED, _KLINES, _IGNORED = (
    STAT[name] for name in ("unknown_events", "malformed", "klines", "ignored")
)
_NO_SYMBOL, _INEXACT, _NONMARKET, _TIME = (
    STAT[f"refused_{name}"] for name in ("symbol", "inexact", "nonmarket", "time")
)
_NONPOSITIVE, _CROSSED, _DUPLICATE, _ORDER = (
    STAT[f"refused_{name}"] for name in ("nonpositive", "crossed", "duplicate", "order")
)
_HOLES, _CONTROL, _UNKNOWN_KEYS = STAT["holes"], STAT["control"], STAT["unknown_keys"]


@inlined
def decimal_at(values: Table, letter: int, seen: int) -> tuple[float, int]:
    """(value, index of the counter that refuses it or -1) of a required decimal."""
    scale = values[letter, 1]
    if not seen >> letter & 1 or (scale < 0 and scale != INEXACT):
        return 0.0, _MALFORMED
    if scale < 0:
        return 0.0, _INEXACT
    value, exact = value_of(values[letter, 0], scale)
    return value, (-1 if exact else _INEXACT)


@inlined
def integer_at(values: Table, letter: int, seen: int) -> tuple[int, bool]:
    """(value, whether it is a whole number of at most 17 digits)."""
    value = values[letter, 0]
    right = seen >> letter & 1 and values[letter, 1] == 0
    return value, bool(right and -INTEGER_MAX < value < INTEGER_MAX)


@kernel
def optional_at(buffer: Bytes, values: Table, letter: int, seen: int) -> tuple[float, int]:
    """As decimal_at, but missing, null and "" mean 0."""
    empty = values[letter, 1] == TEXT and values[letter, 3] == 0
    if not seen >> letter & 1 or empty:
        return 0.0, -1
    return decimal_at(values, letter, seen)


@inlined
def event_times(values: Table, seen: int) -> tuple[int, int, bool]:
    """(event ms, ms of the record, both readable): either of E and T may be missing, not both."""
    event_ms, right = integer_at(values, _EVENT_MS, seen)
    trade_ms, trade_right = integer_at(values, _T, seen)
    if not seen >> _EVENT_MS & 1:
        return trade_ms, trade_ms, trade_right
    if not seen >> _T & 1:
        return event_ms, event_ms, right
    return event_ms, trade_ms, right and trade_right


@inlined
def in_time(lane: Lane, time_ms: int) -> bool:
    """Whether an exchange time lies within the bound around the newest one known."""
    newest, bound = lane.control[NEWEST_MS], lane.control[BOUND_MS]
    if time_ms <= 0 or time_ms >= MS_MAX:
        return False
    return newest == 0 or newest - bound <= time_ms <= newest + bound


@inlined
def advance(lane: Lane, state: Table, event_ms: int) -> None:
    """Remember the newest exchange time, of the lane and of this connection."""
    if event_ms > lane.control[NEWEST_MS]:
        lane.control[NEWEST_MS] = event_ms
    if event_ms > state[NEWEST_HERE_MS]:
        state[NEWEST_HERE_MS] = event_ms


@inlined
def hear(lane: Lane, state: Table, row: int, channel: int, event_ms: int, recv_ns: int) -> None:
    """Note that this connection delivers a channel, be it what the other one brought before."""
    lane.heard[row, state[SIDE] * CHANNEL_COUNT + channel] = recv_ns
    if event_ms > state[NEWEST_HERE_MS]:
        state[NEWEST_HERE_MS] = event_ms


@inlined
def is_market(buffer: Bytes, values: Table, seen: int, must: bool) -> bool:
    """X is MARKET; aggTrade has no X."""
    if not seen >> _X & 1:
        return not must
    if values[_X, 3] != 6 or values[_X, 1] >= 0:
        return False
    return (load8(buffer, values[_X, 2]) & _MARKET_MASK) == _MARKET


@kernel
def use_up(lane: Lane, row: int, number: int, recv_ns: int) -> None:
    """A refused trade takes its id with it if it is the next one, so that it leaves no hole."""
    symbol = lane.symbols[row]
    if symbol[STATUS] == HELD and symbol[HELD_COUNT] > 0:
        if number == symbol[NEWEST_HELD] + 1:
            hold(lane, row, _SKIP, 0, 0, number, 0.0, 0.0, 0)
    elif symbol[LAST_ID] > 0 and number == symbol[LAST_ID] + 1 and symbol[STATUS] != HELD:
        put_refused(lane, row, recv_ns, number)


@kernel
def trade_behind_hole(
    lane: Lane, row: int, exch_ns: int, recv_ns: int, number: int,
    price: float, qty: float, flags: int,
) -> None:  # fmt: skip
    """A trade that does not continue its symbol: it waits; a new hole is told to both sides."""
    symbol = lane.symbols[row]
    if symbol[STATUS] != HELD:
        lane.stats[_HOLES] += 1
        if symbol[STATUS] == LIVE:
            doubt(lane, row, recv_ns)
        symbol[STATUS] = HELD
        report(lane, row, HOLE)
    if not hold(lane, row, TRADE, exch_ns, recv_ns, number, price, qty, flags):
        overflow(lane, row, number, exch_ns)


@inlined
def on_trade(
    lane: Lane, state: Table, buffer: Bytes, row: int, seen: int, recv_ns: int, number: int,
    must_be_market: bool,
) -> int:  # fmt: skip
    """Firewall and continuity of one print; the counter that refuses it, or -1."""
    values = lane.values
    price, bad = decimal_at(values, _P, seen)
    qty, bad_qty = decimal_at(values, _Q, seen)
    event_ms, trade_ms, readable = event_times(values, seen)
    if not readable or not seen >> _M & 1 or values[_M, 1] != BOOL:
        return _MALFORMED
    if bad >= 0 or bad_qty >= 0:
        return _MALFORMED if bad == _MALFORMED or bad_qty == _MALFORMED else _INEXACT
    if not is_market(buffer, values, seen, must_be_market):
        return _NONMARKET
    if not in_time(lane, event_ms) or not in_time(lane, trade_ms):
        return _TIME
    if price <= 0.0 or qty <= 0.0:
        return _NONPOSITIVE
    hear(lane, state, row, _AGE_TRADE, event_ms, recv_ns)
    symbol = lane.symbols[row]
    status = symbol[STATUS]
    newest = symbol[LAST_ID]
    if status == HELD and symbol[HELD_COUNT] > 0:
        newest = symbol[NEWEST_HELD]
    if number <= newest:
        return _DUPLICATE if number == newest else _ORDER
    advance(lane, state, event_ms)
    lane.ages[row, _AGE_TRADE] = recv_ns
    flags = BUYER_MAKER * values[_M, 0]
    mid, mark = lane.levels[row, MID], lane.levels[row, MARK_PRICE]
    far = abs(price - mid) > FAR_SHARE * mid and abs(price - mark) > FAR_SHARE * mark
    if far and (mid > 0.0 or mark > 0.0):
        flags |= DEGRADED
    exch_ns = trade_ms * NS_PER_MS
    next_one = number == newest + 1 or newest == 0 or lane.control[LOOSE_IDS] != 0
    if status != HELD and next_one:
        if status == UNSURE:
            put_trade(lane, row, exch_ns, recv_ns, number, price, qty, flags)
            lossy = symbol[LOSSY] != 0 or symbol[GAP_COUNT] > 0
            if lossy or free_slots(lane, 0) > 0:  # else the next trade, or REST, makes it LIVE
                if not lossy:
                    write(lane, HEALED, row, exch_ns, recv_ns, number, 0.0, 0.0, 0.0, 0.0, 0)
                symbol[STATUS] = LIVE
                forget_doubt(lane, row)
                report(lane, row, WHOLE)
        else:
            put_trade(lane, row, exch_ns, recv_ns, number, price, qty, flags)
    else:
        trade_behind_hole(lane, row, exch_ns, recv_ns, number, price, qty, flags)
    return -1


@inlined
def on_quote(lane: Lane, state: Table, row: int, seen: int, recv_ns: int) -> int:
    """Firewall of one best bid and ask; the counter that refuses it, or -1."""
    values = lane.values
    bid, bad0 = decimal_at(values, _B, seen)
    bid_qty, bad1 = decimal_at(values, _BID_QTY, seen)
    ask, bad2 = decimal_at(values, _A, seen)
    ask_qty, bad3 = decimal_at(values, _ASK_QTY, seen)
    event_ms, quote_ms, readable = event_times(values, seen)
    number, right = integer_at(values, _U, seen)
    if not seen >> _U & 1:
        number, right = 0, True
    malformed = bad0 == _MALFORMED or bad1 == _MALFORMED or bad2 == _MALFORMED
    if not readable or not right or malformed or bad3 == _MALFORMED:
        return _MALFORMED
    if bad0 >= 0 or bad1 >= 0 or bad2 >= 0 or bad3 >= 0:
        return _INEXACT
    if not in_time(lane, event_ms) or not in_time(lane, quote_ms):
        return _TIME
    if bid <= 0.0 or bid_qty <= 0.0 or ask <= 0.0 or ask_qty <= 0.0:
        return _NONPOSITIVE
    if bid > ask:
        return _CROSSED
    hear(lane, state, row, _AGE_QUOTE, event_ms, recv_ns)
    symbol = lane.symbols[row]
    if 0 < number <= symbol[UPDATE_ID]:
        return _DUPLICATE if number == symbol[UPDATE_ID] else _ORDER
    symbol[UPDATE_ID] = max(symbol[UPDATE_ID], number)
    advance(lane, state, event_ms)
    lane.ages[row, _AGE_QUOTE] = recv_ns
    lane.levels[row, MID] = 0.5 * (bid + ask)
    put_level(lane, 0, row, quote_ms * NS_PER_MS, recv_ns, number, bid, bid_qty, ask, ask_qty)
    return -1


@kernel
def on_mark(lane: Lane, state: Table, buffer: Bytes, row: int, seen: int, recv_ns: int) -> int:
    """Firewall of one mark price; the counter that refuses it, or -1. T is the next funding."""
    values = lane.values
    price, bad0 = decimal_at(values, _P, seen)
    index, bad1 = optional_at(buffer, values, _INDEX, seen)
    rate, bad2 = optional_at(buffer, values, _RATE, seen)
    event_ms, readable = integer_at(values, _EVENT_MS, seen)
    next_ms, right = integer_at(values, _T, seen)
    if not seen >> _T & 1 or (values[_T, 1] == TEXT and values[_T, 3] == 0):
        next_ms, right = 0, True
    malformed = bad0 == _MALFORMED or bad1 == _MALFORMED or bad2 == _MALFORMED
    if not readable or not right or malformed:
        return _MALFORMED
    if bad0 >= 0 or bad1 >= 0 or bad2 >= 0:
        return _INEXACT
    if not in_time(lane, event_ms):
        return _TIME
    if price <= 0.0:
        return _NONPOSITIVE
    hear(lane, state, row, _AGE_MARK, event_ms, recv_ns)
    advance(lane, state, event_ms)
    lane.ages[row, _AGE_MARK] = recv_ns
    lane.levels[row, MARK_PRICE] = price
    put_level(lane, 1, row, event_ms * NS_PER_MS, recv_ns, 0, price, index, rate, float(next_ms))
    return -1


@kernel
def timeframe_min(buffer: Bytes, at: int, size: int) -> int:
    """Minutes of an interval by its name, 0 for one that no candle is made of here."""
    for index in range(len(_INTERVALS)):
        name = _INTERVALS[index]
        if size == name[0] and (load8(buffer, at) & ((1 << 8 * size) - 1)) == name[1]:
            return name[2]
    return 0


@kernel
def on_kline(lane: Lane, state: Table, buffer: Bytes, row: int, seen: int, recv_ns: int) -> int:
    """Firewall of one candle; a closed one is published as BAR and BAR_VOLUME."""
    values = lane.values
    event_ms, right = integer_at(values, _EVENT_MS, seen)
    if not seen >> _K & 1 or values[_K, 1] != OTHER or load1(buffer, values[_K, 2]) != 0x7B:
        return _MALFORMED
    _, seen, _ = walk_object(buffer, values[_K, 2], len(buffer) - SLACK_BYTES, values, 3)
    open_ms, sound = integer_at(values, _OPEN_MS, seen)
    trades, counted = integer_at(values, _N, seen)
    named = seen >> _I & 1 and values[_I, 3] > 0
    if not (right and sound and counted and named and seen >> _x & 1 and values[_x, 1] == BOOL):
        return _MALFORMED
    for letter in _CANDLE:
        _, bad = decimal_at(values, letter, seen)
        if bad >= 0:
            return bad
    if not in_time(lane, event_ms) or open_ms <= 0 or open_ms > event_ms:
        return _TIME
    first, highest = decimal_at(values, _O, seen)[0], decimal_at(values, _H, seen)[0]
    lowest, last = decimal_at(values, _L, seen)[0], decimal_at(values, _C, seen)[0]
    if lowest <= 0.0 or highest < max(first, last) or lowest > min(first, last):
        return _NONPOSITIVE
    minutes = timeframe_min(buffer, values[_I, 2], values[_I, 3])
    if minutes == 0 or values[_x, 0] == 0:  # it is still forming, or no candle of ours
        return -1
    advance(lane, state, event_ms)
    volume, quoted = decimal_at(values, _V, seen)[0], decimal_at(values, _Q, seen)[0]
    bought = decimal_at(values, _BOUGHT, seen)[0]
    put_candle(
        lane, row, open_ms * NS_PER_MS, recv_ns, minutes, first, highest, lowest, last, volume,
        quoted, bought, float(trades),
    )  # fmt: skip
    return -1


@inlined
def find_event_row(lane: Lane, buffer: Bytes, seen: int) -> tuple[int, int]:
    """(row of the event's symbol, the counter that refuses it or -1)."""
    values = lane.values
    if seen >> KEY_ST & 1 and values[KEY_ST, 0] == 2 and values[KEY_ST, 1] == 0:
        return -1, _IGNORED
    if not seen >> _S & 1 or values[_S, 3] < 0:
        return -1, _MALFORMED
    row = find_row(buffer, values[_S, 2], values[_S, 3], lane.table, lane.names)
    return row, (-1 if row >= 0 else _NO_SYMBOL)


@inlined
def event_code(buffer: Bytes, values: Table, seen: int) -> int:
    """Which event a walked object is."""
    size = values[_E, 3] if seen >> _E & 1 and values[_E, 1] == TEXT else 0
    word = load8(buffer, values[_E, 2]) if size > 0 else 0
    if size == 8 and word == _AGG_TRADE:
        return AGG
    if size == 5 and word & _TRADE_MASK == _TRADE:
        return SINGLE
    if size == 10 and word == _BOOK and load8(buffer, values[_E, 2] + 2) == _BOOK_TAIL:
        return BOOK
    if size == 15 and word == _MARK and load8(buffer, values[_E, 2] + 7) == _MARK_TAIL:
        return MARK_EVENT
    return KLINE if size == 5 and word & _TRADE_MASK == _KLINE else STRANGER


@inlined
def on_event(
    lane: Lane, state: Table, buffer: Bytes, event: int, seen: int, recv_ns: int, sure: bool
) -> None:
    """One object whose values were read; `sure` when its X and st are known to be right."""
    values, stats = lane.values, lane.stats
    if event in (AGG, SINGLE):
        stats[_TRADES_IN] += 1
        row, refused = find_event_row(lane, buffer, seen)
        if refused < 0:
            number, right = integer_at(values, _A if event == AGG else _TRADE_NO, seen)
            refused = _MALFORMED
            if right and number > 0:
                must = event == SINGLE and not sure
                refused = on_trade(lane, state, buffer, row, seen, recv_ns, number, must)
                if refused >= 0:
                    use_up(lane, row, number, recv_ns)
    elif event == BOOK:
        stats[_QUOTES_IN] += 1
        row, refused = find_event_row(lane, buffer, seen)
        if refused < 0:
            refused = on_quote(lane, state, row, seen, recv_ns)
    elif event == MARK_EVENT:
        stats[_MARKS_IN] += 1
        row, refused = find_event_row(lane, buffer, seen)
        if refused < 0:
            refused = on_mark(lane, state, buffer, row, seen, recv_ns)
    elif event == KLINE:
        stats[_KLINES] += 1
        row, refused = find_event_row(lane, buffer, seen)
        if refused < 0:
            refused = on_kline(lane, state, buffer, row, seen, recv_ns)
    else:
        refused = _UNKNOWN
    if refused >= 0:
        stats[refused] += 1


@kernel
def strange_keys(event: int, seen: int) -> int:
    """How many keys were seen that this event is not known to have; long ones count once."""
    return ones(seen & ~_KNOWN[event]) if event <= KLINE else 0


@kernel
def learn_layout(lane: Lane, buffer: Bytes, at: int, end: int, event: int, seen: int) -> bool:
    """Have the layout of a frame remembered that no shape took, if it is one of the hot events.

    Whether the values must be read again.
    """
    values = lane.values
    futures = not seen >> KEY_ST & 1 or (values[KEY_ST, 0] == 1 and values[KEY_ST, 1] == 0)
    if event > MARK_EVENT or not futures or not is_market(buffer, values, seen, event == SINGLE):
        return False
    combined = load8(buffer, at) == _STREAM_KEY
    return learn(
        buffer, at, end, event, _NEEDED[event], _FIXED, _S, combined, seen,
        strange_keys(event, seen), values, lane.shapes,
    )  # fmt: skip


@kernel
def walk_unusual(lane: Lane, buffer: Bytes, at: int, end: int) -> tuple[int, int, int, int]:
    """(kind, event, letters seen, position of a list's first element or -1) of any payload."""
    values = lane.values
    kind, seen, element = walk_document(buffer, at, end, values)
    if kind != EVENT:
        return kind, STRANGER, seen, (element if kind == LIST else -1)
    event = event_code(buffer, values, seen)
    if event < KLINE and learn_layout(lane, buffer, at, end, event, seen):
        kind, seen, _ = walk_document(buffer, at, end, values)
    lane.stats[_UNKNOWN_KEYS] += strange_keys(event, seen)
    return kind, event, seen, -1


@kernel
def next_element(buffer: Bytes, at: int, end: int, values: Table) -> tuple[int, int]:
    """Walk the element at `at` of a checked array; (position of the next element or -1, seen).

    seen is -1 for an element that is no object.
    """
    seen = -1
    if load1(buffer, at) == 0x7B:
        at, seen, _ = walk_object(buffer, at, end, values, 1)
    else:
        at = skip_value(buffer, at, end, 1)
    at = skip_space(buffer, at, end)
    if load1(buffer, at) != 0x2C:
        return -1, seen
    return skip_space(buffer, at + 1, end), seen


@kernel
def walk_document(buffer: Bytes, at: int, end: int, values: Table) -> tuple[int, int, int]:
    """Any JSON text at all, checked to its end before it is believed.

    (EVENT, seen, 0), (LIST, 0, position of the first element), (ANSWER, 0, 0) or (BROKEN, 0, 0).
    """
    start = skip_space(buffer, at, end)
    first = load1(buffer, start) if start < end else 0
    seen, data, after = 0, -1, MALFORMED
    if first == 0x7B:
        after, seen, data = walk_object(buffer, start, end, values, 1)
    elif first == 0x5B:
        after, data = skip_value(buffer, start, end, 0), start
    if after < 0 or skip_space(buffer, after, end) != end:
        return BROKEN, 0, 0
    if data >= 0 and load1(buffer, data) == 0x5B:
        element = skip_space(buffer, data + 1, end)
        return LIST, 0, (element if load1(buffer, element) != 0x5D else -1)
    if data >= 0:
        _, seen, _ = walk_object(buffer, data, end, values, 2)
    elif not seen >> _E & 1:
        return ANSWER, 0, 0
    return EVENT, seen, 0


@inlined
def frame_span(buffer: Bytes, start: int, end: int) -> tuple[int, int, int]:
    """(code, first byte of the payload, byte after it) of the frame at `start`."""
    if end - start < 2:
        return MORE, 0, 0
    if load1(buffer, start) != 0x81:
        return UNUSUAL, 0, 0
    size, at = load1(buffer, start + 1), start + 2
    if size >= 0x80:
        return UNUSUAL, 0, 0
    if size >= 126:
        wide = 2 if size == 126 else 8
        if end - at < wide:
            return MORE, 0, 0
        size = 0
        for place in range(at, at + wide):
            size = size << 8 | load1(buffer, place)
        at += wide
        if size < 0 or size > BYTES_PER_PASS_MAX:
            return UNUSUAL, 0, 0
    return (MORE if at + size > end else REPLY), at, at + size


@kernel
def decode(buffer: Bytes, start: int, end: int, recv_ns: int, state: Table, lane: Lane) -> int:
    """Take every whole text frame of buffer[start:end]; the position after the last one taken.

    state[CODE] says why it stopped: MORE bytes are needed, the frame there is UNUSUAL, or the one
    just taken is a REPLY whose payload lies at state[AT]:state[END].
    """
    state[CODE] = MORE
    frames, begin, element, after = 0, start, -1, start
    values, shapes = lane.values, lane.shapes
    while True:
        which = -1
        if element >= 0:
            element, seen = next_element(buffer, element, after, values)
            kind = EVENT if seen >= 0 else BROKEN
            event = event_code(buffer, values, seen) if seen >= 0 else STRANGER
            lane.stats[_UNKNOWN_KEYS] += strange_keys(event, seen)
        else:
            code, at, after = frame_span(buffer, start, end)
            if code != REPLY:
                state[CODE] = code
                break
            frames += 1
            start = after
            which = walk_usual(buffer, at, after, values, shapes)
            if which >= 0:
                kind, head = EVENT, which * HEAD_WORDS
                event = take(shapes.heads, head + SHAPE_EVENT)
                seen = take(shapes.heads, head + SEEN)
                lane.stats[_UNKNOWN_KEYS] += take(shapes.heads, head + STRANGE)
            else:
                kind, event, seen, element = walk_unusual(lane, buffer, at, after)
        if kind == EVENT:
            on_event(lane, state, buffer, event, seen, recv_ns, which >= 0)
        elif kind == BROKEN:
            lane.stats[_MALFORMED] += 1
        elif kind == ANSWER:
            lane.stats[_CONTROL] += 1
            state[CODE], state[AT], state[END] = REPLY, at, after
            break
    lane.stats[_FRAMES] += frames
    lane.stats[_BYTES] += start - begin
    commit(lane)
    return start
