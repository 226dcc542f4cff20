"""Breakers: each at its limit, one below and one above; by the day, latched, over restarts."""

from __future__ import annotations

import json
from decimal import Decimal

import pytest
from risk_desk import KEYS, MARKET_MS, Desk, decisions, ops, replace, sends

from risk import breakers
from risk.breakers import (
    DAILY_FEES,
    DAILY_LOSS,
    DAILY_TRADES,
    DAY_MS,
    DRAWDOWN,
    ERROR_RATE,
    ERRORS_KEPT_MAX,
    ERRORS_MS,
    LOSS_STREAK,
    NO_DAY,
    Facts,
    Tally,
    closed,
    follow,
    from_fields,
    named,
    resumed,
    share_of,
    standing,
    to_fields,
)
from risk.events import CommandRead, Effect, Note, Refused, Throttled, Unknown
from risk.gate import Limits
from risk.guard import EXPECTED
from risk.portfolio import Money

DAY = MARKET_MS // DAY_MS
D = Decimal


def a_tally(**over: object) -> Tally:
    made = Tally(day=DAY, day_result=D(0), day_fees=D(0), day_entries=0, peak=D(0), streak=0)
    return replace(made, **over)


def some_facts(**over: object) -> Facts:
    made = Facts(float(MARKET_MS), D(10_000), D(0), D(0), 0, 0)
    return replace(made, **over)


ALL = Limits(
    daily_loss_max=D("0.03"),
    drawdown_max=D("0.1"),
    loss_streak_max=5,
    errors_max=7,
    fees_day_max=D("0.01"),
    trades_day_max=9,
)


def tripped(tally: Tally, told: Facts, limits: Limits = ALL) -> set[str]:
    return set(standing(tally, told, limits))


# --- each at its limit ---


@pytest.mark.parametrize(("lost", "trips"), [("299.99", False), ("300", True), ("300.01", True)])
def test_the_daily_loss_is_a_share_of_the_equity_that_the_day_began_with(
    lost: str, trips: bool
) -> None:
    told = some_facts(result=D(50) - D(lost), equity=D(10_000) - D(lost))
    assert tripped(a_tally(day_result=D(50), peak=D(50)), told) == (
        {DAILY_LOSS} if trips else set()
    )


@pytest.mark.parametrize(("lost", "trips"), [("999.99", False), ("1000", True), ("1000.01", True)])
def test_the_drawdown_is_a_share_of_the_highest_equity(lost: str, trips: bool) -> None:
    told = some_facts(result=D(70) - D(lost), equity=D(10_000) - D(lost))
    tally = a_tally(day_result=D(70) - D(lost), peak=D(70))  # it fell before today
    assert tripped(tally, told) == ({DRAWDOWN} if trips else set())


@pytest.mark.parametrize(("paid", "trips"), [("99.99", False), ("100", True), ("100.01", True)])
def test_the_fees_of_the_day_are_a_share_of_the_equity(paid: str, trips: bool) -> None:
    told = some_facts(fees=D(20) + D(paid), equity=D(10_000) - D(paid))
    assert tripped(a_tally(day_fees=D(20)), told) == ({DAILY_FEES} if trips else set())


@pytest.mark.parametrize(("streak", "trips"), [(4, False), (5, True), (6, True)])
def test_a_loss_streak(streak: int, trips: bool) -> None:
    assert tripped(a_tally(streak=streak), some_facts()) == ({LOSS_STREAK} if trips else set())


@pytest.mark.parametrize(("entries", "trips"), [(8, False), (9, True), (10, True)])
def test_the_trades_of_the_day(entries: int, trips: bool) -> None:
    told = some_facts(entries=100 + entries)
    assert tripped(a_tally(day_entries=100), told) == ({DAILY_TRADES} if trips else set())


@pytest.mark.parametrize(("errors", "trips"), [(6, False), (7, True), (8, True)])
def test_the_error_rate(errors: int, trips: bool) -> None:
    assert tripped(a_tally(), some_facts(errors=errors)) == ({ERROR_RATE} if trips else set())


@pytest.mark.parametrize(("count", "trips"), [(0, False), (1, True)])
def test_a_limit_of_one_is_the_first_one(count: int, trips: bool) -> None:
    one = Limits(loss_streak_max=1, trades_day_max=1, errors_max=1)
    told = some_facts(entries=count, errors=count)
    found = standing(a_tally(streak=count), told, one)
    assert bool(found) is trips
    assert set(standing(a_tally(tripped=found), some_facts(), one)) == set(found) - {ERROR_RATE}


