"""Named crash points and removed guards: each is where risk is, and does what it says, once."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from decimal import Decimal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from redis_writes import commit
from risk_desk import KEYS, Desk, cancels, sends

import streams
from maintenance import chaos_plan, chaos_points, chaos_risk
from maintenance.chaos_points import BREAKS, POINTS, Counter
from risk import orders
from risk.events import Commit, Effect, Request, SnapshotTaken
from risk.reconcile import Snapshot

ROOT = Path(__file__).resolve().parent.parent


class Died(Exception):
    """Instead of SIGKILL."""


@pytest.fixture
def mortal(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A process whose SIGKILL of itself is seen."""
    numbers: list[int] = []

    def kill(pid: int, number: int) -> None:
        assert pid == os.getpid()
        numbers.append(number)
        raise Died

    monkeypatch.setattr(os, "kill", kill)
    return numbers


# --- the places ---


def round_trips() -> list[Effect]:
    """What risk does in a life of two positions: one left by a signal, one by its stop."""
    desk = Desk()
    desk.open()
    desk.done(sends(desk.signal(id="against", side="sell", stop="1010", target="980"), "exit")[0],
              "FILLED", "0")  # fmt: skip
    leave = sends(desk.effects, "exit")[0]
    desk.fill(leave, leave.params["quantity"], "1001")
    _, stop, _ = desk.open("ETHUSDT")
    entry = sends(desk.effects, "entry")[-1]
    desk.done(entry, "FILLED", entry.params["quantity"])
    desk.fill(stop, entry.params["quantity"], "990")
    desk.signal(id="stale", symbol="SOLUSDT", exch_ns="0")
    snapshot = Snapshot("1-1", 0.0, 0, Decimal(1), {}, (), ())
    desk.do(SnapshotTaken(snapshot, "start"))
    assert cancels(desk.effects)
    return desk.effects


def live_through(points: chaos_risk.Points) -> None:
    """Every wrapped function, called as risk calls it."""
    made = {name: make for _, name, make in chaos_risk.places(points)}

    async def answer(*_: Any, **__: Any) -> Any:
        return "ok"

    async def epoch(*_: Any) -> int:
        return 7

    async def entries(*_: Any) -> Any:
        return [(KEYS.signals, "1-0", {})]

    async def through() -> None:
        converse = made["_converse"](answer)
        http = SimpleNamespace(_bytes=lambda sent: b"")
        transport = SimpleNamespace(pause_reading=lambda: None)
        connection = SimpleNamespace(ask=lambda data: None, transport=transport)

        async def fetch(_: Any, request: Request) -> str:
            return str(await converse(http, connection, None, 1.0))

        async def written(*_: Any, writes: Any, **more: Any) -> Any:
            return ["ok"] * len(writes), None

        call, commit = made["call"](fetch), made["commit"](written)
        for effect in round_trips():
            if isinstance(effect, Request):
                await call(None, effect)
            elif isinstance(effect, Commit):
                write = streams.Write(effect.ops, effect.ack, effect.armed, effect.unless)
                await commit(None, KEYS, epoch=1, writes=[write])
        for name, old in (("lease_take", epoch), ("rebuild", answer), ("take_snapshot", answer)):
            await made[name](old)()
        await made["read_group"](entries)()
        made["snapshot_done"](lambda *_: None)(None, None)
        made["pushed"](lambda *_: None)(None, {"e": "ORDER_TRADE_UPDATE", "o": {"x": "TRADE"}})

    asyncio.run(through())


@pytest.mark.parametrize("point", POINTS)
def test_risk_passes_every_point(point: str, tmp_path: Path, mortal: list[int]) -> None:
    chaos_points.arm(tmp_path, point, 1, 1)
    with pytest.raises(Died):
        live_through(chaos_risk.Points(tmp_path))
    assert mortal == [signal.SIGKILL] and chaos_points.struck(tmp_path)


def test_nothing_armed_changes_nothing_but_that_it_is_up(tmp_path: Path, mortal: list[int]) -> None:
    assert not chaos_points.stands(tmp_path, os.getpid())
    live_through(chaos_risk.Points(tmp_path))
    assert chaos_points.stands(tmp_path, os.getpid())
    assert mortal == [] and not chaos_points.struck(tmp_path)


