"""Plans of the past: warm-up order, prefixes out of finer candles, holes, corrections, requests."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import orjson
import pytest

from feed import binance, heal
from feed.binance import MS_PER_MIN, OPEN_MS
from feed.lane import LAST_NS, LIVE, emit, make_lane, set_symbol
from feed.link import BACKOFF_S_MAX, backoff_s
from feed.main import remember
from records import (
    BAR,
    BAR_VOLUME,
    BUYER_MAKER,
    CLOSED,
    CORRECTION,
    RECORD,
    REFUSED,
    TIMEFRAMES_MIN,
    TRADE,
)
from ring import HEAD, create

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
    assert heal.opens(one) == {DAY0, DAY0 + 60_000} and heal.opens(five) == {DAY0}
    assert heal.correction_flags() == CLOSED | CORRECTION


@pytest.mark.parametrize("offset_ms", [-1, 0, 1])
def test_a_bar_is_due_on_its_own_whatever_was_lost_after_it(offset_ms: int) -> None:
    planned = {DAY0, DAY0 + 60_000, DAY0 + 180_000}
    first = heal.Correction(1, DAY0, DAY0)
    assert heal.due(planned, 1, first.due_ms - 1) is None
    assert heal.due(planned, 1, first.due_ms) == first
    last_ms = DAY0 + 240_000 + heal.SETTLE_MS + offset_ms
    over = DAY0 + 60_000 if offset_ms < 0 else DAY0 + 180_000
    assert heal.due(planned, 1, last_ms) == heal.Correction(1, DAY0, over)


def test_a_long_loss_is_corrected_as_far_back_as_bars_are_kept() -> None:
    found = heal.opens(heal.corrections(DAY0, DAY0 + DAY_MS)[0])
    assert len(found) == heal.CORRECTED_BARS_MAX and max(found) == DAY0 + DAY_MS


@pytest.mark.parametrize(
    ("trades", "weight", "waiting", "worth"),
    [(0, 19, 1, 0), (0, 20, 1, 1), (1000, 399, 20, 0), (1000, 400, 20, 1), (1001, 400, 20, 0)],
)
def test_a_warm_up_fetches_trades_only_out_of_its_share(
    trades: int, weight: int, waiting: int, worth: int
) -> None:
    assert heal.worth_warming(trades, weight, waiting) == bool(worth)


def test_a_restarted_feed_finds_lost_spans_in_the_ring(tmp_path: Path) -> None:
    """However many records ago: a 1d bar is corrected at the end of its day."""
    made = create(tmp_path / "ring", 64, 3, "w")
    ours = make_lane(made, 8)
    set_symbol(ours, 1, "A", LIVE, 0)
    refused = heal.gap(1, 20, 1, 7, 9_000, 1)
    refused["flags"] = REFUSED
    told = [
        heal.gap(1, 5, 0, 0, 0, 1),
        heal.gap(1, 5, 3, 100, 200, 1),
        heal.gap(1, 9, 1, 50, 60, 1),
    ]
    emit(ours, np.concatenate([*told, refused]), 0)
    assert made.lost.tolist() == [[0, 0], [50, 200], [0, 0]]


def test_half_a_record_beyond_the_head_does_not_stop_a_restarted_feed(tmp_path: Path) -> None:
    made = create(tmp_path / "ring", 16, 2, "w")
    made.words[HEAD] = 16
    made.slots["kind"], made.slots["symbol"], made.slots["exch_ns"] = TRADE, 1, 5
    made.slots["symbol"][4] = 7_000_000
    ours = make_lane(made, 8)
    remember(ours)
    assert ours.symbols[:, LAST_NS].tolist() == [0, 5]


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


MINUTE_MS = DAY0 + 60_000
TRADES = (  # price, quantity, whether the buyer rested, ms within the minute
    (100.0, 0.1, False, 5), (102.0, 0.2, True, 9), (99.0, 0.3, False, 20_000),
    (101.0, 0.4, True, 59_999), (103.0, 0.5, False, 60_000), (98.0, 0.7, True, 60_001),
)  # fmt: skip


def _page(begin: int, end: int) -> heal.Records:
    """Trades begin..end as REST gives them."""
    made = np.zeros(end - begin, RECORD)
    for record, (price, qty, maker, ms) in zip(made, TRADES[begin:end], strict=True):
        record["exch_ns"], record["a"], record["b"] = (MINUTE_MS + ms) * 1_000_000, price, qty
        record["flags"] = BUYER_MAKER if maker else 0
    made["id"] = np.arange(begin, end) + 1
    return made


def _candle(begin: int, end: int) -> binance.Klines:
    """Those trades in one candle of the minute."""
    price, qty, maker, _ = (np.array(column) for column in zip(*TRADES[begin:end], strict=True))
    row = [
        MINUTE_MS, price[0], price.max(), price.min(), price[-1],
        qty.sum(), (price * qty).sum(), qty[~maker].sum(), len(qty),
    ]  # fmt: skip
    return np.array([row])


@pytest.mark.parametrize(
    ("page", "candle", "right"),
    [
        ((0, 6), (0, 4), True),
        ((0, 6), (0, 2), True),  # the candle is a little older than the trades
        ((0, 4), (0, 4), True),
        ((1, 6), (0, 4), False),  # the first one is missing
        ((4, 6), (0, 4), False),  # all of the minute are
        ((0, 2), (0, 4), False),  # trades behind the candle: not known either
    ],
)
def test_a_page_of_trades_is_held_against_the_minutes_candle(
    page: tuple[int, int], candle: tuple[int, int], right: bool
) -> None:
    assert heal.reaches_back(_page(*page), _candle(*candle)) is right


@pytest.mark.parametrize("column", range(binance.OPEN, binance.TAKER_VOLUME + 1))
def test_trades_that_meet_all_of_a_candle_but_one_field_are_not_its_first(column: int) -> None:
    candle = _candle(0, 3)
    candle[0, column] += 0.1
    assert heal.reaches_back(_page(0, 6), candle) is False


def test_trades_of_later_minutes_meet_a_candles_sums_by_chance_and_are_not_believed() -> None:
    page = _page(0, 4)
    page["exch_ns"] += 60_000_000_000
    assert heal.reaches_back(page, _candle(0, 4)) is False


def test_a_candle_without_trades_cannot_tell_and_neither_can_one_beyond_a_full_page() -> None:
    flat = np.array([[MINUTE_MS, 100.0, 100.0, 100.0, 100.0, 0.0, 0.0, 0.0, 0.0]])
    assert heal.reaches_back(_page(0, 4), flat) is None
    assert heal.reaches_back(_page(0, 4), flat[:0]) is None
    page = np.repeat(_page(0, 1), binance.AGG_TRADES_MAX)
    busy = _candle(0, 1)
    busy[0, binance.VOLUME] = 5_000.0
    assert heal.reaches_back(page, busy) is None
    busy[0, binance.OPEN] = 100.5
    assert heal.reaches_back(page, busy) is False


def test_only_the_trade_just_before_proves_that_a_page_begins_with_its_minute() -> None:
    first = _page(2, 4)
    before = _page(1, 2)
    before["exch_ns"] = MINUTE_MS * 1_000_000 - 1
    assert heal.is_before(before, first, MINUTE_MS)
    assert not heal.is_before(_page(1, 2), first, MINUTE_MS)  # of the same minute
    assert not heal.is_before(before[:0], first, MINUTE_MS)
    before["id"] -= 1
    assert not heal.is_before(before, first, MINUTE_MS)
