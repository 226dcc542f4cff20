"""From the first fill to the last: protect at once, leave when told, count what happened.

A position has a resident stop within naked_ms of its first fill or it is closed at market. What
reduces risk is sent before its sending is recorded (its id and price were decided and written with
the entry; a leg that was not is written first, but no write is waited for long) and is repeated
until the exchange says that it is done: closePosition and reduceOnly make a repeat harmless. A
position whose stop was moved or cancelled by hand gets its stop back; it is never closed for that.
"""

from __future__ import annotations

from decimal import Decimal
from typing import Final

from msgspec.structs import replace

from risk import breakers, journal, orders
from risk.events import Cancel, Commit, Effect, Effects, Note, Now, Op, Send, Timer
from risk.instruments import ZERO, Instrument, plain
from risk.orders import Order, advance
from risk.portfolio import UNPROTECTED, Fill, Position, apply_fill, fee_usdt
from risk.state import SEEN_FILLS_MAX, State, put_order, remember

RETRY_MS: Final = 250.0  # between two tries of something that must succeed
RETRY_MS_MAX: Final = 5_000.0
NAKED_RETRY_MS: Final = 150.0  # between two tries of a stop while its position is naked
FLATTEN_SHARE: Final = 0.75  # of naked_ms: then the flatten begins, so that the limit is kept
FILLS_LATE_MS: Final = 1_000.0  # an execution told by REST; after this its trades are asked for
RESTOP_MS: Final = 200.0  # a stop vanished: the fill that explains it may be on its way
TARGET_TRIES_MAX: Final = 3  # a missing target costs profit, not safety
CLOCK_MARGIN_MS: Final = 5_000.0  # market time: our clock may be ahead of the exchange's
NO_STOP: Final = "stop unknown"  # forgotten by Redis, and none rests at the exchange
URGENT: Final = frozenset({"naked", "stop passed", "stop rejected", NO_STOP})
REASONS: Final = {"s": "stop", "t": "target", "c": "emergency", "x": "exit"}


def arm_deadline(
    state: State, out: Effects, kind: str, key: str, at_ms: float, earliest: bool = False
) -> None:
    """Ask for a Tick at a boot time; `step` acts on what is due."""
    place = (kind, key)
    if earliest and place in state.deadlines:
        at_ms = min(at_ms, state.deadlines[place])
    state.deadlines[place] = at_ms
    out.add(Timer(at_ms))


def backoff_ms(state: State, kind: str, key: str) -> float:
    """The next pause, doubling from RETRY_MS to its bound."""
    tries = state.tries.get((kind, key), 0)
    state.tries[(kind, key)] = tries + 1
    return float(min(RETRY_MS * 2 ** min(tries, 10), RETRY_MS_MAX))


def naked_deadline(state: State, now: Now, since_ms: float | None = None) -> float:
    """Boot ms at which a position without a stop is flattened. `since_ms`: market time from which
    it has been naked, now by default; whose clock is wrong halves what is left at most."""
    allowed_ms = state.limits.naked_ms * FLATTEN_SHARE
    passed_ms = 0.0 if since_ms is None else (now.market_ms - since_ms) / now.speed
    return now.boot_ms + allowed_ms - min(max(passed_ms, 0.0), allowed_ms / 2)


def forget(state: State, kind: str, key: str) -> None:
    state.deadlines.pop((kind, key), None)
    state.tries.pop((kind, key), None)


def record(
    state: State, out: Effects, ops: list[Op], about: str, *then: Effect, hurry: bool = False
) -> None:
    if ops:
        out.add(Commit(tuple(ops), about, then=then, hurry=hurry))


def make_leg(
    state: State, position: Position, leg: str, revision: int, now: Now
) -> tuple[Order, bool]:
    """The order of a leg as decided with the entry, or a new revision when that one is used up;
    is it new, so that nobody else knows its id yet?"""
    order_id = state.make_id(position.signal, leg, revision)
    if order_id in state.orders:
        return state.orders[order_id], False
    price = {"s": position.stop, "t": position.target}.get(leg, ZERO)
    order = Order(
        id=order_id,
        cause=position.signal,
        leg=leg,
        symbol=position.symbol,
        side=orders.opposite(position.side),
        qty=ZERO if leg in orders.ALGO_LEGS else position.qty,
        price=price,
        state="intent",
        revision=revision,
        created_ms=int(now.market_ms),
        updated_ms=int(now.market_ms),
        epoch=state.epoch,
    )
    put_order(state, order)
    return order, True


# --- opening -----------------------------------------------------------------------------------


def open_position(state: State, entry: Order, ms: int, now: Now, out: Effects) -> Position:
    """The exchange executed an entry: there is a position, whatever else is known of it."""
    position = state.positions.get(entry.symbol)
    if position is not None:
        return position
    state.positions[entry.symbol] = new_position(entry, ms)
    protect(state, entry.symbol, now, out)
    return state.positions[entry.symbol]


