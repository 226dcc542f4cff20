"""The system under chaos: a Redis, an exchange and two risk processes, all real, all our own.

Everything runs on loopback in one folder and ends with the rig. `Rig` starts, kills and asks; it
decides nothing. What risk wrote is read along while it runs, so that no trimming of a stream can
take it away before it was checked.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any, Final

import redis.exceptions

import streams
from clock import wall_ms
from maintenance import chaos_points, launch, redis_server, universe
from maintenance.chaos_check import Entry
from maintenance.chaos_proxy import Proxy
from maintenance.chaos_relay import Relay
from maintenance.chaos_world import World
from maintenance.running import Client
from maintenance.supervisor import die_with_parent

LOOK_S: Final = 0.02
START_S_MAX: Final = 60.0  # for the venue to answer: kernels may have to be loaded
REDIS_S_MAX: Final = 15.0
RISKS: Final = ("chaos-1", "chaos-2")
PAGE: Final = 2_000
BLOCK_MS: Final = 500
MISTAKE_WORDS: Final = ("Traceback", "task failed", "request failed")
SETTINGS: Final = {
    "AEGIS_MODE": "sim",
    "AEGIS_SIGNAL_AGE_MS": "60000",  # of the market, which is 30 times as fast
    "AEGIS_COST_R_MAX": "5",  # stops as near as these cost more than they risk
    "AEGIS_RISK_PER_TRADE": "0.0005",
}
Json = dict[str, Any]


@dataclass(slots=True)
class Lost:
    """What Redis was made to lose, exactly: rows that had been read along, signals that had been
    confirmed, and books that the exchange no longer tells."""

    orders: set[str] = field(default_factory=set)  # ids of stream entries
    signals: set[str] = field(default_factory=set)
    fills: dict[str, dict[str, str]] = field(default_factory=dict)  # by symbol:trade_id
    ledger: dict[str, dict[str, str]] = field(default_factory=dict)  # by event id


class Rig:
    """Use as a context manager. `risk` are the processes by their node's name."""

    def __init__(
        self, folder: Path, seed: int, world: World, rate: int = 600, broken: str = ""
    ) -> None:
        self.folder, self.seed, self.world, self.rate = folder, seed, world, rate
        self.broken = broken  # the guard that risk runs without
        self.points = folder / "points"
        self.deaths: list[int] = []  # wall ms, of holders that died while they took over
        self.beside: Counter[str] = Counter()  # faults that bit in a take-over
        self.keys = streams.Keys("sim", "main")
        self.redis_port = redis_server.free_port()
        self.redis_url = f"redis://{redis_server.LOOPBACK}:{self.redis_port}/0"
        self.r: Client = streams.connect(self.redis_url)
        self.proxy = Proxy(self.redis_port, f"{self.keys.orders}\r\n".encode(), RISKS)
        self.venue_url = ""
        self.relay: Relay  # between risk and the venue
        self.foreign: list[tuple[str, int, int]] = []  # symbol, from and to when it was another's
        self.dead_ms = 0  # wall ms at which the holder was kept from acting; 0: it was not
        self.down_ms = 0  # the same, of a holder before it whose successor died as well
        self.stalled: list[tuple[int, int]] = []  # wall ms: nothing came through to the exchange
        self.redis: subprocess.Popen[bytes] | None = None
        self.venue: subprocess.Popen[bytes] | None = None
        self.risk: dict[str, subprocess.Popen[bytes]] = {}
        self.died: list[str] = []  # by themselves
        self.orders: list[Entry] = []
        self.decided: set[str] = set()
        self.tails: dict[str, str] = {}  # of each stream that is read along
        self.lost = Lost()
        base = {k: v for k, v in os.environ.items() if not k.startswith(("AEGIS_", "REDIS_"))}
        places = {"AEGIS_POSITIONS_MAX": world.positions_max}
        self._environ = launch.environment(base, **SETTINGS, **places, AEGIS_STATE_DIR=folder)

    def __enter__(self) -> Rig:
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "redis").mkdir(exist_ok=True)
        self.start_redis()
        self.proxy.__enter__()
        self._start_venue()
        self.relay = Relay(int(self.venue_url.rsplit(":", 1)[1]))
        self.relay.__enter__()
        for name in RISKS:
            self.start_risk(name)
        return self

    def __exit__(self, *exc: object) -> None:
        for process in (*self.risk.values(), self.venue, self.redis):
            if process is not None and process.poll() is None:
                process.kill()
                process.wait(10)
        self.proxy.__exit__()
        if hasattr(self, "relay"):
            self.relay.__exit__()
        self.r.close()

    # --- processes ---

    def _spawn(self, name: str, argv: tuple[str, ...], **more: Any) -> subprocess.Popen[bytes]:
        """From the main thread only: a child dies with the thread that made it."""
        parent = os.getpid()
        with (self.folder / f"{name}.log").open("ab") as log:
            return subprocess.Popen(
                argv,
                cwd=launch.ROOT,
                stderr=log,
                preexec_fn=lambda: die_with_parent(parent),
                **more,
            )

    def start_redis(self, *more: str) -> int:
        """On its folder, with more settings; how often it said meanwhile that it is loading."""
        argv = redis_server.command(
            redis_server.find_binary(), self.folder / "redis", self.redis_port
        )
        argv += more
        self.redis = self._spawn("redis", argv, stdout=subprocess.DEVNULL)
        loading = 0

        def answers() -> bool:
            nonlocal loading
            try:
                return bool(self.r.ping())
            except redis.exceptions.BusyLoadingError:
                loading += 1
            except (redis.exceptions.RedisError, OSError):
                pass
            return False

        self.wait(answers, REDIS_S_MAX, "Redis to answer")
        return loading

    def _start_venue(self) -> None:
        argv = launch.python(
            "venue.main", "--port", "0", "--symbols", str(self.world.symbols),
            "--rate", str(self.rate), "--seed", str(self.seed % (1 << 31)), "--limits", "off",
            "--state", str(self.folder / "venue"),
        )  # fmt: skip
        self.venue = self._spawn("venue", argv, stdout=subprocess.PIPE, env=self._environ)
        assert self.venue.stdout is not None
        words = self.venue.stdout.readline().decode().split()
        self.venue_url = next((word for word in words if word.startswith("http")), "")
        if not self.venue_url:
            raise OSError(f"the venue did not start: see {self.folder / 'venue.log'}")

    def start_risk(self, name: str) -> None:
        environ = self._environ | {
            "AEGIS_NODE_ID": name,
            "AEGIS_VENUE_URL": f"http://{redis_server.LOOPBACK}:{self.relay.port}",
            "REDIS_URL": f"redis://{redis_server.LOOPBACK}:{self.proxy.ports[name]}/0",
        }
        argv = launch.python("maintenance.chaos_risk", "--points", str(self.points))
        argv += ("--break", self.broken) if self.broken else ()
        self.risk[name] = self._spawn(name, argv, env=environ)

    def kill_risk(self, name: str) -> None:
        process = self.risk[name]
        process.kill()
        process.wait(10)

    def look_after(self) -> None:
        """Start again what died by itself; that it did is a violation."""
        for name, process in list(self.risk.items()):
            code = process.poll()
            if code is not None:
                self.died.append(f"{name} ended by itself with {code}")
                self.start_risk(name)

    def wait(self, look: Callable[[], Any], seconds: float, what: str) -> Any:
        """The first true answer. Raises TimeoutError."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            answer = look()
            if answer:
                return answer
            time.sleep(LOOK_S)
        raise TimeoutError(f"waited {seconds:.0f} s in vain for {what}")

    def mistakes(self) -> list[str]:
        """Deaths, and errors that risk or venue call their own."""
        found = list(self.died)
        for name in (*RISKS, "venue"):
            path = self.folder / f"{name}.log"
            text = path.read_text(errors="replace") if path.exists() else ""
            found += [
                f"{name}: {line[:200]}"
                for line in text.splitlines()
                if any(word in line for word in MISTAKE_WORDS)
            ]
        return found

    # --- who holds ---

    def status(self) -> dict[str, str]:
        """Risk's own word; empty while Redis is away."""
        try:
            told: dict[str, str] = self.r.hgetall(self.keys.status)
        except (redis.exceptions.RedisError, OSError):
            return {}
        return told

    def trading(self, epoch_above: int = 0) -> int:
        """The epoch of a holder that enters, holds the lease and is not throttled; else 0."""
        told = self.status()
        epoch = int(told.get("epoch", 0))
        if told.get("state") != "trading" or told.get("throttled") != "0" or epoch <= epoch_above:
            return 0
        return epoch if self.lease() == told.get("holder") else 0

    def trading_from_ms(self) -> int:
        """Wall ms since which the present holder has traded, by its own word."""
        return int(self.status().get("trading_from_wall_ms", 0)) or wall_ms()

    def standing_by(self) -> bool:
        """Is there somebody to take over?"""
        try:
            return bool(streams.standing_by(self.r, self.keys))
        except (redis.exceptions.RedisError, OSError):
            return False

    def standing(self) -> bool:
        """Every risk process is up: one holds, the others can take over."""
        return all(chaos_points.stands(self.points, p.pid) for p in self.risk.values())

    def lease(self) -> str:
        try:
            return str(self.r.get(self.keys.lease) or "")
        except (redis.exceptions.RedisError, OSError):
            return ""

    def holder(self) -> str:
        """The node's name of the process that holds the lease; empty without one."""
        name = self.lease().split(":")[0]
        return name if name in self.risk else ""

    # --- the venue ---

    def get(self, path: str) -> Any:
        return universe.get_json(self.venue_url + path)

    def ask(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> Json | None:
        """The venue's own calls; None when it refused."""
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.venue_url + path, data=data, method=method)  # noqa: S310
        try:
            with urllib.request.urlopen(request, timeout=universe.HTTP_TIMEOUT_S) as answer:  # noqa: S310
                told = json.loads(answer.read(1 << 22))
        except urllib.error.HTTPError:
            return None
        return told if isinstance(told, dict) else {"rows": told}

    def struck(self, plan_id: int) -> int:
        """How often a planned fault has happened."""
        told = self.get("/venue/v1/faults")["happened"]
        return sum(row["fault"] == plan_id for row in told)

    def clear(self, plan_id: int) -> None:
        self.ask("DELETE", f"/venue/v1/faults?id={plan_id}")

    def ledger(self) -> list[Json]:
        """Every entry, from the venue's file: each is flushed when written."""
        lines = (self.folder / "venue" / "ledger.jsonl").read_text().splitlines()
        return [json.loads(line) for line in lines]

    # --- what risk wrote ---

    def positions(self) -> dict[str, Decimal]:
        """Signed, by Redis."""
        made = {}
        for symbol in self.r.smembers(self.keys.positions):
            told: dict[str, str] = self.r.hgetall(self.keys.position(symbol))
            qty = Decimal(told.get("qty", "0"))
            made[symbol] = qty if told.get("side") == "buy" else -qty
        return made

    @property
    def followed(self) -> tuple[str, ...]:
        return self.keys.orders, self.keys.decisions, self.keys.dead

    def follow(self) -> None:
        """Read on in `orders`, `decisions` and `dead`. Redis may be away: next time."""
        try:
            for key in self.followed:
                page: list[Entry] = []
                while not page or len(page) == PAGE:
                    page = self.r.xrange(key, self.after(key), "+", count=PAGE)
                    self.take(key, page)
                    if not page:
                        break
        except (redis.exceptions.RedisError, OSError):
            return

    def after(self, key: str) -> str:
        """Where to read on."""
        return f"({self.tails[key]}" if key in self.tails else "-"

    def take(self, key: str, page: list[Entry]) -> None:
        """Rows of a stream that follow what was read of it before."""
        for entry_id, row in page:
            self.tails[key] = entry_id
            if key == self.keys.orders:
                self.orders.append((entry_id, row))
            name = {self.keys.orders: "cause", self.keys.decisions: "signal"}.get(key, "id")
            self.decided.add(row.get("signal", row.get(name, "")))

    def entry_intended(self, seconds: float) -> bool:
        """Wait for the record of an entry that is about to be sent; False when none came."""
        last, end = "$", time.monotonic() + seconds
        while time.monotonic() < end:
            try:
                answer: Any = self.r.xread({self.keys.orders: last}, block=BLOCK_MS)
            except redis.exceptions.RedisError:
                return False
            for _, entries in answer or []:
                for entry_id, row in entries:
                    last = entry_id
                    if (row["leg"], row["state"]) == ("entry", "intent"):
                        return True
        return False

    def stop_risk(self, name: str, number: int) -> None:
        """SIGSTOP or SIGCONT."""
        os.kill(self.risk[name].pid, number)

    def resume_all(self) -> None:
        """Nobody stays stopped."""
        for name, process in self.risk.items():
            if process.poll() is None:
                self.stop_risk(name, signal.SIGCONT)
