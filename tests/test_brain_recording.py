"""Recordings: what was recorded replays to the same digests, and nothing else passes for it."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import redis
from brain_bench import START_MS, lively_market, table
from live_brain import Feed, counter, start_brain, until

import records as rec
import ring as rings
import streams
from brain import desk as desks
from brain import recording as recs
from brain import snapshot
from brain.engine import Engine
from brain.inputs import use_input
from brain.kernel import new_events
from brain.record import lane_path, parse_wish
from brain.recording import Recorder, RecordingError, blocks
from brain.replay import replay
from brain.rules import No, as_rule, load_rules, rule
from brain.signals import Terms
from brain.state import memory_state
from brain.view import CandleView
from ring import COUNTERS_MAX, HEAD, WORDS

ROOT = Path(__file__).resolve().parent.parent
KEYS = streams.Keys("sim")
SETTINGS = {
    "mode": "sim", "world": "w", "node": "n", "rules": [], "entry_policy": "rule",
    "signal_age_ms": 15_000,
}  # fmt: skip


@dataclass
class Live:
    """A brain's loop in this thread over a ring in memory, recording to `path`."""

    path: Path
    records: np.ndarray
    bytes_max: int = 1 << 30
    recorder: Recorder | None = None
    effects: list[Any] = field(default_factory=list)
    clock: int = 0
    patient: bool = True  # this loop is faster than any market: let the thread keep up

    def __post_init__(self) -> None:
        terms = Terms("w", "n", "rule", 15_000)
        desk = desks.new_desk(memory_state(4), load_rules(), terms, 0.0005)
        slots = np.zeros(1 << 14, rec.RECORD)
        self.words = np.zeros(WORDS, np.int64)
        self.engine = Engine(self.words, slots, np.zeros(COUNTERS_MAX, np.int64), desk, 0)

    def record(self, file: Any = None, **more: Any) -> Recorder:
        engine = self.engine
        header = {
            "format": recs.FORMAT, "record": recs.record_layout(), "code": recs.code(),
            "settings": SETTINGS, "taker_fee": engine.desk.taker_fee, "seq": engine.seq,
        }  # fmt: skip
        self.recorder = Recorder(
            file or self.path.open("xb"), self.path, header, snapshot.take(engine.desk),
            engine.seq, self.bytes_max, self.clock, **more,
        )  # fmt: skip
        self.recorder.start()
        return self.recorder

    def run(self, upto: int, batch: int = 500) -> None:
        """Consume up to a record; the ring gets 700 at a time. A second per round passes."""
        engine, recorder = self.engine, self.recorder
        while engine.seq < upto:
            while self.patient and recorder and not (recorder._pool or recorder.ended):
                time.sleep(0.001)
            if self.words[HEAD] == engine.seq:
                at = engine.seq + np.arange(min(700, upto - engine.seq))
                engine.slots[at & (len(engine.slots) - 1)] = self.records[at]
                self.words[HEAD] = engine.seq + len(at)
            if recorder:
                recorder.copy(
                    engine.raw, engine.seq, min(int(self.words[HEAD]), engine.seq + batch + 1)
                )
            rows = engine.take(min(batch, int(self.words[HEAD]) - engine.seq))
            if len(rows):
                if recorder:
                    recorder.note_events(rows)
                self._note(desks.on_events(engine.desk, rows, lambda: 5))
            if engine.settled and recorder:
                self.clock += 300_000_000
                recorder.round_over(engine.seq, self.clock)

    def use(self, told: dict[str, Any]) -> None:
        if self.recorder:
            self.recorder.note_input(self.engine.seq, told)
        self._note(use_input(self.engine.desk, told))

    def _note(self, effects: Any) -> None:
        for effect in effects:
            self.effects.append(effect)
            if self.recorder:
                self.recorder.note(effect)

    def stop(self) -> dict[str, Any]:
        assert self.recorder is not None
        self.recorder.stop(self.engine.seq, "as asked")
        assert self.recorder.close(20)
        return self.recorder.told


