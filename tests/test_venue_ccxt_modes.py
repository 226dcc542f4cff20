"""ccxt where the account or the order is not the usual one: hedge mode, fees, trailing, matched.

Each test leaves the account as it found it: flat, one-way, at tier 0. The market stands still, so
that prices and sizes can be counted; the last test has a market of its own, hours a second.
"""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import Iterator
from decimal import Decimal as D
from pathlib import Path
from typing import Any

import ccxt.async_support as errors
import pytest

from tests.ccxt_desk import NAME, PATIENCE_S, SYMBOL, Desk
from tests.test_venue_ccxt_orders import hold

BTC = "BTC/USDT:USDT"
SETTLED_S = 60.0  # generous: eight market hours are two seconds


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    folder = tmp_path_factory.mktemp("modes")
    made = Desk(folder, "--symbols", "2", "--rate", "300", "--seed", "7", "--speed", "1")
    made.venue.post("/venue/v1/pause")
    yield made
    assert made.close() == 0


def quote_anew(desk: Desk) -> None:
    """The market goes on to its next quote: what takers ate before is there again."""

    def shown() -> int:
        return int(desk.raw("ticker/bookTicker", f"symbol={NAME}")["lastUpdateId"])

    before = shown()
    desk.venue.post("/venue/v1/resume")
    deadline_s = time.monotonic() + SETTLED_S
    while shown() == before:
        assert time.monotonic() < deadline_s
        time.sleep(0.01)
    desk.venue.post("/venue/v1/pause")


# hedge mode


@pytest.fixture
def hedged(desk: Desk) -> Iterator[Desk]:
    hold(desk, 0)
    assert desk.run(desk.client.set_position_mode(True))["msg"] == "success"
    yield desk

    async def out() -> None:
        c = desk.client
        await c.cancel_all_orders(SYMBOL)
        await c.cancel_all_orders(SYMBOL, {"trigger": True})
        for held in await c.fetch_positions([SYMBOL]):
            side = "sell" if held["side"] == "long" else "buy"
            where = {"positionSide": held["side"].upper()}
            await c.create_order(SYMBOL, "market", side, held["contracts"], None, where)
        await c.set_position_mode(False)

    desk.run(out())


async def _both(desk: Desk) -> None:
    """0.5 long by name, 0.3 short by ccxt's own word for it."""
    c = desk.client
    await c.create_order(SYMBOL, "market", "buy", 0.5, None, {"positionSide": "LONG"})
    await c.create_order(SYMBOL, "market", "sell", 0.3, None, {"hedged": True})


async def _held(desk: Desk) -> dict[str, float]:
    rows = await desk.client.fetch_positions([SYMBOL])
    assert all(row["hedged"] for row in rows)
    return {row["side"]: row["contracts"] for row in rows}


def test_both_sides_are_open_and_each_is_reduced_by_itself(hedged: Desk) -> None:
    async def work() -> None:
        c = hedged.client
        assert (await c.fetch_position_mode(SYMBOL))["hedged"] is True
        await _both(hedged)
        assert await _held(hedged) == {"long": 0.5, "short": 0.3}
        reduce = {"hedged": True, "reduceOnly": True}  # ccxt makes a side of it
        less = await c.create_order(SYMBOL, "market", "sell", 0.2, None, reduce)
        assert (less["info"]["positionSide"], less["reduceOnly"]) == ("LONG", True)
        assert await _held(hedged) == {"long": 0.3, "short": 0.3}
        await c.create_order(SYMBOL, "market", "buy", 0.1, None, {"positionSide": "SHORT"})
        assert await _held(hedged) == {"long": 0.3, "short": 0.2}
        rows = {t["info"]["positionSide"] for t in await c.fetch_my_trades(SYMBOL, limit=50)}
        assert {"LONG", "SHORT"} <= rows

    hedged.run(work())


