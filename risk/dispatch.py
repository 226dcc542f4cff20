"""Outgoing work: one heap by urgency, few requests at a time, room always left for protection.

An I/O shell of risk/main.py. A stop never queues behind an entry or a query: the last places are
kept for what reduces risk. While the exchange wants quiet (429, 418) only that goes out. Entries
end at 80 % of the weight that the exchange allows a minute.
"""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Callable
from typing import Final

from risk.events import CANCEL, ENTRY, Refused, Replied, Request, Result, Throttled
from risk.exchange import Exchange

CONCURRENT_MAX: Final = 8  # requests under way
RESERVED: Final = 3  # of them kept for stops, exits and cancels
QUEUED_MAX: Final = 2_000  # beyond it the least urgent is refused
WEIGHT_MAX: Final = 2_400  # a minute, per address
ENTRY_WEIGHT_SHARE: Final = 0.8
assert RESERVED < CONCURRENT_MAX


class Dispatcher:
    """Carries requests to the exchange and hands each answer to `on_reply`, once."""

    def __init__(
        self,
        exchange: Exchange,
        on_reply: Callable[[Replied], None],
        boot_ms: Callable[[], float],
    ) -> None:
        self._exchange = exchange
        self._on_reply = on_reply
        self._boot_ms = boot_ms
        self._heap: list[tuple[int, int, Request]] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._made = 0
        self.throttled_until_ms = 0.0
        self.sent = 0
        self.overflowed = 0

    @property
    def busy(self) -> int:
        """Requests queued or under way."""
        return len(self._heap) + len(self._tasks)

    def put(self, request: Request) -> None:
        if len(self._heap) >= QUEUED_MAX and request.priority > CANCEL:
            self.overflowed += 1
            self._answer(request, Refused(0, "too much outgoing work"), self._boot_ms())
            return
        self._made += 1
        heapq.heappush(self._heap, (request.priority, self._made, request))
        self.pump()

    def pump(self) -> None:
        """Start what may start now; call again when time has passed."""
        while self._heap and len(self._tasks) < CONCURRENT_MAX:
            priority, _, request = self._heap[0]
            if priority > CANCEL:
                if len(self._tasks) >= CONCURRENT_MAX - RESERVED:
                    return
                if self._boot_ms() < self.throttled_until_ms and priority != ENTRY:
                    return
            heapq.heappop(self._heap)
            refusal = self._refusal(request)
            if refusal is not None:
                self._answer(request, refusal, self._boot_ms())
                continue
            task = asyncio.get_running_loop().create_task(self._run(request))
            self._tasks.add(task)
            task.add_done_callback(self._done)

    def _refusal(self, request: Request) -> Result | None:
        """Entries have no claim on a throttled or nearly used-up address."""
        if request.priority != ENTRY:
            return None
        if self._boot_ms() < self.throttled_until_ms:
            return Throttled(self.throttled_until_ms, "the exchange wants quiet")
        if self._exchange.used_weight > WEIGHT_MAX * ENTRY_WEIGHT_SHARE:
            return Refused(0, "request weight is nearly used up")
        return None

    async def _run(self, request: Request) -> None:
        sent_ms = self._boot_ms()
        self.sent += 1
        result = await self._exchange.call(request)
        if isinstance(result, Throttled):
            self.throttled_until_ms = max(self.throttled_until_ms, result.until_ms)
        self._answer(request, result, sent_ms)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.result()  # our own mistake ends the process loudly
            self.pump()

    def _answer(self, request: Request, result: Result, sent_ms: float) -> None:
        self._on_reply(Replied(request, result, sent_ms, self._boot_ms()))

    async def close(self) -> None:
        """Drop what was not sent and stop waiting for what was."""
        self._heap.clear()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
