"""Latency histograms: every number has one bucket, a percentile is its bucket's upper edge."""

from __future__ import annotations

import random

import pytest

import latency

EDGES = [0, 1, 2, 3, *(2**k + d for k in range(2, 63) for d in (-1, 0, 1)), 2**63 - 1]


@pytest.mark.parametrize("value", sorted(set(EDGES)))
def test_a_number_lies_below_the_edge_of_its_bucket_and_not_below_the_one_before(
    value: int,
) -> None:
    index = latency.bucket(value)
    assert 0 <= index < latency.BUCKETS
    assert value < latency.edge(index) <= max(value * 1.25, value + 1)
    assert index == 0 or value >= latency.edge(index - 1)


def test_what_is_negative_counts_as_nothing() -> None:
    assert latency.bucket(-5) == 0


@pytest.mark.parametrize(
    ("counts", "share", "expected"),
    [([0, 0, 0], 0.5, None), ([1, 0, 0], 0.5, 1), ([1, 1, 0], 0.5, 1), ([1, 2, 0], 0.5, 2),
     ([99, 0, 1], 0.99, 1), ([98, 0, 2], 0.99, 3), ([0, 0, 1], 0.0, 3)],
)  # fmt: skip
def test_a_percentile_is_the_upper_edge_of_its_bucket(
    counts: list[int], share: float, expected: int | None
) -> None:
    assert latency.percentile(counts, share) == expected


def test_percentiles_of_samples_are_true_to_a_quarter() -> None:
    chance = random.Random(7)
    samples = sorted(int(chance.lognormvariate(12, 2)) + 4 for _ in range(5_000))
    counts = [0] * latency.BUCKETS
    for sample in samples:
        counts[latency.bucket(sample)] += 1
    for share in (0.5, 0.9, 0.99):
        true = samples[int(share * len(samples)) - 1]
        told = latency.percentile(counts, share)
        assert told is not None and true < told <= true * 1.25 + 1
