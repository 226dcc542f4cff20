"""Shapes: the layout of a usual frame, learned from one and checked byte by byte on the next.

Frames of one kind differ in their values only. What stands between the values,

    {"stream":"btcusdt@aggTrade","data":{"e":"aggTrade","E":1795000000123,"a":3501234567,"s":"BTC..
    ^---------^                ^----------------------------^             ^---^          ^----^

is the same in each, until the exchange changes it. A shape is that text as a list of steps: up to
eight literal bytes, then the kind of value that follows. A frame that has them all, and values of
those kinds, is understood without looking for anything; any other frame, however it differs, is
left to fields.py, which takes all JSON there is, and its layout is learned in turn. So no order
of keys is built in, and none is trusted.

A step has no branch that depends on the data: lengths come from comparing 16 or 32 bytes at once,
digits are folded in words that are masked to size. The branches that remain repeat from frame to
frame and are foreseen, whatever the lengths of prices and names.

    steps    i8[5]   literal, its mask, its length, kind, row of the value
    heads    i8[4]   how many steps, event, letters seen, keys that nobody knows
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic
from numba.np.arrayobj import make_array

from feed.walk import (
    _BACKSLASH,
    _CLOSE,
    _COLON,
    _COMMA,
    _DOT,
    _HIGH,
    _MINUS,
    _OPEN,
    _QUOTE,
    _ROOM_ABOVE_NINE,
    _ST,
    _TRUE,
    _WORD4,
    _ZEROS,
    BOOL,
    TEXT,
    Bytes,
    Table,
    _word,
    fold8,
    inlined,
    kernel,
    load1,
    load8,
    zeros_below,
)

SHAPES: Final = 8  # kept per lane; the oldest makes room
STEPS: Final = 48
STEP_WORDS, HEAD_WORDS = 5, 4
LITERAL, MASK, LENGTH, KIND, ROW = range(STEP_WORDS)
USED, EVENT, SEEN, STRANGE = range(HEAD_WORDS)

# Kinds: no value, text of up to TEXT_MAX bytes, [-]digits[.digits], integer, 13 digits, boolean.
PLAIN, WORD, SKIP_TEXT, DECIMAL, INTEGER, SKIP_INTEGER, STAMP, TRUTH = range(8)
TEXT_MAX: Final = 31
HALF_MAX: Final = 8  # digits before the point, and after it
DIGITS: Final = 15  # of an integer
STAMP_DIGITS: Final = 13  # milliseconds since 1970, until the year 2286
MISS: Final = -1
FREE_MISSES: Final = 4096  # then only one miss in LEARN_EVERY is looked at: a stream without a
LEARN_EVERY: Final = 64  # layout must not pay for the search of one with every frame
NOBODY: Final = 63  # row of a value that nobody reads

_FALSE, _WORD5 = _word(b"false"), (1 << 40) - 1
_DATA: Final = _word(b"data")
_SIGN: Final = -(1 << 63)
_LAST5: Final = -(1 << 24)  # the five highest bytes
_LOW: Final = np.array([(1 << 8 * n) - 1 for n in range(8)] + [-1], np.int64)  # n lowest bytes
_HIGHEST: Final = np.array(  # n highest bytes; more than 8 is a fault, found elsewhere
    [0] + [-(1 << 8 * (8 - n)) for n in range(1, 8)] + [-1] * 9, np.int64
)
_POW10: Final = np.array([10 ** min(n, 8) for n in range(16)], np.int64)


class Shapes(NamedTuple):
    """What a lane has learned; the last row of steps and heads is for trying."""

    steps: Table  # [(SHAPES + 1) * STEPS * STEP_WORDS]
    heads: Table  # [(SHAPES + 1) * HEAD_WORDS]
    order: Table  # [3]: the shape used last, how many were ever learned, how often none fitted


def make_shapes() -> Shapes:
    """Nothing learned yet."""
    return Shapes(
        np.zeros((SHAPES + 1) * STEPS * STEP_WORDS, np.int64),
        np.zeros((SHAPES + 1) * HEAD_WORDS, np.int64),
        np.zeros(3, np.int64),
    )


def _block(context: Any, builder: Any, signature: Any, args: Any, size: int) -> Any:
    """`size` bytes at buffer[index] as a vector, and a maker of constant vectors."""
    array = make_array(signature.args[0])(context, builder, args[0])
    byte = ir.IntType(8)
    wide = ir.VectorType(byte, size)
    pointer = builder.bitcast(builder.gep(array.data, [args[1]]), wide.as_pointer())
    block = builder.load(pointer)
    block.align = 1

    def every(value: int) -> ir.Constant:
        return ir.Constant(wide, [ir.Constant(byte, value)] * size)

    def bits(mask: Any) -> Any:
        return builder.zext(builder.bitcast(mask, ir.IntType(size)), ir.IntType(64))

    return block, every, bits


@intrinsic
def text_mask(typingctx: Any, buffer: Any, index: Any) -> Any:
    """text_mask(buffer, index) -> what ends or spoils a plain text in 32 bytes, first lowest.

    Quotes, backslashes and all that is not printable ASCII. Vector IR: LLVM makes of it what the
    processor has.
    """

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        block, every, bits = _block(context, builder, signature, args, 32)
        quotes = builder.icmp_unsigned("==", block, every(_QUOTE))
        slashes = builder.icmp_unsigned("==", block, every(0x5C))
        beyond = builder.icmp_unsigned(">", builder.sub(block, every(0x20)), every(0x5E))
        return bits(builder.or_(quotes, builder.or_(slashes, beyond)))

    return types.int64(buffer, types.int64), codegen


@intrinsic
def number_masks(typingctx: Any, buffer: Any, index: Any) -> Any:
    """number_masks(buffer, index) -> (digits, dots) of 16 bytes, the first in the lowest bit."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        block, every, bits = _block(context, builder, signature, args, 16)
        digits = builder.icmp_unsigned("<", builder.sub(block, every(0x30)), every(10))
        dots = builder.icmp_unsigned("==", block, every(_DOT))
        return context.make_tuple(builder, signature.return_type, [bits(digits), bits(dots)])

    return types.UniTuple(types.int64, 2)(buffer, types.int64), codegen


