"""The account core at its limits: filters, fills, triggers, and money to the last digit."""

from __future__ import annotations

import random
from dataclasses import replace
from decimal import Decimal as D

import pytest

from venue import ladder, matching, orders
from venue.checks import Request, parse
from venue.matching import MarketMark, MarketQuote, MarketTrade, match, place, place_algo
from venue.orders import Account, AlgoEvent, Book, Order, OrderEvent, Refusal
from venue.symbols import MAX_ORDERS, listing

BTC, ETH = listing(2)
SPECS = {s.name: s for s in (BTC, ETH)}
NOW = 1_773_187_060_000


def account(wallet: str = "10000") -> Account:
    made = Account(dict(SPECS))
    matching.deposit(made, D(wallet), NOW)
    made.books["BTCUSDT"] = Book(D("60000.0"), D("0.5"), D("60000.1"), D("0.5"), D(60000), D(60000))
    made.books["ETHUSDT"] = Book(D("2600.00"), D(3), D("2600.01"), D(3), D(2600), D(2600))
    return made


def request(**changes: str) -> Request:
    params = {"symbol": "BTCUSDT", "side": "BUY", "type": "LIMIT", "timeInForce": "GTC"}
    params |= {"quantity": "0.010", "price": "60000.0"} | changes
    parsed = parse({k: v for k, v in params.items() if v}, "newClientOrderId")
    assert isinstance(parsed, Request), parsed
    return parsed


def market(side: str, qty: str, **changes: str) -> Request:
    return request(side=side, quantity=qty, type="MARKET", timeInForce="", price="", **changes)


def stop(side: str, trigger: str, **changes: str) -> Request:
    base = {"type": "STOP_MARKET", "timeInForce": "", "price": "", "quantity": ""}
    base |= {"side": side, "triggerPrice": trigger, "closePosition": "true"}
    return request(**(base | changes))


def code(made: Account, wanted: Request) -> int:
    answer, _ = place(made, wanted, NOW)
    return answer.code if isinstance(answer, Refusal) else 0


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"price": "60000.05"}, -4014),
        ({"price": "60000.1"}, 0),
        ({"price": "60000.123"}, -1111),
        ({"quantity": "0.0005"}, -1111),
        ({"quantity": "0.001", "price": "49999.9"}, -4164),
        ({"quantity": "0.001", "price": "57000.0"}, 0),
        ({"quantity": "0.000"}, -1102),
        ({"quantity": "1200.001"}, -4005),
        ({"price": "63000.0", "timeInForce": "IOC"}, 0),
        ({"price": "63000.1"}, -4016),
        ({"side": "SELL", "price": "57000.0", "timeInForce": "IOC"}, 0),
        ({"side": "SELL", "price": "56999.9"}, -4024),
        ({"price": "0.0"}, -1102),
        ({"price": "9999999999.0"}, -4002),
        ({"type": "STOP_MARKET", "triggerPrice": "1"}, -4120),
        ({"timeInForce": ""}, -1102),
        ({"reduceOnly": "true"}, -2022),
        ({"price": "60000.1", "timeInForce": "GTX"}, -5022),
        ({"price": "60000.0", "timeInForce": "GTX"}, 0),
        ({"quantity": "0.501", "price": "60000.1", "timeInForce": "FOK"}, -5021),
        ({"quantity": "0.500", "price": "60000.1", "timeInForce": "FOK"}, 0),
    ],
)
def test_an_order_is_refused_with_the_exchange_s_code(
    changes: dict[str, str], expected: int
) -> None:
    assert code(account("100000"), request(**changes)) == expected


@pytest.mark.parametrize(("notional_below", "expected"), [(True, -4164), (False, 0)])
def test_min_notional_is_the_first_amount_allowed(notional_below: bool, expected: int) -> None:
    price = "49.99" if notional_below else "50.00"
    made = account()
    spec = replace(ETH, min_notional=D(50))
    made.specs["ETHUSDT"] = spec
    made.books["ETHUSDT"] = Book(D("50.00"), D(3), D("50.01"), D(3), D(50), D(50))
    assert code(made, request(symbol="ETHUSDT", price=price, quantity="1")) == expected


