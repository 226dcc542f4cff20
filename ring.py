"""Shared-memory ring: one writer, one reader, no locks, one file.

A record is visible only after the head passes it. The writer never overwrites what the reader
has not released; a ring that stays full is the caller's to report, never to hide. Either side may
die at any instruction: a half-written slot lies beyond the head and is written again, a released
slot was consumed. The file outlives both and belongs to the node, which makes and removes it.

The file has four parts, each beginning on a page:

    words    int64[512]           header: constants, then one 128-byte block per writer
    symbols  ROW[symbols_max]     the node's table; id = row
    statistics                    counters, histograms, per-symbol tables; one writer per page
    slots    RECORD[slots]        a power of two, so slot = sequence & (slots - 1)

Head and tail own 128 bytes each (two cache lines: the adjacent-line prefetcher pulls pairs).
Ordering is explicit: LLVM hoists plain loads out of a spin and drops plain stores, on x86 too, so
every shared word goes through load_acquire and store_release. Sleeping is the one place where a
full fence is needed: the reader says "I sleep" and looks again; the writer publishes and looks
whether it must wake.
"""

from __future__ import annotations

import hashlib
import mmap
import os
import platform
import time
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic
from numba.np.arrayobj import make_array

from records import RECORD

RING_SLOTS: Final = 1 << 17  # 8 MiB: 1.3 s at 100,000 ticks a second
PAGE_BYTES: Final = 4096
WORDS: Final = 512
MAGIC: Final = 0x0153494745410A00  # "\0\nAEGIS" and the layout's major version

# Constants, written once by the node.
W_MAGIC, W_LAYOUT, W_GENERATION, W_SLOTS, W_SYMBOLS_MAX, W_WORLD, W_NODE_PID = range(7)
GENERATION = W_GENERATION
# One block of 16 words (128 bytes) per writer and purpose.
HEAD: Final = 16  # feed: sequence of the next slot to publish
TAIL: Final = 32  # brain: sequence of the next slot to read
FEED_BOOT, FEED_BEAT, FEED_PID, SNAPSHOT_DONE = 48, 49, 50, 51  # feed
BRAIN_BOOT, BRAIN_BEAT, BRAIN_PID, BRAIN_READY = 64, 65, 66, 67  # brain; READY holds a generation
SNAPSHOT_SEQ, SNAPSHOT_SYMBOL, WRITING = 68, 69, 70  # brain; SYMBOL -1 means every symbol
SLEEP: Final = 80  # both: 1 while the reader sleeps; its low half is the futex word
SLEEP_FOR: Final = 96  # brain: timespec of its sleep, two words; sleeping allocates nothing
TABLE_VERSION: Final = 112  # node: raised after each change of the symbol table
assert all(block % 16 == 0 for block in (HEAD, TAIL, FEED_BOOT, BRAIN_BOOT, SLEEP, TABLE_VERSION))
assert WRITING < SLEEP and TABLE_VERSION < WORDS

FREE, WANTED, DRAINING = 0, 1, 2
ROW: Final = np.dtype(
    {
        "names": ["name", "state", "since"],
        "formats": ["S48", "u1", "<i8"],
        "offsets": [0, 48, 56],
        "itemsize": 64,
    }
)

FEED_COUNTERS: Final[tuple[str, ...]] = (
    "frames",
    "bytes",
    "trades_received",
    "quotes_received",
    "marks_received",
    "trades",
    "quotes",
    "marks",
    "conflated",
    "held",
    "healed_trades",
    "lost_trades",
    "bars",
    "heals",
    "reconnects",
    "resubscribes",
    "degraded_prints",
    "unknown_events",
    "malformed",
    "dropped_trades",
    "waiting",
    "holes",
    "klines",
    "ignored",
    "control",
    "refused_inexact",
    "refused_symbol",
    "refused_nonmarket",
    "refused_time",
    "refused_nonpositive",
    "refused_crossed",
    "refused_duplicate",
    "refused_order",
    "corrections",
    "connects",
    "oversize",
    "rest_errors",
    "rest_weight",
)
BRAIN_COUNTERS: Final[tuple[str, ...]] = (
    "records",
    "trades",
    "quotes",
    "marks",
    "bars",
    "gaps",
    "lost_trades",
    "duplicates",
    "late",
    "closes",
    "candidates",
    "signals",
    "outcomes",
    "dropped_signals",
    "dropped_outcomes",
    "resyncs",
    "orphans",
    "corrections",
    "skipped",
    "timeouts",
    "refused",
    "dropped_decisions",
    "rule_faults",
)
COUNTERS_MAX: Final = 128
assert len(FEED_COUNTERS) <= COUNTERS_MAX and len(BRAIN_COUNTERS) <= COUNTERS_MAX
HIST_ROWS, HIST_BUCKETS = 4, 64  # log2 of nanoseconds: bucket b holds [2^(b-1), 2^b)
FEED_HISTS: Final = ("exchange_to_receive_market_ns", "buffer_ns")
BRAIN_HISTS: Final = ("receive_to_brain_ns", "receive_to_signal_ns", "batch_records")
CHANNELS: Final = ("trade", "quote", "mark", "bar")  # columns of ages

