"""Reconciliation: one pass makes us and the exchange agree, whatever went apart."""

from __future__ import annotations

import random
from decimal import Decimal

import pytest
from risk_desk import KEYS, MARKET_MS, Desk, cancels, queries, replace, sends

from risk import orders as order_fields
from risk import portfolio
from risk.events import Done, Refused, Send, SnapshotTaken
from risk.orders import Order, opposite
from risk.portfolio import Position
from risk.reconcile import (
    NAMES,
    Action,
    Resting,
    Snapshot,
    action_from_fields,
    action_to_fields,
    difference,
    snapshot_from_json,
    snapshot_to_json,
)
from risk.recovery import START
from streams import client_id, prefix3

P3 = prefix3(KEYS)
PREFIX = f"ag{P3}"
SYMBOLS = [f"S{k}USDT" for k in range(6)]


def snapshot(
    positions: dict[str, tuple[Decimal, Decimal]] | None = None,
    orders: tuple[Resting, ...] = (),
    algos: tuple[Resting, ...] = (),
    started_ms: float = 1e12,
) -> Snapshot:
    return Snapshot("1-1", started_ms, MARKET_MS, Decimal(10_000), positions or {}, orders, algos)


def make_order(cause: str, leg: str, symbol: str, side: str, state: str, rev: int = 0) -> Order:
    return Order(
        id=client_id(P3, cause, leg, rev),
        cause=cause,
        leg=leg,
        symbol=symbol,
        side=side,
        qty=Decimal(1),
        price=Decimal(100),
        state=state,
        stop=Decimal(90),
        target=Decimal(120),
        revision=rev,
    )


def rest(order: Order) -> Resting:
    kind = {"s": "STOP_MARKET", "t": "TAKE_PROFIT_MARKET"}.get(order.leg, "LIMIT")
    return Resting(order.id, order.symbol, order.side, kind, order.price, order.algo, "7")


