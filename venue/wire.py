"""Market payloads as bytes: whole unmasked WebSocket text frames straight from event rows.

One frame per row, in the exchange's wire key order, each encoded once for all connections that
want it; `gather` then copies what one connection subscribed to. Pure functions over arrays.

  81 7E hh hh {"stream":"btcusdt@aggTrade","data":{"e":"aggTrade","E":...}}     combined
  81 7E hh hh {"e":"aggTrade","E":...}                                        raw

A frame above 65,535 bytes (all marks of many symbols) has the 8-byte length 81 7F instead.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numba import njit
from numpy.typing import NDArray

from venue.market import (
    AGG,
    ARR,
    ARR3,
    BOOK,
    EVENT_MS,
    FLAG,
    ID,
    KIND,
    KINDS,
    MARK,
    MARK3,
    P1,
    P2,
    Q1,
    Q2,
    SYM,
    TRADE_MS,
    Ints,
)
from venue.symbols import Symbol

Bytes = NDArray[np.uint8]

FRAME_BYTES_MAX = 640  # the longest single row with the longest name, both prefixes included
STREAM_NAMES = {
    AGG: "aggTrade",
    BOOK: "bookTicker",
    MARK: "markPrice@1s",
    MARK3: "markPrice",
}
ALL_NAMES = {ARR: "!markPrice@arr@1s", ARR3: "!markPrice@arr"}


def _text(text: str) -> Bytes:
    return np.frombuffer(text.encode(), np.uint8)


_AGG_HEAD = _text('{"e":"aggTrade","E":')
_AGG_ID = _text(',"a":')
_QTY = _text('","q":"')
_NET_QTY = _text('","nq":"')
_FIRST = _text('","f":')
_LAST_ID = _text(',"l":')
_TRADE_TIME = _text(',"T":')
_MAKER_YES = _text(',"m":true,"st":1}')
_MAKER_NO = _text(',"m":false,"st":1}')
_BOOK_HEAD = _text('{"e":"bookTicker","u":')
_BID_QTY = _text('","B":"')
_ASK = _text('","a":"')
_ASK_QTY = _text('","A":"')
_BOOK_TIME = _text('","T":')
_EVENT_TIME = _text(',"E":')
_TAIL = _text(',"st":1}')
_MARK_HEAD = _text('{"e":"markPriceUpdate","E":')
_MARK_AVERAGE = _text('","ap":"')
_MARK_SETTLE = _text('","P":"')
_MARK_INDEX = _text('","i":"')
_MARK_RATE = _text('","r":"')
_SYMBOL_PARTS = KINDS  # stream prefix per kind, then the two symbol constants
_PRICE_PART, _BID_PART = _SYMBOL_PARTS, _SYMBOL_PARTS + 1


@dataclass(frozen=True, slots=True)
class Templates:
    """Constant text per symbol: blob[start[k, part]:start[k, part + 1]]. The last row is `arr`."""

    blob: Bytes
    start: Ints
    digits: Ints  # price digits, qty digits


def templates(symbols: Sequence[Symbol]) -> Templates:
    blob = bytearray()
    starts: list[list[int]] = []
    for s in symbols:
        row = [len(blob)]
        for kind in range(KINDS):
            if kind in STREAM_NAMES:
                blob += f'{{"stream":"{s.name.lower()}@{STREAM_NAMES[kind]}","data":'.encode()
            row.append(len(blob))
        blob += f',"s":"{s.name}","p":"'.encode()
        row.append(len(blob))
        blob += f',"s":"{s.name}","ps":"{s.name}","b":"'.encode()
        row.append(len(blob))
        starts.append(row)
    row = [len(blob)]
    for kind in range(KINDS):
        if kind in ALL_NAMES:
            blob += f'{{"stream":"{ALL_NAMES[kind]}","data":'.encode()
        row.append(len(blob))
    starts.append([*row, len(blob), len(blob)])
    digits = [[s.price_digits, s.qty_digits] for s in symbols]
    return Templates(
        np.frombuffer(bytes(blob), np.uint8), np.array(starts, np.int64), np.array(digits, np.int64)
    )


@njit(cache=True, inline="always")
def _put(out: Bytes, at: int, text: Bytes) -> int:
    for k in range(len(text)):
        out[at + k] = text[k]
    return at + len(text)


@njit(cache=True)
def _put_int(out: Bytes, at: int, value: int) -> int:
    """Decimal digits of a non-negative integer."""
    length = 1
    bound = 10
    while value >= bound and length < 18:
        bound *= 10
        length += 1
    for k in range(length - 1, -1, -1):
        rest = value // 10
        out[at + k] = 48 + value - rest * 10
        value = rest
    return at + length


@njit(cache=True)
def _put_fixed(out: Bytes, at: int, value: int, digits: int) -> int:
    """An integer of 10**-digits as decimal text with exactly that many digits."""
    if digits == 0:
        return _put_int(out, at, value)
    scale = 1
    for _ in range(digits):
        scale *= 10
    whole = value // scale
    rest = value - whole * scale
    at = _put_int(out, at, whole)
    out[at] = 46
    for k in range(digits, 0, -1):
        quotient = rest // 10
        out[at + k] = 48 + rest - quotient * 10
        rest = quotient
    return at + digits + 1


@njit(cache=True)
def _put_agg(out: Bytes, at: int, e: Ints, name: Bytes, digits: Ints) -> int:
    at = _put_int(out, _put(out, at, _AGG_HEAD), e[EVENT_MS])
    at = _put_int(out, _put(out, at, _AGG_ID), e[ID])
    at = _put_fixed(out, _put(out, at, name), e[P1], digits[0])
    at = _put_fixed(out, _put(out, at, _QTY), e[Q1], digits[1])
    at = _put_fixed(out, _put(out, at, _NET_QTY), e[Q1], digits[1])
    at = _put_int(out, _put(out, at, _FIRST), e[P2])
    at = _put_int(out, _put(out, at, _LAST_ID), e[Q2])
    at = _put_int(out, _put(out, at, _TRADE_TIME), e[TRADE_MS])
    return _put(out, at, _MAKER_YES) if e[FLAG] != 0 else _put(out, at, _MAKER_NO)


@njit(cache=True)
def _put_book(out: Bytes, at: int, e: Ints, name: Bytes, digits: Ints) -> int:
    at = _put_int(out, _put(out, at, _BOOK_HEAD), e[ID])
    at = _put_fixed(out, _put(out, at, name), e[P1], digits[0])
    at = _put_fixed(out, _put(out, at, _BID_QTY), e[Q1], digits[1])
    at = _put_fixed(out, _put(out, at, _ASK), e[P2], digits[0])
    at = _put_fixed(out, _put(out, at, _ASK_QTY), e[Q2], digits[1])
    at = _put_int(out, _put(out, at, _BOOK_TIME), e[TRADE_MS])
    at = _put_int(out, _put(out, at, _EVENT_TIME), e[EVENT_MS])
    return _put(out, at, _TAIL)


@njit(cache=True)
def _put_mark(out: Bytes, at: int, e: Ints, name: Bytes) -> int:
    at = _put_int(out, _put(out, at, _MARK_HEAD), e[EVENT_MS])
    at = _put_fixed(out, _put(out, at, name), e[P1], 8)
    at = _put_fixed(out, _put(out, at, _MARK_AVERAGE), e[P1], 8)
    at = _put_fixed(out, _put(out, at, _MARK_SETTLE), e[P1], 8)
    at = _put_fixed(out, _put(out, at, _MARK_INDEX), e[P2], 8)
    at = _put_fixed(out, _put(out, at, _MARK_RATE), e[Q1], 8)
    at = _put_int(out, _put(out, at, _BOOK_TIME), e[Q2])
    return _put(out, at, _TAIL)


@njit(cache=True)
def _header(out: Bytes, body: int, end: int) -> int:
    """Writes the frame header right before `body`; returns where the frame starts."""
    length = end - body
    if length < 126:
        out[body - 2] = 0x81
        out[body - 1] = length
        return body - 2
    if length < 65536:
        out[body - 4] = 0x81
        out[body - 3] = 126
        out[body - 2] = length >> 8
        out[body - 1] = length & 0xFF
        return body - 4
    out[body - 10] = 0x81
    out[body - 9] = 127
    for k in range(8):
        out[body - 8 + k] = (length >> (56 - 8 * k)) & 0xFF
    return body - 10


@njit(cache=True)
def _put_all(
    out: Bytes, at: int, rows: Ints, row: int, blob: Bytes, start: Ints, symbols: int
) -> int:
    """The marks that stand right before row `row`, as one array."""
    out[at] = 91
    at += 1
    for k in range(row - symbols, row):
        if k > row - symbols:
            out[at] = 44
            at += 1
        s = rows[k, SYM]
        at = _put_mark(out, at, rows[k], blob[start[s, _PRICE_PART] : start[s, _PRICE_PART + 1]])
    out[at] = 93
    return at + 1


@njit(cache=True)
def encode(
    rows: Ints,
    first: int,
    count: int,
    wanted: NDArray[np.uint8],
    combined: bool,
    blob: Bytes,
    start: Ints,
    digits: Ints,
    out: Bytes,
    spans: Ints,
) -> int:
    """Frames of rows[first:count] that `wanted[kind, symbol]` asks for, into `out`.

    spans[row] = (from, to), equal for rows without a frame. Returns the next row to encode:
    less than `count` when `out` has no room for another frame.
    """
    symbols = digits.shape[0]
    at = 0
    for row in range(first, count):
        e = rows[row]
        kind, s = e[KIND], e[SYM]
        spans[row, 0] = spans[row, 1] = at
        if wanted[kind, s] == 0:
            continue
        need = FRAME_BYTES_MAX * (symbols + 1 if kind >= ARR else 1)
        if at + need > out.shape[0]:
            return row
        body = at + 10
        end = body
        if combined:
            end = _put(out, end, blob[start[s, kind] : start[s, kind + 1]])
        if kind == AGG:
            name = blob[start[s, _PRICE_PART] : start[s, _PRICE_PART + 1]]
            end = _put_agg(out, end, e, name, digits[s])
        elif kind == BOOK:
            name = blob[start[s, _BID_PART] : start[s, _BID_PART + 1]]
            end = _put_book(out, end, e, name, digits[s])
        elif kind in (MARK, MARK3):
            name = blob[start[s, _PRICE_PART] : start[s, _PRICE_PART + 1]]
            end = _put_mark(out, end, e, name)
        else:
            end = _put_all(out, end, rows, row, blob, start, symbols)
        if combined:
            out[end] = 125
            end += 1
        spans[row, 0] = _header(out, body, end)
        spans[row, 1] = end
        at = end
    return count


@njit(cache=True)
def gather(
    rows: Ints,
    first: int,
    count: int,
    mask: NDArray[np.uint8],
    frames: Bytes,
    spans: Ints,
    out: Bytes,
    tally: Ints,
) -> int:
    """Copies the frames that one connection wants; tally[kind] counts them. Returns bytes."""
    at = 0
    for row in range(first, count):
        kind = rows[row, KIND]
        if mask[kind, rows[row, SYM]] == 0:
            continue
        for k in range(spans[row, 0], spans[row, 1]):
            out[at] = frames[k]
            at += 1
        tally[kind] += 1
    return at


def text_frame(payload: bytes) -> bytes:
    """One unmasked text frame of any length."""
    length = len(payload)
    if length < 126:
        return b"\x81" + bytes((length,)) + payload
    if length < 65536:
        return b"\x81\x7e" + length.to_bytes(2, "big") + payload
    return b"\x81\x7f" + length.to_bytes(8, "big") + payload
