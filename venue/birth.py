"""Where a paper account begins: born with a deposit, or as it was left. A shell: it does I/O.

Both need upstream's listing and clock. A new account is not born without them; one that is resumed
starts with the last listing and the host's clock until upstream answers.
"""

from __future__ import annotations

import argparse
import logging
import uuid
from dataclasses import replace
from typing import Any

import aiohttp

from clock import MarketClock, boot_ns, wall_ms
from venue import follow, paper, upstream
from venue.follow import AskError
from venue.house import Moment, open_account
from venue.paper import Paper, PaperSetup
from venue.store import PAPER, Store, StoreError
from venue.symbols import Symbol

log = logging.getLogger("venue")


async def listing(session: aiohttp.ClientSession, base: str, store: Store) -> list[dict[str, Any]]:
    """Rows of exchangeInfo, with what only an earlier listing knew; kept. Raises AskError."""
    told = await follow.ask(session, base, "/fapi/v1/exchangeInfo")
    rows = told.get("symbols") if isinstance(told, dict) else None
    if not rows:
        raise AskError("/fapi/v1/exchangeInfo: no symbols")
    rows = upstream.merged(store.listing(), rows)
    store.save_listing(rows)
    return rows


async def born(
    options: argparse.Namespace, store: Store, session: aiohttp.ClientSession
) -> tuple[Paper, MarketClock]:
    """The account from the store, or a new one with its first deposit. Raises StoreError."""
    store.require_kind(PAPER)
    base, resumes = options.upstream, options.resume and store.holds_world()
    rows = store.listing() if resumes else []
    clock = None
    try:
        clock = await follow.ask_clock(session, base)
        rows = await listing(session, base, store)
    except AskError as error:
        if not rows:
            raise StoreError(
                f"upstream {base} gives no listing ({error}): check the network, or name another"
                " by --upstream or AEGIS_UPSTREAM_URL"
            ) from None
        log.warning("upstream=%s out of reach (%s): starting with the last listing", base, error)
    specs = upstream.specifications(rows)
    if resumes:
        made = resumed(options, store, specs, clock.speed if clock else None)
        if clock is None:
            clock = MarketClock(paper.estimate(made, wall_ms()), boot_ns(), made.setup.speed)
        return made, clock
    assert clock is not None, "a listing was given, so the clock was"
    now_ms = int(clock.now_ms(boot_ns()))
    made = paper.create(PaperSetup(uuid.uuid4().hex[:16], base, now_ms, clock.speed), specs)
    made.measured = now_ms, wall_ms()
    open_account(made, Moment(now_ms, 0))
    store.create(made)
    return made, clock


def resumed(
    options: argparse.Namespace, store: Store, specs: tuple[Symbol, ...], speed: float | None
) -> Paper:
    """The account as it was left. Raises StoreError."""
    setup, saved = store.read()
    if setup["upstream"] != options.upstream:
        raise StoreError(
            f"the account in {store.folder} trades on {setup['upstream']}, not on"
            f" {options.upstream}: choose another --state"
        )
    try:
        kept = PaperSetup(**setup)
        made = paper.create(replace(kept, speed=speed or kept.speed), specs)
        store.restore(made, saved)
        paper.restore(made, saved, boot_ns() // 1_000_000)
    except (KeyError, TypeError, ValueError):
        raise StoreError(
            f"the account in {store.folder} was kept by another version: choose another --state"
        ) from None
    return made
