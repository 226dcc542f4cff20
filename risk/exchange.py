"""The exchange over REST: our own strings through ccxt's raw endpoints, answers as values.

An I/O shell of risk/main.py. ccxt signs and carries; it adds no rate limit, no retry, no parsing
of ours. An entry's recvWindow is computed in the last hook before the socket, from the lease as
it is then: whatever delays the bytes afterwards, the exchange itself refuses them in time. What
cannot be known (a time-out after sending, "status unknown") is `Unknown`, never a failure.
"""

from __future__ import annotations

import asyncio
import math
import re
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final

import aiohttp
import ccxt
import ccxt.async_support
import orjson

from risk.budget import Budget
from risk.events import Done, Refused, Request, Result, Throttled, Unknown

TIMEOUT_MS: Final = 3_000  # then the outcome is unknown and is asked for
BAN_DEFAULT_MS: Final = 10_000.0  # when a 429 or 418 names no time
WINDOW_DEFAULT_MS: Final = 5_000  # recvWindow of everything but entries
OUTSIDE_WINDOW: Final = frozenset({-1021, -5028})  # its clock and ours disagree; surely not done
UNKNOWN_CODES: Final = frozenset({-1000, -1006, -1007})
FAILED_503: Final = ("Service Unavailable", "Internal error")
THROTTLE_CODES: Final = frozenset({-1003, -1015})
UNSENT: Final = (aiohttp.ClientConnectorError, ConnectionRefusedError)
BAN_MAX_MS: Final = 259_200_000.0  # the longest ban is three days
WHY_CHARS_MAX: Final = 80  # of the exchange's own words in `status`
CALM_LOOK_S: Final = 1.0  # between two looks at a pause that may have grown
COUNT_10S: Final = "X-MBX-ORDER-COUNT-10S"
COUNT_1M: Final = "X-MBX-ORDER-COUNT-1M"
_BANNED = re.compile(r"banned until (\d{1,15})\b")
_ORIGIN = re.compile(r"^https?://[^/]+")


class WindowClosed(ccxt.BaseError):  # type: ignore[misc]
    """Our own lease ends before an entry could arrive: it is not sent."""


class Answered(ccxt.BaseError):  # type: ignore[misc]
    """The exchange answered with an error; carries its words."""

    def __init__(self, http: int, body: str, headers: Mapping[str, str]) -> None:
        super().__init__(f"{http} {body[:200]}")
        self.http = http
        self.body = body
        self.headers = headers


def classify(
    http: int,
    body: str,
    headers: Mapping[str, str],
    boot_ms: float,
    market_ms: float = math.inf,
    speed: float = 1.0,
) -> Result:
    """An error answer as a value: refused for sure, throttled until a time, or unknown. A ban is
    told in market time, of which `speed` milliseconds pass in a real one."""
    code, text = 0, body[:200]
    try:
        told = orjson.loads(body)
        if isinstance(told, dict):
            code, text = int(told.get("code", 0)), str(told.get("msg", text))
    except (ValueError, TypeError):
        text = text or "no JSON"  # a proxy page, or nothing: the status alone decides
    if http in (418, 429) or code in THROTTLE_CODES:
        pause_ms = _pause_ms(headers, text, market_ms, speed)
        return Throttled(boot_ms + pause_ms, f"{http} {code} {text}")
    if http == 503 and code == 0 and any(words in text for words in FAILED_503):
        return Refused(http, text)
    if http == 408 or code in UNKNOWN_CODES or (http >= 500 and code == 0):
        return Unknown(f"{http} {code} {text}")
    return Refused(code or http, text)


def _pause_ms(headers: Mapping[str, str], text: str, market_ms: float, speed: float) -> float:
    """Real ms, from Retry-After or "banned until <market ms>", whichever ends later."""
    banned = _BANNED.search(text)
    banned_ms = min((float(banned[1]) - market_ms) / speed, BAN_MAX_MS) if banned else 0.0
    for name, value in headers.items():
        if name.lower() == "retry-after" and value.isdigit():
            return max(float(value) * 1000.0, banned_ms)
    return banned_ms if banned_ms > 0 else BAN_DEFAULT_MS


