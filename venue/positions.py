"""The position mode: one-way, or hedge with LONG and SHORT of a symbol apart. Pure."""

from __future__ import annotations

from venue.orders import BOTH, LONG, SHORT, Account, ConfigEvent, Event, Refusal

SAME_MODE = Refusal(-4059, "No need to change position side.")
HAS_ORDERS = Refusal(-4067, "Position side cannot be changed if there exists open orders.")
HAS_POSITIONS = Refusal(-4068, "Position side cannot be changed if there exists position.")


def sides(account: Account) -> tuple[str, ...]:
    """The position sides of a symbol in the present mode."""
    return (LONG, SHORT) if account.dual else (BOTH,)


def set_mode(account: Account, dual: bool, now: int) -> list[Event] | Refusal:
    """Only an account without orders, conditional ones included, and positions may change."""
    if dual == account.dual:
        return SAME_MODE
    if account.orders or account.algos:
        return HAS_ORDERS
    if any(p.qty for p in account.positions.values()):
        return HAS_POSITIONS
    account.dual = dual
    return [ConfigEvent("", 0, "hedge" if dual else "one_way", "position_mode", now)]
