"""The brain's process: `python -m brain.main --ring PATH --world W --node ID`.

Attach the ring, map the state, load the kernels, say ready; then wait, consume, ask the rules, hand
over to the publisher, for ever. SIGTERM ends it within three seconds and loses nothing: the state
is on its file and the ring's tail says where to go on. When another node takes the ring over, this
brain ends and leaves it to that node's.
"""

from __future__ import annotations

import argparse
import gc
import logging
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np

import barrier
import config
import latency
import process
import ring as rings
import streams
from brain import kernel
from brain.desk import (
    AskPending,
    AskSnapshot,
    Cut,
    Desk,
    Effect,
    PutJournal,
    PutSignal,
    new_desk,
    on_events,
)
from brain.engine import Engine
from brain.follow import refresh_all
from brain.guard import condemned, started_ns
from brain.inputs import news_of, slow_rules, use_input
from brain.publisher import Publisher
from brain.record import Recording, parse_wish
from brain.report import desk_report
from brain.rules import RuleError, load_rules
from brain.signals import Terms
from brain.state import (
    BROKEN,
    C_ASK_ALL,
    C_CLOCK_NS,
    C_SEQ,
    State,
    clear_symbol,
    open_state,
    state_path,
)
from clock import boot_ns, wall_ms

SPINS: Final = 200  # polls before sleeping: an idle brain costs next to nothing
NAP_S: Final = 0.0002  # after a small batch: lets records gather instead of paying per record
SMALL_BATCH: Final = 32
BUSY_NS: Final = 2_000_000  # records that come so soon after others are worth a nap
SWITCH_S: Final = 0.0002  # the publisher's turn at the interpreter, while closes wait for rules
BURST_NS: Final = 2_000_000  # closes are asked about for so long before anything else has its turn
DRAIN_S: Final = 2.0
SNAPSHOT_EVERY_NS: Final = 5_000_000_000  # history costs the feed request weight
TAKER_FEE: Final = 0.0005  # of notional, the exchange's base tier; per side
ALL_SYMBOLS: Final = -1
_BATCH_AGE, _SIGNAL, _WRITTEN, _BATCH = (
    rings.BRAIN_HISTS.index(name)
    for name in ("receive_to_brain_ns", "receive_to_signal_ns", "receive_to_redis_ns",
                 "batch_records")
)  # fmt: skip
_RECORDS: Final = rings.BRAIN_COUNTERS.index("records")

log = logging.getLogger("brain")


@dataclass(slots=True)
class Snapshots:
    """Asks the feed for fresh history, one request at a time and not too often."""

    wanted: set[int] = field(default_factory=set)
    asked: int = 0
    last_ns: int = -SNAPSHOT_EVERY_NS

    def poll(self, words: rings.Words, now_ns: int) -> int | None:
        """Send the next request when the feed has served the last one; what was asked for."""
        if not self.wanted or now_ns - self.last_ns < SNAPSHOT_EVERY_NS:
            return None
        seq = int(words[rings.SNAPSHOT_SEQ])
        if int(words[rings.SNAPSHOT_DONE]) < seq:
            return None
        row = next(iter(self.wanted)) if len(self.wanted) == 1 else ALL_SYMBOLS
        kernel.store_word(words, rings.SNAPSHOT_SYMBOL, row)
        kernel.store_word(words, rings.SNAPSHOT_SEQ, seq + 1)
        log.warning("snapshot asked row=%d", row)
        self.wanted.clear()
        self.asked += 1
        self.last_ns = now_ns
        return row


def resume(ring: rings.Ring, state: State, snapshots: Snapshots) -> tuple[State, int]:
    """Where to go on, after putting right what a crash left; asks for history where it must.

    A death in here, or before the feed was asked, changes nothing: each wish is written down before
    what it comes from is forgotten.
    """
    words, a, control = ring.words, state.arrays, state.arrays.control
    tail, head = int(words[rings.TAIL]), int(words[rings.HEAD])
    seq, writing = int(control[C_SEQ]), int(words[rings.WRITING])
    if state.fresh or not tail <= seq <= head:
        control[C_ASK_ALL] = 1
        for row in range(state.symbols_max):
            clear_symbol(a, row)
        control[C_SEQ] = seq = tail
    elif 0 < writing <= state.symbols_max:
        clear_symbol(a, writing - 1)
        a.sym[writing - 1, BROKEN] = 1
    if head == 0:  # the feed has announced its symbols to nobody yet
        control[C_ASK_ALL] = 0
    if control[C_ASK_ALL]:
        snapshots.wanted.add(ALL_SYMBOLS)
    snapshots.wanted.update(np.flatnonzero(a.sym[:, BROKEN]).tolist())
    kernel.store_word(words, rings.WRITING, 0)
    refresh_all(a)
    ring.brain_stats[_RECORDS] = seq  # a batch that was cut off is not in it yet
    return state, seq


