"""Others act on the account: where they stand we do not enter, what they changed is set again."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest
from risk_desk import MARKET_MS, Desk, decisions, ops, queries, replace, sends

from risk import reconcile
from risk.events import Done, Pushed, Refused, Snap, SnapshotTaken, Trouble, Unknown
from risk.state import blocked

SYMBOL = "BTCUSDT"


def order(desk: Desk, status: str, client_id: str = "web_1", symbol: str = SYMBOL) -> Any:
    """An order event of another hand's resting order."""
    execution = status if status in ("NEW", "CANCELED") else "TRADE"
    o: dict[str, Any] = {"s": symbol, "c": client_id, "S": "BUY", "o": "LIMIT", "i": 5}
    o |= {"x": execution, "X": status, "l": "0", "z": "0", "L": "0", "T": MARKET_MS, "t": 0}
    return desk.do(Pushed({"e": "ORDER_TRADE_UPDATE", "E": 1, "T": 1, "o": o}))


def algo(desk: Desk, status: str, client_id: str = "web_2") -> Any:
    o = {"caid": client_id, "aid": 6, "X": status, "ai": "", "s": SYMBOL}
    return desk.do(Pushed({"e": "ALGO_UPDATE", "T": MARKET_MS, "E": 1, "o": o}))


def account(desk: Desk, reason: str, rows: list[dict[str, str]]) -> Any:
    a = {"m": reason, "B": [], "P": rows}
    return desk.do(Pushed({"e": "ACCOUNT_UPDATE", "T": MARKET_MS, "E": MARKET_MS, "a": a}))


def leverage(desk: Desk, number: int) -> None:
    ac = {"s": SYMBOL, "l": number}
    desk.do(Pushed({"e": "ACCOUNT_CONFIG_UPDATE", "E": 1, "T": 1, "ac": ac}))


def snaps(effects: Any) -> list[Snap]:
    return [effect for effect in effects if isinstance(effect, Snap)]


@pytest.mark.parametrize("event", [order, algo])
def test_a_resting_order_of_another_hand_makes_the_symbol_theirs(event: Any) -> None:
    desk = Desk()
    event(desk, "NEW")
    assert decisions(desk.signal())[0]["refused_by"] == "ownership"
    assert sends(desk.signal(id="s2", symbol="ETHUSDT"), "entry")


@pytest.mark.parametrize("event", [order, algo])
def test_its_end_is_looked_at_anew_and_not_believed_to_be_all(event: Any) -> None:
    desk = Desk()
    event(desk, "NEW")
    assert snaps(event(desk, "CANCELED"))
    assert SYMBOL in desk.state.foreign
    assert not snaps(event(desk, "CANCELED", "web_9")) or SYMBOL in desk.state.foreign


def test_an_order_of_ours_or_on_what_is_ours_makes_nothing_foreign() -> None:
    desk = Desk()
    order(desk, "NEW", f"ag{desk.state.prefix}AAAAAAAAAAAAAAAAe0")
    assert not desk.state.foreign
    desk.signal()  # an entry is on its way
    desk.open("ETHUSDT")
    desk.state.touched.clear()
    for symbol in (SYMBOL, "ETHUSDT"):
        assert not snaps(order(desk, "NEW", symbol=symbol))
        assert not desk.state.foreign


@pytest.mark.parametrize(("after_ms", "told"), [(4_999, False), (5_000, True), (5_001, True)])
def test_a_late_word_of_a_round_trip_that_ended_is_looked_at_first(
    after_ms: int, told: bool
) -> None:
    desk = Desk()
    desk.state.touched[SYMBOL] = desk.boot_ms
    desk.boot_ms += after_ms
    done = order(desk, "NEW")
    assert (SYMBOL in desk.state.foreign) is told
    assert bool(snaps(done)) is not told


# --- leverage and margin type ---


def ready(desk: Desk) -> None:
    """The symbol's settings are verified, as a first entry leaves them."""
    desk.state.tries |= {("margin", SYMBOL): 1, ("leverage", SYMBOL): 3}


@pytest.mark.parametrize(("number", "again"), [(2, True), (3, False), (4, True)])
def test_leverage_that_another_hand_changed_is_set_before_the_next_entry(
    number: int, again: bool
) -> None:
    desk = Desk()
    ready(desk)
    leverage(desk, number)
    done = desk.signal()
    assert bool(sends(done, "leverage")) is again
    assert bool(sends(done, "entry")) is not again
    if again:
        desk.reply(sends(done, "margin")[0], Refused(-4046, "No need to change margin type."))
        leverage(desk, 3)  # our own change, told before its reply
        last = desk.reply(sends(done, "leverage")[0], Done({"leverage": 3, "symbol": SYMBOL}))
        assert len(sends(last, "entry")) == 1


