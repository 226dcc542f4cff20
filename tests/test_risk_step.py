"""The core of risk, one event at a time: each path from signal to flat."""

from __future__ import annotations

from decimal import Decimal

import pytest
from risk_desk import (
    KEYS,
    NOT_FOUND,
    Desk,
    cancels,
    decisions,
    ops,
    order_id,
    queries,
    replace,
    sends,
    signal_fields,
)

from risk import orders
from risk.events import (
    Commit,
    Done,
    Effect,
    Event,
    MarksSeen,
    Pushed,
    Refused,
    Send,
    Stopping,
    Throttled,
    Unknown,
)
from risk.gate import Limits
from risk.state import WAITING_MAX, settled


def test_a_signal_becomes_one_limit_ioc_entry_with_all_legs_written_first() -> None:
    desk = Desk()
    done = desk.signal()
    entry = sends(done, "entry")
    assert len(entry) == 1
    params = entry[0].params
    assert (params["type"], params["timeInForce"], params["side"]) == ("LIMIT", "IOC", "BUY")
    assert params["newOrderRespType"] == "RESULT"
    assert entry[0].fenced
    commit = next(e for e in done if isinstance(e, Commit))
    assert done.index(commit) < done.index(entry[0])
    assert commit.armed and commit.unless == (KEYS.order(entry[0].about),)
    assert commit.ack == (KEYS.signals, "main", "1-0")
    intents = [op[2]["leg"] for op in commit.ops if op[1] == KEYS.orders]
    assert intents == ["entry", "stop", "target", "emergency close"]


def test_no_quantity_or_price_leaves_the_exchanges_steps() -> None:
    desk = Desk()
    params = sends(desk.signal(stop="993.37", target="1021.19"), "entry")[0].params
    assert Decimal(params["quantity"]) % Decimal("0.001") == 0
    assert Decimal(params["price"]) % Decimal("0.1") == 0
    assert Decimal(params["price"]) <= Decimal("1001")  # touch 1000 and 10 bp


@pytest.mark.parametrize("outcome", ["stale", "disarmed", "duplicate", "failed"])
def test_nothing_is_sent_when_the_intents_are_not_written(outcome: str) -> None:
    desk = Desk(commit_outcome=outcome)
    done = desk.signal()
    assert not sends(done)
    desk.commit_outcome = "ok"
    assert not [o for o in desk.state.orders.values() if not o.terminal]


def test_an_entry_whose_write_is_unknown_ends_in_a_terminal_state() -> None:
    desk = Desk(commit_outcome="failed")
    desk.signal()
    states = {order.leg: order.state for order in desk.state.orders.values()}
    assert states == dict.fromkeys("estc", "canceled")
    assert not desk.state.reconciled


def test_a_disarmed_account_acknowledges_the_signal_with_a_reason() -> None:
    desk = Desk(commit_outcome="disarmed")
    done = desk.signal()
    assert decisions(done)[-1]["refused_by"] == "armed"
    assert not desk.state.armed


def test_a_signal_read_twice_is_decided_once() -> None:
    desk = Desk()
    assert len(sends(desk.signal(), "entry")) == 1
    again = desk.signal()
    assert not sends(again)
    commits = [e for e in again if isinstance(e, Commit)]
    assert [c.ack for c in commits] == [(KEYS.signals, "main", "2-0")]


def test_what_is_no_signal_is_set_aside_with_a_reason() -> None:
    desk = Desk()
    done = desk.signal(stop="1010")
    assert "stop" in ops(done, "xadd", KEYS.dead)[0][2]["why"]
    assert not sends(done)


# --- protection ---


def test_the_first_fill_sends_stop_then_target_at_once() -> None:
    desk = Desk()
    entry = sends(desk.signal(), "entry")[0]
    done = desk.fill(entry, "0.5", "1000", "PARTIALLY_FILLED")
    assert [s.purpose for s in sends(done)] == ["stop", "target"]
    stop = sends(done, "stop")[0].params
    assert stop["type"] == "STOP_MARKET" and stop["closePosition"] == "true"
    assert stop["triggerPrice"] == "990" and stop["side"] == "SELL"
    assert "quantity" not in stop and "reduceOnly" not in stop
    assert sends(done, "target")[0].params["type"] == "TAKE_PROFIT_MARKET"


def test_a_second_fill_adds_to_the_position_and_sends_nothing() -> None:
    desk = Desk()
    entry = sends(desk.signal(), "entry")[0]
    desk.fill(entry, "0.5", "1000", "PARTIALLY_FILLED")
    done = desk.fill(entry, "0.5", "1002")
    assert not sends(done)
    position = desk.state.positions["BTCUSDT"]
    assert (position.qty, position.entry) == (Decimal("1.0"), Decimal("1001"))


