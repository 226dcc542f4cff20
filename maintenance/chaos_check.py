"""What must hold after chaos: named checks of risk's own record against the exchange's ledger.

Pure. `Evidence` is everything that was written by anybody; each check is a function from it to
sentences, one for each violation, and an empty list is the proof. The sums, positions and stops
of the ledger are maintenance/audit.py's; here they meet what risk wrote in Redis.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from statistics import median
from typing import Final

from maintenance import audit
from maintenance.audit import Audit, Event
from risk.orders import LEG_NAMES, TERMINAL

TOLD_MAX: Final = 20  # violations of one check that are written out; all are counted
FOREIGN_TOLD_MS: Final = 1_500  # the stream tells risk of it, and a decided entry may wait 1 s
SETTINGS_TOLD_MS: Final = 1_500  # the same of leverage and margin type that others changed
FLATTENS: Final = (LEG_NAMES["c"], LEG_NAMES["x"])
LEVERAGE_MAX: Final = 3  # what risk sets at most while its limits are those of the run
FOREVER: Final = 1 << 62
INFERRED: Final = frozenset({"rejected", "canceled"})  # by silence; a fill told later overrides it
DOUBLED: Final = ("was accepted twice", "two entries of one cause")

Entry = tuple[str, Mapping[str, str]]  # of a stream: id and fields
Span = tuple[int, int]  # wall ms, from and to


@dataclass(frozen=True, slots=True)
class Evidence:
    """All that was written, after everything came to rest and was closed."""

    ledger: Sequence[Event]
    orders: Sequence[Entry]
    fills: Sequence[str]  # symbol:trade_id
    fill_sums: Mapping[str, Decimal]
    wallet: Decimal | None
    held: Mapping[str, Decimal]  # at rest, before the last positions were closed: in Redis ...
    held_there: Mapping[str, Decimal]  # ... and at the venue
    positions: Mapping[str, Decimal]  # in Redis at the end
    open_ids: frozenset[str]  # orders that Redis calls open
    open_there: frozenset[str]  # client ids at rest on the venue
    pending: Mapping[str, int]  # by stream: read and never acknowledged
    signals: frozenset[str]  # ids that Redis took
    decided: frozenset[str]  # signals with a decision, an order or a place among the dead
    forgotten: frozenset[str]  # ids of `orders` that Redis was made to lose after they were read
    lost_signals: frozenset[str]  # that Redis took and was made to lose
    booked: Sequence[Mapping[str, str]]  # the ledger in Redis
    book_sums: Mapping[str, Decimal]  # by kind of money, as risk sums it
    taken_over: Sequence[Span]  # from a fault that cost the holder its lease to the next one
    refused: Sequence[Span]  # the exchange took nothing from us
    positions_max: int
    naked_ms_max: int
    naked_ms_max_over_all: int  # take-overs included
    foreign: Sequence[tuple[str, int, int]] = ()  # symbol; wall ms in which it was another's
    takeovers: Sequence[tuple[str, int]] = ()  # by what, ms until the next holder traded
    takeover_ms_max: int = FOREVER
    deaths: Sequence[int] = ()  # wall ms: a holder died while it took over
    unrest: Sequence[str] = ()  # what did not come to rest in time
    mistakes: Sequence[str] = ()  # processes that died by themselves, errors that they call theirs
    books: Audit = field(init=False)
    accepted: frozenset[str] = field(init=False)  # client ids that the exchange took

    @property
    def excused(self) -> list[Span]:
        return [*self.taken_over, *self.refused]

    @property
    def begun_anew(self) -> list[Span]:
        return [*self.refused, *((ms, ms) for ms in self.deaths)]

    def __post_init__(self) -> None:
        object.__setattr__(self, "books", audit.audit(self.ledger, FOREVER))
        taken = (v for v in self.ledger if v["type"] in ("order_new", "algo_new"))
        names = frozenset(str(v.get("client_id", "")) for v in taken)
        object.__setattr__(self, "accepted", names)


def intents_end_once(e: Evidence) -> list[str]:
    """Every intent has one terminal state. One that Redis forgot whole, and that the exchange never
    saw, nobody can know any more."""
    ends: dict[str, list[str]] = {}
    last: dict[str, str] = {}
    for entry_id, row in e.orders:
        if entry_id not in e.forgotten or row["id"] in last or row["id"] in e.accepted:
            last[row["id"]] = row["state"]
        if row["state"] in TERMINAL:
            told = ends.setdefault(row["id"], [])
            if row["state"] not in told:
                told.append(row["state"])
    wrong = [f"order {name} ends as {s}" for name, s in last.items() if s not in TERMINAL]
    for name, told in ends.items():
        final = told[1:] if len(told) > 1 and told[0] in INFERRED else told
        if len(final) > 1:
            wrong.append(f"order {name} ended more than once: {', '.join(told)}")
    return wrong


def one_order_per_id(e: Evidence) -> list[str]:
    """The exchange accepted a client id, and an entry of a cause, at most once."""
    return [text for text in e.books.violations if any(word in text for word in DOUBLED)]


def logged_before_sent(e: Evidence) -> list[str]:
    """No order of ours without its record; an entry's record is older than the order. Legs that
    protect go out at once and are recorded with or after their sending."""
    first: dict[str, int] = {}
    for entry_id, row in e.orders:
        first.setdefault(row["id"], int(entry_id.split("-")[0]))
    wrong = []
    for event in e.ledger:
        name = str(event.get("client_id", ""))
        if event["type"] not in ("order_new", "algo_new") or not name.startswith(audit.OURS):
            continue
        if name not in first:
            wrong.append(f"seq {event['seq']}: order {name} was never recorded")
        elif audit.leg_of(name) == "e" and first[name] > int(event["wall_ms"]):
            late_ms = first[name] - int(event["wall_ms"])
            wrong.append(f"seq {event['seq']}: entry {name} was recorded {late_ms} ms after it")
    return wrong


def positions_agree(e: Evidence) -> list[str]:
    """Fills, venue and Redis hold the same, at rest and at the end; each fill stands once."""
    wrong = audit.compare(e.books, e.positions, e.fills, e.books.balance, e.fill_sums)
    for symbol in sorted({*e.held, *e.held_there}):
        ours, there = e.held.get(symbol, audit.ZERO), e.held_there.get(symbol, audit.ZERO)
        if ours != there:
            wrong.append(f"{symbol} at rest: the venue held {there}, Redis said {ours}")
    return wrong


def wallet_agrees(e: Evidence) -> list[str]:
    """Deposits + realised - fees + funding is the venue's balance, and Redis says the same."""
    wrong = [text for text in e.books.violations if not any(word in text for word in DOUBLED)]
    wrong += [
        text
        for text in audit.compare(e.books, e.books.positions, e.books.fills, e.wallet,
                                  e.books.positions)
        if "wallet" in text
    ]  # fmt: skip
    return wrong


