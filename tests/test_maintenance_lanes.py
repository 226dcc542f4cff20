"""Which symbol lives in which lane: pure division and tables, then rings on their files."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, free_port

import config
import latency
import ring as rings
import streams
from maintenance import lanes, launch, node, policy, share, status, summary
from maintenance.lanes import Row, Table, plan_lanes, plan_table
from maintenance.policy import ChildSpec
from maintenance.universe import FALLBACK

FREE, WANTED, DRAINING = rings.FREE, rings.WANTED, rings.DRAINING
NAMES = [f"{base}{number}USDT" for base in ("A", "BTC", "币安人生") for number in range(100)]
KEYS = streams.Keys("sim")


def equal(count: int) -> dict[str, float]:
    return {f"lane {lane}": 1.0 for lane in range(count)}


def owners(names: list[str], weights: dict[str, float]) -> dict[str, str]:
    return {name: owner for owner, own in share.divide(names, weights).items() for name in own}


# --- division -------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 2, 3, 7, 16])
def test_every_name_has_one_owner_and_keeps_its_place(count: int) -> None:
    shares = share.divide(NAMES, equal(count))
    assert list(shares) == list(equal(count))
    assert sorted(name for own in shares.values() for name in own) == sorted(NAMES)
    assert all(own == sorted(own, key=NAMES.index) for own in shares.values())


@pytest.mark.parametrize("count", range(2, 17))
def test_shares_are_as_even_as_chance(count: int) -> None:
    mean = len(NAMES) / count
    for own in share.divide(NAMES, equal(count)).values():
        assert abs(len(own) - mean) <= 4 * mean**0.5


@pytest.mark.parametrize("count", range(1, 16))
def test_a_new_lane_takes_its_share_and_nothing_else_moves(count: int) -> None:
    before, after = owners(NAMES, equal(count)), owners(NAMES, equal(count + 1))
    moved = [name for name in NAMES if before[name] != after[name]]
    assert {after[name] for name in moved} == {f"lane {count}"}
    mean = len(NAMES) / (count + 1)
    assert abs(len(moved) - mean) <= 4 * mean**0.5


def test_one_that_leaves_gives_its_own_away_and_nothing_else_moves() -> None:
    weights = equal(5)
    before = owners(NAMES, weights)
    del weights["lane 2"]
    after = owners(NAMES, weights)
    assert all((before[n] == "lane 2") == (before[n] != after[n]) for n in NAMES)


def test_an_owner_gets_by_its_weight() -> None:
    got = Counter(owners([str(number) for number in range(4_000)], {"a": 3.0, "b": 1.0}).values())
    assert 2_900 <= got["a"] <= 3_100


def test_the_division_is_the_same_in_every_process_and_version() -> None:
    script = (
        "import json, sys; from maintenance import share; names = json.load(sys.stdin);"
        "print(json.dumps(share.divide(names, {'lane 0': 1.0, 'lane 1': 1.0, 'lane 2': 1.0})))"
    )
    here = share.divide(NAMES, equal(3))
    for seed in ("0", "1"):
        done = subprocess.run(
            [sys.executable, "-c", script],
            cwd=ROOT,
            env={**os.environ, "PYTHONHASHSEED": seed},
            input=json.dumps(NAMES),
            capture_output=True,
            text=True,
            check=True,
        )
        assert json.loads(done.stdout) == here
    written_down = ["ETHUSDT", "BNBUSDT", "ADAUSDT", "LTCUSDT", "UNIUSDT", "ETCUSDT"]
    assert share.divide(FALLBACK, equal(3))["lane 0"] == written_down  # an upgrade moves nothing


# --- one table ------------------------------------------------------------------------------------


def states(rows: list[Row]) -> list[tuple[str, int]]:
    return [(row.name, row.state) for row in rows]


def empty(count: int) -> list[Row]:
    return [Row("", FREE) for _ in range(count)]


def test_symbols_with_positions_take_the_first_rows_and_so_are_warmed_up_first() -> None:
    names = lanes.held_first(["A", "B", "C", "D"], {"D", "B", "gone"})
    assert names == ["B", "D", "A", "C"]
    table = plan_table([Row("", rings.FREE)] * 4, names, head=0, tail=0)
    assert [row.name for row in table] == names


def test_newcomers_take_free_rows_in_order() -> None:
    table = plan_table(empty(3), ["BTCUSDT", "ETHUSDT", "BTCUSDT"], head=0, tail=0)
    assert states(table) == [("BTCUSDT", WANTED), ("ETHUSDT", WANTED), ("", FREE)]


def test_more_names_than_rows_are_left_out() -> None:
    assert states(plan_table(empty(1), ["A", "B"], 0, 0)) == [("A", WANTED)]


def test_a_leaver_drains_and_keeps_its_row() -> None:
    table = plan_table([Row("A", WANTED)], ["B"], head=50, tail=40)
    assert table == [Row("A", DRAINING, since=50)]


@pytest.mark.parametrize("tail", [99, 100, 101])
def test_a_row_is_free_only_after_the_brain_passed_its_drop(tail: int) -> None:
    table = plan_table([Row("A", DRAINING, since=50, dropped=100)], [], head=200, tail=tail)
    assert table[0].state == (FREE if tail >= 100 else DRAINING)


def test_an_old_drop_of_the_row_does_not_free_it() -> None:
    row = Row("A", DRAINING, since=500, dropped=100)
    assert plan_table([row], [], head=600, tail=600) == [row]


def test_a_freed_row_is_given_to_the_next_in_the_same_look() -> None:
    table = plan_table([Row("A", DRAINING, since=50, dropped=60)], ["B"], head=90, tail=80)
    assert states(table) == [("B", WANTED)]


def test_one_that_comes_back_while_draining_waits_for_its_row_to_be_free() -> None:
    rows = [Row("A", DRAINING, since=50), Row("", FREE)]
    table = plan_table(rows, ["A"], head=90, tail=80)
    assert states(table) == [("A", DRAINING), ("", FREE)]


# --- all tables of a node -------------------------------------------------------------------------


def fresh(count: int, rows: int = 400) -> list[Table]:
    return [Table(empty(rows), 0, 0) for _ in range(count)]


def looked(tables: list[Table], names: list[str]) -> list[Table]:
    planned = plan_lanes(tables, names)
    return [replace(table, rows=rows) for table, rows in zip(tables, planned, strict=True)]


def answered(table: Table, rng: random.Random) -> Table:
    """What feed and brain do before the node's next look: some of what is asked, or nothing."""
    head, rows = table.head, []
    for row in table.rows:
        if row.state == DRAINING and row.dropped <= row.since and rng.random() < 0.5:
            head += 1
            row = replace(row, dropped=head)
        rows.append(row)
    return Table(rows, head, rng.randint(table.tail, head))


