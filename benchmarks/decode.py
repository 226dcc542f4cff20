"""What does one frame cost, from bytes in a buffer to a record in the ring?

    buffer of FRAMES frames --decode()--> ring        firewall, continuity and publication included
    the same payloads --orjson.loads, msgspec typed--> Python object --float()--> sum of prices

300 symbols with digits of their own, so that no length repeats. Everything runs in one process,
in turns; each side's sum of prices is held against the true one. The rivals get the payloads cut
out already and check nothing.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import orjson

import ring
from benchmarks import frames
from benchmarks.report import FOLDER, Result
from feed import decode, lane
from feed.walk import SCRATCH_BYTES, SLACK_BYTES

FRAMES: Final = 20_000
SYMBOLS: Final = 300
ROUNDS: Final = 25
RIVAL_ROUNDS: Final = 7


def ours(payloads: Sequence[bytes], expected: float) -> list[float]:
    """Nanoseconds per frame of each round; the sum is read back from the ring, off the clock."""
    stream = frames.framed(payloads)
    buffer = np.zeros(SCRATCH_BYTES + len(stream) + SLACK_BYTES, np.uint8)
    end = SCRATCH_BYTES + len(stream)
    buffer[SCRATCH_BYTES:end] = np.frombuffer(stream, np.uint8)
    samples = []
    with tempfile.TemporaryDirectory(dir=FOLDER) as folder:
        made = ring.create(Path(folder) / "ring", 1 << 15, SYMBOLS, "bench")
        state = np.zeros(8, np.int64)
        lane_ = lane.make_lane(made)
        lane_.control[lane.BOUND_MS] = 60_000
        for _ in range(ROUNDS + 1):
            for row, name in enumerate(frames.symbol_names(SYMBOLS)):
                lane.set_symbol(lane_, row, name, lane.LIVE, 0)
            made.words[ring.TAIL] = made.words[ring.HEAD]
            began_ns = time.perf_counter_ns()
            decode.decode(buffer, SCRATCH_BYTES, end, 1, state, lane_)
            samples.append((time.perf_counter_ns() - began_ns) / len(payloads))
            head, tail = int(made.words[ring.HEAD]), int(made.words[ring.TAIL])
            found = made.slots[np.arange(tail, head) & made.mask]
            right = abs(float(found["a"].sum()) - expected) <= 1e-9 * expected
            if len(found) != len(payloads) or not right:
                raise RuntimeError(f"decode: {len(found)} records, {made.counters()['feed']}")
        del lane_
        made.close()
    return samples[1:]  # the first one learns the layout


def rivals() -> dict[str, Callable[[bytes], float]]:
    """Parsers of one wrapped aggTrade to its price."""
    found: dict[str, Callable[[bytes], float]] = {
        "orjson": lambda raw: float(orjson.loads(raw)["data"]["p"])
    }
    try:
        import msgspec
    except ImportError:  # a development requirement
        return found
    fields: list[Any] = [("E", int), ("a", int), ("s", str), ("p", str), ("q", str)]
    event = msgspec.defstruct("Event", [*fields, ("T", int), ("m", bool)], gc=False)
    typed = msgspec.json.Decoder(msgspec.defstruct("Frame", [("data", event)], gc=False)).decode
    found["msgspec typed"] = lambda raw: float(typed(raw).data.p)
    return found


def timed(price: Callable[[bytes], float], payloads: Sequence[bytes], expected: float) -> float:
    """One round of a rival, nanoseconds per frame."""
    began_ns = time.perf_counter_ns()
    total = sum(map(price, payloads))
    spent = (time.perf_counter_ns() - began_ns) / len(payloads)
    if abs(total - expected) > 1e-9 * expected:
        raise RuntimeError(f"a rival summed {total}, not {expected}")
    return spent


def run() -> list[Result]:
    """Ours and theirs, in turns."""
    wrapped, expected = frames.agg_trades(FRAMES, SYMBOLS)
    raw, _ = frames.agg_trades(FRAMES, SYMBOLS, wrapped=False)
    books, bids = frames.book_tickers(FRAMES, SYMBOLS)
    spent = {name: [] for name in rivals()}  # type: ignore[var-annotated]
    first = ours(wrapped, expected)
    for _ in range(RIVAL_ROUNDS):
        for name, price in rivals().items():
            spent[name].append(timed(price, wrapped, expected))
    samples = first + ours(wrapped, expected)
    results = [
        Result("decode aggTrade, combined stream", "ns/frame", samples, 120.0),
        Result("decode aggTrade, raw stream", "ns/frame", ours(raw, expected)),
        Result("decode bookTicker, combined stream", "ns/frame", ours(books, bids)),
    ]
    for name, times in spent.items():
        target = 6.0 if name.startswith("msgspec") else None
        ratio = [t / results[0].value for t in times]
        results.append(Result(f"{name} against ours", "x", ratio, target, at_most=False))
    return results
