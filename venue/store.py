"""The venue on disk: ledger lines as they happen, the account and the market to go on from.

<folder>/ledger.jsonl   every entry, flushed when written
<folder>/world.json     what the world is made of; written once at birth
<folder>/account.json   the account and how far the market had come (rewritten atomically)
<folder>/account.log    every change since that copy, a line each (see journal); a copy empties it
<folder>/market.npz     the market's arrays (atomic; now and then, and at an orderly stop)
<folder>/listing.json   paper only: rows of exchangeInfo, to start from while upstream is away

A made market is a function of its world and time, so that a resume replays it from market.npz (or
from birth) to the account's time. Ledger lines after that time are cut off: both tell one story.
A paper account's market is upstream's; what it missed is asked there. One folder is for one kind:
the other is refused, whether it would resume or replace. What is written survives the process's
death at any point, not the machine's: files are synced at an orderly stop only.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections import OrderedDict, deque
from collections.abc import Iterator
from dataclasses import fields
from decimal import Decimal
from pathlib import Path
from typing import IO, Any

import numpy as np
import orjson

from venue import bars, exchange, journal, market, matching, scenario
from venue.exchange import Exchange, Setup
from venue.house import House
from venue.journal import revive
from venue.orders import CLOSED_KEPT, Account, Algo, Order, Position, Trade, position_key
from venue.tape import TapeError
from venue.userwire import Json

LOCK_FILE = "lock"
LISTING_FILE = "listing.json"
JOURNAL_FILE = "account.log"
SIM, PAPER = "sim", "paper"  # kinds of world; world.json of a simulated one may name none
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
_HISTORIES = ("income", "amendments", "margin_moves")


def _key(row: Any) -> Any:
    return position_key(row.symbol, row.side) if isinstance(row, Position) else row.id


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
        elif f.name in ("trades", *_HISTORIES):
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
            rows = [revive(_TABLES[f.name], row) for row in value]
            table: OrderedDict[Any, Any] = OrderedDict((_key(row), row) for row in rows)
            value = table
        elif f.name == "trades":
            value = deque((revive(Trade, row) for row in value), maxlen=CLOSED_KEPT)
        elif f.name in _HISTORIES:
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
        self._journal: IO[bytes] | None = None
        self._lines = 0  # of the journal, ever: a copy tells which of them it contains

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

    def require_kind(self, kind: str) -> None:
        """Raises StoreError when the other kind of world lies here: it is never replaced."""
        path = self.folder / "world.json"
        try:
            held = orjson.loads(path.read_bytes()).get("kind", SIM) if path.exists() else kind
        except ValueError:
            held = kind  # unreadable: a resume says so
        if held == PAPER != kind:
            raise StoreError(
                f"{self.folder} holds a paper account, no simulated market: choose another --state,"
                " or go on with it by --upstream"
            )
        if held != kind:
            raise StoreError(
                f"{self.folder} holds a simulated market, no paper account: choose another --state"
            )

    def create(self, world: House) -> None:
        """A new world replaces what was there. Raises OSError."""
        self.folder.mkdir(parents=True, exist_ok=True)
        for name in ("ledger.jsonl", "account.json", JOURNAL_FILE, "market.npz"):
            (self.folder / name).unlink(missing_ok=True)
        _replace(self.folder / "world.json", orjson.dumps(world.setup))
        self._ledger = (self.folder / "ledger.jsonl").open("ab")
        self.save_account(world)

    def write_ledger(self, world: House, wall_ms: int) -> None:
        """Appends what happened since the last call; on disk's page cache when it returns."""
        if not world.unwritten:
            return
        assert self._ledger is not None
        for entry in world.unwritten:
            entry["wall_ms"] = wall_ms
            self._ledger.write(orjson.dumps(entry) + b"\n")
        self._ledger.flush()
        world.unwritten.clear()

    def save_account(self, world: House, past: int = PAST_KEPT) -> None:
        data = {
            **world.progress(),
            "ledger_seq": world.ledger_seq,
            "journal": self._lines,
            "account": account_json(world.account, past),
        }
        _replace(self.folder / "account.json", orjson.dumps(data, default=_text))
        self._log().truncate(0)
        world.touched.written(world.account)
        world.dirty = False

    def save_change(self, world: House) -> None:
        """What changed since the last call; in the system's cache when it returns."""
        self._lines += 1
        data = {
            "line": self._lines,
            **world.progress(),
            "ledger_seq": world.ledger_seq,
            "change": journal.line(world.account, world.touched),
        }
        self._log().write(orjson.dumps(data, default=_text) + b"\n")
        world.touched.written(world.account)
        world.dirty = False

    def _log(self) -> IO[bytes]:
        if self._journal is None:
            self._journal = (self.folder / JOURNAL_FILE).open("ab", buffering=0)
        return self._journal

    def save_market(self, world: Exchange) -> None:
        arrays: dict[str, Any] = {f"market_{k}": v for k, v in world.market.state().items()}
        arrays |= {f"record_{k}": v for k, v in world.record.state().items()}
        arrays |= {"record_ring": world.record.ring, "made_until_ms": world.made_until_ms}
        part = self.folder / "market.part.npz"
        np.savez(part, **arrays)
        part.replace(self.folder / "market.npz")

    def read(self) -> tuple[Json, Json]:
        """What the world is made of, and its account as saved. Raises StoreError."""
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
        saved["changes"] = []
        self._lines = saved.get("journal", 0)
        for change in self._changes():
            if change["line"] > self._lines:
                self._lines = change["line"]
                saved["changes"].append(change.pop("change"))
                saved |= change
        return setup, saved

    def _changes(self) -> Iterator[Json]:
        """Whole lines of the journal; nobody was told of one that a kill has cut, and it goes."""
        path = self.folder / JOURNAL_FILE
        if not path.exists():
            return
        *lines, cut = path.read_bytes().split(b"\n")
        if cut:
            _replace(path, b"".join(text + b"\n" for text in lines))
        for text in lines:
            yield orjson.loads(text)

    def listing(self) -> list[Json]:
        """Rows of exchangeInfo as last known; none when there are none."""
        path = self.folder / LISTING_FILE
        rows: list[Json] = orjson.loads(path.read_bytes()) if path.exists() else []
        return rows

    def save_listing(self, rows: list[Json]) -> None:
        _replace(self.folder / LISTING_FILE, orjson.dumps(rows))

    def restore(self, world: House, saved: Json) -> None:
        """The saved account into a fresh world, and the ledger that belongs to it."""
        self._account(saved, world)
        world.ledger_seq = saved["ledger_seq"]
        self._cut_ledger(world)

    def _account(self, saved: Json, world: House) -> None:
        """The copy, and every change after it."""
        account_from(saved["account"], world.account)
        for change in saved["changes"]:
            journal.apply(world.account, change)
        world.touched.written(world.account)

    def resume(self) -> Exchange:
        """The world as it was left. Raises StoreError or TapeError."""
        self.require_kind(SIM)
        setup, saved = self.read()
        try:
            setup |= {name: tuple(v) for name, v in setup.items() if isinstance(v, list)}
            world = exchange.create(Setup(**setup))
            for wanted in saved["scenarios"]:
                exchange.plan(world, scenario.from_json(wanted))
            self._account(saved, world)
            self._load_market(world, saved["made_until_ms"])
            world.next_funding_ms = saved["next_funding_ms"]
            world.ledger_seq = saved["ledger_seq"]
            world.ended = saved.get("ended", {})
        except TapeError:
            raise
        except (KeyError, TypeError, ValueError):  # a field is missing, or of another shape
            raise StoreError(
                f"the venue in {self.folder} was kept by another version; start without --resume"
            ) from None
        _replay(world, saved["made_until_ms"])
        for name in matching.watched(world.account):
            exchange.refresh(world, name)
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

    def _cut_ledger(self, world: House) -> None:
        path = self.folder / "ledger.jsonl"
        kept = []
        for line in path.read_bytes().splitlines() if path.exists() else []:
            entry = orjson.loads(line) if line.endswith(b"}") else {"seq": world.ledger_seq + 1}
            if entry["seq"] <= world.ledger_seq:
                kept.append(line + b"\n")
                world.ledger.append(entry)
                if entry["type"] == "delisted":
                    world.statuses[str(entry["symbol"])] = str(entry["status"])
        _replace(path, b"".join(kept))
        self._ledger = path.open("ab")

    def close(self, world: House, wall_ms: int) -> None:
        self.write_ledger(world, wall_ms)
        self.save_account(world, CLOSED_KEPT)
        if isinstance(world, Exchange):
            self.save_market(world)
        if self._ledger is not None:
            os.fsync(self._ledger.fileno())
            self._ledger.close()
            self._ledger = None


def _replay(world: Exchange, until_ms: float) -> None:
    """The market again up to then; the account has met it already."""
    while count := market.step(world.market, until_ms, world.rows):
        bars.absorb(world.record, world.rows, exchange.traded(world, count))
    bars.settle(world.record, until_ms)
    world.made_until_ms = until_ms
