"""The core of risk: one event in, effects out, no clock, no socket.

`step` is the only function that changes a State. The same code runs in risk/main.py over Redis
and HTTP, in the backtest on a virtual clock, and in tests with faults. Effects are carried out in
their order; those inside a Commit's `then` only once it is known to be written.
"""

from __future__ import annotations

from decimal import Decimal
from typing import Final

from msgspec.structs import replace

from risk import (
    breakers,
    entries,
    guard,
    history,
    income,
    orders,
    protect,
    pushes,
    recovery,
    replies,
)
from risk.commands import on_command
from risk.entries import PLACE_WAIT_MS, WAIT_MS
from risk.events import (
    PROTECT,
    RECONCILE,
    CommandRead,
    CommitFailed,
    Due,
    Effect,
    Effects,
    Event,
    HistoryRead,
    MarksSeen,
    Note,
    Now,
    Pushed,
    QuoteSeen,
    Replied,
    SignalRead,
    Snap,
    SnapshotTaken,
    Stopping,
    Tick,
    Trouble,
    Watch,
)
from risk.gate import Funding, Judgement, Quote, Verdict
from risk.instruments import decimal
from risk.portfolio import Position
from risk.state import State, unprepare

STAGNATION_SHARE: Final = Decimal("0.001")  # +-0.1 %
MODE_MS: Final = 5_000.0  # between two questions for the position mode, of weight 30 each
TRIES_MAX: Final = 4_000  # counters of back-off; those of nothing due are forgotten
FILLS_TRIES: Final = 3  # then the exchange is asked for the size that no trade explained
PASSIVE: Final = frozenset({"surely"})  # deadlines that are only compared with
ENTRY_PURPOSES: Final = frozenset({"quote", "mark", "margin", "leverage"})


def step(state: State, event: Event, now: Now) -> list[Effect]:
    """What follows from one event. Changes `state`; the effects are the caller's to carry out."""
    out = Effects()
    if isinstance(event, Tick):
        on_tick(state, now, out)
    elif isinstance(event, Due):
        on_due(state, now, out)
    elif isinstance(event, Replied):
        guard.count_error(state, event, now)
        if event.request.purpose == income.PURPOSE:
            income.on_income(state, event, now, out)
        elif event.request.purpose in ENTRY_PURPOSES:
            entries.on_prepared(state, event, now, out)
        else:
            replies.on_replied(state, event, now, out)
    elif isinstance(event, Pushed):
        pushes.on_pushed(state, event, now, out)
    elif isinstance(event, QuoteSeen):
        on_quote(state, event, now)
    elif isinstance(event, MarksSeen):
        on_marks(state, event, now, out)
    elif isinstance(event, SignalRead):
        entries.on_signal(state, event, now, out)
    elif isinstance(event, CommandRead):
        on_command(state, event, now, out)
    elif isinstance(event, SnapshotTaken):
        recovery.on_snapshot(state, event, now, out)
    elif isinstance(event, HistoryRead):
        history.on_history(state, event, now, out)
    elif isinstance(event, CommitFailed):
        on_commit_failed(state, event, now, out)
    elif isinstance(event, Trouble):
        state.reconciled = False
        for symbol in list(state.prepared):  # what others changed meanwhile was not told
            unprepare(state, symbol)
        out.add(Note("WARNING", f"entries wait for a reconcile: {event.reason}"))
        out.add(Snap("trouble"))
    elif isinstance(event, Stopping):
        state.stopping = True
    ticks = isinstance(event, Tick)
    if ticks or (breakers.any_set(state.limits) and not isinstance(event, QuoteSeen)):
        guard.follow_breakers(state, now, out, idle=ticks)
    if ticks or isinstance(event, SignalRead):
        watch(state, out)
    return out.merged()


def on_quote(state: State, event: QuoteSeen, now: Now) -> None:
    bid, ask = decimal(event.bid), decimal(event.ask)
    if 0 < bid <= ask:
        state.quotes[event.symbol] = Quote(bid, ask, now.boot_ms)


def on_marks(state: State, event: MarksSeen, now: Now, out: Effects) -> None:
    """Value positions; leave those that stand still."""
    for symbol, mark, rate, next_ms in event.rows:
        if symbol in state.instruments:
            state.marks[symbol] = decimal(mark)
            state.funding[symbol] = Funding(decimal(rate), next_ms)
    for position in list(state.positions.values()):
        mark_now = state.marks.get(position.symbol)
        if mark_now is None or position.qty <= 0 or position.exit_reason:
            continue
        anchor = position.quiet_price
        if anchor <= 0 or abs(mark_now / anchor - 1) > STAGNATION_SHARE:
            state.positions[position.symbol] = replace(
                position, quiet_price=mark_now, quiet_since_ms=int(now.market_ms)
            )
    check_time_exits(state, now, out)


