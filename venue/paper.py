"""A paper account on another exchange's market. Pure: what was heard and now in, events told.

Each symbol that the account has something in is a line: it is opened by REST, then follows
upstream's trades, quotes and marks one by one. A line that is not live moves nothing: no fill, no
trigger, no funding. What it missed is caught up when it opens again: every trade by its id and
every settlement of funding, in the order of their times, each at its own price, so that a stop
that was crossed fires at the price that crossed it. Marks in between are not known. Events carry
the time at which the account learns of them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field, replace
from decimal import Decimal
from typing import Any

from venue import matching, timers
from venue.house import House, Moment, tell
from venue.matching import FundingDue, MarketMark, MarketQuote, MarketTrade
from venue.orders import ZERO, Account, Book
from venue.symbols import Symbol
from venue.upstream import Heard, Opening, specifications, with_level
from venue.userwire import Json

LINES_MAX = 60  # followed at once: opening all of them stays within a minute's weight
HELD_MAX = 20_000  # events of one line that wait while it opens; beyond, it is asked for by REST
IDLE_MS = 600_000  # a line that nothing holds is kept for so long, in real time
SPARE_MS = 10_000  # and may be taken for an order elsewhere after so long
SETTLED_MS = 60_000  # a settlement's own time may jitter; the next one is an hour away at least
NO_BOOK = Book(ZERO, ZERO, ZERO, ZERO, ZERO, ZERO)


@dataclass(frozen=True, slots=True)
class PaperSetup:
    """Birth of a paper account; `speed` is the market's and looked up at every start."""

    world: str
    upstream: str
    t0_ms: int
    speed: float = 1.0
    kind: str = "paper"


@dataclass(slots=True)
class Line:
    """One symbol as followed upstream."""

    symbol: str
    trade_id: int = 0  # newest aggregate trade that the account has met; 0: none yet
    update_id: int = 0
    rate: Decimal = ZERO
    funding_ms: int = 0  # of the next settlement; 0: not known
    settled_ms: int = 0  # of the last one that was paid
    live: bool = False
    held: list[Heard] = field(default_factory=list)
    used_boot_ms: int = 0


@dataclass(slots=True)
class Paper(House):
    setup: PaperSetup
    lines: dict[str, Line] = field(default_factory=dict)
    latest_ms: int = 0  # newest event time: the clock is never behind it
    measured: tuple[int, int] = (0, 0)  # upstream's clock and the host's, when last compared
    gaps: int = 0  # trade ids that jumped while a line was live
    caught_up: int = 0  # trades that came by REST

    def book(self, symbol: str) -> Book:
        return self.account.books.get(symbol, NO_BOOK)

    def progress(self) -> Json:
        kept = []
        for line in self.lines.values():
            book = self.account.books.get(line.symbol)
            if book is None:
                continue
            kept.append(
                {
                    "symbol": line.symbol,
                    "trade_id": line.trade_id,
                    "rate": line.rate,
                    "funding_ms": line.funding_ms,
                    "settled_ms": line.settled_ms,
                    "book": book,
                    "level_qty": self.account.specs[line.symbol].qty_mean,
                }
            )
        return {"lines": kept, "latest_ms": self.latest_ms, "measured": self.measured}


def create(setup: PaperSetup, specs: tuple[Symbol, ...]) -> Paper:
    """An account without money on a market that is not heard yet."""
    index = {s.name: s.index for s in specs}
    return Paper(setup, specs, index, Account({s.name: s for s in specs}))


def relist(paper: Paper, rows: list[Json]) -> None:
    """Adds what upstream lists now and did not before; nothing is taken away."""
    more = [s for s in specifications(rows) if s.name not in paper.index]
    for spec in more:
        made = replace(spec, index=len(paper.specs))
        paper.specs += (made,)
        paper.index[made.name] = made.index
        paper.account.specs[made.name] = made


