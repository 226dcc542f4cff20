"""The exchange over REST: our own strings, signed in the last instant; answers as values.

An I/O shell of risk/main.py. It adds no rate limit and no retry. An entry's recvWindow is computed
in the last hook before the socket, from the lease as it is then: whatever delays the bytes
afterwards, the exchange itself refuses them in time. What cannot be known (a time-out after
sending, "status unknown") is `Unknown`, never a failure.
"""

from __future__ import annotations

import asyncio
import hmac
import math
import re
from collections.abc import Awaitable, Callable, Mapping
from typing import Final
from urllib.parse import quote

import orjson

from risk.budget import Budget
from risk.events import Done, Refused, Request, Result, Throttled, Unknown
from risk.transport import Ask, Http, Lost, Told, Unsent

TIMEOUT_MS: Final = 3_000  # then the outcome is unknown and is asked for
ENTRY_TIMEOUT_MS: Final = 400  # an entry's sooner: it may have made a position that nobody told of
BAN_DEFAULT_MS: Final = 10_000.0  # when a 429 or 418 names no time
WINDOW_DEFAULT_MS: Final = 5_000  # recvWindow of everything but entries
OUTSIDE_WINDOW: Final = frozenset({-1021, -5028})  # its clock and ours disagree; surely not done
UNKNOWN_CODES: Final = frozenset({-1000, -1006, -1007})
FAILED_503: Final = ("Service Unavailable", "Internal error")
THROTTLE_CODES: Final = frozenset({-1003, -1015})
BAN_MAX_MS: Final = 259_200_000.0  # the longest ban is three days
WHY_CHARS_MAX: Final = 80  # of the exchange's own words in `status`
CALM_LOOK_S: Final = 1.0  # between two looks at a pause that may have grown
COUNT_10S: Final = "x-mbx-order-count-10s"
COUNT_1M: Final = "x-mbx-order-count-1m"
_BANNED = re.compile(r"banned until (\d{1,15})\b")
_PLAIN = re.compile(r"[A-Za-z0-9._~-]*")  # needs no encoding
_PUBLIC: Final = frozenset(
    f"/fapi/v1/{name}"
    for name in ("time", "exchangeInfo", "ticker/bookTicker", "premiumIndex", "ping", "klines")
)
_UNSIGNED: Final = frozenset({"/fapi/v1/listenKey"})  # the key's header suffices
WEIGHT_HEADER: Final = "x-mbx-used-weight-1m"
ED25519_PEM_CHARS_MAX: Final = 120  # an RSA key is far longer


class WindowClosed(Exception):
    """Our own lease ends before an entry could arrive: it is not sent."""


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


def encode(params: Mapping[str, object]) -> str:
    """A query as it is signed and sent."""
    texts = ((name, str(value)) for name, value in params.items())
    return "&".join(
        f"{name}={value if _PLAIN.fullmatch(value) else quote(value, safe='')}"
        for name, value in texts
    )


def sign(query: str, secret: str) -> str:
    """The signature of a query by the secret's kind: HMAC, or a PEM key of Ed25519 or RSA."""
    if "PRIVATE KEY" not in secret:
        return hmac.digest(secret.encode(), query.encode(), "sha256").hex()
    import ccxt  # knows both kinds; most keys need neither it nor its memory

    if len(secret) > ED25519_PEM_CHARS_MAX:
        return quote(ccxt.Exchange.rsa(query, secret, "sha256"), safe="")
    return quote(ccxt.Exchange.eddsa(query.encode(), secret, "ed25519"), safe="")


