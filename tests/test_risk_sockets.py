"""Risk's streams: how they end."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest
from websockets.http11 import Request
from websockets.server import ServerProtocol

from risk import sockets
from risk.events import Done
from risk.sockets import Books, Marks, UserStream


async def mute(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """A WebSocket server that says hello, and never a word again: not even goodbye."""
    protocol = ServerProtocol()
    protocol.receive_data(await reader.readuntil(b"\r\n\r\n"))
    asked = protocol.events_received()[0]
    assert isinstance(asked, Request)
    protocol.send_response(protocol.accept(asked))
    for data in protocol.data_to_send():
        writer.write(data)
    await reader.read()  # all that the client says, until it hangs up
    writer.close()


class Keys:
    """An exchange that gives listen keys."""

    async def calm(self) -> None:
        return

    async def fetch(self, *_: Any) -> Done:
        return Done({"listenKey": "k"})


def stream(kind: str, url: str) -> UserStream | Marks | Books:
    if kind == "user":
        keys: Any = Keys()
        return UserStream(keys, url, 1.0, lambda: None, lambda frame: None)
    if kind == "marks":
        return Marks(url, lambda marks: None)
    books = Books(url, lambda quote: None)
    books.want(["BTCUSDT"])
    return books


@pytest.mark.parametrize("kind", ["user", "marks", "books"])
def test_an_exchange_that_never_says_goodbye_does_not_hold_up_the_end_of_a_session(
    kind: str,
) -> None:
    async def work() -> float:
        server = await asyncio.start_server(mute, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        task = asyncio.create_task(stream(kind, f"ws://127.0.0.1:{port}").run())
        await asyncio.sleep(0.3)
        assert not task.done()
        task.cancel()
        started_s = time.monotonic()
        await asyncio.gather(task, return_exceptions=True)
        server.close()
        return time.monotonic() - started_s

    # websockets itself would wait for ten seconds, as long as the whole drain may take
    assert asyncio.run(work()) < 5 * sockets.CLOSE_S
