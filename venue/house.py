"""What every venue has, whatever makes its market: a listing, the account, what is to be told.

`exchange.Exchange` is a house whose market is made here (generated or taped), `paper.Paper` one
that follows another exchange. What the outside must hear (user payloads, ledger lines) waits in
`told` and `unwritten` until the shell carries it out, the ledger first. Nothing here reads a clock.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field, replace
from decimal import Decimal
from typing import Protocol

from venue import fees, matching
from venue.journal import Touched
from venue.orders import ZERO, Account, Book, Event, Order, OrderEvent, Trade
from venue.symbols import Symbol
from venue.userwire import Json, ledger_entries, user_payloads

LEDGER_KEPT = 100_000  # entries that the API can still give; the file has all
DEPOSIT = Decimal(10_000)
API_KEY = API_SECRET = "test"  # noqa: S105  the default account's, documented: it is a toy
LIQUIDATIONS_KEPT = 1000  # executions that a stream of one second can still tell
TOLD_MAX = 100_000  # user payloads not yet carried out; beyond, the oldest are dropped and counted


@dataclass(frozen=True, slots=True)
class Moment:
    """Now, on every clock; `slack_ms` is how far a client's clock may run ahead during a pause."""

    market_ms: int
    boot_ms: int
    slack_ms: int = 0
    wall_ms: int = 0  # the host's; 0 where nobody stamps by it


class Birth(Protocol):
    """What a house was made of: the account's birth id, and market ms per real ms."""

    @property
    def world(self) -> str: ...
    @property
    def speed(self) -> float: ...


@dataclass(slots=True)
class House:
    setup: Birth
    specs: tuple[Symbol, ...]
    index: dict[str, int]
    account: Account
    told: deque[Json] = field(default_factory=lambda: deque(maxlen=TOLD_MAX), kw_only=True)
    told_dropped: int = field(default=0, kw_only=True)
    ledger: deque[Json] = field(default_factory=lambda: deque(maxlen=LEDGER_KEPT), kw_only=True)
    ledger_seq: int = field(default=0, kw_only=True)
    unwritten: list[Json] = field(default_factory=list, kw_only=True)
    # executions of liquidations ever; the latest are in `liquidations`
    liquidated: int = field(default=0, kw_only=True)
    liquidations: deque[tuple[Order, Trade, int]] = field(
        default_factory=lambda: deque(maxlen=LIQUIDATIONS_KEPT), kw_only=True
    )
    touched: Touched = field(default_factory=Touched, kw_only=True)
    changes: int = field(default=0, kw_only=True)  # of the account, ever
    # of symbols that trade no more
    statuses: dict[str, str] = field(default_factory=dict, kw_only=True)
    dirty: bool = field(default=True, kw_only=True)
    paused: bool = field(default=False, kw_only=True)

    def book(self, symbol: str) -> Book:
        """The market's present best prices, last trade and mark."""
        raise NotImplementedError

    def progress(self) -> Json:
        """What a resume needs beside the account: how far the market has come."""
        raise NotImplementedError


def open_account(house: House, now: Moment, tier: int = 0, bnb: Decimal = ZERO) -> None:
    """The first deposit: where the ledger starts. With some BNB, that pays the fees."""
    account = house.account
    account.tier = tier
    tell(house, matching.deposit(account, DEPOSIT, now.market_ms))
    if bnb:
        tell(house, matching.deposit(account, bnb, now.market_ms, "BNB"))
        tell(house, fees.set_burn(account, True, now.market_ms))


def tell(house: House, events: list[Event]) -> None:
    """Queues what the user stream and the ledger must say of these events, in order."""
    if not events:
        return
    account = house.account
    house.dirty = True
    house.changes += 1
    for event in events:
        house.touched.add(event)
        if isinstance(event, OrderEvent) and event.execution == "CALCULATED":
            assert event.trade is not None, "a liquidation is an execution"
            if event.order.client_id.startswith("autoclose-"):  # deleveraging is not published
                house.liquidations.append((event.order, event.trade, event.ms))
                house.liquidated += 1
        for payload in user_payloads(event, account.specs):
            if len(house.told) == TOLD_MAX:
                house.told_dropped += 1
            house.told.append(payload)
        for entry in ledger_entries(event):
            note(house, entry, event.ms)


def note(house: House, entry: Json, ms: int) -> None:
    """One line of the ledger."""
    house.ledger_seq += 1
    line = {"seq": house.ledger_seq, "ms": ms, **entry}
    house.ledger.append(line)
    house.unwritten.append(line)


def _same_quote(a: Book, b: Book) -> bool:
    return (a.bid, a.bid_qty, a.ask, a.ask_qty) == (b.bid, b.bid_qty, b.ask, b.ask_qty)


def refresh(house: House, symbol: str) -> Book:
    """Puts the present book of a symbol before the account; what we ate of it stays eaten."""
    book, known = house.book(symbol), house.account.books.get(symbol)
    if known is not None and _same_quote(book, known):
        book = replace(book, bid_taken=known.bid_taken, ask_taken=known.ask_taken)
    house.account.books[symbol] = book
    return book
