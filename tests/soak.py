"""The soak: real venue, fault proxy, real node with its feed and brain, and every candle compared.

    python tests/soak.py --seconds 600 --rate 20000 --symbols 40 --cut-every 20 --seed 1 --json

Connections are cut at random points inside frames and inside minutes, and replaced in between.
At the end the market is paused, and OHLC and volume of every closed and forming candle of every
timeframe are held against the venue's klines, every trade and quote against its counts. Prints one
JSON object; exit 1 if anything is unequal, unexplained, or a symbol had no hole. Bounded: it ends
by itself, at most END_S_MAX after its seconds.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(Path(__file__).resolve().parent)]

from fault_proxy import FaultProxy, schedule  # noqa: E402

import config  # noqa: E402
import ring as rings  # noqa: E402
from brain import state as brain_state  # noqa: E402
from maintenance import launch, redis_server, summary, universe  # noqa: E402

START_S_MAX = 400.0  # kernels may have to be compiled, warm-up ends with a market minute
END_S_MAX = 300.0  # bars that lost trades are right a market minute later
DRAIN_S_MAX = 15.0
SAFE_SECONDS = (10, 50)  # of a market minute: far from closing bars
HOLE = re.compile(r"hole (?:lost )?symbol=(\S+) (?:first|last)=(\d+)")


class Failed(Exception):
    """The soak could not be carried through; the sentence says where it stood."""


def until(what: str, true: Callable[[], bool], seconds: float) -> None:
    end_s = time.monotonic() + seconds
    while not true():
        if time.monotonic() > end_s:
            raise Failed(f"{what}: not within {seconds:.0f} s")
        time.sleep(0.1)


@contextlib.contextmanager
def running(argv: tuple[str, ...], env: Mapping[str, str], log: Path) -> Iterator[Any]:
    """A real process, ended in order."""
    with log.open("wb") as file:
        child = subprocess.Popen(argv, cwd=ROOT, env=dict(env), stderr=file, stdout=subprocess.PIPE)
        try:
            yield child
        finally:
            child.send_signal(signal.SIGTERM)
            try:
                child.wait(DRAIN_S_MAX)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()


class Soak:
    """The running system, seen from outside: statistics of the ring, state of the brain."""

    def __init__(self, venue_url: str, cfg: config.Config, symbols: int) -> None:
        self.venue_url, self.symbols = venue_url, symbols
        path = launch.ring_path(cfg)
        self.brain_file, self.symbols_max = launch.brain_path(path), cfg.symbols_max
        until("the node's ring", path.exists, START_S_MAX)
        until("the brain's file", self.brain_file.exists, START_S_MAX)
        self.ring = rings.attach(path)
        until("the brain", self._ready, START_S_MAX)
        self.state = brain_state.open_state(self.brain_file, self.symbols_max, create=False)

    def _ready(self) -> bool:
        words = self.ring.words
        return bool(words[rings.BRAIN_READY] == words[rings.GENERATION])

    def count(self, name: str) -> int:
        return self.ring.counters()["feed"][name]

    def rows(self) -> Any:
        sym = self.state.arrays.sym
        return sym[sym[:, brain_state.ACTIVE] == 1]

    def whole(self) -> bool:
        """Every symbol announced, no hole open, no bar known to be wrong."""
        rows = self.rows()
        degraded = rows[:, brain_state.DEGRADED].any()
        return len(rows) == self.symbols and not degraded and self.count("uncorrected") == 0

    def tallies(self) -> Any:
        """Per symbol: newest id, and what accounts for it."""
        columns = [brain_state.NEWEST_ID, brain_state.TRADES, brain_state.LOST]
        return self.rows()[:, [*columns, brain_state.SKIPPED]].copy()

    def market_second(self) -> float:
        now = universe.get_json(f"{self.venue_url}/fapi/v1/time")
        return int(now["serverTime"]) / 1000 % 60

    def drained(self) -> bool:
        """The brain has every trade that the venue made."""
        sent = universe.get_json(f"{self.venue_url}/venue/v1/sent")["symbols"]
        words = self.ring.words
        rows = range(self.state.symbols_max)
        newest = {
            self.state.name(row): int(self.state.arrays.sym[row, brain_state.NEWEST_ID])
            for row in rows
            if self.state.arrays.sym[row, brain_state.ACTIVE]
        }
        has_all = all(newest[name] == int(sent[name]["last_id"]) for name in newest)
        return bool(has_all and words[rings.HEAD] == words[rings.TAIL])

    def come_to_rest(self) -> None:
        """Until every bar is right; then the market stands still and its last trade is in."""
        end_s, (low, high) = time.monotonic() + END_S_MAX, SAFE_SECONDS
        until("every bar right again", self.whole, end_s - time.monotonic())

        def is_safe() -> bool:
            return low < self.market_second() < high and self.whole()

        until("a safe second", is_safe, end_s - time.monotonic())
        summary.post(f"{self.venue_url}/venue/v1/pause")
        until("the last trade", self.drained, end_s - time.monotonic())


def cut_until_over(proxy: FaultProxy, options: argparse.Namespace) -> int:
    """Carry the schedule out; how many connections were cut."""
    began_s, hit = time.monotonic(), 0
    for fault in schedule(options.seed, options.cut_every, options.seconds):
        time.sleep(max(0.0, began_s + fault.at_s - time.monotonic()))
        hit += proxy.cut(fault.how, fault.after_bytes, fault.route)
        if fault.refused_s:
            proxy.refuse(True)
            time.sleep(fault.refused_s)
            proxy.refuse(False)
    time.sleep(max(0.0, began_s + options.seconds - time.monotonic()))
    return hit


def holes_by_symbol(log: Path) -> dict[str, int]:
    """Distinct holes that feed told of, by symbol."""
    found = set(HOLE.findall(log.read_text(errors="replace")))
    counts: dict[str, int] = {}
    for symbol, _ in found:
        counts[symbol] = counts.get(symbol, 0) + 1
    return counts


def compare(soak: Soak, before: Any, log: Path) -> dict[str, Any]:
    """Everything against the venue, while the market stands still."""
    status = universe.get_json(f"{soak.venue_url}/venue/v1/status")
    sent = universe.get_json(f"{soak.venue_url}/venue/v1/sent")
    checked, unequal, tallies = summary.check_candles(
        soak.venue_url, [soak.brain_file], soak.symbols_max, int(status["t0_ms"])
    )
    counters = soak.ring.counters()
    flat = {f"{side}.{k}": str(v) for side, named in counters.items() for k, v in named.items()}
    quotes = summary.quote_tally(sent["connections"], flat)
    lost_quotes, in_flight, _ = summary.quotes_lost(quotes)
    moved = soak.tallies() - before
    unaccounted = int(abs(moved[:, 0] - moved[:, 1:].sum(axis=1)).sum())
    behind = sum(max(t.venue_last_id - t.newest_id, 0) + t.jumps for t in tallies)
    feed, brain, holes = counters["feed"], counters["brain"], holes_by_symbol(log)
    names = [t.symbol for t in tallies]
    return {
        "ticks": brain["trades"] + brain["quotes"],
        "holes": sum(holes.values()),
        "holes_min_per_symbol": min(holes.get(name, 0) for name in names),
        "healed_trades": feed["healed_trades"],
        "lost_trades": brain["lost_trades"],
        "corrections": feed["corrections"],
        "rotations": feed["rotations"],
        "reconnects": feed["reconnects"],
        "conflated": feed["conflated"],
        "refused": summary.refusals(flat),
        "dropped_trades": feed["dropped_trades"],
        "late": brain["late"],
        "resyncs": brain["resyncs"],
        "candles_checked": checked,
        "candles_unequal": len(unequal),
        "unequal": unequal[: summary.EXAMPLES_MAX],
        "lost_ticks": unaccounted + behind + lost_quotes,
        "quotes_in_flight": in_flight,
    }


def run(options: argparse.Namespace, folder: Path, environ: Mapping[str, str]) -> dict[str, Any]:
    env = launch.environment(environ, AEGIS_STATE_DIR=folder / "state")
    redis_port, redis_folder = redis_server.free_port(), folder / "redis"
    redis_server.prepare(redis_folder, keep=False)
    argv = redis_server.command(redis_server.find_binary(environ), redis_folder, redis_port)
    venue_argv = launch.python(
        "venue.main", "--port", "0", "--symbols", str(options.symbols), "--rate",
        str(options.rate), "--seed", str(options.seed), "--speed", str(options.speed),
        "--state", str(folder / "venue"),
    )  # fmt: skip
    log = folder / "node.log"
    with contextlib.ExitStack() as stack:
        stack.enter_context(running(argv, env, folder / "redis.log"))
        venue = stack.enter_context(running(venue_argv, env, folder / "venue.log"))
        venue_url = venue.stdout.readline().decode().split()[2]
        proxy = stack.enter_context(FaultProxy(int(venue_url.rsplit(":", 1)[1])))
        env |= {
            "AEGIS_MODE": "sim",
            "AEGIS_NODE_ID": "soak",
            "AEGIS_SYMBOLS": str(options.symbols),
            "AEGIS_VENUE_URL": f"http://127.0.0.1:{proxy.port}",
            "AEGIS_REPLACE_S": str(options.replace_every),
            "AEGIS_LOG_LEVEL": "INFO",
            "REDIS_URL": f"redis://127.0.0.1:{redis_port}/0",
        }
        until("Redis", lambda: redis_server.answers(redis_port), START_S_MAX)
        stack.enter_context(running(launch.python("maintenance.node"), env, log))
        soak = Soak(venue_url, config.load(env), options.symbols)
        until("warm-up of every symbol", soak.whole, START_S_MAX)
        before, began_s = soak.tallies(), time.monotonic()
        cut_until_over(proxy, options)
        seconds = time.monotonic() - began_s
        soak.come_to_rest()
        made = compare(soak, before, log)
        return {
            "seconds": round(seconds, 1),
            "seed": options.seed,
            "rate": options.rate,
            "symbols": options.symbols,
            "disconnects": proxy.cuts,
            **made,
        }


def arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="soak", description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--rate", type=float, default=20_000, help="ticks/s, all symbols")
    parser.add_argument("--symbols", type=int, default=40)
    parser.add_argument("--cut-every", type=float, default=20, help="seconds, about")
    parser.add_argument("--replace-every", type=float, default=17, help="seconds, at most")
    parser.add_argument("--speed", type=float, default=1, help="market seconds per second")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--keep", type=Path, help="folder for logs and state; else a temporary one")
    parser.add_argument("--json", action="store_true", help="the result alone, on one line")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    options = arguments(argv)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # leave no child behind
    with contextlib.ExitStack() as stack:
        folder = options.keep or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        folder.mkdir(parents=True, exist_ok=True)
        try:
            made = run(options, folder, os.environ)
        except Failed as error:
            print(f"soak: {error}", file=sys.stderr)
            log = folder / "node.log"
            if log.exists():
                print(log.read_text(errors="replace")[-4000:], file=sys.stderr)
            return 1
    made["ok"] = bool(
        made["candles_checked"]
        and not made["candles_unequal"]
        and not made["lost_ticks"]
        and made["holes_min_per_symbol"]
    )
    print(json.dumps(made) if options.json else json.dumps(made, indent=1))
    return 0 if made["ok"] else 1


if __name__ == "__main__":
    raise SystemExit(main())
