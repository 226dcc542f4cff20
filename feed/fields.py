"""From walked JSON to values: one object's keys, exact decimals, names.

A decimal comes out as the nearest double, ties to even, as float() gives it, whenever
  - its mantissa (digits without leading zeros and trailing fractional zeros) is below 2^53 and
    its scale is at most 22: both are doubles, one IEEE division rounds right; or
  - it has at most 18 digits and its scale is at most 14: see ratio().
Anything longer is INEXACT: the firewall refuses it rather than to be off by a rounding.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

from feed.walk import (
    _AP,
    _CLOSE,
    _COLON,
    _COMMA,
    _DOT,
    _FALSE_TAIL,
    _KEY1,
    _KEY1_MASK,
    _KEY2,
    _KEY2_MASK,
    _KEY_DATA,
    _MINUS,
    _NQ,
    _NULL,
    _POW10_FLOAT,
    _PS,
    _QUOTE,
    _ST,
    _TRUE,
    _WORD4,
    BOOL,
    DIGITS_MAX,
    EXACT_MANTISSA,
    EXACT_SCALE,
    INEXACT,
    KEY_DATA,
    KEY_OTHER,
    KEY_ST,
    KEY_TWO,
    KEY_UNKNOWN,
    LONG,
    LONG_SCALE,
    MALFORMED,
    OTHER,
    TEXT,
    TEXT_BYTES_MAX,
    Bytes,
    Table,
    digit_run,
    inlined,
    kernel,
    load1,
    load8,
    skip_number,
    skip_space,
    skip_string,
    skip_value,
    unescape,
)

NAME_BYTES: Final = 48  # a row of the symbol table, zero-padded, six words
INTEGER_MAX: Final = 10**17  # ids and times are below it
_HASH_FACTOR: Final = -7046029254386353131  # 2^64 / golden ratio, as int64
_SPLIT: Final = 134217729.0  # 2^27 + 1, Veltkamp

Names = npt.NDArray[np.uint8]


@kernel
def ratio(mantissa: int, scale: int) -> float:
    """mantissa / 10^scale rounded once, for |mantissa| < 10^18 and scale <= LONG_SCALE.

    hi + lo is the mantissa exactly; q = hi / p; the remainder hi - q * p is exact (Dekker), so
    q + (remainder + lo) / p errs by about 2^-104 of the value. A decimal that is no tie lies at
    least 1 / (2^54 * 10^scale) of its value away from one, which for scale 14 is 2^-100.5.
    """
    p = _POW10_FLOAT[scale]
    hi = float(mantissa)
    lo = float(mantissa - int(hi))
    q = hi / p
    product = q * p
    split = _SPLIT * q
    q_high = split - (split - q)
    q_low = q - q_high
    split = _SPLIT * p
    p_high = split - (split - p)
    p_low = p - p_high
    error = ((q_high * p_high - product) + q_high * p_low + q_low * p_high) + q_low * p_low
    return q + (((hi - product) - error) + lo) / p


@kernel
def long_value(mantissa: int, scale: int) -> tuple[float, bool]:
    """As value_of, for what the fast path leaves: mantissas of 2^53 and more, long scales."""
    while scale > 0 and mantissa % 10 == 0:
        mantissa //= 10
        scale -= 1
    if abs(mantissa) < EXACT_MANTISSA and scale <= EXACT_SCALE:
        return float(mantissa) / _POW10_FLOAT[scale], True
    if mantissa != 0 and scale > LONG_SCALE:
        return 0.0, False
    return ratio(mantissa, scale), True


@inlined
def value_of(mantissa: int, scale: int) -> tuple[float, bool]:
    """(the nearest double, True), or (0, False) when the promise above does not reach."""
    if -EXACT_MANTISSA < mantissa < EXACT_MANTISSA and scale <= EXACT_SCALE:
        return float(mantissa) / _POW10_FLOAT[scale], True
    return long_value(mantissa, scale)


@kernel
def slow_decimal(buffer: Bytes, at: int, size: int) -> tuple[int, int]:
    """(mantissa, scale) of the text -?digits[.digits], or (0, a kind below zero)."""
    if size > TEXT_BYTES_MAX:
        return 0, LONG
    stop = at + size
    negative = size > 0 and load1(buffer, at) == _MINUS
    at += 1 if negative else 0
    mantissa, digits, scale, zeros = 0, 0, 0, 0
    dot, seen = False, 0
    for place in range(at, stop):
        byte = load1(buffer, place)
        if byte == _DOT and not dot and seen > 0:
            dot, seen = True, 0
        elif 0x30 <= byte <= 0x39:
            seen += 1
            if byte == 0x30 and dot:
                zeros += 1  # counted only once another digit follows
                continue
            steps = zeros + 1
            scale += steps if dot else 0
            zeros = 0
            if digits > 0 or byte != 0x30:
                digits += steps if digits > 0 else 1
            if digits <= DIGITS_MAX:
                for _ in range(steps - 1):
                    mantissa *= 10
                mantissa = mantissa * 10 + (byte - 0x30)
        else:
            return 0, TEXT
    if seen == 0:
        return 0, TEXT
    if digits > DIGITS_MAX:
        return 0, INEXACT
    if mantissa != 0 and scale > EXACT_SCALE:
        return 0, INEXACT
    if dot and scale == 0 and mantissa < INTEGER_MAX:  # "5.0" is no integer: keep one place
        mantissa, scale = mantissa * 10, 1
    return (-mantissa if negative else mantissa), scale


@kernel
def read_string_slow(buffer: Bytes, at: int, end: int, values: Table, letter: int) -> int:
    """Any string value; `at` is its first byte. Fills values[letter]."""
    after, escaped = skip_string(buffer, at, end)
    if after < 0:
        return MALFORMED
    size = after - 1 - at
    if escaped:
        target = letter * TEXT_BYTES_MAX
        size = unescape(buffer, at, after - 1, target)
        at = target
    mantissa, scale = slow_decimal(buffer, at, size)
    values[letter, 0], values[letter, 1] = mantissa, scale
    values[letter, 2], values[letter, 3] = at, size
    return after


@kernel
def read_other(buffer: Bytes, at: int, end: int, values: Table, letter: int, depth: int) -> int:
    """Any value but a string, a truth or a plain non-negative integer."""
    byte = load1(buffer, at)
    values[letter, 0], values[letter, 1] = 0, OTHER
    values[letter, 2], values[letter, 3] = at, -1
    if byte != _MINUS and (byte < 0x30 or byte > 0x39):
        return skip_value(buffer, at, end, depth)
    after = skip_number(buffer, at, end)
    if after < 0:
        return MALFORMED
    mantissa, scale = slow_decimal(buffer, at, after - at)
    values[letter, 0] = mantissa
    values[letter, 1] = OTHER if scale == TEXT else scale  # TEXT here means an exponent
    return after


@inlined
def read_value(buffer: Bytes, at: int, end: int, values: Table, letter: int, depth: int) -> int:
    """Read the value at `at` into values[letter]; position after it, or MALFORMED."""
    byte = load1(buffer, at)
    if byte == _QUOTE:
        start = at + 1
        if load1(buffer, start) > 0x39:  # a word
            after, escaped = skip_string(buffer, start, end)
            if escaped:
                return read_string_slow(buffer, start, end, values, letter)
            values[letter, 0], values[letter, 1] = 0, TEXT
            values[letter, 2], values[letter, 3] = start, after - 1 - start
            return after
        mantissa, stop = digit_run(buffer, start, 0)
        if stop == start:
            return read_string_slow(buffer, start, end, values, letter)
        scale, digits = 0, stop - start
        if load1(buffer, stop) == _DOT:
            mantissa, after = digit_run(buffer, stop + 1, mantissa)
            scale = after - stop - 1
            digits += scale
            stop = after if scale > 0 else stop
        if digits > DIGITS_MAX or load1(buffer, stop) != _QUOTE:
            return read_string_slow(buffer, start, end, values, letter)
        values[letter, 0], values[letter, 1] = mantissa, scale
        values[letter, 2], values[letter, 3] = start, stop - start
        return stop + 1
    if 0x30 <= byte <= 0x39:
        mantissa, stop = digit_run(buffer, at, 0)
        byte_after = load1(buffer, stop)
        plain = (byte_after == _COMMA) | (byte_after == _CLOSE)
        if plain and stop - at <= DIGITS_MAX and (byte != 0x30 or stop == at + 1):
            values[letter, 0], values[letter, 1], values[letter, 3] = mantissa, 0, -1
            return stop
    elif byte == 0x74 and (load8(buffer, at) & _WORD4) == _TRUE:
        values[letter, 0], values[letter, 1], values[letter, 3] = 1, BOOL, -1
        return at + 4
    elif byte == 0x66 and (load8(buffer, at + 1) & _WORD4) == _FALSE_TAIL:
        values[letter, 0], values[letter, 1], values[letter, 3] = 0, BOOL, -1
        return at + 5
    return read_other(buffer, at, end, values, letter, depth)


@inlined
def two_letters(code: int) -> int:
    """The key of two letters, given as 16 bits."""
    if code == _ST:
        return KEY_ST
    return KEY_TWO if (code == _NQ) | (code == _PS) | (code == _AP) else KEY_UNKNOWN


@kernel
def read_key(buffer: Bytes, at: int, end: int) -> tuple[int, int]:
    """(position of the value, letter or a KEY_ code) of any key, escapes and all."""
    at = skip_space(buffer, at, end)
    if at >= end or load1(buffer, at) != _QUOTE:
        return MALFORMED, 0
    start = at + 1
    at, escaped = skip_string(buffer, start, end)
    if at < 0:
        return MALFORMED, 0
    size = at - 1 - start
    if escaped:
        start, size = 63 * TEXT_BYTES_MAX, unescape(buffer, start, at - 1, 63 * TEXT_BYTES_MAX)
    key = KEY_UNKNOWN
    first = load1(buffer, start)
    if size == 1 and 0x41 <= (first & ~0x20) <= 0x5A:
        key = first - 0x41
    elif size == 2:
        key = two_letters(load8(buffer, start) & 0xFFFF)
    elif size == 4 and (load8(buffer, start) & _WORD4) == (_KEY_DATA & _WORD4):
        key = KEY_DATA
    at = skip_space(buffer, at, end)
    if at >= end or load1(buffer, at) != _COLON:
        return MALFORMED, 0
    return skip_space(buffer, at + 1, end), key


@inlined
def is_word2(word: int) -> bool:
    """Whether bytes 1 and 2 are letters."""
    lower = word | 0x202000
    return 0x61 <= (lower >> 8 & 0xFF) <= 0x7A and 0x61 <= (lower >> 16 & 0xFF) <= 0x7A


@kernel
def walk_object(
    buffer: Bytes, at: int, end: int, values: Table, depth: int
) -> tuple[int, int, int]:
    """Walk the object whose `{` is at `at`, as the depth-th open container.

    Returns (position after `}` or MALFORMED, bit set of letters whose value is not null,
    position of a "data" value that is an object or array, else -1). The last of equal keys counts.
    """
    seen, data = 0, -1
    at += 1
    if load1(buffer, at) != _QUOTE:
        at = skip_space(buffer, at, end)
        if at < end and load1(buffer, at) == _CLOSE:
            return at + 1, 0, -1
    while True:
        word = load8(buffer, at)
        code = word >> 8 & 0xFF
        if (word & _KEY1_MASK) == _KEY1 and 0x41 <= (code & ~0x20) <= 0x5A:
            at, key = at + 4, code - 0x41
            if load1(buffer, at) <= 0x20:
                at = skip_space(buffer, at, end)
        elif (word & _KEY2_MASK) == _KEY2 and is_word2(word):
            at, key = at + 5, two_letters(word >> 8 & 0xFFFF)
            if load1(buffer, at) <= 0x20:
                at = skip_space(buffer, at, end)
        else:
            at, key = read_key(buffer, at, end)
        if at < 0 or at >= end:
            return MALFORMED, 0, -1
        if key >= 0:
            null = (load8(buffer, at) & _WORD4) == _NULL
            at = read_value(buffer, at, end, values, key, depth)
            seen = seen & ~(1 << key) if null else seen | (1 << key)
        else:
            if key == KEY_DATA:
                first = load1(buffer, at)
                data = at if first == 0x7B or first == 0x5B else -1
            seen |= 1 << KEY_OTHER
            at = skip_value(buffer, at, end, depth)
        if at < 0 or at >= end:
            return MALFORMED, 0, -1
        byte = load1(buffer, at)
        if byte != _COMMA and byte != _CLOSE:
            at = skip_space(buffer, at, end)
            byte = load1(buffer, at) if at < end else 0
        if byte == _CLOSE:
            return at + 1, seen, data
        if byte != _COMMA:
            return MALFORMED, 0, -1
        at += 1


@inlined
def name_hash(buffer: Bytes, at: int, size: int) -> int:
    """A non-negative hash of buffer[at:at+size], a word at a time."""
    mixed = size
    for place in range(0, size, 8):
        word = load8(buffer, at + place)
        if size - place < 8:
            word &= (1 << (8 * (size - place))) - 1
        mixed = (mixed ^ word) * _HASH_FACTOR
        mixed ^= mixed >> 29
    return (mixed >> 20) & 0x7FFFFFFF


@inlined
def same_name(buffer: Bytes, at: int, size: int, names: Names, row: int) -> bool:
    """Whether buffer[at:at+size] is the zero-padded name in that row of `names`."""
    for place in range(0, size, 8):
        word = load8(buffer, at + place)
        if size - place < 8:
            word &= (1 << (8 * (size - place))) - 1
        if word != load8(names, row * NAME_BYTES + place):
            return False
    return True


@inlined
def find_row(buffer: Bytes, at: int, size: int, table: Table, names: Names) -> int:
    """Row of the symbol named buffer[at:at+size], or -1. Open addressing, -1 is a free place.

    The table is at least four times as large as its rows, so that a free place ends each search.
    A name's size stands in the last byte of its row.
    """
    if size < 1 or size >= NAME_BYTES:
        return -1
    mask = len(table) - 1
    place = name_hash(buffer, at, size) & mask
    for _ in range(len(table)):
        row = table[place]
        if row < 0:
            return -1
        same_size = load1(names, row * NAME_BYTES + NAME_BYTES - 1) == size
        if same_size and same_name(buffer, at, size, names, row):
            return row
        place = (place + 1) & mask
    return -1


@kernel
def build_table(table: Table, names: Names, rows: int) -> None:
    """Fill `table` with every row of `names` whose size byte is set."""
    table[:] = -1
    mask = len(table) - 1
    for row in range(rows):
        size = load1(names, row * NAME_BYTES + NAME_BYTES - 1)
        if size > 0:
            place = name_hash(names, row * NAME_BYTES, size) & mask
            while table[place] >= 0:
                place = (place + 1) & mask
            table[place] = row
