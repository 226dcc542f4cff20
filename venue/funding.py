"""Funding: what a position pays or is paid when its symbol settles. Pure.

An isolated position pays out of its own margin and is paid into it.
"""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal

from venue.fills import income
from venue.orders import Account, Event, MoneyEvent, held_of, margin_aside, money, unrealised


def settle(account: Account, symbol: str, rate: Decimal, now: int, out: list[Event]) -> None:
    """Longs pay size * mark * rate when it is positive."""
    for position in held_of(account, symbol):
        paid = money(-position.qty * account.books[symbol].mark * rate)
        account.wallet += paid
        account.funding += paid
        shown = None
        if symbol in account.isolated:
            position.isolated += paid
            position.updated_ms = now
            shown = replace(position)
        income(account, symbol, "FUNDING_FEE", paid, now, "")
        profit = unrealised(account, position)
        out.append(
            MoneyEvent(
                "FUNDING_FEE",
                symbol,
                paid,
                account.wallet,
                now,
                shown,
                profit,
                position_side=position.side,
                aside=margin_aside(account),
            )
        )
