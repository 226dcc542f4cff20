"""Real sockets: a scripted WebSocket server against connection and link, cuts inside frames too."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from certificates import server_context
from websockets.asyncio.server import Server, ServerConnection, serve

from feed import lane
from feed.address import Address
from feed.connection import Connection
from feed.link import Link
from feed.session import Pace
from records import TRADE
from ring import FEED_COUNTERS, HEAD, TAIL, Ring, create

Handler = Callable[[ServerConnection], Awaitable[None]]


def agg(number: int) -> str:
    return json.dumps(
        {"stream": "btcusdt@aggTrade", "data": {
            "e": "aggTrade", "E": 1_795_000_000_000 + number, "a": number, "s": "BTCUSDT",
            "p": "84551.10", "q": "0.030", "T": 1_795_000_000_000 + number, "m": False, "st": 1,
        }},
        separators=(",", ":"),
    )  # fmt: skip


class Rig:
    """A ring with one symbol whose trades start at any id."""

    def __init__(self, folder: Path) -> None:
        self.ring: Ring = create(folder / "ring", 1 << 14, 4, "test")
        self.lane = lane.make_lane(self.ring)
        self.lane.control[lane.BOUND_MS] = 60_000
        lane.set_symbol(self.lane, 0, "BTCUSDT", lane.LIVE, 0)
        self.state = np.zeros(8, np.int64)
        self.replies: list[bytes] = []

    def connection(self, url: str) -> Connection:
        return Connection(url, self.lane, self.state, self.ring.feed_hist, self.replies.append)

    def ids(self) -> list[int]:
        head = int(self.ring.words[HEAD])
        slots = self.ring.slots[np.arange(int(self.ring.words[TAIL]), head) & self.ring.mask]
        return [int(n) for n in slots["id"][slots["kind"] == TRADE]]

    def count(self, name: str) -> int:
        return int(self.ring.feed_stats[FEED_COUNTERS.index(name)])

    def close(self) -> None:
        del self.lane
        self.ring.close()


@pytest.fixture
def rig(tmp_path: Path) -> Any:
    made = Rig(tmp_path)
    yield made
    made.close()


async def listen(handler: Handler) -> tuple[Server, str]:
    server = await serve(handler, "127.0.0.1", 0, compression=None, ping_interval=None)
    port = next(iter(server.sockets)).getsockname()[1]
    return server, f"ws://127.0.0.1:{port}/market/stream"


async def dial(rig: Rig, url: str) -> Connection:
    loop = asyncio.get_running_loop()
    port = int(url.split(":")[2].split("/")[0])
    _, connection = await loop.create_connection(lambda: rig.connection(url), "127.0.0.1", port)
    await asyncio.wait_for(connection.opened, 10)
    return connection


def run(work: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(asyncio.wait_for(work(), 60))


async def until(true: Callable[[], bool]) -> None:
    while not true():
        await asyncio.sleep(0.005)


def test_frames_of_every_size_arrive_in_order(rig: Rig) -> None:
    async def handler(socket: ServerConnection) -> None:
        for number in range(1, 2_001):
            await socket.send(agg(number))
        await socket.send(agg(2_001)[:-1] + ',"pad":"' + "x" * 3_000_000 + '"}')
        await socket.send(agg(2_002))
        await socket.wait_closed()

    async def work() -> None:
        server, url = await listen(handler)
        async with server:
            connection = await dial(rig, url)
            await until(lambda: len(rig.ids()) == 2_002)
            connection.close()
            await connection.closed

    run(work)
    assert rig.ids() == list(range(1, 2_003)) and rig.count("frames") == 2_002


def test_ping_fragments_replies_and_binary_take_the_slow_path(rig: Rig) -> None:
    pongs: list[float] = []

    async def handler(socket: ServerConnection) -> None:
        await socket.send(agg(1))
        pongs.append(await (await socket.ping(b"1795000000000")))
        text = agg(2)
        await socket.send([text[:10], text[10:50], text[50:]])
        await socket.send(b"\x00\x01")
        await socket.send('{"result":null,"id":1}')
        await socket.send(['{"result"', ':null,"id":2}'])
        await socket.send(agg(3))
        await socket.close(1008, "Too many requests")

    async def work() -> None:
        server, url = await listen(handler)
        async with server:
            connection = await dial(rig, url)
            await asyncio.wait_for(connection.closed, 10)
            assert "Too many requests" in connection.reason

    run(work)
    assert rig.ids() == [1, 2, 3] and len(pongs) == 1
    assert rig.replies == [b'{"result":null,"id":1}', b'{"result":null,"id":2}']


def test_garbage_costs_a_counter_and_not_the_connection(rig: Rig) -> None:
    async def handler(socket: ServerConnection) -> None:
        for text in ("", "{", "[}", "nonsense", agg(1)[:-1], '{"e":'):
            await socket.send(text)
        await socket.send(agg(1))
        await socket.wait_closed()

    async def work() -> None:
        server, url = await listen(handler)
        async with server:
            connection = await dial(rig, url)
            await until(lambda: rig.ids() == [1])
            connection.close()

    run(work)
    assert rig.count("malformed") == 6 and rig.count("frames") == 7


@pytest.mark.parametrize(
    "answer",
    [b"HTTP/1.1 403 Forbidden\r\n\r\n", b"HTTP/1.1 101 X\r\n\r\n", b"\x00" * 70_000, b""],
)
def test_a_refused_handshake_is_an_error_with_a_reason(rig: Rig, answer: bytes) -> None:
    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        await writer.drain()
        writer.close()

    async def work() -> None:
        server = await asyncio.start_server(handler, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        async with server:
            with pytest.raises(Exception, match=r"."):
                await dial(rig, f"ws://127.0.0.1:{port}/x")

    run(work)


class Exchange:
    """A scripted /market: acks, counts trades on over connections, cuts each at a byte."""

    def __init__(self, cuts: list[int], per_life: int, lost: int) -> None:
        self.cuts, self.per_life, self.lost = cuts, per_life, lost
        self.next_id, self.lives = 1, 0
        self.asked: list[dict[str, Any]] = []

    async def __call__(self, socket: ServerConnection) -> None:
        request = json.loads(await socket.recv())
        self.asked.append(request)
        await socket.send(json.dumps({"result": None, "id": request["id"]}))
        life, self.lives = self.lives, self.lives + 1
        for _ in range(self.per_life):
            await socket.send(agg(self.next_id))
            self.next_id += 1
        if life >= len(self.cuts):
            await socket.wait_closed()
            return
        payload = agg(self.next_id).encode()
        whole = b"\x81\x7e" + len(payload).to_bytes(2, "big") + payload
        socket.transport.write(whole[: self.cuts[life]])
        await asyncio.sleep(0.02)
        socket.transport.abort()
        self.next_id += self.lost


def test_a_link_comes_back_after_cuts_inside_frames_and_finds_the_hole(rig: Rig) -> None:
    exchange = Exchange(cuts=[0, 1, 3, 40], per_life=50, lost=0)
    downs: list[str] = []
    acked: list[tuple[int, ...]] = []

    async def work() -> None:
        server, url = await listen(exchange)
        async with server:
            link = Link(
                url, "market", rig.lane, rig.ring.feed_hist,
                lambda lost: downs.append(lost.route), lambda _, rows: acked.append(rows),
                Address(), Pace(backoff_s=0.02, backoff_s_max=0.1),
            )  # fmt: skip
            link.subscribe({0: "BTCUSDT"})
            task = asyncio.ensure_future(link.run())
            await until(lambda: len(rig.ids()) == 250)
            exchange.next_id += 7
            link.reconnect("test")
            await until(lambda: rig.count("holes") == 1 and rig.count("held") == 50)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    run(work)
    assert rig.ids() == list(range(1, 251)) and downs == ["market"] * 6
    assert len(acked) == 6 and rig.count("connects") == 6
    assert all(
        ask["params"] == ["btcusdt@aggTrade", "btcusdt@markPrice@1s"] for ask in exchange.asked
    )
    assert int(rig.lane.symbols[0, lane.LAST_ID]) == 250


def linked(rig: Rig, url: str, address: Address, **more: Any) -> Link:
    return Link(
        url, "market", rig.lane, rig.ring.feed_hist, lambda _: None, lambda *_: None, address,
        Pace(backoff_s=0.01, backoff_s_max=0.01, connect_s_max=0.2), **more,
    )  # fmt: skip


def test_a_link_that_always_fails_stops_at_the_address_bound(rig: Rig) -> None:
    dialled = 0

    async def handler(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal dialled
        dialled += 1
        writer.close()

    async def work() -> None:
        server = await asyncio.start_server(handler, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        async with server:
            link = linked(rig, f"ws://127.0.0.1:{port}/x", Address(dials_max=5))
            task = asyncio.ensure_future(link.run())
            await until(lambda: dialled == 5)
            await asyncio.sleep(0.3)  # room for thirty more
            assert dialled == 5
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    run(work)


def test_an_untrusted_certificate_and_a_mute_port_are_ends_with_a_reason(
    rig: Rig, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    context, _ = server_context(tmp_path)

    async def mute(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    async def told(url: str, reason: str) -> None:
        caplog.clear()
        task = asyncio.ensure_future(linked(rig, url, Address()).run())
        await until(lambda: any(reason in record.getMessage() for record in caplog.records))
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    async def work() -> None:
        for tls, reason in ((context, "CERTIFICATE_VERIFY_FAILED"), (None, "TimeoutError")):
            server = await asyncio.start_server(mute, "127.0.0.1", 0, ssl=tls)
            port = server.sockets[0].getsockname()[1]
            async with server:
                await told(f"wss://127.0.0.1:{port}/x", reason)

    run(work)