def wanted(tables: list[Table]) -> dict[str, str]:
    return {
        row.name: f"lane {lane}"
        for lane, table in enumerate(tables)
        for row in table.rows
        if row.state == WANTED
    }


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("counts", [(1, 2), (2, 3), (3, 2), (16, 1), (1, 16), (2, 5, 3, 4)])
def test_a_symbol_is_never_in_two_lanes_and_arrives_in_its_own(
    counts: tuple[int, ...], seed: int
) -> None:
    """Whatever feed and brain do in between, and when: through every change of the lanes."""
    rng = random.Random(seed)
    names = NAMES[:60]
    tables = fresh(0)
    for count in counts:
        tables = [*tables[:count], *fresh(count - len(tables))]
        for _ in range(200):
            tables = looked(tables, names)
            held = Counter(name for table in tables for name in table.held)
            assert max(held.values()) == 1
            if wanted(tables) == owners(names, equal(count)):
                break
            tables = [answered(table, rng) for table in tables]
        assert wanted(tables) == owners(names, equal(count))
        names = rng.sample(NAMES, 60)  # the universe changes as well


def test_one_that_two_lanes_hold_drains_in_both() -> None:
    twice = [Table([Row("A", WANTED), Row("", FREE)], 9, 9) for _ in range(2)]
    assert [states(table)[0] for table in plan_lanes(twice, ["A"])] == [("A", DRAINING)] * 2


# --- rings ----------------------------------------------------------------------------------------


@pytest.fixture
def shm(tmp_path: Path) -> Path:
    folder = tmp_path / "shm"
    folder.mkdir()
    return folder


def settings(tmp_path: Path, lanes: int, redis_url: str, **more: str) -> config.Config:
    return config.load(
        {
            "AEGIS_LANES": str(lanes), "AEGIS_SHM_DIR": str(tmp_path / "shm"),
            "AEGIS_STATE_DIR": str(tmp_path), "AEGIS_NODE_ID": "n", "REDIS_URL": redis_url,
            "AEGIS_RING_SLOTS": "1024", "AEGIS_SYMBOLS_MAX": "64", **more,
        }
    )  # fmt: skip


def laid(cfg: config.Config, names: Iterable[str]) -> lanes.Lanes:
    """A node's rings with these symbols, and brain files as brains make them."""
    made = lanes.open_lanes(cfg, "world")
    lanes.set_tables(made.rings, names)
    for path in made.paths:
        launch.brain_path(path).touch()
    return made


def killed(made: lanes.Lanes) -> None:
    for each in made.rings:
        each.close()


