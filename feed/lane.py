"""One lane's state and the kernels that write its ring: order, waiting, conflation, holes.

What the ring gets is, per symbol, trades with consecutive ids, or a GAP that names what is
missing. A symbol is in one of three states:

    LIVE    trades are published as they come
    UNSURE  the socket was down: the next trade tells; if it continues, HEALED and LIVE
    HELD    history or a hole is being fetched; trades wait in the side buffer

A hole turns LIVE into HELD: GAP with count 0 is published ("from this id on something is missing,
nothing is lost yet"), the trades behind it wait, Python fetches. When the side buffer is full, or
the ring has no room, nothing is dropped silently: the symbol keeps one pending hole (first id,
count), published as GAP with that count, and b .. c the market ms it spans, as soon as there is
room and before anything else of the symbol; lost_trades counts what was told so. The GAP with
count 0 waits for room too, and is forgotten if the symbol is LIVE again before. Ids of refused
prints are told by a GAP with flag REFUSED. Quotes and marks are conflated: once less than a quarter
of the ring is free, the newest per symbol waits, replaced ones are counted. Trades may use the last
slot.

`last_ids`, the restarted feed's memory, is written after the head: a feed that dies between
the two publishes a trade twice, never not at all. Counters are exact within one life of the feed;
one that dies within a pass has counted, at most, that pass's records without publishing them.
`lost` is its memory of what bars still need a correction, written before the GAP is visible.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from barrier import publish, room
from feed.fields import NAME_BYTES, Names, build_table
from feed.shape import Shapes, make_shapes
from feed.walk import LETTERS, SLACK_BYTES, Table, inlined, kernel
from records import (
    BAR,
    BAR_VOLUME,
    CLOSED,
    EXCHANGE,
    GAP,
    HEALED,
    MARK,
    QUOTE,
    RECORD,
    REFUSED,
    TRADE,
)
from ring import CHANNELS, FEED_COUNTERS, HEAD, TAIL, Ring

Slots = npt.NDArray[Any]  # RECORD

SIDE_SLOTS: Final = 65_536  # 4 MiB: trades of a lane that wait for a hole to be filled
RESERVE: Final = 4  # quotes and marks leave 1 / RESERVE of the ring to trades
HISTORY_RESERVE: Final = 2  # bars and healed trades leave half of it to the live market

NS_PER_MS: Final = 1_000_000

LIVE, UNSURE, HELD = 0, 1, 2
# Columns of `symbols`.
STATUS, REPORT, FIRST, LAST, COUNT, NEWEST_HELD, LAST_ID, LAST_NS = range(8)
GAP_FIRST, GAP_COUNT, LOST_FROM_NS, LOST_TO_NS, UPDATE_ID, WAITING = range(8, 14)
LOSSY: Final = 14  # 1 from a GAP with a count to the correction of its bars: not HEALED before
SYMBOL_COLUMNS: Final = 16
DOUBT: Final = 4  # bit of WAITING, beside those of quote and mark: a GAP with count 0 waits
# Bits of REPORT: what Python must look at.
HOLE, LOST, WHOLE = 1, 2, 4
# Columns of `levels`: the robust references of a price.
MID, MARK_PRICE = 0, 1
# Words of `control`. LOOSE_IDS: 1 takes ids that only rise, from streams made for a benchmark.
NEWEST_MS, BOUND_MS, SIDE_FREE, PENDING, REPORTS, PUBLISHED, LOOSE_IDS = range(7)

UNKNOWN_SPAN_MS: Final = 2 * 3_600_000  # a loss that began at an unknown time: 1m bars of a warm-up

STAT: Final = {name: index for index, name in enumerate(FEED_COUNTERS)}
_TRADES, _QUOTES, _MARKS = STAT["trades"], STAT["quotes"], STAT["marks"]
_HELD, _DROPPED, _LOST = STAT["held"], STAT["dropped_trades"], STAT["lost_trades"]
_CONFLATED, _WAITING, _DEGRADED = STAT["conflated"], STAT["waiting"], STAT["degraded_prints"]
_HEALED_TRADES, _BARS, _DUPLICATE = STAT["healed_trades"], STAT["bars"], STAT["refused_duplicate"]
_AGE_TRADE, _AGE_QUOTE, _AGE_MARK = (CHANNELS.index(name) for name in ("trade", "quote", "mark"))
_KLINES_DROPPED = STAT["klines_dropped"]
_SKIP = 0  # kind of a waiting record whose id is used up but which the firewall refused
_DEGRADED_FLAG = 2


class Lane(NamedTuple):
    """Every array a kernel needs; those up to `ages` are the ring's own."""

    words: Table
    slots: Slots
    stats: Table
    last_ids: Table
    lost: Table
    ages: Table
    cursor: Table  # (next sequence to write, tail as last seen)
    control: Table
    symbols: Table  # [rows, SYMBOL_COLUMNS]
    levels: npt.NDArray[np.float64]  # [rows, 2]
    waiting: Slots  # [2 * rows]: newest quote, newest mark that found no room
    side: Slots  # [SIDE_SLOTS]
    side_next: Table  # [SIDE_SLOTS]: linked lists, one a symbol and one of the free places
    table: Table
    names: Names  # rows * NAME_BYTES, flat, with slack
    values: Table
    shapes: Shapes  # layouts of frames that were seen
    heard: Table  # [rows, 2 * len(CHANNELS)]: as ages, per side of a link, duplicates included


