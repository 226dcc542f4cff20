"""The venue on another exchange's market: `venue --upstream URL`, what mode paper runs.

One port for REST and WebSocket, as on the venue that makes its market. Questions about the market
and market sockets go through to upstream (`relay`); account and private stream are ours; the
account's lines follow upstream by themselves (`follow`). The clock is upstream's, by its own word
every CLOCK_S. An order in a symbol that is not live waits OPEN_S for its line, then is refused as
busy: it was not executed. Before a client hears of a change, ledger and account are on disk.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import socket
from collections.abc import Mapping
from typing import Any, cast

import aiohttp
import orjson
from aiohttp import WSCloseCode, WSMsgType, web

import process
from clock import MarketClock, boot_ns, wall_ms
from venue import (
    accounting,
    batch,
    door,
    follow,
    lab,
    paper,
    rest,
    shell,
    standing,
    trading,
    transfers,
)
from venue.birth import born, listing
from venue.connection import Address, Connection, Transport, parse_url
from venue.door import BUSY, INTERNAL, Asked
from venue.faults import Lab
from venue.follow import CLOSE_S, AskError, Follower
from venue.house import API_KEY, Moment
from venue.limits import Limits
from venue.paper import Paper
from venue.relay import CLIENT_BYTES_MAX, Relays, forward, is_forwarded
from venue.rest import Desk, RouteOf
from venue.sockets import Hub
from venue.store import Store
from venue.streamfaults import UserStream

STEP_S = 0.05
SAVE_MS = 1_000  # which trades were met is written so often; money at once
PING_MS = 180_000
RELIST_NS = 3_600 * 10**9
OPEN_S = 3.0  # an order waits so long for its market
CALLS_MAX = 64  # questions of clients to upstream at once
SOCKETS_MAX = 256  # of clients; each of the market's has one upstream
POOL = CALLS_MAX + SOCKETS_MAX + 16  # and the account's own
CLOCK_STEP_MS = 1_000
CLOCK_ERROR_MS = 250  # a later measurement that may be further off tells nothing new
DRAIN_S = 5.0  # a pause waits so long for sockets to take what was handed on
_V1 = "/fapi/v1/"
PLACING = {
    ("POST", _V1 + "order"), ("PUT", _V1 + "order"), ("POST", _V1 + "algoOrder"),
    ("POST", _V1 + "batchOrders"), ("PUT", _V1 + "batchOrders"),
}  # fmt: skip
PREPARING = {("POST", _V1 + "leverage"), ("POST", _V1 + "marginType")}  # an order is to come
ROUTES: dict[tuple[str, str], RouteOf[Paper]] = {
    **trading.ROUTES,
    **batch.ROUTES,
    **accounting.ROUTES,
    **standing.ROUTES,
    **transfers.ROUTES,
    **lab.FAULT_ROUTES,
    ("GET", "/venue/v1/status"): RouteOf[Paper](
        lambda call: paper.status(call.exchange, call.now), weight=0
    ),
}

log = logging.getLogger("venue")


def symbols_of(params: Mapping[str, str]) -> set[str]:
    """What a call speaks of: `symbol`, or each order's of a batch."""
    names = {params.get("symbol", "")}
    try:
        orders = orjson.loads(params.get("batchOrders") or "[]")
    except ValueError:
        orders = []  # refused by its handler
    if isinstance(orders, list):
        names |= {str(o.get("symbol", "")) for o in orders if isinstance(o, dict)}
    return names - {""}


def _hang_up(connection: Connection, code: int) -> None:
    """Without a word, whatever the code: a close frame would be upstream's."""
    connection.transport.close()


