"""Liquidation by hand: the arithmetic stands beside each case, to be done again by a reader.

LP = (WB - TMM + UPNL + cum - side x size x entry) / (size x mmr - side x size). Prices go in ticks
of 0.1, so that each case is one tick before its LP and one after. Brackets of BTC and ETH: up to
300,000 at 0.004, cum 0; up to 800,000 at 0.005, cum 300. Taker's fee 0.05 %.
"""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal as D

import pytest

from tests.test_venue_matching import NOW, market
from tests.test_venue_orders import Flow
from venue import accounting, liquidation, matching, trading
from venue.matching import MarketMark, MarketQuote, match, place
from venue.orders import (
    E8,
    Account,
    Book,
    Event,
    MoneyEvent,
    Order,
    OrderEvent,
    Position,
    Refusal,
    position_of,
)
from venue.symbols import listing
from venue.userwire import ledger_entries, user_payloads

SPECS = {s.name: s for s in listing(8)}
DEEP = D(1_000_000)


def at(made: Account, name: str, price: str) -> list[Event]:
    """The whole market of a symbol is at one price: quotes, then the mark."""
    book, p = made.books.get(name), D(price)
    if book is None:
        made.books[name] = Book(p, DEEP, p, DEEP, p, p)
        return []
    match(made, MarketQuote(name, p, DEEP, p, DEEP), NOW)
    return match(made, MarketMark(name, p), NOW)


def opened(wallet: str, *held: tuple[str, str, str, str], isolated: bool = False) -> Account:
    """An account that took what it holds: (symbol, side, quantity, price)."""
    made = Account(dict(SPECS))
    matching.deposit(made, D(wallet), NOW)
    for name, side, qty, price in held:
        at(made, name, price)
        if isolated:
            matching.set_margin_type(made, name, True, NOW)
        order, _ = place(made, replace(market(side, qty), symbol=name), NOW)
        assert not isinstance(order, Refusal) and order.status == "FILLED"
    return made


def forced(events: list[Event]) -> OrderEvent | None:
    found = [e for e in events if isinstance(e, OrderEvent) and e.execution == "CALCULATED"]
    return found[0] if found else None


def insured(events: list[Event]) -> D:
    return sum(
        (e.amount for e in events if isinstance(e, MoneyEvent) and e.reason == "INSURANCE_CLEAR"),
        D(0),
    )


def btc(made: Account) -> Position:
    return position_of(made, "BTCUSDT")


LONG = ("BTCUSDT", "BUY", "0.1", "60000")


def test_a_crossed_long_is_closed_at_its_price_pays_the_fee_and_ends_at_zero() -> None:
    made = opened("1000", LONG)
    # fee 6,000 x 0.0005 = 3; WB 997; LP = (997 - 6,000) / (0.1 x 0.004 - 0.1) = 5,003 / 0.0996
    assert made.wallet == D(997)
    assert liquidation.price(made, btc(made)).quantize(E8) == D("50230.92369478")
    # 50,231.0: 997 - 976.9 = 20.1 against 5,023.1 x 0.004 = 20.0924
    assert forced(at(made, "BTCUSDT", "50231.0")) is None
    # 50,230.9: 997 - 976.91 = 20.09 against 5,023.09 x 0.004 = 20.09236
    events = at(made, "BTCUSDT", "50230.9")
    told = forced(events)
    assert told is not None and told.trade is not None and btc(made).qty == 0
    # 5,023.09 x 0.0125
    assert (told.trade.realised, told.trade.fee) == (D("-976.91"), D("62.788625"))
    # 20.09 of margin pays 62.788625: the fund pays the rest
    assert insured(events) == D("42.698625") and made.wallet == 0


def test_a_liquidation_stands_in_ledger_income_and_stream() -> None:
    made = opened("1000", LONG)
    events = at(made, "BTCUSDT", "50230.9")
    entries = [entry for event in events for entry in ledger_entries(event)]
    assert [e["type"] for e in entries] == ["order_new", "trade", "order_done", "insurance"]
    assert (entries[1]["fee"], entries[1]["fee_asset"]) == ("62.788625", "USDT")
    assert (entries[3]["amount"], entries[3]["balance_after"]) == ("42.698625", "0")
    rows = [(r["incomeType"], r["income"]) for r in made.income][-3:]
    assert rows == [
        ("INSURANCE_CLEAR", "-62.78862500"),
        ("REALIZED_PNL", "-976.91000000"),
        ("INSURANCE_CLEAR", "42.69862500"),
    ]
    told = [p for event in events for p in user_payloads(event, made.specs)]
    reasons = [p["a"]["m"] for p in told if p["e"] == "ACCOUNT_UPDATE"]
    assert reasons == ["ORDER", "INSURANCE_CLEAR"]
    [body] = [p["o"] for p in told if p["e"] == "ORDER_TRADE_UPDATE" and p["o"]["t"]]
    assert (body["x"], body["o"], body["n"], body["N"]) == (
        "CALCULATED",
        "LIQUIDATION",
        "62.78862500",
        "USDT",
    )
    assert body["c"] == f"autoclose-{body['i']}"


