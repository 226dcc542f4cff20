"""What the kernel lets through is all that matters: the account fares as if it saw every event."""

from __future__ import annotations

import random
from dataclasses import replace
from decimal import Decimal as D
from itertools import product
from typing import Any

import hypothesis
import hypothesis.strategies as st
import pytest

from tests.test_venue_matching import request
from venue import exchange, liquidation, matching, orders, touch
from venue.exchange import Exchange
from venue.market import EVENT_MS, KIND, MARK, SYM
from venue.orders import Book, Position, Refusal, available, position_key
from venue.symbols import listing


def meet_all(world: Exchange, count: int, now_ms: int) -> None:
    """The plain way: every event of a watched symbol, one by one."""
    names = matching.watched(world.account)
    for row in world.rows[:count]:
        spec = world.specs[min(int(row[SYM]), len(world.specs) - 1)]
        if row[KIND] > MARK or spec.name not in names:
            continue
        ms = max(now_ms, int(row[EVENT_MS]))
        event = exchange._happened(spec, spec.name, row)
        exchange.tell(world, matching.match(world.account, event, ms))
    for name in names:
        exchange.refresh(world, name)


def born(seed: int) -> Exchange:
    return exchange.create(exchange.Setup("w", 3, 400.0, seed, 1.0, 0.0, ()))


