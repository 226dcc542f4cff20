"""The market: one seeded kernel that makes trades, quotes and marks of all symbols in order.

The sequence of events depends on seed, symbols, rate, speed, edge, tape and the planned scenarios
only, never on how often the kernel is called: `produce` makes every event with E <= `until_ms`
and leaves the rest for the next call. Prices are driftless but for what is planned (`scenes`) and
one known thing: after a structure break (price beyond the last confirmed swing) a symbol drifts
in the break's direction for DRIFT_MS, by `edge` standard deviations of that span in all. With
edge 0 the price is a martingale; volatility still switches between quiet, normal and burst.
Trades print at the last published best bid or ask. Taped symbols are copied from the tape at
their own times and get marks from their mid.

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

from venue import scenes as sc
from venue.dice import Words, _normal, _size, _uniform
from venue.scenes import Floats, Scenes
from venue.symbols import FUNDING_INTERVAL_MS, FUNDING_RATE_E8, Symbol

Ints = NDArray[np.int64]

AGG, BOOK, MARK, MARK3, ARR, ARR3 = 0, 1, 2, 3, 4, 5
KINDS = 6
KIND, SYM, EVENT_MS, TRADE_MS, ID, P1, Q1, P2, Q2, FLAG = range(10)
EVENT_COLS = 10

# float state per symbol
MID, SIGMA, VOL, VOL_UNTIL, DRIFT, DRIFT_UNTIL, SEEN, EXTREME, SWING_HI, SWING_LO, QTY = range(11)
BOOST, OFF_PATH = 11, 12  # factor of trade sizes; log deviation from a scenario's path
FLOAT_COLS = 13
# integer state per symbol
TICK, BID, BIDQ, ASK, ASKQ, LAST, AGG_ID, TRADE_ID, UPDATE_ID, LEG, BROKE, TAPED, SCALE = range(13)
SCENE = 13  # the scenario that runs, plus one; 0 for none
MARKED = 14  # the last published mark * 1e8
INT_COLS = 15
# float globals
NEXT_MS, GAP_MS, STUCK, EDGE, NEXT_MARK, TAPE_AT = range(6)
GLOBAL_COLS = 6

MINUTE_MS = 60_000.0
DRIFT_MS = 10 * MINUTE_MS  # long enough that a 1m or 5m candle reader can act on the break
SWING_SIGMAS = 2.2  # a swing is confirmed by a pull-back of so many one-minute deviations
SIGMA_BP_LEAST, SIGMA_BP_MOST = 22.0, 36.0  # one-minute deviation of a symbol, basis points
TRADE_SHARE = 1.0 / 3.0
TRADE_DRAWS, BOOK_DRAWS = 4, 6  # uniforms of a trade and of a quote, side and update id included
ROWS_MAX = 16_384  # rows of one call; `produce` returns early when they are used up
BASE_MS = 1_772_496_000_000  # 2026-03-03 00:00 UTC
BIRTH_LEAD_MS = 140_000  # 23:57:40: every timeframe closes within 140 s, funding before any entry
FIRST_ID = 1_000_000


@njit(cache=True)
def _regime(f: Floats, rng: Words, s: int, now: float) -> None:
    """Switches between quiet, normal and burst when the present one has had its time."""
    row = f[s]
    if now >= row[VOL_UNTIL]:
        u = _uniform(rng)
        row[VOL] = 0.55 if u < 0.4 else (1.0 if u < 0.8 else 1.9)
        span = 6.0 if u < 0.8 else 2.4
        row[VOL_UNTIL] = now - np.log(_uniform(rng)) * span * MINUTE_MS


@njit(cache=True)
def _move(
    f: Floats,
    n: Ints,
    rng: Words,
    s: int,
    now: float,
    edge: float,
    plan: Floats,
    knots: Floats,
    play: Floats,
) -> None:
    """Mid price of one symbol to `now`: drift and noise, or the path of its scenario."""
    row = f[s]
    gap = now - row[SEEN]
    row[SEEN] = now
    if now >= row[DRIFT_UNTIL]:
        row[DRIFT] = 0.0
    noise = _normal(rng)
    k = n[s, SCENE] - 1
    if k >= 0 and plan[k, sc.STEERED] > 0.0:
        free = row[SIGMA] * row[VOL] * np.sqrt(gap) * noise
        row[OFF_PATH] = sc.wobble(plan, row[OFF_PATH], gap, free, k)
        mid = sc.steered(plan, knots, play, k, now, row[OFF_PATH])
    else:
        step = row[DRIFT] * gap + row[SIGMA] * row[VOL] * np.sqrt(gap) * noise
        mid = row[MID] * (1.0 + max(-0.05, min(0.05, step)))
    _structure(f, n, s, max(mid, 50.0 * n[s, TICK]), now, edge)


@njit(cache=True)
def _structure(f: Floats, n: Ints, s: int, mid: float, now: float, edge: float) -> None:
    """Takes a new mid price: swings it confirms, structure it breaks, the drift that follows."""
    row = f[s]
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
            n[s, MARKED] = (n[s, BID] + n[s, ASK]) * n[s, SCALE] // 2
            out[at, P1] = n[s, MARKED]
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
def _trade(f: Floats, n: Ints, rng: Words, s: int, ms: int, sold: bool, out: Ints, at: int) -> None:
    """A trade at the last published best price of the side that is taken."""
    prints = 1 + int(-np.log(_uniform(rng)) * 0.8)
    n[s, AGG_ID] += 1
    _fill_row(out, at, AGG, s, ms)
    out[at, ID] = n[s, AGG_ID]
    out[at, P1] = n[s, BID] if sold else n[s, ASK]
    out[at, Q1] = max(prints, _size(rng, f[s, QTY] * f[s, BOOST]))
    out[at, P2] = n[s, TRADE_ID] + 1
    n[s, TRADE_ID] += prints
    out[at, Q2] = n[s, TRADE_ID]
    out[at, FLAG] = 1 if sold else 0
    n[s, LAST] = out[at, P1]


@njit(cache=True)
def _book(f: Floats, n: Ints, rng: Words, s: int, ms: int, out: Ints, at: int) -> None:
    """A new quote around the mid."""
    _quote(f, n, rng, s)
    n[s, UPDATE_ID] += 1 + int(_uniform(rng) * 900)
    _fill_row(out, at, BOOK, s, ms)
    out[at, ID] = n[s, UPDATE_ID]
    out[at, P1] = n[s, BID]
    out[at, Q1] = n[s, BIDQ]
    out[at, P2] = n[s, ASK]
    out[at, Q2] = n[s, ASKQ]


@njit(cache=True, inline="always")
def _sold(f: Floats, n: Ints, rng: Words, s: int) -> bool:
    """The taker's side leans to where the mid has gone since the last quote."""
    tilt = 0.5 + 0.15 * np.sign(f[s, MID] - 0.5 * (n[s, BID] + n[s, ASK]))
    return bool(_uniform(rng) >= tilt)


