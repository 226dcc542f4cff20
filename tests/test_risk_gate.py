"""The gate: every rule at its limit, one below and one above."""

from __future__ import annotations

from collections.abc import Callable
from decimal import Decimal

import pytest
from risk_desk import MARKET_MS, instrument, replace, signal_fields

from risk.events import Now
from risk.gate import (
    CAUTIOUS_TRADES,
    CHECKS,
    CLOCK_SLACK_MS,
    FUNDING_AHEAD_MS,
    QUOTE_AGE_MS_MAX,
    Approved,
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
    check_missed,
    check_ownership,
    check_positions,
    check_quality,
    check_stale,
    judge,
    leverage_wanted,
    plan_entry,
)
from risk.instruments import Bracket, parse_instrument, plain
from risk.orders import ENTRY_LEG, Order, entry_request
from risk.signals import Signal, parse_signal

Check = Callable[[Case, Plan], object]


def a_signal(**over: str) -> Signal:
    made = parse_signal(signal_fields(**over))
    assert isinstance(made, Signal)
    return made


def a_case(**over: object) -> Case:
    made = Case(
        signal=a_signal(),
        now=Now(boot_ms=10_000, market_ms=MARKET_MS, valid_until_ms=11_000),
        limits=Limits(),
        instrument=instrument(),
        quote=Quote(Decimal("999.9"), Decimal("1000"), 10_000),
        mark=Decimal("1000"),
        funding=None,
        held=(),
        equity=Decimal("10000"),
    )
    return replace(made, **over)  # type: ignore[arg-type]


def ok(check: Check, case: Case, plan: Plan | None = None) -> bool:
    return check(case, plan or plan_entry(case)).ok  # type: ignore[attr-defined, no-any-return]


def held(symbol: str, notional: str = "100") -> Held:
    return Held(symbol, Decimal(notional), Decimal(notional) / 3, 0.5)


def a_plan(**over: object) -> Plan:
    return replace(plan_entry(a_case()), **over)  # type: ignore[arg-type]


def test_a_plain_case_is_approved_with_every_verdict() -> None:
    judgement = judge(a_case())
    assert judgement.approved is not None
    assert len(judgement.verdicts) == len(CHECKS)
    assert all(verdict.ok and verdict.numbers for verdict in judgement.verdicts)


def test_the_first_refusal_ends_the_judgement() -> None:
    judgement = judge(a_case(blocked="halted", foreign=True))
    assert judgement.approved is None
    assert [verdict.name for verdict in judgement.verdicts] == ["armed"]


def test_only_the_gate_makes_an_approval() -> None:
    with pytest.raises(PermissionError):
        Approved(a_signal(), "BTCUSDT", "buy", *([Decimal(1)] * 4), 1, Decimal(1), object())


def test_an_approval_serves_only_its_own_order() -> None:
    approved = judge(a_case()).approved
    assert approved is not None
    order = Order("id", "s1", ENTRY_LEG, "BTCUSDT", "buy", approved.qty, approved.price, "intent")
    assert entry_request(approved, order).params["symbol"] == "BTCUSDT"
    with pytest.raises(ValueError, match="another order"):
        entry_request(approved, replace(order, qty=approved.qty * 2))
    with pytest.raises(TypeError):
        entry_request(object(), order)  # type: ignore[arg-type]


def test_a_users_rule_can_refuse() -> None:
    def never(case: Case, plan: Plan) -> object:
        return replace(judge(case).verdicts[0], name="never", ok=False)

    assert judge(a_case(), (never,)).refusal == "never"  # type: ignore[arg-type]


@pytest.mark.parametrize(("left_ms", "expected"), [(-1, False), (0, False), (1, True)])
def test_check_armed_needs_a_lease(left_ms: int, expected: bool) -> None:
    now = Now(boot_ms=10_000, market_ms=MARKET_MS, valid_until_ms=10_000 + left_ms)
    assert ok(check_armed, a_case(now=now)) is expected


@pytest.mark.parametrize(
    ("age_ms", "expected"),
    [
        (-CLOCK_SLACK_MS - 1, False),
        (-CLOCK_SLACK_MS, True),
        (14_999, True),
        (15_000, True),
        (15_001, False),
    ],
)
def test_check_stale_refuses_only_past_the_limit(age_ms: float, expected: bool) -> None:
    now = Now(boot_ms=10_000, market_ms=MARKET_MS + age_ms, valid_until_ms=11_000)
    assert ok(check_stale, a_case(now=now)) is expected


