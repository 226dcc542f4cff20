"""Klines, tickers, single trades, liquidations as streams; ccxt.pro with only its URLs set."""

from __future__ import annotations

import asyncio
import json
import re
import urllib.error
import urllib.request
from collections.abc import Awaitable, Callable
from decimal import Decimal as D
from itertools import pairwise
from pathlib import Path
from typing import Any

import ccxt.pro
import orjson
import pytest
from websockets.asyncio.client import connect

from tests.test_venue_depth import drive, world
from tests.test_venue_server import Running, listen
from venue import bars, exchange, looks, matching, public, rest
from venue.checks import parse
from venue.exchange import Exchange, Moment
from venue.market import AGG, EVENT_MS, ID, KIND, MARK, P1, P2, Q1, Q2, SYM
from venue.orders import Refusal
from venue.prints import prints

TICKER = ["e", "E", "s", "ps", "p", "P", "w", "c", "Q", "o", "h", "l", "v", "q", "O", "C", "F",
          "L", "n", "st"]  # fmt: skip
KLINE = ["t", "T", "s", "i", "f", "L", "o", "c", "h", "l", "v", "n", "x", "q", "V", "Q", "B"]


def ask(made: Exchange, path: str, **params: str) -> Any:
    """A public REST call at the market's present time."""
    call = rest.Call(made, rest.Desk(), params, Moment(int(made.made_until_ms), 0))
    return public.ROUTES["GET", path].handler(call)


def of(said: list[tuple[str, bytes]], name: str) -> list[Any]:
    return [orjson.loads(payload) for stream, payload in said if stream == name]


@pytest.mark.parametrize("interval", bars.TIMEFRAMES)
def test_each_candle_closes_once_as_rest_gives_it_however_the_market_is_stepped(
    interval: str,
) -> None:
    name, made = f"ethusdt@kline_{interval}", world(rate=200.0)
    said = drive(made, {name}, 31 * 60_000, 400)
    assert said == drive(world(rate=200.0), {name}, 31 * 60_000, 977)
    events = of(said, name)
    assert all(list(e) == ["e", "E", "s", "k"] and list(e["k"]) == KLINE for e in events)
    done = [e["k"] for e in events if e["k"]["x"]]
    rows = ask(made, "/fapi/v1/klines", symbol="ETHUSDT", interval=interval, limit="1500")
    by_open = {row[0]: row for row in rows}
    span_ms = int(bars.SPAN_MS[bars.TIMEFRAMES.index(interval)])
    from_ms, to_ms = made.t0_ms // span_ms * span_ms, int(made.made_until_ms) - span_ms
    expected = [row[0] for row in rows if from_ms <= row[0] <= to_ms]
    assert [k["t"] for k in done] == expected and expected
    last = events[-1]["k"]
    for k in (*done, last):
        shown = [k[c] for c in ("t", "o", "h", "l", "c", "v", "T", "q", "n", "V", "Q", "B")]
        assert k is last or shown == by_open[k["t"]]
    assert last["t"] == rows[-1][0]
    opens = [e["k"]["t"] for e in events]
    assert opens == sorted(opens)
    assert all(not a["k"]["x"] or b["k"]["t"] > a["k"]["t"] for a, b in pairwise(events))


def test_a_minute_without_a_trade_closes_once_without_ids() -> None:
    made = world(rate=0.0)
    events = of(drive(made, {"btcusdt@kline_1m"}, 3 * 60_000, 50), "btcusdt@kline_1m")
    assert [e["k"]["x"] for e in events] == [True] * 3
    assert all((e["k"]["f"], e["k"]["L"], e["k"]["n"]) == (-1, -1, 0) for e in events)
    assert all(e["E"] == e["k"]["T"] + 1 for e in events)


