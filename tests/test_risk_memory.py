"""A Redis that lost its memory: noticed, waited out, and put back from the exchange."""

from __future__ import annotations

import asyncio
from decimal import Decimal
from typing import Any

import pytest
from risk_desk import KEYS, MARKET_MS, Desk, cancels, decisions, ops, queries, replace, sends
from test_risk_reconcile import snapshot
from test_risk_session import looking, make_session, writing

import streams
from risk import history, income, rebuild
from risk.breakers import HALTED
from risk.events import (
    Commit,
    CommitFailed,
    Done,
    HistoryRead,
    Request,
    SnapshotTaken,
    Trouble,
    Unknown,
)
from risk.history import History
from risk.main import Risk
from risk.recovery import START
from risk.session import Session
from risk.state import State

D = Decimal


# --- what the exchange tells -------------------------------------------------------------------


def trade(number: int, order_id: int, side: str, ms: int, **more: str) -> dict[str, Any]:
    row = {"symbol": "BTCUSDT", "id": number, "orderId": order_id, "side": side, "price": "1000"}
    row |= {"qty": "0.5", "commission": "0.2", "commissionAsset": "USDT", "realizedPnl": "0"}
    return row | {"time": ms, "maker": False} | more


def placed(order_id: int, client_id: str, side: str, status: str = "FILLED") -> dict[str, Any]:
    row = {"symbol": "BTCUSDT", "orderId": order_id, "clientOrderId": client_id, "side": side}
    row |= {"status": status, "origQty": "0.5", "executedQty": "0.5", "price": "1000"}
    return row | {"time": MARKET_MS, "updateTime": MARKET_MS}


def leg(algo_id: int, client_id: str, status: str, child: str = "") -> dict[str, Any]:
    row = {"symbol": "BTCUSDT", "algoId": algo_id, "clientAlgoId": client_id, "side": "SELL"}
    row |= {"algoStatus": status, "triggerPrice": "990", "actualOrderId": child, "quantity": "0"}
    return row | {"createTime": MARKET_MS, "updateTime": MARKET_MS}


def money(kind: str, amount: str, ms: int, number: int, symbol: str = "BTCUSDT") -> dict[str, Any]:
    row = {"symbol": symbol, "incomeType": kind, "income": amount, "asset": "USDT", "time": ms}
    return row | {"tranId": number, "tradeId": ""}


def told(
    desk: Desk,
    trades: list[dict[str, Any]],
    orders: list[dict[str, Any]] | None = None,
    algos: list[dict[str, Any]] | None = None,
    income: list[dict[str, Any]] | None = None,
    known: Any = None,
) -> list[Any]:
    made = History(MARKET_MS - 1, income or [], trades, orders or [], algos or [], known or {})
    return desk.do(HistoryRead(made))


def ids(desk: Desk, cause: str = "gone") -> tuple[str, str, str]:
    """Client ids of entry, stop and exit of a cause that nobody remembers."""
    return tuple(desk.state.make_id(cause, name) for name in "esx")  # type: ignore[return-value]


def test_a_round_trip_that_redis_forgot_is_booked_once_and_nothing_is_sent() -> None:
    desk = Desk()
    entry, stop, _ = ids(desk)
    rows = [
        trade(1, 11, "BUY", MARKET_MS),
        trade(2, 12, "SELL", MARKET_MS + 5, realizedPnl="-5", price="990"),
    ]
    args = (rows, [placed(11, entry, "BUY")], [leg(7, stop, "FINISHED", "12")])
    done = told(desk, *args)
    assert [op[4] for op in ops(done, "xadd_once", KEYS.fills)] == ["BTCUSDT:1", "BTCUSDT:2"]
    booked = [(op[4], op[2]["amount"]) for op in ops(done, "xadd_once", KEYS.ledger)]
    assert booked == [
        ("fee:BTCUSDT:1", "-0.2"),
        ("fee:BTCUSDT:2", "-0.2"),
        ("realised:BTCUSDT:2", "-5"),
    ]
    assert not [effect for effect in done if isinstance(effect, Request)]
    assert not desk.state.positions and desk.state.money.trades_closed == 1
    assert desk.state.money.realised == D("-5") and desk.state.money.fees == D("0.4")
    states = {name: order.state for name, order in desk.state.orders.items()}
    assert states == {entry: "filled", stop: "filled"}
    legs = [op[2]["leg"] for op in ops(done, "xadd_once", KEYS.fills)]
    assert legs == ["entry", "stop"]
    again = told(desk, *args)
    assert not ops(again)


