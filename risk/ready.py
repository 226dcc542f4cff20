"""What a process keeps ready while it stands by: the exchange's rules and the account's stream.

An I/O shell of risk/main.py. They live as long as the process, so that a take-over waits for the
lease and for one snapshot, and for nothing that could have been done before. What the stream tells
while nobody holds the lease here is dropped: the snapshot, begun after it was open, says it all.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from typing import Any, Final, Protocol

from risk.budget import take_limits
from risk.events import Done
from risk.exchange import Exchange
from risk.instruments import Instrument, parse_instruments
from risk.sockets import UserStream, keep

RULES: Final = ("/fapi/v1/exchangeInfo", "/fapi/v1/leverageBracket")
RULES_S: Final = 600.0  # between two looks at them: symbols come and go
RETRY_S: Final = 0.2
log = logging.getLogger("risk")


class Hearer(Protocol):
    """A session, while it holds the lease."""

    def user_opened(self) -> None:
        """The stream is (back) open."""

    def pushed(self, frame: dict[str, Any]) -> None:
        """One frame of it."""

    def rules_read(self, instruments: dict[str, Instrument]) -> None:
        """The rules as they are now."""


class Ready:
    """`start` once the exchange's clock is known, `close` at the end; `attach` to hear."""

    def __init__(self, exchange: Exchange, ws_url: str) -> None:
        self._exchange, self._ws_url = exchange, ws_url
        self._hearer: Hearer | None = None
        self._open = False
        self._tasks: list[asyncio.Task[None]] = []
        self.instruments: dict[str, Instrument] = {}

    def start(self, speed: float) -> None:
        user = UserStream(self._exchange, self._ws_url, speed, self._opened, self._pushed)

        async def listen() -> None:
            try:
                await user.run()
            finally:
                self._open = False

        self._spawn(keep("user", listen))
        self._spawn(self._keep_rules())

    def attach(self, hearer: Hearer) -> None:
        self._hearer = hearer
        if self._open:
            hearer.user_opened()

    def detach(self) -> None:
        self._hearer = None

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        task.add_done_callback(self._ended)
        self._tasks.append(task)

    def _ended(self, task: asyncio.Task[None]) -> None:
        """A task of ours that fails is our own mistake: end loudly, be restarted."""
        if not task.cancelled() and task.exception() is not None:
            log.critical("task failed", exc_info=task.exception())
            raise SystemExit(1)

    def _opened(self) -> None:
        self._open = True
        if self._hearer is not None:
            self._hearer.user_opened()

    def _pushed(self, frame: dict[str, Any]) -> None:
        if self._hearer is not None:
            self._hearer.pushed(frame)

    async def _keep_rules(self) -> None:
        while True:
            read = not self._exchange.throttled and await self.read_rules()
            await asyncio.sleep(RULES_S if read else RETRY_S)

    async def read_rules(self) -> bool:
        """Symbols, brackets and limits as the exchange has them now; False unless all were told."""
        told = await asyncio.gather(*(self._exchange.fetch("GET", path) for path in RULES))
        bodies: list[Any] = [answer.body for answer in told if isinstance(answer, Done)]
        if len(bodies) < len(RULES):
            return False
        self.instruments = parse_instruments(*bodies)
        take_limits(self._exchange.budget, bodies[0].get("rateLimits", ()))
        if self._hearer is not None:
            self._hearer.rules_read(self.instruments)
        return True
