"""`aegis record`: a recording of the running system, or of one that is started for it.

Brains see the wish in Redis within two seconds and write on their own hosts; they stop when the
time is over, when the wish is gone, or when a file reaches AEGIS_RECORD_MB.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import process
import streams
from maintenance import launch, running
from maintenance.running import Client

if TYPE_CHECKING:
    import config

SECONDS: Final = 60.0
SECONDS_MAX: Final = 86_400.0  # as brain/record.py has it
SUFFIX: Final = ".aegisrec"
GRACE_S: Final = 20.0  # for the wish to be seen and the last blocks to be written
POLL_S: Final = 0.5


def brains(r: Client, keys: streams.Keys) -> dict[str, dict[str, Any]]:
    """What each brain of each node last said of itself, by "node brain"."""
    made: dict[str, dict[str, Any]] = {}
    for member in r.zrange(keys.nodes, 0, -1):
        name, _, boot = member.rpartition(":")
        lanes = int(r.hget(keys.node(name, boot), "lanes") or 1)
        for lane in range(lanes):
            brain = launch.child_name("brain", lane, lanes)
            text = r.get(keys.brain(name, brain))
            if text:
                made[f"{name} {brain}"] = json.loads(text)
    return made


def ask(r: Client, keys: streams.Keys, out: Path, seconds: float) -> dict[str, dict[str, Any]]:
    """Have every brain record; what each one says of its recording in the end."""
    waited = brains(r, keys)
    if not waited:
        process.fail("No brain reports to this Redis: start `./aegis up` or a node first.")
    wish = {"id": uuid.uuid4().hex[:12], "out": str(out), "seconds": seconds}
    r.set(keys.record, json.dumps(wish), ex=int(seconds + GRACE_S) + 1)
    end_s = time.monotonic() + seconds + GRACE_S
    try:
        told = _await(r, keys, wish["id"], waited, end_s)
    except KeyboardInterrupt:
        r.delete(keys.record)
        told = _await(r, keys, wish["id"], waited, time.monotonic() + GRACE_S)
    if (text := r.get(keys.record)) and json.loads(text)["id"] == wish["id"]:
        r.delete(keys.record)
    return told


def _await(
    r: Client, keys: streams.Keys, wish: Any, waited: Mapping[str, Any], end_s: float
) -> dict[str, dict[str, Any]]:
    told: dict[str, dict[str, Any]] = {}
    while time.monotonic() < end_s:
        now = brains(r, keys)
        told = {
            name: each["recording"]
            for name, each in now.items()
            if each["recording"].get("id") == wish
        }
        if told.keys() >= waited.keys() and all(x["state"] == "ended" for x in told.values()):
            break
        time.sleep(POLL_S)
    return {name: told.get(name, {"reason": "it never answered"}) for name in waited}


def start_and_record(cfg: config.Config, out: Path, seconds: float) -> int:
    """A whole system for these seconds, recorded from its first record on."""
    from maintenance import cli, up

    if cfg.mode not in ("sim", "paper"):
        process.fail(f"Nothing runs here: start `./aegis up` in mode {cfg.mode}, then record.")
    folder = out.parent / f".{out.name}.{os.getpid()}"
    os.environ["AEGIS_RECORD"] = str(folder)
    code = up.main(cli.build().parse_args(["up", "--for", str(seconds)]))
    made = sorted(folder.glob(f"*{SUFFIX}")) if folder.is_dir() else []
    for number, path in enumerate(made):
        to = out if len(made) == 1 else out.with_name(f"{out.stem}.{number}{out.suffix}")
        path.replace(to)
        print(f"{to}: {to.stat().st_size / 1e6:.1f} MB; look at it with `./aegis replay {to}`")
    shutil.rmtree(folder, ignore_errors=True)
    if not made:
        process.fail("The system ended before its brain recorded anything: see what it said above.")
    return code


def main(args: argparse.Namespace) -> int:
    seconds = SECONDS if args.seconds is None else args.seconds
    if not 0 < seconds <= SECONDS_MAX:
        process.fail(f"--for needs seconds, {SECONDS_MAX:.0f} at most.", 2)
    cfg = running.settings()
    stamp = time.strftime("%Y%m%dT%H%M%S", time.gmtime())
    out = Path(args.out or f"aegis-{stamp}{SUFFIX}").resolve()
    if out.exists():
        process.fail(f"{out} exists: name another file with --out.")
    if not out.parent.is_dir():
        process.fail(f"{out.parent} is no folder: make it, or name another file with --out.")
    if not cfg.redis_url:
        return start_and_record(cfg, out, seconds)
    r = running.client(cfg)
    told = ask(r, streams.Keys(cfg.mode, cfg.account), out, seconds)
    failed = 0
    for name, each in told.items():
        fine = each.get("state") == "ended" and each["reason"] == "as asked"
        failed += not fine
        counts = each.get("counts", {})
        print(
            f"{name}: {each.get('path', 'no file')}, {each.get('bytes', 0) / 1e6:.1f} MB, "
            f"{counts.get('ticks', 0):,} ticks, {counts.get('signals', 0)} signals"
            + ("" if fine else f"; ended: {each.get('reason')}")
        )
        if "digest" in each:
            print(f"  digest {each['digest']}; look at it with `./aegis replay {each['path']}`")
    return 1 if failed else 0
