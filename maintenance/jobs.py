"""What the scheduled jobs do. Each is safe to run twice; none holds exchange keys.

A job that needs the exchange asks risk (`commands`) and works on the snapshot that risk wrote. All
of them take a Desk: Redis, the keys, the settings and the slot.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Final

import streams
from clock import boot_ns, wall_ms
from maintenance import learn, universe
from maintenance.running import Client

if TYPE_CHECKING:
    import config

ANSWER_WAIT_S: Final = 10.0  # then the operator is told that risk does not answer
ANSWER_POLL_S: Final = 0.1
NODE_DEAD_S: Final = 4.0
STUCK_ORDER_MS: Final = 60_000  # wall time without an event of an order that should have ended
PENDING_MAX: Final = 10_000  # open signals; the oldest beyond it are given up
log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Desk:
    """What a job works with."""

    r: Client
    keys: streams.Keys
    cfg: config.Config
    slot: int


def note(r: Client, keys: streams.Keys, level: str, text: str) -> None:
    """A line for the operator."""
    fields = {"level": level, "source": "jobs", "text": text, "wall_ms": str(wall_ms())}
    streams.publish(r, keys.journal, fields)


def ask(
    r: Client, keys: streams.Keys, fields: Mapping[str, str], wait_s: float
) -> dict[str, Any] | None:
    """Send a command to risk; its answer, or None when none came in time. Needs an `id` field."""
    import process

    streams.publish(r, keys.commands, fields)
    end_ns = boot_ns() + int(wait_s * 1e9)
    while boot_ns() < end_ns and not process.stop:
        process.beat()
        told = r.hget(keys.replies, fields["id"])
        if told is not None:
            r.hdel(keys.replies, fields["id"])
            answer = json.loads(told)
            return answer if isinstance(answer, dict) else {"ok": False, "error": "no object"}
        process.stop.wait(ANSWER_POLL_S)
    return None


# --- reconcile -----------------------------------------------------------------------------------


def our_side(desk: Desk) -> tuple[dict[str, Any], dict[str, Any]]:
    """Positions, and the orders that are open or that a position names, as Redis has them."""
    from risk import orders, portfolio

    r, keys = desk.r, desk.keys
    positions = {
        symbol: portfolio.from_fields(fields)
        for symbol in sorted(r.smembers(keys.positions))
        if (fields := r.hgetall(keys.position(symbol)))
    }
    named = {
        name
        for p in positions.values()
        for name in (p.entry_order, p.stop_order, p.target_order, p.exit_order)
    }
    known = {
        name: orders.from_fields(fields)
        for name in sorted((named | r.smembers(keys.orders_open)) - {""})
        if (fields := r.hgetall(keys.order(name)))
    }
    return positions, known


def steady(before: tuple[Any, Any], after: tuple[Any, Any]) -> set[str]:
    """Symbols of which nothing changed between two looks: only they can be judged."""
    moving: set[str] = set()
    for then, now in zip(before, after, strict=True):
        for name in {*then, *now}:
            if then.get(name) != now.get(name):
                moving.add((now.get(name) or then.get(name)).symbol)
    seen = {row.symbol for rows in (*before, *after) for row in rows.values()}
    return seen - moving


def reconcile(desk: Desk) -> None:
    """Ask risk for the exchange's truth, compute the difference, ask for each correction."""
    from risk.reconcile import action_to_fields, difference, snapshot_from_json

    r, keys = desk.r, desk.keys
    before = our_side(desk)
    command = {"id": f"snapshot-{desk.slot}", "name": "snapshot", "slot": str(desk.slot)}
    answer = ask(r, keys, command, ANSWER_WAIT_S)
    if answer is None or not answer.get("ok"):
        told = "no answer in 10 s" if answer is None else answer.get("error", "refused")
        note(r, keys, "error", f"reconcile: risk gives no snapshot ({told})")
        return
    text = r.hget(keys.exchange, "json")
    if text is None:
        note(r, keys, "error", "reconcile: risk answered but `exchange` is empty")
        return
    snapshot = snapshot_from_json(text)
    after = our_side(desk)
    judged = steady(before, after) | {
        s for s in snapshot.positions if s not in {p.symbol for p in after[0].values()}
    }
    prefix = f"ag{streams.prefix3(keys)}"
    for action in difference(*after, (), snapshot, prefix):
        if action.name in ("foreign", "own") or action.symbol not in judged:
            continue  # ownership is risk's own memory; what moves is left to the next slot
        fields = action_to_fields(action, snapshot.id)
        fields["id"] = f"correct-{desk.slot}-{action.name}-{action.order or action.symbol}"
        streams.publish(r, keys.commands, fields)
        note(r, keys, "warning", f"reconcile: {action.name} {action.symbol} {action.order}".strip())


# --- sweep ---------------------------------------------------------------------------------------


def sweep(desk: Desk) -> None:
    """Orders that should have ended, answers that nobody fetched, signals that nobody follows."""
    from risk.reconcile import Action, action_to_fields

    r, keys = desk.r, desk.keys
    positions, known = our_side(desk)
    mine = {order for p in positions.values() for order in (p.stop_order, p.target_order)}
    newest_ms = _newest_ms(r, keys)
    for name, order in known.items():
        if order.terminal:
            continue
        old = newest_ms - max(order.updated_ms, order.created_ms) > STUCK_ORDER_MS
        if old and name not in mine and order.state != "intent":
            fields = action_to_fields(Action("query", order.symbol, name), "sweep")
            fields["id"] = f"sweep-{desk.slot}-{name}"
            streams.publish(r, keys.commands, fields)
            note(r, keys, "warning", f"sweep: order {name} is {order.state} for too long")
    _drop_old_replies(r, keys)
    excess = int(r.hlen(keys.pending)) - PENDING_MAX
    if excess > 0:
        note(r, keys, "warning", f"sweep: {excess} open signals beyond {PENDING_MAX}")