def test_margin_is_insufficient_exactly_above_the_free_balance() -> None:
    made = account("3030.0")  # 1 BTC at 60,000 and 20x: 3,000 margin + 30 fee
    assert code(made, request(quantity="1.000")) == 0
    made = account("3029.9")
    assert code(made, request(quantity="1.000")) == -2019


def test_a_client_id_is_refused_while_its_order_is_open_and_free_afterwards() -> None:
    made = account()
    order, _ = place(made, request(newClientOrderId="a1", price="59000.0"), NOW)
    assert isinstance(order, Order)
    assert code(made, request(newClientOrderId="a1", price="59000.0")) == -4116
    matching.cancel(made, order, NOW)
    assert code(made, request(newClientOrderId="a1", price="59000.0")) == 0


@pytest.mark.parametrize("client_id", ["x" * 37, "with space", "ü"])
def test_a_malformed_client_id_is_refused(client_id: str) -> None:
    answer = parse(
        {"symbol": "BTCUSDT", "side": "BUY", "type": "MARKET", "newClientOrderId": client_id},
        "newClientOrderId",
    )
    assert isinstance(answer, Refusal) and answer.code == -4015


def test_two_hundred_orders_of_a_symbol_rest_and_the_next_is_refused() -> None:
    made = account("1000000")
    for _ in range(MAX_ORDERS):
        assert code(made, request(quantity="0.001", price="59000.0")) == 0
    assert code(made, request(quantity="0.001", price="59000.0")) == -2025


def test_a_taker_walks_the_book_and_an_ioc_remainder_expires() -> None:
    made = account("1000000")
    order, events = place(made, request(quantity="5.000", price="60000.2", timeInForce="IOC"), NOW)
    assert isinstance(order, Order)
    depth = list(
        ladder.levels(
            BTC, Book(D("60000.0"), D("0.5"), D("60000.1"), D("0.5"), D(1), D(1)), "BUY", 2
        )
    )
    assert [price for price, _ in depth] == [D("60000.1"), D("60000.2")]
    assert order.executed == depth[0][1] + depth[1][1] < D(5)
    assert order.status == "EXPIRED" and order.expire_reason == 2
    prices = [e.trade.price for e in events if isinstance(e, OrderEvent) and e.trade]
    assert prices == [D("60000.1"), D("60000.2")]
    assert not made.orders


def test_a_fill_pays_the_taker_fee_and_rests_pay_the_maker_fee() -> None:
    made = account()
    place(made, market("BUY", "0.100"), NOW)
    assert made.wallet == D(10000) - D("6000.01") * D("0.0005")
    rest, _ = place(made, request(side="SELL", quantity="0.100", price="60100.0"), NOW)
    assert isinstance(rest, Order) and rest.status == "NEW"
    before = made.wallet
    match(made, MarketTrade("BTCUSDT", D("60100.1"), D("0.100"), False), NOW)
    assert rest.status == "FILLED"
    assert made.wallet - before == D("9.99") - D("6010") * D("0.0002")


@pytest.mark.parametrize(("ask", "filled"), [("59000.1", "0"), ("59000.0", "0.010")])
def test_a_resting_buy_fills_when_the_ask_comes_to_it(ask: str, filled: str) -> None:
    made = account()
    order, _ = place(made, request(price="59000.0"), NOW)
    assert isinstance(order, Order)
    match(made, MarketQuote("BTCUSDT", D("58999.0"), D(1), D(ask), D(1)), NOW)
    assert order.executed == D(filled)


@pytest.mark.parametrize(
    ("kind", "side", "trigger", "expected"),
    [
        ("STOP_MARKET", "SELL", "60000.0", -2021),
        ("STOP_MARKET", "SELL", "59999.9", 0),
        ("STOP_MARKET", "BUY", "60000.0", -2021),
        ("STOP_MARKET", "BUY", "60000.1", 0),
        ("TAKE_PROFIT_MARKET", "SELL", "60000.0", -2021),
        ("TAKE_PROFIT_MARKET", "SELL", "60000.1", 0),
        ("TAKE_PROFIT_MARKET", "BUY", "59999.9", 0),
    ],
)
def test_a_trigger_that_is_met_already_is_refused(
    kind: str, side: str, trigger: str, expected: int
) -> None:
    answer, _ = place_algo(account(), stop(side, trigger, type=kind), NOW)
    assert (answer.code if isinstance(answer, Refusal) else 0) == expected


