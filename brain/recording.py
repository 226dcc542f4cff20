"""A recording: everything that a brain took in, in order of use, and a digest of what came out.

    file    "AEGISREC" block*
    block   kind 4s | bytes u4 | bytes of its contents u4 | crc32 u4 | seq i8 | contents, zlib
    HEAD    JSON: format, layout of a record, code, settings, rules; once, first
    STAT    the state to begin with (snapshot.py); once, second
    RECS    ring records from the sequence `seq` on, as i8[8, n]: the eight words of all records one
            after the other, which packs three times as well as record after record
    INPT    JSON: another input, used right before the record `seq`: a model, signals to follow
            again, a rule's new state; or a rule's answer that was not waited for at a close which
            the records behind it lead to
    MARK    JSON: counts and digests of everything up to `seq`; after every RECS
    DONE    JSON: as MARK, with the reason why the recording ended; last

Warm-up bars and the names of symbols are ring records, so a file needs nothing beside it but the
code of the user's rules. The brain's loop copies records and notes what it made of them; packing,
hashing and writing are the thread's. Memory is bounded by a pool of buffers, the file by
`bytes_max`: when either is used up the recording ends, with its reason, and the brain goes on.
"""

from __future__ import annotations

import hashlib
import logging
import os
import struct
import threading
import zlib
from collections import Counter, deque
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, Final, NamedTuple

import numpy as np
import numpy.typing as npt
import orjson

from brain.desk import Cut, Effect, PutDecision, PutJournal, PutOutcome, PutSignal
from brain.events import CLOSE_EVENT, KINDS, Events
from brain.state import KERNEL_FILES, Ints
from records import KIND_NAMES, QUOTE, RECORD, TRADE

MAGIC: Final = b"AEGISREC"
FORMAT: Final = 1
SUFFIX: Final = ".aegisrec"
_BLOCK: Final = struct.Struct("<4sIIIq")
HEAD, STAT, RECS, INPT, MARK, DONE = b"HEAD", b"STAT", b"RECS", b"INPT", b"MARK", b"DONE"
PACK_LEVEL: Final = 1
CHUNK_RECORDS: Final = 32_768  # of a buffer, 2 MiB
BUFFERS: Final = 16  # at 100,000 ticks/s a disk may hang for five seconds
NOTES_BYTES_MAX: Final = 4 << 20  # events kept with one buffer
SEAL_NS: Final = 1_000_000_000  # a brain that is killed loses so much of its recording
END_BYTES: Final = 8_192  # kept free for MARK and DONE
CONTENT_MAX: Final = 1 << 30  # bytes of one block's contents: a foreign number allocates nothing
UNEQUAL: Final = ("recv_ns", "signal_ns")  # the machine's times, not the market's
WORDS_PER_RECORD: Final = RECORD.itemsize // 8
OUTPUTS: Final = ("records", "events", "features", "signals", "outcomes", "decisions", "journal")

log = logging.getLogger(__name__)


class RecordingError(Exception):
    """This file cannot be replayed; the sentence says why."""


def record_layout() -> str:
    return hashlib.blake2b(repr(RECORD.descr).encode(), digest_size=8).hexdigest()


def code() -> dict[str, str]:
    """Hashes of the kernels and of all files of the brain."""
    folder = Path(__file__).parent
    files = {path.name: path.read_bytes() for path in sorted(folder.glob("*.py"))}
    kernels = b"".join(files[name] for name in KERNEL_FILES)
    return {
        "kernels": hashlib.blake2b(kernels, digest_size=8).hexdigest(),
        "brain": hashlib.blake2b(b"".join(files.values()), digest_size=8).hexdigest(),
    }


# --- what came out ---------------------------------------------------------------------------


