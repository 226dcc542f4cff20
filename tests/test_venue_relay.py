"""What goes through to upstream and back: bytes, closes, headers; and what never does.

Upstream is scripted, a real server on loopback; between it and the client stand the relays alone.
"""

from __future__ import annotations

import asyncio
import base64
import gzip
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import orjson
import pytest
from aiohttp import WSMsgType, web
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed
from yarl import URL

from clock import MarketClock, boot_ns
from venue import follow, paper, proxy, relay
from venue.connection import parse_url
from venue.follow import AskError
from venue.house import Moment, open_account
from venue.paper import PaperSetup
from venue.relay import Relays, forward, is_forwarded, public_query
from venue.sockets import BUFFER_BYTES_MAX, Hub
from venue.store import JOURNAL_FILE, Store

Script = Callable[[web.WebSocketResponse], Awaitable[None]]
SECRET = "f" * 64
DEADLINE_S = 30.0


@dataclass
class Upstream:
    """Answers REST from `bodies` and sockets by `script`; remembers what it was asked."""

    script: Script | None = None
    bodies: dict[str, web.Response] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    heard: list[Any] = field(default_factory=list)
    closed: asyncio.Event = field(default_factory=asyncio.Event)
    code: int | None = None

    async def serve(self, request: web.BaseRequest) -> web.StreamResponse:
        self.asked.append(request.raw_path)
        self.headers.append(dict(request.headers))
        if request.headers.get("Upgrade") is None:
            return self.bodies[request.path]
        if self.script is None:
            return web.Response(status=403, headers={"X-Why": "no"})
        stream = web.WebSocketResponse(autoping=False)
        await stream.prepare(request)
        await self.script(stream)
        async for message in stream:
            self.heard.append((message.type, message.data))
        self.code = stream.close_code
        self.closed.set()
        return stream