def make_lane(ring: Ring, side_slots: int = SIDE_SLOTS) -> Lane:
    """A writer's state over a mapped ring, going on at its head; no symbol is known yet."""
    rows = len(ring.symbols)
    size = 1 << max(4, (4 * rows - 1).bit_length())
    control = np.zeros(16, np.int64)
    control[PUBLISHED] = int(ring.words[HEAD])
    side_next = np.arange(1, side_slots + 1, dtype=np.int64)
    side_next[-1] = -1
    ring.feed_stats[_DROPPED] += ring.feed_stats[_HELD]  # what waited in a writer that died
    ring.feed_stats[_CONFLATED] += ring.feed_stats[_WAITING]
    ring.feed_stats[[_HELD, _WAITING]] = 0
    return Lane(
        words=ring.words,
        slots=ring.slots,
        stats=ring.feed_stats,
        last_ids=ring.last_ids,
        lost=ring.lost,
        ages=ring.ages,
        cursor=np.array([ring.words[HEAD], ring.words[TAIL]], np.int64),
        control=control,
        symbols=np.zeros((rows, SYMBOL_COLUMNS), np.int64),
        levels=np.zeros((rows, 2), np.float64),
        waiting=np.zeros(2 * rows, RECORD),
        side=np.zeros(side_slots, RECORD),
        side_next=side_next,
        table=np.full(size, -1, np.int64),
        names=np.zeros(rows * NAME_BYTES + SLACK_BYTES, np.uint8),
        values=np.zeros((LETTERS, 4), np.int64),
        shapes=make_shapes(),
        heard=np.zeros((rows, 2 * len(CHANNELS)), np.int64),
    )


def set_symbol(lane: Lane, row: int, name: str, status: int, last_id: int) -> None:
    """Make `name` known as `row`. Raises ValueError for a name that a row cannot hold."""
    raw = name.encode()
    if not 0 < len(raw) < NAME_BYTES:
        raise ValueError(f"symbol name {name!r} does not fit {NAME_BYTES - 1} bytes")
    clear_symbol(lane, row)
    padded = raw.ljust(NAME_BYTES - 1, b"\0") + bytes([len(raw)])
    lane.names[row * NAME_BYTES : (row + 1) * NAME_BYTES] = np.frombuffer(padded, np.uint8)
    lane.symbols[row, STATUS], lane.symbols[row, LAST_ID] = status, last_id
    build_table(lane.table, lane.names, len(lane.symbols))


def clear_symbol(lane: Lane, row: int) -> None:
    """Forget a row; its waiting trades are counted as dropped."""
    drop_waiting(lane, row)
    lane.symbols[row] = 0
    lane.symbols[row, FIRST] = lane.symbols[row, LAST] = -1
    lane.levels[row] = 0.0
    lane.ages[row] = 0
    lane.heard[row] = 0
    lane.names[row * NAME_BYTES : (row + 1) * NAME_BYTES] = 0
    build_table(lane.table, lane.names, len(lane.symbols))


