"""Every call of ccxt that the venue serves, unmodified but for its URLs, held against raw answers.

A row of READS is one call; what it claims is compared at a market that stands still. NOT_SERVED
names every other call that ccxt says it has, with the reason: together they are all of them, and
the last test says how many calls and claims were made, so that nothing is skipped in silence.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from decimal import Decimal as D
from itertools import pairwise

import ccxt.pro
import pytest

from tests.ccxt_desk import NAME, SYMBOL, Desk, pointed
from tests.test_venue_ccxt_orders import WRITES
from tests.test_venue_ccxt_watch import WATCHES

BTC = "BTC/USDT:USDT"
# reason -> calls
NOT_SERVED = {
    "loans, conversions and transfers are not of the futures exchange": """
        borrowCrossMargin borrowIsolatedMargin createConvertTrade fetchBorrowInterest
        fetchBorrowRateHistory fetchConvertCurrencies fetchConvertQuote fetchConvertTrade
        fetchConvertTradeHistory fetchCrossBorrowRate fetchDepositAddress fetchDeposits
        fetchIsolatedBorrowRates fetchTransfers fetchWithdrawals repayCrossMargin
        repayIsolatedMargin transfer withdraw""",
    "options and delivery contracts are not listed here": """
        fetchAllGreeks fetchGreeks fetchLedgerEntry fetchMySettlementHistory fetchOption
        fetchPosition fetchSettlementHistory""",
    "ccxt has it for spot alone": """
        createMarketBuyOrderWithCost createMarketOrderWithCost createMarketSellOrderWithCost
        fetchOrderTrades cancelAllOrdersWs fetchOpenOrdersWs fetchOrdersWs""",
    "the WebSocket API of the futures exchange has no such method": """
        fetchMyTradesWs fetchOHLCVWs fetchTradesWs fetchPositionForSymbolWs""",
    "forceOrder tells of this account's liquidations alone; see the streams' tests": """
        watchLiquidations watchLiquidationsForSymbols watchMyLiquidations
        watchMyLiquidationsForSymbols""",
    "ccxt itself has not made it yet": "watchOrdersForSymbols",
}
WORDS = {"future", "privateAPI", "publicAPI", "sandbox", "swap", "ws"}  # of `has`, but not calls

Read = Callable[[Desk], Awaitable[None]]
READS: dict[str, Read] = {}


def row(work: Read) -> Read:
    """A row of the table, by ccxt's name of the call."""
    READS["".join(p if k == 0 else p.title() for k, p in enumerate(work.__name__.split("_")))] = (
        work
    )
    return work


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    folder = tmp_path_factory.mktemp("calls")
    made = Desk(folder, "--symbols", "3", "--rate", "300", "--seed", "7", "--speed", "1")
    made.run(_some_history(made))
    made.venue.post("/venue/v1/pause")
    yield made
    print(f"\n{made.said['calls']} calls, {made.said['claims']} claims on values")
    assert made.close() == 0


async def _some_history(desk: Desk) -> None:
    """Half a position of two trades, an order that rests, one that was canceled."""
    client = desk.client
    await client.create_order(SYMBOL, "market", "buy", 0.5)
    await client.create_order(SYMBOL, "market", "sell", 0.2)
    await client.create_order(SYMBOL, "limit", "buy", 0.1, desk.price("0.97"))
    gone = await client.create_order(SYMBOL, "limit", "buy", 0.1, desk.price("0.96"))
    await client.cancel_order(gone["id"], SYMBOL)


# the market


@row
async def fetch_time(desk: Desk) -> None:
    desk.equal(await desk.client.fetch_time(), desk.venue.get("/venue/v1/status")["market_ms"])


@row
async def fetch_status(desk: Desk) -> None:
    desk.equal((await desk.client.fetch_status())["status"], "ok")


