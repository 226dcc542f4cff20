"""Carrying out corrections: each is checked against the present state before it is done.

A snapshot is old when it is read. What changed on a symbol after the snapshot was begun is left
to the next one, asked for at once; at a start nothing has changed yet, because user-stream frames
wait until the snapshot is taken in. Querying again or sending a stop again is harmless, so doubt
ends there.
"""

from __future__ import annotations

from typing import Final

from msgspec.structs import replace

from risk import guard, income, journal, orders, reconcile
from risk.events import Effects, Note, Now, SnapshotTaken
from risk.instruments import ZERO
from risk.orders import Order, advance
from risk.portfolio import Position
from risk.protect import (
    RETRY_MS,
    arm_deadline,
    naked_deadline,
    place_stop,
    place_target,
    protect,
    record,
    send_leg,
)
from risk.reconcile import Action, Resting, Snapshot
from risk.replies import algos_request, take_algo, trace
from risk.state import SNAPSHOTS_KEPT_MAX, State, Theirs, put_order, remember, unprepare

START: Final = "start"  # a snapshot taken while nothing else was happening
AGAIN_MS: Final = 1_000.0  # until the next look at what was in motion
OWNERSHIP: Final = frozenset({"foreign", "own"})
FORCED: Final = frozenset({START, "trouble"})


def on_snapshot(state: State, event: SnapshotTaken, now: Now, out: Effects) -> None:
    """Take the exchange's truth in; answer who asked; correct unless the asker will."""
    snapshot: Snapshot = event.snapshot
    forced = event.reason in FORCED
    if event.reason == START:
        state.asked_ms = now.boot_ms
    state.last_reconcile_ms = int(now.market_ms)
    remember(state.snapshots, snapshot.id, snapshot.started_ms, SNAPSHOTS_KEPT_MAX)
    if snapshot.started_ms > state.wallet_told_ms:  # else the user stream may know better
        state.money = replace(state.money, wallet=snapshot.wallet)
    fields = {
        "id": snapshot.id,
        "ms": str(snapshot.ms),
        "epoch": str(state.epoch),
        "wall_ms": str(now.wall_ms),
        "reason": event.reason,
        "json": reconcile.snapshot_to_json(snapshot),
    }
    ops = [("hset", state.keys.exchange, fields)]
    if event.command_id:
        ops += journal.reply_ops(state, event.command_id, {"ok": True, "snapshot": snapshot.id})
    record(state, out, ops, "snapshot")
    for symbol, leverage in list(state.prepared.items()):
        if snapshot.settings.get(symbol, (leverage, True)) != (leverage, True):
            unprepare(state, symbol)
    apart = difference(state, snapshot)
    _note_apart(state, apart, snapshot, now, out)
    if event.reason == "snapshot":  # the job asks for each correction; ownership is our own memory
        apart = tuple(action for action in apart if action.name in OWNERSHIP)
    correct(state, apart, event, now, out)
    _take_theirs(state, snapshot)
    income.catch_up(state, now, out)  # a stream that stays open may have told nothing of money
    if forced:
        state.reconciled = True
        state.since_ms = now.market_ms
        for position in state.positions.values():
            if position.exit_reason:  # decided by whoever held before: carried on until flat
                arm_deadline(state, out, "exit", position.symbol, now.boot_ms + RETRY_MS)
    record(state, out, journal.portfolio_ops(state, now), "portfolio")


def difference(state: State, snapshot: Snapshot) -> tuple[Action, ...]:
    prefix = f"ag{state.prefix}"
    return reconcile.difference(state.positions, state.orders, state.foreign, snapshot, prefix)


def _moving(state: State, symbol: str, snapshot: Snapshot) -> bool:
    """It changed after the snapshot was begun: what that says of it is old."""
    return state.touched.get(symbol, -1e18) >= snapshot.started_ms


def _note_apart(
    state: State, actions: tuple[Action, ...], snapshot: Snapshot, now: Now, out: Effects
) -> None:
    """Where corrections are called for; who owns a symbol is a fact, not a difference."""
    apart: dict[str, frozenset[str]] = {}
    for action in actions:
        if action.name not in OWNERSHIP:
            told = frozenset({f"{action.name} {action.order}".strip()})
            apart[action.symbol] = apart.get(action.symbol, frozenset()) | told
    symbols = {*apart, *state.apart, *state.quarantine}
    moving = {symbol for symbol in symbols if _moving(state, symbol, snapshot)}
    guard.note_apart(state, apart, moving, now, out)


