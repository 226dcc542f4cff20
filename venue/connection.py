"""One WebSocket connection: what its URL asks for, what it hears, what was written to it.

Data only; `sockets` decides who hears what, and the transport is the shell's.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol
from urllib.parse import parse_qsl

import numpy as np

from venue import wire
from venue.market import AGG, BOOK, KINDS, MARK, MARK3, Ints

ROUTES = ("public", "market", "private")


class Transport(Protocol):
    def write(self, data: bytes) -> None: ...
    def get_write_buffer_size(self) -> int: ...
    def abort(self) -> None: ...
    def close(self) -> None: ...
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
    looked: set[str] = field(default_factory=set)  # names of looks that this route serves
    tally: Ints = field(default_factory=lambda: np.zeros(KINDS, np.int64))
    looks: int = 0
    bytes: int = 0
    open: bool = True
    cut_off: bool = False  # it did not read: ended without a close frame
    message_times: list[int] = field(default_factory=list)
    listen_keys: dict[str, frozenset[str]] = field(default_factory=dict)  # key -> events, empty all
    opened_ms: int = 0  # boot, as the next two
    pinged_ms: int = 0
    ponged_ms: int = 0
    cut_at: int = 0  # a fault ends it in the middle of this byte; 0: none


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


def describe(connection: Connection) -> dict[str, Any]:
    tally = connection.tally
    return {
        "id": connection.id,
        "path": connection.path,
        "open": connection.open,
        "cut_off": connection.cut_off,
        "trades": int(tally[AGG]),
        "quotes": int(tally[BOOK]),
        "marks": int(tally[MARK] + tally[MARK3]),
        "looks": connection.looks,
        "bytes": connection.bytes,
    }
