"""What the market looked like at a signal: small, bounded, sign-aligned numbers for the model.

Every number is taken from the state that the rule saw, divided by ATR where it is a distance, and
multiplied by the side where it has a direction, so that buys and sells teach the same thing: the
features of a buy are those of the sell in the mirrored market. "Ahead" is where the trade wants to
go, "behind" where it comes from.

The first twelve keep the names that this family of engines has always given them, with the
definitions put right: three-candle gaps with a sign, Wilder's RSI, momentum over five whole
candles, levels that exclude the candle itself. `confidence_ensemble` is the old rule of thumb over
the others; it is a baseline, no probability: the model's is learned.

FEATURES is the contract with whatever learns: names are added at the end, never reused for another
meaning, and outcomes carry them by name, so that a learner skips what it does not know.

A signal waits for its features, so they are a kernel; its twin in plain Python is in the tests.
"""

from __future__ import annotations

import math
from typing import Final

import numpy as np

from brain import smc
from brain.candles import STEP_MS
from brain.follow import arm_step
from brain.gather import trend_of
from brain.indicators import (
    ADX,
    ATR,
    BB_MIDDLE,
    BB_STD,
    DI_MINUS,
    DI_PLUS,
    EMA50,
    IMBALANCE,
    MACD,
    MACD_SIGNAL,
    RSI,
    TICK_Z,
    VOLUME_MEAN,
    VWAP,
)
from brain.jit import entry, step
from brain.state import CLOSE, HIGH, HISTORY_MASK, LOW, OPEN, VOLUME, Arrays, Floats
from brain.view import INDEX, CandleView
from records import TIMEFRAME_NAMES

FEATURES: Final = (
    "market_structure", "order_blocks_count", "institutional_candle", "liquidity_grab",
    "fvg_size_atr", "fvg_proximity", "ob_proximity", "atr_normalized_volume", "rsi_14",
    "momentum_atr", "time_to_next_level", "confidence_ensemble",
    "trend", "swing_bias", "bias_5m", "bias_15m", "bias_1h", "position", "day_position",
    "break_age", "sweep_age", "sweep_pool", "gap_count", "gap_ahead", "gap_behind", "block_ahead",
    "block_behind", "adx", "di", "macd_atr", "bb_z", "vwap_atr", "ema50_atr", "atr_share",
    "range_atr", "close_location", "volume_ratio", "imbalance", "tick_z", "hour_sin", "hour_cos",
)  # fmt: skip
(
    MARKET_STRUCTURE, ORDER_BLOCKS_COUNT, INSTITUTIONAL_CANDLE, LIQUIDITY_GRAB, FVG_SIZE_ATR,
    FVG_PROXIMITY, OB_PROXIMITY, ATR_NORMALIZED_VOLUME, RSI_14, MOMENTUM_ATR, TIME_TO_NEXT_LEVEL,
    CONFIDENCE_ENSEMBLE, TREND, SWING_BIAS, BIAS_5M, BIAS_15M, BIAS_1H, POSITION, DAY_POSITION,
    BREAK_AGE, SWEEP_AGE, SWEEP_POOL, GAP_COUNT, GAP_AHEAD, GAP_BEHIND, BLOCK_AHEAD, BLOCK_BEHIND,
    ADX_100, DI, MACD_ATR, BB_Z, VWAP_ATR, EMA50_ATR, ATR_SHARE, RANGE_ATR, CLOSE_LOCATION,
    VOLUME_RATIO, IMBALANCE_SIDE, TICK_Z_FAR, HOUR_SIN, HOUR_COS,
) = range(len(FEATURES))  # fmt: skip
FAR: Final = 4.0  # ATR; farther is just far
AGE_BARS: Final = 60  # older is just old
MOMENTUM_BARS: Final = 5
DAY_MS: Final = 86_400_000
RANGE_LEAST: Final = 0.1  # of an ATR: a candle narrower than this counts as this wide
DECIMALS: Final = 1e6
_SWEEP_UP, _SWEEP_DOWN = smc.flag(smc.SWEEP, 1), smc.flag(smc.SWEEP, -1)
_5M, _15M, _1H = (TIMEFRAME_NAMES.index(name) for name in ("5m", "15m", "1h"))


@step
def _bounded(value: float, limit: float) -> float:
    """Within +-limit; 0 for what is not known."""
    if not np.isfinite(value):
        return 0.0
    return max(-limit, min(limit, value))


