"""`aegis rule check NAME`: what a rule must be before the brain asks it.

It is asked at every close of a made market, and of a recording if one is given, and its answers
are compared: asked twice, asked without any memory, with everything changed that is not the closed
past, with another future, and after it has seen all of it. A rule that holds on to something, looks
at the forming candle or changes what it is shown gives other answers in one of these.
"""

from __future__ import annotations

import importlib
import inspect
import sys
import time
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from brain import kernel
from brain.desk import Desk, PutOutcome, PutSignal, new_desk, on_events
from brain.engine import Engine
from brain.recording import RecordingError
from brain.replay import replay
from brain.rules import Answer, No, Params, Rule, RuleError, load_rules
from brain.signals import Terms
from brain.state import Arrays, memory_state
from brain.view import CandleView
from maintenance.rule_market import START_MS, market
from maintenance.rule_watch import NO_WATCH, Watch
from records import RECORD
from ring import COUNTERS_MAX, HEAD, WORDS

SYMBOLS: Final = 3
MINUTES: Final = 420
TURN: Final = 280  # minute at which the other future begins
SEED: Final = 11
COLD_EVERY: Final = 5  # of the answers are asked for again without any memory
TAKER_FEE: Final = 0.0005
Key = tuple[str, str, int]  # symbol, timeframe, open time of the candle that closed
Answers = dict[Key, str]


class Row(NamedTuple):
    """One line of the table."""

    name: str
    ok: bool
    detail: str


@dataclass(slots=True)
class Spy:
    """Asks the rule in the brain's place and keeps what it said."""

    rule: Rule
    watch: Watch
    after: Callable[[CandleView, Params, str], None] = lambda view, params, told: None
    answers: Answers = field(default_factory=dict)
    spent_us: list[float] = field(default_factory=list)
    raised: str = ""
    changed: str = ""

    def __call__(self, view: CandleView, params: Params) -> Answer:
        before = _sum(view)
        try:
            with self.watch.asking(self.rule.name, _at(view)):
                began = time.perf_counter_ns()
                told = self.rule.function(view, params)
                spent_us = (time.perf_counter_ns() - began) / 1000
        except Exception as error:
            self.raised = self.raised or f"{_at(view)}: {type(error).__name__}: {error}"
            raise
        self.spent_us.append(spent_us)
        if _sum(view) != before:
            self.changed = self.changed or _at(view)
        text = _text(told)
        self.answers[(view.symbol, view.timeframe, view.bar_ms)] = text
        self.after(view, params, text)
        return told


def _text(told: Answer) -> str:
    """What must be equal: a No may word itself as it likes."""
    if told is None or isinstance(told, No):
        return "nothing"
    return f"{told.side} {told.entry!r} {told.stop!r} {told.target!r} {told.quality!r}"


def _at(view: CandleView) -> str:
    return f"{view.symbol} {view.timeframe} {view.bar_ms}"


def _sum(view: CandleView) -> int:
    """Of everything that the rule is shown."""
    made = 0
    for array in view.arrays[1:]:
        made = zlib.crc32(array[view.row].tobytes(), made)
    return made


def fresh(dotted: str, watch: Watch) -> Rule:
    """The rule from its source, with nothing of what an earlier import remembers."""
    sys.modules.pop(dotted.replace(":", ".").rpartition(".")[0], None)
    importlib.invalidate_caches()
    with watch.loading(dotted):
        loaded = load_rules((dotted,))
    (name,) = {each.name for each in loaded} - {each.name for each in load_rules()}
    return next(each for each in loaded if each.name == name)


