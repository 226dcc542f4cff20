"""When children start, count as hanging, are restarted, and how they drain: the pure half.

`decide` is the whole policy: state, event, now -> state and actions; supervisor.py carries the
actions out. A dead child is restarted: at once when it had worked, with back-off when it stumbles.
A child that only stumbles, or that refuses its very first start, takes the supervisor down with
it, so that whoever runs the supervisor (a platform, a person) sees it.
"""

from __future__ import annotations

import enum
import signal
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

DRAIN_S = 9.0  # platforms send SIGKILL 10 s after SIGTERM at the earliest; one second is for us
HEARTBEAT_TIMEOUT_S = 2.0  # children beat four times a second; with the restart below 5 s in sum
GRACE_S = 30.0  # until the first beat: imports and a cold kernel cache
BACKOFF_S = (0.0, 0.5, 1.0, 2.0)  # wait before the n-th restart in a row of a stumbling child
SETTLED_S = 3.0  # a child that has beaten this long had worked: it restarts at once
HEALTHY_S = 10.0  # a life this long clears the count of quick deaths
QUICK_DEATHS_MAX = 6  # five kills in a row must be survived; the seventh death is a crash loop
QUICK_DEATHS_WINDOW_S = 60.0
POLL_S = 0.2  # upper bound of a loop pass: heartbeats, readiness, the caller's tick
BLIND_S = 1.0  # a pass later than this means that we were stopped, not that the children hang
EXIT_WRONG_CALL = 2
assert POLL_S < BLIND_S < HEARTBEAT_TIMEOUT_S


@dataclass(frozen=True, slots=True)
class ChildSpec:
    """What to run. Higher `priority` starts earlier and stops later; equals go together.

    A child starts once all of higher priority are ready, or only those named in `after`: one that
    is patient by itself need not wait for the slowest.
    """

    name: str
    argv: tuple[str, ...]
    env: Mapping[str, str]
    priority: int = 100
    after: tuple[str, ...] | None = None
    heartbeat_timeout_s: float = HEARTBEAT_TIMEOUT_S  # 0: this program keeps no heartbeat
    grace_s: float = GRACE_S
    ready: Callable[[], bool] | None = None  # None: ready as soon as it runs; must not block
    pass_fds: tuple[int, ...] = ()
    again: tuple[str, ...] = ()  # the command of later starts, where it differs
    log: Path | None = None  # None: inherits stdout and stderr


class Phase(enum.Enum):
    WAITING = "waiting"  # for children of higher priority
    RUNNING = "running"
    BACKOFF = "backoff"
    GONE = "gone"  # drained


@dataclass(frozen=True, slots=True)
class Child:
    """What the policy knows about one child; times are boot-time seconds."""

    phase: Phase = Phase.WAITING
    started_s: float = 0.0
    due_s: float = 0.0
    first_beat_s: float | None = None
    last_beat_s: float | None = None
    ready: bool = False
    was_ready: bool = False  # in any life: later starts do not hold up the others
    killed: bool = False  # SIGKILL is on its way
    termed: bool = False
    stumbles: int = 0  # deaths in a row of a child that had not settled
    quick_deaths: tuple[float, ...] = ()
    starts: int = 0


@dataclass(frozen=True, slots=True)
class State:
    children: Mapping[str, Child]
    drain_until_s: float | None = None  # None: not draining
    exit_code: int = 0
    seen_s: float | None = None  # the last decide, for noticing that we were stopped


@dataclass(frozen=True, slots=True)
class Tick:
    """Nothing happened but time."""


@dataclass(frozen=True, slots=True)
class Exited:
    name: str
    code: int  # as subprocess tells it: negative is a signal


@dataclass(frozen=True, slots=True)
class Beat:
    name: str


@dataclass(frozen=True, slots=True)
class Ready:
    name: str


@dataclass(frozen=True, slots=True)
class Stop:
    code: int = 0


Event = Tick | Exited | Beat | Ready | Stop


@dataclass(frozen=True, slots=True)
class Start:
    name: str