@inlined
def write(
    lane: Lane, kind: int, row: int, exch_ns: int, recv_ns: int, number: int,
    a: float, b: float, c: float, d: float, flags: int,
) -> None:  # fmt: skip
    """Fill the next slot; the caller has made sure of room, and commits."""
    record = lane.slots[lane.cursor[0] & (len(lane.slots) - 1)]
    record.exch_ns = exch_ns
    record.recv_ns = recv_ns
    record.id = number
    record.a, record.b, record.c, record.d = a, b, c, d
    record.symbol, record.kind, record.flags, record.aux = row, kind, flags, 0
    lane.cursor[0] += 1


@inlined
def free_slots(lane: Lane, reserve: int) -> int:
    """Slots that may be written while `reserve` stay free; the tail is read again when short."""
    slots = len(lane.slots)
    free = slots - (lane.cursor[0] - lane.cursor[1]) - reserve
    if free <= 0:
        lane.cursor[1] = lane.cursor[0] - slots  # forget the cached tail, so that room() looks
        free = room(lane.words, lane.cursor, slots) - reserve
    return free


@kernel
def commit(lane: Lane) -> None:
    """Publish what was written, then remember the last id of each symbol in it."""
    head = lane.cursor[0]
    if head == lane.control[PUBLISHED]:
        return
    publish(lane.words, lane.cursor)
    for sequence in range(lane.control[PUBLISHED], head):
        record = lane.slots[sequence & (len(lane.slots) - 1)]
        if record.kind == TRADE:
            lane.last_ids[record.symbol] = record.id
        elif record.kind == GAP and record.a > 0:
            end = record.id + int(record.a) - 1
            lane.last_ids[record.symbol] = max(lane.last_ids[record.symbol], end)
        elif record.kind == HEALED and record.id > 0:
            lane.last_ids[record.symbol] = record.id
    lane.control[PUBLISHED] = head


@kernel
def report(lane: Lane, row: int, what: int) -> None:
    """Tell Python to look at this symbol."""
    lane.symbols[row, REPORT] |= what
    lane.control[REPORTS] += 1


@kernel
def lose(lane: Lane, row: int, first: int, count: int, from_ns: int, to_ns: int) -> None:
    """Extend the symbol's pending hole; holes of one symbol are always adjacent. 0: from a time
    that nobody knows."""
    symbol = lane.symbols[row]
    if from_ns <= 0:
        from_ns = to_ns - UNKNOWN_SPAN_MS * NS_PER_MS
    if symbol[GAP_COUNT] == 0:
        symbol[GAP_FIRST] = first
        lane.control[PENDING] += 1
    if symbol[LOST_TO_NS] == 0 or from_ns < symbol[LOST_FROM_NS]:
        symbol[LOST_FROM_NS] = from_ns
    symbol[LOST_TO_NS] = max(symbol[LOST_TO_NS], to_ns)
    symbol[GAP_COUNT] = first + count - symbol[GAP_FIRST]
    symbol[LAST_ID] = first + count - 1


def take_loss(lane: Lane, row: int) -> tuple[int, int]:
    """Market ms (from, to) of what was lost since this was asked last. A hole that waits for room
    keeps its times: it is told, and asked for, once more."""
    symbol = lane.symbols[row]
    from_ns, to_ns = int(symbol[LOST_FROM_NS]), int(symbol[LOST_TO_NS])
    if symbol[GAP_COUNT] == 0:
        symbol[LOST_FROM_NS] = symbol[LOST_TO_NS] = 0
    return from_ns // NS_PER_MS, to_ns // NS_PER_MS


@kernel
def note_loss(lane: Lane, row: int, from_ms: int, to_ms: int) -> None:
    """Remember over deaths that bars between two market times need a correction."""
    lost = lane.lost[row]
    if lost[1] == 0 or from_ms < lost[0]:
        lost[0] = from_ms
    lost[1] = max(lost[1], to_ms)


@kernel
def put_gap(lane: Lane, row: int, recv_ns: int) -> bool:
    """Publish the symbol's pending hole if there is room; whether none is left."""
    symbol = lane.symbols[row]
    if symbol[GAP_COUNT] == 0:
        return True
    if free_slots(lane, 0) <= 0:
        return False
    count = float(symbol[GAP_COUNT])
    from_ms, to_ms = symbol[LOST_FROM_NS] // NS_PER_MS, symbol[LOST_TO_NS] // NS_PER_MS
    note_loss(lane, row, from_ms, to_ms)
    write(
        lane, GAP, row, symbol[LOST_TO_NS], recv_ns, symbol[GAP_FIRST], count, float(from_ms),
        float(to_ms), 0.0, 0,
    )  # fmt: skip
    lane.stats[_LOST] += symbol[GAP_COUNT]
    symbol[GAP_COUNT], symbol[LOSSY] = 0, 1
    lane.control[PENDING] -= 1
    report(lane, row, LOST)
    return True