def restore(paper: Paper, saved: Json, boot_ms: int) -> None:
    """Lines as they were left, none of them live. Raises KeyError, TypeError, ValueError."""
    paper.latest_ms = int(saved["latest_ms"])
    market_ms, wall_ms = saved["measured"]
    paper.measured = int(market_ms), int(wall_ms)
    for row in saved["lines"]:
        name = str(row["symbol"])
        if name not in paper.index:
            continue
        book = {key: Decimal(value) for key, value in row["book"].items()}
        paper.account.books[name] = Book(**book)
        spec = paper.account.specs[name]
        paper.account.specs[name] = with_level(spec, Decimal(row["level_qty"]))
        paper.lines[name] = Line(
            name,
            int(row["trade_id"]),
            0,
            Decimal(row["rate"]),
            int(row["funding_ms"]),
            int(row["settled_ms"]),
            used_boot_ms=boot_ms,
        )
    for name in matching.watched(paper.account):
        follow(paper, name, boot_ms)


def estimate(paper: Paper, wall_ms: int) -> float:
    """Upstream's clock by the host's, while upstream cannot be asked."""
    market_ms, then_ms = paper.measured
    return market_ms + (wall_ms - then_ms) * paper.setup.speed


def follow(paper: Paper, symbol: str, boot_ms: int, for_order: bool = False) -> Line | None:
    """The line of a symbol, made when there is room; None for a stranger or without room.

    An order makes room: the line goes that has been idle for longest, if that is long enough.
    """
    line = paper.lines.get(symbol)
    if line is None:
        full = len(paper.lines) >= LINES_MAX
        spare = _spare(paper, boot_ms) if full and for_order else None
        if symbol not in paper.index or (full and spare is None):
            return None
        if spare is not None:
            del paper.lines[spare]
        line = paper.lines[symbol] = Line(symbol)
    line.used_boot_ms = boot_ms
    return line


def _spare(paper: Paper, boot_ms: int) -> str | None:
    needed = matching.watched(paper.account)
    idle = {
        name: line.used_boot_ms
        for name, line in paper.lines.items()
        if name not in needed and boot_ms - line.used_boot_ms > SPARE_MS
    }
    return min(idle, key=idle.__getitem__, default=None)


def release(paper: Paper, boot_ms: int) -> None:
    """Lines that nothing of the account needs any more end after a while."""
    for name in matching.watched(paper.account):
        follow(paper, name, boot_ms)
    idle = [n for n, line in paper.lines.items() if boot_ms - line.used_boot_ms > IDLE_MS]
    for name in idle:
        del paper.lines[name]


def lose(paper: Paper, symbols: Iterable[str]) -> None:
    """Upstream is out of hearing: these move nothing until they are opened again."""
    for name in symbols:
        line = paper.lines.get(name)
        if line is not None:
            line.live = False
            line.held.clear()


def _meet(paper: Paper, event: matching.MarketEvent, now_ms: int) -> None:
    tell(paper, matching.match(paper.account, event, now_ms))


def hear(paper: Paper, heard: Heard, now_ms: int) -> None:
    """One event of the market. A jump of the trade ids ends the line's life: it opens again."""
    line = paper.lines.get(heard.event.symbol)
    if line is None:
        return
    paper.latest_ms = max(paper.latest_ms, heard.ms)
    if line.live:
        _apply(paper, line, heard, max(now_ms, paper.latest_ms))
    elif len(line.held) < HELD_MAX:
        line.held.append(heard)
    else:
        line.held.clear()


def _apply(paper: Paper, line: Line, heard: Heard, now_ms: int) -> None:
    event = heard.event
    if isinstance(event, MarketTrade):
        if heard.id <= line.trade_id:
            return
        if heard.id > line.trade_id + 1:
            paper.gaps += 1
            line.live = False
            line.held = [heard]
            return
        line.trade_id = heard.id
    elif isinstance(event, MarketQuote):
        if heard.id <= line.update_id:
            return
        line.update_id = heard.id
    elif isinstance(event, MarketMark):
        if heard.funding_ms > line.funding_ms:
            _settle(paper, line, now_ms)  # the next one is announced: the last one is due
        if heard.funding_ms > line.settled_ms:
            line.rate, line.funding_ms = heard.rate, heard.funding_ms
    _meet(paper, event, now_ms)


