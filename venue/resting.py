"""Our resting orders in the market's queue: who stands ahead, and what a trade leaves for us.

The market shows sizes, not orders. An order joins behind what is shown at its price; sizes shown
later bound what can still stand ahead of it, and once the market's best is worse than its price
nobody does. A trade meets our orders by price, then time: those with a better price than its own
first, then those at its price behind what is ahead of them, and all together get no more than the
trade's size: the market's flow is the other side. A quote that reaches an order's price from the
other side, or a taker of our own side who traded beyond it, fills it whole: the market is through.
"""

from __future__ import annotations

from decimal import Decimal

from venue.fills import cap, end, fill
from venue.ladder import shown
from venue.orders import EXPIRE_REDUCE, ZERO, Account, Event, Order


def join(account: Account, order: Order) -> None:
    """The order stands at the end of the queue of its price."""
    spec, book = account.specs[order.symbol], account.books[order.symbol]
    order.ahead = shown(spec, book, order.side, order.price)


def _by_priority(account: Account, symbol: str) -> list[Order]:
    """Best price first; within a price the order of arrival, which `orders` keeps."""
    resting = [o for o in account.orders.values() if o.symbol == symbol]
    return sorted(resting, key=lambda o: -o.price * o.sign)


def _make(account: Account, order: Order, qty: Decimal, now: int, out: list[Event]) -> Decimal:
    """Fills a resting order as maker, or ends it if it may no longer trade; what was filled."""
    done = min(qty, cap(account, order))
    if done > 0:
        fill(account, order, order.price, done, True, now, out)
    if order.id in account.orders and cap(account, order) == 0:
        end(account, order, "EXPIRED", EXPIRE_REDUCE, now, out)
    return max(done, ZERO)


def meet_trade(
    account: Account,
    symbol: str,
    price: Decimal,
    qty: Decimal,
    buyer_maker: bool,
    now: int,
    out: list[Event],
) -> None:
    """A trade of the market against everything of ours that rests in its symbol."""
    maker = "BUY" if buyer_maker else "SELL"
    left = qty
    for order in _by_priority(account, symbol):
        if order.id not in account.orders:
            continue  # ended by a fill before it
        beyond = (order.price - price) * order.sign  # above 0: the trade is worse than our price
        if order.side != maker:
            if beyond > 0:
                _make(account, order, order.left, now, out)
        elif beyond > 0:
            left -= _make(account, order, left, now, out)
        elif beyond == 0:
            ahead, order.ahead = order.ahead, max(ZERO, order.ahead - left)
            left -= _make(account, order, left - ahead, now, out)


def meet_quote(account: Account, symbol: str, now: int, out: list[Event]) -> None:
    """A new quote of the market: it reaches our orders, or says how many may stand ahead."""
    book = account.books[symbol]
    for order in _by_priority(account, symbol):
        if order.id not in account.orders:
            continue  # ended by a fill before it
        other, own, size = (
            (book.ask, book.bid, book.bid_qty)
            if order.side == "BUY"
            else (book.bid, book.ask, book.ask_qty)
        )
        if other * order.sign <= order.price * order.sign:
            _make(account, order, order.left, now, out)
        elif own == order.price:
            order.ahead = min(order.ahead, size)
        elif own * order.sign < order.price * order.sign:
            order.ahead = ZERO
