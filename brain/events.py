"""What leaves the kernel: fixed rows in a preallocated array.

    CLOSE      a candle closed: a-f open high low close volume quote_volume; flags: structure;
               code 1: by the stop masks a rule is to be asked
    STRUCTURE  code and direction; a level (near edge), b far edge, c open time of its origin (ms),
               d pivots that a sweep took, days of a level's period
    OUTCOME    code WIN, LOSS or TIMEOUT; key of the signal; a gross R, b exit price, c ms open
    GONE       the symbol was dropped; its open signals are no longer followed here
    WHOLE      the symbol is whole again (HEALED): signals may be re-armed
    RESYNC     the kernel met a hole that nobody announced: ask for a snapshot of the symbol

known_ns is the market time at which the fact became known: the exchange time of the record that
made it known, never the time of the bar that it speaks of. recv_ns is that record's receipt.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from brain.jit import step

EVENT: Final = np.dtype(
    [
        ("known_ns", "<i8"),
        ("recv_ns", "<i8"),
        ("bar_ms", "<i8"),
        ("flags", "<i8"),
        ("key", "<i8"),
        ("a", "<f8"),
        ("b", "<f8"),
        ("c", "<f8"),
        ("d", "<f8"),
        ("e", "<f8"),
        ("f", "<f8"),
        ("symbol", "<i4"),
        ("timeframe", "<i2"),  # index into TIMEFRAME_NAMES
        ("kind", "u1"),
        ("code", "i1"),
        ("direction", "<i8"),
    ]
)
assert EVENT.itemsize == 104
Events = npt.NDArray[Any]


class Row(NamedTuple):
    """An event in Python: its fields are plain numbers, many times cheaper to look at."""

    known_ns: int
    recv_ns: int
    bar_ms: int
    flags: int
    key: int
    a: float
    b: float
    c: float
    d: float
    e: float
    f: float
    symbol: int
    timeframe: int
    kind: int
    code: int
    direction: int


assert Row._fields == EVENT.names

CLOSE_EVENT, STRUCTURE, OUTCOME, GONE, WHOLE, RESYNC = range(1, 7)
KINDS: Final = ("none", "close", "structure", "outcome", "gone", "whole", "resync")
WIN, LOSS, TIMEOUT = 1, 2, 3
RESULTS: Final = ("", "win", "loss", "timeout")

EVENTS: Final = 8_192  # rows; the kernel stops and returns before they run out
CLOSE_EVENTS_MAX: Final = 128  # of one close: every zone touched and filled at once, and breaks
assert CLOSE_EVENTS_MAX > 2 * (2 * 8 * 2) + 2 * 8 + 4 + 16  # gaps and blocks, pools, levels, rest


@step
def emit(
    events: Events,
    n: int,
    kind: int,
    code: int,
    direction: int,
    symbol: int,
    timeframe: int,
    bar_ms: int,
    known_ns: int,
    recv_ns: int,
) -> int:
    """Write row n with its numbers cleared; returns n + 1. Rows left over are the caller's care."""
    row = events[n]
    row.known_ns = known_ns
    row.recv_ns = recv_ns
    row.bar_ms = bar_ms
    row.flags = 0
    row.key = 0
    row.a = row.b = row.c = row.d = row.e = row.f = 0.0
    row.symbol = symbol
    row.timeframe = timeframe
    row.kind = kind
    row.code = code
    row.direction = direction
    return n + 1
