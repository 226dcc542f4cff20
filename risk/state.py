"""Everything risk knows between two steps. Plain data, owned by one loop, bounded.

What must survive a restart is also in Redis (order and position hashes, portfolio); what is only
here (deadlines, quotes, waiting signals) may be lost at any moment without harm.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, MutableMapping, ValuesView
from dataclasses import dataclass, field, replace
from decimal import Decimal
from typing import Final, TypeVar

from msgspec import Struct

from risk import breakers
from risk.breakers import ERRORS_KEPT_MAX, ERRORS_MS, Facts, Tally
from risk.events import Now
from risk.gate import Case, Funding, Held, Limits, Quote
from risk.instruments import ZERO, Instrument
from risk.orders import ENTRY_LEG, Order
from risk.portfolio import Money, Position, exposure, unrealised
from risk.signals import Signal
from streams import Keys, client_id

SEEN_FILLS_MAX: Final = 20_000
ORDERS_KEPT_MAX: Final = 4_000  # terminal ones are forgotten, oldest first
WAITING_MAX: Final = 512
SNAPSHOTS_KEPT_MAX: Final = (
    64  # their times; a correction that names an older one is looked at anew
)
SEEN_MONEY_MAX: Final = 5_000
_K = TypeVar("_K")
_V = TypeVar("_V")


class Waiting(Struct, frozen=True):
    """A signal that needs a quote, a leverage setting or a freed place before its decision."""

    signal: Signal
    entry_id: str  # of the stream entry, acknowledged with the decision
    until_ms: float  # boot time; then it is decided with what is there
    for_place: bool = False


class Theirs(Struct, frozen=True):
    """Somebody else's position on our account: it takes margin and moves equity, no more."""

    qty: Decimal  # signed
    entry: Decimal
    margin: Decimal

    def unrealised(self, mark: Decimal) -> Decimal:
        return (mark - self.entry) * self.qty


class Apart(Struct, frozen=True):
    """A symbol on which the exchange differs: at how many looks, when last, by what at each."""

    passes: int
    boot_ms: float
    what: frozenset[str]


class Orders(MutableMapping[str, Order]):
    """Orders by client id, oldest first; the legs of a round trip and the entries that may still
    fill are found without looking at all of them."""

    __slots__ = ("_by_cause", "_by_id", "_entering")

    def __init__(self) -> None:
        self._by_id: dict[str, Order] = {}
        self._by_cause: dict[str, dict[str, None]] = {}
        self._entering: dict[str, None] = {}

    def __getitem__(self, order_id: str) -> Order:
        return self._by_id[order_id]

    def __setitem__(self, order_id: str, order: Order) -> None:
        known = self._by_id.get(order_id)
        if known is not None and known.cause != order.cause:
            del self[order_id]
        self._by_id[order_id] = order
        self._by_cause.setdefault(order.cause, {})[order_id] = None
        if order.leg == ENTRY_LEG:
            if order.terminal:
                self._entering.pop(order_id, None)
            else:
                self._entering[order_id] = None

    def __delitem__(self, order_id: str) -> None:
        order = self._by_id.pop(order_id)
        self._entering.pop(order_id, None)
        legs = self._by_cause[order.cause]
        del legs[order_id]
        if not legs:
            del self._by_cause[order.cause]

    def __contains__(self, order_id: object) -> bool:
        return order_id in self._by_id

    def __iter__(self) -> Iterator[str]:
        return iter(self._by_id)

    def __len__(self) -> int:
        return len(self._by_id)

    def values(self) -> ValuesView[Order]:
        return self._by_id.values()

    def legs(self, cause: str) -> list[Order]:
        """Every order of one round trip."""
        return [self._by_id[order_id] for order_id in self._by_cause.get(cause, ())]

    def entering(self) -> list[Order]:
        """Entries that are not over."""
        return [self._by_id[order_id] for order_id in self._entering]


