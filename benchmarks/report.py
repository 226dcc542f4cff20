"""What every benchmark here reports: named numbers with their samples, and the machine they are of.

A number is the median of its samples; the spread stands beside it. A result that is checked
against an independent answer says so by being there at all: a wrong answer raises.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final

_SHARED: Final = Path("/dev/shm")  # noqa: S108 (rings belong there)
FOLDER: Final = _SHARED if _SHARED.is_dir() else None  # for rings of benchmarks
QUIET_CORES: Final = 0.15  # cores that others may use before a machine counts as busy
PACKAGES: Final = (
    "numba",
    "numpy",
    "websockets",
    "orjson",
    "msgspec",
    "uvloop",
    "TA-Lib",
    "pandas",
)


@dataclass(frozen=True, slots=True)
class Result:
    """One number. `at_most` tells which side of the target is good."""

    name: str
    unit: str
    samples: Sequence[float]
    target: float | None = None
    at_most: bool = True
    note: str = ""
    extra: dict[str, Any] = field(default_factory=dict)

    @property
    def value(self) -> float:
        return statistics.median(self.samples)

    @property
    def ok(self) -> bool | None:
        """Whether the target is reached; None where there is none."""
        if self.target is None:
            return None
        return self.value <= self.target if self.at_most else self.value >= self.target

    def row(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "value": self.value,
            "unit": self.unit,
            "target": self.target,
            "ok": self.ok,
            "min": min(self.samples),
            "max": max(self.samples),
            "samples": list(self.samples),
            "note": self.note,
            **self.extra,
        }


def loop_rate() -> float:
    """Million turns of a Python loop per second, now: how fast is a core at this moment?"""
    turns, began = 0, time.perf_counter()
    while (now := time.perf_counter()) < began + 0.02:
        for _ in range(1000):
            turns += 1
    return turns / (now - began) / 1e6


def busy_s() -> float:
    """CPU seconds of the whole machine since boot."""
    try:
        first = Path("/proc/stat").read_text().split("\n", 1)[0]
    except OSError:
        return 0.0
    parts = [int(x) for x in first.split()[1:9]]
    return (sum(parts) - parts[3] - parts[4]) / os.sysconf("SC_CLK_TCK")


def machine() -> dict[str, Any]:
    """Who measured this, and was anybody else at work?"""
    began_s, busy = time.perf_counter(), busy_s()
    own_s = time.process_time()
    rates = [loop_rate() for _ in range(10)]
    used = (busy_s() - busy - (time.process_time() - own_s)) / (time.perf_counter() - began_s)
    packages = {}
    for name in PACKAGES:
        try:
            packages[name] = version(name)
        except PackageNotFoundError:
            continue
    return {
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "packages": packages,
        "loop_m_per_s": [round(min(rates), 1), round(max(rates), 1)],
        "others_cores": round(max(used, 0.0), 2),
        "overloaded": used > QUIET_CORES,
    }


def _cpu_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def number(value: float) -> str:
    """Three digits that matter, thousands apart."""
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def table(results: Sequence[Result]) -> str:
    """Markdown: name, median (min .. max), unit, target, reached."""
    rows = ["| what | median (min .. max) | unit | target | |", "|---|---:|---|---:|---|"]
    for each in results:
        spread = f"{number(min(each.samples))} .. {number(max(each.samples))}"
        sign = "" if each.target is None else ("<= " if each.at_most else ">= ")
        target = "" if each.target is None else sign + number(each.target)
        mark = {True: "ok", False: "**short**", None: ""}[each.ok]
        rows.append(
            f"| {each.name}{f' ({each.note})' if each.note else ''} | {number(each.value)} "
            f"({spread}) | {each.unit} | {target} | {mark} |"
        )
    return "\n".join(rows)


def document(results: Sequence[Result], about: dict[str, Any]) -> str:
    """One JSON object on one line."""
    return json.dumps({"machine": about, "results": [each.row() for each in results]})