@njit(cache=True)
def _generate(
    f: Floats,
    n: Ints,
    g: Floats,
    rng: Words,
    cum: Floats,
    plan: Floats,
    knots: Floats,
    play: Floats,
    out: Ints,
    at: int,
) -> int:
    """The event due at g[NEXT_MS]: a trade or a quote of one symbol, and when the next is due.

    Returns the next free row. In a scenario's silence everything is drawn and nothing is told.
    """
    now = g[NEXT_MS]
    s = int(g[STUCK])
    if s < 0 or _uniform(rng) >= (0.5 if f[s, VOL] > 1.5 else 0.15):
        s = min(int(np.searchsorted(cum, _uniform(rng), side="right")), len(cum) - 1)
        g[STUCK] = s
    k = n[s, SCENE] - 1
    quiet = k >= 0 and now < plan[k, sc.AT_MS] + plan[k, sc.QUIET_MS]
    if _uniform(rng) < TRADE_SHARE:
        if quiet:
            for _ in range(TRADE_DRAWS):
                _uniform(rng)
        else:
            _trade(f, n, rng, s, int(now), _sold(f, n, rng, s), out, at)
    else:
        _regime(f, rng, s, now)
        _move(f, n, rng, s, now, g[EDGE], plan, knots, play)
        if quiet:
            for _ in range(BOOK_DRAWS):
                _uniform(rng)
        else:
            _book(f, n, rng, s, int(now), out, at)
    g[NEXT_MS] = now - np.log(_uniform(rng)) * g[GAP_MS]
    return at if quiet else at + 1


@njit(cache=True)
def _act(
    f: Floats,
    n: Ints,
    edge: float,
    plan: Floats,
    knots: Floats,
    play: Floats,
    dice: Words,
    k: int,
    out: Ints,
    at: int,
) -> int:
    """What scenario `k` does at the time it is due: starts, passes a knot, or adds an event.

    Returns the next free row, at most two further.
    """
    rng = dice[k : k + 1]
    s = int(plan[k, sc.SYM])
    now = np.floor(sc.due_ms(plan, play, k))
    if play[k, sc.STAGE] == sc.WAITING:
        rng[0] = np.uint64(plan[k, sc.SEED])
        play[k, sc.STAGE] = sc.RUNNING
        play[k, sc.START] = f[s, MID]
        play[k, sc.KNOT] = 1
        play[k, sc.EXTRA_MS] = now + plan[k, sc.QUIET_MS] + _wait(rng, plan[k, sc.RATE])
        n[s, SCENE] = k + 1
        f[s, BOOST], f[s, OFF_PATH] = plan[k, sc.SIZE], 0.0
    elif now >= plan[k, sc.AT_MS] + knots[k, int(play[k, sc.KNOT]), sc.OFFSET_MS]:
        before = f[s, MID]
        f[s, OFF_PATH] = 0.0
        while play[k, sc.KNOT] < plan[k, sc.KNOTS] and (
            plan[k, sc.AT_MS] + knots[k, int(play[k, sc.KNOT]), sc.OFFSET_MS] <= now
        ):
            play[k, sc.KNOT] += 1
        if plan[k, sc.STEERED] > 0.0:
            mid = sc.steered(plan, knots, play, k, now, 0.0)
            f[s, SEEN] = now
            _structure(f, n, s, max(mid, 50.0 * n[s, TICK]), now, edge)
        else:
            _move(f, n, rng, s, now, edge, plan, knots, play)
        _book(f, n, rng, s, int(now), out, at)
        _trade(f, n, rng, s, int(now), f[s, MID] < before, out, at + 1)
        at += 2
    else:
        if _uniform(rng) < TRADE_SHARE:
            _trade(f, n, rng, s, int(now), _sold(f, n, rng, s), out, at)
        else:
            _move(f, n, rng, s, now, edge, plan, knots, play)
            _book(f, n, rng, s, int(now), out, at)
        play[k, sc.EXTRA_MS] = now + _wait(rng, plan[k, sc.RATE])
        at += 1
    sc.schedule(plan, knots, play, k)
    if play[k, sc.STAGE] == sc.DONE:
        n[s, SCENE] = 0
        f[s, BOOST] = 1.0
    return at