def _settle(paper: Paper, line: Line, now_ms: int) -> None:
    """The settlement that was announced, at the rate last heard for it and the present mark."""
    if line.funding_ms:
        due_ms, line.settled_ms, line.funding_ms = line.funding_ms, line.funding_ms, 0
        assert due_ms > 0
        _meet(paper, FundingDue(line.symbol, line.rate), now_ms)


def step(paper: Paper, now_ms: int) -> None:
    """What the clock alone brings: funding of live lines, dates and countdowns of orders."""
    for line in paper.lines.values():
        if line.live and 0 < line.funding_ms <= now_ms:
            _settle(paper, line, now_ms)
    tell(paper, timers.expire(paper.account, now_ms))


def funding_since(line: Line, now_ms: int) -> int:
    """From when settlements may have been missed; 0 when none can have been."""
    due_ms = line.funding_ms or (line.settled_ms and line.settled_ms + SETTLED_MS)
    return due_ms - 1000 if 0 < due_ms <= now_ms else 0


def open_line(
    paper: Paper, symbol: str, opening: Opening, missed: list[Heard], now_ms: int
) -> None:
    """Catches up, takes the present market, applies what was heard meanwhile: the line is live."""
    line = paper.lines[symbol]
    account, spec = paper.account, paper.account.specs[symbol]
    account.specs[symbol] = with_level(spec, opening.level_qty)
    account.books.setdefault(symbol, opening.book)
    if opening.trade_id < line.trade_id:
        missed = []  # upstream counts anew: nothing that was missed can be told apart
    for heard in sorted(missed, key=lambda h: (h.ms, h.id)):
        _catch_up(paper, line, heard, now_ms)
    line.trade_id, line.update_id = opening.trade_id, opening.update_id
    if opening.funding_ms > line.settled_ms:
        line.rate, line.funding_ms = opening.rate, opening.funding_ms
    book = opening.book
    account.books[symbol] = replace(account.books[symbol], last=book.last)
    _meet(paper, MarketQuote(symbol, book.bid, book.bid_qty, book.ask, book.ask_qty), now_ms)
    _meet(paper, MarketMark(symbol, book.mark), now_ms)
    line.live = True
    held, line.held = line.held, []
    for heard in held:
        if line.live:
            _apply(paper, line, heard, max(now_ms, paper.latest_ms))


def _catch_up(paper: Paper, line: Line, heard: Heard, now_ms: int) -> None:
    """A trade of the past is met with its own price for a book: there was no better one."""
    event = heard.event
    if isinstance(event, MarketTrade):
        if heard.id <= line.trade_id:
            return
        line.trade_id = heard.id
        paper.caught_up += 1
        price, qty = event.price, event.qty
        before = paper.account.books[line.symbol]
        paper.account.books[line.symbol] = Book(price, qty, price, qty, price, before.mark)
    elif isinstance(event, FundingDue):
        if heard.ms <= line.settled_ms:
            return
        line.settled_ms, line.funding_ms = heard.ms, 0
    _meet(paper, event, now_ms)


def are_live(paper: Paper, symbols: Collection[str]) -> bool:
    """True when orders in all of these can be matched now."""
    return all(name in paper.lines and paper.lines[name].live for name in symbols)


def status(paper: Paper, now: Moment) -> dict[str, Any]:
    """/venue/v1/status of a paper account."""
    setup = paper.setup
    return {
        "world": setup.world,
        "upstream": setup.upstream,
        "market_ms": now.market_ms,
        "t0_ms": setup.t0_ms,
        "speed": setup.speed,
        "symbols": len(paper.specs),
        "paused": paper.paused,
        "live": sorted(name for name, line in paper.lines.items() if line.live),
        "waiting": sorted(name for name, line in paper.lines.items() if not line.live),
        "trade_gaps": paper.gaps,
        "trades_caught_up": paper.caught_up,
        "user_payloads_dropped": paper.told_dropped,
        "ledger_seq": paper.ledger_seq,
    }
