"""A captured market: gz lines `local_ns {combined-stream json}` become event rows of the venue.

`trade` frames are made into aggTrades as the exchange does: one taker side at one price within
AGGREGATE_MS, cut at each full second so that a mark never overtakes an older trade; prints that
are no market trades (X != MARKET) are dropped and counted. `bookTicker` passes through, other
streams are skipped. Market time is what the capture says; the recorder's clock is ignored.
"""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from venue.market import (
    AGG,
    BOOK,
    EVENT_COLS,
    EVENT_MS,
    ID,
    KIND,
    P1,
    P2,
    SYM,
    TRADE_MS,
    Ints,
)
from venue.symbols import Symbol, listing

AGGREGATE_MS = 100
FIRST_AGG_ID = 1_000_001
LINES_MAX = 20_000_000  # a capture is held in memory; about 100 bytes a row
ADVICE = "expected gzip lines of `local_ns {combined-stream json}` with trade or bookTicker frames"


class TapeError(ValueError):
    """One sentence: which file is not a tape, and what was expected."""


@dataclass(frozen=True, slots=True)
class Capture:
    """Raw frames of one symbol in file order, as integers of the symbol's digits."""

    symbol: Symbol
    trades: list[tuple[int, int, int, int, int, bool]]  # E, T, id, price, qty, maker
    quotes: list[tuple[int, int, int, int, int, int, int]]  # E, T, id, bid, bidq, ask, askq
    dropped: int


@dataclass(frozen=True, slots=True)
class Tape:
    """All captures together: rows in event order, symbols, and what a report says of them."""

    rows: Ints
    symbols: tuple[Symbol, ...]
    sigma_1m: tuple[float, ...]
    first_ms: int
    last_ms: int
    dropped: int


def frames(path: str) -> Iterator[dict[str, Any]]:
    """Payloads of one file. Raises TapeError with one sentence."""
    line_number = 0
    try:
        with gzip.open(path, "rb") as lines:
            for line_number, line in enumerate(lines, 1):
                if line_number > LINES_MAX:
                    raise TapeError(f"tape {path} has more than {LINES_MAX} lines; cut it")
                _, _, body = line.partition(b" ")
                # acks and REST snapshots that the recorder wrote between the frames have no "data"
                data = orjson.loads(body).get("data")
                if data is not None and data["e"] in ("trade", "bookTicker"):
                    yield data
    except TapeError:
        raise
    except FileNotFoundError:
        raise TapeError(f"tape {path} does not exist") from None
    except (
        OSError,
        EOFError,
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        zlib.error,
    ) as error:
        what = type(error).__name__
        raise TapeError(
            f"{path} is not a tape (line {line_number or 1}: {what}); {ADVICE}"
        ) from None


def _digits(texts: Iterable[str]) -> int:
    return max((len(text.partition(".")[2]) for text in texts), default=0)


