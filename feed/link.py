"""One route's link to the exchange: connect, subscribe, reconnect, replace.

An I/O shell. A link lives as long as feed; its connections come and go with jittered, doubling,
bounded back-off, longer where the exchange said that we did wrong. A connection that works is
replaced before the exchange ends it at 24 h, or when a symbol of it stays silent:

    old   =========================================== leaves: unsubscribes, reads the rest, closes
    new        dial . subscribe . lag_s . read =======================================
               nothing is read before ^   until every symbol × channel is acked and shown ^

The lag makes the overlap harmless: what the successor brings first is older than what its
predecessor has brought by then, so that ids refuse it and no hole can lie between the two. A
successor that fails costs nothing: it is tried again while the old connection goes on.
"""

from __future__ import annotations

import asyncio
import logging
import random
import ssl
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from urllib.parse import urlsplit

import numpy as np
from websockets.exceptions import InvalidHandshake

from feed import binance, decode
from feed.address import Address
from feed.connection import STATE_WORDS, Connection, default_tls
from feed.lane import STAT, Lane
from feed.session import (
    BACKOFF_S,
    BACKOFF_S_MAX,
    COLUMNS,
    POLL_S,
    REPLACE_JITTER,
    Pace,
    Session,
    unshown,
)
from feed.walk import Table
from ring import CHANNELS

log = logging.getLogger("feed.link")

DOUBLINGS_MAX = 16  # beyond every bound; keeps the power small


def backoff_s(
    failures: int, jitter: float, first_s: float = BACKOFF_S, most_s: float = BACKOFF_S_MAX
) -> float:
    """Wait before attempt number `failures` + 1; jitter in 0..1 spreads it over half to all."""
    return float(min(first_s * 2.0 ** min(failures, DOUBLINGS_MAX), most_s) * (0.5 + 0.5 * jitter))


@dataclass(frozen=True, slots=True)
class End:
    """How a connection, or the attempt to make one, ended."""

    reason: str
    refused: bool = False  # by the exchange's word: wait longer
    lived_s: float = 0.0


