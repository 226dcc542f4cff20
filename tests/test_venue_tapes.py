"""Tapes: archives, sessions and recordings play as what they are, or are refused in a sentence."""

from __future__ import annotations

import gzip
import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
import zipfile
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.conftest import DATA, ROOT
from tests.test_venue_market import run, world
from tests.test_venue_server import Running
from venue import archive, bars, exchange, market, source, tape
from venue import record as recorder
from venue.exchange import Setup
from venue.market import AGG, BOOK, EVENT_MS, FLAG, ID, KIND, P1, P2, Q1, Q2, SYM, TRADE_MS, Ints
from venue.recording import Recording, Tap
from venue.sockets import Hub
from venue.tape import TapeError

SESSIONS = DATA / "binance_ws_trades_hftbacktest.npz"
needs_sessions = pytest.mark.skipif(
    not SESSIONS.exists(), reason=f"the real sessions {SESSIONS} are not on this machine"
)
AGGS = "agg_trade_id,price,quantity,first_trade_id,last_trade_id,transact_time,is_buyer_maker"
BOOKS = (
    "update_id,best_bid_price,best_bid_qty,best_ask_price,best_ask_qty,transaction_time,event_time"
)
T = 1_709_596_800_000  # 2024-03-05
#        id price qty first last time maker; unordered, one without quantity, one there twice
ROWS = [
    f"12,68000.5,0.25,105,105,{T + 300},True",
    f"10,68000.1,1.5,101,103,{T + 100},false",
    f"11,68000,2,104,104,{T + 100},true",
    f"13,68001,0,106,106,{T + 400},false",
    f"12,68000.5,0.25,105,105,{T + 300},true",
    f"14,68002,0.001,107,109,{T + 200},False",
]
QUOTES = [
    f"7,68000.1,3,68000.2,1,{T + 250},{T + 252}",
    f"5,67999.9,1.5,68000.1,4,{T + 50},{T + 51}",
]


def write(folder: Path, name: str, lines: list[str], zipped: bool = False) -> str:
    text = "\n".join(lines) + "\n"
    path = folder / name
    if zipped:
        path = path.with_suffix(".zip")
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
            file.writestr(name, text)
    else:
        path.write_text(text)
    return str(path)


@pytest.mark.parametrize("header", [True, False])
@pytest.mark.parametrize("zipped", [True, False])
def test_an_archive_plays_its_aggregates_in_order_of_their_ids(
    tmp_path: Path, header: bool, zipped: bool
) -> None:
    lines = [AGGS, *ROWS] if header else ROWS
    made = tape.load([write(tmp_path, "BTCUSDT-aggTrades-2024-03-05.csv", lines, zipped)])
    aggs = made.rows[made.rows[:, KIND] == AGG]
    assert made.symbols[0].name == "BTCUSDT" and made.symbols[0].price_digits == 2
    assert aggs[:, ID].tolist() == [10, 11, 12, 14]
    assert aggs[:, P1].tolist() == [6800010, 6800000, 6800050, 6800200]
    assert aggs[:, Q1].tolist() == [1500, 2000, 250, 1]
    assert aggs[:, [P2, Q2]].tolist() == [[101, 103], [104, 104], [105, 105], [107, 109]]
    assert aggs[:, FLAG].tolist() == [0, 1, 1, 0]
    # an id that came late has the time of the one before it
    assert (aggs[:, EVENT_MS] - T).tolist() == (aggs[:, TRADE_MS] - T).tolist() == [
        100, 100, 300, 300,
    ]  # fmt: skip
    assert made.dropped == 2


def test_quotes_made_from_trades_let_every_trade_print_at_the_touch(tmp_path: Path) -> None:
    rows = tape.load([write(tmp_path, "BTCUSDT-aggTrades-2024-03-05.csv", ROWS)]).rows
    book = None
    for row in rows:
        if row[KIND] == BOOK:
            assert 0 < row[P1] < row[P2] <= row[P1] + 100 and row[Q1] > 0 and row[Q2] > 0
            book = row
        else:
            assert book is not None and row[P1] == (book[P1] if row[FLAG] else book[P2])
    quotes = rows[rows[:, KIND] == BOOK]
    assert quotes[:, [P1, P2]].tolist() == [
        [6800000, 6800010],
        [6800050, 6800060],
        [6800100, 6800200],
    ]


