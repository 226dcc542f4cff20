"""python-binance call by call: each REST method, each call of its WebSocket API, market sockets.

A row claims something of the answer; NOT_SERVED names the other methods of the client with the
reason, so that together they are all of them.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from decimal import Decimal as D
from pathlib import Path
from typing import Any

import pytest
from binance import AsyncClient, BinanceSocketManager
from binance.exceptions import BinanceAPIException

from tests.test_venue_server import Running

SYMBOL = "ETHUSDT"
PATIENCE_S = 20.0
NOT_SERVED = {
    "loans, transfers and archives are not of the futures exchange": """
        account_transfer cross_collateral_adjust_history cross_collateral_liquidation_history
        loan_borrow_history loan_interest_history loan_repay_history loan_wallet
        historical_data_link""",
    "one asset is the margin here": "change_multi_assets_mode",
}
Claim = Callable[[Any], bool]
S = {"symbol": SYMBOL}


def whole(row: dict[str, Any]) -> bool:
    """Who is long and who is short are everybody."""
    return D(row["longAccount"]) + D(row["shortAccount"]) == 1


# calls that need nothing to have happened -> parameters, what must be true of the answer
READS: dict[str, tuple[dict[str, Any], Claim]] = {
    "ping": ({}, lambda r: r == {}),
    "time": ({}, lambda r: r["serverTime"] > 0),
    "exchange_info": ({}, lambda r: [s["symbol"] for s in r["symbols"]] == ["BTCUSDT", SYMBOL]),
    "order_book": (S | {"limit": 5}, lambda r: D(r["bids"][0][0]) < D(r["asks"][0][0])),
    "recent_trades": (S | {"limit": 3}, lambda r: len(r) == 3 and D(r[0]["price"]) > 0),
    "historical_trades": (S | {"limit": 2}, lambda r: r[1]["id"] == r[0]["id"] + 1),
    "aggregate_trades": (S | {"limit": 2}, lambda r: r[1]["a"] == r[0]["a"] + 1),
    "klines": (S | {"interval": "4h", "limit": 2}, lambda r: r[1][0] - r[0][0] == 14_400_000),
    "continuous_klines": ({"pair": SYMBOL, "contractType": "PERPETUAL", "interval": "1m",
        "limit": 2}, lambda r: len(r) == 2),
    "historical_klines": (S | {"interval": "1h", "start_str": "2 hours ago UTC"},
        lambda r: len(r) in (2, 3)),
    "mark_price_klines": (S | {"interval": "1m", "limit": 2}, lambda r: r[0][5] == "0"),
    "index_price_klines": ({"pair": SYMBOL, "interval": "1m", "limit": 2}, lambda r: len(r) == 2),
    "premium_index_klines": (S | {"interval": "1m", "limit": 2}, lambda r: D(r[0][1]) == 0),
    "mark_price": (S, lambda r: D(r["markPrice"]) > 0 and r["symbol"] == SYMBOL),
    "funding_rate": (S, lambda r: isinstance(r, list)),
    "ticker": (S, lambda r: D(r["lowPrice"]) <= D(r["lastPrice"]) <= D(r["highPrice"])),
    "symbol_ticker": (S, lambda r: D(r["price"]) > 0),
    "orderbook_ticker": (S, lambda r: D(r["bidPrice"]) < D(r["askPrice"])),
    "open_interest": (S, lambda r: D(r["openInterest"]) > 0),
    "open_interest_hist": (S | {"period": "1h", "limit": 3}, lambda r: len(r) == 3
        and all(D(row["sumOpenInterest"]) > 0 for row in r)),
    "taker_longshort_ratio": (S | {"period": "5m"}, lambda r: len(r) == 30),
    "global_longshort_ratio": (S | {"period": "5m"}, lambda r: all(whole(row) for row in r)),
    "top_longshort_account_ratio": (S | {"period": "1d"}, lambda r: all(whole(row) for row in r)),
    "top_longshort_position_ratio": (S | {"period": "4h"}, lambda r: all(whole(row) for row in r)),
    "index_info": ({}, lambda r: r == []),
    "index_price_constituents": (S, lambda r: D(r["constituents"][0]["weight"]) == 1),
    "rpi_depth": (S | {"limit": 5}, lambda r: D(r["bids"][0][0]) < D(r["asks"][0][0])),
    "symbol_adl_risk": ({}, lambda r: {row["adlRisk"] for row in r} == {"low"} and len(r) == 2),
    "liquidation_orders": ({}, lambda r: r == []),
    "get_position_mode": ({}, lambda r: r == {"dualSidePosition": False}),
    "get_multi_assets_mode": ({}, lambda r: r == {"multiAssetsMargin": False}),
    "account_config": ({}, lambda r: r["canTrade"] is True and r["feeTier"] == 0),
    "symbol_config": (S, lambda r: (r[0]["leverage"], r[0]["marginType"]) == (20, "CROSSED")),
    "leverage_bracket": (S, lambda r: r["brackets"][0]["notionalCap"] == 300_000),
    "commission_rate": (S, lambda r: D(r["takerCommissionRate"]) == D("0.0005")),
    "api_trading_status": ({}, lambda r: "indicators" in r),
    "account_balance": ({}, lambda r: D(r[0]["balance"]) > 0 and r[0]["asset"] == "USDT"),
    "account": ({}, lambda r: len(r["positions"]) == 2 and r["canTrade"] is True),
    "income_history": ({}, lambda r: r[0]["incomeType"] == "TRANSFER"),
    "position_margin_history": (S, lambda r: r == []),
    "stream_get_listen_key": ({}, lambda r: len(r) == 64),
    "countdown_cancel_all": (S | {"countdownTime": 0}, lambda r: r["countdownTime"] == "0"),
}  # fmt: skip
# calls that the tests below make in an order that means something
STORIES = """
    create_order create_test_order get_order modify_order cancel_order get_open_orders
    get_all_orders cancel_all_open_orders cancel_orders place_batch_order limit_order
    limit_buy_order limit_sell_order market_order market_buy_order market_sell_order
    create_algo_order get_algo_order get_open_algo_orders get_all_algo_orders cancel_algo_order
    cancel_all_algo_open_orders account_trades position_information adl_quantile_estimate
    change_leverage change_margin_type change_position_margin change_position_mode
    stream_keepalive stream_close
