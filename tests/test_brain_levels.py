"""Day and week levels, sessions, pools: known in time, equal to twins and to the package."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest
from brain_bench import START_MS, Bench, announced, lively_market, table, trade
from naive import smc as ns
from smc_parity import package
from test_brain_analysis import PIVOT_HIGH, chart

from brain import smc
from brain.events import CLOSE_EVENT, STRUCTURE
from brain.view import KILL_ZONES, CandleView

QUARTER_MS = 15 * 60_000
T15 = 2
Candle = tuple[int, float, float, float, float]


def quarter_hours(seed: int, count: int) -> list[Candle]:
    """15m candles in quarters, from 22:30 UTC on."""
    rng = np.random.default_rng(seed)
    path = 1_000.0 + np.cumsum(np.round(rng.normal(0.0, 2.0, (count, 4)) * 4) / 4).reshape(-1, 4)
    rows = np.stack([path[:, 0], path.max(1), path.min(1), path[:, 3]], axis=1).tolist()
    return [(START_MS + i * QUARTER_MS, *row) for i, row in enumerate(rows)]


def rows_of(candles: list[Candle]) -> np.ndarray:
    rows = [
        trade(0, at + k, 4 * i + k + 1, price, 1.0)
        for i, (at, *prices) in enumerate(candles)
        for k, price in enumerate(prices)
    ]
    last = candles[-1][0] + QUARTER_MS
    return table([*announced(), *rows, trade(0, last, len(rows) + 1, candles[-1][4], 1.0)])


def at_each_close(candles: list[Candle], look: Callable[[CandleView], Any]) -> list[Any]:
    """What `look` sees after every 15m close."""
    bench, seen = Bench(), []
    bench.masks[T15] = -1

    def note(rows: np.ndarray) -> None:
        for e in rows.tolist():
            if e[13] == CLOSE_EVENT and e[12] == T15:
                arrays = bench.state.arrays
                seen.append(look(CandleView("S", "15m", e[2], e[0] // 10**6, 0, 0.0, arrays, 0)))

    bench.feed(rows_of(candles), on_events=note)
    return seen


def levels(view: CandleView) -> list[float]:
    x = view.structure()
    return [x.day_high, x.day_low, x.week_high, x.week_low]


WEEKS = 22 * 96


@pytest.fixture(scope="module")
def three_weeks() -> list[Candle]:
    return quarter_hours(5, WEEKS)


def test_levels_are_those_of_the_period_before_from_its_first_candle_on(
    three_weeks: list[Candle],
) -> None:
    got = at_each_close(three_weeks, levels)
    wanted = []
    for t in range(WEEKS):
        found = [ns.period_before(three_weeks, t, days) for days in (1, 7)] if t % 7 == 0 else []
        wanted.append([x for f in found for x in (f[1:] if f else (np.nan, np.nan))])
    pairs = [(g, w) for g, w in zip(got, wanted, strict=True) if w]
    assert len(pairs) > 250 and sum(w[2] == w[2] for _, w in pairs) > 100
    for g, w in pairs:
        np.testing.assert_array_equal(g, w)


def test_level_events_of_days_and_weeks_equal_the_twin(three_weeks: list[Candle]) -> None:
    bench = Bench()
    bench.feed(rows_of(three_weeks))
    index = {c[0]: i for i, c in enumerate(three_weeks)}
    names = ("level_sweep", "level_break")
    got = [
        (index[e[2]], smc.CODES[e[14]], e[15], e[5], e[8])
        for e in bench.events
        if e[13] == STRUCTURE and e[12] == T15 and smc.CODES[e[14]] in names
    ]
    used: set[tuple[int, int, int]] = set()
    wanted = [e for t in range(WEEKS) for e in ns.level_events(three_weeks, t, used)]
    assert [e[:4] for e in got] == wanted
    assert {e[4] for e in got} == {1.0, 7.0} and {e[1] for e in got} == set(names)


def as_frame(candles: list[Candle]) -> pd.DataFrame:
    made = pd.DataFrame([c[1:] for c in candles], columns=["open", "high", "low", "close"])
    made["volume"] = 1.0
    made.index = pd.to_datetime([c[0] for c in candles], unit="ms")
    return made


def test_day_levels_are_the_package_s_but_for_its_stale_first_candle(
    three_weeks: list[Candle],
) -> None:
    got = np.array(at_each_close(three_weeks, levels))
    judge = package.previous_high_low(as_frame(three_weeks), "1D")[["PreviousHigh", "PreviousLow"]]
    inside = np.array([c[0] % 86_400_000 != 0 for c in three_weeks])
    np.testing.assert_array_equal(got[inside, :2], judge.to_numpy(float)[inside])
    sunday = np.array([(c[0] // 86_400_000 + 3) % 7 == 6 for c in three_weeks]) & inside
    judge = package.previous_high_low(as_frame(three_weeks), "W")[["PreviousHigh", "PreviousLow"]]
    known = sunday & ~np.isnan(got[:, 2])
    assert known.sum() > 90
    np.testing.assert_array_equal(got[known, 2:], judge.to_numpy(float)[known])


@pytest.mark.parametrize("k", range(4))
def test_sessions_equal_the_twin_and_the_package_up_to_their_last_minute(
    three_weeks: list[Candle], k: int
) -> None:
    candles = three_weeks[:400]
    name, (begin, end) = smc.SESSION_NAMES[k], smc.SESSION_HOURS[k]
    got = at_each_close(candles, lambda view: view.sessions()[k])
    judge = package.sessions(
        as_frame(candles), "Custom", f"{begin:02}:00", f"{(end - 1) % 24:02}:59"
    ).to_numpy(float)
    assert {s.name for s in got} == {name} and {s.active for s in got} == {True, False}
    for t, session in enumerate(got):
        twin = ns.session(candles, t, begin, end)
        assert session.active == (twin is not None) == bool(judge[t, 0])
        if twin is not None:
            assert (session.high, session.low) == twin == tuple(judge[t, 1:])


def test_kill_zones_are_hours_of_the_day(three_weeks: list[Candle]) -> None:
    seen = at_each_close(three_weeks[:200], lambda view: (view.bar_ms, view.kill_zone()))
    assert {name for _, name in seen} == {"", *(name for name, _, _ in KILL_ZONES)}
    for at, name in seen:
        hour = at // 3_600_000 % 24
        assert name == next((n for n, begin, end in KILL_ZONES if begin <= hour < end), "")


def test_equal_highs_gather_in_one_pool_and_a_sweep_tells_how_many() -> None:
    down = [(16, 17, 15.5, 16), (16, 16.5, 12, 13), (13, 15, 12.5, 14.5)]
    again = [*PIVOT_HIGH, *down, *PIVOT_HIGH[4:]]
    bench = Bench()
    bench.feed(one_minute(chart(*again)))
    view = CandleView("S", "1m", 0, 0, 0, 0.0, bench.state.arrays, 0)
    assert [(p.level, p.members) for p in view.pools() if p.side > 0] == [(20.0, 1), (20.0, 2)]
    swept = Bench()
    swept.feed(one_minute(chart(*again, (17, 20.5, 16.75, 18))))
    found = [e for e in swept.events if e[13] == STRUCTURE and smc.CODES[e[14]] == "sweep"]
    assert [(e[5], e[8]) for e in found if e[15] == -1] == [(20.0, 1.0), (20.0, 2.0)]
    x = CandleView("S", "1m", 0, 0, 0, 0.0, swept.state.arrays, 0).structure()
    assert (x.sweep_side, x.sweep_pool) == (-1, 2)


def one_minute(candles: list[Candle]) -> np.ndarray:
    rows = [
        trade(0, at + k, 4 * i + k + 1, price, 1.0)
        for i, (at, *prices) in enumerate(candles)
        for k, price in enumerate(prices)
    ]
    last = candles[-1][0] + 60_000
    return table([*announced(), *rows, trade(0, last, len(rows) + 1, candles[-1][4], 1.0)])


@pytest.mark.parametrize(
    "position, zone",
    [
        (0.89, ""),
        (0.9, "premium"),
        (-0.9, "discount"),
        (0.05, "equilibrium"),
        (-0.051, ""),
        (0.0, "equilibrium"),
    ],
)
def test_premium_and_discount_are_the_outer_twentieths(position: float, zone: str) -> None:
    bench = Bench()
    bench.feed(table(lively_market(1, 1, 5)))
    bench.state.arrays.smc[0, 0, smc.POSITION] = position
    assert CandleView("S", "1m", 0, 0, 0, 0.0, bench.state.arrays, 0).structure().zone == zone
