"""Planned scenarios as arrays, and what the market's kernel asks of them.

A scenario is a path of its symbol's log price through knots, relative to the price at its start;
between two knots the path is straight, and two knots of one time are a jump. The price keeps to
the path within WOBBLE of its whole range and between the levels of the two knots; at each knot it
is exactly on it, with a quote and a trade. A scenario without a steered price only adds events.
It draws from dice of its own, so that the other symbols' events are the same with it and without.

`plan` and `knots` are a function of the world's seed and the list of scenarios; `play` and `dice`
are the market's state, all zero until a scenario's time comes. A row never changes its place.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from venue.dice import Words

Floats = NDArray[np.float64]

SCENES_MAX = 1000  # planned over a world's whole life
KNOTS_MAX = 24

# plan: what was asked for; KNOTS 0 ends the table
SYM, AT_MS, QUIET_MS, RATE, SIZE, STEERED, KNOTS, LO, HI, SEED = range(10)
PLAN_COLS = 10
# play: how far it is
STAGE, NEXT_MS, EXTRA_MS, KNOT, START = range(5)
PLAY_COLS = 5
WAITING, RUNNING, DONE = 0, 1, 2
OFFSET_MS, LEVEL = 0, 1

WOBBLE = 0.1  # the price stays so near its path, as a share of the scenario's range
CALM_MS = 15_000.0  # a deviation from the path fades with this time constant


@dataclass(frozen=True, slots=True)
class Scenes:
    """All scenarios of a world; rows in the order in which they were planned."""

    plan: Floats
    knots: Floats
    play: Floats
    dice: Words

    def state(self) -> dict[str, NDArray[Any]]:
        return {"scene_play": self.play, "scene_dice": self.dice}


@dataclass(frozen=True, slots=True)
class Scene:
    """One row in the kernel's terms: knots (offset ms, log level), the first at (0, 0)."""

    symbol: int
    at_ms: int
    knots: tuple[tuple[float, float], ...]
    quiet_ms: float = 0.0  # nothing is published of the symbol for so long from the start on
    rate: float = 0.0  # events added per market second
    size: float = 1.0  # times the usual size of trades
    steered: bool = True


def empty() -> Scenes:
    return Scenes(
        np.zeros((SCENES_MAX, PLAN_COLS)),
        np.zeros((SCENES_MAX, KNOTS_MAX, 2)),
        np.zeros((SCENES_MAX, PLAY_COLS)),
        np.zeros(SCENES_MAX, np.uint64),
    )


def place(scenes: Scenes, row: int, scene: Scene, seed: int) -> None:
    """Writes one planned scenario; its time must not have come yet."""
    assert row < SCENES_MAX and 2 <= len(scene.knots) <= KNOTS_MAX
    assert scene.knots[0] == (0.0, 0.0), "a path starts where the price is"
    levels = [level for _, level in scene.knots]
    scenes.plan[row] = (
        scene.symbol,
        scene.at_ms,
        scene.quiet_ms,
        scene.rate,
        scene.size,
        float(scene.steered),
        len(scene.knots),
        min(levels),
        max(levels),
        (seed * 1_000_003 + row * 7919 + 5) % (1 << 53),
    )
    scenes.knots[row, : len(scene.knots)] = scene.knots


@njit(cache=True)
def next_scene(plan: Floats, play: Floats) -> int:
    """Row of the scenario whose next event is due first, the earlier planned one at a tie; -1."""
    found = -1
    best = np.inf
    for k in range(plan.shape[0]):
        if plan[k, KNOTS] == 0:
            break
        due = due_ms(plan, play, k)
        if due < best:
            found, best = k, due
    return found


@njit(cache=True, inline="always")
def due_ms(plan: Floats, play: Floats, k: int) -> float:
    if play[k, STAGE] == WAITING:
        return float(plan[k, AT_MS])
    return float(play[k, NEXT_MS]) if play[k, STAGE] == RUNNING else np.inf


@njit(cache=True)
def wobble(plan: Floats, before: float, gap_ms: float, step: float, k: int) -> float:
    """Deviation from the path after `gap_ms`, given the free step of that time."""
    band = WOBBLE * (plan[k, HI] - plan[k, LO])
    return float(max(-band, min(band, before * np.exp(-gap_ms / CALM_MS) + step)))


@njit(cache=True)
def steered(
    plan: Floats, knots: Floats, play: Floats, k: int, now_ms: float, deviation: float
) -> float:
    """The price of now: on the path but for the deviation, between the levels of both knots."""
    offset = now_ms - plan[k, AT_MS]
    last = int(plan[k, KNOTS]) - 1
    j = last
    while j > 0 and knots[k, j, OFFSET_MS] > offset:
        j -= 1
    level = knots[k, j, LEVEL]
    if j < last:
        after = knots[k, j + 1, LEVEL]
        span = knots[k, j + 1, OFFSET_MS] - knots[k, j, OFFSET_MS]
        path = level + (after - level) * (offset - knots[k, j, OFFSET_MS]) / span
        level = max(min(level, after), min(max(level, after), path + deviation))
    return float(play[k, START] * np.exp(level))


@njit(cache=True)
def schedule(plan: Floats, knots: Floats, play: Floats, k: int) -> None:
    """Sets when the scenario acts next: its next knot or its next added event; else it is done."""
    at = int(play[k, KNOT])
    if at >= plan[k, KNOTS]:
        play[k, STAGE] = DONE
        return
    play[k, NEXT_MS] = min(plan[k, AT_MS] + knots[k, at, OFFSET_MS], play[k, EXTRA_MS])
