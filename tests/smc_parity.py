"""Parity tables: indicators beside TA-Lib, structure beside the smartmoneyconcepts package.

    python -m tests.smc_parity --streams 100 [--candles 300] [--seed N]

Each random stream is compared with the package at every prefix; prices are multiples of a quarter,
so that the package's float32 levels are exact. Exit 1 on any mismatch. Ends by itself.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

os.environ["SMC_CREDIT"] = "0"  # the package prints a line at import otherwise
sys.path[:0] = [str(Path(__file__).resolve().parent.parent), str(Path(__file__).resolve().parent)]

import numpy as np  # noqa: E402
import numpy.typing as npt  # noqa: E402
import pandas as pd  # noqa: E402
from conftest import DATA  # noqa: E402
from market_files import read_candles  # noqa: E402
from naive.smc_package import Book, f32  # noqa: E402
from smartmoneyconcepts import smc as package  # noqa: E402
from talib_parity import (  # noqa: E402
    closed_errors,
    forming_errors,
    from_candles,
    from_walk,
    merged,
    table_of,
)

LENGTHS = (3, 5, 10)
LEAST = 3  # candles that the package wants
PIP = 2.1  # no multiple of a quarter: nothing lies on the edge of a band
Table = dict[int, tuple[float, ...]]
FUNCTIONS = ("swings", "fvg", "fvg joined", "bos/choch", "ob bull", "ob bear", "liquidity")


def quarters(seed: int, candles: int) -> npt.NDArray[np.float64]:
    """[n, 5] open high low close volume in multiples of a quarter; ties and dojis happen."""
    rng = np.random.default_rng(seed)
    step = float(rng.choice([0.5, 1.0, 4.0]))
    path = 1_000.0 + np.cumsum(np.round(rng.normal(0.0, step, 6 * candles) * 4) / 4)
    path = path.reshape(-1, 6)
    volume = rng.integers(0, 64, candles).astype(float)
    return np.stack([path[:, 0], path.max(1), path.min(1), path[:, -1], volume], axis=1)


def frame(ohlcv: npt.NDArray[np.float64]) -> pd.DataFrame:
    return pd.DataFrame(ohlcv, columns=["open", "high", "low", "close", "volume"])


def rows_of(made: pd.DataFrame, names: Iterable[str], marked: str) -> Table:
    """index: the named columns, where `marked` is set."""
    values, at = made[list(names)].to_numpy(float), np.flatnonzero(made[marked].notna())
    return {int(i): tuple(values[i].tolist()) for i in at}


def one_side(swings: pd.DataFrame, side: int) -> pd.DataFrame:
    kept = swings.copy()
    kept.loc[kept["HighLow"] != side, ["HighLow", "Level"]] = np.nan
    return kept


def by_package(ohlcv: npt.NDArray[np.float64], length: int, pip: float) -> dict[str, Table]:
    """What the package says of these candles, its invented swings at both ends taken out."""
    ohlc = frame(ohlcv)
    swings = package.swing_highs_lows(ohlc, length)
    swings.iloc[[0, -1]] = np.nan
    gap = ["FVG", "Top", "Bottom", "MitigatedIndex"]
    block = ["OB", "Top", "Bottom", "OBVolume", "MitigatedIndex", "Percentage"]
    broken = package.bos_choch(ohlc, swings)
    broken["side"] = broken["BOS"].fillna(broken["CHOCH"])
    broken["code"] = broken["CHOCH"].notna().astype(float)
    span = float(ohlc["high"].max() - ohlc["low"].min())
    pools = package.liquidity(ohlc, swings, pip / span if span else 0.0)
    return {
        "swings": rows_of(swings, ["HighLow", "Level"], "HighLow"),
        "fvg": rows_of(package.fvg(ohlc), gap, "FVG"),
        "fvg joined": rows_of(package.fvg(ohlc, join_consecutive=True), gap, "FVG"),
        "bos/choch": rows_of(broken, ["code", "side", "Level", "BrokenIndex"], "side"),
        "ob bull": rows_of(package.ob(ohlc, one_side(swings, 1)), block, "OB"),
        "ob bear": rows_of(package.ob(ohlc, one_side(swings, -1)), block, "OB"),
        "liquidity": rows_of(pools, ["Liquidity", "Level", "End", "Swept"], "Liquidity"),
    }


def by_engine(book: Book) -> dict[str, Table]:
    return {
        "swings": book.swings(),
        "fvg": book.gaps(),
        "fvg joined": book.gaps(join=True),
        "bos/choch": book.breaks(),
        "ob bull": book.blocks(1),
        "ob bear": book.blocks(-1),
        "liquidity": book.pools(),
    }


def differs(one: Table, other: Table) -> bool:
    if one.keys() != other.keys():
        return True
    return any(tuple(map(f32, one[i])) != tuple(map(f32, other[i])) for i in one)


class Tally:
    """Streams, prefixes, rows seen and mismatches by function."""

    def __init__(self) -> None:
        self.prefixes: Counter[str] = Counter()
        self.rows: Counter[str] = Counter()
        self.mismatches: Counter[str] = Counter()
        self.streams: Counter[str] = Counter()

    def add(self, engine: dict[str, Table], judge: dict[str, Table]) -> None:
        for name in FUNCTIONS:
            self.prefixes[name] += 1
            self.rows[name] += len(judge[name])
            self.mismatches[name] += differs(engine[name], judge[name])

    def table(self) -> str:
        lines = [f"{'SMC':<12}{'streams':>10}{'prefixes':>12}{'rows':>14}{'mismatches':>14}"]
        for name in FUNCTIONS:
            counts = (self.streams[name], self.prefixes[name], self.rows[name])
            lines.append(
                f"{name:<12}{counts[0]:>10,}{counts[1]:>12,}{counts[2]:>14,}"
                f"{self.mismatches[name]:>14,}"
            )
        return "\n".join(lines)


def compare(
    ohlcv: npt.NDArray[np.float64],
    length: int,
    tally: Tally,
    prefixes: Iterable[int] | None = None,
    pip: float = PIP,
) -> None:
    """One stream, at these prefixes (all when None)."""
    book = Book(length, pip)
    wanted = None if prefixes is None else set(prefixes)
    for t, row in enumerate(ohlcv.tolist()):
        book.push(*row)
        if t + 1 >= LEAST and (wanted is None or t + 1 in wanted):
            tally.add(by_engine(book), by_package(ohlcv[: t + 1], length, pip))
    for name in FUNCTIONS:
        tally.streams[name] += 1


def indicator_columns(seed: int) -> list[tuple[str, dict[str, float]]]:
    """Worst errors of closed and forming candles on random, shifting and, where at hand, real
    streams; the shifting and the real ones beside exact sums where TA-Lib's own total drifts."""
    walks = [from_walk(seed + k, 2_000, step) for k in range(3) for step in (0.2, 1.0)]
    shifting = from_walk(seed, 100_000, shifts=True)
    columns = [
        ("6 x 2,000 closed", merged(closed_errors(walk) for walk in walks)),
        ("300 forming (peek)", forming_errors(from_walk(seed, 360))),
        ("100,000 shifting", closed_errors(shifting, exact=True)),
    ]
    for path in sorted(DATA.glob("candles/*_1m_*.csv.gz")):
        real = from_candles(*read_candles(path))
        columns.append((f"{len(real.prices):,} real", closed_errors(real, exact=True)))
    return columns


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="tests.smc_parity", description=__doc__)
    parser.add_argument("--streams", type=int, default=100)
    parser.add_argument("--candles", type=int, default=300)
    parser.add_argument("--seed", type=int, default=None)
    args: Any = parser.parse_args(argv)
    seed = int(time.time()) if args.seed is None else args.seed
    print(table_of(indicator_columns(seed)), flush=True)
    print(f"seed {seed}, {args.candles} candles a stream, swing lengths {LENGTHS} in turn")
    tally = Tally()
    for k in range(args.streams):
        compare(quarters(seed + k, args.candles), LENGTHS[k % len(LENGTHS)], tally)
    print(tally.table())
    return 1 if sum(tally.mismatches.values()) else 0


if __name__ == "__main__":
    raise SystemExit(main())
