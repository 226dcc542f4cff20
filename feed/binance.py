"""Binance USDⓈ-M market data in words: routes, stream names, subscriptions, history requests.

Pure: builds text and paths, parses bytes into arrays, knows the limits and what refusals ask for.
Since 2026-04-23 the WebSocket is split by route and an address without one delivers only /public
streams, silently.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Final
from urllib.parse import urlencode

import numpy as np
import numpy.typing as npt
import orjson

from records import BUYER_MAKER, RECORD, TIMEFRAME_NAMES, TIMEFRAMES_MIN, TRADE

PUBLIC: Final = "public"  # bookTicker
MARKET: Final = "market"  # aggTrade, markPrice
CHANNELS_OF: Final = {PUBLIC: ("quote",), MARKET: ("trade", "mark")}

STREAMS_PER_CONNECTION_MAX: Final = 1024  # the 1025th costs the connection (close 1008)
SYMBOLS_PER_CONNECTION: Final = 200  # ours: two streams each on /market stay far below
NAMES_PER_MESSAGE_MAX: Final = 200  # seen to be fine; the documentation names no bound
MESSAGES_PER_S_MAX: Final = 10  # client to server; more costs the connection, repeated the address
MESSAGES_PER_S: Final = 5  # ours
assert 2 * SYMBOLS_PER_CONNECTION <= STREAMS_PER_CONNECTION_MAX
assert MESSAGES_PER_S < MESSAGES_PER_S_MAX

CONNECTIONS_PER_5_MIN_MAX: Final = 300  # attempts per address
DIALS_PER_5_MIN: Final = 80  # ours, in one feed
DIALS_OF_ALL: Final = 240  # ours, in all lanes of a host; the rest is risk's
assert DIALS_PER_5_MIN <= DIALS_OF_ALL < CONNECTIONS_PER_5_MIN_MAX
POLICY_CLOSES: Final = (1008, 1013)  # too many requests or an invalid one; try again later
TOO_MANY: Final = 429
BANNED: Final = 418  # the whole address, REST and sockets
BAN_WAIT_S: Final = 60.0  # when 429 or 418 names no time
BAN_WAIT_S_MAX: Final = 3 * 86_400.0  # the longest ban that there is

WEIGHT_PER_MIN: Final = 2400  # per address, pooled with everything else that runs on it
WEIGHT_HEADER: Final = "X-MBX-USED-WEIGHT-1M"
HISTORY_SHARE: Final = 0.5  # history stops at half of it: the rest belongs to orders
AGG_TRADES_MAX: Final = 1000  # rows of one answer
AGG_TRADES_WEIGHT: Final = 20
KLINES_MAX: Final = 1500
KLINE_WEIGHTS: Final = ((100, 1), (500, 2), (1000, 5), (KLINES_MAX, 10))  # (rows asked for, weight)
TICKER_WEIGHT: Final = 1

MS_PER_MIN: Final = 60_000
NS_PER_MS: Final = 1_000_000

# Columns of a kline array.
OPEN_MS, OPEN, HIGH, LOW, CLOSE, VOLUME, QUOTE_VOLUME, TAKER_VOLUME, TRADES = range(9)
_KLINE_FIELDS: Final = (0, 1, 2, 3, 4, 5, 7, 9, 8)  # positions in the exchange's row
Klines = npt.NDArray[np.float64]  # [n, 9]; times below 2^53 are exact

_BANNED_UNTIL: Final = re.compile(rb"banned until (\d{12,14})")
_RETRY_AFTER: Final = re.compile(rb"(?i)\r\nretry-after: *(\d{1,9})\r\n")
_INTERVALS: Final = dict(zip(TIMEFRAMES_MIN, TIMEFRAME_NAMES, strict=True))


class BadAnswer(Exception):
    """The exchange's answer is not what it must be; the sentence says what was seen."""


def streams(route: str, name: str) -> tuple[str, ...]:
    """Stream names of one symbol on one route. Upper case is acked and delivers nothing."""
    lower = name.lower()
    if route == PUBLIC:
        return (f"{lower}@bookTicker",)
    return (f"{lower}@aggTrade", f"{lower}@markPrice@1s")


def stream_url(ws_url: str, route: str) -> str:
    """Address of a combined stream without names: they come by SUBSCRIBE."""
    return f"{ws_url.rstrip('/')}/{route}/stream"


def requests(method: str, names: Sequence[str], first_id: int) -> list[bytes]:
    """SUBSCRIBE or UNSUBSCRIBE messages for any number of streams, ids counting from first_id."""
    batches = [
        names[at : at + NAMES_PER_MESSAGE_MAX] for at in range(0, len(names), NAMES_PER_MESSAGE_MAX)
    ]
    return [
        orjson.dumps({"method": method, "params": list(batch), "id": first_id + index})
        for index, batch in enumerate(batches)
    ]


def is_refusal(status: int) -> bool:
    """Whether a close code or HTTP status says that we did wrong, so that asking again soon is
    worse than waiting."""
    return status in POLICY_CLOSES or 400 <= status < 500


