"""A desk for tests of risk: a state ready to trade, and events as the exchange tells them."""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

from msgspec import structs

from risk.events import (
    Cancel,
    Commit,
    CommitFailed,
    Done,
    Effect,
    Event,
    Now,
    Pushed,
    Query,
    Refused,
    Replied,
    Request,
    Result,
    Send,
    SignalRead,
    Tick,
)
from risk.gate import Limits, Quote
from risk.instruments import Bracket, Instrument
from risk.portfolio import Money
from risk.state import State
from risk.step import step
from streams import Keys, prefix3

KEYS = Keys("sim", "main")
MARKET_MS = 1_795_000_000_000


def replace(made: Any, **changes: object) -> Any:
    """Of a record of either kind."""
    kind = dataclasses if dataclasses.is_dataclass(made) else structs
    return kind.replace(made, **changes)


def instrument(symbol: str = "BTCUSDT") -> Instrument:
    return Instrument(
        symbol=symbol,
        status="TRADING",
        tick=Decimal("0.1"),
        price_min=Decimal("0.1"),
        price_max=Decimal("1000000"),
        step=Decimal("0.001"),
        qty_min=Decimal("0.001"),
        qty_max=Decimal("1000"),
        market_qty_max=Decimal("500"),
        notional_min=Decimal("50"),
        up=Decimal("1.05"),
        down=Decimal("0.95"),
        brackets=(
            Bracket(Decimal("300000"), 100, Decimal("0.004")),
            Bracket(Decimal("800000"), 50, Decimal("0.005")),
        ),
    )


def signal_fields(**over: str) -> dict[str, str]:
    made = {
        "id": "s1",
        "symbol": "BTCUSDT",
        "side": "buy",
        "price": "1000",
        "stop": "990",
        "target": "1020",
        "confidence": "0.6",
        "quality": "1",
        "rule": "test",
        "timeframe": "1m",
        "exch_ns": str(MARKET_MS * 1_000_000),
        "expires_ms": str(MARKET_MS + 60_000),
    }
    return made | over