def test_quotes_of_the_archive_win_and_files_of_a_symbol_are_joined(tmp_path: Path) -> None:
    made = tape.load(
        [
            write(tmp_path, "BTCUSDT-aggTrades-2024-03-05.csv", [AGGS, *ROWS[:3]], True),
            write(tmp_path, "BTCUSDT-aggTrades-2024-03-06.csv", [AGGS, ROWS[5]]),
            write(tmp_path, "BTCUSDT-bookTicker-2024-03-05.csv", [BOOKS, *QUOTES]),
            write(tmp_path, "ABCUSDT-aggTrades-2024-03-05.csv", [f"1,0.12345,7,1,1,{T},true"]),
        ]
    )
    assert [s.name for s in made.symbols] == ["BTCUSDT", "ABCUSDT"]
    assert (made.symbols[1].price_digits, made.symbols[1].qty_digits) == (5, 0)
    mine = made.rows[made.rows[:, SYM] == 0]
    quotes = mine[mine[:, KIND] == BOOK]
    assert quotes[:, [ID, P1, Q1, P2, Q2]].tolist() == [
        [5, 6799990, 1500, 6800010, 4000],
        [7, 6800010, 3000, 6800020, 1000],
    ]
    assert (quotes[:, EVENT_MS] - T).tolist() == [51, 252]
    assert mine[mine[:, KIND] == AGG][:, ID].tolist() == [10, 11, 12, 14]
    assert (np.diff(made.rows[:, EVENT_MS]) >= 0).all()


def test_single_trades_of_an_archive_are_aggregated_as_the_exchange_does(tmp_path: Path) -> None:
    rows = [f"{k},2.5,3,7.5,{T + ms},{maker}" for k, ms, maker in
            ((1, 10, "true"), (2, 60, "true"), (3, 111, "true"), (4, 112, "false"))]  # fmt: skip
    header = "id,price,qty,quote_qty,time,is_buyer_maker"
    made = tape.load([write(tmp_path, "XYZUSDT-trades-2024-03-05.csv", [header, *rows])])
    aggs = made.rows[made.rows[:, KIND] == AGG]
    assert aggs[:, [P2, Q2, Q1]].tolist() == [[1, 2, 6], [3, 3, 3], [4, 4, 3]]


def test_the_candles_of_an_archive_are_those_of_its_trades(tmp_path: Path) -> None:
    lines = [
        f"{k},{100 + k % 7},{1 + k % 3},{2 * k},{2 * k + 1},{T + k * 1700},{k % 2 == 0}"
        for k in range(1, 400)
    ]
    path = write(tmp_path, "XYZUSDT-aggTrades-2024-03-05.csv", lines)
    made = exchange.create(Setup("w", 1, 0.0, 7, 1.0, 0.0, (path,)))
    run(made, 400 * 1700 + 120_000, 7)
    assert market.tape_ended(made.market)
    shown = {int(b[bars.OPEN_MS]): b for b in bars.candles(made.record, 0, 0)}
    for minute in range(T, T + 11 * 60_000, 60_000):
        own = [k for k in range(1, 400) if minute <= T + k * 1700 < minute + 60_000]
        bar = shown[minute]
        prices = [100 + k % 7 for k in own]
        wanted = [prices[0], max(prices), min(prices), prices[-1], sum(1 + k % 3 for k in own)]
        assert bar[1:6].tolist() == wanted and bar[bars.TRADES] == 2 * len(own)


