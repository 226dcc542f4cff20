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
from risk.history import (
    History,
    ours,
    since_ms,
    symbols_asked,
)
from risk.orders import Order
from risk.portfolio import fill_key
from risk.reconcile import Snapshot, parse_snapshot
from risk.state import SEEN_FILLS_MAX, SEEN_MONEY_MAX, State, put_order, remember
from streams import SEEN_MAX, Keys

READ_MAX = 5_000  # hashes in one pipeline
REVISIONS_MAX = 200  # of one leg that are looked for; more were never seen
TRUTH = ("v2/account", "v3/positionRisk", "v1/openOrders", "v1/openAlgoOrders")
PAGE = 1_000  # rows of one answer about the past
PAGES_MAX = 50
IDS = {"income": "tranId", "userTrades": "id", "allOrders": "orderId", "allAlgoOrders": "algoId"}
log = logging.getLogger("risk")


async def _hashes(r: redis.asyncio.Redis, names: list[str]) -> list[dict[str, str]]:
    made: list[dict[str, str]] = []
    for start in range(0, len(names), READ_MAX):
        async with r.pipeline(transaction=False) as pipe:
            for name in names[start : start + READ_MAX]:
                pipe.hgetall(name)
            made += await pipe.execute()
    return made


async def _restore_ids(r: redis.asyncio.Redis, keys: Keys) -> None:
    """The ids of what stands in `fills` and `ledger`, where Redis lost them alone (a DEL, an
    eviction): without them the exchange's history would be written there a second time."""
    for stream, ids, id_of in (
        (keys.fills, keys.fill_ids, lambda row: fill_key(row["symbol"], row["trade_id"])),
        (keys.ledger, keys.ledger_ids, lambda row: row["id"]),
    ):
        missing = min(await r.xlen(stream), SEEN_MAX) - await r.zcard(ids)
        if missing <= 0:
            continue
        log.error("redis had lost ids of %s: at least %d put back", stream, missing)
        newest = "+"
        for _ in range(SEEN_MAX // READ_MAX):
            rows: Any = await r.xrevrange(stream, newest, "-", count=READ_MAX)
            if not rows:
                break
            await r.zadd(ids, {id_of(row): int(row["ms"]) for _, row in rows}, nx=True)
            newest = f"({rows[-1][0]}"


async def rebuild(r: redis.asyncio.Redis, state: State) -> None:
    """Fill an empty state with positions, their orders, open orders, sums and counted fills."""
    keys = state.keys
    await _restore_ids(r, keys)
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
    await _ended_legs(r, state)
    sums: Any = await r.hgetall(keys.portfolio)
    state.money = portfolio.money_from_fields(sums)
    state.rotated_ms = float(sums.get("rotated_ms") or state.rotated_ms)
    for key in await r.zrange(keys.fill_ids, -SEEN_FILLS_MAX, -1):
        remember(state.seen, str(key), None, SEEN_FILLS_MAX)
    booked: Any = await r.zrange(keys.ledger_ids, -SEEN_FILLS_MAX, -1, withscores=True)
    for event_id, ms in booked:
        state.books_ms = int(ms)
        if str(event_id).startswith(income.PREFIXES):
            remember(state.seen_money, str(event_id), None, SEEN_MONEY_MAX)
    state.income_ms = income.cursors(sums)
    told: Any = await r.hgetall(keys.breakers)
    state.halted = HALTED in told
    state.tally = breakers.from_fields(told)
    state.tally_written = breakers.to_fields(state.tally)
    state.quarantine = breakers.named(told, QUARANTINED)


async def _ended_legs(r: redis.asyncio.Redis, state: State) -> None:
    """The legs of every round trip that is not over, ended ones too: an id that the exchange may
    have had is never used again, and only its record tells of one that came and went."""
    causes = {order.cause for order in state.orders.values()}
    causes |= {position.signal for position in state.positions.values()}
    wanted = [(cause, leg) for cause in sorted(causes) for leg in orders.LEG_NAMES]
    for revision in range(REVISIONS_MAX):
        names = [state.make_id(cause, leg, revision) for cause, leg in wanted]
        found = await _hashes(r, [state.keys.order(name) for name in names])
        for name, fields in zip(names, found, strict=True):
            if fields.get("id") and name not in state.orders:
                adopt_order(state, orders.from_fields(fields))
        wanted = [pair for pair, fields in zip(wanted, found, strict=True) if fields.get("id")]
        if not wanted:
            return


def adopt_order(state: State, order: Order) -> None:
    put_order(state, order)
    if order.exchange_id and not order.algo:
        state.children[(order.symbol, order.exchange_id)] = order.id


async def _pages(
    exchange: Exchange, name: str, symbol: str, from_ms: int, cursor: tuple[str, str], most: int
) -> list[dict[str, Any]] | None:
    """All rows since a time. `cursor` is the field that orders them and the parameter that asks
    for those from one on. None when the exchange did not answer."""
    field, parameter = cursor
    params = {"startTime": str(from_ms), "limit": str(PAGE)} | (
        {"symbol": symbol} if symbol else {}
    )
    rows: dict[str, dict[str, Any]] = {}
    for _ in range(most):
        answer = await exchange.fetch("GET", f"/fapi/v1/{name}", params)
        if not isinstance(answer, Done):
            log.warning("history not told name=%s answer=%s", name, str(answer)[:80])
            return None
        known = len(rows)
        rows |= {f"{row.get('incomeType', '')}:{row[IDS[name]]}": row for row in answer.body}
        if len(answer.body) < PAGE or len(rows) == known:
            break
        last = max(int(row[field]) for row in answer.body)
        if parameter != "startTime":
            params.pop("startTime", None)
        params[parameter] = str(last)
    return list(rows.values())


async def read_history(
    exchange: Exchange, r: redis.asyncio.Redis, state: State, market_ms: float
) -> History | None:
    """Everything since the last money event that Redis knows; None unless all was answered."""
    from_ms = since_ms(state, market_ms)
    income = await _pages(exchange, "income", "", from_ms, ("time", "startTime"), PAGES_MAX)
    if income is None:
        return None
    told: dict[str, list[dict[str, Any]]] = {"userTrades": [], "allOrders": [], "allAlgoOrders": []}
    for symbol in symbols_asked(state, income):
        answers = await asyncio.gather(
            _pages(exchange, "userTrades", symbol, from_ms, ("id", "fromId"), PAGES_MAX),
            _pages(exchange, "allOrders", symbol, from_ms, ("orderId", "orderId"), PAGES_MAX),
            _pages(exchange, "allAlgoOrders", symbol, from_ms, ("algoId", "algoId"), 1),
        )
        for name, rows in zip(told, answers, strict=True):
            if rows is None:
                return None
            told[name] += rows
    trades, placed, algos = told.values()
    known: dict[str, Order] = {}
    names = [name for name in ours(state, placed, algos) if name not in state.orders]
    for fields in await _hashes(r, [state.keys.order(name) for name in names]):
        if fields.get("id"):
            known[fields["id"]] = orders.from_fields(fields)
    return History(from_ms, income, trades, placed, algos, known)


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
