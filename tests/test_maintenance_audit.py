"""The audit: each planted violation is caught, a clean run passes."""

from __future__ import annotations

from collections.abc import Callable
from decimal import Decimal
from typing import Any

import pytest

from maintenance.audit import Audit, audit, check_protection, compare

CAUSE = "abc" + "q" * 16  # prefix and cause of a client id


def cid(leg: str, cause: str = CAUSE, revision: int = 0) -> str:
    return f"ag{cause}{leg}{revision}"


class Ledger:
    """Writes a ledger the way the venue does; sums are kept so that it is right by default."""

    def __init__(self) -> None:
        self.events: list[dict[str, Any]] = []
        self.wall_ms = 1_000_000
        self.balance = Decimal(0)
        self.held: dict[str, Decimal] = {}
        self.trade_id = 0
        self.add("deposit", asset="USDT", amount="10000")
        self.balance += 10_000

    def add(self, kind: str, **fields: Any) -> None:
        seq = len(self.events) + 1
        self.events.append(
            {"seq": seq, "ms": self.wall_ms * 20, "wall_ms": self.wall_ms, "type": kind, **fields}
        )

    def order(self, client_id: str, symbol: str = "BTCUSDT", side: str = "BUY") -> None:
        self.add("order_new", symbol=symbol, client_id=client_id, order_id=len(self.events),
                 side=side, order_type="LIMIT", qty="1", price="100", reduce_only=False,
                 close_position=False, algo=0)  # fmt: skip

    def stop(self, symbol: str = "BTCUSDT", algo_id: int = 7, **change: Any) -> None:
        fields = {"symbol": symbol, "client_id": cid("s", revision=algo_id), "algo_id": algo_id,
                  "side": "SELL", "order_type": "STOP_MARKET", "trigger": "90",
                  "close_position": True}  # fmt: skip
        self.add("algo_new", **fields | change)

    def trade(
        self, client_id: str, side: str, qty: str, symbol: str = "BTCUSDT", **change: Any
    ) -> None:
        realised, fee = Decimal(change.pop("realised", 0)), Decimal("0.05")
        self.trade_id += 1
        self.balance += realised - fee
        signed = Decimal(qty) if side == "BUY" else -Decimal(qty)
        self.held[symbol] = self.held.get(symbol, Decimal(0)) + signed
        fields = {"symbol": symbol, "client_id": client_id, "order_id": 1, "side": side,
                  "trade_id": self.trade_id, "price": "100", "qty": qty, "fee": str(fee),
                  "fee_asset": "USDT", "realised": str(realised), "maker": False,
                  "position_after": str(self.held[symbol]),
                  "balance_after": str(self.balance)}  # fmt: skip
        self.add("trade", **fields | change)

    def round_trip(self, symbol: str = "BTCUSDT", cause: str = CAUSE, naked_ms: int = 100) -> None:
        self.order(cid("e", cause), symbol)
        self.trade(cid("e", cause), "BUY", "1", symbol)
        self.wall_ms += naked_ms
        algo_id = len(self.events)
        self.stop(symbol, algo_id, client_id=cid("s", cause))
        self.wall_ms += 5_000
        self.add("algo_triggered", symbol=symbol, client_id=cid("s", cause), algo_id=algo_id,
                 order_id=99)  # fmt: skip
        self.add("order_new", symbol=symbol, client_id=cid("s", cause), order_id=99, side="SELL",
                 order_type="MARKET", reduce_only=True, close_position=True,
                 algo=algo_id)  # fmt: skip
        self.trade(cid("s", cause), "SELL", "1", symbol, realised="-10")


def check(ledger: Ledger, allowed: int = 3) -> Audit:
    return audit(ledger.events, allowed)


def test_a_clean_run_has_no_violation_and_exact_sums() -> None:
    ledger = Ledger()
    ledger.round_trip()
    ledger.round_trip("ETHUSDT", "abc" + "r" * 16)
    result = check(ledger)
    assert result.violations == ()
    assert result.balance == ledger.balance == Decimal("9979.80")
    assert (result.round_trips, result.entries, result.stops_placed, result.orders) == (2, 2, 2, 4)
    assert result.positions == {}
    assert [holding.naked_ms for holding in result.holdings] == [100, 100]


