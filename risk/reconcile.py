"""The difference between what we believe and what the exchange says, as corrective actions.

Pure: the same function serves the start, a take-over and the Celery job, which builds our side
from the hashes and the other from the `exchange` snapshot. Carrying out every action once makes
the next difference empty. An action says what to look at or to do; risk checks each against its
present state before it does it, since a snapshot is old when it is read.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from decimal import Decimal
from typing import Any, Final

from msgspec import Struct, field

from risk import orders
from risk.instruments import ZERO, decimal, plain
from risk.orders import Order
from risk.portfolio import Position

CAUSE_END: Final = 21  # ag, three of the prefix, sixteen of the cause; leg and revision follow
NOT_SENT: Final = frozenset({"intent", "sent", "unknown"})


class Resting(Struct, frozen=True):
    """An open order on the exchange; `kind` is STOP_MARKET, TAKE_PROFIT_MARKET, LIMIT …"""

    id: str  # client id
    symbol: str
    side: str
    kind: str
    price: Decimal  # trigger, or limit
    closes_all: bool = False
    exchange_id: str = ""


class Snapshot(Struct, frozen=True):
    """The exchange's truth at one time. `positions`: signed quantity and entry price."""

    id: str
    started_ms: float  # boot time before the first request of it
    ms: int  # market time
    wallet: Decimal
    positions: Mapping[str, tuple[Decimal, Decimal]]
    orders: tuple[Resting, ...]
    algos: tuple[Resting, ...]
    settings: Mapping[str, tuple[int, bool]] = field(default_factory=dict)  # leverage, isolated
    margins: Mapping[str, Decimal] = field(default_factory=dict)  # of the positions


class Action(Struct, frozen=True):
    """One correction. `name` is one of NAMES."""

    name: str
    symbol: str
    order: str = ""
    amount: Decimal = ZERO
    price: Decimal = ZERO


NAMES: Final = {
    "foreign": "somebody else has a position or an order there: leave it alone",
    "own": "nobody else is there any more",
    "adopt": "a position of ours that we do not know: take it over and protect it",
    "settle": "sizes differ: fetch the trades, then believe the exchange",
    "stop": "a position of ours without its resident stop",
    "target": "a position of ours without its resident target",
    "query": "an order of ours whose fate is not known",
    "confirm": "a resident order of ours that we did not know to be there",
    "cancel": "a resident order of ours that protects nothing",
    "cancel_order": "an order of ours that should not rest",
}


def difference(
    positions: Mapping[str, Position],
    known: Mapping[str, Order],
    foreign: Iterable[str],
    snapshot: Snapshot,
    prefix: str,
) -> tuple[Action, ...]:
    """Actions that make us and the exchange agree; `prefix` starts our client ids."""
    actions: list[Action] = []
    ours_there = {s: a for s, (a, _) in snapshot.positions.items() if a != 0}
    adopted = _adoptions(positions, known, ours_there, snapshot, prefix)
    actions += adopted
    alive = {s for s, p in positions.items() if ours_there.get(s, ZERO) * p.sign > 0}
    ours = alive | {action.symbol for action in adopted}
    actions += _foreign(ours, set(foreign), ours_there, snapshot, prefix)
    for symbol, position in sorted(positions.items()):
        amount = ours_there.get(symbol, ZERO)
        if amount != position.signed_qty or position.qty == 0:  # 0: its trades were never told
            actions.append(Action("settle", symbol, amount=amount))
        if amount * position.sign > 0:
            actions += _protection(position, known, snapshot)
    actions += _resident(positions, known, ours_there, adopted, snapshot, prefix)
    actions += _unresolved(positions, known, snapshot, prefix)
    for resting in snapshot.orders:
        if resting.id.startswith(prefix):
            actions.append(Action("cancel_order", resting.symbol, resting.id))
    return tuple(actions)


def _live_entry(known: Mapping[str, Order], symbol: str) -> Order | None:
    """The entry on a symbol whose end is not known yet."""
    live = (o for o in known.values() if o.leg == orders.ENTRY_LEG and not o.terminal)
    return next((order for order in live if order.symbol == symbol), None)


def _adoptions(
    positions: Mapping[str, Position],
    known: Mapping[str, Order],
    there: Mapping[str, Decimal],
    snapshot: Snapshot,
    prefix: str,
) -> list[Action]:
    """Positions there that one of our unfinished entries, or a leg of ours at rest, explains."""
    made = []
    for symbol, amount in sorted(there.items()):
        if symbol in positions:
            continue
        side = "buy" if amount > 0 else "sell"
        entry = _live_entry(known, symbol)
        if entry is not None and entry.side == side:
            price = snapshot.positions[symbol][1]
            made.append(Action("adopt", symbol, entry.id, amount, price))
            continue
        for resting in snapshot.algos:
            ours = resting.id.startswith(prefix) and resting.kind == "STOP_MARKET"
            if ours and resting.symbol == symbol and resting.side != side:
                price = snapshot.positions[symbol][1]
                made.append(Action("adopt", symbol, resting.id, amount, price))
                break
    return made