class Binance(ccxt.async_support.binanceusdm):  # type: ignore[misc]
    """ccxt's adapter with our clock, our recvWindow and the exchange's own error codes."""

    market_now_ms: Callable[[], float]
    entry_window_ms: Callable[[], float]
    used_weight = 0
    on_order_counts: Callable[[int, int], None]

    def nonce(self) -> int:
        return int(self.market_now_ms())

    def sign(  # type: ignore[no-untyped-def]
        self, path, api="public", method="GET", params=None, *rest, **more
    ) -> Any:
        """The last hook before the socket: nothing is awaited between here and the write."""
        params = dict(params or {})
        if params.pop("fenced", ""):
            window_ms = int(self.entry_window_ms())
            if window_ms <= 0:
                raise WindowClosed("the lease ends too soon for an entry")
            params["recvWindow"] = window_ms
        elif "Private" in str(api) and "recvWindow" not in params and path != "listenKey":
            params["recvWindow"] = WINDOW_DEFAULT_MS
        return super().sign(path, api, method, params, *rest, **more)

    def on_rest_response(  # type: ignore[no-untyped-def]
        self, code, reason, url, method, headers, body, request_headers, request_body
    ) -> Any:
        weight = headers.get("X-MBX-USED-WEIGHT-1M") or headers.get("X-Mbx-Used-Weight-1m")
        if weight and str(weight).isdigit():
            self.used_weight = int(weight)
        short, long = headers.get(COUNT_10S), headers.get(COUNT_1M)
        if short and long and short.isdigit() and long.isdigit():
            self.on_order_counts(int(short), int(long))
        if code >= 400:
            raise Answered(code, body, headers)
        return super().on_rest_response(
            code, reason, url, method, headers, body, request_headers, request_body
        )

    def get_exceptions_by_url(self, url: str, kind: str) -> dict[str, Any]:
        """ccxt knows its error classes only for Binance's own addresses; ours is another."""
        return dict(self.exceptions["linear"].get(kind, {}))


_APIS: Final = {"/fapi/v1/": "fapi", "/fapi/v2/": "fapi", "/fapi/v3/": "fapi"}
_PUBLIC: Final = frozenset(
    {"time", "exchangeInfo", "ticker/bookTicker", "premiumIndex", "ping", "klines"}
)


