"""Our orders among the market's: behind whom they stand, what is left for them, and each other."""

from __future__ import annotations

from decimal import Decimal as D

import pytest

from tests.test_venue_matching import BTC, NOW, account, market, request
from venue import amend, exchange, ladder
from venue.amend import Change
from venue.matching import MarketQuote, MarketTrade, match, place
from venue.orders import Account, Book, Order, OrderEvent


def rest(made: Account, **changes: str) -> Order:
    order, _ = place(made, request(**({"price": "60000.0"} | changes)), NOW)
    assert isinstance(order, Order) and order.id in made.orders
    return order


def sold(made: Account, price: str, qty: str) -> None:
    """A seller of the market hits bids."""
    match(made, MarketTrade("BTCUSDT", D(price), D(qty), True), NOW)


def quoted(made: Account, bid: str, bid_qty: str, ask: str = "60000.1") -> None:
    match(made, MarketQuote("BTCUSDT", D(bid), D(bid_qty), D(ask), D(1)), NOW)


def test_an_order_joins_behind_what_the_market_shows_at_its_price() -> None:
    made = account()
    assert rest(made).ahead == D("0.5")
    deeper = rest(made, price="59999.0")
    levels = dict(ladder.levels(BTC, made.books["BTCUSDT"], "SELL"))
    assert deeper.ahead == levels[D("59999.0")] > 0
    quoted(made, "60000.0", "0.5", ask="60000.4")
    assert rest(made, price="60000.2").ahead == 0


def test_trades_at_its_price_eat_the_queue_before_they_fill_it() -> None:
    made = account()
    order = rest(made)
    sold(made, "60000.0", "0.3")
    assert (order.executed, order.ahead) == (0, D("0.2"))
    sold(made, "60000.0", "0.204")
    assert (order.executed, order.ahead) == (D("0.004"), 0)
    match(made, MarketTrade("BTCUSDT", D("60000.0"), D(1), False), NOW)  # a buyer, at that price
    assert order.executed == D("0.004")
    sold(made, "60000.0", "5")
    assert order.status == "FILLED"
    assert all(t.maker and t.price == D("60000.0") for t in made.trades)


def test_a_smaller_quote_bounds_what_can_stand_ahead_and_a_larger_one_does_not() -> None:
    made = account()
    order = rest(made)
    quoted(made, "60000.0", "0.9")
    assert order.ahead == D("0.5")
    quoted(made, "60000.0", "0.1")
    assert order.ahead == D("0.1")
    quoted(made, "60000.3", "2", ask="60000.4")
    assert order.ahead == D("0.1")
    quoted(made, "59999.9", "2")
    assert order.ahead == 0


def test_two_orders_at_one_price_fill_in_the_order_of_their_arrival() -> None:
    made = account()
    first = rest(made)
    quoted(made, "60000.0", "0.8")  # somebody joins behind the first
    second = rest(made)
    assert (first.ahead, second.ahead) == (D("0.5"), D("0.8"))
    sold(made, "60000.0", "0.505")
    assert (first.executed, second.executed) == (D("0.005"), 0)
    sold(made, "60000.0", "0.305")  # 0.005 for the first, the 0.3 between them
    assert (first.executed, second.executed) == (D("0.010"), 0)
    sold(made, "60000.0", "0.001")
    assert second.executed == D("0.001")


def test_better_prices_fill_first_and_all_together_no_more_than_was_traded() -> None:
    made = account()
    low = rest(made, price="59990.0")
    high = rest(made, price="59995.0")
    sold(made, "59980.0", "0.015")
    assert (high.executed, low.executed) == (D("0.010"), D("0.005"))


def test_a_buyer_below_our_bid_or_an_ask_at_it_fills_it_whole() -> None:
    made = account()
    order = rest(made)
    match(made, MarketTrade("BTCUSDT", D("59999.9"), D("0.001"), False), NOW)
    assert order.status == "FILLED"
    order = rest(made)
    quoted(made, "59999.0", "1", ask="60000.0")
    assert order.status == "FILLED" and made.trades[-1].price == D("60000.0")


def test_an_amended_order_stands_at_the_end_again() -> None:
    made = account()
    order = rest(made)
    sold(made, "60000.0", "0.4")
    assert order.ahead == D("0.1")
    amend.amend(made, order, Change("BUY", D("0.020"), D("60000.0")), NOW)
    assert order.ahead == D("0.5")


def test_what_a_taker_ate_is_gone_until_the_next_quote() -> None:
    made = account("1000000")
    place(made, market("BUY", "0.300"), NOW)
    place(made, market("BUY", "0.300"), NOW)
    sizes = [(t.price, t.qty) for t in made.trades]
    assert sizes[:2] == [(D("60000.1"), D("0.300")), (D("60000.1"), D("0.200"))]
    assert sizes[2] == (D("60000.2"), D("0.100"))
    quoted(made, "60000.0", "0.5")
    place(made, market("BUY", "0.300"), NOW)
    assert (made.trades[-1].price, made.trades[-1].qty) == (D("60000.1"), D("0.300"))


