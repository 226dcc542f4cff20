"""The ring, its writer and its reader in any order of steps, either side dying at any of them.

After every step: what the reader may see follows, per symbol, what it saw before, or a GAP names
what is missing; no slot that the reader has not released is touched; every tick is counted once.
At the end everything comes to rest: whole symbols, nothing waiting, nothing lost untold.

    RING_MODEL_SEED=<printed> RING_MODEL_S=600 pytest tests/test_ring_model.py -s

A failure names its steps as they came; RING_MODEL_SHRINK=1 takes some minutes to find fewer.
"""

from __future__ import annotations

import logging
import os
import random
import tempfile
import time
from pathlib import Path

import hypothesis
import pytest
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from ring_world import BOUND_MS, Market, Rest, Scout, Writer, settling

import ring as rings
from feed import heal, lane

SEED = int(os.environ.get("RING_MODEL_SEED", random.SystemRandom().randrange(1 << 30)))
BUDGET_S = float(os.environ.get("RING_MODEL_S", "8"))
PHASES = [hypothesis.Phase.generate]
if os.environ.get("RING_MODEL_SHRINK"):
    PHASES.append(hypothesis.Phase.shrink)
ROUND = 20  # examples per seed; the next seed is the last one + 1
ROWS, SIDE_SLOTS, STEPS = 2, 6, 60

ROW = st.integers(0, ROWS - 1)
EVENT = st.tuples(
    st.sampled_from(["trade", "trade", "trade", "quote", "mark", "unheard", "refused", "again"]),
    ROW,
)
THEN = st.sampled_from(["connects"] * 4 + ["starts", "stays dead"])
BEHIND = st.sampled_from([0, 0, 1, 3])
EVENTS = st.lists(EVENT, min_size=1, max_size=14)


