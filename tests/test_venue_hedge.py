"""Hedge mode: LONG and SHORT of a symbol apart, over REST, stream, ledger and the kept account."""

from __future__ import annotations

import json
from collections.abc import Iterator
from decimal import Decimal as D
from typing import Any

import pytest

from maintenance.audit import audit
from tests.test_venue_liquidation import at, forced, opened
from tests.test_venue_matching import NOW
from tests.test_venue_orders import Flow
from tests.venue_oracle import as_ours
from venue import (
    accounting,
    amend,
    batch,
    liquidation,
    matching,
    positions,
    standing,
    store,
    trading,
)
from venue.checks import Request, parse
from venue.matching import MarketTrade, match, place, place_algo
from venue.orders import Account, Algo, Order, Refusal, available, order_margin, position_of


class Hedge(Flow):
    """A whole exchange in hedge mode; calls are REST handlers."""

    def __init__(self) -> None:
        super().__init__()
        matching.set_margin_type(self.world.account, "ETHUSDT", False, self.now_ms)
        assert self.mode("true") == {"code": 200, "msg": "success"}

    def mode(self, dual: str) -> Any:
        return self.call(trading.set_mode, {"dualSidePosition": dual})

    def order(self, side: str, where: str, qty: str = "0.100", **more: str) -> Any:
        params = {"symbol": "BTCUSDT", "side": side, "type": "MARKET", "quantity": qty}
        return self.call(trading.place_order, params | {"positionSide": where} | more)

    def algo(self, side: str, where: str, trigger: str, **more: str) -> Any:
        params = {"symbol": "BTCUSDT", "side": side, "type": "STOP_MARKET", "triggerPrice": trigger}
        params |= {"algoType": "CONDITIONAL", "positionSide": where}
        return self.call(trading.place_algo, params | (more or {"closePosition": "true"}))

    def held(self) -> dict[str, D]:
        account = self.world.account
        return {k: p.qty for k, p in account.positions.items() if p.qty}

    def told(self, kind: str) -> Iterator[dict[str, Any]]:
        return (p for p in self.world.told if p["e"] == kind)


def code(answer: Any) -> int:
    return answer.code if isinstance(answer, Refusal) else 0


def test_the_mode_switches_only_without_orders_and_positions() -> None:
    flow = Hedge()
    assert flow.call(trading.get_mode, {}) == {"dualSidePosition": True}
    assert flow.call(accounting.account_config, {})["dualSidePosition"] is True
    assert code(flow.mode("true")) == -4059 and code(flow.mode("")) == -1102
    price = {"type": "LIMIT", "timeInForce": "GTC", "price": flow.price("BTCUSDT", -500)}
    row = flow.order("BUY", "LONG", **price)
    assert code(flow.mode("false")) == -4067
    flow.call(trading.cancel_order, {"symbol": "BTCUSDT", "orderId": str(row["orderId"])})
    algo = flow.algo("SELL", "LONG", flow.price("BTCUSDT", -900))
    assert code(flow.mode("false")) == -4067
    flow.call(trading.cancel_algo, {"algoId": str(algo["algoId"])})
    flow.order("BUY", "LONG")
    assert code(flow.mode("false")) == -4068
    flow.order("SELL", "LONG")
    assert code(flow.mode("false")) == 0 and flow.world.account.dual is False
    modes = [e["value"] for e in flow.world.ledger if e["type"] == "position_mode"]
    assert modes == ["hedge", "one_way"]


@pytest.mark.parametrize(
    ("dual", "changes", "expected"),
    [
        (False, {"positionSide": "BOTH"}, 0),
        (False, {}, 0),
        (False, {"positionSide": "LONG"}, -4061),
        (True, {"positionSide": "BOTH"}, -4061),
        (True, {}, -4061),
        (True, {"positionSide": "LONG"}, 0),
        (True, {"positionSide": "SHORT", "side": "SELL"}, 0),
        (True, {"positionSide": "UP"}, -4060),
        (True, {"positionSide": "LONG", "reduceOnly": "true"}, -1106),
        (True, {"positionSide": "LONG", "reduceOnly": "false"}, -1106),
        # nothing to close
        (True, {"positionSide": "LONG", "side": "SELL"}, -2022),
        (True, {"positionSide": "SHORT", "side": "BUY"}, -2022),
    ],
)
def test_an_order_names_its_side_in_hedge_mode_and_only_there(
    dual: bool, changes: dict[str, str], expected: int
) -> None:
    flow = Hedge()
    flow.mode(str(dual).lower())
    params = {"symbol": "BTCUSDT", "side": "BUY", "type": "MARKET", "quantity": "0.010"} | changes
    assert code(flow.call(trading.place_order, params)) == expected
    [row] = flow.call(batch.place_batch, {"batchOrders": json.dumps([params])})
    assert row.get("code", 0) == expected


