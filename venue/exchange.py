"""The exchange as one object without I/O: market, published record, account, what is to be told.

`advance` makes the market's events up to a market time and lets them meet the account; REST calls
change the account between two steps. What the outside must hear (user payloads, ledger lines)
waits in `told` and `ledger` until the shell carries it out. Nothing here reads a clock.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from decimal import Decimal
from typing import Any

import numpy as np

from venue import bars, history, market, matching
from venue import tape as tapes
from venue.market import AGG, BOOK, EVENT_MS, FLAG, KIND, MARK, P1, P2, Q1, Q2, SYM, Ints
from venue.orders import ZERO, Account, Book, Event
from venue.symbols import FUNDING_INTERVAL_MS, FUNDING_RATE_E8, Symbol, listing
from venue.userwire import Json, ledger_entries, user_payloads

LEDGER_KEPT = 100_000  # entries that the API can still give; the file has all
DEPOSIT = Decimal(10_000)
API_KEY = API_SECRET = "test"  # noqa: S105  the default account's, documented: it is a toy
TOLD_MAX = 100_000  # user payloads not yet carried out; beyond, the oldest are dropped and counted


@dataclass(frozen=True, slots=True)
class Setup:
    """What a world is made of."""

    world: str
    symbols: int
    rate: float
    seed: int
    speed: float
    edge: float
    tape: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Moment:
    """Now, on both clocks; `slack_ms` is how far a client's clock may run ahead during a pause."""

    market_ms: int
    boot_ms: int
    slack_ms: int = 0


@dataclass(slots=True)
class Exchange:
    setup: Setup
    specs: tuple[Symbol, ...]
    index: dict[str, int]
    market: market.Market
    record: bars.Tape
    account: Account
    rows: Ints
    tape_last_ms: int
    tape_dropped: int
    birth_prices: tuple[int, ...]
    trades_per_minute: tuple[float, ...]
    next_funding_ms: int
    made_until_ms: float
    told: deque[Json] = field(default_factory=lambda: deque(maxlen=TOLD_MAX))
    told_dropped: int = 0
    ledger: deque[Json] = field(default_factory=lambda: deque(maxlen=LEDGER_KEPT))
    ledger_seq: int = 0
    unwritten: list[Json] = field(default_factory=list)
    dirty: bool = True
    paused: bool = False

    @property
    def t0_ms(self) -> int:
        return self.market.t0_ms


def minute_of(ms: float) -> int:
    return int(ms) // 60_000 * 60_000


def _activity(
    specs: tuple[Symbol, ...], setup: Setup, tape: tapes.Tape | None
) -> tuple[float, ...]:
    """Trades per market minute of each symbol: generated history is as busy as the live market."""
    taped = len(tape.symbols) if tape else 0
    total = sum(s.weight for s in specs[taped:]) or 1.0
    per_minute = setup.rate * market.TRADE_SHARE * 1.8 * 60.0 / setup.speed
    out = [max(1.0, per_minute * s.weight / total) for s in specs]
    if tape is not None:
        minutes = max(1.0, (tape.last_ms - tape.first_ms) / 60_000)
        for s in tape.symbols:
            own = tape.rows[(tape.rows[:, SYM] == s.index) & (tape.rows[:, KIND] == AGG)]
            out[s.index] = max(1.0, float((own[:, Q2] - own[:, P2] + 1).sum()) / minutes)
    return tuple(out)


def _listing(setup: Setup, tape: tapes.Tape | None) -> tuple[Symbol, ...]:
    """Taped symbols first, then the venue's own that are not among them."""
    first = tape.symbols if tape else ()
    names = {s.name for s in first}
    others = [s for s in listing(min(1000, setup.symbols + len(first))) if s.name not in names]
    chosen = [*first, *others][: max(setup.symbols, len(first))]
    return tuple(replace(s, index=k) for k, s in enumerate(chosen))


def seed_candles(exchange: Exchange, symbol: int) -> tuple[list[Ints], Ints]:
    """History of one symbol before birth: the same every time it is asked for."""
    s = exchange.specs[symbol]
    qty = float(s.qty_mean / s.unit) / 1.8
    return history.history(
        exchange.setup.seed,
        symbol,
        exchange.birth_prices[symbol],
        s.tick_points,
        market.sigma_1m(exchange.market, symbol),
        exchange.trades_per_minute[symbol],
        qty,
        minute_of(exchange.t0_ms),
    )