class RingModel(RuleBasedStateMachine):
    """One node's ring; `writer` is None while feed is dead."""

    @initialize(slots=st.sampled_from([8, 16, 16, 64]), warm=st.sampled_from([True, True, False]))
    def begin(self, slots: int, warm: bool) -> None:
        """A fresh ring, mostly with symbols that are whole already."""
        self.folder = tempfile.TemporaryDirectory()
        self.path, self.slots = Path(self.folder.name) / "ring", slots
        self.ring, _ = rings.own(self.path, slots, ROWS, "w", 0)
        self.market = Market(ROWS)
        self.rest, self.scout = Rest(self.market), Scout(self.market)
        self.at = 0  # how far the reader has read; the tail is what it has released
        self.writer: Writer | None = None
        self.start_writer()
        if warm:
            self.settle()

    # --- the market and feed ---

    def frames(self, events: list[tuple[str, int]]) -> list[bytes]:
        """What of these events arrives, if a socket is up."""
        made, told_ms = [], 0  # market time of the newest one before
        for what, row in events:
            if what == "again":
                if self.market.times[row]:
                    made.append(self.deliver(row, self.market.newest[row], told_ms))
                continue
            if what == "quote":
                made.append(self.market.quote_frame(row))
            elif what == "mark":
                made.append(self.market.mark_frame(row))
            else:
                number = self.market.trade(row, bad=what == "refused")
                if what == "unheard":
                    continue
                made.append(self.deliver(row, number, told_ms))
            told_ms = self.market.now_ms
        return made

    def deliver(self, row: int, number: int, told_ms: int) -> bytes:
        """A print's frame; the firewall may find it out of time after a silence, by the newest
        time that it knows or by that of a frame before."""
        if self.writer is not None:
            known_ms = int(self.writer.lane.control[lane.NEWEST_MS])
            time_ms = self.market.times[row][number]
            if any(abs(time_ms - ms) > BOUND_MS for ms in (known_ms, max(known_ms, told_ms))):
                self.market.untimely.add((row, number))
        return self.market.trade_frame(row, number)

    @rule(events=EVENTS)
    def market_moves(self, events: list[tuple[str, int]]) -> None:
        frames = self.frames(events)
        if self.writer is not None and self.writer.up:
            self.writer.take(frames)

    @rule(row=ROW, before=st.integers(3, 14), missing=st.booleans(), after=st.integers(1, 8))
    def market_rushes(self, row: int, before: int, missing: bool, after: int) -> None:
        """More trades than a small ring holds, perhaps with a hole among them, and a tick."""
        hole = [("unheard", row)] if missing else []
        self.market_moves([("trade", row)] * before + hole + [("trade", row)] * after)
        if self.writer is not None and missing:
            self.writer.tick(self.market.now_ms)

    @precondition(lambda self: self.writer is not None and self.writer.up)
    @rule(events=EVENTS, published=st.booleans(), then=THEN)
    def writer_dies_in_a_pass(
        self, events: list[tuple[str, int]], published: bool, then: str
    ) -> None:
        """Right before the head, so that its slots are lost, or right before last_ids."""
        assert self.writer is not None
        head, last_ids = int(self.ring.words[rings.HEAD]), self.ring.last_ids.copy()
        self.writer.take(self.frames(events))
        if not published:
            self.ring.words[rings.HEAD] = head
        self.ring.last_ids[:] = last_ids
        self.writer_dies(then)

    @rule(then=THEN)
    def writer_dies(self, then: str) -> None:
        self.end_writer()
        if then != "stays dead":
            self.start_writer()
        if then == "connects":
            self.connect()

    def end_writer(self) -> None:
        if self.writer is not None:
            self.scout.look(self.ring)
            self.scout.writer_died()
            self.writer.die()
        self.writer = None

    def start_writer(self) -> None:
        self.writer = Writer(self.ring, self.market, self.rest, ROWS, SIDE_SLOTS)
        self.told_lost = self.scout.lost

    def connect(self) -> None:
        if self.writer is not None and not self.writer.up:
            self.writer.connect()

    @precondition(lambda self: self.writer is not None)
    @rule(again=st.sampled_from([True, True, False]))
    def disconnects(self, again: bool) -> None:
        """And perhaps connects at once."""
        assert self.writer is not None
        if self.writer.up:
            self.writer.disconnect()
        if again:
            self.connect()

    @precondition(lambda self: self.writer is not None)
    @rule(seconds=st.sampled_from([0.0, 0.01, 0.1, 1.0, 5.0]), watches=st.booleans())
    def time_passes(self, seconds: float, watches: bool) -> None:
        """A tick of feed's loop, and so much time for its tasks."""
        assert self.writer is not None
        self.writer.tick(self.market.now_ms)
        if watches:
            self.writer.watch()
        self.writer.wait(seconds)

    @precondition(lambda self: self.writer is not None)
    @rule(seconds=st.sampled_from([0.006, 0.03, 0.5]))
    def tasks_go_on_between_ticks(self, seconds: float) -> None:
        assert self.writer is not None
        self.writer.wait(seconds)

    @precondition(lambda self: self.writer is not None)
    @rule(row=ROW)
    def brain_asks_for_a_symbol(self, row: int) -> None:
        assert self.writer is not None
        self.writer.snapshot(row)

    @rule(down=st.sampled_from([False, False, True]), behind=BEHIND, silent=st.booleans())
    def weather_changes(self, down: bool, behind: int, silent: bool) -> None:
        """REST fails or lags; nothing trades for so long that bars end."""
        self.rest.down, self.rest.behind = down, behind
        self.market.now_ms += (BOUND_MS - 1) * silent

    # --- the reader ---

    @rule(count=st.sampled_from([1, 2, 5, 100, 100]), end=st.sampled_from("rrrkd"))
    def reads(self, count: int, end: str) -> None:
        """Then releases what it read, keeps it, or dies with it."""
        self.at = min(self.at + count, int(self.ring.words[rings.HEAD]))
        if end == "r":
            self.ring.words[rings.TAIL] = self.at
        elif end == "d":
            self.at = int(self.ring.words[rings.TAIL])

    @rule(seconds=st.sampled_from([0.0, 0.006, 0.03]))
    def reads_all_between_ticks(self, seconds: float) -> None:
        self.reads(1 << 20, "r")
        if self.writer is not None:
            self.writer.wait(seconds)

    @rule(really=st.sampled_from([True, False, False]), then=THEN)
    def node_dies(self, really: bool, then: str) -> None:
        """Everybody dies with it; the next one adopts the ring."""
        if not really:
            return
        self.end_writer()
        generation = int(self.ring.words[rings.GENERATION])
        self.ring.close()
        self.ring, adopted = rings.own(self.path, self.slots, ROWS, "w", 0)
        assert adopted and self.ring.words[rings.GENERATION] > generation
        self.at = int(self.ring.words[rings.TAIL])
        self.writer_dies(then)

    # --- what always holds ---

    @invariant()
    def the_reader_can_trust_every_slot(self) -> None:
        self.scout.look(self.ring)
        head, tail = int(self.ring.words[rings.HEAD]), int(self.ring.words[rings.TAIL])
        assert tail <= head <= tail + self.slots
        for sequence in range(tail, head):
            slot = self.ring.slots[sequence & self.ring.mask]
            assert slot.tobytes() == self.scout.seen[sequence], "overwritten before its release"

    @invariant()
    def every_tick_is_counted_once(self) -> None:
        self.scout.look(self.ring)
        if self.writer is None:
            return
        n = self.writer.counted
        refused = sum(n(name) for name in rings.FEED_COUNTERS if name.startswith("refused_"))
        levels = n("quotes_received") + n("marks_received")
        trades = n("trades_received")
        in_time = n("quotes") + n("marks") + n("conflated") + n("waiting")
        kept = n("trades") + n("held") + n("dropped_trades")
        assert levels + trades == in_time + kept + refused
        assert self.scout.lost - self.told_lost == n("lost_trades")
        waiting = self.writer.column("WAITING")
        pending = (self.writer.column("GAP_COUNT") > 0).sum() + sum(
            int(word).bit_count() for word in waiting
        )
        assert self.writer.lane.control[lane.PENDING] == pending
        assert n("waiting") == sum(int(word & 3).bit_count() for word in waiting)

    @invariant()
    def the_reader_knows_what_is_whole(self) -> None:
        """LIVE is whole unless bars lack a correction; of anything else the reader is told."""
        if self.writer is None:
            return
        self.scout.look(self.ring)
        symbols = self.writer.lane.symbols
        for row in range(ROWS):
            told = row in self.scout.doubtful or not self.scout.known.issuperset({row})
            doubt = bool(symbols[row, lane.WAITING] & lane.DOUBT)
            lossy = symbols[row, lane.LOSSY] or symbols[row, lane.GAP_COUNT]
            if symbols[row, lane.STATUS] == lane.LIVE:
                assert not doubt and (lossy or not told), f"row {row} is LIVE, not HEALED"
            elif row not in self.writer.to_warm:
                assert told or doubt or self.writer.history.outbox.waiting, f"row {row} in doubt"

    def teardown(self) -> None:
        if not hasattr(self, "ring"):
            return
        try:
            if self.writer is None:
                self.start_writer()
            self.settle()
        finally:
            if self.writer is not None:
                self.writer.die()
            self.ring.close()
            self.folder.cleanup()

    def settle(self) -> None:
        """With a reader that keeps up, an exchange that answers and time, all becomes whole."""
        assert self.writer is not None
        self.rest.down, self.rest.behind = False, 0
        for _ in settling(self.writer, self.scout):
            self.the_reader_can_trust_every_slot()
            self.every_tick_is_counted_once()
        self.at = int(self.ring.words[rings.TAIL])


