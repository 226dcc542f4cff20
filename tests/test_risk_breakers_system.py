"""A breaker in the real process: told, durable over kill -9, and what `aegis resume` says of it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from test_maintenance_direct import enter
from test_risk_system import KEYS, Rig, rig  # noqa: F401 - a fixture

from risk.breakers import DAY_MS

ROOT = Path(__file__).resolve().parent.parent
pytestmark = pytest.mark.system


def cli(rig: Rig, *words: str) -> str:  # noqa: F811
    env = {"PATH": os.environ["PATH"], "HOME": str(rig.folder), "AEGIS_VENUE_URL": rig.venue}
    env |= {"AEGIS_STATE_DIR": str(rig.folder / "elsewhere"), "REDIS_URL": rig.url}
    done = subprocess.run(
        [sys.executable, "-m", "maintenance.cli", *words], cwd=ROOT, env=env,
        capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    return done.stdout


def blocked(rig: Rig, epoch_above: int = 0) -> int:  # noqa: F811
    """The epoch of a holder that says which breaker stands."""
    status: Any = rig.r.hgetall(KEYS.status)
    epoch = int(status.get("epoch", 0))
    return epoch if "trades of the day" in status.get("blocked", "") and epoch > epoch_above else 0


def left_of_the_day_ms(rig: Rig) -> float:  # noqa: F811
    told: float = rig.get("/fapi/v1/time")["serverTime"]
    return DAY_MS - told % DAY_MS


def test_a_breaker_that_tripped_outlives_its_process(rig: Rig) -> None:  # noqa: F811
    first = rig.start(AEGIS_TRADES_DAY_MAX="1")
    rig.wait(rig.trading)
    rig.wait(lambda: left_of_the_day_ms(rig) > 3_600_000, 120)  # the market is 30 times as fast
    rig.signal("BTCUSDT", share=0.2)
    epoch = rig.wait(lambda: blocked(rig))
    told: Any = rig.r.hgetall(KEYS.breakers)
    assert told["tripped:trades of the day"] == "trades of the day 1, limit 1"
    first.send_signal(signal.SIGKILL)
    first.wait(10)
    rig.start(AEGIS_TRADES_DAY_MAX="1")
    rig.wait(lambda: blocked(rig, epoch))
    refused = rig.signal("ETHUSDT", share=0.2)

    def decided() -> Any:
        rows: Any = rig.r.xrevrange(KEYS.decisions, count=20)
        return [row for _, row in rows if row["signal"] == refused]

    assert rig.wait(decided)[0]["refused_by"] == "breakers"
    assert "REFUSED breakers: standing trades of the day 1, limit 1" in cli(rig, "why", refused)
    assert "no entries: trades of the day 1, limit 1" in cli(rig, "status")
    assert "still no entries: trades of the day 1, limit 1" in cli(rig, "resume")
    rows: Any = rig.r.xrange(KEYS.journal)
    assert sum("breaker: no more entries" in fields["text"] for _, fields in rows) == 1


def test_a_breaker_that_latches_is_lifted_by_resume(rig: Rig) -> None:  # noqa: F811
    rig.r.hset(KEYS.breakers, mapping={"losses_in_a_row": "3", "day": "1"})
    rig.start(AEGIS_LOSS_STREAK_MAX="3")
    rig.wait(lambda: "loss streak" in str(rig.r.hget(KEYS.status, "blocked")))
    assert cli(rig, "resume") == "resumed.\n"
    rig.wait(rig.trading)
    enter(rig, "BTCUSDT")
