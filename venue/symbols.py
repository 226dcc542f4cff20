"""What the venue lists: names, digits, filters, brackets; pure data, nothing of the market in it.

A price is an integer of points (10**-price_digits), a quantity an integer of units
(10**-qty_digits): exact, and cheap to print. Decimals appear only where an account is touched.
The first twenty are the product's fallback universe under their real names with plausible
scales; the others are called SIM021USDT and so on, so that nobody takes them for real.
"""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from functools import cached_property
from typing import Any

SYMBOLS_MAX = 1000
MAX_ORDERS = 200  # open orders of one symbol, and conditional orders over all symbols
PRICE_BOUND = Decimal("0.05")  # PERCENT_PRICE and marketTakeBound: 5 % around the mark
FUNDING_RATE_E8 = 10_000  # 0.0001 per interval, the interest component alone
DELIVERY_MS, ONBOARD_MS = 4_133_404_800_000, 1_567_965_300_000  # never, and 2019
FUNDING_INTERVAL_MS = 8 * 3_600_000
ORDER_TYPES = (
    "LIMIT",
    "MARKET",
    "STOP",
    "STOP_MARKET",
    "TAKE_PROFIT",
    "TAKE_PROFIT_MARKET",
    "TRAILING_STOP_MARKET",
)
# maker, taker by VIP tier
FEE_TIERS = tuple(
    (Decimal(maker) / 100, Decimal(taker) / 100)
    for maker, taker in (
        ("0.0200", "0.0500"),
        ("0.0160", "0.0400"),
        ("0.0140", "0.0350"),
        ("0.0120", "0.0320"),
        ("0.0100", "0.0300"),
        ("0.0080", "0.0270"),
        ("0.0060", "0.0250"),
        ("0.0040", "0.0220"),
        ("0.0020", "0.0200"),
        ("0.0000", "0.0170"),
    )
)
# notional cap, maintenance rate, leverage max; the floor of a bracket is the cap before it
BRACKETS_MAJOR = (
    (300_000, "0.004", 150),
    (800_000, "0.005", 100),
    (3_000_000, "0.0065", 75),
    (12_000_000, "0.01", 50),
    (70_000_000, "0.02", 25),
    (100_000_000, "0.025", 20),
    (230_000_000, "0.05", 10),
    (480_000_000, "0.1", 5),
    (600_000_000, "0.125", 4),
    (800_000_000, "0.15", 3),
    (1_200_000_000, "0.25", 2),
    (1_800_000_000, "0.5", 1),
)
BRACKETS_MINOR = (
    (50_000, "0.01", 75),
    (200_000, "0.015", 50),
    (1_000_000, "0.02", 25),
    (5_000_000, "0.05", 10),
    (20_000_000, "0.125", 4),
    (50_000_000, "0.25", 2),
    (100_000_000, "0.5", 1),
)


@dataclass(frozen=True, slots=True)
class Bracket:
    """One step of the margin ladder; `cum` makes maintenance continuous across the steps."""

    floor: Decimal
    cap: Decimal
    mmr: Decimal
    leverage_max: int
    cum: Decimal


def ladder(rows: tuple[tuple[int, str, int], ...]) -> tuple[Bracket, ...]:
    """cum_n = floor_n * (mmr_n - mmr_n-1) + cum_n-1."""
    out: list[Bracket] = []
    floor, mmr_before, cum = Decimal(0), Decimal(0), Decimal(0)
    for cap, mmr_text, leverage in rows:
        mmr = Decimal(mmr_text)
        if out:
            cum += floor * (mmr - mmr_before)
        out.append(Bracket(floor, Decimal(cap), mmr, leverage, cum))
        floor, mmr_before = Decimal(cap), mmr
    return tuple(out)


MAJOR = ladder(BRACKETS_MAJOR)
MINOR = ladder(BRACKETS_MINOR)
assert MAJOR[-1].cum == Decimal(421_482_000)


@dataclass(frozen=True, slots=True)
class Filters:
    """What another exchange's listing says where ours follows a rule."""

    step: Decimal
    price_min: Decimal
    price_max: Decimal
    qty_max: Decimal
    qty_max_market: Decimal
    percent_up: Decimal
    percent_down: Decimal
    take_bound: Decimal


