"""Upstream's public answers and market frames, handed on as they are. A shell: it does I/O.

A client of the market has an upstream socket of its own: every frame, control message, ping and
close goes through unchanged, in order. REST goes through for the paths of FORWARDED only, by GET
only, with status, body and headers as upstream gave them. No key, signature or listen key leaves
this machine: of a client's headers three go upstream, and secret parameters are taken out. A
client that does not read is cut off by the hub's bound; one that upstream does not read waits.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import Callable, Iterable
from typing import Any, Literal, cast
from urllib.parse import unquote_plus

import aiohttp
import orjson
from aiohttp import WSCloseCode, WSMsgType, web
from multidict import CIMultiDict
from yarl import URL

from venue import wire
from venue.connection import Address, Connection, Transport
from venue.follow import ANSWER_BYTES_MAX, CLOSE_S, FRAME_BYTES_MAX, AskError, read
from venue.market import AGG, BOOK, MARK
from venue.sockets import Hub

ANSWER_S = 10.0  # a forwarded question is given up after this
DIAL_S = 10.0
CLIENT_BYTES_MAX = 1 << 20  # of one message of a client
MARKET_BYTES_MAX = 16 * FRAME_BYTES_MAX  # all marks or tickers come in one frame
_V1 = (
    "aggTrades", "assetIndex", "constituents", "continuousKlines", "depth", "exchangeInfo",
    "fundingInfo", "fundingRate", "indexInfo", "indexPriceKlines", "insuranceBalance", "klines",
    "markPriceKlines", "openInterest", "ping", "premiumIndex", "premiumIndexKlines", "rpiDepth",
    "symbolAdlRisk", "ticker/24hr", "ticker/bookTicker", "ticker/price", "time", "trades",
    "tradingSchedule",
)  # fmt: skip
FORWARDED = frozenset({f"/fapi/v1/{name}" for name in _V1} | {"/fapi/v2/ticker/price"})
FORWARDED_UNDER = "/futures/data/"
SECRETS = frozenset({"signature", "listenkey", "apikey", "x-mbx-apikey"})  # lower case
HEADERS_UP = ("Accept", "Accept-Encoding", "User-Agent")
HEADERS_OWN = frozenset(
    {"connection", "content-length", "keep-alive", "te", "trailer", "transfer-encoding", "upgrade"}
)  # of one connection; everything else is passed on
NO_CODE = (1005, 1006, 1015)  # never sent in a close frame
Dialed = aiohttp.ClientWebSocketResponse[Literal[False]]  # text comes as bytes
End = tuple[int, bytes]  # close code and reason
ENDED: End = (1006, b"")


def is_forwarded(method: str, path: str) -> bool:
    """True for what anybody may ask of the market."""
    known = path in FORWARDED or re.fullmatch(FORWARDED_UNDER + "[A-Za-z]+", path) is not None
    return method == "GET" and known


def public_query(query: str) -> str:
    """The query as it came, but for parameters that are nobody else's business."""
    parts = query.split("&")
    return "&".join(p for p in parts if unquote_plus(p.partition("=")[0]).lower() not in SECRETS)


def passed_on(headers: Iterable[tuple[str, str]]) -> CIMultiDict[str]:
    return CIMultiDict((k, v) for k, v in headers if k.lower() not in HEADERS_OWN)


async def forward(
    session: aiohttp.ClientSession, base: str, request: web.BaseRequest
) -> web.Response:
    """Upstream's answer to the same question. Raises AskError when there is none."""
    path, _, query = request.raw_path.partition("?")
    asked = public_query(query)
    given = {name: request.headers[name] for name in HEADERS_UP if name in request.headers}
    try:
        async with session.get(
            URL(f"{base}{path}?{asked}" if asked else base + path, encoded=True),
            headers=given,
            skip_auto_headers=HEADERS_UP,
            timeout=aiohttp.ClientTimeout(total=ANSWER_S),
            allow_redirects=False,
        ) as answer:
            body = await read(answer, ANSWER_BYTES_MAX)
    except (aiohttp.ClientError, OSError, TimeoutError) as error:
        raise AskError(f"{path}: {error or type(error).__name__}") from error
    return web.Response(body=body, status=answer.status, headers=passed_on(answer.headers.items()))


