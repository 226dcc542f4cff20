"""What the exchange tells about the crowd and its indices: synthetic, but of one piece.

Open interest and long/short shares are smooth functions of seed, symbol and market time, so that
anybody who asks twice, or for another period, is told the same. Taker volumes are those of the
candles, prices those of the marks. Handlers are pure: a Call in, JSON data out.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import orjson

from venue import intervals, market
from venue.bars import OPEN, OPEN_MS, TAKER, VOLUME
from venue.checks import SYMBOL_UNKNOWN, mandatory
from venue.exchange import Exchange, book_of
from venue.klines import folded, marks, text
from venue.market import Ints
from venue.orders import Refusal
from venue.public import Call, MarketRoutes, Route
from venue.symbols import FUNDING_INTERVAL_MS, Symbol, fixed

PERIODS = ("5m", "15m", "30m", "1h", "2h", "4h", "6h", "12h", "1d")
ROWS_USUAL, ROWS_MAX = 30, 500
KEPT_MS = 30 * intervals.DAY_MS
ASSET_INDEX_INTERVAL_MS = 1000
ADL_UPDATE_MS = 30 * intervals.MINUTE_MS
OPEN_INTEREST_SIZES = 1_000_000  # mean trades that are held open
WAVES_MS = (3 * intervals.DAY_MS, 8 * intervals.HOUR_MS, intervals.HOUR_MS)  # each half as strong
CONTRACTS = ("PERPETUAL", "CURRENT_QUARTER", "NEXT_QUARTER")
FUNDING_CAP, FUNDING_CAP_MAJOR = "0.02000000", "0.00300000"
# haircut of an asset in margin, and when it is exchanged by itself
BUFFERS = {"USDT": ("0.00010000", "0.00010000")}
BUFFERS_OTHER = ("0.05000000", "0.02500000")
WORD = (1 << 64) - 1


def _mixed(word: int) -> float:
    """A word's hash in 0..1."""
    z = (word + 0x9E3779B97F4A7C15) & WORD
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & WORD
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & WORD
    return float((z ^ (z >> 31)) >> 11) / (1 << 53)


def wave(seed: int, symbol: int, topic: int, ms: int) -> float:
    """A smooth random function of time, -1 to 1."""
    out = weight = 0.0
    for k, span in enumerate(WAVES_MS):
        at, rest = divmod(ms, span)
        key = ((seed * 1_000_003 + symbol) * 101 + topic) * 11 + k
        left, right = (_mixed(key * 1_000_000_007 + at + side) for side in (0, 1))
        share = rest / span
        share = share * share * (3 - 2 * share)
        out += (left + (right - left) * share) * 2.0**-k
        weight += 2.0**-k
    return 2 * out / weight - 1


def open_interest(world: Exchange, s: Symbol, ms: int) -> int:
    """Units of the quantity held open."""
    mean = float(s.qty_mean / s.unit) * OPEN_INTEREST_SIZES
    return int(mean * (1 + 0.4 * wave(world.setup.seed, s.index, 0, ms)))


def _asked(call: Call, name: str) -> tuple[Symbol, str] | Refusal:
    """Symbol (under that parameter) and period of a question."""
    symbol, period = call.params.get(name), call.params.get("period")
    if not symbol or not period:
        return mandatory("period" if symbol else name)
    if symbol not in call.exchange.index:
        return SYMBOL_UNKNOWN
    if period not in PERIODS:
        return Refusal(-1130, "Data sent for parameter 'period' is not valid.")
    return call.exchange.specs[call.exchange.index[symbol]], period


def _rows(
    call: Call, name: str, candles_of: Callable[[Exchange, int, str], Ints], closed: bool
) -> tuple[Symbol, Ints] | Refusal:
    """Candles at whose opening a row is told, of the last 30 days, as times and limit choose."""
    asked = _asked(call, name)
    if isinstance(asked, Refusal):
        return asked
    params = call.params
    words = {key: params.get(key, "") for key in ("limit", "startTime", "endTime")}
    given = {key: int(word) for key, word in words.items() if word.isascii() and word.isdigit()}
    limit = given.get("limit", ROWS_USUAL)
    if not 0 < limit <= ROWS_MAX:
        return Refusal(-1130, "Data sent for parameter 'limit' is not valid.")
    s, period = asked
    rows = candles_of(call.exchange, s.index, period)
    rows = rows[:-1] if closed else rows
    rows = rows[rows[:, OPEN_MS] > call.now.market_ms - KEPT_MS]
    rows = rows[rows[:, OPEN_MS] <= given.get("endTime", call.now.market_ms)]
    rows = rows[rows[:, OPEN_MS] >= given.get("startTime", 0)]
    return s, rows[:limit] if "startTime" in given else rows[-limit:]


