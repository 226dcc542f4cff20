"""Plans and acts without sockets: what is refused, what others do, what the sockets must keep."""

from __future__ import annotations

import json
import re
from decimal import Decimal as D
from pathlib import Path
from typing import Any

import pytest

from maintenance.audit import audit
from tests.test_venue_sockets import Pipe
from venue import acts, exchange, faults, rest
from venue.acts import ACTS
from venue.connection import parse_url
from venue.exchange import Exchange, Moment, Setup
from venue.faults import KINDS, Lab
from venue.orders import Refusal
from venue.rest import Desk
from venue.server import ROUTES
from venue.sockets import LIFETIME_MS, PING_MS, PONG_MS_MAX, Hub
from venue.store import Store
from venue.streamfaults import UserStream
from venue.symbols import listing

PAGE = (Path(__file__).resolve().parent.parent / "venue" / "FAULTS.md").read_text()


class Made:
    """An exchange and its lab; calls as the owner or as others."""

    def __init__(self) -> None:
        self.world: Exchange = exchange.create(Setup("w", 3, 100.0, 3, 1.0, 0.0, ()))
        exchange.open_account(self.world, Moment(self.world.t0_ms, 0))
        self.desk = Desk(lab=Lab(3))
        for _ in exchange.advance(self.world, self.world.t0_ms + 2000, 0):
            pass
        self.world.told.clear()

    @property
    def now(self) -> Moment:
        return Moment(int(self.world.made_until_ms), 1000)

    def own(self, method: str, path: str, body: Any = None, query: str = "") -> Any:
        data = b"" if body is None else json.dumps(body).encode()
        path = f"/venue/v1/{path}"
        reply = rest.handle(
            self.world, self.desk, ROUTES, method, path, query.encode(), data, "", self.now
        )
        return json.loads(reply.body)

    def act(self, what: str, symbol: str = "ETHUSDT", **more: Any) -> Any:
        return self.own("POST", "act", {"what": what, "symbol": symbol, **more})

    def held(self, symbol: str = "ETHUSDT") -> D:
        return self.world.account.positions[symbol].qty

    def told(self) -> list[Any]:
        out = list(self.world.told)
        self.world.told.clear()
        return out

    def book(self, symbol: str = "ETHUSDT") -> Any:
        return exchange.refresh(self.world, symbol)


def kinds_of(text: str, column: str) -> dict[str, list[str]]:
    """Rows `| name | fields | ...` of the tables of the page that begin with `column`."""
    out = {}
    for table in re.findall(rf"^\| {column} \|.*\n\|[-|]+\|\n((?:\|.*\n)+)", text, re.MULTILINE):
        for row in table.splitlines():
            name, fields = row.split("|")[1:3]
            out[name.strip(" `")] = re.findall(r"`([^`]+)`", fields)
    return out


def test_the_page_of_faults_is_what_the_code_knows() -> None:
    common = {"times", "after", "seconds"}
    written = kinds_of(PAGE, "kind")
    assert list(written) == list(KINDS)
    for name, kind in KINDS.items():
        assert set(written[name]) == set(kind.fields) - common, name
    acted = kinds_of(PAGE, "what")
    assert list(acted) == list(ACTS)
    for name, (_, fields) in ACTS.items():
        assert {"symbol", *acted[name]} == set(fields), name


@pytest.mark.parametrize(
    ("sent", "word"),
    [
        ([], "object"),
        ({}, "reply_lost"),
        ({"kind": "rain"}, "reply_lost"),
        ({"kind": ["busy"]}, "reply_lost"),
        ({"kind": "busy", "wet": 1}, "it has: after, seconds, times"),
        ({"kind": "busy", "match": {"event": "x"}}, "it matches: client_id_prefix"),
        ({"kind": "busy", "match": {"reduceOnly": "true"}}, "must be bool"),
        ({"kind": "busy", "match": 1}, "object"),
        ({"kind": "busy", "times": "2"}, "int from 0 to 1000000"),
        ({"kind": "busy", "times": 1.5}, "int from 0 to 1000000"),
        ({"kind": "busy", "times": True}, "int from 0 to 1000000"),
        ({"kind": "busy", "times": -1}, "int from 0 to 1000000"),
        ({"kind": "busy", "seconds": 86_401}, "float from 0 to 86400"),
        ({"kind": "partial_fill"}, "needs 'share'"),
        ({"kind": "partial_fill", "share": 1.01}, "from 0 to 1"),
        ({"kind": "reply_late"}, "needs 'ms'"),
        ({"kind": "any_code", "code": -1, "msg": 5}, "text"),
        ({"kind": "trade_gap", "count": 2}, "needs 'symbol'"),
        ({"kind": "disconnect", "bytes": 5, "close": 1001}, "1006"),
    ],
)
def test_a_plan_that_makes_no_sense_is_refused_with_what_there_is(sent: Any, word: str) -> None:
    made = Made()
    answer = made.own("POST", "faults", sent)
    assert answer["code"] == -1130 and word in answer["msg"]
    assert made.own("GET", "faults")["planned"] == [] and not made.desk.lab.notes


