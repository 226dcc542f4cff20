"""One request at the venue's door: the fault lab first, then limits, signature and handler. Pure.

What comes back says what to send, when, or that the connection is to be closed without a word.
A fault that executes lets everything happen as if nothing were wrong, and only then lies.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from typing import Any

import orjson

from venue import faults, limits, rest
from venue.batch import elements
from venue.checks import IMMEDIATE
from venue.faults import Plan
from venue.house import House, Moment
from venue.orders import Refusal
from venue.rest import OWN, Desk, H, Reply, RouteOf

EXECUTED = ("reply_lost", "reply_late", "unknown_executed", "timeout_executed")
TOLD = (
    "ban",
    "limit",
    "any_code",
    "request_lost",
    "unknown_not_executed",
    "timeout_not_executed",
    "unavailable",
    "internal_error",
    "bad_gateway",
)
ORDERS = ("/fapi/v1/order", "/fapi/v1/algoOrder", "/fapi/v1/batchOrders")
UNKNOWN = Refusal(-1000, "Unknown error, please check your request or try again later.", 503)
TIMEOUT = Refusal(
    -1007,
    "Timeout waiting for response from backend server. Send status unknown; "
    "execution status unknown.",
    408,
)
INTERNAL = Refusal(-1001, "Internal error; unable to process your request. Please try again.", 503)
BUSY = Refusal(
    -1008,
    "Request throttled by system-level protection. Reduce-only/close-position orders are exempt. "
    "Please try again.",
    503,
)
UNAVAILABLE = Reply(503, b"Service Unavailable.", {}, "text/plain")
BAD_GATEWAY = Reply(
    502,
    b"<html>\r\n<head><title>502 Bad Gateway</title></head>\r\n<body>\r\n"
    b"<center><h1>502 Bad Gateway</h1></center>\r\n</body>\r\n</html>\r\n",
    {},
    "text/html",
)
PAGES = {"unavailable": UNAVAILABLE, "bad_gateway": BAD_GATEWAY}
REFUSALS = {
    "unknown_executed": UNKNOWN,
    "unknown_not_executed": UNKNOWN,
    "timeout_executed": TIMEOUT,
    "timeout_not_executed": TIMEOUT,
    "internal_error": INTERNAL,
    "busy": BUSY,
    "would_trigger": IMMEDIATE,
}


@dataclass(frozen=True, slots=True)
class Asked:
    """A request as it came."""

    method: str
    path: str
    query: bytes
    body: bytes
    key: str
    ip: str  # who asks: limits are counted by it


@dataclass(frozen=True, slots=True)
class Answer:
    """None: close the connection without a word."""

    reply: Reply | None
    late_ms: int = 0


def _facts(asked: Asked, params: dict[str, str]) -> dict[str, Any]:
    names = ("newClientOrderId", "clientAlgoId", "origClientOrderId")
    return {
        "method": asked.method,
        "path": asked.path,
        "symbol": params.get("symbol", ""),
        "side": params.get("side", ""),
        "type": params.get("type", ""),
        "reduceOnly": params.get("reduceOnly", "").lower() == "true",
        "closePosition": params.get("closePosition", "").lower() == "true",
        "client_id": next((params[n] for n in names if params.get(n)), ""),
    }


def facts_of(asked: Asked) -> list[dict[str, Any]]:
    """What a request can be told by: one entry, or one for each order of a batch."""
    if asked.query.count(b"&") + asked.body.count(b"&") >= rest.PARAMETERS_MAX:
        return [_facts(asked, {})]
    params = rest.parameters(asked.query, asked.body)
    batch = elements(params) if asked.path.endswith("/batchOrders") else None
    rows = [one for one in (batch or []) if isinstance(one, dict)]
    texts = [{str(k): str(v) for k, v in one.items()} for one in rows]
    return [_facts(asked, one) for one in texts or [params]]


def _met(
    desk: Desk, kinds: tuple[str, ...], facts: list[dict[str, Any]], now: Moment
) -> Plan | None:
    """The plan that meets the request, by whichever of its orders; at most one."""
    struck = (faults.strike(desk.lab, kinds, one, now.boot_ms) for one in facts)
    return next((plan for plan in struck if plan is not None), None)


def _instead(
    house: House, desk: Desk, asked: Asked, facts: list[dict[str, Any]], now: Moment
) -> Answer | None:
    """What a request is told that is not executed; None lets it through."""
    plan = _met(desk, TOLD, facts, now)
    orders = asked.method == "POST" and asked.path in ORDERS
    if plan is None and orders:
        openers = [f for f in facts if not (f["reduceOnly"] or f["closePosition"])]
        plan = _met(desk, ("busy",), openers, now)
        if plan is None and asked.path == ORDERS[1]:
            plan = _met(desk, ("would_trigger",), facts, now)
    if plan is None:
        return None
    if plan.kind == "request_lost":
        return Answer(None)
    if plan.kind in PAGES:
        return Answer(PAGES[plan.kind])
    if plan.kind == "any_code":
        values = plan.values
        return Answer(rest.refuse(Refusal(values["code"], values["msg"], values["http"]), {}))
    speed = house.setup.speed
    if plan.kind == "limit":
        wait_s = limits.minute_wait_s(now.market_ms, speed)
        return Answer(rest.refuse(limits.over_weight(), {"Retry-After": str(wait_s)}))
    if plan.kind == "ban":
        real_ms = plan.values["ms"]
        ms = int(real_ms * speed) if real_ms > 0 else limits.BAN_MS
        limits.ban(desk.limits, asked.ip, ms, now.market_ms)
        return None  # and every call until then is told so by the limits
    return Answer(rest.refuse(REFUSALS[plan.kind], {}))


def _share(house: House, facts: dict[str, Any], asked: Asked, share: Decimal) -> Decimal:
    """How much of an order may be taken at once: whole steps."""
    text = rest.parameters(asked.query, asked.body).get("quantity", "")
    try:
        qty = Decimal(text)
        step = house.account.specs[facts["symbol"]].step
        return qty * share // step * step
    except (InvalidOperation, KeyError):
        return house.account.taken_max  # it will be refused anyway


def handle(
    house: H,
    desk: Desk,
    routes: Mapping[tuple[str, str], RouteOf[H]],
    asked: Asked,
    now: Moment,
) -> Answer:
    """One request, and whatever the lab has planned for it."""

    def call() -> Reply:
        return rest.handle(
            house,
            desk,
            routes,
            asked.method,
            asked.path,
            asked.query,
            asked.body,
            asked.key,
            now,
            asked.ip,
        )

    if asked.path.startswith(OWN) or not desk.lab.plans:
        return Answer(call())
    facts = facts_of(asked)
    instead = _instead(house, desk, asked, facts, now)
    if instead is not None:
        return instead
    plan = _met(desk, EXECUTED, facts, now)
    reply = _part(house, desk, asked, facts[0], now, call)
    if plan is None:
        return Answer(reply)
    if plan.kind == "reply_lost":
        return Answer(None)
    if plan.kind == "reply_late":
        return Answer(reply, max(0, plan.values["ms"]))
    return Answer(rest.refuse(REFUSALS[plan.kind], {}))


def _part(
    house: House,
    desk: Desk,
    asked: Asked,
    facts: dict[str, Any],
    now: Moment,
    call: Callable[[], Reply],
) -> Reply:
    """Executes; an order that is to be filled in part takes no more than its share at once."""
    plan = None
    fok = b"timeInForce=FOK" in asked.query + b"&" + asked.body  # all or nothing stays so
    if asked.method == "POST" and asked.path == ORDERS[0] and not fok:
        plan = faults.strike(desk.lab, ("partial_fill",), facts, now.boot_ms)
    if plan is None:
        return call()
    account = house.account
    before = account.taken_max
    account.taken_max = _share(house, facts, asked, plan.values["share"])
    try:
        return call()
    finally:
        account.taken_max = before


def own_body(body: bytes) -> Any:
    """The JSON of a call to the venue itself; a Refusal when it is none."""
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError:
        return faults.bad("The body is not JSON.")
