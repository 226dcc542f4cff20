"""Trailing stops follow the best price, and prices matched to the book are those of its levels."""

from __future__ import annotations

from decimal import Decimal as D
from typing import Any

import pytest

from tests.test_venue_matching import BTC, NOW, account, market, request
from venue import ladder, userwire
from venue.matching import MarketMark, MarketTrade, match, place, place_algo
from venue.orders import Account, Algo, AlgoEvent, Book, Event, Order, Refusal


def trail(made: Account, side: str = "SELL", **changes: str) -> Algo | Refusal:
    base = {"type": "TRAILING_STOP_MARKET", "timeInForce": "", "price": "", "side": side}
    base |= {"callbackRate": "1", "quantity": "0.010", "reduceOnly": "true"}
    return place_algo(made, request(**(base | changes)), NOW)[0]


def trades(made: Account, *prices: str) -> list[Event]:
    out: list[Event] = []
    for price in prices:
        book = made.books["BTCUSDT"]
        bid, ask = D(price), D(price) + D("0.1")
        made.books["BTCUSDT"] = Book(bid, D("0.5"), ask, D("0.5"), book.last, book.mark)
        out += match(made, MarketTrade("BTCUSDT", D(price), D("0.01"), True), NOW)
    return out


def told(events: list[Event]) -> list[dict[str, Any]]:
    return [userwire.algo_update(e)["o"] for e in events if isinstance(e, AlgoEvent)]


@pytest.mark.parametrize(
    ("side", "prices", "fires"),
    [
        ("SELL", ("60500.0", "61000.0", "60400.0"), False),  # 61000 - 1 % = 60390
        ("SELL", ("60500.0", "61000.0", "60390.0"), True),
        ("SELL", ("59400.1",), False),  # from 60000, the price when it was placed
        ("SELL", ("59400.0",), True),
        ("BUY", ("59500.0", "59000.0", "59589.9"), False),  # 59000 + 1 % = 59590
        ("BUY", ("59500.0", "59000.0", "59590.0"), True),
    ],
)
def test_it_fires_when_the_price_comes_back_from_its_best_by_the_rate(
    side: str, prices: tuple[str, ...], fires: bool
) -> None:
    made = account()
    place(made, market("BUY" if side == "SELL" else "SELL", "0.010"), NOW)
    algo = trail(made, side)
    assert isinstance(algo, Algo) and algo.active
    trades(made, *prices)
    assert algo.status == ("FINISHED" if fires else "NEW")
    assert (made.positions["BTCUSDT"].qty == 0) == fires


def test_it_waits_for_its_activation_price_and_says_when_it_begins() -> None:
    made = account()
    place(made, market("BUY", "0.010"), NOW)
    algo = trail(made, activatePrice="61000.0")
    assert isinstance(algo, Algo) and not algo.active
    assert trades(made, "60900.0", "59000.0") == [] and algo.status == "NEW"
    assert [(o["X"], o["ia"], o["AP"], o["cr"]) for o in told(trades(made, "61000.0"))] == [
        ("NEW", True, "61000", "1")
    ]
    row = userwire.algo_row(algo, BTC, None, True)
    assert (row["activatePrice"], row["callbackRate"]) == ("61000.00", "1")
    states = [o["X"] for o in told(trades(made, "62000.0", "61380.0"))]  # 62000 - 1 %
    assert states == ["TRIGGERING", "TRIGGERED", "FINISHED"]


def test_a_mark_price_one_follows_the_mark_alone() -> None:
    made = account()
    place(made, market("BUY", "0.010"), NOW)
    algo = trail(made, workingType="MARK_PRICE")
    assert isinstance(algo, Algo)
    trades(made, "50000.0")
    assert algo.status == "NEW"
    match(made, MarketMark("BTCUSDT", D(59400)), NOW)
    assert algo.status == "FINISHED"


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"callbackRate": ""}, -1102),
        ({"callbackRate": "0.05"}, -1102),
        ({"callbackRate": "20.1"}, -1102),
        ({"callbackRate": "0.15"}, -1102),
        ({"callbackRate": "0.1"}, 0),
        ({"callbackRate": "20"}, 0),
        ({"triggerPrice": "59000.0"}, -1106),
        ({"quantity": "", "closePosition": "true", "reduceOnly": ""}, -4136),
        ({"activatePrice": "60000.0"}, -4135),
        ({"activatePrice": "60000.1"}, 0),
        ({"activatePrice": "60000.15"}, -4014),
        ({"side": "BUY", "activatePrice": "60000.0"}, -4135),
        ({"side": "BUY", "activatePrice": "59999.9"}, 0),
    ],
)
def test_what_makes_no_sense_is_refused(changes: dict[str, str], code: int) -> None:
    answer = trail(account(), **changes)
    assert (answer.code if isinstance(answer, Refusal) else 0) == code


@pytest.mark.parametrize(
    ("match_", "side", "price"),
    [
        ("OPPONENT", "BUY", "60000.1"),
        ("OPPONENT_5", "BUY", "60000.5"),
        ("OPPONENT_20", "SELL", "59998.1"),
        ("QUEUE", "BUY", "60000.0"),
        ("QUEUE_5", "SELL", "60000.5"),
        ("QUEUE_10", "BUY", "59999.1"),
    ],
)
def test_a_matched_price_is_a_level_of_the_book(match_: str, side: str, price: str) -> None:
    made = account()
    order, _ = place(made, request(side=side, price="", priceMatch=match_), NOW)
    assert isinstance(order, Order) and order.price == D(price)
    row = userwire.order_row(order, BTC, False)
    assert row["priceMatch"] == match_ == userwire.order_row(order, BTC, True)["priceMatch"]
    facing = side if match_.startswith("OPPONENT") else ("SELL" if side == "BUY" else "BUY")
    level = [p for p, _ in ladder.levels(BTC, made.books["BTCUSDT"], facing, 20)]
    assert order.price in level and (order.status == "FILLED") == match_.startswith("OPPONENT")


def test_a_conditional_order_takes_its_matched_price_when_it_fires() -> None:
    made = account()
    base = {"type": "STOP", "side": "BUY", "price": "", "triggerPrice": "60500.0"}
    algo, _ = place_algo(made, request(**base, priceMatch="QUEUE_5"), NOW)
    assert isinstance(algo, Algo) and algo.price == 0
    trades(made, "60500.0")
    order = next(iter(made.orders.values()))
    assert (order.price, order.price_match) == (D("60499.6"), "QUEUE_5")


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"priceMatch": "OPPONENT"}, -1106),  # beside a price
        ({"priceMatch": "OPPONENT_7", "price": ""}, -1102),
        ({"priceMatch": "QUEUE", "price": "", "type": "MARKET", "timeInForce": ""}, -1106),
        ({"selfTradePreventionMode": "PERHAPS"}, -1102),
    ],
)
def test_a_match_that_cannot_be_is_refused(changes: dict[str, str], code: int) -> None:
    with pytest.raises(AssertionError, match=f"code={code}"):
        request(**changes)