def new_position(entry: Order, ms: int) -> Position:
    """The position that an entry's first fill makes, before the fill is counted."""
    return Position(
        symbol=entry.symbol,
        side=entry.side,
        signal=entry.cause,
        entry=entry.price,
        stop=entry.stop,
        target=entry.target,
        entry_order=entry.id,
        confidence=entry.confidence,
        leverage=entry.leverage,
        rule=entry.rule,
        opened_ms=ms,
        quiet_price=entry.price,
        quiet_since_ms=ms,
    )


def protect(state: State, symbol: str, now: Now, out: Effects) -> None:
    """Send the stop, then the target, unless they are there or on their way."""
    position = state.positions[symbol]
    if position.stop_state in ("none", "gone"):
        place_stop(state, symbol, now, out)
        if state.positions[symbol].naked_ms == UNPROTECTED:
            at_ms = naked_deadline(state, now, position.opened_ms)
            arm_deadline(state, out, "naked", symbol, at_ms, earliest=True)
    if position.target_state in ("none", "gone") and position.target > 0:
        place_target(state, symbol, now, out)


def surely_unsent(state: State, order: Order) -> bool:
    """Legs go out before their record does, so an intent of an earlier holder may have been sent;
    the exchange takes its id a second time once the first is over."""
    return order.state == "intent" and order.epoch == state.epoch


def _next_revision(state: State, position: Position, leg: str, current: int) -> int:
    """The current revision while it is unused, else the first one never sent."""
    revision = current
    while True:
        known = state.orders.get(state.make_id(position.signal, leg, revision))
        if known is None or surely_unsent(state, known):
            return revision
        revision += 1


def place_stop(state: State, symbol: str, now: Now, out: Effects) -> None:
    position = state.positions[symbol]
    if position.stop <= 0:
        exit_position(state, symbol, NO_STOP, now, out)
        return
    revision = _next_revision(state, position, orders.STOP_LEG, position.stop_revision)
    order, new = make_leg(state, position, orders.STOP_LEG, revision, now)
    state.positions[symbol] = replace(
        position, stop_order=order.id, stop_state="sent", stop_revision=revision
    )
    send_leg(state, order, now, out, new)


def place_target(state: State, symbol: str, now: Now, out: Effects) -> None:
    position = state.positions[symbol]
    revision = _next_revision(state, position, orders.TARGET_LEG, 0)
    order, new = make_leg(state, position, orders.TARGET_LEG, revision, now)
    state.positions[symbol] = replace(position, target_order=order.id, target_state="sent")
    send_leg(state, order, now, out, new)


def is_left(state: State, position: Position) -> bool:
    """The exchange has executed an exit of the whole position; only its trades are not told yet.
    Its legs ended with it there: one that is sent now would be a second order of the same id."""
    exit_order = state.orders.get(position.exit_order)
    return exit_order is not None and 0 < position.qty <= exit_order.executed


def send_leg(state: State, order: Order, now: Now, out: Effects, new: bool = False) -> None:
    """Out at once; the record follows, for Redis must not stand between a position and its stop.
    Only an id that nobody else knows yet is written first: a successor must not use it again."""
    put_order(state, advance(order, "sent", int(now.market_ms)))
    request = orders.protect_request(order)
    ops = journal.order_ops(state, state.orders[order.id], now)
    if new:
        record(state, out, ops, order.id, request, hurry=True)
        ops = []
    else:
        out.add(request)
    position = state.positions.get(order.symbol)
    if position is not None:
        ops += journal.position_ops(state.keys, position)
    record(state, out, ops, order.id)


def stop_confirmed(state: State, order: Order, created_ms: float, now: Now, out: Effects) -> None:
    """The exchange holds our stop; note for how long the position was naked."""
    position = state.positions.get(order.symbol)
    if position is None or position.stop_order != order.id or position.stop_state == "acked":
        return
    naked_ms = position.naked_ms
    if naked_ms == UNPROTECTED:
        naked_ms = max(0, round((created_ms - position.opened_ms) / now.speed))
        state.money = replace(state.money, naked_ms_max=max(state.money.naked_ms_max, naked_ms))
    position = replace(position, stop_state="acked", naked_ms=naked_ms)
    state.positions[order.symbol] = position
    forget(state, "naked", order.symbol)
    forget(state, "stop", order.symbol)
    record(state, out, journal.position_ops(state.keys, position), order.symbol)