def bad(folder: Path, case: str) -> str:
    name = "BTCUSDT-aggTrades-2024-03-05.csv"
    cases: dict[str, list[str]] = {
        "word": [AGGS, *ROWS[:2], f"11,abc,2,104,104,{T},true"],
        "short": [*ROWS[:3], "12,5"],
        "header": ["a,b,c", *ROWS],
        "nan": [ROWS[0], f"11,nan,2,104,104,{T},true"],
        "long": [ROWS[0], f"11,5.123456789,2,104,104,{T},true"],
        "half": [ROWS[0], f"11.5,1,2,104,104,{T},true"],
        "empty": [AGGS],
    }
    if case in cases:
        return write(folder, name, cases[case])
    path = folder / (
        f"{name[:-4]}.zip" if case == "zip" else "what.csv" if case == "name" else name
    )
    path.write_bytes(b"PK nonsense")
    return str(path) if case != "missing" else str(folder / "gone" / name)


@pytest.mark.parametrize(
    ("case", "why"),
    [("word", "line 4: could not convert"), ("short", "line 4: 2 columns, aggTrades has 7"),
     ("header", "line 1: the header"), ("nan", "line 2: a number is out of range"),
     ("long", "line 2: a number has too many digits"), ("half", "line 2: a number must be"),
     ("empty", "has no rows"), ("zip", "cannot be read"), ("name", "has no name that tells"),
     ("missing", "does not exist")],
)  # fmt: skip
def test_a_bad_archive_is_one_sentence_with_file_and_line(
    tmp_path: Path, case: str, why: str
) -> None:
    path = bad(tmp_path, case)
    good = write(tmp_path, "ETHUSDT-aggTrades-2024-03-05.csv", ROWS)
    with pytest.raises(TapeError) as refused:
        tape.load([good, path])
    said = str(refused.value)
    assert path in said and why in said and "\n" not in said


def test_a_bad_line_far_into_a_file_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archive, "CHUNK_BYTES", 500)
    lines = [f"{k},1.5,2,{k},{k},{T + k},true" for k in range(100)]
    path = write(tmp_path, "BTCUSDT-aggTrades-2024-03-05.csv", [AGGS, *lines])
    assert (tape.load([path]).rows[:, KIND] == AGG).sum() == 100
    lines[77] = lines[77].replace("true", "maybe")
    path = write(tmp_path, "BTCUSDT-aggTrades-2024-03-05.csv", [AGGS, *lines])
    with pytest.raises(TapeError, match="line 79: could not convert"):
        tape.load([path])


@pytest.mark.parametrize("rows_max", [3, 4, 5])
def test_a_tape_has_a_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows_max: int) -> None:
    monkeypatch.setattr(tape, "ROWS_MAX", rows_max)
    path = write(tmp_path, "BTCUSDT-aggTrades-2024-03-05.csv", [ROWS[k] for k in (0, 1, 2, 5)])
    if rows_max >= 4:
        assert (tape.load([path]).rows[:, KIND] == AGG).sum() == 4
        return
    with pytest.raises(TapeError, match="is too long"):
        tape.load([path])


@pytest.mark.parametrize(
    "text",
    [
        "0",
        "1",
        "0.1",
        "61800.30",
        "0.00000001",
        "9999999.12345678",
        "123456789.5",
        "89999999999",
        "1e3",
    ],
)
def test_parsed_decimals_are_exact(text: str) -> None:
    wanted = int(Decimal(text).scaleb(8))
    assert source.e8(np.array([float(text)])).tolist() == [wanted]
    if "e" not in text:
        assert source.e8_of(text)[0] == wanted


