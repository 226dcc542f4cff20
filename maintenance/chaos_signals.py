"""Signals from a script instead of a brain, written to the real stream at a seeded pace.

Both sides, all symbols, in bursts, stops and targets close by, so that positions turn over. Some
are sent again a little later under the same id, as they were or at the new price: they must not
count twice. What Redis did not confirm is not counted as sent. Prices are the venue's own; while
it tells none (a ban meets every caller of the address) there are no signals.
"""

from __future__ import annotations

import random
import threading
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any, Final

import redis.exceptions

import streams
from maintenance import universe
from maintenance.chaos_world import World

LATELY: Final = 200  # signals that may be sent again: those of the last seconds
RETRY_S: Final = 0.2
NS_PER_MS: Final = 1_000_000


def signal_fields(
    chance: random.Random,
    name: str,
    quotes: Sequence[Mapping[str, Any]],
    now_ms: int,
    distance: tuple[float, float],
) -> dict[str, str]:
    """A signal: its symbol, side, distances and confidence are drawn."""
    quote = chance.choice(quotes)
    side = chance.choice(("buy", "sell"))
    sign = 1 if side == "buy" else -1
    price = float(quote["askPrice"] if sign > 0 else quote["bidPrice"])
    stop, target = chance.uniform(*distance), chance.uniform(*distance)
    return {
        "id": name,
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

    def __init__(
        self, redis_url: str, venue_url: str, keys: streams.Keys, seed: int, world: World
    ) -> None:
        super().__init__(daemon=True)
        self._r, self._venue, self._keys = streams.connect(redis_url, 1), venue_url, keys
        self._chance, self._run, self._world = random.Random(f"signals {seed}"), str(seed), world
        self._over = threading.Event()
        self._lately: deque[dict[str, str]] = deque(maxlen=LATELY)
        self._number = 0
        self.sent: set[str] = set()
        self.sent_again = 0

    def run(self) -> None:
        while not self._over.wait(self._chance.uniform(*self._world.pause_s)):
            try:
                self._burst()
            except (redis.exceptions.RedisError, OSError, ValueError):
                self._over.wait(RETRY_S)  # a fault of this run; signals go on after it

    def _burst(self) -> None:
        """A few signals at the prices of one look. Raises what the fault of the moment raises."""
        chance = self._chance
        quotes = universe.get_json(f"{self._venue}/fapi/v1/ticker/bookTicker")
        now_ms = int(universe.get_json(f"{self._venue}/fapi/v1/time")["serverTime"])
        for _ in range(chance.randint(1, self._world.burst)):
            fields = self._next(quotes, now_ms)
            again = fields["id"] in self.sent
            streams.publish(self._r, self._keys.signals, fields)
            self.sent_again += again
            self.sent.add(fields["id"])
            self._lately.append(fields)

    def _next(self, quotes: Sequence[Mapping[str, Any]], now_ms: int) -> dict[str, str]:
        """A new signal, or an earlier one: word for word, or its id with a new side and price."""
        chance = self._chance
        if self._lately and chance.random() < self._world.again:
            earlier = chance.choice(self._lately)
            if chance.random() < 0.5:
                return earlier
            return signal_fields(chance, earlier["id"], quotes, now_ms, self._world.distance)
        self._number += 1
        name = f"chaos-{self._run}-{self._number}"
        return signal_fields(chance, name, quotes, now_ms, self._world.distance)

    def halt(self) -> None:
        """No signal after this returns."""
        self._over.set()
        self.join(universe.HTTP_TIMEOUT_S * 3)
        self._r.close()
