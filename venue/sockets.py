"""WebSocket side of the venue: who hears what. Frames in, bytes to transports out.

Each market frame is encoded once per form (combined or raw) and copied to those who subscribed.
A route serves its own streams only when `strict`; a stream of another route is acked and stays
silent, as on the exchange. A client that does not read is cut off once BUFFER_BYTES_MAX wait for
it in this process; what it missed it can see by the ids. Counts per connection are of frames
handed to its transport.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol
from urllib.parse import parse_qsl

import numpy as np
import orjson

from venue import wire
from venue.market import AGG, ARR, ARR3, BOOK, KINDS, MARK, MARK3, Ints
from venue.symbols import Symbol
from venue.userwire import Json

BUFFER_BYTES_MAX = 64 << 20  # per connection: seconds of the fastest market; then it is cut off
STREAMS_MAX = 1024  # per connection, as documented
MESSAGES_MAX = 15  # client messages within MESSAGE_SPAN_MS before the socket is closed
MESSAGE_SPAN_MS = 1000
FRAMES_BYTES = 8 << 20  # one encoded batch
NAMES = {
    "aggTrade": AGG,
    "bookTicker": BOOK,
    "markPrice@1s": MARK,
    "markPrice": MARK3,
}
ALL_NAMES = {"!markPrice@arr@1s": ARR, "!markPrice@arr": ARR3}
PUBLIC_KINDS = (BOOK,)
ROUTES = ("public", "market", "private")


class Transport(Protocol):
    def write(self, data: bytes) -> None: ...
    def get_write_buffer_size(self) -> int: ...
    def abort(self) -> None: ...
    def is_closing(self) -> bool: ...


@dataclass(slots=True)
class Connection:
    id: int
    path: str
    route: str  # public, market, private or legacy
    combined: bool
    transport: Transport
    mask: wire.Bytes
    names: dict[str, None] = field(default_factory=dict)
    tally: Ints = field(default_factory=lambda: np.zeros(KINDS, np.int64))
    bytes: int = 0
    open: bool = True
    message_times: list[int] = field(default_factory=list)
    listen_keys: dict[str, frozenset[str]] = field(default_factory=dict)  # key -> events, empty all


@dataclass(frozen=True, slots=True)
class Address:
    """What a URL asks for."""

    route: str
    combined: bool
    streams: tuple[str, ...]
    listen_keys: dict[str, frozenset[str]]


def parse_url(path: str, query: str) -> Address | None:
    """/[public|market|private]/(ws|stream)[/a/b][?streams=a/b][&listenKey=K&events=A/B]."""
    parts = [part for part in path.split("/") if part]
    route = parts.pop(0) if parts and parts[0] in ROUTES else "legacy"
    if not parts or parts[0] not in ("ws", "stream"):
        return None
    combined = parts.pop(0) == "stream"
    streams: list[str] = [] if route == "private" else [p for p in parts if not p.isdigit()]
    keys: dict[str, frozenset[str]] = {}
    if route == "private" and parts:
        keys[parts[0]] = frozenset()
    newest = ""
    for name, value in parse_qsl(query, keep_blank_values=True):
        if name == "streams":
            streams += [s for s in value.split("/") if s]
        elif name == "listenKey":
            newest = value
            keys[value] = frozenset()
        elif name == "events" and newest:
            keys[newest] = frozenset(e for e in value.split("/") if e)
    return Address(route, combined, tuple(streams), keys)


class Hub:
    """All connections, and the buffers that frames are encoded into."""

    def __init__(self, symbols: tuple[Symbol, ...], strict: bool) -> None:
        self.strict = strict
        self.index = {s.name.lower(): s.index for s in symbols}
        self.width = len(symbols) + 1
        self.templates = wire.templates(symbols)
        self.connections: dict[int, Connection] = {}
        self.closed: list[dict[str, Any]] = []
        self.cut_off = 0
        self._next_id = 1
        self._wanted = {form: self._empty() for form in (False, True)}
        room = max(FRAMES_BYTES, 4 * wire.FRAME_BYTES_MAX * self.width)
        self._frames = np.zeros(room, np.uint8)
        self._gathered = np.zeros(room, np.uint8)
        self._spans = np.zeros((0, 2), np.int64)

    def _empty(self) -> wire.Bytes:
        return np.zeros((KINDS, self.width), np.uint8)

    def warm(self, rows: Ints) -> None:
        """Loads the kernels before the first listener comes."""
        t, none = self.templates, self._empty()
        spans = np.zeros((1, 2), np.int64)
        wire.encode(rows, 0, 0, none, True, t.blob, t.start, t.digits, self._frames, spans)
        wire.gather(
            rows, 0, 0, none, self._frames, spans, self._gathered, np.zeros(KINDS, np.int64)
        )

    def add(self, address: Address, path: str, transport: Transport) -> Connection:
        connection = Connection(
            self._next_id,
            path,
            address.route,
            address.combined,
            transport,
            self._empty(),
            listen_keys=dict(address.listen_keys),
        )
        self._next_id += 1
        self.connections[connection.id] = connection
        for name in address.streams[:STREAMS_MAX]:
            self._switch(connection, name, 1)
        return connection

    def remove(self, connection: Connection) -> None:
        connection.open = False
        if self.connections.pop(connection.id, None) is not None:
            self.closed.append(describe(connection))
            del self.closed[:-1000]
            self._recount()

    def _recount(self) -> None:
        for form in (False, True):
            total = self._empty()
            for connection in self.connections.values():
                if connection.combined == form:
                    total |= connection.mask
            self._wanted[form] = total

    def _slot(self, name: str) -> tuple[int, int] | None:
        if name in ALL_NAMES:
            return ALL_NAMES[name], self.width - 1
        symbol, _, stream = name.partition("@")
        if symbol not in self.index or stream not in NAMES:
            return None
        return NAMES[stream], self.index[symbol]

    def _switch(self, connection: Connection, name: str, on: int) -> None:
        if on:
            connection.names[name] = None
        else:
            connection.names.pop(name, None)
        slot = self._slot(name)
        if slot is None:
            return
        route = "public" if slot[0] in PUBLIC_KINDS else "market"
        served = "public" if connection.route == "legacy" else connection.route
        if not self.strict or route == served:
            connection.mask[slot] = on
        self._recount()

    def control(self, connection: Connection, text: str, boot_ms: int) -> tuple[bytes, str]:
        """Answers one client message: (reply frame or empty, why to close with 1008 or empty)."""
        times = connection.message_times
        times[:] = [t for t in times if boot_ms - t < MESSAGE_SPAN_MS]
        times.append(boot_ms)
        if len(times) > MESSAGES_MAX:
            return b"", "Too many requests"
        try:
            message = orjson.loads(text)
        except ValueError:
            error = {"code": 3, "msg": "Invalid JSON: expected value at line 1 column 1"}
            return _frame({"error": error}), ""
        if not isinstance(message, dict):
            return _frame({"error": {"code": 2, "msg": "Invalid request: not an object"}}), ""
        return self._obey(connection, message)

    def _obey(self, connection: Connection, message: Json) -> tuple[bytes, str]:
        method, number = message.get("method"), message.get("id")
        names = message.get("params", [])
        valid = isinstance(names, list)
        if method in ("SUBSCRIBE", "UNSUBSCRIBE") and valid:
            on = 1 if method == "SUBSCRIBE" else 0
            if on and len(set(connection.names) | {str(n) for n in names}) > STREAMS_MAX:
                error = {"code": 4, "msg": "Too many subscriptions"}
                return _frame({"error": error, "id": number}), "Invalid request"
            for name in names:
                self._switch(connection, str(name), on)
            return _frame({"result": None, "id": number}), ""
        if method == "LIST_SUBSCRIPTIONS":
            return _frame({"result": list(connection.names), "id": number}), ""
        if method in ("SET_PROPERTY", "GET_PROPERTY") and valid and names[:1] == ["combined"]:
            return self._property(connection, method, names, number)
        if method in ("SET_PROPERTY", "GET_PROPERTY"):
            return _frame({"error": {"code": 0, "msg": "Unknown property"}, "id": number}), ""
        error = {"code": 2, "msg": f"Invalid request: unknown variant `{method}`"}
        return _frame({"error": error, "id": number}), ""

    def _property(
        self, connection: Connection, method: str, params: list[Any], number: Any
    ) -> tuple[bytes, str]:
        if method == "GET_PROPERTY":
            return _frame({"result": connection.combined, "id": number}), ""
        if len(params) != 2 or not isinstance(params[1], bool):
            error = {"code": 1, "msg": "Invalid value type: expected Boolean"}
            return _frame({"error": error, "id": number}), ""
        connection.combined = params[1]
        self._recount()
        return _frame({"result": None, "id": number}), ""

    def send(self, connection: Connection, data: bytes) -> bool:
        """Writes, or cuts off a client that has stopped reading."""
        if not connection.open or connection.transport.is_closing():
            return False
        if connection.transport.get_write_buffer_size() + len(data) > BUFFER_BYTES_MAX:
            self.cut_off += 1
            connection.transport.abort()
            self.remove(connection)
            return False
        connection.transport.write(data)
        connection.bytes += len(data)
        return True

    def fan_out(self, rows: Ints, count: int) -> None:
        """Frames of these rows to everybody who wants them."""
        if len(self._spans) < len(rows):
            self._spans = np.zeros((len(rows), 2), np.int64)
        t = self.templates
        for form, wanted in self._wanted.items():
            if not wanted.any():
                continue
            listeners = [
                c for c in self.connections.values() if c.combined == form and c.mask.any()
            ]
            first = 0
            while first < count:
                after = wire.encode(
                    rows,
                    first,
                    count,
                    wanted,
                    form,
                    t.blob,
                    t.start,
                    t.digits,
                    self._frames,
                    self._spans,
                )
                assert after > first, "one frame must always fit"
                for connection in listeners:
                    self._deliver(connection, rows, first, after)
                first = after

    def _deliver(self, connection: Connection, rows: Ints, first: int, after: int) -> None:
        tally = np.zeros(KINDS, np.int64)
        size = wire.gather(
            rows, first, after, connection.mask, self._frames, self._spans, self._gathered, tally
        )
        if size and self.send(connection, self._gathered[:size].tobytes()):
            connection.tally += tally

    def tell(self, payload: Json, live_key: str) -> None:
        """One user event to every private connection of the live listen key."""
        plain = combined = b""
        for connection in list(self.connections.values()):
            events = connection.listen_keys.get(live_key)
            if events is None or (events and payload["e"] not in events):
                continue
            if connection.combined:
                combined = combined or _frame({"stream": live_key, "data": payload})
            else:
                plain = plain or _frame(payload)
            self.send(connection, combined if connection.combined else plain)

    def waiting(self) -> int:
        """Bytes not yet taken by the system, over all connections."""
        return sum(c.transport.get_write_buffer_size() for c in self.connections.values())

    def report(self) -> list[dict[str, Any]]:
        """What was written to each socket: open ones and the last thousand closed ones."""
        return [*self.closed, *(describe(c) for c in self.connections.values())]


def describe(connection: Connection) -> dict[str, Any]:
    tally = connection.tally
    return {
        "id": connection.id,
        "path": connection.path,
        "open": connection.open,
        "trades": int(tally[AGG]),
        "quotes": int(tally[BOOK]),
        "marks": int(tally[MARK] + tally[MARK3]),
        "bytes": connection.bytes,
    }


def _frame(payload: Any) -> bytes:
    return wire.text_frame(orjson.dumps(payload))
