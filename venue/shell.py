"""What both servers do at their sockets: the port, replies, user events and faults to clients.

`server` makes its market and `proxy` follows another's; this is what does not differ between them.
It does I/O, but reads no clock: now is an argument.
"""

from __future__ import annotations

import asyncio
import signal
import socket
from collections.abc import Awaitable, Callable
from typing import Any

import orjson
from aiohttp import web

from venue import listen, rest
from venue.connection import Connection
from venue.door import Answer, Asked
from venue.house import House, note
from venue.limits import HOME
from venue.orders import Refusal
from venue.rest import Desk, Reply
from venue.sockets import Hub
from venue.streamfaults import UserStream

CLOSE_S = 1.0  # a closing socket waits so long for its client's answer
STOP_S = 3 * CLOSE_S  # longer than any handler may take: cutting one off as it returns is an error

Serve = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]


def response(reply: Reply) -> web.Response:
    return web.Response(
        body=reply.body,
        status=reply.status,
        headers=reply.headers,
        content_type=reply.content_type,
    )


def own_response(said: Any) -> web.Response:
    """What a call of the venue's own answers, a refusal too."""
    if isinstance(said, Refusal):
        return response(rest.refuse(said, {}))
    return response(Reply(200, orjson.dumps(said), {}))


def answered(request: web.BaseRequest, answer: Answer) -> web.Response:
    """The reply, or a connection that is closed without one."""
    if answer.reply is not None:
        return response(answer.reply)
    if request.transport is not None:
        request.transport.abort()
    return web.Response(status=503)  # nobody hears it


def asked(request: web.BaseRequest, path: str, query: str, body: bytes) -> Asked:
    """The request as the door takes it; its bytes as they came."""
    raw = query.encode("utf-8", "surrogateescape")
    key = request.headers.get("X-MBX-APIKEY", "")
    return Asked(request.method, path, raw, body, key, request.remote or HOME)


def carry_out(
    house: House,
    desk: Desk,
    events: UserStream,
    hub: Hub,
    close: Callable[[Connection, int], None],
    boot_ms: int,
    market_ms: int,
) -> None:
    """User events to their sockets, disconnects to whom they meet, faults to the ledger.

    `close` ends a connection with a code; what ends without one has ended when this returns.
    """
    keys, lab = desk.keys, desk.lab
    key = listen.live(keys, boot_ms)
    while house.told:
        for payload in events.passed(house.told.popleft(), boot_ms):
            hub.tell(payload, key)
    for payload in events.due(boot_ms):
        hub.tell(payload, key)
    for ended in listen.expired(keys, boot_ms):
        hub.tell({"e": "listenKeyExpired", "E": market_ms, "listenKey": ended}, ended)
    while lab.cuts:
        plan = lab.cuts.pop()
        for connection in hub.cut(plan):
            close(connection, plan.values["close"])
    while lab.notes:
        note(house, lab.notes.popleft(), market_ms)


def listener(host: str, port: int) -> socket.socket:
    """The bound socket, taken before any file of a venue is touched. Raises OSError."""
    made = socket.create_server((host, port), backlog=128)
    made.setblocking(False)
    return made


async def opened(serve: Serve, bound: socket.socket, stopping: asyncio.Event) -> web.ServerRunner:
    """The port answers, and signals set `stopping`. The runner is the caller's to clean up."""
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    server = web.Server(serve, access_log=None)
    runner = web.ServerRunner(server, handle_signals=False, shutdown_timeout=STOP_S)
    await runner.setup()
    await web.SockSite(runner, bound).start()
    return runner
