"""Recorded markets become event rows of the venue: the one place where every kind of tape meets.

A file is a gz of captured frames (`capture`), an archive CSV or zip (`archive`) or a session of an
npz (`sessions`); files of one symbol are joined, each row counts once. Single trades are made into
aggTrades as the exchange does: one taker side at one price within AGGREGATE_MS, cut at each full
second so that a mark never overtakes an older trade. Without quotes in the tape they follow from
the trades (`_derive`). Market time is what the tape says; a recorder's clock is ignored.

A bad file is one TapeError with file and line, and nothing of the tape is used. Rows are parsed in
chunks into arrays, at most ROWS_MAX over all files. An event takes 80 bytes while the tape plays; a
row of a file up to 500 while it is made into one event, or two where a quote follows from it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from functools import cache

import numpy as np
from numba import njit

from venue import archive, capture, sessions
from venue.market import (
    AGG,
    BOOK,
    EVENT_COLS,
    EVENT_MS,
    FLAG,
    ID,
    KIND,
    P1,
    P2,
    Q1,
    Q2,
    SYM,
    TRADE_MS,
    Ints,
)
from venue.source import (
    ASK,
    ASK_QTY,
    BID,
    BID_QTY,
    E8_DIGITS,
    E_MS,
    FIRST,
    LAST,
    MAKER,
    NUMBER,
    ORDER,
    PRICE,
    QTY,
    T_MS,
    Source,
    TapeError,
    digits_of,
)
from venue.symbols import SYMBOLS_MAX, Symbol, listing

__all__ = ["Tape", "TapeError", "aggregate", "firsts", "frames", "load"]

AGGREGATE_MS = 100
FIRST_AGG_ID = 1_000_001
DERIVED_SPREAD_TICKS = 10  # quotes made from trades are at most so far apart
ROWS_MAX = 20_000_000  # over all files: a day of the busiest symbol's quotes
frames = capture.frames


@dataclass(frozen=True, slots=True)
class Tape:
    """All files together: rows in event order, symbols, and what a report says of them."""

    rows: Ints
    symbols: tuple[Symbol, ...]
    sigma_1m: tuple[float, ...]
    first_ms: int
    last_ms: int
    dropped: int  # rows that are no market trade, have no quantity, or are there twice


def read(path: str, room: int) -> list[Source]:
    """Everything of one file, at most `room` rows. Raises TapeError."""
    name = path.lower()
    if name.endswith((".csv", ".zip")):
        return archive.read(path, room)
    if ".npz" in name:
        return sessions.read(path, room)
    return capture.read(path, room)


@cache
def _known() -> dict[str, Symbol]:
    return {s.name: s for s in listing(SYMBOLS_MAX)}


def symbol_of(source: Source) -> Symbol:
    """The listing of that name if the tape's digits fit, else one made from what the tape shows."""
    prices = np.concatenate([t[:, PRICE] for t in (source.aggs, source.trades, source.quotes)])
    sizes = np.concatenate([t[:, QTY] for t in (source.aggs, source.trades, source.quotes)])
    shown = (source.price_digits, source.qty_digits)
    digits = (max(shown[0], digits_of(prices)), max(shown[1], digits_of(sizes)))
    price = Decimal(int(prices[0])).scaleb(-E8_DIGITS)
    known = _known().get(source.name)
    if known is not None:
        own = (known.price_digits, known.qty_digits)
        if all(o == d if s else o >= d for o, d, s in zip(own, digits, shown, strict=True)):
            return replace(known, price=price)
    mean = Decimal(int(np.median(sizes))).scaleb(-E8_DIGITS).quantize(Decimal(1).scaleb(-digits[1]))
    mean = max(mean, Decimal(1).scaleb(-digits[1]))
    base = source.name.removesuffix("USDT")
    return Symbol(0, source.name, base, price, digits[0], 1, digits[1], mean, Decimal(5), 1.0)


def aggregate(trades: Sequence[Sequence[int]] | Ints, first_id: int = FIRST_AGG_ID) -> Ints:
    """Event rows of aggTrades from rows `E T id price qty maker`, in order of ids.

    Same price and taker side within AGGREGATE_MS of the first. E is when the aggregate was over:
    the next other trade, the end of its 100 ms or its second.
    """
    table = np.ascontiguousarray(trades, np.int64)
    out = np.zeros((len(table), EVENT_COLS), np.int64)
    return out[: _aggregate(table, first_id, out)]