class World:
    """Both sides of a random divergence, and what carrying an action out does to them."""

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)
        self.positions: dict[str, Position] = {}
        self.known: dict[str, Order] = {}
        self.foreign: set[str] = {s for s in SYMBOLS if self.chance.random() < 0.1}
        self.there: dict[str, Decimal] = {}
        self.algos: dict[str, Resting] = {}
        self.orders: dict[str, Resting] = {}
        for symbol in SYMBOLS:
            self.build(symbol)

    def maybe(self, share: float = 0.5) -> bool:
        return self.chance.random() < share

    def build(self, symbol: str) -> None:
        cause, side = f"cause-{symbol}", self.chance.choice(("buy", "sell"))
        state = self.chance.choice(("intent", "sent", "acked", "unknown", "filled", "canceled"))
        if self.maybe(0.7):
            entry = make_order(cause, "e", symbol, side, self.chance.choice(("filled", state)))
            self.known[entry.id] = entry
        legs = [make_order(cause, leg, symbol, opposite(side), state) for leg in "st"]
        if self.maybe(0.6):
            self.known |= {leg.id: leg for leg in legs}
        for leg in legs:
            if self.maybe():
                self.algos[leg.id] = rest(leg)
        if self.maybe(0.3):  # left over from an older round trip
            orphan = make_order(f"old-{symbol}", "s", symbol, opposite(side), "acked", 2)
            self.algos[orphan.id] = rest(orphan)
        if self.maybe(0.2):
            hand = Resting("by-hand", symbol, side, "LIMIT", Decimal(1))
            self.orders[f"{symbol}-hand"] = hand
        if self.maybe(0.6):
            sign = 1 if side == "buy" else -1
            self.there[symbol] = Decimal(self.chance.choice((1, 1, 2, -1))) * sign
        if self.maybe():
            self.positions[symbol] = Position(
                symbol=symbol,
                side=side,
                signal=cause,
                qty=Decimal(1),
                entry=Decimal(100),
                stop=Decimal(90),
                target=Decimal(self.chance.choice((0, 120))),
                stop_order=self.chance.choice(("", legs[0].id)),
                stop_state=self.chance.choice(("none", "sent", "acked")),
                target_order=self.chance.choice(("", legs[1].id)),
                target_state=self.chance.choice(("none", "sent", "acked")),
            )

    def snapshot(self) -> Snapshot:
        sizes = {s: (a, Decimal(100)) for s, a in self.there.items() if a}
        return snapshot(sizes, tuple(self.orders.values()), tuple(self.algos.values()))

    def difference(self) -> tuple[Action, ...]:
        return difference(self.positions, self.known, self.foreign, self.snapshot(), PREFIX)

    def place(self, symbol: str, leg: str) -> None:
        position = self.positions[symbol]
        order = make_order(position.signal, leg, symbol, opposite(position.side), "acked")
        while order.id in self.known and self.known[order.id].terminal:
            order = make_order(
                position.signal, leg, symbol, order.side, "acked", order.revision + 1
            )
        self.known[order.id] = order
        self.algos[order.id] = rest(order)
        name = "stop" if leg == "s" else "target"
        changes = {f"{name}_order": order.id, f"{name}_state": "acked"}
        self.positions[symbol] = replace(position, **changes)  # type: ignore[arg-type]

    def carry_out(self, action: Action) -> None:
        symbol, position = action.symbol, self.positions.get(action.symbol)
        if action.name == "foreign":
            self.foreign.add(symbol)
        elif action.name == "own":
            self.foreign.discard(symbol)
        elif action.name == "settle" and position is not None:
            if action.amount * position.sign > 0:
                self.positions[symbol] = replace(position, qty=abs(action.amount))
            else:
                del self.positions[symbol]
                self.end(position.signal)
        elif action.name in ("stop", "target"):
            self.place(symbol, action.name[0])
        elif action.name == "query":
            order = self.known[action.order]
            self.known[order.id] = replace(order, state="filled" if order.leg == "e" else "expired")
            if order.leg == "e" and position is None:
                self.end(order.cause)
        elif action.name == "confirm" and position is not None:
            resting = self.algos[action.order]
            leg = "stop" if resting.kind == "STOP_MARKET" else "target"
            changes = {f"{leg}_state": "acked", f"{leg}_order": action.order}
            self.positions[symbol] = replace(position, **changes)  # type: ignore[arg-type]
            order = make_order(position.signal, leg[0], symbol, opposite(position.side), "acked")
            self.known[action.order] = replace(order, id=action.order)
        elif action.name == "cancel":
            del self.algos[action.order]
            if action.order in self.known:
                self.known[action.order] = replace(self.known[action.order], state="canceled")
        elif action.name == "adopt":
            self.adopt(action)

    def end(self, cause: str) -> None:
        for order in list(self.known.values()):
            if order.cause == cause and not order.terminal:
                self.known[order.id] = replace(order, state="canceled")

    def adopt(self, action: Action) -> None:
        symbol, entry = action.symbol, self.known.get(action.order)
        self.foreign.discard(symbol)
        made = Position(
            symbol=symbol,
            side="buy" if action.amount > 0 else "sell",
            signal=entry.cause if entry and entry.leg == "e" else f"adopted-{action.order}",
            qty=abs(action.amount),
            stop=Decimal(90),
        )
        if entry is not None and entry.leg == "e":
            self.positions[symbol] = replace(made, target=Decimal(120))
            self.known[entry.id] = replace(entry, state="filled")
            for order in list(self.known.values()):
                if order.cause == entry.cause and order.algo and order.terminal:
                    self.algos.pop(order.id, None)
            self.place(symbol, "s")
            self.place(symbol, "t")
        else:
            self.positions[symbol] = replace(made, stop_order=action.order, stop_state="acked")
            order = make_order(made.signal, "s", symbol, opposite(made.side), "acked")
            self.known[action.order] = replace(order, id=action.order)


@pytest.mark.parametrize("block", range(20))
def test_one_pass_converges(block: int) -> None:
    for seed in range(block * 100, block * 100 + 100):
        world = World(seed)
        first = world.difference()
        for action in first:
            world.carry_out(action)
        assert world.difference() == (), f"seed {seed}: {first}"