def test_a_limit_of_zero_is_off_and_lifts_what_it_had_tripped() -> None:
    told = some_facts(result=D(-9_000), fees=D(5_000), entries=1_000, errors=400, equity=D(1_000))
    tally = a_tally(streak=99)
    everything = standing(tally, told, ALL)
    assert len(everything) == 6
    assert standing(replace(tally, tripped=everything), told, Limits()) == {}


@pytest.mark.parametrize(
    ("lost", "equity", "share"),
    [
        ("-1", "100", "0"),
        ("0", "100", "0"),
        ("0", "0", "0"),
        ("-0.5", "0", "0"),
        ("1", "-0.5", "1"),
        ("0.01", "99.99", "0.0001"),
        ("50", "50", "0.5"),
        ("1", "0", "1"),
        ("1", "-1", "1"),
        ("1", "0.01", str(D(1) / D("1.01"))),
    ],
)
def test_a_share_is_of_the_equity_before_the_loss(lost: str, equity: str, share: str) -> None:
    assert share_of(D(lost), D(equity)) == D(share)


def test_a_sentence_has_its_numbers() -> None:
    told = some_facts(result=D(-1_500), equity=D(8_500), entries=9, fees=D(0))
    found = standing(a_tally(), told, ALL)
    assert found[DAILY_LOSS] == "daily loss 0.15 of equity, limit 0.03"
    assert found[DRAWDOWN] == "drawdown 0.15 of equity, limit 0.1"
    assert found[DAILY_TRADES] == "trades of the day 9, limit 9"
    thin = standing(a_tally(), some_facts(result=D("-300.06"), equity=D("9699.94")), ALL)
    assert thin[DAILY_LOSS] == "daily loss 0.03 of equity, limit 0.03"


# --- time ---


@pytest.mark.parametrize(("after_ms", "new"), [(-1, False), (0, True), (1, True)])
def test_a_day_begins_at_midnight_utc_with_what_is_there(after_ms: int, new: bool) -> None:
    midnight_ms = (DAY + 1) * DAY_MS
    before = a_tally(day_result=D(3), day_fees=D(1), day_entries=2, peak=D(9), streak=4)
    told = some_facts(market_ms=float(midnight_ms + after_ms), result=D(-5), fees=D(7), entries=11)
    tally = follow(before, told)
    wanted = (DAY + 1, D(-5), D(7), 11) if new else (DAY, D(3), D(1), 2)
    assert (tally.day, tally.day_result, tally.day_fees, tally.day_entries) == wanted
    assert (tally.peak, tally.streak) == (D(9), 4)


def test_a_clock_that_steps_back_begins_no_day() -> None:
    before = a_tally(day_result=D(3))
    assert follow(before, some_facts(market_ms=float((DAY - 1) * DAY_MS))) == before


def test_the_first_day_begins_with_what_was_earned_before() -> None:
    tally = follow(Tally(), some_facts(result=D(-40), fees=D(3), entries=6))
    assert tally == Tally(DAY, D(-40), D(3), 6, peak=D(-40))
    assert Tally().day == NO_DAY and from_fields({}) == Tally()


@pytest.mark.parametrize(("result", "peak"), [("8.99", "9"), ("9", "9"), ("9.01", "9.01")])
def test_the_peak_only_rises(result: str, peak: str) -> None:
    assert follow(a_tally(peak=D(9)), some_facts(result=D(result))).peak == D(peak)


def test_what_a_day_tripped_stands_until_the_day_is_over_whatever_is_won_back() -> None:
    told = some_facts(result=D(-400), equity=D(9_600), fees=D(200), entries=20)
    tally = a_tally()
    tally = replace(tally, tripped=standing(tally, told, ALL))
    assert set(tally.tripped) == {DAILY_LOSS, DAILY_FEES, DAILY_TRADES}
    better = some_facts()
    assert standing(follow(tally, better), better, ALL) == tally.tripped
    tomorrow = replace(better, market_ms=float((DAY + 1) * DAY_MS))
    assert standing(follow(tally, tomorrow), tomorrow, ALL) == {}


def test_drawdown_and_streak_stand_over_days_until_resume() -> None:
    told = some_facts(result=D(-1_000), equity=D(9_000))
    tally = a_tally(streak=5, day_result=D(-1_000))
    tally = replace(tally, tripped=standing(tally, told, ALL))
    assert set(tally.tripped) == {DRAWDOWN, LOSS_STREAK}
    later = some_facts(market_ms=float((DAY + 3) * DAY_MS))
    tally = closed(follow(tally, later), D(5))
    assert set(standing(tally, later, ALL)) == {DRAWDOWN, LOSS_STREAK}
    fresh = resumed(tally, later)
    assert (fresh.peak, fresh.streak, fresh.tripped) == (later.result, 0, {})
    assert standing(fresh, later, ALL) == {}


