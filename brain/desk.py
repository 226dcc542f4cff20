"""From kernel events to what is to be published: rules are asked, signals opened, outcomes written.

`on_events` takes the rows of one kernel call and yields effects in order, each as soon as it is
known; it touches the follow table of the state and nothing outside. What a desk is told besides
(a model, signals to follow again, a rule's new state) is used by inputs.py.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
import orjson

from brain.events import CLOSE_EVENT, GONE, OUTCOME, RESULTS, RESYNC, WHOLE, Row
from brain.features import FEATURES, named, open_signal
from brain.funnel import ASKED, FAULTS, SILENT, Funnel, stage_of
from brain.gather import G_NAME, GATHERED, NUMBERS, WHAT, What, gather
from brain.guard import Guard
from brain.rules import Candidate, No, Rule, stop_masks
from brain.signals import SIDES, Check, Facts, Model, Signal, Terms, judge
from brain.state import ACTIVE, State
from brain.view import INDEX, CandleView
from records import TIMEFRAME_NAMES, TIMEFRAMES_MIN
from streams import cause_id

REMEMBERED: Final = 1_024  # keys that ended here, and outcomes whose signal is not known yet
MINUTE_MS: Final = 60_000
NS: Final = 1_000_000  # of a millisecond
STEPS_MS: Final = dict(zip(TIMEFRAME_NAMES, (m * MINUTE_MS for m in TIMEFRAMES_MIN), strict=True))


class PutSignal(NamedTuple):
    """`pending` is written with the signal; a shadow signal is written to pending only."""

    id: str
    shadow: bool
    expires_ms: int
    fields: Mapping[str, str]
    pending: str


@dataclass(frozen=True, slots=True)
class PutOutcome:
    id: str
    fields: Mapping[str, str]


class PutDecision:
    """Its fields are put into words by whoever reads them: no signal waits for that."""

    __slots__ = ("_fields", "_tell")

    def __init__(self, tell: Callable[[], Mapping[str, str]]) -> None:
        self._tell, self._fields = tell, dict[str, str]()

    @property
    def fields(self) -> Mapping[str, str]:
        if not self._fields:
            self._fields = dict(self._tell())
        return self._fields

    def __eq__(self, other: object) -> bool:
        return isinstance(other, PutDecision) and self.fields == other.fields

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"PutDecision({self.fields})"


@dataclass(frozen=True, slots=True)
class PutJournal:
    text: str


@dataclass(frozen=True, slots=True)
class AskPending:
    """A symbol became whole: signals that wait for it may be in `pending`."""


@dataclass(frozen=True, slots=True)
class AskSnapshot:
    row: int


class Cut(NamedTuple):
    """A rule's answer that was not waited for. A recording keeps it with the records that led to
    the question: a replay that did not know would wait for ever."""

    rule: str
    symbol: str
    timeframe: str
    bar_ms: int  # open time of the candle


Effect = PutSignal | PutOutcome | PutDecision | PutJournal | AskPending | AskSnapshot | Cut


class Open(NamedTuple):
    """One followed signal, as it lies in `pending`: all that is needed to go on and to judge it."""

    id: str
    symbol: str
    rule: str
    timeframe: str
    side: int
    entry: float
    stop: float
    target: float
    cost: float
    known_ns: int
    deadline_ms: int
    bars_from_ms: int
    shadow: bool
    fields: Mapping[str, str]
    features: Mapping[str, float]

    @property
    def slot(self) -> tuple[str, str, str]:
        return self.symbol, self.rule, self.timeframe


@dataclass(slots=True)
class Desk:
    """The brain's Python side: rules, model, open signals by key."""

    state: State
    rules: list[Rule]
    terms: Terms
    taker_fee: float
    model: Model = field(default_factory=Model)
    open: dict[int, Open] = field(default_factory=dict)
    slots: dict[tuple[str, str, str], int] = field(default_factory=dict)
    rows: dict[str, int] = field(default_factory=dict)
    closed: OrderedDict[int, None] = field(default_factory=OrderedDict)
    strays: OrderedDict[int, dict[str, str]] = field(default_factory=OrderedDict)
    masks: npt.NDArray[np.int64] = field(
        default_factory=lambda: np.zeros(len(TIMEFRAME_NAMES), np.int64)
    )
    slow_ns: int = 5_000_000  # an answer that takes longer is slow
    cuts: frozenset[Cut] = frozenset()  # of a recording: answers that were not waited for
    guard: Guard = field(init=False)
    names: dict[tuple[int, ...], str] = field(default_factory=dict)  # of symbols, by their words
    whats: npt.NDArray[np.int64] = field(
        default_factory=lambda: np.zeros((GATHERED, WHAT), np.int64)
    )
    numbers: npt.NDArray[np.float64] = field(default_factory=lambda: np.zeros((GATHERED, NUMBERS)))
    features: npt.NDArray[np.float64] = field(default_factory=lambda: np.zeros(len(FEATURES)))

    candidates: int = 0
    refused: int = 0
    signals: int = 0
    faults: int = 0
    structure_events: int = 0
    funnel: Funnel = field(default_factory=Funnel)

    def __post_init__(self) -> None:
        self.guard = Guard(self.state.arrays.control)


