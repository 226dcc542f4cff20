"""An account told by its events alone: what must hold after each of them, to the last digit.

It knows neither matching nor the account's own sums. From fills, transfers and funding it makes
wallets, positions, costs and isolated margins again, and compares. Plain and slow on purpose.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from decimal import ROUND_HALF_UP
from decimal import Decimal as D
from typing import Any

from venue.orders import (
    CLOSED_KEPT,
    Account,
    Algo,
    AlgoEvent,
    Event,
    MoneyEvent,
    Order,
    OrderEvent,
    Trade,
    position_key,
)
from venue.symbols import FEE_TIERS

TINY = D("0.00000001")
CLOSED = ("FILLED", "CANCELED", "EXPIRED", "EXPIRED_IN_MATCH", "REJECTED", "FINISHED")


def eight(value: D) -> D:
    return value.quantize(TINY, ROUND_HALF_UP)


class Oracle:
    """Follows one account from its birth."""

    def __init__(self) -> None:
        self.wallet = self.bnb = D(0)
        self.paid_in = self.bnb_paid_in = D(0)
        self.held: dict[str, D] = {}
        self.cost: dict[str, D] = {}
        self.aside: dict[str, D] = {}
        self.orders: dict[int, Order] = {}  # as last told
        self.algos: dict[int, Algo] = {}
        self.filled: Counter[int] = Counter()  # order id -> quantity
        self.last_order = self.last_trade = self.last_algo = 0
        self.seen: Counter[str] = Counter()  # what the flow has met, for the test of the test

    def absorb(self, account: Account, events: list[Event], funding: D | None = None) -> None:
        """Every event in its order. `account` is as it was left after the last of them."""
        self.pointless: set[int] = set()
        self.floor: D | None = None
        for event in events:
            if isinstance(event, OrderEvent):
                self._order(account, event)
            elif isinstance(event, MoneyEvent):
                self._money(account, event, funding)
            elif isinstance(event, AlgoEvent):
                self._algo(event.algo)
        assert self.floor is None or self.wallet >= self.floor, "an isolated margin is all there is"
        for number in self.pointless:
            assert (self.orders.get(number) or self.algos[number]).status in CLOSED

    def _order(self, account: Account, event: OrderEvent) -> None:
        told, before = event.order, self.orders.get(event.order.id)
        if before is None:
            assert event.execution == "NEW" and told.status == "NEW" and told.executed == 0
            assert told.id > self.last_order, "order ids grow"
            self.last_order = told.id
        else:
            assert before.status not in CLOSED, f"{before.status} was final"
            fixed = ("symbol", "side", "type", "tif", "reduce_only", "client_id", "position_side")
            for name in fixed:
                assert getattr(told, name) == getattr(before, name)
        if event.execution == "AMENDMENT":
            assert before is not None
            assert (told.executed, told.quote) == (before.executed, before.quote)
            assert told.status == before.status and told.left > 0
            self.seen["amended" if before.executed == 0 else "amended partly filled"] += 1
        elif before is not None:
            assert (told.qty, told.price) == (before.qty, before.price)
        self.orders[told.id] = told
        if event.trade is not None:
            self._fill(account, event, event.trade, before)
        assert told.executed == self.filled[told.id] <= told.qty
        if told.status in ("NEW", "PARTIALLY_FILLED", "FILLED"):
            wanted = "NEW" if told.executed == 0 else "PARTIALLY_FILLED"
            assert told.status == ("FILLED" if told.executed == told.qty else wanted)
        self.seen[told.status] += 1

    def _fill(
        self, account: Account, event: OrderEvent, trade: Trade, before: Order | None
    ) -> None:
        told, position = event.order, event.position
        assert before is not None and position is not None and trade.id > self.last_trade
        self.last_trade = trade.id
        key = position_key(trade.symbol, told.position_side)
        signed = trade.qty if trade.side == "BUY" else -trade.qty
        held, cost = self.held.get(key, D(0)), self.cost.get(key, D(0))
        after = held + signed
        self.filled[told.id] += trade.qty  # type: ignore[assignment]
        assert told.executed - before.executed == trade.qty > 0
        assert told.quote - before.quote == trade.qty * trade.price
        self._check_price(told, trade)
        if told.reduce_only or told.close_position:
            assert abs(after) < abs(held) and after * held >= 0, "it may only reduce"
            self.seen["reduced"] += 1
        if told.position_side == "LONG":
            assert after >= 0
        elif told.position_side == "SHORT":
            assert after <= 0
        closing = min(abs(held), trade.qty) if held * signed < 0 else D(0)
        if held and after * held <= 0:
            self._closers(told)
        entry = cost / held if held else D(0)
        gain = (trade.price - entry) * closing * (1 if held > 0 else -1)
        assert abs(trade.realised - gain) <= TINY
        self.cost[key] = cost + signed * trade.price + trade.realised
        self.held[key] = after
        if told.type == "LIQUIDATION" and trade.symbol in account.isolated:
            floor = self.wallet if self.floor is None else self.floor
            self.floor = floor - max(self.aside[key], D(0))
        self._margin(account, key, trade, held, closing)
        self.wallet += trade.realised
        self._fee(account, told, trade)
        assert (position.qty, position.cost) == (after, self.cost[key])
        assert (position.side, trade.position_side) == (told.position_side,) * 2
        assert after or position.cost == position.isolated == 0
        assert abs(position.isolated - self.aside[key]) <= TINY
        self.aside[key] = position.isolated  # its rounding is the account's own
        assert (event.wallet, event.bnb) == (self.wallet, self.bnb)

    def _closers(self, told: Order) -> None:
        """The position is gone: what existed only to close it must end in the same breath."""
        where = (told.symbol, told.position_side)
        for order in self.orders.values():
            if order.reduce_only and (order.symbol, order.position_side) == where:
                self.pointless.add(order.id)
        for algo in self.algos.values():
            if algo.close_position and (algo.symbol, algo.position_side) == where:
                self.pointless.add(algo.id)

    def _check_price(self, told: Order, trade: Trade) -> None:
        sign = 1 if trade.side == "BUY" else -1
        if told.type == "LIMIT":
            assert trade.price * sign <= told.price * sign, "never worse than its limit"
            assert not trade.maker or trade.price == told.price
        if told.tif == "GTX":
            assert trade.maker, "post only"
        if told.tif in ("IOC", "FOK") or told.type == "MARKET":
            assert not trade.maker

    def _margin(self, account: Account, key: str, trade: Trade, held: D, closing: D) -> None:
        aside = self.aside.get(key, D(0))
        if closing:
            aside -= aside if closing == abs(held) else eight(aside * closing / abs(held))
        if trade.symbol in account.isolated:
            opened = (trade.qty - closing) * trade.price
            aside += eight(opened / account.leverage.get(trade.symbol, 20))
        self.aside[key] = aside

    def _fee(self, account: Account, told: Order, trade: Trade) -> None:
        notional = trade.price * trade.qty
        maker, taker = FEE_TIERS[account.tier]
        wanted, asset = eight(notional * (maker if trade.maker else taker)), "USDT"
        if told.type == "LIQUIDATION":
            wanted = eight(notional * D("0.0125"))
            self.seen["liquidated"] += 1
        elif account.fee_burn:
            rate = maker if trade.maker else taker
            burnt = eight(notional * rate * 9 / 10 / account.books["BNBUSDT"].mark)
            if 0 < burnt <= self.bnb:
                wanted, asset = burnt, "BNB"
        assert (trade.fee, trade.fee_asset) == (wanted, asset)
        if asset == "BNB":
            self.bnb -= wanted
            self.seen["burnt"] += 1
        else:
            self.wallet -= wanted

    def _money(self, account: Account, event: MoneyEvent, funding: D | None) -> None:
        key = position_key(event.symbol, event.position_side)
        self.seen[event.reason] += 1
        if event.reason == "MARGIN_TRANSFER":
            self.aside[key] += event.amount
        elif event.asset == "BNB":
            self.bnb += event.amount
            self.bnb_paid_in += event.amount
        else:
            self.wallet += event.amount
        if event.reason == "FUNDING_FEE":
            assert funding is not None
            mark = account.books[event.symbol].mark
            assert event.amount == eight(-self.held[key] * mark * funding) and self.held[key]
            if event.symbol in account.isolated:
                self.aside[key] += event.amount
        elif event.reason in ("DEPOSIT", "WITHDRAW", "INSURANCE_CLEAR") and event.asset == "USDT":
            self.paid_in += event.amount
        assert event.wallet == (self.bnb if event.asset == "BNB" else self.wallet)

    def _algo(self, told: Algo) -> None:
        before = self.algos.get(told.id)
        if before is None:
            assert told.status == "NEW" and told.id > self.last_algo
            self.last_algo = told.id
        else:
            assert before.status not in CLOSED
        if before is not None and before.status == "TRIGGERING":
            self._fired(told)
        self.algos[told.id] = told
        self.seen["algo " + told.status] += 1

    def _fired(self, told: Algo) -> None:
        """What closes becomes an order if, and only if, its side holds something to close."""
        held = self.held.get(position_key(told.symbol, told.position_side), D(0))
        closes = held * (1 if told.side == "BUY" else -1) < 0
        if told.close_position or told.reduce_only:
            assert (told.status == "TRIGGERED") == closes
        assert (told.order_id > self.last_order) == (told.status == "TRIGGERED")

    def compare(self, account: Account) -> None:
        """The whole account against what its events said."""
        assert (account.wallet, account.bnb) == (self.wallet, self.bnb)
        assert account.paid_in == self.paid_in and account.bnb_paid_in == self.bnb_paid_in
        assert account.wallet == account.paid_in + account.realised - account.fees + account.funding
        assert account.bnb == account.bnb_paid_in - account.bnb_fees
        for key, p in account.positions.items():
            assert (p.qty, p.cost) == (self.held.get(key, D(0)), self.cost.get(key, D(0)))
            assert p.isolated == self.aside.get(key, D(0))
            assert p.isolated == 0 or p.symbol in account.isolated
            assert not p.qty or (p.side != "BOTH") == account.dual
        told = {k for k, o in self.orders.items() if o.status in ("NEW", "PARTIALLY_FILLED")}
        assert told == set(account.orders), "what is not over is open"
        for order in account.orders.values():
            same = replace(self.orders[order.id], updated_ms=order.updated_ms, ahead=order.ahead)
            held = self.held.get(position_key(order.symbol, order.position_side), D(0))
            assert not order.reduce_only or held * order.sign < 0, "it has nothing to reduce"
            assert order == same and order.tif not in ("IOC", "FOK") and order.type == "LIMIT"
        waiting = {k for k, a in self.algos.items() if a.status not in CLOSED}
        assert waiting == set(account.algos)
        for asset, held in (("USDT", account.wallet), ("BNB", account.bnb)):
            rows = [D(r["income"]) for r in account.income if r["asset"] == asset]
            whole = len(account.income) < CLOSED_KEPT
            assert not whole or sum(rows, D(0)) == held, "income tells the whole story"


def as_ours(ledger: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """A ledger as if our own engine had traded: the audit leaves other people's positions alone."""
    out = []
    for entry in ledger:
        line = {"wall_ms": entry.get("ms", 0), **entry}
        if line.get("client_id"):
            line["client_id"] = "ag" + line["client_id"]
        out.append(line)
    return out
