"""One process type under the supervisor: what `aegis risk`, `venue`, `worker` and `beat` run.

Settings and Redis are looked at first, so that what cannot work is told in one sentence before
anything starts.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from typing import Final

import config
import process
from maintenance import launch, running, warm
from maintenance.policy import ChildSpec
from maintenance.supervisor import Supervisor

WORKER_HEARTBEAT_S: Final = 20.0  # a job may hold the worker's loop this long (pool solo)
HELP: Final = {"-h", "--help"}
BEAT_HEARTBEAT_S: Final = 5.0  # beat ticks once a second


def heartbeat_timeout_s(name: str) -> float:
    """How long each process type may be silent."""
    timeouts = {"worker": WORKER_HEARTBEAT_S, "beat": BEAT_HEARTBEAT_S}
    return timeouts.get(name, ChildSpec(name, (), {}).heartbeat_timeout_s)


def run(name: str, module: str, words: Sequence[str]) -> int:
    """Until SIGTERM or SIGINT; the exit code."""
    if HELP & set(words):  # an answer, not a process to keep alive
        return subprocess.run(launch.python(module, *words), check=False).returncode
    try:
        cfg = config.load()
    except config.ConfigError as error:
        process.fail(str(error), 2)
    if name != "venue":
        running.require_redis(cfg)
    if name == "risk":
        require_keys(cfg)
        running.require_arming(cfg)
    state_dir = running.claim(cfg.state_dir)
    if name == "venue":
        warm.ensure(cfg.state_dir)
    cache = warm.numba_cache_dir(cfg.state_dir)
    environ = launch.environment(os.environ, NUMBA_CACHE_DIR=cache)
    fds = launch.keys_fds(os.environ) if name == "risk" else ()
    if fds:
        environ[launch.KEYS_FD] = str(fds[0])
    spec = ChildSpec(
        name,
        launch.python(module, *words),
        environ,
        again=launch.python(module, *words, "--resume") if name == "venue" else (),
        heartbeat_timeout_s=heartbeat_timeout_s(name),
        pass_fds=fds,
    )
    return Supervisor({name: spec}, state_dir / "run" / name).run()


def require_keys(cfg: config.Config) -> None:
    """No order leaves without keys; say so before anything starts."""
    if not cfg.api_key or not cfg.api_secret:
        process.fail(
            f"Mode {cfg.mode} needs exchange keys: set BINANCE_API_KEY and BINANCE_API_SECRET."
        )
