"""`aegis bench` answers right and says so; how fast is never asserted."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import analysis, brain, decode, entries, frames, kernels, report, venue
from benchmarks import main as bench
from brain.closing import WHERE
from brain.state import memory_state

ROOT = Path(__file__).resolve().parent.parent


def sender(ticks: int, symbols: int) -> subprocess.Popen[str]:
    words = ["--symbols", str(symbols), "--ticks", str(ticks)]
    argv = [sys.executable, "-m", "benchmarks.sender", *words]
    return subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, cwd=ROOT)


def bench_feed(port: int, ticks: int, symbols: int) -> tuple[int, dict[str, Any]]:
    words = ["--url", f"ws://127.0.0.1:{port}", "--ticks", str(ticks), "--symbols", str(symbols)]
    argv = [sys.executable, "-m", "benchmarks.main", "feed", *words]
    done = subprocess.run(argv, capture_output=True, text=True, cwd=ROOT, timeout=240)
    return done.returncode, json.loads(done.stdout.splitlines()[-1])


def test_bench_feed_reads_every_tick_of_a_foreign_server() -> None:
    with sender(20_000, 7) as process:
        assert process.stdout is not None
        hello = json.loads(process.stdout.readline())
        code, found = bench_feed(hello["port"], 20_000, 7)
        process.kill()
    assert code == 0 and found["ticks"] == 20_000
    assert found["price_sum"] == pytest.approx(hello["price_sum"], rel=1e-12)
    assert found["seconds"] > 0 and found["cpu_seconds"] > 0


def test_the_decoder_benchmark_notices_a_wrong_sum(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode, "ROUNDS", 1)
    payloads, total = frames.agg_trades(500, 20)
    assert len(decode.ours(payloads, total)) == 1
    with pytest.raises(RuntimeError, match="decode"):
        decode.ours(payloads, total + 1.0)
    with pytest.raises(RuntimeError, match="summed"):
        decode.timed(lambda raw: 1.0, payloads, total)


def test_the_close_benchmark_measures_and_notices_a_wrong_answer() -> None:
    found = {each.name: each for each in analysis.run(1_500, 1)}
    assert found["close, all of it"].value > found["close, indicators"].value > 0.0
    state, candles = memory_state(1), analysis.walk(300)
    where = np.zeros(WHERE, np.int64)
    _, gaps = analysis._closes(state.arrays, candles, analysis.new_events(256), where)
    analysis.check(state.arrays, candles, gaps)
    with pytest.raises(RuntimeError, match="gaps"):
        analysis.check(state.arrays, candles, gaps + 1)
    state.arrays.ind[0, 0, 0] += 1e-3
    with pytest.raises(RuntimeError, match="ema9"):
        analysis.check(state.arrays, candles, gaps)


def test_the_brain_benchmark_closes_all_five_timeframes_at_midnight() -> None:
    past, ticks = brain.history(3), brain.market(3, 3_000, brain.START_MS)
    desk = brain.Desk(3, np.concatenate([past, ticks]))
    desk.run(desk.words[brain.HEAD], 512)
    assert brain.minute_boundary(desk) > 0.0


def test_the_brain_benchmark_compares_candles() -> None:
    past, ticks = brain.history(3), brain.market(3, 3_000, brain.START_MS)
    desk = brain.Desk(3, brain.np.concatenate([past, ticks]))
    desk.run(desk.words[brain.HEAD], 512)
    assert brain.check(desk, ticks) == 3
    desk.state.arrays.forming[1, 0, brain.HIGH] += 0.5
    with pytest.raises(RuntimeError, match="candle"):
        brain.check(desk, ticks)


def test_the_kernel_benchmark_counts_what_is_compiled_and_what_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared = Path(os.environ.get("NUMBA_CACHE_DIR") or tmp_path)
    kernels.start(shared)  # in processes of their own, the second of which compiles nothing
    seconds, counts = kernels.start(shared)
    assert seconds > 0.0 and counts["compiled"] == 0 and counts["loaded"] > 0
    with pytest.raises(RuntimeError, match="do not compile"):
        kernels.start(shared, "no room")
    folders = []

    def start(folder: Path) -> tuple[float, dict[str, Any]]:
        cold = not [*folder.iterdir()]
        if cold:
            folders.append(folder)
            (folder / "a.nbc").touch()
        return 9.0 if cold else 1.0, {"compiled": 7 * cold, "loaded": int(not cold), "uncached": []}

    monkeypatch.setattr(kernels, "start", start)
    cold, warm = kernels.run()
    assert len(folders) == kernels.COLD_ROUNDS and not any(path.exists() for path in folders)
    assert (cold.value, warm.value) == (9.0, 1.0)
    assert cold.row()["compiled"] == 7 and warm.row()["loaded"] == 1


@pytest.mark.parametrize(
    ("cold", "warm", "files", "right"),
    [
        ((9, 0), (0, 3), 3, True), ((9, 1), (0, 3), 3, False), ((0, 0), (0, 3), 3, False),
        ((9, 0), (1, 3), 3, False), ((9, 0), (0, 3), 4, False), ((9, 0), (0, 0), 0, False),
    ],
)  # fmt: skip
def test_the_kernel_benchmark_notices_a_wrong_start(
    cold: tuple[int, int], warm: tuple[int, int], files: int, right: bool
) -> None:
    told = [{"compiled": c, "loaded": n, "uncached": []} for c, n in (cold, warm)]
    if right:
        kernels.check(*told, files)
        told[1]["uncached"] = ["x"]
    with pytest.raises(RuntimeError):
        kernels.check(*told, files)


@pytest.mark.parametrize(
    ("value", "at_most", "ok"),
    [(9.9, True, True), (10.0, True, True), (10.1, True, False), (9.9, False, False)],
)
def test_a_target_has_a_good_side(value: float, at_most: bool, ok: bool) -> None:
    result = report.Result("x", "ns", [value], 10.0, at_most)
    assert result.ok is ok and result.row()["ok"] is ok
    assert ("**short**" in report.table([result])) is not ok


def test_an_unknown_benchmark_is_a_wrong_call(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        bench.main(["nonsense"])
    assert ended.value.code == 2 and "nonsense" in capsys.readouterr().err


@pytest.mark.parametrize("step", [1, 2, 3, 7, 1_000, 1 << 20])
def test_the_venue_benchmark_counts_frames_however_they_are_cut(step: int) -> None:
    sizes = [0, 1, 125, 126, 300, 65_535, 65_536, 2]
    heads = [
        bytes((0x81, n))
        if n < 126
        else bytes((0x81, 126)) + n.to_bytes(2, "big")
        if n < 65_536
        else bytes((0x81, 127)) + n.to_bytes(8, "big")
        for n in sizes
    ]
    data = b"".join(head + bytes(n) for head, n in zip(heads, sizes, strict=True))
    header, frames_seen, left, have = np.zeros(16, np.uint8), 0, 0, 0
    for at in range(0, len(data), step):
        part = np.frombuffer(data[at : at + step], np.uint8)
        more, left, have = venue.count_frames(part, len(part), left, header, have)
        frames_seen += more
    assert (frames_seen, left, have) == (len(sizes), 0, 0)


def test_the_venue_benchmark_holds_its_count_against_the_venue() -> None:
    paced, share, per_core = venue.ticks(symbols=3, rate=500, samples=1)
    assert paced.value > 0 and share.value > 0 and per_core.value > 0
    answered, cost = venue.orders(count=64, rounds=1)
    assert answered.value > 0 and cost.value > 0


def test_ccxts_entries_are_counted_in_the_ledger_and_a_missing_one_is_noticed() -> None:
    with entries.rival(4) as peer:
        assert peer.symbols == 4 and peer.one_round() > 0.0
        assert peer.one_round() > 0.0  # flat again in between
        peer.symbols = 5
        with pytest.raises(RuntimeError, match="the rival placed 24 events"):
            peer.one_round()
