"""Clocks: market time is a line through one measured point; boot time never stands in for it."""

from __future__ import annotations

import pytest

import clock


def test_boot_time_rises() -> None:
    first = clock.boot_ns()
    assert clock.boot_ns() >= first > 0


@pytest.mark.parametrize(("speed", "later_ms"), [(1.0, 1_250.0), (20.0, 6_000.0), (0.5, 1_125.0)])
def test_market_time_runs_at_its_speed(speed: float, later_ms: float) -> None:
    market = clock.MarketClock(1_000.0, 5_000_000, speed)
    assert market.now_ms(5_000_000) == 1_000.0
    assert market.now_ms(255_000_000) == later_ms


def test_an_answer_is_true_in_the_middle_of_its_round_trip() -> None:
    market = clock.from_server_time(1_000.0, 2.0, 10_000_000, 14_000_000)
    assert market.now_ms(12_000_000) == 1_000.0
    assert market.error_ms == 2.0 * 2.0 + 1.0  # half the round trip, in market time, and rounding


def test_an_answer_before_its_question_is_our_bug() -> None:
    with pytest.raises(ValueError, match="before its question"):
        clock.from_server_time(1.0, 1.0, 2, 1)
