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
from typing import TYPE_CHECKING, Any, Final

import redis.exceptions
from msgspec.structs import replace

import clock
import process
import streams
from risk import journal
from risk.alarms import Alarms
from risk.arming import settings_hash
from risk.breakers import HALTED
from risk.dispatch import Dispatcher
from risk.events import (
    CommandRead,
    Commit,
    CommitFailed,
    Due,
    Effect,
    Event,
    HistoryRead,
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
from risk.instruments import Instrument
from risk.lease import WEATHER, is_weather
from risk.rebuild import read_history, rebuild
from risk.recovery import FORCED, START
from risk.snapshots import Snapshots
from risk.sockets import Books, Marks, keep
from risk.state import State, blocked, no_entries, settled
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
BATCH_MAX: Final = 64  # commits in one script: some milliseconds of Redis at most
EVENTS_A_TURN: Final = 256  # before the event loop breathes
SELF_CHECK_MS: Final = 60_000  # two periods of the reconcile job: nobody asked, so ask ourselves
log = logging.getLogger("risk")
STRAYS_MS: Final = 5_000.0  # between two looks for entries that a lost read took
STRAY_MS: Final = 15_000  # pending for longer than any decision waits
LOOK_S: Final = 0.02  # at the exchange's rules, at a first start
RETRY_S: Final = 0.2  # between two tries of a write
HISTORY_WAIT_MS: Final = 1_000.0  # for the exchange to tell what Redis may have forgotten


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
        self.outbox: deque[tuple[int, Commit]] = deque()  # with the number that it was sent with
        self.numbered = self.confirmed = 0
        self.writable = asyncio.Event()
        self.doubted = asyncio.Event()  # look at the lease now
        self.over = asyncio.Event()
        self.held_back: list[Event] | None = []  # user-stream frames until the snapshot is in
        self.user_open = asyncio.Event()
        self.dispatcher = Dispatcher(risk.exchange, self.feed, self.boot_ms)
        self.marks = Marks(self.cfg.ws_url, self.feed)
        self.books = Books(self.cfg.ws_url, self.feed)
        self.snapshots = Snapshots(
            risk.exchange, epoch, (self.boot_ms, risk.market_ms), self.feed, self.spawn
        )
        self.alarms = Alarms(self.boot_ms, lambda: self.feed(Due()))
        self.tasks: list[asyncio.Task[Any]] = []
        self.commits_dropped = 0
        self.events_dropped = 0
        self.failing = False
        self.trading_from_wall_ms = 0  # since when we have traded under this epoch
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

    def spawn(self, work: Coroutine[Any, Any, object]) -> None:
        self.tasks = [task for task in self.tasks if not task.done()]
        task = asyncio.create_task(work)
        task.add_done_callback(self._ended)
        self.tasks.append(task)

    def _ended(self, task: asyncio.Task[Any]) -> None:
        """A task of ours that fails is our own mistake: end loudly, be restarted."""
        if not task.cancelled() and task.exception() is not None:
            log.critical("task failed", exc_info=task.exception())
            self.over.set()

    async def open(self) -> None:
        """State from Redis, then ears open, what the exchange remembers, and the truth of now."""
        await self.risk.claim()
        await self.ensure_groups()
        await rebuild(self.redis, self.state)
        self.remember_halt()
        self.risk.ready.attach(self)
        await self.arm()
        while not self.risk.ready.instruments:
            if process.stop or self.over.is_set():
                return
            await asyncio.sleep(LOOK_S)
        self.rules_read(self.risk.ready.instruments)
        self.spawn(keep("marks", self.marks.run))
        self.spawn(keep("books", self.books.run))
        self.spawn(self.write())
        self.spawn(self.housekeep())
        self.spawn(self.tick())

    def rules_read(self, instruments: dict[str, Instrument]) -> None:
        self.state.instruments = instruments

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
        self.alarms.close()
        self.risk.ready.detach()
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
                self.alarms.ask(effect.at_ms)
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
        if left is not None:
            self.outbox.insert(self.place_of(commit), (0, left))
            self.writable.set()

    def place_of(self, commit: Commit) -> int:
        """One in a hurry is new and overtakes nothing that it depends on; what was sent already
        goes first, for its number is lower."""
        if not commit.hurry:
            return len(self.outbox)
        sent = (n for n, (number, _) in enumerate(self.outbox) if not number)
        return next(sent, len(self.outbox))

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
            batch, self.writing = self.next_writes(), True
            error: BaseException | None = None
            verdicts: list[streams.Verdict] = []
            try:
                async with asyncio.timeout(COMMIT_S):
                    verdicts, error = await streams.commit(
                        self.redis,
                        self.keys,
                        epoch=self.state.epoch,
                        writes=[
                            streams.Write(c.ops, c.ack, c.armed, c.unless, number)
                            for number, c in batch
                        ],
                        confirmed=self.confirmed,
                    )
            except WEATHER as weather:
                error = weather
            if verdicts and self.failing:
                self.failing = False
                self.feed(Trouble("redis was away"))
            if verdicts == ["forgotten"]:
                verdicts *= len(batch)  # none of them is written, now or later
            for (number, commit), verdict in zip(batch, verdicts, strict=False):
                self.decided(number, commit, verdict)
                if verdict == "stale":
                    return
            if error is not None:
                self.outbox.extendleft(reversed(batch[len(verdicts) + 1 :]))
                await self.not_written(*batch[len(verdicts)], error)
            self.writing = False

    def next_writes(self) -> list[tuple[int, Commit]]:
        """What goes to Redis in one script: entries come first in it, see the script."""
        batch: list[tuple[int, Commit]] = []
        while self.outbox and len(batch) < BATCH_MAX:
            if batch and self.outbox[0][1].armed and not batch[-1][1].armed:
                break
            number, commit = self.outbox.popleft()
            if not number:
                self.numbered += 1
                number = self.numbered
            batch.append((number, commit))
        return batch

    def decided(self, number: int, commit: Commit, verdict: streams.Verdict) -> None:
        """What follows from one commit's verdict."""
        then = self.released(commit)
        if verdict == "ok":
            self.confirmed = number
            self.carry_out(then)
            return
        lost = verdict in ("forgotten", "late")
        if lost:  # the exchange is the memory now
            self.state.forgotten, self.lease.valid_until_ms = True, 0.0
            self.doubted.set()
        self.feed(CommitFailed(replace(commit, then=then), "failed" if lost else verdict))
        if verdict == "stale":
            log.error("a newer holder exists epoch=%d", self.state.epoch)
            self.over.set()

    async def not_written(self, number: int, commit: Commit, error: BaseException) -> None:
        """Nobody knows whether it was written. An entry ends here, unsent; every other write is
        repeated under its number until it stands, and what it held back is protective."""
        mistake = not is_weather(error)
        if not self.failing or mistake:  # told once; `redis was away` tells the end of it
            log.error(
                "commit failed about=%s error=%s %s", commit.about, type(error).__name__, error
            )
        self.failing = True
        self.feed(CommitFailed(replace(commit, then=self.released(commit)), "failed"))
        if mistake:
            return
        waiting = [(n, left) for n, c in self.outbox if (left := self.without_redis(c)) is not None]
        if not commit.armed:
            waiting.insert(0, (number, replace(commit, then=())))
        self.outbox = deque(waiting)
        await asyncio.sleep(RETRY_S)

    # --- snapshots ---

    def user_opened(self) -> None:
        """The user stream is (back) open: hold its frames until a snapshot is taken in."""
        if not self.user_open.is_set():
            self.user_open.set()
            self.spawn(self.catch_up())
            return
        self.held_back = self.held_back or []
        self.feed(Trouble("the user stream was away"))

    async def catch_up(self) -> None:
        """What the exchange remembers and Redis may not comes first, then the truth of now."""
        exchange, end_ms, told = self.risk.exchange, self.boot_ms() + HISTORY_WAIT_MS, None
        while told is None and self.boot_ms() < end_ms:
            await exchange.calm()
            told = await read_history(exchange, self.redis, self.state, self.risk.market_ms())
            if told is None:
                await asyncio.sleep(RETRY_S)
        if told is None:  # to protect is more urgent than to book
            log.error("the exchange's history could not be read: the books may lack trades")
        else:
            self.feed(HistoryRead(told))
        self.snapshots.ask(Snap(START))

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
        keys, looked_ms = [self.keys.signals, self.keys.commands], self.boot_ms()
        pending: dict[str, str] | None = dict.fromkeys(keys, "0")
        while True:
            while len(self.inbox) >= INBOX_MAX:
                await asyncio.sleep(TICK_MS / 1000)
            try:
                if self.boot_ms() - looked_ms >= STRAYS_MS and pending is None and not self.outbox:
                    looked_ms = self.boot_ms()
                    pending = dict.fromkeys(keys, "0") if await self.strays(keys) else None
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
                    self.feed(Trouble("signals or commands were gone"))
                    await self.mend_groups()
                elif pending is None:
                    self.feed(Trouble("redis was away"))
                pending = dict.fromkeys(keys, "0")
                continue
            if not entries:
                pending = None  # read to its end
            for stream, entry_id, fields in entries:
                if pending is not None:
                    pending[stream] = entry_id
                if stream == self.keys.signals:
                    self.feed(SignalRead(entry_id, fields))
                elif not await self.answered(entry_id, fields):
                    self.feed(CommandRead(entry_id, fields))

    async def mend_groups(self) -> None:
        """Somebody deleted a stream or its group: told, and made again from its beginning. What is
        read twice is known by its id or older than the last reconciliation."""
        text = "signals or commands were gone with what nobody had read: made again"
        log.error(text)
        self.queue(Commit(tuple(journal.journal_ops(self.state, "ERROR", text, self.now()))))
        with contextlib.suppress(*WEATHER):  # the next read tells it again
            await self.ensure_groups()

    async def answered(self, entry_id: str, fields: dict[str, str]) -> bool:
        """A command that was carried out before its stream was read anew: only acknowledged."""
        try:
            known = await self.redis.hexists(self.keys.replies, fields.get("id") or entry_id)
            if known:
                await self.redis.xack(self.keys.commands, self.cfg.account, entry_id)
        except WEATHER:
            return False  # carried out once more, as after any lost acknowledgement
        return bool(known)

    async def strays(self, keys: list[str]) -> bool:
        """Is anything ours for longer than work takes? A late read gave it to nobody."""
        for key in keys:
            if await self.redis.xpending_range(
                key, self.cfg.account, "-", "+", 1, CONSUMER, idle=STRAY_MS
            ):
                log.warning("entries were given to nobody key=%s: read again", key)
                return True
        return False

    async def keep_lease(self) -> None:
        """Renew each second; ends the session when it has to give way to another or a new one."""
        while True:
            asked_ms = self.boot_ms()
            try:
                async with asyncio.timeout(RENEW_MS / 1000):
                    ours = await streams.lease_renew(
                        self.redis, self.keys, self.lease.holder, self.cfg.lease_ttl_ms
                    )
                    if ours and not self.state.forgotten:
                        self.lease.renewed(asked_ms)
                async with asyncio.timeout(RENEW_MS / 1000):
                    if await self.look_at_lease(ours):
                        self.over.set()
                        return
                    await self.look_at_armed()
            except WEATHER as error:
                log.warning("lease not renewed error=%s", type(error).__name__)
            again_ms = asked_ms + RENEW_MS
            if self.state.forgotten:
                again_ms = min(again_ms, self.risk.take_after_ms)
            self.doubted.clear()
            with contextlib.suppress(TimeoutError):
                pause_s = max(0.05, (again_ms - self.boot_ms()) / 1000)
                await asyncio.wait_for(self.doubted.wait(), pause_s)

    async def look_at_lease(self, ours: bool) -> bool:
        """Is this session over? At once where a successor's epoch stands. A Redis that restarted or
        lost its memory is given one lease: nobody enters meanwhile, what reduces risk goes on, and
        then a new session asks the exchange what Redis may have forgotten."""
        await self.risk.look_at_server()
        state = self.state
        if self.risk.epoch_seen > state.epoch:
            log.error("lease lost to a successor epoch=%d", state.epoch)
            return True
        waits = self.boot_ms() < self.risk.take_after_ms
        if waits and not state.forgotten:
            log.error("redis restarted or lost its memory epoch=%d", state.epoch)
            state.forgotten, self.lease.valid_until_ms = True, 0.0
        if not ours and not waits and not state.forgotten:
            log.error("lease lost epoch=%d", state.epoch)
            return True
        return state.forgotten and not waits

    def remember_halt(self) -> None:
        """A halt stands, also one that Redis forgot under this process's eyes."""
        if self.risk.halt_again and not self.state.halted:
            self.state.halted = True
            told = {HALTED: str(clock.wall_ms())}
            self.queue(Commit((("hset", self.keys.breakers, told),), "halt"))
        self.risk.halt_again = False

    async def look_at_armed(self) -> None:
        """May we enter?"""
        if self.state.to_arm:
            await self.arm()
        await self.read_armed()

    async def read_armed(self) -> None:
        told = await self.redis.get(self.keys.armed)
        if self.cfg.mode == "live":
            self.state.armed = told == settings_hash(self.state.limits, self.cfg.account)
        else:
            self.state.armed = told is not None
        self.state.armed = self.state.armed and not self.cfg.halt

    async def arm(self) -> None:
        """Other modes than live arm themselves; a halt stays, over restarts too."""
        self.state.to_arm = False
        if self.cfg.mode != "live" and not self.cfg.halt and not self.state.halted:
            try:
                await self.redis.set(self.keys.armed, "by itself")
            except redis.exceptions.OutOfMemoryError:
                log.error("redis is full: not armed")
                self.state.to_arm = True  # once more at the next look
        await self.read_armed()

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
            if not self.trading_from_wall_ms and not blocked(self.state, now):
                self.trading_from_wall_ms = now.wall_ms
            reason = no_entries(self.state, now)
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
            "trading_from_wall_ms": str(self.trading_from_wall_ms),
            "outgoing": str(self.dispatcher.busy),
            "requests": str(self.dispatcher.sent),
            "commits_waiting": str(len(self.outbox)),
            "commits_dropped": str(self.commits_dropped),
            "events_dropped": str(self.events_dropped),
            "used_weight": str(self.risk.exchange.used_weight),
            "throttled": str(int(self.risk.exchange.throttled)),
            "exchange": self.risk.exchange.words,
        }
