"""Paper as a process on a second venue as its upstream; between them a relay listens and fails.

Everything about the market must come through as it is there, everything about the account must
hold: over an outage, over a kill, and without a key ever leaving.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from decimal import Decimal as D
from pathlib import Path
from typing import Any

import ccxt.async_support as ccxt
import pytest
from websockets.asyncio.client import connect

from tests.conftest import ROOT
from tests.fault_proxy import FaultProxy
from tests.test_venue_server import Running, trade_with, user_key

V1 = "/fapi/v1/"
DEADLINE_S = 60.0
NAMES = ("btcusdt", "ethusdt", "solusdt")


class Recorder(FaultProxy):
    """Also keeps every byte that is sent to its target."""

    def __init__(self, target_port: int) -> None:
        super().__init__(target_port)
        self.heard = bytearray()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        feed = reader.feed_data

        def record(data: bytes) -> None:
            self.heard.extend(data)
            feed(data)

        reader.feed_data = record  # type: ignore[method-assign]
        await super()._serve(reader, writer)

    def leave(self) -> None:
        """Every connection ends at once, REST too, and the port refuses."""
        self.refuse(True)
        self._do(lambda: [relay.kill() for relay in list(self._relays)])


class Desk:
    """Upstream, what stands before it, and the paper venue, which can be killed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        flags = ("--symbols", "3", "--rate", "300", "--seed", "7", "--speed", "10")
        self.upstream = Running(folder / "upstream", *flags)
        self.between = Recorder(int(self.upstream.url.rpartition(":")[2]))
        self.between.__enter__()
        self.paper = self.start()

    def start(self) -> Running:
        url = f"127.0.0.1:{self.between.port}"
        flags = ("--upstream", f"http://{url}", "--upstream-ws", f"ws://{url}")
        return Running(self.folder / "paper", *flags)

    def signed(self, method: str, path: str, query: str) -> tuple[int, Any]:
        """By upstream's clock: there may be none here."""
        stamp = str(self.upstream.get(V1 + "time")["serverTime"])
        status, body, _ = self.paper.signed(method, path, query, timestamp=stamp)
        return status, body

    def positions(self) -> dict[str, tuple[str, str]]:
        _, rows = self.signed("GET", "/fapi/v3/positionRisk", "")
        return {r["symbol"]: (r["positionAmt"], r["entryPrice"]) for r in rows}

    def ledger(self) -> list[Any]:
        return list(self.paper.get("/venue/v1/ledger")["events"])

    def order(self, query: str, path: str = "order") -> tuple[int, Any]:
        return self.signed("POST", V1 + path, query)

    def last(self, symbol: str) -> D:
        return D(self.upstream.get(f"{V1}ticker/price?symbol={symbol}")["price"])


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    made = Desk(tmp_path_factory.mktemp("paper"))
    yield made
    assert made.paper.stop() == 0
    made.between.__exit__()
    assert made.upstream.stop() == 0


def until(holds: Callable[[], Any], what: str) -> Any:
    """The first true answer."""
    end_s = time.monotonic() + DEADLINE_S
    while not (found := holds()):
        assert time.monotonic() < end_s, what
        time.sleep(0.05)
    return found


def money(ledger: list[Any]) -> D:
    return next(D(e["balance_after"]) for e in reversed(ledger) if "balance_after" in e)


def wallet(desk: Desk) -> D:
    _, [row] = desk.signed("GET", "/fapi/v3/balance", "")
    return D(row["balance"])


def raw(url: str) -> tuple[int, bytes, dict[str, str]]:
    try:
        with urllib.request.urlopen(url, timeout=DEADLINE_S) as answer:
            return answer.status, answer.read(), dict(answer.headers)
    except urllib.error.HTTPError as error:
        return error.code, error.read(), dict(error.headers)