def test_the_same_fill_told_twice_counts_once() -> None:
    desk = Desk()
    entry = sends(desk.signal(), "entry")[0]
    desk.fill(entry, "0.5", "1000", "PARTIALLY_FILLED")
    desk.trades -= 1
    desk.fill(entry, "0.5", "1000", "PARTIALLY_FILLED")
    assert desk.state.positions["BTCUSDT"].qty == Decimal("0.5")
    assert desk.state.money.fills == 1


def test_a_fill_told_first_by_the_reply_is_protected_before_its_trades_are_known() -> None:
    desk = Desk()
    entry = sends(desk.signal(), "entry")[0]
    done = desk.done(entry, "FILLED", entry.params["quantity"])
    assert [s.purpose for s in sends(done)] == ["stop", "target"]
    assert not sends(desk.fill(entry, entry.params["quantity"], "1000"))
    assert desk.state.positions["BTCUSDT"].qty == Decimal(entry.params["quantity"])


@pytest.mark.parametrize("told_by", ["reply", "stream"])
def test_a_kill_between_two_writes_never_loses_sight_of_a_position(told_by: str) -> None:
    """An entry is not written as over before its position (and a fill that is told) is."""
    desk = Desk()
    entry = sends(desk.signal(), "entry")[0]
    quantity = entry.params["quantity"]
    if told_by == "reply":
        done = desk.done(entry, "FILLED", quantity)
    else:
        done = desk.fill(entry, quantity, "1000")
    keys, entry_id = desk.state.keys, entry.about
    commits = [effect.ops for effect in done if isinstance(effect, Commit)]

    def first(key: str, **wanted: str) -> int:
        return next(
            number
            for number, written in enumerate(commits)
            for op in written
            if op[1] == key and all(op[2].get(k) == v for k, v in wanted.items())
        )

    over = first(keys.order(entry_id), state="filled")
    assert first(keys.position("BTCUSDT")) <= over
    if told_by == "stream":
        assert first(keys.fills) <= over


def test_trades_that_the_user_stream_does_not_bring_are_asked_for() -> None:
    desk = Desk()
    entry = sends(desk.signal(), "entry")[0]
    desk.done(entry, "FILLED", "1")
    desk.accepted(sends(desk.effects, "stop")[0])
    asked = queries(desk.wait(1_000), "trades")
    assert [q.about for q in asked] == ["BTCUSDT"]
    row = {"symbol": "BTCUSDT", "id": 9, "orderId": 42, "side": "BUY", "price": "1000"}
    row |= {"qty": "1", "commission": "0.5", "commissionAsset": "USDT", "time": int(desk.market_ms)}
    desk.reply(asked[0], Done([row]))
    assert desk.state.positions["BTCUSDT"].qty == 1


@pytest.mark.parametrize(("after_ms", "flat"), [(749, False), (750, True), (751, True)])
@pytest.mark.parametrize("late_ms", [0, 100, 375, 10_000])
def test_a_position_without_a_stop_begins_to_leave_before_naked_ms_is_over(
    after_ms: int, flat: bool, late_ms: int
) -> None:
    """Counted from the fill, however late it was told; a clock that is wrong halves the time."""
    desk = Desk()
    entry = sends(desk.signal(), "entry")[0]
    desk.market_ms -= late_ms
    told = orders_fill_at(desk, entry)
    desk.market_ms += late_ms
    desk.do(told)
    after_ms -= min(late_ms, 375)
    exits = sends(desk.wait(after_ms), "exit")
    assert bool(exits) is flat
    if flat:
        assert exits[0].params["type"] == "MARKET" and exits[0].params["reduceOnly"] == "true"


def orders_fill_at(desk: Desk, entry: Send) -> Pushed:
    """The fill of an entry as the exchange tells it at this market time."""
    taken: list[Event] = []

    class Twin(Desk):
        def do(self, event: Event) -> list[Effect]:
            taken.append(event)
            return []

    Twin(market_ms=desk.market_ms).fill(entry, "1", "1000")
    assert isinstance(taken[0], Pushed)
    return taken[0]


def test_a_confirmed_stop_ends_the_naked_time_and_records_it() -> None:
    desk = Desk()
    entry = sends(desk.signal(), "entry")[0]
    stop = sends(desk.fill(entry, "1", "1000"), "stop")[0]
    desk.boot_ms += 40
    desk.market_ms += 40
    desk.accepted(stop)
    assert desk.state.positions["BTCUSDT"].naked_ms == 40
    assert not sends(desk.wait(5_000), "exit")


def test_a_stop_that_would_trigger_means_exit_now() -> None:
    desk = Desk()
    entry = sends(desk.signal(), "entry")[0]
    stop = sends(desk.fill(entry, "1", "1000"), "stop")[0]
    done = desk.reply(stop, Refused(-2021, "Order would immediately trigger."))
    exits = sends(done, "exit")
    assert len(exits) == 1 and exits[0].params["quantity"] == "1"


