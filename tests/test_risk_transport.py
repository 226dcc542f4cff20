"""Risk's HTTP: an answer is whole or missing, and what may have arrived is never sent again."""

from __future__ import annotations

import asyncio
import base64
import gzip
import random
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
import uvloop
from certificates import server_context
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ed25519, padding, rsa

from risk import transport
from risk.exchange import encode, sign
from risk.transport import Ask, Connection, Http, Lost, Told, Unsent, unpack

GET, POST = Ask("GET", "/a?b=1", {"X-Key": "k"}), Ask("POST", "/a", {}, "b=1")
HELLO = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nX-Weight: 7\r\n\r\nhello"
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhe\r\n3\r\nllo\r\n0\r\n\r\n"
PACKED = gzip.compress(b"hello", mtime=0)
ZIPPED = (
    b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % len(PACKED)
) + PACKED
INTERIM = b"HTTP/1.1 100 Continue\r\n\r\n" + HELLO
NOTHING = b"HTTP/1.1 204 No Content\r\n\r\n"


class Far:
    """The other end: `answers` are written in turn, each in `pieces`; None closes instead."""

    def __init__(self, *answers: bytes | None, pieces: int = 1, pause_s: float = 0.0) -> None:
        self.answers, self.pieces, self.pause_s = list(answers), pieces, pause_s
        self.asked: list[bytes] = []
        self.connections = 0
        self.after = b""  # written behind each answer

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                length = 0
                for line in head.lower().split(b"\r\n"):
                    if line.startswith(b"content-length:"):
                        length = int(line.split(b":")[1])
                self.asked.append(head + await reader.readexactly(length))
                answer = self.answers.pop(0) if self.answers else None
                if answer is None:
                    break
                await asyncio.sleep(self.pause_s)
                cuts = sorted(random.randrange(len(answer) + 1) for _ in range(self.pieces - 1))
                for start, end in zip([0, *cuts], [*cuts, len(answer)], strict=True):
                    writer.write(answer[start:end])
                    await writer.drain()
                    await asyncio.sleep(0)
                writer.write(self.after)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass  # the client left: so do we
        finally:
            writer.close()


def served(far: Far, work: Callable[[Http], Awaitable[Any]], timeout_s: float = 2.0) -> Any:
    async def main() -> Any:
        server = await asyncio.start_server(far.serve, "127.0.0.1", 0)
        http = Http(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", timeout_s)
        try:
            return await work(http)
        finally:
            await http.close()
            server.close()

    return uvloop.run(main())


async def each(http: Http, asks: list[Ask]) -> list[Told | str]:
    """The answer to each, one after another; errors by their names."""
    made: list[Told | str] = []
    for one in asks:
        try:
            made.append(await http.request(lambda one=one: one))  # type: ignore[misc]
        except (OSError, TimeoutError) as error:
            made.append(type(error).__name__)
    return made


@pytest.mark.parametrize("answer", [HELLO, CHUNKED, ZIPPED, INTERIM])
@pytest.mark.parametrize("pieces", [1, 2, 40])
def test_an_answer_is_read_however_it_is_framed_and_cut(answer: bytes, pieces: int) -> None:
    far = Far(*[answer] * 4, pieces=pieces)
    told = served(far, lambda http: each(http, [GET, POST, GET, POST]))
    assert [t.body for t in told] == [b"hello"] * 4 and far.connections == 1
    assert far.asked[0].startswith(b"GET /a?b=1 HTTP/1.1\r\nHost: 127.0.0.1")
    assert b"\r\nX-Key: k\r\n" in far.asked[0] and far.asked[1].endswith(b"\r\n\r\nb=1")


def test_an_answer_without_a_body_ends_with_its_head() -> None:
    far = Far(NOTHING, HELLO)
    first, second = served(far, lambda http: each(http, [POST, GET]))
    assert (first.status, first.body) == (204, b"") and second.headers["x-weight"] == "7"


def test_many_at_once_have_a_connection_each_and_keep_a_bounded_number() -> None:
    count = transport.KEPT_MAX + 5
    far = Far(*[HELLO] * (count + 1), pause_s=0.05)

    async def work(http: Http) -> int:
        await asyncio.gather(*(http.request(lambda: POST) for _ in range(count)))
        kept = len(http._kept)
        await http.request(lambda: POST)
        return kept

    assert served(far, work) == transport.KEPT_MAX and far.connections == count


def test_a_get_on_a_dead_connection_is_asked_again_and_a_post_never_is() -> None:
    far = Far(HELLO, None, HELLO)
    told = served(far, lambda http: each(http, [POST, GET]))
    assert [t.body for t in told] == [b"hello"] * 2 and len(far.asked) == 3
    far = Far(HELLO, None, HELLO)
    told = served(far, lambda http: each(http, [GET, POST]))
    assert told[1] == "Lost" and len(far.asked) == 2


def test_a_get_is_not_asked_again_on_a_fresh_connection() -> None:
    far = Far(None, HELLO)
    assert served(far, lambda http: each(http, [GET])) == ["Lost"]
    assert len(far.asked) == 1


def test_a_connection_that_was_idle_for_long_is_not_used_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(transport, "IDLE_S", -1.0)
    far = Far(HELLO, HELLO)
    served(far, lambda http: each(http, [POST, POST]))
    assert far.connections == 2


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nhello",
        b"HTTP/1.1 200 OK\r\n\r\nuntil the end",
        b"nothing of that kind\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        ZIPPED.replace(PACKED, PACKED[::-1]),
        b"HTTP/1.1 200 OK\r\n" + b"".join(b"H%d: 1\r\n" % n for n in range(300)) + b"\r\n",
    ],
)
def test_what_is_no_whole_answer_is_lost(answer: bytes) -> None:
    class Once(Far):
        async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(answer)
            await writer.drain()
            writer.close()

    assert served(Once(), lambda http: each(http, [POST])) == ["Lost"]


