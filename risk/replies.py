"""What the exchange answered, and what follows from it.

Three rules hold this together. A refusal means that nothing was done; only then is a reserved
place freed. An unknown outcome stays reserved and is asked for by client id; "no such order" is
believed only after recvWindow has surely passed, twice. An entry is never sent again; a stop and
an exit are, until they stand.
"""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from typing import Any, Final

from msgspec.structs import replace

from risk import journal, orders
from risk.events import (
    RECONCILE,
    Done,
    Effects,
    Note,
    Now,
    Query,
    Refused,
    Replied,
    Throttled,
    Unknown,
)
from risk.instruments import ZERO, decimal
from risk.orders import ALGO_STATES, STATES, Order, advance
from risk.portfolio import fill_from_trade
from risk.protect import (
    FILLS_LATE_MS,
    NAKED_RETRY_MS,
    RETRY_MS,
    TARGET_TRIES_MAX,
    arm_deadline,
    backoff_ms,
    close_position,
    exit_position,
    forget,
    handle_fill,
    leg_gone,
    open_position,
    record,
    retire_legs,
    stop_confirmed,
)
from risk.state import ORDERS_KEPT_MAX, State, put_order, remember

WOULD_TRIGGER: Final = -2021  # the price is beyond the trigger already
HAS_CLOSE_ALL: Final = frozenset({-4130})  # a closePosition order of this kind exists
DUPLICATE_ID: Final = frozenset({-4116, -20132})  # the first send worked
REDUCE_ONLY_REFUSED: Final = -2022
UNKNOWN_ORDER: Final = frozenset({-2011, -2013})
OTHER_MODE: Final = -4061  # the order's side is not of the account's position mode
NOT_TRADING: Final = frozenset({-4108, -4140, -4141})  # delivering, settling, closed
NOT_FOUND_MIN: Final = 2  # times "no such order" must be heard
SETTLE_MS: Final = 1_000.0  # beyond recvWindow, for the exchange's own queue


def on_replied(state: State, event: Replied, now: Now, out: Effects) -> None:
    """Route an answer by the purpose of its request."""
    purpose = event.request.purpose
    handler = _HANDLERS.get(purpose.split(":")[0])
    if handler is not None:
        handler(state, event, now, out)


# --- orders ------------------------------------------------------------------------------------


def _ended(state: State, order: Order, now: Now, out: Effects) -> None:
    """Record an order event; an entry that ended empty, or whose position has come and gone, frees
    its place and its other legs."""
    put_order(state, order)
    ops = journal.order_ops(state, order, now)
    if order.leg == orders.ENTRY_LEG and order.terminal:
        position = state.positions.get(order.symbol)
        if order.executed == 0:
            for leg in state.orders.legs(order.cause):
                if leg.state == "intent" and leg.id != order.id:
                    put_order(state, advance(leg, "canceled", int(now.market_ms), "not needed"))
                    ops += journal.order_ops(state, state.orders[leg.id], now)
        elif position is None or position.signal != order.cause:
            ops += retire_legs(state, order.cause, now, out)
        forget(state, "query", order.id)
    record(state, out, ops + journal.money_ops(state), order.id)


def take_answer(
    state: State, order: Order, body: Mapping[str, Any], now: Now, out: Effects
) -> None:
    """An order's state as told by REST (place, cancel, query): status and executed quantity."""
    status = STATES.get(str(body.get("status", "")), "")
    executed = max(decimal(body.get("executedQty")), order.executed)
    exchange_id = str(body.get("orderId") or order.exchange_id)
    if exchange_id:
        remember(state.children, (order.symbol, exchange_id), order.id, ORDERS_KEPT_MAX)
    fresh = executed > order.executed
    made = replace(order, executed=executed, exchange_id=exchange_id)
    made = advance(made, status, int(now.market_ms)) if status else made
    if made == order:
        return
    state.touched[order.symbol] = now.boot_ms
    if executed > 0 and order.leg == orders.ENTRY_LEG and fresh:
        ms = int(decimal(body.get("updateTime"), Decimal(int(now.market_ms))))
        if order.symbol not in state.positions:  # written first: an entry that is over explains
            open_position(state, made, ms, now, out)  # no position to a successor
    _ended(state, made, now, out)
    if fresh:
        arm_deadline(state, out, "fills", order.id, now.boot_ms + FILLS_LATE_MS)


