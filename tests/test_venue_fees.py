"""Fees by tier and in BNB, deposits and withdrawals: digit by digit, over REST and the stream."""

from __future__ import annotations

import json
from decimal import Decimal as D
from typing import Any

import pytest

from maintenance.audit import audit
from tests.test_venue_liquidation import at, opened
from tests.test_venue_matching import NOW, account, market, request
from tests.test_venue_orders import Flow
from venue import accounting, exchange, fees, main, matching, rest, server, store, trading, wallet
from venue.exchange import Moment, Setup
from venue.matching import MarketTrade, match, place
from venue.orders import Account, Event, Order, OrderEvent, Refusal, available, withdrawable
from venue.symbols import FEE_TIERS
from venue.userwire import ledger_entries, user_payloads

JSON, FORM = "json", "form"


def burning(bnb: str, price: str = "500") -> Account:
    """Fees in BNB, at 500 or without a book of it; nothing is held."""
    made = opened("10000")
    at(made, "BTCUSDT", "60000")
    if price:
        at(made, "BNBUSDT", price)
    matching.deposit(made, D(bnb), NOW, "BNB")
    fees.set_burn(made, True, NOW)
    return made


def bought(made: Account, qty: str = "0.100") -> OrderEvent:
    _, events = place(made, market("BUY", qty), NOW)
    return next(e for e in events if isinstance(e, OrderEvent) and e.trade)


@pytest.mark.parametrize("tier", range(10))
def test_takers_and_makers_pay_the_rates_of_their_tier(tier: int) -> None:
    made = opened("10000")
    at(made, "BTCUSDT", "60000")
    assert isinstance(fees.set_tier(made, tier, NOW), list)
    maker, taker = FEE_TIERS[tier]
    trade = bought(made).trade
    assert trade is not None and trade.fee == D(6000) * taker
    rest_, _ = place(made, request(side="SELL", quantity="0.100", price="61000.0"), NOW)
    match(made, MarketTrade("BTCUSDT", D("61000.1"), D(1), False), NOW)
    assert isinstance(rest_, Order) and rest_.status == "FILLED"
    assert made.trades[-1].fee == D(6100) * maker
    assert made.wallet == D(10100) - D(6000) * taker - D(6100) * maker


@pytest.mark.parametrize(("tier", "refused"), [(-1, True), (0, False), (9, False), (10, True)])
def test_there_are_ten_tiers(tier: int, refused: bool) -> None:
    assert isinstance(fees.set_tier(opened("1"), tier, NOW), Refusal) == refused


@pytest.mark.parametrize(
    ("bnb", "asset", "fee", "left"),
    [
        # 6,000 x 0.0005 = 3 USDT; x 0.9 = 2.7, at 500: 0.0054 BNB
        ("1", "BNB", "0.0054", "0.9946"),
        ("0.0054", "BNB", "0.0054", "0"),
        ("0.00539999", "USDT", "3", "0.00539999"),
    ],
)
def test_bnb_pays_nine_tenths_while_there_is_enough_and_usdt_the_whole_fee_then(
    bnb: str, asset: str, fee: str, left: str
) -> None:
    made = burning(bnb)
    event = bought(made)
    assert event.trade is not None
    assert (event.trade.fee_asset, event.trade.fee) == (asset, D(fee))
    assert made.bnb == D(left)
    assert made.wallet == D(10000) - (D(3) if asset == "USDT" else 0)
    assert (made.fees, made.bnb_fees) == ((0, D(fee)) if asset == "BNB" else (D(fee), 0))


def test_bnb_is_counted_at_its_mark_or_at_a_constant_where_it_is_not_listed() -> None:
    trade = bought(burning("1", price="")).trade
    assert trade is not None and trade.fee == D("2.7") / 600
    trade = bought(burning("1", price="700")).trade
    # 2.7 / 700 = 0.003857142857..., to 8 digits
    assert trade is not None and trade.fee == D("0.00385714")