def test_plans_are_listed_cleared_one_by_one_and_bounded() -> None:
    made = Made()
    first = made.own("POST", "faults", {"kind": "busy", "match": {"side": "BUY"}})
    assert (first["id"], first["times"], first["match"]) == (1, 1, {"side": "BUY"})
    made.own("POST", "faults", {"kind": "busy", "seconds": 5})
    assert [p["times"] for p in made.own("GET", "faults")["planned"]] == [1, 0]
    assert made.own("DELETE", "faults", query="id=9")["code"] == -1130
    assert made.own("DELETE", "faults", query="id=1") == {"cleared": 1}
    for _ in range(faults.PLANS_MAX - 1):
        made.own("POST", "faults", {"kind": "busy"})
    assert made.own("POST", "faults", {"kind": "busy"})["code"] == -1130
    assert made.own("DELETE", "faults") == {"cleared": faults.PLANS_MAX}
    states = [n["state"] for n in made.desk.lab.notes]
    assert states.count("planned") == states.count("cleared") == faults.PLANS_MAX + 1


@pytest.mark.parametrize(("now_ms", "met"), [(1999, True), (2000, False)])
def test_a_plan_ends_when_its_seconds_are_over(now_ms: int, met: bool) -> None:
    lab = Lab()
    assert not isinstance(faults.planned(lab, {"kind": "busy", "seconds": 1}, 1000), Refusal)
    assert (faults.strike(lab, ("busy",), {}, now_ms) is not None) == met
    assert lab.notes[-1]["state"] == ("happened" if met else "over")


def test_strikes_of_one_plan_are_noted_a_hundred_times_and_counted_all() -> None:
    lab = Lab()
    plan = faults.planned(lab, {"kind": "user_mute"}, 0)
    assert not isinstance(plan, Refusal)
    for _ in range(250):
        assert faults.strike(lab, ("user_mute",), {"event": "X"}, 1) is plan
    assert (plan.happened, len(lab.happened)) == (250, faults.NOTED_MAX)


def test_shuffled_windows_are_the_same_for_the_same_seed() -> None:
    def played(seed: int) -> list[int]:
        stream = UserStream(Lab(seed))
        faults.planned(stream.lab, {"kind": "user_reordered", "window": 8, "times": 3}, 0)
        out = []
        for k in range(30):
            out += [p["T"] for p in stream.passed({"e": "X", "T": k}, 0)]
        return out

    assert played(5) == played(5) != played(6)
    assert sorted(played(5)) == list(range(30)) != played(5)
    assert played(5)[24:] == [24, 25, 26, 27, 28, 29]


def test_a_foreign_client_trades_on_the_same_account() -> None:
    made = Made()
    bought = made.act("order", side="BUY", quantity="1.000", client="ios")
    assert re.fullmatch(r"ios_[A-Za-z0-9]{20}", bought["clientOrderId"])
    assert bought["status"] == "FILLED" and made.held() == 1
    assert [e["e"] for e in made.told()] == [
        "ORDER_TRADE_UPDATE", "TRADE_LITE", "ACCOUNT_UPDATE", "ORDER_TRADE_UPDATE",
    ]  # fmt: skip
    assert made.act("add", quantity="0.500")["side"] == "BUY" and made.held() == D("1.5")
    part = made.act("close", quantity=0.25)
    assert part["clientOrderId"].startswith("web_") and part["reduceOnly"]
    assert made.held() == D("1.25")
    assert made.act("close")["executedQty"] == "1.250" and made.held() == 0
    assert made.act("close")["code"] == made.act("add", quantity=1)["code"] == -1130
    resting = made.act(
        "order", side="BUY", quantity="1", price=f"{made.book().bid * D('0.97'):.2f}"
    )
    assert resting["status"] == "NEW" and resting["type"] == "LIMIT"
    assert made.act("cancel", orderId=resting["orderId"] + 1)["code"] == -1130
    assert [o["status"] for o in made.act("cancel")] == ["CANCELED"]
    assert made.act("order", side="BUY", quantity="1", price="0.001")["code"] == -1111
    result = audit([{**e, "wall_ms": e["ms"]} for e in made.world.ledger], 2)
    assert result.violations == () and result.balance == made.world.account.wallet


