"""What a new holder finds in Redis, and what it must not do again because of it."""

from __future__ import annotations

import asyncio

import pytest
from redis_writes import commit
from risk_desk import KEYS, Desk, replace, sends

import streams
from risk import journal, orders
from risk.events import Done, Op
from risk.orders import Order, query_request
from risk.rebuild import rebuild
from risk.state import State


def written(desk: Desk, ended: str, revisions: int) -> list[Order]:
    """A round trip as a killed holder left it: its entry open, its stop come and gone so often."""
    desk.signal()
    legs = [order for order in desk.state.orders.values() if order.cause == "s1"]
    entry = next(order for order in legs if order.leg == orders.ENTRY_LEG)
    stop = next(order for order in legs if order.leg == orders.STOP_LEG)
    stops = [
        replace(
            stop, id=desk.state.make_id("s1", "s", number), revision=number, state=ended, epoch=0
        )
        for number in range(revisions)
    ]
    return [entry, *stops]


@pytest.mark.parametrize("ended", ["expired", "canceled", "filled"])
@pytest.mark.parametrize("revisions", [1, 2, 3])
def test_an_id_of_a_leg_that_came_and_went_is_not_used_again(
    redis_url: str, ended: str, revisions: int
) -> None:
    before = Desk()
    ops: list[Op] = []
    for order in written(before, ended, revisions):
        ops += journal.order_ops(before.state, order, before.now)

    async def work() -> State:
        r = streams.connect_async(redis_url)
        await r.set(KEYS.epoch, "1")
        assert await commit(r, 1, ops) == "ok"
        state = State(KEYS, before.state.prefix, "main", epoch=2)
        await rebuild(r, state)
        await r.aclose()
        return state

    after = Desk()
    kept = after.state.instruments
    after.state = asyncio.run(work())
    after.state.instruments = kept
    entry = next(o for o in after.state.orders.values() if o.leg == orders.ENTRY_LEG)
    told = {"orderId": 9, "status": "FILLED", "executedQty": "1", "updateTime": 1}
    placed = sends(after.reply(query_request(entry), Done(told)), "stop")
    assert [request.about for request in placed] == [after.state.make_id("s1", "s", revisions)]
