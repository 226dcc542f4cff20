"""Slow twin of brain/candles.py: candles by grouping, written for reading, not for speed.

`build(records)` takes the ring's records in order as tuples and answers with every closed candle,
the forming ones and the closes in the order in which they became known. It keeps all bars in
dictionaries and knows no ring, no batch and no state file.
"""

from __future__ import annotations

from dataclasses import dataclass, field

MINUTES = (1, 5, 15, 60, 1440)
CLOSE_DELAY_MS = 1_000  # a silent bar is over when the market's clock is this far past its end


@dataclass(slots=True)
class Bar:
    open: float
    high: float
    low: float
    close: float
    volume: float = 0.0
    quote: float = 0.0
    taker: float = 0.0
    trades: float = 0.0

    def values(self) -> tuple[float, ...]:
        return (
            self.open,
            self.high,
            self.low,
            self.close,
            self.volume,
            self.quote,
            self.taker,
            self.trades,
        )


def flat(price: float) -> Bar:
    """A minute without trades: the exchange's klines show it as a line at the last price."""
    return Bar(price, price, price, price)


@dataclass(slots=True)
class Book:
    """One symbol: bars by open time per timeframe, and up to where each timeframe is closed."""

    bars: dict[int, dict[int, Bar]] = field(default_factory=lambda: {m: {} for m in MINUTES})
    forming: dict[int, int] = field(default_factory=dict)  # minutes -> open time of the open bar
    first: dict[int, int] = field(default_factory=dict)
    closes: list[tuple[int, int, int, tuple[float, ...]]] = field(default_factory=list)
    degraded: bool = False
    late: int = 0
    last_id: int = 0

    def advance(self, minutes: int, open_ms: int, known_ns: int) -> None:
        """Close every bar that opens before `open_ms`; silent ones become flat."""
        step = minutes * 60_000
        while self.forming[minutes] < open_ms:
            at = self.forming[minutes]
            bars = self.bars[minutes]
            if at not in bars:
                bars[at] = flat(bars[at - step].close)
            self.closes.append((minutes, at, known_ns, bars[at].values()))
            self.forming[minutes] = at + step

    def trade(self, ns: int, trade_id: int, price: float, qty: float, buyer_maker: bool) -> None:
        if trade_id <= self.last_id:
            return
        self.last_id = trade_id
        for minutes in MINUTES:
            step = minutes * 60_000
            at = ns // 1_000_000 // step * step
            if minutes not in self.forming:
                self.forming[minutes] = self.first[minutes] = at
            if at > self.forming[minutes]:
                self.advance(minutes, at, ns)
            if at < self.forming[minutes] and minutes == 1:
                self.late += 1
            if at < self.first[minutes]:
                continue
            self.add(minutes, at, price, qty, buyer_maker)

    def add(self, minutes: int, at: int, price: float, qty: float, buyer_maker: bool) -> None:
        bars = self.bars[minutes]
        bar = bars.get(at)
        if bar is None or bar.trades == 0:
            bar = bars[at] = flat(price)
        bar.high = max(bar.high, price)
        bar.low = min(bar.low, price)
        bar.close = price
        bar.volume += qty
        bar.quote += price * qty
        bar.taker += 0.0 if buyer_maker else qty
        bar.trades += 1
        step = minutes * 60_000
        while at + step in bars and bars[at + step].trades == 0:
            at += step
            bars[at] = flat(price)

    def clock(self, ns: int) -> None:
        if self.degraded:
            return
        for minutes in MINUTES:
            step = minutes * 60_000
            while (
                minutes in self.forming
                and ns // 1_000_000 >= self.forming[minutes] + step + CLOSE_DELAY_MS
                and (self.bars[minutes].get(self.forming[minutes]) or self.closed(minutes))
            ):
                self.advance(minutes, self.forming[minutes] + step, ns)

    def closed(self, minutes: int) -> list[int]:
        return [at for at in self.bars[minutes] if at < self.forming[minutes]]

    def bar(self, minutes: int, at: int, values: tuple[float, ...], closed: bool) -> None:
        step = minutes * 60_000
        self.bars[minutes][at] = Bar(*values)
        self.first.setdefault(minutes, at)
        if closed:
            self.forming[minutes] = max(self.forming.get(minutes, 0), at + step)
        else:
            self.forming[minutes] = at


def history(book: Book, minutes: int) -> list[tuple[int, tuple[float, ...]]]:
    """The closed candles, oldest first."""
    bars = book.bars[minutes]
    return [(at, bars[at].values()) for at in sorted(bars) if at < book.forming[minutes]]
