"""Features: the named ones, bounded, the same for both sides of a mirror, alive on real data."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from brain_bench import Bench, announced, lively_market, table
from market_files import candle_files, read_candles, read_session, trade_sessions
from naive import features as naive
from talib_parity import as_trades, from_candles
from test_brain_analysis import as_trades as candle_trades
from test_brain_analysis import walk

from brain import smc
from brain.events import CLOSE_EVENT
from brain.features import FAR, FEATURES, MOMENTUM_BARS, features
from brain.indicators import OUTPUTS
from brain.state import ASK, BID, LAST
from brain.view import CandleView
from records import TIMEFRAME_NAMES

MIRROR_SEES = {"atr_share"}  # a share of the price: the mirror has another one
LIVELY_SHARE = 0.01  # of the closes on which a feature is not its own most common value
TWELVE = (
    "market_structure", "order_blocks_count", "institutional_candle", "liquidity_grab",
    "fvg_size_atr", "fvg_proximity", "ob_proximity", "atr_normalized_volume", "rsi_14",
    "momentum_atr", "time_to_next_level", "confidence_ensemble",
)  # fmt: skip


def at_closes(
    recs: np.ndarray, look: Callable[[CandleView], object], timeframes: int = 1, every: int = 1
) -> list:
    """What `look` says at every so many closes of the first timeframes."""
    bench, seen, closes = Bench(), [], 0
    bench.masks[:timeframes] = -1

    def note(rows: np.ndarray) -> None:
        nonlocal closes
        for e in rows[rows["kind"] == CLOSE_EVENT].tolist():
            if e[12] >= timeframes:
                continue
            view = CandleView(
                "S", TIMEFRAME_NAMES[e[12]], e[2], e[0] // 10**6, e[3], 0.0005,
                bench.state.arrays, 0,
            )  # fmt: skip
            closes += 1
            if view.newest_bar_ms == e[2] and closes % every == 0:
                seen.append(look(view))

    bench.feed(recs, on_events=note)
    return seen


def both(view: CandleView) -> tuple[list[float], list[float]]:
    return list(features(view, 1).values()), list(features(view, -1).values())


def dead(values: np.ndarray) -> list[str]:
    """Names of the columns that hardly ever say anything but one thing."""
    out = []
    for k, name in enumerate(FEATURES):
        _, counts = np.unique(values[:, k], return_counts=True)
        if 1.0 - counts.max() / len(values) < LIVELY_SHARE:
            out.append(name)
    return out


def assert_bounded(values: np.ndarray) -> None:
    assert np.isfinite(values).all() and np.abs(values).max() <= FAR


@pytest.mark.parametrize("seed", range(3))
def test_the_kernel_says_what_its_slow_twin_says(seed: int) -> None:
    def look(view: CandleView) -> list[tuple[dict, dict]]:
        return [(features(view, side), naive.features(view, side)) for side in (1, -1)]

    seen = at_closes(table(lively_market(seed, 1, 600)), look, timeframes=3)
    assert len(seen) > 700
    for one, other in (pair for each in seen for pair in each):
        assert one == pytest.approx(other, abs=1.1e-6) and list(one) == list(other)


def test_what_is_gathered_for_a_rule_is_what_the_state_holds() -> None:
    """Indicators, structure and prices of the view against the arrays, read one by one."""

    def look(view: CandleView) -> None:
        a, s, t = view.arrays, view.row, TIMEFRAME_NAMES.index(view.timeframe)
        bars, x = view.bars(), a.smc[s, t]
        newest = [getattr(bars, name)[-1] for name in ("open", "high", "low", "close", "volume")]
        assert newest == [view.open(), view.high(), view.low(), view.close(), view.volume()]
        np.testing.assert_array_equal(view.indicators(), a.ind[s, t, : len(OUTPUTS)])
        assert view.trend() == pytest.approx(naive.trend(view))
        seen = view.structure()
        assert (seen.bias, seen.swing_bias) == (x[smc.BIAS], x[smc.SWING + smc.BIAS])
        assert type(seen.bias) is type(seen.sweep_pool) is int
        np.testing.assert_array_equal(
            [seen.swing_low, seen.position, seen.sweep_ms, seen.sweep_side, seen.week_low],
            x[[smc.SWING + smc.P_LOW, smc.POSITION, smc.SWEEP_MS, smc.SWEEP_SIDE, smc.WEEK_LOW]],
        )
        assert [view.bid, view.ask, view.last] == a.px[s, [BID, ASK, LAST]].tolist()

    assert len(at_closes(table(lively_market(4, 1, 300)), look, timeframes=3)) > 300


def test_the_twelve_come_first_and_the_order_is_the_contract() -> None:
    seen = at_closes(table(announced() + candle_trades(walk(1, 60))), lambda v: features(v, 1))
    assert all(tuple(each) == FEATURES for each in seen)
    assert FEATURES[:12] == TWELVE and len(set(FEATURES)) == len(FEATURES)


def test_the_first_candle_already_has_finite_features() -> None:
    seen = at_closes(table(announced() + candle_trades(walk(1, 3))), both)
    assert_bounded(np.array(seen[0]))


@pytest.mark.parametrize("path", candle_files(), ids=lambda path: path.name)
def test_every_feature_is_alive_on_real_candles_of_three_timeframes(path: Path) -> None:
    opens_ms, ohlcv = read_candles(path)
    recs = np.concatenate([table(announced()), as_trades(from_candles(opens_ms, ohlcv))])
    values = np.array(at_closes(recs, both, timeframes=3, every=11)).reshape(-1, len(FEATURES))
    assert len(values) > 8_000
    assert_bounded(values)
    assert dead(values) == []


def joined_sessions() -> np.ndarray:
    """The real tick sessions end to end: shifted in time and scaled to where the last one ended."""
    parts, number, end_ns, price = [], 0, 0, 0.0
    for name in trade_sessions():
        made = read_session(name)
        if end_ns:
            made["exch_ns"] += end_ns + 1_000_000 - made["exch_ns"].min()
            made["a"] *= price / made["a"][0]
        made["id"] += number
        number, end_ns, price = int(made["id"][-1]), int(made["exch_ns"].max()), made["a"][-1]
        parts.append(made)
    return np.concatenate(parts)


@pytest.mark.parametrize("first", trade_sessions()[:1])
def test_the_order_flow_is_alive_on_real_ticks(first: str) -> None:
    recs = np.concatenate([table(announced()), joined_sessions()])
    values = np.array(at_closes(recs, lambda view: both(view)[0]))
    assert len(values) > 70
    assert_bounded(values)
    known = values[30:]
    flow = ("imbalance", "tick_z", "volume_ratio", "atr_normalized_volume", "close_location")
    assert not set(dead(known)) & {*flow, *TWELVE}


def test_a_dead_feature_is_noticed() -> None:
    values = np.random.default_rng(1).random((1_000, len(FEATURES)))
    values[:, 3], values[:, 5] = 0.0, np.where(np.arange(1_000) < 9, 1.0, 0.0)
    assert dead(values) == [FEATURES[3], FEATURES[5]]


@pytest.mark.parametrize("seed", range(6))
def test_a_buy_s_features_are_the_sell_s_in_the_mirror(seed: int) -> None:
    candles = walk(seed, 400, 1.0)
    rng = np.random.default_rng(seed)
    volumes = [(v, v * f) for v, f in rng.random((400, 2))]
    mirrored = [(at, 2e3 - o, 2e3 - low, 2e3 - h, 2e3 - c) for at, o, h, low, c in candles]
    swapped = [(v, v - bought) for v, bought in volumes]
    one = np.array(at_closes(table(announced() + candle_trades(candles, volumes)), both))
    other = np.array(at_closes(table(announced() + candle_trades(mirrored, swapped)), both))
    kept = [k for k, name in enumerate(FEATURES) if name not in MIRROR_SEES]
    assert one.shape == other.shape and len(one) == 400
    np.testing.assert_allclose(one[:, 0][:, kept], other[:, 1][:, kept], atol=2e-6)
    np.testing.assert_allclose(one[:, 1][:, kept], other[:, 0][:, kept], atol=2e-6)


def test_momentum_is_over_five_whole_candles_and_its_term_can_fire() -> None:
    def look(view: CandleView) -> tuple[float, float, float, dict[str, float]]:
        kept = view.bars().close
        before = kept[-1 - MOMENTUM_BARS] if len(kept) > MOMENTUM_BARS else np.nan
        return kept[-1] - before, view.indicators().atr, view.close(), features(view, 1)

    seen = at_closes(table(lively_market(4, 1, 300)), look)
    fired = 0
    for change, atr, _, x in seen[20:]:
        assert x["momentum_atr"] == pytest.approx(np.clip(change / atr, -FAR, FAR), abs=1e-6)
        rest = (
            0.5 + 0.1 * x["market_structure"] + 0.15 * x["liquidity_grab"]
            + 0.1 * np.sign(x["order_blocks_count"])
            + 0.1 * (abs(x["fvg_size_atr"]) > 1.0) * np.sign(x["fvg_size_atr"])
        )  # fmt: skip
        term = 0.05 * (abs(x["momentum_atr"]) > 1.0) * np.sign(x["momentum_atr"])
        assert x["confidence_ensemble"] == pytest.approx(np.clip(rest + term, 0.0, 1.0), abs=1e-6)
        fired += term != 0.0
    assert fired > 20


def test_a_level_ahead_is_one_that_the_close_has_not_reached() -> None:
    def look(view: CandleView) -> tuple[list[float], float, float]:
        atr, close = view.indicators().atr, view.close()
        x = view.structure()
        highs = [p.level for p in view.pools() if p.side > 0]
        highs += [x.swing_high, x.day_high, x.week_high]
        ahead = [(h - close) / atr for h in highs if h > close]
        return ahead, features(view, 1)["time_to_next_level"], atr

    seen = [row for row in at_closes(table(lively_market(6, 1, 300)), look) if row[2] == row[2]]
    for ahead, got, _ in seen:
        assert got == pytest.approx(min([*ahead, FAR]), abs=1e-6)
    assert len({got for _, got, _ in seen}) > 100
