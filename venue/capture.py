"""Captured frames: gz lines `local_ns {combined-stream json}`, recorded by us or by others.

`aggTrade`, `trade` and `bookTicker` are taken, other streams are skipped; where a symbol has both
kinds of trades, aggTrade is used. Prints that are no market trades (X other than MARKET) are
dropped and counted. A file may end in mid-line: its recorder was killed.
"""

from __future__ import annotations

import gzip
import zlib
from array import array
from collections.abc import Iterator
from typing import Any

import numpy as np
import orjson

from venue.source import AGG_COLS, QUOTE_COLS, TRADE_COLS, Ints, Source, TapeError, e8_of

LINE_BYTES_MAX = 1 << 22
ADVICE = (
    "expected gzip lines of `local_ns {combined-stream json}` with aggTrade, trade or bookTicker"
    " frames"
)
TAKEN = ("aggTrade", "trade", "bookTicker")
SPOILT = (OSError, ValueError, KeyError, TypeError, AttributeError, zlib.error)


class _Columns:
    """One symbol's tables while they grow: eight bytes a number."""

    def __init__(self) -> None:
        self.trades, self.aggs, self.quotes = array("q"), array("q"), array("q")
        self.dropped = self.price_digits = self.qty_digits = 0

    def number(self, text: str, price: bool) -> int:
        value, digits = e8_of(text)
        if price:
            self.price_digits = max(self.price_digits, digits)
        else:
            self.qty_digits = max(self.qty_digits, digits)
        return value

    def add(self, d: dict[str, Any], at: int) -> None:
        if d["e"] == "bookTicker":
            bid, bid_qty = self.number(d["b"], True), self.number(d["B"], False)
            ask, ask_qty = self.number(d["a"], True), self.number(d["A"], False)
            self.quotes.extend((d["E"], d["T"], d["u"], bid, bid_qty, ask, at, ask_qty))
            return
        qty = self.number(d["q"], False)
        if d.get("X", "MARKET") != "MARKET" or qty <= 0:
            self.dropped += 1
            return
        price, maker = self.number(d["p"], True), int(bool(d["m"]))
        if d["e"] == "trade":
            self.trades.extend((d["E"], d["T"], d["t"], price, qty, maker, at))
        else:
            self.aggs.extend((d["E"], d["T"], d["a"], price, qty, maker, at, d["f"], d["l"]))

    def source(self, name: str) -> Source:
        def rows(column: array[int], width: int) -> Ints:
            return np.frombuffer(column, np.int64).reshape(-1, width)

        return Source(
            name,
            rows(self.trades, TRADE_COLS),
            rows(self.aggs, AGG_COLS),
            rows(self.quotes, QUOTE_COLS),
            self.dropped,
            self.price_digits,
            self.qty_digits,
        )


def _payloads(path: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line number, payload) of every taken frame; stops at a torn end. Raises TapeError."""
    number = 0
    try:
        with gzip.open(path, "rb") as lines:
            while line := lines.readline(LINE_BYTES_MAX):
                number += 1
                # acks and REST snapshots that a recorder wrote between the frames have no "data"
                data = orjson.loads(line.partition(b" ")[2]).get("data")
                if isinstance(data, dict) and data.get("e") in TAKEN:
                    yield number, data
    except TapeError:
        raise
    except FileNotFoundError:
        raise TapeError(f"tape {path} does not exist") from None
    except EOFError:
        if not number:
            raise TapeError(f"{path} is not a tape (it ends in its first line); {ADVICE}") from None
    except SPOILT as error:
        what = type(error).__name__
        raise TapeError(f"{path} is not a tape (line {number or 1}: {what}); {ADVICE}") from None


def frames(path: str) -> Iterator[dict[str, Any]]:
    """Payloads of one file. Raises TapeError."""
    for _, data in _payloads(path):
        yield data


def read(path: str, room: int) -> list[Source]:
    """Every symbol of one file, at most `room` frames. Raises TapeError."""
    found: dict[str, _Columns] = {}
    for taken, (number, data) in enumerate(_payloads(path), 1):
        if taken > room:
            raise TapeError(f"tape {path} is too long (line {number}): cut it")
        try:
            found.setdefault(data["s"], _Columns()).add(data, taken)
        except (*SPOILT, OverflowError, ArithmeticError) as error:
            raise TapeError(f"{path} is not a tape (line {number}: {error!r}); {ADVICE}") from None
    sources = [columns.source(name) for name, columns in found.items()]
    sources = [source for source in sources if source.count()]
    if not sources:
        raise TapeError(f"{path} is not a tape (no trade or bookTicker frame); {ADVICE}")
    return sources
