"""Random order flow in both modes against an oracle that knows the events only."""

from __future__ import annotations

import json
import random
from collections import Counter
from decimal import Decimal as D
from typing import Any

import hypothesis
import orjson
from hypothesis import strategies as st

from maintenance.audit import audit
from tests.test_venue_matching import NOW
from tests.venue_oracle import Oracle, as_ours
from venue import amend, checks, fees, ladder, liquidation, matching, positions, store, wallet
from venue.checks import parse
from venue.matching import FundingDue, MarketMark, MarketQuote, MarketTrade, match
from venue.orders import Account, Book, Event, Order, OrderEvent, Refusal
from venue.symbols import listing
from venue.userwire import ledger_entries, user_payloads

SPECS = {s.name: s for s in listing(5) if s.base in ("BTC", "ETH", "BNB")}
NAMES = ("BTCUSDT", "ETHUSDT")
BORN = {"BTCUSDT": "60000", "ETHUSDT": "2600", "BNBUSDT": "500"}
SIDES = ("BUY", "SELL")

FLAG = (False, True)
TIFS = ("GTC", "GTC", "GTC", "IOC", "FOK", "GTX", "")
TICKS, STEPS, REDUCE = range(-60, 61), range(1, 400), (False, False, True)
# word, weight, what its arguments are drawn from
WORDS: tuple[tuple[str, int, tuple[Any, ...]], ...] = (
    ("place", 8, (NAMES, SIDES, FLAG, TIFS, TICKS, STEPS, REDUCE)),
    ("partly", 4, (NAMES, SIDES, FLAG, range(2, 400), range(1, 100), TICKS, STEPS)),
    ("amend", 6, (range(10), TICKS, STEPS)),
    ("algo", 4, (NAMES, SIDES, FLAG, range(4), TICKS, STEPS, FLAG, REDUCE)),
    ("market", 6, (NAMES, range(-80, 81), range(1, 4), range(1, 400))),
    ("trade", 4, (NAMES, range(-40, 41), range(1, 200), FLAG)),
    ("crash", 3, (NAMES, range(-8, 9))),
    ("funding", 2, (NAMES, range(-300, 301))),
    ("cancel", 2, (range(10),)),
    ("cancel_algo", 1, (range(10),)),
    ("flat", 1, (NAMES,)),
    ("leverage", 1, (NAMES, (1, 5, 20, 125))),
    ("margin_type", 1, (NAMES, FLAG)),
    ("move_margin", 2, (NAMES, FLAG, range(-50, 51))),
    ("transfer", 2, (("USDT", "USDT", "BNB"), range(-100_000, 60_000))),
    ("fees", 1, (range(10), FLAG)),
    ("bnb", 1, (range(30_000, 90_000),)),
    ("mode", 1, (FLAG,)),
)
LITTLE = D("0.000001")  # what unrealised profits are rounded by
BIRTH = (FLAG, FLAG, FLAG, (5, 20, 20, 125))
OPERATION = st.sampled_from([word for word in WORDS for _ in range(word[1])]).flatmap(
    lambda word: st.tuples(st.just(word[0]), *(st.sampled_from(part) for part in word[2]))
)


def drawn(rng: random.Random) -> tuple[Any, ...]:
    """One operation, as OPERATION draws it."""
    [(word, _, parts)] = rng.choices(WORDS, [weight for _, weight, _ in WORDS])
    return (word, *(rng.choice(part) for part in parts))


def check_told(event: Event, payload: dict[str, Any]) -> None:
    """A payload says what the event says, of its own side, and can be sent."""
    assert orjson.dumps(payload)
    if isinstance(event, OrderEvent) and payload["e"] == "ORDER_TRADE_UPDATE":
        body, order = payload["o"], event.order
        assert (body["i"], body["ps"], body["X"]) == (
            order.id,
            order.position_side,
            order.status,
        )
        assert (D(body["q"]), D(body["z"])) == (order.qty, order.executed)
        if event.trade is not None:
            assert (D(body["n"]), body["N"]) == (event.trade.fee, event.trade.fee_asset)
            assert (D(body["l"]), D(body["rp"])) == (event.trade.qty, event.trade.realised)
    elif isinstance(event, OrderEvent) and payload["e"] == "ACCOUNT_UPDATE":
        assert event.position is not None
        [row], balances = payload["a"]["P"], {b["a"]: D(b["wb"]) for b in payload["a"]["B"]}
        assert (D(row["pa"]), row["ps"]) == (event.position.qty, event.position.side)
        assert balances["USDT"] == event.wallet and balances.get("BNB", event.bnb) == event.bnb


