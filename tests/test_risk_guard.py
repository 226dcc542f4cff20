"""Quarantine and silence: what is noticed, told once, and told again when it is over."""

from __future__ import annotations

from decimal import Decimal

import pytest
from risk_desk import KEYS, NOT_FOUND, Desk, decisions, ops, queries, sends
from test_risk_ownership import flatten
from test_risk_reconcile import make_order, rest, snapshot

from risk.events import CommandRead, Effect, Note, SnapshotTaken
from risk.guard import JOBS_SILENT_MS, PASS_MS, QUARANTINE_PASSES
from risk.journal import status_ops
from risk.reconcile import Snapshot
from risk.recovery import START

D = Decimal
# An order of ours that we never heard of and that no cancel takes away.
STRAY = rest(make_order("gone", "s", "ETHUSDT", "sell", "acked"))


def look(desk: Desk, truth: Snapshot, after_ms: float = PASS_MS) -> list[Effect]:
    desk.wait(after_ms)
    desk.quote_all()
    return desk.do(SnapshotTaken(truth, "reconcile"))


def notes(effects: list[Effect], level: str) -> list[str]:
    return [e.text for e in effects if isinstance(e, Note) and e.level == level]


def quarantined() -> tuple[Desk, list[Effect]]:
    desk, done = Desk(), []
    for _ in range(QUARANTINE_PASSES):
        done = look(desk, snapshot(algos=(STRAY,)))
    return desk, done


def fresh(desk: Desk, **over: str) -> list[Effect]:
    ms = int(desk.market_ms)
    times = {"exch_ns": str(ms * 1_000_000), "expires_ms": str(ms + 9_000)}
    return desk.signal(**times | over)


@pytest.mark.parametrize(
    ("passes", "apart"),
    [(QUARANTINE_PASSES - 1, False), (QUARANTINE_PASSES, True), (QUARANTINE_PASSES + 1, True)],
)
def test_what_no_correction_brings_together_is_quarantined(passes: int, apart: bool) -> None:
    desk = Desk()
    for _ in range(passes):
        look(desk, snapshot(algos=(STRAY,)))
    assert (list(desk.state.quarantine) == ["ETHUSDT"]) is apart


def test_a_quarantine_is_loud_and_leaves_the_others_alone() -> None:
    desk, done = quarantined()
    assert len(notes(done, "CRITICAL")) == 1
    assert any("quarantine" in op[2]["text"] for op in ops(done, "xadd", KEYS.journal))
    written = [op[2] for op in ops(done, "hset", KEYS.breakers)]
    assert any("quarantine:ETHUSDT" in fields for fields in written)
    assert (
        "ETHUSDT: the exchange differs" in status_ops(desk.state, {}, desk.now)[0][2]["quarantine"]
    )
    refused = decisions(fresh(desk, id="a", symbol="ETHUSDT"))[0]
    assert refused["refused_by"] == "quarantine" and "cancel" in refused["verdicts"]
    assert sends(fresh(desk, id="b", symbol="BTCUSDT"), "entry")
    assert not notes(look(desk, snapshot(algos=(STRAY,))), "CRITICAL")  # told once


def test_a_quarantine_is_over_when_we_agree() -> None:
    desk, _ = quarantined()
    done = look(desk, snapshot())
    assert notes(done, "WARNING") and not desk.state.quarantine
    assert ops(done, "hdel", KEYS.breakers) == [("hdel", KEYS.breakers, ["quarantine:ETHUSDT"])]
    assert sends(fresh(desk, symbol="ETHUSDT"), "entry")


def test_a_pass_that_agrees_begins_the_count_anew() -> None:
    desk = Desk()
    for _ in range(QUARANTINE_PASSES - 1):
        look(desk, snapshot(algos=(STRAY,)))
    look(desk, snapshot())
    for _ in range(QUARANTINE_PASSES - 1):
        look(desk, snapshot(algos=(STRAY,)))
    assert not desk.state.quarantine


