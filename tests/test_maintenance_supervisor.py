"""The supervisor's policy as a pure function, and the supervisor with real child processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from maintenance import policy
from maintenance import supervisor as sv

ROOT = Path(__file__).resolve().parent.parent


def specs(*rows: policy.ChildSpec) -> dict[str, policy.ChildSpec]:
    return {row.name: row for row in rows}


def spec(name: str, priority: int = 100, **kw: object) -> policy.ChildSpec:
    return policy.ChildSpec(name=name, argv=("true",), env={}, priority=priority, **kw)  # type: ignore[arg-type]


class Story:
    """Feeds decide() with events and remembers what it asked for."""

    def __init__(self, *rows: policy.ChildSpec) -> None:
        self.specs = specs(*rows)
        self.state = policy.initial(rows)
        self.now_s = 1000.0
        self.seen: list[policy.Action] = []

    def at(self, now_s: float, event: policy.Event | None = None) -> list[policy.Action]:
        while self.now_s + policy.POLL_S < 1000.0 + now_s:  # a loop never leaves longer gaps
            self.now_s += policy.POLL_S
            self.state, more = policy.decide(self.specs, self.state, policy.Tick(), self.now_s)
            self.seen += more
        self.now_s = 1000.0 + now_s
        self.state, more = policy.decide(self.specs, self.state, event or policy.Tick(), self.now_s)
        self.seen += more
        out, self.seen = self.seen, []
        return [action for action in out if not isinstance(action, policy.Say)]


def test_children_start_by_priority_and_wait_for_readiness() -> None:
    story = Story(spec("feed", 50), spec("node", 999, ready=lambda: True), spec("brain", 100))
    assert story.at(0) == [policy.Start("node")]
    assert story.at(1) == []
    assert story.at(1.1, policy.Ready("node")) == [policy.Start("brain"), policy.Start("feed")]


def test_a_patient_child_waits_only_for_those_it_names() -> None:
    story = Story(
        spec("redis", 1000, ready=lambda: True), spec("venue", 999, ready=lambda: True),
        spec("node", 100, after=("redis",)), spec("risk", 100),
    )  # fmt: skip
    assert story.at(0) == [policy.Start("redis")]
    assert story.at(0.1, policy.Ready("redis")) == [policy.Start("venue"), policy.Start("node")]
    assert story.at(0.2, policy.Ready("venue")) == [policy.Start("risk")]
    assert story.at(0.3, policy.Stop()) == [
        policy.Signal("node", signal.SIGTERM), policy.Signal("risk", signal.SIGTERM),
    ]  # fmt: skip


def test_a_dead_child_that_had_worked_restarts_at_once() -> None:
    story = Story(spec("risk"))
    story.at(0)
    story.at(1, policy.Beat("risk"))
    for tenth in range(10, 10 + int(policy.SETTLED_S * 10) + 1, 10):
        story.at(tenth / 10, policy.Beat("risk"))
    assert story.at(1 + policy.SETTLED_S, policy.Exited("risk", -9)) == [policy.Start("risk")]


def test_a_stumbling_child_waits_longer_each_time() -> None:
    story = Story(spec("risk"))
    story.at(0)
    waits = []
    now_s = 0.0
    for _ in range(4):
        story.at(now_s, policy.Beat("risk"))
        died_s = now_s + 0.1
        actions = story.at(died_s, policy.Exited("risk", -9))
        while policy.Start("risk") not in actions:
            now_s = round(max(now_s, died_s) + 0.1, 6)
            actions = story.at(now_s)
        waits.append(max(now_s - died_s, 0.0) if now_s >= died_s else 0.0)
        now_s = max(now_s, died_s)
    assert [round(wait * 2) / 2 for wait in waits] == [0.0, 0.5, 1.0, 2.0]


@pytest.mark.parametrize("deaths", [policy.QUICK_DEATHS_MAX, policy.QUICK_DEATHS_MAX + 1])
def test_only_more_quick_deaths_than_allowed_are_a_crash_loop(deaths: int) -> None:
    story = Story(spec("brain"), spec("feed"))
    story.at(0)
    now_s = 0.0
    for _ in range(deaths):
        story.at(now_s + 0.1, policy.Beat("brain"))
        story.at(now_s + 0.1, policy.Beat("feed"))
        story.at(now_s + 0.2, policy.Exited("brain", -11))
        now_s += 2.5
        for step in range(12):
            story.at(now_s - 2.2 + step * 0.2, policy.Beat("feed"))
    gave_up = story.state.drain_until_s is not None
    assert gave_up == (deaths > policy.QUICK_DEATHS_MAX)
    assert not gave_up or story.state.exit_code == 1


@pytest.mark.parametrize("lived_s", [policy.HEALTHY_S - 0.1, policy.HEALTHY_S])
def test_only_a_long_life_clears_the_count_of_quick_deaths(lived_s: float) -> None:
    story = Story(spec("brain", heartbeat_timeout_s=0))
    story.at(0)
    story.at(0.1, policy.Exited("brain", -9))
    story.at(0.2)
    story.at(0.1 + lived_s, policy.Exited("brain", -9))
    assert len(story.state.children["brain"].quick_deaths) == (
        0 if lived_s >= policy.HEALTHY_S else 2
    )


@pytest.mark.parametrize("over", [-0.01, 0.0, 0.01])
def test_a_silent_child_is_killed_only_past_its_timeout(over: float) -> None:
    story = Story(spec("risk"))
    story.at(0)
    story.at(1, policy.Beat("risk"))
    silent = story.at(1 + policy.HEARTBEAT_TIMEOUT_S + over)
    assert silent == ([policy.Signal("risk", signal.SIGKILL)] if over > 0 else [])


@pytest.mark.parametrize("over", [-0.01, 0.01])
def test_a_child_without_a_first_beat_has_the_grace_period(over: float) -> None:
    story = Story(spec("brain", grace_s=5.0))
    story.at(0)
    assert story.at(5.0 + over) == ([policy.Signal("brain", signal.SIGKILL)] if over > 0 else [])


def test_time_in_which_the_supervisor_was_stopped_is_held_against_nobody() -> None:
    rows = spec("risk")
    state = policy.initial([rows])
    state, _ = policy.decide(specs(rows), state, policy.Tick(), 0.0)
    state, _ = policy.decide(specs(rows), state, policy.Beat("risk"), 0.5)
    state, actions = policy.decide(specs(rows), state, policy.Tick(), 3600.0)
    assert actions == []
    state, actions = policy.decide(specs(rows), state, policy.Tick(), 3600.5)
    assert actions == []


@pytest.mark.parametrize("code", [1, 2])
def test_a_child_that_refuses_its_first_start_is_not_restarted(code: int) -> None:
    story = Story(spec("risk"))
    story.at(0)
    assert story.at(0.5, policy.Exited("risk", code)) == [policy.Exit(code)]


def test_a_drain_goes_in_reverse_order_one_rank_at_a_time() -> None:
    story = Story(spec("venue", 999), spec("node", 100), spec("risk", 100), spec("beat", 50))
    story.at(0)
    assert story.at(0.1, policy.Stop()) == [policy.Signal("beat", signal.SIGTERM)]
    assert story.at(0.2, policy.Exited("beat", 0)) == [
        policy.Signal("node", signal.SIGTERM),
        policy.Signal("risk", signal.SIGTERM),
    ]
    assert story.at(0.3, policy.Exited("node", 0)) == []
    assert story.at(0.4, policy.Exited("risk", 0)) == [policy.Signal("venue", signal.SIGTERM)]
    assert story.at(0.5, policy.Exited("venue", -15)) == [policy.Exit(0)]


def test_a_drain_that_takes_too_long_ends_with_sigkill() -> None:
    story = Story(spec("venue", 999), spec("risk", 100))
    story.at(0)
    story.at(0.1, policy.Stop())
    killed = story.at(0.1 + policy.DRAIN_S)
    assert set(killed) == {
        policy.Signal("venue", signal.SIGKILL),
        policy.Signal("risk", signal.SIGKILL),
    }


def test_a_second_stop_has_no_patience() -> None:
    story = Story(spec("risk"))
    story.at(0)
    story.at(0.1, policy.Stop())
    assert story.at(0.2, policy.Stop()) == [policy.Signal("risk", signal.SIGKILL)]


# --- with real processes ------------------------------------------------------------------------

BEATING = """
import os, signal, sys, time
if {ignore_term}: signal.signal(signal.SIGTERM, signal.SIG_IGN)
def drained(*_):
    open({log!r}, "a").write("{name} term\\n")
    sys.exit(0)