class Link:
    """Wanted symbols of one route, over one connection, two while it is being replaced."""

    def __init__(
        self,
        url: str,
        route: str,
        lane: Lane,
        hist: Table,
        on_down: Callable[[Link], None],
        on_acked: Callable[[Link, tuple[int, ...]], None],
        address: Address,
        pace: Pace | None = None,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self.url, self.route = url, route
        self.wanted: dict[int, str] = {}  # row -> name
        self.primary: Session | None = None
        self.newcomer: Session | None = None
        self._lane, self._hist, self._address = lane, hist, address
        self._on_down, self._on_acked = on_down, on_acked
        self._pace = pace or Pace()
        self._tls = tls
        self._side = 1
        self._failures = 0
        self._why = ""  # for being replaced ahead of time
        self._changed = asyncio.Event()  # another primary, or a reason to replace it
        self._replaced = asyncio.Event()  # the primary left of its own will
        self._replace_at_s = 0.0
        self._up_since_s = 0.0  # a replaced connection's successor goes on with its life

    @property
    def up(self) -> bool:
        return self.primary is not None

    @property
    def newest_ms(self) -> int:
        """Exchange time that the link has reached; 0 while it is down or has said nothing."""
        return 0 if self.primary is None else int(self.primary.state[decode.NEWEST_HERE_MS])

    def acked_ns(self, row: int) -> int:
        """Boot time since when the row's streams flow, 0 when they do not."""
        name = self.wanted.get(row)
        if self.primary is None or name is None:
            return 0
        return self.primary.acked.get(name, 0)

    def subscribe(self, rows: dict[int, str]) -> None:
        """Want these symbols, now and after each reconnect."""
        self.wanted.update(rows)
        for side in (0, 1):
            self._unhear(rows, side)
        self._wake()
        flowing = tuple(row for row in rows if self.acked_ns(row))
        if flowing:  # a symbol that changed its row before anybody unsubscribed it
            self._on_acked(self, flowing)

    def unsubscribe(self, row: int) -> None:
        """Want this symbol no more."""
        if self.wanted.pop(row, None) is not None:
            self._wake()

    def resubscribe(self, rows: Iterable[int]) -> None:
        """Leave and join again; for symbols that were acked and stay silent."""
        names = [self.wanted[row] for row in rows if row in self.wanted]
        if self.primary is not None and names:
            self.primary.resubscribe(names)
            self._lane.stats[STAT["resubscribes"]] += len(names)

    def reconnect(self, reason: str) -> None:
        """Give the present connection up."""
        if self.primary is not None:
            self.primary.connection.close(reason)

    def replace(self, reason: str) -> None:
        """Make a successor of the present connection ahead of time."""
        if self.primary is not None and self.newcomer is None:
            self._why = reason
            self._changed.set()

    def watch(self, now_ns: int) -> None:
        """Give up connections that say nothing or leave a request unanswered."""
        for session in self._sessions():
            reason = session.failing(now_ns)
            if reason:
                session.connection.close(reason)

    async def run(self) -> None:
        """Keep one connection up for ever; ends by cancellation."""
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._keep_up())
                group.create_task(self._keep_young())
        finally:
            sessions, was_up = self._sessions(), self.up
            tasks = [session.task for session in sessions]
            for session in sessions:
                session.connection.close("feed stops")
            self.primary = self.newcomer = None
            if was_up:
                self._on_down(self)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    # --- one connection after the other ---

    async def _keep_up(self) -> None:
        while True:
            opened = await self._open(hold=False)
            if isinstance(opened, Session):
                self._up_since_s = opened.opened_s
                self._promote(opened)
                opened = await self._serve(opened)
            await asyncio.sleep(self._note(opened))

    async def _serve(self, session: Session) -> End:
        """Until a primary is lost that has no successor."""
        while True:
            await self._until_lost_or_replaced(session)
            if self.primary is not None and self.primary is not session:
                session = self.primary  # the old one leaves by itself
                continue
            if not session.task.done():
                continue
            session.task.result()  # a pump ends with its connection: else it is our own mistake
            self._lane.stats[STAT["reconnects"]] += 1
            end = self._end_of(session)
            successor = self.newcomer if self.newcomer and self.newcomer.alive else None
            self.primary = self.newcomer = None
            self._on_down(self)
            if successor is None:
                return end
            self._note(end, successor="yes")
            session, self._up_since_s = successor, successor.opened_s
            session.go()
            self._promote(session)
            self._on_acked(self, tuple(session.acked_rows()))

    async def _until_lost_or_replaced(self, session: Session) -> None:
        replaced = asyncio.get_running_loop().create_task(self._replaced.wait())
        try:
            await asyncio.wait((session.task, replaced), return_when=asyncio.FIRST_COMPLETED)
        finally:
            replaced.cancel()
        self._replaced.clear()

    def _promote(self, session: Session) -> None:
        self.primary = session
        age_s = self._pace.replace_s * (1 - REPLACE_JITTER * random.random())
        self._replace_at_s = session.opened_s + age_s
        self._why = ""
        self._changed.set()

    def _end_of(self, session: Session) -> End:
        connection = session.connection
        lived_s = asyncio.get_running_loop().time() - self._up_since_s
        return End(connection.reason, binance.is_refusal(connection.status), lived_s)

    def _note(self, end: End, successor: str = "no") -> float:
        """Tell why a connection ended, once; how long to wait before the next one."""
        pace = self._pace
        self._failures = 0 if end.lived_s >= pace.steady_s else self._failures + 1
        bounds = (pace.backoff_s, pace.backoff_s_max)
        if end.refused:
            bounds = (pace.refused_s, pace.refused_s_max)
        wait_s = backoff_s(max(self._failures - 1, 0), random.random(), *bounds)
        log.warning(
            "link down route=%s reason=%s lived_s=%.1f failures=%d successor=%s wait_s=%.2f",
            self.route, end.reason, end.lived_s, self._failures, successor, wait_s,
        )  # fmt: skip
        return wait_s

    async def _open(self, hold: bool) -> Session | End:
        """Dial and shake hands, when the address may."""
        loop = asyncio.get_running_loop()
        while (wait_s := self._address.dial_wait_s(loop.time())) > 0:
            await asyncio.sleep(wait_s)
        self._address.dialled(loop.time())
        parts = urlsplit(self.url)
        secure = parts.scheme == "wss"
        self._side = 1 - self._side
        state = np.zeros(STATE_WORDS, np.int64)
        state[decode.SIDE] = self._side
        sessions: list[Session] = []  # made once the connection is open
        connection = Connection(
            self.url, self._lane, state, self._hist, lambda data: sessions[0].on_reply(data), hold
        )
        try:
            async with asyncio.timeout(self._pace.connect_s_max):
                await loop.create_connection(
                    lambda: connection,
                    parts.hostname or "",
                    parts.port or (443 if secure else 80),
                    ssl=(self._tls or default_tls()) if secure else None,
                )
                await connection.opened
        except (OSError, InvalidHandshake) as error:  # refused, DNS, TLS, time-out, no upgrade
            connection.close()
            return self._not_opened(connection, error)
        except asyncio.CancelledError:
            connection.close("feed stops")
            raise
        self._lane.stats[STAT["connects"]] += 1
        self._unhear(self.wanted, self._side)
        sessions.append(
            Session(connection, state, self.route, self.wanted, self._on_session_acked, self._pace)
        )
        sessions[0].held = hold
        return sessions[0]

    def _not_opened(self, connection: Connection, error: Exception) -> End:
        status = connection.status
        if status in (binance.TOO_MANY, binance.BANNED):
            address = self._address
            wait_s = binance.handshake_wait_s(connection.answer, address.market_ms, address.speed)
            address.refused(status, wait_s, asyncio.get_running_loop().time(), by_rest=False)
        said = connection.reason or f"{type(error).__name__}: {error or 'no answer in time'}"
        return End(said, binance.is_refusal(status))

    # --- one beside the other ---

    async def _keep_young(self) -> None:
        """Replace the primary when it is old or somebody asks, one link of the feed at a time."""
        failures = 0
        while True:
            await self._due()
            async with self._address.replacing:
                if not self._is_due():
                    continue  # it died while others were replaced
                why, problem = self._why or "age", await self._replace()
            self._why = ""
            if not problem:
                failures = 0
                continue
            wait_s = backoff_s(
                failures, random.random(), self._pace.retry_s, self._pace.retry_s_max
            )
            failures += 1
            log.warning(
                "link not replaced route=%s why=%s reason=%s failures=%d wait_s=%.2f",
                self.route, why, problem, failures, wait_s,
            )  # fmt: skip
            await asyncio.sleep(wait_s)

    def _is_due(self) -> bool:
        now_s = asyncio.get_running_loop().time()
        return self.primary is not None and (bool(self._why) or now_s >= self._replace_at_s)

    async def _due(self) -> None:
        while not self._is_due():
            self._changed.clear()
            left_s = self._replace_at_s - asyncio.get_running_loop().time()
            try:
                async with asyncio.timeout(left_s if self.primary is not None else None):
                    await self._changed.wait()
            except TimeoutError:
                continue

    async def _replace(self) -> str:
        """Open a successor, let it catch up, let the old one go; what went wrong, or nothing."""
        old = self.primary
        assert old is not None
        opened = await self._open(hold=True)
        if isinstance(opened, End):
            return opened.reason
        if self.primary is not old:  # lost meanwhile: it has another successor
            opened.connection.close("not needed")
            return ""
        self.newcomer = opened
        problem = await self._overlap(old, opened)
        if self.newcomer is not opened:  # promoted ahead of time: the old one was lost
            return ""
        self.newcomer = None
        if problem:
            opened.connection.close(problem)
            return opened.connection.reason
        self._promote(opened)
        self._replaced.set()
        self._lane.stats[STAT["rotations"]] += 1
        await old.leave()
        return ""

    async def _overlap(self, old: Session, new: Session) -> str:
        """Until everything is subscribed on `new`, read, and shown; what went wrong, or nothing."""
        loop, pace = asyncio.get_running_loop(), self._pace
        end_s = loop.time() + pace.lag_s + pace.overlap_s_max
        asked_s = acked_s = loop.time()
        while self.newcomer is new and new.alive:
            now_s = loop.time()
            missing = len(self.wanted) - len(new.acked_rows())
            if not new.complete:
                asked_s = now_s
            elif new.held and now_s >= asked_s + pace.lag_s:
                new.go()
            if missing:
                acked_s = now_s
            hidden = unshown(self._lane.heard, new.acked_rows(), new.side, COLUMNS[self.route])
            shown = not new.held and not missing and not hidden
            if shown and now_s >= acked_s + pace.overlap_s_min:
                return ""
            if now_s > end_s:
                return f"{missing} symbols not acked, {hidden} channels not shown"
            await asyncio.sleep(POLL_S)
        return new.connection.reason or "lost"

    # --- inside ---

    def _on_session_acked(self, session: Session, rows: tuple[int, ...]) -> None:
        if session is self.primary:
            self._on_acked(self, rows)

    def _sessions(self) -> list[Session]:
        return [session for session in (self.primary, self.newcomer) if session is not None]

    def _wake(self) -> None:
        for session in self._sessions():
            session.wake()

    def _unhear(self, rows: Iterable[int], side: int) -> None:
        columns = [side * len(CHANNELS) + column for column in COLUMNS[self.route]]
        self._lane.heard[np.ix_(list(rows), columns)] = 0
