"""A paper account without sockets: upstream's payloads, lines that open, miss and catch up."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal as D
from pathlib import Path
from typing import Any

import orjson
import pytest

from venue import exchange, matching, paper, upstream
from venue.checks import parse
from venue.exchange import Setup
from venue.house import Moment, open_account, tell
from venue.matching import FundingDue, MarketMark, MarketQuote, MarketTrade
from venue.orders import Order, Refusal
from venue.paper import HELD_MAX, IDLE_MS, LINES_MAX, SPARE_MS, Line, Paper, PaperSetup
from venue.proxy import symbols_of
from venue.store import Store, StoreError
from venue.symbols import info_row, listing
from venue.upstream import Heard, Opening

NOW_MS = 1_795_000_000_000
T_MS = NOW_MS + 600_000  # of the next funding
BTC = "BTCUSDT"

# as the exchange lists it; keys that are not used are left out
LISTED: dict[str, Any] = {
    "symbol": "BTCUSDT", "contractType": "PERPETUAL", "marginAsset": "USDT", "baseAsset": "BTC",
    "pricePrecision": 2, "quantityPrecision": 3, "marketTakeBound": "0.05",
    "filters": [
        {"filterType": "PRICE_FILTER", "minPrice": "556.80", "maxPrice": "4529764",
         "tickSize": "0.10"},
        {"filterType": "LOT_SIZE", "minQty": "0.001", "maxQty": "1000", "stepSize": "0.001"},
        {"filterType": "MARKET_LOT_SIZE", "minQty": "0.001", "maxQty": "120", "stepSize": "0.001"},
        {"filterType": "MIN_NOTIONAL", "notional": "50"},
        {"filterType": "PERCENT_PRICE", "multiplierUp": "1.1500", "multiplierDown": "0.8500",
         "multiplierDecimal": "4"},
    ],
}  # fmt: skip


def test_a_listing_gives_the_filters_that_orders_are_held_to() -> None:
    s = upstream.specification(LISTED, 3)
    assert (s.index, s.name, s.price_digits, s.qty_digits) == (3, BTC, 2, 3)
    assert (s.tick, s.step, s.min_notional) == (D("0.10"), D("0.001"), D(50))
    assert (s.price_min, s.price_max) == (D("556.80"), D(4529764))
    assert (s.qty_max, s.qty_max_market) == (D(1000), D(120))
    assert (s.percent_up, s.percent_down, s.take_bound) == (D("1.15"), D("0.85"), D("0.05"))
    assert s.brackets[0].leverage_max == 150


def test_our_own_listing_read_back_says_the_same() -> None:
    rows = [info_row(s) for s in listing(30)]
    for ours, read in zip(listing(30), upstream.specifications(rows), strict=True):
        for name in ("index", "name", "tick", "step", "price_min", "price_max", "qty_max",
                     "qty_max_market", "percent_up", "percent_down", "take_bound", "min_notional",
                     "price_digits", "qty_digits", "brackets"):  # fmt: skip
            assert getattr(read, name) == getattr(ours, name), (ours.name, name)


@pytest.mark.parametrize(
    "change",
    [{"contractType": "CURRENT_QUARTER"}, {"marginAsset": "USDC"}, {"filters": []}],
)
def test_what_the_account_cannot_trade_is_not_listed(change: dict[str, Any]) -> None:
    assert upstream.specifications([LISTED | change]) == ()
    assert len(upstream.specifications([LISTED])) == 1


def test_a_symbol_that_is_listed_no_more_is_remembered() -> None:
    old = [LISTED, LISTED | {"symbol": "GONEUSDT"}]
    assert [r["symbol"] for r in upstream.merged(old, [LISTED])] == [BTC, "GONEUSDT"]


AGG = (
    '{"stream":"btcusdt@aggTrade","data":{"e":"aggTrade","E":1795000000123,"a":3501234567,'
    '"s":"BTCUSDT","p":"84551.10","q":"0.030","nq":"0.030","f":8200000001,"l":8200000003,'
    '"T":1795000000005,"m":false,"st":1}}'
)
BOOK = (
    '{"stream":"btcusdt@bookTicker","data":{"e":"bookTicker","u":11671659685961,"s":"BTCUSDT",'
    '"ps":"BTCUSDT","b":"84551.00","B":"2.646","a":"84551.10","A":"5.302","T":1795000000138,'
    '"E":1795000000139,"st":1}}'
)
MARK = (
    '{"stream":"btcusdt@markPrice@1s","data":{"e":"markPriceUpdate","E":1795000000000,'
    '"s":"BTCUSDT","p":"84546.60260870","ap":"84546.60260870","P":"84321.91711993",'
    '"i":"84580.93826087","r":"0.00000523","T":1795017600000,"st":1}}'
)


def test_frames_become_events_with_upstreams_ids_and_times() -> None:
    trade = MarketTrade(BTC, D("84551.10"), D("0.030"), False)
    assert upstream.heard(AGG) == Heard(trade, 3501234567, 1795000000123)
    quote = MarketQuote(BTC, D("84551.00"), D("2.646"), D("84551.10"), D("5.302"))
    assert upstream.heard(BOOK) == Heard(quote, 11671659685961, 1795000000139)
    mark = MarketMark(BTC, D("84546.60260870"))
    expected = Heard(mark, 0, 1795000000000, D("0.00000523"), 1795017600000)
    assert upstream.heard(MARK) == expected


@pytest.mark.parametrize(
    "frame",
    [
        "", "[]", "1", '{"result":null,"id":1}', '{"stream":"x","data":[]}',
        AGG.replace('"p":"84551.10"', '"p":"0"'), AGG.replace('"p":"84551.10"', '"p":"NaN"'),
        AGG.replace('"q":"0.030"', '"q":"-1"'), AGG.replace('"a":3501234567,', ""),
        BOOK.replace('"b":"84551.00"', '"b":""'), MARK.replace("84546.60260870", ""),
        AGG.replace('"e":"aggTrade"', '"e":"kline"'),
    ],
)  # fmt: skip
def test_what_cannot_be_matched_on_is_no_event(frame: str) -> None:
    assert upstream.heard(frame) is None


def test_only_an_answer_without_an_error_acknowledges() -> None:
    assert upstream.ack_of('{"result":null,"id":7}') == 7
    assert upstream.ack_of('{"error":{"code":4,"msg":"Too many subscriptions"},"id":7}') is None
    assert upstream.ack_of(AGG) is None


def test_a_batch_names_all_its_symbols() -> None:
    orders = orjson.dumps([{"symbol": "A"}, {"symbol": "B"}, 3]).decode()
    assert symbols_of({"symbol": "C", "batchOrders": orders}) == {"A", "B", "C"}
    assert symbols_of({"batchOrders": "{"}) == set()


# an account with a line


def opening(price: int = 100_000, trade_id: int = 10, funding_ms: int = T_MS) -> Opening:
    """The market at this price: one tick wide, a mark in the middle."""
    p = D(price)
    rows = {"bids": [[p, "2.000"], [p - 1, "4.000"]], "asks": [[p + 1, "3.000"], [p + 2, "3.000"]]}
    premium = {"markPrice": p, "lastFundingRate": "0.0001", "nextFundingTime": funding_ms}
    depth = {"lastUpdateId": 1000, **rows}
    return upstream.opening(depth, premium, {"p": p, "a": trade_id})


def fresh() -> Paper:
    setup = PaperSetup("w", "http://up", NOW_MS)
    made = paper.create(setup, upstream.specifications([LISTED, LISTED | {"symbol": "ETHUSDT"}]))
    open_account(made, Moment(NOW_MS, 0))
    paper.follow(made, BTC, 0)
    return made


def live() -> Paper:
    made = fresh()
    paper.open_line(made, BTC, opening(), [], NOW_MS)
    return made


def trade(number: int, price: int, ms: int = NOW_MS, qty: str = "1") -> Heard:
    return Heard(MarketTrade(BTC, D(price), D(qty), False), number, ms)


def quote(number: int, bid: int, ms: int = NOW_MS) -> Heard:
    return Heard(MarketQuote(BTC, D(bid), D(1), D(bid + 1), D(1)), number, ms)


def mark(price: int, ms: int, funding_ms: int, rate: str = "0.0001") -> Heard:
    return Heard(MarketMark(BTC, D(price)), 0, ms, D(rate), funding_ms)


def place(made: Paper, **params: str) -> Order:
    request = parse({"symbol": BTC, "type": "MARKET", **params}, "newClientOrderId")
    assert not isinstance(request, Refusal), request
    order, events = matching.place(made.account, request, NOW_MS)
    assert not isinstance(order, Refusal), order
    tell(made, events)
    return order


def stop(made: Paper, trigger: int, side: str = "SELL", **params: str) -> None:
    given = {"symbol": BTC, "side": side, "type": "STOP_MARKET", "triggerPrice": str(trigger)}
    request = parse(given | {"closePosition": "true"} | params, "clientAlgoId")
    assert not isinstance(request, Refusal), request
    algo, events = matching.place_algo(made.account, request, NOW_MS)
    assert not isinstance(algo, Refusal), algo
    tell(made, events)


def test_a_taker_gets_upstreams_best_price_and_levels_of_upstreams_size_behind_it() -> None:
    made = live()
    assert made.account.specs[BTC].qty_mean == D("3.000")  # (2 + 4 + 3 + 3) / 4
    order = place(made, side="BUY", quantity="0.5")
    assert (order.status, order.quote) == ("FILLED", D("0.5") * 100_001)
    assert made.ledger[-2]["price"] == "100001" and made.ledger[-2]["fee"] == "25.00025"


def test_events_are_met_once_and_in_order() -> None:
    made = live()
    paper.hear(made, trade(11, 100_050), NOW_MS)
    paper.hear(made, trade(11, 90_000), NOW_MS)
    paper.hear(made, trade(10, 90_000), NOW_MS)
    paper.hear(made, quote(1000, 90_000), NOW_MS)
    assert made.account.books[BTC].last == 100_050 and made.account.books[BTC].bid == 100_000
    paper.hear(made, quote(1001, 100_040), NOW_MS)
    assert made.account.books[BTC].bid == 100_040 and made.lines[BTC].trade_id == 11


def test_a_stop_fires_on_upstreams_trade_at_upstreams_quote() -> None:
    made = live()
    place(made, side="BUY", quantity="0.5")
    stop(made, 99_000)
    paper.hear(made, quote(1001, 99_000), NOW_MS)
    paper.hear(made, trade(11, 99_001), NOW_MS)
    assert made.account.positions[BTC].qty == D("0.5")
    paper.hear(made, trade(12, 99_000), NOW_MS + 5)
    assert made.account.positions[BTC].qty == 0
    assert made.account.trades[-1].price == 99_000 and made.account.trades[-1].ms == NOW_MS + 5


def test_a_line_that_is_not_live_moves_nothing_and_keeps_what_it_hears() -> None:
    made = live()
    place(made, side="BUY", quantity="0.5")
    stop(made, 99_000)
    paper.lose(made, [BTC])
    paper.hear(made, trade(11, 98_000), NOW_MS)
    paper.step(made, T_MS + 1)
    assert made.account.positions[BTC].qty == D("0.5") and made.account.funding == 0
    assert not paper.are_live(made, [BTC]) and len(made.lines[BTC].held) == 1


def test_a_missed_trade_fires_the_stop_it_crossed_at_its_own_price() -> None:
    made = live()
    place(made, side="BUY", quantity="0.5")
    stop(made, 99_000)
    paper.lose(made, [BTC])
    rows = [
        {"a": 11, "p": "99500", "q": "1", "f": 1, "l": 1, "T": NOW_MS + 1, "m": True},
        {"a": 12, "p": "98900", "q": "1", "f": 2, "l": 2, "T": NOW_MS + 2, "m": True},
        {"a": 13, "p": "97000", "q": "1", "f": 3, "l": 3, "T": NOW_MS + 3, "m": True},
    ]
    paper.hear(made, trade(14, 101_000), NOW_MS + 4)
    back = opening(101_000, 13)
    paper.open_line(made, BTC, back, upstream.missed_trades(BTC, rows), NOW_MS + 9)
    sold = made.account.trades[-1]
    assert (sold.side, sold.price, sold.qty, sold.ms) == ("SELL", D(98_900), D("0.5"), NOW_MS + 9)
    assert made.caught_up == 3 and made.lines[BTC].trade_id == 14
    assert made.account.books[BTC].last == 101_000 and paper.are_live(made, [BTC])


def test_a_jump_of_the_ids_ends_the_line_and_the_trade_waits_for_those_before_it() -> None:
    made = live()
    paper.hear(made, trade(13, 98_000), NOW_MS)
    line = made.lines[BTC]
    assert (line.live, made.gaps, line.trade_id) == (False, 1, 10)
    assert [h.id for h in line.held] == [13]
    between = [trade(11, 99_000, NOW_MS + 1), trade(12, 99_500, NOW_MS + 2)]
    paper.open_line(made, BTC, opening(99_500, 12), between, NOW_MS + 3)
    assert (line.live, line.trade_id, made.account.books[BTC].last) == (True, 13, D(98_000))


def test_an_upstream_that_counts_anew_is_followed_from_its_newest_trade() -> None:
    made = live()
    paper.lose(made, [BTC])
    paper.open_line(made, BTC, opening(50_000, 3), [trade(2, 1)], NOW_MS)
    assert made.lines[BTC].trade_id == 3 and made.account.books[BTC].last == 50_000
    assert made.caught_up == 0


def test_what_a_line_holds_back_is_bounded() -> None:
    made = fresh()
    for number in range(HELD_MAX + 1):
        paper.hear(made, trade(number + 11, 100_000), NOW_MS)
        assert len(made.lines[BTC].held) <= HELD_MAX
    assert made.lines[BTC].held == []


def test_funding_is_paid_once_at_upstreams_time_and_last_rate() -> None:
    made = live()
    place(made, side="BUY", quantity="0.5")
    paper.hear(made, mark(100_000, T_MS - 1000, T_MS, "0.0002"), T_MS - 1000)
    paper.step(made, T_MS - 1)
    assert made.account.funding == 0
    paper.step(made, T_MS)
    assert made.account.funding == D("-10.00000000")  # 0.5 * 100,000 * 0.0002
    paper.step(made, T_MS + 1)
    paper.hear(made, mark(100_000, T_MS, T_MS, "0.0002"), T_MS + 1)  # late: the same settlement
    paper.hear(made, mark(100_000, T_MS + 1000, T_MS + 28_800_000, "0.0003"), T_MS + 1000)
    paper.step(made, T_MS + 2000)
    assert made.account.funding == D("-10.00000000")
    assert made.lines[BTC].funding_ms == T_MS + 28_800_000


def test_the_next_settlements_mark_pays_the_last_one_when_the_clock_lags() -> None:
    made = live()
    place(made, side="SELL", quantity="0.5")
    paper.hear(made, mark(100_000, T_MS + 10, T_MS + 28_800_000), T_MS - 500)
    assert made.account.funding == D("5.00000000")
    paper.step(made, T_MS + 20)
    assert made.account.funding == D("5.00000000")


def test_missed_funding_is_paid_at_its_own_mark_between_the_trades_of_its_time() -> None:
    made = live()
    place(made, side="BUY", quantity="0.5")
    stop(made, 99_000)
    line = made.lines[BTC]
    paper.lose(made, [BTC])
    now_ms = T_MS + 60_000
    assert paper.funding_since(line, T_MS - 1) == 0
    assert paper.funding_since(line, now_ms) == T_MS - 1000
    told = {"symbol": BTC, "fundingTime": T_MS + 3, "fundingRate": "0.0010", "markPrice": "99500"}
    missed = [*upstream.missed_funding([told]), trade(11, 98_000, T_MS + 4)]
    assert missed[1] == Heard(FundingDue(BTC, D("0.0010")), 0, T_MS + 3)
    paper.open_line(made, BTC, opening(98_000, 11, T_MS + 28_800_000), missed, now_ms)
    assert made.account.funding == D("-49.75000000")  # 0.5 * 99,500 * 0.001: before the stop fired
    assert made.account.positions[BTC].qty == 0
    assert (line.settled_ms, line.funding_ms) == (T_MS + 3, T_MS + 28_800_000)
    assert paper.funding_since(line, now_ms) == 0


def test_marks_decide_on_liquidation() -> None:
    made = live()
    place(made, side="BUY", quantity="1.5")  # 150,000 on 10,000
    paper.hear(made, quote(1001, 92_000), NOW_MS)
    paper.hear(made, mark(92_000, NOW_MS, T_MS), NOW_MS)
    assert made.account.positions[BTC].qty == 0 and made.liquidated == 1


def test_lines_are_bounded_and_end_when_nothing_needs_them() -> None:
    rows = [LISTED | {"symbol": f"S{k}USDT"} for k in range(LINES_MAX + 1)]
    made = paper.create(PaperSetup("w", "http://up", NOW_MS), upstream.specifications(rows))
    lines = [paper.follow(made, f"S{k}USDT", 0) for k in range(LINES_MAX + 1)]
    assert all(isinstance(line, Line) for line in lines[:-1]) and lines[-1] is None
    assert paper.follow(made, "UNKNOWN", 0) is None
    paper.release(made, IDLE_MS)
    assert len(made.lines) == LINES_MAX
    paper.release(made, IDLE_MS + 1)
    assert made.lines == {}


def test_an_order_takes_the_place_of_the_line_that_is_idle_for_longest() -> None:
    rows = [LISTED] + [LISTED | {"symbol": f"S{k}USDT"} for k in range(LINES_MAX + 1)]
    made = paper.create(PaperSetup("w", "http://up", NOW_MS), upstream.specifications(rows))
    open_account(made, Moment(NOW_MS, 0))
    paper.follow(made, BTC, 0)
    paper.open_line(made, BTC, opening(), [], NOW_MS)
    place(made, side="BUY", quantity="0.5")
    for k in range(LINES_MAX - 1):
        paper.follow(made, f"S{k}USDT", k + 1)
    late, now = f"S{LINES_MAX}USDT", SPARE_MS + 2
    assert paper.follow(made, late, now) is None
    assert paper.follow(made, late, SPARE_MS + 1, for_order=True) is None  # none idle long enough
    assert paper.follow(made, late, now, for_order=True) is not None
    assert len(made.lines) == LINES_MAX and BTC in made.lines  # it has a position
    assert "S0USDT" not in made.lines and "S1USDT" in made.lines


def test_a_line_with_a_position_never_ends() -> None:
    made = live()
    place(made, side="BUY", quantity="0.5")
    paper.release(made, 10 * IDLE_MS)
    assert list(made.lines) == [BTC]


def test_a_new_listing_can_be_traded_and_keeps_the_old() -> None:
    made = live()
    before = made.specs
    paper.relist(made, [LISTED, LISTED | {"symbol": "NEWUSDT"}])
    assert made.specs[:2] == before and made.specs[2].name == "NEWUSDT"
    assert made.index["NEWUSDT"] == 2 and "NEWUSDT" in made.account.specs


# on disk


def test_the_account_comes_back_as_it_was_with_lines_that_wait(tmp_path: Path) -> None:
    made, store = live(), Store(tmp_path)
    store.create(made)
    place(made, side="BUY", quantity="0.5")
    stop(made, 99_000)
    store.write_ledger(made, 1)
    store.save_account(made)
    setup, saved = Store(tmp_path).read()
    again = paper.create(PaperSetup(**setup), made.specs)
    Store(tmp_path).restore(again, saved)
    paper.restore(again, saved, 5)
    assert (again.account.wallet, again.setup) == (made.account.wallet, made.setup)
    assert again.account.positions == made.account.positions
    assert again.account.algos == made.account.algos
    assert list(again.ledger) == list(made.ledger) and again.ledger_seq == made.ledger_seq
    assert again.account.books == made.account.books
    kept, was = again.lines[BTC], made.lines[BTC]
    expected = replace(was, live=False, update_id=0, used_boot_ms=5)
    assert kept == expected and kept.trade_id == 10
    assert again.account.specs[BTC].qty_mean == made.account.specs[BTC].qty_mean


def test_the_clock_goes_on_by_the_hosts_while_upstream_cannot_be_asked() -> None:
    made = live()
    made.setup = replace(made.setup, speed=10.0)
    made.measured = (NOW_MS, 1_000)
    assert paper.estimate(made, 1_500) == NOW_MS + 5_000


def test_one_folder_is_for_one_kind_of_world(tmp_path: Path) -> None:
    made = live()
    Store(tmp_path / "paper").create(made)
    sim = exchange.create(Setup("s", 1, 10.0, 7, 1.0, 0.0, ()))
    Store(tmp_path / "sim").create(sim)
    with pytest.raises(StoreError, match="holds a paper account, no simulated market"):
        Store(tmp_path / "paper").resume()
    with pytest.raises(StoreError, match="holds a simulated market, no paper account"):
        Store(tmp_path / "sim").require_kind("paper")
    Store(tmp_path / "sim").require_kind("sim")
    Store(tmp_path / "paper").require_kind("paper")
    Store(tmp_path / "none").require_kind("paper")