@dataclass(frozen=True, slots=True)
class Signal:
    name: str
    signum: int


@dataclass(frozen=True, slots=True)
class Say:
    name: str
    text: str
    show_log: bool = False  # its own last line tells more
    refusal: bool = False  # a refusing child has said why; without a log it was heard


@dataclass(frozen=True, slots=True)
class Exit:
    code: int


Action = Start | Signal | Say | Exit


def initial(specs: Sequence[ChildSpec]) -> State:
    return State(children={spec.name: Child() for spec in specs})


def decide(
    specs: Mapping[str, ChildSpec],
    state: State,
    event: Event,
    now_s: float,
    drain_s: float = DRAIN_S,
) -> tuple[State, list[Action]]:
    """The whole policy, pure. Call it with a Tick at least every `POLL_S`."""
    actions: list[Action] = []
    state = _forgive_blindness(state, now_s)
    match event:
        case Stop(code):
            state = _drain(state, code, now_s, drain_s)
        case Beat(name):
            child = state.children[name]
            first = now_s if child.first_beat_s is None else child.first_beat_s
            state = _put(state, name, replace(child, first_beat_s=first, last_beat_s=now_s))
        case Ready(name):
            child = state.children[name]
            state = _put(state, name, replace(child, ready=True, was_ready=True))
        case Exited(name, code):
            state, said = _bury(specs, state, name, code, now_s, drain_s)
            actions += said
        case Tick():
            pass
    if state.drain_until_s is not None:
        state, more = _advance_drain(specs, state, now_s)
    else:
        state, more = _advance_work(specs, state, now_s)
    return state, actions + more


def _put(state: State, name: str, child: Child) -> State:
    return replace(state, children={**state.children, name: child})


def _forgive_blindness(state: State, now_s: float) -> State:
    """Time in which we were stopped ourselves is held against nobody."""
    if state.seen_s is not None and now_s - state.seen_s > BLIND_S:
        lost_s = now_s - state.seen_s
        children = {
            name: replace(
                child,
                started_s=child.started_s + lost_s,
                last_beat_s=None if child.last_beat_s is None else child.last_beat_s + lost_s,
            )
            for name, child in state.children.items()
        }
        state = replace(state, children=children)
    return replace(state, seen_s=now_s)


def _drain(state: State, code: int, now_s: float, drain_s: float) -> State:
    if state.drain_until_s is not None:  # asked twice: no more patience
        return replace(state, drain_until_s=min(state.drain_until_s, now_s))
    return replace(state, drain_until_s=now_s + drain_s, exit_code=code)


def _bury(
    specs: Mapping[str, ChildSpec], state: State, name: str, code: int, now_s: float, drain_s: float
) -> tuple[State, list[Action]]:
    """Account for a death: next start, or the end of patience."""
    child = state.children[name]
    if state.drain_until_s is not None:
        return _put(state, name, replace(child, phase=Phase.GONE)), []
    lived_s = now_s - child.started_s
    settled = child.first_beat_s is not None and now_s - child.first_beat_s >= SETTLED_S
    how = f"was killed by signal {-code}" if code < 0 else f"exited {code}"
    worked = settled or (specs[name].ready is not None and child.was_ready)
    refused = code > 0 and child.starts == 1 and not worked
    if code == EXIT_WRONG_CALL or refused:
        state = _put(state, name, replace(child, phase=Phase.GONE))
        text = f"{name} {how} at its first start: a restart cannot help"
        return _drain(state, code, now_s, drain_s), [Say(name, text, show_log=True, refusal=True)]
    recent = tuple(t for t in child.quick_deaths if now_s - t < QUICK_DEATHS_WINDOW_S)
    quick = () if lived_s >= HEALTHY_S else (*recent, now_s)
    if len(quick) > QUICK_DEATHS_MAX:
        state = _put(state, name, replace(child, phase=Phase.GONE))
        text = f"{name} {how}, {len(quick)} quick deaths within a minute: giving up"
        return _drain(state, 1, now_s, drain_s), [Say(name, text, show_log=True)]
    stumbles = 0 if settled or lived_s >= HEALTHY_S else child.stumbles + 1
    wait_s = BACKOFF_S[min(max(stumbles - 1, 0), len(BACKOFF_S) - 1)]
    child = replace(
        child,
        phase=Phase.BACKOFF,
        due_s=now_s + wait_s,
        stumbles=stumbles,
        quick_deaths=quick,
        ready=False,
    )
    text = f"{name} {how} after {lived_s:.1f} s, restart in {wait_s:.1f} s"
    return _put(state, name, child), [Say(name, text)]


