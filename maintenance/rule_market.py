"""A made market to try a rule on: history of every timeframe, then quotes and trades as records.

Walks with drifts that change, so that trends, breaks and sweeps occur; nothing in it can be
predicted. Two markets with one seed are equal up to `turn`, the minute from which on `other`
decides: what a rule said before it may not differ.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import numpy.typing as npt

from records import (
    BAR,
    BAR_VOLUME,
    CLOCK,
    CLOSED,
    HEALED,
    NO_SYMBOL,
    QUOTE,
    RECORD,
    SYMBOL,
    TIMEFRAMES_MIN,
    TRADE,
    write_name,
)

START_MS: Final = 1_795_046_400_000 // 86_400_000 * 86_400_000  # a midnight: all bars are closed
MINUTE_MS: Final = 60_000
HISTORY_MINUTES: Final = 3 * 1_440
BARS_MAX: Final = 120  # per timeframe, as a warm-up brings
PER_MINUTE: Final = 12
SIGMA: Final = 0.0012  # of a minute
SPREAD: Final = 0.01


def _walk(rng: np.random.Generator, price: float, minutes: int) -> npt.NDArray[np.float64]:
    """Closes of ticks: a drift for about an hour, then another."""
    drift = np.repeat(rng.normal(0.0, SIGMA / 3, minutes // 45 + 1), 45)[:minutes]
    steps = rng.normal(0.0, SIGMA / np.sqrt(PER_MINUTE), (minutes, PER_MINUTE))
    steps += drift[:, None] / PER_MINUTE
    return price * np.exp(np.cumsum(steps.ravel()))


def _bars(row: int, ticks: npt.NDArray[np.float64], minutes: int) -> npt.NDArray[Any]:
    """Closed bars of one timeframe out of the ticks of the history."""
    of_bar = ticks[len(ticks) % (PER_MINUTE * minutes) :].reshape(-1, PER_MINUTE * minutes)
    of_bar = of_bar[-BARS_MAX:]
    count, span_ms = len(of_bar), minutes * MINUTE_MS
    made = np.zeros(2 * count, RECORD)
    opens = START_MS - span_ms * np.arange(count, 0, -1)
    made["exch_ns"], made["symbol"] = np.repeat(opens * 1_000_000, 2), row
    made["aux"], made["flags"] = minutes, CLOSED
    made["kind"][0::2], made["kind"][1::2] = BAR, BAR_VOLUME
    made["a"][0::2], made["d"][0::2] = of_bar[:, 0], of_bar[:, -1]
    made["b"][0::2], made["c"][0::2] = of_bar.max(axis=1), of_bar.min(axis=1)
    volume = float(PER_MINUTE * minutes)
    made["a"][1::2], made["b"][1::2] = volume, volume * of_bar.mean(axis=1)
    made["c"][1::2], made["d"][1::2] = volume / 2, volume
    return made


def _symbol(row: int, kind: int) -> npt.NDArray[Any]:
    made = np.zeros(1, RECORD)
    if kind == SYMBOL:
        write_name(made, 0, f"MADE{row}USDT")
    made["symbol"], made["kind"] = row, kind
    return made


def market(
    seed: int, symbols: int, minutes: int, turn: int | None = None, other: int = 0
) -> npt.NDArray[Any]:
    """RECORD[n]: announcements and history of all symbols, then `minutes` of market."""
    first, ticks = [], []
    for row in range(symbols):
        rng = np.random.default_rng([seed, row])
        past = np.round(_walk(rng, 100.0 * (1 + row), HISTORY_MINUTES), 4)
        first += [_symbol(row, SYMBOL)]
        first += [_bars(row, past, span) for span in reversed(TIMEFRAMES_MIN)]
        first += [_symbol(row, HEALED)]
        same = minutes if turn is None else turn
        path = _walk(rng, float(past[-1]), same)
        if same < minutes:
            rng = np.random.default_rng([seed, row, other])
            path = np.concatenate([path, _walk(rng, float(path[-1]), minutes - same)])
        ticks.append(np.round(path, 4))
    prices = np.stack(ticks, axis=1)  # [tick, symbol]
    count = len(prices)
    step_ms = MINUTE_MS // PER_MINUTE
    made = np.zeros((count, 2 * symbols + 1), RECORD)  # quotes, trades, a CLOCK
    times_ns = (START_MS + np.arange(count) * step_ms + 500) * 1_000_000
    made["exch_ns"], made["recv_ns"] = times_ns[:, None], 1
    made["id"] = np.arange(1, count + 1)[:, None]
    quotes, trades, clock = made[:, :symbols], made[:, symbols:-1], made[:, -1]
    quotes["kind"], trades["kind"] = QUOTE, TRADE
    quotes["symbol"] = trades["symbol"] = np.arange(symbols)
    quotes["a"], quotes["b"] = prices - SPREAD / 2, 1.0
    quotes["c"], quotes["d"] = prices + SPREAD / 2, 1.0
    trades["a"], trades["b"] = prices, 1.0
    trades["flags"] = np.random.default_rng(seed).integers(0, 2, trades.shape)
    clock["kind"], clock["symbol"], clock["id"] = CLOCK, NO_SYMBOL, 0
    return np.concatenate([*first, made.reshape(-1)])