@step
def _zones(
    zones: Floats, side: int, close: float, atr: float
) -> tuple[float, float, float, float, float]:
    """Open zones of one kind around the close, distances in ATR, from the side's point of view:
    (ahead, behind, nearest, size, balance). `nearest` is signed, behind is positive, 0 inside, the
    older one of two; `size` is its size, signed by whether it supports the side; `balance` is
    supporting minus opposing zones as a share of the room."""
    ahead = behind = nearest = FAR
    size, balance, oldest = 0.0, 0, -np.inf
    if not atr > 0.0:
        return ahead, behind, nearest, size, 0.0
    for k in range(2):
        with_us = side if k == 0 else -side
        for i in range(smc.ZONES):
            top, bottom = zones[k, i, smc.Z_TOP], zones[k, i, smc.Z_BOTTOM]
            origin = zones[k, i, smc.Z_ORIGIN_MS]
            if origin == 0.0:
                continue
            balance += with_us
            distance = 0.0
            if not bottom <= close <= top:
                distance = (close - (top if close > top else bottom)) * side / atr
            if distance >= 0.0:
                behind = min(behind, distance)
            if distance <= 0.0:
                ahead = min(ahead, -distance)
            farther = abs(distance) - abs(nearest)
            if farther < 0.0 or (farther == 0.0 and origin < oldest):
                nearest, size, oldest = distance, (top - bottom) / atr * with_us, origin
    return ahead, behind, nearest, _bounded(size, FAR), balance / smc.ZONES


@step
def _next_level(x: Floats, pools: Floats, side: int, close: float, atr: float) -> float:
    """Distance to the nearest resting level ahead: pools, swing pivots, yesterday, last week."""
    if not atr > 0.0:
        return FAR
    nearest = FAR
    for i in range(smc.ZONES):
        if pools[i, smc.Z_ORIGIN_MS] != 0.0:
            away = (pools[i, smc.Z_TOP] - close) * side
            if away > 0.0:
                nearest = min(nearest, away / atr)
    swing, day, week = smc.SWING + smc.P_HIGH, smc.DAY_HIGH, smc.WEEK_HIGH
    if side < 0:
        swing, day, week = smc.SWING + smc.P_LOW, smc.DAY_LOW, smc.WEEK_LOW
    for k in (swing, day, week):
        away = (x[k] - close) * side
        if away > 0.0:
            nearest = min(nearest, away / atr)
    return nearest


@step
def _age(bar_ms: int, at_ms: float, step_ms: int) -> float:
    """Candles since then as a share of AGE_BARS: 0 this one, 1 old or never."""
    if not np.isfinite(at_ms):
        return 1.0
    return min((bar_ms - at_ms) / step_ms / AGE_BARS, 1.0)


@step
def _ensemble(f: Floats) -> float:
    """The rule of thumb: structure, sweep, gap, block and momentum, each for or against."""
    score = 0.5 + 0.1 * f[MARKET_STRUCTURE] + 0.15 * f[LIQUIDITY_GRAB]
    score += 0.1 * ((f[FVG_SIZE_ATR] > 1.0) - (f[FVG_SIZE_ATR] < -1.0))
    score += 0.1 * ((f[ORDER_BLOCKS_COUNT] > 0.0) - (f[ORDER_BLOCKS_COUNT] < 0.0))
    score += 0.05 * ((f[MOMENTUM_ATR] > 1.0) - (f[MOMENTUM_ATR] < -1.0))
    return max(0.0, min(1.0, score))


@step
def _candle(a: Arrays, s: int, t: int, side: int, atr: float, f: Floats) -> None:
    """What the newest candle itself says."""
    x, count = a.ind[s, t], a.counts[s, t]
    bar = a.closed[s, t, (count - 1) & HISTORY_MASK]
    close, volume, wide = bar[CLOSE], bar[VOLUME], bar[HIGH] - bar[LOW]
    width = wide / atr
    if width < RANGE_LEAST:
        width = RANGE_LEAST
    share = volume / x[VOLUME_MEAN] / width if x[VOLUME_MEAN] > 0.0 else np.nan
    if share > 0.0:
        f[ATR_NORMALIZED_VOLUME] = _bounded(math.log2(share), FAR)
    else:
        f[ATR_NORMALIZED_VOLUME] = -FAR if share == 0.0 else 0.0
    f[INSTITUTIONAL_CANDLE] = _bounded((close - bar[OPEN]) / atr * side, 1.0)
    if count > MOMENTUM_BARS:
        before = a.closed[s, t, (count - 1 - MOMENTUM_BARS) & HISTORY_MASK, CLOSE]
        f[MOMENTUM_ATR] = _bounded((close - before) / atr * side, FAR)
    f[RANGE_ATR] = _bounded(wide / atr, FAR)
    if wide > 0.0:
        f[CLOSE_LOCATION] = _bounded((2.0 * (close - bar[LOW]) / wide - 1.0) * side, 1.0)
    if x[VOLUME_MEAN] > 0.0:
        f[VOLUME_RATIO] = _bounded(volume / x[VOLUME_MEAN], FAR)


@step
def _indicators(x: Floats, side: int, close: float, atr: float, f: Floats) -> None:
    f[RSI_14] = _bounded((x[RSI] - 50.0) / 50.0 * side, 1.0)
    f[ADX_100] = _bounded(x[ADX] / 100.0, 1.0)
    f[DI] = _bounded((x[DI_PLUS] - x[DI_MINUS]) / 100.0 * side, 1.0)
    f[MACD_ATR] = _bounded((x[MACD] - x[MACD_SIGNAL]) / atr * side, FAR)
    if x[BB_STD] > 0.0:
        f[BB_Z] = _bounded((close - x[BB_MIDDLE]) / x[BB_STD] * side, FAR)
    f[VWAP_ATR] = _bounded((close - x[VWAP]) / atr * side, FAR)
    f[EMA50_ATR] = _bounded((close - x[EMA50]) / atr * side, FAR)
    f[ATR_SHARE] = _bounded(100.0 * atr / close, FAR)
    f[IMBALANCE_SIDE] = _bounded(x[IMBALANCE] * side, 1.0)
    f[TICK_Z_FAR] = _bounded(x[TICK_Z], FAR)


