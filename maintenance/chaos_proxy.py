"""A loopback relay before Redis that swallows replies: executed there, never told here.

What no server command can do: the reply to a write of risk's is dropped and the connection cut,
so that the writer cannot know whether it stands. Bytes are passed on as they come; a request is
known by the key that it names. The relay runs in a thread of its own.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from typing import Any, Final

from maintenance.redis_server import LOOPBACK

CHUNK_BYTES: Final = 1 << 16
CALL_S_MAX: Final = 10.0  # for the relay's thread to answer


class Proxy:
    """Use as a context manager; `port` is where risk connects."""

    def __init__(self, target_port: int, mark: bytes) -> None:
        self._target_port, self._mark = target_port, mark  # of the requests that may be met
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._relays: set[asyncio.Task[None]] = set()
        self._left = 0  # replies still to be swallowed
        self._server: asyncio.Server | None = None
        self.port = 0
        self.swallowed = 0

    def __enter__(self) -> Proxy:
        self._thread.start()
        self._call(self._listen())
        return self

    def __exit__(self, *exc: object) -> None:
        self._call(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(CALL_S_MAX)
        self._loop.close()

    def swallow(self, times: int) -> None:
        """The replies to so many of the next marked requests are lost; 0 ends it."""
        self._loop.call_soon_threadsafe(setattr, self, "_left", times)

    def _call(self, work: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(CALL_S_MAX)

    async def _listen(self) -> None:
        self._server = await asyncio.start_server(self._serve, LOOPBACK, 0)
        self.port = self._server.sockets[0].getsockname()[1]

    async def _close(self) -> None:
        if self._server is not None:
            self._server.close()
        relays = list(self._relays)
        for relay in relays:
            relay.cancel()
        await asyncio.gather(*relays, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._relays.add(task)
        back: asyncio.StreamWriter | None = None
        ways: list[asyncio.Task[None]] = []
        try:
            answers, back = await asyncio.open_connection(LOOPBACK, self._target_port)
            met = asyncio.Event()
            ways = [
                asyncio.ensure_future(self._ask(reader, back, met)),
                asyncio.ensure_future(self._answer(answers, writer, met)),
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
        self, reader: asyncio.StreamReader, to: asyncio.StreamWriter, met: asyncio.Event
    ) -> None:
        while data := await reader.read(CHUNK_BYTES):
            if self._left and self._mark in data:
                self._left -= 1
                met.set()
            to.write(data)
            await to.drain()

    async def _answer(
        self, answers: asyncio.StreamReader, to: asyncio.StreamWriter, met: asyncio.Event
    ) -> None:
        while data := await answers.read(CHUNK_BYTES):
            if met.is_set():  # one request at a time on a connection: this is its reply
                self.swallowed += 1
                return
            to.write(data)
            await to.drain()