def told(each: rings.Ring) -> dict[str, int]:
    return {row.name: row.state for row in lanes.read_table(each).rows if row.state != FREE}


def test_the_table_is_written_once_and_the_version_tells(tmp_path: Path) -> None:
    made = rings.create(tmp_path / "ring", 1024, 8, "w")
    assert lanes.set_tables([made], ["BTCUSDT", "币安人生USDT"]) == 2
    assert [row["name"].decode() for row in made.symbols[:2]] == ["BTCUSDT", "币安人生USDT"]
    version = int(made.words[rings.TABLE_VERSION])
    assert lanes.set_tables([made], ["BTCUSDT", "币安人生USDT"]) == 0
    assert int(made.words[rings.TABLE_VERSION]) == version
    made.close()


def test_a_killed_node_comes_back_with_more_lanes_and_movers_drain_first(
    tmp_path: Path, shm: Path, redis_url: str
) -> None:
    r: Any = streams.connect(redis_url)
    r.hset(KEYS.symbols, mapping=dict.fromkeys(FALLBACK, "test"))
    r.close()
    names = list(FALLBACK)
    killed(laid(settings(tmp_path, 2, redis_url), names))
    made = node.prepare(settings(tmp_path, 3, redis_url), "world")
    before, after = owners(names, equal(2)), owners(names, equal(3))
    movers = {name for name in names if before[name] != after[name]}
    assert movers and made.adopted
    for lane in (0, 1):
        expected = {n: DRAINING if n in movers else WANTED for n in names
                    if before[n] == f"lane {lane}"}  # fmt: skip
        assert told(made.rings[lane]) == expected
    assert told(made.rings[2]) == {} and lanes.moving(made.rings)
    for each in made.rings[:2]:  # feed says DROP, the brain takes it
        rows = lanes.read_table(each).rows
        each.dropped[[i for i, row in enumerate(rows) if row.state == DRAINING]] = 1
        each.words[rings.HEAD] = each.words[rings.TAIL] = 1
    lanes.set_tables(made.rings, names)  # frees them,
    lanes.set_tables(made.rings, names)  # hands them on
    assert told(made.rings[2]) == dict.fromkeys(movers, WANTED)
    assert not lanes.moving(made.rings) and lanes.set_tables(made.rings, names) == 0
    killed(made)


@pytest.mark.parametrize("redis_lives", [True, False])
def test_rings_of_lanes_that_no_longer_exist_are_removed_and_their_symbols_live_on(
    tmp_path: Path, shm: Path, redis_url: str, redis_lives: bool
) -> None:
    if redis_lives:
        r: Any = streams.connect(redis_url)
        r.hset(KEYS.symbols, mapping=dict.fromkeys(FALLBACK, "test"))
        r.close()
    url = redis_url if redis_lives else f"redis://127.0.0.1:{free_port()}/0"
    killed(laid(settings(tmp_path, 3, url), FALLBACK))
    assert len(list(shm.iterdir())) == 6
    made = node.prepare(settings(tmp_path, 1, url), "world")
    (path,) = made.paths
    assert {each.name for each in shm.iterdir()} == {path.name, launch.brain_path(path).name}
    assert told(made.rings[0]) == dict.fromkeys(FALLBACK, WANTED)
    killed(made)


def test_symbols_of_another_world_are_not_taken_over(tmp_path: Path, shm: Path) -> None:
    killed(laid(settings(tmp_path, 2, "redis://h:1/0"), FALLBACK))
    made = lanes.open_lanes(settings(tmp_path, 1, "redis://h:1/0"), "another world")
    assert (made.adopted, made.names) == (False, [])
    killed(made)


