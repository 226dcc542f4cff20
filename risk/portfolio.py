"""Positions, fills and money: each execution counted once, in exact decimals.

A position is what fills add up to; the exchange corrects it, never the other way round. Unrealised
profit is valued at the mark. Nothing here knows orders or Redis.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from decimal import Decimal
from typing import Any, Final

from msgspec import Struct
from msgspec.structs import replace

from risk.instruments import ZERO, decimal, plain

AVERAGE_UNIT: Final = Decimal("1e-12")  # of an average price: far below any tick
UNPROTECTED: Final = -1  # naked_ms while no stop was ever confirmed


class Fill(Struct, frozen=True):
    """One execution as the exchange told it. `order_id` is the exchange's."""

    symbol: str
    trade_id: int
    order_id: str
    client_id: str
    side: str
    price: Decimal
    qty: Decimal
    fee: Decimal
    fee_asset: str
    realised: Decimal
    maker: bool
    ms: int

    @property
    def key(self) -> str:
        return fill_key(self.symbol, self.trade_id)


def fill_key(symbol: str, trade_id: int | str) -> str:
    """What an execution is remembered by: trade ids are a symbol's own."""
    return f"{symbol}:{trade_id}"


def fill_from_push(o: Mapping[str, Any]) -> Fill:
    """From `o` of an ORDER_TRADE_UPDATE whose x is TRADE or CALCULATED."""
    return Fill(
        symbol=o["s"],
        trade_id=int(o["t"]),
        order_id=str(o["i"]),
        client_id=str(o["c"]),
        side=o["S"].lower(),
        price=decimal(o["L"]),
        qty=decimal(o["l"]),
        fee=decimal(o.get("n")),
        fee_asset=o.get("N") or "",
        realised=decimal(o.get("rp")),
        maker=bool(o.get("m")),
        ms=int(o["T"]),
    )


def fill_from_trade(row: Mapping[str, Any]) -> Fill:
    """From a row of GET /fapi/v1/userTrades, which knows no client id."""
    return Fill(
        symbol=row["symbol"],
        trade_id=int(row["id"]),
        order_id=str(row["orderId"]),
        client_id="",
        side=row["side"].lower(),
        price=decimal(row["price"]),
        qty=decimal(row["qty"]),
        fee=decimal(row["commission"]),
        fee_asset=row.get("commissionAsset") or "",
        realised=decimal(row.get("realizedPnl")),
        maker=bool(row.get("maker")),
        ms=int(row["time"]),
    )


class Position(Struct, frozen=True):
    """One open round trip of ours. `stop_state` and `target_state`: none, sent, acked, gone."""

    symbol: str
    side: str
    signal: str  # the round trip's id
    qty: Decimal = ZERO
    entry: Decimal = ZERO  # average price of the fills that opened it
    stop: Decimal = ZERO
    target: Decimal = ZERO
    stop_order: str = ""
    stop_state: str = "none"
    stop_revision: int = 0
    target_order: str = ""
    target_state: str = "none"
    entry_order: str = ""
    exit_order: str = ""
    exit_reason: str = ""
    exits: int = 0  # exit orders sent; the next one's revision
    confidence: float = 0.5
    leverage: int = 1
    rule: str = ""
    opened_ms: int = 0  # market time of the first fill
    naked_ms: int = UNPROTECTED  # real milliseconds from the first fill to a confirmed stop
    realised: Decimal = ZERO
    fees: Decimal = ZERO
    exit_value: Decimal = ZERO  # sum of price x qty of the closing fills
    exit_qty: Decimal = ZERO
    quiet_price: Decimal = ZERO  # stagnation: the mark has stayed near this price ...
    quiet_since_ms: int = 0  # ... since this market time

    @property
    def sign(self) -> int:
        return 1 if self.side == "buy" else -1

    @property
    def signed_qty(self) -> Decimal:
        return self.qty * self.sign

    def unrealised(self, mark: Decimal) -> Decimal:
        return (mark - self.entry) * self.signed_qty


