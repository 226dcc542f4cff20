"""JSON by key at machine speed: kernels that walk one object in place and make no Python object.

`walk_object` reads the one-letter keys of an event (and `st`) into a table, one row a letter:

    values[letter] = (mantissa, scale, position, length)     letter = code - ord("A"); `st` = 26

scale >= 0 is an exact decimal, mantissa / 10^scale, from a number or a string; position and length
span the text of a string, length -1 tells a bare number. Negative scales are the kinds below.
Everything else is skipped, but never on trust: the walk accepts strict JSON (RFC 8259, UTF-8,
nesting up to DEPTH_MAX) and refuses all other bytes. Keys count, positions never do.

Eight bytes are looked at in one 64-bit word where that helps. Loads may reach up to seven bytes
past `end` (shape.py: 32): a buffer owes SLACK_BYTES behind its last byte, and every answer is
checked against `end` before it is used. The first SCRATCH_BYTES of a buffer are not data: strings
that hold escapes are unescaped into them, 64 bytes a letter, so that a position always means the
buffer.

All integers are int64 (numba mixes int64 with uint64 to float64); words wrap, which is intended.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, TypeVar

import numpy as np
import numpy.typing as npt
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic
from numba.np.arrayobj import make_array

# No reference counts inside kernels: they own nothing, and counting views costs more than walking.
F = TypeVar("F", bound=Callable[..., Any])


def kernel(function: F) -> F:
    """Compile without the GIL, cached on disk."""
    compiled: F = njit(cache=True, nogil=True, _nrt=False)(function)
    return compiled


def inlined(function: F) -> F:
    """As kernel, folded into its callers: a Lane has too many arrays to be passed per tick."""
    compiled: F = njit(cache=True, nogil=True, _nrt=False, forceinline=True)(function)
    return compiled


Bytes = npt.NDArray[np.uint8]
Table = npt.NDArray[np.int64]

DEPTH_MAX: Final = 60  # one bit of an int64 each
TEXT_BYTES_MAX: Final = 64  # longer strings are walked over but match nothing
SCRATCH_BYTES: Final = 64 * TEXT_BYTES_MAX
SLACK_BYTES: Final = 64
LETTERS: Final = 64  # rows of the table of values

TEXT: Final = -1  # a string that is no decimal
BOOL: Final = -2  # mantissa 1 or 0
OTHER: Final = -3  # nested, or a number with an exponent
INEXACT: Final = -4  # a decimal with more digits than can be rounded right
LONG: Final = -5  # a string or number of more than TEXT_BYTES_MAX bytes

KEY_UNKNOWN: Final = -1
KEY_DATA: Final = -2
KEY_ST: Final = 26
KEY_TWO: Final = 27  # nq, ps or ap: read the short way, never looked at
KEY_OTHER: Final = 28  # a key of two letters or more that no event has

MALFORMED: Final = -1  # a position that says: these bytes are no JSON

DIGITS_MAX: Final = 18  # significant digits that an int64 mantissa holds
EXACT_MANTISSA: Final = 1 << 53
EXACT_SCALE: Final = 22  # 10^22 is the last power of ten that is a double
LONG_SCALE: Final = 14  # up to here a two-double quotient rounds right for 18 digits, see ratio()

_POW10 = np.array([10**n for n in range(9)], np.int64)
_POW10_FLOAT = np.array([10.0**n for n in range(EXACT_SCALE + 1)], np.float64)


def _word(text: bytes) -> int:
    return int.from_bytes(text.ljust(8, b"\0"), "little", signed=True)


def _every(byte: int) -> int:
    return int.from_bytes(bytes([byte] * 8), "little", signed=True)


_ZEROS, _ROOM_ABOVE_NINE, _HIGH = _every(0x30), _every(0x76), _every(0x80)
_ONES, _SPACES, _QUOTES, _BACKSLASHES = _every(1), _every(0x20), _every(0x22), _every(0x5C)
_PAIRS, _FOURS, _EIGHT = _every(0x0F), 0x00FF00FF00FF00FF, 0x0000FFFF0000FFFF
_KEY1_MASK, _KEY1 = 0xFFFF00FF, _word(b'"\0":')
_KEY2_MASK, _KEY2 = 0xFFFF0000FF, _word(b'"\0\0":')
_ST, _NQ, _PS, _AP = _word(b"st"), _word(b"nq"), _word(b"ps"), _word(b"ap")
_KEY_DATA, _KEY_DATA_MASK = _word(b'data"'), (1 << 40) - 1
_TRUE, _FALSE_TAIL, _NULL, _WORD4 = _word(b"true"), _word(b"alse"), _word(b"null"), (1 << 32) - 1
_MINUS, _DOT, _QUOTE, _BACKSLASH = 0x2D, 0x2E, 0x22, 0x5C
_COMMA, _COLON, _OPEN, _CLOSE, _OPEN_LIST, _CLOSE_LIST = 0x2C, 0x3A, 0x7B, 0x7D, 0x5B, 0x5D


@intrinsic
def load1(typingctx: Any, buffer: Any, index: Any) -> Any:
    """load1(buffer, index) -> int64 byte; no bounds check, no negative index."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        array = make_array(signature.args[0])(context, builder, args[0])
        pointer = builder.gep(array.data, [args[1]])
        return builder.zext(builder.load(pointer), ir.IntType(64))

    return types.int64(buffer, types.int64), codegen