def test_stop_and_target_close_the_position_together_but_no_second_of_a_kind() -> None:
    made = account()
    place(made, market("BUY", "0.010"), NOW)
    assert not isinstance(place_algo(made, stop("SELL", "59000.0"), NOW)[0], Refusal)
    target = stop("SELL", "61000.0", type="TAKE_PROFIT_MARKET")
    assert not isinstance(place_algo(made, target, NOW)[0], Refusal)
    second, _ = place_algo(made, stop("SELL", "58000.0"), NOW)
    assert isinstance(second, Refusal) and second.code == -4130
    assert not isinstance(place_algo(made, stop("BUY", "62000.0"), NOW)[0], Refusal)


@pytest.mark.parametrize(("last", "fired"), [("59000.1", False), ("59000.0", True)])
def test_a_stop_fires_at_its_price_and_everything_that_closes_expires(
    last: str, fired: bool
) -> None:
    made = account()
    place(made, market("BUY", "0.010"), NOW)
    algo, _ = place_algo(made, stop("SELL", "59000.0"), NOW)
    target, _ = place_algo(made, stop("SELL", "61000.0", type="TAKE_PROFIT_MARKET"), NOW)
    assert not isinstance(algo, Refusal) and not isinstance(target, Refusal)
    match(made, MarketQuote("BTCUSDT", D("58999.9"), D(1), D("59000.1"), D(1)), NOW)
    events = match(made, MarketTrade("BTCUSDT", D(last), D("0.01"), True), NOW)
    assert (orders.amount(made, "BTCUSDT") == 0) == fired
    if not fired:
        assert algo.status == "NEW" and not events
        return
    told = [e.algo.status for e in events if isinstance(e, AlgoEvent) and e.algo.id == algo.id]
    assert told == ["TRIGGERING", "TRIGGERED", "FINISHED"]
    assert target.status == "EXPIRED" and not made.algos
    child = made.closed[algo.order_id]
    assert child.status == "FILLED" and child.id != algo.id and child.close_position


def test_a_stop_on_the_mark_does_not_hear_the_last_price() -> None:
    made = account()
    place(made, market("BUY", "0.010"), NOW)
    algo, _ = place_algo(made, stop("SELL", "59000.0", workingType="MARK_PRICE"), NOW)
    match(made, MarketTrade("BTCUSDT", D("58000.0"), D("0.01"), True), NOW)
    assert not isinstance(algo, Refusal) and algo.status == "NEW"
    match(made, MarketMark("BTCUSDT", D("59000.0")), NOW)
    assert algo.status == "FINISHED"


def test_a_reduce_only_order_never_turns_the_position() -> None:
    made = account()
    place(made, market("BUY", "0.010"), NOW)
    order, _ = place(made, market("SELL", "0.050", reduceOnly="true"), NOW)
    assert isinstance(order, Order)
    assert orders.amount(made, "BTCUSDT") == 0
    assert (order.executed, order.status) == (D("0.010"), "EXPIRED")


def test_a_resting_reduce_only_order_expires_with_its_position() -> None:
    made = account()
    place(made, market("BUY", "0.010"), NOW)
    resting = request(side="SELL", price="61000.0", reduceOnly="true")
    order, _ = place(made, resting, NOW)
    place(made, market("SELL", "0.010"), NOW)
    assert isinstance(order, Order) and order.status == "EXPIRED" and not made.orders


def test_margin_type_changes_only_when_flat() -> None:
    made = account()
    first = matching.set_margin_type(made, "BTCUSDT", True, NOW)
    assert not isinstance(first, Refusal)
    again = matching.set_margin_type(made, "BTCUSDT", True, NOW)
    assert isinstance(again, Refusal) and again.code == -4046
    place(made, market("BUY", "0.010"), NOW)
    held = matching.set_margin_type(made, "BTCUSDT", False, NOW)
    assert isinstance(held, Refusal) and held.code == -4048