def _take_theirs(state: State, snapshot: Snapshot) -> None:
    """Positions that are not ours count in margin and equity."""
    state.theirs = {
        symbol: Theirs(amount, entry, snapshot.margins.get(symbol, abs(amount) * entry))
        for symbol, (amount, entry) in snapshot.positions.items()
        if symbol in state.foreign and symbol not in state.positions
    }


def known(state: State, action: Action) -> bool:
    """Is it about an order or a position of ours, and no other?"""
    return action.order in state.orders if action.order else action.symbol in state.positions


def correct(
    state: State, actions: tuple[Action, ...], event: SnapshotTaken, now: Now, out: Effects
) -> None:
    """Carry the actions out; what moved since the snapshot was begun is left to the next one.
    One correction is no movement: those of one snapshot go together. Without a lease that is sure,
    only those of what we know."""
    snapshot: Snapshot = event.snapshot
    resting = {r.id: r for r in (*snapshot.orders, *snapshot.algos)}
    moving = {a.symbol for a in actions if _moving(state, a.symbol, snapshot)}
    sure = now.boot_ms < now.valid_until_ms or event.reason == START
    for action in actions:
        if not sure and not known(state, action):  # a successor's, whom we cannot hear
            arm_deadline(state, out, "snap", "", now.boot_ms + AGAIN_MS, earliest=True)
            continue
        if action.symbol in moving:
            arm_deadline(state, out, "snap", "", now.boot_ms + AGAIN_MS, earliest=True)
            continue
        act(state, action, resting.get(action.order), now, out)


def act(state: State, action: Action, resting: Resting | None, now: Now, out: Effects) -> None:
    """One correction, if it is still one."""
    symbol, position = action.symbol, state.positions.get(action.symbol)
    order = state.orders.get(action.order)
    if action.name == "foreign":
        state.foreign.add(symbol)
        out.add(Note("WARNING", f"foreign position or order symbol={symbol}: left alone"))
    elif action.name == "own":
        state.foreign.discard(symbol)
    elif action.name == "adopt":
        adopt(state, action, resting, now, out)
    elif action.name == "settle" and position is not None:
        asked = trace(state, symbol, action.amount, now)
        if asked is not None and (position.signed_qty != action.amount or position.qty == 0):
            out.add(asked)
    elif action.name in ("stop", "target") and position is not None:
        restore(state, position, action.name, now, out)
    elif action.name == "confirm" and position is not None:
        confirm(state, position, order, resting, now, out)
    elif action.name == "query" and order is not None and not order.terminal:
        ask(state, order, now, out)
    elif action.name == "cancel" and state.is_ours(action.order):
        if position is None or action.order not in (position.stop_order, position.target_order):
            out.add(orders.cancel_request(action.order, symbol, algo=True))
    elif action.name == "cancel_order" and state.is_ours(action.order):
        out.add(orders.cancel_request(action.order, symbol, algo=False))


def ask(state: State, order: Order, now: Now, out: Effects) -> None:
    """What became of it? A planned leg that was never needed is simply over."""
    if order.state == "intent" and order.leg != orders.ENTRY_LEG:
        put_order(state, advance(order, "canceled", int(now.market_ms), "not needed"))
        record(state, out, journal.order_ops(state, state.orders[order.id], now), order.id)
        return
    if order.leg == orders.ENTRY_LEG and order.state in reconcile.NOT_SENT:
        made = advance(order, "unknown", int(now.market_ms), "asked after a restart")
        put_order(state, made)
        window_ms = state.limits.recv_window_ms + 1_000.0
        state.deadlines.setdefault(("surely", order.id), now.boot_ms + window_ms)
    out.add(orders.query_request(order))
    arm_deadline(state, out, "query", order.id, now.boot_ms + 1_000.0)


