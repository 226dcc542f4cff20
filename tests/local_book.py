"""A local book kept by ccxt.pro against the venue's own, for as long as it is told to.

`python -m tests.local_book --minutes 10` starts a venue, keeps watch_order_book, and stops the
market's clock now and then: when the client's book stands at the venue's update id, all levels of
both sides must be equal. Exit 1 at the first difference, or when too few comparisons were made.
A pause that falls between two looks of the stream compares nothing and is counted.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ccxt.pro

from tests.ccxt_desk import SYMBOL, pointed
from tests.test_venue_server import Running

OPTIONS = ("--symbols", "2", "--rate", "600", "--seed", "5", "--speed", "20")
SETTLE_S = 0.05  # after a pause the client reads what was sent before it
CAUGHT_UP_S = 5.0  # and is waited for so long
LEVELS = 1000
UPDATES_EACH = 10  # a run that ends by count has had so many updates for each comparison


@dataclass(slots=True)
class Told:
    """What a run saw; `different` names the first side and level that were not equal."""

    updates: int = 0
    compared: int = 0
    between: int = 0
    different: str = ""


def difference(book: dict[str, Any], shown: dict[str, Any]) -> str:
    """The first level that is not the same, or nothing."""
    for side in ("bids", "asks"):
        mine = [[float(v) for v in row[:2]] for row in book[side]]
        theirs = [[float(v) for v in row] for row in shown[side]]
        if len(mine) != len(theirs):
            return f"{side}: {len(mine)} levels, the venue has {len(theirs)}"
        for k, (a, b) in enumerate(zip(mine, theirs, strict=True)):
            if a != b:
                return f"{side} level {k}: {a}, the venue has {b}"
    return ""


async def _settled(client: Any) -> int:
    """The client's update id once it stands still: nothing more is under way."""
    began, last = time.monotonic(), -1
    while time.monotonic() - began < CAUGHT_UP_S:
        now = int(client.orderbooks[SYMBOL]["nonce"])
        if now == last:
            return now
        last = now
        await asyncio.sleep(SETTLE_S)
    return last


async def _compare(venue: Running, client: Any, told: Told) -> None:
    await asyncio.to_thread(venue.post, "/venue/v1/pause")
    try:
        nonce = await _settled(client)
        shown = await asyncio.to_thread(venue.get, f"/fapi/v1/depth?symbol=ETHUSDT&limit={LEVELS}")
        if nonce != shown["lastUpdateId"]:
            told.between += 1
            return
        told.compared += 1
        told.different = difference(client.orderbooks[SYMBOL], shown)
    finally:
        await asyncio.to_thread(venue.post, "/venue/v1/resume")


async def follow(venue: Running, seconds: float, every_s: float, least: int) -> Told:
    """Keeps the book and compares it; goes on past `seconds` until `least` comparisons are made."""
    client, told = pointed(ccxt.pro.binanceusdm({"enableRateLimit": False}), venue), Told()

    async def keep() -> None:
        while True:
            await client.watch_order_book(SYMBOL)
            told.updates += 1

    keeper = asyncio.create_task(keep())
    try:
        while told.updates < 2 and not keeper.done():
            await asyncio.sleep(SETTLE_S)
        began = time.monotonic()
        most_s = max(10 * seconds, 60.0)
        while not told.different and not keeper.done():
            spent = time.monotonic() - began
            enough = told.compared >= least and told.updates >= least * UPDATES_EACH
            if (spent >= seconds and enough) or spent > most_s:
                break
            await asyncio.sleep(every_s)
            await _compare(venue, client, told)
        if keeper.done():
            told.different = f"the client gave up: {keeper.exception()!r}"
    finally:
        keeper.cancel()
        await client.close()
    return told


def run(folder: Path, seconds: float, every_s: float, least: int) -> Told:
    venue = Running(folder, *OPTIONS)
    try:
        return asyncio.run(follow(venue, seconds, every_s, least))
    finally:
        assert venue.stop() == 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--every", type=float, default=1.0, help="seconds between comparisons")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        told = run(Path(folder), options.minutes * 60, options.every, 1)
    print(
        f"updates={told.updates} compared={told.compared} between_looks={told.between}"
        f" different={told.different or 'nothing'}"
    )
    return 1 if told.different or not told.compared else 0


if __name__ == "__main__":
    sys.exit(main())
