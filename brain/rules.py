"""Rules: the extension point. A rule is a function on a closed candle.

    @rule("my_rule", timeframes=("5m",), on=("internal_bos",), reward=1.5)
    def my_rule(view: CandleView, params: Params) -> Candidate | None:
        '''Buy the break.'''

`on` names the structure events (smc.CODES) without which the rule need not be asked; without `on`
it is asked at every close. A rule sees closed candles only and decides nothing but side, entry,
stop, target, reason and quality; fees, freshness, confidence and risk are judged after it. One that
sees something and lets it pass may say why by a No, which the funnel counts. One that raises, or
that is often slow, is switched to shadow, then off, and reported; one that does not answer at all
is interrupted and off (guard.py). It never stops the brain.

Ours: structure break, sweep reversal, zone retest. Stops are structural, bounded in ATR, and never
nearer than a multiple of the round trip's cost: a stop that its fees eat cannot pay.
"""

from __future__ import annotations

import hashlib
import importlib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final, Literal, NamedTuple

from numba.core.dispatcher import Dispatcher

from brain import smc
from brain.closing import EVERY_CLOSE
from brain.view import CandleView
from records import TIMEFRAME_NAMES

Params = Mapping[str, float]
RuleState = Literal["off", "shadow", "on"]
STATES: Final = ("off", "shadow", "on")
FAULTS_MAX: Final = 10  # a rule that keeps raising in shadow is switched off
SLOW_MAX: Final = 5  # so many more slow answers than quick ones: to shadow, then off
NOTHING: Final[Mapping[str, float]] = MappingProxyType({})


class Candidate(NamedTuple):
    """What a rule proposes: side +1 buy, -1 sell; prices; quality 0..1."""

    side: int
    entry: float
    stop: float
    target: float
    reason: str
    quality: float


class No(NamedTuple):
    """Why a rule that saw something proposes nothing: `stage` is structure or trend."""

    side: int
    stage: str
    reason: str
    numbers: Mapping[str, float] = NOTHING


Answer = Candidate | No | None
Function = Callable[[CandleView, Params], Answer]


@dataclass(slots=True)
class Rule:
    """A rule as loaded: where it is asked, with what, and its state."""

    name: str
    function: Function
    timeframes: tuple[str, ...]
    mask: int  # structure bits, EVERY_CLOSE for all closes
    params: Params
    state: RuleState = "on"
    key: int = 0  # of its name, for the state's file
    faults: int = 0
    why: str = ""  # the state is not the one that was asked for
    asks: int = 0
    candidates: int = 0
    signals: int = 0
    shadows: int = 0
    spent_ns: int = 0
    spent_ns_max: int = 0
    slow: int = 0
    cut: tuple[str, str, int] | None = None  # the close at which its answer was not waited for

    def took(self, spent_ns: int, slow_ns: int) -> None:
        """One answer and its time."""
        self.asks += 1
        self.spent_ns += spent_ns
        self.spent_ns_max = max(self.spent_ns_max, spent_ns)
        self.slow = self.slow + 1 if spent_ns > slow_ns else max(self.slow - 1, 0)

    @property
    def demoted(self) -> RuleState:
        """On to shadow, shadow to off."""
        return "shadow" if self.state == "on" else "off"

    def put(self, state: RuleState, why: str) -> None:
        """Into another state than the one that was asked for."""
        self.state, self.why, self.slow, self.cut = state, why, 0, None

    def asked(self, timeframe: str, flags: int) -> bool:
        if self.state == "off" or timeframe not in self.timeframes or self.cut is not None:
            return False
        return self.mask == EVERY_CLOSE or bool(flags & self.mask)


@dataclass(frozen=True, slots=True)
class _Terms:
    name: str
    timeframes: tuple[str, ...]
    on: tuple[str, ...]
    params: dict[str, float]


class RuleError(Exception):
    """A rule that cannot be loaded; the sentence says what to do."""


def rule(
    name: str,
    timeframes: tuple[str, ...] = ("1m",),
    on: tuple[str, ...] = (),
    **params: float,
) -> Callable[[Function], Function]:
    """Say where a rule is asked and its parameters' defaults."""

    def decorate(function: Function) -> Function:
        function.terms = _Terms(name, timeframes, on, params)  # type: ignore[attr-defined]
        return function

    return decorate