@intrinsic
def load8(typingctx: Any, buffer: Any, index: Any) -> Any:
    """load8(buffer, index) -> eight bytes as one int64, the first byte lowest; unaligned."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        array = make_array(signature.args[0])(context, builder, args[0])
        pointer = builder.gep(array.data, [args[1]])
        wide = builder.bitcast(pointer, ir.IntType(64).as_pointer())
        loaded = builder.load(wide)
        loaded.align = 1
        return loaded

    return types.int64(buffer, types.int64), codegen


@intrinsic
def zeros_below(typingctx: Any, value: Any) -> Any:
    """zeros_below(value) -> number of trailing zero bits, 64 for 0."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.cttz(args[0], ir.Constant(ir.IntType(1), 0))

    return types.int64(types.int64), codegen


@inlined
def skip_space(buffer: Bytes, at: int, end: int) -> int:
    """The first position from `at` that holds no JSON white space."""
    while at < end:
        byte = load1(buffer, at)
        if byte > 0x20 or (byte != 0x20 and byte != 0x0A and byte != 0x0D and byte != 0x09):
            break
        at += 1
    return at


@inlined
def fold8(digits: int) -> int:
    """The number that eight lanes of 0..9 spell, the first digit in the lowest lane."""
    digits = (digits & _PAIRS) * 2561 >> 8
    digits = (digits & _FOURS) * 6553601 >> 16
    return (digits & _EIGHT) * 42949672960001 >> 32


@inlined
def digits8(buffer: Bytes, at: int) -> tuple[int, int]:
    """(value, count) of the decimal digits at `at`, eight at most, without a loop.

    t = byte - "0" in each lane; the lowest lane above nine ends the run (carries only reach lanes
    above it). The run is shifted to the top, so that leading lanes are zeros, and folded pairwise.
    """
    t = load8(buffer, at) ^ _ZEROS
    count = zeros_below(((t + _ROOM_ABOVE_NINE) | t) & _HIGH) >> 3
    if count == 0:
        return 0, 0
    return fold8(t << (64 - 8 * count)), count


@inlined
def digit_run(buffer: Bytes, at: int, mantissa: int) -> tuple[int, int]:
    """(mantissa continued by the digits at `at`, position after them); wraps past 18 digits."""
    value, count = digits8(buffer, at)
    while count == 8:  # a branch that is foreseen, where adding `count` would be waited for
        mantissa = mantissa * 100_000_000 + value
        at += 8
        value, count = digits8(buffer, at)
    return mantissa * _POW10[count] + value, at + count


@kernel
def utf8_char(buffer: Bytes, at: int, end: int) -> int:
    """Position after the valid UTF-8 sequence of two to four bytes at `at`, or MALFORMED."""
    first = load1(buffer, at)
    low, high = 0x80, 0xBF
    if 0xC2 <= first <= 0xDF:
        more = 1
    elif 0xE0 <= first <= 0xEF:
        more = 2
        if first == 0xE0:
            low = 0xA0
        elif first == 0xED:
            high = 0x9F  # no surrogates
    elif 0xF0 <= first <= 0xF4:
        more = 3
        if first == 0xF0:
            low = 0x90
        elif first == 0xF4:
            high = 0x8F
    else:
        return MALFORMED
    if at + more >= end:
        return MALFORMED
    for step in range(1, more + 1):
        byte = load1(buffer, at + step)
        if byte < low or byte > high:
            return MALFORMED
        low, high = 0x80, 0xBF
    return at + more + 1


