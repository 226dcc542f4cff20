"""How our processes are started: the command and the environment that each one needs, no more.

A child gets the settings (AEGIS_*, REDIS_URL), what Python and TLS need of the surroundings, and
nothing else. Exchange keys are never among them: they pass through `set_keys_aside` into an
unnamed memory file whose descriptor only risk inherits.
"""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final, NoReturn
from urllib.parse import urlsplit, urlunsplit

if TYPE_CHECKING:
    from config import Config

ROOT: Final = Path(__file__).resolve().parent.parent
KEY_NAMES: Final = ("BINANCE_API_KEY", "BINANCE_API_SECRET")
KEYS_FD: Final = "AEGIS_KEYS_FD"
_PASSED: Final = frozenset(
    {
        "PATH", "HOME", "USER", "LANG", "LANGUAGE", "TZ", "TMPDIR", "TERM", "VIRTUAL_ENV",
        "SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "PYTHONUNBUFFERED",
        "REDIS_URL", "MALLOC_ARENA_MAX", "LD_LIBRARY_PATH",
    }
)  # fmt: skip
_PASSED_PREFIXES: Final = ("AEGIS_", "LC_", "NUMBA_")
ARENAS_MAX: Final = "2"  # glibc makes an arena per thread; two cost less memory and suffice


def environment(environ: Mapping[str, str], **settings: object) -> dict[str, str]:
    """A child's environment: what it needs of ours, and `settings` by their names."""
    made = {
        name: value
        for name, value in environ.items()
        if (name in _PASSED or name.startswith(_PASSED_PREFIXES)) and name != KEYS_FD
    }
    made.setdefault("MALLOC_ARENA_MAX", ARENAS_MAX)
    paths = [str(ROOT), *environ.get("PYTHONPATH", "").split(os.pathsep)]
    made["PYTHONPATH"] = os.pathsep.join(dict.fromkeys(path for path in paths if path))
    made["PYTHONSAFEPATH"] = "1"  # a file of the current folder must not shadow a module of ours
    made |= {name: str(value) for name, value in settings.items()}
    for name in KEY_NAMES:
        made.pop(name, None)
    return made


def python(module: str, *args: str) -> tuple[str, ...]:
    """The command that runs one of our modules with this interpreter."""
    return (sys.executable, "-m", module, *args)


def set_keys_aside(command: str, argv: list[str]) -> None:
    """Leave no exchange key in this process's environment: re-exec without them if there are any.

    `up` and `risk` keep them in a memory file that risk reads, `flatten --direct` in one of its
    own; every other command drops them.
    Popping os.environ is not enough, /proc/<pid>/environ shows the first one for life.
    """
    key, secret = (os.environ.get(name, "") for name in KEY_NAMES)
    if not any(name in os.environ for name in KEY_NAMES):
        return
    kept = {name: value for name, value in os.environ.items() if name not in KEY_NAMES}
    keeps = command in ("up", "risk") or (command == "flatten" and "--direct" in argv)
    if keeps and (key or secret):
        kept[KEYS_FD] = str(_memory_file(f"{key}\n{secret}"))
    _exec(argv, kept)


def _memory_file(text: str) -> int:
    fd = os.memfd_create("aegis-keys", 0)  # no MFD_CLOEXEC: it is meant to survive the exec
    os.write(fd, text.encode())
    os.set_inheritable(fd, True)
    return fd


def _exec(argv: list[str], environ: Mapping[str, str]) -> NoReturn:
    sys.stdout.flush()
    words = [sys.executable, "-m", "maintenance.cli", *argv]
    os.execve(sys.executable, words, dict(environ))  # noqa: S606 (no shell is the point)


def keys_fds(environ: Mapping[str, str]) -> tuple[int, ...]:
    """The descriptor to hand to risk, if there is one."""
    raw = environ.get(KEYS_FD, "")
    return (int(raw),) if raw.isdigit() else ()


def shown(url: str) -> str:
    """An address without its password, for people."""
    parts = urlsplit(url)
    if parts.password is None:
        return url
    host = f"{parts.hostname}:{parts.port}" if parts.port else str(parts.hostname)
    return urlunsplit(parts._replace(netloc=f"***@{host}"))


def ring_path(cfg: Config, lane: int = 0) -> Path:
    """Where the ring of a node's lane lies: the same after every restart, and told from the rings
    of other systems on this host by their Redis and state folder."""
    where = urlsplit(cfg.redis_url)
    text = f"{where.hostname}:{where.port}{where.path}|{Path(cfg.state_dir).resolve()}"
    tag = hashlib.blake2b(text.encode(), digest_size=4).hexdigest()
    return Path(cfg.shm_dir) / f"aegis-{cfg.mode}-{cfg.node_id}-{lane}-{tag}.ring"


def ring_paths(cfg: Config) -> list[Path]:
    """The rings of a node by lane."""
    return [ring_path(cfg, lane) for lane in range(cfg.lanes)]


def child_name(process: str, lane: int, lanes: int) -> str:
    """A lane's feed or brain as the supervisor and the log call it: `feed`, or `feed.1` of many."""
    return process if lanes == 1 else f"{process}.{lane}"


def brain_path(ring: Path) -> Path:
    """What the brain keeps beside its ring."""
    return ring.with_suffix(".brain")
