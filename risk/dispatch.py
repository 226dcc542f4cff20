"""Outgoing work: one heap by urgency, few requests at a time, room always left for protection.

An I/O shell of risk/main.py. A stop never queues behind an entry or a query: the last places are
kept for what reduces risk. While the exchange wants quiet (429, 418) only that goes out. Entries
end at 80 % of the weight and of the orders that the exchange allows.
"""

from __future__ import annotations

import asyncio
import heapq
import logging
from collections.abc import Callable
from typing import Final

from risk.events import CANCEL, ENTRY, Refused, Replied, Request, Result, Throttled, Unknown
from risk.exchange import Exchange

CONCURRENT_MAX: Final = 8  # requests under way
RESERVED: Final = 3  # of them kept for stops, exits and cancels
QUEUED_MAX: Final = 2_000  # beyond it the least urgent is refused
ORDER_PATHS: Final = frozenset({"/fapi/v1/order", "/fapi/v1/algoOrder"})  # a POST counts
ENTRY_WAIT_MS: Final = 1_000.0  # real time in the queue; an entry's price is older after it
assert RESERVED < CONCURRENT_MAX
log = logging.getLogger("risk")


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
        self._heap: list[tuple[int, int, float, Request]] = []  # urgency, number, boot ms of put
        self._tasks: set[asyncio.Task[None]] = set()
        self._made = 0
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
        heapq.heappush(self._heap, (request.priority, self._made, self._boot_ms(), request))
        self.pump()

    def pump(self) -> None:
        """Start what may start now; call again when time has passed."""
        self._refuse_late()
        while self._heap and len(self._tasks) < CONCURRENT_MAX:
            priority, _, _, request = self._heap[0]
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

    @property
    def throttled_until_ms(self) -> float:
        return self._exchange.throttled_until_ms

    def _refuse_late(self) -> None:
        """An entry that waited is refused, wherever it stands, and so is what was asked for one:
        an exchange that stood still is not to be met by questions that nobody has any more."""
        oldest_ms = self._boot_ms() - ENTRY_WAIT_MS
        late = [item for item in self._heap if item[0] == ENTRY and item[2] < oldest_ms]
        if not late:
            return
        self._heap = [item for item in self._heap if item not in late]
        heapq.heapify(self._heap)
        for _, _, _, request in late:
            self._answer(request, Refused(0, "waited too long to be sent"), self._boot_ms())

    def _refusal(self, request: Request) -> Result | None:
        """Entries have no claim on a throttled or nearly used-up address."""
        if request.priority != ENTRY:
            return None
        if self._boot_ms() < self.throttled_until_ms:
            return Throttled(self.throttled_until_ms, "the exchange wants quiet")
        weight, speed = self._exchange.used_weight, self._exchange.speed
        why = self._exchange.budget.entry_refusal(weight, self._boot_ms(), speed)
        return Refused(0, why) if why else None

    async def _run(self, request: Request) -> None:
        sent_ms = self._boot_ms()
        self.sent += 1
        if request.method == "POST" and request.path in ORDER_PATHS:
            self._exchange.budget.sent(sent_ms)
        try:
            result = await self._exchange.call(request)
        except Exception as error:  # our own mistake, told loudly; what the request did is unknown
            log.critical("request failed purpose=%s", request.purpose, exc_info=error)
            result = Unknown(f"our mistake {type(error).__name__}")
        self._answer(request, result, sent_ms)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            self.pump()

    def _answer(self, request: Request, result: Result, sent_ms: float) -> None:
        self._on_reply(Replied(request, result, sent_ms, self._boot_ms()))

    async def close(self) -> None:
        """Drop what was not sent and stop waiting for what was."""
        self._heap.clear()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
