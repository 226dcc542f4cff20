"""The venue's page says what the venue does: every path with its methods, every stream."""

from __future__ import annotations

import re
from collections import defaultdict
from pathlib import Path

from venue import looks, sockets
from venue.intervals import INTERVALS
from venue.server import ROUTES

TEXT = (Path(__file__).resolve().parent.parent / "venue" / "README.md").read_text()


def test_the_table_of_paths_is_the_one_that_is_served() -> None:
    served: dict[str, set[str]] = defaultdict(set)
    for method, path in ROUTES:
        served[path].add(method)
    row = r"^\| `(/(?:api|dapi|fapi|futures|sapi|venue)/[^`]+)` \| ([A-Z ]+) \|"
    told = re.findall(row, TEXT, re.MULTILINE)
    assert {path: set(methods.split()) for path, methods in told} == served
    assert [path for path, _ in told] == sorted(served)


def test_every_stream_of_the_table_is_known() -> None:
    rows = re.findall(r"^\| (.*`[^|]*) \| [^|]* \| [^|]* \|$", TEXT, re.MULTILINE)
    names: set[str] = set()
    for row in rows:
        for name in re.findall(r"`([^`]*)`", row):
            if "<interval>" in name:
                one = re.sub(r"^<(symbol|pair)>", "btcusdt", name)
                names |= {one.replace("<interval>", span) for span in INTERVALS}
            elif name == "<asset>usd@assetIndex":
                names.add("btcusd@assetIndex")
            elif name.startswith(("<symbol>@", "@", "!")) and "ms" not in name.split("@")[-1]:
                names.add(re.sub(r"^(<symbol>)?@", "btcusdt@", name))
    fast = {f"btcusdt@{name}" for name in sockets.NAMES} | set(sockets.ALL_NAMES)
    unknown = {n for n in names - fast if looks.parse(n, {"btcusdt": 0}) is None}
    assert len(names) > 18 and unknown == set()
    assert fast <= names
