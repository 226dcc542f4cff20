"""Risk's own eyes: the user stream, marks of all symbols, best bid and ask of a few.

I/O shells of risk/main.py. Each keeps one connection, reconnects with jittered back-off, and says
so: after the user stream was away, the caller reconciles before it trusts what it knows. Frames
that cannot be read are counted, never fatal.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, Final

import orjson
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import WebSocketException

from risk.events import Done, MarksSeen, QuoteSeen
from risk.exchange import Exchange

LISTEN_KEY: Final = "/fapi/v1/listenKey"
RENEW_MS: Final = 1_800_000.0  # market time: half the key's life
BACKOFF_S: Final = (0.1, 5.0)  # first and longest pause between connections
SILENT_S: Final = 20.0  # marks come every second; a mute connection is replaced
CLOSE_S: Final = 1.0  # for the other end to say goodbye: a holder that is out must stand by soon
SYMBOLS_MAX: Final = 200  # book tickers on one connection, far below the exchange's limit
log = logging.getLogger("risk")


async def keep(name: str, run: Callable[[], Awaitable[None]]) -> None:
    """Run a connection again and again; `run` returns or raises when it ended."""
    pause_s = BACKOFF_S[0]
    while True:
        started_s = asyncio.get_running_loop().time()
        try:
            await run()
        except (OSError, WebSocketException, TimeoutError) as error:
            log.warning("connection lost stream=%s error=%s", name, type(error).__name__)
        if asyncio.get_running_loop().time() - started_s > BACKOFF_S[1]:
            pause_s = BACKOFF_S[0]
        await asyncio.sleep(pause_s * random.uniform(0.5, 1.0))
        pause_s = min(pause_s * 2, BACKOFF_S[1])


def frames(message: str | bytes) -> list[dict[str, Any]]:
    """The objects of one message: bare, wrapped by /stream, or an array."""
    try:
        told = orjson.loads(message)
    except ValueError:
        return []
    if isinstance(told, dict) and "data" in told:
        told = told["data"]
    rows = told if isinstance(told, list) else [told]
    return [row for row in rows if isinstance(row, dict)]


class UserStream:
    """listenKey and socket; `on_open` before the first frame, so that a snapshot can follow."""

    def __init__(
        self,
        exchange: Exchange,
        ws_url: str,
        speed: float,
        on_open: Callable[[], None],
        on_frame: Callable[[dict[str, Any]], None],
    ) -> None:
        self._exchange = exchange
        self._url = ws_url
        self._renew_s = RENEW_MS / 1000.0 / max(speed, 1.0)
        self._on_open = on_open
        self._on_frame = on_frame

    async def run(self) -> None:
        """One key, one connection, until either ends."""
        await self._exchange.calm()
        made = await self._exchange.fetch("POST", LISTEN_KEY)
        if not isinstance(made, Done):
            log.warning("no listenKey reason=%s", made.reason)
            return
        key = made.body["listenKey"]
        async with connect(
            f"{self._url}/private/ws?listenKey={key}",
            compression=None,
            max_queue=None,
            close_timeout=CLOSE_S,
        ) as socket:
            self._on_open()
            renewer = asyncio.create_task(self._renew(socket))
            try:
                async for message in socket:
                    for frame in frames(message):
                        if frame.get("e") == "listenKeyExpired":
                            return
                        self._on_frame(frame)
            finally:
                renewer.cancel()

    async def _renew(self, socket: ClientConnection) -> None:
        """Extend the key at half its life; one that is gone needs a new socket as well."""
        while True:
            await asyncio.sleep(self._renew_s)
            await self._exchange.calm()
            result = await self._exchange.fetch("PUT", LISTEN_KEY)
            if not isinstance(result, Done):
                log.warning("listenKey not renewed reason=%s", result.reason)
                await socket.close()
                return


class Marks:
    """`!markPrice@arr@1s`: values positions with every node dead."""

    def __init__(self, ws_url: str, on_marks: Callable[[MarksSeen], None]) -> None:
        self._url = f"{ws_url}/market/ws/!markPrice@arr@1s"
        self._on_marks = on_marks

    async def run(self) -> None:
        async with connect(self._url, compression=None, close_timeout=CLOSE_S) as socket:
            while True:
                message = await asyncio.wait_for(socket.recv(), SILENT_S)
                rows, newest = [], 0
                for row in frames(message):
                    if row.get("e") == "markPriceUpdate" and row.get("st", 1) == 1:
                        rate, next_ms = str(row.get("r") or "0"), int(row.get("T") or 0)
                        rows.append((str(row["s"]), str(row["p"]), rate, next_ms))
                        newest = max(newest, int(row["E"]))
                if rows:
                    self._on_marks(MarksSeen(tuple(rows), newest))


class Books:
    """bookTicker of the symbols that are wanted now."""

    def __init__(self, ws_url: str, on_quote: Callable[[QuoteSeen], None]) -> None:
        self._url = f"{ws_url}/public/ws"
        self._on_quote = on_quote
        self._socket: ClientConnection | None = None
        self._wanted: frozenset[str] = frozenset()
        self._has: frozenset[str] = frozenset()
        self._changed = asyncio.Event()
        self._calls = 0

    def want(self, symbols: Iterable[str]) -> None:
        self._wanted = frozenset(sorted(symbols)[:SYMBOLS_MAX])
        self._changed.set()

    async def run(self) -> None:
        while not self._wanted:
            self._changed.clear()
            await self._changed.wait()
        first = sorted(self._wanted)
        url = f"{self._url}/" + "/".join(f"{symbol.lower()}@bookTicker" for symbol in first)
        async with connect(url, compression=None, close_timeout=CLOSE_S) as socket:
            self._has = frozenset(first)
            subscriber = asyncio.create_task(self._subscribe(socket))
            try:
                async for message in socket:
                    for row in frames(message):
                        if row.get("e") == "bookTicker" and row["s"] in self._wanted:
                            seen = QuoteSeen(row["s"], row["b"], row["a"], float(row["E"]))
                            self._on_quote(seen)
            finally:
                subscriber.cancel()

    async def _subscribe(self, socket: ClientConnection) -> None:
        """Follow the wanted set; at most a few messages a second, as the exchange allows."""
        while True:
            await self._changed.wait()
            self._changed.clear()
            wanted = self._wanted
            for method, symbols in (
                ("SUBSCRIBE", wanted - self._has),
                ("UNSUBSCRIBE", self._has - wanted),
            ):
                if symbols:
                    self._calls += 1
                    streams = [f"{symbol.lower()}@bookTicker" for symbol in sorted(symbols)]
                    call = {"method": method, "params": streams, "id": self._calls}
                    await socket.send(orjson.dumps(call).decode())
            self._has = wanted
            await asyncio.sleep(0.25)
