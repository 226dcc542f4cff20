"""Death at any instruction of feed's and the brain's kernels, and what the next life makes of it.

    python tests/crash_everywhere.py            a real SIGKILL after every single instruction

A scene is a pair of shared files, a kernel call in the middle of things, and a check of what the
files hold when the caller dies. For feed a new one takes the ring over, as feed.main does, and
brings the market to rest: the reader must have seen every id, in order, whole, or named by a GAP.
For the brain the next one resumes, as brain.main does, and takes what is left: every symbol but the
one being written must be bit for bit what it would have been, and that one must be asked for.
"""

from __future__ import annotations

import copy
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import brain_bench as bb
import stepping
from ring_world import RECV_NS, Market, Rest, Scout, Writer, price, qty, settling

import records as rec
import ring as rings
from brain import follow, kernel
from brain.closing import WHERE
from brain.main import Snapshots, resume
from brain.state import (
    C_SEQ,
    F_KEY,
    GAPS,
    OPEN_SIGNALS,
    TIMEFRAMES,
    open_state,
    state_path,
)
from feed import decode, lane, walk

ROWS = 3
FREE_SLOTS = 5  # of the short ring
MINUTE_MS = 60_000


class Scene:
    """One kernel call on shared files; `check` is asked about every state that a death leaves."""

    def __init__(self, name: str, files: list[Path], call: Any, args: tuple[Any, ...]) -> None:
        self.name = name
        self.images = [np.memmap(path, np.int64, "r+") for path in files]
        self.work: Callable[[], object] = lambda: call(*args)
        self.address = stepping.entry(call, *args)
        self.base = [image.copy() for image in self.images]
        self.check: Callable[[], None] = lambda: None

    def restore(self, changes: list[stepping.Change]) -> None:
        """The files as they were after these changes."""
        for image, base in zip(self.images, self.base, strict=True):
            image[:] = base
        for change in changes:
            self.images[change.which][change.index] = change.value

    def states(self) -> Iterator[int]:
        """Every distinct state, from none of the call's stores to all; the instructions so far."""
        self.steps, self.changes = stepping.journal(self.work, self.address, self.images)
        for at in [0, *sorted({change.step for change in self.changes})]:
            self.restore([change for change in self.changes if change.step <= at])
            yield at

    def dies_for_real(self, steps: int) -> None:
        """SIGKILL after so many instructions leaves what the journal says, and passes the check."""
        self.restore([])
        stepping.kill_after(self.work, self.address, steps)
        found = [image.copy() for image in self.images]
        self.restore([change for change in self.changes if change.step <= steps])
        for image, left in zip(self.images, found, strict=True):
            np.testing.assert_array_equal(image, left)
        self.check()


# --- feed --------------------------------------------------------------------------------------


