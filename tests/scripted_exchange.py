"""An exchange whose every word is scripted: market data and REST on one loopback port.

Trades of a symbol have consecutive ids and one price, so that whose they are can be seen. A life
is what becomes of one WebSocket; `lives` are taken by the next ones, in order, of one route. What
was written to each socket is counted, so that a balance can be struck.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import random
import socket
import ssl
import struct
from collections.abc import Awaitable, Callable
from typing import Any
from urllib.parse import parse_qsl

T0_MS = 1_795_000_020_000  # a minute begins
STEP_MS = 10  # market time between two ticks of a symbol
TICK_S = 0.01
MARK_EVERY = 5  # ticks
MINUTES = {"1m": 1, "5m": 5, "15m": 15, "1h": 60, "1d": 1440}
GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
SWITCHING = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"

Life = Callable[["Exchange", "Client"], Awaitable[None]]


def frame(payload: bytes, opcode: int = 1) -> bytes:
    """One unmasked whole frame."""
    first = bytes([0x80 | opcode])
    if len(payload) < 126:
        return first + bytes([len(payload)]) + payload
    return first + b"\x7e" + len(payload).to_bytes(2, "big") + payload


def dumps(made: Any) -> bytes:
    return json.dumps(made, separators=(",", ":")).encode()


class Client:
    """One WebSocket's server side."""

    def __init__(
        self, route: str, head: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self.route, self.head, self.reader, self.writer = route, head, reader, writer
        self.names: set[str] = set()
        self.asked: list[dict[str, Any]] = []
        self.acks = self.obeys = True
        self.waiting: list[bytes] = []  # acks while `acks` is off
        self.delay_s = 0.0  # market data is so much older
        self.pongs: list[bytes] = []
        self.sent = {"trade": 0, "quote": 0, "mark": 0}
        self.open = False

    def upgrade(self) -> None:
        """Answer the handshake."""
        lines = self.head.split(b"\r\n")
        key = next(line[19:] for line in lines if line.lower().startswith(b"sec-websocket-key: "))
        accept = base64.b64encode(hashlib.sha1(key.strip() + GUID).digest())
        self.writer.write(SWITCHING + b"Sec-WebSocket-Accept: " + accept + b"\r\n\r\n")
        self.open = True

    async def read(self) -> tuple[int, bytes]:
        """(opcode, payload) of the next frame of the client."""
        first, second = await self.reader.readexactly(2)
        size = second & 0x7F
        if size == 126:
            size = int.from_bytes(await self.reader.readexactly(2), "big")
        mask = await self.reader.readexactly(4)
        data = await self.reader.readexactly(size)
        return first & 0x0F, bytes(b ^ mask[i % 4] for i, b in enumerate(data))

    async def obey(self) -> None:
        """Ack what is asked until the client is gone."""
        while True:
            opcode, data = await self.read()
            if not self.obeys:
                continue
            if opcode == 8:
                return
            if opcode == 9:
                self.writer.write(frame(data, 10))
            elif opcode == 10:
                self.pongs.append(data)
            elif opcode == 1:
                request = json.loads(data)
                self.asked.append(request)
                names = set(request["params"])
                if request["method"] == "SUBSCRIBE":
                    self.names |= names
                else:
                    self.names -= names
                self.waiting.append(frame(dumps({"result": None, "id": request["id"]})))
                if self.acks:
                    self.ack()

    def ack(self) -> None:
        """Answer everything that was asked so far."""
        while self.waiting:
            self.write(self.waiting.pop(0))

    def write(self, data: bytes) -> None:
        """Send, `delay_s` later; the order stays."""
        if self.delay_s:
            asyncio.get_running_loop().call_later(self.delay_s, self.writer.write, data)
        else:
            self.writer.write(data)

    def reset(self) -> None:
        """RST."""
        raw = self.writer.get_extra_info("socket")
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()


async def serve(exchange: Exchange, client: Client) -> None:
    """The usual life."""
    client.upgrade()
    await client.obey()


class Exchange:
    """Use `async with`; `market()` makes the ticks, as a task or one by one with `tick()`."""

    def __init__(self, *names: str, tls: ssl.SSLContext | None = None, seed: int = 0) -> None:
        self.names = names
        self.price = {name: 100.0 + 10 * index for index, name in enumerate(names)}
        self.last_id = {name: 1000 * (index + 1) for index, name in enumerate(names)}
        self.first_id = dict(self.last_id)
        self.trades: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
        self.lives: list[tuple[str, Life]] = []
        self.clients: list[Client] = []
        self.muted: set[str] = set()  # stream names that are acked and not delivered
        self.quiet: set[str] = set()  # symbols that do not trade
        self.requests: list[str] = []
        self.failing: list[tuple[str, bytes]] = []  # (part of the path, head) of REST calls to fail
        self.used_weight = 1
        self.rest_lag_ms = 0  # REST knows no trade that is younger
        self.kept = 0  # trades of a symbol that REST still has, 0 for all; candles know them all
        self.now_ms, self.step_ms = T0_MS, STEP_MS
        self.ticks = self.update_id = 0
        self.paused = False
        self.split = False  # write frames in random pieces
        self._rng = random.Random(seed)
        self.tls = tls
        self.port = 0

    async def __aenter__(self) -> Exchange:
        self._server = await asyncio.start_server(self._handle, "127.0.0.1", 0, ssl=self.tls)
        self.port = self._server.sockets[0].getsockname()[1]
        self._market = asyncio.ensure_future(self.market())
        return self

    async def __aexit__(self, *exc: object) -> None:
        self._market.cancel()
        self._server.close()
        for client in self.clients:
            client.writer.transport.abort()
        await asyncio.gather(self._market, return_exceptions=True)

    def url(self, scheme: str = "ws") -> str:
        host = "localhost" if self.tls else "127.0.0.1"
        return f"{scheme}://{host}:{self.port}"

    def open_clients(self, route: str) -> list[Client]:
        return [client for client in self.clients if client.open and client.route == route]

    # --- market data ---

    async def market(self) -> None:
        while True:
            if not self.paused:
                self.tick()
            await asyncio.sleep(TICK_S)

    def tick(self) -> None:
        """One trade, one quote and sometimes a mark of every symbol."""
        self.now_ms += self.step_ms
        self.ticks += 1
        self.update_id += 1
        for name in self.names:
            if name not in self.quiet:
                self.trade(name)
                self.quote(name)
            if self.ticks % MARK_EVERY == 0:
                self._say(f"{name.lower()}@markPrice@1s", "mark", {
                    "e": "markPriceUpdate", "E": self.now_ms, "s": name,
                    "p": str(self.price[name]), "i": "", "r": "0.0001", "T": self.now_ms, "st": 1,
                })  # fmt: skip

    def trade(self, name: str) -> None:
        self.last_id[name] += 1
        number = self.last_id[name]
        made = {"a": number, "p": str(self.price[name]), "q": "1", "T": self.now_ms, "m": False}
        self.trades[name].append(made)
        event = {"e": "aggTrade", "E": self.now_ms, "s": name, **made, "st": 1}
        self._say(f"{name.lower()}@aggTrade", "trade", event)

    def quote(self, name: str) -> None:
        price = self.price[name]
        self._say(f"{name.lower()}@bookTicker", "quote", {
            "e": "bookTicker", "u": self.update_id, "s": name, "b": str(price), "B": "1",
            "a": str(price + 0.1), "A": "2", "T": self.now_ms, "E": self.now_ms, "st": 1,
        })  # fmt: skip

    def _say(self, stream: str, kind: str, event: dict[str, Any]) -> None:
        if stream in self.muted:
            return
        data = frame(dumps({"stream": stream, "data": event}))
        for client in self.clients:
            if client.open and stream in client.names and not client.writer.is_closing():
                client.sent[kind] += 1
                self._write(client, data)

    def _write(self, client: Client, data: bytes) -> None:
        if not self.split:
            client.write(data)
            return
        at = 0
        while at < len(data):
            size = self._rng.choice((1, 2, 7, 60, 400))
            client.writer.transport.write(data[at : at + size])
            at += size

    # --- connections ---

    async def _handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        client: Client | None = None
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                path = head.split(b" ")[1].decode()
                if b"upgrade: websocket" in head.lower():
                    client = Client(path.split("/")[1], head, reader, writer)
                    self.clients.append(client)
                    await self._life(client)(self, client)
                    return
                self._answer(path, writer)
        except (OSError, asyncio.IncompleteReadError):
            return  # the client is gone
        finally:
            if client is not None:
                client.open = False
            writer.close()

    def _life(self, client: Client) -> Life:
        for index, (route, life) in enumerate(self.lives):
            if route == client.route:
                del self.lives[index]
                return life
        return serve

    def _answer(self, path: str, writer: asyncio.StreamWriter) -> None:
        self.requests.append(path)
        failing = next((f for f in self.failing if f[0] in path), None)
        if failing is not None:
            self.failing.remove(failing)
            head, _, body = failing[1].partition(b"\r\n\r\n")
            head += b"\r\n"
        else:
            head, body = b"HTTP/1.1 200 OK\r\n", dumps(self._rest(path))
        used = b"X-MBX-USED-WEIGHT-1M: %d\r\n" % self.used_weight
        writer.write(head + used + b"Content-Length: %d\r\n\r\n" % len(body) + body)

    def _rest(self, path: str) -> Any:
        where, _, query = path.partition("?")
        asked = dict(parse_qsl(query))
        name, word = asked.get("symbol", ""), where.rsplit("/", 1)[1]
        if word == "time":
            return {"serverTime": self.now_ms}
        if word == "24hr":
            return {"symbol": name, "lastId": self.last_id[name]}
        if word == "klines":
            return self.candles(name, MINUTES[asked["interval"]], asked)
        known_ms = self.now_ms - self.rest_lag_ms
        trades = [t for t in self.trades[name][-self.kept :] if t["T"] <= known_ms]
        if "fromId" in asked:
            trades = [t for t in trades if t["a"] >= int(asked["fromId"])]
        elif "startTime" in asked:
            trades = [t for t in trades if t["T"] >= int(asked["startTime"])]
        else:
            return trades[-int(asked["limit"]) :]
        return trades[: int(asked["limit"])]

    def candles(self, name: str, minutes: int, asked: dict[str, str]) -> list[list[Any]]:
        """Rows of GET klines, made of the trades."""
        span_ms = minutes * 60_000
        low, high = int(asked.get("startTime", 0)), int(asked.get("endTime", 1 << 60))
        made: dict[int, list[dict[str, Any]]] = {}
        for trade in self.trades[name]:
            open_ms = trade["T"] // span_ms * span_ms
            if low <= open_ms <= high:
                made.setdefault(open_ms, []).append(trade)
        rows = []
        for open_ms, trades in sorted(made.items()):
            price, qty = self.price[name], sum(float(t["q"]) for t in trades)
            prices = [str(price)] * 4
            sums = [str(qty * price), len(trades), str(qty), str(qty * price), "0"]
            rows.append([open_ms, *prices, str(qty), open_ms + span_ms - 1, *sums])
        limit = int(asked["limit"])
        return rows[:limit] if low else rows[-limit:]
