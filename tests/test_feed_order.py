"""What the ring is told about trades keeps its order without room, and HEALED comes last."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from feed_desk import run, until
from scripted_exchange import T0_MS, Exchange
from test_feed_history import DUE_MS, rigged

import ring as rings
from feed import heal, lane
from records import BAR, GAP, HEALED, TRADE

SLOTS = 16


class Small:
    """A lane of one symbol whose newest id is 10, over a ring that a few records fill."""

    def __init__(self, folder: Path) -> None:
        self.ring = rings.create(folder / "ring", SLOTS, 4, "test")
        self.lane = lane.make_lane(self.ring, 8)
        lane.set_symbol(self.lane, 0, "BTCUSDT", lane.LIVE, 10)

    def fill(self) -> None:
        """No slot is free any more."""
        words = self.ring.words
        while int(words[rings.HEAD] - words[rings.TAIL]) < SLOTS:
            lane.doubt(self.lane, 0, 1)

    def read(self) -> list[tuple[int, int, int]]:
        """(kind, id, count) of what was published since the last call; its room is free again."""
        words = self.ring.words
        found = self.ring.slots[np.arange(words[rings.TAIL], words[rings.HEAD]) & self.ring.mask]
        words[rings.TAIL] = words[rings.HEAD]
        return [
            (int(r["kind"]), int(r["id"]), int(r["a"]) if r["kind"] == GAP else 0) for r in found
        ]


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Small]:
    made = Small(tmp_path)
    yield made
    del made.lane
    made.ring.close()


def test_waiting_trades_that_come_out_behind_a_loss_are_not_healed_with_it(small: Small) -> None:
    small.lane.symbols[0, lane.STATUS] = lane.HELD
    lane.lose(small.lane, 0, 11, 2, 1, 1)
    assert lane.hold(small.lane, 0, TRADE, 1, 1, 13, 1.0, 1.0, 0)
    assert lane.release(small.lane, 0, 1) == 0
    assert small.read() == [(GAP, 11, 2), (TRADE, 13, 0)]
    assert small.lane.symbols[0, [lane.STATUS, lane.LOSSY]].tolist() == [lane.LIVE, 1]


@pytest.mark.parametrize(("first", "told"), [(9, 0), (10, 0), (11, 1)])
def test_a_loss_that_the_symbol_is_past_already_is_not_told(
    small: Small, first: int, told: int
) -> None:
    assert lane.emit(small.lane, heal.gap(0, first, 1, 1, 1, 1), 0) == 1
    assert len(small.read()) == told


def test_flush_tells_whether_a_hole_or_a_doubt_still_waits_for_room(small: Small) -> None:
    assert lane.flush(small.lane, 1)
    small.fill()
    assert lane.flush(small.lane, 1)
    lane.doubt(small.lane, 0, 1)
    assert not lane.flush(small.lane, 1)
    small.read()
    assert lane.flush(small.lane, 1) and small.read() == [(GAP, 11, 0)]
    small.fill()
    lane.lose(small.lane, 0, 11, 3, 1, 1)
    assert not lane.flush(small.lane, 1)
    small.read()
    assert lane.flush(small.lane, 1) and small.read() == [(GAP, 11, 3)]


def test_a_hole_that_took_the_last_room_is_visible_when_it_is_counted(small: Small) -> None:
    small.fill()
    lane.lose(small.lane, 0, 11, 3, 1, 1)
    small.ring.words[rings.TAIL] += 1
    head = int(small.ring.words[rings.HEAD])
    lane.doubt(small.lane, 0, 1)  # the hole goes first; the doubt itself waits
    assert int(small.ring.words[rings.HEAD]) == head + 1
    assert int(small.lane.stats[lane.STAT["lost_trades"]]) == 3
    assert small.read()[-1] == (GAP, 11, 3)


def fill_history(rig: Any) -> None:
    """Nothing that Python publishes finds room until the tail moves."""
    half = len(rig.lane.slots) // 2
    rig.outbox.say(1, heal.gap(1, 1, 0, 0, 0, 1).repeat(half))
    assert int(rig.ring.words[rings.HEAD]) == half


def make_room(rig: Any, records: int) -> None:
    rig.ring.words[rings.TAIL] += records


def said(rig: Any) -> list[int]:
    """Kinds of what was published behind fill_history."""
    return [kind for kind, _, _ in rig.published()[len(rig.lane.slots) // 2 :]]


def test_what_is_lost_while_a_correction_waits_for_room_keeps_healed_back(tmp_path: Path) -> None:
    async def work() -> None:
        exchange = Exchange("BTCUSDT")
        async with rigged(tmp_path, exchange) as (rig, _):
            fill_history(rig)
            rig.corrections.plan(0, T0_MS, T0_MS)
            rig.corrections.tick(DUE_MS)
            await until(lambda: len(exchange.requests) == 1)
            lane.lose(rig.lane, 0, 6, 2, T0_MS * lane.NS_PER_MS, T0_MS * lane.NS_PER_MS)
            make_room(rig, 100)
            await until(lambda: len(said(rig)) == 2)
            await asyncio.sleep(0.1)
            assert said(rig) == [GAP, BAR] and rig.lane.symbols[0, lane.LOSSY] == 1
            rig.set(lane.REPORT, 0)  # as the feed does when it plans what was reported
            rig.corrections.plan(0, T0_MS, T0_MS)
            for _ in range(2):  # one clears what has ended, one begins
                rig.corrections.tick(DUE_MS)
            await until(lambda: len(said(rig)) == 4)
            assert said(rig) == [GAP, BAR, BAR, HEALED] and rig.lane.symbols[0, lane.LOSSY] == 0

    run(work)


def test_healed_that_found_no_room_is_left_to_whoever_makes_the_symbol_live(tmp_path: Path) -> None:
    async def work() -> None:
        exchange = Exchange("BTCUSDT")
        async with rigged(tmp_path, exchange) as (rig, _):
            fill_history(rig)
            rig.corrections.plan(0, T0_MS, T0_MS)
            rig.corrections.tick(DUE_MS)
            make_room(rig, 2)  # the bar's two records fit, HEALED does not
            await until(lambda: said(rig) == [BAR])
            await asyncio.sleep(0.1)
            assert rig.lane.symbols[0, lane.LOSSY] == 1  # until it is said, or somebody will
            rig.set(lane.STATUS, lane.UNSURE)
            lane.doubt(rig.lane, 0, 1)
            make_room(rig, 100)
            await asyncio.sleep(0.1)
            assert said(rig) == [BAR, GAP]
            rig.set(lane.STATUS, lane.HELD)
            assert lane.release(rig.lane, 0, 1) == 0
            assert said(rig) == [BAR, GAP, HEALED]

    run(work)


def test_a_correction_pauses_while_trades_of_its_time_may_come(tmp_path: Path) -> None:
    async def work() -> None:
        exchange = Exchange("BTCUSDT")
        exchange.step_ms = 20_000
        async with rigged(tmp_path, exchange) as (rig, _):
            fill_history(rig)
            rig.corrections.plan(0, T0_MS, T0_MS + 60_000)
            rig.corrections.tick(DUE_MS + 60_000)
            make_room(rig, 2)
            await until(lambda: said(rig) == [BAR])
            assert exchange.requests[0].endswith("limit=2")
            rig.set(lane.STATUS, lane.HELD)
            make_room(rig, 100)
            await asyncio.sleep(0.1)
            assert said(rig) == [BAR]
            rig.set(lane.STATUS, lane.LIVE)
            await until(lambda: len(said(rig)) == 3)
            assert said(rig) == [BAR, BAR, HEALED]
            rig.corrections.tick(DUE_MS + 60_000)
            assert rig.ring.counters()["feed"]["uncorrected"] == 0

    run(work)