def test_a_position_that_redis_forgot_is_ours_again_and_its_stop_is_put_back() -> None:
    desk = Desk()
    entry, stop, _ = ids(desk)
    rows = [trade(1, 11, "BUY", MARKET_MS)]
    told(desk, rows, [placed(11, entry, "BUY")], [leg(7, stop, "CANCELED")])
    position = desk.state.positions["BTCUSDT"]
    assert (position.qty, position.entry, position.stop) == (D("0.5"), D(1000), D(990))
    there = snapshot({"BTCUSDT": (D("0.5"), D(1000))}, started_ms=desk.boot_ms)
    done = desk.do(SnapshotTaken(there, START))
    placing = sends(done, "stop")
    assert [s.params["triggerPrice"] for s in placing] == ["990"]
    assert placing[0].params["clientAlgoId"] != stop


def test_a_position_whose_stop_nobody_remembers_is_left_at_market() -> None:
    desk = Desk()
    entry, _, _ = ids(desk)
    told(desk, [trade(1, 11, "BUY", MARKET_MS)], [placed(11, entry, "BUY")])
    there = snapshot({"BTCUSDT": (D("0.5"), D(1000))}, started_ms=desk.boot_ms)
    done = desk.do(SnapshotTaken(there, START))
    assert not sends(done, "stop")
    (out,) = sends(done, "exit")
    assert (out.params["side"], out.params["quantity"]) == ("SELL", "0.5")
    assert desk.state.positions["BTCUSDT"].exit_reason == "stop unknown"


def test_trades_of_others_and_from_before_a_position_are_not_ours() -> None:
    desk = Desk()
    rows = [trade(1, 11, "BUY", MARKET_MS), trade(2, 12, "SELL", MARKET_MS)]
    done = told(desk, rows, [placed(11, "web_1", "BUY"), placed(12, "web_2", "SELL")])
    assert not ops(done)
    desk.open()
    before = desk.state.positions["BTCUSDT"]
    early = trade(101, 13, "SELL", before.opened_ms - 1)
    assert not ops(told(desk, [early], [placed(13, "web_3", "SELL")]))
    assert desk.state.positions["BTCUSDT"] == before
    late = trade(102, 14, "SELL", before.opened_ms + 1, qty="0.001")
    assert ops(told(desk, [late], [placed(14, "web_4", "SELL")]), "xadd_once", KEYS.fills)
    assert desk.state.positions["BTCUSDT"].qty == before.qty - D("0.001")


def test_an_end_that_was_forgotten_is_learned_and_a_known_end_stays() -> None:
    desk = Desk()
    done = desk.signal()
    entry = sends(done, "entry")[0].params["newClientOrderId"]
    told(desk, [], [placed(11, entry, "BUY", "EXPIRED") | {"executedQty": "0"}])
    assert desk.state.orders[entry].state == "expired"
    assert not ops(told(desk, [], [placed(11, entry, "BUY", "FILLED")]))


def test_what_redis_still_knows_is_not_written_over() -> None:
    desk = Desk()
    desk.open()
    (position,) = desk.state.positions.values()
    order = replace(desk.state.orders[position.entry_order], state="filled", exchange_id="11")
    fresh = Desk()
    row = placed(11, order.id, "BUY")
    done = told(fresh, [], [row], known={order.id: order})
    assert not ops(done, "hset", KEYS.order(order.id))


def test_a_forgotten_leg_belongs_to_the_round_trip_whose_name_it_bears() -> None:
    desk = Desk()
    desk.open()
    (position,) = desk.state.positions.values()
    leaving = desk.state.make_id(position.signal, "x")
    told(desk, [], [placed(15, leaving, "SELL", "EXPIRED") | {"executedQty": "0"}])
    assert desk.state.orders[leaving].cause == position.signal
    out = sends(desk.signal(id="against", side="sell", stop="1010", target="980"), "exit")[0]
    assert out.params["newClientOrderId"] == desk.state.make_id(position.signal, "x", 1)