def _newest_ms(r: Client, keys: streams.Keys) -> int:
    """Market time as the newest snapshot or portfolio knows it; 0 when neither exists."""
    told = (r.hget(keys.exchange, "ms"), r.hget(keys.portfolio, "ms"))
    return max((int(float(ms)) for ms in told if ms), default=0)


REPLIES_MAX: Final = 1_000


def _drop_old_replies(r: Client, keys: streams.Keys) -> None:
    """Answers whose asker is gone; a hash has no bound of its own."""
    if int(r.hlen(keys.replies)) <= REPLIES_MAX:
        return
    names = list(r.hkeys(keys.replies))
    r.hdel(keys.replies, *names[: len(names) - REPLIES_MAX // 2])


# --- the others ----------------------------------------------------------------------------------


def equity(desk: Desk) -> None:
    """One point of the equity curve, from what risk last wrote."""
    told: dict[str, str] = desk.r.hgetall(desk.keys.portfolio)
    if "equity" not in told:
        return
    names = ("equity", "wallet", "unrealised", "realised", "fees", "positions", "exposure", "ms")
    fields = {name: told[name] for name in names if name in told}
    streams.publish(desk.r, desk.keys.equity, {**fields, "wall_ms": str(wall_ms())})


def nodes(desk: Desk) -> None:
    """Nodes without a sign of life are noted once and leave the list."""
    r, keys = desk.r, desk.keys
    seconds, micros = r.time()
    limit = seconds + micros / 1e6 - NODE_DEAD_S
    for member in r.zrangebyscore(keys.nodes, "-inf", limit):
        if r.zrem(keys.nodes, member):
            note(r, keys, "warning", f"node {member} is dead")


def trim(desk: Desk) -> None:
    """Streams back to their bounds, but never past what a group has not finished."""
    for row in streams.TABLE:
        key = getattr(desk.keys, row.name)
        if int(desk.r.xlen(key)) <= row.entries_max:
            continue
        if not row.trimmed:
            note(desk.r, desk.keys, "warning", f"{row.name} is past {row.entries_max} entries")
            continue
        oldest = oldest_unfinished(desk.r, key)
        cut = desk.r.xrevrange(key, count=row.entries_max + 1)[-1][0]
        floor = min(cut, oldest, key=entry_order) if oldest else cut
        desk.r.xtrim(key, minid=floor, approximate=True)


def oldest_unfinished(r: Client, key: str) -> str | None:
    """Id of the first entry that some group still needs; None when no group does."""
    needed = []
    for group in r.xinfo_groups(key):
        needed.append(group["last-delivered-id"])
        pending: Any = r.xpending(key, group["name"])
        if pending["pending"]:
            needed.append(pending["min"])
    return min(needed, key=entry_order) if needed else None


def entry_order(entry_id: str) -> tuple[int, int]:
    ms, _, sequence = entry_id.partition("-")
    return int(ms), int(sequence or 0)


def choose_universe(desk: Desk) -> None:
    """The hourly choice; what has a position or an open signal stays."""
    r, keys, cfg = desk.r, desk.keys, desk.cfg
    before = r.hkeys(keys.symbols)
    held = set(r.smembers(keys.positions))
    for text in r.hvals(keys.pending):
        symbol = json.loads(text).get("symbol")
        if symbol:
            held.add(symbol)
    wanted = universe.Wanted(cfg.symbols, cfg.quotes, cfg.symbols_exclude)
    chosen, why = universe.fetch(cfg.rest_url, wanted, before, held)
    if why:
        note(r, keys, "warning", f"universe: {why}")
        if before:
            return  # what runs is better than a fallback
    universe.write(r, keys.symbols, chosen)


def heartbeat(desk: Desk) -> None:
    """The quarter-hourly line: log and journal, one JSON object."""
    line = json.dumps(pulse(desk.r, desk.keys), separators=(",", ":"))
    log.warning("heartbeat %s", line)
    note(desk.r, desk.keys, "heartbeat", line)


def pulse(r: Client, keys: streams.Keys) -> dict[str, Any]:
    """Equity, positions, fills, nodes and losses, as one flat object."""
    told: dict[str, str] = r.hgetall(keys.portfolio)
    made: dict[str, Any] = {"mode": keys.mode, "account": keys.account, "wall_ms": wall_ms()}
    for name in ("equity", "realised", "fees", "positions", "entries", "round_trips", "fills"):
        if name in told:
            made[name] = float(Decimal(told[name]))
    made["model_version"] = r.hget(keys.model_live, "version")
    for member in r.zrange(keys.nodes, 0, -1):
        name, _, boot = member.rpartition(":")
        row: dict[str, str] = r.hgetall(keys.node(name, boot))
        for field in ("lag", "age_trade_max_ms", "feed.lost_trades", "feed.conflated",
                      "brain.gaps", "brain.signals", "receive_to_redis_p99_us"):  # fmt: skip
            if field in row:
                made[f"{name}.{field}"] = float(row[field])
    return made


def learn_new(desk: Desk) -> None:
    """Outcomes that came since, into the live model."""
    learn.learn(desk.r, desk.keys)


BODIES: Final[dict[str, Callable[[Desk], None]]] = {
    "nodes": nodes,
    "reconcile": reconcile,
    "sweep": sweep,
    "learn": learn_new,
    "equity": equity,
    "trim": trim,
    "heartbeat": heartbeat,
    "universe": choose_universe,
}
