"""What a rule sees of the market at a close: closed candles, indicators and structure, no future.

Everything is lazy, and numbers or copies: a rule that looks at three numbers pays for three, and
nothing that it does with them changes what the brain knows. `timeframe` arguments default to the
timeframe of the candle that closed. Only `forming` speaks of candles that are not over: as they
were at the very record that closed this one.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

import numpy as np

from brain import smc
from brain.candles import STEP_MS
from brain.gather import (
    NUMBERS,
    X_ASK,
    X_BID,
    X_INDICATORS,
    X_LAST,
    X_MARK,
    X_STRUCTURE,
    X_TREND,
    look,
)
from brain.indicators import OUTPUTS, forming_indicators
from brain.state import (
    BAR_FIELDS,
    CLOSE,
    HIGH,
    HISTORY,
    HISTORY_MASK,
    LOW,
    OPEN,
    VOLUME,
    Arrays,
    Floats,
    Ints,
)
from records import TIMEFRAME_NAMES

ZONE_EDGE, EQUILIBRIUM = 0.9, 0.05  # of half the range
KILL_ZONES: Final = (
    ("asia", 0, 4), ("london_open", 6, 9), ("new_york", 11, 14), ("london_close", 14, 16),
)  # fmt: skip
INDEX: Final = {name: index for index, name in enumerate(TIMEFRAME_NAMES)}
_FLAGS: Final = {
    (name, side): smc.flag(code, side) for code, name in enumerate(smc.CODES) for side in (1, -1)
}
_WORDS: Final = tuple(
    (bit, f"{name} {'up' if side > 0 else 'down'}") for (name, side), bit in _FLAGS.items()
)


@dataclass(frozen=True, slots=True)
class Bars:
    """Closed candles, oldest first, at most 128; arrays of equal length, the caller's own."""

    open_ms: Ints
    open: Floats
    high: Floats
    low: Floats
    close: Floats
    volume: Floats
    quote_volume: Floats
    taker_buy: Floats
    trades: Floats


class Indicators(NamedTuple):
    """As of the newest closed candle; NaN while not known. Names as in TA-Lib."""

    ema9: float
    ema21: float
    ema50: float
    rsi: float
    atr: float
    adx: float
    di_plus: float
    di_minus: float
    macd: float
    macd_signal: float
    bb_middle: float
    bb_std: float
    vwap: float
    volume_mean: float
    imbalance: float
    tick_rate: float
    tick_z: float


assert Indicators._fields == OUTPUTS


class Zone(NamedTuple):
    """A gap or an order block: side +1 bullish (below price), -1 bearish."""

    side: int
    top: float
    bottom: float
    origin_ms: int
    touched: bool


class Pool(NamedTuple):
    """Resting liquidity: a level with as many pivots as lie within a tenth of an ATR of it."""

    side: int
    level: float
    members: int
    origin_ms: int


class Structure(NamedTuple):
    """Smart-money structure as of the newest closed candle; NaN and 0 while not known."""

    bias: int  # of the internal structure: +1, -1, 0
    swing_bias: int
    high: float  # newest internal pivot high and low
    low: float
    swing_high: float
    swing_low: float
    position: float  # -1 at the range's low, +1 at its high
    sweep_level: float
    sweep_extreme: float
    sweep_ms: float
    sweep_side: int  # of the trade that fades it
    sweep_pool: int  # pivots at the level that was swept
    break_ms: float  # open time of the candle of the newest internal break
    day_high: float  # of the UTC day before
    day_low: float
    week_high: float  # of the Monday-to-Sunday week before
    week_low: float

    @property
    def zone(self) -> str:
        """Outer twentieths of the range: premium and discount; the middle one: equilibrium."""
        if abs(self.position) >= ZONE_EDGE:
            return "premium" if self.position > 0.0 else "discount"
        return "equilibrium" if abs(self.position) <= EQUILIBRIUM else ""


