"""The ring between two processes: how many records a second, how long is a hop, what costs waiting?

    rate       writer process ──64-byte records, one or 64 per publish──▶ this process
    ping-pong  this process ──▶ other process ──▶ this process, over two rings, both spinning
    wake-up    writer publishes one record each WAKE_EVERY_S to a reader that sleeps on the futex
    idle       the CPU share of a reader that waits in vain, as the brain waits

Every record is filled whole and read whole: the reader checks each id and the sum of the prices.
A rate means little without the distance of the two cores, so the ping-pong stands beside it.
"""

from __future__ import annotations

import multiprocessing
import tempfile
import time
from pathlib import Path
from typing import Any, Final

import numpy as np
from numba import njit

import barrier
import ring as rings
from benchmarks.report import FOLDER, Result
from records import RECORD
from ring import Ring

SLOTS: Final = 1 << 16
RECORDS: Final = 20_000_000
HOPS: Final = 200_000
WAKES: Final = 300
WAKE_EVERY_S: Final = 0.003
IDLE_S: Final = 2.0
ROUNDS: Final = 5
SPINS: Final = 1_000_000
GIVE_UP_S: Final = 60.0


@njit(nogil=True, cache=True)
def produce(words: Any, slots: Any, cursor: Any, first: int, count: int, batch: int) -> int:
    """Write records `first`.. whole, publishing every `batch`; how many, less if nobody reads."""
    mask, done = len(slots) - 1, 0
    while done < count:
        spins = 0
        while barrier.room(words, cursor, len(slots)) < batch:
            spins += 1
            if spins > SPINS:
                return done
            barrier.pause()
            cursor[1] = barrier.load_acquire(words, rings.TAIL)
        for _ in range(min(batch, count - done)):
            number = first + done
            r = slots[cursor[0] & mask]
            r.exch_ns, r.recv_ns, r.id = number, number, number
            r.a, r.b, r.c, r.d = number * 0.5, 1.0, 2.0, 3.0
            r.symbol, r.kind, r.flags, r.aux = number & 255, 1, 0, 0
            cursor[0] += 1
            done += 1
        barrier.publish(words, cursor)
    return done


@njit(nogil=True, cache=True)
def consume(words: Any, slots: Any, tail: int, upto: int, sums: Any) -> int:
    """Read records whole until sequence `upto` or a long silence; sums = (wrong ids, sum)."""
    mask, wrong, total = len(slots) - 1, 0, 0.0
    while tail < upto:
        head = barrier.wait_records(words, tail, SPINS, 0)
        if head == tail:
            break
        for sequence in range(tail, head):
            r = slots[sequence & mask]
            same = (r.id == sequence) & (r.exch_ns == r.recv_ns) & (r.symbol == (sequence & 255))
            same &= (r.b + r.c + r.d == 6.0) & (r.kind == 1) & (r.flags == 0) & (r.aux == 0)
            wrong += 0 if same else 1
            total += r.a
        tail = head
        barrier.store_release(words, rings.TAIL, tail)
    sums[0] += wrong
    sums[1] += total
    return tail


@njit(nogil=True, cache=True)
def bounce(mine: Any, cursor: Any, theirs: Any, tail: int, count: int) -> int:
    """Answer each record of `theirs` by one in `mine`; the tail, short of count after silence."""
    for _ in range(count):
        head = barrier.wait_records(theirs, tail, 100 * SPINS, 0)
        if head == tail:
            break
        tail = head
        barrier.store_release(theirs, rings.TAIL, tail)
        cursor[0] += 1
        barrier.publish(mine, cursor)
    return tail


@njit(nogil=True, cache=True)
def serve_and_wait(mine: Any, cursor: Any, theirs: Any, tail: int, count: int) -> int:
    """Throw one record at a time and wait for its answer."""
    for _ in range(count):
        cursor[0] += 1
        barrier.publish(mine, cursor)
        head = barrier.wait_records(theirs, tail, 100 * SPINS, 0)
        if head == tail:
            break
        tail = head
        barrier.store_release(theirs, rings.TAIL, tail)
    return tail


def cursor_of(made: Ring) -> np.ndarray:
    return np.array([made.words[rings.HEAD], made.words[rings.TAIL]], np.int64)


def run_writer(path: str, go: Any, jobs: list[tuple[int, int]]) -> None:
    """Each job (records, batch) at the word."""
    made = rings.attach(path)
    cursor = cursor_of(made)
    produce(made.words, made.slots, cursor, 0, 0, 1)
    first = 0
    for count, batch in jobs:
        go.wait()
        go.clear()
        done = 0
        until_s = time.monotonic() + GIVE_UP_S
        while done < count and time.monotonic() < until_s:
            done += produce(made.words, made.slots, cursor, first + done, count - done, batch)
        first += count


def run_bouncer(to_path: str, from_path: str, ready: Any) -> None:
    mine, theirs = rings.attach(to_path), rings.attach(from_path)
    cursor = cursor_of(mine)
    bounce(mine.words, cursor, theirs.words, 0, 0)
    ready.set()
    bounce(mine.words, cursor, theirs.words, 0, 2 * HOPS)


