"""Changes to what already exists: price and size of a LIMIT order, margin of an isolated position.

Pure, like matching. An amended order keeps its id, goes to the end of the queue and may take from
the book at once; where the exchange ends an order instead of changing it, it is canceled here.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from decimal import Decimal

from venue import checks, ladder
from venue.checks import Request
from venue.fills import end
from venue.matching import crosses, take
from venue.orders import (
    BOTH,
    ZERO,
    Account,
    Book,
    Event,
    MoneyEvent,
    Order,
    OrderEvent,
    Position,
    Refusal,
    amount,
    available,
    leverage_of,
    margin_aside,
    position_of,
    snapshot,
    unrealised,
)
from venue.symbols import plain

AMENDED_MAX = 10_000  # changes of one order
ADD, REDUCE = 1, 2

LIMIT_ONLY = Refusal(-5025, "Limit order only.")
AMENDED_OFTEN = Refusal(-5026, "Exceed maximum modify order limit.")
NO_CHANGE = Refusal(-5027, "No need to modify the order.")
OTHER_REDUCE_ONLY = Refusal(-5047, "The reduceOnly of a modified order must not change.")
OTHER_SIDE = Refusal(-1117, "Invalid side.")


@dataclass(frozen=True, slots=True)
class Change:
    """A parsed amendment; `reduce_only` is None when it was not sent."""

    side: str
    qty: Decimal
    price: Decimal
    reduce_only: bool | None = None
    modify_id: int = 0
    price_match: str = "NONE"


def _check(account: Account, order: Order, change: Change, book: Book) -> Refusal | None:
    if order.type != "LIMIT":
        return LIMIT_ONLY
    if change.side != order.side:
        return OTHER_SIDE
    if change.reduce_only is not None and change.reduce_only != order.reduce_only:
        return OTHER_REDUCE_ONLY
    spec = account.specs[order.symbol]
    refusal = (
        checks.check_qty(spec, change.qty, False)
        or checks.check_price(spec, change.price)
        or checks.check_percent(spec, order.side, change.price, book.mark)
    )
    if refusal is not None:
        return refusal
    if (change.qty, change.price) == (order.qty, order.price):
        return NO_CHANGE
    if order.amended >= AMENDED_MAX:
        return AMENDED_OFTEN
    return None


def _ends(account: Account, order: Order, change: Change) -> bool:
    """Nothing would be left of it, or a post-only order would take."""
    if change.qty <= order.executed:
        return True
    return order.tif == "GTX" and crosses(account, order.symbol, order.side, change.price)


def _check_cost(account: Account, order: Order, change: Change, book: Book) -> Refusal | None:
    """As for a new order of what is left, with the old one's reserve set free."""
    spec = account.specs[order.symbol]
    if change.qty * change.price < spec.min_notional and not order.reduce_only:
        return checks.too_small(spec)
    others = {k: o for k, o in account.orders.items() if k != order.id}
    left = change.qty - order.executed
    asked = Request(
        order.symbol,
        order.side,
        order.type,
        order.tif,
        left,
        change.price,
        ZERO,
        order.client_id,
        order.reduce_only,
        order.close_position,
        order.working,
        False,
        order.stp,
        position_side=order.position_side,
    )
    held = amount(account, order.symbol, order.position_side)
    return checks.check_margin(replace(account, orders=others), asked, book, held, order.sign)


def amend(
    account: Account, order: Order, change: Change, now: int
) -> tuple[Order | Refusal, list[Event]]:
    """An open order with its new price and size, or why not; a refused one stays as it was."""
    assert order.id in account.orders
    book = account.books[order.symbol]
    if change.price_match != "NONE":
        spec = account.specs[order.symbol]
        price = ladder.matched(spec, book, order.side, change.price_match)
        change = replace(change, price=price)
    out: list[Event] = []
    refusal = _check(account, order, change, book)
    if refusal is not None:
        return refusal, out
    if _ends(account, order, change):
        end(account, order, "CANCELED", 0, now, out)
        return order, out
    refusal = _check_cost(account, order, change, book)
    if refusal is not None:
        return refusal, out
    _remember(account, order, change, now)
    order.qty, order.price, order.updated_ms = change.qty, change.price, now
    order.price_match = change.price_match
    account.orders[order.id] = account.orders.pop(order.id)
    out.append(OrderEvent(snapshot(order), "AMENDMENT", now, modify_id=change.modify_id))
    take(account, order, now, out)
    return order, out


def _remember(account: Account, order: Order, change: Change, now: int) -> None:
    order.amended += 1
    account.amendment_seq += 1
    account.amendments.append(
        {
            "amendmentId": account.amendment_seq,
            "symbol": order.symbol,
            "pair": order.symbol,
            "orderId": order.id,
            "clientOrderId": order.client_id,
            "time": now,
            "amendment": {
                "price": {"before": plain(order.price), "after": plain(change.price)},
                "origQty": {"before": plain(order.qty), "after": plain(change.qty)},
                "count": order.amended,
            },
            "priceMatch": change.price_match,
        }
    )


def removable(account: Account, position: Position) -> Decimal:
    """What an isolated position could do without: above its initial margin, losses paid."""
    mark = account.books[position.symbol].mark
    needed = abs(position.qty) * mark / leverage_of(account, position.symbol)
    loss = min(unrealised(account, position), ZERO)
    return max(position.isolated + loss - needed, ZERO)


def move_margin(
    account: Account, symbol: str, moved: Decimal, kind: int, now: int, side: str = BOTH
) -> list[Event] | Refusal:
    """Between the free balance and an isolated position; the wallet as a whole stays."""
    if moved <= 0:
        return Refusal(-4055, "Amount must be positive.")
    if symbol not in account.isolated:
        return Refusal(-4049, "Add margin only support for isolated position.")
    position = position_of(account, symbol, side)
    if not position.qty:
        return Refusal(-4054, "Cannot add position margin: position is 0.")
    if kind == ADD and moved > available(account):
        return Refusal(-4050, "Cross balance insufficient.")
    if kind == REDUCE and moved > removable(account, position):
        return Refusal(-4051, "Isolated balance insufficient.")
    signed = moved if kind == ADD else -moved
    position.isolated += signed
    position.updated_ms = now
    account.margin_moves.append(
        {
            "symbol": symbol,
            "type": kind,
            "deltaType": "USER_ADJUST",
            "amount": plain(moved),
            "asset": "USDT",
            "time": now,
            "positionSide": side,
        }
    )
    profit = unrealised(account, position)
    shown = replace(position)
    return [
        MoneyEvent(
            "MARGIN_TRANSFER",
            symbol,
            signed,
            account.wallet,
            now,
            shown,
            profit,
            position_side=side,
            aside=margin_aside(account),
        )
    ]
