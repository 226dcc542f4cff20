"""Amendments, batches, countdowns, dates and isolated margin at their limits; then random flow."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from decimal import Decimal as D
from typing import Any

import hypothesis
import pytest
from hypothesis import strategies as st

from maintenance.audit import audit
from tests.test_venue_matching import NOW, account, market, request, stop
from tests.venue_oracle import as_ours
from venue import (
    accounting,
    amend,
    batch,
    exchange,
    ladder,
    matching,
    rest,
    standing,
    store,
    timers,
    trading,
)
from venue.amend import Change
from venue.exchange import Exchange, Moment, Setup
from venue.matching import MarketTrade, match, place, place_algo
from venue.orders import ZERO, Account, Algo, Book, MoneyEvent, Order, OrderEvent, Refusal
from venue.userwire import ledger_entries, user_payloads


def resting(made: Account, **changes: str) -> Order:
    order, _ = place(made, request(**({"price": "59000.0"} | changes)), NOW)
    assert isinstance(order, Order) and order.id in made.orders
    return order


def change(qty: str = "0.010", price: str = "59000.0", side: str = "BUY", **more: Any) -> Change:
    return Change(side, D(qty), D(price), **more)


def changed(made: Account, order: Order, wanted: Change) -> int:
    answer, _ = amend.amend(made, order, wanted, NOW + 1)
    return answer.code if isinstance(answer, Refusal) else 0


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        (change(), -5027),
        (change(price="59000.1"), 0),
        (change(qty="0.011"), 0),
        (change(price="59000.05"), -4014),
        (change(qty="0.0105"), -1111),
        (change(qty="0.000"), -4003),
        (change(price="63000.1"), -4016),
        (change(qty="0.001", price="49999.9"), -4164),
        (change(qty="0.001"), 0),
        (change(price="59000.1", side="SELL"), -1117),
        (change(price="59000.1", reduce_only=False), 0),
        (change(price="59000.1", reduce_only=True), -5047),
    ],
)
def test_an_amendment_is_refused_with_its_code_and_changes_nothing(
    wanted: Change, expected: int
) -> None:
    made = account()
    order = resting(made)
    before = copy.deepcopy(order)
    assert changed(made, order, wanted) == expected
    if expected:
        assert order == before and not made.amendments
    else:
        assert (order.qty, order.price) == (wanted.qty, wanted.price)


@pytest.mark.parametrize(("qty", "expected"), [("1.024", 0), ("1.025", -2019)])
def test_an_amendment_is_paid_out_of_what_its_own_order_had_reserved(
    qty: str, expected: int
) -> None:
    made = account("3053.9")  # 59,000 / 20 + 59,000 * 0.0005 = 2,979.5 for one BTC
    order = resting(made, quantity="1.000")
    assert changed(made, order, change(qty=qty)) == expected
    assert made.orders == {order.id: order}


@pytest.mark.parametrize(("done", "expected"), [(9_999, 0), (10_000, -5026)])
def test_an_order_is_amended_ten_thousand_times_at_most(done: int, expected: int) -> None:
    made = account()
    order = resting(made)
    order.amended = done
    assert changed(made, order, change(qty="0.020")) == expected


def test_an_amended_order_keeps_its_id_and_goes_to_the_end_of_the_queue() -> None:
    made = account()
    first, second = resting(made), resting(made)
    _, events = amend.amend(made, first, change(qty="0.020", modify_id=77), NOW + 5)
    assert list(made.orders) == [second.id, first.id]
    [told] = user_payloads(events[0], made.specs)
    body = told["o"]
    assert (body["x"], body["X"], body["i"]) == ("AMENDMENT", "NEW", first.id)
    assert (body["q"], body["p"], body["M"], body["t"]) == ("0.02", "59000", 77, 0)
    [entry] = ledger_entries(events[0])
    assert entry == {
        "type": "order_amended", "symbol": "BTCUSDT", "client_id": first.client_id,
        "order_id": first.id, "qty": "0.02", "price": "59000",
    }  # fmt: skip
    [row] = made.amendments
    assert row["amendment"] == {
        "price": {"before": "59000", "after": "59000"},
        "origQty": {"before": "0.01", "after": "0.02"},
        "count": 1,
    }


def test_an_order_amended_through_the_book_takes_at_the_best_price() -> None:
    made = account()
    order = resting(made)
    _, events = amend.amend(made, order, change(price="60010.0"), NOW)
    assert [e.execution for e in events if isinstance(e, OrderEvent)] == ["AMENDMENT", "TRADE"]
    assert order.status == "FILLED" and made.trades[-1].price == D("60000.1")
    assert not made.trades[-1].maker and not made.orders


@pytest.mark.parametrize(("qty", "status"), [("0.003", "CANCELED"), ("0.004", "CANCELED"),
                                             ("0.005", "PARTIALLY_FILLED")])  # fmt: skip
def test_a_quantity_not_above_what_is_executed_ends_the_order(qty: str, status: str) -> None:
    made = account()
    order = resting(made)
    match(made, MarketTrade("BTCUSDT", D("58999.9"), D("0.004"), True), NOW)
    assert order.executed == D("0.004")
    answer, events = amend.amend(made, order, change(qty=qty), NOW + 1)
    assert answer is order and order.status == status
    assert (order.id in made.orders) == (status == "PARTIALLY_FILLED")
    execution = "AMENDMENT" if status == "PARTIALLY_FILLED" else "CANCELED"
    assert [e.execution for e in events if isinstance(e, OrderEvent)] == [execution]


@pytest.mark.parametrize(("price", "status"), [("60000.0", "NEW"), ("60000.1", "CANCELED")])
def test_a_post_only_order_that_would_take_is_canceled(price: str, status: str) -> None:
    made = account()
    order = resting(made, timeInForce="GTX")
    amend.amend(made, order, change(price=price), NOW)
    assert order.status == status and not made.trades


def test_amendments_and_countdowns_outlive_the_process() -> None:
    made = account()
    order = resting(made, timeInForce="GTD", goodTillDate=str(NOW + 700_000))
    amend.amend(made, order, change(qty="0.020"), NOW)
    timers.start_countdown(made, "BTCUSDT", NOW + 5_000)
    text = store.orjson.dumps(store.account_json(made, 100), default=store._text)
    again = Account(dict(made.specs))
    store.account_from(json.loads(text), again)
    assert again.orders == made.orders and again.amendments == made.amendments
    assert again.countdowns == {"BTCUSDT": NOW + 5_000}
    assert again.orders[order.id].amended == 1


DATE = NOW + 600_000


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"goodTillDate": str(DATE)}, -5040),
        ({"goodTillDate": str(DATE + 999)}, -5040),  # whole seconds count
        ({"goodTillDate": str(DATE + 1000)}, 0),
        ({"goodTillDate": "253402300798999"}, 0),
        ({"goodTillDate": "253402300799000"}, -5040),
        ({}, -1102),
        ({"goodTillDate": str(DATE + 1000), "timeInForce": "GTC"}, -1106),
    ],
)
def test_a_date_is_needed_for_gtd_and_only_for_it(changes: dict[str, str], expected: int) -> None:
    assert NOW % 1000 == 0
    wanted = request(**({"timeInForce": "GTD", "price": "59000.0"} | changes))
    answer, _ = place(account(), wanted, NOW)
    assert (answer.code if isinstance(answer, Refusal) else 0) == expected


@pytest.mark.parametrize(("late_ms", "status"), [(-1, "NEW"), (0, "EXPIRED"), (1, "EXPIRED")])
def test_an_order_ends_with_its_date(late_ms: int, status: str) -> None:
    made = account()
    till = DATE + 60_000
    order = resting(made, timeInForce="GTD", goodTillDate=str(till + 250))
    other = resting(made)
    wanted = stop("SELL", "58000.0", timeInForce="GTD", goodTillDate=str(till))
    algo, _ = place_algo(made, wanted, NOW)
    assert isinstance(algo, Algo)
    events = timers.expire(made, till + late_ms)
    assert order.status == algo.status == status and other.status == "NEW"
    if status == "EXPIRED":
        assert isinstance(events[0], OrderEvent)
        [told] = user_payloads(events[0], made.specs)
        assert (told["o"]["x"], told["o"]["gtd"], told["o"]["f"]) == ("EXPIRED", till, "GTD")


@pytest.mark.parametrize(("late_ms", "left"), [(-1, 3), (0, 1)])
def test_a_countdown_cancels_the_orders_of_its_symbol_and_no_others(
    late_ms: int, left: int
) -> None:
    made = account()
    first, _, other = resting(made), resting(made), resting(made, symbol="ETHUSDT", price="2500.00")
    algo, _ = place_algo(made, stop("SELL", "58000.0"), NOW)
    timers.start_countdown(made, "BTCUSDT", NOW + 1_000)
    timers.expire(made, NOW + 1_000 + late_ms)
    assert len(made.orders) == left and other.id in made.orders
    assert isinstance(algo, Algo) and algo.status == "NEW"
    assert first.status == ("NEW" if late_ms < 0 else "CANCELED")
    timers.start_countdown(made, "ETHUSDT", NOW + 2_000)
    timers.start_countdown(made, "ETHUSDT", 0)
    timers.expire(made, NOW + 9_000)
    assert other.status == "NEW"


def isolated_long() -> Account:
    made = account("1000")
    matching.set_margin_type(made, "BTCUSDT", True, NOW)
    order, _ = place(made, market("BUY", "0.100"), NOW)  # 6,000.01 at 20x: 300.0005 aside
    assert isinstance(order, Order) and order.status == "FILLED"
    return made


@pytest.mark.parametrize(
    ("moved", "kind", "expected"),
    [
        ("0", amend.ADD, -4055),
        ("696.99949500", amend.ADD, 0),
        ("696.99949501", amend.ADD, -4050),
        ("0.00000001", amend.REDUCE, -4051),
    ],
)
def test_margin_moves_as_far_as_the_free_balance(moved: str, kind: int, expected: int) -> None:
    made = isolated_long()
    wallet, position = made.wallet, made.positions["BTCUSDT"]
    assert (wallet, position.isolated) == (D("996.99999500"), D("300.0005"))
    done = amend.move_margin(made, "BTCUSDT", D(moved), kind, NOW)
    assert (done.code if isinstance(done, Refusal) else 0) == expected
    assert made.wallet == wallet
    assert position.isolated == D("300.0005") + (D(moved) if expected == 0 else 0)


@pytest.mark.parametrize(("moved", "expected"), [("49.99", 0), ("49.9905", -4051)])
def test_margin_comes_back_down_to_the_initial_margin_and_the_loss(
    moved: str, expected: int
) -> None:
    made = isolated_long()
    amend.move_margin(made, "BTCUSDT", D(50), amend.ADD, NOW)
    # 350.0005 - 0.01 unrealised loss - 6,000 / 20
    assert amend.removable(made, made.positions["BTCUSDT"]) == D("49.9905")
    done = amend.move_margin(made, "BTCUSDT", D(moved) + D("0.00000001"), amend.REDUCE, NOW)
    assert (done.code if isinstance(done, Refusal) else 0) == expected


def test_a_margin_move_is_told_and_written_and_changes_no_balance() -> None:
    made = isolated_long()
    done = amend.move_margin(made, "BTCUSDT", D(50), amend.ADD, NOW)
    assert isinstance(done, list) and isinstance(done[0], MoneyEvent)
    [told] = user_payloads(done[0], made.specs)
    [row], [money] = told["a"]["P"], told["a"]["B"]
    assert told["a"]["m"] == "MARGIN_TRANSFER" and row["iw"] == "350.0005"
    assert (money["wb"], money["cw"], money["bc"]) == ("996.99999500", "646.99949500", "0")
    [entry] = ledger_entries(done[0])
    assert (entry["type"], entry["amount"]) == ("margin_transfer", "50")
    assert code_of(account(), "BTCUSDT") == -4049
    flat = account()
    matching.set_margin_type(flat, "BTCUSDT", True, NOW)
    assert code_of(flat, "BTCUSDT") == -4054


def code_of(made: Account, symbol: str) -> int:
    done = amend.move_margin(made, symbol, D(1), amend.ADD, NOW)
    assert isinstance(done, Refusal)
    return done.code


@pytest.mark.parametrize(
    ("mark", "light"), [("59000", 0), ("60749", 0), ("60751", 1), ("62999", 3), ("64000", 4)]
)
def test_the_deleveraging_light_is_profit_in_quarters_of_the_margin(mark: str, light: int) -> None:
    made = isolated_long()  # 300 of margin: a quarter is a rise of 750
    made.books["BTCUSDT"] = replace(made.books["BTCUSDT"], mark=D(mark))
    assert accounting.adl_light(made, made.positions["BTCUSDT"]) == light


def test_a_liquidation_is_listed_among_the_forced_orders() -> None:
    flow = Flow()
    made = flow.world.account
    flow.call(trading.place_order, flow.placed(ETH_LONG))
    assert flow.call(standing.force_orders, {}) == []
    mark = made.books["ETHUSDT"].mark
    crash = matching.MarketMark("ETHUSDT", mark / 2)
    exchange.tell(flow.world, match(made, crash, flow.now_ms + 7))
    [row] = flow.call(standing.force_orders, {"symbol": "ETHUSDT"})
    assert (row["status"], row["executedQty"], row["side"]) == ("FILLED", "0.200", "SELL")
    assert (row["type"], row["timeInForce"], row["time"]) == ("LIMIT", "IOC", flow.now_ms + 7)
    assert row["clientOrderId"] == f"autoclose-{row['orderId']}"
    assert D(row["cumQuote"]) == D(row["avgPrice"]) * D("0.2")
    others = ({"symbol": "BTCUSDT"}, {"autoCloseType": "ADL"})
    for asked in (*others, {"startTime": str(flow.now_ms + 8)}, {"endTime": str(flow.now_ms + 6)}):
        assert flow.call(standing.force_orders, asked) == []


def test_the_ratios_of_an_account_count_its_closed_orders() -> None:
    made = account()
    for _ in range(3):
        matching.cancel(made, resting(made), NOW)
    for price in ("59000.0", "60000.1"):
        place(made, request(price=price, timeInForce="IOC"), NOW)
    place(made, request(price="60000.1"), NOW)
    place(made, request(side="SELL", quantity="0.001", price="48000.0"), NOW)
    values = standing.ratios(made, list(made.closed.values()))
    # six LIMIT orders: three canceled, one IOC expired, an IOC and a GTC filled
    assert values == {"UFR": 0.6667, "IFER": 0.5, "GCR": 0.75, "DR": 0.0}


def test_numbers_out_of_range_are_refused_or_cut_and_never_break_the_store() -> None:
    flow = Flow()
    flow.call(trading.place_order, flow.placed(ETH_LONG | {"tif": "GTC", "ticks": -30}))
    asked = flow.amended({"which": 0, "ticks": -31, "steps": 100}) | {"modifyId": str(1 << 63)}
    assert flow.call(batch.amend_order, asked).code == -1130
    flow.call(batch.amend_order, asked | {"modifyId": str((1 << 63) - 1)})
    assert flow.world.told[-1]["o"]["M"] == (1 << 63) - 1
    flow.call(batch.countdown, {"symbol": "ETHUSDT", "countdownTime": "9" * 30})
    moved = {"symbol": "ETHUSDT", "type": "1", "amount": "9" * 20 + "." + "9" * 20}
    assert isinstance(flow.call(batch.move_margin, moved), Refusal)
    assert store.orjson.dumps([*flow.world.told])
    assert store.orjson.dumps(store.account_json(flow.world.account, 9), default=store._text)


DAY_MS = 86_400_000


@pytest.mark.parametrize(
    ("filled", "late_ms", "known"),
    [
        (False, 3 * DAY_MS, True),
        (False, 3 * DAY_MS + 1, False),
        (True, 3 * DAY_MS + 1, True),
        (True, 90 * DAY_MS, True),
        (True, 90 * DAY_MS + 1, False),
    ],
)
def test_queries_forget_what_ended_unfilled_after_three_days_and_the_rest_after_ninety(
    filled: bool, late_ms: int, known: bool
) -> None:
    flow = Flow()
    book = exchange.refresh(flow.world, "ETHUSDT")
    price = book.ask if filled else book.bid * D("0.96") // 1
    fields = {"symbol": "ETHUSDT", "side": "BUY", "type": "LIMIT", "timeInForce": "GTC"}
    placed = flow.call(trading.place_order, fields | {"quantity": "0.100", "price": f"{price:f}"})
    named = {"symbol": "ETHUSDT", "orderId": str(placed["orderId"])}
    if not filled:
        flow.call(trading.cancel_order, named)
    order = flow.world.account.closed[placed["orderId"]]
    order.updated_ms -= late_ms  # it ended so long ago
    seen = flow.call(trading.query_order, named)
    listed = [row["orderId"] for row in flow.call(trading.all_orders, {"symbol": "ETHUSDT"})]
    assert (seen == trading.NO_SUCH_ORDER) != known
    assert (placed["orderId"] in listed) == known


def test_a_small_number_in_a_batch_is_read_as_written() -> None:
    assert batch.texts({"quantity": 0.00001, "reduceOnly": True, "orderId": 7, "x": None}) == {
        "quantity": "0.00001", "reduceOnly": "true", "orderId": "7",
    }  # fmt: skip


# Random flow through the REST handlers of a whole exchange, its market moving in between.

ETH_LONG = {"symbol": "ETHUSDT", "side": "BUY", "tif": "", "steps": 200, "reduce": False}
SETUP = Setup("flow", 2, 400.0, 11, 20.0, 0.0, ())
NAMES = ("BTCUSDT", "ETHUSDT")

PLACED = st.fixed_dictionaries(
    {
        "symbol": st.sampled_from(NAMES),
        "side": st.sampled_from(("BUY", "SELL")),
        "tif": st.sampled_from(("", "GTC", "GTC", "GTC", "IOC", "FOK", "GTX", "GTD")),
        "ticks": st.integers(-30, 30),
        "steps": st.integers(20, 200),
        "reduce": st.sampled_from((False, False, False, True)),
    }
)
AMENDED = st.fixed_dictionaries(
    {"which": st.integers(0, 9), "ticks": st.integers(-30, 30), "steps": st.integers(1, 200)}
)
OPERATION = st.one_of(
    st.tuples(st.just("place"), PLACED),
    st.tuples(st.just("place_batch"), st.lists(PLACED, min_size=1, max_size=5)),
    st.tuples(st.just("amend"), AMENDED),
    st.tuples(st.just("amend"), AMENDED),
    st.tuples(st.just("amend_batch"), st.lists(AMENDED, min_size=1, max_size=5)),
    st.tuples(st.just("cancel_batch"), st.sampled_from(NAMES)),
    st.tuples(st.just("countdown"), st.integers(1, 50)),
    st.tuples(st.just("margin"), st.integers(-200, 200)),
    st.tuples(st.just("wait"), st.integers(1, 4_000)),
)


class Flow:
    """An exchange and what was done to it so far."""

    def __init__(self) -> None:
        self.world: Exchange = exchange.create(SETUP)
        self.desk = rest.Desk()
        self.now_ms = self.world.t0_ms
        exchange.open_account(self.world, Moment(self.now_ms, 0))
        self.world.next_funding_ms = self.now_ms + 5_000
        for name in NAMES:
            exchange.refresh(self.world, name)
        matching.set_margin_type(self.world.account, "ETHUSDT", True, self.now_ms)

    def call(self, handler: rest.Handler, params: dict[str, str]) -> Any:
        return handler(rest.Call(self.world, self.desk, params, Moment(self.now_ms, 0)))

    def wait(self, ms: int) -> None:
        self.now_ms += ms
        for _ in exchange.advance(self.world, float(self.now_ms), self.now_ms):
            pass

    def price(self, symbol: str, ticks: int) -> str:
        book = exchange.refresh(self.world, symbol)
        return f"{book.last + ticks * self.world.account.specs[symbol].tick:f}"

    def placed(self, p: dict[str, Any]) -> dict[str, str]:
        spec = self.world.account.specs[p["symbol"]]
        out = {"symbol": p["symbol"], "side": p["side"], "type": "MARKET"}
        out["quantity"] = f"{p['steps'] * spec.step:f}"
        if p["tif"]:
            price = self.price(p["symbol"], p["ticks"])
            out |= {"type": "LIMIT", "timeInForce": p["tif"], "price": price}
        if p["tif"] == "GTD":
            out["goodTillDate"] = str(self.now_ms + 602_000)
        if p["reduce"]:
            out["reduceOnly"] = "true"
        return out

    def amended(self, p: dict[str, Any]) -> dict[str, str]:
        open_ = list(self.world.account.orders.values())
        if not open_:
            return {"symbol": "BTCUSDT", "side": "BUY", "orderId": "1", "quantity": "1",
                    "price": "1"}  # fmt: skip
        order = open_[p["which"] % len(open_)]
        spec = self.world.account.specs[order.symbol]
        return {
            "symbol": order.symbol,
            "side": order.side,
            "orderId": str(order.id),
            "quantity": f"{p['steps'] * spec.step:f}",
            "price": self.price(order.symbol, p["ticks"]),
        }

    def do(self, what: str, p: Any) -> None:
        if what == "place":
            self.call(trading.place_order, self.placed(p))
        elif what == "amend":
            self.call(batch.amend_order, self.amended(p))
        elif what in ("place_batch", "amend_batch"):
            made = [self.placed(one) if what == "place_batch" else self.amended(one) for one in p]
            handler = batch.place_batch if what == "place_batch" else batch.amend_batch
            rows = self.call(handler, {"batchOrders": json.dumps(made)})
            assert len(rows) == len(made)
            assert all(("code" in row) != ("orderId" in row) for row in rows)
        elif what == "cancel_batch":
            ids = [o.id for o in self.world.account.orders.values() if o.symbol == p][:9]
            rows = self.call(
                batch.cancel_batch, {"symbol": p, "orderIdList": json.dumps([*ids, 1])}
            )
            assert [r.get("status", r.get("code")) for r in rows] == ["CANCELED"] * len(ids) + [
                -2011
            ]
        elif what == "countdown":
            self.call(batch.countdown, {"symbol": "BTCUSDT", "countdownTime": str(p)})
        elif what == "margin":
            moved = {"symbol": "ETHUSDT", "amount": str(abs(p)), "type": "1" if p > 0 else "2"}
            self.call(batch.move_margin, moved)
        else:
            self.wait(p)

    def check(self, quoted: bool = False) -> None:
        """`quoted`: every book is newer than every order, so that none may reach it at all."""
        made = self.world.account
        for order in made.orders.values():
            book: Book = made.books[order.symbol]
            if order.price * order.sign >= (book.ask if order.sign > 0 else book.bid) * order.sign:
                # it waits for the next quote only if it took all that this book had for it
                assert not quoted
                spec = made.specs[order.symbol]
                assert not [*ladder.offers(spec, book, order.side, order.price)]
            assert order.left > 0 and order.status in ("NEW", "PARTIALLY_FILLED")
        for symbol in made.specs:
            buys, sells = (
                [o.price for o in made.orders.values() if (o.symbol, o.side) == (symbol, side)]
                for side in ("BUY", "SELL")
            )
            assert not buys or not sells or max(buys) < min(sells)
        done: dict[int, D] = {}
        held: dict[str, D] = {}
        for t in made.trades:
            done[t.order_id] = done.get(t.order_id, ZERO) + t.qty
            signed = t.qty if t.side == "BUY" else -t.qty
            held[t.symbol] = held.get(t.symbol, ZERO) + signed
        for order in (*made.orders.values(), *made.closed.values()):
            assert order.executed == done.get(order.id, ZERO) <= order.qty
        assert {s: p.qty for s, p in made.positions.items()} == held
        for position in made.positions.values():
            assert position.isolated == 0 or (position.qty and position.symbol == "ETHUSDT")
        assert made.wallet == made.paid_in + made.realised - made.fees + made.funding


@hypothesis.settings(
    max_examples=150, deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
@hypothesis.given(st.lists(OPERATION, min_size=20, max_size=60))
def test_money_quantity_and_book_hold_over_random_flow(operations: list[tuple[str, Any]]) -> None:
    flow = Flow()
    for what, p in operations:
        flow.do(what, p)
        flow.check()
    flow.wait(700_000 if len(operations) % 4 == 0 else 10_000)
    flow.check(quoted=True)
    result = audit(as_ours(flow.world.ledger), 2)
    assert result.violations == () and result.balance == flow.world.account.wallet
    open_ = {s: p.qty for s, p in flow.world.account.positions.items() if p.qty}
    assert result.positions == open_
