"""Everything that the brain says over a stream, each fact with the time at which it was known.

Kinds: event (every row of the kernel), bars, indicators, forming, structure, zones and features (as
they stand at each close), and effect (signals, outcomes, decisions of the rules). A fact is (kind,
known_ns, whose, what); `what` is plain numbers and texts that compare exactly.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from brain_bench import Bench

from brain import desk as desks
from brain.events import CLOSE_EVENT
from brain.features import features
from brain.indicators import OUTPUTS
from brain.rules import load_rules
from brain.signals import Terms
from brain.state import TIMEFRAMES
from brain.view import CandleView
from records import TIMEFRAME_NAMES

KINDS = (
    "event", "bars", "indicators", "forming", "structure", "zones", "features", "effect",
)  # fmt: skip
TERMS = Terms("world", "node", "rule", 15_000)
Fact = tuple[str, int, tuple[int, int], Any]


def plain(values: Any) -> tuple:
    """NaN compares unequal to itself; None does not."""
    values = values.ravel().tolist() if isinstance(values, np.ndarray) else values
    return tuple(None if x != x else x for x in values)


def _view(bench: Bench, e: tuple) -> CandleView:
    return CandleView(
        symbol=bench.state.name(e[11]), timeframe=TIMEFRAME_NAMES[e[12]], bar_ms=e[2],
        known_ms=e[0] // 1_000_000, flags=e[3], taker_fee=0.0005, arrays=bench.state.arrays,
        row=e[11],
    )  # fmt: skip


def _at_close(bench: Bench, e: tuple) -> list[Fact]:
    """What stands in the state at a close that is the newest of its timeframe."""
    known, s, t = e[0], e[11], e[12]
    a, view, whose = bench.state.arrays, _view(bench, e), (e[11], e[12])
    if view.newest_bar_ms != e[2]:
        return []
    kept = view.bars()
    made = {
        "bars": plain(np.array([getattr(kept, name)[-30:] for name in kept.__match_args__])),
        "indicators": plain(a.ind[s, t, : len(OUTPUTS)]),
        "forming": plain(view.forming()),
        "structure": plain(a.smc[s, t]) + plain(view.structure()),
        "zones": plain(a.zones[s, t]),
        "features": tuple(tuple(features(view, side).items()) for side in (1, -1)),
    }
    return [(kind, known, whose, what) for kind, what in made.items()]


def _of_effect(effect: Any) -> Fact:
    fields = getattr(effect, "fields", {})
    ms = fields.get("outcome_ms") or fields.get("ms")
    known = int(ms) * 1_000_000 if ms else int(fields.get("exch_ns", 0))
    return ("effect", known, (0, 0), repr(effect))


def witness(recs: np.ndarray, symbols: int = 1, batch: int = 4096, **bench_args: Any) -> list[Fact]:
    """Every fact of these records; the kernel stops at each close, so that nothing is missed."""
    bench = Bench(symbols, **bench_args)
    desk = desks.new_desk(bench.state, load_rules(), TERMS, 0.0005)
    bench.masks = desk.masks
    bench.masks[:] = -1
    facts: list[Fact] = []

    def note(rows: np.ndarray) -> None:
        for row in rows:
            e = row.tolist()
            facts.append(("event", e[0], (e[11], e[12]), plain(e)))
            if e[13] == CLOSE_EVENT:
                facts.extend(_at_close(bench, e))
        facts.extend(map(_of_effect, desks.on_events(desk, rows, lambda: 99)))

    bench.feed(recs, batch, note)
    assert bench.count("closes") > 0 and len(bench.state.arrays.counts[0]) == TIMEFRAMES
    return facts


def known_until(facts: list[Fact], ns: int) -> list[Fact]:
    return [fact for fact in facts if fact[1] <= ns]


def by_kind(facts: list[Fact]) -> dict[str, list[Fact]]:
    """The facts of each kind in their order; which kind is told first is the caller's cut."""
    return {kind: [fact for fact in facts if fact[0] == kind] for kind in KINDS}


def violations(prefix: list[Fact], whole: list[Fact], ns: int) -> list[str]:
    """Kinds of the facts known at `ns` that are not the same with and without what came later."""
    one, other = by_kind(known_until(prefix, ns)), by_kind(known_until(whole, ns))
    return [kind for kind in KINDS if one[kind] != other[kind]]


def peeking(facts: list[Fact], kind: str) -> list[Fact]:
    """The twin that looks one fact ahead: what it says of a close is true of the next one only."""
    out, ahead = [], {}
    for fact in reversed(facts):
        name, known, whose, what = fact
        if name != kind:
            out.append(fact)
            continue
        out.append((name, known, whose, ahead.get(whose, what)))
        ahead[whose] = what
    return out[::-1]