def test_orders_of_long_ago_are_not_recorded_anew() -> None:
    desk = Desk()
    entry, stop, _ = ids(desk)
    old = {"updateTime": MARKET_MS - 2}
    done = told(desk, [], [placed(1, entry, "BUY") | old], [leg(7, stop, "CANCELED") | old])
    assert not ops(done) and not desk.state.orders
    done = told(desk, [], [], [leg(7, stop, "NEW") | old])
    assert desk.state.orders[stop].state == "acked"


def test_in_an_empty_redis_money_is_read_from_our_first_trade_on() -> None:
    desk = Desk()
    entry, _, _ = ids(desk)
    trades, rows = [trade(1, 11, "BUY", MARKET_MS)], [placed(11, entry, "BUY")]
    told(desk, trades, rows)
    done = desk.do(SnapshotTaken(snapshot(), START))
    asked = {q.params["incomeType"]: q.params["startTime"] for q in queries(done, "income")}
    assert asked == dict.fromkeys(income.KINDS, str(MARKET_MS))
    known = Desk()
    known.state.books_ms = MARKET_MS
    told(known, trades, rows)
    assert known.state.income_ms == {}


def test_only_symbols_where_something_may_be_missing_are_asked() -> None:
    desk = Desk()
    desk.state.seen["ETHUSDT:5"] = None
    rows = [
        money("COMMISSION", "-1", 1, 1, "ETHUSDT") | {"tradeId": "5"},
        money("COMMISSION", "-1", 1, 2, "SOLUSDT") | {"tradeId": "6"},
    ]
    assert history.symbols_asked(desk.state, rows) == ["SOLUSDT"]
    desk.open("XRPUSDT")
    assert history.symbols_asked(desk.state, rows) == ["SOLUSDT", "XRPUSDT"]


@pytest.mark.parametrize(
    ("books_ms", "since_ms"),
    [
        (0, MARKET_MS - history.HISTORY_MS),
        (MARKET_MS, MARKET_MS - history.MARGIN_MS),
        (MARKET_MS - history.HISTORY_MS, MARKET_MS - history.HISTORY_MS),
    ],
)
def test_the_question_begins_before_the_last_known_event(books_ms: int, since_ms: int) -> None:
    desk = Desk()
    desk.state.books_ms = books_ms
    assert history.since_ms(desk.state, MARKET_MS) == since_ms


class Pages:
    """An exchange with a long past, told in pages; `mute` names what it does not answer."""

    def __init__(self, mute: str = "") -> None:
        self.mute, self.asked = mute, 0
        self.rows = {
            "income": [money("COMMISSION", "-1", k, k) | {"tradeId": str(k)} for k in range(2_500)],
            "userTrades": [trade(k, k, "BUY", k) for k in range(1_500)],
        }

    async def fetch(self, method: str, path: str, params: dict[str, str]) -> Any:
        name, self.asked = path.rsplit("/", 1)[1], self.asked + 1
        if name == self.mute:
            return Unknown("time-out")
        rows = self.rows.get(name, [])
        if "fromId" in params:
            rows = [row for row in rows if row["id"] >= int(params["fromId"])]
        if "startTime" in params:
            rows = [row for row in rows if row["time"] >= int(params["startTime"])]
        return Done(rows[: int(params["limit"])])


def test_a_long_past_is_read_to_its_end_and_all_of_it_or_nothing(redis_url: str) -> None:
    async def read(exchange: Any) -> History | None:
        r = streams.connect_async(redis_url)
        state = State(KEYS, "abc", "main", 1)
        try:
            return await rebuild.read_history(exchange, r, state, 10.0)
        finally:
            await r.aclose()

    made = asyncio.run(read(Pages()))
    assert made is not None and (len(made.income), len(made.trades)) == (2_500, 1_500)
    assert len({row["id"] for row in made.trades}) == 1_500
    for name in ("income", "userTrades", "allOrders", "allAlgoOrders"):
        assert asyncio.run(read(Pages(name))) is None