class Trader:
    """An account, its market and its oracle."""

    def __init__(self, dual: bool, *birth: Any) -> None:
        self.account = Account(dict(SPECS))
        self.oracle = Oracle()
        self.now = NOW
        self.ledger: list[dict[str, Any]] = []
        for symbol, price in BORN.items():
            p = D(price)
            tick = SPECS[symbol].tick
            self.account.books[symbol] = Book(p, D("0.4"), p + tick, D("0.4"), p, p)
        self.tell(matching.deposit(self.account, D(4000), self.now))
        self.tell(matching.deposit(self.account, D("0.05"), self.now, "BNB"))
        if dual:
            self.tell(positions.set_mode(self.account, True, self.now))
        *isolated, leverage = birth
        for symbol, alone in zip(NAMES, isolated, strict=True):
            self.leverage(symbol, leverage)
            self.margin_type(symbol, alone)

    def tell(self, done: list[Event] | Refusal, funding: D | None = None) -> None:
        if isinstance(done, Refusal):
            self.oracle.seen[f"refused {done.code}"] += 1
        else:
            self.oracle.absorb(self.account, done, funding)
            for event in done:
                for entry in ledger_entries(event):
                    self.ledger.append({"seq": len(self.ledger), "wall_ms": self.now} | entry)
                for payload in user_payloads(event, self.account.specs):
                    check_told(event, payload)

    def do(self, operation: tuple[Any, ...]) -> None:
        self.now += 1
        word, *parts = operation
        getattr(self, word)(*parts)
        self.oracle.compare(self.account)

    def _where(self, long: bool) -> str:
        return ("LONG" if long else "SHORT") if self.account.dual else "BOTH"

    def _price(self, symbol: str, away: int) -> D:
        return self.account.books[symbol].bid + SPECS[symbol].tick * away

    def _order(self, name: str, side: str, long: bool, **more: str) -> Order | None:
        params = {"symbol": name, "side": side, "positionSide": self._where(long)} | more
        wanted = parse(params, "newClientOrderId", self.account.dual)
        if isinstance(wanted, Refusal):
            return self.tell(wanted)
        free = self.free()
        order, events = matching.place(self.account, wanted, self.now)
        self.tell(events)
        if isinstance(order, Refusal):
            self.tell(order)
            if order == checks.NO_MARGIN:
                needed = self.needed(name, side, wanted.position_side, wanted.qty, wanted.price)
                assert free < needed + LITTLE, "it could have been paid for"
            return None
        if order.status == "NEW" and not order.reduce_only:
            assert self.free() >= 0 or self.free() >= free, "it rests on free margin"
        self.check_taken(order, events)
        assert order.tif != "FOK" or order.executed in (0, order.qty)
        return order

    def place(
        self, name: str, side: str, long: bool, tif: str, ticks: int, steps: int, reduce: bool
    ) -> None:
        more = {"type": "MARKET", "quantity": f"{steps * SPECS[name].step:f}"}
        if tif:
            more |= {"type": "LIMIT", "timeInForce": tif, "price": f"{self._price(name, ticks):f}"}
        if reduce and not self.account.dual:
            more["reduceOnly"] = "true"
        self._order(name, side, long, **more)

    def partly(
        self, name: str, side: str, long: bool, steps: int, share: int, ticks: int, to: int
    ) -> None:
        """A resting order, filled in part by a trade at its price, then amended."""
        spec, away = SPECS[name], 0 if side == "BUY" else 1
        more = {"type": "LIMIT", "timeInForce": "GTC", "price": f"{self._price(name, away):f}"}
        order = self._order(name, side, long, quantity=f"{steps * spec.step:f}", **more)
        if order is None or order.id not in self.account.orders:
            return
        part = order.ahead + max(1, (steps * share) // 100) * spec.step  # the queue goes first
        self.tell(
            match(self.account, MarketTrade(name, order.price, part, side == "BUY"), self.now)
        )
        if order.status == "PARTIALLY_FILLED":
            self.oracle.seen["partly filled"] += 1
            self._amend(order, ticks, to)

    def amend(self, which: int, ticks: int, steps: int) -> None:
        """Partly filled orders first: there are few of them."""
        open_ = sorted(self.account.orders.values(), key=lambda o: (o.executed == 0, o.id))
        if open_:
            self._amend(open_[which % len(open_)], ticks, steps)

    def _amend(self, order: Order, ticks: int, steps: int) -> None:
        wanted = amend.Change(
            order.side, steps * SPECS[order.symbol].step, self._price(order.symbol, ticks)
        )
        before = (order.qty, order.price, order.status, order.executed)
        free = self.free(but=order.id)
        done, events = amend.amend(self.account, order, wanted, self.now)
        self.tell(events)
        if isinstance(done, Refusal):
            self.tell(done)
            assert before == (order.qty, order.price, order.status, order.executed)
            if done == checks.NO_MARGIN:
                left = wanted.qty - order.executed
                needed = self.needed(
                    order.symbol, order.side, order.position_side, left, wanted.price
                )
                assert free < needed + LITTLE, "it could have been paid for"
        elif wanted.qty <= before[3]:
            assert order.status == "CANCELED" and order.executed == before[3]
        elif order.status != "CANCELED":
            assert (order.qty, order.price) == (wanted.qty, wanted.price)
            self.check_taken(order, events)

    def check_taken(self, order: Order, events: list[Event]) -> None:
        """What is priced through the book takes all that is left of it before it rests."""
        book, spec = self.account.books[order.symbol], SPECS[order.symbol]
        if order.id in self.account.orders:
            assert not [*ladder.offers(spec, book, order.side, order.price)]

    def cancel(self, which: int) -> None:
        open_ = list(self.account.orders.values())
        if open_:
            order = open_[which % len(open_)]
            self.tell(matching.cancel(self.account, order, self.now))

    def algo(
        self, name: str, side: str, long: bool, kind: int, ticks: int, steps: int,
        close: bool, reduce: bool,
    ) -> None:  # fmt: skip
        kinds = ("STOP_MARKET", "TAKE_PROFIT_MARKET", "STOP", "TAKE_PROFIT")
        params = {"symbol": name, "side": side, "positionSide": self._where(long)}
        params |= {"type": kinds[kind], "triggerPrice": f"{self._price(name, ticks):f}"}
        if close and kind < 2:
            params["closePosition"] = "true"
        else:
            params["quantity"] = f"{steps * SPECS[name].step:f}"
            if reduce and not self.account.dual:
                params["reduceOnly"] = "true"
        if kind >= 2:
            params |= {"price": f"{self._price(name, ticks + 2):f}", "timeInForce": "GTC"}
        if steps % 3 == 0:
            params["workingType"] = "MARK_PRICE"
        wanted = parse(params, "clientAlgoId", self.account.dual)
        if isinstance(wanted, Refusal):
            self.tell(wanted)
            return
        done, events = matching.place_algo(self.account, wanted, self.now)
        self.tell(events)
        if isinstance(done, Refusal):
            self.tell(done)

    def cancel_algo(self, which: int) -> None:
        waiting = [a for a in self.account.algos.values() if a.status == "NEW"]
        if waiting:
            algo = waiting[which % len(waiting)]
            self.tell(matching.cancel_algo(self.account, algo, self.now))

    def market(self, name: str, shift: int, spread: int, qty: int) -> None:
        """The quote moves, then a trade at it, then the mark."""
        spec = SPECS[name]
        bid = max(self._price(name, shift), spec.tick * 100)
        self._quote(name, bid, bid + spread * spec.tick, qty * spec.step)
        self.trade(name, 0, qty, shift < 0)
        self.tell(match(self.account, MarketMark(name, bid), self.now))
        self.check_maintenance(name)

    def _quote(self, name: str, bid: D, ask: D, qty: D) -> None:
        self.tell(match(self.account, MarketQuote(name, bid, qty, ask, qty), self.now))
        for order in self.account.orders.values():
            if order.symbol == name:
                reached = order.price >= ask if order.side == "BUY" else order.price <= bid
                assert not reached, "nothing of ours rests through the book"

    def trade(self, name: str, away: int, qty: int, buyer_maker: bool) -> None:
        price = self._price(name, away)
        maker = "BUY" if buyer_maker else "SELL"
        through = [
            o
            for o in self.account.orders.values()
            if o.symbol == name and price * o.sign < o.price * o.sign
        ]
        event = MarketTrade(name, price, qty * SPECS[name].step, buyer_maker)
        events = match(self.account, event, self.now)
        self.tell(events)
        filled = [
            e.trade.qty
            for e in events
            if isinstance(e, OrderEvent) and e.trade and e.trade.maker and e.trade.side == maker
        ]
        assert sum(filled) <= event.qty, "the market's flow is the other side"
        left = [o for o in through if o.id in self.account.orders]
        assert all(o.side == maker for o in left), "its own side is through them"
        assert not left or sum(filled) == event.qty, "who is traded through takes all there is"

    def crash(self, name: str, percent: int) -> None:
        book, spec = self.account.books[name], SPECS[name]
        bid = (book.bid * (100 + percent) / 100) // spec.tick * spec.tick
        if bid * 4 < D(BORN[name]) or bid > D(BORN[name]) * 4:
            return
        self._quote(name, bid, bid + spec.tick, D(1))
        self.tell(match(self.account, MarketMark(name, bid), self.now))
        self.check_maintenance(name)

    def spare(self, key: str, mark: D) -> D:
        """Margin balance above maintenance of what a position stands with, its mark being that."""
        made, p = self.account, self.account.positions[key]
        alone = p.symbol in made.isolated
        spare = self.oracle.aside[key]
        if not alone:
            spare = made.wallet - sum(self.oracle.aside.values(), D(0))
        for other, q in made.positions.items():
            if not q.qty or (other != key if alone else q.symbol in made.isolated):
                continue
            at = mark if q.symbol == p.symbol else made.books[q.symbol].mark
            notional = abs(q.qty) * at
            brackets = SPECS[q.symbol].brackets
            bracket = next((b for b in brackets if notional <= b.cap), brackets[-1])
            spare += q.qty * at - self.oracle.cost[other] - notional * bracket.mmr + bracket.cum
        return spare

    def check_maintenance(self, name: str) -> None:
        """After its mark nothing stands on too little; at its liquidation price nothing is left."""
        for key, p in self.account.positions.items():
            if p.qty and p.symbol == name:
                assert self.spare(key, self.account.books[name].mark) > -LITTLE
                price = liquidation.price(self.account, p)
                assert not price or abs(self.spare(key, price)) < LITTLE
                self.oracle.seen["priced"] += bool(price)

    def funding(self, name: str, rate: int) -> None:
        due = FundingDue(name, D(rate).scaleb(-6))
        events = match(self.account, due, self.now)
        held = [k for k, q in self.oracle.held.items() if q and k.split(":")[0] == name]
        assert len(events) == len(held), "every open position, and no other"
        self.tell(events, due.rate)

    def flat(self, name: str) -> None:
        """Everything of a symbol is canceled and closed, so that modes may change."""
        for order in [o for o in self.account.orders.values() if o.symbol == name]:
            self.tell(matching.cancel(self.account, order, self.now))
        for algo in [a for a in self.account.algos.values() if a.symbol == name]:
            self.tell(matching.cancel_algo(self.account, algo, self.now))
        for p in [p for p in self.account.positions.values() if p.symbol == name and p.qty]:
            more = {"type": "MARKET", "quantity": f"{abs(p.qty):f}"}
            self._order(name, "SELL" if p.qty > 0 else "BUY", p.side == "LONG", **more)

    def leverage(self, name: str, times: int) -> None:
        self.tell(matching.set_leverage(self.account, name, times, self.now))

    def margin_type(self, name: str, isolated: bool) -> None:
        self.tell(matching.set_margin_type(self.account, name, isolated, self.now))

    def move_margin(self, name: str, long: bool, amount: int) -> None:
        kind = amend.ADD if amount > 0 else amend.REDUCE
        moved = abs(D(amount)) + D("0.00000001")
        where = self._where(long)
        self.tell(amend.move_margin(self.account, name, moved, kind, self.now, where))

    def transfer(self, asset: str, cents: int) -> None:
        amount = abs(D(cents)).scaleb(-2 if asset == "USDT" else -7)
        if cents > 0:
            self.tell(wallet.deposit(self.account, amount, self.now, asset))
        elif amount:
            made = self.account
            crossed = [p for p in made.positions.values() if p.symbol not in made.isolated]
            gain = sum((p.qty * made.books[p.symbol].mark - p.cost for p in crossed), D(0))
            free = self.free() - max(gain, D(0))
            done = wallet.withdraw(made, amount, self.now, asset)
            assert asset == "BNB" or isinstance(done, Refusal) or amount <= free, "it is in use"
            self.tell(done)

    def fees(self, tier: int, burn: bool) -> None:
        self.tell(fees.set_tier(self.account, tier, self.now))
        self.tell(fees.set_burn(self.account, burn, self.now))

    def bnb(self, cents: int) -> None:
        self.tell(match(self.account, MarketMark("BNBUSDT", D(cents) / 100), self.now))

    def mode(self, dual: bool) -> None:
        self.tell(positions.set_mode(self.account, dual, self.now))

    def needed(self, symbol: str, side: str, where: str, qty: D, price: D) -> D:
        """Margin and fee of the part that opens; a price of zero is the market's."""
        book, sign = self.account.books[symbol], 1 if side == "BUY" else -1
        key = symbol if where == "BOTH" else f"{symbol}:{where}"
        held = self.oracle.held.get(key, D(0))
        opens = qty - (min(qty, abs(held)) if held * sign < 0 else 0)
        paid = (price or book.ask) if sign > 0 else max(price, book.bid)
        rate = self.account.taker_rate + 1 / D(self.account.leverage.get(symbol, 20))
        return opens * paid * rate

    def free(self, but: int = 0) -> D:
        """Free margin, counted anew; below zero when more is used than there is."""
        made = self.account
        free = made.wallet
        for p in made.positions.values():
            mark = made.books[p.symbol].mark
            if p.symbol in made.isolated:
                free -= p.isolated
            elif p.qty:
                free += p.qty * mark - p.cost
                free -= abs(p.qty) * mark / made.leverage.get(p.symbol, 20)
        for o in [o for o in made.orders.values() if o.id != but]:
            key = o.symbol if o.position_side == "BOTH" else f"{o.symbol}:{o.position_side}"
            held = self.oracle.held.get(key, D(0))
            opens = o.left - (min(o.left, abs(held)) if held * o.sign < 0 else 0)
            if not (o.reduce_only or o.close_position):
                free -= opens * o.price / made.leverage.get(o.symbol, 20)
        return free + LITTLE

    def restart(self) -> None:
        """Kept and read back: the same account."""
        text = orjson.dumps(store.account_json(self.account, 10_000), default=store._text)
        again = Account(dict(SPECS))
        store.account_from(json.loads(text), again)
        again.books = self.account.books
        assert again == self.account
        self.account = again


MET = (
    "amended", "amended partly filled", "partly filled", "reduced", "liquidated", "burnt",
    "FUNDING_FEE", "priced", "DEPOSIT", "WITHDRAW", "MARGIN_TRANSFER", "INSURANCE_CLEAR",
    "FILLED", "CANCELED", "EXPIRED", "algo TRIGGERED", "algo FINISHED", "algo EXPIRED",
    "refused -2019", "refused -2018", "refused -2022", "refused -4068",
)  # fmt: skip


def run(trader: Trader, operations: list[tuple[Any, ...]], seen: Counter[str]) -> None:
    for k, operation in enumerate(operations):
        trader.do(operation)
        if k % 100 == 50:
            trader.restart()
    seen.update(trader.oracle.seen)
    result = audit(as_ours(trader.ledger), 4)
    assert result.violations == () and result.balance == trader.account.wallet
    assert dict(result.positions) == {k: q for k, q in trader.oracle.held.items() if q}


def test_money_quantity_and_orders_hold_over_random_flow_in_both_modes() -> None:
    seen: Counter[str] = Counter()

    @hypothesis.settings(
        max_examples=30, deadline=None, suppress_health_check=list(hypothesis.HealthCheck)
    )
    @hypothesis.given(
        st.tuples(*(st.sampled_from(part) for part in BIRTH)),
        st.lists(OPERATION, min_size=20, max_size=80),
    )
    def flows(birth: tuple[Any, ...], operations: list[tuple[Any, ...]]) -> None:
        run(Trader(*birth), operations, seen)

    flows()
    assert seen["amended partly filled"] > 5, seen  # what is drawn differs from run to run


def test_long_flows_meet_everything_and_keep_every_digit() -> None:
    seen: Counter[str] = Counter()
    for seed in range(20):
        print(f"seed={seed}")
        rng = random.Random(seed)
        trader = Trader(seed % 2 == 1, *(rng.choice(part) for part in BIRTH[1:]))
        run(trader, [drawn(rng) for _ in range(500)], seen)
    missed = [word for word in MET if seen[word] < 10]
    assert not missed, f"the flow hardly came by {missed}: {seen}"