@needs_sessions
@pytest.mark.parametrize(
    ("session", "digits"),
    [("usdm_BTCUSDT_20240808", (2, 3)), ("spot_ETHUSDT_20240808", None),
     ("cm_BTCUSD_PERP_20240808", (1, 0))],
)  # fmt: skip
def test_a_session_of_real_trades_plays(session: str, digits: tuple[int, int] | None) -> None:
    made = tape.load([f"{SESSIONS}:{session}"])
    with np.load(SESSIONS) as arrays:
        trades, quotes = arrays[f"{session}__trades"], arrays[f"{session}__bookticker"]
    s, aggs = made.symbols[0], made.rows[made.rows[:, KIND] == AGG]
    good = trades[(trades["market"] != 0) & (trades["qty"] > 0)]
    assert made.dropped == len(trades) - len(good)
    assert s.name == session.split("_", 1)[1].rsplit("_", 1)[0]
    assert digits is None or (s.price_digits, s.qty_digits) == digits
    assert (aggs[:, Q2] - aggs[:, P2] + 1).sum() >= len(good)
    total = sum(Decimal(str(q)) for q in good["qty"].tolist())
    assert s.qty_of(int(aggs[:, Q1].sum())) == total
    books = made.rows[made.rows[:, KIND] == BOOK]
    assert len(books) == len(quotes) and (books[:, P1] < books[:, P2]).all()
    assert np.allclose(books[:, P1] / 10**s.price_digits, quotes["bid"])
    assert abs(int(books[0, EVENT_MS]) - int(aggs[0, EVENT_MS])) < 5_000
    assert (np.diff(made.rows[:, EVENT_MS]) >= 0).all()


@needs_sessions
@pytest.mark.parametrize("name", ["", ":usdm_BTCUSDT_19990101"])
def test_a_session_must_be_named_where_there_are_several(name: str) -> None:
    with pytest.raises(TapeError, match=r"usdm_BTCUSDT_20240808.*choose one as FILE:SESSION"):
        tape.load([f"{SESSIONS}{name}"])


def record(folder: Path, made: Any, ms: float) -> tuple[Path, Ints]:
    """What a world publishes in that time, as a file and as its own rows."""
    path = folder / "own.gz"
    recording = Recording(path)
    hub = Hub(made.specs, True)
    hub.tap(Tap(recording, lambda: 5))
    rows = []
    for count in exchange.advance(made, made.made_until_ms + ms, 0):
        hub.fan_out(made.rows, count)
        rows.append(made.rows[:count].copy())
    recording.close()
    return path, np.concatenate(rows)


def test_a_recording_of_a_generated_world_plays_the_same_ticks_in_the_same_order(
    tmp_path: Path,
) -> None:
    made = world(23)
    path, rows = record(tmp_path, made, 60_000)
    told = rows[rows[:, KIND] <= BOOK]
    again = exchange.create(Setup("w", 23, 0.0, 7, 20.0, 0.0, (str(path),)))
    played = run(again, 120_000, 9)
    played = played[played[:, KIND] <= BOOK]
    names, own = [s.name for s in again.specs], {s.name: s for s in made.specs}
    played[:, SYM] = [own[names[k]].index for k in played[:, SYM]]
    assert np.array_equal(played, told)
    for s in again.specs:
        assert (s.price_digits, s.qty_digits, s.tick) == (
            own[s.name].price_digits,
            own[s.name].qty_digits,
            own[s.name].tick,
        )


def test_a_recording_reads_to_its_last_whole_member_and_never_outgrows_its_bound(
    tmp_path: Path,
) -> None:
    path = tmp_path / "r.gz"
    line = (
        b'{"stream":"x","data":{"e":"trade","E":%d,"T":%d,"s":"ABCUSDT","t":%d,"p":"1.5",'
        b'"q":"2","X":"MARKET","m":true}}'
    )
    recording = Recording(path, bytes_max=1500)
    for k in range(1, 200):
        recording.add(k, [line % (T + k * 500, T + k * 500, k)])
        if k % 10 == 0:
            recording.flush()
    recording.close()
    assert path.stat().st_size == recording.written <= 1500
    assert recording.lines + recording.lost == 199 and recording.lost > 0
    assert len(list(tape.frames(str(path)))) == recording.lines
    whole = path.read_bytes()
    for cut in (1, 5, 60):
        path.write_bytes(whole[:-cut])
        found = tape.load([str(path)]).rows
        ids = found[found[:, KIND] == AGG][:, P2]
        assert recording.lines - 10 <= len(ids) <= recording.lines
        assert ids.tolist() == list(range(1, len(ids) + 1))
    with pytest.raises(FileExistsError):
        Recording(path)