def test_the_books_that_redis_has_are_known_at_a_start(redis_url: str) -> None:
    async def work() -> State:
        r = streams.connect_async(redis_url)
        await r.zadd(KEYS.fill_ids, {"BTCUSDT:1": 5})
        names = {"fee:BTCUSDT:1": 5, "funding:BTCUSDT:7": 7, "transfer:70:6": 6}
        await r.zadd(KEYS.ledger_ids, names)
        state = State(KEYS, "abc", "main", 1)
        try:
            await rebuild.rebuild(r, state)
        finally:
            await r.aclose()
        return state

    state = asyncio.run(work())
    assert state.books_ms == 7 and "BTCUSDT:1" in state.seen
    assert set(state.seen_money) == {"transfer:70:6", "funding:BTCUSDT:7"}


def test_ids_that_redis_lost_alone_are_put_back_from_what_stands_in_the_books(
    redis_url: str,
) -> None:
    """Each of the two sets: gone, or begun anew since; more rows than one page of them."""
    rows = 6_001

    async def work() -> tuple[State, list[list[str]]]:
        r = streams.connect_async(redis_url)
        async with r.pipeline(transaction=False) as pipe:
            for number in range(rows):
                row = {"symbol": "BTCUSDT", "trade_id": str(number), "ms": str(100 + number)}
                pipe.xadd(KEYS.fills, row)
                pipe.xadd(KEYS.ledger, {"id": f"fee:BTCUSDT:{number}", "ms": str(100 + number)})
            pipe.zadd(KEYS.ledger_ids, {f"fee:BTCUSDT:{rows - 1}": 100 + rows - 1})
            await pipe.execute()
        state = State(KEYS, "abc", "main", 1)
        try:
            await rebuild.rebuild(r, state)
            ids = (KEYS.fill_ids, KEYS.ledger_ids)
            return state, [[str(x) for x in await r.zrange(key, 0, -1)] for key in ids]
        finally:
            await r.aclose()

    state, (fills, ledger) = asyncio.run(work())
    assert fills == [f"BTCUSDT:{number}" for number in range(rows)]
    assert ledger == [f"fee:{name}" for name in fills]
    assert set(state.seen) == set(fills) and state.books_ms == 100 + rows - 1


# --- a holder that cannot be sure of its lease -------------------------------------------------


@pytest.mark.parametrize("left_ms", [-1.0, 0.0, 1.0])
def test_without_a_sure_lease_what_we_do_not_know_is_a_successors(left_ms: float) -> None:
    from risk.reconcile import Resting
    from risk.step import step

    desk = Desk()
    stranger = desk.state.make_id("another", "s")
    rest = Resting(stranger, "ETHUSDT", "sell", "STOP_MARKET", D(90), True, "7")
    target = Resting(stranger[:-2] + "t0", "ETHUSDT", "sell", "TAKE_PROFIT_MARKET", D(99), True)
    there = snapshot({"ETHUSDT": (D(1), D(100))}, algos=(rest, target), started_ms=desk.boot_ms)
    now = replace(desk.now, valid_until_ms=desk.boot_ms + left_ms)
    done = step(desk.state, SnapshotTaken(there, "trouble"), now)
    sure = left_ms > 0
    assert ("ETHUSDT" in desk.state.positions) == bool(cancels(done)) == sure
    assert (("snap", "") in desk.state.deadlines) != sure  # looked at anew


def test_without_a_sure_lease_a_position_of_ours_gets_its_stop_all_the_same() -> None:
    from risk.step import step

    desk = Desk()
    _, stop, _ = desk.open()
    desk.algo(stop, "CANCELED")
    there = snapshot(
        {"BTCUSDT": (desk.state.positions["BTCUSDT"].qty, D(1000))}, started_ms=desk.boot_ms + 1
    )
    now = replace(desk.now, valid_until_ms=0.0)
    done = step(desk.state, SnapshotTaken(there, "trouble"), now)
    held_back = [effect for e in done if isinstance(e, Commit) and e.hurry for effect in e.then]
    assert sends(held_back, "stop")


def test_no_time_exit_of_a_position_that_the_exchange_was_not_asked_about() -> None:
    desk = Desk()
    desk.open()
    desk.state.last_reconcile_ms = 0
    assert not sends(desk.wait(desk.state.limits.hold_max_ms + 1.0), "exit")
    desk.state.last_reconcile_ms = MARKET_MS
    assert sends(desk.wait(0.0), "exit")


# --- the lease ---------------------------------------------------------------------------------