def wait_s(retry_after: str, body: bytes, market_ms: int, speed: float) -> float:
    """Seconds of silence that a 429 or 418 asks for, by header or by `banned until <ms>`."""
    until = _BANNED_UNTIL.search(body)
    named = float(retry_after) if retry_after.isdigit() else 0.0
    if until is not None and market_ms > 0:
        named = max(named, (int(until[1]) - market_ms) / 1000 / max(speed, 1e-9))
    return min(named, BAN_WAIT_S_MAX) if named > 0 else BAN_WAIT_S


def handshake_wait_s(answer: bytes, market_ms: int, speed: float) -> float:
    """As wait_s, of the raw answer to a handshake."""
    found = _RETRY_AFTER.search(answer)
    return wait_s(found[1].decode() if found else "", answer, market_ms, speed)


def time_path() -> str:
    """Server time; weight 1."""
    return "/fapi/v1/time"


def klines_path(
    name: str, timeframe_min: int, start_ms: int | None, end_ms: int | None, limit: int
) -> str:
    """Candles that open in start_ms..end_ms; the newest `limit` of them without a start."""
    query: dict[str, Any] = {"symbol": name, "interval": _INTERVALS[timeframe_min]}
    if start_ms is not None:
        query["startTime"] = start_ms
    if end_ms is not None:
        query["endTime"] = end_ms
    return f"/fapi/v1/klines?{urlencode(query | {'limit': limit})}"


def klines_weight(limit: int) -> int:
    """Weight of a request for so many candles."""
    return next(weight for rows, weight in KLINE_WEIGHTS if limit <= rows)


def ticker_path(name: str) -> str:
    """One symbol's 24 h statistics, with the id of its newest trade. Weight 1."""
    return f"/fapi/v1/ticker/24hr?{urlencode({'symbol': name})}"


def trades_path(
    name: str, from_id: int | None = None, start_ms: int | None = None, limit: int = AGG_TRADES_MAX
) -> str:
    """aggTrades from an id or from a time; the newest ones with neither. Weight 20."""
    query: dict[str, Any] = {"symbol": name}
    if from_id is not None:
        query["fromId"] = from_id
    elif start_ms is not None:
        query["startTime"] = start_ms
    return f"/fapi/v1/aggTrades?{urlencode(query | {'limit': limit})}"


def parse_time(body: bytes) -> tuple[int, float]:
    """(server ms, market ms per real ms); an exchange names no speed. Raises BadAnswer."""
    try:
        answer = orjson.loads(body)
        return int(answer["serverTime"]), float(answer.get("speed", 1.0))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BadAnswer(f"no server time in {body[:80]!r}") from error


def parse_newest_trade(body: bytes) -> int:
    """Id of a symbol's newest trade out of its ticker. Raises BadAnswer."""
    try:
        return int(orjson.loads(body)["lastId"])
    except (ValueError, KeyError, TypeError) as error:
        raise BadAnswer(f"no newest trade in {body[:80]!r}") from error


def _rows(body: bytes) -> list[Any]:
    rows = orjson.loads(body)
    if not isinstance(rows, list):
        raise ValueError("not an array")
    return rows


def parse_klines(body: bytes) -> Klines:
    """Candles, oldest first, one row each. Raises BadAnswer."""
    try:
        rows = _rows(body)
        table = [[float(row[place]) for place in _KLINE_FIELDS] for row in rows]
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise BadAnswer(f"no candles in {body[:80]!r}") from error
    found = np.array(table, np.float64).reshape(-1, len(_KLINE_FIELDS))
    ordered = bool(np.all(np.diff(found[:, OPEN_MS]) > 0))
    sound = bool(np.all(np.isfinite(found))) and bool(np.all(found[:, OPEN : CLOSE + 1] > 0))
    if not ordered or not sound:
        raise BadAnswer("candles out of order, not finite or not positive")
    return found


def parse_trades(body: bytes, row: int, recv_ns: int) -> npt.NDArray[Any]:
    """aggTrades as TRADE records of a symbol row, ids ascending. Raises BadAnswer."""
    try:
        rows = _rows(body)
        found = np.zeros(len(rows), RECORD)
        for record, trade in zip(found, rows, strict=True):
            record["exch_ns"] = int(trade["T"]) * NS_PER_MS
            record["id"] = int(trade["a"])
            record["a"], record["b"] = float(trade["p"]), float(trade["q"])
            record["flags"] = BUYER_MAKER if trade["m"] else 0
    except (ValueError, KeyError, TypeError, OverflowError) as error:
        raise BadAnswer(f"no trades in {body[:80]!r}") from error
    found["recv_ns"], found["symbol"], found["kind"] = recv_ns, row, TRADE
    sound = np.isfinite(found["a"]) & np.isfinite(found["b"]) & (found["a"] > 0) & (found["b"] > 0)
    if not bool(np.all(np.diff(found["id"]) > 0)) or not bool(np.all(sound)):
        raise BadAnswer("trades out of order, not finite or not positive")
    return found
