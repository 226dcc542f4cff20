"""Slow twin of brain/smc.py: structure over whole lists, one bar at a time, nothing cached.

`events(candles)` gives (bar index at which it became known, name, direction, level) in order. Each
bar is judged from the list up to itself by searching backwards; only lists of zones are carried.
Definitions: a pivot of size n is a bar beaten by none of its n successors, registered when the leg
turns; a break is the close crossing the newest pivot; a gap is three bars apart; a sweep is a wick
through a confirmed pivot that closes back.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import isnan, nan

Candle = tuple[int, float, float, float, float]  # open time, open, high, low, close
Event = tuple[int, str, int, float]
ZONES = 8
LOOKBACK = 128
DAY_MS = 86_400_000
EQUAL_ATR = 0.1
SPIKE_ATR = 2.0


@dataclass(slots=True)
class Zone:
    top: float
    bottom: float
    index: int
    touched: bool = False


def leg_at(candles: list[Candle], t: int, size: int, leg: int) -> int:
    """+1 when the bar `size` ago is below all its successors, -1 when above all, else 0; one that
    is both turns the leg."""
    if t < size:
        return 0
    after = candles[t - size + 1 : t + 1]
    turns = set()
    if candles[t - size][2] > max(c[2] for c in after):
        turns.add(-1)
    if candles[t - size][3] < min(c[3] for c in after):
        turns.add(1)
    if len(turns) == 2:
        return -leg or -1
    return turns.pop() if turns else 0


def pivots(candles: list[Candle], size: int) -> list[tuple[int, int, int]]:
    """(known index, pivot index, +1 high / -1 low), registered only when the leg turns."""
    out, leg = [], 0
    for t in range(len(candles)):
        now = leg_at(candles, t, size, leg)
        if now and now != leg:
            leg = now
            out.append((t, t - size, -now))
    return out


def push(zones: list[Zone], zone: Zone) -> None:
    if len(zones) == ZONES:
        zones.remove(min(zones, key=lambda z: z.index))
    zones.append(zone)


def breaks(candles: list[Candle], size: int, name: str) -> list[tuple[int, str, int, float, int]]:
    """Closes across the newest pivot: (t, name, direction, level, pivot index), in order."""
    out: list[tuple[int, str, int, float, int]] = []
    known = pivots(candles, size)
    bias, done = 0, set()
    for t in range(1, len(candles)):
        for side in (1, -1):
            seen = [p for k, p, s in known if k <= t and s == side]
            if not seen or (side, seen[-1]) in done:
                continue
            level = candles[seen[-1]][2 if side > 0 else 3]
            before, now = candles[t - 1][4], candles[t][4]
            if (now > level >= before) if side > 0 else (now < level <= before):
                tag = "choch" if bias == -side else "bos"
                out.append((t, f"{name}_{tag}", side, level, seen[-1]))
                done.add((side, seen[-1]))
                bias = side
    return out


def block_of(candles: list[Candle], t: int, pivot: int, side: int, atrs: list[float]) -> Zone:
    """The most extreme bar against the break between pivot and break; spikes are turned over."""
    best, value = -1, nan
    for i in range(max(pivot, t - LOOKBACK + 1), t):
        _, _, high, low, _ = candles[i]
        if not isnan(atrs[t]) and high - low >= SPIKE_ATR * atrs[t]:
            high, low = low, high
        parsed = low if side > 0 else high
        if best < 0 or (parsed < value if side > 0 else parsed > value):
            best, value = i, parsed
    return Zone(candles[best][2], candles[best][3], best)


def touch_zones(
    zones: list[Zone], candle: Candle, t: int, side: int, name: str, end: str
) -> list[Event]:
    """First touch of the near edge, then the end: a gap when filled, a block when pierced."""
    out: list[Event] = []
    _, _, high, low, _ = candle
    for zone in sorted(zones, key=lambda z: z.index):
        near = low <= zone.top if side > 0 else high >= zone.bottom
        far = low < zone.bottom if side > 0 else high > zone.top
        if name == "fvg":
            far = low <= zone.bottom if side > 0 else high >= zone.top
        if near and not zone.touched:
            zone.touched = True
            out.append((t, f"{name}_touch", side, zone.top if side > 0 else zone.bottom))
        if far:
            zones.remove(zone)
            out.append((t, f"{name}_{end}", side, zone.bottom if side > 0 else zone.top))
    return out


def sweep_pools(pools: list[Zone], candle: Candle, t: int, side: int) -> list[Event]:
    """side +1: highs. A wick beyond that closes back sweeps (against the wick); both use it up."""
    out: list[Event] = []
    _, _, high, low, close = candle
    for pool in sorted(pools, key=lambda z: z.index):
        beyond = high > pool.top if side > 0 else low < pool.top
        back = close < pool.top if side > 0 else close > pool.top
        through = close > pool.top if side > 0 else close < pool.top
        if beyond and back:
            out.append((t, "sweep", -side, pool.top))
        if (beyond and back) or through:
            pools.remove(pool)
    return out


def gap_at(candles: list[Candle], t: int) -> tuple[int, Zone] | None:
    if t < 2:
        return None
    first, middle, last = candles[t - 2], candles[t - 1], candles[t]
    if last[3] > first[2] and middle[4] > first[2]:
        return 1, Zone(last[3], first[2], t - 1)
    if last[2] < first[3] and middle[4] < first[3]:
        return -1, Zone(first[3], last[2], t - 1)
    return None


def period_before(candles: list[Candle], t: int, days: int) -> tuple[int, float, float] | None:
    """(first day, high, low) of the whole day or Monday-to-Sunday week before candle t."""
    day = candles[t][0] // DAY_MS
    first = day - 1 if days == 1 else day - (day + 3) % 7 - 7
    inside = [c for c in candles[:t] if first <= c[0] // DAY_MS < first + days]
    if {c[0] // DAY_MS for c in inside} != set(range(first, first + days)):
        return None
    return first, max(c[2] for c in inside), min(c[3] for c in inside)


def level_events(candles: list[Candle], t: int, used: set[tuple[int, int, int]]) -> list[Event]:
    """Yesterday's and last week's high and low: swept or broken, once each."""
    out: list[Event] = []
    _, _, high, low, close = candles[t]
    for days in (1, 7):
        found = period_before(candles, t, days)
        if found is None or period_before(candles, t, 1) is None:
            continue
        first, top, bottom = found
        for side, level, extreme in ((1, top, high), (-1, bottom, low)):
            beyond = (extreme - level) * side > 0
            if not beyond or close == level or (days, side, first) in used:
                continue
            used.add((days, side, first))
            broken = (close - level) * side > 0
            out.append(
                (t, "level_break", side, level) if broken else (t, "level_sweep", -side, level)
            )
    return out


def session(candles: list[Candle], t: int, begin: int, end: int) -> tuple[float, float] | None:
    """High and low of the session that candle t opens in, so far; None outside."""
    hour = candles[t][0] // 3_600_000
    into = (hour - begin) % 24
    if into >= (end - begin) % 24:
        return None
    inside = [c for c in candles[: t + 1] if c[0] // 3_600_000 >= hour - into]
    return max(c[2] for c in inside), min(c[3] for c in inside)


def events(candles: list[Candle], atrs: list[float], internal: int, swing: int) -> list[Event]:
    """Everything in the order in which it became known, sorted within a bar by name."""
    out: list[Event] = []
    gaps: dict[int, list[Zone]] = {1: [], -1: []}
    blocks: dict[int, list[Zone]] = {1: [], -1: []}
    pools: dict[int, list[Zone]] = {1: [], -1: []}
    inner, outer = pivots(candles, internal), pivots(candles, swing)
    inner_breaks = breaks(candles, internal, "internal")
    outer_breaks = breaks(candles, swing, "swing")
    used: set[tuple[int, int, int]] = set()
    for t, candle in enumerate(candles):
        for side in (1, -1):
            out += touch_zones(gaps[side], candle, t, side, "fvg", "filled")
            out += touch_zones(blocks[side], candle, t, side, "block", "broken")
            out += sweep_pools(pools[side], candle, t, side)
        out += level_events(candles, t, used)
        for known, name in ((inner, "internal"), (outer, "swing")):
            for k, p, side in known:
                if k != t:
                    continue
                level = candles[p][2 if side > 0 else 3]
                out.append((t, f"{name}_pivot", side, level))
                if name == "internal":
                    same = [q for j, q, s in known if j < t and s == side]
                    last = candles[same[-1]][2 if side > 0 else 3] if same else nan
                    if abs(level - last) <= EQUAL_ATR * atrs[t]:
                        out.append((t, "equal", side, level))
                    push(pools[side], Zone(level, level, p))
        for at, name, side, level, _ in inner_breaks + outer_breaks:
            if at == t:
                out.append((t, name, side, level))
        for at, _, side, _, pivot in inner_breaks:
            if at == t:
                zone = block_of(candles, t, pivot, side, atrs)
                push(blocks[side], zone)
                out.append((t, "block", side, zone.top if side > 0 else zone.bottom))
        found = gap_at(candles, t)
        if found:
            push(gaps[found[0]], found[1])
            edge = found[1].top if found[0] > 0 else found[1].bottom
            out.append((t, "fvg", found[0], edge))
    return sorted(out)
