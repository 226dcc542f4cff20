"""From a signal to an entry order: ask what is missing, judge once, write, then send.

Everything that one decision needs (a fresh quote, verified leverage and margin type, a free
place) is gathered first; then the gate judges the whole case in one step, and in that same step
the place is taken, so that no interleaving makes a fourth position. The intents of all legs are
durable before the entry leaves; if they cannot be written, nothing leaves.
"""

from __future__ import annotations

from decimal import Decimal
from typing import Final

from msgspec.structs import replace

from risk import journal, orders, rotation
from risk.events import (
    ENTRY,
    Commit,
    CommitFailed,
    Done,
    Effects,
    Note,
    Now,
    Query,
    Refused,
    Replied,
    Send,
    SignalRead,
)
from risk.gate import (
    Approved,
    Case,
    Judgement,
    Quote,
    Verdict,
    check_missed,
    check_quality,
    check_stale,
    judge,
    judge_early,
    leverage_wanted,
    plan_entry,
)
from risk.instruments import decimal, plain
from risk.orders import Order, advance
from risk.protect import arm_deadline, exit_position, record
from risk.signals import Signal, parse_signal
from risk.state import WAITING_MAX, State, Waiting, make_case, put_order

WAIT_MS: Final = 1_000.0  # real time for a quote and settings; then the gate says what is missing
QUOTE_FRESH_MS: Final = 500.0  # a quote older than this is asked for again before deciding
QUOTE_AHEAD_MS: Final = 100.0  # real time that the sender's clock may be ahead of ours
QUOTE_OFF_MAX: Final = Decimal("0.01")  # of the mark; a quote farther from it is asked for
MARGIN_SET: Final = -4046  # margin type is so already: a success
DECAY_CHECKS: Final = (check_stale, check_missed, check_quality)
PLACE_WAIT_MS: Final = 10_000.0  # for a rotated position to close; age decides anyway


def on_signal(state: State, event: SignalRead, now: Now, out: Effects) -> None:
    """Refuse what can be refused at once; ask for what the rest needs; decide when it is there."""
    ack = (state.keys.signals, state.group, event.entry_id)
    signal = parse_signal(event.fields)
    if isinstance(signal, str):
        dead = {
            "stream": state.keys.signals,
            "id": event.entry_id,
            "why": signal,
            "fields": repr(dict(event.fields)),
        }
        out.add(Commit((("xadd", state.keys.dead, dead),), "dead", ack=ack))
        return
    if signal.id in state.waiting:
        kept = state.waiting[signal.id]
        if kept.entry_id != event.entry_id:
            out.add(Commit((), signal.id, ack=ack))  # the same signal, appended twice
        return
    if state.make_id(signal.id, orders.ENTRY_LEG) in state.orders:
        out.add(Commit((), signal.id, ack=ack))  # decided before; its acknowledgement was lost
        return
    take_quote(state, signal, now)
    case = make_case(state, signal, now)
    if decays(state, case):
        decay(state, signal, event.entry_id, now, out)
        return
    waiting = Waiting(signal, event.entry_id, now.boot_ms + WAIT_MS)
    if ready(state, signal, now):
        decide(state, waiting, case, now, out)
        return
    early = judge_early(case)
    at_limit = early is None and len(state.waiting) >= WAITING_MAX
    if at_limit:
        early = Judgement((Verdict("busy", False, {"waiting": str(len(state.waiting))}),), None)
    if early is not None:
        refuse(state, signal, event.entry_id, early, now, out)
        return
    state.waiting[signal.id] = waiting
    ask(state, signal, now, out)
    arm_deadline(state, out, "wait", signal.id, waiting.until_ms)


