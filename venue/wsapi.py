"""The WebSocket API for trading: messages in, replies out; REST does what they ask for.

A message becomes the REST call of the same meaning, so both have one set of checks, limits and
faults. Only the door differs: a signature covers the parameters in alphabetical order, and an
Ed25519 key may log on once instead of signing everything. What passes the door is signed again for
REST. Nothing here reads a clock or a socket.

  {"id":7,"method":"order.place","params":{...}}  ->  {"id":7,"status":200,"result":{...}}
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

import orjson
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from venue.batch import texts
from venue.checks import mandatory
from venue.door import Answer, Asked
from venue.house import API_KEY, API_SECRET, Moment
from venue.limits import HOME
from venue.orders import Refusal
from venue.public import RATE_LIMITS
from venue.rest import BAD_SIGNATURE, KEY, NO_KEY, PUBLIC, SIGNED, WRONG_KEY, Reply, window_refusal

PATH = "/ws-fapi/v1"
ED25519_KEY = "test-ed25519"  # a second key of the same account
ED25519_SEED = hashlib.sha256(b"test").digest()  # documented, as the secret is: it is a toy
TEXT_BYTES_MAX = 64 << 10  # of one message
TEXT_MAX = 200  # of a page that stands in for an error

BAD_JSON = Refusal(-1135, "Invalid JSON Request")
NO_METHOD = Refusal(-1020, "This operation is not supported.")
NO_LOGON = Refusal(-4056, "HMAC_SHA256 API key is not supported.")

# method -> (REST method, path, security); what is not here is not on this socket
METHODS: dict[str, tuple[str, str, int]] = {
    "ping": ("GET", "/fapi/v1/ping", PUBLIC),
    "time": ("GET", "/fapi/v1/time", PUBLIC),
    "depth": ("GET", "/fapi/v1/depth", PUBLIC),
    "ticker.price": ("GET", "/fapi/v2/ticker/price", PUBLIC),
    "ticker.book": ("GET", "/fapi/v1/ticker/bookTicker", PUBLIC),
    "order.place": ("POST", "/fapi/v1/order", SIGNED),
    "order.modify": ("PUT", "/fapi/v1/order", SIGNED),
    "order.cancel": ("DELETE", "/fapi/v1/order", SIGNED),
    "order.status": ("GET", "/fapi/v1/order", SIGNED),
    "algoOrder.place": ("POST", "/fapi/v1/algoOrder", SIGNED),
    "algoOrder.cancel": ("DELETE", "/fapi/v1/algoOrder", SIGNED),
    "account.balance": ("GET", "/fapi/v2/balance", SIGNED),
    "v2/account.balance": ("GET", "/fapi/v3/balance", SIGNED),
    "account.position": ("GET", "/fapi/v2/positionRisk", SIGNED),
    "v2/account.position": ("GET", "/fapi/v3/positionRisk", SIGNED),
    "account.status": ("GET", "/fapi/v2/account", SIGNED),
    "v2/account.status": ("GET", "/fapi/v3/account", SIGNED),
    "userDataStream.start": ("POST", "/fapi/v1/listenKey", KEY),
    "userDataStream.ping": ("PUT", "/fapi/v1/listenKey", KEY),
    "userDataStream.stop": ("DELETE", "/fapi/v1/listenKey", KEY),
}
SESSION_METHODS = ("session.logon", "session.status", "session.logout")

Door = Callable[[Asked], Answer]


@dataclass(frozen=True, slots=True)
class Told:
    """A reply and how late it comes; without text the socket is closed without a word."""

    text: bytes
    late_ms: int = 0


@dataclass(slots=True)
class Session:
    """One socket: who has logged on, and whether replies tell the limits."""

    connected_ms: int
    limits: bool = True
    ip: str = HOME
    api_key: str = ""
    since_ms: int = 0


def payloads(params: dict[str, str]) -> Iterable[bytes]:
    """What a signature may cover: clients differ on whether values are percent-encoded."""
    rest = sorted((name, value) for name, value in params.items() if name != "signature")
    yield "&".join(f"{name}={value}" for name, value in rest).encode()
    yield urlencode(rest).encode()


def signed_well(key: str, params: dict[str, str]) -> bool:
    """HMAC-SHA256 in hex by the account's secret, or Ed25519 in base64 by its other key."""
    signature = params.get("signature", "")
    for payload in payloads(params):
        if key == ED25519_KEY:
            try:
                sent = base64.b64decode(signature)
                Ed25519PrivateKey.from_private_bytes(ED25519_SEED).public_key().verify(
                    sent, payload
                )
            except (InvalidSignature, binascii.Error, ValueError):
                continue
            return True
        expected = hmac.new(API_SECRET.encode(), payload, hashlib.sha256).hexdigest()
        if hmac.compare_digest(expected.encode(), signature.lower().encode()):
            return True
    return False


