"""Candles of every interval, of trades and of marks, and the crowd's figures beside them."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal as D
from typing import Any

import numpy as np
import pytest

from tests.test_venue_depth import drive
from tests.test_venue_market import run
from tests.test_venue_streams import KLINE, ask, of
from venue import bars, exchange, intervals, klines, looks, statistics
from venue.bars import OPEN_MS, TRADES
from venue.exchange import Exchange, Setup
from venue.intervals import INTERVALS
from venue.market import EVENT_MS, KIND, MARK, P1, SYM
from venue.orders import Refusal
from venue.rest import Call, Desk, handle

# birth is 140 s before a day that opens the candle: seeds of a day, three days, a Monday, a month
SEEDS = {"3d": 1, "1w": 5, "1M": 28}


def world(rate: float = 200.0, seed: int = 7, symbols: int = 2) -> Exchange:
    return exchange.create(Setup("w", symbols, rate, seed, 20.0, 0.15, ()))


def ms(*when: int) -> int:
    return int(datetime(*when, tzinfo=UTC).timestamp() * 1000)  # type: ignore[misc,arg-type]


@pytest.mark.parametrize(
    ("interval", "when", "start", "end"),
    [
        ("3m", (2024, 3, 5, 12, 34), (2024, 3, 5, 12, 33), (2024, 3, 5, 12, 36)),
        ("8h", (2024, 3, 5, 23, 59), (2024, 3, 5, 16), (2024, 3, 6)),
        ("1w", (2024, 3, 5), (2024, 3, 4), (2024, 3, 11)),
        ("1w", (2024, 3, 4), (2024, 3, 4), (2024, 3, 11)),
        ("1w", (2024, 3, 3, 23, 59), (2024, 2, 26), (2024, 3, 4)),
        ("1M", (2024, 2, 29, 23), (2024, 2, 1), (2024, 3, 1)),
        ("1M", (2023, 12, 31), (2023, 12, 1), (2024, 1, 1)),
    ],
)
def test_a_candle_opens_and_ends_where_the_calendar_says(
    interval: str, when: tuple[int, ...], start: tuple[int, ...], end: tuple[int, ...]
) -> None:
    assert intervals.opens(np.array([ms(*when)]), interval).tolist() == [ms(*start)]
    assert intervals.end_ms(ms(*start), interval) == ms(*end)


def merged(parts: list[list[Any]]) -> list[Any]:
    """What one candle must be, from the REST rows of finer ones."""
    traded = [p for p in parts if p[8]] or parts[-1:]

    def total(column: int) -> D:
        return sum((D(p[column]) for p in parts), D(0))

    return [
        D(traded[0][1]), max(D(p[2]) for p in traded), min(D(p[3]) for p in traded),
        D(traded[-1][4]), total(5), total(7), sum(p[8] for p in parts), total(9), total(10),
    ]  # fmt: skip


@pytest.mark.parametrize("interval", INTERVALS[1:])
def test_a_higher_interval_is_the_sum_of_the_finer_ones(interval: str) -> None:
    """Against 1m over the hours that both have, else against 1h and 1d."""
    made = world(20.0)
    run(made, 26 * 3_600_000, 3)
    fine = "1m" if INTERVALS.index(interval) < 5 else "1h" if interval[-1] == "h" else "1d"
    fine = "1h" if interval == "1d" else fine
    rows = {i: ask(made, "/fapi/v1/klines", symbol="ETHUSDT", interval=i, limit="1500")
            for i in (fine, interval)}  # fmt: skip
    checked = 0
    for row in rows[interval]:
        parts = [p for p in rows[fine] if row[0] <= p[0] <= row[6]]
        if not parts or parts[0][0] != row[0]:
            continue
        whole = [
            D(row[k]) if isinstance(row[k], str) else row[k] for k in (1, 2, 3, 4, 5, 7, 8, 9, 10)
        ]
        assert whole == merged(parts)
        checked += 1
    assert checked >= 5
    times = [row[0] for row in rows[interval]]
    ends = [intervals.end_ms(t, interval) for t in times]
    assert times[1:] == ends[:-1] and [row[6] + 1 for row in rows[interval]] == ends


@pytest.mark.parametrize("interval", INTERVALS)
def test_each_candle_of_the_stream_closes_once_as_rest_gives_it(interval: str) -> None:
    seed = SEEDS.get(interval, 7)
    pair = f"ethusdt_perpetual@continuousKline_{interval}"
    name, made = f"ethusdt@kline_{interval}", world(seed=seed)
    born_ms = made.t0_ms
    said = drive(made, {name, pair}, 7 * 60_000, 40)
    assert said == drive(world(seed=seed), {name, pair}, 7 * 60_000, 111)
    events = of(said, name)
    rows = ask(made, "/fapi/v1/klines", symbol="ETHUSDT", interval=interval, limit="1500")
    done = [e["k"] for e in events if e["k"]["x"]]
    expected = [r for r in rows if born_ms < r[6] < int(made.made_until_ms)]
    shown = [[k[c] for c in ("t", "o", "h", "l", "c", "v", "T", "q", "n", "V", "Q", "B")]
             for k in (*done, events[-1]["k"])]  # fmt: skip
    assert shown[:-1] == expected and expected
    assert shown[-1][0] == rows[-1][0] and list(events[0]["k"]) == KLINE
    for plain, paired in zip(events, of(said, pair), strict=True):
        assert list(paired) == ["e", "E", "ps", "ct", "k"]
        assert (paired["e"], paired["ps"], paired["ct"]) == (
            "continuous_kline", "ETHUSDT", "PERPETUAL",
        )  # fmt: skip
        assert paired["k"] == {k: v for k, v in plain["k"].items() if k != "s"}


def test_candles_have_no_hole_when_the_first_ones_are_no_longer_kept(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(bars, "BARS_MOST", 300)
    made = world(20.0, symbols=1)
    for _ in range(3):
        run(made, 3 * 3_600_000)
        for interval in ("1m", "3m", "5m", "1h"):
            rows = klines.folded(made, 0, interval)
            span = intervals.end_ms(0, interval)
            assert (np.diff(rows[:, OPEN_MS]) == span).all() and len(rows) >= 99


@pytest.mark.parametrize("interval", ["1m", "5m", "1h"])
def test_mark_candles_are_those_of_the_published_marks(interval: str) -> None:
    made = world(100.0)
    rows = run(made, 2 * 3_600_000 + 20_000, 5)
    marks = rows[(rows[:, KIND] == MARK) & (rows[:, SYM] == 1)]
    path = "/fapi/v1/markPriceKlines"
    shown = ask(made, path, symbol="ETHUSDT", interval=interval, limit="1500")
    starts = intervals.opens(marks[:, EVENT_MS], interval)
    checked = 0
    for start in sorted(set(starts.tolist()))[1:]:
        own = [D(int(p)).scaleb(-8) for p in marks[starts == start, P1]]
        row = next(r for r in shown if r[0] == start)
        assert [D(v) for v in row[1:5]] == [own[0], max(own), min(own), own[-1]]
        assert row[8] == len(own) and row[6] == intervals.end_ms(start, interval) - 1
        assert [row[k] for k in (5, 7, 9, 10, 11)] == ["0"] * 5
        checked += 1
    assert checked >= 1 if interval == "1h" else checked >= 24
    traded = ask(made, "/fapi/v1/klines", symbol="ETHUSDT", interval=interval, limit="1500")
    assert [r[0] for r in shown] == [r[0] for r in traded]
    assert all(abs(D(m[4]) / D(t[4]) - 1) < D("0.01") for m, t in zip(shown, traded, strict=True))
    params = {"interval": interval, "limit": "50"}
    index = ask(made, "/fapi/v1/indexPriceKlines", pair="ETHUSDT", **params)
    premium = ask(made, "/fapi/v1/premiumIndexKlines", symbol="ETHUSDT", **params)
    assert index == shown[-50:] and {v for r in premium for v in r[1:5]} == {"0.00000000"}


def figures(made: Exchange, path: str, **params: str) -> Any:
    call = Call(made, Desk(), params, exchange.Moment(int(made.made_until_ms), 0))
    return statistics.ROUTES["GET", path].handler(call)


def test_open_interest_is_one_story_whatever_is_asked() -> None:
    made = world(50.0)
    run(made, 3 * 3_600_000)
    path = "/futures/data/openInterestHist"
    hours = figures(made, path, symbol="ETHUSDT", period="1h", limit="100")
    fine = figures(made, path, symbol="ETHUSDT", period="5m", limit="500")
    by_time = {row["timestamp"]: row for row in fine}
    both = [row for row in hours if row["timestamp"] in by_time]
    assert len(hours) == 100 and len(both) > 15
    for row in both:
        assert row["sumOpenInterest"] == by_time[row["timestamp"]]["sumOpenInterest"]
    values = [float(row["sumOpenInterest"]) for row in fine]
    steps = np.abs(np.diff(np.log(values)))
    assert 0 < steps.max() < 0.05 and max(values) / min(values) > 1.02
    marks = ask(made, "/fapi/v1/markPriceKlines", symbol="ETHUSDT", interval="1h", limit="1500")
    opened = {row[0]: D(row[1]) for row in marks}
    for row in hours:
        price = D(row["sumOpenInterestValue"]) / D(row["sumOpenInterest"])
        assert price == pytest.approx(opened[row["timestamp"]])
    now = figures(made, "/fapi/v1/openInterest", symbol="ETHUSDT")
    assert float(now["openInterest"]) == pytest.approx(values[-1], rel=0.05)
    again, other = world(50.0), world(50.0, seed=8)
    days = {row["timestamp"]: row for row in figures(made, path, symbol="ETHUSDT", period="1d")}
    told = figures(again, path, symbol="ETHUSDT", period="1d")
    assert sum(days.get(row["timestamp"]) == row for row in told) >= 28
    assert figures(other, path, symbol="ETHUSDT", period="1d") != figures(
        again, path, symbol="ETHUSDT", period="1d"
    )


@pytest.mark.parametrize("crowd", ["topLongShortAccount", "topLongShortPosition",
                                   "globalLongShortAccount"])  # fmt: skip
def test_long_and_short_make_a_whole_and_the_ratio_is_theirs(crowd: str) -> None:
    made = world()
    rows = figures(made, f"/futures/data/{crowd}Ratio", symbol="BTCUSDT", period="15m", limit="99")
    assert len(rows) == 99
    for row in rows:
        long, short = D(row["longAccount"]), D(row["shortAccount"])
        assert long + short == 1 and D("0.1") < short < D("0.9")
        assert abs(D(row["longShortRatio"]) - long / short) <= D("0.00005")
    times = [row["timestamp"] for row in rows]
    assert set(np.diff(times).tolist()) == {900_000}


def test_taker_volumes_and_basis_are_those_of_the_candles() -> None:
    made = world()
    run(made, 3_600_000)
    params = {"symbol": "BTCUSDT", "period": "5m", "limit": "40"}
    rows = figures(made, "/futures/data/takerlongshortRatio", **params)
    bars_5m = ask(made, "/fapi/v1/klines", symbol="BTCUSDT", interval="5m", limit="41")[:-1]
    assert [r["timestamp"] for r in rows] == [b[0] for b in bars_5m]
    for row, bar in zip(rows, bars_5m, strict=True):
        assert D(row["buyVol"]) == D(bar[9]) and D(row["sellVol"]) == D(bar[5]) - D(bar[9])
    params = {"pair": "BTCUSDT", "period": "5m", "contractType": "PERPETUAL"}
    for row in figures(made, "/futures/data/basis", **params):
        assert D(row["futuresPrice"]) - D(row["indexPrice"]) == D(row["basis"])
        assert abs(D(row["basisRate"])) < D("0.01")
    assert figures(made, "/futures/data/basis", **params | {"contractType": "NEXT_QUARTER"}) == []


@pytest.mark.parametrize(
    ("path", "params", "code"),
    [
        ("openInterestHist", {"period": "5m"}, -1102),
        ("openInterestHist", {"symbol": "BTCUSDT"}, -1102),
        ("openInterestHist", {"symbol": "BTCUSDT", "period": "3m"}, -1130),
        ("openInterestHist", {"symbol": "BTCUSDT", "period": "5m", "limit": "501"}, -1130),
        ("basis", {"pair": "BTCUSDT", "period": "5m"}, -1102),
        ("basis", {"pair": "NOPE", "period": "5m", "contractType": "PERPETUAL"}, -1121),
        ("basis", {"pair": "BTCUSDT", "period": "5m", "contractType": "X"}, -4104),
    ],
)
def test_a_wrong_question_about_the_crowd_gets_a_code(
    path: str, params: dict[str, str], code: int
) -> None:
    answer = figures(world(), f"/futures/data/{path}", **params)
    assert isinstance(answer, Refusal) and answer.code == code


def test_assets_are_told_at_their_marks_in_rest_and_in_the_stream() -> None:
    made = world()
    said = drive(made, {"!assetIndex@arr", "ethusd@assetIndex"}, 3_000, 7)
    rows = {row["symbol"]: row for row in figures(made, "/fapi/v1/assetIndex")}
    assert (
        list(rows) == ["USDTUSD", "BTCUSD", "ETHUSD"] and rows["USDTUSD"]["index"] == "1.00000000"
    )
    mark = ask(made, "/fapi/v1/premiumIndex", symbol="ETHUSDT")["markPrice"]
    row = rows["ETHUSD"]
    assert row["index"] == mark
    assert D(row["bidRate"]) == pytest.approx(D(mark) * D("0.95"))
    assert D(row["autoExchangeAskRate"]) == pytest.approx(D(mark) * D("1.025"))
    whole, one = of(said, "!assetIndex@arr"), of(said, "ethusd@assetIndex")
    assert [frame["E"] % 1000 for frame in one] == [0, 0, 0] and len(whole) == 3
    assert [frame[2] for frame in whole] == one
    assert list(one[0]) == ["e", "E", "s", "i", "b", "a", "B", "A", "q", "g", "Q", "G"]


def test_a_symbol_that_is_not_listed_is_asked_for_only_where_it_may_be() -> None:
    made = world()
    now = exchange.Moment(int(made.made_until_ms), 0)

    def status(path: str, symbol: str) -> int:
        query = f"symbol={symbol}".encode()
        routes = statistics.ROUTES
        return handle(made, Desk(), routes, "GET", path, query, b"", "", now).status

    assert status("/fapi/v1/assetIndex", "ETHUSD") == 200
    assert status("/fapi/v1/assetIndex", "NOPEUSD") == 400
    assert status("/fapi/v1/fundingInfo", "NOPE") == 200
    assert status("/fapi/v1/openInterest", "NOPE") == 400


def test_streams_of_what_does_not_happen_are_known_and_silent() -> None:
    names = {"!contractInfo", "btcusdt@compositeIndex"}
    assert all(looks.parse(name, {"btcusdt": 0}) for name in names)
    assert drive(world(), names, 5_000, 9) == []


def test_a_candle_of_marks_counts_a_mark_a_second() -> None:
    made = world()
    run(made, 200_000)
    assert bars.mark_candles(made.record, 0)[1:-1, TRADES].tolist() == [60, 60, 60]