@pytest.mark.timeout(BUDGET_S + 300)
@pytest.mark.parametrize("budget_s", [BUDGET_S])
def test_ring_writer_and_reader_survive_any_order_of_steps(
    budget_s: float, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.ERROR, "feed")
    seed, end_s = SEED, time.monotonic() + budget_s
    settings = hypothesis.settings(
        max_examples=ROUND,
        stateful_step_count=STEPS,
        deadline=None,
        phases=PHASES,
        database=None,
        print_blob=False,
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    while True:
        print(f"RING_MODEL_SEED={seed}")
        machine = hypothesis.seed(seed)(type("Model", (RingModel,), {}))
        run_state_machine_as_test(machine, settings=settings)
        seed += 1
        if time.monotonic() >= end_s:
            return


def test_a_print_may_be_too_old_by_a_frame_of_its_own_receipt() -> None:
    model = RingModel()
    model.begin(slots=16, warm=True)
    model.market_moves([("unheard", 0)])
    model.weather_changes(down=False, behind=0, silent=True)
    model.writer_dies("connects")
    model.market_moves([("trade", 1)] * 2 + [("again", 0)])
    assert model.market.untimely == {(0, model.market.newest[0])}
    model.every_tick_is_counted_once()
    model.teardown()


@pytest.mark.parametrize(("told", "first", "right"), [(0, 216, True), (5, 6, True), (5, 7, False)])
def test_a_doubt_follows_what_was_told_or_a_history_that_may_end_at_any_id(
    told: int, first: int, right: bool
) -> None:
    scout = Scout(Market(1))
    scout.known.add(0)
    scout.last[0] = told
    doubt = heal.gap(0, first, 0, 0, 0, 1)[0]
    if right:
        scout._on_gap(0, doubt)
        assert scout.doubtful == {0}
        return
    with pytest.raises(AssertionError):
        scout._on_gap(0, doubt)