@dataclass(slots=True)
class Brain:
    """The process's parts; `turn` is one round of its loop."""

    ring: rings.Ring
    engine: Engine
    publisher: Publisher
    snapshots: Snapshots
    recording: Recording
    generation: int  # of the node that we belong to
    counted: dict[str, int] = field(default_factory=dict)  # what copy_counts has written
    condemned: list[dict[str, Any]] = field(default_factory=list)  # inputs before the first record

    @property
    def desk(self) -> Desk:
        return self.engine.desk

    @property
    def state(self) -> State:
        return self.engine.desk.state

    def turn(self, timeout_ns: int) -> int:
        """Wait, consume, decide, hand over. Returns the records consumed."""
        ring, engine, began = self.ring, self.engine, self.engine.seq
        head = barrier.wait_records(ring.words, began, SPINS, timeout_ns)
        now_ns = boot_ns()
        if head > began:
            oldest = int(ring.slots[began & ring.mask]["recv_ns"])
            _count(ring, _BATCH_AGE, now_ns - oldest)
            head = min(head, began + kernel.RECORDS_MAX)
            if self.recording.recorder is not None:  # the last one may have a second half
                self.recording.recorder.copy(
                    engine.raw, began, min(head + 1, int(ring.words[rings.HEAD]))
                )
            self._take(head)
            while engine.stopped and engine.seq < head and boot_ns() - now_ns < BURST_NS:
                self._take(head)
            _count(ring, _BATCH, engine.seq - began)
        if engine.settled:
            self._take_inputs(now_ns)
            self.recording.round_over(now_ns)
        ring.words[rings.BRAIN_BEAT] = now_ns
        if self.snapshots.poll(ring.words, now_ns) == ALL_SYMBOLS:
            self.state.arrays.control[C_ASK_ALL] = 0
        return engine.seq - began

    def _take(self, head: int) -> None:
        """Consume up to the next close that a rule is asked about, and ask."""
        engine, recorder = self.engine, self.recording.recorder
        rows = engine.take(head - engine.seq)
        self.publisher.market_ms = int(self.state.arrays.control[C_CLOCK_NS]) // 1_000_000
        if len(rows):
            if recorder is not None:
                recorder.note_events(rows)
            self._carry_out(on_events(self.desk, rows, boot_ns))

    def report(self) -> dict[str, Any]:
        """What the operator may ask: see `aegis status`, `rule list` and `record`."""
        return {**desk_report(self.desk), "recording": self.recording.report()}

    def announce(self) -> None:
        """The ready word: our node's feed subscribes after it."""
        kernel.store_word(self.ring.words, rings.BRAIN_READY, self.generation)

    def ours(self) -> bool:
        """Whether the ring still belongs to the node that we were started for."""
        return bool(self.ring.words[rings.GENERATION] == self.generation)

    def _take_inputs(self, now_ns: int) -> None:
        """The inputs besides the ring: a model, signals to follow again, rules that are slow."""
        wish = self.publisher.take_wish()
        if wish is not None:
            try:
                self.recording.obey(parse_wish(wish), now_ns)
            except ValueError as error:
                self.publisher.put(PutJournal(str(error)))
        model = self.publisher.take_model()
        if model is not None:
            self.use({"input": "model", "version": model.version, "counts": dict(model.counts)})
        pending = self.publisher.take_pending()
        if pending:
            self.use({"input": "pending", "signals": news_of(self.desk, pending)})
        for told in slow_rules(self.desk):
            self.use(told)
        while self.recording.news:
            line = self.recording.news.pop(0)
            log.warning("%s", line)
            self.publisher.put(PutJournal(line))

    def use(self, told: dict[str, Any]) -> None:
        if self.recording.recorder is not None:
            self.recording.recorder.note_input(self.engine.seq, told)
        self._carry_out(use_input(self.desk, told))

    def _carry_out(self, effects: Iterable[Effect]) -> None:
        recorder = self.recording.recorder
        for effect in effects:
            if isinstance(effect, AskPending):
                self.publisher.ask_pending()
            elif isinstance(effect, AskSnapshot):
                self.snapshots.wanted.add(effect.row)
            elif not isinstance(effect, Cut):
                self.publisher.put(effect)
            if recorder is not None:
                recorder.note(effect)
            if isinstance(effect, PutSignal):
                fields = effect.fields
                _count(self.ring, _SIGNAL, int(fields["signal_ns"]) - int(fields["recv_ns"]))

    def copy_counts(self) -> None:
        """Python's counters into the ring, where the node reads them; they go on from a last life.

        The kernel's own counters lie in the ring anyway and are never reset.
        """
        names, stats = rings.BRAIN_COUNTERS, self.ring.brain_stats
        counts = self.publisher.counts
        for name, value in (
            ("candidates", self.desk.candidates),
            ("refused", self.desk.refused),
            ("signals", self.desk.signals),
            ("rule_faults", self.desk.faults),
            ("dropped_signals", counts.dropped_signals),
            ("dropped_outcomes", counts.dropped_outcomes),
            ("dropped_decisions", counts.dropped_decisions),
            ("resyncs", self.snapshots.asked),
        ):
            self.counted[name], more = value, value - self.counted.get(name, 0)
            stats[names.index(name)] += more