""".split()  # noqa: SIM905


class Bench:
    """A venue on the host's day and a client made as its page says, with `create`."""

    def __init__(self, folder: Path) -> None:
        options = ("--symbols", "2", "--rate", "300", "--seed", "7", "--speed", "4")
        self.venue = Running(folder, *options, "--day", "now")
        self.loop = asyncio.new_event_loop()
        AsyncClient.API_URL = f"{self.venue.url}/api"
        AsyncClient.FUTURES_URL = f"{self.venue.url}/fapi"
        AsyncClient.FUTURES_DATA_URL = f"{self.venue.url}/futures/data"
        AsyncClient.WS_FUTURES_URL = f"{self.venue.ws}/ws-fapi/v1"
        BinanceSocketManager.FSTREAM_URL = f"{self.venue.ws}/"
        self.client = self.run(AsyncClient.create("test", "test"))
        trades = f"/fapi/v1/trades?symbol={SYMBOL}&limit=3"
        while len(self.venue.get(trades)) < 3:  # a market that has just begun
            time.sleep(0.05)

    def run(self, work: Any) -> Any:
        return self.loop.run_until_complete(asyncio.wait_for(work, 60))

    def price(self, share: str) -> str:
        bid = self.venue.get(f"/fapi/v1/ticker/bookTicker?symbol={SYMBOL}")["bidPrice"]
        return f"{D(bid) * D(share):.2f}"


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    kept = {n: getattr(AsyncClient, n) for n in dir(AsyncClient) if n.endswith("_URL")}
    stream = BinanceSocketManager.FSTREAM_URL
    made = Bench(tmp_path_factory.mktemp("pb"))
    yield made
    made.run(made.client.close_connection())
    made.loop.close()
    for name, value in kept.items():
        setattr(AsyncClient, name, value)
    BinanceSocketManager.FSTREAM_URL = stream
    assert made.venue.stop() == 0


@pytest.mark.parametrize("name", READS)
def test_a_call_is_answered_with_what_it_asks_for(bench: Bench, name: str) -> None:
    params, claim = READS[name]
    assert claim(bench.run(getattr(bench.client, f"futures_{name}")(**params)))


def test_every_method_of_the_client_is_called_or_named_with_a_reason() -> None:
    has = {n.removeprefix("futures_") for n in dir(AsyncClient) if n.startswith("futures_")}
    has = {n for n in has if not n.startswith(("coin_", "v1_", "v2_", "v3_"))}
    has -= {"historical_klines_generator"}
    not_served = {name for names in NOT_SERVED.values() for name in names.split()}
    assert has == {*READS, *STORIES, *not_served}


