"""Indicator kernels: one row of numbers per symbol and timeframe, one step per closed candle.

TA-Lib's conventions to the last seed: EMA seeded by the mean of its first N, Wilder averages by the
mean of the first N changes, ADX by sums, MACD's fast average late so that both begin together,
Bollinger by the population deviation around the simple mean (bb_middle is SMA 20). What is summed
over the last 20 candles is summed afresh: no error builds up, and an amended candle counts as it
is. VWAP is anchored at the UTC day; tick_rate is aggregate trades per second over the window,
tick_z how far the newest candle's count lies from the window's mean in deviations. An output is
NaN until it is known. Everything looks back only.

The newest candle is an argument and its predecessors are the ring, so the forming candle takes the
same way: `forming_indicators` steps a copy of the row, as if the candle closed now.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from brain.jit import entry, step
from brain.state import (
    CLOSE,
    COUNT,
    HIGH,
    HISTORY_MASK,
    LOW,
    TAKER,
    VOLUME,
    Floats,
)

EMA_FAST, EMA_MIDDLE, EMA_SLOW = 9, 21, 50
WILDER: Final = 14
MACD_FAST, MACD_SLOW, MACD_SIGNAL_N = 12, 26, 9
WINDOW: Final = 20  # Bollinger, mean volume, taker imbalance, tick rate
DAY_MS: Final = 86_400_000

# Outputs, then the running values behind them. NaN = not known yet.
(
    EMA9, EMA21, EMA50, RSI, ATR, ADX, DI_PLUS, DI_MINUS, MACD, MACD_SIGNAL, BB_MIDDLE, BB_STD,
    VWAP, VOLUME_MEAN, IMBALANCE, TICK_RATE, TICK_Z,
) = range(17)  # fmt: skip
OUTPUTS: Final = (
    "ema9", "ema21", "ema50", "rsi", "atr", "adx", "di_plus", "di_minus", "macd", "macd_signal",
    "bb_middle", "bb_std", "vwap", "volume_mean", "imbalance", "tick_rate", "tick_z",
)  # fmt: skip
(
    SEEN, SUM9, SUM21, SUM50, GAIN, LOSS, TR, DM_PLUS, DM_MINUS, DM_TR, DX_SUM, MACD_EMA_FAST,
    MACD_EMA_SLOW, MACD_SUM_FAST, MACD_SUM_SLOW, MACD_SUM_SIGNAL, DAY, DAY_VALUE, DAY_VOLUME,
    PREV_HIGH, PREV_LOW, PREV_CLOSE,
) = range(24, 46)  # fmt: skip
SPARE: Final = 48  # eight numbers of a row that nothing is kept in: room for a flat candle
assert len(OUTPUTS) <= SEEN and PREV_CLOSE < SPARE


@step
def reset_indicators(x: Floats) -> None:
    """Nothing seen: outputs unknown, running values zero."""
    for k in range(SEEN):
        x[k] = np.nan
    for k in range(SEEN, len(x)):
        x[k] = 0.0
    x[DAY] = -1.0


@step
def _ema(x: Floats, out: int, total: int, n: int, seen: int, value: float) -> None:
    """`seen` values including this one; x[total] collects the seed."""
    if seen < n:
        x[total] += value
    elif seen == n:
        x[out] = (x[total] + value) / n
    else:
        x[out] += 2.0 / (n + 1) * (value - x[out])


@step
def _rsi(x: Floats, seen: int, change: float) -> None:
    gain, loss = max(change, 0.0), max(-change, 0.0)
    if seen <= WILDER + 1:
        x[GAIN] += gain
        x[LOSS] += loss
        if seen <= WILDER:
            return
        x[GAIN] /= WILDER
        x[LOSS] /= WILDER
    else:
        x[GAIN] = (x[GAIN] * (WILDER - 1) + gain) / WILDER
        x[LOSS] = (x[LOSS] * (WILDER - 1) + loss) / WILDER
    total = x[GAIN] + x[LOSS]
    x[RSI] = 100.0 * (x[GAIN] / total) if total > 0.0 else 0.0


@step
def _atr(x: Floats, seen: int, tr: float) -> None:
    if seen <= WILDER:
        x[TR] += tr
    elif seen == WILDER + 1:
        x[ATR] = (x[TR] + tr) / WILDER
    else:
        x[ATR] = (x[ATR] * (WILDER - 1) + tr) / WILDER


@step
def _adx(x: Floats, seen: int, high: float, low: float, tr: float) -> None:
    """`seen` bars including this one: sums from the second bar, DI from bar 15, ADX from bar 28."""
    up, down = high - x[PREV_HIGH], x[PREV_LOW] - low
    plus = up if up > down and up > 0.0 else 0.0
    minus = down if down > up and down > 0.0 else 0.0
    if seen <= WILDER:
        x[DM_PLUS] += plus
        x[DM_MINUS] += minus
        x[DM_TR] += tr
        return
    x[DM_PLUS] = x[DM_PLUS] - x[DM_PLUS] / WILDER + plus
    x[DM_MINUS] = x[DM_MINUS] - x[DM_MINUS] / WILDER + minus
    x[DM_TR] = x[DM_TR] - x[DM_TR] / WILDER + tr
    x[DI_PLUS] = 100.0 * (x[DM_PLUS] / x[DM_TR]) if x[DM_TR] > 0.0 else 0.0
    x[DI_MINUS] = 100.0 * (x[DM_MINUS] / x[DM_TR]) if x[DM_TR] > 0.0 else 0.0
    total = x[DI_PLUS] + x[DI_MINUS]
    dx = 100.0 * (abs(x[DI_PLUS] - x[DI_MINUS]) / total) if total > 0.0 else 0.0
    if seen < 2 * WILDER:
        x[DX_SUM] += dx
    elif seen == 2 * WILDER:
        x[ADX] = (x[DX_SUM] + dx) / WILDER
    elif total > 0.0:  # where nothing moves at all the average stays
        x[ADX] = (x[ADX] * (WILDER - 1) + dx) / WILDER


@step
def _macd(x: Floats, seen: int, close: float) -> None:
    _ema(x, MACD_EMA_SLOW, MACD_SUM_SLOW, MACD_SLOW, seen, close)
    _ema(x, MACD_EMA_FAST, MACD_SUM_FAST, MACD_FAST, seen - (MACD_SLOW - MACD_FAST), close)
    if seen < MACD_SLOW:
        if seen <= MACD_SLOW - MACD_FAST:
            x[MACD_SUM_FAST] = 0.0  # the fast average starts late: both begin on one bar
        return
    line = x[MACD_EMA_FAST] - x[MACD_EMA_SLOW]
    _ema(x, MACD_SIGNAL, MACD_SUM_SIGNAL, MACD_SIGNAL_N, seen - MACD_SLOW + 1, line)
    if seen - MACD_SLOW + 1 >= MACD_SIGNAL_N:
        x[MACD] = line


@step
def _window(x: Floats, bar: Floats, bars: Floats, before: int, step_ms: int) -> None:
    """What needs the last 20 candles: `bar` and the 19 newest of the ring.

    Prices count from the newest close: a window that stands still deviates by nothing at all.
    """
    close, price, volume, taker, trades = bar[CLOSE], 0.0, 0.0, 0.0, 0.0
    for at in range(before - WINDOW + 1, before):
        slot = at & HISTORY_MASK
        price += bars[slot, CLOSE] - close
        volume += bars[slot, VOLUME]
        taker += bars[slot, TAKER]
        trades += bars[slot, COUNT]
    middle, usual = price / WINDOW, (trades + bar[COUNT]) / WINDOW
    volume, taker = volume + bar[VOLUME], taker + bar[TAKER]
    squares, spread = 0.0, 0.0
    for at in range(before - WINDOW + 1, before):
        slot = at & HISTORY_MASK
        squares += (bars[slot, CLOSE] - close - middle) ** 2
        spread += (bars[slot, COUNT] - usual) ** 2
    spread = np.sqrt((spread + (bar[COUNT] - usual) ** 2) / WINDOW)
    x[BB_MIDDLE] = close + middle
    x[BB_STD] = np.sqrt((squares + middle**2) / WINDOW)
    x[VOLUME_MEAN] = volume / WINDOW
    x[IMBALANCE] = (2.0 * taker - volume) / volume if volume > 0.0 else 0.0
    x[TICK_RATE] = usual * 1_000.0 / step_ms
    x[TICK_Z] = (bar[COUNT] - usual) / spread if spread > 0.0 else 0.0


@step
def _vwap(x: Floats, open_ms: int, high: float, low: float, close: float, volume: float) -> None:
    day = float(open_ms // DAY_MS)
    if x[DAY] != day:
        x[DAY] = day
        x[DAY_VALUE] = 0.0
        x[DAY_VOLUME] = 0.0
    x[DAY_VALUE] += (high + low + close) / 3.0 * volume
    x[DAY_VOLUME] += volume
    x[VWAP] = x[DAY_VALUE] / x[DAY_VOLUME] if x[DAY_VOLUME] > 0.0 else close


@step
def step_indicators(
    x: Floats, bar: Floats, open_ms: int, bars: Floats, before: int, step_ms: int
) -> None:
    """One candle; `bars` holds those before it, of which `before` were ever closed."""
    high, low, close = bar[HIGH], bar[LOW], bar[CLOSE]
    x[SEEN] += 1.0
    seen = int(x[SEEN])
    _ema(x, EMA9, SUM9, EMA_FAST, seen, close)
    _ema(x, EMA21, SUM21, EMA_MIDDLE, seen, close)
    _ema(x, EMA50, SUM50, EMA_SLOW, seen, close)
    if seen > 1:
        last = x[PREV_CLOSE]
        tr = max(high - low, abs(high - last), abs(low - last))
        _rsi(x, seen, close - last)
        _atr(x, seen, tr)
        _adx(x, seen, high, low, tr)
    _macd(x, seen, close)
    _vwap(x, open_ms, high, low, close, bar[VOLUME])
    if seen >= WINDOW:
        _window(x, bar, bars, before, step_ms)
    x[PREV_HIGH], x[PREV_LOW], x[PREV_CLOSE] = high, low, close


@entry
def forming_indicators(
    x: Floats, bar: Floats, open_ms: int, bars: Floats, before: int, step_ms: int, out: Floats
) -> None:
    """The row `x` as it would be if the forming candle closed now, into `out`; `x` stays.

    Without a trade in it the candle would close flat at the last price, as klines have it.
    """
    for k in range(len(x)):
        out[k] = x[k]
    if bar[COUNT] != 0.0:
        step_indicators(out, bar, open_ms, bars, before, step_ms)
        return
    flat = out[SPARE : SPARE + 8]
    for k in range(8):
        flat[k] = x[PREV_CLOSE] if k <= CLOSE else 0.0
    step_indicators(out, flat, open_ms, bars, before, step_ms)
