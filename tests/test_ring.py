"""The ring: nothing lost, doubled or reordered, whichever side sleeps, dies or runs ahead."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from numba import njit

import barrier
import records
import ring

ROOT = Path(__file__).resolve().parent.parent


@njit(nogil=True)
def write(words, slots, cursor, first, count):  # type: ignore[no-untyped-def]
    """Write ids first.. as room allows, up to `count`; unpublished. Returns how many."""
    done = 0
    while done < count and barrier.room(words, cursor, len(slots)) > 0:
        at = cursor[0] & (len(slots) - 1)
        slots[at].id = first + done
        slots[at].a = (first + done) * 0.5
        cursor[0] += 1
        done += 1
    return done


@njit(nogil=True)
def read(words, slots, upto, timeout_ns):  # type: ignore[no-untyped-def]
    """Consume until sequence `upto` or a wait without news: (tail, id errors, sum of a)."""
    tail = barrier.load_acquire(words, ring.TAIL)
    wrong, total = 0, 0.0
    while tail < upto:
        head = barrier.wait_records(words, tail, 200, timeout_ns)
        if head == tail:
            break
        while tail < head:
            at = tail & (len(slots) - 1)
            wrong += slots[at].id != tail
            total += slots[at].a
            tail += 1
        barrier.store_release(words, ring.TAIL, tail)
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
    assert barrier.wait_records(made.words, 0, 10, 0) == 0
    barrier.publish(made.words, cursor)
    assert barrier.wait_records(made.words, 0, 10, 0) == 3


@pytest.mark.parametrize("count", [7, 8, 9])
def test_a_full_ring_refuses_and_overwrites_nothing(tmp_path: Path, count: int) -> None:
    made = make(tmp_path, 8)
    cursor = cursor_of(made)
    assert write(made.words, made.slots, cursor, 0, count) == min(count, 8)
    barrier.publish(made.words, cursor)
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
            head = barrier.wait_records(made.words, 0, 1, barrier.SLEEP_NS_MAX)
            if head > 0:
                heads.append(head)
                return

    barrier.warm()
    thread = threading.Thread(target=reader)
    thread.start()
    slept.wait()
    time.sleep(0.12)
    write(made.words, made.slots, cursor, 0, 1)
    barrier.publish(made.words, cursor)
    thread.join(30)
    assert heads == [1]
    assert made.words[ring.SLEEP] == 0


def test_an_idle_wait_returns_to_python(tmp_path: Path) -> None:
    made = make(tmp_path)
    for _ in range(3):
        assert barrier.wait_records(made.words, 0, 10, 1_000_000) == 0
    assert made.words[ring.SLEEP] == 0


@pytest.mark.parametrize("slots", [2, 64, 1 << 12])
def test_two_processes_pass_every_record_once_and_in_order(tmp_path: Path, slots: int) -> None:
    made = make(tmp_path, slots)
    count = 30_000 if slots == 2 else 2_000_000
    read(made.words, made.slots, 0, 0)
    script = (
        "import sys; sys.path[:0] = [sys.argv[3], sys.argv[3] + '/tests']\n"
        "import barrier, ring\n"
        "from test_ring import write, cursor_of\n"
        "made = ring.attach(sys.argv[1]); cursor = cursor_of(made)\n"
        "done, n = 0, int(sys.argv[2])\n"
        "while done < n:\n"
        "    done += write(made.words, made.slots, cursor, done, min(512, n - done))\n"
        "    barrier.publish(made.words, cursor)\n"
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
        "import barrier, ring; from test_ring import write, cursor_of\n"
        "made = ring.attach(sys.argv[1]); cursor = cursor_of(made)\n"
        "write(made.words, made.slots, cursor, int(cursor[0]), 0); print('up', flush=True)\n"
        "while True:\n"
        "    write(made.words, made.slots, cursor, int(cursor[0]), 7)\n"
        "    barrier.publish(made.words, cursor)\n"
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


# --- one node, one feed, one brain ---------------------------------------------------------------

HOLDER = (
    "import sys, time; sys.path.insert(0, sys.argv[1])\n"
    "import ring\n"
    "made, _ = ring.own(sys.argv[2], 8, 4, 'w', 20)\n"
    "made.claim(ring.FEED, 0); made.claim(ring.BRAIN, 0)\n"
    "print('up', flush=True); time.sleep(120)\n"
)


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Another process that is node, feed and brain of t.ring."""
    argv = [sys.executable, "-c", HOLDER, str(ROOT), str(tmp_path / "t.ring")]
    process = subprocess.Popen(argv, stdout=subprocess.PIPE)
    assert process.stdout is not None and process.stdout.readline() == b"up\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