class Digest:
    """Counts and hashes of records, events and effects, in order. The same whatever the cut into
    batches; the machine's own times (receipt, stamp of a signal) are left out of what came out."""

    def __init__(self) -> None:
        self._hashes = {name: hashlib.blake2b(digest_size=16) for name in OUTPUTS}
        self.counts: Counter[str] = Counter()

    def add_records(self, words: Ints) -> None:
        """words: i8[n, 8], the records as they lie in the ring."""
        self._hashes["records"].update(np.ascontiguousarray(words).reshape(-1).data)
        kinds = np.bincount((words[:, 7] >> 32) & 0xFF, minlength=len(KIND_NAMES))
        self.counts["records"] += len(words)
        self.counts["ticks"] += int(kinds[TRADE] + kinds[QUOTE])
        for name, count in zip(KIND_NAMES, kinds.tolist(), strict=False):
            if count:
                self.counts[f"records.{name}"] += count

    def add_events(self, rows: Events) -> None:
        rows = rows.copy()
        rows["recv_ns"] = 0
        rows["code"][rows["kind"] == CLOSE_EVENT] = 0  # whether a rule was to be asked
        self._hashes["events"].update(rows.tobytes())
        self.counts["events"] += len(rows)
        for name, count in zip(KINDS, np.bincount(rows["kind"]).tolist(), strict=False):
            if count:
                self.counts[f"events.{name}"] += count

    def add_effect(self, effect: Effect) -> None:
        if isinstance(effect, PutSignal):
            self._add("signals", {**effect.fields, "shadow": str(int(effect.shadow))})
            self._add("features", orjson.loads(effect.pending)["features"])
            self.counts["signals.shadow"] += effect.shadow
        elif isinstance(effect, PutOutcome):
            self._add("outcomes", effect.fields)
            self.counts[f"outcomes.{effect.fields['result']}"] += 1
        elif isinstance(effect, PutDecision):
            self._add("decisions", effect.fields)
        elif isinstance(effect, PutJournal):
            self._add("journal", {"text": effect.text})

    def _add(self, name: str, told: Mapping[str, Any]) -> None:
        kept = {key: value for key, value in told.items() if key not in UNEQUAL}
        self._hashes[name].update(orjson.dumps(kept, option=orjson.OPT_SORT_KEYS))
        self.counts[name] += 1

    def told(self) -> dict[str, Any]:
        """One digest over all, one of each part, and the counts."""
        parts = {name: each.hexdigest() for name, each in self._hashes.items()}
        whole = hashlib.blake2b(orjson.dumps(parts), digest_size=16).hexdigest()
        counts = {**dict.fromkeys(OUTPUTS, 0), "ticks": 0, **self.counts}
        return {"digest": whole, "digests": parts, "counts": dict(sorted(counts.items()))}


# --- writing ---------------------------------------------------------------------------------


class _Chunk(NamedTuple):
    words: Ints  # of a pool's buffer
    used: int
    seq: int
    notes: list[Events | Effect]