def test_tickers_are_the_day_of_rest_and_the_array_has_only_what_traded() -> None:
    made = world(rate=20.0)
    names = {"btcusdt@ticker", "btcusdt@miniTicker", "!ticker@arr", "!miniTicker@arr"}
    said = drive(made, names, 3 * 3_600_000, 3 * 60)
    ticker = of(said, "btcusdt@ticker")[-1]
    assert list(ticker) == TICKER and ticker["E"] % 2000 == 0
    row = ask(made, "/fapi/v1/ticker/24hr", symbol="BTCUSDT")
    pairs = {"o": "openPrice", "h": "highPrice", "l": "lowPrice", "O": "openTime", "F": "firstId"}
    assert all(ticker[short] == row[long] for short, long in pairs.items())
    newest = bars.trades(made.record, 0)[-1]
    assert (ticker["L"], ticker["c"]) == (newest[4], row["lastPrice"])
    assert (ticker["n"], ticker["v"]) == (row["count"], row["volume"])
    assert (ticker["Q"], ticker["q"]) == (row["lastQty"], row["quoteVolume"])
    mini = of(said, "btcusdt@miniTicker")[-1]
    assert mini["e"] == "24hrMiniTicker" and mini["E"] == ticker["E"]
    assert all(mini[key] == ticker[key] for key in "cohlvq")
    whole = of(said, "!ticker@arr")
    sizes = {len(frame) for frame in whole}
    assert all(frame for frame in whole) and min(sizes) < 3 == max(sizes)
    for before, after in pairwise([r for f in whole for r in f if r["s"] == "ETHUSDT"]):
        assert after["L"] > before["L"] >= before["F"]


def test_a_day_is_24_hours_of_candles_across_birth() -> None:
    made = world(1, rate=20.0)
    for _ in range(30):
        row = ask(made, "/fapi/v1/ticker/24hr", symbol="BTCUSDT")
        now_ms = int(made.made_until_ms)
        hours = ask(made, "/fapi/v1/klines", symbol="BTCUSDT", interval="1h", limit="30")
        hours = [h for h in hours if h[0] > now_ms - 86_400_000]
        traded = [h for h in hours if h[8]]
        assert len(hours) == 24 and row["openTime"] == hours[0][0]
        assert row["openPrice"] == traded[0][1] and row["lastPrice"] == traded[-1][4]
        assert D(row["highPrice"]) == max(D(h[2]) for h in traded)
        assert D(row["lowPrice"]) == min(D(h[3]) for h in traded)
        assert D(row["volume"]) == sum(D(h[5]) for h in hours)
        assert row["count"] == sum(h[8] for h in hours)
        for _ in exchange.advance(made, made.made_until_ms + 3_600_000, 0):
            pass


def test_all_books_are_told_every_five_seconds_with_the_quote_of_then() -> None:
    made = world()
    events = of(drive(made, {"!bookTicker"}, 20_000, 33), "!bookTicker")
    assert {e["E"] % 5000 for e in events} == {0} and len(events) == 4 * 3
    assert list(events[0]) == ["e", "u", "s", "ps", "b", "B", "a", "A", "T", "E", "st"]
    shown = ask(made, "/fapi/v1/ticker/bookTicker", symbol="BTCUSDT")
    last = events[-3]  # of the look at the very end
    assert (last["s"], last["u"]) == ("BTCUSDT", shown["lastUpdateId"])
    assert (last["b"], last["A"]) == (shown["bidPrice"], shown["askQty"])


def test_single_trades_have_every_id_once_and_sum_to_their_aggregate() -> None:
    made, rows = world(), []
    watch, index = looks.Watch(), {s.name.lower(): s.index for s in made.specs}
    watch.hear({"solusdt@trade"}, made, index)
    said = []
    for _ in range(50):
        for count in exchange.advance(made, made.made_until_ms + 400, 0):
            rows += [r.copy() for r in made.rows[:count] if (r[KIND], r[SYM]) == (AGG, 2)]
        said += [orjson.loads(payload) for _, payload in watch.looks(made)]
    assert [t["t"] for t in said] == list(range(rows[0][P2], rows[-1][Q2] + 1))
    s = made.specs[2]
    for row in rows:
        own = [t for t in said if row[P2] <= t["t"] <= row[Q2]]
        assert sum(D(t["q"]) for t in own) == s.qty_of(int(row[Q1])) and row[ID] > 0
        assert {D(t["p"]) for t in own} == {s.price_of(int(row[P1]))}
    assert list(said[0]) == ["e", "E", "T", "s", "t", "p", "q", "X", "m", "st"]


@pytest.mark.parametrize(("qty", "sizes"), [(2, [1, 1]), (3, [1, 1, 1]), (7, [3, 2, 2])])
def test_prints_share_a_size_in_whole_units_and_none_is_empty(qty: int, sizes: list[int]) -> None:
    assert [p.qty for p in prints([[1, 100, qty, 10, 12, 5, 1]])] == sizes


