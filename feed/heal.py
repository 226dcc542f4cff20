"""What a symbol's past must look like: warm-up, healing and corrections, planned without I/O.

Warm-up up to minute M, the start of the minute of the first live trade:

    BARs     1d, 1h, 15m, 5m (up to 100), 1m (120): closed candles, ended by M, oldest first
    prefixes 1d .. 5m: the forming candle up to M, folded from finer candles; omitted when empty
    trades   of minute M, up to the first live id, by REST; then the waiting ones, then HEALED

Minute M's trades weigh 20 a thousand. Where that is more than the symbol's share of the budget, its
trades begin with the first live one, and M is corrected like a bar that lost some.

A hole is filled id by id when it is small and the weight budget allows, else it is declared lost:
GAP with its count, and each bar it touched is replaced by a BAR with CLOSED | CORRECTION once the
bar is over and the symbol's trades of that time are all published, never before: a correction
holds every trade of its bar, so one that came after it would count twice. The symbol is HEALED
when its 1m bars and every coarser one that is over are right again. A coarser bar that is still
forming is right from then on too, because the reader makes it of the finer ones; its own correction
follows when it ends.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from feed import binance
from feed.binance import (
    CLOSE,
    HIGH,
    LOW,
    MS_PER_MIN,
    NS_PER_MS,
    OPEN,
    OPEN_MS,
    QUOTE_VOLUME,
    TAKER_VOLUME,
    VOLUME,
    Klines,
)
from records import (
    BAR,
    BAR_VOLUME,
    BUYER_MAKER,
    CLOSED,
    CORRECTION,
    DROP,
    GAP,
    HEALED,
    RECORD,
    SYMBOL,
    TIMEFRAMES_MIN,
    write_name,
)

BARS_MAX: Final = 120  # closed 1m candles at most
COARSE_BARS_MAX: Final = 100  # of each coarser timeframe: 100 rows weigh 1, more weigh 2
CORRECTED_BARS_MAX: Final = 130  # of a timeframe and symbol: readers keep 128
CANDLES_RESERVE: Final = 120  # weight a minute that trades leave to candles
SETTLE_MS: Final = 2_000  # market ms after a bar's end before its candle is taken as final

SUM_SHARE: Final = 1e-9  # doubles added up, against an exact decimal

Records = npt.NDArray[Any]  # RECORD


@dataclass(frozen=True, slots=True)
class Correction:
    """Bars of one timeframe that lost trades: those that open in first_ms..last_ms."""

    timeframe_min: int
    first_ms: int
    last_ms: int

    @property
    def due_ms(self) -> int:
        """Market time from which the exchange's candles of all of them are final."""
        return self.last_ms + self.timeframe_min * MS_PER_MIN + SETTLE_MS


def floor_ms(time_ms: int, timeframe_min: int) -> int:
    """Start of the bar that holds time_ms."""
    span_ms = timeframe_min * MS_PER_MIN
    return time_ms // span_ms * span_ms


def marker(kind: int, row: int, recv_ns: int) -> Records:
    """One bare record: DROP or HEALED."""
    assert kind in (DROP, HEALED)
    made = np.zeros(1, RECORD)
    made["kind"], made["symbol"], made["recv_ns"] = kind, row, recv_ns
    return made


def gap(row: int, first: int, count: int, from_ms: int, to_ms: int, recv_ns: int) -> Records:
    """GAP: trades from id `first` on are missing, `count` of them for good, between two times.

    Count 0 says that nothing is lost yet: the symbol is degraded until HEALED.
    """
    made = np.zeros(1, RECORD)
    made["kind"], made["symbol"], made["id"], made["recv_ns"] = GAP, row, first, recv_ns
    made["a"], made["b"], made["c"], made["exch_ns"] = count, from_ms, to_ms, to_ms * NS_PER_MS
    return made


def announcement(row: int, name: str, recv_ns: int) -> Records:
    """The SYMBOL record. Raises ValueError for a name longer than 32 bytes."""
    made = np.zeros(1, RECORD)
    write_name(made, 0, name)
    made["kind"], made["symbol"], made["id"], made["recv_ns"] = SYMBOL, row, row, recv_ns
    return made


