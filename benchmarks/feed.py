"""What does a tick cost from the socket to a reader in another process?

    exchange ──WebSocket──▶ feed process ──ring──▶ this process: counts, sums the prices

Any server of combined streams will do: `aegis bench feed --url ws://HOST:PORT --symbols N
--ticks N [--rate R]` subscribes to aggTrade of N symbols, reads N ticks and ends with one line:

    {"ticks", "seconds", "cpu_seconds", "price_sum", "latency_us": {"p50", "p99", "max"}}

seconds and cpu_seconds (feed and reader together, kernel time included) lie between the first and
the last tick. With --rate the id of a trade must be CLOCK_MONOTONIC in ns, read just before it was
sent; latency is from there to the reader, without the first tenth. Compiling is done, and told,
before anything is subscribed. Ids need not be consecutive here: nothing is healed.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import numpy as np
import uvloop
from numba import njit

import barrier
import ring as rings
from benchmarks import frames
from benchmarks.report import FOLDER, Result
from feed import binance, lane, warm
from feed.address import Address
from feed.link import Link
from records import TRADE
from ring import Ring

SLOTS: Final = 1 << 17
SPINS: Final = 200
IDLE_S: Final = 8.0  # without a tick for so long the run is over
WAIT_S: Final = 60.0  # for the first tick
ROUNDS: Final = 5
TICKS: Final = 600_000
SYMBOLS: Final = 300
RIVAL_TICKS: Final = 100_000
ROOT: Final = Path(__file__).resolve().parent.parent


@njit(nogil=True, cache=True)
def read(words: Any, slots: Any, tail: int, head: int, sums: Any, ids: Any) -> int:
    """Take the records tail..head: sums = (ticks, sum of prices); their ids. How many ticks."""
    found, mask = 0, len(slots) - 1
    for sequence in range(tail, head):
        record = slots[sequence & mask]
        if record.kind == TRADE:
            sums[0] += 1.0
            sums[1] += record.a
            ids[found] = record.id
            found += 1
    barrier.store_release(words, rings.TAIL, head)
    return found


def run_feed(path: str, url: str, names: list[str], ready: Any) -> None:
    """The feed's own link, connection and decoder; ends when it is killed."""
    made = rings.attach(path)
    ours = lane.make_lane(made)
    ours.control[lane.BOUND_MS] = 86_400_000
    ours.control[lane.LOOSE_IDS] = 1
    for row, name in enumerate(names):
        lane.set_symbol(ours, row, name, lane.LIVE, 0)
    ready.set()

    async def serve() -> None:
        at = url if "/stream" in url else binance.stream_url(url, binance.MARKET)
        link = Link(
            at, binance.MARKET, ours, made.feed_hist, lambda _: None, lambda _link, _rows: None,
            Address(),
        )  # fmt: skip
        link.subscribe(dict(enumerate(names)))
        await link.run()

    uvloop.run(serve())


def cpu_clock(pid: int) -> int:
    """The clock id of a process's CPU time: ~pid << 3 | CPUCLOCK_SCHED, as libc computes it."""
    return (~pid << 3) | 2


