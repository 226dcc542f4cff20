"""Candles as REST rows and as a stream of their own; both out of the same record.

The stream speaks when a candle has traded since it last did, and once when it closes, traded or
not: then with `x` true, and before the next one's first word. Marks have candles too: published
ones since birth as far as they are kept, before that the trades' own.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import orjson

from venue import bars, intervals
from venue.bars import (
    CLOSE,
    FIRST,
    HIGH,
    LAST,
    LOW,
    OPEN,
    OPEN_MS,
    QUOTE,
    TAKER,
    TAKER_QUOTE,
    TRADES,
    VOLUME,
)
from venue.exchange import Exchange, candles, seed_candles
from venue.market import SCALE, Ints
from venue.symbols import Symbol

KLINE_INTERVAL_MS = 250


def text(value: int, digits: int) -> str:
    """Integer of 10**-digits as decimal text."""
    if digits <= 0:
        return str(value)
    whole, rest = divmod(int(value), 10**digits)
    return f"{whole}.{rest:0{digits}d}"


def folded(world: Exchange, symbol: int, interval: str) -> Ints:
    """All candles of an interval, the forming one last."""
    return intervals.fold(candles(world, symbol, intervals.base_of(interval)), interval)


def marks(world: Exchange, symbol: int, interval: str) -> Ints:
    """Candles of the mark price * 1e8; those that the marks do not cover whole are the trades'."""
    traded = folded(world, symbol, interval)
    own = bars.mark_candles(world.record, symbol)
    told = intervals.fold(own, interval)
    if len(told) and own[0, OPEN_MS] > told[0, OPEN_MS]:
        told = told[1:]  # cut short, and the only one
    first_ms = told[0, OPEN_MS] if len(told) else traded[-1, OPEN_MS] + 1
    before = traded[traded[:, OPEN_MS] < first_ms].copy()
    before[:, OPEN : CLOSE + 1] *= world.market.n[symbol, SCALE]
    ends = np.array([intervals.end_ms(int(row[OPEN_MS]), interval) for row in before], np.int64)
    before[:, TRADES] = (np.minimum(ends, int(world.made_until_ms)) - before[:, OPEN_MS]) // 1000
    return np.concatenate([before, told])


def mark_row(bar: Ints, interval: str) -> list[Any]:
    """A candle of marks as REST gives it: no volume, and how many marks there were."""
    b = [int(v) for v in bar]
    prices = [text(b[column], 8) for column in (OPEN, HIGH, LOW, CLOSE)]
    end = intervals.end_ms(b[OPEN_MS], interval) - 1
    return [b[OPEN_MS], *prices, "0", end, "0", b[TRADES], "0", "0", "0"]


def kline_row(bar: Ints, s: Symbol, interval: str) -> list[Any]:
    """A candle as REST gives it."""
    p, q = s.price_digits, s.qty_digits
    b = [int(v) for v in bar]
    return [
        b[OPEN_MS],
        text(b[OPEN], p),
        text(b[HIGH], p),
        text(b[LOW], p),
        text(b[CLOSE], p),
        text(b[VOLUME], q),
        intervals.end_ms(b[OPEN_MS], interval) - 1,
        text(b[QUOTE], p + q),
        b[TRADES],
        text(b[TAKER], q),
        text(b[TAKER_QUOTE], p + q),
        "0",
    ]


def kline_payload(bar: Ints, s: Symbol, interval: str, closed: bool, now_ms: int) -> dict[str, Any]:
    """A candle as the stream gives it, in wire order; ids are -1 when it has no published trade."""
    row = kline_row(bar, s, interval)
    k = {
        "t": row[0],
        "T": row[6],
        "s": s.name,
        "i": interval,
        "f": int(bar[FIRST]) or -1,
        "L": int(bar[LAST]) or -1,
        "o": row[1],
        "c": row[4],
        "h": row[2],
        "l": row[3],
        "v": row[5],
        "n": row[8],
        "x": closed,
        "q": row[7],
        "V": row[9],
        "Q": row[10],
        "B": row[11],
    }
    return {"e": "kline", "E": now_ms, "s": s.name, "k": k}


def continuous_payload(kline: dict[str, Any]) -> dict[str, Any]:
    """The same candle by pair and contract type; the candle itself names no symbol."""
    k = {key: value for key, value in kline["k"].items() if key != "s"}
    head = {"e": "continuous_kline", "E": kline["E"], "ps": kline["s"], "ct": "PERPETUAL"}
    return head | {"k": k}


class KlineStream:
    """One interval of one symbol: its forming candle and the newest trade when it last spoke."""

    def __init__(self, world: Exchange, symbol: int, interval: str, continuous: bool) -> None:
        self.symbol, self.interval = symbol, interval
        self._spec, self._continuous = world.specs[symbol], continuous
        self._base = intervals.base_of(interval)
        self._past = seed_candles(world, symbol)[0][self._base]
        self._closed = int(world.record.count[self._base, symbol])
        self._last = int(world.record.made[symbol, 2])
        newest = bars.candles(world.record, symbol, self._base)[-1:, OPEN_MS]
        self._open_ms = int(intervals.opens(newest, interval)[0])

    def look(self, world: Exchange, now_ms: int) -> list[bytes]:
        """Every candle that closed since the last look, then the forming one if it traded."""
        record, t, s = world.record, self._base, self.symbol
        closed, last = int(record.count[t, s]), int(record.made[s, 2])
        if closed == self._closed and last == self._last:
            return []
        live = bars.candles(record, s, t)
        past = self._past[self._past[:, OPEN_MS] < live[0, OPEN_MS]]
        rows = np.concatenate([part[part[:, OPEN_MS] >= self._open_ms] for part in (past, live)])
        shown = intervals.fold(rows, self.interval)
        told = shown[:-1] if last == self._last or shown[-1, TRADES] == 0 else shown
        self._closed, self._last, self._open_ms = closed, last, int(shown[-1, OPEN_MS])
        out = []
        for k, bar in enumerate(told):
            done = k < len(shown) - 1
            payload = kline_payload(bar, self._spec, self.interval, done, now_ms)
            out.append(orjson.dumps(continuous_payload(payload) if self._continuous else payload))
        return out