def test_a_closing_stop_and_a_resting_order_belong_to_their_side(hedged: Desk) -> None:
    async def work() -> None:
        c = hedged.client
        await _both(hedged)
        stop = {"closePosition": True, "triggerPrice": hedged.price("0.95")}
        made = await c.create_order(
            SYMBOL, "STOP_MARKET", "sell", 0, None, stop | {"positionSide": "LONG"}
        )
        assert (made["info"]["positionSide"], made["info"]["closePosition"]) == ("LONG", True)
        rests = await c.create_order(
            SYMBOL, "limit", "buy", 0.3, hedged.price("0.97"), {"positionSide": "SHORT"}
        )
        assert (rests["status"], rests["info"]["positionSide"]) == ("open", "SHORT")

    hedged.run(work())


# type, side, amount, share of the bid, parameters -> class, code; 0.5 long and 0.3 short are held
HEDGED: dict[str, tuple[str, str, float, str, dict[str, Any], type[Exception], int]] = {
    "no side": ("market", "buy", 0.1, "", {}, errors.OperationRejected, -4061),
    "side BOTH": ("market", "buy", 0.1, "", {"positionSide": "BOTH"}, errors.OperationRejected,
        -4061),
    "more than the long": ("market", "sell", 0.9, "", {"positionSide": "LONG"},
        errors.InvalidOrder, -2022),
    "more than the short, resting": ("limit", "buy", 0.4, "0.97", {"positionSide": "SHORT"},
        errors.InvalidOrder, -2022),
    "reduceOnly beside a side": ("market", "sell", 0.1, "", {"positionSide": "LONG",
        "reduceOnly": "true"}, errors.BadRequest, -1106),
}  # fmt: skip


@pytest.mark.parametrize("name", HEDGED)
def test_an_order_that_does_not_fit_its_side_is_refused(hedged: Desk, name: str) -> None:
    form, side, amount, share, params, kind, code = HEDGED[name]

    async def work() -> None:
        await _both(hedged)
        price = hedged.price(share) if share else None
        with pytest.raises(kind, match=f'"code":{code},'):
            await hedged.client.create_order(SYMBOL, form, side, amount, price, params)
        assert await _held(hedged) == {"long": 0.5, "short": 0.3}

    hedged.run(work())


def test_the_mode_stays_while_something_is_open(desk: Desk) -> None:
    hold(desk, 0.1)

    async def work() -> None:
        c = desk.client
        with pytest.raises(errors.OperationRejected, match='"code":-4068,'):
            await c.set_position_mode(True)
        await c.create_order(SYMBOL, "market", "sell", 0.1, None, {"reduceOnly": True})
        rests = await c.create_order(SYMBOL, "limit", "buy", 0.1, desk.price("0.97"))
        with pytest.raises(errors.OperationRejected, match='"code":-4067,'):
            await c.set_position_mode(True)
        await c.cancel_order(rests["id"], SYMBOL)
        assert (await c.fetch_position_mode(SYMBOL))["hedged"] is False

    desk.run(work())


# trailing stops, price matches, self-trades


def test_a_trailing_stop_by_ccxt_s_names_is_the_exchange_s(desk: Desk) -> None:
    hold(desk, 0.5)
    far = desk.price("1.02")

    async def work() -> None:
        c = desk.client
        made = await c.create_trailing_percent_order(
            SYMBOL, "market", "sell", 0.3, None, 1.5, far, {"reduceOnly": True}
        )
        info = made["info"]
        assert (info["orderType"], info["reduceOnly"]) == ("TRAILING_STOP_MARKET", True)
        assert (float(info["activatePrice"]), float(info["callbackRate"])) == (far, 1.5)
        now = await c.create_order(SYMBOL, "market", "sell", 0.2, None, {"trailingPercent": 0.5})
        assert (now["info"]["activatePrice"], now["status"]) == ("", "open")
        waits = await c.fetch_open_orders(SYMBOL, params={"trigger": True})
        assert {o["id"] for o in waits} == {made["id"], now["id"]}
        for rate in (0.05, 20.1):
            with pytest.raises(errors.ExchangeError):
                await c.create_order(SYMBOL, "market", "sell", 0.2, None, {"trailingPercent": rate})
        below = {"trailingPercent": 1, "trailingTriggerPrice": desk.price("0.98")}
        with pytest.raises(errors.BadRequest, match='"code":-4135,'):
            await c.create_order(SYMBOL, "market", "sell", 0.2, None, below)

    desk.run(work())
    hold(desk, 0)


