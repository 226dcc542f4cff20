"""A process that waits for the lease: it looks again when the lease can run out, and not later."""

from __future__ import annotations

import asyncio
import time
from types import SimpleNamespace
from typing import Any

import pytest
from risk_desk import KEYS

import process
import streams
from risk.lease import Lease
from risk.main import STANDBY_MS, Risk


def waiting(r: Any) -> Any:
    risk: Any = SimpleNamespace(
        redis=r,
        keys=KEYS,
        cfg=SimpleNamespace(lease_ttl_ms=3_000),
        lease=Lease("me", 3_000),
        run_id="",
        epoch_seen=0,
        halted=False,
        halt_again=False,
        take_after_ms=0.0,
    )
    risk.look_at_server = lambda: Risk.look_at_server(risk)
    risk.lease_left_ms = lambda: Risk.lease_left_ms(risk)
    return risk


@pytest.mark.parametrize("left_ms", [40, 320, 510])
def test_a_lease_that_runs_out_is_taken_within_a_few_milliseconds(
    redis_url: str, left_ms: int
) -> None:
    async def work() -> tuple[int, float]:
        r = streams.connect_async(redis_url)
        risk = waiting(r)
        await Risk.look_at_server(risk)
        risk.take_after_ms = 0.0
        assert await streams.lease_take(r, KEYS, "other", left_ms)
        started_s = time.monotonic()
        epoch = await Risk.standby(risk)
        late_ms = (time.monotonic() - started_s) * 1000 - left_ms
        await r.aclose()
        return epoch, late_ms

    epoch, late_ms = asyncio.run(work())
    assert epoch and late_ms < STANDBY_MS / 2


def test_on_a_full_redis_a_standby_is_not_seen_and_takes_the_lease_all_the_same(
    redis_url: str,
) -> None:
    async def work() -> int:
        r = streams.connect_async(redis_url)
        risk = waiting(r)
        await Risk.look_at_server(risk)
        risk.take_after_ms = 0.0
        assert await streams.lease_take(r, KEYS, "other", 150)
        await r.config_set("maxmemory", 1)
        try:
            assert await Risk.lease_left_ms(risk) == STANDBY_MS
            return await Risk.standby(risk)
        finally:
            await r.config_set("maxmemory", 0)
            await r.aclose()

    assert asyncio.run(work())
    assert not process.stop
