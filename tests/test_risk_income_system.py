"""Deposits and funding against the real venue: once each, those of the time without risk too."""

from __future__ import annotations

import json
import signal
import urllib.request
from collections import Counter
from decimal import Decimal
from typing import Any

import pytest
from test_risk_system import KEYS, Rig, rig  # noqa: F401 - a fixture

pytestmark = pytest.mark.system


def move(rig: Rig, what: str, amount: str) -> None:  # noqa: F811
    body = json.dumps({"asset": "USDT", "amount": amount}).encode()
    with urllib.request.urlopen(f"{rig.venue}/venue/v1/{what}", data=body, timeout=10) as answer:
        assert answer.status == 200


def transfers(rig: Rig) -> Decimal:  # noqa: F811
    told: Any = rig.r.hget(KEYS.portfolio, "transfers")
    return Decimal(told or 0)


def test_money_that_moved_while_nobody_listened_is_counted_once(rig: Rig) -> None:  # noqa: F811
    first = rig.start()
    epoch = rig.wait(rig.trading)
    move(rig, "deposit", "500")
    rig.wait(lambda: transfers(rig) == 500)
    first.send_signal(signal.SIGKILL)
    first.wait(10)
    move(rig, "deposit", "70")
    move(rig, "withdraw", "20")
    second = rig.start()
    epoch = rig.wait(lambda: rig.trading(epoch))
    rig.wait(lambda: transfers(rig) == 550)
    second.send_signal(signal.SIGKILL)  # and what was counted is not counted again
    second.wait(10)
    rig.start()
    rig.wait(lambda: rig.trading(epoch))
    move(rig, "deposit", "1")
    rig.wait(lambda: transfers(rig) == 551)
    entries: Any = rig.r.xrange(KEYS.ledger)
    moved = [fields for _, fields in entries if fields["kind"] == "transfer"]
    assert sorted(Decimal(f["amount"]) for f in moved) == [-20, 1, 70, 500]
    assert set(Counter(f["id"] for f in moved).values()) == {1}
    wallet: Any = rig.r.hget(KEYS.portfolio, "wallet")
    deposits = [Decimal(e["amount"]) for e in rig.ledger() if e["type"] in ("deposit", "withdraw")]
    assert Decimal(wallet) == sum(deposits)  # no trade was made
