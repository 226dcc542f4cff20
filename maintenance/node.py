"""One node: makes the ring, runs brain and feed over it, and shows them to the world.

The node owns the symbol table of its ring; feed reads it, the brain learns of symbols through the
ring only. Once a second the node writes its row to Redis: that is how feed, which has no Redis, is
seen. A dead Redis changes nothing here: feed and brain go on with the symbols that they have. A
node that was killed finds its ring again by name and adopts it; a node that ends well removes it.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import redis

import config
import process
import ring as rings
import streams
from clock import boot_ns, wall_ms
from maintenance import jobs, launch, running, universe, warm
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
SUMMARY_MIN: Final = 1  # samples below which no percentile is shown
log = logging.getLogger(__name__)


# --- pure -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Row:
    """One row of the ring's symbol table. `since` is the head when the state was entered."""

    name: str
    state: int
    since: int = 0
    dropped: int = 0  # feed's answer: the head right after the DROP record


def plan_table(rows: Sequence[Row], wanted: Iterable[str], head: int, tail: int) -> list[Row]:
    """The table after one look: leavers drain, drained rows are freed, newcomers take free rows.

    An id is free again only after the brain consumed its DROP (tail passed `dropped`), and feed's
    answer must be younger than the wish, or an old one would free the row too early.
    """
    names = list(dict.fromkeys(wanted))
    made: list[Row] = []
    for row in rows:
        gone = row.since < row.dropped <= tail
        if row.state == rings.DRAINING and gone:
            row = Row("", rings.FREE, head, row.dropped)
        elif row.state == rings.WANTED and row.name not in names:
            row = replace(row, state=rings.DRAINING, since=head)
        made.append(row)
    taken = {row.name for row in made if row.state != rings.FREE}
    free = [index for index, row in enumerate(made) if row.state == rings.FREE]
    for name, index in zip([n for n in names if n not in taken], free, strict=False):
        made[index] = Row(name, rings.WANTED, head, made[index].dropped)
    return made


def percentile_us(histogram: Sequence[int], share: float) -> float | None:
    """Upper edge of the bucket in which `share` of the samples is reached; None without samples."""
    total = sum(histogram)
    if total < SUMMARY_MIN:
        return None
    reached = 0
    for bucket, count in enumerate(histogram):
        reached += count
        if reached >= share * total:
            return float(2**bucket) / 1000.0
    return None


def node_fields(
    made: rings.Ring, pids: Mapping[str, int], now_boot_ns: int, now_wall_ms: int
) -> dict[str, str]:
    """The node's row: every counter by its name, latencies in microseconds, ages in ms."""
    head, tail = int(made.words[rings.HEAD]), int(made.words[rings.TAIL])
    wanted = np.flatnonzero(made.symbols["state"] == rings.WANTED)
    fields: dict[str, Any] = {
        "heartbeat_ms": now_wall_ms,
        "pid": os.getpid(),
        "symbols": len(wanted),
        "head": head,
        "tail": tail,
        "lag": head - tail,
        **{f"{name}_pid": pid for name, pid in pids.items()},
    }
    for side, counters in made.counters().items():
        fields |= {f"{side}.{name}": count for name, count in counters.items()}
    for column, channel in enumerate(rings.CHANNELS):
        seen = made.ages[wanted, column]
        if seen.size and (seen > 0).any():
            oldest_ms = (now_boot_ns - int(seen[seen > 0].min())) // 1_000_000
            fields[f"age_{channel}_max_ms"] = max(oldest_ms, 0)
    for names, table in (
        (rings.FEED_HISTS, made.feed_hist),
        (rings.BRAIN_HISTS, made.brain_hist),
    ):
        for index, name in enumerate(names):
            for share in (50, 99):
                value = percentile_us(table[index].tolist(), share / 100)
                if value is not None and name.endswith("_ns"):
                    fields[f"{name.removesuffix('_ns')}_p{share}_us"] = f"{value:.3f}"
    return {name: str(value) for name, value in fields.items()}


# --- I/O --------------------------------------------------------------------------------------


def read_rows(made: rings.Ring) -> list[Row]:
    return [
        Row(row["name"].decode(), int(row["state"]), int(row["since"]), int(made.dropped[index]))
        for index, row in enumerate(made.symbols)
    ]


