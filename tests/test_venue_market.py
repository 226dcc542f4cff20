"""The generated market, its record and its frames: reproducible, consistent, ordered."""

from __future__ import annotations

import gzip
import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.conftest import DATA
from venue import bars, exchange, market, tape, wire
from venue.bars import CLOSE, HIGH, LOW, OPEN, OPEN_MS, SPAN_MS, TRADES
from venue.exchange import Setup
from venue.market import AGG, ARR, BOOK, EVENT_MS, ID, KIND, MARK, P1, P2, Q2, SYM, TRADE_MS, Ints

CAPTURE = DATA / "raw_ws" / "usdm_btcusdt_20240808.gz"
needs_capture = pytest.mark.skipif(
    not CAPTURE.exists(), reason=f"the real capture {CAPTURE} is not on this machine"
)


def world(symbols: int = 3, edge: float = 0.15, seed: int = 7, rate: float = 3000.0) -> Any:
    return exchange.create(Setup("w", symbols, rate, seed, 20.0, edge, ()))


def run(made: Any, ms: float, slices: int = 1) -> Ints:
    """All rows of the next `ms` market milliseconds, asked for in so many steps."""
    start = made.made_until_ms
    out = []
    for k in range(1, slices + 1):
        for count in exchange.advance(made, start + ms * k / slices, 0):
            out.append(made.rows[:count].copy())
    return np.concatenate(out)


def test_the_same_seed_makes_the_same_market_however_it_is_stepped() -> None:
    whole, sliced = run(world(), 90_000), run(world(), 90_000, 1234)
    assert np.array_equal(whole, sliced)
    assert not np.array_equal(whole[:100], run(world(seed=8), 90_000)[:100])


def test_rate_share_and_spread_are_as_promised() -> None:
    made = world(5)
    rows = run(made, 600_000)  # 30 real seconds at speed 20
    ticks = rows[rows[:, KIND] <= BOOK]
    assert len(ticks) == pytest.approx(30 * 3000, rel=0.03)
    assert (ticks[:, KIND] == AGG).mean() == pytest.approx(1 / 3, abs=0.01)
    quotes = rows[rows[:, KIND] == BOOK]
    spread = (quotes[:, P2] - quotes[:, P1]) / made.market.n[quotes[:, SYM], market.TICK]
    assert set(spread.tolist()) == {1, 2, 3}


def test_a_minute_moves_20_to_40_basis_points_whatever_the_rate() -> None:
    for rate in (400.0, 4000.0):
        made = world(4, rate=rate)
        run(made, 300 * 60_000)
        for symbol in range(4):
            close = bars.candles(made.record, symbol, 0)[:-1, CLOSE].astype(float)
            assert 15 < np.diff(np.log(close)).std() * 1e4 < 45


def test_a_walk_without_edge_has_no_drift_and_with_edge_goes_on_after_a_break() -> None:
    """Mean move after a structure break, in deviations of its span: 0 and about the edge."""
    means = []
    for edge in (0.0, 0.6):
        made = world(10, edge=edge, rate=2000.0)
        n, f = made.market.n, made.market.f
        moves: list[float] = []
        since: dict[int, tuple[int, float, int]] = {}
        broke = n[:, market.BROKE].copy()
        for minute in range(1500):
            run(made, 60_000)
            for s in range(10):
                if s in since and minute >= since[s][0]:
                    _, price, side = since.pop(s)
                    scale = f[s, market.SIGMA] * market.DRIFT_MS**0.5
                    moves.append(side * float(np.log(f[s, market.MID] / price)) / scale)
                fresh = int(n[s, market.BROKE]) & ~int(broke[s])
                if fresh and s not in since:
                    since[s] = (minute + 10, float(f[s, market.MID]), 1 if fresh & 1 else -1)
            broke = n[:, market.BROKE].copy()
        means.append(float(np.mean(moves)))
        assert len(moves) > 300
    assert abs(means[0]) < 0.15 and means[1] > 0.25


def test_ids_are_consecutive_and_marks_follow_everything_of_their_second() -> None:
    rows = run(world(), 120_000)
    for symbol in range(3):
        own = rows[(rows[:, KIND] == AGG) & (rows[:, SYM] == symbol)]
        assert (np.diff(own[:, ID]) == 1).all()
        assert (own[1:, P2] == own[:-1, Q2] + 1).all()
    assert (np.diff(rows[:, EVENT_MS]) >= 0).all() and (
        rows[:, TRADE_MS] <= rows[:, EVENT_MS]
    ).all()
    marks = np.flatnonzero(rows[:, KIND] == MARK)
    for at in marks:
        assert (rows[at + 1 :][rows[at + 1 :, KIND] == AGG, TRADE_MS] > rows[at, EVENT_MS]).all()
    assert len(marks) == 3 * 120


