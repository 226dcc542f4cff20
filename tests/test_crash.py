"""Death at any instruction of the kernels that write ring and brain state; see crash_everywhere.py.

Every distinct state that a death can leave is checked, out of one run that is stepped instruction
by instruction; a sample of real SIGKILLs proves that the states are the right ones. The full set,
a real death after each instruction, is `python tests/crash_everywhere.py`.

    CRASH_SEED=<printed> pytest tests/test_crash.py -s
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path

import crash_everywhere
import pytest
import stepping
from crash_everywhere import Scene

import ring as rings

SEED = int(os.environ.get("CRASH_SEED", random.SystemRandom().randrange(1 << 30)))
INSTRUCTIONS = 80_000  # that real deaths may step through, per scene
DEATHS_MIN, DEATHS_MAX = 4, 24


def sample(steps: int, rng: random.Random) -> list[int]:
    """Instructions to die after: one of each stretch, at a random place in it."""
    count = max(DEATHS_MIN, min(DEATHS_MAX, 2 * INSTRUCTIONS // steps))
    return [int((n + rng.random()) * steps / count) for n in range(count)]


@pytest.fixture(autouse=True)
def tracer() -> None:
    why_not = stepping.unable()
    if why_not:
        pytest.skip(why_not)


@pytest.mark.parametrize(
    ("scenes", "names"),
    [
        (crash_everywhere.feed_scenes, "decode; decode, short ring; flush; emit; release"),
        (crash_everywhere.brain_scenes, "consume; arm"),
    ],
    ids=["feed", "brain"],
)
def test_a_death_at_any_instruction_loses_tears_and_forgets_nothing(
    tmp_path: Path, scenes: Callable[[Path], Iterator[Scene]], names: str
) -> None:
    print(f"CRASH_SEED={SEED}")
    rng, seen = random.Random(SEED), []
    for scene in scenes(tmp_path):
        states = 0
        for _ in scene.states():
            scene.check()
            states += 1
        deaths = sample(scene.steps, rng)
        for steps in deaths:
            scene.dies_for_real(steps)
        print(f"{scene.name}: {scene.steps} instructions, {states} states, {len(deaths)} deaths")
        assert states > 5, "the stores of the kernel were not seen"
        seen.append(scene.name)
    assert "; ".join(seen) == names


@pytest.mark.parametrize("only_the_head", [True, False])
def test_the_check_refuses_stores_in_another_order(tmp_path: Path, only_the_head: bool) -> None:
    """A head before its slots shows garbage; ids remembered before the head are never sent."""
    scene = next(crash_everywhere.feed_scenes(tmp_path))
    for _ in scene.states():
        pass
    scene.restore([c for c in scene.changes if (c.index == rings.HEAD) == only_the_head])
    with pytest.raises((AssertionError, KeyError)):
        scene.check()