@kernel
def doubt(lane: Lane, row: int, recv_ns: int) -> None:
    """Tell that trades may be missing after the symbol's last one; later if there is no room."""
    symbol = lane.symbols[row]
    if put_gap(lane, row, recv_ns) and free_slots(lane, 0) > 0:
        first = symbol[LAST_ID] + 1
        write(lane, GAP, row, symbol[LAST_NS], recv_ns, first, 0.0, 0.0, 0.0, 0.0, 0)
        forget_doubt(lane, row)
    elif not symbol[WAITING] & DOUBT:
        symbol[WAITING] |= DOUBT
        lane.control[PENDING] += 1
    commit(lane)  # the pending hole may have had the last room


@kernel
def forget_doubt(lane: Lane, row: int) -> None:
    """What was not told yet need not be told any more."""
    symbol = lane.symbols[row]
    if symbol[WAITING] & DOUBT:
        symbol[WAITING] &= ~DOUBT
        lane.control[PENDING] -= 1


@kernel
def put_refused(lane: Lane, row: int, recv_ns: int, number: int) -> None:
    """A refused print takes the symbol's next id with it: say so, or the reader sees a hole."""
    symbol = lane.symbols[row]
    if put_gap(lane, row, recv_ns) and free_slots(lane, 0) > 0:
        last_ns = symbol[LAST_NS]
        write(lane, GAP, row, last_ns, recv_ns, number, 1.0, 0.0, 0.0, 0.0, REFUSED)
        symbol[LAST_ID] = number
    else:
        last_ns = symbol[LAST_NS] if symbol[LAST_NS] > 0 else lane.control[NEWEST_MS] * NS_PER_MS
        lose(lane, row, number, 1, last_ns, last_ns)


@inlined
def put_trade(
    lane: Lane, row: int, exch_ns: int, recv_ns: int, number: int,
    price: float, qty: float, flags: int,
) -> None:  # fmt: skip
    """Publish a trade that continues the symbol, or add it to the pending hole."""
    symbol = lane.symbols[row]
    if symbol[GAP_COUNT] > 0:
        put_gap(lane, row, recv_ns)
    if symbol[GAP_COUNT] > 0 or free_slots(lane, 0) <= 0:
        lose(lane, row, number, 1, symbol[LAST_NS], exch_ns)
        lane.stats[_DROPPED] += 1
        return
    write(lane, TRADE, row, exch_ns, recv_ns, number, price, qty, 0.0, 0.0, flags)
    symbol[LAST_ID], symbol[LAST_NS] = number, exch_ns
    lane.stats[_TRADES] += 1
    lane.stats[_DEGRADED] += flags >> 1 & 1


@kernel
def hold(
    lane: Lane, row: int, kind: int, exch_ns: int, recv_ns: int, number: int,
    price: float, qty: float, flags: int,
) -> bool:  # fmt: skip
    """Append a trade to the symbol's waiting ones; False when the side buffer is full."""
    place = lane.control[SIDE_FREE]
    if place < 0:
        return False
    lane.control[SIDE_FREE] = lane.side_next[place]
    lane.side_next[place] = -1
    record = lane.side[place]
    record.exch_ns, record.recv_ns, record.id = exch_ns, recv_ns, number
    record.a, record.b, record.kind, record.flags = price, qty, kind, flags
    symbol = lane.symbols[row]
    if symbol[COUNT] == 0:
        symbol[FIRST] = place
    else:
        lane.side_next[symbol[LAST]] = place
    symbol[LAST] = place
    symbol[COUNT] += 1
    symbol[NEWEST_HELD] = number
    lane.stats[_HELD] += 1 if kind == TRADE else 0
    return True