@pytest.mark.parametrize("side", ["buy", "sell"])
@pytest.mark.parametrize(("match", "rank"), [("QUEUE", 0), ("QUEUE_5", 4), ("OPPONENT_10", 9)])
def test_a_matched_price_is_that_of_its_level(desk: Desk, side: str, match: str, rank: int) -> None:
    hold(desk, 0)
    book = desk.raw("depth", f"symbol={NAME}&limit=20")
    own = "bids" if (side == "buy") == match.startswith("QUEUE") else "asks"

    async def work() -> None:
        made = await desk.client.create_order(
            SYMBOL, "limit", side, 0.1, None, {"priceMatch": match}
        )
        assert made["price"] == float(book[own][rank][0])
        assert made["info"]["priceMatch"] == match
        assert made["status"] == ("closed" if match.startswith("OPPONENT") else "open")
        raw = {"symbol": NAME, "side": side.upper(), "type": "LIMIT", "timeInForce": "GTC"}
        raw |= {"quantity": "0.1", "priceMatch": match, "price": str(desk.price("1"))}
        with pytest.raises(errors.BadRequest, match='"code":-1106,'):  # one price is enough
            await desk.client.fapiPrivatePostOrder(raw)

    desk.run(work())
    hold(desk, 0)


@pytest.mark.parametrize(
    ("mode", "resting", "taking"),
    [
        ("EXPIRE_MAKER", "EXPIRED_IN_MATCH", "PARTIALLY_FILLED"),
        ("EXPIRE_TAKER", "NEW", "EXPIRED_IN_MATCH"),
        ("EXPIRE_BOTH", "EXPIRED_IN_MATCH", "EXPIRED_IN_MATCH"),
    ],
)
def test_the_taker_s_mode_says_who_expires_when_the_account_meets_itself(
    desk: Desk, mode: str, resting: str, taking: str
) -> None:
    hold(desk, 0)
    quote_anew(desk)

    async def work() -> None:
        c = desk.client
        own = await c.create_order(SYMBOL, "limit", "buy", 0.1, None, {"priceMatch": "QUEUE"})
        quoted = desk.raw("ticker/bookTicker", f"symbol={NAME}")["bidQty"]
        through = float(D(quoted) + D("0.1"))  # all that the market has there, and ours
        taker = await c.create_order(
            SYMBOL, "limit", "sell", through, own["price"], {"selfTradePrevention": mode}
        )
        seen = [(await c.fetch_order(o["id"], SYMBOL))["info"] for o in (own, taker)]
        assert [row["status"] for row in seen] == [resting, taking]
        assert seen[1]["selfTradePreventionMode"] == mode
        taken = D(quoted) if taking == "PARTIALLY_FILLED" else D(0)
        assert [D(row["executedQty"]) for row in seen] == [0, taken]

    desk.run(work())
    hold(desk, 0)


# refusals that explain themselves: what they name is taken


@pytest.mark.parametrize(("side", "share", "code"), [("buy", "1.1", -4016), ("sell", "0.9", -4024)])
def test_the_bound_that_a_refusal_names_is_accepted(
    desk: Desk, side: str, share: str, code: int
) -> None:
    hold(desk, 0)

    async def work() -> None:
        c, ioc = desk.client, {"timeInForce": "IOC"}
        with pytest.raises(errors.BadRequest, match=f'"code":{code},') as refused:
            await c.create_order(SYMBOL, "limit", side, 0.1, desk.price(share))
        told = json.loads(str(refused.value).partition(" ")[2])["msg"]
        [bound] = re.findall(r"[\d.]+\d", told)
        step = D("0.01") if side == "buy" else D("-0.01")
        with pytest.raises(errors.BadRequest, match=f'"code":{code},'):
            await c.create_order(SYMBOL, "limit", side, 0.1, float(D(bound) + step), ioc)
        taken = await c.create_order(SYMBOL, "limit", side, 0.1, float(bound), ioc)
        assert taken["filled"] == 0.1

    desk.run(work())
    hold(desk, 0)


