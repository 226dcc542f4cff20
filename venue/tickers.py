"""24-hour figures, best quotes of all symbols and liquidations: REST rows and streams of them.

The day is the hours that began less than 24 hours ago with the forming one: coarse, but out of
the same record as the candles, and the same in REST and in every stream.
"""

from __future__ import annotations

from typing import Any

import orjson

from venue import bars, market
from venue.bars import (
    CLOSE,
    FIRST,
    HIGH,
    LAST,
    LOW,
    OPEN,
    OPEN_MS,
    QUOTE,
    TIMEFRAMES,
    TRADES,
    VOLUME,
)
from venue.exchange import Exchange, seed_candles
from venue.klines import text
from venue.market import Ints
from venue.orders import Order, Trade
from venue.symbols import DELIVERY_MS, ONBOARD_MS, fixed

TICKER_INTERVAL_MS = 2000  # of one symbol
TICKERS_INTERVAL_MS = 1000  # of all symbols
BOOKS_INTERVAL_MS = 5000
LIQUIDATION_INTERVAL_MS = 1000
DAY_MS = 86_400_000
HOUR_MS = 3_600_000
HOURS = TIMEFRAMES.index("1h")


class Day:
    """The last 24 hours of one symbol. Closed hours are summed once an hour."""

    def __init__(self, world: Exchange, symbol: int) -> None:
        self.symbol, self._spec = symbol, world.specs[symbol]
        self._past = seed_candles(world, symbol)[0][HOURS][-DAY_MS // HOUR_MS :]
        self._key = (-1, -1)
        self._whole = self._past[-1].copy()

    def bar(self, world: Exchange, now_ms: int) -> Ints:
        """All of it as one candle, OPEN_MS of its first hour."""
        record, s = world.record, self.symbol
        key = (int(record.count[HOURS, s]), now_ms // HOUR_MS)
        if key != self._key:
            live = bars.candles(record, s, HOURS)[:-1]
            born_ms = int(record.forming[HOURS, s, OPEN_MS]) if len(live) == 0 else live[0, OPEN_MS]
            hours = [*self._past[self._past[:, OPEN_MS] < born_ms], *live]
            hours = [hour for hour in hours if hour[OPEN_MS] > now_ms - DAY_MS]
            self._whole = hours[0].copy() if hours else record.forming[HOURS, s].copy()
            self._whole[VOLUME:] = 0
            self._whole[TRADES] = 0
            for hour in hours:
                bars._merge(self._whole, hour)
            self._key = key
        whole: Ints = self._whole.copy()
        for part in (record.forming[HOURS, s], record.forming[0, s]):
            bars._merge(whole, part)
        return whole

    def row(self, world: Exchange, now_ms: int) -> dict[str, Any]:
        """As REST gives it, keys in its order."""
        s, b = self._spec, [int(v) for v in self.bar(world, now_ms)]
        p, q = s.price_digits, s.qty_digits
        ring, newest = world.record.ring[self.symbol], int(world.record.made[self.symbol, 2])
        return {
            "closeTime": now_ms,
            "count": b[TRADES],
            "firstId": b[FIRST] or -1,
            "highPrice": text(b[HIGH], p),
            "lastId": b[LAST] or -1,
            "lastPrice": text(b[CLOSE], p),
            "lastQty": text(int(ring[newest % len(ring), 2]), q),
            "lowPrice": text(b[LOW], p),
            "openPrice": text(b[OPEN], p),
            "openTime": b[OPEN_MS],
            "priceChange": f"{(b[CLOSE] - b[OPEN]) / 10**p:.{p}f}",
            "priceChangePercent": f"{(b[CLOSE] / b[OPEN] - 1) * 100:.3f}",
            "quoteVolume": text(b[QUOTE], p + q),
            "symbol": s.name,
            "volume": text(b[VOLUME], q),
            "weightedAvgPrice": text(b[QUOTE] // max(b[VOLUME], 1), p),
        }


def ticker_payload(row: dict[str, Any]) -> dict[str, Any]:
    return {
        "e": "24hrTicker",
        "E": row["closeTime"],
        "s": row["symbol"],
        "ps": row["symbol"],
        "p": row["priceChange"],
        "P": row["priceChangePercent"],
        "w": row["weightedAvgPrice"],
        "c": row["lastPrice"],
        "Q": row["lastQty"],
        "o": row["openPrice"],
        "h": row["highPrice"],
        "l": row["lowPrice"],
        "v": row["volume"],
        "q": row["quoteVolume"],
        "O": row["openTime"],
        "C": row["closeTime"],
        "F": row["firstId"],
        "L": row["lastId"],
        "n": row["count"],
        "st": 1,
    }


def mini_payload(row: dict[str, Any]) -> dict[str, Any]:
    return {
        "e": "24hrMiniTicker",
        "E": row["closeTime"],
        "s": row["symbol"],
        "ps": row["symbol"],
        "c": row["lastPrice"],
        "o": row["openPrice"],
        "h": row["highPrice"],
        "l": row["lowPrice"],
        "v": row["volume"],
        "q": row["quoteVolume"],
        "st": 1,
    }


class TickerStream:
    """Days of the symbols that traded since the last look: each a frame, or all in one array."""

    def __init__(self, world: Exchange, symbols: range, mini: bool, whole: bool) -> None:
        self.symbols, self._whole = symbols, whole
        self._payload = mini_payload if mini else ticker_payload
        self._days: dict[int, Day] = {}
        self._last = world.record.made[:, 2].copy()

    def look(self, world: Exchange, now_ms: int) -> list[bytes]:
        last, out = world.record.made[:, 2], []
        for s in self.symbols:
            if last[s] != self._last[s]:
                if s not in self._days:
                    self._days[s] = Day(world, s)
                out.append(self._payload(self._days[s].row(world, now_ms)))
        self._last = last.copy()
        if self._whole:
            return [orjson.dumps(out)] if out else []
        return [orjson.dumps(payload) for payload in out]


class BooksStream:
    """`!bookTicker`: a frame for each symbol whose best quote is another than at the last look."""

    def __init__(self, world: Exchange) -> None:
        self._u = world.market.n[:, market.UPDATE_ID].copy()

    def look(self, world: Exchange, now_ms: int) -> list[bytes]:
        n, out = world.market.n, []
        for s in world.specs:
            row = n[s.index]
            if row[market.UPDATE_ID] == self._u[s.index]:
                continue
            payload = {
                "e": "bookTicker",
                "u": int(row[market.UPDATE_ID]),
                "s": s.name,
                "ps": s.name,
                "b": text(int(row[market.BID]), s.price_digits),
                "B": text(int(row[market.BIDQ]), s.qty_digits),
                "a": text(int(row[market.ASK]), s.price_digits),
                "A": text(int(row[market.ASKQ]), s.qty_digits),
                "T": now_ms,
                "E": now_ms,
                "st": 1,
            }
            out.append(orjson.dumps(payload))
        self._u = n[:, market.UPDATE_ID].copy()
        return out


class LiquidationStream:
    """The largest liquidation of each symbol since the last look. Only our account has any."""

    def __init__(self, world: Exchange, symbol: str) -> None:
        self.symbol = symbol  # empty: all
        self._told = world.liquidated

    def look(self, world: Exchange, now_ms: int) -> list[bytes]:
        new, self._told = world.liquidated - self._told, world.liquidated
        largest: dict[str, tuple[Order, Trade, int]] = {}
        for event in list(world.liquidations)[len(world.liquidations) - new :] if new else ():
            name = event[0].symbol
            if self.symbol in ("", name) and (
                name not in largest or event[0].qty >= largest[name][0].qty
            ):
                largest[name] = event
        return [orjson.dumps(_force_order(world, *event, now_ms)) for event in largest.values()]


def _force_order(
    world: Exchange, order: Order, trade: Trade, ms: int, now_ms: int
) -> dict[str, Any]:
    s = world.specs[world.index[order.symbol]]
    return {
        "e": "forceOrder",
        "E": now_ms,
        "o": {
            "s": s.name,
            "S": order.side,
            "o": "LIMIT",
            "f": "IOC",
            "q": fixed(order.qty, s.qty_digits),
            "p": fixed(order.price, s.price_digits),
            "ap": fixed(order.quote / order.executed, s.price_digits),
            "X": order.status,
            "l": fixed(trade.qty, s.qty_digits),
            "z": fixed(order.executed, s.qty_digits),
            "T": ms,
            "ps": s.name,
            "st": 1,
        },
    }


class ContractStream:
    """Symbols whose status changed since the last look."""

    def __init__(self, world: Exchange) -> None:
        self._told = dict(world.statuses)

    def look(self, world: Exchange, now_ms: int) -> list[bytes]:
        new = {s: v for s, v in world.statuses.items() if self._told.get(s) != v}
        self._told |= new
        return [orjson.dumps(_contract_info(name, now_ms, now)) for name, now in new.items()]


def _contract_info(name: str, now_ms: int, status: str) -> dict[str, Any]:
    return {
        "e": "contractInfo",
        "E": now_ms,
        "s": name,
        "ps": name,
        "ct": "PERPETUAL",
        "dt": DELIVERY_MS,
        "ot": ONBOARD_MS,
        "cs": status,
        "st": 1,
    }
