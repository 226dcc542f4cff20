"""Elite rotation: a full book gives up its weakest position, in profit, for a stronger signal.

The weakest is the position with the lowest confidence at entry. It goes only if the new signal is
strictly more confident by a margin, if closing it at the best opposite quote pays both fees, if
the new signal would pass every other rule with the place free, and not again within the
cool-down. Close first, confirm, then open.
"""

from __future__ import annotations

from decimal import Decimal
from typing import Final

from risk.gate import QUOTE_AGE_MS_MAX, Case, Verdict, judge
from risk.instruments import plain
from risk.portfolio import Position
from risk.state import State, pending_entries, without

HYSTERESIS: Final = 0.02  # of confidence; below it two signals are the same
COOL_DOWN_MS: Final = 300_000  # market time between two rotations


def profit_now(state: State, position: Position, case: Case) -> Decimal | None:
    """What closing now would leave after both fees; None without a fresh quote."""
    quote = state.quotes.get(position.symbol)
    if quote is None or case.now.boot_ms - quote.boot_ms > QUOTE_AGE_MS_MAX:
        return None
    price = quote.bid if position.side == "buy" else quote.ask
    fee = price * position.qty * case.limits.taker_fee
    return position.unrealised(price) - position.fees - fee


def judge_rotation(state: State, case: Case) -> Verdict:
    """May the weakest position make room for this signal? `weakest` is in the numbers."""
    since_ms = case.now.market_ms - state.rotated_ms
    leaving = [p for p in state.positions.values() if p.exit_order or p.exit_reason]
    if state.rotating or leaving or pending_entries(state) or since_ms < COOL_DOWN_MS:
        numbers = {"busy": state.rotating or str(len(leaving)), "since_last_ms": str(since_ms)}
        return Verdict("rotation", False, numbers)
    weakest = min(state.positions.values(), key=lambda p: (p.confidence, p.symbol))
    profit = profit_now(state, weakest, case)
    stronger = case.signal.confidence > weakest.confidence + HYSTERESIS
    ok = stronger and profit is not None and profit > 0
    if ok:
        ok = judge(without(case, weakest.symbol)).approved is not None
    return Verdict(
        "rotation",
        ok,
        {
            "weakest": weakest.symbol,
            "weakest_confidence": repr(weakest.confidence),
            "confidence": repr(case.signal.confidence),
            "profit_after_fees": "unknown" if profit is None else plain(profit),
        },
    )
