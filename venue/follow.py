"""The paper account's own ear: two sockets and a few questions to upstream. A shell: it does I/O.

It subscribes to what the account's lines need, opens each line by REST once both sockets have
acknowledged it, and hands every event to `paper`. Everything it asks is public and carries no key.
A socket that ends is made again with back-off; until then its lines are not live, and what they
missed is asked for when they open: at most CATCH_UP_PAGES x 1000 trades of a symbol, oldest first.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass, field
from typing import Any, Protocol

import aiohttp
import orjson

from clock import MarketClock, boot_ns, from_server_time
from venue import matching, paper, upstream
from venue.paper import Line, Paper

SOCKETS = ("public", "market")
STEER_S = 0.05  # subscriptions are looked at so often ...
STEER_GAP_S = 0.25  # ... and changed at most four times a second: ten messages are allowed
NAMES_MAX = 200  # of one control message
BACKOFF_S, BACKOFF_MAX_S = 0.25, 10.0
ASK_TIMEOUT_S = 5.0
ANSWER_BYTES_MAX = 32 << 20  # exchangeInfo is 1 MB
FRAME_BYTES_MAX = 1 << 20
PING_S = 15.0  # a socket that answers no ping for half of it is dead
CLOSE_S = 1.0  # for a peer to answer a close
CLOCK_S = 10.0
QUIET_S = 60.0  # after 429 or 418 without a time in it: the weight of a minute
RETRY_S = 1.0  # before a line that could not be opened is tried again
WAIT_STEP_S = 0.01
OPENING_MAX = 4  # lines that are opened at once
CATCH_UP_PAGES = 10
FUNDING_ROWS = 100

log = logging.getLogger("venue")
Dialed = aiohttp.ClientWebSocketResponse[bool]


class AskError(Exception):
    """Upstream gave no usable answer, and why; `status` is 0 when there was none at all.

    `quiet_s` is how long it wants to hear nothing more of us: after 429 and 418.
    """

    def __init__(self, why: str, status: int = 0, quiet_s: float = 0.0) -> None:
        super().__init__(why)
        self.status, self.quiet_s = status, quiet_s


class Teller(Protocol):
    """Who is told how upstream fares, and that the account may have changed."""

    def reached(self) -> None: ...
    def missing(self, why: str) -> None: ...
    def carry_out(self) -> None: ...
    def now_ms(self) -> int: ...


@dataclass(slots=True)
class Socket:
    """One open connection and what it has been asked for."""

    wire: Dialed
    asked: set[str] = field(default_factory=set)
    heard: set[str] = field(default_factory=set)  # acknowledged
    waiting: dict[int, set[str]] = field(default_factory=dict)  # message id -> names
    sent_ns: int = 0


async def read(answer: aiohttp.ClientResponse, most: int) -> bytes:
    """A whole body of at most so many bytes, as it came. Raises AskError for a larger one."""
    parts, size = [], 0
    async for part in answer.content.iter_any():
        size += len(part)
        if size > most:
            raise AskError(f"{answer.url.path}: more than {most} bytes")
        parts.append(part)
    return b"".join(parts)


async def ask(session: aiohttp.ClientSession, base: str, path: str) -> Any:
    """One public GET as JSON. Raises AskError."""
    timeout = aiohttp.ClientTimeout(total=ASK_TIMEOUT_S)
    try:
        plain = {"Accept-Encoding": "identity"}  # the session hands bodies on as they come
        async with session.get(
            base + path, headers=plain, timeout=timeout, allow_redirects=False
        ) as answer:
            body = await read(answer, ANSWER_BYTES_MAX)
    except (aiohttp.ClientError, OSError, TimeoutError) as error:
        raise AskError(f"{path}: {error or type(error).__name__}") from error
    if answer.status in (418, 429):
        asked = answer.headers.get("Retry-After", "")
        quiet_s = float(asked) if asked.isdigit() else QUIET_S
        raise AskError(f"{path}: status {answer.status}", answer.status, quiet_s)
    if answer.status != 200:
        raise AskError(f"{path}: status {answer.status}", answer.status)
    try:
        return orjson.loads(body)
    except ValueError as error:
        raise AskError(f"{path}: no JSON", answer.status) from error


async def ask_clock(session: aiohttp.ClientSession, base: str) -> MarketClock:
    """Upstream's clock; a venue names its speed, an exchange runs at one. Raises AskError."""
    sent_ns = boot_ns()
    told = await ask(session, base, "/fapi/v1/time")
    try:
        server_ms, speed = float(told["serverTime"]), float(told.get("speed", 1.0))
        return from_server_time(server_ms, speed, sent_ns, boot_ns())
    except upstream.UNREADABLE as error:
        raise AskError("/fapi/v1/time: not understood") from error


