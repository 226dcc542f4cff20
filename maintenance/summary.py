"""The proof at the end of a run: the venue's ledger against what came through, to the last tick.

Pure balances over counters, candles and ledgers; `gather` fetches them while the market is
paused. A number that cannot be known is never made up: what was in flight when a connection died
is told apart from what is lost.
"""

from __future__ import annotations

import json
import urllib.request
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any, Final

import streams
from maintenance import audit, universe
from maintenance.running import Client

SOCKET_BYTES_MAX: Final = 6 << 20  # what Linux lets one TCP receive buffer grow to
SUM_TOLERANCE: Final = 1e-9  # volumes are sums of floats here and exact decimals there
LEDGER_PAGE: Final = 5_000
LEDGER_PAGES_MAX: Final = 1_000
FILLS_PAGE: Final = 5_000
KLINES: Final = 130  # the brain keeps 128 closed candles and the forming one
KLINE_TRADES: Final = 8  # index in a row of GET klines
# The count of trades is left out: klines count single trades, the market sends aggregated ones.
EXACT: Final = ("open", "high", "low", "close")
SUMMED: Final = ("volume", "quote_volume", "taker_buy")
EXAMPLES_MAX: Final = 5


@dataclass(frozen=True, slots=True)
class TradeTally:
    """One symbol's trades: what the venue made last, and what the brain consumed."""

    symbol: str
    venue_last_id: int
    newest_id: int  # brain's newest
    consumed: int
    declared: int  # lost by feed's own word
    jumps: int  # jumps of the id that nobody declared
    skipped: int  # covered by the bars of a fresh announcement


def trades_lost(tally: TradeTally) -> int:
    """Trades that never came, declared or not. A jump misses one at least."""
    if tally.venue_last_id == 0:
        return 0
    return max(tally.venue_last_id - tally.newest_id, 0) + tally.declared + tally.jumps


def misplaced(tallies: Sequence[TradeTally], wanted: Collection[str]) -> list[str]:
    """Symbols that do not live in exactly one lane, in words: nobody else would count them."""
    homes = Counter(tally.symbol for tally in tallies)
    many = [f"{name}: lives in {count} lanes" for name, count in homes.items() if count > 1]
    return many + [f"{name}: lives in no lane" for name in sorted(wanted) if name not in homes]


@dataclass(frozen=True, slots=True)
class QuoteTally:
    """Quotes over all of feed's connections, by counts."""

    sent: int  # written to feed's sockets
    afloat_max: int  # that socket buffers may have held when connections ended
    refused: int
    conflated: int
    consumed: int  # by the brain
    received: int = 0  # on the way, for the reader: what feed took from its sockets ...
    published: int = 0  # ... and laid into the ring


def quotes_lost(tally: QuoteTally) -> tuple[int, int, int]:
    """(lost, in flight, counted twice). Only where a connection ended something was in flight; a
    brain that was killed counts again what it takes again."""
    missing = tally.sent - tally.refused - tally.conflated - tally.consumed
    in_flight = min(max(missing, 0), tally.afloat_max)
    return max(missing - in_flight, 0), in_flight, max(-missing, 0)


def afloat_max(connection: Mapping[str, Any]) -> int:
    """Quotes that may have been in the socket's buffers when this connection ended."""
    frames = int(connection["trades"]) + int(connection["quotes"]) + int(connection["marks"])
    if connection["open"] or not frames:
        return 0
    held = SOCKET_BYTES_MAX * frames // max(int(connection["bytes"]), 1)
    return min(int(connection["quotes"]), held)


def refusals(node: Mapping[str, str]) -> dict[str, int]:
    """Feed's refusals by reason; what the firewall turned away."""
    prefix = "feed.refused_"
    made = {k.removeprefix(prefix): int(v) for k, v in node.items() if k.startswith(prefix)}
    made["malformed"] = int(node.get("feed.malformed", 0))
    return {reason: count for reason, count in made.items() if count}


# --- candles -------------------------------------------------------------------------------------


def kline_row(row: Sequence[Any]) -> dict[str, float]:
    """One row of GET klines by name."""
    return {
        "open_ms": int(row[0]),
        "open": float(row[1]),
        "high": float(row[2]),
        "low": float(row[3]),
        "close": float(row[4]),
        "volume": float(row[5]),
        "quote_volume": float(row[7]),
        "taker_buy": float(row[9]),
    }


