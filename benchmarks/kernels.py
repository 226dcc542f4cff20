"""What do the brain's kernels cost before the first tick: compiled once, and loaded ever after?

A child with an empty cache folder imports the brain and compiles every kernel with the types of
real use; further children find them there. Seconds are of the whole process: interpreter, numba,
kernels, exit. How many were compiled and how many came from the cache is what numba's dispatchers
counted. A cold start that loads one is wrong, and a warm one that compiles one, or that loads
another number than there are compiled files in the folder. Only what Python calls has a file of its
own; what kernels call is compiled into it, so that a warm start loads fewer than a cold one makes.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Final

from benchmarks.report import Result

ROOT: Final = Path(__file__).resolve().parent.parent
ROOM: Final = "brain"
COLD_ROUNDS: Final = 2  # half a minute each
WARM_ROUNDS: Final = 5  # in each of these


def start(folder: Path, room: str = ROOM) -> tuple[float, dict[str, Any]]:
    """Seconds of a process that needs every kernel of a room, and its counts."""
    began_s = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "maintenance.warm", room], cwd=ROOT, stdout=subprocess.PIPE,
        check=False, env={**os.environ, "NUMBA_CACHE_DIR": str(folder)},
    )  # fmt: skip
    seconds = time.perf_counter() - began_s
    if done.returncode:
        raise RuntimeError(f"{room}: the kernels do not compile")
    counts: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return seconds, counts


def check(cold: dict[str, Any], warm: dict[str, Any], files: int) -> None:
    """Raises RuntimeError unless the cold start compiled all and the warm one loaded its files."""
    if cold["loaded"] or not cold["compiled"]:
        raise RuntimeError(f"a cold start of {ROOM} found kernels in an empty cache: {cold}")
    if warm["compiled"] or not warm["loaded"] == files > 0:
        raise RuntimeError(f"a warm start of {ROOM} over {files} compiled files: {warm}")
    if cold["uncached"] or warm["uncached"]:
        raise RuntimeError(f"kernels of {ROOM} without a cache: {cold['uncached']}")


def run() -> list[Result]:
    cold_s, warm_s, compiled, loaded = [], [], 0, 0
    for _ in range(COLD_ROUNDS):
        with tempfile.TemporaryDirectory(prefix="aegis-kernels-") as folder:
            seconds, cold = start(Path(folder))
            cold_s.append(seconds)
            files = len([*Path(folder).rglob("*.nbc")])  # one of each signature
            for _ in range(WARM_ROUNDS):
                seconds, warm = start(Path(folder))
                check(cold, warm, files)
                warm_s.append(seconds)
            compiled, loaded = cold["compiled"], warm["loaded"]
    return [
        Result(
            f"{ROOM}, start with an empty cache", "s", cold_s,
            note=f"{compiled} kernels compiled, 0 loaded",
            extra={"compiled": compiled, "loaded": 0},
        ),
        Result(
            f"{ROOM}, start with a warm cache", "s", warm_s,
            note=f"0 kernels compiled, {loaded} loaded", extra={"compiled": 0, "loaded": loaded},
        ),
    ]  # fmt: skip
