"""The gate: the only maker of an `Approved`, without which no entry can be built.

A rule is a small function from a case to a verdict: name, yes or no, and the numbers it compared.
CHECKS is a tuple whose order is policy, severe first; the first refusal ends the judgement and
every verdict up to it is written to `decisions`. Users may append rules that refuse; no rule can
allow what another refused. Exits never come here: nothing may trap a position.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Final

from msgspec import Struct

from risk.events import Now
from risk.instruments import ONE, ZERO, Instrument, plain
from risk.signals import Signal

QUOTE_AGE_MS_MAX: Final = 1_000.0  # real time; an older quote prices nothing
FUNDING_AHEAD_MS: Final = 900_000  # 15 min market time: a settlement nearer than this is paid
FUNDING_R_MAX: Final = Decimal("0.1")  # of the stop distance
LIQUIDATION_MARGIN: Final = Decimal("1.5")  # liquidation at least this many stop distances away
MARGIN_SHARE: Final = Decimal("0.9")  # of an equal share per position; the rest pays fees and loss
CAUTIOUS_TRADES: Final = 50  # until as many of our own trades are closed ...
CAUTIOUS_LEVERAGE: Final = 3  # ... leverage stays at most this
CLOCK_SLACK_MS: Final = 5_000.0  # market time; a signal from further ahead was not made here
BPS: Final = Decimal(10_000)
_SEAL: Final = object()


@dataclass(frozen=True, slots=True)
class Limits:
    """The settings that the gate and the step core read; config's names."""

    signal_age_ms: float = 15_000
    positions_max: int = 3
    risk_per_trade: Decimal = Decimal("0.005")
    leverage_max: int = 3
    exposure_max: Decimal = Decimal("3.0")
    capital_max: Decimal = ZERO  # 0 = off
    cost_r_max: Decimal = Decimal("0.5")
    collar_bps: Decimal = Decimal(10)
    entry_policy: str = "rule"
    rotation: bool = True
    signal_decay: bool = True
    naked_ms: float = 1_000
    hold_max_ms: float = 7_200_000
    stagnation_ms: float = 1_800_000
    recv_window_ms: float = 1_500
    taker_fee: Decimal = Decimal("0.0005")
    quality_min: float = 0.0  # a signal at least as good
    sizing: str = "risk"  # or kelly, or atr: see plan_entry
    kelly: Decimal = Decimal("0.25")  # of Kelly's share
    atr_stops: Decimal = Decimal(2)  # the least distance that sizing reckons with, in ATR
    # breakers: 0 = off
    daily_loss_max: Decimal = ZERO  # share of the equity that the day began with
    drawdown_max: Decimal = ZERO  # share of the highest equity
    loss_streak_max: int = 0
    errors_max: int = 0  # refused or unanswered orders in breakers.ERRORS_MS
    fees_day_max: Decimal = ZERO  # share of the equity that the day began with
    trades_day_max: int = 0


class Quote(Struct, frozen=True):
    bid: Decimal
    ask: Decimal
    boot_ms: float  # when we received it

    @property
    def mid(self) -> Decimal:
        return (self.bid + self.ask) / 2


class Funding(Struct, frozen=True):
    rate: Decimal
    next_ms: int


class Held(Struct, frozen=True):
    """A position or a pending entry, as the gate counts it: both take a place and exposure.

    Somebody else's takes margin of the account, and no place of ours.
    """

    symbol: str
    notional: Decimal
    margin: Decimal
    confidence: float
    pending: bool = False
    foreign: bool = False


@dataclass(frozen=True, slots=True)
class Case:
    """One signal and everything that decides about it."""

    signal: Signal
    now: Now
    limits: Limits
    instrument: Instrument | None
    quote: Quote | None
    mark: Decimal | None
    funding: Funding | None
    held: tuple[Held, ...]
    equity: Decimal
    blocked: str = ""  # why no entry at all may be made now; empty when it may
    since_ms: float = 0.0  # market time; signals made before it are missed, not decided
    breakers: tuple[str, ...] = ()  # a sentence of each that stands
    foreign: bool = False
    quarantine: str = ""  # why the symbol is left alone; empty when it is not
    trades_closed: int = 0

    @property
    def ours(self) -> tuple[Held, ...]:
        """What takes places and exposure of ours."""
        return tuple(held for held in self.held if not held.foreign)

    @property
    def capital(self) -> Decimal:
        cap = self.limits.capital_max
        return min(self.equity, cap) if cap > 0 else self.equity

    @property
    def leverage(self) -> int:
        return leverage_wanted(self.limits, self.trades_closed, self.instrument)

    @property
    def touch(self) -> Decimal:
        """The best price on the side we take from; zero without a quote."""
        if self.quote is None:
            return ZERO
        return self.quote.ask if self.signal.side == "buy" else self.quote.bid


