"""The decoder against its slow twin: real capture, every split, hostile bytes, exact prices."""

from __future__ import annotations

import gzip
import json
import os
import random
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from feed import decode as decoder
from feed import fields, lane, shape, walk
from records import BAR, BAR_VOLUME, CLOSED, EXCHANGE, GAP, HEALED, MARK, QUOTE, TRADE
from ring import FEED_COUNTERS, HEAD, TAIL, Ring, create

sys.path.insert(0, str(Path(__file__).parent))
from naive import decode as naive

NAMES = ["BTCUSDT", "1000SHIBUSDT", "BTCUSDT_261225", "币安人生USDT", "X"]
T0 = 1_795_000_000_000
BOUND_MS = 60_000
KINDS = {TRADE: "trade", QUOTE: "quote", MARK: "mark", BAR: "bar", BAR_VOLUME: "bar_volume"}
SEED = int(os.environ.get("FUZZ_SEED", random.SystemRandom().randrange(1 << 30)))


def frame(payload: bytes) -> bytes:
    size = len(payload)
    if size < 126:
        return bytes([0x81, size]) + payload
    if size < 1 << 16:
        return b"\x81\x7e" + size.to_bytes(2, "big") + payload
    return b"\x81\x7f" + size.to_bytes(8, "big") + payload


class Rig:
    """A ring, a lane and one connection's state; `feed` takes bytes as a socket would give them."""

    def __init__(self, ring: Ring, side_slots: int = 1024) -> None:
        self.ring = ring
        self.lane = lane.make_lane(ring, side_slots)
        self.lane.control[lane.BOUND_MS] = BOUND_MS
        for row, name in enumerate(NAMES):
            lane.set_symbol(self.lane, row, name, lane.LIVE, 0)
        self.state = np.zeros(8, np.int64)
        self.buffer = np.zeros(0, np.uint8)
        self.rest = b""

    def feed(self, data: bytes, recv_ns: int = 1) -> int:
        data = self.rest + data
        need = walk.SCRATCH_BYTES + len(data) + walk.SLACK_BYTES
        buffer = np.full(need, 0x39, np.uint8)  # stale digits behind the end must not be read
        buffer[walk.SCRATCH_BYTES : walk.SCRATCH_BYTES + len(data)] = np.frombuffer(data, np.uint8)
        start, end = walk.SCRATCH_BYTES, walk.SCRATCH_BYTES + len(data)
        while True:
            start = decoder.decode(buffer, start, end, recv_ns, self.state, self.lane)
            if self.state[decoder.CODE] != decoder.REPLY:
                break
        self.rest = buffer[start:end].tobytes()
        return int(self.state[decoder.CODE])

    def read(self) -> list[Any]:
        """Everything published since the last read, released to the writer."""
        words, slots = self.ring.words, self.ring.slots
        head, tail = int(words[HEAD]), int(words[TAIL])
        found = [slots[sequence & self.ring.mask].copy() for sequence in range(tail, head)]
        words[TAIL] = head
        return found

    def tuples(self) -> list[tuple[Any, ...]]:
        """Published records in the twin's form."""
        return [
            (
                KINDS[int(r["kind"])], int(r["symbol"]), int(r["id"]), int(r["exch_ns"]),
                float(r["a"]), float(r["b"]), float(r["c"]), float(r["d"]), int(r["flags"]),
            )
            for r in self.read()
            if int(r["kind"]) in KINDS
        ]  # fmt: skip

    def counts(self) -> dict[str, int]:
        named = zip(FEED_COUNTERS, self.ring.feed_stats.tolist(), strict=False)
        skip = ("frames", "bytes", "holes", "degraded_prints")
        return {name: count for name, count in named if count and name not in skip}


@pytest.fixture
def make_rig(tmp_path: Path) -> Iterator[Callable[..., Rig]]:
    made = []

    def make(slots: int = 1 << 14, side_slots: int = 1024) -> Rig:
        made.append(Rig(create(tmp_path / f"ring{len(made)}", slots, 16, "test"), side_slots))
        return made[-1]

    yield make
    for rig in made:
        del rig.lane
        rig.ring.close()