def test_agreement_needs_no_action() -> None:
    assert difference({}, {}, (), snapshot(), PREFIX) == ()


@pytest.mark.parametrize(("qty", "settled"), [("0", True), ("1", False)])
def test_a_position_whose_trades_were_never_told_is_settled(qty: str, settled: bool) -> None:
    """Flat here and flat there is no agreement while nobody knows what was traded."""
    position = Position(symbol="BTCUSDT", side="buy", signal="s1", qty=Decimal(qty))
    there = {"BTCUSDT": (Decimal(qty), Decimal("1000"))} if settled is False else {}
    actions = difference({"BTCUSDT": position}, {}, (), snapshot(there), "ag")
    assert ("settle" in {action.name for action in actions}) == settled


def test_a_foreign_stop_that_closes_all_counts_as_protection() -> None:
    position = Position("BTCUSDT", "buy", "s1", Decimal(1), stop=Decimal(90))
    by_hand = Resting("web_1", "BTCUSDT", "sell", "STOP_MARKET", Decimal(95), closes_all=True)
    there = snapshot({"BTCUSDT": (Decimal(1), Decimal(100))}, algos=(by_hand,))
    assert difference({"BTCUSDT": position}, {}, (), there, PREFIX) == ()


def test_a_stop_of_part_of_the_size_is_no_protection() -> None:
    position = Position("BTCUSDT", "buy", "s1", Decimal(1), stop=Decimal(90))
    by_hand = Resting("web_1", "BTCUSDT", "sell", "STOP_MARKET", Decimal(95), closes_all=False)
    there = snapshot({"BTCUSDT": (Decimal(1), Decimal(100))}, algos=(by_hand,))
    names = [a.name for a in difference({"BTCUSDT": position}, {}, (), there, PREFIX)]
    assert names == ["stop"]


def test_snapshots_and_actions_survive_their_text() -> None:
    for seed in range(20):
        world = World(seed)
        made = world.snapshot()
        assert snapshot_from_json(snapshot_to_json(made)) == made
        for action in world.difference():
            assert action.name in NAMES
            assert action_from_fields(action_to_fields(action, "1-1")) == action


def test_orders_and_positions_survive_their_hashes() -> None:
    for seed in range(20):
        world = World(seed)
        for order in world.known.values():
            assert order_fields.from_fields(order_fields.to_fields(order)) == order
        for position in world.positions.values():
            assert portfolio.from_fields(portfolio.to_fields(position)) == position


# --- carried out by the core ---


def restart(desk: Desk) -> Desk:
    """A new holder with what the hashes of the old one say."""
    after = Desk(limits=desk.limits)
    after.boot_ms, after.market_ms = desk.boot_ms + 3_000, desk.market_ms + 3_000
    after.state.reconciled = False
    after.state.epoch = desk.state.epoch + 1
    for position in desk.state.positions.values():
        kept = portfolio.from_fields(portfolio.to_fields(position))
        after.state.positions[kept.symbol] = kept
    for order in desk.state.orders.values():
        kept_order = order_fields.from_fields(order_fields.to_fields(order))
        after.state.orders[kept_order.id] = kept_order
    return after


def test_after_a_restart_a_resting_stop_is_kept_and_nothing_is_sent() -> None:
    desk = Desk()
    entry, stop, target = desk.open()
    algos = tuple(rest(desk.state.orders[leg.about]) for leg in (stop, target))
    after = restart(desk)
    size = Decimal(entry.params["quantity"])
    truth = snapshot({"BTCUSDT": (size, Decimal(1000))}, algos=algos)
    done = after.do(SnapshotTaken(truth, START))
    assert not sends(done) and not cancels(done) and not queries(done)
    assert after.state.reconciled


def test_after_a_restart_a_missing_stop_is_placed_or_the_position_left() -> None:
    desk = Desk()
    entry = sends(desk.signal(), "entry")[0]
    desk.fill(entry, "1", "1000")
    after = restart(desk)
    done = after.do(SnapshotTaken(snapshot({"BTCUSDT": (Decimal(1), Decimal(1000))}), START))
    stops = sends(done, "stop")
    assert len(stops) == 1
    assert sends(after.wait(1_000), "exit")  # nobody confirmed it


