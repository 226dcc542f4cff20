"""Limits at their edges: weight, orders, funding, bans; listen keys through their life."""

from __future__ import annotations

import hmac

import orjson
import pytest

import config
from venue import exchange, limits, listen, rest
from venue.exchange import Moment, Setup
from venue.limits import BAN_MS, BAN_MS_MAX, Held, Limits
from venue.main import arguments
from venue.rest import Desk
from venue.server import ROUTES
from venue.sockets import LIFETIME_MS

NOW = 1_795_000_040_000  # 20 s into a clock minute
IP = "127.0.0.1"


def spend(made: Limits, weight: int, now_ms: int = NOW, path: str = "/x", ip: str = IP) -> int:
    """HTTP status of a call: 0 when it may pass."""
    _, held = limits.spend(made, ip, path, weight, now_ms, 1.0)
    return held.refusal.http if held else 0


@pytest.mark.parametrize(("used", "status"), [(2399, 0), (2400, 0), (2401, 429)])
def test_weight_is_refused_only_past_the_limit(used: int, status: int) -> None:
    made = Limits(1.0)
    assert spend(made, used - 1) == 0
    assert spend(made, 1) == status
    assert spend(made, 1, ip="127.0.0.2") == 0  # another address has its own


def test_weight_begins_again_with_the_clock_minute() -> None:
    made = Limits(1.0)
    assert spend(made, 2401) == 429
    assert spend(made, 1, NOW + 39_999) == 429
    assert spend(made, 1, NOW + 40_000) == 0
    assert made.addresses[IP].weight == 1


def test_a_refusal_has_the_exchange_s_words_and_real_seconds_to_wait() -> None:
    for speed, wait_s in ((1.0, 40), (30.0, 2), (1000.0, 1)):
        used, held = limits.spend(Limits(1.0), IP, "/x", 2401, NOW, speed)
        assert used == 2401 and held is not None
        assert (held.refusal.code, held.refusal.http, held.wait_s) == (-1003, 429, wait_s)
        assert "current limit is 2400 requests per minute" in held.refusal.msg


def test_a_multiple_scales_every_limit_and_off_enforces_none() -> None:
    assert (limits.scale_of("real"), limits.scale_of("off"), limits.scale_of("2.5")) == (1, 0, 2.5)
    for bad in ("", "0", "-1", "much", "nan", "1e9"):
        with pytest.raises(ValueError):
            limits.scale_of(bad)
    assert spend(Limits(10.0), 24_000) == 0 and spend(Limits(10.0), 24_001) == 429
    off = Limits()
    assert spend(off, 1_000_000) == 0 and off.addresses[IP].weight == 1_000_000


def banned(made: Limits, now_ms: int) -> Held:
    """Goes on after 429 until the ban."""
    for _ in range(limits.REFUSALS_BEFORE_BAN):
        assert spend(made, 2401, now_ms) == 429
    _, held = limits.spend(made, IP, "/x", 1, now_ms, 1.0)
    assert held is not None and held.refusal.http == 418
    return held


