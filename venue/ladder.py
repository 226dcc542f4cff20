"""The depth behind the best quotes: sizes by level, and what our own takers have left of them.

The market shows one quote a side; behind it stands a synthetic ladder, one level a tick, whose
sizes follow from the price alone. Our takers eat it from the best level on, and what they ate is
gone until the market quotes anew. What is shown to the public is the market's, without us.
"""

from __future__ import annotations

from collections.abc import Iterator
from decimal import Decimal

from venue.orders import ZERO, Book
from venue.symbols import Symbol

LEVELS = 1000  # shown on each side
WALK_MAX = 200_000  # levels that one taker may walk: a 5 % bound is reached long before


def _behind(spec: Symbol, price: Decimal, level: int) -> Decimal:
    """Size of a level that is not the best one."""
    # a fixed mix of the price's ticks: depth looks uneven and does not flicker
    mix = int(price / spec.tick) * 2654435761 % 4096
    units = int(spec.qty_mean / spec.unit)
    return (max(1, units * (2 + level // 4) * (512 + mix) // 4096)) * spec.unit


def levels(
    spec: Symbol, book: Book, side: str, count: int = LEVELS
) -> Iterator[tuple[Decimal, Decimal]]:
    """Price and size that a taker of `side` meets, best first; the same at REST depth."""
    price, qty, step = (
        (book.ask, book.ask_qty, spec.tick)
        if side == "BUY"
        else (book.bid, book.bid_qty, -spec.tick)
    )
    yield price, qty
    for level in range(1, count):
        price += step
        if price <= 0:
            return
        yield price, _behind(spec, price, level)


def offers(
    spec: Symbol, book: Book, side: str, limit: Decimal
) -> Iterator[tuple[Decimal, Decimal]]:
    """What is left for a taker up to its limit, best first; levels that are eaten are not there."""
    gone = book.ask_taken if side == "BUY" else book.bid_taken
    sign = 1 if side == "BUY" else -1
    for price, qty in levels(spec, book, side, WALK_MAX):
        if price * sign > limit * sign:
            return
        eaten = min(gone, qty)
        gone -= eaten
        if qty > eaten:
            yield price, qty - eaten


def matched(spec: Symbol, book: Book, side: str, match: str) -> Decimal:
    """Price of a `priceMatch`: the n-th best of the other side (OPPONENT) or the own (QUEUE)."""
    whose, _, depth = match.partition("_")
    facing = side if whose == "OPPONENT" else ("SELL" if side == "BUY" else "BUY")
    *_, (price, _) = levels(spec, book, facing, int(depth or 1))
    return price


def shown(spec: Symbol, book: Book, side: str, price: Decimal) -> Decimal:
    """Size that the market shows at a price of the side where an order of `side` would rest."""
    best, qty = (book.bid, book.bid_qty) if side == "BUY" else (book.ask, book.ask_qty)
    away = (best - price) if side == "BUY" else (price - best)
    if away < 0:
        return ZERO
    return qty if away == 0 else _behind(spec, price, int(away / spec.tick))
