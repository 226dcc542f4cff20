"""One route's link to the exchange: connect, subscribe, watch for silence, reconnect.

An I/O shell. A link lives as long as feed; its connections come and go with jittered, doubling,
bounded back-off. An ack is not data: a symbol × channel that stays silent while the link talks is
subscribed again, and if that does not help the link is reconnected, as it is when all is silent.
Rotation before 24 h will run a second connection of the same link beside the first: ids and
update ids already make the overlap harmless.
"""

from __future__ import annotations

import asyncio
import logging
import random
import ssl
from collections import deque
from collections.abc import Callable
from typing import Any, Final
from urllib.parse import urlsplit

import numpy as np
import orjson
from websockets.exceptions import InvalidHandshake

from clock import boot_ns
from feed import binance
from feed.connection import STATE_WORDS, Connection
from feed.lane import STAT, Lane
from feed.walk import Table

log = logging.getLogger("feed.link")

BACKOFF_S: Final = 0.25
BACKOFF_S_MAX: Final = 30.0
STEADY_S: Final = 30.0  # a connection that lived so long starts the back-off anew
CONNECT_S_MAX: Final = 10.0
ACK_S_MAX: Final = 5.0  # an unanswered request counts as silence
SILENT_S: Final = 10.0  # markPrice@1s is the slowest thing that may not pause
REQUESTS_MAX: Final = 1024  # waiting subscribe messages of a link
NS_PER_S: Final = 1_000_000_000


def backoff_s(failures: int, jitter: float) -> float:
    """Wait before attempt number `failures` + 1; jitter in 0..1 spreads it over half to all."""
    return float(min(BACKOFF_S * 2.0 ** min(failures, 16), BACKOFF_S_MAX) * (0.5 + 0.5 * jitter))


