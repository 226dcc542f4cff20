"""The ring: nothing lost, doubled or reordered, whichever side sleeps, dies or runs ahead."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from numba import njit

import records
import ring

ROOT = Path(__file__).resolve().parent.parent


@njit(nogil=True)
def write(words, slots, cursor, first, count):  # type: ignore[no-untyped-def]
    """Write ids first.. as room allows, up to `count`; unpublished. Returns how many."""
    done = 0
    while done < count and ring.room(words, cursor, len(slots)) > 0:
        at = cursor[0] & (len(slots) - 1)
        slots[at].id = first + done
        slots[at].a = (first + done) * 0.5
        cursor[0] += 1
        done += 1
    return done


@njit(nogil=True)
def read(words, slots, upto, timeout_ns):  # type: ignore[no-untyped-def]
    """Consume until sequence `upto` or a wait without news: (tail, id errors, sum of a)."""
    tail = ring.load_acquire(words, ring.TAIL)
    wrong, total = 0, 0.0
    while tail < upto:
        head = ring.wait_records(words, tail, 200, timeout_ns)
        if head == tail:
            break
        while tail < head:
            at = tail & (len(slots) - 1)
            wrong += slots[at].id != tail
            total += slots[at].a
            tail += 1
        ring.store_release(words, ring.TAIL, tail)
    return tail, wrong, total


def cursor_of(made: ring.Ring) -> np.ndarray:
    return np.array([made.words[ring.HEAD], made.words[ring.TAIL]], np.int64)


def make(tmp_path: Path, slots: int = 8, symbols: int = 4) -> ring.Ring:
    return ring.create(tmp_path / "t.ring", slots, symbols, "w")


@pytest.mark.parametrize("slots", [0, 1, 3, 1000, -8])
def test_a_size_that_is_no_power_of_two_is_refused(tmp_path: Path, slots: int) -> None:
    with pytest.raises(ValueError, match="power of two"):
        make(tmp_path, slots)
    assert list(tmp_path.iterdir()) == []


def test_the_file_takes_its_space_at_once_and_is_private(tmp_path: Path) -> None:
    made = make(tmp_path, 1 << 10)
    stat = made.path.stat()
    assert stat.st_size == ring.file_size(1 << 10, 4)
    assert stat.st_blocks * 512 >= stat.st_size
    assert stat.st_mode & 0o777 == 0o600
    made.close()


def test_parts_do_not_overlap(tmp_path: Path) -> None:
    made = make(tmp_path)
    names = list(ring._parts(8, 4))
    for number, name in enumerate(names, 1):
        getattr(made, name).view(np.uint8).reshape(-1)[:] = number
    for number, name in enumerate(names, 1):
        assert (getattr(made, name).view(np.uint8) == number).all(), name


def test_a_record_is_invisible_until_published(tmp_path: Path) -> None:
    made = make(tmp_path)
    cursor = cursor_of(made)
    assert write(made.words, made.slots, cursor, 0, 3) == 3
    assert ring.wait_records(made.words, 0, 10, 0) == 0
    ring.publish(made.words, cursor)
    assert ring.wait_records(made.words, 0, 10, 0) == 3


@pytest.mark.parametrize("count", [7, 8, 9])
def test_a_full_ring_refuses_and_overwrites_nothing(tmp_path: Path, count: int) -> None:
    made = make(tmp_path, 8)
    cursor = cursor_of(made)
    assert write(made.words, made.slots, cursor, 0, count) == min(count, 8)
    ring.publish(made.words, cursor)
    tail, wrong, _ = read(made.words, made.slots, min(count, 8), 0)
    assert (tail, wrong) == (min(count, 8), 0)
    assert write(made.words, made.slots, cursor, tail, 99) == 8  # all released


def test_attach_refuses_what_is_no_ring(tmp_path: Path) -> None:
    with pytest.raises(ring.RingError, match="no ring"):
        ring.attach(tmp_path / "none")
    short = tmp_path / "short"
    short.write_bytes(b"x")
    with pytest.raises(ring.RingError, match="too short"):
        ring.attach(short)
    noise = tmp_path / "noise"
    noise.write_bytes(b"x" * 8192)
    with pytest.raises(ring.RingError, match="not a ring"):
        ring.attach(noise)
    made = make(tmp_path)
    made.words[ring.W_LAYOUT] += 1
    with pytest.raises(ring.RingError, match="another version"):
        ring.attach(made.path)
    made.words[ring.W_LAYOUT] -= 1
    with made.path.open("ab") as file:
        file.write(b"\0")
    with pytest.raises(ring.RingError, match="damaged"):
        ring.attach(made.path)


def test_a_node_that_died_finds_its_ring_again(tmp_path: Path) -> None:
    path = tmp_path / "t.ring"
    made, adopted = ring.adopt_or_create(path, 8, 4, "w")
    assert not adopted
    made.last_ids[2] = 77
    again, adopted = ring.adopt_or_create(path, 8, 4, "w")
    assert adopted
    assert again.last_ids[2] == 77
    assert again.words[ring.GENERATION] == made.words[ring.GENERATION]  # one file
    for slots, symbols, world in [(16, 4, "w"), (8, 5, "w"), (8, 4, "v")]:
        other, adopted = ring.adopt_or_create(path, slots, symbols, world)
        assert not adopted
        assert other.last_ids.sum() == 0


def test_a_generation_rises_at_every_adoption(tmp_path: Path) -> None:
    path = tmp_path / "t.ring"
    seen = []
    for _ in range(3):
        made, _ = ring.adopt_or_create(path, 8, 4, "w")
        seen.append(int(made.words[ring.GENERATION]))
        made.close()
    assert seen == sorted(set(seen))


def test_names_travel_in_a_record() -> None:
    slots = np.zeros(2, records.RECORD)
    for name in ("BTCUSDT", "币安人生USDT", "x" * 32):
        slots[1]["symbol"] = 5
        records.write_name(slots, 1, name)
        assert records.read_name(slots, 1) == name
        assert slots[1]["symbol"] == 5 and slots[1]["id"] == 0
    with pytest.raises(ValueError, match="longer than 32"):
        records.write_name(slots, 1, "x" * 33)


def test_a_sleeping_reader_is_woken(tmp_path: Path) -> None:
    made = make(tmp_path)
    cursor = cursor_of(made)
    slept = threading.Event()
    heads: list[int] = []

    def reader() -> None:
        slept.set()
        for _ in range(600):  # 50 ms each: half a minute at most
            head = ring.wait_records(made.words, 0, 1, ring.SLEEP_NS_MAX)
            if head > 0:
                heads.append(head)
                return

    ring.warm()
    thread = threading.Thread(target=reader)
    thread.start()
    slept.wait()
    time.sleep(0.12)
    write(made.words, made.slots, cursor, 0, 1)
    ring.publish(made.words, cursor)
    thread.join(30)
    assert heads == [1]
    assert made.words[ring.SLEEP] == 0


def test_an_idle_wait_returns_to_python(tmp_path: Path) -> None:
    made = make(tmp_path)
    for _ in range(3):
        assert ring.wait_records(made.words, 0, 10, 1_000_000) == 0
    assert made.words[ring.SLEEP] == 0


@pytest.mark.parametrize("slots", [2, 64, 1 << 12])
def test_two_processes_pass_every_record_once_and_in_order(tmp_path: Path, slots: int) -> None:
    made = make(tmp_path, slots)
    count = 30_000 if slots == 2 else 2_000_000
    read(made.words, made.slots, 0, 0)
    script = (
        "import sys; sys.path[:0] = [sys.argv[3], sys.argv[3] + '/tests']\n"
        "import ring\n"
        "from test_ring import write, cursor_of\n"
        "made = ring.attach(sys.argv[1]); cursor = cursor_of(made)\n"
        "done, n = 0, int(sys.argv[2])\n"
        "while done < n:\n"
        "    done += write(made.words, made.slots, cursor, done, min(512, n - done))\n"
        "    ring.publish(made.words, cursor)\n"
    )
    argv = [sys.executable, "-c", script, str(made.path), str(count), str(ROOT)]
    writer = subprocess.Popen(argv)
    tail, wrong, total = 0, 0, 0.0
    deadline = time.monotonic() + 120
    while tail < count and time.monotonic() < deadline:
        tail, more_wrong, more = read(made.words, made.slots, count, 20_000_000)
        wrong += more_wrong
        total += more
    assert writer.wait(30) == 0
    assert (tail, wrong) == (count, 0)
    assert total == 0.5 * count * (count - 1) / 2


def test_a_writer_killed_anywhere_leaves_a_whole_ring(tmp_path: Path) -> None:
    """SIGKILL at random moments; the successor goes on from the head and no id is amiss."""
    made = make(tmp_path, 256)
    read(made.words, made.slots, 0, 0)
    script = (
        "import sys; sys.path[:0] = [sys.argv[2], sys.argv[2] + '/tests']\n"
        "import ring; from test_ring import write, cursor_of\n"
        "made = ring.attach(sys.argv[1]); cursor = cursor_of(made)\n"
        "write(made.words, made.slots, cursor, int(cursor[0]), 0); print('up', flush=True)\n"
        "while True:\n"
        "    write(made.words, made.slots, cursor, int(cursor[0]), 7)\n"
        "    ring.publish(made.words, cursor)\n"
    )
    tail = 0
    for life in range(3):
        argv = [sys.executable, "-c", script, str(made.path), str(ROOT)]
        writer = subprocess.Popen(argv, stdout=subprocess.PIPE)
        assert writer.stdout is not None and writer.stdout.readline() == b"up\n"
        until = time.monotonic() + 0.05 * (life + 1)
        while time.monotonic() < until:
            tail, wrong, _ = read(made.words, made.slots, tail + 100_000, 1_000_000)
            assert wrong == 0
        os.kill(writer.pid, signal.SIGKILL)
        writer.wait(10)
        writer.stdout.close()
    before = tail
    tail, wrong, _ = read(made.words, made.slots, int(made.words[ring.HEAD]), 0)
    assert wrong == 0 and tail >= before > 0


@pytest.mark.parametrize(
    ("value", "bucket"), [(0, 0), (1, 1), (2, 2), (3, 2), (4, 3), (1023, 10), (1024, 11)]
)
def test_log2_buckets(value: int, bucket: int) -> None:
    @njit
    def call(number):  # type: ignore[no-untyped-def]
        return ring.log2_bucket(number)

    assert call(value) == bucket
    assert call(2**62) == 63
