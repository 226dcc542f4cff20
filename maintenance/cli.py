"""The command line. Nothing heavy is imported before the command is known.

Exchange keys leave the environment first of all (launch.set_keys_aside): only `up`, `risk` and
`flatten --direct` carry them on, in memory that nobody else reads. Errors are one sentence; exit 2
for a wrong call, 1 for a failure.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from typing import Final, NoReturn

from maintenance import launch


class Parser(argparse.ArgumentParser):
    """argparse that says one sentence."""

    def error(self, message: str) -> NoReturn:
        name = self.prog.removeprefix("aegis").strip()
        hint = f"`./aegis {name} --help`" if name else "`./aegis --help`"
        print(f"{message}: see {hint}.", file=sys.stderr)
        raise SystemExit(2)


def _up(args: argparse.Namespace) -> int:
    from maintenance import up

    return up.main(args)


def _node(args: argparse.Namespace) -> int:
    from maintenance import node

    return node.main()


def _process(module: str, *words: str) -> Callable[[argparse.Namespace], int]:
    def run(args: argparse.Namespace) -> int:
        from maintenance import single

        return single.run(args.command, module, list(words))

    return run


def _status(args: argparse.Namespace) -> int:
    from maintenance import status

    return status.main(args)


def _operate(args: argparse.Namespace) -> int:
    from maintenance import operate

    return operate.main(args)


def _record(args: argparse.Namespace) -> int:
    from maintenance import recording

    return recording.main(args)


def _replay(args: argparse.Namespace) -> int:
    from maintenance import replaying

    return replaying.main(args)


def _rule(args: argparse.Namespace) -> int:
    from maintenance import rule

    return rule.main(args)


def _warm(args: argparse.Namespace) -> int:
    from maintenance import warm

    return warm.main()


def _chart(args: argparse.Namespace) -> int:
    from maintenance import chart

    return chart.main(args)


def _chaos(args: argparse.Namespace) -> int:
    from maintenance import chaos

    return chaos.main(args)


def _redis(rest: list[str]) -> int:
    from maintenance import redis_cli

    return redis_cli.main(rest)


def _venue(rest: list[str]) -> int:
    from maintenance import single

    return single.run("venue", "venue.main", rest)


EVERY_TEST: Final = ["-n", "2", "--dist", "loadfile"]  # they wait more than they compute


def _warm_module(module: str, rest: list[str]) -> int:
    """Becomes a module of the checkout; kernels are compiled before it, on all cores, and shared
    with every process that it starts."""
    import os

    from maintenance import warm

    state_dir = os.environ.get("AEGIS_STATE_DIR") or ".aegis"
    warm.ensure(state_dir)
    os.environ[warm.CACHE_ENV] = str(warm.numba_cache_dir(state_dir))
    os.chdir(launch.ROOT)
    os.execv(sys.executable, [sys.executable, "-m", module, *rest])  # noqa: S606


def _test(rest: list[str]) -> int:
    return _warm_module("pytest", rest or EVERY_TEST)


def _bench(rest: list[str]) -> int:
    return _warm_module("benchmarks.main", rest)


_PASSED_ON: Final = {
    "redis": _redis,
    "venue": _venue,
    "test": _test,
    "bench": _bench,
}  # words go on unparsed


def _add_up(commands: argparse._SubParsersAction[Parser]) -> None:
    up = commands.add_parser("up", help="the whole system, by default on a simulated market")
    up.add_argument(
        "--for", dest="seconds", type=float, metavar="S", help="stop S seconds after the first tick"
    )
    up.add_argument("--symbols", metavar="N|LIST", help="how many symbols, or which")
    up.add_argument("--rate", metavar="R", help="ticks per second of the generated market")
    up.add_argument("--tape", nargs="+", metavar="FILE", help="play these captures instead")
    up.add_argument("--speed", metavar="X", help="market seconds per second")
    up.add_argument("--seed", metavar="S", help="seed of the generated market")
    up.add_argument("--edge", metavar="E", help="edge of the generated market; 0: driftless")
    up.add_argument("--summary", action="store_true", help="end with one JSON line")
    up.add_argument("--keep", action="store_true", help="resume the data of the last run")
    up.set_defaults(run=_up)


def _add_recordings(commands: argparse._SubParsersAction[Parser]) -> None:
    record = commands.add_parser("record", help="record what the brains take in")
    record.add_argument(
        "--for", dest="seconds", type=float, metavar="S", help="so many seconds; default 60"
    )
    record.add_argument("--out", metavar="FILE", help="default: aegis-<time>.aegisrec here")
    record.set_defaults(run=_record)
    replay = commands.add_parser("replay", help="the brain's code over a recording; digests")
    replay.add_argument("file", metavar="FILE")
    replay.add_argument("--json", action="store_true", help="one JSON object")
    replay.add_argument("--batch", type=int, default=8192, metavar="N", help="records at a time")
    replay.add_argument("--from", dest="from_ms", metavar="T", help="count from this market time")
    replay.add_argument("--until", dest="until_ms", metavar="T", help="stop at this market time")
    replay.add_argument("--partial", action="store_true", help="a file that was cut off, too")
    replay.set_defaults(run=_replay)


def _add_rules(commands: argparse._SubParsersAction[Parser]) -> None:
    rule = commands.add_parser("rule", help="rules of your own: new, check, list")
    actions = rule.add_subparsers(
        dest="rule_command", metavar="ACTION", required=True, parser_class=Parser
    )
    new = actions.add_parser("new", help="write a rule's file to begin with")
    new.add_argument("name", metavar="NAME")
    new.add_argument("--folder", metavar="DIR", help="default: rules/ of this checkout")
    check = actions.add_parser("check", help="lookahead, memory, speed: before it is asked live")
    check.add_argument("name", metavar="NAME", help="of rules/, or dotted: module.function")
    check.add_argument("--recording", metavar="FILE", help="check it on this market too")
    actions.add_parser("list", help="every rule: state, counts, speed")
    rule.set_defaults(run=_rule)


def build() -> Parser:
    """All commands that exist."""
    parser = Parser(prog="aegis", description="AEGIS: a trading engine. `./aegis up` runs it all.")
    commands = parser.add_subparsers(
        dest="command", metavar="COMMAND", required=True, parser_class=Parser
    )
    _add_up(commands)
    commands.add_parser("node", help="one node: feed and brain").set_defaults(run=_node)
    commands.add_parser("warm", help="compile the kernels now; for images").set_defaults(run=_warm)
    commands.add_parser("risk", help="the risk process").set_defaults(run=_process("risk.main"))
    for name, text in (
        (
            "venue",
            "the simulated exchange: --port --symbols --rate --seed --tape --edge --upstream",
        ),
        ("redis", "a command to the running Redis"),
        ("test", "run the tests; arguments go to pytest"),
        ("bench", "measure this machine: decode ring brain feed venue entries path; --json --out"),
    ):
        commands.add_parser(name, help=text)  # parsed by those they are passed to: main()
    for name, text in (("worker", "runs the scheduled jobs"), ("beat", "schedules the jobs")):
        commands.add_parser(name, help=text).set_defaults(run=_process("maintenance.tasks", name))
    status = commands.add_parser("status", help="how it is, in one look")
    status.add_argument("--json", action="store_true")
    status.set_defaults(run=_status)
    _add_recordings(commands)
    _add_rules(commands)
    why = commands.add_parser("why", help="what happened to a signal or order, and why")
    why.add_argument("id")
    why.set_defaults(run=_operate)
    flatten = commands.add_parser("flatten", help="close positions, all or one")
    flatten.add_argument("symbol", nargs="?", default="")
    flatten.add_argument(
        "--direct", action="store_true", help="with nothing but the exchange: no Redis, no risk"
    )
    flatten.set_defaults(run=_operate)
    chart = commands.add_parser("chart", help="candles and the structure found in them: PNG, HTML")
    chart.add_argument("symbol", metavar="SYMBOL")
    chart.add_argument("--timeframe", default="1m", metavar="T", help="1m, 5m, 15m, 1h or 1d")
    chart.add_argument("--bars", type=int, default=120, metavar="N", help="newest candles shown")
    chart.add_argument("--out", metavar="PATH", help="of both files, without their endings")
    chart.add_argument("--recording", metavar="FILE", help="as the brain stood at its end")
    chart.add_argument("--until", dest="until_ms", metavar="T", help="... or at this market time")
    chart.add_argument("--partial", action="store_true", help="a file that was cut off, too")
    chart.set_defaults(run=_chart)
    chaos = commands.add_parser("chaos", help="break everything around risk, check what is left")
    chaos.add_argument("--seed", type=int, metavar="N", help="plans the faults; default: any")
    chaos.add_argument(
        "--for", dest="seconds", type=float, default=60.0, metavar="S", help="how long; default 60"
    )
    chaos.add_argument("--kinds", metavar="WORDS", help="only faults that begin so: crash,redis")
    chaos.add_argument(
        "--break", dest="broken", metavar="NAME",
        help="without one guard, to see it caught: fence, query, dedupe, stop, reconcile",
    )  # fmt: skip
    chaos.add_argument("--json", action="store_true", help="one JSON object")
    chaos.set_defaults(run=_chaos)
    for name, text in _PLAIN.items():
        commands.add_parser(name, help=text).set_defaults(run=_operate)
    return parser


_PLAIN: Final = {
    "arm": "allow entries (live mode needs it once)",
    "halt": "stop entries; exits go on",
    "resume": "allow entries again after halt or a breaker that latches",
    "reconcile": "compare with the exchange now",
    "audit": "the venue's ledger against Redis",
    "down": "stop the running system",
    "purge": "remove all keys of this mode from Redis",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; the exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    launch.set_keys_aside(words[0] if words else "", words)
    try:
        if words and words[0] in _PASSED_ON:
            return _PASSED_ON[words[0]](words[1:])
        args = build().parse_args(words)
        code: int = args.run(args)
    except KeyboardInterrupt:
        return 130
    return code


if __name__ == "__main__":
    raise SystemExit(main())
