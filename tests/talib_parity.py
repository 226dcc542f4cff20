"""The brain's indicators beside TA-Lib: worst relative error over streams, closed and forming.

Candles go through the kernel as trades, as they do live. What TA-Lib sums over a window in a
running total (SMA, the mean volume) it sums with a growing error where prices fall by orders of
magnitude; there an exact sum is the judge (`exact=True`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import talib
from brain_bench import START_MS, Bench, announced, table, trade
from talib import stream

import records as rec
from brain.indicators import OUTPUTS, WINDOW
from brain.view import forming

MINUTE_MS, DAY_MS = 60_000, 86_400_000
Array = npt.NDArray[np.float64]
LIMITS = {name: 1e-9 if name == "bb_std" else 1e-12 for name in OUTPUTS}


@dataclass(frozen=True, slots=True)
class Stream:
    """1m candles as four trades each (open, high, low, close) with their volumes."""

    opens_ms: npt.NDArray[np.int64]
    prices: Array  # [n, 4]: open high low close
    quantities: Array  # [n, 4]: of the four trades; the first two bought by takers
    repeats: npt.NDArray[np.int64]  # how often the last trade is repeated with quantity 0

    @property
    def ohlc(self) -> tuple[Array, Array, Array, Array]:
        o, h, low, c = (np.ascontiguousarray(self.prices[:, k]) for k in range(4))
        return o, h, low, c

    @property
    def volume(self) -> Array:
        q = self.quantities
        return ((q[:, 0] + q[:, 1]) + q[:, 2]) + q[:, 3]  # in the kernel's order

    @property
    def bought(self) -> Array:
        return self.quantities[:, 0] + self.quantities[:, 1]

    @property
    def trades(self) -> Array:
        return 4.0 + self.repeats


def from_walk(seed: int, candles: int, step: float = 1.0, shifts: bool = False) -> Stream:
    """A random walk, in log space when levels shift: by orders of magnitude, some two hundred times
    in 100,000 candles, with stretches in which nothing moves at all."""
    rng = np.random.default_rng(seed)
    path = 1_000.0 + np.cumsum(rng.normal(0.0, step, 4 * candles))
    if shifts:
        jumps = np.where(rng.random(candles) < 2e-3, rng.normal(0.0, 1.5, candles), 0.0)
        level = np.repeat(6.0 * np.sin(np.cumsum(jumps)), 4)  # e^-6 to e^6
        path = np.exp(level + np.cumsum(rng.normal(0.0, 3e-4, 4 * candles)))
        for at in rng.integers(0, candles - 50, candles // 500):
            path[4 * at : 4 * (at + rng.integers(50))] = path[4 * at]
    path = np.maximum(np.round(path, 7), 1e-4).reshape(-1, 4)
    high, low = path.max(1), path.min(1)
    prices = np.stack([path[:, 0], high, low, path[:, 3]], axis=1)
    opens = START_MS + MINUTE_MS * np.arange(candles)
    quantities = np.round(rng.exponential(1.0, (candles, 4)), 3)
    quantities[rng.random(candles) < 0.02] = 0.0  # nothing traded: volume 0
    return Stream(opens, prices, quantities, rng.integers(0, 5, candles))


def from_candles(opens_ms: npt.NDArray[np.int64], ohlcv: Array) -> Stream:
    rng = np.random.default_rng(0)
    shares = rng.dirichlet(np.ones(4), len(ohlcv)) * ohlcv[:, 4:5]
    return Stream(opens_ms, ohlcv[:, :4], shares, rng.integers(0, 5, len(ohlcv)))


def halves(s: Stream, i: int) -> tuple[list[tuple], list[tuple]]:
    """The trades of candle i, cut after the high."""
    first = int(4 * i + s.repeats[:i].sum()) + 1
    rows: tuple[list[tuple], list[tuple]] = ([], [])
    for k in range(4 + int(s.repeats[i])):
        price, qty = float(s.prices[i, min(k, 3)]), float(s.quantities[i, k]) if k < 4 else 0.0
        flags = 0 if k < 2 else rec.BUYER_MAKER
        rows[int(k >= 2)].append(trade(0, int(s.opens_ms[i]) + k, first + k, price, qty, flags))
    return rows


def closed_rows(s: Stream) -> Array:
    """The indicator row after each closed candle but the last."""
    bench, rows = Bench(), []
    bench.masks[0] = -1
    bench.feed(table(announced()))
    made = as_trades(s)
    bench.feed(made, on_events=lambda _: rows.append(bench.state.arrays.ind[0, 0].copy()))
    return np.array(rows)[:, : len(OUTPUTS)]


def as_trades(s: Stream) -> npt.NDArray[Any]:
    """The stream as TRADE records of row 0."""
    n, total = len(s.prices), int((4 + s.repeats).sum())
    made = np.zeros(total, rec.RECORD)
    at = np.repeat(np.arange(n), 4 + s.repeats)
    k = np.arange(total) - np.repeat(np.cumsum(4 + s.repeats) - (4 + s.repeats), 4 + s.repeats)
    made["exch_ns"] = (s.opens_ms[at] + k) * 1_000_000
    made["recv_ns"], made["id"], made["kind"] = 1, np.arange(1, total + 1), rec.TRADE
    made["a"] = s.prices[at, np.minimum(k, 3)]
    made["b"] = np.where(k < 4, s.quantities[at, np.minimum(k, 3)], 0.0)
    made["flags"] = np.where(k < 2, 0, rec.BUYER_MAKER)
    return made


def rolling(values: Array, of: Callable[[Array], float]) -> Array:
    out = np.full(len(values), np.nan)
    for i in range(WINDOW - 1, len(values)):
        out[i] = of(values[i - WINDOW + 1 : i + 1])
    return out


def exact_mean(window: Array) -> float:
    return math.fsum(window) / len(window)


def exact_std(window: Array) -> float:
    middle = exact_mean(window - window[-1])
    return math.sqrt(math.fsum((x - window[-1] - middle) ** 2 for x in window) / len(window))


def session_vwap(s: Stream) -> Array:
    """TA-Lib's VWAP, one UTC day at a time; the close while nothing was traded."""
    (_, h, low, c), v = s.ohlc, s.volume
    out = np.full(len(c), np.nan)
    days = s.opens_ms // DAY_MS
    for day in np.unique(days):
        here = days == day
        out[here] = talib.VWAP(h[here], low[here], c[here], v[here])
    return np.where(np.isfinite(out) & (out != 0.0), out, c)