@pytest.mark.parametrize(
    "query",
    ["/market/stream?streams=" + "/".join(f"{n}@aggTrade/{n}@markPrice@1s" for n in NAMES),
     "/public/ws/" + "/".join(f"{n}@bookTicker" for n in NAMES)],
)  # fmt: skip
def test_frames_are_the_bytes_that_upstream_sends(desk: Desk, query: str) -> None:
    async def collect(base: str, ready: asyncio.Event, other: asyncio.Event) -> list[bytes]:
        async with connect(base + query) as socket:
            await socket.recv()
            ready.set()
            await other.wait()
            return [await socket.recv(decode=False) for _ in range(200)]

    async def both() -> tuple[list[bytes], list[bytes]]:
        a, b = asyncio.Event(), asyncio.Event()
        ours, theirs = collect(desk.paper.ws, a, b), collect(desk.upstream.ws, b, a)
        return await asyncio.gather(ours, theirs)

    ours, theirs = asyncio.run(both())
    first = next(frame for frame in ours if frame in theirs)
    a, b = ours[ours.index(first) :], theirs[theirs.index(first) :]
    common = min(len(a), len(b))
    assert common > 100 and a[:common] == b[:common]


def test_control_messages_are_answered_as_upstream_answers(desk: Desk) -> None:
    words = [
        '{"method":"SUBSCRIBE","params":["nosuch@aggTrade"],"id":1}',
        '{"method":"LIST_SUBSCRIPTIONS","id":"two"}',
        '{"method":"GET_PROPERTY","params":["combined"],"id":3}',
        '{"method":"UNSUBSCRIBE","params":["nosuch@aggTrade"],"id":4}',
        "{", '{"method":"NOPE","id":5}',
    ]  # fmt: skip

    async def answers(base: str) -> list[str]:
        async with connect(base + "/market/ws/0") as socket:
            out = []
            for word in words:
                await socket.send(word)
                out.append(str(await socket.recv()))
            return out

    ours, theirs = asyncio.run(answers(desk.paper.ws)), asyncio.run(answers(desk.upstream.ws))
    assert ours == theirs and json.loads(ours[1]) == {"result": ["nosuch@aggTrade"], "id": "two"}


def test_answers_about_the_market_are_upstreams_byte_for_byte(desk: Desk) -> None:
    desk.upstream.post("/venue/v1/pause")
    try:
        for path in (
            "time", "exchangeInfo", "depth?symbol=ETHUSDT&limit=50", "premiumIndex",
            "klines?symbol=BTCUSDT&interval=5m&limit=99", "aggTrades?symbol=SOLUSDT&limit=9",
            "ticker/24hr", "ticker/bookTicker?symbol=BTCUSDT", "fundingRate", "trades?limit=1",
            "depth?symbol=NOPE", "klines?symbol=BTCUSDT&interval=1s",
        ):  # fmt: skip
            ours, theirs = (raw(v.url + V1 + path) for v in (desk.paper, desk.upstream))
            assert ours[:2] == theirs[:2], path
            assert "X-MBX-USED-WEIGHT-1M" in ours[2]
            assert ours[2]["Content-Type"] == theirs[2]["Content-Type"]
    finally:
        desk.upstream.post("/venue/v1/resume")


def test_the_other_houses_are_answered_here(desk: Desk) -> None:
    """python-binance pings spot before anything else; upstream has no such house."""
    answers = {
        path: json.loads(raw(desk.paper.url + path)[1])
        for path in ("/api/v3/ping", "/api/v3/time", "/sapi/v1/system/status")
    }
    theirs = desk.upstream.get("/fapi/v1/time")["serverTime"]
    assert answers["/api/v3/ping"] == {} and answers["/sapi/v1/system/status"]["status"] == 0
    assert abs(answers["/api/v3/time"]["serverTime"] - theirs) < 3_600_000  # the same day's


def test_orders_are_filled_at_upstreams_prices_and_everybody_is_told(desk: Desk) -> None:
    async def traded() -> list[Any]:
        url = f"{desk.paper.ws}/private/ws/{user_key(desk.paper)}"
        async with connect(url) as socket:
            # the first order opens the line; then the market stands still
            assert desk.order("symbol=SOLUSDT&side=BUY&type=MARKET&quantity=1")[0] == 200
            desk.upstream.post("/venue/v1/pause")
            try:
                book = desk.upstream.get(f"{V1}ticker/bookTicker?symbol=SOLUSDT")
                line = f"SOLUSDT {book['lastUpdateId']}"
                await asyncio.sleep(0.5)  # what was under way has arrived
                status, order = desk.order("symbol=SOLUSDT&side=SELL&type=MARKET&quantity=0.5")
                assert (status, order["status"]) == (200, "FILLED"), line
                [*_, fill] = desk.signed("GET", V1 + "userTrades", "symbol=SOLUSDT")[1]
                assert (fill["price"], fill["qty"]) == (book["bidPrice"], "0.5"), line
            finally:
                desk.upstream.post("/venue/v1/resume")
            heard = []
            while len([e for e in heard if e["e"] == "ORDER_TRADE_UPDATE"]) < 4:
                heard.append(json.loads(await asyncio.wait_for(socket.recv(), DEADLINE_S)))
            return heard

    heard = asyncio.run(traded())
    states = [e["o"]["X"] for e in heard if e["e"] == "ORDER_TRADE_UPDATE"]
    assert states == ["NEW", "FILLED", "NEW", "FILLED"]
    assert [e["e"] for e in heard][1:4] == ["TRADE_LITE", "ACCOUNT_UPDATE", "ORDER_TRADE_UPDATE"]
    assert desk.positions()["SOLUSDT"][0] == "0.5"
    assert money(desk.ledger()) == wallet(desk)


