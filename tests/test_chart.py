"""A chart shows what the brain saw at each close, and nothing that it could not have seen."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from brain_bench import lively_market, table
from test_brain_recording import Live

from brain import state as states
from brain.picture import CANDLES_MAX, Mark, picture
from brain.state import BAR_FIELDS, CANDLE
from maintenance import chart, launch

STEP_MS = 300_000
NONE = np.empty(0, CANDLE)


def candles(count: int, seed: int = 5, first: float = 100.0) -> npt.NDArray[Any]:
    """A market that trends and turns, in 5m candles."""
    chance = np.random.default_rng(seed)
    drift = 0.0015 * np.sin(np.arange(count) / 25)
    close = first * np.exp(np.cumsum(chance.normal(0, 0.002, count) + drift))
    made = np.zeros(count, CANDLE)
    made["open_ms"] = 1_700_000_100_000 // STEP_MS * STEP_MS + np.arange(count) * STEP_MS
    made["open"], made["close"] = np.concatenate([[first], close[:-1]]), close
    top, bottom = np.maximum(made["open"], close), np.minimum(made["open"], close)
    made["high"] = top * (1 + abs(chance.normal(0, 0.001, count)))
    made["low"] = bottom * (1 - abs(chance.normal(0, 0.001, count)))
    made["volume"] = chance.exponential(10, count)
    made["quote_volume"], made["trades"] = made["volume"] * close, 50
    return made


def told(marks: Iterable[Mark]) -> list[str]:
    """As text: what is not known yet is a NaN, which equals nothing."""
    return [repr(mark) for mark in marks]


def test_at_every_bar_the_picture_is_the_prefix_s_picture() -> None:
    rows = candles(160)
    whole = picture("BTCUSDT", "5m", rows, NONE)
    assert len({mark.name for mark in whole.marks}) >= 10
    for count in (40, 90, 159):
        part, until = picture("BTCUSDT", "5m", rows[:count], NONE), rows["open_ms"][count - 1]
        assert told(part.marks) == told(m for m in whole.marks if m.bar_ms <= until)
        for name, values in part.indicators.items():
            np.testing.assert_array_equal(values, whole.indicators[name][:count])


def test_zones_end_where_the_brain_ended_them_and_old_ones_make_room() -> None:
    made = picture("BTCUSDT", "5m", candles(400), NONE)
    newest_ms = int(made.candles["open_ms"][-1])
    for kind in ("fvg", "block"):
        for side in (1, -1):
            open_ones = [z for z in made.zones if (z.name, z.side, z.open) == (kind, side, True)]
            assert len(open_ones) <= 8 and all(z.until_ms == newest_ms for z in open_ones)
    ended = {(m.side, m.origin_ms, m.bar_ms) for m in made.marks if m.name == "fvg_filled"}
    closed = [z for z in made.zones if z.name == "fvg" and not z.open]
    assert closed and all((z.side, z.from_ms, z.until_ms) in ended for z in closed)
    assert all(z.from_ms <= z.known_ms <= z.until_ms and z.bottom < z.top for z in made.zones)


def test_what_is_no_row_of_candles_is_refused() -> None:
    rows = candles(30)
    with pytest.raises(ValueError, match="not contiguous"):
        picture("BTCUSDT", "5m", np.delete(rows, 7), NONE)
    with pytest.raises(ValueError, match="CANDLE"):
        picture("BTCUSDT", "5m", np.zeros(3), NONE)
    assert picture("BTCUSDT", "5m", NONE, NONE).marks == ()
    assert len(picture("BTCUSDT", "5m", candles(CANDLES_MAX + 9), NONE).candles) == CANDLES_MAX


def test_lines_reach_from_the_pivot_to_the_break_and_nothing_lies_before_the_chart() -> None:
    rows = candles(300)
    made = picture("BTCUSDT", "5m", rows, NONE)
    first_ms = int(rows["open_ms"][-120])
    over = chart.layers(made, first_ms)
    breaks = [m for m in made.marks if m.name in chart.BREAKS and m.bar_ms >= first_ms]
    assert len(over.lines) == len(breaks) > 3
    for line, mark in zip(over.lines, breaks, strict=True):
        assert line.price == mark.near and -0.5 <= line.left <= line.right <= 119
        assert line.right == (mark.bar_ms - first_ms) / STEP_MS
    assert all(-0.5 <= box.left <= box.right <= 119.5 for box in over.boxes)
    pivots = [p for p in over.points if "pivot" in p.name]
    assert pivots and all(p.bar < p.known for p in pivots)  # drawn where it lies, told later


def test_a_picture_is_drawn_as_png_and_as_a_page(tmp_path: Path) -> None:
    from PIL import Image

    made = picture("BTCUSDT", "5m", candles(300), NONE)
    chart.draw(made, 120, tmp_path / "a.png")
    pixels = np.asarray(Image.open(tmp_path / "a.png").convert("RGB"))
    assert pixels.shape == (990, 1760, 3)
    for tint in (chart.UP, chart.DOWN, *chart.EMAS.values()):
        wanted = [int(tint[k : k + 2], 16) for k in (1, 3, 5)]
        assert (pixels == wanted).all(axis=2).sum() > 200, tint
    chart.write_page(made, 120, tmp_path / "a.html")
    text = (tmp_path / "a.html").read_text()
    assert '<script src="http' not in text  # whole in itself
    told = re.search(r"Plotly\.newPlot\(\s*\"[^\"]+\",\s*(\[.*?\]),\s*\{", text, re.S)
    assert told is not None
    traces = {trace["name"]: trace for trace in json.loads(told[1])}
    assert {"candles", "volume", "ema21", "ema50", "internal pivot", "bos"} <= traces.keys()
    rising, falling = traces["candles"]["increasing"], traces["candles"]["decreasing"]
    assert rising["fillcolor"] != falling["fillcolor"] == falling["line"]["color"]  # hollow, full
    first_ms = int(made.candles["open_ms"][-120])
    standing = [box for box in chart.layers(made, first_ms).boxes if box.open]
    assert len(traces["zones"]["text"]) == len(standing) > 0
    assert all(text[-1] in "▲▼" for text in traces["zones"]["text"])


def test_the_candles_of_a_running_brain_are_drawn(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    ring = tmp_path / "one.ring"
    monkeypatch.setattr(launch, "ring_paths", lambda cfg: [ring])
    cfg: Any = SimpleNamespace(symbols_max=2)
    with pytest.raises(SystemExit):
        chart.live(cfg, "BTCUSDT", "5m")
    assert "no brain state" in capsys.readouterr().err
    state = states.open_state(states.state_path(ring), 2)
    with pytest.raises(SystemExit):
        chart.live(cfg, "BTCUSDT", "5m")
    assert "not among the symbols" in capsys.readouterr().err
    a, rows, t = state.arrays, candles(100), 1
    a.sym[0, states.ACTIVE] = 1
    a.names[0].view(np.uint8)[:7] = np.frombuffer(b"BTCUSDT", np.uint8)
    with pytest.raises(SystemExit):
        chart.live(cfg, "BTCUSDT", "5m")
    assert "no closed 5m candle" in capsys.readouterr().err
    a.closed_at[0, t, :100] = rows["open_ms"]
    for k, name in enumerate(BAR_FIELDS):
        a.closed[0, t, :100, k] = rows[name]
    a.counts[0, t] = 100
    made = chart.live(cfg, "BTCUSDT", "5m")
    assert told(made.marks) == told(picture("BTCUSDT", "5m", rows, NONE).marks)
    assert isinstance(made.marks[0], Mark)


def test_a_recording_is_drawn_as_the_brain_stood_at_its_end_or_earlier(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "a.aegisrec"
    brain = Live(path, table(lively_market(3, 2, 120)))
    brain.run(len(brain.records) // 3)
    brain.record()
    brain.run(len(brain.records))
    brain.stop()
    state = brain.engine.desk.state
    name = state.name(0)
    here: Any = chart.picture_of(state, name, "1m")
    made = chart.recorded(str(path), name, "1m", None, partial=False)
    assert len(made.candles) > 50 and made.marks
    assert told(made.marks) == told(here.marks)
    np.testing.assert_array_equal(made.candles, here.candles)
    middle_ms = int(made.candles["open_ms"][-20])
    before = chart.recorded(str(path), name, "1m", str(middle_ms), partial=False)
    assert before.candles["open_ms"][-1] == middle_ms - 60_000
    for words in ((str(path), "NONE"), (str(tmp_path / "none"), name)):
        with pytest.raises(SystemExit):
            chart.recorded(*words, "1m", None, partial=False)
    said = capsys.readouterr().err.splitlines()
    assert "NONE is not among the symbols" in said[0] and "cannot be read" in said[1]