def agg(number: int, **changed: Any) -> dict[str, Any]:
    event = {
        "e": "aggTrade", "E": T0 + 123, "a": number, "s": "BTCUSDT", "p": "84551.10", "q": "0.030",
        "nq": "0.030", "f": 8200000001, "l": 8200000003, "T": T0 + 5, "m": False, "st": 1,
    }  # fmt: skip
    return event | changed


def trade(number: int, **changed: Any) -> dict[str, Any]:
    event = {
        "e": "trade", "E": T0 + 123, "T": T0 + 122, "s": "BTCUSDT", "t": number, "p": "84551.10",
        "q": "0.010", "X": "MARKET", "m": True, "st": 1,
    }  # fmt: skip
    return event | changed


def book(update: int, **changed: Any) -> dict[str, Any]:
    event = {
        "e": "bookTicker", "u": update, "s": "BTCUSDT", "ps": "BTCUSDT", "b": "84551.00",
        "B": "2.646", "a": "84551.10", "A": "5.302", "T": T0 + 138, "E": T0 + 139, "st": 1,
    }  # fmt: skip
    return event | changed


def mark(**changed: Any) -> dict[str, Any]:
    event = {
        "e": "markPriceUpdate", "E": T0, "s": "BTCUSDT", "p": "84546.60260870",
        "ap": "84546.60260870", "P": "84321.91711993", "i": "84580.93826087", "r": "0.00000523",
        "T": T0 + 17_600_000, "st": 1,
    }  # fmt: skip
    return event | changed


def kline(**changed: Any) -> dict[str, Any]:
    candle = {
        "t": T0 - 60_000, "T": T0 - 1, "s": "BTCUSDT", "i": "1m", "f": 8200000001, "L": 8200000235,
        "o": "84540.00", "c": "84551.10", "h": "84560.00", "l": "84530.10", "v": "24.878",
        "n": 235, "x": True, "q": "2103832.457590", "V": "14.499", "Q": "1226474.845990", "B": "0",
    }  # fmt: skip
    return {"e": "kline", "E": T0 + 7, "s": "BTCUSDT", "k": candle | changed}


def pack(event: Any, spaces: bool = False, escapes: bool = True) -> bytes:
    separators = (", ", " : ") if spaces else (",", ":")
    return json.dumps(event, separators=separators, ensure_ascii=escapes).encode()


def wrap(event: Any, stream: str = "btcusdt@aggTrade") -> dict[str, Any]:
    return {"stream": stream, "data": event}


def same(rig: Rig, payloads: list[bytes], newest_ms: int = 0) -> naive.Decoder:
    """Kernel and twin agree on every record, counter and on what waits."""
    twin = naive.Decoder(NAMES, BOUND_MS, newest_ms)
    rig.lane.control[lane.NEWEST_MS] = newest_ms
    for payload in payloads:
        twin.message(payload)
        rig.feed(frame(payload))
    assert rig.rest == b""
    assert rig.tuples() == twin.records
    assert rig.counts() == {name: count for name, count in twin.counts.items() if count}
    assert int(rig.lane.control[lane.NEWEST_MS]) == twin.newest_ms
    for row, symbol in enumerate(twin.symbols):
        assert int(rig.lane.symbols[row, lane.COUNT]) == len(symbol.held)
        assert int(rig.lane.symbols[row, lane.LAST_ID]) == symbol.last
    return twin