@intrinsic
def ones(typingctx: Any, value: Any) -> Any:
    """ones(value) -> number of set bits."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.ctpop(args[0])

    return types.int64(types.int64), codegen


@intrinsic
def put(typingctx: Any, table: Any, index: Any, value: Any) -> Any:
    """put(table, index, value): a plain store into a contiguous table, seen flat."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        array = make_array(signature.args[0])(context, builder, args[0])
        builder.store(args[2], builder.gep(array.data, [args[1]]))
        return context.get_dummy_value()

    return types.void(table, types.int64, types.int64), codegen


@intrinsic
def take(typingctx: Any, table: Any, index: Any) -> Any:
    """take(table, index) -> int64: a plain load from a contiguous table, seen flat."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        array = make_array(signature.args[0])(context, builder, args[0])
        return builder.load(builder.gep(array.data, [args[1]]))

    return types.int64(table, types.int64), codegen


@inlined
def last_digits(buffer: Bytes, stop: int, count: int) -> int:
    """The number that the `count` digits before `stop` spell, 0 to 8 of them."""
    return fold8((load8(buffer, stop - 8) ^ _ZEROS) & take(_HIGHEST, count & 15))


@inlined
def put_value(values: Table, row: int, mantissa: int, scale: int, at: int, size: int) -> None:
    """One row of the table of values, see walk.py."""
    at_row = row << 2
    put(values, at_row, mantissa)
    put(values, at_row + 1, scale)
    put(values, at_row + 2, at)
    put(values, at_row + 3, size)


@inlined
def amiss(size: int, most: int) -> int:
    """Not 0 unless size is in 1..most."""
    return ((size - 1) | (most - size)) & _SIGN


@inlined
def read_decimal(buffer: Bytes, at: int, values: Table, row: int) -> int:
    """[-]digits[.digits], HALF_MAX digits each, up to its quote; where that is, or MISS."""
    begin, minus = at, 1 if load1(buffer, at) == _MINUS else 0
    at += minus
    digits, dots = number_masks(buffer, at)
    before = zeros_below(~digits)
    has_dot = dots >> before & 1
    size = zeros_below(~(digits | has_dot << before))
    scale, stop = size - before - has_dot, at + size
    whole = last_digits(buffer, at + before, before) * take(_POW10, scale & 15)
    mantissa = whole + last_digits(buffer, stop, scale)
    put_value(values, row, (mantissa ^ -minus) + minus, scale, begin, stop - begin)
    odd = amiss(before, HALF_MAX) | ((scale - has_dot) & ~7) | ((15 - size) & _SIGN)
    return stop if odd == 0 else MISS


@inlined
def integer_end(buffer: Bytes, at: int) -> int:
    """Position after a JSON integer of 1 to DIGITS digits, or MISS."""
    digits, _ = number_masks(buffer, at)
    size = zeros_below(~digits)
    zero = 1 if load1(buffer, at) == 0x30 else 0
    odd = amiss(size, DIGITS) | (zero & (1 if size > 1 else 0))
    return at + size if odd == 0 else MISS


@inlined
def read_integer(buffer: Bytes, at: int, values: Table, row: int) -> int:
    """As integer_end, and fills the row."""
    digits, _ = number_masks(buffer, at)
    size = zeros_below(~digits)
    stop, low = at + size, min(size, 8)
    value = last_digits(buffer, stop - 8, size - low) * 100_000_000
    put_value(values, row, value + last_digits(buffer, stop, low), 0, at, -1)
    return integer_end(buffer, at)


@inlined
def read_stamp(buffer: Bytes, at: int, values: Table, row: int) -> int:
    """Exactly STAMP_DIGITS digits, no zero first; the position after them, or MISS.

    What follows is the next literal's to check.
    """
    high = load8(buffer, at) ^ _ZEROS
    low = (load8(buffer, at + 5) ^ _ZEROS) & _LAST5
    odd = ((high + _ROOM_ABOVE_NINE) | high | (low + _ROOM_ABOVE_NINE) | low) & _HIGH
    put_value(values, row, fold8(high) * 100_000 + fold8(low), 0, at, -1)
    return at + STAMP_DIGITS if odd == 0 and high & 0xFF != 0 else MISS


@inlined
def text_end(buffer: Bytes, at: int) -> int:
    """Where a plain text of up to TEXT_MAX bytes ends; at what spoils it, if something does."""
    return at + zeros_below(text_mask(buffer, at) | 1 << (TEXT_MAX + 1))


@inlined
def read_truth(buffer: Bytes, at: int, values: Table, row: int) -> int:
    """Position after true or false, or MISS."""
    word = load8(buffer, at)
    true = 1 if (word & _WORD4) == _TRUE else 0
    put_value(values, row, true, BOOL, at, -1)
    odd = (word ^ (_TRUE if true else _FALSE)) & (_WORD4 if true else _WORD5)
    return at + 5 - true if odd == 0 else MISS


@inlined
def read_kind(buffer: Bytes, at: int, kind: int, row: int, values: Table) -> int:
    """Read one value; the position after it, or MISS."""
    if kind == DECIMAL:
        return read_decimal(buffer, at, values, row)
    if kind == STAMP:
        return read_stamp(buffer, at, values, row)
    if kind == INTEGER:
        return read_integer(buffer, at, values, row)
    if kind == SKIP_INTEGER:
        return integer_end(buffer, at)
    if kind == TRUTH:
        return read_truth(buffer, at, values, row)
    stop = text_end(buffer, at)
    if kind == WORD:
        put_value(values, row, 0, TEXT, at, stop - at)
    return stop


@inlined
def fits(buffer: Bytes, at: int, end: int, values: Table, shapes: Shapes, which: int) -> bool:
    """Whether buffer[at:end] is of this shape; then `values` holds what the event needs."""
    steps, step = shapes.steps, which * (STEPS * STEP_WORDS)
    used = take(shapes.heads, which * HEAD_WORDS + USED)
    for _ in range(used):
        if (load8(buffer, at) ^ take(steps, step + LITERAL)) & take(steps, step + MASK) != 0:
            return False
        at += take(steps, step + LENGTH)
        if at > end:  # or a long literal would be compared with whatever lies behind
            return False
        kind = take(steps, step + KIND)
        if kind != PLAIN:
            at = read_kind(buffer, at, kind, take(steps, step + ROW), values)
            if at < 0:
                return False
        step += STEP_WORDS
    return used > 0 and at == end  # nothing is no shape of nothing


@kernel
def fits_apart(buffer: Bytes, at: int, end: int, values: Table, shapes: Shapes, which: int) -> bool:
    """As fits, by a call: where it is rare, a second copy of it would only cost compile time."""
    return fits(buffer, at, end, values, shapes, which)


@inlined
def walk_usual(buffer: Bytes, at: int, end: int, values: Table, shapes: Shapes) -> int:
    """The number of the learned shape that these bytes have, or MISS."""
    newest = take(shapes.order, 0)
    if fits(buffer, at, end, values, shapes, newest):
        return newest
    return walk_others(buffer, at, end, values, shapes, newest)


@kernel
def walk_others(
    buffer: Bytes, at: int, end: int, values: Table, shapes: Shapes, newest: int
) -> int:
    """As walk_usual, with the shapes that were not used last."""
    for which in range(min(shapes.order[1], SHAPES)):
        if which != newest and fits_apart(buffer, at, end, values, shapes, which):
            shapes.order[0] = which
            return which
    return MISS


# --- learning --------------------------------------------------------------------------------


@kernel
def string_end(buffer: Bytes, at: int, end: int) -> int:
    """Position of the quote that ends a plain text, or MISS."""
    while at < end:
        byte = load1(buffer, at)
        if byte == _QUOTE:
            return at
        if byte < 0x20 or byte > 0x7E or byte == _BACKSLASH:
            return MISS
        at += 1
    return MISS


@kernel
def bare_end(buffer: Bytes, at: int, end: int) -> int:
    """Position after the bare value at `at`, or MISS."""
    while at < end and load1(buffer, at) != _COMMA and load1(buffer, at) != _CLOSE:
        at += 1
    return at if at < end else MISS


@kernel
def kind_of(first: int, size: int, wanted: bool, named: bool) -> int:
    """The kind of a value of `size` bytes, and whether the event needs it; MISS: none."""
    if first == _QUOTE:
        if not wanted:
            return SKIP_TEXT
        return WORD if named else DECIMAL
    if 0x30 <= first <= 0x39:
        if size == STAMP_DIGITS and wanted:
            return STAMP
        return INTEGER if wanted else SKIP_INTEGER
    return TRUTH if first == 0x74 or first == 0x66 else MISS


@kernel
def add_text(buffer: Bytes, at: int, stop: int, shapes: Shapes) -> bool:
    """Steps for the literal buffer[at:stop], at least one; False without room."""
    while True:
        used = shapes.heads[SHAPES * HEAD_WORDS + USED]
        if used == STEPS:
            return False
        size = min(8, stop - at)
        step = shapes.steps[(SHAPES * STEPS + used) * STEP_WORDS :]
        step[LITERAL], step[MASK] = load8(buffer, at) & _LOW[size], _LOW[size]
        step[LENGTH], step[KIND], step[ROW] = size, PLAIN, 0
        shapes.heads[SHAPES * HEAD_WORDS + USED] = used + 1
        at += size
        if at >= stop:
            return True


@kernel
def add_value(buffer: Bytes, literal: int, at: int, kind: int, row: int, shapes: Shapes) -> bool:
    """The literal buffer[literal:at] and the value that follows it; False without room."""
    if not add_text(buffer, literal, at, shapes):
        return False
    used = shapes.heads[SHAPES * HEAD_WORDS + USED]
    step = shapes.steps[(SHAPES * STEPS + used - 1) * STEP_WORDS :]
    step[KIND], step[ROW] = kind, row
    return True


@kernel
def read_layout(
    buffer: Bytes, at: int, end: int, needed: int, fixed: int, name: int, combined: bool,
    shapes: Shapes,
) -> int:  # fmt: skip
    """Fill the steps for trying from buffer[at:end]: all letters found, or MISS."""
    literal, found, depth, inner = at, 0, 1, 2 if combined else 1
    at += 1
    for _ in range(STEPS):
        key = at + 1
        at = string_end(buffer, key, end) if load1(buffer, at) == _QUOTE else MISS
        if at < 0 or load1(buffer, at + 1) != _COLON:
            return MISS
        size, word = at - key, load8(buffer, key)
        letter = (word & 0xFF) - 0x41
        if size != 1 or depth != inner or not 0x41 <= (word & 0xDF) <= 0x5A:
            letter = NOBODY
        at += 2
        first = load1(buffer, at)
        if first == _OPEN and size == 4 and word & _WORD4 == _DATA and depth == 1 and combined:
            depth, combined = 2, False  # a second "data" is not usual
            at += 1
            continue
        value = at + (1 if first == _QUOTE else 0)
        at = string_end(buffer, value, end) if first == _QUOTE else bare_end(buffer, value, end)
        wanted = needed >> letter & 1 != 0
        kind = kind_of(first, at - value, wanted, letter == name)
        if kind == MISS or at < 0:
            return MISS
        kept = fixed >> letter & 1 != 0 or (size == 2 and word & 0xFFFF == _ST)
        if not kept:
            row = letter if wanted else NOBODY
            if not add_value(buffer, literal, value, kind, row, shapes):
                return MISS
            literal = at
        if wanted or fixed >> letter & 1 != 0:
            found |= 1 << letter
        at += 1 if first == _QUOTE else 0
        while depth > 0 and load1(buffer, at) == _CLOSE:
            depth -= 1
            at += 1
        if depth == 0:
            break
        if load1(buffer, at) != _COMMA:
            return MISS
        at += 1
    whole = depth == 0 and at == end and add_text(buffer, literal, end, shapes)
    return found if whole else MISS


@kernel
def learn(
    buffer: Bytes, at: int, end: int, event: int, needed: int, fixed: int, name: int,
    combined: bool, seen: int, strange: int, values: Table, shapes: Shapes,
) -> bool:  # fmt: skip
    """Remember the layout of the well-formed payload buffer[at:end]; whether `values` is spoiled.

    `needed` are the letters whose values the event is made of, `name` the one of its symbol, and
    `fixed` those whose value belongs to the layout. Spaces, escapes, nulls and nesting are not
    usual, nor is a shape that does not take the very frame it came from, or that found other
    letters in it than the general walk, which saw `seen`.
    """
    shapes.order[2] += 1
    if shapes.order[2] > FREE_MISSES and shapes.order[2] % LEARN_EVERY != 0:
        return False
    trial = SHAPES * HEAD_WORDS
    shapes.heads[trial + USED] = 0
    if load1(buffer, at) != _OPEN:
        return False
    found = read_layout(buffer, at, end, needed, fixed, name, combined, shapes)
    if found != seen & (needed | fixed):
        return False
    if not fits_apart(buffer, at, end, values, shapes, SHAPES):
        return True
    shapes.heads[trial + EVENT], shapes.heads[trial + SEEN] = event, seen & needed
    shapes.heads[trial + STRANGE] = strange
    which = shapes.order[1] % SHAPES
    for word in range(HEAD_WORDS):
        shapes.heads[which * HEAD_WORDS + word] = shapes.heads[trial + word]
    for word in range(STEPS * STEP_WORDS):
        shapes.steps[which * STEPS * STEP_WORDS + word] = shapes.steps[
            SHAPES * STEPS * STEP_WORDS + word
        ]
    shapes.order[0] = which
    shapes.order[1] += 1
    return True
