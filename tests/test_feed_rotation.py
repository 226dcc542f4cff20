"""A connection is replaced without anybody noticing, or not at all; TLS is the same."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from certificates import server_context
from feed_desk import FAST, Desk, run, running, until
from scripted_exchange import Client, Exchange, serve
from test_feed_ends import answering, downs

import ring
from feed import binance, connection
from feed import session as sessions
from feed.link import Link
from records import DROP, GAP, SYMBOL, TRADE

# Limits that a machine which stands still for seconds does not reach.
STILL = replace(FAST, silent_s=8.0, connect_s_max=8.0, ack_s_max=8.0, overlap_s_max=8.0)
SOON = replace(STILL, replace_s=0.3)
LATER = replace(STILL, replace_s=10_000.0, ack_s_max=30.0)


def market_link(desk: Desk) -> Link:
    (link,) = (link for link in desk.feed._links.values() if link.route == "market")
    return link


async def come_to_rest(desk: Desk) -> None:
    """Stop the market: its last trade was published, after all that came before it."""
    desk.exchange.paused = True
    await until(lambda: desk.ids(0)[-1] == desk.exchange.last_id["BTCUSDT"])
    assert desk.continuous(0)


async def strike_a_balance(desk: Desk) -> None:
    """Everything that was written to any socket was received and accounted for."""
    await come_to_rest(desk)
    sent = 0

    def all_in() -> bool:
        nonlocal sent
        sent = sum(sum(client.sent.values()) for client in desk.exchange.clients)
        return desk.received() == sent

    await until(all_in)
    assert desk.accounted() == sent


@pytest.mark.parametrize("secure", [False, True])
def test_a_rotation_costs_nothing_and_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, secure: bool
) -> None:
    context, trusted = server_context(tmp_path)
    if secure:
        monkeypatch.setenv("SSL_CERT_FILE", str(trusted))
        connection.default_tls.cache_clear()

    async def work() -> None:
        names = ("BTCUSDT", "ETHUSDT", "BTCUSDT_261225")
        exchange = Exchange(*names, tls=context if secure else None, seed=5)
        exchange.split = True
        async with exchange, running(tmp_path, exchange, SOON) as desk:
            gaps = [desk.kinds(row, GAP) for row in range(3)]
            asked = len(exchange.requests)
            sockets: set[int] = set()
            while desk.count("rotations") < 5:
                sockets.add(sum(len(link._sessions()) for link in desk.feed._links.values()))
                await asyncio.sleep(0.005)
            assert max(sockets) == 3  # one link at a time
            assert [desk.kinds(row, GAP) for row in range(3)] == gaps
            assert len(exchange.requests) == asked  # no weight
            assert desk.count("reconnects") == 0 and desk.count("holes") == 0
            assert desk.count("refused_duplicate") + desk.count("refused_order") > 0
            for link in desk.feed._links.values():
                assert link.primary is not None
                age_s = link._replace_at_s - link.primary.opened_s
                assert 0.95 * SOON.replace_s <= age_s <= SOON.replace_s
            await strike_a_balance(desk)

    run(work)
    connection.default_tls.cache_clear()
    assert not downs(caplog)


@pytest.mark.parametrize("lag_s", [0.0, 0.5])
def test_the_lag_is_what_keeps_a_faster_successor_from_opening_holes(
    tmp_path: Path, lag_s: float
) -> None:
    async def slow(exchange: Exchange, client: Client) -> None:
        client.delay_s = 0.2
        await serve(exchange, client)

    async def work() -> None:
        exchange = Exchange("BTCUSDT")
        exchange.lives = [("market", slow)]
        async with exchange, running(tmp_path, exchange, replace(LATER, lag_s=lag_s)) as desk:
            market_link(desk).replace("test")
            await until(lambda: desk.count("rotations") == 1 and desk.whole())
            assert (desk.count("holes") > 0) == (lag_s == 0.0)
            await strike_a_balance(desk)

    run(work)


async def deaf(exchange: Exchange, client: Client) -> None:
    """Never acks."""
    client.acks = False
    await serve(exchange, client)


async def mute(exchange: Exchange, client: Client) -> None:
    """Acks and delivers nothing."""
    client.upgrade()
    client.open = False
    await client.obey()


async def brief(exchange: Exchange, client: Client) -> None:
    """Ends in the middle of the overlap."""
    client.upgrade()
    asyncio.get_running_loop().call_later(0.15, client.reset)
    await client.obey()


def test_a_successor_that_fails_costs_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    failing = [answering(b"HTTP/1.1 503 X\r\n\r\n"), deaf, mute, brief, answering(b"HT")]

    async def work() -> None:
        exchange = Exchange("BTCUSDT", "ETHUSDT")
        pace = replace(FAST, replace_s=0.5, overlap_s_max=0.3)
        async with exchange, running(tmp_path, exchange, pace) as desk:
            gaps, asked = desk.kinds(0, GAP), len(exchange.requests)
            exchange.lives = [("market", life) for life in failing]
            old = desk.client()
            await until(lambda: desk.client() is not old and not old.open)
            assert not exchange.lives and desk.count("reconnects") == 0
            assert desk.kinds(0, GAP) == gaps and len(exchange.requests) == asked
            await come_to_rest(desk)

    run(work)
    told = [record.getMessage() for record in caplog.records if "not replaced" in record.message]
    assert len(told) == len(failing)
    for text, part in zip(
        told, ("503", "not acked|unanswered", "not shown", "Reset|a word", "a word"), strict=True
    ):
        assert any(word in text for word in part.split("|")), text


@pytest.mark.parametrize("held", [True, False])
def test_a_connection_that_dies_beside_its_successor_hands_over_at_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, held: bool
) -> None:
    async def work() -> None:
        pace = replace(LATER, lag_s=30.0 if held else 0.1, overlap_s_min=30.0, overlap_s_max=60.0)
        async with Exchange("BTCUSDT") as exchange, running(tmp_path, exchange, pace) as desk:
            link = market_link(desk)
            old = desk.client()
            link.replace("test")
            await until(lambda: link.newcomer is not None and bool(desk.client().names))
            await until(lambda: link.newcomer is not None and link.newcomer.held == held)
            if not held:
                await until(lambda: link.newcomer is not None and link.newcomer.complete)
            old.reset()
            await until(lambda: desk.count("reconnects") == 1 and link.newcomer is None)
            exchange.tick()
            await until(desk.whole)
            assert desk.count("connects") == 3 and desk.count("lost_trades") == 0
            (down,) = downs(caplog)
            assert down["successor"] == "yes"
            await come_to_rest(desk)

    run(work)


def streams(*names: str) -> set[str]:
    return {f"{n.lower()}@{s}" for n in names for s in ("aggTrade", "markPrice@1s")}


async def swap(desk: Desk, row: int, name: str) -> None:
    """The node gives a row to another symbol."""
    desk.ring.dropped[row] = 0
    desk.want(row, "ETHUSDT", ring.DRAINING)
    await until(lambda: desk.ring.dropped[row] > 0)
    desk.want(row, name)
    await until(lambda: desk.kinds(row, SYMBOL) == 2)


def since_announced(desk: Desk, row: int) -> tuple[Any, Any]:
    """(everything of a row, its trades since its newest announcement)."""
    found = desk.read()
    mine = found[found["symbol"] == row]
    after = mine[np.flatnonzero(mine["kind"] == SYMBOL)[-1] :]
    return mine, after[after["kind"] == TRADE]


def check_row(desk: Desk, row: int, name: str) -> None:
    """Since its announcement a row has nothing but its own symbol's trades, and all of them."""
    mine, trades = since_announced(desk, row)
    assert np.any(mine["kind"] == DROP)
    assert len(trades) and set(trades["a"]) == {desk.exchange.price[name]}
    ids = trades["id"].tolist()
    assert ids == list(range(ids[0], ids[-1] + 1))


