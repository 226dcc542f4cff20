"""When each job runs: pure arithmetic on wall time, the same on every beat.

A job's slot is floor(wall / period). It is fixed when a beat schedules the job and travels with
the message, so two beats, a redelivery or a killed worker name the same slot, and Redis lets one
run of it through. A slot is called twice, at its beginning and at its middle: the second call
costs one SET, and takes over from a worker that died in the first. Beats keep no file: at start
each calls the present slot of every job, and what is done stays done.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Job:
    """One row of the schedule."""

    name: str
    period_s: int
    limit_s: float  # a run that takes longer is taken for dead; its slot is free again

    def __post_init__(self) -> None:
        assert self.limit_s * 2 <= self.period_s, "the second call must find a dead run's slot free"


JOBS: Final = (
    Job("nodes", 10, 5),  # dead nodes are noted
    Job("reconcile", 30, 15),  # the exchange against Redis; waits up to 10 s for risk
    Job("sweep", 30, 10),  # orders and signals that nobody ends
    Job("learn", 60, 20),  # outcomes into the live model
    Job("equity", 60, 10),  # a point of the equity curve
    Job("trim", 600, 60),  # streams back to their bounds
    Job("heartbeat", 900, 30),  # one line that tells how it is
    Job("universe", 3600, 60),  # which symbols
)
CALLS_PER_SLOT: Final = 2
REMEMBERED_SLOTS: Final = 2  # how long "done" is kept, in periods


def slot_of(job: Job, wall_s: float) -> int:
    """The slot that this moment lies in."""
    return int(wall_s // job.period_s)


def call_of(job: Job, wall_s: float) -> int:
    """The call that this moment lies in; there are CALLS_PER_SLOT of them in a slot."""
    return int(wall_s * CALLS_PER_SLOT // job.period_s)


def next_call_s(job: Job, wall_s: float) -> float:
    """Seconds from this moment to the next call."""
    return (call_of(job, wall_s) + 1) * job.period_s / CALLS_PER_SLOT - wall_s
