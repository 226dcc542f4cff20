"""Breakers: when to stop making entries, by what trading has cost. Pure; exits never ask here.

The result of trading is realised + unrealised - fees + funding of what is ours, so that a deposit
is no profit and a withdrawal no loss: transfers move the equity that shares are taken of, nothing
else. What a day (UTC, market time) tripped stands until the day is over, whatever is won back;
drawdown and loss streak stand until `resume`, which begins both anew; the error rate stands while
it is too high. All of it is the `breakers` hash and survives restarts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from decimal import Decimal
from typing import Final

from msgspec import Struct

from risk.gate import Limits
from risk.instruments import ZERO, decimal, plain

DAY_MS: Final = 86_400_000
ERRORS_MS: Final = 300_000.0  # real time; errors older than this are forgotten
ERRORS_KEPT_MAX: Final = 500
HALTED: Final = "halted"  # field of `breakers`: latched by command, over restarts too
TRIPPED: Final = "tripped:"  # fields of `breakers`: a breaker's name follows
QUARANTINED: Final = "quarantine:"  # fields of `breakers`: a symbol follows
SHARE_UNIT: Final = Decimal("0.0001")

DAILY_LOSS, DRAWDOWN, LOSS_STREAK = "daily loss", "drawdown", "loss streak"
ERROR_RATE, DAILY_FEES, DAILY_TRADES = "error rate", "fees of the day", "trades of the day"
OF_THE_DAY: Final = (DAILY_LOSS, DAILY_FEES, DAILY_TRADES)  # over with the day
LATCHED: Final = (DRAWDOWN, LOSS_STREAK)  # over with `resume`
NO_DAY: Final = -1


class Facts(Struct, frozen=True):
    """What breakers look at, at one time."""

    market_ms: float
    equity: Decimal
    result: Decimal  # realised + unrealised - fees + funding, since the first start
    fees: Decimal  # since the first start
    entries: int  # since the first start
    errors: int  # of the last ERRORS_MS


@dataclass(frozen=True, slots=True)
class Tally:
    """What breakers remember. `tripped`: name -> the sentence that was true when it tripped."""

    day: int = NO_DAY  # since 1970
    day_result: Decimal = ZERO  # the result with which the day began
    day_fees: Decimal = ZERO
    day_entries: int = 0
    peak: Decimal = ZERO  # the highest result
    streak: int = 0  # losses in a row
    tripped: Mapping[str, str] = field(default_factory=dict)


def follow(tally: Tally, facts: Facts) -> Tally:
    """The tally at a later time: a new day begins where we are, the peak only rises."""
    day = int(facts.market_ms // DAY_MS)
    if day > tally.day:
        tripped = {k: v for k, v in tally.tripped.items() if k not in OF_THE_DAY}
        peak = facts.result if tally.day == NO_DAY else tally.peak
        tally = replace(
            tally,
            day=day,
            day_result=facts.result,
            day_fees=facts.fees,
            day_entries=facts.entries,
            peak=peak,
            tripped=tripped,
        )
    return tally if facts.result <= tally.peak else replace(tally, peak=facts.result)


def closed(tally: Tally, net: Decimal) -> Tally:
    """A round trip ended with this, fees paid; one without profit or loss says nothing."""
    if net > 0:
        return replace(tally, streak=0)
    return replace(tally, streak=tally.streak + 1) if net < 0 else tally


def share_of(lost: Decimal, equity: Decimal) -> Decimal:
    """Of the equity as it would be without the loss; transfers since then are part of it."""
    if lost <= 0:
        return ZERO
    return lost / (equity + lost) if equity > 0 else Decimal(1)


def standing(tally: Tally, facts: Facts, limits: Limits) -> dict[str, str]:
    """Name and sentence of every breaker that stands now; `tally` has followed to these facts."""
    made: dict[str, str] = {}
    shares = (
        (DAILY_LOSS, tally.day_result - facts.result, limits.daily_loss_max),
        (DRAWDOWN, tally.peak - facts.result, limits.drawdown_max),
        (DAILY_FEES, facts.fees - tally.day_fees, limits.fees_day_max),
    )
    for name, lost, most in shares:
        share = share_of(lost, facts.equity)
        if 0 < most <= share:
            shown = plain(share.quantize(SHARE_UNIT))
            made[name] = f"{name} {shown} of equity, limit {plain(most)}"
        elif most > 0 and name in tally.tripped:
            made[name] = tally.tripped[name]
    counts = (
        (LOSS_STREAK, tally.streak, limits.loss_streak_max),
        (DAILY_TRADES, facts.entries - tally.day_entries, limits.trades_day_max),
        (ERROR_RATE, facts.errors, limits.errors_max),
    )
    for name, count, limit in counts:
        if 0 < limit <= count:
            made[name] = f"{name} {count}, limit {limit}"
        elif limit > 0 and name in tally.tripped and name != ERROR_RATE:
            made[name] = tally.tripped[name]
    return made


def any_set(limits: Limits) -> bool:
    """Is there a breaker that could trip?"""
    return any(
        (
            limits.daily_loss_max,
            limits.drawdown_max,
            limits.fees_day_max,
            limits.loss_streak_max,
            limits.trades_day_max,
            limits.errors_max,
        )
    )


def resumed(tally: Tally, facts: Facts) -> Tally:
    """Somebody looked: what latches begins anew from here."""
    tripped = {k: v for k, v in tally.tripped.items() if k not in LATCHED}
    return replace(tally, peak=facts.result, streak=0, tripped=tripped)


# --- the `breakers` hash -----------------------------------------------------------------------


def to_fields(tally: Tally) -> dict[str, str]:
    fields = {
        "day": str(tally.day),
        "day_result": plain(tally.day_result),
        "day_fees": plain(tally.day_fees),
        "day_entries": str(tally.day_entries),
        "peak_result": plain(tally.peak),
        "losses_in_a_row": str(tally.streak),
    }
    return fields | {TRIPPED + name: text for name, text in tally.tripped.items()}


def from_fields(fields: Mapping[str, str]) -> Tally:
    """Inverse of to_fields; other fields are other people's."""
    return Tally(
        day=int(fields.get("day") or NO_DAY),
        day_result=decimal(fields.get("day_result")),
        day_fees=decimal(fields.get("day_fees")),
        day_entries=int(fields.get("day_entries") or 0),
        peak=decimal(fields.get("peak_result")),
        streak=int(fields.get("losses_in_a_row") or 0),
        tripped=named(fields, TRIPPED),
    )


def named(fields: Mapping[str, str], prefix: str) -> dict[str, str]:
    """The fields that begin so, without their beginning."""
    return {k.removeprefix(prefix): v for k, v in fields.items() if k.startswith(prefix)}
