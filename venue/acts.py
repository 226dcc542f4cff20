"""What others do to the account: a foreign client's orders, the exchange's own closes, delisting.

Pure. A foreign client is the account's owner on the web or a phone: the same account, orders with
ids of another make. The exchange closes with the ids and executions that it is known for. All of
it goes through the same matching as any order, and so to user stream and ledger.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from decimal import Decimal
from typing import Any

from venue import matching
from venue.checks import DECIMAL, SYMBOL_UNKNOWN, Request, parse
from venue.faults import Lab, bad
from venue.fills import algo_to, end
from venue.house import House, Moment, note, refresh, tell
from venue.liquidation import force_close
from venue.orders import (
    BOTH,
    EXPIRE_LIQUIDATION,
    Account,
    Algo,
    Event,
    Position,
    Refusal,
    held_of,
)
from venue.userwire import algo_row, order_row

CLIENTS = ("web", "ios", "android")
EXPIRE_DELISTED = 7
ADL_ID = "adl_autoclose"
STATUSES = ("SETTLING", "CLOSE")
FUNDING_RATE_MAX = Decimal("0.03")  # the widest cap that a symbol has
NO_POSITION = bad("There is no position in this symbol.")
BOTH_HELD = bad("LONG and SHORT are held in this symbol: 'positionSide' says which.")
NO_ORDER = bad("There is no such open order.")

Json = dict[str, Any]


def _decimal(sent: Json, name: str) -> Decimal | Refusal | None:
    """A number as text or JSON number; None when it was not sent."""
    if name not in sent:
        return None
    text = str(sent[name])
    return Decimal(text) if DECIMAL.match(text) else bad(f"'{name}' must be a number.")


def foreign_id(lab: Lab, sent: Json) -> str:
    """A client order id as the exchange's own apps make them: drawn from the world's seed."""
    letters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
    drawn = "".join(lab.rng.choice(letters) for _ in range(20))
    return f"{sent.get('client', 'web')}_{drawn}"


def _position(house: House, sent: Json) -> Position | Refusal:
    """The position that is meant; in hedge mode the only one, or the one of `positionSide`."""
    held = held_of(house.account, sent["symbol"])
    side = sent.get("positionSide")
    if side is not None:
        held = [p for p in held if p.side == side]
    if len(held) > 1:
        return BOTH_HELD
    return held[0] if held else NO_POSITION


def _placed(house: House, params: Json, now: Moment) -> Any:
    """An order by the usual way; the answer is the order's row."""
    texts = {k: str(v) for k, v in params.items()}
    request = parse(texts, "newClientOrderId", house.account.dual)
    if isinstance(request, Refusal):
        return request
    order, events = matching.place(house.account, request, now.market_ms)
    tell(house, events)
    if isinstance(order, Refusal):
        return order
    return order_row(order, house.account.specs[order.symbol], True)


def order(house: House, lab: Lab, sent: Json, now: Moment) -> Any:
    """Any order of /fapi/v1/order, by somebody else."""
    params = {name: value for name, value in sent.items() if name not in ("what", "client")}
    params.setdefault("type", "LIMIT" if "price" in params else "MARKET")
    if params["type"] == "LIMIT":
        params.setdefault("timeInForce", "GTC")
    if "reduceOnly" in params:
        params["reduceOnly"] = str(params["reduceOnly"]).lower()
    return _placed(house, params | {"newClientOrderId": foreign_id(lab, sent)}, now)


def _market(
    house: House, lab: Lab, sent: Json, position: Position, qty: Decimal, now: Moment
) -> Any:
    """A market order that changes the position by `qty`, signed."""
    side = "BUY" if qty > 0 else "SELL"
    params: Json = {"symbol": position.symbol, "side": side, "type": "MARKET"}
    params |= {"quantity": f"{abs(qty):f}", "newClientOrderId": foreign_id(lab, sent)}
    params["positionSide"] = position.side
    if position.qty * qty < 0 and position.side == BOTH:
        params["reduceOnly"] = "true"
    return _placed(house, params, now)


def close(house: House, lab: Lab, sent: Json, now: Moment) -> Any:
    """The position is closed at the market, all of it or `quantity` of it."""
    position, wanted = _position(house, sent), _decimal(sent, "quantity")
    if isinstance(wanted, Refusal):
        return wanted
    if isinstance(position, Refusal):
        return position
    held = position.qty
    qty = abs(held) if wanted is None else min(wanted, abs(held))
    return _market(house, lab, sent, position, -qty if held > 0 else qty, now)


