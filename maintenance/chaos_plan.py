"""What chaos will do, decided by a seed before it begins: the same seed, the same faults in order.

Pure. A step is a pause and a fault with its numbers; whom it meets (the holder's process, a
position that is open then) is looked up when it is carried out. Every kind comes once before any
comes twice, so that a short run has seen as many kinds as fit into it.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from maintenance import chaos_account, chaos_points

PAUSE_S: Final = (0.05, 0.6)  # between the end of one fault and the next
STEPS_MAX: Final = 5_000
TIMES_MAX: Final = 3  # strikes of one planted fault
DOORS: Final = (  # of the exchange: the requests that risk lives by
    {"method": "POST", "path": "/fapi/v1/order"},
    {"method": "POST", "path": "/fapi/v1/algoOrder"},
    {"method": "DELETE", "path": "/fapi/v1/algoOrder"},
)
CODES: Final = (  # (code, HTTP status) that an order may meet at any time
    (-1001, 503),
    (-1021, 400),
    (-2019, 400),
    (-2027, 400),
    (-4131, 400),
)
AFTER_INTENT_MS: Final = (0.0, 25.0)  # in which an entry is sent, answered and protected
AT_ENTRY_SHARE: Final = 0.75  # of the faults that may: the worst moment is worth most
PROCESS_KINDS: Final = ("kill_holder", "kill_standby", "stop_holder")
REDIS_KINDS: Final = (
    "redis_kill",
    "script_flush",
    "client_kill",
    "client_pause",
    "reply_swallowed",
)
LOSS_KINDS: Final = (  # Redis forgets, takes nothing, or cannot be reached
    "redis_rollback",
    "redis_flush",
    "redis_full",
    "redis_loading",
    "redis_slow",
    "reply_cut",
    "group_destroyed",
    "stream_deleted",
    "stream_trimmed",
    "partition_holder",
    "partition_all",
)
STREAM_LOSS_KINDS: Final = ("group_destroyed", "stream_deleted", "stream_trimmed")
ACT_KINDS: Final = ("close", "add", "cancel_stop", "move_stop")  # by another client's hand
ORDER_KINDS: Final = (  # a request to the exchange meets them
    "reply_lost",
    "reply_late",
    "request_lost",
    "unknown_executed",
    "unknown_not_executed",
    "timeout_executed",
    "timeout_not_executed",
    "unavailable",
    "internal_error",
    "bad_gateway",
    "busy",
    "would_trigger",
    "any_code",
    "partial_fill",
    "limit",
    "ban",
)
DEAF_KINDS: Final = ORDER_KINDS[: ORDER_KINDS.index("unavailable")]  # only the answer would tell
DEAF_SHARE: Final = 0.4  # of these fall while the user stream tells nothing either
DEAF_S: Final = (2.0, 4.0)
REFUSING_KINDS: Final = ("ban", "limit")  # nobody can protect anything while they last
STREAM_KINDS: Final = (
    "user_late",
    "user_doubled",
    "user_reordered",
    "user_mute",
    "user_dropped",
    "trade_lite_after",
    "listen_key_expired",
    "disconnect",
    "market_mute",
    "market_doubled",
    "market_reordered",
)
MARKET_STREAMS: Final = (  # what risk listens to besides the user stream
    {"route": "market"},
    {"route": "public"},
)
KILL_SHARE: Final = 0.3  # of the losses meet the holder as well: nobody is left who remembers
AT_ENTRY_KINDS: Final = (
    "kill_holder",
    "stop_holder",
    "redis_kill",
    "client_kill",
    "script_flush",
    *LOSS_KINDS,
)
VENUE_KINDS: Final = ORDER_KINDS + STREAM_KINDS
CRASH_KINDS: Final = tuple(chaos_points.PREFIX + point for point in chaos_points.POINTS)
KINDS: Final = (
    *PROCESS_KINDS, *REDIS_KINDS, *LOSS_KINDS, *ACT_KINDS, *VENUE_KINDS, *CRASH_KINDS,
    *chaos_account.KINDS,
)  # fmt: skip
BESIDE_KINDS: Final = tuple(  # what costs a successor a request and not its tongue
    kind for kind in ORDER_KINDS if kind not in ("ban", "limit", "partial_fill", "would_trigger")
)
BESIDE_SHARE: Final = 0.5
FAVOURED: Final = {  # with a guard removed: what needs it comes more often
    "fence": ("stop_holder",),
    "query": ("unknown_executed", "reply_lost", "timeout_executed"),
    "dedupe": ("user_doubled", "kill_holder"),
    "stop": (),
    "reconcile": ("crash:after_send_entry", "crash:after_answer_entry", "user_dropped"),
}
FAVOURED_TIMES: Final = 8
assert {kind for kinds in FAVOURED.values() for kind in kinds} <= set(KINDS)
assert FAVOURED.keys() == chaos_points.BREAKS.keys()
_OPENS: Final = {"method": "POST", "path": "/fapi/v1/order"}
_STOPS: Final = {"method": "POST", "path": "/fapi/v1/algoOrder"}


@dataclass(frozen=True, slots=True)
class Step:
    """One fault. `body` is what the venue is told; `hold_s` how long it lasts where that counts.
    With `after_intent_ms` it falls so long after an entry's intent was written, else any time."""

    number: int
    kind: str
    pause_s: float
    hold_s: float
    body: Mapping[str, Any]
    after_intent_ms: float | None = None
    deaf_s: float = 0.0  # for so long the user stream is mute meanwhile
    beside: Step | None = None  # a fault of the exchange that awaits the successor