def test_every_payload_kind_is_read_as_the_twin_reads_it(make_rig: Callable[..., Rig]) -> None:
    events: list[Any] = [
        book(5), mark(), agg(7), agg(8, m=True), trade(9), kline(), kline(x=False),
        kline(i="3m"), kline(l="84550.00"), kline(t=T0 + 8), kline(o=None), kline(i=5),
        trade(10, X="NA", p="0", q="0"), agg(11, s="ETHUSDT"), mark(i="", r="", T=0),
        mark(i="", s="BTCUSDT_261225"), book(6, s="币安人生USDT"), agg(1, s="X", st=2),
        [mark(E=T0 + 1), mark(s="1000SHIBUSDT"), mark(s="ADAUSD_PERP", st=2), 5, [], {}],
        [], {}, {"result": None, "id": 1}, {"error": {"code": 4, "msg": "x"}}, 5, "x", None, True,
        {"e": None}, {"e": 5}, {"e": "depthUpdate", "b": [["1", "2"]], "a": []},
    ]  # fmt: skip
    payloads = [pack(event, spaces, escapes) for event in events for spaces, escapes in
                ((False, True), (True, False))]  # fmt: skip
    payloads += [pack(wrap(event), spaces) for event in events for spaces in (False, True)]
    twin = same(make_rig(), payloads)
    assert {record[0] for record in twin.records} == set(KINDS.values())


def test_the_real_capture_is_read_as_the_twin_reads_it(
    make_rig: Callable[..., Rig], market_data: Path
) -> None:
    rig = make_rig(1 << 17)
    payloads = []
    with gzip.open(market_data / "raw_ws" / "usdm_btcusdt_20240808.gz", "rb") as lines:
        for line in lines:
            payload = line.split(b" ", 1)[1].rstrip(b"\n")
            if b"depth" not in payload[:40] or len(payloads) % 50 == 0:
                payloads.append(payload)
    twin = same(rig, payloads)
    assert twin.counts["trades"] > 5_000 and twin.counts["quotes"] > 20_000
    assert not any(symbol.held for symbol in twin.symbols)  # non-market prints use their ids up


def test_any_split_of_the_stream_gives_the_same_records(make_rig: Callable[..., Rig]) -> None:
    long_event = agg(3) | {"pad": "x" * 70_000}
    small = [pack(wrap(agg(1))), pack(book(1)), pack([mark(), mark(E=T0 + 1)]), pack(agg(2))]
    stream = b"".join(map(frame, small))
    expected = None
    for cut in range(len(stream) + 1):
        rig = make_rig(256)
        rig.feed(stream[:cut])
        rig.feed(stream[cut:])
        found = rig.tuples()
        expected = expected or found
        assert found == expected and len(found) == 5
    rig = make_rig()
    stream += frame(pack(long_event))
    for place in range(0, len(stream), 977):
        rig.feed(stream[place : place + 977])
    assert rig.tuples()[:5] == expected and rig.counts()["trades"] == 3


def _junk(rng: random.Random, depth: int = 0) -> Any:
    kind = rng.randrange(9 if depth < 4 else 6)
    if kind == 0:
        return rng.choice([True, False, None])
    if kind == 1:
        return rng.choice([0, -1, 1e300, 1.5e-7, 10 ** rng.randrange(40), -0.0])
    if kind <= 5:
        alphabet = 'aZ9"\\/\n\t\x7fé币😀{}[],:\u2028'
        return "".join(rng.choice(alphabet) for _ in range(rng.randrange(12)))
    if kind == 6:
        return [_junk(rng, depth + 1) for _ in range(rng.randrange(4))]
    return {str(_junk(rng, 9)): _junk(rng, depth + 1) for _ in range(rng.randrange(4))}


def _random_event(rng: random.Random, number: int) -> dict[str, Any]:
    make = rng.choice([agg, trade, book, lambda n: mark(), lambda n: kline()])
    event = make(number)
    event["s"] = rng.choice([*NAMES, "ETHUSDT", ""])
    if "p" in event and rng.random() < 0.5:
        event["p"] = _random_decimal(rng)
    for _ in range(rng.randrange(3)):
        event[rng.choice(["zz", "Z", "nq", "data", "stream", "k", "st", "o"])] = _junk(rng)
    for _ in range(rng.choice([0, 0, 0, 1, 2])):
        key = rng.choice(list(event))
        if rng.random() < 0.5:
            event.pop(key)
        else:
            event[key] = rng.choice([_junk(rng), "", "0", "-1", 0, "1e5", 10**17, 10**17 - 1])
    keys = list(event)
    rng.shuffle(keys)
    first = {"stream": "x"} if rng.random() < 0.1 else {}  # looks like an envelope
    return first | {key: event[key] for key in keys}