def test_after_a_restart_an_entry_in_flight_is_asked_for_and_not_sent() -> None:
    desk = Desk()
    entry = sends(desk.signal(), "entry")[0]
    after = restart(desk)
    done = after.do(SnapshotTaken(snapshot(), START))
    assert [q.about for q in queries(done)] == [entry.about]
    assert not sends(done)
    done = after.done(queries(done)[0], "FILLED", "1")
    assert sends(done, "stop") and sends(done, "target")


def test_an_entry_that_filled_while_nobody_watched_is_adopted_and_protected() -> None:
    desk = Desk()
    entry = sends(desk.signal(), "entry")[0]
    after = restart(desk)
    there = snapshot({"BTCUSDT": (Decimal(1), Decimal(1000))})
    done = after.do(SnapshotTaken(there, START))
    assert [s.params["clientAlgoId"][-2] for s in sends(done)] == ["s", "t"]
    asked = queries(done, "settle")[0]
    row = {"symbol": "BTCUSDT", "id": 3, "orderId": 42, "side": "BUY", "price": "1000"}
    row |= {"qty": "1", "commission": "0.5", "commissionAsset": "USDT", "time": MARKET_MS}
    after.reply(asked, Done([row]))
    position = after.state.positions["BTCUSDT"]
    assert (position.qty, position.confidence) == (Decimal(1), 0.6)
    assert position.entry_order == entry.about


def test_one_snapshot_corrects_all_that_is_wrong_with_a_symbol() -> None:
    """A leg to be confirmed does not put the question for its entry off."""
    desk = Desk()
    entry = sends(desk.signal(), "entry")[0]
    stop, target = sends(desk.fill(entry, "1", "1000"))
    algos = tuple(rest(desk.state.orders[leg.about]) for leg in (stop, target))
    desk.state.orders[entry.about] = replace(desk.state.orders[entry.about], state="acked")
    after = restart(desk)
    there = {"BTCUSDT": (Decimal(1), Decimal(1000))}
    done = after.do(SnapshotTaken(snapshot(there, algos=algos, started_ms=after.boot_ms), START))
    assert after.state.positions["BTCUSDT"].stop_state == "acked"
    assert [q.about for q in queries(done)] == [entry.about]


@pytest.mark.parametrize("dies_again", [False, True])
def test_an_entry_whose_end_is_told_after_its_round_trip_opens_no_second_one(
    dies_again: bool,
) -> None:
    desk = Desk()
    entry = sends(desk.signal(), "entry")[0]
    desk.fill(entry, "1", "1000")
    untold = replace(desk.state.orders[entry.about], state="acked", executed=Decimal(0))
    desk.state.orders[entry.about] = untold  # the write that tells its end never came
    after = restart(desk)
    leave = sends(after.signal(id="against", side="sell", stop="1010", target="980"), "exit")[0]
    after.fill(leave, "1", "1001")
    assert not after.state.positions
    if dies_again:
        after = restart(after)
        asked = queries(after.do(SnapshotTaken(snapshot(), START)))
    else:
        asked = queries(after.wait(1_000))
    question = next(q for q in asked if q.about == entry.about)
    done = after.done(question, "FILLED", "1")
    assert not sends(done)
    assert not after.state.positions and after.state.orders[entry.about].state == "filled"
    done += after.wait(1_000)
    legs = [o for o in after.state.orders.values() if o.leg != "e" and not o.terminal]
    asked_for = {c.about for c in cancels(done)} | {q.about for q in queries(done)}
    assert {leg.id for leg in legs} <= asked_for  # none is left to the next snapshot


def test_an_entry_found_filled_is_protected_and_its_trades_tell_at_once_if_it_is_over() -> None:
    desk = Desk()
    desk.signal()
    after = restart(desk)
    asked = queries(after.do(SnapshotTaken(snapshot(), START)))[0]
    done = after.done(asked, "FILLED", "1")
    assert sends(done, "stop")
    row = {"symbol": "BTCUSDT", "price": "1000", "qty": "1", "commission": "0.5"}
    row |= {"commissionAsset": "USDT", "time": int(after.market_ms)}
    trades = [row | {"id": 1, "orderId": 42, "side": "BUY"}]
    trades += [row | {"id": 2, "orderId": 43, "side": "SELL"}]
    after.reply(queries(done, "trades")[0], Done(trades))
    assert not after.state.positions


