"""Which of the market's events concern the account: one pass of a kernel over a step's rows.

Each symbol has bands of prices within which nothing of ours can happen: no resting order is
reached or moves up its queue, no conditional order fires or follows, no position comes near its
liquidation. The kernel finds the next row outside of them and what was quoted before it; Python
runs for those rows only. A band that is too narrow costs time, one that is too wide would be a
bug: bands are rounded to the narrow side, and made anew after each touch and each change of the
account.
"""

from __future__ import annotations

from collections.abc import Iterator
from decimal import ROUND_CEILING, ROUND_FLOOR, Decimal
from typing import NamedTuple

import numpy as np
from numba import njit

from venue import liquidation, trailing
from venue.market import AGG, BOOK, KIND, MARK, P1, P2, SYM, Ints
from venue.orders import Account, Algo, Order, Position, held_of, maintenance, unrealised
from venue.symbols import Symbol

# a row concerns us at or beyond these; in points, marks in 1e-8
TRADE_LOW, TRADE_HIGH, ASK_LOW, BID_HIGH, BID_LOW, ASK_HIGH, MARK_LOW, MARK_HIGH = range(8)
BANDS = 8
LOWS = (TRADE_LOW, ASK_LOW, BID_LOW, MARK_LOW)
NEVER_LOW, NEVER_HIGH = -1, np.iinfo(np.int64).max
MARK_DIGITS = 8
Edges = tuple[int | None, int | None]  # (at or below, at or above)


class Resting(NamedTuple):
    """What of the account rests in one symbol."""

    orders: list[Order]
    algos: list[Algo]


def resting(account: Account) -> dict[str, Resting]:
    """Of each symbol in which something rests, in one pass."""
    made: dict[str, Resting] = {}
    for order in account.orders.values():
        made.setdefault(order.symbol, Resting([], [])).orders.append(order)
    for algo in account.algos.values():
        made.setdefault(algo.symbol, Resting([], [])).algos.append(algo)
    return made


def set_bands(account: Account, specs: list[Symbol], bands: Ints) -> None:
    """Fills the rows of symbols that are watched, from the account as it is now."""
    there = resting(account)
    for spec in specs:
        rests = there.get(spec.name, Resting([], []))
        _set_trade_bands(spec, bands[spec.index], rests)
        _set_mark_bands(account, spec, bands[spec.index], rests)


def set_trade_bands(account: Account, spec: Symbol, bands: Ints) -> None:
    """Fills what trades and quotes may touch in one symbol's row."""
    orders = [order for order in account.orders.values() if order.symbol == spec.name]
    algos = [algo for algo in account.algos.values() if algo.symbol == spec.name]
    _set_trade_bands(spec, bands, Resting(orders, algos))


@njit(cache=True)
def next_touch(rows: Ints, first: int, count: int, bands: Ints, quoted: Ints, marked: Ints) -> int:
    """Index of the first row from `first` on that leaves its symbol's bands, else `count`.

    `quoted` and `marked` get, for each symbol, the row of its latest quote and mark up to there
    (the found row excluded); they are kept over calls for the same step.
    """
    for at in range(first, count):
        kind = rows[at, KIND]
        if kind > MARK:
            continue
        s = rows[at, SYM]
        price = rows[at, P1]
        if kind == AGG:
            if price <= bands[s, TRADE_LOW] or price >= bands[s, TRADE_HIGH]:
                return at
        elif kind == BOOK:
            ask = rows[at, P2]
            if (
                ask <= bands[s, ASK_LOW]
                or price >= bands[s, BID_HIGH]
                or price <= bands[s, BID_LOW]
                or ask >= bands[s, ASK_HIGH]
            ):
                return at
            quoted[s] = at
        else:
            if price <= bands[s, MARK_LOW] or price >= bands[s, MARK_HIGH]:
                return at
            marked[s] = at
    return count


def untouchable(symbols: int) -> Ints:
    """Bands of an account without anything."""
    made = np.full((symbols, BANDS), NEVER_HIGH, np.int64)
    made[:, LOWS] = NEVER_LOW
    return made


def _down(price: Decimal, digits: int) -> int:
    return int(price.scaleb(digits).to_integral_value(ROUND_FLOOR))