def _advance_work(
    specs: Mapping[str, ChildSpec], state: State, now_s: float
) -> tuple[State, list[Action]]:
    actions: list[Action] = []
    for spec in sorted(specs.values(), key=lambda spec: -spec.priority):
        name, child = spec.name, state.children[spec.name]
        held = any(not state.children[senior].was_ready for senior in seniors(specs, spec))
        turn = child.phase is Phase.WAITING and not held
        if turn or (child.phase is Phase.BACKOFF and now_s >= child.due_s):
            state, started = _start(spec, state, now_s)
            actions += started
        elif child.phase is Phase.RUNNING and not child.killed:
            why = hang(spec, child, now_s)
            if why is not None:
                state = _put(state, name, replace(child, killed=True))
                actions += [Say(name, f"{name} {why}: killing it"), Signal(name, signal.SIGKILL)]
    return state, actions


def seniors(specs: Mapping[str, ChildSpec], spec: ChildSpec) -> list[str]:
    """Who must be ready before this child's first start."""
    if spec.after is not None:
        return [name for name in spec.after if name in specs]
    return [other.name for other in specs.values() if other.priority > spec.priority]


def _start(spec: ChildSpec, state: State, now_s: float) -> tuple[State, list[Action]]:
    old = state.children[spec.name]
    child = Child(
        phase=Phase.RUNNING,
        started_s=now_s,
        ready=spec.ready is None,
        was_ready=old.was_ready or spec.ready is None,
        stumbles=old.stumbles,
        quick_deaths=old.quick_deaths,
        starts=old.starts + 1,
    )
    return _put(state, spec.name, child), [Start(spec.name)]


def hang(spec: ChildSpec, child: Child, now_s: float) -> str | None:
    """Why a running child counts as hanging, in words; None while it works."""
    age_s = now_s - child.started_s
    if not child.ready and age_s > spec.grace_s:
        return f"is not ready after {age_s:.0f} s"
    if spec.heartbeat_timeout_s == 0:
        return None
    if child.last_beat_s is None:
        return f"has no heartbeat after {age_s:.0f} s" if age_s > spec.grace_s else None
    silent_s = now_s - child.last_beat_s
    return f"hangs, silent for {silent_s:.1f} s" if silent_s > spec.heartbeat_timeout_s else None


def _advance_drain(
    specs: Mapping[str, ChildSpec], state: State, now_s: float
) -> tuple[State, list[Action]]:
    """SIGTERM the lowest priority still running; the next rank follows when it is gone."""
    actions: list[Action] = []
    until_s = state.drain_until_s
    assert until_s is not None
    for name, child in state.children.items():
        if child.phase in (Phase.WAITING, Phase.BACKOFF):
            state = _put(state, name, replace(child, phase=Phase.GONE))
    running = [name for name, child in state.children.items() if child.phase is Phase.RUNNING]
    if not running:
        return state, [Exit(state.exit_code)]
    if now_s >= until_s:
        for name in running:
            if not state.children[name].killed:
                state = _put(state, name, replace(state.children[name], killed=True))
                said = Say(name, f"{name} did not drain in time: killing it")
                actions += [said, Signal(name, signal.SIGKILL)]
        return state, actions
    rank = min(specs[name].priority for name in running)
    for name in running:
        child = state.children[name]
        if specs[name].priority == rank and not child.termed:
            state = _put(state, name, replace(child, termed=True))
            actions.append(Signal(name, signal.SIGTERM))
    return state, actions
