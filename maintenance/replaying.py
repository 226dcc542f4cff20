"""`aegis replay FILE`: what the brain made of a recorded market, by the same code, as numbers.

The digests of a whole replay are held against those that the brain kept while it recorded: with
the same kernels they must be equal, and the command fails when they are not.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from datetime import UTC, datetime
from typing import Any

import process
from maintenance import warm


def market_ms(text: str | None) -> int | None:
    """Milliseconds since 1970 or a date as ISO 8601, UTC unless it says otherwise."""
    if text is None:
        return None
    if text.isdigit():
        return int(text)
    try:
        when = datetime.fromisoformat(text)
    except ValueError:
        process.fail(f"{text} is no time: give milliseconds, or a date like 2026-11-30T21:00.", 2)
    return round((when if when.tzinfo else when.replace(tzinfo=UTC)).timestamp() * 1000)


def shown_time(ms: int) -> str:
    return datetime.fromtimestamp(ms / 1000, UTC).isoformat(sep=" ", timespec="seconds")[:19]


def use_kernels(state_dir: str) -> None:
    """Where compiled kernels lie; numba reads it when it is imported, before any kernel is. Those
    of the brain that are not there are compiled on the way, no others."""
    os.environ[warm.CACHE_ENV] = str(warm.numba_cache_dir(state_dir))


class Bar:
    """Progress on a terminal, nothing elsewhere."""

    def __init__(self) -> None:
        self._done, self._live = 0, sys.stderr.isatty()

    def __call__(self, records: int) -> None:
        self._done += records
        if self._live:
            print(f"\r\x1b[K{self._done:,} records", end="", file=sys.stderr, flush=True)

    def clear(self) -> None:
        if self._live:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)


def main(args: argparse.Namespace) -> int:
    from_ms, until_ms = market_ms(args.from_ms) or 0, market_ms(args.until_ms)
    if args.batch < 1:
        process.fail("--batch needs a positive number of records.", 2)
    use_kernels(os.environ.get("AEGIS_STATE_DIR") or ".aegis")
    from brain import kernel
    from brain.recording import RecordingError, blocks
    from brain.replay import replay

    try:
        next(blocks(args.file))  # what is no recording is told at once
    except RecordingError as error:
        process.fail(str(error))
    kernel.warm()
    bar, began_s = Bar(), time.perf_counter()
    try:
        made = replay(
            args.file, batch=args.batch, from_ms=from_ms, until_ms=until_ms,
            partial=args.partial, progress=bar,
        )  # fmt: skip
    except RecordingError as error:
        process.fail(str(error))
    finally:
        bar.clear()
    seconds = time.perf_counter() - began_s
    told = made.digest.told()
    counts = told["counts"]
    whole = not from_ms and until_ms is None
    result: dict[str, Any] = {
        "ticks": counts["ticks"],
        "signals": counts["signals"],
        "outcomes": counts["outcomes"],
        "digest": told["digest"],
        "digests": told["digests"],
        "counts": counts,
        "seconds": round(seconds, 3),
        "ticks_per_s": round(counts["ticks"] / seconds) if seconds > 0 else 0,
        "from_ms": made.first_ms,
        "until_ms": made.last_ms,
        "complete": made.complete,
        "same_code": made.same_code,
        "equal": made.equal if whole else None,  # to what the brain made of it live
        "ended": made.recorded.get("reason", "cut off"),
    }
    print(json.dumps(result) if args.json else render(result, made.recorded))
    return 1 if result["equal"] is False and made.same_code else 0


def render(result: dict[str, Any], recorded: dict[str, Any]) -> str:
    """The same for people."""
    counts = result["counts"]
    lines = [
        f"market    {shown_time(result['from_ms'])} to {shown_time(result['until_ms'])}; the "
        f"recording ended {result['ended']}",
        f"replayed  {result['ticks']:,} ticks in {result['seconds']} s: "
        f"{result['ticks_per_s']:,} ticks/s",
        f"{'':10}{'count':>12}  digest",
    ]
    lines += [
        f"{name:10}{counts[name]:>12,}  {digest}" for name, digest in result["digests"].items()
    ]
    parts = {k: v for k, v in counts.items() if "." in k}
    lines += [f"{'':10}{v:>12,}  {k}" for k, v in parts.items()]
    lines += [f"{'all':22}  {result['digest']}"]
    if result["equal"] is None:
        return "\n".join([*lines, "a part of the recording: not compared with the live run"])
    if result["equal"]:
        return "\n".join([*lines, "equal to what the brain made of it live"])
    before = recorded.get("digests", {})
    other = [name for name, digest in result["digests"].items() if before.get(name) != digest]
    why = "" if result["same_code"] else " (recorded by other code)"
    return "\n".join([*lines, f"NOT equal to the live run{why}: {', '.join(other)}"])
