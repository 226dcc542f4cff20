"""A recording through the same engine and desk, without a ring, Redis or a clock.

What comes out depends on the recording and the code alone: not on the batch size, not on the
machine. `span` looks at a part only: everything before it is consumed all the same, because what
the brain knows comes from there, but only what the part led to is counted.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import orjson

from brain import kernel, snapshot
from brain.desk import Cut, Desk, Effect, new_desk, on_events
from brain.engine import Engine
from brain.inputs import use_input
from brain.recording import (
    CHUNK_RECORDS,
    DONE,
    FORMAT,
    HEAD,
    INPT,
    MARK,
    RECS,
    STAT,
    Digest,
    RecordingError,
    blocks,
    code,
    record_layout,
    records_of,
)
from brain.rules import Rule, RuleError, load_rules
from brain.signals import Terms
from brain.state import memory_state
from records import BAR, CLOCK, RECORD
from ring import COUNTERS_MAX, WORDS
from ring import HEAD as HEAD_WORD

SLOTS: Final = 2 * CHUNK_RECORDS  # a block is one buffer at most
FOREVER_NS: Final = np.iinfo(np.int64).max


@dataclass(slots=True)
class Replay:
    """What came out, beside what the recording says of its own run."""

    header: dict[str, Any]
    digest: Digest
    recorded: dict[str, Any]  # the last MARK or DONE
    complete: bool  # the file was ended in good order
    desk: Desk
    first_ms: int = 0  # market time
    last_ms: int = 0
    effects: list[Effect] = field(default_factory=list)  # with `keep`

    @property
    def equal(self) -> bool:
        return bool(self.digest.told() == {k: self.recorded.get(k) for k in self.digest.told()})

    @property
    def same_code(self) -> bool:
        return bool(self.header["code"] == code())


@dataclass(slots=True)
class _Part:
    """From the first CLOCK at `from_ns` on, up to the first one at `until_ns`."""

    from_ns: int
    until_ns: int
    counting: bool
    over: bool = False

    def cut(self, records: npt.NDArray[Any]) -> list[tuple[int, int, bool]]:
        """(begin, end, counted) of these records."""
        made, at = [], 0
        clocks = np.flatnonzero(records["kind"] == CLOCK)
        times = records["exch_ns"][clocks]
        if not self.counting and (late := clocks[times >= self.from_ns]).size:
            made.append((0, at := int(late[0]), False))
            self.counting = True
        end = len(records)
        if (late := clocks[times >= self.until_ns]).size:
            end, self.over = max(int(late[0]), at), True
        return [*made, (at, end, self.counting)]


def open_engine(header: dict[str, Any], raw: bytes, rules: list[Rule] | None = None) -> Engine:
    """The brain as it was when the recording began. Raises RecordingError or RuleError."""
    if header.get("format") != FORMAT or header.get("record") != record_layout():
        raise RecordingError("it was recorded by another version: replay it with that one.")
    settings = header["settings"]
    terms = Terms(
        settings["world"], settings["node"], settings["entry_policy"], settings["signal_age_ms"]
    )
    state = memory_state(snapshot.symbols_max(raw))
    try:
        told = snapshot.restore_state(state, raw)
        given = load_rules(tuple(settings["rules"])) if rules is None else rules
        desk = new_desk(state, given, terms, header["taker_fee"])
        if rules is None:
            snapshot.restore_desk(desk, told)
    except snapshot.SnapshotError as error:
        raise RecordingError(f"{error}: replay it with the version that recorded it.") from error
    words, slots = np.zeros(WORDS, np.int64), np.zeros(SLOTS, RECORD)
    return Engine(words, slots, np.zeros(COUNTERS_MAX, np.int64), desk, 0)


def replay(
    path: str | os.PathLike[str],
    *,
    batch: int = kernel.RECORDS_MAX,
    from_ms: int = 0,
    until_ms: int | None = None,
    partial: bool = False,
    rules: list[Rule] | None = None,
    keep: bool = False,
    progress: Callable[[int], None] = lambda records: None,
) -> Replay:
    """Raises RecordingError or RuleError with a sentence. With `rules` other ones are asked than
    were recorded, from a desk that knows no signals."""
    cuts = frozenset(_cuts(path, partial)) if rules is None else frozenset[Cut]()
    until_ns = FOREVER_NS if until_ms is None else until_ms * 1_000_000
    part = _Part(from_ms * 1_000_000, until_ns, counting=from_ms <= 0)
    made: Replay | None = None
    header: dict[str, Any] = {}
    for block in blocks(path, partial):
        if block.kind == HEAD:
            header = orjson.loads(block.content)
        elif block.kind == STAT:
            try:
                engine = open_engine(header, block.content, rules)
            except (RecordingError, RuleError) as error:
                raise RecordingError(f"{path} cannot be replayed: {error}") from error
            engine.desk.cuts = cuts
            made = Replay(header, Digest(), {}, False, engine.desk)
        elif made is None:
            continue
        elif block.kind == RECS:
            records = records_of(block)
            if len(records) and records["kind"][-1] == BAR:  # the engine would wait for the rest
                raise RecordingError(f"{path} is damaged: a bar in it has no volume.")
            for begin, end, counted in part.cut(records):
                _run(engine, made, records[begin:end], batch, counted, keep)
            progress(len(records))
        elif block.kind == INPT:
            told = orjson.loads(block.content)
            if rules is None or told["input"] == "model":
                _note(made, use_input(engine.desk, told), part.counting, keep)
        elif block.kind in (MARK, DONE):
            made.recorded, made.complete = orjson.loads(block.content), block.kind == DONE
        if part.over:
            break
    if made is None:
        raise RecordingError(f"{path} is damaged: it holds nothing.")
    if not made.recorded and not part.over:
        raise RecordingError(f"{path} was cut off before its first second: nothing is in it yet.")
    return made


def _cuts(path: str | os.PathLike[str], partial: bool) -> Iterator[Cut]:
    """Answers that the recorded brain did not wait for: the replay must not ask for them."""
    for block in blocks(path, partial, only=INPT):
        told = orjson.loads(block.content)
        if "cut" in told:
            yield Cut(told["name"], *told["cut"])


def _run(
    engine: Engine, made: Replay, records: npt.NDArray[Any], batch: int, counted: bool, keep: bool
) -> None:
    if not len(records):
        return
    where = (engine.seq + np.arange(len(records))) & (SLOTS - 1)
    engine.slots[where] = records
    engine.words[HEAD_WORD] = end = engine.seq + len(records)
    while engine.seq < end:
        rows = engine.take(min(batch, end - engine.seq))
        if len(rows):
            if counted:
                made.digest.add_events(rows)
            _note(made, on_events(engine.desk, rows, lambda: 0), counted, keep)
    if counted:
        made.digest.add_records(records.view(np.int64).reshape(len(records), -1))
        clocks = records["exch_ns"][records["kind"] == CLOCK]
        if clocks.size:
            made.first_ms = made.first_ms or int(clocks[0]) // 1_000_000
            made.last_ms = int(clocks[-1]) // 1_000_000


def _note(made: Replay, effects: Iterable[Effect], counted: bool, keep: bool) -> None:
    for effect in effects:
        if counted:
            made.digest.add_effect(effect)
            if keep:
                made.effects.append(effect)
