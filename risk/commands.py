"""What operators and jobs may ask of risk; every command is answered in `replies` by its id.

Commands that reduce risk work at any time, armed or not. A correction names the snapshot it was
derived from and is checked against the present state before anything is done.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from risk import guard, journal
from risk.breakers import HALTED
from risk.events import CommandRead, Commit, Effects, Note, Now, Op, Snap
from risk.protect import arm_deadline, exit_position
from risk.reconcile import action_from_fields
from risk.recovery import act, restore
from risk.state import State

NEEDS_TRUTH: Final = frozenset({"settle", "adopt", "confirm", "foreign", "own"})
WHY_CHARS_MAX: Final = 200


def on_command(state: State, event: CommandRead, now: Now, out: Effects) -> None:
    """Carry out one command and acknowledge it with its answer, in one write."""
    fields = event.fields
    name, command_id = fields.get("name", ""), fields.get("id") or event.entry_id
    ack = (state.keys.commands, state.group, event.entry_id)
    handler = _COMMANDS.get(name)
    if handler is None:
        answer: dict[str, Any] = {"ok": False, "error": f"unknown command {name!r}"}
        ops: list[Op] = []
    else:
        answer, ops = handler(state, fields, command_id, now, out)
    if answer:
        ops += journal.reply_ops(state, command_id, answer)
    out.add(Commit(tuple(ops), command_id, ack=ack))


Answer = tuple[dict[str, Any], list[Op]]


def _snapshot(
    state: State, fields: Mapping[str, str], command_id: str, now: Now, out: Effects
) -> Answer:
    if fields["name"] == "snapshot":
        state.asked_ms = now.boot_ms
    out.add(Snap(fields["name"], command_id))
    return {}, []  # answered when the snapshot is there


def _halt(
    state: State, fields: Mapping[str, str], command_id: str, now: Now, out: Effects
) -> Answer:
    state.halted, state.armed, state.to_arm = True, False, False
    out.add(Note("WARNING", "halted by command"))
    ops: list[Op] = [
        ("del", state.keys.armed),
        ("hset", state.keys.breakers, {HALTED: str(now.wall_ms)}),
    ]
    return {"ok": True, "armed": False}, ops


def _resume(
    state: State, fields: Mapping[str, str], command_id: str, now: Now, out: Effects
) -> Answer:
    state.to_arm = state.to_arm or state.halted
    state.halted = False
    ops, left = guard.resume(state, now)
    out.add(Note("WARNING", "resumed by command"))
    # arming follows in main
    return {"ok": True, "standing": left}, [("hdel", state.keys.breakers, [HALTED]), *ops]


def _flatten(
    state: State, fields: Mapping[str, str], command_id: str, now: Now, out: Effects
) -> Answer:
    wanted = fields.get("symbol") or ""
    symbols = [s for s in state.positions if wanted in ("", s)]
    for symbol in symbols:
        exit_position(state, symbol, "flatten", now, out)
    return {"ok": True, "closing": symbols}, []


def _protect(
    state: State, fields: Mapping[str, str], command_id: str, now: Now, out: Effects
) -> Answer:
    position = state.positions.get(fields.get("symbol", ""))
    if position is None:
        return {"ok": False, "error": "no position of ours there"}, []
    if position.stop_state != "acked":
        restore(state, position, "stop", now, out)
    return {"ok": True, "stop_order": position.stop_order, "stop": str(position.stop)}, []


def _correct(
    state: State, fields: Mapping[str, str], command_id: str, now: Now, out: Effects
) -> Answer:
    try:
        action = action_from_fields(fields)
    except (ValueError, ArithmeticError) as error:
        why = f"correction: {type(error).__name__} {error}"[:WHY_CHARS_MAX]
        dead = {"stream": state.keys.commands, "id": command_id, "why": why}
        dead["fields"] = repr(dict(fields))
        return {"ok": False, "error": why}, [("xadd", state.keys.dead, dead)]
    told = fields.get("snapshot", "")
    taken_ms = state.snapshots.get(told, -1e18)  # of an earlier holder, or long ago: unknown
    outdated = bool(told) and state.touched.get(action.symbol, -1e18) >= taken_ms
    if action.name in NEEDS_TRUTH or outdated:  # as told it may be old: look anew, then correct
        arm_deadline(state, out, "snap", "", now.boot_ms, earliest=True)
    else:
        act(state, action, None, now, out)
    return {"ok": True, "action": action.name, "symbol": action.symbol}, []


_COMMANDS: Final = {
    "snapshot": _snapshot,
    "reconcile": _snapshot,
    "halt": _halt,
    "resume": _resume,
    "flatten": _flatten,
    "protect": _protect,
    "correct": _correct,
}
