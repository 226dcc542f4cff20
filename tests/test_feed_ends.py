"""Every way in which a connection can end, with a whole feed on real sockets.

After each: told once with its reason, asked for anew, healed without a trade lost, counted.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path

import pytest
from certificates import server_context
from fault_proxy import FIN, RST, FaultProxy
from feed_desk import FAST, Desk, run, running, until
from scripted_exchange import SWITCHING, Client, Exchange, Life, frame

from clock import boot_ns
from feed import connection
from feed.address import SPAN_S, Address

End = Callable[[Client], Awaitable[None]]


def closing(code: int, reason: bytes = b"") -> End:
    """The server's close frame, then its end of the TCP connection."""

    async def end(client: Client) -> None:
        client.writer.write(frame(code.to_bytes(2, "big") + reason, 8))
        client.writer.close()

    return end


def writing(data: bytes, close: bool = True) -> End:
    """Some bytes, then FIN or nothing."""

    async def end(client: Client) -> None:
        client.open = False
        client.writer.write(data)
        if close:
            client.writer.close()

    return end


async def reset(client: Client) -> None:
    client.reset()


async def silence(client: Client) -> None:
    """Half-open: nothing is sent any more, pongs included, and nobody says so."""
    client.open = False
    client.obeys = False


HALF = frame(b'{"stream":"btcusdt@aggTrade","data":{"e":"aggTrade"')[:30]
HUGE = b"\x82\x7f" + (1 << 40).to_bytes(8, "big")
ENDS: dict[str, tuple[End, str]] = {
    "clean close": (closing(1000), "closed 1000"),
    "going away, as at 24 h": (closing(1001, b"24 hours"), "24 hours"),
    "announced end": (
        writing(frame(b'{"e":"serverShutdown","E":1795000020000}') + frame(b"\x03\xe9", 8)),
        "closed 1001",
    ),
    "internal error": (closing(1011), "closed 1011"),
    "RST": (reset, "Reset"),
    "FIN without a word": (writing(b""), "closed without a word"),
    "half a frame, then FIN": (writing(HALF), "inside a frame, 30 bytes"),
    "silence": (silence, "silent for"),
    "garbage": (writing(b"\xff" * 1000, close=False), "broke the protocol"),
    "a masked frame": (writing(b"\x81\x84abcd1234", close=False), "broke the protocol"),
    "a frame of a terabyte": (writing(HUGE, close=False), "frame too large"),
    "a text frame of a terabyte": (writing(b"\x81" + HUGE[1:], close=False), "frame too large"),
    "a fragment of nothing": (writing(b"\x80\x01x", close=False), "broke the protocol"),
    "an answer with an error": (
        writing(frame(b'{"error":{"code":2,"msg":"Invalid request"},"id":null}'), close=False),
        "server says",
    ),
    "too many requests": (closing(1008, b"Too many requests"), "Too many requests"),
}
STEADY = replace(FAST, steady_s=0.0)  # each end is the first one
REFUSALS = ("an answer with an error", "too many requests")


def downs(caplog: pytest.LogCaptureFixture, route: str = "market") -> list[dict[str, object]]:
    """What was logged about ended connections."""
    names = ("route", "reason", "lived_s", "failures", "successor", "wait_s")
    found = [
        dict(zip(names, record.args, strict=True))  # type: ignore[arg-type]
        for record in caplog.records
        if record.msg.startswith("link down")
    ]
    return [down for down in found if down["route"] == route]


async def goes_on(desk: Desk, connects: int) -> None:
    """There is a new connection, trades flow on it, and every one up to now is there."""
    await until(lambda: desk.count("connects") == connects)
    from_id = desk.exchange.last_id["BTCUSDT"]
    await until(lambda: desk.whole() and desk.ids(0)[-1] > from_id + 5)
    assert desk.continuous(0)


async def check_end(desk: Desk, name: str, told: int, caplog: pytest.LogCaptureFixture) -> None:
    end, reason = ENDS[name]
    connects, reconnects = desk.count("connects"), desk.count("reconnects")
    asked = list(desk.client().asked)
    await end(desk.client())
    await goes_on(desk, connects + 1)
    assert desk.client().asked == asked, name  # the same streams, whatever there was before
    assert desk.count("lost_trades") == 0 and desk.count("reconnects") == reconnects + 1, name
    assert desk.accounted() == desk.received(), name
    (down,) = downs(caplog)[told:]
    assert reason in str(down["reason"]), name
    wait_s = float(str(down["wait_s"]))
    assert (wait_s >= desk.pace.refused_s / 2) == (name in REFUSALS), name


