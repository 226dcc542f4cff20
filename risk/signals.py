"""A signal as risk reads it: the public contract of the `signals` stream, validated.

Anybody may XADD one. What cannot be understood is told in one sentence and set aside; what can be
is a frozen `Signal` in exact decimals, whose stop lies on the losing side and whose target on the
winning one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from decimal import Decimal

from msgspec import Struct

NS_PER_MS = 1_000_000
ID_CHARS_MAX = 64
WHY_CHARS_MAX = 200
ZERO = Decimal(0)
PRICE_MIN, PRICE_END = Decimal("1e-12"), Decimal("1e12")  # beyond them arithmetic may overflow
TIME_END_MS = 1e14  # the year 5138
NEEDED = ("id", "symbol", "side", "price", "stop", "target")


class Signal(Struct, frozen=True):
    """What somebody wants to trade, and why."""

    id: str
    symbol: str
    side: str  # buy or sell
    price: Decimal
    stop: Decimal
    target: Decimal
    rule: str
    timeframe: str
    confidence: float
    breakeven: float
    quality: float
    made_ms: float  # market time of the tick that made it
    expires_ms: float  # market time; infinite when the sender named none
    reason: str
    model: str
    world: str
    atr: Decimal = ZERO  # of its timeframe, in price; zero when the sender named none
    bid: Decimal = ZERO  # the best prices that the sender saw; zero when it named none
    ask: Decimal = ZERO
    quoted_ms: float = 0.0  # market time of them

    @property
    def sign(self) -> int:
        return 1 if self.side == "buy" else -1


def _price(fields: Mapping[str, str], name: str) -> Decimal:
    value = Decimal(fields[name])
    if not value.is_finite() or not PRICE_MIN <= value < PRICE_END:
        raise ValueError(f"{name} {fields[name]} is not a price")
    return value


def _market_ms(fields: Mapping[str, str], name: str) -> float:
    value = int(fields.get(name) or 0) / NS_PER_MS
    if not 0.0 <= value < TIME_END_MS:
        raise ValueError(f"{name} {fields.get(name)} is not a time")
    return value


def _expires_ms(fields: Mapping[str, str]) -> float:
    value = float(fields.get("expires_ms") or "inf")
    if value != math.inf and not 0.0 <= value < TIME_END_MS:
        raise ValueError(f"expires_ms {fields.get('expires_ms')} is not a time")
    return value


def _share(fields: Mapping[str, str], name: str, default: float) -> float:
    value = float(fields.get(name) or default)
    if not math.isfinite(value) or not 0.0 <= value <= 1.0:
        raise ValueError(f"{name} {fields.get(name)} is not within 0 and 1")
    return value


def parse_signal(fields: Mapping[str, str]) -> Signal | str:
    """A Signal, or the sentence why this is none. Unknown fields are ignored."""
    missing = [name for name in NEEDED if not fields.get(name)]
    if missing:
        return f"signal without {' '.join(missing)}"
    try:
        signal = Signal(
            id=fields["id"],
            symbol=fields["symbol"],
            side=fields["side"],
            price=_price(fields, "price"),
            stop=_price(fields, "stop"),
            target=_price(fields, "target"),
            rule=fields.get("rule", ""),
            timeframe=fields.get("timeframe", ""),
            confidence=_share(fields, "confidence", 0.5),
            breakeven=_share(fields, "breakeven", 0.0),
            quality=_share(fields, "quality", 1.0),
            made_ms=_market_ms(fields, "exch_ns"),
            expires_ms=_expires_ms(fields),
            reason=fields.get("reason", ""),
            model=fields.get("model", ""),
            world=fields.get("world", ""),
            atr=_price(fields, "atr") if fields.get("atr") else ZERO,
            bid=_price(fields, "bid") if fields.get("bid") else ZERO,
            ask=_price(fields, "ask") if fields.get("ask") else ZERO,
            quoted_ms=_market_ms(fields, "quote_ns"),
        )
    except (ValueError, ArithmeticError) as error:
        return f"signal {fields['id'][:ID_CHARS_MAX]}: {error}"[:WHY_CHARS_MAX]
    if len(signal.id) > ID_CHARS_MAX:
        return f"signal id longer than {ID_CHARS_MAX} characters"
    if signal.side not in ("buy", "sell"):
        return f"signal {signal.id}: side {signal.side!r} is neither buy nor sell"
    if not (signal.price - signal.stop) * signal.sign > 0:
        return f"signal {signal.id}: the stop is not on the losing side of the price"
    if not (signal.target - signal.price) * signal.sign > 0:
        return f"signal {signal.id}: the target is not on the winning side of the price"
    return signal
