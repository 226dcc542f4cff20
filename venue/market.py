"""The market: one seeded kernel that makes trades, quotes and marks of all symbols in order.

The sequence of events depends on seed, symbols, rate, speed, edge and tape only, never on how
often the kernel is called: `produce` makes every event with E <= `until_ms` and leaves the rest
for the next call. Prices are driftless but for one known thing: after a structure break (price
beyond the last confirmed swing) a symbol drifts in the break's direction for DRIFT_MS, by `edge`
standard deviations of that span in all. With edge 0 the price is a martingale; volatility
still switches between quiet, normal and burst. Trades print at the last published best bid
or ask. Taped symbols are copied from the tape at their own times and get marks from their mid.

Events are rows of int64: KIND SYM EVENT_MS TRADE_MS ID P1 Q1 P2 Q2 FLAG
  AGG    id aggregate id   p1 price  q1 qty  p2 first trade id  q2 last trade id  flag buyer maker
  BOOK   id update id      p1 bid    q1 bid qty  p2 ask  q2 ask qty
  MARK   p1 mark * 1e8  p2 index * 1e8  q1 funding rate * 1e8  q2 next funding time ms
  MARK3  as MARK, every third second      ARR, ARR3   all marks of this second, one row
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from venue.symbols import FUNDING_INTERVAL_MS, FUNDING_RATE_E8, Symbol

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Words = NDArray[np.uint64]

AGG, BOOK, MARK, MARK3, ARR, ARR3 = 0, 1, 2, 3, 4, 5
KINDS = 6
KIND, SYM, EVENT_MS, TRADE_MS, ID, P1, Q1, P2, Q2, FLAG = range(10)
EVENT_COLS = 10

# float state per symbol
MID, SIGMA, VOL, VOL_UNTIL, DRIFT, DRIFT_UNTIL, SEEN, EXTREME, SWING_HI, SWING_LO, QTY = range(11)
FLOAT_COLS = 11
# integer state per symbol
TICK, BID, BIDQ, ASK, ASKQ, LAST, AGG_ID, TRADE_ID, UPDATE_ID, LEG, BROKE, TAPED, SCALE = range(13)
INT_COLS = 13
# float globals
NEXT_MS, GAP_MS, STUCK, EDGE, NEXT_MARK, TAPE_AT = range(6)
GLOBAL_COLS = 6

MINUTE_MS = 60_000.0
DRIFT_MS = 10 * MINUTE_MS  # long enough that a 1m or 5m candle reader can act on the break
SWING_SIGMAS = 2.2  # a swing is confirmed by a pull-back of so many one-minute deviations
SIGMA_BP_LEAST, SIGMA_BP_MOST = 22.0, 36.0  # one-minute deviation of a symbol, basis points
TRADE_SHARE = 1.0 / 3.0
ROWS_MAX = 16_384  # rows of one call; `produce` returns early when they are used up
BASE_MS = 1_772_496_000_000  # 2026-03-03 00:00 UTC
BIRTH_LEAD_MS = 140_000  # 23:57:40: every timeframe closes within 140 s, funding before any entry
FIRST_ID = 1_000_000


@njit(cache=True, inline="always")
def _uniform(rng: Words) -> float:
    """splitmix64, in (0, 1)."""
    rng[0] += np.uint64(0x9E3779B97F4A7C15)
    z = rng[0]
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    z = z ^ (z >> np.uint64(31))
    return (float(z >> np.uint64(11)) + 0.5) / 9007199254740992.0


@njit(cache=True, inline="always")
def _normal(rng: Words) -> float:
    radius = np.sqrt(-2.0 * np.log(_uniform(rng)))
    return radius * np.cos(6.283185307179586 * _uniform(rng))


@njit(cache=True)
def _evolve(f: Floats, n: Ints, rng: Words, s: int, now: float, edge: float) -> None:
    """Mid price of one symbol to `now`: regime, structure, drift, noise."""
    row = f[s]
    gap = now - row[SEEN]
    row[SEEN] = now
    if now >= row[VOL_UNTIL]:
        u = _uniform(rng)
        row[VOL] = 0.55 if u < 0.4 else (1.0 if u < 0.8 else 1.9)
        span = 6.0 if u < 0.8 else 2.4
        row[VOL_UNTIL] = now - np.log(_uniform(rng)) * span * MINUTE_MS
    if now >= row[DRIFT_UNTIL]:
        row[DRIFT] = 0.0
    step = row[DRIFT] * gap + row[SIGMA] * row[VOL] * np.sqrt(gap) * _normal(rng)
    mid = max(row[MID] * (1.0 + max(-0.05, min(0.05, step))), 50.0 * n[s, TICK])
    row[MID] = mid
    reach = SWING_SIGMAS * row[SIGMA] * np.sqrt(MINUTE_MS)
    broke = 0
    if n[s, LEG] > 0:
        row[EXTREME] = max(row[EXTREME], mid)
        if mid < row[EXTREME] * (1.0 - reach):
            row[SWING_HI] = row[EXTREME]
            row[EXTREME] = mid
            n[s, LEG] = -1
            n[s, BROKE] &= 2
        elif mid > row[SWING_HI] and n[s, BROKE] & 1 == 0:
            n[s, BROKE] |= 1
            broke = 1
    else:
        row[EXTREME] = min(row[EXTREME], mid)
        if mid > row[EXTREME] * (1.0 + reach):
            row[SWING_LO] = row[EXTREME]
            row[EXTREME] = mid
            n[s, LEG] = 1
            n[s, BROKE] &= 1
        elif mid < row[SWING_LO] and n[s, BROKE] & 2 == 0:
            n[s, BROKE] |= 2
            broke = -1
    if broke != 0 and edge > 0.0:
        row[DRIFT] = broke * edge * row[SIGMA] / np.sqrt(DRIFT_MS)
        row[DRIFT_UNTIL] = now + DRIFT_MS


@njit(cache=True, inline="always")
def _size(rng: Words, mean: float) -> int:
    """Log-normal size with a fat tail, at least one unit."""
    return max(1, int(mean * 0.55 * np.exp(1.1 * _normal(rng)) + 0.5))


@njit(cache=True)
def _quote(f: Floats, n: Ints, rng: Words, s: int) -> None:
    """Best bid and ask around the mid, one to three ticks apart."""
    u = _uniform(rng)
    ticks = 1 if u < 0.72 else (2 if u < 0.92 else 3)
    tick = n[s, TICK]
    bid = int(np.floor((f[s, MID] - 0.5 * ticks * tick) / tick + 0.5)) * tick
    n[s, BID] = max(bid, tick)
    n[s, ASK] = n[s, BID] + ticks * tick
    n[s, BIDQ] = _size(rng, 4.0 * f[s, QTY])
    n[s, ASKQ] = _size(rng, 4.0 * f[s, QTY])


@njit(cache=True)
def _fill_row(out: Ints, at: int, kind: int, s: int, ms: int) -> None:
    for c in range(EVENT_COLS):
        out[at, c] = 0
    out[at, KIND] = kind
    out[at, SYM] = s
    out[at, EVENT_MS] = ms
    out[at, TRADE_MS] = ms


@njit(cache=True)
def _marks(n: Ints, out: Ints, at: int, ms: int) -> int:
    """One MARK per symbol, then the whole-market row; every third second both again."""
    symbols = n.shape[0]
    funding = (ms // FUNDING_INTERVAL_MS + 1) * FUNDING_INTERVAL_MS
    for wide in range(2):
        if wide == 1 and ms % 3000 != 0:
            break
        for s in range(symbols):
            _fill_row(out, at, MARK3 if wide == 1 else MARK, s, ms)
            out[at, P1] = (n[s, BID] + n[s, ASK]) * n[s, SCALE] // 2
            out[at, P2] = out[at, P1]
            out[at, Q1] = FUNDING_RATE_E8
            out[at, Q2] = funding
            at += 1
        _fill_row(out, at, ARR3 if wide == 1 else ARR, symbols, ms)
        out[at, Q1] = FUNDING_RATE_E8
        out[at, Q2] = funding
        at += 1
    return at


@njit(cache=True)
def _generate(f: Floats, n: Ints, g: Floats, rng: Words, cum: Floats, out: Ints, at: int) -> None:
    """The event due at g[NEXT_MS]: a trade or a quote of one symbol, and when the next is due."""
    now = g[NEXT_MS]
    s = int(g[STUCK])
    if s < 0 or _uniform(rng) >= (0.5 if f[s, VOL] > 1.5 else 0.15):
        s = min(int(np.searchsorted(cum, _uniform(rng), side="right")), len(cum) - 1)
        g[STUCK] = s
    ms = int(now)
    if _uniform(rng) < TRADE_SHARE:
        tilt = 0.5 + 0.15 * np.sign(f[s, MID] - 0.5 * (n[s, BID] + n[s, ASK]))
        sold = _uniform(rng) >= tilt
        prints = 1 + int(-np.log(_uniform(rng)) * 0.8)
        n[s, AGG_ID] += 1
        _fill_row(out, at, AGG, s, ms)
        out[at, ID] = n[s, AGG_ID]
        out[at, P1] = n[s, BID] if sold else n[s, ASK]
        out[at, Q1] = max(prints, _size(rng, f[s, QTY]))
        out[at, P2] = n[s, TRADE_ID] + 1
        n[s, TRADE_ID] += prints
        out[at, Q2] = n[s, TRADE_ID]
        out[at, FLAG] = 1 if sold else 0
        n[s, LAST] = out[at, P1]
    else:
        _evolve(f, n, rng, s, now, g[EDGE])
        _quote(f, n, rng, s)
        n[s, UPDATE_ID] += 1 + int(_uniform(rng) * 900)
        _fill_row(out, at, BOOK, s, ms)
        out[at, ID] = n[s, UPDATE_ID]
        out[at, P1] = n[s, BID]
        out[at, Q1] = n[s, BIDQ]
        out[at, P2] = n[s, ASK]
        out[at, Q2] = n[s, ASKQ]
    g[NEXT_MS] = now - np.log(_uniform(rng)) * g[GAP_MS]


@njit(cache=True)
def _replay(n: Ints, row: Ints, out: Ints, at: int) -> None:
    """A row of the tape, and what it says about the book."""
    out[at] = row
    s = row[SYM]
    if row[KIND] == AGG:
        n[s, LAST] = row[P1]
        n[s, AGG_ID] = row[ID]
        n[s, TRADE_ID] = row[Q2]
    else:
        n[s, BID] = row[P1]
        n[s, BIDQ] = row[Q1]
        n[s, ASK] = row[P2]
        n[s, ASKQ] = row[Q2]
        n[s, UPDATE_ID] = row[ID]


@njit(cache=True)
def produce(
    f: Floats,
    n: Ints,
    g: Floats,
    rng: Words,
    cum: Floats,
    tape: Ints,
    until_ms: float,
    out: Ints,
) -> int:
    """Rows of every event with E <= until_ms, in order; stops early when `out` is nearly full.

    A mark of second m follows all events with E <= m, so that nothing older comes after it.
    """
    at = 0
    block = 2 * n.shape[0] + 2
    while at + block < out.shape[0]:
        tape_at = int(g[TAPE_AT])
        taped = float(tape[tape_at, EVENT_MS]) if tape_at < tape.shape[0] else np.inf
        drawn = np.floor(g[NEXT_MS])
        due = min(taped, drawn)
        if g[NEXT_MARK] < due:
            if g[NEXT_MARK] > until_ms:
                break
            at = _marks(n, out, at, int(g[NEXT_MARK]))
            g[NEXT_MARK] += 1000.0
        elif taped <= drawn:
            if taped > until_ms:
                break
            _replay(n, tape[tape_at], out, at)
            g[TAPE_AT] += 1.0
            at += 1
        else:
            if g[NEXT_MS] > until_ms:
                break
            _generate(f, n, g, rng, cum, out, at)
            at += 1
    return at


@dataclass(frozen=True, slots=True)
class Market:
    """Everything the kernel needs and changes; all arrays, so that it can be written to disk."""

    f: Floats
    n: Ints
    g: Floats
    rng: Words
    cum: Floats
    tape: Ints
    t0_ms: int

    def state(self) -> dict[str, NDArray[Any]]:
        return {"f": self.f, "n": self.n, "g": self.g, "rng": self.rng, "cum": self.cum}


def birth_ms(seed: int) -> int:
    """Market time of a generated world's birth: 40 s into a minute, another day for each seed."""
    return BASE_MS + (seed % 97 + 1) * 86_400_000 - BIRTH_LEAD_MS