@pytest.mark.parametrize(("kind", "again"), [("cross", True), ("isolated", False)])
def test_a_margin_type_that_another_hand_changed_is_set_again(kind: str, again: bool) -> None:
    desk = Desk()
    ready(desk)
    account(desk, "MARGIN_TYPE_CHANGE", [{"s": SYMBOL, "pa": "0", "mt": kind}])
    assert bool(sends(desk.signal(), "margin")) is again


def test_what_was_changed_while_the_stream_was_away_is_set_again() -> None:
    desk = Desk()
    ready(desk)
    desk.do(Trouble("the user stream was away"))
    assert not desk.state.prepared


@pytest.mark.parametrize(
    ("settings", "kept"),
    [
        ({}, True),
        ({SYMBOL: (3, True)}, True),
        ({SYMBOL: (2, True)}, False),
        ({SYMBOL: (4, True)}, False),
        ({SYMBOL: (3, False)}, False),
    ],
)
def test_a_snapshot_verifies_leverage_and_margin_type(
    settings: dict[str, tuple[int, bool]], kept: bool
) -> None:
    desk = Desk()
    snapshot = reconcile.Snapshot("1-1", desk.boot_ms, MARKET_MS, Decimal(1), {}, (), (), settings)
    desk.do(SnapshotTaken(snapshot, "reconcile"))
    assert (SYMBOL in desk.state.prepared) is kept


def test_the_settings_of_every_symbol_are_read_from_the_account() -> None:
    rows = [
        {"symbol": "A", "leverage": "20", "isolated": False},
        {"symbol": "B", "leverage": "3", "isolated": True},
        {"symbol": "C"},
    ]
    told = {"totalWalletBalance": "1", "positions": rows}
    snapshot = reconcile.parse_snapshot("1-1", 0.0, 0, told, [], [], [])
    assert snapshot.settings == {"A": (20, False), "B": (3, True)}


# --- the exchange's own hand ---


@pytest.mark.parametrize(
    ("client_id", "reason"),
    [
        ("autoclose-1", "liquidation"),
        ("adl_autoclose", "adl"),
        ("settlement_autoclose-1", "delisted"),
        ("delivery_autoclose-1", "delisted"),
        ("web_1", "by hand"),
    ],
)
def test_an_end_by_another_hand_is_named(client_id: str, reason: str) -> None:
    desk = Desk()
    entry, _, _ = desk.open()
    stranger = replace(
        entry, params={**entry.params, "newClientOrderId": client_id, "side": "SELL"}
    )
    done = desk.fill(stranger, entry.params["quantity"], "1000")
    told = [op[2] for op in ops(done, "hset") if "exit_reason" in op[2]]
    assert [fields["exit_reason"] for fields in told] == [reason]
    assert not desk.state.positions


@pytest.mark.parametrize(("code", "again"), [(-4140, False), (-4141, False), (-2019, True)])
def test_a_symbol_that_the_exchange_has_closed_gets_no_further_entry(
    code: int, again: bool
) -> None:
    desk = Desk()
    desk.reply(sends(desk.signal(), "entry")[0], Refused(code, "words"))
    done = desk.signal(id="s2")
    assert bool(sends(done, "entry")) is again
    if not again:
        assert decisions(done)[0]["refused_by"] == "market"
        assert f"refused with {code}" in decisions(done)[0]["verdicts"]
    assert sends(desk.signal(id="s3", symbol="ETHUSDT"), "entry")


def test_in_hedge_mode_there_is_no_entry_until_the_account_is_one_way_again() -> None:
    desk = Desk()
    entry = sends(desk.signal(), "entry")[0]
    desk.reply(entry, Refused(-4061, "Order's position side does not match user's setting."))
    assert "hedge mode" in blocked(desk.state, desk.now)
    assert decisions(desk.signal(id="s2"))[0]["refused_by"] == "armed"
    asked = queries(desk.wait(0), "mode")
    assert len(asked) == 1 and not queries(desk.wait(4_999), "mode")
    desk.reply(asked[0], Unknown("time-out"))
    again = queries(desk.wait(1), "mode")
    desk.reply(again[0], Done({"dualSidePosition": True}))
    assert "hedge mode" in blocked(desk.state, desk.now)
    last = queries(desk.wait(5_000), "mode")
    desk.reply(last[0], Done({"dualSidePosition": False}))
    assert not queries(desk.wait(60_000), "mode")
    desk.quote_all()
    assert sends(desk.signal(id="s3", exch_ns=str(int(desk.market_ms) * 1_000_000), expires_ms=""))