def wanted(s: Stream, exact: bool = False) -> dict[str, Array]:
    """Every output by TA-Lib in batch, or by an exact sum where it has none."""
    _, h, low, c = s.ohlc
    v, n = s.volume, s.trades
    line, signal, _ = talib.MACD(c, 12, 26, 9)
    upper, middle, _ = talib.BBANDS(c, WINDOW, 1.0, 1.0)
    usual, spread = rolling(n, exact_mean), rolling(n, exact_std)
    sums, bought = rolling(v, math.fsum), rolling(s.bought, math.fsum)
    with np.errstate(invalid="ignore", divide="ignore"):
        imbalance = np.where(sums > 0.0, (2.0 * bought - sums) / sums, 0.0)
        z = np.where(spread > 0.0, (n - usual) / spread, 0.0)
    imbalance[: WINDOW - 1] = z[: WINDOW - 1] = np.nan
    return {
        "ema9": talib.EMA(c, 9),
        "ema21": talib.EMA(c, 21),
        "ema50": talib.EMA(c, 50),
        "rsi": talib.RSI(c, 14),
        "atr": talib.ATR(h, low, c, 14),
        "adx": talib.ADX(h, low, c, 14),
        "di_plus": talib.PLUS_DI(h, low, c, 14),
        "di_minus": talib.MINUS_DI(h, low, c, 14),
        "macd": line,
        "macd_signal": signal,
        "bb_middle": rolling(c, exact_mean) if exact else talib.SMA(c, WINDOW),
        "bb_std": rolling(c, exact_std) if exact else upper - middle,
        "vwap": session_vwap(s),
        "volume_mean": sums / WINDOW if exact else talib.SMA(v, WINDOW),
        "imbalance": imbalance,
        "tick_rate": usual / 60.0,
        "tick_z": z,
    }


def worst(got: Array, want: Array, least: float | Array = 1e-300) -> float:
    """The largest relative error; infinite where one of both does not know.

    `least`: the size below which a value's error counts absolutely.
    """
    if (np.isnan(got) != np.isnan(want)).any():
        return math.inf
    known = ~np.isnan(want)
    gap, size = np.abs(got - want)[known], np.abs(want)[known]
    least = np.broadcast_to(least, want.shape)[known]
    return float(np.max(np.where(gap == 0.0, 0.0, gap / np.maximum(size, least)), initial=0.0))


