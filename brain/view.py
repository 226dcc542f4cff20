"""What a rule sees of the market at a close: closed candles, indicators and structure, no future.

Everything is read-only and lazy: a rule that looks at three numbers pays for three. The forming bar
is not in here. `timeframe` arguments default to the timeframe of the candle that closed.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from brain import smc
from brain.indicators import OUTPUTS
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
    VOLUME,
    Arrays,
    Floats,
    Ints,
)
from records import TIMEFRAME_NAMES

TREND_WEIGHTS: Final = (("1h", 0.4), ("15m", 0.3), ("5m", 0.2), ("1m", 0.1))
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


assert Indicators._fields == OUTPUTS


class Zone(NamedTuple):
    """A gap or an order block: side +1 bullish (below price), -1 bearish."""

    side: int
    top: float
    bottom: float
    origin_ms: int
    touched: bool


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
    _seen: dict[str, Any] = field(default_factory=dict, repr=False)  # what was looked up already

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

    def structure(self, timeframe: str | None = None) -> Structure:
        x = self.arrays.smc[self.row, INDEX[timeframe or self.timeframe]].tolist()
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
        )

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


def _frozen(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    array.flags.writeable = False
    return array
