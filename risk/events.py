"""What happens to risk, and what risk wants done: the vocabulary of `step`.

Events go in, effects come out; both are plain data, so the same decisions are carried out over
Redis and HTTP by risk/main.py, on a virtual clock by a backtest, and with faults by a test. An
answer of the exchange is a value (`Done`, `Refused`, `Unknown`, `Throttled`), never an exception:
what cannot be known is a case like the others.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from msgspec import Struct
from msgspec.structs import replace

# Outgoing work in order of urgency; the number is the heap's key.
PROTECT: Final = 0  # a stop, an exit: somebody's money is at risk now
TARGET: Final = 1
CANCEL: Final = 2
RECONCILE: Final = 3
ENTRY: Final = 4
HISTORY: Final = 5

OPS_MAX: Final = 128  # of commits that become one: a millisecond of Redis

Params = Mapping[str, str]
Op = tuple[Any, ...]


class Now(Struct, frozen=True):
    """The clocks at one step, read once by whoever calls it."""

    boot_ms: float  # deadlines, leases
    market_ms: float  # ages, holds
    valid_until_ms: float  # boot time until which the lease surely is ours
    speed: float = 1.0  # market milliseconds per real one
    wall_ms: int = 0  # for people


# --- what the exchange answers -----------------------------------------------------------------


class Done(Struct, frozen=True):
    """The exchange did it; `body` is its JSON."""

    body: Any


class Refused(Struct, frozen=True):
    """It was surely not done. `code` is the exchange's, or 0 when we refused it ourselves."""

    code: int
    reason: str


class Unknown(Struct, frozen=True):
    """It may or may not have been done."""

    reason: str


class Throttled(Struct, frozen=True):
    """Not done, and the exchange names the time (boot ms) before which it wants no more."""

    until_ms: float
    reason: str


Result = Done | Refused | Unknown | Throttled


# --- effects -----------------------------------------------------------------------------------


class Request(Struct, frozen=True):
    """One call to the exchange. `about` is a client order id or a symbol; `purpose` says why."""

    method: str
    path: str
    params: Params
    about: str
    purpose: str
    priority: int
    fenced: bool = False  # an entry: refused in the last hook before the socket without a lease


class Send(Request, frozen=True):
    """Place an order or change a setting."""


class Cancel(Request, frozen=True):
    """Take an order back."""


class Query(Request, frozen=True):
    """Ask; harmless to repeat."""


class Timer(Struct, frozen=True):
    """Call step with a Due at this boot time, or soon after."""

    at_ms: float


class Note(Struct, frozen=True):
    """One line for the log; `level` is logging's name. Critical ones become alerts."""

    level: str
    text: str


class Snap(Struct, frozen=True):
    """Take a snapshot of the exchange's truth and feed it back as an event."""

    reason: str
    command_id: str = ""


class Watch(Struct, frozen=True):
    """The symbols whose best bid and ask risk needs to see from now on."""

    symbols: tuple[str, ...]


class Commit(Struct, frozen=True):
    """One atomic, fenced write. `then` is carried out only after it is known to be written.

    Refused or failed, `then` is dropped and CommitFailed is fed back with this commit. Commits are
    written in the order of their making; one in a hurry comes first, and its `then` waits for it
    only a moment.
    """

    ops: tuple[Op, ...]
    about: str = ""
    ack: tuple[str, str, str] | None = None
    armed: bool = False
    unless: tuple[str, ...] = ()
    then: tuple[Effect, ...] = ()
    hurry: bool = False

    @property
    def plain(self) -> bool:
        """Nothing waits for it, and it is on no condition."""
        return not (self.ack or self.armed or self.unless or self.then or self.hurry)


Effect = Commit | Send | Cancel | Query | Timer | Note | Snap | Watch


# --- events ------------------------------------------------------------------------------------


class SignalRead(Struct, frozen=True):
    """An entry of the signals stream, ours until it is acknowledged."""

    entry_id: str
    fields: Mapping[str, str]


class CommandRead(Struct, frozen=True):
    entry_id: str
    fields: Mapping[str, str]


class Replied(Struct, frozen=True):
    """The answer to a request."""

    request: Request
    result: Result
    sent_ms: float = 0.0  # boot time
    received_ms: float = 0.0


class Pushed(Struct, frozen=True):
    """One frame of the user stream, as the exchange wrote it."""

    frame: Mapping[str, Any]


class QuoteSeen(Struct, frozen=True):
    symbol: str
    bid: str
    ask: str
    ms: float  # market time


class MarksSeen(Struct, frozen=True):
    """Rows of (symbol, mark price, funding rate, next funding ms)."""

    rows: tuple[tuple[str, str, str, int], ...]
    ms: float


class SnapshotTaken(Struct, frozen=True):
    """The exchange's truth as of `snapshot.started_ms`; answers Snap."""

    snapshot: Any  # reconcile.Snapshot
    reason: str
    command_id: str = ""


class HistoryRead(Struct, frozen=True):
    """What the exchange remembers, before the first snapshot of a holder."""

    history: Any  # history.History


class CommitFailed(Struct, frozen=True):
    """`outcome`: stale, disarmed, duplicate (nothing written) or failed (nobody knows)."""

    commit: Commit
    outcome: str


class Due(Struct, frozen=True):
    """A deadline that was asked for has come."""


class Tick(Struct, frozen=True):
    """Time passed: deadlines, and what is only looked at now and then."""


class Trouble(Struct, frozen=True):
    """A connection that risk depends on was lost and is back: no entry before a reconcile."""

    reason: str


class Stopping(Struct, frozen=True):
    """No more entries; finish what is in flight."""


Event = (
    SignalRead
    | CommandRead
    | Replied
    | Pushed
    | QuoteSeen
    | MarksSeen
    | SnapshotTaken
    | HistoryRead
    | CommitFailed
    | Due
    | Tick
    | Trouble
    | Stopping
)


@dataclass(slots=True)
class Effects:
    """Collects the effects of one step in order."""

    items: list[Effect] = field(default_factory=list)

    def add(self, *effects: Effect) -> None:
        self.items.extend(effects)

    def merged(self) -> list[Effect]:
        """The effects, plain commits that follow each other as one: written together or not at
        all. Of several HSETs of one hash the last remains where it says all that they said."""
        made: list[Effect] = []
        at = -1  # of the commit that others may join
        for effect in self.items:
            if isinstance(effect, Commit):
                first = made[at] if at >= 0 and effect.plain else None
                if isinstance(first, Commit) and len(first.ops) < OPS_MAX:
                    made[at] = replace(first, ops=first.ops + effect.ops)
                    continue
                at = len(made) if effect.plain else -1
            made.append(effect)
        return [_lean(e) if isinstance(e, Commit) and len(e.ops) > 1 else e for e in made]


def _lean(commit: Commit) -> Commit:
    """Without the HSETs that a later one of the same commit makes needless."""
    later: dict[str, Mapping[str, str]] = {}
    kept: list[Op] = []
    for op in reversed(commit.ops):
        if op[0] == "hset":
            said = later.get(op[1])
            if said is not None and op[2].keys() <= said.keys():
                continue
            later[op[1]] = op[2]
        elif op[0] in ("del", "hdel", "expire"):  # they need what is there by then
            later.pop(op[1], None)
        kept.append(op)
    if len(kept) == len(commit.ops):
        return commit
    return replace(commit, ops=tuple(reversed(kept)))
