"""One round of the brain, the same live and in a replay: records in, whole records' effects out.

`take` hands over the events of finished records only. A record that ran out of event rows in its
middle is taken again alone, and what it has brought so far waits: so no rule ever looks at a symbol
of which half the timeframes have closed, whatever the cut into batches was. Between two rounds
(`settled`) other inputs may be taken in: a model, signals to follow again, a rule's new state.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from brain import kernel
from brain.closing import W_PARTIAL, W_STOP, WHERE
from brain.desk import Desk
from brain.events import Events
from brain.state import Ints


@dataclass(slots=True)
class Engine:
    """The kernel over one ring, or what looks like one."""

    words: Ints
    slots: npt.NDArray[Any]
    stats: Ints
    desk: Desk
    seq: int
    events: Events = field(default_factory=kernel.new_events)
    where: Ints = field(default_factory=lambda: np.zeros(WHERE, np.int64))
    held: list[Events] = field(default_factory=list)  # of a record that is not finished
    raw: Ints = field(init=False)

    def __post_init__(self) -> None:
        self.raw = kernel.raw_view(self.slots)

    @property
    def settled(self) -> bool:
        """Between two records."""
        return not self.held

    @property
    def stopped(self) -> bool:
        """The last round ended early: more lies in the ring."""
        return bool(self.where[W_STOP])

    def take(self, limit: int = kernel.RECORDS_MAX) -> Events:
        """At most `limit` records; the events that they led to. Valid until the next call."""
        self.seq, n = kernel.consume(
            self.words, self.slots, self.raw, self.desk.state.arrays, self.events, self.where,
            self.desk.masks, self.stats, self.seq, 1 if self.held else limit,
        )  # fmt: skip
        made = self.events[:n]
        if self.where[W_PARTIAL]:
            self.held.append(made.copy())
            return self.events[:0]
        if self.held:
            made = np.concatenate([*self.held, made])
            self.held.clear()
        return made
