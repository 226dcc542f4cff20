"""The simulated exchange as a server: one port for REST and WebSocket, one loop for the market.

What is behind it reads no clock and opens no socket. The market clock is
t0 + speed x elapsed; it stands still during a pause, and a process that was stopped for longer than
STALL_MS takes that as a pause too, instead of pouring out what it missed. A request may take its
time: half of its latency before it is carried out, half before the answer goes out.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import socket
from dataclasses import dataclass, replace
from typing import Any, cast

from aiohttp import WSCloseCode, WSMsgType, web

import process
from clock import NS_PER_MS, MarketClock, boot_ns, wall_ms
from venue import (
    accounting,
    batch,
    depth,
    door,
    exchange,
    lab,
    limits,
    public,
    rest,
    shell,
    standing,
    statistics,
    touch,
    trading,
    transfers,
    wsapi,
)
from venue.connection import Address, Connection, Transport, parse_url
from venue.door import Answer, Asked
from venue.exchange import Exchange, Moment
from venue.faults import Lab
from venue.fuzz import fuzzer
from venue.limits import Limits
from venue.looks import Watch
from venue.recording import Recording, Tap
from venue.rest import Desk
from venue.sockets import BUFFER_BYTES_MAX, LIFETIME_MS, Hub
from venue.store import Store
from venue.streamfaults import UserStream
from venue.wire import text_frame

STEP_S = 0.010  # the market is made in steps of real time
STALL_MS = 1000  # a longer gap between two steps is a pause, not a backlog
PROGRESS_INTERVAL_MS = 1_000  # the account is written at least so often: market time is in it
MARKET_INTERVAL_MS = 120_000  # bounds what a resume after a crash must replay
DRAIN_S = 5.0  # a pause waits so long for sockets to take what was produced
BODY_BYTES_MAX = 1 << 20
API_ADDRESS = Address("trading", False, (), {})  # the WebSocket API hears no stream
STOPPING = (int(WSCloseCode.GOING_AWAY), "venue stops")

log = logging.getLogger("venue")


ROUTES: public.MarketRoutes = {
    **public.ROUTES,
    **statistics.ROUTES,
    **trading.ROUTES,
    **batch.ROUTES,
    **accounting.ROUTES,
    **standing.ROUTES,
    **transfers.ROUTES,
    **lab.ROUTES,
}


@dataclass(frozen=True, slots=True)
class Serving:
    """How a venue serves, whatever its market."""

    strict: bool = True  # streams on their own route only
    limits: float = 1.0  # multiple of the exchange's; 0: none
    lifetime_ms: int = LIFETIME_MS  # of a socket
    latency_ms: tuple[float, float] = (0.0, 0.0)  # of a request, real: at least, at most
    fuzz: bool = False


class Venue:
    """The running exchange: world, hub, store, clock. `close` leaves it resumable."""

    def __init__(
        self, world: Exchange, store: Store, serving: Serving, recording: Recording | None = None
    ) -> None:
        self.world, self.store, self.serving, self.recording = world, store, serving, recording
        self.desk = Desk(Limits(serving.limits), lab=Lab(world.setup.seed))
        spoil = fuzzer(world.setup.seed) if serving.fuzz else None
        self.hub = Hub(world.specs, serving.strict, self.desk.lab, spoil)
        self.events = UserStream(self.desk.lab)
        self._closers: dict[int, asyncio.Future[tuple[int, str]]] = {}
        self._chance = random.Random(world.setup.seed)
        self.watch = Watch()
        if recording is not None:
            self.hub.tap(Tap(recording, lambda: wall_ms() * NS_PER_MS))
        self.clock = MarketClock(world.made_until_ms, boot_ns(), world.setup.speed)
        self.stopping = asyncio.Event()
        self.stalls = 0
        self._paused_boot_ns = 0
        self._stepped_boot_ns = boot_ns()
        self._saved_ms = self._market_saved_ms = boot_ns() // 1_000_000
        for symbol in world.statuses:
            self.hub.delist(symbol)

    def now(self) -> Moment:
        boot = boot_ns()
        self._take_stall(boot)  # before anybody is told a time that would be taken back
        if self.world.paused:
            slack = int((boot - self._paused_boot_ns) / 1e6 * self.world.setup.speed)
            return Moment(int(self.world.made_until_ms), boot // 1_000_000, slack, wall_ms())
        return Moment(int(self.clock.now_ms(boot)), boot // 1_000_000, 0, wall_ms())

    def step(self) -> None:
        """Makes the market up to now, tells everybody, keeps what must be kept."""
        boot = boot_ns()
        self.hub.now_ms = boot // 1_000_000
        self._take_stall(boot)
        if not self.world.paused:
            self._stepped_boot_ns = boot
            until_ms = self.clock.now_ms(boot)
            self.watch.hear(self.hub.heard, self.world, self.hub.index)
            for edge_ms in self.watch.edges(self.world.made_until_ms, until_ms):
                for count in exchange.advance(self.world, edge_ms, int(edge_ms)):
                    self.hub.fan_out(self.world.rows, count)
                for name, payload in self.watch.looks(self.world):
                    self.hub.show(name, payload)
        self.carry_out()
        self._keep(boot // 1_000_000)

    def _take_stall(self, boot: int) -> None:
        """Time that passed without a step, if it was long: the market stood still."""
        if not self.world.paused and boot - self._stepped_boot_ns > STALL_MS * 1_000_000:
            self.stalls += 1
            self._anchor(self.world.made_until_ms, boot)
            self._stepped_boot_ns = boot

    def resume_clock(self) -> None:
        """The market goes on from where it was made to, as of now."""
        self._stepped_boot_ns = boot_ns()
        self._anchor(self.world.made_until_ms, self._stepped_boot_ns)

    def _anchor(self, market_ms: float, boot: int) -> None:
        self.clock = MarketClock(market_ms, boot, self.world.setup.speed)

    def carry_out(self) -> None:
        """Ledger and account to their files; then user events to their sockets, faults to whom
        they meet."""
        self._write()  # before anybody is told
        boot_ms, market_ms = boot_ns() // 1_000_000, self.now().market_ms
        self.hub.now_ms = boot_ms
        for gone in self.world.statuses.keys() - {name.upper() for name in self.hub.gone}:
            self.hub.delist(gone)
        shell.carry_out(
            self.world, self.desk, self.events, self.hub, self._close, boot_ms, market_ms
        )
        self.store.write_ledger(self.world, wall_ms())

    def _write(self) -> None:
        """Nothing that a client is told afterwards can be lost by a kill."""
        self.store.write_ledger(self.world, wall_ms())
        if self.world.dirty:
            self.store.save_change(self.world)

    def _close(self, connection: Connection, code: int, why: str = "") -> None:
        closer = self._closers.get(connection.id)
        if closer is not None and not closer.done():
            closer.set_result((code, why))

    def _keep(self, now_ms: int) -> None:
        if now_ms - self._saved_ms >= PROGRESS_INTERVAL_MS:
            self._saved_ms = now_ms
            self.store.save_account(self.world)
            if self.recording is not None:
                self.recording.flush()
        if now_ms - self._market_saved_ms >= MARKET_INTERVAL_MS:
            self._market_saved_ms = now_ms
            self.store.save_market(self.world)
        self.hub.ping(str(wall_ms()).encode())
        for connection, code, why in self.hub.overdue(self.serving.lifetime_ms):
            self._close(connection, code, why)

    async def pause(self) -> None:
        """Stops the market's clock; returns when what was produced has left this process."""
        if not self.world.paused:
            self.step()
            self.world.paused = True
            self._paused_boot_ns = boot_ns()
        waited = 0.0
        while self.hub.waiting() and waited < DRAIN_S:
            await asyncio.sleep(STEP_S)
            waited += STEP_S

    def resume(self) -> None:
        if self.world.paused:
            self.world.paused = False
            self.resume_clock()

    async def run(self) -> None:
        """The market's loop, until `stopping`."""
        while not self.stopping.is_set():
            begun = boot_ns()
            self.step()
            process.beat()
            spent = (boot_ns() - begun) / 1e9
            await asyncio.sleep(max(0.001, STEP_S - spent))

    # HTTP

    async def serve(self, request: web.BaseRequest) -> web.StreamResponse:
        path, _, query = request.raw_path.partition("?")
        if request.headers.get("Upgrade", "").lower() == "websocket":
            return await self._socket(request, path, query)
        try:
            body = await request.read()
        except web.HTTPRequestEntityTooLarge:
            return shell.own_response(replace(rest.TOO_MANY, http=413))
        if path.startswith("/venue/v1/"):
            own = await self._own(request.method, path, body)
            if own is not None:
                return shell.own_response(own)
        answer = await self._answer(shell.asked(request, path, query, body))
        return shell.answered(request, answer)

    async def _answer(self, asked: Asked) -> Answer:
        """Carried out and answered, each in its time; the venue's own calls at once."""
        wait_s = 0.0 if asked.path.startswith(rest.OWN) else self._half_latency_s()
        if wait_s:
            await asyncio.sleep(wait_s)
        answer = self._handle(asked)
        wait_s += answer.late_ms / 1000
        if wait_s:
            await asyncio.sleep(wait_s)
        return answer

    def _half_latency_s(self) -> float:
        least, most = self.serving.latency_ms
        return self._chance.uniform(least, most) / 2000 if most else 0.0

    def _handle(self, asked: Asked) -> Answer:
        answer = door.handle(self.world, self.desk, ROUTES, asked, self.now())
        self.carry_out()
        return answer

    async def _own(self, method: str, path: str, body: bytes) -> Any:
        """The venue's own calls that touch sockets or the clock; None for others."""
        word = path.removeprefix("/venue/v1/")
        if (method, word) == ("GET", "sent"):
            return {"symbols": self._sent(), "connections": self.hub.report()}
        if (method, word) == ("POST", "pause"):
            await self.pause()
            return exchange.status(self.world, self.now())
        if (method, word) == ("POST", "resume"):
            self.resume()
            return exchange.status(self.world, self.now())
        if (method, word) == ("POST", "scenario"):
            answer = public.plan_scenario(self.world, body)
            self.store.save_account(self.world)  # who has the answer has the scenario
            return answer
        return None

    def _sent(self) -> dict[str, Any]:
        out = {}
        for s in self.world.specs:
            made = [int(v) for v in self.world.record.made[s.index]]
            names = ("trades", "first_id", "last_id", "quotes", "marks")
            out[s.name] = dict(zip(names, made, strict=True))
        return out

    # WebSocket

    async def _socket(self, request: web.BaseRequest, path: str, query: str) -> web.StreamResponse:
        held = self._banned(request)
        if held is not None:
            return shell.response(rest.refuse(held.refusal, {"Retry-After": str(held.wait_s)}))
        query = query.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
        trades = path.rstrip("/") == wsapi.PATH
        address = API_ADDRESS if trades else parse_url(path, query)
        if address is None:
            return web.Response(status=404)
        stream = web.WebSocketResponse(
            compress=False, autoping=False, max_msg_size=BODY_BYTES_MAX, timeout=shell.CLOSE_S
        )
        await stream.prepare(request)
        transport = request.transport
        if transport is None:
            return stream
        connection = self.hub.add(
            address,
            f"{path}?{query}" if query else path,
            cast(Transport, transport),
            boot_ns() // 1_000_000,
        )
        session = wsapi.Session(
            self.now().market_ms,
            "returnRateLimits=false" not in query,
            request.remote or limits.HOME,
        )
        self._closers[connection.id] = asyncio.get_running_loop().create_future()
        try:
            await self._listen(stream, connection, session if trades else None)
        finally:
            del self._closers[connection.id]
            self.hub.remove(connection)
            if connection.cut_off:
                log.warning(
                    "cut off, it did not read: connection=%d path=%s bytes_waiting_max=%d",
                    connection.id, connection.path[:200], BUFFER_BYTES_MAX,
                )  # fmt: skip
        return stream

    def _banned(self, request: web.BaseRequest) -> limits.Held | None:
        now, speed = self.now(), self.world.setup.speed
        return limits.banned(self.desk.limits, request.remote or limits.HOME, now.market_ms, speed)

    async def _heard(self, connection: Connection, text: str, session: wsapi.Session | None) -> str:
        """Answers one message; says why the socket must close, or nothing."""
        if session is None:
            reply, why = self.hub.control(connection, text, boot_ns() // 1_000_000)
        else:
            speed, why = self.world.setup.speed, ""
            wait_s = self._half_latency_s()
            if wait_s:
                await asyncio.sleep(wait_s)
            told = wsapi.answer(session, text, self.now(), speed, self._handle)
            wait_s += told.late_ms / 1000
            if wait_s:
                await asyncio.sleep(wait_s)
            if not told.text:
                connection.transport.abort()
            reply = text_frame(told.text) if told.text else b""
        if reply:
            self.hub.send(connection, reply)
        return why

    async def _listen(
        self, stream: web.WebSocketResponse, connection: Connection, session: wsapi.Session | None
    ) -> None:
        stop = asyncio.ensure_future(self.stopping.wait())
        closer = self._closers[connection.id]
        try:
            while not stream.closed:
                heard = asyncio.ensure_future(stream.receive())
                done, _ = await asyncio.wait(
                    (heard, stop, closer), return_when=asyncio.FIRST_COMPLETED
                )
                if heard not in done:
                    heard.cancel()
                    code, why = closer.result() if closer in done else STOPPING
                    self.hub.remove(connection)
                    await stream.close(code=code, message=why.encode())
                    return
                message = heard.result()
                if message.type is WSMsgType.PING:
                    with contextlib.suppress(ConnectionError):  # it is going already
                        await stream.pong(message.data)
                    continue
                if message.type is WSMsgType.PONG:
                    connection.ponged_ms = boot_ns() // 1_000_000
                    continue
                if message.type is not WSMsgType.TEXT:
                    return
                why = await self._heard(connection, message.data, session)
                if why:
                    await stream.close(code=WSCloseCode.POLICY_VIOLATION, message=why.encode())
                    return
        finally:
            stop.cancel()


async def run(venue: Venue, bound: socket.socket) -> None:
    """Serves until a signal; everything is on disk when it returns."""
    runner = await shell.opened(venue.serve, bound, venue.stopping)
    host, port = bound.getsockname()[:2]
    venue.hub.warm(venue.world.rows)
    depth.warm(venue.world)
    touch.warm(venue.world.rows)
    venue.resume_clock()
    venue.step()
    print(
        f"venue ready http://{host}:{port} world={venue.world.setup.world}"
        f" symbols={len(venue.world.specs)} seed={venue.world.setup.seed}"
        f" speed={venue.world.setup.speed:g} edge={venue.world.setup.edge:g}",
        flush=True,
    )
    try:
        await venue.run()
    finally:
        await runner.cleanup()
        if not venue.world.paused:
            venue.step()  # nobody has seen a later time than the one that is kept
        if venue.recording is not None:
            venue.recording.close()
        venue.store.close(venue.world, wall_ms())
