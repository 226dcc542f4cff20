"""What stands ready before the lease is ours: the stream is open and the rules are known."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from websockets.asyncio.server import ServerConnection, serve

from risk import ready
from risk.budget import Budget
from risk.events import Done, Refused, Result
from risk.ready import Ready

INFO = {
    "rateLimits": [
        {"rateLimitType": "REQUEST_WEIGHT", "interval": "MINUTE", "intervalNum": 1, "limit": 99}
    ],
    "symbols": [
        {
            "symbol": "AUSDT",
            "filters": [
                {"filterType": "PRICE_FILTER", "tickSize": "1", "minPrice": "1", "maxPrice": "9"},
                {"filterType": "LOT_SIZE", "stepSize": "1", "minQty": "1", "maxQty": "9"},
            ],
        }
    ],
}


class Rest:
    """An exchange that knows rules and listen keys; `away` many answers fail first."""

    def __init__(self, away: int = 0) -> None:
        self.budget, self.throttled, self.away = Budget(), False, away
        self.asked: list[str] = []

    async def calm(self) -> None:
        return

    async def fetch(self, method: str, path: str) -> Result:
        self.asked.append(path)
        if "listenKey" in path:
            return Done({"listenKey": "k"})
        self.away -= 1
        if self.away >= 0:
            return Refused(0, "away")
        return Done(INFO if "exchangeInfo" in path else [])


class Hearer:
    def __init__(self) -> None:
        self.told: list[Any] = []

    def user_opened(self) -> None:
        self.told.append("open")

    def pushed(self, frame: dict[str, Any]) -> None:
        self.told.append(frame["e"])

    def rules_read(self, instruments: dict[str, Any]) -> None:
        self.told.append(sorted(instruments))


class Stream:
    """The other end of the account's stream."""

    def __init__(self) -> None:
        self.sockets: list[ServerConnection] = []

    async def handle(self, socket: ServerConnection) -> None:
        self.sockets.append(socket)
        await socket.wait_closed()

    async def say(self, event: str) -> None:
        await self.sockets[-1].send(json.dumps({"e": event}))
        await asyncio.sleep(0.05)


def run(rest: Rest, work: Callable[[Ready, Stream], Awaitable[None]]) -> None:
    async def main() -> None:
        stream = Stream()
        async with serve(stream.handle, "127.0.0.1", 0) as server:
            port = server.sockets[0].getsockname()[1]
            made = Ready(rest, f"ws://127.0.0.1:{port}")  # type: ignore[arg-type]
            made.start(1.0)
            try:
                await asyncio.sleep(0.2)
                await work(made, stream)
            finally:
                await made.close()

    asyncio.run(main())


def test_a_session_finds_the_stream_open_and_the_rules_read() -> None:
    rest = Rest()

    async def work(made: Ready, stream: Stream) -> None:
        assert list(made.instruments) == ["AUSDT"] and rest.budget.weight_max == 99
        await stream.say("EARLIER")  # nobody holds: the snapshot will say it
        hearer = Hearer()
        asked = len(rest.asked)
        made.attach(hearer)
        assert hearer.told == ["open"] and len(rest.asked) == asked
        await stream.say("ORDER")
        made.detach()
        await stream.say("LATER")
        assert hearer.told == ["open", "ORDER"]

    run(rest, work)


def test_a_session_that_begins_while_the_stream_is_away_is_told_when_it_is_back() -> None:
    async def work(made: Ready, stream: Stream) -> None:
        await stream.sockets[-1].close()
        await asyncio.sleep(0.02)
        hearer = Hearer()
        made.attach(hearer)
        assert hearer.told == []
        await asyncio.sleep(0.4)
        assert hearer.told == ["open"] and len(stream.sockets) == 2

    run(Rest(), work)


@pytest.mark.parametrize("away", [1, 2, 5])
def test_rules_are_asked_for_until_they_are_told_whole(
    monkeypatch: pytest.MonkeyPatch, away: int
) -> None:
    monkeypatch.setattr(ready, "RETRY_S", 0.01)

    async def work(made: Ready, stream: Stream) -> None:
        assert list(made.instruments) == ["AUSDT"]

    run(Rest(away), work)


def test_rules_that_change_reach_whoever_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ready, "RULES_S", 0.05)

    async def work(made: Ready, stream: Stream) -> None:
        hearer = Hearer()
        made.attach(hearer)
        await asyncio.sleep(0.2)
        assert hearer.told[0] == "open" and hearer.told[1] == ["AUSDT"]

    run(Rest(), work)