@asynccontextmanager
async def listening(serve: Any) -> AsyncIterator[int]:
    runner = web.ServerRunner(web.Server(serve, access_log=None), shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        yield runner.addresses[0][1]
    finally:
        await runner.cleanup()


@dataclass
class Between:
    """The relays on a port of their own."""

    port: int
    relays: Relays
    flowing: asyncio.Event
    stopping: asyncio.Event

    @property
    def ws(self) -> str:
        return f"ws://127.0.0.1:{self.port}"


@asynccontextmanager
async def relayed(upstream: Upstream) -> AsyncIterator[Between]:
    flowing, stopping = asyncio.Event(), asyncio.Event()
    flowing.set()
    relays = Relays(Hub((), strict=True), flowing, stopping)
    async with (
        listening(upstream.serve) as up_port,
        aiohttp.ClientSession(auto_decompress=False) as session,
    ):

        async def serve(request: web.BaseRequest) -> web.StreamResponse:
            path, _, query = request.raw_path.partition("?")
            try:
                if request.headers.get("Upgrade") is None:
                    return await forward(session, f"http://127.0.0.1:{up_port}", request)
                address = parse_url(path, query)
                assert address is not None
                url = f"ws://127.0.0.1:{up_port}"
                return await relays.serve(session, url, request, address, lambda t: SECRET in t)
            except AskError as error:
                return web.Response(status=503, text=str(error))

        async with listening(serve) as port:
            yield Between(port, relays, flowing, stopping)


def run(body: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(DEADLINE_S):
            await body()

    asyncio.run(bounded())


FRAMES = [
    '{"e":"kline","k": {"x":true, "B":"0"}}',
    '{"stream":"龙虾usdt@aggTrade","data":{"e":"aggTrade","a":7,"s":"龙虾USDT","p":"1.10"}}',
    '{"stream":"a@bookTicker","data":{"e":"bookTicker","u":1}}',
    "",
    "x" * 70_000,
    "not json",
]


def test_frames_go_through_unchanged_and_in_order_with_pings_and_the_close() -> None:
    pongs: list[Any] = []

    async def script(stream: web.WebSocketResponse) -> None:
        for text in FRAMES:
            await stream.send_str(text)
        await stream.ping(b"1795000000000")
        pongs.append(await stream.receive())
        await stream.send_bytes(b"\x00\xff")
        await stream.close(code=1008, message=b"Too many requests")

    async def body() -> None:
        up = Upstream(script)
        async with relayed(up) as between, aiohttp.ClientSession() as session:
            path = "/market/stream?streams=a@bookTicker/%E9%BE%99@aggTrade"
            async with session.ws_connect(
                between.ws + path, autoping=False, autoclose=False
            ) as client:
                heard = [await client.receive() for _ in range(len(FRAMES) + 3)]
        assert [m.data for m in heard[: len(FRAMES)]] == FRAMES
        assert [m.type for m in heard[-3:]] == [WSMsgType.PING, WSMsgType.BINARY, WSMsgType.CLOSE]
        assert [m.data for m in heard[-3:]] == [b"1795000000000", b"\x00\xff", 1008]
        assert heard[-1].extra == "Too many requests"
        assert up.asked == [path]
        await up.closed.wait()
        assert [(m.type, m.data) for m in pongs] == [(WSMsgType.PONG, b"1795000000000")]
        [told] = between.relays.hub.report()
        assert (told["trades"], told["quotes"], told["open"]) == (1, 1, False)
        assert between.relays.sent == {"龙虾USDT": {"first_id": 7, "last_id": 7}}

    run(body)


def test_what_a_client_says_and_how_it_leaves_reaches_upstream() -> None:
    async def script(stream: web.WebSocketResponse) -> None:
        await stream.send_str("hello")

    async def body() -> None:
        up = Upstream(script)
        words = ['{"method": "SUBSCRIBE","params":["a@aggTrade"],"id":1}', "nonsense"]
        async with relayed(up) as between:
            async with connect(between.ws + "/ws/1") as client:
                assert await client.recv() == "hello"
                for word in words:
                    await client.send(word)
                await (await client.ping())  # answered here
                await client.close(4001, "bye")
            await up.closed.wait()
        assert up.heard == [(WSMsgType.TEXT, word) for word in words]
        assert up.code == 4001

    run(body)


def test_an_upstream_that_vanishes_takes_its_client_along() -> None:
    async def script(stream: web.WebSocketResponse) -> None:
        await stream.send_str("hello")
        transport = stream._req.transport  # type: ignore[union-attr]
        transport.abort()  # type: ignore[union-attr]

    async def body() -> None:
        async with relayed(Upstream(script)) as between, connect(between.ws + "/ws") as client:
            with pytest.raises(ConnectionClosed) as ended:
                while True:
                    await client.recv()
            assert ended.value.rcvd is None  # no close frame: as it was there

    run(body)


def test_a_refused_handshake_is_refused_with_the_same_status() -> None:
    async def body() -> None:
        async with relayed(Upstream()) as between, aiohttp.ClientSession() as session:
            with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
                await session.ws_connect(between.ws + "/public/ws")
            assert refused.value.status == 403 and refused.value.headers["X-Why"] == "no"

    run(body)


def test_an_orderly_stop_says_so_to_both_sides() -> None:
    async def script(stream: web.WebSocketResponse) -> None:
        await stream.send_str("hello")

    async def body() -> None:
        up = Upstream(script)
        async with relayed(up) as between:
            async with connect(between.ws + "/ws") as client:
                await client.recv()
                between.stopping.set()
                with pytest.raises(ConnectionClosed) as ended:
                    await client.recv()
            assert ended.value.rcvd is not None and ended.value.rcvd.code == 1001
            await up.closed.wait()
            assert up.code == 1001

    run(body)


def test_a_pause_holds_frames_back_and_loses_none() -> None:
    go = asyncio.Event()

    async def script(stream: web.WebSocketResponse) -> None:
        await stream.send_str("0")
        await go.wait()
        for k in range(1, 100):
            await stream.send_str(str(k))

    async def body() -> None:
        async with relayed(Upstream(script)) as between, connect(between.ws + "/ws") as client:
            assert await client.recv() == "0"
            between.flowing.clear()
            go.set()
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.2):
                    await client.recv()
            between.flowing.set()
            assert [await client.recv() for _ in range(99)] == [str(k) for k in range(1, 100)]

    run(body)


def test_a_client_that_does_not_read_is_cut_off_at_the_bound() -> None:
    sent = 0

    async def script(stream: web.WebSocketResponse) -> None:
        nonlocal sent
        frame = "x" * (1 << 20)
        while sent < 2 * BUFFER_BYTES_MAX:
            sent += len(frame)
            await stream.send_str(frame)

    async def body() -> None:
        async with relayed(Upstream(script)) as between:
            reader, writer = await asyncio.open_connection("127.0.0.1", between.port, limit=1)
            key = base64.b64encode(os.urandom(16)).decode()
            writer.write(
                f"GET /ws HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                f"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}\r\n\r\n".encode()
            )
            while not between.relays.hub.closed:
                await asyncio.sleep(0.02)
                assert between.relays.hub.waiting() <= BUFFER_BYTES_MAX
            assert between.relays.hub.cut_off == 1 and sent > BUFFER_BYTES_MAX
            writer.close()
            del reader

    run(body)