@pytest.mark.parametrize("count", [2, 3, 4])
def test_only_more_positions_than_allowed_at_any_prefix_are_a_violation(count: int) -> None:
    ledger = Ledger()
    for n in range(count):
        ledger.trade(cid("e", f"abc{n:016d}"), "BUY", "1", f"S{n}USDT")
    for n in range(count):  # all flat at the end: the prefix counts
        ledger.trade(cid("x", f"abc{n:016d}"), "SELL", "1", f"S{n}USDT")
    result = check(ledger)
    assert result.positions_max == count
    assert bool(result.violations) == (count > 3)


PLANTED: list[tuple[str, Callable[[Ledger], None], str]] = [
    ("a balance off by one unit", lambda w: w.trade(cid("e"), "BUY", "1", balance_after="9999.96"),
     "balance is"),
    ("a position that fills do not explain",
     lambda w: w.trade(cid("e"), "BUY", "1", position_after="2"), "fills make it"),
    ("a trade that stands twice", lambda w: w.events.append(
        w.events[-1] | {"seq": w.events[-1]["seq"] + 1}), "twice"),
    ("a client id accepted twice", lambda w: (w.order(cid("e")), w.order(cid("e"))), "twice"),
    ("two entries of one cause", lambda w: (w.order(cid("e")), w.order(cid("e", revision=1))),
     "two entries of one cause"),
    ("a hole in the ledger", lambda w: w.events.append(
        w.events[-1] | {"seq": w.events[-1]["seq"] + 2, "type": "leverage"}), "jumps"),
]  # fmt: skip


@pytest.mark.parametrize(("what", "plant", "said"), PLANTED, ids=[row[0] for row in PLANTED])
def test_a_planted_violation_is_caught(
    what: str, plant: Callable[[Ledger], None], said: str
) -> None:
    ledger = Ledger()
    ledger.round_trip("SOLUSDT", "abc" + "z" * 16)
    plant(ledger)
    assert any(said in text for text in check(ledger).violations), what


def test_two_legs_of_one_cause_are_no_doubled_entry() -> None:
    ledger = Ledger()
    ledger.order(cid("e"))
    ledger.order(cid("x"))
    ledger.order(cid("x", revision=1))
    assert check(ledger).violations == ()


@pytest.mark.parametrize("naked_ms", [999, 1000, 1001])
def test_only_a_position_naked_for_longer_than_the_limit_is_blamed(naked_ms: int) -> None:
    ledger = Ledger()
    ledger.round_trip(naked_ms=naked_ms)
    result = check(ledger)
    assert result.naked_ms_max == naked_ms
    assert bool(check_protection(result, 1000)) == (naked_ms > 1000)


@pytest.mark.parametrize("change", [{"close_position": False}, {"order_type": "TAKE_PROFIT_MARKET"},
                                    {"symbol": "ETHUSDT"}])  # fmt: skip
def test_what_does_not_close_the_position_does_not_protect_it(change: dict[str, Any]) -> None:
    ledger = Ledger()
    ledger.trade(cid("e"), "BUY", "1")
    ledger.wall_ms += 10
    ledger.stop(**change)
    ledger.wall_ms += 5_000
    assert audit(ledger.events, 3, ledger.wall_ms).naked_ms_max == 5_010


def test_a_stop_that_goes_leaves_the_position_naked_again() -> None:
    ledger = Ledger()
    ledger.trade(cid("e"), "BUY", "1")
    ledger.wall_ms += 50
    ledger.stop(algo_id=7)
    ledger.wall_ms += 1_000
    ledger.add("algo_done", symbol="BTCUSDT", client_id=cid("s"), algo_id=7, status="CANCELED")
    ledger.wall_ms += 300
    ledger.stop(algo_id=8)
    ledger.wall_ms += 1_000
    assert audit(ledger.events, 3, ledger.wall_ms).naked_ms_max == 350


