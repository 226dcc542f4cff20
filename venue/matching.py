"""Matching: orders meet the market's book and its trades. Pure: state, event, now -> events.

Takers take the best price and walk the depth behind it (ladder); what they ate stays eaten until
the next quote. Resting orders stand in the market's queue (resting). Conditional orders fire on the
last trade or the mark, in the order in which the prices happened. When a position reaches zero,
what existed only to close it expires.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from decimal import Decimal

from venue import checks, funding, ladder, liquidation, resting, trailing
from venue.checks import Request
from venue.fees import BNB_SYMBOL
from venue.fills import algo_to, cap, end, fill
from venue.orders import (
    EXPIRE_IOC,
    EXPIRE_IOC_STP,
    EXPIRE_MARKET,
    EXPIRE_REDUCE,
    EXPIRE_STP,
    ZERO,
    Account,
    Algo,
    AlgoEvent,
    Book,
    ConfigEvent,
    Event,
    Order,
    OrderEvent,
    Refusal,
    RejectEvent,
    amount,
    held_of,
    leverage_of,
    snapshot,
)
from venue.wallet import deposit as deposit


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


def _walk(account: Account, order: Order, limit: Decimal, now: int, out: list[Event]) -> None:
    """Takes from the book up to `limit`; what it takes is gone until the market quotes anew."""
    spec = account.specs[order.symbol]
    for price, qty in ladder.offers(spec, account.books[order.symbol], order.side, limit):
        _meet_own(account, order, price, now, out)
        take = min(qty, cap(account, order), account.taken_max - order.executed)
        if take <= 0 or order.id not in account.orders:
            return
        _eat(account, order, take)
        fill(account, order, price, take, False, now, out)
        if order.status == "FILLED":
            return
    _meet_own(account, order, limit, now, out)


def _eat(account: Account, order: Order, qty: Decimal) -> None:
    book = account.books[order.symbol]
    if order.side == "BUY":
        account.books[order.symbol] = replace(book, ask_taken=book.ask_taken + qty)
    else:
        account.books[order.symbol] = replace(book, bid_taken=book.bid_taken + qty)


def _in_the_way(account: Account, symbol: str, sign: int, limit: Decimal) -> list[Order]:
    """Our orders of the other side that a taker with this limit would meet, best price first."""
    found = [
        o
        for o in account.orders.values()
        if o.symbol == symbol and o.sign == -sign and o.price * sign <= limit * sign
    ]
    return sorted(found, key=lambda o: o.price * sign)


def _meet_own(account: Account, order: Order, limit: Decimal, now: int, out: list[Event]) -> None:
    """A taker that reaches orders of its own account: its mode says which of the two expires."""
    if order.tif == "FOK" or order.id not in account.orders:
        return  # it takes from the market alone
    for maker in _in_the_way(account, order.symbol, order.sign, limit):
        if order.stp == "NONE":
            qty = min(cap(account, maker), cap(account, order))
            if qty > 0:
                fill(account, maker, maker.price, qty, True, now, out)
                fill(account, order, maker.price, qty, False, now, out)
        if order.stp in ("EXPIRE_MAKER", "EXPIRE_BOTH"):
            end(account, maker, "EXPIRED_IN_MATCH", EXPIRE_STP, now, out)
        if order.stp in ("EXPIRE_TAKER", "EXPIRE_BOTH"):
            reason = EXPIRE_IOC_STP if order.tif == "IOC" else EXPIRE_STP
            end(account, order, "EXPIRED_IN_MATCH", reason, now, out)
        if order.id not in account.orders:
            return


def _reachable(account: Account, request: Request) -> Decimal:
    """What a taker could get up to its limit; reduce-only never more than the position."""
    spec, book = account.specs[request.symbol], account.books[request.symbol]
    total = ZERO
    for _, qty in ladder.offers(spec, book, request.side, request.price):
        total += qty
        if total >= request.qty:
            break
    if request.reduce_only:
        return min(total, abs(amount(account, request.symbol, request.position_side)))
    return total


def crosses(account: Account, symbol: str, side: str, price: Decimal) -> bool:
    """Whether an order would take: from the market, or from an order of its own account."""
    book, sign = account.books[symbol], 1 if side == "BUY" else -1
    best = book.ask if sign > 0 else book.bid
    return price * sign >= best * sign or bool(_in_the_way(account, symbol, sign, price))


def draft(account: Account, request: Request, now: int) -> Order | Refusal:
    """The order that a request would be, without an id and in no book, or why there is none."""
    book = account.books[request.symbol]
    if request.price_match != "NONE":
        spec = account.specs[request.symbol]
        price = ladder.matched(spec, book, request.side, request.price_match)
        request = replace(request, price=price)
    refusal = checks.check_order(account, request, book) or checks.check_date(request, now)
    if refusal is None and request.tif == "GTX":
        takes = crosses(account, request.symbol, request.side, request.price)
        refusal = checks.GTX_TAKES if takes else None
    if refusal is None and request.tif == "FOK" and _reachable(account, request) < request.qty:
        refusal = checks.FOK_UNFILLED
    if refusal is not None:
        return refusal
    return Order(
        0,
        request.client_id,
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
        good_till_ms=request.good_till_ms,
        price_match=request.price_match,
        position_side=request.position_side,
    )


def place(account: Account, request: Request, now: int) -> tuple[Order | Refusal, list[Event]]:
    """A new order on /order: the order as it is afterwards, or why not."""
    order = draft(account, request, now)
    if isinstance(order, Refusal):
        return order, [RejectEvent(request.symbol, request.client_id, order.code, order.msg, now)]
    account.order_seq += 1
    order.id = account.order_seq
    order.client_id = order.client_id or f"web_{order.id}"
    out: list[Event] = []
    _enter(account, order, now, out)
    return order, out


def _enter(account: Account, order: Order, now: int, out: list[Event]) -> None:
    account.orders[order.id] = order
    out.append(OrderEvent(snapshot(order), "NEW", now))
    take(account, order, now, out)


def take(account: Account, order: Order, now: int, out: list[Event]) -> None:
    """Whatever the book gives at once, then rest or expire."""
    book = account.books[order.symbol]
    if order.type == "MARKET":
        bound = account.specs[order.symbol].take_bound
        limit = book.mark * (1 + order.sign * bound)
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
    else:
        resting.join(account, order)


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


def draft_algo(account: Account, request: Request, now: int) -> Algo | Refusal:
    """The conditional order that a request would be, without an id, or why there is none."""
    book = account.books[request.symbol]
    refusal = checks.check_algo(account, request, book)
    working = book.last if request.working == "CONTRACT_PRICE" else book.mark
    if refusal is None and request.type == trailing.TYPE:
        refusal = trailing.check(account.specs[request.symbol], request, working)
    refusal = refusal or checks.check_date(request, now)
    if refusal is not None:
        return refusal
    algo = Algo(
        0,
        request.client_id,
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
        good_till_ms=request.good_till_ms,
        stp=request.stp,
        price_match=request.price_match,
        callback_rate=request.callback_rate,
        activate=request.activate,
        position_side=request.position_side,
    )
    if algo.type == trailing.TYPE:
        trailing.begin(algo, working)
    return algo


def place_algo(account: Account, request: Request, now: int) -> tuple[Algo | Refusal, list[Event]]:
    """A new conditional order, or why not."""
    algo = draft_algo(account, request, now)
    if isinstance(algo, Refusal):
        return algo, [RejectEvent(request.symbol, request.client_id, algo.code, algo.msg, now)]
    account.algo_seq += 1
    algo.id = account.algo_seq
    algo.client_id = algo.client_id or f"algo_{algo.id}"
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
    held = amount(account, algo.symbol, algo.position_side)
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
        algo.stp,
        position_side=algo.position_side,
    )
    if algo.price_match != "NONE":
        spec, book = account.specs[algo.symbol], account.books[algo.symbol]
        price = ladder.matched(spec, book, algo.side, algo.price_match)
        request = replace(request, price=price)
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
        request.price,
        algo.reduce_only,
        now,
        now,
        algo.close_position,
        algo.trigger,
        algo.working,
        algo.type,
        stp=algo.stp,
        algo_id=algo.id,
        good_till_ms=algo.good_till_ms,
        price_match=algo.price_match,
        position_side=algo.position_side,
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
        if algo.status != "NEW":
            continue  # ended by what fired before it
        if algo.type == trailing.TYPE:
            begun, hit = trailing.follow(algo, price)
            if begun:
                algo_to(account, algo, "NEW", now, out)
        else:
            hit = price >= algo.trigger if algo.rises else price <= algo.trigger
        if hit:
            _fire(account, algo, now, out)


def book_after(book: Book, event: MarketEvent) -> Book:
    """A new quote is whole again, whatever we ate of the one before."""
    if isinstance(event, MarketTrade):
        return replace(book, last=event.price)
    if isinstance(event, MarketMark):
        return replace(book, mark=event.mark)
    if isinstance(event, MarketQuote):
        return Book(event.bid, event.bid_qty, event.ask, event.ask_qty, book.last, book.mark)
    return book


def match(account: Account, event: MarketEvent, now: int) -> list[Event]:
    """One thing that happened on the market, and everything it does to the account."""
    out: list[Event] = []
    symbol = event.symbol
    account.books[symbol] = book_after(account.books[symbol], event)
    if isinstance(event, MarketTrade):
        resting.meet_trade(account, symbol, event.price, event.qty, event.buyer_maker, now, out)
        _triggers(account, symbol, "CONTRACT_PRICE", event.price, now, out)
    elif isinstance(event, MarketQuote):
        resting.meet_quote(account, symbol, now, out)
    elif isinstance(event, MarketMark):
        _triggers(account, symbol, "MARK_PRICE", event.mark, now, out)
        liquidation.liquidate(account, symbol, now, out)
    else:
        funding.settle(account, symbol, event.rate, now, out)
    return out


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
    if held_of(account, symbol):
        return Refusal(-4048, "Margin type cannot be changed if there exists position.")
    (account.isolated.add if isolated else account.isolated.discard)(symbol)
    kind = "isolated" if isolated else "cross"
    return [ConfigEvent(symbol, leverage_of(account, symbol), kind, "margin_type", now)]


def watched(account: Account) -> set[str]:
    """Symbols whose market events can change this account."""
    out = {o.symbol for o in account.orders.values()}
    out |= {a.symbol for a in account.algos.values()}
    if account.fee_burn and account.bnb and BNB_SYMBOL in account.specs:
        out.add(BNB_SYMBOL)  # fees are counted at its mark
    return out | {p.symbol for p in account.positions.values() if p.qty}
