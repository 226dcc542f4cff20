"""The user stream: what the exchange tells without being asked.

Frames of one kind come in order on one connection, frames of different kinds in none: a fill may
be told before or after the reply to its order, a child's fill before its parent's trigger. All of
it is counted by trade id and by states that only move forward, so order does not matter.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

from risk import journal, orders
from risk.events import Effects, Note, Now, Op, Pushed, Snap
from risk.history import QUOTE_ASSET, book
from risk.instruments import decimal
from risk.orders import STATES, advance
from risk.portfolio import fill_from_push
from risk.protect import forget, handle_fill, record
from risk.replies import take_algo
from risk.state import ORDERS_KEPT_MAX, State, own_legs, pending_entries, put_order, remember

EXECUTIONS: Final = frozenset({"TRADE", "CALCULATED"})
RECENT_MS: Final = 5_000.0  # real time; frames of an ended round trip may still arrive
TRANSFERS: Final = frozenset(
    {"DEPOSIT", "WITHDRAW", "ADMIN_DEPOSIT", "ADMIN_WITHDRAW", "ASSET_TRANSFER", "ADJUSTMENT"}
)


def on_pushed(state: State, event: Pushed, now: Now, out: Effects) -> None:
    frame = event.frame
    kind = frame.get("e")
    if kind == "ORDER_TRADE_UPDATE":
        on_order(state, frame["o"], now, out)
    elif kind == "ALGO_UPDATE":
        on_algo(state, frame, now, out)
    elif kind == "ACCOUNT_UPDATE":
        on_account(state, frame, now, out)


def on_order(state: State, o: Mapping[str, Any], now: Now, out: Effects) -> None:
    """An order's step. Its execution is written before its state: an entry that is over explains
    no position to a successor, one that is open does.
    """
    client_id, exchange_id = str(o["c"]), str(o["i"])
    order = state.orders.get(client_id)
    if order is None:
        order = state.orders.get(state.children.get(exchange_id, ""))
    if order is None:
        order = _leg_by_shape(state, o)
    if order is not None:
        remember(state.children, exchange_id, order.id, ORDERS_KEPT_MAX)
    ops: list[Op] = []
    if order is not None and not order.algo:
        executed = max(decimal(o.get("z")), order.executed)
        made = replace(order, executed=executed, exchange_id=exchange_id)
        made = advance(made, STATES.get(str(o["X"]), ""), int(o["T"]), _reason(o))
        if made != order:
            put_order(state, made)
            ops = journal.order_ops(state, made, now)
            if made.terminal:
                forget(state, "query", made.id)
                forget(state, "surely", made.id)
            if made.leg == orders.ENTRY_LEG and made.terminal and made.executed == 0:
                for leg in own_legs(state, made.cause):
                    if leg.state == "intent":
                        put_order(state, advance(leg, "canceled", int(o["T"]), "not needed"))
                        ops += journal.order_ops(state, state.orders[leg.id], now)
                ops += journal.portfolio_ops(state, now)
    if o["x"] in EXECUTIONS and int(o.get("t") or 0) > 0:
        handle_fill(state, fill_from_push(o), now, out)
    record(state, out, ops, client_id)


def _reason(o: Mapping[str, Any]) -> str:
    code = str(o.get("er", "0"))
    return "" if code == "0" else f"er {code}"


def _leg_by_shape(state: State, o: Mapping[str, Any]) -> orders.Order | None:
    """A triggered leg's child whose ALGO_UPDATE has not come yet: known by its type."""
    position = state.positions.get(str(o["s"]))
    if position is None or o["S"].lower() == position.side:
        return None
    kind = str(o.get("ot") or o.get("o"))
    if not (o.get("cp") or kind in ("STOP_MARKET", "TAKE_PROFIT_MARKET")):
        return None
    wanted = position.target_order if kind == "TAKE_PROFIT_MARKET" else position.stop_order
    return state.orders.get(wanted)


def on_algo(state: State, frame: Mapping[str, Any], now: Now, out: Effects) -> None:
    """A resident leg was accepted, triggered, finished or taken back."""
    o = frame["o"]
    order = state.orders.get(str(o["caid"]))
    if order is None:
        return
    told = {
        "status": str(o.get("X", "")),
        "algo_id": str(o.get("aid") or ""),
        "order_id": str(o.get("ai") or ""),
        "created_ms": str(frame["T"]),
        "reason": str(o.get("rm") or ""),
    }
    take_algo(state, order, told, now, out)


def on_account(state: State, frame: Mapping[str, Any], now: Now, out: Effects) -> None:
    """Wallet, funding and transfers; a position on a symbol that is none of ours is foreign."""
    account = frame["a"]
    reason, ms = str(account.get("m", "")), int(frame["T"])
    ops: list[Op] = []
    for row in account.get("B", ()):
        if row["a"] != QUOTE_ASSET:
            continue
        change, money = decimal(row.get("bc")), state.money
        state.wallet_told_ms = now.boot_ms
        state.money = replace(money, wallet=decimal(row["wb"], money.wallet))
        if reason == "FUNDING_FEE" and change:
            symbol = str(account.get("S") or "".join(p["s"] for p in account.get("P", ())[:1]))
            ops += book(state, "funding", symbol, change, ms)
        elif reason in TRANSFERS and change:
            ops += book(state, "transfer", "", change, ms)
    for row in account.get("P", ()):
        symbol, amount = str(row["s"]), decimal(row.get("pa"))
        if symbol in state.positions or now.boot_ms - state.touched.get(symbol, -1e18) < RECENT_MS:
            continue  # ours, or ours a moment ago
        if amount and not any(order.symbol == symbol for order in pending_entries(state)):
            state.foreign.add(symbol)
            out.add(Note("WARNING", f"foreign position symbol={symbol} qty={amount}"))
        elif not amount and symbol in state.foreign:
            out.add(Snap("foreign position closed"))
    record(state, out, ops, "account")
