"""The brain's process: `python -m brain.main --ring PATH --world W --node ID`.

Attach the ring, map the state, load the kernels, say ready; then wait, consume, ask the rules, hand
over to the publisher, for ever. SIGTERM ends it within three seconds and loses nothing: the state
is on its file and the ring's tail says where to go on.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
import time
from dataclasses import dataclass, field
from typing import Final

import numpy as np

import config
import process
import ring as rings
import streams
from brain import kernel
from brain.desk import (
    AskPending,
    AskSnapshot,
    Desk,
    Effect,
    PutSignal,
    new_desk,
    on_events,
    rearm,
)
from brain.events import Events
from brain.publisher import Publisher
from brain.rules import RuleError, load_rules
from brain.signals import Terms
from brain.state import C_CLOCK_NS, C_SEQ, Ints, State, clear_symbol, open_state, state_path
from clock import boot_ns, wall_ms

SPINS: Final = 200  # polls before sleeping: an idle brain costs next to nothing
NAP_S: Final = 0.0002  # after a small batch: lets records gather instead of paying per record
SMALL_BATCH: Final = 32
DRAIN_S: Final = 2.0
SNAPSHOT_EVERY_NS: Final = 5_000_000_000  # history costs the feed request weight
TAKER_FEE: Final = 0.0005  # of notional, the exchange's base tier; per side
ALL_SYMBOLS: Final = -1

log = logging.getLogger("brain")


@dataclass(slots=True)
class Snapshots:
    """Asks the feed for fresh history, one request at a time and not too often."""

    wanted: set[int] = field(default_factory=set)
    asked: int = 0
    last_ns: int = -SNAPSHOT_EVERY_NS

    def poll(self, words: rings.Words, now_ns: int) -> None:
        """Send the next request when the feed has served the last one."""
        if not self.wanted or now_ns - self.last_ns < SNAPSHOT_EVERY_NS:
            return
        seq = int(words[rings.SNAPSHOT_SEQ])
        if int(words[rings.SNAPSHOT_DONE]) < seq:
            return
        row = next(iter(self.wanted)) if len(self.wanted) == 1 else ALL_SYMBOLS
        kernel.store_word(words, rings.SNAPSHOT_SYMBOL, row)
        kernel.store_word(words, rings.SNAPSHOT_SEQ, seq + 1)
        log.warning("snapshot asked row=%d", row)
        self.wanted.clear()
        self.asked += 1
        self.last_ns = now_ns


def resume(ring: rings.Ring, state: State, snapshots: Snapshots) -> tuple[State, int]:
    """Where to go on, after putting right what a crash left; asks for history where it must."""
    words, control = ring.words, state.arrays.control
    tail, head = int(words[rings.TAIL]), int(words[rings.HEAD])
    seq, writing = int(control[C_SEQ]), int(words[rings.WRITING])
    if not state.fresh and tail <= seq <= head:
        if writing:
            clear_symbol(state.arrays, writing - 1)
            snapshots.wanted.add(writing - 1)
    else:
        for row in range(state.symbols_max):
            clear_symbol(state.arrays, row)
        control[C_SEQ] = seq = tail
        if head > 0:  # the feed has announced its symbols to somebody before us
            snapshots.wanted.add(ALL_SYMBOLS)
    kernel.store_word(words, rings.WRITING, 0)
    return state, seq


@dataclass(slots=True)
class Brain:
    """The process's parts; `turn` is one round of its loop."""

    ring: rings.Ring
    state: State
    desk: Desk
    publisher: Publisher
    snapshots: Snapshots
    seq: int
    events: Events = field(default_factory=kernel.new_events)
    where: Ints = field(default_factory=lambda: np.zeros(8, np.int64))
    counted: dict[str, int] = field(default_factory=dict)  # what copy_counts has written
    raw: Ints = field(init=False)

    def __post_init__(self) -> None:
        self.raw = kernel.raw_view(self.ring.slots)

    def turn(self, timeout_ns: int) -> int:
        """Wait, consume, decide, hand over. Returns the records consumed."""
        ring, began = self.ring, self.seq
        head = rings.wait_records(ring.words, self.seq, SPINS, timeout_ns)
        now_ns = boot_ns()
        if head > self.seq:
            oldest = int(ring.slots[self.seq & ring.mask]["recv_ns"])
            self.seq, n = kernel.consume(
                ring.words, ring.slots, self.raw, self.state.arrays, self.events, self.where,
                self.desk.masks, ring.brain_stats, self.seq, kernel.RECORDS_MAX,
            )  # fmt: skip
            _count(ring, 0, now_ns - oldest)
            _count(ring, 2, self.seq - began)
            self.publisher.market_ms = int(self.state.arrays.control[C_CLOCK_NS]) // 1_000_000
            if n:
                self._carry_out(on_events(self.desk, self.events[:n], boot_ns()))
        self._take_inputs()
        ring.words[rings.BRAIN_BEAT] = now_ns
        if ring.words[rings.BRAIN_READY] != ring.words[rings.GENERATION]:
            self.announce()
        self.snapshots.poll(ring.words, now_ns)
        return self.seq - began

    def announce(self) -> None:
        """The ready word: the feed subscribes after it."""
        generation = int(self.ring.words[rings.GENERATION])
        kernel.store_word(self.ring.words, rings.BRAIN_READY, generation)

    def _take_inputs(self) -> None:
        """The other two inputs besides the ring: a model and signals to follow again."""
        model = self.publisher.take_model()
        if model is not None:
            self.desk.model = model
        pending = self.publisher.take_pending()
        if pending:
            self._carry_out(rearm(self.desk, pending))

    def _carry_out(self, effects: list[Effect]) -> None:
        for effect in effects:
            if isinstance(effect, AskPending):
                self.publisher.ask_pending()
            elif isinstance(effect, AskSnapshot):
                self.snapshots.wanted.add(effect.row)
            else:
                self.publisher.put(effect)
            if isinstance(effect, PutSignal):
                fields = effect.fields
                _count(self.ring, 1, int(fields["signal_ns"]) - int(fields["recv_ns"]))

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
    """One into a log2 histogram; rows as BRAIN_HISTS."""
    ring.brain_hist[row, min(max(value, 0).bit_length(), rings.HIST_BUCKETS - 1)] += 1