def test_a_stop_is_triggered_by_upstreams_trades(desk: Desk) -> None:
    """A target on one side and a stop on the other: the market takes one of them."""
    assert desk.order("symbol=ETHUSDT&side=BUY&type=MARKET&quantity=0.1")[0] == 200
    newest = desk.upstream.get(f"{V1}aggTrades?symbol=ETHUSDT&limit=1")[0]["a"]
    last = desk.last("ETHUSDT")
    levels = {"STOP_MARKET": last * D("0.9985"), "TAKE_PROFIT_MARKET": last * D("1.0015")}
    levels = {kind: level.quantize(D("0.01")) for kind, level in levels.items()}
    for kind, level in levels.items():
        query = f"symbol=ETHUSDT&side=SELL&type={kind}&triggerPrice={level}&closePosition=true"
        assert desk.order(query + "&algoType=CONDITIONAL", "algoOrder")[0] == 200
    until(lambda: "ETHUSDT" not in desk.positions(), "no stop was triggered")
    rows = desk.upstream.get(f"{V1}aggTrades?symbol=ETHUSDT&fromId={newest}&limit=1000")
    low, high = levels.values()
    assert any(not low < D(row["p"]) < high for row in rows)
    _, algos = desk.signed("GET", V1 + "allAlgoOrders", "symbol=ETHUSDT")
    assert sorted(a["algoStatus"] for a in algos[-2:]) == ["EXPIRED", "FINISHED"]
    assert money(desk.ledger()) == wallet(desk)


def bracket(desk: Desk) -> tuple[D, D, int]:
    """A long position in BTC between two stops: (low, high, upstream's newest trade before)."""
    desk.order("symbol=BTCUSDT&side=BUY&type=MARKET&quantity=0.010")
    newest = desk.upstream.get(f"{V1}aggTrades?symbol=BTCUSDT&limit=1")[0]["a"]
    last = desk.last("BTCUSDT")
    low, high = ((last * D(x)).quantize(D("0.1")) for x in ("0.9985", "1.0015"))
    for kind, level in (("STOP_MARKET", low), ("TAKE_PROFIT_MARKET", high)):
        query = f"symbol=BTCUSDT&side=SELL&type={kind}&triggerPrice={level}&closePosition=true"
        desk.order(query + "&algoType=CONDITIONAL", "algoOrder")
    return low, high, newest


def test_ccxt_trades_on_it_with_nothing_changed_but_its_urls(desk: Desk) -> None:
    symbol = "SOL/USDT:USDT"

    async def body(client: ccxt.binanceusdm) -> None:
        await client.load_markets()
        [before] = await client.fetch_positions([symbol])
        made = await client.create_order(symbol, "market", "buy", 0.7)
        order = await client.fetch_order(made["id"], symbol)
        assert (order["status"], order["filled"]) == ("closed", 0.7)
        [after] = await client.fetch_positions([symbol])
        assert after["contracts"] == pytest.approx(before["contracts"] + 0.7)
        assert len(await client.fetch_ohlcv(symbol, "1m", limit=50)) == 50
        with pytest.raises(ccxt.ExchangeError, match="-2021"):
            trigger = client.price_to_precision(symbol, order["average"] * 1.1)
            await client.create_order(
                symbol, "market", "sell", 0.7, None, {"stopLossPrice": trigger, "reduceOnly": True}
            )

    trade_with(desk.paper, body)


