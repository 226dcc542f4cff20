"""How the exchange and other hands strike at the account, and whether it bit.

Acts of the venue, signed requests with the account's own key as its owner would make them, and
the relay that holds everything back. What a check has to know of a blow (where somebody else's
position stood, when nothing came through) is noted on the rig, to the millisecond.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from decimal import ROUND_CEILING, ROUND_DOWN, Decimal
from typing import Any, Final
from urllib.parse import urlencode

import redis.exceptions

import streams
from clock import wall_ms
from maintenance import universe
from maintenance.chaos_plan import Step
from maintenance.chaos_rig import Rig

KEY: Final = b"test"  # of the venue's one account; its secret is the same
BITE_S: Final = 6.0  # for a fault to meet what it was planned for
SHORT_S: Final = 0.2  # after a strike
FLAT_S: Final = 15.0
NOTIONAL: Final = Decimal(120)  # of somebody else's order
AWAY: Final = {"BUY": Decimal("0.97"), "SELL": Decimal("1.03")}  # of the price: it only rests
SYMBOLS_LEFT_MIN: Final = 6
Json = dict[str, Any]


def within(rig: Rig, look: Callable[[], Any], seconds: float = BITE_S) -> Any:
    """The first true answer, or None."""
    try:
        return rig.wait(look, seconds, "a blow to bite")
    except TimeoutError:
        return None


def by_hand(rig: Rig, method: str, path: str, **params: str) -> Any:
    """A signed request of the account's owner; None when it was refused."""
    stamp = str(rig.get("/fapi/v1/time")["serverTime"])
    query = urlencode(params | {"timestamp": stamp, "recvWindow": "50000"})
    signature = hmac.new(KEY, query.encode(), hashlib.sha256).hexdigest()
    url = f"{rig.venue_url}{path}?{query}&signature={signature}"
    headers = {"X-MBX-APIKEY": KEY.decode()}
    request = urllib.request.Request(url, method=method, headers=headers)  # noqa: S310
    try:
        with urllib.request.urlopen(request, timeout=universe.HTTP_TIMEOUT_S) as answer:  # noqa: S310
            return json.loads(answer.read(1 << 22))
    except urllib.error.HTTPError:
        return None


def filters(info: Mapping[str, Any], symbol: str) -> tuple[Decimal, Decimal]:
    """(tick, lot) of a symbol in exchangeInfo."""
    row = next(row for row in info["symbols"] if row["symbol"] == symbol)
    found = {f["filterType"]: f for f in row["filters"]}
    return Decimal(found["PRICE_FILTER"]["tickSize"]), Decimal(found["LOT_SIZE"]["stepSize"])


def protected(rig: Rig) -> list[tuple[str, dict[str, str]]]:
    """(symbol, position) of ours whose stop rests; empty while Redis is away."""
    try:
        rows = [
            (s, rig.r.hgetall(rig.keys.position(s))) for s in rig.r.smembers(rig.keys.positions)
        ]
    except (redis.exceptions.RedisError, OSError):
        return []
    return sorted((s, told) for s, told in rows if told.get("stop_state") == "acked")


def free_symbols(rig: Rig) -> list[str]:
    """Tradable ones on which we have neither a position nor an order."""
    try:
        names = rig.r.smembers(rig.keys.orders_open)
        busy = {rig.r.hget(rig.keys.order(name), "symbol") for name in names}
        busy |= set(rig.r.smembers(rig.keys.positions))
    except (redis.exceptions.RedisError, OSError):
        return []
    return sorted(set(tradable(rig)) - busy)


def tradable(rig: Rig) -> list[str]:
    rows = rig.get("/fapi/v1/exchangeInfo")["symbols"]
    return [row["symbol"] for row in rows if row["status"] == "TRADING"]


def _on_position(rig: Rig, act: Callable[[str, dict[str, str]], Any]) -> bool:
    """Do it to the first protected position that takes it."""

    def now() -> bool:
        return any(act(symbol, told) is not None for symbol, told in protected(rig)[:1])

    return bool(within(rig, now))