def test_a_stop_is_moved_by_another_one_and_cancelled() -> None:
    made = Made()
    made.act("order", side="BUY", quantity="1")
    book = made.book()
    params = {"symbol": "ETHUSDT", "side": "SELL", "type": "STOP_MARKET", "algoType": "CONDITIONAL",
              "closePosition": "true", "triggerPrice": f"{book.bid * D('0.95'):.2f}",
              "clientAlgoId": "mine"}  # fmt: skip
    handler = ROUTES["POST", "/fapi/v1/algoOrder"].handler
    old = handler(rest.Call(made.world, made.desk, params, made.now))
    made.told()
    moved = made.act("move_stop", trigger=f"{book.bid * D('0.98'):.2f}")
    assert moved["closePosition"] and moved["clientAlgoId"].startswith("web_")
    assert D(moved["triggerPrice"]) > D(old["triggerPrice"])
    assert [(e["o"]["caid"], e["o"]["X"]) for e in made.told()] == [
        ("mine", "CANCELED"), (moved["clientAlgoId"], "NEW"),
    ]  # fmt: skip
    assert made.act("move_stop", trigger=1, algoId=1)["code"] == -1130
    assert made.act("cancel", algoId=moved["algoId"])["algoStatus"] == "CANCELED"
    assert made.act("move_stop", trigger="1")["code"] == -1130 and not made.world.account.algos


def test_a_liquidation_and_a_deleveraging_have_the_exchange_s_ids_and_executions() -> None:
    made = Made()
    made.act("order", side="SELL", quantity="2.000")
    made.act("order", side="BUY", quantity="1", price=f"{made.book().bid * D('0.97'):.2f}")
    made.told()
    row = made.act("adl", quantity="0.500", price="2600.00")
    assert row["clientOrderId"] == "adl_autoclose" and row["avgPrice"] == "2600.00000"
    assert made.held() == D("-1.5")
    told = [e for e in made.told() if e["e"] == "ORDER_TRADE_UPDATE"]
    assert [(e["o"]["x"], e["o"]["X"], e["o"]["o"]) for e in told] == [
        ("NEW", "NEW", "LIQUIDATION"), ("CALCULATED", "FILLED", "LIQUIDATION"),
    ]  # fmt: skip
    assert made.world.liquidated == 0  # not published as a liquidation
    row = made.act("liquidate")
    assert row["clientOrderId"] == f"autoclose-{made.now.market_ms}" and made.held() == 0
    told = [e["o"] for e in made.told() if e["e"] == "ORDER_TRADE_UPDATE"]
    assert [(o["x"], o["er"]) for o in told] == [
        ("EXPIRED", "5"), ("NEW", "0"), ("CALCULATED", "0"),
    ]  # fmt: skip
    assert made.world.liquidated == 1 and made.act("adl")["code"] == -1130
    result = audit([{**e, "wall_ms": e["ms"]} for e in made.world.ledger], 2)
    assert result.violations == () and result.balance == made.world.account.wallet


def test_delisting_expires_orders_and_settles_the_position_at_the_mark() -> None:
    made = Made()
    made.act("order", side="BUY", quantity="1.000")
    made.act("order", side="BUY", quantity="1", price=f"{made.book().bid * D('0.97'):.2f}")
    made.told()
    mark = made.book().mark
    assert made.act("delist", status="GONE")["code"] == -1130
    assert made.act("delist", status="CLOSE") == {"symbol": "ETHUSDT", "status": "CLOSE"}
    told = [e["o"] for e in made.told() if e["e"] == "ORDER_TRADE_UPDATE"]
    assert [(o["x"], o["er"]) for o in told] == [("EXPIRED", "7"), ("NEW", "0"), ("TRADE", "0")]
    assert D(told[-1]["L"]) == mark and made.held() == 0
    assert told[-1]["c"] == f"settlement_autoclose-{made.now.market_ms}"
    assert made.act("order", side="BUY", quantity="1")["code"] == -1130
    params = {"symbol": "ETHUSDT", "side": "BUY", "type": "MARKET", "quantity": "1"}
    handler = ROUTES["POST", "/fapi/v1/order"].handler
    assert handler(rest.Call(made.world, made.desk, params, made.now)).code == -4141


