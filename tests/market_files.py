"""The real candles and trades that tests may find beside the checkout; none are part of it."""

from __future__ import annotations

import csv
import gzip
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from conftest import DATA

import records as rec

MINUTE_MS = 60_000


def candle_files() -> list[Path]:
    """Every candle file at hand; a skip with its reason where there are none."""
    found = sorted(DATA.glob("candles/*_1m_*.csv.gz"))
    if not found:
        reason = pytest.mark.skip(reason="needs the real candles in ../shared/data/candles")
        return [pytest.param(Path("none"), marks=reason)]  # type: ignore[list-item]
    return found


def read_candles(path: Path) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """(open times in ms, [n, 5] open high low close volume); gap-free minutes."""
    with gzip.open(path, "rt") as file:
        rows = list(csv.DictReader(file))
    names = ("open", "high", "low", "close", "volume")
    values = np.array([[float(row[name]) for name in names] for row in rows])
    last_s = datetime.fromisoformat(rows[-1]["close_datetime"]).timestamp()
    ends = int(last_s * 1_000) // MINUTE_MS * MINUTE_MS
    return ends + MINUTE_MS * (np.arange(len(rows)) - len(rows) + 1), values


def trade_sessions() -> list[str]:
    """Names of the real tick sessions at hand."""
    path = DATA / "binance_ws_trades_hftbacktest.npz"
    if not path.exists():
        reason = pytest.mark.skip(reason="needs the real ticks in ../shared/data")
        return [pytest.param("none", marks=reason)]  # type: ignore[list-item]
    with np.load(path) as file:
        return sorted(name.removesuffix("__trades") for name in file if name.endswith("__trades"))


def read_session(name: str) -> npt.NDArray[Any]:
    """One real session's market prints as TRADE records of row 0, in their order."""
    with np.load(DATA / "binance_ws_trades_hftbacktest.npz") as file:
        raw = file[f"{name}__trades"]
    raw = raw[raw["market"] == 1]
    made = np.zeros(len(raw), rec.RECORD)
    made["kind"], made["recv_ns"], made["exch_ns"] = rec.TRADE, 1, raw["exch_ms"] * 1_000_000
    made["id"], made["a"], made["b"] = np.arange(1, len(raw) + 1), raw["price"], raw["qty"]
    made["flags"] = np.where(raw["buyer_maker"] == 1, rec.BUYER_MAKER, 0)
    return made
