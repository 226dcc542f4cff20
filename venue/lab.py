"""The venue's own calls for what goes wrong: plan faults, see and clear them, act for others."""

from __future__ import annotations

from typing import Any

from venue import acts, faults, limits, listen
from venue.door import own_body
from venue.faults import bad
from venue.orders import Refusal
from venue.rest import Call, Route, Routes, whole


def get_faults(call: Call) -> Any:
    faults.overdue(call.desk.lab, call.now.boot_ms)
    made = call.desk.limits
    told = {"scale": made.scale, "refused": made.refused, "banned": made.banned}
    return faults.told(call.desk.lab) | {"limits": told}


def plan_fault(call: Call) -> Any:
    """Plants what the body says; what strikes at once has struck when this answers."""
    lab = call.desk.lab
    sent = own_body(call.body)
    plan = sent if isinstance(sent, Refusal) else faults.planned(lab, sent, call.now.boot_ms)
    if isinstance(plan, Refusal):
        return plan
    if plan.kind in ("disconnect", "listen_key_expired"):
        del lab.plans[plan.id]
        if plan.kind == "disconnect":
            lab.cuts.append(plan)
        else:
            faults.note(lab, "happened", plan, {})
            listen.expire(call.desk.keys)
    return plan.told()


def clear_faults(call: Call) -> Any:
    """One by `id`, or all; clearing all ends every ban too."""
    text = call.params.get("id")
    plan_id = None if text is None else whole(text)
    if text is not None and (plan_id is None or plan_id not in call.desk.lab.plans):
        return bad("There is no such fault planned.")
    if plan_id is None:
        limits.pardon(call.desk.limits)
    return {"cleared": faults.clear(call.desk.lab, plan_id)}


def do_act(call: Call) -> Any:
    sent = own_body(call.body)
    if isinstance(sent, Refusal):
        return sent
    return acts.act(call.exchange, call.desk.lab, sent, call.now)


FAULT_ROUTES: Routes = {
    ("GET", "/venue/v1/faults"): Route(get_faults, weight=0),
    ("POST", "/venue/v1/faults"): Route(plan_fault, weight=0),
    ("DELETE", "/venue/v1/faults"): Route(clear_faults, weight=0),
}
ROUTES: Routes = {
    **FAULT_ROUTES,
    ("POST", "/venue/v1/act"): Route(do_act, weight=0),
}
