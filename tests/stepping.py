"""Single steps of a forked child: every state of shared memory that a death could leave behind.

`journal` forks, lets the child run to the first instruction of a kernel, goes on one instruction
at a time to its return, and notes every shared word that changed and after which instruction. The
child stands still between two of them, so what the words hold then is what SIGKILL there leaves.
`kill_after` is the proof of that: it steps as far and really kills.

Linux on x86-64, where a tracer may be used; `unable` says why not.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import signal
import warnings
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
from numba import typeof

TRACEME, PEEK, PEEK_USER, POKE, POKE_USER, CONT, STEP = 0, 1, 3, 4, 6, 7, 9
RIP, RSP = 8 * 16, 8 * 19  # offsets in struct user
BREAK = 0xCC
WORD = 1 << 64
STEPS_MAX = 2_000_000

_libc = ctypes.CDLL(None, use_errno=True)
_libc.ptrace.argtypes = (ctypes.c_long, ctypes.c_long, ctypes.c_ulong, ctypes.c_ulong)
_libc.ptrace.restype = ctypes.c_long
_libc.memcmp.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)


class Change(NamedTuple):
    """After `step` instructions image[which][index] held `value`."""

    step: int
    which: int
    index: int
    value: int


def unable() -> str | None:
    """Why no child can be stepped here, or None."""
    if platform.system() != "Linux" or platform.machine() != "x86_64":
        return "single steps are written for Linux on x86-64"
    pid = _fork(lambda: None)
    _, status = os.waitpid(pid, 0)
    if not os.WIFSTOPPED(status):
        return "no process may be traced here"
    _end(pid)
    return None


def entry(kernel: Any, *args: Any) -> int:
    """Address of the code that a jitted function runs for these arguments; it is not run."""
    kinds = tuple(typeof(each) for each in args)
    kernel.compile(kinds)
    compiled = kernel.overloads[kinds]
    return int(compiled.library.get_pointer_to_function(compiled.fndesc.llvm_func_name))


def journal(
    work: Callable[[], object], address: int, images: list[Any]
) -> tuple[int, list[Change]]:
    """(instructions, changes) of one run of the kernel at `address`, which `work` calls once."""
    was = [image.copy() for image in images]
    changes: list[Change] = []
    with _one_processor(), _at_kernel(work, address) as child:
        returns_to = _ptrace(PEEK, child, _ptrace(PEEK_USER, child, RSP, 0), 0)
        for step in range(1, STEPS_MAX):
            _step(child)
            for which, (now, before) in enumerate(zip(images, was, strict=True)):
                if _libc.memcmp(now.ctypes.data, before.ctypes.data, now.nbytes):
                    for index in np.flatnonzero(now != before).tolist():
                        changes.append(Change(step, which, index, int(now[index])))
                        before[index] = now[index]
            if _ptrace(PEEK_USER, child, RIP, 0) == returns_to:
                return step, changes
    raise AssertionError(f"no return within {STEPS_MAX} instructions")


def kill_after(work: Callable[[], object], address: int, steps: int) -> None:
    """Run `work` in a child and kill it after so many instructions of the kernel."""
    with _one_processor(), _at_kernel(work, address) as child:
        for _ in range(steps):
            _step(child)


@contextlib.contextmanager
def _at_kernel(work: Callable[[], object], address: int) -> Iterator[int]:
    """A child that stands before the first instruction at `address`; killed at the end."""
    child = _fork(work)
    try:
        _, status = os.waitpid(child, 0)
        assert os.WIFSTOPPED(status), status
        code = _ptrace(PEEK, child, address, 0)
        _ptrace(POKE, child, address, code & ~0xFF | BREAK)
        _ptrace(CONT, child, 0, 0)
        _, status = os.waitpid(child, 0)
        assert os.WIFSTOPPED(status) and os.WSTOPSIG(status) == signal.SIGTRAP, status
        _ptrace(POKE, child, address, code)
        _ptrace(POKE_USER, child, RIP, address)
        yield child
    finally:
        _end(child)


def _fork(work: Callable[[], object]) -> int:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # threads: the child needs none
        pid = os.fork()
    if pid:
        return pid
    try:
        if _libc.ptrace(TRACEME, 0, 0, 0) == 0:
            os.kill(os.getpid(), signal.SIGSTOP)
            work()
    finally:
        os._exit(0)


def _end(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError, ChildProcessError):
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def _ptrace(request: int, pid: int, address: int, data: int) -> int:
    ctypes.set_errno(0)
    answer = int(_libc.ptrace(request, pid, address % WORD, data % WORD))
    if ctypes.get_errno():
        raise OSError(ctypes.get_errno(), f"ptrace {request}")
    return answer


def _step(pid: int) -> None:
    if _libc.ptrace(STEP, pid, 0, 0):
        raise OSError(ctypes.get_errno(), "ptrace step")
    _, status = os.waitpid(pid, 0)
    assert os.WIFSTOPPED(status), f"the child ended: {status}"


@contextlib.contextmanager
def _one_processor() -> Iterator[None]:
    """Tracer and child take turns: on one processor that costs a third."""
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(allowed)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, allowed)