@njit(cache=True, inline="always")
def _wait(rng: Words, rate: float) -> float:
    """Whole milliseconds until a scenario's next added event."""
    return np.floor(-np.log(_uniform(rng)) * 1000.0 / rate) if rate > 0.0 else np.inf


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
    plan: Floats,
    knots: Floats,
    play: Floats,
    dice: Words,
    until_ms: float,
    out: Ints,
) -> int:
    """Rows of every event with E <= until_ms, in order; stops early when `out` is nearly full.

    A mark of second m follows all events with E <= m, so that nothing older comes after it.
    """
    at = 0
    block = 2 * n.shape[0] + 2
    scene = sc.next_scene(plan, play)
    while at + block < out.shape[0]:
        tape_at = int(g[TAPE_AT])
        taped = float(tape[tape_at, EVENT_MS]) if tape_at < tape.shape[0] else np.inf
        drawn = np.floor(g[NEXT_MS])
        acted = np.floor(sc.due_ms(plan, play, scene)) if scene >= 0 else np.inf
        due = min(taped, drawn, acted)
        if g[NEXT_MARK] < due:
            if g[NEXT_MARK] > until_ms:
                break
            at = _marks(n, out, at, int(g[NEXT_MARK]))
            g[NEXT_MARK] += 1000.0
        elif acted <= due:
            if acted > until_ms:
                break
            at = _act(f, n, g[EDGE], plan, knots, play, dice, scene, out, at)
            scene = sc.next_scene(plan, play)
        elif taped <= drawn:
            if taped > until_ms:
                break
            _replay(n, tape[tape_at], out, at)
            g[TAPE_AT] += 1.0
            at += 1
        else:
            if g[NEXT_MS] > until_ms:
                break
            at = _generate(f, n, g, rng, cum, plan, knots, play, out, at)
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
    scenes: Scenes

    def state(self) -> dict[str, NDArray[Any]]:
        own = {"f": self.f, "n": self.n, "g": self.g, "rng": self.rng, "cum": self.cum}
        return own | self.scenes.state()


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
        f[k, VOL] = f[k, BOOST] = 1.0
        f[k, SEEN] = f[k, VOL_UNTIL] = t0_ms
        f[k, SWING_HI], f[k, SWING_LO] = points * 1.004, points * 0.996
        f[k, QTY] = float(s.qty_mean / s.unit)
        n[k, LEG] = 1
        _quote(f, n, rng, k)
        n[k, LAST] = n[k, BID]
        n[k, MARKED] = (n[k, BID] + n[k, ASK]) * n[k, SCALE] // 2
    g[NEXT_MS] = t0_ms + 1.0 if rate > 0 and total > 0 else np.inf
    g[GAP_MS] = 1000.0 * speed / rate if rate > 0 else 1.0
    g[STUCK], g[EDGE] = -1, edge
    g[NEXT_MARK] = (t0_ms // 1000 + 1) * 1000
    return Market(f, n, g, rng, cum, tape, t0_ms, sc.empty())


def rows(market: Market) -> Ints:
    """A buffer for `produce`, large enough for whatever one second's marks need."""
    return np.zeros((ROWS_MAX + 2 * len(market.n) + 2, EVENT_COLS), np.int64)


def step(market: Market, until_ms: float, out: Ints) -> int:
    """Rows made; call again while it returned more than zero."""
    m, s = market, market.scenes
    arrays = (m.f, m.n, m.g, m.rng, m.cum, m.tape, s.plan, s.knots, s.play, s.dice)
    return int(produce(*arrays, float(until_ms), out))


def sigma_1m(market: Market, symbol: int) -> float:
    """Standard deviation of one market minute's return."""
    return float(market.f[symbol, SIGMA]) * MINUTE_MS**0.5


def tape_ended(market: Market) -> bool:
    return len(market.tape) > 0 and int(market.g[TAPE_AT]) >= len(market.tape)
