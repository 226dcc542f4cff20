"""One node: makes a ring per lane, runs brain and feed over each, and shows them to the world.

The node owns the symbol tables of its rings; feed reads its own, the brain learns of symbols
through the ring only. Once a second the node writes its row to Redis: that is how feed, which has
no Redis, is seen. A dead Redis changes nothing here: feed and brain go on with the symbols that
they have. A node that was killed finds its rings again by name and adopts them; a node that ends
well removes them. A feed or brain that dies is started again alone; other lanes never notice.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import redis

import config
import latency
import process
import ring as rings
import streams
from clock import boot_ns, wall_ms
from maintenance import jobs, lanes, launch, running, universe, warm
from maintenance.policy import ChildSpec
from maintenance.running import Client
from maintenance.supervisor import Supervisor

ROW_PERIOD_S: Final = 1.0
TABLE_PERIOD_S: Final = 5.0  # how often `symbols` is looked at; universes change hourly
ROW_EXPIRE_S: Final = 60  # a dead node's row outlives it long enough to be read
VENUE_WAIT_S: Final = 30.0  # a venue that starts beside us (Procfile) may need this
DRAIN_S: Final = 6.0  # inside the 9 s of a supervisor above
FIRST_TICK_POLL_S: Final = 0.05
_TICKS: Final = [rings.BRAIN_COUNTERS.index(name) for name in ("trades", "quotes")]
LATENCY_PERIODS: Final = 60  # of the row: percentiles are those of the last minute
log = logging.getLogger(__name__)


# --- pure -------------------------------------------------------------------------------------


def lane_fields(made: rings.Ring, now_boot_ns: int) -> dict[str, int]:
    """How far one lane has come, and how old the oldest news of any of its symbols is."""
    head, tail = int(made.words[rings.HEAD]), int(made.words[rings.TAIL])
    wanted = np.flatnonzero(made.symbols["state"] == rings.WANTED)
    fields = {"symbols": len(wanted), "head": head, "tail": tail, "lag": head - tail}
    for column, channel in enumerate(rings.CHANNELS):
        seen = made.ages[wanted, column]
        if seen.size and (seen > 0).any():
            oldest_ms = (now_boot_ns - int(seen[seen > 0].min())) // 1_000_000
            fields[f"age_{channel}_max_ms"] = max(oldest_ms, 0)
    return fields


def merged(parts: Sequence[Mapping[str, int]]) -> dict[str, int]:
    """Lanes as one: counts are summed; of ages, and of the address's weight, the largest stands."""
    made: dict[str, int] = {}
    for fields in parts:
        for name, value in fields.items():
            largest = name.endswith("_max_ms") or name == "rest_weight"
            before = made.get(name, 0)
            made[name] = max(before, value) if largest else before + value
    return made


def histograms(made: Sequence[rings.Ring]) -> npt.NDArray[np.int64]:
    """Of feed and of the brain, all lanes together: [2, HIST_ROWS, latency.BUCKETS]."""
    feed, brain = ([each.feed_hist for each in made], [each.brain_hist for each in made])
    return np.stack([np.sum(feed, axis=0), np.sum(brain, axis=0)])


def latency_fields(counts: npt.NDArray[np.int64]) -> dict[str, str]:
    """Percentiles in microseconds of histograms, or of the difference of two looks at them."""
    fields = {}
    for names, table in zip((rings.FEED_HISTS, rings.BRAIN_HISTS), counts, strict=True):
        for row, name in zip(table.tolist(), names, strict=False):
            for share in (50, 99):
                value = latency.percentile(row, share / 100)
                if value is not None and name.endswith("_ns"):
                    fields[f"{name.removesuffix('_ns')}_p{share}_us"] = f"{value / 1000:.3f}"
    return fields


def node_fields(
    made: Sequence[rings.Ring], pids: Mapping[str, int], now_boot_ns: int, now_wall_ms: int
) -> dict[str, str]:
    """The node's row: every counter by its name over all lanes, ages in ms; of several lanes also
    each one's own progress, as `lane0.lag`."""
    progress = [lane_fields(each, now_boot_ns) for each in made]
    fields: dict[str, Any] = {
        "heartbeat_ms": now_wall_ms,
        "pid": os.getpid(),
        "lanes": len(made),
        **merged(progress),
        **{f"{name}_pid": pid for name, pid in pids.items()},
    }
    counters = [each.counters() for each in made]
    for side in ("feed", "brain"):
        counts = merged([of_lane[side] for of_lane in counters])
        fields |= {f"{side}.{name}": count for name, count in counts.items()}
    if len(made) > 1:
        for lane, own in enumerate(progress):
            fields |= {f"lane{lane}.{name}": value for name, value in own.items()}
    return {name: str(value) for name, value in fields.items()}


