"""One holding of the lease, from rebuild to release: carries out the effects of `step`.

An I/O shell of risk/main.py. Events from Redis, the user stream, the market and the exchange's
answers meet in one queue and are stepped one at a time. Commits go out in order through one
writer; the loop never waits for Redis, so a hung Redis cannot stand between a fill and its stop.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections import deque
from collections.abc import Coroutine
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

import redis.exceptions

import clock
import process
import streams
from risk import journal
from risk.arming import settings_hash
from risk.dispatch import Dispatcher
from risk.events import (
    CommandRead,
    Commit,
    CommitFailed,
    Done,
    Effect,
    Event,
    MarksSeen,
    Note,
    Now,
    Pushed,
    QuoteSeen,
    Request,
    SignalRead,
    Snap,
    SnapshotTaken,
    Stopping,
    Tick,
    Timer,
    Trouble,
    Watch,
)
from risk.gate import Limits
from risk.instruments import parse_instruments
from risk.lease import WEATHER, is_weather
from risk.rebuild import rebuild
from risk.recovery import FORCED, START
from risk.snapshots import Snapshots
from risk.sockets import Books, Marks, UserStream, keep
from risk.state import State, blocked, settled
from risk.step import step

if TYPE_CHECKING:
    from risk.main import Risk

CONSUMER: Final = "risk"  # one name per account: the lease proves that the other is out
RENEW_MS: Final = 1_000
TICK_MS: Final = 100  # deadlines are asked for exactly; this is the floor for everything else
STATUS_MS: Final = 1_000
CLOCK_MS: Final = 2_000  # between two looks at the exchange's clock
BLOCK_MS: Final = 500
PENDING_COUNT: Final = 1_000  # of our own pending entries at once
STOP_MS: Final = 5_000  # to finish what is in flight
COMMIT_S: Final = 3.0  # a Redis that takes longer is treated as lost; nothing is repeated
HURRY_MS: Final = 100  # for a record that something protective waits for; naked_ms is 1,000
COMMITS_MAX: Final = 20_000  # waiting for Redis; beyond it the exchange is the only memory
INBOX_MAX: Final = 10_000  # events waiting; beyond it Redis is not read and marks are skipped
EVENTS_A_TURN: Final = 256  # before the event loop breathes
SELF_CHECK_MS: Final = 60_000  # two periods of the reconcile job: nobody asked, so ask ourselves
log = logging.getLogger("risk")
RETRY_S: Final = 0.2  # between two tries of a write


class Session:
    """Everything between taking the lease and losing or returning it."""

    def __init__(self, risk: Risk, epoch: int, limits: Limits) -> None:
        self.risk, self.cfg, self.keys = risk, risk.cfg, risk.keys
        self.redis, self.lease = risk.redis, risk.lease
        self.state = State(
            keys=self.keys,
            prefix=streams.prefix3(self.keys),
            group=self.cfg.account,
            epoch=epoch,
            limits=limits,
        )
        self.inbox: deque[Event] = deque()
        self.ready = asyncio.Event()
        self.outbox: deque[Commit] = deque()
        self.writable = asyncio.Event()
        self.over = asyncio.Event()
        self.held_back: list[Event] | None = []  # user-stream frames until the snapshot is in
        self.user_open = asyncio.Event()
        self.dispatcher = Dispatcher(risk.exchange, self.feed, self.boot_ms)
        self.marks = Marks(self.cfg.ws_url, self.feed)
        self.books = Books(self.cfg.ws_url, self.feed)
        self.snapshots = Snapshots(
            risk.exchange, epoch, (self.boot_ms, risk.market_ms), self.feed, self.spawn
        )
        self.run_id = ""
        self.was_halted = False
        self.tasks: list[asyncio.Task[None]] = []
        self.commits_dropped = 0
        self.events_dropped = 0
        self.failing = False
        self.hurried: dict[str, Commit] = {}  # by what they are about; `then` has not gone out
        self.writing = False  # a commit is out of the outbox and not decided yet

    # --- clocks and events ---

    def boot_ms(self) -> float:
        return clock.boot_ns() / clock.NS_PER_MS

    def now(self) -> Now:
        return Now(
            boot_ms=self.boot_ms(),
            market_ms=self.risk.market_ms(),
            valid_until_ms=self.lease.valid_until_ms,
            speed=self.risk.market.speed,
            wall_ms=clock.wall_ms(),
        )

    def feed(self, event: Event) -> None:
        """Queue an event for the loop."""
        if self.held_back is not None and isinstance(event, Pushed):
            self.held_back.append(event)
            return
        if len(self.inbox) >= INBOX_MAX and isinstance(event, QuoteSeen | MarksSeen | Tick):
            self.events_dropped += 1  # the next one says the same, newer
            return
        self.inbox.append(event)
        self.ready.set()

    # --- life ---

    async def run(self) -> None:
        """Rebuild, reconcile, trade; returns when the lease is lost or the process must stop."""
        self.spawn(self.keep_lease())
        try:
            async with self.risk.beating():
                await self.open()
            await self.loop()
        except WEATHER as error:
            log.error("session broken off error=%s %s", type(error).__name__, error)
        finally:
            await self.close()

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        self.tasks = [task for task in self.tasks if not task.done()]
        task = asyncio.create_task(work)
        task.add_done_callback(self._ended)
        self.tasks.append(task)

    def _ended(self, task: asyncio.Task[None]) -> None:
        """A task of ours that fails is our own mistake: end loudly, be restarted."""
        if not task.cancelled() and task.exception() is not None:
            log.critical("task failed", exc_info=task.exception())
            self.over.set()

    async def open(self) -> None:
        """State from Redis, rules from the exchange, ears open, then the truth."""
        await self.ensure_groups()
        await rebuild(self.redis, self.state)
        self.run_id = await self.server_run_id()
        await self.arm()
        exchange = self.risk.exchange
        paths = ("/fapi/v1/exchangeInfo", "/fapi/v1/leverageBracket")
        bodies: list[Any] = []
        while len(bodies) < len(paths):
            if process.stop or self.over.is_set():
                return
            if not exchange.throttled:
                told = await asyncio.gather(*(exchange.fetch("GET", path) for path in paths))
                bodies = [answer.body for answer in told if isinstance(answer, Done)]
            if len(bodies) < len(paths):
                await asyncio.sleep(RETRY_S)
        self.state.instruments = parse_instruments(*bodies)
        user = UserStream(
            exchange, self.cfg.ws_url, self.risk.market.speed, self.user_opened, self.pushed
        )
        self.spawn(keep("user", user.run))
        self.spawn(keep("marks", self.marks.run))
        self.spawn(keep("books", self.books.run))
        self.spawn(self.write())
        self.spawn(self.housekeep())
        self.spawn(self.tick())

    async def loop(self) -> None:
        """One event at a time, effects in order."""
        stop_at_ms = 0.0
        while not self.over.is_set():
            process.beat()
            for _ in range(EVENTS_A_TURN):
                if not self.inbox:
                    break
                event = self.inbox.popleft()
                self.carry_out(step(self.state, event, self.now()))
                if isinstance(event, SnapshotTaken):
                    self.snapshot_done(event)
            if process.stop:
                if not stop_at_ms:
                    stop_at_ms = self.boot_ms() + STOP_MS
                    self.carry_out(step(self.state, Stopping(), self.now()))
                if self.idle or self.boot_ms() >= stop_at_ms:
                    return
            self.ready.clear()
            if not self.inbox:
                try:
                    await asyncio.wait_for(self.ready.wait(), TICK_MS / 1000)
                except TimeoutError:
                    continue
            else:
                await asyncio.sleep(0)

    @property
    def idle(self) -> bool:
        """Nothing queued, under way or half protected: what is left stands by itself."""
        work = self.inbox or self.outbox or self.writing or self.dispatcher.busy
        return not work and settled(self.state)

    async def close(self) -> None:
        self.hurried.clear()
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)
        await self.dispatcher.close()
        self.lease.valid_until_ms = 0.0
        try:
            async with asyncio.timeout(1):
                await streams.lease_drop(self.redis, self.keys, self.lease.holder)
        except WEATHER as error:
            log.warning("lease not given back error=%s", type(error).__name__)

    # --- effects ---

    def carry_out(self, effects: list[Effect] | tuple[Effect, ...]) -> None:
        for effect in effects:
            if isinstance(effect, Request):
                self.dispatcher.put(effect)
            elif isinstance(effect, Commit):
                self.queue(effect)
            elif isinstance(effect, Timer):
                delay_s = max(0.0, effect.at_ms - self.boot_ms()) / 1000
                asyncio.get_running_loop().call_later(delay_s, self.feed, Tick())
            elif isinstance(effect, Note):
                log.log(logging.getLevelName(effect.level), effect.text)
            elif isinstance(effect, Watch):
                self.books.want(effect.symbols)
            elif isinstance(effect, Snap):
                self.snapshots.ask(effect)

    def queue(self, commit: Commit) -> None:
        if len(self.outbox) >= COMMITS_MAX:
            self.commits_dropped += 1
            self.feed(CommitFailed(commit, "failed"))
            return
        if commit.hurry:
            self.hurried[commit.about] = commit
            asyncio.get_running_loop().call_later(HURRY_MS / 1000, self.go_ahead, commit)
        left = self.without_redis(commit) if self.failing else commit
        if left is not None:  # one in a hurry is new: it overtakes nothing that it depends on
            (self.outbox.appendleft if commit.hurry else self.outbox.append)(left)
            self.writable.set()

    def go_ahead(self, commit: Commit) -> None:
        """The write takes long: what protects waits no longer."""
        if not self.over.is_set():
            self.carry_out(self.released(commit))

    def released(self, commit: Commit) -> tuple[Effect, ...]:
        """What waited for this write; of one in a hurry it is given out once."""
        if commit.hurry and self.hurried.pop(commit.about, None) is None:
            return ()
        return commit.then

    def without_redis(self, commit: Commit) -> Commit | None:
        """While Redis takes nothing: an entry ends here, unsent; what a record held back and
        what protects goes out now. The record itself waits."""
        then = self.released(commit)
        if commit.armed or then:
            self.feed(CommitFailed(replace(commit, then=then), "failed"))
        return None if commit.armed else replace(commit, then=())

    async def write(self) -> None:
        """The one writer: commits in order, each once; a lost reply is never a second write."""
        while True:
            while not self.outbox:
                self.writable.clear()
                await self.writable.wait()
            commit, self.writing = self.outbox.popleft(), True
            try:
                async with asyncio.timeout(COMMIT_S):
                    verdict = await streams.commit(
                        self.redis,
                        self.keys,
                        epoch=self.state.epoch,
                        ops=commit.ops,
                        ack=commit.ack,
                        armed=commit.armed,
                        unless=commit.unless,
                    )
            except WEATHER as error:
                await self.not_written(commit, error)
                self.writing = False
                continue
            if self.failing:
                self.failing = False
                self.feed(Trouble("redis was away"))
            self.writing = False
            then = self.released(commit)
            if verdict == "ok":
                self.carry_out(then)
                continue
            self.feed(CommitFailed(replace(commit, then=then), verdict))
            if verdict == "stale":
                log.error("a newer holder exists epoch=%d", self.state.epoch)
                self.over.set()
                return

    async def not_written(self, commit: Commit, error: BaseException) -> None:
        """Nobody knows whether it was written. An entry ends here, unsent; every other write is
        repeated until it stands: its operations bear that, and what it held back is protective."""
        mistake = not is_weather(error)
        if not self.failing or mistake:  # told once; `redis was away` tells the end of it
            log.error(
                "commit failed about=%s error=%s %s", commit.about, type(error).__name__, error
            )
        self.failing = True
        self.feed(CommitFailed(replace(commit, then=self.released(commit)), "failed"))
        if mistake:
            return
        waiting = [left for c in self.outbox if (left := self.without_redis(c)) is not None]
        if not commit.armed:
            waiting.insert(0, replace(commit, then=()))
        self.outbox = deque(waiting)
        await asyncio.sleep(RETRY_S)

    # --- snapshots ---

    def user_opened(self) -> None:
        """The user stream is (back) open: hold its frames until a snapshot is taken in."""
        if not self.user_open.is_set():
            self.user_open.set()
            self.snapshots.ask(Snap(START))
            return
        self.held_back = self.held_back or []
        self.feed(Trouble("the user stream was away"))

    def pushed(self, frame: dict[str, Any]) -> None:
        self.feed(Pushed(frame))

    def snapshot_done(self, event: SnapshotTaken) -> None:
        """Frames that waited for the truth are counted now; then the streams are read."""
        if event.reason not in FORCED:
            return
        waiting, self.held_back = self.held_back or [], None
        for frame in waiting:
            self.feed(frame)
        if event.reason == START:
            self.spawn(self.read())

    # --- Redis ---

    async def ensure_groups(self) -> None:
        """A full Redis refuses to say whether they exist: reading will tell."""
        for key in (self.keys.signals, self.keys.commands):
            try:
                await streams.ensure_group(self.redis, key, self.cfg.account, "0")
            except redis.exceptions.OutOfMemoryError:
                log.error("redis is full: group not made key=%s", key)

    async def read(self) -> None:
        """Signals and commands; our own pending ones first, and after every connection error."""
        keys = [self.keys.signals, self.keys.commands]
        pending: dict[str, str] | None = dict.fromkeys(keys, "0")
        while True:
            while len(self.inbox) >= INBOX_MAX:
                await asyncio.sleep(TICK_MS / 1000)
            try:
                entries = await streams.read_group(
                    self.redis,
                    keys,
                    self.cfg.account,
                    CONSUMER,
                    own_pending_after=pending,
                    count=64 if pending is None else PENDING_COUNT,
                    block_ms=BLOCK_MS if pending is None else None,
                )
            except WEATHER as error:
                if pending is None:
                    log.warning("redis read failed error=%s", error)
                await asyncio.sleep(RETRY_S)
                if "NOGROUP" in str(error):
                    with contextlib.suppress(*WEATHER):  # the next read tells it again
                        await self.ensure_groups()
                if pending is None:
                    self.feed(Trouble("redis was away"))
                pending = dict.fromkeys(keys, "0")
                continue
            if not entries:
                pending = None  # read to its end
            for stream, entry_id, fields in entries:
                if pending is not None:
                    pending[stream] = entry_id
                made = SignalRead if stream == self.keys.signals else CommandRead
                self.feed(made(entry_id, fields))

    async def server_run_id(self) -> str:
        told: Any = await self.redis.info("server")
        return str(told["run_id"])

    async def keep_lease(self) -> None:
        """Renew each second; a lease that is no longer ours ends the session."""
        while True:
            asked_ms = self.boot_ms()
            try:
                async with asyncio.timeout(RENEW_MS / 1000):
                    ours = await streams.lease_renew(
                        self.redis, self.keys, self.lease.holder, self.cfg.lease_ttl_ms
                    )
                    if not ours:
                        log.error("lease lost epoch=%d", self.state.epoch)
                        self.over.set()
                        return
                    self.lease.renewed(asked_ms)
                    await self.look_at_redis()
            except WEATHER as error:
                log.warning("lease not renewed error=%s", type(error).__name__)
            await asyncio.sleep(max(0.05, (asked_ms + RENEW_MS - self.boot_ms()) / 1000))

    async def look_at_redis(self) -> None:
        """Is it the same server, and may we enter?"""
        run_id = await self.server_run_id()
        if self.run_id and run_id != self.run_id:
            self.state.entries_after_ms = self.boot_ms() + self.cfg.lease_ttl_ms
            self.feed(Trouble("redis restarted"))
        self.run_id = self.risk.run_id = run_id
        freed = self.was_halted and not self.state.halted
        self.was_halted = self.state.halted
        if freed:
            await self.arm()
        await self.look_at_armed()

    async def look_at_armed(self) -> None:
        told = await self.redis.get(self.keys.armed)
        if self.cfg.mode == "live":
            self.state.armed = told == settings_hash(self.state.limits, self.cfg.account)
        else:
            self.state.armed = told is not None
        self.state.armed = self.state.armed and not self.cfg.halt

    async def arm(self) -> None:
        """Other modes than live arm themselves; a halt stays, over restarts too."""
        self.was_halted = self.state.halted
        if self.cfg.mode != "live" and not self.cfg.halt and not self.state.halted:
            try:
                await self.redis.set(self.keys.armed, "by itself")
            except redis.exceptions.OutOfMemoryError:
                log.error("redis is full: not armed")
                self.was_halted = True  # so that it is tried again
        await self.look_at_armed()

    # --- housekeeping ---

    async def tick(self) -> None:
        while True:
            await asyncio.sleep(TICK_MS / 1000)
            self.feed(Tick())
            self.dispatcher.pump()

    async def housekeep(self) -> None:
        """Status each second; the exchange's clock; a reconcile when nobody asked for one."""
        synced_ms, told_ms, told = 0.0, 0.0, "nothing yet"
        while True:
            await asyncio.sleep(TICK_MS / 1000)
            now = self.now()
            reason = blocked(self.state, now)
            if reason == told and now.boot_ms - told_ms < STATUS_MS:
                continue
            told, told_ms = reason, now.boot_ms
            ops = journal.portfolio_ops(self.state, now)
            ops += journal.status_ops(self.state, self.shell_fields(), now)
            if len(self.outbox) < COMMITS_MAX // 2:
                self.queue(Commit(tuple(ops), "status"))
            if now.boot_ms - synced_ms >= CLOCK_MS:
                synced_ms = now.boot_ms
                await self.risk.sync_clock()
            since_ms = (now.market_ms - self.state.last_reconcile_ms) / now.speed
            if self.state.last_reconcile_ms and since_ms >= SELF_CHECK_MS:
                self.snapshots.ask(Snap("reconcile"))

    def shell_fields(self) -> dict[str, str]:
        """What `status` tells of this process."""
        return {
            "holder": self.lease.holder,
            "pid": str(os.getpid()),
            "outgoing": str(self.dispatcher.busy),
            "requests": str(self.dispatcher.sent),
            "commits_waiting": str(len(self.outbox)),
            "commits_dropped": str(self.commits_dropped),
            "events_dropped": str(self.events_dropped),
            "used_weight": str(self.risk.exchange.used_weight),
            "throttled": str(int(self.risk.exchange.throttled)),
        }
