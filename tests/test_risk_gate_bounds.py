"""The gate at its very borders: what a wrong sign or a number one off would change.

Each of these kills mutants that the sentences of test_risk_gate.py leave alive; the run over all
of them is tests/gate_mutations.py.
"""

from __future__ import annotations

from dataclasses import fields
from decimal import Decimal

import pytest
from risk_desk import MARKET_MS, instrument, replace
from test_risk_gate import a_case, a_plan, a_signal, held, ok

import config
from risk import gate
from risk.arming import limits_of, settings_hash
from risk.events import Now
from risk.gate import (
    CAUTIOUS_LEVERAGE,
    CAUTIOUS_TRADES,
    CHECKS,
    EARLY,
    Case,
    Funding,
    Held,
    Limits,
    Plan,
    Quote,
    check_armed,
    check_bracket,
    check_breakers,
    check_collar,
    check_cost,
    check_duplicate,
    check_exposure,
    check_filters,
    check_funding,
    check_liquidation,
    check_market,
    check_positions,
    check_quarantine,
    judge,
    judge_early,
    leverage_wanted,
    plan_entry,
    reckoned_distance,
    risk_share,
)
from risk.instruments import (
    Bracket,
    Instrument,
    decimal,
    floor_to,
    parse_instrument,
    parse_instruments,
    plain,
)

D = Decimal
NOTHING = Limits(exposure_max=D(1_000), leverage_max=1_000)


def numbers(check: gate.Check, case: Case, plan: Plan | None = None) -> dict[str, str]:
    return check(case, plan or plan_entry(case)).numbers


def sell(**over: str) -> object:
    return a_signal(**{"side": "sell", "price": "999.9", "stop": "1010", "target": "980"} | over)


# --- what is taken for granted ---


def test_the_defaults_of_the_gate_are_those_of_the_settings() -> None:
    assert limits_of(config.load({})) == Limits()


def test_every_setting_of_the_gate_comes_from_a_setting() -> None:
    changed = {
        "AEGIS_SIGNAL_AGE_MS": "14000", "AEGIS_POSITIONS_MAX": "2", "AEGIS_RISK_PER_TRADE": "0.004",
        "AEGIS_LEVERAGE_MAX": "2", "AEGIS_EXPOSURE_MAX": "2.5", "AEGIS_CAPITAL_MAX": "9",
        "AEGIS_COST_R_MAX": "0.4", "AEGIS_COLLAR_BPS": "9", "AEGIS_ENTRY_POLICY": "proven",
        "AEGIS_ROTATION": "0", "AEGIS_DECAY_EXIT": "0", "AEGIS_NAKED_MS": "900",
        "AEGIS_HOLD_MAX_MS": "5000", "AEGIS_STAGNATION_MS": "4000", "AEGIS_RECV_WINDOW_MS": "1400",
        "AEGIS_QUALITY_MIN": "0.1", "AEGIS_SIZING": "kelly", "AEGIS_KELLY": "0.2",
        "AEGIS_ATR_STOPS": "3", "AEGIS_DAILY_LOSS_MAX": "0.1", "AEGIS_DRAWDOWN_MAX": "0.3",
        "AEGIS_LOSS_STREAK_MAX": "4", "AEGIS_ERRORS_MAX": "5", "AEGIS_FEES_DAY_MAX": "0.01",
        "AEGIS_TRADES_DAY_MAX": "6",
    }  # fmt: skip
    limits, usual = limits_of(config.load(changed)), Limits()
    same = [f.name for f in fields(Limits) if getattr(limits, f.name) == getattr(usual, f.name)]
    assert same == ["taker_fee"]
    assert settings_hash(limits, "main") != settings_hash(usual, "main")
    assert len(settings_hash(limits, "main")) == 16


def test_breakers_are_on_by_default_where_money_or_time_is_at_stake() -> None:
    for mode in ("paper", "demo", "live"):
        limits = limits_of(config.load({"AEGIS_MODE": mode}))
        assert limits.daily_loss_max > 0 and limits.drawdown_max > 0 and limits.fees_day_max > 0
        assert limits.loss_streak_max and limits.errors_max and limits.trades_day_max


def test_a_case_knows_nothing_that_it_was_not_told() -> None:
    case = a_case()
    assert (case.since_ms, case.trades_closed, case.blocked, case.quarantine) == (0.0, 0, "", "")
    assert (case.breakers, case.foreign) == ((), False)
    assert (held("X").pending, held("X").foreign) == (False, False)