def test_both_sides_are_held_at_once_and_closed_apart() -> None:
    flow = Hedge()
    flow.order("BUY", "LONG", "0.100")
    flow.order("SELL", "SHORT", "0.030")
    assert flow.held() == {"BTCUSDT:LONG": D("0.100"), "BTCUSDT:SHORT": D("-0.030")}
    assert code(flow.order("SELL", "LONG", "0.101")) == -2022
    row = flow.order("SELL", "LONG", "0.040")
    assert (row["positionSide"], row["reduceOnly"], row["status"]) == ("LONG", True, "FILLED")
    flow.order("BUY", "SHORT", "0.030")
    assert flow.held() == {"BTCUSDT:LONG": D("0.060")}
    trades = flow.call(accounting.user_trades, {"symbol": "BTCUSDT"})
    assert {t["positionSide"] for t in trades} == {"LONG", "SHORT"}


def test_a_resting_closer_never_turns_its_side_and_ends_with_it() -> None:
    flow = Hedge()
    flow.order("BUY", "LONG", "0.100")
    flow.order("SELL", "SHORT", "0.100")
    limit = {"type": "LIMIT", "timeInForce": "GTC", "price": flow.price("BTCUSDT", 300)}
    first, second = (flow.order("SELL", "LONG", "0.080", **limit) for _ in range(2))
    account = flow.world.account
    assert all(order_margin(account, o) == 0 for o in account.orders.values())
    higher = D(limit["price"]) + 1
    match(account, MarketTrade("BTCUSDT", higher, D(1), False), flow.now_ms)
    assert account.closed[first["orderId"]].executed == D("0.080")
    assert account.closed[second["orderId"]].executed == D("0.020")
    assert account.closed[second["orderId"]].status == "EXPIRED"
    assert flow.held() == {"BTCUSDT:SHORT": D("-0.100")}


def test_a_closing_stop_ends_its_own_side() -> None:
    flow = Hedge()
    flow.order("BUY", "LONG", "0.100")
    flow.order("SELL", "SHORT", "0.050")
    low, high = flow.price("BTCUSDT", -300), flow.price("BTCUSDT", 300)
    assert code(flow.algo("BUY", "LONG", high)) == -2022
    row = flow.algo("SELL", "LONG", low)
    assert (row["positionSide"], row["closePosition"]) == ("LONG", True)
    assert code(flow.algo("SELL", "LONG", low)) == -4130
    other = flow.algo("BUY", "SHORT", high)
    account = flow.world.account
    match(account, MarketTrade("BTCUSDT", D(low), D("0.01"), True), flow.now_ms)
    assert flow.held() == {"BTCUSDT:SHORT": D("-0.050")}
    child = account.closed[account.closed_algos[row["algoId"]].order_id]
    assert (child.position_side, child.close_position, child.qty) == ("LONG", True, D("0.100"))
    assert list(account.algos) == [other["algoId"]]


def test_an_opening_stop_opens_its_side() -> None:
    flow = Hedge()
    high = flow.price("BTCUSDT", 300)
    row = flow.algo("BUY", "LONG", high, quantity="0.020")
    assert row["reduceOnly"] is False
    match(flow.world.account, MarketTrade("BTCUSDT", D(high), D("0.01"), False), flow.now_ms)
    assert flow.held() == {"BTCUSDT:LONG": D("0.020")}


def test_stream_and_ledger_name_the_side() -> None:
    flow = Hedge()
    flow.order("SELL", "SHORT", "0.100")
    flow.algo("BUY", "SHORT", flow.price("BTCUSDT", 300))
    assert {p["o"]["ps"] for p in flow.told("ORDER_TRADE_UPDATE")} == {"SHORT"}
    assert [p["o"]["ps"] for p in flow.told("ALGO_UPDATE")] == ["SHORT"]
    [row] = [r for p in flow.told("ACCOUNT_UPDATE") for r in p["a"]["P"]]
    assert (row["ps"], row["pa"]) == ("SHORT", "-0.1")
    for kind in ("order_new", "trade", "algo_new"):
        assert [e["position_side"] for e in flow.world.ledger if e["type"] == kind] == ["SHORT"]
    [trade] = [e for e in flow.world.ledger if e["type"] == "trade"]
    assert trade["position_after"] == "-0.1"