class Server:
    """A Redis that tells who it is, and the epoch that it knows."""

    def __init__(self) -> None:
        self.run_id, self.epoch, self.halted = "a", 7, False

    async def info(self, section: str) -> dict[str, Any]:
        return {"run_id": self.run_id, "uptime_in_seconds": 1_000}

    async def get(self, key: str) -> str | None:
        return str(self.epoch) if self.epoch else None

    async def hexists(self, key: str, field: str) -> bool:
        return self.halted


@pytest.mark.parametrize(("epoch", "waits"), [(8, False), (7, False), (6, True), (0, True)])
def test_an_epoch_that_fell_is_a_memory_that_was_lost(
    monkeypatch: pytest.MonkeyPatch, epoch: int, waits: bool
) -> None:
    server = Server()
    risk = looking(server)
    clock = [50_000.0]
    monkeypatch.setattr("risk.main.boot_ms", lambda: clock[0])

    async def work() -> None:
        await Risk.look_at_server(risk)
        server.epoch, clock[0] = epoch, 60_000.0
        await Risk.look_at_server(risk)
        assert risk.take_after_ms == (63_000.0 if waits else 50_000.0)
        clock[0] = 61_000.0
        await Risk.look_at_server(risk)  # noticed once
        assert risk.take_after_ms == (63_000.0 if waits else 50_000.0)

    asyncio.run(work())


def test_an_empty_redis_may_have_been_emptied_a_moment_ago(monkeypatch: pytest.MonkeyPatch) -> None:
    server = Server()
    server.epoch = 0
    risk = looking(server)
    monkeypatch.setattr("risk.main.boot_ms", lambda: 50_000.0)
    asyncio.run(Risk.look_at_server(risk))
    assert risk.take_after_ms == 53_000.0


def held(server: Server) -> Session:
    made = make_session(server)
    made.state.epoch = 7
    risk: Any = looking(server)
    risk.look_at_server = lambda: Risk.look_at_server(risk)
    made.risk = risk
    return made


@pytest.mark.parametrize(
    ("change", "ours", "now", "later"),
    [
        ({}, True, False, False),
        ({"epoch": 8}, False, True, True),  # a successor
        ({"epoch": 8}, True, True, True),
        ({}, False, True, True),  # ran out, and nobody came
        ({"run_id": "b"}, True, False, True),
        ({"run_id": "b"}, False, False, True),
        ({"epoch": 0}, False, False, True),  # emptied
        ({"epoch": 6, "run_id": "b"}, False, False, True),  # rolled back
    ],
)
def test_a_session_gives_way_at_once_to_another_and_after_one_lease_to_a_new_one(
    monkeypatch: pytest.MonkeyPatch, change: dict[str, Any], ours: bool, now: bool, later: bool
) -> None:
    server, at = Server(), [50_000.0]
    monkeypatch.setattr("risk.main.boot_ms", lambda: at[0])
    monkeypatch.setattr(Session, "boot_ms", lambda self: at[0])

    async def work() -> None:
        session = held(server)
        assert not await session.look_at_lease(True)
        session.lease.renewed(at[0])
        for name, value in change.items():
            setattr(server, name, value)
        at[0] += 100_000.0
        assert await session.look_at_lease(ours) == now
        if later and not now:
            assert session.state.forgotten and session.lease.valid_until_ms == 0.0
        at[0] += 2_999.0
        assert await session.look_at_lease(ours) == now
        at[0] += 1.0
        assert await session.look_at_lease(ours) == later

    asyncio.run(work())