@step
def _structure(x: Floats, side: int, close: float, bar_ms: int, step_ms: int, f: Floats) -> None:
    f[MARKET_STRUCTURE] = x[smc.BIAS] * side
    f[SWING_BIAS] = x[smc.SWING + smc.BIAS] * side
    f[POSITION] = _bounded(x[smc.POSITION] * side, 1.0)
    half = (x[smc.DAY_HIGH] - x[smc.DAY_LOW]) / 2.0
    if half > 0.0:
        f[DAY_POSITION] = _bounded((close - x[smc.DAY_LOW] - half) / half * side, 2.0)
    f[BREAK_AGE] = _age(bar_ms, x[smc.BREAK_MS], step_ms)
    f[SWEEP_AGE] = _age(bar_ms, x[smc.SWEEP_MS], step_ms)
    f[SWEEP_POOL] = _bounded(x[smc.SWEEP_POOL] * x[smc.SWEEP_SIDE] * side / 4.0, 1.0)


@step
def _measure(
    a: Arrays, s: int, t: int, side: int, flags: int, bar_ms: int, known_ms: int, f: Floats
) -> None:
    f[:] = 0.0
    x, level, step_ms = a.ind[s, t], a.smc[s, t], STEP_MS[t]
    close = a.closed[s, t, (a.counts[s, t] - 1) & HISTORY_MASK, CLOSE]
    atr = x[ATR] if x[ATR] > 0.0 else np.nan
    _candle(a, s, t, side, atr, f)
    _indicators(x, side, close, atr, f)
    _structure(level, side, close, bar_ms, step_ms, f)
    up, down = flags & _SWEEP_UP != 0, flags & _SWEEP_DOWN != 0
    f[LIQUIDITY_GRAB] = (int(up) - int(down)) * side
    f[GAP_AHEAD], f[GAP_BEHIND], nearest, f[FVG_SIZE_ATR], f[GAP_COUNT] = _zones(
        a.zones[s, t, smc.GAPS], side, close, atr
    )
    f[FVG_PROXIMITY] = nearest / FAR
    f[BLOCK_AHEAD], f[BLOCK_BEHIND], nearest, _, f[ORDER_BLOCKS_COUNT] = _zones(
        a.zones[s, t, smc.BLOCKS], side, close, atr
    )
    f[OB_PROXIMITY] = nearest / FAR
    pools = a.zones[s, t, smc.POOLS, 0 if side > 0 else 1]
    f[TIME_TO_NEXT_LEVEL] = _next_level(level, pools, side, close, atr)
    f[CONFIDENCE_ENSEMBLE] = _ensemble(f)
    f[TREND] = trend_of(a, s) * side
    f[BIAS_5M] = a.smc[s, _5M, smc.BIAS] * side
    f[BIAS_15M] = a.smc[s, _15M, smc.BIAS] * side
    f[BIAS_1H] = a.smc[s, _1H, smc.BIAS] * side
    angle = 2.0 * math.pi * (known_ms % DAY_MS) / DAY_MS
    f[HOUR_SIN], f[HOUR_COS] = math.sin(angle), math.cos(angle)
    for k in range(len(f)):
        f[k] = np.rint(f[k] * DECIMALS) / DECIMALS + 0.0  # + 0.0: no minus zero


@entry
def measure(
    a: Arrays, s: int, t: int, side: int, flags: int, bar_ms: int, known_ms: int, f: Floats
) -> None:
    """FEATURES of a symbol's newest candle into f."""
    _measure(a, s, t, side, flags, bar_ms, known_ms, f)


@entry
def open_signal(
    a: Arrays, s: int, t: int, key: int, known_ns: int, deadline_ms: int, bars_from_ms: int,
    side: int, entry: float, stop: float, target: float, flags: int, bar_ms: int, known_ms: int,
    f: Floats,
) -> int:  # fmt: skip
    """`arm` and `measure` in one call: handing over the state costs more than either."""
    _measure(a, s, t, side, flags, bar_ms, known_ms, f)
    return arm_step(a, s, t, key, known_ns, deadline_ms, bars_from_ms, side, entry, stop, target)


def named(values: Floats) -> dict[str, float]:
    """FEATURES by name."""
    return dict(zip(FEATURES, values.tolist(), strict=True))


def features(view: CandleView, side: int) -> dict[str, float]:
    """FEATURES to numbers, each finite and bounded; 0 where nothing is known, 1 or FAR for none."""
    made = np.empty(len(FEATURES))
    measure(
        view.arrays, view.row, INDEX[view.timeframe], side, view.flags, view.bar_ms, view.known_ms,
        made,
    )  # fmt: skip
    return named(made)
