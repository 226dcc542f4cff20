"""Commands: what operators and jobs may ask, and how each is answered."""

from __future__ import annotations

import json
from typing import Any

import pytest
from risk_desk import KEYS, Desk, decisions, ops, queries, sends

from risk.arming import limits_of, settings_hash
from risk.commands import HALTED
from risk.events import CommandRead, Commit, Effect, Snap
from risk.gate import Limits


def command(desk: Desk, name: str, **fields: str) -> list[Effect]:
    return desk.do(CommandRead("5-0", {"id": "c1", "name": name, **fields}))


def answer(effects: list[Effect]) -> dict[str, Any]:
    told: dict[str, Any] = json.loads(ops(effects, "hset", KEYS.replies)[0][2]["c1"])
    return told


def test_every_command_is_acknowledged_and_answered_in_one_write() -> None:
    for name in ("halt", "resume", "flatten", "protect", "correct", "dance"):
        done = command(Desk(), name)
        commits = [e for e in done if isinstance(e, Commit) and e.ack]
        assert [c.ack for c in commits] == [(KEYS.commands, "main", "5-0")]
        assert any(op[1] == KEYS.replies for op in commits[0].ops)


def test_an_unknown_command_is_told_so() -> None:
    assert answer(command(Desk(), "dance")) == {"ok": False, "error": "unknown command 'dance'"}


def test_halt_stops_entries_and_stays_until_resume() -> None:
    desk = Desk()
    done = command(desk, "halt")
    assert ops(done, "del", KEYS.armed) and HALTED in ops(done, "hset", KEYS.breakers)[0][2]
    desk.state.armed = True  # a key alone does not lift a halt
    assert decisions(desk.signal())[0]["refused_by"] == "armed"
    assert ops(command(desk, "resume"), "hdel", KEYS.breakers)
    assert sends(desk.signal(id="s2"), "entry")


def test_flatten_closes_one_symbol_or_all_of_them() -> None:
    desk = Desk()
    desk.open("BTCUSDT")
    desk.open("ETHUSDT")
    assert answer(command(desk, "flatten", symbol="ETHUSDT"))["closing"] == ["ETHUSDT"]
    done = command(desk, "flatten")
    assert [s.params["symbol"] for s in sends(done, "exit")] == ["BTCUSDT"]


def test_flatten_works_unarmed_and_without_a_reconcile() -> None:
    desk = Desk()
    desk.open()
    desk.state.armed = desk.state.reconciled = False
    assert sends(command(desk, "flatten"), "exit")


def test_protect_sends_the_stop_of_a_position_without_one() -> None:
    desk = Desk()
    entry = sends(desk.signal(), "entry")[0]
    stop = sends(desk.fill(entry, "1", "1000"), "stop")[0]
    assert [s.about for s in sends(command(desk, "protect", symbol="BTCUSDT"), "stop")] == [
        stop.about
    ]
    assert answer(command(Desk(), "protect", symbol="BTCUSDT"))["ok"] is False


def test_a_snapshot_is_asked_for_and_answered_when_it_is_there() -> None:
    done = command(Desk(), "snapshot", slot="7")
    assert [e for e in done if isinstance(e, Snap)] == [Snap("snapshot", "c1")]
    assert not ops(done, "hset", KEYS.replies)


def test_a_correction_of_a_size_is_looked_at_anew_before_it_is_believed() -> None:
    desk = Desk()
    desk.open()
    fields = {"action": "settle", "symbol": "BTCUSDT", "amount": "0", "snapshot": "1-1"}
    command(desk, "correct", **fields)
    assert desk.state.positions
    assert [e for e in desk.wait(1) if isinstance(e, Snap)] == [Snap("again")]


def test_a_correction_of_an_order_asks_for_it() -> None:
    desk = Desk()
    entry = sends(desk.signal(), "entry")[0]
    done = command(desk, "correct", action="query", symbol="BTCUSDT", order=entry.about)
    assert [q.about for q in queries(done)] == [entry.about]


def test_a_stop_that_stands_is_not_cancelled_by_an_old_correction() -> None:
    desk = Desk()
    _, stop, _ = desk.open()
    done = command(desk, "correct", action="cancel", symbol="BTCUSDT", order=stop.about)
    assert not [e for e in done if type(e).__name__ == "Cancel"]


def test_arming_stands_for_account_and_settings() -> None:
    class Settings:
        def __getattr__(self, name: str) -> Any:
            return {"entry_policy": "rule", "rotation": True, "decay_exit": True}.get(name, 1)

    limits = limits_of(Settings())
    assert settings_hash(limits, "main") == settings_hash(limits, "main")
    assert settings_hash(limits, "main") != settings_hash(limits, "other")
    assert settings_hash(limits, "main") != settings_hash(Limits(), "main")


@pytest.mark.parametrize("amount", ["x", "1e5e5", "NaN", "sNaN", "Infinity"])
def test_a_correction_that_cannot_be_read_is_set_aside(amount: str) -> None:
    done = command(Desk(), "correct", action="settle", symbol="BTCUSDT", amount=amount)
    assert answer(done)["ok"] is False
    assert ops(done, "xadd", KEYS.dead)


@pytest.mark.parametrize(("touched_ms", "acts"), [(-1, True), (0, False), (1, False)])
def test_a_correction_is_older_than_what_changed_after_its_snapshot(
    touched_ms: int, acts: bool
) -> None:
    desk = Desk()
    entry = sends(desk.signal(), "entry")[0]
    desk.state.touched["BTCUSDT"] = desk.boot_ms + touched_ms
    desk.state.snapshots["1-9"] = desk.boot_ms
    fields = {"action": "query", "symbol": "BTCUSDT", "order": entry.about, "snapshot": "1-9"}
    assert bool(queries(command(desk, "correct", **fields))) is acts
    assert bool([e for e in desk.wait(1) if isinstance(e, Snap)]) is not acts
