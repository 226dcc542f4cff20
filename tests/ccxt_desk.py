"""A ccxt client of a running venue for a whole test file, and a count of what was claimed of it.

The market stands still while calls are compared: every value that a client tells can then be
held against what the venue says by itself. Only the client's URLs are changed.
"""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from collections.abc import Coroutine
from decimal import Decimal as D
from pathlib import Path
from typing import Any

import ccxt.pro

from tests.test_venue_server import Running

SYMBOL, NAME = "ETH/USDT:USDT", "ETHUSDT"
PATIENCE_S = 20.0  # generous: for machines that have much else to do


class Client(ccxt.pro.binanceusdm):
    """As it comes; on another host than Binance's it would forget half of its error classes."""

    def get_exceptions_by_url(self, url: str, kind: str) -> Any:
        return self.exceptions["linear"].get(kind, {})


def pointed(client: Any, venue: Running) -> Any:
    for name, value in client.urls["api"].items():
        if isinstance(value, str):
            client.urls["api"][name] = re.sub(r"^https?://[^/]+", venue.url, value)
    client.urls["api"]["ws"]["linear"] = f"{venue.ws}/ws"
    client.urls["api"]["ws"]["ws-api"]["linear"] = f"{venue.ws}/ws-fapi/v1"
    return client


class Desk:
    """The venue, one client in one event loop, and the tally."""

    def __init__(self, folder: Path, *options: str) -> None:
        self.venue = Running(folder, *options)
        self.loop = asyncio.new_event_loop()
        self.client = self.run(self._client())
        self.said: Counter[str] = Counter()
        self.run(self.client.load_markets())

    async def _client(self) -> Any:
        config = {"apiKey": "test", "secret": "test", "enableRateLimit": False}
        return pointed(Client(config), self.venue)

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return self.loop.run_until_complete(work)

    def raw(self, path: str, query: str = "") -> Any:
        """What the venue itself says to a public or signed GET."""
        if path.startswith(
            ("ticker", "depth", "klines", "aggTrades", "premium", "funding", "openInterest")
        ):
            return self.venue.get(f"/fapi/v1/{path}?{query}")
        status, body, _ = self.venue.signed("GET", f"/fapi/{path}", query)
        assert status == 200, body
        return body

    def price(self, share: str) -> float:
        """A price at a share of the best bid, on the grid."""
        bid = D(self.raw("ticker/bookTicker", f"symbol={NAME}")["bidPrice"])
        return float((bid * D(share)).quantize(D("0.01")))

    def equal(self, got: Any, wanted: Any) -> None:
        self.said["claims"] += 1
        assert got == wanted

    def true(self, got: Any) -> None:
        self.said["claims"] += 1
        assert got

    def close(self) -> int:
        self.run(self.client.close())
        self.loop.close()
        return self.venue.stop()
