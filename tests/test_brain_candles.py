"""Candles: equal to the slow twin, whatever the cut into batches; restart goes on where it was."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from brain_bench import (
    START_MS,
    Bench,
    announced,
    bar,
    clock,
    plain,
    quote,
    random_market,
    table,
    trade,
)
from naive import candles as naive

import records as rec
from brain.events import CLOSE_EVENT
from brain.state import (
    BAR_FIELDS,
    BID,
    C_ASK_ALL,
    DEGRADED,
    KERNEL_FILES,
    LAST_ID,
    WAITS,
    candles,
    code_hash,
    open_state,
)

MINUTE = 60_000


def twin(rows: list[tuple]) -> naive.Book:
    book = naive.Book()
    rows = list(rows)
    for i, row in enumerate(rows):
        kind = row[8]
        if kind == rec.TRADE:
            book.trade(row[0], row[2], row[3], row[4], bool(row[9] & rec.BUYER_MAKER))
        elif kind == rec.CLOCK:
            book.clock(row[0])
        elif kind == rec.BAR:
            v = rows[i + 1]
            book.bar(row[10], row[0] // 1_000_000, row[3:7] + v[3:7], bool(row[9] & rec.CLOSED))
    return book


def assert_equal(bench: Bench, book: naive.Book) -> None:
    for t, minutes in enumerate(rec.TIMEFRAMES_MIN):
        assert bench.history(0, t) == naive.history(book, minutes)[-128:], minutes
        at, values = bench.forming(0, t)
        assert at == book.forming[minutes]
        if values[7] > 0:
            assert values == book.bars[minutes][at].values()


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("late", [0.0, 0.05])
def test_candles_equal_the_twin(seed: int, late: float) -> None:
    rows = random_market(seed, 3_000, late=late)
    bench = Bench()
    bench.feed(table(announced() + rows))
    book = twin(rows)
    assert_equal(bench, book)
    assert bench.count("late") == book.late
    assert bench.count("trades") == 3_000
    closes = [
        (rec.TIMEFRAMES_MIN[e[12]], e[2], e[0], tuple(e[5:11])) for e in bench.events if e[13] == 1
    ]
    assert sorted(closes) == sorted((m, at, ns, v[:6]) for m, at, ns, v in book.closes)


def unasked(events: list[tuple]) -> list[tuple]:
    """Events without what the stop masks wanted of closes."""
    return [(*e[:14], 0, *e[15:]) if e[13] == CLOSE_EVENT else e for e in events]


@pytest.mark.parametrize("batch", [1, 7, 4096])
def test_the_cut_into_batches_changes_nothing(batch: int) -> None:
    recs = table(announced() + random_market(3, 4_000, late=0.02))
    whole, cut = Bench(), Bench()
    cut.masks[:] = -1 if batch == 7 else 0
    whole.feed(recs)
    cut.feed(recs, batch)
    assert {e[14] for e in cut.events if e[13] == CLOSE_EVENT} == {int(batch == 7)}  # asked for
    assert unasked(whole.events) == unasked(cut.events)
    assert bool(cut.state.arrays.sym[0, WAITS]) == (batch == 7)
    cut.state.arrays.sym[0, WAITS] = 0  # it belongs to the asking
    for one, other in zip(whole.state.arrays[1:], cut.state.arrays[1:], strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_nearly_full_event_array_only_delays() -> None:
    recs = table(announced() + random_market(5, 3_000))
    whole, small = Bench(), Bench(event_rows=200)
    whole.feed(recs)
    small.feed(recs)
    assert whole.events == small.events


@pytest.mark.parametrize("wait_ms, closed", [(999, 0), (1_000, 1), (1_001, 1)])
def test_a_silent_bar_closes_a_second_after_its_end(wait_ms: int, closed: int) -> None:
    bench = Bench()
    rows = [*announced(), trade(0, START_MS, 1, 10.0, 1.0), clock(START_MS + MINUTE + wait_ms)]
    bench.feed(table(rows))
    assert bench.count("closes") == closed


def test_a_degraded_symbol_is_closed_by_no_clock() -> None:
    bench = Bench()
    rows = [
        *announced(healed=False),
        trade(0, START_MS, 1, 10.0, 1.0),
        clock(START_MS + MINUTE * 9),
    ]
    bench.feed(table(rows))
    assert bench.count("closes") == 0
    bench.feed(table([plain(rec.HEALED, 0), clock(START_MS + 9 * MINUTE)]))
    assert bench.history(0, 0)[-1] == (START_MS + 7 * MINUTE, (10.0,) * 4 + (0.0,) * 4)


def test_a_silence_longer_than_the_history_leaves_it_contiguous() -> None:
    bench = Bench()
    rows = [trade(0, START_MS, 1, 10.0, 1.0), trade(0, START_MS + 500 * MINUTE, 2, 11.0, 1.0)]
    bench.feed(table(announced() + rows))
    opens = [at for at, _ in bench.history(0, 0)]
    assert opens == [START_MS + m * MINUTE for m in range(500 - 128, 500)]


def test_trades_are_taken_once_and_gaps_counted() -> None:
    bench = Bench()
    ids = [1, 2, 2, 1, 3, 6, 7]
    rows = [trade(0, START_MS + i, n, 10.0, 1.0) for i, n in enumerate(ids)]
    bench.feed(table(announced() + rows))
    assert (bench.count("trades"), bench.count("duplicates"), bench.count("gaps")) == (5, 2, 1)
    assert bench.forming(0, 0)[1][7] == 5


def test_an_announced_loss_is_no_gap() -> None:
    bench = Bench()
    rows = [trade(0, START_MS, 1, 10.0, 1.0), plain(rec.GAP, 0, START_MS, 2, 3.0)]
    rows += [plain(rec.GAP, 0, START_MS, 2, 3.0), trade(0, START_MS, 5, 10.0, 1.0)]
    bench.feed(table(announced() + rows))
    assert (bench.count("gaps"), bench.count("lost_trades")) == (0, 3)


def warm_up(minutes: int = 3) -> list[tuple]:
    rows = announced(healed=False)
    for tf in (5, 1):
        for i in range(minutes, 0, -1):
            at = START_MS - i * tf * MINUTE
            rows += bar(
                0, at, tf, (5.0 + i, 9.0 + i, 4.0, 6.0 + i, 2.0, 12.0, 1.0, 7.0), rec.CLOSED
            )
    return rows


def test_warm_up_bars_are_history_and_prefixes_begin_the_forming_bar() -> None:
    bench = Bench()
    live_ms = START_MS + 2 * MINUTE
    prefix = (8.0, 9.0, 7.0, 8.5, 3.0, 25.0, 2.0, 11.0)
    rows = warm_up()
    for i in (0, 1):
        rows += bar(0, START_MS + i * MINUTE, 1, (7.0,) * 4 + (0.0,) * 4, rec.CLOSED)
    rows += bar(0, START_MS, 5, prefix, 0)
    rows += [trade(0, live_ms, 50, 10.0, 2.0, rec.BUYER_MAKER), plain(rec.HEALED, 0)]
    bench.feed(table(rows))
    assert bench.count("closes") == 0
    assert bench.forming(0, 1) == (START_MS, (8.0, 10.0, 7.0, 10.0, 5.0, 45.0, 2.0, 12.0))
    assert bench.forming(0, 0) == (live_ms, (10.0,) * 4 + (2.0, 20.0, 0.0, 1.0))
    assert [at for at, _ in bench.history(0, 0)][-1] == START_MS + MINUTE
    assert_equal(bench, twin(rows))


def test_a_second_announcement_starts_clean_and_counts_no_trade_twice() -> None:
    bench = Bench()
    minute = [trade(0, START_MS + i * 1000, 10 + i, 10.0 + i, 1.0) for i in range(5)]
    once = warm_up() + minute + [plain(rec.HEALED, 0)]
    bench.feed(table(once))
    before = bench.history(0, 0), bench.forming(0, 0)
    bench.feed(table(once))
    assert (bench.history(0, 0), bench.forming(0, 0)) == before
    assert bench.count("trades") == 5


@pytest.mark.parametrize("age", [1, 5, 128, 129])
def test_a_correction_replaces_a_kept_candle_and_is_analysed_anew(age: int) -> None:
    bench = Bench()
    rows = [trade(0, START_MS + m * MINUTE, m + 1, 10.0 + m % 7, 1.0) for m in range(200)]
    bench.feed(table(announced() + rows))
    at = START_MS + (199 - age) * MINUTE
    wrong = bench.state.arrays.ind[0, 0].copy()
    values = (30.0, 31.0, 29.0, 30.5, 4.0, 120.0, 3.0, 9.0)
    bench.feed(table(bar(0, at, 1, values, rec.CLOSED | rec.CORRECTION)))
    kept = dict(bench.history(0, 0))
    assert (kept.get(at) == values) == (age <= 128)
    assert bench.count("corrections") == (age <= 128)
    if age <= 128:
        assert not np.array_equal(wrong, bench.state.arrays.ind[0, 0], equal_nan=True)


def test_a_plain_bar_of_a_known_time_changes_nothing() -> None:
    bench = Bench()
    rows = [trade(0, START_MS + m * MINUTE, m + 1, 10.0 + m % 7, 1.0) for m in range(20)]
    bench.feed(table(announced() + rows))
    before = bench.history(0, 0)
    bench.feed(table(bar(0, START_MS + 5 * MINUTE, 1, (1.0,) * 8, rec.CLOSED)))
    assert bench.history(0, 0) == before


def test_a_dropped_row_is_forgotten_and_its_records_are_orphans() -> None:
    bench = Bench()
    rows = [*announced(), trade(0, START_MS, 1, 10.0, 1.0), plain(rec.DROP, 0)]
    bench.feed(table([*rows, trade(0, START_MS, 2, 10.0, 1.0)]))
    assert (bench.count("trades"), bench.count("orphans")) == (1, 1)
    assert bench.state.row("S0USDT") is None


def test_a_restart_from_the_file_gives_identical_candles(tmp_path: object) -> None:
    recs = table(announced() + random_market(9, 3_000, late=0.02))
    whole = Bench()
    whole.feed(recs)
    path = f"{tmp_path}/lane.brain"
    for cut in (recs[:1_500], recs[1_500:]):
        state = open_state(path, 1, ring_identity=5, world=6)
        bench = Bench(state=state)
        bench.feed(cut)
    assert not state.fresh
    for one, other in zip(whole.state.arrays[1:], state.arrays[1:], strict=True):
        np.testing.assert_array_equal(one, other)
    reader = open_state(path, 1, create=False)
    got = candles(reader, "S0USDT", "5m")
    assert [(r["open_ms"], tuple(r[n] for n in BAR_FIELDS)) for r in got] == whole.history(0, 1)


@pytest.mark.parametrize("ring, world", [(5, 7), (6, 6)])
def test_a_state_of_another_ring_or_world_is_not_continued(
    tmp_path: object, ring: int, world: int
) -> None:
    path = f"{tmp_path}/lane.brain"
    open_state(path, 1, ring_identity=5, world=6).arrays.sym[0, 0] = 1
    assert open_state(path, 1, ring_identity=5, world=6).arrays.sym[0, 0] == 1
    again = open_state(path, 1, ring_identity=ring, world=world)
    assert again.fresh and again.arrays.sym[0, 0] == 0


def test_a_state_that_begins_anew_leaves_the_old_file_to_those_who_map_it(tmp_path: object) -> None:
    path = f"{tmp_path}/lane.brain"
    old = open_state(path, 1, ring_identity=5, world=6)
    old.arrays.sym[0, 0] = 1
    for symbols in (1, 2):
        anew = open_state(path, symbols, ring_identity=9, world=symbols)
        assert anew.fresh and anew.arrays.control[C_ASK_ALL] == 1
        anew.arrays.sym[:] = 7
    assert old.arrays.sym[0, 0] == 1


def test_ids_of_refused_prints_are_no_loss_and_no_jump() -> None:
    bench = Bench()
    refused = (0, 1, 6, 1.0, 0.0, 0.0, 0.0, 0, rec.GAP, rec.REFUSED, 0)
    rows = [trade(0, START_MS, 5, 1.0, 1.0), refused, trade(0, START_MS, 7, 1.0, 1.0)]
    bench.feed(table([*announced(), *rows]))
    assert (bench.count("trades"), bench.count("gaps"), bench.count("lost_trades")) == (2, 0, 0)
    assert bench.state.arrays.sym[0, [LAST_ID, DEGRADED]].tolist() == [7, 0]


@pytest.mark.parametrize("later_ms, taken", [(-1, 0), (0, 0), (1, 1)])
def test_quotes_of_an_exchange_that_counts_anew_are_taken(later_ms: int, taken: int) -> None:
    bench = Bench()
    rows = [quote(0, START_MS, 900, 1.0, 2.0), quote(0, START_MS + later_ms, 3, 5.0, 6.0)]
    bench.feed(table([*announced(), *rows]))
    assert (bench.count("quotes"), bench.count("duplicates")) == (1 + taken, 1 - taken)
    assert bench.state.arrays.px[0, BID] == (5.0 if taken else 1.0)


def test_the_code_hash_covers_every_kernel() -> None:
    folder = Path(code_hash.__code__.co_filename).parent
    found = re.compile(r"^@(step|entry|inlined)$", re.M)
    kernels = {p.name for p in folder.glob("*.py") if found.search(p.read_text())}
    assert kernels <= set(KERNEL_FILES)


MIDNIGHT_MS = START_MS + 90 * MINUTE


def exact_market(seed: int, trades: int) -> list[tuple]:
    """Trades from midnight on whose sums are exact in any order; ids from 1."""
    rng = np.random.default_rng(seed)
    rows, now_ms, price = [], MIDNIGHT_MS, 1000
    for number in range(1, trades + 1):
        now_ms += int(rng.exponential(9_000.0)) + 1
        price = max(1, price + int(rng.integers(-5, 6)))
        qty = int(rng.integers(1, 80)) / 8
        rows.append(trade(0, now_ms, number, float(price), qty, int(rng.integers(2))))
    return rows


def fold_trades(rows: list[tuple], minutes: int, open_ms: int) -> tuple[float, ...]:
    """The candle that these trades make, the slow way; flat at the last close without any."""
    inside = [r for r in rows if open_ms <= r[0] // 1_000_000 < open_ms + minutes * MINUTE]
    if not inside:
        close = [r[3] for r in rows if r[0] // 1_000_000 < open_ms][-1]
        return (close,) * 4 + (0.0,) * 4
    prices = [r[3] for r in inside]
    bought = sum(r[4] for r in inside if not r[9] & rec.BUYER_MAKER)
    sums = (sum(r[4] for r in inside), sum(r[3] * r[4] for r in inside), bought, len(inside))
    return (prices[0], max(prices), min(prices), prices[-1], *map(float, sums))


def with_losses(rows: list[tuple], lost: list[range]) -> list[tuple]:
    """The same market as feed tells it when these ids are lost: GAPs, and each bar from the last
    trade before to the first one after replaced two seconds after its end, finest first."""
    gone = {number for span in lost for number in span}
    ends = set()
    for span in lost:
        from_ms, to_ms = (rows[at][0] // 1_000_000 for at in (span.start - 2, span.stop - 1))
        for m in rec.TIMEFRAMES_MIN:
            step = m * MINUTE
            ends |= {(e, m) for e in range(from_ms // step * step + step, to_ms + step + 1, step)}
    touched = sorted(ends)
    told: list[tuple] = []
    for row in rows:
        while touched and touched[0][0] + 2_000 <= row[0] // 1_000_000:
            end_ms, minutes = touched.pop(0)
            values = fold_trades(rows, minutes, end_ms - minutes * MINUTE)
            flags = rec.CLOSED | rec.CORRECTION
            told += bar(0, end_ms - minutes * MINUTE, minutes, values, flags)
        if row[2] not in gone:
            told.append(row)
        elif row[2] - 1 not in gone:
            count = next(len(span) for span in lost if row[2] in span)
            told.append(plain(rec.GAP, 0, row[0] // 1_000_000, row[2], float(count)))
    return told


@pytest.mark.parametrize("seed", range(6))
def test_corrections_put_every_candle_right_the_forming_ones_too(seed: int) -> None:
    rows = exact_market(seed, 3_000)
    rng = np.random.default_rng(seed)
    starts = sorted(int(n) for n in rng.choice(np.arange(2, 2_900, 60), 12, replace=False))
    lost = [range(start, start + int(rng.integers(1, 50))) for start in starts]
    whole, holed = Bench(), Bench()
    whole.feed(table(announced() + rows))
    holed.feed(table(announced() + with_losses(rows, lost)))
    assert holed.count("lost_trades") == sum(map(len, lost)) and holed.count("gaps") == 0
    for t, minutes in enumerate(rec.TIMEFRAMES_MIN):
        assert holed.history(0, t) == whole.history(0, t), minutes
        assert holed.forming(0, t) == whole.forming(0, t), minutes


def test_a_forming_candle_whose_parts_are_not_kept_is_left_alone() -> None:
    bench = Bench()
    rows = [trade(0, START_MS + k * MINUTE, k + 1, 10.0, 1.0) for k in range(5)]
    bench.feed(table(announced() + rows))
    before = bench.forming(0, 4)
    assert before[1][4] == 5.0
    values = (10.0, 10.0, 10.0, 10.0, 7.0, 70.0, 7.0, 7.0)
    bench.feed(table(bar(0, START_MS, 1, values, rec.CLOSED | rec.CORRECTION)))
    assert bench.forming(0, 4) == before  # its day began before there was a history
    assert bench.history(0, 0)[0] == (START_MS, values)
