"""Whose is it: somebody else's positions and orders, and what is done to ours by hand."""

from __future__ import annotations

import json
from decimal import Decimal
from typing import Any

import pytest
from risk_desk import KEYS, Desk, decisions, ops, queries, replace, sends
from test_risk_reconcile import snapshot

from risk.events import CommandRead, Done, Effect, Pushed, Refused, Send, Snap, SnapshotTaken
from risk.reconcile import Resting, parse_snapshot, snapshot_from_json, snapshot_to_json
from risk.recovery import START
from risk.state import Theirs, equity, held

D = Decimal
THEIRS = {"ETHUSDT": (D(2), D(900))}  # worth 2,000 at the mark of 1,000; 200 in profit


def told_position(desk: Desk, symbol: str, amount: str, **over: str) -> list[Effect]:
    row = {"s": symbol, "pa": amount, "ep": "900", "iw": "0"} | over
    account = {"m": "ORDER", "B": [], "P": [row]}
    return desk.do(Pushed({"e": "ACCOUNT_UPDATE", "T": 1, "E": 1, "a": account}))


def told_order(desk: Desk, symbol: str, status: str, client_id: str = "web_1") -> list[Effect]:
    o: dict[str, Any] = {"s": symbol, "c": client_id, "S": "BUY", "o": "LIMIT", "ot": "LIMIT"}
    o |= {"x": status, "X": status, "i": 5, "l": "0", "z": "0", "L": "0", "T": 1, "t": 0}
    return desk.do(Pushed({"e": "ORDER_TRADE_UPDATE", "E": 1, "T": 1, "o": o}))


def by_hand(desk: Desk, symbol: str, side: str, qty: str, **over: str) -> list[Effect]:
    """A fill of an order that is not ours."""
    params = {"symbol": symbol, "side": side, "type": "MARKET", "newClientOrderId": "web_2"}
    return desk.fill(Send("POST", "/", params, "", "", 0), qty, "1000", **over)


def flatten(desk: Desk) -> list[Effect]:
    return desk.do(CommandRead("5-0", {"id": "c1", "name": "flatten"}))


# --- somebody else's ---


def foreign_desk() -> Desk:
    desk = Desk()
    margins = {"ETHUSDT": D(600)}
    desk.do(SnapshotTaken(replace(snapshot(THEIRS), margins=margins), START))
    return desk


def test_a_foreign_position_gets_no_entry_no_stop_and_no_flatten() -> None:
    desk = foreign_desk()
    assert desk.state.foreign == {"ETHUSDT"}
    assert decisions(desk.signal(symbol="ETHUSDT"))[0]["refused_by"] == "ownership"
    assert not sends(flatten(desk)) and not sends(desk.wait(10_000))
    desk.quote_all()
    assert sends(desk.signal(id="s2", symbol="BTCUSDT"), "entry")


def test_a_foreign_position_counts_in_margin_and_equity_and_takes_no_place() -> None:
    desk = foreign_desk()
    assert equity(desk.state) == 10_200
    assert [(h.margin, h.notional, h.foreign) for h in held(desk.state)] == [(600, 2_000, True)]
    for symbol in ("BTCUSDT", "SOLUSDT", "XRPUSDT"):
        desk.open(symbol)
    assert len(desk.state.positions) == 3


def test_a_foreign_loss_makes_our_next_position_smaller() -> None:
    rich, poor = Desk(), foreign_desk()
    poor.state.marks["ETHUSDT"] = D(400)  # 1,000 lost
    assert equity(poor.state) == 9_000
    sizes = [
        D(sends(desk.signal(symbol="BTCUSDT", stop="960"), "entry")[0].params["quantity"])
        for desk in (rich, poor)
    ]
    assert sizes == [D("1.25"), D("1.125")]  # 0.5 % of 10,000 and of 9,000, by 40


def test_foreign_margin_leaves_less_for_us() -> None:
    desk = foreign_desk()
    desk.state.theirs["ETHUSDT"] = Theirs(D(2), D(1_000), D(9_950))
    assert D(sends(desk.signal(symbol="BTCUSDT"), "entry")[0].params["quantity"]) <= D("0.15")


def test_a_foreign_position_is_known_from_the_stream_and_forgotten_when_it_ends() -> None:
    desk = Desk()
    told_position(desk, "ETHUSDT", "2")
    assert desk.state.foreign == {"ETHUSDT"}
    assert desk.state.theirs["ETHUSDT"] == Theirs(D(2), D(900), D(1_800))
    told_position(desk, "ETHUSDT", "3", iw="500")
    assert desk.state.theirs["ETHUSDT"].margin == 500
    done = told_position(desk, "ETHUSDT", "0")
    assert not desk.state.theirs and [e for e in done if isinstance(e, Snap)]
    assert desk.state.foreign == {"ETHUSDT"}  # an order may rest there: the snapshot tells
    desk.do(SnapshotTaken(snapshot(), "reconcile"))
    assert desk.state.foreign == set()


def test_a_foreign_order_closes_its_symbol_at_once_and_opens_it_when_it_ends() -> None:
    desk = Desk()
    told_order(desk, "ETHUSDT", "NEW")
    assert decisions(desk.signal(symbol="ETHUSDT"))[0]["refused_by"] == "ownership"
    assert [e for e in told_order(desk, "ETHUSDT", "CANCELED") if isinstance(e, Snap)]
    desk.do(SnapshotTaken(snapshot(), "reconcile"))
    assert sends(desk.signal(id="s2", symbol="ETHUSDT"), "entry")


