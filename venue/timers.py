"""What ends by the clock: orders good till a date, and countdowns that cancel a symbol's orders.

Pure; times are market milliseconds. Looked at after every step of the market, so that an order
may still trade within the step in which its time comes, as it may on the exchange.
"""

from __future__ import annotations

from venue.fills import algo_to, end
from venue.orders import Account, Event


def start_countdown(account: Account, symbol: str, deadline_ms: int) -> None:
    """A new countdown replaces the old one; 0 stops it."""
    if deadline_ms:
        account.countdowns[symbol] = deadline_ms
    else:
        account.countdowns.pop(symbol, None)


def expire(account: Account, now: int) -> list[Event]:
    """Everything whose time has come. Conditional orders are untouched by a countdown."""
    out: list[Event] = []
    due = [symbol for symbol, deadline_ms in account.countdowns.items() if deadline_ms <= now]
    for symbol in due:
        del account.countdowns[symbol]
    for order in list(account.orders.values()):
        if order.symbol in due:
            end(account, order, "CANCELED", 0, now, out)
        elif order.good_till_ms and order.good_till_ms <= now:
            end(account, order, "EXPIRED", 0, now, out)
    for algo in list(account.algos.values()):
        if algo.good_till_ms and algo.good_till_ms <= now and algo.status == "NEW":
            algo_to(account, algo, "EXPIRED", now, out)
    return out
