"""The funnel: how far what rules saw gets, counted by stage and by what stopped it.

    asked -> structure -> trend -> checks -> confidence -> state -> signal (then gate and order)

Counted since the start and over the last hour of market time, in minutes; names are bounded,
because a user's rule names its own reasons. So "it does not trade" always has an answer.
"""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass, field
from typing import Any, Final

STAGES: Final = ("structure", "trend", "checks", "confidence", "state")
_STAGE_OF: Final = {"structure": 0, "trend": 1, "proven": 3, "rule_state": 4}
MINUTE_MS: Final = 60_000
HOUR_MINUTES: Final = 60
NAMES_MAX: Final = 256
WAYS_MAX: Final = NAMES_MAX - 2 * len(STAGES) - 1  # room for the stages, and their others
OTHER: Final = "other"
ASKED, SILENT, FAULTS, SIGNALS = "asked", "silent", "faults", "signals"


def stage_of(check: str) -> str:
    """The stage that a check of signals.py belongs to."""
    return STAGES[_STAGE_OF.get(check, 2)]


Ways = dict[tuple[str, str], int]  # (stage that stopped it, or what happened; check) to a count


def told_of(ways: Ways) -> Counter[str]:
    """Counts by name: what happened, `stage` for what came in, `stage:check` for what it lost."""
    made: Counter[str] = Counter()
    for (name, check), count in ways.items():
        stopped = name in STAGES
        if stopped or name == SIGNALS:
            for stage in STAGES[: STAGES.index(name) + 1] if stopped else STAGES:
                made[stage] += count
        made[f"{name}:{check}" if stopped else name] += count
    return made


@dataclass(slots=True)
class Funnel:
    """Counts ways, one look-up each; they are told by name when somebody asks."""

    ways: Ways = field(default_factory=dict)
    minutes: deque[tuple[int, Ways]] = field(default_factory=lambda: deque(maxlen=HOUR_MINUTES + 1))

    def add(self, ms: int, name: str, check: str = "") -> None:
        """One, at a market time."""
        minute, way, ways = ms // MINUTE_MS, (name, check), self.ways
        if not self.minutes or self.minutes[-1][0] < minute:
            self.minutes.append((minute, {}))
        if way not in ways and len(ways) >= WAYS_MAX:
            way = (name, OTHER) if check else (OTHER, "")
        of_minute = self.minutes[-1][1]
        ways[way] = ways.get(way, 0) + 1
        of_minute[way] = of_minute.get(way, 0) + 1

    def way(self, ms: int, stage: str, check: str) -> None:
        """A candidate's way: through all stages before `stage`, stopped there by `check`; through
        all of them with an empty stage."""
        self.add(ms, stage or SIGNALS, check)

    @property
    def total(self) -> Counter[str]:
        """Since the start."""
        return told_of(self.ways)

    def told(self, now_ms: int) -> dict[str, Any]:
        hour: Counter[str] = Counter()
        for minute, ways in self.minutes:
            if minute > now_ms // MINUTE_MS - HOUR_MINUTES:
                hour.update(told_of(ways))
        return {"total": dict(self.total), "hour": dict(hour)}
