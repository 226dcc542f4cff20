"""What every process owes its supervisor: a heartbeat, an orderly stop, quiet logs.

The heartbeat is the modification time of the file named by AEGIS_HEARTBEAT_FILE; a process
touches it from its main loop, so a hung loop ages it. Stop is asked for by SIGTERM or SIGINT and
answered within ten seconds by exit code 0. Logs go to stderr, one line a fact, and never carry a
secret: values of the key variables are blotted out wherever they appear, tracebacks included.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import time
import uuid
from collections.abc import Callable
from typing import NoReturn

BOOT_ID = uuid.uuid4().hex[:12]  # one life of one process; never a host name, which can repeat
HEARTBEAT_INTERVAL_S = 0.1  # beat() may be called from a hot loop; it touches the file this often
HEARTBEAT_ENV = "AEGIS_HEARTBEAT_FILE"
SECRET_LENGTH_MIN = 8  # shorter values (the sim venue's "test") are no secrets and are common words


class Heartbeat:
    """Touches one file; does nothing when no supervisor named one."""

    def __init__(self, path: str | None) -> None:
        self._path = path
        self._last_s = 0.0

    def beat(self) -> None:
        """Tell the supervisor that the main loop turns. Raises OSError if the file is gone."""
        now_s = time.monotonic()
        if self._path is None or now_s - self._last_s < HEARTBEAT_INTERVAL_S:
            return
        self._last_s = now_s
        os.utime(self._path)


_heartbeat = Heartbeat(os.environ.get(HEARTBEAT_ENV))


def beat() -> None:
    """Touch this process's heartbeat file; cheap, call it at least four times a second."""
    _heartbeat.beat()


class StopFlag:
    """Set once by a signal; read by loops."""

    def __init__(self) -> None:
        self._event = threading.Event()

    def set(self) -> None:
        self._event.set()

    def __bool__(self) -> bool:
        return self._event.is_set()

    def wait(self, seconds: float) -> bool:
        return self._event.wait(seconds)


stop = StopFlag()


def install_signals(on_stop: Callable[[], None] | None = None) -> None:
    """SIGTERM and SIGINT set `stop` and call `on_stop`. Platforms may send them repeatedly."""

    def handler(signum: int, frame: object) -> None:
        stop.set()
        if on_stop is not None:
            on_stop()

    signal.signal(signal.SIGTERM, handler)
    signal.signal(signal.SIGINT, handler)


class _Redact(logging.Formatter):
    """Formats a record, then blots out every known secret, wherever it got in."""

    def __init__(self, fmt: str, secrets: tuple[str, ...]) -> None:
        super().__init__(fmt)
        self._secrets = secrets

    def format(self, record: logging.LogRecord) -> str:
        line = super().format(record)
        for secret in self._secrets:
            line = line.replace(secret, "***")
        return line


def setup_logging(name: str, level: str = "WARNING", secrets: tuple[str, ...] = ()) -> None:
    """One stderr handler on the root logger; `secrets` are replaced by *** in every line."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        _Redact(
            f"%(asctime)s %(levelname)s {name} %(name)s %(message)s",
            tuple(secret for secret in secrets if len(secret) >= SECRET_LENGTH_MIN),
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)


def fail(sentence: str, code: int = 1) -> NoReturn:
    """End with one sentence that says what to do: exit 2 for a wrong call, 1 for a failure."""
    print(sentence, file=sys.stderr, flush=True)
    raise SystemExit(code)
