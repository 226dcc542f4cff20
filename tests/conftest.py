"""Shared fixtures: a real Redis server for everything about delivery, and the market's data."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
DATA = ROOT.parent / "shared" / "data"


def free_port() -> int:
    """A loopback port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def redis_binary() -> str:
    """The server that `aegis up` would start on this machine."""
    for name in ("redis-server", "valkey-server"):
        found = shutil.which(name)
        if found:
            return found
    from maintenance.redis_server import find_binary

    return str(find_binary())


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of a real server, started once for the whole run."""
    folder = tmp_path_factory.mktemp("redis")
    port = free_port()
    argv = [redis_binary(), "--port", str(port), "--bind", "127.0.0.1", "--save", ""]
    argv += ["--appendonly", "yes", "--dir", str(folder), "--loglevel", "warning"]
    server = subprocess.Popen(argv, stdout=subprocess.DEVNULL)
    url = f"redis://127.0.0.1:{port}"
    client = redis.Redis.from_url(url)
    for _ in range(200):
        try:
            client.ping()
            break
        except redis.ConnectionError:
            time.sleep(0.05)
    else:
        raise RuntimeError("the Redis server did not start")
    client.close()
    yield url
    server.terminate()
    server.wait(10)


@pytest.fixture
def redis_url(redis_server: str) -> str:
    """Address of an empty database 0 on the real server; Celery's broker would be database 1."""
    client = redis.Redis.from_url(f"{redis_server}/0")
    client.flushall()
    client.close()
    return f"{redis_server}/0"


@pytest.fixture(autouse=True)
def brains() -> Iterator[None]:
    """A brain that a failed test left would write into the Redis of every later one."""
    from live_brain import end_all

    yield
    end_all()


@pytest.fixture(scope="session")
def market_data() -> Path:
    """The folder of real captures; they are input for tests and no part of the project."""
    if not DATA.is_dir():
        pytest.skip(f"needs the real market data in {os.path.relpath(DATA, ROOT)}")
    return DATA