class Follower:
    """Runs until cancelled. `flowing` is cleared while the market is paused."""

    def __init__(
        self,
        made: Paper,
        session: aiohttp.ClientSession,
        rest_url: str,
        ws_url: str,
        teller: Teller,
        flowing: asyncio.Event,
    ) -> None:
        self.paper, self.session, self.teller, self.flowing = made, session, teller, flowing
        self.rest_url, self.ws_url = rest_url, ws_url
        self.sockets: dict[str, Socket] = {}
        self._opening: dict[str, asyncio.Task[None]] = {}
        self._retry_ns: dict[str, int] = {}  # symbol -> not opened again before
        self._number = 0
        self._quiet_until_ns = 0

    async def run(self) -> None:
        async with asyncio.TaskGroup() as group:
            for route in SOCKETS:
                group.create_task(self._stay(route))
            group.create_task(self._steer())

    # sockets

    async def _stay(self, route: str) -> None:
        """One route's connection, made again whenever it ends."""
        wait_s = BACKOFF_S
        while True:
            began_ns = boot_ns()
            try:
                url = f"{self.ws_url}/{route}/stream"
                async with self.session.ws_connect(
                    url,
                    heartbeat=PING_S,
                    max_msg_size=FRAME_BYTES_MAX,
                    timeout=aiohttp.ClientWSTimeout(ws_close=CLOSE_S),
                ) as wire:
                    self.sockets[route] = Socket(wire)
                    self.teller.reached()
                    await self._hear(self.sockets[route])
                why = f"{route} socket ended with {wire.close_code}"
            except (aiohttp.ClientError, OSError, TimeoutError) as error:
                why = f"{route} socket: {error or type(error).__name__}"
            self.sockets.pop(route, None)
            paper.lose(self.paper, self.paper.lines)
            self.teller.missing(why)
            wait_s = BACKOFF_S if boot_ns() - began_ns > 30e9 else min(wait_s * 2, BACKOFF_MAX_S)
            await asyncio.sleep(wait_s)

    async def _hear(self, socket: Socket) -> None:
        async for message in socket.wire:
            if message.type is not aiohttp.WSMsgType.TEXT:
                return
            await self.flowing.wait()
            heard = upstream.heard(message.data)
            if heard is not None:
                paper.hear(self.paper, heard, self.teller.now_ms())
                if self.paper.dirty:
                    self.teller.carry_out()
                continue
            number = upstream.ack_of(message.data)
            if number is not None:
                socket.heard |= socket.waiting.pop(number, set())

    async def _steer(self) -> None:
        """Subscriptions follow the lines, and lines that are heard but not live are opened."""
        while True:
            for route in SOCKETS:
                socket = self.sockets.get(route)
                if socket is not None:
                    await self._subscribe(route, socket)
            for name, line in list(self.paper.lines.items()):
                if not line.live and self._may_open(name):
                    self._opening[name] = asyncio.create_task(self._open(line))
            await asyncio.sleep(STEER_S)

    async def _subscribe(self, route: str, socket: Socket) -> None:
        """One message of what is too few, or else of what is too many."""
        wanted = {n for s in self.paper.lines for n in upstream.stream_names(s, route)}
        more, less = wanted - socket.asked, socket.asked - wanted
        names = sorted(more or less)[:NAMES_MAX]
        if not names or boot_ns() - socket.sent_ns < STEER_GAP_S * 1e9 or socket.wire.closed:
            return
        self._number += 1
        method = "SUBSCRIBE" if more else "UNSUBSCRIBE"
        if more:
            socket.asked |= set(names)
            socket.waiting[self._number] = set(names)
        else:
            socket.asked -= set(names)
            socket.heard -= set(names)
        socket.sent_ns = boot_ns()
        word = {"method": method, "params": names, "id": self._number}
        try:
            await socket.wire.send_str(orjson.dumps(word).decode())
        except (aiohttp.ClientError, OSError) as error:
            log.warning("subscribing route=%s failed: %s", route, error)  # its reader ends it

    # lines

    def heed(self, error: AskError) -> None:
        """Who asks to be left alone is left alone, by all questions of ours."""
        self._quiet_until_ns = max(self._quiet_until_ns, boot_ns() + int(error.quiet_s * 1e9))

    @property
    def is_quiet(self) -> bool:
        return boot_ns() < self._quiet_until_ns

    def _is_heard(self, symbol: str) -> bool:
        """Both sockets have acknowledged all streams of the symbol."""
        return all(
            route in self.sockets
            and set(upstream.stream_names(symbol, route)) <= self.sockets[route].heard
            for route in SOCKETS
        )

    def _may_open(self, symbol: str) -> bool:
        return (
            symbol not in self._opening
            and len(self._opening) < OPENING_MAX
            and self.flowing.is_set()
            and not self.is_quiet
            and boot_ns() >= self._retry_ns.get(symbol, 0)
            and self._is_heard(symbol)
        )

    async def _open(self, line: Line) -> None:
        """Asks for what was missed and what is, then makes the line live."""
        name = line.symbol
        try:
            missed, newest = await self._missed_trades(line)
            missed += await self._missed_funding(line)
            depth, premium = await asyncio.gather(
                self._ask(f"/fapi/v1/depth?symbol={name}&limit={upstream.DEPTH_LIMIT}"),
                self._ask(f"/fapi/v1/premiumIndex?symbol={name}"),
            )
            made = upstream.opening(depth, premium, newest)
            await self.flowing.wait()
            if self._is_heard(name) and self.paper.lines.get(name) is line:
                paper.open_line(self.paper, name, made, missed, self.teller.now_ms())
                self.teller.carry_out()
        except (AskError, *upstream.UNREADABLE) as error:
            log.warning("symbol=%s cannot be opened: %s", name, error or type(error).__name__)
            if isinstance(error, AskError):
                self.heed(error)
            self._retry_ns[name] = boot_ns() + int(RETRY_S * 1e9)
        finally:
            self._opening.pop(name, None)

    async def _missed_trades(self, line: Line) -> tuple[list[upstream.Heard], Any]:
        """Trades since the last one that was met, oldest first, and the newest row there is."""
        name, newest = line.symbol, None
        missed: list[upstream.Heard] = []
        wanted = line.trade_id > 0 and name in matching.watched(self.paper.account)
        for _ in range(CATCH_UP_PAGES if wanted else 0):
            first = (missed[-1].id if missed else line.trade_id) + 1
            asked = f"symbol={name}&fromId={first}&limit={upstream.TRADES_LIMIT}"
            try:
                rows = await self._ask(f"/fapi/v1/aggTrades?{asked}")
            except AskError as error:
                if error.status != 400:
                    raise
                log.warning("symbol=%s trades from %d on are not to be had", name, first)
                break
            missed += upstream.missed_trades(name, rows)
            newest = rows[-1] if rows else newest
            if len(rows) < upstream.TRADES_LIMIT:
                break
        else:
            newest = None  # there are more, or none were wanted
        if newest is None:
            newest = (await self._ask(f"/fapi/v1/aggTrades?symbol={name}&limit=1"))[-1]
        if missed and int(newest["a"]) > missed[-1].id:
            skipped = int(newest["a"]) - missed[-1].id
            log.warning("symbol=%s trades_skipped=%d: too many were missed", name, skipped)
        return missed, newest

    async def _missed_funding(self, line: Line) -> list[upstream.Heard]:
        since_ms = paper.funding_since(line, self.teller.now_ms())
        if not since_ms or line.symbol not in matching.watched(self.paper.account):
            return []
        asked = f"symbol={line.symbol}&startTime={since_ms}&limit={FUNDING_ROWS}"
        return upstream.missed_funding(await self._ask(f"/fapi/v1/fundingRate?{asked}"))

    async def _ask(self, path: str) -> Any:
        return await ask(self.session, self.rest_url, path)


async def wait_live(made: Paper, symbols: set[str], seconds: float) -> bool:
    """True once all of these can be matched; False when they cannot in so long."""
    end_ns = boot_ns() + int(seconds * 1e9)
    while not paper.are_live(made, symbols):
        if boot_ns() >= end_ns:
            return False
        await asyncio.sleep(WAIT_STEP_S)
    return True