def _up(price: Decimal, digits: int) -> int:
    return int(price.scaleb(digits).to_integral_value(ROUND_CEILING))


def _algo_edges(algo: Algo) -> tuple[Decimal | None, Decimal | None]:
    """(at or below, at or above): where a conditional order has to look at its working price."""
    if algo.type != trailing.TYPE:
        return (None, algo.trigger) if algo.rises else (algo.trigger, None)
    falling = algo.side == "BUY"
    if not algo.active:
        return (algo.activate, None) if falling else (None, algo.activate)
    # a new best moves it, its trigger fires it
    return (algo.best, trailing.trigger(algo)) if falling else (trailing.trigger(algo), algo.best)


def _loss_per_point(account: Account, position: Position) -> Decimal:
    """At most so much margin is used up by one unit of mark, maintenance included."""
    steepest = account.specs[position.symbol].brackets[-1].mmr
    return abs(position.qty) * (1 + steepest)


def _safe(account: Account, symbol: str) -> Decimal | None:
    """How far the mark may move, while other marks use up their share of the margin as well."""
    held = held_of(account, symbol)
    if not held:
        return None
    if symbol in account.isolated:
        return min(
            (p.isolated + unrealised(account, p) - maintenance(account, p))
            / _loss_per_point(account, p)
            for p in held
        )
    together = liquidation.crossed(account)
    slack = liquidation.cross_wallet(account)
    slack += sum((unrealised(account, p) - maintenance(account, p) for p in together), Decimal(0))
    share = slack / len({p.symbol for p in together})
    return share / sum((_loss_per_point(account, p) for p in held), Decimal(0))


def _narrow(bands: Ints, low: int, high: int, edges: Edges) -> None:
    at_or_below, at_or_above = edges
    if at_or_below is not None:
        bands[low] = max(bands[low], at_or_below)
    if at_or_above is not None:
        bands[high] = min(bands[high], at_or_above)


def _set_trade_bands(spec: Symbol, bands: Ints, rests: Resting) -> None:
    digits = spec.price_digits
    bands[[TRADE_LOW, ASK_LOW, BID_LOW]] = NEVER_LOW
    bands[[TRADE_HIGH, BID_HIGH, ASK_HIGH]] = NEVER_HIGH
    for order in rests.orders:
        points = _down(order.price, digits)
        if order.side == "BUY":
            _narrow(bands, TRADE_LOW, TRADE_HIGH, (points, None))
            _narrow(bands, ASK_LOW, BID_HIGH, (points, None))
            if order.ahead:
                _narrow(bands, BID_LOW, ASK_HIGH, (points, None))
        else:
            _narrow(bands, TRADE_LOW, TRADE_HIGH, (None, points))
            _narrow(bands, ASK_LOW, BID_HIGH, (None, points))
            if order.ahead:
                _narrow(bands, BID_LOW, ASK_HIGH, (None, points))
    for edges in _waiting(rests.algos, "CONTRACT_PRICE", digits):
        _narrow(bands, TRADE_LOW, TRADE_HIGH, edges)


def _set_mark_bands(account: Account, spec: Symbol, bands: Ints, rests: Resting) -> None:
    """All symbols with positions must be set together: they share the margin."""
    bands[MARK_LOW], bands[MARK_HIGH] = NEVER_LOW, NEVER_HIGH
    for edges in _waiting(rests.algos, "MARK_PRICE", MARK_DIGITS):
        _narrow(bands, MARK_LOW, MARK_HIGH, edges)
    safe = _safe(account, spec.name)
    if safe is not None:
        mark = account.books[spec.name].mark
        edges = (_up(mark - safe, MARK_DIGITS), _down(mark + safe, MARK_DIGITS))
        _narrow(bands, MARK_LOW, MARK_HIGH, edges)


def _waiting(algos: list[Algo], working: str, digits: int) -> Iterator[Edges]:
    for algo in algos:
        if (algo.status, algo.working) == ("NEW", working):
            below, above = _algo_edges(algo)
            yield (
                None if below is None else _down(below, digits),
                None if above is None else _up(above, digits),
            )


def warm(rows: Ints) -> None:
    """Loads the kernel before the account has anything."""
    none = np.full(1, -1, np.int64)
    next_touch(rows, 0, 0, untouchable(1), none, none)