def run_waker(path: str, ready: Any) -> None:
    """One record at a time, its time in recv_ns, to a reader that has had time to fall asleep."""
    made = rings.attach(path)
    cursor = cursor_of(made)
    barrier.warm()
    ready.set()
    for _ in range(WAKES):
        time.sleep(WAKE_EVERY_S)
        made.slots[int(cursor[0]) & made.mask]["recv_ns"] = time.monotonic_ns()
        cursor[0] += 1
        barrier.publish(made.words, cursor)


def rates(context: Any, folder: str) -> list[Result]:
    """Records per second, one and 64 per publish."""
    made = rings.create(Path(folder) / "rate", SLOTS, 2, "bench")
    go = context.Event()
    jobs = [(RECORDS, batch) for _ in range(ROUNDS) for batch in (1, 64)]
    child = context.Process(target=run_writer, args=(str(made.path), go, jobs), daemon=True)
    child.start()
    tail, found, sums = 0, {1: [], 64: []}, np.zeros(2)  # type: ignore[var-annotated]
    consume(made.words, made.slots, 0, 0, sums)
    for count, batch in jobs:
        sums[:] = 0.0
        go.set()
        while barrier.wait_records(made.words, tail, SPINS, barrier.SLEEP_NS_MAX) == tail:
            continue
        began_s, first = time.perf_counter(), tail
        while tail < first + count and time.perf_counter() - began_s < GIVE_UP_S:
            tail = consume(made.words, made.slots, tail, first + count, sums)
        spent_s = time.perf_counter() - began_s
        expected = 0.25 * count * (2 * first + count - 1)
        if tail != first + count or sums[0] or abs(sums[1] - expected) > 1e-6 * expected:
            raise RuntimeError(f"ring: {tail - first} records, {sums[0]} wrong, sum {sums[1]}")
        found[batch].append(count / spent_s / 1e6)
    child.join(10)
    made.close()
    return [
        Result("ring, one record per publish", "M records/s", found[1]),
        Result("ring, 64 per publish", "M records/s", found[64], 20.0, at_most=False),
    ]


def ping_pong(context: Any, folder: str) -> Result:
    """One way, nanoseconds, both sides spinning."""
    there = rings.create(Path(folder) / "there", 1 << 10, 2, "bench")
    back = rings.create(Path(folder) / "back", 1 << 10, 2, "bench")
    ready = context.Event()
    child = context.Process(
        target=run_bouncer, args=(str(back.path), str(there.path), ready), daemon=True
    )
    child.start()
    cursor, tail, samples = cursor_of(there), 0, []
    serve_and_wait(there.words, cursor, back.words, 0, 0)
    ready.wait(GIVE_UP_S)
    per_sample = HOPS // 200
    for _ in range(200):
        began_ns = time.perf_counter_ns()
        tail = serve_and_wait(there.words, cursor, back.words, tail, per_sample)
        samples.append((time.perf_counter_ns() - began_ns) / per_sample / 2)
    if tail != 200 * per_sample:
        raise RuntimeError(f"ping-pong: {tail} answers")
    child.kill()
    child.join()
    return Result("ring, one-way hop, both spinning", "ns", samples, 200.0)


def wake_up(context: Any, folder: str) -> list[Result]:
    """From publish to a reader that slept, and the price of waiting."""
    made = rings.create(Path(folder) / "wake", 1 << 10, 2, "bench")
    barrier.warm()
    began_s, began_cpu_s = time.perf_counter(), time.process_time()
    while time.perf_counter() - began_s < IDLE_S:
        barrier.wait_records(made.words, 0, 200, barrier.SLEEP_NS_MAX)
    share = 100 * (time.process_time() - began_cpu_s) / (time.perf_counter() - began_s)
    ready = context.Event()
    child = context.Process(target=run_waker, args=(str(made.path), ready), daemon=True)
    child.start()
    ready.wait(GIVE_UP_S)
    tail, samples, until_s = 0, [], time.monotonic() + GIVE_UP_S
    while len(samples) < WAKES and time.monotonic() < until_s:
        head = barrier.wait_records(made.words, tail, 200, barrier.SLEEP_NS_MAX)
        if head > tail:
            now_ns = time.monotonic_ns()
            samples.append((now_ns - int(made.slots[tail & made.mask]["recv_ns"])) / 1e3)
            tail = head
            made.words[rings.TAIL] = tail
    child.join(10)
    made.close()
    return [
        Result("ring, wake-up of a sleeping reader", "us", samples, 100.0),
        Result("ring, CPU of a reader that waits in vain", "% of a core", [share], 3.0),
    ]


def run() -> list[Result]:
    """All of it, one after the other: there are two cores."""
    assert RECORD.itemsize == 64
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory(dir=FOLDER) as folder:
        return [*rates(context, folder), ping_pong(context, folder), *wake_up(context, folder)]