def run(spy: Spy, records: npt.NDArray[Any]) -> tuple[Desk, list[Any]]:
    """The rule alone on a market; the desk and the effects in order."""
    each = replace(spy.rule, function=spy, state="on", faults=-(10**9))
    terms = Terms("check", "check", "rule", 60_000)
    desk = new_desk(memory_state(SYMBOLS), [each], terms, TAKER_FEE)
    slots = np.zeros(1 << (len(records) - 1).bit_length(), RECORD)
    slots[: len(records)] = records
    words = np.zeros(WORDS, np.int64)
    engine = Engine(words, slots, np.zeros(COUNTERS_MAX, np.int64), desk, 0)
    words[HEAD], effects = len(records), list[Any]()
    while engine.seq < len(records):
        rows = engine.take()
        if len(rows):
            effects += on_events(desk, rows, lambda: 0)
            each.state = "on"  # a fault is counted, not punished
    return desk, effects


def poisoned(view: CandleView, rng: np.random.Generator) -> CandleView:
    """The same closed past in arrays where all else is noise: forming candles, places of candles
    that are not there yet, followed signals, other symbols."""
    a, row = view.arrays, view.row
    made = Arrays._make(np.array(array) for array in a)
    made.forming[:] = rng.normal(100.0, 50.0, made.forming.shape)
    for other in range(len(a.sym)):
        if other != row:
            made.closed[other] = rng.normal(100.0, 50.0, made.closed[other].shape)
            made.ind[other] = made.smc[other] = rng.normal(0.0, 9.0)
    for t, count in enumerate(a.counts[row].tolist()):
        if count < a.closed.shape[2]:
            made.closed[row, t, count:] = rng.normal(100.0, 50.0)
    made.follow[:], made.levels[:] = 0, 0.0
    return replace(view, arrays=made, _seen={})


def differing(one: Answers, two: Answers, before_ms: int | None = None) -> list[str]:
    """Closes at which the answers are not the same, oldest first."""
    keys = sorted((one.keys() | two.keys()), key=lambda key: key[2])
    wanted = [key for key in keys if before_ms is None or key[2] < before_ms]
    return [
        f"{symbol} {frame} {bar}"
        for symbol, frame, bar in wanted
        if one.get((symbol, frame, bar)) != two.get((symbol, frame, bar))
    ]


def _verdict(name: str, wrong: list[str], asked: int, why: str) -> Row:
    if wrong:
        return Row(
            name, False, f"{len(wrong)} of {asked} answers differ, first at {wrong[0]}: {why}"
        )
    return Row(name, asked > 0, f"{asked} answers, 0 differ")


def _compare(dotted: str, first: Spy, records: npt.NDArray[Any]) -> Iterable[Row]:
    """The rows about memory and lookahead. The rule of `first` has seen all of `records` before."""
    watch = first.watch
    rng, cold, dark, twice = np.random.default_rng(1), list[str](), list[str](), list[str]()
    asked = 0

    def said(each: Rule, view: CandleView, params: Params) -> str:
        with watch.asking(each.name, _at(view)):
            return _text(each.function(view, params))

    def again(view: CandleView, params: Params, told: str) -> None:
        nonlocal asked
        if said(spy.rule, replace(view, _seen={}), params) != told:
            twice.append(_at(view))
        if len(spy.answers) % COLD_EVERY == 0:
            asked += 1
            if said(fresh(dotted, watch), replace(view, _seen={}), params) != told:
                cold.append(_at(view))
            if said(fresh(dotted, watch), poisoned(view, rng), params) != told:
                dark.append(_at(view))

    spy = Spy(fresh(dotted, watch), watch, again)
    run(spy, records)
    count = len(first.answers)
    yield _verdict("the same answer twice", twice, count, "it changes by being asked")
    yield _verdict("the same without memory", cold, asked, "it holds on to what it saw before")
    yield _verdict("sees the closed past only", dark, asked, "it looks at forming or later candles")
    other = Spy(fresh(dotted, watch), watch)
    run(other, market(SEED, SYMBOLS, MINUTES, TURN, other=5))
    until_ms = START_MS + (TURN - 60) * 60_000
    wrong = differing(first.answers, other.answers, until_ms)
    early = sum(key[2] < until_ms for key in first.answers)
    yield _verdict("the same whatever comes later", wrong, early, "it depends on the future")
    after = Spy(first.rule, watch)
    run(after, records)
    wrong = differing(first.answers, after.answers)
    yield _verdict("the same after it saw the future", wrong, count, "it remembers: lookahead")


