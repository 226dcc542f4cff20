"""Changes of the account between two whole copies of it: one small line each, written at once.

Writing the whole account for every order costs more than the order. A line holds what events have
touched since the last one: orders, conditional orders and positions as they are now, the newest
trades and other history rows, and every plain number of the account. Applying the lines in order
to the copy that they follow gives the account again, but for two things that change without an
event and are caught up with the next copy: places in the queue and the best price of a trail.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field, fields
from decimal import Decimal
from typing import Any

from venue.orders import (
    CLOSED_KEPT,
    OPEN_STATUSES,
    Account,
    Algo,
    AlgoEvent,
    Event,
    MoneyEvent,
    Order,
    OrderEvent,
    Position,
    Trade,
    position_key,
)

Json = dict[str, Any]
HISTORIES = ("trades", "income", "amendments", "margin_moves")
ALGO_CLOSED = ("FINISHED", "CANCELED", "EXPIRED", "REJECTED")
PLAIN = tuple(f.name for f in fields(Account) if f.type in ("int", "bool", "Decimal"))
DECIMALS = frozenset(f.name for f in fields(Account) if f.type == "Decimal")


@dataclass(slots=True)
class Touched:
    """What events have touched since the last line; an order that was amended queues anew."""

    orders: dict[int, bool] = field(default_factory=dict)
    algos: dict[int, None] = field(default_factory=dict)
    positions: dict[str, None] = field(default_factory=dict)
    last: dict[str, Any] = field(default_factory=dict)  # newest row of each history when written

    def add(self, event: Event) -> None:
        if isinstance(event, OrderEvent):
            queued = self.orders.pop(event.order.id, False) or event.execution == "AMENDMENT"
            self.orders[event.order.id] = queued
        elif isinstance(event, AlgoEvent):
            self.algos.pop(event.algo.id, None)
            self.algos[event.algo.id] = None
        if isinstance(event, OrderEvent | MoneyEvent) and event.position is not None:
            self.positions[position_key(event.position.symbol, event.position.side)] = None

    def written(self, account: Account) -> None:
        """Everything up to here is on disk."""
        self.orders.clear()
        self.algos.clear()
        self.positions.clear()
        for name in HISTORIES:
            rows = getattr(account, name)
            self.last[name] = rows[-1] if rows else None


def _newest(rows: deque[Any], last: Any) -> list[Any]:
    """Rows after the one that was written last."""
    out = []
    for row in reversed(rows):
        if row is last:
            break
        out.append(row)
    return out[::-1]


def line(account: Account, touched: Touched) -> Json:
    """The change as JSON data (dataclasses as they are)."""
    out: Json = {name: getattr(account, name) for name in PLAIN}
    out["leverage"], out["countdowns"] = account.leverage, account.countdowns
    out["isolated"] = sorted(account.isolated)
    orders = (
        (account.orders.get(k) or account.closed.get(k), q) for k, q in touched.orders.items()
    )
    out["orders"] = [[order, queued] for order, queued in orders if order is not None]
    algos = (account.algos.get(k) or account.closed_algos.get(k) for k in touched.algos)
    out["algos"] = [algo for algo in algos if algo is not None]
    out["positions"] = [account.positions[key] for key in touched.positions]
    for name in HISTORIES:
        out[name] = _newest(getattr(account, name), touched.last.get(name))
    return out


def revive(kind: type[Any], data: Json) -> Any:
    """A dataclass from its JSON: Decimals come back from text."""
    values = {}
    for f in fields(kind):
        if f.name in data:
            value = data[f.name]
            values[f.name] = Decimal(value) if f.type == "Decimal" else value
    return kind(**values)


def apply(account: Account, change: Json) -> None:
    """One line onto the account that it follows. Raises KeyError, TypeError, ValueError."""
    for name in PLAIN:
        if name in change:
            setattr(account, name, Decimal(change[name]) if name in DECIMALS else change[name])
    account.leverage, account.countdowns = change["leverage"], change["countdowns"]
    account.isolated = set(change["isolated"])
    for data, queued in change["orders"]:
        order: Order = revive(Order, data)
        if order.status not in OPEN_STATUSES:
            account.orders.pop(order.id, None)
            account.closed[order.id] = order
            while len(account.closed) > CLOSED_KEPT:
                account.closed.popitem(last=False)
            continue
        if queued:
            account.orders.pop(order.id, None)
        account.orders[order.id] = order
    for data in change["algos"]:
        algo: Algo = revive(Algo, data)
        if algo.status in ALGO_CLOSED:
            account.algos.pop(algo.id, None)
            account.closed_algos[algo.id] = algo
            while len(account.closed_algos) > CLOSED_KEPT:
                account.closed_algos.popitem(last=False)
        else:
            account.algos[algo.id] = algo
    for data in change["positions"]:
        position: Position = revive(Position, data)
        account.positions[position_key(position.symbol, position.side)] = position
    account.trades.extend(revive(Trade, data) for data in change["trades"])
    for name in HISTORIES[1:]:
        getattr(account, name).extend(change[name])