class Exchange:
    """Signed and unsigned calls. `call` and `fetch` never raise for what the world does."""

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
        self._http = Http(rest_url, TIMEOUT_MS / 1000)
        self._key, self._secret = key, secret
        self._market_ms, self._entry_window_ms = market_now_ms, entry_window_ms
        self._boot_ms, self._speed = boot_ms, speed
        self.budget = Budget()
        self.resync: Callable[[], Awaitable[object]] | None = None  # measures its clock anew
        self._syncing = asyncio.Lock()
        self._synced_ms = -1.0  # boot time of the last measurement that a refusal asked for
        self._throttled_why = ""
        self.throttled_until_ms = 0.0  # boot time; for everybody who asks through us
        self.used_weight = 0  # of this minute, as the exchange last told it

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

    async def call(self, request: Request) -> Result:
        """Send one request; the answer as a value."""
        return await self.fetch(request.method, request.path, request.params, request.fenced)

    async def fetch(
        self,
        method: str,
        path: str,
        params: Mapping[str, str] | None = None,
        fenced: bool = False,
    ) -> Result:
        """GET, POST, PUT or DELETE on a path like /fapi/v1/order; signed unless it is public.

        A timestamp that the exchange mistrusts means that nothing was done: its clock is measured
        anew and the request sent once more, unless it is an entry.
        """
        asked_ms = self._boot_ms()
        result = await self._fetch(method, path, params, fenced)
        if self.resync is None or not isinstance(result, Refused):
            return result
        if result.code not in OUTSIDE_WINDOW:
            return result
        async with self._syncing:  # whoever was refused together is served by one measurement
            if self._synced_ms < asked_ms:
                self._synced_ms = self._boot_ms()
                await self.resync()
        return result if fenced else await self._fetch(method, path, params, fenced)

    async def _fetch(
        self, method: str, path: str, params: Mapping[str, str] | None, fenced: bool
    ) -> Result:
        def make() -> Ask:
            return self._make(method, path, dict(params or {}), fenced)

        try:
            told = await self._http.request(make, ENTRY_TIMEOUT_MS / 1000 if fenced else None)
        except WindowClosed as error:
            return Refused(0, str(error))
        except Unsent:
            return Refused(0, "unreachable")
        except TimeoutError:
            return Unknown("time-out")
        except Lost as error:
            return Unknown(f"connection lost: {error}")
        return self._read(told)

    def _make(self, method: str, path: str, params: dict[str, object], fenced: bool) -> Ask:
        """The last hook before the socket: nothing is awaited between here and the write."""
        if path in _PUBLIC:
            return Ask(method, f"{path}?{encode(params)}" if params else path, {})
        headers = {"X-MBX-APIKEY": self._key}
        if path in _UNSIGNED:
            query = encode(params)
        else:
            params = {"timestamp": int(self._market_ms())} | params
            params["recvWindow"] = WINDOW_DEFAULT_MS
            if fenced:
                window_ms = int(self._entry_window_ms())
                if window_ms <= 0:
                    raise WindowClosed("the lease ends too soon for an entry")
                params["recvWindow"] = window_ms
            query = encode(params)
            query += f"&signature={sign(query, self._secret)}"
        if method in ("GET", "DELETE"):
            return Ask(method, f"{path}?{query}" if query else path, headers)
        headers["Content-Type"] = "application/x-www-form-urlencoded"
        return Ask(method, path, headers, query)

    def _read(self, told: Told) -> Result:
        """An answer as a value; weight and pauses are noted for everybody."""
        weight = told.headers.get(WEIGHT_HEADER, "")
        if weight.isdigit():
            self.used_weight = int(weight)
        short, long = told.headers.get(COUNT_10S, ""), told.headers.get(COUNT_1M, "")
        if short.isdigit() and long.isdigit():
            self.budget.told(int(short), int(long), self._boot_ms())
        if told.status < 400:
            try:
                return Done(orjson.loads(told.body))
            except ValueError:
                return Unknown(f"unreadable answer {told.status} {told.body[:120]!r}")
        text = told.body.decode("utf-8", "replace")
        result = classify(
            told.status, text, told.headers, self._boot_ms(), self._market_ms(), self._speed()
        )
        if isinstance(result, Throttled):
            self.throttled_until_ms = max(self.throttled_until_ms, result.until_ms)
            self._throttled_why = result.reason[:WHY_CHARS_MAX]
        return result

    async def raw(self, path: str) -> Result:
        """GET of a path that only the simulated exchange has."""
        try:
            told = await self._http.request(lambda: Ask("GET", path, {}))
        except (OSError, TimeoutError) as error:
            return Unknown(type(error).__name__)
        return Done(orjson.loads(told.body)) if told.status == 200 else Refused(told.status, path)

    async def close(self) -> None:
        await self._http.close()
