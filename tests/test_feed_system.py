"""The feed process against the real venue: nothing lost, nothing doubled, whoever is killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ring
from records import BAR, BAR_VOLUME, CLOCK, CLOSED, CORRECTION, GAP, HEALED, SYMBOL, TRADE

pytest.importorskip("venue.main")
ROOT = Path(__file__).resolve().parent.parent
KILLS, PASS_TRADES_MAX = 2, 100  # trades of one buffer at this rate, by far
SYMBOLS = 5


class Node:
    """What a node and a brain are to a feed: a ring, a table, somebody who reads."""

    def __init__(self, folder: Path) -> None:
        self.env = {**os.environ, "AEGIS_STATE_DIR": str(folder)}
        argv = [
            "venue.main",
            "--port",
            "0",
            "--symbols",
            str(SYMBOLS),
            "--rate",
            "500",
            "--seed",
            "7",
        ]
        self.venue = self.spawn(argv, stdout=subprocess.PIPE)
        assert self.venue.stdout is not None
        self.url = self.venue.stdout.readline().decode().split()[2]
        self.env["AEGIS_VENUE_URL"] = self.url
        self.names = list(self.get("/venue/v1/sent")["symbols"])
        self.path = folder / "ring"
        self.ring = ring.create(self.path, 1 << 15, 16, "test")
        self.ring.words[ring.BRAIN_READY] = self.ring.words[ring.GENERATION]
        for row, name in enumerate(self.names):
            self.ring.symbols[row]["name"] = name.encode()
            self.ring.symbols[row]["state"] = ring.WANTED
        self.ring.words[ring.TABLE_VERSION] = 1
        self.parts: list[Any] = []
        self.feed: subprocess.Popen[bytes] | None = None

    def spawn(self, argv: list[str], **more: Any) -> subprocess.Popen[bytes]:
        return subprocess.Popen([sys.executable, "-m", *argv], cwd=ROOT, env=self.env, **more)

    def start_feed(self, **env: str) -> None:
        self.env.update(env)
        self.feed = self.spawn(["feed.main", "--ring", str(self.path)])

    def get(self, path: str, post: bool = False) -> Any:
        request = urllib.request.Request(self.url + path, method="POST" if post else "GET")
        with urllib.request.urlopen(request, timeout=10) as answer:
            return json.load(answer)

    def read(self) -> Any:
        """Take what was published and give back everything read so far."""
        words = self.ring.words
        head, tail = int(words[ring.HEAD]), int(words[ring.TAIL])
        if head > tail:
            self.parts.append(self.ring.slots[np.arange(tail, head) & self.ring.mask].copy())
            words[ring.TAIL] = head
        return np.concatenate(self.parts) if self.parts else self.ring.slots[:0]

    def read_until(self, true: Any, seconds: float = 90) -> Any:
        end = time.monotonic() + seconds
        while not true(found := self.read()):
            assert time.monotonic() < end, self.ring.counters()["feed"]
            assert self.feed is None or self.feed.poll() is None, "feed died"
            time.sleep(0.05)
        return found

    def settle(self) -> dict[str, Any]:
        """Pause the market and read until the feed has everything that was produced."""
        self.get("/venue/v1/pause", post=True)
        sent = self.get("/venue/v1/sent")["symbols"]

        def whole(found: Any) -> bool:
            return all(
                newest(found, row) == sent[name]["last_id"] for row, name in enumerate(self.names)
            )

        self.read_until(whole)
        return sent

    def close(self) -> None:
        for process in (self.feed, self.venue):
            if process is not None:
                process.kill()
                process.wait()
        self.ring.close()


def newest(found: Any, row: int) -> int:
    ids = found["id"][(found["kind"] == TRADE) & (found["symbol"] == row)]
    return int(ids[-1]) if len(ids) else 0


def healed(found: Any, times: int = 1) -> bool:
    rows = found["symbol"][found["kind"] == HEALED]
    return all(np.sum(rows == row) >= times for row in range(SYMBOLS))


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    made = Node(tmp_path)
    yield made
    made.close()


def check_bars(node: Node, found: Any, row: int) -> None:
    """Prefix plus trades is the venue's own forming candle, in every timeframe."""
    mine = found[found["symbol"] == row]
    name = node.names[row]
    trades = mine[mine["kind"] == TRADE]
    for timeframe_min, interval in ((1, "1m"), (5, "5m"), (15, "15m"), (60, "1h"), (1440, "1d")):
        (candle,) = node.get(f"/fapi/v1/klines?symbol={name}&interval={interval}&limit=1")
        open_ns = candle[0] * 1_000_000
        here = (mine["aux"] == timeframe_min) & (mine["exch_ns"] == open_ns) & (mine["flags"] == 0)
        part, volume = mine[here & (mine["kind"] == BAR)], mine[here & (mine["kind"] == BAR_VOLUME)]
        inside = trades[trades["exch_ns"] >= open_ns]
        highs, lows = [*part["b"], *inside["a"]], [*part["c"], *inside["a"]]
        opens = [*part["a"], *inside["a"]]
        if not opens:  # paused right after a bar began: nothing traded in it yet
            assert float(candle[5]) == 0.0, interval
            continue
        assert [opens[0], max(highs), min(lows)] == [float(x) for x in candle[1:4]], interval
        assert [*part["d"], *inside["a"]][-1] == float(candle[4])
        total = float(volume["a"].sum() + inside["b"].sum())
        assert total == pytest.approx(float(candle[5]), abs=1e-6), interval