def test_an_answer_beyond_the_bound_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    for bound, expected in ((5, Told), (4, str)):
        monkeypatch.setattr(transport, "BODY_BYTES_MAX", bound)
        for answer in (HELLO, CHUNKED):
            (told,) = served(Far(answer), lambda http: each(http, [POST]))
            assert isinstance(told, expected)
    monkeypatch.setattr(transport, "BODY_BYTES_MAX", 5)
    assert unpack(PACKED) == b"hello"
    monkeypatch.setattr(transport, "BODY_BYTES_MAX", 4)
    with pytest.raises(Lost, match="too long"):
        unpack(PACKED)


def test_after_a_time_out_its_connection_is_not_used_again() -> None:
    far = Far(HELLO, HELLO, pause_s=0.3)
    told = served(far, lambda http: each(http, [POST, POST]), timeout_s=0.1)
    assert told == ["TimeoutError"] * 2 and far.connections == 2


def test_bytes_that_nobody_asked_for_end_the_connection() -> None:
    far = Far(HELLO, HELLO)
    far.after = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"

    async def work(http: Http) -> Any:
        first = await http.request(lambda: POST)
        await asyncio.sleep(0.05)
        return first, await http.request(lambda: POST)

    first, second = served(far, work)
    assert (first.body, second.body) == (b"hello", b"hello") and far.connections == 2


def test_tls_is_verified(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    context, trusted = server_context(tmp_path)

    async def main() -> bytes:
        far = Far(HELLO)
        server = await asyncio.start_server(far.serve, "127.0.0.1", 0, ssl=context)
        origin = f"https://localhost:{server.sockets[0].getsockname()[1]}"
        with pytest.raises(Unsent, match="certificate verify failed"):
            await Http(origin, 2.0).request(lambda: POST)
        assert far.asked == []
        monkeypatch.setenv("SSL_CERT_FILE", str(trusted))
        http = Http(origin, 2.0)
        told = await http.request(lambda: POST)
        await http.close()
        server.close()
        return told.body

    assert uvloop.run(main()) == b"hello"


def test_nobody_there_is_unsent() -> None:
    async def work() -> None:
        with pytest.raises(Unsent):
            await Http("http://127.0.0.1:1", 1.0).request(lambda: POST)

    uvloop.run(work())


def test_a_request_is_made_when_its_connection_stands() -> None:
    """So that a time stamp is as young as its bytes; a maker that refuses sends nothing."""
    far = Far(HELLO)

    async def work(http: Http) -> list[int]:
        seen: list[int] = []

        def make() -> Ask:
            seen.append(far.connections)
            return POST

        await asyncio.sleep(0)
        await http.request(make)

        def refuse() -> Ask:
            raise KeyError("no")

        with pytest.raises(KeyError):
            await http.request(refuse)
        return seen

    assert served(far, work) in ([0], [1]) and len(far.asked) == 1


def test_a_line_break_in_a_header_is_our_bug() -> None:
    far = Far(HELLO)
    with pytest.raises(AssertionError):
        served(far, lambda http: http.request(lambda: Ask("GET", "/", {"A": "b\r\nC: d"})))
    assert far.asked == []


def test_random_bytes_never_raise_out_of_the_parser() -> None:
    chance = random.Random(7)

    async def work() -> None:
        for _ in range(2_000):
            data = bytearray(chance.choice((HELLO, CHUNKED, INTERIM, ZIPPED)))
            for _ in range(chance.randint(1, 4)):
                data[chance.randrange(len(data))] = chance.randrange(256)
            connection = Connection()
            connection._waiter = waiter = asyncio.get_running_loop().create_future()
            at = chance.randrange(len(data))
            connection.data_received(bytes(data[:at]))
            connection.data_received(bytes(data[at:]))
            connection.connection_lost(None)
            assert waiter.done()
            if (error := waiter.exception()) is not None:
                assert isinstance(error, Lost)

    uvloop.run(work())


# --- signatures ---


def test_a_query_is_signed_by_the_kind_of_its_key() -> None:
    query = encode({"symbol": "BTCUSDT", "price": "1.5", "name": "a b/ü"})
    assert query == "symbol=BTCUSDT&price=1.5&name=a%20b%2F%C3%BC"
    # the exchange's own example, reference of its documentation
    example = (
        "symbol=BTCUSDT&side=BUY&type=LIMIT&quantity=1&price=9000&timeInForce=GTC"
        "&recvWindow=5000&timestamp=1591702613943"
    )
    secret = "2b5eb11e18796d12d88f13dc27dbbd02c2cc51ff7059765ed9821957d82bb4d9"
    told = "3c661234138461fcc7a7d8746c6558c9842d4e10870d2ecbedf7777cad694af9"
    assert sign(example, secret) == told
    edwards = ed25519.Ed25519PrivateKey.generate()
    edwards.public_key().verify(
        base64.b64decode(unquote(sign(query, pem(edwards)))), query.encode()
    )
    old = rsa.generate_private_key(65537, 2048)
    old.public_key().verify(
        base64.b64decode(unquote(sign(query, pem(old)))),
        query.encode(),
        padding.PKCS1v15(),
        hashes.SHA256(),
    )


def pem(key: Any) -> str:
    kind = serialization.PrivateFormat.PKCS8
    made: bytes = key.private_bytes(serialization.Encoding.PEM, kind, serialization.NoEncryption())
    return made.decode()
