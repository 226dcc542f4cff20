"""What a rule sees of the market at a close: closed candles, indicators and structure, no future.

Everything is read-only and lazy: a rule that looks at three numbers pays for three. `timeframe`
arguments default to the timeframe of the candle that closed. Only `forming` speaks of candles that
are not over: as they were at the very record that closed this one.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from brain import smc
from brain.candles import STEP_MS
from brain.indicators import OUTPUTS, forming_indicators
from brain.state import (
    ASK,
    BAR_FIELDS,
    BID,
    CLOSE,
    HIGH,
    HISTORY,
    HISTORY_MASK,
    LAST,
    LOW,
    MARK_PRICE,
    OPEN,
    VOLUME,
    Arrays,
    Floats,
    Ints,
)
from records import TIMEFRAME_NAMES

TREND_WEIGHTS: Final = (("1h", 0.4), ("15m", 0.3), ("5m", 0.2), ("1m", 0.1))
ZONE_EDGE, EQUILIBRIUM = 0.9, 0.05  # of half the range
KILL_ZONES: Final = (
    ("asia", 0, 4), ("london_open", 6, 9), ("new_york", 11, 14), ("london_close", 14, 16),
)  # fmt: skip
INDEX: Final = {name: index for index, name in enumerate(TIMEFRAME_NAMES)}
_FLAGS: Final = {
    (name, side): smc.flag(code, side) for code, name in enumerate(smc.CODES) for side in (1, -1)
}


@dataclass(frozen=True, slots=True)
class Bars:
    """Closed candles, oldest first, at most 128; read-only arrays of equal length."""

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
    _seen: dict[str | int, Any] = field(
        default_factory=dict, repr=False
    )  # what was looked up already

    def happened(self, name: str, side: int) -> bool:
        """Did this close bring a structure event of this name (smc.CODES) and side?"""
        return bool(self.flags & _FLAGS[name, side])

    def events(self) -> list[str]:
        """The structure events of this close in words, like "sweep up"."""
        return [
            f"{name} {'up' if side > 0 else 'down'}"
            for (name, side), bit in _FLAGS.items()
            if self.flags & bit
        ]

    def _newest(self, timeframe: str | None, field: int, back: int = 0) -> float:
        t = INDEX[timeframe or self.timeframe]
        count = int(self.arrays.counts[self.row, t])
        if count <= back:
            return float("nan")
        return float(self.arrays.closed[self.row, t, (count - 1 - back) & HISTORY_MASK, field])

    def open(self, timeframe: str | None = None) -> float:
        return self._newest(timeframe, OPEN)

    def close(self, timeframe: str | None = None) -> float:
        return self._newest(timeframe, CLOSE)

    def high(self, timeframe: str | None = None) -> float:
        return self._newest(timeframe, HIGH)

    def low(self, timeframe: str | None = None) -> float:
        return self._newest(timeframe, LOW)

    def volume(self, timeframe: str | None = None) -> float:
        return self._newest(timeframe, VOLUME)

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
        return float(self.arrays.px[self.row, BID])

    @property
    def ask(self) -> float:
        return float(self.arrays.px[self.row, ASK])

    @property
    def mark(self) -> float:
        return float(self.arrays.px[self.row, MARK_PRICE])

    @property
    def last(self) -> float:
        return float(self.arrays.px[self.row, LAST])

    @property
    def round_trip(self) -> float:
        """Both taker fees and the spread, in price."""
        spread = self.ask - self.bid
        return 2.0 * self.taker_fee * self.close() + (spread if spread > 0.0 else 0.0)

    def bars(self, timeframe: str | None = None) -> Bars:
        """The kept candles as arrays."""
        t = INDEX[timeframe or self.timeframe]
        count = int(self.arrays.counts[self.row, t])
        order = np.arange(max(count - HISTORY, 0), count) & HISTORY_MASK
        values = self.arrays.closed[self.row, t][order]
        columns = [_frozen(values[:, k].copy()) for k in range(len(BAR_FIELDS))]
        return Bars(_frozen(self.arrays.closed_at[self.row, t][order]), *columns)

    def indicators(self, timeframe: str | None = None) -> Indicators:
        timeframe = timeframe or self.timeframe
        if timeframe not in self._seen:
            values = self.arrays.ind[self.row, INDEX[timeframe], : len(OUTPUTS)].tolist()
            self._seen[timeframe] = Indicators._make(values)
        return self._seen[timeframe]

    def forming(self, timeframe: str | None = None) -> Indicators:
        """The indicators as they would be if this timeframe's forming candle closed now."""
        return forming(self.arrays, self.row, INDEX[timeframe or self.timeframe])

    def structure(self, timeframe: str | None = None) -> Structure:
        t = INDEX[timeframe or self.timeframe]
        if t not in self._seen:
            self._seen[t] = self._structure(t)
        return self._seen[t]

    def _structure(self, t: int) -> Structure:
        x = self.arrays.smc[self.row, t].tolist()
        return Structure(
            bias=int(x[smc.BIAS]),
            swing_bias=int(x[smc.SWING + smc.BIAS]),
            high=x[smc.P_HIGH],
            low=x[smc.P_LOW],
            swing_high=x[smc.SWING + smc.P_HIGH],
            swing_low=x[smc.SWING + smc.P_LOW],
            position=x[smc.POSITION],
            sweep_level=x[smc.SWEEP_LEVEL],
            sweep_extreme=x[smc.SWEEP_EXTREME],
            sweep_ms=x[smc.SWEEP_MS],
            sweep_side=int(x[smc.SWEEP_SIDE]),
            sweep_pool=int(x[smc.SWEEP_POOL]),
            break_ms=x[smc.BREAK_MS],
            day_high=x[smc.DAY_HIGH],
            day_low=x[smc.DAY_LOW],
            week_high=x[smc.WEEK_HIGH],
            week_low=x[smc.WEEK_LOW],
        )

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

    def zones(self, kind: str, timeframe: str | None = None) -> list[Zone]:
        """Open zones, "gap" or "block", oldest first."""
        t, k = INDEX[timeframe or self.timeframe], ("gap", "block").index(kind)
        found = [
            Zone(side, row[smc.Z_TOP], row[smc.Z_BOTTOM], int(row[smc.Z_ORIGIN_MS]), bool(row[3]))
            for index, side in ((0, 1), (1, -1))
            for row in self.arrays.zones[self.row, t, k, index].tolist()
            if row[smc.Z_ORIGIN_MS]
        ]
        return sorted(found, key=lambda zone: zone.origin_ms)

    def trend(self) -> float:
        """Agreement of 1h, 15m, 5m, 1m, weighted 40/30/20/10: -1 all down .. +1 all up.

        A timeframe is up when its close lies above EMA 50 and EMA 9 above EMA 21, down when both
        are reversed, else neither. Timeframes that do not know yet have no vote.
        """
        if "trend" not in self._seen:
            self._seen["trend"] = self._trend()
        return self._seen["trend"]

    def _trend(self) -> float:
        total = weight_known = 0.0
        for timeframe, weight in TREND_WEIGHTS:
            x = self.indicators(timeframe)
            if x.ema50 != x.ema50:
                continue
            close = self.close(timeframe)
            up = (close > x.ema50) and (x.ema9 > x.ema21)
            down = (close < x.ema50) and (x.ema9 < x.ema21)
            total += weight * (up - down)
            weight_known += weight
        return total / weight_known if weight_known else 0.0


def forming(arrays: Arrays, row: int, t: int) -> Indicators:
    """Indicators with the forming candle in them, computed from the closed state, which stays."""
    made = np.empty(arrays.ind.shape[-1])
    forming_indicators(
        arrays.ind[row, t], arrays.forming[row, t], int(arrays.forming_at[row, t]),
        arrays.closed[row, t], int(arrays.counts[row, t]), int(STEP_MS[t]), made,
    )  # fmt: skip
    return Indicators._make(made[: len(OUTPUTS)].tolist())


def _frozen(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    array.flags.writeable = False
    return array