class Recorder(threading.Thread):
    """`copy` before records are consumed, `note` what they led to, `sealed` after each round.

    `ended` names the reason once the recording is over, whoever ended it; `close` waits for that.
    """

    def __init__(
        self, file: BinaryIO, path: Path, header: Mapping[str, Any], state: list[bytes], seq: int,
        bytes_max: int, now_ns: int, buffers: int = BUFFERS,
    ) -> None:  # fmt: skip
        super().__init__(name="recorder", daemon=True)
        self.path, self.ended, self.told = path, "", dict[str, Any]()
        self.bytes_written = 0
        self._file, self._bytes_max = file, bytes_max
        self._begin = (header, state, seq)
        self._pool = deque(
            np.zeros((CHUNK_RECORDS, WORDS_PER_RECORD), np.int64) for _ in range(buffers)
        )
        self._queue: deque[tuple[bytes, Any, int]] = deque()
        self._inputs: list[bytes] = []  # blocks that are written with the next records
        self._wake = threading.Event()
        self._buffer: Ints = self._pool.popleft()
        self._first = self._copied = seq  # sequences: of the buffer's first record, of the next
        self._notes: list[Events | Effect] = []
        self._notes_bytes = 0
        self._sealed_ns = now_ns
        self._stopping = ""

    # --- the brain's side: a copy, an append, never a wait ------------------------------------

    def copy(self, raw: Ints, seq: int, upto: int) -> None:
        """Records up to `upto`, before the ring may have their slots again; `seq` is next."""
        if self._stopping or upto <= self._copied:
            return
        if upto - self._first > CHUNK_RECORDS:
            self._seal(seq)
            if self._stopping:
                return
        mask, at = len(raw) - 1, self._copied - self._first
        start, count = self._copied & mask, upto - self._copied
        straight = min(count, len(raw) - start)
        self._buffer[at : at + straight] = raw[start : start + straight]
        if straight < count:
            self._buffer[at + straight : at + count] = raw[: count - straight]
        self._copied = upto

    def note_events(self, rows: Events) -> None:
        if not self._stopping:
            self._notes.append(rows.copy())
            self._notes_bytes += rows.nbytes

    def note(self, effect: Effect) -> None:
        if not self._stopping:
            self._notes.append(effect)

    def note_input(self, seq: int, told: Mapping[str, Any]) -> None:
        """An input that is used right before the record `seq`."""
        if not self._stopping:
            self._seal(seq)
            self._put(INPT, orjson.dumps(told), seq)

    def round_over(self, seq: int, now_ns: int) -> None:
        """Hand over what is full or old."""
        if self._stopping or (seq == self._first and not self._notes):
            return
        if self._notes_bytes > NOTES_BYTES_MAX or now_ns - self._sealed_ns > SEAL_NS:
            self._seal(seq)
            self._sealed_ns = now_ns

    def stop(self, seq: int, reason: str) -> None:
        """End in good order: what is queued is written, then the end."""
        if not self._stopping:
            self._seal(seq, last=True)
            self._finish(reason)

    def close(self, timeout_s: float) -> bool:
        """Wait for the end that `stop` asked for."""
        self.join(timeout_s)
        return not self.is_alive()

    def _finish(self, reason: str) -> None:
        self._stopping = reason
        self._put(DONE, reason, self._first)

    def _put(self, kind: bytes, what: Any, seq: int) -> None:
        self._queue.append((kind, what, seq))
        self._wake.set()

    def _seal(self, seq: int, last: bool = False) -> None:
        """Records before `seq` and all notes go to the thread; later ones move to a new buffer."""
        count, ahead = seq - self._first, self._copied - seq
        if not last and not self._pool:
            self._finish("the disk is slower than the market")
            return
        used = self._buffer
        if not last:
            self._buffer = self._pool.popleft()
            self._buffer[:ahead] = used[count : count + ahead]
        self._put(RECS, _Chunk(used, count, self._first, self._notes), self._first)
        self._first, self._notes, self._notes_bytes = seq, [], 0

    # --- the thread ---------------------------------------------------------------------------

    def run(self) -> None:
        digest = Digest()
        header, state, seq = self._begin
        try:
            self._file.write(MAGIC)
            self.bytes_written = len(MAGIC)
            self._write(HEAD, orjson.dumps(header), seq)
            self._write(STAT, b"".join(state), seq)
            self._file.flush()
            self.told, state = digest.told(), []
            self._begin = ({}, [], 0)
            self._loop(digest)
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            self._end(f"the file cannot be written ({error.strerror})")
        finally:
            self._file.close()

    def _loop(self, digest: Digest) -> None:
        while True:
            while not self._queue:
                self._wake.wait(1.0)
                self._wake.clear()
            kind, what, seq = self._queue.popleft()
            if kind == DONE:
                self._write(DONE, orjson.dumps({**self.told, "reason": what}), seq)
                self._end(what)
                return
            if kind == INPT:
                packed = zlib.compress(what, PACK_LEVEL)
                self._inputs.append(_block(INPT, packed, len(what), seq))
                continue
            fits = self._chunk(what, digest)
            self._pool.append(what.words)
            if not fits:
                reason = f"its bound of {self._bytes_max >> 20} MB is reached"
                self._write(DONE, orjson.dumps({**self.told, "reason": reason}), seq)
                self._end(reason)
                return

    def _end(self, reason: str) -> None:
        self.ended = self._stopping = reason

    def _chunk(self, chunk: _Chunk, digest: Digest) -> bool:
        """Inputs, records and their MARK, or none of them: False when the file has no room."""
        words = chunk.words[: chunk.used]
        cuts = [_cut_block(each, chunk.seq) for each in chunk.notes if isinstance(each, Cut)]
        inputs = b"".join(self._inputs + cuts)
        content = words.T.tobytes()
        packed = _block(RECS, zlib.compress(content, PACK_LEVEL), len(content), chunk.seq)
        if self.bytes_written + len(inputs) + len(packed) + END_BYTES > self._bytes_max:
            return False
        self._put_bytes(inputs + packed)
        self._inputs.clear()
        digest.add_records(words)
        for note in chunk.notes:
            if isinstance(note, np.ndarray):
                digest.add_events(note)
            else:
                digest.add_effect(note)
        told = digest.told()
        self._write(MARK, orjson.dumps(told), chunk.seq + chunk.used)
        self._file.flush()  # what a killed brain had sealed is in the file
        self.told = told
        return True

    def _write(self, kind: bytes, content: bytes, seq: int) -> None:
        self._put_bytes(_block(kind, zlib.compress(content, PACK_LEVEL), len(content), seq))

    def _put_bytes(self, raw: bytes) -> None:
        self._file.write(raw)
        self.bytes_written += len(raw)