def test_a_reversal_ends_one_position_and_begins_another() -> None:
    ledger = Ledger()
    ledger.trade(cid("e"), "BUY", "1")
    ledger.trade(cid("x"), "SELL", "3")
    result = check(ledger)
    assert result.round_trips == 1
    assert result.positions == {"BTCUSDT": Decimal(-2)}
    assert result.positions_max == 1


def test_what_somebody_else_opened_is_theirs_until_it_is_flat() -> None:
    ledger = Ledger()
    ledger.trade("web_a", "BUY", "1", "SOLUSDT")
    for n in range(3):
        ledger.trade(cid("e", f"abc{n:016d}"), "BUY", "1", f"S{n}USDT")
    ledger.wall_ms += 60_000
    ledger.trade("ios_b", "BUY", "2", "SOLUSDT")
    foreign = check(ledger)
    assert (foreign.violations, foreign.positions_max) == ((), 3)
    assert "SOLUSDT" not in foreign.positions and foreign.fills == (
        "S0USDT:2",
        "S1USDT:3",
        "S2USDT:4",
    )
    ledger.trade("autoclose-1", "SELL", "3", "SOLUSDT")
    assert check(ledger).balance == ledger.balance
    ledger.trade(cid("e"), "BUY", "1", "SOLUSDT")
    mine = check(ledger)
    assert (mine.positions["SOLUSDT"], mine.fills[-1], mine.positions_max) == (1, "SOLUSDT:7", 4)
    assert [h.symbol for h in mine.holdings].count("SOLUSDT") == 1


def test_a_position_of_ours_that_somebody_else_closes_is_ours_to_know() -> None:
    ledger = Ledger()
    ledger.trade(cid("e"), "BUY", "1")
    ledger.trade("web_a", "SELL", "1")
    result = check(ledger)
    assert result.fills == ("BTCUSDT:1", "BTCUSDT:2") and result.round_trips == 1


def test_funding_moves_the_balance() -> None:
    ledger = Ledger()
    ledger.add("funding", symbol="BTCUSDT", asset="USDT", amount="-0.01")
    ledger.balance -= Decimal("0.01")
    ledger.trade(cid("e"), "BUY", "1")
    assert check(ledger).violations == ()
    assert check(ledger).funding == Decimal("-0.01")


def books(ledger: Ledger) -> dict[str, Any]:
    """What Redis says when it is right."""
    result = check(ledger)
    held = {s: q for s, q in ledger.held.items() if q}
    return {"positions": held, "fills": list(result.fills), "wallet": ledger.balance,
            "fill_sums": held}  # fmt: skip


def test_equal_books_are_equal() -> None:
    ledger = Ledger()
    ledger.round_trip()
    ledger.trade(cid("e", "abc" + "s" * 16), "SELL", "2", "ETHUSDT")
    assert compare(check(ledger), **books(ledger)) == []


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"positions": {}}, "positions in Redis"),
        ({"positions": {"ETHUSDT": Decimal(2)}}, "positions in Redis"),
        ({"fill_sums": {"ETHUSDT": Decimal("-1.999")}}, "fills in Redis"),
        ({"fills": ["ETHUSDT:1", "BTCUSDT:999"]}, "unknown to the venue"),
        ({"fills": []}, "missing in Redis"),
        ({"fills": ["ETHUSDT:1", "ETHUSDT:1"]}, "twice"),
        ({"wallet": None}, "no wallet"),
        ({"wallet": Decimal("9999.94")}, "wallet is"),
    ],
)
def test_a_difference_between_the_books_is_told(change: dict[str, Any], said: str) -> None:
    ledger = Ledger()
    ledger.trade(cid("e"), "SELL", "2", "ETHUSDT")
    assert any(said in text for text in compare(check(ledger), **books(ledger) | change))


@pytest.mark.parametrize(("off", "equal"), [("0.004", True), ("0.006", False)])
def test_wallets_are_equal_to_the_cent(off: str, equal: bool) -> None:
    ledger = Ledger()
    ledger.round_trip()
    told = books(ledger) | {"wallet": ledger.balance + Decimal(off)}
    assert (compare(check(ledger), **told) == []) == equal