def take_quote(state: State, signal: Signal, now: Now) -> None:
    """The quote that came with a signal, where it is newer than what we know and near the mark;
    it saves the exchange a question and the entry its answer's time."""
    mark, age_ms = state.marks.get(signal.symbol), (now.market_ms - signal.quoted_ms) / now.speed
    if mark is None or not 0 < signal.bid <= signal.ask or age_ms < -QUOTE_AHEAD_MS:
        return
    if max(signal.ask - mark, mark - signal.bid) > mark * QUOTE_OFF_MAX:
        return
    known, boot_ms = state.quotes.get(signal.symbol), now.boot_ms - max(age_ms, 0.0)
    if known is None or known.boot_ms < boot_ms:
        state.quotes[signal.symbol] = Quote(signal.bid, signal.ask, boot_ms)


def decays(state: State, case: Case) -> bool:
    """A fresh signal against an open position: the reason to hold it is gone."""
    position = state.positions.get(case.signal.symbol)
    if position is None or position.exit_reason or not state.limits.signal_decay:
        return False
    sound = all(check(case, plan_entry(case)).ok for check in DECAY_CHECKS)
    return sound and position.side != case.signal.side


def decay(state: State, signal: Signal, entry_id: str, now: Now, out: Effects) -> None:
    verdict = Verdict("signal decay", True, {"closes": state.positions[signal.symbol].signal})
    ops = journal.decision_ops(state, signal, (verdict,), "signal decay", now)
    ack = (state.keys.signals, state.group, entry_id)
    out.add(Commit(tuple(ops), signal.id, ack=ack))
    exit_position(state, signal.symbol, "signal decay", now, out)


def fresh(state: State, symbol: str, now: Now) -> bool:
    quote = state.quotes.get(symbol)
    return quote is not None and now.boot_ms - quote.boot_ms <= QUOTE_FRESH_MS


def wanted_leverage(state: State, symbol: str) -> int:
    rules = state.instruments.get(symbol)
    return leverage_wanted(state.limits, state.money.trades_closed, rules)


def ready(state: State, signal: Signal, now: Now) -> bool:
    """Quote, mark and verified settings are at hand."""
    symbol = signal.symbol
    return (
        fresh(state, symbol, now)
        and symbol in state.marks
        and state.prepared.get(symbol) == wanted_leverage(state, symbol)
    )


def ask(state: State, signal: Signal, now: Now, out: Effects) -> None:
    """Request what is missing for this symbol, all at once."""
    symbol = signal.symbol
    if symbol not in state.instruments:
        return  # the gate will say so
    if not fresh(state, symbol, now):
        out.add(quote_request(symbol))
    if symbol not in state.marks:
        out.add(Query("GET", "/fapi/v1/premiumIndex", {"symbol": symbol}, symbol, "mark", ENTRY))
    leverage = wanted_leverage(state, symbol)
    if state.prepared.get(symbol) != leverage and symbol not in state.positions:
        margin = {"symbol": symbol, "marginType": "ISOLATED"}
        out.add(Send("POST", "/fapi/v1/marginType", margin, symbol, "margin", ENTRY))
        wanted = {"symbol": symbol, "leverage": str(leverage)}
        out.add(Send("POST", "/fapi/v1/leverage", wanted, symbol, "leverage", ENTRY))


def quote_request(symbol: str) -> Query:
    path = "/fapi/v1/ticker/bookTicker"
    return Query("GET", path, {"symbol": symbol}, symbol, "quote", ENTRY)


def on_prepared(state: State, event: Replied, now: Now, out: Effects) -> None:
    """An answer that waiting signals asked for; whoever has all of it is decided."""
    symbol, purpose, result = event.request.about, event.request.purpose, event.result
    body = result.body if isinstance(result, Done) else {}
    if purpose == "quote" and body:
        bid, ask_price = decimal(body.get("bidPrice")), decimal(body.get("askPrice"))
        if 0 < bid <= ask_price:
            state.quotes[symbol] = Quote(bid, ask_price, event.sent_ms or now.boot_ms)
    elif purpose == "mark" and body:
        state.marks[symbol] = decimal(body.get("markPrice"))
    elif purpose in ("margin", "leverage"):
        _settings(state, event, out)
    for waiting in [w for w in state.waiting.values() if not w.for_place]:
        if waiting.signal.symbol == symbol and ready(state, waiting.signal, now):
            decide_waiting(state, waiting, now, out)


