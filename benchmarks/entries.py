"""From a signal in Redis to an entry at the exchange's door, and how many of them a second.

    this process ──XADD──▶ Redis ──▶ risk ──HTTP──▶ venue (its ledger is read at the end)

Real processes, limits off: a position for each symbol, no rotation, no exits but flatten. A round
sends one signal for each symbol at a set pace and is over when every entry has filled and has its
stop; then everything is flattened. The venue's ledger must hold each signal's entry once, filled,
with its stop; anything else raises. Latency is taken at a pace that leaves risk idle in between:
from before the XADD to the ledger's time of the order, which is in whole milliseconds.

ccxt sends the same orders to a venue of its own, in turns with us (ccxt_entries.py).
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import orjson

import streams
from benchmarks.path import cpu_s
from benchmarks.report import Result
from benchmarks.venue import ask, venue
from maintenance import launch, redis_server

SYMBOLS: Final = 40
ROUNDS: Final = 5
PACE: Final = 1_000.0  # signals a second offered in a round
CALM_PACE: Final = 20.0  # ... and where latency is measured
WAIT_S: Final = 60.0
LOOK_S: Final = 0.02
LOOK_AGAIN_S: Final = 0.2  # well within what risk takes as fresh
DEPOSIT: Final = "10000000"
STOP_SHARE, TARGET_SHARE = 0.02, 0.04
KEYS: Final = streams.Keys("sim", "main")
ROOT: Final = Path(__file__).resolve().parent.parent
SETTINGS: Final = {
    "AEGIS_MODE": "sim",
    "AEGIS_NODE_ID": "bench",
    "AEGIS_POSITIONS_MAX": "90",
    "AEGIS_EXPOSURE_MAX": "100",
    "AEGIS_ROTATION": "0",
    "AEGIS_COST_R_MAX": "10",
    "AEGIS_RISK_PER_TRADE": "0.0001",
    "AEGIS_CAPITAL_MAX": "200000",  # 20 USDT of risk: some hundreds of notional, a fill or two
    "AEGIS_COLLAR_BPS": "100",
    "AEGIS_SIGNAL_AGE_MS": "60000",
    "AEGIS_DECAY_EXIT": "0",
}


@dataclass(frozen=True, slots=True)
class Bench:
    """What is running: addresses and process ids."""

    r: Any
    venue_url: str
    venue_pid: int
    redis_pid: int
    risk_pid: int
    ledger: Path


def until(look: Callable[[], Any], what: str) -> Any:
    """The first true answer. Raises RuntimeError."""
    end = time.monotonic() + WAIT_S
    while time.monotonic() < end:
        answer = look()
        if answer:
            return answer
        time.sleep(LOOK_S)
    raise RuntimeError(f"waited {WAIT_S:.0f} s in vain for {what}")


class Rival:
    """ccxt on a venue of its own, which stands still but for its rounds."""

    def __init__(self, venue_pid: int, url: str, ledger: Path) -> None:
        self.venue_pid, self.ledger = venue_pid, ledger
        ask(f"{url}/venue/v1/deposit", "POST", {"asset": "USDT", "amount": DEPOSIT})
        argv = [sys.executable, "-m", "benchmarks.ccxt_entries", url]
        self.process = subprocess.Popen(
            argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT
        )
        self.symbols = self._told()["symbols"]
        os.kill(venue_pid, signal.SIGSTOP)

    def _told(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError("the rival ended in the middle")
        told: dict[str, Any] = json.loads(line)
        return told

    def one_round(self) -> float:
        """Entries a second. Raises RuntimeError unless all their orders are in the ledger."""
        assert self.process.stdin is not None
        at = self.ledger.stat().st_size
        os.kill(self.venue_pid, signal.SIGCONT)
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        told = self._told()
        time.sleep(LOOK_S)
        os.kill(self.venue_pid, signal.SIGSTOP)
        made = [key.split()[0] for key in placed(self.ledger, at)]
        # an entry and an end, both filled; a stop and a target
        each = {made.count(kind) for kind in ("order_new", "trade", "algo_new")}
        if each != {2 * self.symbols}:
            raise RuntimeError(f"the rival placed {len(made)} events for {told}")
        return float(told["entries"] / told["seconds"])

    def end(self) -> None:
        os.kill(self.venue_pid, signal.SIGCONT)
        self.process.kill()
        self.process.communicate(timeout=10)


@contextmanager
def rival(symbols: int) -> Iterator[Rival]:
    with venue(*words(symbols)) as (pid, url, state):
        made = Rival(pid, url, state / "ledger.jsonl")
        try:
            yield made
        finally:
            made.end()


def words(symbols: int) -> tuple[str, ...]:
    """The venue's options, ours and the rival's."""
    return ("--symbols", str(symbols), "--rate", "300", "--speed", "1", "--limits", "off")


@contextmanager
def running(symbols: int) -> Iterator[Bench]:
    """Redis on its file, a venue with much money, one risk that trades."""
    with tempfile.TemporaryDirectory() as name, venue(*words(symbols)) as (venue_pid, url, state):
        folder, port = Path(name), redis_server.free_port()
        argv = redis_server.command(redis_server.find_binary(), folder, port)
        with (folder / "risk.log").open("ab") as log:
            server = subprocess.Popen(argv, stdout=subprocess.DEVNULL)
            r = streams.connect(redis_url := f"redis://{redis_server.LOOPBACK}:{port}/0")
            until(lambda: redis_server.answers(port), "Redis")
            ask(f"{url}/venue/v1/deposit", "POST", {"asset": "USDT", "amount": DEPOSIT})
            environ = launch.environment(
                {k: v for k, v in os.environ.items() if not k.startswith("AEGIS_")},
                **SETTINGS,
                AEGIS_VENUE_URL=url,
                REDIS_URL=redis_url,
                AEGIS_STATE_DIR=folder,
            )
            risk = subprocess.Popen(launch.python("risk.main"), env=environ, stderr=log)
            try:
                until(lambda: r.hget(KEYS.status, "state") == "trading", "risk to trade")
                time.sleep(1.0)  # what is signalled from now on is not missed
                yield Bench(r, url, venue_pid, server.pid, risk.pid, state / "ledger.jsonl")
            except BaseException:
                print((folder / "risk.log").read_text(errors="replace")[-2_000:])
                raise
            finally:
                for process in (risk, server):
                    process.kill()
                    process.wait(10)
                r.close()


def send(bench: Bench, names: list[str], name: str, pace: float) -> dict[str, float]:
    """A signal for each symbol, `pace` a second: client id of its entry -> wall ms of the XADD."""
    told, looked_s, made_ms = {}, -LOOK_AGAIN_S, 0
    prefix, sent = streams.prefix3(KEYS), {}
    began = time.perf_counter()
    for number, symbol in enumerate(names):
        if time.perf_counter() - looked_s > LOOK_AGAIN_S:  # as a brain does, by what it just saw
            told = {r["symbol"]: r for r in ask(f"{bench.venue_url}/fapi/v1/ticker/bookTicker")}
            made_ms = ask(f"{bench.venue_url}/fapi/v1/time")["serverTime"]
            looked_s = time.perf_counter()
        quote = told[symbol]
        price = float(quote["askPrice"])
        fields = {
            "id": f"{name}-{number}",
            "symbol": symbol,
            "side": "buy",
            "price": repr(price),
            "stop": repr(price * (1 - STOP_SHARE)),
            "target": repr(price * (1 + TARGET_SHARE)),
            "confidence": "0.6",
            "exch_ns": str(made_ms * 1_000_000),
            "bid": quote["bidPrice"],
            "ask": quote["askPrice"],
            "quote_ns": str(quote["time"] * 1_000_000),
            "rule": "bench",
        }
        time.sleep(max(0.0, began + number / pace - time.perf_counter()))
        sent[streams.client_id(prefix, fields["id"], "e")] = time.time_ns() / 1e6
        streams.publish(bench.r, KEYS.signals, fields)
    return sent


def placed(ledger: Path, from_byte: int) -> dict[str, dict[str, Any]]:
    """Client id -> first event of each order and conditional order since `from_byte`."""
    found: dict[str, dict[str, Any]] = {}
    with ledger.open("rb") as file:
        file.seek(from_byte)
        for line in file:
            if not line.endswith(b"\n"):
                break
            event = orjson.loads(line)
            if event["type"] in ("order_new", "algo_new", "trade"):
                key = f"{event['type']} {event['client_id']}"
                if event["type"] != "trade" and key in found:
                    raise RuntimeError(f"{event['client_id']} was accepted twice")
                found.setdefault(key, event)
    return found


def one_round(
    bench: Bench, names: list[str], name: str, pace: float
) -> tuple[float, list[float], list[float]]:
    """(entries a second, ms to each entry's order, ms from it to its stop), then flat again."""
    at = bench.ledger.stat().st_size
    sent = send(bench, names, name, pace)
    stops = {entry: f"{entry[:-2]}s0" for entry in sent}

    def whole() -> Mapping[str, dict[str, Any]] | None:
        found = placed(bench.ledger, at)
        wanted = [f"order_new {e}" for e in sent] + [f"trade {e}" for e in sent]
        wanted += [f"algo_new {s}" for s in stops.values()]
        return found if all(key in found for key in wanted) else None

    try:
        found = until(whole, f"{len(sent)} entries, each with its stop")
    except RuntimeError as error:
        found = placed(bench.ledger, at)
        rows = [row for _, row in bench.r.xrange(KEYS.decisions)]
        told = {r["symbol"]: r["refused_by"] for r in rows if r["outcome"] != "entry"}
        bare = [key for key in [*(f"trade {e}" for e in sent), *stops.values()] if key not in found]
        raise RuntimeError(f"{error}: refused {told}, missing {len(bare)} {bare[:3]}") from error
    entered = [found[f"order_new {e}"]["wall_ms"] for e in sent]
    stopped = [found[f"algo_new {s}"]["wall_ms"] for s in stops.values()]
    seconds = (max(stopped) - min(sent.values())) / 1000
    delays = [ms - began for ms, began in zip(entered, sent.values(), strict=True)]
    bare = [stop - entry for stop, entry in zip(stopped, entered, strict=True)]
    command = {"id": f"flat-{name}", "name": "flatten", "symbol": ""}
    streams.publish(bench.r, KEYS.commands, command)
    until(lambda: not bench.r.scard(KEYS.positions), "everything to be flat")
    until(lambda: not bench.r.scard(KEYS.orders_open), "every order to end")
    return len(sent) / seconds, delays, bare


def run(symbols: int = SYMBOLS, rounds: int = ROUNDS) -> list[Result]:
    with running(symbols) as bench, rival(symbols) as peer:
        told = ask(f"{bench.venue_url}/fapi/v1/exchangeInfo")["symbols"]
        names = sorted(row["symbol"] for row in told)
        one_round(bench, names, "first", CALM_PACE)  # leverage and margin type are set once
        peer.one_round()
        rates, costs, bare, theirs = [], [], [], []
        for number in range(rounds):
            spent = [cpu_s(pid) for pid in (bench.risk_pid, bench.redis_pid, bench.venue_pid)]
            rate, _, naked = one_round(bench, names, f"round{number}", PACE)
            costs.append(1e6 * (cpu_s(bench.risk_pid) - spent[0]) / len(names))
            rates.append(rate)
            theirs.append(peer.one_round())
            bare += naked
        _, delays, _ = one_round(bench, names, "calm", CALM_PACE)
    delays.sort()
    p99 = delays[min(len(delays) - 1, len(delays) * 99 // 100)]
    note = f"{symbols} symbols, {PACE:.0f}/s offered"
    return [
        Result("risk, entries with their stops", "1/s", rates, 500.0, False, note),
        Result("ccxt, the same orders and nothing kept", "1/s", theirs),
        Result("risk against ccxt", "x", [a / b for a, b in zip(rates, theirs, strict=True)]),
        Result("risk, CPU of one, from signal to flat again", "us", costs),
        Result("risk, entry to its stop under that load", "ms", bare),
        Result("risk, signal in Redis to entry at the venue", "ms", delays, 2.0),
        Result("risk, the same, p99", "ms", [p99], 10.0),
    ]
