"""REST without sockets: method, path, raw bytes and now in, status and bytes out.

Signatures are checked over the raw query and body as sent; the time window is the client's
recvWindow in real milliseconds, so it is scaled by the market's speed, around the market's clock
or the host's.
"""

from __future__ import annotations

import hmac
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from decimal import Decimal
from typing import Any, Generic, TypeVar
from urllib.parse import parse_qsl

import orjson

from venue import faults, limits
from venue.checks import SYMBOL_UNKNOWN, mandatory
from venue.faults import Lab
from venue.house import API_KEY, API_SECRET, House, Moment
from venue.limits import HOME, Limits
from venue.listen import Keys
from venue.orders import Refusal

PUBLIC, KEY, SIGNED = 0, 1, 2
RECV_WINDOW_MS = 5000
RECV_WINDOW_MAX_MS = 60_000
AHEAD_MS = 1000
PARAMETERS_MAX = 1000  # of one request
DIGITS_MAX = 20  # of a whole number: ids and times are longs
TIME_PATH = "/fapi/v1/time"
OWN = "/venue/"  # the venue's own paths: never limited, never met by a fault
SIGNATURE = re.compile(rb"(^|&)signature=([^&]*)")
# where a symbol is ignored, or is none of the listed ones
ANY_SYMBOL = ("/fapi/v1/exchangeInfo", "/fapi/v1/fundingInfo", "/fapi/v1/assetIndex")
UNKNOWN_PATH = Refusal(-5000, "Path is invalid.", 404)
BAD_SIGNATURE = Refusal(-1022, "Signature for this request is not valid.")
NO_KEY = Refusal(-2014, "API-key format invalid.", 401)
WRONG_KEY = Refusal(-2015, "Invalid API-key, IP, or permissions for action.", 401)
TOO_MANY = Refusal(-1101, "Too many parameters sent for this endpoint.")


@dataclass(slots=True)
class Desk:
    """What REST remembers between calls. A desk made by hand enforces no limits."""

    limits: Limits = field(default_factory=Limits)
    keys: Keys = field(default_factory=Keys)
    lab: Lab = field(default_factory=Lab)


H = TypeVar("H", bound=House)
Given = TypeVar("Given", bound=House, covariant=True)
Asked = TypeVar("Asked", bound=House, contravariant=True)


@dataclass(frozen=True)  # no slots: Python 3.11 cannot make a generic one that is frozen too
class CallOf(Generic[Given]):
    """A request that passed the door; handlers of the account serve both kinds of market."""

    exchange: Given
    desk: Desk
    params: dict[str, str]
    now: Moment
    body: bytes = b""  # as it came


Call = CallOf[House]


@dataclass(frozen=True, slots=True)
class Reply:
    status: int
    body: bytes
    headers: dict[str, str]
    content_type: str = "application/json"


@dataclass(frozen=True)  # as CallOf
class RouteOf(Generic[Asked]):
    handler: Callable[[CallOf[Asked]], Any]
    security: int = PUBLIC
    weight: int = 1
    orders: int = 0
    by_limit: tuple[tuple[int, int], ...] = ()  # (limit at most, weight): instead of `weight`
    counted: Callable[[dict[str, str]], int] | None = None  # orders of one call in 10 s
    weight_all: int = 0  # instead of `weight` when no symbol is sent


Route = RouteOf[House]
Routes = dict[tuple[str, str], Route]


def signature_refusal(query: bytes, body: bytes) -> Refusal | None:
    """HMAC over query + body without the signature parameter, bytes as they came."""
    found = SIGNATURE.search(query) or SIGNATURE.search(body)
    if found is None:
        return mandatory("signature")
    payload = SIGNATURE.sub(b"", query) + SIGNATURE.sub(b"", body)
    expected = hmac.digest(API_SECRET.encode(), payload, "sha256").hex()
    if not hmac.compare_digest(expected.encode(), found.group(2).lower()):
        return BAD_SIGNATURE
    return None


def whole(text: str) -> int | None:
    """A whole number as the exchange writes one; None for anything else."""
    return int(text) if text.isascii() and text.isdigit() and len(text) <= DIGITS_MAX else None


def window_refusal(params: dict[str, str], now: Moment, speed: float) -> Refusal | None:
    """timestamp < server + 1000 and server - timestamp <= recvWindow, both in real milliseconds.

    A stamp is judged by the clock that it is nearer to: most clients stamp by their host's clock
    and never ask for the market's, whose day is another.
    """
    stamp, window = whole(params.get("timestamp", "")), whole(params.get("recvWindow", ""))
    if stamp is None:
        return mandatory("timestamp")
    window = RECV_WINDOW_MS if window is None else window
    if window > RECV_WINDOW_MAX_MS:
        return Refusal(-1131, "recvWindow must be less than 60000.")
    clock_ms, slack_ms = now.market_ms, now.slack_ms
    if abs(stamp - now.wall_ms) < abs(stamp - clock_ms):
        clock_ms, slack_ms, speed = now.wall_ms, 0, 1.0
    if stamp >= clock_ms + slack_ms + AHEAD_MS * speed:
        return Refusal(-1021, "Timestamp for this request was 1000ms ahead of the server's time.")
    if clock_ms - stamp > window * speed:
        return Refusal(-1021, "Timestamp for this request is outside of the recvWindow.")
    return None


