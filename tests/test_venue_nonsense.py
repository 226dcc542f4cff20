"""Nonsense at the door: whatever is sent, the answer is a refusal with a code, or a good answer."""

from __future__ import annotations

import hashlib
import hmac
from functools import cache
from typing import Any
from urllib.parse import quote_from_bytes, urlencode

import hypothesis
import orjson
import pytest
from hypothesis import strategies as st

from venue import door, exchange, rest, sockets
from venue.connection import parse_url
from venue.door import Asked
from venue.exchange import Exchange, Moment, Setup
from venue.orders import Refusal
from venue.rest import Desk
from venue.server import ROUTES
from venue.symbols import listing

NAMES = (
    "symbol", "side", "type", "quantity", "price", "timeInForce", "reduceOnly", "closePosition",
    "triggerPrice", "newClientOrderId", "clientAlgoId", "origClientOrderId", "orderId", "algoId",
    "algoType", "goodTillDate", "limit", "startTime", "endTime", "fromId", "interval", "leverage",
    "marginType", "amount", "modifyId", "batchOrders", "orderIdList", "orderidlist",
    "origClientOrderIdList", "countdownTime", "positionSide", "workingType", "recvWindow",
    "dualSidePosition", "pair", "contractType", "incomeType", "autoCloseType", "from_seq", "id",
    "priceProtect", "selfTradePreventionMode", "newOrderRespType", "",
)  # fmt: skip
WORDS = (
    "BTCUSDT", "ETHUSDT", "btcusdt", "BUY", "SELL", "LIMIT", "MARKET", "STOP_MARKET", "STOP",
    "TAKE_PROFIT", "TRAILING_STOP_MARKET", "GTC", "IOC", "FOK", "GTX", "GTD", "true", "false",
    "CONDITIONAL", "1m", "1d", "PERPETUAL", "ISOLATED", "CROSSED", "BOTH", "LONG", "0", "1", "-1",
    "0.010", "61000.0", "1e5", "NaN", "Infinity", "²", "١", "1" * 19, "9" * 20, "9" * 5000,
    "0." + "0" * 19 + "1", "abc\n", "1\n", "\x00", "[]", "[1,2]", "{}", "[[" * 2000, "[null]",
    '[{"symbol":"BTCUSDT","side":"BUY","type":"MARKET","quantity":1e308}]',
    '[{"symbol":{"a":1},"side":null}]', '[{"quantity":' + "9" * 400 + "}]", "中文", "%", "&",
)  # fmt: skip
VALUES = st.one_of(st.sampled_from(WORDS), st.text(max_size=20), st.integers().map(str))
PAIRS = st.lists(st.tuples(st.sampled_from(NAMES), VALUES), max_size=10)
TAIL = st.binary(max_size=30)
OWN_JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=9),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ("kind", "match", "times", "ms", "what", "symbol", "client", "share", "x")
            ),
            inner | st.sampled_from(("busy", "disconnect", "order", "close", "BTCUSDT", "web")),
            max_size=5,
        )
    ),
    max_leaves=8,
)


@cache
def world() -> tuple[Exchange, Desk]:
    made = exchange.create(Setup("w", 2, 100.0, 3, 1.0, 0.0, ()))
    exchange.open_account(made, Moment(made.t0_ms, 0))
    for _ in exchange.advance(made, made.t0_ms + 5000, 0):
        pass
    return made, Desk()


def answered(method: str, path: str, query: bytes, body: bytes, key: str = "test") -> rest.Reply:
    """The reply, which must be one that the exchange could have given."""
    made, desk = world()
    now = Moment(int(made.made_until_ms), 1000)
    answer = door.handle(made, desk, ROUTES, Asked(method, path, query, body, key, "ip"), now)
    made.told.clear()
    made.unwritten.clear()
    desk.lab.plans.clear()
    if answer.reply is None:
        raise AssertionError("nothing was planned")
    return answer.reply


def check(reply: rest.Reply) -> Any:
    value = orjson.loads(reply.body)
    assert 200 <= reply.status < 500
    if reply.status != 200:
        assert list(value) == ["code", "msg"]
        assert isinstance(value["code"], int) and value["code"] < 0 and value["msg"]
    return value


