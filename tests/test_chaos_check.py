"""Chaos, the pure parts: a seed's plan, and every check shown to fail on what it is there for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from decimal import Decimal
from typing import Any

import pytest
from test_maintenance_audit import CAUSE, Ledger, cid

from maintenance import chaos, chaos_account, chaos_check, chaos_plan, chaos_venue
from maintenance.chaos_check import CHECKS, Evidence, check_all, judged, merged, uncovered

TTL_S = 3.0
FIRST_ORDER = 3  # in the ledger of a good run


# --- the plan ---


def test_the_same_seed_plans_the_same_faults_in_the_same_order() -> None:
    assert chaos_plan.plan(7, TTL_S, 200) == chaos_plan.plan(7, TTL_S, 200)
    assert chaos_plan.plan(7, TTL_S, 50) == chaos_plan.plan(7, TTL_S, 200)[:50]
    assert chaos_plan.plan(7, TTL_S, 50) != chaos_plan.plan(8, TTL_S, 50)


def test_every_kind_comes_once_before_any_comes_twice() -> None:
    kinds = [step.kind for step in chaos_plan.plan(3, TTL_S, 2 * len(chaos_plan.KINDS))]
    assert set(kinds[: len(chaos_plan.KINDS)]) == set(chaos_plan.KINDS)
    assert set(Counter(kinds).values()) == {2}


def test_every_kind_has_its_blow() -> None:
    assert set(chaos_account.KINDS) == set(chaos_venue.BLOWS)
    others = {*chaos_plan.PROCESS_KINDS, *chaos_plan.REDIS_KINDS, *chaos_plan.ACT_KINDS}
    others |= {*chaos_plan.VENUE_KINDS, *chaos_account.KINDS, *chaos_plan.LOSS_KINDS}
    others |= {*chaos_plan.CRASH_KINDS}
    assert others == set(chaos_plan.KINDS) and len(others) == len(chaos_plan.KINDS)


def test_what_cannot_be_undone_is_rare() -> None:
    kinds = [step.kind for step in chaos_plan.plan(2, TTL_S, 500, ("delist", "deposit", "adl"))]
    assert Counter(kinds)["delist"] == chaos_account.RARE["delist"]
    assert len(kinds) == 500
    assert len(chaos_plan.plan(2, TTL_S, 9, ("delist",))) == 9  # who asks for nothing else


def test_a_stall_is_sometimes_as_long_as_half_a_minute() -> None:
    holds = [step.hold_s for step in chaos_plan.plan(1, TTL_S, 100, ("stall",))]
    assert chaos_account.LONG_STALL_S in holds
    assert all(chaos_account.STALL_S[0] <= hold_s <= 30.0 for hold_s in holds)


def test_a_stopped_holder_sleeps_past_its_lease() -> None:
    steps = chaos_plan.plan(1, TTL_S, 40, ("stop_holder",))
    assert all(TTL_S < step.hold_s <= 2 * TTL_S for step in steps)
    assert all(0 < step.pause_s <= chaos_plan.PAUSE_S[1] for step in steps)


def test_only_faults_of_answers_fall_on_a_deaf_risk() -> None:
    deaf = {step.kind for step in chaos_plan.plan(1, TTL_S, 2_000) if step.deaf_s}
    assert deaf == set(chaos_plan.DEAF_KINDS)
    assert len(deaf) == 7
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
    fields |= {"symbol": "BTCUSDT", "qty": "0", "wall_ms": str(at_ms)}
    return f"{at_ms}-0", fields


def set_up(ledger: Ledger, symbol: str = "BTCUSDT") -> None:
    """Isolated at 3x, as risk leaves a symbol before its first entry."""
    ledger.add("margin_type", symbol=symbol, value="isolated")
    ledger.add("leverage", symbol=symbol, value=3)


BOOKED = [
    {"id": f"{kind}:BTCUSDT:{trade}", "kind": kind, "amount": amount}
    for kind, trade, amount in (("fee", 1, "-0.05"), ("fee", 2, "-0.05"), ("realised", 2, "-10"))
]


def good() -> Evidence:
    """One round trip, recorded as it should be."""
    ledger = Ledger()
    set_up(ledger)
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
        forgotten=frozenset(),
        lost_signals=frozenset(),
        booked=BOOKED,
        book_sums={"fee": Decimal("-0.1"), "realised": Decimal(-10), "funding": Decimal(0)},
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
        foreign=[("ETHUSDT", start_ms, start_ms + 60_000)],
        takeovers=[("kill_holder", 5_000)],
        takeover_ms_max=5_000,
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
    again = dict(e.ledger[FIRST_ORDER], seq=len(e.ledger) + 1)
    return replace(e, ledger=[*e.ledger, again])


def never_recorded(e: Evidence) -> Evidence:
    return replace(e, orders=[one for one in e.orders if one[1]["leg"] != "stop"])


def recorded_late(e: Evidence) -> Evidence:
    late = row(cid("e", CAUSE), "intent", int(e.ledger[FIRST_ORDER]["wall_ms"]) + 1)
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


def fee_missing(e: Evidence) -> Evidence:
    return replace(e, booked=BOOKED[1:])


def profit_twice(e: Evidence) -> Evidence:
    return replace(e, booked=[*BOOKED, BOOKED[2]])


def other_fee(e: Evidence) -> Evidence:
    return replace(e, booked=[BOOKED[0] | {"amount": "-0.06"}, *BOOKED[1:]])


def unbooked_funding(e: Evidence) -> Evidence:
    paid = {"type": "funding", "symbol": "BTCUSDT", "amount": "-0.5", "wall_ms": 1}
    ledger = [*e.ledger, paid | {"seq": len(e.ledger) + 1}]
    assert e.wallet is not None
    return replace(e, ledger=ledger, wallet=e.wallet - Decimal("0.5"))


def other_sum(e: Evidence) -> Evidence:
    return replace(e, book_sums={**e.book_sums, "fee": Decimal("-0.11")})


def epoch_falls(e: Evidence) -> Evidence:
    return replace(e, orders=[*e.orders, row(cid("s", CAUSE), "filled", 2_000_000, "stop", 4)])


def left_pending(e: Evidence) -> Evidence:
    return replace(e, pending={"signals": 1})


def forgotten_signal(e: Evidence) -> Evidence:
    return replace(e, signals=frozenset({"s1", "s2"}))


def one_too_many(e: Evidence) -> Evidence:
    return replace(e, positions_max=0)


def naked_too_long(e: Evidence) -> Evidence:
    return replace(e, naked_ms_max=99)


def naked_over_all(e: Evidence) -> Evidence:
    return replace(e, naked_ms_max_over_all=99)


def taken_over_late(e: Evidence) -> Evidence:
    return replace(e, takeovers=[("kill_holder", 5_000), ("stop_holder", 5_001)])


def entered_theirs(e: Evidence) -> Evidence:
    ms = int(e.ledger[FIRST_ORDER]["wall_ms"])
    return replace(e, foreign=[("BTCUSDT", ms - chaos_check.FOREIGN_TOLD_MS, ms + 1)])


def entered_crossed(e: Evidence) -> Evidence:
    ledger = [dict(event) for event in e.ledger]
    ledger[1] |= {"value": "cross", "wall_ms": 0}
    return replace(e, ledger=ledger)


def entered_at_another_leverage(e: Evidence) -> Evidence:
    ledger = [dict(event) for event in e.ledger]
    ledger[2] |= {"value": 4, "wall_ms": 0}
    return replace(e, ledger=ledger)


def never_set_up(e: Evidence) -> Evidence:
    ledger = [dict(event, symbol="ETHUSDT", type="other") for event in e.ledger[1:3]]
    return replace(e, ledger=[e.ledger[0], *ledger, *e.ledger[3:]])


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
    ("ledger agrees", fee_missing),
    ("ledger agrees", profit_twice),
    ("ledger agrees", other_fee),
    ("ledger agrees", unbooked_funding),
    ("ledger agrees", other_sum),
    ("epochs rise", epoch_falls),
    ("nothing pending", left_pending),
    ("signals decided", forgotten_signal),
    ("positions within limit", one_too_many),
    ("stops in time", naked_too_long),
    ("stops in time over all", naked_over_all),
    ("take-over in time", taken_over_late),
    ("foreign left alone", entered_theirs),
    ("settings verified", entered_crossed),
    ("settings verified", entered_at_another_leverage),
    ("settings verified", never_set_up),
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


# --- what Redis was made to lose ---


def test_an_intent_that_redis_forgot_whole_and_the_exchange_never_saw_need_not_end() -> None:
    e = good()
    lost = replace(e, orders=[*e.orders, row("agx", "intent", 2_000_000)])
    assert chaos_check.intents_end_once(lost) == ["order agx ends as intent"]
    forgotten = frozenset({"2000000-0"})
    assert not chaos_check.intents_end_once(replace(lost, forgotten=forgotten))


def test_an_intent_that_redis_still_has_or_the_exchange_saw_ends_all_the_same() -> None:
    e = good()
    half = replace(e, orders=[*e.orders, row("agx", "intent", 2_000_000), row("agx", "sent", 3)])
    assert chaos_check.intents_end_once(replace(half, forgotten=frozenset({"3-0"})))
    stop = cid("s", CAUSE)
    seen = replace(e, orders=[one for one in e.orders if one[1]["id"] != stop])
    seen = replace(seen, orders=[*seen.orders, row(stop, "acked", 4, "stop")])
    assert chaos_check.intents_end_once(replace(seen, forgotten=frozenset({"4-0"})))


def test_only_the_signals_that_redis_was_made_to_lose_need_no_decision() -> None:
    e = replace(good(), signals=frozenset({"s1", "s2", "s3"}), lost_signals=frozenset({"s2"}))
    assert chaos_check.signals_decided(e) == ["signal s3 was never decided"]


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
    pieces = uncovered((0, 100), spans)
    assert max((end - start for start, end in pieces), default=0) == left_ms


@pytest.mark.parametrize(
    ("begun", "ms"),
    [
        ([], 1_800),
        ([-1], 1_800),
        ([999], 801),
        ([1_000], 800),
        ([1_001], 1_800),
        ([200, 900], 1_600),
    ],
)
def test_a_flatten_begun_within_the_limit_is_judged_from_its_beginning(
    begun: list[int], ms: int
) -> None:
    assert judged((0, 1_800), begun, 1_000) == ms
    assert judged((0, 1_000), begun, 1_000) == 1_000


def test_a_flatten_begins_when_it_is_recorded_with_its_size() -> None:
    """The planned close is written with the entry, without one: nothing was sent then."""

    def closing(name: str, leg: str, qty: str, ms: int) -> Any:
        fields = {"id": name, "leg": leg, "symbol": "BTCUSDT", "qty": qty, "wall_ms": str(ms)}
        return f"{ms}-0", fields

    rows = [
        closing("c0", "emergency close", "0", 1),
        closing("c0", "emergency close", "2", 700),
        closing("c0", "emergency close", "2", 750),
        closing("x0", "exit", "2", 600),
        closing("s0", "stop", "2", 500),
    ]
    assert chaos_check.flattens(rows) == {"BTCUSDT": [600, 700]}


@pytest.mark.parametrize(("late_ms", "wrong"), [(-1, 0), (0, 1), (1, 1)])
def test_what_nobody_could_know_yet_is_no_trespass(late_ms: int, wrong: int) -> None:
    e = good()
    start_ms = int(e.ledger[FIRST_ORDER]["wall_ms"]) - chaos_check.FOREIGN_TOLD_MS - late_ms
    foreign = [("BTCUSDT", start_ms, start_ms + 60_000)]
    told = chaos_check.foreign_left_alone(replace(e, foreign=foreign))
    assert len([text for text in told if "e0" in text]) == wrong


@pytest.mark.parametrize(("late_ms", "wrong"), [(-1, 0), (0, 0), (1, 1)])
def test_a_setting_that_was_changed_just_now_is_no_violation(late_ms: int, wrong: int) -> None:
    e = good()
    ledger = [dict(event) for event in e.ledger]
    at_ms = int(ledger[FIRST_ORDER]["wall_ms"]) - chaos_check.SETTINGS_TOLD_MS - late_ms
    ledger[2] |= {"value": 9, "wall_ms": at_ms}
    assert len(chaos_check.settings_verified(replace(e, ledger=ledger))) == wrong


def test_a_refusal_excuses_from_its_strike_on() -> None:
    def fault(ms: int, state: str = "happened", kind: str = "ban") -> dict[str, Any]:
        return {"type": "fault", "state": state, "kind": kind, "wall_ms": ms}

    ledger = [fault(5, "planned"), fault(7, kind="busy"), fault(8), fault(9), fault(30)]
    assert chaos.struck(ledger, [(1, 20), (21, 25), (30, 40)]) == [(8, 20), (30, 40)]


def test_excuses_that_overlap_are_one() -> None:
    assert merged([(5, 9), (1, 3), (2, 6)]) == [(1, 9)]


def test_naked_time_is_judged_by_what_nothing_excuses() -> None:
    late = Ledger()
    start_ms = late.wall_ms
    late.round_trip(naked_ms=4_000)
    e = replace(good(), ledger=late.events)
    assert len(chaos_check.stops_in_time(e)) == 1
    for left_ms, wrong in ((999, 0), (1_000, 0), (1_001, 1)):
        taken_over = [(start_ms, start_ms + 4_000 - left_ms)]
        assert len(chaos_check.stops_in_time(replace(e, taken_over=taken_over))) == wrong


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
    assert len(chaos_check.stops_over_all(replace(dead, naked_ms_max_over_all=3_100))) == wrong


def test_orders_at_rest_are_those_without_an_end() -> None:
    ledger = Ledger()
    ledger.order("a1")
    ledger.stop(algo_id=3, client_id="a2")
    assert chaos.resting(ledger.events) == {"a1", "a2"}
    ledger.add("order_done", order_id=ledger.events[1]["order_id"], client_id="a1")
    ledger.add("algo_done", algo_id=3, client_id="a2")
    assert chaos.resting(ledger.events) == set()
