"""Money that is no trade: funding, transfers, rebates and insurance, each counted once.

The user stream tells that money moved, but names no transaction; GET income does, and remembers
what happened while nobody listened. So the wallet follows the stream at once, and sums and ledger
follow the exchange's transaction ids: asked after each such frame, at every start and after every
silence of the stream, from a little before the time up to which each kind was read.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from msgspec.structs import replace

from risk import journal
from risk.events import HISTORY, Done, Effects, Note, Now, Query, Replied
from risk.instruments import decimal
from risk.protect import arm_deadline, backoff_ms, forget, record
from risk.state import SEEN_MONEY_MAX, State, remember

PURPOSE: Final = "income"
PATH: Final = "/fapi/v1/income"
ROWS_MAX: Final = 1_000  # of one answer
MARGIN_MS: Final = 600_000  # market time: what is asked again, known by its id
SOON_MS: Final = 1_000.0  # real time until the exchange lists what it told on the stream
AGAIN_MS: Final = 60_000.0  # and if it was not listed then
# The exchange's kinds that are asked for, and the word and the sum of Money for each.
KINDS: Final = {
    "FUNDING_FEE": ("funding", "funding"),
    "TRANSFER": ("transfer", "transfers"),
    "INSURANCE_CLEAR": ("insurance", "other"),
    "COMMISSION_REBATE": ("rebate", "other"),
}
PREFIXES: Final = tuple(f"{word}:" for word, _ in KINDS.values())
CURSOR: Final = "income_ms:"  # fields of `portfolio`: a kind follows


def cursors(portfolio: Mapping[str, str]) -> dict[str, int]:
    """Up to when each kind was read, from the portfolio hash."""
    told = {kind: portfolio.get(CURSOR + kind) for kind in KINDS}
    return {kind: int(ms) for kind, ms in told.items() if ms}


def catch_up(state: State, now: Now, out: Effects) -> None:
    """Ask for every kind, at most once in AGAIN_MS however often connections come and go; the
    first start of an account begins with what happens from now on."""
    at_ms = max(now.boot_ms, state.caught_up_ms + AGAIN_MS)
    if state.caught_up_ms > now.boot_ms:
        return  # it is arranged
    state.caught_up_ms = at_ms
    for kind in KINDS:
        if kind not in state.income_ms:
            _begin(state, kind, now)
        elif at_ms <= now.boot_ms:
            ask(state, kind, now, out)
        else:
            arm_deadline(state, out, "income", kind, at_ms, earliest=True)


def _begin(state: State, kind: str, now: Now) -> None:
    """Nothing from before now is asked for: it is part of the wallet that we began with."""
    state.income_ms[kind] = int(now.market_ms) + MARGIN_MS


def begin_at(state: State, ms: int) -> None:
    """Redis had forgotten everything: what was never read is read from this market time on."""
    for kind in KINDS:
        state.income_ms.setdefault(kind, ms + MARGIN_MS)


def expect(state: State, kind: str, now: Now, out: Effects) -> None:
    """The stream told of money of this kind: read it when the exchange lists it."""
    if kind not in state.income_ms:
        _begin(state, kind, now)
    arm_deadline(state, out, "income", kind, now.boot_ms + SOON_MS)
    state.tries[("income again", kind)] = 1


def ask(state: State, kind: str, now: Now, out: Effects, since_ms: int | None = None) -> None:
    if kind not in state.income_ms:
        _begin(state, kind, now)
    if since_ms is None:
        since_ms = max(0, state.income_ms[kind] - MARGIN_MS)
    params = {"incomeType": kind, "startTime": str(since_ms), "limit": str(ROWS_MAX)}
    out.add(Query("GET", PATH, params, kind, PURPOSE, HISTORY))


def on_income(state: State, event: Replied, now: Now, out: Effects) -> None:
    """Count each row once; a full page asks for the next, a failure asks again."""
    kind = event.request.about
    if not isinstance(event.result, Done):
        pause_ms = backoff_ms(state, "income", kind)
        arm_deadline(state, out, "income", kind, now.boot_ms + pause_ms)
        return
    forget(state, "income", kind)
    rows: list[Mapping[str, Any]] = list(event.result.body)
    ops: list[Any] = []
    for row in rows:
        ops += _count(state, kind, row)
    since_ms = int(event.request.params["startTime"])
    newest_ms = max((int(row["time"]) for row in rows), default=since_ms)
    if len(rows) >= ROWS_MAX:
        ask(state, kind, now, out, max(newest_ms, since_ms + 1))
    elif event.received_ms >= event.sent_ms:
        read_ms = now.market_ms - (now.boot_ms - event.sent_ms) * now.speed
        state.income_ms[kind] = max(state.income_ms.get(kind, 0), int(read_ms))
    if state.tries.pop(("income again", kind), 0):
        arm_deadline(state, out, "income", kind, now.boot_ms + AGAIN_MS)
    if ops:
        out.add(Note("INFO", f"income kind={kind} rows={len(ops)}"))
        record(state, out, [*ops, *journal.portfolio_ops(state, now)], PURPOSE)


def _count(state: State, kind: str, row: Mapping[str, Any]) -> list[Any]:
    """One row; nothing for one that was counted or that is another asset's."""
    word, sum_name = KINDS[kind]
    event_id, amount = f"{word}:{row['tranId']}", decimal(row["income"])
    if event_id in state.seen_money or not amount:
        return []
    remember(state.seen_money, event_id, None, SEEN_MONEY_MAX)
    asset, symbol, ms = str(row["asset"]), str(row.get("symbol") or ""), int(row["time"])
    if asset == "USDT":
        before = getattr(state.money, sum_name)
        state.money = replace(state.money, **{sum_name: before + amount})
    return journal.ledger_ops(state, event_id, word, amount, asset, symbol, ms)
