"""A loopback TCP relay that fails on command: between feed and venue, for tests and the soak.

It relays bytes and never parses a frame; all it reads is the first request of a connection, to
tell WebSockets from REST. Faults hit WebSockets: cut after so many more bytes (which is inside a
frame nearly always), stalled, swallowed silently, answered with given bytes, left hanging, or
refused at the port. With `tls` it ends TLS, so that feed speaks TLS to a plain venue.

The relay runs in a thread of its own; every method may be called from any other.
"""

from __future__ import annotations

import asyncio
import random
import socket
import ssl
import struct
import threading
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any

HOST = "127.0.0.1"
CHUNK_BYTES = 1 << 16
HEAD_BYTES_MAX = 1 << 16
CALL_S_MAX = 30.0  # for the relay's thread to answer
RST, FIN = "rst", "fin"


@dataclass(frozen=True, slots=True)
class Fault:
    """One cut of a seeded schedule."""

    at_s: float
    how: str
    route: str  # "" cuts every WebSocket
    after_bytes: int
    refused_s: float  # the port refuses for so long


def schedule(seed: int, every_s: float, seconds: float) -> list[Fault]:
    """Cuts about every `every_s`, never aligned with frames or minutes; the same for a seed."""
    rng, made, at_s = random.Random(seed), [], 0.0
    while (at_s := at_s + every_s * rng.uniform(0.75, 1.25)) < seconds:
        made.append(
            Fault(
                at_s,
                rng.choice((RST, RST, FIN)),
                rng.choice(("", "", "", "market", "public")),
                rng.choice((0, rng.randrange(300), rng.randrange(100_000))),
                rng.choice((0.0, 0.0, rng.uniform(0.1, 1.5))),
            )
        )
    return made


class Relay:
    """One client and its connection to the target."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer
        self.target: asyncio.StreamWriter | None = None
        self.path = ""
        self.is_socket = False
        self.bytes_left: int | None = None  # to the client; then it is cut
        self.how = RST
        self.swallow = False
        self.task: asyncio.Task[None] | None = None

    def kill(self) -> None:
        """End both sides at once."""
        for writer in (self.writer, self.target):
            if writer is None or writer.transport.is_closing():
                continue
            if self.how == RST:
                raw = writer.get_extra_info("socket")
                raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                writer.transport.abort()
            else:
                writer.close()
        if self.task is not None and self.task is not asyncio.current_task():
            self.task.cancel()


class FaultProxy:
    """Use as a context manager. `port` is where feed connects."""

    def __init__(self, target_port: int, tls: ssl.SSLContext | None = None) -> None:
        self._target_port, self._tls = target_port, tls
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._server: asyncio.Server | None = None
        self._relays: set[Relay] = set()
        self._flowing = asyncio.Event()
        self._answers: list[bytes | None] = []  # to the next WebSockets; None: never answer
        self._cut_heads: list[int] = []  # bytes after which the next WebSockets are cut
        self.port = 0
        self.sockets_seen = 0
        self.cuts = 0

    def __enter__(self) -> FaultProxy:
        self._thread.start()
        self._flowing.set()
        self._run(self._listen())
        return self

    def __exit__(self, *exc: object) -> None:
        self._run(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(CALL_S_MAX)
        self._loop.close()

    def _run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(CALL_S_MAX)

    def _do(self, work: Callable[[], Any]) -> Any:
        async def done() -> Any:
            return work()

        return self._run(done())

    # --- faults ---

    def cut(self, how: str = RST, after_bytes: int = 0, route: str = "") -> int:
        """Cut WebSockets of a route, or all, after so many more bytes; how many it hits."""

        def work() -> int:
            hit = [r for r in self._relays if r.is_socket and f"/{route}" in r.path]
            for relay in hit:
                relay.how, relay.bytes_left = how, after_bytes
                if after_bytes == 0:
                    relay.kill()
            self.cuts += 1
            return len(hit)

        return int(self._do(work))

    def stall(self, on: bool) -> None:
        """Relay nothing, in either direction, while on; no byte is lost."""
        self._do(self._flowing.clear if on else self._flowing.set)

    def swallow(self) -> None:
        """Present WebSockets never hear anything again, and are never told why."""

        def work() -> None:
            for relay in self._relays:
                relay.swallow = relay.is_socket

        self._do(work)

    def refuse(self, on: bool) -> None:
        """Nobody listens at the port while on."""
        self._run(self._close_door() if on else self._listen())

    def answer(self, data: bytes | None, times: int = 1) -> None:
        """Answer the next WebSockets with these bytes and close; None leaves them hanging."""
        self._do(lambda: self._answers.extend([data] * times))

    def cut_heads(self, *after_bytes: int) -> None:
        """Cut the next WebSockets after so many bytes of what the target says first."""
        self._do(lambda: self._cut_heads.extend(after_bytes))

    # --- the relay ---

    async def _listen(self) -> None:
        self._server = await asyncio.start_server(self._serve, HOST, self.port, ssl=self._tls)
        self.port = self._server.sockets[0].getsockname()[1]

    async def _close_door(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None

    async def _close(self) -> None:
        await self._close_door()
        tasks = [relay.task for relay in self._relays if relay.task is not None]
        for relay in list(self._relays):
            relay.kill()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        relay = Relay(reader, writer)
        relay.task = asyncio.current_task()
        self._relays.add(relay)
        try:
            await self._relay(relay)
        except (OSError, asyncio.IncompleteReadError, asyncio.CancelledError, ssl.SSLError):
            pass  # an end that somebody wanted; cancelled by kill() only
        finally:
            self._relays.discard(relay)
            relay.kill()

    async def _relay(self, relay: Relay) -> None:
        head = await relay.reader.readuntil(b"\r\n\r\n")
        relay.path = head.split(b" ")[1].decode()
        relay.is_socket = b"upgrade: websocket" in head.lower()
        if relay.is_socket:
            self.sockets_seen += 1
            if self._answers:
                await self._answer(relay, self._answers.pop(0))
                return
            if self._cut_heads:
                relay.bytes_left = self._cut_heads.pop(0)
        back, relay.target = await asyncio.open_connection(HOST, self._target_port)
        relay.target.write(head)
        ways = [
            asyncio.ensure_future(self._pump(relay, relay.reader, relay.target, False)),
            asyncio.ensure_future(self._pump(relay, back, relay.writer, True)),
        ]
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)

    async def _answer(self, relay: Relay, data: bytes | None) -> None:
        if data is None:
            await asyncio.Event().wait()
            return
        relay.how = FIN
        relay.writer.write(data)
        await relay.writer.drain()

    async def _pump(
        self, relay: Relay, source: asyncio.StreamReader, to: asyncio.StreamWriter, back: bool
    ) -> None:
        while data := await source.read(CHUNK_BYTES):
            await self._flowing.wait()
            if relay.swallow:
                continue
            if back and relay.bytes_left is not None:
                data = data[: relay.bytes_left]
                relay.bytes_left -= len(data)
            to.write(data)
            if back and relay.bytes_left == 0:
                if relay.how == FIN:
                    await to.drain()
                else:
                    await asyncio.sleep(0.01)  # let what was written leave before the reset
                return
            await to.drain()
        if not back:
            return
        relay.how = FIN  # the target closed: so do we, in order
