"""REST for history: one session, one weight account, errors as values with a reason.

An I/O shell. Weight is steered by the used-weight header of our own address and what is under way:
history waits while half of the minute's weight is used, whoever used it, and fetched trades leave
a rest of it to candles, which are cheap and put bars right. 429 and 418 stop everything for the
time that they name.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Final

import aiohttp

from feed import binance, heal
from feed.address import Address
from feed.connection import default_tls
from feed.lane import STAT
from feed.walk import Table

log = logging.getLogger("feed.rest")

TIMEOUT_S: Final = 10.0
LOOK_S: Final = 1.0  # between looks of all lanes at the weight while the budget is spent
ATTEMPTS_MAX: Final = 4
RETRY_WAIT_S: Final = 0.25  # doubled after each attempt


class RestError(Exception):
    """The exchange did not answer, refused, or answered nonsense; the sentence says which."""


class Rest:
    """GET with a budget. One per feed."""

    def __init__(self, base_url: str, stats: Table, address: Address) -> None:
        self._base_url = base_url
        self._stats = stats
        self._address = address
        self._session: aiohttp.ClientSession | None = None
        self._under_way = 0  # weight of requests that have no answer yet
        self._looking: asyncio.Task[None] | None = None
        self.used_weight = 0

    async def __aenter__(self) -> Rest:
        timeout = aiohttp.ClientTimeout(total=TIMEOUT_S)
        trusted = default_tls() if self._base_url.startswith("https") else True
        connector = aiohttp.TCPConnector(ssl=trusted)
        self._session = aiohttp.ClientSession(timeout=timeout, connector=connector)
        return self

    async def __aexit__(self, *exc: object) -> None:
        if self._looking is not None:
            self._looking.cancel()
        if self._session is not None:
            await self._session.close()

    async def get(self, path: str, weight: int = 1) -> bytes:
        """The body of a GET; a few attempts on weather. Raises RestError."""
        wait_s, reason = RETRY_WAIT_S, ""
        for _ in range(ATTEMPTS_MAX):
            await self._out_of_ban()
            status, body = await self._attempt(path, weight)
            if status == 200:
                return body
            self._stats[STAT["rest_errors"]] += 1
            reason = f"{path.partition('?')[0]} status={status} {body[:120]!r}"
            if 400 <= status < 500 and status not in (408, binance.BANNED, binance.TOO_MANY):
                break
            await asyncio.sleep(wait_s)
            wait_s *= 2
        raise RestError(reason)

    @property
    def spent(self) -> int:
        """Weight used in this minute, and what is under way, in other lanes as in this one; all of
        it during a ban."""
        if self._address.rest_wait_s(asyncio.get_running_loop().time()) > 0:
            return binance.WEIGHT_PER_MIN
        return self.used_weight + self._address.lanes * self._under_way

    def left(self) -> int:
        """Weight that history may still use in this minute."""
        return heal.weight_left(self.spent)

    async def fetch(self, path: str, weight: int) -> bytes:
        """As get, once history may spend `weight`."""
        while self.left() < weight:
            await self.look()
        return await self.get(path, weight)

    async def look(self) -> None:
        """Wait for a moment, then see whether the weight has fallen; one asks for all who wait."""
        if self._looking is None or self._looking.done():
            self._looking = asyncio.get_running_loop().create_task(self._look())
            self._looking.add_done_callback(_read_error)
        await asyncio.shield(self._looking)

    async def _look(self) -> None:
        await asyncio.sleep(LOOK_S * self._address.lanes)
        if self._address.rest_wait_s(asyncio.get_running_loop().time()) <= 0:
            await self.get(binance.time_path())

    async def _attempt(self, path: str, weight: int) -> tuple[int, bytes]:
        self._under_way += weight
        try:
            return await self._once(path)
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            return 0, repr(error).encode()
        finally:
            self._under_way -= weight

    async def _once(self, path: str) -> tuple[int, bytes]:
        assert self._session is not None, "enter the context first"
        async with self._session.get(self._base_url + path) as response:
            body = await response.read()
            used = response.headers.get(binance.WEIGHT_HEADER, "")
            if used.isdigit():
                self.used_weight = int(used)
                self._stats[STAT["rest_weight"]] = self.used_weight
            if response.status in (binance.BANNED, binance.TOO_MANY):
                self._be_silent(response.status, response.headers.get("Retry-After", ""), body)
            return response.status, body

    def _be_silent(self, status: int, retry_after: str, body: bytes) -> None:
        address = self._address
        wait_s = binance.wait_s(retry_after, body, address.market_ms, address.speed)
        address.refused(status, wait_s, asyncio.get_running_loop().time(), by_rest=True)
        log.warning("told to wait status=%d wait_s=%.0f text=%r", status, wait_s, body[:100])

    async def _out_of_ban(self) -> None:
        wait_s = self._address.rest_wait_s(asyncio.get_running_loop().time())
        if wait_s > 0:
            await asyncio.sleep(wait_s)


def _read_error(task: asyncio.Task[None]) -> None:
    """Everybody who waited may be gone; the error was counted."""
    if not task.cancelled():
        task.exception()
