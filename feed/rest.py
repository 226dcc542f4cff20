"""REST for history: one session, one weight account, errors as values with a reason.

An I/O shell. Weight is steered by the used-weight header of our own address: history waits while
half of the minute's weight is used, whoever used it. 429 and 418 stop it for the time named.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Final

import aiohttp

from feed import binance, heal
from feed.lane import STAT
from feed.walk import Table

log = logging.getLogger("feed.rest")

TIMEOUT_S: Final = 10.0
BUSY_WAIT_S: Final = 0.5  # between looks at the weight while the budget is spent
BAN_WAIT_S: Final = 60.0  # when 429 or 418 names no time
ATTEMPTS_MAX: Final = 4
RETRY_WAIT_S: Final = 0.25  # doubled after each attempt


class RestError(Exception):
    """The exchange did not answer, refused, or answered nonsense; the sentence says which."""


class Rest:
    """GET with a budget. One per feed."""

    def __init__(self, base_url: str, stats: Table) -> None:
        self._base_url = base_url
        self._stats = stats
        self._session: aiohttp.ClientSession | None = None
        self._blocked_s = 0.0  # loop time until which the exchange asked for silence
        self.used_weight = 0

    async def __aenter__(self) -> Rest:
        timeout = aiohttp.ClientTimeout(total=TIMEOUT_S)
        self._session = aiohttp.ClientSession(timeout=timeout)
        return self

    async def __aexit__(self, *exc: object) -> None:
        if self._session is not None:
            await self._session.close()

    async def get(self, path: str) -> bytes:
        """The body of a GET; a few attempts on weather. Raises RestError."""
        wait_s, reason = RETRY_WAIT_S, ""
        for _ in range(ATTEMPTS_MAX):
            await self._out_of_ban()
            try:
                status, body = await self._once(path)
            except (aiohttp.ClientError, TimeoutError, OSError) as error:
                status, body = 0, repr(error).encode()
            if status == 200:
                return body
            self._stats[STAT["rest_errors"]] += 1
            reason = f"{path.partition('?')[0]} status={status} {body[:120]!r}"
            if 400 <= status < 500 and status not in (408, 418, 429):
                break
            await asyncio.sleep(wait_s)
            wait_s *= 2
        raise RestError(reason)

    async def budget(self, weight: int) -> None:
        """Return once history may spend `weight`; asks /time, weight 1, to see it fall."""
        while heal.weight_left(self.used_weight) < weight:
            await asyncio.sleep(BUSY_WAIT_S)
            await self.get(binance.time_path())

    async def _once(self, path: str) -> tuple[int, bytes]:
        assert self._session is not None, "enter the context first"
        async with self._session.get(self._base_url + path) as response:
            body = await response.read()
            used = response.headers.get(binance.WEIGHT_HEADER, "")
            if used.isdigit():
                self.used_weight = int(used)
                self._stats[STAT["rest_weight"]] = self.used_weight
            if response.status in (418, 429):
                after = response.headers.get("Retry-After", "")
                wait_s = float(after) if after.isdigit() else BAN_WAIT_S
                self._blocked_s = asyncio.get_running_loop().time() + wait_s
                log.warning("banned status=%d wait_s=%.0f", response.status, wait_s)
            return response.status, body

    async def _out_of_ban(self) -> None:
        wait_s = self._blocked_s - asyncio.get_running_loop().time()
        if wait_s > 0:
            await asyncio.sleep(wait_s)
