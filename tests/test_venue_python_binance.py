"""python-binance trades on the venue, over REST and both kinds of sockets; only URLs are set."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from decimal import Decimal as D
from pathlib import Path
from typing import Any

import pytest
from binance import AsyncClient, BinanceSocketManager
from binance.exceptions import BinanceAPIException

from tests.test_venue_server import Running

SYMBOL = "ETHUSDT"
PATIENCE_S = 10.0


def trade_with(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    body: Callable[[AsyncClient, Running], Awaitable[None]],
) -> None:
    """Runs a coroutine with a client of a venue at the pace of a clock."""
    venue = Running(folder, "--symbols", "3", "--rate", "300", "--seed", "7", "--speed", "1")
    monkeypatch.setattr(AsyncClient, "FUTURES_URL", f"{venue.url}/fapi")
    monkeypatch.setattr(BinanceSocketManager, "FSTREAM_URL", f"ws{venue.url[4:]}/")

    async def whole() -> None:
        client = AsyncClient("test", "test")
        try:
            told = await client.futures_time()  # the market's day is not the host's
            client.timestamp_offset = told["serverTime"] - int(time.time() * 1000)
            await body(client, venue)
        finally:
            await client.close_connection()

    try:
        asyncio.run(whole())
    finally:
        assert venue.stop() == 0


async def frames(socket: Any, count: int) -> list[dict[str, Any]]:
    return [await asyncio.wait_for(socket.recv(), PATIENCE_S) for _ in range(count)]


def test_every_kind_of_order_over_rest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def body(client: AsyncClient, venue: Running) -> None:
        info = await client.futures_exchange_info()
        assert [s["symbol"] for s in info["symbols"]][1] == SYMBOL and info["futuresType"]
        [usdt] = [b for b in await client.futures_account_balance() if b["asset"] == "USDT"]
        assert D(usdt["balance"]) == 10_000
        made = await client.futures_create_order(
            symbol=SYMBOL, side="BUY", type="MARKET", quantity="0.500"
        )
        assert made["status"] == "FILLED" and "avgPrice" not in made
        order = await client.futures_get_order(symbol=SYMBOL, orderId=made["orderId"])
        [position] = await client.futures_position_information(symbol=SYMBOL)
        assert D(position["positionAmt"]) == D("0.5")
        assert D(position["entryPrice"]) == D(order["avgPrice"])
        bid = D((await client.futures_orderbook_ticker(symbol=SYMBOL))["bidPrice"])
        stop = await client.futures_create_order(
            symbol=SYMBOL, side="SELL", type="STOP_MARKET",
            stopPrice=f"{bid * D('0.95'):.2f}", closePosition="true",
        )  # fmt: skip
        assert stop["algoStatus"] == "NEW" and stop["closePosition"] is True
        limit = await client.futures_create_order(
            symbol=SYMBOL, side="BUY", type="LIMIT", timeInForce="GTC", quantity="0.100",
            price=f"{bid * D('0.97'):.2f}",
        )  # fmt: skip
        changed = await client.futures_modify_order(
            symbol=SYMBOL, orderId=limit["orderId"], side="BUY", quantity="0.200",
            price=f"{bid * D('0.96'):.2f}",
        )  # fmt: skip
        assert (changed["orderId"], D(changed["origQty"])) == (limit["orderId"], D("0.2"))
        [resting] = await client.futures_get_open_orders(symbol=SYMBOL)
        assert resting["orderId"] == limit["orderId"]
        gone = await client.futures_cancel_order(symbol=SYMBOL, orderId=limit["orderId"])
        assert gone["status"] == "CANCELED"
        assert await client.futures_get_open_orders(symbol=SYMBOL) == []
        trades = await client.futures_account_trades(symbol=SYMBOL)
        assert sum(D(t["qty"]) for t in trades) == D("0.5")
        paid = sum(D(t["commission"]) for t in trades)
        [usdt] = [b for b in await client.futures_account_balance() if b["asset"] == "USDT"]
        assert D(usdt["balance"]) == 10_000 - paid

    trade_with(tmp_path, monkeypatch, body)


def test_refusals_have_the_exchanges_codes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def body(client: AsyncClient, venue: Running) -> None:
        order = {"symbol": SYMBOL, "side": "BUY", "type": "LIMIT", "timeInForce": "GTC"}
        bid = D((await client.futures_orderbook_ticker(symbol=SYMBOL))["bidPrice"])
        for more, code in (
            ({"quantity": "0.1", "price": f"{bid:.2f}5"}, -1111),
            ({"quantity": "0.001", "price": f"{bid:.2f}"}, -4164),
            ({"quantity": "100000", "price": f"{bid:.2f}"}, -4005),
            ({"quantity": "0.1", "price": f"{bid * 2:.2f}"}, -4016),
        ):
            with pytest.raises(BinanceAPIException) as refused:
                await client.futures_create_order(**order, **more)
            assert refused.value.code == code, more
        stranger = AsyncClient("test", "not the secret")
        stranger.timestamp_offset = client.timestamp_offset
        with pytest.raises(BinanceAPIException) as refused:
            await stranger.futures_account_balance()
        await stranger.close_connection()
        assert refused.value.code == -1022

    trade_with(tmp_path, monkeypatch, body)


def test_market_and_account_are_told_on_its_sockets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def body(client: AsyncClient, venue: Running) -> None:
        manager = BinanceSocketManager(client)
        async with manager.aggtrade_futures_socket(SYMBOL) as socket:
            told = [frame["data"] for frame in await frames(socket, 5)]
        assert {t["s"] for t in told} == {SYMBOL} and {t["e"] for t in told} == {"aggTrade"}
        assert [t["a"] for t in told] == list(range(told[0]["a"], told[0]["a"] + 5))
        async with manager.symbol_ticker_futures_socket(SYMBOL) as socket:
            quotes = [frame["data"] for frame in await frames(socket, 3)]
        assert all(D(q["b"]) < D(q["a"]) for q in quotes)
        async with manager.futures_user_socket() as socket:
            made = await client.futures_create_order(
                symbol=SYMBOL, side="SELL", type="MARKET", quantity="0.250"
            )
            seen: list[dict[str, Any]] = []
            while not seen or seen[-1].get("o", {}).get("X") != "FILLED":
                seen += await frames(socket, 1)
        updates = [f["o"] for f in seen if f["e"] == "ORDER_TRADE_UPDATE"]
        assert {o["i"] for o in updates} == {made["orderId"]}
        assert D(updates[-1]["z"]) == D("0.25")
        wallets = [f["a"]["B"][0]["wb"] for f in seen if f["e"] == "ACCOUNT_UPDATE"]
        [usdt] = [b for b in await client.futures_account_balance() if b["asset"] == "USDT"]
        assert D(wallets[-1]) == D(usdt["balance"])

    trade_with(tmp_path, monkeypatch, body)
