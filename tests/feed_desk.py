"""A whole feed in this process against a scripted exchange; the test plays node and brain."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import numpy as np
import uvloop
from scripted_exchange import Client, Exchange

import config
import ring as rings
from clock import boot_ns
from feed import warm
from feed.address import Address
from feed.main import Feed
from feed.rest import Rest
from feed.session import Pace
from records import CLOCK, GAP, HEALED, TRADE

warm.warm()  # a test that waits for kernels to compile would wait in vain

SECONDS_MAX = 60.0
FAST = Pace(
    backoff_s=0.02, backoff_s_max=0.05, refused_s=0.2, refused_s_max=0.2, steady_s=60.0,
    connect_s_max=0.5, ack_s_max=0.5, ping_s=0.1, silent_s=0.5, lag_s=0.1, overlap_s_min=0.1,
    overlap_s_max=2.0, leave_s=2.0, retry_s=0.02, retry_s_max=0.1,
)  # fmt: skip


async def until(true: Callable[[], bool], what: str = "") -> None:
    """Poll; the run as a whole is bounded."""
    while not true():
        await asyncio.sleep(0.005)


def run(work: Callable[[], Awaitable[None]]) -> None:
    """Run on feed's own kind of loop, bounded."""
    uvloop.run(asyncio.wait_for(work(), SECONDS_MAX))


class Desk:
    """One ring, one feed, what was published so far, and how many connections of it ended."""

    def __init__(
        self, folder: Path, exchange: Exchange, pace: Pace = FAST, slots: int = 1 << 16
    ) -> None:
        self.exchange, self.pace = exchange, pace
        self.ring = rings.create(folder / "ring", slots, 16, "test")
        self.parts: list[Any] = []
        self.feed: Feed
        self.address = Address()
        self.rest: Rest

    def want(self, row: int, name: str, state: int = rings.WANTED) -> None:
        """Write a row of the table, as the node does."""
        self.ring.symbols[row]["name"], self.ring.symbols[row]["state"] = name.encode(), state
        self.ring.words[rings.TABLE_VERSION] += 1

    def read(self) -> Any:
        """Everything published so far."""
        words = self.ring.words
        head, tail = int(words[rings.HEAD]), int(words[rings.TAIL])
        if head > tail:
            self.parts.append(self.ring.slots[np.arange(tail, head) & self.ring.mask].copy())
            words[rings.TAIL] = head
        return np.concatenate(self.parts) if self.parts else self.ring.slots[:0]

    def ids(self, row: int) -> list[int]:
        found = self.read()
        return [int(n) for n in found["id"][(found["kind"] == TRADE) & (found["symbol"] == row)]]

    def kinds(self, row: int, kind: int) -> int:
        found = self.read()
        return int(np.sum((found["kind"] == kind) & (found["symbol"] == row)))

    def count(self, name: str) -> int:
        return int(self.ring.feed_stats[rings.FEED_COUNTERS.index(name)])

    def clocks(self) -> Any:
        """Market times told so far, in ns."""
        found = self.read()
        return found["exch_ns"][found["kind"] == CLOCK]

    def whole(self) -> bool:
        """Every wanted symbol was announced and its last word is HEALED, not GAP."""
        found = self.read()
        for row, entry in enumerate(self.ring.symbols):
            if entry["state"] != rings.WANTED:
                continue
            kinds = found["kind"][found["symbol"] == row].tolist()
            words = [kind for kind in kinds if kind in (GAP, HEALED)]
            if not words or words[-1] != HEALED:
                return False
        return True

    def continuous(self, row: int) -> bool:
        """Each id once, none missing, as far as anything was published."""
        ids = self.ids(row)
        return len(ids) > 0 and ids == list(range(ids[0], ids[-1] + 1))

    def client(self, route: str = "market") -> Client:
        """The newest open connection of a route."""
        return self.exchange.open_clients(route)[-1]

    async def watch(self) -> None:
        """Look at the links more often than feed does by itself."""
        while True:
            for link in self.feed._links.values():
                link.watch(boot_ns())
            await asyncio.sleep(0.02)

    def received(self) -> int:
        return sum(self.count(f"{kind}s_received") for kind in ("trade", "quote", "mark"))

    def accounted(self) -> int:
        """What became of everything that was received."""
        names = ["trades", "quotes", "marks", "conflated", "waiting", "held", "dropped_trades"]
        names += [name for name in rings.FEED_COUNTERS if name.startswith("refused_")]
        return sum(self.count(name) for name in names)


@contextlib.asynccontextmanager
async def running(
    folder: Path, exchange: Exchange, pace: Pace = FAST, url: str = "", **settings: str
) -> AsyncIterator[Desk]:
    """A feed over the exchange's symbols, warmed up."""
    desk = Desk(folder, exchange, pace)
    for row, name in enumerate(exchange.names):
        desk.want(row, name)
    async with feeding(desk, url, **settings):
        yield desk
    desk.ring.close()


@contextlib.asynccontextmanager
async def feeding(desk: Desk, url: str = "", **settings: str) -> AsyncIterator[None]:
    """A feed on the desk's ring, from its start until every symbol is whole, and to its end."""
    address = url or desk.exchange.url("https" if desk.exchange.tls else "http")
    cfg = config.load({"AEGIS_VENUE_URL": address, **settings})
    desk.address = Address()
    async with Rest(cfg.rest_url, desk.ring.feed_stats, desk.address) as desk.rest:
        desk.feed = Feed(desk.ring, cfg, desk.rest, desk.address, desk.pace)
        tasks = [asyncio.ensure_future(desk.feed.run()), asyncio.ensure_future(desk.watch())]
        try:
            await until(desk.whole)
            yield
        finally:
            for task in tasks:
                task.cancel()
            ended = await asyncio.gather(*tasks, return_exceptions=True)
            del desk.feed
            for error in ended:
                assert isinstance(error, asyncio.CancelledError), error
