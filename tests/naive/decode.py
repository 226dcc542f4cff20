"""The decoder's slow twin: plain json, Decimal and dictionaries, one rule after the other.

It promises to be obviously right and nothing else. It covers whole text frames, every event, the
firewall and the continuity of trade ids; it knows no ring and so no full one. Where the kernel's
promise is narrower than JSON (nesting, digits), the same limits stand here in words.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

DEPTH_MAX = 60
TEXT_BYTES_MAX = 64
MS_MAX = 9_000_000_000_000  # beyond it nanoseconds leave int64
DECIMAL = re.compile(r"-?[0-9]+(\.[0-9]+)?")
LIVE, UNSURE, HELD = 0, 1, 2
LETTER = re.compile("[A-Za-z]")
KNOWN = {
    "aggTrade": "eEaspqflTm",
    "trade": "eETstpqXm",
    "bookTicker": "eusbBaATE",
    "markPriceUpdate": "eEspPirT",
    "kline": "eEsk",
}
KNOWN_LONGER = {"st", "nq", "ps", "ap"}
TIMEFRAMES = {"1m": 1, "5m": 5, "15m": 15, "1h": 60, "1d": 1440}


class Number(str):
    """A JSON number, kept as its text."""


class Malformed(Exception):
    """The message, or a field that the event needs, is not what it must be."""


class Inexact(Exception):
    """A decimal with more digits than the decoder promises to round right."""


def text_frames(stream: bytes) -> list[bytes]:
    """Payloads of the whole unmasked text frames that `stream` begins with."""
    found, at = [], 0
    while at + 2 <= len(stream) and stream[at] == 0x81 and stream[at + 1] < 0x80:
        size, body = stream[at + 1], at + 2
        if size > 125:
            wide = 2 if size == 126 else 8
            size, body = int.from_bytes(stream[body : body + wide], "big"), body + wide
        if body + size > len(stream):
            break
        found.append(stream[body : body + size])
        at = body + size
    return found


def _refuse_constant(name: str) -> Any:
    raise ValueError(name)


class _Object(dict[str, Any]):
    """A JSON object whose depth counts values that a later equal key replaced, too."""

    depth = 1


def _object(pairs: list[tuple[str, Any]]) -> _Object:
    made = _Object(pairs)
    made.depth = 1 + max((_nesting(value) for _, value in pairs), default=0)
    return made


def _nesting(value: Any) -> int:
    if isinstance(value, _Object):
        return value.depth
    if isinstance(value, list):
        return 1 + max(map(_nesting, value), default=0)
    return 0


def parse(payload: bytes) -> Any:
    """Strict JSON; numbers stay text. Raises Malformed."""
    try:
        document = json.loads(
            payload.decode("utf-8"),
            parse_int=Number,
            parse_float=Number,
            parse_constant=_refuse_constant,
            object_pairs_hook=_object,
        )
    except (ValueError, RecursionError) as error:
        raise Malformed from error
    if _nesting(document) > DEPTH_MAX:
        raise Malformed
    return document


def decimal(value: Any) -> float:
    """The nearest double of a JSON number or decimal string. Raises Malformed or Inexact."""
    if not isinstance(value, str) or not DECIMAL.fullmatch(value):
        raise Malformed
    if len(value.encode()) > TEXT_BYTES_MAX:
        raise Malformed
    whole, _, fraction = value.lstrip("-").partition(".")
    fraction = fraction.rstrip("0")
    digits = (whole + fraction).lstrip("0")
    mantissa = int(digits or "0")
    if len(digits) > 18 or (mantissa and len(fraction) > (22 if mantissa < 1 << 53 else 14)):
        raise Inexact
    return float(value)


def integer(value: Any) -> int:
    """A whole number of at most 17 digits. Raises Malformed."""
    if not isinstance(value, str) or not re.fullmatch(r"-?[0-9]+", value):
        raise Malformed
    if len(value) > TEXT_BYTES_MAX or len(value.lstrip("-").lstrip("0")) > 17:
        raise Malformed
    return int(value)


def text(value: Any) -> str | None:
    """A JSON string, or None for anything else."""
    return value if isinstance(value, str) and not isinstance(value, Number) else None


@dataclass
class Symbol:
    last: int = 0
    status: int = LIVE
    held: list[tuple[Any, ...]] = field(default_factory=list)
    update: int = 0
    mid: float = 0.0
    mark: float = 0.0


class Decoder:
    """Feeds payloads to rules; `records` are tuples, `counts` the firewall's words."""

    def __init__(self, names: list[str], bound_ms: int, newest_ms: int = 0) -> None:
        self.rows = {name: row for row, name in enumerate(names)}
        self.symbols = [Symbol() for _ in names]
        self.bound_ms, self.newest_ms = bound_ms, newest_ms
        self.records: list[tuple[Any, ...]] = []
        self.counts: Counter[str] = Counter()

    def message(self, payload: bytes) -> None:
        try:
            document = parse(payload)
        except Malformed:
            self.counts["malformed"] += 1
            return
        wrapped = isinstance(document, dict) and isinstance(document.get("data"), (dict, list))
        if wrapped:
            document = document["data"]
        if isinstance(document, list):
            for event in document:
                self.event(event)
        elif isinstance(document, dict) and document.get("e") is None and not wrapped:
            self.counts["control"] += 1
        else:
            self.event(document)

    def event(self, event: Any) -> None:
        if not isinstance(event, dict):
            self.counts["malformed"] += 1
            return
        name = text(event.get("e"))
        channel = {"aggTrade": "trades", "trade": "trades", "bookTicker": "quotes"}.get(name or "")
        channel = "marks" if name == "markPriceUpdate" else channel
        if channel is None and name != "kline":
            self.counts["unknown_events"] += 1
            return
        self.counts[f"{channel}_received" if channel else "klines"] += 1
        self.counts["unknown_keys"] += strange_keys(event, str(name))
        if event.get("st") is not None and self._is_two(event["st"]):
            self.counts["ignored"] += 1
            return
        if text(event.get("s")) is None:
            self.counts["malformed"] += 1
            return
        row = self.rows.get(event["s"])
        if row is None:
            self.counts["refused_symbol"] += 1
            return
        readers = {"trades": self.trade, "quotes": self.quote, "marks": self.mark}
        readers.get(channel or "", self.kline)(event, row)

    def _is_two(self, value: Any) -> bool:
        try:
            return integer(value) == 2
        except Malformed:
            return False

    def _fields(self, readers: list[tuple[Any, Any]]) -> list[Any] | None:
        """Every field read, or None and the reason counted; malformed outranks inexact."""
        values, worst = [], 0
        for read, value in readers:
            try:
                values.append(read(value))
            except Malformed:
                worst = 2
            except Inexact:
                worst = max(worst, 1)
        if worst:
            self.counts["malformed" if worst == 2 else "refused_inexact"] += 1
            return None
        return values

    def _times(self, event: dict[str, Any], market_key: str) -> list[tuple[Any, Any]]:
        """Readers of (event time, time of the record): either may be missing, not both."""
        event_ms, record_ms = event.get("E"), event.get(market_key)
        event_ms = record_ms if event_ms is None else event_ms
        return [(integer, event_ms), (integer, event_ms if record_ms is None else record_ms)]

    def _in_time(self, *times_ms: int) -> bool:
        for time_ms in times_ms:
            far = self.newest_ms and abs(time_ms - self.newest_ms) > self.bound_ms
            if not 0 < time_ms < MS_MAX or far:
                self.counts["refused_time"] += 1
                return False
        return True

    def trade(self, event: dict[str, Any], row: int) -> None:
        symbol = self.symbols[row]
        number = event.get("a" if event["e"] == "aggTrade" else "t")
        try:
            trade_id = integer(number)
        except Malformed:
            trade_id = 0
        if trade_id < 1:
            self.counts["malformed"] += 1
            return
        record = self._trade_record(event, row, trade_id)
        waits = symbol.status == HELD and symbol.held
        newest = symbol.held[-1][2] if waits else symbol.last
        if record is None:
            if trade_id == newest + 1 and newest > 0:  # refused, but its number is used up
                if symbol.status == HELD:
                    symbol.held.append(("skip", row, trade_id))
                else:
                    symbol.last = trade_id
            return
        if trade_id <= newest:
            self.counts["refused_duplicate" if trade_id == newest else "refused_order"] += 1
            return
        event_ms = event.get("E")
        self.newest_ms = max(self.newest_ms, integer(event["T"] if event_ms is None else event_ms))
        if symbol.status != HELD and (trade_id == newest + 1 or newest == 0):
            symbol.last = trade_id
            self.records.append(record)
            self.counts["trades"] += 1
            return
        symbol.status = HELD
        symbol.held.append(record)
        self.counts["held"] += 1

    def _trade_record(
        self, event: dict[str, Any], row: int, trade_id: int
    ) -> tuple[Any, ...] | None:
        values = self._fields(
            [
                (decimal, event.get("p")),
                (decimal, event.get("q")),
                (_maker, event.get("m")),
                *self._times(event, "T"),
            ]
        )
        if values is None:
            return None
        price, qty, maker, event_ms, trade_ms = values
        print_kind = event.get("X")
        if (print_kind is not None or event["e"] == "trade") and text(print_kind) != "MARKET":
            self.counts["refused_nonmarket"] += 1
            return None
        if not self._in_time(event_ms, trade_ms):
            return None
        if price <= 0 or qty <= 0:
            self.counts["refused_nonpositive"] += 1
            return None
        symbol = self.symbols[row]
        references = [level for level in (symbol.mid, symbol.mark) if level > 0]
        far = references and all(abs(price - level) > 0.1 * level for level in references)
        flags = (1 if maker else 0) | (2 if far else 0)
        return ("trade", row, trade_id, trade_ms * 10**6, price, qty, 0.0, 0.0, flags)

    def quote(self, event: dict[str, Any], row: int) -> None:
        symbol = self.symbols[row]
        update = event.get("u")
        readers = [(decimal, event.get(key)) for key in "bBaA"] + self._times(event, "T")
        readers.append((integer, Number("0") if update is None else update))
        values = self._fields(readers)
        if values is None:
            return
        bid, bid_qty, ask, ask_qty, event_ms, quote_ms, update_id = values
        if not self._in_time(event_ms, quote_ms):
            return
        if min(bid, bid_qty, ask, ask_qty) <= 0:
            self.counts["refused_nonpositive"] += 1
        elif bid > ask:
            self.counts["refused_crossed"] += 1
        elif 0 < update_id <= symbol.update:
            reason = "refused_duplicate" if update_id == symbol.update else "refused_order"
            self.counts[reason] += 1
        else:
            symbol.update = max(symbol.update, update_id)
            symbol.mid = 0.5 * (bid + ask)
            self.newest_ms = max(self.newest_ms, event_ms)
            self.counts["quotes"] += 1
            self.records.append(
                ("quote", row, update_id, quote_ms * 10**6, bid, bid_qty, ask, ask_qty, 0)
            )

    def mark(self, event: dict[str, Any], row: int) -> None:
        optional = [event.get(key) for key in "irT"]
        optional = [Number("0") if value is None or value == "" else value for value in optional]
        values = self._fields(
            [(decimal, event.get("p")), (integer, event.get("E"))]
            + [(decimal, value) for value in optional[:2]]
            + [(integer, optional[2])]
        )
        if values is None:
            return
        price, event_ms, index, rate, next_ms = values
        if not self._in_time(event_ms):
            return
        if price <= 0:
            self.counts["refused_nonpositive"] += 1
            return
        self.symbols[row].mark = price
        self.newest_ms = max(self.newest_ms, event_ms)
        self.counts["marks"] += 1
        self.records.append(
            ("mark", row, 0, event_ms * 10**6, price, index, rate, float(next_ms), 0)
        )

    def kline(self, event: dict[str, Any], row: int) -> None:
        candle = event.get("k")
        candle = candle if isinstance(candle, dict) else {}
        try:
            event_ms, open_ms, _ = (
                integer(x) for x in (event.get("E"), candle.get("t"), candle.get("n"))
            )
            closed = _maker(candle.get("x"))
            if not text(candle.get("i")):
                raise Malformed
            o, h, low, c, v, q, bought = (decimal(candle.get(key)) for key in "ohlcvqV")
        except Malformed:
            self.counts["malformed"] += 1
            return
        except Inexact:
            self.counts["refused_inexact"] += 1
            return
        if not self._in_time(event_ms):
            return
        if not 0 < open_ms <= event_ms:
            self.counts["refused_time"] += 1
        elif low <= 0 or h < max(o, c) or low > min(o, c):
            self.counts["refused_nonpositive"] += 1
        elif closed and candle["i"] in TIMEFRAMES:
            self.newest_ms = max(self.newest_ms, event_ms)
            for kind, values in (
                ("bar", (o, h, low, c)),
                ("bar_volume", (v, q, bought, float(candle["n"]))),
            ):
                self.records.append((kind, row, 0, open_ms * 10**6, *values, 5))


def strange_keys(event: dict[str, Any], name: str) -> int:
    """Letters that this event is not known to have, and one for all longer unknown keys."""
    letters = {key for key, value in event.items() if LETTER.fullmatch(key) and value is not None}
    longer = {key for key in event if not LETTER.fullmatch(key)} - KNOWN_LONGER
    return len(letters - set(KNOWN[name])) + bool(longer)


def _maker(value: Any) -> bool:
    if not isinstance(value, bool):
        raise Malformed
    return value
