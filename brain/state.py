"""Everything that the brain knows, as flat arrays on one file beside the ring.

A brain that is killed finds its state as it was: the file is mapped, every kernel writes in place,
and nothing else is remembered. The file is used again only when its layout, the code of the
kernels and the ring behind it are the same; otherwise it begins empty and the feed is asked for
everything; that wish, and each symbol that needs a snapshot, is remembered in the file until it is
granted. Other processes may map it to read candles (`open_state(..., create=False)`).

    control    i8[64]             layout, code, ring, progress
    names      i8[S, 4]           symbol name as in the SYMBOL record, 32 bytes
    sym        i8[S, 32]          per symbol: ids, flags, counts, ends of bars
    px         f8[S, 16]          per symbol: last trade, quote, mark, nearest followed levels
    forming_at i8[S, T]           open time of the forming bar, ms; -1 = none yet
    forming    f8[S, T, 8]        open high low close volume quote taker trades
    counts     i8[S, T]           candles ever closed; the newest lies at (count - 1) & 127
    closed_at  i8[S, T, 128]      open times, ms
    closed     f8[S, T, 128, 8]   as forming
    ind        f8[S, T, 64]       indicators.py
    smc        f8[S, T, 64]       smc.py: two structures, range, levels, sessions
    zones      f8[S, T, 3, 2, 8, 4]   smc.py: gaps, blocks, pools; bullish, bearish
    follow     i8[S, 16, 6]       open virtual signals: key, times, side
    levels     f8[S, 16, 4]       their entry, stop, target

S = rows of the ring's symbol table, T = timeframes.
"""

from __future__ import annotations

import hashlib
import mmap
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from records import TIMEFRAME_NAMES, TIMEFRAMES_MIN

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

TIMEFRAMES: Final = len(TIMEFRAMES_MIN)
DAYS: Final = TIMEFRAMES_MIN.index(1440)  # the daily timeframe
HISTORY: Final = 128  # closed candles kept: warm-up brings 120; a power of two
HISTORY_MASK: Final = HISTORY - 1
FOLLOWED: Final = 16  # open virtual signals per symbol: three rules x three timeframes and spare
assert HISTORY & HISTORY_MASK == 0
BYTES_PER_SYMBOL_MAX: Final = 64 * 1024

KERNEL_FILES: Final = (
    "state.py", "events.py", "candles.py", "indicators.py", "smc.py", "follow.py", "closing.py",
    "history.py", "kernel.py", "picture.py", "gather.py",
    "features.py",
)  # fmt: skip

# control
C_MAGIC, C_LAYOUT, C_CODE, C_RING, C_WORLD, C_SYMBOLS, C_SEQ, C_CLOCK_NS, C_SERIAL = range(9)
C_ASK_ALL: Final = 9  # 1 until the feed was asked for every symbol, over however many deaths
C_ASKING, C_ASKED_NS, C_SUSPECT = 10, 11, 12  # guard.py: key of the rule that is asked, since when
C_OFF: Final = 16  # and keys of rules that are off
OFF_MAX: Final = 8
MAGIC: Final = 0x4E49_4152_4241  # "ABRAIN"

# sym
(
    ACTIVE,  # 1 once the symbol was announced
    LAST_ID,  # newest trade id in the candles; 0 = none since the last announcement
    NEWEST_ID,  # newest trade id ever counted; an announcement does not reset it
    TRADES,  # trades consumed, each id once
    GAPS,  # jumps of the id that nobody announced
    LOST,  # trades that feed declared lost
    SKIPPED,  # ids covered by the bars of a fresh announcement instead of trades
    DEGRADED,  # 1 between SYMBOL or GAP and HEALED
    SUSPECT_UNTIL_NS,  # no signal before: a print was far from the reference
    QUOTE_ID,
    QUOTE_NS,  # exchange time of the newest quote
    MARK_NS,
    TRADE_NS,  # exchange time of the newest trade
    NEXT_END_MS,  # end of the forming 1m bar: the only end that a CLOCK has to look at
    OPEN_SIGNALS,
    NEXT_DEADLINE_MS,  # earliest time-out of the symbol's open signals
    LATE,
    BROKEN,  # 1 from a jump of the id, or a death while it was written, to its next announcement
    WAITS,  # sequence behind the record that closed a candle on which a rule must be asked
) = range(19)
# px
LAST, BID, BID_QTY, ASK, ASK_QTY, MARK_PRICE, INDEX_PRICE, FUNDING, LEVEL_ABOVE, LEVEL_BELOW = (
    range(10)
)
# bars
OPEN, HIGH, LOW, CLOSE, VOLUME, QUOTE_VOLUME, TAKER, COUNT = range(8)
BAR_FIELDS: Final = (
    "open", "high", "low", "close", "volume", "quote_volume", "taker_buy", "trades",
)  # fmt: skip
# follow
F_KEY, F_KNOWN_NS, F_DEADLINE_MS, F_SIDE, F_TIMEFRAME, F_BARS_FROM_MS = range(6)
# levels
L_ENTRY, L_STOP, L_TARGET = range(3)