@row
async def fetch_markets(desk: Desk) -> None:
    markets = {m["symbol"]: m for m in await desk.client.fetch_markets()}
    eth = markets[SYMBOL]
    desk.equal(sorted(markets), [BTC, SYMBOL, "SOL/USDT:USDT"])
    desk.equal((eth["precision"]["price"], eth["precision"]["amount"]), (0.01, 0.001))
    desk.equal((eth["swap"], eth["linear"], eth["active"]), (True, True, True))
    desk.equal((eth["contractSize"], eth["settle"], eth["id"]), (1, "USDT", NAME))
    desk.true(eth["limits"]["cost"]["min"] >= 5 and eth["limits"]["amount"]["min"] == 0.001)


@row
async def fetch_currencies(desk: Desk) -> None:
    desk.equal(await desk.client.fetch_currencies(), {})


@row
async def fetch_ticker(desk: Desk) -> None:
    seen, raw = await desk.client.fetch_ticker(SYMBOL), desk.raw("ticker/24hr", f"symbol={NAME}")
    for name, wanted in (
        ("last", "lastPrice"), ("high", "highPrice"), ("low", "lowPrice"), ("open", "openPrice"),
        ("vwap", "weightedAvgPrice"), ("baseVolume", "volume"), ("quoteVolume", "quoteVolume"),
        ("percentage", "priceChangePercent"), ("change", "priceChange"),
    ):  # fmt: skip
        desk.equal(seen[name], float(raw[wanted]))
    desk.equal(seen["timestamp"], raw["closeTime"])


@row
async def fetch_tickers(desk: Desk) -> None:
    seen = await desk.client.fetch_tickers()
    raw = {t["symbol"]: t for t in desk.raw("ticker/24hr")}
    desk.equal(len(seen), 3)
    desk.equal(seen[BTC]["last"], float(raw["BTCUSDT"]["lastPrice"]))


@row
async def fetch_bids_asks(desk: Desk) -> None:
    seen = (await desk.client.fetch_bids_asks([SYMBOL]))[SYMBOL]
    raw = desk.raw("ticker/bookTicker", f"symbol={NAME}")
    desk.equal((seen["bid"], seen["bidVolume"]), (float(raw["bidPrice"]), float(raw["bidQty"])))
    desk.equal((seen["ask"], seen["askVolume"]), (float(raw["askPrice"]), float(raw["askQty"])))
    desk.true(seen["bid"] < seen["ask"])


@row
async def fetch_last_prices(desk: Desk) -> None:
    seen = (await desk.client.fetch_last_prices([SYMBOL]))[SYMBOL]
    desk.equal(seen["price"], float(desk.raw("ticker/price", f"symbol={NAME}")["price"]))


@row
async def fetch_mark_price(desk: Desk) -> None:
    raw = desk.raw("premiumIndex", f"symbol={NAME}")
    desk.equal((await desk.client.fetch_mark_price(SYMBOL))["markPrice"], float(raw["markPrice"]))


@row
async def fetch_mark_prices(desk: Desk) -> None:
    raw = {r["symbol"]: r for r in desk.raw("premiumIndex")}
    seen = await desk.client.fetch_mark_prices()
    desk.equal(seen[BTC]["markPrice"], float(raw["BTCUSDT"]["markPrice"]))
    desk.equal(len(seen), 3)


def _levels(rows: list[list[str]]) -> list[list[float]]:
    return [[float(v) for v in level] for level in rows]


@row
async def fetch_order_book(desk: Desk) -> None:
    seen, raw = (
        await desk.client.fetch_order_book(SYMBOL, 20),
        desk.raw("depth", f"symbol={NAME}&limit=20"),
    )
    desk.equal(seen["nonce"], raw["lastUpdateId"])
    desk.equal(seen["bids"], _levels(raw["bids"]))
    desk.equal(seen["asks"], _levels(raw["asks"]))
    desk.equal((len(seen["bids"]), seen["timestamp"]), (20, raw["T"]))


