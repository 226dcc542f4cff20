"""`aegis bench [NAME …] [--json] [--seconds S] [--out FILE]`: measure this machine, print a table.

    decode   bytes to record, beside orjson and msgspec
    feed     WebSocket to a reader in another process, beside websockets + orjson
    ring     records a second, hop, wake-up, price of waiting
    brain    nanoseconds a tick, the stall at a minute boundary, memory; its start with an empty
             and with a warm cache of kernels; a close by its parts, beside TA-Lib and
             smartmoneyconcepts
    venue    the exchange in a box: paced ticks to one client, orders answered
    entries  signal in Redis to entry at the venue, and how many with their stops a second
    path     the whole system at 100,000 ticks a second

`bench feed --url ws://…` measures against any combined-stream server, see feed.py. Every answer is
checked; a wrong one ends the run with exit code 1. The raw samples are in --json and --out.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Final

from benchmarks import report
from benchmarks.report import Result

NAMES: Final = ("decode", "ring", "brain", "feed", "venue", "entries", "path")


def runner(name: str, seconds: float) -> Callable[[], list[Result]]:
    """What measures `name`; imported only now, since each compiles its own."""
    if name == "decode":
        from benchmarks import decode

        return decode.run
    if name == "ring":
        from benchmarks import ring

        return ring.run
    if name == "brain":
        from benchmarks import analysis, brain, kernels

        return lambda: brain.run() + kernels.run() + analysis.run()
    if name == "feed":
        from benchmarks import feed

        return feed.run
    if name == "venue":
        from benchmarks import venue

        return venue.run
    if name == "entries":
        from benchmarks import entries

        return entries.run
    from benchmarks import path

    return lambda: path.run(seconds)


def main(argv: list[str]) -> int:
    """Exit code 1 when an answer was wrong; a target out of reach is told, not punished."""
    if argv[:1] == ["feed"] and any(word.startswith("--url") for word in argv):
        from benchmarks import feed

        return feed.main(argv[1:])
    parser = argparse.ArgumentParser(prog="aegis bench", description="measure this machine")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(NAMES)}")
    parser.add_argument("--json", action="store_true", help="one JSON object, samples included")
    parser.add_argument("--seconds", type=float, default=60.0, help="of the whole path")
    parser.add_argument("--out", type=Path, metavar="FILE", help="keep the JSON here as well")
    options = parser.parse_args(argv)
    unknown = set(options.names) - set(NAMES)
    if unknown:
        parser.error(f"no benchmark is named {', '.join(sorted(unknown))}; see --help")
    about, results = report.machine(), []
    for name in options.names or NAMES:
        print(f"bench {name} …", file=sys.stderr, flush=True)
        try:
            results += runner(name, options.seconds)()
        except RuntimeError as error:
            print(f"{name} answered wrong: {error}", file=sys.stderr)
            return 1
    text = report.document(results, about)
    if options.out:
        options.out.write_text(text + "\n")
    if options.json:
        print(text)
        return 0
    print(report.table(results))
    state = "overloaded" if about["overloaded"] else "quiet"
    print(
        f"\n{about['cores']} x {about['cpu']}, {about['system']}, Python {about['python']}; loop "
        f"{about['loop_m_per_s'][0]} to {about['loop_m_per_s'][1]} M/s, "
        f"{about['others_cores']} cores used by others: {state}"
    )
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