def _block(kind: bytes, packed: bytes, size: int, seq: int) -> bytes:
    crc = zlib.crc32(packed, zlib.crc32(_BLOCK.pack(kind, len(packed), size, 0, seq)))
    return _BLOCK.pack(kind, len(packed), size, crc, seq) + packed


def _cut_block(cut: Cut, seq: int) -> bytes:
    content = orjson.dumps({"input": "cut", "name": cut.rule, "cut": cut[1:]})
    return _block(INPT, zlib.compress(content, PACK_LEVEL), len(content), seq)


# --- reading ---------------------------------------------------------------------------------


class Block(NamedTuple):
    kind: bytes
    seq: int
    content: bytes


def blocks(
    path: str | os.PathLike[str], partial: bool = False, only: bytes = b""
) -> Iterator[Block]:
    """Every block of a file, each whole and as it was written; HEAD and STAT are the first two.
    With `only` a kind is given, those blocks.

    Raises RecordingError: no recording, of another version, cut off (with `partial` the blocks
    before the cut are given and that is all), damaged.
    """
    try:
        file = Path(path).open("rb")  # noqa: SIM115 (closed below)
    except OSError as error:
        raise RecordingError(f"{path} cannot be read ({error.strerror}).") from error
    with file:
        if file.read(len(MAGIC)) != MAGIC:
            raise RecordingError(f"{path} is no recording: make one with `./aegis record`.")
        wanted, group = [HEAD, STAT], list[Block]()
        while True:
            at = file.tell()
            raw = file.read(_BLOCK.size)
            made = _read_block(file, raw, path, at, only) if len(raw) == _BLOCK.size else None
            if made is None:
                if partial and not wanted:
                    return
                raise RecordingError(
                    f"{path} is cut off at byte {at}: it was not ended in good order or not copied "
                    "whole (`--partial` replays what is there)."
                )
            if wanted and made.kind != wanted.pop(0):
                raise RecordingError(f"{path} is damaged: it does not begin as a recording does.")
            group.append(made)
            if made.kind not in (INPT, RECS):  # with their MARK, or not at all
                yield from (each for each in group if not only or each.kind == only)
                group.clear()
            if made.kind == DONE:
                return


def _read_block(
    file: BinaryIO, raw: bytes, path: str | os.PathLike[str], at: int, only: bytes
) -> Block | None:
    """None when the file ends before the block does; without contents if another kind is wanted."""
    kind, packed_size, size, crc, seq = _BLOCK.unpack(raw)
    bad = RecordingError(f"{path} is damaged at byte {at}: copy it again.")
    if kind not in (HEAD, STAT, RECS, INPT, MARK, DONE) or max(packed_size, size) > CONTENT_MAX:
        raise bad
    packed = file.read(packed_size)
    if len(packed) < packed_size:
        return None
    if crc != zlib.crc32(packed, zlib.crc32(_BLOCK.pack(kind, packed_size, size, 0, seq))):
        raise bad
    if only not in (b"", kind):
        return Block(kind, seq, b"")
    content = zlib.decompress(packed)
    if len(content) != size:
        raise bad
    return Block(kind, seq, content)


def records_of(block: Block) -> npt.NDArray[Any]:
    """RECORD[n] of a RECS block."""
    words = np.frombuffer(block.content, np.int64).reshape(WORDS_PER_RECORD, -1).T
    return np.ascontiguousarray(words).view(RECORD).reshape(-1)


def rewrite(path: Path, made: list[Block]) -> None:
    """A recording out of blocks: what changed in between is the caller's."""
    with path.open("wb") as file:
        file.write(MAGIC)
        for block in made:
            packed = zlib.compress(block.content, PACK_LEVEL)
            file.write(_block(block.kind, packed, len(block.content), block.seq))


def records_block(records: npt.NDArray[Any], seq: int) -> Block:
    words = records.view(np.int64).reshape(-1, WORDS_PER_RECORD)
    return Block(RECS, seq, words.T.tobytes())