def _on_entry(state: State, event: Replied, now: Now, out: Effects) -> None:
    order = state.orders.get(event.request.about)
    if order is None or order.terminal:
        return
    result = event.result
    if isinstance(result, Done):
        take_answer(state, order, result.body, now, out)
    elif isinstance(result, Unknown) or (
        isinstance(result, Refused) and result.code in DUPLICATE_ID
    ):
        _doubt(state, order, result.reason, now, out)
    else:
        code = result.code if isinstance(result, Refused) else 429
        reason = f"{code} {result.reason}"
        _ended(state, advance(order, "rejected", int(now.market_ms), reason), now, out)
        out.add(Note("WARNING", f"entry refused order={order.id} code={code} {result.reason}"))
        if code == OTHER_MODE:
            state.hedged = True
            arm_deadline(state, out, "mode", "", now.boot_ms)
        rules = state.instruments.get(order.symbol)
        if code in NOT_TRADING and rules is not None:  # until its rules are read again
            state.instruments[order.symbol] = replace(rules, status=f"refused with {code}")


def _doubt(state: State, order: Order, reason: str, now: Now, out: Effects) -> None:
    """Nobody knows: keep the place reserved and ask."""
    made = advance(order, "unknown", int(now.market_ms), reason)
    if made != order:
        put_order(state, made)
        record(state, out, journal.order_ops(state, made, now), order.id)
    state.tries[("lost", order.id)] = 0
    if ("surely", order.id) not in state.deadlines:
        surely_ms = now.boot_ms + state.limits.recv_window_ms + SETTLE_MS
        state.deadlines[("surely", order.id)] = surely_ms
    arm_deadline(state, out, "query", order.id, now.boot_ms + RETRY_MS)


def _on_query(state: State, event: Replied, now: Now, out: Effects) -> None:
    order = state.orders.get(event.request.about)
    if order is None:
        return
    result = event.result
    if isinstance(result, Done):
        forget(state, "query", order.id)
        forget(state, "surely", order.id)
        forget(state, "cancel", order.id)
        if order.algo:
            take_algo(state, order, _algo_from_rest(result.body), now, out)
        else:
            take_answer(state, order, result.body, now, out)
            _ask_again(state, state.orders[order.id], now, out)
            position = state.positions.get(order.symbol)
            if position is not None and position.qty == 0:  # open, or over before we asked?
                out.add(orders.trades_request(order.symbol, position.opened_ms - 1))
        return
    if isinstance(result, Refused) and result.code in UNKNOWN_ORDER:
        _not_found(state, order, now, out)
    else:
        arm_deadline(
            state, out, "query", order.id, now.boot_ms + backoff_ms(state, "query", order.id)
        )


def _ask_again(state: State, order: Order, now: Now, out: Effects) -> None:
    """An entry is IOC: an answer that it still rests is asked again until it is over."""
    if not order.terminal and order.leg == orders.ENTRY_LEG:
        pause_ms = backoff_ms(state, "query", order.id)
        arm_deadline(state, out, "query", order.id, now.boot_ms + pause_ms)


def _not_found(state: State, order: Order, now: Now, out: Effects) -> None:
    """No such order: true at last only when the request can no longer arrive, and heard twice."""
    if order.terminal:
        forget(state, "query", order.id)
        return
    heard = state.tries.get(("lost", order.id), 0) + 1
    state.tries[("lost", order.id)] = heard
    surely_ms = state.deadlines.get(("surely", order.id), now.boot_ms)
    if heard < NOT_FOUND_MIN or now.boot_ms < surely_ms:
        at_ms = max(now.boot_ms + backoff_ms(state, "query", order.id), surely_ms)
        arm_deadline(state, out, "query", order.id, at_ms)
        return
    for kind in ("query", "surely", "lost", "cancel"):
        forget(state, kind, order.id)
    _ended(state, advance(order, "rejected", int(now.market_ms), "not placed"), now, out)
    if order.algo:
        leg_gone(state, state.orders[order.id], now, out)


# --- protection --------------------------------------------------------------------------------


def _algo_from_rest(body: Mapping[str, Any]) -> dict[str, str]:
    return {
        "status": str(body.get("algoStatus") or "NEW"),
        "algo_id": str(body.get("algoId") or ""),
        "order_id": str(body.get("actualOrderId") or ""),
        "created_ms": str(body.get("createTime") or ""),
        "reason": str(body.get("rm") or ""),
    }


