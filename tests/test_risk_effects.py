"""Commits that follow each other become one; what is written in the end is the same."""

from __future__ import annotations

import itertools
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from risk.events import OPS_MAX, Commit, Effect, Effects, Note, Op

KEYS = ("a", "b")
FIELDS = st.dictionaries(st.sampled_from("xyz"), st.sampled_from("123"), min_size=1)
OPS = st.one_of(
    st.tuples(st.just("hset"), st.sampled_from(KEYS), FIELDS),
    st.tuples(st.just("hdel"), st.sampled_from(KEYS), st.just(["x"])),
    st.tuples(st.just("del"), st.sampled_from(KEYS)),
    st.tuples(st.just("expire"), st.sampled_from(KEYS), st.just(9)),
    st.tuples(st.just("xadd"), st.just("stream"), FIELDS),
)
PLAIN = st.builds(lambda ops: Commit(tuple(ops)), st.lists(OPS, min_size=1, max_size=4))
OTHERS: list[Effect] = [
    Commit((("hset", "a", {"x": "9"}),), armed=True),
    Commit((("hset", "a", {"y": "9"}),), then=(Note("INFO", "n"),)),
    Commit((("hset", "b", {"z": "9"}),), hurry=True),
    Commit((("del", "a"),), ack=("s", "g", "1-0")),
    Note("INFO", "between"),
]
EFFECTS = st.lists(st.one_of(PLAIN, PLAIN, st.sampled_from(OTHERS)), max_size=12)


def written(ops: list[Op]) -> tuple[Any, ...]:
    """Hashes, their expiries and the stream after all operations, as Redis would have them."""
    hashes: dict[str, dict[str, str]] = {}
    expires: set[str] = set()
    stream = []
    for op in ops:
        name, key = op[0], op[1]
        if name == "hset":
            hashes.setdefault(key, {}).update(op[2])
        elif name == "xadd":
            stream.append(op[2])
        elif name == "expire" and key in hashes:
            expires.add(key)
        elif name in ("del", "hdel") and key in hashes:
            for field in list(hashes[key]) if name == "del" else op[2]:
                hashes[key].pop(field, None)
            if not hashes[key]:
                del hashes[key]
                expires.discard(key)
    return hashes, expires, stream


def collected(effects: list[Effect]) -> list[Effect]:
    out = Effects()
    out.add(*effects)
    return out.merged()


@given(EFFECTS)
def test_the_same_is_written_and_what_has_conditions_keeps_its_place(effects: list[Effect]) -> None:
    made = collected(effects)
    assert written([op for e in made if isinstance(e, Commit) for op in e.ops]) == written(
        [op for e in effects if isinstance(e, Commit) for op in e.ops]
    )
    special = [e for e in effects if not (isinstance(e, Commit) and e.plain)]
    assert [e for e in made if not (isinstance(e, Commit) and e.plain)] == special
    plain = [isinstance(e, Commit) and e.plain for e in made if isinstance(e, Commit)]
    assert not any(a and b for a, b in itertools.pairwise(plain))


def test_a_hash_told_in_full_twice_is_written_once() -> None:
    full, more = {"x": "1", "y": "1"}, {"x": "2", "y": "2", "z": "2"}
    (made,) = collected([Commit((("hset", "a", full),)), Commit((("hset", "a", more),))])
    assert isinstance(made, Commit) and made.ops == (("hset", "a", more),)
    (made,) = collected([Commit((("hset", "a", more),)), Commit((("hset", "a", full),))])
    assert isinstance(made, Commit) and len(made.ops) == 2  # z would be lost


def test_one_commit_is_bounded() -> None:
    many: list[Effect] = [Commit((("xadd", "s", {"n": str(n)}),)) for n in range(3 * OPS_MAX)]
    made = collected(many)
    assert [len(e.ops) for e in made if isinstance(e, Commit)] == [OPS_MAX] * 3
