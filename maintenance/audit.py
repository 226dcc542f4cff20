"""The venue's ledger against what must hold: pure checks, every sum exact.

`audit` walks the events once, in order, and knows the state at every prefix: how many positions
were open, whether each was protected by a resting closePosition stop, what the balance must be to
the last digit. A position that somebody else opened is theirs until it is flat or an order of ours
joins it: it counts in the balance alone. `compare` holds the result against what Redis says. A
violation is a sentence with its numbers; an empty list is the proof. Reading ledgers and Redis is
the caller's.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, Final

CENT: Final = Decimal("0.01")
ZERO: Final = Decimal(0)
STOP_TYPES: Final = ("STOP_MARKET", "STOP")
OURS: Final = "ag"  # client ids: ag + prefix 3 + cause 16 + leg letter + revision
_CAUSE: Final = slice(2, 21)  # prefix and cause: what two legs of one decision share
_LEG: Final = 21
VIOLATIONS_MAX: Final = 200  # a broken ledger breaks everything; the first ones tell

Event = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Holding:
    """One position from its first fill to flat."""

    symbol: str
    opened_ms: int  # wall
    closed_ms: int | None
    naked_ms: int  # wall time without a resting closePosition stop
    first_stop_ms: int | None  # wall time from the first fill to the first stop
    naked_spans: tuple[tuple[int, int], ...] = ()  # wall times that naked_ms is the sum of


@dataclass(frozen=True, slots=True)
class Audit:
    """What the ledger says. Quantities are signed: long is positive."""

    positions: Mapping[str, Decimal]
    balance: Decimal
    deposits: Decimal
    realised: Decimal
    fees: Decimal
    funding: Decimal
    holdings: tuple[Holding, ...]
    positions_max: int  # open at once, at any prefix
    orders: int  # accepted, stops and targets included
    entries: int  # entry orders that filled at least in part
    doubled: int  # client ids accepted twice, and second entries of one cause
    stops_placed: int
    fills: tuple[str, ...]  # symbol:trade_id in order
    round_trips: int
    violations: tuple[str, ...]

    @property
    def naked_ms_max(self) -> int:
        return max((holding.naked_ms for holding in self.holdings), default=0)


@dataclass(slots=True)
class _Open:
    """A position while the walk is inside it."""

    opened_ms: int
    naked_since_ms: int | None
    first_stop_ms: int | None = None
    naked_spans: list[tuple[int, int]] = field(default_factory=list)


@dataclass(slots=True)
class _Walk:
    positions_allowed: int
    positions: dict[str, Decimal] = field(default_factory=dict)
    stops: dict[str, set[str]] = field(default_factory=dict)  # symbol -> resting stop ids
    open: dict[str, _Open] = field(default_factory=dict)
    holdings: list[Holding] = field(default_factory=list)
    sums: dict[str, Decimal] = field(
        default_factory=lambda: dict.fromkeys(("deposit", "realised", "fee", "funding"), ZERO)
    )
    client_ids: set[str] = field(default_factory=set)
    entry_of_cause: dict[str, str] = field(default_factory=dict)
    entries_filled: set[str] = field(default_factory=set)
    fills: dict[str, None] = field(default_factory=dict)
    foreign: set[str] = field(default_factory=set)  # where the position is somebody else's
    foreign_fills: set[str] = field(default_factory=set)
    stops_placed: int = 0
    orders: int = 0
    doubled: int = 0
    positions_max: int = 0
    last_seq: int | None = None
    last_wall_ms: int = 0
    violations: list[str] = field(default_factory=list)

    def blame(self, event: Event, text: str) -> None:
        if len(self.violations) < VIOLATIONS_MAX:
            self.violations.append(f"seq {event.get('seq')}: {text}")

    @property
    def balance(self) -> Decimal:
        sums = self.sums
        return sums["deposit"] + sums["realised"] - sums["fee"] + sums["funding"]


def audit(events: Iterable[Event], positions_allowed: int, now_wall_ms: int | None = None) -> Audit:
    """Walk a ledger. `now_wall_ms` ends the naked time of a position that is still open."""
    walk = _Walk(positions_allowed)
    for event in events:
        _check_sequence(walk, event)
        handler = _HANDLERS.get(str(event.get("type")))
        if handler is not None:
            handler(walk, event)
    end_ms = walk.last_wall_ms if now_wall_ms is None else now_wall_ms
    for symbol, position in walk.open.items():
        walk.holdings.append(_holding(symbol, position, end_ms, closed=False))
    return Audit(
        positions={s: q for s, q in walk.positions.items() if q and s not in walk.foreign},
        balance=walk.balance,
        deposits=walk.sums["deposit"],
        realised=walk.sums["realised"],
        fees=walk.sums["fee"],
        funding=walk.sums["funding"],
        holdings=tuple(walk.holdings),
        positions_max=walk.positions_max,
        orders=walk.orders,
        entries=len(walk.entries_filled),
        doubled=walk.doubled,
        stops_placed=walk.stops_placed,
        fills=tuple(fill for fill in walk.fills if fill not in walk.foreign_fills),
        round_trips=sum(holding.closed_ms is not None for holding in walk.holdings),
        violations=tuple(walk.violations),
    )


def leg_of(client_id: str) -> str:
    """e entry, s stop, t target, c emergency close, x exit; empty for a foreign id."""
    return client_id[_LEG] if client_id.startswith(OURS) and len(client_id) > _LEG else ""


def _check_sequence(walk: _Walk, event: Event) -> None:
    seq, wall_ms = int(event["seq"]), int(event.get("wall_ms", 0))
    if walk.last_seq is not None and seq != walk.last_seq + 1:
        walk.blame(event, f"ledger jumps from {walk.last_seq} to {seq}")
    walk.last_seq = seq
    walk.last_wall_ms = max(walk.last_wall_ms, wall_ms)


def _on_deposit(walk: _Walk, event: Event) -> None:
    """Deposits, withdrawals (negative) and what the insurance fund paid."""
    if event.get("asset", "USDT") != "USDT":
        return
    walk.sums["deposit"] += _decimal(event["amount"])


def _on_funding(walk: _Walk, event: Event) -> None:
    walk.sums["funding"] += _decimal(event["amount"])


def _on_order_new(walk: _Walk, event: Event) -> None:
    if event.get("algo"):
        return  # the order that a triggered algo became carries its client id
    _check_client_id(walk, event)
    if _is_stop(event):
        _rest_stop(walk, event, str(event.get("order_id")))


def _on_algo_new(walk: _Walk, event: Event) -> None:
    _check_client_id(walk, event)
    if _is_stop(event):
        _rest_stop(walk, event, str(event.get("algo_id")))


def _check_client_id(walk: _Walk, event: Event) -> None:
    walk.orders += 1
    client_id = str(event.get("client_id", ""))
    if not client_id.startswith(OURS):
        return
    if client_id in walk.client_ids:
        walk.doubled += 1
        walk.blame(event, f"client id {client_id} was accepted twice")
    walk.client_ids.add(client_id)
    if leg_of(client_id) == "e":
        cause = client_id[_CAUSE]
        first = walk.entry_of_cause.setdefault(cause, client_id)
        if first != client_id:
            walk.doubled += 1
            walk.blame(event, f"two entries of one cause: {first} and {client_id}")


def _is_stop(event: Event) -> bool:
    return event.get("order_type") in STOP_TYPES and _true(event.get("close_position"))


def _rest_stop(walk: _Walk, event: Event, stop_id: str) -> None:
    symbol = _place(event)
    walk.stops_placed += 1
    walk.stops.setdefault(symbol, set()).add(stop_id)
    position = walk.open.get(symbol)
    if position is None:
        return
    wall_ms = int(event["wall_ms"])
    if position.first_stop_ms is None:
        position.first_stop_ms = wall_ms - position.opened_ms
    if position.naked_since_ms is not None:
        position.naked_spans.append((position.naked_since_ms, wall_ms))
        position.naked_since_ms = None


def _on_stop_gone(walk: _Walk, event: Event) -> None:
    stop_id = str(event.get("algo_id", event.get("order_id")))
    for symbol, resting in walk.stops.items():
        if stop_id in resting:
            resting.discard(stop_id)
            position = walk.open.get(symbol)
            if position is not None and not resting and position.naked_since_ms is None:
                position.naked_since_ms = int(event["wall_ms"])


def _place(event: Event) -> str:
    """Where a position stands: its symbol, with its side in hedge mode."""
    side = event.get("position_side", "BOTH")
    return str(event["symbol"]) if side == "BOTH" else f"{event['symbol']}:{side}"


def _on_trade(walk: _Walk, event: Event) -> None:
    symbol, qty = _place(event), _decimal(event["qty"])
    fill = f"{event['symbol']}:{event['trade_id']}"
    if fill in walk.fills:
        walk.blame(event, f"trade {fill} stands twice in the ledger")
    walk.fills[fill] = None
    walk.sums["realised"] += _decimal(event["realised"])
    if event.get("fee_asset", "USDT") == "USDT":
        walk.sums["fee"] += _decimal(event["fee"])
    before = walk.positions.get(symbol, ZERO)
    after = before + (qty if str(event["side"]).upper() == "BUY" else -qty)
    walk.positions[symbol] = after
    if leg_of(str(event.get("client_id", ""))) == "e":
        walk.entries_filled.add(str(event["client_id"]))
    if "position_after" in event and _decimal(event["position_after"]) != after:
        walk.blame(event, f"{symbol} position is {event['position_after']}, fills make it {after}")
    if "balance_after" in event and _decimal(event["balance_after"]) != walk.balance:
        walk.blame(event, f"balance is {event['balance_after']}, events make it {walk.balance}")
    if _is_foreign(walk, event, symbol, before):
        walk.foreign_fills.add(fill)
        if after == 0:
            walk.foreign.discard(symbol)
        return
    _open_or_close(walk, event, symbol, before, after)


def _is_foreign(walk: _Walk, event: Event, symbol: str, before: Decimal) -> bool:
    """Does this trade concern a position that is not ours?"""
    if str(event.get("client_id", "")).startswith(OURS):
        walk.foreign.discard(symbol)
    elif before == 0:
        walk.foreign.add(symbol)
    return symbol in walk.foreign


def _open_or_close(walk: _Walk, event: Event, symbol: str, before: Decimal, after: Decimal) -> None:
    wall_ms = int(event["wall_ms"])
    flips = before != 0 and after != 0 and (before > 0) != (after > 0)
    if before != 0 and (after == 0 or flips):
        position = walk.open.pop(symbol)
        walk.holdings.append(_holding(symbol, position, wall_ms, closed=True))
    if after != 0 and (before == 0 or flips):
        stopped = bool(walk.stops.get(symbol))
        walk.open[symbol] = _Open(
            wall_ms, None if stopped else wall_ms, first_stop_ms=0 if stopped else None
        )
    if len(walk.open) > walk.positions_max:
        walk.positions_max = len(walk.open)
        if walk.positions_max > walk.positions_allowed:
            names = ", ".join(sorted(walk.open))
            walk.blame(event, f"{walk.positions_max} positions at once: {names}")


def _holding(symbol: str, position: _Open, end_ms: int, *, closed: bool) -> Holding:
    spans = list(position.naked_spans)
    if position.naked_since_ms is not None:
        spans.append((position.naked_since_ms, max(end_ms, position.naked_since_ms)))
    return Holding(
        symbol,
        position.opened_ms,
        end_ms if closed else None,
        sum(end - start for start, end in spans),
        position.first_stop_ms,
        tuple(spans),
    )


_HANDLERS: Final = {
    "deposit": _on_deposit,
    "withdraw": _on_deposit,
    "insurance": _on_deposit,
    "funding": _on_funding,
    "order_new": _on_order_new,
    "order_done": _on_stop_gone,
    "algo_new": _on_algo_new,
    "algo_triggered": _on_stop_gone,
    "algo_done": _on_stop_gone,
    "trade": _on_trade,
}


def check_protection(result: Audit, naked_ms_max: int) -> list[str]:
    """Every position was stopped or flat within the limit."""
    return [
        f"{holding.symbol} was naked for {holding.naked_ms} ms, limit {naked_ms_max} ms"
        for holding in result.holdings
        if holding.naked_ms > naked_ms_max
    ]


def compare(
    result: Audit,
    positions: Mapping[str, Decimal],
    fills: Iterable[str],
    wallet: Decimal | None,
    fill_sums: Mapping[str, Decimal],
) -> list[str]:
    """The venue's ledger against Redis: positions, fills by trade id, what fills sum to, balance.

    `fills` are symbol:trade_id as recorded; `fill_sums` signed quantities summed over them.
    """
    wrong: list[str] = []
    for symbol in sorted({*result.positions, *positions, *fill_sums}):
        there = result.positions.get(symbol, ZERO)
        for who, held in (("positions", positions), ("fills", fill_sums)):
            here = held.get(symbol, ZERO)
            if here != there:
                wrong.append(f"{symbol}: the venue holds {there}, {who} in Redis say {here}")
    recorded = list(fills)
    known, at_venue = set(recorded), set(result.fills)
    wrong += [f"fill {fill} is missing in Redis" for fill in result.fills if fill not in known]
    wrong += [f"fill {fill} is unknown to the venue" for fill in sorted(known - at_venue)]
    if len(recorded) != len(known):
        wrong.append(f"{len(recorded) - len(known)} fills stand twice in Redis")
    if wallet is None:
        wrong.append("Redis has no wallet balance")
    elif wallet.quantize(CENT) != result.balance.quantize(CENT):
        wrong.append(f"wallet is {wallet} in Redis, {result.balance} at the venue")
    return wrong[:VIOLATIONS_MAX]


def _decimal(value: Any) -> Decimal:
    return Decimal(str(value))


def _true(value: Any) -> bool:
    return value is True or str(value).lower() == "true"