@dataclass(slots=True)
class State:
    keys: Keys
    prefix: str  # three characters of this deployment, in every client id
    group: str
    epoch: int
    limits: Limits = field(default_factory=Limits)
    # the market
    instruments: dict[str, Instrument] = field(default_factory=dict)
    quotes: dict[str, Quote] = field(default_factory=dict)
    marks: dict[str, Decimal] = field(default_factory=dict)
    funding: dict[str, Funding] = field(default_factory=dict)
    # ours
    orders: Orders = field(default_factory=Orders)
    children: dict[tuple[str, str], str] = field(default_factory=dict)  # symbol, id -> client id
    positions: dict[str, Position] = field(default_factory=dict)
    money: Money = field(default_factory=Money)
    foreign: set[str] = field(default_factory=set)  # symbols with somebody else's position, order
    theirs: dict[str, Theirs] = field(default_factory=dict)
    seen: dict[str, None] = field(default_factory=dict)  # fills counted
    seen_money: dict[str, None] = field(default_factory=dict)  # money events counted
    income_ms: dict[str, int] = field(default_factory=dict)  # by kind: market time read up to
    books_ms: int = 0  # market time of the last money event in Redis at the start; 0: none
    caught_up_ms: float = -1e18  # boot time at which all kinds were or will be asked for
    prepared: dict[str, int] = field(default_factory=dict)  # leverage verified, margin isolated
    # permission
    armed: bool = False
    halted: bool = False
    to_arm: bool = False  # resumed: the shell arms again, where modes arm themselves
    stopping: bool = False
    hedged: bool = False  # somebody switched the position mode; asked again until it is ours
    reconciled: bool = False
    forgotten: bool = False  # Redis restarted or lost its memory: a new session begins soon
    since_ms: float = 0.0  # market time: older signals are missed
    tally: Tally = field(default_factory=Tally)
    tally_written: dict[str, str] = field(default_factory=dict)
    tally_written_ms: float = -1e18  # boot time
    errors: deque[float] = field(default_factory=lambda: deque(maxlen=ERRORS_KEPT_MAX))  # boot ms
    quarantine: dict[str, str] = field(default_factory=dict)  # symbol -> why
    apart: dict[str, Apart] = field(default_factory=dict)  # by symbol
    # work in progress
    waiting: dict[str, Waiting] = field(default_factory=dict)  # by signal id
    deadlines: dict[tuple[str, str], float] = field(default_factory=dict)  # (kind, key) -> boot ms
    tries: dict[tuple[str, str], int] = field(default_factory=dict)
    touched: dict[str, float] = field(default_factory=dict)  # symbol -> boot ms of last change
    wallet_told_ms: float = -1e18  # boot time at which the user stream last told the wallet
    snapshots: dict[str, float] = field(default_factory=dict)  # id -> boot ms of its beginning
    rotating: str = ""  # symbol being closed to make a place
    rotated_ms: float = -1e18  # market time
    last_reconcile_ms: int = 0  # market time
    asked_ms: float = -1e18  # boot time at which the reconcile job last asked
    jobs_silent: bool = False
    watched: set[str] = field(default_factory=set)

    def make_id(self, cause: str, leg: str, revision: int = 0) -> str:
        return client_id(self.prefix, cause, leg, revision)

    def child(self, symbol: str, exchange_id: str) -> Order | None:
        """Our order behind an exchange order id, which is unique within its symbol only."""
        return self.orders.get(self.children.get((symbol, exchange_id), ""))

    def is_ours(self, order_id: str) -> bool:
        return order_id.startswith(f"ag{self.prefix}")


def remember(kept: MutableMapping[_K, _V], key: _K, value: _V, most: int) -> None:
    """Insert, and forget the oldest beyond `most`."""
    kept[key] = value
    while len(kept) > most:
        del kept[next(iter(kept))]


def unprepare(state: State, symbol: str) -> None:
    """Leverage and margin type of a symbol are not known any more: set before its next entry."""
    state.prepared.pop(symbol, None)
    for setting in ("margin", "leverage"):
        state.tries.pop((setting, symbol), None)


def put_order(state: State, order: Order) -> None:
    state.orders[order.id] = order
    if len(state.orders) <= ORDERS_KEPT_MAX:
        return
    for order_id in [key for key, kept in state.orders.items() if kept.terminal]:
        del state.orders[order_id]
        if len(state.orders) <= ORDERS_KEPT_MAX * 3 // 4:
            return


def pending_entries(state: State) -> list[Order]:
    """Entries that may still become a position: their place and size stay reserved."""
    return [order for order in state.orders.entering() if order.symbol not in state.positions]


