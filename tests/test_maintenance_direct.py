"""`flatten --direct`: flat with nothing but the exchange, and nobody else's position touched."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace
from test_risk_system import KEYS, Rig, rig, venue_positions  # noqa: F401 - a fixture

import config
from maintenance import direct
from maintenance.launch import KEY_NAMES
from risk.events import Done

ROOT = Path(__file__).resolve().parent.parent
pytestmark = pytest.mark.system


def cli(rig: Rig, *words: str, **more: str) -> subprocess.CompletedProcess[str]:  # noqa: F811
    """The command with no Redis anywhere."""
    env = {"PATH": os.environ["PATH"], "HOME": str(rig.folder), "AEGIS_VENUE_URL": rig.venue}
    env["AEGIS_STATE_DIR"] = str(rig.folder / "elsewhere")
    return subprocess.run(
        [sys.executable, "-m", "maintenance.cli", *words], cwd=ROOT, env=env | more,
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


def by_hand(rig: Rig, *calls: tuple[str, str, dict[str, str]]) -> list[Any]:  # noqa: F811
    """Signed requests of somebody who is not us."""

    async def work() -> list[Any]:
        desk = direct.Desk(config.load({"AEGIS_VENUE_URL": rig.venue}))
        await desk.measure_clock()
        made = [await desk.call(method, path, **params) for method, path, params in calls]
        await desk.exchange.close()
        return made

    return asyncio.run(work())


def enter(rig: Rig, symbol: str) -> None:  # noqa: F811
    """A protected position. The market runs 30 times as fast as we do: an IOC may miss it."""
    for _ in range(8):
        name = rig.signal(symbol, share=0.2)

        def over(name: str = name) -> bool:
            orders: Any = rig.r.xrange(KEYS.orders)
            ended = ("expired", "rejected", "canceled")
            mine = [f["state"] for _, f in orders if f["cause"] == name and f["leg"] == "entry"]
            rows: Any = rig.r.xrange(KEYS.decisions)
            refused = any(f["signal"] == name and f["refused_by"] for _, f in rows)
            return refused or any(state in ended for state in mine)

        rig.wait(lambda: rig.protected(symbol) or over(), 30)
        if rig.protected(symbol):
            return
    decisions: Any = rig.r.xrange(KEYS.decisions)
    raise AssertionError(f"no position: {decisions[-3:]}")


def market(symbol: str, side: str, qty: str) -> tuple[str, str, dict[str, str]]:
    params = {"symbol": symbol, "side": side, "type": "MARKET", "quantity": qty}
    return "POST", "/fapi/v1/order", params | {"newClientOrderId": f"web_{symbol}"}


def test_it_closes_what_is_ours_takes_our_legs_back_and_leaves_the_others(rig: Rig) -> None:  # noqa: F811
    risk = rig.start()
    rig.wait(rig.trading)
    for symbol in ("BTCUSDT", "ETHUSDT"):
        enter(rig, symbol)
    risk.send_signal(signal.SIGKILL)
    risk.wait(10)
    symbols = [row["symbol"] for row in rig.get("/fapi/v1/exchangeInfo")["symbols"]]
    other = next(s for s in symbols if s not in ("BTCUSDT", "ETHUSDT"))
    price = float(rig.get(f"/fapi/v1/ticker/bookTicker?symbol={other}")["askPrice"])
    told = by_hand(rig, market(other, "BUY", str(round(500 / price))))
    assert isinstance(told[0], Done), told
    # a naked one of ours: only its order tells whose it is
    gone = [e["client_id"] for e in rig.ledger() if e["type"] == "algo_new"
            and e["symbol"] == "ETHUSDT"]  # fmt: skip
    by_hand(rig, *(("DELETE", "/fapi/v1/algoOrder", {"clientAlgoId": name}) for name in gone))
    assert rig.resting("ETHUSDT") == [] and len(venue_positions(rig.ledger())) == 3

    done = cli(rig, "flatten", "--direct")
    assert done.returncode == 0, done.stderr
    assert "BTCUSDT: closed" in done.stdout and "ETHUSDT: closed" in done.stdout
    assert f"left alone, not opened by us: {other}" in done.stdout
    assert list(venue_positions(rig.ledger())) == [other]
    assert rig.resting("BTCUSDT") == []

    named = cli(rig, "flatten", other.lower(), "--direct")
    assert named.returncode == 0 and f"{other}: closed" in named.stdout
    assert venue_positions(rig.ledger()) == {}
    assert "nothing to close" in cli(rig, "flatten", "--direct").stdout


def test_risk_finds_what_was_closed_behind_its_back(rig: Rig) -> None:  # noqa: F811
    rig.start()
    rig.wait(rig.trading)
    enter(rig, "BTCUSDT")
    assert cli(rig, "flatten", "--direct").returncode == 0
    rig.wait(lambda: not rig.r.smembers(KEYS.positions))
    rig.wait(lambda: not rig.r.smembers(KEYS.orders_open))


def test_a_large_position_leaves_in_lots(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    price = float(rig.get("/fapi/v1/ticker/bookTicker?symbol=BTCUSDT")["askPrice"])
    qty = round(1_000 / price, 3)
    told = by_hand(rig, market("BTCUSDT", "BUY", str(qty)))
    assert isinstance(told[0], Done), told

    async def work() -> int:
        desk = direct.Desk(config.load({"AEGIS_VENUE_URL": rig.venue}))
        real = direct.parse_instruments

        def small(*args: Any) -> Any:
            made = real(*args)
            lot = {"market_qty_max": made["BTCUSDT"].floor_qty(Decimal(str(qty)) / 3)}
            return made | {"BTCUSDT": replace(made["BTCUSDT"], **lot)}

        monkeypatch.setattr(direct, "parse_instruments", small)
        try:
            return await direct.flatten(desk, "BTCUSDT")
        finally:
            await desk.exchange.close()

    assert asyncio.run(work()) == 0
    sells = [e for e in rig.ledger() if e["type"] == "order_new" and e["side"] == "SELL"]
    assert len(sells) in (3, 4) and venue_positions(rig.ledger()) == {}


def test_mistakes_are_one_sentence(tmp_path: Path) -> None:
    class Nowhere:
        folder, venue = tmp_path, "http://127.0.0.1:1"

    away = cli(Nowhere(), "flatten", "--direct")  # type: ignore[arg-type]
    assert (away.returncode, away.stderr.count("\n")) == (1, 1) and "does not answer" in away.stderr
    none = cli(Nowhere(), "flatten", "--direct", AEGIS_MODE="live")  # type: ignore[arg-type]
    assert (none.returncode, none.stderr.count("\n")) == (1, 1) and KEY_NAMES[0] in none.stderr
