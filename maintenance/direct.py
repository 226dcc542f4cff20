"""`aegis flatten --direct`: close positions with nothing but the exchange; no Redis, no risk.

For the day on which everything else is gone. What is ours is told by our client ids: a resident
leg or a recent order that begins with the prefix of this deployment; a position of somebody else
is closed only when its symbol is named. Orders are market and reduce-only, repeated until the
exchange says that nothing is left; then what we left resting there is taken back. It holds the
exchange keys, which no other command but `risk` does.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Final

import clock
import process
import streams
from risk.events import Done, Result
from risk.exchange import Exchange
from risk.instruments import Instrument, parse_instruments, plain
from risk.orders import ALGO_PATH, CLOSE_LEG, ORDER_PATH

if TYPE_CHECKING:
    import config

ROUNDS_MAX: Final = 20  # orders for one position: a lot may be smaller than it
TRIES_MAX: Final = 5  # of one question
PAUSE_S: Final = 0.3
RECENT_ORDERS: Final = "100"
Rows = list[dict[str, Any]]


class Desk:
    """One connection to the exchange and its clock."""

    def __init__(self, cfg: config.Config) -> None:
        self.market = clock.MarketClock(float(clock.wall_ms()), clock.boot_ns())
        self.prefix = f"ag{streams.prefix3(streams.Keys(cfg.mode, cfg.account))}"
        self.rest_url = cfg.rest_url
        self.exchange = Exchange(
            cfg.rest_url,
            cfg.api_key,
            cfg.api_secret,
            lambda: self.market.now_ms(clock.boot_ns()),
            lambda: 0.0,  # no entry can be signed here
            lambda: clock.boot_ns() / clock.NS_PER_MS,
        )

    async def call(self, method: str, path: str, **params: str) -> Result:
        """Questions wait out a pause that the exchange named; what reduces risk does not."""
        if method == "GET":
            await self.exchange.calm()
        return await self.exchange.fetch(method, path, params)

    async def ask(self, path: str, **params: str) -> Any:
        """The body of a question; one sentence when the exchange gives none."""
        result = await self.call("GET", path, **params)
        for _ in range(TRIES_MAX - 1):
            if not isinstance(result, Done):
                await asyncio.sleep(PAUSE_S)
                result = await self.call("GET", path, **params)
        if not isinstance(result, Done):
            process.fail(
                f"{self.rest_url} does not answer {path} ({result.reason}): nothing more was done."
            )
        return result.body

    async def measure_clock(self) -> None:
        sent_ns = clock.boot_ns()
        told = await self.ask("/fapi/v1/time")
        self.market = clock.from_server_time(
            float(told["serverTime"]), float(told.get("speed", 1.0)), sent_ns, clock.boot_ns()
        )

    async def sizes(self) -> dict[str, Decimal]:
        rows: Rows = await self.ask("/fapi/v3/positionRisk")
        sizes = {row["symbol"]: Decimal(row["positionAmt"]) for row in rows}
        return {symbol: size for symbol, size in sizes.items() if size}

    async def legs(self) -> dict[str, list[str]]:
        """Our resident legs by symbol."""
        made: dict[str, list[str]] = {}
        for row in await self.ask("/fapi/v1/openAlgoOrders"):
            if row["clientAlgoId"].startswith(self.prefix):
                made.setdefault(row["symbol"], []).append(row["clientAlgoId"])
        return made

    async def is_ours(self, symbol: str, legs: Mapping[str, list[str]]) -> bool:
        """A leg of ours rests there, or the newest order that was executed is ours."""
        if legs.get(symbol):
            return True
        rows: Rows = await self.ask("/fapi/v1/allOrders", symbol=symbol, limit=RECENT_ORDERS)
        done = [row for row in rows if Decimal(row["executedQty"]) > 0]
        newest = max(done, key=lambda row: int(row["time"]), default=None)
        return newest is not None and str(newest["clientOrderId"]).startswith(self.prefix)


async def flatten(desk: Desk, wanted: str) -> int:
    """Close the wanted symbol, or all that is ours; 0 when nothing of it is left."""
    await desk.measure_clock()
    brackets: Rows = []
    rules = parse_instruments(await desk.ask("/fapi/v1/exchangeInfo"), brackets)
    sizes, legs = await desk.sizes(), await desk.legs()
    if wanted:
        chosen = [symbol for symbol in sizes if symbol == wanted]
    else:
        chosen = [symbol for symbol in sorted(sizes) if await desk.is_ours(symbol, legs)]
    await take_back_entries(desk, wanted)
    left = 0
    for symbol in chosen:
        size = await close(desk, symbol, sizes[symbol], rules.get(symbol))
        print(f"{symbol}: closed {plain(sizes[symbol] - size)}, {plain(size)} left")
        left += size != 0
    sizes = await desk.sizes()
    for symbol, names in legs.items():
        if symbol not in sizes and wanted in ("", symbol):
            for name in names:
                await desk.call("DELETE", ALGO_PATH, clientAlgoId=name)
    others = [symbol for symbol in sorted(sizes) if symbol not in chosen and not wanted]
    if others:
        print(f"left alone, not opened by us: {', '.join(others)}; name one to close it")
    if not chosen:
        print("nothing to close")
    return 1 if left else 0


async def take_back_entries(desk: Desk, wanted: str) -> None:
    """An order of ours that rests could open what is being closed."""
    for row in await desk.ask("/fapi/v1/openOrders"):
        name, symbol = str(row["clientOrderId"]), str(row["symbol"])
        if name.startswith(desk.prefix) and wanted in ("", symbol):
            await desk.call("DELETE", ORDER_PATH, symbol=symbol, origClientOrderId=name)


async def close(desk: Desk, symbol: str, size: Decimal, rules: Instrument | None) -> Decimal:
    """Market, reduce-only, until the exchange says zero; what is left otherwise. An answer that
    does not come is no reason to wait: the next size tells, and a repeat can only reduce."""
    cause = f"direct:{symbol}:{clock.wall_ms()}"
    for number in range(ROUNDS_MAX):
        qty = min(abs(size), rules.market_qty_max) if rules else abs(size)
        result = await desk.call(
            "POST",
            ORDER_PATH,
            symbol=symbol,
            side="SELL" if size > 0 else "BUY",
            type="MARKET",
            quantity=plain(qty),
            reduceOnly="true",
            newClientOrderId=streams.client_id(desk.prefix[2:], cause, CLOSE_LEG, number),
        )
        if not isinstance(result, Done):
            print(f"{symbol}: {getattr(result, 'reason', result)}")
            await asyncio.sleep(PAUSE_S)
        size = (await desk.sizes()).get(symbol, Decimal(0))
        if not size:
            break
    return size


def run(cfg: config.Config, wanted: str) -> int:
    """Until flat; the exit code."""
    if not cfg.api_key or not cfg.api_secret:
        process.fail("`flatten --direct` needs BINANCE_API_KEY and BINANCE_API_SECRET.")

    async def work() -> int:
        desk = Desk(cfg)
        try:
            return await flatten(desk, wanted)
        finally:
            await desk.exchange.close()

    process.setup_logging("flatten", cfg.log_level, cfg.secrets)
    return asyncio.run(work())
