"""ccxt.pro with only its URLs set: what it watches, and what it trades over the WebSocket API.

Each thing that is watched is held against what REST says of it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from decimal import Decimal as D
from pathlib import Path
from typing import Any

import ccxt.async_support as errors
import pytest

from tests import local_book
from tests.ccxt_desk import NAME, PATIENCE_S, SYMBOL, Desk

WATCHES = """
    watchBalance watchBidsAsks watchMarkPrice watchMarkPrices watchMyTrades watchOHLCV
    watchOHLCVForSymbols watchOrderBook watchOrderBookForSymbols watchOrders
    watchPositions watchTicker watchTickers watchTrades
    watchTradesForSymbols unWatchBidsAsks unWatchMarkPrice unWatchMarkPrices unWatchOHLCV
    unWatchOHLCVForSymbols unWatchOrderBook unWatchOrderBookForSymbols unWatchTicker
    unWatchTickers unWatchTrades unWatchTradesForSymbols cancelOrderWs createLimitOrderWs
    createMarketOrderWs createOrderWs editOrderWs fetchBalanceWs fetchOrderBookWs fetchOrderWs
    fetchPositionWs fetchPositionsWs fetchTickerWs
""".split()  # noqa: SIM905


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    folder = tmp_path_factory.mktemp("watch")
    made = Desk(folder, "--symbols", "2", "--rate", "300", "--seed", "7", "--speed", "4")
    yield made
    assert made.close() == 0


async def until(
    watch: Callable[[], Awaitable[Any]], seen: Callable[[Any], bool], begin: Any = None
) -> Any:
    """Watches until something is seen; `begin` is started once the client listens."""
    async with asyncio.timeout(PATIENCE_S):
        task = asyncio.ensure_future(watch())
        if begin is not None:
            await asyncio.sleep(0.5)  # the socket opens; what is missed then is told by REST
            await begin()
        while True:
            value = await task
            if seen(value):
                return value
            task = asyncio.ensure_future(watch())


def test_orders_and_own_trades_are_watched_through_their_lives(desk: Desk) -> None:
    c = desk.client

    async def work() -> None:
        lives: list[tuple[str, str, float]] = []

        async def listen() -> None:
            while True:
                for o in await c.watch_orders(SYMBOL):
                    lives.append((o["id"], o["status"], o["amount"]))

        listener = asyncio.create_task(listen())
        await asyncio.sleep(1.0)
        low = desk.price("0.97")
        made = await c.create_order(SYMBOL, "limit", "buy", 0.1, low)
        await c.edit_order(made["id"], SYMBOL, "limit", "buy", 0.2, low)
        await c.cancel_order(made["id"], SYMBOL)
        bought = await c.create_order(SYMBOL, "market", "buy", 0.3)
        async with asyncio.timeout(PATIENCE_S):
            while not lives or lives[-1][:2] != (bought["id"], "closed"):
                await asyncio.sleep(0.02)
        listener.cancel()
        mine = [row[1:] for row in lives if row[0] == made["id"]]
        assert mine == [("open", 0.1), ("open", 0.2), ("canceled", 0.2)]
        theirs = [row[1] for row in lives if row[0] == bought["id"]]
        assert theirs[0] == "open" and theirs[-1] == "closed"
        trades = {t["id"]: t for t in c.myTrades}
        by_rest = await c.fetch_my_trades(SYMBOL)
        for t in by_rest:
            seen = trades[t["id"]]
            assert (seen["price"], seen["amount"]) == (t["price"], t["amount"])
            assert seen["fee"]["cost"] == t["fee"]["cost"] and seen["order"] == t["order"]
        assert sum(D(str(t["amount"])) for t in by_rest) == D("0.3")

    desk.run(work())


def test_own_trades_balance_and_positions_are_what_rest_says(desk: Desk) -> None:
    c = desk.client

    async def sell() -> None:
        await c.create_order(SYMBOL, "market", "sell", 0.1)

    async def work() -> None:
        [trade, *_] = await until(lambda: c.watch_my_trades(SYMBOL), bool, sell)
        assert trade["side"] in ("buy", "sell") and trade["fee"]["currency"] == "USDT"
        wallet = float(desk.raw("v3/account")["totalWalletBalance"])
        seen = await until(c.watch_balance, lambda b: b["USDT"]["total"] != wallet, sell)
        assert seen["USDT"]["total"] == float(desk.raw("v3/account")["totalWalletBalance"])
        rows = await until(lambda: c.watch_positions([SYMBOL]), bool, sell)
        [held] = desk.raw("v3/positionRisk") or [None]
        size = abs(float(held["positionAmt"])) if held else 0
        while rows[-1]["contracts"] != size:
            rows = await until(lambda: c.watch_positions([SYMBOL]), bool)
        assert rows[-1]["symbol"] == SYMBOL

    desk.run(work())


def test_the_market_is_watched_as_rest_has_it(desk: Desk) -> None:
    c = desk.client

    async def work() -> None:
        trades = await until(lambda: c.watch_trades(SYMBOL, params={"name": "aggTrade"}), bool)
        raw = {r["a"]: r for r in desk.raw("aggTrades", f"symbol={NAME}&limit=1000")}
        for t in trades:
            assert t["price"] == float(raw[int(t["id"])]["p"])
            assert t["side"] == ("sell" if raw[int(t["id"])]["m"] else "buy")
        many = await until(lambda: c.watch_trades_for_symbols([SYMBOL]), bool)
        assert {t["symbol"] for t in many} == {SYMBOL} and all(t["amount"] > 0 for t in many)
        quotes = await until(lambda: c.watch_bids_asks([SYMBOL]), bool)
        assert quotes[SYMBOL]["bid"] < quotes[SYMBOL]["ask"]
        mark = await until(lambda: c.watch_mark_price(SYMBOL), bool)
        assert abs(mark["markPrice"] / desk.price("1") - 1) < 0.05
        marks = await until(lambda: c.watch_mark_prices([SYMBOL]), bool)
        assert marks[SYMBOL]["markPrice"] > 0
        day = await until(lambda: c.watch_ticker(SYMBOL, {"name": "ticker"}), bool)
        raw_day = desk.raw("ticker/24hr", f"symbol={NAME}")
        assert day["high"] <= float(raw_day["highPrice"]) and day["low"] >= float(
            raw_day["lowPrice"]
        )
        days = await until(lambda: c.watch_tickers([SYMBOL]), bool)
        assert days[SYMBOL]["last"] > 0
        [candle, *_] = await until(lambda: c.watch_ohlcv(SYMBOL, "1m"), bool)
        rows = {r[0]: r for r in desk.raw("klines", f"symbol={NAME}&interval=1m&limit=5")}
        assert candle[1] == float(rows[candle[0]][1])
        more = await until(lambda: c.watch_ohlcv_for_symbols([[SYMBOL, "5m"]]), bool)
        assert list(more[SYMBOL]) == ["5m"]
        book = await until(lambda: c.watch_order_book(SYMBOL), bool)
        assert book["bids"][0][0] < book["asks"][0][0]
        again = await until(lambda: c.watch_order_book_for_symbols([SYMBOL]), bool)
        assert again["symbol"] == SYMBOL

    desk.run(work())


def test_what_is_watched_can_be_let_go(desk: Desk) -> None:
    c, one = desk.client, [SYMBOL]

    async def work() -> None:
        for watch, leave, args in (
            (c.watch_trades, c.un_watch_trades, (SYMBOL,)),
            (c.watch_trades_for_symbols, c.un_watch_trades_for_symbols, (one,)),
            (c.watch_ticker, c.un_watch_ticker, (SYMBOL,)),
            (c.watch_tickers, c.un_watch_tickers, (one,)),
            (c.watch_bids_asks, c.un_watch_bids_asks, (one,)),
            (c.watch_mark_price, c.un_watch_mark_price, (SYMBOL,)),
            (c.watch_mark_prices, c.un_watch_mark_prices, (one,)),
            (c.watch_ohlcv, c.un_watch_ohlcv, (SYMBOL, "1m")),
            (c.watch_ohlcv_for_symbols, c.un_watch_ohlcv_for_symbols, ([[SYMBOL, "1m"]],)),
            (c.watch_order_book, c.un_watch_order_book, (SYMBOL,)),
            (c.watch_order_book_for_symbols, c.un_watch_order_book_for_symbols, (one,)),
        ):
            async with asyncio.timeout(PATIENCE_S):
                assert await watch(*args)
                assert await leave(*args)

    desk.run(work())


def test_ccxt_trades_over_the_websocket_api(desk: Desk) -> None:
    c = desk.client

    async def work() -> None:
        low = desk.price("0.97")
        made = await c.create_order_ws(SYMBOL, "limit", "buy", 0.1, low)
        assert (made["status"], made["price"], made["amount"]) == ("open", low, 0.1)
        assert (await c.fetch_order_ws(made["id"], SYMBOL))["id"] == made["id"]
        edited = await c.edit_order_ws(made["id"], SYMBOL, "limit", "buy", 0.2, low)
        assert (edited["id"], edited["amount"]) == (made["id"], 0.2)
        gone = await c.cancel_order_ws(made["id"], SYMBOL)
        assert gone["status"] == "canceled"
        with pytest.raises(errors.ExchangeError, match="-2011"):
            await c.cancel_order_ws(made["id"], SYMBOL)
        named = await c.create_limit_order_ws(SYMBOL, "buy", 0.1, low)
        await c.cancel_order_ws(named["id"], SYMBOL)
        bought = await c.create_market_order_ws(SYMBOL, "buy", 0.25)
        assert (bought["status"], bought["filled"]) == ("closed", 0.25)
        raw = desk.raw("v2/account")
        balance = await c.fetch_balance_ws()
        assert balance["USDT"]["total"] > 0
        assert balance["info"]["totalWalletBalance"] == raw["totalWalletBalance"]
        [held] = [p for p in raw["positions"] if p["symbol"] == NAME]
        for rows in (await c.fetch_positions_ws([SYMBOL]), await c.fetch_position_ws(SYMBOL)):
            assert rows[0]["info"]["positionAmt"] == held["positionAmt"]
        book = await c.fetch_order_book_ws(SYMBOL)
        ticker = await c.fetch_ticker_ws(SYMBOL)
        assert book["bids"][0][0] < book["asks"][0][0] and ticker["bid"] < ticker["ask"]

    desk.run(work())


def test_a_local_book_of_a_fast_market_is_the_venue_s_each_time(tmp_path: Path) -> None:
    told = local_book.run(tmp_path, 3.0, 0.1, 5)
    assert told.different == ""
    assert told.compared >= 5 and told.updates >= 5 * local_book.UPDATES_EACH


def test_the_local_book_s_judge_sees_a_level_that_differs() -> None:
    shown = {"bids": [["10.0", "1"], ["9.0", "2"]], "asks": [["11.0", "3"]]}
    good = {"bids": [[10.0, 1.0], [9.0, 2.0]], "asks": [[11.0, 3.0]]}
    assert local_book.difference(good, shown) == ""
    assert "bids level 1" in local_book.difference(good | {"bids": [[10, 1], [9, 3]]}, shown)
    assert "2 levels" in local_book.difference(good | {"asks": [[11, 3], [12, 1]]}, shown)