def settled(state: State) -> bool:
    """Nothing is in the air: no entry may still fill, no position lacks its stop or is leaving."""
    if state.orders.entering():
        return False
    return all(p.stop_state == "acked" and not p.exit_reason for p in state.positions.values())


def held(state: State) -> tuple[Held, ...]:
    """Positions and pending entries as the gate counts them."""
    made = [
        Held(
            symbol=p.symbol,
            notional=(notional := p.qty * state.marks.get(p.symbol, p.entry)),
            margin=notional / p.leverage,
            confidence=p.confidence,
        )
        for p in state.positions.values()
    ]
    made += [
        Held(
            symbol=symbol,
            notional=abs(theirs.qty) * state.marks.get(symbol, theirs.entry),
            margin=theirs.margin,
            confidence=0.5,
            foreign=True,
        )
        for symbol, theirs in state.theirs.items()
    ]
    made += [
        Held(
            symbol=order.symbol,
            notional=order.qty * order.price,
            margin=order.qty * order.price / order.leverage,
            confidence=order.confidence,
            pending=True,
        )
        for order in pending_entries(state)
    ]
    return tuple(made)


def equity(state: State) -> Decimal:
    """Of the whole account: what somebody else holds on it can cost us all the same."""
    marks = state.marks
    theirs = (t.unrealised(marks[s]) for s, t in state.theirs.items() if s in marks)
    return state.money.wallet + unrealised(state.positions.values(), marks) + sum(theirs, ZERO)


def facts(state: State, now: Now) -> Facts:
    """What breakers look at."""
    money = state.money
    made = money.realised - money.fees + money.funding + money.other
    return Facts(
        market_ms=now.market_ms,
        equity=equity(state),
        result=made + unrealised(state.positions.values(), state.marks),
        fees=money.fees,
        entries=money.entries,
        errors=sum(1 for at_ms in state.errors if now.boot_ms - at_ms < ERRORS_MS),
    )


def standing(state: State, now: Now) -> tuple[Tally, dict[str, str]]:
    """The tally as of now and the breakers that stand, by name, as they read when they tripped."""
    if any(symbol not in state.marks for symbol in state.positions):
        return state.tally, dict(state.tally.tripped)  # what trading made is not known yet
    told = facts(state, now)
    tally = breakers.follow(state.tally, told)
    found = breakers.standing(tally, told, state.limits)
    return tally, {name: tally.tripped.get(name, text) for name, text in found.items()}


def gross_exposure(state: State) -> Decimal:
    return exposure(state.positions.values(), state.marks)


def blocked(state: State, now: Now) -> str:
    """Why no entry may be made now, in words; empty when one may."""
    if state.halted:
        return "halted"
    if not state.armed:
        return "not armed"
    if state.stopping:
        return "stopping"
    if not state.reconciled:
        return "not reconciled"
    if state.forgotten:
        return "Redis restarted or lost its memory: waiting one lease"
    if state.hedged:
        return "the account is in hedge mode: switch it to one-way mode"
    return ""


def no_entries(state: State, now: Now) -> str:
    """As `blocked`, breakers included: what `status` says."""
    return blocked(state, now) or "; ".join(standing(state, now)[1].values())


def make_case(state: State, signal: Signal, now: Now) -> Case:
    watched = breakers.any_set(state.limits)  # to value every position is not for nothing
    stand = tuple(standing(state, now)[1].values()) if watched else ()
    return Case(
        signal=signal,
        now=now,
        limits=state.limits,
        instrument=state.instruments.get(signal.symbol),
        quote=state.quotes.get(signal.symbol),
        mark=state.marks.get(signal.symbol),
        funding=state.funding.get(signal.symbol),
        held=held(state),
        equity=equity(state),
        blocked=blocked(state, now),
        since_ms=state.since_ms,
        breakers=stand,
        foreign=signal.symbol in state.foreign,
        quarantine=state.quarantine.get(signal.symbol, ""),
        trades_closed=state.money.trades_closed,
    )


def without(case: Case, symbol: str) -> Case:
    """The case as it would be with one symbol's place free."""
    return replace(case, held=tuple(h for h in case.held if h.symbol != symbol))
