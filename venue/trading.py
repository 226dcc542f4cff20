"""Signed REST that trades: orders, conditional orders, cancels, queries, the listen key."""

from __future__ import annotations

import secrets
from typing import Any

from venue import matching
from venue.checks import mandatory, parse
from venue.exchange import refresh, tell
from venue.orders import Algo, Order, Refusal
from venue.public import number
from venue.rest import KEY, LISTEN_KEY_MS, SIGNED, Call, Route, Routes
from venue.userwire import algo_row, order_row

UNKNOWN_ORDER = Refusal(-2011, "Unknown order sent.")
NO_SUCH_ORDER = Refusal(-2013, "Order does not exist.")
NO_LISTEN_KEY = Refusal(-1125, "This listenKey does not exist.")
ALL_CANCELED = {"code": 200, "msg": "The operation of cancel all open order is done."}


def _order(call: Call, order: Order, full: bool) -> dict[str, Any]:
    return order_row(order, call.exchange.account.specs[order.symbol], full)


def _algo(call: Call, algo: Algo, full: bool) -> dict[str, Any]:
    account = call.exchange.account
    actual = None
    if algo.order_id:
        actual = matching.find(account, algo.symbol, algo.order_id, "")
    return algo_row(algo, account.specs[algo.symbol], actual, full)


def place_order(call: Call) -> Any:
    request = parse(call.params, "newClientOrderId")
    if isinstance(request, Refusal):
        return request
    refresh(call.exchange, request.symbol)
    order, events = matching.place(call.exchange.account, request, call.now.market_ms)
    tell(call.exchange, events)
    return order if isinstance(order, Refusal) else _order(call, order, False)


def _find(call: Call) -> Order | Refusal | None:
    """The order that the parameters name; None when there is none."""
    symbol = call.params.get("symbol")
    if not symbol:
        return mandatory("symbol")
    order_id = number(call.params, "orderId") or 0
    client_id = call.params.get("origClientOrderId", "")
    if not order_id and not client_id:
        return Refusal(
            -1102, "Param 'origClientOrderId' or 'orderId' must be sent, but both were empty/null!"
        )
    return matching.find(call.exchange.account, symbol, order_id, client_id)


def query_order(call: Call) -> Any:
    order = _find(call)
    if order is None:
        return NO_SUCH_ORDER
    return order if isinstance(order, Refusal) else _order(call, order, True)


def query_open_order(call: Call) -> Any:
    order = _find(call)
    if isinstance(order, Refusal):
        return order
    if order is None or order.id not in call.exchange.account.orders:
        return NO_SUCH_ORDER
    return _order(call, order, True)


def cancel_order(call: Call) -> Any:
    order = _find(call)
    if isinstance(order, Refusal):
        return order
    if order is None or order.id not in call.exchange.account.orders:
        return UNKNOWN_ORDER
    tell(call.exchange, matching.cancel(call.exchange.account, order, call.now.market_ms))
    return _order(call, order, False)


def cancel_all(call: Call) -> Any:
    symbol = call.params.get("symbol")
    if not symbol:
        return mandatory("symbol")
    for order in [o for o in call.exchange.account.orders.values() if o.symbol == symbol]:
        tell(call.exchange, matching.cancel(call.exchange.account, order, call.now.market_ms))
    return ALL_CANCELED


def _of_symbol(call: Call, items: list[Any]) -> list[Any]:
    symbol = call.params.get("symbol")
    return [item for item in items if not symbol or item.symbol == symbol]


def open_orders(call: Call) -> Any:
    orders = _of_symbol(call, list(call.exchange.account.orders.values()))
    return [_order(call, o, True) for o in orders]


def all_orders(call: Call) -> Any:
    account = call.exchange.account
    if not call.params.get("symbol"):
        return mandatory("symbol")
    orders = _of_symbol(call, [*account.closed.values(), *account.orders.values()])
    first = number(call.params, "orderId")
    start, end = number(call.params, "startTime"), number(call.params, "endTime")
    orders = [
        o
        for o in sorted(orders, key=lambda o: o.id)
        if (first is None or o.id >= first)
        and (start is None or o.created_ms >= start)
        and (end is None or o.created_ms <= end)
    ]
    limit = min(number(call.params, "limit") or 500, 1000)
    chosen = orders[:limit] if first is not None else orders[-limit:]
    return [_order(call, o, True) for o in chosen]


def place_algo(call: Call) -> Any:
    if call.params.get("algoType") != "CONDITIONAL":
        return mandatory("algoType")
    request = parse(call.params, "clientAlgoId")
    if isinstance(request, Refusal):
        return request
    refresh(call.exchange, request.symbol)
    algo, events = matching.place_algo(call.exchange.account, request, call.now.market_ms)
    tell(call.exchange, events)
    return algo if isinstance(algo, Refusal) else _algo(call, algo, False)


def _find_algo(call: Call, groups: list[dict[int, Algo]]) -> Algo | Refusal | None:
    algo_id = number(call.params, "algoId") or 0
    client_id = call.params.get("clientAlgoId", "")
    if not algo_id and not client_id:
        return Refusal(
            -1102, "Param 'clientAlgoId' or 'algoId' must be sent, but both were empty/null!"
        )
    for group in groups:
        if algo_id and algo_id in group:
            return group[algo_id]
        for algo in reversed(group.values()):
            if client_id and algo.client_id == client_id:
                return algo
    return None


def query_algo(call: Call) -> Any:
    account = call.exchange.account
    algo = _find_algo(call, [account.algos, account.closed_algos])
    if algo is None:
        return NO_SUCH_ORDER
    return algo if isinstance(algo, Refusal) else _algo(call, algo, True)