def leg_gone(state: State, order: Order, now: Now, out: Effects) -> None:
    """A resident leg ended without closing the position: put a stop back, drop a target."""
    position = state.positions.get(order.symbol)
    if position is None:
        return
    state.touched[order.symbol] = now.boot_ms
    if position.stop_order == order.id and position.stop_state != "gone":
        state.positions[order.symbol] = replace(position, stop_state="gone")
        at_ms = naked_deadline(state, now)
        arm_deadline(state, out, "naked", order.symbol, at_ms, earliest=True)
        if order.state == "rejected":
            exit_position(state, order.symbol, "stop rejected", now, out)
        else:
            arm_deadline(state, out, "stop", order.symbol, now.boot_ms + RESTOP_MS)
    elif position.target_order == order.id and position.target_state != "gone":
        state.positions[order.symbol] = replace(position, target_state="gone")


# --- fills -------------------------------------------------------------------------------------


def order_of(state: State, fill: Fill) -> Order | None:
    """Ours by client id, or by the exchange id that an order or a triggered leg was given."""
    order = state.orders.get(fill.client_id)
    if order is None:
        order = state.child(fill.symbol, fill.order_id)
    position = state.positions.get(fill.symbol)
    if order is None and position is not None and not fill.client_id:
        entering = fill.side == position.side  # told by userTrades, which knows no client ids
        likely = state.orders.get(position.entry_order if entering else position.exit_order)
        if likely is not None and _explains(likely, fill):
            order = likely
    return order


def _explains(order: Order, fill: Fill) -> bool:
    """Its execution by exchange id; before that is known, by not being older than the order."""
    if order.exchange_id:
        return order.exchange_id == fill.order_id
    return fill.ms >= order.created_ms - CLOCK_MARGIN_MS


def _belongs(position: Position | None, fill: Fill) -> bool:
    """A trade by hand changes the position that it meets; userTrades also tells older ones."""
    if position is None:
        return False
    return bool(fill.client_id) or 0 < position.opened_ms <= fill.ms


def handle_fill(state: State, fill: Fill, now: Now, out: Effects) -> None:
    """Count an execution once; open, change or close the position that it belongs to."""
    if fill.key in state.seen:
        return
    order = order_of(state, fill)
    if order is None and not _belongs(state.positions.get(fill.symbol), fill):
        return  # somebody else's trade, or one from before this position
    remember(state.seen, fill.key, None, SEEN_FILLS_MAX)
    state.touched[fill.symbol] = now.boot_ms
    money, fee = state.money, fee_usdt(fill, state.marks)
    state.money = replace(
        money,
        realised=money.realised + fill.realised,
        fees=money.fees + fee,
        fills=money.fills + 1,
    )
    entry = order if order and order.leg == orders.ENTRY_LEG else None
    ops = journal.fill_ops(state, fill, order, entry, now)
    if entry is not None:
        open_position(state, entry, fill.ms, now, out)
    before = state.positions.get(fill.symbol)
    if before is not None:
        if before.qty == 0 and before.exit_qty == 0 and entry is not None:
            before = replace(before, opened_ms=fill.ms, quiet_price=fill.price)
        position = apply_fill(before, replace(fill, fee=fee))
        state.positions[fill.symbol] = position
        missed = untold(state, position)
        if position.qty <= 0 and position.exit_qty > 0 and not missed:
            close_position(state, position, close_reason(position, order, fill), now, out, ops)
            return
        ops += journal.position_ops(state.keys, position)
        if missed:  # more of its entry was executed than we were told: it is not as small, or over
            at_ms = now.boot_ms + (FILLS_LATE_MS if position.qty > 0 else 0.0)
            arm_deadline(state, out, "fills", position.entry_order, at_ms, earliest=True)
            if position.qty <= 0:
                out.add(orders.position_request(fill.symbol))
    ops += journal.money_ops(state)
    record(state, out, ops, fill.symbol)


def untold(state: State, position: Position) -> Decimal:
    """Of its entry's executed size, what no trade has told yet."""
    entry = state.orders.get(position.entry_order)
    if entry is None:
        return ZERO
    return max(ZERO, entry.executed - position.qty - position.exit_qty)


def close_reason(position: Position, order: Order | None, fill: Fill) -> str:
    if order is not None and order.leg in REASONS:
        return position.exit_reason or REASONS[order.leg] if not order.algo else REASONS[order.leg]
    if fill.client_id.startswith("autoclose-"):
        return "liquidation"
    if fill.client_id.startswith("adl_autoclose"):
        return "adl"
    if fill.client_id.startswith(("settlement_autoclose-", "delivery_autoclose-")):
        return "delisted"
    return position.exit_reason or "by hand"


