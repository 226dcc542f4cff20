"""Rotation and the three places: never a fourth position, whatever happens in which order."""

from __future__ import annotations

import asyncio
import json
import random
from decimal import Decimal

import pytest
from redis_writes import commit
from risk_desk import KEYS, NOT_FOUND, Desk, decisions, ops, queries, replace, sends

import streams
from risk.events import Cancel, Done, Query, Refused, Request, Send, Throttled, Unknown
from risk.gate import Limits, Quote
from risk.rebuild import rebuild
from risk.rotation import COOL_DOWN_MS, HYSTERESIS
from risk.state import State, pending_entries

FULL = ("BTCUSDT", "ETHUSDT", "SOLUSDT")


def full_desk(limits: Limits | None = None) -> Desk:
    """Three protected positions in profit; SOLUSDT is the weakest."""
    desk = Desk(limits=limits or Limits())
    for symbol, confidence in zip(FULL, ("0.7", "0.65", "0.6"), strict=True):
        desk.open(symbol, confidence=confidence)
    desk.quote_all("1004.9", "1005")
    for symbol in desk.symbols:
        desk.state.marks[symbol] = Decimal("1005")
    return desk


def challenge(desk: Desk, confidence: float = 0.9) -> list[object]:
    return list(desk.signal(id="new", symbol="XRPUSDT", confidence=repr(confidence)))


def test_a_stronger_signal_closes_the_weakest_and_then_takes_its_place() -> None:
    desk = full_desk()
    done = challenge(desk)
    exits = sends(done, "exit")  # type: ignore[arg-type]
    assert [e.params["symbol"] for e in exits] == ["SOLUSDT"]
    assert not sends(done, "entry")  # type: ignore[arg-type]
    qty = exits[0].params["quantity"]
    desk.fill(exits[0], qty, "1004.9", realised="5")
    entries = sends(desk.wait(1), "entry")
    assert [e.params["symbol"] for e in entries] == ["XRPUSDT"]
    assert len(desk.state.positions) == 2 and len(pending_entries(desk.state)) == 1


@pytest.mark.parametrize(
    ("over", "rotates"),
    [(HYSTERESIS - 0.001, False), (HYSTERESIS, False), (HYSTERESIS + 0.001, True)],
)
def test_the_new_signal_must_be_stronger_by_a_margin(over: float, rotates: bool) -> None:
    desk = full_desk()
    done = challenge(desk, 0.6 + over)
    assert bool(sends(done, "exit")) is rotates  # type: ignore[arg-type]
    if not rotates:
        assert decisions(done)[0]["refused_by"] == "rotation"  # type: ignore[arg-type]


@pytest.mark.parametrize(("bid", "rotates"), [("1000.5", False), ("1000.6", True)])
def test_the_weakest_leaves_only_in_profit_after_both_fees(bid: str, rotates: bool) -> None:
    # entered at 1000 for a fee of 0.05; leaving costs 5 bp of the size
    desk = full_desk()
    ask = Decimal(bid) + Decimal("0.1")
    desk.state.quotes["SOLUSDT"] = Quote(Decimal(bid), ask, desk.boot_ms)
    assert bool(sends(challenge(desk), "exit")) is rotates  # type: ignore[arg-type]


@pytest.mark.parametrize(("age_ms", "rotates"), [(999, True), (1_000, True), (1_001, False)])
def test_no_rotation_on_a_stale_quote(age_ms: float, rotates: bool) -> None:
    desk = full_desk()
    desk.state.quotes["SOLUSDT"] = Quote(Decimal("1004.9"), Decimal("1005"), desk.boot_ms - age_ms)
    assert bool(sends(challenge(desk), "exit")) is rotates  # type: ignore[arg-type]


@pytest.mark.parametrize(("fees", "rotates"), [("0.01", True), ("0", False), ("-0.01", False)])
def test_the_last_cent_decides_about_profit(fees: str, rotates: bool) -> None:
    desk = full_desk()
    position = desk.state.positions["SOLUSDT"]
    left = (Decimal("1004.9") - position.entry) * position.qty
    left -= Decimal("1004.9") * position.qty * desk.limits.taker_fee
    desk.state.positions["SOLUSDT"] = replace(position, fees=left - Decimal(fees))
    assert bool(sends(challenge(desk), "exit")) is rotates  # type: ignore[arg-type]


@pytest.mark.parametrize(("quoted", "told"), [(True, "0"), (False, "unknown")])
def test_a_refused_rotation_tells_the_profit_that_it_saw(quoted: bool, told: str) -> None:
    desk = full_desk()
    position = desk.state.positions["SOLUSDT"]
    left = (Decimal("1004.9") - position.entry) * position.qty
    left -= Decimal("1004.9") * position.qty * desk.limits.taker_fee
    desk.state.positions["SOLUSDT"] = replace(position, fees=left)
    if not quoted:
        del desk.state.quotes["SOLUSDT"]
    (row,) = decisions(challenge(desk))  # type: ignore[arg-type]
    assert json.loads(row["verdicts"])[-1]["profit_after_fees"] == told


