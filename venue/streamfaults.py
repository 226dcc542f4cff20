"""What the fault lab does to streams: user events late, twice, swapped or lost; market frames too.

Pure: events and now in, what to send now out. Everything passes untouched, at the price of one
question, while nothing is planned. What waits has a bound and a time at which it goes out anyway.
"""

from __future__ import annotations

import heapq
from collections import deque
from dataclasses import dataclass, field
from typing import Any

from venue import faults
from venue.faults import Lab, Plan

WAITING_MAX = 100_000  # late user events; beyond, they go out at once
LITES_MAX = 1000  # TRADE_LITE that wait for their ORDER_TRADE_UPDATE
WINDOW_MS = 1000  # a window to shuffle that does not fill is sent after this
GAPS_MAX = 100  # ranges of trade ids that are being left out

Json = dict[str, Any]


def user_facts(payload: Json) -> Json:
    """What an event can be told by."""
    inner = payload.get("o")
    body: Json = inner if isinstance(inner, dict) else payload
    return {
        "event": payload["e"],
        "symbol": body.get("s", ""),
        "client_id": body.get("c") or body.get("caid", ""),
        "execution": body.get("x", ""),
    }


@dataclass(slots=True)
class UserStream:
    """The account's events on their way out."""

    lab: Lab
    late: list[tuple[int, int, Json]] = field(default_factory=list)  # heap: due, sequence, event
    lites: dict[int, Json] = field(default_factory=dict)  # by trade id
    window: list[Json] = field(default_factory=list)
    window_size: int = 0
    window_until_ms: int = 0
    sequence: int = 0

    def idle(self) -> bool:
        return not (self.late or self.lites or self.window or faults.standing(self.lab, "user"))

    def passed(self, payload: Json, now_ms: int) -> list[Json]:
        """What goes out because of this event."""
        if self.idle():
            return [payload]
        facts = user_facts(payload)
        lite = None
        if payload["e"] == "ORDER_TRADE_UPDATE":
            lite = self.lites.pop(payload["o"]["t"], None)
        behind = [lite] if lite else []
        if faults.strike(self.lab, ("user_mute", "user_dropped"), facts, now_ms):
            return behind
        out = [payload, *behind]
        waits = payload["e"] == "TRADE_LITE" and len(self.lites) < LITES_MAX
        if waits and faults.strike(self.lab, ("trade_lite_after",), facts, now_ms):
            self.lites[payload["t"]] = payload
            return []
        if faults.strike(self.lab, ("user_doubled",), facts, now_ms):
            out = [one for one in out for _ in range(2)]
        late = faults.strike(self.lab, ("user_late",), facts, now_ms)
        if late and len(self.late) < WAITING_MAX:
            for one in out:
                self.sequence += 1
                heapq.heappush(self.late, (now_ms + late.values["ms"], self.sequence, one))
            return []
        return self._shuffled(out, facts, now_ms)

    def _shuffled(self, out: list[Json], facts: Json, now_ms: int) -> list[Json]:
        """Windows of events in another order; a window of two is a swap."""
        if not self.window:
            plan = faults.strike(self.lab, ("user_reordered",), facts, now_ms)
            if plan is None:
                return out
            self.window_size = plan.values["window"]
            self.window_until_ms = now_ms + (plan.values["ms"] or WINDOW_MS)
        self.window += out
        return self._flush() if len(self.window) >= self.window_size else []

    def _flush(self) -> list[Json]:
        window, self.window = self.window, []
        order = list(range(len(window)))
        while len(order) > 1 and order == sorted(order):
            self.lab.rng.shuffle(order)
        return [window[k] for k in order]

    def due(self, now_ms: int) -> list[Json]:
        """What has waited long enough."""
        out = []
        while self.late and self.late[0][0] <= now_ms:
            out.append(heapq.heappop(self.late)[2])
        if self.window and now_ms >= self.window_until_ms:
            out += self._flush()
        return out


@dataclass(frozen=True, slots=True)
class Frame:
    """A market frame before it is written; `id` is a trade's, else 0."""

    stream: str
    symbol: str
    data: bytes
    id: int = 0
    kind: int = -1  # of the market's events; -1 for a look


@dataclass(slots=True)
class _Gap:
    """Trade ids that are left out, for everybody or one connection."""

    match: Json
    first: int
    last: int
    passed: bool = False


@dataclass(slots=True)
class MarketStreams:
    """The market's frames on their way to each connection."""

    lab: Lab
    gaps: deque[_Gap] = field(default_factory=lambda: deque(maxlen=GAPS_MAX))
    held: dict[int, Frame] = field(default_factory=dict)  # connection -> frame that lets one pass
    dropped: tuple[str, Plan] | None = None  # the depth frame that nobody is to get

    def begin(self) -> bool:
        """Called before each batch; False while nothing has to be looked at."""
        self.dropped = None
        while self.gaps and self.gaps[0].passed:
            self.gaps.popleft()
        return bool(self.gaps or self.held or faults.standing(self.lab, "market"))

    def forget(self, connection: int) -> None:
        self.held.pop(connection, None)

    def passed(self, frames: list[Frame], connection: int, route: str, now_ms: int) -> list[Frame]:
        """What one connection gets instead of these frames."""
        out: list[Frame] = []
        for frame in frames:
            facts = {
                "stream": frame.stream,
                "symbol": frame.symbol,
                "route": route,
                "connection": connection,
            }
            if self._lost(frame, facts, now_ms):
                continue
            doubled = faults.strike(self.lab, ("market_doubled",), facts, now_ms)
            ready = [frame, frame] if doubled else [frame]
            behind = self.held.pop(connection, None)
            if behind is not None:
                ready.append(behind)
            elif faults.strike(self.lab, ("market_reordered",), facts, now_ms):
                self.held[connection] = ready.pop()
            out += ready
        return out

    def _lost(self, frame: Frame, facts: Json, now_ms: int) -> bool:
        if faults.strike(self.lab, ("market_mute",), facts, now_ms):
            return True
        if frame.id:
            return self._in_gap(frame, facts, now_ms)
        if "@" not in frame.stream or frame.stream.split("@")[1] != "depth":
            return False
        if self.dropped is not None and self.dropped[0] == frame.stream:
            return faults.fits(self.dropped[1].match, facts)
        plan = faults.strike(self.lab, ("depth_gap",), facts, now_ms)
        if plan is not None:
            self.dropped = (frame.stream, plan)
        return plan is not None

    def _in_gap(self, frame: Frame, facts: Json, now_ms: int) -> bool:
        for gap in self.gaps:
            if faults.fits(gap.match, facts):
                gap.passed = gap.passed or frame.id >= gap.last
                if gap.first <= frame.id <= gap.last:
                    return True
        plan = faults.strike(self.lab, ("trade_gap",), facts, now_ms)
        if plan is None:
            return False
        self.lab.plans.pop(plan.id, None)
        last = frame.id + plan.values["count"] - 1
        self.gaps.append(_Gap(plan.match, frame.id, last, frame.id >= last))
        ids = {"symbol": frame.symbol, "first_id": frame.id, "last_id": last}
        faults.note(self.lab, "left_out", plan, {"met": ids})
        return True