def test_a_liquidation_is_told_on_its_symbol_and_on_all_and_never_without_one() -> None:
    made = world()
    exchange.open_account(made, Moment(made.t0_ms, 0))
    names = {"btcusdt@forceOrder", "ethusdt@forceOrder", "!forceOrder@arr"}
    watch, index = looks.Watch(), {s.name.lower(): s.index for s in made.specs}
    watch.hear(names, made, index)
    book = exchange.refresh(made, "BTCUSDT")
    wanted = {"symbol": "BTCUSDT", "side": "BUY", "type": "MARKET", "quantity": "1.5"}
    request = parse(wanted, "x")
    assert not isinstance(request, Refusal)
    placed, events = matching.place(made.account, request, made.t0_ms)
    assert not isinstance(placed, Refusal), placed
    exchange.tell(made, events)
    for _ in exchange.advance(made, made.made_until_ms + 1000, 0):
        pass
    assert list(watch.looks(made)) == []
    crash = matching.MarketMark("BTCUSDT", book.mark * D("0.85"))
    exchange.tell(made, matching.match(made.account, crash, made.t0_ms + 1))
    for _ in exchange.advance(made, made.made_until_ms + 1000, 0):
        pass
    said = list(watch.looks(made))
    assert {name for name, _ in said} == {"btcusdt@forceOrder", "!forceOrder@arr"}
    event = orjson.loads(said[0][1])
    assert list(event) == ["e", "E", "o"] and event["e"] == "forceOrder"
    keys = ["s", "S", "o", "f", "q", "p", "ap", "X", "l", "z", "T", "ps", "st"]
    order = event["o"]
    assert list(order) == keys and (order["S"], order["X"], order["f"]) == ("SELL", "FILLED", "IOC")
    assert order["q"] == order["z"] == "1.500" and D(order["p"]) > 0
    for _ in exchange.advance(made, made.made_until_ms + 5000, 0):
        pass
    assert list(watch.looks(made)) == []


def test_rest_trades_are_the_prints_of_the_aggregates_and_go_on_from_an_id() -> None:
    made = world()
    for _ in exchange.advance(made, made.made_until_ms + 120_000, 0):
        pass
    rows = ask(made, "/fapi/v1/trades", symbol="ETHUSDT", limit="1000")
    assert list(rows[0]) == ["id", "price", "qty", "quoteQty", "time", "isBuyerMaker", "isRPITrade"]
    newest = ask(made, "/fapi/v1/aggTrades", symbol="ETHUSDT", limit="1000")
    ids = [r["id"] for r in rows]
    assert ids == list(range(newest[-1]["l"] - 999, newest[-1]["l"] + 1))
    for a in newest[-100:]:
        own = [r for r in rows if a["f"] <= r["id"] <= a["l"]]
        assert sum(D(r["qty"]) for r in own) == D(a["q"]) and len(own) == a["l"] - a["f"] + 1
        for r in own:
            assert (r["price"], r["time"], r["isBuyerMaker"]) == (a["p"], a["T"], a["m"])
            assert D(r["quoteQty"]) == D(r["price"]) * D(r["qty"])
    assert ask(made, "/fapi/v1/trades", symbol="ETHUSDT", limit="7") == rows[-7:]
    path = "/fapi/v1/historicalTrades"
    for at in range(5):  # the id may lie within an aggregate
        again = ask(made, path, symbol="ETHUSDT", fromId=str(ids[at]), limit="9")
        assert again == rows[at : at + 9]
    assert ask(made, path, symbol="ETHUSDT", limit="3") == rows[-3:]
    assert ask(made, path, symbol="ETHUSDT", fromId=str(ids[-1] + 1)) == []


