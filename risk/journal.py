"""What risk writes: operations on Redis for every decision, order event, fill and position.

Pure: state in, operations out; streams.commit carries them out in one script. An operator reads
these fields with redis-cli, so they are words, decimals and units.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from decimal import Decimal
from typing import Any, Final

from risk import orders, portfolio
from risk.events import Now, Op
from risk.gate import Verdict
from risk.instruments import ZERO, plain
from risk.orders import Order
from risk.portfolio import Fill, Position, fee_usdt
from risk.signals import Signal
from risk.state import State, equity, gross_exposure, no_entries, pending_entries, standing
from streams import Keys

DONE_ORDER_KEPT_S: Final = 7 * 86_400  # `why` answers for a week from the hash, then from archives
BPS: Final = Decimal(10_000)
MONEY_UNIT: Final = Decimal("1e-8")


def cents(amount: Decimal) -> Decimal:
    """Money as the exchange writes it: eight digits."""
    return amount.quantize(MONEY_UNIT)


def _ms(now: Now) -> str:
    return str(int(now.market_ms))


def decision_ops(
    state: State,
    signal: Signal,
    verdicts: Sequence[Verdict],
    outcome: str,
    now: Now,
    order_id: str = "",
) -> list[Op]:
    """One entry of `decisions`: each verdict with its numbers, down to the one that refused."""
    refused_by = "" if not verdicts or verdicts[-1].ok else verdicts[-1].name
    rows = [{"name": v.name, "ok": v.ok, **v.numbers} for v in verdicts]
    fields = {
        "signal": signal.id,
        "symbol": signal.symbol,
        "side": signal.side,
        "rule": signal.rule,
        "outcome": outcome,
        "refused_by": refused_by,
        "order": order_id,
        "confidence": repr(signal.confidence),
        "verdicts": json.dumps(rows),
        "ms": _ms(now),
        "wall_ms": str(now.wall_ms),
        "epoch": str(state.epoch),
        "source": "risk",
    }
    return [("xadd", state.keys.decisions, fields)]


def order_ops(state: State, order: Order, now: Now, event: str = "") -> list[Op]:
    """An order event: stream entry, hash and the set of open orders change together."""
    keys = state.keys
    entry = {
        "id": order.id,
        "cause": order.cause,
        "leg": orders.LEG_NAMES[order.leg],
        "symbol": order.symbol,
        "side": order.side,
        "state": event or order.state,
        "qty": plain(order.qty),
        "price": plain(order.price),
        "executed_qty": plain(order.executed),
        "exchange_id": order.exchange_id,
        "reason": order.reason,
        "ms": _ms(now),
        "wall_ms": str(now.wall_ms),
        "epoch": str(state.epoch),
    }
    ops: list[Op] = [
        ("xadd", keys.orders, entry),
        ("hset", keys.order(order.id), orders.to_fields(order)),
    ]
    if order.terminal:
        ops.append(("srem", keys.orders_open, order.id))
        ops.append(("expire", keys.order(order.id), DONE_ORDER_KEPT_S))
    else:
        ops.append(("sadd", keys.orders_open, order.id))
    return ops


def position_ops(keys: Keys, position: Position) -> list[Op]:
    return [
        ("sadd", keys.positions, position.symbol),
        ("hset", keys.position(position.symbol), portfolio.to_fields(position)),
    ]


def gone_ops(keys: Keys, symbol: str) -> list[Op]:
    """A position that is no more."""
    return [("srem", keys.positions, symbol), ("del", keys.position(symbol))]


def closed_ops(state: State, position: Position, reason: str, now: Now) -> list[Op]:
    """The round trip's end, written into its entry order's hash for `why`."""
    exit_price = position.exit_value / position.exit_qty if position.exit_qty else ZERO
    fields = {
        "closed_ms": _ms(now),
        "opened_ms": str(position.opened_ms),
        "exit_reason": reason,
        "entry_price": plain(position.entry),
        "exit_price": plain(cents(exit_price)),
        "realised": plain(position.realised),
        "fees": plain(position.fees),
        "net": plain(position.realised - position.fees),
        "naked_ms": str(position.naked_ms),
    }
    key = state.keys.order(position.entry_order or position.signal)
    return [("hset", key, fields), *gone_ops(state.keys, position.symbol)]


def fill_ops(
    state: State, fill: Fill, order: Order | None, entry: Order | None, now: Now
) -> list[Op]:
    """A fill and its money, once each by the exchange's trade id."""
    keys = state.keys
    fields = {
        "trade_id": str(fill.trade_id),
        "symbol": fill.symbol,
        "order": order.id if order else fill.client_id,
        "cause": order.cause if order else "",
        "leg": orders.LEG_NAMES[order.leg] if order else "foreign",
        "side": fill.side,
        "price": plain(fill.price),
        "qty": plain(fill.qty),
        "fee": plain(fill.fee),
        "fee_asset": fill.fee_asset,
        "realised": plain(fill.realised),
        "maker": str(int(fill.maker)),
        "exchange_id": fill.order_id,
        "ms": str(fill.ms),
        "wall_ms": str(now.wall_ms),
        "epoch": str(state.epoch),
    }
    if order is not None:
        wanted = entry.signal_price if entry and order.leg == orders.ENTRY_LEG else order.price
        if wanted > 0:
            worse = (fill.price - wanted) * (1 if fill.side == "buy" else -1)
            fields["signal_price"] = plain(wanted)
            fields["slippage_bps"] = f"{worse / wanted * BPS:.4f}"
        if order.mid > 0:
            fields["arrival_mid"] = plain(order.mid)
    ops: list[Op] = [("xadd_once", keys.fills, fields, keys.fill_ids, fill.key, fill.ms)]
    money = (("fee", -fill.fee, fill.fee_asset), ("realised", fill.realised, "USDT"))
    worth = -fee_usdt(fill, state.marks)
    for kind, amount, asset in money:
        if amount:
            name = f"{kind}:{fill.key}"
            ops += ledger_ops(state, name, kind, amount, asset, fill.symbol, fill.ms, worth)
    return ops