CANDLE: Final = np.dtype([("open_ms", "<i8"), *[(name, "<f8") for name in BAR_FIELDS]])
READ_ATTEMPTS: Final = 100  # a reader that meets a close in progress looks again


class Arrays(NamedTuple):
    """What the kernels see: the arrays of the file, in its order."""

    control: Ints
    names: Ints
    sym: Ints
    px: Floats
    forming_at: Ints
    forming: Floats
    counts: Ints
    closed_at: Ints
    closed: Floats
    ind: Floats
    smc: Floats
    zones: Floats
    follow: Ints
    levels: Floats


def _shapes(symbols: int) -> dict[str, tuple[type, tuple[int, ...]]]:
    s, t = symbols, TIMEFRAMES
    return {
        "control": (np.int64, (64,)),
        "names": (np.int64, (s, 4)),
        "sym": (np.int64, (s, 32)),
        "px": (np.float64, (s, 16)),
        "forming_at": (np.int64, (s, t)),
        "forming": (np.float64, (s, t, 8)),
        "counts": (np.int64, (s, t)),
        "closed_at": (np.int64, (s, t, HISTORY)),
        "closed": (np.float64, (s, t, HISTORY, 8)),
        "ind": (np.float64, (s, t, 64)),
        "smc": (np.float64, (s, t, 64)),
        "zones": (np.float64, (s, t, 3, 2, 8, 4)),
        "follow": (np.int64, (s, FOLLOWED, 6)),
        "levels": (np.float64, (s, FOLLOWED, 4)),
    }


def _bytes(shape: tuple[int, ...]) -> int:
    return (int(np.prod(shape)) * 8 + 63) // 64 * 64


def file_size(symbols: int) -> int:
    """Bytes of the state file for this many symbols."""
    return sum(_bytes(shape) for _, shape in _shapes(symbols).values())


def bytes_per_symbol() -> int:
    return (file_size(1_001) - file_size(1)) // 1_000


assert bytes_per_symbol() <= BYTES_PER_SYMBOL_MAX


def _hash(text: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(text, digest_size=7).digest(), "little")


def layout_hash() -> int:
    return _hash(repr((_shapes(1), CANDLE.descr)).encode())


def code_hash() -> int:
    """Of every kernel's source: a state that other code wrote is not continued."""
    folder = Path(__file__).parent
    return _hash(b"".join((folder / name).read_bytes() for name in KERNEL_FILES))


def state_path(ring_path: str | os.PathLike[str]) -> Path:
    """Where the brain of this ring keeps its state."""
    return Path(ring_path).with_suffix(".brain")


@dataclass(frozen=True, slots=True)
class State:
    """One mapped state file; `fresh` when it began empty."""

    path: Path
    arrays: Arrays
    fresh: bool

    @property
    def symbols_max(self) -> int:
        return len(self.arrays.sym)

    def name(self, row: int) -> str:
        return self.arrays.names[row].tobytes().rstrip(b"\0").decode()

    def row(self, name: str) -> int | None:
        """The row of an announced symbol, or None."""
        for row in np.flatnonzero(self.arrays.sym[:, ACTIVE]):
            if self.name(int(row)) == name:
                return int(row)
        return None


class StateError(Exception):
    """No usable state at this path; the sentence says why."""


def clear_symbol(a: Arrays, row: int) -> None:
    """Forget a symbol; Python's twin of the kernel's reset, for start-up."""
    for name in ("names", "sym", "forming", "counts", "closed_at", "closed", "zones", "follow"):
        getattr(a, name)[row] = 0
    a.forming_at[row] = -1
    a.px[row] = a.ind[row] = a.smc[row] = np.nan
    a.levels[row] = 0.0