def unsaid(counts: dict[str, int]) -> int:
    """Trades received that were neither published nor refused."""
    kept = counts["trades"] + counts["dropped_trades"] + counts["refused_duplicate"]
    return counts["trades_received"] - kept


def test_everything_sent_arrives_once_and_in_order_over_kills(node: Node) -> None:
    node.start_feed()
    node.read_until(healed)
    for times in range(2, 2 + KILLS):
        assert node.feed is not None
        node.feed.send_signal(signal.SIGKILL)
        node.feed.wait()
        at_death = node.ring.counters()["feed"]
        before = len(node.read())
        time.sleep(1)  # the market goes on
        assert len(node.read()) == before
        node.start_feed()
        node.read_until(lambda found, times=times: healed(found, times))
    sent = node.settle()
    found = node.read()
    for row, name in enumerate(node.names):
        ids = found["id"][(found["kind"] == TRADE) & (found["symbol"] == row)]
        assert np.all(np.diff(ids) == 1), name  # each id once, none missing
        assert ids[-1] == sent[name]["last_id"]
        check_bars(node, found, row)
    assert np.sum(found["kind"] == SYMBOL) == SYMBOLS  # no second warm-up
    clocks = found["exch_ns"][found["kind"] == CLOCK]
    assert np.all(np.diff(clocks) >= 0)
    counts = node.ring.counters()["feed"]
    assert counts["lost_trades"] == 0 and counts["healed_trades"] > 0
    assert 0 <= unsaid(counts) <= KILLS * PASS_TRADES_MAX  # of passes in which a feed died
    assert unsaid(counts) == unsaid(at_death)  # the last life, which ended well, is exact


def test_a_hole_past_the_limit_is_declared_and_its_bars_corrected(node: Node) -> None:
    node.start_feed(AEGIS_HEAL_TRADES_MAX="5")
    node.read_until(healed)
    assert node.feed is not None
    node.feed.send_signal(signal.SIGKILL)
    node.feed.wait()
    time.sleep(1)
    node.start_feed()
    found = node.read_until(lambda found: healed(found, 2))
    for row, name in enumerate(node.names):
        mine = found[found["symbol"] == row]
        lost = mine[(mine["kind"] == GAP) & (mine["a"] > 0)]
        ids = mine["id"][mine["kind"] == TRADE]
        missing = np.setdiff1d(np.arange(ids[0], ids[-1] + 1), ids)
        spans = [np.arange(gap["id"], gap["id"] + int(gap["a"])) for gap in lost]
        assert len(missing) > 0 and np.array_equal(missing, np.concatenate(spans)), name
        fixed = mine[(mine["kind"] == BAR) & (mine["flags"] == CLOSED | CORRECTION)]
        first = fixed[fixed["aux"] == 1][0]
        open_ms = int(first["exch_ns"]) // 1_000_000
        path = f"/fapi/v1/klines?symbol={name}&interval=1m&startTime={open_ms}&limit=1"
        (candle,) = node.get(path)
        assert [first[field] for field in "abcd"] == [float(x) for x in candle[1:5]]


def test_symbols_come_and_go_and_are_sent_anew_when_asked(node: Node) -> None:
    node.ring.symbols[0]["state"] = ring.FREE
    node.start_feed()
    node.read_until(lambda found: len(set(found["symbol"][found["kind"] == HEALED])) == SYMBOLS - 1)
    assert newest(node.read(), 0) == 0
    node.ring.symbols[0]["state"] = ring.WANTED
    node.ring.words[ring.TABLE_VERSION] += 1
    node.read_until(healed)
    node.ring.symbols[1]["state"] = ring.DRAINING
    node.ring.words[ring.TABLE_VERSION] += 1
    node.read_until(lambda _: node.ring.dropped[1] > 0)
    time.sleep(0.5)
    found = node.read()
    after = found[int(node.ring.dropped[1]) :]
    assert not np.any(after["symbol"] == 1)
    node.ring.words[ring.SNAPSHOT_SYMBOL] = 2
    node.ring.words[ring.SNAPSHOT_SEQ] += 1
    node.read_until(
        lambda _: node.ring.words[ring.SNAPSHOT_DONE] == node.ring.words[ring.SNAPSHOT_SEQ]
    )
    found = node.read()  # what was published before DONE was written
    kinds = found["kind"][found["symbol"] == 2]
    again = int(np.flatnonzero(kinds == SYMBOL)[-1])
    assert np.sum(kinds == SYMBOL) == 2 and HEALED in kinds[again:] and BAR in kinds[again:]


def test_sigterm_ends_the_feed_with_exit_code_0(node: Node) -> None:
    node.start_feed()
    node.read_until(healed)
    assert node.feed is not None
    node.feed.terminate()
    assert node.feed.wait(10) == 0


def test_a_second_feed_is_refused_and_a_ring_taken_over_is_left(node: Node) -> None:
    flapped = SYMBOLS  # a row that was used before, wanted and left again before anybody looked
    node.ring.dropped[flapped] = 3
    node.ring.symbols[flapped]["state"], node.ring.symbols[flapped]["since"] = ring.DRAINING, 3
    node.start_feed()
    first = node.feed
    node.read_until(lambda _: node.ring.dropped[flapped] > 3)
    second = node.spawn(["feed.main", "--ring", str(node.path)], stderr=subprocess.PIPE, text=True)
    _, said = second.communicate(timeout=60)
    assert second.returncode == 1 and said.count("\n") == 1
    assert first is not None and f"Another feed (process {first.pid})" in said
    node.ring.words[ring.GENERATION] += 1
    assert first.wait(20) == 1
