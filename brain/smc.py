"""Smart-money structure on closed candles: what is known at a close, and nothing earlier.

Per symbol and timeframe there are two structures, internal and swing, of different size. A pivot of
size n is a bar beaten by none of its n successors, registered when the leg turns: so it is known n
bars late and says so. A break is the close crossing the newest pivot of its side: BOS with the
bias, CHoCH against it. Internal breaks leave an order block: the most extreme bar between pivot and
break, spikes (range of two ATR) turned over so that they are not chosen.

Fair value gap: three bars, the outer two apart, the middle one closing beyond the first; touched
when price reaches the near edge, filled when it reaches the far one: one rule for both sides.
Sweep: a wick through a confirmed internal pivot that closes back; each level once; its direction is
against the wick. A pivot that lies near open ones of its side makes a pool of them: how many a
sweep took is in its event. Range position: -1 at the trailing low, +1 at the trailing high of the
swing.

Levels: high and low of the UTC day before, and of the Monday-to-Sunday week before, from the closed
daily candles, known from the first candle of the new period on; swept or broken once each. Sessions
are half-open hours of UTC, without summer time; their high and low so far, or the last ones.

All lists are bounded; the oldest makes room. What the nearest open zone of each kind and side waits
for is kept beside them (NEXT): a close that reaches none of it walks no list.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from brain.events import STRUCTURE, Events, emit
from brain.indicators import ATR, SEEN
from brain.jit import step
from brain.state import CLOSE, HIGH, HISTORY, HISTORY_MASK, LOW, Floats, Ints

INTERNAL_SIZE: Final = 3  # bars that confirm an internal pivot
SWING_SIZE: Final = 15  # and a swing; 120 bars of warm-up must hold several
EQUAL_ATR: Final = 0.1  # two pivots within this many ATR are equal highs or lows
SPIKE_ATR: Final = 2.0  # a bar this wide is a spike
ZONES: Final = 8  # per kind and side
DAY_MS: Final = 86_400_000
HOUR_MS: Final = 3_600_000
WEEK_DAYS: Final = 7
MONDAY: Final = 3  # 1970 began on a Thursday
SESSION_NAMES: Final = ("sydney", "tokyo", "london", "new_york")
SESSION_HOURS: Final = ((21, 6), (0, 9), (7, 16), (13, 22))  # from, up to; hours of UTC
assert INTERNAL_SIZE < SWING_SIZE < HISTORY // 4

# One structure's row; internal at 0, swing at SWING.
(
    LEG, P_HIGH, P_HIGH_MS, P_HIGH_CROSSED, P_HIGH_BEFORE, P_LOW, P_LOW_MS, P_LOW_CROSSED,
    P_LOW_BEFORE, BIAS, BREAK_MS, BREAK_LEVEL,
) = range(12)  # fmt: skip
SWING: Final = 16
(
    TRAIL_HIGH, TRAIL_LOW, POSITION, SWEEP_LEVEL, SWEEP_EXTREME, SWEEP_MS, SWEEP_SIDE, SWEEP_POOL,
) = range(32, 40)  # fmt: skip
NEXT: Final = 40  # + 2 * kind + (0 bullish or high, 1 bearish or low): price at which to look
LEVEL_DAY, LEVELS_USED, DAY_HIGH, DAY_LOW, WEEK_HIGH, WEEK_LOW = range(46, 52)
SESSIONS: Final = 52  # four times: high, low, open time of its first candle
# Zones: kind, side (0 bullish or high, 1 bearish or low), then
GAPS, BLOCKS, POOLS = range(3)
Z_TOP, Z_BOTTOM, Z_ORIGIN_MS, Z_TOUCHED = range(4)  # origin 0 = empty
Z_MEMBERS: Final = Z_TOUCHED  # of a pool: pivots at this level

# Codes of structure events; bit 2 * code (up) or 2 * code + 1 (down) in a close's flags.
(
    INTERNAL_PIVOT, SWING_PIVOT, INTERNAL_BOS, INTERNAL_CHOCH, SWING_BOS, SWING_CHOCH, FVG,
    FVG_TOUCH, FVG_FILLED, BLOCK, BLOCK_TOUCH, BLOCK_BROKEN, SWEEP, EQUAL, LEVEL_SWEEP, LEVEL_BREAK,
) = range(16)  # fmt: skip
CODES: Final = (
    "internal_pivot", "swing_pivot", "internal_bos", "internal_choch", "swing_bos", "swing_choch",
    "fvg", "fvg_touch", "fvg_filled", "block", "block_touch", "block_broken", "sweep", "equal",
    "level_sweep", "level_break",
)  # fmt: skip
assert len(CODES) * 2 < 52  # the flags also fit a float


def flag(code: int, direction: int) -> int:
    """The bit that a structure event sets in its close's flags."""
    return 1 << (2 * code + (direction < 0))


