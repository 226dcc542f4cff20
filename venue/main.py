"""The venue process: one port for REST and WebSocket, one loop for the market.

`python -m venue.main --port 0 --symbols 5 --rate 500 --seed 7` prints one line when it is ready.
This file alone reads clocks, opens sockets and writes files; everything else is pure. The market
clock is t0 + speed x elapsed; it stands still during a pause, and a process that was stopped for
longer than STALL_MS takes that as a pause too, instead of pouring out what it missed.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import signal
import socket
import uuid
from pathlib import Path
from typing import Any, cast

import orjson
import uvloop
from aiohttp import WSCloseCode, WSMsgType, web

import config
import process
from clock import MarketClock, boot_ns, wall_ms
from venue import accounting, exchange, public, rest, trading
from venue.exchange import Exchange, Moment, Setup
from venue.rest import Call, Desk, Reply, Route, Routes
from venue.sockets import Connection, Hub, Transport, parse_url
from venue.store import Store, StoreError
from venue.symbols import SYMBOLS_MAX
from venue.tape import TapeError

STEP_S = 0.010  # the market is made in steps of real time
STALL_MS = 1000  # a longer gap between two steps is a pause, not a backlog
ACCOUNT_INTERVAL_MS = 250  # the account is written at most so often while it changes
PROGRESS_INTERVAL_MS = 1_000  # and at least so often, for the market's time in it
MARKET_INTERVAL_MS = 120_000  # bounds what a resume after a crash must replay
PING_INTERVAL_MS = 180_000
DRAIN_S = 5.0  # a pause waits so long for sockets to take what was produced
CLOSE_S = 1.0  # an orderly stop waits so long for clients
BODY_BYTES_MAX = 1 << 20
LEDGER_LIMIT = 10_000  # entries of one answer

log = logging.getLogger("venue")


def ledger(call: Call) -> Any:
    """/venue/v1/ledger: kept entries from `from_seq` on; the file has all of them."""
    first = public.number(call.params, "from_seq") or 0
    limit = min(public.number(call.params, "limit") or 1000, LEDGER_LIMIT)
    kept = call.exchange.ledger
    skip = max(0, first - kept[0]["seq"]) if kept else 0
    return {"events": [kept[k] for k in range(skip, min(len(kept), skip + limit))]}


ROUTES: Routes = {
    **public.ROUTES,
    **trading.ROUTES,
    **accounting.ROUTES,
    ("GET", "/venue/v1/ledger"): Route(ledger, weight=0),
}


class Venue:
    """The running exchange: world, hub, store, clock. `close` leaves it resumable."""

    def __init__(self, world: Exchange, store: Store, strict: bool) -> None:
        self.world = world
        self.store = store
        self.desk = Desk()
        self.hub = Hub(world.specs, strict)
        self.clock = MarketClock(world.made_until_ms, boot_ns(), world.setup.speed)
        self.stopping = asyncio.Event()
        self.stalls = 0
        self._paused_boot_ns = 0
        self._stepped_boot_ns = boot_ns()
        self._saved_ms = self._market_saved_ms = self._pinged_ms = boot_ns() // 1_000_000
        self._expired_key = ""

    def now(self) -> Moment:
        boot = boot_ns()
        if self.world.paused:
            slack = int((boot - self._paused_boot_ns) / 1e6 * self.world.setup.speed)
            return Moment(int(self.world.made_until_ms), boot // 1_000_000, slack)
        return Moment(int(self.clock.now_ms(boot)), boot // 1_000_000)

    def step(self) -> None:
        """Makes the market up to now, tells everybody, keeps what must be kept."""
        boot = boot_ns()
        if not self.world.paused:
            if boot - self._stepped_boot_ns > STALL_MS * 1_000_000:
                self.stalls += 1
                self._anchor(self.world.made_until_ms, boot)
            self._stepped_boot_ns = boot
            until_ms = self.clock.now_ms(boot)
            for count in exchange.advance(self.world, until_ms, int(until_ms)):
                self.hub.fan_out(self.world.rows, count)
        self.carry_out()
        self._keep(boot // 1_000_000)

    def resume_clock(self) -> None:
        """The market goes on from where it was made to, as of now."""
        self._stepped_boot_ns = boot_ns()
        self._anchor(self.world.made_until_ms, self._stepped_boot_ns)

    def _anchor(self, market_ms: float, boot: int) -> None:
        self.clock = MarketClock(market_ms, boot, self.world.setup.speed)

    def carry_out(self) -> None:
        """User events to their sockets, ledger lines to their file."""
        self.store.write_ledger(self.world, wall_ms())
        key = self.desk.listen_key
        expired = bool(key) and boot_ns() // 1_000_000 >= self.desk.listen_until_ms
        told = self.world.told
        while told:
            payload = told.popleft()
            if key and not expired:
                self.hub.tell(payload, key)
        if expired and self._expired_key != key:
            self._expired_key = key
            word = {"e": "listenKeyExpired", "E": self.now().market_ms, "listenKey": key}
            self.hub.tell(word, key)

    def _keep(self, now_ms: int) -> None:
        since = now_ms - self._saved_ms
        if since >= PROGRESS_INTERVAL_MS or (self.world.dirty and since >= ACCOUNT_INTERVAL_MS):
            self._saved_ms = now_ms
            self.store.save_account(self.world)
        if now_ms - self._market_saved_ms >= MARKET_INTERVAL_MS:
            self._market_saved_ms = now_ms
            self.store.save_market(self.world)
        if now_ms - self._pinged_ms >= PING_INTERVAL_MS:
            self._pinged_ms = now_ms
            text = str(wall_ms()).encode()
            for connection in list(self.hub.connections.values()):
                self.hub.send(connection, b"\x89" + bytes((len(text),)) + text)

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
        body = await request.read()
        if path.startswith("/venue/v1/"):
            own = await self._own(request.method, path)
            if own is not None:
                return web.Response(body=orjson.dumps(own), content_type="application/json")
        reply = self._handle(request, path, query.encode(), body)
        return web.Response(
            body=reply.body,
            status=reply.status,
            headers=reply.headers,
            content_type="application/json",
        )

    def _handle(self, request: web.BaseRequest, path: str, query: bytes, body: bytes) -> Reply:
        key = request.headers.get("X-MBX-APIKEY", "")
        reply = rest.handle(
            self.world, self.desk, ROUTES, request.method, path, query, body, key, self.now()
        )
        self.carry_out()
        return reply

    async def _own(self, method: str, path: str) -> Any:
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
        address = parse_url(path, query)
        if address is None:
            return web.Response(status=404)
        stream = web.WebSocketResponse(
            compress=False, autoping=True, max_msg_size=BODY_BYTES_MAX, timeout=CLOSE_S
        )
        await stream.prepare(request)
        transport = request.transport
        if transport is None:
            return stream
        connection = self.hub.add(
            address, f"{path}?{query}" if query else path, cast(Transport, transport)
        )
        try:
            await self._listen(stream, connection)
        finally:
            self.hub.remove(connection)
        return stream

    async def _listen(self, stream: web.WebSocketResponse, connection: Connection) -> None:
        stop = asyncio.ensure_future(self.stopping.wait())
        try:
            while not stream.closed:
                heard = asyncio.ensure_future(stream.receive())
                done, _ = await asyncio.wait((heard, stop), return_when=asyncio.FIRST_COMPLETED)
                if heard not in done:
                    heard.cancel()
                    await stream.close(code=WSCloseCode.GOING_AWAY, message=b"venue stops")
                    return
                message = heard.result()
                if message.type is not WSMsgType.TEXT:
                    return
                reply, why = self.hub.control(connection, message.data, boot_ns() // 1_000_000)
                if reply:
                    self.hub.send(connection, reply)
                if why:
                    await stream.close(code=WSCloseCode.POLICY_VIOLATION, message=why.encode())
                    return
        finally:
            stop.cancel()


def listener(host: str, port: int) -> socket.socket:
    """The bound socket, taken before any file of a venue is touched. Raises OSError."""
    made = socket.create_server((host, port), backlog=128)
    made.setblocking(False)
    return made


async def run(venue: Venue, door: socket.socket) -> None:
    """Serves until a signal; everything is on disk when it returns."""
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, venue.stopping.set)
    server = web.Server(venue.serve, access_log=None)
    runner = web.ServerRunner(server, handle_signals=False, shutdown_timeout=CLOSE_S)
    await runner.setup()
    await web.SockSite(runner, door).start()
    host, port = door.getsockname()[:2]
    venue.hub.warm(venue.world.rows)
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
        venue.store.close(venue.world, wall_ms())


def arguments(argv: list[str] | None, cfg: config.Config) -> argparse.Namespace:
    """The command line; what is not given comes from the settings."""
    parser = argparse.ArgumentParser(
        prog="venue", description="a simulated Binance USDⓈ-M exchange on loopback"
    )
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=cfg.venue_port, help="0 takes a free one")
    parser.add_argument("--symbols", type=int, default=cfg.venue_symbols)
    parser.add_argument("--rate", type=float, default=cfg.venue_rate, help="ticks/s, all symbols")
    parser.add_argument("--seed", type=int, default=cfg.venue_seed)
    parser.add_argument(
        "--speed",
        type=float,
        default=cfg.venue_speed,
        help="market seconds per second; default 30, with a tape 1",
    )
    parser.add_argument(
        "--edge",
        type=float,
        default=cfg.venue_edge,
        help="drift after structure breaks in standard deviations; 0: none",
    )
    parser.add_argument("--tape", nargs="+", default=list(cfg.venue_tape), metavar="FILE")
    parser.add_argument("--strict", action=argparse.BooleanOptionalAction, default=cfg.venue_strict)
    parser.add_argument("--state", default=str(Path(cfg.state_dir) / "venue"), metavar="DIR")
    parser.add_argument("--resume", action="store_true", help="go on with the world in DIR, if any")
    options = parser.parse_args(argv)
    if options.speed is None:
        options.speed = 1.0 if options.tape else 30.0
    if not 1 <= options.symbols <= SYMBOLS_MAX:
        parser.error(f"--symbols must be 1 to {SYMBOLS_MAX}")
    if not 0 <= options.port <= 65535:
        parser.error("--port must be 0 to 65535")
    if options.speed <= 0 or options.edge < 0 or options.rate < 0 or options.seed < 0:
        parser.error("--speed must be above 0; --rate, --seed and --edge not below 0")
    return options


def born(options: argparse.Namespace, store: Store) -> Exchange:
    """A world from the store or a new one with its first deposit. Raises StoreError, TapeError."""
    if options.resume and store.holds_world():
        return store.resume()
    setup = Setup(
        uuid.uuid4().hex[:16],
        options.symbols,
        options.rate,
        options.seed,
        options.speed,
        options.edge,
        tuple(options.tape),
    )
    world = exchange.create(setup)
    exchange.open_account(world, Moment(world.t0_ms, 0))
    store.create(world)
    return world


def main(argv: list[str] | None = None) -> int:
    process.setup_logging("venue")
    try:
        options = arguments(argv, config.load())
        with listener(options.host, options.port) as door:
            store = Store(Path(options.state))
            with store.locked():
                world = born(options, store)
                uvloop.run(_whole(world, store, options.strict, door))
    except (config.ConfigError, StoreError, TapeError) as error:
        process.fail(str(error))
    except OSError as error:
        process.fail(
            f"venue cannot start on {options.host}:{options.port} with state"
            f" {options.state}: {error.strerror or error}; choose another port or folder"
        )
    return 0


async def _whole(world: Exchange, store: Store, strict: bool, door: socket.socket) -> None:
    await run(Venue(world, store, strict), door)


if __name__ == "__main__":
    raise SystemExit(main())
