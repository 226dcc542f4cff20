"""Money that is no trade: each transaction once, whenever it happened and however often told."""

from __future__ import annotations

import asyncio
from decimal import Decimal
from typing import Any

import pytest
from redis_writes import commit
from risk_desk import KEYS, MARKET_MS, Desk, ops, replace
from test_risk_reconcile import snapshot

import streams
from risk import income, journal
from risk.events import Done, Effect, Pushed, Query, Replied, SnapshotTaken, Unknown
from risk.income import AGAIN_MS, CURSOR, KINDS, MARGIN_MS, ROWS_MAX, SOON_MS
from risk.rebuild import rebuild
from risk.recovery import START
from risk.state import State
from risk.step import step

D = Decimal


def row(
    number: int, amount: str = "-1.5", kind: str = "FUNDING_FEE", **over: Any
) -> dict[str, Any]:
    made = {"symbol": "BTCUSDT", "incomeType": kind, "income": amount, "asset": "USDT"}
    return made | {"info": kind, "time": 1_795_000_000_500, "tranId": number, "tradeId": ""} | over


def asked(effects: list[Effect], kind: str = "FUNDING_FEE") -> list[Query]:
    made = [e for e in effects if isinstance(e, Query) and e.purpose == income.PURPOSE]
    return [query for query in made if query.about == kind]


def told(desk: Desk, reason: str, balance: str = "9998.5") -> list[Effect]:
    account = {"m": reason, "B": [{"a": "USDT", "wb": balance, "bc": "-1.5"}], "P": []}
    return desk.do(Pushed({"e": "ACCOUNT_UPDATE", "T": 1, "E": 1, "a": account}))


def ledger(effects: list[Effect]) -> list[dict[str, str]]:
    return [op[2] for op in ops(effects, "xadd_once", KEYS.ledger)]


def test_funding_is_read_from_its_transactions_after_the_stream_told_of_it() -> None:
    desk = Desk()
    assert not ledger(told(desk, "FUNDING_FEE"))
    assert desk.state.money.wallet == D("9998.5") and desk.state.money.funding == 0
    assert not asked(desk.wait(SOON_MS - 1))
    query = asked(desk.wait(1))[0]
    done = desk.reply(query, Done([row(7), row(8, "0.5")]))
    assert desk.state.money.funding == D(-1)
    assert [(e["id"], e["kind"], e["amount"]) for e in ledger(done)] == [
        ("funding:7", "funding", "-1.5"), ("funding:8", "funding", "0.5"),
    ]  # fmt: skip
    assert any(op[2].get("funding") == "-1" for op in ops(done, "hset", KEYS.portfolio))


def test_a_transaction_counts_once_however_often_it_is_told() -> None:
    desk = Desk()
    told(desk, "FUNDING_FEE")
    told(desk, "FUNDING_FEE")
    query = asked(desk.wait(SOON_MS))
    assert len(query) == 1
    desk.reply(query[0], Done([row(7)]))
    again = asked(desk.wait(AGAIN_MS))  # if the exchange had listed it late
    assert not ledger(desk.reply(again[0], Done([row(7)])))
    assert desk.state.money.funding == D("-1.5")
    assert not asked(desk.wait(AGAIN_MS))


@pytest.mark.parametrize(
    ("reason", "kind", "word"),
    [
        ("DEPOSIT", "TRANSFER", "transfer"),
        ("WITHDRAW", "TRANSFER", "transfer"),
        ("INSURANCE_CLEAR", "INSURANCE_CLEAR", "insurance"),
        ("COMMISSION_REBATE", "COMMISSION_REBATE", "rebate"),
    ],
)
def test_other_money_has_its_word_and_its_sum(reason: str, kind: str, word: str) -> None:
    desk = Desk()
    told(desk, reason)
    done = desk.reply(asked(desk.wait(SOON_MS), kind)[0], Done([row(3, "5", kind, symbol="")]))
    assert [e["kind"] for e in ledger(done)] == [word]
    money = desk.state.money
    assert (money.transfers, money.other) == ((5, 0) if word == "transfer" else (0, 5))


def test_a_trade_is_no_income() -> None:
    desk = Desk()
    told(desk, "ORDER")
    assert not [e for e in desk.wait(AGAIN_MS) if isinstance(e, Query) and e.path == income.PATH]


def test_another_asset_is_written_and_not_added_up() -> None:
    desk = Desk()
    told(desk, "DEPOSIT")
    query = asked(desk.wait(SOON_MS), "TRANSFER")[0]
    done = desk.reply(query, Done([row(3, "2", "TRANSFER", asset="BNB")]))
    assert ledger(done)[0]["asset"] == "BNB" and desk.state.money.transfers == 0


def test_the_first_start_asks_for_nothing_that_was_before_it() -> None:
    desk = Desk()
    done = desk.do(SnapshotTaken(snapshot(), START))
    assert not [e for e in done if isinstance(e, Query) and e.path == income.PATH]
    told(desk, "FUNDING_FEE")
    query = asked(desk.wait(SOON_MS))[0]
    assert int(query.params["startTime"]) == int(desk.market_ms - SOON_MS)


def test_a_start_after_a_pause_asks_for_what_happened_meanwhile() -> None:
    desk = Desk()
    desk.state.income_ms = {kind: int(desk.market_ms) - 7_200_000 for kind in KINDS}
    done = desk.do(SnapshotTaken(snapshot(), START))
    assert {q.about for q in done if isinstance(q, Query) and q.path == income.PATH} == set(KINDS)
    query = asked(done)[0]
    assert int(query.params["startTime"]) == int(desk.market_ms) - 7_200_000 - MARGIN_MS
    desk.reply(query, Done([row(7)]))
    assert desk.state.money.funding == D("-1.5")
    assert desk.state.income_ms["FUNDING_FEE"] == int(desk.market_ms)


