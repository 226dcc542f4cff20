"""The venue as a process: strangers' clients over real sockets, and what it promises to testers."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import re
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Coroutine, Iterator
from decimal import Decimal as D
from pathlib import Path
from typing import Any

import ccxt.async_support as ccxt
import numpy as np
import pytest
import websockets
from websockets.asyncio.client import connect

from tests.conftest import DATA, ROOT
from venue.main import latency_of

CAPTURE = DATA / "raw_ws" / "usdm_btcusdt_20240808.gz"


class Running:
    """A started venue and its address."""

    def __init__(self, folder: Path, *options: str) -> None:
        argv = [sys.executable, "-m", "venue.main", "--port", "0", "--state", str(folder)]
        self.process = subprocess.Popen(
            [*argv, *options], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        assert self.process.stdout is not None
        self.line = self.process.stdout.readline()
        if not self.line.startswith("venue ready"):
            out, err = self.process.communicate()
            raise AssertionError(f"venue did not start: {self.line}{out}{err}")
        self.url = self.line.split()[2]
        self.ws = self.url.replace("http", "ws")

    def get(self, path: str) -> Any:
        with urllib.request.urlopen(self.url + path) as reply:
            return json.load(reply)

    def post(self, path: str) -> Any:
        wanted = urllib.request.Request(self.url + path, method="POST")
        with urllib.request.urlopen(wanted) as reply:
            return json.load(reply)

    def signed(self, method: str, path: str, query: str, **spoil: str) -> tuple[int, Any, Any]:
        """(status, body, headers) of a signed call; `spoil` replaces key, secret or time."""
        stamp = spoil.get("timestamp") or str(self.get("/fapi/v1/time")["serverTime"])
        payload = f"{query}&timestamp={stamp}".lstrip("&")
        secret = spoil.get("secret", "test").encode()
        signature = hmac.new(secret, payload.encode(), hashlib.sha256).hexdigest()
        request = urllib.request.Request(
            f"{self.url}{path}?{payload}&signature={signature}",
            method=method,
            headers={"X-MBX-APIKEY": spoil.get("key", "test")},
        )
        try:
            with urllib.request.urlopen(request) as reply:
                return reply.status, json.load(reply), reply.headers
        except urllib.error.HTTPError as error:
            return error.code, json.load(error), error.headers

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        self.process.communicate(timeout=30)
        return self.process.returncode


@pytest.fixture(scope="module")
def venue(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("venue")
    made = Running(folder, "--symbols", "5", "--rate", "1000", "--seed", "7", "--speed", "20")
    yield made
    assert made.stop() == 0


Watch = Callable[["ccxt.binanceusdm"], Coroutine[Any, Any, None]]


def trade_with(venue: Running, body: Watch) -> None:
    """Runs a coroutine with an unmodified ccxt client, pointed here by its URLs alone."""
    options = {"adjustForTimeDifference": True}

    async def whole() -> None:
        client = ccxt.binanceusdm(
            {"apiKey": "test", "secret": "test", "enableRateLimit": False, "options": options}
        )
        for name, value in client.urls["api"].items():
            if isinstance(value, str):
                client.urls["api"][name] = re.sub(r"^https?://[^/]+", venue.url, value)
        try:
            await client.load_time_difference()  # the market's day is not the host's
            await body(client)
        finally:
            await client.close()

    asyncio.run(whole())


def test_ccxt_trades_with_nothing_changed_but_its_urls(venue: Running) -> None:
    async def body(client: ccxt.binanceusdm) -> None:
        markets = await client.load_markets()
        btc = markets["BTC/USDT:USDT"]
        assert (btc["precision"]["amount"], btc["precision"]["price"]) == (0.001, 0.1)
        assert btc["limits"]["cost"]["min"] == 50
        before = await client.fetch_balance()
        assert before["USDT"]["total"] == pytest.approx(10000, abs=200)
        symbol = "ETH/USDT:USDT"
        ticker = await client.fetch_ticker(symbol)
        book = await client.fetch_order_book(symbol, 5)
        assert len(book["bids"]) == 5 and book["bids"][0][0] < book["asks"][0][0]
        assert len(await client.fetch_ohlcv(symbol, "5m", limit=130)) == 130
        assert await client.fetch_trades(symbol, limit=3)
        made = await client.create_order(symbol, "market", "buy", 0.5)
        order = await client.fetch_order(made["id"], symbol)
        assert order["status"] == "closed" and order["filled"] == 0.5 and order["average"] > 0
        [position] = await client.fetch_positions([symbol])
        assert position["contracts"] == 0.5 and position["side"] == "long"
        trigger = client.price_to_precision(symbol, ticker["last"] * 0.9)
        stop = await client.create_order(
            symbol, "market", "sell", 0.5, None, {"stopLossPrice": trigger, "reduceOnly": True}
        )
        [seen] = await client.fetch_open_orders(symbol, params={"trigger": True})
        assert seen["id"] == stop["id"] and await client.fetch_open_orders(symbol) == []
        await client.cancel_order(stop["id"], symbol, {"trigger": True})
        limit = await client.create_order(symbol, "limit", "buy", 0.1, ticker["last"] * 0.97)
        await client.cancel_order(limit["id"], symbol)
        with pytest.raises(ccxt.OrderNotFound):
            await client.cancel_order(limit["id"], symbol)
        await client.create_order(symbol, "market", "sell", 0.5, None, {"reduceOnly": True})
        assert await client.fetch_positions([symbol]) == []
        trades = await client.fetch_my_trades(symbol)
        assert sum(t["amount"] for t in trades if t["side"] == "buy") == pytest.approx(0.5)
        assert all(t["fee"]["currency"] == "USDT" for t in trades)

    trade_with(venue, body)


ORDER = "symbol=BTCUSDT&side=BUY&type=LIMIT&timeInForce=GTC&quantity=0.010&price="


@pytest.mark.parametrize(
    ("method", "path", "query", "spoil", "expected"),
    [
        ("POST", "order", ORDER + "1", {}, (400, -4164)),
        ("POST", "order", ORDER + "60000.05", {}, (400, -4014)),
        ("POST", "order", ORDER + "60000.001", {}, (400, -1111)),
        ("POST", "order", ORDER.replace("BTC", "XXX") + "1", {}, (400, -1121)),
        ("POST", "order", ORDER + "60000&type=NOPE", {}, (400, -1116)),
        ("POST", "order", "symbol=BTCUSDT&side=SELL&type=STOP_MARKET&quantity=1", {}, (400, -4120)),
        ("POST", "order", "symbol=BTCUSDT&side=SELL&type=MARKET&quantity=1&reduceOnly=true", {},
         (400, -2022)),
        ("POST", "order", "symbol=BTCUSDT&side=SELL&type=MARKET&quantity=100", {}, (400, -2019)),
        ("POST", "order", ORDER + "60000", {"secret": "other"}, (400, -1022)),
        ("POST", "order", ORDER + "60000", {"key": "other"}, (401, -2015)),
        ("POST", "order", ORDER + "60000", {"key": ""}, (401, -2014)),
        ("POST", "order", ORDER + "60000", {"timestamp": "1"}, (400, -1021)),
        ("POST", "order", ORDER + "60000", {"timestamp": "9999999999999"}, (400, -1021)),
        ("DELETE", "order", "symbol=BTCUSDT&orderId=1", {}, (400, -2011)),
        ("GET", "order", "symbol=BTCUSDT&orderId=1", {}, (400, -2013)),
        ("GET", "order", "symbol=BTCUSDT", {}, (400, -1102)),
        ("DELETE", "algoOrder", "algoId=1", {}, (400, -2011)),
        ("GET", "algoOrder", "clientAlgoId=nobody", {}, (400, -2013)),
        ("POST", "marginType", "symbol=BTCUSDT&marginType=CROSSED", {}, (400, -4046)),
        ("POST", "positionSide/dual", "dualSidePosition=false", {}, (400, -4059)),
        ("POST", "leverage", "symbol=BTCUSDT&leverage=151", {}, (400, -4028)),
        ("PUT", "listenKey", "", {}, (400, -1125)),
    ],
)  # fmt: skip
def test_a_wrong_call_gets_the_exchange_s_status_and_code(
    venue: Running, method: str, path: str, query: str, spoil: dict[str, str],
    expected: tuple[int, int],
) -> None:  # fmt: skip
    status, body, headers = venue.signed(method, "/fapi/v1/" + path, query, **spoil)
    assert (status, body["code"]) == expected and body["msg"]
    assert int(headers["X-MBX-USED-WEIGHT-1M"]) >= 0


def test_the_signature_covers_the_bytes_as_sent(venue: Running) -> None:
    """A known vector of the exchange's documentation, and a query with raw brackets."""
    from venue.rest import signature_refusal

    secret = b"test"
    raw = b'batch=[{"a":1}]&timestamp=1'
    good = hmac.new(secret, raw, hashlib.sha256).hexdigest().encode()
    assert signature_refusal(raw + b"&signature=" + good, b"") is None
    assert signature_refusal(b"", raw + b"&signature=" + good) is None
    assert signature_refusal(raw.replace(b"[", b"%5B") + b"&signature=" + good, b"") is not None


