"""Plans of the past: warm-up order, prefixes out of finer candles, holes, corrections, requests."""

from __future__ import annotations

import random

import numpy as np
import orjson
import pytest

from feed import binance, heal
from feed.binance import MS_PER_MIN, OPEN_MS
from feed.link import BACKOFF_S_MAX, backoff_s
from records import BAR, BAR_VOLUME, CLOSED, CORRECTION, GAP, RECORD, TIMEFRAMES_MIN, TRADE

DAY_MS = 86_400_000
DAY0 = 1_795_046_400_000
assert DAY0 % DAY_MS == 0


def minutes(count: int, end_ms: int, seed: int = 1) -> binance.Klines:
    """`count` consecutive 1m candles up to end_ms, whole numbers so that sums are exact."""
    rng = random.Random(seed)
    made = np.zeros((count, 9))
    price = 1000
    for index in range(count):
        path = [price := price + rng.randrange(-5, 6) for _ in range(6)]
        made[index, OPEN_MS] = end_ms - (count - index) * MS_PER_MIN
        made[index, 1:5] = path[0], max(path), min(path), path[-1]
        made[index, 5:] = [rng.randrange(100) for _ in range(4)]
    return made


def coarser(candles: binance.Klines, timeframe_min: int) -> binance.Klines:
    """Closed and forming candles of a timeframe, folded the slow way."""
    opens = [heal.floor_ms(int(ms), timeframe_min) for ms in candles[:, OPEN_MS]]
    rows = []
    for open_ms in sorted(set(opens)):
        part = candles[[at == open_ms for at in opens]]
        rows.append(
            [
                open_ms,
                part[0, 1],
                part[:, 2].max(),
                part[:, 3].min(),
                part[-1, 4],
                *part[:, 5:].sum(0),
            ]
        )
    return np.array(rows)


@pytest.mark.parametrize("minute", [0, 1, 4, 5, 6, 14, 15, 61, 719, 1439])
def test_a_prefix_is_the_fold_of_every_minute_of_its_bar(minute: int) -> None:
    minute_ms = DAY0 + minute * MS_PER_MIN
    candles = minutes(3000, minute_ms + 5 * MS_PER_MIN)  # REST may know later candles already
    history = {t: coarser(candles, t) for t in TIMEFRAMES_MIN}
    before = candles[candles[:, OPEN_MS] < minute_ms]
    for t in TIMEFRAMES_MIN[1:]:
        found = heal.prefix(history, t, minute_ms)
        inside = before[before[:, OPEN_MS] >= heal.floor_ms(minute_ms, t)]
        assert len(found) == (len(inside) > 0)
        if len(inside):
            assert np.array_equal(found[0, 1:], coarser(inside, 1440)[0, 1:])
            assert found[0, OPEN_MS] == heal.floor_ms(minute_ms, t)


