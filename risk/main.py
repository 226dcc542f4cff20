"""The risk process: read, decide, act, record, acknowledge; one holder at a time.

`python -m risk.main` waits for the lease, rebuilds its state from Redis and the exchange, and then
carries out what risk/step.py decides. Only this file (and the shells it uses) opens sockets and
reads clocks. Without the lease it sends nothing; without Redis it still sends what reduces risk;
on SIGTERM it stops entries, finishes what is in flight, leaves resident stops where they are,
gives the lease back and exits 0.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final

import redis.exceptions
import uvloop

import clock
import config
import process
import streams
from risk.arming import limits_of
from risk.breakers import HALTED
from risk.events import Done, Refused, Result
from risk.exchange import Exchange
from risk.lease import WEATHER, Lease
from risk.ready import Ready
from risk.session import RENEW_MS, Session
from streams import Keys

STANDBY_MS: Final = 200.0  # between two looks at somebody else's lease
BEAT_S: Final = 0.2
TIMESTAMP: Final = -1021  # outside of recvWindow: the exchange's clock and ours disagree
SYNC_TRIES: Final = 100  # for the exchange's clock at the start, a tenth of a second apart
log = logging.getLogger("risk")


def boot_ms() -> float:
    return clock.boot_ns() / clock.NS_PER_MS


def is_passing(result: Result) -> bool:
    """Not an answer about us: no answer, not now, or a timestamp that the exchange mistrusts."""
    if isinstance(result, Refused):
        return result.code in (0, TIMESTAMP)
    return not isinstance(result, Done)


class Risk:
    """What lives as long as the process: clock, lease, connections. Sessions come and go."""

    def __init__(self, cfg: config.Config) -> None:
        self.cfg = cfg
        self.keys = Keys(cfg.mode, cfg.account)
        self.redis = streams.connect_async(cfg.redis_url, 3)
        self.lease = Lease(f"{cfg.node_id}:{process.BOOT_ID}", cfg.lease_ttl_ms)
        self.market = clock.MarketClock(float(clock.wall_ms()), clock.boot_ns())
        self.exchange = Exchange(
            cfg.rest_url,
            cfg.api_key,
            cfg.api_secret,
            self.market_ms,
            self.entry_window_ms,
            boot_ms,
            lambda: self.market.speed,
        )
        self.exchange.resync = self.sync_clock
        self.ready = Ready(self.exchange, cfg.ws_url)
        self.run_id = ""  # of the Redis that this process saw last
        self.epoch_seen = 0  # in it; an epoch never falls unless Redis loses its memory
        self.halted = False  # as Redis said when it was last known to be whole
        self.halt_again = False  # it was, and Redis may have forgotten it
        self.account_world = ""
        self.take_after_ms = 0.0  # boot time; before it the lease is not taken

    @asynccontextmanager
    async def beating(self) -> AsyncIterator[None]:
        """The heartbeat while we wait for others longer than the supervisor waits for us.

        Not for the steady loop: that one must be seen to hang.
        """

        async def beat() -> None:
            while True:
                process.beat()
                await asyncio.sleep(BEAT_S)

        task = asyncio.create_task(beat())
        try:
            yield
        finally:
            task.cancel()

    def market_ms(self) -> float:
        return self.market.now_ms(clock.boot_ns())

    def entry_window_ms(self) -> float:
        """What is left of the lease, less what our clock may be wrong: an entry's last fence."""
        error_ms = self.market.error_ms / self.market.speed
        left_ms = self.lease.valid_until_ms - boot_ms() - error_ms
        return min(float(self.cfg.recv_window_ms), left_ms)

    async def sync_clock(self) -> bool:
        """Measure the exchange's clock once; keep the better of close measurements."""
        if self.exchange.throttled:
            return False
        sent_ns = clock.boot_ns()
        told = await self.exchange.fetch("GET", "/fapi/v1/time")
        body = getattr(told, "body", None)
        if body is None:
            return False
        made = clock.from_server_time(
            float(body["serverTime"]), float(body.get("speed", 1.0)), sent_ns, clock.boot_ns()
        )
        old, here_ns = self.market, clock.boot_ns()
        apart_ms = abs(made.now_ms(here_ns) - old.now_ms(here_ns))
        if made.error_ms <= old.error_ms * 2 or apart_ms > made.error_ms or made.speed != old.speed:
            self.market = made
        return True

    async def world(self) -> str:
        """The venue's birth id in sim and paper, else the account."""
        if self.cfg.mode in ("sim", "paper"):
            told = await self.exchange.raw("/venue/v1/status")
            body: Any = getattr(told, "body", None)
            if body is None:
                process.fail(f"no venue at {self.cfg.rest_url}: start it with `aegis venue`.")
            return str(body["world"])
        return self.cfg.account

    async def check_account(self) -> None:
        """One-way mode, or one sentence; identity of the keyspace, or one sentence."""
        told = await self.exchange.fetch("GET", "/fapi/v1/positionSide/dual")
        for _ in range(SYNC_TRIES):  # a clock measured on a busy machine, a time-out: weather
            if process.stop or not is_passing(told):
                break
            await asyncio.sleep(0.1)
            await self.sync_clock()
            if not self.exchange.throttled:
                told = await self.exchange.fetch("GET", "/fapi/v1/positionSide/dual")
        if process.stop:
            return
        body: Any = getattr(told, "body", None)
        if body is None:
            process.fail(f"the exchange refused our keys: {getattr(told, 'reason', told)}.")
        if body["dualSidePosition"] in (True, "true"):
            process.fail("the account is in hedge mode: switch it to one-way mode to trade here.")
        self.account_world = await self.world()
        while not process.stop:
            try:
                await self.claim()
                return
            except WEATHER as error:
                log.warning("redis away at the start error=%s", type(error).__name__)
                await asyncio.sleep(STANDBY_MS / 1000)

    async def claim(self) -> None:
        """The keyspace is this account's, or one sentence. Raises what an unwell Redis raises."""
        once = streams.connect(self.cfg.redis_url, 1)
        try:
            await asyncio.to_thread(
                streams.ensure_identity, once, self.keys, self.account_world, clock.wall_ms()
            )
        except streams.IdentityError as error:
            process.fail(str(error))
        except redis.exceptions.OutOfMemoryError:  # compared already, unless there was nothing
            if not await asyncio.to_thread(once.exists, self.keys.schema):
                process.fail("Redis is full and empty of us: free memory there, then start again.")
            log.error("redis is full: entries wait until it has memory")
        finally:
            once.close()

    async def start(self) -> None:
        """The exchange's clock first, then who we are."""
        tries = 0
        while not (process.stop or await self.sync_clock()):
            tries += not self.exchange.throttled  # a pause that it asked for is no absence
            if tries >= SYNC_TRIES:
                process.fail(f"no exchange at {self.cfg.rest_url}: check the address, try again.")
            await asyncio.sleep(0.1)
        if not process.stop:
            await self.check_account()

    async def standby(self) -> int:
        """Wait until the lease is ours; its epoch, or 0 when asked to stop."""
        while not process.stop:
            pause_ms, epoch = STANDBY_MS, streams.FORGOTTEN
            try:
                await self.look_at_server()
                asked_ms = boot_ms()
                if asked_ms >= self.take_after_ms:
                    epoch = await streams.lease_take(
                        self.redis,
                        self.keys,
                        self.lease.holder,
                        self.cfg.lease_ttl_ms,
                        self.epoch_seen,
                    )
                    if epoch == 0:
                        self.halt_again = False  # somebody holds: it is told in Redis again
                    elif epoch != streams.FORGOTTEN:
                        self.lease.renewed(asked_ms)
                        self.epoch_seen = epoch
                        return epoch
                pause_ms = await self.lease_left_ms()
            except WEATHER as error:
                log.warning("redis away while standing by error=%s", type(error).__name__)
            await asyncio.sleep(pause_ms / 1000)
        return 0

    async def lease_left_ms(self) -> float:
        """Until the next try: the lease may run out before the next look is due."""
        try:
            left_ms = await streams.stand_by(self.redis, self.keys, self.lease.holder)
        except redis.exceptions.OutOfMemoryError:
            return STANDBY_MS  # a full Redis: nobody sees us stand by, and the lease passes on
        return min(STANDBY_MS, left_ms + 1.0) if left_ms > 0 else STANDBY_MS

    async def look_at_server(self) -> None:
        """A Redis that may have forgotten a lease (another one, restarted, rolled back, flushed):
        its holder must have run out first."""
        told: Any = await self.redis.info("server")
        run_id, ttl_ms = str(told["run_id"]), float(self.cfg.lease_ttl_ms)
        stored = int(await self.redis.get(self.keys.epoch) or 0)
        fell, self.epoch_seen = stored < self.epoch_seen, stored
        if run_id == self.run_id and not fell:
            self.halted = bool(await self.redis.hexists(self.keys.breakers, HALTED))
            return
        self.halt_again = self.halt_again or self.halted
        wait_ms = ttl_ms - float(told["uptime_in_seconds"]) * 1000.0  # no lease is older than that
        if wait_ms <= 0.0 and (self.run_id or not stored):  # a replica that was promoted, a first
            wait_ms = ttl_ms  # start, or a moment after a flush
        if run_id == self.run_id:
            wait_ms = ttl_ms
        wait_ms = max(0.0, wait_ms)
        self.run_id, self.take_after_ms = run_id, boot_ms() + wait_ms

    async def run(self) -> None:
        """Standby, hold, and again, until a signal ends it."""
        async with self.beating():
            await self.start()
        if not process.stop:
            self.ready.start(self.market.speed)
        while not process.stop:
            async with self.beating():
                epoch = await self.standby()
            if epoch:
                session = Session(self, epoch, limits_of(self.cfg))
                await session.run()
                log.warning("session ended epoch=%d stopped=%s", epoch, bool(process.stop))
        await self.ready.close()
        await self.exchange.close()
        await self.redis.aclose()


def main() -> None:
    try:
        cfg = config.load()
    except config.ConfigError as error:
        process.fail(str(error), 2)
    if not cfg.redis_url:
        process.fail("REDIS_URL is not set: name a Redis, or run `./aegis up`, which has one.", 2)
    if not cfg.api_key or not cfg.api_secret:
        process.fail("risk needs BINANCE_API_KEY and BINANCE_API_SECRET in this mode.", 2)
    process.setup_logging("risk", cfg.log_level, cfg.secrets)
    assert cfg.lease_ttl_ms * 0.6 > RENEW_MS

    async def serve() -> None:
        await Risk(cfg).run()

    process.install_signals()
    uvloop.run(serve())


if __name__ == "__main__":
    main()