def _random_decimal(rng: random.Random) -> str:
    digits = "".join(rng.choice("0123456789") for _ in range(rng.randrange(1, 22)))
    place = rng.randrange(len(digits))
    text = digits[:place] + "." + digits[place:] if place > 0 else digits
    return rng.choice(["", "", "", "-"]) + text


def _random_documents(rng: random.Random) -> list[bytes]:
    payloads = []
    for number in range(1, 3_000):
        event = _random_event(rng, number)
        document = rng.choice([event, wrap(event), [event, event | {"a": number + 1}]])
        payloads.append(pack(document, rng.random() < 0.3, rng.random() < 0.5))
    return payloads


def _hostile_bytes(rng: random.Random) -> list[bytes]:
    payloads = []
    for number in range(1, 6_000):
        raw = bytearray(pack(rng.choice([agg, trade, book])(number), rng.random() < 0.2))
        if rng.random() < 0.4:
            raw = bytearray(pack(wrap(json.loads(raw))))
        for _ in range(rng.randrange(1, 4)):
            place = rng.randrange(len(raw))
            change = rng.randrange(4)
            if change == 0:
                raw[place] = rng.choice(b'"\\{}[],:.0e-\x00 \x80\xff\xed\xf4x')
            elif change == 1:
                del raw[place]
            elif change == 2:
                raw.insert(place, rng.choice(b'"\\{}[],:.09e-tfn \xc3'))
            else:
                del raw[place:]
                break
            if not raw:
                break
        payloads.append(bytes(raw))
    return payloads


EDGES: tuple[Any, ...] = (
    "0", "-0", "00.10", "5.", ".5", "-.5", "5.0", "1.2.3", "", "-", "12345678.12345678",
    "123456789.1", "1.123456789", "-1.5", "1234567", "123456789012345", "1" * 17, "1e5", " 1", "1 ",
    "x" * 31, "x" * 32, "x" * 33, "tab\t", 'quote"', "back\\", "\x7f", "币", 0, 7, -7, 10**12,
    10**13 - 1, 10**13, 10**14, 10**15 - 1, 10**15, 10**16, 10**17, True, False, None, 1.5, [], {},
)  # fmt: skip


def _learned_layouts(rng: random.Random) -> list[bytes]:
    """Values of every edge in a layout that was just learned, in many orders of keys."""
    payloads, number = [], 0
    for _ in range(60):
        keys = list((make := rng.choice([agg, trade, book, lambda n: mark()]))(1))
        keys += ["Z", "zzz"] if rng.random() < 0.2 else []
        rng.shuffle(keys)
        combined = rng.random() < 0.5
        for _ in range(50):
            number += 1
            event = {"Z": 1, "zzz": "x"} | make(number)
            event["s"] = rng.choice(NAMES)
            for key in ("p", "q", "b", "B", "a", "A", "i", "r"):
                if key in event and isinstance(event[key], str) and rng.random() < 0.7:
                    event[key] = f"{rng.random() * 10 ** rng.randrange(-7, 8):.{rng.randrange(9)}f}"
            if rng.random() < 0.4:
                event[rng.choice(keys)] = rng.choice(EDGES)
            event = {key: event[key] for key in keys}
            payload = pack(wrap(event) if combined else event, escapes=False)
            if rng.random() < 0.1:
                payload = payload.replace(b":1", b":0", 1)  # no JSON any more, if digits follow
            payloads.append(payload)
    return payloads


@pytest.mark.parametrize("make", [_random_documents, _hostile_bytes, _learned_layouts])
def test_the_twin_agrees_whatever_comes(
    make_rig: Callable[..., Rig], make: Callable[[random.Random], list[bytes]]
) -> None:
    """At least one round, then more of them until FUZZ_SECONDS are over; the seed replays it."""
    seed, until_s = SEED, time.monotonic() + float(os.environ.get("FUZZ_SECONDS", "2"))
    while True:
        print(f"FUZZ_SEED={seed}")
        rig = make_rig()
        same(rig, make(random.Random(seed)), T0)
        assert int(rig.lane.shapes.order[1]) > 0  # some layouts were learned on the way
        if time.monotonic() > until_s:
            return
        seed += 1