def test_a_leg_that_an_adopting_holder_sent_before_it_died_is_kept_by_the_next() -> None:
    desk = Desk()
    sends(desk.signal(), "entry")
    there = {"BTCUSDT": (Decimal(1), Decimal(1000))}
    second = restart(desk)
    sent = sends(second.do(SnapshotTaken(snapshot(there), START)))
    assert [leg.about[-2:] for leg in sent] == ["s1", "t1"]
    third = restart(desk)  # nothing of what the second did was written but the legs
    legs = [second.state.orders[leg.about] for leg in sent]
    third.state.orders.update({leg.id: leg for leg in legs})
    done = third.do(SnapshotTaken(snapshot(there, algos=tuple(map(rest, legs))), START))
    assert not cancels(done)
    assert not {s.about for s in sends(done)} & {leg.id for leg in legs}


def taken_over(state_of_legs: str) -> tuple[Desk, Desk, list[Send]]:
    """(before, after, legs sent): an entry is found filled by a new holder who sees no position."""
    desk = Desk()
    sends(desk.signal(), "entry")
    for order in list(desk.state.orders.values()):
        if order.algo:
            desk.state.orders[order.id] = replace(order, state=state_of_legs)
    after = restart(desk)
    done = after.do(SnapshotTaken(snapshot(), START))
    asked = [q for q in queries(done) if q.about[-2] == "e"]
    return desk, after, sends(after.done(asked[0], "FILLED", "1"))


@pytest.mark.parametrize("state_of_legs", ["intent", "sent"])
def test_legs_that_an_earlier_holder_may_have_sent_go_out_under_a_new_id(
    state_of_legs: str,
) -> None:
    desk, _, legs = taken_over(state_of_legs)
    assert [leg.about[-2:] for leg in legs] == ["s1", "t1"]
    assert not {leg.about for leg in legs} & desk.state.orders.keys()


def test_a_missing_stop_of_an_earlier_holder_goes_out_under_a_new_id() -> None:
    desk = Desk()
    entry = sends(desk.signal(), "entry")[0]
    sent = sends(desk.fill(entry, "1", "1000"))
    after = restart(desk)
    done = after.do(SnapshotTaken(snapshot({"BTCUSDT": (Decimal(1), Decimal(1000))}), START))
    assert [leg.about[-2:] for leg in sent] == ["s0", "t0"]
    assert [leg.about[-2:] for leg in sends(done)] == ["s1", "t1"]


def test_legs_of_an_earlier_holder_that_rest_after_all_stand_in_for_the_refused() -> None:
    _, after, legs = taken_over("intent")
    for leg in legs:
        asked = queries(after.reply(leg, Refused(-4130, "exists")), "algos")
        first = leg.about[:-1] + "0"
        row = {"clientAlgoId": first, "algoId": 5, "algoStatus": "NEW", "closePosition": True}
        row |= {"orderType": leg.params["type"], "createTime": int(after.market_ms)}
        after.reply(asked[0], Done([row]))
    position = after.state.positions["BTCUSDT"]
    assert (position.stop_state, position.target_state) == ("acked", "acked")
    assert (position.stop_order[-2:], position.target_order[-2:]) == ("s0", "t0")
    assert not sends(after.wait(5_000), "exit") and not sends(after.wait(5_000), "stop")


def test_every_leg_that_may_rest_is_taken_back_when_the_position_ends() -> None:
    _, after, legs = taken_over("intent")
    row = {"symbol": "BTCUSDT", "id": 3, "orderId": 42, "side": "BUY", "price": "1000"}
    row |= {"qty": "1", "commission": "0.5", "commissionAsset": "USDT", "time": MARKET_MS}
    gone = row | {"id": 4, "orderId": 43, "side": "SELL", "time": MARKET_MS + 10}
    asked = queries(after.wait(1_000), "trades")[0]
    done = after.reply(asked, Done([row, gone]))
    assert not after.state.positions
    sent = {leg.about for leg in legs} | {leg.about[:-1] + "0" for leg in legs}
    assert {c.about for c in cancels(done)} == sent


