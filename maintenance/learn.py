"""The live model: how often each rule on each timeframe was right, counted exactly once.

The model is a hash: for each `rule|timeframe` the numbers of wins, losses and time-outs, and
`last_id`, the last entry of `outcomes` that is counted in. Reading goes on after that id and the
write is a compare-and-set on it, so two learners, or one that dies, count nothing twice.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Final

import streams
from maintenance.running import Client

BATCH: Final = 1_000
RESULTS: Final = ("win", "loss", "timeout")  # anything else (abandoned, unknown) is not counted

Counts = dict[str, tuple[int, int, int]]  # rule|timeframe -> how often each of RESULTS


def count(before: Counts, outcomes: Iterable[Mapping[str, str]]) -> Counts:
    """The counts with these outcomes added."""
    made = dict(before)
    for outcome in outcomes:
        result, rule, timeframe = (outcome.get(n, "") for n in ("result", "rule", "timeframe"))
        if not rule or not timeframe or result not in RESULTS:
            continue
        row = list(made.get(f"{rule}|{timeframe}", (0, 0, 0)))
        row[RESULTS.index(result)] += 1
        made[f"{rule}|{timeframe}"] = (row[0], row[1], row[2])
    return made


def to_fields(counts: Counts, version: int, last_id: str) -> dict[str, str]:
    return {
        "version": str(version),
        "kind": "counts",
        "last_id": last_id,
        "counts": json.dumps(counts, sort_keys=True),
    }


def from_fields(fields: Mapping[str, str]) -> tuple[Counts, int, str]:
    """Counts, version, last id; an empty hash is the empty model."""
    raw = json.loads(fields.get("counts") or "{}")
    counts = {name: (int(w), int(lost), int(t)) for name, (w, lost, t) in raw.items()}
    return counts, int(fields.get("version") or 0), fields.get("last_id", "")


def learn(r: Client, keys: streams.Keys) -> int:
    """Take in what is new; how many outcomes were read. Stops when another learner was faster."""
    read = 0
    while True:
        fields: dict[str, str] = r.hgetall(keys.model_live)
        counts, version, last_id = from_fields(fields)
        start = f"({last_id}" if last_id else "-"
        entries = r.xrange(keys.outcomes, start, "+", count=BATCH)
        if not entries:
            return read
        counts = count(counts, (told for _, told in entries))
        newest = entries[-1][0]
        if not streams.model_cas(r, keys, last_id, to_fields(counts, version + 1, newest)):
            return read
        read += len(entries)