# --- I/O --------------------------------------------------------------------------------------


def world_of(cfg: config.Config) -> str:
    """The venue's birth id in sim and paper, else the account. Raises OSError while unreachable."""
    if cfg.mode in ("live", "demo"):
        return cfg.account
    return str(universe.get_json(f"{cfg.venue_url}/venue/v1/status")["world"])


def wait_for_world(cfg: config.Config) -> str:
    """As world_of, patient with a venue that is just starting. Ends the process after that.

    No heartbeat yet: until the first one the supervisor's grace holds, and a GET may take seconds.
    """
    end_ns = boot_ns() + int(VENUE_WAIT_S * 1e9)
    while not process.stop:
        try:
            return world_of(cfg)
        except (OSError, ValueError, KeyError) as error:
            if boot_ns() > end_ns:
                process.fail(
                    f"No venue at {cfg.venue_url} ({error}): start it with `./aegis venue` or set "
                    "AEGIS_VENUE_URL."
                )
            process.stop.wait(0.2)
    raise SystemExit(0)


def ensure_universe(r: Client, keys: streams.Keys, cfg: config.Config) -> list[str]:
    """Names in `symbols`; written first if nobody did."""
    stored: dict[str, str] = r.hgetall(keys.symbols)
    if stored:
        return list(stored)
    wanted = universe.Wanted(cfg.symbols, cfg.quotes, cfg.symbols_exclude)
    chosen, why = universe.fetch(cfg.rest_url, wanted)
    if why:
        jobs.note(r, keys, "warning", f"universe: {why}")
    universe.write(r, keys.symbols, chosen)
    return list(chosen)


class Reporter(threading.Thread):
    """Writes the node's row and follows `symbols`; its own thread, so that Redis may hang."""

    def __init__(self, cfg: config.Config, made: lanes.Lanes, supervisor: Supervisor) -> None:
        super().__init__(name="reporter", daemon=True)
        self._cfg, self._rings, self._supervisor = cfg, made.rings, supervisor
        self._names = made.names
        self._keys = streams.Keys(cfg.mode, cfg.account)
        self._r: Client = streams.connect(cfg.redis_url, 1)
        self.finished = threading.Event()
        self.failed: str | None = None
        self._counted = deque([histograms(made.rings)], LATENCY_PERIODS + 1)  # one look a period
        self._first_tick_ns = 0  # boot time at which a brain had consumed its first tick

    def run(self) -> None:
        look_due_ns, deaf = 0, False
        try:
            while not self._wait():
                look_due = boot_ns() >= look_due_ns
                try:
                    self._write_row()
                    if look_due:
                        look_due_ns = boot_ns() + int(TABLE_PERIOD_S * 1e9)
                        self._look()
                    deaf = False
                except redis.RedisError as error:
                    if not deaf:  # once per outage
                        log.warning("redis unreachable, symbols stay as they are error=%s", error)
                    deaf = True
                if look_due or lanes.moving(self._rings):
                    lanes.set_tables(self._rings, self._names)
        except Exception as error:  # our bug: the main loop must hear of it
            log.exception("reporter died")
            self.failed = str(error)

    def _wait(self) -> bool:
        """One period, cut short by the end and by the first tick; True at the end."""
        if self._first_tick_ns:
            return self.finished.wait(ROW_PERIOD_S)
        for _ in range(round(ROW_PERIOD_S / FIRST_TICK_POLL_S)):
            if any(int(each.brain_stats[_TICKS].sum()) > 0 for each in self._rings):
                self._first_tick_ns = boot_ns()
                return self.finished.is_set()
            if self.finished.wait(FIRST_TICK_POLL_S):
                return True
        return False

    def _write_row(self) -> None:
        keys, name = self._keys, self._cfg.node_id
        fields = node_fields(self._rings, self._supervisor.pids(), boot_ns(), wall_ms())
        fields["first_tick_boot_ns"] = str(self._first_tick_ns or "")
        self._counted.append(histograms(self._rings))
        fields |= latency_fields(self._counted[-1] - self._counted[0])
        row = keys.node(name, process.BOOT_ID)
        seconds, micros = self._r.time()
        with self._r.pipeline(transaction=True) as pipe:
            pipe.zadd(keys.nodes, {f"{name}:{process.BOOT_ID}": seconds + micros / 1e6})
            pipe.hset(row, mapping=fields)
            pipe.expire(row, ROW_EXPIRE_S)
            pipe.execute()

    def _look(self) -> None:
        names = list(self._r.hgetall(self._keys.symbols)) or self._names
        self._names = lanes.held_first(names, self._r.smembers(self._keys.positions))

    def sign_off(self) -> None:
        """Take the node out of `nodes`; its row goes with it."""
        with contextlib.suppress(redis.RedisError):  # it expires by itself
            member = f"{self._cfg.node_id}:{process.BOOT_ID}"
            self._r.zrem(self._keys.nodes, member)
            self._r.delete(self._keys.node(self._cfg.node_id, process.BOOT_ID))


