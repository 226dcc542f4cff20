"""The exchange's archive files: CSV, or a zip with one in it, of aggTrades, trades or bookTicker.

The name tells symbol and kind (BTCUSDT-aggTrades-2024-03-05.zip). A header is there or not: the
first byte says so. Rows without quantity are dropped and counted; their order does not matter.
An aggregate's event time is its trade time: the archive has no other.
"""

from __future__ import annotations

import io
import re
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import numpy as np

from venue.source import (
    AGG_COLS,
    ASK_QTY,
    E_MS,
    FIRST,
    LAST,
    MAKER,
    NUMBER,
    PRICE,
    QTY,
    QUOTE_COLS,
    T_MS,
    TRADE_COLS,
    Floats,
    Ints,
    Source,
    TapeError,
    e8,
    table,
)
from venue.source import ASK as ASK_PRICE

CHUNK_BYTES = 4 << 20  # of text parsed at once
NAME = re.compile(r"^(?P<symbol>[^-]+)-(?P<kind>aggTrades|trades|bookTicker)-\d{4}-\d{2}(-\d{2})?$")
# kind -> its columns in the order of files without a header, and where each belongs
COLUMNS: dict[str, dict[str, int]] = {
    "aggTrades": {
        "agg_trade_id": NUMBER,
        "price": PRICE,
        "quantity": QTY,
        "first_trade_id": FIRST,
        "last_trade_id": LAST,
        "transact_time": T_MS,
        "is_buyer_maker": MAKER,
    },
    "trades": {
        "id": NUMBER,
        "price": PRICE,
        "qty": QTY,
        "quote_qty": -1,
        "time": T_MS,
        "is_buyer_maker": MAKER,
    },
    "bookTicker": {
        "update_id": NUMBER,
        "best_bid_price": PRICE,
        "best_bid_qty": QTY,
        "best_ask_price": ASK_PRICE,
        "best_ask_qty": ASK_QTY,
        "transaction_time": T_MS,
        "event_time": E_MS,
    },
}
WIDTHS = {"aggTrades": AGG_COLS, "trades": TRADE_COLS, "bookTicker": QUOTE_COLS}


def read(path: str, room: int) -> list[Source]:
    """The one symbol of one file, at most `room` rows. Raises TapeError."""
    named = NAME.match(Path(path).stem)
    if named is None:
        raise TapeError(
            f"tape {path} has no name that tells symbol and kind, like"
            " BTCUSDT-aggTrades-2024-03-05.csv (aggTrades, trades or bookTicker)"
        )
    kind = named["kind"]
    parts: list[Ints] = []
    dropped = 0
    try:
        with _opened(path) as file:
            for chunk, line in _chunks(path, file):
                rows = _parsed(path, chunk, line, kind)
                kept = rows[(rows[:, PRICE] > 0) & (rows[:, QTY] > 0)]
                dropped += len(rows) - len(kept)
                room -= len(kept)
                if room < 0:
                    raise TapeError(f"tape {path} is too long (near line {line}): cut it")
                parts.append(kept)
    except FileNotFoundError:
        raise TapeError(f"tape {path} does not exist") from None
    except (OSError, RuntimeError, zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise TapeError(f"tape {path} cannot be read: {error}") from None
    whole = np.concatenate(parts) if parts else table(WIDTHS[kind])
    if not len(whole):
        raise TapeError(f"tape {path} has no rows")
    tables = {"trades": table(TRADE_COLS), "aggTrades": table(AGG_COLS)}
    tables["bookTicker"] = table(QUOTE_COLS)
    tables[kind] = whole
    return [
        Source(
            named["symbol"], tables["trades"], tables["aggTrades"], tables["bookTicker"], dropped
        )
    ]


def _opened(path: str) -> IO[bytes]:
    if not path.lower().endswith(".zip"):
        return Path(path).open("rb")
    with zipfile.ZipFile(path) as archive:
        names = [name for name in archive.namelist() if name.lower().endswith(".csv")]
        if len(names) != 1:
            raise TapeError(f"tape {path} must hold one CSV file, not {len(names)}")
        return archive.open(names[0])


def _chunks(path: str, file: IO[bytes]) -> Iterator[tuple[bytes, int]]:
    """(whole lines, number of the first one)."""
    line, rest = 1, b""
    while data := file.read(CHUNK_BYTES):
        whole, found, rest = (rest + data).rpartition(b"\n")
        if not found and len(rest) > CHUNK_BYTES:
            raise TapeError(f"tape {path} has an endless line {line}")
        if whole:
            yield whole, line
            line += whole.count(b"\n") + 1
    if rest.strip():
        yield rest, line


def _parsed(path: str, chunk: bytes, line: int, kind: str) -> Ints:
    """Rows of one chunk, columns where the kind has them."""
    names = list(COLUMNS[kind])
    if line == 1 and not chunk[:1].isdigit():
        header, _, chunk = chunk.partition(b"\n")
        told = [name.strip() for name in header.decode("utf-8", "replace").split(",")]
        if told[: len(names)] != names:
            raise TapeError(f"tape {path} line 1: the header of {kind} is {','.join(names)}")
        line = 2
    text = chunk.lower().replace(b"true", b"1").replace(b"false", b"0")
    if not text.strip():
        return table(WIDTHS[kind])
    try:
        values = np.loadtxt(
            io.BytesIO(text), delimiter=",", ndmin=2, usecols=range(len(names)), comments=None
        )
        return _placed(values, kind)
    except ValueError as error:
        number, why = _culprit(text, line, kind, str(error))
        raise TapeError(f"tape {path} line {number}: {why}") from None


def _placed(values: Floats, kind: str) -> Ints:
    out = np.zeros((len(values), WIDTHS[kind]), np.int64)
    for k, where in enumerate(COLUMNS[kind].values()):
        if where in (PRICE, QTY) or (kind == "bookTicker" and where in (ASK_PRICE, ASK_QTY)):
            out[:, where] = e8(values[:, k])
        elif where >= 0:
            column = values[:, k]
            if not np.isfinite(column).all() or (column != np.floor(column)).any():
                raise ValueError("a number must be whole")
            if len(column) and (column.min() < 0 or column.max() >= 1 << 53):
                raise ValueError("a number is out of range")
            out[:, where] = column.astype(np.int64)
    if kind != "bookTicker":
        out[:, E_MS] = out[:, T_MS]
    return out


def _culprit(text: bytes, line: int, kind: str, usual: str) -> tuple[int, str]:
    """The first line that is no row: its number and what is wrong with it."""
    count = len(COLUMNS[kind])
    for k, row in enumerate(text.split(b"\n")):
        cells = row.split(b",")
        if not row.strip():
            continue
        if len(cells) < count:
            return line + k, f"{len(cells)} columns, {kind} has {count}"
        try:
            _placed(np.array([[float(cell) for cell in cells[:count]]]), kind)
        except ValueError as error:
            return line + k, str(error)
    return line, usual
