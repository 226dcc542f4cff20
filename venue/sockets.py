"""WebSocket side of the venue: who hears what. Frames in, bytes to transports out.

Each market frame is encoded once per form (combined or raw) and copied to those who subscribed.
Streams that look at the market at a pace (depth and others of `looks`) come as payloads by name.
A route serves its own streams only when `strict`; a stream of another route is acked and stays
silent, as on the exchange. A client that does not read is cut off once BUFFER_BYTES_MAX wait for
it in this process; what it missed it can see by the ids. Counts per connection are of frames
handed to its transport.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import orjson

from venue import faults, looks, wire
from venue.connection import Address, Connection, Transport, describe
from venue.faults import Lab, Plan
from venue.market import AGG, ARR, ARR3, BOOK, ID, KIND, KINDS, MARK, MARK3, SYM, Ints
from venue.streamfaults import Frame, MarketStreams
from venue.symbols import Symbol
from venue.userwire import Json

BUFFER_BYTES_MAX = 64 << 20  # per connection: seconds of the fastest market; then it is cut off
STREAMS_MAX = 1024  # per connection, as documented
MESSAGES_MAX = 15  # client messages within MESSAGE_SPAN_MS before the socket is closed
MESSAGE_SPAN_MS = 1000
PING_MS, PONG_MS_MAX = 180_000, 600_000  # real time: a ping so often, an answer within so long
LIFETIME_MS = 86_400_000  # of a connection, real time
ABORT = 1006  # what a client sees when no close frame comes
FRAMES_BYTES = 8 << 20  # one encoded batch
NAMES = {
    "aggTrade": AGG,
    "bookTicker": BOOK,
    "markPrice@1s": MARK,
    "markPrice": MARK3,
}
ALL_NAMES = {"!markPrice@arr@1s": ARR, "!markPrice@arr": ARR3}
KIND_NAMES = {kind: name for name, kind in (*NAMES.items(), *ALL_NAMES.items())}
PUBLIC_KINDS = (BOOK,)
LISTEN_KEY = re.compile(r"^[A-Za-z0-9]{60,64}$")  # subscribed to by name, as streams are
RECORD = "record"  # path of the listener inside
Fuzz = Callable[[bytes], bytes]


class Hub:
    """All connections, and the buffers that frames are encoded into."""

    def __init__(
        self,
        symbols: tuple[Symbol, ...],
        strict: bool,
        lab: Lab | None = None,
        fuzz: Fuzz | None = None,
    ) -> None:
        self.strict = strict
        self.fuzz = fuzz  # what happens to market frames on their way
        self.symbols = tuple(s.name for s in symbols)
        self.gone: set[str] = set()  # delisted, in lower case: silent
        self.faults = MarketStreams(lab if lab is not None else Lab())
        self.now_ms = 0  # boot; the shell sets it
        self._faulty = False
        self.index = {s.name.lower(): s.index for s in symbols}
        self.width = len(symbols) + 1
        self.templates = wire.templates(symbols)
        self.connections: dict[int, Connection] = {}
        self.heard: set[str] = set()  # names of looks that somebody hears
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

    def add(self, address: Address, path: str, transport: Transport, now_ms: int = 0) -> Connection:
        connection = Connection(
            self._next_id,
            path,
            address.route,
            address.combined,
            transport,
            self._empty(),
            listen_keys=dict(address.listen_keys),
            opened_ms=now_ms,
            pinged_ms=now_ms,
            ponged_ms=now_ms,
        )
        self._next_id += 1
        self.connections[connection.id] = connection
        for name in address.streams[:STREAMS_MAX]:
            self._switch(connection, name, 1)
        return connection

    def tap(self, transport: Transport) -> None:
        """A listener of every trade and quote, whatever the routes."""
        connection = self.add(Address("market", True, (), {}), RECORD, transport)
        connection.mask[[AGG, BOOK]] = 1
        self._recount()

    def clients(self) -> list[Connection]:
        """Connections to somebody outside; a recording inside is none."""
        return [c for c in self.connections.values() if c.path != RECORD]

    def remove(self, connection: Connection) -> None:
        connection.open = False
        self.faults.forget(connection.id)
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
        self.heard = set().union(*(c.looked for c in self.connections.values()))

    def _slot(self, name: str) -> tuple[int, int] | None:
        if name in ALL_NAMES:
            return ALL_NAMES[name], self.width - 1
        symbol, _, stream = name.partition("@")
        if symbol not in self.index or symbol in self.gone or stream not in NAMES:
            return None
        return NAMES[stream], self.index[symbol]

    def _switch(self, connection: Connection, name: str, on: int) -> None:
        if on:
            connection.names[name] = None
        else:
            connection.names.pop(name, None)
        if LISTEN_KEY.match(name) and (connection.route == "private" or not self.strict):
            connection.listen_keys.pop(name, None)
            if on:
                connection.listen_keys[name] = frozenset()
            return
        slot = self._slot(name)
        look = looks.parse(name, self.index) if slot is None else None
        if name.partition("@")[0] in self.gone:
            return
        if slot is not None:
            route = "public" if slot[0] in PUBLIC_KINDS else "market"
        elif look is not None:
            route = look.route
        else:
            return
        served = "public" if connection.route == "legacy" else connection.route
        if self.strict and route != served:
            return
        if slot is not None:
            connection.mask[slot] = on
        elif on:
            connection.looked.add(name)
        else:
            connection.looked.discard(name)
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
            connection.cut_off = True
            connection.transport.abort()
            self.remove(connection)
            return False
        if connection.cut_at and connection.bytes + len(data) > connection.cut_at:
            connection.transport.write(data[: connection.cut_at - connection.bytes])
            connection.bytes = connection.cut_at
            connection.transport.close()  # what was written still arrives
            self.remove(connection)
            return False
        connection.transport.write(data)
        connection.bytes += len(data)
        return True

    def delist(self, symbol: str) -> None:
        """No stream of a symbol says anything any more; arrays over all symbols still name it."""
        name = symbol.lower()
        self.gone.add(name)
        for connection in self.connections.values():
            connection.mask[:, self.index[name]] = 0
            connection.looked -= {n for n in connection.looked if n.partition("@")[0] == name}
        self._recount()

    def chosen(self, plan: Plan) -> list[Connection]:
        """The open connections that a planned disconnect means; oldest first."""
        found = []
        for connection in self.clients():
            facts = {"route": connection.route, "connection": connection.id}
            wanted = {k: v for k, v in plan.match.items() if k != "stream"}
            stream = plan.match.get("stream")
            if faults.fits(wanted, facts) and (not stream or stream in connection.names):
                found.append(connection)
        return found[: plan.times or len(found)]

    def cut(self, plan: Plan) -> list[Connection]:
        """Carries out a planned disconnect; returns those to whom a close frame must be sent."""
        chosen = self.chosen(plan)
        for connection in chosen:
            told = {"connection": connection.id, "path": connection.path}
            faults.note(self.faults.lab, "happened", plan, {"met": told})
            if plan.values["bytes"]:
                connection.cut_at = connection.bytes + plan.values["bytes"]
            elif plan.values["close"] == ABORT:
                connection.transport.abort()
                self.remove(connection)
        polite = plan.values["close"] != ABORT
        return chosen if polite else []

    def overdue(self, lifetime_ms: int) -> list[tuple[Connection, int, str]]:
        """Connections that end now, with close code and word: too old, or no pong for too long."""
        out = []
        for c in self.clients():
            if self.now_ms - c.opened_ms >= lifetime_ms:
                out.append((c, 1001, "24 hours are over"))
            elif self.now_ms - c.ponged_ms > PONG_MS_MAX:
                out.append((c, 1008, "Pong timeout"))
        return out

    def ping(self, text: bytes) -> None:
        """A ping frame to everybody whose last one was long ago."""
        for connection in self.clients():
            if self.now_ms - connection.pinged_ms >= PING_MS:
                connection.pinged_ms = self.now_ms
                self.send(connection, b"\x89" + bytes((len(text),)) + text)

    def fan_out(self, rows: Ints, count: int) -> None:
        """Frames of these rows to everybody who wants them."""
        if len(self._spans) < len(rows):
            self._spans = np.zeros((len(rows), 2), np.int64)
        t = self.templates
        self._faulty = self.faults.begin()
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
        if self._faulty and connection.path != RECORD:
            self._deliver_faulty(connection, rows, first, after)
            return
        tally = np.zeros(KINDS, np.int64)
        size = wire.gather(
            rows, first, after, connection.mask, self._frames, self._spans, self._gathered, tally
        )
        if size and self._spoilt(connection, self._gathered[:size].tobytes()):
            connection.tally += tally

    def _deliver_faulty(self, connection: Connection, rows: Ints, first: int, after: int) -> None:
        """Frame by frame, past the fault lab."""
        frames = []
        for row in range(first, after):
            kind, s = int(rows[row, KIND]), int(rows[row, SYM])
            if not connection.mask[kind, s]:
                continue
            name = self.symbols[s] if s < len(self.symbols) else ""
            stream = f"{name.lower()}@{KIND_NAMES[kind]}" if name else KIND_NAMES[kind]
            data = self._frames[self._spans[row, 0] : self._spans[row, 1]].tobytes()
            number = int(rows[row, ID]) if kind == AGG else 0
            frames.append(Frame(stream, name, data, number, kind))
        for frame in self.faults.passed(frames, connection.id, connection.route, self.now_ms):
            if self._spoilt(connection, frame.data):
                self._count(connection, frame)

    @staticmethod
    def _count(connection: Connection, frame: Frame) -> None:
        if frame.kind >= 0:
            connection.tally[frame.kind] += 1
        else:
            connection.looks += 1

    def _send_look(self, connection: Connection, name: str, data: bytes) -> None:
        if not self._faulty:
            connection.looks += self._spoilt(connection, data)
            return
        frame = Frame(name, name.partition("@")[0].upper(), data)
        passed = self.faults.passed([frame], connection.id, connection.route, self.now_ms)
        for one in passed:
            if self._spoilt(connection, one.data):
                self._count(connection, one)

    def _spoilt(self, connection: Connection, frames: bytes) -> bool:
        """Sends market frames; a recording hears them as they were."""
        fuzz = self.fuzz if connection.path != RECORD else None
        return self.send(connection, fuzz(frames) if fuzz else frames)

    def show(self, name: str, payload: bytes) -> None:
        """One payload of a look to everybody who hears it."""
        plain = combined = b""
        self._faulty = self.faults.begin()
        for connection in list(self.connections.values()):
            if name not in connection.looked:
                continue
            if connection.combined:
                wrapped = b'{"stream":"' + name.encode() + b'","data":' + payload + b"}"
                combined = combined or wire.text_frame(wrapped)
            else:
                plain = plain or wire.text_frame(payload)
            self._send_look(connection, name, combined if connection.combined else plain)

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


def _frame(payload: Any) -> bytes:
    return wire.text_frame(orjson.dumps(payload))
