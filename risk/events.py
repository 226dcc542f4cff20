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

# Outgoing work in order of urgency; the number is the heap's key.
PROTECT: Final = 0  # a stop, an exit: somebody's money is at risk now
TARGET: Final = 1
CANCEL: Final = 2
RECONCILE: Final = 3
ENTRY: Final = 4
HISTORY: Final = 5

Params = Mapping[str, str]
Op = tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class Now:
    """The clocks at one step, read once by whoever calls it."""

    boot_ms: float  # deadlines, leases
    market_ms: float  # ages, holds
    valid_until_ms: float  # boot time until which the lease surely is ours
    speed: float = 1.0  # market milliseconds per real one
    wall_ms: int = 0  # for people


# --- what the exchange answers -----------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Done:
    """The exchange did it; `body` is its JSON."""

    body: Any


@dataclass(frozen=True, slots=True)
class Refused:
    """It was surely not done. `code` is the exchange's, or 0 when we refused it ourselves."""

    code: int
    reason: str


@dataclass(frozen=True, slots=True)
class Unknown:
    """It may or may not have been done."""

    reason: str


@dataclass(frozen=True, slots=True)
class Throttled:
    """Not done, and the exchange names the time (boot ms) before which it wants no more."""

    until_ms: float
    reason: str


Result = Done | Refused | Unknown | Throttled


# --- effects -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Request:
    """One call to the exchange. `about` is a client order id or a symbol; `purpose` says why."""

    method: str
    path: str
    params: Params
    about: str
    purpose: str
    priority: int
    fenced: bool = False  # an entry: refused in the last hook before the socket without a lease


@dataclass(frozen=True, slots=True)
class Send(Request):
    """Place an order or change a setting."""


@dataclass(frozen=True, slots=True)
class Cancel(Request):
    """Take an order back."""


@dataclass(frozen=True, slots=True)
class Query(Request):
    """Ask; harmless to repeat."""


@dataclass(frozen=True, slots=True)
class Timer:
    """Call step with a Tick at this boot time, or soon after."""

    at_ms: float


@dataclass(frozen=True, slots=True)
class Note:
    """One line for the log; `level` is logging's name. Critical ones become alerts."""

    level: str
    text: str


@dataclass(frozen=True, slots=True)
class Snap:
    """Take a snapshot of the exchange's truth and feed it back as an event."""

    reason: str
    command_id: str = ""


@dataclass(frozen=True, slots=True)
class Watch:
    """The symbols whose best bid and ask risk needs to see from now on."""

    symbols: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Commit:
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


Effect = Commit | Send | Cancel | Query | Timer | Note | Snap | Watch


# --- events ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class SignalRead:
    """An entry of the signals stream, ours until it is acknowledged."""

    entry_id: str
    fields: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class CommandRead:
    entry_id: str
    fields: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Replied:
    """The answer to a request."""

    request: Request
    result: Result
    sent_ms: float = 0.0  # boot time
    received_ms: float = 0.0


@dataclass(frozen=True, slots=True)
class Pushed:
    """One frame of the user stream, as the exchange wrote it."""

    frame: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class QuoteSeen:
    symbol: str
    bid: str
    ask: str
    ms: float  # market time


@dataclass(frozen=True, slots=True)
class MarksSeen:
    """Rows of (symbol, mark price, funding rate, next funding ms)."""

    rows: tuple[tuple[str, str, str, int], ...]
    ms: float


@dataclass(frozen=True, slots=True)
class SnapshotTaken:
    """The exchange's truth as of `snapshot.started_ms`; answers Snap."""

    snapshot: Any  # reconcile.Snapshot
    reason: str
    command_id: str = ""


@dataclass(frozen=True, slots=True)
class HistoryRead:
    """What the exchange remembers, before the first snapshot of a holder."""

    history: Any  # history.History


@dataclass(frozen=True, slots=True)
class CommitFailed:
    """`outcome`: stale, disarmed, duplicate (nothing written) or failed (nobody knows)."""

    commit: Commit
    outcome: str


@dataclass(frozen=True, slots=True)
class Tick:
    """Time passed."""


@dataclass(frozen=True, slots=True)
class Trouble:
    """A connection that risk depends on was lost and is back: no entry before a reconcile."""

    reason: str


@dataclass(frozen=True, slots=True)
class Stopping:
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