def cancel_algo(call: Call) -> Any:
    algo = _find_algo(call, [call.exchange.account.algos])
    if isinstance(algo, Refusal):
        return algo
    if algo is None or algo.status != "NEW":
        return UNKNOWN_ORDER
    tell(call.exchange, matching.cancel_algo(call.exchange.account, algo, call.now.market_ms))
    return {"algoId": algo.id, "clientAlgoId": algo.client_id, "code": "200", "msg": "success"}


def cancel_algos(call: Call) -> Any:
    if not call.params.get("symbol"):
        return mandatory("symbol")
    for algo in _of_symbol(call, list(call.exchange.account.algos.values())):
        if algo.status == "NEW":
            events = matching.cancel_algo(call.exchange.account, algo, call.now.market_ms)
            tell(call.exchange, events)
    return ALL_CANCELED


def open_algos(call: Call) -> Any:
    algos = _of_symbol(call, list(call.exchange.account.algos.values()))
    return [_algo(call, a, True) for a in algos]


def all_algos(call: Call) -> Any:
    if not call.params.get("symbol"):
        return mandatory("symbol")
    account = call.exchange.account
    algos = _of_symbol(call, [*account.closed_algos.values(), *account.algos.values()])
    limit = min(number(call.params, "limit") or 500, 1000)
    return [_algo(call, a, True) for a in sorted(algos, key=lambda a: a.id)[-limit:]]


def set_leverage(call: Call) -> Any:
    symbol, leverage = call.params.get("symbol"), number(call.params, "leverage")
    if not symbol:
        return mandatory("symbol")
    if leverage is None:
        return mandatory("leverage")
    account = call.exchange.account
    done = matching.set_leverage(account, symbol, leverage, call.now.market_ms)
    if isinstance(done, Refusal):
        return done
    tell(call.exchange, done)
    cap = max(b.cap for b in account.specs[symbol].brackets if b.leverage_max >= leverage)
    return {"leverage": leverage, "maxNotionalValue": f"{cap:f}", "symbol": symbol}


def set_margin_type(call: Call) -> Any:
    symbol, kind = call.params.get("symbol"), call.params.get("marginType")
    if not symbol:
        return mandatory("symbol")
    if kind not in ("ISOLATED", "CROSSED"):
        return Refusal(-4043, "Invalid margin type.")
    account = call.exchange.account
    done = matching.set_margin_type(account, symbol, kind == "ISOLATED", call.now.market_ms)
    if isinstance(done, Refusal):
        return done
    tell(call.exchange, done)
    return {"code": 200, "msg": "success"}


def get_mode(call: Call) -> Any:
    return {"dualSidePosition": False}


def set_mode(call: Call) -> Any:
    """One-way only; hedge mode is refused rather than half played."""
    wanted = call.params.get("dualSidePosition", "").lower()
    if wanted == "false":
        return Refusal(-4059, "No need to change position side.")
    if wanted != "true":
        return mandatory("dualSidePosition")
    return Refusal(-4084, "Method is not allowed currently. Hedge mode is not simulated.")


def start_listening(call: Call) -> Any:
    """The same key while one is alive; its hour starts again."""
    desk = call.desk
    if not desk.listen_key or call.now.boot_ms >= desk.listen_until_ms:
        desk.listen_key = secrets.token_hex(32)
        desk.listen_count += 1
    desk.listen_until_ms = call.now.boot_ms + LISTEN_KEY_MS
    return {"listenKey": desk.listen_key}


def keep_listening(call: Call) -> Any:
    desk = call.desk
    if not desk.listen_key or call.now.boot_ms >= desk.listen_until_ms:
        return NO_LISTEN_KEY
    desk.listen_until_ms = call.now.boot_ms + LISTEN_KEY_MS
    return {"listenKey": desk.listen_key}


def stop_listening(call: Call) -> Any:
    call.desk.listen_until_ms = 0
    return {}


_V1 = "/fapi/v1/"
ROUTES: Routes = {
    ("POST", _V1 + "order"): Route(place_order, SIGNED, 0, 1),
    ("GET", _V1 + "order"): Route(query_order, SIGNED),
    ("DELETE", _V1 + "order"): Route(cancel_order, SIGNED),
    ("GET", _V1 + "openOrder"): Route(query_open_order, SIGNED),
    ("GET", _V1 + "openOrders"): Route(open_orders, SIGNED),
    ("GET", _V1 + "allOrders"): Route(all_orders, SIGNED, 5),
    ("DELETE", _V1 + "allOpenOrders"): Route(cancel_all, SIGNED),
    ("POST", _V1 + "algoOrder"): Route(place_algo, SIGNED, 0, 1),
    ("GET", _V1 + "algoOrder"): Route(query_algo, SIGNED),
    ("DELETE", _V1 + "algoOrder"): Route(cancel_algo, SIGNED),
    ("GET", _V1 + "openAlgoOrders"): Route(open_algos, SIGNED),
    ("GET", _V1 + "allAlgoOrders"): Route(all_algos, SIGNED, 5),
    ("DELETE", _V1 + "algoOpenOrders"): Route(cancel_algos, SIGNED),
    ("POST", _V1 + "leverage"): Route(set_leverage, SIGNED),
    ("POST", _V1 + "marginType"): Route(set_margin_type, SIGNED),
    ("GET", _V1 + "positionSide/dual"): Route(get_mode, SIGNED, 30),
    ("POST", _V1 + "positionSide/dual"): Route(set_mode, SIGNED),
    ("POST", _V1 + "listenKey"): Route(start_listening, KEY),
    ("PUT", _V1 + "listenKey"): Route(keep_listening, KEY),
    ("DELETE", _V1 + "listenKey"): Route(stop_listening, KEY),
}
