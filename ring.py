"""Shared-memory ring: one writer, one reader, no locks, one file.

A record is visible only after the head passes it. The writer never overwrites what the reader
has not released; a ring that stays full is the caller's to report, never to hide. Either side may
die at any instruction: a half-written slot lies beyond the head and is written again, a released
slot was consumed. The file outlives both and belongs to the node, which makes and removes it.
Node, feed and brain each claim their role on the file for as long as they live, so that there are
never two writers of one word; a generation tells the children of a node that another one took over.

The file has four parts, each beginning on a page:

    words    int64[512]           header: constants, then one 128-byte block per writer
    symbols  ROW[symbols_max]     the node's table; id = row
    statistics                    counters, histograms, per-symbol tables; one writer per page
    slots    RECORD[slots]        a power of two, so slot = sequence & (slots - 1)

Head and tail own 128 bytes each (two cache lines: the adjacent-line prefetcher pulls pairs). Who
publishes and who waits goes by barrier.py, which orders what two processes see.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import mmap
import os
import struct
import time
import weakref
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

import latency
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
    "unknown_keys",
    "klines_dropped",
    "rotations",
    "uncorrected",
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
    "klines",
)
COUNTERS_MAX: Final = 128
assert len(FEED_COUNTERS) <= COUNTERS_MAX and len(BRAIN_COUNTERS) <= COUNTERS_MAX
HIST_ROWS: Final = 4
FEED_HISTS: Final = ("buffer_ns",)  # in a buffer's pass
BRAIN_HISTS: Final = (
    "receive_to_brain_ns",  # the oldest record of a batch
    "receive_to_signal_ns",  # from the record that closed the candle to the signal, made
    "receive_to_redis_ns",  # ... and to the answer of Redis that it is written
    "batch_records",
)
CHANNELS: Final = ("trade", "quote", "mark", "bar")  # columns of ages

# Roles: the byte of the file that their holder locks.
NODE, FEED, BRAIN = 0, 1, 2
ROLE_NAMES: Final = ("node", "feed", "brain")
_ROLE_PIDS: Final = (W_NODE_PID, FEED_PID, BRAIN_PID)
CLAIM_S: Final = 3.0  # children die with their node at once; so long their deaths are waited for
OWN_S: Final = 12.0  # a node that ends well drains for up to 10 s
CLAIM_POLL_S: Final = 0.05
_NO_LOCKS: Final = (errno.EINVAL, errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)

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
        "feed_hist": (np.int64, (HIST_ROWS, latency.BUCKETS)),
        "last_ids": (np.int64, (symbols_max,)),
        "lost": (np.int64, (symbols_max, 2)),
        "dropped": (np.int64, (symbols_max,)),
        "ages": (np.int64, (symbols_max, len(CHANNELS))),
        "brain_stats": (np.int64, (COUNTERS_MAX,)),
        "brain_hist": (np.int64, (HIST_ROWS, latency.BUCKETS)),
        "slots": (RECORD, (slots,)),
    }


def file_size(slots: int, symbols_max: int) -> int:
    """Bytes that a ring file of this shape takes."""
    return sum(
        _pages(int(np.prod(shape)) * np.dtype(dtype).itemsize)
        for dtype, shape in _parts(slots, symbols_max).values()
    )


def _layout_hash() -> int:
    names = f"{FEED_COUNTERS}{BRAIN_COUNTERS}{FEED_HISTS}{BRAIN_HISTS}"
    text = f"{RECORD.descr}{ROW.descr}{names}{_parts(2, 1)}"
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=7).digest(), "little")


def world_word(world: str) -> int:
    """A world's name as one header word."""
    return int.from_bytes(hashlib.blake2b(world.encode(), digest_size=7).digest(), "little")


class Ring:
    """Views onto one mapped ring file. Every array writes through; nothing here is copied."""

    words: Words
    symbols: npt.NDArray[Any]  # ROW[symbols_max], written by the node
    feed_stats: Words  # [COUNTERS_MAX], indices are positions in FEED_COUNTERS
    feed_hist: Words  # [HIST_ROWS, latency.BUCKETS], rows as FEED_HISTS
    last_ids: Words  # [symbols_max] last published trade id, 0 = none; feed's memory over a restart
    lost: Words  # [symbols_max, 2] market ms from, to of lost trades not yet corrected, 0 = none
    dropped: Words  # [symbols_max] sequence just after the symbol's DROP, 0 = none; written by feed
    ages: Words  # [symbols_max, len(CHANNELS)] boot-time ns of the last receipt
    brain_stats: Words
    brain_hist: Words  # [HIST_ROWS, latency.BUCKETS], rows as BRAIN_HISTS
    slots: npt.NDArray[Any]  # RECORD[slots]

    def __init__(self, path: Path, fd: int, slots: int, symbols_max: int) -> None:
        """Map the file behind `fd`, which is ours from here on: claims hang on it."""
        self.path = path
        self.mask = slots - 1
        mapped = mmap.mmap(fd, file_size(slots, symbols_max))
        self._mapped: mmap.mmap | None = mapped
        self._hold(fd)
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

    def _hold(self, fd: int) -> None:
        self._fd = fd
        self._let_go = weakref.finalize(self, os.close, fd)

    def claim(self, role: int, wait_s: float = CLAIM_S) -> None:
        """Be the one node, feed or brain of this file until `close` or our death, whatever kills.

        Raises RingError, after `wait_s`, when another process holds the role. Where the system or
        the file system has no locks that belong to a descriptor (Linux has), nothing is guarded.
        """
        end_s = time.monotonic() + wait_s
        while not _lock(self._fd, role):
            if time.monotonic() >= end_s:
                raise RingError(_held(self.path, role, int(self.words[_ROLE_PIDS[role]])))
            time.sleep(CLAIM_POLL_S)
        self.words[_ROLE_PIDS[role]] = os.getpid()

    def close(self) -> None:
        """Let go of mapping and claims; the file stays. Views handed out keep the map alive."""
        if self._let_go.alive:
            for role in range(len(ROLE_NAMES)):
                _lock(self._fd, role, fcntl.F_UNLCK)  # a map that outlives us shares the descriptor
        self._let_go()
        for name in _parts(2, 1):
            setattr(self, name, None)
        mapped, self._mapped = self._mapped, None
        if mapped is not None:
            try:
                mapped.close()
            except BufferError:  # a caller still holds a view: the map ends with that view
                return


