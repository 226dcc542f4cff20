"""HTTP/1.1 to one address over kept connections; whether a request may have arrived is known.

The transport of risk/exchange.py, over asyncio and httptools (the parser of Node). A request gets
a connection first and is made afterwards, so that what it signs is written in the same instant.
`Unsent` means that no byte left; `Lost` that the answer is missing and nobody knows. Nothing is
repeated, but a GET whose kept connection turned out to be dead.
"""

from __future__ import annotations

import asyncio
import ssl
import zlib
from collections.abc import Callable, Mapping
from typing import Final, cast
from urllib.parse import urlsplit

import httptools
from msgspec import Struct

BODY_BYTES_MAX: Final = 64 << 20  # of an answer, unpacked; the exchange's longest is some MB
HEADERS_MAX: Final = 200
KEPT_MAX: Final = 16  # idle connections; the newest is used first
IDLE_S: Final = 30.0  # an older one may be dead at the other end: it is not used again
_GZIP: Final = 16 + zlib.MAX_WBITS


class Unsent(OSError):
    """No connection: the request certainly did not arrive."""


class Lost(OSError):
    """Sent, and no whole answer: it may have been carried out."""


class Ask(Struct, frozen=True):
    """A request: `target` is path and query, `body` is sent as it is."""

    method: str
    target: str
    headers: Mapping[str, str]
    body: str = ""