@dataclass
class Desk:
    """Steps a State and keeps every effect; commits succeed unless told otherwise."""

    symbols: Iterable[str] = ("BTCUSDT", "ETHUSDT", "SOLUSDT", "XRPUSDT", "ADAUSDT")
    limits: Limits = field(default_factory=Limits)
    boot_ms: float = 10_000.0
    market_ms: float = float(MARKET_MS)
    commit_outcome: str = "ok"
    effects: list[Effect] = field(default_factory=list)
    entries: int = 0
    trades: int = 0

    def __post_init__(self) -> None:
        self.state = State(KEYS, prefix3(KEYS), "main", epoch=1, limits=self.limits)
        for symbol in self.symbols:
            self.state.instruments[symbol] = instrument(symbol)
            self.state.marks[symbol] = Decimal("1000")
            self.state.prepared[symbol] = 3
        self.quote_all()
        self.state.money = Money(wallet=Decimal("10000"))
        self.state.armed = self.state.reconciled = True
        self.state.last_reconcile_ms = MARKET_MS

    def quote_all(self, bid: str = "999.9", ask: str = "1000") -> None:
        for symbol in self.symbols:
            self.state.quotes[symbol] = Quote(Decimal(bid), Decimal(ask), self.boot_ms)

    @property
    def now(self) -> Now:
        return Now(self.boot_ms, self.market_ms, self.boot_ms + 1_800.0, 1.0, int(self.market_ms))

    def do(self, event: Event) -> list[Effect]:
        """One step; returns what was carried out, `then` of written commits included."""
        return self._carry(step(self.state, event, self.now))

    def _carry(self, effects: Iterable[Effect]) -> list[Effect]:
        done: list[Effect] = []
        for effect in effects:
            done.append(effect)
            self.effects.append(effect)
            if isinstance(effect, Commit):
                if self.commit_outcome == "ok":
                    done += self._carry(effect.then)
                else:
                    outcome = self.commit_outcome
                    done += self._carry(step(self.state, CommitFailed(effect, outcome), self.now))
        return done

    def wait(self, ms: float) -> list[Effect]:
        """Time passes on both clocks, then a tick."""
        self.boot_ms += ms
        self.market_ms += ms
        return self.do(Tick())

    def signal(self, **over: str) -> list[Effect]:
        self.entries += 1
        return self.do(SignalRead(f"{self.entries}-0", signal_fields(**over)))

    def reply(self, request: Request, result: Result) -> list[Effect]:
        return self.do(Replied(request, result, self.boot_ms, self.boot_ms))

    # --- the exchange's words ---

    def fill(
        self,
        request: Request,
        qty: str,
        price: str,
        status: str = "FILLED",
        realised: str = "0",
        executed: str = "",
    ) -> list[Effect]:
        """An execution of an order that was sent, on the user stream; `executed` is of all."""
        self.trades += 1
        p = request.params
        client_id = p.get("newClientOrderId") or p["clientAlgoId"]
        o: dict[str, Any] = {
            "s": p["symbol"],
            "c": client_id,
            "S": p["side"],
            "o": p["type"],
            "ot": p["type"],
            "x": "TRADE",
            "X": status,
            "i": order_id(request),
            "l": qty,
            "z": executed or qty,
            "L": price,
            "n": "0.05",
            "N": "USDT",
            "T": int(self.market_ms),
            "t": self.trades,
            "m": False,
            "rp": realised,
            "cp": "closePosition" in p,
        }
        return self.do(Pushed({"e": "ORDER_TRADE_UPDATE", "E": 1, "T": 1, "o": o}))

    def algo(self, request: Request, status: str, order_id: str = "") -> list[Effect]:
        """A step of a resident order, on the user stream."""
        o = {"caid": request.params["clientAlgoId"], "aid": 77, "X": status, "ai": order_id}
        o |= {"s": request.params["symbol"]}
        return self.do(Pushed({"e": "ALGO_UPDATE", "T": int(self.market_ms), "E": 1, "o": o}))

    def told_wallet(self, balance: str) -> list[Effect]:
        """The wallet after an event, on the user stream."""
        account = {"m": "ORDER", "B": [{"a": "USDT", "wb": balance, "bc": "0"}], "P": []}
        ms = int(self.market_ms)
        return self.do(Pushed({"e": "ACCOUNT_UPDATE", "T": ms, "E": ms, "a": account}))

    def accepted(self, request: Request) -> list[Effect]:
        """The reply to a resident order that was placed."""
        body = {
            "algoId": 77,
            "clientAlgoId": request.params["clientAlgoId"],
            "algoStatus": "NEW",
            "createTime": int(self.market_ms),
        }
        return self.reply(request, Done(body))

    def done(self, request: Request, status: str, executed: str) -> list[Effect]:
        """The reply to an order, RESULT."""
        body = {"orderId": 42, "status": status, "executedQty": executed}
        return self.reply(request, Done(body | {"updateTime": int(self.market_ms)}))

    def open(self, symbol: str = "BTCUSDT", **over: str) -> tuple[Send, Send, Send]:
        """A protected position from a signal: its entry, stop and target requests."""
        done = self.signal(id=f"open-{symbol}-{self.entries}", symbol=symbol, **over)
        entry = sends(done, "entry")[0]
        done = self.fill(entry, entry.params["quantity"], "1000")
        stop, target = sends(done, "stop")[0], sends(done, "target")[0]
        self.accepted(stop)
        self.accepted(target)
        return entry, stop, target


def order_id(request: Request) -> int:
    """The exchange's id of an order that was sent."""
    client_id = request.params.get("newClientOrderId") or request.params["clientAlgoId"]
    return 1_000_000 + zlib.crc32(client_id.encode()) % 1_000_000


def sends(effects: Iterable[Effect], purpose: str = "") -> list[Send]:
    return [e for e in effects if isinstance(e, Send) and purpose in ("", e.purpose)]


def queries(effects: Iterable[Effect], purpose: str = "query") -> list[Query]:
    return [e for e in effects if isinstance(e, Query) and e.purpose.split(":")[0] == purpose]


def cancels(effects: Iterable[Effect]) -> list[Cancel]:
    return [e for e in effects if isinstance(e, Cancel)]


def ops(effects: Iterable[Effect], name: str = "", key: str = "") -> list[tuple[Any, ...]]:
    """Operations of all commits among the effects."""
    made = [op for e in effects if isinstance(e, Commit) for op in e.ops]
    return [op for op in made if name in ("", op[0]) and key in ("", op[1])]


def decisions(effects: Iterable[Effect]) -> list[dict[str, str]]:
    return [op[2] for op in ops(effects, "xadd", KEYS.decisions)]


NOT_FOUND = Refused(-2013, "Order does not exist.")