@pytest.mark.parametrize(("left_ms", "expected"), [(-1, False), (0, True), (1, True)])
def test_check_stale_refuses_an_expired_signal(left_ms: int, expected: bool) -> None:
    signal = a_signal(expires_ms=str(MARKET_MS + left_ms))
    assert ok(check_stale, a_case(signal=signal)) is expected


@pytest.mark.parametrize(("since_ms", "expected"), [(-1, True), (0, True), (1, False)])
def test_check_missed_refuses_what_was_made_before_we_knew(since_ms: int, expected: bool) -> None:
    assert ok(check_missed, a_case(since_ms=float(MARKET_MS + since_ms))) is expected


@pytest.mark.parametrize(("quality", "expected"), [("0.49", False), ("0.5", True), ("0.51", True)])
def test_check_quality_refuses_below_the_limit(quality: str, expected: bool) -> None:
    case = a_case(signal=a_signal(quality=quality), limits=Limits(quality_min=0.5))
    assert ok(check_quality, case) is expected


@pytest.mark.parametrize(
    ("confidence", "expected"), [("0.54", False), ("0.55", False), ("0.56", True)]
)
def test_a_proven_policy_needs_confidence_above_break_even(confidence: str, expected: bool) -> None:
    signal = a_signal(confidence=confidence, breakeven="0.55")
    case = a_case(signal=signal, limits=Limits(entry_policy="proven"))
    assert ok(check_quality, case) is expected
    assert ok(check_quality, replace(case, limits=Limits()))


def test_check_duplicate_refuses_the_same_symbol_only() -> None:
    assert ok(check_duplicate, a_case(held=(held("ETHUSDT"),)))
    assert not ok(check_duplicate, a_case(held=(held("BTCUSDT"),)))
    assert not ok(check_duplicate, a_case(held=(replace(held("BTCUSDT"), pending=True),)))


def test_check_breakers_and_ownership_refuse() -> None:
    assert ok(check_breakers, a_case()) and not ok(check_breakers, a_case(breakers=("daily",)))
    assert ok(check_ownership, a_case()) and not ok(check_ownership, a_case(foreign=True))


@pytest.mark.parametrize(("past_ms", "expected"), [(-1, True), (0, True), (1, False)])
def test_check_market_refuses_an_old_quote(past_ms: int, expected: bool) -> None:
    at_ms = 10_000 - QUOTE_AGE_MS_MAX - past_ms
    quote = Quote(Decimal("999.9"), Decimal("1000"), at_ms)
    assert ok(check_market, a_case(quote=quote)) is expected


def test_check_market_refuses_what_is_not_there_or_not_trading() -> None:
    assert not ok(check_market, a_case(quote=None))
    assert not ok(check_market, a_case(mark=None))
    assert not ok(check_market, a_case(instrument=None))
    assert not ok(check_market, a_case(instrument=replace(instrument(), status="SETTLING")))
    crossed = Quote(Decimal("1000.1"), Decimal("1000"), 10_000)
    assert not ok(check_market, a_case(quote=crossed))


@pytest.mark.parametrize(("most", "expected"), [("0.109", False), ("0.11", True), ("0.111", True)])
def test_check_cost_compares_fees_and_spread_with_the_stop(most: str, expected: bool) -> None:
    # 2 x 5 bp of 1000 and 0.1 of spread, against a stop 10 away: 1.1 / 10
    assert ok(check_cost, a_case(limits=Limits(cost_r_max=Decimal(most)))) is expected


@pytest.mark.parametrize(
    ("rate", "ahead_ms", "expected"),
    [
        ("0.00099", FUNDING_AHEAD_MS, True),
        ("0.00100", FUNDING_AHEAD_MS, True),  # 1.0 of 10 is 0.1 R
        ("0.00101", FUNDING_AHEAD_MS, False),
        ("0.00101", FUNDING_AHEAD_MS + 1, True),
        ("-0.01000", 1, True),  # we would be paid
        ("0.01000", 0, True),  # it is over
    ],
)
def test_check_funding_refuses_what_we_would_pay_soon(
    rate: str, ahead_ms: int, expected: bool
) -> None:
    funding = Funding(Decimal(rate), MARKET_MS + ahead_ms)
    assert ok(check_funding, a_case(funding=funding)) is expected


