"""The exchange's candle intervals: when one opens and ends, and which recorded one it is made of.

The record keeps 1m 5m 15m 1h 1d; the others are folded from the finer of them when somebody asks.
Weeks open on Monday, months on the first, three days are counted from 1970, all in UTC.
"""

from __future__ import annotations

import numpy as np

from venue import bars
from venue.bars import OPEN_MS, TIMEFRAMES
from venue.market import Ints

MINUTE_MS = 60_000
HOUR_MS = 60 * MINUTE_MS
DAY_MS = 24 * HOUR_MS
MONDAY_MS = 4 * DAY_MS  # 1970-01-05
# span, 0 for a month, and the recorded timeframe that it is folded from
_TABLE = {
    "1m": (MINUTE_MS, "1m"),
    "3m": (3 * MINUTE_MS, "1m"),
    "5m": (5 * MINUTE_MS, "5m"),
    "15m": (15 * MINUTE_MS, "15m"),
    "30m": (30 * MINUTE_MS, "15m"),
    "1h": (HOUR_MS, "1h"),
    "2h": (2 * HOUR_MS, "1h"),
    "4h": (4 * HOUR_MS, "1h"),
    "6h": (6 * HOUR_MS, "1h"),
    "8h": (8 * HOUR_MS, "1h"),
    "12h": (12 * HOUR_MS, "1h"),
    "1d": (DAY_MS, "1d"),
    "3d": (3 * DAY_MS, "1d"),
    "1w": (7 * DAY_MS, "1d"),
    "1M": (0, "1d"),
}
INTERVALS = tuple(_TABLE)
assert set(TIMEFRAMES) <= set(INTERVALS)


def base_of(interval: str) -> int:
    """Index of the recorded timeframe."""
    return TIMEFRAMES.index(_TABLE[interval][1])


def opens(times: Ints, interval: str) -> Ints:
    """When the candles began that hold these times."""
    span = _TABLE[interval][0]
    if not span:
        return times.astype("M8[ms]").astype("M8[M]").astype("M8[ms]").astype(np.int64)
    shift = MONDAY_MS if interval == "1w" else 0
    out: Ints = (times - shift) // span * span + shift
    return out


def end_ms(open_ms: int, interval: str) -> int:
    """The first millisecond after a candle."""
    span = _TABLE[interval][0]
    if span:
        return open_ms + span
    month = np.datetime64(open_ms, "ms").astype("M8[M]") + 1
    return int(month.astype("M8[ms]").astype(np.int64))


def fold(rows: Ints, interval: str) -> Ints:
    """Candles of that interval from contiguous finer ones; a first one cut short is left out."""
    if not len(rows):
        return rows
    starts = opens(rows[:, OPEN_MS], interval)
    folded = bars.fold(rows, starts)
    cut = len(folded) > 1 and rows[0, OPEN_MS] != starts[0]
    return folded[1:] if cut else folded