def dumps(value: Any) -> str:
    """JSON on one line; a signal waits for it, so not by the standard library."""
    return orjson.dumps(value).decode()


def new_desk(
    state: State, rules: list[Rule], terms: Terms, taker_fee: float, slow_ns: int = 5_000_000
) -> Desk:
    """A desk over a state that may already know symbols."""
    desk = Desk(state, rules, terms, taker_fee, slow_ns=slow_ns)
    desk.masks[:] = stop_masks(rules)
    for row in np.flatnonzero(state.arrays.sym[:, ACTIVE]):
        desk.rows[state.name(int(row))] = int(row)
    return desk


def on_events(desk: Desk, events: npt.NDArray[Any], boot_ns: Callable[[], int]) -> Iterator[Effect]:
    """What the rows of one kernel call lead to, in their order; `boot_ns` stamps signals."""
    begin = 0
    while begin < len(events):
        n, begin, structures = gather(desk.state.arrays, events, begin, desk.whats, desk.numbers)
        desk.structure_events += structures
        numbers = desk.numbers[:n].tolist()
        for k, what in enumerate(map(What._make, desk.whats[:n].tolist())):
            if what.kind == CLOSE_EVENT:
                yield from _on_close(desk, what, numbers[k], boot_ns)
            elif what.kind == OUTCOME:
                yield from _on_outcome(desk, Row._make(events[what.event].tolist()))
            elif what.kind == WHOLE:
                desk.rows[desk.state.name(what.symbol)] = what.symbol
                yield AskPending()
            elif what.kind == GONE:
                _on_gone(desk, what.symbol)
            elif what.kind == RESYNC:
                yield AskSnapshot(what.symbol)


def _free(desk: Desk, slot: tuple[str, str, str], key: int) -> None:
    """Give up a place if this signal still has it: two may share one while `pending` is unread."""
    if desk.slots.get(slot) == key:
        del desk.slots[slot]


def _on_gone(desk: Desk, row: int) -> None:
    """Another lane follows this symbol's signals now; `pending` has them."""
    gone = [name for name, known in desk.rows.items() if known == row]
    for name in gone:
        del desk.rows[name]
    for key in [key for key, each in desk.open.items() if each.symbol in gone]:
        _free(desk, desk.open.pop(key).slot, key)


def _on_close(
    desk: Desk, what: What, numbers: list[float], boot_ns: Callable[[], int]
) -> Iterator[Effect]:
    timeframe, flags, known_ms = TIMEFRAME_NAMES[what.timeframe], what.flags, what.known_ns // NS
    words = what[G_NAME:]
    name = desk.names.get(words)
    if name is None:
        name = desk.names[words] = desk.state.name(what.symbol)
    view = CandleView(
        name, timeframe, what.bar_ms, known_ms, flags, desk.taker_fee, desk.state.arrays,
        what.symbol, {timeframe: numbers},
    )  # fmt: skip
    for each in desk.rules:
        if not each.asked(timeframe, flags):
            continue
        if desk.cuts and Cut(each.name, name, timeframe, what.bar_ms) in desk.cuts:
            each.cut = (name, timeframe, what.bar_ms)
            continue
        began_ns = boot_ns()
        found, fault = desk.guard.ask(each, view, began_ns)
        if each.cut is not None:
            yield Cut(each.name, *each.cut)
            continue
        each.took(boot_ns() - began_ns, desk.slow_ns)
        desk.funnel.add(known_ms, ASKED)
        if fault:
            desk.faults += 1
            desk.funnel.add(known_ms, FAULTS)
            desk.masks[:] = stop_masks(desk.rules)
            yield PutJournal(fault)
        if isinstance(found, No):
            desk.funnel.way(known_ms, found.stage, found.reason)
            yield PutDecision(partial(_tell_no, desk.terms, each.name, found, view))
        elif found is not None:
            desk.candidates += 1
            each.candidates += 1
            yield from _on_candidate(desk, each, found, view, what, boot_ns)
        elif not fault:
            desk.funnel.add(known_ms, SILENT)