@pytest.mark.parametrize(("n", "expected"), [(2, True), (3, False), (4, False)])
def test_check_positions_counts_open_and_pending(n: int, expected: bool) -> None:
    many = tuple(replace(held(f"S{k}"), pending=bool(k % 2)) for k in range(n))
    assert ok(check_positions, a_case(held=many)) is expected


@pytest.mark.parametrize(("qty", "expected"), [("9.999", True), ("10", True), ("10.001", False)])
def test_check_exposure_counts_what_is_added(qty: str, expected: bool) -> None:
    case = a_case(held=(held("ETHUSDT", "20000"),))
    plan = a_plan(price=Decimal("1000"), qty=Decimal(qty))
    assert ok(check_exposure, case, plan) is expected


@pytest.mark.parametrize(
    ("qty", "leverage", "expected"),
    [("300", 100, True), ("300.001", 100, False), ("300.001", 50, True), ("800.001", 1, False)],
)
def test_check_bracket_holds_leverage_to_the_exchanges_table(
    qty: str, leverage: int, expected: bool
) -> None:
    plan = a_plan(price=Decimal("1000"), qty=Decimal(qty), leverage=leverage)
    assert ok(check_bracket, a_case(), plan) is expected


@pytest.mark.parametrize(("stop", "expected"), [("900.1", True), ("900", True), ("899.9", False)])
def test_check_liquidation_wants_the_stop_well_before(stop: str, expected: bool) -> None:
    # 1000 x (1/4 - 0.1) = 150 to liquidation; / 1.5 = 100 of room for the stop
    rules = replace(instrument(), brackets=(Bracket(Decimal(10**6), 10, Decimal("0.1")),))
    plan = a_plan(price=Decimal("1000"), stop=Decimal(stop), leverage=4)
    assert ok(check_liquidation, a_case(instrument=rules), plan) is expected


@pytest.mark.parametrize(
    ("qty", "expected"),
    [("0.049", False), ("0.050", True), ("0.0505", False), ("500", True), ("500.001", False)],
)
def test_check_filters_holds_quantity_to_lot_and_notional(qty: str, expected: bool) -> None:
    plan = a_plan(price=Decimal("1000"), qty=Decimal(qty))
    assert ok(check_filters, a_case(), plan) is expected


@pytest.mark.parametrize(("price", "expected"), [("1000.1", True), ("1000.15", False)])
def test_check_filters_holds_prices_to_the_tick(price: str, expected: bool) -> None:
    assert ok(check_filters, a_case(), a_plan(price=Decimal(price))) is expected


@pytest.mark.parametrize(
    ("price", "expected"),
    [("999.9", False), ("1000", True), ("1000.9", True), ("1001", True), ("1001.1", False)],
)
def test_check_collar_keeps_the_limit_near_the_touch(price: str, expected: bool) -> None:
    assert ok(check_collar, a_case(), a_plan(price=Decimal(price))) is expected


@pytest.mark.parametrize(("mark", "expected"), [("1000.1", True), ("1000", True), ("999.9", False)])
def test_check_collar_keeps_a_buy_within_percent_price(mark: str, expected: bool) -> None:
    rules = replace(instrument(), up=Decimal("1.001"))
    case = a_case(mark=Decimal(mark), instrument=rules)
    assert ok(check_collar, case, a_plan(price=Decimal("1001"))) is expected


def test_a_trade_that_already_reached_its_target_is_not_made() -> None:
    quote = Quote(Decimal("1019.9"), Decimal("1020"), 10_000)
    assert judge(a_case(quote=quote, mark=Decimal("1020"))).approved is None


@pytest.mark.parametrize(
    ("closed", "expected"),
    [(CAUTIOUS_TRADES - 1, 3), (CAUTIOUS_TRADES, 20), (CAUTIOUS_TRADES + 1, 20)],
)
def test_leverage_is_cautious_until_enough_trades_are_closed(closed: int, expected: int) -> None:
    assert leverage_wanted(Limits(leverage_max=20), closed, instrument()) == expected


