"""Which symbols are traded: the most traded perpetuals, steadily.

`choose` is pure: the exchange's lists, what is held and what was chosen before in; names with the
reason for each out. A symbol that is in stays until it falls clearly behind (1.25 N), because
every change costs a warm-up; one with a position or an open signal never leaves. `fetch` is the
thin I/O around it; when the exchange cannot be asked, the fallback of 20 majors stands in.
"""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

STAY_FACTOR: Final = 1.25  # in until below this multiple of the wanted count
HTTP_TIMEOUT_S: Final = 5.0
HTTP_BYTES_MAX: Final = 32 << 20  # exchangeInfo of 700 symbols is about 2 MB
FALLBACK: Final = (
    "BTCUSDT", "ETHUSDT", "SOLUSDT", "XRPUSDT", "BNBUSDT", "DOGEUSDT", "ADAUSDT", "LINKUSDT",
    "AVAXUSDT", "TRXUSDT", "LTCUSDT", "DOTUSDT", "BCHUSDT", "UNIUSDT", "NEARUSDT", "APTUSDT",
    "ARBUSDT", "SUIUSDT", "AAVEUSDT", "ETCUSDT",
)  # fmt: skip
assert len(set(FALLBACK)) == 20


@dataclass(frozen=True, slots=True)
class Wanted:
    """What the operator asked for."""

    symbols: int | tuple[str, ...]  # a count, or exactly these
    quotes: tuple[str, ...] = ("USDT",)
    exclude: tuple[str, ...] = ()


def tradable(info: Mapping[str, Any], wanted: Wanted) -> list[str]:
    """Names of TRADING perpetuals in the wanted quotes, in the exchange's order."""
    return [
        row["symbol"]
        for row in info.get("symbols", ())
        if row.get("status") == "TRADING"
        and row.get("contractType") == "PERPETUAL"
        and row.get("quoteAsset") in wanted.quotes
        and row["symbol"] not in wanted.exclude
    ]


def choose(
    info: Mapping[str, Any],
    tickers: Sequence[Mapping[str, Any]],
    wanted: Wanted,
    before: Collection[str] = (),
    held: Collection[str] = (),
) -> dict[str, str]:
    """Name -> why it is in, best first. `held` names positions and symbols of open signals."""
    trading = tradable(info, wanted)
    volumes = {row["symbol"]: _volume(row) for row in tickers if "symbol" in row}
    ranked = sorted(trading, key=lambda name: -volumes.get(name, 0.0))  # stable: ties keep order
    chosen: dict[str, str] = {}
    if isinstance(wanted.symbols, tuple):
        for name in wanted.symbols:
            if name in trading:
                chosen[name] = "listed in AEGIS_SYMBOLS"
    else:
        stays = [n for n in ranked[: int(wanted.symbols * STAY_FACTOR)] if n in before]
        stays = stays[: wanted.symbols]
        room = wanted.symbols - len(stays)
        fresh = [n for n in ranked if n not in stays][:room]
        for name in sorted([*stays, *fresh], key=ranked.index):
            rank = ranked.index(name) + 1
            chosen[name] = f"rank {rank} by quote volume {volumes.get(name, 0.0):.0f}"
    for name in sorted(held):
        chosen.setdefault(name, "kept: position or open signal")
    return chosen


def _volume(row: Mapping[str, Any]) -> float:
    try:
        return float(row.get("quoteVolume", 0.0))
    except (TypeError, ValueError):
        return 0.0


def fallback(wanted: Wanted) -> dict[str, str]:
    """Majors that have traded for years; for the hour in which discovery fails."""
    if isinstance(wanted.symbols, tuple):
        return dict.fromkeys(wanted.symbols, "listed in AEGIS_SYMBOLS, not verified")
    names = [name for name in FALLBACK if name not in wanted.exclude]
    return dict.fromkeys(names[: wanted.symbols], "fallback: discovery failed")


def get_json(url: str) -> Any:
    """One GET. Raises OSError (URLError included) or ValueError, never hangs."""
    with urllib.request.urlopen(url, timeout=HTTP_TIMEOUT_S) as answer:  # noqa: S310 (config: http)
        return json.loads(answer.read(HTTP_BYTES_MAX))


def fetch(
    rest_url: str, wanted: Wanted, before: Collection[str] = (), held: Collection[str] = ()
) -> tuple[dict[str, str], str]:
    """Ask the exchange; (choice, "" or why it is the fallback)."""
    try:
        info = get_json(f"{rest_url}/fapi/v1/exchangeInfo")
    except (OSError, ValueError) as error:
        return fallback(wanted), f"exchangeInfo: {error}"
    try:
        tickers = get_json(f"{rest_url}/fapi/v1/ticker/24hr")
    except (OSError, ValueError) as error:
        return choose(info, (), wanted, before, held), f"ticker/24hr: {error}"
    chosen = choose(info, tickers, wanted, before, held)
    return (chosen, "") if chosen else (fallback(wanted), "the exchange lists no such symbol")


def write(r: Any, key: str, chosen: Mapping[str, str]) -> None:
    """Replace the universe in one step; never with nothing."""
    if not chosen:
        return
    with r.pipeline(transaction=True) as pipe:
        pipe.delete(key)
        pipe.hset(key, mapping=dict(chosen))
        pipe.execute()