def _facts(desk: Desk, each: Rule, view: CandleView, what: What) -> Facts:
    known_ns = what.known_ns
    return Facts(
        symbol=view.symbol,
        rule=each.name,
        rule_state=each.state,
        timeframe=view.timeframe,
        timeframe_ms=STEPS_MS[view.timeframe],
        bar_ms=what.bar_ms,
        known_ns=known_ns,
        recv_ns=what.recv_ns,
        degraded=bool(what.degraded),
        suspect=known_ns < what.suspect_until_ns,
        candles=what.candles,
        quote_age_ms=max((known_ns - what.quote_ns) / 1e6, 0.0),
        cost=view.round_trip,
        already_open=(view.symbol, each.name, view.timeframe) in desk.slots,
        atr=view.indicators().atr,
        bid=view.bid,
        ask=view.ask,
        quote_ns=what.quote_ns,
    )


def _on_candidate(
    desk: Desk, each: Rule, found: Candidate, view: CandleView, what: What,
    boot_ns: Callable[[], int],
) -> Iterator[Effect]:  # fmt: skip
    facts = _facts(desk, each, view, what)
    signal, checks = judge(found, facts, desk.model, desk.terms)
    if signal is not None and signal.key in desk.closed:
        checks.append(Check("new", False, {"id": signal.id}))
        signal = None
    if signal is not None and not _open(desk, signal, view):
        checks.append(Check("follow_room", False, {}))
        signal = None
    refused = next((check.name for check in checks if not check.ok), "")
    desk.funnel.way(view.known_ms, stage_of(refused) if refused else "", refused)
    if signal is None or signal.shadow:
        desk.refused += 1
    if signal is not None:
        desk.signals += not signal.shadow
        each.signals += not signal.shadow
        each.shadows += signal.shadow
        made = Open(
            id=signal.id,
            symbol=view.symbol,
            rule=each.name,
            timeframe=view.timeframe,
            side=signal.side,
            entry=signal.price,
            stop=signal.stop,
            target=signal.target,
            cost=facts.cost,
            known_ns=signal.known_ns,
            deadline_ms=signal.deadline_ms,
            bars_from_ms=signal.bars_from_ms,
            shadow=signal.shadow,
            fields={**signal.fields, "signal_ns": str(boot_ns())},
            features=named(desk.features),
        )
        desk.open[signal.key] = made
        desk.slots[made.slot] = signal.key
        pending = dumps(made._asdict())
        yield PutSignal(signal.id, signal.shadow, signal.expires_ms, made.fields, pending)
    yield PutDecision(partial(_tell_candidate, desk.terms, each.name, found, view, signal, checks))


def _open(desk: Desk, signal: Signal, view: CandleView) -> bool:
    """Follow it, and measure its features. False: the symbol has too many signals already."""
    slot = open_signal(
        desk.state.arrays, view.row, INDEX[view.timeframe], signal.key, signal.known_ns,
        signal.deadline_ms, signal.bars_from_ms, signal.side, signal.price, signal.stop,
        signal.target, view.flags, view.bar_ms, view.known_ms, desk.features,
    )  # fmt: skip
    return bool(slot >= 0)


