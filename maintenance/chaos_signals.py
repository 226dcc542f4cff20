"""Signals from a script instead of a brain, written to the real stream at a seeded pace.

Both sides, all symbols, stops and targets close by, so that positions turn over. What Redis did
not confirm is not counted as sent. Prices are the venue's own; while it tells none (a ban meets
every caller of the address) there are no signals.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Mapping, Sequence
from typing import Any, Final

import redis.exceptions

import streams
from maintenance import universe

PAUSE_S: Final = (0.02, 0.25)  # between two signals
DISTANCE: Final = (0.0025, 0.008)  # of a stop, as a share of the price
RETRY_S: Final = 0.2
NS_PER_MS: Final = 1_000_000


def signal_fields(
    chance: random.Random, number: int, quotes: Sequence[Mapping[str, Any]], now_ms: int, run: str
) -> dict[str, str]:
    """The next signal: its symbol, side, distances and confidence are drawn."""
    quote = chance.choice(quotes)
    side = chance.choice(("buy", "sell"))
    sign = 1 if side == "buy" else -1
    price = float(quote["askPrice"] if sign > 0 else quote["bidPrice"])
    stop = chance.uniform(*DISTANCE)
    target = chance.uniform(*DISTANCE)
    return {
        "id": f"chaos-{run}-{number}",
        "symbol": str(quote["symbol"]),
        "side": side,
        "price": f"{price:.8f}",
        "stop": f"{price * (1 - sign * stop):.8f}",
        "target": f"{price * (1 + sign * target):.8f}",
        "confidence": f"{chance.uniform(0.3, 0.95):.3f}",
        "exch_ns": str(now_ms * NS_PER_MS),
        "rule": "chaos",
    }


class Source(threading.Thread):
    """Sends until `halt`; `sent` are the ids that Redis confirmed."""

    def __init__(self, redis_url: str, venue_url: str, keys: streams.Keys, seed: int) -> None:
        super().__init__(daemon=True)
        self._r, self._venue, self._keys = streams.connect(redis_url, 1), venue_url, keys
        self._chance, self._run = random.Random(f"signals {seed}"), str(seed)
        self._over = threading.Event()
        self.sent: set[str] = set()

    def run(self) -> None:
        number = 0
        while not self._over.wait(self._chance.uniform(*PAUSE_S)):
            number += 1
            try:
                told = universe.get_json(f"{self._venue}/fapi/v1/ticker/bookTicker")
                now_ms = universe.get_json(f"{self._venue}/fapi/v1/time")["serverTime"]
                fields = signal_fields(self._chance, number, told, int(now_ms), self._run)
                streams.publish(self._r, self._keys.signals, fields)
            except (redis.exceptions.RedisError, OSError, ValueError):
                self._over.wait(RETRY_S)  # a fault of this run; signals go on after it
                continue
            self.sent.add(fields["id"])

    def halt(self) -> None:
        """No signal after this returns."""
        self._over.set()
        self.join(universe.HTTP_TIMEOUT_S * 3)
        self._r.close()
