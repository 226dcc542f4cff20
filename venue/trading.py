"""Signed REST that trades: orders, conditional orders, cancels, queries, the listen key."""

from __future__ import annotations

from typing import Any

from venue import listen, matching, positions
from venue.checks import Request, mandatory, parse
from venue.house import refresh, tell
from venue.orders import OPEN_STATUSES, Algo, Order, Refusal
from venue.public import number
from venue.rest import KEY, SIGNED, Call, Route, Routes
from venue.userwire import algo_row, order_row

UNFILLED_KEPT_MS, FILLED_KEPT_MS = 3 * 86_400_000, 90 * 86_400_000  # market time
UNKNOWN_ORDER = Refusal(-2011, "Unknown order sent.")
NO_SUCH_ORDER = Refusal(-2013, "Order does not exist.")
NO_LISTEN_KEY = Refusal(-1125, "This listenKey does not exist.")
NOT_OPENING = Refusal(-4140, "Invalid symbol status for opening position.")
SYMBOL_CLOSED = Refusal(-4141, "Symbol is closed.")
ALL_CANCELED = {"code": 200, "msg": "The operation of cancel all open order is done."}


def shown(call: Call, order: Order, full: bool) -> dict[str, Any]:
    return order_row(order, call.exchange.account.specs[order.symbol], full)


def _algo(call: Call, algo: Algo, full: bool) -> dict[str, Any]:
    account = call.exchange.account
    actual = None
    if algo.order_id:
        actual = matching.find(account, algo.symbol, algo.order_id, "")
    return algo_row(algo, account.specs[algo.symbol], actual, full)


def not_trading(call: Call, symbol: str) -> Refusal:
    """A symbol that is delisted: settling takes no openers, and closed is closed."""
    settling = call.exchange.statuses[symbol] == "SETTLING"
    return NOT_OPENING if settling else SYMBOL_CLOSED


def _asked(call: Call) -> Request | Refusal:
    """The order that is asked for, with the book of its symbol before the account."""
    request = parse(call.params, "newClientOrderId", call.exchange.account.dual)
    if isinstance(request, Refusal):
        return request
    if request.symbol in call.exchange.statuses:
        return not_trading(call, request.symbol)
    refresh(call.exchange, request.symbol)
    return request


def place_order(call: Call) -> Any:
    request = _asked(call)
    if isinstance(request, Refusal):
        return request
    order, events = matching.place(call.exchange.account, request, call.now.market_ms)
    tell(call.exchange, events)
    return order if isinstance(order, Refusal) else shown(call, order, False)


def test_order(call: Call) -> Any:
    """Everything that is checked; nothing is placed, and the order of the reply has no id."""
    request = _asked(call)
    if isinstance(request, Refusal):
        return request
    tried = matching.draft(call.exchange.account, request, call.now.market_ms)
    return tried if isinstance(tried, Refusal) else shown(call, tried, False)


def find_order(call: Call) -> Order | Refusal | None:
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
    order = matching.find(call.exchange.account, symbol, order_id, client_id)
    return None if order is None or _forgotten(order, call.now.market_ms) else order


def _forgotten(order: Order, now_ms: int) -> bool:
    """Queries know what ended for so long only; what traded, longer."""
    kept_ms = UNFILLED_KEPT_MS if order.executed == 0 else FILLED_KEPT_MS
    return order.status not in OPEN_STATUSES and now_ms - order.updated_ms > kept_ms


def query_order(call: Call) -> Any:
    order = find_order(call)
    if order is None:
        return NO_SUCH_ORDER
    return order if isinstance(order, Refusal) else shown(call, order, True)


def query_open_order(call: Call) -> Any:
    order = find_order(call)
    if isinstance(order, Refusal):
        return order
    if order is None or order.id not in call.exchange.account.orders:
        return NO_SUCH_ORDER
    return shown(call, order, True)


def cancel_order(call: Call) -> Any:
    order = find_order(call)
    if isinstance(order, Refusal):
        return order
    if order is None or order.id not in call.exchange.account.orders:
        return UNKNOWN_ORDER
    tell(call.exchange, matching.cancel(call.exchange.account, order, call.now.market_ms))
    return shown(call, order, False)


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
    return [shown(call, o, True) for o in orders]


def all_orders(call: Call) -> Any:
    account = call.exchange.account
    if not call.params.get("symbol"):
        return mandatory("symbol")
    closed = [o for o in account.closed.values() if not _forgotten(o, call.now.market_ms)]
    orders = _of_symbol(call, [*closed, *account.orders.values()])
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
    return [shown(call, o, True) for o in chosen]


def place_algo(call: Call) -> Any:
    if call.params.get("algoType") != "CONDITIONAL":
        return mandatory("algoType")
    request = parse(call.params, "clientAlgoId", call.exchange.account.dual)
    if isinstance(request, Refusal):
        return request
    if request.symbol in call.exchange.statuses:
        return not_trading(call, request.symbol)
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
    return {"dualSidePosition": call.exchange.account.dual}


def set_mode(call: Call) -> Any:
    wanted = call.params.get("dualSidePosition", "").lower()
    if wanted not in ("true", "false"):
        return mandatory("dualSidePosition")
    account = call.exchange.account
    done = positions.set_mode(account, wanted == "true", call.now.market_ms)
    if isinstance(done, Refusal):
        return done
    tell(call.exchange, done)
    return {"code": 200, "msg": "success"}


def start_listening(call: Call) -> Any:
    """The same key while one is alive; its hour starts again."""
    return {"listenKey": listen.start(call.desk.keys, call.now.boot_ms)}


def keep_listening(call: Call) -> Any:
    key = listen.keep(call.desk.keys, call.now.boot_ms)
    return {"listenKey": key} if key else NO_LISTEN_KEY


def stop_listening(call: Call) -> Any:
    """Its sockets stay open and hear nothing more."""
    return {} if listen.stop(call.desk.keys, call.now.boot_ms) else NO_LISTEN_KEY


_V1 = "/fapi/v1/"
ROUTES: Routes = {
    ("POST", _V1 + "order"): Route(place_order, SIGNED, 0, 1),
    ("POST", _V1 + "order/test"): Route(test_order, SIGNED, 0, 1),
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