class FeedSide:
    """A ring in the middle of a market: row 0 LIVE, row 1 UNSURE, row 2 HELD behind a hole."""

    def __init__(self, folder: Path, free: int = 0) -> None:
        self.path = folder / "feed.ring"
        self.ring = rings.create(self.path, 64, ROWS, "w")
        self.market = Market(ROWS)
        self.scout, self.rest = Scout(self.market), Rest(self.market)
        self.writer = Writer(self.ring, self.market, self.rest, ROWS, 32)
        for _ in settling(self.writer, self.scout):
            pass
        self.writer.disconnect()
        self.writer.connect()
        self.market.trade(2)
        self.take(self.trades(0, 2, 2))
        if free:
            head, tail = (int(self.ring.words[at]) for at in (rings.HEAD, rings.TAIL))
            self.take(self.trades(*[0] * (64 - (head - tail) - free)))
        self.scout.look(self.ring)
        assert self.writer.column("STATUS").tolist() == [lane.LIVE, lane.UNSURE, lane.HELD]

    def trades(self, *rows: int) -> list[bytes]:
        return [self.market.trade_frame(row, self.market.trade(row)) for row in rows]

    def take(self, frames: list[bytes]) -> None:
        self.writer.lane.control[lane.NEWEST_MS] = self.market.now_ms
        self.writer.take(frames)

    def busy_pass(self) -> list[bytes]:
        """Every way through the writer: next, held, refused, a new hole, levels."""
        market = self.market
        frames = [*self.trades(0, 0), market.quote_frame(0), *self.trades(1, 2, 1)]
        frames += [market.trade_frame(0, market.trade(0, bad=True)), market.quote_frame(0)]
        market.trade(0)
        return [*frames, *self.trades(0, 1), market.mark_frame(1), market.quote_frame(2)]

    def scene(self, name: str, call: Any, args: tuple[Any, ...]) -> Scene:
        self.before = self.ring.feed_stats.copy()
        made = Scene(name, [self.path], call, args)
        made.check = lambda: self.check(made)
        self.checked: set[bytes] = set()
        self.unreleased = self.visible(int(self.ring.words[rings.HEAD]))
        self.head = int(self.ring.words[rings.HEAD])
        return made

    def decode_scene(self, name: str, frames: list[bytes]) -> Scene:
        data = b"".join(frames)
        start, end = walk.SCRATCH_BYTES, walk.SCRATCH_BYTES + len(data)
        buffer = np.zeros(end + walk.SLACK_BYTES, np.uint8)
        buffer[start:end] = np.frombuffer(data, np.uint8)
        self.writer.lane.control[lane.NEWEST_MS] = self.market.now_ms
        state = self.writer.state
        return self.scene(
            name, decode.decode, (buffer, start, end, RECV_NS, state, self.writer.lane)
        )

    def visible(self, head: int) -> bytes:
        tail = int(self.ring.words[rings.TAIL])
        return bytes(self.ring.slots[np.arange(tail, head) & self.ring.mask].tobytes())

    def check(self, scene: Scene) -> None:
        """A new feed on these files. States that look the same from outside are checked once."""
        words = self.ring.words
        assert self.visible(self.head) == self.unreleased, "a slot was overwritten unreleased"
        head = int(words[rings.HEAD])
        seen = words.tobytes() + self.ring.last_ids.tobytes() + self.visible(head)
        if seen in self.checked:
            return
        self.checked.add(seen)
        market = copy.deepcopy(self.market)
        scout, rest = copy.deepcopy(self.scout), Rest(market)
        scout.market = market
        scout.look(self.ring)
        scout.writer_died()
        writer = Writer(self.ring, market, rest, ROWS, 32)
        for _ in settling(writer, scout):
            head, tail = int(words[rings.HEAD]), int(words[rings.TAIL])
            assert head - tail <= len(self.ring.slots)
        writer.die()


def feed_scenes(folder: Path) -> Iterator[Scene]:
    """A pass, a pass on a ring without room, and every other kernel that publishes."""
    side = FeedSide(folder)
    yield side.decode_scene("decode", side.busy_pass())

    side = FeedSide(folder, free=FREE_SLOTS)
    frames = side.busy_pass()
    scene = side.decode_scene("decode, short ring", frames)
    yield scene
    scene.restore([])
    side.take(frames)
    side.take(side.trades(0, 1))
    side.scout.look(side.ring)
    side.ring.words[rings.TAIL] = side.ring.words[rings.HEAD]
    assert side.writer.lane.control[lane.PENDING] > 2
    yield side.scene("flush", lane.flush, (side.writer.lane, RECV_NS))

    side = FeedSide(folder)
    ours, market = side.writer.lane, side.market
    missing = int(ours.symbols[2, lane.LAST_ID]) + 1
    record = np.zeros(1, rec.RECORD)
    record["kind"], record["symbol"], record["id"] = rec.TRADE, 2, missing
    record["exch_ns"] = market.times[2][missing] * 1_000_000
    record["a"], record["b"] = price(2, missing), qty(2, missing)
    scene = side.scene("emit", lane.emit, (ours, record, 0))
    yield scene
    scene.restore([])
    lane.emit(ours, record, 0)
    side.scout.look(side.ring)
    yield side.scene("release", lane.release, (ours, 2, RECV_NS))


# --- the brain ---------------------------------------------------------------------------------

SYMBOLS = 4
HISTORY_MIN = 5
EXACT_EXCEPT = ("outcomes", "timeouts", "orphans")  # told by an event, or of no symbol


def past(minutes: int) -> list[bb.Row]:
    """Three whole symbols and a few minutes of each, so that bars have something to close on."""
    rows = [row for s in range(3) for row in bb.announced(s)]
    for k in range(1, minutes * 6 + 1):
        ms = bb.START_MS + k * 10_000 - 2_000
        rows += [bb.trade(s, ms, k, 100 + s + (k * 7 % 13) / 10, 1.0) for s in range(3)]
        rows.append(bb.clock(ms))
    return rows