def test_an_isolated_position_is_closed_when_its_margin_is_gone() -> None:
    made = account()
    matching.set_margin_type(made, "BTCUSDT", True, NOW)
    place(made, market("BUY", "0.100"), NOW)  # 300 USDT aside at 20x, maintenance 0.4 %
    match(made, MarketMark("BTCUSDT", D("57300.0")), NOW)
    assert orders.amount(made, "BTCUSDT") == D("0.100")
    match(made, MarketQuote("BTCUSDT", D("57200.0"), D(1), D("57200.1"), D(1)), NOW)
    events = match(made, MarketMark("BTCUSDT", D("57200.0")), NOW)
    assert orders.amount(made, "BTCUSDT") == 0
    told = [e for e in events if isinstance(e, OrderEvent) and e.execution == "CALCULATED"]
    assert told and told[0].order.client_id.startswith("autoclose-")


def test_longs_pay_positive_funding_by_size_mark_and_rate() -> None:
    made = account()
    place(made, market("BUY", "0.100"), NOW)
    before = made.wallet
    match(made, matching.FundingDue("BTCUSDT", D("0.0001")), NOW)
    assert made.wallet - before == D("-0.6")


def wander(seed: int, steps: int) -> Account:
    """Random orders against a random market; checks the books after every step."""
    rng = random.Random(seed)
    made = account("5000")
    cash = D(0)
    for name in SPECS:
        if rng.random() < 0.5:
            matching.set_margin_type(made, name, True, NOW)
    for step in range(steps):
        name = rng.choice(list(SPECS))
        spec, book = SPECS[name], made.books[name]
        events: list[orders.Event] = []
        roll = rng.random()
        side = rng.choice(("BUY", "SELL"))
        qty = str(spec.step * rng.randint(1, 400))
        near = book.bid + spec.tick * rng.randint(-60, 60)
        if roll < 0.25:
            shift = spec.tick * rng.randint(-80, 80)
            bid = book.bid + shift
            quote = MarketQuote(name, bid, D("0.3"), bid + spec.tick, D("0.3"))
            events += match(made, quote, step)
            events += match(made, MarketTrade(name, bid, D("0.05"), True), step)
            events += match(made, MarketMark(name, bid), step)
        elif roll < 0.50:
            events += place(made, replace(market(side, qty), symbol=name), step)[1]
        elif roll < 0.70:
            tif = rng.choice(("GTC", "IOC", "FOK", "GTX"))
            wanted = request(
                symbol=name,
                side=side,
                quantity=qty,
                price=str(near),
                timeInForce=tif,
                reduceOnly=rng.choice(("true", "false")),
            )
            events += place(made, wanted, step)[1]
        elif roll < 0.90:
            kind = rng.choice(("STOP_MARKET", "TAKE_PROFIT_MARKET"))
            events += place_algo(made, stop(side, str(near), symbol=name, type=kind), step)[1]
        elif roll < 0.95 and made.orders:
            events += matching.cancel(made, rng.choice(list(made.orders.values())), step)
        else:
            events += match(made, matching.FundingDue(name, D("0.0001")), step)
        cash += sum(
            (
                (e.trade.price * e.trade.qty * (-1 if e.trade.side == "BUY" else 1))
                for e in events
                if isinstance(e, OrderEvent) and e.trade
            ),
            D(0),
        )
        check_books(made, cash)
    return made


def check_books(made: Account, cash: D) -> None:
    assert made.wallet == made.paid_in + made.realised - made.fees + made.funding
    # what was paid for is either still held at cost or realised: exact, no digit lost
    assert cash == made.realised - sum((p.cost for p in made.positions.values()), D(0))
    for p in made.positions.values():
        assert p.qty or (p.cost, p.isolated, p.fees) == (0, 0, 0)
    for order in made.orders.values():
        assert 0 <= order.executed < order.qty and order.tif not in ("IOC", "FOK")


@pytest.mark.parametrize("seed", range(8))
def test_wallet_is_transfers_plus_realised_minus_fees_to_the_last_digit(seed: int) -> None:
    print(f"seed={seed}")
    made = wander(seed, 500)
    assert made.trades and made.closed_algos