def test_minus_4130_means_protected_already_and_is_looked_up() -> None:
    desk = Desk()
    entry = sends(desk.signal(), "entry")[0]
    stop = sends(desk.fill(entry, "1", "1000"), "stop")[0]
    asked = queries(desk.reply(stop, Refused(-4130, "exists")), "algos")
    assert len(asked) == 1
    row = {"clientAlgoId": stop.about, "algoStatus": "NEW", "orderType": "STOP_MARKET"}
    desk.reply(asked[0], Done([row | {"createTime": int(desk.market_ms), "algoId": 5}]))
    assert desk.state.positions["BTCUSDT"].stop_state == "acked"
    assert not sends(desk.wait(2_000), "exit")


def test_a_stop_is_sent_again_until_it_stands() -> None:
    desk = Desk()
    entry = sends(desk.signal(), "entry")[0]
    stop = sends(desk.fill(entry, "1", "1000"), "stop")[0]
    desk.reply(stop, Refused(-1008, "overload"))
    again = sends(desk.wait(150), "stop")
    assert [s.about for s in again] == [stop.about]


def test_a_stop_without_an_answer_is_asked_for_and_sent_again_where_it_is_not() -> None:
    desk = Desk()
    entry = sends(desk.signal(), "entry")[0]
    stop = sends(desk.fill(entry, "1", "1000"), "stop")[0]
    desk.reply(stop, Unknown("time-out"))
    done = desk.wait(150)
    assert not sends(done, "stop")
    (asked,) = queries(done, "leg")
    assert asked.priority == stop.priority  # a pause of the exchange does not hold it up
    desk.reply(asked, Unknown("time-out"))
    (asked,) = queries(desk.wait(150), "leg")
    desk.reply(asked, Refused(-2013, "Order does not exist."))
    again = sends(desk.wait(0), "stop")
    assert [s.about for s in again] == [stop.about]


def test_a_stop_that_ended_unseen_is_never_sent_again_under_its_id() -> None:
    """The exchange stood still: the stop was taken, its position closed, and nobody was told. The
    exchange would take the id a second time."""
    desk = Desk()
    entry = sends(desk.signal(), "entry")[0]
    stop = sends(desk.fill(entry, "1", "1000"), "stop")[0]
    desk.reply(stop, Unknown("time-out"))
    sent = [s for _ in range(40) for s in sends(desk.wait(150), "stop")]
    assert not sent  # however long nobody answers
    asked = queries(desk.effects, "leg")[-1]
    done = desk.reply(asked, Done({"algoStatus": "EXPIRED", "algoId": 7})) + desk.wait(300)
    assert all(s.about != stop.about for s in sends(done, "stop"))


@pytest.mark.parametrize(("executed", "sent"), [("0", True), ("0.5", True), ("1", False)])
def test_legs_are_not_sent_again_once_the_exchange_told_that_the_position_is_left(
    executed: str, sent: bool
) -> None:
    """The stream is mute: of the executed exit only the answer is known. Its legs, whose answers
    were lost, ended with the position there, and their ids would be taken a second time."""
    desk = Desk()
    entry = sends(desk.signal(), "entry")[0]
    done = desk.fill(entry, "1", "1000")
    for leg in (*sends(done, "stop"), *sends(done, "target")):
        desk.reply(leg, Unknown("503"))
    exit_ = sends(desk.signal(id="against", side="sell", stop="1010", target="980"), "exit")[0]
    desk.done(exit_, "PARTIALLY_FILLED" if executed == "0.5" else "FILLED", executed)
    later = [each for _ in range(8) for each in desk.wait(150)]
    assert bool(queries(later, "leg")) and not sends(later, "stop") and not sends(later, "target")
    for asked in queries(later, "leg"):
        later += desk.reply(asked, Refused(-2013, "Order does not exist.")) + desk.wait(0)
    assert bool(sends(later, "stop")) is bool(sends(later, "target")) is sent
    assert sent or not sends(later, "exit")


def test_a_target_without_an_answer_is_asked_for_and_sent_again_only_where_it_is_not() -> None:
    desk = Desk()
    entry = sends(desk.signal(), "entry")[0]
    done = desk.fill(entry, "1", "1000")
    desk.accepted(sends(done, "stop")[0])
    target = sends(done, "target")[0]
    desk.reply(target, Unknown("time-out"))
    (asked,) = queries(desk.wait(250), "leg")
    desk.reply(asked, Unknown("time-out"))
    (asked,) = queries(desk.wait(250), "leg")
    done = desk.reply(asked, Refused(-2013, "Order does not exist.")) + desk.wait(500)
    assert [s.about for s in sends(done, "target")] == [target.about]
    desk.reply(sends(done, "target")[0], Unknown("time-out"))
    asked = next(q for _ in range(9) for q in queries(desk.wait(250), "leg"))
    desk.reply(asked, Done({"algoStatus": "NEW", "algoId": 7, "clientAlgoId": target.about}))
    assert desk.state.positions["BTCUSDT"].target_state == "acked"
    assert not sends([each for _ in range(20) for each in desk.wait(500)], "target")


