"""The wallets: USDT, which is margin, and BNB, which pays fees. Money from and to outside. Pure."""

from __future__ import annotations

from decimal import Decimal

from venue.fills import income
from venue.orders import Account, Event, MoneyEvent, Refusal, margin_aside, withdrawable

ASSETS = ("USDT", "BNB")
NO_SUCH_ASSET = Refusal(-1108, "Invalid asset.")
NOT_ENOUGH = Refusal(-2018, "Balance is insufficient.")


def _move(account: Account, amount: Decimal, asset: str, reason: str, now: int) -> list[Event]:
    if asset == "BNB":
        account.bnb += amount
        account.bnb_paid_in += amount
    else:
        account.wallet += amount
        account.paid_in += amount
    income(account, "", "TRANSFER", amount, now, "", asset)
    left = account.bnb if asset == "BNB" else account.wallet
    return [MoneyEvent(reason, "", amount, left, now, asset=asset, aside=margin_aside(account))]


def deposit(account: Account, money: Decimal, now: int, asset: str = "USDT") -> list[Event]:
    assert asset in ASSETS and money > 0
    return _move(account, money, asset, "DEPOSIT", now)


def withdraw(
    account: Account, money: Decimal, now: int, asset: str = "USDT"
) -> list[Event] | Refusal:
    """All of BNB may go; of USDT what no position, order or loss needs."""
    assert asset in ASSETS and money > 0
    free = account.bnb if asset == "BNB" else withdrawable(account)
    if money > free:
        return NOT_ENOUGH
    return _move(account, -money, asset, "WITHDRAW", now)