def test_order_replies_have_no_mean_price_and_count_in_the_headers(venue: Running) -> None:
    query = "symbol=SOLUSDT&side=BUY&type=MARKET&quantity=1.0&newOrderRespType=RESULT"
    status, body, headers = venue.signed("POST", "/fapi/v1/order", query)
    assert status == 200 and body["status"] == "FILLED"
    assert "avgPrice" not in body and "cumQuote" not in body and body["executedQty"] == "1.0"
    assert int(headers["X-MBX-ORDER-COUNT-10S"]) >= 1 and headers["X-MBX-ORDER-COUNT-1M"]
    named = f"symbol=SOLUSDT&orderId={body['orderId']}"
    _, seen, _ = venue.signed("GET", "/fapi/v1/order", named)
    assert D(seen["avgPrice"]) > 0 and D(seen["cumQuote"]) == D(seen["avgPrice"])
    venue.signed("POST", "/fapi/v1/order", query.replace("BUY", "SELL") + "&reduceOnly=true")


def user_key(venue: Running) -> str:
    request = urllib.request.Request(
        venue.url + "/fapi/v1/listenKey", method="POST", headers={"X-MBX-APIKEY": "test"}
    )
    with urllib.request.urlopen(request) as reply:
        return str(json.load(reply)["listenKey"])