def check(dotted: str, slow_ms: float, recording: str = "", watch: Watch = NO_WATCH) -> list[Row]:
    """All rows; the first that makes the others pointless is the last."""
    try:
        used = fresh(dotted, watch)
        parameters = [
            each
            for each in inspect.signature(used.function).parameters.values()
            if each.default is each.empty and each.kind in (0, 1)
        ]
    except (RuleError, SyntaxError, ValueError, TypeError) as error:
        return [Row("loads", False, str(error))]
    if len(parameters) != 2:
        return [Row("loads", False, f"it takes {len(parameters)} arguments, not view and params")]
    frames = ", ".join(used.timeframes)
    rows = [Row("loads", True, f"{used.name} on {frames}, {len(used.params)} parameters")]
    kernel.warm()
    records = market(SEED, SYMBOLS, MINUTES, TURN, other=4)
    spy = Spy(used, watch)
    desk, effects = run(spy, records)
    rows.append(
        Row("never raises", not spy.raised, spy.raised or f"asked {len(spy.spent_us)} times")
    )
    if spy.raised:
        return rows
    if not spy.answers:
        return [*rows, Row("is asked", False, "no close had the structure that it waits for")]
    rows.append(
        Row("changes nothing", not spy.changed, spy.changed or "what it is shown is as it was")
    )
    rows += _compare(dotted, spy, records)
    mean, worst = float(np.mean(spy.spent_us)), float(np.percentile(spy.spent_us, 99))
    detail = f"{mean:.1f} us on average, 99 % within {worst:.1f}; allowed {slow_ms * 1000:.0f}"
    rows.append(Row("is quick", worst < slow_ms * 1000, detail))
    rows.append(_outcomes(desk, effects))
    if recording:
        rows.append(_recorded(dotted, recording, watch))
    return rows


def _outcomes(desk: Desk, effects: list[Any]) -> Row:
    """No promise: the market is made without an edge."""
    signals = [each for each in effects if isinstance(each, PutSignal)]
    ended = [each.fields for each in effects if isinstance(each, PutOutcome)]
    wrong = desk.faults
    results = ", ".join(
        f"{sum(each['result'] == name for each in ended)} {name}"
        for name in ("win", "loss", "timeout")
    )
    net = np.mean([float(each["net_r"]) for each in ended]) if ended else 0.0
    detail = f"{desk.candidates} candidates, {len(signals)} signals; {results}; {net:+.2f} R each"
    if wrong:
        detail += f"; {wrong} proposals were no trade"
    elif not signals:
        detail += ": it never trades here"
    return Row("makes signals", bool(signals) and not wrong, detail)


def _recorded(dotted: str, path: str, watch: Watch) -> Row:
    """The same over a recorded market: from a new start, after having seen it, and cut short."""
    name = f"the same on {Path(path).name}"

    def answers(base: Rule, until_ms: int | None = None) -> tuple[Spy, int, int]:
        spy = Spy(base, watch)
        each = replace(base, function=spy, state="on", faults=-(10**9))
        made = replay(path, rules=[each], until_ms=until_ms)
        return spy, made.first_ms, made.last_ms

    try:
        base = fresh(dotted, watch)
        first, began_ms, ended_ms = answers(base)
        again, _, _ = answers(base)
        cut, _, _ = answers(fresh(dotted, watch), (began_ms + ended_ms) // 2)
    except RecordingError as error:
        return Row(name, False, str(error))
    wrong = differing(first.answers, again.answers)
    early = {key: told for key, told in first.answers.items() if key in cut.answers}
    wrong += differing(early, cut.answers)
    if first.raised:
        return Row(name, False, first.raised)
    return _verdict(name, wrong, len(first.answers), "it holds on to what it saw")


def table(rows: list[Row]) -> str:
    width = max(len(row.name) for row in rows)
    return "\n".join(
        f"{'ok  ' if row.ok else 'FAIL'}  {row.name:{width}}  {row.detail}" for row in rows
    )
