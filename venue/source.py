"""What a tape file says of one symbol, whatever its format: tables of integers.

Prices and quantities are integers of 10**-8, so that digits are a later question. `number` is the
id by which rows of a table are ordered and told apart; `order` is the place in a file whose order
is that of the events, 0 where the file does not tell.
"""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

E8_DIGITS = 8
E8 = 10**E8_DIGITS
WHOLE_MAX = 9 * 10**10  # of a number: more does not fit 64 bits in units of 10**-8

# columns that all tables share
E_MS, T_MS, NUMBER, PRICE, QTY = range(5)
# trades and aggs
MAKER = 5
ORDER = 6
FIRST, LAST = 7, 8
TRADE_COLS = 7
AGG_COLS = 9
# quotes: PRICE and QTY are the bid's
BID, BID_QTY, ASK, ASK_QTY = 3, 4, 5, 7
QUOTE_COLS = 8
assert ORDER not in (BID, BID_QTY, ASK, ASK_QTY)


class TapeError(ValueError):
    """One sentence: which file is not a tape, where, and what was expected."""


def table(columns: int) -> Ints:
    return np.zeros((0, columns), np.int64)


@dataclass(frozen=True, slots=True)
class Source:
    """Rows of one symbol. Digits are those its texts were written with, 0 if they tell nothing."""

    name: str
    trades: Ints  # [n, TRADE_COLS]: E T number price qty maker order
    aggs: Ints  # [n, AGG_COLS]: E T number price qty maker order first last
    quotes: Ints  # [n, QUOTE_COLS]: E T number bid bid_qty ask order ask_qty
    dropped: int
    price_digits: int = 0
    qty_digits: int = 0

    def count(self) -> int:
        return len(self.trades) + len(self.aggs) + len(self.quotes)

    def joined(self, other: Source) -> Source:
        """Both files' rows; the later file's come later within a millisecond."""
        after = max((int(t[:, ORDER].max()) for t in self.tables() if len(t)), default=0)
        later = [t.copy() for t in other.tables()]
        for t in later:
            t[:, ORDER] += after
        trades, aggs, quotes = (
            np.concatenate(pair) for pair in zip(self.tables(), later, strict=True)
        )
        return Source(
            self.name,
            trades,
            aggs,
            quotes,
            self.dropped + other.dropped,
            max(self.price_digits, other.price_digits),
            max(self.qty_digits, other.qty_digits),
        )

    def tables(self) -> tuple[Ints, Ints, Ints]:
        return self.trades, self.aggs, self.quotes

    def repeated(self) -> int:
        """Rows whose number is there already."""
        return sum(len(t) - len(np.unique(t[:, NUMBER])) for t in self.tables())


def e8(values: Floats) -> Ints:
    """Parsed decimals in units of 10**-8, exact up to 15 digits and 8 after the point."""
    if not np.isfinite(values).all() or (len(values) and np.abs(values).max() > WHOLE_MAX):
        raise ValueError("a number is out of range")
    spacing = np.spacing(np.abs(values)) * E8
    step = np.where(spacing < 0.4, 1, np.where(spacing < 40, 100, 10_000))
    whole = np.floor(values)
    raw = (values - whole) * E8
    rest = np.rint(raw / step) * step
    if (np.abs(raw - rest) > np.maximum(spacing, 1e-5)).any():
        raise ValueError("a number has too many digits")
    out: Ints = whole.astype(np.int64) * E8 + rest.astype(np.int64)
    return out


def e8_of(text: str) -> tuple[int, int]:
    """A decimal text in units of 10**-8, and how many digits it shows after the point."""
    whole, _, rest = text.partition(".")
    if len(rest) > E8_DIGITS:
        return int(Decimal(text).scaleb(E8_DIGITS)), E8_DIGITS
    value = int(whole + rest.ljust(E8_DIGITS, "0"))
    if abs(value) > WHOLE_MAX * E8:
        raise ValueError("a number is out of range")
    return value, len(rest)


def digits_of(values: Ints) -> int:
    """Digits after the point that these values need."""
    digits = E8_DIGITS
    while digits and not (values % 10 ** (E8_DIGITS - digits + 1)).any():
        digits -= 1
    return digits
