"""The node's row, and the summary's balances: pure, with values at the limits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import config
import ring as rings
from maintenance import lanes, launch, node, summary, warm


def test_the_row_shows_every_counter(tmp_path: Path) -> None:
    made = rings.create(tmp_path / "ring", 1024, 8, "w")
    lanes.set_tables([made], ["BTCUSDT"])
    made.words[rings.HEAD], made.words[rings.TAIL] = 12, 5
    made.ages[0, 0] = 3_000_000
    fields = node.node_fields([made], {"brain": 42}, 10_000_000, 77)
    assert (fields["lag"], fields["symbols"], fields["brain_pid"]) == ("7", "1", "42")
    assert fields["age_trade_max_ms"] == "7"
    assert {f"feed.{name}" for name in rings.FEED_COUNTERS} <= set(fields)
    assert {f"brain.{name}" for name in rings.BRAIN_COUNTERS} <= set(fields)
    made.close()


def test_rings_of_two_systems_on_one_host_have_two_names(tmp_path: Path) -> None:
    base = {"AEGIS_NODE_ID": "n", "AEGIS_STATE_DIR": str(tmp_path), "REDIS_URL": "redis://h:1/0"}
    name = launch.ring_path(config.load(base))
    assert launch.ring_path(config.load(base)) == name
    assert launch.ring_path(config.load({**base, "REDIS_URL": "redis://h:2/0"})) != name
    assert launch.ring_path(config.load({**base, "AEGIS_STATE_DIR": "/tmp/other"})) != name
    secret = launch.ring_path(config.load({**base, "REDIS_URL": "redis://:pw@h:1/0"}))
    assert secret == name  # the password is no part of it


# --- the summary's balances -----------------------------------------------------------------------


def trades(**change: int) -> summary.TradeTally:
    values = {"venue_last_id": 100, "newest_id": 100, "consumed": 50, "declared": 0, "jumps": 0,
              "skipped": 0}  # fmt: skip
    return summary.TradeTally("BTCUSDT", **(values | change))


@pytest.mark.parametrize(
    ("change", "lost"),
    [({}, 0), ({"newest_id": 99}, 1), ({"declared": 4}, 4), ({"jumps": 1}, 1), ({"skipped": 9}, 0),
     ({"venue_last_id": 0, "newest_id": 0}, 0)],
)  # fmt: skip
def test_a_trade_is_lost_unless_it_came(change: dict[str, int], lost: int) -> None:
    assert summary.trades_lost(trades(**change)) == lost


def quotes(**change: int) -> summary.QuoteTally:
    values = {"sent": 100, "afloat_max": 0, "refused": 3, "conflated": 7, "consumed": 90}
    return summary.QuoteTally(**(values | change))


@pytest.mark.parametrize(
    ("change", "lost", "in_flight", "twice"),
    [
        ({}, 0, 0, 0),
        ({"sent": 101}, 1, 0, 0),
        ({"sent": 101, "afloat_max": 50}, 0, 1, 0),
        ({"sent": 160, "afloat_max": 50}, 10, 50, 0),
        ({"consumed": 89}, 1, 0, 0),
        ({"conflated": 6}, 1, 0, 0),
        ({"refused": 2}, 1, 0, 0),
        ({"consumed": 92, "afloat_max": 50}, 0, 0, 2),
    ],
)
def test_quotes_balance_or_are_lost(
    change: dict[str, int], lost: int, in_flight: int, twice: int
) -> None:
    assert summary.quotes_lost(quotes(**change)) == (lost, in_flight, twice)


def test_only_what_a_dead_sockets_buffer_holds_can_have_been_in_flight() -> None:
    dead = {"open": False, "trades": 0, "quotes": 1_000_000, "marks": 0, "bytes": 200_000_000}
    held = summary.afloat_max(dead)
    assert 0 < held < 40_000
    assert summary.afloat_max(dead | {"open": True}) == 0
    assert summary.afloat_max(dead | {"quotes": 5, "bytes": 1000}) == 5
    assert summary.afloat_max(dead | {"quotes": 0, "bytes": 0}) == 0


KLINE = [60_000, "100.0", "101.0", "99.0", "100.5", "3.5", 119_999, "351.2", 4, "1.5", "150.0", "0"]
CANDLE = {"open_ms": 60_000.0, "open": 100.0, "high": 101.0, "low": 99.0, "close": 100.5,
          "volume": 3.5, "quote_volume": 351.2, "taker_buy": 1.5}  # fmt: skip


def compared(
    candle: dict[str, float], klines: list[Any], since_ms: int = 0
) -> tuple[int, list[str]]:
    return summary.compare_candles("BTCUSDT 1m", [candle], klines, since_ms, 60_000)


def test_an_equal_candle_is_equal() -> None:
    assert compared(CANDLE, [KLINE]) == (1, [])


@pytest.mark.parametrize("name", [*summary.EXACT, *summary.SUMMED])
def test_a_candle_that_differs_in_any_field_is_unequal(name: str) -> None:
    checked, wrong = compared(CANDLE | {name: CANDLE[name] + 1e-6}, [KLINE])
    assert checked == 1
    assert len(wrong) == 1


@pytest.mark.parametrize(("off", "equal"), [(1e-12, True), (1e-7, False)])
def test_sums_of_floats_may_differ_in_their_last_bits_only(off: float, equal: bool) -> None:
    assert (compared(CANDLE | {"volume": 3.5 + off}, [KLINE])[1] == []) == equal


def test_a_missing_and_an_unknown_candle_are_unequal() -> None:
    later = [120_000, *KLINE[1:]]
    assert compared(CANDLE, [KLINE, later]) == (2, ["BTCUSDT 1m 120000: missing"])
    assert compared(CANDLE | {"open_ms": 0.0}, [KLINE])[1] == [
        "BTCUSDT 1m 0: unknown to the venue", "BTCUSDT 1m 60000: missing",
    ]  # fmt: skip


def test_a_forming_candle_without_a_trade_is_nobodys_loss_and_one_that_is_over_is() -> None:
    later = [[ms, *KLINE[1:8], 0, *KLINE[9:]] for ms in (120_000, 180_000)]
    assert compared(CANDLE, [KLINE, later[0]]) == (1, [])
    assert compared(CANDLE, [KLINE, *later]) == (2, ["BTCUSDT 1m 120000: missing"])


@pytest.mark.parametrize(("since_ms", "checked"), [(119_999, 1), (120_000, 0)])
def test_candles_that_ended_before_the_start_are_not_counted(since_ms: int, checked: int) -> None:
    assert compared(CANDLE, [KLINE], since_ms)[0] == checked


# --- the kernel cache -----------------------------------------------------------------------------


def test_the_cache_key_changes_with_any_source_and_with_the_processor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = tmp_path / "a.py", tmp_path / "b.py"
    one.write_text("x = 1")
    two.write_text("y = 1")
    key = warm.cache_key([one, two], tmp_path)
    assert warm.cache_key([one, two], tmp_path) == key
    two.write_text("y = 2")
    changed = warm.cache_key([one, two], tmp_path)
    assert changed != key
    monkeypatch.setenv("NUMBA_CPU_NAME", "generic")
    assert warm.cache_key([one, two], tmp_path) != changed


def test_caches_of_other_versions_are_removed(tmp_path: Path) -> None:
    for name in ("old", "older", "now"):
        (tmp_path / name).mkdir()
    assert warm.remove_stale(tmp_path / "now") == 2
    assert [path.name for path in tmp_path.iterdir()] == ["now"]
