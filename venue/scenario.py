"""Scenarios on demand: what can be asked for, in which words, and the path each one is.

Pure: text or JSON in, a `Scenario` or a ValueError with one sentence out; `scene` gives the
kernel's terms. Times are market time. Every level is relative to the price at the start:

  trend      pct                          goes there in a straight line over duration_s
  range      width_pct, cycles            between + and - width_pct, touching both each cycle
  sweep      swing_pct, pullback_pct,     makes a swing, pulls back, goes beyond the swing, comes
             beyond_pct, back_pct, side   back to the other side of it (side 1: high, -1: low)
  gap        pct, silence_s               silence (no event, no lost trade id), then a jump
  crash      pct, fall_s, recovery,       falls pct in fall_s, regains the share `recovery` of it
             recover_s
  burst      factor, duration_s           trades `factor` times as large, and `rate` more of them

`rate` (all kinds): events of the symbol added per market second.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from venue.scenes import SCENES_MAX, Scene

SPAN_S_MAX = 7 * 86_400.0  # of one scenario
AT_S_MAX = 366 * 86_400.0  # after birth
CYCLES_MAX = 10
FILE_BYTES_MAX = 1 << 20

# kind -> parameter -> (default, least, most)
Bounds = tuple[float, float, float]
_SPAN: Bounds = (600.0, 1.0, SPAN_S_MAX)
_RATE: Bounds = (4.0, 0.0, 1000.0)
KINDS: dict[str, dict[str, Bounds]] = {
    "trend": {"pct": (2.0, -90.0, 500.0), "duration_s": _SPAN, "rate": _RATE},
    "range": {
        "width_pct": (0.4, 0.01, 50.0),
        "cycles": (3.0, 1.0, CYCLES_MAX),
        "duration_s": (1200.0, 1.0, SPAN_S_MAX),
        "rate": _RATE,
    },
    "sweep": {
        "side": (1.0, -1.0, 1.0),
        "swing_pct": (0.5, 0.01, 40.0),
        "pullback_pct": (0.4, 0.01, 40.0),
        "beyond_pct": (0.15, 0.01, 40.0),
        "back_pct": (0.3, 0.01, 40.0),
        "duration_s": (900.0, 1.0, SPAN_S_MAX),
        "rate": _RATE,
    },
    "gap": {
        "pct": (-1.0, -90.0, 500.0),
        "silence_s": (0.0, 0.0, SPAN_S_MAX),
        "rate": (0.0, 0.0, 1000.0),
    },
    "crash": {
        "pct": (8.0, 0.01, 90.0),
        "fall_s": (20.0, 0.1, SPAN_S_MAX),
        "recovery": (0.6, 0.0, 1.0),
        "recover_s": (120.0, 0.1, SPAN_S_MAX),
        "rate": (20.0, 0.0, 1000.0),
    },
    "burst": {
        "factor": (6.0, 1.0, 1000.0),
        "duration_s": (120.0, 1.0, SPAN_S_MAX),
        "rate": (20.0, 0.0, 1000.0),
    },
}
WHOLE = ("side", "cycles")
SWEEP_TIMES = (0.3, 0.6, 0.85, 1.0)  # swing, pull-back, beyond, back: shares of duration_s


@dataclass(frozen=True, slots=True)
class Scenario:
    """One movement; `at_ms` is after birth at start-up, absolute market time once planned."""

    kind: str
    symbol: str
    at_ms: int
    values: tuple[tuple[str, float], ...]

    def value(self, name: str) -> float:
        return dict(self.values)[name]

    def json(self) -> dict[str, Any]:
        head = {"kind": self.kind, "symbol": self.symbol, "at_ms": self.at_ms}
        return head | dict(self.values)


def _number(name: str, raw: Any) -> float:
    try:
        value = math.nan if isinstance(raw, bool) else float(raw)
    except (TypeError, ValueError):
        value = math.nan
    if not math.isfinite(value):
        raise ValueError(f"{name} is no number: {raw!r}")
    return value


def from_json(data: Mapping[str, Any], now_ms: int = 0) -> Scenario:
    """From JSON: kind, symbol, at_ms or at_s (after `now_ms`), parameters. ValueError."""
    kind, symbol = data.get("kind"), data.get("symbol")
    if not isinstance(kind, str) or kind not in KINDS:
        raise ValueError(f"kind must be one of {', '.join(KINDS)}, not {kind!r}")
    if not isinstance(symbol, str) or not symbol:
        raise ValueError("symbol is missing")
    known = KINDS[kind]
    unknown = set(data) - set(known) - {"kind", "symbol", "at_s", "at_ms"}
    if unknown:
        raise ValueError(f"{kind} does not know {sorted(unknown)}; it takes {', '.join(known)}")
    values = []
    for name, (usual, least, most) in known.items():
        value = _number(name, data.get(name, usual))
        if not least <= value <= most:
            raise ValueError(f"{name} of {kind} must lie in {least:g}..{most:g}, not {value:g}")
        if name in WHOLE and (value != int(value) or value == 0):
            raise ValueError(f"{name} of {kind} must be a whole number but 0, not {value:g}")
        values.append((name, value))
    if "at_ms" in data:
        return Scenario(kind, symbol, int(_number("at_ms", data["at_ms"])), tuple(values))
    at_s = _number("at_s", data.get("at_s", 1.0))
    if not 0.0 <= at_s <= AT_S_MAX:
        raise ValueError(f"at_s must lie in 0..{AT_S_MAX:g}, not {at_s:g}")
    return Scenario(kind, symbol, now_ms + math.floor(at_s * 1000.0), tuple(values))


def from_text(text: str) -> Scenario:
    """`kind:symbol:at_s[:key=value...]`, times after birth. Raises ValueError."""
    kind, *rest = text.split(":")
    if len(rest) < 2:
        raise ValueError(f"scenario {text!r} must read kind:symbol:at_s:key=value")
    data: dict[str, Any] = {"kind": kind, "symbol": rest[0], "at_s": rest[1]}
    for part in rest[2:]:
        name, equals, value = part.partition("=")
        if not equals or name in data:
            raise ValueError(f"scenario {text!r}: {part!r} must read key=value, each key once")
        data[name] = value
    try:
        return from_json(data)
    except ValueError as error:
        raise ValueError(f"scenario {text!r}: {error}") from None


def to_text(data: Mapping[str, Any]) -> str:
    """JSON with at_s as the text form, so that both are kept alike."""
    rest = [f"{k}={v}" for k, v in data.items() if k not in ("kind", "symbol", "at_s")]
    head = [str(data.get("kind")), str(data.get("symbol")), str(data.get("at_s", 0))]
    return ":".join([*head, *rest])


def texts(given: Iterable[str]) -> tuple[str, ...]:
    """Each argument is a text or a file with a JSON list of objects. Raises ValueError, OSError."""
    out: list[str] = []
    for word in given:
        if word.partition(":")[0] in KINDS:
            out.append(word)
            continue
        path = Path(word)
        if path.stat().st_size > FILE_BYTES_MAX:
            raise ValueError(f"scenario file {word} is larger than {FILE_BYTES_MAX} bytes")
        try:
            rows = orjson.loads(path.read_bytes())
        except ValueError as error:
            raise ValueError(f"scenario file {word} is no JSON: {error}") from None
        if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
            raise ValueError(f"scenario file {word} must hold a JSON list of objects")
        out += [to_text(row) for row in rows]
    for text in out:
        from_text(text)
    if len(out) > SCENES_MAX:
        raise ValueError(f"at most {SCENES_MAX} scenarios can be planned")
    return tuple(out)


def _log(pct: float) -> float:
    return math.log1p(pct / 100.0)


def _path(s: Scenario) -> list[tuple[float, float]]:
    """(seconds, log level) after the start; the first knot (0, 0) is left out."""
    v = dict(s.values)
    if s.kind == "trend":
        return [(v["duration_s"], _log(v["pct"]))]
    if s.kind == "range":
        quarter = v["duration_s"] / (4 * v["cycles"])
        tops = [
            (quarter * (4 * k + 1 + 2 * down), _log(-v["width_pct"] if down else v["width_pct"]))
            for k in range(int(v["cycles"]))
            for down in (0, 1)
        ]
        return [*tops, (v["duration_s"], 0.0)]
    if s.kind == "sweep":
        swing, side = v["swing_pct"], v["side"]
        marks = (swing, swing - v["pullback_pct"], swing + v["beyond_pct"], swing - v["back_pct"])
        levels = [_log(side * pct) for pct in marks]
        return [(v["duration_s"] * t, x) for t, x in zip(SWEEP_TIMES, levels, strict=True)]
    if s.kind == "gap":
        return [(v["silence_s"], 0.0), (v["silence_s"], _log(v["pct"]))]
    if s.kind == "crash":
        low = _log(-v["pct"])
        up = _log(-v["pct"] * (1.0 - v["recovery"]))
        return [(v["fall_s"], low), (v["fall_s"] + v["recover_s"], up)]
    return [(v["duration_s"], 0.0)]


def scene(s: Scenario, symbol: int) -> Scene:
    """The scenario in the kernel's terms, for the symbol of that index."""
    v = dict(s.values)
    knots = ((0.0, 0.0), *((float(round(t * 1000.0)), x) for t, x in _path(s)))
    return Scene(
        symbol,
        s.at_ms,
        knots,
        quiet_ms=round(v.get("silence_s", 0.0) * 1000.0),
        rate=v["rate"],
        size=v.get("factor", 1.0),
        steered=s.kind != "burst",
    )


def until_ms(s: Scenario) -> int:
    """When it is over."""
    return s.at_ms + round(_path(s)[-1][0] * 1000.0)


def conflict(planned: Iterable[Scenario], new: Scenario) -> str:
    """Why it cannot be planned beside the others; empty when it can."""
    for other in planned:
        if other.symbol == new.symbol and (
            new.at_ms <= until_ms(other) and other.at_ms <= until_ms(new)
        ):
            return f"{new.symbol} has a {other.kind} from {other.at_ms} to {until_ms(other)} then"
    return ""
