"""The circumstances of one chaos run, drawn from its seed: how much is traded, how fast, how near.

Few places and wide stops hold positions through faults; many places and near stops turn them over.
Every seed is another mixture, so that several seeds together see both.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Final

PLACES: Final = (3, 6, 9, 12)
SYMBOLS_EACH: Final = 3  # symbols to a place: enough for a signal to find a free one ...
SYMBOLS_MIN: Final = 12  # ... and in all
STOP_LEAST: Final = (0.0008, 0.0025)  # nearest stop, as a share of the price
STOP_MOST: Final = (0.003, 0.008)  # farthest
REST_S: Final = (0.02, 0.12)  # between two bursts of signals
BURST: Final = (2, 6)  # signals at once, at most
AGAIN_SHARE: Final = (0.02, 0.10)  # of the signals that are an earlier one, sent again


@dataclass(frozen=True, slots=True)
class World:
    symbols: int
    positions_max: int
    distance: tuple[float, float]  # of a stop or target, as a share of the price
    pause_s: tuple[float, float]
    burst: int
    again: float


def world(seed: int) -> World:
    """The same seed, the same circumstances."""
    chance = random.Random(f"world {seed}")
    places = chance.choice(PLACES)
    return World(
        symbols=max(places * SYMBOLS_EACH, SYMBOLS_MIN),
        positions_max=places,
        distance=(chance.uniform(*STOP_LEAST), chance.uniform(*STOP_MOST)),
        pause_s=REST_S,
        burst=chance.randint(*BURST),
        again=chance.uniform(*AGAIN_SHARE),
    )
