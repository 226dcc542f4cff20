"""What a fill or an end of an order does to the account: money, position, dependents.

The only file that moves the wallets of a trade. Everything appends what it did to `out`, in the
order in which the exchange tells it.
"""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal

from venue import fees
from venue.orders import (
    CLOSED_KEPT,
    EXPIRE_REDUCE,
    ZERO,
    Account,
    Algo,
    AlgoEvent,
    Event,
    Order,
    OrderEvent,
    Position,
    Trade,
    amount,
    leverage_of,
    margin_aside,
    money,
    position_key,
    snapshot,
    unrealised,
)


def _apply(account: Account, position: Position, signed: Decimal, price: Decimal) -> Decimal:
    """Adds a fill to a position; returns what it realised."""
    realised = ZERO
    held = position.qty
    if held * signed < 0:
        closing = min(abs(signed), abs(held))
        whole = closing == abs(held)
        cost = position.cost if whole else money(position.cost * closing / abs(held))
        fee = position.fees if whole else money(position.fees * closing / abs(held))
        released = position.isolated if whole else money(position.isolated * closing / abs(held))
        sold = price * closing if held > 0 else -price * closing
        realised = money(sold - cost)
        position.cost -= cost
        position.fees -= fee
        position.isolated -= released
        position.qty += closing if held < 0 else -closing
        signed += closing if held > 0 else -closing
    if signed:
        position.qty += signed
        position.cost += signed * price
        if position.symbol in account.isolated:
            used = abs(signed) * price / leverage_of(account, position.symbol)
            position.isolated += money(used)
    return realised


def income(
    account: Account,
    symbol: str,
    kind: str,
    money: Decimal,
    ms: int,
    trade: str,
    asset: str = "USDT",
) -> None:
    account.tran_seq += 1
    account.income.append(
        {
            "symbol": symbol,
            "incomeType": kind,
            "income": f"{money:.8f}",
            "asset": asset,
            "info": trade or kind,
            "time": ms,
            "tranId": account.tran_seq,
            "tradeId": trade,
        }
    )


def fill(
    account: Account,
    order: Order,
    price: Decimal,
    qty: Decimal,
    maker: bool,
    now: int,
    out: list[Event],
    execution: str = "TRADE",
) -> None:
    """One execution: position, wallet, fee, order; then what it makes pointless expires."""
    assert 0 < qty <= order.left
    symbol, side = order.symbol, order.position_side
    key = position_key(symbol, side)
    position = account.positions.setdefault(key, Position(symbol, side=side))
    before = position.qty
    realised = _apply(account, position, qty * order.sign, price)
    fee = fees.of_fill(account, order, price * qty, maker)
    opened = min(qty, abs(position.qty)) if position.qty * order.sign > 0 else ZERO
    position.fees += money(fee.cost * opened / qty)
    position.realised += realised
    position.updated_ms = now
    account.wallet += realised
    account.realised += realised
    fees.charge(account, fee)
    order.executed += qty
    order.quote += price * qty
    order.updated_ms = now
    order.status = "FILLED" if order.executed == order.qty else "PARTIALLY_FILLED"
    account.trade_seq += 1
    trade = Trade(
        account.trade_seq,
        symbol,
        order.id,
        order.client_id,
        order.side,
        price,
        qty,
        fee.amount,
        realised,
        maker,
        now,
        side,
        fee.asset,
    )
    account.trades.append(trade)
    income(account, symbol, fee.kind, -fee.amount, now, str(trade.id), fee.asset)
    if realised:
        income(account, symbol, "REALIZED_PNL", realised, now, str(trade.id))
    if order.status == "FILLED":
        _retire(account, order)
    margin_type = "isolated" if symbol in account.isolated else "cross"
    out.append(
        OrderEvent(
            snapshot(order),
            execution,
            now,
            trade,
            replace(position),
            unrealised(account, position),
            account.wallet,
            margin_type,
            bnb=account.bnb,
            aside=margin_aside(account),
        )
    )
    if order.status == "FILLED":
        _finish_algo(account, order, now, out)
    if before and position.qty * before <= 0:
        _expire_closers(account, position, order.id, now, out)


def _retire(account: Account, order: Order) -> None:
    account.orders.pop(order.id, None)
    account.closed[order.id] = order
    while len(account.closed) > CLOSED_KEPT:
        account.closed.popitem(last=False)


def end(
    account: Account, order: Order, status: str, reason: int, now: int, out: list[Event]
) -> None:
    """An order leaves the book unfilled or partly filled."""
    order.status = status
    order.expire_reason = reason
    order.updated_ms = now
    _retire(account, order)
    execution = "EXPIRED" if status == "EXPIRED_IN_MATCH" else status
    out.append(OrderEvent(snapshot(order), execution, now))
    _finish_algo(account, order, now, out)


def algo_to(account: Account, algo: Algo, status: str, now: int, out: list[Event]) -> None:
    algo.status = status
    algo.updated_ms = now
    if status in ("FINISHED", "CANCELED", "EXPIRED", "REJECTED"):
        account.algos.pop(algo.id, None)
        account.closed_algos[algo.id] = algo
        while len(account.closed_algos) > CLOSED_KEPT:
            account.closed_algos.popitem(last=False)
    out.append(AlgoEvent(replace(algo), now))


def _finish_algo(account: Account, order: Order, now: int, out: list[Event]) -> None:
    algo = account.algos.get(order.algo_id)
    if algo is not None and algo.status == "TRIGGERED":
        algo_to(account, algo, "FINISHED", now, out)


def _expire_closers(
    account: Account, position: Position, but: int, now: int, out: list[Event]
) -> None:
    """The position went through zero: closePosition and resting reduce-only orders go."""
    where = (position.symbol, position.side)
    for algo in [a for a in account.algos.values() if (a.symbol, a.position_side) == where]:
        if algo.close_position and algo.status == "NEW":
            algo_to(account, algo, "EXPIRED", now, out)
    for order in [o for o in account.orders.values() if (o.symbol, o.position_side) == where]:
        if order.reduce_only and order.id != but:
            end(account, order, "EXPIRED", EXPIRE_REDUCE, now, out)


def cap(account: Account, order: Order) -> Decimal:
    """How much may still be filled: reduce-only never beyond the position."""
    if not order.reduce_only and not order.close_position:
        return order.left
    held = amount(account, order.symbol, order.position_side)
    return min(order.left, abs(held)) if held * order.sign < 0 else ZERO