@kernel
def hex4(buffer: Bytes, at: int, end: int) -> int:
    """The value of four hexadecimal digits, or MALFORMED."""
    if at + 4 > end:
        return MALFORMED
    value = 0
    for step in range(4):
        byte = load1(buffer, at + step)
        if 0x30 <= byte <= 0x39:
            digit = byte - 0x30
        elif 0x61 <= (byte | 0x20) <= 0x66:
            digit = (byte | 0x20) - 0x61 + 10
        else:
            return MALFORMED
        value = value * 16 + digit
    return value


@kernel
def skip_string_slow(buffer: Bytes, at: int, end: int) -> tuple[int, int]:
    """As skip_string, for strings with escapes, non-ASCII or forbidden bytes ahead of `at`."""
    escaped = 0
    while at < end:
        byte = load1(buffer, at)
        if byte == _QUOTE:
            return at + 1, escaped
        if byte < 0x20:
            return MALFORMED, 0
        if byte >= 0x80:
            at = utf8_char(buffer, at, end)
            if at < 0:
                return MALFORMED, 0
        elif byte == _BACKSLASH:
            escaped = 1
            kind = load1(buffer, at + 1)
            if kind == 0x75:  # \u
                if hex4(buffer, at + 2, end) < 0:
                    return MALFORMED, 0
                at += 6
            elif kind in (_QUOTE, _BACKSLASH, 0x2F, 0x62, 0x66, 0x6E, 0x72, 0x74):
                at += 2
            else:
                return MALFORMED, 0
        else:
            at += 1
    return MALFORMED, 0


@inlined
def skip_string(buffer: Bytes, at: int, end: int) -> tuple[int, int]:
    """(position after the closing quote or MALFORMED, 1 if escapes were seen); `at` is inside."""
    while at < end:
        word = load8(buffer, at)
        quote, slash = word ^ _QUOTES, word ^ _BACKSLASHES
        special = (
            ((quote - _ONES) & ~quote)
            | ((slash - _ONES) & ~slash)
            | ((word - _SPACES) & ~word)
            | word
        ) & _HIGH
        if special == 0:
            at += 8
            continue
        at += zeros_below(special) >> 3
        if at < end and load1(buffer, at) == _QUOTE:
            return at + 1, 0
        return skip_string_slow(buffer, at, end)
    return MALFORMED, 0


@kernel
def put_utf8(buffer: Bytes, at: int, stop: int, point: int) -> int:
    """Write a code point as UTF-8 (lone surrogates too); `stop` + 1 when there is no room."""
    if point < 0x80:
        size = 1
    elif point < 0x800:
        size = 2
    else:
        size = 3 if point < 0x10000 else 4
    if at + size > stop:
        return stop + 1
    if size == 1:
        buffer[at] = point
        return at + 1
    lead = 0xC0 if size == 2 else (0xE0 if size == 3 else 0xF0)
    buffer[at] = lead | (point >> (6 * (size - 1)))
    for step in range(1, size):
        buffer[at + step] = 0x80 | ((point >> (6 * (size - 1 - step))) & 0x3F)
    return at + size


@kernel
def escape_char(buffer: Bytes, at: int, end: int) -> tuple[int, int]:
    """(code point, position after it) of the valid escape at `at`; surrogate pairs are joined."""
    kind = load1(buffer, at + 1)
    if kind != 0x75:
        if kind == 0x62:
            kind = 8
        elif kind == 0x66:
            kind = 12
        elif kind == 0x6E:
            kind = 10
        elif kind == 0x72:
            kind = 13
        elif kind == 0x74:
            kind = 9
        return kind, at + 2
    point = hex4(buffer, at + 2, end)
    at += 6
    follows = at + 1 < end and load1(buffer, at) == _BACKSLASH and load1(buffer, at + 1) == 0x75
    if 0xD800 <= point < 0xDC00 and follows:
        low = hex4(buffer, at + 2, end)
        if 0xDC00 <= low < 0xE000:
            return 0x10000 + ((point - 0xD800) << 10) + (low - 0xDC00), at + 6
    return point, at