def parameters(query: bytes, body: bytes) -> dict[str, str]:
    """Query and form body; the query wins."""
    return dict(_pairs(body.decode("utf-8", "replace")) + _pairs(query.decode("utf-8", "replace")))


def _pairs(text: str) -> list[tuple[str, str]]:
    """Of a form, in order; most have nothing to unquote."""
    if "%" in text or "+" in text:
        return parse_qsl(text, keep_blank_values=True)
    parts = (part.partition("=") for part in text.split("&") if part)
    return [(name, value) for name, _, value in parts]


def own_parameters(query: bytes, body: bytes) -> dict[str, str]:
    """Of the venue's own calls: a JSON object in the body will do as well as a form."""
    try:
        told = orjson.loads(body)
    except orjson.JSONDecodeError:
        return parameters(query, body)
    if not isinstance(told, dict):
        return parameters(query, b"")
    return {name: _text(value) for name, value in told.items()} | parameters(query, b"")


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return f"{Decimal(str(value)):f}" if isinstance(value, float) else str(value)


def _admit(
    route: RouteOf[Any],
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
        return NO_KEY
    if key != API_KEY:
        return WRONG_KEY
    if route.security == KEY:
        return None
    return signature_refusal(query, body) or window_refusal(params, now, speed)


def _weight(route: RouteOf[Any], params: dict[str, str]) -> int:
    if route.weight_all and not params.get("symbol"):
        return route.weight_all
    wanted = whole(params.get("limit", ""))
    if wanted is None:
        return route.weight
    for limit, weight in route.by_limit:
        if wanted <= limit:
            return weight
    return route.weight


def handle(
    exchange: H,
    desk: Desk,
    routes: Mapping[tuple[str, str], RouteOf[H]],
    method: str,
    path: str,
    query: bytes,
    body: bytes,
    key: str,
    now: Moment,
    ip: str = HOME,
) -> Reply:
    """One request. Every refusal is a value with the exchange's code; a crash here is our bug."""
    path = path.rstrip("/")
    route = routes.get(("GET" if method == "HEAD" else method, path))
    if route is None:
        return refuse(UNKNOWN_PATH, {})
    if path.startswith(OWN):
        params = own_parameters(query, body)
        return _answer(route.handler(CallOf(exchange, desk, params, now, body)), {})
    if query.count(b"&") + body.count(b"&") >= PARAMETERS_MAX:
        return refuse(TOO_MANY, {})
    params = parameters(query, body)
    speed = exchange.setup.speed
    free = exchange.paused  # then the minute stands still, and no wait would ever end
    weight = _weight(route, params)
    used, held = limits.spend(desk.limits, ip, path, weight, now.market_ms, speed, free)
    headers = {"X-MBX-USED-WEIGHT-1M": str(used)}
    if held is not None:
        return _hold(held, headers)
    skewed = _skewed(desk, now, speed)
    refusal = _admit(route, query, body, params, key, skewed, speed)
    if refusal is not None:
        return refuse(refusal, headers)
    if route.orders:
        short = route.counted(params) if route.counted else route.orders
        counts, held = limits.order(desk.limits, ip, short, route.orders, now.market_ms, speed)
        headers |= counts
        if held is not None:
            return _hold(held, headers)
    symbol = params.get("symbol")
    if symbol and symbol not in exchange.index and path not in ANY_SYMBOL:
        return refuse(SYMBOL_UNKNOWN, headers)
    told = skewed if path == TIME_PATH else now
    return _answer(route.handler(CallOf(exchange, desk, params, told, body)), headers)


def _skewed(desk: Desk, now: Moment, speed: float) -> Moment:
    """Now, as a server says whose clocks are wrong."""
    wrong_ms = faults.skew_ms(desk.lab, now.boot_ms)
    if not wrong_ms:
        return now
    ms, wall_ms = now.market_ms + int(wrong_ms * speed), now.wall_ms + int(wrong_ms)
    return replace(now, market_ms=ms, wall_ms=wall_ms)


def _answer(answer: Any, headers: dict[str, str]) -> Reply:
    if isinstance(answer, Refusal):
        return refuse(answer, headers)
    return Reply(200, orjson.dumps(answer), headers)


def _hold(held: limits.Held, headers: dict[str, str]) -> Reply:
    return refuse(held.refusal, headers | {"Retry-After": str(held.wait_s)})


def refuse(refusal: Refusal, headers: dict[str, str]) -> Reply:
    body = orjson.dumps({"code": refusal.code, "msg": refusal.msg})
    return Reply(refusal.http, body, headers)
