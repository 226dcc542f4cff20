"""`aegis chaos`: break everything around a running risk, on purpose, and check what is left.

Real processes: an exchange, a Redis, two risk processes (holder and standby) and a script that
sends signals. Faults fall one after another as a seed plans them; one counts only if it bit. Then
everything comes to rest, the last positions are closed, and each named check of
maintenance/chaos_check.py holds risk's record against the exchange's ledger. The seed is printed
first; on a violation the exit code is 1 and the folder with all logs is kept and named.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import secrets
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import redis.exceptions

import process
import streams
from clock import wall_ms
from maintenance import (
    audit,
    chaos_blows,
    chaos_check,
    chaos_plan,
    chaos_points,
    chaos_redis,
    chaos_world,
    redis_server,
    summary,
    warm,
)
from maintenance.chaos_check import Evidence, Span
from maintenance.chaos_plan import Step
from maintenance.chaos_rig import Rig
from maintenance.chaos_signals import Source

SEED_END: Final = 1 << 31
READY_S_MAX: Final = 30.0  # until a holder trades, at the start and after a fault
REST_S_MAX: Final = 75.0  # until everything agrees: what a mute stream hid, risk finds in a minute
CLOSE_S_MAX: Final = 40.0
MONEY_S_MAX: Final = 75.0  # risk asks once a minute at most
SECONDS: Final = (5, 86_400)
TTL_S: Final = 3.0
NAKED_MS_MAX: Final = 1_000
TAKE_OVER_MS: Final = 1_500  # beyond the lease's life, until the next holder has protected
TRADES_MS: Final = 2_000  # beyond the lease's life, until the next holder trades
AFTER_BAN_MS: Final = 500  # a throttled risk goes on when the exchange said so, and a look later


@dataclass(slots=True)
class Run:
    """What happened, beside what the processes wrote."""

    seed: int
    bit: Counter[str] = field(default_factory=Counter)
    missed: Counter[str] = field(default_factory=Counter)
    taken_over: list[Span] = field(default_factory=list)
    refused: list[Span] = field(default_factory=list)
    unrest: list[str] = field(default_factory=list)
    takeovers: list[tuple[str, int]] = field(default_factory=list)


def carry_out(rig: Rig, run: Run, step: Step) -> bool:
    """One fault, until it bit and a holder trades again. Did it bite?"""
    time.sleep(step.pause_s)
    epoch, start_ms = rig.trading(), wall_ms()
    rig.dead_ms = rig.down_ms = 0
    bit = chaos_blows.strike(rig, step)
    over_ms = wall_ms()
    (run.bit if bit else run.missed)[step.kind] += 1
    try:
        now = rig.wait(rig.trading, READY_S_MAX, f"a holder after {step.kind} ({step.number})")
    except TimeoutError as error:
        run.unrest.append(str(error))
        return bit
    finally:
        rig.look_after()
        rig.follow()
    if now != epoch:
        # without a death of its own the lease fell to a fault of Redis, which is over now
        dead_ms, trades_ms = rig.dead_ms or over_ms, rig.trading_from_ms()
        run.takeovers.append((step.kind, max(0, trades_ms - dead_ms)))
        run.taken_over.append((min(rig.down_ms or dead_ms, trades_ms), trades_ms))
    try:
        rig.wait(rig.standing, READY_S_MAX, f"a standby after {step.kind} ({step.number})")
    except TimeoutError as error:
        run.unrest.append(str(error))
    if bit and step.kind in chaos_plan.REFUSING_KINDS:
        run.refused.append((start_ms, wall_ms() + AFTER_BAN_MS))
    return bit


def come_to_rest(rig: Rig, run: Run) -> tuple[dict[str, Any], dict[str, Any]]:
    """No more faults or signals; wait until venue and Redis agree. What each of them held."""
    rig.resume_all()
    rig.ask("DELETE", "/venue/v1/faults")
    chaos_redis.heal(rig)
    held: tuple[dict[str, Any], dict[str, Any]] = ({}, {})

    def agree() -> bool:
        nonlocal held
        if waiting(rig) or not rig.trading():
            return False  # asked before the positions: what is decided now may open one
        books = audit.audit(rig.ledger(), chaos_check.FOREVER)
        held = rig.positions(), dict(books.positions)
        return held[0] == held[1]

    try:
        rig.wait(agree, REST_S_MAX, "positions to agree at rest")
    except TimeoutError as error:
        run.unrest.append(str(error))
    return held


def waiting(rig: Rig) -> int:
    """Signals and commands not read, or read and not acknowledged; entries without an end."""
    found = 0
    for key in (rig.keys.signals, rig.keys.commands):
        try:
            groups = rig.r.xinfo_groups(key)
        except redis.exceptions.ResponseError:  # deleted: risk makes it again
            return 1
        for group in groups:
            found += int(group["pending"]) + (streams.undelivered(rig.r, key, group) != 0)
    open_ids: set[str] = rig.r.smembers(rig.keys.orders_open)  # a signal turns into them
    return found + sum(audit.leg_of(name) == "e" for name in open_ids)


def close_all(rig: Rig, run: Run) -> None:
    """Flatten, and wait until nothing is open anywhere."""
    command = {"id": f"chaos-{time.time_ns()}", "name": "flatten", "symbol": ""}
    streams.publish(rig.r, rig.keys.commands, command)

    def closed() -> bool:
        rig.follow()
        open_ids = rig.r.scard(rig.keys.orders_open)
        return not (rig.positions() or open_ids or waiting(rig) or resting(rig.ledger()))

    try:
        rig.wait(closed, CLOSE_S_MAX, "everything to close")
    except TimeoutError as error:
        run.unrest.append(str(error))
    hear_of_money(rig)
    time.sleep(1.2)  # the last status: once a second


def hear_of_money(rig: Rig) -> None:
    """Funding that a spoilt stream did not tell is asked for at the next look, within a minute of
    the last one. What is missing after that is the check's to say."""
    command = {"id": f"chaos-{time.time_ns()}", "name": "reconcile"}
    streams.publish(rig.r, rig.keys.commands, command)
    paid = sum(event["type"] == "funding" for event in rig.ledger())

    def booked() -> bool:
        told = sum(row["kind"] == "funding" for row in chaos_redis.booked(rig))
        return told >= int(paid) and not waiting(rig)  # the command itself included

    with contextlib.suppress(TimeoutError):
        rig.wait(booked, MONEY_S_MAX, "funding to be booked")


