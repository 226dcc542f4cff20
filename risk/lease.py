"""The claim on an account, and what Redis's errors mean to who holds it.

Pure: a lease is sure for a share of its time to live, counted from before its renewal was sent.
An error of an unwell server is weather and a write is repeated; any other error answer to a
script is our own mistake and is not.
"""

from __future__ import annotations

from typing import Final

import redis.exceptions

VALID_SHARE: Final = 0.6  # of the TTL, from before the renewal was sent
# what a healthy script meets on an unhealthy server; any other error answer is our own mistake
_REFUSALS: Final = ("OOM", "LOADING", "READONLY", "MISCONF", "BUSY", "MASTERDOWN", "NOREPLICAS")
_UNWELL: Final = (
    redis.exceptions.OutOfMemoryError,
    redis.exceptions.ReadOnlyError,
    redis.exceptions.MasterDownError,
    redis.exceptions.BusyLoadingError,
)
WEATHER = (redis.exceptions.RedisError, OSError, TimeoutError)


class Lease:
    """Our claim to be the only one; sure only until `valid_until_ms` of the boot clock."""

    def __init__(self, holder: str, ttl_ms: int) -> None:
        self.holder = holder
        self.ttl_ms = ttl_ms
        self.valid_until_ms = 0.0

    def renewed(self, asked_ms: float) -> None:
        self.valid_until_ms = asked_ms + self.ttl_ms * VALID_SHARE


def is_weather(error: BaseException) -> bool:
    """A server that is away, full, loading or read-only, and not a script that is wrong."""
    if isinstance(error, _UNWELL) or not isinstance(error, redis.exceptions.ResponseError):
        return True
    text = str(error)  # without the code where redis-py has a type for it
    return text.startswith(_REFUSALS) or "OOM" in text