def present(minutes: int) -> list[bb.Row]:
    """One record of every kind and fate, over the end of a minute, five minutes and more."""
    k, ms = minutes * 6, bb.START_MS + minutes * MINUTE_MS - 1_000
    later = ms + 1_500
    old = bb.START_MS + 2 * MINUTE_MS
    return [
        bb.quote(0, ms, 5, 99.0, 101.0),
        bb.trade(0, ms, k + 1, 100.5, 1.0),
        bb.trade(1, ms, k + 1, 101.5, 2.0, rec.BUYER_MAKER),
        bb.plain(rec.MARK, 2, ms, 0, 101.0),
        bb.trade(0, ms + 100, k + 2, 250.0, 1.0),  # reaches the target of the signal on 0
        bb.trade(0, later, k + 3, 100.0, 1.0),  # closes its bars
        bb.trade(1, later, k + 2, 101.0, 1.0, rec.DEGRADED),
        bb.trade(0, ms, k + 4, 99.0, 1.0),  # late: amends
        bb.clock(later + 2_000),  # closes those of 2, times the signal on 1 out
        bb.trade(3, later, 9, 1.0, 1.0),  # of nobody
        bb.plain(rec.SYMBOL, 3),
        bb.trade(3, later, 9, 1.0, 1.0),
        bb.plain(rec.GAP, 1, later, k + 3, 2.0),
        bb.plain(rec.HEALED, 1),
        bb.trade(1, later, k + 5, 101.0, 1.0),
        (0, 1, k + 5, 1.0, 0.0, 0.0, 0.0, 0, rec.GAP, rec.REFUSED, 0),
        bb.trade(0, later, k + 6, 100.0, 1.0),
        *bb.bar(1, old, 1, (1, 2, 1, 2, 5, 9, 2, 3), rec.CLOSED | rec.CORRECTION),
        bb.plain(rec.DROP, 3),
        bb.trade(2, later, k + 4, 102.0, 1.0),  # a jump that nobody announced
        bb.quote(1, later, 6, 99.0, 101.0),
        bb.trade(2, later, k + 5, 102.0, 1.0),
        bb.trade(0, later, k + 7, 100.0, 1.0),
        bb.trade(1, later, k + 6, 101.0, 1.0),
    ]