class Proxy:
    """The running exchange on upstream's market. Made inside its loop; `close` is `run`'s."""

    def __init__(
        self,
        made: Paper,
        store: Store,
        session: aiohttp.ClientSession,
        ws_url: str,
        clock: MarketClock,
        scale: float = 1.0,
    ) -> None:
        self.paper, self.store, self.session, self.clock = made, store, session, clock
        self.rest_url, self.ws_url = made.setup.upstream, ws_url
        self.desk = Desk(Limits(scale), lab=Lab())
        self.events = UserStream(self.desk.lab)
        self.hub = Hub((), strict=True)  # private sockets; of the market's it only counts and cuts
        self.stopping, self.flowing = asyncio.Event(), asyncio.Event()
        self.flowing.set()
        self.relays = Relays(self.hub, self.flowing, self.stopping)
        self.follower = Follower(made, session, self.rest_url, ws_url, self, self.flowing)
        self.out_of_reach: dict[str, int] = {}  # what cannot be reached, since when
        self._calls = self._sockets = 0
        self._saved_ms, self._pinged_ms = 0, boot_ns() // 1_000_000
        self._now_ms = 0

    # what the follower is told and tells

    def now_ms(self) -> int:
        """Never backwards, and never behind the market: a clock is only measured."""
        self._now_ms = max(int(self.clock.now_ms(boot_ns())), self.paper.latest_ms, self._now_ms)
        return self._now_ms

    def now(self) -> Moment:
        return Moment(self.now_ms(), boot_ns() // 1_000_000, wall_ms=wall_ms())

    def reached(self, what: str = "sockets") -> None:
        since_ns = self.out_of_reach.pop(what, 0)
        if since_ns:
            away_s = (boot_ns() - since_ns) / 1e9
            log.warning("upstream=%s %s answer again after_s=%.1f", self.rest_url, what, away_s)

    def missing(self, why: str, what: str = "sockets") -> None:
        """Once for each outage: what still works and what does not."""
        if what not in self.out_of_reach:
            self.out_of_reach[what] = boot_ns()
            log.warning(
                "upstream=%s %s out of reach (%s): no order is filled and market data is missing"
                " until it is back; the account answers",
                self.rest_url, what, why,
            )  # fmt: skip

    def carry_out(self) -> None:
        """Ledger, then account, to their files; only then user events to their sockets."""
        self.store.write_ledger(self.paper, wall_ms())
        if self.paper.dirty:
            self.store.save_change(self.paper)
        boot_ms, market_ms = boot_ns() // 1_000_000, self.now_ms()
        shell.carry_out(self.paper, self.desk, self.events, self.hub, _hang_up, boot_ms, market_ms)
        self.store.write_ledger(self.paper, wall_ms())

    # loops

    def _ping(self, boot_ms: int) -> None:
        """Private sockets, as the exchange does; those of the market hear upstream's pings."""
        if boot_ms - self._pinged_ms < PING_MS:
            return
        self._pinged_ms = boot_ms
        text = str(wall_ms()).encode()
        for connection in list(self.hub.connections.values()):
            if connection.route == "private":
                self.hub.send(connection, b"\x89" + bytes((len(text),)) + text)

    async def run(self) -> None:
        """The account's own time, until `stopping`."""
        while not self.stopping.is_set():
            boot_ms = boot_ns() // 1_000_000
            if self.flowing.is_set():
                paper.step(self.paper, self.now_ms())
            self.carry_out()
            self._ping(boot_ms)
            if boot_ms - self._saved_ms >= SAVE_MS:
                self._saved_ms = boot_ms
                paper.release(self.paper, boot_ms)
                self.store.save_account(self.paper)
            process.beat()
            await asyncio.sleep(STEP_S)

    def _set_clock(self, made: MarketClock) -> None:
        """A little back is waited for; a step back (a venue was paused) is taken."""
        now_ms = int(made.now_ms(boot_ns()))
        if now_ms < self._now_ms - CLOCK_STEP_MS * made.speed:
            log.warning("upstream=%s clock_back_ms=%d", self.rest_url, self._now_ms - now_ms)
            self._now_ms = 0
        self.clock = made
        self.paper.measured = now_ms, wall_ms()

    async def keep_time(self) -> None:
        """Upstream's clock and, now and then, its listing."""
        listed_ns = boot_ns()
        while True:
            await asyncio.sleep(follow.CLOCK_S)
            if self.follower.is_quiet:
                continue
            try:
                made = await follow.ask_clock(self.session, self.rest_url)
                if made.error_ms <= CLOCK_ERROR_MS * made.speed:
                    self._set_clock(made)
                if boot_ns() - listed_ns > RELIST_NS:
                    listed_ns = boot_ns()
                    paper.relist(self.paper, await listing(self.session, self.rest_url, self.store))
                self.reached("rest")
            except AskError as error:
                self.follower.heed(error)
                self.missing(str(error), "rest")

    # HTTP

    async def serve(self, request: web.BaseRequest) -> web.StreamResponse:
        path, _, query = request.raw_path.partition("?")
        if request.headers.get("Upgrade", "").lower() == "websocket":
            return await self._socket(request, path, query)
        if is_forwarded(request.method, path):
            return await self._forward(request)
        body = await request.read()
        own = await self._own(request.method, path)
        if own is not None:
            return shell.own_response(own)
        asked = shell.asked(request, path, query, body)
        if asked.key == API_KEY and not await self._prepare(asked):
            return shell.own_response(BUSY)
        answer = door.handle(self.paper, self.desk, ROUTES, asked, self.now())
        self.carry_out()
        if answer.late_ms:
            await asyncio.sleep(answer.late_ms / 1000)
        return shell.answered(request, answer)

    async def _forward(self, request: web.BaseRequest) -> web.StreamResponse:
        if self._calls >= CALLS_MAX:
            return shell.own_response(INTERNAL)
        self._calls += 1
        try:
            answer = await forward(self.session, self.rest_url, request)
        except AskError as error:
            self.missing(str(error), "rest")
            return shell.own_response(INTERNAL)
        else:
            self.reached("rest")
            return answer
        finally:
            self._calls -= 1

    async def _socket(self, request: web.BaseRequest, path: str, query: str) -> web.StreamResponse:
        address = parse_url(path, query)
        if address is None:
            return web.Response(status=404)
        if self._sockets >= SOCKETS_MAX:
            return shell.own_response(INTERNAL)
        self._sockets += 1
        try:
            if address.route == "private":
                return await self._private(request, address, f"{path}?{query}" if query else path)
            return await self.relays.serve(
                self.session, self.ws_url, request, address, self._is_secret
            )
        except AskError:  # the follower's own sockets tell of the outage
            return shell.own_response(INTERNAL)
        finally:
            self._sockets -= 1

    def _is_secret(self, text: str) -> bool:
        """The listen key is ours; a client that sends it to the market is mistaken."""
        key = self.desk.keys.key
        return bool(key) and key in text

    async def _prepare(self, asked: Asked) -> bool:
        """Lines for what a call names; False when an order's market is not live in time."""
        call = asked.method, asked.path
        if call not in PLACING | PREPARING:
            return True
        names = symbols_of(rest.parameters(asked.query, asked.body)) & self.paper.index.keys()
        boot_ms = boot_ns() // 1_000_000
        places = call in PLACING
        lines = [paper.follow(self.paper, name, boot_ms, places) for name in sorted(names)]
        if not places:
            return True
        if None in lines or not self.flowing.is_set():
            return False
        heard = len(self.follower.sockets) == len(follow.SOCKETS)
        return await follow.wait_live(self.paper, names, OPEN_S if heard else 0.0)

    async def _own(self, method: str, path: str) -> Any:
        """The venue's own calls that touch sockets; None for others."""
        word = path.removeprefix("/venue/v1/")
        if (method, word) == ("GET", "sent"):
            return {"symbols": self.relays.sent, "connections": self.hub.report()}
        if (method, word) == ("POST", "pause"):
            await self._pause()
        elif (method, word) == ("POST", "resume"):
            self.paper.paused = False
            self.flowing.set()
        else:
            return None
        return paper.status(self.paper, self.now())

    async def _pause(self) -> None:
        """Holds back what upstream sends; returns when what was handed on has left this process."""
        self.flowing.clear()
        self.paper.paused = True
        waited = 0.0
        while self.hub.waiting() and waited < DRAIN_S:
            await asyncio.sleep(STEP_S)
            waited += STEP_S

    # the private stream

    async def _private(
        self, request: web.BaseRequest, address: Address, whole: str
    ) -> web.StreamResponse:
        stream = web.WebSocketResponse(
            compress=False, autoping=True, max_msg_size=CLIENT_BYTES_MAX, timeout=CLOSE_S
        )
        await stream.prepare(request)
        if request.transport is None:
            return stream
        connection = self.hub.add(address, whole, cast(Transport, request.transport))
        stop = asyncio.ensure_future(self.stopping.wait())
        try:
            while not stream.closed:
                heard = asyncio.ensure_future(stream.receive())
                await asyncio.wait((heard, stop), return_when=asyncio.FIRST_COMPLETED)
                if not heard.done():
                    heard.cancel()
                    await stream.close(code=WSCloseCode.GOING_AWAY, message=b"venue stops")
                    break
                if heard.result().type is not WSMsgType.TEXT:
                    break
                text = heard.result().data
                reply, why = self.hub.control(connection, text, boot_ns() // 1_000_000)
                if reply:
                    self.hub.send(connection, reply)
                if why:
                    await stream.close(code=WSCloseCode.POLICY_VIOLATION, message=why.encode())
        finally:
            stop.cancel()
            self.hub.remove(connection)
        return stream


async def run(options: argparse.Namespace, store: Store, bound: socket.socket) -> None:
    """Serves until a signal; everything is on disk when it returns. Raises StoreError."""
    connector = aiohttp.TCPConnector(limit=POOL, limit_per_host=0)
    async with aiohttp.ClientSession(
        connector=connector, auto_decompress=False, cookie_jar=aiohttp.DummyCookieJar()
    ) as session:
        made, clock = await born(options, store, session)
        proxy = Proxy(made, store, session, options.upstream_ws, clock, options.limits)
        runner = await shell.opened(proxy.serve, bound, proxy.stopping)
        tasks = [asyncio.create_task(w) for w in (proxy.follower.run(), proxy.keep_time())]
        host, port = bound.getsockname()[:2]
        print(
            f"venue ready http://{host}:{port} world={made.setup.world} symbols={len(made.specs)}"
            f" upstream={options.upstream} speed={clock.speed:g}",
            flush=True,
        )
        own = asyncio.create_task(proxy.run())
        try:
            await asyncio.wait((own, *tasks), return_when=asyncio.FIRST_COMPLETED)
            for task in (own, *tasks):
                if task.done():
                    task.result()  # a loop that ended by itself is our bug: die, be restarted
        finally:
            proxy.stopping.set()
            for task in (own, *tasks):
                task.cancel()
            await asyncio.wait((own, *tasks), timeout=2 * CLOSE_S)
            await runner.cleanup()
            store.close(made, wall_ms())
