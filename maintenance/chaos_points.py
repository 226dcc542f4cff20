"""Where risk may die on purpose and what may be taken out of it: names, and one word at a time.

A crash point is a place in risk's code between two effects. Chaos arms one by writing a file into
the folder that both risk processes watch; whoever passes the point for the asked time renames the
file and ends itself with SIGKILL, so that it happens once whoever comes first. Light and pure but
for those files; the places themselves are in maintenance/chaos_risk.py, and production code knows
nothing of them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

# Requests to the exchange by their purpose. Of each: decided and nothing sent; the bytes are out
# and the exchange has acted, the answer is not read; the answer is read, nothing came of it.
SENT: Final = ("entry", "stop", "target", "exit", "cancel")
# Writes to Redis. Of each: handed over, not written; written, and what waits for it not done.
WRITTEN: Final = {
    "append": "an entry's intents, all legs and the acknowledgement of its signal",
    "stop_write": "the record of a stop that was sent",
    "exit_write": "the decision to leave a position, its exit not sent",
    "fill_write": "an execution and its money",
    "entry_end_write": "the end of an entry order",
    "close_write": "the end of a position",
    "ack": "the refusal of a signal, or a command's answer, with its acknowledgement",
    "snapshot_write": "the exchange's truth, the corrections behind it not done",
}
LIVED: Final = {
    "after_lease_taken": "the lease is ours, nothing of the state is read",
    "after_rebuild": "the state is read from Redis, the exchange is not asked",
    "in_snapshot": "the exchange's truth is read, nothing came of it",
    "after_snapshot": "corrections are decided, none is sent or written",
    "after_read": "signals are delivered to us, none is looked at",
    "before_fill": "the user stream told of an execution, nothing is counted",
}
POINTS: Final = (
    *(f"before_send_{purpose}" for purpose in SENT),
    *(f"after_send_{purpose}" for purpose in SENT),
    *(f"after_answer_{purpose}" for purpose in SENT),
    *(f"before_{what}" for what in WRITTEN),
    *(f"after_{what}" for what in WRITTEN),
    *LIVED,
)
TAKE_OVER_POINTS: Final = ("after_lease_taken", "after_rebuild")  # passed by a new holder only
SNAPSHOT_POINTS: Final = (  # and whenever one is asked for
    "in_snapshot",
    "after_snapshot",
    "before_snapshot_write",
    "after_snapshot_write",
)
assert set(TAKE_OVER_POINTS) | set(SNAPSHOT_POINTS) <= set(POINTS)
PREFIX: Final = "crash:"  # of the fault's kind, before the point
PASSES_MAX: Final = 3  # of a point until the one that is the last

BREAKS: Final = {
    "fence": "no epoch, lease or recvWindow stops a former holder",
    "query": "an entry whose fate is unknown is sent again, or taken as never executed",
    "dedupe": "a signal or fill that comes twice counts twice",
    "stop": "every second position gets no stop, and nothing closes it for that",
    "reconcile": "snapshots of the exchange change nothing",
}

_ARMED: Final = "armed"
_STRUCK: Final = "struck"
_UP: Final = "up"


def arm(folder: Path, point: str, passes: int, number: int) -> None:
    """Whoever passes `point` for the `passes`-th time from now dies. `number` tells one arming
    from another."""
    assert point in POINTS
    folder.mkdir(parents=True, exist_ok=True)
    (folder / _STRUCK).unlink(missing_ok=True)
    made = folder / f"{_ARMED}.new"
    made.write_text(f"{number} {point} {passes}")
    made.replace(folder / _ARMED)


def disarm(folder: Path) -> bool:
    """Withdraw what is armed; False when somebody has taken it, and so is dead or dying."""
    try:
        (folder / _ARMED).unlink()
    except FileNotFoundError:
        return False
    return True


def stand(folder: Path, pid: int) -> None:
    """This process is up: it holds the lease or asks for it."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{_UP}-{pid}").touch()


def stands(folder: Path, pid: int) -> bool:
    return (folder / f"{_UP}-{pid}").exists()


def struck(folder: Path) -> bool:
    """Has somebody taken what was armed last?"""
    return (folder / _STRUCK).exists()


@dataclass(slots=True)
class Counter:
    """A process's own count of how often it has passed what is armed."""

    folder: Path
    number: int = -1
    passed: int = field(default=0)

    def due(self, point: str) -> bool:
        """Count one pass of `point`; True when it is the last one."""
        try:
            number, armed, passes = (self.folder / _ARMED).read_text().split()
        except FileNotFoundError:
            return False
        if armed != point:
            return False
        if int(number) != self.number:
            self.number, self.passed = int(number), 0
        self.passed += 1
        return self.passed >= int(passes)

    def take(self) -> bool:
        """Ours to die by; False when it was withdrawn or another process was faster."""
        try:
            (self.folder / _ARMED).rename(self.folder / _STRUCK)
        except FileNotFoundError:
            return False
        return True
