"""Slow twin of brain/features.py: the same definitions in plain Python over a CandleView.

The trend is made here from the indicators of its four timeframes, not taken from the view.
"""

from __future__ import annotations

import math
from typing import Final, NamedTuple

from brain import smc
from brain.state import CLOSE, HISTORY_MASK
from brain.view import INDEX, CandleView, Indicators, Structure
from records import TIMEFRAMES_MIN

FAR: Final = 4.0  # ATR; farther is just far
AGE_BARS: Final = 60  # older is just old
MOMENTUM_BARS: Final = 5
HOUR_MS: Final = 3_600_000
RANGE_LEAST: Final = 0.1  # of an ATR: a candle narrower than this counts as this wide


def _bounded(value: float, limit: float = 1.0) -> float:
    return max(-limit, min(limit, value)) if math.isfinite(value) else 0.0


class _Zones(NamedTuple):
    """Open zones of one kind around the close, distances in ATR, from the side's point of view."""

    ahead: float
    behind: float
    nearest: float  # signed: behind is positive, 0 inside
    size: float  # of the nearest, signed by whether it supports the side
    balance: float  # supporting minus opposing, as a share of the room


def _zones(view: CandleView, kind: str, side: int, close: float, atr: float) -> _Zones:
    ahead = behind = FAR
    nearest, size, balance = FAR, 0.0, 0
    for zone in view.zones(kind) if atr > 0.0 else ():
        balance += zone.side * side
        if zone.bottom <= close <= zone.top:
            distance = 0.0
        else:
            edge = zone.top if close > zone.top else zone.bottom
            distance = (close - edge) * side / atr
        if distance >= 0.0:
            behind = min(behind, distance)
        if distance <= 0.0:
            ahead = min(ahead, -distance)
        if abs(distance) < abs(nearest):
            nearest, size = distance, (zone.top - zone.bottom) / atr * zone.side * side
    return _Zones(
        _bounded(ahead, FAR),
        _bounded(behind, FAR),
        _bounded(nearest, FAR),
        _bounded(size, FAR),
        balance / smc.ZONES,
    )


def _next_level(view: CandleView, seen: Structure, side: int, close: float, atr: float) -> float:
    """Distance to the nearest resting level ahead: pools, swing pivots, yesterday, last week."""
    levels = [pool.level for pool in view.pools() if pool.side == side]
    levels += (
        [seen.swing_high, seen.day_high, seen.week_high]
        if side > 0
        else [seen.swing_low, seen.day_low, seen.week_low]
    )
    if not atr > 0.0:
        return FAR
    ahead = [(level - close) * side / atr for level in levels if (level - close) * side > 0.0]
    return min([*ahead, FAR])


def trend(view: CandleView) -> float:
    """Agreement of four timeframes, weighted 40/30/20/10."""
    total = known = 0.0
    for name, weight in (("1h", 0.4), ("15m", 0.3), ("5m", 0.2), ("1m", 0.1)):
        x = view.indicators(name)
        if x.ema50 == x.ema50:
            close = view.close(name)
            total += weight * ((close > x.ema50) and (x.ema9 > x.ema21))
            total -= weight * ((close < x.ema50) and (x.ema9 < x.ema21))
            known += weight
    return total / known if known else 0.0


def _momentum(view: CandleView, close: float) -> float:
    """The close against the one five candles before."""
    t, count = INDEX[view.timeframe], view.candles()
    if count <= MOMENTUM_BARS:
        return math.nan
    slot = (count - 1 - MOMENTUM_BARS) & HISTORY_MASK
    return close - float(view.arrays.closed[view.row, t, slot, CLOSE])


def _age(view: CandleView, at_ms: float) -> float:
    """Candles since then as a share of AGE_BARS: 0 this one, 1 old or never."""
    if not math.isfinite(at_ms):
        return 1.0
    step_ms = TIMEFRAMES_MIN[INDEX[view.timeframe]] * 60_000
    return min((view.bar_ms - at_ms) / step_ms / AGE_BARS, 1.0)


def _ensemble(made: dict[str, float]) -> float:
    """The rule of thumb: structure, sweep, gap, block and momentum, each for or against."""
    score = 0.5 + 0.1 * made["market_structure"] + 0.15 * made["liquidity_grab"]
    score += 0.1 * ((made["fvg_size_atr"] > 1.0) - (made["fvg_size_atr"] < -1.0))
    score += 0.1 * ((made["order_blocks_count"] > 0.0) - (made["order_blocks_count"] < 0.0))
    score += 0.05 * ((made["momentum_atr"] > 1.0) - (made["momentum_atr"] < -1.0))
    return max(0.0, min(1.0, score))