def test_a_stream_without_a_layout_stops_paying_for_the_search(
    make_rig: Callable[..., Rig],
) -> None:
    rig = make_rig()
    rig.lane.shapes.order[2] = shape.FREE_MISSES
    frames_ = [frame(pack(wrap(book(number)))) for number in range(1, 2 * shape.LEARN_EVERY)]
    for data in frames_[: shape.LEARN_EVERY - 1]:
        rig.feed(data)
    assert int(rig.lane.shapes.order[1]) == 0
    rig.feed(frames_[shape.LEARN_EVERY - 1])
    assert int(rig.lane.shapes.order[1]) == 1
    assert rig.counts()["quotes"] == shape.LEARN_EVERY


def test_an_empty_message_is_malformed_before_anything_was_learned(
    make_rig: Callable[..., Rig],
) -> None:
    assert same(make_rig(), [b"", pack(agg(1)), b""]).counts["malformed"] == 2


@pytest.mark.parametrize("where", ["first", "envelope", "twice", "escaped"])
def test_a_layout_is_learned_only_from_the_letters_that_the_walk_saw(
    make_rig: Callable[..., Rig], where: str
) -> None:
    """What looks like an envelope, or like an event, but is none, must not be taken for it."""

    def document(number: int, **changed: Any) -> bytes:
        event = agg(number, **changed)
        if where == "first":
            return pack({"stream": "x"} | event)
        if where == "envelope":
            return pack({"stream": "x", "e": "aggTrade", "s": "X", "p": "1", "data": event})
        if where == "twice":
            return pack(event)[:-1] + b',"e":"' + event["e"].encode() + b'"}'
        return pack(event).replace(b'"e":', b'"\\u0065":')

    payloads = [document(number) for number in range(1, 5)]
    payloads += [document(9, e="aggTradf"), document(5), document(9, e="trade"), document(6)]
    assert same(make_rig(), payloads).counts["trades"] == 6


def test_a_steady_stream_needs_one_layout_each(make_rig: Callable[..., Rig]) -> None:
    rig = make_rig()
    for number in range(1, 200):
        for event in (agg(number, p=f"{number}.5", q=str(number)), book(number), mark(r="-0.1")):
            rig.feed(frame(pack(wrap(event))))
    assert int(rig.lane.shapes.order[1]) == 3
    assert rig.counts() == {
        "trades_received": 199, "quotes_received": 199, "marks_received": 199, "trades": 199,
        "quotes": 199, "marks": 199,
    }  # fmt: skip


def test_a_closed_kline_is_published_beside_the_bars_that_trades_make(
    make_rig: Callable[..., Rig],
) -> None:
    rig = make_rig()
    rig.feed(frame(pack(wrap(kline(i="15m")))))
    bar, volume = rig.read()
    assert (bar["kind"], bar["aux"], bar["flags"]) == (BAR, 15, CLOSED | EXCHANGE)
    assert (volume["kind"], volume["aux"], volume["d"]) == (BAR_VOLUME, 15, 235.0)


@pytest.mark.parametrize("depth", [walk.DEPTH_MAX - 1, walk.DEPTH_MAX, walk.DEPTH_MAX + 1])
def test_nesting_is_bounded(make_rig: Callable[..., Rig], depth: int) -> None:
    inside = b"[" * (depth - 1) + b"]" * (depth - 1)
    payload = pack(agg(1))[:-1] + b',"zz":' + inside + b"}"
    twin = same(make_rig(), [payload])
    assert twin.counts["trades"] == (depth <= walk.DEPTH_MAX)