def _count(ring: rings.Ring, row: int, value: int) -> None:
    """One into a histogram; each row has one writing thread."""
    ring.brain_hist[row, latency.bucket(value)] += 1


def run(brain: Brain) -> None:
    """Until a signal asks to stop, or the ring is another node's."""
    sys.setswitchinterval(SWITCH_S)
    gc.collect()
    gc.freeze()  # what is there now stays: a collection that walks it costs 40 ms
    brain.publisher.start()
    for told in brain.condemned:
        brain.use(told)
    brain.publisher.ask_pending()
    brain.announce()
    next_copy_ns = last_ns = 0
    while not process.stop and brain.ours():
        process.beat()
        done = brain.turn(barrier.SLEEP_NS_MAX)
        now_ns = boot_ns()
        if now_ns >= next_copy_ns:
            brain.copy_counts()
            brain.publisher.report = brain.report()
            next_copy_ns = now_ns + 250_000_000
        more = brain.engine.stopped  # is there already
        if 0 < done < SMALL_BATCH and not more and now_ns - last_ns < BUSY_NS:
            time.sleep(NAP_S)
        if done:
            last_ns = now_ns
    brain.desk.guard.close()
    brain.copy_counts()
    if not brain.recording.close(DRAIN_S):
        log.warning("ended with a recording that the disk did not take")
    brain.publisher.report = brain.report()
    if not brain.publisher.close(DRAIN_S):
        log.warning("ended with signals or outcomes that Redis did not take")


def build(args: argparse.Namespace, cfg: config.Config) -> Brain:
    """Everything that run needs. Raises RingError or RuleError with a sentence."""
    rules = load_rules(cfg.rules)
    ring = rings.attach(args.ring)
    words, generation = ring.words, int(ring.words[rings.GENERATION])
    ring.claim(rings.BRAIN)
    words[rings.BRAIN_BOOT] = int(process.BOOT_ID, 16)
    kernel.store_word(words, rings.BRAIN_READY, 0)  # what a dead brain said
    state = open_state(
        state_path(args.ring),
        len(ring.symbols),
        ring_identity=ring.path.stat().st_ino,
        world=int(words[rings.W_WORLD]),
    )
    snapshots = Snapshots()
    state, seq = resume(ring, state, snapshots)
    kernel.warm()
    barrier.warm()
    kernel.store_word(words, rings.TAIL, seq)
    terms = Terms(args.world, args.node, cfg.entry_policy, cfg.signal_age_ms)
    off = condemned(state.arrays.control, rules, started_ns(boot_ns()))
    desk = new_desk(state, rules, terms, TAKER_FEE, int(cfg.rule_ms * 1e6))
    desk.guard.watch(cfg.rule_limit_ms / 1000)
    engine = Engine(words, ring.slots, ring.brain_stats, desk, seq)
    settings = {
        "mode": cfg.mode, "world": args.world, "node": args.node, "rules": list(cfg.rules),
        "entry_policy": cfg.entry_policy, "signal_age_ms": cfg.signal_age_ms,
    }  # fmt: skip
    recording = Recording(engine, args.name, settings, cfg.record_mb << 20)
    if cfg.record:
        recording.start_in(cfg.record, args.node, wall_ms() / 1000, boot_ns())

    def written(each: PutSignal) -> None:
        _count(ring, _WRITTEN, boot_ns() - int(each.fields["recv_ns"]))

    keys = streams.Keys(cfg.mode, cfg.account)
    publisher = Publisher(
        cfg.redis_url, keys, wall_ms=wall_ms, written=written,
        report_key=keys.brain(args.node, args.name),
    )  # fmt: skip
    return Brain(ring, engine, publisher, snapshots, recording, generation, condemned=off)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="brain.main", description="ring -> signals")
    parser.add_argument("--ring", required=True, help="path of the ring file")
    parser.add_argument("--world", required=True, help="part of every signal's id")
    parser.add_argument("--node", required=True, help="name of this node")
    parser.add_argument("--name", default="brain", help="this process in the log")
    args = parser.parse_args(argv)
    try:
        cfg = config.load()
    except config.ConfigError as error:
        process.fail(str(error), 2)
    process.setup_logging(args.name, cfg.log_level, cfg.secrets)
    process.install_signals()
    try:
        brain = build(args, cfg)
    except (rings.RingError, RuleError) as error:
        process.fail(str(error))
    run(brain)
    if not brain.ours():
        process.fail(f"Another node has taken {args.ring} over: this brain leaves it to that one.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
