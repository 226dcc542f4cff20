"""Public REST: what anybody may ask of the market. Handlers are pure: a Call in, JSON data out."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import orjson

from venue import bars, market
from venue.bars import CLOSE, OPEN, OPEN_MS
from venue.checks import mandatory
from venue.exchange import Exchange, book_of, plan, planned, status
from venue.intervals import INTERVALS
from venue.klines import folded, kline_row, mark_row, marks, text
from venue.ladder import levels
from venue.limits import SCALE_MAX
from venue.market import Ints
from venue.orders import Refusal
from venue.prints import prints, trade_row
from venue.rest import KEY, CallOf, RouteOf, whole
from venue.scenario import from_json
from venue.symbols import FUNDING_INTERVAL_MS, FUNDING_RATE_E8, Symbol, fixed, info_row
from venue.tickers import Day

Call = CallOf[Exchange]
Route = RouteOf[Exchange]
MarketRoutes = dict[tuple[str, str], Route]
ROWS_MAX = 1000  # of an answer about trades or funding
DEPTHS = (5, 10, 20, 50, 100, 500, 1000)
KLINE_WEIGHTS = ((100, 1), (500, 2), (1000, 5), (1500, 10))
DEPTH_WEIGHTS = ((50, 2), (100, 5), (500, 10), (1000, 20))
CONTRACT_TYPES = ("PERPETUAL", "CURRENT_QUARTER", "NEXT_QUARTER", "TRADIFI_PERPETUAL")
RATE_LIMITS = [
    {"rateLimitType": "REQUEST_WEIGHT", "interval": "MINUTE", "intervalNum": 1, "limit": 2400},
    {"rateLimitType": "ORDERS", "interval": "MINUTE", "intervalNum": 1, "limit": 1200},
    {"rateLimitType": "ORDERS", "interval": "SECOND", "intervalNum": 10, "limit": 300},
]


def number(params: dict[str, str], name: str) -> int | None:
    return whole(params.get(name, ""))


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
        "rateLimits": [
            row | {"limit": int(int(row["limit"]) * (call.desk.limits.scale or SCALE_MAX))}  # type: ignore[call-overload]
            for row in RATE_LIMITS
        ],
        "exchangeFilters": [],
        "assets": [{"asset": "USDT", "marginAvailable": True, "autoAssetExchange": "-10000"}],
        "symbols": [
            info_row(s) | {"status": call.exchange.statuses.get(s.name, "TRADING")}
            for s in call.exchange.specs
        ],
    }


def klines(call: Call) -> Any:
    s = needs_symbol(call)
    return s if isinstance(s, Refusal) else _klines(call, s)


def continuous_klines(call: Call) -> Any:
    """Candles by pair; only perpetual contracts are listed, so dated ones have none."""
    pair, kind = call.params.get("pair"), call.params.get("contractType")
    if not pair or not kind:
        return mandatory("contractType" if pair else "pair")
    if pair not in call.exchange.index:
        return Refusal(-4144, "Invalid pair.")
    if kind not in CONTRACT_TYPES:
        return Refusal(-4104, "Invalid contract type.")
    rows = _klines(call, call.exchange.specs[call.exchange.index[pair]])
    return rows if isinstance(rows, Refusal) or kind == "PERPETUAL" else []


def _chosen(call: Call, candles_of: Callable[[str], Ints]) -> tuple[str, Ints] | Refusal:
    """Interval, and the rows of it that interval, times and limit ask for."""
    interval = call.params.get("interval", "")
    if interval not in INTERVALS:
        return Refusal(-1120, "Invalid interval.")
    limit = number(call.params, "limit") or 500
    if limit > 1500:
        return Refusal(-1130, "Data sent for parameter 'limit' is not valid.")
    rows = candles_of(interval)
    start, end = number(call.params, "startTime"), number(call.params, "endTime")
    if end is not None:
        rows = rows[rows[:, OPEN_MS] <= end]
    if start is not None:
        rows = rows[rows[:, OPEN_MS] >= start][:limit]
    return interval, rows[-limit:]


def _klines(call: Call, s: Symbol) -> list[Any] | Refusal:
    chosen = _chosen(call, lambda interval: folded(call.exchange, s.index, interval))
    if isinstance(chosen, Refusal):
        return chosen
    interval, rows = chosen
    return [kline_row(row, s, interval) for row in rows]


def _mark_klines(call: Call, s: Symbol, factor: int) -> list[Any] | Refusal:
    chosen = _chosen(call, lambda interval: marks(call.exchange, s.index, interval))
    if isinstance(chosen, Refusal):
        return chosen
    interval, rows = chosen
    rows[:, OPEN : CLOSE + 1] *= factor
    return [mark_row(row, interval) for row in rows]


def mark_price_klines(call: Call) -> Any:
    s = needs_symbol(call)
    return s if isinstance(s, Refusal) else _mark_klines(call, s, 1)


def index_price_klines(call: Call) -> Any:
    """By pair. The index is the mark here."""
    pair = call.params.get("pair")
    if not pair:
        return mandatory("pair")
    if pair not in call.exchange.index:
        return Refusal(-4144, "Invalid pair.")
    return _mark_klines(call, call.exchange.specs[call.exchange.index[pair]], 1)


def premium_index_klines(call: Call) -> Any:
    """The mark's distance from the index: none."""
    s = needs_symbol(call)
    return s if isinstance(s, Refusal) else _mark_klines(call, s, 0)


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


