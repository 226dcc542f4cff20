"""Streams that look at the market at their own pace: what they are called, when they are due.

A look happens at a whole multiple of its interval in market time, after every event up to then,
so what it says does not depend on how the venue steps. Nothing here runs for a stream that
nobody hears: a follower is made when the first listener comes and dropped with the last one.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from typing import Protocol

from venue.depth import DepthStream
from venue.exchange import Exchange
from venue.intervals import INTERVALS
from venue.klines import KLINE_INTERVAL_MS, KlineStream
from venue.prints import TradeStream
from venue.statistics import ASSET_INDEX_INTERVAL_MS, AssetIndexStream, SilentStream
from venue.tickers import (
    BOOKS_INTERVAL_MS,
    LIQUIDATION_INTERVAL_MS,
    TICKER_INTERVAL_MS,
    TICKERS_INTERVAL_MS,
    BooksStream,
    ContractStream,
    LiquidationStream,
    TickerStream,
)

EDGES_MAX = 64  # looks apart in one step; a longer step merges the oldest ones
# @0ms is not documented, but clients ask for it and are served: nothing here is faster than 100 ms
DEPTH_INTERVALS_MS = {"": 250, "@0ms": 100, "@100ms": 100, "@250ms": 250, "@500ms": 500}
DEPTH_TOPS = (5, 10, 20)
PERPETUAL = "_perpetual"  # continuousKline names a pair and this; other contracts are not listed


class Follower(Protocol):
    """Remembers what it last said; `look` gives the payloads of now."""

    def look(self, world: Exchange, now_ms: int) -> list[bytes]: ...


@dataclass(frozen=True, slots=True)
class Look:
    """A stream that is due every `interval_ms`, 0 at every step; `start` makes its follower."""

    route: str
    interval_ms: int
    start: Callable[[Exchange], Follower]


def _depth(stream: str, symbol: int) -> Look | None:
    """depth[5|10|20][@0ms|@100ms|@250ms|@500ms]; a diff at @250ms is not a name of the exchange."""
    head, mark, pace = stream.removeprefix("depth").partition("@")
    interval_ms = DEPTH_INTERVALS_MS.get(mark + pace)
    tops = {"": 0} | {str(top): top for top in DEPTH_TOPS}
    if interval_ms is None or head not in tops or (not head and pace == "250ms"):
        return None
    top = tops[head]
    return Look("public", interval_ms, lambda world: DepthStream(world, symbol, top))


def _all(name: str) -> Look | None:
    """Streams over all symbols."""

    def every(world: Exchange) -> range:
        return range(len(world.specs))

    if name == "!bookTicker":
        return Look("public", BOOKS_INTERVAL_MS, BooksStream)
    if name == "!contractInfo":
        return Look("market", 0, ContractStream)
    if name == "!assetIndex@arr":
        return Look("market", ASSET_INDEX_INTERVAL_MS, lambda w: AssetIndexStream(w, ""))
    if name == "!forceOrder@arr":
        return Look("market", LIQUIDATION_INTERVAL_MS, lambda w: LiquidationStream(w, ""))
    if name in ("!ticker@arr", "!miniTicker@arr"):
        mini = name == "!miniTicker@arr"
        return Look("market", TICKERS_INTERVAL_MS, lambda w: TickerStream(w, every(w), mini, True))
    return None


def _one(stream: str, s: int) -> Look | None:
    """Streams of one symbol."""
    if stream.startswith("depth"):
        return _depth(stream, s)
    if stream == "rpiDepth@500ms":  # no retail price improvement order: the book as everybody's
        return Look("public", 500, lambda w: DepthStream(w, s, 0))
    if stream == "compositeIndex":
        return Look("market", ASSET_INDEX_INTERVAL_MS, lambda w: SilentStream())
    if stream == "trade":
        return Look("public", 0, lambda w: TradeStream(w, s))
    kind, mark, interval = stream.partition("_")
    if kind == "kline" and mark and interval in INTERVALS:
        return Look("market", KLINE_INTERVAL_MS, lambda w: KlineStream(w, s, interval, False))
    if stream in ("ticker", "miniTicker"):
        mini, only = stream == "miniTicker", range(s, s + 1)
        return Look("market", TICKER_INTERVAL_MS, lambda w: TickerStream(w, only, mini, False))
    if stream == "forceOrder":
        return Look(
            "market", LIQUIDATION_INTERVAL_MS, lambda w: LiquidationStream(w, w.specs[s].name)
        )
    return None


def _continuous(stream: str, s: int) -> Look | None:
    """Streams of a pair's perpetual contract."""
    kind, _, interval = stream.partition("_")
    if kind != "continuousKline" or interval not in INTERVALS:
        return None
    return Look("market", KLINE_INTERVAL_MS, lambda w: KlineStream(w, s, interval, True))


def parse(name: str, index: dict[str, int]) -> Look | None:
    """The look that a stream name asks for; `index` has lower-case symbols."""
    if name.startswith("!"):
        return _all(name)
    symbol, _, stream = name.partition("@")
    if symbol in index:
        return _one(stream, index[symbol])
    if stream == "assetIndex" and f"{symbol}t" in index:  # btcusd@assetIndex, of BTCUSDT
        return Look(
            "market", ASSET_INDEX_INTERVAL_MS, lambda w: AssetIndexStream(w, symbol.upper())
        )
    pair, _, contract = symbol.rpartition("_")
    if contract == "perpetual" and pair in index:
        return _continuous(stream, index[pair])
    return None


@dataclass(slots=True)
class _Followed:
    look: Look
    follower: Follower
    looked_ms: int


class Watch:
    """The followers of every stream that is heard now."""

    def __init__(self) -> None:
        self._followed: dict[str, _Followed] = {}

    def hear(self, names: Collection[str], world: Exchange, index: dict[str, int]) -> None:
        """Starts and drops followers; the market stands as those who subscribed last saw it."""
        for name in self._followed.keys() - names:
            del self._followed[name]
        for name in names - self._followed.keys():
            look = parse(name, index)
            assert look is not None, "only names of looks are kept"
            now_ms = int(world.made_until_ms)
            self._followed[name] = _Followed(look, look.start(world), now_ms)

    def edges(self, from_ms: float, until_ms: float) -> list[float]:
        """Times to make the market to, in order: every look that is due, then `until_ms`."""
        due: set[int] = set()
        for step in {f.look.interval_ms for f in self._followed.values()} - {0}:
            first = max(int(from_ms) // step, int(until_ms) // step - EDGES_MAX) + 1
            due.update(range(first * step, int(until_ms) + 1, step))
        out: list[float] = [float(ms) for ms in sorted(due)[-EDGES_MAX:] if ms < until_ms]
        return [*out, until_ms]

    def looks(self, world: Exchange) -> Iterator[tuple[str, bytes]]:
        """(stream, payload) of every stream that is due at the market's present time."""
        now_ms = int(world.made_until_ms)
        for name, followed in self._followed.items():
            step = followed.look.interval_ms
            if not step or now_ms // step > followed.looked_ms // step:
                followed.looked_ms = now_ms
                for payload in followed.follower.look(world, now_ms):
                    yield name, payload
