"""The exchange as one object without I/O: market, published record, account, what is to be told.

`advance` makes the market's events up to a market time and lets them meet the account; REST calls
change the account between two steps. What the outside must hear (user payloads, ledger lines)
waits in `told` and `unwritten` until the shell carries it out. Nothing here reads a clock.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from decimal import Decimal
from typing import Any

import numpy as np

from venue import bars, history, market, matching, scenario, scenes, timers, touch
from venue import tape as tapes
from venue.house import House
from venue.house import Moment as Moment  # these four are spoken of as the exchange's
from venue.house import open_account as open_account
from venue.house import refresh as refresh
from venue.house import tell as tell
from venue.market import AGG, BOOK, EVENT_MS, FLAG, KIND, MARK, P1, P2, Q1, Q2, SYM, Ints
from venue.orders import Account, Book
from venue.scenario import Scenario
from venue.symbols import FUNDING_INTERVAL_MS, FUNDING_RATE_E8, Symbol, listing
from venue.userwire import Json


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
    scenarios: tuple[str, ...] = ()  # as text, times after birth
    birth_ms: int = 0  # 0: the seed's day, or the tape's


@dataclass(slots=True)
class Exchange(House):
    setup: Setup
    market: market.Market
    record: bars.Tape
    rows: Ints
    tape_last_ms: int
    tape_dropped: int
    birth_prices: tuple[int, ...]
    trades_per_minute: tuple[float, ...]
    next_funding_ms: int
    made_until_ms: float
    bands: Ints  # by symbol, see touch
    banded: int = field(default=-1, kw_only=True)  # `changes` that the bands are of
    # delisted, and until which market time they have traded
    ended: dict[str, float] = field(default_factory=dict, kw_only=True)
    # in the order of their rows
    scenarios: list[Scenario] = field(default_factory=list, kw_only=True)

    @property
    def t0_ms(self) -> int:
        return self.market.t0_ms

    def book(self, symbol: str) -> Book:
        return book_of(self, self.index[symbol])

    def progress(self) -> Json:
        return {
            "made_until_ms": self.made_until_ms,
            "next_funding_ms": self.next_funding_ms,
            "ended": self.ended,
            # those of the setup are planned again anyway
            "scenarios": [s.json() for s in self.scenarios[len(self.setup.scenarios) :]],
        }


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


def plan(exchange: Exchange, wanted: Scenario) -> Scenario:
    """Plans a scenario for a time that has not come. Raises ValueError with one sentence."""
    if wanted.symbol not in exchange.index:
        raise ValueError(f"{wanted.symbol} is not listed here")
    symbol = exchange.index[wanted.symbol]
    if exchange.market.n[symbol, market.TAPED]:
        raise ValueError(f"{wanted.symbol} plays a tape, which nothing may change")
    if wanted.at_ms <= exchange.made_until_ms:
        raise ValueError(f"at_ms must be after {int(exchange.made_until_ms)}, not {wanted.at_ms}")
    if len(exchange.scenarios) >= scenes.SCENES_MAX:
        raise ValueError(f"all {scenes.SCENES_MAX} scenarios of this world are planned")
    clash = scenario.conflict(exchange.scenarios, wanted)
    if clash:
        raise ValueError(clash)
    row = len(exchange.scenarios)
    scenes.place(exchange.market.scenes, row, scenario.scene(wanted, symbol), exchange.setup.seed)
    exchange.scenarios.append(wanted)
    exchange.dirty = True
    return wanted


def planned(exchange: Exchange) -> list[dict[str, Any]]:
    """Every scenario with its state, in the order of planning."""
    names = ("waiting", "running", "done")
    stages = exchange.market.scenes.play[:, scenes.STAGE]
    return [
        {"id": k, **s.json(), "until_ms": scenario.until_ms(s), "state": names[int(stages[k])]}
        for k, s in enumerate(exchange.scenarios)
    ]


def create(setup: Setup) -> Exchange:
    """A newborn world. Raises TapeError; ValueError when a scenario cannot be."""
    tape = tapes.load(setup.tape) if setup.tape else None
    specs = _listing(setup, tape)
    t0_ms = tape.first_ms - 2000 if tape else setup.birth_ms or market.birth_ms(setup.seed)
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
        Account({s.name: s for s in specs}),
        world,
        bars.create(len(specs), minute_of(t0_ms), seeds),
        market.rows(world),
        tape.last_ms if tape else 0,
        tape.dropped if tape else 0,
        tuple(int(v) for v in world.n[:, market.LAST]),
        _activity(specs, setup, tape),
        (t0_ms // FUNDING_INTERVAL_MS + 1) * FUNDING_INTERVAL_MS,
        float(t0_ms),
        touch.untouchable(len(specs)),
    )
    for s in specs:
        _, forming = seed_candles(exchange, s.index)
        exchange.record.forming[:, s.index] = forming
    bars.settle(exchange.record, t0_ms)
    for text in setup.scenarios:
        wanted = scenario.from_text(text)
        plan(exchange, replace(wanted, at_ms=t0_ms + max(1, wanted.at_ms)))
    return exchange


def book_of(exchange: Exchange, symbol: int) -> Book:
    """The published best prices, last trade and mark of one symbol."""
    n, s = exchange.market.n[symbol], exchange.specs[symbol]
    return Book(
        s.price_of(int(n[market.BID])),
        s.qty_of(int(n[market.BIDQ])),
        s.price_of(int(n[market.ASK])),
        s.qty_of(int(n[market.ASKQ])),
        s.price_of(int(n[market.LAST])),
        Decimal(int(n[market.MARKED])).scaleb(-8),
    )


def advance(exchange: Exchange, until_ms: float, now_ms: int) -> Iterator[int]:
    """Makes events until then, in chunks: each yield says how many rows of `exchange.rows` hold.

    The account has met them all before the yield; `made_until_ms` is set at the end. Funding on
    the way is settled at its own time, at the mark that is published then.
    """
    while exchange.next_funding_ms < until_ms:
        at_ms = max(exchange.next_funding_ms, int(exchange.made_until_ms))
        yield from _advance(exchange, at_ms, min(now_ms, at_ms))
    yield from _advance(exchange, until_ms, now_ms)


def _advance(exchange: Exchange, until_ms: float, now_ms: int) -> Iterator[int]:
    while True:
        count = market.step(exchange.market, until_ms, exchange.rows)
        if count == 0:
            break
        count = traded(exchange, count)
        bars.absorb(exchange.record, exchange.rows, count)
        _meet(exchange, count, now_ms)
        yield count
    if minute_of(until_ms) > minute_of(exchange.made_until_ms):
        bars.settle(exchange.record, until_ms)
    exchange.made_until_ms = until_ms
    tell(exchange, timers.expire(exchange.account, now_ms))
    if until_ms >= exchange.next_funding_ms:
        _funding(exchange, now_ms)


def traded(exchange: Exchange, count: int) -> int:
    """Takes the trades of delisted symbols out of the first rows; how many rows are left."""
    for name in exchange.statuses.keys() - exchange.ended.keys():
        exchange.ended[name] = exchange.made_until_ms
    if not exchange.ended:
        return count
    until_ms = np.full(len(exchange.specs) + 1, np.inf)  # rows of all symbols come last
    for name, ms in exchange.ended.items():
        until_ms[exchange.index[name]] = ms
    rows = exchange.rows[:count]
    kept = rows[(rows[:, KIND] != AGG) | (rows[:, EVENT_MS] <= until_ms[rows[:, SYM]])]
    rows[: len(kept)] = kept
    return len(kept)


def _funding(exchange: Exchange, now_ms: int) -> None:
    rate = Decimal(FUNDING_RATE_E8).scaleb(-8)
    for name in sorted(matching.watched(exchange.account)):
        refresh(exchange, name)
        due = matching.FundingDue(name, rate)
        tell(exchange, matching.match(exchange.account, due, now_ms))
    exchange.next_funding_ms += FUNDING_INTERVAL_MS


def _meet(exchange: Exchange, count: int, now_ms: int) -> None:
    """The account meets what touches it, in the order in which it happened."""
    account, rows = exchange.account, exchange.rows
    names = matching.watched(account)
    if not names:
        return
    quoted, marked = (np.full(len(exchange.specs), -1, np.int64) for _ in range(2))
    if exchange.banded != exchange.changes:
        _set_bands(exchange, names)
    at = touch.next_touch(rows, 0, count, exchange.bands, quoted, marked)
    while at < count:
        row = rows[at]
        name = exchange.specs[int(row[SYM])].name
        for other in names:
            _catch_up(exchange, other, quoted, marked)
        ms = max(now_ms, int(row[EVENT_MS]))
        events = matching.match(account, _happened(account.specs[name], name, row), ms)
        if events:
            tell(exchange, events)
        if events or row[KIND] == MARK:
            _set_bands(exchange, names)
        else:
            touch.set_trade_bands(account, account.specs[name], exchange.bands[row[SYM]])
        at = touch.next_touch(rows, at + 1, count, exchange.bands, quoted, marked)
    moved = {
        exchange.specs[s].name for s in np.unique(rows[:count, SYM]) if s < len(exchange.specs)
    }
    for name in names & (moved | exchange.ended.keys()):
        refresh(exchange, name)


def _set_bands(exchange: Exchange, names: set[str]) -> None:
    exchange.bands[:] = touch.untouchable(len(exchange.specs))
    specs = [exchange.account.specs[name] for name in names]
    touch.set_bands(exchange.account, specs, exchange.bands)
    exchange.banded = exchange.changes


def _catch_up(exchange: Exchange, name: str, quoted: Ints, marked: Ints) -> None:
    """Quotes and marks that touched nothing are in the book before something does."""
    account, at = exchange.account, exchange.index[name]
    for latest in (quoted, marked):
        if latest[at] >= 0:
            happened = _happened(account.specs[name], name, exchange.rows[latest[at]])
            account.books[name] = matching.book_after(account.books[name], happened)
            latest[at] = -1


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
    """Generated history, then what was published, then the forming candle, without a hole."""
    closed, _ = seed_candles(exchange, symbol)
    live = bars.candles(exchange.record, symbol, timeframe)
    past = closed[timeframe]
    if past[-1, bars.OPEN_MS] + bars.SPAN_MS[timeframe] < live[0, bars.OPEN_MS]:
        return live  # the first published candles are no longer kept
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
