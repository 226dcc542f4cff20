"""Public REST: what anybody may ask of the market. Handlers are pure: a Call in, JSON data out."""

from __future__ import annotations

from typing import Any

import numpy as np

from venue import bars, market
from venue.bars import (
    CLOSE,
    HIGH,
    LOW,
    OPEN,
    OPEN_MS,
    QUOTE,
    SPAN_MS,
    TAKER,
    TAKER_QUOTE,
    TRADES,
    VOLUME,
)
from venue.checks import mandatory
from venue.exchange import Exchange, book_of, candles, status
from venue.market import Ints
from venue.matching import levels
from venue.orders import Refusal
from venue.rest import Call, Route, Routes
from venue.symbols import FUNDING_INTERVAL_MS, FUNDING_RATE_E8, Symbol, fixed, info_row

DEPTHS = (5, 10, 20, 50, 100, 500, 1000)
KLINE_WEIGHTS = ((100, 1), (500, 2), (1000, 5), (1500, 10))
DEPTH_WEIGHTS = ((50, 2), (100, 5), (500, 10), (1000, 20))
DAY_MS = 86_400_000
RATE_LIMITS = [
    {"rateLimitType": "REQUEST_WEIGHT", "interval": "MINUTE", "intervalNum": 1, "limit": 2400},
    {"rateLimitType": "ORDERS", "interval": "MINUTE", "intervalNum": 1, "limit": 1200},
    {"rateLimitType": "ORDERS", "interval": "SECOND", "intervalNum": 10, "limit": 300},
]


def text(value: int, digits: int) -> str:
    """Integer of 10**-digits as decimal text."""
    if digits <= 0:
        return str(value)
    whole, rest = divmod(int(value), 10**digits)
    return f"{whole}.{rest:0{digits}d}"


def number(params: dict[str, str], name: str) -> int | None:
    value = params.get(name, "")
    return int(value) if value.isdigit() else None


def needs_symbol(call: Call) -> Symbol | Refusal:
    name = call.params.get("symbol")
    return call.exchange.specs[call.exchange.index[name]] if name else mandatory("symbol")


def ping(call: Call) -> Any:
    return {}


def server_time(call: Call) -> Any:
    return {"serverTime": call.now.market_ms, "speed": call.exchange.setup.speed}


def exchange_info(call: Call) -> Any:
    return {
        "timezone": "UTC",
        "serverTime": call.now.market_ms,
        "futuresType": "U_MARGINED",
        "rateLimits": RATE_LIMITS,
        "exchangeFilters": [],
        "assets": [{"asset": "USDT", "marginAvailable": True, "autoAssetExchange": "-10000"}],
        "symbols": [info_row(s) for s in call.exchange.specs],
    }


def kline_row(bar: Ints, s: Symbol, span_ms: int) -> list[Any]:
    p, q = s.price_digits, s.qty_digits
    b = [int(v) for v in bar]
    return [
        b[OPEN_MS],
        text(b[OPEN], p),
        text(b[HIGH], p),
        text(b[LOW], p),
        text(b[CLOSE], p),
        text(b[VOLUME], q),
        b[OPEN_MS] + span_ms - 1,
        text(b[QUOTE], p + q),
        b[TRADES],
        text(b[TAKER], q),
        text(b[TAKER_QUOTE], p + q),
        "0",
    ]


def klines(call: Call) -> Any:
    s = needs_symbol(call)
    if isinstance(s, Refusal):
        return s
    interval = call.params.get("interval", "")
    if interval not in bars.TIMEFRAMES:
        return Refusal(-1120, "Invalid interval.")
    limit = number(call.params, "limit") or 500
    if limit > 1500:
        return Refusal(-1130, "Data sent for parameter 'limit' is not valid.")
    timeframe = bars.TIMEFRAMES.index(interval)
    rows = candles(call.exchange, s.index, timeframe)
    start, end = number(call.params, "startTime"), number(call.params, "endTime")
    if end is not None:
        rows = rows[rows[:, OPEN_MS] <= end]
    if start is not None:
        rows = rows[rows[:, OPEN_MS] >= start][:limit]
    span = int(SPAN_MS[timeframe])
    return [kline_row(row, s, span) for row in rows[-limit:]]


def depth(call: Call) -> Any:
    s = needs_symbol(call)
    if isinstance(s, Refusal):
        return s
    limit = number(call.params, "limit") or 500
    if limit not in DEPTHS:
        return Refusal(-4021, f"{limit} is not valid depth limit.")
    book = book_of(call.exchange, s.index)

    def side(taker: str) -> list[list[str]]:
        return [
            [fixed(price, s.price_digits), fixed(qty, s.qty_digits)]
            for price, qty in levels(s, book, taker, limit)
        ]

    return {
        "lastUpdateId": int(call.exchange.market.n[s.index, market.UPDATE_ID]),
        "E": call.now.market_ms,
        "T": call.now.market_ms,
        "bids": side("SELL"),
        "asks": side("BUY"),
    }