@dataclass(frozen=True)
class Symbol:
    """One listing. `price` is its scale at birth, `weight` its share of the market's activity."""

    index: int
    name: str
    base: str
    price: Decimal
    price_digits: int
    tick_points: int
    qty_digits: int
    qty_mean: Decimal
    min_notional: Decimal
    weight: float
    filters: Filters | None = None

    @cached_property
    def point(self) -> Decimal:
        return Decimal(1).scaleb(-self.price_digits)

    @cached_property
    def unit(self) -> Decimal:
        return Decimal(1).scaleb(-self.qty_digits)

    @cached_property
    def tick(self) -> Decimal:
        return self.point * self.tick_points

    @cached_property
    def step(self) -> Decimal:
        return self.filters.step if self.filters else self.unit

    @cached_property
    def liquidation_fee(self) -> Decimal:
        """Share of the notional."""
        return Decimal("0.0125" if self.brackets is MAJOR else "0.015")

    @cached_property
    def price_min(self) -> Decimal:
        return self.filters.price_min if self.filters else self.tick

    @cached_property
    def price_max(self) -> Decimal:
        if self.filters:
            return self.filters.price_max
        return (self.price * 50).quantize(self.point) // self.tick * self.tick

    @cached_property
    def qty_max(self) -> Decimal:
        if self.filters:
            return self.filters.qty_max
        return (self.qty_mean * 20_000).quantize(self.unit)

    @cached_property
    def qty_max_market(self) -> Decimal:
        if self.filters:
            return self.filters.qty_max_market
        return (self.qty_mean * 2_400).quantize(self.unit)

    @cached_property
    def percent_up(self) -> Decimal:
        """A BUY may be priced at most at mark times this."""
        return self.filters.percent_up if self.filters else 1 + PRICE_BOUND

    @cached_property
    def percent_down(self) -> Decimal:
        return self.filters.percent_down if self.filters else 1 - PRICE_BOUND

    @cached_property
    def take_bound(self) -> Decimal:
        """How far from the mark a MARKET order takes."""
        return self.filters.take_bound if self.filters else PRICE_BOUND

    @cached_property
    def brackets(self) -> tuple[Bracket, ...]:
        return MAJOR if self.name in ("BTCUSDT", "ETHUSDT") else MINOR

    def price_of(self, points: int) -> Decimal:
        return Decimal(points).scaleb(-self.price_digits)

    def qty_of(self, units: int) -> Decimal:
        return Decimal(units).scaleb(-self.qty_digits)


#   name   price     digits tick qty_digits mean qty   weight
_REAL = (
    ("BTC", "61800.00", 2, 10, 3, "0.060", 3.0),
    ("ETH", "2650.00", 2, 1, 3, "0.900", 2.4),
    ("SOL", "155.00", 2, 1, 1, "12", 1.8),
    ("XRP", "0.61000", 5, 5, 1, "2000", 1.5),
    ("BNB", "515.00", 2, 2, 2, "2.5", 1.2),
    ("DOGE", "0.105000", 6, 10, 0, "9000", 1.3),
    ("ADA", "0.340000", 6, 20, 0, "2500", 0.9),
    ("LINK", "10.5000", 4, 10, 1, "70", 0.9),
    ("AVAX", "24.0000", 4, 10, 1, "35", 0.9),
    ("LTC", "62.00", 2, 1, 2, "10", 0.7),
    ("TRX", "0.128000", 6, 10, 0, "6000", 0.7),
    ("DOT", "4.7000", 4, 5, 1, "140", 0.7),
    ("BCH", "340.00", 2, 2, 2, "2", 0.7),
    ("NEAR", "4.1000", 4, 5, 1, "160", 0.7),
    ("UNI", "6.4000", 4, 5, 1, "100", 0.6),
    ("APT", "6.2000", 4, 5, 1, "110", 0.6),
    ("ARB", "0.550000", 6, 50, 0, "1200", 0.6),
    ("OP", "1.4500", 4, 1, 1, "450", 0.6),
    ("SUI", "1.0200", 4, 1, 1, "650", 0.7),
    ("FIL", "3.7000", 4, 5, 1, "180", 0.5),
)