class Relays:
    """All sockets of the market. `sent` is what was handed on, by symbol."""

    def __init__(self, hub: Hub, flowing: asyncio.Event, stopping: asyncio.Event) -> None:
        self.hub, self.flowing, self.stopping = hub, flowing, stopping
        self.sent: dict[str, dict[str, int]] = {}

    async def serve(
        self,
        session: aiohttp.ClientSession,
        url: str,
        request: web.BaseRequest,
        address: Address,
        is_secret: Callable[[str], bool],
    ) -> web.StreamResponse:
        """One client from handshake to close. Raises AskError when upstream cannot be reached."""
        path, _, query = request.raw_path.partition("?")
        asked = public_query(query)
        whole = f"{path}?{asked}" if asked else path
        if is_secret(whole):
            return web.Response(status=400)
        try:
            async with asyncio.timeout(DIAL_S):
                up = await session.ws_connect(
                    URL(url + whole, encoded=True),
                    autoping=False,
                    autoclose=False,
                    max_msg_size=MARKET_BYTES_MAX,
                    decode_text=False,
                    timeout=aiohttp.ClientWSTimeout(ws_close=CLOSE_S),
                )
        except aiohttp.WSServerHandshakeError as error:
            return web.Response(
                status=error.status, headers=passed_on((error.headers or {}).items())
            )
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            raise AskError(f"{path}: {error or type(error).__name__}") from error
        async with up:
            return await self._between(up, request, address, whole, is_secret)

    async def _between(
        self,
        up: Dialed,
        request: web.BaseRequest,
        address: Address,
        whole: str,
        is_secret: Callable[[str], bool],
    ) -> web.StreamResponse:
        stream = web.WebSocketResponse(
            compress=False, autoping=True, max_msg_size=CLIENT_BYTES_MAX, timeout=CLOSE_S
        )
        await stream.prepare(request)
        transport = request.transport
        if transport is None:
            return stream
        plain = Address(address.route, address.combined, (), {})
        connection = self.hub.add(plain, whole, cast(Transport, transport))
        down = asyncio.ensure_future(self._down(up, connection))
        upward = asyncio.ensure_future(self._up(stream, up, is_secret))
        stop = asyncio.ensure_future(self.stopping.wait())
        tasks: tuple[asyncio.Future[Any], ...] = (down, upward, stop)
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            ended = down if down.done() else upward
            code, why = ended.result() if ended.done() else (WSCloseCode.GOING_AWAY, b"venue stops")
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            self.hub.remove(connection)
        if code in NO_CODE and not stream.closed:
            transport.abort()  # the other side vanished too
        elif not stream.closed:
            await stream.close(code=code, message=why)
        with contextlib.suppress(TimeoutError):  # upstream may go on talking instead
            async with asyncio.timeout(CLOSE_S):
                await up.close(code=1000 if code in NO_CODE else code, message=why)
        return stream

    async def _down(self, up: Dialed, connection: Connection) -> End:
        """Upstream's frames to the client, until one of them ends."""
        while connection.open:
            message = await up.receive()
            await self.flowing.wait()
            if message.type is WSMsgType.TEXT:
                payload: bytes = message.data
                if self.hub.send(connection, wire.text_frame(payload)):
                    self._count(connection, payload)
            elif message.type is WSMsgType.BINARY:
                self.hub.send(connection, b"\x82" + wire.text_frame(message.data)[1:])
            elif message.type is WSMsgType.PING:
                await up.pong(message.data)
                self.hub.send(connection, b"\x89" + wire.text_frame(message.data)[1:])
            elif message.type is WSMsgType.CLOSE:
                return int(message.data or 1005), (message.extra or "").encode()
            elif message.type is not WSMsgType.PONG:
                return ENDED
        return ENDED

    async def _up(
        self, stream: web.WebSocketResponse, up: Dialed, is_secret: Callable[[str], bool]
    ) -> End:
        """The client's messages to upstream; its pings are answered here."""
        while True:
            message = await stream.receive()
            if message.type is WSMsgType.TEXT:
                if is_secret(message.data):
                    return WSCloseCode.POLICY_VIOLATION, b"Invalid request"
                await up.send_str(message.data)
            elif message.type is WSMsgType.BINARY:
                await up.send_bytes(message.data)
            elif message.type is WSMsgType.CLOSE:
                return int(message.data or 1005), (message.extra or "").encode()
            else:
                return ENDED

    def _count(self, connection: Connection, payload: bytes) -> None:
        """What was handed on, for who wants to compare: by kind, and the trades' last ids."""
        if b'"e":"bookTicker"' in payload:
            connection.tally[BOOK] += 1
        elif b'"e":"markPriceUpdate"' in payload:
            connection.tally[MARK] += 1
        elif b'"e":"aggTrade"' in payload:
            connection.tally[AGG] += 1
            data = orjson.loads(payload)
            data = data.get("data", data)
            row = self.sent.setdefault(data["s"], {"first_id": data["a"], "last_id": 0})
            row["last_id"] = max(row["last_id"], data["a"])
        else:
            connection.looks += 1
