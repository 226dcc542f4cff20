"""How a crash at a named point is brought about, and whether the process really died there.

It bites only if the file was taken and a risk process of ours was ended by SIGKILL. What nobody
passes in time is withdrawn. Some points are passed by a new holder only: there the present one is
killed first, and its successor dies in the take-over.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import redis.exceptions

import streams
from clock import wall_ms
from maintenance import chaos_points
from maintenance.chaos_plan import Step
from maintenance.chaos_points import SNAPSHOT_POINTS, TAKE_OVER_POINTS
from maintenance.chaos_rig import RISKS, Rig

PASS_S: Final = 6.0  # for somebody to pass the point
TAKE_OVER_S: Final = 12.0  # the same where a lease must run out first
BESIDE_S: Final = 0.5  # for a successor that trades to meet what lies in wait
DEATH_S: Final = 5.0  # from taking the file to the end of the process


def crash(rig: Rig, step: Step) -> bool:
    """Arm the point, wait for a death by it, start the dead one again; a successor must trade."""
    epoch = int(rig.status().get("epoch", 0))
    point = step.kind.removeprefix(chaos_points.PREFIX)
    chaos_points.arm(rig.points, point, int(step.body["passes"]), step.number)
    by_take_over = point in TAKE_OVER_POINTS or step.body.get("by") == "take-over"
    if by_take_over:
        _kill_the_holder(rig)
    elif point in SNAPSHOT_POINTS:
        _ask_for_a_snapshot(rig, step)
    end = time.monotonic() + (TAKE_OVER_S if by_take_over else PASS_S)
    while time.monotonic() < end and not chaos_points.struck(rig.points):
        time.sleep(0.02)
    if not chaos_points.struck(rig.points) and chaos_points.disarm(rig.points):
        return False
    rig.dead_ms = wall_ms()
    name = rig.wait(lambda: _dead(rig), DEATH_S, f"death at {point}")
    if by_take_over:
        rig.deaths.append(wall_ms())
    rig.start_risk(name)
    with beside(rig, step.beside):
        rig.wait(lambda: rig.trading(epoch), TAKE_OVER_S, f"a successor after {point}")
    return True


@contextmanager
def beside(rig: Rig, step: Step | None) -> Iterator[None]:
    """A fault of the exchange that lies in wait for whoever takes over; it counts by itself."""
    told = rig.ask("POST", "/venue/v1/faults", step.body) if step else None
    try:
        yield
    finally:
        if step and told:
            plan_id, end = int(told["id"]), time.monotonic() + BESIDE_S
            while not rig.struck(plan_id) and time.monotonic() < end:
                time.sleep(0.02)
            rig.beside[step.kind] += bool(rig.struck(plan_id))
            rig.clear(plan_id)


def _kill_the_holder(rig: Rig) -> None:
    name = rig.holder()
    if name:
        rig.down_ms = wall_ms()
        rig.kill_risk(name)
        rig.start_risk(name)


def _dead(rig: Rig) -> str:
    """The process that was ended by SIGKILL and is not started again."""
    dead = (name for name in RISKS if rig.risk[name].poll() == -signal.SIGKILL)
    return next(dead, "")


def _ask_for_a_snapshot(rig: Rig, step: Step) -> None:
    """Redis may be away: then nobody passes the point, and the step does not count."""
    command = {"id": f"chaos-{step.number}-{time.time_ns()}", "name": "reconcile"}
    try:
        streams.publish(rig.r, rig.keys.commands, command)
    except (redis.exceptions.RedisError, OSError):
        return