def seen(view: CandleView, side: int) -> list[Check]:
    """What a candidate has passed before it is checked: the structure and the trend that the rule
    saw, with their numbers; they are the same for a user's rule."""
    x = view.structure()
    structure: dict[str, float | int | str] = {
        "events": " ".join(view.events()) or "none",
        "bias": x.bias * side,
        "swing_bias": x.swing_bias * side,
        "position": round(x.position * side, 4),
        "high": x.high,
        "low": x.low,
    }
    return [
        Check("structure", True, structure),
        Check("trend", True, {"trend": round(view.trend() * side, 4)}),
    ]


def _tell_no(terms: Terms, name: str, no: No, view: CandleView) -> dict[str, str]:
    """Something was seen and let pass by the rule itself."""
    structure, trend = seen(view, no.side)
    numbers: dict[str, float | int | str] = {"why": no.reason}
    numbers |= {name: round(x, 6) for name, x in no.numbers.items()}
    if no.stage == "trend":
        rows = [structure, Check("trend", False, {**trend.numbers, **numbers})]
    else:
        rows = [Check("structure", False, {**structure.numbers, **numbers})]
    return _entry(view, name, no.side, terms, "refused", no.reason, rows)


def _tell_candidate(
    terms: Terms, name: str, found: Candidate, view: CandleView, signal: Signal | None,
    checks: Sequence[Check],
) -> dict[str, str]:  # fmt: skip
    """One entry of `decisions`, in the words that risk uses for its own."""
    outcome = "refused" if signal is None else ("shadow" if signal.shadow else "signal")
    return _entry(
        view, name, found.side, terms, outcome, found.reason,
        [*seen(view, found.side), *checks], f"{signal.confidence:.6f}" if signal else "",
    )  # fmt: skip


def _entry(
    view: CandleView, name: str, side: int, terms: Terms, outcome: str, reason: str,
    checks: Sequence[Check], chance: str = "",
) -> dict[str, str]:  # fmt: skip
    """`signal` is the id that the candidate has or would have had: `why` finds it by that."""
    refused = next((check.name for check in checks if not check.ok), "")
    rows = [{"name": check.name, "ok": check.ok, **check.numbers} for check in checks]
    word = SIDES[side]
    return {
        "source": "brain",
        "signal": cause_id(terms.world, view.symbol, view.timeframe, view.bar_ms, word, name),
        "symbol": view.symbol,
        "side": word,
        "rule": name,
        "timeframe": view.timeframe,
        "bar_ms": str(view.bar_ms),
        "outcome": outcome,
        "stage": stage_of(refused) if refused else "signal",
        "refused_by": refused,
        "confidence": chance,
        "reason": reason,
        "verdicts": dumps(rows),
        "ms": str(view.known_ms),
    }


# --- outcomes --------------------------------------------------------------------------------


def result_of(result: str, gross_r: float, price: float, known_ns: int) -> dict[str, str]:
    """How a signal ended, before costs: `gross_r` in risks, the market time in milliseconds."""
    return {
        "result": result,
        "gross_r": f"{gross_r:.6f}",
        "exit_price": f"{price:.10g}",
        "outcome_ms": str(known_ns // 1_000_000),
    }


def outcome_of(each: Open, result: dict[str, str]) -> PutOutcome:
    """The signal's fields, its end, and its features as they were."""
    risk = abs(each.entry - each.stop)
    net_r = float(result["gross_r"]) - each.cost / risk
    duration_ms = int(result["outcome_ms"]) - each.known_ns // 1_000_000
    fields = {
        **each.fields,
        **result,
        "net_r": f"{net_r:.6f}",
        "duration_ms": str(duration_ms),
        "shadow": str(int(each.shadow)),
        "features": dumps(each.features),
    }
    return PutOutcome(each.id, fields)


def remember(memory: OrderedDict[int, Any], key: int, value: Any) -> None:
    """Keep one more; beyond REMEMBERED the oldest is forgotten."""
    memory[key] = value
    if len(memory) > REMEMBERED:
        memory.popitem(last=False)


def _on_outcome(desk: Desk, row: Row) -> list[Effect]:
    key, result = row.key, result_of(RESULTS[row.code], row.a, row.b, row.known_ns)
    each = desk.open.pop(key, None)
    if each is None:  # opened before a restart; `pending` will tell whose it is
        remember(desk.strays, key, result)
        return []
    _free(desk, each.slot, key)
    remember(desk.closed, key, None)
    return [outcome_of(each, result)]
