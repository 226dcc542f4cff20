"""One connection's subscriptions: what was asked on it, what was acked, and whether it lives.

An I/O shell around `next_request`, which compares what is wanted with what was asked: changes that
come while requests wait, or while the acks of earlier ones are under way, melt into one. A symbol
is acked when the answer to its newest SUBSCRIBE came; an older answer means nothing.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Final

import orjson

from clock import boot_ns
from feed import binance, decode
from feed.connection import Connection
from feed.walk import Table
from ring import CHANNELS

log = logging.getLogger("feed.session")

NS_PER_S: Final = 1_000_000_000
POLL_S: Final = 0.05  # while waiting for something that no event tells
SUBSCRIBE, UNSUBSCRIBE = "SUBSCRIBE", "UNSUBSCRIBE"
COLUMNS: Final = {
    route: tuple(CHANNELS.index(channel) for channel in channels)
    for route, channels in binance.CHANNELS_OF.items()
}


BACKOFF_S, BACKOFF_S_MAX = 0.25, 30.0
REPLACE_JITTER: Final = 0.05  # links are replaced up to this share of replace_s before it is over


@dataclass(frozen=True, slots=True)
class Pace:
    """Every wait of a link, in seconds; tests shorten them."""

    backoff_s: float = BACKOFF_S  # after the first failure, doubled after each
    backoff_s_max: float = BACKOFF_S_MAX
    refused_s: float = 5.0  # the same, when the exchange said that we did wrong
    refused_s_max: float = 300.0
    steady_s: float = 10.0  # a connection that lived so long starts the back-off anew
    connect_s_max: float = 10.0  # to the end of the handshake
    ack_s_max: float = 5.0  # for the answer to a request
    ping_s: float = 5.0  # a connection that says nothing for so long is asked for a sign of life
    silent_s: float = 10.0  # and given up after this
    replace_s: float = 85_800.0  # 23 h 50 min: the exchange closes at 24 h
    lag_s: float = 1.0  # a successor is read so much later than its predecessor
    overlap_s_min: float = 2.0  # from its last ack on; marks come every second
    overlap_s_max: float = 30.0
    leave_s: float = 5.0  # for the predecessor's goodbye
    retry_s: float = 1.0  # after an attempt to replace a connection that works, doubled
    retry_s_max: float = 60.0


def next_request(
    wanted: Collection[str], asked: Collection[str], again: Collection[str], symbols_max: int
) -> tuple[str, tuple[str, ...]] | None:
    """(method, symbols) of what to ask next; None when nothing is to ask. Leaving comes first."""
    leave = [name for name in asked if name not in wanted or name in again]
    if leave:
        return UNSUBSCRIBE, tuple(leave[:symbols_max])
    join = [name for name in wanted if name not in asked]
    return (SUBSCRIBE, tuple(join[:symbols_max])) if join else None


def unshown(heard: Table, acked: Mapping[int, int], side: int, columns: Collection[int]) -> int:
    """How many symbol × channels the other side brought since this one acked them, it not once.

    heard   [rows, 2 * channels] boot ns, as in the lane     acked   row -> boot ns
    """
    other, width = 1 - side, len(CHANNELS)
    return sum(
        1
        for row, acked_ns in acked.items()
        for column in columns
        if heard[row, side * width + column] == 0 and heard[row, other * width + column] > acked_ns
    )


@dataclass(slots=True)
class _Sent:
    """A request without an answer yet."""

    method: str
    names: tuple[str, ...]
    sent_ns: int


class Session:
    """`wanted` is the link's own table, row -> name, and changes under us; `wake` after that."""

    def __init__(
        self,
        connection: Connection,
        state: Table,
        route: str,
        wanted: dict[int, str],
        on_acked: Callable[[Session, tuple[int, ...]], None],
        pace: Pace,
    ) -> None:
        self.connection, self.state, self.route = connection, state, route
        self.side = int(state[decode.SIDE])
        self.acked: dict[str, int] = {}  # symbol -> boot ns of the answer that made it flow
        self.held = False  # nothing is read yet
        self._wanted, self._on_acked, self._pace = wanted, on_acked, pace
        self._asked: dict[str, int] = {}  # symbol -> id of its newest SUBSCRIBE
        self._again: set[str] = set()
        self._sent: dict[int, _Sent] = {}
        self._next_id = 1
        self._pinged_ns = 0
        self._wake = asyncio.Event()
        self._symbols_max = binance.NAMES_PER_MESSAGE_MAX // len(binance.streams(route, "x"))
        self.opened_s = asyncio.get_running_loop().time()
        self.task = asyncio.get_running_loop().create_task(self._pump())

    @property
    def alive(self) -> bool:
        return not self.connection.closed.done()

    @property
    def complete(self) -> bool:
        """Whether everything wanted was asked for."""
        return self._next() is None

    def wake(self) -> None:
        """Look again at what is wanted."""
        self._wake.set()

    def resubscribe(self, names: Collection[str]) -> None:
        """Leave and join again."""
        self._again.update(name for name in names if name in self._asked)
        self.wake()

    def acked_rows(self) -> dict[int, int]:
        """Row -> boot ns of its ack, of the rows that are wanted and acked."""
        return {row: self.acked[name] for row, name in self._wanted.items() if name in self.acked}

    def go(self) -> None:
        """Read what was held back; answers are waited for from now on."""
        self.held = False
        self.connection.last_ns = boot_ns()
        for sent in self._sent.values():
            sent.sent_ns = self.connection.last_ns
        self.connection.go()

    def failing(self, now_ns: int) -> str:
        """Why this connection should be given up, or nothing; asks a quiet one for life."""
        if self.held:
            return ""
        silent_ns = now_ns - self.connection.last_ns
        oldest_ns = min((sent.sent_ns for sent in self._sent.values()), default=now_ns)
        if silent_ns > self._pace.silent_s * NS_PER_S:
            return f"silent for {silent_ns / NS_PER_S:.1f} s"
        if now_ns - oldest_ns > self._pace.ack_s_max * NS_PER_S:
            return "a request stays unanswered"
        quiet_ns = now_ns - max(self.connection.last_ns, self._pinged_ns)
        if quiet_ns > self._pace.ping_s * NS_PER_S:
            self._pinged_ns = now_ns
            self.connection.ping()
        return ""

    async def leave(self) -> None:
        """Unsubscribe from everything, read what was still under way, close. Bounded."""
        self._wanted = {}
        self.wake()
        end_s = asyncio.get_running_loop().time() + self._pace.leave_s
        try:
            while self.alive and (self._asked or self._sent):
                if asyncio.get_running_loop().time() > end_s:
                    break
                await asyncio.sleep(POLL_S)
        finally:
            self.connection.close("replaced")

    def on_reply(self, payload: bytes) -> None:
        """An answer to a request, or a word from the server about one."""
        try:
            answer = orjson.loads(payload)
        except ValueError:
            answer = {}
        number = answer.get("id") if isinstance(answer, dict) else None
        sent = self._sent.pop(number, None) if isinstance(number, int) else None
        if "error" in answer or "code" in answer:
            # a symbol that was refused would stay silent for ever: begin anew, and not soon
            self.connection.status = binance.POLICY_CLOSES[0]
            self.connection.close(f"server says {payload[:200]!r}")
        elif sent is None:
            log.warning("server says route=%s text=%r", self.route, payload[:200])
        elif sent.method == SUBSCRIBE:
            self._join([name for name in sent.names if self._asked.get(name) == number])

    # --- inside ---

    def _join(self, names: Collection[str]) -> None:
        now_ns = boot_ns()
        self.acked.update(dict.fromkeys(names, now_ns))
        rows = tuple(row for row, name in self._wanted.items() if name in names)
        self._on_acked(self, rows)

    def _next(self) -> tuple[str, tuple[str, ...]] | None:
        wanted = dict.fromkeys(self._wanted.values())
        return next_request(wanted, self._asked, self._again, self._symbols_max)

    async def _pump(self) -> None:
        """Send requests at the allowed pace until the connection is lost."""
        while self.alive:
            self._wake.clear()
            request = self._next()
            if request is not None:
                self._send(*request)
                await asyncio.wait((self.connection.closed,), timeout=1 / binance.MESSAGES_PER_S)
                continue
            woken = asyncio.ensure_future(self._wake.wait())
            await asyncio.wait((woken, self.connection.closed), return_when=asyncio.FIRST_COMPLETED)
            woken.cancel()

    def _send(self, method: str, names: tuple[str, ...]) -> None:
        number = self._next_id
        self._next_id += 1
        for name in names:
            self.acked.pop(name, None)
            if method == SUBSCRIBE:
                self._asked[name] = number
            else:
                self._asked.pop(name, None)
                self._again.discard(name)
        streams = [stream for name in names for stream in binance.streams(self.route, name)]
        self._sent[number] = _Sent(method, names, boot_ns())
        (message,) = binance.requests(method, streams, number)
        self.connection.send(message)
