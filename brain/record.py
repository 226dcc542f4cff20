"""When a brain records: from its start, or while somebody asks for it.

With a folder given (AEGIS_RECORD) each life of a brain writes a file of its own there. `aegis
record` asks by a key that expires by itself: a recording lasts while the key is there, and for the
seconds that it names at most. What cannot be recorded is reported; the brain goes on in any case.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import orjson

from brain import snapshot
from brain.engine import Engine
from brain.recording import FORMAT, SUFFIX, Recorder, code, record_layout

NAMES_MAX: Final = 1_000  # files of one name, told apart by a number
SECONDS_MAX: Final = 86_400.0


@dataclass(slots=True)
class Wish:
    """What a key asks for. Anything else in it is no wish."""

    id: str
    out: str
    seconds: float


def parse_wish(text: str) -> Wish | None:
    """Raises ValueError for a text that is none; None for no text."""
    if not text:
        return None
    try:
        raw = orjson.loads(text)
        made = Wish(str(raw["id"]), str(raw["out"]), float(raw["seconds"]))
    except (KeyError, TypeError) as error:
        raise ValueError(f"no wish to record: {error}") from error
    if not made.id or not Path(made.out).is_absolute() or not 0 < made.seconds <= SECONDS_MAX:
        raise ValueError("no wish to record: it needs an id, an absolute path and seconds")
    return made


def lane_path(out: str, name: str) -> Path:
    """The file of one brain: `out` itself, with the lane's number where there are several."""
    path, lane = Path(out), name.partition(".")[2]
    return path.with_name(f"{path.stem}.{lane}{path.suffix}") if lane else path


@dataclass(slots=True)
class Recording:
    """The one recording that a brain may make at a time, and what there is to tell of it."""

    engine: Engine
    name: str  # of this brain: brain, or brain.1 of several
    settings: Mapping[str, Any]
    bytes_max: int
    recorder: Recorder | None = None
    wish: str = ""  # its id; empty when nobody asked
    until_ns: int = 0
    told: dict[str, Any] = field(default_factory=dict)
    news: list[str] = field(default_factory=list)  # sentences for the journal

    def start_in(self, folder: str, node: str, wall_s: float, now_ns: int) -> None:
        """A file of this life in `folder`."""
        stamp = time.strftime("%Y%m%dT%H%M%S", time.gmtime(wall_s))
        self._start(Path(folder) / f"{node}-{self.name}-{stamp}{SUFFIX}", now_ns, 0)

    def obey(self, wish: Wish | None, now_ns: int) -> None:
        """What the key says now. A wish that was fulfilled is not taken up again."""
        if wish is None:
            if self.recorder is not None and self.wish:
                self.stop("as asked")
        elif wish.id != self.wish:
            if self.recorder is not None:
                self.news.append("a recording goes on already: another one is not begun")
                return
            self.wish = wish.id
            until_ns = now_ns + int(wish.seconds * 1e9)
            self._start(lane_path(wish.out, self.name), now_ns, until_ns)

    def _start(self, path: Path, now_ns: int, until_ns: int) -> None:
        engine = self.engine
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path, file = _create(path)
        except OSError as error:
            reason = f"{path} cannot be written ({error.strerror})"
            self.told = {"id": self.wish, "path": str(path), "state": "ended", "reason": reason}
            self.news.append(f"not recorded: {reason}")
            return
        header = {
            "format": FORMAT, "record": record_layout(), "code": code(), "seq": engine.seq,
            "settings": dict(self.settings), "taker_fee": engine.desk.taker_fee,
        }  # fmt: skip
        state = snapshot.take(engine.desk)
        self.recorder = Recorder(file, path, header, state, engine.seq, self.bytes_max, now_ns)
        self.until_ns = until_ns
        self.recorder.start()
        self.news.append(f"recording to {path}")

    def round_over(self, now_ns: int) -> None:
        """After each round: hand over what is due, notice an end."""
        recorder = self.recorder
        if recorder is None:
            return
        recorder.round_over(self.engine.seq, now_ns)
        if self.until_ns and now_ns > self.until_ns:
            self.stop("as asked")
        if recorder.ended:
            self._ended(recorder)

    def stop(self, reason: str) -> None:
        """At this point of the market; the file is complete a moment later."""
        if self.recorder is not None:
            self.recorder.stop(self.engine.seq, reason)

    def close(self, timeout_s: float) -> bool:
        """The brain ends: so does the recording. False when the disk was too slow for that."""
        recorder = self.recorder
        if recorder is None:
            return True
        self.stop("the brain was stopped")
        whole = recorder.close(timeout_s)
        if whole:
            self._ended(recorder)
        return whole

    def _ended(self, recorder: Recorder) -> None:
        self.told = self._tell(recorder)
        self.recorder = None
        counts = self.told.get("counts", {})
        self.news.append(
            f"recording ended, {recorder.ended}: {counts.get('records', 0)} records in "
            f"{recorder.path}"
        )

    def _tell(self, recorder: Recorder) -> dict[str, Any]:
        state = "ended" if recorder.ended else "recording"
        return {
            "id": self.wish, "path": str(recorder.path), "state": state,
            "reason": recorder.ended, "bytes": recorder.bytes_written, **recorder.told,
        }  # fmt: skip

    def report(self) -> dict[str, Any]:
        """For whoever asked; empty when there never was a recording."""
        return self._tell(self.recorder) if self.recorder is not None else self.told


def _create(path: Path) -> tuple[Path, Any]:
    """A new file; a name that is taken gets a number. Raises OSError."""
    for number in range(1, NAMES_MAX + 1):
        tried = path if number == 1 else path.with_name(f"{path.stem}-{number}{path.suffix}")
        try:
            return tried, tried.open("xb", buffering=1 << 20)
        except FileExistsError:
            continue
    raise FileExistsError(17, "too many files of this name", str(path))
