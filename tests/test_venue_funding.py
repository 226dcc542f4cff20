"""Funding by hand: size x mark x rate, longs pay a positive rate, to the last digit."""

from __future__ import annotations

from decimal import Decimal as D

import pytest

from tests.test_venue_liquidation import LONG, at, btc, opened
from tests.test_venue_matching import NOW, market
from tests.test_venue_orders import Flow
from venue import exchange, liquidation, matching, positions, trading
from venue.checks import parse
from venue.matching import FundingDue, match, place
from venue.orders import E8, Account, Event, MoneyEvent, Order, position_of
from venue.symbols import FUNDING_INTERVAL_MS, FUNDING_RATE_E8
from venue.userwire import ledger_entries, user_payloads


def settle(made: Account, rate: str) -> list[MoneyEvent]:
    events: list[Event] = match(made, FundingDue("BTCUSDT", D(rate)), NOW + 5)
    return [e for e in events if isinstance(e, MoneyEvent)]


@pytest.mark.parametrize(
    ("side", "rate", "paid"),
    [
        # 0.1 x 61,234.5 = 6,123.45
        ("BUY", "0.0001", "-0.612345"),
        ("SELL", "0.0001", "0.612345"),
        ("BUY", "-0.0001", "0.612345"),
        ("SELL", "-0.0001", "-0.612345"),
        # 6,123.45 x 0.00012347 = 0.7560623715, to 8 digits
        ("BUY", "0.00012347", "-0.75606237"),
        # 6,123.45 x 0.00000005 = 0.0003061725
        ("SELL", "0.00000005", "0.00030617"),
        ("BUY", "0", "0"),
    ],
)
def test_a_long_pays_a_positive_rate_and_a_short_receives_it(
    side: str, rate: str, paid: str
) -> None:
    made = opened("1000", ("BTCUSDT", side, "0.1", "60000"))
    at(made, "BTCUSDT", "61234.5")
    before = made.wallet
    [event] = settle(made, rate)
    assert event.amount == made.wallet - before == made.funding == D(paid)
    row = made.income[-1]
    assert (row["incomeType"], row["symbol"], row["time"]) == ("FUNDING_FEE", "BTCUSDT", NOW + 5)
    assert D(row["income"]) == D(paid)


def test_only_a_position_that_is_open_at_the_settlement_pays() -> None:
    made = opened("1000", LONG)
    place(made, market("SELL", "0.100"), NOW)
    assert settle(made, "0.0001") == [] and made.funding == 0
    place(made, market("BUY", "0.050"), NOW)
    # what was closed before and what is opened later do not count: 0.05 x 60,000 x 0.0001
    assert [e.amount for e in settle(made, "0.0001")] == [D("-0.3")]
    place(made, market("BUY", "0.050"), NOW)
    assert made.funding == D("-0.3")


def test_a_crossed_position_is_not_told_with_its_funding_and_an_isolated_one_is() -> None:
    crossed, alone = opened("1000", LONG), opened("1000", LONG, isolated=True)
    for made, rows in ((crossed, 0), (alone, 1)):
        [event] = settle(made, "0.0001")
        [told] = user_payloads(event, made.specs)
        assert told["a"]["m"] == "FUNDING_FEE" and len(told["a"]["P"]) == rows
        [money] = told["a"]["B"]
        assert (money["wb"], money["bc"]) == ("996.40000000", "-0.6")
        [entry] = ledger_entries(event)
        assert (entry["type"], entry["amount"], entry["position_side"]) == (
            "funding",
            "-0.6",
            "BOTH",
        )


def test_an_isolated_position_pays_out_of_its_margin_and_its_price_comes_nearer() -> None:
    made = opened("1000", LONG, isolated=True)
    # 300 aside; 0.1 x 60,000 x 0.001 = 6; WB 997 - 6, crossed 697 as before
    settle(made, "0.001")
    assert (btc(made).isolated, made.wallet) == (D(294), D(991))
    assert made.wallet - btc(made).isolated == D(697)
    # LP = (294 - 6,000) / (0.0004 - 0.1) = 5,706 / 0.0996
    assert liquidation.price(made, btc(made)).quantize(E8) == D("57289.15662651")


def test_each_side_of_a_hedged_symbol_is_settled_by_itself() -> None:
    made = opened("1000")
    assert isinstance(positions.set_mode(made, True, NOW), list)
    at(made, "BTCUSDT", "60000")
    for side, where, qty in (("BUY", "LONG", "0.100"), ("SELL", "SHORT", "0.030")):
        params = {"symbol": "BTCUSDT", "side": side, "type": "MARKET", "quantity": qty}
        wanted = parse(params | {"positionSide": where}, "newClientOrderId", True)
        order, _ = place(made, wanted, NOW)  # type: ignore[arg-type]
        assert isinstance(order, Order)
    told = [(e.position_side, e.amount) for e in settle(made, "0.0001")]
    # 0.1 x 60,000 x 0.0001 and 0.03 x 60,000 x 0.0001
    assert told == [("LONG", D("-0.6")), ("SHORT", D("0.18"))]
    assert made.funding == D("-0.42")
    assert position_of(made, "BTCUSDT", "SHORT").isolated == 0


def test_funding_is_settled_at_its_time_and_the_next_time_moves_on() -> None:
    flow = Flow()
    world, made = flow.world, flow.world.account
    due_ms = (flow.now_ms // 1000 + 5) * 1000
    world.next_funding_ms = due_ms
    flow.call(trading.place_order, {"symbol": "BTCUSDT", "side": "SELL", "type": "MARKET",
                                    "quantity": "0.100"})  # fmt: skip
    flow.wait(due_ms - flow.now_ms - 1)
    assert made.funding == 0 and world.next_funding_ms == due_ms
    flow.wait(1)
    mark = exchange.refresh(world, "BTCUSDT").mark
    # a short receives: 0.1 x mark x rate
    assert made.funding == (D("0.1") * mark * FUNDING_RATE_E8).scaleb(-8).quantize(E8) > 0
    assert world.next_funding_ms == due_ms + FUNDING_INTERVAL_MS
    flow.wait(5_000)
    assert [r["incomeType"] for r in made.income].count("FUNDING_FEE") == 1
    assert matching.watched(made) == {"BTCUSDT"}
