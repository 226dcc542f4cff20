"""Indicators and structure: equal to the slow twins, and looking back only."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from brain_bench import START_MS, Bench, announced, clock, random_market, table, trade
from naive import indicators as ni
from naive import smc as ns

import records as rec
from brain import smc
from brain.events import CLOSE_EVENT, STRUCTURE
from brain.indicators import OUTPUTS
from brain.view import forming

MINUTE = 60_000
Candle = tuple[int, float, float, float, float]


def walk(seed: int, bars: int, step: float = 1.0) -> list[Candle]:
    """Candles of a random walk in quarters, so that ties and equal levels happen."""
    rng = np.random.default_rng(seed)
    out, close = [], 1_000.0
    for i in range(bars):
        path = close + np.cumsum(np.round(rng.normal(0, step, 6) * 4) / 4)
        high, low = float(path.max()), float(path.min())
        out.append((START_MS + i * MINUTE, float(path[0]), high, low, float(path[-1])))
        close = float(path[-1])
    return out


def as_trades(
    candles: list[Candle], volumes: list[tuple[float, float]] | None = None
) -> list[tuple]:
    """Four trades a candle: open, high, low, close; each with its share of volume and taker."""
    rows, n = [], 0
    for i, (at, o, h, low, c) in enumerate(candles):
        volume, bought = volumes[i] if volumes else (4.0, 2.0)
        for k, price in enumerate((o, h, low, c)):
            n += 1
            qty = bought / 2 if k < 2 else (volume - bought) / 2
            rows.append(trade(0, at + k, n, price, qty, 0 if k < 2 else rec.BUYER_MAKER))
    last = candles[-1][0] + MINUTE
    return [*rows, trade(0, last, n + 1, candles[-1][4], 1.0)]


def run(candles: list[Candle]) -> Bench:
    bench = Bench()
    bench.feed(table(announced() + as_trades(candles)))
    return bench


def each_close(candles: list[Candle], volumes: list[tuple[float, float]]) -> np.ndarray:
    """The indicator row after every closed 1m candle."""
    bench, rows = Bench(), []
    bench.masks[0] = -1
    bench.feed(
        table(announced() + as_trades(candles, volumes)),
        on_events=lambda _: rows.append(bench.state.arrays.ind[0, 0].copy()),
    )
    return np.array(rows[: len(candles)])


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("step", [1.0, 0.2, 30.0])
def test_indicators_equal_the_batch_twins_at_every_close(seed: int, step: float) -> None:
    candles = walk(seed, 300, step)
    if seed == 4:  # a long silence: no range, no change
        candles = [(at, 7.0, 7.0, 7.0, 7.0) if 90 < i < 150 else (at, o, h, low, c)
                   for i, (at, o, h, low, c) in enumerate(candles)]  # fmt: skip
    rng = np.random.default_rng(seed)
    volumes = [(v, v * f) for v, f in rng.random((300, 2))]
    got = each_close(candles, volumes)
    at, _, h, low, c = (list(x) for x in zip(*candles, strict=True))
    v = [sum([b / 2] * 2 + [(x - b) / 2] * 2) for x, b in volumes]
    line, signal = ni.macd(c)
    middle, std = ni.bollinger(c, 20)
    wanted = {
        "ema9": ni.ema(c, 9),
        "ema21": ni.ema(c, 21),
        "ema50": ni.ema(c, 50),
        "rsi": ni.rsi(c, 14),
        "atr": ni.atr(h, low, c, 14),
        "adx": ni.adx(h, low, c, 14),
        "macd": line,
        "macd_signal": signal,
        "bb_middle": middle,
        "bb_std": std,
        "vwap": ni.session_vwap(at, h, low, c, v),
        "volume_mean": ni.mean(v, 20),
        "imbalance": ni.taker_imbalance(v, [b for _, b in volumes], 20),
    }
    for name, series in wanted.items():
        scale = max(abs(x) for x in c) if name in ("macd", "macd_signal", "bb_std") else 0.0
        np.testing.assert_allclose(
            got[:, OUTPUTS.index(name)], series, rtol=1e-12, atol=1e-13 * scale + 1e-13,
            err_msg=name,
        )  # fmt: skip
        assert np.isfinite(series[-1])


def structure_of(bench: Bench, candles: list[Candle]) -> list[tuple[int, str, int, float]]:
    index = {c[0]: i for i, c in enumerate(candles)}
    return sorted(
        (index[e[2]], smc.CODES[e[14]], e[15], e[5])
        for e in bench.events
        if e[13] == STRUCTURE and e[12] == 0
    )


@pytest.mark.parametrize("seed", range(20))
def test_structure_equals_the_twin(seed: int) -> None:
    candles = walk(seed, 500, [1.0, 0.4, 5.0][seed % 3])
    _, _, h, low, c = (list(x) for x in zip(*candles, strict=True))
    wanted = ns.events(candles, ni.atr(h, low, c, 14), smc.INTERNAL_SIZE, smc.SWING_SIZE)
    assert structure_of(run(candles), candles) == wanted
    assert {name for _, name, _, _ in wanted} >= {"internal_bos", "fvg", "sweep", "block"}


def test_every_kind_of_event_happens_on_random_markets() -> None:
    seen = {
        name
        for seed in range(6)
        for _, name, _, _ in structure_of(run(walk(seed, 500)), walk(seed, 500))
    }
    assert seen == set(smc.CODES)


def test_the_close_carries_the_flags_of_its_events() -> None:
    bench = run(walk(2, 400))
    flags: dict[tuple[int, int], int] = {}
    for e in bench.events:
        if e[13] == STRUCTURE:
            key = (e[2], e[12])
            flags[key] = flags.get(key, 0) | smc.flag(e[14], e[15])
    closes = {(e[2], e[12]): e[3] for e in bench.events if e[13] == CLOSE_EVENT}
    assert all(closes[key] == value for key, value in flags.items())
    assert all(value == flags.get(key, 0) for key, value in closes.items())


# --- hand-made charts ------------------------------------------------------------------------


def chart(*bars: tuple[float, float, float, float]) -> list[Candle]:
    return [(START_MS + i * MINUTE, *b) for i, b in enumerate(bars)]


def names_at(candles: list[Candle], last_only: bool = True) -> set[tuple[str, int]]:
    found = structure_of(run(candles), candles)
    return {(name, side) for i, name, side, _ in found if not last_only or i == len(candles) - 1}


GAP_UP = ((10, 11, 9, 10.5), (10.5, 13, 10.5, 12.5))


@pytest.mark.parametrize("low, fires", [(10.75, False), (11.0, False), (11.25, True)])
def test_a_gap_needs_the_outer_bars_apart(low: float, fires: bool) -> None:
    assert (("fvg", 1) in names_at(chart(*GAP_UP, (12.5, 14, low, 13)))) == fires


def test_a_gap_needs_the_middle_close_beyond_the_first_bar() -> None:
    weak = ((10, 11, 9, 10.5), (10.5, 13, 10.5, 11.0), (12, 14, 11.5, 13))
    assert ("fvg", 1) not in names_at(chart(*weak))


@pytest.mark.parametrize(
    "low, expected",
    [
        (12.25, set()),
        (12.0, {("fvg_touch", 1)}),
        (11.25, {("fvg_touch", 1)}),
        (11.0, {("fvg_touch", 1), ("fvg_filled", 1)}),
    ],
)
def test_a_gap_is_touched_at_its_near_edge_and_filled_at_its_far_one(
    low: float, expected: set[tuple[str, int]]
) -> None:
    bars = chart(*GAP_UP, (12.5, 14, 12, 13), (13, 13.5, low, 13))
    assert {x for x in names_at(bars) if x[0].startswith("fvg")} == expected


# A high at 20 that three lower bars confirm, after a low that turned the leg up.
PIVOT_HIGH = (
    (15, 16, 14, 15), (14, 15, 10, 11), (12, 16, 11, 15), (15, 17, 14, 16), (16, 18, 15, 17),
    (17, 20, 16, 18), (18, 19, 16, 17), (17, 18.5, 15, 16), (16, 18, 15.5, 17),
)  # fmt: skip


def test_a_pivot_is_known_three_bars_after_it() -> None:
    found = structure_of(run(chart(*PIVOT_HIGH)), chart(*PIVOT_HIGH))
    assert (8, "internal_pivot", 1, 20.0) in found
    assert ("internal_pivot", 1) not in names_at(chart(*PIVOT_HIGH[:8]), last_only=False)


@pytest.mark.parametrize(
    "high, close, expected",
    [
        (20.0, 19.75, set()),
        (20.25, 19.75, {("sweep", -1)}),
        (20.25, 20.0, set()),
        (20.5, 20.25, {("internal_bos", 1), ("block", 1)}),
    ],
)
def test_a_wick_through_a_pivot_sweeps_and_a_close_through_it_breaks(
    high: float, close: float, expected: set[tuple[str, int]]
) -> None:
    candles = chart(*PIVOT_HIGH, (17, high, 16.75, close))
    wanted = ("sweep", "internal_bos", "internal_choch", "block")
    assert {x for x in names_at(candles) if x[0] in wanted} == expected


def test_a_level_is_swept_once() -> None:
    candles = chart(*PIVOT_HIGH, (17, 20.5, 16.75, 18), (18, 20.75, 17, 18))
    assert ("sweep", -1) not in names_at(candles)


def test_a_break_against_the_bias_is_a_change_of_character() -> None:
    up = chart(*PIVOT_HIGH, (17, 21, 16.75, 20.5), (20.5, 21, 18, 18.5), (18, 19, 9, 9.5))
    assert ("internal_choch", -1) in names_at(up)


# --- looking back only -----------------------------------------------------------------------


def known_until(events: list[tuple], ns_: int) -> list[tuple]:
    return [e for e in events if e[0] <= ns_]


def assert_prefix_invariant(recs: np.ndarray, other: np.ndarray, cut: int, run_: object) -> None:
    """Everything known up to the cut is the same whatever comes after it."""
    assert (recs[:cut] == other[:cut]).all() and recs[cut:].tobytes() != other[cut:].tobytes()
    known = int(recs["exch_ns"][:cut].max())
    later = min(int(recs["exch_ns"][cut:].min()), int(other["exch_ns"][cut:].min()))
    assert later > known
    assert known_until(run_(recs), known) == known_until(run_(other), known)


def two_futures(seed: int, cut: int) -> tuple[np.ndarray, np.ndarray, int]:
    past = announced() + random_market(seed, cut)
    last_ms = max(row[0] for row in past) // 1_000_000 + 1
    futures = []
    for s in (seed + 1, seed + 2):
        future = random_market(s, 600, start_ms=last_ms + s % 7)
        futures.append(
            [(r[0], r[1], r[2] + cut, *r[3:]) if r[8] == rec.TRADE else r for r in future]
        )
    return table(past + futures[0]), table(past + futures[1]), len(past)


def kernel_events(recs: np.ndarray) -> list[tuple]:
    bench = Bench()
    bench.feed(recs)
    return bench.events


@pytest.mark.parametrize("seed", range(8))
def test_what_was_known_does_not_depend_on_what_came_later(seed: int) -> None:
    recs, other, cut = two_futures(seed * 31, 700 + 13 * seed)
    assert_prefix_invariant(recs, other, cut, kernel_events)


def test_a_planted_peek_of_one_bar_is_caught() -> None:
    def peeking(recs: np.ndarray) -> list[tuple]:
        """As the kernel, but each close carries the close of the bar after it."""
        events = [list(e) for e in kernel_events(recs)]
        closes = [e for e in events if e[13] == CLOSE_EVENT and e[12] == 0]
        for one, after in pairwise(closes):
            one[8] = after[8]
        return [tuple(e) for e in events]

    recs, other, cut = two_futures(5, 700)
    with pytest.raises(AssertionError):
        assert_prefix_invariant(recs, other, cut, peeking)


def test_a_forming_candle_without_a_trade_counts_as_flat_at_the_last_price() -> None:
    candles, bench = walk(4, 70), Bench()
    bench.feed(table(announced() + as_trades(candles)[:-1]))
    last_ms = candles[-1][0] + MINUTE
    bench.feed(table([clock(last_ms + 1_000)]))  # closes the last one; the next is empty
    a = bench.state.arrays
    assert bench.forming(0, 0)[1][-1] == 0.0
    would_be = list(forming(a, 0, 0))
    bench.feed(table([clock(last_ms + MINUTE + 1_000)]))  # closes flat
    assert bench.history(0, 0)[-1][1][:5] == (*[candles[-1][4]] * 4, 0.0)
    np.testing.assert_array_equal(would_be, a.ind[0, 0, : len(OUTPUTS)])
