"""Publisher and process: a real Redis, a real ring, real deaths."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import redis
from brain_bench import START_MS, Bench, announced, lively_market, table, trade
from live_brain import ROOT, Feed, brain_command, start_brain, until

import records as rec
import ring as rings
import streams
from brain import desk as desks
from brain import kernel
from brain.main import Snapshots, resume
from brain.publisher import OUTCOMES_MAX, SIGNALS_MAX, Publisher
from brain.state import (
    ACTIVE,
    BROKEN,
    C_ASK_ALL,
    C_SEQ,
    GAPS,
    TRADES,
    candles,
    memory_state,
    open_state,
    state_path,
)

KEYS = streams.Keys("sim")
DEAD_URL = "redis://127.0.0.1:1/0"


def put_signal(number: int, shadow: bool = False, expires_ms: int = 1_000) -> desks.PutSignal:
    fields = {"id": f"s{number}", "exch_ns": "5000000", "symbol": "AUSDT"}
    return desks.PutSignal(f"s{number}", shadow, expires_ms, fields, json.dumps({"n": number}))


@pytest.fixture
def r(redis_url: str) -> redis.Redis:
    return streams.connect(redis_url)


def started(url: str) -> Publisher:
    publisher = Publisher(url, KEYS, wall_ms=lambda: 0)
    publisher.start()
    return publisher


def test_a_signal_and_its_pending_state_appear_together_and_once(redis_url: str, r) -> None:
    publisher = started(redis_url)
    for effect in (put_signal(1), put_signal(2, shadow=True), put_signal(1), put_signal(2, True)):
        publisher.put(effect)
    assert publisher.close(10)
    assert [f["id"] for _, f in r.xrange(KEYS.signals)] == ["s1"]
    assert r.hgetall(KEYS.pending) == {"s1": '{"n": 1}', "s2": '{"n": 2}'}
    assert (publisher.counts.sent_signals, publisher.counts.duplicate_signals) == (2, 2)


def test_an_outcome_exists_once_and_only_of_a_pending_signal(redis_url: str, r) -> None:
    publisher = started(redis_url)
    publisher.put(put_signal(1))
    for name in ("s1", "s1", "s9"):
        publisher.put(desks.PutOutcome(name, {"id": name, "result": "win"}))
    publisher.put(desks.PutDecision(lambda: {"outcome": "signal"}))
    publisher.put(desks.PutJournal("hello"))
    assert publisher.close(10)
    assert [f["id"] for _, f in r.xrange(KEYS.outcomes)] == ["s1"]
    assert r.hlen(KEYS.pending) == 0
    assert r.xlen(KEYS.decisions) == 1 and r.xrange(KEYS.journal)[0][1]["text"] == "hello"


@pytest.mark.parametrize("market_ms, sent", [(1_000, 1), (1_001, 0)])
def test_a_signal_past_its_age_is_dropped_and_counted(redis_url, r, market_ms, sent) -> None:
    publisher = Publisher(redis_url, KEYS, wall_ms=lambda: 0)
    publisher.market_ms = market_ms
    publisher.put(put_signal(1, expires_ms=1_000))
    publisher.start()
    assert publisher.close(10)
    assert (r.xlen(KEYS.signals), publisher.counts.dropped_signals) == (sent, 1 - sent)


def test_a_dead_redis_stalls_nothing_and_every_loss_is_counted() -> None:
    publisher = started(DEAD_URL)
    for n in range(SIGNALS_MAX + 3):
        publisher.put(put_signal(n))
    for n in range(OUTCOMES_MAX + 5):
        publisher.put(desks.PutOutcome(f"s{n}", {"id": "x"}))
    until(lambda: publisher.counts.errors > 1, "the thread tries again")
    assert publisher.counts.dropped_signals == 3
    assert publisher.counts.dropped_outcomes == 5
    publisher.market_ms = 1_001
    until(lambda: publisher.counts.dropped_signals == SIGNALS_MAX + 3, "they grow too old")
    assert not publisher.close(10)


def test_what_waited_for_a_redis_that_hung_arrives(redis_url: str, r) -> None:
    publisher = started(redis_url)
    publisher.put(put_signal(1))
    until(lambda: publisher.counts.sent_signals == 1, "connected")
    streams.connect(redis_url).client_pause(1_000)
    for n in range(2, 50):
        publisher.put(put_signal(n))
        publisher.put(desks.PutOutcome(f"s{n}", {"id": f"s{n}"}))
    assert publisher.close(20)
    assert r.xlen(KEYS.signals) == 49 and r.xlen(KEYS.outcomes) == 48


def test_the_model_is_taken_when_its_version_changes(redis_url: str, r) -> None:
    publisher = started(redis_url)
    r.hset(KEYS.model_live, mapping={"version": "4", "counts": '{"r|1m": [1, 2, 3]}'})
    seen: list = []

    def taken() -> bool:
        seen.append(publisher.take_model())
        return seen[-1] is not None

    until(taken, "a model")
    assert seen[-1].version == "4" and seen[-1].counts == {"r|1m": (1.0, 2.0, 3.0)}
    r.hset(KEYS.model_live, mapping={"version": "5", "counts": "nonsense"})
    until(lambda: publisher._model_version == "5", "the next was looked at")
    assert publisher.take_model() is None
    assert publisher.close(10)


def test_pending_is_read_when_asked(redis_url: str, r) -> None:
    r.hset(KEYS.pending, "x", "{}")
    publisher = started(redis_url)
    assert publisher.take_pending() is None
    publisher.ask_pending()
    until(lambda: publisher._pending, "an answer")
    assert publisher.take_pending() == {"x": "{}"} and publisher.take_pending() is None
    assert publisher.close(10)


# --- crash and snapshot ----------------------------------------------------------------------


@pytest.fixture
def ring(tmp_path: Path) -> rings.Ring:
    return rings.create(tmp_path / "lane.ring", 1 << 16, 4, "world")


def test_a_crash_while_writing_asks_for_exactly_that_symbol(ring: rings.Ring) -> None:
    state = memory_state(4)
    state = type(state)(state.path, state.arrays, fresh=False)
    state.arrays.sym[:, ACTIVE] = 1
    ring.words[rings.HEAD], ring.words[rings.TAIL] = 100, 40
    state.arrays.control[C_SEQ] = 60
    ring.words[rings.WRITING] = 3
    snapshots = Snapshots()
    assert resume(ring, state, snapshots)[1] == 60
    assert snapshots.wanted == {2} and ring.words[rings.WRITING] == 0
    assert state.arrays.sym[:, ACTIVE].tolist() == [1, 1, 0, 1]
    snapshots.poll(ring.words, 0)
    assert (ring.words[rings.SNAPSHOT_SEQ], ring.words[rings.SNAPSHOT_SYMBOL]) == (1, 2)


@pytest.mark.parametrize("seq, fresh", [(39, False), (101, False), (60, True)])
def test_a_state_that_does_not_fit_the_ring_asks_for_everything(ring, seq, fresh) -> None:
    state = memory_state(4)
    state = type(state)(state.path, state.arrays, fresh=fresh)
    ring.words[rings.HEAD], ring.words[rings.TAIL] = 100, 40
    state.arrays.control[C_SEQ] = seq
    snapshots = Snapshots()
    assert resume(ring, state, snapshots)[1] == 40
    snapshots.poll(ring.words, 0)
    assert ring.words[rings.SNAPSHOT_SYMBOL] == -1


def test_a_wish_for_history_outlives_any_number_of_deaths_until_it_is_sent(ring) -> None:
    """A state that begins anew fits in the next life: only the file still knows what it lacks."""
    ring.words[rings.HEAD], ring.words[rings.TAIL] = 100, 40
    path = state_path(ring.path)
    for fresh in (True, False, False):
        state = open_state(path, 4, ring_identity=1, world=2)
        assert state.fresh == fresh
        snapshots = Snapshots()
        assert resume(ring, state, snapshots)[1] == 40
        assert snapshots.wanted == {-1}
    assert snapshots.poll(ring.words, 0) == -1
    state.arrays.control[C_ASK_ALL] = 0  # as turn does
    resume(ring, open_state(path, 4, ring_identity=1, world=2), after := Snapshots())
    assert after.wanted == set()


def test_a_symbol_that_broke_is_asked_for_in_every_life_until_it_is_announced(ring) -> None:
    state, row = open_state(state_path(ring.path), 4, ring_identity=1, world=2), 2
    jump = [*announced(row), trade(row, START_MS, 5, 1.0, 1.0), trade(row, START_MS, 9, 1.0, 1.0)]
    bench = Bench(4, state=state)
    bench.feed(table([*announced(0), *jump]))
    bench.state.arrays.control[C_ASK_ALL] = 0
    ring.words[rings.HEAD] = ring.words[rings.TAIL] = bench.state.arrays.control[C_SEQ]
    for _ in range(2):
        again = open_state(state_path(ring.path), 4, ring_identity=1, world=2)
        resume(ring, again, snapshots := Snapshots())
        assert snapshots.wanted == {row}
    bench.feed(table(announced(row)))
    assert state.arrays.sym[:, BROKEN].sum() == 0


@pytest.mark.parametrize("writing", [0, 1, 4, 5])
def test_a_word_about_a_row_that_does_not_exist_stops_nobody(ring, writing: int) -> None:
    state = open_state(state_path(ring.path), 4, ring_identity=1, world=2)
    resume(ring, state, Snapshots())
    ring.words[rings.WRITING] = writing
    resume(ring, type(state)(state.path, state.arrays, fresh=False), snapshots := Snapshots())
    assert snapshots.wanted == ({writing - 1} if 0 < writing <= 4 else set())


def test_a_second_brain_is_refused_and_a_ring_taken_over_is_left(ring, redis_url) -> None:
    brain = start_brain(ring, redis_url)
    argv, environ = brain_command(ring, redis_url)
    second = subprocess.run(argv, cwd=ROOT, env=environ, capture_output=True, text=True)
    assert second.returncode == 1 and second.stderr.count("\n") == 1
    assert f"Another brain (process {brain.pid})" in second.stderr
    assert brain.poll() is None
    assert ring.words[rings.BRAIN_READY] == ring.words[rings.GENERATION]
    ring.words[rings.GENERATION] += 1
    assert brain.wait(20) == 1
    assert ring.words[rings.BRAIN_READY] != ring.words[rings.GENERATION]


def test_snapshots_are_asked_one_at_a_time_and_not_too_often(ring: rings.Ring) -> None:
    snapshots, second = Snapshots({1}), 1_000_000_000
    snapshots.poll(ring.words, 0)
    snapshots.wanted |= {1, 2}
    snapshots.poll(ring.words, 10 * second)
    assert ring.words[rings.SNAPSHOT_SEQ] == 1  # the first was not served yet
    ring.words[rings.SNAPSHOT_DONE] = 1
    snapshots.poll(ring.words, 4 * second)
    assert ring.words[rings.SNAPSHOT_SEQ] == 1  # too soon
    snapshots.poll(ring.words, 5 * second)
    assert (ring.words[rings.SNAPSHOT_SEQ], ring.words[rings.SNAPSHOT_SYMBOL]) == (2, -1)


def test_the_process_turns_a_ring_into_signals_and_survives_its_death(ring, redis_url, r) -> None:
    recs = table(lively_market(3, 2, 160))
    half = int(np.flatnonzero(recs["exch_ns"] > recs["exch_ns"][len(recs) // 2])[0])
    feed, brain = Feed(ring), start_brain(ring, redis_url)
    feed.write(recs[:half])
    until(lambda: r.xlen(KEYS.signals) > 0, "signals")
    brain.kill()
    brain.wait()
    again = start_brain(ring, redis_url)
    feed.write(recs[half:])
    until(lambda: r.xlen(KEYS.outcomes) > 5 and r.xlen(KEYS.signals) > 10, "outcomes, signals")
    again.send_signal(signal.SIGTERM)
    assert again.wait(10) == 0
    signals = [f for _, f in r.xrange(KEYS.signals)]
    assert len({f["id"] for f in signals}) == len(signals) > 10
    assert all(float(f["price"]) > 0 and int(f["signal_ns"]) > 0 for f in signals)
    state = open_state(state_path(ring.path), 4, create=False)
    trades = int((recs["kind"] == rec.TRADE).sum()) // 2
    assert state.arrays.sym[:2, [TRADES, GAPS]].tolist() == [[trades, 0], [trades, 0]]
    whole = memory_state(4)
    consume_all(whole, recs)
    for row in (0, 1):
        np.testing.assert_array_equal(candles(state, row, "1m"), candles(whole, row, "1m"))
    ended = [f["id"] for _, f in r.xrange(KEYS.outcomes)]
    assert len(set(ended)) == len(ended) and not set(ended) & set(r.hkeys(KEYS.pending))


def consume_all(state: object, recs: np.ndarray) -> None:
    Bench(4, state=state).feed(recs)  # type: ignore[arg-type]


def test_a_process_without_its_state_asks_the_feed_for_everything(ring, redis_url) -> None:
    feed, brain = Feed(ring), start_brain(ring, redis_url)
    feed.write(table(announced(0)))
    brain.kill()
    brain.wait()
    state_path(ring.path).unlink()
    again = start_brain(ring, redis_url)
    until(lambda: ring.words[rings.SNAPSHOT_SEQ] == 1, "a snapshot is asked for")
    assert ring.words[rings.SNAPSHOT_SYMBOL] == -1
    kernel.store_word(ring.words, rings.SNAPSHOT_DONE, 1)
    again.send_signal(signal.SIGINT)
    assert again.wait(10) == 0


@pytest.mark.parametrize("ring_name, rule", [("none", ""), ("lane.ring", "nowhere.rule")])
def test_a_wrong_call_is_one_sentence(ring, redis_url, ring_name, rule) -> None:
    argv = [sys.executable, "-m", "brain.main", "--world", "w", "--node", "n"]
    argv += ["--ring", str(ring.path.with_name(ring_name))]
    environ = {**os.environ, "REDIS_URL": redis_url, "AEGIS_MODE": "sim", "AEGIS_RULES": rule}
    done = subprocess.run(argv, cwd=ROOT, env=environ, capture_output=True, text=True, check=False)
    assert done.returncode == 1 and done.stderr.count("\n") == 1, done.stderr
