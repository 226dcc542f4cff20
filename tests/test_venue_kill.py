"""A venue that is killed or held up goes on with all that it has told anybody."""

from __future__ import annotations

import json
from decimal import Decimal as D
from pathlib import Path
from typing import Any

import pytest

from tests.test_venue_server import Running
from venue import exchange, server
from venue.exchange import Moment, Setup
from venue.server import STALL_MS, Serving, Venue
from venue.store import Store

OPTIONS = ("--symbols", "2", "--rate", "500", "--seed", "9")
KILLS = 3


def kill(venue: Running) -> None:
    venue.process.kill()
    venue.process.communicate(timeout=30)


def kept(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "ledger.jsonl").read_text().splitlines()]


def buy(venue: Running, kind: str, word: str) -> str:
    """One order, or one stop, which is answered; its client id."""
    if kind == "order":
        query = f"symbol=ETHUSDT&side=BUY&type=MARKET&quantity=0.100&newClientOrderId={word}"
    else:
        query = (
            "symbol=ETHUSDT&side=SELL&type=STOP_MARKET&algoType=CONDITIONAL&triggerPrice=1.00"
            f"&quantity=0.100&clientAlgoId={word}"
        )
    status, body, _ = venue.signed("POST", f"/fapi/v1/{kind}", query)
    assert status == 200, body
    return word


def test_a_kill_right_after_an_answer_loses_no_order_and_no_gap_is_left(tmp_path: Path) -> None:
    venue = Running(tmp_path, *OPTIONS)
    told = []
    for k in range(KILLS):
        told += [buy(venue, "order", f"o{k}"), buy(venue, "algoOrder", f"a{k}")]
        kill(venue)
        venue = Running(tmp_path, *OPTIONS, "--resume")
        entries = kept(tmp_path)
        assert [e["seq"] for e in entries] == list(range(1, len(entries) + 1))
        new = [e for e in entries if e["type"] in ("order_new", "algo_new")]
        assert [e.get("client_id") or e.get("client_algo_id") for e in new] == told
    try:
        _, account, _ = venue.signed("GET", "/fapi/v3/account", "")
        assert [p["positionAmt"] for p in account["positions"]] == [str(D("0.100") * KILLS)]
        balance = [e["balance_after"] for e in kept(tmp_path) if "balance_after" in e][-1]
        assert D(account["totalWalletBalance"]) == D(balance)
    finally:
        assert venue.stop() == 0


@pytest.mark.parametrize("late_ms", [STALL_MS - 1, STALL_MS, STALL_MS + 1, 60_000])
def test_the_time_that_is_told_never_goes_back_over_a_hold_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, late_ms: int
) -> None:
    world = exchange.create(Setup("w", 1, 100.0, 7, 30.0, 0.0, ()))
    exchange.open_account(world, Moment(world.t0_ms, 0))
    store, boot_ms = Store(tmp_path), 1_000
    monkeypatch.setattr(server, "boot_ns", lambda: boot_ms * 1_000_000)
    store.create(world)
    venue = Venue(world, store, Serving())
    venue.step()
    before_ms = venue.now().market_ms
    boot_ms += late_ms
    told_ms = venue.now().market_ms  # a request is answered before the next step
    venue.step()
    boot_ms += 10
    venue.step()
    assert before_ms <= told_ms <= venue.now().market_ms == world.made_until_ms
    stalled = late_ms > STALL_MS
    assert venue.stalls == stalled
    assert told_ms - before_ms == (0 if stalled else late_ms * 30)
    store.close(world, 0)
