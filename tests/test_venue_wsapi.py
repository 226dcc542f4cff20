"""The WebSocket API without a socket: every method is REST's answer, behind a door of its own."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from decimal import Decimal as D
from typing import Any
from urllib.parse import quote

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from venue import door, exchange, faults, rest, wsapi
from venue.door import Answer, Asked
from venue.exchange import Exchange, Moment, Setup
from venue.limits import HOME
from venue.orders import Refusal
from venue.server import ROUTES
from venue.wsapi import ED25519_KEY, ED25519_SEED, METHODS, TEXT_BYTES_MAX, Session, answer

SPEED = 2.0


def hmac_of(payload: str) -> str:
    return hmac.new(b"test", payload.encode(), hashlib.sha256).hexdigest()


def ed25519_of(payload: str) -> str:
    key = Ed25519PrivateKey.from_private_bytes(ED25519_SEED)
    return base64.b64encode(key.sign(payload.encode())).decode()


class Socket:
    """One session with a small exchange of its own."""

    def __init__(self, world: Exchange) -> None:
        self.world, self.desk = world, rest.Desk()
        self.now = Moment(int(world.made_until_ms), 0)
        self.session = Session(self.now.market_ms)

    def knock(self, asked: Asked) -> Answer:
        return door.handle(self.world, self.desk, ROUTES, asked, self.now)

    def rest(self, method: str, path: str, query: bytes, key: str) -> rest.Reply:
        reply = self.knock(Asked(method, path, query, b"", key, HOME)).reply
        assert reply is not None
        return reply

    def say(self, text: str) -> Any:
        return json.loads(answer(self.session, text, self.now, SPEED, self.knock).text)

    def ask(self, method: str, **params: Any) -> Any:
        return self.say(json.dumps({"id": 7, "method": method, "params": params}))

    def signed(self, method: str, sign: Any = hmac_of, key: str = "test", **params: Any) -> Any:
        params = {"apiKey": key, "timestamp": self.now.market_ms} | params
        payload = "&".join(f"{k}={v}" for k, v in sorted(params.items()))
        return self.ask(method, **params, signature=sign(payload))


@pytest.fixture
def socket() -> Socket:
    world = exchange.create(Setup("w", 2, 100.0, 7, SPEED, 0.0, ()))
    exchange.open_account(world, Moment(world.t0_ms, 0))
    for _ in exchange.advance(world, world.made_until_ms + 5_000, world.t0_ms + 5_000):
        pass
    return Socket(world)


def low(socket: Socket) -> str:
    return str((exchange.refresh(socket.world, "ETHUSDT").bid * D("0.97")).quantize(D("0.01")))


def limit(socket: Socket, **more: Any) -> dict[str, Any]:
    order = {"symbol": "ETHUSDT", "side": "BUY", "type": "LIMIT", "timeInForce": "GTC"}
    return order | {"quantity": "0.100", "price": low(socket)} | more


def test_an_order_lives_from_its_place_to_its_cancel(socket: Socket) -> None:
    made = socket.signed("order.place", **limit(socket, newClientOrderId="ws-1"))
    assert (made["id"], made["status"]) == (7, 200)
    assert (made["result"]["status"], made["result"]["clientOrderId"]) == ("NEW", "ws-1")
    assert "avgPrice" not in made["result"]
    named = {"symbol": "ETHUSDT", "orderId": made["result"]["orderId"]}
    seen = socket.signed("order.status", **named)["result"]
    assert (seen["status"], seen["avgPrice"]) == ("NEW", "0.00000")
    change = {"side": "BUY", "quantity": "0.200", "price": low(socket)}
    assert socket.signed("order.modify", **named, **change)["result"]["origQty"] == "0.200"
    assert socket.signed("order.cancel", **named)["result"]["status"] == "CANCELED"
    again = socket.signed("order.cancel", **named)
    assert (again["status"], again["error"]["code"]) == (400, -2011)


def test_a_conditional_order_is_placed_and_canceled(socket: Socket) -> None:
    order = {"algoType": "CONDITIONAL", "symbol": "ETHUSDT", "side": "SELL", "quantity": "0.1"}
    made = socket.signed("algoOrder.place", **order, type="STOP_MARKET", triggerPrice=low(socket))
    assert made["result"]["algoStatus"] == "NEW"
    gone = socket.signed("algoOrder.cancel", algoId=made["result"]["algoId"])
    assert gone["result"]["code"] == "200"


@pytest.mark.parametrize(
    ("method", "path", "signed", "params"),
    [
        ("depth", "/fapi/v1/depth", False, {"symbol": "ETHUSDT", "limit": 5}),
        ("ticker.price", "/fapi/v2/ticker/price", False, {}),
        ("ticker.book", "/fapi/v1/ticker/bookTicker", False, {"symbol": "BTCUSDT"}),
        ("account.status", "/fapi/v2/account", True, {}),
        ("v2/account.status", "/fapi/v3/account", True, {}),
        ("account.balance", "/fapi/v2/balance", True, {}),
        ("v2/account.balance", "/fapi/v3/balance", True, {}),
        ("account.position", "/fapi/v2/positionRisk", True, {"symbol": "ETHUSDT"}),
        ("v2/account.position", "/fapi/v3/positionRisk", True, {}),
    ],
)
def test_what_is_told_is_what_rest_tells(
    socket: Socket, method: str, path: str, signed: bool, params: dict[str, Any]
) -> None:
    socket.signed("order.place", symbol="ETHUSDT", side="BUY", type="MARKET", quantity="0.100")
    told = (socket.signed if signed else socket.ask)(method, **params)
    query = "&".join(f"{k}={v}" for k, v in params.items())
    query += f"&timestamp={socket.now.market_ms}" if signed else ""
    query = query.lstrip("&")
    query += f"&signature={hmac_of(query)}" if signed else ""
    said = socket.rest("GET", path, query.encode(), "test")
    assert (told["status"], told["result"]) == (200, json.loads(said.body)) and told["result"]


def test_the_methods_are_the_documented_ones_and_each_has_its_route() -> None:
    assert {m for m in METHODS if "." in m} == {
        "ticker.price", "ticker.book", "order.place", "order.modify", "order.cancel",
        "order.status", "algoOrder.place", "algoOrder.cancel", "account.balance",
        "v2/account.balance", "account.position", "v2/account.position", "account.status",
        "v2/account.status", "userDataStream.start", "userDataStream.ping",
        "userDataStream.stop",
    }  # fmt: skip
    for verb, path, security in METHODS.values():
        assert ROUTES[verb, path].security == security


def test_a_listen_key_needs_no_signature(socket: Socket) -> None:
    begun = socket.ask("userDataStream.start", apiKey="test")
    assert begun["result"]["listenKey"] == socket.desk.keys.key != ""
    assert socket.ask("userDataStream.ping", apiKey="test")["status"] == 200
    assert socket.ask("userDataStream.stop", apiKey="test")["result"] == {}
    assert socket.ask("userDataStream.ping", apiKey="test")["error"]["code"] == -1125


def test_a_signature_covers_the_parameters_in_order_encoded_or_not(socket: Socket) -> None:
    params = limit(socket, newClientOrderId="a:b/c", timestamp=socket.now.market_ms, apiKey="test")
    rows = sorted(params.items())
    raw = "&".join(f"{k}={v}" for k, v in rows)
    encoded = "&".join(f"{k}={quote(str(v), safe='')}" for k, v in rows)
    assert raw != encoded
    for payload in (raw, encoded):
        done = socket.ask("order.place", **params, signature=hmac_of(payload).upper())
        assert done["status"] == 200
        socket.signed("order.cancel", symbol="ETHUSDT", origClientOrderId="a:b/c")
    unsorted = "&".join(f"{k}={v}" for k, v in reversed(rows))
    wrong = socket.ask("order.place", **params, signature=hmac_of(unsorted))
    assert (wrong["status"], wrong["error"]["code"]) == (400, -1022)


@pytest.mark.parametrize(
    ("params", "expected"),
    [
        ({}, (401, -2014)),
        ({"apiKey": "other", "signature": "x"}, (401, -2015)),
        ({"apiKey": "test"}, (400, -1102)),
        ({"apiKey": "test", "signature": "x"}, (400, -1022)),
        ({"apiKey": ED25519_KEY, "signature": "not base64!"}, (400, -1022)),
    ],
)
def test_nobody_trades_without_key_and_signature(
    socket: Socket, params: dict[str, str], expected: tuple[int, int]
) -> None:
    told = socket.ask("order.place", **limit(socket), timestamp=socket.now.market_ms, **params)
    assert (told["status"], told["error"]["code"]) == expected
    assert not socket.world.account.orders


@pytest.mark.parametrize(("late_ms", "code"), [(10_000, 0), (10_001, -1021), (-2_000, -1021)])
def test_a_stamp_has_rest_s_window(socket: Socket, late_ms: int, code: int) -> None:
    """5,000 real milliseconds are 10,000 of this market; a second ahead is 2,000."""
    told = socket.signed("v2/account.balance", timestamp=socket.now.market_ms - late_ms)
    assert told.get("error", {}).get("code", 0) == code


def test_an_ed25519_key_logs_on_once_and_signs_nothing_more(socket: Socket) -> None:
    order, stamp = limit(socket), {"timestamp": socket.now.market_ms}
    assert socket.signed("session.logon")["error"]["code"] == -4056  # an HMAC key may not
    assert socket.ask("order.place", **order, **stamp)["error"]["code"] == -2014
    on = socket.signed("session.logon", ed25519_of, ED25519_KEY)
    assert (on["status"], on["result"]["apiKey"]) == (200, ED25519_KEY)
    assert on["result"]["authorizedSince"] == socket.now.market_ms
    made = socket.ask("order.place", **order, **stamp)
    assert (made["status"], made["result"]["status"]) == (200, "NEW")
    assert socket.ask("session.status")["result"]["apiKey"] == ED25519_KEY
    assert socket.ask("session.logout")["result"]["apiKey"] is None
    assert socket.ask("order.place", **order, **stamp)["error"]["code"] == -2014
    alone = socket.signed("v2/account.balance", ed25519_of, ED25519_KEY)
    assert alone["status"] == 200


@pytest.mark.parametrize(
    ("key", "sign", "stamp_ms", "code"),
    [
        ("", ed25519_of, 0, -2014),
        ("other", ed25519_of, 0, -2015),
        (ED25519_KEY, hmac_of, 0, -1022),
        (ED25519_KEY, ed25519_of, 60_000, -1021),
    ],
)
def test_a_wrong_logon_leaves_the_session_as_it_was(
    socket: Socket, key: str, sign: Any, stamp_ms: int, code: int
) -> None:
    told = socket.signed("session.logon", sign, key, timestamp=socket.now.market_ms + stamp_ms)
    assert told["error"]["code"] == code and socket.session.api_key == ""


def test_replies_tell_the_limits_unless_asked_not_to(socket: Socket) -> None:
    first = socket.signed("order.place", **limit(socket))
    counts = {(r["rateLimitType"], r["interval"]): r["count"] for r in first["rateLimits"]}
    assert counts == {
        ("REQUEST_WEIGHT", "MINUTE"): 0, ("ORDERS", "MINUTE"): 1, ("ORDERS", "SECOND"): 1,
    }  # fmt: skip
    assert "rateLimits" not in socket.ask("depth", symbol="ETHUSDT", returnRateLimits=False)
    socket.session.limits = False
    assert "rateLimits" not in socket.ask("depth", symbol="ETHUSDT")
    [weight] = socket.ask("depth", symbol="ETHUSDT", returnRateLimits=True)["rateLimits"]
    assert weight["count"] == 3 and weight["limit"] == 2400


@pytest.mark.parametrize(
    ("text", "number", "code"),
    [
        ("nothing", None, -1135),
        ("[]", None, -1135),
        ('{"id":1}', None, -1135),
        ('{"id":1,"method":7}', None, -1135),
        ('{"id":1,"method":"depth","params":[1]}', None, -1135),
        ('{"id":"a","method":"order.cancelAll","params":{}}', "a", -1020),
        ('{"id":2,"method":"depth"}', 2, -1102),
        ('{"id":2,"method":"depth","params":{"symbol":"NOPE"}}', 2, -1121),
    ],
)
def test_a_message_that_is_wrong_is_answered(
    socket: Socket, text: str, number: Any, code: int
) -> None:
    told = socket.say(text)
    assert (told["id"], told["error"]["code"], told["status"]) == (number, code, 400)


@pytest.mark.parametrize(("over", "code"), [(-1, 0), (0, 0), (1, -1135)])
def test_a_message_has_a_bound(socket: Socket, over: int, code: int) -> None:
    head, tail = '{"id":1,"method":"ping","params":{"x":"', '"}}'
    text = head + "y" * (TEXT_BYTES_MAX + over - len(head) - len(tail)) + tail
    assert socket.say(text).get("error", {}).get("code", 0) == code


def test_the_path_is_the_exchange_s() -> None:
    assert wsapi.PATH == "/ws-fapi/v1"


def planned(socket: Socket, kind: str, **more: Any) -> None:
    plan = faults.planned(socket.desk.lab, {"kind": kind, "times": 1} | more, socket.now.boot_ms)
    assert not isinstance(plan, Refusal), plan


def test_the_fault_lab_meets_this_door_too(socket: Socket) -> None:
    planned(socket, "unknown_executed")
    lost = socket.signed("order.place", **limit(socket, newClientOrderId="f-1"))
    assert (lost["status"], lost["error"]["code"]) == (503, -1000)
    assert [o.client_id for o in socket.world.account.orders.values()] == ["f-1"]
    planned(socket, "bad_gateway")
    page = socket.signed("order.place", **limit(socket, newClientOrderId="f-2"))
    assert page["status"] == 502 and "Bad Gateway" in page["error"]["msg"]
    planned(socket, "reply_late", ms=250)
    message = json.dumps({"id": 1, "method": "ticker.price", "params": {"symbol": "ETHUSDT"}})
    told = answer(socket.session, message, socket.now, SPEED, socket.knock)
    assert told.late_ms == 250 and json.loads(told.text)["result"]["symbol"] == "ETHUSDT"
    planned(socket, "reply_lost")
    told = answer(socket.session, message, socket.now, SPEED, socket.knock)
    assert told.text == b""  # the socket is closed without a word
    assert len(socket.world.account.orders) == 1