def test_nothing_is_burnt_unless_it_is_switched_on() -> None:
    made = burning("1")
    fees.set_burn(made, False, NOW)
    trade = bought(made).trade
    assert trade is not None and trade.fee_asset == "USDT" and made.bnb == 1


def test_a_fee_in_bnb_is_told_with_both_balances_and_written_with_its_asset() -> None:
    made = burning("1")
    event = bought(made)
    _, update, order = user_payloads(event, made.specs)
    assert (order["o"]["n"], order["o"]["N"]) == ("0.00540000", "BNB")
    assert [(b["a"], b["wb"], b["cw"]) for b in update["a"]["B"]] == [
        ("USDT", "10000.00000000", "10000.00000000"),
        ("BNB", "0.99460000", "0.99460000"),
    ]
    entry = ledger_entries(event)[0]
    assert (entry["fee"], entry["fee_asset"], entry["bnb_after"]) == ("0.0054", "BNB", "0.9946")
    row = made.income[-1]
    assert (row["incomeType"], row["asset"], row["income"]) == ("COMMISSION", "BNB", "-0.00540000")


def test_the_break_even_price_counts_a_fee_in_bnb_at_its_worth() -> None:
    made = burning("1")
    bought(made)
    # (6,000 + 2.7) / 0.1
    assert made.positions["BTCUSDT"].break_even == D(60027)


def test_a_liquidation_is_paid_in_usdt() -> None:
    made = burning("1000")
    matching.set_margin_type(made, "BTCUSDT", True, NOW)
    bought(made)
    before = made.bnb
    events = at(made, "BTCUSDT", "57000")
    forced = [e.trade for e in events if isinstance(e, OrderEvent) and e.trade]
    assert [t.fee_asset for t in forced] == ["USDT"] and made.bnb == before


def test_wallets_and_fees_outlive_the_process() -> None:
    made = burning("1")
    fees.set_tier(made, 3, NOW)
    bought(made)
    text = store.orjson.dumps(store.account_json(made, 100), default=store._text)
    again = Account(dict(made.specs))
    store.account_from(json.loads(text), again)
    again.books = made.books
    assert again == made and again.bnb == made.bnb > 0 and again.fee_burn and again.tier == 3


@pytest.mark.parametrize(
    ("amount", "asset", "expected"),
    [
        ("9697", "USDT", 0),  # 10,000 - 3 of fee - 300 of margin
        ("9697.00000001", "USDT", -2018),
        ("1", "BNB", 0),
        ("1.00000001", "BNB", -2018),
    ],
)
def test_only_what_is_free_is_withdrawn(amount: str, asset: str, expected: int) -> None:
    made = burning("1")
    fees.set_burn(made, False, NOW)
    bought(made)
    done = wallet.withdraw(made, D(amount), NOW, asset)
    assert (done.code if isinstance(done, Refusal) else 0) == expected
    if expected == 0:
        left = {"USDT": made.wallet, "BNB": made.bnb}
        assert left[asset] == {"USDT": D(9997), "BNB": D(1)}[asset] - D(amount)


def test_a_profit_that_is_not_realised_opens_but_does_not_leave() -> None:
    made = burning("1")
    fees.set_burn(made, False, NOW)
    bought(made)
    at(made, "BTCUSDT", "61000")
    # margin 6,100 / 20 = 305: the profit of 100 may open positions only
    assert available(made) == D(9997) + 100 - 305
    assert withdrawable(made) == D(9997) - 305
    at(made, "BTCUSDT", "59000")
    assert withdrawable(made) == available(made) == D(9997) - 100 - 295


