"""The funnel: how far what rules saw gets, counted by stage and by what stopped it.

    asked -> structure -> trend -> checks -> confidence -> state -> signal (then gate and order)

Counted since the start and over the last hour of market time, in minutes; names are bounded,
because a user's rule names its own reasons. So "it does not trade" always has an answer.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Final

STAGES: Final = ("structure", "trend", "checks", "confidence", "state")
_STAGE_OF: Final = {"structure": 0, "trend": 1, "proven": 3, "rule_state": 4}
MINUTE_MS: Final = 60_000
HOUR_MINUTES: Final = 60
NAMES_MAX: Final = 256
OTHER: Final = "other"
ASKED, SILENT, FAULTS, SIGNALS = "asked", "silent", "faults", "signals"


def stage_of(check: str) -> str:
    """The stage that a check of signals.py belongs to."""
    return STAGES[_STAGE_OF.get(check, 2)]


@dataclass(slots=True)
class Funnel:
    """Counts by name: the four above, `stage` for what came in, `stage:check` for what it lost."""

    total: Counter[str] = field(default_factory=Counter)
    minutes: deque[tuple[int, Counter[str]]] = field(
        default_factory=lambda: deque(maxlen=HOUR_MINUTES + 1)
    )

    def add(self, ms: int, names: Iterable[str]) -> None:
        """One each, at a market time."""
        minute = ms // MINUTE_MS
        if not self.minutes or self.minutes[-1][0] < minute:
            self.minutes.append((minute, Counter()))
        of_minute = self.minutes[-1][1]
        for name in names:
            if name not in self.total and len(self.total) >= NAMES_MAX:
                name = f"{name.partition(':')[0]}:{OTHER}" if ":" in name else OTHER
            self.total[name] += 1
            of_minute[name] += 1

    def way(self, ms: int, stage: str, check: str) -> None:
        """A candidate's way: through all stages before `stage`, stopped there by `check`; through
        all of them with an empty stage."""
        last = STAGES.index(stage) if stage else len(STAGES) - 1
        came = [f"{name}" for name in STAGES[: last + 1]]
        self.add(ms, [*came, f"{stage}:{check}" if stage else SIGNALS])

    def told(self, now_ms: int) -> dict[str, Any]:
        hour: Counter[str] = Counter()
        for minute, counts in self.minutes:
            if minute > now_ms // MINUTE_MS - HOUR_MINUTES:
                hour.update(counts)
        return {"total": dict(self.total), "hour": dict(hour)}