def test_a_listen_key_is_not_sent_to_the_market() -> None:
    async def script(stream: web.WebSocketResponse) -> None:
        await stream.send_str("hello")

    async def body() -> None:
        up = Upstream(script)
        async with relayed(up) as between, aiohttp.ClientSession() as session:
            with pytest.raises(aiohttp.WSServerHandshakeError):
                await session.ws_connect(f"{between.ws}/ws/{SECRET}")
            assert up.asked == []
            async with connect(between.ws + "/ws") as client:
                await client.recv()
                await client.send(f'{{"method":"SUBSCRIBE","params":["{SECRET}"],"id":1}}')
                with pytest.raises(ConnectionClosed) as ended:
                    await client.recv()
            assert ended.value.rcvd is not None and ended.value.rcvd.code == 1008
            await up.closed.wait()
        assert up.heard == []

    run(body)


# REST


@pytest.mark.parametrize(
    ("method", "path", "goes"),
    [
        ("GET", "/fapi/v1/klines", True),
        ("GET", "/fapi/v1/ticker/24hr", True),
        ("GET", "/futures/data/openInterestHist", True),
        ("POST", "/fapi/v1/klines", False),
        ("GET", "/fapi/v1/order", False),
        ("GET", "/fapi/v3/account", False),
        ("GET", "/fapi/v1/leverageBracket", False),
        ("GET", "/fapi/v1/historicalTrades", False),  # needs a key
        ("GET", "/futures/data/../../fapi/v1/order", False),
        ("GET", "/fapi/v1/klines/", False),
    ],
)
def test_only_questions_about_the_market_go_upstream(method: str, path: str, goes: bool) -> None:
    assert is_forwarded(method, path) is goes


@pytest.mark.parametrize(
    ("query", "sent"),
    [
        ("symbol=BTCUSDT&limit=5", "symbol=BTCUSDT&limit=5"),
        ("b=%5B1%2C2%5D&a=1&&x", "b=%5B1%2C2%5D&a=1&&x"),
        ("symbol=A&timestamp=1&signature=abc", "symbol=A&timestamp=1"),
        ("%73ignature=abc&symbol=A", "symbol=A"),
        ("listenKey=abc&Signature=x", ""),
        ("", ""),
    ],
)
def test_a_query_goes_as_it_came_without_its_secrets(query: str, sent: str) -> None:
    assert public_query(query) == sent


def test_an_answer_comes_back_with_status_body_and_headers_as_upstream_gave_them() -> None:
    packed = gzip.compress(b'{"serverTime": 1}')
    headers = {
        "Content-Type": "application/json;charset=utf-8", "Content-Encoding": "gzip",
        "X-MBX-USED-WEIGHT-1M": "77", "Retry-After": "3", "X-Own": "1",
    }  # fmt: skip

    async def body() -> None:
        up = Upstream(bodies={"/fapi/v1/klines": web.Response(body=packed, status=429)})
        up.bodies["/fapi/v1/klines"].headers.update(headers)
        async with relayed(up) as between, aiohttp.ClientSession(auto_decompress=False) as session:
            url = f"http://127.0.0.1:{between.port}/fapi/v1/klines?symbol=A&signature=s%2B"
            given = {"X-MBX-APIKEY": SECRET, "Authorization": SECRET, "Cookie": SECRET}
            async with session.get(URL(url, encoded=True), headers=given) as answer:
                assert (answer.status, await answer.read()) == (429, packed)
                assert {k: answer.headers[k] for k in headers} == headers
        assert up.asked == ["/fapi/v1/klines?symbol=A"]
        [seen] = up.headers
        assert set(seen) <= {"Host", "Accept", "Accept-Encoding", "User-Agent"}
        assert SECRET not in str(seen)

    run(body)