def test_a_foreign_conditional_order_does_so_too() -> None:
    desk = Desk()
    frame = {"e": "ALGO_UPDATE", "T": 1, "E": 1}
    told = {"caid": "web_7", "aid": 1, "X": "NEW", "s": "ETHUSDT"}
    desk.do(Pushed({**frame, "o": told}))
    assert desk.state.foreign == {"ETHUSDT"}


def test_an_order_of_ours_that_we_forgot_is_not_foreign() -> None:
    desk = Desk()
    told_order(desk, "ETHUSDT", "NEW", desk.state.make_id("old", "e"))
    assert desk.state.foreign == set()


def test_the_job_s_snapshots_keep_ownership_up_and_correct_nothing_else() -> None:
    desk = Desk()
    by_web = Resting("web_9", "SOLUSDT", "buy", "LIMIT", D(5))
    done = desk.do(SnapshotTaken(snapshot(THEIRS, orders=(by_web,)), "snapshot", "c1"))
    assert desk.state.foreign == {"ETHUSDT", "SOLUSDT"}
    assert desk.state.theirs["ETHUSDT"].margin == 1_800  # not told: as if unlevered
    assert not sends(done)
    desk.do(SnapshotTaken(snapshot(), "snapshot", "c2"))
    assert desk.state.foreign == set() and not desk.state.theirs


def test_status_and_why_name_what_is_not_ours() -> None:
    desk = foreign_desk()
    refused = decisions(desk.signal(symbol="ETHUSDT"))[0]
    last = json.loads(refused["verdicts"])[-1]
    assert (last["name"], last["foreign"]) == ("ownership", "1")


def test_margins_survive_the_text_of_a_snapshot() -> None:
    rows = [{"symbol": "X", "positionAmt": "2", "entryPrice": "3", "initialMargin": "1.5"}]
    made = parse_snapshot("1-1", 0.0, 1, {"totalWalletBalance": "5"}, rows, [], [])
    assert made.margins == {"X": D("1.5")}
    assert snapshot_from_json(snapshot_to_json(made)) == made


# --- ours, by hand ---


def test_an_addition_by_hand_is_part_of_the_position_and_leaves_with_it() -> None:
    desk = Desk()
    entry, stop, _ = desk.open()
    qty = D(entry.params["quantity"])
    done = by_hand(desk, "BTCUSDT", "BUY", "0.5")
    position = desk.state.positions["BTCUSDT"]
    assert position.qty == qty + D("0.5") and position.stop_order == stop.about
    assert not sends(done)  # the stop closes whatever there is
    assert D(sends(flatten(desk), "exit")[0].params["quantity"]) == qty + D("0.5")


@pytest.mark.parametrize("left", ["0.001", "0"])
def test_a_close_by_hand_is_recognised_in_part_and_whole(left: str) -> None:
    desk = Desk()
    entry, stop, target = desk.open()
    closed = D(entry.params["quantity"]) - D(left)
    done = by_hand(desk, "BTCUSDT", "SELL", str(closed))
    if D(left):
        assert desk.state.positions["BTCUSDT"].qty == D(left) and not sends(done)
    else:
        assert not desk.state.positions
        assert ops(done, "hset", KEYS.order(entry.about))[-1][2]["exit_reason"] == "by hand"
        taken_back = {e.about for e in done if type(e).__name__ == "Cancel"}
        assert taken_back == {stop.about, target.about}


def test_a_reversal_by_hand_ends_ours_and_the_rest_is_foreign() -> None:
    desk = Desk()
    entry, _, _ = desk.open()
    by_hand(desk, "BTCUSDT", "SELL", str(D(entry.params["quantity"]) + 1))
    assert not desk.state.positions
    desk.wait(6_000)
    told_position(desk, "BTCUSDT", "-1")
    assert desk.state.foreign == {"BTCUSDT"} and desk.state.theirs["BTCUSDT"].qty == -1


def moved(desk: Desk, stop: Send) -> list[Effect]:
    """Our stop was replaced by another one on the web page: ours cannot be put back."""
    desk.algo(stop, "CANCELED")
    again = sends(desk.wait(200), "stop")[0]
    asked = queries(desk.reply(again, Refused(-4130, "exists")), "algos")[0]
    row = {"clientAlgoId": "web_3", "algoStatus": "NEW", "orderType": "STOP_MARKET"}
    return desk.reply(asked, Done([row | {"closePosition": True, "algoId": 9}]))


def test_a_stop_moved_by_hand_protects_and_the_position_is_never_flattened_for_it() -> None:
    desk = Desk()
    _, stop, _ = desk.open()
    moved(desk, stop)
    position = desk.state.positions["BTCUSDT"]
    assert (position.stop_order, position.stop_state) == ("web_3", "acked")
    desk.wait(10_000)
    assert not sends(desk.effects, "exit")


def test_when_the_moved_stop_is_taken_back_ours_is_placed_again() -> None:
    desk = Desk()
    _, stop, _ = desk.open()
    moved(desk, stop)
    told = {"caid": "web_3", "aid": 9, "X": "CANCELED", "s": "BTCUSDT"}
    desk.do(Pushed({"e": "ALGO_UPDATE", "T": 1, "E": 1, "o": told}))
    again = sends(desk.wait(200), "stop")
    assert len(again) == 1 and again[0].params["triggerPrice"] == "990"
    desk.accepted(again[0])
    desk.wait(10_000)
    assert not sends(desk.effects, "exit") and desk.state.foreign == set()