def check_time_exits(state: State, now: Now, out: Effects) -> None:
    """Maximum hold and stagnation, in market time; not of what the exchange was not asked about."""
    limits = state.limits
    if not state.last_reconcile_ms:
        return
    for position in list(state.positions.values()):
        if position.exit_reason or position.qty <= 0:
            continue
        if now.market_ms - position.opened_ms >= limits.hold_max_ms:
            protect.exit_position(state, position.symbol, "maximum hold", now, out)
        elif now.market_ms - position.quiet_since_ms >= limits.stagnation_ms:
            protect.exit_position(state, position.symbol, "stagnation", now, out)


def on_commit_failed(state: State, event: CommitFailed, now: Now, out: Effects) -> None:
    """Nothing fenced leaves without its record; what reduces risk leaves all the same."""
    commit = event.commit
    if commit.armed:
        entries.on_entry_commit_failed(state, event, now, out)
    elif event.outcome == "failed":
        out.add(*(effect for effect in commit.then if protect.is_protective(effect)))
    if event.outcome == "failed":
        state.reconciled = False  # main reads Redis again and feeds Trouble


# --- time --------------------------------------------------------------------------------------


def on_tick(state: State, now: Now, out: Effects) -> None:
    """Deadlines, and what every position is looked at for."""
    on_due(state, now, out)
    if len(state.tries) > TRIES_MAX:
        state.tries = {k: n for k, n in state.tries.items() if k in state.deadlines}
    check_time_exits(state, now, out)
    guard.watch_jobs(state, now, out)


def on_due(state: State, now: Now, out: Effects) -> None:
    """Act on every deadline that is due; a signal that waits for a place may have it now."""
    due = [
        place
        for place, at_ms in state.deadlines.items()
        if at_ms <= now.boot_ms and place[0] not in PASSIVE
    ]
    for place in due:
        state.deadlines.pop(place, None)
        _DUE[place[0]](state, place[1], now, out)
    for waiting in list(state.waiting.values()):
        if waiting.for_place and not state.rotating:
            freed = replace(waiting, for_place=False, until_ms=now.boot_ms + WAIT_MS)
            state.waiting[waiting.signal.id] = freed
            if entries.ready(state, waiting.signal, now):
                entries.decide_waiting(state, freed, now, out)
            else:
                entries.ask(state, waiting.signal, now, out)
                protect.arm_deadline(state, out, "wait", waiting.signal.id, freed.until_ms)


def _due_naked(state: State, symbol: str, now: Now, out: Effects) -> None:
    position = state.positions.get(symbol)
    if position is None or position.stop_state == "acked" or protect.is_left(state, position):
        return
    protect.exit_position(state, symbol, "naked", now, out)


def _due_stop(state: State, symbol: str, now: Now, out: Effects) -> None:
    """It is not there: sent once more, or a new one; without an answer it is asked for."""
    position = state.positions.get(symbol)
    if position is None or position.stop_state == "acked":
        return
    order = state.orders.get(position.stop_order)
    if protect.is_left(state, position):
        pause_ms = max(protect.backoff_ms(state, "stop", symbol), 1_000.0)
        protect.arm_deadline(state, out, "stop", symbol, now.boot_ms + pause_ms)
    elif order is None or order.terminal:
        protect.place_stop(state, symbol, now, out)
        ask_for_leg(state, state.positions[symbol].stop_order, now, out)
    else:
        protect.send_leg(state, order, now, out)
        ask_for_leg(state, order.id, now, out)


def ask_for_leg(state: State, order_id: str, now: Now, out: Effects) -> None:
    pause_ms = max(protect.backoff_ms(state, "leg", order_id), 1_000.0)
    protect.arm_deadline(state, out, "leg", order_id, now.boot_ms + pause_ms)


def _due_target(state: State, symbol: str, now: Now, out: Effects) -> None:
    position = state.positions.get(symbol)
    if position is None or position.target_state == "acked":
        return
    order = state.orders.get(position.target_order)
    if order is None or order.terminal or protect.is_left(state, position):
        return
    protect.send_leg(state, order, now, out)


def _due_leg(state: State, order_id: str, now: Now, out: Effects) -> None:
    """A leg that nobody answered for: does it rest?"""
    order = state.orders.get(order_id)
    position = state.positions.get(order.symbol) if order else None
    if order is None or position is None or order.terminal or order.state == "acked":
        return
    if order.id in (position.stop_order, position.target_order):
        priority = PROTECT if order.leg == orders.STOP_LEG else RECONCILE
        out.add(replace(orders.query_request(order), purpose="leg", priority=priority))


