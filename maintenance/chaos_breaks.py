"""Risk with one guard removed: each of these must be caught, or chaos proves nothing.

Every break takes out one promise where it is kept, by replacing named parts of risk, and leaves
the rest as it is. What it replaces must be there: a guard that moved ends the process at its start.
"""

from __future__ import annotations

import asyncio
import dataclasses
import math
import zlib
from collections.abc import Callable
from typing import Any, Final

from msgspec.structs import replace as changed

import process
import risk.main
import streams
from maintenance.chaos_points import BREAKS
from risk import entries, orders, protect, pushes, recovery, replies, step
from risk.events import Effects, Now, Replied, SignalRead, Unknown
from risk.lease import Lease
from risk.orders import Order, advance
from risk.portfolio import Fill
from risk.session import Session
from risk.state import State

Make = Callable[[Any], Any]
Replace = Callable[[Any, str, Make], None]
_EPOCH_LINE: Final = "if stored ~= epoch then"


def take_out(name: str, replace: Replace) -> None:
    """Remove the guard `name`; `replace` puts one part of risk in another's place."""
    _BREAKS[name](replace)


# --- fence -------------------------------------------------------------------------------------


def _no_fence(replace: Replace) -> None:
    """A former holder writes under its old epoch, renews what is not its own, looks at no other's
    epoch, and signs entries with the whole window."""

    def commit_script(old: str) -> str:
        if old.count(_EPOCH_LINE) != 1:
            process.fail("chaos takes the epoch's check out of a script that has it elsewhere now.")
        return old.replace(_EPOCH_LINE, "if false then")

    def renewed(old: Callable[[Lease, float], None]) -> Any:
        def for_ever(self: Lease, asked_ms: float) -> None:
            self.valid_until_ms = math.inf

        return for_ever

    def lease_renew(old: Any) -> Any:
        async def always_ours(*_: Any) -> bool:
            await asyncio.sleep(0)
            return True

        return always_ours

    def look_at_lease(old: Any) -> Any:
        async def not_over(self: Session, ours: bool) -> bool:
            await asyncio.sleep(0)
            return False

        return not_over

    def entry_window_ms(old: Any) -> Any:
        return lambda self: float(self.cfg.recv_window_ms)

    replace(streams, "_COMMIT", commit_script)
    replace(streams, "lease_renew", lease_renew)
    replace(Lease, "renewed", renewed)
    replace(Session, "look_at_lease", look_at_lease)
    replace(risk.main.Risk, "entry_window_ms", entry_window_ms)


# --- query -------------------------------------------------------------------------------------


def _no_query(replace: Replace) -> None:
    def on_entry(old: Callable[[State, Replied, Now, Effects], None]) -> Any:
        def sent_again(state: State, event: Replied, now: Now, out: Effects) -> None:
            if isinstance(event.result, Unknown):
                out.add(event.request)  # type: ignore[arg-type]
            else:
                old(state, event, now, out)

        return sent_again

    def ask(old: Callable[[State, Order, Now, Effects], None]) -> Any:
        def never_executed(state: State, order: Order, now: Now, out: Effects) -> None:
            if order.leg == orders.ENTRY_LEG:
                ended = advance(order, "rejected", int(now.market_ms), "not asked")
                replies._ended(state, ended, now, out)
            else:
                old(state, order, now, out)

        return never_executed

    _replace_handler(replace, replies, "_HANDLERS", "entry", on_entry)
    replace(recovery, "ask", ask)


def _replace_handler(replace: Replace, owner: Any, table: str, key: str, make: Make) -> None:
    """One entry of a table of handlers."""

    def with_other(old: dict[str, Any]) -> dict[str, Any]:
        if key not in old:
            process.fail(f"chaos replaces {owner.__name__}.{table}[{key!r}], which is not there.")
        return old | {key: make(old[key])}

    replace(owner, table, with_other)


# --- dedupe ------------------------------------------------------------------------------------


def _no_dedupe(replace: Replace) -> None:
    def on_signal(old: Callable[[State, SignalRead, Now, Effects], None]) -> Any:
        def as_if_new(state: State, event: SignalRead, now: Now, out: Effects) -> None:
            entry_id = state.make_id(event.fields.get("id", ""), orders.ENTRY_LEG)
            known = state.orders.get(entry_id)
            if known is not None and known.terminal:
                del state.orders[entry_id]
            old(state, event, now, out)

        return as_if_new

    def handle_fill(old: Callable[[State, Fill, Now, Effects], None]) -> Any:
        def counted_again(state: State, fill: Fill, now: Now, out: Effects) -> None:
            state.seen.pop(fill.key, None)
            old(state, fill, now, out)

        return counted_again

    def commit(old: Callable[..., Any]) -> Any:
        async def without_once(r: Any, keys: streams.Keys, **more: Any) -> Any:
            more["writes"] = [
                dataclasses.replace(
                    write,
                    ops=tuple(
                        ("xadd", *op[1:3]) if op[0] == "xadd_once" else op for op in write.ops
                    ),
                    unless=(),
                )
                for write in more["writes"]
            ]
            return await old(r, keys, **more)

        return without_once

    replace(entries, "on_signal", on_signal)
    for owner in (protect, pushes, replies):
        replace(owner, "handle_fill", handle_fill)
    replace(streams, "commit", commit)


# --- stop --------------------------------------------------------------------------------------


def unprotected(cause: str) -> bool:
    """Of these round trips the stop is left out: every second one."""
    return zlib.crc32(cause.encode()) % 2 == 0


def _no_stop(replace: Replace) -> None:
    def place_stop(old: Callable[[State, str, Now, Effects], None]) -> Any:
        def sometimes(state: State, symbol: str, now: Now, out: Effects) -> None:
            position = state.positions[symbol]
            if unprotected(position.signal):
                state.positions[symbol] = changed(position, stop_state="sent")
            else:
                old(state, symbol, now, out)

        return sometimes

    def due_naked(old: Callable[[State, str, Now, Effects], None]) -> Any:
        def unminded(state: State, symbol: str, now: Now, out: Effects) -> None:
            position = state.positions.get(symbol)
            if position is None or not unprotected(position.signal):
                old(state, symbol, now, out)

        return unminded

    for owner in (protect, recovery):
        replace(owner, "place_stop", place_stop)
    _replace_handler(replace, step, "_DUE", "naked", due_naked)


# --- reconcile ---------------------------------------------------------------------------------


def _no_reconcile(replace: Replace) -> None:
    def correct(old: Any) -> Any:
        def nothing(state: State, actions: Any, event: Any, now: Now, out: Effects) -> None:
            """Seen, and left as it is."""

        return nothing

    replace(recovery, "correct", correct)


_BREAKS: Final[dict[str, Callable[[Replace], None]]] = {
    "fence": _no_fence,
    "query": _no_query,
    "dedupe": _no_dedupe,
    "stop": _no_stop,
    "reconcile": _no_reconcile,
}
assert _BREAKS.keys() == BREAKS.keys()