def test_an_outage_fills_nothing_and_afterwards_the_crossed_stop_fires_where_it_was_crossed(
    desk: Desk,
) -> None:
    for _ in range(5):  # the market may take a stop before the outage begins
        low, high, newest = bracket(desk)
        desk.between.leave()
        until(lambda: not desk.paper.get("/venue/v1/status")["live"], "still live")
        if len(desk.signed("GET", V1 + "openAlgoOrders", "symbol=BTCUSDT")[1]) == 2:
            break
        desk.between.refuse(False)
        until(lambda: "BTCUSDT" in desk.paper.get("/venue/v1/status")["live"], "not back")
    before = desk.ledger()

    def crossing() -> list[Any]:
        path = f"{V1}aggTrades?symbol=BTCUSDT&fromId={newest + 1}&limit=1000"
        return [r for r in desk.upstream.get(path) if not low < D(r["p"]) < high]

    first = until(crossing, "the market never moved")[0]
    status, body, _ = raw(desk.paper.url + V1 + "depth?symbol=BTCUSDT")
    assert (status, json.loads(body)["code"]) == (503, -1001)
    status, body = desk.order("symbol=BTCUSDT&side=BUY&type=MARKET&quantity=0.010")
    assert (status, body["code"]) == (503, -1008)
    assert desk.positions()["BTCUSDT"][0] != "0.000" and desk.ledger() == before
    desk.between.refuse(False)
    until(lambda: "BTCUSDT" not in desk.positions(), "the missed stop never fired")
    [fill, *_] = [e for e in desk.ledger()[len(before) :] if e["type"] == "trade"]
    assert (fill["side"], D(fill["price"])) == ("SELL", D(first["p"]))
    assert desk.paper.get("/venue/v1/status")["trades_caught_up"] > 0
    assert money(desk.ledger()) == wallet(desk)


def test_a_kill_loses_nothing_and_the_account_answers_before_upstream_is_back(desk: Desk) -> None:
    assert desk.order("symbol=ETHUSDT&side=SELL&type=MARKET&quantity=0.3")[0] == 200
    ledger, held = desk.ledger(), desk.positions()
    assert D(held["ETHUSDT"][0]) < 0
    desk.paper.process.kill()
    desk.paper.process.communicate(timeout=DEADLINE_S)
    desk.between.leave()
    desk.paper = desk.start()
    again = desk.ledger()
    assert again[: len(ledger)] == ledger and money(again) == wallet(desk)
    assert desk.positions() == held
    told = desk.paper.get("/venue/v1/status")
    assert told["live"] == [] and set(held) <= set(told["waiting"])
    desk.between.refuse(False)
    until(lambda: set(held) <= set(desk.paper.get("/venue/v1/status")["live"]), "not followed")
    assert desk.order("symbol=ETHUSDT&side=BUY&type=MARKET&quantity=0.3")[0] == 200
    assert "ETHUSDT" not in desk.positions()


def test_no_key_and_no_signature_ever_went_upstream(desk: Desk) -> None:
    key = user_key(desk.paper)
    request = urllib.request.Request(
        f"{desk.paper.url}{V1}time?signature=0123456789abcdef&listenKey={key}",
        headers={"X-MBX-APIKEY": "test"},
    )
    with urllib.request.urlopen(request, timeout=DEADLINE_S) as answer:
        assert answer.status == 200
    assert raw(desk.paper.url + V1 + f"ticker/price?signature={key}")[0] == 200
    heard = bytes(desk.between.heard).lower()
    assert b"get /fapi/v1/aggtrades?" in heard and b"subscribe" not in heard  # frames are masked
    for word in (b"apikey", b"signature", b"listenkey", b"timestamp", key.encode(), b"/private"):
        assert word not in heard, word


@pytest.mark.parametrize(
    ("flags", "words"),
    [(("--upstream", "http://127.0.0.1:9"), "gives no listing"), ((), "holds a paper account")],
)
def test_what_cannot_start_says_so_in_one_sentence(
    desk: Desk, tmp_path: Path, flags: tuple[str, ...], words: str
) -> None:
    folder = tmp_path / "new"
    if not flags:  # a simulated market in the folder of a paper account
        folder.mkdir()
        (folder / "world.json").write_bytes((desk.folder / "paper" / "world.json").read_bytes())
    argv = [sys.executable, "-m", "venue.main", "--port", "0", "--state", str(folder), *flags]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=DEADLINE_S)
    assert (done.returncode, done.stdout) == (1, "")
    assert words in done.stderr and done.stderr.count("\n") == 1
    assert bool(flags) is not folder.exists()