@pytest.mark.parametrize("when", ["up", "down", "rotating", "between acks"])
def test_a_row_given_to_another_symbol_gets_that_symbols_data_only(
    tmp_path: Path, when: str
) -> None:
    async def work() -> None:
        exchange = Exchange("BTCUSDT", "ETHUSDT", "SOLUSDT", "XRPUSDT")
        pace = replace(LATER, overlap_s_min=0.5) if when == "rotating" else LATER
        async with exchange, running(tmp_path, exchange, pace) as desk:
            desk.want(2, "", ring.FREE)
            desk.want(3, "", ring.FREE)
            link = market_link(desk)
            if when == "down":
                exchange.lives = [
                    (route, answering(b"HTTP/1.1 503 X\r\n\r\n"))
                    for route in ("market", "public") * 3
                ]
                for route in ("market", "public"):
                    desk.client(route).reset()
                await until(lambda: not link.up)
            elif when == "rotating":
                link.replace("test")
                await until(lambda: link.newcomer is not None)
            elif when == "between acks":
                desk.client().acks = False
                link.resubscribe((0, 1))
                await until(lambda: len(desk.client().waiting) == 2)
            await swap(desk, 1, "XRPUSDT")
            if when == "between acks":
                assert link.acked_ns(1) == 0  # the old name's ack is no ack of the new one
                desk.client().acks = True
                desk.client().ack()
            if when == "rotating":
                await until(lambda: desk.count("rotations") == 1)
            await until(desk.whole)
            await until(lambda: desk.client().names == streams("BTCUSDT", "XRPUSDT"))
            await until(lambda: len(since_announced(desk, 1)[1]) > 20)
            check_row(desk, 1, "XRPUSDT")
            assert desk.continuous(0)

    run(work)


def test_changes_that_come_while_requests_wait_melt_into_one() -> None:
    ask = sessions.next_request
    assert ask(["A", "B"], {}, set(), 100) == ("SUBSCRIBE", ("A", "B"))
    assert ask(["B"], {"A": 1}, set(), 100) == ("UNSUBSCRIBE", ("A",))
    assert ask(["B"], {"B": 2}, set(), 100) is None
    assert ask(["A"], {"A": 1}, {"A"}, 100) == ("UNSUBSCRIBE", ("A",))
    assert ask([], {}, set(), 100) is None
    names = [str(n) for n in range(201)]
    assert [len(ask(names, names[:n], set(), 100)[1]) for n in (0, 100, 200)] == [100, 100, 1]  # type: ignore[index]
    assert ask(names, names, set(), 100) is None


def test_requests_keep_the_allowed_pace_and_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(binance, "NAMES_PER_MESSAGE_MAX", 2)  # one symbol's, on /market

    async def work() -> None:
        loop = asyncio.get_running_loop()
        names = [f"S{n}USDT" for n in range(8)]
        async with Exchange(*names) as exchange:
            began_s = loop.time()
            async with running(tmp_path, exchange, LATER) as desk:
                took_s, asked = loop.time() - began_s, desk.client().asked
                assert took_s > 0.9 * (len(names) - 1) / binance.MESSAGES_PER_S
                assert [len(request["params"]) for request in asked] == [2] * len(names)
                order = [request["params"][0].partition("@")[0] for request in asked]
                assert order == [name.lower() for name in names]  # as the rows are

    run(work)