def test_resume_leaves_what_the_day_tripped() -> None:
    tally = a_tally(tripped={DAILY_LOSS: "a", DRAWDOWN: "b", LOSS_STREAK: "c", ERROR_RATE: "d"})
    assert set(resumed(tally, some_facts()).tripped) == {DAILY_LOSS, ERROR_RATE}


def test_the_error_rate_is_over_when_it_has_fallen() -> None:
    tally = a_tally(tripped={ERROR_RATE: "error rate 7, limit 7"})
    assert standing(tally, some_facts(errors=6), ALL) == {}


@pytest.mark.parametrize(("net", "streak"), [("-0.01", 3), ("0", 2), ("0.01", 0)])
def test_a_round_trip_counts_in_the_streak(net: str, streak: int) -> None:
    assert closed(a_tally(streak=2), D(net)).streak == streak


def test_a_tally_survives_its_hash() -> None:
    tally = a_tally(
        day_result=D("-1.5"), day_fees=D("0.1"), day_entries=4, peak=D("77.25"), streak=3,
        tripped={DAILY_LOSS: "daily loss 0.04 of equity, limit 0.03"},
    )  # fmt: skip
    fields = to_fields(tally) | {"halted": "5", "quarantine:BTCUSDT": "apart"}
    assert from_fields(fields) == tally
    assert named(fields, breakers.QUARANTINED) == {"BTCUSDT": "apart"}


# --- in the core ---


def desk(**limits: object) -> Desk:
    made = Desk(limits=Limits(**limits))
    made.wait(1)  # the day begins here
    return made


def command(of: Desk, name: str) -> list[Effect]:
    return of.do(CommandRead("5-0", {"id": "c1", "name": name}))


def lose(of: Desk, realised: str, symbol: str = "BTCUSDT") -> list[Effect]:
    """A round trip that ends at its stop."""
    entry, stop, _ = of.open(symbol)
    of.algo(stop, "TRIGGERED", "555")
    return of.fill(stop, entry.params["quantity"], "990", realised=realised)


def test_a_tripped_breaker_refuses_with_its_sentence_is_told_and_written() -> None:
    d = desk(daily_loss_max=D("0.01"))
    done = lose(d, "-101")
    assert [e.level for e in done if isinstance(e, Note)] == ["CRITICAL"]
    written = [op[2] for op in ops(done, "hset", KEYS.breakers)]
    assert "daily loss" in written[-1]["tripped:daily loss"]
    assert any("daily loss" in op[2]["text"] for op in ops(done, "xadd", KEYS.journal))
    refused = decisions(d.signal(id="next", symbol="ETHUSDT"))[0]
    assert refused["refused_by"] == "breakers"
    verdict = json.loads(refused["verdicts"])[-1]
    assert verdict["standing"].startswith("daily loss 0.01")


def test_a_breaker_traps_no_position() -> None:
    d = desk(daily_loss_max=D("0.01"))
    d.open("ETHUSDT")
    lose(d, "-101")
    assert sends(command(d, "flatten"), "exit")


def test_unrealised_counts_and_a_deposit_is_no_profit() -> None:
    d = desk(daily_loss_max=D("0.01"))
    d.open("BTCUSDT")
    qty = d.state.positions["BTCUSDT"].qty
    d.state.money = replace(d.state.money, wallet=D(10_100))  # paid in
    d.state.marks["BTCUSDT"] = 1_000 - D(103) / qty
    d.wait(1)
    assert set(d.state.tally.tripped) == {DAILY_LOSS}


def test_funding_counts() -> None:
    d = desk(daily_loss_max=D("0.01"))
    d.state.money = replace(d.state.money, funding=D(-102))
    d.wait(1)
    assert set(d.state.tally.tripped) == {DAILY_LOSS}


def test_a_withdrawal_is_no_loss() -> None:
    d = desk(daily_loss_max=D("0.01"), drawdown_max=D("0.01"))
    d.state.money = replace(d.state.money, wallet=D(5_000), transfers=D(-5_000))
    d.wait(1)
    assert d.state.tally.tripped == {}


def test_a_position_whose_mark_is_unknown_judges_nothing() -> None:
    d = desk(drawdown_max=D("0.01"))
    d.open("BTCUSDT")
    d.state.money = replace(d.state.money, realised=D(-5_000))
    del d.state.marks["BTCUSDT"]
    d.wait(1)
    assert d.state.tally.tripped == {} and d.state.tally.peak >= 0


