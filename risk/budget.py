"""What the exchange allows a minute, and how much of it is used: weight and orders.

Entries end at a share of it, so that what reduces risk always finds room. Weight is told by every
answer of the exchange, for our address; orders are counted here, where they are sent, and a count
that the exchange told within the same window (of whoever held the lease before) holds too. Pure:
windows are market time, their ends are boot times that the caller names.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

ENTRY_SHARE: Final = 0.8
SENT_MAX: Final = 100_000  # order times that are kept
SECONDS: Final = {"SECOND": 1, "MINUTE": 60}


@dataclass(slots=True)
class Window:
    """So many orders within so much market time."""

    orders_max: int
    window_ms: float
    sent: deque[float] = field(default_factory=lambda: deque(maxlen=SENT_MAX))  # boot ms
    told: int = 0  # by the exchange ...
    told_ms: float = -1e18  # ... at this boot time

    def used(self, boot_ms: float, speed: float) -> int:
        """Orders that the window holds now."""
        since_ms = boot_ms - self.window_ms / speed
        while self.sent and self.sent[0] <= since_ms:
            self.sent.popleft()
        return max(len(self.sent), self.told if self.told_ms > since_ms else 0)


@dataclass(slots=True)
class Budget:
    """The limits in force; by default those that the exchange has had for years."""

    weight_max: int = 2_400  # a minute, per address
    short: Window = field(default_factory=lambda: Window(300, 10_000.0))
    long: Window = field(default_factory=lambda: Window(1_200, 60_000.0))

    def sent(self, boot_ms: float) -> None:
        """An order goes out now."""
        self.short.sent.append(boot_ms)
        self.long.sent.append(boot_ms)

    def told(self, short: int, long: int, boot_ms: float) -> None:
        """An answer's own counts, those of everybody who orders on this account."""
        self.short.told, self.long.told = short, long
        self.short.told_ms = self.long.told_ms = boot_ms

    def entry_refusal(self, used_weight: int, boot_ms: float, speed: float) -> str:
        """Why no entry may be sent now; empty when one may."""
        if used_weight > self.weight_max * ENTRY_SHARE:
            return f"request weight is nearly used up: {used_weight} of {self.weight_max}"
        for window in (self.short, self.long):
            used = window.used(boot_ms, speed)
            if used >= window.orders_max * ENTRY_SHARE:
                return f"orders are nearly used up: {used} of {window.orders_max}"
        return ""


def take_limits(budget: Budget, rows: Iterable[Mapping[str, Any]]) -> None:
    """The limits of GET exchangeInfo; what it does not name stays."""
    for row in rows:
        kind, most = row.get("rateLimitType"), int(row.get("limit", 0))
        ms = SECONDS.get(str(row.get("interval")), 0) * int(row.get("intervalNum", 0)) * 1_000.0
        if kind == "REQUEST_WEIGHT" and ms == budget.long.window_ms:
            budget.weight_max = most
        for window in (budget.short, budget.long):
            if kind == "ORDERS" and ms == window.window_ms:
                window.orders_max = most
