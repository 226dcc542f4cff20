"""What comes between signals and entries as time goes: breakers, quarantine, silent jobs.

Each is noticed here, told once to log, journal and `status`, kept in the `breakers` hash where a
restart must not forget it, and told again when it is over. None of it touches what protects.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Final

from risk import breakers, journal
from risk.breakers import QUARANTINED
from risk.events import Effects, Note, Now, Op, Refused, Replied, Unknown
from risk.protect import record
from risk.state import Apart, State, facts, standing

WRITE_MS: Final = 1_000.0  # between two writes of a tally in which nothing tripped
JOBS_SILENT_MS: Final = 60_000.0  # real time: two periods of the reconcile job
QUARANTINE_PASSES: Final = 3  # looks in a row at which a symbol was apart ...
PASS_MS: Final = 10_000.0  # ... each so much later: one correction has had its time
ORDERS: Final = frozenset({"entry", "stop", "target", "exit", "margin", "leverage"})
# Answers that are part of the work: a trigger already passed, a leg that stands, nothing to close.
EXPECTED: Final = frozenset({-2021, -2022, -4046, -4116, -4130, -20132})


def tell(state: State, out: Effects, level: str, text: str, now: Now) -> list[Op]:
    """A fact for log and journal; critical ones are alerts."""
    out.add(Note(level, text))
    return journal.journal_ops(state, level.lower(), text, now)


# --- breakers ----------------------------------------------------------------------------------


def count_error(state: State, event: Replied, now: Now) -> None:
    """An order that the exchange refused or did not answer."""
    result = event.result
    refused = isinstance(result, Refused) and result.code != 0 and result.code not in EXPECTED
    if event.request.purpose in ORDERS and (refused or isinstance(result, Unknown)):
        state.errors.append(now.boot_ms)


def follow_breakers(state: State, now: Now, out: Effects, *, idle: bool) -> None:
    """Bring the tally up to now; write it when something tripped or ended, else once a second
    while nothing else is done."""
    before = state.tally.tripped
    tally, stand = standing(state, now)
    state.tally = tally = replace(tally, tripped=stand)
    ops: list[Op] = []
    for name in stand.keys() - before.keys():
        ops += tell(state, out, "CRITICAL", f"breaker: no more entries: {stand[name]}", now)
    for name in before.keys() - stand.keys():
        ops += tell(state, out, "WARNING", f"breaker over: {name}", now)
    if ops or (idle and now.boot_ms - state.tally_written_ms >= WRITE_MS):
        ops += tally_ops(state, now)
    record(state, out, ops, "breakers")


def tally_ops(state: State, now: Now) -> list[Op]:
    """What changed in the hash since it was written last."""
    fields = breakers.to_fields(state.tally)
    if fields == state.tally_written:
        return []
    gone = sorted(state.tally_written.keys() - fields.keys())
    ops: list[Op] = [("hset", state.keys.breakers, fields)]
    if gone:
        ops.append(("hdel", state.keys.breakers, gone))
    state.tally_written, state.tally_written_ms = fields, now.boot_ms
    return ops


def resume(state: State, now: Now) -> tuple[list[Op], list[str]]:
    """Begin anew what latches; the operations, and what stands all the same."""
    state.tally = breakers.resumed(standing(state, now)[0], facts(state, now))
    left = standing(state, now)[1]
    state.tally = replace(state.tally, tripped=left)
    return tally_ops(state, now), list(left.values())


# --- quarantine --------------------------------------------------------------------------------


def note_apart(
    state: State, found: Mapping[str, frozenset[str]], moving: Collection[str], now: Now,
    out: Effects,
) -> None:  # fmt: skip
    """Take in which corrections a snapshot calls for, by symbol. One that is called for over
    QUARANTINE_PASSES leaves its symbol alone, loudly; a symbol that agrees again is released."""
    ops: list[Op] = []
    for symbol in list(state.apart):
        if symbol not in found and symbol not in moving:
            del state.apart[symbol]
    for symbol, what in found.items():
        apart = state.apart.get(symbol, Apart(0, -PASS_MS, what))
        if symbol in moving or now.boot_ms - apart.boot_ms < PASS_MS:
            continue
        still = apart.what & what
        passes = apart.passes + 1 if still else 1  # another difference is another story
        state.apart[symbol] = Apart(passes, now.boot_ms, still or what)
        if passes >= QUARANTINE_PASSES and symbol not in state.quarantine:
            why = f"the exchange differs at {passes} looks in a row: {', '.join(sorted(still))}"
            state.quarantine[symbol] = why
            ops += tell(state, out, "CRITICAL", f"quarantine symbol={symbol}: {why}", now)
            ops.append(("hset", state.keys.breakers, {QUARANTINED + symbol: why}))
    for symbol in list(state.quarantine):
        if symbol not in found and symbol not in moving:
            del state.quarantine[symbol]
            ops += tell(state, out, "WARNING", f"quarantine over symbol={symbol}: we agree", now)
            ops.append(("hdel", state.keys.breakers, [QUARANTINED + symbol]))
    record(state, out, ops, "quarantine")


# --- jobs --------------------------------------------------------------------------------------


def watch_jobs(state: State, now: Now, out: Effects) -> None:
    """The reconcile job asks twice a minute; when nobody does, no worker hears or no beat calls."""
    silent = now.boot_ms - state.asked_ms >= JOBS_SILENT_MS
    if silent == state.jobs_silent or not state.reconciled:
        return
    state.jobs_silent = silent
    text = (
        f"scheduled jobs are silent: no reconcile was asked for in {JOBS_SILENT_MS / 1000:.0f} s; "
        "look at worker and beat"
        if silent
        else "scheduled jobs are heard again"
    )
    record(state, out, tell(state, out, "WARNING", text, now), "jobs")