def test_every_wrapped_name_is_there() -> None:
    places = chaos_risk.places(chaos_risk.Points(Path("none")))
    assert all(callable(getattr(owner, name)) for owner, name, _ in places)


def test_a_wrapped_name_that_is_gone_ends_the_process(capsys: pytest.CaptureFixture[str]) -> None:
    owner = SimpleNamespace(__name__="risk.other", here=1)
    chaos_risk.replace(owner, "here", lambda old: old + 1)
    assert owner.here == 2
    with pytest.raises(SystemExit):
        chaos_risk.replace(owner, "gone", lambda old: old)
    assert "risk.other.gone" in capsys.readouterr().err


def test_a_refused_write_is_no_write(tmp_path: Path, mortal: list[int]) -> None:
    async def stale(*_: Any, **__: Any) -> Any:
        return ["stale"], None

    chaos_points.arm(tmp_path, "after_ack", 1, 1)
    commit = chaos_risk.places(chaos_risk.Points(tmp_path))[0][2](stale)
    ack = (KEYS.signals, "main", "1-0")
    told = asyncio.run(commit(None, KEYS, epoch=1, writes=[streams.Write((), ack)]))
    assert told == (["stale"], None)
    assert mortal == []


# --- one arming, one death ---


@pytest.mark.parametrize("passes", [1, 2, 3])
def test_a_process_dies_at_exactly_the_pass_it_was_told(passes: int, tmp_path: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from maintenance import chaos_risk\n"
        "points = chaos_risk.Points(Path(sys.argv[1]))\n"
        "for n in range(9):\n"
        "    points.pass_by('before_ack')\n"
        "    points.pass_by('after_ack')\n"
        "    print(n, flush=True)\n"
    )
    chaos_points.arm(tmp_path, "after_ack", passes, 1)
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)], cwd=ROOT, capture_output=True, check=False
    )
    assert done.returncode == -signal.SIGKILL
    assert done.stdout.split() == [str(n).encode() for n in range(passes - 1)]


def test_a_second_process_is_spared(tmp_path: Path) -> None:
    chaos_points.arm(tmp_path, "after_read", 1, 1)
    first, second = Counter(tmp_path), Counter(tmp_path)
    assert first.due("after_read") and second.due("after_read")
    assert first.take() and not second.take() and not second.due("after_read")
    assert chaos_points.struck(tmp_path) and not chaos_points.disarm(tmp_path)


def test_what_was_withdrawn_kills_nobody_and_the_next_counts_anew(tmp_path: Path) -> None:
    counter = Counter(tmp_path)
    chaos_points.arm(tmp_path, "after_read", 2, 1)
    assert not counter.due("after_read")
    assert chaos_points.disarm(tmp_path) and not counter.due("after_read")
    chaos_points.arm(tmp_path, "after_read", 2, 2)
    assert not counter.due("after_read") and not counter.due("before_fill")
    assert counter.due("after_read")


# --- the plan ---


def test_each_point_is_a_kind_of_fault_of_its_own() -> None:
    steps = chaos_plan.plan(4, 3.0, 400, chaos_plan.kinds_of("crash"))
    assert {step.kind for step in steps} == {f"crash:{point}" for point in POINTS}
    passes = {int(step.body["passes"]) for step in steps}
    assert passes == set(range(1, chaos_points.PASSES_MAX + 1))
    ways = {s.body.get("by") for s in steps if s.kind == "crash:in_snapshot"}
    assert ways == {"take-over", "command"}


def test_kinds_are_chosen_by_how_they_begin() -> None:
    assert chaos_plan.kinds_of("redis_k,kill_h") == ("redis_kill", "kill_holder")
    assert chaos_plan.kinds_of("crash") == chaos_plan.CRASH_KINDS
    assert chaos_plan.kinds_of("nothing") == chaos_plan.kinds_of("crash,") == ()


def test_without_a_guard_what_needs_it_comes_more_often_and_the_rest_still_comes() -> None:
    for broken in BREAKS:
        kinds = [step.kind for step in chaos_plan.plan(2, 3.0, 600, chaos_plan.favouring(broken))]
        assert set(kinds) == set(chaos_plan.KINDS)
        favoured = chaos_plan.FAVOURED[broken]
        assert all(kinds.count(kind) > 2 * kinds.count("redis_kill") for kind in favoured)