def unequal(ours: Mapping[str, float], theirs: Mapping[str, float]) -> str | None:
    """Every field in which two candles differ, with both values; None when they agree."""
    off = dict.fromkeys(EXACT, 0.0)
    off |= {name: SUM_TOLERANCE * max(1.0, abs(theirs[name])) for name in SUMMED}
    found = [
        f"{name} {ours[name]} != {theirs[name]}"
        for name, allowed in off.items()
        if not abs(ours[name] - theirs[name]) <= allowed  # NaN differs too
    ]
    return ", ".join(found) or None


def compare_candles(
    label: str,
    ours: Sequence[Mapping[str, float]],
    klines: Sequence[Sequence[Any]],
    since_ms: int,
    span_ms: int,
) -> tuple[int, list[str]]:
    """(checked, differences) of the candles that end after `since_ms`; a missing one differs.

    The last of `klines` is still forming: until it has its first trade nobody need have it.
    """
    theirs = {int(row[0]): kline_row(row) for row in klines}
    unborn_ms = next((int(row[0]) for row in klines[-1:] if int(row[KLINE_TRADES]) == 0), None)
    checked, wrong = 0, []
    for candle in ours:
        open_ms = int(candle["open_ms"])
        if open_ms + span_ms <= since_ms:
            continue
        checked += 1
        at_venue = theirs.get(open_ms)
        why = "unknown to the venue" if at_venue is None else unequal(candle, at_venue)
        if why is not None:
            wrong.append(f"{label} {open_ms}: {why}")
    have = {int(candle["open_ms"]) for candle in ours}
    first = min(have, default=since_ms)
    for open_ms in theirs:
        wanted = open_ms >= max(first, since_ms - span_ms + 1) and open_ms != unborn_ms
        if wanted and open_ms not in have:
            checked += 1
            wrong.append(f"{label} {open_ms}: missing")
    return checked, wrong


# --- I/O -----------------------------------------------------------------------------------------


def post(url: str) -> None:
    """One POST without a body."""
    request = urllib.request.Request(url, data=b"", method="POST")  # noqa: S310 (config: http)
    with urllib.request.urlopen(request, timeout=universe.HTTP_TIMEOUT_S) as answer:  # noqa: S310
        answer.read(1 << 20)


def fetch_ledger(venue_url: str) -> list[dict[str, Any]]:
    """All events, page by page."""
    events: list[dict[str, Any]] = []
    for _ in range(LEDGER_PAGES_MAX):
        start = int(events[-1]["seq"]) + 1 if events else 0
        page = universe.get_json(
            f"{venue_url}/venue/v1/ledger?from_seq={start}&limit={LEDGER_PAGE}"
        )["events"]
        if not page:
            return events
        events += page
    raise ValueError(f"the ledger has more than {LEDGER_PAGE * LEDGER_PAGES_MAX} events")


def redis_books(
    r: Client, keys: streams.Keys
) -> tuple[dict[str, Decimal], list[str], dict[str, Decimal], Decimal | None]:
    """(signed positions, fills as symbol:trade_id, signed sums of them, wallet) from Redis."""
    positions: dict[str, Decimal] = {}
    for symbol in r.smembers(keys.positions):
        told: dict[str, str] = r.hgetall(keys.position(symbol))
        qty = Decimal(told.get("qty", "0"))
        positions[symbol] = qty if told.get("side") == "buy" else -qty
    fills: list[str] = []
    sums: dict[str, Decimal] = {}
    start = "-"
    while True:
        page = r.xrange(keys.fills, start, "+", count=FILLS_PAGE)
        for _, fill in page:
            fills.append(f"{fill['symbol']}:{fill['trade_id']}")
            qty = Decimal(fill["qty"]) * (1 if fill["side"] == "buy" else -1)
            sums[fill["symbol"]] = sums.get(fill["symbol"], Decimal(0)) + qty
        if not page:
            break
        start = f"({page[-1][0]}"
    wallet = r.hget(keys.portfolio, "wallet")
    return positions, fills, sums, None if wallet is None else Decimal(str(wallet))


def check_books(
    r: Client, keys: streams.Keys, events: Sequence[Mapping[str, Any]], positions_max: int
) -> tuple[audit.Audit, list[str]]:
    """The ledger's own audit and its comparison with Redis."""
    result = audit.audit(events, positions_max)
    positions, fills, sums, wallet = redis_books(r, keys)
    return result, audit.compare(result, positions, fills, wallet, sums)