def _settings(state: State, event: Replied, out: Effects) -> None:
    """Both settings confirmed make a symbol prepared; a refusal leaves it unprepared."""
    symbol, result = event.request.about, event.result
    margin_ok = isinstance(result, Refused) and result.code == MARGIN_SET
    if not isinstance(result, Done) and not margin_ok:
        state.tries.pop(("margin", symbol), None)
        state.tries.pop(("leverage", symbol), None)
        out.add(Note("WARNING", f"{event.request.purpose} not set symbol={symbol} {result}"))
        return
    if event.request.purpose == "margin":
        state.tries[("margin", symbol)] = 1
    elif isinstance(result, Done):
        state.tries[("leverage", symbol)] = int(result.body.get("leverage", 0))
    if ("margin", symbol) in state.tries and ("leverage", symbol) in state.tries:
        state.prepared[symbol] = state.tries[("leverage", symbol)]


# --- the decision ------------------------------------------------------------------------------


def decide_waiting(state: State, waiting: Waiting, now: Now, out: Effects) -> None:
    """The decision about a signal that waited, with the case as it is now."""
    decide(state, waiting, make_case(state, waiting.signal, now), now, out)


def decide(state: State, waiting: Waiting, case: Case, now: Now, out: Effects) -> None:
    """One judgement with everything at hand: enter, make a place by rotation, or refuse."""
    signal = waiting.signal
    judgement = judge(case)
    if judgement.approved is not None and state.prepared.get(signal.symbol) != (
        judgement.approved.leverage
    ):
        numbers = {
            "leverage": str(judgement.approved.leverage),
            "verified": str(state.prepared.get(signal.symbol, 0)),
        }
        judgement = Judgement((*judgement.verdicts, Verdict("leverage", False, numbers)), None)
    if judgement.approved is not None:
        state.waiting.pop(signal.id, None)
        state.deadlines.pop(("wait", signal.id), None)
        place_entry(state, judgement.approved, judgement, waiting.entry_id, now, out)
        return
    if judgement.refusal == "positions" and state.limits.rotation:
        if waiting.for_place and state.rotating:
            return  # the place is being made
        verdict = rotation.judge_rotation(state, case)
        judgement = Judgement((*judgement.verdicts, verdict), None)
        if verdict.ok:
            begin_rotation(state, waiting, judgement, verdict.numbers["weakest"], now, out)
            return
    refuse(state, signal, waiting.entry_id, judgement, now, out)


def begin_rotation(
    state: State, waiting: Waiting, judgement: Judgement, weakest: str, now: Now, out: Effects
) -> None:
    """Close first, confirm, then open: the signal waits for the place and is judged again."""
    state.rotating = weakest
    until_ms = now.boot_ms + PLACE_WAIT_MS
    state.waiting[waiting.signal.id] = replace(waiting, for_place=True, until_ms=until_ms)
    arm_deadline(state, out, "wait", waiting.signal.id, until_ms)
    ops = journal.decision_ops(
        state, waiting.signal, judgement.verdicts, f"rotation closes {weakest}", now
    )
    record(state, out, ops, waiting.signal.id)
    exit_position(state, weakest, "rotation", now, out)


def refuse(
    state: State, signal: Signal, entry_id: str, judgement: Judgement, now: Now, out: Effects
) -> None:
    """Write why, and be done with the signal."""
    state.waiting.pop(signal.id, None)
    state.deadlines.pop(("wait", signal.id), None)
    outcome = "missed" if judgement.refusal == "missed" else "refused"
    ops = journal.decision_ops(state, signal, judgement.verdicts, outcome, now)
    ack = (state.keys.signals, state.group, entry_id)
    out.add(Commit(tuple(ops), signal.id, ack=ack))


