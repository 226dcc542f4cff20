"""A rule that never answers is switched off, and the brain goes on with the others: real processes
with a real Redis, a loop, a sleep, a loop that swallows everything, and native code."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import redis
from brain_bench import lively_market, table
from live_brain import ROOT, Feed, start_brain, until
from test_brain_signals import Trading

import barrier
import ring as rings
import streams
from brain import guard
from brain.guard import FIRES_MAX, OLD_NS, Guard, Overdue, condemn, condemned
from brain.recording import RECS, RecordingError, blocks, records_of
from brain.replay import replay
from brain.rules import as_rule, load_rules, rule
from brain.state import C_ASKED_NS, C_ASKING, C_OFF, C_SUSPECT, OFF_MAX, open_state, state_path
from brain.view import CandleView

KEYS = streams.Keys("sim")
LIMIT_MS = 50
BODIES = {
    "loops": "    while True:\n        pass",
    "sleeps": "    time.sleep(60)",
    "catches": "    while True:\n        try:\n            time.sleep(0.001)\n"
    "        except Exception:\n            pass",
    "swallows": "    while True:\n        try:\n            while True:\n                pass\n"
    "        except BaseException:\n            pass",
    "native": "    spin(1)",
}
MODULE = '''"""A rule that never answers from a certain close on."""

import time

from numba import njit

from brain.rules import rule


@njit("i8(i8)")
def spin(n):
    while n > 0:
        n += 2 if n < 10 else -2
    return n


@rule("{name}", timeframes=("1m",))
def {name}(view, params):
    if view.bar_ms < {from_ms}:
        return None
{body}
'''


@pytest.fixture
def ring(tmp_path: Path) -> rings.Ring:
    return rings.create(tmp_path / "lane.ring", 1 << 16, 4, "world")


@pytest.fixture
def r(redis_url: str) -> redis.Redis:
    return streams.connect(redis_url)


class World:
    """A market, a rule of a user in a module of its own, and the brain's lives."""

    def __init__(self, name: str, ring: rings.Ring, redis_url: str, folder: Path) -> None:
        self.ring, self.redis_url, self.folder = ring, redis_url, folder
        self.name = name
        self.recs = table(lively_market(3, 2, 160))
        self.half = len(self.recs) // 2
        self.from_ms = int(self.recs["exch_ns"][self.half]) // 1_000_000
        text = MODULE.format(name=name, body=BODIES[name], from_ms=self.from_ms)
        (folder / f"hang_{name}.py").write_text(text)
        self.rules = f"hang_{name}.{name}"

    def start(self) -> subprocess.Popen[bytes]:
        return start_brain(
            self.ring, self.redis_url, AEGIS_RULES=self.rules, AEGIS_RULE_LIMIT_MS=str(LIMIT_MS),
            AEGIS_RECORD=str(self.folder / "recorded"),
            PYTHONPATH=os.pathsep.join([str(ROOT), str(self.folder)]),
        )  # fmt: skip


@pytest.fixture
def world(request: Any, ring: rings.Ring, redis_url: str, tmp_path: Path) -> World:
    return World(request.param, ring, redis_url, tmp_path)


def journal(r: redis.Redis) -> list[str]:
    return [fields["text"] for _, fields in r.xrange(KEYS.journal)]  # type: ignore[union-attr]


def signals_after(r: redis.Redis, ms: int) -> list[dict[str, str]]:
    found: Any = r.xrange(KEYS.signals)
    return [f for _, f in found if int(f["exch_ns"]) // 1_000_000 > ms + 600_000]


@pytest.mark.parametrize("world", ["loops", "sleeps", "catches"], indirect=True)
def test_it_is_interrupted_and_off_and_the_others_go_on(
    world: World, ring, r, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = world.name
    brain = world.start()
    Feed(ring).write(world.recs)
    until(lambda: signals_after(r, world.from_ms), "signals of the other rules")
    assert brain.poll() is None
    brain.send_signal(signal.SIGTERM)
    assert brain.wait(10) == 0
    (line,) = [text for text in journal(r) if name in text]
    assert "without an answer" in line and "now off" in line
    monkeypatch.syspath_prepend(str(tmp_path))
    (path,) = (tmp_path / "recorded").glob("*.aegisrec")
    again = replay(path)  # of a rule that would loop in it too
    assert again.complete and again.equal and again.digest.counts["signals"] > 10
    state = open_state(state_path(ring.path), 4, create=False)
    (each,) = [each for each in load_rules((world.rules,)) if each.name == name]
    assert each.key in state.arrays.control[C_OFF : C_OFF + OFF_MAX]


def kept(folder: Path) -> int:
    """Market time in ms up to which a recording that goes on is on the disk."""
    path = next(folder.glob("*.aegisrec"), None)
    try:
        made = [b for b in blocks(path, partial=True) if b.kind == RECS] if path else []
    except RecordingError:  # it has just begun
        return 0
    return max((int(records_of(b)["exch_ns"].max(initial=0)) for b in made), default=0) // 1_000_000


@pytest.mark.parametrize("world", ["loops"], indirect=True)
def test_what_is_on_the_disk_when_it_was_interrupted_replays_without_asking_it(
    world: World, ring, r, tmp_path: Path
) -> None:
    brain = world.start()
    close_ms = -(-world.from_ms // 60_000) * 60_000 + 60_000  # of the first bar that it loops at
    last = int(np.searchsorted(world.recs["exch_ns"], (close_ms + 2_000) * 1_000_000))
    Feed(ring).write(world.recs[:last])
    until(lambda: kept(tmp_path / "recorded") >= close_ms, "its close is on the disk")
    brain.kill()
    brain.wait()
    (path,) = (tmp_path / "recorded").glob("*.aegisrec")
    done = subprocess.run(
        [sys.executable, "-m", "maintenance.cli", "replay", str(path), "--partial", "--json"],
        cwd=ROOT, capture_output=True, text=True, timeout=60,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(tmp_path)])},
    )  # fmt: skip
    assert done.returncode == 0 and json.loads(done.stdout)["equal"], done.stderr