@pytest.mark.parametrize("leaving", [{"exit_order": "x"}, {"exit_reason": "maximum hold"}])
def test_no_rotation_while_a_position_is_leaving(leaving: dict[str, str]) -> None:
    desk = full_desk()
    position = desk.state.positions["BTCUSDT"]
    desk.state.positions["BTCUSDT"] = replace(position, **leaving)  # type: ignore[arg-type]
    done = challenge(desk)
    assert not sends(done, "exit")  # type: ignore[arg-type]
    assert json.loads(decisions(done)[0]["verdicts"])[-1]["busy"] == "1"  # type: ignore[arg-type]


def test_one_rotation_at_a_time_and_it_says_which() -> None:
    desk = full_desk()
    challenge(desk)
    done = desk.signal(id="more", symbol="ADAUSDT", confidence="0.95")
    assert not sends(done, "exit")
    assert json.loads(decisions(done)[0]["verdicts"])[-1]["busy"] == "SOLUSDT"


def test_rotation_can_be_turned_off() -> None:
    assert not sends(challenge(full_desk(Limits(rotation=False))), "exit")  # type: ignore[arg-type]


@pytest.mark.parametrize(("since_ms", "rotates"), [(COOL_DOWN_MS - 1, False), (COOL_DOWN_MS, True)])
def test_rotation_cools_down(since_ms: float, rotates: bool) -> None:
    desk = full_desk()
    desk.state.rotated_ms = desk.market_ms - since_ms
    assert bool(sends(challenge(desk), "exit")) is rotates  # type: ignore[arg-type]


def test_the_cool_down_survives_a_restart(redis_url: str) -> None:
    desk = full_desk()
    exits = sends(challenge(desk), "exit")  # type: ignore[arg-type]
    done = desk.fill(exits[0], exits[0].params["quantity"], "1004.9", realised="5")
    written = ops(done, "hset", KEYS.portfolio)[-1:]

    async def work() -> State:
        r = streams.connect_async(redis_url)
        await r.set(KEYS.epoch, "1")
        assert await commit(r, 1, written) == "ok"
        made = State(KEYS, desk.state.prefix, "main", epoch=2)
        assert made.rotated_ms < 0
        await rebuild(r, made)
        await r.aclose()
        return made

    assert asyncio.run(work()).rotated_ms == int(desk.market_ms)


def test_a_rotation_for_a_signal_that_other_rules_refuse_does_not_begin() -> None:
    desk = full_desk()
    done = desk.signal(id="new", symbol="XRPUSDT", confidence="0.9", target="1005.05")
    assert not sends(done, "exit")


def test_a_place_that_does_not_come_free_refuses_the_signal() -> None:
    desk = full_desk()
    challenge(desk)
    done = desk.wait(10_000)
    assert decisions(done)[0]["refused_by"] == "rotation"
    assert "new" not in desk.state.waiting