def resting(ledger: Sequence[dict[str, Any]]) -> set[str]:
    """Client ids of orders at rest, plain and conditional."""
    found: dict[tuple[str, Any], str] = {}
    for event in ledger:
        kind, name = event["type"], str(event.get("client_id", ""))
        if kind == "order_new":
            found["order", event["order_id"]] = name
        elif kind == "order_done":
            found.pop(("order", event["order_id"]), None)
        elif kind == "algo_new":
            found["algo", event["algo_id"]] = name
        elif kind in ("algo_done", "algo_triggered"):
            found.pop(("algo", event["algo_id"]), None)
    return set(found.values())


def struck(ledger: Sequence[dict[str, Any]], spans: Sequence[Span]) -> list[Span]:
    """The same times, each from the strike that began it."""
    kinds = chaos_plan.REFUSING_KINDS
    happened = [
        int(event["wall_ms"])
        for event in ledger
        if event["type"] == "fault" and event["state"] == "happened" and event["kind"] in kinds
    ]
    made = []
    for start, end in spans:
        first = next((ms for ms in happened if start <= ms <= end), None)
        made += [(first, end)] if first is not None else []
    return made


def evidence(
    rig: Rig, run: Run, sent: set[str], held: tuple[dict[str, Any], dict[str, Any]]
) -> Evidence:
    """Everything written, read once at the end."""
    rig.follow()
    ledger = rig.ledger()
    positions, fills, sums, wallet = summary.redis_books(rig.r, rig.keys)
    chaos_redis.add_untold(rig, fills, sums)
    pending: dict[str, int] = {}
    for key in (rig.keys.signals, rig.keys.commands):
        told: Any = rig.r.xpending(key, "main")
        pending[key] = int(told["pending"])
    return Evidence(
        ledger=ledger,
        orders=rig.orders,
        fills=fills,
        fill_sums=sums,
        wallet=wallet,
        held=held[0],
        held_there=held[1],
        positions=positions,
        open_ids=frozenset(rig.r.smembers(rig.keys.orders_open)),
        open_there=frozenset(resting(ledger)),
        pending=pending,
        signals=frozenset(sent),
        decided=frozenset(rig.decided),
        forgotten=frozenset(rig.lost.orders),
        lost_signals=frozenset(rig.lost.signals),
        booked=chaos_redis.booked(rig),
        book_sums=chaos_redis.book_sums(rig),
        taken_over=run.taken_over,
        refused=[*struck(ledger, run.refused), *rig.stalled],
        deaths=rig.deaths,
        foreign=rig.foreign,
        takeovers=run.takeovers,
        takeover_ms_max=int(TTL_S * 1000) + TRADES_MS,
        positions_max=rig.world.positions_max,
        naked_ms_max=NAKED_MS_MAX,
        naked_ms_max_over_all=int(TTL_S * 1000) + TAKE_OVER_MS,
        unrest=run.unrest,
        mistakes=rig.mistakes(),
    )