def test_caution_is_three_times_for_fifty_trades() -> None:
    assert (CAUTIOUS_TRADES, CAUTIOUS_LEVERAGE) == (50, 3)


def test_an_approval_carries_the_mid_at_which_it_was_made() -> None:
    approved = judge(a_case()).approved
    assert approved is not None and approved.mid == D("999.95")


def test_early_checks_are_those_that_need_no_quote() -> None:
    assert [check.__name__ for check in EARLY] == [c.__name__ for c in CHECKS[: len(EARLY)]]
    assert CHECKS[len(EARLY)] is check_market


def test_an_early_refusal_is_the_first_one_that_refuses() -> None:
    early = judge_early(a_case(foreign=True, quote=None))
    assert early is not None and early.refusal == "ownership"
    assert [verdict.ok for verdict in early.verdicts[:-1]] == [True] * (len(early.verdicts) - 1)
    assert judge_early(a_case(quote=None)) is None


# --- sizing ---


@pytest.mark.parametrize(("cap", "capital"), [("0", "10000"), ("0.5", "0.5"), ("20000", "10000")])
def test_a_cap_of_zero_is_none(cap: str, capital: str) -> None:
    assert a_case(limits=Limits(capital_max=D(cap))).capital == D(capital)


@pytest.mark.parametrize(("most", "leverage"), [(0, 1), (1, 1), (2, 2), (3, 3), (4, 3)])
def test_leverage_is_at_least_one(most: int, leverage: int) -> None:
    assert leverage_wanted(Limits(leverage_max=most), 0, None) == leverage
    assert leverage_wanted(Limits(leverage_max=most), 0, replace(instrument(), brackets=())) == (
        leverage
    )


def sized(signal: object = None, **limits: object) -> Case:
    made = Limits(sizing="kelly", risk_per_trade=D("0.9"), **limits)
    return a_case(signal=signal or a_signal(), limits=made)


@pytest.mark.parametrize(
    ("confidence", "target", "share"),
    [
        ("0.6", "1020", "0.1"),  # 0.25 x (0.6 - 0.4 / 2)
        ("0.9", "1005", "0.175"),  # 0.25 x (0.9 - 0.1 / 0.5)
        ("0.3", "1020", "0"),  # no edge
        ("0.34", "1020", "0.0025"),
        ("1.0", "1020", "0.25"),
        ("0.6", "1000", "0"),  # at its target
        ("0.6", "995", "0"),  # beyond it
    ],
)
def test_kelly_risks_a_fraction_of_its_share(confidence: str, target: str, share: str) -> None:
    case = sized(replace(a_signal(confidence=confidence), target=D(target)))
    assert risk_share(case, D(10)) == D(share)


def test_kelly_of_a_sell_is_its_mirror() -> None:
    signal = sell(confidence="0.6", target="979.9", stop="1009.9")
    assert risk_share(sized(signal), D(10)) == D("0.1")


def test_kelly_never_risks_more_than_the_fixed_share() -> None:
    limits = Limits(sizing="kelly")
    assert risk_share(a_case(limits=limits), D(10)) == limits.risk_per_trade
    assert risk_share(a_case(), D(10)) == limits.risk_per_trade


def test_kelly_without_an_edge_enters_nothing() -> None:
    case = sized(a_signal(confidence="0.3"))
    assert plan_entry(case).qty == 0 and judge(case).refusal in ("filters", "liquidation")


@pytest.mark.parametrize(
    ("atr", "distance"), [("4.9", "10"), ("5", "10"), ("5.1", "10.2"), ("", "10")]
)
def test_atr_sizes_by_a_move_of_so_many_atr_at_least(atr: str, distance: str) -> None:
    case = a_case(signal=a_signal(atr=atr), limits=Limits(sizing="atr", atr_stops=D(2)))
    assert reckoned_distance(case, D(10)) == D(distance)
    assert reckoned_distance(replace(case, limits=Limits()), D(10)) == 10


def test_a_wide_atr_makes_the_position_smaller() -> None:
    limits = Limits(sizing="atr", atr_stops=D(2), exposure_max=D(100), leverage_max=100)
    case = a_case(limits=limits, trades_closed=1_000)
    wide = replace(case, signal=a_signal(atr="10"))
    assert plan_entry(wide).qty == floor_to(plan_entry(case).qty / 2, D("0.001"))