@kernel
def pop_held(lane: Lane, row: int) -> int:
    """Take the symbol's first waiting trade; its place stays readable until the next hold."""
    symbol = lane.symbols[row]
    place = symbol[FIRST]
    symbol[FIRST] = lane.side_next[place]
    symbol[COUNT] -= 1
    lane.side_next[place] = lane.control[SIDE_FREE]
    lane.control[SIDE_FREE] = place
    lane.stats[_HELD] -= 1 if lane.side[place].kind == TRADE else 0
    return place


@kernel
def drop_waiting(lane: Lane, row: int) -> None:
    """Throw away what waits for a symbol that is going; counted."""
    symbol = lane.symbols[row]
    while symbol[COUNT] > 0:
        place = pop_held(lane, row)
        lane.stats[_DROPPED] += 1 if lane.side[place].kind == TRADE else 0
    for which in range(2):
        if symbol[WAITING] >> which & 1:
            lane.stats[_CONFLATED] += 1
            lane.stats[_WAITING] -= 1
            lane.control[PENDING] -= 1
    if symbol[GAP_COUNT] > 0:
        lane.control[PENDING] -= 1
    forget_doubt(lane, row)
    symbol[WAITING] = symbol[GAP_COUNT] = 0


@kernel
def overflow(lane: Lane, row: int, number: int, exch_ns: int) -> None:
    """The side buffer is full: the hole, all that waits behind it and this trade become one hole.

    Dearer than to publish the waiting ones, but it needs no room in the ring, keeps holes adjacent
    and leaves the bars to the klines, which are exact. Of a symbol whose history is not there yet
    nothing was promised: it stays HELD, and its history reaches up to the next trade that waits.
    """
    symbol = lane.symbols[row]
    first = symbol[LAST_ID] + 1
    while symbol[COUNT] > 0:
        place = pop_held(lane, row)
        lane.stats[_DROPPED] += 1 if lane.side[place].kind == TRADE else 0
    lane.stats[_DROPPED] += 1
    if symbol[LAST_ID] == 0:
        return
    lose(lane, row, first, number - first + 1, symbol[LAST_NS], exch_ns)
    symbol[STATUS] = LIVE
    forget_doubt(lane, row)


@kernel
def release(lane: Lane, row: int, recv_ns: int) -> int:
    """Publish what waits for a symbol whose hole is closed; HEALED too if all its bars are right.

    0 it is LIVE, 1 the ring is short of room: call again, 2 another hole lies between the waiting
    trades.
    """
    symbol = lane.symbols[row]
    while symbol[COUNT] > 0:
        if free_slots(lane, 1) <= 0:
            commit(lane)
            return 1
        record = lane.side[symbol[FIRST]]
        if symbol[LAST_ID] > 0 and record.id > symbol[LAST_ID] + 1:
            commit(lane)
            return 2
        pop_held(lane, row)  # its place stays readable until the next hold
        if record.id <= symbol[LAST_ID]:
            lane.stats[_DUPLICATE] += 1 if record.kind == TRADE else 0  # REST brought it already
        elif record.kind == TRADE:
            put_trade(
                lane, row, record.exch_ns, record.recv_ns, record.id, record.a, record.b,
                record.flags,
            )  # fmt: skip
        else:
            put_refused(lane, row, recv_ns, record.id)
    if symbol[GAP_COUNT] > 0 or free_slots(lane, 0) <= 0:
        commit(lane)
        return 1
    symbol[STATUS] = LIVE
    forget_doubt(lane, row)
    if symbol[LOSSY] == 0:
        write(lane, HEALED, row, symbol[LAST_NS], recv_ns, symbol[LAST_ID], 0.0, 0.0, 0.0, 0.0, 0)
    commit(lane)
    return 0


