"""What --fuzz does to frames: nothing that was true is lost, and our own decoder reads the same."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import orjson
import pytest

from tests.test_feed_decode import Rig, make_rig
from tests.test_venue_depth import drive, world
from venue import exchange, fuzz, market, wire
from venue.connection import parse_url
from venue.market import AGG, BOOK, MARK, Ints
from venue.recording import payloads
from venue.sockets import Hub

__all__ = ["make_rig"]


class Sink:
    def __init__(self) -> None:
        self.data = b""

    def write(self, data: bytes) -> None:
        self.data += data

    def get_write_buffer_size(self) -> int:
        return 0

    def abort(self) -> None: ...

    def close(self) -> None: ...

    def is_closing(self) -> bool:
        return False


def heard(path: str, query: str, ms: float, spoil: bool) -> bytes:
    """Frames of one connection to a world, with and without fuzz."""
    made = world(2, rate=400.0)
    hub = Hub(made.specs, False, fuzz=fuzz.fuzzer(3) if spoil else None)
    address = parse_url(path, query)
    assert address is not None
    sink = Sink()
    hub.add(address, path, sink)
    for count in exchange.advance(made, made.made_until_ms + ms, 0):
        hub.fan_out(made.rows, count)
    return sink.data


def flat(told: list[Any]) -> list[Any]:
    """Rows of payloads one by one, arrays taken apart."""
    return [row for data in told for row in (data if isinstance(data, list) else [data])]


def true_rows(frames: bytes) -> list[dict[str, Any]]:
    """Rows of our market as they were before the fuzz."""
    out = []
    for text in payloads(frames):
        payload = orjson.loads(text)
        for row in flat([payload.get("data", payload) if isinstance(payload, dict) else payload]):
            if row.get("st", 1) == 1 and row.get("X", "MARKET") == "MARKET":
                out.append({k: v for k, v in row.items() if k not in fuzz.KEYS})
    return out


STREAMS = "streams=btcusdt@aggTrade/ethusdt@bookTicker/!markPrice@arr@1s/btcusdt@markPrice@1s"


@pytest.mark.parametrize("path", ["/stream", "/ws/btcusdt@aggTrade/!markPrice@arr@1s"])
def test_nothing_true_is_lost_and_something_is_added(path: str) -> None:
    query = STREAMS if path == "/stream" else ""
    plain, spoilt = heard(path, query, 30_000, False), heard(path, query, 30_000, True)
    assert true_rows(plain) == true_rows(spoilt)
    assert spoilt == heard(path, query, 30_000, True)
    texts = payloads(spoilt)
    assert len(texts) > len(payloads(plain))  # arrays come in two frames
    whole = b"".join(texts)
    assert b'"zz"' in whole and b'BTCUSD_PERP","p"' in whole and b'"st":2' in whole


def test_single_trades_get_zero_frames_and_candles_spaces() -> None:
    names = {"btcusdt@trade", "btcusdt@kline_1m", "!ticker@arr"}
    said = drive(world(1, rate=300.0), names, 120_000, 60)
    dice = random.Random(5)
    told = [(name, fuzz.spoiled(orjson.loads(text), dice)) for name, text in said]
    trades = [row for name, rows in told for row in flat(rows) if name.endswith("@trade")]
    zeros = [row for row in trades if row["X"] == "NA"]
    assert 0 < len(zeros) < 0.05 * len(trades)
    assert all((row["p"], row["q"]) == ("0", "0") for row in zeros)
    ids = [row["t"] for row in trades if row["X"] == "MARKET"]
    assert ids == list(range(ids[0], ids[-1] + 1))
    frames = b"".join(wire.text_frame(text) for name, text in said if "kline" in name)
    spaced = [t for t in payloads(fuzz.fuzzer(1)(frames)) if b'": "' in t]
    assert spaced and all(orjson.loads(t)["e"] == "kline" for t in spaced)
    arrays = [row for name, rows in told for row in flat(rows) if name == "!ticker@arr"]
    assert {row["s"] for row in arrays if row["st"] == 2} == set(fuzz.FOREIGN)


def test_our_own_decoder_reads_the_same_through_it(make_rig: Callable[..., Rig]) -> None:
    query = "streams=btcusdt@aggTrade/btcusdt@bookTicker/btcusdt@markPrice@1s"
    records = []
    for spoil in (False, True):
        rig = make_rig()
        frames = heard("/stream", query, 20_000, spoil)
        assert rig.feed(frames) >= 0
        records.append(rig.tuples())
        assert "malformed" not in rig.counts()
    assert records[0] == records[1] and len(records[0]) > 100


def test_a_recording_hears_what_was_true() -> None:
    made = world(2)
    hub = Hub(made.specs, True, fuzz=fuzz.fuzzer(3))
    sink = Sink()
    hub.tap(sink)
    rows: list[Ints] = []
    for count in exchange.advance(made, made.made_until_ms + 3_000, 0):
        hub.fan_out(made.rows, count)
        rows.append(made.rows[:count].copy())
    kinds = np.concatenate(rows)[:, market.KIND]
    texts = payloads(sink.data)
    assert len(texts) == int((kinds == AGG).sum() + (kinds == BOOK).sum()) > (kinds == MARK).sum()
    assert all(set(orjson.loads(t)["data"]).isdisjoint(fuzz.KEYS) for t in texts)