def place_entry(
    state: State,
    approved: Approved,
    judgement: Judgement,
    entry_id: str,
    now: Now,
    out: Effects,
) -> None:
    """Reserve in memory, write the intents of all legs in one script, then send the entry."""
    legs = plan_legs(state, approved, now)
    for order in legs:
        put_order(state, order)
    entry = legs[0]
    state.money = replace(state.money, entries=state.money.entries + 1)
    state.touched[entry.symbol] = now.boot_ms
    ops = journal.decision_ops(state, approved.signal, judgement.verdicts, "entry", now, entry.id)
    for order in legs:
        ops += journal.order_ops(state, order, now)
    ops += journal.money_ops(state)
    out.add(
        Commit(
            tuple(ops),
            about=entry.id,
            ack=(state.keys.signals, state.group, entry_id),
            armed=True,
            unless=(state.keys.order(entry.id),),
            then=(orders.entry_request(approved, entry),),
        )
    )


def plan_legs(state: State, approved: Approved, now: Now) -> list[Order]:
    """Entry, stop, target and emergency close: ids and prices decided together."""
    signal, market_ms = approved.signal, int(now.market_ms)
    entry = Order(
        id=state.make_id(signal.id, orders.ENTRY_LEG),
        cause=signal.id,
        leg=orders.ENTRY_LEG,
        symbol=approved.symbol,
        side=approved.side,
        qty=approved.qty,
        price=approved.price,
        state="intent",
        created_ms=market_ms,
        updated_ms=market_ms,
        epoch=state.epoch,
        stop=approved.stop,
        target=approved.target,
        confidence=signal.confidence,
        leverage=approved.leverage,
        signal_price=signal.price,
        mid=approved.mid,
        rule=signal.rule,
    )
    legs = [entry]
    out_side = orders.opposite(approved.side)
    for leg, price in (
        (orders.STOP_LEG, approved.stop),
        (orders.TARGET_LEG, approved.target),
        (orders.CLOSE_LEG, decimal("")),
    ):
        legs.append(
            replace(
                entry,
                id=state.make_id(signal.id, leg),
                leg=leg,
                side=out_side,
                qty=decimal(""),
                price=price,
            )
        )
    return legs


def on_entry_commit_failed(state: State, event: CommitFailed, now: Now, out: Effects) -> None:
    """The intents were not written, or nobody knows: in either case the entry was never sent."""
    entry = state.orders.get(event.commit.about)
    if entry is None:
        return
    ack = event.commit.ack
    legs = state.orders.legs(entry.cause)
    for order in legs:
        if event.outcome == "failed":
            put_order(state, advance(order, "canceled", int(now.market_ms), "not sent"))
            # whichever way the write went, these intents end here
            ops = journal.order_ops(state, state.orders[order.id], now)
            record(state, out, ops, order.id)
        else:
            del state.orders[order.id]
    state.money = replace(state.money, entries=state.money.entries - 1)
    out.add(Note("WARNING", f"entry not written order={entry.id} outcome={event.outcome}"))
    if event.outcome == "disarmed":
        state.armed = False
        ops = [("xadd", state.keys.decisions, _disarmed_fields(state, entry, now))]
        out.add(Commit(tuple(ops), entry.cause, ack=ack))


def _disarmed_fields(state: State, entry: Order, now: Now) -> dict[str, str]:
    return {
        "signal": entry.cause,
        "symbol": entry.symbol,
        "side": entry.side,
        "outcome": "refused",
        "refused_by": "armed",
        "verdicts": '[{"name": "armed", "ok": false, "blocked": "the key armed is gone"}]',
        "qty": plain(entry.qty),
        "ms": str(int(now.market_ms)),
        "wall_ms": str(now.wall_ms),
        "epoch": str(state.epoch),
        "source": "risk",
    }
