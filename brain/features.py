"""What the market looked like at a signal: small, bounded, sign-aligned numbers for the model.

Every number is taken from the view that the rule saw, divided by ATR where it is a distance, and
multiplied by the side where it has a direction, so that buys and sells teach the same thing.
"""

from __future__ import annotations

import math
from typing import Final

from brain.view import CandleView

DISTANCE_MAX: Final = 4.0  # ATR; farther is just far
HOUR_MS: Final = 3_600_000


def _bounded(value: float, limit: float) -> float:
    return max(-limit, min(limit, value)) if math.isfinite(value) else 0.0


def features(view: CandleView, side: int) -> dict[str, float]:
    """Names to numbers, each finite and bounded; 0 where nothing is known."""
    x, seen, close = view.indicators(), view.structure(), view.close()
    atr = x.atr if x.atr > 0.0 else math.nan
    angle = 2.0 * math.pi * (view.known_ms % (24 * HOUR_MS)) / (24 * HOUR_MS)
    volume = view.volume()
    made = {
        "trend": view.trend() * side,
        "bias": float(seen.bias * side),
        "swing_bias": float(seen.swing_bias * side),
        "position": _bounded(seen.position * side, 1.0),
        "rsi": _bounded((x.rsi - 50.0) / 50.0 * side, 1.0),
        "adx": _bounded(x.adx / 100.0, 1.0),
        "macd_atr": _bounded((x.macd - x.macd_signal) / atr * side, DISTANCE_MAX),
        "bb_z": _bounded((close - x.bb_middle) / x.bb_std * side, DISTANCE_MAX)
        if x.bb_std > 0.0
        else 0.0,
        "vwap_atr": _bounded((close - x.vwap) / atr * side, DISTANCE_MAX),
        "ema50_atr": _bounded((close - x.ema50) / atr * side, DISTANCE_MAX),
        "atr_share": _bounded(100.0 * atr / close, DISTANCE_MAX),
        "volume_ratio": _bounded(volume / x.volume_mean, DISTANCE_MAX)
        if x.volume_mean > 0.0
        else 0.0,
        "imbalance": _bounded(x.imbalance * side, 1.0),
        "hour_sin": math.sin(angle),
        "hour_cos": math.cos(angle),
    }
    return {name: round(value, 6) for name, value in made.items()}