@pytest.mark.parametrize(("rate", "paid"), [("0.001", -1), ("-0.001", 1), ("0", 0)])
def test_funding_by_act_is_paid_at_the_mark_and_the_regular_time_stays(
    rate: str, paid: int
) -> None:
    made = Made()
    made.act("order", side="BUY", quantity="1")
    before, due_ms = made.world.account.wallet, made.world.next_funding_ms
    assert made.act("funding", rate=rate) == {"symbol": "ETHUSDT", "rate": rate}
    moved = made.world.account.wallet - before
    assert moved == (made.book().mark * D("0.001") * paid).quantize(D("1e-8"))
    assert made.world.next_funding_ms == due_ms
    told = audit(list(made.world.ledger), 9)
    assert told.funding == moved and told.violations == ()


@pytest.mark.parametrize("rate", ["0.0301", "-0.0301", "x", "", "--1", 1.5])
def test_a_funding_rate_beyond_any_cap_is_refused(rate: Any) -> None:
    made = Made()
    assert made.act("funding", rate=rate)["code"] == -1130
    assert made.act("funding", rate="0.03") and made.act("funding", rate="-0.03")


def test_a_delisted_symbol_trades_no_more_resumed_or_not(tmp_path: Path) -> None:
    made = Made()
    store, world = Store(tmp_path), made.world
    store.create(world)

    def run(one: Exchange, ms: float) -> None:
        for _ in exchange.advance(one, one.made_until_ms + ms, 0):
            pass

    made.act("delist", "ETHUSDT")
    store.write_ledger(world, 0)
    store.save_account(world)  # killed between the delisting and the next step
    fresh = Store(tmp_path).resume()
    before = world.record.made.copy()
    for one in (world, fresh):
        run(one, 90_000)
    store.save_account(world)
    again = Store(tmp_path).resume()
    first, other = world.index["ETHUSDT"], world.index["BTCUSDT"]
    for one in (world, fresh, again):
        assert one.record.made[first, :3].tolist() == before[first, :3].tolist()
        assert one.record.made[other, 0] > before[other, 0] > 0
        assert one.record.made.tolist() == world.record.made.tolist()
        assert one.record.forming.tolist() == world.record.forming.tolist()


@pytest.mark.parametrize(
    ("sent", "code", "word"),
    [
        (1, -1130, "object"),
        ({"what": "rain"}, -1130, "order, close"),
        ({"what": "close"}, -1121, "symbol"),
        ({"what": "close", "symbol": "NOPE"}, -1121, "symbol"),
        ({"what": "close", "symbol": "ETHUSDT", "side": "BUY"}, -1130, "it has: symbol"),
        ({"what": "close", "symbol": "ETHUSDT", "client": "me"}, -1130, "web, ios"),
        ({"what": "close", "symbol": "ETHUSDT", "quantity": [1]}, -1130, "number"),
        ({"what": "add", "symbol": "ETHUSDT", "quantity": "x"}, -1130, "number"),
    ],
)
def test_an_act_that_makes_no_sense_is_refused(sent: Any, code: int, word: str) -> None:
    answer = Made().own("POST", "act", sent)
    assert answer["code"] == code and word in answer["msg"]
    assert acts.act(Made().world, Lab(), None, Moment(0, 0)).code == -1130


def test_a_socket_is_pinged_every_three_minutes_and_ends_without_pongs_or_after_a_day() -> None:
    hub, pipe = Hub(listing(1), True), Pipe()
    address = parse_url("/market/ws", "")
    assert address is not None
    made = hub.add(address, "/market/ws", pipe, now_ms=5000)
    for now_ms, pings in ((PING_MS + 4999, 0), (PING_MS + 5000, 1), (PING_MS + 9999, 1)):
        hub.now_ms = now_ms
        hub.ping(b"1795000000000")
        assert pipe.data == b"\x89\x0d1795000000000" * pings
    hub.now_ms = 5000 + PONG_MS_MAX
    assert hub.overdue(LIFETIME_MS) == []
    hub.now_ms += 1
    assert hub.overdue(LIFETIME_MS) == [(made, 1008, "Pong timeout")]
    made.ponged_ms = hub.now_ms
    assert hub.overdue(LIFETIME_MS) == []
    hub.now_ms = made.ponged_ms = 5000 + LIFETIME_MS - 1
    assert hub.overdue(LIFETIME_MS) == []
    hub.now_ms += 1
    assert [(c, code) for c, code, _ in hub.overdue(LIFETIME_MS)] == [(made, 1001)]