@row
async def fetch_l2_order_book(desk: Desk) -> None:
    seen = await desk.client.fetch_l2_order_book(SYMBOL, 5)
    desk.equal(seen["asks"], _levels(desk.raw("depth", f"symbol={NAME}&limit=5")["asks"]))


@row
async def fetch_ohlcv(desk: Desk) -> None:
    """Every interval that ccxt names: the candles follow each other and add up."""
    spans = {n: desk.client.parse_timeframe(n) * 1000 for n in desk.client.timeframes}
    del spans["1s"]  # spot's own
    for name, span in spans.items():
        rows = await desk.client.fetch_ohlcv(SYMBOL, name, limit=12)
        steps = {b[0] - a[0] for a, b in pairwise(rows)}
        desk.true(1 <= len(rows) <= 12 and (name == "1M" or steps <= {span}))
        desk.true(all(r[3] <= min(r[1], r[4]) <= max(r[1], r[4]) <= r[2] for r in rows))
        desk.true(name == "1M" or all(r[0] % span == (4 * 86_400_000 if name == "1w" else 0)
                                      for r in rows))  # fmt: skip
    wide = (await desk.client.fetch_ohlcv(SYMBOL, "4h", limit=2))[0]
    hours = await desk.client.fetch_ohlcv(SYMBOL, "1h", since=wide[0], limit=4)
    desk.equal(wide[2:4], [max(h[2] for h in hours), min(h[3] for h in hours)])
    desk.equal(round(wide[5], 3), round(sum(h[5] for h in hours), 3))


@row
async def fetch_mark_ohlcv(desk: Desk) -> None:
    rows = await desk.client.fetch_mark_ohlcv(SYMBOL, "5m", limit=3)
    trades = await desk.client.fetch_ohlcv(SYMBOL, "5m", limit=3)
    desk.equal([r[:5] for r in rows], [r[:5] for r in trades])


@row
async def fetch_index_ohlcv(desk: Desk) -> None:
    rows = await desk.client.fetch_index_ohlcv(SYMBOL, "1h", limit=2)
    desk.equal(rows, await desk.client.fetch_mark_ohlcv(SYMBOL, "1h", limit=2))


@row
async def fetch_premium_index_ohlcv(desk: Desk) -> None:
    rows = await desk.client.fetch_premium_index_ohlcv(SYMBOL, "1m", limit=2)
    desk.equal([r[1:5] for r in rows], [[0, 0, 0, 0]] * 2)


@row
async def fetch_trades(desk: Desk) -> None:
    seen = await desk.client.fetch_trades(SYMBOL, limit=5)
    raw = desk.raw("aggTrades", f"symbol={NAME}&limit=5")
    desk.equal([t["id"] for t in seen], [str(r["a"]) for r in raw])
    desk.equal([t["price"] for t in seen], [float(r["p"]) for r in raw])
    desk.equal([t["side"] for t in seen], ["sell" if r["m"] else "buy" for r in raw])


@row
async def fetch_funding_rate(desk: Desk) -> None:
    seen = await desk.client.fetch_funding_rate(SYMBOL)
    raw = desk.raw("premiumIndex", f"symbol={NAME}")
    desk.equal(seen["fundingRate"], float(raw["lastFundingRate"]))
    desk.equal(seen["fundingTimestamp"], raw["nextFundingTime"])
    desk.equal(seen["indexPrice"], float(raw["indexPrice"]))


@row
async def fetch_funding_rates(desk: Desk) -> None:
    desk.equal(sorted(await desk.client.fetch_funding_rates()), [BTC, SYMBOL, "SOL/USDT:USDT"])


@row
async def fetch_funding_rate_history(desk: Desk) -> None:
    seen = await desk.client.fetch_funding_rate_history(SYMBOL, limit=3)
    raw = desk.raw("fundingRate", f"symbol={NAME}&limit=3")
    desk.equal([r["timestamp"] for r in seen], [r["fundingTime"] for r in raw])


