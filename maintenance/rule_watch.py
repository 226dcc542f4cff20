"""A rule that gives no answer ends its check, not the user's patience.

The check runs in a child. Whenever it loads or asks the rule there, a timer of the kernel runs, and
nobody catches its SIGALRM: the child ends, whether the rule loops, sleeps, swallows every exception
or is native code that never looks up. What it was asked stands in memory that the parent shares;
the parent makes the sentence of it.

A live rule has an answer within two limits, or is off; so here. One that is over a limit LATE_MAX
times ends the check too: it would take hours.
"""

from __future__ import annotations

import mmap
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final, NoReturn

LOAD_S: Final = 60.0  # for the import of its module: kernels may be compiled there
LATE_MAX: Final = 3  # one alone may be the machine's
TEXT_BYTES: Final = 1_024
ADVICE: Final = "look for a loop, a sleep or a wait in it, or a kernel that is compiled only then"


class Watch:
    """The child's side. One that has no memory to share watches nothing."""

    def __init__(self, shared: mmap.mmap | None = None, limit_s: float = 0.0) -> None:
        self._shared, self._limit_s, self._late = shared, limit_s, 0

    @contextmanager
    def loading(self, what: str) -> Iterator[None]:
        """Around an import of the rule's module."""
        with self._within(LOAD_S, f"{what} is not loaded within {LOAD_S:g} s: {ADVICE}."):
            yield

    @contextmanager
    def asking(self, rule: str, where: str) -> Iterator[None]:
        """Around one question."""
        limit = f"{self._limit_s * 1000:g} ms (AEGIS_RULE_LIMIT_MS)"
        what = f"rule {rule} gave no answer within {limit} at {where}, and would be off: {ADVICE}."
        began_s = time.monotonic()
        with self._within(2 * self._limit_s, what):
            yield
            if self._shared is not None and time.monotonic() - began_s > self._limit_s:
                self._late += 1
                if self._late == LATE_MAX:
                    signal.raise_signal(signal.SIGALRM)

    @contextmanager
    def _within(self, seconds: float, what: str) -> Iterator[None]:
        if self._shared is None:
            yield
            return
        text = what.encode()[:TEXT_BYTES]
        self._shared[:TEXT_BYTES] = text.ljust(TEXT_BYTES, b"\0")
        signal.setitimer(signal.ITIMER_REAL, seconds)
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0.0)


NO_WATCH: Final = Watch()


def watched(body: Callable[[Watch], int], limit_s: float) -> tuple[int, str]:
    """(exit code of `body` in a child, "") or (1, why the child was ended).

    To be called before anything starts a thread.
    """
    shared = mmap.mmap(-1, TEXT_BYTES)
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid == 0:
        _child(body, Watch(shared, limit_s))
    try:
        status = os.waitpid(pid, 0)[1]
    except BaseException:  # the user does not wait for it: it is ours to end
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        raise
    code = os.waitstatus_to_exitcode(status)
    if code == -signal.SIGALRM:
        return 1, shared[:TEXT_BYTES].rstrip(b"\0").decode(errors="replace")
    return (code, "") if code >= 0 else (1, f"the check was ended by signal {-code}")


def _child(body: Callable[[Watch], int], watch: Watch) -> NoReturn:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # the parent tells
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    code = 1
    try:
        code = body(watch)
    except SystemExit as ended:  # a rule's own would be no success
        code = ended.code if isinstance(ended.code, int) and ended.code else 1
    except Exception:  # noqa: BLE001 (no frame of the parent's may run in the child)
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