@pytest.mark.parametrize(("length", "left"), [(9, 10), (10, 10), (11, 10)])
def test_a_planned_cut_is_at_its_byte(length: int, left: int) -> None:
    hub, pipe = Hub(listing(1), True), Pipe()
    address = parse_url("/market/ws", "")
    assert address is not None
    made = hub.add(address, "/market/ws", pipe)
    plan = faults.planned(hub.faults.lab, {"kind": "disconnect", "bytes": left}, 0)
    assert not isinstance(plan, Refusal) and hub.cut(plan) == []
    assert hub.send(made, b"x" * length) == (length <= left)
    assert len(pipe.data) == min(length, left) and pipe.closed == (length > left)


def test_in_hedge_mode_an_act_means_the_side_that_is_held_or_named() -> None:
    made = Made()
    made.world.account.dual = True
    assert made.act("order", side="BUY", quantity="1")["code"] == -4061
    for side, qty in (("BUY", "1.000"), ("SELL", "2.000")):
        named = "LONG" if side == "BUY" else "SHORT"
        made.act("order", side=side, quantity=qty, positionSide=named)
        if side == "BUY":
            assert made.act("add", quantity="0.500")["positionSide"] == "LONG"
    positions = made.world.account.positions
    long, short = positions["ETHUSDT:LONG"], positions["ETHUSDT:SHORT"]
    assert (long.qty, short.qty) == (D("1.5"), D(-2))
    for what, more in (("close", {}), ("add", {"quantity": 1}), ("liquidate", {}), ("adl", {})):
        assert "positionSide" in made.act(what, **more)["msg"]
    closed = made.act("close", positionSide="SHORT", quantity="0.500")
    assert (closed["side"], closed["positionSide"], short.qty) == ("BUY", "SHORT", D("-1.5"))
    assert made.act("adl", positionSide="LONG", quantity="0.500")["side"] == "SELL"
    assert made.act("liquidate", positionSide="SHORT")["positionSide"] == "SHORT"
    assert (long.qty, short.qty) == (D(1), 0)
    assert made.act("delist")["status"] == "SETTLING" and long.qty == 0
    result = audit([{**e, "wall_ms": e["ms"]} for e in made.world.ledger], 2)
    assert result.violations == () and result.balance == made.world.account.wallet


def test_a_stop_keeps_its_side_when_it_is_moved_and_stays_when_the_move_is_refused() -> None:
    made = Made()
    made.world.account.dual = True
    made.act("order", side="SELL", quantity="1", positionSide="SHORT")
    ask = made.book().ask
    params = {"symbol": "ETHUSDT", "side": "BUY", "type": "STOP_MARKET", "algoType": "CONDITIONAL",
              "positionSide": "SHORT", "quantity": "1", "triggerPrice": f"{ask * D('1.05'):.2f}",
              "selfTradePreventionMode": "EXPIRE_BOTH", "clientAlgoId": "mine"}  # fmt: skip
    handler = ROUTES["POST", "/fapi/v1/algoOrder"].handler
    handler(rest.Call(made.world, made.desk, params, made.now))
    refused = made.act("move_stop", trigger=f"{ask * D('0.98'):.2f}")
    assert refused["code"] == -2021
    assert [a.client_id for a in made.world.account.algos.values()] == ["mine"]
    moved = made.act("move_stop", trigger=f"{ask * D('1.02'):.2f}")
    assert (moved["positionSide"], moved["selfTradePreventionMode"]) == ("SHORT", "EXPIRE_BOTH")
    assert [a.id for a in made.world.account.algos.values()] == [moved["algoId"]]


def test_a_liquidation_beyond_the_margin_is_paid_by_the_insurance_fund() -> None:
    made = Made()
    made.act("order", side="BUY", quantity="20.000")
    made.act("liquidate", price="1.00")
    assert made.world.account.wallet == 0
    assert made.world.ledger[-1]["type"] == "insurance"
    result = audit([{**e, "wall_ms": e["ms"]} for e in made.world.ledger], 2)
    assert result.violations == () and result.balance == 0


def test_a_trade_lite_whose_update_is_lost_still_goes_out() -> None:
    stream = UserStream(Lab())
    faults.planned(stream.lab, {"kind": "trade_lite_after"}, 0)
    dropped = {"kind": "user_dropped", "match": {"event": "ORDER_TRADE_UPDATE"}}
    faults.planned(stream.lab, dropped, 0)
    lite = {"e": "TRADE_LITE", "t": 7, "s": "ETHUSDT"}
    assert stream.passed(lite, 0) == []
    assert stream.passed({"e": "ORDER_TRADE_UPDATE", "o": {"t": 7}}, 0) == [lite]
    assert stream.idle()