def test_going_on_after_429_is_a_ban_with_its_end_in_the_message() -> None:
    made = Limits(1.0)
    held = banned(made, NOW)
    assert (held.refusal.code, held.wait_s) == (-1003, BAN_MS // 1000)
    assert f"IP banned until {NOW + BAN_MS}." in held.refusal.msg
    assert spend(made, 1, NOW + BAN_MS - 1) == 418
    assert limits.banned(made, IP, NOW + BAN_MS - 1, 1.0) is not None
    assert limits.banned(made, IP, NOW + BAN_MS, 1.0) is None
    assert spend(made, 1, NOW + BAN_MS) == 0


def test_bans_double_to_three_days_and_a_good_day_is_forgiven() -> None:
    made, now, lengths = Limits(1.0), NOW, []
    for _ in range(14):
        held = banned(made, now)
        until = made.addresses[IP].banned_until_ms
        lengths.append(until - now)
        assert held.wait_s == lengths[-1] // 1000
        now = until + 60_000
    assert lengths[:4] == [BAN_MS, 2 * BAN_MS, 4 * BAN_MS, 8 * BAN_MS]
    assert lengths == sorted(lengths) and lengths[-1] == lengths[-2] == BAN_MS_MAX
    now += limits.FORGIVEN_MS
    banned(made, now)
    assert made.addresses[IP].banned_until_ms - now == BAN_MS


def order(made: Limits, short: int, long: int, now_ms: int) -> tuple[int, str]:
    headers, held = limits.order(made, IP, short, long, now_ms, 1.0)
    return held.refusal.code if held else 0, headers["X-MBX-ORDER-COUNT-10S"]


def test_orders_are_refused_past_300_in_ten_seconds_and_1200_in_a_minute() -> None:
    made = Limits(1.0)
    assert order(made, 299, 299, NOW) == (0, "299")
    assert order(made, 1, 1, NOW + 1) == (0, "300")
    assert order(made, 1, 1, NOW + 2) == (-1015, "300")  # refused: not counted
    assert order(made, 1, 1, NOW + 9_999) == (-1015, "300")
    for window in (1, 2, 3):
        assert order(made, 300, 300, NOW + window * 10_001) == (0, "300")
    assert order(made, 1, 1, NOW + 40_100) == (-1015, "0")  # 1,200 in this minute
    _, held = limits.order(made, IP, 1, 1, NOW + 40_101, 1.0)
    assert held is not None and held.refusal.http == 429 and held.wait_s == 20
    assert "1200 orders per 1 MINUTE" in held.refusal.msg


@pytest.mark.parametrize(("calls", "status"), [(500, 0), (501, 429)])
def test_funding_paths_share_500_calls_in_five_minutes(calls: int, status: int) -> None:
    made, last = Limits(1.0), 0
    for k in range(calls):
        last = spend(made, 0, NOW, limits.FUNDING_PATHS[k % 2])
    assert last == status
    assert spend(made, 0, NOW) == 0  # other paths are free
    assert spend(made, 0, NOW + 300_000, limits.FUNDING_PATHS[0]) == 0


def test_addresses_remembered_are_bounded() -> None:
    made = Limits(1.0)
    for k in range(limits.ADDRESSES_MAX + 5):
        spend(made, 1, ip=f"a{k}")
    assert len(made.addresses) == limits.ADDRESSES_MAX and "a4" not in made.addresses


def test_a_listen_key_lives_an_hour_from_its_last_renewal() -> None:
    keys = listen.Keys()
    key = listen.start(keys, 0)
    assert len(key) == 64 and listen.start(keys, 1000) == key  # the same, with a new hour
    assert listen.keep(keys, 1000 + listen.KEY_MS - 1) == key
    end = 1000 + 2 * listen.KEY_MS - 1
    assert listen.live(keys, end - 1) == key and listen.expired(keys, end - 1) == []
    assert listen.keep(keys, end) == "" and not listen.stop(keys, end)
    assert listen.expired(keys, end) == [key] and listen.expired(keys, end) == []
    assert listen.start(keys, end) not in ("", key)


def test_the_end_of_a_key_is_told_even_if_the_next_one_is_asked_for_at_once() -> None:
    keys = listen.Keys()
    old = listen.start(keys, 0)
    new = listen.start(keys, listen.KEY_MS)
    assert new != old and listen.expired(keys, listen.KEY_MS) == [old]


def test_a_deleted_key_ends_without_a_word() -> None:
    keys = listen.Keys()
    key = listen.start(keys, 0)
    assert listen.stop(keys, 1) and listen.live(keys, 1) == "" and listen.expired(keys, 1) == []
    assert listen.start(keys, 2) != key


# as a client meets them


class Client:
    """Calls an exchange whose clock stands still."""

    def __init__(self, scale: float = 1.0, speed: float = 30.0) -> None:
        self.world = exchange.create(Setup("w", 2, 100.0, 3, speed, 0.0, ()))
        exchange.open_account(self.world, Moment(self.world.t0_ms, 0))
        self.desk = Desk(Limits(scale))
        self.now = Moment(NOW, 0)

    def call(self, method: str, path: str, query: str = "", key: str = "") -> rest.Reply:
        if key:
            query += f"&timestamp={self.now.market_ms}"
            query += "&signature=" + hmac.new(b"test", query.encode(), "sha256").hexdigest()
        return rest.handle(
            self.world, self.desk, ROUTES, method, path, query.encode(), b"", key, self.now
        )

    def order(self, secret: str = "test") -> rest.Reply:
        query = "symbol=ETHUSDT&side=BUY&type=MARKET&quantity=0"
        return self.call("POST", "/fapi/v1/order", query, secret)


def test_a_client_that_goes_on_is_told_429_and_then_418_and_when_to_come_back() -> None:
    client, seen = Client(), []
    for _ in range(72):  # 40 each
        reply = client.call("GET", "/fapi/v1/ticker/24hr")
        body = orjson.loads(reply.body)
        seen.append(reply.status)
        if reply.status != 200:
            assert body["code"] == -1003
            assert reply.headers["Retry-After"] == ("2" if reply.status == 429 else "4")
    assert seen == [200] * 60 + [429] * 10 + [418] * 2
    told = orjson.loads(client.call("GET", "/venue/v1/faults").body)["limits"]
    assert told == {"scale": 1.0, "refused": 11, "banned": 1}
    assert client.call("GET", "/venue/v1/status").status == 200  # never the venue's own
    client.now = Moment(NOW + BAN_MS, 0)
    reply = client.call("GET", "/fapi/v1/ping")
    assert (reply.status, reply.headers) == (200, {"X-MBX-USED-WEIGHT-1M": "1"})


def test_orders_past_the_limit_are_429_and_wrong_signatures_cost_no_order() -> None:
    client = Client()
    assert client.order("other").status == 401
    for k in range(300):
        reply = client.order()
        assert (reply.status, orjson.loads(reply.body)["code"]) == (400, -1102)
        assert reply.headers["X-MBX-ORDER-COUNT-10S"] == str(k + 1)
    reply = client.order()
    body = orjson.loads(reply.body)
    assert (reply.status, body["code"], reply.headers["Retry-After"]) == (429, -1015, "1")
    assert body["msg"] == "Too many new orders; current limit is 300 orders per 10 SECONDS."
    assert client.call("GET", "/fapi/v1/openOrders", "", "test").status == 200


def test_nobody_is_refused_with_the_limits_off() -> None:
    client = Client(scale=0.0)
    assert {client.call("GET", "/fapi/v1/ticker/24hr").status for _ in range(70)} == {200}
    assert {client.order().status for _ in range(310)} == {400}


@pytest.mark.parametrize(("words", "scale"), [([], 1.0), (["off"], 0.0), (["2.5"], 2.5)])
def test_the_process_has_the_real_limits_unless_told_otherwise(
    words: list[str], scale: float
) -> None:
    options = arguments([w for word in words for w in ("--limits", word)], config.load({}))
    assert options.limits == scale and options.socket_s * 1000 == LIFETIME_MS


@pytest.mark.parametrize("words", [["--limits", "much"], ["--limits", "0"], ["--socket-s", "0"]])
def test_limits_that_make_no_sense_are_a_usage_error(words: list[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        arguments(words, config.load({}))
    assert ended.value.code == 2


def test_a_call_during_a_pause_is_told_and_brings_nobody_nearer_to_a_limit() -> None:
    world = exchange.create(Setup("w", 2, 100.0, 3, 30.0, 0.0, ()))
    desk, now = Desk(Limits(1.0)), Moment(world.t0_ms, 0)

    def depth() -> tuple[int, int]:
        query = b"symbol=BTCUSDT&limit=1000"  # 20 of 2,400
        path = "/fapi/v1/depth"
        reply = rest.handle(world, desk, ROUTES, "GET", path, query, b"", "", now)
        return reply.status, int(reply.headers["X-MBX-USED-WEIGHT-1M"])

    world.paused = True
    assert [depth() for _ in range(200)] == [(200, 20 * k) for k in range(1, 201)]
    world.paused = False
    after = [depth() for _ in range(121)]
    assert after[:120] == [(200, 4_000 + 20 * k) for k in range(1, 121)] and after[120][0] == 429
