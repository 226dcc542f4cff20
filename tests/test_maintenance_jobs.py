"""Jobs: a slot runs once whatever happens to beats and workers, on a real Redis."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import redis

import config
import streams
from maintenance import jobs, learn, tasks
from maintenance.schedule import JOBS, Job, call_of, next_call_s, slot_of

ROOT = Path(__file__).resolve().parent.parent
KEYS = streams.Keys("sim", "main")
MINUTE = Job("minute", 60, 20)


@pytest.fixture
def r(redis_url: str) -> Any:
    client = streams.connect(redis_url, 2)
    yield client
    client.close()


def desk(r: Any, redis_url: str, slot: int = 1) -> jobs.Desk:
    return jobs.Desk(r, KEYS, config.load({"REDIS_URL": redis_url}), slot)


def until(true: Callable[[], Any], patience_s: float = 30.0) -> None:
    """Wait for something to become true; the limit only ends a broken test."""
    end = time.monotonic() + patience_s
    while not true():
        assert time.monotonic() < end, "never became true"
        time.sleep(0.02)


# --- the schedule ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("wall_s", "slot", "call"), [(119.9, 1, 3), (120.0, 2, 4), (149.9, 2, 4),
                                                       (150.0, 2, 5), (180.0, 3, 6)])  # fmt: skip
def test_a_slot_has_two_calls_and_borders_at_whole_periods(
    wall_s: float, slot: int, call: int
) -> None:
    assert (slot_of(MINUTE, wall_s), call_of(MINUTE, wall_s)) == (slot, call)


@pytest.mark.parametrize("wall_s", [0.0, 29.5, 30.0, 59.999])
def test_the_next_call_is_the_next_border(wall_s: float) -> None:
    wait_s = next_call_s(MINUTE, wall_s)
    assert 0 < wait_s <= 30
    assert call_of(MINUTE, wall_s + wait_s) == call_of(MINUTE, wall_s) + 1


def test_a_beat_calls_once_in_each_half_and_at_its_start() -> None:
    wall = [100.0]
    slots = tasks.Slots(MINUTE, lambda: wall[0])
    sent = []
    for _ in range(1_405):  # a bit more than two minutes and twenty seconds
        if slots.is_due(None).is_due:
            sent.append(slots.take_call())
        wall[0] += 0.1
    assert sent == [1, 2, 2, 3, 3, 4]


def test_two_beats_of_different_starts_name_the_same_slots() -> None:
    first = tasks.Slots(MINUTE, lambda: 121.0)
    second = tasks.Slots(MINUTE, lambda: 149.0)
    assert first.take_call() == second.take_call() == 2


def test_every_job_ends_before_its_second_call() -> None:
    assert all(2 * job.limit_s <= job.period_s for job in JOBS)
    assert {job.name for job in JOBS} == set(jobs.BODIES)


# --- on a real Redis ------------------------------------------------------------------------------


def runner(redis_url: str) -> tasks.Runner:
    return tasks.Runner(config.load({"REDIS_URL": redis_url}))


def test_a_slot_runs_once_over_two_workers_and_a_redelivery(
    redis_url: str, r: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[int] = []
    monkeypatch.setitem(jobs.BODIES, "equity", lambda desk: ran.append(desk.slot))
    one, two = runner(redis_url), runner(redis_url)
    verdicts = [
        one.run("equity", 7),
        two.run("equity", 7),
        one.run("equity", 7),
        two.run("equity", 8),
    ]
    assert verdicts == ["done", "skipped", "skipped", "done"]
    assert ran == [7, 8]
    assert r.get(KEYS.job("equity", 7)) == "done"


def test_a_failed_job_keeps_its_slot_until_its_limit_and_tells_the_operator(
    redis_url: str, r: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(desk: jobs.Desk) -> None:
        raise ValueError("planted")

    monkeypatch.setitem(jobs.BODIES, "equity", broken)
    one = runner(redis_url)
    assert one.run("equity", 7) == "failed"
    assert one.run("equity", 7) == "skipped"
    r.delete(KEYS.job("equity", 7))  # what the limit does
    assert one.run("equity", 7) == "failed"
    assert "planted" in r.xrange(KEYS.journal)[0][1]["text"]


def test_a_killed_worker_loses_no_slot(redis_url: str, r: Any) -> None:
    program = (
        "import os, sys, time, config, streams\n"
        "from maintenance import tasks\n"
        "r = streams.connect(sys.argv[1], 1)\n"
        "keys = streams.Keys('sim', 'main')\n"
        "assert streams.job_take(r, keys, 'equity', 7, 'dead', 0.5)\n"
        "r.set('taken', 1)\n"
        "time.sleep(60)\n"
    )
    worker = subprocess.Popen([sys.executable, "-c", program, redis_url], cwd=ROOT)
    until(lambda: r.exists("taken"))
    assert runner(redis_url).run("equity", 7) in ("skipped", "done")  # it may have timed out by now
    worker.kill()
    worker.wait()
    until(
        lambda: (
            runner(redis_url).run("equity", 7) == "done" or r.get(KEYS.job("equity", 7)) == "done"
        )
    )


def spawn(what: str, redis_url: str) -> subprocess.Popen[bytes]:
    environ = {**os.environ, "REDIS_URL": redis_url}
    return subprocess.Popen(
        [sys.executable, "-m", "maintenance.tasks", what], cwd=ROOT, env=environ,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip


def test_two_real_beats_and_two_real_workers_run_each_slot_once(redis_url: str, r: Any) -> None:
    r.hset(KEYS.portfolio, mapping={"equity": "10000", "wallet": "10000", "ms": "1"})
    rows = [spawn(what, redis_url) for what in ("worker", "worker", "beat", "beat")]
    try:
        until(lambda: r.xlen(KEYS.equity) > 0 and len(r.keys(KEYS.job("*", "*"))) >= 3)
        slots = {key for key in r.keys(KEYS.job("equity", "*")) if r.get(key) == "done"}
        until(lambda: r.xlen(KEYS.equity) >= len(slots))
        assert r.xlen(KEYS.equity) <= len(r.keys(KEYS.job("equity", "*")))
    finally:
        for row in rows:
            row.send_signal(signal.SIGTERM)
        codes = [row.wait(20) for row in rows]
    assert codes == [0, 0, 0, 0]


# --- bodies ---------------------------------------------------------------------------------------


def outcome(r: Any, label: str, rule: str = "sweep", timeframe: str = "5m") -> str:
    fields = {"id": "x", "result": label, "rule": rule, "timeframe": timeframe}
    return streams.publish(r, KEYS.outcomes, fields)


def test_learning_counts_each_outcome_once(r: Any) -> None:
    for label in ("win", "loss", "win", "timeout", "abandoned"):
        outcome(r, label)
    assert learn.learn(r, KEYS) == 5
    assert learn.learn(r, KEYS) == 0
    outcome(r, "loss")
    learn.learn(r, KEYS)
    counts, version, last_id = learn.from_fields(r.hgetall(KEYS.model_live))
    assert counts == {"sweep|5m": (2, 2, 1)}
    assert (version, last_id) == (2, r.xrevrange(KEYS.outcomes, count=1)[0][0])


def test_two_learners_at_once_count_nothing_twice(r: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    outcome(r, "win")
    real, other = streams.model_cas, []

    def raced(*args: Any) -> bool:
        if not other:
            other.append(True)
            assert learn.learn(r, KEYS) == 1  # the other one is faster
        return real(*args)

    monkeypatch.setattr(streams, "model_cas", raced)
    learn.learn(r, KEYS)
    assert learn.from_fields(r.hgetall(KEYS.model_live))[0] == {"sweep|5m": (1, 0, 0)}


def test_a_dead_node_is_noted_once_and_leaves(redis_url: str, r: Any) -> None:
    now_s = r.time()[0]
    r.zadd(KEYS.nodes, {"old:1": now_s - 5, "new:2": now_s})
    jobs.nodes(desk(r, redis_url))
    jobs.nodes(desk(r, redis_url))
    assert r.zrange(KEYS.nodes, 0, -1) == ["new:2"]
    assert [e["text"] for _, e in r.xrange(KEYS.journal)] == ["node old:1 is dead"]


def test_reconcile_alarms_when_risk_is_silent(
    redis_url: str, r: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs, "ANSWER_WAIT_S", 0.3)
    jobs.reconcile(desk(r, redis_url, 9))
    assert r.xrange(KEYS.commands)[0][1] == {"id": "snapshot-9", "name": "snapshot", "slot": "9"}
    assert "no answer" in r.xrange(KEYS.journal)[0][1]["text"]


def position(symbol: str = "BTCUSDT", **change: str) -> dict[str, str]:
    return {"symbol": symbol, "side": "buy", "signal": "c", "qty": "1", "entry": "100",
            "stop": "90", "target": "0", "stop_order": "agabcs0", "stop_state": "acked",
            **change}  # fmt: skip


def answered(r: Any, redis_url: str, algos: list[list[str]], change: Any = None) -> list[Any]:
    """Reconcile against a risk that answers with one long BTCUSDT position and these algos."""
    snapshot = {"id": "snapshot-9", "started_ms": 0, "ms": 1000, "wallet": "10000",
                "positions": {"BTCUSDT": ["1", "100"]}, "orders": [], "algos": algos}  # fmt: skip
    r.hset(KEYS.exchange, mapping={"json": json.dumps(snapshot), "ms": "1000"})
    r.hset(KEYS.replies, "snapshot-9", json.dumps({"ok": True, "snapshot": "snapshot-9"}))
    if change is not None:
        change()
    jobs.reconcile(desk(r, redis_url, 9))
    return [fields for _, fields in r.xrange(KEYS.commands)][1:]


def hold(r: Any, **change: str) -> None:
    r.sadd(KEYS.positions, "BTCUSDT")
    r.hset(KEYS.position("BTCUSDT"), mapping=position(**change))


def test_reconcile_asks_for_the_missing_stop_and_names_the_snapshot(redis_url: str, r: Any) -> None:
    hold(r)
    commands = answered(r, redis_url, [])
    assert [(c["name"], c["action"], c["symbol"], c["snapshot"]) for c in commands] == [
        ("correct", "stop", "BTCUSDT", "snapshot-9")
    ]


def test_reconcile_leaves_alone_what_changed_meanwhile(
    redis_url: str, r: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    hold(r)
    real = jobs.ask

    def asked(*args: Any) -> Any:
        answer = real(*args)
        r.hset(KEYS.position("BTCUSDT"), "qty", "2")  # a fill while the snapshot was taken
        return answer

    monkeypatch.setattr(jobs, "ask", asked)
    assert answered(r, redis_url, []) == []


def test_reconcile_is_content_with_what_agrees(redis_url: str, r: Any) -> None:
    hold(r)
    prefix = f"ag{streams.prefix3(KEYS)}"
    r.hset(KEYS.position("BTCUSDT"), "stop_order", f"{prefix}stop")
    order = {"id": f"{prefix}stop", "leg": "s", "state": "acked", "symbol": "BTCUSDT", "cause": "c"}
    r.hset(KEYS.order(f"{prefix}stop"), mapping=order)
    r.sadd(KEYS.orders_open, f"{prefix}stop")
    algo = [f"{prefix}stop", "BTCUSDT", "sell", "STOP_MARKET", "90", "1", "5"]
    assert answered(r, redis_url, [algo]) == []
    assert not r.hlen(KEYS.replies)


def test_trimming_never_passes_what_a_group_has_not_finished(redis_url: str, r: Any) -> None:
    limit = next(row.entries_max for row in streams.TABLE if row.name == "signals")
    pipe = r.pipeline()
    for n in range(limit + 600):
        pipe.xadd(KEYS.signals, {"n": str(n)}, id=f"{n + 1}-0")
    pipe.execute()
    r.xgroup_create(KEYS.signals, "main", id="100-0")
    r.xreadgroup("main", "risk", {KEYS.signals: ">"}, count=1)  # 101-0 is pending
    jobs.trim(desk(r, redis_url))
    assert r.xrange(KEYS.signals, count=1)[0][0] in [f"{n}-0" for n in range(1, 102)]
    r.xack(KEYS.signals, "main", "101-0")
    r.xgroup_setid(KEYS.signals, "main", f"{limit + 600}-0")
    jobs.trim(desk(r, redis_url))
    assert limit <= r.xlen(KEYS.signals) < limit + 200  # approximate: whole nodes of the stream


def test_the_heartbeat_is_one_machine_readable_line(redis_url: str, r: Any) -> None:
    r.hset(KEYS.portfolio, mapping={"equity": "10001.5", "positions": "2", "fills": "9"})
    r.zadd(KEYS.nodes, {"n1:b": r.time()[0]})
    r.hset(KEYS.node("n1", "b"), mapping={"lag": "3", "feed.lost_trades": "0"})
    jobs.heartbeat(desk(r, redis_url))
    told = json.loads(r.xrange(KEYS.journal)[0][1]["text"])
    assert (told["equity"], told["positions"], told["n1.lag"]) == (10001.5, 2.0, 3.0)


def test_old_replies_are_dropped_and_new_ones_kept(redis_url: str, r: Any) -> None:
    names = {f"c{n}": "{}" for n in range(jobs.REPLIES_MAX + 1)}
    r.hset(KEYS.replies, mapping=names)
    jobs.sweep(desk(r, redis_url))
    assert 0 < r.hlen(KEYS.replies) <= jobs.REPLIES_MAX


def test_a_worker_that_hears_nothing_for_long_is_deaf(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = runner(redis_url)
    assert not one.is_deaf()
    one.heard_s -= tasks.DEAF_S + 1
    assert one.is_deaf()
    one.run("equity", 1)
    assert not one.is_deaf()


def test_redis_being_away_is_an_error_that_the_worker_survives() -> None:
    one = tasks.Runner(config.load({"REDIS_URL": "redis://127.0.0.1:1/0"}))
    with pytest.raises(redis.ConnectionError):
        one.run("equity", 1)