def test_what_was_eaten_stays_so_while_the_market_quotes_the_same() -> None:
    setup = exchange.Setup("w", 2, 0.0, 5, 1.0, 0.0, ())
    world = exchange.create(setup)
    exchange.open_account(world, exchange.Moment(world.t0_ms, 0))
    before = exchange.refresh(world, "BTCUSDT")
    world.account.books["BTCUSDT"] = Book(*[
        getattr(before, name) for name in ("bid", "bid_qty", "ask", "ask_qty", "last", "mark")
    ], D(0), D("0.25"))  # fmt: skip
    assert exchange.refresh(world, "BTCUSDT").ask_taken == D("0.25")
    world.market.n[0, exchange.market.ASKQ] += 1
    assert exchange.refresh(world, "BTCUSDT").ask_taken == 0


def test_the_eaten_size_counts_for_all_or_nothing_orders() -> None:
    made = account("1000000")
    fok = {"timeInForce": "FOK", "price": "60000.1", "quantity": "0.400"}
    place(made, market("BUY", "0.200"), NOW)
    refused, _ = place(made, request(**fok), NOW)
    assert getattr(refused, "code", 0) == -5021
    quoted(made, "60000.0", "0.5")
    order, _ = place(made, request(**fok), NOW)
    assert isinstance(order, Order) and order.status == "FILLED"


@pytest.mark.parametrize(
    ("mode", "maker", "taker", "reasons"),
    [
        ("EXPIRE_MAKER", "EXPIRED_IN_MATCH", "NEW", {1}),
        ("EXPIRE_TAKER", "NEW", "EXPIRED_IN_MATCH", {1}),
        ("EXPIRE_BOTH", "EXPIRED_IN_MATCH", "EXPIRED_IN_MATCH", {1}),
        ("NONE", "FILLED", "FILLED", set()),
    ],
)
def test_a_taker_that_meets_its_own_account_does_as_its_mode_says(
    mode: str, maker: str, taker: str, reasons: set[int]
) -> None:
    made = account()
    quoted(made, "60000.0", "0.5", ask="60001.0")
    resting = rest(made, side="SELL", price="60000.4")
    order, events = place(made, request(price="60000.5", selfTradePreventionMode=mode), NOW + 1)
    assert isinstance(order, Order)
    assert (resting.status, order.status) == (maker, taker)
    ended = [e for e in events if isinstance(e, OrderEvent) and e.order.expire_reason]
    assert {e.order.expire_reason for e in ended} == reasons
    assert {e.execution for e in ended} <= {"EXPIRED"}
    assert not made.positions.get("BTCUSDT") or made.positions["BTCUSDT"].qty == 0


def test_a_taker_filled_by_the_market_does_not_reach_its_own_order_behind_it() -> None:
    made = account()
    resting = rest(made, side="SELL", price="60000.4")
    order, _ = place(made, request(price="60000.5"), NOW)
    assert isinstance(order, Order) and order.status == "FILLED" and resting.status == "NEW"


def test_a_post_only_order_does_not_take_from_its_own_account_either() -> None:
    made = account()
    quoted(made, "60000.0", "0.5", ask="60001.0")
    rest(made, side="SELL", price="60000.4")
    refused, _ = place(made, request(price="60000.4", timeInForce="GTX"), NOW)
    assert getattr(refused, "code", 0) == -5022
    order = rest(made, price="60000.3", timeInForce="GTX")
    amend.amend(made, order, Change("BUY", D("0.020"), D("60000.4")), NOW)
    assert order.status == "CANCELED"


def test_an_amendment_may_match_its_price_to_the_book() -> None:
    made = account()
    order = rest(made, price="59000.0")
    amend.amend(made, order, Change("BUY", D("0.020"), D(0), price_match="QUEUE_5"), NOW)
    assert (order.price, order.price_match) == (D("59999.6"), "QUEUE_5")


def test_a_quote_through_two_prices_fills_the_better_one_first_and_reduces_no_further() -> None:
    made = account()
    place(made, market("SELL", "0.010"), NOW)
    low = rest(made, price="59990.0", reduceOnly="true")
    high = rest(made, price="59995.0", reduceOnly="true")
    quoted(made, "59970.0", "1", ask="59980.0")
    assert (high.status, low.status) == ("FILLED", "EXPIRED")
    assert made.trades[-1].price == D("59995.0") and made.positions["BTCUSDT"].qty == 0
