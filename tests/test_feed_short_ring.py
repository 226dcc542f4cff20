"""A ring without room: what is told, and in which order, when room returns. One story each.

The model test takes these steps in any order; here are those that once went wrong.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from ring_world import HEAL_TRADES_MAX, HOUR_MS, Market, Rest, Scout, Writer, settling

import ring as rings
from feed import heal, lane
from records import GAP, HEALED, REFUSED, TRADE

SLOTS, SIDE_SLOTS = 16, 8


class Place:
    """One whole symbol on a small ring, and a reader that reads when told to."""

    def __init__(self, folder: Path) -> None:
        self.ring = rings.create(folder / "ring", SLOTS, 1, "w")
        self.market = Market(1)
        self.rest, self.scout = Rest(self.market), Scout(self.market)
        self.writer = Writer(self.ring, self.market, self.rest, 1, SIDE_SLOTS)
        self.settle()

    def settle(self) -> None:
        for _ in settling(self.writer, self.scout):
            pass

    def trades(self, count: int) -> None:
        self.take([self.market.trade(0) for _ in range(count)])

    def take(self, numbers: list[int]) -> None:
        self.writer.lane.control[lane.NEWEST_MS] = self.market.now_ms
        self.writer.take([self.market.trade_frame(0, number) for number in numbers])

    def fill(self) -> None:
        """Trades until no slot is free."""
        words = self.ring.words
        self.trades(SLOTS - int(words[rings.HEAD] - words[rings.TAIL]))

    def read(self) -> list[tuple[int, int, int]]:
        """(kind, id, a or 0) of the trades, GAPs and HEALEDs published since the last call."""
        words = self.ring.words
        self.scout.look(self.ring)
        found = self.ring.slots[np.arange(words[rings.TAIL], words[rings.HEAD]) & self.ring.mask]
        words[rings.TAIL] = words[rings.HEAD]
        return [
            (int(r["kind"]), int(r["id"]), int(r["a"]) if r["kind"] == GAP else 0)
            for r in found
            if r["kind"] in (TRADE, GAP, HEALED)
        ]

    @property
    def last(self) -> int:
        return self.market.newest[0]

    @property
    def status(self) -> int:
        return int(self.writer.column("STATUS")[0])

    def die(self) -> None:
        """A new feed over the same ring; it connects."""
        self.scout.look(self.ring)
        self.scout.writer_died()
        self.writer.die()
        self.writer = Writer(self.ring, self.market, self.rest, 1, SIDE_SLOTS)
        self.writer.connect()


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    made = Place(tmp_path)
    yield made
    made.writer.die()
    made.ring.close()


def test_a_pending_hole_goes_before_the_trades_that_rest_brings(place: Place) -> None:
    place.fill()
    full = place.last
    place.trades(2)  # lost: no room
    place.market.trade(0)  # never heard
    place.trades(1)
    assert place.status == lane.HELD
    place.writer.tick(place.market.now_ms)
    assert place.read()[-1] == (TRADE, full, 0)
    place.writer.wait(0.5)  # REST answers before the next tick flushes
    after = [(GAP, full + 1, 2), (TRADE, full + 3, 0), (TRADE, full + 4, 0)]
    assert place.read() == after
    place.settle()


def test_a_doubt_that_found_no_room_is_told_before_the_symbol_is_healed(place: Place) -> None:
    place.fill()
    full = place.last
    place.rest.down = True
    place.market.trade(0)
    place.trades(1)
    assert place.status == lane.HELD
    place.read()
    place.writer.tick(place.market.now_ms)
    assert place.read() == [(GAP, full + 1, 0)]
    place.rest.down = False
    place.settle()


def test_a_doubt_that_is_over_before_it_was_told_is_forgotten(place: Place) -> None:
    place.fill()
    place.writer.disconnect()
    place.writer.connect()
    assert place.writer.column("WAITING")[0] == lane.DOUBT
    place.read()
    place.trades(1)  # continues: nothing was missing
    assert place.read() == [(TRADE, place.last, 0), (HEALED, place.last, 0)]
    place.writer.tick(place.market.now_ms)
    assert place.read() == []
    assert place.writer.lane.control[lane.PENDING] == 0


@pytest.mark.parametrize("free", [1, 2])
def test_a_symbol_is_live_only_when_healed_found_room(place: Place, free: int) -> None:
    place.fill()
    place.scout.look(place.ring)
    place.ring.words[rings.TAIL] += 1 + free
    place.writer.disconnect()  # its doubt takes one
    place.writer.connect()
    place.trades(1)
    assert place.status == (lane.LIVE if free == 2 else lane.UNSURE)
    place.read()
    place.trades(1)
    assert place.status == lane.LIVE
    place.settle()


def test_a_lossy_symbol_is_not_healed_by_its_next_trade(place: Place) -> None:
    place.fill()
    place.trades(3)
    place.read()
    place.trades(1)
    assert (GAP, place.last - 3, 3) in place.read()
    place.writer.disconnect()
    place.writer.connect()
    place.read()
    place.trades(1)
    assert place.status == lane.LIVE
    assert place.read() == [(TRADE, place.last, 0)]
    place.settle()  # HEALED comes with the correction of its bars


def test_a_correction_does_not_heal_what_was_lost_while_it_was_fetched(place: Place) -> None:
    place.fill()
    place.trades(3)
    place.read()
    place.trades(1)
    place.writer.tick(place.market.now_ms)
    place.market.now_ms += HOUR_MS
    place.read()
    place.writer.tick(place.market.now_ms)  # asks for the bars
    place.fill()
    place.trades(2)
    place.read()
    place.trades(1)
    assert (GAP, place.last - 2, 2) in place.read()
    place.writer.wait(1.0)
    assert HEALED not in [kind for kind, *_ in place.read()]
    place.settle()


def test_a_hole_that_waits_keeps_its_times_when_an_older_one_is_planned(place: Place) -> None:
    place.fill()
    place.trades(2)
    place.read()
    place.trades(1)  # tells the first hole; its report is not read yet
    place.fill()
    place.trades(2)
    place.writer.tick(place.market.now_ms)
    place.read()
    place.trades(1)
    place.read()  # the scout refuses a GAP of no time
    told = place.ring.slots[place.ring.slots["kind"] == GAP]
    assert (told["c"] > 0).all() and (told["b"] > 0).all()
    place.settle()


def test_a_loss_since_nobody_knows_when_is_dated_when_it_happens(place: Place) -> None:
    """So that a later life, which knows both ends only, does not shift its beginning."""
    ours, to_ns = place.writer.lane, 9 * HOUR_MS * lane.NS_PER_MS
    lane.lose(ours, 0, place.last + 1, 1, 0, to_ns)
    lane.lose(ours, 0, place.last + 2, 1, to_ns, to_ns + HOUR_MS * lane.NS_PER_MS)
    from_ms = 9 * HOUR_MS - lane.UNKNOWN_SPAN_MS
    assert lane.take_loss(ours, 0) == (from_ms, 10 * HOUR_MS)
    assert lane.put_gap(ours, 0, 1)
    assert place.ring.lost[0].tolist() == [from_ms, 10 * HOUR_MS]
    place.market.newest[0] += 2


def test_lost_bars_are_corrected_by_a_later_life_however_old_the_gap(place: Place) -> None:
    place.market.now_ms = heal.floor_ms(place.market.now_ms, 1440) + 25 * HOUR_MS
    place.fill()
    place.trades(3)
    place.read()
    place.trades(1)
    for _ in range(3):  # the GAP leaves the ring
        place.read()
        place.trades(SLOTS)
    place.read()
    place.die()
    assert place.ring.lost[0, 1] > 0
    place.trades(1)
    assert HEALED not in [kind for kind, *_ in place.read()]
    place.settle()
    assert not place.scout.lossy[0] and place.ring.lost[0, 1] > 0  # its day is not over
    for _ in range(30):
        place.market.now_ms += HOUR_MS
        place.writer.tick(place.market.now_ms)
        place.writer.wait(0.1)
        place.read()
    assert place.ring.lost.tolist() == [[0, 0]]


def test_a_hole_that_dies_untold_is_fetched_and_was_never_lost(place: Place) -> None:
    place.fill()
    place.trades(3)
    assert place.writer.column("GAP_COUNT")[0] == 3
    place.read()
    place.die()
    place.settle()
    assert place.scout.lost == 0 and place.writer.counts()["lost_trades"] == 0
    assert place.scout.last[0] == place.last


def test_trades_that_overflow_before_the_history_are_not_lost(place: Place) -> None:
    """Nothing was promised yet: REST reaches up to the next trade that waits."""
    place.rest.down = True
    place.writer.snapshot(0)
    place.trades(SIDE_SLOTS + HEAL_TRADES_MAX // 2)
    assert place.status == lane.HELD
    place.rest.down = False
    place.settle()
    assert place.scout.lost == 0 and place.scout.last[0] == place.last


def test_a_symbol_comes_before_its_bars_when_both_wait_for_room(place: Place) -> None:
    place.trades(SLOTS // 2 + 1)
    place.writer.snapshot(0)
    assert place.writer.history.outbox.waiting
    place.writer.wait(5.0)
    for _ in range(200):
        place.read()
        place.writer.wait(0.005)
    place.settle()


def test_a_page_that_an_overflow_has_overtaken_is_left_out(place: Place) -> None:
    """History waits for room with a page of trades; the side buffer overflows and a new hole comes:
    the symbol is HELD again, but past what the page brings."""
    first = place.last + 1
    for _ in range(HEAL_TRADES_MAX - 1):
        place.market.trade(0)
    place.trades(1)
    place.writer.tick(place.market.now_ms)
    place.trades(SLOTS // 2)  # these wait; history has no room for all of its page
    place.writer.wait(0.1)
    place.trades(SIDE_SLOTS)
    place.market.trade(0)
    place.trades(1)
    place.read()
    place.writer.wait(0.1)
    place.settle()
    assert place.scout.last[0] == place.last > first


def test_the_id_of_a_refused_print_is_told(place: Place) -> None:
    before = place.last
    place.take([place.market.trade(0), place.market.trade(0, bad=True), place.market.trade(0)])
    assert place.read() == [(TRADE, before + 1, 0), (GAP, before + 2, 1), (TRADE, before + 3, 0)]
    assert REFUSED in place.ring.slots["flags"][place.ring.slots["kind"] == GAP]
    assert place.ring.lost.tolist() == [[0, 0]] and not place.scout.doubtful


def test_a_refused_print_without_room_is_lost_like_any_other(place: Place) -> None:
    place.fill()
    place.take([place.market.trade(0, bad=True)])
    place.read()
    place.trades(1)
    assert place.read() == [(GAP, place.last - 1, 1), (TRADE, place.last, 0)]
    assert place.writer.counts()["lost_trades"] == 1
    place.settle()