def ledger_agrees(e: Evidence) -> list[str]:
    """Fees and realised profit of each fill of ours and all funding stand once in Redis, to the
    last digit, and risk's own sums are theirs."""
    mine, there = set(e.books.fills), Counter[tuple[str, Decimal]]()
    for event in e.ledger:
        if event["type"] == "funding" and Decimal(event["amount"]):
            there[f"funding {event['symbol']}", Decimal(event["amount"])] += 1
        elif event["type"] == "trade":
            name = f"{event['symbol']}:{event['trade_id']}"
            for kind, amount in (("fee", -Decimal(event["fee"])), ("realised", event["realised"])):
                if name in mine and Decimal(amount):
                    there[f"{kind}:{name}", Decimal(amount)] += 1
    here = Counter[tuple[str, Decimal]]()
    for row in e.booked:
        if row["kind"] in ("fee", "realised"):
            here[row["id"], Decimal(row["amount"])] += 1
        elif row["kind"] == "funding":
            here[f"funding {row['symbol']}", Decimal(row["amount"])] += 1
    wrong = [f"{name} {money} is missing in Redis" for name, money in (there - here).elements()]
    wrong += [f"{name} {money} stands only in Redis" for name, money in here - there]
    for kind, total in e.book_sums.items():
        worth = (Decimal(r.get("usdt", r["amount"])) for r in e.booked if r["kind"] == kind)
        rows = sum(worth, audit.ZERO)
        if rows != total:
            wrong.append(f"{kind} in the ledger sums to {rows}, risk says {total}")
    return wrong


def epochs_rise(e: Evidence) -> list[str]:
    """What a former holder wrote never follows what a later one wrote."""
    wrong, highest = [], 0
    for entry_id, row in e.orders:
        epoch = int(row["epoch"])
        if epoch < highest:
            wrong.append(f"orders {entry_id}: epoch {epoch} after {highest}")
        highest = max(highest, epoch)
    return wrong


