"""Orders: their legs, their states, and the exact parameters that go over the wire.

A leg's client id is a function of the cause, so a repeat is recognisable everywhere. A terminal
state is final, whatever arrives late; only a fill overrides one that was merely inferred. Entry
parameters are made from a gate.Approved and from nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from typing import Final

from msgspec import Struct
from msgspec.structs import replace

from risk.events import (
    CANCEL,
    ENTRY,
    PROTECT,
    RECONCILE,
    TARGET,
    Cancel,
    Query,
    Send,
)
from risk.gate import Approved
from risk.instruments import ZERO, decimal, plain

TRADES_MARGIN_MS: Final = 60_000  # market time
ORDER_PATH: Final = "/fapi/v1/order"
ALGO_PATH: Final = "/fapi/v1/algoOrder"

ENTRY_LEG, STOP_LEG, TARGET_LEG, CLOSE_LEG, EXIT_LEG = "e", "s", "t", "c", "x"
LEG_NAMES: Final = {"e": "entry", "s": "stop", "t": "target", "c": "emergency close", "x": "exit"}
ALGO_LEGS: Final = (STOP_LEG, TARGET_LEG)

TERMINAL: Final = frozenset({"filled", "canceled", "rejected", "expired"})
# From a state, the states it may turn into. "rejected" may have been inferred from -2013 and then
# be contradicted by a fill; the other terminal states were told by the exchange.
NEXT: Final[dict[str, frozenset[str]]] = {
    "intent": frozenset({"sent", "acked", "partial", "unknown"}) | TERMINAL,
    "sent": frozenset({"acked", "partial", "unknown"}) | TERMINAL,
    "unknown": frozenset({"sent", "acked", "partial"}) | TERMINAL,
    "acked": frozenset({"partial", "unknown"}) | TERMINAL,
    "partial": frozenset({"filled", "canceled", "expired"}),
    "rejected": frozenset({"partial", "filled"}),
    "filled": frozenset(),
    "canceled": frozenset(),
    "expired": frozenset(),
}
# The exchange's words in ours.
STATES: Final = {
    "NEW": "acked",
    "PARTIALLY_FILLED": "partial",
    "FILLED": "filled",
    "CANCELED": "canceled",
    "REJECTED": "rejected",
    "EXPIRED": "expired",
    "EXPIRED_IN_MATCH": "expired",
}
ALGO_STATES: Final = {
    "NEW": "acked",
    "TRIGGERING": "acked",
    "TRIGGERED": "acked",
    "FINISHED": "filled",
    "CANCELED": "canceled",
    "REJECTED": "rejected",
    "EXPIRED": "expired",
}


class Order(Struct, frozen=True):
    """One leg of one round trip. `price` is the limit, or the trigger of stop and target."""

    id: str  # client order id
    cause: str  # the round trip: a signal's or a command's id
    leg: str
    symbol: str
    side: str  # buy or sell
    qty: Decimal  # zero for closePosition legs
    price: Decimal
    state: str
    reason: str = ""
    revision: int = 0
    exchange_id: str = ""
    executed: Decimal = ZERO
    created_ms: int = 0  # market time
    updated_ms: int = 0
    epoch: int = 0
    # the plan, carried by the entry so that a restart finds it
    stop: Decimal = ZERO
    target: Decimal = ZERO
    confidence: float = 0.5
    leverage: int = 1
    signal_price: Decimal = ZERO
    mid: Decimal = ZERO
    rule: str = ""

    @property
    def terminal(self) -> bool:
        return self.state in TERMINAL

    @property
    def algo(self) -> bool:
        return self.leg in ALGO_LEGS


def opposite(side: str) -> str:
    return "sell" if side == "buy" else "buy"


def advance(order: Order, state: str, ms: int, reason: str = "") -> Order:
    """The order in its next state, or unchanged where the news is older than what is known."""
    if state == order.state or state not in NEXT[order.state]:
        return order
    return replace(order, state=state, updated_ms=ms, reason=reason or order.reason)


def to_fields(order: Order) -> dict[str, str]:
    """The order:<id> hash."""
    return {
        "id": order.id,
        "cause": order.cause,
        "leg": order.leg,
        "leg_name": LEG_NAMES[order.leg],
        "revision": str(order.revision),
        "symbol": order.symbol,
        "side": order.side,
        "qty": plain(order.qty),
        "price": plain(order.price),
        "state": order.state,
        "reason": order.reason,
        "exchange_id": order.exchange_id,
        "executed_qty": plain(order.executed),
        "created_ms": str(order.created_ms),
        "updated_ms": str(order.updated_ms),
        "epoch": str(order.epoch),
        "stop": plain(order.stop),
        "target": plain(order.target),
        "confidence": repr(order.confidence),
        "leverage": str(order.leverage),
        "signal_price": plain(order.signal_price),
        "arrival_mid": plain(order.mid),
        "rule": order.rule,
    }


def from_fields(fields: Mapping[str, str]) -> Order:
    """Inverse of to_fields; unknown fields are ignored, missing ones take their default."""
    return Order(
        id=fields["id"],
        cause=fields.get("cause", ""),
        leg=fields.get("leg", ENTRY_LEG),
        symbol=fields.get("symbol", ""),
        side=fields.get("side", "buy"),
        qty=decimal(fields.get("qty")),
        price=decimal(fields.get("price")),
        state=fields.get("state", "unknown"),
        reason=fields.get("reason", ""),
        revision=int(fields.get("revision") or 0),
        exchange_id=fields.get("exchange_id", ""),
        executed=decimal(fields.get("executed_qty")),
        created_ms=int(fields.get("created_ms") or 0),
        updated_ms=int(fields.get("updated_ms") or 0),
        epoch=int(fields.get("epoch") or 0),
        stop=decimal(fields.get("stop")),
        target=decimal(fields.get("target")),
        confidence=float(fields.get("confidence") or 0.5),
        leverage=int(fields.get("leverage") or 1),
        signal_price=decimal(fields.get("signal_price")),
        mid=decimal(fields.get("arrival_mid")),
        rule=fields.get("rule", ""),
    )


# --- requests ----------------------------------------------------------------------------------


def entry_request(approved: Approved, order: Order) -> Send:
    """LIMIT IOC at the collar; RESULT, so that the reply tells the final status."""
    if not isinstance(approved, Approved):
        raise TypeError("an entry needs the gate's approval")
    if order.leg != ENTRY_LEG or (order.symbol, order.qty) != (approved.symbol, approved.qty):
        raise ValueError("the approval is for another order")
    return Send(
        method="POST",
        path=ORDER_PATH,
        params={
            "symbol": order.symbol,
            "side": order.side.upper(),
            "type": "LIMIT",
            "timeInForce": "IOC",
            "quantity": plain(order.qty),
            "price": plain(order.price),
            "newClientOrderId": order.id,
            "newOrderRespType": "RESULT",
        },
        about=order.id,
        purpose="entry",
        priority=ENTRY,
        fenced=True,
    )


def protect_request(order: Order) -> Send:
    """A resident stop or target that closes the whole position, whatever its size has become."""
    stop = order.leg == STOP_LEG
    return Send(
        method="POST",
        path=ALGO_PATH,
        params={
            "algoType": "CONDITIONAL",
            "symbol": order.symbol,
            "side": order.side.upper(),
            "type": "STOP_MARKET" if stop else "TAKE_PROFIT_MARKET",
            "triggerPrice": plain(order.price),
            "closePosition": "true",
            "clientAlgoId": order.id,
        },
        about=order.id,
        purpose="stop" if stop else "target",
        priority=PROTECT if stop else TARGET,
    )


def exit_request(order: Order) -> Send:
    """MARKET reduceOnly: harmless to repeat, never more than the position."""
    return Send(
        method="POST",
        path=ORDER_PATH,
        params={
            "symbol": order.symbol,
            "side": order.side.upper(),
            "type": "MARKET",
            "quantity": plain(order.qty),
            "reduceOnly": "true",
            "newClientOrderId": order.id,
            "newOrderRespType": "RESULT",
        },
        about=order.id,
        purpose="exit",
        priority=PROTECT,
    )


def cancel_request(order_id: str, symbol: str, algo: bool) -> Cancel:
    params = (
        {"clientAlgoId": order_id} if algo else {"symbol": symbol, "origClientOrderId": order_id}
    )
    return Cancel(
        method="DELETE",
        path=ALGO_PATH if algo else ORDER_PATH,
        params=params,
        about=order_id,
        purpose="cancel",
        priority=CANCEL,
    )


def query_request(order: Order) -> Query:
    params = (
        {"clientAlgoId": order.id}
        if order.algo
        else {"symbol": order.symbol, "origClientOrderId": order.id}
    )
    return Query(
        method="GET",
        path=ALGO_PATH if order.algo else ORDER_PATH,
        params=params,
        about=order.id,
        purpose="query",
        priority=RECONCILE,
    )


def trades_request(symbol: str, since_ms: int, purpose: str = "trades") -> Query:
    """Executions of a symbol from about a market time on, to be adopted once each.

    Our clock may run ahead of the exchange's, so the question begins earlier; what it brings
    twice is known by its trade id.
    """
    since_ms = max(0, since_ms - TRADES_MARGIN_MS)
    return Query(
        method="GET",
        path="/fapi/v1/userTrades",
        params={"symbol": symbol, "startTime": str(since_ms), "limit": "1000"},
        about=symbol,
        purpose=purpose,
        priority=RECONCILE,
    )


def mode_request() -> Query:
    """One-way or hedge?"""
    return Query("GET", "/fapi/v1/positionSide/dual", {}, "", "mode", RECONCILE)


def position_request(symbol: str) -> Query:
    return Query(
        method="GET",
        path="/fapi/v3/positionRisk",
        params={"symbol": symbol},
        about=symbol,
        purpose="position",
        priority=RECONCILE,
    )
