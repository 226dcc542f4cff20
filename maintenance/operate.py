"""What an operator asks for by hand, from `why` to `purge`.

Commands to risk go through its stream and come back in `replies`; a risk that does not answer is
an error here, in one sentence. Halting works even on a full Redis: it deletes a key.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import process
import streams
from maintenance import jobs, running
from maintenance.running import Client

if TYPE_CHECKING:
    import config

ANSWER_WAIT_S: Final = 12.0  # a take-over needs a lease's life and a reconciliation
DOWN_WAIT_S: Final = 12.0
WHY_ENTRIES_MAX: Final = 20_000  # looked through, newest first


def why(args: argparse.Namespace, cfg: config.Config, r: Client, keys: streams.Keys) -> int:
    """Everything known of a signal's or an order's cause, oldest first."""
    wanted = args.id
    order: Any = r.hgetall(keys.order(wanted))
    cause = order.get("cause") or wanted
    found = []
    for name in ("signals", "decisions", "orders", "fills", "outcomes"):
        for entry_id, fields in r.xrevrange(getattr(keys, name), count=WHY_ENTRIES_MAX):
            if {wanted, cause} & {fields.get(f) for f in ("id", "signal", "cause", "order")}:
                found.append((entry_id, name, fields))
    if not found:
        print(f"Nothing is known of {wanted}: it may be trimmed by now.", file=sys.stderr)
        return 1
    found.sort(key=lambda row: jobs.entry_order(row[0]))
    print(way([(name, fields) for _, name, fields in found]))
    for entry_id, name, fields in found:
        print(f"{name.removesuffix('s')} {entry_id}")
        for field, value in fields.items():
            for line in _verdicts(value) if field == "verdicts" else [f"{field} = {value}"]:
                print(f"    {line}")
    return 0


def way(entries: Sequence[tuple[str, Mapping[str, str]]]) -> str:
    """How far it came, on one line: each stage, and the numbers of the check that stopped it."""
    steps = []
    for name, fields in entries:
        if name == "decisions":
            rows = json.loads(fields.get("verdicts") or "[]")
            refused = [row for row in rows if not row["ok"]]
            source = fields.get("source", "")
            stages = ("structure", "trend", "checks", "confidence") if source == "brain" else ()
            stage = fields.get("stage", "gate") if source == "brain" else "gate"
            if stage in stages:
                steps += list(stages[: stages.index(stage)])
            elif stages:
                steps += list(stages)
            if refused:
                steps.append(f"{stage} REFUSED: {_verdict(refused[0])}")
            elif source == "risk":
                steps.append("gate")
        elif name == "orders" and fields.get("leg") == "entry":
            steps.append(f"entry {fields.get('state')}")
        elif name == "outcomes":
            steps.append(f"{fields.get('result')} {fields.get('net_r')} R")
    return "way: " + " > ".join(dict.fromkeys(steps))


def _verdict(row: Mapping[str, Any]) -> str:
    numbers = ", ".join(f"{k} {v}" for k, v in row.items() if k not in ("name", "ok"))
    return f"{row['name']}: {numbers}"


def _verdicts(text: str) -> list[str]:
    """One line per check with its numbers, the refusing one marked."""
    return [f"{'passed ' if row['ok'] else 'REFUSED'} {_verdict(row)}" for row in json.loads(text)]


def _ask(r: Client, keys: streams.Keys, **fields: str) -> dict[str, Any]:
    """One command to risk; ends the process with a sentence when it is not carried out."""
    command = {"id": f"cli-{os.getpid()}-{time.time_ns()}", **fields}
    answer = jobs.ask(r, keys, command, ANSWER_WAIT_S)
    if answer is None:
        process.fail(f"Risk does not answer `{fields['name']}`: is it running (`./aegis status`)?")
    if not answer.get("ok"):
        process.fail(f"Risk refuses `{fields['name']}`: {answer.get('error', 'no reason given')}.")
    return answer


def halt(args: argparse.Namespace, cfg: config.Config, r: Client, keys: streams.Keys) -> int:
    """The key goes first: it stops entries at once, with or without risk's answer."""
    r.delete(keys.armed)
    _ask(r, keys, name="halt")
    print("halted: no entries; exits go on. `./aegis resume` allows entries again.")
    return 0


