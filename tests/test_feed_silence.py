"""A silent symbol x channel is believed on evidence only, and every answer to it is bounded."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from feed_desk import FAST, Desk, run, running, until
from scripted_exchange import Exchange

from feed import main as feed_main
from feed import silence
from feed.silence import LOOK, MARK, QUOTE, REPLACE, RESUBSCRIBE, TRADE, Silence
from records import GAP

S = 1_000_000_000
NOW = 1_000_000 * S


class Bench:
    """One symbol, acked long ago, whose channels were last heard at given times."""

    def __init__(self) -> None:
        self.silence = Silence()
        self.ages = np.full((8, 4), NOW, np.int64)
        self.acked = {0: NOW - 1000 * S}

    def judge(self, now_ns: int) -> list[str]:
        found = self.silence.judge(now_ns, self.ages, self.acked, self.acked)
        return [action.what for action in found]


@pytest.mark.parametrize("late_ns", [-1, 0, 1])
def test_a_mark_is_silent_only_past_its_bound(late_ns: int) -> None:
    bench = Bench()
    now_ns = NOW + int(silence.MARK_S * S) + late_ns
    bench.ages[0, [TRADE, QUOTE]] = now_ns
    assert bench.judge(now_ns) == ([RESUBSCRIBE] if late_ns > 0 else [])


@pytest.mark.parametrize("late_ns", [-1, 0, 1])
def test_a_quote_is_silent_only_when_trades_go_on_beyond_it(late_ns: int) -> None:
    bench = Bench()
    now_ns = NOW + 1000 * S
    bench.ages[0, MARK] = now_ns
    bench.ages[0, TRADE] = NOW + int(silence.QUOTE_S * S) + late_ns
    bench.silence.told(0, 1, now_ns)
    found = [w for w in bench.judge(now_ns) if w != LOOK]
    assert found == ([RESUBSCRIBE] if late_ns > 0 else [])


def test_a_fresh_ack_gives_a_channel_time() -> None:
    bench = Bench()
    bench.ages[:] = 0  # nothing was ever heard
    bench.acked = {0: NOW}
    assert bench.judge(NOW + int(silence.MARK_S * S)) == []
    assert bench.judge(NOW + int(silence.MARK_S * S) + 1) == [RESUBSCRIBE]


def answers_over(seconds: int, newest_ids: list[int]) -> tuple[list[tuple[int, str]], Bench]:
    """What is done in so many seconds about a silent symbol of which REST tells these ids."""
    bench, made = Bench(), []
    for second in range(seconds):
        now_ns = NOW + second * S
        bench.ages[0, [QUOTE, MARK]] = now_ns
        for what in bench.judge(now_ns):
            made.append((second, what))
            if what == LOOK:
                newest = newest_ids[min(sum(w == LOOK for _, w in made), len(newest_ids)) - 1]
                bench.silence.told(0, newest, now_ns)
    return made, bench


def test_a_symbol_that_does_not_trade_is_looked_at_ever_more_rarely_and_left_alone() -> None:
    made, _ = answers_over(6 * 3600, [7])
    assert {what for _, what in made} == {LOOK}
    seconds = [second for second, _ in made]
    assert len(made) < 16 and np.all(np.diff(seconds)[1:] >= np.diff(seconds)[:-1])
    assert max(np.diff(seconds)) <= silence.WAIT_S_MAX + 1


def test_a_symbol_that_trades_unheard_is_subscribed_again_then_its_connection_replaced() -> None:
    made, _ = answers_over(6 * 3600, list(range(1000)))
    acted = [what for _, what in made if what != LOOK]
    assert acted[:4] == [RESUBSCRIBE, REPLACE, RESUBSCRIBE, REPLACE] and len(acted) < 16
    first = [what for _, what in made][:3]
    assert first == [LOOK, LOOK, RESUBSCRIBE]  # two looks, or it is no evidence


def test_answers_to_a_channel_that_stays_silent_are_bounded() -> None:
    bench = Bench()
    made = []
    for second in range(6 * 3600):
        bench.ages[0, [QUOTE, TRADE]] = NOW + second * S
        made += [(second, what) for what in bench.judge(NOW + second * S)]
    assert len(made) < 16
    assert [what for _, what in made[:2]] == [RESUBSCRIBE, REPLACE]
    assert max(np.diff([second for second, _ in made])) >= silence.WAIT_S_MAX


def test_one_event_ends_a_case() -> None:
    bench = Bench()
    now_ns = NOW + 20 * S
    bench.ages[0, [TRADE, QUOTE]] = now_ns
    assert bench.judge(now_ns) == [RESUBSCRIBE]
    bench.ages[0, MARK] = now_ns + S
    assert bench.judge(now_ns + S) == []
    bench.ages[0, [TRADE, QUOTE]] = now_ns + 15 * S
    assert bench.judge(now_ns + 15 * S) == [RESUBSCRIBE]  # a new case, without waiting longer


def test_looks_are_bounded_each_second() -> None:
    bench = Bench()
    bench.acked = dict.fromkeys(range(8), NOW - 1000 * S)
    bench.ages[:, [QUOTE, MARK]] = NOW + 100 * S
    assert bench.judge(NOW + 100 * S) == [LOOK] * silence.LOOKS_MAX
    assert bench.judge(NOW + 101 * S - 1) == [LOOK] * (8 - silence.LOOKS_MAX)


# --- on sockets -----------------------------------------------------------------------------------


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Seconds become tenths."""
    monkeypatch.setattr(feed_main, "WATCH_TICKS", 1)
    monkeypatch.setattr(silence, "TRADE_S", 0.4)
    for channel in (TRADE, QUOTE, MARK):
        monkeypatch.setitem(silence._FIRST_S, channel, 0.4)


