"""From a rule's candidate to a signal: checks, break-even, confidence, a deterministic id. Pure.

Confidence is the calibrated base rate: how often signals of this rule and timeframe reached their
target before their stop, smoothed towards what a driftless walk would do (stop / (stop + target)).
Break-even is the share of wins that pays fees and spread. Under the policy `proven` a signal must
be more likely than that; under `rule` a valid rule suffices and the gate decides.

Every refusal names its check and its numbers, so that "it does not trade" has an answer.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from brain.rules import NOTHING, Candidate
from streams import cause_id

WARM_CANDLES: Final = 50  # EMA 50 and everything shorter is known
PRIOR_WEIGHT: Final = 20.0  # signals that the driftless walk counts for
TIMEOUT_BARS: Final = 60
NO_MODEL: Final = "none"
SIDES: Final = {1: "buy", -1: "sell"}


@dataclass(frozen=True, slots=True)
class Model:
    """Counts of wins, losses and time-outs by "rule|timeframe"; what learning has to say so far."""

    version: str = NO_MODEL
    counts: Mapping[str, tuple[float, float, float]] = field(default_factory=dict)


def parse_model(fields: Mapping[str, str]) -> Model:
    """A Model from the hash model:live: `version` and `counts`, JSON {"rule|timeframe": [w, l, t]}.

    Raises ValueError for anything else; unknown fields are ignored.
    """
    if not fields:
        return Model()
    raw = json.loads(fields.get("counts") or "{}")
    counts = {}
    for name, row in raw.items():
        wins, losses, timeouts = (float(x) for x in row)
        if min(wins, losses, timeouts) < 0.0 or "|" not in name:
            raise ValueError(f"counts of {name} are {row}")
        counts[name] = (wins, losses, timeouts)
    return Model(fields.get("version", NO_MODEL), counts)


def driftless(candidate: Candidate) -> float:
    """How often a walk without drift reaches the target before the stop."""
    stop, target = abs(candidate.entry - candidate.stop), abs(candidate.target - candidate.entry)
    return stop / (stop + target)


def breakeven(candidate: Candidate, cost: float) -> float:
    """The share of wins at which gains pay losses and the cost of each round trip; 1 at most."""
    stop, target = abs(candidate.entry - candidate.stop), abs(candidate.target - candidate.entry)
    return min((stop + cost) / (stop + target), 1.0)


def confidence(model: Model, rule: str, timeframe: str, prior: float) -> float:
    """Smoothed hit rate; a time-out is no win."""
    wins, losses, timeouts = model.counts.get(f"{rule}|{timeframe}", (0.0, 0.0, 0.0))
    return (wins + PRIOR_WEIGHT * prior) / (wins + losses + timeouts + PRIOR_WEIGHT)


class Facts(NamedTuple):
    """What a candidate is judged by, besides itself."""

    symbol: str
    rule: str
    rule_state: str
    timeframe: str
    timeframe_ms: int
    bar_ms: int
    known_ns: int
    recv_ns: int
    degraded: bool
    suspect: bool
    candles: int
    quote_age_ms: float
    cost: float  # of a round trip, in price
    already_open: bool
    atr: float = math.nan  # of the timeframe, in price; unknown while it warms up
    bid: float = math.nan  # as quoted at market time quote_ns
    ask: float = math.nan
    quote_ns: int = 0


@dataclass(frozen=True, slots=True)
class Terms:
    """Settings that do not change while the brain runs."""

    world: str
    node: str
    entry_policy: str  # rule | proven
    signal_age_ms: int


class Check(NamedTuple):
    name: str
    ok: bool
    numbers: Mapping[str, float | int | str]


class Signal(NamedTuple):
    """A candidate that passed; `shadow` is followed and learned from but not sent to risk."""

    id: str
    key: int  # of the id, for the kernel
    shadow: bool
    side: int
    price: float
    stop: float
    target: float
    confidence: float
    breakeven: float
    quality: float
    known_ns: int
    deadline_ms: int
    bars_from_ms: int
    expires_ms: int
    fields: Mapping[str, str]


def signal_key(signal_id: str) -> int:
    """A positive 63-bit number for an id; never 0."""
    digest = hashlib.blake2b(signal_id.encode(), digest_size=8).digest()
    return (int.from_bytes(digest, "little") & (2**63 - 1)) or 1


def checks(candidate: Candidate, facts: Facts, terms: Terms) -> list[Check]:
    """Whether the candidate is a signal at all, in order, up to the first that refuses."""
    side, entry, stop, target, _, _ = candidate
    right = (entry - stop) * side > 0.0 and (target - entry) * side > 0.0
    right = right and stop > 0.0 and target > 0.0
    warm = facts.candles >= WARM_CANDLES
    fresh = 0.0 <= facts.quote_age_ms <= terms.signal_age_ms
    made = [
        Check("bracket", right, {"stop": stop, "target": target}),
        Check("whole", not facts.degraded, NOTHING),
        Check("reference", not facts.suspect, NOTHING),
        Check("warm", warm, {"candles": facts.candles, "least": WARM_CANDLES}),
        Check("quote", fresh, {"age_ms": facts.quote_age_ms, "age_ms_max": terms.signal_age_ms}),
        Check("one_open", not facts.already_open, NOTHING),
    ]
    for place, check in enumerate(made):
        if not check.ok:
            return made[: place + 1]
    return made


def judge(
    candidate: Candidate, facts: Facts, model: Model, terms: Terms
) -> tuple[Signal | None, list[Check]]:
    """The signal, or None with the check that refused as the last one."""
    made = checks(candidate, facts, terms)
    if not made[-1].ok:
        return None, made
    chance = confidence(model, facts.rule, facts.timeframe, driftless(candidate))
    needed = breakeven(candidate, facts.cost)
    proven = chance > needed
    made.append(
        Check(
            "proven",
            proven or terms.entry_policy != "proven",
            {"confidence": chance, "breakeven": needed, "policy": terms.entry_policy},
        )
    )
    made.append(Check("rule_state", facts.rule_state == "on", {"state": facts.rule_state}))
    shadow = not (made[-1].ok and made[-2].ok)
    return _signal(candidate, facts, model, terms, chance, needed, shadow), made


def _signal(
    candidate: Candidate,
    facts: Facts,
    model: Model,
    terms: Terms,
    chance: float,
    needed: float,
    shadow: bool,
) -> Signal:
    side, known_ms = SIDES[candidate.side], facts.known_ns // 1_000_000
    made = cause_id(terms.world, facts.symbol, facts.timeframe, facts.bar_ms, side, facts.rule)
    expires_ms = known_ms + min(facts.timeframe_ms, terms.signal_age_ms)
    fields = {
        "id": made,
        "world": terms.world,
        "node": terms.node,
        "symbol": facts.symbol,
        "side": side,
        "rule": facts.rule,
        "timeframe": facts.timeframe,
        "bar_ms": str(facts.bar_ms),
        "price": _text(candidate.entry),
        "stop": _text(candidate.stop),
        "target": _text(candidate.target),
        "confidence": f"{chance:.6f}",
        "breakeven": f"{needed:.6f}",
        "quality": f"{candidate.quality:.4f}",
        "reason": candidate.reason,
        "model": model.version,
        "expires_ms": str(expires_ms),
        "exch_ns": str(facts.known_ns),
        "recv_ns": str(facts.recv_ns),
    }
    if facts.atr > 0.0:
        fields["atr"] = _text(facts.atr)
    if facts.bid > 0.0 and facts.ask > 0.0:  # risk need not ask the exchange for them
        fields["bid"], fields["ask"] = _text(facts.bid), _text(facts.ask)
        fields["quote_ns"] = str(facts.quote_ns)
    return Signal(
        id=made,
        key=signal_key(made),
        shadow=shadow,
        side=candidate.side,
        price=candidate.entry,
        stop=candidate.stop,
        target=candidate.target,
        confidence=chance,
        breakeven=needed,
        quality=candidate.quality,
        known_ns=facts.known_ns,
        deadline_ms=known_ms + TIMEOUT_BARS * facts.timeframe_ms,
        bars_from_ms=facts.bar_ms + facts.timeframe_ms,
        expires_ms=expires_ms,
        fields=fields,
    )


def _text(price: float) -> str:
    """Eight significant decimals at most, no exponent: risk rounds to the tick."""
    return f"{price:.10f}".rstrip("0").rstrip(".")