def resume(args: argparse.Namespace, cfg: config.Config, r: Client, keys: streams.Keys) -> int:
    answer = _ask(r, keys, name="resume")
    print("resumed" + ("; live mode needs `./aegis arm` too." if cfg.mode == "live" else "."))
    for text in answer.get("standing", []):
        print(f"still no entries: {text}")
    return 0


def flatten(args: argparse.Namespace, cfg: config.Config, r: Client, keys: streams.Keys) -> int:
    answer = _ask(r, keys, name="flatten", symbol=args.symbol.upper())
    closing = ", ".join(answer.get("closing", []))
    print(f"closing {closing}" if closing else "nothing to close")
    return 0


def reconcile(args: argparse.Namespace, cfg: config.Config, r: Client, keys: streams.Keys) -> int:
    answer = _ask(r, keys, name="reconcile")
    print(f"reconciled with the exchange: snapshot {answer.get('snapshot', '')}")
    return 0


def arm(args: argparse.Namespace, cfg: config.Config, r: Client, keys: streams.Keys) -> int:
    """Write the key that live mode asks for: the hash of account and risk settings."""
    from risk.arming import limits_of, settings_hash

    r.set(keys.armed, settings_hash(limits_of(cfg), cfg.account))
    print(f"armed {cfg.mode} account {cfg.account}; `./aegis halt` stops entries at once.")
    return 0


def audit(args: argparse.Namespace, cfg: config.Config, r: Client, keys: streams.Keys) -> int:
    """The venue's ledger against itself and against Redis."""
    from maintenance import summary

    if cfg.mode not in ("sim", "paper"):
        process.fail("`audit` reads the venue's ledger: it works in sim and paper.")
    try:
        events = summary.fetch_ledger(cfg.venue_url)
    except (OSError, ValueError, KeyError) as error:
        process.fail(f"No ledger from {cfg.venue_url} ({running.reason(error)}): is it running?")
    books, wrong = summary.check_books(r, keys, events, cfg.positions_max)
    faults = [*books.violations, *wrong]
    for fault in faults:
        print(fault, file=sys.stderr)
    print(
        f"deposits {books.deposits} + realised {books.realised} - fees {books.fees} + funding "
        f"{books.funding} = {books.balance}; {len(books.fills)} fills, {books.round_trips} round "
        f"trips, at most {books.positions_max} positions at once, naked {books.naked_ms_max} ms "
        f"at most; {len(faults)} faults"
    )
    return 1 if faults else 0


def down(state_dir: str) -> int:
    """Stop the `up` of this state folder and wait for its end."""
    state = running.read_state(state_dir)
    if not state:
        print("nothing runs here")
        return 0
    pid = int(state["pid"])
    os.kill(pid, signal.SIGTERM)
    end_s = time.monotonic() + DOWN_WAIT_S
    while running.read_state(state_dir) and time.monotonic() < end_s:
        time.sleep(0.05)
    if running.read_state(state_dir):
        process.fail(f"Process {pid} did not stop in {DOWN_WAIT_S:.0f} s: kill it.")
    print("stopped")
    return 0


def purge(args: argparse.Namespace, cfg: config.Config, r: Client, keys: streams.Keys) -> int:
    """Remove all keys of this mode; never while something runs on them."""
    if r.exists(keys.lease):
        process.fail("A risk process holds the lease: stop it first (`./aegis down`).")
    removed = 0
    for key in r.scan_iter(match=f"{keys.market('')}*", count=1000):
        removed += int(r.delete(key))
    print(f"removed {removed} keys of mode {keys.mode}")
    return 0


Command = Callable[[argparse.Namespace, Any, Any, streams.Keys], int]
COMMANDS: Final[dict[str, Command]] = {
    "why": why,
    "halt": halt,
    "resume": resume,
    "flatten": flatten,
    "reconcile": reconcile,
    "arm": arm,
    "audit": audit,
    "purge": purge,
}


def main(args: argparse.Namespace) -> int:
    cfg = running.settings()
    if args.command == "down":
        return down(cfg.state_dir)
    if args.command == "flatten" and args.direct:
        from maintenance import direct

        return direct.run(cfg, args.symbol.upper())
    r = running.client(cfg)
    return COMMANDS[args.command](args, cfg, r, streams.Keys(cfg.mode, cfg.account))
