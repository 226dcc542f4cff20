"""Request limits: weight and funding calls per address, orders per account, bans. Pure.

Windows are market time, as the weight header is: at 30 market seconds per second a clock minute
is two seconds of the client's, so a fast market is not harder on a client than a slow one. A call
past a limit is refused with 429 and counts; one that goes on past REFUSALS_BEFORE_BAN of them in
a minute is banned with 418. Each further ban is twice as long, BAN_MS_MAX at most, until
FORGIVEN_MS without one. `scale` multiplies every limit; 0 enforces none. A ban made by hand holds
whatever the scale.
"""

from __future__ import annotations

import math
from collections import OrderedDict, deque
from dataclasses import dataclass, field

from venue.orders import Refusal

WEIGHT_PER_MINUTE = 2400
ORDERS_PER_10S, ORDERS_PER_MINUTE = 300, 1200
FUNDING_PER_5MIN = 500  # one pool for both paths
FUNDING_PATHS = ("/fapi/v1/fundingRate", "/fapi/v1/fundingInfo")
SHORT_MS, MINUTE_MS, FUNDING_MS = 10_000, 60_000, 300_000
REFUSALS_BEFORE_BAN = 10  # answers of 429 in one clock minute
BAN_MS, BAN_MS_MAX = 120_000, 3 * 86_400_000  # two minutes to three days
FORGIVEN_MS = 86_400_000  # so long after a ban the next one is the first again
ADDRESSES_MAX = 1000  # addresses remembered; the one that called longest ago is forgotten
ORDERS_SEEN_MAX = 100_000  # order times kept for the two count headers
SCALE_MAX = 1_000_000.0
HOME = "127.0.0.1"

assert ORDERS_PER_MINUTE <= ORDERS_SEEN_MAX


@dataclass(slots=True)
class Address:
    """What one network address has used and done."""

    minute: int = -1
    weight: int = 0
    free: int = 0  # of calls that are told and never refused, those of a pause
    refused: int = 0  # in this minute
    span: int = -1
    funding: int = 0
    banned_until_ms: int = 0
    bans: int = 0


@dataclass(frozen=True, slots=True)
class Held:
    """A call that must wait: the refusal, and real seconds for Retry-After."""

    refusal: Refusal
    wait_s: int


@dataclass(slots=True)
class Limits:
    scale: float = 0.0
    refused: int = 0  # answers of 429 ever, not those of the fault lab
    banned: int = 0  # bans that they led to
    addresses: OrderedDict[str, Address] = field(default_factory=OrderedDict)
    orders_10s: deque[int] = field(default_factory=lambda: deque(maxlen=ORDERS_SEEN_MAX))
    orders_1m: deque[int] = field(default_factory=lambda: deque(maxlen=ORDERS_SEEN_MAX))


def scale_of(text: str) -> float:
    """`real`, `off` or a multiple. Raises ValueError."""
    scale = {"real": 1.0, "off": 0.0}.get(text)
    if scale is None:
        scale = float(text)
        if not 0 < scale <= SCALE_MAX:
            raise ValueError(text)
    return scale


def address_of(limits: Limits, ip: str) -> Address:
    found = limits.addresses.pop(ip, None) or Address()
    limits.addresses[ip] = found
    while len(limits.addresses) > ADDRESSES_MAX:
        limits.addresses.popitem(last=False)
    return found


def _wait_s(ms: float, speed: float) -> int:
    return max(1, math.ceil(ms / speed / 1000))


def minute_wait_s(now_ms: int, speed: float) -> int:
    """Real seconds until the next clock minute of the market."""
    return _wait_s(MINUTE_MS - now_ms % MINUTE_MS, speed)


def over_weight(limit: int = WEIGHT_PER_MINUTE) -> Refusal:
    return Refusal(
        -1003,
        f"Too many requests; current limit is {limit} requests per minute. Please use the "
        "websocket for live updates to avoid polling the API.",
        429,
    )


def ban_of(address: Address, now_ms: int, speed: float) -> Held | None:
    """The ban that stands, if one does."""
    left_ms = address.banned_until_ms - now_ms
    if left_ms <= 0:
        return None
    text = (
        f"Way too many requests; IP banned until {address.banned_until_ms}. Please use the "
        "websocket for live updates to avoid bans."
    )
    return Held(Refusal(-1003, text, 418), _wait_s(left_ms, speed))