def _lock(fd: int, role: int, how: int = fcntl.F_WRLCK) -> bool:
    """Lock a role's byte for this descriptor, or unlock it; False when another one has it."""
    if not hasattr(fcntl, "F_OFD_SETLK"):
        return True
    # struct flock of 64-bit Linux: type, whence, start, length, pid (0 for these locks)
    wanted = struct.pack("hh4xqqi4x", how, os.SEEK_SET, role, 1, 0)
    try:
        fcntl.fcntl(fd, fcntl.F_OFD_SETLK, wanted)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
    return True


def _held(path: Path, role: int, pid: int) -> str:
    return (
        f"Another {ROLE_NAMES[role]} (process {pid}) works on {path}: stop it, or give this node "
        "a name of its own with AEGIS_NODE_ID."
    )


def create(path: str | os.PathLike[str], slots: int, symbols_max: int, world: str) -> Ring:
    """Make a ring file, replacing what lay at `path`; processes that map the old one keep it.

    Whoever makes a file is its node. Space is reserved at once: a tmpfs that overflows later kills
    by SIGBUS. Raises ValueError for a size that is no power of two, OSError when the space is not
    there.
    """
    if slots < 2 or slots & (slots - 1):
        raise ValueError(f"slots must be a power of two, not {slots}")
    if not 0 < symbols_max < 1 << 20:
        raise ValueError(f"symbols_max must lie in 1..2^20, not {symbols_max}")
    path = Path(path)
    size = file_size(slots, symbols_max)
    fresh = path.with_name(f"{path.name}.new")  # one name: what a killed node left is used again
    fresh.unlink(missing_ok=True)
    fd = os.open(fresh, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(fd, 0, size)
        else:
            os.truncate(fd, size)
        made = Ring(path, fd, slots, symbols_max)
    except BaseException:
        os.close(fd)
        fresh.unlink(missing_ok=True)
        raise
    made.claim(NODE, 0)
    made.words[W_LAYOUT] = _layout_hash()
    made.words[W_GENERATION] = time.time_ns()
    made.words[W_SLOTS] = slots
    made.words[W_SYMBOLS_MAX] = symbols_max
    made.words[W_WORLD] = world_word(world)
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
        return Ring(path, fd, *_shape_of(path, fd))
    except BaseException:
        os.close(fd)
        raise


def _shape_of(path: Path, fd: int) -> tuple[int, int]:
    """(slots, symbols_max) of the ring file behind `fd`. Raises RingError."""
    size = os.fstat(fd).st_size
    if size < PAGE_BYTES:
        raise RingError(f"{path} is too short for a ring")
    words = np.frombuffer(os.pread(fd, PAGE_BYTES, 0), np.int64)
    magic, layout = int(words[W_MAGIC]), int(words[W_LAYOUT])
    slots, symbols_max = int(words[W_SLOTS]), int(words[W_SYMBOLS_MAX])
    if magic != MAGIC:
        raise RingError(f"{path} is not a ring")
    if layout != _layout_hash():
        raise RingError(f"{path} was made by another version")
    if slots < 2 or slots & (slots - 1) or size != file_size(slots, symbols_max):
        raise RingError(f"{path} is damaged: its size does not fit its header")
    return slots, symbols_max


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


def own(
    path: str | os.PathLike[str], slots: int, symbols_max: int, world: str, wait_s: float = OWN_S
) -> tuple[Ring, bool]:
    """As adopt_or_create, by the only node of this path: waits until another one has ended.

    Raises RingError when it does not end within `wait_s`.
    """
    path, end_s = Path(path), time.monotonic() + wait_s
    while True:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            if _lock(fd, NODE) and _names(path, fd):  # else it was removed while we waited
                made, adopted = adopt_or_create(path, slots, symbols_max, world)
                if adopted:  # the same file: never let go of its lock
                    made._let_go()
                    made._hold(os.dup(fd))
                return made, adopted
            if time.monotonic() >= end_s:
                header = os.pread(fd, WORDS * 8, 0).ljust(WORDS * 8, b"\0")
                raise RingError(_held(path, NODE, int(np.frombuffer(header, np.int64)[W_NODE_PID])))
        finally:
            os.close(fd)
        time.sleep(CLAIM_POLL_S)


def _names(path: Path, fd: int) -> bool:
    """Whether `path` still names the file behind `fd`."""
    try:
        return os.path.samestat(path.stat(), os.fstat(fd))
    except FileNotFoundError:
        return False
