"""What clients that we do not know are known to do, each without its package: raw bytes and shapes.

Found by driving other people's clients at a running venue; the page names them.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import http.client
import json
import time
from collections.abc import Iterator
from decimal import Decimal as D
from pathlib import Path
from typing import Any

import pytest
from websockets.asyncio.client import connect

from tests.test_venue_server import Running, user_key
from venue import exchange, intervals, looks, rest
from venue.checks import check_percent
from venue.connection import parse_url
from venue.exchange import Exchange, Moment, Setup
from venue.klines import continuous_payload, kline_payload
from venue.rest import AHEAD_MS, RECV_WINDOW_MS, window_refusal
from venue.server import ROUTES
from venue.sockets import Hub
from venue.store import Store
from venue.symbols import listing

V1 = "/fapi/v1/"
KEY = "a1" * 32


@pytest.fixture(scope="module")
def venue(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("strangers")
    options = ("--symbols", "2", "--rate", "200", "--seed", "7", "--speed", "1", "--day", "now")
    made = Running(folder, *options)
    yield made
    assert made.stop() == 0


def asked(
    venue: Running, method: str, target: str, body: str = "", **headers: str
) -> tuple[int, bytes, dict[str, str]]:
    """A request as bytes go over the line, headers as they are written."""
    host, port = venue.url.removeprefix("http://").split(":")
    line = http.client.HTTPConnection(host, int(port), timeout=30)
    try:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        line.request(method, target, body or None, named)
        reply = line.getresponse()
        return reply.status, reply.read(), dict(reply.getheaders())
    finally:
        line.close()


def signature_of(payload: str) -> str:
    return hmac.new(b"test", payload.encode(), hashlib.sha256).hexdigest()


def wall_ms() -> int:
    return int(time.time() * 1000)


# the clock


@pytest.mark.parametrize("clock_ms", [1_000_000, 50_000_000])
@pytest.mark.parametrize(
    ("off_ms", "admitted"),
    [
        (-RECV_WINDOW_MS - 1, False),
        (-RECV_WINDOW_MS, True),
        (0, True),
        (AHEAD_MS - 1, True),
        (AHEAD_MS, False),
    ],
)
def test_a_stamp_is_judged_by_the_clock_that_it_is_nearer_to(
    clock_ms: int, off_ms: int, admitted: bool
) -> None:
    now = Moment(1_000_000, 0, 0, 50_000_000)
    refusal = window_refusal({"timestamp": str(clock_ms + off_ms)}, now, 1.0)
    assert (refusal is None) == admitted
    assert admitted or (refusal is not None and refusal.code == -1021)


def test_a_client_that_never_asks_for_the_time_is_let_in(venue: Running) -> None:
    query = f"timestamp={wall_ms()}"
    target = f"/fapi/v3/balance?{query}&signature={signature_of(query)}"
    assert asked(venue, "GET", target, X_MBX_APIKEY="test")[0] == 200


def test_the_market_s_day_is_the_host_s_when_it_is_told_so(venue: Running) -> None:
    told = venue.get(V1 + "time")["serverTime"]
    assert abs(told - wall_ms()) < 60_000  # a busy machine: the market waits when it is stopped
    start = told // 60_000 * 60_000 - 30 * 60_000
    rows = venue.get(f"{V1}klines?symbol=BTCUSDT&interval=1m&startTime={start}&limit=10")
    assert [r[0] for r in rows] == [start + k * 60_000 for k in range(10)]


def test_a_world_is_born_when_it_was_told_to_and_lives_again_from_its_file(tmp_path: Path) -> None:
    setup = Setup("w", 1, 10.0, 7, 1.0, 0.0, (), birth_ms=1_795_000_000_000)
    made = exchange.create(setup)
    exchange.open_account(made, Moment(made.t0_ms, 0))
    assert made.t0_ms == 1_795_000_000_000
    store = Store(tmp_path)
    store.create(made)
    store.close(made, 0)
    again = Store(tmp_path)
    assert again.resume().t0_ms == made.t0_ms
    again.close(made, 0)


# what a request may look like


ORDER = "symbol=ETHUSDT&side=BUY&type=LIMIT&timeInForce=GTC&quantity=0.100"


@pytest.mark.parametrize("place", ["query", "body", "both", "upper", "type", "key"])
def test_parameters_stand_where_clients_put_them(venue: Running, place: str) -> None:
    bid = D(venue.get(V1 + "ticker/bookTicker?symbol=ETHUSDT")["bidPrice"])
    first = f"{ORDER}&price={bid * D('0.97'):.2f}"
    second = f"timestamp={wall_ms()}"
    whole = f"{first}&{second}"
    headers = {"X_MBX_APIKEY": "test"}
    if place == "both":  # signed as they stand, one after the other
        query, body = second, f"{first}&signature={signature_of(second + first)}"
    elif place == "body":
        query, body = "", f"{whole}&signature={signature_of(whole)}"
    else:
        query, body = f"{whole}&signature={signature_of(whole)}", ""
    if place == "upper":
        query = f"{whole}&signature={signature_of(whole).upper()}"
    elif place == "type":
        headers["Content_Type"] = "application/json"
    elif place == "key":
        headers = {"x_mbx_apikey": "test"}
    status, said, _ = asked(venue, "POST", f"{V1}order?{query}", body, **headers)
    assert (status, json.loads(said).get("status")) == (200, "NEW"), said
    venue.signed("DELETE", V1 + "allOpenOrders", "symbol=ETHUSDT")


def test_a_head_a_slash_too_many_and_an_offer_of_gzip_are_taken(venue: Running) -> None:
    status, body, headers = asked(venue, "HEAD", V1 + "time")
    assert (status, body) == (200, b"") and int(headers["Content-Length"]) > 10
    assert json.loads(asked(venue, "GET", V1 + "time/")[1])["serverTime"] > 0
    status, body, headers = asked(venue, "GET", V1 + "ping", Accept_Encoding="gzip, deflate, br")
    assert json.loads(body) == {} and headers["Content-Type"].startswith("application/json")
    status, body, _ = asked(venue, "GET", V1 + "nothing")
    assert (status, json.loads(body)["code"]) == (404, -5000)


def test_the_other_houses_answer_who_knocks_first(venue: Running) -> None:
    assert venue.get("/api/v3/ping") == {}
    assert venue.get("/api/v3/time")["serverTime"] > 0
    assert venue.get("/sapi/v1/system/status") == {"status": 0, "msg": "normal"}
    for path in ("/api/v3/exchangeInfo", "/dapi/v1/exchangeInfo"):  # clients of all houses ask all
        assert venue.get(path)["symbols"] == []


@pytest.mark.parametrize("mark", ["100.000", "100.001", "100.0099", "99.9999"])
@pytest.mark.parametrize(("side", "step"), [("BUY", "0.01"), ("SELL", "-0.01")])
def test_the_bound_in_a_refusal_is_the_last_price_that_is_taken(
    mark: str, side: str, step: str
) -> None:
    spec = listing(2)[1]
    assert spec.tick == D("0.01")
    far = D("200") if side == "BUY" else D("1")
    refusal = check_percent(spec, side, far, D(mark))
    assert refusal is not None
    bound = D(refusal.msg.rstrip(".").split()[-1])
    assert check_percent(spec, side, bound, D(mark)) is None
    assert check_percent(spec, side, bound + D(step), D(mark)) is not None


# sockets


@pytest.mark.parametrize("form", ["SUBSCRIBE", "streams", "path", "events"])
def test_a_listen_key_is_heard_however_it_is_given(venue: Running, form: str) -> None:
    async def body() -> None:
        key = user_key(venue)
        where = {
            "SUBSCRIBE": "/private/stream",
            "streams": f"/private/stream?streams={key}",
            "path": f"/private/ws/{key}",
            "events": f"/private/stream?listenKey={key}&events=ACCOUNT_CONFIG_UPDATE",
        }[form]
        async with connect(venue.ws + where) as socket:
            if form == "SUBSCRIBE":
                await socket.send(json.dumps({"method": "SUBSCRIBE", "params": [key], "id": "x"}))
                assert json.loads(await socket.recv()) == {"result": None, "id": "x"}
            leverage = 5 + len(form)
            query = f"symbol=BTCUSDT&leverage={leverage}"
            await asyncio.to_thread(venue.signed, "POST", V1 + "leverage", query)
            told = json.loads(await socket.recv())
            if form != "path":
                assert told["stream"] == key
                told = told["data"]
            assert told["ac"] == {"s": "BTCUSDT", "l": leverage}

    asyncio.run(body())


class Pipe:
    """A transport that keeps what was written."""

    def __init__(self) -> None:
        self.data = b""

    def write(self, data: bytes) -> None:
        self.data += data

    def get_write_buffer_size(self) -> int:
        return 0

    def abort(self) -> None:
        raise AssertionError("nobody is cut off here")

    def is_closing(self) -> bool:
        return False


@pytest.mark.parametrize(
    ("path", "strict", "heard"),
    [
        (f"/private/ws/{KEY}", True, True),
        (f"/ws/{KEY}", True, False),
        (f"/ws/{KEY}", False, True),
        (f"/market/ws/{KEY}", True, False),
    ],
)
def test_an_old_path_hears_its_listen_key_only_when_not_strict(
    path: str, strict: bool, heard: bool
) -> None:
    hub, pipe, address = Hub(listing(1), strict), Pipe(), parse_url(path, "")
    assert address is not None
    connection = hub.add(address, path, pipe)
    hub.tell({"e": "TRADE_LITE"}, KEY)
    assert (b"TRADE_LITE" in pipe.data) == heard
    hub.control(connection, json.dumps({"method": "UNSUBSCRIBE", "params": [KEY], "id": 1}), 0)
    pipe.data = b""
    hub.tell({"e": "TRADE_LITE"}, KEY)
    assert b"TRADE_LITE" not in pipe.data


def test_the_websocket_api_trades_over_a_real_socket_with_deflate_offered(venue: Running) -> None:
    async def body() -> None:
        async with connect(venue.ws + "/ws-fapi/v1?returnRateLimits=false") as socket:
            params: dict[str, Any] = {"apiKey": "test", "timestamp": wall_ms(), "side": "BUY"}
            params |= {"symbol": "ETHUSDT", "type": "MARKET", "quantity": 0.1}
            payload = "&".join(f"{k}={v}" for k, v in sorted(params.items()))
            params["signature"] = signature_of(payload)
            await socket.send(json.dumps({"id": "one", "method": "order.place", "params": params}))
            told = json.loads(await socket.recv())
            assert (told["id"], told["status"], told["result"]["status"]) == ("one", 200, "FILLED")
            assert set(told) == {"id", "status", "result"}
            await socket.send("nothing")
            assert json.loads(await socket.recv())["error"]["code"] == -1135
            await socket.send('{"id":2,"method":"time"}')
            assert json.loads(await socket.recv())["result"]["serverTime"] > 0

    asyncio.run(body())
    _, position, _ = venue.signed("GET", "/fapi/v3/positionRisk", "symbol=ETHUSDT")
    assert position[0]["positionAmt"] == "0.100"
    venue.signed("POST", V1 + "order", "symbol=ETHUSDT&side=SELL&type=MARKET&quantity=0.100")


@pytest.mark.parametrize(
    ("name", "served"),
    [
        ("btcusdt_perpetual@continuousKline_1m", True),
        ("btcusdt@continuousKline_1m", False),
        ("btcusdt_perpetual@kline_1m", False),
        ("btcusdt_next_quarter@continuousKline_1m", False),
        ("nope_perpetual@continuousKline_1m", False),
        ("btcusdt@depth@0ms", True),
        ("btcusdt@depth@50ms", False),
    ],
)
def test_names_of_streams_that_only_some_clients_use(name: str, served: bool) -> None:
    assert (looks.parse(name, {"btcusdt": 0}) is not None) == served


def test_a_continuous_candle_is_the_symbol_s_with_its_pair_named(world: Exchange) -> None:
    bar, s = world.record.forming[0, 1], world.specs[1]
    plain = kline_payload(bar, s, "1m", False, 7)
    pair = continuous_payload(plain)
    assert list(pair) == ["e", "E", "ps", "ct", "k"]
    assert (pair["e"], pair["ps"], pair["ct"]) == ("continuous_kline", "ETHUSDT", "PERPETUAL")
    assert pair["k"] == {name: v for name, v in plain["k"].items() if name != "s"}


# shapes that typed clients insist on


@pytest.fixture(scope="module")
def world() -> Exchange:
    made = exchange.create(Setup("w", 2, 100.0, 7, 1.0, 0.0, ()))
    exchange.open_account(made, Moment(made.t0_ms, 0))
    return made


def told(world: Exchange, method: str, path: str, query: str = "") -> Any:
    now = Moment(int(world.made_until_ms), 0)
    query = f"{query}&timestamp={now.market_ms}".lstrip("&")
    signed = f"{query}&signature={signature_of(query)}".encode()
    reply = rest.handle(world, rest.Desk(), ROUTES, method, path, signed, b"", "test", now)
    return json.loads(reply.body)


def test_whole_numbers_of_brackets_are_whole(world: Exchange) -> None:
    for bracket in told(world, "GET", V1 + "leverageBracket", "symbol=BTCUSDT")["brackets"]:
        for name in ("bracket", "initialLeverage", "notionalCap", "notionalFloor", "cum"):
            assert isinstance(bracket[name], int), name
        assert isinstance(bracket["maintMarginRatio"], float)


def test_an_account_names_its_group(world: Exchange) -> None:
    assert told(world, "GET", "/fapi/v2/account")["tradeGroupId"] == -1


def test_a_conditional_order_s_answer_names_no_rate_that_it_has_not(world: Exchange) -> None:
    bid = exchange.refresh(world, "ETHUSDT").bid
    query = "algoType=CONDITIONAL&symbol=ETHUSDT&side=SELL&type=STOP_MARKET&quantity=0.1"
    made = told(world, "POST", V1 + "algoOrder", f"{query}&triggerPrice={bid * D('0.9'):.2f}")
    assert made["callbackRate"] == made["activatePrice"] == ""
    named = f"algoId={made['algoId']}"
    [waits] = told(world, "GET", V1 + "openAlgoOrders")
    for seen in (waits, told(world, "GET", V1 + "algoOrder", named)):
        assert "callbackRate" not in seen and "activatePrice" not in seen
    told(world, "DELETE", V1 + "algoOrder", named)


@pytest.mark.parametrize(
    ("more", "code"),
    [
        ("", 0),
        ("&quantity=0.001", -4164),
        ("&price=1.005", -1111),
        ("&type=STOP_MARKET", -4120),
        ("&reduceOnly=true", -2022),
        ("&quantity=100000", -4005),
    ],
)
def test_an_order_that_is_only_tested_is_checked_and_leaves_nothing(
    world: Exchange, more: str, code: int
) -> None:
    bid = exchange.refresh(world, "ETHUSDT").bid
    before, seq = len(world.ledger), world.account.order_seq
    said = told(world, "POST", V1 + "order/test", f"{ORDER}&price={bid * D('0.97'):.2f}{more}")
    assert said.get("code", 0) == code
    assert code or (said["status"], said["origQty"], said["orderId"]) == ("NEW", "0.100", 0)
    assert (len(world.ledger), world.account.order_seq) == (before, seq)
    assert not world.account.orders


# candles


def test_every_interval_of_the_exchange_is_served(world: Exchange) -> None:
    names = list(intervals.INTERVALS)
    assert len(names) == 15
    for name in names:
        rows = told(world, "GET", V1 + "klines", f"symbol=BTCUSDT&interval={name}&limit=3")
        assert 1 <= len(rows) <= 3 and rows[-1][0] <= world.made_until_ms <= rows[-1][6]
    assert told(world, "GET", V1 + "klines", "symbol=BTCUSDT&interval=2w")["code"] == -1120


def test_funding_info_and_open_interest_have_the_documented_keys(world: Exchange) -> None:
    info = told(world, "GET", V1 + "fundingInfo")
    assert [r["symbol"] for r in info] == ["BTCUSDT", "ETHUSDT"]
    assert {r["fundingIntervalHours"] for r in info} == {8}
    assert info[0]["adjustedFundingRateFloor"] == "-" + info[0]["adjustedFundingRateCap"]
    interest = told(world, "GET", V1 + "openInterest", "symbol=ETHUSDT")
    assert set(interest) == {"symbol", "openInterest", "time"} and D(interest["openInterest"]) > 0
    assert told(world, "GET", V1 + "openInterest")["code"] == -1102