@pytest.mark.parametrize(
    ("ether", "shown", "last", "first"),
    [
        # WB 1,000 - 3 - 2.6 = 994.4; ETH at 2,600: UPNL 0, TMM 5,200 x 0.004 = 20.8
        # LP = (994.4 - 20.8 - 6,000) / -0.0996 = 5,026.4 / 0.0996
        ("2600", "50465.86345382", "50465.9", "50465.8"),
        # ETH at 2,700: UPNL 200, TMM 5,400 x 0.004 = 21.6: (994.4 - 21.6 + 200 - 6,000) / -0.0996
        ("2700", "48465.86345382", "48465.9", "48465.8"),
    ],
)
def test_the_profit_of_another_crossed_position_defers_a_liquidation(
    ether: str, shown: str, last: str, first: str
) -> None:
    made = opened("1000", LONG, ("ETHUSDT", "BUY", "2", "2600"))
    at(made, "ETHUSDT", ether)
    assert made.wallet == D("994.4")
    assert liquidation.price(made, btc(made)).quantize(E8) == D(shown)
    assert forced(at(made, "BTCUSDT", last)) is None
    assert forced(at(made, "BTCUSDT", first)) is not None


def test_the_fund_waits_until_the_last_crossed_position_is_closed() -> None:
    made = opened("1000", LONG, ("ETHUSDT", "BUY", "2", "2600"))
    at(made, "ETHUSDT", "2700")
    events = at(made, "BTCUSDT", "48465.8")
    # 994.4 - 1,153.42 - 4,846.58 x 0.0125 = -219.60225, and ether still holds a profit of 200
    assert insured(events) == 0 and made.wallet == D("-219.60225")
    events = at(made, "ETHUSDT", "2700")
    # -219.60225 + 200 - 5,400 x 0.0125
    assert forced(events) is not None and insured(events) == D("87.10225")
    assert made.wallet == 0


def test_an_isolated_position_loses_its_margin_and_nothing_more() -> None:
    made = opened("1000", LONG, isolated=True)
    # 20x: 300 aside; LP = (300 - 6,000) / -0.0996
    assert (made.wallet, btc(made).isolated) == (D(997), D(300))
    assert liquidation.price(made, btc(made)).quantize(E8) == D("57228.91566265")
    # 57,229.0: 300 - 277.1 = 22.9 against 5,722.9 x 0.004 = 22.8916
    assert forced(at(made, "BTCUSDT", "57229.0")) is None
    # 57,228.9: 300 - 277.11 = 22.89 against 5,722.89 x 0.004 = 22.89156
    events = at(made, "BTCUSDT", "57228.9")
    told = forced(events)
    assert told is not None and told.trade is not None
    # 5,722.89 x 0.0125 = 71.536125; 300 - 277.11 - 71.536125 = -48.646125
    assert (told.trade.realised, told.trade.fee) == (D("-277.11"), D("71.536125"))
    assert insured(events) == D("48.646125")
    assert made.wallet == D(697)


def test_an_isolated_position_does_not_care_for_the_wallet_nor_for_other_positions() -> None:
    made = opened("100000", LONG, isolated=True)
    before = liquidation.price(made, btc(made))
    matching.deposit(made, D(5000), NOW)
    at(made, "ETHUSDT", "2600")
    place(made, replace(market("BUY", "2"), symbol="ETHUSDT"), NOW)
    at(made, "ETHUSDT", "2700")
    assert liquidation.price(made, btc(made)) == before


def test_a_crossed_short_is_closed_above_its_entry() -> None:
    made = opened("1000", ("BTCUSDT", "SELL", "0.1", "60000"))
    # LP = (997 + 6,000) / (0.1 x 0.004 + 0.1) = 6,997 / 0.1004
    assert liquidation.price(made, btc(made)).quantize(E8) == D("69691.23505976")
    # 69,691.2: 997 - 969.12 = 27.88 against 6,969.12 x 0.004 = 27.87648
    assert forced(at(made, "BTCUSDT", "69691.2")) is None
    # 69,691.3: 997 - 969.13 = 27.87 against 6,969.13 x 0.004 = 27.87652
    told = forced(at(made, "BTCUSDT", "69691.3"))
    assert told is not None and told.trade is not None
    assert (told.trade.side, told.trade.realised) == ("BUY", D("-969.13"))
    assert told.trade.fee == D("87.114125") and made.wallet == 0