def limit_of(call: Call, usual: int) -> int | Refusal:
    """How many rows are wanted, at most ROWS_MAX."""
    limit = number(call.params, "limit") or usual
    if limit > ROWS_MAX:
        return Refusal(-1130, "Data sent for parameter 'limit' is not valid.")
    return limit


def agg_trades(call: Call) -> Any:
    s = needs_symbol(call)
    if isinstance(s, Refusal):
        return s
    limit = limit_of(call, 500)
    if isinstance(limit, Refusal):
        return limit
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


def recent_trades(call: Call) -> Any:
    """The newest prints; with `fromId` (historicalTrades) those from there on."""
    return _trades(call, None)


def historical_trades(call: Call) -> Any:
    return _trades(call, number(call.params, "fromId"))


def _trades(call: Call, first_id: int | None) -> Any:
    s = needs_symbol(call)
    if isinstance(s, Refusal):
        return s
    limit = limit_of(call, 500)
    if isinstance(limit, Refusal):
        return limit
    rows = bars.trades(call.exchange.record, s.index)
    if first_id is None:
        chosen = list(prints(rows[-limit:].tolist()))[-limit:]
    else:
        rows = rows[rows[:, 4] >= first_id][: limit + 1]
        chosen = [p for p in prints(rows.tolist()) if p.id >= first_id][:limit]
    return [trade_row(p, s) for p in chosen]


def funding_rate(call: Call) -> Any:
    """Settlements since birth, oldest first; before it the venue has none."""
    limit = limit_of(call, 100)
    if isinstance(limit, Refusal):
        return limit
    start, end = number(call.params, "startTime"), number(call.params, "endTime")
    name, rate = call.params.get("symbol"), text(FUNDING_RATE_E8, 8)
    rows = [
        {
            "symbol": s.name,
            "fundingTime": ms,
            "fundingRate": rate,
            "markPrice": text(mark, 8),
            "rateType": "Regular",
        }
        for settlement in bars.settlements(call.exchange.record).tolist()
        for s, (ms, mark) in zip(call.exchange.specs, settlement, strict=True)
        if name in (None, "", s.name)
        and (start is None or ms >= start)
        and (end is None or ms <= end)
    ]
    return rows[:limit] if start is not None else rows[-limit:]


def _each(call: Call, make: Any) -> Any:
    """One object with `symbol`, else a list over all."""
    name = call.params.get("symbol")
    if name:
        return make(call.exchange.specs[call.exchange.index[name]])
    return [make(s) for s in call.exchange.specs]


def ticker_24hr(call: Call) -> Any:
    return _each(call, lambda s: Day(call.exchange, s.index).row(call.exchange, call.now.market_ms))


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


def scenarios(call: Call) -> Any:
    return {"scenarios": planned(call.exchange)}


def plan_scenario(world: Exchange, body: bytes) -> dict[str, Any] | Refusal:
    """Plans what the JSON body asks for; `at_s` counts from now, 1 if nothing is said."""
    try:
        data = orjson.loads(body)
        if not isinstance(data, dict):
            raise ValueError("the body must be one JSON object")
        plan(world, from_json(data, math.ceil(world.made_until_ms) + 1))
    except ValueError as error:
        return Refusal(-1130, str(error))
    return planned(world)[-1]


ROUTES: MarketRoutes = {
    ("GET", "/fapi/v1/ping"): Route(ping),
    ("GET", "/fapi/v1/time"): Route(server_time),
    ("GET", "/fapi/v1/exchangeInfo"): Route(exchange_info),
    ("GET", "/fapi/v1/klines"): Route(klines, weight=5, by_limit=KLINE_WEIGHTS),
    ("GET", "/fapi/v1/depth"): Route(depth, weight=1, by_limit=DEPTH_WEIGHTS),
    ("GET", "/fapi/v1/rpiDepth"): Route(depth, weight=20),
    ("GET", "/fapi/v1/aggTrades"): Route(agg_trades, weight=20),
    ("GET", "/fapi/v1/trades"): Route(recent_trades, weight=5),
    ("GET", "/fapi/v1/historicalTrades"): Route(historical_trades, KEY, weight=200),
    ("GET", "/fapi/v1/continuousKlines"): Route(
        continuous_klines, weight=5, by_limit=KLINE_WEIGHTS
    ),
    ("GET", "/fapi/v1/markPriceKlines"): Route(mark_price_klines, weight=5, by_limit=KLINE_WEIGHTS),
    ("GET", "/fapi/v1/indexPriceKlines"): Route(
        index_price_klines, weight=5, by_limit=KLINE_WEIGHTS
    ),
    ("GET", "/fapi/v1/premiumIndexKlines"): Route(
        premium_index_klines, weight=5, by_limit=KLINE_WEIGHTS
    ),
    ("GET", "/fapi/v1/fundingRate"): Route(funding_rate),
    ("GET", "/fapi/v1/ticker/24hr"): Route(ticker_24hr, weight=40),
    ("GET", "/fapi/v1/ticker/price"): Route(ticker_price),
    ("GET", "/fapi/v2/ticker/price"): Route(ticker_price),
    ("GET", "/fapi/v1/ticker/bookTicker"): Route(ticker_book, weight=2),
    ("GET", "/fapi/v1/premiumIndex"): Route(premium_index),
    ("GET", "/venue/v1/scenario"): Route(scenarios, weight=0),
    ("GET", "/venue/v1/status"): Route(venue_status, weight=0),
}
