"""`aegis status`: how it is, in one look; with --json one object for scripts.

Reads Redis only; every number is as fresh as its writer (`heartbeat_age_ms`, `ms`).
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from typing import Any, Final

import streams
from maintenance import funnel, running
from maintenance.running import Client
from maintenance.schedule import JOBS, Job, slot_of

LANE_FIELDS: Final = ("symbols", "lag", "age_trade_max_ms")


def collect(r: Client, keys: streams.Keys) -> dict[str, Any]:
    """The object of `status --json`."""
    portfolio: dict[str, str] = r.hgetall(keys.portfolio)
    return {
        "mode": keys.mode,
        "account": keys.account,
        "nodes": _nodes(r, keys),
        "risk": _risk(r, keys),
        "positions": _positions(r, keys),
        "equity": _number(portfolio.get("equity")),
        "armed": bool(r.exists(keys.armed)),
        "halted": r.hget(keys.breakers, "halted") is not None,
        "streams": {row.name: _stream(r, getattr(keys, row.name)) for row in streams.TABLE},
        "status": r.hgetall(keys.status),
        "jobs_late": jobs_late(r, keys, JOBS),
        "funnel": funnel.collect(r, keys),
    }


def jobs_late(r: Client, keys: streams.Keys, jobs: Sequence[Job]) -> list[str]:
    """Jobs done neither in the last whole slot nor in the present one: no beat calls, no worker
    hears, or every run fails."""
    seconds, micros = r.time()
    late = []
    for job in jobs:
        slot = slot_of(job, seconds + micros / 1e6)
        if "done" not in r.mget([keys.job(job.name, slot - 1), keys.job(job.name, slot)]):
            late.append(job.name)
    return late


def _nodes(r: Client, keys: streams.Keys) -> list[dict[str, Any]]:
    seconds, micros = r.time()
    now_s = seconds + micros / 1e6
    made = []
    for member, seen_s in r.zrange(keys.nodes, 0, -1, withscores=True):
        name, _, boot = member.rpartition(":")
        row: dict[str, str] = r.hgetall(keys.node(name, boot))
        made.append(
            {
                "id": name,
                "boot": boot,
                "symbols": int(row.get("symbols", 0)),
                "heartbeat_age_ms": round((now_s - seen_s) * 1000),
                "lag": int(row.get("lag", 0)),
                "ticks": int(row.get("brain.trades", 0)) + int(row.get("brain.quotes", 0)),
                "lanes": _lanes(row),
            }
        )
    return made


def _lanes(row: Mapping[str, str]) -> list[dict[str, int]]:
    """Each lane's progress; one that is alone has the node's."""
    count = int(row.get("lanes", 1))
    prefixes = [""] if count == 1 else [f"lane{lane}." for lane in range(count)]
    return [
        {name: int(row[prefix + name]) for name in LANE_FIELDS if prefix + name in row}
        for prefix in prefixes
    ]


def _risk(r: Client, keys: streams.Keys) -> dict[str, Any]:
    epoch = r.get(keys.epoch)
    return {
        "holder": r.get(keys.lease),
        "epoch": int(epoch) if epoch else 0,
        "standby": len(streams.standing_by(r, keys)),
    }


def _positions(r: Client, keys: streams.Keys) -> list[dict[str, Any]]:
    made = []
    for symbol in sorted(r.smembers(keys.positions)):
        told: dict[str, str] = r.hgetall(keys.position(symbol))
        if told:
            made.append(
                {
                    "symbol": symbol,
                    "side": told.get("side"),
                    "qty": _number(told.get("qty")),
                    "entry": _number(told.get("entry")),
                    "stop": _number(told.get("stop")),
                    "stop_order": told.get("stop_order"),
                    "stop_state": told.get("stop_state"),
                    "unrealised": _number(told.get("unrealised")),
                }
            )
    return made


def _stream(r: Client, key: str) -> dict[str, Any]:
    """Length, and over all groups what is undelivered (`lag`) and unacknowledged (`pending`)."""
    groups: Any = r.xinfo_groups(key) if r.exists(key) else []
    lags = [streams.undelivered(r, key, group) for group in groups]
    return {
        "length": int(r.xlen(key)),
        "lag": None if None in lags else sum(lag or 0 for lag in lags),
        "pending": sum(group["pending"] for group in groups),
    }


def _number(text: str | None) -> float | None:
    return None if text in (None, "") else float(str(text))


def _node_lines(node: Mapping[str, Any]) -> list[str]:
    """A node, and below it its lanes if there are several."""
    lines = [
        f"node   {node['id']}: {node['symbols']} symbols, {node['ticks']:,} ticks, ring lag "
        f"{node['lag']}, heartbeat {node['heartbeat_age_ms']} ms ago"
    ]
    if len(node["lanes"]) > 1:
        lines += [
            f"  lane {lane}: {told.get('symbols', 0)} symbols, ring lag {told.get('lag', 0)}, "
            f"oldest trade {told.get('age_trade_max_ms', 'unknown')} ms"
            for lane, told in enumerate(node["lanes"])
        ]
    return lines


def render(told: Mapping[str, Any]) -> str:
    """The same for people."""
    risk, armed = told["risk"], "armed" if told["armed"] else "NOT ARMED"
    lines = [
        f"mode {told['mode']}, account {told['account']}, {armed}"
        + (", HALTED" if told["halted"] else ""),
        f"equity {told['equity'] if told['equity'] is not None else 'unknown'}",
        f"risk   holder {risk['holder'] or 'NOBODY'}, epoch {risk['epoch']}",
    ]
    status = told["status"]
    for name, words in (("blocked", "no entries"), ("quarantine", "quarantine"),
                        ("foreign", "not ours"), ("jobs", "scheduled jobs")):  # fmt: skip
        if status.get(name):
            lines.append(f"{words}: {status[name]}")
    if told["jobs_late"]:
        lines.append(f"late jobs: {', '.join(told['jobs_late'])}; look at worker and beat")
    lines += [line for node in told["nodes"] for line in _node_lines(node)] or ["node   NONE"]
    lines += [
        f"position {p['symbol']}: {p['side']} {p['qty']:g} at {p['entry']:g}, stop "
        f"{p['stop'] if p['stop'] else 'NONE'} ({p['stop_state']})"
        for p in told["positions"]
    ] or ["no positions"]
    lines += funnel.render(told["funnel"])
    lines += [
        f"stream {name}: {row['length']} entries, {row['lag']} waiting, {row['pending']} pending"
        for name, row in told["streams"].items()
        if row["length"]
    ]
    return "\n".join(lines)


def main(args: argparse.Namespace) -> int:
    """Print it; 0 when Redis could be asked."""
    cfg = running.settings()
    r = running.client(cfg)
    told = collect(r, streams.Keys(cfg.mode, cfg.account))
    print(json.dumps(told) if args.json else render(told))
    return 0
