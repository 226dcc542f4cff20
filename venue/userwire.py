"""What an account's events look like: user-stream payloads, REST rows, ledger entries.

Pure: one event in, dictionaries in wire key order out. A fill is told three times in the order in
which the exchange was seen to tell it: TRADE_LITE, ACCOUNT_UPDATE, ORDER_TRADE_UPDATE.
"""

from __future__ import annotations

from decimal import Decimal
from typing import Any

from venue.orders import (
    ZERO,
    Algo,
    AlgoEvent,
    ConfigEvent,
    Event,
    MoneyEvent,
    Order,
    OrderEvent,
    Position,
    RejectEvent,
    Trade,
)
from venue.symbols import Symbol, fixed, plain

Json = dict[str, Any]


def _mean(order: Order) -> Decimal:
    return order.quote / order.executed if order.executed else ZERO


def _mean_text(order: Order, digits: int) -> str:
    return (
        plain(_mean(order).quantize(Decimal(1).scaleb(-max(8, digits)))) if order.executed else "0"
    )


def order_update(event: OrderEvent) -> Json:
    o, trade = event.order, event.trade
    body: Json = {
        "s": o.symbol,
        "c": o.client_id,
        "S": o.side,
        "o": o.type,
        "f": o.tif,
        "q": plain(o.qty),
        "p": plain(o.price),
        "ap": _mean_text(o, 8),
        "sp": plain(o.stop_price),
        "x": event.execution,
        "X": o.status,
        "i": o.id,
        "l": plain(trade.qty) if trade else "0",
        "z": plain(o.executed),
        "L": plain(trade.price) if trade else "0",
    }
    if trade:
        body |= {"n": fixed(trade.fee, 8), "N": "USDT"}
    body |= {
        "T": event.ms,
        "t": trade.id if trade else 0,
        "b": "0",
        "a": "0",
        "m": trade.maker if trade else False,
        "R": o.reduce_only,
        "wt": o.working,
        "ot": o.orig_type,
        "ps": "BOTH",
        "cp": o.close_position,
        "rp": plain(trade.realised) if trade else "0",
        "pP": False,
        "si": 0,
        "ss": 0,
        "V": o.stp or "EXPIRE_MAKER",
        "pm": "NONE",
        "gtd": 0,
        "er": str(o.expire_reason),
    }
    return {"e": "ORDER_TRADE_UPDATE", "T": event.ms, "E": event.ms, "o": body}


def _position_row(p: Position, unrealised: Decimal, margin_type: str) -> Json:
    return {
        "s": p.symbol,
        "pa": plain(p.qty),
        "ep": plain(p.entry.quantize(Decimal("1e-10"))),
        "cr": plain(p.realised),
        "up": plain(unrealised),
        "mt": margin_type,
        "iw": plain(p.isolated),
        "ps": "BOTH",
        "ma": "USDT",
        "bep": plain(p.break_even.quantize(Decimal("1e-10"))),
    }


def account_update(
    ms: int, reason: str, wallet: Decimal, change: Decimal, rows: list[Json], aside: Decimal
) -> Json:
    balance = {
        "a": "USDT",
        "wb": fixed(wallet, 8),
        "cw": fixed(wallet - aside, 8),
        "bc": plain(change),
    }
    return {
        "e": "ACCOUNT_UPDATE",
        "T": ms,
        "E": ms,
        "a": {"B": [balance], "P": rows, "m": reason},
    }


def trade_lite(trade: Trade, order: Order, spec: Symbol) -> Json:
    return {
        "e": "TRADE_LITE",
        "E": trade.ms,
        "T": trade.ms,
        "s": trade.symbol,
        "q": fixed(order.qty, spec.qty_digits),
        "p": fixed(order.price, spec.price_digits),
        "m": trade.maker,
        "c": trade.client_id,
        "S": trade.side,
        "L": fixed(trade.price, spec.price_digits),
        "l": fixed(trade.qty, spec.qty_digits),
        "t": trade.id,
        "i": trade.order_id,
    }


