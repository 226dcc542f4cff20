"""Blows that cost risk its memory or its way to it: a Redis rolled back, emptied, full, loading,
slow, cut off, or without its streams.

What Redis loses here was confirmed before. The rig reads along to the last moment (writes are held
or lost in the same transaction), so what is forgotten is known exactly: rows stay facts of the run,
and `rig.lost` names what nobody can know any more. The exchange remembers the rest.
"""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Callable, MutableMapping
from decimal import Decimal
from pathlib import Path
from typing import Any, Final

import redis.exceptions

from clock import wall_ms
from maintenance.chaos_plan import Step
from maintenance.chaos_rig import PAGE, Rig
from venue.orders import CLOSED_KEPT

ENTRY_S: Final = 4.0  # for an entry to fall upon
BITE_S: Final = 8.0
LAST_WORDS_MS: Final = 5_000  # in which writes are held while the rest is read
FILLER: Final = 8_192  # commands that make the file long: LOADING is told once in a thousand
SLEEP_US: Final = 60  # what the shortest pause of a loading server costs
ROLL_BACK_S: Final = 0.02
Blow = Callable[[Rig, Step], bool]


# --- memory ------------------------------------------------------------------------------------


def _rollback(rig: Rig, step: Step) -> bool:
    """An older copy of the file: the last confirmed seconds are gone, the wall clock is not."""
    data, then = rig.folder / "redis", rig.folder / "redis-then"
    shutil.rmtree(then, ignore_errors=True)
    shutil.copytree(data, then)
    time.sleep(step.body["seconds"])
    rig.entry_intended(ENTRY_S)
    time.sleep(ROLL_BACK_S)
    rig.r.execute_command("CLIENT PAUSE", LAST_WORDS_MS, "WRITE")
    rig.follow()
    signals, holder = _signals(rig.r.xrange(rig.keys.signals)), rig.holder()
    _kill(rig)
    _kill_holder(rig, step, holder)
    shutil.rmtree(data)
    then.rename(data)
    time.sleep(step.hold_s)
    rig.start_redis()
    return _note_loss(rig, signals)


def _kill(rig: Rig) -> None:
    assert rig.redis is not None
    rig.redis.kill()
    rig.redis.wait(10)


def _kill_holder(rig: Rig, step: Step, holder: str) -> None:
    """And with Redis the one process that knew more."""
    if step.body["kill"] and holder:
        rig.kill_risk(holder)
        rig.start_risk(holder)


def _signals(rows: Any) -> set[str]:
    return {row.get("id", "") for _, row in rows}


def _note_loss(rig: Rig, signals: set[str]) -> bool:
    """Compare what was read with what is left of it; later rows have later ids."""
    key = rig.keys.orders
    left: Any = rig.r.xrevrange(key, rig.tails.get(key, "+"), "-", count=1)
    last = _place(left[0][0]) if left else (0, 0)
    gone = {entry_id for entry_id, _ in rig.orders if _place(entry_id) > last}
    rig.lost.orders |= gone
    rig.lost.signals |= signals - _signals(rig.r.xrange(rig.keys.signals))
    return bool(gone)


def _place(entry_id: str) -> tuple[int, int]:
    ms, _, number = entry_id.partition("-")
    return int(ms), int(number or 0)


def _flush(rig: Rig, step: Step) -> bool:
    """FLUSHALL under a running holder: lease, epoch, groups, positions, books, all of it."""
    rig.follow()
    keys, holder = rig.keys, rig.holder()
    told = _at_once(rig, (keys.signals, keys.fills, keys.ledger), "FLUSHALL")
    rig.lost.orders |= {entry_id for entry_id, _ in rig.orders}
    rig.lost.signals |= _signals(told[keys.signals])
    _kill_holder(rig, step, holder)
    _keep_untold(rig, told[keys.fills], told[keys.ledger])
    return True


