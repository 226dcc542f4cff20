"""The ring's barriers: words that two processes share, read and written in order; publish and wait.

LLVM hoists plain loads out of a spin and drops plain stores, on x86 too, so every shared word of a
kernel goes through load_acquire and store_release. Sleeping is the one place where a full fence is
needed: the reader says "I sleep" and looks again; the writer publishes and looks whether it must
wake. For processes that run kernels; who only looks at a ring does without.
"""

from __future__ import annotations

import platform
from typing import Any, Final

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic
from numba.np.arrayobj import make_array

from ring import HEAD, SLEEP, SLEEP_FOR, TAIL, WORDS, Words

_I64 = ir.IntType(64)
_SPINS_ARE_X86 = platform.machine() in ("x86_64", "AMD64")
_SYS_FUTEX: Final = 202 if _SPINS_ARE_X86 else 98  # Linux: x86-64, arm64
_HAS_FUTEX: Final = platform.system() == "Linux" and platform.machine() in (
    "x86_64",
    "AMD64",
    "aarch64",
)
_FUTEX_WAIT, _FUTEX_WAKE = 0, 1  # without FUTEX_PRIVATE: the word is shared between processes
SLEEP_NS_MAX: Final = 50_000_000  # then back to Python, where signals are handled
_syscall = types.ExternalFunction(
    "syscall",
    types.int64(*[types.int64] * 7),
)


def _word_pointer(context: Any, builder: Any, signature: Any, args: Any) -> Any:
    array_type = signature.args[0]
    array = make_array(array_type)(context, builder, args[0])
    return cgutils.get_item_pointer(context, builder, array_type, array, [args[1]])


@intrinsic
def load_acquire(typingctx: Any, words: Any, index: Any) -> Any:
    """load_acquire(words, index) -> int64: nothing after it is read before it."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        pointer = _word_pointer(context, builder, signature, args)
        return builder.load_atomic(pointer, "acquire", 8, typ=_I64)

    return types.int64(words, types.intp), codegen


@intrinsic
def store_release(typingctx: Any, words: Any, index: Any, value: Any) -> Any:
    """store_release(words, index, value): nothing before it becomes visible after it."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        pointer = _word_pointer(context, builder, signature, args)
        builder.store_atomic(args[2], pointer, "release", 8)
        return context.get_dummy_value()

    return types.void(words, types.intp, types.int64), codegen


@intrinsic
def fence(typingctx: Any) -> Any:
    """fence(): sequentially consistent; for the sleep protocol only."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        builder.fence("seq_cst")
        return context.get_dummy_value()

    return types.void(), codegen


@intrinsic
def keep_order(typingctx: Any) -> Any:
    """keep_order(): no store after it is compiled before it. Costs nothing when it runs.

    For words that tell a successor what we were doing when we were killed: a release store lets
    later stores move up, and death needs the order of instructions, not that between cores.
    """

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        builder.fence("seq_cst", "singlethread")
        return context.get_dummy_value()

    return types.void(), codegen


@intrinsic
def pause(typingctx: Any) -> Any:
    """pause(): tell the core that this is a spin. An LLVM intrinsic: inline asm aborts here."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        if _SPINS_ARE_X86:
            kind = ir.FunctionType(ir.VoidType(), [])
            call = cgutils.get_or_insert_function(builder.module, kind, "llvm.x86.sse2.pause")
            builder.call(call, [])
        elif platform.machine() in ("aarch64", "arm64"):
            kind = ir.FunctionType(ir.VoidType(), [ir.IntType(32)])
            call = cgutils.get_or_insert_function(builder.module, kind, "llvm.aarch64.hint")
            builder.call(call, [ir.Constant(ir.IntType(32), 1)])
        return context.get_dummy_value()

    return types.void(), codegen


@njit(inline="always")
def room(words: Words, cursor: Words, slots: int) -> int:
    """Writer: free slots. cursor = (next sequence to write, tail as last seen).

    The tail is read again only when the cached one leaves no room: half the coherence traffic.
    """
    free = slots - (cursor[0] - cursor[1])
    if free <= 0:
        cursor[1] = load_acquire(words, TAIL)
        free = slots - (cursor[0] - cursor[1])
    return free


@njit(nogil=True, cache=True)
def publish(words: Words, cursor: Words) -> None:
    """Writer: make every slot before cursor[0] visible, and wake the reader if it sleeps."""
    store_release(words, HEAD, cursor[0])
    keep_order()
    if _HAS_FUTEX:
        fence()
        if load_acquire(words, SLEEP) == 1:
            store_release(words, SLEEP, 0)
            _syscall(_SYS_FUTEX, words.ctypes.data + 8 * SLEEP, _FUTEX_WAKE, 1, 0, 0, 0)


@njit(nogil=True, cache=True)
def wait_records(words: Words, tail: int, spins: int, timeout_ns: int) -> int:
    """Reader: the head, once it passed `tail` or the wait is over (then head == tail).

    Spins `spins` times, the second half with pauses, then sleeps on a futex for at most
    `timeout_ns`, 50 ms at most. Call it again: between calls Python handles signals.
    """
    head = load_acquire(words, HEAD)
    for spin in range(spins):
        if head > tail:
            return head
        if spin * 2 > spins:
            pause()
        head = load_acquire(words, HEAD)
    if head > tail or timeout_ns <= 0 or not _HAS_FUTEX:
        return head
    store_release(words, SLEEP, 1)
    fence()
    head = load_acquire(words, HEAD)
    if head <= tail:
        words[SLEEP_FOR] = 0
        words[SLEEP_FOR + 1] = min(timeout_ns, SLEEP_NS_MAX)
        _syscall(
            _SYS_FUTEX,
            words.ctypes.data + 8 * SLEEP,
            _FUTEX_WAIT,
            1,
            words.ctypes.data + 8 * SLEEP_FOR,
            0,
            0,
        )
        head = load_acquire(words, HEAD)
    store_release(words, SLEEP, 0)
    return head


def warm() -> None:
    """Compile or load this file's kernels for a mapped ring's types."""
    words = np.zeros(WORDS, np.int64)
    cursor = np.zeros(2, np.int64)
    publish(words, cursor)
    wait_records(words, 0, 1, 0)
