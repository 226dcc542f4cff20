"""One timer for all deadlines: every time rings, however many share a millisecond."""

from __future__ import annotations

import asyncio
import random

from risk.alarms import Alarms


class Clock:
    """Boot time as the loop tells it, so that a timer cannot be early by the other clock."""

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()

    def __call__(self) -> float:
        return self.loop.time() * 1_000


async def rings(times_ms: list[float], wait_ms: float) -> tuple[list[float], float, int]:
    """(times since the start at which it rang, the start's part of a millisecond, what is left)."""
    clock, rang = Clock(), list[float]()
    start = clock()
    alarms = Alarms(clock, lambda: rang.append(clock() - start))
    for each in times_ms:
        alarms.ask(start + each)
    await asyncio.sleep(wait_ms / 1_000)
    left = len(alarms)
    alarms.close()
    return rang, start, left


def test_each_time_rings_once_and_never_before() -> None:
    rng = random.Random(7)
    times = sorted({float(rng.randrange(1, 120)) for _ in range(30)})
    rang, _, left = asyncio.run(rings(rng.sample(times, len(times)), 200.0))
    assert left == 0
    assert len(rang) <= len(times)  # a late one rings for all that are due by then
    for asked in times:  # for each of them it rang at its time or later
        assert any(at >= asked for at in rang)
    assert min(rang) >= min(times)


def test_many_deadlines_in_one_millisecond_ring_once() -> None:
    rang, _, left = asyncio.run(rings([20.0] * 500, 60.0))
    assert (len(rang), left) == (1, 0)


def test_a_time_that_has_passed_rings_in_the_next_turn() -> None:
    rang, _, _ = asyncio.run(rings([-5_000.0], 20.0))
    assert len(rang) == 1


def test_an_earlier_time_overtakes_and_the_later_one_still_rings() -> None:
    rang, _, left = asyncio.run(rings([80.0, 20.0], 120.0))
    assert left == 0 and len(rang) == 2
    assert rang[0] < 80.0 <= rang[1]


def test_nothing_rings_after_the_end() -> None:
    async def story() -> list[int]:
        rang: list[int] = []
        alarms = Alarms(Clock(), lambda: rang.append(1))
        for at_ms in (5.0, 10.0):
            alarms.ask(Clock()() + at_ms)
        alarms.close()
        await asyncio.sleep(0.03)
        return rang

    assert asyncio.run(story()) == []


def test_who_asks_again_while_it_rings_is_heard() -> None:
    async def story() -> int:
        clock, rang = Clock(), list[float]()

        def ring() -> None:
            rang.append(clock())
            if len(rang) < 4:
                alarms.ask(clock())

        alarms = Alarms(clock, ring)
        alarms.ask(clock() + 1)
        await asyncio.sleep(0.1)
        return len(rang)

    assert asyncio.run(story()) == 4