def banned(limits: Limits, ip: str, now_ms: int, speed: float) -> Held | None:
    """As ban_of, of an address; a socket's handshake asks this."""
    address = limits.addresses.get(ip)
    return ban_of(address, now_ms, speed) if address is not None else None


def ban(limits: Limits, ip: str, ms: int, now_ms: int) -> None:
    """Bans an address by hand."""
    address_of(limits, ip).banned_until_ms = now_ms + ms


def pardon(limits: Limits) -> None:
    """Ends every ban and forgets what led to it."""
    for address in limits.addresses.values():
        address.banned_until_ms = address.bans = address.refused = 0


def _refused(limits: Limits, address: Address, held: Held, now_ms: int, speed: float) -> Held:
    """Counts a 429; one too many of them becomes a ban."""
    limits.refused += 1
    address.refused += 1
    if address.refused <= REFUSALS_BEFORE_BAN:
        return held
    if now_ms - address.banned_until_ms > FORGIVEN_MS:
        address.bans = 0
    address.refused = 0
    address.bans += 1
    limits.banned += 1
    length_ms = min(BAN_MS << min(address.bans - 1, 20), BAN_MS_MAX)
    address.banned_until_ms = now_ms + length_ms
    return ban_of(address, now_ms, speed) or held


def spend(
    limits: Limits,
    ip: str,
    path: str,
    weight: int,
    now_ms: int,
    speed: float,
    free: bool = False,
) -> tuple[int, Held | None]:
    """Counts a call: (weight used in this clock minute, why it must wait). Refused calls count.

    A `free` one is told like any other, but brings nobody nearer to a limit.
    """
    address = address_of(limits, ip)
    minute, span = now_ms // MINUTE_MS, now_ms // FUNDING_MS
    if minute != address.minute:
        address.minute, address.weight, address.free, address.refused = minute, 0, 0, 0
    if span != address.span:
        address.span, address.funding = span, 0
    standing = ban_of(address, now_ms, speed)
    if standing is not None:
        return address.weight + address.free, standing
    if free:
        address.free += weight
        return address.weight + address.free, None
    address.weight += weight
    address.funding += path in FUNDING_PATHS
    used = address.weight + address.free
    if not limits.scale:
        return used, None
    held = None
    if address.weight > WEIGHT_PER_MINUTE * limits.scale:
        most = int(WEIGHT_PER_MINUTE * limits.scale)
        held = Held(over_weight(most), minute_wait_s(now_ms, speed))
    elif path in FUNDING_PATHS and address.funding > FUNDING_PER_5MIN * limits.scale:
        wait_s = _wait_s(FUNDING_MS - now_ms % FUNDING_MS, speed)
        held = Held(over_weight(int(FUNDING_PER_5MIN * limits.scale)), wait_s)
    return used, _refused(limits, address, held, now_ms, speed) if held else None


def order(
    limits: Limits, ip: str, short: int, long: int, now_ms: int, speed: float
) -> tuple[dict[str, str], Held | None]:
    """Counts orders of an account: (count headers, why they must wait). Refused ones do not count.

    `short` in the 10 s window, `long` in the minute: a batch weighs differently in the two.
    """
    held = None
    for times, window_ms, count, limit, span in (
        (limits.orders_10s, SHORT_MS, short, ORDERS_PER_10S, "10 SECONDS"),
        (limits.orders_1m, MINUTE_MS, long, ORDERS_PER_MINUTE, "1 MINUTE"),
    ):
        while times and now_ms - times[0] >= window_ms:
            times.popleft()
        most = int(limit * limits.scale)
        if limits.scale and held is None and len(times) + count > most:
            text = f"Too many new orders; current limit is {most} orders per {span}."
            wait_s = _wait_s(window_ms - (now_ms - times[0]) if times else window_ms, speed)
            held = Held(Refusal(-1015, text, 429), wait_s)
    if held is not None:
        held = _refused(limits, address_of(limits, ip), held, now_ms, speed)
    else:
        limits.orders_10s.extend([now_ms] * short)
        limits.orders_1m.extend([now_ms] * long)
    headers = {
        "X-MBX-ORDER-COUNT-10S": str(len(limits.orders_10s)),
        "X-MBX-ORDER-COUNT-1M": str(len(limits.orders_1m)),
    }
    return headers, held
