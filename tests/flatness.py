"""Does memory stay flat while ticks go by? Bytes to ring to candles, as often as asked.

    python tests/flatness.py --ticks 100000000

One pass decodes FRAMES frames into a ring and has the brain's kernel consume them, one market
second later each time, so that bars of every timeframe close on the way. Three gauges, none of
which the others replace: tracemalloc sees Python's objects, the resident size sees everything that
is kept, and Numba's own counter sees arrays that a kernel makes and gives back at once.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numba import njit
from numba.core.runtime import _nrt_python, rtsys

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import ring as rings
from benchmarks import frames
from brain import kernel
from brain.closing import WHERE
from brain.state import ACTIVE, LAST_ID, NEWEST_ID, TIMEFRAMES, memory_state
from feed import decode, lane
from feed.walk import SCRATCH_BYTES, SLACK_BYTES
from records import CLOCK, NO_SYMBOL, SYMBOL, write_name
from ring import BRAIN_COUNTERS, COUNTERS_MAX, HEAD, TAIL

FRAMES, SYMBOLS = 20_000, 100
WARM_PASSES = 200  # until every buffer has its size and every bar closed once or twice
PYTHON_BYTES_MAX = 192 * 1024  # 45 to 85 kB lie in the interpreter's free lists, however many ticks
RESIDENT_BYTES_MAX = 4 << 20  # pages that the allocator takes and keeps; not one byte per 20 ticks
ARRAYS_PER_TICK_MAX = 0.05  # views of arguments, made per call and so per thousands of ticks


@dataclass(frozen=True)
class Verdict:
    """What grew between the end of the warm-up and the end."""

    ticks: int
    closes: int
    seconds: float
    python_bytes: int
    resident_bytes: int
    arrays_per_tick: float

    @property
    def flat(self) -> bool:
        return (
            self.python_bytes <= PYTHON_BYTES_MAX
            and self.resident_bytes <= RESIDENT_BYTES_MAX
            and self.arrays_per_tick <= ARRAYS_PER_TICK_MAX
        )


@njit(nogil=True)
def shift(slots: Any, tail: int, head: int, by_ns: int) -> None:
    """Let the records tail..head happen later."""
    for sequence in range(tail, head):
        slots[sequence & (len(slots) - 1)].exch_ns += by_ns


def resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


class Chain:
    """Decoder, ring and kernel in one process; `turn` is one pass."""

    def __init__(self, folder: Path) -> None:
        payloads, _ = frames.agg_trades(FRAMES, SYMBOLS)
        stream = frames.framed(payloads)
        self.end = SCRATCH_BYTES + len(stream)
        self.buffer = np.zeros(self.end + SLACK_BYTES, np.uint8)
        self.buffer[SCRATCH_BYTES : self.end] = np.frombuffer(stream, np.uint8)
        self.ring = rings.create(folder / "ring", 1 << 15, SYMBOLS, "flat")
        self.raw = kernel.raw_view(self.ring.slots)
        self.lane = lane.make_lane(self.ring)
        self.lane.control[lane.BOUND_MS] = 60_000
        self.state = memory_state(SYMBOLS)
        self.socket = np.zeros(8, np.int64)
        self.stats = np.zeros(COUNTERS_MAX, np.int64)
        self.events, self.where = kernel.new_events(), np.zeros(WHERE, np.int64)
        self.masks = np.zeros(TIMEFRAMES, np.int64)
        self.clock = np.zeros(1, rings.RECORD)
        self.clock["kind"], self.clock["symbol"] = CLOCK, NO_SYMBOL
        self.clock["exch_ns"] = frames.T0_MS * 1_000_000
        self.seq = self.passes = 0
        for row, name in enumerate(frames.symbol_names(SYMBOLS)):
            lane.set_symbol(self.lane, row, name, lane.LIVE, 0)
            first = np.zeros(1, rings.RECORD)
            write_name(first, 0, name)
            first["kind"], first["symbol"] = SYMBOL, row
            lane.emit(self.lane, first, 0)
        self.consume()

    def consume(self) -> None:
        words = self.ring.words
        while self.seq < words[HEAD]:
            self.seq, _ = kernel.consume(
                words, self.ring.slots, self.raw, self.state.arrays, self.events, self.where,
                self.masks, self.stats, self.seq, kernel.RECORDS_MAX,
            )  # fmt: skip

    def turn(self) -> None:
        """FRAMES ticks from bytes to candles."""
        self.lane.symbols[:, lane.LAST_ID] = 0  # the same ids come again, as if they were new
        self.state.arrays.sym[:, LAST_ID] = self.state.arrays.sym[:, NEWEST_ID] = 0
        tail = int(self.ring.words[TAIL])
        decode.decode(self.buffer, SCRATCH_BYTES, self.end, 1, self.socket, self.lane)
        lane.emit(self.lane, self.clock, 0)
        shift(self.ring.slots, tail, int(self.ring.words[HEAD]), self.passes * 1_000_000_000)
        self.consume()
        self.passes += 1

    def count(self, name: str) -> int:
        return int(self.stats[BRAIN_COUNTERS.index(name)])


def arrays_made() -> int:
    return int(rtsys.get_allocation_stats().alloc)


def run(ticks: int, plant: Callable[[], object] = lambda: None) -> Verdict:
    """Warm up, then `ticks` ticks, `plant` once a pass; what grew."""
    _nrt_python.memsys_enable_stats()
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        path = Chain(Path(folder))
        for _ in range(WARM_PASSES):
            path.turn()
        plant()
        closes, passes = path.count("closes"), -(-ticks // FRAMES)
        gc.collect()
        tracemalloc.start()
        began_python, began_s = tracemalloc.get_traced_memory()[0], time.perf_counter()
        began_resident, began_arrays = resident_bytes(), arrays_made()
        for _ in range(passes):
            path.turn()
            plant()
        gc.collect()
        verdict = Verdict(
            ticks=passes * FRAMES,
            closes=path.count("closes") - closes,
            seconds=round(time.perf_counter() - began_s, 1),
            python_bytes=tracemalloc.get_traced_memory()[0] - began_python,
            resident_bytes=resident_bytes() - began_resident,
            arrays_per_tick=(arrays_made() - began_arrays) / (passes * FRAMES),
        )
        tracemalloc.stop()
        assert path.count("trades") == (passes + WARM_PASSES) * FRAMES, "every tick was consumed"
        assert int(path.state.arrays.sym[:, ACTIVE].sum()) == SYMBOLS
        path.ring.close()
    return verdict


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="memory over many ticks")
    parser.add_argument("--ticks", type=int, default=100_000_000)
    found = run(parser.parse_args().ticks)
    print(json.dumps(asdict(found) | {"flat": found.flat}))
    raise SystemExit(0 if found.flat else 1)
