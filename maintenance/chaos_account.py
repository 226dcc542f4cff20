"""What the exchange and other hands do to the account under chaos: the kinds and their numbers.

Pure: a part of chaos_plan's plan, drawn from the same chance. The blows are chaos_venue's.
"""

from __future__ import annotations

import random
from typing import Any, Final

EXCHANGE_KINDS: Final = ("liquidate", "adl", "delist", "funding", "clock_skew")
HAND_KINDS: Final = (  # another client's, on what is ours or on the whole account
    "cancel_all_stops",
    "deposit",
    "withdraw",
    "fees_bnb",
    "leverage_by_hand",
    "margin_by_hand",
    "mode_by_hand",
    "foreign_position",
    "foreign_order",
)
LINE_KINDS: Final = ("market_late", "stall")  # nothing comes through, then everything at once
KINDS: Final = EXCHANGE_KINDS + HAND_KINDS + LINE_KINDS
RARE: Final = {"delist": 3}  # so often at most in one plan: a symbol does not come back
STALL_S: Final = (4.0, 10.0)
LONG_STALL_S: Final = 30.0
LONG_SHARE: Final = 0.25
SKEW_MS: Final = (300, 3_000)
FOREIGN_S: Final = (2.0, 4.0)


def details(kind: str, chance: random.Random) -> tuple[dict[str, Any], float]:
    """(the blow's numbers, how long it lasts)."""
    if kind in ("deposit", "withdraw"):
        return {"amount": f"{chance.randrange(1, 50_000) / 100:.2f}"}, 0.0
    if kind == "fees_bnb":
        return {"amount": "5"}, round(chance.uniform(2.0, 5.0), 2)
    if kind == "leverage_by_hand":
        return {"leverage": str(chance.randrange(5, 20))}, 0.0
    if kind == "mode_by_hand":
        return {}, round(chance.uniform(0.5, 2.0), 2)
    if kind in ("foreign_position", "foreign_order"):
        body = {"client": chance.choice(("web", "ios")), "side": chance.choice(("BUY", "SELL"))}
        return body, round(chance.uniform(*FOREIGN_S), 2)
    if kind == "adl":
        return {"share": round(chance.uniform(0.2, 1.4), 2)}, 0.0  # above 1: all of it
    if kind == "delist":
        return {"status": chance.choice(("SETTLING", "CLOSE"))}, 0.0
    if kind == "funding":
        return {"rate": f"{chance.randrange(-30, 30) / 10_000:.4f}"}, 0.0
    if kind == "clock_skew":
        ms = chance.randrange(*SKEW_MS) * chance.choice((-1, 1))
        return {"kind": kind, "ms": ms}, round(chance.uniform(3.0, 6.0), 2)
    if kind == "market_late":
        return {"path": chance.choice(("/market", "/public"))}, round(chance.uniform(1.0, 6.0), 2)
    if kind == "stall":
        long = chance.random() < LONG_SHARE
        return {}, LONG_STALL_S if long else round(chance.uniform(*STALL_S), 2)
    return {}, 0.0
