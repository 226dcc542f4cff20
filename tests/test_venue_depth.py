"""Depth: the streamed book kept by the documented procedure is the venue's own, level by level."""

from __future__ import annotations

import asyncio
import json
from decimal import Decimal as D
from itertools import pairwise
from pathlib import Path
from typing import Any

import orjson
import pytest
from websockets.asyncio.client import connect

from tests.test_venue_server import Running
from venue import depth, exchange, ladder, looks, market
from venue.connection import parse_url
from venue.exchange import Exchange, Setup
from venue.sockets import Hub

KEYS = ["e", "E", "T", "s", "ps", "U", "u", "pu", "b", "a", "st"]
Ladder = list[list[str]]


class LocalBook:
    """Steps 3 to 6 of the documented procedure; `restart` says that step 2 is due again."""

    def __init__(self) -> None:
        self.bids: dict[str, str] = {}
        self.asks: dict[str, str] = {}
        self.u = 0
        self.synced = self.restart = False

    def snapshot(self, body: dict[str, Any]) -> None:
        self.bids = dict(body["bids"])
        self.asks = dict(body["asks"])
        self.u = body["lastUpdateId"]
        self.synced = self.restart = False

    def apply(self, event: dict[str, Any]) -> None:
        if not self.synced and event["u"] < self.u:
            return
        right = event["pu"] == self.u if self.synced else event["U"] <= self.u <= event["u"]
        if not right:
            self.restart = True
            return
        self.synced = True
        for side, changes in ((self.bids, event["b"]), (self.asks, event["a"])):
            for price, qty in changes:
                if D(qty) == 0:
                    side.pop(price, None)
                else:
                    side[price] = qty
        self.u = event["u"]

    def ladders(self) -> tuple[Ladder, Ladder]:
        bids = sorted(self.bids.items(), key=lambda row: -D(row[0]))
        asks = sorted(self.asks.items(), key=lambda row: D(row[0]))
        return [list(row) for row in bids], [list(row) for row in asks]


def world(symbols: int = 3, rate: float = 3000.0, seed: int = 7) -> Exchange:
    return exchange.create(Setup("w", symbols, rate, seed, 20.0, 0.15, ()))


def drive(made: Exchange, names: set[str], ms: float, steps: int) -> list[tuple[str, bytes]]:
    """What the looks say while the market is made in so many steps."""
    watch, index = looks.Watch(), {s.name.lower(): s.index for s in made.specs}
    start, out = made.made_until_ms, []
    for k in range(1, steps + 1):
        watch.hear(names, made, index)
        for edge_ms in watch.edges(made.made_until_ms, start + ms * k / steps):
            for _ in exchange.advance(made, edge_ms, 0):
                pass
            out += list(watch.looks(made))
    return out


def rest_ladder(made: Exchange, symbol: int, side: str, count: int) -> list[tuple[D, D]]:
    book = exchange.book_of(made, symbol)
    return list(ladder.levels(made.specs[symbol], book, side, count))


def test_the_integer_ladder_is_the_one_that_takers_meet() -> None:
    made = world(30)
    for minute in range(5):
        for s in made.specs:
            bids, asks = depth.ladder(made, s.index)
            for rows, side in ((bids, "SELL"), (asks, "BUY")):
                mine = [(s.price_of(int(p)), s.qty_of(int(q))) for p, q in rows]
                assert mine == rest_ladder(made, s.index, side, ladder.LEVELS), (minute, s.name)
        for _ in exchange.advance(made, made.made_until_ms + 60_000, 0):
            pass


def test_a_ladder_ends_above_zero() -> None:
    made = world(1)
    n, tick = made.market.n[0], made.specs[0].tick_points
    n[market.BID], n[market.ASK] = 3 * tick, 4 * tick
    bids, asks = depth.ladder(made, 0)
    assert bids[:, depth.PRICE].tolist() == [3 * tick, 2 * tick, tick] and len(asks) == 1000


@pytest.mark.parametrize("name", ["btcusdt@depth", "btcusdt@depth@100ms", "btcusdt@depth@500ms"])
def test_diffs_are_the_same_however_the_market_is_stepped(name: str) -> None:
    whole = drive(world(), {name}, 20_000, 20)
    assert whole == drive(world(), {name}, 20_000, 777)
    interval_ms = {"": 250, "100ms": 100, "500ms": 500}[name.split("depth")[1].strip("@")]
    events = [orjson.loads(payload) for _, payload in whole]
    assert len(events) > 0.9 * 20_000 / interval_ms
    assert all(list(e) == KEYS and e["E"] % interval_ms == 0 for e in events)
    assert all(a["u"] == b["pu"] == b["U"] - 1 for a, b in pairwise(events))


def test_diffs_make_the_ladder_of_every_look_out_of_the_one_before() -> None:
    made = world()
    watch, index = looks.Watch(), {s.name.lower(): s.index for s in made.specs}
    s, book = made.specs[1], LocalBook()
    watch.hear({"ethusdt@depth@100ms"}, made, index)
    sides = depth.ladder(made, 1)
    shown = [[[f"{s.price_of(int(p))}", f"{s.qty_of(int(q))}"] for p, q in side] for side in sides]
    u = int(made.market.n[1, market.UPDATE_ID])
    book.snapshot({"lastUpdateId": u, "bids": shown[0], "asks": shown[1]})
    book.synced = True
    for _ in range(300):
        for _ in exchange.advance(made, made.made_until_ms + 100, 0):
            pass
        for _, payload in watch.looks(made):
            book.apply(orjson.loads(payload))
        assert book.u == made.market.n[1, market.UPDATE_ID] and not book.restart
        for mine, side in zip(book.ladders(), ("SELL", "BUY"), strict=True):
            expected = rest_ladder(made, 1, side, ladder.LEVELS)
            assert [(D(p), D(q)) for p, q in mine] == expected


