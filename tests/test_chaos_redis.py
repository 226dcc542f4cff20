"""The relay before Redis and what is known of a loss, against the real server."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from decimal import Decimal
from types import SimpleNamespace
from typing import Any

import pytest
import redis

import streams
from maintenance import chaos_redis
from maintenance.chaos_plan import LOSS_KINDS
from maintenance.chaos_proxy import Proxy
from maintenance.chaos_rig import Lost
from venue.orders import CLOSED_KEPT

KEYS = streams.Keys("sim", "main")
MARK = b"mark\r\n"


@pytest.fixture
def proxy(redis_url: str) -> Iterator[Proxy]:
    port = int(redis_url.rsplit(":", 1)[1].split("/")[0])
    with Proxy(port, MARK, ("one", "two")) as made:
        yield made


def client(proxy: Proxy, name: str, seconds: float = 2.0) -> redis.Redis:
    made = streams.connect(f"redis://127.0.0.1:{proxy.ports[name]}/0", 1)
    made.connection_pool.connection_kwargs["socket_timeout"] = seconds
    return made


def test_who_is_cut_off_hears_nothing_the_other_does_and_what_was_sent_arrives_at_last(
    proxy: Proxy, redis_url: str
) -> None:
    one, two, straight = client(proxy, "one", 0.4), client(proxy, "two"), streams.connect(redis_url)
    assert one.set("a", "1") and two.get("a") == "1"
    proxy.cut_off(["one"])
    with pytest.raises(redis.TimeoutError):
        one.set("a", "2")
    assert straight.get("a") == "1" and two.set("b", "1")
    late = threading.Thread(target=lambda: client(proxy, "one", 5.0).set("c", "1"))
    late.start()  # a connection made while cut off: accepted, and silent
    time.sleep(0.3)
    assert straight.get("c") is None
    proxy.cut_off(())
    late.join(5)
    for _ in range(100):
        if straight.get("a") == "2":
            break
        time.sleep(0.02)
    assert (straight.get("a"), straight.get("c")) == ("2", "1")
    one.connection_pool.disconnect()
    assert one.get("a") == "2"


@pytest.mark.parametrize("after", [0, 1, 3])
def test_a_reply_that_is_cut_was_executed(proxy: Proxy, redis_url: str, after: int) -> None:
    one, straight = client(proxy, "one"), streams.connect(redis_url)
    assert one.ping()
    proxy.cut_replies([after], MARK)
    assert one.set("other", "1")  # not marked: passes
    with pytest.raises(redis.ConnectionError):
        one.set("mark", "1")
    assert straight.get("mark") == "1" and proxy.cut == 1
    assert one.set("mark", "2")  # once


def test_a_reply_that_is_swallowed_was_executed(proxy: Proxy, redis_url: str) -> None:
    one, straight = client(proxy, "one"), streams.connect(redis_url)
    assert one.ping()
    proxy.swallow(1)
    with pytest.raises(redis.ConnectionError):
        one.set("mark", "1")
    assert straight.get("mark") == "1" and proxy.swallowed == 1
    assert one.set("mark", "2")


def test_a_slow_relay_is_late_and_in_order(proxy: Proxy) -> None:
    one = client(proxy, "one")
    assert one.ping()
    proxy.slow(0.2)
    began = time.monotonic()
    assert one.set("a", "1") and one.get("a") == "1"
    assert time.monotonic() - began >= 0.4 and proxy.late == 2
    proxy.slow(0)
    began = time.monotonic()
    assert one.get("a") == "1" and time.monotonic() - began < 0.2


def test_every_kind_of_loss_has_its_blow() -> None:
    assert set(LOSS_KINDS) == set(chaos_redis.BLOWS)


# --- what is known of a loss -------------------------------------------------------------------


def rig(r: Any, trades: int = 0) -> Any:
    made = SimpleNamespace(r=r, keys=KEYS, lost=Lost(), tails={}, orders=[])
    rows = [{"type": "trade", "symbol": "BTCUSDT", "trade_id": k} for k in range(trades)]
    made.ledger = lambda: rows
    return made


def test_exactly_what_an_older_file_lacks_is_lost(redis_url: str) -> None:
    r = streams.connect(redis_url)
    made = rig(r)
    for number in range(4):
        entry_id = r.xadd(KEYS.orders, {"id": str(number)}, id=f"{number + 1}-0")
        made.orders.append((entry_id, {}))
        made.tails[KEYS.orders] = entry_id
        r.xadd(KEYS.signals, {"id": f"s{number}"})
    r.xtrim(KEYS.orders, minid="2-0")  # trimmed: an older file would lack it as well
    r.xdel(KEYS.orders, "3-0", "4-0")
    r.xadd(KEYS.orders, {"id": "new"}, id="9-0")  # of risk, after the loss
    r.xdel(KEYS.signals, r.xrevrange(KEYS.signals, count=1)[0][0])
    assert chaos_redis._note_loss(made, {"s0", "s1", "s2", "s3"})
    assert made.lost.orders == {"3-0", "4-0"} and made.lost.signals == {"s3"}


@pytest.mark.parametrize(("beyond", "kept"), [(0, 0), (1, 1)])
def test_books_that_the_exchange_no_longer_tells_are_kept_as_facts(
    redis_url: str, beyond: int, kept: int
) -> None:
    made = rig(streams.connect(redis_url), CLOSED_KEPT + beyond)
    fill = {"symbol": "BTCUSDT", "trade_id": "0", "side": "sell", "qty": "2"}
    fee = {"id": "fee:BTCUSDT:0", "kind": "fee", "amount": "-1"}
    chaos_redis._keep_untold(made, [("1-0", fill)], [("1-0", fee)])
    fills: list[str] = []
    sums: dict[str, Decimal] = {}
    chaos_redis.add_untold(made, fills, sums)
    assert fills == ["BTCUSDT:0"] * kept and sums == ({"BTCUSDT": Decimal(-2)} if kept else {})
    assert len(chaos_redis.booked(made)) == kept
    assert chaos_redis.book_sums(made)["fee"] == -kept
