"""The oracle mode is the smartmoneyconcepts package, at every prefix where equality can hold."""

from __future__ import annotations

import gzip
import os
import random
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import smc_parity
from conftest import DATA
from market_files import candle_files, read_candles
from naive import smc_package
from naive.smc_package import Book
from smc_parity import FUNCTIONS, LENGTHS, Tally, by_engine, compare, differs, quarters

FIXTURE = DATA / "smc_fixture"
SEED = int(os.environ.get("SMC_SEED", random.SystemRandom().randrange(1 << 30)))
needs_fixture = pytest.mark.skipif(
    not FIXTURE.is_dir(), reason="needs the package's fixture in ../shared/data/smc_fixture"
)


@pytest.mark.parametrize("k", range(len(LENGTHS)))
def test_every_prefix_of_a_fresh_stream(k: int) -> None:
    print(f"SMC_SEED={SEED}")
    tally = Tally()
    compare(quarters(SEED + k, 130), LENGTHS[k], tally)
    assert sum(tally.mismatches.values()) == 0, f"SMC_SEED={SEED}\n{tally.table()}"
    assert all(tally.rows[name] for name in FUNCTIONS[:2])


@pytest.mark.parametrize("k", range(len(LENGTHS)))
def test_some_prefixes_of_a_longer_stream(k: int) -> None:
    tally, rng = Tally(), random.Random(SEED + k)
    compare(quarters(SEED - k - 1, 2_000), LENGTHS[k], tally, rng.sample(range(3, 2_001), 8))
    assert sum(tally.mismatches.values()) == 0, f"SMC_SEED={SEED}\n{tally.table()}"
    assert all(tally.rows.values())


@pytest.mark.parametrize("path", candle_files(), ids=lambda path: path.name)
def test_real_candles(path: Path) -> None:
    _, ohlcv = read_candles(path)
    for k, length in enumerate(LENGTHS):
        tally, begin = Tally(), 9_000 * k
        part = np.ascontiguousarray(ohlcv[begin : begin + 4_000])
        compare(part, length, tally, (700, 1_999, 4_000), pip=23.45)
        assert sum(tally.mismatches.values()) == 0, tally.table()
        assert all(tally.rows.values())


def fixture(name: str) -> pd.DataFrame:
    with gzip.open(FIXTURE / f"{name}.csv.gz", "rt") as file:
        return pd.read_csv(file)


@needs_fixture
def test_the_package_s_own_fixtures() -> None:
    """24,424 candles of EURUSD at length 5, with the swing that the package invents at index 0."""
    raw = fixture("EURUSD_15M")
    ohlcv = raw[["Open", "High", "Low", "Close", "Volume"]].to_numpy(float)
    book = Book(5, (ohlcv[:, 1].max() - ohlcv[:, 2].min()) * 0.01)
    for row in ohlcv.tolist():
        book.push(*row)
    got, rows = by_engine(book), smc_parity.rows_of
    swings = fixture("swing_highs_lows_result_data")
    swings.iloc[[0, -1]] = np.nan
    gap = ["FVG", "Top", "Bottom", "MitigatedIndex"]
    assert not differs(got["swings"], rows(swings, ["HighLow", "Level"], "HighLow"))
    assert not differs(got["fvg"], rows(fixture("fvg_result_data"), gap, "FVG"))
    assert not differs(got["fvg joined"], rows(fixture("fvg_consecutive_result_data"), gap, "FVG"))
    broken = fixture("bos_choch_result_data")
    broken["side"] = broken["BOS"].fillna(broken["CHOCH"])
    broken["code"] = broken["CHOCH"].notna().astype(float)
    judge = rows(broken, ["code", "side", "Level", "BrokenIndex"], "side")
    assert not differs(got["bos/choch"], judge)
    assert len(got["fvg"]) > 3_000 and len(judge) > 500
    tally = (
        Tally()
    )  # blocks and pools: the fixture's hold the invented swings, the package does not
    tally.add(got, smc_parity.by_package(ohlcv, 5, book.pip))
    assert sum(tally.mismatches.values()) == 0, tally.table()


@pytest.mark.parametrize("broken", ["gap_side", "reached", "f32"])
def test_a_broken_engine_is_caught(broken: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Gap geometry and touch are the live kernel's own code: a fault there shows here."""
    wrong = {
        "gap_side": lambda h, low, last_h, last_low: int(last_low >= h) - int(last_h <= low),
        "reached": lambda side, edge, high, low: low < edge if side > 0 else high > edge,
        "f32": lambda x: float(np.float16(x)),
    }
    monkeypatch.setattr(smc_package, broken, wrong[broken])
    tally = Tally()
    compare(quarters(11, 600), 3, tally, (300, 600))
    assert sum(tally.mismatches.values()) > 0