def open_interest_now(call: Call) -> Any:
    name = call.params.get("symbol")
    if not name:
        return mandatory("symbol")
    s = call.exchange.specs[call.exchange.index[name]]
    units = open_interest(call.exchange, s, call.now.market_ms)
    return {
        "openInterest": text(units, s.qty_digits),
        "symbol": s.name,
        "time": call.now.market_ms,
    }


def open_interest_history(call: Call) -> Any:
    found = _rows(call, "symbol", marks, False)
    if isinstance(found, Refusal):
        return found
    s, rows = found
    out = []
    for row in rows.tolist():
        units = open_interest(call.exchange, s, row[OPEN_MS])
        out.append(
            {
                "symbol": s.name,
                "sumOpenInterest": text(units * 10 ** (8 - s.qty_digits), 8),
                "sumOpenInterestValue": text(units * row[OPEN] // 10**s.qty_digits, 8),
                "CMCCirculatingSupply": "0.00000000",
                "timestamp": row[OPEN_MS],
            }
        )
    return out


def _ratio(topic: int, depth: float) -> Callable[[Call], Any]:
    """Handler of one crowd: the share of it that is long, `depth` around a half."""

    def handler(call: Call) -> Any:
        found = _rows(call, "symbol", folded, False)
        if isinstance(found, Refusal):
            return found
        s, rows = found
        out = []
        for ms in rows[:, OPEN_MS].tolist():
            swing = wave(call.exchange.setup.seed, s.index, topic, ms)
            long = round((0.5 + depth * swing) * 10_000)
            out.append(
                {
                    "symbol": s.name,
                    "longAccount": text(long, 4),
                    "longShortRatio": f"{long / (10_000 - long):.4f}",
                    "shortAccount": text(10_000 - long, 4),
                    "timestamp": ms,
                }
            )
        return out

    return handler


def taker_ratio(call: Call) -> Any:
    """Taker volumes of closed candles, at their opening."""
    found = _rows(call, "symbol", folded, True)
    if isinstance(found, Refusal):
        return found
    s, rows = found
    return [
        {
            "buySellRatio": f"{row[TAKER] / max(row[VOLUME] - row[TAKER], 1):.4f}",
            "sellVol": text(row[VOLUME] - row[TAKER], s.qty_digits),
            "buyVol": text(row[TAKER], s.qty_digits),
            "timestamp": row[OPEN_MS],
        }
        for row in rows.tolist()
    ]


def basis(call: Call) -> Any:
    """Last price against index at the opening of each period."""
    kind = call.params.get("contractType")
    if not kind:
        return mandatory("contractType")
    if kind not in CONTRACTS:
        return Refusal(-4104, "Invalid contract type.")
    indices = _rows(call, "pair", marks, False)
    traded = _rows(call, "pair", folded, False)
    if isinstance(indices, Refusal) or isinstance(traded, Refusal):
        return indices if isinstance(indices, Refusal) else traded
    s, rows = traded
    if kind != "PERPETUAL":
        return []  # no dated contract is listed
    scale = int(call.exchange.market.n[s.index, market.SCALE])
    index = {row[OPEN_MS]: row[OPEN] for row in indices[1].tolist()}
    return [
        {
            "indexPrice": text(index[row[OPEN_MS]], 8),
            "contractType": kind,
            "basisRate": f"{row[OPEN] * scale / index[row[OPEN_MS]] - 1:.4f}",
            "futuresPrice": text(row[OPEN], s.price_digits),
            "annualizedBasisRate": "",
            "basis": f"{(row[OPEN] * scale - index[row[OPEN_MS]]) / 1e8:.8f}",
            "pair": s.name,
            "timestamp": row[OPEN_MS],
        }
        for row in rows.tolist()
        if row[OPEN_MS] in index
    ]


def funding_info(call: Call) -> Any:
    """Every symbol; a symbol in the question is ignored, as on the exchange."""

    def row(s: Symbol) -> dict[str, Any]:
        cap = FUNDING_CAP_MAJOR if s.name in ("BTCUSDT", "ETHUSDT") else FUNDING_CAP
        return {
            "symbol": s.name,
            "adjustedFundingRateCap": cap,
            "adjustedFundingRateFloor": f"-{cap}",
            "fundingIntervalHours": FUNDING_INTERVAL_MS // intervals.HOUR_MS,
            "disclaimer": False,
            "updateTime": None,
        }

    return [row(s) for s in call.exchange.specs]


def adl_risk(call: Call) -> Any:
    """The insurance fund pays all here, so that nobody is near ADL."""
    half_hour = call.now.market_ms // ADL_UPDATE_MS * ADL_UPDATE_MS
    rows = [
        {"symbol": s.name, "adlRisk": "low", "updateTime": half_hour} for s in call.exchange.specs
    ]
    name = call.params.get("symbol")
    return rows[call.exchange.index[name]] if name else rows


def index_info(call: Call) -> Any:
    """No composite index is listed."""
    return []


def constituents(call: Call) -> Any:
    """The index comes from one exchange: this one."""
    name = call.params.get("symbol")
    if not name:
        return mandatory("symbol")
    price = book_of(call.exchange, call.exchange.index[name]).mark
    source = {"exchange": "binance", "symbol": name, "price": fixed(price, 8)}
    source["weight"] = "1.00000000"
    return {"symbol": name, "time": call.now.market_ms, "constituents": [source]}


def asset_rows(world: Exchange, now_ms: int) -> list[dict[str, Any]]:
    """Assets against the dollar: USDT, then the base of each USDT pair at its mark."""
    prices = {"USDT": 10**8}
    for s in world.specs:
        if s.name == f"{s.base}USDT":
            n = world.market.n[s.index]
            prices[s.base] = int(n[market.BID] + n[market.ASK]) * int(n[market.SCALE]) // 2
    out = []
    for asset, price in prices.items():
        buffer, automatic = BUFFERS.get(asset, BUFFERS_OTHER)
        row: dict[str, Any] = {"symbol": f"{asset}USD", "time": now_ms, "index": text(price, 8)}
        for head, share in (("", buffer), ("autoExchange", automatic)):
            bid, ask = ("bid", "ask") if not head else (f"{head}Bid", f"{head}Ask")
            row[f"{bid}Buffer"] = row[f"{ask}Buffer"] = share
            row[f"{bid}Rate"] = text(int(price * (1 - float(share)) + 0.5), 8)
            row[f"{ask}Rate"] = text(int(price * (1 + float(share)) + 0.5), 8)
        out.append(row)
    return out


def asset_index(call: Call) -> Any:
    rows = asset_rows(call.exchange, call.now.market_ms)
    name = call.params.get("symbol")
    if not name:
        return rows
    return next((row for row in rows if row["symbol"] == name), SYMBOL_UNKNOWN)


_SHORT = {
    "symbol": "s",
    "index": "i",
    "bidBuffer": "b",
    "askBuffer": "a",
    "bidRate": "B",
    "askRate": "A",
    "autoExchangeBidBuffer": "q",
    "autoExchangeAskBuffer": "g",
    "autoExchangeBidRate": "Q",
    "autoExchangeAskRate": "G",
}


class AssetIndexStream:
    """All assets in one array, or one of them by itself."""

    def __init__(self, world: Exchange, asset: str) -> None:
        self.asset = asset  # empty: all

    def look(self, world: Exchange, now_ms: int) -> list[bytes]:
        out = []
        for row in asset_rows(world, now_ms):
            if self.asset in ("", row["symbol"]):
                short = {key: row[name] for name, key in _SHORT.items()}
                out.append({"e": "assetIndexUpdate", "E": now_ms} | short)
        if self.asset:
            return [orjson.dumps(row) for row in out]
        return [orjson.dumps(out)]


class SilentStream:
    """A stream of what does not happen here: no contract changes, no composite index."""

    def look(self, world: Exchange, now_ms: int) -> list[bytes]:
        return []


ROUTES: MarketRoutes = {
    ("GET", "/fapi/v1/openInterest"): Route(open_interest_now),
    ("GET", "/fapi/v1/fundingInfo"): Route(funding_info, weight=0),
    ("GET", "/fapi/v1/indexInfo"): Route(index_info),
    ("GET", "/fapi/v1/symbolAdlRisk"): Route(adl_risk),
    ("GET", "/fapi/v1/assetIndex"): Route(asset_index, weight_all=10),
    ("GET", "/fapi/v1/constituents"): Route(constituents, weight=2),
    ("GET", "/futures/data/openInterestHist"): Route(open_interest_history, weight=0),
    ("GET", "/futures/data/topLongShortAccountRatio"): Route(_ratio(1, 0.25), weight=0),
    ("GET", "/futures/data/topLongShortPositionRatio"): Route(_ratio(2, 0.15), weight=0),
    ("GET", "/futures/data/globalLongShortAccountRatio"): Route(_ratio(3, 0.3), weight=0),
    ("GET", "/futures/data/takerlongshortRatio"): Route(taker_ratio, weight=0),
    ("GET", "/futures/data/basis"): Route(basis, weight=0),
}