def take_algo(state: State, order: Order, told: Mapping[str, str], now: Now, out: Effects) -> None:
    """A resident leg's state as told by REST or by the user stream."""
    if told["order_id"]:
        remember(state.children, (order.symbol, told["order_id"]), order.id, ORDERS_KEPT_MAX)
    status = ALGO_STATES.get(told["status"], "")
    made = replace(order, exchange_id=told["algo_id"] or order.exchange_id)
    made = advance(made, status, int(now.market_ms), told["reason"]) if status else made
    if made != order:
        if made.state != order.state:
            state.touched[order.symbol] = now.boot_ms
        put_order(state, made)
        record(state, out, journal.order_ops(state, made, now), order.id)
    position = state.positions.get(order.symbol)
    if position is None:
        return
    if status == "acked" and made.state == "acked":  # a late NEW revives no leg that has ended
        created_ms = float(told["created_ms"] or now.market_ms)
        stop_confirmed(state, made, created_ms, now, out)
        if position.target_order == order.id and position.target_state != "acked":
            state.positions[order.symbol] = replace(position, target_state="acked")
            ops = journal.position_ops(state.keys, state.positions[order.symbol])
            record(state, out, ops, order.symbol)
    elif status in ("canceled", "expired", "rejected"):
        leg_gone(state, made, now, out)


def _on_stop(state: State, event: Replied, now: Now, out: Effects) -> None:
    order, result = state.orders.get(event.request.about), event.result
    if order is None:
        return
    if isinstance(result, Done):
        take_algo(state, order, _algo_from_rest(result.body), now, out)
        if order.symbol not in state.positions and not state.orders[order.id].terminal:
            out.add(orders.cancel_request(order.id, order.symbol, algo=True))  # it came too late
            arm_deadline(state, out, "cancel", order.id, now.boot_ms + RETRY_MS * 4)
        return
    if isinstance(result, Refused) and result.code == WOULD_TRIGGER:
        _ended(state, advance(order, "rejected", int(now.market_ms), "would trigger"), now, out)
        exit_position(state, order.symbol, "stop passed", now, out)
    elif isinstance(result, Refused) and result.code in HAS_CLOSE_ALL | DUPLICATE_ID:
        out.add(algos_request(order.symbol))  # protected already: learn by which order
    else:
        _again(state, order, "stop", result, now, out)


def _on_target(state: State, event: Replied, now: Now, out: Effects) -> None:
    order, result = state.orders.get(event.request.about), event.result
    if order is None:
        return
    if isinstance(result, Done):
        _on_stop(state, event, now, out)
    elif isinstance(result, Refused) and result.code == WOULD_TRIGGER:
        _ended(state, advance(order, "rejected", int(now.market_ms), "would trigger"), now, out)
        exit_position(state, order.symbol, "target", now, out)
    elif isinstance(result, Refused) and result.code in HAS_CLOSE_ALL | DUPLICATE_ID:
        out.add(algos_request(order.symbol))
    elif state.tries.get(("target", order.symbol), 0) < TARGET_TRIES_MAX:
        _again(state, order, "target", result, now, out)
    else:
        _ended(state, advance(order, "rejected", int(now.market_ms), _why(result)), now, out)
        leg_gone(state, state.orders[order.id], now, out)
        out.add(Note("WARNING", f"no target symbol={order.symbol} {_why(result)}"))


def _why(result: object) -> str:
    code = result.code if isinstance(result, Refused) else ""
    return f"{code} {getattr(result, 'reason', '')}".strip()


def _again(state: State, order: Order, kind: str, result: object, now: Now, out: Effects) -> None:
    """Send the same leg once more after a pause, a short one while the naked deadline runs."""
    if order.symbol not in state.positions:
        if isinstance(result, Unknown):
            arm_deadline(state, out, "cancel", order.id, now.boot_ms + RETRY_MS)
        else:
            _ended(state, advance(order, "rejected", int(now.market_ms), _why(result)), now, out)
        return
    pause_ms = backoff_ms(state, kind, order.symbol)
    if kind == "stop" and ("naked", order.symbol) in state.deadlines:
        pause_ms = NAKED_RETRY_MS
    if isinstance(result, Throttled):
        pause_ms = max(pause_ms, result.until_ms - now.boot_ms)
    out.add(Note("WARNING", f"{kind} not placed symbol={order.symbol} {_why(result)}"))
    if isinstance(result, Unknown):  # it may rest, or have ended with its position: ask first
        arm_deadline(state, out, "leg", order.id, now.boot_ms + pause_ms)
    else:
        arm_deadline(state, out, kind, order.symbol, now.boot_ms + pause_ms)


