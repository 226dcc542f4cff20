"""The lanes of a node: a ring each, and which symbol lives in which.

A symbol lives in one lane only. One that moves drains where it was; its new lane takes it after
the old brain has consumed the DROP, so that no two brains ever follow it. The rings of a node that
was killed are found by name and adopted; those of lanes that no longer exist are removed.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import config
import process
import ring as rings
from maintenance import launch, share

# --- pure -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Row:
    """One row of a ring's symbol table. `since` is the head when the state was entered."""

    name: str
    state: int
    since: int = 0
    dropped: int = 0  # feed's answer: the head right after the DROP record


@dataclass(frozen=True, slots=True)
class Table:
    """A lane's symbol table as it stands, with the ends of its ring."""

    rows: Sequence[Row]
    head: int
    tail: int

    @property
    def held(self) -> set[str]:
        """Names that this lane has or is giving up."""
        return {row.name for row in self.rows if row.state != rings.FREE}


def plan_table(rows: Sequence[Row], wanted: Iterable[str], head: int, tail: int) -> list[Row]:
    """The table after one look: leavers drain, drained rows are freed, newcomers take free rows.

    An id is free again only after the brain consumed its DROP (tail passed `dropped`), and feed's
    answer must be younger than the wish, or an old one would free the row too early.
    """
    names = list(dict.fromkeys(wanted))
    made: list[Row] = []
    for row in rows:
        gone = row.since < row.dropped <= tail
        if row.state == rings.DRAINING and gone:
            row = Row("", rings.FREE, head, row.dropped)
        elif row.state == rings.WANTED and row.name not in names:
            row = replace(row, state=rings.DRAINING, since=head)
        made.append(row)
    taken = {row.name for row in made if row.state != rings.FREE}
    free = [index for index, row in enumerate(made) if row.state == rings.FREE]
    for name, index in zip([n for n in names if n not in taken], free, strict=False):
        made[index] = Row(name, rings.WANTED, head, made[index].dropped)
    return made


def held_first(names: Iterable[str], held: Collection[str]) -> list[str]:
    """Names in the order of their warm-up: rows are warmed up in turn, and what we hold is traded
    blindly until then."""
    return sorted(names, key=lambda name: name not in held)  # stable: else as they came


def plan_lanes(tables: Sequence[Table], names: Iterable[str]) -> list[list[Row]]:
    """Every table after one look. What another lane still holds waits; it is asked for again."""
    weights = {f"lane {lane}": 1.0 for lane in range(len(tables))}
    shares = share.divide(dict.fromkeys(names), weights).values()
    made = []
    for table, own in zip(tables, shares, strict=True):
        elsewhere = set[str]().union(*(other.held for other in tables if other is not table))
        wanted = [name for name in own if name not in elsewhere]
        made.append(plan_table(table.rows, wanted, table.head, table.tail))
    return made


# --- I/O --------------------------------------------------------------------------------------


def read_table(made: rings.Ring) -> Table:
    head, tail = int(made.words[rings.HEAD]), int(made.words[rings.TAIL])
    rows = [
        Row(row["name"].decode(), int(row["state"]), int(row["since"]), int(made.dropped[index]))
        for index, row in enumerate(made.symbols)
    ]
    return Table(rows, head, tail)


def write_rows(made: rings.Ring, before: Sequence[Row], after: Sequence[Row]) -> int:
    """Write what changed, then raise the version that feed polls. Returns the changes."""
    changed = [i for i, (old, new) in enumerate(zip(before, after, strict=True)) if old != new]
    for index in changed:
        row = made.symbols[index]
        row["name"], row["since"] = after[index].name.encode(), after[index].since
        row["state"] = after[index].state
    if changed:
        made.words[rings.TABLE_VERSION] += 1
    return len(changed)


def set_tables(made: Sequence[rings.Ring], names: Iterable[str]) -> int:
    """One look at all lanes; the number of rows that changed."""
    before = [read_table(each) for each in made]
    after = plan_lanes(before, names)
    return sum(
        write_rows(ring, old.rows, new) for ring, old, new in zip(made, before, after, strict=True)
    )


def moving(made: Sequence[rings.Ring]) -> bool:
    """Whether some symbol is on its way out of its lane."""
    return any(rings.DRAINING in each.symbols["state"] for each in made)


@dataclass(frozen=True, slots=True)
class Lanes:
    """The rings of a node by lane, and what was found of a node that was killed."""

    rings: list[rings.Ring]
    adopted: bool  # one of them at least
    names: list[str]  # symbols of all lanes that were found, those that are gone now included

    @property
    def paths(self) -> list[Path]:
        return [each.path for each in self.rings]


def open_lanes(cfg: config.Config, world: str, wait_s: float = rings.OWN_S) -> Lanes:
    """Adopt or make a ring per lane, remove those of other lanes; one sentence when one is another
    node's, which is waited for so long, or when there is no room."""
    made: list[rings.Ring] = []
    fresh: list[Path] = []
    names: dict[str, None] = {}
    for path in launch.ring_paths(cfg):
        try:
            each, known = rings.own(path, cfg.ring_slots, cfg.symbols_max, world, wait_s)
        except rings.RingError as error:  # another node of this name is still there
            remove_files(fresh)
            process.fail(str(error))
        except OSError as error:
            remove_files(fresh)
            size_mb = cfg.lanes * rings.file_size(cfg.ring_slots, cfg.symbols_max) / 2**20
            what = "the ring" if cfg.lanes == 1 else f"{cfg.lanes} rings"
            process.fail(
                f"No room for {what} ({size_mb:.0f} MB) in {cfg.shm_dir} ({error.strerror}): free "
                "some, lower AEGIS_LANES or AEGIS_RING_SLOTS, or set AEGIS_SHM_DIR."
            )
        made.append(each)
        names |= dict.fromkeys(sorted(read_table(each).held))
        if not known:
            fresh.append(path)
    for lane in range(cfg.lanes, config.LANES_MAX):
        names |= dict.fromkeys(_retire(launch.ring_path(cfg, lane), world))
    return Lanes(made, len(fresh) < cfg.lanes, list(names))


def _retire(path: Path, world: str) -> list[str]:
    """Remove the files of a lane that no longer exists; the symbols that it had of this world."""
    try:
        found = rings.attach(path)
    except rings.RingError:  # the usual: there is none
        remove_files([path])
        return []
    ours = int(found.words[rings.W_WORLD]) == rings.world_word(world)
    names = sorted(read_table(found).held) if ours else []
    found.close()
    remove_files([path])
    return names


def remove_files(paths: Iterable[Path]) -> None:
    """Rings and what their brains keep beside them."""
    for path in paths:
        for name in (path, launch.brain_path(path)):
            name.unlink(missing_ok=True)