def test_leverage_stays_within_the_bracket() -> None:
    low = replace(instrument(), brackets=(Bracket(Decimal(1000), 2, Decimal("0.1")),))
    assert leverage_wanted(Limits(leverage_max=20), 1_000, low) == 2


# --- sizing ---


def test_the_size_loses_the_set_share_at_the_stop() -> None:
    limits = Limits(exposure_max=Decimal(100), leverage_max=100)
    plan = plan_entry(a_case(limits=limits, trades_closed=1_000))
    lost = plan.qty * (Decimal(1000) - plan.stop)
    assert Decimal("49.9") < lost <= Decimal("50")


def test_the_size_is_never_rounded_up() -> None:
    case = a_case(signal=a_signal(stop="970"), equity=Decimal("10007"))
    plan = plan_entry(case)
    exact = Decimal("10007") * case.limits.risk_per_trade / 30
    assert plan.qty <= exact < plan.qty + case.instrument.step  # type: ignore[union-attr]


def test_capital_max_caps_what_sizing_sees() -> None:
    small = plan_entry(a_case(limits=Limits(capital_max=Decimal(1_000))))
    assert small.qty == plan_entry(a_case(equity=Decimal(1_000))).qty


def test_no_size_fits_where_exposure_is_used_up() -> None:
    case = a_case(held=(held("ETHUSDT", "30000"),))
    assert plan_entry(case).qty == 0 and judge(case).approved is None


def test_a_sell_is_the_mirror_of_a_buy() -> None:
    signal = a_signal(side="sell", stop="1010", target="980", price="999.9")
    plan = plan_entry(a_case(signal=signal))
    assert plan.price == Decimal("999.0") and plan.stop == Decimal("1010")
    assert judge(a_case(signal=signal)).approved is not None


# --- what goes in ---


@pytest.mark.parametrize(
    "over",
    [
        {"side": "long"},
        {"price": "nan"},
        {"price": "-1"},
        {"stop": "1000"},
        {"target": "1000"},
        {"side": "sell"},
        {"confidence": "1.01"},
        {"quality": "x"},
        {"id": ""},
        {"id": "x" * 65},
        {"exch_ns": "soon"},
        {"expires_ms": "nan"},
    ],
)
def test_a_malformed_signal_is_told_in_a_sentence(over: dict[str, str]) -> None:
    assert isinstance(parse_signal(signal_fields(**over)), str)


def test_unknown_fields_of_a_signal_are_ignored() -> None:
    assert isinstance(parse_signal(signal_fields(mood="good")), Signal)


@pytest.mark.parametrize(
    ("number", "text"),
    [("1E+3", "1000"), ("0.10", "0.1"), ("0", "0"), ("-0.0", "0"), ("1E-8", "0.00000001")],
)
def test_plain_writes_digits_without_exponent(number: str, text: str) -> None:
    assert plain(Decimal(number)) == text


def test_an_instrument_is_read_from_the_exchanges_filters() -> None:
    row = {
        "symbol": "BTCUSDT",
        "status": "TRADING",
        "filters": [
            {"filterType": "PRICE_FILTER", "minPrice": "556.8", "maxPrice": "4529764"}
            | {"tickSize": "0.10"},
            {"filterType": "LOT_SIZE", "minQty": "0.001", "maxQty": "1000", "stepSize": "0.001"},
            {"filterType": "MARKET_LOT_SIZE", "minQty": "0.001", "maxQty": "120", "stepSize": "1"},
            {"filterType": "MIN_NOTIONAL", "notional": "50"},
            {"filterType": "PERCENT_PRICE", "multiplierUp": "1.05", "multiplierDown": "0.95"},
        ],
    }
    rows = [
        {"notionalCap": 800000, "initialLeverage": 100, "maintMarginRatio": 0.005},
        {"notionalCap": 300000, "initialLeverage": 150, "maintMarginRatio": 0.004},
    ]
    made = parse_instrument(row, rows)
    assert (made.tick, made.market_qty_max) == (Decimal("0.1"), Decimal("120"))
    assert made.leverage_at(Decimal("300000")) == 150
    assert made.leverage_at(Decimal("300001")) == 100
    assert made.leverage_at(Decimal("800001")) == 0
