"""Scenarios on demand: each reaches what it promises, and changes nothing but its own symbol."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest

import config
from tests.test_venue_market import run
from venue import exchange, main, market, public, scenario, scenes
from venue.exchange import Exchange, Setup
from venue.market import AGG, BOOK, EVENT_MS, ID, KIND, P1, P2, Q1, Q2, SYM, Ints
from venue.orders import Refusal
from venue.store import Store

TICKS = 2  # a knot's trade prints within so many ticks of the exact level
SETUP = Setup("w", 3, 300.0, 7, 20.0, 0.0, ())


def world(*texts: str, setup: Setup = SETUP) -> Exchange:
    return exchange.create(replace(setup, scenarios=texts))


def of(rows: Ints, kind: int, symbol: int = 0) -> Ints:
    return rows[(rows[:, KIND] == kind) & (rows[:, SYM] == symbol)]


def start_of(made: Exchange, row: int = 0) -> float:
    return float(made.market.scenes.play[row, scenes.START])


@pytest.mark.parametrize(
    ("setup", "digest"),
    [
        (Setup("w", 3, 3000.0, 7, 20.0, 0.15, ()), "f9140e085d46602b"),
        (Setup("w", 20, 1000.0, 7, 30.0, 0.25, ()), "3db16f889de9caa6"),
        (Setup("w", 5, 500.0, 11, 1.0, 0.0, ()), "8967efdb66a7f70b"),
    ],
)
def test_a_market_without_scenarios_is_the_one_it_was_before_there_were_any(
    setup: Setup, digest: str
) -> None:
    """The digests are of the first 50,000 rows of the code that knew no scenarios."""
    made, told, count, until_ms = exchange.create(setup), hashlib.sha256(), 0, 0.0
    while count < 50_000:
        until_ms += 5_000
        for n in exchange.advance(made, made.t0_ms + until_ms, 0):
            take = min(n, 50_000 - count)
            told.update(made.rows[:take].tobytes())
            count += take
    assert told.hexdigest()[:16] == digest


ALL = (
    "trend:BTCUSDT:5:pct=1.5:duration_s=30",
    "gap:ETHUSDT:10:pct=-2:silence_s=7",
    "crash:SOLUSDT:12:pct=9:fall_s=5:recover_s=10",
    "burst:BTCUSDT:40:duration_s=10",
    "range:ETHUSDT:20:duration_s=30:cycles=2",
    "sweep:SOLUSDT:30:duration_s=30",
)


def test_the_same_seed_and_scenarios_make_the_same_bytes_however_the_market_is_stepped() -> None:
    whole, sliced = run(world(*ALL), 70_000), run(world(*ALL), 70_000, 1777)
    assert np.array_equal(whole, sliced)
    assert not np.array_equal(whole, run(world(*ALL, setup=replace(SETUP, seed=8)), 70_000))


def test_a_scenario_planned_while_the_market_runs_is_the_one_planned_at_start() -> None:
    early = world(*ALL)
    late = world(*ALL[:2])
    first = run(late, 11_111.4)
    for text in ALL[2:]:
        wanted = scenario.from_text(text)
        exchange.plan(late, replace(wanted, at_ms=late.t0_ms + wanted.at_ms))
    rows = np.concatenate([first, run(late, 70_000 - 11_111.4, 33)])
    assert np.array_equal(rows, run(early, 70_000))


def test_other_symbols_do_not_notice() -> None:
    plain, told = run(world(), 70_000), run(world(*(w for w in ALL if "ETH" not in w)), 70_000)
    for kind in (AGG, BOOK, market.MARK):
        assert np.array_equal(of(plain, kind, 1), of(told, kind, 1))
    assert len(of(told, AGG)) > len(of(plain, AGG))


@pytest.mark.parametrize("pct", [3.0, -4.0])
def test_a_trend_ends_at_its_target_and_never_leaves_the_way(pct: float) -> None:
    made = world(f"trend:BTCUSDT:5:pct={pct}:duration_s=300")
    rows = run(made, 305_000)
    start, tick = start_of(made), int(made.market.n[0, market.TICK])
    target = start * (1 + pct / 100)
    mine = of(rows, AGG)[of(rows, AGG)[:, EVENT_MS] >= made.t0_ms + 5_001]
    assert abs(mine[-1, P1] - target) <= TICKS * tick
    low, high = sorted((start, target))
    assert mine[1:, P1].min() >= low - TICKS * tick and mine[1:, P1].max() <= high + TICKS * tick
    share = (mine[:, EVENT_MS] - made.t0_ms - 5_000) / 300_000
    path = start * (1 + pct / 100) ** share
    assert np.abs(mine[1:, P1] / path[1:] - 1).max() < 1.5 * scenes.WOBBLE * abs(pct) / 100
    assert exchange.planned(made)[0]["state"] == "done"


def test_a_range_touches_both_edges_each_cycle_and_leaves_neither() -> None:
    made = world("range:BTCUSDT:5:width_pct=0.5:cycles=4:duration_s=400")
    rows = run(made, 405_000)
    start, tick = start_of(made), int(made.market.n[0, market.TICK])
    mine = of(rows, AGG)[of(rows, AGG)[:, EVENT_MS] > made.t0_ms + 6_000]
    for cycle in range(4):
        began = made.t0_ms + 5_000 + cycle * 100_000
        part = mine[(mine[:, EVENT_MS] > began) & (mine[:, EVENT_MS] <= began + 100_000), P1]
        assert abs(part.max() - start * 1.005) <= TICKS * tick
        assert abs(part.min() - start * 0.995) <= TICKS * tick


@pytest.mark.parametrize("side", [1, -1])
def test_a_sweep_takes_the_swing_and_comes_back_to_its_other_side(side: int) -> None:
    made = world(f"sweep:BTCUSDT:5:side={side}:duration_s=600")
    rows = run(made, 605_000)
    start, tick = start_of(made), int(made.market.n[0, market.TICK])
    mine = of(rows, AGG)
    ms = (mine[:, EVENT_MS] - made.t0_ms - 5_000) / 600_000
    reach = side * mine[:, P1]
    swing = reach[(ms > 0) & (ms <= 0.6)].max()
    pulled = reach[(ms > 0.3) & (ms <= 0.85)].min()
    swept = reach[(ms > 0.6) & (ms <= 1.0)].max()
    assert abs(swing - side * start * (1 + side * 0.005)) <= TICKS * tick
    assert abs(pulled - side * start * (1 + side * 0.001)) <= TICKS * tick
    assert abs(swept - side * start * (1 + side * 0.0065)) <= TICKS * tick and swept > swing
    assert abs(reach[-1] - side * start * (1 + side * 0.002)) <= TICKS * tick
    assert reach[-1] < swing


@pytest.mark.parametrize("silence_s", [0, 6])
def test_a_gap_jumps_between_two_events_and_its_silence_loses_no_trade_id(silence_s: int) -> None:
    made = world(f"gap:BTCUSDT:5:pct=-3:silence_s={silence_s}", setup=replace(SETUP, edge=0.3))
    rows = run(made, 20_000)
    trades, quotes = of(rows, AGG), of(rows, BOOK)
    at_ms = made.t0_ms + 5_000
    jump = at_ms + silence_s * 1000
    for told in (trades, quotes):
        times = told[:, EVENT_MS]
        assert not ((times > at_ms) & (times < jump)).any()
        assert (times == jump).any()
    before, after = quotes[quotes[:, EVENT_MS] < jump][-1], quotes[quotes[:, EVENT_MS] >= jump][0]
    assert after[P1] / before[P1] == pytest.approx(0.97, abs=0.001)
    assert (np.diff(trades[:, ID]) == 1).all() and (trades[1:, P2] == trades[:-1, Q2] + 1).all()


def test_a_crash_reaches_its_depth_and_recovers_its_share() -> None:
    made = world("crash:BTCUSDT:5:pct=12:fall_s=20:recovery=0.5:recover_s=60")
    rows = run(made, 85_000)
    start, tick = start_of(made), int(made.market.n[0, market.TICK])
    mine = of(rows, AGG)
    low = mine[mine[:, P1].argmin()]
    assert abs(low[P1] - start * 0.88) <= TICKS * tick
    assert low[EVENT_MS] == made.t0_ms + 25_000
    assert abs(mine[-1, P1] - start * 0.94) <= TICKS * tick
    fall = mine[(mine[:, EVENT_MS] > made.t0_ms + 5_000) & (mine[:, EVENT_MS] <= low[EVENT_MS])]
    assert len(fall) > 60 and np.abs(np.diff(np.log(fall[:, P1]))).max() < 0.02


def test_a_burst_multiplies_trades_and_their_size_and_leaves_the_price_free() -> None:
    made = world("burst:BTCUSDT:10:factor=6:rate=30:duration_s=30")
    mine = of(run(made, 340_000), AGG)
    ms = mine[:, EVENT_MS] - made.t0_ms
    during, after = (ms > 10_000) & (ms <= 40_000), ms > 40_000
    assert during.sum() / 30 > 3 * after.sum() / 300
    assert np.median(mine[during, Q1]) == pytest.approx(6 * np.median(mine[after, Q1]), rel=0.3)
    assert abs(mine[-1, P1] / start_of(made) - 1) < 0.02


def test_a_resume_replays_scenarios_planned_at_start_and_while_it_ran(tmp_path: Path) -> None:
    """Once from a market written before the second scenario, once from birth."""
    store = Store(tmp_path)
    made = world(ALL[0])
    store.create(made)
    run(made, 8_000)
    store.save_market(made)
    body = orjson.dumps({"kind": "crash", "symbol": "ETHUSDT", "at_s": 3, "pct": 5, "fall_s": 4})
    answer = public.plan_scenario(made, body)
    assert not isinstance(answer, Refusal) and answer["state"] == "waiting"
    run(made, 5_000)
    store.save_account(made)
    later = run(made, 150_000)
    for _ in range(2):
        again = Store(tmp_path).resume()
        assert exchange.planned(again)[1]["state"] == "running"
        assert np.array_equal(run(again, 150_000), later)
        (tmp_path / "market.npz").unlink(missing_ok=True)
    assert of(later, AGG, 1)[:, P1].min() == pytest.approx(start_of(made, 1) * 0.95, rel=1e-3)


@pytest.mark.parametrize(
    ("wanted", "why"),
    [
        ({"kind": "dance", "symbol": "BTCUSDT"}, "kind must be one of"),
        ({"kind": "trend"}, "symbol is missing"),
        ({"kind": "trend", "symbol": "NOPE"}, "not listed"),
        ({"kind": "trend", "symbol": "BTCUSDT", "depth": 2}, "does not know ['depth']"),
        ({"kind": "trend", "symbol": "BTCUSDT", "pct": "much"}, "pct is no number"),
        ({"kind": "trend", "symbol": "BTCUSDT", "pct": float("nan")}, "pct is no number"),
        ({"kind": "trend", "symbol": "BTCUSDT", "pct": -91}, "must lie in -90..500"),
        ({"kind": "range", "symbol": "BTCUSDT", "cycles": 11}, "must lie in 1..10"),
        ({"kind": "range", "symbol": "BTCUSDT", "cycles": 1.5}, "whole number"),
        ({"kind": "trend", "symbol": "BTCUSDT", "at_s": -1}, "at_s must lie in"),
        ({"kind": "trend", "symbol": "BTCUSDT", "at_ms": 1}, "at_ms must be after"),
        ({"kind": "gap", "symbol": "BTCUSDT", "at_s": 20}, "has a trend from"),
    ],
)
def test_a_scenario_that_cannot_be_is_refused_in_a_sentence(
    wanted: dict[str, Any], why: str
) -> None:
    made = world("trend:BTCUSDT:10:duration_s=60")
    before = exchange.planned(made)
    body = json.dumps(wanted).replace("NaN", '"NaN"').encode()
    answer = public.plan_scenario(made, body)
    assert isinstance(answer, Refusal) and why in answer.msg
    assert exchange.planned(made) == before


def test_only_so_many_scenarios_are_planned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scenes, "SCENES_MAX", 2)
    made = world("gap:BTCUSDT:1", "gap:ETHUSDT:1")
    answer = public.plan_scenario(made, b'{"kind":"gap","symbol":"SOLUSDT"}')
    assert isinstance(answer, Refusal) and answer.msg.startswith("all 2 scenarios")


def test_the_widest_scenarios_fit_the_table() -> None:
    for kind, known in scenario.KINDS.items():
        for pick in (1, 2):
            wanted = {"kind": kind, "symbol": "BTCUSDT", "at_ms": 5}
            wanted |= {name: bounds[pick] for name, bounds in known.items()}
            made = scenario.scene(scenario.from_json(wanted), 0)
            assert 2 <= len(made.knots) <= scenes.KNOTS_MAX
            assert all(np.isfinite(level) for _, level in made.knots)
            assert [ms for ms, _ in made.knots] == sorted(ms for ms, _ in made.knots)


def test_a_file_of_wishes_is_the_same_as_the_words(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    path.write_text(
        '[{"kind":"gap","symbol":"ETHUSDT","at_s":10,"pct":-2,"silence_s":7},'
        '{"kind":"trend","symbol":"BTCUSDT","at_s":5,"pct":1.5,"duration_s":30}]'
    )
    told = scenario.texts([str(path), ALL[2]])
    assert [scenario.from_text(t) for t in told] == [
        scenario.from_text(t) for t in (ALL[1], ALL[0], ALL[2])
    ]
    path.write_text('{"kind":"gap"}')
    with pytest.raises(ValueError, match="must hold a JSON list"):
        scenario.texts([str(path)])
    with pytest.raises(ValueError, match="must read key=value"):
        scenario.texts(["gap:ETHUSDT:10:pct"])


@pytest.mark.parametrize(
    ("word", "why"),
    [
        ("crash:BTCUSDT", "must read kind:symbol:at_s"),
        ("crash:BTCUSDT:5:pct=99", "must lie in 0.01..90"),
        ("no-such-file.json", "cannot be read"),
    ],
)
def test_a_command_line_with_a_bad_scenario_says_so_before_anything_starts(
    word: str, why: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main.arguments(["--scenario", word], config.load({}))
    assert why in capsys.readouterr().err
    good = main.arguments(["--scenario", ALL[0], "--scenario", ALL[1]], config.load({}))
    assert good.scenario == ALL[:2]