def test_an_exit_that_an_earlier_holder_may_have_sent_is_asked_for_when_the_position_ends() -> None:
    desk = Desk()
    entry, stop, _ = desk.open()
    after = restart(desk)
    planned = next(o for o in after.state.orders.values() if o.leg == "c")
    assert planned.state == "intent"
    after.fill(stop, str(entry.params["quantity"]), "990")
    assert not after.state.positions
    for _ in range(2):
        asked = [q for q in queries(after.wait(6_000)) if q.about == planned.id]
        assert len(asked) == 1
        after.reply(asked[0], Refused(-2013, "no such order"))
    over = after.state.orders[planned.id]
    assert (over.state, over.reason) == ("rejected", "not placed")


def test_a_stop_that_filled_while_nobody_watched_closes_with_its_reason() -> None:
    desk = Desk()
    entry, stop, target = desk.open()
    after = restart(desk)
    done = after.do(SnapshotTaken(snapshot(), START))
    asked = queries(done, "trace")
    assert [q.about for q in asked] == [stop.about]
    told = {"algoId": 1, "algoStatus": "FINISHED", "actualOrderId": "900"}
    more = after.reply(asked[0], Done(told))
    more = after.reply(queries(more, "trace")[0], Done({"algoId": 2, "algoStatus": "EXPIRED"}))
    row = {"symbol": "BTCUSDT", "id": 8, "orderId": 900, "side": "SELL", "price": "990"}
    row |= {"qty": entry.params["quantity"], "commission": "1", "commissionAsset": "USDT"}
    row |= {"time": int(after.market_ms), "realizedPnl": "-10"}
    after.reply(queries(more, "settle")[0], Done([row]))
    assert not after.state.positions
    hashes = [e for e in after.effects if hasattr(e, "ops")]
    closed = [o[2] for e in hashes for o in e.ops if o[0] == "hset" and "exit_reason" in o[2]]
    assert closed[-1]["exit_reason"] == "stop"
    assert target.about


def test_an_exit_decided_before_a_restart_is_carried_on() -> None:
    desk = Desk()
    entry, stop, target = desk.open()
    desk.signal(id="against", side="sell", stop="1010", target="980")
    algos = tuple(rest(desk.state.orders[leg.about]) for leg in (stop, target))
    after = restart(desk)
    size = Decimal(entry.params["quantity"])
    after.do(SnapshotTaken(snapshot({"BTCUSDT": (size, Decimal(1000))}, algos=algos), START))
    assert len(sends(after.wait(250), "exit")) == 1


def test_an_orphan_of_ours_is_cancelled_and_a_foreign_order_left_alone() -> None:
    desk = Desk()
    orphan = rest(make_order("gone", "s", "ETHUSDT", "sell", "acked"))
    by_hand = Resting("web_9", "SOLUSDT", "buy", "LIMIT", Decimal(5))
    done = desk.do(SnapshotTaken(snapshot(algos=(orphan,), orders=(by_hand,)), START))
    assert [c.about for c in cancels(done)] == [orphan.id]
    assert desk.state.foreign == {"SOLUSDT"}


def test_what_changed_after_the_snapshot_was_begun_is_left_to_the_next() -> None:
    desk = Desk()
    entry = sends(desk.signal(), "entry")[0]
    desk.fill(entry, "1", "1000")
    stale = snapshot(started_ms=desk.boot_ms)
    done = desk.do(SnapshotTaken(stale, "reconcile"))
    assert not sends(done) and not queries(done, "settle")
    assert "BTCUSDT" in desk.state.positions
    assert [e for e in desk.wait(1_000) if type(e).__name__ == "Snap"]