@pytest.mark.parametrize(
    ("stream", "interval_ms"),
    [
        ("depth", 250), ("depth@100ms", 100), ("depth@500ms", 500), ("depth@250ms", None),
        ("depth5", 250), ("depth10@100ms", 100), ("depth20@250ms", 250), ("depth20@500ms", 500),
        ("depth6", None), ("depth5@200ms", None), ("depth5@", None), ("depthx", None),
    ],
)  # fmt: skip
def test_only_the_exchange_s_names_are_depth_streams(stream: str, interval_ms: int | None) -> None:
    look = looks.parse(f"btcusdt@{stream}", {"btcusdt": 0})
    assert (look.interval_ms if look else None) == interval_ms
    assert looks.parse(f"BTCUSDT@{stream}", {"btcusdt": 0}) is None
    assert look is None or look.route == "public"


def test_a_partial_book_is_the_top_of_the_ladder_each_time() -> None:
    made = world()
    for name, payload in drive(made, {"btcusdt@depth5", "btcusdt@depth20@100ms"}, 1000, 7):
        event, top = orjson.loads(payload), 5 if name.endswith("5") else 20
        assert list(event) == KEYS and event["u"] > event["pu"] == event["U"] - 1
        assert len(event["b"]) == len(event["a"]) == top
        if event["u"] == made.market.n[0, market.UPDATE_ID]:
            assert [D(p) for p, _ in event["b"]] == [
                p for p, _ in rest_ladder(made, 0, "SELL", top)
            ]
    assert event["u"] == made.market.n[0, market.UPDATE_ID]


def test_nothing_is_computed_for_a_stream_that_nobody_hears() -> None:
    made, hub, watch = world(), Hub(world().specs, True), looks.Watch()
    watch.hear(hub.heard, made, hub.index)
    until_ms = made.made_until_ms + 1000
    assert watch.edges(made.made_until_ms, until_ms) == [until_ms]
    address = parse_url("/public/ws/btcusdt@depth@100ms", "")
    assert address is not None
    connection = hub.add(address, "", _Silent())
    watch.hear(hub.heard, made, hub.index)
    assert len(watch.edges(made.made_until_ms, until_ms)) == 10
    assert len(watch.edges(made.made_until_ms, until_ms + 1e7)) == looks.EDGES_MAX
    hub.remove(connection)
    watch.hear(hub.heard, made, hub.index)
    assert watch.edges(made.made_until_ms, until_ms) == [until_ms] and not list(watch.looks(made))


class _Silent:
    def write(self, data: bytes) -> None: ...

    def get_write_buffer_size(self) -> int:
        return 0

    def abort(self) -> None: ...

    def is_closing(self) -> bool:
        return False


def same_as_venue(book: LocalBook, body: dict[str, Any]) -> bool:
    """Compares every level with REST depth of the same id; False when the ids differ."""
    if body["lastUpdateId"] != book.u:
        return False
    assert book.ladders() == (body["bids"], body["asks"])
    assert len(body["bids"]) == len(body["asks"]) == 1000
    return True


def test_a_local_book_over_thousands_of_updates_of_a_fast_market_is_the_venue_s(
    tmp_path: Path,
) -> None:
    venue = Running(tmp_path, "--symbols", "3", "--rate", "1500", "--speed", "30", "--seed", "4")
    path = "/fapi/v1/depth?symbol=BTCUSDT&limit=1000"
    book, applied, compared = LocalBook(), 0, 0

    async def body() -> None:
        nonlocal applied, compared
        async with connect(venue.ws + "/public/ws/btcusdt@depth@100ms", compression=None,
                           max_size=None, max_queue=None) as socket:  # fmt: skip
            early = [json.loads(await socket.recv()) for _ in range(3)]
            book.snapshot(await asyncio.to_thread(venue.get, path))
            for event in early:
                book.apply(event)

            async def read() -> None:
                nonlocal applied
                async for text in socket:
                    event = orjson.loads(text)
                    assert list(event) == KEYS and event["s"] == "BTCUSDT"
                    book.apply(event)
                    applied += 1
                    assert not book.restart

            reader = asyncio.create_task(read())
            try:
                for goal in (500, 1500, 3000):
                    async with asyncio.timeout(60):
                        while applied < goal and not reader.done():
                            await asyncio.sleep(0.2)
                            # a pause waits for the reader: one too slow would be cut off
                            await asyncio.to_thread(venue.post, "/venue/v1/pause")
                            await asyncio.to_thread(venue.post, "/venue/v1/resume")
                    for _ in range(60):  # until a pause falls where no quote follows the last look
                        await asyncio.to_thread(venue.post, "/venue/v1/pause")
                        shown = await asyncio.to_thread(venue.get, path)
                        await asyncio.sleep(0.1)
                        assert not reader.done(), (reader, venue.get("/venue/v1/sent"))
                        same = same_as_venue(book, shown)
                        await asyncio.to_thread(venue.post, "/venue/v1/resume")
                        if same:
                            compared += 1
                            break
                        await asyncio.sleep(0.03)
            finally:
                reader.cancel()

    try:
        asyncio.run(body())
        assert book.synced and applied >= 3000
        assert compared == 3
    finally:
        assert venue.stop() == 0