class Link:
    """Wanted symbols of one route over one connection at a time."""

    def __init__(
        self,
        url: str,
        route: str,
        lane: Lane,
        hist: Table,
        on_down: Callable[[Link], None],
        on_acked: Callable[[Link, tuple[int, ...]], None],
    ) -> None:
        self.url, self.route = url, route
        self.wanted: dict[int, str] = {}  # row -> name
        self.state = np.zeros(STATE_WORDS, np.int64)
        self._lane, self._hist = lane, hist
        self._on_down, self._on_acked = on_down, on_acked
        self._connection: Connection | None = None
        self._queue: deque[tuple[bytes, tuple[int, ...]]] = deque(maxlen=REQUESTS_MAX)
        self._sent: dict[int, tuple[int, ...]] = {}  # request id -> rows it makes live
        self._sent_ns = 0
        self._next_id = 1
        self._failures = 0
        self._wake = asyncio.Event()

    @property
    def up(self) -> bool:
        return self._connection is not None

    def subscribe(self, rows: dict[int, str]) -> None:
        """Want these symbols, now and after each reconnect."""
        self.wanted.update(rows)
        if self.up:
            self._ask("SUBSCRIBE", rows)

    def unsubscribe(self, row: int) -> None:
        """Want this symbol no more."""
        name = self.wanted.pop(row, None)
        if name is not None and self.up:
            self._ask("UNSUBSCRIBE", {row: name})

    def resubscribe(self, rows: dict[int, str]) -> None:
        """Leave and join again; for symbols that were acked and stay silent."""
        if self.up:
            self._ask("UNSUBSCRIBE", rows)
            self._ask("SUBSCRIBE", rows)
            self._lane.stats[STAT["resubscribes"]] += len(rows)

    def reconnect(self, reason: str) -> None:
        """Give the present connection up."""
        if self._connection is not None:
            log.warning("reconnect route=%s reason=%r", self.route, reason)
            self._connection.close()

    def silent(self, now_ns: int) -> bool:
        """Whether the whole connection says nothing, or leaves a request unanswered."""
        if self._connection is None or not self.wanted:
            return False
        unanswered = self._sent and now_ns - self._sent_ns > ACK_S_MAX * NS_PER_S
        return bool(unanswered) or now_ns - self._connection.last_ns > SILENT_S * NS_PER_S

    async def run(self) -> None:
        """Keep one connection up for ever; ends by cancellation."""
        while True:
            lived_s = await self._live()
            self._failures = 0 if lived_s >= STEADY_S else self._failures + 1
            self._lane.stats[STAT["reconnects"]] += 1
            await asyncio.sleep(backoff_s(self._failures - 1, random.random()))

    async def _live(self) -> float:
        """One connection from dial to loss; how long it was up, in seconds."""
        parts = urlsplit(self.url)
        secure = parts.scheme == "wss"
        loop = asyncio.get_running_loop()
        connection: Connection | None = None
        began_s = loop.time()
        try:
            async with asyncio.timeout(CONNECT_S_MAX):
                _, connection = await loop.create_connection(
                    lambda: Connection(
                        self.url, self._lane, self.state, self._hist, self._on_reply
                    ),
                    parts.hostname or "",
                    parts.port or (443 if secure else 80),
                    ssl=ssl.create_default_context() if secure else None,
                )
                await connection.opened
            began_s = loop.time()
            self._lane.stats[STAT["connects"]] += 1
            self._begin(connection)
            await self._pump(connection)
        except (OSError, InvalidHandshake) as error:  # refused, DNS, TLS, time-out, no upgrade
            log.warning("link down route=%s reason=%r", self.route, error)
            return 0.0
        finally:
            was_up, self._connection = self.up, None
            if connection is not None:
                connection.close()
            if was_up:
                self._on_down(self)
        log.warning("link down route=%s reason=%s", self.route, connection.reason)
        return loop.time() - began_s

    def _begin(self, connection: Connection) -> None:
        """A fresh connection: everything wanted is asked for anew."""
        self._connection = connection
        self._queue.clear()
        self._sent.clear()
        if self.wanted:
            self._ask("SUBSCRIBE", self.wanted)

    async def _pump(self, connection: Connection) -> None:
        """Send queued requests at the allowed pace until the connection is lost."""
        while not connection.closed.done():
            self._wake.clear()
            if self._queue:
                message, rows = self._queue.popleft()
                self._sent[int(orjson.loads(message)["id"])] = rows
                self._sent_ns = boot_ns()
                connection.send(message)
                await asyncio.sleep(1 / binance.MESSAGES_PER_S)
            else:
                woken = asyncio.ensure_future(self._wake.wait())
                waits: set[asyncio.Future[Any]] = {woken, connection.closed}
                await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
                woken.cancel()

    def _ask(self, method: str, rows: dict[int, str]) -> None:
        """Queue requests for all streams of these symbols, whole symbols per message."""
        per_message = binance.NAMES_PER_MESSAGE_MAX // len(binance.streams(self.route, "x"))
        items = list(rows.items())
        for at in range(0, len(items), per_message):
            part = items[at : at + per_message]
            names = [stream for _, name in part for stream in binance.streams(self.route, name)]
            (message,) = binance.requests(method, names, self._next_id)
            self._next_id += 1
            joined = tuple(row for row, _ in part) if method == "SUBSCRIBE" else ()
            if len(self._queue) == REQUESTS_MAX:
                self.reconnect("too many requests wait")
                return
            self._queue.append((message, joined))
        self._wake.set()

    def _on_reply(self, payload: bytes) -> None:
        """An answer to a request, or a word from the server about one."""
        try:
            answer = orjson.loads(payload)
        except ValueError:
            answer = {}
        number = answer.get("id") if isinstance(answer, dict) else None
        rows = self._sent.pop(number, None) if isinstance(number, int) else None
        if rows is not None and "error" not in answer:
            self._on_acked(self, rows)
        else:
            log.warning("server says route=%s text=%r", self.route, payload[:200])