# --- the breaks ---


@pytest.mark.parametrize("name", BREAKS)
def test_a_guard_is_there_to_be_taken_out(name: str, tmp_path: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from maintenance import chaos_risk\n"
        "chaos_risk.prepare(Path(sys.argv[1]), sys.argv[2])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path), name], cwd=ROOT, capture_output=True
    )
    assert (done.returncode, done.stderr) == (0, b"")


def broken(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """One guard out for the rest of a test."""
    from maintenance import chaos_breaks

    def replace(owner: Any, part: str, make: Callable[[Any], Any]) -> None:
        monkeypatch.setattr(owner, part, make(getattr(owner, part)))

    chaos_breaks.take_out(name, replace)


def lost_entry(desk: Desk) -> list[Effect]:
    from risk.events import Unknown

    entry = sends(desk.signal(), "entry")[0]
    return desk.reply(entry, Unknown("no answer"))


def test_without_query_a_lost_entry_is_sent_again(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not sends(lost_entry(Desk()), "entry")
    broken(monkeypatch, "query")
    assert len(sends(lost_entry(Desk()), "entry")) == 1


def twice(desk: Desk) -> tuple[Decimal, int]:
    """(size of the position after its fill came twice, entries of a signal that came twice)"""
    entry = sends(desk.signal(), "entry")[0]
    desk.fill(entry, "2", "1000")
    desk.trades -= 1
    desk.fill(entry, "2", "1000")
    size = desk.state.positions["BTCUSDT"].qty
    desk.state.positions.clear()
    return size, len(sends(desk.signal(), "entry"))


def test_without_dedupe_fills_and_signals_count_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    assert twice(Desk()) == (Decimal(2), 0)
    broken(monkeypatch, "dedupe")
    assert twice(Desk()) == (Decimal(4), 1)


def stops(desk: Desk) -> Iterator[bool]:
    """Was each of several positions given a stop, or closed for the want of one?"""
    for n, symbol in enumerate(("BTCUSDT", "ETHUSDT", "SOLUSDT")):
        entry = sends(desk.signal(id=f"s{n * n + n}", symbol=symbol), "entry")[0]
        yield bool(sends(desk.fill(entry, "1", "1000"), "stop"))
    left = desk.wait(desk.limits.naked_ms + 1)
    yield bool(sends(left, "exit"))


def test_without_stop_some_positions_stay_naked(monkeypatch: pytest.MonkeyPatch) -> None:
    assert list(stops(Desk())) == [True, True, True, True]
    broken(monkeypatch, "stop")
    told = list(stops(Desk()))
    assert False in told[:3] and True in told[:3]


def corrected(desk: Desk) -> bool:
    entry = sends(desk.signal(), "entry")[0]
    there = {"BTCUSDT": (Decimal(1), Decimal(1000))}
    desk.wait(10)
    snapshot = Snapshot("1-1", desk.boot_ms, 0, Decimal(1), there, (), ())
    desk.do(SnapshotTaken(snapshot, "trouble"))
    assert desk.state.orders[entry.about].leg == orders.ENTRY_LEG
    return "BTCUSDT" in desk.state.positions


def test_without_reconcile_a_snapshot_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    assert corrected(Desk())
    broken(monkeypatch, "reconcile")
    assert not corrected(Desk())


def test_without_fence_a_former_holder_writes(
    monkeypatch: pytest.MonkeyPatch, redis_url: str
) -> None:
    async def write() -> str:
        r = streams.connect_async(redis_url)
        try:
            old = await streams.lease_take(r, KEYS, "one", 3_000)
            await streams.lease_drop(r, KEYS, "one")
            await streams.lease_take(r, KEYS, "two", 3_000)
            ops = [("hset", KEYS.portfolio, {"equity": "1"})]
            return await commit(r, old, ops)
        finally:
            await r.aclose()

    assert asyncio.run(write()) == "stale"
    broken(monkeypatch, "fence")
    assert asyncio.run(write()) == "ok"
