"""What ccxt needs for the same orders: entry, stop and target of each symbol, nothing written down.

    python -m benchmarks.ccxt_entries URL    a round for each line of stdin, a JSON line for each

A round opens a position in every symbol of the venue at once, each entry followed by its stop and
its target, and is over when the last of them is answered; then everything is closed again. This is
the least that any engine on ccxt does: no decision, no durable record, no user stream, no fence.
"""

from __future__ import annotations

import asyncio
import json
import re
import sys
import time
from typing import Any, Final

import ccxt.async_support as ccxt

NOTIONAL: Final = 300.0  # USDT of each position
COLLAR: Final = 1.01
STOP_SHARE, TARGET_SHARE = 0.02, 0.04


def connect(url: str) -> Any:
    """A client as it comes, its URLs apart."""
    keys = {"apiKey": "test", "secret": "test", "enableRateLimit": False}
    client = ccxt.binanceusdm({**keys, "options": {"adjustForTimeDifference": True}})
    for name, value in client.urls["api"].items():
        if isinstance(value, str):
            client.urls["api"][name] = re.sub(r"^https?://[^/]+", url, value)
    return client


async def enter(client: Any, symbol: str, ask: float) -> float:
    """Entry, then stop and target; the amount bought."""
    amount = float(client.amount_to_precision(symbol, NOTIONAL / ask))
    price = client.price_to_precision(symbol, ask * COLLAR)
    await client.create_order(symbol, "limit", "buy", amount, price, {"timeInForce": "IOC"})
    for kind, at in (
        ("STOP_MARKET", ask * (1 - STOP_SHARE)),
        ("TAKE_PROFIT_MARKET", ask * (1 + TARGET_SHARE)),
    ):
        words = {"stopPrice": client.price_to_precision(symbol, at), "closePosition": True}
        await client.create_order(symbol, kind, "sell", 0, None, words)
    return amount


async def leave(client: Any, symbol: str, amount: float) -> None:
    """Flat again, nothing resting."""
    await client.create_order(symbol, "market", "sell", amount, None, {"reduceOnly": True})
    await client.fapiPrivateDeleteAlgoOpenOrders({"symbol": client.market(symbol)["id"]})


async def rounds(url: str) -> None:
    client = connect(url)
    try:
        await client.load_markets()
        print(json.dumps({"symbols": len(client.symbols)}), flush=True)
        while await asyncio.to_thread(sys.stdin.readline):
            await client.load_time_difference()  # the venue may have stood still
            asks = {name: row["ask"] for name, row in (await client.fetch_bids_asks()).items()}
            began = time.perf_counter()
            amounts = await asyncio.gather(*(enter(client, *pair) for pair in asks.items()))
            told = {"entries": len(asks), "seconds": time.perf_counter() - began}
            await asyncio.gather(
                *(leave(client, *pair) for pair in zip(asks, amounts, strict=True))
            )
            print(json.dumps(told), flush=True)
    finally:
        await client.close()


if __name__ == "__main__":
    asyncio.run(rounds(sys.argv[1]))
