"""What does the exchange in a box cost: paced ticks to one client, and orders answered.

    venue process ──WebSocket──▶ this process: counts frames and bytes
    venue process ◀──HTTP, kept alive, signed──▶ this process: a limit order far away, its cancel

Ticks: one client subscribes to trades, quotes and marks of every symbol; the market's pace is
asked for, not the fastest possible. The frames counted here must be those that the venue says it
wrote, their bytes too. Orders: every answer is 200, and the ledger holds each order and its end.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import numpy as np
from numba import njit

from benchmarks.path import cpu_s
from benchmarks.report import Result

ROOT: Final = Path(__file__).resolve().parent.parent
SYMBOLS, RATE = 300, 200_000
WARM_S, SAMPLE_S, SAMPLES = 3.0, 2.0, 6
ORDERS, ORDER_ROUNDS, IN_FLIGHT = 4_000, 5, 32
BUFFER_BYTES: Final = 4 << 20
WAIT_S: Final = 60.0


@njit(cache=True)
def count_frames(data: Any, size: int, left: int, header: Any, have: int) -> tuple[int, int, int]:
    """Whole frame headers begun in data[:size]: (frames, bytes left of the last, header bytes).

    `left` bytes of a payload come first; `header` keeps the begin of a header that was cut.
    """
    frames, at = 0, 0
    while at < size or left > 0:
        if left > 0:
            step = min(left, size - at)
            at += step
            left -= step
            if left > 0:
                break
            continue
        header[have] = data[at]
        have += 1
        at += 1
        if have < 2:
            continue
        short = header[1] & 127
        extended = 0 if short < 126 else (2 if short == 126 else 8)
        if have < 2 + extended:
            continue
        left = short if extended == 0 else 0
        for k in range(extended):
            left = (left << 8) | header[2 + k]
        have = 0
        frames += 1
    return frames, left, have


class Client:
    """One socket of combined streams, read and counted."""

    def __init__(self, host: str, port: int) -> None:
        self.sock = socket.create_connection((host, port), timeout=WAIT_S)
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER_BYTES)
        self.data = np.zeros(BUFFER_BYTES, np.uint8)
        self.header = np.zeros(16, np.uint8)
        self.left = self.have = self.frames = self.bytes = 0
        self.sock.sendall(
            b"GET /stream HTTP/1.1\r\nHost: venue\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
        )
        reply = b""
        while not reply.endswith(b"\r\n\r\n"):
            reply += self.sock.recv(1)

    def say(self, message: dict[str, Any]) -> None:
        text = json.dumps(message).encode()
        head = bytes((0x81, 0xFE)) + len(text).to_bytes(2, "big")
        self.sock.sendall(head + bytes(4) + text)  # masked with zeros

    def read(self) -> None:
        size = self.sock.recv_into(memoryview(self.data))
        if size == 0:
            raise RuntimeError("the venue hung up")
        frames, self.left, self.have = count_frames(
            self.data, size, self.left, self.header, self.have
        )
        self.frames += frames
        self.bytes += size

    def read_for(self, seconds: float) -> None:
        until_s = time.perf_counter() + seconds
        while time.perf_counter() < until_s:
            self.read()
            time.sleep(0.002)  # lets the kernel gather: reading is not what is measured


def ask(url: str, method: str = "GET", body: dict[str, str] | None = None) -> Any:
    data = None if body is None else json.dumps(body).encode()
    asked = urllib.request.Request(url, data=data, method=method)  # noqa: S310 (our own child's)
    with urllib.request.urlopen(asked, timeout=WAIT_S) as answer:  # noqa: S310
        return json.load(answer)


@contextmanager
def venue(*words: str) -> Iterator[tuple[int, str, Path]]:
    """(pid, url, folder of its ledger) of a venue of its own."""
    with tempfile.TemporaryDirectory() as folder:
        argv = [sys.executable, "-m", "venue.main", "--port", "0", "--state", f"{folder}/venue"]
        with subprocess.Popen([*argv, *words], cwd=ROOT, stdout=subprocess.PIPE) as process:
            try:
                assert process.stdout is not None
                line = process.stdout.readline().decode()
                url = next((w for w in line.split() if w.startswith("http")), "")
                if not url:
                    raise RuntimeError(f"no venue: {line}")
                yield process.pid, url, Path(folder) / "venue"
            finally:
                process.terminate()


def ticks(symbols: int = SYMBOLS, rate: int = RATE, samples: int = SAMPLES) -> list[Result]:
    """Percent of a core that the venue takes at that pace, and how many ticks a core would give."""
    shares, per_core, paces = [], [], []
    words = ("--symbols", str(symbols), "--rate", str(rate), "--speed", "1", "--no-strict")
    with venue(*words) as (pid, url, _):
        host, port = url.removeprefix("http://").split(":")
        client = Client(host, int(port))
        names = [row["symbol"].lower() for row in ask(f"{url}/fapi/v1/exchangeInfo")["symbols"]]
        for stream in ("aggTrade", "bookTicker", "markPrice@1s"):
            client.say({"method": "SUBSCRIBE", "params": [f"{n}@{stream}" for n in names], "id": 1})
        client.read_for(WARM_S)
        for _ in range(samples):
            before, began, spent = client.frames, time.perf_counter(), cpu_s(pid)
            client.read_for(SAMPLE_S)
            seconds, spent = time.perf_counter() - began, cpu_s(pid) - spent
            paces.append((client.frames - before) / seconds)
            shares.append(100 * spent / seconds)
            per_core.append((client.frames - before) / spent / 1e6)
        ask(f"{url}/venue/v1/pause", "POST")
        told = ask(f"{url}/venue/v1/sent")["connections"][0]
        while client.bytes < told["bytes"]:
            client.read()
        wrote = told["trades"] + told["quotes"] + told["marks"] + 3
        if (client.frames, client.bytes) != (wrote, told["bytes"]):
            raise RuntimeError(f"read {client.frames} frames, {client.bytes} bytes; wrote {told}")
        client.sock.close()
    note = f"{symbols} symbols, {rate:,} ticks/s asked for"
    return [
        Result("venue, paced ticks to one client", "ticks/s", paces, 0.99 * rate, False, note),
        Result("venue, CPU at that pace", "% of a core", shares, 50.0),
        Result("venue, ticks of one core", "M ticks/s", per_core),
    ]


def request(method: str, path: str, query: str) -> bytes:
    """One signed request, as clients send it."""
    signature = hmac.new(b"test", query.encode(), hashlib.sha256).hexdigest()
    signed = f"{query}&signature={signature}"
    head = f"{path}?{signed}" if method == "DELETE" else path
    body = "" if method == "DELETE" else signed
    return (
        f"{method} {head} HTTP/1.1\r\nHost: venue\r\nX-MBX-APIKEY: test\r\n"
        f"Content-Type: application/x-www-form-urlencoded\r\nContent-Length: {len(body)}\r\n\r\n"
        f"{body}"
    ).encode()


def converse(sock: socket.socket, requests: list[bytes]) -> int:
    """Sends all with IN_FLIGHT unanswered at most; how many were answered with 200."""
    good, answered, sent, rest = 0, 0, 0, b""
    while answered < len(requests):
        room = min(len(requests), answered + IN_FLIGHT)
        if sent < room:
            sock.sendall(b"".join(requests[sent:room]))
            sent = room
        data = rest + sock.recv(1 << 18)
        while True:
            end = data.find(b"\r\n\r\n")
            if end < 0:
                break
            head = data[:end].lower()
            size = int(head.split(b"content-length:")[1].split(b"\r\n")[0])
            if len(data) < end + 4 + size:
                break
            good += head.startswith(b"http/1.1 200")
            answered += 1
            data = data[end + 4 + size :]
        rest = data
    return good


def orders(count: int = ORDERS, rounds: int = ORDER_ROUNDS) -> list[Result]:
    """New limit orders and their cancels on one connection, half of each."""
    rates, costs = [], []
    with venue("--symbols", "5", "--rate", "200", "--speed", "1", "--limits", "off") as (
        pid,
        url,
        _,
    ):
        host, port = url.removeprefix("http://").split(":")
        price = ask(f"{url}/fapi/v1/ticker/bookTicker?symbol=BTCUSDT")["bidPrice"]
        far = f"{float(price) * 0.97:.1f}"
        for number in range(rounds):
            stamp = ask(f"{url}/fapi/v1/time")["serverTime"]
            made = []
            for k in range(count // 2):
                name = f"symbol=BTCUSDT&timestamp={stamp}&recvWindow=60000"
                client_id = f"b{number}-{k}"
                made.append(
                    request(
                        "POST",
                        "/fapi/v1/order",
                        f"{name}&side=BUY&type=LIMIT&timeInForce=GTC&quantity=0.002&price={far}"
                        f"&newClientOrderId={client_id}",
                    )
                )
                made.append(
                    request("DELETE", "/fapi/v1/order", f"{name}&origClientOrderId={client_id}")
                )
            with socket.create_connection((host, int(port)), timeout=WAIT_S) as sock:
                began, spent = time.perf_counter(), cpu_s(pid)
                good = converse(sock, made)
                seconds, spent = time.perf_counter() - began, cpu_s(pid) - spent
            if good != count:
                raise RuntimeError(f"{count - good} of {count} orders were not answered with 200")
            rates.append(count / seconds)
            costs.append(1e6 * spent / count)
        events = ask(f"{url}/venue/v1/ledger?from_seq=1&limit=1")["events"]
        total = ask(f"{url}/venue/v1/status")["ledger_seq"]
        if not events or total < rounds * count:
            raise RuntimeError(f"the ledger has {total} entries for {rounds * count} order events")
    return [
        Result("venue, orders and cancels answered", "1/s", rates, 2_000.0, False, "one client"),
        Result("venue, CPU of one", "us", costs),
    ]


def run() -> list[Result]:
    return [*ticks(), *orders()]
