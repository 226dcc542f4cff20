"""A loopback relay before the exchange that can hold bytes back and let them go all at once.

What the exchange itself cannot be told to do: stand still towards us while its market goes on.
Nothing is lost or reordered: a request that was on its way arrives late, after its sender has
given up; answers and stream frames wait, first here, then in the buffers of the sockets. The
relay runs in a thread of its own and never parses more than the first line of a connection.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Coroutine
from typing import Any, Final

from maintenance.redis_server import LOOPBACK

CHUNK_BYTES: Final = 1 << 16
CALL_S_MAX: Final = 10.0  # for the relay's thread to answer
FLUSH_S: Final = 2.0  # for the last bytes of a connection to leave
EVERYTHING: Final = "/"


class Relay:
    """Use as a context manager; `port` is where risk finds the exchange."""

    def __init__(self, target_port: int) -> None:
        self._target_port = target_port
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._connections: set[asyncio.Task[None]] = set()
        self._free = asyncio.Event()
        self._free.set()
        self._held_path = EVERYTHING
        self._server: asyncio.Server | None = None
        self.port = 0
        self.waited = 0  # pieces that were held back, ever

    def __enter__(self) -> Relay:
        self._thread.start()
        self._call(self._listen())
        return self

    def __exit__(self, *exc: object) -> None:
        self._call(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(CALL_S_MAX)
        self._loop.close()

    def hold(self, path: str = EVERYTHING) -> None:
        """Nothing passes on connections whose first request was to a path that begins so."""
        self._call(self._set(path))

    def release(self) -> None:
        """Everything that waited goes out, in its order."""
        self._call(self._set(None))

    def _call(self, work: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(CALL_S_MAX)

    async def _set(self, path: str | None) -> None:
        if path is None:
            self._free.set()
        else:
            self._held_path = path
            self._free.clear()

    async def _listen(self) -> None:
        self._server = await asyncio.start_server(self._serve, LOOPBACK, 0)
        self.port = self._server.sockets[0].getsockname()[1]

    async def _close(self) -> None:
        if self._server is not None:
            self._server.close()
        connections = list(self._connections)
        for task in connections:
            task.cancel()
        await asyncio.gather(*connections, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        back: asyncio.StreamWriter | None = None
        try:
            first = await reader.read(CHUNK_BYTES)
            words = first.split(b" ", 2)
            path = words[1].decode(errors="replace") if len(words) > 1 else ""
            answers, back = await asyncio.open_connection(LOOPBACK, self._target_port)
            # each way ends by itself: what one side sent before it hung up still arrives
            await asyncio.gather(
                self._pass_on(path, reader, back, first), self._pass_on(path, answers, writer)
            )
            async with asyncio.timeout(FLUSH_S):
                await asyncio.gather(back.wait_closed(), writer.wait_closed())
        except (OSError, TimeoutError):
            pass  # one side is away: so are we
        finally:
            for side in (writer, back):
                if side is not None:
                    side.transport.abort()
            self._connections.discard(task)

    async def _pass_on(
        self,
        path: str,
        reader: asyncio.StreamReader,
        to: asyncio.StreamWriter,
        data: bytes = b"",
    ) -> None:
        """One way, until its sender hung up; then its receiver is told so."""
        with contextlib.suppress(OSError):
            data = data or await reader.read(CHUNK_BYTES)
            while data:
                if not self._free.is_set() and path.startswith(self._held_path):
                    self.waited += 1
                    await self._free.wait()
                to.write(data)
                await to.drain()
                data = await reader.read(CHUNK_BYTES)
        to.close()