def write_rows(made: rings.Ring, before: Sequence[Row], after: Sequence[Row]) -> int:
    """Write what changed, then raise the version that feed polls. Returns the changes."""
    changed = [i for i, (old, new) in enumerate(zip(before, after, strict=True)) if old != new]
    for index in changed:
        row = made.symbols[index]
        row["name"], row["since"] = after[index].name.encode(), after[index].since
        row["state"] = after[index].state
    if changed:
        made.words[rings.TABLE_VERSION] += 1
    return len(changed)


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

    def __init__(self, cfg: config.Config, made: rings.Ring, supervisor: Supervisor) -> None:
        super().__init__(name="reporter", daemon=True)
        self._cfg, self._ring, self._supervisor = cfg, made, supervisor
        self._keys = streams.Keys(cfg.mode, cfg.account)
        self._r: Client = streams.connect(cfg.redis_url, 1)
        self.finished = threading.Event()
        self.failed: str | None = None
        self._first_tick_ns = 0  # boot time at which the brain had consumed its first tick

    def run(self) -> None:
        table_due_ns, deaf = 0, False
        try:
            while not self._wait():
                try:
                    self._write_row()
                    if boot_ns() >= table_due_ns:
                        table_due_ns = boot_ns() + int(TABLE_PERIOD_S * 1e9)
                        self._follow_table()
                    deaf = False
                except redis.RedisError as error:
                    if not deaf:  # once per outage
                        log.warning("redis unreachable, symbols stay as they are error=%s", error)
                    deaf = True
        except Exception as error:  # our bug: the main loop must hear of it
            log.exception("reporter died")
            self.failed = str(error)

    def _wait(self) -> bool:
        """One period, cut short by the end and by the first tick; True at the end."""
        if self._first_tick_ns:
            return self.finished.wait(ROW_PERIOD_S)
        for _ in range(round(ROW_PERIOD_S / FIRST_TICK_POLL_S)):
            if int(self._ring.brain_stats[_TICKS].sum()) > 0:
                self._first_tick_ns = boot_ns()
                return self.finished.is_set()
            if self.finished.wait(FIRST_TICK_POLL_S):
                return True
        return False

    def _write_row(self) -> None:
        keys, name = self._keys, self._cfg.node_id
        fields = node_fields(self._ring, self._supervisor.pids(), boot_ns(), wall_ms())
        fields["first_tick_boot_ns"] = str(self._first_tick_ns or "")
        row = keys.node(name, process.BOOT_ID)
        seconds, micros = self._r.time()
        with self._r.pipeline(transaction=True) as pipe:
            pipe.zadd(keys.nodes, {f"{name}:{process.BOOT_ID}": seconds + micros / 1e6})
            pipe.hset(row, mapping=fields)
            pipe.expire(row, ROW_EXPIRE_S)
            pipe.execute()

    def _follow_table(self) -> None:
        names = list(self._r.hgetall(self._keys.symbols))
        if names:
            set_table(self._ring, names)

    def sign_off(self) -> None:
        """Take the node out of `nodes`; its row goes with it."""
        with contextlib.suppress(redis.RedisError):  # it expires by itself
            member = f"{self._cfg.node_id}:{process.BOOT_ID}"
            self._r.zrem(self._keys.nodes, member)
            self._r.delete(self._keys.node(self._cfg.node_id, process.BOOT_ID))


def set_table(made: rings.Ring, names: Sequence[str]) -> int:
    before = read_rows(made)
    head, tail = int(made.words[rings.HEAD]), int(made.words[rings.TAIL])
    return write_rows(made, before, plan_table(before, names, head, tail))


def children(cfg: config.Config, path: Path, world: str) -> dict[str, ChildSpec]:
    """Brain first, feed beside it: feed subscribes only after the brain's ready word."""
    shared = launch.environment(
        os.environ, AEGIS_WORLD=world, NUMBA_CACHE_DIR=warm.numba_cache_dir(cfg.state_dir)
    )
    alone = {k: v for k, v in shared.items() if k not in ("REDIS_URL", "AEGIS_BROKER_URL")}
    ring = ("--ring", str(path))
    words = (*ring, "--world", world, "--node", cfg.node_id)
    brain = ChildSpec("brain", launch.python("brain.main", *words), shared, priority=100)
    feed = ChildSpec("feed", launch.python("feed.main", *ring), alone, priority=100)
    return {"brain": brain, "feed": feed}


def open_ring(cfg: config.Config, world: str) -> tuple[rings.Ring, bool]:
    """Adopt or make the ring; one sentence when there is no room for it."""
    try:
        return rings.adopt_or_create(launch.ring_path(cfg), cfg.ring_slots, cfg.symbols_max, world)
    except OSError as error:
        size_mb = rings.file_size(cfg.ring_slots, cfg.symbols_max) / 2**20
        process.fail(
            f"No room for the ring ({size_mb:.0f} MB) in {cfg.shm_dir} ({error.strerror}): free "
            "some, lower AEGIS_RING_SLOTS, or set AEGIS_SHM_DIR."
        )


def prepare(cfg: config.Config, world: str) -> tuple[rings.Ring, bool]:
    """Identity, universe and ring. A node that adopts its ring needs no Redis to go on."""
    keys = streams.Keys(cfg.mode, cfg.account)
    made, adopted = open_ring(cfg, world)
    try:
        r: Client = streams.connect(cfg.redis_url, 1)
        streams.ensure_identity(r, keys, world, wall_ms())
        set_table(made, ensure_universe(r, keys, cfg))
        r.close()
    except streams.IdentityError as error:
        remove_files(made.path)
        process.fail(str(error))
    except redis.RedisError as error:
        if not adopted:
            remove_files(made.path)
            process.fail(running.refusal(cfg, error))
        log.warning("redis unreachable, going on with the adopted ring error=%s", error)
    return made, adopted


def remove_files(path: Path) -> None:
    """The ring and what the brain keeps beside it."""
    for name in (path, launch.brain_path(path)):
        name.unlink(missing_ok=True)


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
    made, _ = prepare(cfg, world := wait_for_world(cfg))
    supervisor = Supervisor(
        children(cfg, made.path, world), state_dir / "run" / "node", drain_s=DRAIN_S
    )
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
        remove_files(made.path)
    return code


if __name__ == "__main__":
    raise SystemExit(main())