def test_a_node_without_room_for_its_rings_says_so_and_leaves_none(
    tmp_path: Path, shm: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cfg = settings(tmp_path, 3, "redis://h:1/0")
    launch.ring_path(cfg, 2).mkdir()  # the third cannot be laid down
    with pytest.raises(SystemExit):
        lanes.open_lanes(cfg, "world")
    said = capsys.readouterr().err
    assert said.startswith("No room for 3 rings (") and said.count("\n") == 1
    assert [path.name for path in shm.glob("*.ring") if path.is_file()] == []


def test_a_second_node_of_one_name_is_refused_in_one_sentence(
    tmp_path: Path, shm: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cfg = settings(tmp_path, 2, "redis://h:1/0")
    made = lanes.open_lanes(cfg, "world")
    assert not made.adopted
    with pytest.raises(SystemExit) as ended:
        lanes.open_lanes(cfg, "world", 0)
    said = capsys.readouterr().err
    assert ended.value.code == 1 and said.count("\n") == 1 and "AEGIS_NODE_ID" in said
    killed(made)
    again = lanes.open_lanes(cfg, "world", 0)
    assert again.adopted
    killed(again)


# --- what is shown --------------------------------------------------------------------------------


def test_the_row_shows_all_lanes_as_one_and_each_by_itself(tmp_path: Path, shm: Path) -> None:
    made = laid(settings(tmp_path, 2, "redis://h:1/0"), FALLBACK)
    trades, weight = rings.FEED_COUNTERS.index("trades"), rings.FEED_COUNTERS.index("rest_weight")
    for lane, each in enumerate(made.rings):
        each.words[rings.HEAD], each.words[rings.TAIL] = 10 * (lane + 1), 3
        each.ages[0, 0] = 3_000_000 * (lane + 1)
        each.feed_stats[trades], each.feed_stats[weight] = 5 + lane, 700 - lane
    made.rings[0].feed_hist[0, latency.bucket(1)] = 98
    made.rings[1].feed_hist[0, latency.bucket(2_000)] = 2
    fields = node.node_fields(made.rings, {"feed.0": 42, "brain.1": 43}, 10_000_000, 77)
    assert (fields["lanes"], fields["symbols"], fields["lag"]) == ("2", "20", "24")
    assert (fields["feed.trades"], fields["feed.rest_weight"]) == ("11", "700")
    assert (fields["age_trade_max_ms"], fields["feed.0_pid"]) == ("7", "42")
    assert (fields["lane0.lag"], fields["lane1.lag"]) == ("7", "17")
    assert (fields["lane0.age_trade_max_ms"], fields["lane1.age_trade_max_ms"]) == ("7", "4")
    shown = node.latency_fields(node.histograms(made.rings))
    assert shown == {"buffer_p50_us": "0.002", "buffer_p99_us": "2.048"}
    told_lanes = status._lanes(fields)
    assert [each["lag"] for each in told_lanes] == [7, 17]
    assert sum(each["symbols"] for each in told_lanes) == 20
    one = node.node_fields(made.rings[:1], {"feed": 42}, 10_000_000, 77)
    assert not any(name.startswith("lane0") for name in one)
    assert status._lanes(one) == told_lanes[:1]
    killed(made)


def specs_of(tmp_path: Path, count: int, cores: int) -> dict[str, ChildSpec]:
    cfg = settings(tmp_path, count, "redis://h:1/0")
    made = lanes.open_lanes(cfg, "world")
    specs = node.children(cfg, made.rings, "world", cores)
    killed(made)
    return specs


def test_children_are_named_by_lane_only_where_there_are_several(tmp_path: Path, shm: Path) -> None:
    for count, names in ((1, {"feed", "brain"}), (2, {"feed.0", "brain.0", "feed.1", "brain.1"})):
        specs = specs_of(tmp_path, count, 2)
        assert specs.keys() == names
        assert all("REDIS_URL" not in specs[name].env for name in names if name[0] == "f")
        assert len({spec.argv[spec.argv.index("--ring") + 1] for spec in specs.values()}) == count


@pytest.mark.parametrize(("cores", "at_once"), [(1, 1), (2, 1), (3, 1), (4, 2), (64, 5)])
def test_no_more_lanes_start_at_once_than_there_are_cores_for(
    tmp_path: Path, shm: Path, cores: int, at_once: int
) -> None:
    specs = specs_of(tmp_path, 5, cores)
    state, actions = policy.decide(specs, policy.initial(list(specs.values())), policy.Tick(), 1.0)
    waves = [{each.name for each in actions if isinstance(each, policy.Start)}]
    for _ in range(5):  # every brain that runs becomes ready
        wave: set[str] = set()
        for name in sorted(name for name in waves[-1] if specs[name].ready):
            state, actions = policy.decide(specs, state, policy.Ready(name), 1.0)
            wave |= {each.name for each in actions if isinstance(each, policy.Start)}
        waves.append(wave)
    pairs = [{f"brain.{lane}", f"feed.{lane}"} for lane in range(5)]
    assert waves[0] == set[str]().union(*pairs[:at_once])
    assert all(len(wave) <= 2 * at_once for wave in waves)
    assert set[str]().union(*waves) == specs.keys()


def tally(name: str) -> summary.TradeTally:
    return summary.TradeTally(name, 1, 1, 1, 0, 0, 0)


def test_a_symbol_in_two_lanes_or_in_none_is_told() -> None:
    assert summary.misplaced([tally("A"), tally("B")], ["A", "B"]) == []
    assert summary.misplaced([tally("A"), tally("A"), tally("B")], ["A", "B", "C"]) == [
        "A: lives in 2 lanes", "C: lives in no lane",
    ]  # fmt: skip