if not {ignore_term}: signal.signal(signal.SIGTERM, drained)
open({log!r}, "a").write("{name} %d\\n" % os.getpid())
while True:
    os.utime(os.environ["AEGIS_HEARTBEAT_FILE"])
    time.sleep(0.05)
"""


def beating(
    name: str, log: Path, priority: int = 100, ignore_term: bool = False
) -> policy.ChildSpec:
    code = BEATING.format(name=name, log=str(log), ignore_term=ignore_term)
    return policy.ChildSpec(name, (sys.executable, "-c", code), dict(os.environ), priority)


def until(true: Callable[[], bool], patience_s: float = 20.0) -> None:
    """Wait for something to become true; the limit only ends a broken test."""
    end = time.monotonic() + patience_s
    while not true():
        assert time.monotonic() < end, "never became true"
        time.sleep(0.02)


def starts(log: Path, name: str) -> list[int]:
    if not log.exists():
        return []
    rows = [line.split() for line in log.read_text().splitlines()]
    return [int(word) for who, word in rows if who == name and word.isdigit()]


class Running:
    """A supervisor in a thread; signals stay with the test's main thread."""

    def __init__(self, supervisor: sv.Supervisor, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(sv.signal, "signal", lambda *_: None)
        self.supervisor = supervisor
        self.code: int | None = None
        self.thread = threading.Thread(target=self._run)
        self.thread.start()

    def _run(self) -> None:
        self.code = self.supervisor.run()

    def finish(self) -> int | None:
        self.supervisor.stop()
        self.thread.join(20)
        return self.code


def test_a_killed_child_comes_back_and_leaves_no_zombie(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = tmp_path / "log"
    supervisor = sv.Supervisor(specs(beating("risk", log)), tmp_path / "run", say=lambda _: None)
    running = Running(supervisor, monkeypatch)
    try:
        until(lambda: len(starts(log, "risk")) == 1)
        first = starts(log, "risk")[0]
        os.kill(first, signal.SIGKILL)
        until(lambda: len(starts(log, "risk")) == 2)
        assert not Path(f"/proc/{first}").exists()
    finally:
        assert running.finish() == 0
    assert not list((tmp_path / "run").iterdir())


def test_a_stopped_child_is_noticed_by_its_heartbeat_and_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = tmp_path / "log"
    said: list[str] = []
    supervisor = sv.Supervisor(specs(beating("risk", log)), tmp_path / "run", say=said.append)
    running = Running(supervisor, monkeypatch)
    try:
        until(lambda: len(starts(log, "risk")) == 1)
        until(lambda: supervisor._state.children["risk"].last_beat_s is not None)
        os.kill(starts(log, "risk")[0], signal.SIGSTOP)
        until(lambda: len(starts(log, "risk")) == 2)
    finally:
        assert running.finish() == 0
    assert any("hangs" in line for line in said)


def test_a_drain_of_real_children_is_in_reverse_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = tmp_path / "log"
    rows = specs(beating("beat", log, 50), beating("venue", log, 999), beating("node", log, 100))
    running = Running(sv.Supervisor(rows, tmp_path / "run", say=lambda _: None), monkeypatch)
    until(lambda: all(starts(log, name) for name in rows))
    assert running.finish() == 0
    words = [line for line in log.read_text().splitlines() if line.endswith("term")]
    assert words == ["beat term", "node term", "venue term"]


def test_a_deaf_child_is_killed_at_the_end_of_the_drain(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = tmp_path / "log"
    rows = specs(beating("node", log, ignore_term=True))
    running = Running(
        sv.Supervisor(rows, tmp_path / "run", drain_s=0.5, say=lambda _: None), monkeypatch
    )
    until(lambda: bool(starts(log, "node")))
    assert running.finish() == 0
    assert not Path(f"/proc/{starts(log, 'node')[0]}").exists()


def test_children_die_with_a_killed_supervisor(tmp_path: Path) -> None:
    log = tmp_path / "log"
    child = BEATING.format(name="feed", log=str(log), ignore_term=True)
    program = textwrap.dedent(
        f"""
        import os, sys
        from pathlib import Path
        from maintenance.policy import ChildSpec
        from maintenance.supervisor import Supervisor
        spec = ChildSpec("feed", (sys.executable, "-c", {child!r}), dict(os.environ))
        sys.exit(Supervisor({{"feed": spec}}, Path({str(tmp_path / "run")!r})).run())
        """
    )
    parent = subprocess.Popen([sys.executable, "-c", program], cwd=ROOT)
    until(lambda: bool(starts(log, "feed")))
    pid = starts(log, "feed")[0]
    parent.kill()
    parent.wait()
    until(lambda: not _alive(pid))


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_a_refusing_child_under_a_log_is_quoted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    code = "import sys; print('Redis refuses: start it.', file=sys.stderr); sys.exit(1)"
    row = policy.ChildSpec(
        "risk", (sys.executable, "-c", code), dict(os.environ), log=tmp_path / "risk.log"
    )
    running = Running(sv.Supervisor({"risk": row}, tmp_path / "run", say=said.append), monkeypatch)
    running.thread.join(20)
    assert running.code == 1
    assert said == [
        "risk exited 1 at its first start: a restart cannot help; it said: Redis refuses: start it."
    ]


def test_a_log_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sv, "LOG_BYTES_MAX", 1000)
    log = tmp_path / "risk.log"
    row = policy.ChildSpec("risk", ("true",), {}, log=log)
    supervisor = sv.Supervisor({"risk": row}, tmp_path / "run")
    log.write_bytes(b"x" * 1000)
    supervisor._bound_logs()
    assert log.stat().st_size == 1000
    log.write_bytes(b"x" * 1001)
    supervisor._bound_logs()
    assert log.stat().st_size == 0
    assert (tmp_path / "risk.log.1").stat().st_size == 1001
    supervisor._close()