def nothing_pending(e: Evidence) -> list[str]:
    """Everything read was acknowledged."""
    return [f"{count} entries of {key} pending" for key, count in e.pending.items() if count]


def signals_decided(e: Evidence) -> list[str]:
    """Every signal that Redis took has a decision, but those that it was made to lose."""
    kept = e.signals - e.lost_signals
    return [f"signal {name} was never decided" for name in sorted(kept - e.decided)]


def positions_within(e: Evidence) -> list[str]:
    """At no point of the ledger more positions than allowed."""
    most = e.books.positions_max
    return [f"{most} positions at once, {e.positions_max} allowed"] * (most > e.positions_max)


def stops_in_time(e: Evidence) -> list[str]:
    """No position without its resident stop for longer than allowed while risk could act."""
    return [
        f"{symbol} was naked for {ms} ms while risk was alive, limit {e.naked_ms_max} ms"
        for symbol, ms in naked(e, e.excused, e.naked_ms_max)
        if ms > e.naked_ms_max
    ]


def stops_over_all(e: Evidence) -> list[str]:
    """Nor for longer than a take-over may last, whoever was dead; a new holder that dies as well
    leaves its successor a take-over of its own."""
    return [
        f"{symbol} was naked for {ms} ms, limit {e.naked_ms_max_over_all} ms"
        for symbol, ms in naked(e, e.begun_anew, e.naked_ms_max_over_all)
        if ms > e.naked_ms_max_over_all
    ]


def takeovers_in_time(e: Evidence) -> list[str]:
    """From the moment the holder could no longer act, the next one trades within the limit."""
    return [
        f"take-over after {kind} took {ms} ms, limit {e.takeover_ms_max} ms"
        for kind, ms in e.takeovers
        if ms > e.takeover_ms_max
    ]


def foreign_left_alone(e: Evidence) -> list[str]:
    """Where somebody else had a position or an order and we had nothing, no order of ours came."""
    wrong = []
    for event in e.ledger:
        ours = str(event.get("client_id", "")).startswith(audit.OURS)
        if event["type"] not in ("order_new", "algo_new") or not ours:
            continue
        for symbol, start_ms, end_ms in e.foreign:
            if (
                event["symbol"] == symbol
                and start_ms + FOREIGN_TOLD_MS <= event["wall_ms"] < end_ms
            ):
                wrong.append(f"seq {event['seq']}: {event['client_id']} on {symbol}, not ours")
    return wrong


def settings_verified(e: Evidence) -> list[str]:
    """Every entry is isolated at no more than our leverage, whoever changed it before."""
    wrong = []
    changed: dict[tuple[str, str], tuple[str, int]] = {}
    for event in e.ledger:
        if event["type"] in ("leverage", "margin_type"):
            place = event["type"], event["symbol"]
            changed[place] = str(event["value"]), int(event["wall_ms"])
        if event["type"] != "order_new" or audit.leg_of(str(event.get("client_id", ""))) != "e":
            continue
        for kind, default in (("leverage", "20"), ("margin_type", "cross")):
            value, since_ms = changed.get((kind, event["symbol"]), (default, 0))
            bad = value != "isolated" if kind == "margin_type" else int(value) > LEVERAGE_MAX
            if bad and int(event["wall_ms"]) > since_ms + SETTINGS_TOLD_MS:
                wrong.append(f"seq {event['seq']}: entry on {event['symbol']}, {kind} {value}")
    return wrong


def nothing_left_open(e: Evidence) -> list[str]:
    """No order at rest that nobody knows, none known that is not there."""
    wrong = [f"order {name} rests at the venue" for name in sorted(e.open_there)]
    return wrong + [f"Redis calls order {name} open" for name in sorted(e.open_ids)]


def came_to_rest(e: Evidence) -> list[str]:
    """After the last fault everything settled in bounded time."""
    return list(e.unrest)


def no_own_mistakes(e: Evidence) -> list[str]:
    """Nobody died by itself or called an error its own."""
    return list(e.mistakes)


