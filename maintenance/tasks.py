"""Celery: the beat that schedules the jobs and the worker that runs them.

JSON only, no results, one solo worker: memory counts more than throughput here. Redis decides that
a slot runs once (streams.job_take), so any number of beats and workers may live. Both tell their
supervisor that they turn: beat at each tick, the worker from its event loop and only while jobs
come through, so that one that went deaf after an outage is replaced. Nothing heavy is imported
before a job needs it. What a job does stands in jobs.py.
"""

from __future__ import annotations

import contextlib
import logging
import sys
import time
import warnings
from collections.abc import Callable
from typing import Any, ClassVar, Final

from celery import Celery, bootsteps, signals
from celery.beat import ScheduleEntry, Scheduler
from celery.exceptions import SecurityWarning
from celery.schedules import BaseSchedule, schedstate

import config
import process
import streams
from maintenance.schedule import JOBS, REMEMBERED_SLOTS, Job, call_of, next_call_s, slot_of

TICK_S: Final = 1.0  # beat looks this often at least
BEAT_INTERVAL_S: Final = 0.25
DEAF_S: Final = 120.0  # a worker without any job for so long is deaf: `nodes` comes every 5 s
VISIBILITY_S: Final = 900
TASK: Final = "aegis.run"
log = logging.getLogger(__name__)


def make_app(broker_url: str) -> Celery:
    """The app with its one task; knows nothing of Redis keys."""
    app = Celery("aegis", broker=broker_url, set_as_current=False)
    app.conf.update(
        task_serializer="json",
        accept_content=["json"],
        task_ignore_result=True,
        task_acks_late=True,
        task_reject_on_worker_lost=True,
        task_default_queue="aegis",
        worker_prefetch_multiplier=1,
        worker_hijack_root_logger=False,
        worker_redirect_stdouts=False,
        broker_connection_retry_on_startup=True,
        broker_pool_limit=2,
        broker_transport_options={
            "visibility_timeout": VISIBILITY_S,
            "socket_timeout": 30,
            "socket_connect_timeout": 5,
            "socket_keepalive": True,
            "health_check_interval": 25,
            "max_connections": 4,
            "global_keyprefix": "cel:",
        },
        timezone="UTC",
    )
    if broker_url.startswith("rediss://"):
        app.conf.broker_use_ssl = {"ssl_cert_reqs": "none"}
    return app


# --- beat ----------------------------------------------------------------------------------------


class Slots(BaseSchedule):  # type: ignore[misc]
    """A schedule that remembers nothing: due once in each call of the job's slots."""

    def __init__(self, job: Job, wall: Callable[[], float] = time.time) -> None:
        super().__init__()
        self.job, self._wall = job, wall
        self._called: int | None = None

    def is_due(self, last_run_at: object) -> schedstate:
        """(due, seconds to the next call). The present call is due at start."""
        wall_s = self._wall()
        due = call_of(self.job, wall_s) != self._called
        return schedstate(is_due=due, next=next_call_s(self.job, wall_s))

    def take_call(self) -> int:
        """This call is being sent; its slot."""
        wall_s = self._wall()
        self._called = call_of(self.job, wall_s)
        return slot_of(self.job, wall_s)


class SlotScheduler(Scheduler):  # type: ignore[misc]
    """Sends (name, slot) at each call of each job, and beats at each tick."""

    def setup_schedule(self) -> None:
        for job in JOBS:
            self.schedule[job.name] = ScheduleEntry(
                job.name, TASK, schedule=Slots(job), app=self.app,
                options={"expires": job.period_s},
            )  # fmt: skip

    def tick(self, *args: Any, **kwargs: Any) -> float:
        process.beat()
        return float(super().tick(*args, **kwargs))

    def apply_async(self, entry: ScheduleEntry, *args: Any, **kwargs: Any) -> Any:
        entry.args = (entry.name, entry.schedule.take_call())
        return super().apply_async(entry, *args, **kwargs)


