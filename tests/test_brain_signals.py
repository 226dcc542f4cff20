"""Rules, signals and the desk: what fires, what is refused and why, what a restart picks up."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from brain_bench import START_MS, Bench, announced, lively_market, plain, table

import records as rec
from brain import desk as desks
from brain import rules as rulebook
from brain.inputs import rearm
from brain.rules import Candidate, RuleError, as_rule, load_rules, rule
from brain.signals import (
    PRIOR_WEIGHT,
    WARM_CANDLES,
    Facts,
    Model,
    Terms,
    breakeven,
    confidence,
    driftless,
    judge,
    parse_model,
)
from brain.state import LAST_ID, SUSPECT_UNTIL_NS, follows
from brain.view import CandleView

MINUTE = 60_000
TERMS = Terms("world", "node", "rule", 15_000)
BUY = Candidate(1, 100.0, 99.0, 101.5, "because", 0.5)


def facts(**changes: object) -> Facts:
    known_ns = (START_MS + MINUTE) * 1_000_000
    base = {
        "symbol": "AUSDT", "rule": "r", "rule_state": "on", "timeframe": "1m",
        "timeframe_ms": MINUTE, "bar_ms": START_MS, "known_ns": known_ns, "recv_ns": 5,
        "degraded": False, "suspect": False, "candles": WARM_CANDLES, "quote_age_ms": 0.0,
        "cost": 0.1, "already_open": False,
    }  # fmt: skip
    return Facts(**{**base, **changes})  # type: ignore[arg-type]


class Trading:
    """A bench with a desk on top, as the process has them."""

    def __init__(self, symbols: int, rules: list | None = None, terms: Terms = TERMS, **kw: object):
        self.bench = Bench(symbols, **kw)  # type: ignore[arg-type]
        self.desk = desks.new_desk(self.bench.state, rules or load_rules(), terms, 0.0005)
        self.bench.masks = self.desk.masks
        self.effects: list = []

    def feed(self, recs: np.ndarray, batch: int = 8192) -> None:
        def decide(rows: np.ndarray) -> None:
            self.effects += desks.on_events(self.desk, rows, lambda: 99)

        self.bench.feed(recs, batch, decide)

    def of(self, kind: type) -> list:
        return [e for e in self.effects if isinstance(e, kind)]


# --- numbers ---------------------------------------------------------------------------------


def test_the_prior_is_the_driftless_walk_and_break_even_adds_the_cost() -> None:
    assert driftless(BUY) == pytest.approx(0.4)
    assert breakeven(BUY, 0.0) == driftless(BUY)
    assert breakeven(BUY, 0.25) == pytest.approx(0.5)
    assert breakeven(BUY, 99.0) == 1.0
    p = breakeven(BUY, 0.2)
    assert p * (1.5 - 0.2) == pytest.approx((1 - p) * (1.0 + 0.2))


def test_confidence_is_the_smoothed_hit_rate_of_rule_and_timeframe() -> None:
    model = Model("3", {"r|1m": (30.0, 10.0, 10.0)})
    assert confidence(Model(), "r", "1m", 0.4) == 0.4
    assert confidence(model, "r", "5m", 0.4) == 0.4
    assert confidence(model, "r", "1m", 0.4) == (30 + 0.4 * PRIOR_WEIGHT) / (50 + PRIOR_WEIGHT)


def test_a_model_is_read_from_its_hash() -> None:
    assert parse_model({}) == Model()
    made = parse_model({"version": "7", "counts": '{"r|1m": [1, 2, 0]}', "last_id": "1-1"})
    assert made == Model("7", {"r|1m": (1.0, 2.0, 0.0)})
    for bad in ('{"r|1m": [1, 2]}', '{"r": [1, 2, 3]}', '{"r|1m": [-1, 2, 3]}', "{"):
        with pytest.raises(ValueError):
            parse_model({"version": "7", "counts": bad})


@pytest.mark.parametrize(
    "changes, refused",
    [
        ({}, None),
        ({"degraded": True}, "whole"),
        ({"suspect": True}, "reference"),
        ({"candles": WARM_CANDLES - 1}, "warm"),
        ({"quote_age_ms": 15_000.0}, None),
        ({"quote_age_ms": 15_000.5}, "quote"),
        ({"quote_age_ms": math.inf}, "quote"),
        ({"already_open": True}, "one_open"),
    ],
)
def test_each_check_refuses_by_its_name(changes: dict, refused: str | None) -> None:
    signal, checks = judge(BUY, facts(**changes), Model(), TERMS)
    assert (signal is None) == (refused is not None)
    assert [c.name for c in checks if not c.ok] == ([refused] if refused else [])


@pytest.mark.parametrize(
    "stop, target", [(100.0, 101.0), (101.0, 102.0), (99.0, 99.5), (-1.0, 101.0)]
)
def test_a_bracket_on_the_wrong_side_is_no_signal(stop: float, target: float) -> None:
    assert judge(Candidate(1, 100.0, stop, target, "", 1.0), facts(), Model(), TERMS)[0] is None


@pytest.mark.parametrize("wins, sent", [(20.0, False), (24.0, False), (25.0, True)])
def test_proven_sends_only_what_beats_break_even_and_follows_the_rest(wins, sent) -> None:
    model = Model("1", {"r|1m": (wins, 50.0 - wins, 0.0)})
    terms = Terms("world", "node", "proven", 15_000)
    signal, _ = judge(BUY, facts(cost=0.15), model, terms)
    assert signal is not None and signal.shadow is not sent
    assert (signal.confidence > signal.breakeven) is sent


def test_a_signal_is_the_same_wherever_and_whenever_it_is_made() -> None:
    one, _ = judge(BUY, facts(), Model(), TERMS)
    two, _ = judge(BUY, facts(recv_ns=77), Model(), Terms("world", "other", "rule", 15_000))
    assert one and two and one.id == two.id
    assert one.fields["expires_ms"] == str(START_MS + MINUTE + 15_000)
    assert judge(BUY, facts(bar_ms=START_MS + 1), Model(), TERMS)[0].id != one.id


@pytest.mark.parametrize(("atr", "told"), [(math.nan, None), (0.0, None), (0.25, "0.25")])
def test_a_signal_tells_the_atr_of_its_timeframe_once_it_is_known(
    atr: float, told: str | None
) -> None:
    one, _ = judge(BUY, facts(atr=atr), Model(), TERMS)
    assert one is not None and one.fields.get("atr") == told


# --- rules -----------------------------------------------------------------------------------


def test_rules_fire_regularly_on_a_driftless_market_and_each_of_them_does() -> None:
    trading = Trading(4)
    trading.feed(table(lively_market(7, 4, 700)))
    signals = trading.of(desks.PutSignal)
    per_signal = 4 * (700 - WARM_CANDLES) / len(signals)
    assert 3 < per_signal < 10  # closed 1m candles per symbol
    assert {s.fields["rule"] for s in signals} == {r.name for r in trading.desk.rules}
    assert {s.fields["timeframe"] for s in signals} >= {"1m", "5m"}
    assert all(float(s.fields["atr"]) > 0.0 for s in signals)
    for fields in (s.fields for s in signals):  # risk takes the quote that the rule saw
        assert 0.0 < float(fields["bid"]) <= float(fields["ask"])
        assert 0 < int(fields["quote_ns"]) <= int(fields["exch_ns"])
        assert fields["price"] == fields["ask" if fields["side"] == "buy" else "bid"]
    assert len({s.id for s in signals}) == len(signals)
    outcomes = trading.of(desks.PutOutcome)
    assert len(outcomes) + len(trading.desk.open) == len(signals)
    share = sum(o.fields["result"] == "win" for o in outcomes) / len(outcomes)
    assert 0.3 < share < 0.5  # a walk without drift pays 1.5 R in two of five


def test_stops_are_bounded_in_atr_and_far_enough_to_pay_their_fees() -> None:
    trading = Trading(2)
    seen = []

    def spy(view: CandleView, params: dict) -> Candidate | None:
        found = rulebook.structure_break(view, params)
        if found:
            seen.append((abs(found.entry - found.stop), view.indicators().atr, view.round_trip))
        return found

    base = as_rule(rulebook.structure_break)
    trading.desk.rules[:] = [rulebook.Rule("spy", spy, base.timeframes, base.mask, base.params)]
    trading.feed(table(lively_market(2, 2, 300, sigma=0.001)))
    assert len(seen) > 10
    for distance, atr, cost in seen:
        assert distance >= 0.8 * atr * (1 - 1e-9) and distance >= 2.2 * cost * (1 - 1e-9)
        assert distance <= max(1.5 * atr, 2.2 * cost) * (1 + 1e-9)


@pytest.mark.parametrize("batch", [1, 7])
def test_signals_do_not_depend_on_the_cut_into_batches(batch: int) -> None:
    recs = table(lively_market(3, 2, 200))
    whole, cut = Trading(2), Trading(2)
    whole.feed(recs)
    cut.feed(recs, batch)
    assert whole.effects == cut.effects and len(whole.of(desks.PutSignal)) > 20


def test_signals_known_by_then_do_not_change_with_what_came_later() -> None:
    rows, other = lively_market(3, 2, 260), lively_market(4, 2, 260)
    cut = next(i for i, r in enumerate(rows) if r[0] >= (START_MS + 200 * MINUTE) * 1_000_000)
    one, two = Trading(2), Trading(2)
    one.feed(table(rows))
    two.feed(table(rows[:cut] + other[cut:]))
    known = [
        [e for e in t.of(desks.PutSignal) if int(e.fields["exch_ns"]) < rows[cut][0]]
        for t in (one, two)
    ]
    assert known[0] == known[1] and len(known[0]) > 20


def test_a_rule_that_raises_goes_to_shadow_then_off_and_is_reported() -> None:
    @rule("bad")
    def bad(view: CandleView, params: dict) -> Candidate | None:
        raise ZeroDivisionError("oops")

    trading = Trading(1, [as_rule(bad)])
    trading.feed(table(lively_market(1, 1, 30)))
    lines = trading.of(desks.PutJournal)
    assert "shadow" in lines[0].text and lines[-1].text.endswith("now off")
    assert len(lines) == rulebook.FAULTS_MAX and trading.desk.rules[0].state == "off"
    assert trading.desk.masks[0] == 0  # the kernel no longer stops for it


@pytest.mark.parametrize("state, signals", [("off", 0), ("shadow", 0), ("on", 1)])
def test_a_shadow_rule_is_followed_but_not_sent(state: str, signals: int) -> None:
    @rule("mine")
    def mine(view: CandleView, params: dict) -> Candidate | None:
        close = view.bars().close[-1]
        return Candidate(1, close, close * 0.99, close * 1.01, "always", 0.5)

    trading = Trading(1, [as_rule(mine, state)])  # type: ignore[arg-type]
    trading.feed(table(lively_market(1, 1, WARM_CANDLES + 3)))
    made = trading.of(desks.PutSignal)
    assert [m.shadow for m in made] == {"off": [], "shadow": [True], "on": [False]}[state]
    assert trading.desk.signals == signals


def test_the_bars_of_a_view_are_the_rules_own() -> None:
    trading = Trading(1)
    trading.feed(table(lively_market(1, 1, 30)))
    view = CandleView("S0USDT", "1m", 0, 0, 0, 0.0, trading.bench.state.arrays, 0)
    before = [array.tobytes() for array in trading.bench.state.arrays]
    bars = view.bars()
    for array in (getattr(bars, name) for name in bars.__slots__):
        assert array.flags.c_contiguous and len(array) == view.candles() == 29
        array[:] = -1
    assert before == [array.tobytes() for array in trading.bench.state.arrays]
    assert min(view.bars().close) > 0.0


@pytest.mark.parametrize(
    "name", ["nowhere.rule", "math.nothing", "math.pi", "sweep_reversal=never"]
)
def test_a_rule_that_cannot_be_loaded_is_one_sentence(name: str) -> None:
    with pytest.raises(RuleError):
        load_rules((name,))


def test_one_of_ours_is_switched_by_name() -> None:
    states = {r.name: r.state for r in load_rules(("sweep_reversal=off", "zone_retest=shadow"))}
    assert states == {"structure_break": "on", "sweep_reversal": "off", "zone_retest": "shadow"}


# --- refusals that the state decides ---------------------------------------------------------


def test_a_degraded_or_suspect_symbol_gives_no_signal() -> None:
    rows = lively_market(3, 1, 200)
    half = len(rows) // 2
    gap = Trading(1)
    gap.feed(table([*rows[:half], plain(rec.GAP, 0, START_MS, 1, 0.0), *rows[half:]]))
    clean = Trading(1)
    clean.feed(table(rows))
    at = rows[half][0]
    assert not [s for s in gap.of(desks.PutSignal) if int(s.fields["exch_ns"]) > at]
    assert [s for s in clean.of(desks.PutSignal) if int(s.fields["exch_ns"]) > at]
    suspect = Trading(1)
    suspect.feed(table(rows[:half]))
    suspect.bench.state.arrays.sym[0, SUSPECT_UNTIL_NS] = 2**62
    suspect.feed(table(rows[half:]))
    refused = [d.fields["refused_by"] for d in suspect.of(desks.PutDecision)]
    assert "reference" in refused


def test_a_decision_told_late_says_what_it_would_have_said_at_once() -> None:
    recs = table(lively_market(5, 2, 200))
    soon, late = Trading(2), Trading(2)
    told = []

    def decide(rows: np.ndarray) -> None:
        for effect in desks.on_events(soon.desk, rows, lambda: 99):
            if isinstance(effect, desks.PutDecision):
                told.append(dict(effect.fields))

    soon.bench.feed(recs, on_events=decide)
    late.feed(recs)
    assert told == [d.fields for d in late.of(desks.PutDecision)] and len(told) > 100


def test_a_rule_sees_its_symbol_as_the_close_left_it_however_many_are_asked_together() -> None:
    """Last price and newest id at the question, by close: with records one by one and in batches
    that go on with other symbols while one waits."""
    rows = [row for row in lively_market(8, 4, 120) if row[8] != rec.CLOCK]  # trades close the bars
    recs, together = table(rows), [0]

    def questions(batch: int) -> list[tuple]:
        seen = []

        @rule("look", timeframes=("1m", "5m"))
        def look(view: CandleView, params: dict) -> None:
            a = view.arrays
            told = (
                int(a.sym[view.row, LAST_ID]),
                view.last,
                view.bid,
                a.forming[view.row].tolist(),
            )
            seen.append((view.symbol, view.timeframe, view.bar_ms, *map(str, told)))

        trading = Trading(4, [as_rule(look)])

        def decide(rows: np.ndarray) -> None:
            before = len(seen)
            trading.effects += desks.on_events(trading.desk, rows, lambda: 99)
            together[0] = max(together[0], len({s for s, *_ in seen[before:]}))

        trading.bench.feed(recs, batch, decide)
        return seen

    one_by_one = questions(1)
    assert one_by_one == questions(8192) and len(one_by_one) > 400
    assert together[0] > 1


def test_every_candidate_leaves_one_decision_with_its_verdicts() -> None:
    trading = Trading(2)
    trading.feed(table(lively_market(5, 2, 200)))
    decisions = [d.fields for d in trading.of(desks.PutDecision)]
    total = trading.desk.funnel.total
    assert len(decisions) == total["structure"] > trading.desk.candidates > 0
    for fields in decisions:
        verdicts = json.loads(fields["verdicts"])
        failed = [v["name"] for v in verdicts if not v["ok"]]
        assert (fields["outcome"] == "signal") == (failed == [])
        assert fields["refused_by"] == (failed[0] if failed else "")


# --- restart ---------------------------------------------------------------------------------


def pending_of(trading: Trading) -> dict[str, str]:
    ended = {o.id for o in trading.of(desks.PutOutcome)}
    return {s.id: s.pending for s in trading.of(desks.PutSignal) if s.id not in ended}


def open_signals(seed: int = 3) -> tuple[Trading, list, int]:
    """A desk with open signals, its rows and where it stopped."""
    rows = lively_market(seed, 2, 200)
    for half in range(len(rows) // 2, len(rows)):
        trading = Trading(2)
        trading.feed(table(rows[:half]))
        if len(trading.desk.open) >= 2:
            return trading, rows, half
    raise AssertionError("this market has no two open signals")


def test_a_restarted_desk_goes_on_with_the_signals_that_the_table_follows() -> None:
    whole, rows, half = open_signals()
    first = list(whole.effects)
    again = Trading(2, state=whole.bench.state)
    assert rearm(again.desk, pending_of(whole)) == []
    assert again.desk.open.keys() == whole.desk.open.keys()
    resumed = Trading.__new__(Trading)
    resumed.bench, resumed.desk, resumed.effects = again.bench, again.desk, []
    resumed.feed(table(rows[half:]))
    straight = Trading(2)
    straight.feed(table(rows))
    want = [(o.id, o.fields["result"]) for o in straight.of(desks.PutOutcome)]
    got = [(o.id, o.fields["result"]) for t in (first, resumed.effects) for o in t
           if isinstance(o, desks.PutOutcome)]  # fmt: skip
    assert got == want


def test_an_outcome_before_the_pending_hash_was_read_is_not_lost() -> None:
    whole, rows, half = open_signals()
    again = Trading(2, state=whole.bench.state)
    again.feed(table(rows[half:]))
    late = [e for e in rearm(again.desk, pending_of(whole)) if isinstance(e, desks.PutOutcome)]
    assert {o.id for o in late} == set(pending_of(whole))


def test_a_signal_that_nobody_followed_is_judged_on_candles_stop_first() -> None:
    whole, rows, half = open_signals()
    pending = pending_of(whole)
    fresh = Trading(2)
    fresh.feed(table(rows))  # the same market, seen by a desk that knows nothing of these
    for key in whole.desk.open:
        fresh.desk.open.pop(key, None)
        fresh.desk.closed.pop(key, None)
    fresh.bench.state.arrays.follow[:] = 0
    ended = {e.id: e.fields for e in rearm(fresh.desk, pending)}
    whole.feed(table(rows[half:]))
    by_ticks = {o.id: o.fields for o in whole.of(desks.PutOutcome)}
    assert ended
    for signal_id, fields in ended.items():
        assert fields["result"] in ("win", "loss", "timeout")
        if fields["result"] == "win":  # candles are never kinder than ticks
            assert by_ticks[signal_id]["result"] == "win"


def test_pending_of_a_symbol_that_is_not_whole_waits() -> None:
    whole, _rows, _half = open_signals()
    other = Trading(2)
    other.feed(table(announced(0, healed=False) + announced(1, healed=False)))
    assert rearm(other.desk, pending_of(whole)) == [] and not other.desk.open
    other.feed(table([plain(rec.HEALED, 0), plain(rec.HEALED, 1)]))
    assert other.of(desks.AskPending)
    rearm(other.desk, pending_of(whole))
    assert other.desk.open.keys() == whole.desk.open.keys()
    row = other.desk.rows[next(iter(other.desk.open.values())).symbol]
    assert follows(other.bench.state.arrays, row, next(iter(other.desk.open)))


def test_two_brains_share_pending_and_each_follows_its_own_symbols() -> None:
    whole, _rows, _half = open_signals()
    pending = pending_of(whole)
    lanes = [Trading(2), Trading(2)]
    for row, lane in enumerate(lanes):
        lane.feed(table(announced(row)))
        assert rearm(lane.desk, pending) == []  # nothing to say of the other's
    symbols = [{each.symbol for each in lane.desk.open.values()} for lane in lanes]
    assert all(len(own) == 1 for own in symbols) and symbols[0] != symbols[1]
    assert lanes[0].desk.open.keys() | lanes[1].desk.open.keys() == whole.desk.open.keys()


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"id": "x"}'])
def test_a_pending_entry_that_is_none_is_reported_once(text: str) -> None:
    trading = Trading(1)
    assert len(rearm(trading.desk, {"x": text})) == 1
    assert rearm(trading.desk, {"x": text}) == []
