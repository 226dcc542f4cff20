"""Amendments, batches, countdowns and isolated margin over real sockets, with ccxt's own calls."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator
from decimal import Decimal as D
from pathlib import Path
from typing import Any
from urllib.parse import quote

import ccxt.async_support as ccxt
import pytest
from websockets.asyncio.client import connect

from tests.test_venue_server import Running, trade_with, user_key

V1 = "/fapi/v1/"


@pytest.fixture(scope="module")
def venue(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("amend")
    made = Running(folder, "--symbols", "5", "--rate", "200", "--seed", "9", "--speed", "20")
    yield made
    assert made.stop() == 0


def far(venue: Running, symbol: str, share: str, digits: str) -> str:
    """A price well away from the market."""
    last = D(venue.get(f"{V1}ticker/price?symbol={symbol}")["price"])
    return str((last * D(share)).quantize(D(digits)))


def batch_of(*orders: dict[str, Any]) -> str:
    return "batchOrders=" + quote(json.dumps(orders))


def limit(price: str, **more: Any) -> dict[str, Any]:
    base = {"symbol": "BTCUSDT", "side": "BUY", "type": "LIMIT", "timeInForce": "GTC"}
    return base | {"quantity": "0.010", "price": price} | more


def test_ccxt_edits_an_order_and_its_history_is_kept(venue: Running) -> None:
    async def body(client: ccxt.binanceusdm) -> None:
        await client.load_markets()
        symbol = "BTC/USDT:USDT"
        price, other = float(far(venue, "BTCUSDT", "0.97", "0.1")), None
        made = await client.create_order(symbol, "limit", "buy", 0.02, price)
        other = price + 1.0
        done = await client.edit_order(made["id"], symbol, "limit", "buy", 0.03, other)
        assert (done["id"], done["amount"], done["status"]) == (made["id"], 0.03, "open")
        assert done["price"] == pytest.approx(other, abs=0.01)
        with pytest.raises(ccxt.ExchangeError, match="-5027"):
            await client.edit_order(made["id"], symbol, "limit", "buy", 0.03, other)
        seen = await client.fetch_order(made["id"], symbol)
        assert (seen["amount"], seen["filled"], seen["price"]) == (0.03, 0, done["price"])
        await client.cancel_order(made["id"], symbol)
        with pytest.raises(ccxt.OrderNotFound):
            await client.edit_order(made["id"], symbol, "limit", "buy", 0.04, other)
        query = f"symbol=BTCUSDT&orderId={made['id']}"
        [row] = venue.signed("GET", V1 + "orderAmendment", query)[1]
        assert D(row["amendment"]["price"]["before"]) == D(str(made["price"]))
        assert D(row["amendment"]["price"]["after"]) == D(str(done["price"]))
        assert row["amendment"]["origQty"] == {"before": "0.02", "after": "0.03"}
        assert (row["amendment"]["count"], row["orderId"]) == (1, int(made["id"]))

    trade_with(venue, body)


def test_ccxt_places_and_cancels_orders_in_batches(venue: Running) -> None:
    async def body(client: ccxt.binanceusdm) -> None:
        await client.load_markets()
        symbol, price = "BTC/USDT:USDT", float(far(venue, "BTCUSDT", "0.97", "0.1"))
        one = {"symbol": symbol, "type": "limit", "side": "buy", "amount": 0.01, "price": price}
        made = await client.create_orders([one, one | {"amount": 0.02}])
        assert [o["amount"] for o in made] == [0.01, 0.02] and made[0]["id"] != made[1]["id"]
        assert len(await client.fetch_open_orders(symbol)) == 2
        done = await client.cancel_orders([o["id"] for o in made], symbol)
        assert [(o["id"], o["status"]) for o in done] == [(o["id"], "canceled") for o in made]
        assert await client.fetch_open_orders(symbol) == []

    trade_with(venue, body)


def test_a_batch_answers_each_order_in_its_place_and_counts_each(venue: Running) -> None:
    price = far(venue, "BTCUSDT", "0.97", "0.1")
    stop = {"symbol": "BTCUSDT", "side": "SELL", "type": "STOP_MARKET", "quantity": "0.01"}
    wanted = batch_of(
        limit(price, newClientOrderId="b1", reduceOnly=False),
        stop,
        limit(price, newClientOrderId="b1"),
        limit(price, symbol="NOPEUSDT"),
        limit(price, newClientOrderId="b2", quantity=0.02),
    )
    before = venue.signed("PUT", V1 + "order", "symbol=BTCUSDT&side=BUY")[2]
    status, rows, headers = venue.signed("POST", V1 + "batchOrders", wanted)
    assert status == 200
    assert [r.get("code") for r in rows] == [None, -4120, -4116, -1121, None]
    assert (rows[0]["clientOrderId"], rows[4]["origQty"]) == ("b1", "0.020")
    assert "avgPrice" not in rows[0] and "cumQuote" not in rows[0]
    counts = ("X-MBX-ORDER-COUNT-10S", "X-MBX-ORDER-COUNT-1M")
    assert int(headers[counts[1]]) - int(before[counts[1]]) == 1
    assert int(headers[counts[0]]) >= 5  # the 10 s are 0.5 s here: what came before may be gone
    next_ = far(venue, "BTCUSDT", "0.96", "0.1")
    changes = [
        {"symbol": "BTCUSDT", "side": "BUY", "orderId": r["orderId"], "price": next_,
         "quantity": r["origQty"]}
        for r in (rows[0], rows[4])
    ]  # fmt: skip
    changes.insert(1, changes[0] | {"orderId": 1})
    _, changed, _ = venue.signed("PUT", V1 + "batchOrders", batch_of(*changes))
    assert [r.get("code") for r in changed] == [None, -2013, None]
    assert D(changed[0]["price"]) == D(changed[2]["price"]) == D(next_)
    listed = "origClientOrderIdList=" + quote('["b2","b9","b1"]')
    _, gone, _ = venue.signed("DELETE", V1 + "batchOrders", "symbol=BTCUSDT&" + listed)
    assert [r.get("status", r.get("code")) for r in gone] == ["CANCELED", -2011, "CANCELED"]


@pytest.mark.parametrize(
    ("method", "path", "query", "expected"),
    [
        ("POST", "batchOrders", "", -1102),
        ("POST", "batchOrders", "batchOrders=%5B%5D", -1102),
        ("POST", "batchOrders", batch_of(*[limit("1.0")] * 6), -4082),
        ("PUT", "batchOrders", batch_of(*[limit("1.0")] * 6), -4082),
        ("DELETE", "batchOrders", "symbol=BTCUSDT", -1102),
        ("DELETE", "batchOrders", f"symbol=BTCUSDT&orderIdList={[1] * 11}".replace(" ", ""), -1130),
        ("PUT", "order", "symbol=BTCUSDT&side=BUY&orderId=1&price=1.0", -1102),
        ("PUT", "order", "symbol=BTCUSDT&side=BUY&orderId=1&price=1.0&quantity=1", -2013),
        ("GET", "orderAmendment", "symbol=BTCUSDT&orderId=1", -2013),
        ("POST", "countdownCancelAll", "symbol=BTCUSDT", -1102),
        ("POST", "countdownCancelAll", "countdownTime=1", -1102),
        ("POST", "positionMargin", "symbol=BTCUSDT&amount=1&type=3", -1102),
        ("POST", "positionMargin", "symbol=BTCUSDT&amount=1&type=1", -4049),
        ("POST", "positionMargin", "symbol=BTCUSDT&amount=0.123456789&type=1", -1111),
        ("GET", "positionMargin/history", "", -1102),
        ("POST", "order", "symbol=BTCUSDT&side=BUY&type=LIMIT&timeInForce=GTD&quantity=0.010"
         "&price=60000&goodTillDate=1000", -5040),
    ],
)  # fmt: skip
def test_a_wrong_call_gets_the_exchange_s_code(
    venue: Running, method: str, path: str, query: str, expected: int
) -> None:
    if "price=60000" in query:
        query = query.replace("60000", far(venue, "BTCUSDT", "0.97", "0.1"))
    status, body, _ = venue.signed(method, V1 + path, query)
    assert (status, body["code"]) == (400, expected) and body["msg"]


def test_an_amendment_is_told_on_the_user_stream_and_stands_in_the_ledger(venue: Running) -> None:
    async def body() -> None:
        key = user_key(venue)
        async with connect(f"{venue.ws}/private/ws/{key}") as stream:
            price = far(venue, "ETHUSDT", "0.97", "0.01")
            till = venue.get(V1 + "time")["serverTime"] + 900_000
            query = "symbol=ETHUSDT&side=BUY&type=LIMIT&timeInForce=GTD&quantity=0.100"
            query += f"&price={price}&goodTillDate={till}&newClientOrderId=told-1"
            _, placed, _ = await asyncio.to_thread(venue.signed, "POST", V1 + "order", query)
            assert placed["goodTillDate"] == till // 1000 * 1000
            query = "symbol=ETHUSDT&side=BUY&origClientOrderId=told-1&quantity=0.200"
            query += f"&price={price}&modifyId=42"
            _, done, _ = await asyncio.to_thread(venue.signed, "PUT", V1 + "order", query)
            assert done["orderId"] == placed["orderId"] and done["origQty"] == "0.200"
            new, amended = [json.loads(await stream.recv())["o"] for _ in range(2)]
            assert (new["x"], amended["x"], amended["X"]) == ("NEW", "AMENDMENT", "NEW")
            assert (amended["q"], amended["M"], amended["i"]) == ("0.2", 42, placed["orderId"])
            assert new["gtd"] == amended["gtd"] == placed["goodTillDate"]
            events = venue.get("/venue/v1/ledger?limit=10000")["events"]
            mine = [e for e in events if e.get("order_id") == placed["orderId"]]
            assert [e["type"] for e in mine] == ["order_new", "order_amended"]
            assert (mine[1]["qty"], D(mine[1]["price"])) == ("0.2", D(price))
            # 900 s of the market are 45 s here; the countdown's 100 ms are real ones
            query = "symbol=ETHUSDT&countdownTime=100"
            _, started, _ = await asyncio.to_thread(
                venue.signed, "POST", V1 + "countdownCancelAll", query
            )
            begun = time.monotonic()
            assert started == {"symbol": "ETHUSDT", "countdownTime": "100"}
            gone = json.loads(await stream.recv())["o"]
            assert (gone["x"], gone["c"]) == ("CANCELED", "told-1")
            assert 0.05 < time.monotonic() - begun < 5

    asyncio.run(body())


def test_ccxt_moves_margin_of_an_isolated_position(venue: Running) -> None:
    async def body(client: ccxt.binanceusdm) -> None:
        await client.load_markets()
        symbol = "SOL/USDT:USDT"
        await client.set_margin_mode("isolated", symbol)
        await client.create_order(symbol, "market", "buy", 10)
        named = "symbol=SOLUSDT"
        [before] = venue.signed("GET", "/fapi/v3/positionRisk", named)[1]
        wallet = venue.signed("GET", "/fapi/v3/account", "")[1]["totalWalletBalance"]
        done = await client.add_margin(symbol, 50)
        assert (done["type"], done["amount"], done["status"]) == ("add", 50, "ok")
        [after] = venue.signed("GET", "/fapi/v3/positionRisk", named)[1]
        assert D(after["isolatedWallet"]) - D(before["isolatedWallet"]) == 50
        assert D(after["liquidationPrice"]) < D(before["liquidationPrice"])
        assert venue.signed("GET", "/fapi/v3/account", "")[1]["totalWalletBalance"] == wallet
        await client.reduce_margin(symbol, 20)
        [again] = venue.signed("GET", "/fapi/v3/positionRisk", named)[1]
        assert D(after["isolatedWallet"]) - D(again["isolatedWallet"]) == 20
        rows = venue.signed("GET", V1 + "positionMargin/history", named)[1]
        assert [(r["type"], r["amount"]) for r in rows] == [(1, "50"), (2, "20")]
        code = venue.signed("POST", V1 + "positionMargin", named + "&amount=900000&type=1")[1]
        assert code["code"] == -4050
        await client.create_order(symbol, "market", "sell", 10, None, {"reduceOnly": True})

    trade_with(venue, body)


def test_an_account_s_standing_is_told_in_the_exchange_s_forms(venue: Running) -> None:
    limits = venue.signed("GET", V1 + "rateLimit/order", "")[1]
    assert [(r["interval"], r["intervalNum"], r["limit"]) for r in limits] == [
        ("SECOND", 10, 300), ("MINUTE", 1, 1200),
    ]  # fmt: skip
    price = far(venue, "XRPUSDT", "0.97", "0.001")
    query = f"symbol=XRPUSDT&side=BUY&type=LIMIT&timeInForce=IOC&quantity=100&price={price}"
    assert venue.signed("POST", V1 + "order", query)[1]["status"] == "EXPIRED"
    status = venue.signed("GET", V1 + "apiTradingStatus", "symbol=XRPUSDT")[1]
    values = {r["indicator"]: r["value"] for r in status["indicators"]["XRPUSDT"]}
    assert values == {"UFR": 1.0, "IFER": 1.0, "GCR": 0.0, "DR": 0.0}
    query = "symbol=XRPUSDT&side=BUY&type=MARKET&quantity=100"
    assert venue.signed("POST", V1 + "order", query)[1]["status"] == "FILLED"

    async def body(client: ccxt.binanceusdm) -> None:
        await client.load_markets()
        [rank] = await client.fetch_positions_adl_rank(["XRP/USDT:USDT"])
        assert rank["rank"] in range(5)
        assert await client.fetch_my_liquidations("XRP/USDT:USDT") == []

    trade_with(venue, body)
    venue.signed("POST", V1 + "order", query.replace("BUY", "SELL") + "&reduceOnly=true")


def test_a_countdown_goes_on_after_a_resume(tmp_path: Path) -> None:
    options = ("--symbols", "2", "--rate", "50", "--seed", "3", "--speed", "5")
    first = Running(tmp_path, *options)
    price = far(first, "BTCUSDT", "0.96", "0.1")
    query = f"symbol=BTCUSDT&side=BUY&type=LIMIT&timeInForce=GTC&quantity=0.010&price={price}"
    _, placed, _ = first.signed("POST", V1 + "order", query)
    first.signed("POST", V1 + "countdownCancelAll", "symbol=BTCUSDT&countdownTime=2000")
    named = f"symbol=BTCUSDT&orderId={placed['orderId']}"
    assert first.signed("GET", V1 + "order", named)[1]["status"] == "NEW"
    assert first.stop() == 0
    again = Running(tmp_path, *options, "--resume")
    begun = time.monotonic()
    try:
        while again.signed("GET", V1 + "order", named)[1]["status"] == "NEW":
            assert time.monotonic() - begun < 10
            time.sleep(0.05)
        seen = again.signed("GET", V1 + "order", named)[1]
        assert (seen["status"], seen["executedQty"]) == ("CANCELED", "0.000")
        waited_ms = seen["updateTime"] - seen["time"]
        assert 10_000 <= waited_ms < 15_000  # market time: 2,000 real ms at speed 5
    finally:
        assert again.stop() == 0
