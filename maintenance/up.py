"""`aegis up`: Redis, venue, node, risk, worker and beat under one supervisor, in one container.

Everything that can be wrong is looked at before anything starts, and told in one sentence. One
`up` per state folder. Children die with this process; what a SIGKILL left behind is cleaned at
the next start. With `--for` it counts from the first tick, then lets the system come to rest and,
with `--summary`, holds it against the venue's ledger.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import threading
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import config
import process
import streams
from clock import boot_ns, wall_ms
from maintenance import launch, redis_server, running, single, warm
from maintenance.policy import ChildSpec
from maintenance.supervisor import Supervisor

START_GRACE_S: Final = 60.0  # a venue that generates its history, a Redis that loads its file
REDIS_PRIORITY, VENUE_PRIORITY, CORE_PRIORITY, JOBS_PRIORITY = 1000, 999, 100, 50
WORLD_FILE: Final = "world.json"  # written by the venue once a world is born or resumed
GZIP_MAGIC: Final = b"\x1f\x8b"
_FLAGS: Final = {
    "symbols": "AEGIS_SYMBOLS",
    "rate": "AEGIS_VENUE_RATE",
    "speed": "AEGIS_VENUE_SPEED",
    "seed": "AEGIS_VENUE_SEED",
    "edge": "AEGIS_VENUE_EDGE",
}


@dataclass(frozen=True, slots=True)
class Plan:
    """What is going to run, settled before anything starts."""

    cfg: config.Config
    settings: Mapping[str, str]  # environment on top of what was given
    state_dir: Path
    redis_port: int  # 0: REDIS_URL was given
    redis_binary: str
    keep: bool
    seconds: float | None
    summary: bool
    venue: bool
    leftover: tuple[str, ...] = ()  # files that a killed `up` left outside the state folder

    @property
    def venue_dir(self) -> Path:
        """A paper account is kept where no new simulated world replaces it."""
        return self.state_dir / ("paper" if self.cfg.mode == "paper" else "venue")

    @property
    def redis_dir(self) -> Path:
        return self.state_dir / ("paper-redis" if self.cfg.mode == "paper" else "redis")

    @property
    def resumes(self) -> bool:
        """The venue's world of the last run goes on."""
        return self.keep and self.venue_dir.is_dir()


def settings_of(args: argparse.Namespace, environ: Mapping[str, str]) -> dict[str, str]:
    """The flags as settings; a number of symbols holds for the venue as well."""
    given = {env: getattr(args, flag) for flag, env in _FLAGS.items()}
    made = {env: str(value) for env, value in given.items() if value is not None}
    if args.tape:
        made["AEGIS_VENUE_TAPE"] = ",".join(str(Path(name).resolve()) for name in args.tape)
    symbols = made.get("AEGIS_SYMBOLS", environ.get("AEGIS_SYMBOLS", ""))
    if symbols.isdigit() and "AEGIS_VENUE_SYMBOLS" not in environ:
        made["AEGIS_VENUE_SYMBOLS"] = symbols
    return made


def check_identity(made: Plan) -> None:
    """A given Redis must be empty for a new world, or hold the one that is resumed."""
    cfg = made.cfg
    if made.redis_port or cfg.mode in ("live", "demo") or not made.venue:
        return  # ours and empty, or node and risk compare with a running exchange
    r, keys = running.client(cfg), streams.Keys(cfg.mode, cfg.account)
    stored = r.hget(keys.schema, "world")
    if stored is None:
        return
    try:
        world = json.loads((made.venue_dir / WORLD_FILE).read_text())["world"]
    except (OSError, ValueError, KeyError):
        world = None
    if not made.keep:
        process.fail(
            f"This Redis holds world {stored} and `up` begins a new one: add --keep to resume it, "
            "or run `./aegis purge` first."
        )
    if world != stored:
        process.fail(
            f"This Redis holds world {stored} but {made.state_dir} holds {world or 'none'}: "
            "run `./aegis purge`, or set AEGIS_STATE_DIR to where that world lies."
        )


def check_tapes(tapes: tuple[str, ...]) -> None:
    """A tape is a gzip file that can be read; what is inside is the venue's to judge."""
    for name in tapes:
        try:
            with Path(name).open("rb") as file:
                head = file.read(2)
        except OSError as error:
            process.fail(f"Tape {name} cannot be read ({error.strerror}): name a capture file.")
        if head != GZIP_MAGIC:
            process.fail(f"{name} is no tape: give a gzipped capture of the exchange's frames.")


