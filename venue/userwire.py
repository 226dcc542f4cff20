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
MONEY_TYPES = {  # of ACCOUNT_UPDATE's reasons, in the ledger
    "DEPOSIT": "deposit",
    "WITHDRAW": "withdraw",
    "MARGIN_TRANSFER": "margin_transfer",
    "FUNDING_FEE": "funding",
    "INSURANCE_CLEAR": "insurance",
}


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
        body |= {"n": fixed(trade.fee, 8), "N": trade.fee_asset}
    body |= {
        "T": event.ms,
        "t": trade.id if trade else 0,
        "b": "0",
        "a": "0",
        "m": trade.maker if trade else False,
        "R": o.reduce_only,
        "wt": o.working,
        "ot": o.orig_type,
        "ps": o.position_side,
        "cp": o.close_position,
        "rp": plain(trade.realised) if trade else "0",
        "pP": False,
        "si": 0,
        "ss": 0,
        "V": o.stp,
        "pm": o.price_match,
        "gtd": o.good_till_ms,
        "er": str(o.expire_reason),
    }
    if event.modify_id:
        body["M"] = event.modify_id
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
        "ps": p.side,
        "ma": "USDT",
        "bep": plain(p.break_even.quantize(Decimal("1e-10"))),
    }


def _balance_row(asset: str, wallet: Decimal, crossed: Decimal, change: Decimal) -> Json:
    return {
        "a": asset,
        "wb": fixed(wallet, 8),
        "cw": fixed(crossed, 8),
        "bc": plain(change),
    }


def account_update(ms: int, reason: str, balances: list[Json], rows: list[Json]) -> Json:
    return {
        "e": "ACCOUNT_UPDATE",
        "T": ms,
        "E": ms,
        "a": {"B": balances, "P": rows, "m": reason},
    }


def _fill_balances(event: OrderEvent) -> list[Json]:
    """USDT, and BNB when it paid the fee. USDT stands there even if the fee alone has changed."""
    out = [_balance_row("USDT", event.wallet, event.wallet - event.aside, ZERO)]
    if event.trade is not None and event.trade.fee_asset == "BNB":
        out.append(_balance_row("BNB", event.bnb, event.bnb, ZERO))
    return out


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
        "ps": a.position_side,
        "f": a.tif,
        "q": plain(a.qty),
        "X": a.status,
        "ai": str(a.order_id) if a.order_id else "",
        "tp": plain(a.trigger),
        "p": plain(a.price),
        "V": a.stp,
        "wt": a.working,
        "pm": a.price_match,
        "cp": a.close_position,
        "pP": a.price_protect,
        "R": a.reduce_only,
        "tt": a.trigger_ms,
        "gtd": a.good_till_ms,
        "ia": a.active,
    }
    if a.callback_rate:
        body |= {"AP": plain(a.activate), "cr": plain(a.callback_rate)}
    if a.why:
        body["rm"] = a.why
    return {"e": "ALGO_UPDATE", "T": event.ms, "E": event.ms, "o": body}


def user_payloads(event: Event, specs: dict[str, Symbol]) -> list[Json]:
    """What the user stream says of an event, in order; nothing of some."""
    if isinstance(event, OrderEvent):
        if event.trade is None or event.position is None:
            return [order_update(event)]
        row = _position_row(event.position, event.unrealised, event.margin_type)
        lite = trade_lite(event.trade, event.order, specs[event.order.symbol])
        update = account_update(event.ms, "ORDER", _fill_balances(event), [row])
        return [lite, update, order_update(event)]
    if isinstance(event, AlgoEvent):
        return [algo_update(event)]
    if isinstance(event, MoneyEvent):
        rows = []
        if event.position is not None:
            rows = [_position_row(event.position, event.unrealised, "isolated")]
        # margin moves within the wallet: its balance does not change
        change = ZERO if event.reason == "MARGIN_TRANSFER" else event.amount
        crossed = event.wallet - (event.aside if event.asset == "USDT" else ZERO)
        balance = _balance_row(event.asset, event.wallet, crossed, change)
        return [account_update(event.ms, event.reason, [balance], rows)]
    if isinstance(event, ConfigEvent) and event.what == "leverage":
        config = {"s": event.symbol, "l": event.leverage}
        return [{"e": "ACCOUNT_CONFIG_UPDATE", "E": event.ms, "T": event.ms, "ac": config}]
    if isinstance(event, ConfigEvent) and event.what == "margin_type":
        row = _position_row(Position(event.symbol), ZERO, event.margin_type)  # nothing is held
        return [account_update(event.ms, "MARGIN_TYPE_CHANGE", [], [row])]
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
        "positionSide": o.position_side,
        "stopPrice": fixed(o.stop_price, price),
        "workingType": o.working,
        "priceProtect": False,
        "origType": o.orig_type,
        "priceMatch": o.price_match,
        "selfTradePreventionMode": o.stp,
        "goodTillDate": o.good_till_ms,
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
        "positionSide": a.position_side,
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
    row |= {
        "triggerPrice": fixed(a.trigger, price),
        "price": fixed(a.price, price),
        "icebergQuantity": None,
        "selfTradePreventionMode": a.stp,
        "workingType": a.working,
        "priceMatch": a.price_match,
        "closePosition": a.close_position,
        "priceProtect": a.price_protect,
        "reduceOnly": a.reduce_only,
        **_trail(a, price, full),
        "createTime": a.created_ms,
        "updateTime": a.updated_ms,
        "triggerTime": a.trigger_ms,
        "goodTillDate": a.good_till_ms,
    }
    return row


def _trail(a: Algo, digits: int, full: bool) -> Json:
    """Only a reply names them when they are nothing: clients read a number in an answer."""
    activate = fixed(a.activate, digits) if a.activate else ""
    rate = plain(a.callback_rate) if a.callback_rate else ""
    told = {"activatePrice": activate, "callbackRate": rate}
    return {name: text for name, text in told.items() if text or not full}


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
        "commissionAsset": t.fee_asset,
        "time": t.ms,
        "positionSide": t.position_side,
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
            "position_side": o.position_side,
        }
        if o.good_till_ms:
            entry["good_till_ms"] = o.good_till_ms
        return [entry]
    if event.execution == "AMENDMENT":
        return [{"type": "order_amended", **who, "qty": plain(o.qty), "price": plain(o.price)}]
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
                "fee_asset": trade.fee_asset,
                "realised": plain(trade.realised),
                "maker": trade.maker,
                "position_after": plain(event.position.qty),
                "balance_after": plain(event.wallet),
                "position_side": trade.position_side,
            }
        )
        if trade.fee_asset == "BNB":
            out[-1]["bnb_after"] = plain(event.bnb)
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
            "position_side": a.position_side,
        }
        if kind == "algo_triggered":
            entry["order_id"] = a.order_id
        elif kind == "algo_done":
            entry |= {"status": a.status, "why": a.why}
        return [entry]
    if isinstance(event, MoneyEvent):
        entry = {"type": MONEY_TYPES[event.reason]}
        if event.symbol:
            entry |= {"symbol": event.symbol, "position_side": event.position_side}
        entry["asset"] = event.asset
        return [entry | {"amount": plain(event.amount), "balance_after": plain(event.wallet)}]
    if isinstance(event, ConfigEvent):
        value = event.leverage if event.what == "leverage" else event.margin_type
        return [{"type": event.what, "symbol": event.symbol, "value": value}]
    assert isinstance(event, RejectEvent)
    who = {"symbol": event.symbol, "client_id": event.client_id}
    return [{"type": "order_rejected", **who, "code": event.code, "msg": event.msg}]