def test_a_commit_that_redis_forgot_ends_entries_and_lets_out_what_protects(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    desk = Desk()
    desk.open()
    out = sends(desk.signal(id="against", side="sell", stop="1010", target="980"), "exit")[0]
    leave = Commit((("leave",),), then=(out,))

    async def work(session: Session) -> None:
        session.lease.renewed(session.boot_ms())
        session.queue(leave)
        await asyncio.sleep(0.02)
        (failed,) = session.inbox
        assert isinstance(failed, CommitFailed) and failed.outcome == "failed"
        assert session.state.forgotten and not session.lease.valid_until_ms
        assert session.doubted.is_set() and not session.over.is_set()

    assert writing(monkeypatch, ["forgotten"], work) == [("leave", False)]
    assert out in desk.do(CommitFailed(leave, "failed"))


def test_each_commit_has_a_number_that_a_repeat_keeps(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[tuple[list[int], int]] = []
    answers: list[Any] = [["ok"], TimeoutError(), ["ok", "ok"]]

    async def commit(*_: Any, writes: Any, confirmed: int, **more: Any) -> Any:
        told.append(([write.number for write in writes], confirmed))
        answer = answers.pop(0)
        if isinstance(answer, BaseException):
            raise answer
        return answer, None

    async def main() -> None:
        session = make_session()
        monkeypatch.setattr(streams, "commit", commit)
        monkeypatch.setattr("risk.session.RETRY_S", 0.001)
        task = asyncio.create_task(session.write())
        session.queue(Commit((("a",),)))
        await asyncio.sleep(0.01)
        for name in "bc":
            session.queue(Commit(((name,),)))
        await asyncio.sleep(0.05)
        task.cancel()

    asyncio.run(main())
    assert told == [([1], 0), ([2, 3], 1), ([2, 3], 1)]


def test_a_halt_that_redis_forgot_stands(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    server = Server()
    risk = looking(server)
    monkeypatch.setattr("risk.main.boot_ms", lambda: 50_000.0)

    async def work() -> None:
        await Risk.look_at_server(risk)
        server.halted = True
        await Risk.look_at_server(risk)
        assert not risk.halt_again  # nothing was lost
        server.epoch, server.halted = 0, False
        await Risk.look_at_server(risk)
        await Risk.look_at_server(risk)
        assert risk.halt_again
        session = make_session(server)
        session.risk.halt_again = True
        session.remember_halt()
        assert session.state.halted and not session.risk.halt_again
        ((_, written),) = session.outbox
        assert written.ops[0][:2] == ("hset", KEYS.breakers) and HALTED in written.ops[0][2]

    asyncio.run(work())


# --- the streams -------------------------------------------------------------------------------


def reading(redis_url: str, work: Any) -> None:
    async def main() -> None:
        r = streams.connect_async(redis_url)
        session = make_session(r)
        try:
            await work(session, r)
        finally:
            await r.aclose()

    asyncio.run(main())


def test_a_group_that_was_destroyed_is_made_again_told_and_answers_no_command_twice(
    redis_url: str,
) -> None:
    async def work(session: Session, r: Any) -> None:
        await session.ensure_groups()
        for name in ("one", "two"):
            await streams.publish_async(r, KEYS.commands, {"id": name, "name": "flatten"})
        await r.hset(KEYS.replies, "one", "{}")
        await r.xgroup_destroy(KEYS.commands, "main")
        task = asyncio.create_task(session.read())
        await asyncio.sleep(1.5)
        assert not task.done(), task.exception()
        task.cancel()
        commands = [e.fields["id"] for e in session.inbox if not isinstance(e, Trouble)]  # type: ignore[union-attr]
        assert commands == ["two"] and any(isinstance(e, Trouble) for e in session.inbox)
        ((_, told_of),) = session.outbox
        assert told_of.ops[0][1] == KEYS.journal
        assert (await r.xpending(KEYS.commands, "main"))["pending"] == 1

    reading(redis_url, work)


def test_an_entry_that_a_late_read_took_is_found(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("risk.session.STRAY_MS", 300)
    monkeypatch.setattr("risk.session.STRAYS_MS", 100.0)

    async def work(session: Session, r: Any) -> None:
        await session.ensure_groups()
        task = asyncio.create_task(session.read())
        await asyncio.sleep(0.1)
        entry = await r.xadd(KEYS.signals, {"id": "s"})
        await asyncio.sleep(0.1)
        session.inbox.clear()
        await r.xadd(KEYS.signals, {"id": "t"}, nomkstream=True)
        await asyncio.sleep(0.1)
        session.inbox.clear()
        await asyncio.sleep(1.2)
        task.cancel()
        assert entry in {e.entry_id for e in session.inbox}  # type: ignore[union-attr]

    reading(redis_url, work)


def test_decisions_of_signals_from_before_the_new_session_are_missed() -> None:
    desk = Desk()
    desk.do(SnapshotTaken(snapshot(started_ms=desk.boot_ms), START))
    done = desk.signal(id="again", exch_ns=str((MARKET_MS - 1) * 1_000_000))
    assert [d["outcome"] for d in decisions(done)] == ["missed"]
    assert not sends(done, "entry")
