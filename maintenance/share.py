"""Who owns which name: weighted rendezvous hashing, pure and the same in every process.

Each owner draws a score for each name; the highest has it. A newcomer takes its share evenly from
everybody and one that leaves gives its own away: no name moves between two that stay. Scores come
from a digest, never from hash(), which differs between processes.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping
from typing import Final

_BITS: Final = 52  # draw + 1/2 is then an exact double, and never 0 or 1


def score(name: str, owner: str, weight: float) -> float:
    """An owner's claim to a name. Of two owners one wins as often as its weight says."""
    digest = hashlib.blake2b(f"{owner}|{name}".encode(), digest_size=8).digest()
    draw = int.from_bytes(digest, "little") >> (64 - _BITS)
    return -weight / math.log((draw + 0.5) / 2**_BITS)


def divide(names: Iterable[str], weights: Mapping[str, float]) -> dict[str, list[str]]:
    """Owner -> its names, in the order in which they came. Weights are positive."""
    made: dict[str, list[str]] = {owner: [] for owner in weights}
    for name in names:
        _, owner = max((score(name, owner, weight), owner) for owner, weight in weights.items())
        made[owner].append(name)
    return made