def test_warm_up_comes_coarse_first_oldest_first_prefixes_last() -> None:
    minute_ms = DAY0 + 67 * MS_PER_MIN
    candles = minutes(9000, minute_ms)
    history = {t: coarser(candles, t) for t in TIMEFRAMES_MIN}
    records = heal.warm_up_bars(3, history, minute_ms, 9)
    assert set(records["symbol"]) == {3} and set(records["recv_ns"]) == {9}
    assert records["kind"].tolist() == [BAR, BAR_VOLUME] * (len(records) // 2)
    assert np.array_equal(records["exch_ns"][0::2], records["exch_ns"][1::2])
    bars = records[0::2]
    past, forming = bars[bars["flags"] == CLOSED], bars[bars["flags"] == 0]
    assert len(past) + len(forming) == len(bars) and np.all(bars["flags"][: len(past)] == CLOSED)
    assert list(dict.fromkeys(past["aux"].tolist())) == [1440, 60, 15, 5, 1]
    assert forming["aux"].tolist() == [1440, 60, 15, 5]
    for t in TIMEFRAMES_MIN:
        opens = past["exch_ns"][past["aux"] == t] // 1_000_000
        assert len(opens) <= heal.bars_max(t) and np.all(np.diff(opens) == t * MS_PER_MIN)
        assert opens[-1] + t * MS_PER_MIN <= minute_ms < opens[-1] + 2 * t * MS_PER_MIN


@pytest.mark.parametrize("end_offset_ms", [-1, 0, 1])
def test_only_candles_that_ended_by_the_minute_are_closed(end_offset_ms: int) -> None:
    candles = minutes(2, DAY0)
    found = heal.closed(candles, 1, DAY0 + end_offset_ms)
    assert len(found) == (1 if end_offset_ms < 0 else 2)


@pytest.mark.parametrize("count", [4_999, 5_000, 5_001])
def test_a_hole_is_fetched_up_to_the_limit(count: int) -> None:
    assert heal.worth_fetching(count, 5_000, 10_000) == (count <= 5_000)


@pytest.mark.parametrize(
    ("count", "weight", "fetched"), [(1000, 19, 0), (1000, 20, 1), (1001, 20, 0)]
)
def test_a_hole_is_fetched_within_the_weight(count: int, weight: int, fetched: int) -> None:
    assert heal.worth_fetching(count, 5_000, weight) == bool(fetched)


@pytest.mark.parametrize("used", [1_199, 1_200, 1_201])
def test_history_stops_at_half_of_the_weight(used: int) -> None:
    assert heal.weight_left(used) == max(0, 1_200 - used)


@pytest.mark.parametrize(("waiting", "left"), [(49, 2_400), (50, 200), (51, 200)])
def test_a_hole_waits_for_weight_only_while_the_side_buffer_has_room(
    waiting: int, left: int
) -> None:
    assert heal.patience(1_000, waiting, 100) == left


def test_fetched_trades_count_only_as_far_as_they_are_consecutive() -> None:
    trades = np.zeros(6, RECORD)
    trades["id"] = [4, 5, 6, 8, 9, 10]
    assert heal.in_sequence(trades, 5, 10)["id"].tolist() == [5, 6]
    assert heal.in_sequence(trades, 5, 5)["id"].tolist() == [5]
    assert heal.in_sequence(trades, 7, 10)["id"].tolist() == []


def test_corrections_cover_every_touched_bar_and_wait_for_its_end() -> None:
    found = heal.corrections(DAY0 + 59_999, DAY0 + 60_000)
    one, five = found[0], found[1]
    assert [c.timeframe_min for c in found] == list(TIMEFRAMES_MIN)
    assert (one.first_ms, one.last_ms) == (DAY0, DAY0 + 60_000)
    assert (five.first_ms, five.last_ms) == (DAY0, DAY0)
    assert one.due_ms == DAY0 + 120_000 + heal.SETTLE_MS
    later = heal.Correction(1, DAY0 + 180_000, DAY0 + 240_000)
    assert heal.merged(one, later) == heal.Correction(1, DAY0, DAY0 + 240_000)
    assert heal.correction_flags() == CLOSED | CORRECTION


def test_a_restarted_feed_reads_lost_spans_out_of_the_ring() -> None:
    records = np.concatenate(
        [heal.gap(1, 5, 0, 0, 0, 1), heal.gap(1, 5, 3, 100, 200, 1), heal.gap(1, 9, 1, 50, 60, 1)]
    )
    assert set(records["kind"]) == {GAP}
    assert heal.lost_spans(records) == {1: (50, 200)}


def test_subscriptions_are_batched_within_the_limits() -> None:
    names = [f"s{n}@aggTrade" for n in range(401)]
    messages = [orjson.loads(m) for m in binance.requests("SUBSCRIBE", names, 7)]
    assert [len(m["params"]) for m in messages] == [200, 200, 1]
    assert [m["id"] for m in messages] == [7, 8, 9]
    assert [name for m in messages for name in m["params"]] == names


def test_names_and_addresses_are_those_of_2026() -> None:
    assert binance.streams(binance.PUBLIC, "BTCUSDT") == ("btcusdt@bookTicker",)
    assert binance.streams(binance.MARKET, "BTCUSDT") == (
        "btcusdt@aggTrade",
        "btcusdt@markPrice@1s",
    )
    assert binance.stream_url("wss://x.com/", "market") == "wss://x.com/market/stream"
    assert binance.klines_path("币", 60, None, 5, 121) == (
        "/fapi/v1/klines?symbol=%E5%B8%81&interval=1h&endTime=5&limit=121"
    )
    assert binance.trades_path("A", 7) == "/fapi/v1/aggTrades?symbol=A&fromId=7&limit=1000"


def test_answers_are_parsed_or_refused_whole() -> None:
    row = [DAY0, "1.0", "2", "0.5", "1.5", "9", DAY0 + 59_999, "12", 3, "4", "5", "0"]
    assert binance.parse_klines(orjson.dumps([row])).tolist() == [
        [DAY0, 1.0, 2.0, 0.5, 1.5, 9.0, 12.0, 4.0, 3.0]
    ]
    bar, volume = heal.bars(0, 1, binance.parse_klines(orjson.dumps([row])), CLOSED, 5)
    assert [bar[field] for field in "abcd"] == [1.0, 2.0, 0.5, 1.5]
    assert [volume[field] for field in "abcd"] == [9.0, 12.0, 4.0, 3.0]  # base quote taker trades
    trade = {"a": 1, "p": "2.5", "q": "3", "T": DAY0, "m": True}
    found = binance.parse_trades(orjson.dumps([trade, trade | {"a": 2}]), 4, 5)
    assert found["kind"].tolist() == [TRADE, TRADE] and found["flags"].tolist() == [1, 1]
    assert binance.parse_time(b'{"serverTime":5}') == (5, 1.0)
    assert binance.parse_klines(b"[]").shape == (0, 9)
    assert len(binance.parse_trades(b"[]", 0, 0)) == 0
    bad = [b"", b"{}", b"[[1]]", b'{"code":-1121}', orjson.dumps([row, row]), b'[{"a":1}]', b"null"]
    for body in bad:
        with pytest.raises(binance.BadAnswer):
            binance.parse_klines(body)
        with pytest.raises(binance.BadAnswer):
            binance.parse_trades(body, 0, 0)
        with pytest.raises(binance.BadAnswer):
            binance.parse_time(body)


def test_back_off_doubles_with_jitter_and_is_bounded() -> None:
    assert backoff_s(0, 1.0) == 0.25 and backoff_s(0, 0.0) == 0.125
    assert backoff_s(1, 1.0) == 0.5
    assert backoff_s(10_000, 1.0) == BACKOFF_S_MAX