@pytest.mark.parametrize(
    ("held", "shown", "last", "first"),
    [
        # 6 BTC: 360,000 at entry (0.005, cum 300), but 261,224.9 at LP (0.004, cum 0)
        # WB 100,000 - 180; LP = (99,820 - 360,000) / (0.024 - 6) = 260,180 / 5.976
        # 43,537.5: 99,820 - 98,775 = 1,045 against 1,044.9; 43,537.4: 1,044.4 against 1,044.8976
        (("BTCUSDT", "BUY", "6", "60000"), "43537.48326640", "43537.5", "43537.4"),
        # 4 BTC short: 240,000 at entry (0.004), but 338,487.6 at LP (0.005, cum 300)
        # WB 100,000 - 120; LP = (99,880 + 300 + 240,000) / (0.02 + 4) = 340,180 / 4.02
        # 84,621.8: 1,392.8 against 1,392.436; 84,621.9: 1,392.4 against 1,392.438
        (("BTCUSDT", "SELL", "4", "60000"), "84621.89054726", "84621.8", "84621.9"),
    ],
)
def test_the_bracket_is_the_one_at_the_liquidation_price(
    held: tuple[str, str, str, str], shown: str, last: str, first: str
) -> None:
    made = opened("100000", held)
    assert liquidation.price(made, btc(made)).quantize(E8) == D(shown)
    assert forced(at(made, "BTCUSDT", last)) is None
    assert forced(at(made, "BTCUSDT", first)) is not None


def test_a_margin_that_covers_the_fee_keeps_what_is_left() -> None:
    made = opened("300000", ("BNBUSDT", "BUY", "4000", "500"))
    # 2,000,000 lies in 1 to 5 million: 0.05, cum 31,250; WB 300,000 - 1,000
    # LP = (299,000 + 31,250 - 2,000,000) / (200 - 4,000) = 1,669,750 / 3,800
    position = position_of(made, "BNBUSDT")
    assert liquidation.price(made, position).quantize(E8) == D("439.40789474")
    # 439.42: 299,000 - 242,320 = 56,680 against 87,884 - 31,250 = 56,634
    assert forced(at(made, "BNBUSDT", "439.42")) is None
    # 439.40: 299,000 - 242,400 = 56,600 against 87,880 - 31,250 = 56,630
    events = at(made, "BNBUSDT", "439.40")
    told = forced(events)
    assert told is not None and told.trade is not None
    # 1,757,600 x 0.015 = 26,364; 299,000 - 242,400 - 26,364
    assert told.trade.fee == D(26364) and insured(events) == 0
    assert made.wallet == D(30236)


def test_a_position_that_no_price_can_end_shows_none() -> None:
    made = opened("10000", LONG)  # 9,997 covers a fall to nothing
    assert liquidation.price(made, btc(made)) == 0


def test_a_liquidation_ends_the_resting_orders_of_its_symbol_first() -> None:
    made = opened("1000", LONG)
    resting, _ = place(made, replace(market("BUY", "0.01"), type="LIMIT", tif="GTC",
                                     price=D("59000")), NOW)  # fmt: skip
    assert isinstance(resting, Order) and resting.status == "NEW"
    match(made, MarketQuote("BTCUSDT", D("59500"), DEEP, D("59501"), DEEP), NOW)
    match(made, MarketMark("BTCUSDT", D("50000")), NOW)
    assert (resting.status, resting.expire_reason) == ("EXPIRED", 5)


def test_the_price_that_is_shown_is_the_formula_and_is_where_it_happens() -> None:
    flow = Flow()
    made = flow.world.account
    for name in ("ETHUSDT", "BTCUSDT"):  # isolated, crossed
        params = {"symbol": name, "side": "BUY", "type": "MARKET", "quantity": "2.000"}
        flow.call(trading.place_order, params)
    for name in ("ETHUSDT", "BTCUSDT"):
        [row] = flow.call(accounting.position_risk_v3, {"symbol": name})
        [told] = flow.call(accounting.position_risk_v2, {"symbol": name})
        shown = D(row["liquidationPrice"])
        assert told["liquidationPrice"] == row["liquidationPrice"]
        size, entry = D(row["positionAmt"]), D(row["entryPrice"])
        totals = flow.call(accounting.account_v3, {})
        wb = D(row["isolatedWallet"]) if name == "ETHUSDT" else D(totals["totalCrossWalletBalance"])
        bracket = next(b for b in made.specs[name].brackets if size * shown <= b.cap)
        formula = (wb + bracket.cum - size * entry) / (size * bracket.mmr - size)
        assert abs(shown - formula) < D("0.000001") and bracket.floor < size * shown
        above = match(made, MarketMark(name, shown + D("0.0001")), flow.now_ms)
        assert above == [] and made.positions[name].qty == size
        below = match(made, MarketMark(name, shown - D("0.0001")), flow.now_ms)
        assert forced(below) is not None and made.positions[name].qty == 0