@row
async def fetch_funding_intervals(desk: Desk) -> None:
    seen = await desk.client.fetch_funding_intervals()
    desk.equal({r["interval"] for r in seen.values()}, {"8h"})
    desk.equal(len(seen), 3)


@row
async def fetch_open_interest(desk: Desk) -> None:
    seen = await desk.client.fetch_open_interest(SYMBOL)
    said = desk.raw("openInterest", f"symbol={NAME}")["openInterest"]
    desk.equal(seen["openInterestAmount"], float(said))
    desk.true(seen["openInterestAmount"] > 0)


@row
async def fetch_open_interest_history(desk: Desk) -> None:
    """Each of its rows by itself, and the same rows when they are asked for by time."""
    seen = await desk.client.fetch_open_interest_history(SYMBOL, "1h", limit=4)
    raw = desk.venue.get(f"/futures/data/openInterestHist?symbol={NAME}&period=1h&limit=4")
    desk.equal([r["openInterestAmount"] for r in seen], [float(r["sumOpenInterest"]) for r in raw])
    desk.equal([r["timestamp"] for r in seen], [r["timestamp"] for r in raw])
    desk.equal({b["timestamp"] - a["timestamp"] for a, b in pairwise(seen)}, {3_600_000})
    desk.true(all(2000 < r["openInterestValue"] / r["openInterestAmount"] < 4000 for r in seen))
    since = await desk.client.fetch_open_interest_history(SYMBOL, "1h", seen[1]["timestamp"], 3)
    desk.equal(
        [r["openInterestAmount"] for r in since], [r["openInterestAmount"] for r in seen[1:]]
    )


@row
async def fetch_long_short_ratio_history(desk: Desk) -> None:
    seen = await desk.client.fetch_long_short_ratio_history(SYMBOL, "5m", limit=12)
    desk.equal({b["timestamp"] - a["timestamp"] for a, b in pairwise(seen)}, {300_000})
    shares = [(D(r["info"]["longAccount"]), D(r["info"]["shortAccount"])) for r in seen]
    desk.equal({long + short for long, short in shares}, {D(1)})
    off = [abs(r["longShortRatio"] - float(a / b)) for r, (a, b) in zip(seen, shares, strict=True)]
    desk.true(len(off) == 12 and max(off) < 0.001)


@row
async def fetch_adl_rank(desk: Desk) -> None:
    seen = await desk.client.fetch_adl_rank(SYMBOL)
    now_ms = desk.venue.get("/fapi/v1/time")["serverTime"]
    desk.equal((seen["rating"], seen["symbol"]), ("low", SYMBOL))
    desk.true(0 <= now_ms - seen["timestamp"] < 1_800_000)


# the account


@row
async def fetch_balance(desk: Desk) -> None:
    seen, raw = await desk.client.fetch_balance(), desk.raw("v3/account")
    desk.equal(seen["USDT"]["total"], float(raw["totalMarginBalance"]))
    desk.equal(seen["USDT"]["free"], float(raw["availableBalance"]))
    desk.true(0 < seen["USDT"]["total"] < 10_000)


@row
async def fetch_positions(desk: Desk) -> None:
    [seen], [raw] = await desk.client.fetch_positions([SYMBOL]), desk.raw("v3/positionRisk")
    desk.equal((seen["contracts"], seen["side"], seen["symbol"]), (0.3, "long", SYMBOL))
    desk.equal(seen["entryPrice"], float(raw["entryPrice"]))
    desk.equal(seen["unrealizedPnl"], float(raw["unRealizedProfit"]))
    desk.equal(seen["notional"], float(raw["notional"]))
    desk.equal(seen["markPrice"], float(raw["markPrice"]))
    desk.equal(seen["hedged"], False)


@row
async def fetch_positions_risk(desk: Desk) -> None:
    [seen] = await desk.client.fetch_positions_risk([SYMBOL])
    desk.equal((seen["contracts"], seen["maintenanceMarginPercentage"] > 0), (0.3, True))


