"""Words of the account: orders, positions, events, refusals; data only.

Money and sizes are Decimals. The account keeps a position's cost, not its mean price: realised
profit is taken out of the cost to 8 digits, so that wallet = transfers + realised - fees +
funding holds to the last digit, and a position that is closed leaves nothing behind.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from dataclasses import dataclass, field, replace
from decimal import ROUND_DOWN, ROUND_HALF_UP, Decimal
from typing import Any

from venue.symbols import FEE_TIERS, Symbol

ZERO = Decimal(0)
E8 = Decimal("0.00000001")
OPEN_STATUSES = ("NEW", "PARTIALLY_FILLED")
CONDITIONAL = (
    "STOP",
    "STOP_MARKET",
    "TAKE_PROFIT",
    "TAKE_PROFIT_MARKET",
    "TRAILING_STOP_MARKET",
)
BOTH, LONG, SHORT = "BOTH", "LONG", "SHORT"  # position sides: BOTH in one-way mode only
CLOSED_KEPT = 10_000  # closed orders, trades and income rows that queries can still see, each
EXPIRE_STP, EXPIRE_IOC, EXPIRE_IOC_STP, EXPIRE_REDUCE = 1, 2, 3, 4
EXPIRE_LIQUIDATION, EXPIRE_GTE, EXPIRE_MARKET = 5, 6, 9


@dataclass(frozen=True, slots=True)
class Refusal:
    """What the exchange says no with."""

    code: int
    msg: str
    http: int = 400


@dataclass(slots=True)
class Order:
    id: int
    client_id: str
    symbol: str
    side: str
    type: str
    tif: str
    qty: Decimal
    price: Decimal
    reduce_only: bool
    created_ms: int
    updated_ms: int
    close_position: bool = False
    stop_price: Decimal = ZERO
    working: str = "CONTRACT_PRICE"
    orig_type: str = ""
    stp: str = "EXPIRE_MAKER"
    status: str = "NEW"
    executed: Decimal = ZERO
    quote: Decimal = ZERO
    expire_reason: int = 0
    algo_id: int = 0
    good_till_ms: int = 0  # GTD only
    amended: int = 0  # how often
    ahead: Decimal = ZERO  # size of the market that stands before it at its price
    price_match: str = "NONE"
    position_side: str = BOTH

    @property
    def left(self) -> Decimal:
        return self.qty - self.executed

    @property
    def sign(self) -> int:
        return 1 if self.side == "BUY" else -1


@dataclass(slots=True)
class Algo:
    """A conditional order: waits outside the book until its price trades."""

    id: int
    client_id: str
    symbol: str
    side: str
    type: str
    tif: str
    qty: Decimal
    trigger: Decimal
    price: Decimal
    working: str
    close_position: bool
    reduce_only: bool
    price_protect: bool
    created_ms: int
    updated_ms: int
    status: str = "NEW"
    order_id: int = 0
    trigger_ms: int = 0
    why: str = ""
    good_till_ms: int = 0
    stp: str = "EXPIRE_MAKER"
    price_match: str = "NONE"
    # trailing stops only
    callback_rate: Decimal = ZERO  # percent
    activate: Decimal = ZERO  # price that must trade first
    active: bool = False
    best: Decimal = ZERO  # since it is active
    position_side: str = BOTH

    @property
    def rises(self) -> bool:
        """True when it fires at or above its trigger."""
        return self.type.startswith("STOP") == (self.side == "BUY")

    @property
    def family(self) -> str:
        if self.type.startswith("TRAILING"):
            return "TRAILING"
        return "STOP" if self.type.startswith("STOP") else "TAKE_PROFIT"


@dataclass(slots=True)
class Position:
    symbol: str
    qty: Decimal = ZERO
    cost: Decimal = ZERO  # signed as qty: sum of price * qty of what is open
    isolated: Decimal = ZERO  # margin set aside; 0 when crossed
    realised: Decimal = ZERO
    fees: Decimal = ZERO  # of what is open, for the break-even price
    updated_ms: int = 0
    side: str = BOTH

    @property
    def entry(self) -> Decimal:
        return self.cost / self.qty if self.qty else ZERO

    @property
    def break_even(self) -> Decimal:
        return (self.cost + self.fees) / self.qty if self.qty else ZERO


@dataclass(frozen=True, slots=True)
class Book:
    """What matching sees of a market: best prices, last trade, mark."""

    bid: Decimal
    bid_qty: Decimal
    ask: Decimal
    ask_qty: Decimal
    last: Decimal
    mark: Decimal
    bid_taken: Decimal = ZERO  # eaten by our takers since this quote, from the best level on
    ask_taken: Decimal = ZERO


@dataclass(frozen=True, slots=True)
class Trade:
    id: int
    symbol: str
    order_id: int
    client_id: str
    side: str
    price: Decimal
    qty: Decimal
    fee: Decimal
    realised: Decimal
    maker: bool
    ms: int
    position_side: str = BOTH
    fee_asset: str = "USDT"


@dataclass(frozen=True, slots=True)
class OrderEvent:
    """An order as it now is; `execution` is what happened: NEW, AMENDMENT, TRADE, CANCELED ..."""

    order: Order
    execution: str
    ms: int
    trade: Trade | None = None
    position: Position | None = None
    unrealised: Decimal = ZERO
    wallet: Decimal = ZERO
    margin_type: str = "cross"
    modify_id: int = 0
    bnb: Decimal = ZERO
    aside: Decimal = ZERO  # isolated margin over all positions, which the crossed wallet excludes


@dataclass(frozen=True, slots=True)
class AlgoEvent:
    algo: Algo
    ms: int


@dataclass(frozen=True, slots=True)
class MoneyEvent:
    """Money moved without a trade: deposit, funding, or wallet to isolated margin.

    `wallet` is the balance of `asset` afterwards.
    """

    reason: str
    symbol: str
    amount: Decimal
    wallet: Decimal
    ms: int
    position: Position | None = None
    unrealised: Decimal = ZERO
    asset: str = "USDT"
    position_side: str = BOTH
    aside: Decimal = ZERO  # as in OrderEvent


@dataclass(frozen=True, slots=True)
class ConfigEvent:
    """A setting changed; what is neither leverage nor margin type has its value in the latter."""

    symbol: str
    leverage: int
    margin_type: str
    what: str
    ms: int


@dataclass(frozen=True, slots=True)
class RejectEvent:
    """For the ledger only: an order that was refused."""

    symbol: str
    client_id: str
    code: int
    msg: str
    ms: int


Event = OrderEvent | AlgoEvent | MoneyEvent | ConfigEvent | RejectEvent


@dataclass(slots=True)
class Account:
    """The whole state of one account; everything in it can be written as JSON.

    `paid_in` is what came from outside: deposits less withdrawals, and what the insurance fund
    paid. wallet = paid_in + realised - fees + funding, and bnb = bnb_paid_in - bnb_fees.
    """

    specs: dict[str, Symbol]
    wallet: Decimal = ZERO
    tier: int = 0
    orders: dict[int, Order] = field(default_factory=dict)
    algos: dict[int, Algo] = field(default_factory=dict)
    positions: dict[str, Position] = field(default_factory=dict)  # by `position_key`
    leverage: dict[str, int] = field(default_factory=dict)
    isolated: set[str] = field(default_factory=set)
    books: dict[str, Book] = field(default_factory=dict)
    closed: OrderedDict[int, Order] = field(default_factory=OrderedDict)
    closed_algos: OrderedDict[int, Algo] = field(default_factory=OrderedDict)
    trades: deque[Trade] = field(default_factory=lambda: deque(maxlen=CLOSED_KEPT))
    income: deque[dict[str, Any]] = field(default_factory=lambda: deque(maxlen=CLOSED_KEPT))
    amendments: deque[dict[str, Any]] = field(default_factory=lambda: deque(maxlen=CLOSED_KEPT))
    margin_moves: deque[dict[str, Any]] = field(default_factory=lambda: deque(maxlen=CLOSED_KEPT))
    countdowns: dict[str, int] = field(default_factory=dict)  # symbol -> market ms of cancel all
    order_seq: int = 5_000_000_000
    algo_seq: int = 4_000_001_000_000_000
    trade_seq: int = 800_000_000
    tran_seq: int = 9_000_000_000
    amendment_seq: int = 5_000
    paid_in: Decimal = ZERO
    realised: Decimal = ZERO
    fees: Decimal = ZERO
    funding: Decimal = ZERO
    dual: bool = False  # hedge mode: LONG and SHORT apart instead of BOTH
    fee_burn: bool = False  # fees in BNB while there is enough of it
    bnb: Decimal = ZERO
    bnb_paid_in: Decimal = ZERO
    bnb_fees: Decimal = ZERO
    taken_max: Decimal = Decimal("Infinity")  # of one order at once; a fault lowers it for a call

    @property
    def maker_rate(self) -> Decimal:
        return FEE_TIERS[self.tier][0]

    @property
    def taker_rate(self) -> Decimal:
        return FEE_TIERS[self.tier][1]


DEFAULT_LEVERAGE = 20


def leverage_of(account: Account, symbol: str) -> int:
    return account.leverage.get(symbol, DEFAULT_LEVERAGE)


def money(value: Decimal) -> Decimal:
    """To 8 digits, as every amount of a wallet."""
    return value.quantize(E8, ROUND_HALF_UP)


def position_key(symbol: str, side: str = BOTH) -> str:
    """Where a position stands in the account: its symbol, with the side in hedge mode."""
    return symbol if side == BOTH else f"{symbol}:{side}"


def position_of(account: Account, symbol: str, side: str = BOTH) -> Position:
    """The position, or a flat one that the account does not know."""
    return account.positions.get(position_key(symbol, side)) or Position(symbol, side=side)


def held_of(account: Account, symbol: str) -> list[Position]:
    """The positions of a symbol that are not zero: one, or two in hedge mode."""
    keys = (position_key(symbol, side) for side in (BOTH, LONG, SHORT))
    found = (account.positions.get(key) for key in keys)
    return [p for p in found if p is not None and p.qty]


def amount(account: Account, symbol: str, side: str = BOTH) -> Decimal:
    """Signed size of the position, 0 without one."""
    position = account.positions.get(position_key(symbol, side))
    return position.qty if position else ZERO


def margin_aside(account: Account) -> Decimal:
    """What the wallet has set aside for isolated positions."""
    return sum((p.isolated for p in account.positions.values()), ZERO)


def unrealised(account: Account, position: Position) -> Decimal:
    """At the mark, to 8 digits."""
    if not position.qty:
        return ZERO
    return (position.qty * account.books[position.symbol].mark - position.cost).quantize(E8)


def margin(account: Account, position: Position) -> Decimal:
    """Initial margin in use by a position."""
    if position.symbol in account.isolated:
        return position.isolated
    mark = account.books[position.symbol].mark
    return abs(position.qty) * mark / leverage_of(account, position.symbol)


def maintenance(account: Account, position: Position) -> Decimal:
    """Notional at mark * rate - cum of its bracket."""
    if not position.qty:
        return ZERO
    notional = abs(position.qty) * account.books[position.symbol].mark
    for bracket in account.specs[position.symbol].brackets:
        if notional <= bracket.cap:
            break
    return notional * bracket.mmr - bracket.cum


def order_margin(account: Account, order: Order) -> Decimal:
    """What an open order reserves: nothing for the part that reduces the position."""
    if order.reduce_only or order.close_position:
        return ZERO
    held = amount(account, order.symbol, order.position_side)
    closing = min(order.left, abs(held)) if held * order.sign < 0 else ZERO
    return (order.left - closing) * order.price / leverage_of(account, order.symbol)


def available(account: Account) -> Decimal:
    """Free margin: wallet + crossed unrealised - positions - orders, never below zero."""
    free = account.wallet
    for position in account.positions.values():
        if position.qty:
            free -= margin(account, position)
            if position.symbol not in account.isolated:
                free += unrealised(account, position)
    for order in account.orders.values():
        free -= order_margin(account, order)
    return max(free, ZERO)


def withdrawable(account: Account) -> Decimal:
    """What may leave the USDT wallet: free margin without a profit that is not yet realised."""
    crossed = [p for p in account.positions.values() if p.symbol not in account.isolated]
    profit = max(sum((unrealised(account, p) for p in crossed), ZERO), ZERO)
    return max(available(account) - profit, ZERO).quantize(E8, ROUND_DOWN)


def snapshot(order: Order) -> Order:
    return replace(order)
