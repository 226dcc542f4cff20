"""Fees: by tier, in USDT or, while the account has enough of it, in BNB with a tenth off. Pure.

A liquidation pays the liquidation fee of its symbol instead of the taker's, always in USDT. BNB is
counted at the mark of BNBUSDT where that is listed.
"""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal

from venue.orders import Account, ConfigEvent, Event, Order, Refusal, money
from venue.symbols import FEE_TIERS

BNB_SYMBOL = "BNBUSDT"
BNB_PRICE = Decimal(600)  # USDT, where BNBUSDT is not listed
BNB_SHARE = Decimal("0.9")  # of the fee, when it is paid in BNB

NO_SUCH_TIER = Refusal(-1130, "Data sent for parameter 'tier' is not valid.")


@dataclass(frozen=True, slots=True)
class Fee:
    """`amount` of `asset` is charged; `cost` is its worth in USDT, `kind` its income type."""

    amount: Decimal
    asset: str
    cost: Decimal
    kind: str


def bnb_price(account: Account) -> Decimal:
    book = account.books.get(BNB_SYMBOL)
    return book.mark if book is not None else BNB_PRICE


def of_fill(account: Account, order: Order, notional: Decimal, maker: bool) -> Fee:
    """What an execution costs; changes nothing."""
    if order.type == "LIQUIDATION":
        fee = money(notional * account.specs[order.symbol].liquidation_fee)
        return Fee(fee, "USDT", fee, "INSURANCE_CLEAR")
    full = notional * (account.maker_rate if maker else account.taker_rate)
    if account.fee_burn:
        less = full * BNB_SHARE
        burnt = money(less / bnb_price(account))
        if 0 < burnt <= account.bnb:
            return Fee(burnt, "BNB", money(less), "COMMISSION")
    fee = money(full)
    return Fee(fee, "USDT", fee, "COMMISSION")


def charge(account: Account, fee: Fee) -> None:
    if fee.asset == "BNB":
        account.bnb -= fee.amount
        account.bnb_fees += fee.amount
    else:
        account.wallet -= fee.amount
        account.fees += fee.amount


def set_tier(account: Account, tier: int, now: int) -> list[Event] | Refusal:
    if not 0 <= tier < len(FEE_TIERS):
        return NO_SUCH_TIER
    account.tier = tier
    return [ConfigEvent("", 0, str(tier), "fee_tier", now)]


def set_burn(account: Account, burn: bool, now: int) -> list[Event]:
    """Whether fees are taken in BNB."""
    account.fee_burn = burn
    return [ConfigEvent("", 0, "on" if burn else "off", "fee_burn", now)]