def signed(pairs: list[tuple[str, str]], tail: bytes) -> bytes:
    made, _ = world()
    stamp = int(made.made_until_ms)
    text = urlencode(pairs, errors="replace").encode() + b"&" + quote_from_bytes(tail).encode()
    payload = text + f"&timestamp={stamp}".encode()
    digest = hmac.new(b"test", payload, hashlib.sha256).hexdigest()
    return payload + b"&signature=" + digest.encode()


@hypothesis.settings(
    max_examples=250, deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
@hypothesis.given(st.sampled_from(sorted(ROUTES)), PAIRS, TAIL, st.booleans())
def test_any_parameters_on_any_route_get_an_answer_or_a_refusal(
    route: tuple[str, str], pairs: list[tuple[str, str]], tail: bytes, in_body: bool
) -> None:
    method, path = route
    sent = signed(pairs, tail)
    query, body = (b"", sent) if in_body and method != "GET" else (sent, b"")
    check(answered(method, path, query, body))


@hypothesis.settings(
    max_examples=200, deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
@hypothesis.given(st.sampled_from(sorted(ROUTES)), st.binary(max_size=60), st.binary(max_size=60))
def test_bytes_that_are_no_text_are_refused(
    route: tuple[str, str], query: bytes, body: bytes
) -> None:
    check(answered(*route, query, body))
    check(answered(route[0], route[1] + "x", query, body, key="é"))


@hypothesis.settings(
    max_examples=200, deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
@hypothesis.given(st.sampled_from(("/venue/v1/faults", "/venue/v1/act")), OWN_JSON)
def test_any_json_for_the_venue_s_own_calls_is_done_or_refused(path: str, sent: Any) -> None:
    try:
        body = orjson.dumps(sent)
    except TypeError:
        return  # no JSON
    check(answered("POST", path, b"", body))


@hypothesis.settings(
    max_examples=150, deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
@hypothesis.given(
    st.one_of(
        st.text(max_size=40),
        OWN_JSON.filter(lambda v: not isinstance(v, int)).map(repr),
        st.fixed_dictionaries(
            {
                "method": st.sampled_from(
                    ("SUBSCRIBE", "UNSUBSCRIBE", "LIST_SUBSCRIPTIONS", "SET_PROPERTY", "", None, 1)
                ),
                "params": st.one_of(
                    st.lists(st.one_of(st.text(max_size=9), st.none(), st.booleans()), max_size=3),
                    st.none(),
                    st.just("combined"),
                    st.just(["combined", True]),
                    st.just(["btcusdt@depth²", "btcusdt@", "@", "!", "btcusdt@kline_"]),
                ),
                "id": st.one_of(st.integers(-9, 9), st.none(), st.text(max_size=5)),
            }
        ).map(lambda v: orjson.dumps(v).decode()),
    )
)
def test_any_control_message_is_answered(text: str) -> None:
    hub = sockets.Hub(listing(2), True)
    address = parse_url("/market/ws", "")
    assert address is not None
    from tests.test_venue_sockets import Pipe

    connection = hub.add(address, "/market/ws", Pipe())
    reply, why = hub.control(connection, text, 0)
    assert reply[0] == 0x81 and why == ""
    assert set(orjson.loads(reply[2:] if reply[1] < 126 else reply[4:])) & {"result", "error"}


@pytest.mark.parametrize(
    ("query", "code"),
    [
        (b"symbol=BTCUSDT&limit=\xc2\xb2", 0),  # a digit that is no number
        (b"symbol=BTCUSDT&limit=" + b"9" * 5000, 0),
        (b"symbol=\xff\xfe", -1121),
        (b"symbol=&symbol=", -1102),
        (b"&".join([b"a=b"] * 1001), -1101),
        (b"=&==&&=", -1102),
    ],
)
def test_odd_queries_are_told_what_is_wrong(query: bytes, code: int) -> None:
    value = check(answered("GET", "/fapi/v1/trades", query, b""))
    assert (value["code"] if isinstance(value, dict) else 0) == code


def test_a_number_is_written_in_plain_digits() -> None:
    for text, value in (("0", 0), ("7", 7), ("9" * 20, 10**20 - 1)):
        assert rest.whole(text) == value
    for text in ("", "²", "١", "-1", "+1", "1.0", " 1", "1\n", "9" * 21):
        assert rest.whole(text) is None


def test_a_refusal_is_code_and_text_alone() -> None:
    reply = rest.refuse(Refusal(-1, "no", 418), {"Retry-After": "1"})
    assert (reply.status, reply.body) == (418, b'{"code":-1,"msg":"no"}')