def test_funding_was_settled_at_the_published_mark_and_paid_at_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made, marks, paid = world(2, rate=50.0), {}, []
    due = made.next_funding_ms
    real = matching.match

    def spy(account: Any, event: Any, now: int) -> Any:
        if isinstance(event, matching.FundingDue):
            paid.append((now, account.books[event.symbol].mark))
        return real(account, event, now)

    monkeypatch.setattr(matching, "match", spy)
    monkeypatch.setattr(matching, "watched", lambda account: {"BTCUSDT"})
    assert ask(made, "/fapi/v1/fundingRate", symbol="BTCUSDT") == []
    until_ms = made.made_until_ms
    while until_ms < due + 2 * 8 * 3_600_000 + 1:
        until_ms += 3_600_000 + 777
        for count in exchange.advance(made, until_ms, int(until_ms)):
            rows = made.rows[:count]
            for r in rows[(rows[:, KIND] == MARK) & (rows[:, EVENT_MS] % (8 * 3_600_000) == 0)]:
                marks[int(r[EVENT_MS]), int(r[SYM])] = D(int(r[P1])).scaleb(-8)
    rows = ask(made, "/fapi/v1/fundingRate", symbol="BTCUSDT")
    assert [r["fundingTime"] for r in rows] == [due + k * 8 * 3_600_000 for k in range(3)]
    assert [(r["fundingTime"], D(r["markPrice"])) for r in rows] == paid
    assert all(D(r["markPrice"]) == marks[r["fundingTime"], 0] for r in rows)
    keys = ["symbol", "fundingTime", "fundingRate", "markPrice", "rateType"]
    assert list(rows[0]) == keys and rows[0]["fundingRate"] == "0.00010000"
    both = ask(made, "/fapi/v1/fundingRate")
    assert [r["symbol"] for r in both] == ["BTCUSDT", "ETHUSDT"] * 3
    path = "/fapi/v1/fundingRate"
    assert ask(made, path, symbol="BTCUSDT", limit="1") == rows[-1:]
    assert ask(made, path, symbol="BTCUSDT", startTime=str(due), limit="1") == rows[:1]
    assert ask(made, path, symbol="BTCUSDT", startTime=str(due + 1)) == rows[1:]
    assert ask(made, path, symbol="BTCUSDT", endTime=str(due)) == rows[:1]


@pytest.mark.parametrize(
    ("path", "params", "code"),
    [
        ("trades", {}, -1102),
        ("trades", {"symbol": "BTCUSDT", "limit": "1001"}, -1130),
        ("historicalTrades", {"symbol": "BTCUSDT", "limit": "1001"}, -1130),
        ("continuousKlines", {"contractType": "PERPETUAL", "interval": "1m"}, -1102),
        ("continuousKlines", {"pair": "BTCUSDT", "interval": "1m"}, -1102),
        ("continuousKlines", {"pair": "X", "contractType": "PERPETUAL", "interval": "1m"}, -4144),
        ("continuousKlines", {"pair": "BTCUSDT", "contractType": "X", "interval": "1m"}, -4104),
        ("continuousKlines", {"pair": "BTCUSDT", "contractType": "PERPETUAL"}, -1120),
        ("continuousKlines", {"pair": "BTCUSDT", "contractType": "PERPETUAL", "interval": "1m",
                              "limit": "1501"}, -1130),
        ("fundingRate", {"limit": "1001"}, -1130),
    ],
)  # fmt: skip
def test_a_wrong_question_gets_the_exchange_s_code(
    path: str, params: dict[str, str], code: int
) -> None:
    answer = ask(world(1), f"/fapi/v1/{path}", **params)
    assert isinstance(answer, Refusal) and answer.code == code


def test_continuous_klines_are_the_klines_of_the_perpetual() -> None:
    made = world(1, rate=100.0)
    params = {"interval": "5m", "limit": "200"}
    rows = ask(made, "/fapi/v1/klines", symbol="BTCUSDT", **params)
    path = "/fapi/v1/continuousKlines"
    perpetual = ask(made, path, pair="BTCUSDT", contractType="PERPETUAL", **params)
    assert perpetual == rows and len(rows) == 200
    assert ask(made, path, pair="BTCUSDT", contractType="CURRENT_QUARTER", **params) == []


def test_rest_asks_for_a_key_and_counts_weights(venue: Running) -> None:
    def used(path: str) -> int:
        with urllib.request.urlopen(venue.url + path) as reply:
            return int(reply.headers["X-MBX-USED-WEIGHT-1M"])

    query = "symbol=BTCUSDT&limit=5"
    costs = {"/fapi/v1/trades": 5, "/fapi/v1/fundingRate": 1, "/fapi/v2/ticker/price": 1}
    venue.post("/venue/v1/pause")  # one clock minute
    try:
        for path, weight in costs.items():
            before = used("/fapi/v1/ping?")
            assert used(f"{path}?{query}") == before + weight
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(f"{venue.url}/fapi/v1/historicalTrades?{query}")
        assert (refused.value.code, json.load(refused.value)["code"]) == (401, -2014)
        before = used("/fapi/v1/ping?")
        keyed = urllib.request.Request(
            f"{venue.url}/fapi/v1/historicalTrades?{query}", headers={"X-MBX-APIKEY": "test"}
        )
        with urllib.request.urlopen(keyed) as reply:
            assert int(reply.headers["X-MBX-USED-WEIGHT-1M"]) == before + 200
            assert json.load(reply) == venue.get(f"/fapi/v1/trades?{query}")
        assert venue.get(f"/fapi/v2/ticker/price?{query}")["symbol"] == "BTCUSDT"
    finally:
        venue.post("/venue/v1/resume")


