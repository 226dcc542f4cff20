"""What the exchange counts per network address: connection attempts, and bans.

Every link and REST of one feed share it. The feeds of other lanes count for the same address and
cannot be asked: each is taken to do as this one does. Attempts are kept far below the exchange's
bound in any loop of failures, whoever fails. A ban silences whom it names until the time that it
names. One link at a time is being replaced.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Final

from feed import binance

SPAN_S: Final = 300.0


class Address:
    """Times are the event loop's, in seconds."""

    def __init__(self, dials_max: int = binance.DIALS_PER_5_MIN, lanes: int = 1) -> None:
        self.lanes = lanes  # feeds behind this address
        self._dials: deque[float] = deque(maxlen=min(dials_max, binance.DIALS_OF_ALL // lanes))
        self._dial_after_s = 0.0
        self._rest_after_s = 0.0
        self.replacing = asyncio.Lock()
        self.market_ms = 0  # newest exchange time known, 0 before the first
        self.speed = 1.0  # market ms per real ms

    def dial_wait_s(self, now_s: float) -> float:
        """How long the next attempt to connect must wait."""
        full = len(self._dials) == self._dials.maxlen
        free_s = self._dials[0] + SPAN_S if full else 0.0
        return max(free_s, self._dial_after_s) - now_s

    def dialled(self, now_s: float) -> None:
        """Count an attempt."""
        self._dials.append(now_s)

    def rest_wait_s(self, now_s: float) -> float:
        """How long the next request must wait."""
        return self._rest_after_s - now_s

    def refused(self, status: int, wait_s: float, now_s: float, by_rest: bool) -> None:
        """Be silent after 429, where it was said, or after 418, everywhere."""
        if by_rest or status == binance.BANNED:
            self._rest_after_s = max(self._rest_after_s, now_s + wait_s)
        if not by_rest or status == binance.BANNED:
            self._dial_after_s = max(self._dial_after_s, now_s + wait_s)
