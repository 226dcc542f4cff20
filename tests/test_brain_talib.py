"""Indicators are TA-Lib's, closed and forming, over long streams and real candles."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from market_files import candle_files, read_candles
from talib_parity import LIMITS, Stream, closed_errors, forming_errors, from_candles, from_walk

SHIFTED = 100_000
ROUNDED = {"bb_middle", "volume_mean"}  # TA-Lib's running totals err in the last digits themselves


def assert_within(errors: dict[str, float]) -> None:
    beyond = {name: error for name, error in errors.items() if not error <= LIMITS[name]}
    assert not beyond


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("step", [0.2, 1.0])
def test_closed_candles_equal_the_batch(seed: int, step: float) -> None:
    assert_within(closed_errors(from_walk(seed, 2_000, step)))


@pytest.mark.parametrize("seed", range(3))
def test_forming_candles_equal_what_the_stream_peeks_and_change_nothing(seed: int) -> None:
    assert_within(forming_errors(from_walk(seed, 400)))


def test_nothing_drifts_over_a_long_stream_of_shifting_levels() -> None:
    stream = from_walk(7, SHIFTED, shifts=True)
    assert stream.prices.max() / stream.prices.min() > 1_000.0
    assert_within(closed_errors(stream, exact=True))


def test_a_market_that_stands_still_for_days_keeps_its_last_trend() -> None:
    """Averages decay towards 1e-290; only ratios are left of them."""
    made = from_walk(3, 200)
    flat = np.full((9_000, 4), made.prices[99, 3])
    prices = np.concatenate([made.prices[:100], flat, made.prices[100:]])
    n = len(prices)
    opens = made.opens_ms[0] + 60_000 * np.arange(n)
    stream = Stream(opens, prices, np.full((n, 4), 0.5), np.zeros(n, np.int64))
    assert_within(closed_errors(stream, exact=True))


@pytest.mark.parametrize("path", candle_files(), ids=lambda path: path.name)
def test_real_candles_equal_the_batch(path: Path) -> None:
    stream = from_candles(*read_candles(path))
    assert_within(closed_errors(stream, exact=True))


@pytest.mark.parametrize("path", candle_files(), ids=lambda path: path.name)
def test_real_forming_candles_equal_the_peek(path: Path) -> None:
    opens_ms, ohlcv = read_candles(path)
    assert_within(forming_errors(from_candles(opens_ms[:600], ohlcv[:600])))