def asked(running: Running, body: bytes) -> Any:
    """What a POST of a scenario answers, refused or not."""
    request = urllib.request.Request(running.url + "/venue/v1/scenario", body, method="POST")
    try:
        with urllib.request.urlopen(request) as reply:
            return json.load(reply)
    except urllib.error.HTTPError as error:
        assert error.code == 400
        return json.load(error)


def test_two_processes_record_a_venue_and_both_tapes_say_what_was_published(
    tmp_path: Path,
) -> None:
    """One inside, one as a stranger that is killed in the middle of its work."""
    inside, outside = tmp_path / "inside.gz", tmp_path / "outside.gz"
    running = Running(
        tmp_path / "state", "--symbols", "2", "--rate", "400", "--seed", "5", "--speed", "1",
        "--record", str(inside), "--scenario", "burst:BTCUSDT:0",
    )  # fmt: skip
    listener = subprocess.Popen(
        [sys.executable, "-m", "venue.record", running.ws, str(outside), "BTCUSDT", "ETHUSDT"],
        cwd=ROOT, env=os.environ, stdout=subprocess.PIPE,
    )  # fmt: skip
    try:
        deadline = time.monotonic() + 60
        while not outside.exists() or outside.stat().st_size < 8_000:
            assert time.monotonic() < deadline
            time.sleep(0.1)
        assert running.get("/venue/v1/scenario")["scenarios"][0]["kind"] == "burst"
        planned = asked(running, b'{"kind":"trend","symbol":"ETHUSDT","at_s":3600}')
        assert (planned["id"], planned["state"], planned["pct"]) == (1, "waiting", 2.0)
        refused = asked(running, b'{"kind":"gap","symbol":"ETHUSDT","at_s":3660}')
        assert refused["code"] == -1130 and "has a trend from" in refused["msg"]
    finally:
        listener.send_signal(signal.SIGKILL)
        listener.communicate()
        assert running.stop() == 0
    whole, part = tape.load([str(inside)]), tape.load([str(outside)])
    aggs, heard = (t.rows[t.rows[:, KIND] == AGG] for t in (whole, part))
    order = {s.name: s.index for s in whole.symbols}
    heard[:, SYM] = [order[part.symbols[k].name] for k in heard[:, SYM]]
    assert len(heard) > 100
    for s in range(2):
        own, theirs = aggs[aggs[:, SYM] == s], heard[heard[:, SYM] == s]
        first = int(np.flatnonzero(own[:, ID] == theirs[0, ID])[0])
        assert np.array_equal(own[first : first + len(theirs)], theirs)
        assert own[0, ID] == market.FIRST_ID + 1 and (np.diff(own[:, ID]) == 1).all()


def test_a_tape_that_is_no_gzip_of_frames_names_the_line(tmp_path: Path) -> None:
    path = tmp_path / "x.gz"
    good = (
        b'1 {"data":{"e":"bookTicker","E":2,"T":1,"s":"X","u":1,"b":"1","B":"1","a":"2","A":"1"}}\n'
    )
    path.write_bytes(gzip.compress(good + good.replace(b'"b":"1"', b'"b":"x"')))
    with pytest.raises(TapeError, match="line 2: ValueError"):
        tape.load([str(path)])


@pytest.mark.parametrize(
    ("url", "symbols"), [("http://127.0.0.1:1", 1), ("ws://127.0.0.1:1", recorder.SYMBOLS_MAX + 1)]
)
def test_the_recorder_wants_an_address_of_streams_and_a_bounded_list(
    tmp_path: Path, url: str, symbols: int, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        recorder.main([url, str(tmp_path / "x.gz"), *["BTCUSDT"] * symbols])
    assert "are needed" in capsys.readouterr().err and not list(tmp_path.iterdir())
