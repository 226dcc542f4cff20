"""Random numbers of the venue's kernels: splitmix64 over a state of one word, nothing shared."""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

Words = NDArray[np.uint64]


@njit(cache=True, inline="always")
def _uniform(rng: Words) -> float:
    """splitmix64, in (0, 1)."""
    rng[0] += np.uint64(0x9E3779B97F4A7C15)
    z = rng[0]
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    z = z ^ (z >> np.uint64(31))
    return (float(z >> np.uint64(11)) + 0.5) / 9007199254740992.0


@njit(cache=True, inline="always")
def _normal(rng: Words) -> float:
    radius = np.sqrt(-2.0 * np.log(_uniform(rng)))
    return float(radius * np.cos(6.283185307179586 * _uniform(rng)))


@njit(cache=True, inline="always")
def _size(rng: Words, mean: float) -> int:
    """Log-normal size with a fat tail, at least one unit."""
    return max(1, int(mean * 0.55 * np.exp(1.1 * _normal(rng)) + 0.5))