@step
def reset_structure(x: Floats, zones: Floats) -> None:
    """Nothing seen: levels unknown, no bias, no zones."""
    for k in range(len(x)):
        x[k] = np.nan
    for base in (0, SWING):
        x[base + LEG] = 0.0
        x[base + P_HIGH_CROSSED] = 0.0
        x[base + P_LOW_CROSSED] = 0.0
        x[base + BIAS] = 0.0
    for kind in (GAPS, BLOCKS, POOLS):
        x[NEXT + 2 * kind] = np.inf if kind == POOLS else -np.inf
        x[NEXT + 2 * kind + 1] = -x[NEXT + 2 * kind]
    x[SWEEP_SIDE] = x[SWEEP_POOL] = x[LEVELS_USED] = 0.0
    zones[:] = 0.0


@step
def _note(
    ev: Events, n: int, where: Ints, code: int, side: int, near: float, far: float, origin: float
) -> int:
    """One event and its flag. where: symbol timeframe bar_ms known_ns recv_ns emit flags stop."""
    where[6] |= np.int64(1) << (2 * code + (1 if side < 0 else 0))
    if where[5] == 0:
        return n
    row = n
    n = emit(ev, n, STRUCTURE, code, side, where[0], where[1], where[2], where[3], where[4])
    ev[row].a, ev[row].b, ev[row].c = near, far, origin
    return n


@step
def _push(zones: Floats, top: float, bottom: float, origin_ms: float, last: float) -> None:
    """Into an empty place, or over the oldest; `last` is 0 untouched, or a pool's members."""
    place = 0
    for i in range(ZONES):
        if zones[i, Z_ORIGIN_MS] < zones[place, Z_ORIGIN_MS]:
            place = i
    zones[place, Z_TOP], zones[place, Z_BOTTOM] = top, bottom
    zones[place, Z_ORIGIN_MS], zones[place, Z_TOUCHED] = origin_ms, last


@step
def gap_side(first_high: float, first_low: float, last_high: float, last_low: float) -> int:
    """+1 when the last of three bars lies wholly above the first, -1 below, else 0."""
    if last_low > first_high:
        return 1
    return -1 if last_high < first_low else 0


@step
def reached(side: int, edge: float, high: float, low: float) -> bool:
    """Price came back down (side +1) or up (-1) to an edge of a zone."""
    return low <= edge if side > 0 else high >= edge