def test_escaped_keys_and_values_mean_what_they_spell(make_rig: Callable[..., Rig]) -> None:
    payload = pack(agg(5)).replace(b'"e":', b'"\\u0065":').replace(b'"BTC', b'"\\u0042TC')
    payload = payload.replace(b'"p":"8', b'"\\u0070" : "\\u0038')
    long_name = b'{"e":"aggTrade","s":"' + b"\\u0042" * 70 + b'"}'
    assert same(make_rig(), [payload, long_name]).counts["trades"] == 1


def test_prices_are_the_nearest_double_for_100_000_decimals() -> None:
    print(f"FUZZ_SEED={SEED}")
    rng = random.Random(SEED + 2)
    checked = 0
    for _ in range(100_000):
        size = rng.randrange(1, 19)
        mantissa = rng.randrange(10 ** (size - 1), 10**size)
        scale = rng.randrange(0, 15)
        text = f"{mantissa:0{scale + 1}d}"
        text = text[:-scale] + "." + text[-scale:] if scale else text
        value, exact = fields.value_of(mantissa, scale)
        assert exact and value == float(text), text
        checked += 1
    assert checked == 100_000


def test_decimals_beside_a_tie_round_right() -> None:
    rng = random.Random(11)
    for _ in range(20_000):
        half = ((1 << 53) + rng.randrange(1 << 53)) * 2 + 1  # 55 bits: exactly between two doubles
        for scale in (0, 1, 2, 5):  # half / 2^k as a decimal, where it fits 18 digits
            mantissa = half * 5**scale >> 0
            if mantissa >= 10**18:
                continue
            for near in (mantissa - 1, mantissa, mantissa + 1):
                text = f"{near}e-{scale}"
                value, exact = fields.value_of(near, scale)
                assert exact and value == float(text), text


@pytest.mark.parametrize(
    ("mantissa", "scale", "exact"),
    [
        ((1 << 53) - 1, 22, True), ((1 << 53) - 1, 23, False), ((1 << 53) + 1, 14, True),
        ((1 << 53) + 1, 15, False), (((1 << 53) - 1) * 10, 23, True), (0, 40, True),
    ],
)  # fmt: skip
def test_a_decimal_past_the_promise_is_refused(mantissa: int, scale: int, exact: bool) -> None:
    assert fields.value_of(mantissa, scale)[1] is exact


@pytest.mark.parametrize("late_ms", [BOUND_MS - 1, BOUND_MS, BOUND_MS + 1])
@pytest.mark.parametrize("sign", [-1, 1])
def test_time_is_bounded_around_the_newest_seen(
    make_rig: Callable[..., Rig], late_ms: int, sign: int
) -> None:
    time_ms = T0 + sign * late_ms
    times = (agg(1, E=time_ms, T=T0), agg(1, E=T0, T=time_ms), book(1, E=time_ms), mark(E=time_ms))
    for event in times:
        twin = same(make_rig(256), [pack(event)], T0)
        assert twin.counts["refused_time"] == (late_ms > BOUND_MS)


@pytest.mark.parametrize(("bid", "passes"), [("84551.00", 1), ("84551.10", 1), ("84551.20", 0)])
def test_only_a_crossed_quote_is_refused(
    make_rig: Callable[..., Rig], bid: str, passes: int
) -> None:
    assert same(make_rig(256), [pack(book(1, b=bid))]).counts["quotes"] == passes


@pytest.mark.parametrize(("price", "flags"), [("109.9", 0), ("110", 0), ("110.1", 2), ("89.9", 2)])
def test_a_print_far_from_quote_and_mark_is_degraded(
    make_rig: Callable[..., Rig], price: str, flags: int
) -> None:
    around = [pack(book(1, b="99.9", a="100.1")), pack(mark(p="100"))]
    assert same(make_rig(256), [*around, pack(agg(1, p=price))]).records[-1][-1] == flags
    near_mark = [pack(book(1, b="99.9", a="100.1")), pack(mark(p=price))]
    assert same(make_rig(256), [*near_mark, pack(agg(1, p=price))]).records[-1][-1] == 0


