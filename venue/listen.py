"""Listen keys: one at a time for the account, an hour of real time, none after its end.

Pure; times are boot milliseconds. Real time, because clients renew by their own timers whatever
the market's pace. A key that has ended stays silent for good; the next POST makes another.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field

KEY_MS = 60 * 60_000


@dataclass(slots=True)
class Keys:
    key: str = ""
    until_ms: int = 0
    ended: list[str] = field(default_factory=list)  # by time, not yet told


def live(keys: Keys, now_ms: int) -> str:
    """The key that is alive, or nothing."""
    _end(keys, now_ms)
    return keys.key


def _end(keys: Keys, now_ms: int) -> None:
    if keys.key and now_ms >= keys.until_ms:
        keys.ended.append(keys.key)
        keys.key = ""


def start(keys: Keys, now_ms: int) -> str:
    """The same key while one is alive; its hour begins again."""
    if not live(keys, now_ms):
        keys.key = secrets.token_hex(32)
    keys.until_ms = now_ms + KEY_MS
    return keys.key


def keep(keys: Keys, now_ms: int) -> str:
    """The key with a new hour; nothing when none is alive."""
    if live(keys, now_ms):
        keys.until_ms = now_ms + KEY_MS
    return keys.key


def stop(keys: Keys, now_ms: int) -> bool:
    """Ends the key without a word; False when none was alive."""
    was = bool(live(keys, now_ms))
    keys.key = ""
    return was


def expire(keys: Keys) -> None:
    """Its time is over now."""
    keys.until_ms = 0


def expired(keys: Keys, now_ms: int) -> list[str]:
    """Keys whose end must be told, once."""
    _end(keys, now_ms)
    told, keys.ended = keys.ended, []
    return told
