"""REST without sockets: method, path, raw bytes and now in, status and bytes out.

Signatures are checked over the raw query and body as sent; the time window is the client's
recvWindow in real milliseconds, so it is scaled by the market's speed. Replies to POST and DELETE
of orders have no avgPrice and no cumQuote, as on the exchange.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl

import orjson

from venue.exchange import API_KEY, API_SECRET, Exchange, Moment
from venue.orders import Refusal

PUBLIC, KEY, SIGNED = 0, 1, 2
RECV_WINDOW_MS = 5000
RECV_WINDOW_MAX_MS = 60_000
AHEAD_MS = 1000
LISTEN_KEY_MS = 60 * 60_000  # real time; the market's clock may run faster
MINUTE_MS = 60_000
ORDERS_SEEN_MAX = 100_000  # order times kept for the two count headers
SIGNATURE = re.compile(rb"(^|&)signature=([^&]*)")
UNKNOWN_PATH = Refusal(-5000, "Path is invalid.", 404)


@dataclass(slots=True)
class Desk:
    """What REST remembers between calls: limits, the listen key."""

    weight_minute: int = -1
    weight: int = 0
    order_times: deque[int] = field(default_factory=lambda: deque(maxlen=ORDERS_SEEN_MAX))
    listen_key: str = ""
    listen_until_ms: int = 0
    listen_count: int = 0


@dataclass(frozen=True, slots=True)
class Call:
    """A request that passed the door."""

    exchange: Exchange
    desk: Desk
    params: dict[str, str]
    now: Moment


@dataclass(frozen=True, slots=True)
class Reply:
    status: int
    body: bytes
    headers: dict[str, str]


Handler = Callable[[Call], Any]


@dataclass(frozen=True, slots=True)
class Route:
    handler: Handler
    security: int = PUBLIC
    weight: int = 1
    orders: int = 0
    by_limit: tuple[tuple[int, int], ...] = ()  # (limit at most, weight): instead of `weight`


Routes = dict[tuple[str, str], Route]


def signature_refusal(query: bytes, body: bytes) -> Refusal | None:
    """HMAC over query + body without the signature parameter, bytes as they came."""
    found = SIGNATURE.search(query) or SIGNATURE.search(body)
    if found is None:
        return Refusal(
            -1102, "Mandatory parameter 'signature' was not sent, was empty/null, or malformed."
        )
    payload = SIGNATURE.sub(b"", query) + SIGNATURE.sub(b"", body)
    expected = hmac.new(API_SECRET.encode(), payload, hashlib.sha256).hexdigest()
    if not hmac.compare_digest(expected.encode(), found.group(2).lower()):
        return Refusal(-1022, "Signature for this request is not valid.")
    return None


def window_refusal(params: dict[str, str], now: Moment, speed: float) -> Refusal | None:
    """timestamp < server + 1000 and server - timestamp <= recvWindow, both in real milliseconds."""
    text, window_text = params.get("timestamp", ""), params.get("recvWindow", "")
    if not text.isdigit():
        return Refusal(
            -1102, "Mandatory parameter 'timestamp' was not sent, was empty/null, or malformed."
        )
    window = int(window_text) if window_text.isdigit() else RECV_WINDOW_MS
    if window > RECV_WINDOW_MAX_MS:
        return Refusal(-1131, "recvWindow must be less than 60000.")
    stamp = int(text)
    if stamp >= now.market_ms + now.slack_ms + AHEAD_MS * speed:
        return Refusal(-1021, "Timestamp for this request was 1000ms ahead of the server's time.")
    if now.market_ms - stamp > window * speed:
        return Refusal(-1021, "Timestamp for this request is outside of the recvWindow.")
    return None


def parameters(query: bytes, body: bytes) -> dict[str, str]:
    """Query and form body; the query wins."""
    out = dict(parse_qsl(body.decode("utf-8", "replace"), keep_blank_values=True))
    out.update(parse_qsl(query.decode("utf-8", "replace"), keep_blank_values=True))
    return out


def _admit(
    route: Route,
    query: bytes,
    body: bytes,
    params: dict[str, str],
    key: str,
    now: Moment,
    speed: float,
) -> Refusal | None:
    if route.security == PUBLIC:
        return None
    if not key:
        return Refusal(-2014, "API-key format invalid.", 401)
    if key != API_KEY:
        return Refusal(-2015, "Invalid API-key, IP, or permissions for action.", 401)
    if route.security == KEY:
        return None
    return signature_refusal(query, body) or window_refusal(params, now, speed)


def _weight(route: Route, params: dict[str, str]) -> int:
    text = params.get("limit", "")
    if not text.isdigit():
        return route.weight
    for limit, weight in route.by_limit:
        if int(text) <= limit:
            return weight
    return route.weight


def _count(desk: Desk, route: Route, params: dict[str, str], now: Moment) -> dict[str, str]:
    """Used weight of this clock minute and order counts of both windows, as headers.

    Windows are market time: they pass faster where the market does.
    """
    minute = now.market_ms // MINUTE_MS
    if minute != desk.weight_minute:
        desk.weight_minute, desk.weight = minute, 0
    desk.weight += _weight(route, params)
    headers = {"X-MBX-USED-WEIGHT-1M": str(desk.weight)}
    if route.orders:
        times = desk.order_times
        times.extend([now.market_ms] * route.orders)
        while times and now.market_ms - times[0] >= MINUTE_MS:
            times.popleft()
        recent = 0
        for stamp in reversed(times):
            if now.market_ms - stamp >= 10_000:
                break
            recent += 1
        headers["X-MBX-ORDER-COUNT-10S"] = str(recent)
        headers["X-MBX-ORDER-COUNT-1M"] = str(len(times))
    return headers


def handle(
    exchange: Exchange,
    desk: Desk,
    routes: Routes,
    method: str,
    path: str,
    query: bytes,
    body: bytes,
    key: str,
    now: Moment,
) -> Reply:
    """One request. Every refusal is a value with the exchange's code; a crash here is our bug."""
    route = routes.get((method, path))
    if route is None:
        return _refuse(UNKNOWN_PATH, {})
    params = parameters(query, body)
    headers = _count(desk, route, params, now)
    refusal = _admit(route, query, body, params, key, now, exchange.setup.speed)
    if refusal is not None:
        return _refuse(refusal, headers)
    symbol = params.get("symbol")
    if symbol and symbol not in exchange.index and path != "/fapi/v1/exchangeInfo":
        return _refuse(Refusal(-1121, "Invalid symbol."), headers)
    answer = route.handler(Call(exchange, desk, params, now))
    if isinstance(answer, Refusal):
        return _refuse(answer, headers)
    return Reply(200, orjson.dumps(answer), headers)


def _refuse(refusal: Refusal, headers: dict[str, str]) -> Reply:
    body = orjson.dumps({"code": refusal.code, "msg": refusal.msg})
    return Reply(refusal.http, body, headers)