@pytest.mark.parametrize("asset", wallet.ASSETS)
def test_transfers_are_told_and_written_and_stand_among_the_income(asset: str) -> None:
    made = opened("100")
    events: list[Event] = wallet.deposit(made, D("2.5"), NOW, asset)
    gone = wallet.withdraw(made, D("0.5"), NOW, asset)
    assert isinstance(gone, list)
    first = D(100) if asset == "USDT" else D(0)
    for event, sign, kind, left in (
        (events[0], "2.5", "DEPOSIT", first + D("2.5")),
        (gone[0], "-0.5", "WITHDRAW", first + 2),
    ):
        [told] = user_payloads(event, made.specs)
        [row] = told["a"]["B"]
        assert (told["a"]["m"], row["a"], row["bc"], told["a"]["P"]) == (kind, asset, sign, [])
        assert D(row["wb"]) == left
        [entry] = ledger_entries(event)
        assert (entry["type"], entry["amount"]) == (kind.lower(), sign)
        assert entry["asset"] == asset and D(entry["balance_after"]) == left
    rows = [(r["incomeType"], r["asset"], r["income"]) for r in made.income][-2:]
    assert rows == [("TRANSFER", asset, "2.50000000"), ("TRANSFER", asset, "-0.50000000")]


class Shop(Flow):
    """A whole exchange and its own unsigned calls, as raw requests."""

    def post(self, word: str, kind: str, **params: Any) -> tuple[int, Any]:
        body = (
            json.dumps(params) if kind == JSON else "&".join(f"{k}={v}" for k, v in params.items())
        )
        now = Moment(self.now_ms, 0)
        path = f"/venue/v1/{word}"
        reply = rest.handle(
            self.world, self.desk, server.ROUTES, "POST", path, b"", body.encode(), "", now
        )
        return reply.status, json.loads(reply.body)


@pytest.mark.parametrize("kind", [JSON, FORM])
def test_money_comes_and_goes_by_form_and_by_json(kind: str) -> None:
    shop = Shop()
    told = {"asset": "BNB", "amount": "2.5", "balance": "2.50000000"}
    assert shop.post("deposit", kind, asset="BNB", amount="2.5") == (200, told)
    assert shop.post("deposit", kind, amount=0.5)[1]["balance"] == "10000.50000000"
    assert shop.post("withdraw", kind, asset="USDT", amount=5000)[1]["balance"] == "5000.50000000"
    account = shop.world.account
    assert (account.wallet, account.paid_in) == (D("5000.5"), D("5000.5"))
    for params, code in (
        ({"asset": "EUR", "amount": "1"}, -1108),
        ({"asset": "BNB"}, -1102),
        ({"asset": "BNB", "amount": "0"}, -1102),
        ({"asset": "BNB", "amount": "-1"}, -1102),
        ({"asset": "BNB", "amount": "1000000000000.1"}, -1102),
        ({"asset": "BNB", "amount": "0.000000001"}, -1111),
    ):
        assert shop.post("deposit", kind, **params)[1]["code"] == code
    assert shop.post("withdraw", kind, asset="USDT", amount="5000.51")[1]["code"] == -2018
    result = audit([{**e, "wall_ms": e["ms"]} for e in shop.world.ledger], 1)
    assert result.violations == () and result.balance == account.wallet


@pytest.mark.parametrize("kind", [JSON, FORM])
def test_tier_and_burning_are_set_and_read_back(kind: str) -> None:
    shop = Shop()
    told = {"tier": 9, "bnb": True, "maker": "0.000000", "taker": "0.000170"}
    assert shop.post("fees", kind, tier=9, bnb="true") == (200, told)
    assert shop.call(accounting.commission_rate, {})["takerCommissionRate"] == "0.000170"
    assert shop.call(server.ROUTES["GET", "/fapi/v1/feeBurn"].handler, {}) == {"feeBurn": True}
    burn = server.ROUTES["POST", "/fapi/v1/feeBurn"].handler
    assert shop.call(burn, {"feeBurn": "false"}) == {"code": 200, "msg": "success"}
    assert shop.call(accounting.account_v2, {})["feeBurn"] is False
    assert shop.call(accounting.account_v2, {})["feeTier"] == 9
    assert isinstance(shop.call(burn, {}), Refusal)
    for params in ({"tier": 10, "bnb": "true"}, {"tier": -1}, {"tier": "x"}, {"bnb": "maybe"}):
        assert shop.post("fees", kind, **params)[0] == 400
    assert shop.world.account.tier == 9 and shop.world.account.fee_burn is False