@pytest.mark.parametrize(
    ("limits", "others", "trades", "qty"),
    [
        # a stop 1 away would risk 50,050 of notional at 1,001; what is asked for is less
        (Limits(), (), 0, "8.991"),  # margin: 10,000 / 3 x 0.9 x 3
        (Limits(exposure_max=D("1.5"), leverage_max=10), (), 999, "4.995"),  # 10,000 / 3 x 1.5
        (Limits(), (Held("X", D(29_000), D(1), 0.5),), 0, "0.999"),  # 30,000 - 29,000
        (Limits(), (Held("X", D(1), D(9_000), 0.5),), 0, "2.997"),  # (10,000 - 9,000) x 3
        (Limits(), (Held("X", D(29_000), D(1), 0.5, foreign=True),), 0, "8.991"),
        (Limits(), (Held("X", D(1), D(9_000), 0.5, foreign=True),), 0, "2.997"),
    ],
)
def test_each_cap_of_the_size(
    limits: Limits, others: tuple[Held, ...], trades: int, qty: str
) -> None:
    case = a_case(signal=a_signal(stop="999"), limits=limits, held=others, trades_closed=trades)
    assert plan_entry(case).qty == D(qty)


def test_a_size_is_at_most_what_one_order_may_carry() -> None:
    case = a_case(signal=a_signal(stop="999"))
    for most in ("qty_max", "market_qty_max"):
        rules = replace(instrument(), **{most: D("0.5")})
        assert plan_entry(replace(case, instrument=rules)).qty == D("0.5")


def test_without_rules_or_a_price_a_plan_is_what_the_signal_said() -> None:
    signal = a_signal(stop="990.04", target="1020.04")
    empty = Plan(D(0), D(0), D("990.04"), D("1020.04"), 3)
    assert plan_entry(a_case(signal=signal, instrument=None)) == empty
    assert plan_entry(a_case(signal=signal, quote=None)) == empty
    assert plan_entry(a_case(signal=signal, quote=Quote(D(0), D(0), 10_000))) == empty


@pytest.mark.parametrize(
    ("ask", "stop", "fits"),
    [
        ("1", "0.5", True),
        ("0.9", "0.5", True),
        ("0.05", "0.01", False),  # no tick below the touch but zero
        ("1000", "1000.04", False),  # at the touch, once on the tick
        ("1000", "1000.5", False),  # beyond it
        ("1000", "999.9", True),
        ("1000", "999", True),
    ],
)
def test_a_size_needs_a_price_and_a_stop_that_is_not_passed(
    ask: str, stop: str, fits: bool
) -> None:
    signal = replace(a_signal(), stop=D(stop))
    case = a_case(signal=signal, quote=Quote(D(ask), D(ask), 10_000))
    assert (plan_entry(case).qty > 0) is fits
    assert plan_entry(case).qty >= 0


# --- numbers are shown as people read them ---


def test_numbers_in_words() -> None:
    now = Now(boot_ms=10_000, market_ms=MARKET_MS, valid_until_ms=11_000.1234567)
    told = numbers(check_armed, a_case(now=now))
    assert told == {"blocked": "no", "lease_left_ms": "1000.123457"}
    assert numbers(check_armed, a_case(blocked="halted"))["blocked"] == "halted"
    third = a_case(limits=Limits(taker_fee=D(1) / D(600)))
    assert numbers(check_cost, third)["cost_r"] == "0.3433333333"
    passed = replace(plan_entry(a_case()), stop=D(1_000))
    assert numbers(check_cost, a_case(), passed)["cost_r"] == "Infinity"
    assert numbers(check_market, a_case())["mark"] == "1000"
    assert numbers(check_market, a_case(mark=None))["mark"] == "none"
    assert numbers(check_funding, a_case()) == {"known": "0"}


def test_a_duplicate_says_what_it_met() -> None:
    mine, other = held("BTCUSDT"), replace(held("BTCUSDT"), pending=True)
    assert numbers(check_duplicate, a_case(held=(mine, other)))["same_symbol"] == "open"
    assert numbers(check_duplicate, a_case(held=(other, mine)))["same_symbol"] == "pending"
    assert numbers(check_duplicate, a_case())["same_symbol"] == "none"


def test_a_quarantine_and_a_breaker_say_why() -> None:
    assert ok(check_quarantine, a_case())
    assert not ok(check_quarantine, a_case(quarantine="apart"))
    assert numbers(check_quarantine, a_case()) == {"why": "none"}
    assert numbers(check_quarantine, a_case(quarantine="apart")) == {"why": "apart"}
    assert numbers(check_breakers, a_case()) == {"standing": "none"}
    assert numbers(check_breakers, a_case(breakers=("a", "b"))) == {"standing": "a; b"}


