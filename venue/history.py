"""Candles from before birth: generated, deterministic, and labelled so by /venue/v1/status.

They run back from the first live price with the live market's volatility and activity. Every
coarse candle is the sum of the fine ones where those exist; further back each timeframe is drawn
at its own scale. Nothing is stored: the same (seed, symbol) draws the same history again.

  1m  |                                            A1 ================ M
  5m  |                       A5 ----------------- A1 sums of 1m ===== M
  15m |        A15 ---------- A5 sums of 5m ======================== M        (and so on)
"""

from __future__ import annotations

import numpy as np
from numba import njit

from venue.bars import (
    BAR_COLS,
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
    _merge,
)
from venue.dice import Words, _normal, _uniform
from venue.market import Ints

BARS = 240  # candles of each timeframe before birth, at least
SLOTS = 2 * BARS + 40  # room for them with the alignment to the next coarser start
PULL = 0.03  # per candle of 1h and 1d: half a year of pure walk would leave every scale


@njit(cache=True)
def _draw(
    bar: Ints,
    close: int,
    sigma: float,
    pull: float,
    anchor: float,
    tick: int,
    n_mean: float,
    qty_mean: float,
    rng: Words,
) -> int:
    """One candle that ends at `close`; returns its open, the close of the one before."""
    move = sigma * _normal(rng) + pull * np.log(close / anchor)
    vol = sigma * np.exp(0.35 * _normal(rng))
    first = max(int(close * np.exp(-move) / tick + 0.5), 20) * tick
    top = 0.5 * (move + np.sqrt(move * move - 2.0 * vol * vol * np.log(_uniform(rng))))
    low = 0.5 * (move - np.sqrt(move * move - 2.0 * vol * vol * np.log(_uniform(rng))))
    bar[OPEN] = first
    bar[CLOSE] = close
    bar[HIGH] = max(first, close, int(first * np.exp(top) / tick) * tick)
    bar[LOW] = max(tick, min(first, close, int(first * np.exp(low) / tick + 1.0) * tick))
    burst = np.exp(0.5 * _normal(rng) + 0.6 * min(2.0, abs(move) / sigma) - 0.5)
    bar[TRADES] = 1 + int(n_mean * burst)
    bar[VOLUME] = 1 + int(bar[TRADES] * qty_mean * (0.7 + 0.6 * _uniform(rng)))
    share = min(0.95, max(0.05, 0.5 + 0.12 * move / sigma + 0.06 * _normal(rng)))
    bar[TAKER] = int(bar[VOLUME] * share)
    mean = (bar[OPEN] + bar[HIGH] + bar[LOW] + bar[CLOSE]) // 4
    bar[QUOTE] = bar[VOLUME] * mean
    bar[TAKER_QUOTE] = bar[TAKER] * mean
    return first


@njit(cache=True)
def _history(
    seed: int,
    symbol: int,
    price: int,
    tick: int,
    sigma: float,
    trades: float,
    qty: float,
    minute_ms: int,
    spans: Ints,
    bars: int,
    out: Ints,
    count: Ints,
) -> None:
    """out[timeframe, slot, BAR_COLS] oldest first; out[timeframe, count] is the forming part."""
    rng = np.empty(1, np.uint64)
    rng[0] = np.uint64(seed * 1_000_003 + symbol * 7919 + 11)
    frames = len(spans)
    edge_ms = minute_ms
    close = price
    for t in range(frames):
        span = spans[t]
        wide = spans[t + 1] if t + 1 < frames else span
        start = min(edge_ms, minute_ms // span * span - bars * span) // wide * wide
        slots = (minute_ms // span * span - start) // span
        scale = span / 60_000.0
        pull = PULL if t >= 3 else 0.0
        # drawn part, newest first, ends where the finer timeframe begins
        at_ms = (minute_ms if t == 0 else edge_ms) - span
        while at_ms >= start:
            bar = out[t, (at_ms - start) // span]
            bar[OPEN_MS] = at_ms
            close = _draw(
                bar,
                close,
                sigma * np.sqrt(scale),
                pull,
                float(price),
                tick,
                trades * scale,
                qty,
                rng,
            )
            at_ms -= span
        if t > 0:  # summed part
            fine = spans[t - 1]
            for k in range(slots + 1):
                if start + k * span >= edge_ms:
                    out[t, k, OPEN_MS] = start + k * span
                    out[t, k, TRADES] = 0
            for k in range(count[t - 1] + 1):
                bar = out[t - 1, k]
                slot = (bar[OPEN_MS] - start) // span
                if bar[OPEN_MS] + fine <= minute_ms or bar[TRADES] > 0:
                    _merge(out[t, slot], bar)
        count[t] = slots
        forming = out[t, slots]
        forming[OPEN_MS] = minute_ms // span * span
        if forming[TRADES] == 0:
            forming[OPEN : CLOSE + 1] = price
        edge_ms = start


def history(
    seed: int,
    symbol: int,
    price: int,
    tick: int,
    sigma: float,
    trades_per_minute: float,
    qty_mean: float,
    minute_ms: int,
) -> tuple[list[Ints], Ints]:
    """Closed candles per timeframe, oldest first, and the forming ones [timeframe, BAR_COLS].

    All end at `minute_ms`, the start of the birth minute, with `price`.
    """
    frames = len(SPAN_MS)
    out = np.zeros((frames, SLOTS, BAR_COLS), np.int64)
    count = np.zeros(frames, np.int64)
    _history(
        seed,
        symbol,
        price,
        tick,
        sigma,
        trades_per_minute,
        qty_mean,
        minute_ms,
        SPAN_MS,
        BARS,
        out,
        count,
    )
    closed = [out[t, : count[t]] for t in range(frames)]
    return closed, np.array([out[t, count[t]] for t in range(frames)])
