"""Risk as a process against the real venue and a real Redis: killed, stopped, always one stop."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import redis

import streams
from streams import Keys

ROOT = Path(__file__).resolve().parent.parent
KEYS = Keys("sim", "main")
pytestmark = pytest.mark.system


class Rig:
    """One venue, one Redis, and risk to be killed and started again."""

    def __init__(self, url: str, venue: str, folder: Path) -> None:
        self.url, self.venue, self.folder = url, venue, folder
        self.r: redis.Redis = streams.connect(url)
        self.risk: list[subprocess.Popen[bytes]] = []
        self.sent = 0

    def get(self, path: str) -> Any:
        with urllib.request.urlopen(self.venue + path, timeout=10) as answer:
            return json.load(answer)

    def start(self, **settings: str) -> subprocess.Popen[bytes]:
        env = os.environ | {"REDIS_URL": self.url, "AEGIS_VENUE_URL": self.venue}
        env |= {"AEGIS_NODE_ID": "test", "AEGIS_STATE_DIR": str(self.folder)} | settings
        log = (self.folder / "risk.log").open("ab")
        process = subprocess.Popen(
            [sys.executable, "-m", "risk.main"], cwd=ROOT, env=env, stderr=log
        )
        log.close()
        self.risk.append(process)
        return process

    def wait(self, what: Callable[[], Any], seconds: float = 20.0) -> Any:
        for _ in range(int(seconds / 0.05)):
            answer = what()
            if answer:
                return answer
            time.sleep(0.05)
        text = (self.folder / "risk.log").read_text()[-3_000:]
        raise AssertionError(f"waited in vain; risk said:\n{text}")

    def trading(self, epoch_above: int = 0) -> int:
        """The epoch of a holder that makes entries."""
        status: Any = self.r.hgetall(KEYS.status)
        epoch = int(status.get("epoch", 0))
        return epoch if status.get("state") == "trading" and epoch > epoch_above else 0

    def signal(
        self, symbol: str, side: str = "buy", share: float = 0.02, confidence: float = 0.6
    ) -> str:
        self.sent += 1
        quote = self.get(f"/fapi/v1/ticker/bookTicker?symbol={symbol}")
        told_ms = self.get("/fapi/v1/time")["serverTime"]
        price, sign = float(quote["askPrice"]), 1 if side == "buy" else -1
        fields = {
            "id": f"hand-{self.sent}",
            "symbol": symbol,
            "side": side,
            "price": str(price),
            "stop": f"{price * (1 - sign * share):.6f}",
            "target": f"{price * (1 + 2 * sign * share):.6f}",
            "confidence": str(confidence),
            "exch_ns": str(told_ms * 1_000_000),
            "rule": "hand",
        }
        streams.publish(self.r, KEYS.signals, fields)
        return fields["id"]

    def ledger(self) -> list[dict[str, Any]]:
        events: list[dict[str, Any]] = []
        while True:
            more = self.get(f"/venue/v1/ledger?from_seq={len(events) + 1}&limit=1000")["events"]
            events += more
            if len(more) < 1_000:
                return events

    def resting(self, symbol: str) -> list[str]:
        """Types of conditional orders at rest, by the ledger."""
        kinds: dict[str, str] = {}
        for event in self.ledger():
            if event.get("symbol") == symbol and event["type"] == "algo_new":
                kinds[event["client_id"]] = event.get("order_type") or event["kind"]
            elif event["type"] in ("algo_done", "algo_triggered"):
                kinds.pop(event.get("client_id", ""), None)
        return sorted(kinds.values())

    def position(self, symbol: str) -> dict[str, str]:
        return self.r.hgetall(KEYS.position(symbol))  # type: ignore[return-value]

    def protected(self, symbol: str) -> bool:
        fields = self.position(symbol)
        return fields.get("stop_state") == "acked" and fields.get("target_state") == "acked"


@pytest.fixture
def rig(redis_url: str, tmp_path: Path) -> Iterator[Rig]:
    state = str(tmp_path / "venue")
    argv = [sys.executable, "-m", "venue.main", "--port", "0", "--symbols", "6", "--rate", "300"]
    venue = subprocess.Popen([*argv, "--state", state], cwd=ROOT, stdout=subprocess.PIPE)
    assert venue.stdout is not None
    line = venue.stdout.readline().decode()
    made = Rig(redis_url, next(w for w in line.split() if w.startswith("http")), tmp_path)
    yield made
    for process in (*made.risk, venue):
        if process.poll() is None:
            process.kill()
        process.wait(10)
    made.r.close()


def most_positions(events: list[dict[str, Any]]) -> int:
    """The largest number of positions open at once, at any prefix of the ledger."""
    open_now: dict[str, Decimal] = {}
    most = 0
    for event in events:
        if event["type"] == "trade":
            open_now[event["symbol"]] = Decimal(event["position_after"])
            most = max(most, sum(1 for size in open_now.values() if size))
    return most


def venue_positions(events: list[dict[str, Any]]) -> dict[str, Decimal]:
    sizes: dict[str, Decimal] = {}
    for event in events:
        if event["type"] == "trade":
            sizes[event["symbol"]] = Decimal(event["position_after"])
    return {symbol: size for symbol, size in sizes.items() if size}


def our_positions(rig: Rig) -> dict[str, Decimal]:
    made = {}
    for symbol in rig.r.smembers(KEYS.positions):  # type: ignore[union-attr]
        fields = rig.position(symbol)
        made[symbol] = Decimal(fields["qty"]) * (1 if fields["side"] == "buy" else -1)
    return made


def doubled(events: list[dict[str, Any]]) -> list[str]:
    """Client ids of entries that reached the book more than once."""
    seen: dict[str, int] = {}
    for event in events:
        if event["type"] == "order_new" and event.get("client_id", "")[-2:-1] == "e":
            seen[event["client_id"]] = seen.get(event["client_id"], 0) + 1
    return [client_id for client_id, times in seen.items() if times > 1]


def test_a_killed_risk_comes_back_and_keeps_exactly_one_stop(rig: Rig) -> None:
    first = rig.start()
    epoch = rig.wait(rig.trading)
    rig.signal("BTCUSDT", share=0.2)
    rig.wait(lambda: rig.protected("BTCUSDT"))
    assert rig.resting("BTCUSDT") == ["STOP_MARKET", "TAKE_PROFIT_MARKET"]
    before = rig.position("BTCUSDT")
    first.send_signal(signal.SIGKILL)
    first.wait(10)
    rig.start()
    rig.wait(lambda: rig.trading(epoch))
    assert rig.resting("BTCUSDT") == ["STOP_MARKET", "TAKE_PROFIT_MARKET"]
    after = rig.position("BTCUSDT")
    for name in ("qty", "entry", "stop_order", "confidence", "signal"):
        assert after[name] == before[name]


def test_a_standby_takes_over_and_a_stopped_holder_does_no_harm(rig: Rig) -> None:
    first = rig.start()
    epoch = rig.wait(rig.trading)
    rig.signal("BTCUSDT", share=0.2)
    rig.wait(lambda: rig.protected("BTCUSDT"))
    rig.start()
    first.send_signal(signal.SIGSTOP)
    second = rig.wait(lambda: rig.trading(epoch))
    first.send_signal(signal.SIGCONT)
    for number in range(4):
        rig.signal(("ETHUSDT", "BTCUSDT")[number % 2], share=0.2)
        time.sleep(0.3)
    rig.wait(lambda: rig.protected("ETHUSDT"))
    assert rig.trading() == second
    assert first.poll() is None  # it stands by
    events = rig.ledger()
    assert doubled(events) == [] and most_positions(events) == 2
    epochs: Any = [fields["epoch"] for _, fields in rig.r.xrange(KEYS.orders)]
    assert epochs == sorted(epochs)


def test_sigterm_leaves_the_stop_in_place_gives_the_lease_back_and_exits_0(rig: Rig) -> None:
    process = rig.start()
    rig.wait(rig.trading)
    rig.signal("BTCUSDT", share=0.2)
    rig.wait(lambda: rig.protected("BTCUSDT"))
    process.send_signal(signal.SIGTERM)
    assert process.wait(10) == 0
    assert not rig.r.exists(KEYS.lease)
    assert rig.resting("BTCUSDT") == ["STOP_MARKET", "TAKE_PROFIT_MARKET"]


def test_without_the_key_armed_there_is_no_entry_and_a_flatten_still_works(rig: Rig) -> None:
    rig.start()
    rig.wait(rig.trading)
    rig.signal("BTCUSDT", share=0.2)
    rig.wait(lambda: rig.protected("BTCUSDT"))
    rig.r.delete(KEYS.armed)
    refused = rig.signal("ETHUSDT", share=0.2)

    def decided() -> Any:
        rows: Any = rig.r.xrevrange(KEYS.decisions, count=20)
        return [row for _, row in rows if row["signal"] == refused]

    assert rig.wait(decided)[0]["refused_by"] == "armed"
    streams.publish(rig.r, KEYS.commands, {"id": "f1", "name": "flatten", "symbol": "BTCUSDT"})
    rig.wait(lambda: not our_positions(rig))
    rig.wait(lambda: rig.resting("BTCUSDT") == [])
    assert json.loads(str(rig.r.hget(KEYS.replies, "f1")))["closing"] == ["BTCUSDT"]
    assert not venue_positions(rig.ledger())


def test_a_snapshot_is_answered_with_the_exchanges_truth(rig: Rig) -> None:
    rig.start()
    rig.wait(rig.trading)
    streams.publish(rig.r, KEYS.commands, {"id": "c1", "name": "snapshot", "slot": "1"})
    answer = rig.wait(lambda: rig.r.hget(KEYS.replies, "c1"))
    told = rig.r.hgetall(KEYS.exchange)
    assert json.loads(str(answer))["snapshot"] == told["id"]  # type: ignore[index]


def test_kills_and_stops_in_a_storm_of_signals_double_and_lose_nothing(rig: Rig) -> None:
    chance = random.Random(5)
    symbols = [row["symbol"] for row in rig.get("/fapi/v1/exchangeInfo")["symbols"]][:6]
    process = rig.start()
    epoch = rig.wait(rig.trading)
    for _ in range(4):
        for _ in range(chance.randint(8, 20)):
            side = chance.choice(("buy", "sell"))
            share, confidence = chance.uniform(0.004, 0.02), chance.uniform(0.4, 0.9)
            rig.signal(chance.choice(symbols), side, share, confidence)
            time.sleep(chance.uniform(0.0, 0.15))
        process.send_signal(signal.SIGKILL)
        process.wait(10)
        process = rig.start()
        epoch = rig.wait(lambda last=epoch: rig.trading(last))

    def settled() -> bool:
        return our_positions(rig) == venue_positions(rig.ledger())

    rig.wait(settled)
    events = rig.ledger()
    assert doubled(events) == []
    assert most_positions(events) <= 3
    assert sum(1 for event in events if event["type"] == "order_new") > 5
    for symbol in our_positions(rig):
        assert rig.resting(symbol).count("STOP_MARKET") == 1

    def strays() -> list[dict[str, str]]:
        live = {rig.position(symbol).get("signal") for symbol in our_positions(rig)}
        names: Any = rig.r.smembers(KEYS.orders_open)
        orders: list[Any] = [rig.r.hgetall(KEYS.order(name)) for name in names]
        return [order for order in orders if order.get("cause") not in live]

    rig.wait(lambda: not strays(), 10)
    pending: Any = rig.r.xpending(KEYS.signals, "main")
    assert pending["pending"] == 0
    fills: Any = rig.r.xrange(KEYS.fills)
    assert len(fills) == sum(1 for event in events if event["type"] == "trade")