def as_rule(function: Function, state: RuleState = "on") -> Rule:
    """A Rule of a function, decorated or not. Raises RuleError for unknown names, and for a
    function that numba compiles."""
    bare = _Terms(getattr(function, "__name__", "rule"), ("1m",), (), {})
    terms: _Terms = getattr(function, "terms", bare)
    if isinstance(function, Dispatcher):
        raise RuleError(
            f"rule {terms.name} is compiled by numba, to which a view means nothing: let a plain "
            "rule hand the arrays of view.bars() to a compiled function (docs/first-rule.md)"
        )
    unknown = [x for x in terms.timeframes if x not in TIMEFRAME_NAMES]
    unknown += [x for x in terms.on if x not in smc.CODES]
    if unknown:
        raise RuleError(f"rule {terms.name} names {unknown[0]}, which does not exist")
    mask = EVERY_CLOSE
    if terms.on:
        mask = 0
        for event in terms.on:
            mask |= smc.flag(smc.CODES.index(event), 1) | smc.flag(smc.CODES.index(event), -1)
    digest = hashlib.blake2b(terms.name.encode(), digest_size=7).digest()
    key = int.from_bytes(digest) or 1
    return Rule(terms.name, function, terms.timeframes, mask, terms.params, state, key)


def load_rules(extra: tuple[str, ...] = ()) -> list[Rule]:
    """Ours and those named "module.function", each perhaps with "=shadow" or "=off" behind it.

    The name of one of ours with "=..." sets its state. Raises RuleError with a sentence.
    """
    rules = {made.name: made for made in (as_rule(function) for function in OURS)}
    for text in extra:
        dotted, _, wish = text.partition("=")
        state = wish or "on"
        if state not in STATES:
            raise RuleError(f"rule {dotted}: state {state} is none of off, shadow, on")
        if dotted in rules:
            rules[dotted].state = state  # type: ignore[assignment]
            continue
        made = as_rule(_import(dotted), state)  # type: ignore[arg-type]
        if made.name in rules:
            raise RuleError(f"two rules are named {made.name}: rename one")
        rules[made.name] = made
    return list(rules.values())


def _import(dotted: str) -> Function:
    module, _, name = dotted.replace(":", ".").rpartition(".")
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise RuleError(f"AEGIS_RULES names {dotted}, which cannot be loaded: {error}") from error
    if not callable(found):
        raise RuleError(f"AEGIS_RULES names {dotted}, which is no function")
    return found


def stop_masks(rules: list[Rule]) -> list[int]:
    """Per timeframe: the structure bits on which the kernel must hand over."""
    masks = []
    for timeframe in TIMEFRAME_NAMES:
        wanted = [r.mask for r in rules if r.state != "off" and timeframe in r.timeframes]
        mask = 0
        for each in wanted:
            mask = EVERY_CLOSE if EVERY_CLOSE in (mask, each) else mask | each
        masks.append(mask)
    return masks


# --- ours ------------------------------------------------------------------------------------

PICTURE: Final = ("1m", "5m", "15m")
_BRACKET: Final = {
    "stop_atr_min": 0.8,  # nearer than this is noise
    "stop_atr_max": 1.5,  # farther than this is another trade
    "stop_pad_atr": 0.1,  # beyond the level, not on it
    "stop_cost_min": 2.2,  # round trips; keeps cost below the gate's 0.5 R
    "reward": 1.5,
}


def bracket(
    view: CandleView, side: int, level: float, params: Params, reason: str, quality: float
) -> Candidate | None:
    """Entry at the opposite quote, stop beyond `level` within bounds, target at `reward` R."""
    atr, close = view.indicators().atr, view.close()
    quoted = view.ask if side > 0 else view.bid
    entry = quoted if quoted == quoted else close
    if not atr > 0.0:
        return None
    distance = (entry - level) * side + params["stop_pad_atr"] * atr
    distance = min(max(distance, params["stop_atr_min"] * atr), params["stop_atr_max"] * atr)
    distance = max(distance, params["stop_cost_min"] * view.round_trip)
    stop, target = entry - side * distance, entry + side * params["reward"] * distance
    return Candidate(side, entry, stop, target, reason, min(max(quality, 0.0), 1.0))


def _trend(trend: float, params: Params) -> dict[str, float]:
    return {"trend": trend, "trend_min": params["trend_min"]}


