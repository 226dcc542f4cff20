"""Why an order is refused: filters and rules, each with the exchange's code and text.

A check takes the request as the client wrote it (text) and answers a Refusal or nothing; the
order of the checks is the order in which the exchange is known to complain.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation

from venue.orders import (
    BOTH,
    CONDITIONAL,
    LONG,
    SHORT,
    ZERO,
    Account,
    Book,
    Refusal,
    amount,
    available,
    leverage_of,
)
from venue.symbols import MAX_ORDERS, Symbol, fixed

CLIENT_ID = re.compile(r"^[.A-Z:/a-z0-9_-]{1,36}\Z")
DECIMAL = re.compile(r"^[0-9]{1,20}(\.[0-9]{0,20})?\Z")
NUMBERS = ("quantity", "price", "triggerPrice", "activatePrice", "callbackRate")
DATE_AHEAD_MS, DATE_MAX_MS = 600_000, 253_402_300_799_000
DATE_DIGITS_MAX = 20
STP_MODES = ("NONE", "EXPIRE_TAKER", "EXPIRE_MAKER", "EXPIRE_BOTH")
PRICED = ("LIMIT", "STOP", "TAKE_PROFIT")  # types with a price of their own
PRICE_MATCHES = {
    whose + depth for whose in ("OPPONENT", "QUEUE") for depth in ("", "_5", "_10", "_20")
}
TIFS = ("GTC", "IOC", "FOK", "GTX", "GTD")

SYMBOL_UNKNOWN = Refusal(-1121, "Invalid symbol.")
PRECISION = Refusal(-1111, "Precision is over the maximum defined for this asset.")
REDUCE_ONLY = Refusal(-2022, "ReduceOnly Order is rejected.")
OTHER_SIDE = Refusal(-4061, "Order's position side does not match user's setting.")
NO_MARGIN = Refusal(-2019, "Margin is insufficient.")
IMMEDIATE = Refusal(-2021, "Order would immediately trigger.")
BAD_DATE = Refusal(
    -5040,
    "The goodTillDate timestamp must be greater than the current time plus 600 seconds and "
    "smaller than 253402300799000.",
)
DUPLICATE = Refusal(-4116, "ClientOrderId is duplicated.")
TO_ALGO = Refusal(
    -4120,
    "Order type not supported for this endpoint. Please use the Algo Order API endpoints instead.",
)
CLOSE_TWICE = Refusal(
    -4130,
    "An open stop or take profit order with GTE and closePosition in the direction is existing.",
)
FOK_UNFILLED = Refusal(
    -5021,
    "Due to the order could not be filled immediately, the FOK order has been rejected. "
    "The order will not be recorded in the order history",
)
GTX_TAKES = Refusal(
    -5022,
    "Due to the order could not be executed as maker, the Post Only order will be rejected. "
    "The order will not be recorded in the order history",
)


@dataclass(frozen=True, slots=True)
class Request:
    """A parsed order request; what was not sent is zero, false or empty."""

    symbol: str
    side: str
    type: str
    tif: str
    qty: Decimal
    price: Decimal
    trigger: Decimal
    client_id: str
    reduce_only: bool
    close_position: bool
    working: str
    price_protect: bool
    stp: str
    good_till_ms: int = 0
    price_match: str = "NONE"
    callback_rate: Decimal = ZERO
    activate: Decimal = ZERO
    position_side: str = BOTH


def mandatory(name: str) -> Refusal:
    return Refusal(
        -1102, f"Mandatory parameter '{name}' was not sent, was empty/null, or malformed."
    )


def side_refusal(side: str, dual: bool) -> Refusal | None:
    """BOTH in one-way mode, LONG or SHORT in hedge mode, nothing else."""
    if side not in (BOTH, LONG, SHORT):
        return Refusal(-4060, "Invalid position side.")
    return OTHER_SIDE if (side == BOTH) == dual else None


def _closes(params: Mapping[str, str], side: str, dual: bool) -> bool | Refusal:
    """Whether an order may only reduce: said in one-way mode, following from its side in hedge."""
    if not dual:
        return params.get("reduceOnly", "false").lower() == "true"
    if params.get("reduceOnly"):
        return Refusal(-1106, "Parameter 'reduceonly' sent when not required.")
    closes = (params["side"] == "SELL") == (side == LONG)
    if params.get("closePosition", "false").lower() == "true":
        return False if closes else REDUCE_ONLY
    return closes


def parse(params: Mapping[str, str], client_key: str, dual: bool = False) -> Request | Refusal:
    """Text to a request; refuses what is missing or malformed. `dual`: hedge mode."""
    for name in ("symbol", "side", "type"):
        if not params.get(name):
            return mandatory(name)
    if params["side"] not in ("BUY", "SELL"):
        return Refusal(-1117, "Invalid side.")
    if params["type"] not in ("LIMIT", "MARKET", *CONDITIONAL):
        return Refusal(-1116, "Invalid orderType.")
    tif = params.get("timeInForce", "")
    if tif and tif not in (*TIFS, "GTE_GTC"):
        return Refusal(-1115, "Invalid timeInForce.")
    side = params.get("positionSide") or BOTH
    refusal = side_refusal(side, dual)
    if refusal is not None:
        return refusal
    closes = _closes(params, side, dual)
    if isinstance(closes, Refusal):
        return closes
    working = params.get("workingType", "CONTRACT_PRICE")
    if working not in ("CONTRACT_PRICE", "MARK_PRICE"):
        return mandatory("workingType")
    values: dict[str, Decimal] = {}
    for name in NUMBERS:
        text = params.get(name, "")
        if text and not DECIMAL.match(text):
            return mandatory(name)
        try:
            values[name] = Decimal(text) if text else ZERO
        except InvalidOperation:
            return mandatory(name)
    date = params.get("goodTillDate", "")
    if date and not (date.isascii() and date.isdigit() and len(date) <= DATE_DIGITS_MAX):
        return mandatory("goodTillDate")
    stp = params.get("selfTradePreventionMode", "EXPIRE_MAKER")
    match = params.get("priceMatch", "NONE")
    if stp not in STP_MODES:
        return mandatory("selfTradePreventionMode")
    if match not in PRICE_MATCHES | {"NONE"}:
        return mandatory("priceMatch")
    if match != "NONE" and params["type"] not in PRICED:
        return Refusal(-1106, "Parameter 'priceMatch' sent when not required.")
    if match != "NONE" and params.get("price"):
        return Refusal(-1106, "Parameter 'price' sent when not required.")
    client_id = params.get(client_key, "")
    if client_id and not CLIENT_ID.match(client_id):
        return Refusal(-4015, "Client order id is not valid.")
    return Request(
        params["symbol"],
        params["side"],
        params["type"],
        tif,
        values["quantity"],
        values["price"],
        values["triggerPrice"],
        client_id,
        closes,
        params.get("closePosition", "false").lower() == "true",
        working,
        params.get("priceProtect", "false").lower() == "true",
        stp,
        int(date) // 1000 * 1000 if date else 0,
        match,
        values["callbackRate"],
        values["activatePrice"],
        side,
    )


def places(value: Decimal) -> int:
    exponent = value.normalize().as_tuple().exponent
    assert isinstance(exponent, int)
    return max(0, -exponent)


def check_qty(spec: Symbol, qty: Decimal, market: bool) -> Refusal | None:
    if qty <= 0:
        return Refusal(-4003, "Quantity less than or equal to zero.")
    if places(qty) > spec.qty_digits:
        return PRECISION
    if qty < spec.step:
        return Refusal(-4004, "Quantity less than min quantity.")
    if qty > (spec.qty_max_market if market else spec.qty_max):
        return Refusal(-4005, "Quantity greater than max quantity.")
    if qty % spec.step:
        return Refusal(-4023, "Qty not increased by step size.")
    return None


def check_price(spec: Symbol, price: Decimal) -> Refusal | None:
    if places(price) > spec.price_digits:
        return PRECISION
    if price < spec.price_min:
        return Refusal(-4013, f"Price less than min price: {fixed(spec.price_min, 2)}")
    if price > spec.price_max:
        return Refusal(-4002, "Price greater than max price.")
    if price % spec.tick:
        return Refusal(-4014, "Price not increased by tick size.")
    return None


def check_percent(spec: Symbol, side: str, price: Decimal, mark: Decimal) -> Refusal | None:
    """BUY at most so far above the mark, SELL at least so far below it; 5 % here.

    The refusal names the last price that is taken: rounded to the grid away from the bound, it
    would be refused itself.
    """
    most, down = mark * spec.percent_up // spec.tick * spec.tick, mark * spec.percent_down
    least = down // spec.tick * spec.tick
    if least < down:
        least += spec.tick
    if side == "BUY" and price > most:
        return Refusal(-4016, f"Limit price can't be higher than {fixed(most, spec.price_digits)}.")
    if side == "SELL" and price < least:
        return Refusal(-4024, f"Limit price can't be lower than {fixed(least, spec.price_digits)}.")
    return None


def too_small(spec: Symbol) -> Refusal:
    least = f"{spec.min_notional:f}"
    return Refusal(
        -4164,
        f"Order's notional must be no smaller than {least} (unless you choose reduce only).",
    )


def check_date(request: Request, now: int) -> Refusal | None:
    """GTD needs a date more than 600 s ahead; whole seconds count. Nothing else may have one."""
    if request.tif != "GTD":
        unwanted = Refusal(-1106, "Parameter 'goodTillDate' sent when not required.")
        return unwanted if request.good_till_ms else None
    if not request.good_till_ms:
        return mandatory("goodTillDate")
    return None if now + DATE_AHEAD_MS < request.good_till_ms < DATE_MAX_MS else BAD_DATE


def check_order(account: Account, request: Request, book: Book) -> Refusal | None:
    """Everything that /order refuses before it looks for a counterparty."""
    spec = account.specs[request.symbol]
    if request.type in CONDITIONAL:
        return TO_ALGO
    market = request.type == "MARKET"
    if not market:
        if not request.tif:
            return mandatory("timeInForce")
        if not request.price:
            return mandatory("price")
    elif request.tif:
        return Refusal(-1106, "Parameter 'timeInForce' sent when not required.")
    if not request.qty:
        return mandatory("quantity")
    refusal = check_qty(spec, request.qty, market)
    if refusal is None and not market:
        refusal = check_price(spec, request.price) or check_percent(
            spec, request.side, request.price, book.mark
        )
    if refusal is not None:
        return refusal
    if request.client_id and any(o.client_id == request.client_id for o in account.orders.values()):
        return DUPLICATE
    if sum(1 for o in account.orders.values() if o.symbol == request.symbol) >= MAX_ORDERS:
        return Refusal(-2025, "Reach max open order limit.")
    price = book.mark if market else request.price
    if request.qty * price < spec.min_notional and not request.reduce_only:
        return too_small(spec)
    held = amount(account, request.symbol, request.position_side)
    sign = 1 if request.side == "BUY" else -1
    if request.reduce_only and held * sign >= 0:
        return REDUCE_ONLY
    if request.reduce_only and request.position_side != BOTH and request.qty > abs(held):
        return REDUCE_ONLY
    return check_margin(account, request, book, held, sign)


def check_margin(
    account: Account, request: Request, book: Book, held: Decimal, sign: int
) -> Refusal | None:
    """The part that opens must be paid for; the part that closes is always allowed."""
    if request.reduce_only:
        return None
    closing = min(request.qty, abs(held)) if held * sign < 0 else ZERO
    if request.type == "MARKET":
        price = book.ask if sign > 0 else book.bid
    else:
        price = request.price if sign > 0 else max(request.price, book.bid)
    notional = (request.qty - closing) * price
    needed = notional / leverage_of(account, request.symbol)
    if needed and needed + notional * account.taker_rate > available(account):
        return NO_MARGIN
    return None


def check_algo(account: Account, request: Request, book: Book) -> Refusal | None:
    """Everything that /algoOrder refuses; margin is looked at only when it fires."""
    spec = account.specs[request.symbol]
    if request.type not in CONDITIONAL:
        return Refusal(-1116, "Invalid orderType.")
    refusal = None
    if request.type != "TRAILING_STOP_MARKET":
        if not request.trigger:
            return mandatory("triggerPrice")
        refusal = check_price(spec, request.trigger)
    if refusal is None and not request.type.endswith("MARKET") and request.price_match == "NONE":
        if not request.price:
            return mandatory("price")
        refusal = check_price(spec, request.price)
    if refusal is not None:
        return refusal
    if request.close_position:
        if not request.type.endswith("MARKET"):
            return Refusal(-4136, "Target strategy invalid for orderType, closePosition true.")
        if request.qty:
            return Refusal(-4137, "Quantity must be zero with closePosition equals true.")
        if request.reduce_only:
            return Refusal(-1106, "Parameter 'reduceOnly' sent when not required.")
    else:
        if not request.qty:
            return mandatory("quantity")
        refusal = check_qty(spec, request.qty, request.type.endswith("MARKET"))
        if refusal is not None:
            return refusal
    return _check_algo_book(account, request, book)


def _check_algo_book(account: Account, request: Request, book: Book) -> Refusal | None:
    family = "STOP" if request.type.startswith("STOP") else "TAKE_PROFIT"
    for algo in account.algos.values():
        if request.client_id and algo.client_id == request.client_id:
            return DUPLICATE
        if (
            request.close_position
            and algo.close_position
            and (algo.symbol, algo.side, algo.family) == (request.symbol, request.side, family)
            and algo.position_side == request.position_side
        ):
            return CLOSE_TWICE
    if len(account.algos) >= MAX_ORDERS:
        return Refusal(-4045, "Reach max stop order limit.")
    if request.type == "TRAILING_STOP_MARKET":
        return None
    price = book.last if request.working == "CONTRACT_PRICE" else book.mark
    rises = (family == "STOP") == (request.side == "BUY")
    if (price >= request.trigger) if rises else (price <= request.trigger):
        return IMMEDIATE
    return None
