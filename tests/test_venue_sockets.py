"""The hub without sockets: addresses, the bound on unread bytes, user events, and the shortcut."""

from __future__ import annotations

import pytest

from venue import sockets
from venue.connection import parse_url
from venue.sockets import BUFFER_BYTES_MAX, Hub
from venue.symbols import listing


class Pipe:
    """A transport that counts; `stuck` bytes wait in it."""

    def __init__(self, stuck: int = 0) -> None:
        self.stuck, self.aborted, self.data = stuck, False, b""
        self.closed = False

    def write(self, data: bytes) -> None:
        self.data += data

    def get_write_buffer_size(self) -> int:
        return self.stuck

    def abort(self) -> None:
        self.aborted = True

    def close(self) -> None:
        self.closed = True

    def is_closing(self) -> bool:
        return self.aborted or self.closed


@pytest.mark.parametrize(
    ("path", "query", "route", "combined", "streams", "keys"),
    [
        ("/market/ws/btcusdt@aggTrade", "", "market", False, ("btcusdt@aggTrade",), []),
        ("/public/stream", "streams=a@bookTicker/b@bookTicker", "public", True,
         ("a@bookTicker", "b@bookTicker"), []),
        ("/public/ws/0", "", "public", False, (), []),
        ("/ws", "", "legacy", False, (), []),
        ("/private/ws/KEY", "", "private", False, (), ["KEY"]),
        ("/private/ws", "listenKey=KEY&events=ACCOUNT_UPDATE", "private", False, (), ["KEY"]),
        ("/private/stream", "listenKey=A&listenKey=B", "private", True, (), ["A", "B"]),
    ],
)  # fmt: skip
def test_an_address_says_route_form_streams_and_keys(
    path: str, query: str, route: str, combined: bool, streams: tuple[str, ...], keys: list[str]
) -> None:
    found = parse_url(path, query)
    assert found is not None
    assert (found.route, found.combined, found.streams) == (route, combined, streams)
    assert list(found.listen_keys) == keys


@pytest.mark.parametrize("path", ["/", "/market", "/market/sw", "/fapi/v1/time"])
def test_other_paths_are_no_streams(path: str) -> None:
    assert parse_url(path, "") is None


@pytest.mark.parametrize(("extra", "cut"), [(-1, False), (0, False), (1, True)])
def test_a_client_that_does_not_read_is_cut_off_past_the_bound(extra: int, cut: bool) -> None:
    hub, pipe = Hub(listing(2), True), Pipe(BUFFER_BYTES_MAX - 10)
    address = parse_url("/market/ws", "")
    assert address is not None
    connection = hub.add(address, "/market/ws", pipe)
    assert hub.send(connection, b"x" * (10 + extra)) is not cut
    assert pipe.aborted == cut and connection.open is not cut and hub.cut_off == int(cut)
    assert [(c["open"], c["cut_off"]) for c in hub.report()] == [(not cut, cut)]


def test_user_events_go_to_the_live_key_and_only_those_asked_for() -> None:
    hub = Hub(listing(1), True)
    pipes = {}
    for query in ("listenKey=K", "listenKey=K&events=TRADE_LITE", "listenKey=OLD"):
        address = parse_url("/private/ws", query)
        assert address is not None
        pipes[query] = Pipe()
        hub.add(address, query, pipes[query])
    hub.tell({"e": "ACCOUNT_UPDATE"}, "K")
    assert [bool(p.data) for p in pipes.values()] == [True, False, False]


def test_names_of_every_stream_stay_within_one_frame() -> None:
    hub = sockets.Hub(listing(1000), False)
    assert max(len(name) for name in hub.index) < 40
