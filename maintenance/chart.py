"""`aegis chart SYMBOL`: candles with the structure that the brain found in them, as PNG and HTML.

Candles come from a running brain's state, or from that of a replayed recording. What is drawn is
brain/picture.py's: every mark stands at the bar at whose close it was known, lines and boxes reach
back to what they speak of. The PNG is matplotlib's, the interactive page plotly's, whole in one
file: it needs no network.

Red and green have a second sign: rising candles are hollow and falling ones full, pivots point down
from highs and up from lows, zones that stand carry an arrow.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import config
import process
from maintenance import launch, replaying, running, warm
from records import TIMEFRAME_NAMES, TIMEFRAMES_MIN

if TYPE_CHECKING:
    from brain.picture import Picture
    from brain.state import State

BARS: Final = (20, 1_000)
UP, DOWN = "#089981", "#f23645"
INK, GRID, PAPER = "#131722", "#e0e3eb", "#ffffff"
EMAS: Final = {"ema21": "#2962ff", "ema50": "#ff9800"}
BREAKS: Final = {
    "internal_bos": "bos", "internal_choch": "choch", "swing_bos": "BOS", "swing_choch": "CHoCH",
}  # fmt: skip
NAMES: Final = {"fvg": "FVG", "block": "OB"}
SHADES: Final = {"fvg": 0.16, "block": 0.28}


@dataclass(frozen=True, slots=True)
class Box:
    """A zone: bar numbers and prices."""

    name: str
    side: int
    left: float
    right: float
    top: float
    bottom: float
    open: bool


@dataclass(frozen=True, slots=True)
class Line:
    """A level from its origin to the bar that broke it."""

    text: str
    side: int
    left: float
    right: float
    price: float
    strong: bool


@dataclass(frozen=True, slots=True)
class Point:
    """A pivot or a sweep; `bar` is what it speaks of, `known` the bar whose close told it."""

    name: str
    side: int
    bar: float
    known: float
    price: float


@dataclass(frozen=True, slots=True)
class Layers:
    """What both renderers draw over the candles; x is the number of the bar."""

    boxes: tuple[Box, ...]
    lines: tuple[Line, ...]
    points: tuple[Point, ...]


def colour(side: int) -> str:
    return UP if side > 0 else DOWN


def layers(picture: Picture, first_ms: int) -> Layers:
    """Boxes, lines and points that reach into the bars from `first_ms` on."""
    step_ms = TIMEFRAMES_MIN[TIMEFRAME_NAMES.index(picture.timeframe)] * 60_000

    def x(ms: float) -> float:
        return max((ms - first_ms) / step_ms, -0.5)

    boxes = tuple(
        Box(z.name, z.side, x(z.from_ms), x(z.until_ms) + 0.5 * z.open, z.top, z.bottom, z.open)
        for z in picture.zones
        if z.until_ms >= first_ms and (z.open or z.name == "block")
    )
    seen = [m for m in picture.marks if m.bar_ms >= first_ms]
    lines = tuple(
        Line(BREAKS[m.name], m.side, x(m.origin_ms), x(m.bar_ms), m.near, "swing" in m.name)
        for m in seen
        if m.name in BREAKS
    )
    points = tuple(
        Point(m.name, m.side, x(m.origin_ms if "pivot" in m.name else m.bar_ms), x(m.bar_ms),
              m.near if "pivot" in m.name else m.far)
        for m in seen
        if m.name in ("internal_pivot", "swing_pivot", "sweep", "equal", "level_sweep")
    )  # fmt: skip
    return Layers(boxes, lines, points)


def times(opens_ms: Iterable[int]) -> list[datetime]:
    return [datetime.fromtimestamp(int(ms) / 1000, UTC) for ms in opens_ms]


def title(picture: Picture) -> str:
    until = times(picture.candles["open_ms"][-1:])[0]
    return f"{picture.symbol} {picture.timeframe}, until {until:%Y-%m-%d %H:%M} UTC"


# --- PNG ---------------------------------------------------------------------------------------


def draw(picture: Picture, bars: int, path: Path) -> None:
    """Candles, volume and structure of the newest `bars` as a PNG."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    shown = picture.candles[-bars:]
    opens, n = times(shown["open_ms"]), len(shown)
    figure, (top, low) = plt.subplots(
        2, 1, figsize=(16, 9), dpi=110, sharex=True, height_ratios=(5, 1), facecolor=PAPER
    )
    rising = shown["close"] >= shown["open"]
    for mask, tint in ((rising, UP), (~rising, DOWN)):
        at = mask.nonzero()[0]
        part = shown[mask]
        top.vlines(at, part["low"], part["high"], color=tint, linewidth=1, zorder=3)
        body = abs(part["close"] - part["open"])
        base = part[["open", "close"]].copy()
        bottom = [min(row) for row in base]
        face = PAPER if tint == UP else tint
        top.bar(at, body, 0.64, bottom, color=face, edgecolor=tint, linewidth=1, zorder=3)
        low.bar(at, part["volume"], 0.64, color=face, edgecolor=tint, linewidth=1, alpha=0.6)
    for name, tint in EMAS.items():
        top.plot(range(n), picture.indicators[name][-bars:], color=tint, linewidth=1.1, label=name)
    over = layers(picture, int(shown["open_ms"][0]))
    _draw_over(top, over)
    lows, highs = shown["low"].min(), shown["high"].max()
    margin = (highs - lows) * 0.06 or 1.0
    top.set_ylim(lows - margin, highs + margin)
    top.set_xlim(-1, n + max(2, n // 30))
    every = max(1, n // 12)
    low.set_xticks(range(0, n, every), [f"{t:%m-%d\n%H:%M}" for t in opens[::every]])
    for axes in (top, low):
        axes.set_facecolor(PAPER)
        axes.grid(color=GRID, linewidth=0.6, zorder=0)
        axes.yaxis.tick_right()
        axes.tick_params(colors=INK, labelsize=9)
        for spine in axes.spines.values():
            spine.set_color(GRID)
    top.set_title(title(picture), loc="left", color=INK, fontsize=13)
    top.legend(loc="upper left", frameon=False, fontsize=9, ncols=2)
    low.set_ylabel("volume", color=INK, fontsize=9)
    low.set_xlabel("UTC", color=INK, fontsize=9, loc="right")
    figure.tight_layout()
    figure.savefig(path)
    plt.close(figure)


def _draw_over(axes: Any, over: Layers) -> None:
    from matplotlib.patches import Rectangle

    for box in over.boxes:
        size = box.right - box.left, box.top - box.bottom
        shade = SHADES[box.name] * (1.0 if box.open else 0.45)
        tint = colour(box.side)
        axes.add_patch(
            Rectangle((box.left, box.bottom), *size, facecolor=tint, alpha=shade, zorder=1)
        )
        if box.open:
            axes.text(
                box.right, (box.top + box.bottom) / 2, f" {_label(box)}", color=tint,
                fontsize=8, va="center", zorder=4, clip_on=True,
            )  # fmt: skip
    for line in over.lines:
        style = {
            "linestyle": "-" if line.strong else "--",
            "linewidth": 1.4 if line.strong else 0.9,
        }
        axes.hlines(line.price, line.left, line.right, color=colour(line.side), zorder=2, **style)
        axes.text(
            (line.left + line.right) / 2, line.price, line.text, color=colour(line.side),
            fontsize=9 if line.strong else 7, ha="center", zorder=4, clip_on=True,
            va="bottom" if line.side > 0 else "top", fontweight="bold" if line.strong else "normal",
        )  # fmt: skip
    for point in over.points:
        strong = point.name in ("swing_pivot", "level_sweep")
        if point.name in ("sweep", "level_sweep"):
            mark = {"marker": "x", "s": 46, "linewidths": 1.8}
        elif point.name == "equal":
            mark = {"marker": "_", "s": 60, "linewidths": 1.5}
        else:
            mark = {"marker": "v" if point.side > 0 else "^", "s": 34 if strong else 12}
        axes.scatter(point.bar, point.price, color=_tint(point), zorder=5, **mark)


def _tint(point: Point) -> str:
    """A pivot high is where sellers were, a sweep points to where the trade goes."""
    return colour(-point.side if "pivot" in point.name else point.side)


# --- HTML --------------------------------------------------------------------------------------


def write_page(picture: Picture, bars: int, path: Path) -> None:
    """The same as an interactive page: pan, zoom, hover; plotly's script inside."""
    from plotly import graph_objects as go
    from plotly.subplots import make_subplots

    shown = picture.candles[-bars:]
    opens = times(shown["open_ms"])
    step = TIMEFRAMES_MIN[TIMEFRAME_NAMES.index(picture.timeframe)] * 60_000
    first_ms = int(shown["open_ms"][0])

    def at(bar: float) -> datetime:
        return times([round(first_ms + bar * step)])[0]

    figure = make_subplots(
        rows=2, cols=1, shared_xaxes=True, row_heights=[0.84, 0.16], vertical_spacing=0.02
    )
    ohlc = {name: shown[name] for name in ("open", "high", "low", "close")}
    figure.add_trace(
        go.Candlestick(
            x=opens, **ohlc, name="candles", whiskerwidth=0, line_width=1,
            increasing={"line_color": UP, "fillcolor": PAPER},
            decreasing={"line_color": DOWN, "fillcolor": DOWN}, showlegend=False,
        )
    )  # fmt: skip
    rising = shown["close"] >= shown["open"]
    figure.add_trace(
        go.Bar(
            x=opens, y=shown["volume"], name="volume", opacity=0.6, showlegend=False,
            marker={"color": [PAPER if up else DOWN for up in rising],
                    "line": {"color": [UP if up else DOWN for up in rising], "width": 1}},
        ),
        row=2, col=1,
    )  # fmt: skip
    for name, tint in EMAS.items():
        values = picture.indicators[name][-bars:]
        figure.add_trace(go.Scatter(x=opens, y=values, name=name, line={"color": tint, "width": 1}))
    over = layers(picture, first_ms)
    _page_boxes(figure, over, at)
    for line in over.lines:
        tint, middle = colour(line.side), (line.left + line.right) / 2
        figure.add_trace(
            go.Scatter(
                x=[at(line.left), at(middle), at(line.right)], y=[line.price] * 3,
                mode="lines+text", text=["", line.text, ""],
                textposition="top center" if line.side > 0 else "bottom center",
                textfont={"color": tint, "size": 12 if line.strong else 10},
                line={"color": tint, "width": 2 if line.strong else 1,
                      "dash": "solid" if line.strong else "dot"},
                name=line.text, showlegend=False,
                hovertemplate=f"{line.text} {_way(line.side)} %{{y}}<extra></extra>",
            )
        )  # fmt: skip
    for name in sorted({point.name for point in over.points}):
        group = [point for point in over.points if point.name == name]
        words = name.replace("_", " ")
        figure.add_trace(
            go.Scatter(
                x=[at(p.bar) for p in group], y=[p.price for p in group], mode="markers",
                name=words,
                marker={"color": [_tint(p) for p in group],
                        "symbol": [_symbol(p) for p in group],
                        "size": 10 if "swing" in name or "sweep" in name else 7,
                        "line": {"color": [_tint(p) for p in group],
                                 "width": 0 if "pivot" in name else 2}},
                text=[f"{_way(p.side)}, known at {at(p.known):%m-%d %H:%M} UTC" for p in group],
                hovertemplate=f"{words} %{{y}}<br>%{{text}}<extra></extra>",
            )
        )  # fmt: skip
    figure.update_layout(
        title=title(picture), template="plotly_white", xaxis_rangeslider_visible=False,
        hovermode="closest", dragmode="pan", margin={"l": 20, "r": 80, "t": 60, "b": 40},
        legend={"orientation": "h", "x": 1, "xanchor": "right", "y": 1, "yanchor": "bottom"},
    )  # fmt: skip
    figure.update_yaxes(side="right", exponentformat="none")
    figure.update_xaxes(range=[at(-1), at(len(shown) * 1.05)])
    figure.update_xaxes(title={"text": "UTC", "standoff": 0}, row=2, col=1)
    figure.write_html(path, include_plotlyjs=True, config={"scrollZoom": True})


def _page_boxes(figure: Any, over: Layers, at: Callable[[float], datetime]) -> None:
    """Zones, and the names of those that are open, at their right edge."""
    from plotly import graph_objects as go

    for box in over.boxes:
        figure.add_shape(
            type="rect", x0=at(box.left), x1=at(box.right), y0=box.bottom, y1=box.top,
            fillcolor=colour(box.side), line_width=0, layer="below",
            opacity=SHADES[box.name] * (1.0 if box.open else 0.45),
        )  # fmt: skip
    standing = [box for box in over.boxes if box.open]
    figure.add_trace(
        go.Scatter(
            x=[at(box.right) for box in standing],
            y=[(box.top + box.bottom) / 2 for box in standing], mode="text",
            text=[f" {_label(box)}" for box in standing], textposition="middle right",
            textfont={"color": [colour(box.side) for box in standing], "size": 10},
            customdata=[[_way(box.side), box.bottom, box.top] for box in standing],
            hovertemplate="%{text} %{customdata[0]}, "
            "%{customdata[1]} to %{customdata[2]}<extra></extra>",
            name="zones", showlegend=False,
        )
    )  # fmt: skip


def _label(box: Box) -> str:
    return f"{NAMES[box.name]} {'▲' if box.side > 0 else '▼'}"


def _way(side: int) -> str:
    return "up" if side > 0 else "down"


def _symbol(point: Point) -> str:
    if "pivot" in point.name:
        return "triangle-down" if point.side > 0 else "triangle-up"
    return "x-thin-open" if "sweep" in point.name else "line-ew-open"


# --- the command -------------------------------------------------------------------------------


def picture_of(state: State, symbol: str, timeframe: str) -> Picture | str:
    """What a brain's state knows of a symbol, or why nothing can be drawn."""
    from brain.picture import picture
    from brain.state import candles

    if state.row(symbol) is None:
        return f"{symbol} is not among the symbols"
    found = candles(state, symbol, timeframe)
    if not len(found):
        return f"{symbol} has no closed {timeframe} candle yet"
    return picture(symbol, timeframe, found, candles(state, symbol, "1d"))


def live(cfg: config.Config, symbol: str, timeframe: str) -> Picture:
    """From the state of the brain that has this symbol. Ends with a sentence when there is none."""
    from brain import state as states

    told: list[str] = []
    for ring in launch.ring_paths(cfg):
        path = states.state_path(ring)
        try:
            state = states.open_state(path, cfg.symbols_max, create=False)
        except states.StateError as error:
            told.append(str(error))
            continue
        made = picture_of(state, symbol, timeframe)
        if not isinstance(made, str):
            return made
        told.append(f"{made} of {path.name}")
    return process.fail(f"Nothing to draw: {'; '.join(told)}. Is `aegis up` running here?")


def recorded(path: str, symbol: str, timeframe: str, until: str | None, partial: bool) -> Picture:
    """As the brain stood at the end of a recording, or at a market time within it; no rule is
    asked. Ends with a sentence when there is nothing to draw."""
    from brain.recording import RecordingError
    from brain.replay import replay

    try:
        made = replay(path, until_ms=replaying.market_ms(until), partial=partial, rules=[])
    except RecordingError as error:
        return process.fail(str(error))
    found = picture_of(made.desk.state, symbol, timeframe)
    return process.fail(f"Nothing to draw: {found} in {path}.") if isinstance(found, str) else found


def main(args: argparse.Namespace) -> int:
    """Draw both files and name them."""
    cfg, symbol = running.settings(), args.symbol.upper()
    if args.timeframe not in TIMEFRAME_NAMES:
        process.fail(f"--timeframe {args.timeframe} is none of {', '.join(TIMEFRAME_NAMES)}.", 2)
    if not BARS[0] <= args.bars <= BARS[1]:
        process.fail(f"--bars {args.bars} is not within {BARS[0]} and {BARS[1]}.", 2)
    os.environ.setdefault(warm.CACHE_ENV, str(warm.numba_cache_dir(cfg.state_dir)))
    if args.recording:
        made = recorded(args.recording, symbol, args.timeframe, args.until_ms, args.partial)
    elif args.until_ms or args.partial:
        process.fail("--until and --partial need --recording.", 2)
    else:
        made = live(cfg, symbol, args.timeframe)
    stem = Path(args.out or f"chart-{symbol}-{args.timeframe}")
    png, page = stem.with_suffix(".png"), stem.with_suffix(".html")
    try:
        stem.parent.mkdir(parents=True, exist_ok=True)
        draw(made, args.bars, png)
        write_page(made, args.bars, page)
    except OSError as error:
        process.fail(f"the chart cannot be written: {error}.")
    except ImportError as error:
        process.fail(f"{error.name} is not installed: pip install -r requirements-chart.txt.")
    shown = min(args.bars, len(made.candles))
    print(f"{png} and {page}: {shown} candles, {len(made.marks)} marks, {len(made.zones)} zones")
    return 0