def kinds_of(words: str) -> tuple[str, ...]:
    """The kinds that begin with one of these words, by commas; empty where a word fits none."""
    found: dict[str, None] = {}
    for word in words.split(","):
        fitting = [kind for kind in KINDS if word and kind.startswith(word)]
        if not fitting:
            return ()
        found |= dict.fromkeys(fitting)
    return tuple(found)


def favouring(broken: str) -> tuple[str, ...]:
    """All kinds, those that need the removed guard several times."""
    return KINDS + FAVOURED.get(broken, ()) * FAVOURED_TIMES


def plan(
    seed: int, ttl_s: float, steps: int = STEPS_MAX, kinds: tuple[str, ...] = KINDS
) -> list[Step]:
    """The first `steps` faults of a seed; `ttl_s` is the life of risk's lease."""
    chance = random.Random(f"chaos {seed}")
    made: list[Step] = []
    deck: list[str] = []
    rounds = 0
    while len(made) < min(steps, STEPS_MAX):
        if not deck:
            left = [k for k in kinds if rounds < chaos_account.RARE.get(k, STEPS_MAX)]
            deck = left or list(kinds)
            chance.shuffle(deck)
            rounds += 1
        kind = deck.pop()
        pause_s = round(chance.uniform(*PAUSE_S), 3)
        body, hold_s = _details(kind, chance, ttl_s)
        after_ms = round(chance.uniform(*AFTER_INTENT_MS), 2)
        at_entry = chance.random() < AT_ENTRY_SHARE and kind in AT_ENTRY_KINDS
        moment = after_ms if at_entry else None
        deaf_s = round(chance.uniform(*DEAF_S), 2) if chance.random() < DEAF_SHARE else 0.0
        deaf_s = deaf_s if kind in DEAF_KINDS else 0.0
        also = _beside(len(made) + 1, chance) if kind in CRASH_KINDS else None
        made.append(Step(len(made) + 1, kind, pause_s, hold_s, body, moment, deaf_s, also))
    return made


def _beside(number: int, chance: random.Random) -> Step | None:
    if chance.random() >= BESIDE_SHARE:
        return None
    kind = chance.choice(BESIDE_KINDS)
    return Step(number, kind, 0.0, 0.0, _order_fault(kind, chance))


def _details(kind: str, chance: random.Random, ttl_s: float) -> tuple[dict[str, Any], float]:
    """(what the venue is told, how long it lasts)."""
    if kind == "stop_holder":
        busy_ms = chance.choice((0, 250))  # Redis is slow as it falls asleep: it wakes with writes
        return {"ms": busy_ms}, round(ttl_s * chance.uniform(1.2, 2.0), 3)  # beyond the lease
    if kind == "client_pause":
        return {"ms": chance.randrange(200, 3_500)}, 0.0
    if kind == "redis_kill":
        return {}, round(chance.uniform(0.0, 1.5), 3)  # until it is started again
    if kind == "reply_swallowed":
        return {"times": chance.randint(1, TIMES_MAX)}, 0.0
    if kind in CRASH_KINDS:
        return _crash(kind.removeprefix(chaos_points.PREFIX), chance), 0.0
    if kind in LOSS_KINDS:
        return _loss(kind, chance, ttl_s)
    if kind in ACT_KINDS:
        return {
            "client": chance.choice(("web", "ios")),
            "share": round(chance.uniform(0.2, 1), 3),
        }, 0.0
    if kind in chaos_account.KINDS:
        return chaos_account.details(kind, chance)
    if kind in STREAM_KINDS:
        return _stream_fault(kind, chance)
    if kind in ORDER_KINDS:
        return _order_fault(kind, chance), 0.0
    return {}, 0.0