Words = npt.NDArray[np.int64]


class RingError(Exception):
    """The file is not a ring that this code can use; the sentence says why."""


def _pages(size: int) -> int:
    return (size + PAGE_BYTES - 1) // PAGE_BYTES * PAGE_BYTES


def _parts(slots: int, symbols_max: int) -> dict[str, tuple[Any, tuple[int, ...]]]:
    """The file's parts in order: name -> (dtype, shape). Each begins on a page."""
    return {
        "words": (np.int64, (WORDS,)),
        "symbols": (ROW, (symbols_max,)),
        "feed_stats": (np.int64, (COUNTERS_MAX,)),
        "feed_hist": (np.int64, (HIST_ROWS, HIST_BUCKETS)),
        "last_ids": (np.int64, (symbols_max,)),
        "dropped": (np.int64, (symbols_max,)),
        "ages": (np.int64, (symbols_max, len(CHANNELS))),
        "brain_stats": (np.int64, (COUNTERS_MAX,)),
        "brain_hist": (np.int64, (HIST_ROWS, HIST_BUCKETS)),
        "slots": (RECORD, (slots,)),
    }


def file_size(slots: int, symbols_max: int) -> int:
    """Bytes that a ring file of this shape takes."""
    return sum(
        _pages(int(np.prod(shape)) * np.dtype(dtype).itemsize)
        for dtype, shape in _parts(slots, symbols_max).values()
    )


def _layout_hash() -> int:
    text = f"{RECORD.descr}{ROW.descr}{FEED_COUNTERS}{BRAIN_COUNTERS}{_parts(2, 1)}"
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=7).digest(), "little")


def world_word(world: str) -> int:
    """A world's name as one header word."""
    return int.from_bytes(hashlib.blake2b(world.encode(), digest_size=7).digest(), "little")


class Ring:
    """Views onto one mapped ring file. Every array writes through; nothing here is copied."""

    words: Words
    symbols: npt.NDArray[Any]  # ROW[symbols_max], written by the node
    feed_stats: Words  # [COUNTERS_MAX], indices are positions in FEED_COUNTERS
    feed_hist: Words  # [HIST_ROWS, HIST_BUCKETS]
    last_ids: Words  # [symbols_max] last published trade id, 0 = none; feed's memory over a restart
    dropped: Words  # [symbols_max] sequence just after the symbol's DROP, 0 = none; written by feed
    ages: Words  # [symbols_max, len(CHANNELS)] boot-time ns of the last receipt
    brain_stats: Words
    brain_hist: Words
    slots: npt.NDArray[Any]  # RECORD[slots]

    def __init__(self, path: Path, mapped: mmap.mmap, slots: int, symbols_max: int) -> None:
        self.path = path
        self.mask = slots - 1
        self._mapped: mmap.mmap | None = mapped
        offset = 0
        for name, (dtype, shape) in _parts(slots, symbols_max).items():
            count = int(np.prod(shape))
            setattr(self, name, np.frombuffer(mapped, dtype, count, offset).reshape(shape))
            offset += _pages(count * np.dtype(dtype).itemsize)

    def counters(self) -> dict[str, dict[str, int]]:
        """Every named counter of both sides."""
        return {
            "feed": dict(zip(FEED_COUNTERS, self.feed_stats.tolist(), strict=False)),
            "brain": dict(zip(BRAIN_COUNTERS, self.brain_stats.tolist(), strict=False)),
        }

    def close(self) -> None:
        """Let go of the mapping; the file stays. Views handed out before keep it alive."""
        for name in _parts(2, 1):
            setattr(self, name, None)
        mapped, self._mapped = self._mapped, None
        if mapped is not None:
            try:
                mapped.close()
            except BufferError:  # a caller still holds a view: the map ends with that view
                return


