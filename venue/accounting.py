"""Signed REST that tells: balances, positions, configuration, trades, income; changes nothing."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

from venue import liquidation, positions
from venue.house import refresh
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
    position_of,
    unrealised,
    withdrawable,
)
from venue.public import number
from venue.rest import SIGNED, Call, Route, Routes
from venue.symbols import Bracket, Symbol, fixed
from venue.userwire import trade_row


def _eight(value: Decimal) -> str:
    return fixed(value.quantize(E8), 8)


def open_positions(call: Call) -> list[Position]:
    """Positions that are not zero, each with the present book before the account."""
    account = call.exchange.account
    out = [p for p in account.positions.values() if p.qty]
    for name in {p.symbol for p in out} | {o.symbol for o in account.orders.values()}:
        refresh(call.exchange, name)
    return out


def adl_light(account: Account, p: Position) -> int:
    """0 to 4: profit in quarters of the margin it was made with; there is nobody to rank among."""
    used = margin(account, p)
    profit = unrealised(account, p)
    return min(int(profit * 4 / used), 4) if used > 0 and profit > 0 else 0


def _risk_v3(account: Account, p: Position) -> dict[str, Any]:
    digits = account.specs[p.symbol].price_digits
    mark = account.books[p.symbol].mark
    isolated = p.symbol in account.isolated
    used = _eight(margin(account, p))
    return {
        "symbol": p.symbol,
        "positionSide": p.side,
        "positionAmt": fixed(p.qty, account.specs[p.symbol].qty_digits),
        "entryPrice": fixed(p.entry, max(digits, 8)),
        "breakEvenPrice": fixed(p.break_even, max(digits, 8)),
        "markPrice": _eight(mark),
        "unRealizedProfit": _eight(unrealised(account, p)),
        "liquidationPrice": _eight(liquidation.price(account, p)) if p.qty else "0",
        "isolatedMargin": _eight(p.isolated + unrealised(account, p)) if isolated else "0",
        "notional": _eight(p.qty * mark),
        "marginAsset": "USDT",
        "isolatedWallet": _eight(p.isolated),
        "initialMargin": used,
        "maintMargin": _eight(maintenance(account, p)),
        "positionInitialMargin": used,
        "openOrderInitialMargin": "0",
        "adl": adl_light(account, p),
        "bidNotional": "0",
        "askNotional": "0",
        "updateTime": p.updated_ms,
    }


def position_risk_v3(call: Call) -> Any:
    symbol = call.params.get("symbol")
    rows = [p for p in open_positions(call) if not symbol or p.symbol == symbol]
    return [_risk_v3(call.exchange.account, p) for p in rows]


def position_risk_v2(call: Call) -> Any:
    """Every symbol, flat ones too, with leverage and margin type as strings.

    One row of BOTH in one-way mode, LONG and SHORT in hedge mode.
    """
    account = call.exchange.account
    for s in _chosen(call):
        refresh(call.exchange, s.name)
    open_positions(call)  # crossed positions stand behind each other
    out = []
    for s, side in [(s, side) for s in _chosen(call) for side in positions.sides(account)]:
        p = position_of(account, s.name, side)
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
                "positionSide": side,
                "notional": row["notional"],
                "isolatedWallet": row["isolatedWallet"],
                "updateTime": p.updated_ms,
            }
        )
    return out


def _cap(s: Symbol, leverage: int) -> str:
    return f"{max(b.cap for b in s.brackets if b.leverage_max >= leverage):f}"


def _totals(call: Call) -> dict[str, str]:
    rows = open_positions(call)
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
        "maxWithdrawAmount": _eight(withdrawable(account)),
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


def _assets(call: Call, totals: dict[str, str]) -> list[dict[str, Any]]:
    """USDT, and BNB once the account has had some: it is no margin, it pays fees."""
    account, now_ms = call.exchange.account, call.now.market_ms
    rows = [_asset(totals, now_ms)]
    if account.bnb_paid_in:
        held, none = _eight(account.bnb), _eight(ZERO)
        full = ("walletBalance", "marginBalance", "crossWalletBalance", "availableBalance")
        row = {key: none if isinstance(value, str) else value for key, value in rows[0].items()}
        row |= dict.fromkeys((*full, "maxWithdrawAmount"), held)
        rows.append(row | {"asset": "BNB"})
    return rows


def account_v3(call: Call) -> Any:
    totals = _totals(call)
    account = call.exchange.account
    rows = []
    for p in open_positions(call):
        row = _risk_v3(account, p)
        rows.append(
            {
                "symbol": p.symbol,
                "positionSide": p.side,
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
    return totals | {"assets": _assets(call, totals), "positions": rows}


def account_v2(call: Call) -> Any:
    totals = _totals(call)
    account = call.exchange.account
    rows = []
    for row in position_risk_v2(call.__class__(call.exchange, call.desk, {}, call.now)):
        p = position_of(account, row["symbol"], row["positionSide"])
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
                "positionSide": row["positionSide"],
                "positionAmt": row["positionAmt"],
                "notional": row["notional"],
                "isolatedWallet": row["isolatedWallet"],
                "updateTime": row["updateTime"],
            }
        )
    flags = {"canTrade": True, "canDeposit": True, "canWithdraw": True, "updateTime": 0}
    head = {
        "feeTier": account.tier,
        "feeBurn": account.fee_burn,
        **flags,
        "multiAssetsMargin": False,
        "tradeGroupId": -1,
    }
    return head | totals | {"assets": _assets(call, totals), "positions": rows}


def balance(call: Call) -> Any:
    return [
        {
            "accountAlias": "venue",
            "asset": row["asset"],
            "balance": row["walletBalance"],
            "crossWalletBalance": row["crossWalletBalance"],
            "crossUnPnl": row["crossUnPnl"],
            "availableBalance": row["availableBalance"],
            "maxWithdrawAmount": row["maxWithdrawAmount"],
            "marginAvailable": True,
            "updateTime": call.now.market_ms,
        }
        for row in _assets(call, _totals(call))
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
        "dualSidePosition": call.exchange.account.dual,
        "updateTime": 0,
        "multiAssetsMargin": False,
        "tradeGroupId": -1,
    }


def _number(value: Decimal) -> float | int:
    """A JSON number; a whole one without a point, as typed clients read it."""
    return int(value) if value == int(value) else float(value)


def _bracket(number_: int, b: Bracket) -> dict[str, Any]:
    return {
        "bracket": number_,
        "initialLeverage": b.leverage_max,
        "notionalCap": _number(b.cap),
        "notionalFloor": _number(b.floor),
        "maintMarginRatio": float(b.mmr),
        "cum": _number(b.cum),
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


def no_symbols(call: Call) -> Any:
    """The other houses list nothing."""
    listing: dict[str, Any] = {"timezone": "UTC", "serverTime": call.now.market_ms}
    return listing | {"rateLimits": [], "exchangeFilters": [], "symbols": []}


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
    # what clients of the whole exchange ask at start; nothing of it is simulated
    ("GET", "/sapi/v1/capital/config/getall"): Route(no, SIGNED),
    ("GET", "/sapi/v1/margin/allPairs"): Route(no, SIGNED),
    ("GET", "/sapi/v1/margin/isolated/allPairs"): Route(no, SIGNED),
    ("GET", "/sapi/v1/system/status"): Route(lambda call: {"status": 0, "msg": "normal"}),
    ("GET", "/api/v3/ping"): Route(lambda call: {}),
    ("GET", "/api/v3/time"): Route(lambda call: {"serverTime": call.now.market_ms}),
    ("GET", "/api/v3/exchangeInfo"): Route(no_symbols),
    ("GET", "/dapi/v1/exchangeInfo"): Route(no_symbols),
}