class Plan(Struct, frozen=True):
    """What would be sent. A quantity of zero means that nothing fits."""

    qty: Decimal
    price: Decimal  # the limit: touch and collar, on the tick
    stop: Decimal
    target: Decimal
    leverage: int

    @property
    def notional(self) -> Decimal:
        return self.qty * self.price


class Verdict(Struct, frozen=True):
    name: str
    ok: bool
    numbers: dict[str, str]


class Approved(Struct, frozen=True):
    """Permission for exactly this entry; only `judge` can make one."""

    signal: Signal
    symbol: str
    side: str
    qty: Decimal
    price: Decimal
    stop: Decimal
    target: Decimal
    leverage: int
    mid: Decimal
    seal: object

    def __post_init__(self) -> None:
        if self.seal is not _SEAL:
            raise PermissionError("only the gate approves")


class Judgement(Struct, frozen=True):
    verdicts: tuple[Verdict, ...]
    approved: Approved | None

    @property
    def refusal(self) -> str:
        return "" if self.approved else self.verdicts[-1].name


Check = Callable[[Case, Plan], Verdict]


def leverage_wanted(limits: Limits, trades_closed: int, instrument: Instrument | None) -> int:
    """An integer within the setting, the symbol's bracket, and caution while we are new."""
    most = limits.leverage_max
    if trades_closed < CAUTIOUS_TRADES:
        most = min(most, CAUTIOUS_LEVERAGE)
    if instrument is not None and instrument.brackets:
        most = min(most, instrument.leverage_at(ZERO))
    return max(1, int(most))


def risk_share(case: Case, distance: Decimal) -> Decimal:
    """The share of the capital that the stop may cost.

    With `kelly` a fraction of Kelly's share p - (1 - p) / b at the signal's confidence p, where b
    is the way to the target in stop distances; never more than the fixed share, nothing without
    an edge.
    """
    signal, limits = case.signal, case.limits
    if limits.sizing != "kelly":
        return limits.risk_per_trade
    odds = (signal.target - case.touch) * signal.sign / distance
    if odds <= 0:
        return ZERO
    chance = Decimal(repr(signal.confidence))
    share = limits.kelly * (chance - (ONE - chance) / odds)
    return min(max(share, ZERO), limits.risk_per_trade)


def reckoned_distance(case: Case, distance: Decimal) -> Decimal:
    """The move that sizing expects to lose: to the stop; with `atr` at least so many ATR of the
    signal's timeframe (a signal that names none is sized by its stop)."""
    if case.limits.sizing != "atr":
        return distance
    return max(distance, case.signal.atr * case.limits.atr_stops)


def plan_entry(case: Case) -> Plan:
    """Size and prices: the risk by the stop distance, capped by exposure, margin and lots."""
    signal, limits, rules = case.signal, case.limits, case.instrument
    leverage = case.leverage
    if rules is None or case.quote is None or case.touch <= 0:
        return Plan(ZERO, ZERO, signal.stop, signal.target, leverage)
    collar = case.touch * limits.collar_bps / BPS
    price = (
        rules.floor_price(case.touch + collar)
        if signal.side == "buy"
        else rules.ceil_price(case.touch - collar)
    )
    stop, target = rules.nearest_price(signal.stop), rules.nearest_price(signal.target)
    distance = (case.touch - stop) * signal.sign
    if distance <= 0 or price <= 0:
        return Plan(ZERO, price, stop, target, leverage)
    capital = max(case.capital, ZERO)
    share = capital / limits.positions_max
    gross = sum((held.notional for held in case.ours), start=ZERO)
    margin = sum((held.margin for held in case.held), start=ZERO)
    notional = min(
        capital * risk_share(case, distance) / reckoned_distance(case, distance) * price,
        share * limits.exposure_max,
        limits.exposure_max * capital - gross,
        min(share * MARGIN_SHARE, capital - margin) * leverage,
    )
    qty = rules.floor_qty(min(max(notional, ZERO) / price, rules.qty_max, rules.market_qty_max))
    return Plan(qty, price, stop, target, leverage)


def _text(value: object) -> str:
    if isinstance(value, Decimal):
        return plain(value.quantize(Decimal("1e-10")) if value.is_finite() else value)
    return repr(round(value, 6)) if isinstance(value, float) else str(value)


def _verdict(name: str, ok: bool, **numbers: object) -> Verdict:
    return Verdict(name, ok, {key: _text(value) for key, value in numbers.items()})


# --- the rules ---------------------------------------------------------------------------------


