"""The whole exchange stands still for half a minute, and then everything comes at once.

Feed, brain and risk are real and live behind one relay. Signals go on being written meanwhile.
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from conftest import ROOT
from test_lanes_system import Node, life

import ring as rings
import streams
from maintenance import audit, launch, summary
from maintenance.chaos_relay import Relay
from maintenance.chaos_signals import Source
from maintenance.chaos_world import World

pytestmark = [pytest.mark.system, pytest.mark.timeout(900)]
KEYS = streams.Keys("sim")
STALL_S = 30.0
AGE_MS = 60_000  # of the market: two seconds of ours
COMMANDS_A_SECOND_MAX = 200  # of everybody on this Redis; a loop that spins makes tens of thousands
STREAM_ENTRIES_MAX = 30  # written a second, all streams together, the signals left out


@pytest.fixture
def system(tmp_path: Path, redis_url: str) -> Iterator[tuple[Node, Relay]]:
    subprocess.run([*launch.python("maintenance.warm")], cwd=ROOT, check=True)
    shm = Path(tempfile.mkdtemp(dir="/dev/shm"))
    node = Node(tmp_path, shm, redis_url)
    with Relay(urlsplit(node.url).port or 0) as relay:
        node.env["AEGIS_VENUE_URL"] = f"http://127.0.0.1:{relay.port}"
        try:
            yield node, relay
        finally:
            node.kill()
            shutil.rmtree(shm)


def written(r: Any) -> int:
    """Entries ever added to the streams that risk writes."""
    made = 0
    for key in (KEYS.orders, KEYS.decisions, KEYS.fills, KEYS.ledger, KEYS.journal, KEYS.dead):
        made += int(r.xinfo_stream(key)["entries-added"]) if r.exists(key) else 0
    return made


def commands(r: Any) -> int:
    return int(r.info("stats")["total_commands_processed"])


def outcomes(r: Any, names: set[str]) -> dict[str, list[dict[str, str]]]:
    """What risk decided, by signal."""
    found: dict[str, list[dict[str, str]]] = {name: [] for name in names}
    for _, row in r.xrange(KEYS.decisions):
        if row["signal"] in found and row.get("source") == "risk":
            found[row["signal"]].append(row)
    return found


# as many signals as a busy minute has; none is told twice: each has one end
WORLD = World(20, 3, (0.0025, 0.008), (0.02, 0.25), 1, 0.0)


def test_a_stall_of_the_exchange_disturbs_neither_signals_nor_ring(
    system: tuple[Node, Relay], redis_url: str, tmp_path: Path
) -> None:
    node, relay = system
    paths = node.start(1)
    r: Any = node.r
    environ = node.env | {"AEGIS_SIGNAL_AGE_MS": str(AGE_MS), "AEGIS_COST_R_MAX": "5"}
    with (tmp_path / "risk.log").open("wb") as log:
        risk = subprocess.Popen(launch.python("risk.main"), cwd=ROOT, env=environ, stderr=log)
    try:
        node.wait(lambda: r.hget(KEYS.status, "state") == "trading", "a holder")
        ring = rings.attach(paths[0])
        source = Source(redis_url, node.url, KEYS, 3, WORLD)
        source.start()
        node.wait(lambda: int(r.hget(KEYS.portfolio, "fills") or 0) > 0, "a first fill")
        pids, epoch, before = life(ring), r.get(KEYS.epoch), set(source.sent)
        entries, asked = written(r), commands(r)
        relay.hold()
        time.sleep(STALL_S)
        stalled = source.sent - before
        grown, spent = written(r) - entries, commands(r) - asked
        relay.release()

        # nobody was restarted, nobody took over, nobody flooded Redis
        now = life(ring)
        assert (now["feed"], now["brain"]) == (pids["feed"], pids["brain"])
        assert r.get(KEYS.epoch) == epoch and risk.poll() is None
        assert len(stalled) > 50
        assert spent / STALL_S < COMMANDS_A_SECOND_MAX, spent / STALL_S
        assert grown / STALL_S < STREAM_ENTRIES_MAX, grown / STALL_S

        # every signal of the stall has one end, and none of them an entry that came late
        node.wait(lambda: all(outcomes(r, stalled).values()), "every signal to be decided")
        told = outcomes(r, stalled)
        assert Counter(len(rows) for rows in told.values()) == {1: len(told)}
        entered = {name for name, rows in told.items() if rows[0]["outcome"] == "entry"}
        ledger = summary.fetch_ledger(node.url)
        sent_ms = {
            event["client_id"]: event["wall_ms"]
            for event in ledger
            if event["type"] == "order_new" and audit.leg_of(event["client_id"]) == "e"
        }
        for name in entered:
            (row,) = told[name]
            accepted_ms = sent_ms.get(row["order"])
            if accepted_ms is not None:  # the fence refuses what was on its way for too long
                assert accepted_ms - int(row["wall_ms"]) < 2_000
        assert audit.audit(ledger, 3).violations == ()

        # afterwards it trades on, and what was held back is in the ring to the last tick
        fills = int(r.hget(KEYS.portfolio, "fills"))
        node.wait(lambda: int(r.hget(KEYS.portfolio, "fills")) > fills, "a fill after the stall")
        source.halt()
        node.settle(paths, count_quotes=False)
    finally:
        risk.kill()
        risk.wait()
