"""Following: stop before target before nothing; time-outs; no allocation while it runs."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from brain_bench import (
    START_MS,
    Bench,
    announced,
    bar,
    clock,
    lively_market,
    plain,
    table,
    trade,
)

import records as rec
from brain import kernel
from brain.events import LOSS, OUTCOME, TIMEOUT, WIN
from brain.follow import arm
from brain.state import FOLLOWED, OPEN_SIGNALS
from ring import HEAD

MINUTE = 60_000
KNOWN_MS = START_MS + 1_000
DEADLINE_MS = KNOWN_MS + 60 * MINUTE
LONG, SHORT = (1, 100.0, 99.0, 101.5), (-1, 100.0, 101.0, 98.5)


def following(bracket: tuple[int, float, float, float], price: float = 100.0) -> Bench:
    bench = Bench()
    bench.feed(table([*announced(), trade(0, START_MS, 1, price, 1.0)]))
    side, entry, stop, target = bracket
    a = bench.state.arrays
    known_ns = KNOWN_MS * 1_000_000
    arm(a, 0, 0, 7, known_ns, DEADLINE_MS, START_MS + MINUTE, side, entry, stop, target)
    return bench


def outcomes(bench: Bench) -> list[tuple[int, float, float, float]]:
    """(result, gross R, price, milliseconds) of each end."""
    return [(e[14], e[5], e[6], e[7]) for e in bench.events if e[13] == OUTCOME]


@pytest.mark.parametrize(
    "bracket, price, expected",
    [
        (LONG, 99.25, []),
        (LONG, 99.0, [(LOSS, -1.0, 99.0, 500.0)]),
        (LONG, 98.5, [(LOSS, -1.5, 98.5, 500.0)]),
        (LONG, 101.25, []),
        (LONG, 101.5, [(WIN, 1.5, 101.5, 500.0)]),
        (LONG, 103.0, [(WIN, 1.5, 101.5, 500.0)]),
        (SHORT, 100.75, []),
        (SHORT, 101.0, [(LOSS, -1.0, 101.0, 500.0)]),
        (SHORT, 98.75, []),
        (SHORT, 98.5, [(WIN, 1.5, 98.5, 500.0)]),
    ],
)
def test_a_trade_at_or_beyond_a_level_ends_it(bracket, price, expected) -> None:
    bench = following(bracket)
    bench.feed(table([trade(0, KNOWN_MS + 500, 2, price, 1.0)]))
    assert outcomes(bench) == expected
    assert bench.state.arrays.sym[0, OPEN_SIGNALS] == 1 - len(expected)


@pytest.mark.parametrize("ms, ends", [(KNOWN_MS - 1, 0), (KNOWN_MS, 1)])
def test_a_trade_from_before_it_was_known_does_not_count(ms: int, ends: int) -> None:
    bench = following(LONG)
    bench.feed(table([trade(0, ms, 2, 98.0, 1.0)]))
    assert len(outcomes(bench)) == ends


@pytest.mark.parametrize("ms, ends", [(DEADLINE_MS - 1, 0), (DEADLINE_MS, 1)])
@pytest.mark.parametrize("by_clock", [True, False])
def test_a_time_out_ends_it_at_the_last_price(ms: int, ends: int, by_clock: bool) -> None:
    bench = following(LONG, price=100.5)
    bench.feed(table([clock(ms) if by_clock else trade(0, ms, 2, 99.5, 1.0)]))
    assert outcomes(bench) == [(TIMEOUT, 0.5, 100.5, 3_600_000.0)][:ends]


def hour_bar(open_ms: int, high: float, low: float) -> list[tuple]:
    values = (100.0, high, low, 100.0, 1.0, 100.0, 0.5, 3.0)
    return bar(0, open_ms, 1, values, rec.CLOSED | rec.CORRECTION)


@pytest.mark.parametrize(
    "high, low, expected",
    [
        (101.5, 99.0, [(LOSS, -1.0, 99.0)]),
        (101.5, 99.25, [(WIN, 1.5, 101.5)]),
        (101.25, 99.25, []),
    ],
)
def test_on_a_bar_that_reaches_both_the_stop_was_first(high, low, expected) -> None:
    bench = following(LONG)
    bench.feed(table(hour_bar(START_MS + MINUTE, high, low)))
    assert [o[:3] for o in outcomes(bench)] == expected


def test_a_bar_that_began_before_the_signal_judges_nothing() -> None:
    bench = following(LONG)
    bench.feed(table(hour_bar(START_MS, 110.0, 90.0)))
    assert outcomes(bench) == []


def test_a_dropped_symbol_is_followed_no_more_and_its_return_neither() -> None:
    bench = following(LONG)
    bench.feed(table([plain(rec.DROP, 0), *announced(), trade(0, KNOWN_MS + 5, 9, 50.0, 1.0)]))
    assert outcomes(bench) == []


def test_a_new_announcement_of_the_same_symbol_goes_on_following() -> None:
    bench = following(LONG)
    bench.feed(table([*announced(), trade(0, KNOWN_MS + 500, 9, 99.0, 1.0)]))
    assert outcomes(bench) == [(LOSS, -1.0, 99.0, 500.0)]


def test_the_table_is_bounded_and_arming_twice_is_arming_once() -> None:
    bench = following(LONG)
    a = bench.state.arrays
    slots = [arm(a, 0, 0, 100 + i, 0, 1, 0, 1, 100.0, 99.0, 101.0) for i in range(FOLLOWED)]
    assert slots == [*range(1, FOLLOWED), -1]
    assert arm(a, 0, 0, 7, 0, 1, 0, 1, 100.0, 99.0, 101.0) == 0


def test_the_kernel_allocates_nothing() -> None:
    from numba.core.runtime import _nrt_python as nrt
    from numba.core.runtime import rtsys

    recs = table(lively_market(1, 4, 200))
    bench = Bench(4)
    slots = np.zeros(1 << 16, rec.RECORD)
    slots[: len(recs)] = recs
    raw, seq = kernel.raw_view(slots), 0
    bench.words[HEAD] = len(recs)

    def turn(at: int) -> int:
        return kernel.consume(
            bench.words, slots, raw, bench.state.arrays, bench.rows, bench.where, bench.masks,
            bench.stats, at, 256,
        )[0]  # fmt: skip

    seq = turn(turn(seq))
    nrt.memsys_enable_stats()
    tracemalloc.start()
    before, native = tracemalloc.take_snapshot(), rtsys.get_allocation_stats()
    calls = 0
    while seq < len(recs):
        seq, calls = turn(seq), calls + 1
    after, native_after = tracemalloc.take_snapshot(), rtsys.get_allocation_stats()
    tracemalloc.stop()
    grown = sum(d.size_diff for d in after.compare_to(before, "filename"))
    assert calls > 100 and native_after == native  # its kernels are compiled without an allocator
    assert bench.count("closes") > 900
    assert grown < 16_384 < len(recs)  # this test's own numbers; nothing per record
