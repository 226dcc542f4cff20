"""Latency histograms: four buckets an octave, so that a percentile is true to a quarter. Pure.

row[latency.bucket(ns)] += 1
p99_ns = latency.percentile(row.tolist(), 0.99)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

_BITS: Final = 2  # of a value behind its highest one that tell its bucket
BUCKETS: Final = 63 - _BITS + 1 << _BITS  # all non-negative 64-bit numbers


def bucket(value: int) -> int:
    """The bucket of a number; what is negative counts as 0."""
    if value < 1 << _BITS:
        return max(value, 0)
    shift = value.bit_length() - _BITS - 1
    return (shift << _BITS) + (value >> shift)


def edge(index: int) -> int:
    """The first number above a bucket."""
    shift = max((index >> _BITS) - 1, 0)
    return index - (shift << _BITS) + 1 << shift


def percentile(counts: Sequence[int], share: float) -> int | None:
    """The edge below which `share` of the samples lie; None without samples."""
    total, reached = sum(counts), 0
    for index, count in enumerate(counts):
        reached += count
        if reached and reached >= share * total:
            return edge(index)
    return None