def _due_exit(state: State, symbol: str, now: Now, out: Effects) -> None:
    """Still open: the same order again while its fate is unknown, a new one after it ended."""
    position = state.positions.get(symbol)
    if position is None or not position.exit_reason:
        return
    order = state.orders.get(position.exit_order)
    if protect.is_left(state, position):
        out.add(orders.trades_request(symbol, position.opened_ms - 1))
        out.add(orders.position_request(symbol))
    elif order is None or order.terminal:
        if order is not None and order.executed > 0:
            out.add(orders.trades_request(symbol, position.opened_ms - 1))
        protect.exit_position(state, symbol, position.exit_reason, now, out)
        return
    else:
        out.add(orders.exit_request(order))
    pause_ms = protect.backoff_ms(state, "exit", symbol)
    protect.arm_deadline(state, out, "exit", symbol, now.boot_ms + max(pause_ms, 1_000.0))


def _due_fills(state: State, order_id: str, now: Now, out: Effects) -> None:
    """REST told of an execution that the user stream did not bring: ask for the trades."""
    order = state.orders.get(order_id)
    position = state.positions.get(order.symbol) if order else None
    if order is None or position is None or not _short_of_fills(order, position):
        return
    out.add(orders.trades_request(order.symbol, position.opened_ms - 1))
    if state.tries.get(("fills", order_id), 0) >= FILLS_TRIES:  # no trade explains it
        out.add(orders.position_request(order.symbol))
    pause_ms = protect.backoff_ms(state, "fills", order_id)
    protect.arm_deadline(state, out, "fills", order_id, now.boot_ms + pause_ms)


def _short_of_fills(order: orders.Order, position: Position) -> bool:
    if order.leg == orders.ENTRY_LEG:
        return position.qty + position.exit_qty < order.executed
    return position.exit_qty < order.executed


def _due_query(state: State, order_id: str, now: Now, out: Effects) -> None:
    order = state.orders.get(order_id)
    if order is not None and not order.terminal:
        out.add(orders.query_request(order))
        pause_ms = max(protect.backoff_ms(state, "query", order_id), 1_000.0)
        protect.arm_deadline(state, out, "query", order_id, now.boot_ms + pause_ms)


def _due_cancel(state: State, order_id: str, now: Now, out: Effects) -> None:
    order = state.orders.get(order_id)
    if order is not None and not order.terminal:
        out.add(orders.cancel_request(order.id, order.symbol, order.algo))
        pause_ms = max(protect.backoff_ms(state, "cancel", order_id), 1_000.0)
        protect.arm_deadline(state, out, "cancel", order_id, now.boot_ms + pause_ms)


def _due_wait(state: State, signal_id: str, now: Now, out: Effects) -> None:
    """What it waited for did not come: the gate says so."""
    waiting = state.waiting.get(signal_id)
    if waiting is None:
        return
    if waiting.for_place:
        numbers = {"waited_ms": str(PLACE_WAIT_MS), "closing": state.rotating}
        late = Judgement((Verdict("rotation", False, numbers),), None)
        entries.refuse(state, waiting.signal, waiting.entry_id, late, now, out)
    else:
        entries.decide_waiting(state, waiting, now, out)


def _due_snap(state: State, key: str, now: Now, out: Effects) -> None:
    out.add(Snap("again"))


def _due_income(state: State, kind: str, now: Now, out: Effects) -> None:
    income.ask(state, kind, now, out)


def _due_mode(state: State, key: str, now: Now, out: Effects) -> None:
    """Somebody switched the position mode: has it been switched back?"""
    out.add(orders.mode_request())
    protect.arm_deadline(state, out, "mode", "", now.boot_ms + MODE_MS)


_DUE: Final = {
    "income": _due_income,
    "mode": _due_mode,
    "snap": _due_snap,
    "naked": _due_naked,
    "stop": _due_stop,
    "target": _due_target,
    "leg": _due_leg,
    "exit": _due_exit,
    "fills": _due_fills,
    "query": _due_query,
    "cancel": _due_cancel,
    "wait": _due_wait,
}


def watch(state: State, out: Effects) -> None:
    """Quotes are wanted for open positions and for what is being decided."""
    wanted = {*state.positions, *(w.signal.symbol for w in state.waiting.values())}
    if wanted != state.watched:
        state.watched = wanted
        out.add(Watch(tuple(sorted(wanted & state.instruments.keys()))))