def test_every_end_is_told_once_and_healed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def work() -> None:
        async with Exchange("BTCUSDT") as exchange, running(tmp_path, exchange, STEADY) as desk:
            for told, name in enumerate(ENDS):
                await check_end(desk, name, told, caplog)

    run(work)


def answering(data: bytes, hang: bool = False) -> Life:
    """A handshake that is answered so."""

    async def life(exchange: Exchange, client: Client) -> None:
        client.writer.write(data)
        if hang:
            await client.reader.read()

    return life


DIALS: dict[str, tuple[Life, str]] = {
    "forbidden": (answering(b"HTTP/1.1 403 Forbidden\r\n\r\n"), "403"),
    "not found": (answering(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"), "404"),
    "unavailable": (answering(b"HTTP/1.1 503 Service Unavailable\r\n\r\n"), "503"),
    "no WebSocket at all": (answering(b"SSH-2.0-OpenSSH_9.2\r\n\r\n"), "SSH"),
    "a wrong key": (answering(SWITCHING + b"Sec-WebSocket-Accept: AAAA\r\n\r\n"), "handshake"),
    "cut inside the answer": (answering(SWITCHING[:40]), "closed without a word"),
    "no answer": (answering(b"", hang=True), "TimeoutError"),
    "an answer without an end": (answering(b"HTTP/1.1 101 " + b"x" * 70_000), "too long"),
}


def test_a_handshake_that_fails_is_told_and_tried_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def work() -> None:
        async with Exchange("BTCUSDT") as exchange, running(tmp_path, exchange) as desk:
            exchange.lives = [("market", life) for life, _ in DIALS.values()]
            desk.client().reset()
            await goes_on(desk, connects=3)
            assert desk.count("lost_trades") == 0 and desk.count("reconnects") == 1
            _, *dials = downs(caplog)
            assert [down["failures"] for down in dials] == list(range(2, 2 + len(DIALS)))
            for down, (name, (_, reason)) in zip(dials, DIALS.items(), strict=True):
                assert reason in str(down["reason"]), name
                long = float(str(down["wait_s"])) > desk.pace.backoff_s_max
                assert long == (name in ("forbidden", "not found")), name

    run(work)


@pytest.mark.parametrize(
    ("answer", "low_s", "high_s"),
    [
        (b"HTTP/1.1 429 Too Many Requests\r\nRetry-After: 1\r\n\r\n", 0.0, 1.0),
        (b"HTTP/1.1 429 Too Many Requests\r\nRetry-After: 7\r\n\r\n", 5.0, 7.0),
        (b"HTTP/1.1 418 I'm a teapot\r\n\r\nbanned until 1795000100000.", 60.0, 80.0),
        (b"HTTP/1.1 418 I'm a teapot\r\n\r\n", 50.0, 60.0),
    ],
)
def test_a_refused_address_dials_no_more_before_the_time_named(
    tmp_path: Path, answer: bytes, low_s: float, high_s: float
) -> None:
    async def work() -> None:
        loop = asyncio.get_running_loop()
        async with Exchange("BTCUSDT") as exchange, running(tmp_path, exchange) as desk:
            exchange.lives = [("market", answering(answer))]
            desk.client().reset()
            await until(lambda: desk.address.dial_wait_s(loop.time()) > 0)
            assert low_s <= desk.address.dial_wait_s(loop.time()) <= high_s
            banned = answer.startswith(b"HTTP/1.1 418")
            assert (desk.address.rest_wait_s(loop.time()) > 0) == banned
            if high_s > 1:
                return
            await goes_on(desk, connects=3)

    run(work)


def test_a_refused_port_and_an_unknown_host_are_weather(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def work() -> None:
        async with Exchange("BTCUSDT") as exchange, running(tmp_path, exchange) as desk:
            (link,) = (link for link in desk.feed._links.values() if link.route == "market")
            right = link.url
            link.url = "ws://127.0.0.1:1/market/stream"
            desk.client().reset()
            await until(lambda: len(downs(caplog)) >= 3)
            link.url = "ws://no-such-host.invalid/market/stream"
            await until(lambda: "gaierror" in str(downs(caplog)[-1]["reason"]))
            link.url = right
            await goes_on(desk, connects=3)
            assert "Refused" in str(downs(caplog)[1]["reason"])
            waits = [float(str(down["wait_s"])) for down in downs(caplog)]
            assert max(waits) <= desk.pace.backoff_s_max

    run(work)


def test_a_server_that_only_pings_is_answered_and_given_up(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def pinging(exchange: Exchange, client: Client) -> None:
        client.upgrade()
        client.open = client.acks = False
        obeying = asyncio.ensure_future(client.obey())
        while not obeying.done():
            client.writer.write(frame(b"1795000000000", 9))
            await asyncio.sleep(0.02)

    async def work() -> None:
        async with Exchange("BTCUSDT") as exchange, running(tmp_path, exchange) as desk:
            exchange.lives = [("market", pinging)]
            desk.client().reset()
            await goes_on(desk, connects=4)
            assert "unanswered" in str(downs(caplog)[1]["reason"])
            pinged = exchange.clients[-2]
            assert len(pinged.pongs) > 1 and set(pinged.pongs) == {b"1795000000000"}

    run(work)


def test_a_quiet_connection_that_answers_pings_is_kept(tmp_path: Path) -> None:
    async def work() -> None:
        async with Exchange("BTCUSDT") as exchange, running(tmp_path, exchange) as desk:
            exchange.paused = True
            heard_ns = boot_ns()
            quiet_ns = int(3 * desk.pace.silent_s * 1e9)
            await until(lambda: boot_ns() > heard_ns + quiet_ns)
            assert desk.count("reconnects") == 0

    run(work)


def test_faults_between_feed_and_exchange_are_healed_over_tls(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    context, trusted = server_context(tmp_path)
    monkeypatch.setenv("SSL_CERT_FILE", str(trusted))
    connection.default_tls.cache_clear()

    async def work() -> None:
        exchange = Exchange("BTCUSDT", "ETHUSDT")
        async with exchange:
            with FaultProxy(exchange.port, context) as proxy:
                url = f"https://127.0.0.1:{proxy.port}"
                async with running(tmp_path, exchange, STEADY, url) as desk:
                    await every_fault(desk, proxy)
                    assert desk.count("lost_trades") == 0 and desk.continuous(1)

    run(work)
    connection.default_tls.cache_clear()


async def every_fault(desk: Desk, proxy: FaultProxy) -> None:
    """One after the other, each healed before the next."""

    async def after(fault: Callable[[], object], reconnects: int = 2) -> None:
        before, connects = desk.count("reconnects"), desk.count("connects")
        await asyncio.to_thread(fault)
        await until(lambda: desk.count("reconnects") == before + reconnects)
        await goes_on(desk, connects + reconnects)

    await after(lambda: proxy.cut(RST, 0))
    await after(lambda: proxy.cut(RST, 337))
    await after(lambda: proxy.cut(FIN, 61, "market"), reconnects=1)
    await after(lambda: proxy.cut(FIN, 1009))
    await after(proxy.swallow)
    proxy.cut_heads(10, 100)
    await after(proxy.cut)
    proxy.answer(None)
    await after(proxy.cut)

    def refuse() -> None:
        proxy.refuse(True)
        proxy.cut()
        time.sleep(0.1)
        proxy.refuse(False)

    await after(refuse)
    before = desk.count("reconnects")
    await asyncio.to_thread(proxy.stall, True)
    await until(lambda: desk.count("reconnects") > before)
    await asyncio.to_thread(proxy.stall, False)
    from_id = desk.exchange.last_id["BTCUSDT"]
    await until(lambda: desk.whole() and desk.ids(0)[-1] > from_id + 5)
    assert desk.continuous(0)


def test_dials_are_bounded_whatever_fails() -> None:
    address, dials_max = Address(), 80
    for at_s in range(dials_max):
        assert address.dial_wait_s(at_s) <= 0
        address.dialled(at_s)
    assert address.dial_wait_s(dials_max) == SPAN_S - dials_max
    assert address.dial_wait_s(SPAN_S - 0.5) > 0
    assert address.dial_wait_s(SPAN_S) <= 0


@pytest.mark.parametrize("lanes", [1, 2, 3, 4, 16])
def test_dials_of_all_lanes_stay_below_the_bound_of_their_address(lanes: int) -> None:
    address = Address(lanes=lanes)
    dials = 0
    while address.dial_wait_s(0.0) <= 0:
        address.dialled(0.0)
        dials += 1
    assert 2 * 5 <= dials <= 80  # each of a lane's two links may fail a few times
    assert lanes * dials <= 240
