"""One small supervisor for every process type: real processes around the policy.

An exit is noticed at once (pidfd), a hang by the age of the child's heartbeat file; what follows
is decided in policy.py. SIGTERM and SIGINT drain the children in reverse start order within
`DRAIN_S`, a second one has no patience. Children never outlive the supervisor (PDEATHSIG) and
never see the terminal's Ctrl-C (own process group). What a child does, and what its readiness
means, is the caller's.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import selectors
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from maintenance.policy import (
    DRAIN_S,
    POLL_S,
    Beat,
    ChildSpec,
    Event,
    Exit,
    Exited,
    Phase,
    Ready,
    Say,
    Signal,
    Start,
    State,
    Stop,
    Tick,
    decide,
    initial,
)

START_POLL_S = 0.02  # while somebody waits for somebody's readiness
LOG_BYTES_MAX = 5 << 20  # per child; the older half is kept in <name>.log.1
LOG_CHECK_S = 5.0
PR_SET_PDEATHSIG = 1

_libc_prctl = ctypes.CDLL(None, use_errno=True).prctl if sys.platform == "linux" else None


def die_with_parent(parent_pid: int) -> None:
    """For a forked child before exec: SIGKILL when the thread that forked us dies.

    Imports and allocates nothing, so that a lock held by another thread at the fork is harmless.
    """
    if _libc_prctl is not None:
        _libc_prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent_pid:  # it died before prctl
            os._exit(1)


@dataclass(slots=True)
class _Running:
    process: subprocess.Popen[bytes]
    pidfd: int  # -1 where the kernel has none: exits are then noticed at the next pass
    beat_file: Path
    beat_mtime_ns: int


@dataclass(slots=True)
class Supervisor:
    """Carries out `decide` with real processes. Single-threaded: run() is the caller's main loop.

    `run_dir` holds the heartbeat files. `stop` may be called from any thread.
    """

    specs: Mapping[str, ChildSpec]
    run_dir: Path
    drain_s: float = DRAIN_S
    say: Callable[[str], None] = lambda text: print(text, file=sys.stderr, flush=True)
    _running: dict[str, _Running] = field(default_factory=dict)
    _selector: selectors.BaseSelector = field(default_factory=selectors.DefaultSelector)
    _stop_codes: list[int] = field(default_factory=list)
    _wake: tuple[socket.socket, socket.socket] = field(default_factory=socket.socketpair)
    _exit_code: int | None = None
    _state: State = field(init=False)

    def __post_init__(self) -> None:
        self._state = initial(list(self.specs.values()))

    def stop(self, code: int = 0) -> None:
        """Ask for a drain; the second call kills at once."""
        self._stop_codes.append(code)
        with contextlib.suppress(BlockingIOError):  # full: it is going to wake anyway
            self._wake[1].send(b"\0")

    def pids(self) -> dict[str, int]:
        return {name: running.process.pid for name, running in dict(self._running).items()}

    def draining(self) -> bool:
        return self._state.drain_until_s is not None

    def run(self, on_tick: Callable[[], None] | None = None) -> int:
        """Until drained; returns the exit code."""
        self.run_dir.mkdir(parents=True, exist_ok=True)
        for end in self._wake:
            end.setblocking(False)
        self._selector.register(self._wake[0], selectors.EVENT_READ, None)
        log_checked_s = 0.0
        with _signals(self):
            while self._exit_code is None:
                for event in self._events():
                    self._feed(event)
                    if self._exit_code is not None:
                        break
                if on_tick is not None:
                    on_tick()
                if _now_s() - log_checked_s > LOG_CHECK_S:
                    log_checked_s = _now_s()
                    self._bound_logs()
        self._close()
        return self._exit_code

    def _events(self) -> Iterator[Event]:
        """What happened since the last pass; blocks up to POLL_S."""
        waiting = any(child.phase is Phase.WAITING for child in self._state.children.values())
        for key, _ in self._selector.select(START_POLL_S if waiting else POLL_S):
            if key.data is None:
                with contextlib.suppress(BlockingIOError):
                    self._wake[0].recv(4096)
        while self._stop_codes:
            yield Stop(self._stop_codes.pop(0))
        for name in list(self._running):
            running = self._running[name]
            code = running.process.poll()
            if code is not None:
                self._forget(name)
                yield Exited(name, code)
                continue
            if _beaten(running):
                yield Beat(name)
            ready = self.specs[name].ready
            if ready is not None and not self._state.children[name].ready and ready():
                yield Ready(name)
        if os.getpid() == 1:
            _reap_orphans({running.process.pid for running in self._running.values()})
        yield Tick()

    def _feed(self, event: Event) -> None:
        self._state, actions = decide(self.specs, self._state, event, _now_s(), self.drain_s)
        for action in actions:
            match action:
                case Start(name):
                    first = self._state.children[name].starts == 1
                    self._start(self.specs[name], first)
                case Signal(name, signum):
                    if name in self._running:
                        self._running[name].process.send_signal(signum)
                case Say(name, _, _, refusal=True) if self.specs[name].log is None:
                    pass
                case Say(name, text, show_log):
                    self.say(f"{text}{self._last_words(name) if show_log else ''}")
                case Exit(code):
                    self._exit_code = code

    def _start(self, spec: ChildSpec, first: bool) -> None:
        beat_file = self.run_dir / f"{os.getpid()}-{spec.name}.beat"
        beat_file.touch()
        env = {**spec.env, "AEGIS_HEARTBEAT_FILE": str(beat_file)}
        parent_pid = os.getpid()
        out = None
        if spec.log is not None:
            spec.log.parent.mkdir(parents=True, exist_ok=True)
            out = os.open(spec.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            process = subprocess.Popen(
                spec.argv if first or not spec.again else spec.again,
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                pass_fds=spec.pass_fds,
                process_group=0,
                preexec_fn=lambda: die_with_parent(parent_pid),
            )
        finally:
            if out is not None:
                os.close(out)
        pidfd = -1
        with contextlib.suppress(OSError, AttributeError):  # no pidfd here: polled instead
            pidfd = os.pidfd_open(process.pid)
            self._selector.register(pidfd, selectors.EVENT_READ, spec.name)
        mtime_ns = beat_file.stat().st_mtime_ns
        self._running[spec.name] = _Running(process, pidfd, beat_file, mtime_ns)

    def _forget(self, name: str) -> None:
        running = self._running.pop(name)
        if running.pidfd >= 0:
            self._selector.unregister(running.pidfd)
            os.close(running.pidfd)
        running.beat_file.unlink(missing_ok=True)

    def _bound_logs(self) -> None:
        """Copy and truncate: the children append, so they go on at the start of the file."""
        for spec in self.specs.values():
            if spec.log is None or not spec.log.exists():
                continue
            if spec.log.stat().st_size > LOG_BYTES_MAX:
                shutil.copyfile(spec.log, spec.log.with_suffix(".log.1"))
                os.truncate(spec.log, 0)

    def _last_words(self, name: str) -> str:
        log = self.specs[name].log
        if log is None or not log.exists():
            return ""
        lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
        return f"; it said: {lines[-1]}" if lines else ""

    def _close(self) -> None:
        self._selector.close()
        for end in self._wake:
            end.close()


@contextlib.contextmanager
def _signals(supervisor: Supervisor) -> Iterator[None]:
    """SIGTERM and SIGINT ask for a drain; what was there before comes back afterwards."""
    old = {
        signum: signal.signal(signum, lambda *_: supervisor.stop(0))
        for signum in (signal.SIGTERM, signal.SIGINT)
    }
    try:
        yield
    finally:
        for signum, handler in old.items():
            signal.signal(signum, handler)


def _beaten(running: _Running) -> bool:
    """The mtime is only compared with itself: a stepped wall clock cannot look like a hang."""
    try:
        mtime_ns = running.beat_file.stat().st_mtime_ns
    except FileNotFoundError:
        return False
    changed = mtime_ns != running.beat_mtime_ns
    running.beat_mtime_ns = mtime_ns
    return changed


def _reap_orphans(ours: set[int]) -> None:
    """As PID 1 of a container we inherit strangers; ours are left to Popen."""
    while True:
        try:
            info = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:
            return
        if info is None or info.si_pid in ours:
            return
        os.waitpid(info.si_pid, os.WNOHANG)


def _now_s() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)
