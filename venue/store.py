"""The venue on disk: ledger lines as they happen, the account and the market to go on from.

<folder>/ledger.jsonl   every entry, flushed when written
<folder>/world.json     what the world is made of; written once at birth
<folder>/account.json   the account and how far the market had come (rewritten atomically)
<folder>/market.npz     the market's arrays (atomic; now and then, and at an orderly stop)

A market is a function of its world and time, so that a resume replays it from market.npz (or from
birth) to the account's time. Ledger lines after that time are cut off: both tell one story.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections import OrderedDict, deque
from collections.abc import Iterator
from dataclasses import asdict, fields
from decimal import Decimal
from pathlib import Path
from typing import IO, Any

import numpy as np
import orjson

from venue import bars, exchange, market
from venue.exchange import Exchange, Setup
from venue.orders import CLOSED_KEPT, Account, Algo, Order, Position, Trade
from venue.userwire import Json

LOCK_FILE = "lock"
PAST_KEPT = 100  # closed orders, trades, income that survive a crash, each: writing all takes 30 ms


class StoreError(ValueError):
    """One sentence: what cannot be resumed and what to do."""


_TABLES: dict[str, type[Any]] = {
    "orders": Order,
    "algos": Algo,
    "positions": Position,
    "closed": Order,
    "closed_algos": Algo,
}


def _revive(kind: type[Any], data: Json) -> Any:
    """A dataclass from its JSON: Decimals come back from text."""
    values = {}
    for f in fields(kind):
        if f.name in data:
            value = data[f.name]
            values[f.name] = Decimal(value) if f.type == "Decimal" else value
    return kind(**values)


def account_json(account: Account, past: int) -> Json:
    """What orjson can write (it takes dataclasses as they are); `past` rows of each history."""
    out: Json = {}
    for f in fields(account):
        value = getattr(account, f.name)
        if f.name in ("specs", "books"):
            continue
        if f.name in _TABLES:
            rows = list(value.values())
            out[f.name] = rows[-past:] if f.name in ("closed", "closed_algos") else rows
        elif f.name in ("trades", "income"):
            out[f.name] = list(value)[-past:]
        elif f.name == "isolated":
            out[f.name] = sorted(value)
        else:
            out[f.name] = value
    return out


def account_from(data: Json, account: Account) -> None:
    """Fills a fresh account with what was stored."""
    for f in fields(account):
        if f.name not in data:
            continue
        value = data[f.name]
        if f.name in _TABLES:
            rows = [_revive(_TABLES[f.name], row) for row in value]
            key = "symbol" if f.name == "positions" else "id"
            table: OrderedDict[Any, Any] = OrderedDict((getattr(row, key), row) for row in rows)
            value = table
        elif f.name == "trades":
            value = deque((_revive(Trade, row) for row in value), maxlen=CLOSED_KEPT)
        elif f.name == "income":
            value = deque(value, maxlen=CLOSED_KEPT)
        elif f.name == "isolated":
            value = set(value)
        elif f.type == "Decimal":
            value = Decimal(value)
        setattr(account, f.name, value)


def _replace(path: Path, data: bytes) -> None:
    part = path.with_suffix(path.suffix + ".part")
    part.write_bytes(data)
    part.replace(path)


def _text(value: Any) -> str:
    assert isinstance(value, Decimal)
    return str(value)


class Store:
    """One folder. `close` writes everything once more."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._ledger: IO[bytes] | None = None

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the folder for this process. Raises StoreError while another venue has it."""
        self.folder.mkdir(parents=True, exist_ok=True)
        fd = os.open(self.folder / LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StoreError(
                f"another venue runs on {self.folder}: stop it or choose another --state"
            ) from None
        else:
            yield
        finally:
            os.close(fd)
            if not self.holds_world():  # nothing was born: leave nothing behind
                (self.folder / LOCK_FILE).unlink(missing_ok=True)
                with contextlib.suppress(OSError):  # somebody else's files lie there
                    self.folder.rmdir()

    def holds_world(self) -> bool:
        return (self.folder / "world.json").exists()

    def create(self, world: Exchange) -> None:
        """A new world replaces what was there. Raises OSError."""
        self.folder.mkdir(parents=True, exist_ok=True)
        for name in ("ledger.jsonl", "account.json", "market.npz"):
            (self.folder / name).unlink(missing_ok=True)
        _replace(self.folder / "world.json", orjson.dumps(asdict(world.setup)))
        self._ledger = (self.folder / "ledger.jsonl").open("ab")
        self.save_account(world)

    def write_ledger(self, world: Exchange, wall_ms: int) -> None:
        """Appends what happened since the last call; on disk's page cache when it returns."""
        if not world.unwritten:
            return
        assert self._ledger is not None
        for entry in world.unwritten:
            entry["wall_ms"] = wall_ms
            self._ledger.write(orjson.dumps(entry) + b"\n")
        self._ledger.flush()
        world.unwritten.clear()

    def save_account(self, world: Exchange, past: int = PAST_KEPT) -> None:
        data = {
            "made_until_ms": world.made_until_ms,
            "next_funding_ms": world.next_funding_ms,
            "ledger_seq": world.ledger_seq,
            "account": account_json(world.account, past),
        }
        _replace(self.folder / "account.json", orjson.dumps(data, default=_text))
        world.dirty = False

    def save_market(self, world: Exchange) -> None:
        arrays: dict[str, Any] = {f"market_{k}": v for k, v in world.market.state().items()}
        arrays |= {f"record_{k}": v for k, v in world.record.state().items()}
        arrays |= {"record_ring": world.record.ring, "made_until_ms": world.made_until_ms}
        part = self.folder / "market.part.npz"
        np.savez(part, **arrays)
        part.replace(self.folder / "market.npz")

    def resume(self) -> Exchange:
        """The world as it was left. Raises StoreError or TapeError."""
        try:
            setup = json.loads((self.folder / "world.json").read_text())
            saved = json.loads((self.folder / "account.json").read_text())
        except FileNotFoundError:
            raise StoreError(
                f"no venue to resume in {self.folder}; start without --resume"
            ) from None
        except ValueError:
            raise StoreError(
                f"the venue in {self.folder} cannot be read; start without --resume"
            ) from None
        world = exchange.create(Setup(**(setup | {"tape": tuple(setup["tape"])})))
        account_from(saved["account"], world.account)
        self._load_market(world, saved["made_until_ms"])
        _replay(world, saved["made_until_ms"])
        world.next_funding_ms = saved["next_funding_ms"]
        world.ledger_seq = saved["ledger_seq"]
        self._cut_ledger(world)
        return world

    def _load_market(self, world: Exchange, until_ms: float) -> None:
        path = self.folder / "market.npz"
        if not path.exists():
            return
        with np.load(path, allow_pickle=False) as arrays:
            if float(arrays["made_until_ms"]) > until_ms:
                return
            world.made_until_ms = float(arrays["made_until_ms"])
            for name, kept in world.market.state().items():
                kept[...] = arrays[f"market_{name}"]
            for name, kept in world.record.state().items():
                kept[...] = arrays[f"record_{name}"]
            world.record.ring[...] = arrays["record_ring"]

    def _cut_ledger(self, world: Exchange) -> None:
        path = self.folder / "ledger.jsonl"
        kept = []
        for line in path.read_bytes().splitlines() if path.exists() else []:
            entry = orjson.loads(line) if line.endswith(b"}") else {"seq": world.ledger_seq + 1}
            if entry["seq"] <= world.ledger_seq:
                kept.append(line + b"\n")
                world.ledger.append(entry)
        _replace(path, b"".join(kept))
        self._ledger = path.open("ab")

    def close(self, world: Exchange, wall_ms: int) -> None:
        self.write_ledger(world, wall_ms)
        self.save_account(world, CLOSED_KEPT)
        self.save_market(world)
        if self._ledger is not None:
            os.fsync(self._ledger.fileno())
            self._ledger.close()
            self._ledger = None


def _replay(world: Exchange, until_ms: float) -> None:
    """The market again up to then; the account has met it already."""
    while count := market.step(world.market, until_ms, world.rows):
        bars.absorb(world.record, world.rows, count)
    bars.settle(world.record, until_ms)
    world.made_until_ms = until_ms