def bars(row: int, timeframe_min: int, candles: Klines, flags: int, recv_ns: int) -> Records:
    """BAR and BAR_VOLUME of each candle, side by side."""
    made = np.zeros(2 * len(candles), RECORD)
    made["symbol"], made["recv_ns"], made["aux"] = row, recv_ns, timeframe_min
    made["exch_ns"] = np.repeat(candles[:, OPEN_MS].astype(np.int64) * NS_PER_MS, 2)
    made["flags"] = flags
    made["kind"][0::2], made["kind"][1::2] = BAR, BAR_VOLUME
    for offset, name in enumerate("abcd"):
        made[name][0::2] = candles[:, OPEN + offset]
        made[name][1::2] = candles[:, VOLUME + offset]
    return made


def bars_max(timeframe_min: int) -> int:
    """Closed candles of a timeframe that a warm-up holds."""
    return BARS_MAX if timeframe_min == TIMEFRAMES_MIN[0] else COARSE_BARS_MAX


def closed(candles: Klines, timeframe_min: int, minute_ms: int) -> Klines:
    """The newest BARS_MAX candles that end at or before minute_ms."""
    over = candles[:, OPEN_MS] + timeframe_min * MS_PER_MIN <= minute_ms
    return candles[over][-bars_max(timeframe_min) :]


def fold(parts: Klines, open_ms: int) -> Klines:
    """One candle that opens at open_ms out of consecutive finer ones; no row from no part."""
    if not len(parts):
        return parts[:0]
    folded = np.empty((1, parts.shape[1]), np.float64)
    folded[0] = parts.sum(axis=0)  # volumes and trades; the rest follows
    folded[0, OPEN_MS] = open_ms
    folded[0, OPEN], folded[0, CLOSE] = parts[0, OPEN], parts[-1, CLOSE]
    folded[0, HIGH], folded[0, LOW] = parts[:, HIGH].max(), parts[:, LOW].min()
    return folded


def prefix(history: dict[int, Klines], timeframe_min: int, minute_ms: int) -> Klines:
    """The forming candle of a timeframe up to minute_ms: one row, or none when it is empty.

    Takes the coarsest closed candles that fit, then finer ones for the rest.
    """
    open_ms = floor_ms(minute_ms, timeframe_min)
    parts, at_ms = [], open_ms
    for finer_min in sorted((t for t in history if t < timeframe_min), reverse=True):
        candles = closed(history[finer_min], finer_min, minute_ms)
        inside = candles[candles[:, OPEN_MS] >= at_ms]
        parts.append(inside)
        at_ms = floor_ms(minute_ms, finer_min)
    return fold(np.concatenate(parts), open_ms)


def warm_up_bars(row: int, history: dict[int, Klines], minute_ms: int, recv_ns: int) -> Records:
    """All BARs of a symbol's warm-up in the order of the contract."""
    coarse_first = sorted(TIMEFRAMES_MIN, reverse=True)
    past = [bars(row, t, closed(history[t], t, minute_ms), CLOSED, recv_ns) for t in coarse_first]
    forming = [
        bars(row, t, prefix(history, t, minute_ms), 0, recv_ns)
        for t in coarse_first
        if t > TIMEFRAMES_MIN[0]
    ]
    return np.concatenate(past + forming)


def corrections(lost_from_ms: int, lost_to_ms: int) -> tuple[Correction, ...]:
    """Every bar that trades between two market times may have touched, finest first."""
    assert lost_from_ms <= lost_to_ms
    return tuple(
        Correction(t, floor_ms(lost_from_ms, t), floor_ms(lost_to_ms, t)) for t in TIMEFRAMES_MIN
    )


def opens(correction: Correction) -> set[int]:
    """Open times of its bars, the newest CORRECTED_BARS_MAX."""
    span_ms = correction.timeframe_min * MS_PER_MIN
    first_ms = max(correction.first_ms, correction.last_ms - (CORRECTED_BARS_MAX - 1) * span_ms)
    return set(range(first_ms, correction.last_ms + 1, span_ms))


