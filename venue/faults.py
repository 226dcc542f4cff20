"""The fault lab: what may go wrong by order, what is planned, what happened. Pure state, no I/O.

A plan names a kind, whom it meets (`match`), how many it lets pass (`after`), how often it strikes
(`times`) and for how long it stands (`seconds`). Whoever is about to do a thing asks `strike` with
the facts of it; the first plan that fits answers. Times are real milliseconds since boot. What is
random draws from the world's seed. Plans do not survive a restart; the ledger tells of them.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

from venue.orders import Refusal

PLANS_MAX = 1000
HAPPENED_KEPT = 1000
NOTES_MAX = 100_000  # ledger lines not yet taken; the venue takes them after every call and step
NOTED_MAX = 100  # strikes of one plan that are noted; `happened` counts all
TEXT_MAX = 300
HOUR_MS = 3_600_000
DAY_S = 86_400

Json = dict[str, Any]
ORDER_MATCH = ("method", "path", "symbol", "side", "type", "reduceOnly", "client_id_prefix")
USER_MATCH = ("event", "symbol", "client_id_prefix", "execution")
SOCKET_MATCH = ("symbol", "stream", "route", "connection")
STANDING = ("times", "after", "seconds")


@dataclass(frozen=True, slots=True)
class Kind:
    """Where it strikes, which of FIELDS it takes, what it can be told by."""

    where: str  # rest, clock, user, market, key
    fields: tuple[str, ...] = ()
    match: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()  # of fields and match together


KINDS: dict[str, Kind] = {
    # a request is executed, or not, and the client is told something else
    "reply_lost": Kind("rest", STANDING, ORDER_MATCH),
    "reply_late": Kind("rest", (*STANDING, "ms"), ORDER_MATCH, ("ms",)),
    "request_lost": Kind("rest", STANDING, ORDER_MATCH),
    "unknown_executed": Kind("rest", STANDING, ORDER_MATCH),
    "unknown_not_executed": Kind("rest", STANDING, ORDER_MATCH),
    "timeout_executed": Kind("rest", STANDING, ORDER_MATCH),
    "timeout_not_executed": Kind("rest", STANDING, ORDER_MATCH),
    "unavailable": Kind("rest", STANDING, ORDER_MATCH),
    "internal_error": Kind("rest", STANDING, ORDER_MATCH),
    "bad_gateway": Kind("rest", STANDING, ORDER_MATCH),
    "busy": Kind("rest", STANDING, ORDER_MATCH),
    "would_trigger": Kind("rest", STANDING, ORDER_MATCH),
    "any_code": Kind("rest", (*STANDING, "code", "msg", "http"), ORDER_MATCH, ("code",)),
    "partial_fill": Kind("rest", (*STANDING, "share"), ORDER_MATCH, ("share",)),
    "limit": Kind("rest", STANDING, ORDER_MATCH),
    "ban": Kind("rest", ("times", "after", "ms"), ORDER_MATCH),
    "clock_skew": Kind("clock", ("seconds", "ms"), (), ("ms",)),
    # the user stream
    "user_late": Kind("user", (*STANDING, "ms"), USER_MATCH, ("ms",)),
    "user_doubled": Kind("user", STANDING, USER_MATCH),
    "user_reordered": Kind("user", (*STANDING, "window", "ms"), USER_MATCH),
    "user_mute": Kind("user", STANDING, USER_MATCH),
    "user_dropped": Kind("user", STANDING, USER_MATCH),
    "trade_lite_after": Kind("user", STANDING, USER_MATCH),
    "listen_key_expired": Kind("key"),
    # market sockets
    "disconnect": Kind("socket", ("times", "bytes", "close"), ("route", "stream", "connection")),
    "trade_gap": Kind("market", ("after", "seconds", "count"), SOCKET_MATCH, ("symbol",)),
    "depth_gap": Kind("market", STANDING, SOCKET_MATCH, ("symbol",)),
    "market_doubled": Kind("market", STANDING, SOCKET_MATCH),
    "market_reordered": Kind("market", STANDING, SOCKET_MATCH),
    "market_mute": Kind("market", STANDING, SOCKET_MATCH),
}
ENDLESS = ("user_mute", "market_mute", "disconnect")  # without `times` and `seconds`: every one
# name: (type, least, most, default)
FIELDS: dict[str, tuple[type, Any, Any, Any]] = {
    "times": (int, 0, 1_000_000, 1),
    "after": (int, 0, 1_000_000, 0),
    "seconds": (float, 0, DAY_S, 0.0),
    "ms": (int, -24 * HOUR_MS, 24 * HOUR_MS, 0),
    "share": (Decimal, 0, 1, Decimal(1)),
    "code": (int, -99_999, 99_999, 0),
    "http": (int, 400, 599, 400),
    "msg": (str, 0, TEXT_MAX, ""),
    "count": (int, 1, 10_000, 1),
    "window": (int, 2, 100, 2),
    "bytes": (int, 0, 1 << 30, 0),
    "close": (int, 1000, 4999, 1006),
}
MATCH_TYPES: dict[str, type] = {"reduceOnly": bool, "connection": int}


@dataclass(slots=True)
class Plan:
    """One planted fault."""

    id: int
    kind: str
    match: Json
    times: int  # 0: every time while it stands
    after: int
    until_ms: int  # boot; 0: until cleared
    values: Json
    seen: int = 0
    happened: int = 0

    def told(self) -> Json:
        told = {k: str(v) if isinstance(v, Decimal) else v for k, v in self.values.items()}
        return {
            "id": self.id,
            "kind": self.kind,
            "match": self.match,
            "times": self.times,
            "after": self.after,
            **told,
            "seen": self.seen,
            "happened": self.happened,
        }


@dataclass(slots=True)
class Lab:
    """What is planned and what happened; `notes` wait for the ledger."""

    seed: int = 0
    plans: dict[int, Plan] = field(default_factory=dict)
    happened: deque[Json] = field(default_factory=lambda: deque(maxlen=HAPPENED_KEPT))
    notes: deque[Json] = field(default_factory=lambda: deque(maxlen=NOTES_MAX))
    cuts: list[Plan] = field(default_factory=list)  # disconnects that the shell must carry out
    planted: int = 0
    rng: random.Random = field(init=False)

    def __post_init__(self) -> None:
        self.rng = random.Random(self.seed)


def bad(text: str) -> Refusal:
    """The venue's own way of saying no; the code is the exchange's for a bad parameter."""
    return Refusal(-1130, text)


def _listed(names: Collection[str]) -> str:
    return ", ".join(sorted(names)) or "none"


def value_of(name: str, value: Any) -> Any:
    """A field as its type and within its bounds, or a Refusal."""
    kind, least, most, _ = FIELDS[name]
    refusal = bad(f"Field '{name}' must be {kind.__name__.lower()} from {least} to {most}.")
    if kind is str:
        right = isinstance(value, str) and len(value) <= most
        return value if right else bad(f"Field '{name}' must be text of at most {most}.")
    if isinstance(value, bool) or not isinstance(value, int | float):
        return refusal
    if (kind is int and not isinstance(value, int)) or not least <= value <= most:
        return refusal
    return Decimal(str(value)) if kind is Decimal else kind(value)


def _match_of(kind: str, sent: Any) -> Json | Refusal:
    known = KINDS[kind].match
    if not isinstance(sent, dict):
        return bad("'match' must be an object.")
    for name, value in sent.items():
        if name not in known:
            return bad(f"'{kind}' cannot match '{name}'; it matches: {_listed(known)}.")
        if type(value) is not MATCH_TYPES.get(name, str):
            return bad(f"'match.{name}' must be {MATCH_TYPES.get(name, str).__name__}.")
    return dict(sent)


def planned(lab: Lab, sent: Any, now_ms: int) -> Plan | Refusal:
    """A plan from JSON, planted; or what is wrong with it."""
    if not isinstance(sent, dict):
        return bad("A fault is an object with 'kind'.")
    kind = sent.get("kind")
    if not isinstance(kind, str) or kind not in KINDS:
        return bad(f"Unknown kind '{str(kind)[:50]}'; there are: {_listed(KINDS)}.")
    known = KINDS[kind]
    match = _match_of(kind, sent.get("match", {}))
    if isinstance(match, Refusal):
        return match
    values = {name: FIELDS[name][3] for name in known.fields}
    for name, value in sent.items():
        if name in ("kind", "match"):
            continue
        if name not in known.fields:
            return bad(f"'{kind}' has no field '{name[:50]}'; it has: {_listed(known.fields)}.")
        checked = value_of(name, value)
        if isinstance(checked, Refusal):
            return checked
        values[name] = checked
    for name in known.needs:
        if name not in sent and name not in match:
            return bad(f"'{kind}' needs '{name}'.")
    if values.get("bytes") and values["close"] != 1006:
        return bad("A cut after 'bytes' is inside a frame: 'close' can only be 1006.")
    if len(lab.plans) >= PLANS_MAX:
        return bad(f"{PLANS_MAX} faults are planned; DELETE some first.")
    return _plant(lab, kind, match, values, sent, now_ms)


def _plant(lab: Lab, kind: str, match: Json, values: Json, sent: Json, now_ms: int) -> Plan:
    seconds = values.pop("seconds", 0.0)
    times = values.pop("times", 0)
    if "times" not in sent and (seconds or kind in ENDLESS):
        times = 0
    lab.planted += 1
    until_ms = now_ms + int(seconds * 1000) if seconds else 0
    plan = Plan(lab.planted, kind, match, times, values.pop("after", 0), until_ms, values)
    lab.plans[plan.id] = plan
    note(lab, "planned", plan, {"match": match})
    return plan


def note(lab: Lab, state: str, plan: Plan, more: Json) -> None:
    entry = {"type": "fault", "state": state, "fault": plan.id, "kind": plan.kind, **more}
    lab.notes.append(entry)
    if state == "happened":
        lab.happened.append(entry)


def clear(lab: Lab, plan_id: int | None) -> int:
    """Withdraws one plan or all; says how many."""
    chosen = [p for p in lab.plans.values() if plan_id in (None, p.id)]
    for plan in chosen:
        del lab.plans[plan.id]
        note(lab, "cleared", plan, {})
    return len(chosen)


def _path_fits(wanted: str, path: str) -> bool:
    return path == wanted or path.endswith("/" + wanted.strip("/"))


def fits(match: Json, facts: Mapping[str, Any]) -> bool:
    """True when every word of `match` is true of the facts."""
    for name, wanted in match.items():
        if name == "client_id_prefix":
            if not str(facts.get("client_id", "")).startswith(wanted):
                return False
        elif name == "path":
            if not _path_fits(wanted, str(facts.get("path", ""))):
                return False
        elif isinstance(wanted, str):
            if str(facts.get(name, "")).lower() != wanted.lower():
                return False
        elif facts.get(name) != wanted:
            return False
    return True


def overdue(lab: Lab, now_ms: int) -> None:
    """Plans whose seconds are over."""
    for plan in [p for p in lab.plans.values() if p.until_ms and now_ms >= p.until_ms]:
        del lab.plans[plan.id]
        note(lab, "over", plan, {})


def standing(lab: Lab, where: str) -> bool:
    """Whether anything of that sort is planned: asked often, and mostly no."""
    return any(KINDS[p.kind].where == where for p in lab.plans.values())


def strike(lab: Lab, kinds: Collection[str], facts: Mapping[str, Any], now_ms: int) -> Plan | None:
    """The first plan of these kinds that fits, counted and noted; None when nothing goes wrong."""
    if not lab.plans:
        return None
    overdue(lab, now_ms)
    for plan in lab.plans.values():
        if plan.kind not in kinds or not fits(plan.match, facts):
            continue
        plan.seen += 1
        if plan.seen <= plan.after:
            continue
        plan.happened += 1
        if plan.times and plan.happened >= plan.times:
            del lab.plans[plan.id]
        if plan.happened <= NOTED_MAX:
            met = {k: v for k, v in facts.items() if v not in ("", None)}
            note(lab, "happened", plan, {"met": met})
        return plan
    return None


def skew_ms(lab: Lab, now_ms: int) -> int:
    """How far the server's clock is wrong, in real milliseconds: the newest plan says."""
    overdue(lab, now_ms)
    found = [p for p in lab.plans.values() if p.kind == "clock_skew"]
    return int(found[-1].values["ms"]) if found else 0


def told(lab: Lab) -> Json:
    """What GET answers."""
    return {
        "planned": [p.told() for p in lab.plans.values()],
        "happened": list(lab.happened),
        "kinds": {
            name: {"fields": list(kind.fields), "match": list(kind.match)}
            for name, kind in KINDS.items()
        },
    }