def expected_bars(rows: Ints, span: int) -> dict[int, list[int]]:
    out: dict[int, list[int]] = {}
    for row in rows[rows[:, KIND] == AGG].tolist():
        price, qty, n = row[P1], row[market.Q1], row[Q2] - row[P2] + 1
        taker = 0 if row[market.FLAG] else qty
        start = row[TRADE_MS] // span * span
        fresh = [start, price, price, price, price, 0, 0, 0, 0, 0, row[P2], 0]
        b = out.setdefault(start, fresh)
        b[2], b[3], b[4], b[11] = max(b[2], price), min(b[3], price), price, row[Q2]
        for col, add in ((5, qty), (6, qty * price), (7, n), (8, taker), (9, taker * price)):
            b[col] += add
    return out


def test_candles_are_those_of_the_published_trades_and_history_ends_where_they_begin() -> None:
    made = world(2)
    rows = run(made, 3 * 3_600_000, 50)
    mine = rows[rows[:, SYM] == 1]
    for timeframe, span in enumerate(SPAN_MS.tolist()):
        shown = exchange.candles(made, 1, timeframe)
        assert (np.diff(shown[:, OPEN_MS]) == span).all()
        before = shown[shown[:, OPEN_MS] < exchange.minute_of(made.t0_ms)]
        assert len(before) >= 130
        assert (shown[:, HIGH] >= shown[:, [OPEN, CLOSE]].max(1)).all()
        assert (shown[:, LOW] <= shown[:, [OPEN, CLOSE]].min(1)).all()
        live = {int(row[OPEN_MS]): row.tolist() for row in shown if row[OPEN_MS] >= made.t0_ms}
        wanted = {k: v for k, v in expected_bars(mine, span).items() if k >= made.t0_ms}
        assert live == wanted or timeframe == 4
        assert timeframe == 4 or live


def test_coarse_history_is_the_sum_of_the_fine_one() -> None:
    made = world(1)
    for timeframe in range(1, 5):
        fine, coarse = (
            exchange.candles(made, 0, timeframe - 1),
            exchange.candles(made, 0, timeframe),
        )
        checked = 0
        for row in coarse:
            end = row[OPEN_MS] + SPAN_MS[timeframe]
            parts = fine[(fine[:, OPEN_MS] >= row[OPEN_MS]) & (fine[:, OPEN_MS] < end)]
            parts = parts[parts[:, TRADES] > 0]
            if not len(parts) or fine[0, OPEN_MS] > row[OPEN_MS]:
                continue
            checked += 1
            assert (row[OPEN], row[CLOSE]) == (parts[0, OPEN], parts[-1, CLOSE])
            assert (row[HIGH], row[LOW]) == (parts[:, HIGH].max(), parts[:, LOW].min())
            assert (row[5:] == parts[:, 5:].sum(0)).all()
        assert checked >= 9
    first = bars.candles(made.record, 0, 0)[0]
    past = exchange.candles(made, 0, 0)
    assert past[past[:, OPEN_MS] < first[OPEN_MS]][-1, CLOSE] == made.birth_prices[0]


def decode(frames: bytes) -> list[tuple[str, str]]:
    """(header check passed) raw payload texts, in order, with their JSON round trip."""
    out, at = [], 0
    while at < len(frames):
        assert frames[at] == 0x81
        length, head = frames[at + 1], 2
        if length == 126:
            length, head = int.from_bytes(frames[at + 2 : at + 4], "big"), 4
        elif length == 127:
            length, head = int.from_bytes(frames[at + 2 : at + 10], "big"), 10
        text = frames[at + head : at + head + length].decode()
        out.append((text, json.dumps(json.loads(text), separators=(",", ":"))))
        at += head + length
    return out


@pytest.mark.parametrize(("combined", "symbols"), [(True, 25), (False, 25), (True, 300)])
def test_frames_are_the_exact_text_of_the_exchange(combined: bool, symbols: int) -> None:
    made = world(symbols)
    rows = run(made, 3_500)
    t = wire.templates(made.specs)
    wanted = np.ones((market.KINDS, symbols + 1), np.uint8)
    out, spans = np.zeros(60 << 20, np.uint8), np.zeros((len(rows), 2), np.int64)
    done = wire.encode(rows, 0, len(rows), wanted, combined, t.blob, t.start, t.digits, out, spans)
    assert done == len(rows)
    for row, (start, end) in zip(rows, spans, strict=True):
        [(text, again)] = decode(out[start:end].tobytes())
        assert text == again  # compact, nothing but the keys and values that were meant
        data = json.loads(text)["data"] if combined else json.loads(text)
        if row[KIND] in (AGG, BOOK, MARK):
            check_payload(made.specs[row[SYM]], row, data, json.loads(text), combined)
        elif row[KIND] == ARR:
            assert [mark["s"] for mark in data] == [s.name for s in made.specs]


