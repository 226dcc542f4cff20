"""Every planned fault as a client meets it: one venue, real HTTP, real sockets."""

from __future__ import annotations

import asyncio
import http.client
import json
import urllib.error
import urllib.request
from collections.abc import Awaitable, Callable, Iterator
from decimal import Decimal as D
from itertools import pairwise
from typing import Any

import ccxt.async_support as ccxt
import pytest
import websockets
from websockets.asyncio.client import ClientConnection, connect

from tests.test_venue_server import Running, trade_with, user_key

PATIENCE_S = 20.0
SILENCE_S = 0.4


@pytest.fixture(scope="module")
def venue(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("faults")
    made = Running(folder, "--symbols", "5", "--rate", "1000", "--seed", "7", "--speed", "20")
    yield made
    assert made.stop() == 0


@pytest.fixture(autouse=True)
def _cleared(venue: Running) -> Iterator[None]:
    yield
    own(venue, "DELETE", "faults")


def own(venue: Running, method: str, path: str, body: Any = None) -> tuple[int, Any]:
    """One of the venue's own calls."""
    data = None if body is None else json.dumps(body).encode()
    wanted = urllib.request.Request(f"{venue.url}/venue/v1/{path}", method=method, data=data)
    try:
        with urllib.request.urlopen(wanted) as reply:
            return reply.status, json.load(reply)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def plan(venue: Running, kind: str, **more: Any) -> Any:
    status, body = own(venue, "POST", "faults", {"kind": kind, **more})
    assert status == 200, body
    return body


def act(venue: Running, what: str, **more: Any) -> Any:
    status, body = own(venue, "POST", "act", {"what": what, **more})
    assert status == 200, body
    return body


def ledger(venue: Running) -> list[Any]:
    return list(venue.get("/venue/v1/ledger?limit=10000")["events"])


def far_limit(venue: Running, client_id: str, symbol: str = "ETHUSDT") -> str:
    """A limit order that rests far below the market."""
    price = D(venue.get(f"/fapi/v1/ticker/price?symbol={symbol}")["price"]) * D("0.96")
    return (
        f"symbol={symbol}&side=BUY&type=LIMIT&timeInForce=GTC&quantity=0.100"
        f"&price={price:.2f}&newClientOrderId={client_id}"
    )


def market(symbol: str, side: str, qty: str, **more: str) -> str:
    extra = "".join(f"&{k}={v}" for k, v in more.items())
    return f"symbol={symbol}&side={side}&type=MARKET&quantity={qty}{extra}"


def far_stop(venue: Running, symbol: str) -> str:
    """A stop far below the market, without its size."""
    price = D(venue.get(f"/fapi/v1/ticker/price?symbol={symbol}")["price"]) * D("0.9")
    return (
        f"symbol={symbol}&side=SELL&algoType=CONDITIONAL&type=STOP_MARKET&triggerPrice={price:.1f}"
    )


def order(venue: Running, query: str) -> tuple[int, Any]:
    status, body, _ = venue.signed("POST", "/fapi/v1/order", query)
    return status, body


def exists(venue: Running, client_id: str, symbol: str = "ETHUSDT") -> bool:
    query = f"symbol={symbol}&origClientOrderId={client_id}"
    status, body, _ = venue.signed("GET", "/fapi/v1/order", query)
    assert status == 200 or body["code"] == -2013
    return status == 200


def raw_order(venue: Running, query: str) -> tuple[int, bytes]:
    """As `order`, of an answer that need not be JSON; (0, b"") when the connection was closed."""
    import hashlib
    import hmac

    stamp = venue.get("/fapi/v1/time")["serverTime"]
    payload = f"{query}&timestamp={stamp}"
    signature = hmac.new(b"test", payload.encode(), hashlib.sha256).hexdigest()
    wanted = urllib.request.Request(
        f"{venue.url}/fapi/v1/order?{payload}&signature={signature}",
        method="POST",
        headers={"X-MBX-APIKEY": "test"},
    )
    try:
        with urllib.request.urlopen(wanted) as reply:
            return reply.status, reply.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()
    except (urllib.error.URLError, http.client.HTTPException, OSError):
        return 0, b""


UNKNOWN = b'{"code":-1000,"msg":"Unknown error, please check your request or try again later."}'


@pytest.mark.parametrize(
    ("kind", "more", "status", "part", "executed"),
    [
        ("reply_lost", {}, 0, b"", True),
        ("request_lost", {}, 0, b"", False),
        ("reply_late", {"ms": 50}, 200, b'"status":"NEW"', True),
        ("unknown_executed", {}, 503, UNKNOWN, True),
        ("unknown_not_executed", {}, 503, UNKNOWN, False),
        ("timeout_executed", {}, 408, b'"code":-1007', True),
        ("timeout_not_executed", {}, 408, b'"code":-1007', False),
        ("unavailable", {}, 503, b"Service Unavailable.", False),
        ("internal_error", {}, 503, b'"code":-1001', False),
        ("bad_gateway", {}, 502, b"<html>", False),
        ("any_code", {"code": -4131, "msg": "no", "http": 400}, 400, b"-4131", False),
        ("any_code", {"code": -1016, "http": 503}, 503, b"-1016", False),
    ],
)
def test_a_request_is_executed_or_not_whatever_its_client_is_told(
    venue: Running, kind: str, more: Any, status: int, part: bytes, executed: bool
) -> None:
    client_id = f"met-{kind}-{more.get('code', '')}"
    plan(venue, kind, match={"path": "order", "client_id_prefix": "met-"}, **more)
    other = order(venue, far_limit(venue, f"other-{kind}{more.get('code', '')}"))
    assert other[0] == 200  # the plan means another
    code, body = raw_order(venue, far_limit(venue, client_id))
    assert code == status and part in body
    assert exists(venue, client_id) == executed
    ids = [e.get("client_id") for e in ledger(venue) if e["type"] == "order_new"]
    assert (client_id in ids) == executed
    struck = [e for e in ledger(venue) if e["type"] == "fault" and "met" in e]
    assert struck[-1]["met"]["client_id"] == client_id
    assert (struck[-1]["kind"], struck[-1]["state"]) == (kind, "happened")
    told = venue.get("/venue/v1/faults")
    assert told["planned"] == [] and told["happened"][-1]["met"]["client_id"] == client_id
    venue.signed("DELETE", "/fapi/v1/allOpenOrders", "symbol=ETHUSDT")


def test_after_and_times_choose_which_requests_are_met(venue: Running) -> None:
    plan(venue, "any_code", code=-1, after=1, times=2, match={"path": "/fapi/v1/ping"})
    statuses = []
    for _ in range(5):
        try:
            venue.get("/fapi/v1/ping")
            statuses.append(200)
        except urllib.error.HTTPError as error:
            statuses.append(error.code)
    assert statuses == [200, 400, 400, 200, 200]


def test_ccxt_finds_by_client_id_what_it_was_not_told_of(venue: Running) -> None:
    async def body(client: ccxt.binanceusdm) -> None:
        await client.load_markets()
        symbol, found = "SOL/USDT:USDT", []
        for kind, error in (
            ("unknown_executed", ccxt.OperationFailed),
            ("reply_lost", ccxt.NetworkError),
        ):
            name = f"find-{kind}"
            match = {"method": "POST", "path": "order"}
            await asyncio.to_thread(plan, venue, kind, match=match)
            with pytest.raises(error):
                await client.create_order(
                    symbol, "market", "buy", 1.0, None, {"newClientOrderId": name}
                )
            seen = await client.fetch_order(None, symbol, {"origClientOrderId": name})
            assert seen["status"] == "closed" and seen["filled"] == 1.0
            found.append(seen["clientOrderId"])
        [position] = await client.fetch_positions([symbol])
        assert position["contracts"] == 2.0 and len(found) == 2
        await client.create_order(symbol, "market", "sell", 2.0, None, {"reduceOnly": True})

    trade_with(venue, body)


def test_an_overloaded_exchange_refuses_openers_and_lets_exits_pass(venue: Running) -> None:
    assert order(venue, market("BNBUSDT", "BUY", "1.00"))[0] == 200
    plan(venue, "busy", seconds=600)
    status, body = order(venue, market("BNBUSDT", "BUY", "1.00"))
    assert (status, body["code"]) == (503, -1008) and "exempt" in body["msg"]
    batch = json.dumps([{"symbol": "BNBUSDT", "side": "BUY", "type": "MARKET", "quantity": "1"}])
    quoted = urllib.request.quote(batch)  # type: ignore[attr-defined]
    assert venue.signed("POST", "/fapi/v1/batchOrders", f"batchOrders={quoted}")[0] == 503
    stop = far_stop(venue, "BNBUSDT")
    assert venue.signed("POST", "/fapi/v1/algoOrder", stop + "&quantity=1")[0] == 503
    assert venue.signed("POST", "/fapi/v1/algoOrder", stop + "&closePosition=true")[0] == 200
    assert order(venue, market("BNBUSDT", "SELL", "1.00", reduceOnly="true"))[0] == 200
    assert venue.signed("DELETE", "/fapi/v1/allOpenOrders", "symbol=BNBUSDT")[0] == 200


def test_the_next_stop_would_trigger_at_once(venue: Running) -> None:
    plan(venue, "would_trigger")
    stop = far_stop(venue, "BNBUSDT")
    status, body, _ = venue.signed("POST", "/fapi/v1/algoOrder", stop + "&quantity=1")
    assert (status, body["code"]) == (400, -2021)
    status, algo, _ = venue.signed("POST", "/fapi/v1/algoOrder", stop + "&quantity=1")
    assert status == 200
    venue.signed("DELETE", "/fapi/v1/algoOrder", f"algoId={algo['algoId']}")


def test_an_order_is_filled_to_a_share_and_the_rest_as_its_time_in_force_says(
    venue: Running,
) -> None:
    ask = D(venue.get("/fapi/v1/ticker/bookTicker?symbol=SOLUSDT")["askPrice"]) * D("1.01")
    limit = f"symbol=SOLUSDT&side=BUY&type=LIMIT&quantity=10&price={ask:.2f}&timeInForce="
    for query, status, share, filled in (
        (market("SOLUSDT", "BUY", "10"), "EXPIRED", 0.45, "4.5"),
        (limit + "IOC", "EXPIRED", 0.333, "3.3"),
        (limit + "GTC", "PARTIALLY_FILLED", 0.5, "5.0"),
        (market("SOLUSDT", "BUY", "10"), "EXPIRED", 0, "0.0"),
    ):
        plan(venue, "partial_fill", share=share, match={"symbol": "SOLUSDT"})
        code, made = order(venue, query)
        assert (code, made["status"], made["executedQty"]) == (200, status, filled)
    code, whole = order(venue, market("SOLUSDT", "BUY", "10"))
    assert (code, whole["status"]) == (200, "FILLED")
    plan(venue, "partial_fill", share=0.5)
    code, whole = order(venue, limit + "FOK")
    assert (code, whole["status"]) == (200, "FILLED")
    venue.signed("DELETE", "/fapi/v1/allOpenOrders", "symbol=SOLUSDT")
    act(venue, "close", symbol="SOLUSDT")


def test_a_planned_limit_and_a_planned_ban_hold_until_they_are_cleared(venue: Running) -> None:
    plan(venue, "limit", times=2)
    for _ in range(2):
        with pytest.raises(urllib.error.HTTPError) as refused:
            venue.get("/fapi/v1/ping")
        assert refused.value.code == 429 and int(refused.value.headers["Retry-After"]) >= 1
        assert json.load(refused.value)["code"] == -1003
    assert venue.get("/fapi/v1/ping") == {}
    before = venue.get("/fapi/v1/time")["serverTime"]
    plan(venue, "ban", ms=3_600_000)
    for _ in range(2):
        with pytest.raises(urllib.error.HTTPError) as refused:
            venue.get("/fapi/v1/ping")
        body = json.load(refused.value)
        assert refused.value.code == 418 and body["code"] == -1003
        until = int(body["msg"].partition("banned until ")[2].partition(".")[0])
        assert before + 3_600_000 * 20 <= until < before + 4_000_000 * 20

    async def handshake() -> None:
        with pytest.raises(websockets.InvalidStatus) as told:
            await connect(venue.ws + "/market/ws")
        assert told.value.response.status_code == 418

    asyncio.run(handshake())
    own(venue, "DELETE", "faults")
    assert venue.get("/fapi/v1/ping") == {}


def test_a_wrong_clock_refuses_the_right_time_and_tells_its_own(venue: Running) -> None:
    right = str(venue.get("/fapi/v1/time")["serverTime"])
    assert venue.signed("GET", "/fapi/v1/openOrders", "", timestamp=right)[0] == 200
    for ms in (60_000, -60_000):
        planted = plan(venue, "clock_skew", ms=ms)
        right = str(venue.get("/venue/v1/status")["market_ms"])
        told = venue.get("/fapi/v1/time")["serverTime"]
        assert abs(told - int(right) - ms * 20) < 30_000 * 20
        status, body, _ = venue.signed("GET", "/fapi/v1/openOrders", "", timestamp=right)
        assert (status, body["code"]) == (400, -1021)
        assert venue.signed("GET", "/fapi/v1/openOrders", "")[0] == 200  # by the wrong clock
        assert own(venue, "DELETE", f"faults?id={planted['id']}") == (200, {"cleared": 1})


# the user stream

Body = Callable[[ClientConnection], Awaitable[None]]


def with_user_stream(venue: Running, body: Body) -> None:
    async def whole() -> None:
        key = await asyncio.to_thread(user_key, venue)
        async with connect(f"{venue.ws}/private/ws/{key}") as stream:
            await body(stream)

    asyncio.run(whole())


async def events(stream: ClientConnection, count: int) -> list[Any]:
    return [json.loads(await asyncio.wait_for(stream.recv(), PATIENCE_S)) for _ in range(count)]


async def bought(venue: Running, stream: ClientConnection, count: int, name: str) -> list[str]:
    """What is told of one market order: words of the events, in order."""
    query = market("XRPUSDT", "BUY", "100", newClientOrderId=name)
    status, _ = await asyncio.to_thread(order, venue, query)
    assert status == 200
    return [e["e"] for e in await events(stream, count)]


NEW = DONE = "ORDER_TRADE_UPDATE"
LITE, MONEY = "TRADE_LITE", "ACCOUNT_UPDATE"


@pytest.mark.parametrize(
    ("kind", "more", "told"),
    [
        ("user_doubled", {"match": {"event": LITE}}, [NEW, LITE, LITE, MONEY, DONE]),
        ("user_dropped", {"match": {"event": MONEY}}, [NEW, LITE, DONE]),
        ("user_dropped", {"match": {"event": DONE, "execution": "TRADE"}}, [NEW, LITE, MONEY]),
        ("user_reordered", {"match": {"event": MONEY}}, [NEW, LITE, DONE, MONEY]),
        ("user_reordered", {"match": {"event": LITE}, "window": 9, "ms": 30}, None),
        ("trade_lite_after", {}, [NEW, MONEY, DONE, LITE]),
        ("user_late", {"match": {"event": MONEY}, "ms": 150}, [NEW, LITE, DONE, MONEY]),
    ],
)
def test_the_user_stream_tells_a_fill_wrong(
    venue: Running, kind: str, more: Any, told: list[str] | None
) -> None:
    async def body(stream: ClientConnection) -> None:
        await asyncio.to_thread(plan, venue, kind, **more)
        seen = await bought(venue, stream, len(told) if told else 4, f"wrong-{kind}")
        if told:
            assert seen == told
        else:
            assert seen[0] == NEW and sorted(seen[1:]) == sorted([LITE, MONEY, DONE])
            assert seen[1:] != [LITE, MONEY, DONE]
        assert await bought(venue, stream, 4, f"right-{kind}") == [NEW, LITE, MONEY, DONE]

    with_user_stream(venue, body)
    act(venue, "close", symbol="XRPUSDT")


def test_a_mute_user_stream_says_nothing_until_it_is_cleared(venue: Running) -> None:
    async def body(stream: ClientConnection) -> None:
        await asyncio.to_thread(plan, venue, "user_mute")
        query = market("XRPUSDT", "BUY", "100", newClientOrderId="mute-1")
        assert (await asyncio.to_thread(order, venue, query))[0] == 200
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(stream.recv(), SILENCE_S)
        await asyncio.to_thread(own, venue, "DELETE", "faults")
        assert await bought(venue, stream, 4, "mute-2") == [NEW, LITE, MONEY, DONE]
        trades = [e for e in await asyncio.to_thread(ledger, venue) if e["type"] == "trade"]
        assert [t["client_id"] for t in trades[-2:]] == ["mute-1", "mute-2"]

    with_user_stream(venue, body)
    act(venue, "close", symbol="XRPUSDT")


def key_call(venue: Running, method: str) -> tuple[int, Any]:
    wanted = urllib.request.Request(
        venue.url + "/fapi/v1/listenKey", method=method, headers={"X-MBX-APIKEY": "test"}
    )
    try:
        with urllib.request.urlopen(wanted) as reply:
            return reply.status, json.load(reply)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def test_every_socket_of_a_key_hears_all_and_after_its_end_nothing(venue: Running) -> None:
    async def silent(*streams: ClientConnection) -> bool:
        waits = [asyncio.wait_for(s.recv(), SILENCE_S) for s in streams]
        done = await asyncio.gather(*waits, return_exceptions=True)
        return all(isinstance(one, TimeoutError) for one in done)

    async def body() -> None:
        key = await asyncio.to_thread(user_key, venue)
        url = venue.ws + "/private"
        async with (
            connect(f"{url}/ws/{key}") as one,
            connect(f"{url}/stream?listenKey={key}") as two,
            connect(f"{url}/ws/nobody") as stranger,
        ):
            query = far_limit(venue, "heard-1")
            await asyncio.to_thread(order, venue, query)
            [first] = await events(one, 1)
            [second] = await events(two, 1)
            assert second == {"stream": key, "data": first} and first["o"]["c"] == "heard-1"
            await asyncio.to_thread(plan, venue, "listen_key_expired")
            [first] = await events(one, 1)
            [second] = await events(two, 1)
            assert first["e"] == "listenKeyExpired" and first["listenKey"] == key
            assert second["data"] == first
            assert await asyncio.to_thread(key_call, venue, "PUT") == (
                400, {"code": -1125, "msg": "This listenKey does not exist."},
            )  # fmt: skip
            assert (await asyncio.to_thread(key_call, venue, "DELETE"))[1]["code"] == -1125
            fresh = await asyncio.to_thread(user_key, venue)
            assert fresh != key
            async with connect(f"{url}/ws/{fresh}") as third:
                query = far_limit(venue, "heard-2")
                await asyncio.to_thread(order, venue, query)
                assert (await events(third, 1))[0]["o"]["c"] == "heard-2"
                assert await asyncio.to_thread(key_call, venue, "DELETE") == (200, {})
                await asyncio.to_thread(
                    venue.signed, "DELETE", "/fapi/v1/allOpenOrders", "symbol=ETHUSDT"
                )
                assert await silent(one, two, third, stranger)

    asyncio.run(body())


# market sockets


def test_sockets_are_cut_without_a_word_or_with_a_code(venue: Running) -> None:
    async def body() -> None:
        cases: list[tuple[dict[str, Any], int]] = [
            ({}, 1006),
            ({"close": 1001}, 1001),
            ({"bytes": 2000}, 1006),
            ({"match": {"stream": "btcusdt@aggTrade"}, "close": 1008}, 1008),
        ]
        for more, code in cases:
            url = venue.ws + "/market/ws/btcusdt@aggTrade"
            async with connect(url, max_queue=None) as met, connect(venue.ws + "/public/ws") as far:
                await met.recv()
                match = {"route": "market"} | more.pop("match", {})
                await asyncio.to_thread(plan, venue, "disconnect", match=match, **more)
                with pytest.raises(websockets.ConnectionClosed) as closed:
                    while True:
                        await asyncio.wait_for(met.recv(), PATIENCE_S)
                got = closed.value.rcvd
                assert (got.code if got else 1006) == code
                await far.send('{"method":"LIST_SUBSCRIPTIONS","id":1}')
                assert json.loads(await far.recv())["result"] == []
        cuts = [c for c in venue.get("/venue/v1/sent")["connections"] if c["path"] in url]
        assert len(cuts) >= 4 and not any(c["open"] for c in cuts)

    asyncio.run(body())


async def heard(venue: Running, path: str, frames_wanted: int, kind: str, **more: Any) -> list[Any]:
    """So many frames of a socket, on which a fault is planned after the first one."""
    async with connect(venue.ws + path, max_queue=None) as socket:
        frames = await events(socket, 1)
        await asyncio.to_thread(plan, venue, kind, **more)
        return frames + await events(socket, frames_wanted)


def test_trade_ids_have_a_gap_of_the_planned_length(venue: Running) -> None:
    async def body() -> None:
        url = venue.ws + "/market/ws/btcusdt@aggTrade"
        both = connect(url, max_queue=None), connect(url, max_queue=None)
        async with both[0] as one, both[1] as other:
            heads = [await events(socket, 1) for socket in (one, other)]
            match = {"symbol": "BTCUSDT"}
            await asyncio.to_thread(plan, venue, "trade_gap", match=match, count=3)
            tails = await asyncio.gather(events(one, 100), events(other, 100))
        for head, tail in zip(heads, tails, strict=True):
            frames = head + tail
            ids = [f["a"] for f in frames]
            steps = [b - a for a, b in pairwise(ids)]
            assert sorted(steps)[-1] == 4 and steps.count(4) == 1 and set(steps) == {1, 4}
        [left] = [e for e in ledger(venue) if e.get("state") == "left_out"]
        assert left["met"]["last_id"] - left["met"]["first_id"] == 2

    asyncio.run(body())


async def listen_to(venue: Running, path: str, count: int) -> list[Any]:
    async with connect(venue.ws + path, max_queue=None) as socket:
        return await events(socket, count)


def test_a_depth_diff_is_left_out_so_that_pu_does_not_fit(venue: Running) -> None:
    async def body() -> None:
        path = "/public/ws/ethusdt@depth@100ms"
        frames = await heard(venue, path, 8, "depth_gap", match={"symbol": "ETHUSDT"})
        breaks = [b["pu"] != a["u"] for a, b in pairwise(frames)]
        assert breaks.count(True) == 1

    asyncio.run(body())


@pytest.mark.parametrize(
    ("kind", "steps"), [("market_doubled", {0, 1}), ("market_reordered", {-1, 1, 2, 3})]
)
def test_market_frames_come_twice_or_in_another_order(
    venue: Running, kind: str, steps: set[int]
) -> None:
    async def body() -> None:
        path = "/market/ws/btcusdt@aggTrade"
        frames = await heard(venue, path, 100, kind, match={"stream": "btcusdt@aggTrade"}, times=2)
        ids = [f["a"] for f in frames]
        found = [b - a for a, b in pairwise(ids)]
        assert set(found) <= steps and found.count(min(steps)) == 2
        assert set(ids) >= set(range(min(ids), max(ids)))

    asyncio.run(body())


def test_one_symbol_falls_silent_and_the_others_go_on(venue: Running) -> None:
    async def body() -> None:
        path = "/market/stream?streams=btcusdt@aggTrade/ethusdt@aggTrade"
        frames = await heard(
            venue, path, 120, "market_mute", match={"symbol": "BTCUSDT"}, seconds=600
        )
        assert {f["data"]["s"] for f in frames[-30:]} == {"ETHUSDT"}
        mutes = [e for e in ledger(venue) if e.get("kind") == "market_mute"]
        assert 2 <= len(mutes) <= 101  # the plan and at most a hundred of its strikes

    asyncio.run(body())


def test_a_muted_connection_is_silent_alone(venue: Running) -> None:
    async def body() -> None:
        path = "/market/ws/btcusdt@aggTrade"
        async with connect(venue.ws + path, max_queue=None) as one:
            await one.recv()
            rows = venue.get("/venue/v1/sent")["connections"]
            [number] = [c["id"] for c in rows if c["open"] and c["path"] == path]
            plan(venue, "market_mute", match={"connection": number})
            await listen_to(venue, path, 20)
            await one.send('{"method":"LIST_SUBSCRIPTIONS","id":1}')
            while "result" not in json.loads(await asyncio.wait_for(one.recv(), PATIENCE_S)):
                pass
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(one.recv(), SILENCE_S)

    asyncio.run(body())


# what others do


def test_a_delisted_symbol_says_so_settles_and_falls_silent(venue: Running) -> None:
    async def body() -> None:
        assert order(venue, market("BNBUSDT", "BUY", "1.00"))[0] == 200
        streams = "!contractInfo/bnbusdt@aggTrade/btcusdt@aggTrade"
        async with connect(venue.ws + "/market/stream?streams=" + streams) as socket:
            await socket.recv()
            settled = await asyncio.to_thread(act, venue, "delist", symbol="BNBUSDT")
            assert settled == {"symbol": "BNBUSDT", "status": "SETTLING"}
            frame: Any = {"stream": ""}
            while frame["stream"] != "!contractInfo":
                [frame] = await events(socket, 1)
            told = frame["data"]
            assert list(told) == ["e", "E", "s", "ps", "ct", "dt", "ot", "cs", "st"]
            assert (told["s"], told["cs"]) == ("BNBUSDT", "SETTLING")
            after = await events(socket, 60)
            assert {f["data"]["s"] for f in after} == {"BTCUSDT"}
        listed = venue.get("/fapi/v1/exchangeInfo")["symbols"]
        assert {s["symbol"]: s["status"] for s in listed}["BNBUSDT"] == "SETTLING"
        status, refused = order(venue, market("BNBUSDT", "BUY", "1.00"))
        assert (status, refused["code"]) == (400, -4140)
        _, account, _ = venue.signed("GET", "/fapi/v3/account", "")
        assert all(p["symbol"] != "BNBUSDT" for p in account["positions"])
        [last] = [e for e in ledger(venue) if e["type"] == "trade"][-1:]
        assert last["client_id"].startswith("settlement_autoclose-")

    asyncio.run(body())