def test_orders_by_every_name_that_the_client_has(bench: Bench) -> None:
    async def work() -> None:
        c, low, high = bench.client, bench.price("0.97"), bench.price("1.03")
        order = S | {"side": "BUY", "type": "LIMIT", "timeInForce": "GTC", "quantity": "0.1"}
        tested = await c.futures_create_test_order(**order, price=low)
        assert tested["status"] == "NEW" and await c.futures_get_open_orders() == []
        rest = S | {"quantity": "0.1", "timeInForce": "GTC"}
        made = [
            await c.futures_create_order(**order, price=low),
            await c.futures_limit_order(**rest, side="BUY", price=low),
            await c.futures_limit_buy_order(**rest, price=low),
            await c.futures_limit_sell_order(**rest, price=high),
        ]
        assert [o["side"] for o in made] == ["BUY", "BUY", "BUY", "SELL"]
        assert len(await c.futures_get_open_orders(**S)) == 4
        named = S | {"orderId": made[0]["orderId"]}
        changed = await c.futures_modify_order(**named, side="BUY", quantity="0.2", price=low)
        assert changed["origQty"] == "0.200"
        assert (await c.futures_get_order(**named))["origQty"] == "0.200"
        assert (await c.futures_cancel_order(**named))["status"] == "CANCELED"
        ids = [o["orderId"] for o in made[1:3]]
        gone = await c.futures_cancel_orders(**S, orderidlist=ids)
        assert [o["status"] for o in gone] == ["CANCELED"] * 2
        batch = [{**order, "price": low}, {**order, "price": low, "quantity": "0.0001"}]
        good, bad = await c.futures_place_batch_order(batchOrders=batch)
        assert (good["status"], bad["code"]) == ("NEW", -1111)
        assert (await c.futures_cancel_all_open_orders(**S))["code"] == 200
        assert await c.futures_get_open_orders(**S) == []
        # the client sends these without a time in force that the exchange would refuse
        bought = await c.futures_market_order(**S, side="BUY", quantity="0.3")
        more = await c.futures_market_buy_order(**S, quantity="0.1")
        less = await c.futures_market_sell_order(**S, quantity="0.1")
        assert {o["status"] for o in (bought, more, less)} == {"FILLED"}
        statuses = [o["status"] for o in await c.futures_get_all_orders(**S)]
        assert statuses.count("FILLED") >= 3 and statuses.count("CANCELED") >= 5
        [held] = await c.futures_position_information(**S)
        assert held["positionAmt"] == "0.300"
        assert sum(D(t["qty"]) for t in await c.futures_account_trades(**S)) == D("0.5")
        [ranked] = await c.futures_adl_quantile_estimate(**S)
        assert ranked["symbol"] == SYMBOL
        stop = await c.futures_create_algo_order(
            **S, side="SELL", type="STOP_MARKET", quantity="0.3", triggerPrice=bench.price("0.9")
        )
        only = {"algoId": stop["algoId"]}
        assert (await c.futures_get_algo_order(**only))["algoStatus"] == "NEW"
        assert [a["algoId"] for a in await c.futures_get_open_algo_orders()] == [stop["algoId"]]
        assert len(await c.futures_get_all_algo_orders(**S)) == 1
        assert (await c.futures_cancel_algo_order(**only))["code"] == "200"
        assert (await c.futures_cancel_all_algo_open_orders(**S))["code"] == 200
        await c.futures_market_sell_order(**S, quantity="0.3", reduceOnly="true")
        assert await c.futures_position_information(**S) == []

    bench.run(work())


def test_settings_and_the_listen_key(bench: Bench) -> None:
    async def work() -> None:
        c = bench.client
        assert (await c.futures_change_leverage(**S, leverage=10))["leverage"] == 10
        assert (await c.futures_change_margin_type(**S, marginType="ISOLATED"))["code"] == 200
        await c.futures_market_buy_order(**S, quantity="0.3")
        moved = await c.futures_change_position_margin(**S, amount=10, type=1)
        assert (moved["amount"], moved["code"]) == (10, 200)
        await c.futures_market_sell_order(**S, quantity="0.3", reduceOnly="true")
        await c.futures_change_margin_type(**S, marginType="CROSSED")
        await c.futures_change_leverage(**S, leverage=20)
        with pytest.raises(BinanceAPIException) as refused:
            await c.futures_change_position_mode(dualSidePosition="false")
        assert refused.value.code == -4059
        key = await c.futures_stream_get_listen_key()
        assert (await c.futures_stream_keepalive(key))["listenKey"] == key
        assert await c.futures_stream_close(key) == {}
        with pytest.raises(BinanceAPIException) as refused:
            await c.futures_stream_keepalive(key)
        assert refused.value.code == -1125

    bench.run(work())