@pytest.mark.parametrize("world", ["swallows", "native"], indirect=True)
def test_the_brain_that_died_in_it_comes_back_without_it(
    world: World, ring, r, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = world.name
    feed, brain = Feed(ring), world.start()
    feed.write(world.recs[: world.half])
    more = world.half + 300  # a few minutes in one piece: nobody will have consumed them
    at = (int(feed.cursor[0]) + np.arange(300)) & ring.mask
    ring.slots[at] = world.recs[world.half : more]
    feed.cursor[0] += 300
    barrier.publish(ring.words, feed.cursor)
    state = open_state(state_path(ring.path), 4, create=False)
    if name == "swallows":
        assert brain.wait(20) == 1
    else:
        until(lambda: state.arrays.control[C_ASKING], "it is asked")
        with pytest.raises(subprocess.TimeoutExpired):  # as long as a supervisor waits
            brain.wait(2.0)
        brain.kill()
        brain.wait()
    again = world.start()
    until(feed.consumed, "the second life consumes")
    feed.write(world.recs[more:])
    until(lambda: signals_after(r, world.from_ms), "signals of the other rules")
    again.send_signal(signal.SIGTERM)
    assert again.wait(10) == 0
    (line,) = [text for text in journal(r) if name in text]
    assert "asked when the brain died" in line and "now off" in line
    monkeypatch.syspath_prepend(str(tmp_path))
    newest = max((tmp_path / "recorded").glob("*.aegisrec"), key=lambda path: path.stat().st_mtime)
    assert replay(newest).equal


# --- who is accused --------------------------------------------------------------------------


def control() -> np.ndarray:
    return np.zeros(64, np.int64)


@pytest.mark.parametrize("age_ns, accused", [(OLD_NS - 1, False), (OLD_NS, True)])
def test_a_kill_that_met_a_quick_question_accuses_nobody(age_ns: int, accused: bool) -> None:
    words, rules = control(), load_rules()
    words[C_ASKING], words[C_ASKED_NS] = rules[1].key, 1_000
    told = condemned(words, rules, 1_000 + age_ns)
    assert [t["name"] for t in told] == ([rules[1].name] if accused else [])
    assert words[C_ASKING] == 0 and words[C_SUSPECT] == rules[1].key


def test_two_lives_in_a_row_that_ended_in_it_do() -> None:
    words, rules = control(), load_rules()
    for number, between in enumerate((False, True, False)):
        if between:  # an orderly life clears it
            words[C_ASKING] = 0
            assert condemned(words, rules, 0) == []
        words[C_ASKING] = rules[0].key
        told = condemned(words, rules, 5)
        assert bool(told) == (number == 2)
    (again,) = condemned(words, rules, 6)  # and it stays off
    assert again["state"] == "off" and "earlier life" in again["why"]


def test_more_condemned_rules_than_places_lose_the_last_one_only() -> None:
    words = control()
    for key in range(1, OFF_MAX + 3):
        condemn(words, key)
        condemn(words, key)
    kept = words[C_OFF : C_OFF + OFF_MAX].tolist()
    assert kept == [*range(1, OFF_MAX), OFF_MAX + 2] and words[C_OFF + OFF_MAX] == 0


# --- the handler -----------------------------------------------------------------------------


def test_only_a_question_that_sees_two_alarms_is_interrupted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    timers: list[float] = []
    monkeypatch.setattr(guard.signal, "setitimer", lambda which, *s: timers.append(s[0]))
    each = Guard(control())
    each.limit_s, each.armed = 0.1, False
    alarm = lambda: each._on_alarm(signal.SIGALRM, None)  # noqa: E731
    told: list[str] = []

    def asked(alarms: int) -> None:
        def body(view: CandleView, params: Any) -> None:
            for _ in range(alarms):
                alarm()
            told.append("answered")

        mine = as_rule(rule("mine")(body))
        view = CandleView("S", "1m", 1, 1, 0, 0.0, Trading(1).bench.state.arrays, 0)
        each.ask(mine, view, 5)
        assert each.control[C_ASKING] == 0
        told.append("cut" if mine.cut else "not cut")

    asked(1)
    asked(1)
    assert told == ["answered", "not cut"] * 2 and timers == [0.1]
    asked(2)
    assert told[4:] == ["cut"] and timers == [0.1]
    alarm()  # nobody has asked since the last one
    assert timers == [0.1, 0.0] and not each.armed
    asked(0)
    assert timers == [0.1, 0.0, 0.1]


def test_what_swallows_every_interruption_ends_the_process(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    each, ended = Guard(control()), list[int]()
    monkeypatch.setattr(guard.os, "_exit", ended.append)
    each.control[C_ASKING], each._asks = 7, 1
    each._on_alarm(signal.SIGALRM, None)  # it may have begun just now
    for number in range(FIRES_MAX + 1):
        assert len(ended) == 0, number
        with pytest.raises(Overdue):
            each._on_alarm(signal.SIGALRM, None)
    assert ended == [1] and each.control[C_OFF] == 7 and each.control[C_ASKING] == 7