@step
def _touch(
    zones: Floats, side: int, high: float, low: float, is_gap: bool, ev: Events, n: int, where: Ints
) -> int:
    """First touch of the near edge, then the end: a gap reached through, a block pierced."""
    for i in range(ZONES):
        if zones[i, Z_ORIGIN_MS] == 0.0:
            continue
        top, bottom, origin = zones[i, Z_TOP], zones[i, Z_BOTTOM], zones[i, Z_ORIGIN_MS]
        near, far = (top, bottom) if side > 0 else (bottom, top)
        if not reached(side, near, high, low):
            continue
        pierced = low < far if side > 0 else high > far
        ended = reached(side, far, high, low) if is_gap else pierced
        if zones[i, Z_TOUCHED] == 0.0:
            zones[i, Z_TOUCHED] = 1.0
            n = _note(ev, n, where, FVG_TOUCH if is_gap else BLOCK_TOUCH, side, near, far, origin)
        if ended:
            zones[i, Z_ORIGIN_MS] = 0.0
            n = _note(ev, n, where, FVG_FILLED if is_gap else BLOCK_BROKEN, side, far, near, origin)
    return n


@step
def _sweep(
    x: Floats, pools: Floats, side: int, bar: Floats, ev: Events, n: int, where: Ints
) -> int:
    """side +1: pivot highs. Beyond and back sweeps, through only uses the level up."""
    extreme = bar[HIGH] if side > 0 else bar[LOW]
    for i in range(ZONES):
        if pools[i, Z_ORIGIN_MS] == 0.0:
            continue
        level = pools[i, Z_TOP]
        beyond = (extreme - level) * side > 0.0
        through = (bar[CLOSE] - level) * side
        if beyond and through < 0.0:
            n = _note(ev, n, where, SWEEP, -side, level, extreme, pools[i, Z_ORIGIN_MS])
            if where[5] != 0:
                ev[n - 1].d = pools[i, Z_MEMBERS]
            x[SWEEP_LEVEL], x[SWEEP_EXTREME], x[SWEEP_MS] = level, extreme, where[2]
            x[SWEEP_SIDE], x[SWEEP_POOL] = -side, pools[i, Z_MEMBERS]
        if (beyond and through < 0.0) or through > 0.0:
            pools[i, Z_ORIGIN_MS] = 0.0
    return n


@step
def _members(pools: Floats, level: float, band: float) -> float:
    """Pivots at this level with the one that comes: open ones of its side within the band."""
    most = 0.0
    for i in range(ZONES):
        if pools[i, Z_ORIGIN_MS] != 0.0 and abs(pools[i, Z_TOP] - level) <= band:
            most = max(most, pools[i, Z_MEMBERS])
    return most + 1.0


@step
def _look(x: Floats, zones: Floats, kind: int, k: int) -> None:
    """Where price meets the nearest of these zones next: near edge, far edge once touched."""
    down = (k == 0) != (kind == POOLS)  # price comes from above
    price = -np.inf if down else np.inf
    for i in range(ZONES):
        if zones[i, Z_ORIGIN_MS] == 0.0:
            continue
        top = (zones[i, Z_TOUCHED] == 0.0) == (k == 0) or kind == POOLS
        edge = zones[i, Z_TOP] if top else zones[i, Z_BOTTOM]
        price = max(price, edge) if down else min(price, edge)
    x[NEXT + 2 * kind + k] = price


@step
def _daily(opens: Ints, count: int, day: int) -> int:
    """Where the closed candle of this day lies, or -1."""
    if count == 0:
        return -1
    back = opens[(count - 1) & HISTORY_MASK] // DAY_MS - day
    if back < 0 or back >= min(count, HISTORY):
        return -1
    return (count - 1 - back) & HISTORY_MASK


@step
def _levels(x: Floats, day: int, days: Floats, days_at: Ints, count: int) -> None:
    """The levels of a new day; unknown until its yesterday is closed and kept."""
    slot, monday = _daily(days_at, count, day - 1), day - (day + MONDAY) % WEEK_DAYS
    x[DAY_HIGH] = x[DAY_LOW] = x[WEEK_HIGH] = x[WEEK_LOW] = np.nan
    if slot < 0:
        return
    x[DAY_HIGH], x[DAY_LOW] = days[slot, HIGH], days[slot, LOW]
    high, low, whole = -np.inf, np.inf, True
    for each in range(monday - WEEK_DAYS, monday):
        slot = _daily(days_at, count, each)
        whole = whole and slot >= 0
        high, low = max(high, days[slot, HIGH]), min(low, days[slot, LOW])
    if whole:
        x[WEEK_HIGH], x[WEEK_LOW] = high, low
    used = int(x[LEVELS_USED]) & 12 if x[LEVEL_DAY] >= monday else 0  # of the same week it stays
    x[LEVEL_DAY], x[LEVELS_USED] = day, float(used)