class Told(Struct, frozen=True):
    """An answer; names of headers in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class Connection(asyncio.Protocol):
    """One socket, one request at a time."""

    def __init__(self) -> None:
        self.transport: asyncio.Transport | None = None
        self.closed = False
        self.used_s = 0.0  # loop time of its last answer
        self.answered = 0
        self._waiter: asyncio.Future[Told] | None = None
        self._begin()

    def _begin(self) -> None:
        self._parser = httptools.HttpResponseParser(self)
        self._headers: dict[str, str] = {}
        self._body: list[bytes] = []
        self._bytes = 0

    # --- asyncio ---

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's is none by its class

    def data_received(self, data: bytes) -> None:
        if self._waiter is None:  # nothing was asked
            self.close()
            return
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            self._fail(Lost(f"unreadable answer: {error}"))

    def connection_lost(self, error: Exception | None) -> None:
        self._fail(Lost(type(error).__name__ if error else "closed"))

    # --- httptools ---

    def on_message_begin(self) -> None:
        if self._waiter is None:  # behind an answer that is whole: not a peer to go on with
            self.closed = True

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers[name.decode("latin-1").lower()] = value.decode("latin-1")
        if len(self._headers) > HEADERS_MAX:
            self._fail(Lost("too many headers"))

    def on_body(self, data: bytes) -> None:
        self._bytes += len(data)
        if self._bytes > BODY_BYTES_MAX:
            self._fail(Lost("answer too long"))
            return
        self._body.append(data)

    def on_message_complete(self) -> None:
        status = self._parser.get_status_code()
        if 100 <= status < 200:  # an interim answer; the real one follows
            self._headers, self._body, self._bytes = {}, [], 0
            return
        waiter, self._waiter = self._waiter, None
        if waiter is None or waiter.done():
            return
        if not self._parser.should_keep_alive():
            self.close()
        self.answered += 1
        waiter.set_result(Told(status, self._headers, b"".join(self._body)))

    # --- ours ---

    def ask(self, data: bytes) -> asyncio.Future[Told]:
        """Write a request now; the answer comes later, or `Lost` does."""
        assert self._waiter is None and self.transport is not None
        if self.answered:
            self._begin()
        self._waiter = asyncio.get_running_loop().create_future()
        self.transport.write(data)
        return self._waiter

    def close(self) -> None:
        self.closed = True
        if self.transport is not None:
            self.transport.close()

    def _fail(self, error: Lost) -> None:
        waiter, self._waiter = self._waiter, None
        if waiter is not None and not waiter.done():
            waiter.set_exception(error)
        self.closed = True
        if self.transport is not None:
            self.transport.abort()


class Http:
    """Kept connections to `origin` (scheme://host[:port]). As many at once as are asked for."""

    def __init__(self, origin: str, timeout_s: float) -> None:
        parts = urlsplit(origin)
        self._secure = parts.scheme == "https"
        self._host = parts.hostname or ""
        self._port = parts.port or (443 if self._secure else 80)
        self._timeout_s = timeout_s
        self._tls: ssl.SSLContext | None = None
        self._kept: list[Connection] = []
        self._head = f"Host: {parts.netloc.rpartition('@')[2]}\r\n"

    async def request(self, make: Callable[[], Ask], timeout_s: float | None = None) -> Told:
        """`make` is called when a connection is ready; nothing is awaited between it and the
        write. The answer may take `timeout_s`, or what is usual here. Raises Unsent, Lost,
        TimeoutError, and what `make` raises."""
        while True:
            connection = self._kept_one()
            if connection is None:
                connection = await self._connect()
            again = connection.answered > 0
            sent = make()
            try:
                told = await self._converse(connection, sent, timeout_s or self._timeout_s)
            except Lost:
                if again and sent.method == "GET":
                    continue
                raise
            return told

    async def _converse(self, connection: Connection, sent: Ask, timeout_s: float) -> Told:
        waiter = connection.ask(self._bytes(sent))
        try:
            async with asyncio.timeout(timeout_s):
                told = await waiter
        except (TimeoutError, asyncio.CancelledError):
            connection.close()
            raise
        self._keep(connection)
        if told.headers.get("content-encoding") == "gzip":
            told = Told(told.status, told.headers, unpack(told.body))
        return told

    def _bytes(self, sent: Ask) -> bytes:
        lines = [f"{sent.method} {sent.target} HTTP/1.1\r\n", self._head]
        lines += [f"{name}: {value}\r\n" for name, value in sent.headers.items()]
        if sent.method == "GET":  # what is long is asked for
            lines.append("Accept-Encoding: gzip\r\n")
        else:
            lines.append(f"Content-Length: {len(sent.body)}\r\n")
        text = "".join(lines)
        assert text.count("\n") == len(lines), "a line break within a line"
        return f"{text}\r\n{sent.body}".encode("ascii")

    def _kept_one(self) -> Connection | None:
        oldest_s = asyncio.get_running_loop().time() - IDLE_S
        while self._kept:
            connection = self._kept.pop()
            if not connection.closed and connection.used_s >= oldest_s:
                return connection
            connection.close()
        return None

    def _keep(self, connection: Connection) -> None:
        if connection.closed:
            connection.close()
            return
        connection.used_s = asyncio.get_running_loop().time()
        self._kept.append(connection)
        if len(self._kept) > KEPT_MAX:
            self._kept.pop(0).close()

    async def _connect(self) -> Connection:
        if self._secure and self._tls is None:
            self._tls = await asyncio.to_thread(ssl.create_default_context)
        try:
            async with asyncio.timeout(self._timeout_s):
                _, connection = await asyncio.get_running_loop().create_connection(
                    Connection, self._host, self._port, ssl=self._tls
                )
        except (OSError, TimeoutError) as error:
            raise Unsent(f"{type(error).__name__} {error}") from error
        return connection

    async def close(self) -> None:
        for connection in self._kept:
            connection.close()
        self._kept.clear()
        await asyncio.sleep(0)  # transports end in the next turn


def unpack(data: bytes) -> bytes:
    """A gzip body, bounded. Raises Lost."""
    unpacker = zlib.decompressobj(_GZIP)
    try:
        made = unpacker.decompress(data, BODY_BYTES_MAX)
    except zlib.error as error:
        raise Lost(f"unreadable answer: {error}") from error
    if not unpacker.eof:
        raise Lost("answer cut or too long")
    return made