def test_a_stop_is_tried_five_times_before_its_position_is_left() -> None:
    desk = Desk()
    entry = sends(desk.signal(), "entry")[0]
    tries = sends(desk.fill(entry, "1", "1000"), "stop")
    for _ in range(4):
        desk.reply(tries[-1], Refused(-1001, "Internal error"))
        done = desk.wait(150)
        assert not sends(done, "exit")
        tries += sends(done, "stop")
    assert len(tries) == 5
    desk.reply(tries[-1], Refused(-1001, "Internal error"))
    assert len(sends(desk.wait(150), "exit")) == 1


def test_a_throttled_stop_does_not_wait_past_the_naked_deadline() -> None:
    desk = Desk()
    entry = sends(desk.signal(), "entry")[0]
    stop = sends(desk.fill(entry, "1", "1000"), "stop")[0]
    desk.reply(stop, Throttled(desk.boot_ms + 60_000, "banned"))
    assert len(sends(desk.wait(1_000), "exit")) == 1


def test_a_stop_cancelled_by_hand_is_placed_again_and_the_position_kept() -> None:
    desk = Desk()
    _, stop, _ = desk.open()
    desk.algo(stop, "CANCELED")
    again = sends(desk.wait(200), "stop")
    assert len(again) == 1 and again[0].about != stop.about
    assert not sends(desk.effects, "exit")


# --- the end of an entry ---


def test_a_leg_that_no_record_names_yet_is_written_before_it_is_sent_and_only_that() -> None:
    desk = Desk()
    entry = sends(desk.signal(), "entry")[0]
    stop, target = sends(desk.fill(entry, "1", "1000"))
    held_back = [s for e in desk.effects if isinstance(e, Commit) for s in e.then]
    assert stop not in held_back and target not in held_back  # the entry's record names them
    desk.accepted(stop)
    desk.algo(stop, "CANCELED")
    done = desk.wait(250)
    again = sends(done, "stop")[0]
    written = next(e for e in done if isinstance(e, Commit) and again in e.then)
    assert again.about[-2:] == "s1" and written.hurry
    assert ops([written], "hset", KEYS.order(again.about))


def test_an_ioc_that_expires_empty_frees_its_place_and_its_legs() -> None:
    desk = Desk()
    entry = sends(desk.signal(), "entry")[0]
    desk.done(entry, "EXPIRED", "0")
    assert {o.state for o in desk.state.orders.values()} == {"expired", "canceled"}
    assert not desk.state.positions
    assert sends(desk.signal(id="s2"), "entry")


def test_an_ioc_that_fills_in_part_keeps_the_part_and_protects_it() -> None:
    desk = Desk()
    entry = sends(desk.signal(), "entry")[0]
    done = desk.done(entry, "EXPIRED", "0.3")
    assert sends(done, "stop")
    desk.fill(entry, "0.3", "1000", "PARTIALLY_FILLED")
    assert desk.state.positions["BTCUSDT"].qty == Decimal("0.3")


def test_a_refused_entry_frees_its_place_and_is_never_sent_again() -> None:
    desk = Desk()
    entry = sends(desk.signal(), "entry")[0]
    done = desk.reply(entry, Refused(-2019, "Margin is insufficient."))
    assert ops(done, "srem", KEYS.orders_open)
    assert not sends(done) and not sends(desk.wait(10_000))


def test_an_unknown_entry_stays_reserved_is_queried_and_never_sent_again() -> None:
    desk = Desk()
    entry = sends(desk.signal(), "entry")[0]
    desk.reply(entry, Unknown("time-out"))
    assert desk.state.orders[entry.about].state == "unknown"
    assert decisions(desk.signal(id="s2"))[0]["refused_by"] == "duplicate"
    asked = queries(desk.wait(250))
    assert [q.params["origClientOrderId"] for q in asked] == [entry.about]
    done = desk.done(asked[0], "FILLED", "1")
    assert sends(done, "stop") and not sends(desk.effects, "entry")[1:]


def test_not_found_ends_an_unknown_entry_only_after_recv_window_and_twice() -> None:
    desk = Desk()
    entry = sends(desk.signal(), "entry")[0]
    desk.reply(entry, Unknown("time-out"))
    first = queries(desk.wait(250))[0]
    desk.reply(first, NOT_FOUND)
    assert not desk.state.orders[entry.about].terminal
    asked = queries(desk.wait(2_300))
    desk.reply(asked[0], NOT_FOUND)
    assert desk.state.orders[entry.about].state == "rejected"