def create(path: str | os.PathLike[str], slots: int, symbols_max: int, world: str) -> Ring:
    """Make a ring file, replacing what lay at `path`; processes that map the old one keep it.

    Space is reserved at once: a tmpfs that overflows later kills by SIGBUS. Raises ValueError for
    a size that is no power of two, OSError when the space is not there.
    """
    if slots < 2 or slots & (slots - 1):
        raise ValueError(f"slots must be a power of two, not {slots}")
    if not 0 < symbols_max < 1 << 20:
        raise ValueError(f"symbols_max must lie in 1..2^20, not {symbols_max}")
    path = Path(path)
    size = file_size(slots, symbols_max)
    fresh = path.with_name(f"{path.name}.{os.getpid()}.new")
    fd = os.open(fresh, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(fd, 0, size)
        else:
            os.truncate(fd, size)
        mapped = mmap.mmap(fd, size)
    except BaseException:
        fresh.unlink(missing_ok=True)
        raise
    finally:
        os.close(fd)
    made = Ring(path, mapped, slots, symbols_max)
    made.words[W_LAYOUT] = _layout_hash()
    made.words[W_GENERATION] = time.time_ns()
    made.words[W_SLOTS] = slots
    made.words[W_SYMBOLS_MAX] = symbols_max
    made.words[W_WORLD] = world_word(world)
    made.words[W_NODE_PID] = os.getpid()
    made.words[W_MAGIC] = MAGIC
    fresh.replace(path)
    return made


def attach(path: str | os.PathLike[str]) -> Ring:
    """Map an existing ring file. Raises RingError when it is none or of another layout."""
    path = Path(path)
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        raise RingError(f"no ring at {path}: {error.strerror}") from error
    try:
        size = os.fstat(fd).st_size
        if size < PAGE_BYTES:
            raise RingError(f"{path} is too short for a ring")
        mapped = mmap.mmap(fd, size)
    finally:
        os.close(fd)
    words = np.frombuffer(mapped, np.int64, WORDS)
    magic, layout = int(words[W_MAGIC]), int(words[W_LAYOUT])
    slots, symbols_max = int(words[W_SLOTS]), int(words[W_SYMBOLS_MAX])
    if magic != MAGIC:
        raise RingError(f"{path} is not a ring")
    if layout != _layout_hash():
        raise RingError(f"{path} was made by another version")
    if slots < 2 or slots & (slots - 1) or size != file_size(slots, symbols_max):
        raise RingError(f"{path} is damaged: its size does not fit its header")
    return Ring(path, mapped, slots, symbols_max)


def adopt_or_create(
    path: str | os.PathLike[str], slots: int, symbols_max: int, world: str
) -> tuple[Ring, bool]:
    """The ring of a node that died, with a new generation, or a fresh one; and whether adopted."""
    try:
        found = attach(path)
    except RingError:
        return create(path, slots, symbols_max, world), False
    same = (
        found.mask + 1 == slots
        and len(found.symbols) == symbols_max
        and int(found.words[W_WORLD]) == world_word(world)
    )
    if not same:
        found.close()
        return create(path, slots, symbols_max, world), False
    found.words[W_GENERATION] = max(time.time_ns(), int(found.words[W_GENERATION]) + 1)
    found.words[W_NODE_PID] = os.getpid()
    return found, True


# --- atomics ---------------------------------------------------------------------------------

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
def log2_bucket(value: int) -> int:
    """Histogram bucket of a non-negative number: 0 for 0, b for [2^(b-1), 2^b), 63 at most."""
    bucket = 0
    while value > 0 and bucket < HIST_BUCKETS - 1:
        value >>= 1
        bucket += 1
    return bucket


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
