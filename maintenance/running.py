"""Finding the running system: its state file, its lock, its Redis.

`aegis up` holds a lock on <state dir>/up.lock for as long as it lives and tells in up.json where
its Redis and venue are, so that every other command finds them without being told.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import config
import process
from maintenance import launch

Client = Any  # a redis.Redis: its types know neither text replies nor that nothing is awaited
STATE_FILE: Final = "up.json"
MARKER: Final = "aegis-state"  # only a folder that we made is ever emptied
LOCK_FILE: Final = "up.lock"


def read_state(state_dir: str | os.PathLike[str]) -> dict[str, Any]:
    """What the running `up` wrote; empty when none runs."""
    folder = Path(state_dir)
    return read_leftover(folder) if is_locked(folder) else {}


def read_leftover(folder: Path) -> dict[str, Any]:
    """The state file whoever wrote it, alive or not."""
    try:
        state = json.loads((folder / STATE_FILE).read_text())
    except (OSError, ValueError):
        return {}
    return state if isinstance(state, dict) else {}


def write_state(state_dir: Path, state: Mapping[str, Any]) -> None:
    """Replace the state file in one step."""
    fresh = state_dir / f"{STATE_FILE}.new"
    fresh.write_text(json.dumps(state, indent=1) + "\n")
    fresh.replace(state_dir / STATE_FILE)


def claim(state_dir: str | os.PathLike[str]) -> Path:
    """The state folder, made if need be; one sentence when it is somebody else's or unusable."""
    folder = Path(state_dir).resolve()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / MARKER).exists():
            if any(folder.iterdir()):
                process.fail(
                    f"{folder} holds files that are not ours: set AEGIS_STATE_DIR to a new folder."
                )
            (folder / MARKER).touch()
    except OSError as error:
        process.fail(
            f"The state folder {folder} cannot be used ({error.strerror}): set AEGIS_STATE_DIR."
        )
    return folder


def is_locked(folder: Path, name: str = LOCK_FILE) -> bool:
    """True while an `up` (or who else locks that file) lives on this folder."""
    try:
        fd = os.open(folder / name, os.O_RDONLY)
    except OSError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False


def lock(folder: Path) -> int | None:
    """Claim the folder for this process's life; None when another `up` has it."""
    fd = os.open(folder / LOCK_FILE, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        return None
    os.ftruncate(fd, 0)
    os.write(fd, f"{os.getpid()}\n".encode())
    (folder / STATE_FILE).unlink(missing_ok=True)  # a killed run's; its pids are strangers' now
    return fd


def settings() -> config.Config:
    """The settings, with the running `up`'s Redis, venue and mode where none are given."""
    try:
        cfg = config.load()
        state = read_state(cfg.state_dir)
        found = {
            name: str(state[key])
            for name, key in (
                ("REDIS_URL", "redis_url"),
                ("AEGIS_VENUE_URL", "venue_url"),
                ("AEGIS_MODE", "mode"),
                ("AEGIS_ACCOUNT", "account"),
            )
            if state.get(key)
        }
        return config.load({**found, **os.environ})
    except config.ConfigError as error:
        process.fail(str(error), 2)


def client(cfg: config.Config) -> Client:
    """A Redis client that is known to answer; one sentence otherwise."""
    require_redis(cfg)
    import streams

    return streams.connect(cfg.redis_url, 1)


def require_redis(cfg: config.Config) -> None:
    """End with one sentence unless Redis is named and answers."""
    if not cfg.redis_url:
        process.fail(
            "No Redis: nothing runs here; start `./aegis up` or set REDIS_URL to a running one."
        )
    import redis

    import streams

    r = streams.connect(cfg.redis_url, 1)
    try:
        r.ping()
    except redis.RedisError as error:
        process.fail(refusal(cfg, error))
    finally:
        r.close()


def require_arming(cfg: config.Config) -> None:
    """Live needs a Redis that outlives us, and arming before its first start there.

    One that has run before starts disarmed too: it manages what it holds, without entries.
    """
    if cfg.mode != "live":
        return
    if not cfg.redis_url:
        process.fail("Live mode needs a Redis that outlives this process: set REDIS_URL.")
    import streams

    r, keys = client(cfg), streams.Keys(cfg.mode, cfg.account)
    if not r.exists(keys.armed) and not r.exists(keys.epoch):
        process.fail("Live mode is not armed: look at the settings, then run `./aegis arm`.")


def refusal(cfg: config.Config, error: Exception) -> str:
    """The sentence for a Redis that cannot be used."""
    where = launch.shown(cfg.redis_url)
    return f"Redis at {where} refuses ({reason(error)}): start it or correct REDIS_URL."


def reason(error: Exception) -> str:
    """An error on one line, without its full stop."""
    return " ".join(str(error).split()).rstrip(".")[:200]