@pytest.mark.parametrize(("pause_ms", "apart"), [(PASS_MS - 1, False), (PASS_MS, True)])
def test_looks_in_a_hurry_count_once(pause_ms: float, apart: bool) -> None:
    desk = Desk()
    look(desk, snapshot(algos=(STRAY,)))
    look(desk, snapshot(algos=(STRAY,)))
    look(desk, snapshot(algos=(STRAY,)), pause_ms)
    assert bool(desk.state.quarantine) is apart


def test_another_difference_at_each_look_is_no_reason_for_quarantine() -> None:
    desk = Desk()
    for number in range(QUARANTINE_PASSES + 2):
        stray = rest(make_order(f"gone-{number}", "s", "ETHUSDT", "sell", "acked"))
        look(desk, snapshot(algos=(stray,)))
    assert not desk.state.quarantine
    for _ in range(QUARANTINE_PASSES - 1):
        look(desk, snapshot(algos=(stray,)))
    assert list(desk.state.quarantine) == ["ETHUSDT"]


def test_what_moves_is_not_apart() -> None:
    desk = Desk()
    for _ in range(QUARANTINE_PASSES + 1):
        desk.wait(PASS_MS)
        desk.state.touched["ETHUSDT"] = desk.boot_ms
        desk.do(SnapshotTaken(snapshot(algos=(STRAY,), started_ms=desk.boot_ms), "reconcile"))
    assert not desk.state.quarantine


def test_the_job_s_looks_count_too() -> None:
    desk = Desk()
    for number in range(QUARANTINE_PASSES):
        desk.wait(PASS_MS)
        desk.do(SnapshotTaken(snapshot(algos=(STRAY,)), "snapshot", f"c{number}"))
    assert list(desk.state.quarantine) == ["ETHUSDT"]


def test_a_quarantine_takes_no_protection_and_traps_no_position() -> None:
    desk = Desk()
    entry = sends(desk.signal(), "entry")[0]
    desk.state.quarantine["BTCUSDT"] = "apart"
    assert sends(desk.fill(entry, "1", "1000"), "stop")
    assert sends(flatten(desk), "exit")


def test_a_stuck_order_is_quarantined_and_released_when_it_is_answered() -> None:
    desk = Desk()
    entry = sends(desk.signal(), "entry")[0]
    desk.state.touched.clear()
    for _ in range(QUARANTINE_PASSES):
        look(desk, snapshot())  # the exchange shows nothing and answers no query
    assert list(desk.state.quarantine) == ["BTCUSDT"]
    asked = [q for q in queries(desk.wait(5_000)) if q.about == entry.about]
    for _ in range(2):
        desk.reply(asked[0], NOT_FOUND)
        asked = [q for q in queries(desk.wait(6_000)) if q.about == entry.about] or asked
    assert desk.state.orders[entry.about].state == "rejected"
    look(desk, snapshot())
    assert not desk.state.quarantine


# --- scheduled jobs ---


def asked(desk: Desk) -> list[Effect]:
    return desk.do(CommandRead("5-0", {"id": "snapshot-1", "name": "snapshot"}))


@pytest.mark.parametrize(("after_ms", "silent"), [(-1, False), (0, True), (1, True)])
def test_jobs_that_nobody_hears_for_two_periods_are_told(after_ms: float, silent: bool) -> None:
    desk = Desk()
    desk.do(SnapshotTaken(snapshot(), START))
    done = desk.wait(JOBS_SILENT_MS + after_ms)
    assert bool(notes(done, "WARNING")) is silent
    assert (
        bool([op for op in ops(done, "xadd", KEYS.journal) if "silent" in op[2]["text"]]) is silent
    )
    assert status_ops(desk.state, {}, desk.now)[0][2]["jobs"] == ("silent" if silent else "")


def test_silence_is_told_once_and_its_end_too() -> None:
    desk = Desk()
    desk.do(SnapshotTaken(snapshot(), START))
    assert notes(desk.wait(JOBS_SILENT_MS), "WARNING")
    assert not notes(desk.wait(JOBS_SILENT_MS), "WARNING")
    asked(desk)
    assert "heard again" in notes(desk.wait(1), "WARNING")[0]
    assert not notes(desk.wait(JOBS_SILENT_MS - 2), "WARNING")
