"""What does a close cost, by part, beside the libraries that do the same in batch?

One walk of 100,000 candles; one run. Ours takes candle after candle, as it does live, indicators
alone and then with structure, events written. TA-Lib computes the same indicators over the whole
array in C; smartmoneyconcepts finds gaps, swings, breaks, blocks and liquidity in pandas. The last
candle's indicators are held against TA-Lib's, the gaps against a count by numpy.
"""

from __future__ import annotations

import os
import time
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from numba import njit

from benchmarks.report import Result
from brain import smc
from brain.closing import W_BAR_MS, W_EMIT, W_FLAGS, WHERE, analyse
from brain.events import STRUCTURE
from brain.history import reset_analysis
from brain.indicators import OUTPUTS, WINDOW, step_indicators
from brain.jit import KERNEL
from brain.kernel import new_events
from brain.state import HISTORY, Arrays, memory_state

CANDLES: Final = 100_000
ROUNDS: Final = 5
SWING_LENGTH: Final = 5
MINUTE_MS: Final = 60_000
Array = npt.NDArray[np.float64]
compiled = njit(**KERNEL)  # no cache: numba would not notice a changed kernel


def walk(candles: int) -> Array:
    """[n, 8] as closed candles; a minute's walk each."""
    rng = np.random.default_rng(11)
    path = 1_000.0 + np.cumsum(rng.normal(0.0, 0.2, 4 * candles)).reshape(-1, 4)
    made = np.zeros((candles, 8))
    made[:, 0], made[:, 3] = path[:, 0], path[:, 3]
    made[:, 1], made[:, 2] = path.max(1), path.min(1)
    made[:, 4] = rng.uniform(1.0, 9.0, candles)
    made[:, 6] = made[:, 4] * rng.random(candles)
    made[:, 7] = rng.integers(1, 90, candles)
    return made


@compiled
def _indicators(a: Any, candles: Any) -> None:
    reset_analysis(a, 0, 0)
    for i in range(len(candles)):
        slot = i & (HISTORY - 1)
        for k in range(8):
            a.closed[0, 0, slot, k] = candles[i, k]
        step_indicators(a.ind[0, 0], candles[i], i * 60_000, a.closed[0, 0], i, 60_000)


@compiled
def _closes(a: Any, candles: Any, ev: Any, where: Any) -> tuple[int, int]:
    """Indicators and structure; (events, gaps)."""
    events = gaps = 0
    reset_analysis(a, 0, 0)
    for i in range(len(candles)):
        slot = i & (HISTORY - 1)
        for k in range(8):
            a.closed[0, 0, slot, k] = candles[i, k]
        a.closed_at[0, 0, slot] = where[W_BAR_MS] = i * 60_000
        a.counts[0, 0] = i + 1
        where[W_EMIT], where[W_FLAGS] = 1, 0
        n = analyse(a, 0, 0, i + 1, ev, 0, where)
        events += n
        for k in range(n):
            gaps += ev[k].kind == STRUCTURE and ev[k].code == smc.FVG
    return events, gaps


def timed(call: Any, *args: Any) -> tuple[float, Any]:
    """Nanoseconds per candle of the last argument's array, and the answer."""
    began_ns = time.perf_counter_ns()
    made = call(*args)
    return float(time.perf_counter_ns() - began_ns), made


def batch_indicators(candles: Array) -> dict[str, Array]:
    """The same by TA-Lib; what it has no function for (imbalance, tick rate) is left out."""
    import talib

    _, h, low, c, v = (np.ascontiguousarray(candles[:, k]) for k in range(5))
    line, signal, _ = talib.MACD(c, 12, 26, 9)
    upper, middle, _ = talib.BBANDS(c, WINDOW, 1.0, 1.0)
    return {
        "ema9": talib.EMA(c, 9),
        "ema21": talib.EMA(c, 21),
        "ema50": talib.EMA(c, 50),
        "rsi": talib.RSI(c, 14),
        "atr": talib.ATR(h, low, c, 14),
        "adx": talib.ADX(h, low, c, 14),
        "di_plus": talib.PLUS_DI(h, low, c, 14),
        "di_minus": talib.MINUS_DI(h, low, c, 14),
        "macd": line,
        "macd_signal": signal,
        "bb_middle": middle,
        "bb_std": upper - middle,
        "volume_mean": talib.SMA(v, WINDOW),
    }


def batch_structure(candles: Array) -> int:
    """Gaps, swings, breaks, blocks, liquidity by the smartmoneyconcepts package; the gaps found."""
    os.environ["SMC_CREDIT"] = "0"
    import pandas as pd
    from smartmoneyconcepts import smc as package

    ohlc = pd.DataFrame(candles[:, :5], columns=["open", "high", "low", "close", "volume"])
    gaps = package.fvg(ohlc)
    swings = package.swing_highs_lows(ohlc, SWING_LENGTH)
    package.bos_choch(ohlc, swings)
    package.ob(ohlc, swings)
    package.liquidity(ohlc, swings)
    return int(gaps["FVG"].notna().sum())


def check(a: Arrays, candles: Array, gaps: int) -> None:
    """Raises on an indicator or a number of gaps that is not the other's."""
    last = {name: series[-1] for name, series in batch_indicators(candles).items()}
    for name, value in last.items():
        got = a.ind[0, 0, OUTPUTS.index(name)]
        if not abs(got - value) <= 1e-9 * max(abs(value), 1.0):
            raise RuntimeError(f"analysis: {name} is {got}, TA-Lib says {value}")
    high, low, close = candles[:, 1], candles[:, 2], candles[:, 3]
    up = (low[2:] > high[:-2]) & (close[1:-1] > high[:-2])
    down = (high[2:] < low[:-2]) & (close[1:-1] < low[:-2])
    if gaps != int(up.sum() + down.sum()):
        raise RuntimeError(f"analysis: {gaps} gaps, {int(up.sum() + down.sum())} by numpy")


def run(count: int = CANDLES, rounds: int = ROUNDS) -> list[Result]:
    candles, where = walk(count), np.zeros(WHERE, np.int64)
    indicators, closes, batch, events = [], [], [], 0
    for k in range(rounds + 1):  # the first one compiles
        parts = timed(_indicators, memory_state(1).arrays, candles)[0]
        state = memory_state(1)
        spent, (events, gaps) = timed(_closes, state.arrays, candles, new_events(256), where)
        check(state.arrays, candles, gaps)
        talib_ns = timed(batch_indicators, candles)[0]
        if k:
            indicators.append(parts / count)
            closes.append(spent / count)
            batch.append(talib_ns / count)
    structure = [whole - part for whole, part in zip(closes, indicators, strict=True)]
    package_ns = timed(batch_structure, candles)[0] / count
    note = f"{count:,} candles, {events:,} events"
    times = package_ns / float(np.median(structure))
    return [
        Result("close, indicators", "ns", indicators, note=f"{len(OUTPUTS)} outputs, streaming"),
        Result("TA-Lib batch, the same but order flow", "ns", batch, note="C, whole array at once"),
        Result("close, structure and events", "ns", structure, note=note),
        Result("smartmoneyconcepts, five functions", "ns", [package_ns], note="batch, once"),
        Result("structure, times faster than the package", "x", [times], 100.0, at_most=False),
        Result("close, all of it", "ns", closes, 1_000.0, note="one symbol and timeframe"),
    ]
