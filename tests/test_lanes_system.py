"""Several lanes as real processes: every symbol in one, each by itself, all of them accounted."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import drill
import pytest
from conftest import ROOT

import config
import ring as rings
import streams
from brain import state as brain_state
from maintenance import launch, share, summary, universe, warm

pytestmark = [pytest.mark.system, pytest.mark.timeout(300)]
KEYS = streams.Keys("sim")
SYMBOLS, SYMBOLS_MAX = 8, 32
# What a feed or brain counts when something happens to it.
DISTURBED = (
    "connects",
    "reconnects",
    "resubscribes",
    "holes",
    "heals",
    "lost_trades",
    "rest_errors",
)


@pytest.fixture
def shm() -> Iterator[Path]:
    """A folder in shared memory that only this test uses."""
    folder = Path(tempfile.mkdtemp(dir="/dev/shm"))
    yield folder
    shutil.rmtree(folder)


def whole(ring_path: Path) -> set[str]:
    """Symbols whose history this lane's brain has, up to now."""
    try:
        state = brain_state.open_state(launch.brain_path(ring_path), SYMBOLS_MAX, create=False)
    except brain_state.StateError:
        return set()
    sym = state.arrays.sym
    rows = (sym[:, brain_state.ACTIVE] == 1) & (sym[:, brain_state.DEGRADED] == 0)
    return {state.name(int(row)) for row in rows.nonzero()[0]}


def ticks(ring: rings.Ring) -> list[int]:
    counters = ring.counters()["brain"]
    return [counters["trades"], counters["quotes"]]


def life(ring: rings.Ring) -> dict[str, int]:
    """Who works on this lane, and everything that could have happened to it."""
    counters = ring.counters()
    pids = {"feed": int(ring.words[rings.FEED_PID]), "brain": int(ring.words[rings.BRAIN_PID])}
    return pids | {n: counters["feed"][n] for n in DISTURBED} | {"gaps": counters["brain"]["gaps"]}


class Node:
    """A venue, and a node beside it that may be started again with other lanes."""

    def __init__(self, folder: Path, shm: Path, redis_url: str) -> None:
        self.env = drill.environment(
            folder / "venue", REDIS_URL=redis_url, AEGIS_SHM_DIR=str(shm), AEGIS_NODE_ID="n",
            AEGIS_SYMBOLS=str(SYMBOLS), AEGIS_SYMBOLS_MAX=str(SYMBOLS_MAX),
            NUMBA_CACHE_DIR=warm.numba_cache_dir(str(folder)),
        )  # fmt: skip
        self.r: Any = streams.connect(redis_url)
        words = ("--port", "0", "--symbols", str(SYMBOLS), "--rate", "500", "--seed", "7")
        self.venue = self.spawn("venue.main", *words, stdout=subprocess.PIPE)
        assert self.venue.stdout is not None
        self.url = self.venue.stdout.readline().decode().split()[2]
        self.env |= {"AEGIS_VENUE_URL": self.url, "AEGIS_STATE_DIR": str(folder / "state")}
        self.node: subprocess.Popen[bytes] | None = None

    def spawn(self, module: str, *words: str, **more: Any) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [sys.executable, "-m", module, *words], cwd=ROOT, env=self.env, **more
        )

    def start(self, lanes: int) -> list[Path]:
        """The rings of a node with so many lanes, once every symbol is whole in its own."""
        self.env["AEGIS_LANES"] = str(lanes)
        self.node = self.spawn("maintenance.node")
        own = config.load({n: v for n, v in self.env.items() if n.startswith(("AEGIS_", "REDIS_"))})
        paths = launch.ring_paths(own)
        self.wait(lambda: [whole(path) for path in paths] == self.homes(lanes), f"{lanes} lanes")
        return paths

    def homes(self, lanes: int) -> list[set[str]]:
        """The symbols of each lane."""
        names = universe.get_json(f"{self.url}/venue/v1/sent")["symbols"]
        weights = {f"lane {lane}": 1.0 for lane in range(lanes)}
        return [set(own) for own in share.divide(names, weights).values()]

    def wait(self, look: Callable[[], bool], what: str) -> None:
        """Until it is true, as long as the node lives."""

        def alive() -> bool:
            assert self.node is not None and self.node.poll() is None, "the node ended"
            return look()

        drill.wait_for(alive, 120, what, 0.1)

    def settle(self, paths: list[Path], count_quotes: bool) -> None:
        """Pause the market and wait until the books of all lanes agree with the venue's."""
        summary.post(f"{self.url}/venue/v1/pause")
        files = [launch.brain_path(path) for path in paths]

        def agreed() -> bool:
            checked, wrong, tallies = summary.check_candles(self.url, files, SYMBOLS_MAX, 0)
            lost = sum(summary.trades_lost(tally) for tally in tallies)
            misplaced = summary.misplaced(tallies, self.r.hkeys(KEYS.symbols))
            (member,) = self.r.zrange(KEYS.nodes, -1, -1)
            row = self.r.hgetall(KEYS.market(f"node:{member}"))
            sent = universe.get_json(f"{self.url}/venue/v1/sent")["connections"]
            quotes = summary.quotes_lost(summary.quote_tally(sent, row))[0] if count_quotes else 0
            return checked > 0 and not (wrong or lost or misplaced or quotes)

        self.wait(agreed, "every tick and candle")

    def kill(self) -> None:
        for process in (self.node, self.venue):
            if process is not None:
                process.kill()
                process.wait()
        self.r.close()


@pytest.fixture(scope="module")
def kernels() -> None:
    """Compiled before any clock starts: on a fresh checkout that takes minutes, not seconds."""
    subprocess.run([sys.executable, "-m", "maintenance.warm"], cwd=ROOT, check=True)


@pytest.fixture
def system(kernels: None, tmp_path: Path, shm: Path, redis_url: str) -> Iterator[Node]:
    made = Node(tmp_path, shm, redis_url)
    yield made
    made.kill()


@pytest.mark.timeout(900)  # the kernels are compiled within
def test_lanes_live_by_themselves_and_together_lose_nothing(system: Node, shm: Path) -> None:
    assert all(system.homes(2)) and system.homes(3)[2]
    paths = system.start(2)
    struck, other = (rings.attach(path) for path in paths)
    system.wait(lambda: min(*ticks(struck), *ticks(other)) > 0, "ticks in both")
    before, ticks_before, pid = life(other), ticks(other), int(struck.words[rings.FEED_PID])
    os.kill(pid, signal.SIGKILL)
    system.wait(lambda: int(struck.words[rings.FEED_PID]) != pid, "another feed")
    trades = ticks(struck)[0]
    system.wait(lambda: ticks(struck)[0] > trades, "its first trade")
    system.wait(lambda: whole(paths[0]) == system.homes(2)[0], "what lane 0 missed")
    assert life(other) == before  # the lane beside it never noticed
    assert all(now > then for now, then in zip(ticks(other), ticks_before, strict=True))
    system.settle(paths, count_quotes=True)

    summary.post(f"{system.url}/venue/v1/resume")
    assert system.node is not None
    system.node.kill()
    system.node.wait()
    paths = system.start(3)  # a third of the symbols leaves its lane
    system.settle(paths, count_quotes=False)  # of a symbol that moved, quotes were left behind
    system.node.send_signal(signal.SIGTERM)
    assert system.node.wait(30) == 0
    assert list(shm.iterdir()) == []
