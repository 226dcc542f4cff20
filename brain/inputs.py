"""Inputs of a desk besides the ring, each used between two records: in a replay at the same place.

A model, the state of a rule that was slow or gave no answer, and `pending` after a restart: a
signal that the follow table still has goes on untouched, another is first judged on the closed
candles of the time in between, stop first, and then followed again.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy.typing as npt
import orjson

from brain.desk import (
    MINUTE_MS,
    Desk,
    Effect,
    Open,
    PutJournal,
    outcome_of,
    remember,
    result_of,
)
from brain.follow import arm
from brain.rules import SLOW_MAX, stop_masks
from brain.signals import Model, signal_key
from brain.state import DEGRADED, State, candles, follows
from brain.view import INDEX
from records import TIMEFRAME_NAMES, TIMEFRAMES_MIN


def news_of(desk: Desk, pending: Mapping[str, str]) -> dict[str, str]:
    """Of `pending` what this desk does not know yet."""
    return {
        signal_id: text
        for signal_id, text in pending.items()
        if (key := signal_key(signal_id)) not in desk.open and key not in desk.closed
    }


def slow_rules(desk: Desk) -> list[dict[str, Any]]:
    """Inputs that switch what has become slow: time is nothing that a replay could repeat. One
    whose answer was not waited for is off."""
    made: list[dict[str, Any]] = []
    for each in desk.rules:
        if each.cut is not None:
            why = f"without an answer for {each.cut[0]} {each.cut[1]}, and was interrupted"
            made.append({"input": "rule", "name": each.name, "state": "off", "why": why})
        elif each.slow >= SLOW_MAX and each.state != "off":
            state = each.demoted
            mean_ms = each.spent_ns / each.asks / 1e6
            why = f"slow: {mean_ms:.1f} ms on average, {desk.slow_ns / 1e6:g} ms are allowed"
            made.append({"input": "rule", "name": each.name, "state": state, "why": why})
    return made


def use_input(desk: Desk, told: Mapping[str, Any]) -> list[Effect]:
    """One input besides the ring: a model, signals to follow again, a rule's new state."""
    if told["input"] == "model":
        counts = {name: (row[0], row[1], row[2]) for name, row in told["counts"].items()}
        desk.model = Model(told["version"], counts)
    elif told["input"] == "pending":
        return rearm(desk, told["signals"])
    elif told["input"] == "rule":
        for each in desk.rules:
            if each.name == told["name"]:
                each.put(told["state"], told["why"])
        desk.faults += 1
        desk.masks[:] = stop_masks(desk.rules)
        return [PutJournal(f"rule {told['name']} is {told['why']}; now {told['state']}")]
    return []


# --- restart ---------------------------------------------------------------------------------


def parse_open(text: str) -> Open:
    """An entry of `pending`. Raises ValueError, TypeError or KeyError when it is none."""
    raw = orjson.loads(text)
    made = Open(**{name: raw[name] for name in Open._fields})
    numbers = (made.entry, made.stop, made.target)
    if made.side not in (1, -1) or not min(numbers) > 0.0 or made.timeframe not in INDEX:
        raise ValueError(f"pending signal {made.id} is no bracket")
    return made


def rearm(desk: Desk, pending: Mapping[str, str]) -> list[Effect]:
    """Follow again what `pending` holds for symbols that are whole here."""
    effects: list[Effect] = []
    a = desk.state.arrays
    for signal_id, text in pending.items():
        key = signal_key(signal_id)
        if key in desk.open or key in desk.closed:
            continue
        try:
            each = parse_open(text)
        except (ValueError, TypeError, KeyError) as error:
            effects.append(PutJournal(f"pending {signal_id} is not understood: {error}"))
            remember(desk.closed, key, None)
            continue
        row = desk.rows.get(each.symbol)
        if key in desk.strays:
            remember(desk.closed, key, None)
            effects.append(outcome_of(each, desk.strays.pop(key)))
        elif row is not None and not a.sym[row, DEGRADED]:
            effects += _resume(desk, each, key, row)
    return effects


def _resume(desk: Desk, each: Open, key: int, row: int) -> list[Effect]:
    a = desk.state.arrays
    if not follows(a, row, key):
        ended = judge_on_candles(desk.state, each, row)
        if ended is not None:
            remember(desk.closed, key, None)
            return [outcome_of(each, ended)]
        slot = arm(
            a, row, INDEX[each.timeframe], key, each.known_ns, each.deadline_ms,
            each.bars_from_ms, each.side, each.entry, each.stop, each.target,
        )  # fmt: skip
        if slot < 0:
            return [PutJournal(f"signal {each.id} is not followed: {each.symbol} has too many")]
    desk.open[key] = each
    desk.slots[each.slot] = key
    return []


def judge_on_candles(state: State, each: Open, row: int) -> dict[str, str] | None:
    """The end of a signal by closed candles since it was known, stop first; None while open.

    The finest timeframe that reaches back far enough is used; its bars from the signal's own
    bar end on. What happened within a coarser bar before that is not seen.
    """
    for index, timeframe in enumerate(TIMEFRAME_NAMES):
        bars = candles(state, row, timeframe)
        if len(bars) and bars["open_ms"][0] <= each.bars_from_ms:
            return _judge(each, bars, TIMEFRAMES_MIN[index] * MINUTE_MS)
    return None


def _judge(each: Open, bars: npt.NDArray[Any], step_ms: int) -> dict[str, str] | None:
    risk = abs(each.entry - each.stop)
    for bar in bars[bars["open_ms"] >= each.bars_from_ms]:
        known_ns = (int(bar["open_ms"]) + step_ms) * 1_000_000
        worst, best = (bar["low"], bar["high"]) if each.side > 0 else (bar["high"], bar["low"])
        if int(bar["open_ms"]) >= each.deadline_ms:
            gross_r = (float(bar["open"]) - each.entry) * each.side / risk
            return result_of("timeout", gross_r, float(bar["open"]), known_ns)
        if (worst - each.stop) * each.side <= 0.0:
            gapped = (float(bar["open"]) - each.stop) * each.side < 0.0
            price = float(bar["open"]) if gapped else each.stop
            return result_of("loss", (price - each.entry) * each.side / risk, price, known_ns)
        if (best - each.target) * each.side >= 0.0:
            gross_r = abs(each.target - each.entry) / risk
            return result_of("win", gross_r, each.target, known_ns)
    return None
