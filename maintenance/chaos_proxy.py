"""A loopback relay before Redis: what a network and a half-dead server do to replies.

Each risk process has a port of its own, so that one can be cut off while the other is not. A reply
can be swallowed (executed there, never told here), cut off in its middle, or late; a port can be a
black hole, which neither passes nor refuses: what was sent into it arrives when it heals, as with
a network that sends again. Bytes are passed on as they come; a request is known by the key that it
names. The relay runs in a thread of its own.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Collection, Coroutine
from typing import Any, Final

from maintenance.redis_server import LOOPBACK

CHUNK_BYTES: Final = 1 << 16
CALL_S_MAX: Final = 10.0  # for the relay's thread to answer


class Proxy:
    """Use as a context manager; `ports` are where the clients of each name connect."""

    def __init__(self, target_port: int, mark: bytes, names: Collection[str]) -> None:
        self._target_port, self._mark = target_port, mark  # of the requests that may be met
        self._cut_mark = mark
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._relays: set[asyncio.Task[None]] = set()
        self._left = 0  # replies still to be swallowed
        self._cuts: list[int] = []  # bytes of the next marked replies that are still told
        self._late_s = 0.0
        self._servers: list[asyncio.Server] = []
        self._open = {name: asyncio.Event() for name in names}  # clear: a black hole
        self.ports: dict[str, int] = {}
        self.swallowed = 0
        self.cut = 0
        self.late = 0

    def __enter__(self) -> Proxy:
        self._thread.start()
        self._call(self._listen())
        return self

    def __exit__(self, *exc: object) -> None:
        self._call(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(CALL_S_MAX)
        self._loop.close()

    # --- faults ---

    def swallow(self, times: int) -> None:
        """The replies to so many of the next marked requests are lost; 0 ends it."""
        self._loop.call_soon_threadsafe(setattr, self, "_left", times)

    def cut_replies(self, after_bytes: Collection[int], mark: bytes = b"") -> None:
        """The replies to the next requests with this mark end after so many bytes; none ends it."""
        self._loop.call_soon_threadsafe(setattr, self, "_cut_mark", mark or self._mark)
        self._loop.call_soon_threadsafe(setattr, self, "_cuts", list(after_bytes))

    def slow(self, seconds: float) -> None:
        """Every reply is late by so much; 0 ends it."""
        self._loop.call_soon_threadsafe(setattr, self, "_late_s", seconds)

    def cut_off(self, names: Collection[str]) -> None:
        """These, and only these, are cut off from now on; nobody ends it."""

        def change() -> None:
            for name, flows in self._open.items():
                (flows.clear if name in names else flows.set)()

        self._loop.call_soon_threadsafe(change)

    # --- relaying ---

    def _call(self, work: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(CALL_S_MAX)

    async def _listen(self) -> None:
        for name, flows in self._open.items():
            flows.set()

            async def serve(
                reader: asyncio.StreamReader,
                writer: asyncio.StreamWriter,
                flows: asyncio.Event = flows,
            ) -> None:
                await self._serve(reader, writer, flows)

            server = await asyncio.start_server(serve, LOOPBACK, 0)
            self._servers.append(server)
            self.ports[name] = server.sockets[0].getsockname()[1]

    async def _close(self) -> None:
        for server in self._servers:
            server.close()
        relays = list(self._relays)
        for relay in relays:
            relay.cancel()
        await asyncio.gather(*relays, return_exceptions=True)

    async def _serve(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, flows: asyncio.Event
    ) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._relays.add(task)
        back: asyncio.StreamWriter | None = None
        ways: list[asyncio.Task[None]] = []
        try:
            await flows.wait()
            answers, back = await asyncio.open_connection(LOOPBACK, self._target_port)
            met = asyncio.Event()
            ways = [
                asyncio.ensure_future(self._ask(reader, back, met, flows)),
                asyncio.ensure_future(self._answer(answers, writer, met, flows)),
            ]
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        except OSError:
            pass  # Redis is away: so are we
        finally:
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)
            for side in (writer, back):
                if side is not None:
                    side.transport.abort()
            self._relays.discard(task)

    async def _ask(
        self,
        reader: asyncio.StreamReader,
        to: asyncio.StreamWriter,
        met: asyncio.Event,
        flows: asyncio.Event,
    ) -> None:
        while data := await reader.read(CHUNK_BYTES):
            if (self._left and self._mark in data) or (self._cuts and self._cut_mark in data):
                met.set()
            await flows.wait()
            to.write(data)
            await to.drain()

    async def _answer(
        self,
        answers: asyncio.StreamReader,
        to: asyncio.StreamWriter,
        met: asyncio.Event,
        flows: asyncio.Event,
    ) -> None:
        while data := await answers.read(CHUNK_BYTES):
            if self._late_s:
                self.late += 1
                await asyncio.sleep(self._late_s)
            await flows.wait()
            if met.is_set() and (self._left or self._cuts):  # one request at a time on a
                if self._left:  # connection: this is its reply
                    self._left -= 1
                    self.swallowed += 1
                    return
                self.cut += 1
                to.write(data[: self._cuts.pop(0)])
                await to.drain()
                to.close()  # what was told arrives, then the end
                await to.wait_closed()
                return
            met.clear()
            to.write(data)
            await to.drain()