@njit(cache=True)
def _aggregate(trades: Ints, first_id: int, out: Ints) -> int:
    made = 0
    end = event_ms = 0
    for k in range(trades.shape[0]):
        ms, price, maker = trades[k, T_MS], trades[k, PRICE], trades[k, MAKER]
        if made > 0:
            row = out[made - 1]
            if ms <= end and row[P1] == price and row[FLAG] == maker:
                row[Q1] += trades[k, QTY]
                row[Q2] = trades[k, NUMBER]
                continue
            event_ms = max(event_ms, min(ms, end))
            row[EVENT_MS] = event_ms
        row = out[made]
        row[KIND] = AGG
        row[TRADE_MS] = ms
        row[ID] = first_id + made
        row[P1], row[Q1], row[FLAG] = price, trades[k, QTY], maker
        row[P2] = row[Q2] = trades[k, NUMBER]
        end = min(ms + AGGREGATE_MS, -(-ms // 1000) * 1000)
        made += 1
    if made > 0:
        out[made - 1, EVENT_MS] = max(event_ms, end)
    return made


@njit(cache=True)
def _derive(aggs: Ints, tick: int, out: Ints) -> int:
    """Quotes made from trades; FLAG is the row of the trade that each comes right before.

    The last price sold to is the bid, the last one bought at the ask. The other side gives way to
    a tick and follows to DERIVED_SPREAD_TICKS; the side that was touched has the trade's size.
    """
    bid = ask = 0
    bid_qty = ask_qty = 1
    made = 0
    for k in range(aggs.shape[0]):
        price, qty = aggs[k, P1], aggs[k, Q1]
        before_bid, before_ask = bid, ask
        if aggs[k, FLAG] != 0:
            bid, bid_qty = price, qty
            least, most = price + tick, price + DERIVED_SPREAD_TICKS * tick
            ask = max(least, min(ask, most))
        else:
            ask, ask_qty = price, qty
            most, least = price - tick, max(1, price - DERIVED_SPREAD_TICKS * tick)
            bid = max(1, min(most, max(bid if bid > 0 else most, least)))
        if bid != before_bid or ask != before_ask:
            row = out[made]
            row[KIND] = BOOK
            row[EVENT_MS] = row[TRADE_MS] = aggs[k, EVENT_MS]
            row[ID] = made + 1
            row[P1], row[Q1], row[P2], row[Q2] = bid, bid_qty, ask, ask_qty
            row[FLAG] = k
            made += 1
    return made


def _once(table: Ints) -> Ints:
    """Rows in order of their numbers, each number once."""
    table = table[np.argsort(table[:, NUMBER], kind="stable")]
    fresh = np.ones(len(table), bool)
    fresh[1:] = table[1:, NUMBER] != table[:-1, NUMBER]
    kept: Ints = table[fresh]
    return kept


def _scale(table: Ints, columns: tuple[int, ...], digits: tuple[int, ...]) -> None:
    """Units of 10**-8 become points and units of the symbol, in place."""
    for column, count in zip(columns, digits, strict=True):
        table[:, column] //= 10 ** (E8_DIGITS - count)


def _agg_rows(source: Source, p: int, q: int) -> tuple[Ints, Ints]:
    """Event rows of the trades, and their order within one millisecond."""
    if len(source.aggs):  # the exchange's own aggregates win over single trades
        table = _once(source.aggs)
        _scale(table, (PRICE, QTY), (p, q))
        rows = np.zeros((len(table), EVENT_COLS), np.int64)
        rows[:, EVENT_MS] = np.maximum.accumulate(table[:, E_MS])
        rows[:, TRADE_MS] = np.minimum(np.maximum.accumulate(table[:, T_MS]), rows[:, EVENT_MS])
        rows[:, [ID, P1, Q1, P2, Q2, FLAG]] = table[:, [NUMBER, PRICE, QTY, FIRST, LAST, MAKER]]
        return rows, table[:, ORDER]
    table = _once(source.trades)
    _scale(table, (PRICE, QTY), (p, q))
    table[:, T_MS] = np.maximum.accumulate(table[:, T_MS])
    rows = aggregate(table)
    return rows, np.zeros(len(rows), np.int64)


def _book_rows(source: Source, p: int, q: int) -> tuple[Ints, Ints]:
    table = _once(source.quotes)
    _scale(table, (BID, BID_QTY, ASK, ASK_QTY), (p, q, p, q))
    rows = np.zeros((len(table), EVENT_COLS), np.int64)
    rows[:, KIND] = BOOK
    rows[:, EVENT_MS] = np.maximum.accumulate(table[:, E_MS])
    rows[:, TRADE_MS] = np.minimum(table[:, T_MS], rows[:, EVENT_MS])
    rows[:, [ID, P1, Q1, P2, Q2]] = table[:, [NUMBER, BID, BID_QTY, ASK, ASK_QTY]]
    return rows, table[:, ORDER]


def _rows(source: Source, symbol: Symbol) -> tuple[Ints, Ints]:
    """Rows of one symbol in event order, each with its order within one millisecond."""
    p, q = symbol.price_digits, symbol.qty_digits
    aggs, agg_order = (
        _agg_rows(source, p, q)
        if len(source.aggs) + len(source.trades)
        else (np.zeros((0, EVENT_COLS), np.int64), np.zeros(0, np.int64))
    )
    if len(source.quotes):
        books, book_order = _book_rows(source, p, q)
    else:
        books = np.zeros((len(aggs), EVENT_COLS), np.int64)
        books = books[: _derive(aggs, symbol.tick_points, books)]
        book_order, agg_order = books[:, FLAG] * 2, np.arange(len(aggs)) * 2 + 1
        books[:, FLAG] = 0
    rows = np.concatenate([aggs, books])
    del aggs, books  # these are large
    rows[:, SYM] = symbol.index
    order = np.concatenate([agg_order, book_order])
    sorting = np.lexsort((order, rows[:, EVENT_MS]))
    return rows[sorting], order[sorting]


def _sigma(rows: Ints) -> float:
    """One-minute deviation from ten-second returns of the mid, between 2 and 60 basis points."""
    quotes = rows[rows[:, KIND] == BOOK]
    prices = quotes[:, P1] + quotes[:, P2] if len(quotes) else rows[:, P1]
    times = quotes[:, EVENT_MS] if len(quotes) else rows[:, EVENT_MS]
    at = np.searchsorted(times, np.arange(times[0], times[-1] + 1, 10_000), side="right") - 1
    moves = np.diff(np.log(prices[at].astype(np.float64)))
    deviation = float(np.sqrt(np.mean(moves**2) * 6)) if len(moves) else 0.0010
    return min(0.0060, max(0.0002, deviation))


def _gather(paths: Iterable[str]) -> dict[str, Source]:
    found: dict[str, Source] = {}
    room = ROWS_MAX
    for path in paths:
        for source in read(str(path), room):
            room -= source.count()
            known = found.get(source.name)
            found[source.name] = known.joined(source) if known else source
    return found


def load(paths: Iterable[str]) -> Tape:
    """Every symbol of every file on its own times. Raises TapeError."""
    found = _gather(paths)
    symbols: list[Symbol] = []
    parts = []
    dropped = 0
    for name in list(found):
        source = found.pop(name)  # so that no source lives longer than its rows
        symbol = replace(symbol_of(source), index=len(symbols))
        symbols.append(symbol)
        parts.append(_rows(source, symbol))
        dropped += source.dropped + source.repeated()
    sigmas = tuple(_sigma(part) for part, _ in parts)
    rows = parts[0][0]
    if len(parts) > 1:
        rows = np.concatenate([part for part, _ in parts])
        order = np.concatenate([order for _, order in parts])
        parts.clear()
        rows = rows[np.lexsort((order, rows[:, EVENT_MS]))]
    return Tape(
        rows,
        tuple(symbols),
        sigmas,
        int(rows[:, TRADE_MS].min()),
        int(rows[-1, EVENT_MS]),
        dropped,
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


def warm() -> None:
    """Compiles the kernels before the first tape comes."""
    aggs = aggregate([[0, 0, 1, 2, 1, 0, 0]])
    _derive(aggs, 1, np.zeros_like(aggs))