def _simulated(index: int) -> Symbol:
    """Scales spread over five decades by a fixed rule, so that every digit count is met."""
    number = index + 1
    decade = (number * 7) % 5 - 1  # 0.1 .. 1000
    mantissa = 1 + (number * 37 % 90) / 10
    price_digits = 5 - max(-1, decade)
    price = Decimal(f"{mantissa * 10.0**decade:.{price_digits}f}")
    tick_points = 10 if mantissa > 2 else 5
    qty_digits = max(0, min(3, decade))
    qty_mean = max(Decimal(600) / price, Decimal(1).scaleb(-qty_digits) * 20)
    return Symbol(
        index,
        f"SIM{number:03d}USDT",
        f"SIM{number:03d}",
        price,
        price_digits,
        tick_points,
        qty_digits,
        qty_mean.quantize(Decimal(1).scaleb(-qty_digits)),
        Decimal(5),
        0.3 + (number * 13 % 10) / 20,
    )


def listing(count: int) -> tuple[Symbol, ...]:
    """The first `count` symbols of the venue, 1 to SYMBOLS_MAX."""
    assert 1 <= count <= SYMBOLS_MAX
    out = []
    for index in range(count):
        if index >= len(_REAL):
            out.append(_simulated(index))
            continue
        base, price, digits, tick, qty_digits, mean, weight = _REAL[index]
        least = Decimal(50 if base == "BTC" else 5)
        out.append(
            Symbol(
                index,
                base + "USDT",
                base,
                Decimal(price),
                digits,
                tick,
                qty_digits,
                Decimal(mean),
                least,
                weight,
            )
        )
    return tuple(out)


def fixed(value: Decimal, digits: int) -> str:
    """Plain decimal text with exactly so many digits: what REST shows."""
    return f"{value:.{digits}f}"


def plain(value: Decimal) -> str:
    """Shortest plain text: what the user stream shows."""
    text = f"{value:f}"
    return (text.rstrip("0").rstrip(".") or "0") if "." in text else text


def info_row(s: Symbol) -> dict[str, Any]:
    """One row of exchangeInfo, keys in wire order."""
    price, qty = s.price_digits, s.qty_digits
    return {
        "symbol": s.name,
        "pair": s.name,
        "contractType": "PERPETUAL",
        "deliveryDate": DELIVERY_MS,
        "onboardDate": ONBOARD_MS,
        "status": "TRADING",
        "maintMarginPercent": "2.5000",
        "requiredMarginPercent": "5.0000",
        "baseAsset": s.base,
        "quoteAsset": "USDT",
        "marginAsset": "USDT",
        "pricePrecision": price,
        "quantityPrecision": qty,
        "baseAssetPrecision": 8,
        "quotePrecision": 8,
        "underlyingType": "COIN",
        "underlyingSubType": ["PoW"] if s.base == "BTC" else ["Layer-1"],
        "triggerProtect": "0.0500",
        "liquidationFee": f"{s.liquidation_fee:.6f}",
        "marketTakeBound": f"{PRICE_BOUND:f}",
        "maxMoveOrderLimit": 10000,
        "filters": [
            {
                "filterType": "PRICE_FILTER",
                "minPrice": fixed(s.price_min, price),
                "maxPrice": fixed(s.price_max, price),
                "tickSize": fixed(s.tick, price),
            },
            {
                "filterType": "LOT_SIZE",
                "minQty": fixed(s.step, qty),
                "maxQty": fixed(s.qty_max, qty),
                "stepSize": fixed(s.step, qty),
            },
            {
                "filterType": "MARKET_LOT_SIZE",
                "minQty": fixed(s.step, qty),
                "maxQty": fixed(s.qty_max_market, qty),
                "stepSize": fixed(s.step, qty),
            },
            {"filterType": "MAX_NUM_ORDERS", "limit": MAX_ORDERS},
            {"filterType": "MIN_NOTIONAL", "notional": f"{s.min_notional:f}"},
            {
                "filterType": "PERCENT_PRICE",
                "multiplierUp": "1.0500",
                "multiplierDown": "0.9500",
                "multiplierDecimal": "4",
            },
            {"filterType": "POSITION_RISK_CONTROL", "positionControlSide": "NONE"},
        ],
        "orderTypes": list(ORDER_TYPES),
        "timeInForce": ["GTC", "IOC", "FOK", "GTX", "GTD"],
        "permissionSets": ["GRID", "COPY", "DCA", "PSB"],
    }