def create(setup: Setup) -> Exchange:
    """A newborn world. Raises TapeError."""
    tape = tapes.load(setup.tape) if setup.tape else None
    specs = _listing(setup, tape)
    t0_ms = tape.first_ms - 2000 if tape else market.birth_ms(setup.seed)
    world = market.create(
        specs,
        setup.seed,
        setup.rate,
        setup.speed,
        setup.edge,
        t0_ms,
        tape.rows if tape else market.empty_tape(),
        tapes.firsts(tape) if tape else {},
    )
    for k, sigma in enumerate(tape.sigma_1m if tape else ()):
        world.f[k, market.SIGMA] = sigma / market.MINUTE_MS**0.5
    frames = len(bars.TIMEFRAMES)
    seeds = np.zeros((frames, len(specs), bars.BAR_COLS), np.int64)
    exchange = Exchange(
        setup,
        specs,
        {s.name: s.index for s in specs},
        world,
        bars.create(len(specs), minute_of(t0_ms), seeds),
        Account({s.name: s for s in specs}),
        market.rows(world),
        tape.last_ms if tape else 0,
        tape.dropped if tape else 0,
        tuple(int(v) for v in world.n[:, market.LAST]),
        _activity(specs, setup, tape),
        (t0_ms // FUNDING_INTERVAL_MS + 1) * FUNDING_INTERVAL_MS,
        float(t0_ms),
    )
    for s in specs:
        _, forming = seed_candles(exchange, s.index)
        exchange.record.forming[:, s.index] = forming
    bars.settle(exchange.record, t0_ms)
    return exchange


def open_account(exchange: Exchange, now: Moment) -> None:
    """The first deposit: where the ledger starts."""
    tell(exchange, matching.deposit(exchange.account, DEPOSIT, now.market_ms))


def tell(exchange: Exchange, events: list[Event]) -> None:
    """Queues what the user stream and the ledger must say of these events, in order."""
    if not events:
        return
    account = exchange.account
    exchange.dirty = True
    aside = sum((p.isolated for p in account.positions.values()), ZERO)
    for event in events:
        for payload in user_payloads(event, account.specs, aside):
            if len(exchange.told) == TOLD_MAX:
                exchange.told_dropped += 1
            exchange.told.append(payload)
        for entry in ledger_entries(event):
            exchange.ledger_seq += 1
            line = {"seq": exchange.ledger_seq, "ms": event.ms, **entry}
            exchange.ledger.append(line)
            exchange.unwritten.append(line)


def book_of(exchange: Exchange, symbol: int) -> Book:
    """The published best prices, last trade and mark of one symbol."""
    n, s = exchange.market.n[symbol], exchange.specs[symbol]
    mark = Decimal(int(n[market.BID] + n[market.ASK]) * int(n[market.SCALE]) // 2).scaleb(-8)
    return Book(
        s.price_of(int(n[market.BID])),
        s.qty_of(int(n[market.BIDQ])),
        s.price_of(int(n[market.ASK])),
        s.qty_of(int(n[market.ASKQ])),
        s.price_of(int(n[market.LAST])),
        mark,
    )


def refresh(exchange: Exchange, symbol: str) -> Book:
    """Puts the present book of a symbol before the account."""
    book = book_of(exchange, exchange.index[symbol])
    exchange.account.books[symbol] = book
    return book


def advance(exchange: Exchange, until_ms: float, now_ms: int) -> Iterator[int]:
    """Makes events until then, in chunks: each yield says how many rows of `exchange.rows` hold.

    The account has met them all before the yield; `made_until_ms` is set at the end.
    """
    while True:
        # before the step: the account sees the path from the book as it was
        for name in matching.watched(exchange.account):
            refresh(exchange, name)
        count = market.step(exchange.market, until_ms, exchange.rows)
        if count == 0:
            break
        bars.absorb(exchange.record, exchange.rows, count)
        _meet(exchange, count, now_ms)
        yield count
    if minute_of(until_ms) > minute_of(exchange.made_until_ms):
        bars.settle(exchange.record, until_ms)
    exchange.made_until_ms = until_ms
    if until_ms >= exchange.next_funding_ms:
        _funding(exchange, now_ms)


def _funding(exchange: Exchange, now_ms: int) -> None:
    rate = Decimal(FUNDING_RATE_E8).scaleb(-8)
    for name in sorted(matching.watched(exchange.account)):
        refresh(exchange, name)
        due = matching.FundingDue(name, rate)
        tell(exchange, matching.match(exchange.account, due, now_ms))
    exchange.next_funding_ms += FUNDING_INTERVAL_MS


def _untouched(exchange: Exchange, name: str, mine: Ints) -> bool:
    """True when no price of the step reaches anything of ours: the usual case, kept cheap."""
    spec = exchange.account.specs[name]
    traded = mine[mine[:, KIND] != MARK]
    if len(traded) == 0:
        return True
    least = spec.price_of(int(traded[:, P1].min()))
    trades = traded[traded[:, KIND] == AGG]
    quotes = traded[traded[:, KIND] == BOOK]
    most = spec.price_of(
        max(int(traded[:, P1].max()), int(quotes[:, P2].max()) if len(quotes) else 0)
    )
    for order in exchange.account.orders.values():
        if order.symbol == name and least <= order.price <= most:
            return False
        if order.symbol == name and (order.price >= most) == (order.side == "BUY"):
            return False
    for algo in exchange.account.algos.values():
        if algo.symbol != name or algo.working != "CONTRACT_PRICE" or not len(trades):
            continue
        peak = spec.price_of(int(trades[:, P1].max() if algo.rises else trades[:, P1].min()))
        if (peak >= algo.trigger) if algo.rises else (peak <= algo.trigger):
            return False
    return True


def _meet(exchange: Exchange, count: int, now_ms: int) -> None:
    """The account meets the step's path, symbol by symbol, price by price."""
    rows = exchange.rows[:count]
    for name in sorted(matching.watched(exchange.account)):
        mine = rows[(rows[:, SYM] == exchange.index[name]) & (rows[:, KIND] <= MARK)]
        if len(mine) == 0:
            continue
        if _untouched(exchange, name, mine):
            mine = mine[mine[:, KIND] == MARK]
        for row in mine:
            ms = max(now_ms, int(row[EVENT_MS]))
            happened = _happened(exchange.account.specs[name], name, row)
            tell(exchange, matching.match(exchange.account, happened, ms))
        refresh(exchange, name)


def _happened(spec: Symbol, name: str, row: Ints) -> matching.MarketEvent:
    kind = int(row[KIND])
    if kind == MARK:
        return matching.MarketMark(name, Decimal(int(row[P1])).scaleb(-8))
    price, qty = spec.price_of(int(row[P1])), spec.qty_of(int(row[Q1]))
    if kind == BOOK:
        ask, ask_qty = spec.price_of(int(row[P2])), spec.qty_of(int(row[Q2]))
        return matching.MarketQuote(name, price, qty, ask, ask_qty)
    return matching.MarketTrade(name, price, qty, bool(row[FLAG]))


def candles(exchange: Exchange, symbol: int, timeframe: int) -> Ints:
    """Generated history, then what was published, then the forming candle."""
    closed, _ = seed_candles(exchange, symbol)
    live = bars.candles(exchange.record, symbol, timeframe)
    past = closed[timeframe]
    return np.concatenate([past[past[:, bars.OPEN_MS] < live[0, bars.OPEN_MS]], live])


def status(exchange: Exchange, now: Moment) -> dict[str, Any]:
    """/venue/v1/status."""
    setup = exchange.setup
    return {
        "world": setup.world,
        "market_ms": now.market_ms,
        "t0_ms": exchange.t0_ms,
        "speed": setup.speed,
        "seed": setup.seed,
        "edge": setup.edge,
        "rate": setup.rate,
        "symbols": len(exchange.specs),
        "paused": exchange.paused,
        "tape": list(setup.tape),
        "tape_ended": market.tape_ended(exchange.market),
        "tape_dropped": exchange.tape_dropped,
        "taped_symbols": [
            s.name for s in exchange.specs if exchange.market.n[s.index, market.TAPED]
        ],
        "history": f"candles before {minute_of(exchange.t0_ms)} are generated from the seed",
        "user_payloads_dropped": exchange.told_dropped,
        "ledger_seq": exchange.ledger_seq,
    }
