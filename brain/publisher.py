"""The thread between the brain and Redis: bounded queues in, nothing that can stall the ring.

Putting never blocks and never fails. A slow or dead Redis lets the queues fill: signals past their
age are dropped and counted, outcomes are kept to 10,000 (the oldest go first, counted), decisions
and journal lines are the first to be lost. After an error the thread backs off and tries again; it
repeats a write that may have arrived, because signal ids and HDEL make the repeat harmless.

The same thread reads: the live model about every two seconds, `pending` when asked.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import orjson
import redis

import streams
from brain.desk import Effect, PutDecision, PutJournal, PutOutcome, PutSignal
from brain.signals import Model, parse_model

SIGNALS_MAX: Final = 1_024
OUTCOMES_MAX: Final = 10_000
DECISIONS_MAX: Final = 2_000
JOURNAL_MAX: Final = 256
PENDING_MAX: Final = 20_000  # entries of `pending` that are read back
MODEL_POLL_S: Final = 2.0
REPORT_KEPT_S: Final = 30  # a brain that reports no more is gone
BACKOFF_S_MIN, BACKOFF_S_MAX = 0.1, 2.0
BATCH: Final = 64  # outcomes, journal lines per round trip
DECISIONS_AT_ONCE: Final = 8  # they are put into words here, and a signal waits for the last one
CALM_S: Final = 0.02  # without a signal, before decisions and journal lines are written
SIGNALS_AT_ONCE: Final = 16  # the last of them waits for the first
_E = TypeVar("_E")

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Counts:
    """Written by one thread each; read by anyone."""

    sent_signals: int = 0
    sent_outcomes: int = 0
    duplicate_signals: int = 0
    dropped_signals: int = 0
    dropped_outcomes: int = 0
    dropped_decisions: int = 0
    errors: int = 0


class Publisher(threading.Thread):
    """Start it, put effects, look at `counts`; `close` drains what it can."""

    def __init__(
        self,
        url: str,
        keys: streams.Keys,
        *,
        wall_ms: Callable[[], int],
        written: Callable[[PutSignal], None] = lambda each: None,
        report_key: str = "",
        connect: Callable[[str, int], redis.Redis] = streams.connect,
    ) -> None:
        super().__init__(name="publisher", daemon=True)
        self._url, self._keys, self._connect, self._wall_ms = url, keys, connect, wall_ms
        self._written = written  # told of each signal once Redis has it
        self._signals: deque[PutSignal] = deque()
        self._outcomes: deque[PutOutcome] = deque()
        self._decisions: deque[PutDecision] = deque()
        self._journal: deque[PutJournal] = deque()
        self._wake = threading.Event()
        self._urgent = threading.Event()  # a signal waits
        self._ending = threading.Event()
        self._want_pending = threading.Event()
        self._pending: deque[dict[str, str]] = deque(maxlen=1)
        self._models: deque[Model] = deque(maxlen=1)
        self._model_version = ""
        self._wishes: deque[str] = deque(maxlen=1)  # to record
        self._wish = ""
        self._report_key = report_key
        self.report: Mapping[str, Any] = {}  # the newest; written each MODEL_POLL_S
        self.market_ms = 0  # the brain's clock: ages are judged by it
        self.counts = Counts()

    # --- the brain's side; never blocks -------------------------------------------------------

    def put(self, effect: Effect) -> None:
        """Queue what is to be written."""
        counts = self.counts
        if isinstance(effect, PutSignal):
            if len(self._signals) >= SIGNALS_MAX:
                counts.dropped_signals += 1
                return
            self._signals.append(effect)
            self._urgent.set()
        elif isinstance(effect, PutOutcome):
            if len(self._outcomes) >= OUTCOMES_MAX:
                self._outcomes.popleft()
                counts.dropped_outcomes += 1
            self._outcomes.append(effect)
        elif isinstance(effect, PutDecision):
            if len(self._decisions) >= DECISIONS_MAX:
                counts.dropped_decisions += 1
                return
            self._decisions.append(effect)
        elif isinstance(effect, PutJournal):
            if len(self._journal) >= JOURNAL_MAX:
                counts.dropped_decisions += 1
                return
            self._journal.append(effect)
        if not self._wake.is_set():
            self._wake.set()

    def ask_pending(self) -> None:
        """Read `pending` soon; the answer comes by take_pending."""
        self._want_pending.set()
        self._wake.set()

    def take_pending(self) -> dict[str, str] | None:
        """The `pending` hash, once for each time it was read."""
        return self._pending.popleft() if self._pending else None

    def take_model(self) -> Model | None:
        """A model of another version than the last, or None."""
        return self._models.popleft() if self._models else None

    def take_wish(self) -> str | None:
        """The key that asks for a recording, once for each change; empty when it is gone."""
        return self._wishes.popleft() if self._wishes else None

    def close(self, timeout_s: float) -> bool:
        """Write what is queued, for at most `timeout_s`; True when nothing is left."""
        self._ending.set()
        self._wake.set()
        self.join(timeout_s)
        return not (self._signals or self._outcomes or self.is_alive())

    # --- the thread ---------------------------------------------------------------------------

    def run(self) -> None:
        backoff_s, client = BACKOFF_S_MIN, self._connect(self._url, 1)
        next_poll_s = 0.0
        while not (self._ending.is_set() and not self._waiting()):
            self._wake.clear()
            try:
                self._flush(client)
                if self._want_pending.is_set():
                    self._want_pending.clear()
                    self._read_pending(client)
                if time.monotonic() >= next_poll_s:
                    self._read_model(client)
                    self._read_wish(client)
                    self._write_report(client)
                    next_poll_s = time.monotonic() + MODEL_POLL_S
                backoff_s = BACKOFF_S_MIN
                if not self._waiting() and not self._ending.is_set():
                    self._wake.wait(MODEL_POLL_S / 4)
            except redis.RedisError as error:
                if self.counts.errors == 0 or backoff_s == BACKOFF_S_MIN:
                    log.warning("redis refuses error=%s", error)
                self.counts.errors += 1
                self._drop_expired()
                self._ending.wait(backoff_s)
                if self._ending.is_set() and backoff_s > 4 * BACKOFF_S_MIN:
                    return  # the end is near and Redis is not there
                backoff_s = min(backoff_s * 2, BACKOFF_S_MAX)
        with contextlib.suppress(redis.RedisError):  # what it says was true a moment ago too
            self._write_report(client)
        client.close()

    def _waiting(self) -> bool:
        return bool(self._signals or self._outcomes or self._decisions or self._journal)

    def _drop_expired(self) -> None:
        """Signals past their age go; one that was never sent had no effect anywhere."""
        for _ in range(len(self._signals)):
            each = self._signals.popleft()
            if self.market_ms <= each.expires_ms:
                self._signals.append(each)
            else:
                self.counts.dropped_signals += 1

    def _flush(self, r: redis.Redis) -> None:
        """Signals first: they age. An entry leaves its queue after it was written."""
        self._urgent.clear()
        while self._signals:
            if self.market_ms > self._signals[0].expires_ms:
                self._signals.popleft()
                self.counts.dropped_signals += 1
                continue
            for signal, made in self._send(r, self._signals, SIGNALS_AT_ONCE, self._signal):
                if made and not signal.shadow:
                    self._written(signal)
                self.counts.sent_signals += bool(made)
                self.counts.duplicate_signals += not made
        while self._outcomes and not self._signals:
            for _, made in self._send(r, self._outcomes, BATCH, self._outcome):
                self.counts.sent_outcomes += bool(made)
        while self._journal or self._decisions:
            if not self._ending.is_set() and self._urgent.wait(CALM_S):
                return  # closes come in bursts: nothing else while signals may follow
            for _ in self._send(r, self._journal, BATCH, self._line):
                pass
            for _ in range(BATCH // DECISIONS_AT_ONCE):
                if self._urgent.is_set() and not self._ending.is_set():
                    return
                for _ in self._send(r, self._decisions, DECISIONS_AT_ONCE, self._decision):
                    pass

    def _send(
        self, r: redis.Redis, queue: deque[_E], most: int, command: Callable[[_E], streams.Command]
    ) -> Iterator[tuple[_E, Any]]:
        """The first of a queue in one round trip; each with its answer as it leaves the queue.
        Raises the first error: that one and what is behind it stay."""
        batch = [queue[k] for k in range(min(most, len(queue)))]  # the brain appends meanwhile
        if not batch:
            return
        answers = streams.send_all(r, [command(each) for each in batch])
        for each, answer in zip(batch, answers, strict=True):
            if isinstance(answer, redis.RedisError):
                raise answer
            if queue and queue[0] is each:  # the oldest outcome may have had to go
                queue.popleft()
            yield each, answer

    def _signal(self, each: PutSignal) -> streams.Command:
        if each.shadow:  # followed and learned from, never shown to risk
            return streams.pending_command(self._keys, each.id, each.pending)
        score_ms = int(each.fields["exch_ns"]) // 1_000_000
        return streams.signal_command(self._keys, each.fields, each.pending, score_ms)

    def _outcome(self, each: PutOutcome) -> streams.Command:
        return streams.outcome_command(self._keys, each.id, each.fields)

    def _line(self, each: PutJournal) -> streams.Command:
        line = {"source": "brain", "level": "warning", "text": each.text}
        return streams.entry_command(self._keys.journal, line | {"wall_ms": str(self._wall_ms())})

    def _decision(self, each: PutDecision) -> streams.Command:
        return streams.entry_command(self._keys.decisions, each.fields)

    def _read_pending(self, r: redis.Redis) -> None:
        if int(r.hlen(self._keys.pending)) > PENDING_MAX:
            log.warning("pending holds more than %d signals and is not re-armed", PENDING_MAX)
            return
        self._pending.append(r.hgetall(self._keys.pending))  # type: ignore[arg-type]

    def _read_wish(self, r: redis.Redis) -> None:
        wish = str(r.get(self._keys.record) or "")
        if wish != self._wish:
            self._wish = wish
            self._wishes.append(wish)

    def _write_report(self, r: redis.Redis) -> None:
        if self.report and self._report_key:
            r.set(self._report_key, orjson.dumps(self.report), ex=REPORT_KEPT_S)

    def _read_model(self, r: redis.Redis) -> None:
        version = str(r.hget(self._keys.model_live, "version") or "")
        if version == self._model_version:
            return
        try:
            model = parse_model(r.hgetall(self._keys.model_live))  # type: ignore[arg-type]
        except (ValueError, TypeError) as error:
            log.warning(
                "model not understood, the last one stays version=%s error=%s", version, error
            )
        else:
            self._models.append(model)
        self._model_version = version