Check = Callable[[Evidence], list[str]]
CHECKS: Final[dict[str, Check]] = {
    "every intent ends once": intents_end_once,
    "one order per client id": one_order_per_id,
    "logged before sent": logged_before_sent,
    "positions agree": positions_agree,
    "wallet agrees": wallet_agrees,
    "ledger agrees": ledger_agrees,
    "epochs rise": epochs_rise,
    "nothing pending": nothing_pending,
    "signals decided": signals_decided,
    "positions within limit": positions_within,
    "stops in time": stops_in_time,
    "stops in time over all": stops_over_all,
    "take-over in time": takeovers_in_time,
    "foreign left alone": foreign_left_alone,
    "settings verified": settings_verified,
    "nothing left open": nothing_left_open,
    "came to rest": came_to_rest,
    "no own mistakes": no_own_mistakes,
}


def check_all(evidence: Evidence) -> dict[str, list[str]]:
    """Violations by check, each check in it."""
    return {name: check(evidence) for name, check in CHECKS.items()}


# --- time without a stop -----------------------------------------------------------------------


def naked(e: Evidence, excused: Iterable[Span], limit_ms: int) -> list[tuple[str, int]]:
    """(symbol, longest time without a stop that nothing excuses) of each position.

    A position that found no stop is flattened instead: a flatten that was begun within the limit
    is judged from its beginning.
    """
    spans = merged(excused)
    begun = flattens(e.orders)
    return [
        (
            holding.symbol,
            max(
                (
                    judged(piece, begun.get(holding.symbol, ()), limit_ms)
                    for span in holding.naked_spans
                    for piece in uncovered(span, spans)
                ),
                default=0,
            ),
        )
        for holding in e.books.holdings
    ]


def flattens(orders: Sequence[Entry]) -> dict[str, list[int]]:
    """By symbol, when an exit was first recorded with its size; risk sends it at that moment."""
    first: dict[str, tuple[str, int]] = {}
    for _, row in orders:
        if row["leg"] in FLATTENS and Decimal(row.get("qty", "0")) > 0:
            first.setdefault(row["id"], (row["symbol"], int(row["wall_ms"])))
    begun: dict[str, list[int]] = {}
    for symbol, ms in first.values():
        begun.setdefault(symbol, []).append(ms)
    return {symbol: sorted(times) for symbol, times in begun.items()}


def judged(piece: Span, begun: Sequence[int], limit_ms: int) -> int:
    """Length of a piece of naked time; from the first flatten on, where one began in time."""
    start, end = piece
    if end - start <= limit_ms:
        return end - start
    first = next((ms for ms in begun if ms >= start), end)
    return end - first if first - start <= limit_ms else end - start


def merged(spans: Iterable[Span]) -> list[Span]:
    """The same times, in order and without overlap."""
    made: list[Span] = []
    for start, end in sorted(spans):
        if made and start <= made[-1][1]:
            made[-1] = (made[-1][0], max(end, made[-1][1]))
        else:
            made.append((start, end))
    return made


def uncovered(span: Span, spans: Sequence[Span]) -> list[Span]:
    """The pieces of `span` that none of `spans` covers: each excuse starts the limit anew."""
    pieces, at = [], span[0]
    for start, end in spans:
        if end <= at or start >= span[1]:
            continue
        pieces.append((at, start))
        at = max(at, end)
    pieces.append((at, max(at, span[1])))
    return [(start, end) for start, end in pieces if end > start]


def counts(e: Evidence) -> dict[str, int]:
    """What the run was made of."""
    ours = [v for v in e.ledger if str(v.get("client_id", "")).startswith(audit.OURS)]
    placed = [v for v in ours if v["type"] in ("order_new", "algo_new") and not v.get("algo")]
    return {
        "signals": len(e.signals),
        "intents": len({row["id"] for _, row in e.orders}),
        "entries": len({row["id"] for _, row in e.orders if row["leg"] == LEG_NAMES["e"]}),
        "orders_at_exchange": len(placed),
        "intents_at_exchange": len({v["client_id"] for v in placed}),
        "intents_filled": len({v["client_id"] for v in ours if v["type"] == "trade"}),
        "fills": len(e.books.fills),
        "round_trips": e.books.round_trips,
        "positions_max": e.books.positions_max,
        "naked_ms_max": max((ms for _, ms in naked(e, e.excused, 0)), default=0),
        "naked_ms_max_over_all": max((ms for _, ms in naked(e, e.begun_anew, 0)), default=0),
        "takeovers": len(e.takeovers),
        "takeover_ms_max": max((ms for _, ms in e.takeovers), default=0),
        "takeover_ms_median": round(median([ms for _, ms in e.takeovers] or [0])),
    }