@rule(
    "structure_break",
    timeframes=PICTURE,
    on=("internal_bos", "internal_choch"),
    trend_min=-0.5,
    **_BRACKET,
)
def structure_break(view: CandleView, params: Params) -> Answer:
    """Follow a close through the internal structure, unless the larger picture is against it."""
    for side in (1, -1):
        turned = view.happened("internal_choch", side)
        if not turned and not view.happened("internal_bos", side):
            continue
        trend, seen = view.trend() * side, view.structure()
        if trend < params["trend_min"]:
            return No(side, "trend", "against the larger picture", _trend(trend, params))
        level = seen.low if side > 0 else seen.high
        quality = 0.5 + 0.3 * trend + (0.1 if seen.swing_bias == side else 0.0)
        name = "change of character" if turned else "break of structure"
        reason = f"{name} {'up' if side > 0 else 'down'}, trend {trend:+.1f}"
        return bracket(view, side, level, params, reason, quality)
    return None


@rule("sweep_reversal", timeframes=PICTURE, on=("sweep",), position_min=0.2, **_BRACKET)
def sweep_reversal(view: CandleView, params: Params) -> Answer:
    """Fade a wick through a known high or low that closed back, at the outer part of the range."""
    for side in (1, -1):
        if not view.happened("sweep", side) or view.happened("sweep", -side):
            continue
        seen = view.structure()
        position = -seen.position * side  # buy in discount, sell in premium
        if not position >= params["position_min"]:
            numbers = {"position": position, "position_min": params["position_min"]}
            return No(side, "structure", "not at the outer part of the range", numbers)
        trend = view.trend() * side
        level = view.low() if side > 0 else view.high()
        quality = 0.5 + 0.2 * trend + 0.2 * min(position, 1.0)
        reason = f"swept {'lows' if side > 0 else 'highs'} at {seen.sweep_level:g} and closed back"
        return bracket(view, side, level, params, reason, quality)
    return None


@rule("zone_retest", timeframes=PICTURE, on=("fvg_touch", "block_touch"), trend_min=0.1, **_BRACKET)
def zone_retest(view: CandleView, params: Params) -> Answer:
    """Join the trend where price came back to a gap or an order block and held it."""
    no = None
    for side in (1, -1):
        block = view.happened("block_touch", side) and not view.happened("block_broken", side)
        gap = view.happened("fvg_touch", side) and not view.happened("fvg_filled", side)
        if not block and not gap:
            continue
        trend, seen = view.trend() * side, view.structure()
        if trend < params["trend_min"]:
            no = No(side, "trend", "the trend does not carry it", _trend(trend, params))
            continue
        if seen.bias != side:
            no = No(side, "structure", "the structure is against it", {"bias": seen.bias * side})
            continue
        touched = [
            zone
            for kind, wanted in (("block", block), ("gap", gap))
            for zone in (view.zones(kind, side=side) if wanted else ())
            if zone.touched
        ]
        if not touched:
            no = No(side, "structure", "the zone is gone")
            continue
        zone = touched[-1]
        level = zone.bottom if side > 0 else zone.top
        if (view.close() - level) * side <= 0.0:
            no = No(side, "structure", "closed through the zone", {"level": level})
            continue
        quality = 0.45 + 0.3 * trend + (0.1 if block and gap else 0.0)
        reason = (
            f"held {'order block' if block else 'fair value gap'} at {level:g}, trend {trend:+.1f}"
        )
        return bracket(view, side, level, params, reason, quality)
    return no


OURS: Final = (structure_break, sweep_reversal, zone_retest)


def ask(each: Rule, view: CandleView) -> tuple[Answer, str]:
    """(answer, fault). A fault switches the rule to shadow, and off if it goes on."""
    try:
        found = each.function(view, each.params)
        if isinstance(found, No):
            numbers = {str(k): float(v) for k, v in found.numbers.items()}
            stage = "trend" if found.stage == "trend" else "structure"
            return No(1 if found.side > 0 else -1, stage, str(found.reason), numbers), ""
        if found is not None:  # numpy's numbers are welcome; what leaves here is plain
            found = Candidate(
                int(found.side),
                float(found.entry),
                float(found.stop),
                float(found.target),
                str(found.reason),
                min(max(float(found.quality), 0.0), 1.0),
            )
    except Exception as error:  # noqa: BLE001 - a user's code may raise anything
        each.faults += 1
        if each.state == "on" or each.faults >= FAULTS_MAX:
            each.put(each.demoted, f"raised {type(error).__name__}: {error}"[:200])
        return None, f"rule {each.name} raised {type(error).__name__}: {error}; now {each.state}"
    if found is None:
        return None, ""
    prices = (found.entry, found.stop, found.target, found.quality)
    if found.side not in (1, -1) or not all(math.isfinite(x) for x in prices):
        return None, f"rule {each.name} proposed what is no trade: {found}"
    return found, ""
