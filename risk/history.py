"""What the exchange remembers and Redis may not: trades and orders, put back once each.

Redis can lose writes that it confirmed (an older file restored, a fail-over, a flush). A new holder
therefore asks the exchange for everything since the last money event that Redis knows, and counts
what it finds unknown before it looks at what is open now: orders are known again by their client
ids, positions are walked through fill by fill, and nothing is sent for what is long over. Pure; a
memory that lost nothing finds nothing. What is older than HISTORY_MS is the archive's to restore.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any, Final

from msgspec import Struct
from msgspec.structs import replace

from risk import income, journal, orders
from risk.events import Effects, HistoryRead, Note, Now
from risk.instruments import ZERO, decimal
from risk.orders import ALGO_STATES, STATES, TERMINAL, Order, advance
from risk.portfolio import Fill, apply_fill, fee_usdt, fill_from_trade
from risk.protect import close_position, close_reason, new_position, record
from risk.reconcile import CAUSE_END
from risk.state import ORDERS_KEPT_MAX, SEEN_FILLS_MAX, State, put_order, remember

DAY_MS: Final = 86_400_000
HISTORY_MS: Final = 7 * DAY_MS - 60_000  # the span that the exchange tells in one question
MARGIN_MS: Final = 3_600_000  # market time before the last known event: some are told late
CAUSE_START: Final = 5  # of the cause in a client id: ag and three of the prefix stand before it

Row = Mapping[str, Any]


class History(Struct, frozen=True):
    """Answers of income, userTrades, allOrders and allAlgoOrders; `known` orders are in Redis."""

    since_ms: int
    income: Sequence[Row]
    trades: Sequence[Row]
    orders: Sequence[Row]
    algos: Sequence[Row]
    known: Mapping[str, Order]


def since_ms(state: State, market_ms: float) -> int:
    """Where to begin: before the last event that Redis knows, or as far back as is told at once."""
    return int(max(state.books_ms - MARGIN_MS, market_ms - HISTORY_MS))


def symbols_asked(state: State, income: Sequence[Row]) -> list[str]:
    """Where something may be missing: an unknown trade, an order without an end, a position."""
    unknown = {
        str(row["symbol"])
        for row in income
        if row.get("tradeId") and f"{row['symbol']}:{row['tradeId']}" not in state.seen
    }
    live = {order.symbol for order in state.orders.values() if not order.terminal}
    return sorted(unknown | live | set(state.positions))


def ours(state: State, history_orders: Sequence[Row], algos: Sequence[Row]) -> list[str]:
    """Client ids of ours among the rows."""
    names = [str(row["clientOrderId"]) for row in history_orders]
    names += [str(row["clientAlgoId"]) for row in algos]
    return sorted({name for name in names if state.is_ours(name)})


def on_history(state: State, event: HistoryRead, now: Now, out: Effects) -> None:
    """Count what is unknown, oldest first; nothing of it is sent anywhere."""
    history: History = event.history
    names = _take_orders(state, history, now, out)
    found, first_ms = 0, now.market_ms
    for row in sorted(history.trades, key=lambda entry: int(entry["id"])):
        fill = fill_from_trade(row)
        if fill.key in state.seen:
            continue
        fill = replace(fill, client_id=names.get((fill.symbol, fill.order_id), ""))
        order = state.orders.get(fill.client_id) or history.known.get(fill.client_id)
        if _count(state, fill, order, now, out):
            found, first_ms = found + 1, min(first_ms, fill.ms)
    if found and not state.books_ms:  # before our first trade nothing was ours
        income.begin_at(state, int(first_ms))
    if found:
        out.add(Note("ERROR", f"redis had forgotten trades={found}: put back from the exchange"))
        text = f"{found} forgotten trades put back"
        record(state, out, journal.journal_ops(state, "ERROR", text, now), "history")


# --- orders ------------------------------------------------------------------------------------


def _take_orders(
    state: State, history: History, now: Now, out: Effects
) -> dict[tuple[str, str], str]:
    """Orders of ours as the exchange knows them; symbol and exchange order id -> client id."""
    names: dict[tuple[str, str], str] = {}
    stems = {order.id[:CAUSE_END]: order.cause for order in history.known.values()}
    stems |= {order.id[:CAUSE_END]: order.cause for order in state.orders.values()}
    plans = _plans(state, history.algos)
    for row in history.orders:
        names[str(row["symbol"]), str(row["orderId"])] = str(row["clientOrderId"])
    for row in history.algos:
        if state.is_ours(str(row["clientAlgoId"])) and row.get("actualOrderId"):
            names[str(row["symbol"]), str(row["actualOrderId"])] = str(row["clientAlgoId"])
    for place, client_id in names.items():
        if state.is_ours(client_id):
            remember(state.children, place, client_id, ORDERS_KEPT_MAX)
    rows = [(row, "clientOrderId") for row in history.orders]
    for row, field in [*rows, *((row, "clientAlgoId") for row in history.algos)]:
        client_id = str(row[field])
        leg = client_id[CAUSE_END : CAUSE_END + 1]
        if not state.is_ours(client_id) or leg not in orders.LEG_NAMES:
            continue
        if (field == "clientAlgoId") != (leg in orders.ALGO_LEGS):
            continue  # the child of a leg: its parent tells
        _take_order(state, history, row, client_id, stems, plans, now, out)
    return names


def _plans(state: State, algos: Sequence[Row]) -> dict[tuple[str, str], Decimal]:
    """(stem, leg) -> trigger of the newest leg: what is left of a forgotten plan."""
    made: dict[tuple[str, str], Decimal] = {}
    for row in sorted(algos, key=lambda entry: int(entry["algoId"])):
        name = str(row["clientAlgoId"])
        if state.is_ours(name):
            made[name[:CAUSE_END], name[CAUSE_END : CAUSE_END + 1]] = decimal(row["triggerPrice"])
    return made


def _take_order(
    state: State,
    history: History,
    row: Row,
    client_id: str,
    stems: Mapping[str, str],
    plans: Mapping[tuple[str, str], Decimal],
    now: Now,
    out: Effects,
) -> None:
    """Known: its end, if we missed it. Unknown: known again, with its end."""
    stem, leg = client_id[:CAUSE_END], client_id[CAUSE_END]
    algo = leg in orders.ALGO_LEGS
    told = str(row["algoStatus" if algo else "status"])
    status = (ALGO_STATES if algo else STATES).get(told, "unknown")
    exchange_id = str(row["algoId" if algo else "orderId"])
    executed = ZERO if algo else decimal(row.get("executedQty"))
    order = state.orders.get(client_id) or history.known.get(client_id)
    ms = int(row.get("updateTime") or now.market_ms)
    if order is None:
        if status in TERMINAL and ms < history.since_ms:
            return  # long over, and its record with it
        made = Order(
            id=client_id,
            cause=stems.get(stem, f"forgotten-{stem[CAUSE_START:]}"),
            leg=leg,
            symbol=str(row["symbol"]),
            side=str(row["side"]).lower(),
            qty=decimal(row.get("quantity" if algo else "origQty")),
            price=decimal(row.get("triggerPrice" if algo else "price")),
            state=status,
            reason="forgotten by redis",
            revision=int(client_id[CAUSE_END + 1 :] or 0),
            exchange_id=exchange_id,
            executed=executed,
            created_ms=int(row.get("createTime" if algo else "time") or ms),
            updated_ms=ms,
            epoch=state.epoch,
            stop=plans.get((stem, orders.STOP_LEG), ZERO),
            target=plans.get((stem, orders.TARGET_LEG), ZERO),
        )
    elif order.terminal and order.state != "rejected":
        return
    else:
        made = replace(order, exchange_id=exchange_id, executed=max(executed, order.executed))
        made = advance(made, status, ms, "told by the exchange's history")
    if made == order:
        return
    put_order(state, made)
    record(state, out, journal.order_ops(state, made, now), made.id)


# --- fills and money -----------------------------------------------------------------------------


def _count(state: State, fill: Fill, order: Order | None, now: Now, out: Effects) -> bool:
    """Book one forgotten execution and walk its position on; False where it is somebody else's."""
    position = state.positions.get(fill.symbol)
    mine = position is not None and (
        position.opened_ms <= fill.ms or (order is not None and order.cause == position.signal)
    )
    if order is None and not mine:
        return False
    remember(state.seen, fill.key, None, SEEN_FILLS_MAX)
    money, fee = state.money, fee_usdt(fill, state.marks)
    state.money = replace(
        money,
        realised=money.realised + fill.realised,
        fees=money.fees + fee,
        fills=money.fills + 1,
    )
    entry = order if order is not None and order.leg == orders.ENTRY_LEG else None
    ops = journal.fill_ops(state, fill, order, entry, now)
    if position is None and entry is not None:
        position, mine = new_position(entry, fill.ms), True
    ops += journal.portfolio_ops(state, now)  # with the fill, or the sums would part from it
    if position is None or not mine:  # of a round trip that is over and told
        record(state, out, ops, fill.symbol)
        return True
    if position.qty == 0 and position.exit_qty == 0 and entry is not None:
        position = replace(position, opened_ms=fill.ms)
    position = apply_fill(position, replace(fill, fee=fee))
    state.positions[fill.symbol] = position
    if position.qty <= 0 and position.exit_qty > 0:
        close_position(state, position, close_reason(position, order, fill), now, out, ops)
    else:
        record(state, out, ops + journal.position_ops(state.keys, position), fill.symbol)
    return True
