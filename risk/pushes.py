"""The user stream: what the exchange tells without being asked.

Frames of one kind come in order on one connection, frames of different kinds in none: a fill may
be told before or after the reply to its order, a child's fill before its parent's trigger. All of
it is counted by trade id and by states that only move forward, so order does not matter.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from msgspec.structs import replace

from risk import income, journal, orders
from risk.events import Effects, Note, Now, Op, Pushed, Snap
from risk.instruments import ZERO, decimal
from risk.orders import ALGO_STATES, STATES, advance
from risk.portfolio import fill_from_push
from risk.protect import forget, handle_fill, leg_gone, record
from risk.replies import take_algo
from risk.state import (
    ORDERS_KEPT_MAX,
    State,
    Theirs,
    pending_entries,
    put_order,
    remember,
    unprepare,
)

EXECUTIONS: Final = frozenset({"TRADE", "CALCULATED"})
RECENT_MS: Final = 5_000.0  # real time; frames of an ended round trip may still arrive
QUOTE_ASSET: Final = "USDT"
# Reasons of an ACCOUNT_UPDATE that is no trade, and the kind of income to read for each.
INCOME: Final = {
    "FUNDING_FEE": "FUNDING_FEE",
    "INSURANCE_CLEAR": "INSURANCE_CLEAR",
    "COMMISSION_REBATE": "COMMISSION_REBATE",
} | dict.fromkeys(
    ("DEPOSIT", "WITHDRAW", "ADMIN_DEPOSIT", "ADMIN_WITHDRAW", "ASSET_TRANSFER", "ADJUSTMENT"),
    "TRANSFER",
)
ENDED: Final = frozenset({"canceled", "expired", "rejected"})  # without closing the position
RESTING: Final = frozenset({"NEW", "PARTIALLY_FILLED", "TRIGGERING"})


def on_pushed(state: State, event: Pushed, now: Now, out: Effects) -> None:
    frame = event.frame
    kind = frame.get("e")
    if kind == "ORDER_TRADE_UPDATE":
        on_order(state, frame["o"], now, out)
    elif kind == "ALGO_UPDATE":
        on_algo(state, frame, now, out)
    elif kind == "ACCOUNT_UPDATE":
        on_account(state, frame, now, out)
    elif kind == "ACCOUNT_CONFIG_UPDATE":
        on_config(state, frame)


def on_order(state: State, o: Mapping[str, Any], now: Now, out: Effects) -> None:
    """An order's step. Its execution is written before its state: an entry that is over explains
    no position to a successor, one that is open does.
    """
    client_id, exchange_id = str(o["c"]), str(o["i"])
    order = state.orders.get(client_id)
    if order is None:
        order = state.child(str(o["s"]), exchange_id)
    if order is None:
        order = _leg_by_shape(state, o)
    if order is None:
        _by_hand(state, o, client_id, now, out)
    if order is not None:
        remember(state.children, (order.symbol, exchange_id), order.id, ORDERS_KEPT_MAX)
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
                for leg in state.orders.legs(made.cause):
                    if leg.state == "intent":
                        put_order(state, advance(leg, "canceled", int(o["T"]), "not needed"))
                        ops += journal.order_ops(state, state.orders[leg.id], now)
                ops += journal.money_ops(state)
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
        _stand_in_gone(state, o, now, out)
        _by_hand(state, o, str(o["caid"]), now, out)
        return
    told = {
        "status": str(o.get("X", "")),
        "algo_id": str(o.get("aid") or ""),
        "order_id": str(o.get("ai") or ""),
        "created_ms": str(frame["T"]),
        "reason": str(o.get("rm") or ""),
    }
    take_algo(state, order, told, now, out)


def on_config(state: State, frame: Mapping[str, Any]) -> None:
    """Leverage of a symbol changed, by us or by hand: what differs is set again before an entry."""
    told = frame.get("ac")
    if not told:
        return
    known = state.tries.get(("leverage", str(told["s"])))
    if known is not None and known != int(told["l"]):
        unprepare(state, str(told["s"]))


def _stand_in_gone(state: State, o: Mapping[str, Any], now: Now, out: Effects) -> None:
    """Somebody else's stop that protected a position of ours was taken back: ours goes back."""
    position = state.positions.get(str(o.get("s") or ""))
    ended = ALGO_STATES.get(str(o.get("X")))
    if position is None or position.stop_order != str(o["caid"]) or ended not in ENDED:
        return
    stood = orders.Order(
        id=position.stop_order,
        cause=position.signal,
        leg=orders.STOP_LEG,
        symbol=position.symbol,
        side=orders.opposite(position.side),
        qty=ZERO,
        price=ZERO,
        state="canceled",
    )
    leg_gone(state, stood, now, out)


def on_account(state: State, frame: Mapping[str, Any], now: Now, out: Effects) -> None:
    """The wallet; money that is no trade is read from its transactions; a position on a symbol
    that is none of ours is foreign."""
    account = frame["a"]
    kind = INCOME.get(str(account.get("m", "")))
    for row in account.get("B", ()):
        if row["a"] == QUOTE_ASSET:
            state.wallet_told_ms = now.boot_ms
            state.money = replace(state.money, wallet=decimal(row["wb"], state.money.wallet))
    if kind is not None:
        income.expect(state, kind, now, out)
    if account.get("m") == "MARGIN_TYPE_CHANGE":
        for row in account.get("P", ()):
            if row.get("mt") != "isolated":
                unprepare(state, str(row["s"]))
    for row in account.get("P", ()):
        symbol, amount = str(row["s"]), decimal(row.get("pa"))
        if _is_used(state, symbol) or _was_used(state, symbol, now):
            continue
        if amount:
            _foreign(state, symbol, f"position {amount}", out)
            entry = decimal(row.get("ep"))
            margin = decimal(row.get("iw")) or abs(amount) * entry  # the next snapshot knows it
            state.theirs[symbol] = Theirs(amount, entry, margin)
        elif symbol in state.foreign:
            state.theirs.pop(symbol, None)
            out.add(Snap("foreign position closed"))


def _is_used(state: State, symbol: str) -> bool:
    """We hold it, or may in a moment."""
    pending = any(order.symbol == symbol for order in pending_entries(state))
    return symbol in state.positions or pending


def _was_used(state: State, symbol: str, now: Now) -> bool:
    """A moment ago: late frames may be about that."""
    return now.boot_ms - state.touched.get(symbol, -1e18) < RECENT_MS


def _foreign(state: State, symbol: str, what: str, out: Effects) -> None:
    if symbol not in state.foreign:
        state.foreign.add(symbol)
        out.add(Note("WARNING", f"foreign symbol={symbol} {what}: left alone"))


def _by_hand(state: State, o: Mapping[str, Any], order_id: str, now: Now, out: Effects) -> None:
    """Somebody else's order where nothing is ours: the symbol is theirs until it ended."""
    symbol, resting = str(o.get("s") or ""), str(o.get("X")) in RESTING
    if state.is_ours(order_id) or not symbol or _is_used(state, symbol):
        return
    if resting == (symbol in state.foreign):
        return  # nothing new
    if not resting or _was_used(state, symbol, now):
        out.add(Snap("order of another hand"))  # what they have there only a snapshot tells
    else:
        _foreign(state, symbol, f"order {order_id}", out)