@pytest.mark.parametrize("reason", [START, "trouble", "reconcile", "snapshot"])
def test_every_look_at_the_exchange_asks_for_money_too(reason: str) -> None:
    """A stream that stays open may have told nothing of it."""
    desk = Desk()
    desk.state.income_ms = dict.fromkeys(KINDS, int(desk.market_ms))
    effects = desk.do(SnapshotTaken(snapshot(), reason))
    assert all(len(asked(effects, kind)) == 1 for kind in KINDS)


def test_trouble_after_trouble_asks_once_a_minute() -> None:
    """Four questions of weight 30: a Redis that flaps must not use the address up."""
    desk = Desk()
    desk.state.income_ms = dict.fromkeys(KINDS, int(desk.market_ms))
    made = 0
    for _ in range(100):
        effects = [*desk.do(SnapshotTaken(snapshot(), "trouble")), *desk.wait(1_000)]
        for query in asked(effects):
            made += 1
            desk.reply(query, Done([]))
    assert made == 2


def test_a_full_page_asks_for_the_next_and_moves_no_cursor_before_the_last() -> None:
    desk = Desk()
    began = int(desk.market_ms) - 7_200_000
    desk.state.income_ms = dict.fromkeys(KINDS, began)
    query = asked(desk.do(SnapshotTaken(snapshot(), START)))[0]
    rows = [row(n, "-0.01", time=began + n) for n in range(ROWS_MAX)]
    more = asked(desk.reply(query, Done(rows)))
    assert int(more[0].params["startTime"]) == began + ROWS_MAX - 1
    assert desk.state.income_ms["FUNDING_FEE"] == began
    desk.reply(more[0], Done([rows[-1], row(ROWS_MAX, "-0.01")]))
    assert desk.state.money.funding == D("-0.01") * (ROWS_MAX + 1)
    assert desk.state.income_ms["FUNDING_FEE"] > began


def test_a_page_full_of_one_moment_does_not_ask_for_it_for_ever() -> None:
    desk = Desk()
    desk.state.income_ms = dict.fromkeys(KINDS, int(desk.market_ms))
    query = asked(desk.do(SnapshotTaken(snapshot(), START)))[0]
    at = int(query.params["startTime"])
    rows = [row(n, time=at) for n in range(ROWS_MAX)]
    assert int(asked(desk.reply(query, Done(rows)))[0].params["startTime"]) == at + 1


def test_an_answer_that_does_not_come_is_asked_for_again_after_a_pause() -> None:
    desk = Desk()
    told(desk, "FUNDING_FEE")
    query = asked(desk.wait(SOON_MS))[0]
    desk.reply(query, Unknown("time-out"))
    assert not asked(desk.wait(249))
    assert [q.params for q in asked(desk.wait(1))] == [query.params]


def test_money_told_later_is_read_from_where_reading_ended() -> None:
    desk = Desk()
    desk.state.income_ms = dict.fromkeys(KINDS, int(desk.market_ms) - 7_200_000)
    told(desk, "FUNDING_FEE")
    query = asked(desk.wait(SOON_MS))[0]
    assert int(query.params["startTime"]) == MARKET_MS - 7_200_000 - MARGIN_MS


def test_reading_ended_when_the_question_was_asked() -> None:
    """What happens while an answer is under way may be missing in it."""
    desk = Desk()
    desk.state.income_ms = dict.fromkeys(KINDS, int(desk.market_ms) - 7_200_000)
    query = asked(desk.do(SnapshotTaken(snapshot(), START)))[0]
    sent_ms, read_ms = desk.boot_ms, int(desk.market_ms)
    desk.boot_ms += 40
    desk.market_ms += 40 * 30  # a market of 30 times our speed
    now = replace(desk.now, speed=30.0)
    step(desk.state, Replied(query, Done([]), sent_ms, desk.boot_ms), now)
    assert desk.state.income_ms["FUNDING_FEE"] == read_ms


def test_the_second_look_comes_a_minute_later() -> None:
    desk = Desk()
    told(desk, "FUNDING_FEE")
    desk.reply(asked(desk.wait(SOON_MS))[0], Done([]))
    assert not asked(desk.wait(AGAIN_MS - 1))
    assert asked(desk.wait(1))


def test_what_was_counted_is_known_after_a_restart(redis_url: str) -> None:
    desk = Desk()
    told(desk, "FUNDING_FEE")
    done = desk.reply(asked(desk.wait(SOON_MS))[0], Done([row(7)]))
    written = [op for op in ops(done) if op[1] in (KEYS.ledger, KEYS.portfolio)]
    written += journal.portfolio_ops(desk.state, desk.now)

    async def work() -> State:
        r = streams.connect_async(redis_url)
        await r.set(KEYS.epoch, "1")
        assert await commit(r, 1, written) == "ok"
        made = State(KEYS, desk.state.prefix, "main", epoch=2)
        await rebuild(r, made)
        await r.aclose()
        return made

    after = Desk()
    after.state = asyncio.run(work())
    assert after.state.seen_money == {"funding:7": None}
    assert after.state.money.funding == D("-1.5")
    assert after.state.income_ms == desk.state.income_ms
    assert any(name.startswith(CURSOR) for name in written[-1][2])
    query = asked(after.do(SnapshotTaken(snapshot(), START)))[0]
    after.reply(query, Done([row(7), row(9, "-2")]))
    assert after.state.money.funding == D("-3.5")