def check_armed(case: Case, plan: Plan) -> Verdict:
    """Armed, with a lease, reconciled, not halted and not leaving."""
    lease_ms = case.now.valid_until_ms - case.now.boot_ms
    blocked = case.blocked or ("" if lease_ms > 0 else "no lease")
    return _verdict("armed", not blocked, blocked=blocked or "no", lease_left_ms=lease_ms)


def check_stale(case: Case, plan: Plan) -> Verdict:
    """A signal older than its market is a rumour."""
    age_ms = case.now.market_ms - case.signal.made_ms
    expires_in_ms = case.signal.expires_ms - case.now.market_ms
    ok = -CLOCK_SLACK_MS <= age_ms <= case.limits.signal_age_ms and expires_in_ms >= 0
    return _verdict(
        "stale",
        ok,
        age_ms=age_ms,
        age_ms_max=case.limits.signal_age_ms,
        expires_in_ms=expires_in_ms,
    )


def check_missed(case: Case, plan: Plan) -> Verdict:
    """What was signalled before we held the lease and knew the truth is not ours to decide."""
    ok = case.signal.made_ms >= case.since_ms
    return _verdict("missed", ok, made_ms=int(case.signal.made_ms), since_ms=int(case.since_ms))


def check_quality(case: Case, plan: Plan) -> Verdict:
    signal, limits = case.signal, case.limits
    ok = signal.quality >= limits.quality_min
    if limits.entry_policy == "proven":
        ok = ok and signal.confidence > signal.breakeven
    return _verdict(
        "quality",
        ok,
        quality=signal.quality,
        quality_min=limits.quality_min,
        confidence=signal.confidence,
        breakeven=signal.breakeven,
        policy=limits.entry_policy,
    )


def check_duplicate(case: Case, plan: Plan) -> Verdict:
    """One round trip per symbol at a time."""
    same = [held for held in case.ours if held.symbol == case.signal.symbol]
    what = ("pending" if same[0].pending else "open") if same else "none"
    return _verdict("duplicate", not same, same_symbol=what)


def check_breakers(case: Case, plan: Plan) -> Verdict:
    """Nothing that must first be over, or be looked at by somebody, stands."""
    return _verdict("breakers", not case.breakers, standing="; ".join(case.breakers) or "none")


def check_ownership(case: Case, plan: Plan) -> Verdict:
    """Somebody else's position or order on the symbol: it is theirs."""
    return _verdict("ownership", not case.foreign, foreign=int(case.foreign))


def check_quarantine(case: Case, plan: Plan) -> Verdict:
    """A symbol on which we and the exchange cannot be brought to agree is left alone."""
    return _verdict("quarantine", not case.quarantine, why=case.quarantine or "none")


def check_market(case: Case, plan: Plan) -> Verdict:
    """A tradable symbol with a fresh, uncrossed quote."""
    rules, quote = case.instrument, case.quote
    status = rules.status if rules else "unknown"
    age_ms = case.now.boot_ms - quote.boot_ms if quote else float("inf")
    ok = status == "TRADING" and age_ms <= QUOTE_AGE_MS_MAX
    ok = ok and quote is not None and 0 < quote.bid <= quote.ask and case.mark is not None
    return _verdict("market", ok, status=status, quote_age_ms=age_ms, mark=case.mark or "none")


def check_cost(case: Case, plan: Plan) -> Verdict:
    """Fees of the round trip and the spread, against what is risked."""
    assert case.quote is not None
    distance = (case.touch - plan.stop) * case.signal.sign
    cost = 2 * case.limits.taker_fee * case.touch + (case.quote.ask - case.quote.bid)
    cost_r = cost / distance if distance > 0 else Decimal("Infinity")
    return _verdict(
        "cost", cost_r <= case.limits.cost_r_max, cost_r=cost_r, cost_r_max=case.limits.cost_r_max
    )


def check_funding(case: Case, plan: Plan) -> Verdict:
    """A settlement just ahead that we would pay, against what is risked."""
    if case.funding is None or case.funding.next_ms <= case.now.market_ms:
        return _verdict("funding", True, known=0)
    ahead_ms = case.funding.next_ms - case.now.market_ms
    paid = case.funding.rate * case.signal.sign * case.touch
    paid_r = paid / ((case.touch - plan.stop) * case.signal.sign)
    ok = ahead_ms > FUNDING_AHEAD_MS or paid_r <= FUNDING_R_MAX
    return _verdict("funding", ok, paid_r=paid_r, paid_r_max=FUNDING_R_MAX, ahead_ms=ahead_ms)