class Exchange:
    """One HTTP session. `call` never raises for what the world does."""

    def __init__(
        self,
        rest_url: str,
        key: str,
        secret: str,
        market_now_ms: Callable[[], float],
        entry_window_ms: Callable[[], float],
        boot_ms: Callable[[], float],
        speed: Callable[[], float] = lambda: 1.0,  # market time against real time
    ) -> None:
        self._speed = speed
        self.budget = Budget()
        self._ccxt = Binance(
            {
                "apiKey": key,
                "secret": secret,
                "enableRateLimit": False,
                "timeout": TIMEOUT_MS,
                "options": {"fetchCurrencies": False},
            }
        )
        self._ccxt.market_now_ms = market_now_ms
        self._ccxt.entry_window_ms = entry_window_ms
        self._ccxt.on_order_counts = lambda a, b: self.budget.told(a, b, boot_ms())
        self._ccxt.options.pop("recvWindow", None)
        urls = self._ccxt.urls["api"]
        for name, address in urls.items():
            if isinstance(address, str):
                urls[name] = _ORIGIN.sub(rest_url, address)
        self._boot_ms = boot_ms
        self.resync: Callable[[], Awaitable[object]] | None = None  # measures its clock anew
        self._syncing = asyncio.Lock()
        self._synced_ms = -1.0  # boot time of the last measurement that a refusal asked for
        self._throttled_why = ""
        self.throttled_until_ms = 0.0  # boot time; for everybody who asks through us

    @property
    def throttled(self) -> bool:
        return self._boot_ms() < self.throttled_until_ms

    @property
    def words(self) -> str:
        """What the exchange asked of us, for `status`; empty when nothing."""
        left_s = (self.throttled_until_ms - self._boot_ms()) / 1000.0
        if left_s > 0:
            return f"the exchange wants quiet for {math.ceil(left_s)} s more: {self._throttled_why}"
        return self.budget.entry_refusal(self.used_weight, self._boot_ms(), self.speed)

    async def calm(self) -> None:
        """Wait out the pause that the exchange named; what protects does not wait here."""
        while self.throttled:
            left_s = (self.throttled_until_ms - self._boot_ms()) / 1000.0
            await asyncio.sleep(min(max(left_s, 0.001), CALM_LOOK_S))

    @property
    def speed(self) -> float:
        return self._speed()

    @property
    def used_weight(self) -> int:
        return int(self._ccxt.used_weight)

    async def call(self, request: Request) -> Result:
        """Send one request; the answer as a value."""
        params = dict(request.params)
        if request.fenced:
            params["fenced"] = "1"
        return await self.fetch(request.method, request.path, params)

    async def fetch(self, method: str, path: str, params: dict[str, str] | None = None) -> Result:
        """GET, POST, PUT or DELETE on a path like /fapi/v1/order.

        A timestamp that the exchange mistrusts means that nothing was done: its clock is measured
        anew and the request sent once more, unless it is an entry.
        """
        asked_ms = self._boot_ms()
        result = await self._fetch(method, path, params)
        if self.resync is None or not isinstance(result, Refused):
            return result
        if result.code not in OUTSIDE_WINDOW:
            return result
        async with self._syncing:  # whoever was refused together is served by one measurement
            if self._synced_ms < asked_ms:
                self._synced_ms = self._boot_ms()
                await self.resync()
        return result if "fenced" in (params or {}) else await self._fetch(method, path, params)

    async def _fetch(self, method: str, path: str, params: dict[str, str] | None) -> Result:
        version, name = path.split("/", 3)[2:4]
        group = "fapiPublic" if name in _PUBLIC else "fapiPrivate"
        if version != "v1":
            group += version.upper()
        try:
            body = await self._ccxt.fetch2(name, [group], method, params or {})
        except Answered as error:
            boot_ms, market_ms = self._boot_ms(), self._ccxt.market_now_ms()
            result = classify(
                error.http, error.body, error.headers, boot_ms, market_ms, self._speed()
            )
            if isinstance(result, Throttled):
                self.throttled_until_ms = max(self.throttled_until_ms, result.until_ms)
                self._throttled_why = result.reason[:WHY_CHARS_MAX]
            return result
        except WindowClosed as error:
            return Refused(0, str(error))
        except ccxt.RequestTimeout as error:
            return Unknown(f"time-out {type(error).__name__}")
        except ccxt.NetworkError as error:
            if isinstance(error.__cause__, UNSENT):
                return Refused(0, "unreachable")
            return Unknown(f"connection lost {type(error.__cause__).__name__}")
        except ccxt.ExchangeError as error:
            return Unknown(f"unreadable answer {str(error)[:120]}")
        return Done(body)

    async def raw(self, path: str) -> Result:
        """GET of a path that only the simulated exchange has."""
        base = _ORIGIN.match(str(self._ccxt.urls["api"]["fapiPublic"]))
        assert base is not None
        self._ccxt.open(True)
        try:
            async with self._ccxt.session.get(base.group() + path) as answer:
                if answer.status != 200:
                    return Refused(answer.status, path)
                return Done(orjson.loads(await answer.read()))
        except (aiohttp.ClientError, TimeoutError) as error:
            return Unknown(type(error).__name__)

    async def close(self) -> None:
        await self._ccxt.close()
