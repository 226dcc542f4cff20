"""The funnel over all brains and risk: how far candidates get, and what stops most of them.

Brains count their stages since they started and over the last hour of market time; the gate and
the orders are counted from their streams, as far back as those are kept. Where nothing came in at
all, sentences say what the brains wait for.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import streams
from maintenance import recording
from maintenance.running import Client

BRAIN_STAGES: Final = ("structure", "trend", "checks", "confidence", "state")  # brain/funnel.py
STAGES: Final = (*BRAIN_STAGES, "gate", "order")
HOUR_MS: Final = 3_600_000
ENTRIES_MAX: Final = 5_000  # of each stream, newest first
LOST: Final = frozenset({"rejected", "expired", "canceled"})  # an entry that was not filled at all

Fields = Mapping[str, str]


@dataclass(slots=True)
class Stage:
    """What came to a stage and what it refused, by reason."""

    came: int = 0
    by: Counter[str] = field(default_factory=Counter)

    def told(self) -> dict[str, Any]:
        most = self.by.most_common(1)
        return {
            "came": self.came,
            "refused": self.by.total(),
            "most": {"by": most[0][0], "count": most[0][1]} if most else None,
        }


def _of_brains(counts: Iterable[Mapping[str, int]]) -> tuple[Counter[str], dict[str, Stage]]:
    """Sums over brains; `stage` is what came, `stage:reason` what was lost there."""
    total: Counter[str] = Counter()
    for each in counts:
        total.update(each)
    stages = {name: Stage(total[name]) for name in BRAIN_STAGES}
    for name, count in total.items():
        stage, _, reason = name.partition(":")
        if reason and stage in stages:
            stages[stage].by[reason] += count
    return total, stages


def _of_gate(decisions: Iterable[Fields]) -> Stage:
    made = Stage()
    for fields in decisions:
        if fields.get("source") == "risk":
            made.came += 1
            if fields.get("refused_by"):
                made.by[fields["refused_by"]] += 1
    return made


def _of_orders(orders: Iterable[Fields]) -> Stage:
    """Entries by client id; lost is one that ended without a fill. Oldest first."""
    last: dict[str, Fields] = {}
    for fields in orders:
        if fields.get("leg") == "entry":
            last[fields.get("id", "")] = fields
    made = Stage(len(last))
    for fields in last.values():
        if fields.get("state") in LOST and float(fields.get("executed_qty") or 0) == 0.0:
            made.by[fields.get("reason") or fields["state"]] += 1
    return made


def fold(
    reports: Mapping[str, Mapping[str, Any]], decisions: list[Fields], orders: list[Fields]
) -> dict[str, Any]:
    """The object of `status --json`."""
    since_ms = max((each["market_ms"] for each in reports.values()), default=0) - HOUR_MS
    total, stages = _of_brains(each["funnel"]["total"] for each in reports.values())
    _, recent = _of_brains(each["funnel"]["hour"] for each in reports.values())

    def late(entries: list[Fields]) -> list[Fields]:
        return [each for each in entries if float(each.get("ms") or 0) >= since_ms]

    stages |= {"gate": _of_gate(decisions), "order": _of_orders(orders)}
    recent |= {"gate": _of_gate(late(decisions)), "order": _of_orders(late(orders))}
    return {
        "asked": total["asked"],
        "silent": total["silent"],
        "faults": total["faults"],
        "signals": total["signals"],
        "stages": {name: {**stages[name].told(), "hour": recent[name].told()} for name in STAGES},
        "waits": waits(reports, total),
    }


def waits(reports: Mapping[str, Mapping[str, Any]], total: Mapping[str, int]) -> list[str]:
    """What is still missing, in the order in which it is needed; empty once there are signals."""
    if not reports:
        return ["no brain reports: start a node, or look at its log"]
    if total["signals"]:
        return []
    symbols, whole, quoted, events = (
        sum(each[name] for each in reports.values())
        for name in ("symbols", "whole", "quoted", "structure_events")
    )
    rules = [rule for each in reports.values() for rule in each["rules"] if rule["state"] != "off"]
    made = []
    if not symbols:
        made.append("no symbol is announced yet: the feed is not connected, or has none")
    if whole < symbols:
        made.append(f"{symbols - whole} of {symbols} symbols are not whole: history or healing")
    if quoted < symbols:
        made.append(f"{symbols - quoted} of {symbols} symbols have no quote yet")
    least = next(iter(reports.values()))["candles_warm"]
    for frame in dict.fromkeys(frame for rule in rules for frame in rule["timeframes"]):
        warm = sum(each["warm"][frame] for each in reports.values())
        if warm < symbols:
            made.append(f"{frame}: {warm} of {symbols} symbols have the {least} candles needed")
    if not rules:
        made.append("every rule is off: see `./aegis rule list`")
    elif not any(rule["state"] == "on" for rule in rules):
        made.append("no rule is on, only in shadow: see `./aegis rule list`")
    if symbols and not events:
        made.append("no candle has closed with a structure event since the start")
    made.append(
        f"rules were asked {total['asked']} times after {events} structure events, said nothing "
        f"{total['silent']} times, raised {total['faults']} times"
    )
    return made


def collect(r: Client, keys: streams.Keys) -> dict[str, Any]:
    def newest(key: str) -> list[Fields]:
        return [fields for _, fields in r.xrevrange(key, count=ENTRIES_MAX)][::-1]

    return fold(recording.brains(r, keys), newest(keys.decisions), newest(keys.orders))


def render(told: Mapping[str, Any]) -> list[str]:
    """Lines for people: one per stage that anything came to."""
    lines = [
        f"funnel  rules asked {told['asked']:,} times, silent {told['silent']:,}, "
        f"faults {told['faults']}, signals {told['signals']:,}"
    ]
    for name, stage in told["stages"].items():
        if stage["came"]:
            lines.append(f"  {name:10} {_shown(stage)}; last hour {_shown(stage['hour'])}")
    return lines + [f"  waits: {sentence}" for sentence in told["waits"]]


def _shown(stage: Mapping[str, Any]) -> str:
    text = f"{stage['came']:,} came, {stage['refused']:,} refused"
    most = stage["most"]
    return text + (f" (most by {most['by']}: {most['count']:,})" if most else "")