def test_a_fill_is_told_as_lite_account_and_order_update_and_agrees_with_the_ledger(
    venue: Running,
) -> None:
    async def body() -> None:
        key = user_key(venue)
        assert user_key(venue) == key and len(key) == 64
        async with connect(f"{venue.ws}/private/ws/{key}") as stream:
            await stream.send('{"method":"LIST_SUBSCRIPTIONS","id":1}')
            assert json.loads(await stream.recv()) == {"result": [], "id": 1}
            _, placed, _ = await asyncio.to_thread(
                venue.signed, "POST", "/fapi/v1/order",
                "symbol=BNBUSDT&side=BUY&type=MARKET&quantity=0.10&newClientOrderId=burst-1",
            )  # fmt: skip
            told = [json.loads(await stream.recv()) for _ in range(4)]
            assert [t["e"] for t in told] == [
                "ORDER_TRADE_UPDATE", "TRADE_LITE", "ACCOUNT_UPDATE", "ORDER_TRADE_UPDATE",
            ]  # fmt: skip
            assert told[0]["o"]["x"] == told[0]["o"]["X"] == "NEW"
            lite, money, done = told[1], told[2]["a"], told[3]["o"]
            assert done["X"] == "FILLED" and done["c"] == lite["c"] == "burst-1"
            assert done["i"] == lite["i"] == placed["orderId"] and lite["t"] == done["t"]
            assert D(done["n"]) == (D(done["L"]) * D("0.1") * D("0.0005")).quantize(D("1e-8"))
            [held] = money["P"]
            assert D(held["pa"]) == D("0.1") and D(held["ep"]) == D(done["L"])
            events = venue.get("/venue/v1/ledger?limit=10000")["events"]
            [trade] = [e for e in events if e["type"] == "trade" and e["trade_id"] == lite["t"]]
            assert D(trade["balance_after"]) == D(money["B"][0]["wb"])
            assert D(trade["position_after"]) == D("0.1")
            assert [e["seq"] for e in events] == list(range(1, len(events) + 1))
            last = D(done["L"]) * D("0.9")
            trigger = f"{last:.1f}"
            query = "algoType=CONDITIONAL&symbol=BNBUSDT&side=SELL&type=STOP_MARKET"
            query += f"&closePosition=true&triggerPrice={trigger}&clientAlgoId=burst-s"
            _, algo, _ = await asyncio.to_thread(venue.signed, "POST", "/fapi/v1/algoOrder", query)
            assert algo["algoStatus"] == "NEW" and algo["closePosition"] is True
            assert json.loads(await stream.recv())["o"]["caid"] == "burst-s"
            query = "symbol=BNBUSDT&side=SELL&type=MARKET&quantity=0.10&reduceOnly=true"
            await asyncio.to_thread(venue.signed, "POST", "/fapi/v1/order", query)
            told = [json.loads(await stream.recv()) for _ in range(5)]
            assert told[-1]["e"] == "ALGO_UPDATE" and told[-1]["o"]["X"] == "EXPIRED"

    asyncio.run(body())