def check_candles(
    venue_url: str, brain_files: Sequence[Path], symbols_max: int, since_ms: int | None
) -> tuple[int, list[str], list[TradeTally]]:
    """Every kept candle of every symbol and timeframe of all lanes, forming ones too, and the
    trade tallies. No candles where `since_ms` is None: a market that cannot be stopped moves on
    while it is asked."""
    from brain import state as brain_state

    sent = universe.get_json(f"{venue_url}/venue/v1/sent")["symbols"]
    checked = 0
    wrong: list[str] = []
    tallies: list[TradeTally] = []
    for path in brain_files:
        if not path.exists():  # this lane has not started yet: its symbols live in none
            continue
        state = brain_state.open_state(path, symbols_max, create=False)
        for row in range(state.symbols_max):
            if not state.arrays.sym[row, brain_state.ACTIVE]:
                continue
            name = state.name(row)
            tallies.append(_tally(brain_state, state.arrays.sym[row], name, sent.get(name, {})))
            if since_ms is None:
                continue
            seen, differ = _check_symbol(venue_url, brain_state, state, row, since_ms)
            checked, wrong = checked + seen, wrong + differ
    return checked, wrong, tallies


def _check_symbol(
    venue_url: str, module: Any, state: Any, row: int, since_ms: int
) -> tuple[int, list[str]]:
    """(checked, differences) of one symbol's candles in every timeframe."""
    from records import TIMEFRAME_NAMES, TIMEFRAMES_MIN

    name, a = state.name(row), state.arrays
    checked = 0
    wrong: list[str] = []
    for t, (timeframe, minutes) in enumerate(zip(TIMEFRAME_NAMES, TIMEFRAMES_MIN, strict=True)):
        ours = [
            {field: float(candle[field]) for field in candle.dtype.names}
            for candle in module.candles(state, row, timeframe)
        ]
        if a.forming[row, t, module.COUNT] > 0:
            named = dict(zip(module.BAR_FIELDS, a.forming[row, t].tolist(), strict=True))
            ours.append({"open_ms": float(a.forming_at[row, t]), **named})
        klines = universe.get_json(
            f"{venue_url}/fapi/v1/klines?symbol={name}&interval={timeframe}&limit={KLINES}"
        )
        label, span_ms = f"{name} {timeframe}", minutes * 60_000
        seen, differ = compare_candles(label, ours, klines, since_ms, span_ms)
        checked, wrong = checked + seen, wrong + differ
    return checked, wrong


def _tally(module: Any, row: Any, name: str, sent: Mapping[str, int]) -> TradeTally:
    return TradeTally(
        symbol=name,
        venue_last_id=int(sent.get("last_id") or 0),
        newest_id=int(row[module.NEWEST_ID]),
        consumed=int(row[module.TRADES]),
        declared=int(row[module.LOST]),
        jumps=int(row[module.GAPS]),
        skipped=int(row[module.SKIPPED]),
    )


def quote_tally(connections: Sequence[Mapping[str, Any]], node: Mapping[str, str]) -> QuoteTally:
    """Feed's own connections are the combined streams; risk asks for raw ones."""
    ours = [c for c in connections if is_feed(c)]
    counters = (item for item in node.items() if item[0].startswith(("feed.", "brain.")))
    number = {name: int(value) for name, value in counters if value.lstrip("-").isdigit()}
    received, conflated = number.get("feed.quotes_received", 0), number.get("feed.conflated", 0)
    refused = sum(refusals(node).values())  # by reason over both kinds; the quotes' share follows
    return QuoteTally(
        sent=sum(int(c["quotes"]) for c in ours),
        afloat_max=sum(afloat_max(c) for c in ours),
        refused=max(received - number.get("feed.quotes", 0) - conflated, 0) if refused else 0,
        conflated=conflated,
        consumed=number.get("brain.quotes", 0),
        received=received,
        published=number.get("feed.quotes", 0),
    )


def is_feed(connection: Mapping[str, Any]) -> bool:
    return "/stream" in str(connection["path"])


def dumps(made: Mapping[str, Any]) -> str:
    """One JSON object on one line."""
    return json.dumps(made, default=str)