def add(house: House, lab: Lab, sent: Json, now: Moment) -> Any:
    """The position is made larger by `quantity`, in its own direction."""
    position, qty = _position(house, sent), _decimal(sent, "quantity")
    if isinstance(qty, Refusal):
        return qty
    if isinstance(position, Refusal):
        return position
    if not qty:
        return bad("'add' needs 'quantity'.")
    return _market(house, lab, sent, position, qty if position.qty > 0 else -qty, now)


def _algo(account: Account, sent: Json) -> Algo | None:
    """The conditional order that is named, else the symbol's newest stop."""
    waiting = [a for a in account.algos.values() if a.symbol == sent["symbol"]]
    waiting = [a for a in waiting if a.status == "NEW"]
    if "algoId" in sent:
        return next((a for a in waiting if a.id == sent["algoId"]), None)
    return next((a for a in reversed(waiting) if a.family == "STOP"), None)


def cancel(house: House, lab: Lab, sent: Json, now: Moment) -> Any:
    """One order by orderId, one conditional order by algoId, or all orders of the symbol."""
    account = house.account
    spec = account.specs[sent["symbol"]]
    if "algoId" in sent:
        algo = _algo(account, sent)
        if algo is None:
            return NO_ORDER
        tell(house, matching.cancel_algo(account, algo, now.market_ms))
        return algo_row(algo, spec, None, True)
    found = [o for o in account.orders.values() if o.symbol == sent["symbol"]]
    found = [o for o in found if o.id == sent.get("orderId", o.id)]
    if not found:
        return NO_ORDER
    for one in found:
        tell(house, matching.cancel(account, one, now.market_ms))
    return [order_row(one, spec, True) for one in found]


def move_stop(house: House, lab: Lab, sent: Json, now: Moment) -> Any:
    """A conditional order gets another trigger: it is cancelled and another one placed.

    What would be refused changes nothing: the old one stays.
    """
    account = house.account
    trigger = _decimal(sent, "trigger")
    if trigger is None or isinstance(trigger, Refusal):
        return trigger or bad("'move_stop' needs 'trigger'.")
    algo = _algo(account, sent)
    if algo is None:
        return NO_ORDER
    request = Request(
        algo.symbol, algo.side, algo.type, algo.tif, algo.qty, algo.price, trigger,
        foreign_id(lab, sent), algo.reduce_only, algo.close_position, algo.working,
        algo.price_protect, algo.stp, algo.good_till_ms, algo.price_match,
        algo.callback_rate, algo.activate, algo.position_side,
    )  # fmt: skip
    others = {k: a for k, a in account.algos.items() if k != algo.id}
    drafted = matching.draft_algo(replace(account, algos=others), request, now.market_ms)
    if isinstance(drafted, Refusal):
        return drafted
    tell(house, matching.cancel_algo(account, algo, now.market_ms))
    made, events = matching.place_algo(account, request, now.market_ms)
    assert isinstance(made, Algo), "it was drafted before"
    tell(house, events)
    return algo_row(made, account.specs[made.symbol], None, True)


def _exchange_close(
    house: House, sent: Json, position: Position, price: Decimal, client_id: str, now: Moment
) -> Any:
    """The position, or `quantity` of it, is closed at `price`, or the one that was sent."""
    account, held = house.account, abs(position.qty)
    spec = account.specs[position.symbol]
    wanted, asked = _decimal(sent, "quantity"), _decimal(sent, "price")
    for refusal in (wanted, asked):
        if isinstance(refusal, Refusal):
            return refusal
    qty = min(wanted, held) if isinstance(wanted, Decimal) else held
    price = asked if isinstance(asked, Decimal) else price
    if qty <= 0 or qty % spec.step:
        return bad("'quantity' must be above zero and a multiple of the step.")
    if price <= 0:
        return bad("'price' must be above zero.")
    out: list[Event] = []
    if client_id != ADL_ID:
        for resting in [o for o in account.orders.values() if o.symbol == position.symbol]:
            end(account, resting, "EXPIRED", EXPIRE_LIQUIDATION, now.market_ms, out)
    made = force_close(account, position, qty, price, client_id, now.market_ms, out)
    tell(house, out)
    return order_row(made, spec, True)


def liquidate(house: House, lab: Lab, sent: Json, now: Moment) -> Any:
    """The position is liquidated at the best price; its open orders expire."""
    position, book = _position(house, sent), house.account.books[sent["symbol"]]
    if isinstance(position, Refusal):
        return position
    price = book.bid if position.qty > 0 else book.ask
    return _exchange_close(house, sent, position, price, f"autoclose-{now.market_ms}", now)


