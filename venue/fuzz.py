"""Payloads as the exchange sends them on its worse days, and a little beyond: for decoders.

What is told stays true: every value of every payload is still there. Added are

- keys that nobody knows, of any type, anywhere in an object of the data;
- `X` "NA" frames of price and quantity 0 among single trades, with the id of the trade before;
- rows of a foreign market (`st` 2) in the arrays of all symbols, and beside all best quotes;
- arrays in two frames, as the exchange does it with all marks; candles written with spaces.

The dice are the caller's: one seed, one market and one listener make the same frames again.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from typing import Any

import orjson

from venue.recording import payloads
from venue.wire import text_frame

UNKNOWN_SHARE = 0.1  # of objects
NA_SHARE = 0.02  # of single trades
SPACED_SHARE = 0.05  # of candles
FOREIGN = ("BTCUSD_PERP", "ETHUSD_PERP", "BTCUSD_261225")
KEYS = ("zz", "_", "x1", "Ω", "e2")
VALUES: tuple[Any, ...] = (0, -1.5, "", "84551.10", None, True, [], [1, {"s": "X"}], {"e": "trade"})


def with_unknown(row: dict[str, Any], dice: random.Random) -> dict[str, Any]:
    """The row with perhaps one key more, at any place but the first: `e` stays in front."""
    if dice.random() >= UNKNOWN_SHARE:
        return row
    items = list(row.items())
    items.insert(dice.randint(1, len(items)), (dice.choice(KEYS), dice.choice(VALUES)))
    return dict(items)


def foreign(row: dict[str, Any], name: str) -> dict[str, Any]:
    """The row as another market would have it."""
    changed = {"s": name, "ps": name.partition("_")[0], "st": 2}
    return {key: changed.get(key, value) for key, value in row.items()} | {"st": 2}


def spoiled(data: Any, dice: random.Random) -> list[Any]:
    """One payload as one or two."""
    if isinstance(data, list):
        rows = [*data, *(foreign(data[-1], name) for name in FOREIGN if data)]
        rows = [with_unknown(row, dice) for row in rows]
        cut = dice.randint(1, len(rows) - 1) if len(rows) > 1 else len(rows)
        return [part for part in (rows[:cut], rows[cut:]) if part]
    if "e" not in data:
        return [data]
    out = [with_unknown(data, dice)]
    if data["e"] == "trade" and dice.random() < NA_SHARE:
        out.append(data | {"p": "0", "q": "0", "X": "NA"})
    return out


def _text(payload: Any, dice: random.Random) -> bytes:
    data = payload.get("data", payload) if isinstance(payload, dict) else payload
    if isinstance(data, dict) and "k" in data and dice.random() < SPACED_SHARE:
        return json.dumps(payload).encode()
    return orjson.dumps(payload)


def fuzzer(seed: int) -> Callable[[bytes], bytes]:
    """A function of whole frames that gives whole frames. Market data only."""
    dice = random.Random(seed)

    def fuzz(frames: bytes) -> bytes:
        out = []
        for text in payloads(frames):
            payload = orjson.loads(text)
            combined = isinstance(payload, dict) and "stream" in payload
            for data in spoiled(payload["data"] if combined else payload, dice):
                told = {"stream": payload["stream"], "data": data} if combined else data
                out.append(text_frame(_text(told, dice)))
            if combined and payload["stream"] == "!bookTicker" and dice.random() < UNKNOWN_SHARE:
                told = payload | {"data": foreign(payload["data"], FOREIGN[0])}
                out.append(text_frame(_text(told, dice)))
        return b"".join(out)

    return fuzz