@kernel
def unescape(buffer: Bytes, at: int, end: int, target: int) -> int:
    """Copy a valid string's text to buffer[target:]; its length, TEXT_BYTES_MAX + 1 if longer."""
    out, stop = target, target + TEXT_BYTES_MAX
    while at < end:
        byte = load1(buffer, at)
        if byte == _BACKSLASH:
            point, at = escape_char(buffer, at, end)
            out = put_utf8(buffer, out, stop, point)
        elif out < stop:
            buffer[out] = byte
            out += 1
            at += 1
        else:
            out = stop + 1
        if out > stop:
            break
    return out - target


@kernel
def skip_number(buffer: Bytes, at: int, end: int) -> int:
    """Position after a JSON number, or MALFORMED."""
    if at < end and load1(buffer, at) == _MINUS:
        at += 1
    _, after = digit_run(buffer, at, 0)
    if after == at or (load1(buffer, at) == 0x30 and after > at + 1):
        return MALFORMED
    if after < end and load1(buffer, after) == _DOT:
        at = after + 1
        _, after = digit_run(buffer, at, 0)
        if after == at:
            return MALFORMED
    if after < end and (load1(buffer, after) | 0x20) == 0x65:
        at = after + 1
        if at < end and (load1(buffer, at) == 0x2B or load1(buffer, at) == _MINUS):
            at += 1
        _, after = digit_run(buffer, at, 0)
        if after == at:
            return MALFORMED
    return after if after <= end else MALFORMED


@kernel
def skip_scalar(buffer: Bytes, at: int, end: int) -> int:
    """Position after a string, number or literal, or MALFORMED."""
    byte = load1(buffer, at)
    if byte == _QUOTE:
        after, _ = skip_string(buffer, at + 1, end)
        return after
    if byte == _MINUS or 0x30 <= byte <= 0x39:
        return skip_number(buffer, at, end)
    after = at + 4
    word = load8(buffer, at) & _WORD4
    if byte == 0x66 and (load8(buffer, at + 1) & _WORD4) == _FALSE_TAIL:
        after = at + 5
    elif word != _TRUE and word != _NULL:
        return MALFORMED
    return after if after <= end else MALFORMED


@kernel
def skip_key(buffer: Bytes, at: int, end: int) -> int:
    """Position after `"key" :`, or MALFORMED."""
    at = skip_space(buffer, at, end)
    if at >= end or load1(buffer, at) != _QUOTE:
        return MALFORMED
    at, _ = skip_string(buffer, at + 1, end)
    if at < 0:
        return MALFORMED
    at = skip_space(buffer, at, end)
    if at >= end or load1(buffer, at) != _COLON:
        return MALFORMED
    return at + 1


@kernel
def skip_value(buffer: Bytes, at: int, end: int, depth: int) -> int:
    """Position after the JSON value at `at`, strictly checked, or MALFORMED. No recursion.

    `depth` containers are open around it. `open_objects` is a stack of bits, 1 for an object.
    """
    open_objects, inside = 0, 0
    while True:
        at = skip_space(buffer, at, end)
        if at >= end:
            return MALFORMED
        byte = load1(buffer, at)
        if byte in (_OPEN, _OPEN_LIST):
            inside += 1
            if depth + inside > DEPTH_MAX:
                return MALFORMED
            open_objects = open_objects << 1 | (1 if byte == _OPEN else 0)
            at = skip_space(buffer, at + 1, end)
            closing = _CLOSE if byte == _OPEN else _CLOSE_LIST
            if at >= end or load1(buffer, at) != closing:
                if byte == _OPEN:
                    at = skip_key(buffer, at, end)
                    if at < 0:
                        return MALFORMED
                continue
        else:
            at = skip_scalar(buffer, at, end)
            if at < 0:
                return MALFORMED
            if inside == 0:
                return at
            at = skip_space(buffer, at, end)
        at, open_objects, inside = close_containers(buffer, at, end, open_objects, inside)
        if at < 0 or inside == 0:
            return at


@kernel
def close_containers(
    buffer: Bytes, at: int, end: int, open_objects: int, inside: int
) -> tuple[int, int, int]:
    """After a value: close what closes, then step to where the next value begins."""
    while at < end:
        byte = load1(buffer, at)
        if byte == _COMMA:
            at += 1
            if open_objects & 1:
                at = skip_key(buffer, at, end)
            return at, open_objects, inside
        if byte != (_CLOSE if open_objects & 1 else _CLOSE_LIST):
            return MALFORMED, 0, 0
        open_objects >>= 1
        inside -= 1
        at += 1
        if inside == 0:
            return at, 0, 0
        at = skip_space(buffer, at, end)
    return MALFORMED, 0, 0
