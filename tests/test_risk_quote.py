"""The quote that comes with a signal: used where it is fresh and near the mark, else asked for."""

from __future__ import annotations

from decimal import Decimal

import pytest
from risk_desk import MARKET_MS, Desk, decisions, replace, sends, signal_fields

from risk import entries
from risk.events import Done, Query
from risk.signals import parse_signal

BID, ASK = "999.9", "1000"


def told(age_ms: float = 0.0, bid: str = BID, ask: str = ASK) -> dict[str, str]:
    ns = MARKET_MS * 1_000_000 - round(age_ms * 1e6)
    return {"bid": bid, "ask": ask, "quote_ns": str(ns)}


def asked(done: list[object]) -> bool:
    return any(isinstance(each, Query) and each.purpose == "quote" for each in done)


def bare() -> Desk:
    desk = Desk()
    desk.state.quotes.clear()
    return desk


def test_a_fresh_quote_saves_the_question() -> None:
    desk = bare()
    done = desk.signal(**told())
    assert not asked(done)
    assert sends(done, "entry")[0].params["price"] == "1001"  # the touch and the collar
    assert desk.state.quotes["BTCUSDT"].boot_ms == desk.boot_ms
    assert not desk.state.waiting


def test_a_signal_without_one_is_asked_for_and_then_decided() -> None:
    desk = bare()
    done = desk.signal()
    assert asked(done) and not sends(done, "entry")
    question = next(each for each in done if isinstance(each, Query))
    assert sends(desk.reply(question, Done({"bidPrice": BID, "askPrice": ASK})), "entry")


@pytest.mark.parametrize(("age_ms", "used"), [(500.0, True), (500.1, False), (2_000.0, False)])
def test_its_age_is_the_market_s(age_ms: float, used: bool) -> None:
    assert asked(bare().signal(**told(age_ms))) != used


@pytest.mark.parametrize(("ahead_ms", "used"), [(100.0, True), (100.1, False)])
def test_a_sender_whose_clock_is_ahead_is_believed_a_little(ahead_ms: float, used: bool) -> None:
    desk = bare()
    assert asked(desk.signal(**told(-ahead_ms))) != used
    assert not used or desk.state.quotes["BTCUSDT"].boot_ms == desk.boot_ms  # never in the future


@pytest.mark.parametrize(
    ("bid", "ask", "used"),
    [
        ("990", "1010", True),  # 1 % of the mark, which is 1000
        ("989.9", "1000", False),
        ("1000", "1010.1", False),
        ("1020", "1021", False),
        ("980", "981", False),
        ("1000", "999.9", False),  # crossed
    ],
)
def test_a_quote_far_from_the_mark_or_crossed_is_not_used(bid: str, ask: str, used: bool) -> None:
    assert asked(bare().signal(**told(0.0, bid, ask))) != used


def test_without_a_mark_nothing_is_believed() -> None:
    desk = bare()
    desk.state.marks.clear()
    assert asked(desk.signal(**told()))


def test_what_we_saw_later_stays() -> None:
    desk = Desk()
    desk.signal(**told(100.0, "999", "999.1"))
    assert desk.state.quotes["BTCUSDT"].ask == Decimal(ASK)


def test_one_market_minute_may_be_a_real_second() -> None:
    """In a replay at 60 times the speed an age of 30 s of the market is half a second of ours."""
    desk = bare()
    signal = parse_signal(signal_fields(**told(24_000.0)))
    assert not isinstance(signal, str)
    entries.take_quote(desk.state, signal, replace(desk.now, speed=60.0))
    assert desk.boot_ms - desk.state.quotes["BTCUSDT"].boot_ms == pytest.approx(400.0)


@pytest.mark.parametrize(
    ("name", "text"),
    [("bid", "much"), ("ask", "-1"), ("ask", "NaN"), ("quote_ns", "soon"), ("quote_ns", "-5")],
)
def test_what_is_no_quote_makes_it_no_signal(name: str, text: str) -> None:
    assert isinstance(parse_signal(signal_fields(**(told() | {name: text}))), str)


def test_a_refusal_with_everything_at_hand_names_the_same_rule() -> None:
    """Decided at once or after a question: the gate's order is one."""
    for more in ({}, told()):
        desk = bare()
        desk.state.armed = False
        assert decisions(desk.signal(**more))[0]["refused_by"] == "armed"