def fee_usdt(fill: Fill, marks: Mapping[str, Decimal]) -> Decimal:
    """What the fee was worth: one in BNB by the mark of BNBUSDT, nothing while that is unknown."""
    if fill.fee_asset in ("", "USDT"):
        return fill.fee
    return fill.fee * marks.get(f"{fill.fee_asset}USDT", ZERO)


def apply_fill(position: Position, fill: Fill) -> Position:
    """The position after one execution; a fill beyond its size leaves it at zero, not reversed."""
    fees = position.fees + fill.fee
    if fill.side == position.side:
        qty = position.qty + fill.qty
        entry = (position.entry * position.qty + fill.price * fill.qty) / qty
        entry = entry.quantize(AVERAGE_UNIT)
        opened_ms = position.opened_ms or fill.ms
        return replace(position, qty=qty, entry=entry, fees=fees, opened_ms=opened_ms)
    closed = min(fill.qty, position.qty)
    return replace(
        position,
        qty=position.qty - closed,
        fees=fees,
        realised=position.realised + fill.realised,
        exit_value=position.exit_value + fill.price * closed,
        exit_qty=position.exit_qty + closed,
    )


_DECIMALS: Final = (
    "qty",
    "entry",
    "stop",
    "target",
    "realised",
    "fees",
    "exit_value",
    "exit_qty",
    "quiet_price",
)
_INTEGERS: Final = (
    "stop_revision",
    "exits",
    "leverage",
    "opened_ms",
    "naked_ms",
    "quiet_since_ms",
)
_TEXTS: Final = (
    "symbol",
    "side",
    "signal",
    "stop_order",
    "stop_state",
    "target_order",
    "target_state",
    "entry_order",
    "exit_order",
    "exit_reason",
    "rule",
)


def to_fields(position: Position) -> dict[str, str]:
    """The position:<symbol> hash."""
    fields = {name: str(getattr(position, name)) for name in _TEXTS}
    fields |= {name: plain(getattr(position, name)) for name in _DECIMALS}
    fields |= {name: str(getattr(position, name)) for name in _INTEGERS}
    return fields | {"confidence": repr(position.confidence)}


def from_fields(fields: Mapping[str, str]) -> Position:
    """Inverse of to_fields; what is missing takes its default."""
    values: dict[str, Any] = {name: fields[name] for name in _TEXTS if name in fields}
    values |= {name: decimal(fields[name]) for name in _DECIMALS if name in fields}
    values |= {name: int(fields[name]) for name in _INTEGERS if fields.get(name)}
    return Position(**values, confidence=float(fields.get("confidence") or 0.5))


class Money(Struct, frozen=True):
    """The account's sums. `wallet` is the exchange's; the rest is ours since the first start."""

    wallet: Decimal = ZERO
    realised: Decimal = ZERO
    fees: Decimal = ZERO
    funding: Decimal = ZERO
    transfers: Decimal = ZERO
    other: Decimal = ZERO  # rebates and what an insurance fund paid
    trades_closed: int = 0
    wins: int = 0
    entries: int = 0
    fills: int = 0
    naked_ms_max: int = 0


def money_from_fields(fields: Mapping[str, str]) -> Money:
    return Money(
        wallet=decimal(fields.get("wallet")),
        realised=decimal(fields.get("realised")),
        fees=decimal(fields.get("fees")),
        funding=decimal(fields.get("funding")),
        transfers=decimal(fields.get("transfers")),
        other=decimal(fields.get("other")),
        trades_closed=int(fields.get("trades_closed") or 0),
        wins=int(fields.get("wins") or 0),
        entries=int(fields.get("entries") or 0),
        fills=int(fields.get("fills") or 0),
        naked_ms_max=int(fields.get("naked_ms_max") or 0),
    )


def unrealised(positions: Iterable[Position], marks: Mapping[str, Decimal]) -> Decimal:
    """Of all positions at their marks; one without a mark counts as zero."""
    return sum((p.unrealised(marks[p.symbol]) for p in positions if p.symbol in marks), start=ZERO)


def exposure(positions: Iterable[Position], marks: Mapping[str, Decimal]) -> Decimal:
    """Gross notional at the mark, at entry where no mark is known."""
    return sum((p.qty * marks.get(p.symbol, p.entry) for p in positions), start=ZERO)