def run(brain: Brain) -> None:
    """Until a signal asks to stop."""
    brain.publisher.start()
    brain.publisher.ask_pending()
    brain.announce()
    next_copy_ns = 0
    while not process.stop:
        process.beat()
        done = brain.turn(rings.SLEEP_NS_MAX)
        now_ns = boot_ns()
        if now_ns >= next_copy_ns:
            brain.copy_counts()
            next_copy_ns = now_ns + 250_000_000
        if 0 < done < SMALL_BATCH:
            time.sleep(NAP_S)
    brain.copy_counts()
    if not brain.publisher.close(DRAIN_S):
        log.warning("ended with signals or outcomes that Redis did not take")


def build(args: argparse.Namespace, cfg: config.Config) -> Brain:
    """Everything that run needs. Raises RingError or RuleError with a sentence."""
    rules = load_rules(cfg.rules)
    ring = rings.attach(args.ring)
    words = ring.words
    state = open_state(
        state_path(args.ring),
        len(ring.symbols),
        ring_identity=ring.path.stat().st_ino,
        world=int(words[rings.W_WORLD]),
    )
    snapshots = Snapshots()
    state, seq = resume(ring, state, snapshots)
    kernel.warm()
    rings.warm()
    kernel.store_word(words, rings.TAIL, seq)
    words[rings.BRAIN_PID], words[rings.BRAIN_BOOT] = os.getpid(), int(process.BOOT_ID, 16)
    terms = Terms(args.world, args.node, cfg.entry_policy, cfg.signal_age_ms)
    desk = new_desk(state, rules, terms, TAKER_FEE)
    publisher = Publisher(cfg.redis_url, streams.Keys(cfg.mode, cfg.account), wall_ms=wall_ms)
    return Brain(ring, state, desk, publisher, snapshots, seq)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="brain.main", description="ring -> signals")
    parser.add_argument("--ring", required=True, help="path of the ring file")
    parser.add_argument("--world", required=True, help="part of every signal's id")
    parser.add_argument("--node", required=True, help="name of this node")
    args = parser.parse_args(argv)
    try:
        cfg = config.load()
    except config.ConfigError as error:
        process.fail(str(error), 2)
    process.setup_logging("brain", cfg.log_level, cfg.secrets)
    process.install_signals()
    try:
        brain = build(args, cfg)
    except (rings.RingError, RuleError) as error:
        process.fail(str(error))
    run(brain)
    return 0


if __name__ == "__main__":
    sys.exit(main())