@pytest.mark.parametrize("reason", [START, "trouble", "reconcile", "snapshot"])
@pytest.mark.parametrize(("begun_ms", "wallet"), [(-1, "9990"), (0, "9990"), (1, "10000")])
def test_a_wallet_that_was_told_after_the_snapshot_was_begun_is_the_newer_one(
    reason: str, begun_ms: int, wallet: str
) -> None:
    desk = Desk()
    desk.told_wallet("9990")
    begun = snapshot(started_ms=desk.boot_ms + begun_ms)
    desk.boot_ms += 5
    done = desk.do(SnapshotTaken(begun, reason))
    assert desk.state.money.wallet == Decimal(wallet)
    written = [o[2]["wallet"] for e in done if hasattr(e, "ops") for o in e.ops if "wallet" in o[2]]
    assert written[-1] == wallet


def test_a_snapshot_for_the_job_corrects_nothing_by_itself() -> None:
    desk = Desk()
    orphan = rest(make_order("gone", "s", "ETHUSDT", "sell", "acked"))
    done = desk.do(SnapshotTaken(snapshot(algos=(orphan,)), "snapshot", "c1"))
    assert not cancels(done)
    answers = [o for e in done if hasattr(e, "ops") for o in e.ops if o[1] == KEYS.replies]
    assert "c1" in answers[0][2]


def test_one_snapshot_without_a_stop_is_no_proof_and_the_answer_is() -> None:
    desk = Desk()
    entry, stop, target = desk.open()
    size = {"BTCUSDT": (Decimal(entry.params["quantity"]), Decimal(1000))}
    algos = (rest(desk.state.orders[target.about]),)
    done = desk.do(SnapshotTaken(snapshot(size, algos=algos), "reconcile"))
    asked = queries(done)
    assert {q.about for q in asked} == {stop.about} and not sends(done)
    assert ("naked", "BTCUSDT") not in desk.state.deadlines
    desk.reply(asked[0], Done({"algoId": 1, "algoStatus": "CANCELED"}))
    assert ("naked", "BTCUSDT") in desk.state.deadlines
    assert sends(desk.wait(500), "stop")


def test_a_stop_that_is_there_after_all_sends_nothing() -> None:
    desk = Desk()
    entry, stop, target = desk.open()
    size = {"BTCUSDT": (Decimal(entry.params["quantity"]), Decimal(1000))}
    algos = (rest(desk.state.orders[target.about]),)
    asked = queries(desk.do(SnapshotTaken(snapshot(size, algos=algos), "reconcile")))
    desk.reply(asked[0], Done({"algoId": 1, "algoStatus": "NEW"}))
    assert not sends(desk.wait(5_000))
    assert desk.state.positions["BTCUSDT"].stop_state == "acked"
    assert stop.about == desk.state.positions["BTCUSDT"].stop_order


def test_a_resting_leg_that_ended_for_us_is_taken_back_and_a_new_one_placed() -> None:
    desk = Desk()
    entry, stop, target = desk.open()
    algos = tuple(rest(desk.state.orders[leg.about]) for leg in (stop, target))
    desk.algo(stop, "CANCELED")
    size = {"BTCUSDT": (Decimal(entry.params["quantity"]), Decimal(1000))}
    done = desk.do(SnapshotTaken(snapshot(size, algos=algos), "reconcile"))
    assert [c.about for c in cancels(done)] == [stop.about]
    again = sends(done, "stop")
    assert len(again) == 1 and again[0].about != stop.about
    assert desk.state.orders[stop.about].state == "canceled"


def test_a_leg_that_ended_after_the_snapshot_was_begun_is_left_to_the_next() -> None:
    desk = Desk()
    entry, stop, target = desk.open()
    algos = tuple(rest(desk.state.orders[leg.about]) for leg in (stop, target))
    begun_ms = desk.boot_ms + 1
    desk.boot_ms += 2
    desk.algo(stop, "CANCELED")
    size = {"BTCUSDT": (Decimal(entry.params["quantity"]), Decimal(1000))}
    done = desk.do(SnapshotTaken(snapshot(size, algos=algos, started_ms=begun_ms), "reconcile"))
    assert not cancels(done) and not sends(done)
