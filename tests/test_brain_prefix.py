"""Nothing that was known depends on what came later, nor on how the stream was cut."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from brain_bench import announced, clock, lively_market, random_market, table
from market_files import read_session, trade_sessions
from witness import KINDS, Fact, by_kind, known_until, peeking, violations, witness

import records as rec


def clean_cuts(recs: np.ndarray, count: int, seed: int) -> list[int]:
    """Places where everything before is older than everything after."""
    ns = np.where(recs["exch_ns"] > 0, recs["exch_ns"], 0)
    before, after = np.maximum.accumulate(ns), np.minimum.accumulate(ns[::-1])[::-1]
    good = np.flatnonzero(before[:-1] < after[1:]) + 1
    good = good[good > len(recs) // 4]
    return sorted(np.random.default_rng(seed).choice(good, count, replace=False).tolist())


def market(seed: int) -> tuple[np.ndarray, int]:
    """Alternately a quiet market with silences and late prints, and a lively one that signals."""
    if seed % 2:
        return table(lively_market(seed, 2, 150)), 2
    arrivals = []
    for symbol in (0, 1):
        rows = random_market(seed + symbol, 900, symbol, late=0.01)
        newest = np.maximum.accumulate([row[0] for row in rows]).tolist()
        arrivals += list(zip(newest, rows, strict=True))
    arrivals.sort(key=lambda pair: pair[0])
    return table(announced() + announced(1) + [row for _, row in arrivals]), 2


def check_prefixes(recs: np.ndarray, symbols: int, cuts: list[int]) -> Counter[str]:
    """Asserts the invariance at every cut; how many facts of each kind were compared."""
    whole, counts = witness(recs, symbols), Counter[str]()
    for cut in cuts:
        prefix = witness(recs[:cut], symbols)
        ns = int(recs["exch_ns"][:cut].max())
        assert len(known_until(prefix, ns)) == len(prefix)
        assert violations(prefix, whole, ns) == []
        counts.update(fact[0] for fact in prefix)
    return counts


@pytest.mark.parametrize("seed", range(6))
def test_a_prefix_alone_says_all_that_the_whole_stream_says_of_it(seed: int) -> None:
    recs, symbols = market(seed)
    counts = check_prefixes(recs, symbols, clean_cuts(recs, 4, seed))
    assert all(counts[kind] > 50 for kind in KINDS if kind != "effect")
    assert seed % 2 == 0 or counts["effect"] > 50


@pytest.mark.parametrize("name", trade_sessions())
def test_real_ticks_too(name: str) -> None:
    recs = np.concatenate([table(announced()), read_session(name)])
    assert check_prefixes(recs, 1, clean_cuts(recs, 3, 1))["bars"] > 5


def twins(seed: int) -> tuple[list[Fact], list[Fact], int]:
    recs, symbols = market(seed)
    cut = clean_cuts(recs, 1, seed)[0]
    ns = int(recs["exch_ns"][:cut].max())
    return witness(recs[:cut], symbols), witness(recs, symbols), ns


@pytest.mark.parametrize("kind", KINDS)
def test_a_planted_peek_of_one_fact_is_caught(kind: str) -> None:
    prefix, whole, ns = twins(5)
    assert violations(prefix, whole, ns) == []
    assert violations(peeking(prefix, kind), peeking(whole, kind), ns) == [kind]


@pytest.mark.parametrize("seed", [2, 5])
@pytest.mark.parametrize("batch", [1, 7])
def test_the_cut_into_batches_changes_no_fact(seed: int, batch: int) -> None:
    recs, symbols = market(seed)
    assert by_kind(witness(recs, symbols, batch)) == by_kind(witness(recs, symbols, 4096))


def test_records_after_the_head_are_not_read() -> None:
    """The future lies in the ring's memory already; two of them, one past, one answer."""
    recs, symbols = market(3)
    cut = clean_cuts(recs, 1, 3)[0]
    other = recs.copy()
    later = (np.arange(len(recs)) >= cut) & (recs["kind"] == rec.TRADE)
    other["a"][later] *= 1.01
    ns = int(recs["exch_ns"][:cut].max())
    assert violations(witness(recs, symbols), witness(other, symbols), ns) == []


@pytest.mark.parametrize("event_rows", [170, 200, 333])
def test_events_that_run_out_of_rows_change_no_signal(event_rows: int) -> None:
    """One record may close more bars than there are rows for; it is then taken in parts."""
    minute_ns = 60_000_000_000
    rows = [r for r in lively_market(11, 6, 300, per_minute=4) if r[0] % minute_ns or not r[0]]
    first = rows[-1][0] // minute_ns - 299
    rows += [clock((first + m) * 60_000 + 1_000) for m in range(1, 300)]
    recs = table(sorted(rows, key=lambda row: row[0]))
    whole = by_kind(witness(recs, 6))
    parts = by_kind(witness(recs, 6, event_rows=event_rows))
    assert len(whole["effect"]) > 100
    assert parts["event"] == whole["event"] and parts["effect"] == whole["effect"]