@pytest.mark.parametrize(
    ("name", "route"),
    [
        ("btcusdt@kline_1m", "market"), ("btcusdt@kline_1d", "market"), ("btcusdt@kline_1s", None),
        ("btcusdt@kline", None), ("btcusdt@ticker", "market"), ("btcusdt@miniTicker", "market"),
        ("!ticker@arr", "market"), ("!miniTicker@arr", "market"), ("!bookTicker", "public"),
        ("btcusdt@forceOrder", "market"), ("!forceOrder@arr", "market"), ("!ticker", None),
        ("btcusdt@trade", "public"), ("BTCUSDT@ticker", None), ("nope@ticker", None),
    ],
)  # fmt: skip
def test_each_look_has_its_route(name: str, route: str | None) -> None:
    look = looks.parse(name, {"btcusdt": 0})
    assert (look.route if look else None) == route


async def until(done: Callable[[], bool], seconds: float) -> None:
    async with asyncio.timeout(seconds):
        while not done():
            await asyncio.sleep(0.005)


@pytest.fixture(scope="module")
def venue(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("streams")
    made = Running(folder, "--symbols", "3", "--rate", "600", "--seed", "11", "--speed", "30")
    yield made
    assert made.stop() == 0


def test_streamed_candles_are_those_of_the_streamed_trades(venue: Running) -> None:
    heard: list[Any] = []
    names = ["btcusdt@aggTrade", "btcusdt@kline_1m", "btcusdt@kline_5m"]

    async def body() -> None:
        task = asyncio.create_task(listen(venue, "/market/stream", names, heard))
        await until(lambda: sum(1 for m in heard if closed(m, "5m")) >= 2, 60)
        task.cancel()

    def closed(message: Any, interval: str) -> bool:
        k = message.get("data", {}).get("k")
        return k is not None and k["x"] and k["i"] == interval

    asyncio.run(body())
    trades = [m["data"] for m in heard if m.get("stream") == names[0]]
    compared = 0
    for interval, span_ms in (("1m", 60_000), ("5m", 300_000)):
        done = [m["data"]["k"] for m in heard if closed(m, interval)]
        assert [k["t"] for k in done] == list(range(done[0]["t"], done[-1]["t"] + 1, span_ms))
        for k in done:
            if k["t"] <= trades[0]["T"]:
                continue  # not heard from its start
            own = [t for t in trades if k["t"] <= t["T"] <= k["T"]]
            prices = [D(t["p"]) for t in own]
            assert [D(k[c]) for c in "ohlc"] == [prices[0], max(prices), min(prices), prices[-1]]
            assert D(k["v"]) == sum(D(t["q"]) for t in own)
            assert D(k["q"]) == sum(D(t["q"]) * D(t["p"]) for t in own)
            assert D(k["V"]) == sum(D(t["q"]) for t in own if not t["m"])
            assert (k["f"], k["L"]) == (own[0]["f"], own[-1]["l"])
            assert k["n"] == sum(t["l"] - t["f"] + 1 for t in own) == k["L"] - k["f"] + 1
            compared += 1
    assert compared >= 6


@pytest.mark.parametrize(
    ("route", "stream", "heard"),
    [
        ("/public/ws", "btcusdt@depth@100ms", True),
        ("/market/ws", "btcusdt@depth@100ms", False),
        ("/ws", "btcusdt@depth5", True),
        ("/ws", "btcusdt@kline_1m", False),
        ("/market/ws", "btcusdt@kline_1m", True),
        ("/public/ws", "btcusdt@ticker", False),
        ("/market/ws", "!miniTicker@arr", True),
        ("/public/ws", "!bookTicker", True),
        ("/market/ws", "!bookTicker", False),
        ("/public/ws", "btcusdt@trade", True),
        ("/public/ws", "btcusdt@depth@250ms", False),
    ],
)
def test_a_route_serves_its_own_looks_and_unsubscribing_ends_them(
    venue: Running, route: str, stream: str, heard: bool
) -> None:
    async def body() -> None:
        async with connect(venue.ws + route, compression=None, max_size=None) as socket:
            await socket.send(json.dumps({"method": "SUBSCRIBE", "params": [stream], "id": 9}))
            assert json.loads(await socket.recv()) == {"result": None, "id": 9}
            if not heard:
                with pytest.raises(TimeoutError):
                    await asyncio.wait_for(socket.recv(), 0.5)
                return
            for _ in range(3):
                assert "e" in str(json.loads(await asyncio.wait_for(socket.recv(), 5)))
            await socket.send(json.dumps({"method": "UNSUBSCRIBE", "params": [stream], "id": 8}))
            while json.loads(await socket.recv()) != {"result": None, "id": 8}:
                pass
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(socket.recv(), 0.5)

    asyncio.run(body())


def watch_with(venue: Running, body: Callable[[Any], Awaitable[None]]) -> None:
    """Runs a coroutine with an unmodified ccxt.pro client, pointed here by its URLs alone."""

    async def whole() -> None:
        client = ccxt.pro.binanceusdm({"enableRateLimit": False})
        for name, value in client.urls["api"].items():
            if isinstance(value, str):
                client.urls["api"][name] = re.sub(r"^https?://[^/]+", venue.url, value)
        client.urls["api"]["ws"]["linear"] = venue.ws + "/ws"
        try:
            async with asyncio.timeout(90):
                await body(client)
        finally:
            await client.close()

    asyncio.run(whole())


SYMBOL = "BTC/USDT:USDT"


def test_ccxt_pro_keeps_the_order_book_of_the_venue(tmp_path: Path) -> None:
    slow = Running(tmp_path, "--symbols", "2", "--rate", "30", "--seed", "5", "--speed", "1")

    async def body(client: Any) -> None:
        for _ in range(20):
            book = await client.watch_order_book(SYMBOL)
            assert book["bids"][0][0] < book["asks"][0][0]
        for _ in range(60):
            await client.watch_order_book(SYMBOL)
            await asyncio.to_thread(slow.post, "/venue/v1/pause")
            await asyncio.sleep(0.1)
            book, shown = client.orderbooks[SYMBOL], await client.fetch_order_book(SYMBOL, 1000)
            await asyncio.to_thread(slow.post, "/venue/v1/resume")
            if book["nonce"] == shown["nonce"]:
                assert [list(row) for row in book["bids"]] == shown["bids"]
                assert [list(row) for row in book["asks"]] == shown["asks"]
                assert len(book["bids"]) == 1000
                return
        raise AssertionError("no pause fell right after a look")

    try:
        watch_with(slow, body)
    finally:
        assert slow.stop() == 0


def test_ccxt_pro_watches_candles_ticker_and_trades_as_rest_has_them(venue: Running) -> None:
    async def body(client: Any) -> None:
        candles: dict[int, list[float]] = {}
        while len(candles) < 3:
            for row in await client.watch_ohlcv(SYMBOL, "1m"):
                candles[row[0]] = list(row)
        rows = {row[0]: row for row in await client.fetch_ohlcv(SYMBOL, "1m", limit=50)}
        whole = sorted(candles)[:-1]
        assert all(candles[ms] == rows[ms] for ms in whole) and len(whole) == 2

        for _ in range(3):  # a day loses its first hour once an hour: then look again
            before = await client.fetch_ticker(SYMBOL)
            seen = await client.watch_ticker(SYMBOL)
            full = await client.watch_ticker(SYMBOL, {"name": "ticker"})
            after = await client.fetch_ticker(SYMBOL)
            if before["info"]["openTime"] == after["info"]["openTime"]:
                break
        for ticker in (seen, full):
            assert before["open"] == ticker["open"] == after["open"]
            assert before["baseVolume"] <= ticker["baseVolume"] <= after["baseVolume"]
            assert before["high"] <= ticker["high"] <= after["high"]
            assert ticker["low"] <= ticker["last"] <= ticker["high"]
        assert full["change"] == pytest.approx(full["last"] - full["open"])

        trades: dict[str, Any] = {}
        while len(trades) < 100:
            trades |= {t["id"]: t for t in await client.watch_trades(SYMBOL)}
        aggregates = await client.fetch_trades(SYMBOL, limit=1000)
        compared = 0
        for row in (a["info"] for a in aggregates):
            own = [trades.get(str(k)) for k in range(int(row["f"]), int(row["l"]) + 1)]
            if all(own):
                assert sum(D(str(t["amount"])) for t in own) == D(row["q"])
                assert {t["price"] for t in own} == {float(row["p"])}
                assert {t["side"] for t in own} == {"sell" if row["m"] else "buy"}
                compared += 1
        assert compared > 20

    watch_with(venue, body)
