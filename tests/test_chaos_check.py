"""Chaos, the pure parts: a seed's plan, and every check shown to fail on what it is there for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from decimal import Decimal
from typing import Any

import pytest
from test_maintenance_audit import CAUSE, Ledger, cid

from maintenance import chaos, chaos_check, chaos_plan
from maintenance.chaos_check import CHECKS, Evidence, check_all, merged, uncovered

TTL_S = 3.0


# --- the plan ---


def test_the_same_seed_plans_the_same_faults_in_the_same_order() -> None:
    assert chaos_plan.plan(7, TTL_S, 200) == chaos_plan.plan(7, TTL_S, 200)
    assert chaos_plan.plan(7, TTL_S, 50) == chaos_plan.plan(7, TTL_S, 200)[:50]
    assert chaos_plan.plan(7, TTL_S, 50) != chaos_plan.plan(8, TTL_S, 50)


def test_every_kind_comes_once_before_any_comes_twice() -> None:
    kinds = [step.kind for step in chaos_plan.plan(3, TTL_S, 2 * len(chaos_plan.KINDS))]
    assert set(kinds[: len(chaos_plan.KINDS)]) == set(chaos_plan.KINDS)
    assert set(Counter(kinds).values()) == {2}


def test_a_stopped_holder_sleeps_past_its_lease() -> None:
    steps = chaos_plan.plan(1, TTL_S, 40, ("stop_holder",))
    assert all(TTL_S < step.hold_s <= 2 * TTL_S for step in steps)
    assert all(0 < step.pause_s <= chaos_plan.PAUSE_S[1] for step in steps)


def test_only_faults_of_answers_fall_on_a_deaf_risk() -> None:
    deaf = {step.kind for step in chaos_plan.plan(1, TTL_S, 500) if step.deaf_s}
    assert deaf == set(chaos_plan.DEAF_KINDS)
    assert "unknown_executed" in deaf and "reply_lost" in deaf and "ban" not in deaf


def test_the_venue_takes_every_fault_that_is_planned() -> None:
    from venue import faults

    lab = faults.Lab()
    for step in chaos_plan.plan(5, TTL_S, 300, chaos_plan.VENUE_KINDS):
        made = faults.planned(lab, dict(step.body), 0)
        assert isinstance(made, faults.Plan), (step, made)


# --- the checks ---


def row(name: str, state: str, at_ms: int, leg: str = "entry", epoch: int = 5) -> Any:
    fields = {"id": name, "cause": "s1", "leg": leg, "state": state, "epoch": str(epoch)}
    return f"{at_ms}-0", fields


def good() -> Evidence:
    """One round trip, recorded as it should be."""
    ledger = Ledger()
    start_ms = ledger.wall_ms
    ledger.round_trip()
    entry, stop = cid("e", CAUSE), cid("s", CAUSE)
    orders = [
        row(entry, "intent", start_ms - 1),
        row(stop, "intent", start_ms - 1, "stop"),
        row(entry, "filled", start_ms + 5),
        row(stop, "acked", start_ms + 101, "stop"),
        row(stop, "filled", start_ms + 6_000, "stop"),
    ]
    return Evidence(
        ledger=ledger.events,
        orders=orders,
        fills=["BTCUSDT:1", "BTCUSDT:2"],
        fill_sums={"BTCUSDT": Decimal(0)},
        wallet=ledger.balance,
        held={"BTCUSDT": Decimal(1)},
        held_there={"BTCUSDT": Decimal(1)},
        positions={},
        open_ids=frozenset(),
        open_there=frozenset(),
        pending={"signals": 0, "commands": 0},
        signals=frozenset({"s1"}),
        decided=frozenset({"s1"}),
        taken_over=[],
        refused=[],
        positions_max=3,
        naked_ms_max=1_000,
        naked_ms_max_over_all=4_500,
    )


def test_a_good_run_violates_nothing() -> None:
    assert {name: texts for name, texts in check_all(good()).items() if texts} == {}
    counted = chaos_check.counts(good())
    assert (counted["intents"], counted["entries"], counted["fills"]) == (2, 1, 2)
    assert (counted["orders_at_exchange"], counted["naked_ms_max"]) == (2, 100)


def no_end(e: Evidence) -> Evidence:
    return replace(e, orders=e.orders[:-1])


def two_ends(e: Evidence) -> Evidence:
    return replace(e, orders=[*e.orders, row(cid("e", CAUSE), "expired", 2_000_000)])


def accepted_twice(e: Evidence) -> Evidence:
    again = dict(e.ledger[1], seq=len(e.ledger) + 1)
    return replace(e, ledger=[*e.ledger, again])


def never_recorded(e: Evidence) -> Evidence:
    return replace(e, orders=[one for one in e.orders if one[1]["leg"] != "stop"])


def recorded_late(e: Evidence) -> Evidence:
    late = row(cid("e", CAUSE), "intent", int(e.ledger[1]["wall_ms"]) + 1)
    return replace(e, orders=[late, *e.orders[1:]])


def fill_missing(e: Evidence) -> Evidence:
    return replace(e, fills=e.fills[:1])


def fill_doubled(e: Evidence) -> Evidence:
    return replace(e, fills=[*e.fills, e.fills[0]])


def ghost_position(e: Evidence) -> Evidence:
    return replace(e, positions={"ETHUSDT": Decimal(2)})


def other_at_rest(e: Evidence) -> Evidence:
    return replace(e, held={"BTCUSDT": Decimal(2)})


def other_wallet(e: Evidence) -> Evidence:
    assert e.wallet is not None
    return replace(e, wallet=e.wallet + Decimal("0.01"))


def other_balance(e: Evidence) -> Evidence:
    trade = dict(e.ledger[-1], balance_after="1")
    return replace(e, ledger=[*e.ledger[:-1], trade])


def epoch_falls(e: Evidence) -> Evidence:
    return replace(e, orders=[*e.orders, row(cid("s", CAUSE), "filled", 2_000_000, "stop", 4)])


def left_pending(e: Evidence) -> Evidence:
    return replace(e, pending={"signals": 1})


def forgotten_signal(e: Evidence) -> Evidence:
    return replace(e, signals=frozenset({"s1", "s2"}))


def one_too_many(e: Evidence) -> Evidence:
    return replace(e, positions_max=0)


def naked_too_long(e: Evidence) -> Evidence:
    return replace(e, naked_ms_max=99 - chaos_check.GRACE_MS)


def naked_over_all(e: Evidence) -> Evidence:
    return replace(e, naked_ms_max_over_all=99 - chaos_check.GRACE_MS)


def left_open(e: Evidence) -> Evidence:
    return replace(e, open_there=frozenset({cid("s", CAUSE)}))


def believed_open(e: Evidence) -> Evidence:
    return replace(e, open_ids=frozenset({cid("s", CAUSE)}))


def restless(e: Evidence) -> Evidence:
    return replace(e, unrest=["waited 40 s in vain"])


def died(e: Evidence) -> Evidence:
    return replace(e, mistakes=["chaos-1 ended by itself with 1"])


CASES: list[tuple[str, Callable[[Evidence], Evidence]]] = [
    ("every intent ends once", no_end),
    ("every intent ends once", two_ends),
    ("one order per client id", accepted_twice),
    ("logged before sent", never_recorded),
    ("logged before sent", recorded_late),
    ("positions agree", fill_missing),
    ("positions agree", fill_doubled),
    ("positions agree", ghost_position),
    ("positions agree", other_at_rest),
    ("wallet agrees", other_wallet),
    ("wallet agrees", other_balance),
    ("epochs rise", epoch_falls),
    ("nothing pending", left_pending),
    ("signals decided", forgotten_signal),
    ("positions within limit", one_too_many),
    ("stops in time", naked_too_long),
    ("stops in time over all", naked_over_all),
    ("nothing left open", left_open),
    ("nothing left open", believed_open),
    ("came to rest", restless),
    ("no own mistakes", died),
]


@pytest.mark.parametrize(("name", "spoil"), CASES, ids=[case[1].__name__ for case in CASES])
def test_a_check_fails_on_what_it_is_there_for_and_only_that_one(
    name: str, spoil: Callable[[Evidence], Evidence]
) -> None:
    wrong = {name for name, texts in check_all(spoil(good())).items() if texts}
    assert wrong == {name}


def test_every_check_is_shown_to_fail() -> None:
    assert {name for name, _ in CASES} == set(CHECKS)


def test_a_fill_overrides_an_end_that_was_only_inferred() -> None:
    e = good()
    name = cid("e", CAUSE)
    silent = [row(name, "intent", 0), row(name, "rejected", 1), row(name, "filled", 2)]
    assert not chaos_check.intents_end_once(replace(e, orders=silent))
    swapped = [row(name, "intent", 0), row(name, "filled", 1), row(name, "rejected", 2)]
    assert chaos_check.intents_end_once(replace(e, orders=swapped))


# --- time without a stop ---


@pytest.mark.parametrize(
    ("spans", "left_ms"),
    [
        ([], 100),
        ([(0, 40)], 60),
        ([(30, 40)], 60),
        ([(30, 80)], 30),
        ([(0, 100)], 0),
        ([(-50, 10), (90, 200)], 80),
        ([(100, 200)], 100),
    ],
)
def test_an_excuse_starts_the_limit_anew(spans: list[tuple[int, int]], left_ms: int) -> None:
    assert uncovered((0, 100), spans) == left_ms


def test_excuses_that_overlap_are_one() -> None:
    assert merged([(5, 9), (1, 3), (2, 6)]) == [(1, 9)]


def test_naked_time_is_judged_by_what_nothing_excuses() -> None:
    late = Ledger()
    start_ms = late.wall_ms
    late.round_trip(naked_ms=4_000)
    e = replace(good(), ledger=late.events)
    assert len(chaos_check.stops_in_time(e)) == 1
    assert not chaos_check.stops_in_time(replace(e, taken_over=[(start_ms, start_ms + 2_000)]))


def test_a_take_over_excuses_no_longer_than_it_may_last() -> None:
    late = Ledger()
    start_ms = late.wall_ms
    late.round_trip(naked_ms=6_000)
    dead = replace(good(), ledger=late.events, taken_over=[(start_ms, start_ms + 6_000)])
    assert not chaos_check.stops_in_time(dead) and len(chaos_check.stops_over_all(dead)) == 1
    banned = replace(dead, refused=[(start_ms, start_ms + 6_000)])
    assert not chaos_check.stops_over_all(banned)


@pytest.mark.parametrize(("at_ms", "wrong"), [(2_999, 0), (400, 1), (5_600, 1)])
def test_a_successor_that_dies_as_well_leaves_a_take_over_of_its_own(
    at_ms: int, wrong: int
) -> None:
    """Neither piece may be longer than one take-over."""
    late = Ledger()
    start_ms = late.wall_ms
    late.round_trip(naked_ms=6_000)
    dead = replace(good(), ledger=late.events, deaths=[start_ms + at_ms])
    assert len(chaos_check.stops_over_all(replace(dead, naked_ms_max_over_all=2_100))) == wrong


def test_orders_at_rest_are_those_without_an_end() -> None:
    ledger = Ledger()
    ledger.order("a1")
    ledger.stop(algo_id=3, client_id="a2")
    assert chaos.resting(ledger.events) == {"a1", "a2"}
    ledger.add("order_done", order_id=ledger.events[1]["order_id"], client_id="a1")
    ledger.add("algo_done", algo_id=3, client_id="a2")
    assert chaos.resting(ledger.events) == set()