PACE = replace(FAST, replace_s=10_000.0)


def looks(desk: Desk) -> int:
    return sum("ticker" in path for path in desk.exchange.requests)


def test_a_silent_channel_is_subscribed_again_then_replaced_and_harms_nobody(
    tmp_path: Path, hasty: None
) -> None:
    async def work() -> None:
        exchange = Exchange("BTCUSDT", "ETHUSDT")
        async with exchange, running(tmp_path, exchange, PACE) as desk:
            gaps = desk.kinds(0, GAP)
            exchange.muted = {"ethusdt@markPrice@1s"}
            await until(lambda: desk.count("resubscribes") == 1)
            await until(lambda: desk.count("rotations") == 1)
            exchange.muted = set()
            await until(lambda: desk.whole())
            assert desk.kinds(0, GAP) == gaps and desk.count("reconnects") == 0
            assert desk.continuous(0) and desk.continuous(1)
            assert desk.count("lost_trades") == 0

    run(work)


def test_a_silent_trade_stream_is_found_by_rest_and_healed(tmp_path: Path, hasty: None) -> None:
    async def work() -> None:
        exchange = Exchange("BTCUSDT", "ETHUSDT")
        async with exchange, running(tmp_path, exchange, PACE) as desk:
            gaps = desk.kinds(1, GAP)
            exchange.muted = {"ethusdt@aggTrade"}
            await until(lambda: desk.count("resubscribes") == 1)
            assert looks(desk) >= 2 and desk.kinds(1, GAP) > gaps  # degraded by then
            exchange.muted = set()
            await until(lambda: desk.whole())
            newest = exchange.last_id["ETHUSDT"]
            await until(lambda: desk.ids(1)[-1] > newest)
            assert desk.continuous(1) and desk.count("lost_trades") == 0
            assert desk.count("reconnects") == 0

    run(work)


def test_a_quiet_symbol_is_only_looked_at(tmp_path: Path, hasty: None) -> None:
    async def work() -> None:
        exchange = Exchange("BTCUSDT", "ETHUSDT")
        async with exchange, running(tmp_path, exchange, PACE) as desk:
            exchange.quiet = {"ETHUSDT"}
            await until(lambda: looks(desk) >= 3)
            assert desk.count("resubscribes") == desk.count("rotations") == 0

    run(work)


def test_a_silent_quote_is_subscribed_again(tmp_path: Path, hasty: None) -> None:
    async def work() -> None:
        exchange = Exchange("BTCUSDT", "ETHUSDT")
        async with exchange, running(tmp_path, exchange, PACE) as desk:
            exchange.muted = {"ethusdt@bookTicker"}
            await until(lambda: desk.count("resubscribes") == 1)
            asked = desk.client("public").asked
            await until(lambda: len(asked) == 3)
            methods = [request["method"] for request in asked]
            assert methods == ["SUBSCRIBE", "UNSUBSCRIBE", "SUBSCRIBE"]

    run(work)
