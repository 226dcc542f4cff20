"""`python -m maintenance.chaos_risk`: the risk process with places to die in, or a guard removed.

Started by chaos instead of risk.main. It replaces named functions of risk's shell by wrappers that
die at an armed crash point (maintenance/chaos_points.py), takes out one guard if asked to
(maintenance/chaos_breaks.py), and then runs risk.main as it is. A name that is not there any more
ends the process at its start: a point that nobody can pass would prove nothing.
"""

from __future__ import annotations

import argparse
import asyncio
import contextvars
import functools
import os
import signal
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import process
import risk.exchange
import risk.main
import risk.session
import risk.snapshots
import risk.transport
import streams
from maintenance import chaos_breaks
from maintenance.chaos_points import BREAKS, SENT, Counter, stand
from risk import events, orders

AFTER_SEND_S: Final = 0.002  # for the bytes to leave and the exchange to act on them
Make = Callable[[Any], Any]
Names = Callable[[Mapping[str, Any], Any], Iterable[str]]  # (keywords, first argument or result)
_purpose: contextvars.ContextVar[str] = contextvars.ContextVar("purpose", default="")


class Points:
    """The places in this process, and its end at one of them."""

    def __init__(self, folder: Path) -> None:
        self.counter = Counter(folder)
        self.up = False

    def pass_by(self, point: str) -> None:
        """Die here if this point is armed and its time has come."""
        if self.counter.due(point):
            self.die()

    def die(self) -> None:
        if self.counter.take():
            os.kill(os.getpid(), signal.SIGKILL)


def replace(owner: Any, name: str, make: Make) -> None:
    """`owner.name` becomes what `make` makes of it. A name that is gone ends the process."""
    old = getattr(owner, name, None)
    if old is None:
        process.fail(
            f"chaos wraps {owner.__name__}.{name}, which is not there: tell it the new name."
        )
    setattr(owner, name, make(old))


# --- writes ------------------------------------------------------------------------------------


def written(ops: Iterable[events.Op], ack: Any, armed: bool, keys: streams.Keys) -> Iterator[str]:
    """Which of WRITTEN one commit is; several where it does several things."""
    told: dict[str, None] = {}
    if armed:
        told["append"] = None
    elif ack is not None:
        told["ack"] = None
    for op in ops:
        name, key = op[0], op[1]
        if name == "xadd_once" and key == keys.fills:
            told["fill_write"] = None
        elif name == "srem" and key == keys.positions:
            told["close_write"] = None
        elif name == "hset" and key == keys.exchange:
            told["snapshot_write"] = None
        elif name == "xadd" and key == keys.orders and not armed:
            leg, state = op[2]["leg"], op[2]["state"]
            if leg == orders.LEG_NAMES["s"] and state == "sent":
                told["stop_write"] = None
            elif leg == orders.LEG_NAMES["x"] and state == "intent":
                told["exit_write"] = None
            elif leg == orders.LEG_NAMES["e"] and state in orders.TERMINAL:
                told["entry_end_write"] = None
    yield from told


def _commit(points: Points) -> Make:
    def make(old: Callable[..., Awaitable[Any]]) -> Any:
        @functools.wraps(old)
        async def commit(
            r: Any, keys: streams.Keys, *, writes: Sequence[streams.Write], **more: Any
        ) -> Any:
            names = [list(written(w.ops, w.ack, w.armed, keys)) for w in writes]
            for name in (name for each in names for name in each):
                points.pass_by(f"before_{name}")
            verdicts, error = await old(r, keys, writes=writes, **more)
            for each, verdict in zip(names, verdicts, strict=False):
                for name in each if verdict == "ok" else ():
                    points.pass_by(f"after_{name}")
            return verdicts, error

        return commit

    return make


# --- sends -------------------------------------------------------------------------------------


def _call(points: Points) -> Make:
    def make(old: Callable[..., Awaitable[Any]]) -> Any:
        @functools.wraps(old)
        async def call(self: Any, request: events.Request) -> Any:
            purpose = request.purpose
            if purpose not in SENT:
                return await old(self, request)
            points.pass_by(f"before_send_{purpose}")
            token = _purpose.set(purpose)
            try:
                result = await old(self, request)
            finally:
                _purpose.reset(token)
            points.pass_by(f"after_answer_{purpose}")
            return result

        return call

    return make