def test_an_early_second_not_found_is_not_believed() -> None:
    desk = Desk()
    entry = sends(desk.signal(), "entry")[0]
    desk.reply(entry, Unknown("time-out"))
    first = queries(desk.wait(250))[0]
    desk.reply(first, NOT_FOUND)
    desk.reply(first, NOT_FOUND)
    assert desk.state.orders[entry.about].state == "unknown"


def test_a_fill_contradicts_a_not_found() -> None:
    desk = Desk()
    entry = sends(desk.signal(), "entry")[0]
    desk.reply(entry, Unknown("time-out"))
    first = queries(desk.wait(250))[0]
    desk.reply(first, NOT_FOUND)
    desk.reply(queries(desk.wait(2_300))[0], NOT_FOUND)
    assert sends(desk.fill(entry, "1", "1000"), "stop")
    assert desk.state.positions["BTCUSDT"].qty == 1


# --- leaving ---


def test_a_stop_that_fills_closes_the_round_trip_and_takes_its_sibling_back() -> None:
    desk = Desk()
    entry, stop, target = desk.open()
    desk.algo(stop, "TRIGGERED", "555")
    done = desk.fill(stop, entry.params["quantity"], "989.9", realised="-10")
    assert not desk.state.positions
    assert [c.params["clientAlgoId"] for c in cancels(done)] == [stop.about, target.about]
    closed = ops(done, "hset", KEYS.order(entry.about))
    assert closed[-1][2]["exit_reason"] == "stop"
    assert desk.state.money.trades_closed == 1


def test_a_child_fill_told_before_its_trigger_is_still_the_stop() -> None:
    desk = Desk()
    entry, stop, _ = desk.open()
    child = replace(stop, params={**stop.params, "newClientOrderId": "made-by-exchange"})
    done = desk.fill(child, entry.params["quantity"], "989.9", realised="-10")
    assert ops(done, "hset", KEYS.order(entry.about))[-1][2]["exit_reason"] == "stop"


def test_a_sibling_that_expired_by_itself_is_asked_and_ends() -> None:
    desk = Desk()
    entry, stop, target = desk.open()
    done = desk.fill(target, entry.params["quantity"], "1020", realised="20")
    cancel = next(c for c in cancels(done) if c.about == stop.about)
    asked = queries(desk.reply(cancel, Refused(-2011, "Unknown order sent.")))
    assert [q.params["clientAlgoId"] for q in asked] == [stop.about]
    desk.reply(asked[0], Done({"algoId": 1, "algoStatus": "EXPIRED"}))
    assert desk.state.orders[stop.about].state == "expired"


def test_an_opposing_signal_closes_the_position() -> None:
    desk = Desk()
    desk.open()
    done = desk.signal(id="against", side="sell", stop="1010", target="980")
    assert len(sends(done, "exit")) == 1
    assert desk.state.positions["BTCUSDT"].exit_reason == "signal decay"


def test_signal_decay_can_be_turned_off() -> None:
    desk = Desk(limits=Limits(signal_decay=False))
    desk.open()
    assert not sends(desk.signal(id="against", side="sell", stop="1010", target="980"))


@pytest.mark.parametrize(("after_ms", "left"), [(-1, False), (0, True), (1, True)])
def test_a_position_is_closed_at_its_maximum_hold(after_ms: int, left: bool) -> None:
    limits = Limits(hold_max_ms=50_000)
    desk = Desk(limits=limits)
    desk.open()
    assert bool(sends(desk.wait(50_000 + after_ms), "exit")) is left


@pytest.mark.parametrize(
    ("mark", "left"), [("1000", True), ("1001", True), ("1001.01", False), ("998.99", False)]
)
def test_a_position_that_stands_still_is_closed_and_a_moving_one_is_not(
    mark: str, left: bool
) -> None:
    desk = Desk(limits=Limits(stagnation_ms=50_000))
    desk.open()
    desk.market_ms += 49_999
    desk.do(MarksSeen((("BTCUSDT", mark, "0", 0),), 0))
    assert bool(sends(desk.wait(1), "exit")) is left


def test_an_exit_of_unknown_fate_is_sent_again_with_the_same_id() -> None:
    desk = Desk()
    desk.open()
    first = sends(desk.signal(id="against", side="sell", stop="1010", target="980"), "exit")[0]
    desk.reply(first, Unknown("time-out"))
    again = sends(desk.wait(1_000), "exit")
    assert [s.about for s in again] == [first.about]