def sizes_of(want: dict[str, Any]) -> dict[str, Any]:
    """What an error is relative to, at least: a share of -1..1 to 1; MACD and its signal, which
    cross zero, to a ten-thousandth of the price, about as much as they usually are."""
    usual = 1e-4 * np.abs(want["ema21"])
    return {"imbalance": 1.0, "macd": usual, "macd_signal": usual}


def closed_errors(s: Stream, exact: bool = False) -> dict[str, float]:
    rows, want = closed_rows(s), wanted(s, exact)
    want = {name: series[: len(rows)] for name, series in want.items()}
    sizes = sizes_of(want)
    return {
        name: worst(rows[:, k], want[name], sizes.get(name, 1e-300))
        for k, name in enumerate(OUTPUTS)
    }


HANDLES: dict[str, tuple[Callable[..., stream.Stream], str, tuple[int, ...]]] = {
    "ema9": (stream.EMA, "c", (9,)),
    "ema21": (stream.EMA, "c", (21,)),
    "ema50": (stream.EMA, "c", (50,)),
    "rsi": (stream.RSI, "c", (14,)),
    "atr": (stream.ATR, "hlc", (14,)),
    "adx": (stream.ADX, "hlc", (14,)),
    "di_plus": (stream.PLUS_DI, "hlc", (14,)),
    "di_minus": (stream.MINUS_DI, "hlc", (14,)),
    "bb_middle": (stream.SMA, "c", (WINDOW,)),
    "volume_mean": (stream.SMA, "v", (WINDOW,)),
}


def forming_errors(s: Stream, opened: int = 60) -> dict[str, float]:
    """Forming candles of two trades (open and high) against what TA-Lib's handles peek."""
    _, h, low, c = s.ohlc
    series = {"h": h, "l": low, "c": c, "v": s.volume}
    bench, errors = Bench(), dict.fromkeys([*HANDLES, "macd", "macd_signal", "bb_std"], 0.0)
    bench.feed(table(announced()))
    made = {
        name: of(*[series[x][:opened] for x in inputs], *args)
        for name, (of, inputs, args) in HANDLES.items()
    }
    macd, bands = stream.MACD(c[:opened], 12, 26, 9), stream.BBANDS(c[:opened], WINDOW, 1.0, 1.0)
    for i in range(len(c)):
        begun, rest = halves(s, i)
        bench.feed(table(begun))
        if i >= opened:
            o, high = s.prices[i, 0], s.prices[i, 1]
            peeked = {
                "h": max(o, high), "l": min(o, high), "c": high,
                "v": s.quantities[i, 0] + s.quantities[i, 1],
            }  # fmt: skip
            row = bench.state.arrays.ind[0, 0].copy()
            got = forming(bench.state.arrays, 0, 0)._asdict()
            np.testing.assert_array_equal(row, bench.state.arrays.ind[0, 0])
            want = {n: made[n].peek(*[peeked[x] for x in HANDLES[n][1]]) for n in made}
            want["macd"], want["macd_signal"], _ = macd.peek(high)
            upper, middle, _ = bands.peek(high)
            want["bb_std"] = upper - middle
            for name, value in want.items():
                least = sizes_of(want).get(name, 1e-300)
                gap = worst(np.array([got[name]]), np.array([value]), least)
                errors[name] = max(errors[name], gap)
            for name, (_, inputs, _args) in HANDLES.items():
                made[name].update(*[series[x][i] for x in inputs])
            macd.update(c[i])
            bands.update(c[i])
        bench.feed(table(rest))
    return errors


def table_of(errors: Iterable[tuple[str, dict[str, float]]]) -> str:
    """Indicator x worst error, a column per kind of stream."""
    columns = list(errors)
    lines = [f"{'indicator':<12}" + "".join(f"{title:>26}" for title, _ in columns)]
    for name in OUTPUTS:
        cells = [f"{e[name]:.1e}" if name in e else "-" for _, e in columns]
        lines.append(f"{name:<12}" + "".join(f"{cell:>26}" for cell in cells))
    return "\n".join(lines)


def merged(all_errors: Iterable[dict[str, float]]) -> dict[str, float]:
    out: dict[str, float] = {}
    for errors in all_errors:
        for name, value in errors.items():
            out[name] = max(out.get(name, 0.0), value)
    return out