def refuse_market_flags(args: argparse.Namespace) -> None:
    """Paper trades on a market that is not ours to shape."""
    for flag in ("rate", "speed", "seed", "edge", "tape"):
        if getattr(args, flag) is not None:
            process.fail(f"--{flag} shapes a simulated market: leave it out, or use mode sim.", 2)


def venue_port(cfg: config.Config, environ: Mapping[str, str]) -> int:
    """The port to use: the default gives way when it is in use, a given one does not."""
    if cfg.venue_port and redis_server.port_is_free(cfg.venue_port):
        return cfg.venue_port
    if cfg.venue_port and environ.get("AEGIS_VENUE_PORT"):
        process.fail(f"Port {cfg.venue_port} is in use: free it or change AEGIS_VENUE_PORT.")
    return redis_server.free_port()


def plan(args: argparse.Namespace, environ: Mapping[str, str]) -> Plan:
    """Parse and check everything. Ends the process with one sentence on the first mistake."""
    settings = settings_of(args, environ)
    try:
        cfg = config.load({**environ, **settings})
    except config.ConfigError as error:
        process.fail(str(error), 2)
    if args.seconds is not None and not 0 < args.seconds < 10**8:
        process.fail("--for needs a positive number of seconds.", 2)
    if args.summary and args.seconds is None:
        process.fail("--summary comes at the end of --for: say for how many seconds.", 2)
    if cfg.mode in ("live", "demo"):
        single.require_keys(cfg)
    if cfg.mode == "paper":
        refuse_market_flags(args)
    check_tapes(cfg.venue_tape)
    running.require_arming(cfg)
    state_dir = Path(cfg.state_dir).resolve()
    settings["AEGIS_STATE_DIR"] = str(state_dir)
    with_venue = cfg.mode in ("sim", "paper") and not environ.get("AEGIS_VENUE_URL")
    if with_venue:
        port = venue_port(cfg, environ)
        settings |= {
            "AEGIS_VENUE_PORT": str(port),
            "AEGIS_VENUE_URL": f"http://{redis_server.LOOPBACK}:{port}",
        }
    redis_port, binary = 0, ""
    if cfg.redis_url:
        running.require_redis(cfg)
    else:
        try:
            binary = redis_server.find_binary(environ)
        except redis_server.NoServer as error:
            process.fail(str(error))
        redis_port = redis_server.free_port()
        settings["REDIS_URL"] = f"redis://{redis_server.LOOPBACK}:{redis_port}/0"
    cfg = config.load({**environ, **settings})
    return Plan(
        cfg=cfg,
        settings=settings,
        state_dir=state_dir,
        redis_port=redis_port,
        redis_binary=binary,
        keep=args.keep or cfg.mode == "paper",
        seconds=args.seconds,
        summary=args.summary,
        venue=with_venue,
    )


def prepare_state(made: Plan) -> None:
    """Folders as this run needs them: emptied for a new world, kept for a resumed one."""
    if made.redis_port:
        try:
            redis_server.prepare(made.redis_dir, keep=made.keep)
        except (redis_server.NoServer, OSError) as error:
            process.fail(str(error))
    if made.venue and running.is_locked(made.venue_dir, "lock"):
        process.fail(f"A venue already runs on {made.venue_dir}: stop it, or set AEGIS_STATE_DIR.")
    if made.venue and not made.keep:
        shutil.rmtree(made.venue_dir, ignore_errors=True)  # absent at the first start
    shutil.rmtree(made.state_dir / "run" / "up", ignore_errors=True)
    shutil.rmtree(made.state_dir / "logs", ignore_errors=True)
    (made.state_dir / "logs").mkdir(parents=True)
    for name in made.leftover:  # of a killed `up`
        Path(name).unlink(missing_ok=True)