def children(
    cfg: config.Config, made: Sequence[rings.Ring], world: str, cores: int
) -> dict[str, ChildSpec]:
    """Per lane a brain, and a feed beside it: feed subscribes only after its brain's ready word.

    A pair keeps two cores busy while it starts. No more of them start at once than there are cores
    for, or they would all be late together; each of the others waits for the brain of an earlier
    lane.
    """
    shared = launch.environment(
        os.environ, AEGIS_WORLD=world, NUMBA_CACHE_DIR=warm.numba_cache_dir(cfg.state_dir)
    )
    alone = {k: v for k, v in shared.items() if k not in ("REDIS_URL", "AEGIS_BROKER_URL")}
    at_once = max(1, cores // 2)
    specs = {}
    for lane, each in enumerate(made):
        brain, feed = (launch.child_name(side, lane, len(made)) for side in ("brain", "feed"))
        earlier = launch.child_name("brain", lane - at_once, len(made))
        after = (earlier,) if lane >= at_once else ()
        ring, whose = ("--ring", str(each.path)), ("--world", world, "--node", cfg.node_id)
        brain_argv = launch.python("brain.main", *ring, "--name", brain, *whose)
        feed_argv = launch.python("feed.main", *ring, "--name", feed)
        ready = partial(brain_is_ready, each.words)
        specs[brain] = ChildSpec(brain, brain_argv, shared, after=after, ready=ready)
        specs[feed] = ChildSpec(feed, feed_argv, alone, after=after)
    return specs


def brain_is_ready(words: rings.Words) -> bool:
    """Whether a brain of this life of the node has said so."""
    return bool(words[rings.BRAIN_READY] == words[rings.GENERATION])


def prepare(cfg: config.Config, world: str) -> lanes.Lanes:
    """Identity, universe and rings. A node that adopts a ring needs no Redis to go on."""
    keys = streams.Keys(cfg.mode, cfg.account)
    made = lanes.open_lanes(cfg, world)
    try:
        r: Client = streams.connect(cfg.redis_url, 1)
        streams.ensure_identity(r, keys, world, wall_ms())
        names = ensure_universe(r, keys, cfg)
        made = replace(made, names=lanes.held_first(names, r.smembers(keys.positions)))
        r.close()
    except streams.IdentityError as error:
        lanes.remove_files(made.paths)
        process.fail(str(error))
    except redis.RedisError as error:
        if not made.adopted:
            lanes.remove_files(made.paths)
            process.fail(running.refusal(cfg, error))
        log.warning("redis unreachable, going on with the adopted rings error=%s", error)
    lanes.set_tables(made.rings, made.names)
    return made


def main() -> int:
    try:
        cfg = config.load()
    except config.ConfigError as error:
        process.fail(str(error), 2)
    process.setup_logging("node", cfg.log_level, cfg.secrets)
    if not cfg.redis_url:
        process.fail("REDIS_URL is not set: point it at a Redis, or run `./aegis up`.", 2)
    state_dir = running.claim(cfg.state_dir)
    warm.ensure(cfg.state_dir)
    process.install_signals()
    made = prepare(cfg, world := wait_for_world(cfg))
    specs = children(cfg, made.rings, world, os.cpu_count() or 1)
    supervisor = Supervisor(specs, state_dir / "run" / "node", drain_s=DRAIN_S)
    reporter = Reporter(cfg, made, supervisor)

    def on_tick() -> None:
        process.beat()
        if reporter.failed is not None and not supervisor.draining():
            supervisor.stop(1)

    reporter.start()
    if process.stop:
        supervisor.stop()
    code = supervisor.run(on_tick)
    reporter.finished.set()
    reporter.join(2 * ROW_PERIOD_S)
    reporter.sign_off()
    if code == 0:
        lanes.remove_files(made.paths)
    return code


if __name__ == "__main__":
    raise SystemExit(main())