def algo_update(event: AlgoEvent) -> Json:
    a = event.algo
    body: Json = {
        "caid": a.client_id,
        "aid": a.id,
        "at": "CONDITIONAL",
        "o": a.type,
        "s": a.symbol,
        "S": a.side,
        "ps": "BOTH",
        "f": a.tif,
        "q": plain(a.qty),
        "X": a.status,
        "ai": str(a.order_id) if a.order_id else "",
        "tp": plain(a.trigger),
        "p": plain(a.price),
        "V": "EXPIRE_MAKER",
        "wt": a.working,
        "pm": "NONE",
        "cp": a.close_position,
        "pP": a.price_protect,
        "R": a.reduce_only,
        "tt": a.trigger_ms,
        "gtd": 0,
        "ia": False,
    }
    if a.why:
        body["rm"] = a.why
    return {"e": "ALGO_UPDATE", "T": event.ms, "E": event.ms, "o": body}


def user_payloads(event: Event, specs: dict[str, Symbol], aside: Decimal) -> list[Json]:
    """`aside`: isolated margin over all positions, which the crossed wallet excludes."""
    if isinstance(event, OrderEvent):
        if event.trade is None or event.position is None:
            return [order_update(event)]
        row = _position_row(event.position, event.unrealised, event.margin_type)
        lite = trade_lite(event.trade, event.order, specs[event.order.symbol])
        update = account_update(event.ms, "ORDER", event.wallet, ZERO, [row], aside)
        return [lite, update, order_update(event)]
    if isinstance(event, AlgoEvent):
        return [algo_update(event)]
    if isinstance(event, MoneyEvent):
        rows = []
        if event.position is not None:
            rows = [_position_row(event.position, event.unrealised, "isolated")]
        return [account_update(event.ms, event.reason, event.wallet, event.amount, rows, aside)]
    if isinstance(event, ConfigEvent) and event.what == "leverage":
        change = {"s": event.symbol, "l": event.leverage}
        return [{"e": "ACCOUNT_CONFIG_UPDATE", "E": event.ms, "T": event.ms, "ac": change}]
    return []


def order_row(o: Order, spec: Symbol, full: bool) -> Json:
    """REST shape of an order; `full` (queries) has avgPrice, cumQuote and time, replies do not."""
    price, qty = spec.price_digits, spec.qty_digits
    row: Json = {
        "orderId": o.id,
        "symbol": o.symbol,
        "status": o.status,
        "clientOrderId": o.client_id,
        "price": fixed(o.price, price),
    }
    if full:
        row["avgPrice"] = fixed(_mean(o), max(price, 5))
    row |= {"origQty": fixed(o.qty, qty), "executedQty": fixed(o.executed, qty)}
    row |= {"cumQuote": fixed(o.quote, 8)} if full else {"cumQty": fixed(o.executed, qty)}
    row |= {
        "timeInForce": o.tif,
        "type": o.type,
        "reduceOnly": o.reduce_only,
        "closePosition": o.close_position,
        "side": o.side,
        "positionSide": "BOTH",
        "stopPrice": fixed(o.stop_price, price),
        "workingType": o.working,
        "priceProtect": False,
        "origType": o.orig_type,
        "priceMatch": "NONE",
        "selfTradePreventionMode": o.stp or "EXPIRE_MAKER",
        "goodTillDate": 0,
    }
    if full:
        row["time"] = o.created_ms
    row["updateTime"] = o.updated_ms
    return row


def algo_row(a: Algo, spec: Symbol, actual: Order | None, full: bool) -> Json:
    price, qty = spec.price_digits, spec.qty_digits
    row: Json = {
        "algoId": a.id,
        "clientAlgoId": a.client_id,
        "algoType": "CONDITIONAL",
        "orderType": a.type,
        "symbol": a.symbol,
        "side": a.side,
        "positionSide": "BOTH",
        "timeInForce": a.tif,
        "quantity": fixed(a.qty, qty),
        "algoStatus": a.status,
    }
    if full:
        row |= {
            "actualOrderId": str(a.order_id) if a.order_id else "",
            "actualPrice": _mean_text(actual, price) if actual else "0",
        }
        if actual:
            row |= {"actualType": actual.type, "actualQty": fixed(actual.executed, qty)}
    return row | {
        "triggerPrice": fixed(a.trigger, price),
        "price": fixed(a.price, price),
        "icebergQuantity": None,
        "selfTradePreventionMode": "EXPIRE_MAKER",
        "workingType": a.working,
        "priceMatch": "NONE",
        "closePosition": a.close_position,
        "priceProtect": a.price_protect,
        "reduceOnly": a.reduce_only,
        "activatePrice": "",
        "callbackRate": "",
        "createTime": a.created_ms,
        "updateTime": a.updated_ms,
        "triggerTime": a.trigger_ms,
        "goodTillDate": 0,
    }