def _at_once(rig: Rig, whole: tuple[str, ...], *blow: str) -> dict[str, Any]:
    """Whole streams and the news of those that are read along, and the blow, in one transaction."""
    with rig.r.pipeline(transaction=True) as pipe:
        for key in rig.followed:
            pipe.xrange(key, rig.after(key), "+", count=PAGE)
        for key in whole:
            pipe.xrange(key)
        pipe.execute_command(*blow)
        answers: list[Any] = pipe.execute()
    for key, rows in zip(rig.followed, answers, strict=False):
        rig.take(key, rows)
    return dict(zip(whole, answers[len(rig.followed) :], strict=False)) | {"blow": answers[-1]}


def _keep_untold(rig: Rig, fills: Any, ledger: Any) -> None:
    """Books that the exchange's own history is too short to tell again are kept as facts."""
    trades = [event for event in rig.ledger() if event["type"] == "trade"]
    told = {f"{event['symbol']}:{event['trade_id']}" for event in trades[-CLOSED_KEPT:]}
    for _, row in fills:
        name = f"{row['symbol']}:{row['trade_id']}"
        if name not in told:
            rig.lost.fills[name] = row
    for _, row in ledger:
        kind, _, name = row["id"].partition(":")
        if kind in ("fee", "realised") and name not in told:
            rig.lost.ledger[row["id"]] = row


def add_untold(rig: Rig, fills: list[str], sums: MutableMapping[str, Decimal]) -> None:
    """The fills that only the rig can know of, beside those in Redis."""
    for name, row in rig.lost.fills.items():
        fills.append(name)
        qty = Decimal(row["qty"]) * (1 if row["side"] == "buy" else -1)
        sums[row["symbol"]] = sums.get(row["symbol"], Decimal(0)) + qty


def booked(rig: Rig) -> list[dict[str, str]]:
    """The ledger in Redis, and what only the rig can know of it."""
    rows: list[dict[str, str]] = [row for _, row in rig.r.xrange(rig.keys.ledger)]
    return [*rig.lost.ledger.values(), *rows]


def book_sums(rig: Rig) -> dict[str, Decimal]:
    """Risk's own sums by kind of money, as `portfolio` has them, and what only the rig can know."""
    told: dict[str, str] = rig.r.hgetall(rig.keys.portfolio)
    names = {"realised": "realised", "fee": "fees", "funding": "funding"}
    sums = {kind: Decimal(told.get(name, "0")) for kind, name in names.items()}
    sums["fee"] = -sums["fee"]
    for row in rig.lost.ledger.values():
        sums[row["kind"]] += Decimal(row["amount"])
    return sums


# --- memory that takes nothing -------------------------------------------------------------------


def _full(rig: Rig, step: Step) -> bool:
    """No room for a write: entries end, the lease and what frees memory do not."""
    epoch = rig.trading()
    before, used = _refusals(rig), int(rig.r.info("memory")["used_memory"])
    rig.r.config_set("maxmemory", int(used * step.body["share"]))
    try:
        time.sleep(step.hold_s)
        bit = _refusals(rig) > before
        if epoch and (not rig.lease() or int(rig.r.get(rig.keys.epoch) or 0) != epoch):
            rig.died.append("the lease was lost because Redis was full")
    finally:
        rig.r.config_set("maxmemory", 0)
    return bit


def _refusals(rig: Rig) -> int:
    told: Any = rig.r.info("errorstats").get("errorstat_OOM", {})
    return int(told.get("count", 0))


def _loading(rig: Rig, step: Step) -> bool:
    """A restart that answers LOADING for a while."""
    with rig.r.pipeline(transaction=False) as pipe:
        for number in range(FILLER):
            pipe.set("chaos:filler", number)
        pipe.execute()
    _kill(rig)
    commands = sum(path.read_bytes().count(b"\n*") for path in _files(rig.folder / "redis"))
    pause_us = int(step.hold_s * 1e6 / max(commands, 1)) - SLEEP_US
    if pause_us <= 0:  # one command in so many makes the shortest pause
        pause_us = -max(1, int(commands * SLEEP_US / (step.hold_s * 1e6)))
    seen = rig.start_redis("--key-load-delay", str(pause_us))
    rig.r.config_set("key-load-delay", 0)
    rig.r.delete("chaos:filler")
    return seen > 0


