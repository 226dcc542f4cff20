"""The choice of symbols: ranked, steady, and never without what is held."""

from __future__ import annotations

from typing import Any

import pytest

from maintenance.universe import FALLBACK, STAY_FACTOR, Wanted, choose, fallback


def market(names: list[str], **change: dict[str, Any]) -> tuple[dict[str, Any], list[Any]]:
    """A market whose first name is the most traded one."""
    rows = [
        {"symbol": n, "status": "TRADING", "contractType": "PERPETUAL", "quoteAsset": "USDT"}
        | change.get(n, {})
        for n in names
    ]
    tickers = [{"symbol": n, "quoteVolume": str(1e9 - i)} for i, n in enumerate(names)]
    return {"symbols": rows}, tickers


NAMES = [f"S{i:02}USDT" for i in range(20)]


def test_the_most_traded_are_chosen_in_order() -> None:
    assert list(choose(*market(NAMES), Wanted(3))) == NAMES[:3]


@pytest.mark.parametrize(
    "change",
    [
        {"status": "SETTLING"},
        {"contractType": "CURRENT_QUARTER"},
        {"quoteAsset": "USDC"},
        {"contractType": "TRADIFI_PERPETUAL"},
    ],
)
def test_what_is_not_a_trading_perpetual_in_the_quote_is_not_chosen(change: Any) -> None:
    assert NAMES[0] not in choose(*market(NAMES, **{NAMES[0]: change}), Wanted(3))


def test_an_excluded_symbol_is_not_chosen() -> None:
    assert list(choose(*market(NAMES), Wanted(2, exclude=(NAMES[0],)))) == NAMES[1:3]


@pytest.mark.parametrize("rank", [8, 9, 10, 11, 12])
def test_a_symbol_stays_until_it_falls_below_the_stay_rank(rank: int) -> None:
    chosen = choose(*market(NAMES), Wanted(8), before=[*NAMES[:7], NAMES[rank - 1]])
    assert (NAMES[rank - 1] in chosen) == (rank <= 8 * STAY_FACTOR)
    assert len(chosen) == 8


def test_one_that_stops_trading_leaves_whatever_its_rank() -> None:
    info, tickers = market(NAMES, **{NAMES[0]: {"status": "SETTLING"}})
    assert NAMES[0] not in choose(info, tickers, Wanted(3), before=NAMES[:3])


def test_a_held_symbol_never_leaves() -> None:
    info, tickers = market(NAMES, **{NAMES[19]: {"status": "SETTLING"}})
    chosen = choose(info, tickers, Wanted(2), held=[NAMES[19]])
    assert list(chosen) == [*NAMES[:2], NAMES[19]]


def test_a_list_is_taken_as_it_stands_but_for_what_is_not_listed() -> None:
    chosen = choose(*market(NAMES), Wanted((NAMES[5], "NOPEUSDT", NAMES[1])))
    assert list(chosen) == [NAMES[5], NAMES[1]]


def test_broken_tickers_rank_last_and_break_nothing() -> None:
    info, _ = market(NAMES)
    volumes = [(NAMES[0], None), (NAMES[1], "x"), (NAMES[2], "1")]
    tickers = [{}, *({"symbol": name, "quoteVolume": volume} for name, volume in volumes)]
    assert next(iter(choose(info, tickers, Wanted(3)))) == NAMES[2]


@pytest.mark.parametrize("count", [1, 19, 20, 21])
def test_the_fallback_has_at_most_twenty_majors(count: int) -> None:
    assert list(fallback(Wanted(count))) == list(FALLBACK[:count])


def test_the_fallback_honours_a_list() -> None:
    assert list(fallback(Wanted(("ETHUSDT",)))) == ["ETHUSDT"]
