"""Celery as it is: two beats, redelivery, a worker killed or stopped in the middle of a job."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from celery_world import PROBE

import config
import streams
from maintenance import status, tasks

ROOT = Path(__file__).resolve().parent.parent
KEYS = streams.Keys("sim", "main")
pytestmark = pytest.mark.system


class World:
    """Workers and beats of the probe job on one Redis."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.r: Any = streams.connect(url, 2)
        self.app = tasks.make_app(config.load({"REDIS_URL": url}).broker_url)
        self.rows: list[subprocess.Popen[bytes]] = []

    def start(self, what: str, visibility_s: int = 900) -> subprocess.Popen[bytes]:
        argv = [sys.executable, str(ROOT / "tests" / "celery_world.py"), what, self.url]
        environ = {"PATH": os.environ["PATH"], "HOME": os.environ.get("HOME", "/")}
        row = subprocess.Popen(
            [*argv, str(visibility_s)], cwd=ROOT, env=environ,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        self.rows.append(row)
        return row

    def send(self, slot: int, **options: Any) -> None:
        self.app.send_task(tasks.TASK, args=("probe", slot), **options)

    def began(self, slot: int) -> list[int]:
        """Process ids that began this slot, in order."""
        return self._of("began", slot)

    def ended(self, slot: int) -> list[int]:
        return self._of("ended", slot)

    def _of(self, name: str, slot: int) -> list[int]:
        rows = [row.split(":") for row in self.r.lrange(name, 0, -1)]
        return [int(pid) for number, pid in rows if int(number) == slot]

    def said(self, slot: int) -> Any:
        return self.r.get(KEYS.job("probe", slot))

    def wait(self, true: Callable[[], Any], patience_s: float = 25.0) -> None:
        end = time.monotonic() + patience_s
        while not true():
            assert time.monotonic() < end, "never became true"
            time.sleep(0.02)


@pytest.fixture
def world(redis_url: str) -> Iterator[World]:
    made = World(redis_url)
    yield made
    for row in made.rows:
        if row.poll() is None:
            row.send_signal(signal.SIGCONT)
            row.kill()
        row.wait(10)
    made.app.close()
    made.r.close()


def test_two_beats_and_two_workers_run_every_slot_once(world: World) -> None:
    for what in ("worker", "worker", "beat", "beat"):
        world.start(what)
    world.wait(lambda: world.r.llen("ended") >= 3)
    slots = Counter(row.split(":")[0] for row in world.r.lrange("began", 0, -1))
    numbers = sorted(map(int, slots))
    assert set(slots.values()) == {1}
    assert numbers == list(range(numbers[0], numbers[-1] + 1))  # and none was left out
    assert status.jobs_late(world.r, KEYS, [PROBE]) == []


def test_the_slot_of_a_worker_killed_in_a_job_runs_again_after_its_limit(world: World) -> None:
    first = world.start("worker")
    world.r.rpush("hold", "1")
    world.send(7)
    world.wait(lambda: world.began(7))
    assert str(world.said(7)).startswith("running:")
    world.send(7)  # the slot's second call, or another beat's first
    second = world.start("worker")
    world.wait(lambda: world.r.llen("cel:aegis") == 0 and not world.ended(7))
    first.kill()
    assert world.began(7) == [first.pid]  # while it might live nobody else ran it
    world.wait(lambda: not world.r.exists(KEYS.job("probe", 7)))  # its limit
    world.send(7)
    world.wait(lambda: world.said(7) == "done")
    assert world.began(7) == [first.pid, second.pid] and world.ended(7) == [second.pid]
    world.send(7)
    world.send(8)
    world.wait(lambda: world.said(8) == "done")
    assert world.began(7) == [first.pid, second.pid]  # done stays done


def test_what_a_killed_worker_had_not_acknowledged_is_delivered_again_unless_it_is_old(
    world: World,
) -> None:
    rows = [world.start("worker", 2) for _ in range(2)]
    world.r.rpush("hold", "1", "1")
    world.send(1)
    world.wait(lambda: world.began(1))
    world.send(2, expires=1.0)
    world.wait(lambda: world.began(2))
    for row in rows:
        row.kill()
    third = world.start("worker", 2)
    world.wait(lambda: world.said(1) == "done")
    assert world.ended(1) == [third.pid] and len(world.began(1)) == 2

    broker: Any = streams.connect(config.load({"REDIS_URL": world.url}).broker_url, 1)
    try:
        world.wait(lambda: not broker.hlen("cel:unacked") and not broker.llen("cel:aegis"))
    finally:
        broker.close()
    assert len(world.began(2)) == 1 and not world.ended(2)  # its slot's next call is the remedy


def test_a_worker_that_wakes_after_its_slot_was_run_changes_nothing(world: World) -> None:
    first = world.start("worker")
    world.r.rpush("hold", "1")
    world.send(5)
    world.wait(lambda: world.began(5))
    first.send_signal(signal.SIGSTOP)
    world.wait(lambda: not world.r.exists(KEYS.job("probe", 5)))
    second = world.start("worker")
    world.send(5)
    world.wait(lambda: world.said(5) == "done")
    world.r.set("free", 1)
    first.send_signal(signal.SIGCONT)
    world.wait(lambda: len(world.ended(5)) == 2)
    world.send(6)
    world.wait(lambda: world.said(6) == "done")
    assert world.ended(5) == [second.pid, first.pid] and world.said(5) == "done"


def test_a_worker_that_is_connected_and_deaf_is_told_by_status(world: World) -> None:
    worker = world.start("worker")
    world.start("beat")
    world.wait(lambda: world.r.llen("ended") >= 1)
    assert status.jobs_late(world.r, KEYS, [PROBE]) == []
    worker.send_signal(signal.SIGSTOP)
    world.wait(lambda: status.jobs_late(world.r, KEYS, [PROBE]) == ["probe"], 3 * PROBE.period_s)
    told = status.collect(world.r, KEYS)
    assert "late jobs: nodes" in status.render(told) and "reconcile" in told["jobs_late"]
    worker.send_signal(signal.SIGCONT)
    world.wait(lambda: status.jobs_late(world.r, KEYS, [PROBE]) == [], 3 * PROBE.period_s)