def restore(state: State, position: Position, leg: str, now: Now, out: Effects) -> None:
    """The stop (or target) is not there: send it, or ask where one that stood has gone."""
    symbol = position.symbol
    order_id = position.stop_order if leg == "stop" else position.target_order
    order = state.orders.get(order_id)
    if order is not None and order.state == "acked":  # one snapshot is no proof: the answer is
        out.add(orders.query_request(order))
        if leg == "stop":
            state.positions[symbol] = replace(position, stop_state="sent")
        arm_deadline(state, out, "stop", symbol, now.boot_ms + 500.0)
        return
    if leg == "stop" and ("naked", symbol) not in state.deadlines:
        arm_deadline(state, out, "naked", symbol, naked_deadline(state, now))
    # one of an earlier epoch may have come and gone: its id is not used again
    if order is not None and order.epoch == state.epoch and not order.terminal:
        send_leg(state, order, now, out)
        return
    if leg == "stop":
        place_stop(state, symbol, now, out)
    else:
        place_target(state, symbol, now, out)
    if order is not None and not order.terminal:
        ask(state, order, now, out)  # another goes out in its stead: what became of it?


def confirm(
    state: State,
    position: Position,
    order: Order | None,
    resting: Resting | None,
    now: Now,
    out: Effects,
) -> None:
    """A leg of ours rests there: it is this position's, whatever we had recorded."""
    if resting is None:
        out.add(algos_request(position.symbol))
        return
    stop = resting.kind == "STOP_MARKET"
    if order is not None and order.terminal:  # it ended, and a leg that ended is not revived
        out.add(orders.cancel_request(order.id, position.symbol, algo=True))
        state_there = position.stop_state if stop else position.target_state
        if state_there != "acked":
            restore(state, position, "stop" if stop else "target", now, out)
        return
    if order is None:
        order = _leg_at_rest(state, position, resting, now)
    changed = {"stop_order" if stop else "target_order": order.id}
    state.positions[position.symbol] = replace(position, **changed)
    told = {
        "status": "NEW",
        "algo_id": resting.exchange_id,
        "order_id": "",
        "created_ms": str(now.market_ms),
        "reason": "",
    }
    take_algo(state, order, told, now, out)


def _leg_at_rest(state: State, position: Position, resting: Resting, now: Now) -> Order:
    """A leg of ours of which no record is left."""
    order = Order(
        id=resting.id,
        cause=position.signal,
        leg=orders.STOP_LEG if resting.kind == "STOP_MARKET" else orders.TARGET_LEG,
        symbol=position.symbol,
        side=resting.side,
        qty=ZERO,
        price=resting.price,
        state="sent",
        created_ms=int(now.market_ms),
        epoch=state.epoch,
        exchange_id=resting.exchange_id,
    )
    put_order(state, order)
    return order


def adopt(state: State, action: Action, resting: Resting | None, now: Now, out: Effects) -> None:
    """A position of ours that we lost sight of: ours again, and protected."""
    symbol = action.symbol
    if symbol in state.positions or action.amount == ZERO:
        return
    side = "buy" if action.amount > 0 else "sell"
    entry = state.orders.get(action.order)
    if entry is not None and entry.leg == orders.ENTRY_LEG:
        position = Position(
            symbol=symbol,
            side=side,
            signal=entry.cause,
            entry=entry.price,
            stop=entry.stop,
            target=entry.target,
            entry_order=entry.id,
            confidence=entry.confidence,
            leverage=entry.leverage,
            rule=entry.rule,
            opened_ms=entry.created_ms,
            quiet_price=entry.price,
            quiet_since_ms=int(now.market_ms),
        )
        out.add(orders.query_request(entry))
        purpose = f"settle:{action.amount}:{now.boot_ms}"
        out.add(orders.trades_request(symbol, entry.created_ms - 1, purpose))
    else:
        position = Position(
            symbol=symbol,
            side=side,
            signal=f"adopted-{action.order}",
            qty=abs(action.amount),
            entry=action.price,
            stop=resting.price if resting else ZERO,
            stop_order=action.order,
            stop_state="acked",
            opened_ms=int(now.market_ms),
            quiet_price=action.price,
            quiet_since_ms=int(now.market_ms),
        )
    state.positions[symbol] = position
    state.foreign.discard(symbol)
    out.add(Note("WARNING", f"adopted symbol={symbol} qty={action.amount} by={action.order}"))
    ops = journal.position_ops(state.keys, position)
    if resting is not None and position.stop_order == resting.id:
        order = _leg_at_rest(state, position, resting, now)
        put_order(state, advance(order, "acked", int(now.market_ms)))
        ops += journal.order_ops(state, state.orders[order.id], now)
    record(state, out, ops, symbol)
    protect(state, symbol, now, out)
