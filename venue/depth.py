"""Depth streams: the synthetic ladder as integers, and what changed in it between two looks.

A ladder is the same as `ladder.levels` and REST depth: LEVELS rows a side, best first. A diff
holds absolute sizes; a level that left the ladder, at either end, has size zero. Each event's
`pu` is the `u` of the one before it, so a book kept by the documented procedure is the ladder
at `u`, level by level. A ladder lives only as long as somebody hears its stream.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numba import njit

from venue import market
from venue.exchange import Exchange
from venue.ladder import LEVELS
from venue.market import Ints
from venue.wire import Bytes, _put_fixed

PRICE, QTY = 0, 1
LEVEL_BYTES = 48  # `["price","qty"],` with two numbers of 18 digits and their points
OUT_BYTES = 2 * LEVELS * LEVEL_BYTES  # one side: every old level gone, every new one come


@njit(cache=True)
def _ladder(best: int, best_qty: int, step: int, tick: int, units: int, out: Ints) -> int:
    """Fills out[level, (price, qty)] from the best one on; returns how many levels there are."""
    price = best
    for k in range(out.shape[0]):
        if price <= 0:
            return k
        out[k, PRICE] = price
        mix = price // tick * 2654435761 % 4096
        size = units * (2 + k // 4) * (512 + mix) // 4096
        out[k, QTY] = best_qty if k == 0 else max(1, size)
        price += step
    return int(out.shape[0])


@njit(cache=True)
def _put_level(out: Bytes, at: int, price: int, qty: int, digits: Ints) -> int:
    """`["price","qty"]`, after a comma unless it is the first."""
    if at > 0:
        out[at] = 44
        at += 1
    out[at] = 91
    out[at + 1] = 34
    at = _put_fixed(out, at + 2, price, digits[0])
    out[at] = 34
    out[at + 1] = 44
    out[at + 2] = 34
    at = _put_fixed(out, at + 3, qty, digits[1])
    out[at] = 34
    out[at + 1] = 93
    return at + 2


@njit(cache=True)
def _put_diff(old: Ints, new: Ints, sign: int, digits: Ints, out: Bytes) -> int:
    """Levels of `new` that are not in `old`, and those gone with size 0, best first.

    `sign` is 1 for asks and -1 for bids. Returns the bytes written.
    """
    at = i = j = 0
    while i < old.shape[0] or j < new.shape[0]:
        if j == new.shape[0] or (i < old.shape[0] and old[i, PRICE] * sign < new[j, PRICE] * sign):
            at = _put_level(out, at, old[i, PRICE], 0, digits)
            i += 1
            continue
        same = i < old.shape[0] and old[i, PRICE] == new[j, PRICE]
        if not same or old[i, QTY] != new[j, QTY]:
            at = _put_level(out, at, new[j, PRICE], new[j, QTY], digits)
        i += 1 if same else 0
        j += 1
    return at


@njit(cache=True)
def _put_side(new: Ints, digits: Ints, out: Bytes) -> int:
    at = 0
    for j in range(new.shape[0]):
        at = _put_level(out, at, new[j, PRICE], new[j, QTY], digits)
    return at


def ladder(world: Exchange, symbol: int, count: int = LEVELS) -> tuple[Ints, Ints]:
    """Bids and asks [level, (price, qty)] of a symbol now, best first."""
    n, s = world.market.n[symbol], world.specs[symbol]
    tick, units = s.tick_points, int(s.qty_mean / s.unit)
    sides = []
    for best, qty, step in ((market.BID, market.BIDQ, -tick), (market.ASK, market.ASKQ, tick)):
        out = np.zeros((count, 2), np.int64)
        sides.append(out[: _ladder(int(n[best]), int(n[qty]), step, tick, units, out)])
    return sides[0], sides[1]


class DepthStream:
    """One stream of one symbol: the ladder when it last spoke. `top` 0 is the diff stream."""

    def __init__(self, world: Exchange, symbol: int, top: int) -> None:
        s = world.specs[symbol]
        self.symbol, self.top = symbol, top
        self._name = s.name
        self._digits = np.array((s.price_digits, s.qty_digits), np.int64)
        self._out = np.zeros(OUT_BYTES, np.uint8)
        self._u = int(world.market.n[symbol, market.UPDATE_ID])
        self._bids, self._asks = ladder(world, symbol, top or LEVELS)

    def look(self, world: Exchange, now_ms: int) -> list[bytes]:
        """The event since the last look; none when the book is as it was."""
        u = int(world.market.n[self.symbol, market.UPDATE_ID])
        if u <= self._u:
            return []
        bids, asks = ladder(world, self.symbol, self.top or LEVELS)
        if self.top:
            b = self._text(lambda out: _put_side(bids, self._digits, out))
            a = self._text(lambda out: _put_side(asks, self._digits, out))
        else:
            b = self._text(lambda out: _put_diff(self._bids, bids, -1, self._digits, out))
            a = self._text(lambda out: _put_diff(self._asks, asks, 1, self._digits, out))
        before, self._u, self._bids, self._asks = self._u, u, bids, asks
        head = (
            f'{{"e":"depthUpdate","E":{now_ms},"T":{now_ms},"s":"{self._name}",'
            f'"ps":"{self._name}","U":{before + 1},"u":{u},"pu":{before},"b":['
        )
        return [head.encode() + b + b'],"a":[' + a + b'],"st":1}']

    def _text(self, put: Callable[[Bytes], int]) -> bytes:
        return self._out[: put(self._out)].tobytes()


def warm(world: Exchange) -> None:
    """Loads the kernels before the first listener comes."""
    for top in (0, 1):
        stream = DepthStream(world, 0, top)
        stream._u -= 1
        stream.look(world, 0)
