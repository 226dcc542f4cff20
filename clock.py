"""Three clocks, never mixed: market time, boot time, wall time.

Market time (the exchange's E, T, serverTime) serves everything about the market and everything
that crosses hosts. Boot time (CLOCK_BOOTTIME) serves leases, deadlines, back-off and limits: it
never steps and counts while the host sleeps. Wall time serves logs. Only entry points call the
two functions here; everything else is handed a number.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

NS_PER_MS = 1_000_000
_BOOT_CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


def boot_ns() -> int:
    """Nanoseconds since boot, sleep included; comparable between processes of one host."""
    return time.clock_gettime_ns(_BOOT_CLOCK)


def wall_ms() -> int:
    """Milliseconds since 1970 by the host's clock; for logs and for nothing else."""
    return time.time_ns() // NS_PER_MS


@dataclass(frozen=True, slots=True)
class MarketClock:
    """The exchange's clock as seen from here: a line through one measured point.

    `speed` is market milliseconds per real millisecond: 1 on an exchange, more on a venue that
    plays its market faster. `error_ms` bounds the offset's error in market milliseconds.
    """

    anchor_market_ms: float
    anchor_boot_ns: int
    speed: float = 1.0
    error_ms: float = 0.0

    def now_ms(self, boot_ns: int) -> float:
        """Market time in milliseconds at a boot-time instant."""
        return self.anchor_market_ms + (boot_ns - self.anchor_boot_ns) / NS_PER_MS * self.speed


def from_server_time(
    server_ms: float, speed: float, sent_boot_ns: int, received_boot_ns: int
) -> MarketClock:
    """A clock from one request: the answer was true somewhere between send and receipt."""
    if received_boot_ns < sent_boot_ns:
        raise ValueError("an answer cannot arrive before its question")
    half_ns = (received_boot_ns - sent_boot_ns) // 2
    return MarketClock(
        anchor_market_ms=server_ms,
        anchor_boot_ns=sent_boot_ns + half_ns,
        speed=speed,
        error_ms=half_ns / NS_PER_MS * speed + 1.0,  # + 1: the server answers in whole ms
    )