def check_positions(case: Case, plan: Plan) -> Verdict:
    """Open and pending together."""
    open_n = len(case.ours)
    return _verdict(
        "positions",
        open_n < case.limits.positions_max,
        held=open_n,
        positions_max=case.limits.positions_max,
    )


def check_exposure(case: Case, plan: Plan) -> Verdict:
    gross = sum((held.notional for held in case.ours), start=ZERO)
    most = case.limits.exposure_max * max(case.capital, ZERO)
    ok = gross + plan.notional <= most and case.equity > 0
    return _verdict("exposure", ok, gross=gross, added=plan.notional, exposure_max=most)


def check_bracket(case: Case, plan: Plan) -> Verdict:
    """The exchange's own limit: leverage against notional."""
    assert case.instrument is not None
    allowed = case.instrument.leverage_at(plan.notional)
    return _verdict(
        "bracket",
        1 <= plan.leverage <= allowed,
        leverage=plan.leverage,
        leverage_allowed=allowed,
        notional=plan.notional,
    )


def check_liquidation(case: Case, plan: Plan) -> Verdict:
    """The stop must come well before the exchange's own end of the position."""
    assert case.instrument is not None
    distance = abs(plan.price - plan.stop)
    mmr = case.instrument.mmr_at(plan.notional)
    liquidation = plan.price * max(ONE / plan.leverage - mmr, ZERO)
    return _verdict(
        "liquidation",
        liquidation >= distance * LIQUIDATION_MARGIN,
        stop_distance=distance,
        liquidation_distance=liquidation,
        times_min=LIQUIDATION_MARGIN,
    )


def check_filters(case: Case, plan: Plan) -> Verdict:
    """The exchange's steps and minimums; a quantity is never rounded up to reach them."""
    rules = case.instrument
    assert rules is not None
    ok = rules.qty_min <= plan.qty <= min(rules.qty_max, rules.market_qty_max)
    ok = ok and plan.qty % rules.step == 0 and plan.notional >= rules.notional_min
    for price in (plan.price, plan.stop, plan.target):
        ok = ok and price % rules.tick == 0 and rules.price_min <= price <= rules.price_max
    return _verdict(
        "filters",
        ok,
        qty=plan.qty,
        qty_min=rules.qty_min,
        notional=plan.notional,
        notional_min=rules.notional_min,
    )


def check_collar(case: Case, plan: Plan) -> Verdict:
    """The limit stays near touch and mark, and the trade is still there to be made."""
    rules, mark, sign = case.instrument, case.mark, case.signal.sign
    assert rules is not None and mark is not None
    bound = mark * (rules.up if case.signal.side == "buy" else rules.down)
    off_bps = (plan.price - case.touch) / case.touch * BPS * sign
    ok = 0 <= off_bps <= case.limits.collar_bps and (bound - plan.price) * sign >= 0
    ok = ok and (plan.price - plan.stop) * sign > 0 and (plan.target - plan.price) * sign > 0
    return _verdict("collar", ok, limit=plan.price, touch=case.touch, off_bps=off_bps, bound=bound)


CHECKS: Final[tuple[Check, ...]] = (  # the order is policy: severe first
    check_armed,
    check_stale,
    check_missed,
    check_quality,
    check_duplicate,
    check_breakers,
    check_ownership,
    check_quarantine,
    check_market,
    check_cost,
    check_funding,
    check_positions,
    check_exposure,
    check_bracket,
    check_liquidation,
    check_filters,
    check_collar,
)
# What can be said before a quote was asked for; the whole of CHECKS follows once it is there.
EARLY: Final = CHECKS[: CHECKS.index(check_market)]


def judge(case: Case, extra: Sequence[Check] = ()) -> Judgement:
    """Every verdict down to the first refusal, and an Approved if there was none."""
    plan = plan_entry(case)
    verdicts: list[Verdict] = []
    for check in (*CHECKS, *extra):
        verdict = check(case, plan)
        verdicts.append(verdict)
        if not verdict.ok:
            return Judgement(tuple(verdicts), None)
    assert case.quote is not None
    return Judgement(
        tuple(verdicts),
        Approved(
            signal=case.signal,
            symbol=case.signal.symbol,
            side=case.signal.side,
            qty=plan.qty,
            price=plan.price,
            stop=plan.stop,
            target=plan.target,
            leverage=plan.leverage,
            mid=case.quote.mid,
            seal=_SEAL,
        ),
    )


def judge_early(case: Case) -> Judgement | None:
    """A refusal that needs no quote, or None: worth asking the market."""
    plan = plan_entry(case)
    verdicts: list[Verdict] = []
    for check in EARLY:
        verdicts.append(check(case, plan))
        if not verdicts[-1].ok:
            return Judgement(tuple(verdicts), None)
    return None
