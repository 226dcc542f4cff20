"""REST that tells how an account stands with the exchange: limits, liquidations, ratios, ledger.

Computed from the account's orders and positions; nothing here changes them. The ratios of
apiTradingStatus are over the closed orders that the account still knows.
"""

from __future__ import annotations

from typing import Any

from venue.accounting import adl_light, open_positions
from venue.orders import BOTH, LONG, SHORT, Account, Order, held_of
from venue.public import RATE_LIMITS, number
from venue.rest import SIGNED, Call, Route, Routes
from venue.userwire import order_row

LIQUIDATIONS, LIQUIDATIONS_MAX = 50, 100
CLOSE_TYPES = {"LIQUIDATION": "autoclose-", "ADL": "adl_autoclose"}  # by the exchange's client ids
LEDGER_LIMIT = 10_000  # entries of one answer
TRIGGERS = {"UFR": 0.995, "IFER": 0.99, "GCR": 0.99, "DR": 0.99}  # what locks an account there


def rate_limits(call: Call) -> Any:
    return [limit for limit in reversed(RATE_LIMITS) if limit["rateLimitType"] == "ORDERS"]


def adl_quantile(call: Call) -> Any:
    """The light of positionRisk under its side; a crossed pair has one light under both."""
    account, symbol = call.exchange.account, call.params.get("symbol")
    out: dict[str, dict[str, int]] = {}
    for p in open_positions(call):
        if symbol and p.symbol != symbol:
            continue
        lights = out.setdefault(p.symbol, {LONG: 0, SHORT: 0, BOTH: 0})
        lights[p.side] = adl_light(account, p)
    for name, lights in out.items():
        if len(held_of(account, name)) == 2 and name not in account.isolated:
            both = max(lights[LONG], lights[SHORT])
            out[name] = {LONG: both, SHORT: both, "HEDGE": 0}
    return [{"symbol": name, "adlQuantile": lights} for name, lights in out.items()]


def force_orders(call: Call) -> Any:
    """Own liquidations and deleveragings, newest last; `autoCloseType` chooses."""
    account, symbol = call.exchange.account, call.params.get("symbol")
    wanted = CLOSE_TYPES.get(call.params.get("autoCloseType", ""), "")
    start, end = number(call.params, "startTime"), number(call.params, "endTime")
    found = [
        o
        for o in account.closed.values()
        if o.type == "LIQUIDATION"
        and o.client_id.startswith(wanted)
        and (not symbol or o.symbol == symbol)
        and (start is None or o.created_ms >= start)
        and (end is None or o.created_ms <= end)
    ]
    limit = min(number(call.params, "limit") or LIQUIDATIONS, LIQUIDATIONS_MAX)
    return [_forced(account, o) for o in found[-limit:]]


def _forced(account: Account, order: Order) -> dict[str, Any]:
    row = order_row(order, account.specs[order.symbol], True)
    for name in ("priceProtect", "priceMatch", "selfTradePreventionMode", "goodTillDate"):
        del row[name]
    return row | {"type": "LIMIT", "origType": "LIMIT"}


def _share(some: list[Order], of: list[Order]) -> float:
    return round(len(some) / len(of), 4) if of else 0.0


def ratios(account: Account, orders: list[Order]) -> dict[str, float]:
    """Unfilled, expired IOC and FOK, canceled GTC, dust: each over the orders it speaks of."""
    limits = [o for o in orders if o.type == "LIMIT"]
    instant = [o for o in limits if o.tif in ("IOC", "FOK")]
    lasting = [o for o in limits if o.tif == "GTC"]
    least = {o.symbol: account.specs[o.symbol].min_notional for o in orders}
    return {
        "UFR": _share([o for o in limits if not o.executed], limits),
        "IFER": _share([o for o in instant if not o.executed], instant),
        "GCR": _share([o for o in lasting if o.status == "CANCELED"], lasting),
        "DR": _share([o for o in limits if o.qty * o.price < least[o.symbol]], limits),
    }


def trading_status(call: Call) -> Any:
    """Every symbol that was traded, or the one asked for. Nobody is locked on this exchange."""
    account, symbol = call.exchange.account, call.params.get("symbol")
    closed = list(account.closed.values())
    out = {}
    for name in [symbol] if symbol else sorted({o.symbol for o in closed}):
        values = ratios(account, [o for o in closed if o.symbol == name])
        out[name] = [
            {
                "isLocked": False,
                "plannedRecoverTime": 0,
                "indicator": indicator,
                "value": value,
                "triggerValue": TRIGGERS[indicator],
            }
            for indicator, value in values.items()
        ]
    return {"indicators": out, "updateTime": call.now.market_ms}


def ledger(call: Call) -> Any:
    """/venue/v1/ledger: kept entries from `from_seq` on; the file has all of them."""
    first = number(call.params, "from_seq") or 0
    limit = min(number(call.params, "limit") or 1000, LEDGER_LIMIT)
    kept = call.exchange.ledger
    skip = max(0, first - kept[0]["seq"]) if kept else 0
    return {"events": [kept[k] for k in range(skip, min(len(kept), skip + limit))]}


_V1 = "/fapi/v1/"
ROUTES: Routes = {
    ("GET", _V1 + "rateLimit/order"): Route(rate_limits, SIGNED),
    ("GET", _V1 + "adlQuantile"): Route(adl_quantile, SIGNED, 5),
    ("GET", _V1 + "forceOrders"): Route(force_orders, SIGNED, 20, weight_all=50),
    ("GET", _V1 + "apiTradingStatus"): Route(trading_status, SIGNED, 1, weight_all=10),
    ("GET", "/venue/v1/ledger"): Route(ledger, weight=0),
}