class Trader:
    """Random orders near the market, the same for the same seed and the same account."""

    def __init__(self, seed: int, wallet: str) -> None:
        self.chance, self.wallet = random.Random(seed), wallet

    def prepare(self, world: Exchange) -> None:
        exchange.tell(world, matching.deposit(world.account, D(self.wallet), world.t0_ms))
        for spec in world.specs:
            leverage = min(100, spec.brackets[0].leverage_max)
            done = matching.set_leverage(world.account, spec.name, leverage, world.t0_ms)
            assert not isinstance(done, Refusal)
            exchange.tell(world, done)
        isolated = matching.set_margin_type(world.account, world.specs[2].name, True, world.t0_ms)
        assert not isinstance(isolated, Refusal)
        exchange.tell(world, isolated)

    def act(self, world: Exchange, now_ms: int) -> None:
        chance, account = self.chance, world.account
        spec = world.specs[chance.randrange(3)]
        book = exchange.refresh(world, spec.name)
        side = chance.choice(("BUY", "SELL"))
        sign = 1 if side == "BUY" else -1
        share = D(chance.randint(5, 90)) / 100
        notional = available(account) * 100 * share
        qty = max(spec.step, (notional / book.mark) // spec.step * spec.step)
        fields = {"symbol": spec.name, "side": side, "quantity": f"{qty:f}"}
        kind = chance.randrange(6)
        ticks = chance.randint(1, 30) * spec.tick
        events: list[Any] = []
        if kind == 0:
            plain = request(**fields, type="MARKET", timeInForce="", price="")
            _, events = matching.place(account, plain, now_ms)
        elif kind in (1, 2):
            price = (book.bid if sign > 0 else book.ask) - sign * (ticks - spec.tick) // 3 // 1
            price = price // spec.tick * spec.tick
            _, events = matching.place(account, request(**fields, price=f"{price:f}"), now_ms)
        elif kind == 3:
            fields |= {"price": "", "timeInForce": "", "workingType": chance.choice(WORKING)}
            trigger = f"{book.last + sign * ticks:f}"
            stop = request(**fields, type="STOP_MARKET", triggerPrice=trigger)
            _, events = matching.place_algo(account, stop, now_ms)
        elif kind == 4:
            fields |= {"price": "", "timeInForce": "", "workingType": chance.choice(WORKING)}
            trail = request(**fields, type="TRAILING_STOP_MARKET", callbackRate="0.1")
            _, events = matching.place_algo(account, trail, now_ms)
        elif account.orders:
            order = list(account.orders.values())[chance.randrange(len(account.orders))]
            events = matching.cancel(account, order, now_ms)
        exchange.tell(world, events)


WORKING = ("CONTRACT_PRICE", "MARK_PRICE")


def live(seed: int, wallet: str, steps: int = 60) -> Exchange:
    world, trader = born(seed), Trader(seed, wallet)
    trader.prepare(world)
    until = float(world.t0_ms)
    for number in range(steps):
        until += random.Random(seed * 1000 + number).choice((20, 200, 900, 2_500))
        for _ in exchange.advance(world, until, int(until)):
            pass
        trader.act(world, int(until))
    return world


@pytest.mark.parametrize("seed", range(12))
def test_the_account_fares_as_if_it_saw_every_event(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    wallet = ("30", "150", "10000")[seed % 3]
    fast = live(seed, wallet)
    monkeypatch.setattr(exchange, "_meet", meet_all)
    plain = live(seed, wallet)
    assert list(fast.ledger) == list(plain.ledger)
    assert (fast.account.wallet, fast.account.orders) == (
        plain.account.wallet,
        plain.account.orders,
    )
    assert fast.account.algos == plain.account.algos
    assert fast.account.positions == plain.account.positions


def test_the_comparison_has_seen_fills_triggers_trails_and_liquidations() -> None:
    seen: dict[str, int] = {}
    for seed in range(12):
        world = live(seed, ("30", "150", "10000")[seed % 3])
        for line in world.ledger:
            maker = line["type"] == "trade" and line["maker"]
            word = "maker" if maker else line["type"]
            word = "liquidation" if line.get("order_type") == "LIQUIDATION" else word
            seen[word] = seen.get(word, 0) + 1
    assert min(seen[w] for w in ("maker", "trade", "algo_triggered", "liquidation")) >= 3, seen


def test_an_account_at_rest_lets_nothing_through() -> None:
    world = born(1)
    exchange.tell(world, matching.deposit(world.account, D(1000), world.t0_ms))
    book = exchange.refresh(world, "BTCUSDT")
    far = request(symbol="BTCUSDT", price=f"{book.bid * D('0.96') // 1:f}")
    matching.place(world.account, far, world.t0_ms)
    exchange._set_bands(world, {"BTCUSDT"})
    count = exchange.market.step(world.market, world.t0_ms + 20_000.0, world.rows)
    none = exchange.np.full(3, -1, exchange.np.int64)
    assert count > 1_000
    assert touch.next_touch(world.rows, 0, count, world.bands, none, none.copy()) == count
    assert next(iter(world.account.orders.values())).ahead > orders.ZERO


SIZES = st.tuples(*[st.integers(-400, 400) for _ in range(3)])


@hypothesis.settings(max_examples=200, deadline=None)
@hypothesis.given(SIZES, st.integers(200, 100_000), st.integers(0, 2**31))
def test_marks_within_their_bands_leave_every_position_covered(
    sizes: tuple[int, int, int], wallet: int, seed: int
) -> None:
    chance = random.Random(seed)
    specs = {s.name: s for s in listing(3)}
    account = orders.Account(dict(specs), wallet=D(wallet))
    for (name, spec), steps in zip(specs.items(), sizes, strict=True):
        account.books[name] = Book(spec.price, D(1), spec.price, D(1), spec.price, spec.price)
        qty = steps * spec.step
        position = Position(name, qty, qty * spec.price * D(chance.uniform(0.97, 1.03)))
        account.positions[position_key(name, "BOTH")] = position
    if chance.random() < 0.4:
        name = chance.choice(list(specs))
        account.isolated.add(name)
        account.positions[position_key(name, "BOTH")].isolated = D(chance.randint(1, 2_000))
    held = [p for p in account.positions.values() if p.qty]
    hypothesis.assume(held and all(liquidation.covered(account, p) for p in held))
    bands = touch.untouchable(3)
    touch.set_bands(account, list(specs.values()), bands)
    for corner in product((touch.MARK_LOW, touch.MARK_HIGH), repeat=3):
        for spec, edge in zip(specs.values(), corner, strict=True):
            inside = int(bands[spec.index, edge]) + (1 if edge == touch.MARK_LOW else -1)
            mark = max(D(inside).scaleb(-8), D("0.00000001"))
            mark = min(mark, 10 * spec.price)
            account.books[spec.name] = replace(account.books[spec.name], mark=mark)
        assert all(liquidation.covered(account, p) for p in held)