def run_beat(app: Celery) -> int:
    """Until SIGTERM."""
    app.Beat(scheduler_cls=SlotScheduler, max_interval=TICK_S, quiet=True).run()
    return 0


# --- worker --------------------------------------------------------------------------------------


class Runner:
    """Takes slots and runs job bodies; remembers when it last heard of any."""

    def __init__(self, cfg: config.Config) -> None:
        self.cfg = cfg
        self.keys = streams.Keys(cfg.mode, cfg.account)
        self.r = streams.connect(cfg.redis_url, 1)
        self.heard_s = time.monotonic()
        self._jobs = {job.name: job for job in JOBS}

    def run(self, name: str, slot: int) -> str:
        """What became of this call: skipped, done, failed."""
        self.heard_s = time.monotonic()
        process.beat()
        job, token = self._jobs[name], f"{process.BOOT_ID}:{time.monotonic_ns()}"
        if not streams.job_take(self.r, self.keys, name, slot, token, job.limit_s):
            return "skipped"
        from maintenance import jobs

        try:
            jobs.BODIES[name](jobs.Desk(self.r, self.keys, self.cfg, slot))
        except Exception as error:
            log.exception("job failed job=%s slot=%s", name, slot)
            text = f"job {name} failed: {type(error).__name__}: {error}"
            with contextlib.suppress(Exception):  # Redis may be why it failed; the log has it
                jobs.note(self.r, self.keys, "error", text)
            return "failed"
        streams.job_done(self.r, self.keys, name, slot, token, REMEMBERED_SLOTS * job.period_s)
        return "done"

    def is_deaf(self) -> bool:
        return time.monotonic() - self.heard_s > DEAF_S


class Heartbeat(bootsteps.StartStopStep):  # type: ignore[misc]
    """Beats from the worker's own timer: a hung or deaf loop stops it."""

    requires: ClassVar[set[str]] = {"celery.worker.components:Timer"}
    runner: ClassVar[Runner | None] = None

    def __init__(self, parent: Any, **kwargs: Any) -> None:
        super().__init__(parent, **kwargs)
        self._timer: Any = None

    def start(self, parent: Any) -> None:
        self._timer = parent.timer.call_repeatedly(BEAT_INTERVAL_S, self._beat)

    def stop(self, parent: Any) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _beat(self) -> None:
        if self.runner is None or not self.runner.is_deaf():
            process.beat()


def run_worker(app: Celery, cfg: config.Config) -> int:
    """The solo worker, until SIGTERM."""
    # a container runs as root; what Celery fears there is pickle, and we accept JSON only
    warnings.simplefilter("ignore", SecurityWarning)
    runner = Runner(cfg)
    Heartbeat.runner = runner
    app.steps["worker"].add(Heartbeat)
    app.task(name=TASK)(runner.run)
    app.worker_main(
        ["--quiet", "worker", "--pool", "solo", "--without-gossip", "--without-mingle",
         "--without-heartbeat", "--loglevel", cfg.log_level,
         "--hostname", f"aegis-{process.BOOT_ID}@%h"]
    )  # fmt: skip
    return 0


def main() -> int:
    try:
        cfg = config.load()
    except config.ConfigError as error:
        process.fail(str(error), 2)
    if sys.argv[1:] not in (["worker"], ["beat"]):
        process.fail("Say which: `python -m maintenance.tasks worker` or `… beat`.", 2)
    if not cfg.redis_url:
        process.fail("REDIS_URL is not set: point it at a Redis, or run `./aegis up`.", 2)
    name = sys.argv[1]
    process.setup_logging(name, cfg.log_level, cfg.secrets)
    signals.setup_logging.connect(lambda **_: None, weak=False)  # ours stays as it is
    app = make_app(cfg.broker_url)
    return run_beat(app) if name == "beat" else run_worker(app, cfg)


if __name__ == "__main__":
    raise SystemExit(main())