def test_a_refused_exit_is_tried_anew_until_flat() -> None:
    desk = Desk()
    entry, _, _ = desk.open()
    first = sends(desk.signal(id="against", side="sell", stop="1010", target="980"), "exit")[0]
    desk.reply(first, Refused(-4131, "PERCENT_PRICE"))
    again = sends(desk.wait(250), "exit")
    assert len(again) == 1 and again[0].about != first.about
    desk.fill(again[0], entry.params["quantity"], "1000")
    assert not desk.state.positions and not sends(desk.wait(10_000), "exit")


def test_an_exit_without_redis_is_sent_all_the_same() -> None:
    desk = Desk()
    desk.open()
    desk.commit_outcome = "failed"
    done = desk.signal(id="against", side="sell", stop="1010", target="980")
    assert len(sends(done, "exit")) == 1


def test_a_stale_holder_sends_no_exit() -> None:
    desk = Desk()
    desk.open()
    desk.commit_outcome = "stale"
    assert not sends(desk.signal(id="against", side="sell", stop="1010", target="980"))


# --- gathering ---


def test_an_unprepared_symbol_is_set_up_and_quoted_before_the_decision() -> None:
    desk = Desk()
    desk.state.prepared.clear()
    desk.state.quotes.clear()
    done = desk.signal()
    assert {s.purpose for s in sends(done)} == {"margin", "leverage"}
    quote = queries(done, "quote")[0]
    desk.reply(quote, Done({"bidPrice": "999.9", "askPrice": "1000"}))
    desk.reply(sends(done, "margin")[0], Refused(-4046, "No need to change margin type."))
    last = desk.reply(sends(done, "leverage")[0], Done({"leverage": 3, "symbol": "BTCUSDT"}))
    assert len(sends(last, "entry")) == 1


def test_a_symbol_whose_leverage_cannot_be_set_gets_no_entry() -> None:
    desk = Desk()
    desk.state.prepared.clear()
    done = desk.signal()
    desk.reply(sends(done, "leverage")[0], Refused(-4028, "Leverage is not valid"))
    late = desk.wait(1_000)
    assert not sends(late, "entry")
    assert decisions(late)[0]["refused_by"] in ("leverage", "market")


@pytest.mark.parametrize(("closed", "asked"), [(49, 0), (50, 1), (51, 1)])
def test_leverage_is_set_anew_and_verified_when_caution_ends(closed: int, asked: int) -> None:
    desk = Desk(limits=Limits(leverage_max=20))
    desk.state.money = replace(desk.state.money, trades_closed=closed)
    done = desk.signal()
    told = sends(done, "leverage")
    assert [s.params["leverage"] for s in told] == ["20"] * asked
    assert len(sends(done, "entry")) == 1 - asked
    if asked:
        desk.reply(sends(done, "margin")[0], Refused(-4046, "No need to change margin type."))
        other = desk.reply(told[0], Done({"leverage": 10, "symbol": "BTCUSDT"}))
        assert not sends(other, "entry")  # not what was asked for
        assert decisions(desk.wait(1_000))[0]["refused_by"] in ("leverage", "market")


def test_leverage_and_margin_are_never_touched_with_a_position_open() -> None:
    desk = Desk(limits=Limits(leverage_max=20))
    desk.open()
    desk.state.money = replace(desk.state.money, trades_closed=50)
    done = desk.signal(id="again") + desk.wait(1_000)
    assert not sends(done, "leverage") and not sends(done, "margin")


def test_a_signal_without_a_quote_is_refused_with_its_numbers() -> None:
    desk = Desk()
    desk.state.quotes.clear()
    desk.signal()
    assert decisions(desk.wait(1_000))[0]["refused_by"] == "market"


def test_a_stopping_process_makes_no_entry_and_still_protects() -> None:
    desk = Desk()
    entry = sends(desk.signal(), "entry")[0]
    desk.do(Stopping())
    assert decisions(desk.signal(id="s2", symbol="ETHUSDT"))[0]["refused_by"] == "armed"
    assert sends(desk.fill(entry, "1", "1000"), "stop")


def test_every_refusal_names_its_rule_and_acknowledges() -> None:
    desk = Desk()
    desk.market_ms += 15_001
    desk.boot_ms += 1
    done = desk.signal()
    assert decisions(done)[0]["refused_by"] == "stale"
    assert [c.ack for c in done if isinstance(c, Commit)] == [(KEYS.signals, "main", "1-0")]
    assert signal_fields()["id"] == decisions(done)[0]["signal"]


# --- whose trade, whose leg ---


def trade_row(desk: Desk, number: int, order_id: int, side: str = "BUY", late_ms: int = 0) -> dict:  # type: ignore[type-arg]
    row = {"symbol": "BTCUSDT", "id": number, "orderId": order_id, "side": side, "price": "1000"}
    row |= {"qty": "1", "commission": "0.5", "commissionAsset": "USDT"}
    return row | {"time": int(desk.market_ms) + late_ms}


