"""How each planned fault is carried out, and whether it bit: whether anything changed by it.

A process must have died, a connection been cut, a lease gone to another, a strike stand in the
venue's list. What finds nobody within BITE_S is withdrawn and does not count.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from decimal import ROUND_DOWN, Decimal
from typing import Any, Final

import redis.exceptions

from clock import wall_ms
from maintenance import chaos_crash, chaos_plan, chaos_redis, chaos_venue
from maintenance.chaos_plan import Step
from maintenance.chaos_rig import RISKS, Rig
from maintenance.chaos_venue import BITE_S, SHORT_S, filters
from maintenance.chaos_venue import within as _within

ENTRY_S: Final = 4.0  # for an entry to fall upon
STANDBY_S: Final = 20.0  # for the other process to stand by
TAKE_OVER_KINDS: Final = ("kill_holder", "stop_holder")
MOVE: Final = Decimal("0.002")  # how much farther another hand sets a stop
ALL_OF_IT: Final = 0.6  # a share above this closes the whole position


def strike(rig: Rig, step: Step) -> bool:
    """Carry out one step; True if it bit."""
    if step.kind in TAKE_OVER_KINDS:
        _within(rig, rig.standing_by, STANDBY_S)
    if step.after_intent_ms is not None and rig.entry_intended(ENTRY_S):
        time.sleep(step.after_intent_ms / 1000)
    if step.kind in chaos_plan.VENUE_KINDS:
        return _venue_fault(rig, step)
    if step.kind in chaos_plan.ACT_KINDS:
        return _act(rig, step)
    if step.kind in chaos_plan.CRASH_KINDS:
        return chaos_crash.crash(rig, step)
    if step.kind in chaos_redis.BLOWS:
        return chaos_redis.BLOWS[step.kind](rig, step)
    blow = _BLOWS.get(step.kind) or chaos_venue.BLOWS[step.kind]
    return blow(rig, step)


# --- processes ---------------------------------------------------------------------------------


def _kill_holder(rig: Rig, step: Step) -> bool:
    """SIGKILL; the standby takes over, the killed one comes back as standby."""
    epoch, name = int(rig.status().get("epoch", 0)), _within(rig, rig.holder)
    if not name:
        return False
    rig.dead_ms = wall_ms()
    rig.kill_risk(name)
    rig.start_risk(name)
    return bool(_within(rig, lambda: rig.trading(epoch), BITE_S * 3))


def _kill_standby(rig: Rig, step: Step) -> bool:
    holder = _within(rig, rig.holder)
    if not holder:
        return False
    name = next(name for name in RISKS if name != holder)
    rig.kill_risk(name)
    rig.start_risk(name)
    return True


def _stop_holder(rig: Rig, step: Step) -> bool:
    """SIGSTOP beyond the lease's life, then SIGCONT: a holder that does not know it is none."""
    epoch, name = int(rig.status().get("epoch", 0)), _within(rig, rig.holder)
    if not name:
        return False
    if step.body["ms"]:
        rig.r.execute_command("CLIENT PAUSE", step.body["ms"], "ALL")
        time.sleep(step.body["ms"] / 2000)
    rig.dead_ms = wall_ms()
    rig.stop_risk(name, signal.SIGSTOP)
    try:
        time.sleep(step.hold_s)
        taken = _within(rig, lambda: rig.trading(epoch))
    finally:
        rig.stop_risk(name, signal.SIGCONT)
    return bool(taken)


# --- Redis -------------------------------------------------------------------------------------


def _redis_kill(rig: Rig, step: Step) -> bool:
    """SIGKILL, and a new one on the same file a moment later."""
    assert rig.redis is not None
    rig.redis.kill()
    rig.redis.wait(10)
    time.sleep(step.hold_s)
    rig.start_redis()
    return True


def _script_flush(rig: Rig, step: Step) -> bool:
    rig.r.script_flush()
    return True


def _client_kill(rig: Rig, step: Step) -> bool:
    """Every connection but our own."""
    return int(rig.r.execute_command("CLIENT KILL TYPE normal SKIPME yes")) > 0