def test_an_answer_without_an_end_or_an_upstream_without_a_door_is_said_to_be_missing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(relay, "ANSWER_BYTES_MAX", 1000)

    async def body() -> None:
        bodies = {
            "/fapi/v1/time": web.Response(body=b"x" * 1000),
            "/fapi/v1/depth": web.Response(body=b"x" * 1001),
        }
        async with relayed(Upstream(bodies=bodies)) as between:
            url = f"http://127.0.0.1:{between.port}/fapi/v1/"
            async with aiohttp.ClientSession() as session:
                async with session.get(url + "time") as answer:
                    assert answer.status == 200
                async with session.get(url + "depth") as answer:
                    assert answer.status == 503 and "more than 1000" in await answer.text()
        async with aiohttp.ClientSession() as session:
            with pytest.raises(AskError, match="Cannot connect"):
                await follow.ask(session, f"http://127.0.0.1:{between.port}", "/fapi/v1/time")

    run(body)


@pytest.mark.parametrize(("told", "quiet_s"), [({"Retry-After": "7"}, 7.0), ({}, follow.QUIET_S)])
def test_an_upstream_that_wants_quiet_is_asked_nothing_until_then(
    told: dict[str, str], quiet_s: float
) -> None:
    async def body() -> None:
        up = Upstream(bodies={"/fapi/v1/time": web.Response(status=429, headers=told)})
        made = paper.create(PaperSetup("w", "http://up", 0), ())
        async with listening(up.serve) as port, aiohttp.ClientSession() as session:
            with pytest.raises(AskError) as refused:
                await follow.ask_clock(session, f"http://127.0.0.1:{port}")
            assert (refused.value.status, refused.value.quiet_s) == (429, quiet_s)
            follower = follow.Follower(made, session, "", "", None, asyncio.Event())  # type: ignore[arg-type]
            assert not follower.is_quiet
            follower.heed(AskError("no answer"))
            assert not follower.is_quiet
            follower.heed(refused.value)
            assert follower.is_quiet

    run(body)


def test_questions_and_sockets_beyond_their_bounds_are_refused_as_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(proxy, "CALLS_MAX", 1)
    monkeypatch.setattr(proxy, "SOCKETS_MAX", 1)
    reached, go = asyncio.Event(), asyncio.Event()

    async def slow(request: web.BaseRequest) -> web.StreamResponse:
        reached.set()
        await go.wait()
        return web.Response(body=b"{}")

    async def body() -> None:
        async with listening(slow) as up_port, aiohttp.ClientSession() as session:
            made = paper.create(PaperSetup("w", f"http://127.0.0.1:{up_port}", 0), ())
            store = Store(tmp_path)
            store.create(made)
            clock = MarketClock(0.0, boot_ns())
            door = proxy.Proxy(made, store, session, "ws://127.0.0.1:9", clock)
            async with listening(door.serve) as port:
                url = f"http://127.0.0.1:{port}/fapi/v1/time"
                first = asyncio.ensure_future(session.get(url))
                await reached.wait()
                async with session.get(url) as second:
                    assert (second.status, (await second.json())["code"]) == (503, -1001)
                go.set()
                assert (await first).status == 200
                ws = f"ws://127.0.0.1:{port}/private/ws/KEY"
                async with session.ws_connect(ws):
                    with pytest.raises(aiohttp.WSServerHandshakeError, match="503"):
                        await session.ws_connect(ws)
                async with session.get(f"http://127.0.0.1:{port}/nowhere") as answer:
                    assert (answer.status, (await answer.json())["code"]) == (404, -5000)

    run(body)


def test_a_change_is_on_disk_before_a_client_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[int, int, str]] = []

    async def body() -> None:
        async with aiohttp.ClientSession() as session:
            made = paper.create(PaperSetup("w", "http://up", 0), ())
            store = Store(tmp_path)
            store.create(made)
            door = proxy.Proxy(made, store, session, "ws://up", MarketClock(0.0, boot_ns()))
            door.desk.keys.key, door.desk.keys.until_ms = "k", 1 << 60

            def look(payload: dict[str, Any], key: str) -> None:
                lines = (tmp_path / "ledger.jsonl").read_bytes().splitlines()
                kept = orjson.loads((tmp_path / JOURNAL_FILE).read_bytes().splitlines()[-1])
                seen.append((len(lines), kept["ledger_seq"], kept["change"]["wallet"]))

            monkeypatch.setattr(door.hub, "tell", look)
            open_account(made, Moment(0, 0))
            door.carry_out()

    run(body)
    assert seen == [(1, 1, "10000")]