def empty_tape() -> Ints:
    return np.zeros((0, EVENT_COLS), np.int64)


def create(
    symbols: Sequence[Symbol],
    seed: int,
    rate: float,
    speed: float,
    edge: float,
    t0_ms: int,
    tape: Ints,
    taped: dict[int, tuple[int, int, int]],
) -> Market:
    """A newborn market. `taped`: symbol -> first price, agg id - 1, trade id - 1 of a tape."""
    count = len(symbols)
    f = np.zeros((count, FLOAT_COLS), np.float64)
    n = np.zeros((count, INT_COLS), np.int64)
    g = np.zeros(GLOBAL_COLS, np.float64)
    rng = np.array([seed * 2 + 1], np.uint64)
    weights = np.array([0.0 if s.index in taped else s.weight for s in symbols])
    total = float(weights.sum())
    cum = np.cumsum(weights) / (total or 1.0)
    for s in symbols:
        k = s.index
        points = float(s.price.scaleb(s.price_digits)) * (1 + 0.1 * (_uniform(rng) - 0.5))
        spread_bp = SIGMA_BP_LEAST + (SIGMA_BP_MOST - SIGMA_BP_LEAST) * _uniform(rng)
        n[k, TICK] = s.tick_points
        n[k, SCALE] = 10 ** (8 - s.price_digits)
        n[k, AGG_ID] = n[k, TRADE_ID] = FIRST_ID
        n[k, UPDATE_ID] = FIRST_ID * 1000
        if k in taped:
            points, n[k, AGG_ID], n[k, TRADE_ID] = taped[k]
            n[k, TAPED] = 1
        f[k, MID] = f[k, EXTREME] = points
        f[k, SIGMA] = spread_bp * 1e-4 / MINUTE_MS**0.5
        f[k, VOL] = 1.0
        f[k, SEEN] = f[k, VOL_UNTIL] = t0_ms
        f[k, SWING_HI], f[k, SWING_LO] = points * 1.004, points * 0.996
        f[k, QTY] = float(s.qty_mean / s.unit)
        n[k, LEG] = 1
        _quote(f, n, rng, k)
        n[k, LAST] = n[k, BID]
    g[NEXT_MS] = t0_ms + 1.0 if rate > 0 and total > 0 else np.inf
    g[GAP_MS] = 1000.0 * speed / rate if rate > 0 else 1.0
    g[STUCK], g[EDGE] = -1, edge
    g[NEXT_MARK] = (t0_ms // 1000 + 1) * 1000
    return Market(f, n, g, rng, cum, tape, t0_ms)


def rows(market: Market) -> Ints:
    """A buffer for `produce`, large enough for whatever one second's marks need."""
    return np.zeros((ROWS_MAX + 2 * len(market.n) + 2, EVENT_COLS), np.int64)


def step(market: Market, until_ms: float, out: Ints) -> int:
    """Rows made; call again while it returned more than zero."""
    m = market
    return int(produce(m.f, m.n, m.g, m.rng, m.cum, m.tape, until_ms, out))


def sigma_1m(market: Market, symbol: int) -> float:
    """Standard deviation of one market minute's return."""
    return float(market.f[symbol, SIGMA]) * MINUTE_MS**0.5


def tape_ended(market: Market) -> bool:
    return len(market.tape) > 0 and int(market.g[TAPE_AT]) >= len(market.tape)