@pytest.fixture(scope="module")
def market() -> np.ndarray:
    return table(lively_market(3, 3, 300))


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory, market: np.ndarray) -> tuple[Path, dict]:
    """A recording that begins midway, with a model, signals from elsewhere and a slow rule."""
    path = tmp_path_factory.mktemp("rec") / "a.aegisrec"
    live = Live(path, market)
    third = len(market) // 3
    live.run(third)
    assert live.engine.desk.open
    live.record()
    live.run(third + 1000)
    live.use({"input": "model", "version": "7", "counts": {"sweep_reversal|1m": [40, 2, 1]}})
    live.run(2 * third)
    known = [e for e in live.effects if isinstance(e, desks.PutSignal)][-1]
    stranger = {**json.loads(known.pending), "id": "stranger", "rule": "other"}
    live.use({"input": "pending", "signals": {"stranger": json.dumps(stranger), "bad": "{"}})
    live.run(2 * third + 2000)
    live.use({"input": "rule", "name": "zone_retest", "state": "shadow", "why": "slow: 9 ms"})
    live.run(len(market))
    return path, live.stop()


@pytest.mark.parametrize("batch", [1, 7, 4096])
def test_a_replay_equals_the_live_run_whatever_the_batches(recorded, batch: int) -> None:
    path, told = recorded
    made = replay(path, batch=batch)
    assert made.equal and made.same_code and made.complete
    assert made.digest.told() == told
    counts = told["counts"]
    for name in ("ticks", "events", "features", "signals", "outcomes", "decisions", "journal"):
        assert counts[name] > 0, name
    assert counts["signals.shadow"] > 0 and counts["events.structure"] > 0
    assert made.recorded["reason"] == "as asked"


def test_inputs_are_used_where_they_were_used(recorded, tmp_path: Path) -> None:
    path, _ = recorded
    kinds = [block.kind for block in blocks(path)]
    assert kinds.count(recs.INPT) == 3 and kinds.count(recs.MARK) > 5
    for number in range(3):  # each of them matters
        at = [i for i, kind in enumerate(kinds) if kind == recs.INPT][number]
        made = list(blocks(path))
        del made[at]
        recs.rewrite(tmp_path / f"{number}", made)
        assert not replay(tmp_path / f"{number}").equal


@pytest.mark.parametrize("kind, name", [(rec.TRADE, "a"), (rec.TRADE, "b"), (rec.QUOTE, "c")])
def test_one_changed_last_digit_changes_the_digest(recorded, tmp_path, kind, name) -> None:
    path, told = recorded
    made = list(blocks(path))
    at = next(i for i, block in enumerate(made) if block.kind == recs.RECS)
    records = recs.records_of(made[at]).copy()
    row = int(np.flatnonzero(records["kind"] == kind)[0])
    records[name][row] += 0.001
    made[at] = recs.records_block(records, made[at].seq)
    recs.rewrite(tmp_path / "changed", made)
    changed = replay(tmp_path / "changed")
    assert not changed.equal and changed.digest.told()["digest"] != told["digest"]
    if kind == rec.TRADE:  # and it shows in what came out, not only in what went in
        assert changed.digest.told()["digests"]["events"] != told["digests"]["events"]


def test_an_unchanged_rewrite_replays_the_same(recorded, tmp_path: Path) -> None:
    path, told = recorded
    recs.rewrite(tmp_path / "same", list(blocks(path)))
    assert replay(tmp_path / "same").digest.told() == told


def test_a_part_counts_only_itself_and_the_parts_are_the_whole(recorded) -> None:
    path, told = recorded
    middle_ms = START_MS + 200 * 60_000
    head, tail = replay(path, until_ms=middle_ms), replay(path, from_ms=middle_ms, batch=3)
    parts = [each.digest.told()["counts"] for each in (head, tail)]
    assert all(part["signals"] > 0 for part in parts)
    for name, count in told["counts"].items():
        assert sum(part.get(name, 0) for part in parts) == count, name
    assert head.last_ms < middle_ms <= tail.first_ms
    again = replay(path, from_ms=middle_ms)
    assert again.digest.told() == tail.digest.told()