def agg_trades(call: Call) -> Any:
    s = needs_symbol(call)
    if isinstance(s, Refusal):
        return s
    limit = number(call.params, "limit") or 500
    if limit > 1000:
        return Refusal(-1130, "Data sent for parameter 'limit' is not valid.")
    rows = bars.trades(call.exchange.record, s.index)
    first = number(call.params, "fromId")
    start, end = number(call.params, "startTime"), number(call.params, "endTime")
    if first is not None:
        rows = rows[rows[:, 0] >= first][:limit]
    elif start is not None or end is not None:
        kept = np.ones(len(rows), bool)
        if start is not None:
            kept &= rows[:, 5] >= start
        if end is not None:
            kept &= rows[:, 5] <= end
        rows = rows[kept]
        rows = rows[:limit] if start is not None else rows[-limit:]
    else:
        rows = rows[-limit:]
    return [_agg_row(row, s) for row in rows.tolist()]


def _agg_row(row: list[int], s: Symbol) -> dict[str, Any]:
    qty = text(row[2], s.qty_digits)
    return {
        "a": row[0],
        "p": text(row[1], s.price_digits),
        "q": qty,
        "nq": qty,
        "f": row[3],
        "l": row[4],
        "T": row[5],
        "m": bool(row[6]),
    }


def _day(exchange: Exchange, s: Symbol, now_ms: int) -> dict[str, Any]:
    """24 hours from 1h candles: coarse, but from the same record."""
    rows = candles(exchange, s.index, 3)
    rows = rows[rows[:, OPEN_MS] > now_ms - DAY_MS]
    p, q = s.price_digits, s.qty_digits
    opened, close = int(rows[0, OPEN]), int(rows[-1, CLOSE])
    volume, quote = int(rows[:, VOLUME].sum()), int(rows[:, QUOTE].sum())
    made = exchange.record.made[s.index]
    return {
        "closeTime": now_ms,
        "count": int(rows[:, TRADES].sum()),
        "firstId": int(made[1]),
        "highPrice": text(int(rows[:, HIGH].max()), p),
        "lastId": int(made[2]),
        "lastPrice": text(close, p),
        "lastQty": text(1, q),
        "lowPrice": text(int(rows[:, LOW].min()), p),
        "openPrice": text(opened, p),
        "openTime": int(rows[0, OPEN_MS]),
        "priceChange": f"{(close - opened) / 10**p:.{p}f}",
        "priceChangePercent": f"{(close / opened - 1) * 100:.3f}",
        "quoteVolume": text(quote, p + q),
        "symbol": s.name,
        "volume": text(volume, q),
        "weightedAvgPrice": text(quote // max(volume, 1), p),
    }


def _each(call: Call, make: Any) -> Any:
    """One object with `symbol`, else a list over all."""
    name = call.params.get("symbol")
    if name:
        return make(call.exchange.specs[call.exchange.index[name]])
    return [make(s) for s in call.exchange.specs]


def ticker_24hr(call: Call) -> Any:
    return _each(call, lambda s: _day(call.exchange, s, call.now.market_ms))


def ticker_price(call: Call) -> Any:
    def row(s: Symbol) -> dict[str, Any]:
        last = int(call.exchange.market.n[s.index, market.LAST])
        return {"symbol": s.name, "price": text(last, s.price_digits), "time": call.now.market_ms}

    return _each(call, row)


def ticker_book(call: Call) -> Any:
    def row(s: Symbol) -> dict[str, Any]:
        n = call.exchange.market.n[s.index]
        return {
            "symbol": s.name,
            "bidPrice": text(int(n[market.BID]), s.price_digits),
            "bidQty": text(int(n[market.BIDQ]), s.qty_digits),
            "askPrice": text(int(n[market.ASK]), s.price_digits),
            "askQty": text(int(n[market.ASKQ]), s.qty_digits),
            "time": call.now.market_ms,
            "lastUpdateId": int(n[market.UPDATE_ID]),
        }

    return _each(call, row)


def premium_index(call: Call) -> Any:
    now = call.now.market_ms
    rate = text(FUNDING_RATE_E8, 8)

    def row(s: Symbol) -> dict[str, Any]:
        mark = fixed(book_of(call.exchange, s.index).mark, 8)
        return {
            "symbol": s.name,
            "markPrice": mark,
            "indexPrice": mark,
            "estimatedSettlePrice": mark,
            "lastFundingRate": rate,
            "interestRate": rate,
            "nextFundingTime": (now // FUNDING_INTERVAL_MS + 1) * FUNDING_INTERVAL_MS,
            "time": now,
        }

    return _each(call, row)


def venue_status(call: Call) -> Any:
    return status(call.exchange, call.now)


ROUTES: Routes = {
    ("GET", "/fapi/v1/ping"): Route(ping),
    ("GET", "/fapi/v1/time"): Route(server_time),
    ("GET", "/fapi/v1/exchangeInfo"): Route(exchange_info),
    ("GET", "/fapi/v1/klines"): Route(klines, weight=5, by_limit=KLINE_WEIGHTS),
    ("GET", "/fapi/v1/depth"): Route(depth, weight=1, by_limit=DEPTH_WEIGHTS),
    ("GET", "/fapi/v1/aggTrades"): Route(agg_trades, weight=20),
    ("GET", "/fapi/v1/ticker/24hr"): Route(ticker_24hr, weight=40),
    ("GET", "/fapi/v1/ticker/price"): Route(ticker_price),
    ("GET", "/fapi/v1/ticker/bookTicker"): Route(ticker_book, weight=2),
    ("GET", "/fapi/v1/premiumIndex"): Route(premium_index),
    ("GET", "/venue/v1/status"): Route(venue_status, weight=0),
}