def _admit(session: Session, security: int, params: dict[str, str]) -> Refusal | None:
    """Key and signature; a session that has logged on needs neither."""
    if security == PUBLIC:
        return None
    key = params.get("apiKey", session.api_key)
    if not key:
        return NO_KEY
    if key not in (API_KEY, ED25519_KEY):
        return WRONG_KEY
    if security == KEY or (session.api_key and "signature" not in params):
        return None
    if not params.get("signature"):
        return mandatory("signature")
    return None if signed_well(key, params) else BAD_SIGNATURE


def as_query(params: dict[str, str], security: int) -> bytes:
    """The parameters as REST takes them, signed by the account's own secret."""
    aside = ("apiKey", "signature", "returnRateLimits", "listenKey")
    query = urlencode([(k, v) for k, v in params.items() if k not in aside]).encode()
    if security != SIGNED:
        return query
    signature = hmac.new(API_SECRET.encode(), query, hashlib.sha256).hexdigest()
    return query + b"&signature=" + signature.encode()


def rate_limits(headers: dict[str, str]) -> list[dict[str, Any]]:
    """The limits that REST's headers speak of, each with its count."""
    names = {
        ("REQUEST_WEIGHT", "MINUTE"): "X-MBX-USED-WEIGHT-1M",
        ("ORDERS", "MINUTE"): "X-MBX-ORDER-COUNT-1M",
        ("ORDERS", "SECOND"): "X-MBX-ORDER-COUNT-10S",
    }
    out = []
    for limit in RATE_LIMITS:
        count = headers.get(names[str(limit["rateLimitType"]), str(limit["interval"])])
        if count is not None:
            out.append({**limit, "count": int(count)})
    return out


def _standing(session: Session, now: Moment) -> dict[str, Any]:
    return {
        "apiKey": session.api_key or None,
        "authorizedSince": session.since_ms or None,
        "connectedSince": session.connected_ms,
        "returnRateLimits": session.limits,
        "serverTime": now.market_ms,
    }


def _session(
    session: Session, method: str, params: dict[str, str], now: Moment, speed: float
) -> dict[str, Any] | Refusal:
    """session.logon, .status, .logout; only Ed25519 keys may log on."""
    if method == "session.logout":
        session.api_key, session.since_ms = "", 0
    elif method == "session.logon":
        key = params.get("apiKey", "")
        if key != ED25519_KEY:
            return NO_LOGON if key == API_KEY else WRONG_KEY if key else NO_KEY
        refusal = _admit(session, SIGNED, params) or window_refusal(params, now, speed)
        if refusal is not None:
            return refusal
        session.api_key, session.since_ms = key, now.market_ms
    return _standing(session, now)


def _read(text: str) -> tuple[Any, str, dict[str, str]] | Refusal:
    """id, method and parameters as text."""
    if len(text) > TEXT_BYTES_MAX:
        return BAD_JSON
    try:
        message = orjson.loads(text)
    except orjson.JSONDecodeError:
        return BAD_JSON
    if not isinstance(message, dict) or not isinstance(message.get("method"), str):
        return BAD_JSON
    params = texts(message.get("params") or {})
    return BAD_JSON if params is None else (message.get("id"), message["method"], params)


def answer(session: Session, text: str, now: Moment, speed: float, door: Door) -> Told:
    """The reply to one message. Every refusal is a reply; a crash here is our bug."""
    read = _read(text)
    if isinstance(read, Refusal):
        return Told(_reply(None, read, session.limits, {}))
    number, method, params = read
    limits = params.get("returnRateLimits", str(session.limits)).lower() == "true"
    if method in SESSION_METHODS:
        return Told(_reply(number, _session(session, method, params, now, speed), limits, {}))
    if method not in METHODS:
        return Told(_reply(number, NO_METHOD, limits, {}))
    verb, path, security = METHODS[method]
    refusal = _admit(session, security, params)
    if refusal is not None:
        return Told(_reply(number, refusal, limits, {}))
    key = API_KEY if security != PUBLIC else ""
    done = door(Asked(verb, path, as_query(params, security), b"", key, session.ip))
    if done.reply is None:
        return Told(b"")
    said = _said(done.reply)
    return Told(_reply(number, said, limits, done.reply.headers), done.late_ms)


def _said(reply: Reply) -> Any:
    """What REST answered; a page of text is an error of the server without a code of its own."""
    if reply.content_type != "application/json":
        return Refusal(-1000, reply.body.decode("utf-8", "replace")[:TEXT_MAX], reply.status)
    said = orjson.loads(reply.body)
    return said if reply.status == 200 else Refusal(said["code"], said["msg"], reply.status)


def _reply(number: Any, said: Any, limits: bool, headers: dict[str, str]) -> bytes:
    out: dict[str, Any] = {"id": number}
    if isinstance(said, Refusal):
        out |= {"status": said.http, "error": {"code": said.code, "msg": said.msg}}
    else:
        out |= {"status": 200, "result": said}
    if limits:
        out["rateLimits"] = rate_limits(headers)
    return orjson.dumps(out)