def due(planned: set[int], timeframe_min: int, market_ms: int) -> Correction | None:
    """The bars among `planned` (open times) that are over, as one range; None when none is."""
    over = [ms for ms in planned if Correction(timeframe_min, ms, ms).due_ms <= market_ms]
    return Correction(timeframe_min, min(over), max(over)) if over else None


def ended(planned: set[int], timeframe_min: int, market_ms: int) -> bool:
    """Whether one of the bars among `planned` (open times) is over, its candle final or not."""
    return bool(planned) and min(planned) + timeframe_min * MS_PER_MIN <= market_ms


def correction_flags() -> int:
    """Flags of a BAR that replaces a published one."""
    return CLOSED | CORRECTION


def patience(used_weight: int, waiting: int, side_slots: int) -> int:
    """Weight that a hole may cost: any, by waiting for the next minute, while the side buffer is
    less than half full; then what this minute still has.
    """
    return binance.WEIGHT_PER_MIN if 2 * waiting < side_slots else weight_left(used_weight)


def worth_warming(trades_max: int, weight: int, waiting: int) -> bool:
    """Whether a warm-up fetches its minute's trades: `waiting` symbols share the weight."""
    cost = max(pages(trades_max), 1) * binance.AGG_TRADES_WEIGHT
    return cost * max(waiting, 1) <= weight


def reaches_back(trades: Records, candle: Klines) -> bool | None:
    """Whether fetched trades begin with the first one of a minute; None when nothing here can tell.

    An exchange that keeps too few gives the newest of them without a word. `candle` is the minute's
    row, or none, asked for before the trades: it holds some of the first ones, if they are the
    first. One field alone is often met by chance, so the same trades must meet all of them.
    """
    if not len(candle) or candle[0, VOLUME] == 0:
        return None  # nothing had traded yet, and what came since may be forgotten already
    row = candle[0]
    end_ns = (int(row[OPEN_MS]) + MS_PER_MIN) * NS_PER_MS
    inside = trades[trades["exch_ns"] < end_ns]
    if not len(inside) or inside["a"][0] != row[OPEN]:
        return False
    price, qty = inside["a"], inside["b"]
    volume = np.cumsum(qty)
    if len(inside) == binance.AGG_TRADES_MAX and volume[-1] < row[VOLUME]:
        return None  # the first page of several
    bought = np.cumsum(np.where(inside["flags"] & BUYER_MAKER, 0.0, qty))
    met = (price == row[CLOSE]) & (np.maximum.accumulate(price) == row[HIGH])
    met &= np.minimum.accumulate(price) == row[LOW]
    for sums, column in (
        (volume, VOLUME),
        (np.cumsum(price * qty), QUOTE_VOLUME),
        (bought, TAKER_VOLUME),
    ):
        met &= np.abs(sums - row[column]) <= SUM_SHARE * max(float(row[column]), 1.0)
    return bool(np.any(met))


def is_before(found: Records, first: Records, minute_ms: int) -> bool:
    """Whether `found` begins with the trade just before `first`, and that one is older than the
    minute: then `first` begins with the minute's first trade."""
    if not len(found):
        return False
    older = int(found["exch_ns"][0]) < minute_ms * NS_PER_MS
    return older and int(found["id"][0]) == int(first["id"][0]) - 1


def pages(count: int) -> int:
    """Requests that fetch `count` trades."""
    return -(-count // binance.AGG_TRADES_MAX)


def worth_fetching(count: int, heal_trades_max: int, weight_left: int) -> bool:
    """Whether a hole of `count` trades is filled from REST rather than declared lost."""
    return count <= heal_trades_max and pages(count) * binance.AGG_TRADES_WEIGHT <= weight_left


def weight_left(used: int) -> int:
    """Weight that history may still use in this minute."""
    return max(0, int(binance.WEIGHT_PER_MIN * binance.HISTORY_SHARE) - used)


def in_sequence(trades: Records, first_id: int, last_id: int) -> Records:
    """The trades first_id..last_id as far as they come without a hole, from the first on."""
    wanted = trades[(trades["id"] >= first_id) & (trades["id"] <= last_id)]
    expected = np.arange(first_id, first_id + len(wanted))
    broken = np.flatnonzero(wanted["id"] != expected)
    return wanted[: broken[0]] if len(broken) else wanted