def test_a_trade_of_another_order_is_not_counted_as_ours() -> None:
    desk = Desk()
    entry = sends(desk.signal(), "entry")[0]
    desk.done(entry, "FILLED", "1")  # the exchange's order 42
    asked = queries(desk.wait(1_000), "trades")[0]
    rows = [trade_row(desk, 7, 41, late_ms=-1_001), trade_row(desk, 8, 40, "SELL", -30_000)]
    desk.reply(asked, Done([*rows, trade_row(desk, 9, 42, late_ms=-1_000)]))
    assert desk.state.positions["BTCUSDT"].qty == 1
    assert desk.state.money.fills == 1


@pytest.mark.parametrize(("late_ms", "ours"), [(-5_001, False), (-5_000, True), (-4_999, True)])
def test_before_its_exchange_id_is_known_an_order_explains_no_older_trade(
    late_ms: int, ours: bool
) -> None:
    desk = Desk()
    entry = sends(desk.signal(), "entry")[0]
    desk.done(entry, "FILLED", "1")
    order = desk.state.orders[entry.about]
    desk.state.orders[entry.about] = replace(order, exchange_id="")
    desk.state.children.clear()
    asked = queries(desk.wait(1_000), "trades")[0]
    desk.reply(asked, Done([trade_row(desk, 9, 42, late_ms=late_ms - 1_000)]))
    assert (desk.state.positions["BTCUSDT"].qty == 1) is ours


@pytest.mark.parametrize(("mark", "worth"), [("600", "0.6"), (None, "0")])
def test_a_fee_in_bnb_counts_by_its_worth(mark: str | None, worth: str) -> None:
    desk = Desk()
    if mark:
        desk.state.marks["BNBUSDT"] = Decimal(mark)
    entry = sends(desk.signal(), "entry")[0]
    desk.done(entry, "FILLED", "1")
    asked = queries(desk.wait(1_000), "trades")[0]
    row = trade_row(desk, 9, 42) | {"commission": "0.001", "commissionAsset": "BNB"}
    done = desk.reply(asked, Done([row]))
    assert desk.state.money.fees == desk.state.positions["BTCUSDT"].fees == Decimal(worth)
    told = [op[2] for op in ops(done, "xadd_once", KEYS.ledger)]
    assert [(e["amount"], e["asset"]) for e in told] == [("-0.001", "BNB")]


def test_an_exchange_id_names_an_order_within_its_symbol_only() -> None:
    desk = Desk()
    desk.open("ETHUSDT")
    entry = sends(desk.signal(), "entry")[0]
    desk.done(entry, "EXPIRED", "0")  # order 42 of BTCUSDT, without an execution
    query = orders.trades_request("ETHUSDT", 0)
    done = desk.reply(query, Done([trade_row(desk, 9, 42) | {"symbol": "ETHUSDT"}]))
    assert list(desk.state.positions) == ["ETHUSDT"]
    told = ops(done, "xadd_once", KEYS.fills)[0][2]
    assert (told["leg"], told["order"]) != ("entry", entry.about)


def test_a_close_by_hand_told_by_its_trade_is_counted() -> None:
    desk = Desk()
    entry, _, _ = desk.open()
    row = trade_row(desk, 99, 5, "SELL") | {"qty": entry.params["quantity"]}
    query = orders.trades_request("BTCUSDT", 0)
    done = desk.reply(query, Done([row]))
    assert ops(done, "hset", KEYS.order(entry.about))[-1][2]["exit_reason"] == "by hand"


def test_a_late_acknowledgement_does_not_revive_a_stop_that_ended() -> None:
    desk = Desk()
    _, stop, _ = desk.open()
    desk.algo(stop, "CANCELED")
    desk.accepted(stop)
    assert desk.state.positions["BTCUSDT"].stop_state == "gone"
    assert desk.state.touched["BTCUSDT"] == desk.boot_ms
    assert sends(desk.wait(200), "stop")


def test_a_stop_that_vanished_and_cannot_be_put_back_is_not_left_naked() -> None:
    desk = Desk()
    _, stop, _ = desk.open()
    desk.algo(stop, "CANCELED")
    again = sends(desk.wait(200), "stop")[0]
    desk.reply(again, Refused(-1008, "overload"))
    assert not sends(desk.wait(549), "exit")
    assert len(sends(desk.wait(1), "exit")) == 1


def test_a_resting_leg_that_ended_for_us_makes_room_for_the_next() -> None:
    desk = Desk()
    _, stop, _ = desk.open()
    desk.algo(stop, "CANCELED")
    again = sends(desk.wait(200), "stop")[0]
    asked = queries(desk.reply(again, Refused(-4130, "exists")), "algos")[0]
    row = {"clientAlgoId": stop.about, "algoStatus": "NEW", "orderType": "STOP_MARKET"}
    done = desk.reply(asked, Done([row]))
    assert [c.about for c in cancels(done)] == [stop.about]
    assert [s.about for s in sends(desk.wait(250), "stop")] == [again.about]