def close_position(
    state: State,
    position: Position,
    reason: str,
    now: Now,
    out: Effects,
    ops: list[Op] | None = None,
) -> None:
    """The position is flat: take its legs back, count the round trip, free the place."""
    ops = ops if ops is not None else []
    state.positions.pop(position.symbol, None)
    for kind in ("naked", "stop", "exit", "target", "fills"):
        forget(state, kind, position.symbol)
    net = position.realised - position.fees
    money = state.money
    state.money = replace(
        money, trades_closed=money.trades_closed + 1, wins=money.wins + int(net > 0)
    )
    state.tally = breakers.closed(state.tally, net)
    if state.rotating == position.symbol:
        state.rotating = ""
        state.rotated_ms = now.market_ms
    ops += retire_legs(state, position.signal, now, out)
    ops += count_entry(state, position, now, out)
    ops += journal.closed_ops(state, position, reason, now)
    ops += journal.money_ops(state)
    record(state, out, ops, position.symbol)
    out.add(Timer(now.boot_ms))  # waiting signals may take the place


def retire_legs(state: State, cause: str, now: Now, out: Effects) -> list[Op]:
    """Every leg of an ended round trip reaches a terminal state: unused, taken back, or asked for.

    An exit is never taken back: it was sent and is answered, or it may have been sent and is asked.
    """
    ops: list[Op] = []
    for order in state.orders.legs(cause):
        if order.terminal or order.leg == orders.ENTRY_LEG:
            continue
        if surely_unsent(state, order):
            put_order(state, advance(order, "canceled", int(now.market_ms), "not needed"))
            ops += journal.order_ops(state, state.orders[order.id], now)
        elif order.algo:
            out.add(orders.cancel_request(order.id, order.symbol, algo=True))
            arm_deadline(state, out, "cancel", order.id, now.boot_ms + RETRY_MS * 4)
        else:
            arm_deadline(state, out, "query", order.id, now.boot_ms + RETRY_MS * 4)
    return ops


def count_entry(state: State, position: Position, now: Now, out: Effects) -> list[Op]:
    """An entry whose end is not told yet has been executed as far as its position went: what is
    told of that later, to us or to a successor, opens no second one."""
    entry = state.orders.get(position.entry_order)
    if entry is None or entry.terminal:
        return []
    executed = max(entry.executed, min(position.qty + position.exit_qty, entry.qty))
    put_order(state, replace(entry, executed=executed))
    arm_deadline(state, out, "query", entry.id, now.boot_ms + RETRY_MS * 4, earliest=True)
    return journal.order_ops(state, state.orders[entry.id], now)


# --- leaving -----------------------------------------------------------------------------------


def exit_position(state: State, symbol: str, reason: str, now: Now, out: Effects) -> None:
    """Close at market, reduce-only. Emergencies go out first and are recorded after; under an id
    that nobody else knows yet they are written first, but do not wait for it long."""
    position = state.positions.get(symbol)
    if position is None:
        return
    if position.exit_order:
        known = state.orders.get(position.exit_order)
        if known is not None and not known.terminal:
            return  # on its way
    if position.qty <= 0:  # executed, but its trades are not told yet: the size is not known
        arm_deadline(state, out, "exit", symbol, now.boot_ms + RETRY_MS / 2)
        state.positions[symbol] = replace(position, exit_reason=position.exit_reason or reason)
        out.add(orders.trades_request(symbol, position.opened_ms - 1))
        return
    leg = orders.CLOSE_LEG if reason in URGENT else orders.EXIT_LEG
    revision = _next_revision(state, position, leg, 0)
    order, new = make_leg(state, position, leg, revision, now)
    order = replace(order, qty=exit_qty(position, state.instruments.get(symbol)), reason=reason)
    put_order(state, order)
    position = replace(
        position,
        exit_order=order.id,
        exit_reason=position.exit_reason or reason,
        exits=position.exits + 1,
    )
    state.positions[symbol] = position
    ops, there = journal.order_ops(state, order, now), journal.position_ops(state.keys, position)
    arm_deadline(state, out, "exit", symbol, now.boot_ms + RETRY_MS * 4)
    request = orders.exit_request(order)
    if reason in URGENT:
        out.add(Note("ERROR", f"exit symbol={symbol} reason={reason}"))
    if reason in URGENT and new:
        record(state, out, ops, order.id, request, hurry=True)
        record(state, out, there, order.id)
    elif reason in URGENT:
        out.add(request)
        record(state, out, ops + there, order.id)
    else:
        record(state, out, ops + there, order.id, request)


def exit_qty(position: Position, rules: Instrument | None) -> Decimal:
    """The whole position, or as much of it as one market order may carry."""
    return min(position.qty, rules.market_qty_max) if rules else position.qty


def describe(position: Position) -> str:
    return f"{position.side} {plain(position.qty)} {position.symbol} at {plain(position.entry)}"


def is_protective(effect: Effect) -> bool:
    """May be carried out without Redis: it can only reduce risk."""
    return (isinstance(effect, Send) and not effect.fenced) or isinstance(effect, Cancel)
