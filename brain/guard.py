"""A rule that gives no answer: interrupted, switched off, remembered over the brain's death.

Who is being asked stands in the state's file during the question. While questions are asked,
SIGALRM comes once a limit; a question that sees two of them is overdue, and the handler raises
Overdue in the middle of the rule, be it in a loop or in a sleep. It is no Exception: a rule that
catches those does not catch it. One that swallows even this is interrupted again, and in the end
the process goes, with the rule's key in the file. Native code that never returns lets no handler
run: the supervisor kills the brain for its silence, and the mark in the file is as old as that.

So the next brain knows whom the last one died in. It was the rule when the question was old by
then, or when two lives in a row ended in it; a kill that happened to meet a question accuses
nobody. What is off by this stays off as long as the state's file is continued: until the next
`aegis up`.
"""

from __future__ import annotations

import logging
import os
import signal
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

from brain.rules import Answer, Rule, ask
from brain.state import C_ASKED_NS, C_ASKING, C_OFF, C_SUSPECT, OFF_MAX, Ints
from brain.view import CandleView

FIRES_MAX: Final = 3  # interruptions of one question before the process ends
LIMIT_MS_MAX: Final = 300  # the supervisor's patience is 2 s: see the assert
PUBLISHERS_TURN_S: Final = 0.05  # before the process ends with what is queued
OLD_NS: Final = 1_500_000_000  # between question and next start: nobody is killed and back so late
assert (FIRES_MAX + 2) * LIMIT_MS_MAX * 1_000_000 <= OLD_NS

log = logging.getLogger("brain")


class Overdue(BaseException):
    """Raised into a rule that takes too long."""


def condemn(control: Ints, key: int) -> None:
    """Remember in the file that this rule is off; of too many the last place is given up."""
    known = control[C_OFF : C_OFF + OFF_MAX].tolist()
    if key not in known:
        control[C_OFF + (known.index(0) if 0 in known else OFF_MAX - 1)] = key


def condemned(control: Ints, rules: Iterable[Rule], started_ns: int) -> list[dict[str, Any]]:
    """At the start of a life, boot time `started_ns`: inputs that switch off what is to be off."""
    key, died = int(control[C_ASKING]), ""
    if key:
        old = started_ns - int(control[C_ASKED_NS]) >= OLD_NS
        if old or int(control[C_SUSPECT]) == key:
            condemn(control, key)
            died = "asked when the brain died, and had given no answer"
    control[C_SUSPECT], control[C_ASKING] = key, 0
    off = control[C_OFF : C_OFF + OFF_MAX].tolist()
    return [
        {
            "input": "rule", "name": each.name, "state": "off",
            "why": died if died and each.key == key else "off since an earlier life of this brain",
        }
        for each in rules
        if each.key in off
    ]  # fmt: skip


def started_ns(now_ns: int) -> int:
    """Boot time at which this process was started, imports included; `now_ns` where none tells."""
    try:
        ticks = int(Path("/proc/self/stat").read_text().rsplit(")", 1)[1].split()[19])
    except (OSError, IndexError, ValueError):
        return now_ns
    return ticks * (1_000_000_000 // os.sysconf("SC_CLK_TCK"))


class Guard:
    """Asks rules. `watch` makes it strict; before that, and in a replay, it only keeps the mark."""

    def __init__(self, control: Ints) -> None:
        self.control = control
        self.limit_s = 0.0
        self.armed = True  # or nothing is to be watched
        self._asks = self._seen = self._fires = 0

    def watch(self, limit_s: float) -> None:
        """From now on no answer takes longer than two limits. Main thread only."""
        signal.signal(signal.SIGALRM, self._on_alarm)
        self.limit_s, self.armed = limit_s, False

    def close(self) -> None:
        """No alarm comes any more: an interpreter that ends has no handler for it."""
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        self.armed = True

    def ask(self, each: Rule, view: CandleView, began_ns: int) -> tuple[Answer, str]:
        """As rules.ask; a rule that was interrupted has `cut` set, and no answer."""
        control = self.control
        try:
            if not self.armed:
                signal.setitimer(signal.ITIMER_REAL, self.limit_s, self.limit_s)
                self.armed = True
            self._asks += 1
            control[C_ASKED_NS] = began_ns
            control[C_ASKING] = each.key
            told = ask(each, view)
            control[C_ASKING] = 0
        except Overdue:
            control[C_ASKING] = 0
            condemn(control, each.key)
            each.cut = (view.symbol, view.timeframe, view.bar_ms)
            return None, ""
        return told

    def _on_alarm(self, signum: int, frame: object) -> None:
        """Runs between two bytecodes of the main thread: raises only while a rule is asked."""
        key = int(self.control[C_ASKING])
        if key and self._asks == self._seen:
            self._fires += 1
            if self._fires > FIRES_MAX:
                signal.setitimer(signal.ITIMER_REAL, 0.0)
                condemn(self.control, key)
                self.control[C_ASKED_NS] = 0  # old enough
                log.error("a rule swallows its interruption: ending")
                time.sleep(PUBLISHERS_TURN_S)
                os._exit(1)
            raise Overdue
        if not key and self._asks == self._seen:  # nobody asks any more
            signal.setitimer(signal.ITIMER_REAL, 0.0)
            self.armed = False
        self._seen, self._fires = self._asks, 0
