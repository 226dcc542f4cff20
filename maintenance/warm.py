"""Kernels are compiled once per machine and version of their sources, before anything trades.

Numba's own cache looks only at the file of the kernel itself; a callee that changed in another
file would go unnoticed. So the cache lies in a folder named by a hash of every kernel source,
numba's version and the processor, and folders of other names are removed. `python -m
maintenance.warm` fills it and tells how many kernels it compiled and how many it found.
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib.metadata
import json
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Final

import process
from maintenance import launch
from maintenance.launch import ROOT

CACHE_ENV: Final = "NUMBA_CACHE_DIR"
FOLDER: Final = ".numba-cache"
LOCK_FILE: Final = "lock"  # beside the folders: whoever compiles holds it
STAMP: Final = "complete.json"  # written last: every kernel of this folder is compiled
ROOMS: Final = ("feed", "brain", "venue")  # rooms that may have kernels ...
FLOOR: Final = "barrier"  # ... and the one module of the floor that has some
_DECORATED: Final = re.compile(r"^@([\w.]+)", re.MULTILINE)  # rooms name their own jit decorators
_NO_JIT: Final = {
    "dataclass",
    "functools.cache",
    "contextlib.contextmanager",
    "contextlib.asynccontextmanager",
}
_IMPORT: Final = re.compile(
    r"^(?:from|import) ([\w.]+)(?: import ([^\n(]*|\([^)]*\)))?", re.MULTILINE
)


def kernel_sources(root: Path = ROOT) -> list[Path]:
    """Files whose code or constants may end up in a kernel: those with kernels, and all of ours
    that these import, directly or not."""
    files = [*root.glob("*.py"), *(path for room in ROOMS for path in (root / room).rglob("*.py"))]
    texts = {path: path.read_text() for path in files}
    found = {path for path, text in texts.items() if set(_DECORATED.findall(text)) - _NO_JIT}
    todo = list(found)
    while todo:
        fresh = _imported(texts[todo.pop()], root) & set(files) - found
        found |= fresh
        todo += fresh
    return sorted(found)


def _imported(text: str, root: Path) -> set[Path]:
    """Files that this text imports, `from package import module` included."""
    names = set()
    for module, what in _IMPORT.findall(text):
        names.add(module)
        names |= {f"{module}.{name}" for name in re.findall(r"\w+", what)}
    return {root / f"{name.replace('.', '/')}.py" for name in names}


def processor() -> str:
    """The target that kernels are compiled for: the name given to numba, else this machine's."""
    named = os.environ.get("NUMBA_CPU_NAME")
    if named:
        return named
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    wanted = ("model name", "flags", "CPU part", "Features")
    first = {line.partition(":")[0].strip(): line for line in reversed(lines)}
    return "".join(first.get(name, "") for name in wanted) or platform.machine()


def cache_key(sources: Iterable[Path], root: Path = ROOT) -> str:
    """Name of the cache folder: changes with any kernel source, numba or the processor."""
    digest = hashlib.blake2b(digest_size=8)
    for path in sources:
        digest.update(str(path.relative_to(root)).encode() + b"\0" + path.read_bytes())
    for text in (importlib.metadata.version("numba"), sys.version, processor()):
        digest.update(text.encode() + b"\0")
    return digest.hexdigest()


def numba_cache_dir(state_dir: str) -> Path:
    """Where every process keeps its kernels: in the repository, or in the state folder where that
    is read-only (an image), unless NUMBA_CACHE_DIR says otherwise. Numba writes to it even when
    it only reads."""
    given = os.environ.get(CACHE_ENV)
    if given:
        return Path(given)
    key = cache_key(kernel_sources())
    baked = ROOT / FOLDER / key
    if os.access(baked if baked.exists() else ROOT, os.W_OK):
        return baked
    return Path(state_dir).resolve() / FOLDER / key


def is_warm(folder: Path) -> bool:
    return (folder / STAMP).exists()


def ensure(state_dir: str) -> bool:
    """Compile, before anything starts, what is not compiled yet; whether that took its time.

    Several processes may ask at once (a Procfile): one compiles, the others wait for it.
    """
    folder = numba_cache_dir(state_dir)
    if is_warm(folder):
        return False
    folder.parent.mkdir(parents=True, exist_ok=True)
    with (folder.parent / LOCK_FILE).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if is_warm(folder):
            return True
        baked = ROOT / FOLDER / folder.name
        if baked != folder and is_warm(baked):
            shutil.copytree(baked, folder, dirs_exist_ok=True)
            return True
        print("compiling kernels, once per version (a minute or two)", file=sys.stderr, flush=True)
        env = launch.environment(os.environ, NUMBA_CACHE_DIR=folder)
        done = subprocess.run(
            launch.python("maintenance.warm"), env=env, check=False, stdout=subprocess.PIPE
        )
    if done.returncode != 0:
        process.fail("The kernels do not compile: run `./aegis warm` to see why.")
    return True