# --- stopping ---


def test_settled_means_no_entry_in_the_air_and_every_position_behind_its_stop() -> None:
    desk = Desk()
    assert settled(desk.state)
    entry = sends(desk.signal(), "entry")[0]
    assert not settled(desk.state)
    stop = sends(desk.fill(entry, entry.params["quantity"], "1000"), "stop")[0]
    assert not settled(desk.state)
    desk.accepted(stop)
    assert settled(desk.state)
    out = sends(desk.signal(id="against", side="sell", stop="1010", target="980"), "exit")[0]
    assert not settled(desk.state)
    desk.fill(out, entry.params["quantity"], "1000")
    assert settled(desk.state)


# --- what anybody may append ---


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("price", "1e12"),
        ("price", "1e999999"),
        ("price", "sNaN"),
        ("stop", "1e-999999"),
        ("target", "x" * 10_000),
        ("exch_ns", "9" * 4_000),
        ("exch_ns", "9" * 5_000),
        ("exch_ns", "-1"),
        ("expires_ms", "-inf"),
        ("expires_ms", "nan"),
        ("expires_ms", "1e15"),
        ("confidence", "1e999"),
        ("quality", "\ufffd"),
    ],
)
def test_no_signal_is_bad_enough_to_end_the_process(name: str, text: str) -> None:
    desk = Desk()
    done = desk.signal(**{name: text})
    assert len(ops(done, "xadd", KEYS.dead)[0][2]["why"]) <= 200
    assert not sends(done)


def test_signals_that_wait_for_a_quote_are_bounded_and_the_next_one_is_told() -> None:
    desk = Desk()
    desk.state.quotes.clear()
    for number in range(WAITING_MAX):
        assert decisions(desk.signal(id=f"w{number}")) == []
    (told,) = decisions(desk.signal(id="one too many"))
    assert (told["refused_by"], len(desk.state.waiting)) == ("busy", WAITING_MAX)


def test_a_fill_that_was_never_told_does_not_end_a_position_early() -> None:
    """The stream lost the first of two fills: an exit of the told part leaves the rest."""
    desk = Desk()
    entry = sends(desk.signal(), "entry")[0]
    desk.trades += 1  # of 3, told by nobody
    done = desk.fill(entry, "1", "1000", executed="4")
    stop, target = sends(done, "stop")[0], sends(done, "target")[0]
    desk.accepted(stop)
    desk.accepted(target)
    exit_ = sends(desk.signal(id="against", side="sell", stop="1010", target="980"), "exit")[0]
    assert exit_.params["quantity"] == "1"
    done = desk.fill(exit_, "1", "999")
    assert desk.state.positions["BTCUSDT"].qty == 0 and not cancels(done)  # its legs stay
    assert queries(done, "position")
    asked = queries(desk.wait(1), "trades")[0]
    desk.done(exit_, "FILLED", "1")
    row = {"symbol": "BTCUSDT", "id": 1, "orderId": order_id(entry), "side": "BUY", "qty": "3"}
    row |= {"price": "1000", "realizedPnl": "0", "commission": "0", "commissionAsset": "USDT"}
    desk.reply(asked, Done([row | {"time": int(desk.market_ms), "maker": False}]))
    assert desk.state.positions["BTCUSDT"].qty == 3
    again = sends(desk.wait(5_000), "exit")[0]
    assert again.params["quantity"] == "3"
    done = desk.fill(again, "3", "999")
    assert not desk.state.positions and len(cancels(done)) == 2


@pytest.mark.parametrize("told_ms", [999.0, 1_000.0])
def test_a_missing_fill_is_asked_for_a_second_after_the_next_one(told_ms: float) -> None:
    desk = Desk()
    entry = sends(desk.signal(), "entry")[0]
    desk.fill(entry, "1", "1000", executed="4")
    assert bool(queries(desk.wait(told_ms), "trades")) == (told_ms >= 1_000.0)


def test_what_no_trade_explains_ends_by_the_exchange_s_word() -> None:
    desk = Desk()
    entry = sends(desk.signal(), "entry")[0]
    desk.fill(entry, "1", "1000", executed="4")
    exit_ = sends(desk.signal(id="against", side="sell", stop="1010", target="980"), "exit")[0]
    done = desk.fill(exit_, "1", "999")
    asked = queries(done, "position")[0]
    traced = desk.reply(asked, Done([{"symbol": "BTCUSDT", "positionAmt": "0"}]))
    settle = queries(traced, "settle")[0]
    desk.reply(settle, Done([]))
    assert not desk.state.positions
