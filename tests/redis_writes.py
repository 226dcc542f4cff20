"""One commit of risk's, for tests that write as it writes."""

from __future__ import annotations

from collections.abc import Iterable

import redis.asyncio
from risk_desk import KEYS

import streams


async def commit(
    r: redis.asyncio.Redis,
    epoch: int,
    ops: Iterable[streams.Op],
    ack: tuple[str, str, str] | None = None,
    armed: bool = False,
    unless: tuple[str, ...] = (),
    number: int = 0,
    confirmed: int = 0,
) -> str:
    """Its verdict; raises what stopped it."""
    write = streams.Write(tuple(ops), ack, armed, unless, number)
    verdicts, error = await streams.commit(
        r, KEYS, epoch=epoch, writes=[write], confirmed=confirmed
    )
    if error is not None:
        raise error
    return verdicts[0]