def _on_leg(state: State, event: Replied, now: Now, out: Effects) -> None:
    """Whether a leg that was sent rests: it is sent again only where it does not. The exchange
    would take its id a second time once the first order of that id is over."""
    order, result = state.orders.get(event.request.about), event.result
    if order is None or order.terminal:
        return
    if isinstance(result, Done):
        take_algo(state, order, _algo_from_rest(result.body), now, out)
    elif order.symbol not in state.positions:
        return  # its cancel is on the way
    elif isinstance(result, Refused) and result.code in UNKNOWN_ORDER:
        kind = "stop" if order.leg == orders.STOP_LEG else "target"
        arm_deadline(state, out, kind, order.symbol, now.boot_ms)
    else:
        naked = order.leg == orders.STOP_LEG and ("naked", order.symbol) in state.deadlines
        pause_ms = NAKED_RETRY_MS if naked else backoff_ms(state, "leg", order.id)
        arm_deadline(state, out, "leg", order.id, now.boot_ms + pause_ms)


def algos_request(symbol: str) -> Query:
    return Query("GET", "/fapi/v1/openAlgoOrders", {"symbol": symbol}, symbol, "algos", RECONCILE)


def _on_algos(state: State, event: Replied, now: Now, out: Effects) -> None:
    """The resident orders of a symbol: those of ours are confirmed, one of ours stands in."""
    symbol = event.request.about
    if not isinstance(event.result, Done) or symbol not in state.positions:
        if symbol in state.positions:
            arm_deadline(state, out, "stop", symbol, now.boot_ms + RETRY_MS)
        return
    for row in event.result.body:
        client_id = str(row.get("clientAlgoId", ""))
        known = state.orders.get(client_id)
        if known is not None and known.terminal:  # over for us: make room for the next revision
            out.add(orders.cancel_request(known.id, symbol, algo=True))
        elif known is not None:
            _stand_in(state, known, now, out)
            take_algo(state, known, _algo_from_rest(row), now, out)
        elif row.get("orderType") == "STOP_MARKET" and row.get("closePosition") is True:
            position = state.positions[symbol]
            if position.stop_order != client_id:
                _refused_for_another(state, position.stop_order, now, out)
            state.positions[symbol] = replace(position, stop_order=client_id, stop_state="acked")
            forget(state, "naked", symbol)
            out.add(Note("WARNING", f"protected by another stop symbol={symbol} id={client_id}"))
    if state.positions[symbol].stop_state != "acked":
        arm_deadline(state, out, "stop", symbol, now.boot_ms + RETRY_MS)


def _stand_in(state: State, resting: Order, now: Now, out: Effects) -> None:
    """A leg of this position rests already: it is the one, not the revision that was refused."""
    position = state.positions[resting.symbol]
    if resting.cause != position.signal:
        return
    if resting.leg == orders.STOP_LEG and position.stop_state != "acked":
        refused = position.stop_order
        state.positions[resting.symbol] = replace(position, stop_order=resting.id)
    elif resting.leg == orders.TARGET_LEG and position.target_state != "acked":
        refused = position.target_order
        state.positions[resting.symbol] = replace(position, target_order=resting.id)
    else:
        return
    if refused != resting.id:
        _refused_for_another(state, refused, now, out)


def _refused_for_another(state: State, order_id: str, now: Now, out: Effects) -> None:
    """The exchange holds one leg of a kind, and it is another one: this one is over."""
    order = state.orders.get(order_id)
    if order is not None and not order.terminal:
        _ended(state, advance(order, "rejected", int(now.market_ms), "another stands"), now, out)


# --- leaving -----------------------------------------------------------------------------------


def _on_exit(state: State, event: Replied, now: Now, out: Effects) -> None:
    order, result = state.orders.get(event.request.about), event.result
    if order is None:
        return
    symbol = order.symbol
    if isinstance(result, Done):
        take_answer(state, order, result.body, now, out)
        return
    if isinstance(result, Refused):
        _ended(state, advance(order, "rejected", int(now.market_ms), _why(result)), now, out)
        if result.code == REDUCE_ONLY_REFUSED:
            out.add(orders.position_request(symbol))  # is there anything left to close?
        out.add(Note("ERROR", f"exit refused symbol={symbol} {_why(result)}"))
    pause_ms = backoff_ms(state, "exit", symbol)
    if isinstance(result, Throttled):
        pause_ms = max(pause_ms, result.until_ms - now.boot_ms)
    if symbol in state.positions:
        arm_deadline(state, out, "exit", symbol, now.boot_ms + pause_ms)