def _foreign(
    ours: set[str],
    marked: set[str],
    there: Mapping[str, Decimal],
    snapshot: Snapshot,
    prefix: str,
) -> list[Action]:
    seen = {symbol for symbol in there if symbol not in ours}
    for resting in (*snapshot.orders, *snapshot.algos):
        if not resting.id.startswith(prefix) and resting.symbol not in ours:
            seen.add(resting.symbol)
    actions = [Action("foreign", symbol) for symbol in sorted(seen - marked)]
    return actions + [Action("own", symbol) for symbol in sorted(marked - seen)]


def _protection(position: Position, known: Mapping[str, Order], snapshot: Snapshot) -> list[Action]:
    """A stop that closes the whole position must rest; whose it is does not matter."""
    there = [
        resting
        for resting in snapshot.algos
        if resting.symbol == position.symbol
        and resting.side != position.side
        and resting.closes_all
    ]
    actions = []
    if not any(resting.kind == "STOP_MARKET" for resting in there):
        actions.append(Action("stop", position.symbol))
    if position.target > 0 and not any(r.kind == "TAKE_PROFIT_MARKET" for r in there):
        target = known.get(position.target_order)
        if target is None or not target.terminal:
            actions.append(Action("target", position.symbol))
    return actions


def _belongs(resting: Resting, adopted: Action) -> bool:
    """Will the adopted position use this leg? A stop that told of it, or a leg of its entry."""
    if resting.id == adopted.order:
        return True
    entry = adopted.order[CAUSE_END : CAUSE_END + 1] == orders.ENTRY_LEG
    return entry and resting.id[:CAUSE_END] == adopted.order[:CAUSE_END]


def _resident(
    positions: Mapping[str, Position],
    known: Mapping[str, Order],
    there: Mapping[str, Decimal],
    adopted: list[Action],
    snapshot: Snapshot,
    prefix: str,
) -> list[Action]:
    """Resident legs of ours: confirmed where they belong, taken back where they protect nothing."""
    new = {action.symbol: action for action in adopted}
    actions = []
    for resting in snapshot.algos:
        if not resting.id.startswith(prefix):
            continue
        position = positions.get(resting.symbol)
        if position is None:
            adoption = new.get(resting.symbol)
            if adoption is None or not _belongs(resting, adoption):
                actions.append(Action("cancel", resting.symbol, resting.id))
            continue
        alive = there.get(resting.symbol, ZERO) * position.sign > 0
        if not alive or resting.id != _kept(position, resting.kind, snapshot, prefix):
            actions.append(Action("cancel", resting.symbol, resting.id))
            continue
        order, is_stop = known.get(resting.id), resting.kind == "STOP_MARKET"
        recorded = position.stop_order if is_stop else position.target_order
        believed = position.stop_state if is_stop else position.target_state
        sure = order is not None and order.state not in NOT_SENT
        if not sure or believed != "acked" or recorded != resting.id:
            actions.append(Action("confirm", resting.symbol, resting.id))
    return actions


def _kept(position: Position, kind: str, snapshot: Snapshot, prefix: str) -> str:
    """The one resting leg of a kind that stays: the recorded one, else the first that fits."""
    fitting = [
        resting.id
        for resting in snapshot.algos
        if resting.symbol == position.symbol
        and resting.kind == kind
        and resting.side != position.side
        and resting.closes_all
        and resting.id.startswith(prefix)
    ]
    for recorded in (position.stop_order, position.target_order):
        if recorded in fitting:
            return recorded
    return fitting[0] if fitting else ""


def _unresolved(
    positions: Mapping[str, Position],
    known: Mapping[str, Order],
    snapshot: Snapshot,
    prefix: str,
) -> list[Action]:
    """Orders without a terminal state that the exchange does not show as open."""
    there = {resting.id for resting in (*snapshot.orders, *snapshot.algos)}
    actions = []
    for order in known.values():
        if order.terminal or order.id in there:
            continue
        position = positions.get(order.symbol)
        if order.leg == orders.ENTRY_LEG:
            doubtful = True
        elif position is not None and position.signal == order.cause:
            legs = (  # a recorded leg that is missing is placed anyway
                _kept(position, "STOP_MARKET", snapshot, prefix) or position.stop_order,
                _kept(position, "TAKE_PROFIT_MARKET", snapshot, prefix) or position.target_order,
            )
            doubtful = order.state == "acked" or (order.state != "intent" and order.id not in legs)
        else:
            doubtful = order.state != "intent" or not _cause_alive(order, known)
        if doubtful:
            actions.append(Action("query", order.symbol, order.id))
    return actions