async def listen(venue: Running, url: str, names: list[str], into: list[Any]) -> None:
    async with connect(venue.ws + url, compression=None, max_queue=None) as stream:
        await stream.send(json.dumps({"method": "SUBSCRIBE", "params": names, "id": 5}))
        try:
            async for text in stream:
                into.append(json.loads(text))
        except websockets.ConnectionClosed:
            return


def test_a_pause_tells_exactly_what_each_socket_was_sent_and_candles_agree(
    tmp_path: Path,
) -> None:
    venue = Running(tmp_path, "--symbols", "3", "--rate", "3000", "--speed", "60", "--seed", "3")
    symbols = ("btcusdt", "ethusdt", "solusdt")
    heard: dict[str, list[Any]] = {"market": [], "public": []}

    async def body() -> None:
        names = [f"{s}@aggTrade" for s in symbols] + [f"{s}@markPrice@1s" for s in symbols]
        tasks = [
            asyncio.create_task(listen(venue, "/market/stream", names, heard["market"])),
            asyncio.create_task(
                listen(
                    venue, "/public/stream", [f"{s}@bookTicker" for s in symbols], heard["public"]
                )
            ),
        ]
        await asyncio.sleep(5)
        await asyncio.to_thread(venue.post, "/venue/v1/pause")
        await asyncio.sleep(0.3)
        for task in tasks:
            task.cancel()

    asyncio.run(body())
    try:
        paused = venue.get("/venue/v1/status")
        sent = venue.get("/venue/v1/sent")
        assert (
            paused["paused"] and venue.get("/venue/v1/status")["market_ms"] == paused["market_ms"]
        )
        trades = [m["data"] for m in heard["market"] if m.get("stream", "").endswith("aggTrade")]
        by_path = {c["path"]: c for c in sent["connections"]}
        assert by_path["/market/stream"]["trades"] == len(trades)
        assert by_path["/market/stream"]["marks"] == len(heard["market"]) - len(trades) - 1
        assert by_path["/public/stream"]["quotes"] == len(heard["public"]) - 1
        for name in symbols:
            own = [t for t in trades if t["s"] == name.upper()]
            made = sent["symbols"][name.upper()]
            ids = [t["a"] for t in own]
            assert ids == list(range(ids[0], made["last_id"] + 1))
            assert made["trades"] == made["last_id"] - made["first_id"] + 1
            compare_candles(venue, name.upper(), own)
        times = [m["data"]["E"] for m in heard["market"] if "data" in m]
        assert times == sorted(times)
    finally:
        venue.post("/venue/v1/resume")
        assert venue.stop() == 0