def test_the_client_trades_over_the_websocket_api(bench: Bench) -> None:
    async def work() -> None:
        c, low = bench.client, bench.price("0.97")
        order = S | {"side": "BUY", "type": "LIMIT", "timeInForce": "GTC", "quantity": "0.1"}
        made = await c.ws_futures_create_order(**order, price=low)
        named = S | {"orderId": made["orderId"]}
        assert (await c.ws_futures_get_order(**named))["status"] == "NEW"
        edited = await c.ws_futures_edit_order(**named, side="BUY", quantity="0.2", price=low)
        assert edited["origQty"] == "0.200"
        assert (await c.ws_futures_cancel_order(**named))["status"] == "CANCELED"
        with pytest.raises(BinanceAPIException) as refused:
            await c.ws_futures_cancel_order(**named)
        assert refused.value.code == -2011
        filled = await c.ws_futures_create_order(**S, side="BUY", type="MARKET", quantity="0.1")
        assert filled["status"] == "FILLED"
        stop = await c.ws_futures_create_algo_order(
            **S, algoType="CONDITIONAL", side="SELL", type="STOP_MARKET", quantity="0.1",
            triggerPrice=bench.price("0.9"),
        )  # fmt: skip
        assert (await c.ws_futures_cancel_algo_order(algoId=stop["algoId"]))["code"] == "200"
        [held] = await c.ws_futures_v2_account_position(**S)
        [also] = await c.ws_futures_account_position(**S)
        assert held["positionAmt"] == also["positionAmt"] == "0.100"
        await c.ws_futures_create_order(**S, side="SELL", type="MARKET", quantity="0.1")
        [new] = await c.ws_futures_v2_account_balance()
        [old] = await c.ws_futures_account_balance()
        status, status_v1 = (
            await c.ws_futures_v2_account_status(),
            await c.ws_futures_account_status(),
        )
        [rest] = await c.futures_account_balance()
        wallets = {new["balance"], old["balance"], status["totalWalletBalance"]}
        assert wallets == {rest["balance"], status_v1["totalWalletBalance"]}
        book = await c.ws_futures_get_order_book(**S)
        best = await c.ws_futures_get_order_book_ticker(**S)
        last = await c.ws_futures_get_all_tickers(**S)
        assert D(book["bids"][0][0]) < D(book["asks"][0][0])
        assert D(best["bidPrice"]) < D(best["askPrice"]) and D(last["price"]) > 0

    bench.run(work())


@pytest.mark.parametrize(
    ("make", "event"),
    [
        (lambda m: m.aggtrade_futures_socket(SYMBOL), "aggTrade"),
        (lambda m: m.symbol_ticker_futures_socket(SYMBOL), "bookTicker"),
        (lambda m: m.individual_symbol_ticker_futures_socket(SYMBOL), "24hrTicker"),
        (lambda m: m.all_ticker_futures_socket(), "bookTicker"),
        (lambda m: m.futures_ticker_socket(), "24hrTicker"),
        (lambda m: m.kline_futures_socket(SYMBOL, "1m"), "continuous_kline"),
        (lambda m: m.futures_depth_socket(SYMBOL, "10"), "depthUpdate"),
        (lambda m: m.futures_multiplex_socket(["ethusdt@markPrice@1s"]), "markPriceUpdate"),
    ],
)
def test_a_socket_tells_its_event(bench: Bench, make: Any, event: str) -> None:
    async def work() -> None:
        async with make(BinanceSocketManager(bench.client)) as socket:
            told = await asyncio.wait_for(socket.recv(), PATIENCE_S)
            data = told.get("data", told)
            first = data[0] if isinstance(data, list) else data
            assert first["e"] == event and first.get("s", first.get("ps")) in (SYMBOL, "BTCUSDT")

    bench.run(work())