# --- the exchange's own hand -------------------------------------------------------------------


def _liquidate(rig: Rig, step: Step) -> bool:
    def act(symbol: str, told: dict[str, str]) -> Any:
        return rig.ask("POST", "/venue/v1/act", {"what": "liquidate", "symbol": symbol})

    return _on_position(rig, act)


def _adl(rig: Rig, step: Step) -> bool:
    def act(symbol: str, told: dict[str, str]) -> Any:
        body = {"what": "adl", "symbol": symbol}
        share = Decimal(str(step.body["share"]))
        if share < 1:
            lot = filters(rig.get("/fapi/v1/exchangeInfo"), symbol)[1]
            qty = (Decimal(told["qty"]) * share / lot).quantize(Decimal(1), ROUND_DOWN) * lot
            body |= {"quantity": f"{qty:f}"} if qty else {}
        return rig.ask("POST", "/venue/v1/act", body)

    return _on_position(rig, act)


def _delist(rig: Rig, step: Step) -> bool:
    """A symbol with a position of ours on it, while enough others are left."""
    if len(tradable(rig)) <= SYMBOLS_LEFT_MIN:
        return False

    def act(symbol: str, told: dict[str, str]) -> Any:
        return rig.ask("POST", "/venue/v1/act", {"what": "delist", "symbol": symbol, **step.body})

    return _on_position(rig, act)


def _funding(rig: Rig, step: Step) -> bool:
    def act(symbol: str, told: dict[str, str]) -> Any:
        return rig.ask("POST", "/venue/v1/act", {"what": "funding", "symbol": symbol, **step.body})

    return _on_position(rig, act)


def _clock_skew(rig: Rig, step: Step) -> bool:
    """The server's time is wrong for a while; it bit if the holder's clock followed it."""

    def apart_ms() -> float:
        told = rig.status()
        speed = float(rig.get("/fapi/v1/time").get("speed", 1.0))
        return float(told.get("market_ms", 0)) / speed - float(told.get("wall_ms", 0))

    before = apart_ms()
    told = rig.ask("POST", "/venue/v1/faults", step.body)
    assert told is not None, f"the venue refuses {dict(step.body)}"
    try:
        time.sleep(step.hold_s)
        return bool(abs(apart_ms() - before) > abs(step.body["ms"]) / 2)
    finally:
        rig.clear(int(told["id"]))
        time.sleep(SHORT_S)


# --- other hands -------------------------------------------------------------------------------


def _cancel_all_stops(rig: Rig, step: Step) -> bool:
    """Every conditional order of every position, at one go."""
    held = within(rig, lambda: protected(rig)) or []
    path = "/fapi/v1/algoOpenOrders"
    done = [by_hand(rig, "DELETE", path, symbol=symbol) for symbol, _ in held]
    return any(answer is not None for answer in done)


def _transfer(rig: Rig, step: Step) -> bool:
    body = {"asset": "USDT", **step.body}
    return rig.ask("POST", f"/venue/v1/{step.kind}", body) is not None


def _fees_bnb(rig: Rig, step: Step) -> bool:
    """Fees are taken in BNB for a while; it bit if one was."""
    if rig.ask("POST", "/venue/v1/deposit", {"asset": "BNB", **step.body}) is None:
        return False
    rig.ask("POST", "/venue/v1/fees", {"bnb": "true"})
    try:
        time.sleep(step.hold_s)
    finally:
        rig.ask("POST", "/venue/v1/fees", {"bnb": "false"})
    assets = {row["fee_asset"] for _, row in rig.r.xrevrange(rig.keys.fills, count=200)}
    return "BNB" in assets


def _leverage(rig: Rig, step: Step) -> bool:
    """Of every symbol that risk has set up and holds nothing on."""
    done = [
        by_hand(rig, "POST", "/fapi/v1/leverage", symbol=symbol, **step.body)
        for symbol in free_symbols(rig)
    ]
    return any(answer is not None for answer in done)