def compare_candles(venue: Running, symbol: str, trades: list[Any]) -> None:
    """Every 1m candle that was heard whole equals the venue's."""
    rows = {r[0]: r for r in venue.get(f"/fapi/v1/klines?symbol={symbol}&interval=1m&limit=1500")}
    minutes = sorted({t["T"] // 60_000 * 60_000 for t in trades})
    assert len(minutes) > 3
    for minute in minutes[1:]:
        own = [t for t in trades if t["T"] // 60_000 * 60_000 == minute]
        prices, row = [D(t["p"]) for t in own], rows[minute]
        assert [D(v) for v in row[1:5]] == [prices[0], max(prices), min(prices), prices[-1]]
        assert D(row[5]) == sum(D(t["q"]) for t in own)
        assert D(row[7]) == sum(D(t["q"]) * D(t["p"]) for t in own)
        assert row[8] == sum(t["l"] - t["f"] + 1 for t in own)
        assert D(row[9]) == sum(D(t["q"]) for t in own if not t["m"])


def test_agg_trades_by_rest_are_the_streamed_ones(venue: Running) -> None:
    rows = venue.get("/fapi/v1/aggTrades?symbol=BTCUSDT&limit=1000")
    ids = [r["a"] for r in rows]
    assert ids == list(range(ids[0], ids[0] + len(ids)))
    again = venue.get(f"/fapi/v1/aggTrades?symbol=BTCUSDT&fromId={ids[1]}&limit=2")
    assert again == rows[1:3]
    start, end = rows[2]["T"], rows[5]["T"]
    span = venue.get(f"/fapi/v1/aggTrades?symbol=BTCUSDT&startTime={start}&endTime={end}")
    assert span == [r for r in rows if start <= r["T"] <= end]


@pytest.mark.parametrize(
    ("route", "stream", "heard"),
    [
        ("/public/ws", "btcusdt@bookTicker", True),
        ("/public/ws", "btcusdt@aggTrade", False),
        ("/market/ws", "btcusdt@aggTrade", True),
        ("/market/ws/0", "btcusdt@bookTicker", False),
        ("/ws", "btcusdt@bookTicker", True),
        ("/ws", "btcusdt@aggTrade", False),
        ("/market/ws", "BTCUSDT@aggTrade", False),
        ("/market/ws", "!markPrice@arr@1s", True),
    ],
)
def test_each_route_acks_everything_and_serves_its_own(
    venue: Running, route: str, stream: str, heard: bool
) -> None:
    async def body() -> None:
        async with connect(venue.ws + route, compression=None) as socket:
            await socket.send(json.dumps({"method": "SUBSCRIBE", "params": [stream], "id": 9}))
            assert json.loads(await socket.recv()) == {"result": None, "id": 9}
            await socket.send('{"method":"LIST_SUBSCRIPTIONS","id":10}')
            texts: list[Any] = []
            while not any(isinstance(t, dict) and t.get("id") == 10 for t in texts):
                texts.append(json.loads(await socket.recv()))
            if heard:
                while len(texts) < 3:
                    texts.append(json.loads(await socket.recv()))
            else:
                with pytest.raises(TimeoutError):
                    await asyncio.wait_for(socket.recv(), 0.5)

    asyncio.run(body())


def test_too_many_streams_or_messages_close_the_socket(venue: Running) -> None:
    async def body() -> None:
        names = [f"s{k}@aggTrade" for k in range(1024)]
        async with connect(venue.ws + "/market/ws") as socket:
            await socket.send(json.dumps({"method": "SUBSCRIBE", "params": names, "id": 1}))
            assert json.loads(await socket.recv())["result"] is None
            await socket.send('{"method":"SUBSCRIBE","params":["one@aggTrade"],"id":2}')
            assert json.loads(await socket.recv())["error"]["code"] == 4
            with pytest.raises(websockets.ConnectionClosed) as closed:
                await socket.recv()
            assert closed.value.rcvd is not None and closed.value.rcvd.code == 1008

    asyncio.run(body())


def test_a_resumed_venue_goes_on_with_world_account_orders_and_ids(tmp_path: Path) -> None:
    options = ("--symbols", "2", "--rate", "500", "--seed", "9")
    first = Running(tmp_path, *options)
    first.signed("POST", "/fapi/v1/order", "symbol=ETHUSDT&side=BUY&type=MARKET&quantity=0.100")
    price = D(first.get("/fapi/v1/ticker/bookTicker?symbol=ETHUSDT")["bidPrice"]) * D("0.96")
    query = f"symbol=ETHUSDT&side=BUY&type=LIMIT&timeInForce=GTC&quantity=0.100&price={price:.2f}"
    _, resting, _ = first.signed("POST", "/fapi/v1/order", query)
    was = first.get("/venue/v1/status")
    assert first.stop() == 0
    second = Running(tmp_path, "--resume")
    try:
        now = second.get("/venue/v1/status")
        assert now["world"] == was["world"] and now["seed"] == 9
        assert was["market_ms"] <= now["market_ms"] < was["market_ms"] + 20 * 60_000
        _, orders, _ = second.signed("GET", "/fapi/v1/openOrders", "")
        assert [o["orderId"] for o in orders] == [resting["orderId"]]
        _, account, _ = second.signed("GET", "/fapi/v3/account", "")
        assert [p["positionAmt"] for p in account["positions"]] == ["0.100"]
        events = second.get("/venue/v1/ledger?limit=10000")["events"]
        balance = [e["balance_after"] for e in events if "balance_after" in e][-1]
        assert D(account["totalWalletBalance"]) == D(balance)
        file = [json.loads(x) for x in (tmp_path / "ledger.jsonl").read_text().splitlines()]
        assert [e["seq"] for e in file] == list(range(1, len(file) + 1))
        ids = [r["a"] for r in second.get("/fapi/v1/aggTrades?symbol=ETHUSDT&limit=1000")]
        assert ids == list(range(1_000_001, 1_000_001 + len(ids)))
    finally:
        assert second.stop() == 0


def failing(*options: str) -> tuple[int, str]:
    argv = [sys.executable, "-m", "venue.main", *options]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=60)
    return done.returncode, done.stderr


def test_a_world_of_another_version_is_refused_in_one_sentence(tmp_path: Path) -> None:
    first = Running(tmp_path, "--symbols", "2", "--rate", "500")
    assert first.stop() == 0
    with np.load(tmp_path / "market.npz") as kept:
        arrays = dict(kept)
    arrays["record_closed"] = arrays["record_closed"][..., :-2]
    np.savez(tmp_path / "market.npz", **arrays)
    code, said = failing("--port", "0", "--resume", "--state", str(tmp_path))
    assert code == 1 and said.count("\n") == 1 and "another version" in said


def test_a_bad_start_is_one_sentence_and_exit_1(venue: Running, tmp_path: Path) -> None:
    port = venue.url.rpartition(":")[2]
    no_tape = tmp_path / "no.gz"
    no_tape.write_text("nothing")
    state = ("--state", str(tmp_path / "s"))
    for options in (
        ("--port", port, "--symbols", "2", *state),  # taken: and nothing was written
        ("--port", "0", "--tape", str(no_tape), *state),
    ):
        code, text = failing(*options)
        assert code == 1 and len(text.strip().splitlines()) == 1, text
    assert not (tmp_path / "s").exists()
    assert failing("--symbols", "1001")[0] == 2


@pytest.mark.skipif(not CAPTURE.exists(), reason=f"the real capture {CAPTURE} is not here")
def test_the_capture_is_served_in_today_s_form(tmp_path: Path) -> None:
    venue = Running(tmp_path, "--tape", str(CAPTURE), "--speed", "5", "--symbols", "2")

    async def body() -> None:
        async with connect(venue.ws + "/public/ws/btcusdt@bookTicker") as socket:
            quote = json.loads(await socket.recv())
            assert list(quote) == ["e", "u", "s", "ps", "b", "B", "a", "A", "T", "E", "st"]

    try:
        asyncio.run(body())
        assert venue.get("/venue/v1/status")["taped_symbols"] == ["BTCUSDT"]
    finally:
        assert venue.stop() == 0


def test_a_request_takes_its_latency_half_before_and_half_after_it_is_carried_out(
    tmp_path: Path,
) -> None:
    venue = Running(
        tmp_path, "--symbols", "2", "--rate", "50", "--speed", "2", "--latency-ms", "300"
    )
    try:
        before = venue.get("/venue/v1/status")["market_ms"]  # the venue's own calls take none
        told = venue.get("/fapi/v1/time")["serverTime"]
        after = venue.get("/venue/v1/status")["market_ms"]
        assert told - before >= 2 * 150 and after - told >= 2 * 150
    finally:
        assert venue.stop() == 0


@pytest.mark.parametrize(
    ("text", "wanted"), [("0", (0, 0)), ("40", (40, 40)), ("20-60.5", (20, 60.5))]
)
def test_a_latency_is_a_number_or_a_range(text: str, wanted: tuple[float, float]) -> None:
    assert latency_of(text) == wanted


@pytest.mark.parametrize("text", ["", "-", "-5", "60-20", "1-2-3", "nan", "70000", "x"])
def test_another_latency_is_none(text: str) -> None:
    with pytest.raises(ValueError):
        latency_of(text)
