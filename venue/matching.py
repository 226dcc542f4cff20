"""Matching: orders meet the market's book and its trades. Pure: state, event, now -> events.

Takers take the best price and walk a synthetic depth behind it; the market's book is not changed
by us. A resting order fills when the market trades through it (all of it), at it on the right
side (as much as was traded) or when the opposite quote reaches it. Conditional orders fire on the
last trade or the mark, in the order in which the prices happened. When a position reaches zero,
what existed only to close it expires.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from decimal import Decimal

from venue import checks
from venue.checks import Request
from venue.fills import algo_to, cap, end, fill, income, money
from venue.orders import (
    EXPIRE_IOC,
    EXPIRE_LIQUIDATION,
    EXPIRE_MARKET,
    EXPIRE_REDUCE,
    ZERO,
    Account,
    Algo,
    AlgoEvent,
    Book,
    ConfigEvent,
    Event,
    MoneyEvent,
    Order,
    OrderEvent,
    Refusal,
    RejectEvent,
    amount,
    leverage_of,
    maintenance,
    snapshot,
    unrealised,
)
from venue.symbols import PRICE_BOUND, Symbol

LEVELS = 1000  # synthetic depth: levels on each side


@dataclass(frozen=True, slots=True)
class MarketTrade:
    """A published trade of the market."""

    symbol: str
    price: Decimal
    qty: Decimal
    buyer_maker: bool


@dataclass(frozen=True, slots=True)
class MarketQuote:
    symbol: str
    bid: Decimal
    bid_qty: Decimal
    ask: Decimal
    ask_qty: Decimal


@dataclass(frozen=True, slots=True)
class MarketMark:
    symbol: str
    mark: Decimal


@dataclass(frozen=True, slots=True)
class FundingDue:
    symbol: str
    rate: Decimal


MarketEvent = MarketTrade | MarketQuote | MarketMark | FundingDue


def levels(
    spec: Symbol, book: Book, side: str, count: int = LEVELS
) -> Iterator[tuple[Decimal, Decimal]]:
    """Price and size that a taker of `side` meets, best first; the same at REST depth."""
    price, qty, step = (
        (book.ask, book.ask_qty, spec.tick)
        if side == "BUY"
        else (book.bid, book.bid_qty, -spec.tick)
    )
    yield price, qty
    units = int(spec.qty_mean / spec.unit)
    for k in range(1, count):
        price += step
        if price <= 0:
            return
        # a fixed mix of the price's ticks: depth looks uneven and does not flicker
        mix = int(price / spec.tick) * 2654435761 % 4096
        yield price, (max(1, units * (2 + k // 4) * (512 + mix) // 4096)) * spec.unit


def _walk(account: Account, order: Order, limit: Decimal, now: int, out: list[Event]) -> None:
    """Takes from the book up to `limit`."""
    spec, book = account.specs[order.symbol], account.books[order.symbol]
    for price, qty in levels(spec, book, order.side):
        if price * order.sign > limit * order.sign:
            return
        take = min(qty, cap(account, order))
        if take <= 0:
            return
        fill(account, order, price, take, False, now, out)
        if order.status == "FILLED":
            return


def _reachable(account: Account, request: Request) -> Decimal:
    """What a taker could get up to its limit."""
    spec, book = account.specs[request.symbol], account.books[request.symbol]
    sign = 1 if request.side == "BUY" else -1
    total = ZERO
    for price, qty in levels(spec, book, request.side):
        if price * sign > request.price * sign or total >= request.qty:
            break
        total += qty
    return total


def place(account: Account, request: Request, now: int) -> tuple[Order | Refusal, list[Event]]:
    """A new order on /order: the order as it is afterwards, or why not."""
    book = account.books[request.symbol]
    refusal = checks.check_order(account, request, book)
    if refusal is None and request.tif == "GTX":
        crosses = request.price >= book.ask if request.side == "BUY" else request.price <= book.bid
        refusal = checks.GTX_TAKES if crosses else None
    if refusal is None and request.tif == "FOK" and _reachable(account, request) < request.qty:
        refusal = checks.FOK_UNFILLED
    if refusal is not None:
        rejected = RejectEvent(request.symbol, request.client_id, refusal.code, refusal.msg, now)
        return refusal, [rejected]
    account.order_seq += 1
    order = Order(
        account.order_seq,
        request.client_id or f"web_{account.order_seq}",
        request.symbol,
        request.side,
        request.type,
        request.tif or "GTC",
        request.qty,
        request.price,
        request.reduce_only,
        now,
        now,
        orig_type=request.type,
        stp=request.stp,
    )
    out: list[Event] = []
    _enter(account, order, now, out)
    return order, out


def _enter(account: Account, order: Order, now: int, out: list[Event]) -> None:
    """NEW, then whatever the book gives, then rest or expire."""
    account.orders[order.id] = order
    out.append(OrderEvent(snapshot(order), "NEW", now))
    book = account.books[order.symbol]
    if order.type == "MARKET":
        limit = book.mark * (1 + order.sign * PRICE_BOUND)
        _walk(account, order, limit, now, out)
        if order.id in account.orders:
            end(account, order, "EXPIRED", EXPIRE_MARKET, now, out)
        return
    _walk(account, order, order.price, now, out)
    if order.id not in account.orders:
        return
    if order.tif in ("IOC", "FOK"):
        end(account, order, "EXPIRED", EXPIRE_IOC, now, out)
    elif order.reduce_only and cap(account, order) == 0:
        end(account, order, "EXPIRED", EXPIRE_REDUCE, now, out)


def find(account: Account, symbol: str, order_id: int, client_id: str) -> Order | None:
    """Open first, then the newest closed one: a reused client id means its latest bearer."""
    for group in (account.orders, account.closed):
        if order_id:
            order = group.get(order_id)
            if order is not None and order.symbol == symbol:
                return order
            continue
        for order in reversed(group.values()):
            if order.client_id == client_id and order.symbol == symbol:
                return order
    return None


def cancel(account: Account, order: Order, now: int) -> list[Event]:
    out: list[Event] = []
    end(account, order, "CANCELED", 0, now, out)
    return out


def place_algo(account: Account, request: Request, now: int) -> tuple[Algo | Refusal, list[Event]]:
    """A new conditional order, or why not."""
    refusal = checks.check_algo(account, request, account.books[request.symbol])
    if refusal is not None:
        rejected = RejectEvent(request.symbol, request.client_id, refusal.code, refusal.msg, now)
        return refusal, [rejected]
    account.algo_seq += 1
    algo = Algo(
        account.algo_seq,
        request.client_id or f"algo_{account.algo_seq}",
        request.symbol,
        request.side,
        request.type,
        request.tif or "GTC",
        request.qty,
        request.trigger,
        request.price,
        request.working,
        request.close_position,
        request.reduce_only,
        request.price_protect,
        now,
        now,
    )
    account.algos[algo.id] = algo
    return algo, [AlgoEvent(replace(algo), now)]


def cancel_algo(account: Account, algo: Algo, now: int) -> list[Event]:
    out: list[Event] = []
    algo_to(account, algo, "CANCELED", now, out)
    return out


def _fire(account: Account, algo: Algo, now: int, out: list[Event]) -> None:
    """Triggered: becomes an order of its own with a new id, or is refused now."""
    algo.trigger_ms = now
    algo_to(account, algo, "TRIGGERING", now, out)
    held = amount(account, algo.symbol)
    sign = 1 if algo.side == "BUY" else -1
    closing = algo.close_position or algo.reduce_only
    qty = abs(held) if algo.close_position else algo.qty
    request = Request(
        algo.symbol,
        algo.side,
        "MARKET" if algo.type.endswith("MARKET") else "LIMIT",
        algo.tif,
        qty,
        algo.price,
        ZERO,
        algo.client_id,
        closing,
        algo.close_position,
        algo.working,
        False,
        "",
    )
    refusal = None
    if closing and held * sign >= 0:
        refusal = checks.REDUCE_ONLY
    elif not closing:
        book = account.books[algo.symbol]
        refusal = checks.check_margin(account, request, book, held, sign)
    if refusal is not None:
        algo.why = refusal.msg
        algo_to(account, algo, "EXPIRED" if algo.close_position else "REJECTED", now, out)
        return
    account.order_seq += 1
    algo.order_id = account.order_seq
    algo_to(account, algo, "TRIGGERED", now, out)
    order = Order(
        account.order_seq,
        algo.client_id,
        algo.symbol,
        algo.side,
        request.type,
        algo.tif,
        qty,
        algo.price,
        algo.reduce_only,
        now,
        now,
        algo.close_position,
        algo.trigger,
        algo.working,
        algo.type,
        algo_id=algo.id,
    )
    _enter(account, order, now, out)


def _triggers(
    account: Account, symbol: str, working: str, price: Decimal, now: int, out: list[Event]
) -> None:
    waiting = [
        a
        for a in account.algos.values()
        if a.symbol == symbol and a.status == "NEW" and a.working == working
    ]
    for algo in waiting:
        hit = price >= algo.trigger if algo.rises else price <= algo.trigger
        if hit and algo.status == "NEW":
            _fire(account, algo, now, out)


def _rest(
    account: Account, symbol: str, trade: MarketTrade | None, now: int, out: list[Event]
) -> None:
    """Resting orders against a trade of the market, or against its new quote."""
    book = account.books[symbol]
    for order in [o for o in account.orders.values() if o.symbol == symbol]:
        if order.id not in account.orders:
            continue
        qty = ZERO
        if trade is None:
            best = book.ask if order.side == "BUY" else book.bid
            qty = order.left if best * order.sign <= order.price * order.sign else ZERO
        elif trade.price * order.sign < order.price * order.sign:
            qty = order.left
        elif trade.price == order.price and trade.buyer_maker == (order.side == "BUY"):
            qty = trade.qty
        qty = min(qty, cap(account, order))
        if qty > 0:
            fill(account, order, order.price, qty, True, now, out)
        if order.id in account.orders and cap(account, order) == 0:
            end(account, order, "EXPIRED", EXPIRE_REDUCE, now, out)


def match(account: Account, event: MarketEvent, now: int) -> list[Event]:
    """One thing that happened on the market, and everything it does to the account."""
    out: list[Event] = []
    symbol = event.symbol
    book = account.books[symbol]
    if isinstance(event, MarketTrade):
        account.books[symbol] = replace(book, last=event.price)
        _rest(account, symbol, event, now, out)
        _triggers(account, symbol, "CONTRACT_PRICE", event.price, now, out)
    elif isinstance(event, MarketQuote):
        account.books[symbol] = replace(
            book, bid=event.bid, bid_qty=event.bid_qty, ask=event.ask, ask_qty=event.ask_qty
        )
        _rest(account, symbol, None, now, out)
    elif isinstance(event, MarketMark):
        account.books[symbol] = replace(book, mark=event.mark)
        _triggers(account, symbol, "MARK_PRICE", event.mark, now, out)
        _liquidate(account, symbol, now, out)
    else:
        _fund(account, symbol, event.rate, now, out)
    return out


def _fund(account: Account, symbol: str, rate: Decimal, now: int, out: list[Event]) -> None:
    """Longs pay size * mark * rate when it is positive."""
    position = account.positions.get(symbol)
    if position is None or not position.qty:
        return
    paid = money(-position.qty * account.books[symbol].mark * rate)
    account.wallet += paid
    account.funding += paid
    income(account, symbol, "FUNDING_FEE", paid, now, "")
    shown = replace(position) if symbol in account.isolated else None
    out.append(
        MoneyEvent(
            "FUNDING_FEE", symbol, paid, account.wallet, now, shown, unrealised(account, position)
        )
    )


def _liquidate(account: Account, symbol: str, now: int, out: list[Event]) -> None:
    """A position whose margin no longer covers its maintenance is closed at the market."""
    position = account.positions.get(symbol)
    if position is None or not position.qty:
        return
    if symbol in account.isolated:
        balance = position.isolated + unrealised(account, position)
        needed = maintenance(account, position)
    else:
        crossed = [p for p in account.positions.values() if p.symbol not in account.isolated]
        aside = sum((p.isolated for p in account.positions.values()), ZERO)
        balance = account.wallet - aside + sum((unrealised(account, p) for p in crossed), ZERO)
        needed = sum((maintenance(account, p) for p in crossed), ZERO)
    if balance > needed:
        return
    for resting in [o for o in account.orders.values() if o.symbol == symbol]:
        end(account, resting, "EXPIRED", EXPIRE_LIQUIDATION, now, out)
    account.order_seq += 1
    side = "SELL" if position.qty > 0 else "BUY"
    book = account.books[symbol]
    order = Order(
        account.order_seq,
        f"autoclose-{account.order_seq}",
        symbol,
        side,
        "LIQUIDATION",
        "IOC",
        abs(position.qty),
        book.bid if side == "SELL" else book.ask,
        True,
        now,
        now,
        orig_type="LIQUIDATION",
    )
    account.orders[order.id] = order
    out.append(OrderEvent(snapshot(order), "NEW", now))
    fill(account, order, order.price, order.qty, False, now, out, "CALCULATED")


def deposit(account: Account, money: Decimal, now: int) -> list[Event]:
    account.wallet += money
    account.paid_in += money
    income(account, "", "TRANSFER", money, now, "")
    return [MoneyEvent("DEPOSIT", "", money, account.wallet, now)]


def set_leverage(account: Account, symbol: str, leverage: int, now: int) -> list[Event] | Refusal:
    if not 1 <= leverage <= account.specs[symbol].brackets[0].leverage_max:
        return Refusal(-4028, f"Leverage {leverage} is not valid")
    account.leverage[symbol] = leverage
    kind = "isolated" if symbol in account.isolated else "cross"
    return [ConfigEvent(symbol, leverage, kind, "leverage", now)]


def set_margin_type(
    account: Account, symbol: str, isolated: bool, now: int
) -> list[Event] | Refusal:
    if isolated == (symbol in account.isolated):
        return Refusal(-4046, "No need to change margin type.")
    if any(o.symbol == symbol for o in account.orders.values()):
        return Refusal(-4047, "Margin type cannot be changed if there exists open orders.")
    if amount(account, symbol):
        return Refusal(-4048, "Margin type cannot be changed if there exists position.")
    (account.isolated.add if isolated else account.isolated.discard)(symbol)
    kind = "isolated" if isolated else "cross"
    return [ConfigEvent(symbol, leverage_of(account, symbol), kind, "margin_type", now)]


def watched(account: Account) -> set[str]:
    """Symbols whose market events can change this account."""
    out = {o.symbol for o in account.orders.values()}
    out |= {a.symbol for a in account.algos.values()}
    return out | {p.symbol for p in account.positions.values() if p.qty}
