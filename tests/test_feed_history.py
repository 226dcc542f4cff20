"""History on a real REST: weight, bans, warm-up under pressure, corrections and their order."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from feed_desk import FAST, Desk, feeding, run, running, until
from scripted_exchange import T0_MS, Exchange
from test_feed_ends import answering

import ring as rings
from feed import binance, heal, history, lane
from feed import rest as rests
from feed.address import Address
from feed.corrections import Corrections
from feed.outbox import Outbox
from feed.rest import Rest, RestError
from records import BAR, CLOCK, CLOSED, CORRECTION, GAP, HEALED, TRADE

MINUTE_MS = T0_MS // 60_000 * 60_000
DUE_MS = MINUTE_MS + 60_000 + heal.SETTLE_MS


@pytest.mark.parametrize(
    ("header", "body", "market_ms", "speed", "seconds"),
    [
        ("7", b"", 0, 1.0, 7.0),
        ("", b"", 0, 1.0, binance.BAN_WAIT_S),
        ("soon", b"{}", 1, 1.0, binance.BAN_WAIT_S),
        ("", b"banned until 1795000100000.", 1_795_000_040_000, 1.0, 60.0),
        ("", b"banned until 1795000100000.", 1_795_000_040_000, 30.0, 2.0),
        ("90", b"banned until 1795000100000", 1_795_000_040_000, 1.0, 90.0),
        ("", b"banned until 1795000100000", 0, 1.0, binance.BAN_WAIT_S),
        ("", b"banned until 1795000000000", 1_795_000_040_000, 1.0, binance.BAN_WAIT_S),
        ("999999999", b"", 0, 1.0, binance.BAN_WAIT_S_MAX),
    ],
)
def test_a_refusal_names_its_time_by_header_or_text(
    header: str, body: bytes, market_ms: int, speed: float, seconds: float
) -> None:
    assert binance.wait_s(header, body, market_ms, speed) == seconds


@pytest.mark.parametrize(("limit", "weight"), [(1, 1), (100, 1), (101, 2), (501, 5), (1001, 10)])
def test_candles_weigh_by_the_rows_asked_for(limit: int, weight: int) -> None:
    assert binance.klines_weight(limit) == weight


class Rig:
    """A lane of one LIVE symbol, its outbox and its corrections."""

    def __init__(self, folder: Path, rest: Rest, slots: int = 1 << 10) -> None:
        self.ring = rings.create(folder / "ring", slots, 4, "test")
        self.lane = lane.make_lane(self.ring, 8)
        self.names = {0: "BTCUSDT"}
        lane.set_symbol(self.lane, 0, "BTCUSDT", lane.LIVE, 5)
        self.outbox = Outbox(self.lane)
        self.corrections = Corrections(self.lane, rest, self.outbox, self.names)

    def published(self) -> list[tuple[int, int, int]]:
        """(kind, timeframe, flags) of everything in the ring, volumes left out."""
        head = int(self.ring.words[rings.HEAD])
        found = self.ring.slots[:head]
        wanted = found[np.isin(found["kind"], (BAR, HEALED, GAP, CLOCK))]
        return [(int(r["kind"]), int(r["aux"]), int(r["flags"])) for r in wanted]

    def set(self, column: int, value: int) -> None:
        self.lane.symbols[0, column] = value


@contextlib.asynccontextmanager
async def rigged(folder: Path, exchange: Exchange, lanes: int = 1) -> AsyncIterator[Any]:
    exchange.paused = True
    for _ in range(5):
        exchange.tick()
    stats = np.zeros(rings.COUNTERS_MAX, np.int64)
    async with exchange, Rest(exchange.url("http"), stats, Address(lanes=lanes)) as rest:
        rig = Rig(folder, rest)
        yield rig, rest
        await rig.corrections.close()
        del rig.lane, rig.outbox
        rig.ring.close()


LIMIT = {"limit": "1000"}
FIXED = CLOSED | CORRECTION


def test_a_correction_waits_until_its_symbol_is_live(tmp_path: Path) -> None:
    async def work() -> None:
        exchange = Exchange("BTCUSDT")
        async with rigged(tmp_path, exchange) as (rig, _):
            rig.set(lane.STATUS, lane.HELD)
            rig.corrections.plan(0, T0_MS, T0_MS)
            rig.corrections.tick(DUE_MS - 1)
            assert not exchange.requests and rig.lane.symbols[0, lane.LOSSY] == 1
            rig.corrections.tick(DUE_MS)
            await until(lambda: len(exchange.requests) == 1)
            await asyncio.sleep(0.1)
            assert rig.published() == []  # trades of that minute may still come
            rig.set(lane.STATUS, lane.LIVE)
            await until(lambda: len(rig.published()) == 2)
            assert rig.published() == [(BAR, 1, FIXED), (HEALED, 0, 0)]
            assert rig.lane.symbols[0, lane.LOSSY] == 0

    run(work)


def test_every_timeframe_is_corrected_when_it_is_over_the_finest_first(tmp_path: Path) -> None:
    async def work() -> None:
        exchange = Exchange("BTCUSDT")
        async with rigged(tmp_path, exchange) as (rig, _):
            rig.corrections.plan(0, T0_MS, T0_MS)
            rig.corrections.tick(MINUTE_MS + 2 * 86_400_000)
            await until(lambda: len(rig.published()) == 6)
            kinds = [(BAR, t, FIXED) for t in (1, 5, 15, 60, 1440)]
            assert rig.published() == [*kinds, (HEALED, 0, 0)]
            weights = [path.split("limit=")[1] for path in exchange.requests]
            assert weights == ["1"] * 5

    run(work)


def test_a_symbol_is_whole_when_every_bar_that_is_over_is_and_says_it_once(tmp_path: Path) -> None:
    async def work() -> None:
        exchange = Exchange("BTCUSDT")
        async with rigged(tmp_path, exchange) as (rig, _):

            async def published_by(market_ms: int, count: int) -> list[tuple[int, int, int]]:
                def looked() -> bool:
                    rig.corrections.tick(market_ms)
                    return len(rig.published()) == count

                await until(looked)
                await asyncio.sleep(0.1)
                return rig.published()

            rig.corrections.plan(0, T0_MS, T0_MS)
            ended = {t: heal.floor_ms(T0_MS, t) + t * 60_000 for t in (15, 1440)}
            told = [(BAR, 1, FIXED), (BAR, 5, FIXED)]
            assert await published_by(ended[15], 2) == told  # 15m is over, its candle not final
            told += [(BAR, 15, FIXED), (HEALED, 0, 0)]
            assert await published_by(ended[15] + heal.SETTLE_MS, 4) == told
            told += [(BAR, 60, FIXED), (BAR, 1440, FIXED)]
            assert await published_by(ended[1440] + heal.SETTLE_MS, 6) == told

    run(work)


def test_a_correction_under_way_dies_with_its_row(tmp_path: Path) -> None:
    async def work() -> None:
        exchange = Exchange("BTCUSDT")
        async with rigged(tmp_path, exchange) as (rig, _):
            rig.corrections.plan(0, T0_MS, T0_MS)
            rig.corrections.tick(DUE_MS)
            await asyncio.sleep(0)
            rig.corrections.forget(0)
            rig.names[0] = "ETHUSDT"
            await asyncio.sleep(0.2)
            assert rig.published() == []

    run(work)


def test_a_refused_correction_is_asked_for_again_and_not_at_once(tmp_path: Path) -> None:
    async def work() -> None:
        exchange = Exchange("BTCUSDT")
        exchange.failing = [("klines", b"HTTP/1.1 400 X\r\n\r\n{}")]
        async with rigged(tmp_path, exchange) as (rig, _):
            rig.corrections.plan(0, T0_MS, T0_MS)
            rig.corrections.tick(DUE_MS)
            await until(lambda: len(exchange.requests) == 1)
            for _ in range(20):
                rig.corrections.tick(DUE_MS)
                await asyncio.sleep(0.01)
            assert len(exchange.requests) == 1
            await until(lambda: len(rig.published()) == 2)

    run(work)


def test_what_is_said_is_published_in_its_order_when_room_comes(tmp_path: Path) -> None:
    made = rings.create(tmp_path / "ring", 16, 4, "test")
    ours = lane.make_lane(made, 8)
    box = Outbox(ours)
    full = heal.gap(1, 1, 0, 0, 0, 1).repeat(8)
    assert lane.emit(ours, full, 0) == 8  # half of the ring: no room for history
    box.say(0, heal.gap(0, 1, 0, 0, 0, 1))
    box.say(2, heal.gap(2, 2, 0, 0, 0, 1))
    box.say(0, heal.marker(HEALED, 0, 1))
    box.forget(2)

    async def work() -> None:
        later = asyncio.ensure_future(box.publish(heal.gap(3, 3, 0, 0, 0, 1)))
        await asyncio.sleep(0.05)
        assert int(made.words[rings.HEAD]) == 8
        made.words[rings.TAIL] = 8
        await later

    run(work)
    found = made.slots[8 : int(made.words[rings.HEAD])]
    assert [(int(r["kind"]), int(r["symbol"])) for r in found] == [(GAP, 0), (HEALED, 0), (GAP, 3)]
    made.close()


def test_a_symbol_that_overflows_in_its_warm_up_has_lost_nothing(tmp_path: Path) -> None:
    made = rings.create(tmp_path / "ring", 1024, 4, "test")
    ours = lane.make_lane(made, 4)
    lane.set_symbol(ours, 0, "BTCUSDT", lane.HELD, 0)
    for number in range(1000, 1004):
        assert lane.hold(ours, 0, TRADE, 1, 1, number, 1.0, 1.0, 0)
    lane.overflow(ours, 0, 1004, 1)
    counts = made.counters()["feed"]
    assert counts["lost_trades"] == 0 and counts["dropped_trades"] == 5
    assert ours.symbols[0, lane.STATUS] == lane.HELD and ours.symbols[0, lane.COUNT] == 0
    assert lane.hold(ours, 0, TRADE, 1, 1, 1005, 1.0, 1.0, 0)
    del ours
    made.close()


# --- weight ---------------------------------------------------------------------------------------


def test_all_who_wait_for_weight_look_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rests, "LOOK_S", 0.1)

    async def work() -> None:
        exchange = Exchange("BTCUSDT")
        exchange.used_weight = 1_190
        async with rigged(tmp_path, exchange) as (_, rest):
            await rest.get(binance.time_path())
            assert rest.left() == 10
            path = binance.trades_path("BTCUSDT")
            fetches = [asyncio.ensure_future(rest.fetch(path, 20)) for _ in range(20)]
            await until(lambda: len(exchange.requests) >= 4)
            assert all("time" in path for path in exchange.requests)
            exchange.used_weight = 0
            await asyncio.gather(*fetches)
            looks = sum("time" in path for path in exchange.requests)
            assert looks < 20  # one for all, not one for each

    run(work)


@pytest.mark.parametrize("lanes", [1, 3])
def test_requests_under_way_count_before_their_answer_in_every_lane(
    tmp_path: Path, lanes: int
) -> None:
    async def work() -> None:
        exchange = Exchange("BTCUSDT")
        async with rigged(tmp_path, exchange, lanes) as (_, rest):
            left = rest.left()
            fetch = asyncio.ensure_future(rest.fetch(binance.trades_path("BTCUSDT"), 20))
            await asyncio.sleep(0)
            assert rest.left() == left - lanes * 20
            await fetch
            assert rest.left() == left - exchange.used_weight

    run(work)


@pytest.mark.parametrize(
    ("answer", "seconds", "dials"),
    [
        (b"HTTP/1.1 429 X\r\nRetry-After: 9\r\n\r\n{}", 9, False),
        (b"HTTP/1.1 418 X\r\n\r\nbanned until 1795000100000", 80, True),
    ],
)
def test_a_banned_address_asks_nothing_and_history_has_no_weight(
    tmp_path: Path, answer: bytes, seconds: int, dials: bool
) -> None:
    async def work() -> None:
        loop = asyncio.get_running_loop()
        exchange = Exchange("BTCUSDT")
        exchange.failing = [("time", answer)]
        async with rigged(tmp_path, exchange) as (_, rest):
            rest._address.market_ms = T0_MS
            asking = asyncio.ensure_future(rest.get(binance.time_path()))
            await until(lambda: rest.left() == 0)
            waits_s = rest._address.rest_wait_s(loop.time())
            assert seconds - 5 < waits_s <= seconds
            assert (rest._address.dial_wait_s(loop.time()) > 0) == dials
            await asyncio.sleep(0.5)
            assert len(exchange.requests) == 1
            asking.cancel()

    run(work)


def test_a_wrong_request_is_not_repeated(tmp_path: Path) -> None:
    async def work() -> None:
        exchange = Exchange("BTCUSDT")
        exchange.failing = [("time", b"HTTP/1.1 400 X\r\n\r\n{}")] * 2
        async with rigged(tmp_path, exchange) as (_, rest):
            with pytest.raises(RestError, match="status=400"):
                await rest.get(binance.time_path())
            assert len(exchange.requests) == 1

    run(work)


# --- warm-up --------------------------------------------------------------------------------------


def minute_sums(found: Any, row: int) -> dict[int, float]:
    """Volume of each minute of a row, as a reader of the ring would have it."""
    sums: dict[int, float] = {}
    mine = found[found["symbol"] == row]
    for at, record in enumerate(mine):
        minute = int(record["exch_ns"]) // 60_000_000_000
        if record["kind"] == TRADE:
            sums[minute] = sums.get(minute, 0.0) + float(record["b"])
        elif record["kind"] == BAR and record["aux"] == 1:
            sums[minute] = float(mine[at + 1]["a"])
    return sums


def test_without_weight_a_warm_up_begins_with_the_live_trades_and_is_corrected(
    tmp_path: Path,
) -> None:
    async def work() -> None:
        exchange = Exchange("BTCUSDT")
        exchange.used_weight, exchange.step_ms = 1_070, 400  # candles fit in, trades do not
        for _ in range(20):
            exchange.tick()
        async with exchange, running(tmp_path, exchange, FAST) as desk:
            assert not any("aggTrades" in path for path in exchange.requests)
            assert desk.count("corrections") >= 1 and desk.count("lost_trades") == 0
            assert desk.continuous(0)
            theirs = exchange.candles("BTCUSDT", 1, LIMIT)
            ours = minute_sums(desk.read(), 0)
            first = T0_MS // 60_000
            assert ours[first] == float(theirs[0][5])

    run(work)


def test_a_rest_that_no_longer_has_the_minutes_first_trades_is_not_believed(
    tmp_path: Path,
) -> None:
    async def work() -> None:
        exchange = Exchange("BTCUSDT")
        exchange.step_ms, exchange.kept = 400, 5
        for _ in range(40):
            exchange.tick()
        async with exchange, running(tmp_path, exchange, FAST) as desk:
            assert any("aggTrades" in path for path in exchange.requests)
            assert desk.count("corrections") >= 1 and desk.count("lost_trades") == 0
            theirs = exchange.candles("BTCUSDT", 1, LIMIT)
            ours = minute_sums(desk.read(), 0)
            assert ours[T0_MS // 60_000] == float(theirs[0][5])

    run(work)


def test_a_late_warm_up_takes_no_page_of_later_trades_for_its_minute(tmp_path: Path) -> None:
    """Each minute has 20 equal trades, so that any 20 of them sum to its candle."""

    async def work() -> None:
        exchange = Exchange("BTCUSDT")
        exchange.step_ms, exchange.kept = 3_000, 40
        exchange.failing = [("klines", b"HTTP/1.1 400 X\r\n\r\n{}")]  # until minutes have passed
        async with exchange, running(tmp_path, exchange, FAST) as desk:
            exchange.paused = True
            await until(lambda: desk.ids(0)[-1] == exchange.last_id["BTCUSDT"])
            assert desk.count("refused_duplicate") == 0 and desk.continuous(0)
            ours = minute_sums(desk.read(), 0)
            theirs = exchange.candles("BTCUSDT", 1, {"limit": "100000"})
            mine = {minute: ours.get(minute) for minute in (row[0] // 60_000 for row in theirs)}
            assert mine == {row[0] // 60_000: float(row[5]) for row in theirs}

    run(work)


class Interrupted(Exchange):
    """`then` happens just after the first answer to a path that holds `word`, or just before."""

    word, before = "", False
    then: Callable[[], None]

    def _rest(self, path: str) -> Any:
        due = bool(self.word) and self.word in path
        if due:
            self.word = ""
        if due and self.before:
            self.then()
        answer = super()._rest(path)
        if due and not self.before:
            self.then()
        return answer


async def quiet_warm_up(
    folder: Path, exchange: Interrupted, word: str, then: Callable[[], None]
) -> None:
    """Warm a symbol up that does not trade but for what `then` does; its bars must be right."""
    exchange.quiet.add("BTCUSDT")
    exchange.step_ms = 200
    exchange.word, exchange.then = word, then
    async with exchange, running(folder, exchange, FAST) as desk:
        exchange.quiet.clear()
        newest = exchange.last_id["BTCUSDT"]
        await until(lambda: len(desk.ids(0)) > 20)
        exchange.paused = True
        await until(lambda: desk.ids(0)[-1] == exchange.last_id["BTCUSDT"])
        assert not exchange.word and newest > exchange.first_id["BTCUSDT"]
        ours = minute_sums(desk.read(), 0)
        for row in exchange.candles("BTCUSDT", 1, LIMIT):
            assert ours[row[0] // 60_000] == float(row[5])


def test_what_trades_between_two_looks_of_a_warm_up_is_not_lost_unseen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(history, "FIRST_TRADE_S", 0.1)

    async def work() -> None:
        exchange = Interrupted("BTCUSDT")

        def then() -> None:
            for client in exchange.open_clients("market"):
                client.delay_s = 0.3  # REST is ahead of the socket
            for _ in range(3):
                exchange.trade("BTCUSDT")

        await quiet_warm_up(tmp_path, exchange, "startTime", then)

    run(work)


def test_a_trade_that_the_bars_of_a_warm_up_hold_already_is_not_counted_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(history, "FIRST_TRADE_S", 0.1)

    async def work() -> None:
        exchange = Interrupted("BTCUSDT")

        def then() -> None:
            now_ms, exchange.now_ms = exchange.now_ms, exchange.now_ms // 60_000 * 60_000 - 1
            exchange.trade("BTCUSDT")  # one of the minute before that arrives late
            exchange.now_ms = now_ms

        exchange.before = True
        await quiet_warm_up(tmp_path, exchange, "klines", then)

    run(work)


def test_a_rest_that_is_behind_the_socket_hides_no_trade_of_the_first_minute(
    tmp_path: Path,
) -> None:
    async def work() -> None:
        exchange = Exchange("BTCUSDT")
        exchange.rest_lag_ms = 600  # longer than the market has lived
        for _ in range(20):
            exchange.tick()
        async with exchange, running(tmp_path, exchange, FAST) as desk:
            assert desk.ids(0)[0] == exchange.first_id["BTCUSDT"] + 1
            assert desk.continuous(0) and desk.count("corrections") == 0

    run(work)


def test_a_warm_up_that_fails_behind_its_bars_says_them_only_once(tmp_path: Path) -> None:
    async def work() -> None:
        exchange = Exchange("BTCUSDT")
        exchange.step_ms = 5
        exchange.now_ms = T0_MS - 10 * exchange.step_ms
        for _ in range(1500):
            exchange.tick()
        first = next(t["a"] for t in exchange.trades["BTCUSDT"] if t["T"] >= T0_MS)
        beyond = f"fromId={first + binance.AGG_TRADES_MAX}"  # of the first page
        exchange.failing = [(beyond, b"HTTP/1.1 400 X\r\n\r\n{}")]
        async with exchange, running(tmp_path, exchange, replace(FAST)) as desk:
            found = desk.read()
            assert not exchange.failing and desk.continuous(0)
            bars = found[found["kind"] == BAR]
            told = list(zip(bars["aux"].tolist(), bars["exch_ns"].tolist(), strict=True))
            assert len(told) == len(set(told))
            assert desk.ids(0)[0] == first and desk.count("corrections") == 0

    run(work)


def test_time_goes_on_while_one_link_is_down_and_never_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(binance, "SYMBOLS_PER_CONNECTION", 1)

    async def work() -> None:
        refusing = answering(b"HTTP/1.1 503 X\r\n\r\n")
        async with Exchange("BTCUSDT", "ETHUSDT") as exchange, running(tmp_path, exchange) as desk:
            exchange.lives = [("market", refusing)] * 1000
            desk.client().reset()
            await until(lambda: len(exchange.open_clients("market")) == 1)
            down_ms = exchange.now_ms
            newest = len(desk.clocks())
            await until(lambda: len(desk.clocks()) > newest + 2)
            assert desk.clocks()[-1] // 1_000_000 > down_ms and not desk.whole()
            exchange.lives.clear()
            await until(desk.whole)
            newest = len(desk.clocks())
            await until(lambda: len(desk.clocks()) > newest + 2)
            assert np.all(np.diff(desk.clocks()) >= 0)

    run(work)


def test_a_restarted_feed_corrects_what_the_dead_one_had_planned(tmp_path: Path) -> None:
    slots = 256  # the ring forgets within a second

    async def work() -> None:
        exchange = Exchange("BTCUSDT")
        exchange.step_ms = 150
        desk = Desk(tmp_path, exchange, slots=slots)
        desk.want(0, "BTCUSDT")
        async with exchange:
            async with feeding(desk):
                desk.feed._history._heal_trades_max = 0
                await until(lambda: desk.whole() and 3_000 < exchange.now_ms % 60_000 < 30_000)
                minute = exchange.now_ms // 60_000
                desk.client().reset()
                await until(lambda: desk.count("lost_trades") > 0)
                lost = len(desk.read())
                await until(lambda: len(desk.read()) > lost + slots)
                assert exchange.now_ms // 60_000 == minute and desk.count("corrections") == 0
            async with feeding(desk):
                await until(lambda: desk.count("corrections") > 0)
                theirs = {row[0] // 60_000: row for row in exchange.candles("BTCUSDT", 1, LIMIT)}
                ours = minute_sums(desk.read(), 0)
                assert ours[minute] == float(theirs[minute][5])
        desk.ring.close()

    run(work)
