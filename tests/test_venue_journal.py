"""The account as small lines: a copy and the lines after it are the account, whatever happened."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import orjson
import pytest

from tests.test_venue_touch import Trader, born
from venue import amend, exchange, journal, matching, positions, store, wallet
from venue.exchange import Exchange
from venue.orders import Account, Refusal
from venue.store import Store


def plain(account: Account) -> Any:
    """All of an account that a line speaks of, as JSON."""
    data = json.loads(orjson.dumps(store.account_json(account, 10_000), default=store._text))
    for row in data["orders"]:
        row["ahead"] = "0"
    for row in data["algos"]:
        row["best"] = row["active"] = "0"
    return data


def copied(account: Account) -> Account:
    made = Account(dict(account.specs))
    text = orjson.dumps(store.account_json(account, 10_000), default=store._text)
    store.account_from(json.loads(text), made)
    return made


def more(world: Exchange, chance: random.Random, now_ms: int) -> None:
    """What the trader does not do: amendments, margin, transfers, leverage, mode."""
    account, what = world.account, chance.randrange(6)
    done: Any = []
    if what == 0 and account.orders:
        order = chance.choice(list(account.orders.values()))
        step = account.specs[order.symbol].step
        change = amend.Change(order.side, order.qty + chance.randint(-1, 2) * step, order.price)
        _, done = amend.amend(account, order, change, now_ms)
    elif what == 1:
        done = wallet.deposit(account, Decimal(5), now_ms, chance.choice(("USDT", "BNB")))
    elif what == 2:
        done = wallet.withdraw(account, Decimal(1), now_ms)
    elif what == 3:
        done = matching.set_leverage(account, "BTCUSDT", chance.randint(50, 100), now_ms)
    elif what == 4:
        kind = chance.choice((amend.ADD, amend.REDUCE))
        done = amend.move_margin(account, world.specs[2].name, Decimal(2), kind, now_ms)
    else:
        done = positions.set_mode(account, not account.dual, now_ms)
    if not isinstance(done, Refusal):
        exchange.tell(world, done)


@pytest.mark.parametrize("seed", range(6))
def test_a_copy_and_the_lines_after_it_are_the_account(seed: int) -> None:
    world, chance = born(seed), random.Random(seed)
    trader = Trader(seed, ("30", "150", "10000")[seed % 3])
    trader.prepare(world)
    mirror = copied(world.account)
    world.touched.written(world.account)
    until, written = float(world.t0_ms), 0
    world.next_funding_ms = world.t0_ms + 20_000
    for _ in range(80):
        until += chance.choice((20, 200, 900, 2_500))
        for _ in exchange.advance(world, until, int(until)):
            pass
        if not world.account.dual:
            trader.act(world, int(until))
        more(world, chance, int(until))
        text = orjson.dumps(journal.line(world.account, world.touched), default=store._text)
        world.touched.written(world.account)
        journal.apply(mirror, json.loads(text))
        written += len(text)
        assert plain(mirror) == plain(world.account)
    assert world.account.trades and world.account.closed and written < 80 * 20_000


def kept(folder: Path, spoil: Callable[[Path], None]) -> tuple[Any, Any]:
    """The account when a store was left without an end, and what the next one reads."""
    world = born(3)
    first = Store(folder)
    first.create(world)
    trader = Trader(3, "10000")
    trader.prepare(world)
    for number in range(30):
        trader.act(world, world.t0_ms + number)
        first.write_ledger(world, 0)
        first.save_change(world)
        if number == 12:
            first.save_account(world)
    spoil(folder)
    return plain(world.account), plain(Store(folder).resume().account)


def test_a_store_left_without_an_end_gives_the_account_back(tmp_path: Path) -> None:
    was, now = kept(tmp_path, lambda folder: None)
    assert was == now and was["orders"]


def test_a_line_that_a_kill_has_cut_is_as_if_it_had_never_been(tmp_path: Path) -> None:
    def cut(folder: Path) -> None:
        with (folder / store.JOURNAL_FILE).open("ab") as log:
            log.write(b'{"line":99,"chan')

    was, now = kept(tmp_path, cut)
    assert was == now
    assert (tmp_path / store.JOURNAL_FILE).read_bytes().endswith(b"\n")


def test_lines_that_the_copy_already_holds_are_not_applied_again(tmp_path: Path) -> None:
    """A kill between the copy and the end of the old lines."""
    world = born(3)
    first = Store(tmp_path)
    first.create(world)
    trader = Trader(3, "10000")
    trader.prepare(world)
    trader.act(world, world.t0_ms)
    first.save_change(world)
    lines = (tmp_path / store.JOURNAL_FILE).read_bytes()
    first.write_ledger(world, 0)
    first.save_account(world)
    (tmp_path / store.JOURNAL_FILE).write_bytes(lines)
    assert plain(Store(tmp_path).resume().account) == plain(world.account)
