"""Trailing stops: a trigger that follows the best price since activation at a rate of it.

A trailing stop is active from the start, or once its activation price has traded. From then on it
keeps the best price seen on its working price, and fires when the price has come back from it by
its callback rate. Pure; in percent, as the client wrote it.
"""

from __future__ import annotations

from decimal import Decimal

from venue.checks import Request, check_price, mandatory, places
from venue.orders import ZERO, Algo, Refusal
from venue.symbols import Symbol

TYPE = "TRAILING_STOP_MARKET"
RATE_MIN, RATE_MAX, RATE_DIGITS = Decimal("0.1"), Decimal(20), 1
BAD_ACTIVATION = Refusal(-4135, "Invalid activation price.")


def check(spec: Symbol, request: Request, price: Decimal) -> Refusal | None:
    """A rate in bounds; an activation price that has not traded yet. `price` is the working one."""
    rate, activate = request.callback_rate, request.activate
    if not RATE_MIN <= rate <= RATE_MAX or places(rate) > RATE_DIGITS:
        return mandatory("callbackRate")
    if request.trigger:
        return Refusal(-1106, "Parameter 'triggerPrice' sent when not required.")
    if request.close_position:
        return Refusal(-4136, "Target strategy invalid for orderType, closePosition true.")
    if not activate:
        return None
    refusal = check_price(spec, activate)
    if refusal is not None:
        return refusal
    ahead = activate < price if request.side == "BUY" else activate > price
    return None if ahead else BAD_ACTIVATION


def begin(algo: Algo, price: Decimal) -> None:
    """At placement: active at once unless it waits for a price."""
    if not algo.activate:
        algo.active, algo.best = True, price


def follow(algo: Algo, price: Decimal) -> tuple[bool, bool]:
    """(has just become active, fires now) at this price."""
    falling = algo.side == "BUY"
    if not algo.active:
        if (price > algo.activate) if falling else (price < algo.activate):
            return False, False
        algo.active, algo.best = True, price
        return True, False
    algo.best = min(algo.best, price) if falling else max(algo.best, price)
    return False, (price >= trigger(algo)) if falling else (price <= trigger(algo))


def trigger(algo: Algo) -> Decimal:
    """Where it would fire now; zero before it is active."""
    if not algo.active:
        return ZERO
    back = algo.callback_rate / 100
    return algo.best * (1 + back if algo.side == "BUY" else 1 - back)