def test_balances_of_both_assets_are_shown_and_bnb_is_no_margin() -> None:
    shop = Shop()
    [row] = shop.call(accounting.balance, {})
    assert row["asset"] == "USDT"
    free = shop.call(accounting.account_v3, {})["availableBalance"]
    shop.post("deposit", FORM, asset="BNB", amount="3")
    told = shop.call(accounting.account_v3, {})
    assert told["availableBalance"] == free
    assets = {a["asset"]: a for a in told["assets"]}
    assert (
        set(assets)
        == {"USDT", "BNB"}
        == {a["asset"] for a in shop.call(accounting.account_v2, {})["assets"]}
    )
    assert assets["BNB"]["walletBalance"] == assets["BNB"]["maxWithdrawAmount"] == "3.00000000"
    assert assets["BNB"]["initialMargin"] == "0.00000000"
    rows = shop.call(accounting.balance, {})
    assert [(r["asset"], r["balance"]) for r in rows] == [
        ("USDT", "10000.00000000"),
        ("BNB", "3.00000000"),
    ]


def test_a_listed_bnb_is_counted_at_the_mark_of_its_book() -> None:
    world = exchange.create(Setup("bnb", 5, 400.0, 11, 20.0, 0.0, ()))
    exchange.open_account(world, Moment(world.t0_ms, 0), tier=2, bnb=D(5))
    now_ms = world.t0_ms + 3_000
    for _ in exchange.advance(world, float(now_ms), now_ms):
        pass
    account = world.account
    assert (account.tier, account.bnb, account.fee_burn) == (2, D(5), True)
    assert matching.watched(account) == {"BNBUSDT"}
    price = account.books["BNBUSDT"].mark
    assert price == exchange.book_of(world, world.index["BNBUSDT"]).mark
    params = {"symbol": "BTCUSDT", "side": "BUY", "type": "MARKET", "quantity": "0.010"}
    call = rest.Call(world, rest.Desk(), params, Moment(now_ms, 0))
    trading.place_order(call)
    owed = sum((D("0.9") * t.price * t.qty * D("0.00035") / price for t in account.trades), D(0))
    assert account.bnb_fees > 0 and abs(account.bnb_fees - owed) <= D("1e-8") * len(account.trades)


def test_the_command_line_takes_tier_and_bnb() -> None:
    cfg = main.config.load({})
    options = main.arguments(["--fee-tier", "4", "--bnb", "2.5"], cfg)
    assert (options.fee_tier, options.bnb) == (4, 2.5)
    for wrong in (["--fee-tier", "10"], ["--bnb", "-1"], ["--bnb", "x"]):
        with pytest.raises(SystemExit):
            main.arguments(wrong, cfg)


def test_each_fill_of_a_walk_tells_the_crossed_wallet_as_it_was_then() -> None:
    made = account("100000")
    assert isinstance(matching.set_margin_type(made, "BTCUSDT", True, NOW), list)
    _, events = place(made, market("BUY", "0.600"), NOW)
    balances = []
    for event in events:
        for told in user_payloads(event, made.specs):
            if told["e"] == "ACCOUNT_UPDATE":
                [row], [usdt] = told["a"]["P"], told["a"]["B"]
                balances.append((D(usdt["wb"]) - D(usdt["cw"]), D(row["iw"])))
    assert len(balances) >= 2 and balances[0][1] < balances[-1][1]
    assert all(aside == isolated for aside, isolated in balances)


def test_the_break_even_price_of_a_turned_position_counts_the_fee_of_what_is_open() -> None:
    made = account("100000")
    place(made, market("BUY", "0.100"), NOW)
    place(made, market("SELL", "0.300"), NOW)
    [position] = [p for p in made.positions.values() if p.qty]
    assert position.qty == D("-0.200") and position.entry == D(60000)
    assert position.break_even == D(60000) * (1 - made.taker_rate)