def _files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*.aof") if path.is_file()]


# --- streams -----------------------------------------------------------------------------------


def _key(rig: Rig, step: Step) -> str:
    return str(rig.keys.signals if step.body["key"] == "signals" else rig.keys.commands)


def _group_destroyed(rig: Rig, step: Step) -> bool:
    return bool(rig.r.xgroup_destroy(_key(rig, step), rig.keys.account))


def _stream_deleted(rig: Rig, step: Step) -> bool:
    return _lose_stream(rig, step, "DEL")


def _stream_trimmed(rig: Rig, step: Step) -> bool:
    """Entries vanish under whoever has read them and not acknowledged."""
    return _lose_stream(rig, step, "XTRIM", "MAXLEN", "0")


def _lose_stream(rig: Rig, step: Step, command: str, *how: str) -> bool:
    key = _key(rig, step)
    told = _at_once(rig, (key,), command, key, *how)
    if key == rig.keys.signals:
        rig.lost.signals |= _signals(told[key])
    return bool(told["blow"])


# --- the way to it -----------------------------------------------------------------------------


def _partition_holder(rig: Rig, step: Step) -> bool:
    """The holder alone reaches no Redis, for longer than its lease; the standby does."""
    epoch, name = int(rig.status().get("epoch", 0)), rig.holder()
    if not name:
        return False
    rig.proxy.cut_off([name])
    rig.dead_ms = wall_ms()
    try:
        time.sleep(step.hold_s)
        taken = _within(rig, lambda: rig.trading(epoch))
    finally:
        rig.proxy.cut_off(())
    return bool(taken)


def _partition_all(rig: Rig, step: Step) -> bool:
    """Nobody reaches it, until the lease is long over."""
    rig.proxy.cut_off(list(rig.risk))
    try:
        time.sleep(step.hold_s)
        return not rig.lease()
    finally:
        rig.proxy.cut_off(())


def _slow(rig: Rig, step: Step) -> bool:
    before = rig.proxy.late
    rig.proxy.slow(step.body["ms"] / 1000)
    time.sleep(step.hold_s)
    rig.proxy.slow(0)
    return rig.proxy.late > before


def _reply_cut(rig: Rig, step: Step) -> bool:
    """The connection ends in the middle of a reply."""
    before = rig.proxy.cut
    key = rig.keys.orders if step.body["of"] == "orders" else rig.keys.signals
    rig.proxy.cut_replies(step.body["bytes"], f"{key}\r\n".encode())
    bit = _within(rig, lambda: rig.proxy.cut > before)
    rig.proxy.cut_replies(())
    return bool(bit)


def _within(rig: Rig, look: Callable[[], Any]) -> Any:
    try:
        return rig.wait(look, BITE_S, "a fault to bite")
    except TimeoutError:
        return None


def heal(rig: Rig) -> None:
    """No blow of these lasts."""
    rig.proxy.swallow(0)
    rig.proxy.cut_replies(())
    rig.proxy.slow(0)
    rig.proxy.cut_off(())
    with contextlib.suppress(redis.exceptions.RedisError, OSError):
        rig.r.config_set("maxmemory", 0)


BLOWS: Final[dict[str, Blow]] = {
    "redis_rollback": _rollback,
    "redis_flush": _flush,
    "redis_full": _full,
    "redis_loading": _loading,
    "redis_slow": _slow,
    "reply_cut": _reply_cut,
    "group_destroyed": _group_destroyed,
    "stream_deleted": _stream_deleted,
    "stream_trimmed": _stream_trimmed,
    "partition_holder": _partition_holder,
    "partition_all": _partition_all,
}