def test_the_last_entry_of_the_day_is_the_one_at_the_limit() -> None:
    d = desk(trades_day_max=2)
    for number, symbol in enumerate(("BTCUSDT", "ETHUSDT")):
        assert sends(d.signal(id=f"n{number}", symbol=symbol), "entry")
    assert decisions(d.signal(id="n3", symbol="SOLUSDT"))[0]["refused_by"] == "breakers"
    d.market_ms += DAY_MS
    d.quote_all()
    over = {"exch_ns": str(int(d.market_ms) * 1_000_000), "expires_ms": str(int(d.market_ms) + 9)}
    assert sends(d.signal(id="n4", symbol="SOLUSDT", **over), "entry")


def test_losses_in_a_row_need_resume() -> None:
    d = desk(loss_streak_max=2)
    lose(d, "-1")
    assert d.state.tally.tripped == {}
    lose(d, "-1", "ETHUSDT")
    assert set(d.state.tally.tripped) == {LOSS_STREAK}
    done = command(d, "resume")
    assert ops(done, "hdel", KEYS.breakers)
    assert json.loads(ops(done, "hset", KEYS.replies)[0][2]["c1"]) == {"ok": True, "standing": []}
    assert sends(d.signal(id="next", symbol="SOLUSDT"), "entry")


def test_resume_tells_what_stands_all_the_same() -> None:
    d = desk(daily_loss_max=D("0.01"))
    lose(d, "-101")
    told = json.loads(ops(command(d, "resume"), "hset", KEYS.replies)[0][2]["c1"])
    assert len(told["standing"]) == 1 and told["standing"][0].startswith("daily loss")


@pytest.mark.parametrize(
    ("result", "counted"),
    [
        (Refused(-2019, "margin"), 1),
        (Refused(-2021, "would trigger"), 0),
        (Refused(0, "ours"), 0),
        *((Refused(code, "part of the work"), 0) for code in EXPECTED),
        (Unknown("time-out"), 1),
        (Throttled(1e9, "429"), 0),
    ],
)
def test_an_order_that_fails_is_an_error(result: object, counted: int) -> None:
    d = desk(errors_max=5)
    entry = sends(d.signal(), "entry")[0]
    d.reply(entry, result)
    assert len(d.state.errors) == counted


@pytest.mark.parametrize(("after_ms", "stands"), [(-1, True), (0, False)])
def test_errors_are_forgotten_after_their_time(after_ms: float, stands: bool) -> None:
    d = desk(errors_max=3)
    d.state.errors.extend([d.boot_ms] * 3)
    d.wait(1)
    assert set(d.state.tally.tripped) == {ERROR_RATE}
    d.wait(ERRORS_MS - 1 + after_ms)
    assert (ERROR_RATE in d.state.tally.tripped) is stands


def test_what_is_part_of_the_work_is_no_error() -> None:
    assert sorted(EXPECTED) == [-20132, -4130, -4116, -4046, -2022, -2021]


def test_errors_are_bounded() -> None:
    d = desk()
    d.state.errors.extend([0.0] * (ERRORS_KEPT_MAX + 5))
    assert len(d.state.errors) == ERRORS_KEPT_MAX == 500


def test_a_tally_is_written_once_a_second_while_nothing_trips() -> None:
    d = desk()
    d.open("BTCUSDT")
    written = []
    for mark in range(1_001, 1_021):
        d.state.marks["BTCUSDT"] = D(mark)
        written += ops(d.wait(100), "hset", KEYS.breakers)
    assert 1 <= len(written) <= 3


def test_a_restart_finds_what_had_tripped() -> None:
    before = desk(daily_loss_max=D("0.01"))
    lose(before, "-101")
    after = Desk(limits=before.limits)
    after.state.tally = from_fields(before.state.tally_written)
    after.state.money = Money(wallet=D(9_900), realised=D(-101), fees=D("0.1"))
    assert decisions(after.signal(symbol="ETHUSDT"))[0]["refused_by"] == "breakers"


LIMITS = (
    "daily_loss_max",
    "drawdown_max",
    "fees_day_max",
    "loss_streak_max",
    "trades_day_max",
    "errors_max",
)


@pytest.mark.parametrize("name", LIMITS)
def test_each_breaker_alone_is_followed_at_every_event(name: str) -> None:
    none = replace(Limits(), **dict.fromkeys(LIMITS, 0))
    assert not breakers.any_set(none)
    assert breakers.any_set(replace(none, **{name: 1}))