def adl(house: House, lab: Lab, sent: Json, now: Moment) -> Any:
    """The position is deleveraged, in whole or by `quantity`, at `price` or the mark."""
    position, book = _position(house, sent), house.account.books[sent["symbol"]]
    if isinstance(position, Refusal):
        return position
    tick = house.account.specs[sent["symbol"]].tick
    return _exchange_close(house, sent, position, book.mark // tick * tick, ADL_ID, now)


def delist(house: House, lab: Lab, sent: Json, now: Moment) -> Any:
    """Trading ends: open orders expire, positions are settled at the mark, streams go silent."""
    status, symbol, account = sent.get("status", "SETTLING"), sent["symbol"], house.account
    if status not in STATUSES:
        return bad(f"'status' is one of: {', '.join(STATUSES)}.")
    ms = now.market_ms
    out: list[Event] = []
    for resting in [o for o in account.orders.values() if o.symbol == symbol]:
        end(account, resting, "EXPIRED", EXPIRE_DELISTED, ms, out)
    for algo in [a for a in account.algos.values() if a.symbol == symbol]:
        algo_to(account, algo, "EXPIRED", ms, out)
    mark, name = account.books[symbol].mark, f"settlement_autoclose-{ms}"
    for position in held_of(account, symbol):
        force_close(account, position, abs(position.qty), mark, name, ms, out, "TRADE")
    tell(house, out)
    house.statuses[symbol] = status
    house.dirty = True
    note(house, {"type": "delisted", "symbol": symbol, "status": status}, ms)
    return {"symbol": symbol, "status": status}


def fund(house: House, lab: Lab, sent: Json, now: Moment) -> Any:
    """The symbol's funding is settled now, at `rate`; its next regular time stays."""
    text = str(sent.get("rate", ""))
    if not DECIMAL.match(text.removeprefix("-")) or abs(Decimal(text)) > FUNDING_RATE_MAX:
        return bad(f"'rate' must be a number of at most {FUNDING_RATE_MAX}, plus or minus.")
    due = matching.FundingDue(sent["symbol"], Decimal(text))
    tell(house, matching.match(house.account, due, now.market_ms))
    return {"symbol": sent["symbol"], "rate": text}


Act = Callable[[House, Lab, Json, Moment], Any]
_PLACING = ("symbol", "positionSide", "client", "quantity")
# what: (who does it, the fields that it takes)
ACTS: dict[str, tuple[Act, tuple[str, ...]]] = {
    "order": (order, (*_PLACING, "side", "type", "price", "timeInForce", "reduceOnly")),
    "close": (close, _PLACING),
    "add": (add, _PLACING),
    "cancel": (cancel, ("symbol", "orderId", "algoId")),
    "move_stop": (move_stop, ("symbol", "client", "algoId", "trigger")),
    "liquidate": (liquidate, ("symbol", "positionSide", "quantity", "price")),
    "adl": (adl, ("symbol", "positionSide", "quantity", "price")),
    "delist": (delist, ("symbol", "status")),
    "funding": (fund, ("symbol", "rate")),
}


def act(house: House, lab: Lab, sent: Any, now: Moment) -> Any:
    """One happening from JSON; a Refusal says what is wrong with it."""
    if not isinstance(sent, dict):
        return bad("An act is an object with 'what'.")
    what = sent.get("what")
    if not isinstance(what, str) or what not in ACTS:
        return bad(f"Unknown act '{str(what)[:50]}'; there are: {', '.join(ACTS)}.")
    done, known = ACTS[what]
    for name, value in sent.items():
        if name != "what" and name not in known:
            return bad(f"'{what}' has no field '{name[:50]}'; it has: {', '.join(known)}.")
        if isinstance(value, dict | list) or value is None:
            return bad(f"'{name}' must be text, a number or a truth value.")
    symbol = sent.get("symbol")
    if not isinstance(symbol, str) or symbol not in house.index:
        return SYMBOL_UNKNOWN
    if sent.get("client", "web") not in CLIENTS:
        return bad(f"'client' is one of: {', '.join(CLIENTS)}.")
    if symbol in house.statuses:
        return bad(f"{symbol} is delisted already.")
    for name in {symbol, *matching.watched(house.account)}:
        refresh(house, name)
    entry = {"type": "act", "what": what, "sent": {k: sent[k] for k in sent if k != "what"}}
    note(house, entry, now.market_ms)
    return done(house, lab, sent, now)