def _symbol(name: str, data: list[dict[str, Any]]) -> Symbol:
    """The listing of that name if its digits fit, else one made from what the tape shows."""
    prices = [d["p"] if d["e"] == "trade" else d["b"] for d in data[:5000]]
    sizes = [d["q"] if d["e"] == "trade" else d["B"] for d in data[:5000]]
    price_digits, qty_digits = _digits(prices), _digits(sizes)
    price = Decimal(prices[0])
    quantities = sorted(Decimal(text) for text in sizes)
    mean = max(quantities[len(quantities) // 2], Decimal(1).scaleb(-qty_digits))
    for known in listing(20):
        if known.name == name and (known.price_digits, known.qty_digits) == (
            price_digits,
            qty_digits,
        ):
            return replace(known, price=price)
    base = name.removesuffix("USDT")
    return Symbol(0, name, base, price, price_digits, 1, qty_digits, mean, Decimal(5), 1.0)


def read(path: str) -> list[Capture]:
    """Captures of each symbol in one file."""
    by_name: dict[str, list[dict[str, Any]]] = {}
    for data in frames(path):
        by_name.setdefault(data["s"], []).append(data)
    if not by_name:
        raise TapeError(f"{path} is not a tape (no trade or bookTicker frame); {ADVICE}")
    out = []
    for name, payloads in by_name.items():
        try:
            out.append(_capture(_symbol(name, payloads), payloads))
        except (KeyError, ValueError, ArithmeticError) as error:
            raise TapeError(f"{path} is not a tape ({name}: {error!r}); {ADVICE}") from None
    return out


def _capture(symbol: Symbol, data: list[dict[str, Any]]) -> Capture:
    def points(text: str) -> int:
        return int(Decimal(text).scaleb(symbol.price_digits))

    def units(text: str) -> int:
        return int(Decimal(text).scaleb(symbol.qty_digits))

    trades, quotes, dropped = [], [], 0
    for d in data:
        if d["e"] == "bookTicker":
            quotes.append(
                (
                    d["E"],
                    d["T"],
                    d["u"],
                    points(d["b"]),
                    units(d["B"]),
                    points(d["a"]),
                    units(d["A"]),
                )
            )
        elif d.get("X", "MARKET") == "MARKET" and units(d["q"]) > 0:
            row = (d["E"], d["T"], d["t"], points(d["p"]), units(d["q"]), bool(d["m"]))
            trades.append(row)
        else:
            dropped += 1
    return Capture(symbol, trades, quotes, dropped)


def aggregate(
    trades: Iterable[tuple[int, int, int, int, int, bool]], first_id: int = FIRST_AGG_ID
) -> list[tuple[int, ...]]:
    """Event rows of aggTrades: same price and taker side within AGGREGATE_MS of the first.

    E is when the aggregate was over: the next other trade, the end of its 100 ms or its second.
    """
    out: list[tuple[int, ...]] = []
    agg_id = first_id
    start = end = price = qty = first = last = event_ms = 0
    maker = False
    is_open = False

    def close(at_ms: int) -> None:
        nonlocal agg_id, event_ms
        event_ms = max(event_ms, min(at_ms, end))
        row = (AGG, 0, event_ms, start, agg_id, price, qty, first, last, int(maker))
        out.append(row)
        agg_id += 1

    for _, trade_ms, trade_id, p, q, m in trades:
        if is_open and trade_ms <= end and p == price and m == maker:
            qty, last = qty + q, trade_id
            continue
        if is_open:
            close(trade_ms)
        start, price, qty, first, last, maker = trade_ms, p, q, trade_id, trade_id, m
        end = min(start + AGGREGATE_MS, -(-start // 1000) * 1000)
        is_open = True
    if is_open:
        close(end)
    return out


def _rows(capture: Capture, index: int) -> Ints:
    """Rows of one symbol in event order."""
    trades = sorted(capture.trades, key=lambda row: row[2])
    made = aggregate(trades)
    event_ms = 0
    for e, t, update, bid, bid_qty, ask, ask_qty in capture.quotes:
        event_ms = max(event_ms, e)
        made.append((BOOK, 0, event_ms, min(t, event_ms), update, bid, bid_qty, ask, ask_qty, 0))
    rows = np.array(made, np.int64).reshape(-1, EVENT_COLS)
    rows[:, SYM] = index
    return rows[np.argsort(rows[:, EVENT_MS], kind="stable")]


def _sigma(rows: Ints) -> float:
    """One-minute deviation from ten-second returns of the mid, between 2 and 60 basis points."""
    quotes = rows[rows[:, KIND] == BOOK]
    prices = quotes[:, P1] + quotes[:, P2] if len(quotes) else rows[:, P1]
    times = quotes[:, EVENT_MS] if len(quotes) else rows[:, EVENT_MS]
    at = np.searchsorted(times, np.arange(times[0], times[-1] + 1, 10_000), side="right") - 1
    moves = np.diff(np.log(prices[at].astype(np.float64)))
    deviation = float(np.sqrt(np.mean(moves**2) * 6)) if len(moves) else 0.0010
    return min(0.0060, max(0.0002, deviation))


def load(paths: Iterable[str]) -> Tape:
    """Every symbol of every file on its own times. Raises TapeError."""
    captures: dict[str, Capture] = {}
    for path in paths:
        for capture in read(str(Path(path))):
            if capture.symbol.name in captures:
                raise TapeError(f"tape {path} repeats {capture.symbol.name}; give each symbol once")
            captures[capture.symbol.name] = capture
    symbols = tuple(
        replace(capture.symbol, index=index) for index, capture in enumerate(captures.values())
    )
    parts = [_rows(capture, index) for index, capture in enumerate(captures.values())]
    rows = np.concatenate(parts)
    rows = rows[np.argsort(rows[:, EVENT_MS], kind="stable")]
    return Tape(
        rows,
        symbols,
        tuple(_sigma(part) for part in parts),
        int(rows[:, TRADE_MS].min()),
        int(rows[-1, EVENT_MS]),
        sum(capture.dropped for capture in captures.values()),
    )


def firsts(tape: Tape) -> dict[int, tuple[int, int, int]]:
    """Per symbol index: first price, and the aggregate and trade ids right before the first."""
    out = {}
    for s in tape.symbols:
        own = tape.rows[tape.rows[:, SYM] == s.index]
        aggs = own[own[:, KIND] == AGG]
        if len(aggs):
            out[s.index] = (int(aggs[0, P1]), int(aggs[0, ID]) - 1, int(aggs[0, P2]) - 1)
        else:
            out[s.index] = (int(own[0, P1]), FIRST_AGG_ID - 1, 0)
    return out