def trade_row(t: Trade, spec: Symbol) -> Json:
    return {
        "symbol": t.symbol,
        "id": t.id,
        "orderId": t.order_id,
        "side": t.side,
        "price": fixed(t.price, spec.price_digits),
        "qty": fixed(t.qty, spec.qty_digits),
        "realizedPnl": fixed(t.realised, 8),
        "quoteQty": plain(t.price * t.qty),
        "commission": fixed(t.fee, 8),
        "commissionAsset": "USDT",
        "time": t.ms,
        "positionSide": "BOTH",
        "maker": t.maker,
        "buyer": t.side == "BUY",
        "baseQty": "0",
        "pair": t.symbol,
        "marginAsset": "USDT",
    }


def _order_entries(event: OrderEvent) -> list[Json]:
    o, trade = event.order, event.trade
    who = {"symbol": o.symbol, "client_id": o.client_id, "order_id": o.id}
    if event.execution == "NEW":
        entry = {
            "type": "order_new",
            **who,
            "side": o.side,
            "order_type": o.type,
            "tif": o.tif,
            "qty": plain(o.qty),
            "price": plain(o.price),
            "reduce_only": o.reduce_only,
            "close_position": o.close_position,
            "algo": o.algo_id,
        }
        return [entry]
    out: list[Json] = []
    if trade is not None and event.position is not None:
        out.append(
            {
                "type": "trade",
                **who,
                "trade_id": trade.id,
                "side": trade.side,
                "price": plain(trade.price),
                "qty": plain(trade.qty),
                "fee": plain(trade.fee),
                "fee_asset": "USDT",
                "realised": plain(trade.realised),
                "maker": trade.maker,
                "position_after": plain(event.position.qty),
                "balance_after": plain(event.wallet),
            }
        )
    if o.status not in ("NEW", "PARTIALLY_FILLED"):
        done = {"type": "order_done", **who, "status": o.status, "executed_qty": plain(o.executed)}
        out.append(done)
    return out


def ledger_entries(event: Event) -> list[Json]:
    """What the venue's ledger says of an event; seq and times are added by the writer."""
    if isinstance(event, OrderEvent):
        return _order_entries(event)
    if isinstance(event, AlgoEvent):
        a = event.algo
        kind = {"NEW": "algo_new", "TRIGGERED": "algo_triggered"}.get(a.status, "algo_done")
        if a.status == "TRIGGERING":
            return []
        entry: Json = {
            "type": kind,
            "symbol": a.symbol,
            "client_id": a.client_id,
            "algo_id": a.id,
            "side": a.side,
            "order_type": a.type,
            "trigger": plain(a.trigger),
            "close_position": a.close_position,
        }
        if kind == "algo_triggered":
            entry["order_id"] = a.order_id
        elif kind == "algo_done":
            entry |= {"status": a.status, "why": a.why}
        return [entry]
    if isinstance(event, MoneyEvent):
        if event.reason == "DEPOSIT":
            entry = {"type": "deposit", "asset": "USDT"}
        else:
            entry = {"type": "funding", "symbol": event.symbol, "asset": "USDT"}
        return [entry | {"amount": plain(event.amount), "balance_after": plain(event.wallet)}]
    if isinstance(event, ConfigEvent):
        value = event.leverage if event.what == "leverage" else event.margin_type
        return [{"type": event.what, "symbol": event.symbol, "value": value}]
    assert isinstance(event, RejectEvent)
    who = {"symbol": event.symbol, "client_id": event.client_id}
    return [{"type": "order_rejected", **who, "code": event.code, "msg": event.msg}]