# --- the rest of each rule ---


@pytest.mark.parametrize(
    ("bid", "ask", "fits"),
    [
        ("0", "1", False),
        ("-1", "1", False),
        ("0.1", "1", True),
        ("1", "1", True),
        ("1.1", "1", False),
    ],
)
def test_a_quote_is_above_zero_and_uncrossed(bid: str, ask: str, fits: bool) -> None:
    assert ok(check_market, a_case(quote=Quote(D(bid), D(ask), 10_000))) is fits


@pytest.mark.parametrize(("stop", "fits"), [("999", True), ("1000", False), ("1000.1", False)])
def test_a_stop_at_the_touch_costs_without_end(stop: str, fits: bool) -> None:
    limits = Limits(cost_r_max=D(5))
    assert ok(check_cost, a_case(limits=limits), a_plan(stop=D(stop))) is fits


def test_a_sell_pays_and_is_paid_the_other_way_round() -> None:
    case = a_case(signal=sell(), funding=Funding(D("0.01"), MARKET_MS + 1))
    assert ok(check_funding, case)
    paid = replace(case, funding=Funding(D("-0.01"), MARKET_MS + 1))
    assert not ok(check_funding, paid)
    assert numbers(check_cost, case)["cost_r"] == "0.1089009901"  # (0.9999 + 0.1) / 10.1


@pytest.mark.parametrize(
    ("equity", "fits"), [("-1", False), ("0", False), ("0.01", True), ("1", True)]
)
def test_an_account_without_equity_enters_nothing(equity: str, fits: bool) -> None:
    case = a_case(equity=D(equity))
    assert ok(check_exposure, case, a_plan(qty=D(0))) is fits


def test_what_is_somebody_elses_takes_no_place_and_no_exposure_of_ours() -> None:
    theirs = tuple(replace(held(f"S{n}", "9000"), foreign=True) for n in range(5))
    assert ok(check_positions, a_case(held=theirs))
    assert ok(check_exposure, a_case(held=theirs))
    same = replace(held("BTCUSDT"), foreign=True)
    assert ok(check_duplicate, a_case(held=(same,)))


@pytest.mark.parametrize(("leverage", "fits"), [(0, False), (1, True), (100, True), (101, False)])
def test_leverage_is_from_one_to_the_brackets(leverage: int, fits: bool) -> None:
    assert ok(check_bracket, a_case(), a_plan(leverage=leverage)) is fits


def test_liquidation_of_a_sell_lies_above_and_counts_the_same() -> None:
    case = a_case(signal=sell())
    plan = plan_entry(case)
    assert ok(check_liquidation, case, plan)
    assert not ok(check_liquidation, case, replace(plan, stop=plan.price * 2))
    none_left = replace(instrument(), brackets=(Bracket(D(10**6), 10, D("0.9")),))
    assert not ok(check_liquidation, a_case(instrument=none_left), a_plan(leverage=4))


@pytest.mark.parametrize(
    ("qty", "fits"), [("0.001", False), ("0.002", True), ("0.003", True), ("0.004", False)]
)
def test_a_quantity_at_the_borders_of_its_lot(qty: str, fits: bool) -> None:
    rules = replace(instrument(), qty_min=D("0.002"), qty_max=D("0.003"), notional_min=D(0))
    plan = a_plan(qty=D(qty), price=D(1_000))
    assert ok(check_filters, a_case(instrument=rules), plan) is fits


@pytest.mark.parametrize(
    ("low", "high", "fits"),
    [
        ("990", "1020", True),
        ("990.1", "1020", False),
        ("990", "1019.9", False),
        ("989.9", "1020.1", True),
    ],
)
def test_prices_at_the_borders_that_the_exchange_sets(low: str, high: str, fits: bool) -> None:
    rules = replace(instrument(), price_min=D(low), price_max=D(high))
    assert ok(check_filters, a_case(instrument=rules)) is fits


@pytest.mark.parametrize(
    ("change", "fits"),
    [
        ({"stop": "1000"}, False),
        ({"stop": "1000.1"}, False),
        ({"stop": "999.9"}, True),
        ({"stop": "999"}, True),
        ({"target": "1000"}, False),
        ({"target": "999.9"}, False),
        ({"target": "1000.1"}, True),
        ({"target": "1001"}, True),
    ],
)
def test_stop_and_target_lie_on_their_sides_of_the_limit(
    change: dict[str, str], fits: bool
) -> None:
    plan = a_plan(price=D(1_000), **{name: D(text) for name, text in change.items()})
    assert ok(check_collar, a_case(), plan) is fits