def test_rows_of_positions_follow_the_mode() -> None:
    flow = Hedge()
    flow.order("SELL", "SHORT", "0.100")
    flow.order("BUY", "LONG", "0.020")
    rows = flow.call(accounting.position_risk_v3, {})
    assert [(r["positionSide"], r["positionAmt"]) for r in rows] == [
        ("SHORT", "-0.100"),
        ("LONG", "0.020"),
    ]
    rows = flow.call(accounting.position_risk_v2, {"symbol": "BTCUSDT"})
    assert [(r["positionSide"], r["positionAmt"]) for r in rows] == [
        ("LONG", "0.020"),
        ("SHORT", "-0.100"),
    ]
    told = flow.call(accounting.account_v2, {})["positions"]
    assert [r["positionSide"] for r in told] == ["LONG", "SHORT"] * 2
    told = flow.call(accounting.account_v3, {})["positions"]
    assert {r["positionSide"] for r in told} == {"LONG", "SHORT"}
    flow.order("BUY", "SHORT", "0.100")
    flow.order("SELL", "LONG", "0.020")
    flow.mode("false")
    rows = flow.call(accounting.position_risk_v2, {})
    assert [r["positionSide"] for r in rows] == ["BOTH", "BOTH"]


def test_the_light_of_a_crossed_pair_is_one_and_of_isolated_sides_their_own() -> None:
    for isolated in (False, True):
        flow = Hedge()
        account = flow.world.account
        if isolated:
            matching.set_margin_type(account, "BTCUSDT", True, flow.now_ms)
        flow.order("BUY", "LONG", "0.100")
        flow.order("SELL", "SHORT", "0.100")
        [row] = flow.call(standing.adl_quantile, {})
        lights = row["adlQuantile"]
        assert set(lights) == {"LONG", "SHORT", "BOTH" if isolated else "HEDGE"}


def request(side: str, where: str, **changes: str) -> Request:
    params = {"symbol": "BTCUSDT", "side": side, "type": "MARKET", "quantity": "0.1"}
    params |= {"positionSide": where} | changes
    parsed = parse(params, "newClientOrderId", True)
    assert isinstance(parsed, Request)
    return parsed


def pair(long: str, short: str, wallet: str = "1000", isolated: bool = False) -> Account:
    """A hedged account at 60,000."""
    made = opened(wallet)
    positions.set_mode(made, True, NOW)
    at(made, "BTCUSDT", "60000")
    if isolated:
        matching.set_margin_type(made, "BTCUSDT", True, NOW)
    for side, where, qty in (("BUY", "LONG", long), ("SELL", "SHORT", short)):
        order, _ = place(made, request(side, where, quantity=qty), NOW)
        assert isinstance(order, Order) and order.status == "FILLED"
    return made


def test_margin_of_both_sides_is_used_and_profits_offset_losses() -> None:
    made = pair("0.1", "0.04")
    # fees 3 + 1.2; margin (6,000 + 2,400) / 20
    assert made.wallet == D("995.8") and available(made) == D("575.8")
    at(made, "BTCUSDT", "61000")
    # +100 and -40; margin (6,100 + 2,440) / 20
    assert available(made) == D("995.8") + 60 - 427


def test_a_crossed_pair_is_liquidated_where_both_maintenances_meet_the_balance() -> None:
    made = pair("0.1", "0.04")
    long, short = position_of(made, "BTCUSDT", "LONG"), position_of(made, "BTCUSDT", "SHORT")
    # LP = (995.8 - 6,000 + 2,400) / (0.14 x 0.004 - 0.1 + 0.04) = 2,604.2 / 0.05944
    assert liquidation.price(made, long) == liquidation.price(made, short)
    assert liquidation.price(made, long).quantize(D("0.0001")) == D("43812.2476")
    # 43,812.3: 995.8 - 0.06 x 16,187.7 = 24.538 against 0.14 x 43,812.3 x 0.004 = 24.534888
    assert forced(at(made, "BTCUSDT", "43812.3")) is None
    # 43,812.2: 24.532 against 24.534832: the loser goes, and the winner pays what is owed
    events = at(made, "BTCUSDT", "43812.2")
    told = forced(events)
    assert told is not None and told.order.position_side == "LONG"
    assert long.qty == 0


