"""Signed REST for what changes many orders, or one later: amendments, batches, countdowns, margin.

A batch answers 200 with one row for each element, in its place; what is refused is a row with
code and msg and does not stop the others.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from decimal import Decimal
from typing import Any

import orjson

from venue import amend, timers
from venue.checks import (
    DECIMAL,
    PRECISION,
    PRICE_MATCHES,
    SYMBOL_UNKNOWN,
    mandatory,
    places,
    side_refusal,
)
from venue.house import refresh, tell
from venue.matching import watched
from venue.orders import BOTH, ZERO, Refusal
from venue.public import number
from venue.rest import SIGNED, Call, Route, Routes
from venue.trading import (
    NO_SUCH_ORDER,
    cancel_order,
    find_order,
    place_order,
    shown,
)

PLACED_MAX, CANCELED_MAX = 5, 10
HISTORY_LIMIT, HISTORY_LIMIT_MAX = 50, 100
MARGIN_DIGITS = 8
COUNTDOWN_MS_MAX = 366 * 86_400_000  # no order lives longer
LONG_MAX = (1 << 63) - 1  # ids and times of the exchange are longs


def _change(params: dict[str, str]) -> amend.Change | Refusal:
    if params.get("side") not in ("BUY", "SELL"):
        return Refusal(-1117, "Invalid side.") if params.get("side") else mandatory("side")
    match = params.get("priceMatch", "NONE")
    if match not in PRICE_MATCHES | {"NONE"}:
        return mandatory("priceMatch")
    if match != "NONE" and params.get("price"):
        return Refusal(-1106, "Parameter 'price' sent when not required.")
    for name in ("quantity", "price") if match == "NONE" else ("quantity",):
        if not DECIMAL.match(params.get(name, "")):
            return mandatory(name)
    modify_id = number(params, "modifyId") or 0
    if modify_id > LONG_MAX:
        return Refusal(-1130, "Data sent for parameter 'modifyId' is not valid.")
    sent = params.get("reduceOnly")
    return amend.Change(
        params["side"],
        Decimal(params["quantity"]),
        Decimal(params["price"]) if match == "NONE" else ZERO,
        None if sent is None else sent.lower() == "true",
        modify_id,
        match,
    )


def amend_order(call: Call) -> Any:
    change = _change(call.params)
    if isinstance(change, Refusal):
        return change
    order = find_order(call)
    if isinstance(order, Refusal):
        return order
    exchange = call.exchange
    if order is None or order.id not in exchange.account.orders:
        return NO_SUCH_ORDER
    refresh(exchange, order.symbol)
    changed, events = amend.amend(exchange.account, order, change, call.now.market_ms)
    tell(exchange, events)
    return changed if isinstance(changed, Refusal) else shown(call, changed, False)


def amendments(call: Call) -> Any:
    """Newest first."""
    order = find_order(call)
    if isinstance(order, Refusal):
        return order
    if order is None:
        return NO_SUCH_ORDER
    start, end = number(call.params, "startTime"), number(call.params, "endTime")
    rows = [
        row
        for row in reversed(call.exchange.account.amendments)
        if row["orderId"] == order.id
        and (start is None or row["time"] >= start)
        and (end is None or row["time"] <= end)
    ]
    return rows[: min(number(call.params, "limit") or HISTORY_LIMIT, HISTORY_LIMIT_MAX)]


def texts(element: Any) -> dict[str, str] | None:
    """An element as parameters: every value is text, as in a query."""
    if not isinstance(element, dict):
        return None
    out = {}
    for key, value in element.items():
        if isinstance(value, bool):
            out[key] = str(value).lower()
        elif isinstance(value, float):
            out[key] = f"{Decimal(str(value)):f}"
        elif isinstance(value, str | int):
            out[key] = str(value)
    return out


def elements(params: dict[str, str]) -> list[Any] | None:
    """The list in `batchOrders`; None when it is not one."""
    try:
        wanted = orjson.loads(params.get("batchOrders", ""))
    except orjson.JSONDecodeError:
        return None
    return wanted if isinstance(wanted, list) and wanted else None


def order_count(params: dict[str, str]) -> int:
    """How many orders a batch counts for in the short window."""
    wanted = elements(params)
    return min(len(wanted), PLACED_MAX) if wanted else 1


def _each(call: Call, handler: Callable[[Call], Any]) -> Any:
    wanted = elements(call.params)
    if wanted is None:
        return mandatory("batchOrders")
    if len(wanted) > PLACED_MAX:
        return Refusal(-4082, f"Invalid number of batch place orders: {len(wanted)}")
    return [_row(call, handler, texts(element)) for element in wanted]


def _row(call: Call, handler: Callable[[Call], Any], params: dict[str, str] | None) -> Any:
    answer: Any
    if params is None:
        answer = mandatory("batchOrders")
    elif params.get("symbol") and params["symbol"] not in call.exchange.index:
        answer = SYMBOL_UNKNOWN
    else:
        answer = handler(replace(call, params=params))
    return {"code": answer.code, "msg": answer.msg} if isinstance(answer, Refusal) else answer


def place_batch(call: Call) -> Any:
    return _each(call, place_order)


def amend_batch(call: Call) -> Any:
    return _each(call, amend_order)


def _listed(params: dict[str, str], name: str) -> list[str] | Refusal:
    """A JSON list of ids; clients write the name in lower case too."""
    text = params.get(name) or params.get(name.lower(), "")
    try:
        ids = orjson.loads(text) if text else []
    except orjson.JSONDecodeError:
        ids = None
    if not isinstance(ids, list) or len(ids) > CANCELED_MAX:
        return Refusal(-1130, f"Data sent for parameter '{name}' is not valid.")
    return [str(item) for item in ids]


def cancel_batch(call: Call) -> Any:
    symbol = call.params.get("symbol")
    if not symbol:
        return mandatory("symbol")
    for name, key in (("orderIdList", "orderId"), ("origClientOrderIdList", "origClientOrderId")):
        ids = _listed(call.params, name)
        if isinstance(ids, Refusal):
            return ids
        if ids:
            return [_row(call, cancel_order, {"symbol": symbol, key: one}) for one in ids]
    return mandatory("orderIdList")


def countdown(call: Call) -> Any:
    """Real milliseconds, as all windows are: the market's clock may run faster."""
    symbol, real_ms = call.params.get("symbol"), number(call.params, "countdownTime")
    if not symbol:
        return mandatory("symbol")
    if real_ms is None:
        return mandatory("countdownTime")
    market_ms = min(real_ms, COUNTDOWN_MS_MAX) * call.exchange.setup.speed
    deadline_ms = call.now.market_ms + int(market_ms) if real_ms else 0
    timers.start_countdown(call.exchange.account, symbol, deadline_ms)
    call.exchange.dirty = True
    return {"symbol": symbol, "countdownTime": str(real_ms)}