def _client_pause(rig: Rig, step: Step) -> bool:
    """Redis takes no command of anybody for so long."""
    rig.r.execute_command("CLIENT PAUSE", step.body["ms"], "ALL")
    time.sleep(step.body["ms"] / 1000)
    return True


def _reply_swallowed(rig: Rig, step: Step) -> bool:
    before = rig.proxy.swallowed
    rig.proxy.swallow(step.body["times"])
    bit = _within(rig, lambda: rig.proxy.swallowed > before)
    rig.proxy.swallow(0)
    return bool(bit)


# --- the venue ---------------------------------------------------------------------------------


def _venue_fault(rig: Rig, step: Step) -> bool:
    """Plan it, wait for its first strike, let a fault of some length last, withdraw the rest."""
    if step.deaf_s:
        mute = {"kind": "user_mute", "seconds": step.deaf_s + BITE_S}
        deaf = rig.ask("POST", "/venue/v1/faults", mute)
    told = rig.ask("POST", "/venue/v1/faults", step.body)
    assert told is not None, f"the venue refuses {dict(step.body)}"
    plan_id = int(told["id"])
    bit = _within(rig, lambda: rig.struck(plan_id))
    if bit:
        time.sleep(step.hold_s or step.deaf_s or SHORT_S)
    if step.deaf_s and deaf is not None:
        rig.clear(int(deaf["id"]))
    if step.kind == "ban" and bit:
        time.sleep(step.body["ms"] / 1000)
    rig.clear(plan_id)
    return bool(bit)


def _act(rig: Rig, step: Step) -> bool:
    """Another client's hand on a position that is open."""
    return bool(_within(rig, lambda: _act_now(rig, step)))


def _act_now(rig: Rig, step: Step) -> bool:
    try:
        symbol = next(iter(sorted(rig.r.smembers(rig.keys.positions))), "")
        told: dict[str, str] = rig.r.hgetall(rig.keys.position(symbol)) if symbol else {}
        stop: dict[str, str] = rig.r.hgetall(rig.keys.order(told.get("stop_order", "")))
    except redis.exceptions.RedisError:
        return False
    if told.get("stop_state") != "acked" or not stop.get("exchange_id"):
        return False
    body = _act_body(rig, step, symbol, told, stop)
    return body is not None and rig.ask("POST", "/venue/v1/act", body) is not None


def _act_body(
    rig: Rig, step: Step, symbol: str, told: dict[str, str], stop: dict[str, str]
) -> dict[str, Any] | None:
    """The act as the venue takes it; None where the position is too small for it."""
    tick, lot = filters(rig.get("/fapi/v1/exchangeInfo"), symbol)
    body: dict[str, Any] = {"symbol": symbol}
    if step.kind == "cancel_stop":
        return body | {"what": "cancel", "algoId": int(stop["exchange_id"])}
    body["client"] = step.body["client"]
    if step.kind == "move_stop":
        sign = 1 if told["side"] == "buy" else -1
        trigger = (Decimal(told["stop"]) * (1 - MOVE * sign) / tick).quantize(Decimal(1)) * tick
        algo_id = int(stop["exchange_id"])
        return body | {"what": "move_stop", "algoId": algo_id, "trigger": f"{trigger:f}"}
    share = Decimal(str(step.body["share"]))
    qty = (Decimal(told["qty"]) * share / lot).quantize(Decimal(1), ROUND_DOWN) * lot
    if step.kind == "close" and share > Decimal(str(ALL_OF_IT)):
        return body | {"what": "close"}
    return body | {"what": step.kind, "quantity": f"{qty:f}"} if qty > 0 else None


_BLOWS: Final[dict[str, Callable[[Rig, Step], bool]]] = {
    "kill_holder": _kill_holder,
    "kill_standby": _kill_standby,
    "stop_holder": _stop_holder,
    "redis_kill": _redis_kill,
    "script_flush": _script_flush,
    "client_kill": _client_kill,
    "client_pause": _client_pause,
    "reply_swallowed": _reply_swallowed,
}