def _margin(rig: Rig, step: Step) -> bool:
    """Crossed again, where nothing is held."""
    done = [
        by_hand(rig, "POST", "/fapi/v1/marginType", symbol=symbol, marginType="CROSSED")
        for symbol in free_symbols(rig)
    ]
    return any(answer is not None for answer in done)


def _mode(rig: Rig, step: Step) -> bool:
    """Hedge mode, which the exchange allows only while nothing is open."""
    path = "/fapi/v1/positionSide/dual"
    _command(rig, "halt")
    _command(rig, "flatten")

    def switched() -> bool:
        return by_hand(rig, "POST", path, dualSidePosition="true") is not None

    try:
        bit = within(rig, switched, FLAT_S)
        _command(rig, "resume")
        time.sleep(step.hold_s if bit else 0.0)
        if bit:
            done = within(rig, lambda: by_hand(rig, "POST", path, dualSidePosition="false"), FLAT_S)
            assert done is not None, "nothing was to be opened in hedge mode"
    finally:
        _command(rig, "resume")
    return bool(bit)


def _command(rig: Rig, name: str) -> None:
    command = {"id": f"chaos-{name}-{time.time_ns()}", "name": name, "symbol": ""}
    streams.publish(rig.r, rig.keys.commands, command)


def _foreign_position(rig: Rig, step: Step) -> bool:
    return _foreign(rig, step, rest=False)


def _foreign_order(rig: Rig, step: Step) -> bool:
    return _foreign(rig, step, rest=True)


def _foreign(rig: Rig, step: Step, rest: bool) -> bool:
    """Somebody else opens a position, or lets an order rest, where we have nothing."""
    symbol = next(iter(free_symbols(rig)), "")
    if not symbol:
        return False
    price = Decimal(rig.get(f"/fapi/v1/ticker/price?symbol={symbol}")["price"])
    tick, lot = filters(rig.get("/fapi/v1/exchangeInfo"), symbol)
    qty = (NOTIONAL / price / lot).to_integral_value(ROUND_CEILING) * lot
    body = {"what": "order", "symbol": symbol, "quantity": f"{qty:f}", **step.body}
    if rest:
        limit = (price * AWAY[step.body["side"]] / tick).quantize(Decimal(1)) * tick
        body |= {"type": "LIMIT", "price": f"{limit:f}"}
    told = rig.ask("POST", "/venue/v1/act", body)
    if told is None:
        return False
    start_ms = wall_ms()
    time.sleep(step.hold_s)
    rig.foreign.append((symbol, start_ms, wall_ms()))
    end: Json = {"what": "cancel", "orderId": told["orderId"]} if rest else {"what": "close"}
    rig.ask("POST", "/venue/v1/act", {"symbol": symbol, **end})
    return True


# --- the line ----------------------------------------------------------------------------------


def _market_late(rig: Rig, step: Step) -> bool:
    """Marks or quotes come late, all at once."""
    before = rig.relay.waited
    rig.relay.hold(step.body["path"])
    try:
        time.sleep(step.hold_s)
    finally:
        rig.relay.release()
    return rig.relay.waited > before


def _stall(rig: Rig, step: Step) -> bool:
    """The whole exchange: no answer, no byte of a stream; then everything at once."""
    before, start_ms = rig.relay.waited, wall_ms()
    rig.relay.hold()
    try:
        time.sleep(step.hold_s)
    finally:
        rig.relay.release()
        rig.stalled.append((start_ms, wall_ms()))
    return rig.relay.waited > before


BLOWS: Final[dict[str, Callable[[Rig, Step], bool]]] = {
    "liquidate": _liquidate,
    "adl": _adl,
    "delist": _delist,
    "funding": _funding,
    "clock_skew": _clock_skew,
    "cancel_all_stops": _cancel_all_stops,
    "deposit": _transfer,
    "withdraw": _transfer,
    "fees_bnb": _fees_bnb,
    "leverage_by_hand": _leverage,
    "margin_by_hand": _margin,
    "mode_by_hand": _mode,
    "foreign_position": _foreign_position,
    "foreign_order": _foreign_order,
    "market_late": _market_late,
    "stall": _stall,
}