@pytest.mark.parametrize(
    ("change", "fits"),
    [
        ({}, True),
        ({"price": "1000"}, False),  # better than the touch is no taker's limit
        ({"price": "998.9"}, False),
        ({"stop": "999.9"}, False),
        ({"stop": "1000.9"}, True),
        ({"target": "999.9"}, False),
        ({"target": "998.9"}, True),
    ],
)
def test_a_sell_keeps_its_collar_from_the_other_side(change: dict[str, str], fits: bool) -> None:
    plan = Plan(D(1), D("999.9"), D(1_010), D(980), 3)
    plan = replace(plan, **{name: D(text) for name, text in change.items()})
    assert ok(check_collar, a_case(signal=sell()), plan) is fits


@pytest.mark.parametrize(("mark", "fits"), [("999.8", True), ("999.9", True), ("1000", False)])
def test_a_sell_stays_within_percent_price(mark: str, fits: bool) -> None:
    rules = replace(instrument(), down=D(1))
    case = a_case(signal=sell(), mark=D(mark), instrument=rules)
    plan = Plan(D(1), D("999.9"), D(1_010), D(980), 3)
    assert ok(check_collar, case, plan) is fits


# --- the exchange's rules ---


ROW = {
    "symbol": "BTCUSDT",
    "filters": [
        {"filterType": "PRICE_FILTER", "minPrice": "1", "maxPrice": "9", "tickSize": "0.1"},
        {"filterType": "LOT_SIZE", "minQty": "2", "maxQty": "8", "stepSize": "0.5"},
    ],
}


def test_rules_that_the_exchange_does_not_tell_are_the_cautious_ones() -> None:
    made = parse_instrument(ROW)
    assert (made.market_qty_max, made.notional_min) == (D(8), D(0))
    assert (made.up, made.down, made.status, made.brackets) == (D("1.05"), D("0.95"), "TRADING", ())
    assert made.leverage_at(D(0)) == 1 and made.leverage_at(D(10**9)) == 1
    assert made.mmr_at(D(10**9)) == 0


def test_a_symbol_whose_rules_cannot_be_read_is_left_out() -> None:
    bare = {"symbol": "X", "filters": [{"filterType": "LOT_SIZE"}]}
    nothing = {"symbol": "Y"}
    made = parse_instruments({"symbols": [ROW, bare, nothing]}, [])
    assert list(made) == ["BTCUSDT"]


def test_beyond_the_last_bracket_its_rate_is_the_worst_known() -> None:
    rows = (Bracket(D(1), 3, D("0.1")), Bracket(D(2), 2, D("0.2")), Bracket(D(3), 1, D("0.3")))
    assert replace(instrument(), brackets=rows).mmr_at(D(4)) == D("0.3")


@pytest.mark.parametrize(
    ("notional", "leverage", "mmr"),
    [
        ("299999", 100, "0.004"),
        ("300000", 100, "0.004"),
        ("300001", 50, "0.005"),
        ("800000", 50, "0.005"),
        ("800001", 0, "0.005"),  # no leverage is allowed there; the last rate is the worst known
    ],
)
def test_brackets_end_where_they_say(notional: str, leverage: int, mmr: str) -> None:
    rules: Instrument = instrument()
    assert (rules.leverage_at(D(notional)), rules.mmr_at(D(notional))) == (leverage, D(mmr))


@pytest.mark.parametrize(
    ("price", "nearest", "floor", "ceil"),
    [
        ("1.24", "1.2", "1.2", "1.3"),
        ("1.25", "1.2", "1.2", "1.3"),  # half to even
        ("1.35", "1.4", "1.3", "1.4"),
        ("1.2", "1.2", "1.2", "1.2"),
    ],
)
def test_prices_are_put_on_the_tick_in_a_stated_direction(
    price: str, nearest: str, floor: str, ceil: str
) -> None:
    rules = instrument()
    made = (rules.nearest_price(D(price)), rules.floor_price(D(price)), rules.ceil_price(D(price)))
    assert made == (D(nearest), D(floor), D(ceil))
    assert rules.floor_qty(D("0.0019")) == D("0.001")


def test_text_and_numbers() -> None:
    assert (decimal(""), decimal(None), decimal(None, D(5)), decimal("1.5")) == (0, 0, 5, D("1.5"))
    assert [plain(D(n)) for n in ("100", "1.50", "-0.00", "0")] == ["100", "1.5", "0", "0"]