def test_a_file_that_was_cut_anywhere_is_told_in_one_sentence(recorded, tmp_path: Path) -> None:
    path, _ = recorded
    raw, cut = path.read_bytes(), tmp_path / "cut"
    for size in [*range(8, len(raw), max(len(raw) // 40, 1)), len(raw) - 1]:
        cut.write_bytes(raw[:size])
        with pytest.raises(RecordingError, match="cut off"):
            list(blocks(cut))
    made = replay(cut, partial=True)
    assert made.equal and not made.complete  # up to the last mark


def test_a_recording_that_was_cut_off_in_its_first_second_is_told_in_one_sentence(
    recorded, tmp_path: Path
) -> None:
    path, _ = recorded
    recs.rewrite(tmp_path / "short", list(blocks(path))[:2])
    with pytest.raises(RecordingError, match="before its first second"):
        replay(tmp_path / "short", partial=True)
    assert replay(path, until_ms=1).recorded == {}  # a part may end before the first mark


def test_a_bar_without_its_volume_is_told_and_not_waited_for(recorded, tmp_path: Path) -> None:
    path, _ = recorded
    made = list(blocks(path))
    at = next(i for i, block in enumerate(made) if block.kind == recs.RECS)
    records = recs.records_of(made[at]).copy()
    records["kind"][-1] = rec.BAR
    made[at] = recs.records_block(records, made[at].seq)
    recs.rewrite(tmp_path / "lone", made)
    with pytest.raises(RecordingError, match="has no volume"):
        replay(tmp_path / "lone")


def test_foreign_damaged_and_other_files_are_told_in_one_sentence(recorded, tmp_path) -> None:
    path, _ = recorded
    raw, bad = bytearray(path.read_bytes()), tmp_path / "bad"
    with pytest.raises(RecordingError, match="cannot be read"):
        list(blocks(tmp_path / "nothing"))
    bad.write_bytes(b"hello, world")
    with pytest.raises(RecordingError, match="no recording"):
        list(blocks(bad))
    for at in range(8, len(raw), len(raw) // 50):
        changed = raw.copy()
        changed[at] ^= 1
        bad.write_bytes(changed)
        with pytest.raises(RecordingError) as caught:
            list(blocks(bad))
        assert "\n" not in str(caught.value)
    made = list(blocks(path))
    header = json.loads(made[0].content)
    made[0] = made[0]._replace(content=json.dumps({**header, "format": 9}).encode())
    recs.rewrite(bad, made)
    with pytest.raises(RecordingError, match="another version"):
        replay(bad)


def test_a_recording_ends_at_its_bound_and_holds_what_it_says(tmp_path: Path, market) -> None:
    live = Live(tmp_path / "a", market, bytes_max=400_000)
    recorder = live.record()
    for at in range(1000, len(market), 1000):
        live.run(at)
        time.sleep(0.005)
    live.run(len(market))
    until(lambda: recorder.ended, "its end")
    assert "bound" in recorder.ended
    assert 200_000 < live.path.stat().st_size <= 400_000
    made = replay(live.path)
    assert made.equal and made.complete and 0 < made.digest.counts["ticks"] < len(market)
    assert live.engine.seq == len(market)  # nobody waited for it


class SlowDisk(io.FileIO):
    """A disk that hangs until it is let go."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, "w")
        self.go = threading.Event()

    def write(self, raw: Any) -> int:
        if self.tell() > 1000:
            self.go.wait(60)
        return super().write(raw)


def test_a_disk_that_hangs_ends_the_recording_never_the_brain(tmp_path: Path, market) -> None:
    live = Live(tmp_path / "a", market, patient=False)
    disk = SlowDisk(live.path)
    recorder = live.record(disk, buffers=3)
    live.run(len(market))  # would hang here if anything waited
    assert live.engine.seq == len(market)
    disk.go.set()
    until(lambda: not recorder.is_alive(), "its end")
    assert recorder.ended == "the disk is slower than the market"
    assert replay(live.path).equal


def test_a_full_disk_is_a_reason(tmp_path: Path, market) -> None:
    live = Live(tmp_path / "a", market)
    recorder = live.record(io.FileIO("/dev/full", "w"))
    live.run(len(market))
    until(lambda: recorder.ended, "its end")
    assert "No space left" in recorder.ended


def test_wishes_are_checked() -> None:
    assert parse_wish("") is None
    made = parse_wish('{"id": "a", "out": "/x/y", "seconds": 3}')
    assert made is not None and (made.id, made.seconds) == ("a", 3.0)
    relative, never = (
        '{"id": "a", "out": "rel", "seconds": 3}', '{"id": "a", "out": "/x", "seconds": 0}'
    )  # fmt: skip
    for bad in ("x", "[]", relative, never, '{"out": "/x", "seconds": 1}'):
        with pytest.raises(ValueError):
            parse_wish(bad)
    assert lane_path("/x/a.aegisrec", "brain") == Path("/x/a.aegisrec")
    assert lane_path("/x/a.aegisrec", "brain.2") == Path("/x/a.2.aegisrec")


def test_a_record_that_runs_out_of_event_rows_is_judged_whole() -> None:
    """A CLOCK that closes bars of many symbols, in rows that hold a few of them only: no rule is
    asked at a symbol's 1m close while its 5m candle of the same moment is still open."""

    @rule("spy")
    def spy(view: CandleView, params: dict) -> No:
        return No(1, "trend", f"{view.bar_ms} {view.candles('5m')}")

    records, made, broken = table(lively_market(4, 60, 60)), [], 0
    second = records["exch_ns"] // 1_000_000_000 % 60
    tick = np.isin(records["kind"], (rec.TRADE, rec.QUOTE))
    records = records[~(tick & (second < 13))]  # so that a CLOCK is what closes the bars
    for row in range(60):
        mine = np.flatnonzero((records["kind"] == rec.TRADE) & (records["symbol"] == row))
        records["id"][mine] = np.arange(1, len(mine) + 1)
    for rows in (8_192, 164):
        terms = Terms("w", "n", "rule", 15_000)
        desk = desks.new_desk(memory_state(60), [as_rule(spy)], terms, 0.0005)
        slots = np.zeros(1 << 17, rec.RECORD)
        slots[: len(records)] = records
        words, stats = np.zeros(WORDS, np.int64), np.zeros(COUNTERS_MAX, np.int64)
        engine = Engine(words, slots, stats, desk, 0, events=new_events(rows))
        words[HEAD], effects = len(records), list[Any]()
        while engine.seq < len(records):
            found = engine.take()
            broken += not engine.settled
            effects += desks.on_events(desk, found, lambda: 0)
        made.append(effects)
    assert broken > 20 and made[0] == made[1], broken
    assert sum(isinstance(each, desks.PutDecision) for each in made[0]) > 1_000


# --- real processes --------------------------------------------------------------------------


@pytest.fixture
def ring(tmp_path: Path) -> rings.Ring:
    return rings.create(tmp_path / "lane.ring", 1 << 16, 4, "world")


def report_of(r: redis.Redis) -> dict[str, Any]:
    text = r.get(KEYS.brain("n1", "brain"))
    return json.loads(text)["recording"] if text else {}


def cli(*words: str, **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "maintenance.cli", *words], cwd=ROOT, capture_output=True,
        text=True, check=False, timeout=200, env={**os.environ, **environ},
    )  # fmt: skip


def test_the_live_brains_digest_is_the_replays(ring, redis_url: str, tmp_path: Path) -> None:
    r = streams.connect(redis_url)
    recs_in = table(lively_market(3, 2, 200))
    cut = np.flatnonzero(recs_in["exch_ns"] > recs_in["exch_ns"][len(recs_in) * 2 // 3])[0]
    feed = Feed(ring)
    brain = start_brain(ring, redis_url, AEGIS_RECORD=str(tmp_path / "recs"))
    feed.write(recs_in[:cut])
    r.hset(KEYS.model_live, mapping={"version": "4", "counts": '{"sweep_reversal|1m": [9, 1, 1]}'})
    stranger = next(json.loads(v) for v in r.hvals(KEYS.pending))
    r.hset(KEYS.pending, "stranger", json.dumps({**stranger, "id": "stranger", "rule": "other"}))
    time.sleep(3.0)  # it looks every two seconds
    again = table([(int(recs_in["exch_ns"][cut - 1]), 1, 0, 0, 0, 0, 0, 0, rec.HEALED, 0, 0)])
    feed.write(again)  # a symbol that became whole asks for `pending`
    time.sleep(1.0)
    feed.write(recs_in[cut:])
    brain.send_signal(signal.SIGTERM)
    assert brain.wait(20) == 0
    (path,) = (tmp_path / "recs").iterdir()
    kinds = [block.kind for block in blocks(path)]
    assert kinds.count(recs.INPT) >= 2
    for batch in (8192, 7):
        made = replay(path, batch=batch)
        assert made.equal and made.complete
    told = made.digest.told()
    assert told["counts"]["records"] == len(recs_in) + 1
    assert min(told["counts"][x] for x in ("signals", "outcomes", "features", "decisions")) > 5
    replayed = {e.id: dict(e.fields) for e in replay(path, keep=True).effects
                if isinstance(e, desks.PutSignal)}  # fmt: skip
    live = {f["id"]: {**f, "signal_ns": "0"} for _, f in r.xrange(KEYS.signals)}
    assert live == replayed
    assert counter(ring, "signals") == len(replayed)
    assert report_of(r)["digest"] == told["digest"]
    done = cli("replay", str(path), "--json", "--batch", "4096")
    shown = json.loads(done.stdout)
    assert done.returncode == 0, done.stderr
    assert shown["digest"] == told["digest"] and shown["equal"] is True
    assert shown["ticks"] == told["counts"]["ticks"] and shown["signals"] == len(replayed)


def test_a_running_brain_records_when_it_is_asked_and_is_killed_with_little_lost(
    ring, redis_url: str, tmp_path: Path
) -> None:
    r = streams.connect(redis_url)
    recs_in = table(lively_market(3, 2, 200))
    half = int(np.flatnonzero(recs_in["exch_ns"] > recs_in["exch_ns"][len(recs_in) // 2])[0])
    feed, brain = Feed(ring), start_brain(ring, redis_url)
    feed.write(recs_in[:half])
    out = tmp_path / "asked.aegisrec"
    r.set(KEYS.record, json.dumps({"id": "one", "out": str(out), "seconds": 60}))
    until(lambda: report_of(r).get("state") == "recording", "it records")
    feed.write(recs_in[half:])
    r.delete(KEYS.record)
    until(lambda: report_of(r).get("state") == "ended", "it ends")
    made = replay(out)
    assert made.equal and made.complete and made.recorded["reason"] == "as asked"
    assert made.digest.counts["signals"] > 5
    r.set(KEYS.record, json.dumps({"id": "two", "out": str(out), "seconds": 60}))
    until(lambda: report_of(r).get("id") == "two", "it records again")
    feed.write(recs_in[-1:])
    until(lambda: report_of(r).get("counts", {}).get("records") == 1, "it is on the disk", 60)
    brain.kill()
    brain.wait()
    second = tmp_path / "asked-2.aegisrec"
    done = cli("replay", str(second))
    assert done.returncode == 1 and done.stderr.count("\n") == 1 and "cut off" in done.stderr
    done = cli("replay", str(second), "--partial", "--json")
    assert done.returncode == 0 and json.loads(done.stdout)["counts"]["records"] == 1


def test_a_folder_that_cannot_be_written_is_told_and_the_brain_goes_on(ring, redis_url) -> None:
    r = streams.connect(redis_url)
    feed, brain = Feed(ring), start_brain(ring, redis_url, AEGIS_RECORD="/dev/null/recs")
    feed.write(table(lively_market(1, 1, 3)))
    until(lambda: r.xlen(KEYS.journal), "a line in the journal")
    assert "not recorded" in r.xrange(KEYS.journal)[0][1]["text"]
    brain.send_signal(signal.SIGTERM)
    assert brain.wait(20) == 0


@pytest.mark.system
@pytest.mark.timeout(400)
def test_record_starts_a_system_where_none_runs(tmp_path: Path) -> None:
    out = tmp_path / "mine.aegisrec"
    environ = {"AEGIS_STATE_DIR": str(tmp_path / "s"), "AEGIS_SYMBOLS": "4", "REDIS_URL": "",
               "AEGIS_VENUE_RATE": "400"}  # fmt: skip
    done = cli("record", "--for", "8", "--out", str(out), **environ)
    assert done.returncode == 0, done.stderr[-3000:]
    assert [path.name for path in tmp_path.iterdir() if "aegisrec" in path.name] == [out.name]
    made = replay(out, batch=7)
    counts = made.digest.counts
    assert made.equal and made.complete and counts["ticks"] > 500
    assert counts["records.bar"] > 400  # its own warm-up
    # anew where feed was first, or was restarted: for a brain without a past, behind a DROP each
    assert counts["records.symbol"] - counts.get("records.drop", 0) == 4
    again = cli("record", "--out", str(out), **environ)
    assert again.returncode == 1 and "exists" in again.stderr
