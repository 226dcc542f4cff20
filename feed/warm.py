"""Compile feed's kernels into Numba's cache: `python -m feed.warm`, once at set-up.

Runs each of them on a throw-away ring with the types of the real one, so that no process compiles
anything later.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np

import barrier
import ring
from feed import decode, lane
from feed.walk import SCRATCH_BYTES, SLACK_BYTES
from records import RECORD

SLOTS = 64


def warm() -> None:
    """Call every kernel that Python calls."""
    with tempfile.TemporaryDirectory() as folder:
        made = ring.create(Path(folder) / "ring", SLOTS, 4, "warm")
        ours = lane.make_lane(made, 8)
        lane.set_symbol(ours, 0, "WARMUSDT", lane.LIVE, 0)
        buffer = np.zeros(SCRATCH_BYTES + 64 + SLACK_BYTES, np.uint8)
        state = np.zeros(8, np.int64)
        decode.decode(buffer, SCRATCH_BYTES, SCRATCH_BYTES, 0, state, ours)
        lane.emit(ours, np.zeros(1, RECORD), 0)
        lane.doubt(ours, 0, 0)
        lane.release(ours, 0, 0)
        lane.flush(ours, 0)
        lane.clear_symbol(ours, 0)
        barrier.warm()
        del ours
        made.close()


if __name__ == "__main__":
    warm()
