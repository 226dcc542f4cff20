"""State from Redis, truth from the exchange: what a new holder begins with.

An I/O shell of risk/main.py. The hashes say what was decided; the exchange, asked right after,
says what became of it.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import redis.asyncio

from risk import breakers, income, orders, portfolio
from risk.breakers import HALTED, QUARANTINED
from risk.events import Done
from risk.exchange import Exchange
from risk.orders import Order
from risk.reconcile import Snapshot, parse_snapshot
from risk.state import SEEN_FILLS_MAX, SEEN_MONEY_MAX, State, put_order, remember

READ_MAX = 5_000  # hashes in one pipeline
TRUTH = ("v2/account", "v3/positionRisk", "v1/openOrders", "v1/openAlgoOrders")
log = logging.getLogger("risk")


async def _hashes(r: redis.asyncio.Redis, names: list[str]) -> list[dict[str, str]]:
    made: list[dict[str, str]] = []
    for start in range(0, len(names), READ_MAX):
        async with r.pipeline(transaction=False) as pipe:
            for name in names[start : start + READ_MAX]:
                pipe.hgetall(name)
            made += await pipe.execute()
    return made


async def rebuild(r: redis.asyncio.Redis, state: State) -> None:
    """Fill an empty state with positions, their orders, open orders, sums and counted fills."""
    keys = state.keys
    answers: Any = await r.smembers(keys.positions)
    symbols = sorted(answers)
    for fields in await _hashes(r, [keys.position(symbol) for symbol in symbols]):
        if fields.get("symbol"):
            position = portfolio.from_fields(fields)
            state.positions[position.symbol] = position
    answers = await r.smembers(keys.orders_open)
    wanted = set(answers)
    for position in state.positions.values():
        legs = (position.entry_order, position.stop_order)
        wanted |= {*legs, position.target_order, position.exit_order}
    for fields in await _hashes(r, [keys.order(name) for name in sorted(wanted - {""})]):
        if fields.get("id"):
            adopt_order(state, orders.from_fields(fields))
    sums: Any = await r.hgetall(keys.portfolio)
    state.money = portfolio.money_from_fields(sums)
    state.rotated_ms = float(sums.get("rotated_ms") or state.rotated_ms)
    for key in await r.zrange(keys.fill_ids, -SEEN_FILLS_MAX, -1):
        remember(state.seen, str(key), None, SEEN_FILLS_MAX)
    for event_id in await r.zrange(keys.ledger_ids, -SEEN_FILLS_MAX, -1):
        if str(event_id).startswith(income.PREFIXES):
            remember(state.seen_money, str(event_id), None, SEEN_MONEY_MAX)
    state.income_ms = income.cursors(sums)
    told: Any = await r.hgetall(keys.breakers)
    state.halted = HALTED in told
    state.tally = breakers.from_fields(told)
    state.tally_written = breakers.to_fields(state.tally)
    state.quarantine = breakers.named(told, QUARANTINED)


def adopt_order(state: State, order: Order) -> None:
    put_order(state, order)
    if order.exchange_id and not order.algo:
        state.children[(order.symbol, order.exchange_id)] = order.id


async def take_snapshot(
    exchange: Exchange, snapshot_id: str, started_ms: float, market_ms: float
) -> Snapshot | None:
    """Four questions at once; None unless all four were answered."""
    answers = await asyncio.gather(*(exchange.fetch("GET", f"/fapi/{path}") for path in TRUTH))
    bodies = [answer.body for answer in answers if isinstance(answer, Done)]
    if len(bodies) < len(TRUTH):
        log.warning("snapshot not complete answers=%s", [str(answer)[:80] for answer in answers])
        return None
    return parse_snapshot(snapshot_id, started_ms, int(market_ms), *bodies)
