"""What a brain tells of itself: its rules with their speed, the funnel, what it waits for."""

from __future__ import annotations

from typing import Any

import numpy as np

from brain.desk import Desk
from brain.rules import Rule
from brain.signals import WARM_CANDLES
from brain.state import ACTIVE, BID, C_CLOCK_NS, DEGRADED
from records import TIMEFRAME_NAMES


def rule_report(each: Rule) -> dict[str, Any]:
    """Counts of one rule since the start; times in microseconds."""
    return {
        "name": each.name,
        "state": each.state,
        "timeframes": list(each.timeframes),
        "asked": each.asks,
        "candidates": each.candidates,
        "signals": each.signals,
        "shadow": each.shadows,
        "faults": each.faults,
        "mean_us": round(each.spent_ns / each.asks / 1000, 1) if each.asks else None,
        "max_us": round(each.spent_ns_max / 1000, 1) if each.asks else None,
        "why": each.why,
    }


def desk_report(desk: Desk) -> dict[str, Any]:
    """Everything but the recording."""
    a = desk.state.arrays
    active = a.sym[:, ACTIVE] != 0
    warm = (a.counts[active] >= WARM_CANDLES).sum(axis=0).tolist()
    now_ms = int(a.control[C_CLOCK_NS]) // 1_000_000
    return {
        "market_ms": now_ms,
        "symbols": int(active.sum()),
        "whole": int((active & (a.sym[:, DEGRADED] == 0)).sum()),
        "quoted": int(np.isfinite(a.px[active, BID]).sum()),
        "warm": dict(zip(TIMEFRAME_NAMES, warm, strict=True)),
        "candles_warm": WARM_CANDLES,
        "structure_events": desk.structure_events,
        "open_signals": len(desk.open),
        "policy": desk.terms.entry_policy,
        "rules": [rule_report(each) for each in desk.rules],
        "funnel": desk.funnel.told(now_ms),
    }