# fees


@pytest.mark.parametrize(
    ("tier", "maker", "taker"), [(0, 0.0002, 0.0005), (4, 0.0001, 0.0003), (9, 0, 0.00017)]
)
def test_the_fee_of_a_tier_is_told_and_taken(
    desk: Desk, tier: int, maker: float, taker: float
) -> None:
    hold(desk, 0)
    desk.venue.post(f"/venue/v1/fees?tier={tier}")

    async def work() -> None:
        c = desk.client
        told = await c.fetch_trading_fee(SYMBOL)
        assert (told["maker"], told["taker"]) == (maker, taker)
        assert (await c.fetch_trading_fees())[SYMBOL]["info"]["feeTier"] == tier
        made = await c.create_order(SYMBOL, "market", "buy", 0.3)
        for trade in await c.fetch_my_trades(SYMBOL, params={"orderId": made["id"]}):
            cost = D(trade["info"]["quoteQty"]) * D(str(taker))
            assert abs(D(trade["info"]["commission"]) - cost) <= D("1e-8")
            assert trade["fee"]["currency"] == "USDT"

    try:
        desk.run(work())
    finally:
        desk.venue.post("/venue/v1/fees?tier=0")
        hold(desk, 0)


def test_bnb_pays_with_a_tenth_off_while_there_is_some(desk: Desk) -> None:
    hold(desk, 0)

    async def work() -> None:
        c = desk.client
        assert (await c.fapiPrivateGetFeeBurn())["feeBurn"] is False
        desk.venue.post("/venue/v1/deposit?asset=BNB&amount=1")
        assert (await c.fetch_balance())["BNB"]["total"] == 1
        await c.fapiPrivatePostFeeBurn({"feeBurn": "true"})
        assert (await c.fapiPrivateGetFeeBurn())["feeBurn"] is True
        made = await c.create_order(SYMBOL, "market", "buy", 0.3)
        trades = await c.fetch_my_trades(SYMBOL, params={"orderId": made["id"]})
        assert {t["fee"]["currency"] for t in trades} == {"BNB"}
        paid = sum(D(t["info"]["commission"]) for t in trades)
        cost = sum(D(t["info"]["quoteQty"]) for t in trades) * D("0.0005") * D("0.9")
        assert abs(paid * 600 - cost) < D("1e-4")  # BNBUSDT is not listed here: 600
        left = D(str((await c.fetch_balance())["BNB"]["total"]))
        assert abs(left - (1 - paid)) < D("1e-8")
        await c.fapiPrivatePostFeeBurn({"feeBurn": "false"})

    desk.run(work())
    hold(desk, 0)


# time


def test_a_settlement_is_in_the_funding_history(tmp_path: Path) -> None:
    """One market with eight hours in two seconds: a long pays, a short is paid."""
    desk = Desk(tmp_path, "--symbols", "2", "--rate", "0.05", "--seed", "7", "--speed", "14400")

    async def settled(symbol: str) -> list[Any]:
        till = time.monotonic() + SETTLED_S
        while time.monotonic() < till:
            rows = await desk.client.fetch_funding_history(symbol)
            if rows:
                return list(rows)
            await asyncio.sleep(0.1)
        raise AssertionError("no settlement")

    async def work() -> None:
        c = desk.client
        await c.create_order(SYMBOL, "market", "buy", 0.5)
        await c.create_order(BTC, "market", "sell", 0.01)
        paid, got = (await settled(SYMBOL))[0], (await settled(BTC))[0]
        assert paid["amount"] < 0 < got["amount"] and paid["code"] == "USDT"
        rates = await c.fetch_funding_rate_history(SYMBOL, paid["timestamp"], 1)
        mark, rate = (D(rates[0]["info"][name]) for name in ("markPrice", "fundingRate"))
        assert rates[0]["timestamp"] == paid["timestamp"]
        assert abs(D(str(paid["amount"])) + mark * rate * D("0.5")) <= D("1e-8")

    try:
        desk.run(asyncio.wait_for(work(), SETTLED_S + PATIENCE_S))
    finally:
        assert desk.close() == 0