def _converse(points: Points) -> Make:
    """The bytes leave and the exchange acts on them; its answer is never read."""

    def make(old: Callable[..., Awaitable[Any]]) -> Any:
        @functools.wraps(old)
        async def converse(self: Any, connection: Any, sent: Any, timeout_s: float) -> Any:
            if not _purpose.get() or not points.counter.due(f"after_send_{_purpose.get()}"):
                return await old(self, connection, sent, timeout_s)
            connection.ask(self._bytes(sent))
            connection.transport.pause_reading()
            await asyncio.sleep(AFTER_SEND_S)
            return points.die()

        return converse

    return make


# --- the rest of its life ----------------------------------------------------------------------


def _after(points: Points, point: str, met: Callable[[Any], Any]) -> Make:
    """Pass `point` after an answer of the function that is one by `met`."""

    def make(old: Callable[..., Awaitable[Any]]) -> Any:
        @functools.wraps(old)
        async def made(*args: Any, **more: Any) -> Any:
            answer = await old(*args, **more)
            if met(answer):
                points.pass_by(point)
            return answer

        return made

    return make


def _lease_take(points: Points) -> Make:
    """Who asks for the lease is ready to take over."""

    def make(old: Callable[..., Awaitable[int]]) -> Any:
        @functools.wraps(old)
        async def lease_take(*args: Any) -> int:
            if not points.up:
                stand(points.counter.folder, os.getpid())
                points.up = True
            epoch = await old(*args)
            if epoch > 0:
                points.pass_by("after_lease_taken")
            return epoch

        return lease_take

    return make


def _snapshot_done(points: Points) -> Make:
    def make(old: Callable[..., None]) -> Any:
        @functools.wraps(old)
        def snapshot_done(self: Any, event: events.SnapshotTaken) -> None:
            old(self, event)
            points.pass_by("after_snapshot")

        return snapshot_done

    return make


def _pushed(points: Points) -> Make:
    def make(old: Callable[..., None]) -> Any:
        @functools.wraps(old)
        def pushed(self: Any, frame: dict[str, Any]) -> None:
            if frame.get("e") == "ORDER_TRADE_UPDATE" and frame["o"]["x"] == "TRADE":
                points.pass_by("before_fill")
            old(self, frame)

        return pushed

    return make


def _any_signal(entries: Iterable[tuple[str, str, Any]]) -> bool:
    return any(stream.endswith(":signals") for stream, _, _ in entries)


def places(points: Points) -> tuple[tuple[Any, str, Make], ...]:
    """Everything that is wrapped: its owner, its name there, and what it becomes."""
    return (
        (streams, "commit", _commit(points)),
        (risk.exchange.Exchange, "call", _call(points)),
        (risk.transport.Http, "_converse", _converse(points)),
        (streams, "lease_take", _lease_take(points)),
        (risk.session, "rebuild", _after(points, "after_rebuild", lambda _: True)),
        (risk.snapshots, "take_snapshot", _after(points, "in_snapshot", lambda s: s is not None)),
        (risk.session.Session, "snapshot_done", _snapshot_done(points)),
        (streams, "read_group", _after(points, "after_read", _any_signal)),
        (risk.session.Session, "pushed", _pushed(points)),
    )


def prepare(folder: Path, broken: str = "") -> None:
    """Put the places to die in, take the named guard out."""
    if broken:
        chaos_breaks.take_out(broken, replace)
    for owner, name, make in places(Points(folder)):
        replace(owner, name, make)


def main() -> None:
    parser = argparse.ArgumentParser(prog="chaos_risk", description=__doc__)
    parser.add_argument("--points", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--break", dest="broken", default="", choices=["", *BREAKS])
    options = parser.parse_args()
    prepare(options.points, options.broken)
    risk.main.main()


if __name__ == "__main__":
    main()
