"""ccxt trades on the venue: every kind of order, amendments, batches, cancels, and every refusal.

WRITES names the calls that are made here by ccxt's name of them. Refusals are compared by class
and by the exchange's code. The market stands still, so that prices hold while a test counts.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from decimal import Decimal as D
from typing import Any

import ccxt.async_support as errors
import pytest

from tests.ccxt_desk import NAME, SYMBOL, Client, Desk, pointed

WRITES = """
    addMargin reduceMargin cancelAllOrders cancelOrder cancelOrders createLimitBuyOrder
    createLimitOrder createLimitSellOrder createMarketBuyOrder createMarketOrder
    createMarketSellOrder createOrder createOrders createPostOnlyOrder createReduceOnlyOrder
    createStopLimitOrder createStopLossOrder createStopMarketOrder createStopOrder
    createTakeProfitOrder createTrailingPercentOrder createTriggerOrder editOrder editOrders
    setLeverage setMarginMode setPositionMode
""".split()  # noqa: SIM905


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    folder = tmp_path_factory.mktemp("orders")
    made = Desk(folder, "--symbols", "2", "--rate", "300", "--seed", "7", "--speed", "1")
    made.venue.post("/venue/v1/pause")
    yield made
    print(f"\n{made.said['orders']} kinds of orders, {made.said['refused']} refusals")
    assert made.close() == 0


def hold(desk: Desk, qty: float) -> None:
    """The position is made to be `qty`, and nothing rests."""

    async def work() -> None:
        client = desk.client
        await client.cancel_all_orders(SYMBOL)
        await client.cancel_all_orders(SYMBOL, {"trigger": True})
        held = sum(
            D(str(p["contracts"])) * (1 if p["side"] == "long" else -1)
            for p in await client.fetch_positions([SYMBOL])
        )
        missing = D(str(qty)) - held
        if missing:
            side = "buy" if missing > 0 else "sell"
            await client.create_order(SYMBOL, "market", side, float(abs(missing)))

    desk.run(work())


# name -> (type, side, amount, share of the bid or 0, parameters, position before, what must hold)
Kind = tuple[str, str, float, str, dict[str, Any], float, dict[str, Any]]
NORMAL: dict[str, Kind] = {
    "limit GTC rests": ("limit", "buy", 0.1, "0.97", {}, 0,
        {"status": "open", "filled": 0, "timeInForce": "GTC", "postOnly": False}),
    "limit GTC through the book fills": ("limit", "buy", 0.1, "1.02", {}, 0,
        {"status": "closed", "filled": 0.1, "type": "limit"}),
    "limit IOC away from the market expires": ("limit", "buy", 0.1, "0.97",
        {"timeInForce": "IOC"}, 0, {"status": "expired", "filled": 0, "timeInForce": "IOC"}),
    "limit IOC through the book fills": ("limit", "sell", 0.1, "0.98",
        {"timeInForce": "IOC"}, 0, {"status": "closed", "filled": 0.1}),
    "limit FOK that can be filled is": ("limit", "buy", 0.2, "1.02",
        {"timeInForce": "FOK"}, 0, {"status": "closed", "filled": 0.2, "timeInForce": "FOK"}),
    "limit GTX rests": ("limit", "sell", 0.1, "1.03", {"postOnly": True}, 0,
        {"status": "open", "filled": 0, "postOnly": True}),
    "market buys": ("market", "buy", 0.3, "", {}, 0,
        {"status": "closed", "filled": 0.3, "type": "market", "remaining": 0}),
    "market sells": ("market", "sell", 0.3, "", {}, 0, {"status": "closed", "filled": 0.3}),
    "market reduce-only closes": ("market", "sell", 0.3, "", {"reduceOnly": True}, 0.3,
        {"status": "closed", "filled": 0.3, "reduceOnly": True}),
    "limit reduce-only rests": ("limit", "sell", 0.2, "1.03", {"reduceOnly": True}, 0.3,
        {"status": "open", "reduceOnly": True}),
}  # fmt: skip
CONDITIONAL: dict[str, Kind] = {
    "stop market": ("STOP_MARKET", "sell", 0.3, "", {"triggerPrice": "0.95"}, 0.3,
        {"status": "open", "type": "market"}),
    "stop limit": ("STOP", "sell", 0.3, "0.94", {"triggerPrice": "0.95"}, 0.3,
        {"status": "open", "type": "limit"}),
    "take profit market": ("TAKE_PROFIT_MARKET", "sell", 0.3, "", {"triggerPrice": "1.04"}, 0.3,
        {"status": "open", "type": "market"}),
    "take profit limit": ("TAKE_PROFIT", "sell", 0.3, "1.03", {"triggerPrice": "1.04"}, 0.3,
        {"status": "open", "type": "limit"}),
    "stopLossPrice": ("market", "sell", 0.3, "", {"stopLossPrice": "0.95"}, 0.3,
        {"status": "open"}),
    "takeProfitPrice": ("market", "sell", 0.3, "", {"takeProfitPrice": "1.04"}, 0.3,
        {"status": "open"}),
    "stop reduce-only": ("market", "sell", 0.3, "",
        {"stopLossPrice": "0.95", "reduceOnly": True}, 0.3, {"reduceOnly": True}),
    "stop that closes the position": ("STOP_MARKET", "sell", 0, "",
        {"triggerPrice": "0.95", "closePosition": True}, 0.3, {"status": "open", "amount": None}),
    "stop at the mark price": ("market", "sell", 0.3, "",
        {"stopLossPrice": "0.95", "workingType": "MARK_PRICE"}, 0.3, {"status": "open"}),
}  # fmt: skip
# hedge mode, price matches, trailing stops and self-trades are in the modes' file


def placed(desk: Desk, kind: Kind) -> tuple[dict[str, Any], dict[str, Any], float | None]:
    """The order as it was made, as it is asked for afterwards, and its price."""
    form, side, amount, share, params, before, _ = kind
    hold(desk, before)
    price = desk.price(share) if share else None
    sent = {k: desk.price(v) if k.endswith("Price") else v for k, v in params.items()}
    conditional = any(name.endswith("Price") for name in params)

    async def work() -> tuple[dict[str, Any], dict[str, Any]]:
        made = await desk.client.create_order(SYMBOL, form, side, amount, price, sent)
        extra = {"trigger": True} if conditional else {}
        return made, await desk.client.fetch_order(made["id"], SYMBOL, extra)

    desk.said["orders"] += 1
    return *desk.run(work()), price


@pytest.mark.parametrize("name", NORMAL)
def test_an_order_is_what_it_was_asked_to_be(desk: Desk, name: str) -> None:
    made, seen, price = placed(desk, NORMAL[name])
    wanted = NORMAL[name][-1]
    assert {key: seen[key] for key in wanted} == wanted
    assert made["id"] == seen["id"] and seen["symbol"] == SYMBOL
    assert made["clientOrderId"] == seen["clientOrderId"]
    assert seen["price"] == price or NORMAL[name][0] == "market"
    assert seen["amount"] == NORMAL[name][2] and made["average"] is None
    assert (seen["average"] is not None) == (seen["filled"] > 0)
    if seen["filled"] and price:
        better = seen["average"] <= price if seen["side"] == "buy" else seen["average"] >= price
        assert better, "a limit is never filled worse than its price"


@pytest.mark.parametrize("name", CONDITIONAL)
def test_a_conditional_order_waits_in_its_own_book(desk: Desk, name: str) -> None:
    made, seen, price = placed(desk, CONDITIONAL[name])
    form, side, _, _, params, _, wanted = CONDITIONAL[name]
    assert {key: seen[key] for key in wanted} == wanted
    [trigger] = [desk.price(v) for k, v in params.items() if k.endswith("Price")]
    assert (seen["triggerPrice"], seen["side"]) == (trigger, side)
    assert seen["price"] == price or not form.endswith(("STOP", "PROFIT"))

    async def work() -> None:
        [waits] = await desk.client.fetch_open_orders(SYMBOL, params={"trigger": True})
        assert waits["id"] == made["id"] == seen["id"]
        assert await desk.client.fetch_open_orders(SYMBOL) == []
        await desk.client.cancel_order(made["id"], SYMBOL, {"trigger": True})
        assert await desk.client.fetch_open_orders(SYMBOL, params={"trigger": True}) == []

    desk.run(work())


def test_a_dated_order_keeps_its_date(desk: Desk) -> None:
    hold(desk, 0)
    till = desk.venue.get("/fapi/v1/time")["serverTime"] + 900_000

    async def work() -> None:
        params = {"timeInForce": "GTD", "goodTillDate": till}
        made = await desk.client.create_order(
            SYMBOL, "limit", "buy", 0.1, desk.price("0.97"), params
        )
        assert made["info"]["goodTillDate"] == till // 1000 * 1000
        assert (await desk.client.fetch_order(made["id"], SYMBOL))["timeInForce"] == "GTD"

    desk.run(work())


def test_ccxt_s_short_names_make_the_same_orders(desk: Desk) -> None:
    hold(desk, 0.3)
    low, high = desk.price("0.96"), desk.price("1.04")

    async def work() -> None:
        c = desk.client
        rows = [
            await c.create_limit_order(SYMBOL, "buy", 0.1, low),
            await c.create_limit_buy_order(SYMBOL, 0.1, low),
            await c.create_limit_sell_order(SYMBOL, 0.1, high),
            await c.create_post_only_order(SYMBOL, "limit", "buy", 0.1, low),
            await c.create_reduce_only_order(SYMBOL, "limit", "sell", 0.1, high),
        ]
        assert [r["side"] for r in rows] == ["buy", "buy", "sell", "buy", "sell"]
        assert [r["status"] for r in rows] == ["open"] * 5
        assert len(await c.fetch_open_orders(SYMBOL)) == 5
        for made in (
            await c.create_stop_order(SYMBOL, "market", "sell", 0.1, None, low),
            await c.create_stop_market_order(SYMBOL, "sell", 0.1, low),
            await c.create_stop_limit_order(SYMBOL, "sell", 0.1, low, low),
            await c.create_trigger_order(SYMBOL, "market", "sell", 0.1, None, low),
            await c.create_stop_loss_order(SYMBOL, "market", "sell", 0.1, None, low),
            await c.create_take_profit_order(SYMBOL, "market", "sell", 0.1, None, high),
        ):
            assert made["info"]["algoStatus"] == "NEW"
            assert made["triggerPrice"] in (low, high)
        assert len(await c.fetch_open_orders(SYMBOL, params={"trigger": True})) == 6
        await c.cancel_all_orders(SYMBOL)
        assert await c.fetch_open_orders(SYMBOL) == []
        assert len(await c.fetch_open_orders(SYMBOL, params={"trigger": True})) == 6
        await c.cancel_all_orders(SYMBOL, {"trigger": True})
        assert await c.fetch_open_orders(SYMBOL, params={"trigger": True}) == []
        bought = await c.create_market_buy_order(SYMBOL, 0.1)
        sold = await c.create_market_sell_order(SYMBOL, 0.2)
        again = await c.create_market_order(SYMBOL, "sell", 0.2)
        assert [o["filled"] for o in (bought, sold, again)] == [0.1, 0.2, 0.2]
        assert await c.fetch_positions([SYMBOL]) == []

    desk.run(work())


def test_orders_are_amended_and_canceled_in_batches(desk: Desk) -> None:
    hold(desk, 0)
    low, lower = desk.price("0.97"), desk.price("0.96")

    async def work() -> None:
        c = desk.client
        one = {"symbol": SYMBOL, "type": "limit", "side": "buy", "amount": 0.1, "price": low}
        made = await c.create_orders([one, one | {"amount": 0.2}, one | {"amount": 0.3}])
        assert [o["amount"] for o in made] == [0.1, 0.2, 0.3]
        changed = await c.edit_order(made[0]["id"], SYMBOL, "limit", "buy", 0.4, lower)
        assert (changed["amount"], changed["price"]) == (0.4, lower)
        edits = [one | {"id": o["id"], "amount": 0.5, "price": lower} for o in made[1:]]
        both = await c.edit_orders(edits)
        assert [(o["id"], o["amount"]) for o in both] == [(o["id"], 0.5) for o in made[1:]]
        seen = await c.fetch_open_orders(SYMBOL)
        assert sorted(o["amount"] for o in seen) == [0.4, 0.5, 0.5]
        gone = await c.cancel_orders([o["id"] for o in made[:2]], SYMBOL)
        assert [o["status"] for o in gone] == ["canceled", "canceled"]
        named = await c.cancel_order("", SYMBOL, {"clientOrderId": made[2]["clientOrderId"]})
        assert (named["id"], named["status"]) == (made[2]["id"], "canceled")
        assert await c.fetch_open_orders(SYMBOL) == []

    desk.run(work())


def test_leverage_margin_and_mode_are_set(desk: Desk) -> None:
    hold(desk, 0)

    async def work() -> None:
        c = desk.client
        assert (await c.set_leverage(10, SYMBOL))["leverage"] == 10
        assert (await c.fetch_leverages([SYMBOL]))[SYMBOL]["longLeverage"] == 10
        assert (await c.set_margin_mode("isolated", SYMBOL))["msg"] == "success"
        with pytest.raises(errors.MarginModeAlreadySet):
            await c.set_margin_mode("isolated", SYMBOL)
        await c.create_order(SYMBOL, "market", "buy", 0.5)
        added = await c.add_margin(SYMBOL, 20)
        taken = await c.reduce_margin(SYMBOL, 5)
        assert (added["amount"], added["type"], taken["type"]) == (20, "add", "reduce")
        rows = await c.fetch_margin_adjustment_history(SYMBOL)
        assert [r["amount"] for r in rows] == [20, 5]
        [position] = await c.fetch_positions([SYMBOL])
        assert position["marginMode"] == "isolated"
        assert 14 < position["collateral"] - position["notional"] / 10 < 16
        await c.create_order(SYMBOL, "market", "sell", 0.5, None, {"reduceOnly": True})
        await c.set_margin_mode("cross", SYMBOL)
        await c.set_leverage(20, SYMBOL)
        with pytest.raises(errors.OperationRejected, match="-4059"):
            await c.set_position_mode(False, SYMBOL)

    desk.run(work())


def test_the_private_endpoints_that_have_no_name_in_ccxt(desk: Desk) -> None:
    hold(desk, 0)

    async def work() -> None:
        c = desk.client
        key = (await c.fapiPrivatePostListenKey())["listenKey"]
        assert (await c.fapiPrivatePutListenKey())["listenKey"] == key
        told = await c.fapiPrivatePostCountdownCancelAll({"symbol": NAME, "countdownTime": 0})
        assert told == {"symbol": NAME, "countdownTime": "0"}
        order = {"symbol": NAME, "side": "BUY", "type": "LIMIT", "timeInForce": "GTC"}
        order |= {"quantity": "0.1", "price": str(desk.price("0.97"))}
        tried = await c.fapiPrivatePostOrderTest(order)
        assert tried["origQty"] == "0.100" and await c.fetch_open_orders(SYMBOL) == []
        with pytest.raises(errors.InvalidOrder, match="-4164"):
            await c.fapiPrivatePostOrderTest(order | {"quantity": "0.001"})
        await c.fapiPrivateDeleteListenKey()
        with pytest.raises(errors.AuthenticationError, match="-1125"):
            await c.fapiPrivatePutListenKey()

    desk.run(work())


# what is sent beside symbol and side BUY -> class, code; prices are shares of the bid
RAW: dict[str, tuple[dict[str, str], type[Exception], int]] = {
    "half a tick": ({"price": "0.97+0.005"}, errors.BadRequest, -1111),
    "too many decimals of size": ({"quantity": "0.0001"}, errors.BadRequest, -1111),
    "below the least notional": ({"quantity": "0.001"}, errors.InvalidOrder, -4164),
    "above the greatest size": ({"quantity": "100000"}, errors.BadRequest, -4005),
    "no size": ({"quantity": "0"}, errors.BadRequest, -1102),
    "no price": ({"price": ""}, errors.BadRequest, -1102),
    "above the price bound": ({"price": "1.10"}, errors.BadRequest, -4016),
    "below the price bound": ({"side": "SELL", "price": "0.90"}, errors.BadRequest, -4024),
    "unknown symbol": ({"symbol": "NOPEUSDT"}, errors.BadSymbol, -1121),
    "unknown side": ({"side": "HOLD"}, errors.BadRequest, -1117),
    "unknown type": ({"type": "NOPE"}, errors.BadRequest, -1116),
    "unknown time in force": ({"timeInForce": "NOPE"}, errors.BadRequest, -1115),
    "unknown position side": ({"positionSide": "LONG"}, errors.OperationRejected, -4061),
    "a client id of other letters": ({"newClientOrderId": "no spaces"}, errors.BadRequest, -4015),
    "conditional type": ({"type": "STOP_MARKET"}, errors.InvalidOrder, -4120),
    "post-only that would take": ({"timeInForce": "GTX", "price": "1.02"}, errors.OrderNotFillable,
        -5022),
    "fill-or-kill that cannot": ({"timeInForce": "FOK"}, errors.OrderNotFillable, -5021),
    "reduce-only without a position": ({"reduceOnly": "true"}, errors.InvalidOrder, -2022),
    "more than the margin": ({"quantity": "900"}, errors.InsufficientFunds, -2019),
    "a date for an order without one": ({"goodTillDate": "1795000000000"}, errors.BadRequest,
        -1106),
}  # fmt: skip


@pytest.mark.parametrize("name", RAW)
def test_a_wrong_order_is_refused_with_class_and_code(desk: Desk, name: str) -> None:
    hold(desk, 0)
    changed, kind, code = RAW[name]
    order = {
        "symbol": NAME, "side": "BUY", "type": "LIMIT", "timeInForce": "GTC", "quantity": "0.1",
        "price": "0.97",
    } | changed  # fmt: skip
    if order["price"]:
        share, _, more = order["price"].partition("+")
        order["price"] = str(D(str(desk.price(share))) + D(more or 0))
    desk.said["refused"] += 1
    sent = {key: value for key, value in order.items() if value}
    with pytest.raises(kind, match=f'"code":{code},') as refused:
        desk.run(desk.client.fapiPrivatePostOrder(sent))
    assert type(refused.value) is kind
    assert desk.run(desk.client.fetch_open_orders(SYMBOL)) == []


def test_wrong_calls_besides_orders_are_refused_with_class_and_code(desk: Desk) -> None:
    hold(desk, 0.3)
    c = desk.client
    near = {"triggerPrice": desk.price("1.01")}
    stop = {"triggerPrice": desk.price("0.95")}
    calls: list[tuple[Any, type[Exception], int]] = [
        (lambda: c.cancel_order("1", SYMBOL), errors.OrderNotFound, -2011),
        (lambda: c.cancel_order("1", SYMBOL, {"trigger": True}), errors.OrderNotFound, -2011),
        (lambda: c.fetch_order("1", SYMBOL), errors.OrderNotFound, -2013),
        (lambda: c.edit_order("1", SYMBOL, "limit", "buy", 0.1, desk.price("0.97")),
            errors.OrderNotFound, -2013),
        (lambda: c.create_order(SYMBOL, "STOP_MARKET", "sell", 0.3, None, near),
            errors.OrderImmediatelyFillable, -2021),
        (lambda: c.create_order(SYMBOL, "STOP_MARKET", "sell", 0.3, None,
            stop | {"closePosition": True, "quantity": "0.3"}), errors.BadRequest, -4137),
        (lambda: c.fapiPrivatePostLeverage({"symbol": NAME, "leverage": 151}),
            errors.BadRequest, -4028),
        (lambda: c.fapiPublicGetKlines({"symbol": NAME, "interval": "1s"}),
            errors.BadRequest, -1120),
        (lambda: c.fapiPublicGetKlines({"symbol": NAME, "interval": "1m", "limit": 1501}),
            errors.BadRequest, -1130),
        (lambda: c.fapiPublicGetDepth({"symbol": NAME, "limit": 7}), errors.BadRequest, -4021),
        (lambda: c.fapiPrivatePostBatchOrders({"batchOrders": "nothing"}),
            errors.BadRequest, -1102),
    ]  # fmt: skip
    for make, kind, code in calls:
        desk.said["refused"] += 1
        with pytest.raises(kind, match=f'"code":{code},'):
            desk.run(make())


@pytest.mark.parametrize(
    ("config", "kind", "code"),
    [
        ({"secret": "other"}, errors.AuthenticationError, -1022),
        ({"apiKey": "other"}, errors.AuthenticationError, -2015),
        ({"options": {"recvWindow": 60_001}}, errors.ExchangeError, -1131),
    ],
)
def test_a_stranger_is_refused_with_class_and_code(
    desk: Desk, config: dict[str, Any], kind: type[Exception], code: int
) -> None:
    async def work() -> None:
        stranger = pointed(Client({"apiKey": "test", "secret": "test"} | config), desk.venue)
        try:
            with pytest.raises(kind, match=f'"code":{code},'):
                await stranger.fetch_balance()
        finally:
            await stranger.close()

    desk.run(work())


@pytest.mark.parametrize("off_ms", [-30_000, 30_000])
def test_a_clock_that_is_nobody_s_is_refused(desk: Desk, off_ms: int) -> None:
    """The host's clock is let in, as is the market's; one that is wrong by half a minute is not."""

    async def work() -> None:
        client = pointed(Client({"apiKey": "test", "secret": "test"}), desk.venue)
        try:
            assert (await client.fetch_balance())["USDT"]["total"] > 0
            client.nonce = lambda: int(time.time() * 1000) + off_ms
            with pytest.raises(errors.InvalidNonce, match='"code":-1021,'):
                await client.fetch_balance()
        finally:
            await client.close()

    desk.run(work())