def run_chaos(
    folder: Path,
    seed: int,
    steps: Sequence[Step],
    seconds: float,
    tell: bool = True,
    broken: str = "",
) -> dict[str, Any]:
    """One run of these steps, ended after `seconds`; the report as `--json` prints it."""
    run, world = Run(seed), chaos_world.world(seed)
    with Rig(folder, seed, world, broken=broken) as rig:
        rig.wait(rig.trading, READY_S_MAX, "the first holder")
        rig.wait(rig.standing, READY_S_MAX, "the first standby")
        source = Source(rig.redis_url, rig.venue_url, rig.keys, seed, world)
        source.start()
        end = time.monotonic() + seconds
        for step in steps:
            if time.monotonic() >= end:
                break
            start_s = time.monotonic()
            told = "bit" if carry_out(rig, run, step) else "missed"
            if tell:
                took = f"{time.monotonic() - start_s:.1f} s"
                print(f"{step.number:4} {step.kind} {told} {took}", file=sys.stderr, flush=True)
        run.bit += rig.beside
        source.halt()
        held = come_to_rest(rig, run)
        close_all(rig, run)
        found = evidence(rig, run, source.sent, held)
        (folder / "orders.jsonl").write_text(
            "".join(json.dumps([name, row]) + "\n" for name, row in rig.orders)
        )
    return report(run, found, seconds) | {"signals_again": source.sent_again, "broken": broken}


def report(run: Run, found: Evidence, seconds: float) -> dict[str, Any]:
    """The numbers and the violations."""
    wrong = chaos_check.check_all(found)
    books = ("positions agree", "wallet agrees")
    return {
        "seed": run.seed,
        "seconds": seconds,
        "faults": dict(sorted(run.bit.items())),
        "faults_bit": run.bit.total(),
        "faults_missed": dict(sorted(run.missed.items())),
        "crash_points": {p: run.bit[chaos_points.PREFIX + p] for p in chaos_points.POINTS},
        **chaos_check.counts(found),
        "lost": len(wrong["every intent ends once"]) + len(wrong["signals decided"]),
        "duplicates": len(wrong["one order per client id"]),
        "positions_equal": not wrong[books[0]],
        "balance_equal": not wrong[books[1]],
        "violations": sum(len(texts) for texts in wrong.values()),
        "checks": {name: len(texts) for name, texts in wrong.items()},
        "told": {name: texts[: chaos_check.TOLD_MAX] for name, texts in wrong.items() if texts},
    }


def lines(told: dict[str, Any]) -> list[str]:
    """The report for people: a line for each check, what bit, what the run was made of."""
    made = [f"{'ok  ' if not n else 'FAIL'} {name}: {n}" for name, n in told["checks"].items()]
    for name, texts in told["told"].items():
        made += [f"     {name}: {text}" for text in texts]
    faults = ", ".join(f"{kind} {n}" for kind, n in told["faults"].items())
    missed = sum(told["faults_missed"].values())
    made.append(f"{told['faults_bit']} faults bit ({faults}), {missed} did not")
    names = ("signals", "intents", "intents_at_exchange", "intents_filled", "fills", "round_trips")
    made.append(", ".join(f"{told[name]} {name.replace('_', ' ')}" for name in names))
    made.append(
        f"naked {told['naked_ms_max']} ms at most while risk was alive, "
        f"{told['naked_ms_max_over_all']} over all; {told['takeovers']} take-overs, "
        f"{told['takeover_ms_median']} ms in the median, {told['takeover_ms_max']} at most"
    )
    return made


def main(args: argparse.Namespace) -> int:
    """The command; 1 on a violation."""
    seed = secrets.randbelow(SEED_END) if args.seed is None else args.seed
    if not 0 <= seed < SEED_END:
        process.fail(f"--seed {seed} is not within 0 and {SEED_END - 1}.", 2)
    if not SECONDS[0] <= args.seconds <= SECONDS[1]:
        process.fail(f"--for {args.seconds:g} is not within {SECONDS[0]} and {SECONDS[1]} s.", 2)
    broken = args.broken or ""
    if broken and broken not in chaos_points.BREAKS:
        process.fail(f"--break {broken} is none of {', '.join(chaos_points.BREAKS)}.", 2)
    kinds = chaos_plan.kinds_of(args.kinds) if args.kinds else chaos_plan.favouring(broken)
    if not kinds:
        process.fail(f"--kinds {args.kinds}: no fault begins with that.", 2)
    print(f"seed {seed}", file=sys.stderr if args.json else sys.stdout, flush=True)
    state_dir = os.environ.get("AEGIS_STATE_DIR") or ".aegis"
    if warm.CACHE_ENV not in os.environ:
        warm.ensure(state_dir)
        os.environ[warm.CACHE_ENV] = str(warm.numba_cache_dir(state_dir))
    folder = Path(tempfile.mkdtemp(prefix=f"aegis-chaos-{seed}-"))
    try:
        steps = chaos_plan.plan(seed, TTL_S, kinds=kinds)
        told = run_chaos(folder, seed, steps, args.seconds, broken=broken)
    except (redis_server.NoServer, TimeoutError, OSError, redis.exceptions.RedisError) as error:
        process.fail(f"Chaos with seed {seed} could not go on ({error}): logs are in {folder}.")
    except KeyboardInterrupt:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    print(json.dumps(told) if args.json else "\n".join(lines(told)))
    if told["violations"]:
        print(f"{told['violations']} violations with seed {seed}: see {folder}.", file=sys.stderr)
        return 1
    shutil.rmtree(folder, ignore_errors=True)
    return 0