def specs(made: Plan, environ: Mapping[str, str]) -> dict[str, ChildSpec]:
    """Every child: Redis, then the venue, then node and risk, then the jobs."""
    cfg = made.cfg
    shared = launch.environment(
        environ, **made.settings, NUMBA_CACHE_DIR=warm.numba_cache_dir(str(made.state_dir))
    )
    fds = launch.keys_fds(environ)
    keyed = shared | ({launch.KEYS_FD: str(fds[0])} if fds else {})
    logs, brain_file = made.state_dir / "logs", launch.brain_path(launch.ring_path(cfg))

    def child(name: str, argv: tuple[str, ...], priority: int, **more: Any) -> ChildSpec:
        more.setdefault("heartbeat_timeout_s", single.heartbeat_timeout_s(name))
        return ChildSpec(
            name, argv, more.pop("env", shared), priority,
            log=logs / f"{name}.log", **more,
        )  # fmt: skip

    rows = []
    if made.redis_port:
        folder = made.redis_dir
        rows.append(
            child(
                "redis",
                redis_server.command(made.redis_binary, folder, made.redis_port),
                REDIS_PRIORITY,
                heartbeat_timeout_s=0.0,
                grace_s=START_GRACE_S,
                ready=lambda: redis_server.answers(made.redis_port),
                env=launch.environment(environ),
            )
        )
    if made.venue:
        port = int(urlsplit(cfg.venue_url).port or 0)
        resume = launch.python("venue.main", "--resume")
        rows.append(
            child(
                "venue",
                resume if made.resumes else launch.python("venue.main"),
                VENUE_PRIORITY,
                again=resume,
                grace_s=START_GRACE_S,
                # the file too: what listens there may be another system's venue
                ready=lambda: listens(port) and (made.venue_dir / WORLD_FILE).exists(),
            )
        )
    rows += [
        child(
            "node",
            launch.python("maintenance.node"),
            CORE_PRIORITY,
            grace_s=START_GRACE_S,
            after=("redis",),  # it waits for the venue by itself; its imports need not
            ready=brain_file.exists,  # the way to the first tick is free of others' imports
        ),
        child(
            "risk",
            launch.python("risk.main"),
            CORE_PRIORITY,
            after=("venue", "node"),
            env=keyed,
            pass_fds=fds,
        ),
        child("worker", launch.python("maintenance.tasks", "worker"), JOBS_PRIORITY),
        child("beat", launch.python("maintenance.tasks", "beat"), JOBS_PRIORITY),
    ]
    return {row.name: row for row in rows}


def listens(port: int) -> bool:
    """True once somebody accepts on this loopback port."""
    return not redis_server.port_is_free(port)


def main(args: argparse.Namespace) -> int:
    """Run until stopped; the exit code."""
    from maintenance.watch import Watcher

    started_ns = boot_ns()
    made = plan(args, os.environ)
    check_identity(made)
    running.claim(made.state_dir)
    leftover = tuple(running.read_leftover(made.state_dir).get("files", ()))
    lock_fd = running.lock(made.state_dir)
    if lock_fd is None:
        process.fail(
            f"A system already runs on {made.state_dir}: stop it with `./aegis down`, or set "
            "AEGIS_STATE_DIR to run another."
        )
    if warm.ensure(str(made.state_dir)):
        made = plan(args, os.environ)  # ports that were free a minute ago may not be
    prepare_state(replace(made, leftover=leftover))
    supervisor = Supervisor(specs(made, os.environ), made.state_dir / "run" / "up")
    watcher = Watcher(made, supervisor, started_ns)
    written: dict[str, int] = {}

    def on_tick() -> None:
        pids = supervisor.pids()
        if pids != written:
            written.clear()
            written.update(pids)
            running.write_state(made.state_dir, state_of(made, pids))

    thread = threading.Thread(target=watcher.run, name="watcher", daemon=True)
    thread.start()
    code = supervisor.run(on_tick)
    watcher.finished.set()
    thread.join(5.0)
    clean_up(made)
    os.close(lock_fd)
    return watcher.finish(code)


def state_of(made: Plan, pids: Mapping[str, int]) -> dict[str, Any]:
    """up.json: where everything is."""
    return {
        "mode": made.cfg.mode,
        "account": made.cfg.account,
        "redis_url": made.cfg.redis_url,
        "venue_url": made.cfg.venue_url if made.cfg.mode in ("sim", "paper") else "",
        "files": ring_files(made.cfg),
        "pid": os.getpid(),
        "pids": dict(pids),
        "started_wall_ms": wall_ms(),
    }


def ring_files(cfg: config.Config) -> list[str]:
    """What the node lays down outside the state folder."""
    return [
        str(path) for ring in launch.ring_paths(cfg) for path in (ring, launch.brain_path(ring))
    ]


def clean_up(made: Plan) -> None:
    """Nothing is left but data and logs; a node that had to be killed left its rings."""
    for name in ring_files(made.cfg):
        Path(name).unlink(missing_ok=True)
    (made.state_dir / running.STATE_FILE).unlink(missing_ok=True)
    shutil.rmtree(made.state_dir / "run" / "up", ignore_errors=True)
