"""The structure of given candles, as the live kernels see it: what a chart draws.

Candles go one by one through the same close as in the ring loop, into a state of their own; every
event carries the bar at whose close it became known. Nothing here is known earlier than it would
have been live: the picture shows what the brain saw, not what hindsight sees.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from brain.candles import STEP_MS
from brain.closing import (
    W_BAR_MS,
    W_EMIT,
    W_FLAGS,
    W_KNOWN_NS,
    W_SYMBOL,
    W_TIMEFRAME,
    WHERE,
    analyse,
)
from brain.events import CLOSE_EVENTS_MAX, EVENT, STRUCTURE, Events
from brain.history import reset_analysis
from brain.indicators import OUTPUTS
from brain.jit import entry
from brain.smc import BLOCKS, CODES, GAPS, Z_ORIGIN_MS
from brain.state import (
    BAR_FIELDS,
    CANDLE,
    HISTORY_MASK,
    Arrays,
    Floats,
    Ints,
    memory_state,
)
from records import TIMEFRAME_NAMES

CANDLES_MAX: Final = 5_000
NS_PER_MS: Final = 1_000_000
DAY: Final = TIMEFRAME_NAMES.index("1d")


@dataclass(frozen=True, slots=True)
class Mark:
    """A structure event: `name` of smc.CODES at the close of the bar that opened at `bar_ms`."""

    name: str
    side: int
    bar_ms: int
    near: float  # the level, or the near edge
    far: float
    origin_ms: int  # open time of the bar that it speaks of


@dataclass(frozen=True, slots=True)
class Span:
    """A zone over its life; `until_ms` is the newest bar's while it is open."""

    name: str  # fvg or block
    side: int
    top: float
    bottom: float
    from_ms: int
    known_ms: int
    until_ms: int
    open: bool


@dataclass(frozen=True, slots=True)
class Picture:
    symbol: str
    timeframe: str
    candles: npt.NDArray[Any]  # CANDLE
    indicators: dict[str, Floats]  # by name, one for each candle
    marks: tuple[Mark, ...]
    zones: tuple[Span, ...]


@entry
def retrace(
    a: Arrays, t: int, at: Ints, values: Floats, ev: Events, where: Ints, out: Floats
) -> int:
    """Close these candles one after another in row 0; events from row 0, outputs a line each."""
    n = 0
    reset_analysis(a, 0, t)
    for i in range(len(at)):
        slot = a.counts[0, t] & HISTORY_MASK
        a.closed_at[0, t, slot] = at[i]
        for k in range(values.shape[1]):
            a.closed[0, t, slot, k] = values[i, k]
        a.counts[0, t] += 1
        where[W_BAR_MS], where[W_FLAGS] = at[i], 0
        where[W_KNOWN_NS] = (at[i] + STEP_MS[t]) * NS_PER_MS
        n = analyse(a, 0, t, a.counts[0, t], ev, n, where)
        for k in range(out.shape[1]):
            out[i, k] = a.ind[0, t, k]
    return n


def picture(
    symbol: str, timeframe: str, candles: npt.NDArray[Any], days: npt.NDArray[Any]
) -> Picture:
    """What was seen at each of these closes. `candles` and the daily `days` are CANDLE records,
    oldest first and contiguous; the newest CANDLES_MAX count. Raises ValueError."""
    if candles.dtype != CANDLE or days.dtype != CANDLE:
        raise ValueError("candles must be CANDLE records")
    candles, t = candles[-CANDLES_MAX:], TIMEFRAME_NAMES.index(timeframe)
    if len(candles) and (np.diff(candles["open_ms"]) != STEP_MS[t]).any():
        raise ValueError(f"candles of {symbol} {timeframe} are not contiguous")
    a = memory_state(1).arrays
    ev = np.zeros(max(len(candles), 1) * CLOSE_EVENTS_MAX, EVENT)
    where = np.zeros(WHERE, np.int64)
    where[W_SYMBOL], where[W_TIMEFRAME], where[W_EMIT] = 0, t, 1
    if t != DAY:
        before = days[days["open_ms"] < (candles["open_ms"][0] if len(candles) else 0)]
        _close(a, DAY, before, ev, where)
        where[W_TIMEFRAME] = t
    n, out = _close(a, t, candles, ev, where)
    marks = tuple(
        Mark(CODES[e["code"]], int(e["direction"]), int(e["bar_ms"]), e["a"], e["b"], int(e["c"]))
        for e in ev[:n]
        if e["kind"] == STRUCTURE
    )
    indicators = {name: out[:, k].copy() for k, name in enumerate(OUTPUTS)}
    return Picture(
        symbol, timeframe, candles, indicators, marks, spans(marks, candles, _standing(a, t))
    )


def _close(
    a: Arrays, t: int, candles: npt.NDArray[Any], ev: Events, where: Ints
) -> tuple[int, Floats]:
    values = np.stack([candles[name] for name in BAR_FIELDS], axis=1)
    out = np.full((len(candles), len(OUTPUTS)), np.nan)
    at = np.ascontiguousarray(candles["open_ms"])
    return retrace(a, t, at, np.ascontiguousarray(values), ev, where, out), out


def _standing(a: Arrays, t: int) -> set[tuple[str, int, int]]:
    """(name, side, origin) of the zones that the brain still watches: the newest of each kind."""
    found = set()
    for kind, name in ((GAPS, "fvg"), (BLOCKS, "block")):
        for k, side in ((0, 1), (1, -1)):
            origins = a.zones[0, t, kind, k, :, Z_ORIGIN_MS]
            found |= {(name, side, int(origin)) for origin in origins if origin}
    return found


def spans(
    marks: tuple[Mark, ...],
    candles: npt.NDArray[Any],
    standing: set[tuple[str, int, int]],
) -> tuple[Span, ...]:
    """Gaps and blocks from the bar that they lie on to the bar that ended them. One that neither
    ended nor is watched any more made room for a newer one: it is left out."""
    ends = {"fvg_filled": "fvg", "block_broken": "block"}
    over = {(ends[m.name], m.side, m.origin_ms): m.bar_ms for m in marks if m.name in ends}
    made = []
    for m in marks:
        key = (m.name, m.side, m.origin_ms)
        end_ms = over.get(key, 0)
        is_open = key in standing
        if m.name not in ends.values() or not (is_open or end_ms > m.bar_ms):
            continue
        until_ms = int(candles["open_ms"][-1]) if is_open else end_ms
        top, bottom = max(m.near, m.far), min(m.near, m.far)
        made.append(Span(m.name, m.side, top, bottom, m.origin_ms, m.bar_ms, until_ms, is_open))
    return tuple(made)
