"""The exchange's answers as values, and the fence in the last hook before the socket."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
from collections.abc import Awaitable, Callable
from typing import Any
from urllib.parse import parse_qsl

import pytest
from aiohttp import web
from risk_desk import Desk

from risk import journal
from risk.budget import Budget, take_limits
from risk.dispatch import CONCURRENT_MAX, QUEUED_MAX, RESERVED, Dispatcher
from risk.events import (
    CANCEL,
    ENTRY,
    HISTORY,
    PROTECT,
    RECONCILE,
    TARGET,
    Done,
    Query,
    Refused,
    Replied,
    Result,
    Send,
    Snap,
    SnapshotTaken,
    Throttled,
    Unknown,
)
from risk.exchange import BAN_DEFAULT_MS, ENTRY_TIMEOUT_MS, Exchange, classify
from risk.main import is_passing
from risk.snapshots import Snapshots

ORDER = "/fapi/v1/order"
RETRY = {"Retry-After": "7"}


def body(code: int, msg: str = "words") -> str:
    return json.dumps({"code": code, "msg": msg})


@pytest.mark.parametrize(
    ("http", "text", "expected"),
    [
        (400, body(-2019), Refused(-2019, "words")),
        (400, body(-2013), Refused(-2013, "words")),
        (400, body(-1021), Refused(-1021, "words")),
        (503, body(-1008), Refused(-1008, "words")),
        (503, body(-1001), Refused(-1001, "words")),
        (503, "Service Unavailable.", Refused(503, "Service Unavailable.")),
        (503, body(0, "Internal error; unable"), Refused(503, "Internal error; unable")),
        (503, body(-1000, "Unknown error"), Unknown("503 -1000 Unknown error")),
        (503, "Unknown error", Unknown("503 0 Unknown error")),
        (408, body(-1007), Unknown("408 -1007 words")),
        (400, body(-1006), Unknown("400 -1006 words")),
        (502, "<html>", Unknown("502 0 <html>")),
        (401, body(-2015), Refused(-2015, "words")),
        (404, "", Refused(404, "no JSON")),
    ],
)
def test_an_error_answer_is_refused_or_unknown(http: int, text: str, expected: Result) -> None:
    assert classify(http, text, {}, 0.0) == expected


@pytest.mark.parametrize(("http", "code"), [(429, -1003), (418, -1003), (429, -1015)])
def test_a_throttled_answer_names_its_end(http: int, code: int) -> None:
    told = classify(http, body(code), {"Retry-After": "7"}, 1_000.0)
    assert isinstance(told, Throttled) and told.until_ms == 8_000.0
    default = classify(http, body(code), {}, 1_000.0)
    assert isinstance(default, Throttled) and default.until_ms == 1_000.0 + BAN_DEFAULT_MS


@pytest.mark.parametrize(
    ("headers", "until_ms"), [({}, 61_000.0), ({"Retry-After": "7"}, 61_000.0)]
)
def test_a_ban_names_its_end_in_market_time(headers: dict[str, str], until_ms: float) -> None:
    text = body(-1003, "IP(1.2.3.4) banned until 1795000060000. Please use the websocket")
    told = classify(418, text, headers, 1_000.0, 1_795_000_000_000.0)
    assert isinstance(told, Throttled) and told.until_ms == until_ms
    over = classify(418, text, {}, 1_000.0, 1_795_000_060_000.0)
    assert isinstance(over, Throttled) and over.until_ms == 1_000.0 + BAN_DEFAULT_MS


@pytest.mark.parametrize(("speed", "until_ms"), [(1.0, 61_000.0), (30.0, 3_000.0)])
def test_a_ban_s_market_time_passes_at_the_market_s_speed(speed: float, until_ms: float) -> None:
    text = body(-1003, "IP(1.2.3.4) banned until 1795000060000. Please use the websocket")
    told = classify(418, text, {"Retry-After": "1"}, 1_000.0, 1_795_000_000_000.0, speed)
    assert isinstance(told, Throttled) and told.until_ms == until_ms


def test_an_exchange_whose_market_is_fast_is_left_alone_for_real_seconds() -> None:
    async def banned(request: web.Request) -> web.Response:
        text = body(-1003, f"IP banned until {10**12 + 150_000}.")
        return web.Response(text=text, status=418, content_type="application/json")

    async def until(exchange: Exchange) -> float:
        await exchange.fetch("GET", "/fapi/v1/time")
        return exchange.throttled_until_ms

    assert asyncio.run(served(banned, until, speed=30.0)) == 5_000.0


def test_a_ban_told_in_market_time_is_waited_out_in_real_time() -> None:
    text = body(-1003, "IP(1.2.3.4) banned until 1795000060000. Please use the websocket")
    told = classify(418, text, {}, 1_000.0, 1_795_000_000_000.0, 30.0)
    assert isinstance(told, Throttled) and told.until_ms == 1_000.0 + 60_000.0 / 30.0


@pytest.mark.parametrize(
    ("result", "passing"),
    [
        (Done({}), False),
        (Refused(-2015, "Invalid API-key"), False),
        (Refused(-1022, "Signature"), False),
        (Refused(-1021, "Timestamp"), True),
        (Refused(0, "unreachable"), True),
        (Unknown("time-out"), True),
        (Throttled(1.0, "429"), True),
    ],
)
def test_only_an_answer_about_our_keys_ends_the_start(result: Result, passing: bool) -> None:
    assert is_passing(result) is passing


Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def entry(order_id: str = "a", fenced: bool = True, priority: int = ENTRY) -> Send:
    params = {"symbol": "BTCUSDT", "newClientOrderId": order_id}
    return Send("POST", ORDER, params, order_id, "entry", priority, fenced)


async def served(
    handler: Handler,
    work: Callable[[Exchange], Awaitable[Any]],
    window_ms: float = 700.0,
    speed: float = 1.0,
) -> Any:
    """Run `work` with an Exchange whose far end is `handler` on a loopback socket."""
    app = web.Application()
    app.router.add_route("*", "/{tail:.*}", handler)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = runner.addresses[0][1]
    exchange = Exchange(
        f"http://127.0.0.1:{port}",
        "key",
        "secret",
        lambda: 1e12,
        lambda: window_ms,
        lambda: 0.0,
        lambda: speed,
    )
    try:
        return await work(exchange)
    finally:
        await exchange.close()
        await runner.cleanup()


def test_an_entry_carries_what_is_left_of_the_lease_as_recv_window() -> None:
    seen: list[dict[str, str]] = []

    async def handler(request: web.Request) -> web.Response:
        raw = (await request.read()).decode()
        payload, _, signature = raw.rpartition("&signature=")
        expected = hmac.new(b"secret", payload.encode(), hashlib.sha256).hexdigest()
        assert signature == expected and request.headers["X-MBX-APIKEY"] == "key"
        seen.append(dict(parse_qsl(raw)))
        return web.json_response({"orderId": 1})

    result = asyncio.run(served(handler, lambda exchange: exchange.call(entry())))
    assert result == Done({"orderId": 1})
    assert (seen[0]["recvWindow"], seen[0]["timestamp"]) == ("700", "1000000000000")
    assert "fenced" not in seen[0] and seen[0]["newClientOrderId"] == "a"


@pytest.mark.parametrize("window_ms", [-1.0, 0.0, 0.9])
def test_an_entry_without_a_lease_never_reaches_the_socket(window_ms: float) -> None:
    seen: list[str] = []

    async def handler(request: web.Request) -> web.Response:
        seen.append(request.path)
        return web.json_response({})

    async def work(exchange: Exchange) -> tuple[Result, Result]:
        return await exchange.call(entry()), await exchange.call(entry(fenced=False))

    fenced, free = asyncio.run(served(handler, work, window_ms))
    assert isinstance(fenced, Refused) and fenced.code == 0
    assert isinstance(free, Done) and seen == [ORDER]


def test_a_connection_dropped_after_sending_is_unknown() -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        assert request.transport is not None
        request.transport.close()
        return web.Response()

    result = asyncio.run(served(handler, lambda exchange: exchange.call(entry())))
    assert isinstance(result, Unknown)


def test_an_entry_that_is_not_answered_soon_is_unknown_and_others_wait_longer() -> None:
    async def handler(request: web.Request) -> web.Response:
        await asyncio.sleep(ENTRY_TIMEOUT_MS / 1000 + 0.3)
        return web.json_response({"orderId": 1})

    async def work(exchange: Exchange) -> list[Result]:
        asked = (entry(), entry(fenced=False))
        return list(await asyncio.gather(*(exchange.call(request) for request in asked)))

    first, second = asyncio.run(served(handler, work))
    assert first == Unknown("time-out") and second == Done({"orderId": 1})


def test_an_exchange_that_is_not_there_refused_for_sure() -> None:
    async def work() -> Result:
        exchange = Exchange(
            "http://127.0.0.1:1", "key", "secret", lambda: 1e12, lambda: 700.0, lambda: 0.0
        )
        try:
            return await exchange.call(entry())
        finally:
            await exchange.close()

    assert asyncio.run(work()) == Refused(0, "unreachable")


def test_the_used_weight_is_read_from_the_header() -> None:
    async def handler(request: web.Request) -> web.Response:
        return web.json_response({"serverTime": 1}, headers={"X-MBX-USED-WEIGHT-1M": "321"})

    async def work(exchange: Exchange) -> int:
        await exchange.fetch("GET", "/fapi/v1/time")
        return exchange.used_weight

    assert asyncio.run(served(handler, work)) == 321


# --- the dispatcher ---


class Slow:
    """An exchange that answers when told; remembers the order of what reached it."""

    def __init__(self) -> None:
        self.seen: list[str] = []
        self.gate = asyncio.Event()
        self.used_weight = 0
        self.budget, self.speed = Budget(), 1.0
        self.throttled_until_ms = 0.0
        self.answer: Result = Done({})

    async def call(self, request: Any) -> Result:
        self.seen.append(request.about)
        await self.gate.wait()
        if isinstance(self.answer, Throttled):
            self.throttled_until_ms = self.answer.until_ms
        return self.answer


def ask(about: str, priority: int) -> Query:
    return Query("GET", ORDER, {}, about, "query", priority)


def test_protection_always_finds_a_free_place() -> None:
    async def work() -> list[str]:
        slow = Slow()
        dispatcher = Dispatcher(slow, lambda reply: None, lambda: 0.0)  # type: ignore[arg-type]
        for number in range(20):
            dispatcher.put(ask(f"h{number}", HISTORY))
        dispatcher.put(ask("stop", PROTECT))
        dispatcher.put(ask("cancel", CANCEL))
        await asyncio.sleep(0)
        seen = list(slow.seen)
        await dispatcher.close()
        return seen

    seen = asyncio.run(work())
    assert len(seen) == CONCURRENT_MAX - RESERVED + 2
    assert seen[-2:] == ["stop", "cancel"]


def test_the_most_urgent_goes_first() -> None:
    async def work() -> list[str]:
        slow = Slow()
        dispatcher = Dispatcher(slow, lambda reply: None, lambda: 0.0)  # type: ignore[arg-type]
        for number in range(CONCURRENT_MAX):
            dispatcher.put(ask(f"h{number}", HISTORY))
        dispatcher.put(entry("entry"))
        slow.gate.set()
        for _ in range(20):
            await asyncio.sleep(0)
        await dispatcher.close()
        return slow.seen

    assert asyncio.run(work()).index("entry") == CONCURRENT_MAX - RESERVED


def test_outgoing_work_leaves_in_the_order_of_its_urgency() -> None:
    """protect and exit, target, cancel, reconcile, entry, history; in each as it was asked."""

    async def work() -> list[str]:
        slow = Slow()
        dispatcher = Dispatcher(slow, lambda reply: None, lambda: 0.0)  # type: ignore[arg-type]
        for number in range(CONCURRENT_MAX):
            dispatcher.put(ask(f"busy{number}", PROTECT))
        for turn in (1, 2):
            for priority in (HISTORY, ENTRY, RECONCILE, CANCEL, TARGET, PROTECT):
                dispatcher.put(ask(f"{priority}-{turn}", priority))
        await asyncio.sleep(0)
        slow.gate.set()
        for _ in range(60):
            await asyncio.sleep(0)
        await dispatcher.close()
        return slow.seen[CONCURRENT_MAX:]

    order = (PROTECT, TARGET, CANCEL, RECONCILE, ENTRY, HISTORY)
    assert asyncio.run(work()) == [f"{kind}-{turn}" for kind in order for turn in (1, 2)]


@pytest.mark.parametrize("speed", [1.0, 30.0])
@pytest.mark.parametrize(("most", "window_ms"), [(300, 10_000), (1_200, 60_000)])
@pytest.mark.parametrize("more", [-1, 0, 1])
def test_entries_end_at_four_fifths_of_the_orders(
    speed: float, most: int, window_ms: int, more: int
) -> None:
    """Within a window of market time; the moment after it they go on."""
    budget, spread_ms = Budget(), window_ms / speed
    count = most * 4 // 5 + more
    for number in range(count):
        budget.sent(number * spread_ms / count)
    if most == 1_200:
        budget.short.orders_max = 10_000
    newest_ms = (count - 1) * spread_ms / count
    assert bool(budget.entry_refusal(0, newest_ms, speed)) is (more >= 0)
    assert not budget.entry_refusal(0, newest_ms + spread_ms, speed)


@pytest.mark.parametrize(("speed", "window_ms"), [(1.0, 10_000.0), (40.0, 250.0)])
@pytest.mark.parametrize(("late_ms", "held"), [(-1.0, 1), (0.0, 0), (1.0, 0)])
def test_an_order_is_in_its_window_for_as_long_as_that(
    speed: float, window_ms: float, late_ms: float, held: int
) -> None:
    window = Budget().short
    window.sent.append(500.0)
    assert window.used(500.0 + window_ms + late_ms, speed) == held


@pytest.mark.parametrize(("told", "sent"), [(239, True), (240, False), (241, False)])
def test_orders_of_whoever_held_before_are_known_from_the_exchange(told: int, sent: bool) -> None:
    budget = Budget()
    budget.told(told, told, 1_000.0)
    assert (not budget.entry_refusal(0, 10_999.0, 1.0)) is sent
    assert not budget.entry_refusal(0, 11_000.0, 1.0)


def test_the_exchange_s_own_limits_are_taken() -> None:
    budget = Budget()
    rows = [
        {"rateLimitType": "REQUEST_WEIGHT", "interval": "MINUTE", "intervalNum": 1, "limit": 10},
        {"rateLimitType": "ORDERS", "interval": "MINUTE", "intervalNum": 1, "limit": 20},
        {"rateLimitType": "ORDERS", "interval": "SECOND", "intervalNum": 10, "limit": 30},
        {"rateLimitType": "RAW_REQUESTS", "interval": "MINUTE", "intervalNum": 5, "limit": 1},
    ]
    take_limits(budget, rows)
    assert (budget.weight_max, budget.long.orders_max, budget.short.orders_max) == (10, 20, 30)
    assert not budget.entry_refusal(8, 0.0, 1.0) and budget.entry_refusal(9, 0.0, 1.0)
    take_limits(budget, [])
    assert budget.weight_max == 10


def test_at_the_limit_of_orders_an_entry_is_refused_and_an_exit_leaves() -> None:
    async def work() -> tuple[list[str], list[Replied]]:
        slow = Slow()
        slow.gate.set()
        replies: list[Replied] = []
        dispatcher = Dispatcher(slow, replies.append, lambda: 0.0)  # type: ignore[arg-type]
        for number in range(300):
            dispatcher.put(entry(f"stop{number}", fenced=False, priority=PROTECT))
            await asyncio.sleep(0)
        dispatcher.put(entry("entry"))
        dispatcher.put(entry("exit", fenced=False, priority=PROTECT))
        for _ in range(20):
            await asyncio.sleep(0)
        await dispatcher.close()
        return slow.seen, replies

    seen, replies = asyncio.run(work())
    assert len(seen) == 301 and seen[-1] == "exit"
    refused = [r for r in replies if isinstance(r.result, Refused)]
    assert [r.request.about for r in refused] == ["entry"]
    assert "300 of 300" in str(refused[0].result)


def test_counts_of_orders_are_read_from_the_headers() -> None:
    async def handler(request: web.Request) -> web.Response:
        counts = {"X-MBX-ORDER-COUNT-10S": "240", "X-MBX-ORDER-COUNT-1M": "7"}
        return web.json_response({"orderId": 1}, headers=counts)

    async def work(exchange: Exchange) -> str:
        assert exchange.words == ""
        await exchange.call(entry())
        return exchange.words

    assert asyncio.run(served(handler, work)) == "orders are nearly used up: 240 of 300"


@pytest.mark.parametrize(("http", "code"), [(429, -1003), (418, -1003), (429, -1015)])
def test_status_says_in_words_until_when_the_exchange_wants_quiet(http: int, code: int) -> None:
    async def handler(request: web.Request) -> web.Response:
        return web.json_response({"code": code, "msg": "slow down"}, status=http, headers=RETRY)

    async def work(exchange: Exchange) -> str:
        await exchange.fetch("GET", "/fapi/v1/time")
        return exchange.words

    words = asyncio.run(served(handler, work))
    assert words == f"the exchange wants quiet for 7 s more: {http} {code} slow down"
    desk = Desk()
    line = journal.status_ops(desk.state, {"exchange": words}, desk.now)[0][2]["line"]
    assert line.startswith(f"trading ({words}), positions 0/3")


@pytest.mark.parametrize("weight", [1_920, 1_921, 2_400])
@pytest.mark.parametrize("priority", [PROTECT, TARGET, CANCEL, RECONCILE])
def test_no_weight_stops_what_is_no_entry(weight: int, priority: int) -> None:
    async def work() -> list[str]:
        slow = Slow()
        slow.used_weight = weight
        dispatcher = Dispatcher(slow, lambda reply: None, lambda: 0.0)  # type: ignore[arg-type]
        dispatcher.put(ask("other", priority))
        await asyncio.sleep(0)
        await dispatcher.close()
        return slow.seen

    assert asyncio.run(work()) == ["other"]


@pytest.mark.parametrize(("at_ms", "sent"), [(4_999.0, False), (5_000.0, True), (5_001.0, True)])
@pytest.mark.parametrize("priority", [RECONCILE, HISTORY])
def test_the_rest_goes_on_at_the_time_that_the_exchange_named(
    at_ms: float, sent: bool, priority: int
) -> None:
    async def work() -> list[str]:
        slow, now_ms = Slow(), [0.0]
        slow.throttled_until_ms = 5_000.0
        dispatcher = Dispatcher(slow, lambda reply: None, lambda: now_ms[0])  # type: ignore[arg-type]
        dispatcher.put(ask("later", priority))
        await asyncio.sleep(0)
        assert not slow.seen
        now_ms[0] = at_ms
        dispatcher.pump()
        await asyncio.sleep(0)
        await dispatcher.close()
        return slow.seen

    assert bool(asyncio.run(work())) is sent


@pytest.mark.parametrize(("at_ms", "sent"), [(4_999.0, False), (5_000.0, True)])
def test_entries_go_on_at_the_time_that_the_exchange_named(at_ms: float, sent: bool) -> None:
    async def work() -> tuple[list[str], list[Replied]]:
        slow = Slow()
        replies: list[Replied] = []
        slow.throttled_until_ms = 5_000.0
        dispatcher = Dispatcher(slow, replies.append, lambda: at_ms)  # type: ignore[arg-type]
        dispatcher.put(entry("entry"))
        await asyncio.sleep(0)
        await dispatcher.close()
        return slow.seen, replies

    seen, replies = asyncio.run(work())
    assert bool(seen) is sent and bool(replies) is not sent


@pytest.mark.parametrize("queued", [QUEUED_MAX - 1, QUEUED_MAX, QUEUED_MAX + 1])
def test_a_full_heap_refuses_all_but_what_reduces_risk(queued: int) -> None:
    async def work() -> tuple[int, int]:
        slow = Slow()
        replies: list[Replied] = []
        dispatcher = Dispatcher(slow, replies.append, lambda: 0.0)  # type: ignore[arg-type]
        for number in range(CONCURRENT_MAX):
            dispatcher.put(ask(f"busy{number}", PROTECT))
        for number in range(queued):
            dispatcher.put(ask(f"h{number}", HISTORY))
        refused = len(replies)
        for priority in (PROTECT, TARGET, CANCEL):
            dispatcher.put(ask(f"urgent{priority}", priority))
        urgent = len(replies) - refused
        await dispatcher.close()
        return refused, urgent

    assert asyncio.run(work()) == (max(0, queued - QUEUED_MAX), 0)


def test_a_throttled_address_refuses_entries_and_lets_exits_through() -> None:
    async def work() -> tuple[list[str], list[Replied]]:
        slow = Slow()
        replies: list[Replied] = []
        slow.answer = Throttled(5_000.0, "429")
        slow.gate.set()
        dispatcher = Dispatcher(slow, replies.append, lambda: 0.0)  # type: ignore[arg-type]
        dispatcher.put(ask("first", HISTORY))
        for _ in range(5):
            await asyncio.sleep(0)
        dispatcher.put(entry("entry"))
        dispatcher.put(ask("later", HISTORY))
        dispatcher.put(ask("stop", PROTECT))
        for _ in range(5):
            await asyncio.sleep(0)
        await dispatcher.close()
        return slow.seen, replies

    seen, replies = asyncio.run(work())
    assert seen == ["first", "stop"]
    assert [r.request.about for r in replies] == ["first", "entry", "stop"]
    assert isinstance(replies[1].result, Throttled)


@pytest.mark.parametrize(("weight", "sent"), [(1_919, True), (1_920, True), (1_921, False)])
def test_entries_end_at_four_fifths_of_the_weight(weight: int, sent: bool) -> None:
    async def work() -> list[str]:
        slow = Slow()
        slow.used_weight = weight
        dispatcher = Dispatcher(slow, lambda reply: None, lambda: 0.0)  # type: ignore[arg-type]
        dispatcher.put(entry("entry"))
        await asyncio.sleep(0)
        await dispatcher.close()
        return slow.seen

    assert bool(asyncio.run(work())) is sent


@pytest.mark.parametrize(("after_ms", "sent"), [(999.0, True), (1_000.0, True), (1_001.0, False)])
def test_an_entry_that_waited_too_long_is_refused(after_ms: float, sent: bool) -> None:
    async def work() -> tuple[list[str], list[Replied]]:
        slow, now_ms = Slow(), [0.0]
        replies: list[Replied] = []
        dispatcher = Dispatcher(slow, replies.append, lambda: now_ms[0])  # type: ignore[arg-type]
        for number in range(CONCURRENT_MAX):
            dispatcher.put(ask(f"h{number}", CANCEL))
        dispatcher.put(entry("entry"))
        now_ms[0] = after_ms
        slow.gate.set()
        for _ in range(20):
            await asyncio.sleep(0)
        await dispatcher.close()
        return slow.seen, replies

    seen, replies = asyncio.run(work())
    assert ("entry" in seen) is sent
    result = next(r.result for r in replies if r.request.about == "entry")
    assert isinstance(result, Done if sent else Refused)


def test_a_late_entry_is_refused_while_the_address_is_throttled() -> None:
    async def work() -> list[Replied]:
        slow, now_ms = Slow(), [0.0]
        replies: list[Replied] = []
        dispatcher = Dispatcher(slow, replies.append, lambda: now_ms[0])  # type: ignore[arg-type]
        for number in range(CONCURRENT_MAX):
            dispatcher.put(ask(f"h{number}", CANCEL))
        dispatcher.put(entry("entry"))
        slow.throttled_until_ms, now_ms[0] = 60_000.0, 1_001.0
        dispatcher.pump()
        await dispatcher.close()
        return replies

    (reply,) = asyncio.run(work())
    assert reply.request.about == "entry" and isinstance(reply.result, Refused)


@pytest.mark.parametrize(("after_ms", "asked"), [(999.0, 9), (1_000.0, 9), (1_001.0, 0)])
def test_what_was_asked_for_entries_is_not_asked_later(after_ms: float, asked: int) -> None:
    """An exchange that stood still is not met by a backlog of questions that are over."""

    async def work() -> tuple[list[str], list[Replied]]:
        slow, now_ms = Slow(), [0.0]
        replies: list[Replied] = []
        dispatcher = Dispatcher(slow, replies.append, lambda: now_ms[0])  # type: ignore[arg-type]
        for number in range(CONCURRENT_MAX):
            dispatcher.put(ask(f"c{number}", CANCEL))
        for number in range(9):
            dispatcher.put(ask(f"q{number}", ENTRY))
        dispatcher.put(ask("r", RECONCILE))
        now_ms[0] = after_ms
        slow.gate.set()
        for _ in range(40):
            await asyncio.sleep(0)
        await dispatcher.close()
        return slow.seen, replies

    seen, replies = asyncio.run(work())
    assert sum(about.startswith("q") for about in seen) == asked and "r" in seen
    assert len(replies) == CONCURRENT_MAX + 10


def test_a_raise_inside_a_request_is_answered_as_unknown() -> None:
    class Broken(Slow):
        async def call(self, request: Any) -> Result:
            raise KeyError("ours")

    async def work() -> tuple[list[Replied], int]:
        replies: list[Replied] = []
        dispatcher = Dispatcher(Broken(), replies.append, lambda: 0.0)  # type: ignore[arg-type]
        dispatcher.put(entry("entry"))
        for _ in range(5):
            await asyncio.sleep(0)
        return replies, dispatcher.busy

    replies, busy = asyncio.run(work())
    assert [r.result for r in replies] == [Unknown("our mistake KeyError")] and busy == 0


def test_one_throttled_answer_quiets_every_caller() -> None:
    async def handler(request: web.Request) -> web.Response:
        return web.json_response({"code": -1003, "msg": "-"}, status=429, headers=RETRY)

    async def work(exchange: Exchange) -> tuple[bool, float, bool]:
        before = exchange.throttled
        await exchange.fetch("GET", "/fapi/v1/time")
        return before, exchange.throttled_until_ms, exchange.throttled

    assert asyncio.run(served(handler, work)) == (False, 7_000.0, True)


@pytest.mark.parametrize(("fenced", "times"), [(False, 2), (True, 1)])
@pytest.mark.parametrize("code", [-1021, -5028])
def test_a_mistrusted_timestamp_measures_the_clock_and_asks_once_more(
    fenced: bool, times: int, code: int
) -> None:
    """It was surely not done; an entry is never sent again all the same."""
    seen: list[str] = []
    synced: list[int] = []

    async def handler(request: web.Request) -> web.Response:
        seen.append(request.path)
        return web.json_response({"code": code, "msg": "Timestamp"}, status=400)

    async def work(exchange: Exchange) -> Result:
        async def resync() -> None:
            synced.append(len(seen))

        exchange.resync = resync
        return await exchange.call(entry(fenced=fenced))

    result = asyncio.run(served(handler, work))
    assert isinstance(result, Refused) and result.code == code
    assert len(seen) == times and synced == [1]


def test_who_is_mistrusted_together_is_served_by_one_measurement() -> None:
    synced: list[int] = []

    async def handler(request: web.Request) -> web.Response:
        if synced:
            return web.json_response({"orderId": 1})
        return web.json_response({"code": -1021, "msg": "Timestamp"}, status=400)

    async def work(exchange: Exchange) -> list[Result]:
        async def resync() -> None:
            await asyncio.sleep(0.05)
            synced.append(1)

        exchange.resync = resync
        calls = [exchange.call(entry(str(number), fenced=False)) for number in range(5)]
        return list(await asyncio.gather(*calls))

    results = asyncio.run(served(handler, work))
    assert synced == [1] and all(isinstance(result, Done) for result in results)


# --- snapshots ---


class Truth(Slow):
    """Four questions a snapshot; each try is answered when told, the first `bad` ones fail."""

    def __init__(self, bad: int = 0) -> None:
        super().__init__()
        self.left_bad = bad * 4

    async def calm(self) -> None: ...

    async def fetch(self, method: str, path: str) -> Result:
        self.seen.append(path)
        await self.gate.wait()
        self.left_bad -= 1
        return Unknown("away") if self.left_bad >= 0 else Done({} if "account" in path else [])


async def taken(truth: Truth, first: list[Snap], later: list[Snap]) -> list[SnapshotTaken]:
    """Ask for `first`, for `later` while the first try is under way; then let answers come."""
    tasks: list[asyncio.Task[None]] = []
    made: list[SnapshotTaken] = []

    def spawn(work: Any) -> None:
        tasks.append(asyncio.create_task(work))

    snapshots = Snapshots(truth, 3, (lambda: 0.0, lambda: 0.0), made.append, spawn)  # type: ignore[arg-type]
    for snap in first:
        snapshots.ask(snap)
    await asyncio.sleep(0.01)
    for snap in later:
        snapshots.ask(snap)
    truth.gate.set()
    await asyncio.gather(*tasks)
    assert len(tasks) == 1
    return made


def test_who_asks_while_a_snapshot_is_under_way_shares_the_next_one() -> None:
    truth = Truth()
    later = [Snap("trouble")] * 20 + [Snap("snapshot", "c1"), Snap("snapshot", "c2"), Snap("again")]
    made = asyncio.run(taken(truth, [Snap("reconcile")], later))
    assert len(truth.seen) == 8
    told = [(taken.snapshot.id, taken.reason, taken.command_id) for taken in made]
    assert told == [
        ("3-1", "reconcile", ""),
        ("3-2", "trouble", "c1"),
        ("3-2", "snapshot", "c2"),
    ]


def test_a_failed_snapshot_is_taken_again_for_all_who_asked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("risk.snapshots.PAUSE_S", (0.001, 0.002))
    truth = Truth(bad=3)
    made = asyncio.run(taken(truth, [Snap("reconcile")], [Snap("start")]))
    assert len(truth.seen) == 16
    assert [(taken.snapshot.id, taken.reason) for taken in made] == [("3-4", "start")]
