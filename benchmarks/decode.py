"""What does one aggTrade frame cost, from bytes in a buffer to a record in the ring?

    buffer of FRAMES frames --decode()--> ring        firewall, continuity and publication included
    the same payloads --orjson.loads, msgspec typed--> Python object --float()--> sum of prices

Everything runs in one process, in turns, best of ROUNDS; each side's sum of prices is checked
against the true one. The rivals get the payloads cut out already and check nothing.

    python -m benchmarks.decode
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import orjson

import ring
from feed import decode, lane
from feed.walk import SCRATCH_BYTES, SLACK_BYTES
from records import TRADE

FRAMES = 2_000
ROUNDS = 60
T0 = 1_795_000_000_000


def payload(number: int, wrapped: bool) -> bytes:
    """One aggTrade in wire order, prices moving."""
    event = (
        b'{"e":"aggTrade","E":%d,"a":%d,"s":"BTCUSDT","p":"%d.%d0","q":"0.%03d","nq":"0.030",'
        b'"f":8200000001,"l":8200000003,"T":%d,"m":%s,"st":1}'
    ) % (
        T0 + number, 3501234567 + number, 84000 + number % 97, number % 10, 1 + number % 999,
        T0 + number - 118, b"true" if number % 3 else b"false",
    )  # fmt: skip
    return b'{"stream":"btcusdt@aggTrade","data":%s}' % event if wrapped else event


def best_ns(work: Callable[[], float], expected: float, prepare: Callable[[], None]) -> float:
    """Best time of one round per frame; every round's answer is checked."""
    best = float("inf")
    for _ in range(ROUNDS):
        prepare()
        began = time.perf_counter_ns()
        answer = work()
        best = min(best, time.perf_counter_ns() - began)
        assert abs(answer - expected) < 1e-3, (answer, expected)
    return best / FRAMES


def ours(payloads: list[bytes], expected: float) -> float:
    """decode() over one buffer; the sum is read back from the ring, outside the clock."""
    stream = b"".join(b"\x81\x7e" + len(p).to_bytes(2, "big") + p for p in payloads)
    buffer = np.zeros(SCRATCH_BYTES + len(stream) + SLACK_BYTES, np.uint8)
    end = SCRATCH_BYTES + len(stream)
    buffer[SCRATCH_BYTES:end] = np.frombuffer(stream, np.uint8)
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        made = ring.create(Path(folder) / "ring", 1 << 14, 16, "bench")
        state = np.zeros(8, np.int64)
        lane_ = lane.make_lane(made)
        lane_.control[lane.BOUND_MS] = 60_000

        def prepare() -> None:
            lane.set_symbol(lane_, 0, "BTCUSDT", lane.LIVE, 0)
            made.words[ring.TAIL] = made.words[ring.HEAD]

        best = float("inf")
        for _ in range(ROUNDS):
            prepare()
            began = time.perf_counter_ns()
            decode.decode(buffer, SCRATCH_BYTES, end, 1, state, lane_)
            best = min(best, time.perf_counter_ns() - began)
            head, tail = int(made.words[ring.HEAD]), int(made.words[ring.TAIL])
            found = made.slots[np.arange(tail, head) & made.mask]
            answer = float(found["a"][found["kind"] == TRADE].sum())
            assert abs(answer - expected) < 1e-3, (answer, expected)
        made.close()
    return best / FRAMES


def rivals() -> dict[str, Callable[[bytes], float]]:
    """Parsers of one wrapped payload to its price."""
    found: dict[str, Callable[[bytes], float]] = {
        "orjson": lambda raw: float(orjson.loads(raw)["data"]["p"])
    }
    try:
        import msgspec
    except ImportError:
        return found

    fields: list[Any] = [("E", int), ("a", int), ("s", str), ("p", str), ("q", str)]
    event = msgspec.defstruct("Event", [*fields, ("T", int), ("m", bool)], gc=False)
    typed = msgspec.json.Decoder(msgspec.defstruct("Frame", [("data", event)], gc=False)).decode
    found["msgspec typed"] = lambda raw: float(typed(raw).data.p)
    return found


def main() -> None:
    """Print the table."""
    wrapped = [payload(number, True) for number in range(FRAMES)]
    raw = [payload(number, False) for number in range(FRAMES)]
    expected = sum(float(orjson.loads(p)["p"]) for p in raw)
    combined = ours(wrapped, expected)
    rows = {"feed.decode, combined": combined, "feed.decode, raw": ours(raw, expected)}
    for name, price in rivals().items():

        def work(price: Callable[[bytes], float] = price) -> float:
            return sum(map(price, wrapped))

        rows[name] = best_ns(work, expected, lambda: None)
    for name, spent in rows.items():
        print(f"{name:24} {spent:8.1f} ns/frame  {spent / combined:6.2f} x")


if __name__ == "__main__":
    main()