class Chaos:
    """Answers each request at a random time with a random truth; keeps the exchange's books."""

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)
        self.desk = Desk(limits=Limits(hold_max_ms=30_000))
        self.open: list[Request] = []
        self.size: dict[str, Decimal] = {}
        self.placed: dict[str, tuple[str, str]] = {}  # entry id -> status, executed
        self.entry_sends: dict[str, int] = {}
        self.most = 0

    def run(self, steps: int) -> None:
        for number in range(steps):
            roll = self.chance.random()
            if roll < 0.35:
                self.signal(number)
            elif roll < 0.85 and self.open:
                self.answer(self.open.pop(self.chance.randrange(len(self.open))))
            else:
                self.took(self.desk.wait(self.chance.choice((1, 50, 300, 2_600))))
                self.desk.quote_all()
            self.check()

    def signal(self, number: int) -> None:
        self.desk.commit_outcome = self.chance.choices(
            ("ok", "failed", "duplicate"), (0.9, 0.05, 0.05)
        )[0]
        long = self.chance.random() < 0.5
        over = {"stop": "990", "target": "1020"} if long else {"stop": "1010", "target": "980"}
        over |= {"side": "buy" if long else "sell", "confidence": str(self.chance.random())}
        over["exch_ns"] = str(int(self.desk.market_ms) * 1_000_000)
        over["expires_ms"] = str(int(self.desk.market_ms) + 5_000)
        symbol = self.chance.choice(list(self.desk.symbols))
        self.took(self.desk.signal(id=f"c{number}", symbol=symbol, **over))
        self.desk.commit_outcome = "ok"
        self.desk.state.reconciled = True

    def took(self, effects: list[object]) -> None:
        requests = [e for e in effects if isinstance(e, Request)]
        for request in requests:
            if request.purpose == "entry":
                self.entry_sends[request.about] = self.entry_sends.get(request.about, 0) + 1
        self.open += requests

    def trade(self, request: Send, qty: Decimal, sign: int) -> None:
        symbol = request.params["symbol"]
        self.size[symbol] = self.size.get(symbol, Decimal(0)) + qty * sign
        self.most = max(self.most, sum(1 for size in self.size.values() if size))
        self.took(self.desk.fill(request, str(qty), "1000"))

    def answer(self, request: Request) -> None:
        kind = request.purpose.split(":")[0]
        if kind == "entry":
            self.answer_entry(request)
        elif kind in ("stop", "target") and isinstance(request, Send):
            self.answer_leg(request)
        elif kind == "exit" and isinstance(request, Send):
            self.answer_exit(request)
        elif isinstance(request, Cancel):
            result = self.chance.choice((Done({"code": "200"}), Refused(-2011, "gone")))
            self.took(self.desk.reply(request, result))
        elif isinstance(request, Query):
            self.took(self.desk.reply(request, self.truth(request, kind)))

    def answer_entry(self, request: Request) -> None:
        assert isinstance(request, Send)
        fate = self.chance.choice(("fill", "fill", "empty", "refused", "lost", "late", "busy"))
        qty, sign = Decimal(request.params["quantity"]), self.sign(request)
        if fate in ("fill", "late"):
            self.placed[request.about] = ("FILLED", str(qty))
            self.trade(request, qty, sign)
        elif fate == "empty":
            self.placed[request.about] = ("EXPIRED", "0")
        if fate in ("fill", "empty"):
            status, executed = self.placed[request.about]
            self.took(self.desk.done(request, status, executed))
        elif fate in ("lost", "late"):
            self.took(self.desk.reply(request, Unknown("time-out")))
        elif fate == "busy":
            self.took(self.desk.reply(request, Throttled(self.desk.boot_ms + 100, "429")))
        else:
            self.took(self.desk.reply(request, Refused(-2019, "margin")))

    def answer_leg(self, request: Send) -> None:
        fate = self.chance.choice(("ok", "ok", "ok", "crossed", "lost"))
        if fate == "ok":
            self.took(self.desk.accepted(request))
        elif fate == "crossed":
            self.took(self.desk.reply(request, Refused(-2021, "would trigger")))
        else:
            self.took(self.desk.reply(request, Unknown("time-out")))

    def answer_exit(self, request: Send) -> None:
        there = self.size.get(request.params["symbol"], Decimal(0))
        sign = self.sign(request)
        if there * sign >= 0:
            self.took(self.desk.reply(request, Refused(-2022, "reduce only")))
        elif self.chance.random() < 0.3:
            self.took(self.desk.reply(request, Refused(-1008, "overload")))
        else:
            qty = min(abs(there), Decimal(request.params["quantity"]))
            self.trade(request, qty, sign)
            self.took(self.desk.done(request, "FILLED", str(qty)))

    def truth(self, request: Query, kind: str) -> object:
        if kind == "query" and request.about in self.placed:
            status, executed = self.placed[request.about]
            return Done({"orderId": 1, "status": status, "executedQty": executed})
        if kind in ("query", "leg") and request.path.endswith("algoOrder"):
            return Done({"algoId": 1, "algoStatus": "EXPIRED"})
        if kind == "query":
            return NOT_FOUND
        if kind == "position":
            size = self.size.get(request.about, Decimal(0))
            return Done([{"symbol": request.about, "positionAmt": str(size)}])
        if kind == "quote":
            return Done({"bidPrice": "999.9", "askPrice": "1000"})
        return Done([])

    def sign(self, request: Request) -> int:
        return 1 if request.params["side"] == "BUY" else -1

    def check(self) -> None:
        state = self.desk.state
        assert self.most <= 3
        assert len(state.positions) + len(pending_entries(state)) <= 3
        assert all(times == 1 for times in self.entry_sends.values())


@pytest.mark.parametrize("seed", range(60))
def test_never_a_fourth_and_no_entry_twice_under_random_interleavings(seed: int) -> None:
    chaos = Chaos(seed)
    chaos.run(250)
    assert chaos.entry_sends


@pytest.mark.parametrize("seed", range(20))
def test_after_the_storm_our_books_are_the_exchanges(seed: int) -> None:
    chaos = Chaos(1_000 + seed)
    chaos.run(150)
    for _ in range(400):  # quiet: no more signals, every answer comes
        while chaos.open:
            chaos.answer(chaos.open.pop(0))
        chaos.took(chaos.desk.wait(500))
        chaos.check()
    ours = {p.symbol: p.signed_qty for p in chaos.desk.state.positions.values()}
    assert ours == {symbol: size for symbol, size in chaos.size.items() if size}
    assert not [o for o in chaos.desk.state.orders.values() if o.leg == "e" and not o.terminal]
    assert ops(chaos.desk.effects, "xadd_once")
    assert queries(chaos.desk.effects) or sends(chaos.desk.effects)
