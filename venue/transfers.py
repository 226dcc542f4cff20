"""REST for money and fees: feeBurn as on the exchange, the rest the venue's own and unsigned.

`POST /venue/v1/deposit` and `withdraw` {asset, amount}, `POST /venue/v1/fees` {tier, bnb}; as a
form or as JSON. BNB's book is put before the account whenever fees may be counted at it.
"""

from __future__ import annotations

from decimal import Decimal
from typing import Any

from venue import fees, wallet
from venue.checks import DECIMAL, PRECISION, mandatory, places
from venue.house import refresh, tell
from venue.matching import watched
from venue.orders import Event, Refusal
from venue.public import number
from venue.rest import SIGNED, Call, Route, Routes
from venue.symbols import fixed

AMOUNT_DIGITS = 8
AMOUNT_MAX = Decimal(10) ** 12  # one transfer; sums stay far within the digits of a Decimal


def _amount(call: Call) -> Decimal | Refusal:
    text = call.params.get("amount", "")
    if not DECIMAL.match(text) or not 0 < Decimal(text) <= AMOUNT_MAX:
        return mandatory("amount")
    return PRECISION if places(Decimal(text)) > AMOUNT_DIGITS else Decimal(text)


def _transfer(call: Call, out: bool) -> Any:
    asset, amount = call.params.get("asset") or "USDT", _amount(call)
    if isinstance(amount, Refusal):
        return amount
    if asset not in wallet.ASSETS:
        return wallet.NO_SUCH_ASSET
    account, now_ms = call.exchange.account, call.now.market_ms
    for name in watched(account):
        refresh(call.exchange, name)
    done: list[Event] | Refusal
    if out:
        done = wallet.withdraw(account, amount, now_ms, asset)
    else:
        done = wallet.deposit(account, amount, now_ms, asset)
    if isinstance(done, Refusal):
        return done
    tell(call.exchange, done)
    _show_bnb(call)
    held = account.bnb if asset == "BNB" else account.wallet
    return {"asset": asset, "amount": f"{amount:f}", "balance": fixed(held, 8)}


def _show_bnb(call: Call) -> None:
    if fees.BNB_SYMBOL in call.exchange.index:
        refresh(call.exchange, fees.BNB_SYMBOL)


def deposit(call: Call) -> Any:
    return _transfer(call, False)


def withdraw(call: Call) -> Any:
    return _transfer(call, True)


def _flag(call: Call, name: str) -> bool | None:
    """None when it was not sent as true or false."""
    return {"true": True, "false": False}.get(call.params.get(name, "").lower())


def _burn(call: Call, burn: bool) -> None:
    tell(call.exchange, fees.set_burn(call.exchange.account, burn, call.now.market_ms))
    _show_bnb(call)


def set_fees(call: Call) -> Any:
    """The tier, and whether BNB pays; what is not sent stays. Nothing changes on a refusal."""
    account, tier, burn = call.exchange.account, call.params.get("tier"), _flag(call, "bnb")
    if call.params.get("bnb") and burn is None:
        return mandatory("bnb")
    if tier:
        wanted = number(call.params, "tier")
        done = fees.set_tier(account, -1 if wanted is None else wanted, call.now.market_ms)
        if isinstance(done, Refusal):
            return done
        tell(call.exchange, done)
    if burn is not None:
        _burn(call, burn)
    return {
        "tier": account.tier,
        "bnb": account.fee_burn,
        "maker": fixed(account.maker_rate, 6),
        "taker": fixed(account.taker_rate, 6),
    }


def get_burn(call: Call) -> Any:
    return {"feeBurn": call.exchange.account.fee_burn}


def set_burn(call: Call) -> Any:
    burn = _flag(call, "feeBurn")
    if burn is None:
        return mandatory("feeBurn")
    _burn(call, burn)
    return {"code": 200, "msg": "success"}


ROUTES: Routes = {
    ("GET", "/fapi/v1/feeBurn"): Route(get_burn, SIGNED, 30),
    ("POST", "/fapi/v1/feeBurn"): Route(set_burn, SIGNED),
    ("POST", "/venue/v1/deposit"): Route(deposit, weight=0),
    ("POST", "/venue/v1/withdraw"): Route(withdraw, weight=0),
    ("POST", "/venue/v1/fees"): Route(set_fees, weight=0),
}