def open_state(
    path: str | os.PathLike[str],
    symbols_max: int,
    *,
    ring_identity: int = 0,
    world: int = 0,
    create: bool = True,
) -> State:
    """Map the state at `path`; with `create`, begin anew unless everything about it fits.

    Without `create` a missing or foreign file raises StateError: readers never make one.
    `ring_identity` and `world` name the ring whose progress the file holds.
    """
    path = Path(path)
    arrays = _map_file(path, symbols_max)
    if not create:
        if arrays is None:
            raise StateError(f"no brain state at {path}")
        if int(arrays.control[C_LAYOUT]) != layout_hash():
            raise StateError(f"{path} was written by another version")
        return State(path, arrays, fresh=False)
    wanted = {
        C_LAYOUT: layout_hash(),
        C_CODE: code_hash(),
        C_RING: ring_identity,
        C_WORLD: world,
        C_SYMBOLS: symbols_max,
        C_MAGIC: MAGIC,  # last: before it nothing here counts
    }
    if arrays is not None and all(int(arrays.control[i]) == value for i, value in wanted.items()):
        return State(path, arrays, fresh=False)
    return State(path, _begin(path, symbols_max, wanted), fresh=True)


def _map_file(path: Path, symbols_max: int) -> Arrays | None:
    """The arrays of an existing file of the right size, or None."""
    if not path.exists() or path.stat().st_size != file_size(symbols_max):
        return None
    with path.open("r+b") as file:
        return _map(mmap.mmap(file.fileno(), file_size(symbols_max)), symbols_max)


def _begin(path: Path, symbols_max: int, wanted: Mapping[int, int]) -> Arrays:
    """An empty state in a new file: whoever maps the old one keeps it as it is."""
    size = file_size(symbols_max)
    path.unlink(missing_ok=True)
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(fd, 0, size)
        else:
            os.ftruncate(fd, size)
        arrays = _map(mmap.mmap(fd, size), symbols_max)
    finally:
        os.close(fd)
    for row in range(symbols_max):
        clear_symbol(arrays, row)
    arrays.control[C_ASK_ALL] = 1
    for index, value in wanted.items():
        arrays.control[index] = value
    return arrays


def _map(mapped: mmap.mmap, symbols: int) -> Arrays:
    made: list[npt.NDArray[Any]] = []
    offset = 0
    for dtype, shape in _shapes(symbols).values():
        count = int(np.prod(shape))
        made.append(np.frombuffer(mapped, dtype, count, offset).reshape(shape))
        offset += _bytes(shape)
    return Arrays(*made)


def follows(a: Arrays, row: int, key: int) -> bool:
    """Is this signal in the follow table?"""
    return bool((a.follow[row, :, F_KEY] == key).any())


def memory_state(symbols_max: int) -> State:
    """A state in plain memory: for warming kernels and for tests."""
    arrays = Arrays(*[np.zeros(shape, dtype) for dtype, shape in _shapes(symbols_max).values()])
    for row in range(symbols_max):
        clear_symbol(arrays, row)
    return State(Path(), arrays, fresh=True)


def candles(state: State, symbol: str | int, timeframe: str) -> npt.NDArray[Any]:
    """Closed candles of a symbol (name or row), oldest first, as CANDLE records; a copy.

    Empty for an unknown symbol. Safe beside a running brain: a read that meets a close is repeated.
    """
    row = state.row(symbol) if isinstance(symbol, str) else symbol
    t = TIMEFRAME_NAMES.index(timeframe)
    if row is None:
        return np.empty(0, CANDLE)
    a = state.arrays
    for _ in range(READ_ATTEMPTS):
        count = int(a.counts[row, t])
        out = _window(a, row, t, count)
        if int(a.counts[row, t]) == count and _contiguous(out, t):
            return out
        time.sleep(0)  # let the writer finish
    raise StateError(f"the candles of {symbol} {timeframe} change faster than they can be read")


def _window(a: Arrays, row: int, t: int, count: int) -> npt.NDArray[Any]:
    kept = min(count, HISTORY)
    order = np.arange(count - kept, count) & HISTORY_MASK
    out = np.empty(kept, CANDLE)
    out["open_ms"] = a.closed_at[row, t][order]
    values = a.closed[row, t][order]
    for column, name in enumerate(BAR_FIELDS):
        out[name] = values[:, column]
    return out


def _contiguous(window: npt.NDArray[Any], t: int) -> bool:
    step = TIMEFRAMES_MIN[t] * 60_000
    return bool((np.diff(window["open_ms"]) == step).all())