class BrainSide:
    """A brain's ring and state: the past is consumed, the present lies in the ring."""

    def __init__(self, folder: Path, minutes: int = HISTORY_MIN) -> None:
        self.ring = rings.create(folder / "brain.ring", 1 << 10, SYMBOLS, "w")
        self.path = state_path(self.ring.path)
        self.state = open_state(self.path, SYMBOLS, ring_identity=1, world=2)
        self.raw, self.events = kernel.raw_view(self.ring.slots), kernel.new_events()
        self.where = np.zeros(WHERE, np.int64)
        self.masks = np.zeros(TIMEFRAMES, np.int64)
        resume(self.ring, self.state, Snapshots())
        self.publish(bb.table(past(minutes)))
        self.consume_all(self.state.arrays, 0)
        ms = bb.START_MS + minutes * MINUTE_MS
        for row, target, deadline_ms in ((0, 200.0, ms + 10**7), (1, 200.0, ms + 2_000)):
            follow.arm(
                self.state.arrays, row, 0, row + 7, 0, deadline_ms, 0, 1, 100.0, 50.0, target
            )
        self.publish(bb.table(present(minutes)))

    def publish(self, records: np.ndarray) -> None:
        words = self.ring.words
        head = int(words[rings.HEAD])
        self.ring.slots[(head + np.arange(len(records))) & self.ring.mask] = records
        words[rings.HEAD] = head + len(records)

    def args(self, arrays: Any, seq: int) -> tuple[Any, ...]:
        ring = self.ring
        return (
            ring.words, ring.slots, self.raw, arrays, self.events, self.where, self.masks,
            ring.brain_stats, seq, kernel.RECORDS_MAX,
        )  # fmt: skip

    def consume_all(self, arrays: Any, seq: int) -> None:
        while seq < self.ring.words[rings.HEAD]:
            seq, _ = kernel.consume(*self.args(arrays, seq))

    def scene(self) -> Scene:
        seq = int(self.state.arrays.control[C_SEQ])
        files = [self.ring.path, self.path]
        scene = Scene("consume", files, kernel.consume, self.args(self.state.arrays, seq))
        self.consume_all(self.state.arrays, seq)
        follow.refresh_all(self.state.arrays)
        self.twin = [array.copy() for array in self.state.arrays]
        self.twin_stats = self.ring.brain_stats.copy()
        scene.restore([])
        scene.check = self.check
        return scene

    def check(self) -> None:
        """The next brain goes on as brain.main does, and ends where the twin does."""
        writing = int(self.ring.words[rings.WRITING])
        state = open_state(self.path, SYMBOLS, ring_identity=1, world=2)
        assert not state.fresh
        snapshots = Snapshots()
        broken = set(np.flatnonzero(state.arrays.sym[:, GAPS]).tolist())  # ids jumped untold
        _, seq = resume(self.ring, state, snapshots)
        torn = {writing - 1} if writing else set()
        assert snapshots.wanted == torn | broken
        self.ring.words[rings.TAIL] = seq
        self.consume_all(state.arrays, seq)
        follow.refresh_all(state.arrays)  # the twin's was: of a dropped symbol it says "never"
        rows = [row for row in range(SYMBOLS) if row not in torn]
        for name, now, then in zip(state.arrays._fields, state.arrays, self.twin, strict=True):
            if name == "control":
                np.testing.assert_array_equal(now, then)
            else:
                np.testing.assert_array_equal(now[rows], then[rows], err_msg=name)
        self.check_counters(bool(torn))

    def check_counters(self, torn: bool) -> None:
        stats, head = self.ring.brain_stats, int(self.ring.words[rings.HEAD])
        assert stats[rings.BRAIN_COUNTERS.index("records")] == head == self.ring.words[rings.TAIL]
        if torn:  # its records go uncounted, or are orphans until its snapshot comes
            return
        for index, name in enumerate(rings.BRAIN_COUNTERS):
            if name not in EXACT_EXCEPT:
                assert stats[index] == self.twin_stats[index], name


class ArmSide(BrainSide):
    """A signal is armed: a Python call, so no record is being written."""

    KEY, TARGET = 99, 777.0

    def scene(self) -> Scene:
        arrays = self.state.arrays
        args = (arrays, 0, 0, self.KEY, 0, bb.START_MS * 2, 0, 1, 100.0, 50.0, self.TARGET)
        scene = Scene("arm", [self.ring.path, self.path], follow.arm, args)
        scene.check = self.check
        return scene

    def check(self) -> None:
        """Followed whole or not at all, and what is followed is what the tick path looks at."""
        state = open_state(self.path, SYMBOLS, ring_identity=1, world=2)
        resume(self.ring, state, Snapshots())
        a = state.arrays
        (places,) = np.nonzero(a.follow[0, :, F_KEY])
        assert a.sym[0, OPEN_SIGNALS] == len(places) >= 1
        for place in places:
            if a.follow[0, place, F_KEY] == self.KEY:
                assert a.levels[0, place].tolist()[:3] == [100.0, 50.0, self.TARGET]


def brain_scenes(folder: Path) -> Iterator[Scene]:
    yield BrainSide(folder).scene()
    yield ArmSide(folder).scene()


def main() -> int:
    """Every instruction of every scene, by a real death each. Takes long: it forks for each."""
    why_not = stepping.unable()
    if why_not:
        print(why_not)
        return 1
    with tempfile.TemporaryDirectory() as folder:
        for scenes in (feed_scenes, brain_scenes):
            for scene in scenes(Path(folder)):
                checked = 0
                for _ in scene.states():
                    scene.check()
                    checked += 1
                began_s, told_s = time.monotonic(), time.monotonic()
                for steps in range(scene.steps):
                    scene.dies_for_real(steps)
                    if time.monotonic() - told_s > 10:
                        told_s = time.monotonic()
                        print(f"{scene.name}: {steps} of {scene.steps}", flush=True)
                took_s = time.monotonic() - began_s
                print(f"{scene.name}: {scene.steps} deaths, {checked} states, {took_s:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