def _cause_alive(order: Order, known: Mapping[str, Order]) -> bool:
    """The planned leg of an entry that may still fill waits for it."""
    return any(
        other.cause == order.cause and other.leg == orders.ENTRY_LEG and not other.terminal
        for other in known.values()
    )


# --- text --------------------------------------------------------------------------------------


def parse_snapshot(
    snapshot_id: str,
    started_ms: float,
    ms: int,
    account: Mapping[str, Any],
    position_rows: Iterable[Mapping[str, Any]],
    order_rows: Iterable[Mapping[str, Any]],
    algo_rows: Iterable[Mapping[str, Any]],
) -> Snapshot:
    """From GET account, positionRisk, openOrders and openAlgoOrders."""
    held = [row for row in position_rows if decimal(row["positionAmt"]) != 0]
    return Snapshot(
        id=snapshot_id,
        started_ms=started_ms,
        ms=ms,
        wallet=decimal(account.get("totalWalletBalance")),
        positions={
            row["symbol"]: (decimal(row["positionAmt"]), decimal(row.get("entryPrice")))
            for row in held
        },
        margins={
            row["symbol"]: decimal(row["initialMargin"]) for row in held if row.get("initialMargin")
        },
        orders=tuple(
            Resting(
                id=row["clientOrderId"],
                symbol=row["symbol"],
                side=row["side"].lower(),
                kind=row["type"],
                price=decimal(row.get("price")),
                exchange_id=str(row.get("orderId", "")),
            )
            for row in order_rows
        ),
        algos=tuple(
            Resting(
                id=row["clientAlgoId"],
                symbol=row["symbol"],
                side=row["side"].lower(),
                kind=row["orderType"],
                price=decimal(row.get("triggerPrice")),
                closes_all=row.get("closePosition") in (True, "true"),
                exchange_id=str(row.get("algoId", "")),
            )
            for row in algo_rows
        ),
        settings={
            row["symbol"]: (int(row["leverage"]), row["isolated"] in (True, "true"))
            for row in account.get("positions", ())
            if "leverage" in row and "isolated" in row
        },
    )


def snapshot_to_json(snapshot: Snapshot) -> str:
    """For the `exchange` hash; without the settings, which concern nobody else."""

    def rows(restings: tuple[Resting, ...]) -> list[list[str]]:
        return [
            [r.id, r.symbol, r.side, r.kind, plain(r.price), str(int(r.closes_all)), r.exchange_id]
            for r in restings
        ]

    return json.dumps(
        {
            "id": snapshot.id,
            "started_ms": snapshot.started_ms,
            "ms": snapshot.ms,
            "wallet": plain(snapshot.wallet),
            "positions": {s: [plain(a), plain(e)] for s, (a, e) in snapshot.positions.items()},
            "orders": rows(snapshot.orders),
            "algos": rows(snapshot.algos),
            "margins": {s: plain(m) for s, m in snapshot.margins.items()},
        }
    )


def snapshot_from_json(text: str) -> Snapshot:
    """Inverse of snapshot_to_json."""
    told = json.loads(text)

    def restings(rows: list[list[str]]) -> tuple[Resting, ...]:
        return tuple(
            Resting(r[0], r[1], r[2], r[3], Decimal(r[4]), r[5] == "1", r[6]) for r in rows
        )

    return Snapshot(
        id=told["id"],
        started_ms=told["started_ms"],
        ms=told["ms"],
        wallet=Decimal(told["wallet"]),
        positions={s: (Decimal(a), Decimal(e)) for s, (a, e) in told["positions"].items()},
        orders=restings(told["orders"]),
        algos=restings(told["algos"]),
        margins={s: Decimal(m) for s, m in told.get("margins", {}).items()},
    )


def action_to_fields(action: Action, snapshot_id: str) -> dict[str, str]:
    """A corrective command for the `commands` stream."""
    return {
        "name": "correct",
        "action": action.name,
        "symbol": action.symbol,
        "order": action.order,
        "amount": plain(action.amount),
        "price": plain(action.price),
        "snapshot": snapshot_id,
    }


def action_from_fields(fields: Mapping[str, str]) -> Action:
    """Inverse of action_to_fields. Raises ValueError or ArithmeticError."""
    if fields.get("action") not in NAMES:
        raise ValueError(f"unknown correction {fields.get('action')!r}")
    amount, price = decimal(fields.get("amount")), decimal(fields.get("price"))
    if not (amount.is_finite() and price.is_finite()):
        raise ValueError("amount or price is not a number")
    return Action(
        fields["action"], fields.get("symbol", ""), fields.get("order", ""), amount, price
    )