@pytest.mark.skipif(not hasattr(fcntl, "F_OFD_SETLK"), reason="the system has no such locks")
@pytest.mark.parametrize("role", [ring.NODE, ring.FEED, ring.BRAIN])
def test_a_role_is_one_process_and_free_again_when_it_is_killed(
    tmp_path: Path, holder: subprocess.Popen[bytes], role: int
) -> None:
    made = ring.attach(tmp_path / "t.ring")
    made.words[ring._ROLE_PIDS[role]] = 4711
    with pytest.raises(ring.RingError, match=f"Another {ring.ROLE_NAMES[role]} .process 4711. "):
        made.claim(role, 0)
    holder.kill()
    made.claim(role, 20)
    other = ring.attach(tmp_path / "t.ring")
    with pytest.raises(ring.RingError):
        other.claim(role, 0)
    view = made.words  # what still maps the file must not keep the role
    made.close()
    other.claim(role, 0)
    del view


@pytest.mark.skipif(not hasattr(fcntl, "F_OFD_SETLK"), reason="the system has no such locks")
def test_a_living_nodes_ring_is_neither_adopted_nor_replaced(
    tmp_path: Path, holder: subprocess.Popen[bytes]
) -> None:
    path = tmp_path / "t.ring"
    made = ring.attach(path)
    before = int(made.words[ring.GENERATION])
    for slots in (8, 16):
        with pytest.raises(ring.RingError, match=f"process {holder.pid}"):
            ring.own(path, slots, 4, "w", 0.1)
    assert ring.attach(path).words[ring.GENERATION] == before
    holder.kill()
    again, adopted = ring.own(path, 8, 4, "w", 20)
    assert adopted and again.words[ring.GENERATION] > before
    with pytest.raises(ring.RingError):
        ring.own(path, 8, 4, "w", 0)


@pytest.mark.parametrize("left", ["the file", "another file", "nothing"])
def test_a_node_that_waited_takes_what_is_there_then(tmp_path: Path, left: str) -> None:
    """The one before removes its ring when it ends well: a lock on a nameless file is none."""
    path = tmp_path / "t.ring"
    first, _ = ring.own(path, 8, 4, "w", 0)
    found: list[tuple[ring.Ring, bool]] = []
    waiting = threading.Thread(target=lambda: found.append(ring.own(path, 8, 4, "w", 30)))
    waiting.start()
    time.sleep(0.2)
    assert not found
    if left == "nothing":
        path.unlink()
    elif left == "another file":
        path.unlink()
        path.write_bytes(b"x")
    first.close()
    waiting.join(30)
    made, adopted = found[0]
    assert adopted == (left == "the file")
    assert os.path.samestat(path.stat(), os.fstat(made._fd))
    with pytest.raises(ring.RingError):
        ring.own(path, 8, 4, "w", 0)


def test_nodes_that_are_killed_while_they_make_a_ring_leave_one_file_at_most(
    tmp_path: Path,
) -> None:
    left = tmp_path / "t.ring.new"
    left.write_bytes(b"half a ring")
    made = make(tmp_path)
    assert [each.name for each in tmp_path.iterdir()] == ["t.ring"]
    assert made.words[ring.GENERATION] > 0


def test_a_closed_ring_may_be_closed_again(tmp_path: Path) -> None:
    made = make(tmp_path)
    made.close()
    made.close()


def test_a_reader_killed_in_its_sleep_costs_one_needless_wake(tmp_path: Path) -> None:
    made = make(tmp_path)
    cursor = cursor_of(made)
    made.words[ring.SLEEP] = 1
    write(made.words, made.slots, cursor, 0, 1)
    barrier.publish(made.words, cursor)
    assert made.words[ring.SLEEP] == 0
    assert barrier.wait_records(made.words, 0, 1, 0) == 1