@row
async def fetch_positions_adl_rank(desk: Desk) -> None:
    [seen] = await desk.client.fetch_positions_adl_rank([SYMBOL])
    desk.true(seen["rank"] in range(5))


@row
async def fetch_position_adl_rank(desk: Desk) -> None:
    seen = await desk.client.fetch_position_adl_rank(SYMBOL)
    [raw] = desk.raw("v1/adlQuantile")
    desk.equal((seen["symbol"], seen["rank"]), (SYMBOL, raw["adlQuantile"]["BOTH"]))


@row
async def fetch_leverages(desk: Desk) -> None:
    seen = await desk.client.fetch_leverages([SYMBOL])
    desk.equal((seen[SYMBOL]["longLeverage"], seen[SYMBOL]["marginMode"]), (20, "cross"))


@row
async def fetch_leverage_tiers(desk: Desk) -> None:
    tiers = (await desk.client.fetch_leverage_tiers([SYMBOL]))[SYMBOL]
    [raw] = [r for r in desk.raw("v1/leverageBracket") if r["symbol"] == NAME]
    desk.equal([t["maxNotional"] for t in tiers], [b["notionalCap"] for b in raw["brackets"]])
    desk.equal(
        [t["maintenanceMarginRate"] for t in tiers],
        [b["maintMarginRatio"] for b in raw["brackets"]],
    )
    desk.true(all(isinstance(b["notionalCap"], int) for b in raw["brackets"]))


@row
async def fetch_margin_mode(desk: Desk) -> None:
    desk.equal((await desk.client.fetch_margin_mode(SYMBOL))["marginMode"], "cross")


@row
async def fetch_margin_modes(desk: Desk) -> None:
    desk.equal((await desk.client.fetch_margin_modes([BTC]))[BTC]["marginMode"], "cross")


@row
async def fetch_position_mode(desk: Desk) -> None:
    desk.equal((await desk.client.fetch_position_mode(SYMBOL))["hedged"], False)


@row
async def fetch_trading_fee(desk: Desk) -> None:
    seen = await desk.client.fetch_trading_fee(SYMBOL)
    desk.equal((seen["maker"], seen["taker"]), (0.0002, 0.0005))


@row
async def fetch_trading_fees(desk: Desk) -> None:
    desk.equal((await desk.client.fetch_trading_fees())[SYMBOL]["info"]["feeTier"], 0)


@row
async def fetch_deposit_withdraw_fees(desk: Desk) -> None:
    desk.equal(await desk.client.fetch_deposit_withdraw_fees(), {})


@row
async def fetch_transaction_fees(desk: Desk) -> None:
    desk.equal((await desk.client.fetch_transaction_fees())["withdraw"], {})


@row
async def fetch_my_trades(desk: Desk) -> None:
    seen, raw = await desk.client.fetch_my_trades(SYMBOL), desk.raw("v1/userTrades")
    desk.equal([t["id"] for t in seen], [str(r["id"]) for r in raw])
    for side, qty in (("buy", "0.5"), ("sell", "0.2")):
        mine = [t for t in seen if t["side"] == side]
        desk.equal(sum(D(str(t["amount"])) for t in mine), D(qty))
    desk.equal([t["fee"]["cost"] for t in seen], [float(r["commission"]) for r in raw])
    desk.equal({t["fee"]["currency"] for t in seen}, {"USDT"})
    desk.equal({t["takerOrMaker"] for t in seen}, {"taker"})


@row
async def fetch_orders(desk: Desk) -> None:
    seen = await desk.client.fetch_orders(SYMBOL)
    desk.equal([o["status"] for o in seen], ["closed", "closed", "open", "canceled"])
    desk.equal([o["filled"] for o in seen], [0.5, 0.2, 0, 0])
    desk.true(seen[0]["average"] > 0 and seen[0]["cost"] > 0)


