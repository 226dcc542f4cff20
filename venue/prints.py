"""Single trades: the prints that an aggregate is made of, for `@trade` and REST trades.

The market draws an aggregate's size and its trade ids; the prints share the size as evenly as
whole units allow, the earlier ones the rest. They say the same whoever asks, and sum to the
aggregate. A taped aggregate is shared out alike: the tape's own prints are not kept.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import orjson

from venue.exchange import Exchange
from venue.klines import text
from venue.market import Ints
from venue.symbols import Symbol


@dataclass(frozen=True, slots=True)
class Print:
    id: int
    price: int
    qty: int
    ms: int
    buyer_maker: bool


def prints(aggregates: Iterable[list[int]]) -> Iterator[Print]:
    """Prints of rows `id price qty first last T buyer_maker`, in order of their ids."""
    for _, price, qty, first, last, ms, maker in aggregates:
        each, rest = divmod(qty, last - first + 1)
        for k in range(last - first + 1):
            size = each + (1 if k < rest else 0)
            if size > 0:
                yield Print(first + k, price, size, ms, bool(maker))


def trade_row(p: Print, s: Symbol) -> dict[str, Any]:
    """As REST gives it."""
    return {
        "id": p.id,
        "price": text(p.price, s.price_digits),
        "qty": text(p.qty, s.qty_digits),
        "quoteQty": text(p.price * p.qty, s.price_digits + s.qty_digits),
        "time": p.ms,
        "isBuyerMaker": p.buyer_maker,
        "isRPITrade": False,
    }


class TradeStream:
    """`@trade` of one symbol: every print since the newest aggregate told, at each step."""

    def __init__(self, world: Exchange, symbol: int) -> None:
        self.symbol = symbol
        self._last = int(world.record.made[symbol, 2])

    def look(self, world: Exchange, now_ms: int) -> list[bytes]:
        ring: Ints = world.record.ring[self.symbol]
        s, last = world.specs[self.symbol], int(world.record.made[self.symbol, 2])
        first = max(self._last or int(world.record.made[self.symbol, 1]) - 1, last - len(ring)) + 1
        rows = [ring[k % len(ring)].tolist() for k in range(first, last + 1)] if last else []
        self._last = last
        return [
            orjson.dumps(
                {
                    "e": "trade",
                    "E": p.ms,
                    "T": p.ms,
                    "s": s.name,
                    "t": p.id,
                    "p": text(p.price, s.price_digits),
                    "q": text(p.qty, s.qty_digits),
                    "X": "MARKET",
                    "m": p.buyer_maker,
                    "st": 1,
                }
            )
            for p in prints(rows)
        ]
