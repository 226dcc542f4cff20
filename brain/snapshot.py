"""What a brain knows at one moment, as bytes: the beginning of a recording that starts midway.

Only symbols that are announced are taken: of all others nothing is remembered anyway. The desk's
side (open signals, model, states of rules) is JSON, the state's arrays are their bytes.
"""

from __future__ import annotations

import struct
from collections import OrderedDict
from typing import Any, Final

import numpy as np
import orjson

from brain.desk import Desk, Open
from brain.rules import stop_masks
from brain.signals import Model
from brain.state import ACTIVE, C_SEQ, Arrays, State, layout_hash

_LENGTH: Final = struct.Struct("<I")
PARTS: Final = tuple(name for name in Arrays._fields if name != "control")


class SnapshotError(Exception):
    """The bytes do not fit this code; the sentence says why."""


def dump_desk(desk: Desk) -> dict[str, Any]:
    return {
        "open": [[key, each._asdict()] for key, each in desk.open.items()],
        "slots": [[*slot, key] for slot, key in desk.slots.items()],
        "rows": dict(desk.rows),
        "closed": list(desk.closed),
        "strays": [[key, dict(result)] for key, result in desk.strays.items()],
        "model": {"version": desk.model.version, "counts": dict(desk.model.counts)},
        "rules": [[each.name, each.state, each.faults] for each in desk.rules],
    }


def restore_desk(desk: Desk, told: dict[str, Any]) -> None:
    """Raises SnapshotError when a rule is not the same."""
    desk.open = {key: Open(**each) for key, each in told["open"]}
    desk.slots = {(symbol, name, frame): key for symbol, name, frame, key in told["slots"]}
    desk.rows = dict(told["rows"])
    desk.closed = OrderedDict.fromkeys(told["closed"])
    desk.strays = OrderedDict((key, result) for key, result in told["strays"])
    counts = {name: (row[0], row[1], row[2]) for name, row in told["model"]["counts"].items()}
    desk.model = Model(told["model"]["version"], counts)
    names = [name for name, _, _ in told["rules"]]
    if [each.name for each in desk.rules] != names:
        raise SnapshotError(f"its rules were {', '.join(names)}")
    for each, (_, state, faults) in zip(desk.rules, told["rules"], strict=True):
        each.state, each.faults = state, faults
    desk.masks[:] = stop_masks(desk.rules)


def take(desk: Desk) -> list[bytes]:
    """Copies, to be joined by whoever has the time."""
    a = desk.state.arrays
    rows = np.flatnonzero(a.sym[:, ACTIVE])
    head = {
        "layout": layout_hash(),
        "symbols_max": desk.state.symbols_max,
        "rows": rows.tolist(),
        "desk": dump_desk(desk),
    }
    text = orjson.dumps(head)
    made = [_LENGTH.pack(len(text)), text, a.control.tobytes()]
    return made + [getattr(a, name)[rows].tobytes() for name in PARTS]


def symbols_max(raw: bytes) -> int:
    return int(_head(raw)[0]["symbols_max"])


def _head(raw: bytes) -> tuple[dict[str, Any], int]:
    (size,) = _LENGTH.unpack_from(raw)
    end = _LENGTH.size + size
    return orjson.loads(raw[_LENGTH.size : end]), end


def restore_state(state: State, raw: bytes) -> dict[str, Any]:
    """Fill an empty state; what restore_desk wants. Raises SnapshotError."""
    head, offset = _head(raw)
    rows = head["rows"]
    if rows and head["layout"] != layout_hash():
        raise SnapshotError("its state has another layout")
    a = state.arrays
    if head["layout"] == layout_hash():
        a.control[:] = np.frombuffer(raw, np.int64, len(a.control), offset)
        a.control[C_SEQ] = 0
        offset += a.control.nbytes
        for name in PARTS if rows else ():
            array = getattr(a, name)
            shape = (len(rows), *array.shape[1:])
            count = int(np.prod(shape))
            array[rows] = np.frombuffer(raw, array.dtype, count, offset).reshape(shape)
            offset += count * array.itemsize
    desk: dict[str, Any] = head["desk"]
    return desk
