"""What a fill or an end of an order does to the account: money, position, dependents.

The only file that moves the wallet of a trade. Everything appends what it did to `out`, in the
order in which the exchange tells it.
"""

from __future__ import annotations

from dataclasses import replace
from decimal import ROUND_HALF_UP, Decimal

from venue.orders import (
    CLOSED_KEPT,
    E8,
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
    snapshot,
    unrealised,
)


def money(value: Decimal) -> Decimal:
    return value.quantize(E8, ROUND_HALF_UP)


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


def income(account: Account, symbol: str, kind: str, money: Decimal, ms: int, trade: str) -> None:
    account.tran_seq += 1
    account.income.append(
        {
            "symbol": symbol,
            "incomeType": kind,
            "income": f"{money:.8f}",
            "asset": "USDT",
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
    symbol = order.symbol
    position = account.positions.setdefault(symbol, Position(symbol))
    before = position.qty
    realised = _apply(account, position, qty * order.sign, price)
    fee = money(price * qty * (account.maker_rate if maker else account.taker_rate))
    position.fees += fee if position.qty * order.sign > 0 else ZERO
    position.realised += realised
    position.updated_ms = now
    account.wallet += realised - fee
    account.realised += realised
    account.fees += fee
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
        fee,
        realised,
        maker,
        now,
    )
    account.trades.append(trade)
    income(account, symbol, "COMMISSION", -fee, now, str(trade.id))
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
        )
    )
    if order.status == "FILLED":
        _finish_algo(account, order, now, out)
    if before and position.qty * before <= 0:
        _expire_closers(account, symbol, order.id, now, out)


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
    out.append(OrderEvent(snapshot(order), status, now))
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


def _expire_closers(account: Account, symbol: str, but: int, now: int, out: list[Event]) -> None:
    """The position went through zero: closePosition and resting reduce-only orders go."""
    for algo in [a for a in account.algos.values() if a.symbol == symbol and a.close_position]:
        if algo.status == "NEW":
            algo_to(account, algo, "EXPIRED", now, out)
    for order in [o for o in account.orders.values() if o.symbol == symbol and o.reduce_only]:
        if order.id != but:
            end(account, order, "EXPIRED", EXPIRE_REDUCE, now, out)


def cap(account: Account, order: Order) -> Decimal:
    """How much may still be filled: reduce-only never beyond the position."""
    if not order.reduce_only and not order.close_position:
        return order.left
    held = amount(account, order.symbol)
    return min(order.left, abs(held)) if held * order.sign < 0 else ZERO