def check_payload(s: Any, row: Ints, data: Any, whole: Any, combined: bool) -> None:
    kind = int(row[KIND])
    keys = {
        AGG: "e E a s p q nq f l T m st",
        BOOK: "e u s ps b B a A T E st",
        MARK: "e E s p ap P i r T st",
    }[kind]
    assert list(data) == keys.split() and data["s"] == s.name
    if combined:
        assert whole["stream"] == f"{s.name.lower()}@{wire.STREAM_NAMES[kind]}"
    price = data["b" if kind == BOOK else "p"]
    assert Decimal(price) == Decimal(int(row[P1])).scaleb(-8 if kind == MARK else -s.price_digits)
    assert len(price.partition(".")[2]) == (8 if kind == MARK else s.price_digits)
    if kind == AGG:
        assert (data["a"], data["m"]) == (row[ID], bool(row[market.FLAG]))
        assert Decimal(data["q"]) == s.qty_of(int(row[market.Q1]))


def trade(ms: int, number: int, price: int = 100, maker: bool = False) -> tuple[Any, ...]:
    return (ms, ms, number, price, 2, maker)


@pytest.mark.parametrize(
    ("first_ms", "second", "whole"),
    [
        (5001, trade(5101, 2), True),
        (5001, trade(5102, 2), False),
        (5001, trade(5050, 2, price=101), False),
        (5001, trade(5050, 2, maker=True), False),
        (5950, trade(6000, 2), True),
        (5950, trade(6001, 2), False),  # a second ends what is open, so that its mark can follow
    ],
)
def test_prints_of_one_side_and_price_within_100_ms_and_a_second_are_one_trade(
    first_ms: int, second: tuple[Any, ...], whole: bool
) -> None:
    rows = tape.aggregate([trade(first_ms, 1), second])
    first_id = tape.FIRST_AGG_ID
    assert [row[ID] for row in rows] == ([first_id] if whole else [first_id, first_id + 1])
    assert (rows[0][P2], rows[-1][Q2]) == (1, 2)


@needs_capture
def test_the_real_capture_becomes_aggregate_trades() -> None:
    made = tape.load([str(CAPTURE)])
    aggs = made.rows[made.rows[:, KIND] == AGG]
    raw = [d for d in tape.frames(str(CAPTURE)) if d["e"] == "trade"]
    assert (np.diff(aggs[:, ID]) == 1).all()
    assert aggs[0, P2] == raw[0]["t"] and aggs[-1, Q2] == raw[-1]["t"]
    assert (aggs[:, Q2] - aggs[:, P2] + 1).sum() == len(raw)
    total = sum(Decimal(d["q"]) for d in raw)
    assert Decimal(int(aggs[:, market.Q1].sum())).scaleb(-3) == total
    lag = aggs[:, EVENT_MS] - aggs[:, TRADE_MS]
    assert lag.min() >= 0 and lag.max() <= 100
    assert made.symbols[0].name == "BTCUSDT" and made.symbols[0].tick == Decimal("0.10")


@needs_capture
def test_a_tape_plays_beside_generated_symbols_on_one_clock() -> None:
    made = exchange.create(Setup("w", 4, 1000.0, 7, 5.0, 0.15, (str(CAPTURE),)))
    rows = run(made, 400_000, 20)
    assert len(made.specs) == 4 and made.specs[0].name == "BTCUSDT"
    assert exchange.market.tape_ended(made.market)
    own = rows[(rows[:, SYM] == 0) & (rows[:, KIND] == AGG)]
    assert np.array_equal(own, made.market.tape[made.market.tape[:, KIND] == AGG])
    assert (np.diff(rows[:, EVENT_MS]) >= 0).all()
    assert {1, 2, 3} <= set(rows[rows[:, KIND] == AGG, SYM].tolist())
    past = exchange.candles(made, 0, 0)
    before = past[past[:, OPEN_MS] < exchange.minute_of(made.t0_ms)]
    assert before[-1, CLOSE] == own[0, P1]


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize(
    "content", [b"no json\n", b"1 {}\n", b"", b'1 {"data":{"e":"trade","s":"X"}}\n']
)
def test_what_is_no_tape_is_refused_in_one_sentence(
    tmp_path: Path, content: bytes, packed: bool
) -> None:
    path = tmp_path / "x.gz"
    path.write_bytes(gzip.compress(content) if packed else content)
    with pytest.raises(tape.TapeError) as refused:
        tape.load([str(path)])
    assert str(path) in str(refused.value) and "\n" not in str(refused.value)
