"""What Python publishes, in the order in which it was said, as the ring's room comes.

What was said while the ring is short of room waits here, and nothing that is published through here
overtakes it: bars wait for their SYMBOL. One saying a symbol may wait; `forget` takes it back when
the symbol leaves or starts anew. What the ring must be told about trades does not come through
here: the kernel knows where it belongs.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Final

from feed import lane
from feed.heal import Records
from feed.lane import HELD, STATUS, Lane

ROOM_WAIT_S: Final = 0.005


class Outbox:
    """One lane's."""

    def __init__(self, lane_: Lane) -> None:
        self._lane = lane_
        self._waiting: deque[tuple[int, Records]] = deque()

    @property
    def waiting(self) -> bool:
        """Whether something said has found no room yet."""
        return bool(self._waiting)

    def say(self, row: int, records: Records) -> None:
        """Publish a symbol's records, at once if there is room."""
        self._waiting.append((row, records))
        self.flush()

    def flush(self) -> bool:
        """Publish what waits, as far as there is room; whether nothing waits any more."""
        while self._waiting:
            row, records = self._waiting[0]
            done = lane.emit(self._lane, records, 0)
            if done < len(records):
                self._waiting[0] = (row, records[done:])
                return False
            self._waiting.popleft()
        return True

    def forget(self, row: int) -> None:
        """Take back what a symbol has not said yet."""
        self._waiting = deque(said for said in self._waiting if said[0] != row)

    def emit(self, records: Records, begin: int) -> int:
        """Publish records[begin:] as far as there is room; the index after the last published."""
        return int(lane.emit(self._lane, records, begin)) if self.flush() else begin

    async def publish(self, records: Records, held: int | None = None) -> None:
        """Publish all records; those of a symbol `held` only while it is HELD."""
        begin = 0
        while begin < len(records):
            if held is not None and int(self._lane.symbols[held, STATUS]) != HELD:
                return
            begin = self.emit(records, begin)
            if begin < len(records):
                await asyncio.sleep(ROOM_WAIT_S)