def _twelve(
    view: CandleView, side: int, x: Indicators, seen: Structure, atr: float
) -> tuple[dict[str, float], _Zones, _Zones]:
    close, volume = view.close(), view.volume()
    width = max((view.high() - view.low()) / atr, RANGE_LEAST)
    share = volume / x.volume_mean / width if x.volume_mean > 0.0 else math.nan
    none_traded = -FAR if share == 0.0 else 0.0
    gaps, blocks = (_zones(view, kind, side, close, atr) for kind in ("gap", "block"))
    swept = view.happened("sweep", side) - view.happened("sweep", -side)
    made = {
        "market_structure": float(seen.bias * side),
        "order_blocks_count": blocks.balance,
        "institutional_candle": _bounded((close - view.open()) / atr * side),
        "liquidity_grab": float(swept),
        "fvg_size_atr": gaps.size,
        "fvg_proximity": gaps.nearest / FAR,
        "ob_proximity": blocks.nearest / FAR,
        "atr_normalized_volume": _bounded(math.log2(share), FAR) if share > 0.0 else none_traded,
        "rsi_14": _bounded((x.rsi - 50.0) / 50.0 * side),
        "momentum_atr": _bounded(_momentum(view, close) / atr * side, FAR),
        "time_to_next_level": _next_level(view, seen, side, close, atr),
    }
    made["confidence_ensemble"] = _ensemble(made)
    return made, gaps, blocks


def features(view: CandleView, side: int) -> dict[str, float]:
    """FEATURES to numbers, each finite and bounded; 0 where nothing is known, 1 or FAR for none."""
    x, seen, close = view.indicators(), view.structure(), view.close()
    atr = x.atr if x.atr > 0.0 else math.nan
    angle = 2.0 * math.pi * (view.known_ms % (24 * HOUR_MS)) / (24 * HOUR_MS)
    made, gaps, blocks = _twelve(view, side, x, seen, atr)
    wide, day_half = view.high() - view.low(), (seen.day_high - seen.day_low) / 2.0
    made |= {
        "trend": trend(view) * side,
        "swing_bias": float(seen.swing_bias * side),
        "bias_5m": float(view.structure("5m").bias * side),
        "bias_15m": float(view.structure("15m").bias * side),
        "bias_1h": float(view.structure("1h").bias * side),
        "position": _bounded(seen.position * side),
        "day_position": _bounded((close - seen.day_low - day_half) / day_half * side, 2.0)
        if day_half > 0.0
        else 0.0,
        "break_age": _age(view, seen.break_ms),
        "sweep_age": _age(view, seen.sweep_ms),
        "sweep_pool": _bounded(seen.sweep_pool * seen.sweep_side * side / 4.0),
        "gap_count": gaps.balance,
        "gap_ahead": gaps.ahead,
        "gap_behind": gaps.behind,
        "block_ahead": blocks.ahead,
        "block_behind": blocks.behind,
        "adx": _bounded(x.adx / 100.0),
        "di": _bounded((x.di_plus - x.di_minus) / 100.0 * side),
        "macd_atr": _bounded((x.macd - x.macd_signal) / atr * side, FAR),
        "bb_z": _bounded((close - x.bb_middle) / x.bb_std * side, FAR) if x.bb_std > 0.0 else 0.0,
        "vwap_atr": _bounded((close - x.vwap) / atr * side, FAR),
        "ema50_atr": _bounded((close - x.ema50) / atr * side, FAR),
        "atr_share": _bounded(100.0 * atr / close, FAR),
        "range_atr": _bounded(wide / atr, FAR),
        "close_location": _bounded((2.0 * (close - view.low()) / wide - 1.0) * side)
        if wide > 0.0
        else 0.0,
        "volume_ratio": _bounded(view.volume() / x.volume_mean, FAR)
        if x.volume_mean > 0.0
        else 0.0,
        "imbalance": _bounded(x.imbalance * side),
        "tick_z": _bounded(x.tick_z, FAR),
        "hour_sin": math.sin(angle),
        "hour_cos": math.cos(angle),
    }
    return {name: round(value, 6) + 0.0 for name, value in made.items()}  # + 0.0: no minus zero