def test_isolated_sides_have_their_own_margin_and_their_own_end() -> None:
    made = pair("0.1", "0.04", isolated=True)
    long, short = position_of(made, "BTCUSDT", "LONG"), position_of(made, "BTCUSDT", "SHORT")
    assert (long.isolated, short.isolated) == (D(300), D(120))
    moved = amend.move_margin(made, "BTCUSDT", D(10), amend.ADD, NOW, "SHORT")
    assert not isinstance(moved, Refusal) and (long.isolated, short.isolated) == (D(300), D(130))
    assert made.margin_moves[-1]["positionSide"] == "SHORT"
    flat = amend.move_margin(made, "BTCUSDT", D(10), amend.ADD, NOW)
    assert isinstance(flat, Refusal) and flat.code == -4054
    resting, _ = place(made, request("BUY", "SHORT", type="LIMIT", timeInForce="GTC",
                                     price="58000", quantity="0.04"), NOW)  # fmt: skip
    # as alone: (300 - 6,000) / -0.0996 = 57,228.9...
    assert forced(at(made, "BTCUSDT", "57229.0")) is None
    told = forced(at(made, "BTCUSDT", "57228.9"))
    assert told is not None and told.order.position_side == "LONG"
    assert (long.qty, long.isolated) == (0, 0)
    # the short took its profit on the way, untouched by the end of the other side
    assert isinstance(resting, Order) and resting.status == "FILLED" and short.qty == 0


def test_margin_is_moved_over_rest_with_its_side() -> None:
    flow = Hedge()
    matching.set_margin_type(flow.world.account, "BTCUSDT", True, flow.now_ms)
    flow.order("BUY", "LONG", "0.100")
    moved = {"symbol": "BTCUSDT", "amount": "5", "type": "1"}
    assert code(flow.call(batch.move_margin, moved)) == -4061
    assert flow.call(batch.move_margin, moved | {"positionSide": "LONG"})["code"] == 200
    assert code(flow.call(batch.move_margin, moved | {"positionSide": "SHORT"})) == -4054


def test_an_amended_closer_stays_on_its_side() -> None:
    flow = Hedge()
    flow.order("BUY", "LONG", "0.100")
    limit = {"type": "LIMIT", "timeInForce": "GTC", "price": flow.price("BTCUSDT", 300)}
    row = flow.order("SELL", "LONG", "0.050", **limit)
    changed = {"symbol": "BTCUSDT", "side": "SELL", "orderId": str(row["orderId"])}
    changed |= {"quantity": "0.060", "price": flow.price("BTCUSDT", 200)}
    answer = flow.call(batch.amend_order, changed)
    assert (answer["origQty"], answer["positionSide"]) == ("0.060", "LONG")


def test_a_hedged_account_is_the_same_after_a_restart() -> None:
    made = pair("0.1", "0.04")
    stop = {"type": "STOP_MARKET", "triggerPrice": "59000", "closePosition": "true"}
    algo, _ = place_algo(made, request("SELL", "LONG", quantity="", **stop), NOW)
    assert isinstance(algo, Algo)
    place(made, request("BUY", "SHORT", type="LIMIT", timeInForce="GTC", price="58000",
                        quantity="0.04"), NOW)  # fmt: skip
    text = store.orjson.dumps(store.account_json(made, 100), default=store._text)
    again = Account(dict(made.specs))
    store.account_from(json.loads(text), again)
    again.books = made.books
    assert again == made and again.dual
    assert set(again.positions) == {"BTCUSDT:LONG", "BTCUSDT:SHORT"}


def test_the_ledger_of_a_hedged_account_adds_up() -> None:
    flow = Hedge()
    flow.order("BUY", "LONG", "0.100")
    flow.order("SELL", "SHORT", "0.030")
    flow.order("SELL", "LONG", "0.050")
    result = audit(as_ours(flow.world.ledger), 2)
    assert result.violations == () and result.balance == flow.world.account.wallet
    assert dict(result.positions) == flow.held()