def remove_stale(folder: Path) -> int:
    """Remove the caches of other sources and processors beside this one; how many."""
    stale = [path for path in folder.parent.iterdir() if path.is_dir() and path != folder]
    for path in stale:
        shutil.rmtree(path, ignore_errors=True)  # another process may be removing it too
    return len(stale)


def count_kernels(modules: Iterable[Any]) -> tuple[int, int, list[str]]:
    """(compiled, loaded, names compiled without a cache) over all dispatchers of the modules."""
    from numba.core.registry import CPUDispatcher

    found = {
        id(value): value
        for module in modules
        for value in vars(module).values()
        if isinstance(value, CPUDispatcher)
    }
    compiled = loaded = 0
    uncached = []
    for kernel in found.values():
        stats = kernel.stats
        misses, hits = sum(stats.cache_misses.values()), sum(stats.cache_hits.values())
        compiled, loaded = compiled + misses, loaded + hits
        inlined = kernel.targetoptions.get("inline") == "always"
        if kernel.signatures and not (misses or hits or inlined):
            uncached.append(f"{kernel.py_func.__module__}.{kernel.py_func.__name__}")
    return compiled, loaded, uncached


def _warm_venue() -> None:
    """A small world lives for a second of market time and is asked for its candles."""
    from venue import depth, exchange, intervals, klines, sockets, tape, touch

    world = exchange.create(exchange.Setup("warm", 2, 100.0, 7, 20.0, 0.1, ()))
    until_ms = world.t0_ms + 1000.0
    for _ in exchange.advance(world, until_ms, int(until_ms)):
        pass
    for interval in intervals.INTERVALS:
        klines.folded(world, 0, interval)
    sockets.Hub(world.specs, strict=True).warm(world.rows)
    depth.warm(world)
    touch.warm(world.rows)
    tape.warm()


def _warm_feed() -> None:
    import feed.warm

    feed.warm.warm()


def _warm_brain() -> None:
    import brain.kernel

    brain.kernel.warm()


WARMERS: Final = {"feed": _warm_feed, "brain": _warm_brain, "venue": _warm_venue}


def warm_room(room: str) -> dict[str, Any]:
    """Compile or load one room's kernels; the counts. Numba reads NUMBA_CACHE_DIR at its import."""
    WARMERS[room]()
    ours = [m for n, m in sys.modules.items() if n.split(".")[0] in (*ROOMS, FLOOR)]
    compiled, loaded, uncached = count_kernels(ours)
    return {"compiled": compiled, "loaded": loaded, "uncached": uncached}


def warm_all(folder: Path) -> dict[str, Any]:
    """Every room in a process of its own, so that both of two cores compile; the sums.

    Raises RuntimeError when one of them fails; it has said why on stderr.
    """
    env = {**os.environ, CACHE_ENV: str(folder)}
    rooms = [
        subprocess.Popen(
            [sys.executable, "-m", "maintenance.warm", room], env=env, stdout=subprocess.PIPE
        )
        for room in WARMERS
    ]
    answers = [room.communicate()[0] for room in rooms]
    if any(room.returncode for room in rooms):
        raise RuntimeError("a room's kernels do not compile")
    told = [json.loads(answer.splitlines()[-1]) for answer in answers]
    return {
        "compiled": sum(counts["compiled"] for counts in told),
        "loaded": sum(counts["loaded"] for counts in told),
        "uncached": sorted({name for counts in told for name in counts["uncached"]}),
    }


def main(rooms: Sequence[str] = ()) -> int:
    """Fill the cache; one JSON line with the counts at the end."""
    if rooms:
        print(json.dumps(warm_room(rooms[0])), flush=True)
        return 0
    folder = numba_cache_dir(os.environ.get("AEGIS_STATE_DIR", ".aegis"))
    folder.mkdir(parents=True, exist_ok=True)
    counts = warm_all(folder)
    (folder / STAMP).write_text(json.dumps(counts))
    if folder.parent.name == FOLDER:
        remove_stale(folder)
    print(json.dumps(counts), flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
