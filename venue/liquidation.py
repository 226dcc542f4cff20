"""Liquidation: a position whose margin no longer covers its maintenance is closed. Pure.

An isolated position answers with its own margin, crossed ones together with what is left of the
wallet. The liquidation fee is taken whole; what the margin cannot pay, the insurance fund pays:
an isolated position never costs more than its margin, and a wallet ends at zero.
"""

from __future__ import annotations

from decimal import Decimal
from itertools import product

from venue.fills import end, fill, income
from venue.orders import (
    EXPIRE_LIQUIDATION,
    ZERO,
    Account,
    Event,
    MoneyEvent,
    Order,
    OrderEvent,
    Position,
    held_of,
    maintenance,
    margin_aside,
    snapshot,
    unrealised,
)


def crossed(account: Account) -> list[Position]:
    """Open positions that share the wallet."""
    return [p for p in account.positions.values() if p.qty and p.symbol not in account.isolated]


def cross_wallet(account: Account) -> Decimal:
    """The wallet without what is set aside for isolated positions."""
    return account.wallet - margin_aside(account)


def covered(account: Account, position: Position) -> bool:
    """Whether the margin balance is above the maintenance margin, at the marks."""
    if position.symbol in account.isolated:
        return position.isolated + unrealised(account, position) > maintenance(account, position)
    together = crossed(account)
    balance = cross_wallet(account) + sum((unrealised(account, p) for p in together), ZERO)
    return balance > sum((maintenance(account, p) for p in together), ZERO)


def price(account: Account, position: Position) -> Decimal:
    """The mark of its symbol at which a position is closed, other marks unchanged; 0 without one.

    (WB - TMM + UPNL + cum - side x size x entry) / (size x mmr - side x size), of the brackets
    that hold at that very price. Both sides of a hedged symbol move with it, and then two prices
    may answer: the nearer one is told.
    """
    legs, balance = [position], position.isolated
    if position.symbol not in account.isolated:
        legs = held_of(account, position.symbol)
        others = [p for p in crossed(account) if p.symbol != position.symbol]
        balance = cross_wallet(account)
        balance += sum((unrealised(account, p) - maintenance(account, p) for p in others), ZERO)
    mark = account.books[position.symbol].mark
    brackets = account.specs[position.symbol].brackets
    last = brackets[-1]
    found = []
    for choice in product(brackets, repeat=len(legs)):
        each = list(zip(legs, choice, strict=True))
        above = balance + sum((b.cum - p.cost for p, b in each), ZERO)
        below = sum((abs(p.qty) * b.mmr - p.qty for p, b in each), ZERO)
        if not below:
            continue
        at = above / below
        if at > 0 and all(
            b.floor < abs(p.qty) * at and (abs(p.qty) * at <= b.cap or b is last) for p, b in each
        ):
            found.append(at)
    return min(found, key=lambda at: abs(at - mark), default=ZERO)


def liquidate(account: Account, symbol: str, now: int, out: list[Event]) -> None:
    """Closes what is not covered, the greater loss first; a closed one may save the other."""
    for position in sorted(held_of(account, symbol), key=lambda p: unrealised(account, p)):
        if not covered(account, position):
            _close(account, position, now, out)


def _close(account: Account, position: Position, now: int, out: list[Event]) -> None:
    symbol, alone = position.symbol, position.symbol in account.isolated
    for resting in [o for o in account.orders.values() if o.symbol == symbol]:
        if not alone or resting.position_side == position.side:
            end(account, resting, "EXPIRED", EXPIRE_LIQUIDATION, now, out)
    book = account.books[symbol]
    best = book.bid if position.qty > 0 else book.ask
    name = f"autoclose-{account.order_seq + 1}"
    force_close(account, position, abs(position.qty), best, name, now, out)


def force_close(
    account: Account,
    position: Position,
    qty: Decimal,
    price: Decimal,
    client_id: str,
    now: int,
    out: list[Event],
    execution: str = "CALCULATED",
) -> Order:
    """The exchange closes `qty` at a price of its own; what it lost beyond its margin is insured.

    CALCULATED is a liquidation or deleveraging, TRADE the settlement of a symbol.
    """
    symbol, alone = position.symbol, position.symbol in account.isolated
    settled = execution == "TRADE"
    kind = "MARKET" if settled else "LIQUIDATION"
    account.order_seq += 1
    order = Order(
        account.order_seq,
        client_id,
        symbol,
        "SELL" if position.qty > 0 else "BUY",
        kind,
        "GTC" if settled else "IOC",
        qty,
        ZERO if settled else price,
        True,
        now,
        now,
        orig_type=kind,
        position_side=position.side,
    )
    account.orders[order.id] = order
    out.append(OrderEvent(snapshot(order), "NEW", now))
    wallet, aside = account.wallet, position.isolated
    fill(account, order, price, qty, False, now, out, execution)
    if alone:
        left = aside + account.wallet - wallet
    else:
        left = ZERO if crossed(account) else cross_wallet(account)
    if left < 0:
        _insure(account, position, -left, now, out)
    return order


def _insure(
    account: Account, position: Position, paid: Decimal, now: int, out: list[Event]
) -> None:
    """The insurance fund makes good what a liquidation lost beyond its margin."""
    account.wallet += paid
    account.paid_in += paid
    income(account, position.symbol, "INSURANCE_CLEAR", paid, now, "")
    out.append(
        MoneyEvent(
            "INSURANCE_CLEAR",
            position.symbol,
            paid,
            account.wallet,
            now,
            position_side=position.side,
            aside=margin_aside(account),
        )
    )
