"""What another exchange says, as events and specifications of ours. Pure: payload in, data out.

Frames of combined streams become what matching meets, with upstream's id and time beside it; REST
rows fill what was missed. A payload without the fields that are used here, or with a price or a
size that is not positive, is no event: None, or left out. Leverage brackets are signed upstream and
never asked for: the ladders of our own listing stand in.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from decimal import Decimal, InvalidOperation
from typing import Any

import orjson

from venue.matching import FundingDue, MarketEvent, MarketMark, MarketQuote, MarketTrade
from venue.orders import ZERO, Book
from venue.symbols import PRICE_BOUND, Filters, Symbol
from venue.userwire import Json

TRADES_LIMIT = 1000  # rows of one question for missed trades
DEPTH_LIMIT = 20  # levels of the book that a line is opened with
UNREADABLE = (KeyError, TypeError, ValueError, IndexError, InvalidOperation)


@dataclass(frozen=True, slots=True)
class Heard:
    """An event with upstream's id (0: it has none) and time; a mark's funding rate and time."""

    event: MarketEvent
    id: int
    ms: int
    rate: Decimal = ZERO
    funding_ms: int = 0


@dataclass(frozen=True, slots=True)
class Opening:
    """The market of one symbol by REST: where a line begins, or goes on after a break."""

    book: Book
    update_id: int
    trade_id: int  # newest aggregate trade
    level_qty: Decimal  # mean size of a level: what lies behind the best price, as far as we know
    rate: Decimal
    funding_ms: int


def stream_names(symbol: str, route: str) -> tuple[str, ...]:
    """What is subscribed to for one symbol on one route."""
    name = symbol.lower()
    if route == "public":
        return (f"{name}@bookTicker",)
    return (f"{name}@aggTrade", f"{name}@markPrice@1s")


def ack_of(frame: bytes | str) -> int | None:
    """The id of a control message that this frame answers without an error."""
    message = _loads(frame)
    number = message.get("id") if message and "result" in message else None
    return number if isinstance(number, int) else None


def _loads(frame: bytes | str) -> Json | None:
    try:
        message = orjson.loads(frame)
    except ValueError:
        return None
    return message if isinstance(message, dict) else None


def heard(frame: bytes | str) -> Heard | None:
    """One frame of /stream: a trade, a quote or a mark; None for everything else."""
    message = _loads(frame)
    data = message.get("data") if message else None
    if not isinstance(data, dict):
        return None
    read = READERS.get(str(data.get("e")))
    try:
        return read(data) if read else None
    except UNREADABLE:
        return None


def _positive(text: Any) -> Decimal:
    value = Decimal(text)
    if not value > 0:  # NaN too
        raise ValueError("not positive")
    return value


def _trade(data: Json) -> Heard:
    price, qty = _positive(data["p"]), _positive(data["q"])
    event = MarketTrade(str(data["s"]), price, qty, bool(data["m"]))
    return Heard(event, int(data["a"]), int(data["E"] if "E" in data else data["T"]))


def _quote(data: Json) -> Heard:
    event = MarketQuote(
        str(data["s"]),
        _positive(data["b"]),
        Decimal(data["B"]),
        _positive(data["a"]),
        Decimal(data["A"]),
    )
    return Heard(event, int(data["u"]), int(data["E"]))


def _mark(data: Json) -> Heard:
    event = MarketMark(str(data["s"]), _positive(data["p"]))
    rate = Decimal(data.get("r") or 0)
    return Heard(event, 0, int(data["E"]), rate, int(data.get("T") or 0))


READERS = {"aggTrade": _trade, "bookTicker": _quote, "markPriceUpdate": _mark}


def missed_trades(symbol: str, rows: list[Json]) -> list[Heard]:
    """Rows of GET aggTrades; they name no symbol. Raises what UNREADABLE lists."""
    return [_trade({**row, "s": symbol}) for row in rows]


def missed_funding(rows: list[Json]) -> list[Heard]:
    """Rows of GET fundingRate: for each settlement its mark, then the payment."""
    out = []
    for row in rows:
        symbol, ms, rate = str(row["symbol"]), int(row["fundingTime"]), Decimal(row["fundingRate"])
        if row.get("markPrice"):
            out.append(Heard(MarketMark(symbol, _positive(row["markPrice"])), 0, ms))
        out.append(Heard(FundingDue(symbol, rate), 0, ms))
    return out


def opening(depth: Json, premium: Json, newest: Json) -> Opening:
    """From GET depth, premiumIndex and the newest row of aggTrades. Raises what UNREADABLE lists:
    a market without a book, a mark and a trade cannot be traded on."""
    bids, asks = depth["bids"], depth["asks"]
    sizes = [Decimal(qty) for _, qty in (*bids, *asks)]
    book = Book(
        _positive(bids[0][0]),
        Decimal(bids[0][1]),
        _positive(asks[0][0]),
        Decimal(asks[0][1]),
        _positive(newest["p"]),
        _positive(premium["markPrice"]),
    )
    return Opening(
        book,
        int(depth["lastUpdateId"]),
        int(newest["a"]),
        sum(sizes, ZERO) / len(sizes),
        Decimal(premium.get("lastFundingRate") or 0),
        int(premium.get("nextFundingTime") or 0),
    )


def digits(text: str) -> int:
    """Digits after the point as written: the exchange pads its prices to them."""
    return len(text.partition(".")[2])


def specification(row: Json, index: int) -> Symbol:
    """One row of exchangeInfo. Raises what UNREADABLE lists."""
    by_type = {f["filterType"]: f for f in row["filters"]}
    price, lot = by_type["PRICE_FILTER"], by_type["LOT_SIZE"]
    percent = by_type.get("PERCENT_PRICE", {})
    tick, step = _positive(price["tickSize"]), _positive(lot["stepSize"])
    qty_digits = digits(lot["stepSize"])
    return Symbol(
        index,
        str(row["symbol"]),
        str(row["baseAsset"]),
        Decimal(1),
        digits(price["tickSize"]),
        int(tick.scaleb(digits(price["tickSize"]))),
        qty_digits,
        step,
        Decimal(by_type["MIN_NOTIONAL"]["notional"]),
        1.0,
        Filters(
            step,
            Decimal(price["minPrice"]),
            Decimal(price["maxPrice"]),
            Decimal(lot["maxQty"]),
            Decimal(by_type.get("MARKET_LOT_SIZE", lot)["maxQty"]),
            Decimal(percent.get("multiplierUp", 1 + PRICE_BOUND)),
            Decimal(percent.get("multiplierDown", 1 - PRICE_BOUND)),
            Decimal(row.get("marketTakeBound") or PRICE_BOUND),
        ),
    )


def specifications(rows: list[Json]) -> tuple[Symbol, ...]:
    """Every perpetual contract that is margined in USDT: the account has no other money."""
    out: list[Symbol] = []
    for row in rows:
        perpetual = str(row.get("contractType", "")).endswith("PERPETUAL")
        if not perpetual or row.get("marginAsset") != "USDT":
            continue
        try:
            out.append(specification(row, len(out)))
        except UNREADABLE:
            continue  # a listing in a shape of its own is not traded here
    return tuple(out)


def merged(old: list[Json], new: list[Json]) -> list[Json]:
    """The new listing, and what only the old one knows: a position may be left in it."""
    known = {row.get("symbol") for row in new}
    return [*new, *(row for row in old if row.get("symbol") not in known)]


def with_level(spec: Symbol, level_qty: Decimal) -> Symbol:
    """The ladder behind the best price is made of levels of this mean size."""
    units = max(spec.unit, level_qty.quantize(spec.unit))
    return replace(spec, qty_mean=units)