class Reader:
    """Reads a ring until `ticks` came, or none for IDLE_S; what it saw."""

    def __init__(self, made: Ring, ticks: int, pid: int, paced: bool) -> None:
        self.ring, self.wanted, self.paced = made, ticks, paced
        self.clocks = (time.CLOCK_PROCESS_CPUTIME_ID, cpu_clock(pid))
        self.sums = np.zeros(2)
        self.ids = np.zeros(SLOTS, np.int64)
        self.latencies: list[np.ndarray] = []
        self.tail = 0
        read(made.words, made.slots, 0, 0, self.sums, self.ids)
        barrier.wait_records(made.words, 0, 1, 1)

    def cpu_s(self) -> float:
        return sum(time.clock_gettime(clock) for clock in self.clocks)

    def run(self) -> dict[str, Any]:
        """Blocks for the whole run."""
        words, slots = self.ring.words, self.ring.slots
        began_s = began_cpu_s = 0.0
        last_s, bound_s = time.perf_counter(), WAIT_S
        while self.sums[0] < self.wanted and time.perf_counter() - last_s < bound_s:
            head = barrier.wait_records(words, self.tail, SPINS, barrier.SLEEP_NS_MAX)
            if head == self.tail:
                continue
            first = self.sums[0] == 0
            if first:
                began_s, began_cpu_s = time.perf_counter(), self.cpu_s()
            found = read(words, slots, self.tail, head, self.sums, self.ids)
            self.tail = head
            if found and self.paced:
                self.latencies.append(time.monotonic_ns() - self.ids[:found])
            if found:
                last_s, bound_s = time.perf_counter(), IDLE_S
        return self.result(last_s - began_s, self.cpu_s() - began_cpu_s)

    def result(self, seconds: float, cpu_seconds: float) -> dict[str, Any]:
        made: dict[str, Any] = {
            "ticks": int(self.sums[0]),
            "seconds": seconds,
            "cpu_seconds": cpu_seconds,
            "price_sum": float(self.sums[1]),
        }
        if self.latencies:
            spent = np.concatenate(self.latencies)
            kept = np.sort(spent[len(spent) // 10 :]) / 1e3
            made["latency_us"] = {
                "p50": float(kept[len(kept) // 2]),
                "p99": float(kept[len(kept) * 99 // 100]),
                "max": float(kept[-1]),
            }
        return made


def measure(url: str, names: list[str], ticks: int, paced: bool) -> dict[str, Any]:
    """One run against a server that is there already."""
    began_s = time.perf_counter()
    warm.warm()
    with tempfile.TemporaryDirectory(dir=FOLDER) as folder:
        made = rings.create(Path(folder) / "ring", SLOTS, max(len(names), 2), "bench")
        context = multiprocessing.get_context("spawn")
        ready = context.Event()
        child = context.Process(
            target=run_feed, args=(str(made.path), url, names, ready), daemon=True
        )
        child.start()
        try:
            assert child.pid is not None
            reader = Reader(made, ticks, child.pid, paced)
            if not ready.wait(WAIT_S):
                raise RuntimeError("the feed did not start")
            print(f"ready after {time.perf_counter() - began_s:.1f} s", file=sys.stderr, flush=True)
            result = reader.run()
            feed = made.counters()["feed"]
            result["refused"] = {
                name: count
                for name, count in feed.items()
                if count and (name.startswith("refused") or name in ("malformed", "conflated"))
            }
        finally:
            child.kill()
            child.join()
            made.close()
    return result


def against_sender(ticks: int, measure_at: Callable[[int], dict[str, Any]]) -> dict[str, Any]:
    """One run against a sender of our own; count and sum of prices are checked."""
    argv = [sys.executable, "-m", "benchmarks.sender", "--ticks", str(ticks)]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, cwd=ROOT) as sender:
        try:
            assert sender.stdout is not None
            hello = json.loads(sender.stdout.readline())
            found = measure_at(int(hello["port"]))
        finally:
            sender.kill()
    right = abs(found["price_sum"] - hello["price_sum"]) <= 1e-9 * hello["price_sum"]
    if found["ticks"] != ticks or not right:
        raise RuntimeError(f"feed: {found} of {hello}")
    return found


def rival_at(port: int) -> dict[str, Any]:
    """websockets and orjson, in a process of their own."""
    words = [str(port), str(SYMBOLS), str(RIVAL_TICKS)]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.rival", *words],
        capture_output=True, text=True, check=True, timeout=120, cwd=ROOT,
    )  # fmt: skip
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def ours_at(port: int) -> dict[str, Any]:
    names = frames.symbol_names(SYMBOLS)
    return measure(f"ws://127.0.0.1:{port}", names, TICKS, paced=False)


def run() -> list[Result]:
    """Ours and the usual loop in turns, each against a fresh sender."""
    mine, theirs = [], []
    for _ in range(ROUNDS):
        mine.append(against_sender(TICKS, ours_at))
        theirs.append(against_sender(RIVAL_TICKS, rival_at))
    rates = [each["ticks"] / each["seconds"] / 1e6 for each in mine]
    rival = [each["ticks"] / each["seconds"] / 1e6 for each in theirs]
    cpu = [1e6 * each["cpu_seconds"] / each["ticks"] for each in mine]
    ratio = [a / b for a, b in zip(rates, rival, strict=True)]
    return [
        Result("feed, WebSocket to ring's reader", "M ticks/s", rates, 1.5, at_most=False),
        Result("feed, CPU of feed and reader", "us/tick", cpu),
        Result("websockets + orjson loop", "M ticks/s", rival),
        Result("feed against that loop", "x", ratio, 7.0, at_most=False),
    ]


def main(argv: list[str]) -> int:
    """`bench feed`."""
    parser = argparse.ArgumentParser(prog="aegis bench feed", description="socket to ring reader")
    parser.add_argument("--url", required=True, help="ws:// address of a combined-stream server")
    parser.add_argument("--symbols", type=int, default=300)
    parser.add_argument("--ticks", type=int, default=600_000)
    parser.add_argument("--rate", type=float, default=0.0, help="ticks/s that the server sends")
    options = parser.parse_args(argv)
    result = measure(
        options.url, frames.symbol_names(options.symbols), options.ticks, options.rate > 0
    )
    print(json.dumps(result), flush=True)
    return 0 if result["ticks"] == options.ticks else 1


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