_WHOLE: Final = tuple(
    Structure._fields.index(name) for name in ("bias", "swing_bias", "sweep_side", "sweep_pool")
)
assert len(Structure._fields) == X_INDICATORS - X_STRUCTURE


class Session(NamedTuple):
    """The newest trading session of its name: hours of UTC, from its begin on."""

    name: str
    active: bool  # this candle opened in it
    high: float
    low: float
    began_ms: float


@dataclass(frozen=True, slots=True)
class CandleView:
    """One closed candle of one symbol and what is known with it."""

    symbol: str
    timeframe: str
    bar_ms: int  # open time of the candle that closed
    known_ms: int  # market time at which the close became known
    flags: int  # structure events of this close, bits of smc.flag
    taker_fee: float  # of one side
    arrays: Arrays
    row: int
    _seen: dict[str | int, Any] = field(default_factory=dict, repr=False)  # looked up already

    def _numbers(self, timeframe: str | None = None) -> list[float]:
        """Those of gather.py; this timeframe's lie ready when the brain asks a rule."""
        timeframe = timeframe or self.timeframe
        found: list[float] | None = self._seen.get(timeframe)
        if found is None:
            made = np.empty(NUMBERS)
            look(self.arrays, self.row, INDEX[timeframe], made)
            found = self._seen[timeframe] = made.tolist()
        return found

    def happened(self, name: str, side: int) -> bool:
        """Did this close bring a structure event of this name (smc.CODES) and side?"""
        return bool(self.flags & _FLAGS[name, side])

    def events(self) -> list[str]:
        """The structure events of this close in words, like "sweep up"."""
        return [word for bit, word in _WORDS if self.flags & bit]

    def open(self, timeframe: str | None = None) -> float:
        return self._numbers(timeframe)[OPEN]

    def close(self, timeframe: str | None = None) -> float:
        return self._numbers(timeframe)[CLOSE]

    def high(self, timeframe: str | None = None) -> float:
        return self._numbers(timeframe)[HIGH]

    def low(self, timeframe: str | None = None) -> float:
        return self._numbers(timeframe)[LOW]

    def volume(self, timeframe: str | None = None) -> float:
        return self._numbers(timeframe)[VOLUME]

    def candles(self, timeframe: str | None = None) -> int:
        """Closed candles that this timeframe has seen."""
        return int(self.arrays.counts[self.row, INDEX[timeframe or self.timeframe]])

    @property
    def newest_bar_ms(self) -> int:
        t = INDEX[self.timeframe]
        count = int(self.arrays.counts[self.row, t])
        return int(self.arrays.closed_at[self.row, t, (count - 1) & HISTORY_MASK])

    @property
    def bid(self) -> float:
        return self._numbers()[X_BID]

    @property
    def ask(self) -> float:
        return self._numbers()[X_ASK]

    @property
    def mark(self) -> float:
        return self._numbers()[X_MARK]

    @property
    def last(self) -> float:
        return self._numbers()[X_LAST]

    @property
    def round_trip(self) -> float:
        """Both taker fees and the spread, in price."""
        x = self._numbers()
        spread = x[X_ASK] - x[X_BID]
        return 2.0 * self.taker_fee * x[CLOSE] + (spread if spread > 0.0 else 0.0)

    def bars(self, timeframe: str | None = None) -> Bars:
        """The kept candles as arrays."""
        t = INDEX[timeframe or self.timeframe]
        count = int(self.arrays.counts[self.row, t])
        order = np.arange(max(count - HISTORY, 0), count) & HISTORY_MASK
        values = self.arrays.closed[self.row, t][order]
        columns = [values[:, k].copy() for k in range(len(BAR_FIELDS))]
        return Bars(self.arrays.closed_at[self.row, t][order], *columns)

    def indicators(self, timeframe: str | None = None) -> Indicators:
        return Indicators._make(self._numbers(timeframe)[X_INDICATORS:])

    def trend(self) -> float:
        """Agreement of 1h, 15m, 5m, 1m, weighted 40/30/20/10: -1 all down .. +1 all up.

        A timeframe is up when its close lies above EMA 50 and EMA 9 above EMA 21, down when both
        are reversed, else neither. Timeframes that do not know yet have no vote.
        """
        return self._numbers()[X_TREND]

    def forming(self, timeframe: str | None = None) -> Indicators:
        """The indicators as they would be if this timeframe's forming candle closed now."""
        return forming(self.arrays, self.row, INDEX[timeframe or self.timeframe])

    def structure(self, timeframe: str | None = None) -> Structure:
        t = INDEX[timeframe or self.timeframe]
        if t not in self._seen:
            x = self._numbers(timeframe)[X_STRUCTURE:X_INDICATORS]
            for k in _WHOLE:
                x[k] = int(x[k])
            self._seen[t] = Structure._make(x)
        return self._seen[t]

    def sessions(self, timeframe: str | None = None) -> list[Session]:
        """Sydney, Tokyo, London, New York; NaN where none was seen yet, and on the daily chart."""
        t = INDEX[timeframe or self.timeframe]
        x, hour = self.arrays.smc[self.row, t].tolist(), self._hour(t)
        return [
            Session(name, (hour - begin) % 24 < (end - begin) % 24, *x[at : at + 3])
            for name, (begin, end), at in zip(
                smc.SESSION_NAMES,
                smc.SESSION_HOURS,
                range(smc.SESSIONS, smc.SESSIONS + 12, 3),
                strict=True,
            )
        ]

    def kill_zone(self) -> str:
        """The hours in which most of the day's moves begin, or nothing."""
        hour = self._hour(INDEX[self.timeframe])
        return next((name for name, begin, end in KILL_ZONES if begin <= hour < end), "")

    def _hour(self, t: int) -> int:
        """Hour of UTC in which the newest closed candle opened."""
        count = int(self.arrays.counts[self.row, t])
        open_ms = int(self.arrays.closed_at[self.row, t, (count - 1) & HISTORY_MASK])
        return open_ms // smc.HOUR_MS % 24

    def pools(self, timeframe: str | None = None) -> list[Pool]:
        """Confirmed highs (side +1) and lows that nothing has traded through, oldest first."""
        t = INDEX[timeframe or self.timeframe]
        found = [
            Pool(side, row[smc.Z_TOP], int(row[smc.Z_MEMBERS]), int(row[smc.Z_ORIGIN_MS]))
            for index, side in ((0, 1), (1, -1))
            for row in self.arrays.zones[self.row, t, smc.POOLS, index].tolist()
            if row[smc.Z_ORIGIN_MS]
        ]
        return sorted(found, key=lambda pool: pool.origin_ms)

    def zones(self, kind: str, timeframe: str | None = None, side: int = 0) -> list[Zone]:
        """Open zones, "gap" or "block", of one side if given, oldest first."""
        t, k = INDEX[timeframe or self.timeframe], ("gap", "block").index(kind)
        bullish, bearish = self.arrays.zones[self.row, t, k].tolist()
        rows = [(1, row) for row in bullish if row[smc.Z_ORIGIN_MS] and side >= 0]
        rows += [(-1, row) for row in bearish if row[smc.Z_ORIGIN_MS] and side <= 0]
        rows.sort(key=_origin)
        return [
            Zone(of, top, bottom, int(origin_ms), touched != 0.0)
            for of, (top, bottom, origin_ms, touched) in rows
        ]


def _origin(zone: tuple[int, list[float]]) -> float:
    return zone[1][smc.Z_ORIGIN_MS]


def forming(arrays: Arrays, row: int, t: int) -> Indicators:
    """Indicators with the forming candle in them, computed from the closed state, which stays."""
    made = np.empty(arrays.ind.shape[-1])
    forming_indicators(
        arrays.ind[row, t], arrays.forming[row, t], int(arrays.forming_at[row, t]),
        arrays.closed[row, t], int(arrays.counts[row, t]), int(STEP_MS[t]), made,
    )  # fmt: skip
    return Indicators._make(made[: len(OUTPUTS)].tolist())