def move_margin(call: Call) -> Any:
    symbol, kind = call.params.get("symbol"), number(call.params, "type")
    text = call.params.get("amount", "")
    if not symbol:
        return mandatory("symbol")
    if not DECIMAL.match(text):
        return mandatory("amount")
    if kind not in (amend.ADD, amend.REDUCE):
        return mandatory("type")
    side = call.params.get("positionSide") or BOTH
    refusal = side_refusal(side, call.exchange.account.dual)
    if refusal is not None:
        return refusal
    moved = Decimal(text)
    if places(moved) > MARGIN_DIGITS:
        return PRECISION
    exchange = call.exchange
    for name in {symbol, *watched(exchange.account)}:
        refresh(exchange, name)
    done = amend.move_margin(exchange.account, symbol, moved, kind, call.now.market_ms, side)
    if isinstance(done, Refusal):
        return done
    tell(exchange, done)
    msg = "Successfully modify position margin."
    return {"amount": float(moved), "code": 200, "msg": msg, "type": kind}


def margin_moves(call: Call) -> Any:
    symbol, kind = call.params.get("symbol"), number(call.params, "type")
    if not symbol:
        return mandatory("symbol")
    start, end = number(call.params, "startTime"), number(call.params, "endTime")
    rows = [
        row
        for row in call.exchange.account.margin_moves
        if row["symbol"] == symbol
        and (kind is None or row["type"] == kind)
        and (start is None or row["time"] >= start)
        and (end is None or row["time"] <= end)
    ]
    return rows[-(number(call.params, "limit") or 500) :]


_V1 = "/fapi/v1/"
ROUTES: Routes = {
    ("PUT", _V1 + "order"): Route(amend_order, SIGNED, 0, 1),
    ("GET", _V1 + "orderAmendment"): Route(amendments, SIGNED),
    ("POST", _V1 + "batchOrders"): Route(place_batch, SIGNED, 5, 1, counted=order_count),
    ("PUT", _V1 + "batchOrders"): Route(amend_batch, SIGNED, 5, 1, counted=order_count),
    ("DELETE", _V1 + "batchOrders"): Route(cancel_batch, SIGNED),
    ("POST", _V1 + "countdownCancelAll"): Route(countdown, SIGNED, 10),
    ("POST", _V1 + "positionMargin"): Route(move_margin, SIGNED),
    ("GET", _V1 + "positionMargin/history"): Route(margin_moves, SIGNED),
}
