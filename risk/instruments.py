"""What the exchange allows per symbol: ticks, steps, minimums, brackets; all in exact decimals.

A float ends here. Prices are rounded to the tick in a stated direction, quantities only ever
down to the step: rounding a quantity up would take a risk that nobody approved.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from decimal import ROUND_CEILING, ROUND_FLOOR, ROUND_HALF_EVEN, Decimal
from typing import Any

from msgspec import Struct

ZERO = Decimal(0)
ONE = Decimal(1)


def plain(number: Decimal) -> str:
    """Digits without an exponent and without needless zeros: what goes to exchange and Redis."""
    if not number:
        return "0"
    text = format(number, "f")
    return text.rstrip("0").rstrip(".") if "." in text else text


def decimal(text: object, default: Decimal = ZERO) -> Decimal:
    """A Decimal from the exchange's or Redis's text; the default when there is none."""
    return Decimal(str(text)) if text not in (None, "") else default


class Bracket(Struct, frozen=True):
    """Up to `notional_max` of position, at most `leverage_max`; maintenance margin `mmr`."""

    notional_max: Decimal
    leverage_max: int
    mmr: Decimal


class Instrument(Struct, frozen=True):
    """One symbol's rules."""

    symbol: str
    status: str
    tick: Decimal
    price_min: Decimal
    price_max: Decimal
    step: Decimal
    qty_min: Decimal
    qty_max: Decimal
    market_qty_max: Decimal
    notional_min: Decimal
    up: Decimal  # PERCENT_PRICE: a BUY limit at most mark * up
    down: Decimal  # a SELL limit at least mark * down
    brackets: tuple[Bracket, ...] = ()

    def floor_qty(self, qty: Decimal) -> Decimal:
        return floor_to(qty, self.step)

    def nearest_price(self, price: Decimal) -> Decimal:
        return (price / self.tick).to_integral_value(ROUND_HALF_EVEN) * self.tick

    def floor_price(self, price: Decimal) -> Decimal:
        return floor_to(price, self.tick)

    def ceil_price(self, price: Decimal) -> Decimal:
        return (price / self.tick).to_integral_value(ROUND_CEILING) * self.tick

    def leverage_at(self, notional: Decimal) -> int:
        """The highest leverage the exchange allows for a position of this notional; 0 if none."""
        for bracket in self.brackets:
            if notional <= bracket.notional_max:
                return bracket.leverage_max
        return 0 if self.brackets else 1

    def mmr_at(self, notional: Decimal) -> Decimal:
        for bracket in self.brackets:
            if notional <= bracket.notional_max:
                return bracket.mmr
        return self.brackets[-1].mmr if self.brackets else ZERO


def floor_to(number: Decimal, unit: Decimal) -> Decimal:
    return (number / unit).to_integral_value(ROUND_FLOOR) * unit


def parse_instrument(
    row: Mapping[str, Any], brackets: Sequence[Mapping[str, Any]] = ()
) -> Instrument:
    """From a symbol of GET /fapi/v1/exchangeInfo and its rows of /fapi/v1/leverageBracket."""
    filters = {entry["filterType"]: entry for entry in row["filters"]}
    price, lot = filters["PRICE_FILTER"], filters["LOT_SIZE"]
    market = filters.get("MARKET_LOT_SIZE", lot)
    notional = filters.get("MIN_NOTIONAL", {})
    percent = filters.get("PERCENT_PRICE", {})
    rows = sorted(brackets, key=lambda entry: float(entry["notionalCap"]))
    return Instrument(
        symbol=row["symbol"],
        status=row.get("status", "TRADING"),
        tick=Decimal(price["tickSize"]),
        price_min=Decimal(price["minPrice"]),
        price_max=Decimal(price["maxPrice"]),
        step=Decimal(lot["stepSize"]),
        qty_min=Decimal(lot["minQty"]),
        qty_max=Decimal(lot["maxQty"]),
        market_qty_max=Decimal(market["maxQty"]),
        notional_min=decimal(notional.get("notional")),
        up=decimal(percent.get("multiplierUp"), Decimal("1.05")),
        down=decimal(percent.get("multiplierDown"), Decimal("0.95")),
        brackets=tuple(
            Bracket(
                decimal(entry["notionalCap"]),
                int(entry["initialLeverage"]),
                decimal(entry["maintMarginRatio"]),
            )
            for entry in rows
        ),
    )


def parse_instruments(
    info: Mapping[str, Any], brackets: Sequence[Mapping[str, Any]]
) -> dict[str, Instrument]:
    """All symbols of exchangeInfo; one whose filters cannot be read is left out."""
    by_symbol = {row["symbol"]: row["brackets"] for row in brackets}
    made: dict[str, Instrument] = {}
    for row in info["symbols"]:
        known = {entry.get("filterType") for entry in row.get("filters", ())}
        if {"PRICE_FILTER", "LOT_SIZE"} <= known:
            made[row["symbol"]] = parse_instrument(row, by_symbol.get(row["symbol"], ()))
    return made
