"""`aegis rule new | check | list`: from an empty file to a rule that the brain asks."""

from __future__ import annotations

import argparse
import keyword
import os
import re
import sys
from pathlib import Path
from typing import Any, Final

import config
import process
import streams
from maintenance import launch, recording, replaying, rule_watch, running

FOLDER: Final = "rules"  # in the checkout, which every process of ours has on its path
TEMPLATE: Final = '''"""{name}: say here what it trades and why.

`view` is one closed candle of one symbol and all that is known with it: read-only, no future.

    view.close() .high() .low() .volume()    of the candle; each takes a timeframe: view.close("1h")
    view.bars()          arrays of the last 128 closed candles: open_ms open high low close volume …
    view.indicators()    ema9 ema21 ema50 rsi atr adx macd bb_middle bb_std vwap imbalance …
    view.structure()     bias high low position (-1 at the range's low, +1 at its high) …
    view.zones("gap")    open fair value gaps; "block": order blocks
    view.happened("sweep", 1)    did this close bring that event, upwards?
    view.trend()         agreement of 1h 15m 5m 1m, -1 … +1
    view.bid .ask .round_trip    quotes; both fees and the spread, in price

Answer with a Candidate, with a No that says why not (the funnel counts it), or with None. Keep no
state: the same candle must get the same answer in a replay, after a restart, on another node.
"""

from brain.rules import Answer, Candidate, No, Params, rule
from brain.view import CandleView


@rule(
    "{name}",
    timeframes=("1m", "5m"),  # where it is asked: 1m 5m 15m 1h 1d
    on=("internal_bos",),  # only at closes with such an event; leave it out for every close
    trend_min=0.0,  # parameters, with their defaults
    stop_atr=1.2,
    reward=1.5,
)
def {name}(view: CandleView, params: Params) -> Answer:
    """Follow a close through the internal structure that the larger picture agrees with."""
    side = 1 if view.happened("internal_bos", 1) else -1
    trend = view.trend() * side
    if trend < params["trend_min"]:
        return No(side, "trend", "the larger picture is against it", {{"trend": trend}})
    atr = view.indicators().atr
    if not atr > 0.0:  # not known yet
        return None
    entry = view.ask if side > 0 else view.bid
    if not entry > 0.0:  # no quote yet
        return None
    distance = max(params["stop_atr"] * atr, 2.5 * view.round_trip)  # fees must not eat the stop
    return Candidate(
        side=side,
        entry=entry,
        stop=entry - side * distance,
        target=entry + side * params["reward"] * distance,
        reason=f"structure broke {{'up' if side > 0 else 'down'}}, trend {{trend:+.1f}}",
        quality=0.5 + 0.4 * trend,
    )
'''


def dotted(name: str) -> str:
    """A rule of `rules/` by its short name, any other by its dotted one."""
    return name if "." in name else f"{FOLDER}.{name}.{name}"


def new(args: argparse.Namespace) -> int:
    """Write a file that works and says how to go on."""
    name = args.name
    if not re.fullmatch(r"[a-z][a-z0-9_]{0,39}", name) or keyword.iskeyword(name):
        process.fail(f"{name} is no name for a rule: use small letters, digits and '_'.", 2)
    folder = Path(args.folder).resolve() if args.folder else launch.ROOT / FOLDER
    path = folder / f"{name}.py"
    if path.exists():
        process.fail(f"{path} exists: choose another name, or edit that file.")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        path.write_text(TEMPLATE.format(name=name))
    except OSError as error:
        process.fail(f"{path} cannot be written ({error.strerror}): name a folder with --folder.")
    where = f"{name}.{name}" if args.folder else dotted(name)
    path_words = f"PYTHONPATH={folder} " if args.folder else ""
    print(
        f"wrote {path}\n"
        f"check it    {path_words}./aegis rule check {where if args.folder else name}\n"
        f"watch it    {path_words}AEGIS_RULES={where}=shadow ./aegis up\n"
        f"trade it    {path_words}AEGIS_RULES={where} ./aegis up"
    )
    return 0


def check(args: argparse.Namespace) -> int:
    """A table; 1 when one row of it fails, or when the rule gives no answer at all."""
    try:
        cfg = config.load()
    except config.ConfigError as error:
        process.fail(str(error), 2)
    replaying.use_kernels(cfg.state_dir)
    if str(launch.ROOT) not in sys.path:
        sys.path.insert(0, str(launch.ROOT))

    def body(watch: rule_watch.Watch) -> int:
        from maintenance import rule_check

        rows = rule_check.check(dotted(args.name), cfg.rule_ms, args.recording or "", watch)
        print(rule_check.table(rows))
        return 0 if all(row.ok for row in rows) else 1

    code, why = rule_watch.watched(body, cfg.rule_limit_ms / 1000)
    if why:
        process.fail(why)
    return code


def show(args: argparse.Namespace) -> int:
    """Every rule with its state, counts and speed, by brain; as configured when nothing runs."""
    cfg = running.settings()
    if not cfg.redis_url:
        replaying.use_kernels(os.environ.get("AEGIS_STATE_DIR") or ".aegis")
        from brain.rules import RuleError, load_rules

        try:
            for each in load_rules(cfg.rules):
                print(f"{each.name:24} {each.state:7} on {', '.join(each.timeframes)}")
        except RuleError as error:
            process.fail(f"{error}.")
        print("nothing runs: no counts")
        return 0
    r = running.client(cfg)
    told = recording.brains(r, streams.Keys(cfg.mode, cfg.account))
    print(render(told) if told else "no brain reports: counts are unknown")
    return 0 if told else 1


def render(told: dict[str, dict[str, Any]]) -> str:
    """One table over all brains: counts are sums, times the worst."""
    rows: dict[str, dict[str, Any]] = {}
    for each in (rule for brain in told.values() for rule in brain["rules"]):
        row = rows.setdefault(each["name"], {**each, "spent": 0.0, "asked": 0})
        row["spent"] += (each["mean_us"] or 0.0) * each["asked"]
        if row is not each and row["asked"]:
            for name in ("candidates", "signals", "shadow", "faults"):
                row[name] += each[name]
        row["asked"] += each["asked"]
        row["max_us"] = max(row["max_us"] or 0.0, each["max_us"] or 0.0)
        if each["state"] != row["state"]:
            row["state"], row["why"] = "mixed", each["why"] or row["why"]
    lines = [
        f"{'rule':20} {'state':7} {'asked':>8} {'said':>7} {'signals':>8} {'shadow':>7} "
        f"{'faults':>7} {'mean us':>8} {'max us':>8}"
    ]
    for row in rows.values():
        mean = row["spent"] / row["asked"] if row["asked"] else 0.0
        lines.append(
            f"{row['name']:20} {row['state']:7} {row['asked']:>8} {row['candidates']:>7} "
            f"{row['signals']:>8} {row['shadow']:>7} {row['faults']:>7} {mean:>8.1f} "
            f"{row['max_us']:>8.1f}" + (f"  {row['why']}" if row["why"] else "")
        )
    return "\n".join(lines)


COMMANDS: Final = {"new": new, "check": check, "list": show}


def main(args: argparse.Namespace) -> int:
    return COMMANDS[args.rule_command](args)
