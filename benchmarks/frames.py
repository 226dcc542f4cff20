"""aggTrade and bookTicker frames in wire order: many symbols, each with digits of its own.

Trades are drawn by 1 / rank of the symbol, roughly as the market does; ids of a symbol are
consecutive. The same seed gives the same frames. Standard library only.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence
from typing import Final

BASES: Final = (
    *("BTC", "ETH", "SOL", "XRP", "DOGE", "BNB", "ADA", "AVAX", "LINK", "SUI", "1000PEPE"),
    *("LTC", "BCH", "DOT", "UNI", "NEAR", "APT", "ARB", "OP", "TRX"),
)
T0_MS: Final = 1_795_000_000_000


def symbol_names(count: int) -> list[str]:
    """BTCUSDT, ETHUSDT, …, C020USDT, …"""
    bases = [*BASES] + [f"C{rank:03d}" for rank in range(len(BASES), count)]
    return [f"{base}USDT" for base in bases[:count]]


def decimal_text(units: int, digits: int) -> str:
    return f"{units // 10**digits}.{units % 10**digits:0{digits}d}" if digits else str(units)


def agg_trades(
    count: int, symbols: int, seed: int = 1, wrapped: bool = True
) -> tuple[list[bytes], float]:
    """(payloads, sum of their prices as doubles, added in order)."""
    rng = random.Random(seed)
    names = symbol_names(symbols)
    digits = [rng.choice((1, 2, 3, 4, 5)) for _ in names]
    qty_digits = [rng.choice((0, 1, 2, 3)) for _ in names]
    price = [rng.randint(10_000, 900_000) for _ in names]
    ids = [rng.randint(10**8, 10**10) for _ in names]
    weights = list(itertools.accumulate(1.0 / (rank + 1) for rank in range(symbols)))
    payloads, total = [], 0.0
    for number, row in enumerate(rng.choices(range(symbols), cum_weights=weights, k=count)):
        price[row] = max(1_000, price[row] + rng.randrange(-3, 4))
        ids[row] += 1
        text = decimal_text(price[row], digits[row])
        qty = decimal_text(rng.randint(1, 5_000), qty_digits[row])
        at_ms = T0_MS + number // 20
        event = (
            f'{{"e":"aggTrade","E":{at_ms + 118},"a":{ids[row]},"s":"{names[row]}","p":"{text}",'
            f'"q":"{qty}","nq":"{qty}","f":{ids[row] * 2},"l":{ids[row] * 2 + 1},"T":{at_ms},'
            f'"m":{"true" if rng.random() < 0.5 else "false"},"st":1}}'
        )
        if wrapped:
            event = f'{{"stream":"{names[row].lower()}@aggTrade","data":{event}}}'
        payloads.append(event.encode())
        total += float(text)
    return payloads, total


def book_tickers(count: int, symbols: int, seed: int = 1) -> tuple[list[bytes], float]:
    """(payloads, sum of the bids)."""
    rng = random.Random(seed)
    names = symbol_names(symbols)
    digits = [rng.choice((1, 2, 3, 4, 5)) for _ in names]
    price = [rng.randint(10_000, 900_000) for _ in names]
    payloads, total = [], 0.0
    for number in range(count):
        row = rng.randrange(symbols)
        price[row] = max(1_000, price[row] + rng.randrange(-3, 4))
        bid = decimal_text(price[row], digits[row])
        ask = decimal_text(price[row] + 1, digits[row])
        at_ms = T0_MS + number // 20
        event = (
            f'{{"e":"bookTicker","u":{11_671_659_685_961 + number},"s":"{names[row]}",'
            f'"ps":"{names[row]}","b":"{bid}","B":"{rng.randint(1, 9_999) / 1000}","a":"{ask}",'
            f'"A":"{rng.randint(1, 9_999) / 1000}","T":{at_ms},"E":{at_ms + 1},"st":1}}'
        )
        payloads.append(f'{{"stream":"{names[row].lower()}@bookTicker","data":{event}}}'.encode())
        total += float(bid)
    return payloads, total


def framed(payloads: Sequence[bytes]) -> bytes:
    """As the exchange sends them: unmasked text frames, one after the other."""
    parts = []
    for payload in payloads:
        size = len(payload)
        head = bytes([0x81, size]) if size < 126 else b"\x81\x7e" + size.to_bytes(2, "big")
        parts += [head, payload]
    return b"".join(parts)