def test_ids_one_below_at_and_above_the_next(make_rig: Callable[..., Rig]) -> None:
    rig = make_rig(256)
    twin = same(rig, [pack(agg(n)) for n in (10, 10, 9, 11, 13, 13, 12, 14)])
    assert twin.counts["refused_duplicate"] == 2 and twin.counts["refused_order"] == 2
    assert twin.counts["held"] == 2 and twin.symbols[0].last == 11
    assert int(rig.lane.symbols[0, lane.REPORT]) == lane.HOLE


def test_a_hole_is_told_at_once_and_released_in_order(make_rig: Callable[..., Rig]) -> None:
    rig = make_rig(256)
    for number in (10, 13, 14, 16):
        rig.feed(frame(pack(agg(number))))
    kinds = [(int(r["kind"]), int(r["id"]), float(r["a"])) for r in rig.read()]
    assert kinds == [(TRADE, 10, 84551.1), (GAP, 11, 0.0)]
    assert lane.release(rig.lane, 0, 1) == 2  # 11 and 12 are still missing
    rig.lane.symbols[0, lane.LAST_ID] = 12
    assert lane.release(rig.lane, 0, 1) == 2  # now 15
    assert [int(r["id"]) for r in rig.read()] == [13, 14]
    rig.lane.symbols[0, lane.LAST_ID] = 15
    assert lane.release(rig.lane, 0, 1) == 0
    assert [(int(r["kind"]), int(r["id"])) for r in rig.read()] == [(TRADE, 16), (HEALED, 16)]
    assert int(rig.ring.last_ids[0]) == 16


def test_a_full_ring_keeps_one_hole_and_the_newest_quote(make_rig: Callable[..., Rig]) -> None:
    rig = make_rig(16)
    for number in range(1, 21):
        rig.feed(frame(pack(book(number))) + frame(pack(agg(number))))
    counts = rig.counts()
    assert counts["quotes"] + counts["conflated"] + counts["waiting"] == 20
    assert counts["trades"] + counts["dropped_trades"] == 20
    published = [int(r["id"]) for r in rig.read() if r["kind"] == TRADE]
    first_lost = published[-1] + 1
    assert int(rig.ring.last_ids[0]) == published[-1]
    rig.feed(frame(pack(agg(21))))
    gap, after = [r for r in rig.read() if r["kind"] in (GAP, TRADE)]
    assert (int(gap["id"]), int(gap["a"])) == (first_lost, 21 - first_lost)
    assert (int(after["kind"]), int(after["id"])) == (TRADE, 21)
    lane.flush(rig.lane, 1)
    assert [int(r["id"]) for r in rig.read()] == [20]
    assert rig.counts()["lost_trades"] == 21 - first_lost and "waiting" not in rig.counts()


@pytest.mark.parametrize("waiting", [7, 8, 9])
def test_a_full_side_buffer_declares_the_hole_lost(
    make_rig: Callable[..., Rig], waiting: int
) -> None:
    rig = make_rig(256, side_slots=8)
    for number in [1, *range(3, 3 + waiting)]:
        rig.feed(frame(pack(agg(number))))
    rig.feed(frame(pack(book(1))))
    lane.flush(rig.lane, 1)
    gaps = [(int(r["id"]), int(r["a"])) for r in rig.read() if r["kind"] == GAP]
    assert gaps == ([(2, 0)] if waiting <= 8 else [(2, 0), (2, 10)])
    assert rig.counts().get("held", 0) == (waiting if waiting <= 8 else 0)


@pytest.mark.parametrize(
    "head", [b"\x89\x00", b"\x88\x00", b"\x01\x02{}", b"\x82\x02{}", b"\xc1\x02{}",
             b"\x81\x82\0\0\0\0{}", b"\x80\x00", b"\x81\xff"],
)  # fmt: skip
def test_whatever_is_no_whole_text_frame_stops_the_pass(
    make_rig: Callable[..., Rig], head: bytes
) -> None:
    rig = make_rig(256)
    assert rig.feed(frame(pack(agg(1))) + head + frame(pack(agg(2)))) == decoder.UNUSUAL
    assert rig.rest.startswith(head) and rig.counts()["trades"] == 1
