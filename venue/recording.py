"""A recording: frames as gz lines `local_ns {json}`, which plays again as a tape (`capture`).

Lines wait in memory for at most MEMBER_BYTES or the owner's next `flush`, and are then written as
one whole gzip member in one call: a recorder that is killed loses what waited, and the file reads
to its last whole member. The file never grows beyond `bytes_max`; what comes later is counted.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from pathlib import Path

MEMBER_BYTES = 1 << 20  # of text in one gzip member
BYTES_MAX = 4 << 30  # of a file, compressed: days of a usual market
GZIP = 16 + zlib.MAX_WBITS


def payloads(frames: bytes) -> list[bytes]:
    """The texts of whole unmasked WebSocket text frames, in order."""
    out, at = [], 0
    while at < len(frames):
        length, head = frames[at + 1], 2
        if length == 126:
            length, head = int.from_bytes(frames[at + 2 : at + 4], "big"), 4
        elif length == 127:
            length, head = int.from_bytes(frames[at + 2 : at + 10], "big"), 10
        out.append(frames[at + head : at + head + length])
        at += head + length
    return out


class Recording:
    """One file, appended to. Raises OSError when it cannot be written."""

    def __init__(self, path: Path, bytes_max: int = BYTES_MAX, again: bool = False) -> None:
        self._file = path.open("ab" if again else "xb", buffering=0)
        self._bytes_max = bytes_max
        self._waiting: list[bytes] = []
        self._waiting_bytes = 0
        self.written = self._file.tell()
        self.lines = self.lost = 0

    def add(self, local_ns: int, texts: list[bytes]) -> None:
        """Texts that were heard at that time."""
        stamp = str(local_ns).encode()
        for text in texts:
            self._waiting.append(stamp + b" " + text + b"\n")
            self._waiting_bytes += len(stamp) + len(text) + 2
            if self._waiting_bytes >= MEMBER_BYTES:
                self.flush()

    def flush(self) -> None:
        """Everything that waits, as one member; counted as lost when the file is full."""
        if not self._waiting:
            return
        packer = zlib.compressobj(1, zlib.DEFLATED, GZIP)
        member = packer.compress(b"".join(self._waiting)) + packer.flush()
        if self.written + len(member) > self._bytes_max:
            self.lost += len(self._waiting)
        else:
            self.lines += len(self._waiting)
            self.written += len(member)
            self._file.write(member)
        self._waiting.clear()
        self._waiting_bytes = 0

    def close(self) -> None:
        self.flush()
        self._file.close()


class Tap:
    """A listener inside the venue: what would go to a socket goes to the recording."""

    def __init__(self, recording: Recording, stamp_ns: Callable[[], int]) -> None:
        self._recording, self._stamp_ns = recording, stamp_ns

    def write(self, data: bytes) -> None:
        self._recording.add(self._stamp_ns(), payloads(data))

    def get_write_buffer_size(self) -> int:
        return 0

    def abort(self) -> None:
        """There is nobody to cut off."""

    def close(self) -> None:
        """The recording's owner closes it."""

    def is_closing(self) -> bool:
        return False