def _on_cancel(state: State, event: Replied, now: Now, out: Effects) -> None:
    order, result = state.orders.get(event.request.about), event.result
    if order is None or order.terminal:
        return
    if isinstance(result, Done):
        forget(state, "cancel", order.id)
        _ended(state, advance(order, "canceled", int(now.market_ms), "sibling"), now, out)
    elif isinstance(result, Refused) and result.code in UNKNOWN_ORDER:
        out.add(orders.query_request(order))  # it ended by itself: ask how
    else:
        arm_deadline(
            state, out, "cancel", order.id, now.boot_ms + backoff_ms(state, "cancel", order.id)
        )


def trace(state: State, symbol: str, amount: Decimal, now: Now) -> Query | None:
    """Ask how a position came to differ: first its resident legs, then the trades they made."""
    position = state.positions.get(symbol)
    if position is None:
        return None
    for order_id in (position.stop_order, position.target_order):
        order = state.orders.get(order_id)
        if order is not None and order.state == "acked":
            return replace(orders.query_request(order), purpose=f"trace:{amount}:{now.boot_ms}")
    purpose = f"settle:{amount}:{now.boot_ms}"
    return orders.trades_request(symbol, position.opened_ms - 1, purpose)


def _on_trace(state: State, event: Replied, now: Now, out: Effects) -> None:
    """A leg's end links the trades of its child to it; then the next leg, then the trades."""
    order = state.orders.get(event.request.about)
    position = state.positions.get(order.symbol) if order else None
    if order is None or position is None:
        return
    if isinstance(event.result, Done):
        take_algo(state, order, _algo_from_rest(event.result.body), now, out)
    about = event.request.purpose.removeprefix("trace:")
    target = state.orders.get(position.target_order)
    if target is not None and target.id != order.id and target.state == "acked":
        out.add(replace(orders.query_request(target), purpose=f"trace:{about}"))
    else:
        out.add(orders.trades_request(order.symbol, position.opened_ms - 1, f"settle:{about}"))


def _on_trades(state: State, event: Replied, now: Now, out: Effects) -> None:
    """Adopt executions that the user stream did not bring; each counts once."""
    symbol = event.request.about
    if not isinstance(event.result, Done):
        return
    changed_ms = state.touched.get(symbol, -1e18)
    for row in sorted(event.result.body, key=lambda entry: int(entry["id"])):
        handle_fill(state, fill_from_trade(row), now, out)
    if event.request.purpose.startswith("settle:"):
        amount, asked_ms = event.request.purpose.split(":")[1:]
        if changed_ms <= float(asked_ms):  # else the size is older than what we know
            settle(state, symbol, Decimal(amount), now, out)


def _on_position(state: State, event: Replied, now: Now, out: Effects) -> None:
    """The exchange's size of a position after a refused exit: fetch what explains a difference."""
    symbol = event.request.about
    position = state.positions.get(symbol)
    if position is None or not isinstance(event.result, Done):
        return
    rows = [row for row in event.result.body if row.get("symbol") == symbol]
    amount = sum((decimal(row["positionAmt"]) for row in rows), start=ZERO)
    differs = amount != position.signed_qty or position.qty == 0  # 0: its trades were never told
    asked = trace(state, symbol, amount, now) if differs else None
    if asked is not None:
        out.add(asked)


def settle(state: State, symbol: str, amount: Decimal, now: Now, out: Effects) -> None:
    """All known trades are counted; what still differs is the exchange's to say."""
    position = state.positions.get(symbol)
    if position is None or (position.signed_qty == amount and position.qty > 0):
        return
    out.add(
        Note("ERROR", f"corrected symbol={symbol} ours={position.signed_qty} exchange={amount}")
    )
    if amount * position.sign <= 0:
        close_position(state, position, position.exit_reason or "exchange", now, out)
        return
    state.positions[symbol] = replace(position, qty=abs(amount))
    record(state, out, journal.position_ops(state.keys, state.positions[symbol]), symbol)


def _on_mode(state: State, event: Replied, now: Now, out: Effects) -> None:
    """Entries go on when the account is in one-way mode again; without an answer it is asked on."""
    if isinstance(event.result, Done):
        state.hedged = event.result.body.get("dualSidePosition") in (True, "true")
        if not state.hedged:
            forget(state, "mode", "")
            out.add(Note("WARNING", "the account is in one-way mode"))


_HANDLERS: Final = {
    "entry": _on_entry,
    "stop": _on_stop,
    "target": _on_target,
    "exit": _on_exit,
    "cancel": _on_cancel,
    "query": _on_query,
    "leg": _on_leg,
    "algos": _on_algos,
    "trades": _on_trades,
    "settle": _on_trades,
    "trace": _on_trace,
    "position": _on_position,
    "mode": _on_mode,
}