def ledger_ops(
    state: State,
    event_id: str,
    kind: str,
    amount: Decimal,
    asset: str,
    symbol: str,
    ms: int,
    usdt: Decimal | None = None,
) -> list[Op]:
    """One money event; `amount` is what it did to the wallet, `usdt` what that was worth when it
    was counted, where the asset is another."""
    keys = state.keys
    fields = {
        "id": event_id,
        "kind": kind,
        "amount": plain(amount),
        "asset": asset,
        "symbol": symbol,
        "ms": str(ms),
    }
    if usdt is not None and asset != "USDT":
        fields["usdt"] = plain(usdt)
    return [("xadd_once", keys.ledger, fields, keys.ledger_ids, event_id, ms)]


def money_fields(state: State) -> dict[str, str]:
    """What every fill changes; a restart goes on from here."""
    money = state.money
    return {
        "wallet": plain(money.wallet),
        "realised": plain(money.realised),
        "fees": plain(money.fees),
        "funding": plain(money.funding),
        "transfers": plain(money.transfers),
        "other": plain(money.other),
        "positions": str(len(state.positions)),
        "trades_closed": str(money.trades_closed),
        "round_trips": str(money.trades_closed),
        "wins": str(money.wins),
        "entries": str(money.entries),
        "fills": str(money.fills),
        "naked_ms_max": str(money.naked_ms_max),
        "rotated_ms": str(int(max(state.rotated_ms, 0.0))),
    }


def portfolio_fields(state: State, now: Now) -> dict[str, str]:
    """The money, and what follows from it, positions and marks."""
    total = equity(state)
    return (
        money_fields(state)
        | {
            "equity": plain(cents(total)),
            "unrealised": plain(cents(total - state.money.wallet)),
            "exposure": plain(cents(gross_exposure(state))),
            "pending_entries": str(len(pending_entries(state))),
            "ms": _ms(now),
        }
        | {f"income_ms:{kind}": str(ms) for kind, ms in state.income_ms.items()}
    )


def money_ops(state: State) -> list[Op]:
    """With each fill and order that moves them; what needs every position's mark is told with the
    status, each second."""
    return [("hset", state.keys.portfolio, money_fields(state))]


def portfolio_ops(state: State, now: Now) -> list[Op]:
    return [("hset", state.keys.portfolio, portfolio_fields(state, now))]


def reply_ops(state: State, command_id: str, answer: dict[str, Any]) -> list[Op]:
    return [("hset", state.keys.replies, {command_id: json.dumps(answer)})]


def journal_ops(state: State, level: str, text: str, now: Now) -> list[Op]:
    """A line for the operator."""
    fields = {"level": level, "source": "risk", "text": text, "wall_ms": str(now.wall_ms)}
    return [("xadd", state.keys.journal, fields)]


def status_ops(state: State, shell: Mapping[str, str], now: Now) -> list[Op]:
    """The one-line answer to 'how is it?', and the settings in force."""
    reason = no_entries(state, now)
    places = f"{len(state.positions)}/{state.limits.positions_max}"
    what = f"no entries: {reason}" if reason else "trading"
    what += f" ({shell['exchange']})" if shell.get("exchange") else ""
    fields = {
        "line": f"{what}, positions {places}, equity {plain(cents(equity(state)))}",
        "epoch": str(state.epoch),
        "state": "blocked" if reason else "trading",
        "blocked": reason,
        "armed": str(int(state.armed)),
        "halted": str(int(state.halted)),
        "positions": str(len(state.positions)),
        "breakers": "; ".join(standing(state, now)[1].values()),
        "quarantine": "; ".join(f"{s}: {why}" for s, why in sorted(state.quarantine.items())),
        "foreign": " ".join(sorted(state.foreign)),
        "jobs": "silent" if state.jobs_silent else "",
        "waiting_signals": str(len(state.waiting)),
        "naked_ms_max": str(state.money.naked_ms_max),
        "last_reconcile_ms": str(state.last_reconcile_ms),
        "market_ms": _ms(now),
        "wall_ms": str(now.wall_ms),
    }
    settings = {name: str(value) for name, value in asdict(state.limits).items()}
    return [
        ("hset", state.keys.status, fields | dict(shell)),
        ("hset", state.keys.settings, settings),
    ]
