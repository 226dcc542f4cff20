"""Which symbol × channel has gone silent, and what to do about it. Pure: no clock, no socket.

An ack is not data, and silence proves nothing by itself, so each channel has its own witness:

    mark    comes every second, traded or not: silent after MARK_S
    quote   every trade changes the best quantity: silent when trades went on QUOTE_S beyond it
    trade   a quiet symbol is no fault. Suspected after TRADE_S; believed once REST's newest trade
            moved on between two looks while none came here. A look weighs 1, at most LOOKS_MAX
            are taken a second, and a symbol that proves quiet is looked at ever more rarely

A believed silence is answered by subscribing the symbol again, and by replacing the connection
if that did not help. Both harm nobody else. Each answer doubles the wait for the next, up to
WAIT_S_MAX, and one event on the channel ends the case.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from feed.walk import Table
from ring import CHANNELS

NS_PER_S: Final = 1_000_000_000
MARK_S: Final = 10.0
QUOTE_S: Final = 10.0
TRADE_S: Final = 30.0
WAIT_S_MAX: Final = 3600.0
LOOKS_MAX: Final = 5
TRADE, QUOTE, MARK = (CHANNELS.index(name) for name in ("trade", "quote", "mark"))
RESUBSCRIBE, REPLACE, LOOK = "resubscribe", "replace", "look"
_FIRST_S: Final = {TRADE: TRADE_S, QUOTE: QUOTE_S, MARK: MARK_S}


@dataclass(slots=True)
class Case:
    """A channel under suspicion; one event on it ends the case."""

    opened_ns: int
    next_ns: int  # nothing is done before
    waits: int = 0
    answers: int = 0
    newest_id: int = -1  # REST's newest trade at the last look, -1 before the first
    believed: bool = False

    def wait(self, now_ns: int, first_s: float) -> None:
        """Let each wait be twice the one before."""
        self.waits += 1
        wait_s = min(first_s * 2.0 ** min(self.waits, 20), WAIT_S_MAX)
        self.next_ns = now_ns + int(wait_s * NS_PER_S)


@dataclass(frozen=True, slots=True)
class Action:
    """What to do now about one symbol's channel."""

    what: str
    row: int
    channel: int


class Silence:
    """Cases by (row, channel). Times are boot ns; `ages` as in the ring, `acked` row -> ns."""

    def __init__(self) -> None:
        self._cases: dict[tuple[int, int], Case] = {}

    def judge(
        self, now_ns: int, ages: Table, market: Mapping[int, int], public: Mapping[int, int]
    ) -> list[Action]:
        """Look at every channel that is acked, by route; what is to be done."""
        actions: list[Action] = []
        looks: list[Action] = []
        for acked, channels in ((market, (TRADE, MARK)), (public, (QUOTE,))):
            for row, acked_ns in acked.items():
                for channel in channels:
                    spoke_ns = int(ages[row, channel])
                    witness_ns = int(ages[row, TRADE]) if channel == QUOTE else now_ns
                    silent_ns = witness_ns - max(spoke_ns, acked_ns)
                    silent = silent_ns > _FIRST_S[channel] * NS_PER_S
                    action = self._judge((row, channel), now_ns, spoke_ns, silent)
                    if action is not None:
                        (looks if action.what == LOOK else actions).append(action)
        for look in looks[:LOOKS_MAX]:
            self._cases[look.row, look.channel].next_ns = now_ns + int(TRADE_S * NS_PER_S)
        return actions + looks[:LOOKS_MAX]

    def told(self, row: int, newest_id: int, now_ns: int) -> bool:
        """REST named a symbol's newest trade; whether that proves its channel silent."""
        case = self._cases.get((row, TRADE))
        if case is None:
            return False  # it traded meanwhile
        case.believed = 0 <= case.newest_id < newest_id
        if case.believed:
            case.next_ns = now_ns
        elif case.newest_id >= 0:
            case.wait(now_ns, TRADE_S)  # quiet, not silent
        case.newest_id = newest_id
        return case.believed

    def forget(self, row: int) -> None:
        """The symbol leaves."""
        for channel in (TRADE, QUOTE, MARK):
            self._cases.pop((row, channel), None)

    def _judge(
        self, key: tuple[int, int], now_ns: int, spoke_ns: int, silent: bool
    ) -> Action | None:
        case, (row, channel) = self._cases.get(key), key
        if case is not None and spoke_ns > case.opened_ns:
            del self._cases[key]
            return None
        if not silent:  # or acked anew: time is given by next_ns
            return None
        if case is None:
            case = self._cases[key] = Case(now_ns, now_ns)
        if now_ns < case.next_ns:
            return None
        if channel == TRADE and not case.believed:
            return Action(LOOK, row, channel)
        what = RESUBSCRIBE if case.answers % 2 == 0 else REPLACE
        case.answers += 1
        case.believed = False  # of trades: to be proven again
        case.wait(now_ns, _FIRST_S[channel])
        return Action(what, row, channel)
