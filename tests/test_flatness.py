"""Memory over ticks: flat, and a planted allocation of each kind is seen."""

from __future__ import annotations

import mmap
import os
import sys
from pathlib import Path

import numpy as np
import pytest
from numba import njit

sys.path.insert(0, str(Path(__file__).parent))
import flatness

TICKS = int(float(os.environ.get("FLAT_TICKS", "5e6")))  # as a command: 1e8


@njit
def allocate(count: int) -> float:
    """One array a tick, given back at once: neither Python nor the resident size sees it."""
    total = 0.0
    for number in range(count):
        made = np.empty(2)
        made[0] = number
        total += made[0]
    return total


def test_memory_is_flat_over_ticks_and_closes() -> None:
    found = flatness.run(TICKS)
    assert found.flat, found
    assert found.closes > 100


KEPT: list[object] = []


def keep_pages() -> None:
    """Pages from the system itself: nothing that Python counts, nothing that lay free before."""
    pages = mmap.mmap(-1, 320 * 1024)
    pages.write(b"x" * len(pages))
    KEPT.append(pages)


@pytest.mark.parametrize(
    ("plant", "seen"),
    [
        (lambda: allocate(flatness.FRAMES), "arrays_per_tick"),
        (lambda: KEPT.append(bytearray(5_000)), "python_bytes"),
        (keep_pages, "resident_bytes"),
    ],
)
def test_a_planted_allocation_is_seen(plant: object, seen: str) -> None:
    found = flatness.run(1_000_000, plant)  # type: ignore[arg-type]
    KEPT.clear()
    assert not found.flat, found
    limits = {
        "arrays_per_tick": flatness.ARRAYS_PER_TICK_MAX,
        "python_bytes": flatness.PYTHON_BYTES_MAX,
        "resident_bytes": flatness.RESIDENT_BYTES_MAX,
    }
    assert getattr(found, seen) > limits[seen], found
