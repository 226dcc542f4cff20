"""The relay before the exchange: it holds bytes back, and loses and reorders none."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
import time
from collections.abc import Iterator

import pytest

from maintenance.chaos_relay import Relay

HEAD = b"GET %s HTTP/1.1\r\n\r\n"


class Far:
    """The far end: keeps what comes, says back what it is asked, in a thread of its own."""

    def __init__(self) -> None:
        self.heard: list[bytes] = []
        self.ended = 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with client, contextlib.suppress(OSError):
            while data := client.recv(1 << 16):
                self.heard.append(data)
                client.sendall(b"heard " + data)
        self.ended += 1

    def close(self) -> None:
        self._listener.close()


@pytest.fixture
def line() -> Iterator[tuple[Relay, Far]]:
    far = Far()
    with Relay(far.port) as relay:
        yield relay, far
    far.close()


def near(relay: Relay, path: bytes = b"/fapi/v1/order") -> socket.socket:
    """A client that has said its first line and was answered."""
    client = socket.create_connection(("127.0.0.1", relay.port), 5)
    client.sendall(HEAD % path)
    return client


def said(client: socket.socket, timeout_s: float = 5.0) -> bytes:
    client.settimeout(timeout_s)
    try:
        return client.recv(1 << 16)
    except TimeoutError:
        return b""


def test_bytes_pass_until_they_are_held_and_all_of_them_after_it(line: tuple[Relay, Far]) -> None:
    relay, far = line
    with near(relay) as client:
        assert said(client).startswith(b"heard GET")
        relay.hold()
        for number in range(20):
            client.sendall(b"%02d" % number)
        assert said(client, 0.2) == b"" and len(far.heard) == 1
        relay.release()
        end_s = time.monotonic() + 5
        while len(b"".join(far.heard[1:])) < 40 and time.monotonic() < end_s:
            said(client, 0.05)
        assert b"".join(far.heard[1:]) == b"".join(b"%02d" % number for number in range(20))
        assert relay.waited >= 1


def test_a_request_arrives_late_though_its_sender_has_given_up(line: tuple[Relay, Far]) -> None:
    relay, far = line
    relay.hold()
    near(relay).close()
    time.sleep(0.2)
    assert far.heard == []
    relay.release()
    end_s = time.monotonic() + 5
    while not far.ended and time.monotonic() < end_s:
        time.sleep(0.01)
    assert far.heard == [HEAD % b"/fapi/v1/order"]


@pytest.mark.parametrize(
    ("path", "held"), [(b"/market/ws/x", True), (b"/public/ws/x", False), (b"/fapi/v1/time", False)]
)
def test_only_connections_of_the_named_path_are_held(
    line: tuple[Relay, Far], path: bytes, held: bool
) -> None:
    relay, _ = line
    relay.hold("/market")
    with near(relay, path) as client:
        assert (said(client, 0.3) == b"") is held
        relay.release()
        if held:
            assert said(client).startswith(b"heard GET /market")


def test_a_far_end_that_is_away_hangs_up_on_the_client() -> None:
    with socket.create_server(("127.0.0.1", 0)) as gone:
        port = gone.getsockname()[1]
    with Relay(port) as relay, near(relay) as client:
        client.settimeout(5)
        with contextlib.suppress(ConnectionResetError):
            assert client.recv(1) == b""


def test_a_relay_that_is_closed_while_it_holds_ends_at_once(line: tuple[Relay, Far]) -> None:
    relay, _ = line
    client = near(relay)
    said(client)
    relay.hold()
    client.sendall(b"x")
    started_s = time.monotonic()
    asyncio.run_coroutine_threadsafe(relay._close(), relay._loop).result(5)
    assert time.monotonic() - started_s < 1.0
    client.close()