@row
async def fetch_open_orders(desk: Desk) -> None:
    [seen] = await desk.client.fetch_open_orders(SYMBOL)
    [raw] = desk.raw("v1/openOrders")
    desk.equal((seen["price"], seen["amount"]), (float(raw["price"]), 0.1))
    desk.equal((seen["type"], seen["side"], seen["timeInForce"]), ("limit", "buy", "GTC"))


@row
async def fetch_open_order(desk: Desk) -> None:
    [resting] = await desk.client.fetch_open_orders(SYMBOL)
    seen = await desk.client.fetch_open_order(resting["id"], SYMBOL)
    desk.equal((seen["id"], seen["remaining"]), (resting["id"], 0.1))


@row
async def fetch_order(desk: Desk) -> None:
    first = (await desk.client.fetch_orders(SYMBOL))[0]
    seen = await desk.client.fetch_order(first["id"], SYMBOL)
    named = await desk.client.fetch_order("", SYMBOL, {"clientOrderId": first["clientOrderId"]})
    desk.equal((seen["id"], seen["average"]), (first["id"], first["average"]))
    desk.equal(named["id"], first["id"])


@row
async def fetch_funding_history(desk: Desk) -> None:
    desk.equal(await desk.client.fetch_funding_history(SYMBOL), [])


@row
async def fetch_ledger(desk: Desk) -> None:
    seen = await desk.client.fetch_ledger("USDT")
    wallet = float(desk.raw("v3/account")["totalWalletBalance"])
    signs = {"in": 1, "out": -1}
    total = sum(D(str(r["amount"])) * signs[r["direction"]] for r in seen)
    desk.equal(round(float(total), 6), round(wallet, 6))
    desk.equal(seen[0]["type"], "transfer")


@row
async def fetch_my_liquidations(desk: Desk) -> None:
    desk.equal(await desk.client.fetch_my_liquidations(SYMBOL), [])


@row
async def fetch_margin_adjustment_history(desk: Desk) -> None:
    desk.equal(await desk.client.fetch_margin_adjustment_history(SYMBOL), [])


def test_the_client_of_all_houses_finds_this_one_alone(desk: Desk) -> None:
    """ccxt.binance asks spot and delivery for their listings before it trades swaps."""

    async def work() -> None:
        config = {"apiKey": "test", "secret": "test", "options": {"defaultType": "swap"}}
        client = pointed(ccxt.pro.binance(config), desk.venue)
        try:
            assert sorted(await client.load_markets()) == [BTC, SYMBOL, "SOL/USDT:USDT"]
            [held] = await client.fetch_positions([SYMBOL])
            total = (await client.fetch_balance())["USDT"]["total"]
            assert held["contracts"] == 0.3
            assert total == float(desk.raw("v3/account")["totalMarginBalance"])
        finally:
            await client.close()

    desk.run(work())


@pytest.mark.parametrize("name", READS)
def test_a_call_tells_what_the_venue_says_itself(desk: Desk, name: str) -> None:
    before = desk.said["claims"]
    desk.said["calls"] += 1
    desk.run(READS[name](desk))
    assert desk.said["claims"] > before, "a call that claims nothing tests nothing"


def test_every_call_that_ccxt_has_is_tested_or_named_with_a_reason(desk: Desk) -> None:
    has = {name for name, value in desk.client.has.items() if value is True} - WORDS
    not_served = {name for names in NOT_SERVED.values() for name in names.split()}
    tested = {name.lower() for name in (*READS, *WRITES, *WATCHES)}
    assert {n for n in has - not_served if n.lower() not in tested} == set()
    assert {n for n in not_served if n.lower() in tested or n not in has} == set()


def test_no_row_was_left_out(desk: Desk, request: pytest.FixtureRequest) -> None:
    asked = [
        item
        for item in request.session.items
        if getattr(item, "originalname", "") == "test_a_call_tells_what_the_venue_says_itself"
    ]
    assert desk.said["calls"] == len(asked) <= len(READS)
    assert len(asked) < len(READS) or desk.said["claims"] >= 130