@kernel
def emit(lane: Lane, records: Slots, begin: int) -> int:
    """Publish records[begin:] as far as there is room; the index after the last one written.

    Half of the ring stays free for the live market. A BAR and its BAR_VOLUME go together. A pending
    hole of the symbol goes first; trades, and a loss, that the symbol is past already are left out.
    """
    free = free_slots(lane, len(lane.slots) // HISTORY_RESERVE)
    stop = min(len(records), begin + max(free, 0))
    if 0 < stop < len(records) and records[stop - 1].kind == BAR:  # never between the two halves
        stop -= 1
    for index in range(begin, stop):
        record = records[index]
        if record.symbol < len(lane.symbols):
            if not put_gap(lane, record.symbol, record.recv_ns):
                stop = index
                break
            counted = record.kind == TRADE or (record.kind == GAP and record.a > 0)
            if counted and record.id <= lane.symbols[record.symbol, LAST_ID]:
                continue
        lane.slots[lane.cursor[0] & (len(lane.slots) - 1)] = record
        lane.cursor[0] += 1
        if record.kind == TRADE:
            symbol = lane.symbols[record.symbol]
            symbol[LAST_ID], symbol[LAST_NS] = record.id, record.exch_ns
            lane.stats[_HEALED_TRADES] += 1
        elif record.kind == BAR:
            lane.stats[_BARS] += 1
        elif record.kind == GAP and record.a > 0 and record.flags & REFUSED == 0:
            note_loss(lane, record.symbol, int(record.b), int(record.c))
    commit(lane)
    return max(stop, begin)


@inlined
def put_level(
    lane: Lane, which: int, row: int, exch_ns: int, recv_ns: int, number: int,
    a: float, b: float, c: float, d: float,
) -> None:  # fmt: skip
    """Publish a quote (which = 0) or mark (1); if trades need the room, the newest waits."""
    symbol = lane.symbols[row]
    bit = 1 << which
    if free_slots(lane, len(lane.slots) // RESERVE) > 0:
        if symbol[WAITING] & bit:  # older than this one: replaced
            symbol[WAITING] &= ~bit
            lane.control[PENDING] -= 1
            lane.stats[_WAITING] -= 1
            lane.stats[_CONFLATED] += 1
        write(lane, QUOTE if which == 0 else MARK, row, exch_ns, recv_ns, number, a, b, c, d, 0)
        lane.stats[_QUOTES if which == 0 else _MARKS] += 1
        return
    if symbol[WAITING] & bit:
        lane.stats[_CONFLATED] += 1
    else:
        symbol[WAITING] |= bit
        lane.control[PENDING] += 1
        lane.stats[_WAITING] += 1
    record = lane.waiting[2 * row + which]
    record.exch_ns, record.recv_ns, record.id = exch_ns, recv_ns, number
    record.a, record.b, record.c, record.d = a, b, c, d


@kernel
def put_candle(
    lane: Lane, row: int, open_ns: int, recv_ns: int, minutes: int, a: float, b: float, c: float,
    d: float, volume: float, quoted: float, bought: float, trades: float,
) -> None:  # fmt: skip
    """Publish the exchange's own closed candle; without room it is left out, and counted."""
    if free_slots(lane, len(lane.slots) // RESERVE) < 2:
        lane.stats[_KLINES_DROPPED] += 1
        return
    flags = CLOSED | EXCHANGE
    write(lane, BAR, row, open_ns, recv_ns, 0, a, b, c, d, flags)
    lane.slots[(lane.cursor[0] - 1) & (len(lane.slots) - 1)].aux = minutes
    write(lane, BAR_VOLUME, row, open_ns, recv_ns, 0, volume, quoted, bought, trades, flags)
    lane.slots[(lane.cursor[0] - 1) & (len(lane.slots) - 1)].aux = minutes


@kernel
def flush(lane: Lane, recv_ns: int) -> bool:
    """Publish pending holes and doubts and waiting quotes and marks, as far as there is room.

    Whether all holes and doubts are told.
    """
    if lane.control[PENDING] == 0:
        return True
    told = True
    for row in range(len(lane.symbols)):
        symbol = lane.symbols[row]
        if symbol[GAP_COUNT] > 0:
            put_gap(lane, row, recv_ns)
        if symbol[WAITING] & DOUBT:
            doubt(lane, row, recv_ns)
        told = told and symbol[GAP_COUNT] == 0 and symbol[WAITING] & DOUBT == 0
        for which in range(2):
            if symbol[WAITING] >> which & 1 and free_slots(lane, len(lane.slots) // RESERVE) > 0:
                symbol[WAITING] &= ~(1 << which)
                lane.control[PENDING] -= 1
                lane.stats[_WAITING] -= 1
                record = lane.waiting[2 * row + which]
                put_level(
                    lane, which, row, record.exch_ns, record.recv_ns, record.id,
                    record.a, record.b, record.c, record.d,
                )  # fmt: skip
    commit(lane)
    return told