@step
def _use_levels(x: Floats, bar: Floats, ev: Events, n: int, where: Ints) -> int:
    """A wick through a day's or week's level that closes back, or a close through it; once."""
    used = int(x[LEVELS_USED])
    for k in range(4):
        side, level = 1 - 2 * (k & 1), x[DAY_HIGH + k]
        extreme = bar[HIGH] if side > 0 else bar[LOW]
        if not (extreme - level) * side > 0.0 or used >> k & 1:
            continue
        through, days = (bar[CLOSE] - level) * side, 1 if k < 2 else WEEK_DAYS
        if through == 0.0:
            continue
        first = int(x[LEVEL_DAY]) - days
        if days > 1:
            first -= (int(x[LEVEL_DAY]) + MONDAY) % WEEK_DAYS
        code = LEVEL_BREAK if through > 0.0 else LEVEL_SWEEP
        sign, end = (side, bar[CLOSE]) if through > 0.0 else (-side, extreme)
        n = _note(ev, n, where, code, sign, level, end, float(first * DAY_MS))
        if where[5] != 0:
            ev[n - 1].d = days
        used |= 1 << k
    x[LEVELS_USED] = float(used)
    return n


@step
def _sessions(x: Floats, open_ms: int, bar: Floats) -> None:
    """High and low of the sessions that this candle opens in."""
    hour = open_ms // HOUR_MS % 24
    for k in range(4):
        begin, end = SESSION_HOURS[k]
        into = (hour - begin) % 24
        if into >= (end - begin) % 24:
            continue
        at, began = SESSIONS + 3 * k, float((open_ms // HOUR_MS - into) * HOUR_MS)
        same = x[at + 2] == began
        x[at] = max(x[at], bar[HIGH]) if same else bar[HIGH]
        x[at + 1] = min(x[at + 1], bar[LOW]) if same else bar[LOW]
        x[at + 2] = began


@step
def _leg(bars: Floats, count: int, seen: int, size: int, leg: float) -> int:
    """-1 when the bar `size` ago is above all since, +1 when below all, else 0.

    One that is both turns the leg, whichever way it went: highs and lows have the same rights.
    """
    if seen <= size:
        return 0
    highest, lowest = -np.inf, np.inf
    for back in range(size):
        slot = (count - 1 - back) & HISTORY_MASK
        highest = max(highest, bars[slot, HIGH])
        lowest = min(lowest, bars[slot, LOW])
    slot = (count - 1 - size) & HISTORY_MASK
    above, below = bars[slot, HIGH] > highest, bars[slot, LOW] < lowest
    if above and below:
        return 1 if leg < 0.0 else -1
    return -1 if above else int(below)


@step
def _pivot(
    x: Floats, base: int, size: int, bars: Floats, opens: Ints, count: int, seen: int, ev: Events,
    n: int, where: Ints,
) -> tuple[int, int]:  # fmt: skip
    """Register a pivot when the leg turns. Returns (n, side: +1 high, -1 low, 0 none)."""
    now = _leg(bars, count, seen, size, x[base + LEG])
    if now == 0 or now == x[base + LEG]:
        return n, 0
    x[base + LEG] = now
    slot = (count - 1 - size) & HISTORY_MASK
    side = -now
    at = base + (P_HIGH if side > 0 else P_LOW)  # level, time, crossed, the one before
    level = bars[slot, HIGH] if side > 0 else bars[slot, LOW]
    x[at + 3] = x[at]
    x[at], x[at + 1], x[at + 2] = level, opens[slot], 0.0
    code = SWING_PIVOT if base else INTERNAL_PIVOT
    return _note(ev, n, where, code, side, level, x[at + 3], opens[slot]), side


@step
def _break(
    x: Floats, base: int, side: int, before: float, close: float, ev: Events, n: int, where: Ints
) -> tuple[int, bool]:
    """The close crosses the newest pivot of this side, once."""
    at = base + (P_HIGH if side > 0 else P_LOW)
    level = x[at]
    if x[at + 2] != 0.0 or not ((close - level) * side > 0.0 and (before - level) * side <= 0.0):
        return n, False
    turned = x[base + BIAS] == -side
    if base:
        code = SWING_CHOCH if turned else SWING_BOS
    else:
        code = INTERNAL_CHOCH if turned else INTERNAL_BOS
    x[at + 2], x[base + BIAS] = 1.0, side
    x[base + BREAK_MS], x[base + BREAK_LEVEL] = where[2], level
    return _note(ev, n, where, code, side, level, close, x[at + 1]), True


@step
def _block(
    x: Floats, side: int, bars: Floats, opens: Ints, count: int, seen: int, atr: float,
    zones: Floats, ev: Events, n: int, where: Ints, step_ms: int,
) -> int:  # fmt: skip
    """The most extreme bar from the broken pivot to just before the break; the first on ties."""
    pivot_ms = x[P_HIGH_MS] if side > 0 else x[P_LOW_MS]
    far = min(int((where[2] - pivot_ms) // step_ms), min(seen, HISTORY) - 1)
    best, value = -1, 0.0
    for back in range(far, 0, -1):
        slot = (count - 1 - back) & HISTORY_MASK
        high, low = bars[slot, HIGH], bars[slot, LOW]
        if high - low >= SPIKE_ATR * atr:
            high, low = low, high
        parsed = low if side > 0 else -high
        if best < 0 or parsed < value:
            best, value = slot, parsed
    if best < 0:
        return n
    top, bottom, origin = bars[best, HIGH], bars[best, LOW], opens[best]
    _push(zones, top, bottom, origin, 0.0)
    near, end = (top, bottom) if side > 0 else (bottom, top)
    return _note(ev, n, where, BLOCK, side, near, end, origin)


@step
def _gap(
    x: Floats, bars: Floats, opens: Ints, count: int, zones: Floats, ev: Events, n: int, where: Ints
) -> int:
    """Three bars, the outer two apart, the middle one closing beyond the first."""
    last, middle = (count - 1) & HISTORY_MASK, (count - 2) & HISTORY_MASK
    first = (count - 3) & HISTORY_MASK
    high, low = bars[first, HIGH], bars[first, LOW]
    side = gap_side(high, low, bars[last, HIGH], bars[last, LOW])
    near, far = (bars[last, LOW], high) if side > 0 else (bars[last, HIGH], low)
    if side == 0 or not (bars[middle, CLOSE] - far) * side > 0.0:
        return n
    k = 0 if side > 0 else 1
    _push(zones[k], max(near, far), min(near, far), opens[middle], 0.0)
    _look(x, zones[k], GAPS, k)
    return _note(ev, n, where, FVG, side, near, far, opens[middle])


@step
def _range(
    x: Floats, bar: Floats, high_turned: bool, low_turned: bool, bars: Floats, count: int
) -> None:
    """Trailing extremes since the newest swing pivots, and where the close lies between them."""
    if high_turned or x[TRAIL_HIGH] != x[TRAIL_HIGH]:
        x[TRAIL_HIGH] = x[SWING + P_HIGH] if high_turned else bar[HIGH]
    if low_turned or x[TRAIL_LOW] != x[TRAIL_LOW]:
        x[TRAIL_LOW] = x[SWING + P_LOW] if low_turned else bar[LOW]
    if high_turned or low_turned:
        for back in range(SWING_SIZE):
            slot = (count - 1 - back) & HISTORY_MASK
            x[TRAIL_HIGH] = max(x[TRAIL_HIGH], bars[slot, HIGH])
            x[TRAIL_LOW] = min(x[TRAIL_LOW], bars[slot, LOW])
    x[TRAIL_HIGH] = max(x[TRAIL_HIGH], bar[HIGH])
    x[TRAIL_LOW] = min(x[TRAIL_LOW], bar[LOW])
    half = (x[TRAIL_HIGH] - x[TRAIL_LOW]) / 2.0
    x[POSITION] = (bar[CLOSE] - x[TRAIL_LOW] - half) / half if half > 0.0 else 0.0


@step
def step_structure(
    x: Floats, zones: Floats, ind: Floats, bars: Floats, opens: Ints, count: int, days: Floats,
    days_at: Ints, days_count: int, step_ms: int, ev: Events, n: int, where: Ints,
) -> int:  # fmt: skip
    """One closed candle, the newest of `bars`, after its indicators were stepped.

    Fills events from n and sets flags in where[6]; ind[SEEN] says how many bars may be looked at.
    `days` are the closed daily candles.
    """
    slot = (count - 1) & HISTORY_MASK
    bar, seen, open_ms = bars[slot], int(ind[SEEN]), opens[slot]
    for k in range(2):
        side = 1 - 2 * k
        for kind in (GAPS, BLOCKS):
            price = x[NEXT + 2 * kind + k]
            if reached(side, price, bar[HIGH], bar[LOW]):
                n = _touch(
                    zones[kind, k], side, bar[HIGH], bar[LOW], kind == GAPS, ev, n, where
                )  # fmt: skip
                _look(x, zones[kind, k], kind, k)
        if reached(-side, x[NEXT + 2 * POOLS + k], bar[HIGH], bar[LOW]):
            n = _sweep(x, zones[POOLS, k], side, bar, ev, n, where)
            _look(x, zones[POOLS, k], POOLS, k)
    if step_ms < DAY_MS:
        if x[LEVEL_DAY] != open_ms // DAY_MS:
            _levels(x, open_ms // DAY_MS, days, days_at, days_count)
        n = _use_levels(x, bar, ev, n, where)
        _sessions(x, open_ms, bar)
    n, turned = _pivot(x, 0, INTERNAL_SIZE, bars, opens, count, seen, ev, n, where)
    if turned != 0:
        at, k = P_HIGH if turned > 0 else P_LOW, 0 if turned > 0 else 1
        band = EQUAL_ATR * ind[ATR]
        if abs(x[at] - x[at + 3]) <= band:
            n = _note(ev, n, where, EQUAL, turned, x[at], x[at + 3], x[at + 1])
        members = _members(zones[POOLS, k], x[at], band)
        _push(zones[POOLS, k], x[at], x[at], x[at + 1], members)
        _look(x, zones[POOLS, k], POOLS, k)
    n, swung = _pivot(x, SWING, SWING_SIZE, bars, opens, count, seen, ev, n, where)
    if seen >= 2:
        before = bars[(count - 2) & HISTORY_MASK, CLOSE]
        for side in (1, -1):
            n, broke = _break(x, 0, side, before, bar[CLOSE], ev, n, where)
            if broke:
                k = 0 if side > 0 else 1
                n = _block(
                    x, side, bars, opens, count, seen, ind[ATR], zones[BLOCKS, k], ev, n, where,
                    step_ms,
                )  # fmt: skip
                _look(x, zones[BLOCKS, k], BLOCKS, k)
            n, broke = _break(x, SWING, side, before, bar[CLOSE], ev, n, where)
    if seen >= 3:
        n = _gap(x, bars, opens, count, zones[GAPS], ev, n, where)
    _range(x, bar, swung > 0, swung < 0, bars, count)
    return n