def _crash(point: str, chance: random.Random) -> dict[str, Any]:
    """At which pass; a snapshot is taken by a new holder, or by one that is asked for it."""
    passes = chance.randint(1, chaos_points.PASSES_MAX)
    if point in chaos_points.SNAPSHOT_POINTS:
        return {"passes": 1, "by": chance.choice(("take-over", "command"))}
    return {"passes": 1 if point in chaos_points.TAKE_OVER_POINTS else passes}


def _loss(kind: str, chance: random.Random, ttl_s: float) -> tuple[dict[str, Any], float]:
    hold_s = round(chance.uniform(1.0, 4.0), 3)
    kill = chance.random() < KILL_SHARE
    if kind == "redis_rollback":  # by so many seconds, the last of them at an entry
        seconds = round(chance.uniform(0.5, 4.0), 2)
        return {"seconds": seconds, "kill": kill}, round(chance.uniform(0.0, 0.5), 3)
    if kind == "redis_flush":
        return {"kill": kill}, 0.0
    if kind == "redis_full":
        return {"share": round(chance.uniform(0.5, 0.95), 2)}, hold_s
    if kind == "redis_slow":
        return {"ms": chance.randrange(50, 500)}, hold_s
    if kind == "reply_cut":
        of = chance.choice(("orders", "signals"))
        most = 8 if of == "orders" else 400  # of the reply to a write, and to a read
        times = chance.randint(1, TIMES_MAX)
        return {"of": of, "bytes": [chance.randrange(most) for _ in range(times)]}, 0.0
    if kind in STREAM_LOSS_KINDS:
        key = chance.choice(("signals", "commands"))
        return {"key": "signals" if kind == "stream_trimmed" else key}, 0.0
    if kind in ("partition_holder", "partition_all"):
        return {}, round(ttl_s * chance.uniform(1.2, 2.2), 3)  # beyond the lease
    return {}, hold_s


def _order_fault(kind: str, chance: random.Random) -> dict[str, Any]:
    body: dict[str, Any] = {"kind": kind, "match": dict(chance.choice(DOORS))}
    if kind == "ban":
        return body | {"ms": chance.randrange(1_000, 4_000)}
    body["times"] = chance.randint(1, TIMES_MAX)
    if kind == "reply_late":
        body["ms"] = chance.randrange(200, 3_000)
    elif kind == "would_trigger":
        body["match"] = dict(_STOPS)
    elif kind in ("partial_fill", "busy"):
        body["match"] = dict(_OPENS)
    elif kind == "any_code":
        body["code"], body["http"] = chance.choice(CODES)
    if kind == "partial_fill":
        body["share"] = round(chance.uniform(0.1, 0.9), 2)
    return body


def _stream_fault(kind: str, chance: random.Random) -> tuple[dict[str, Any], float]:
    body: dict[str, Any] = {"kind": kind}
    if kind == "user_late":
        body |= {"ms": chance.randrange(50, 2_500), "times": chance.randint(1, 10)}
    elif kind == "user_reordered":
        body |= {"window": chance.randint(2, 6), "times": chance.randint(1, 4)}
    elif kind in ("user_doubled", "user_dropped", "trade_lite_after"):
        body["times"] = chance.randint(1, 6)
    elif kind in ("market_doubled", "market_reordered"):
        body |= {"match": dict(chance.choice(MARKET_STREAMS)), "times": chance.randint(10, 500)}
    elif kind == "market_mute":
        body |= {"match": dict(chance.choice(MARKET_STREAMS))}
        body["seconds"] = round(chance.uniform(0.5, 6.0), 2)
        return body, float(body["seconds"])
    elif kind == "user_mute":
        body["seconds"] = round(chance.uniform(0.5, 3.0), 2)
        return body, float(body["seconds"])
    elif kind == "disconnect":
        body["match"] = {"route": chance.choice(("private", "market", "public"))}
    return body, 0.0
