"""Signed REST that tells: balances, positions, configuration, trades, income; changes nothing."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

from venue.exchange import refresh
from venue.orders import (
    E8,
    ZERO,
    Account,
    Position,
    available,
    leverage_of,
    maintenance,
    margin,
    order_margin,
    unrealised,
)
from venue.public import number
from venue.rest import SIGNED, Call, Route, Routes
from venue.symbols import Bracket, Symbol, fixed
from venue.userwire import trade_row


def _eight(value: Decimal) -> str:
    return fixed(value.quantize(E8), 8)


def _open(call: Call) -> list[Position]:
    """Positions that are not zero, each with the present book before the account."""
    account = call.exchange.account
    out = [p for p in account.positions.values() if p.qty]
    for name in {p.symbol for p in out} | {o.symbol for o in account.orders.values()}:
        refresh(call.exchange, name)
    return out


def liquidation_price(account: Account, p: Position) -> Decimal:
    """(WB + cum - side * |pos| * entry) / (|pos| * mmr - side * |pos|) of the present bracket."""
    size, side = abs(p.qty), 1 if p.qty > 0 else -1
    mark = account.books[p.symbol].mark
    brackets = account.specs[p.symbol].brackets
    bracket = next((b for b in brackets if size * mark <= b.cap), brackets[-1])
    wallet = p.isolated if p.symbol in account.isolated else account.wallet
    price = (wallet + bracket.cum - p.cost) / (size * bracket.mmr - side * size)
    return max(price, ZERO)


def _risk_v3(account: Account, p: Position) -> dict[str, Any]:
    digits = account.specs[p.symbol].price_digits
    mark = account.books[p.symbol].mark
    isolated = p.symbol in account.isolated
    used = _eight(margin(account, p))
    return {
        "symbol": p.symbol,
        "positionSide": "BOTH",
        "positionAmt": fixed(p.qty, account.specs[p.symbol].qty_digits),
        "entryPrice": fixed(p.entry, max(digits, 8)),
        "breakEvenPrice": fixed(p.break_even, max(digits, 8)),
        "markPrice": _eight(mark),
        "unRealizedProfit": _eight(unrealised(account, p)),
        "liquidationPrice": _eight(liquidation_price(account, p)) if p.qty else "0",
        "isolatedMargin": _eight(p.isolated + unrealised(account, p)) if isolated else "0",
        "notional": _eight(p.qty * mark),
        "marginAsset": "USDT",
        "isolatedWallet": _eight(p.isolated),
        "initialMargin": used,
        "maintMargin": _eight(maintenance(account, p)),
        "positionInitialMargin": used,
        "openOrderInitialMargin": "0",
        "adl": 1,
        "bidNotional": "0",
        "askNotional": "0",
        "updateTime": p.updated_ms,
    }


def position_risk_v3(call: Call) -> Any:
    symbol = call.params.get("symbol")
    rows = [p for p in _open(call) if not symbol or p.symbol == symbol]
    return [_risk_v3(call.exchange.account, p) for p in rows]


def position_risk_v2(call: Call) -> Any:
    """Every symbol, flat ones too, with leverage and margin type as strings."""
    account, symbol = call.exchange.account, call.params.get("symbol")
    out = []
    for s in call.exchange.specs:
        if symbol and s.name != symbol:
            continue
        refresh(call.exchange, s.name)
        p = account.positions.get(s.name) or Position(s.name)
        row = _risk_v3(account, p)
        isolated = s.name in account.isolated
        kept = ("symbol", "positionAmt", "entryPrice", "breakEvenPrice", "markPrice")
        out.append(
            {key: row[key] for key in kept}
            | {
                "unRealizedProfit": row["unRealizedProfit"],
                "liquidationPrice": row["liquidationPrice"],
                "leverage": str(leverage_of(account, s.name)),
                "maxNotionalValue": _cap(s, leverage_of(account, s.name)),
                "marginType": "isolated" if isolated else "cross",
                "isolatedMargin": row["isolatedMargin"],
                "isAutoAddMargin": "false",
                "positionSide": "BOTH",
                "notional": row["notional"],
                "isolatedWallet": row["isolatedWallet"],
                "updateTime": p.updated_ms,
            }
        )
    return out


def _cap(s: Symbol, leverage: int) -> str:
    return f"{max(b.cap for b in s.brackets if b.leverage_max >= leverage):f}"


def _totals(call: Call) -> dict[str, str]:
    rows = _open(call)
    account = call.exchange.account
    profit = sum((unrealised(account, p) for p in rows), ZERO)
    crossed = sum((unrealised(account, p) for p in rows if p.symbol not in account.isolated), ZERO)
    used = sum((margin(account, p) for p in rows), ZERO)
    resting = sum((order_margin(account, o) for o in account.orders.values()), ZERO)
    needed = sum((maintenance(account, p) for p in rows), ZERO)
    aside = sum((p.isolated for p in rows), ZERO)
    return {
        "totalInitialMargin": _eight(used + resting),
        "totalMaintMargin": _eight(needed),
        "totalWalletBalance": _eight(account.wallet),
        "totalUnrealizedProfit": _eight(profit),
        "totalMarginBalance": _eight(account.wallet + profit),
        "totalPositionInitialMargin": _eight(used),
        "totalOpenOrderInitialMargin": _eight(resting),
        "totalCrossWalletBalance": _eight(account.wallet - aside),
        "totalCrossUnPnl": _eight(crossed),
        "availableBalance": _eight(available(account)),
        "maxWithdrawAmount": _eight(available(account)),
    }


def _asset(totals: dict[str, str], now_ms: int) -> dict[str, Any]:
    return {
        "asset": "USDT",
        "walletBalance": totals["totalWalletBalance"],
        "unrealizedProfit": totals["totalUnrealizedProfit"],
        "marginBalance": totals["totalMarginBalance"],
        "maintMargin": totals["totalMaintMargin"],
        "initialMargin": totals["totalInitialMargin"],
        "positionInitialMargin": totals["totalPositionInitialMargin"],
        "openOrderInitialMargin": totals["totalOpenOrderInitialMargin"],
        "crossWalletBalance": totals["totalCrossWalletBalance"],
        "crossUnPnl": totals["totalCrossUnPnl"],
        "availableBalance": totals["availableBalance"],
        "maxWithdrawAmount": totals["maxWithdrawAmount"],
        "marginAvailable": True,
        "updateTime": now_ms,
    }


def account_v3(call: Call) -> Any:
    totals = _totals(call)
    account = call.exchange.account
    rows = []
    for p in _open(call):
        row = _risk_v3(account, p)
        rows.append(
            {
                "symbol": p.symbol,
                "positionSide": "BOTH",
                "positionAmt": row["positionAmt"],
                "unrealizedProfit": row["unRealizedProfit"],
                "isolatedMargin": row["isolatedMargin"],
                "notional": row["notional"],
                "isolatedWallet": row["isolatedWallet"],
                "initialMargin": row["initialMargin"],
                "maintMargin": row["maintMargin"],
                "updateTime": p.updated_ms,
            }
        )
    return totals | {"assets": [_asset(totals, call.now.market_ms)], "positions": rows}


def account_v2(call: Call) -> Any:
    totals = _totals(call)
    account = call.exchange.account
    rows = []
    for row in position_risk_v2(call.__class__(call.exchange, call.desk, {}, call.now)):
        p = account.positions.get(row["symbol"]) or Position(row["symbol"])
        used = _eight(margin(account, p))
        rows.append(
            {
                "symbol": row["symbol"],
                "initialMargin": used,
                "maintMargin": _eight(maintenance(account, p)),
                "unrealizedProfit": row["unRealizedProfit"],
                "positionInitialMargin": used,
                "openOrderInitialMargin": "0",
                "leverage": row["leverage"],
                "isolated": row["marginType"] == "isolated",
                "entryPrice": row["entryPrice"],
                "breakEvenPrice": row["breakEvenPrice"],
                "maxNotional": row["maxNotionalValue"],
                "bidNotional": "0",
                "askNotional": "0",
                "positionSide": "BOTH",
                "positionAmt": row["positionAmt"],
                "notional": row["notional"],
                "isolatedWallet": row["isolatedWallet"],
                "updateTime": row["updateTime"],
            }
        )
    flags = {"canTrade": True, "canDeposit": True, "canWithdraw": True, "updateTime": 0}
    head = {"feeTier": account.tier, "feeBurn": False, **flags, "multiAssetsMargin": False}
    return head | totals | {"assets": [_asset(totals, call.now.market_ms)], "positions": rows}


def balance(call: Call) -> Any:
    totals = _totals(call)
    return [
        {
            "accountAlias": "venue",
            "asset": "USDT",
            "balance": totals["totalWalletBalance"],
            "crossWalletBalance": totals["totalCrossWalletBalance"],
            "crossUnPnl": totals["totalCrossUnPnl"],
            "availableBalance": totals["availableBalance"],
            "maxWithdrawAmount": totals["maxWithdrawAmount"],
            "marginAvailable": True,
            "updateTime": call.now.market_ms,
        }
    ]


def _chosen(call: Call) -> list[Symbol]:
    symbol = call.params.get("symbol")
    return [s for s in call.exchange.specs if not symbol or s.name == symbol]


def symbol_config(call: Call) -> Any:
    account = call.exchange.account
    return [
        {
            "symbol": s.name,
            "marginType": "ISOLATED" if s.name in account.isolated else "CROSSED",
            "isAutoAddMargin": False,
            "leverage": leverage_of(account, s.name),
            "maxNotionalValue": _cap(s, leverage_of(account, s.name)),
        }
        for s in _chosen(call)
    ]


def account_config(call: Call) -> Any:
    return {
        "feeTier": call.exchange.account.tier,
        "canTrade": True,
        "canDeposit": True,
        "canWithdraw": True,
        "dualSidePosition": False,
        "updateTime": 0,
        "multiAssetsMargin": False,
        "tradeGroupId": -1,
    }


def _bracket(number_: int, b: Bracket) -> dict[str, Any]:
    return {
        "bracket": number_,
        "initialLeverage": b.leverage_max,
        "notionalCap": float(b.cap),
        "notionalFloor": float(b.floor),
        "maintMarginRatio": float(b.mmr),
        "cum": float(b.cum),
    }


def leverage_bracket(call: Call) -> Any:
    rows = [
        {
            "symbol": s.name,
            "notionalCoef": 1.0,
            "brackets": [_bracket(k, b) for k, b in enumerate(s.brackets, 1)],
        }
        for s in _chosen(call)
    ]
    return rows[0] if call.params.get("symbol") else rows


def commission_rate(call: Call) -> Any:
    account = call.exchange.account
    return {
        "symbol": call.params.get("symbol", ""),
        "makerCommissionRate": fixed(account.maker_rate, 6),
        "takerCommissionRate": fixed(account.taker_rate, 6),
        "rpiCommissionRate": fixed(account.maker_rate, 6),
    }


def _window(call: Call, rows: list[Any], ms: Any, first: str, key: Any) -> list[Any]:
    """startTime, endTime, an id to start from, limit: the same on every list."""
    least = number(call.params, first)
    start, end = number(call.params, "startTime"), number(call.params, "endTime")
    kept = [
        row
        for row in rows
        if (least is None or key(row) >= least)
        and (start is None or ms(row) >= start)
        and (end is None or ms(row) <= end)
    ]
    limit = min(number(call.params, "limit") or 500, 1000)
    return kept[:limit] if least is not None or start is not None else kept[-limit:]


def user_trades(call: Call) -> Any:
    account, symbol = call.exchange.account, call.params.get("symbol")
    order_id = number(call.params, "orderId")
    rows = [
        t
        for t in account.trades
        if (not symbol or t.symbol == symbol) and (order_id is None or t.order_id == order_id)
    ]
    rows = _window(call, rows, lambda t: t.ms, "fromId", lambda t: t.id)
    return [trade_row(t, account.specs[t.symbol]) for t in rows]


def income(call: Call) -> Any:
    kind, symbol = call.params.get("incomeType"), call.params.get("symbol")
    rows = [
        row
        for row in call.exchange.account.income
        if (not kind or row["incomeType"] == kind) and (not symbol or row["symbol"] == symbol)
    ]
    return _window(call, rows, lambda r: r["time"], "fromId", lambda r: r["tranId"])


def no(call: Call) -> Any:
    return []


_V1, _V2, _V3 = "/fapi/v1/", "/fapi/v2/", "/fapi/v3/"
ROUTES: Routes = {
    ("GET", _V2 + "account"): Route(account_v2, SIGNED, 5),
    ("GET", _V3 + "account"): Route(account_v3, SIGNED, 5),
    ("GET", _V2 + "balance"): Route(balance, SIGNED, 5),
    ("GET", _V3 + "balance"): Route(balance, SIGNED, 5),
    ("GET", _V2 + "positionRisk"): Route(position_risk_v2, SIGNED, 5),
    ("GET", _V3 + "positionRisk"): Route(position_risk_v3, SIGNED, 5),
    ("GET", _V1 + "symbolConfig"): Route(symbol_config, SIGNED, 5),
    ("GET", _V1 + "accountConfig"): Route(account_config, SIGNED, 5),
    ("GET", _V1 + "leverageBracket"): Route(leverage_bracket, SIGNED),
    ("GET", _V1 + "commissionRate"): Route(commission_rate, SIGNED, 20),
    ("GET", _V1 + "userTrades"): Route(user_trades, SIGNED, 5),
    ("GET", _V1 + "income"): Route(income, SIGNED, 30),
    ("GET", _V1 + "multiAssetsMargin"): Route(
        lambda call: {"multiAssetsMargin": False}, SIGNED, 30
    ),
    ("GET", _V1 + "feeBurn"): Route(lambda call: {"feeBurn": False}, SIGNED, 30),
    # what clients of the whole exchange ask at start; nothing of it is simulated
    ("GET", "/sapi/v1/capital/config/getall"): Route(no, SIGNED),
    ("GET", "/sapi/v1/margin/allPairs"): Route(no, SIGNED),
}
