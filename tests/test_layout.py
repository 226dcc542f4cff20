"""The layout is a test: who may import whom, how long a function may be, no dead files."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FLOOR = {"barrier", "clock", "config", "latency", "process", "records", "ring", "streams"}
ROOMS = {"feed", "brain", "risk", "venue", "maintenance"}
FUNCTION_LINES_MAX = 110  # a kernel may be long; prose and branches that repeat may not
FILE_LINES_MAX = 900

# What a file may import of ours, by its place. config is for entry points only.
ALLOWED = {
    "barrier": {"ring"},
    "latency": set(),
    "config": set(),
    "clock": set(),
    "process": set(),
    "records": set(),
    "ring": {"latency", "records"},
    "streams": {"records"},
    "feed": {"feed", "barrier", "clock", "latency", "process", "records", "ring"},
    "brain": {"brain", "barrier", "clock", "latency", "process", "records", "ring", "streams"},
    "risk": {"risk", "clock", "process", "streams"},
    "venue": {"venue", "clock", "process", "records", "ring"},
    "maintenance": FLOOR | ROOMS,
}
LEAN = ("maintenance.supervisor", "maintenance.cli", "maintenance.node", "maintenance.tasks")


def sources() -> list[Path]:
    listed = [ROOT / f"{name}.py" for name in sorted(FLOOR)]
    for room in sorted(ROOMS):
        listed += sorted((ROOT / room).glob("**/*.py"))
    return listed


def imports_of(tree: ast.Module) -> set[str]:
    """Dotted names of every import, wherever it stands."""
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide where a thing lives"
            assert node.module is not None
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


@pytest.mark.parametrize("path", sources(), ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_one_way(path: Path) -> None:
    place = path.relative_to(ROOT).parts[0].removesuffix(".py")
    names = imports_of(ast.parse(path.read_text()))
    ours = {name.split(".")[0] for name in names} & (FLOOR | ROOMS)
    allowed = set(ALLOWED[place])
    if path.name == "main.py":
        allowed |= {"config"}
    assert ours <= allowed, f"{path.name} may not import {sorted(ours - allowed)}"
    tops = {name.split(".")[0] for name in names}
    if place == "feed":
        assert "redis" not in tops, "Redis may die, the market does not"
    if place == "risk":
        assert not tops & {"numba", "llvmlite"}, "risk lives on hosts without kernels"


@pytest.mark.parametrize("module", LEAN)
def test_entry_points_start_lean(module: str) -> None:
    script = f"import sys, {module}; print({{'numba', 'ccxt', 'llvmlite'}} & set(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "set()"


@pytest.mark.parametrize("path", sources(), ids=lambda path: str(path.relative_to(ROOT)))
def test_files_and_functions_stay_readable(path: Path) -> None:
    text = path.read_text()
    tree = ast.parse(text)
    assert ast.get_docstring(tree), f"{path} opens without its promise"
    assert text.count("\n") <= FILE_LINES_MAX, f"{path} has grown: is there a seam?"
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            assert lines <= FUNCTION_LINES_MAX, f"{path.name}:{node.name} has {lines} lines"


def test_no_file_is_dead() -> None:
    """Every file is imported by another one, or is an entry point."""
    wanted: set[str] = set()
    for path in [*sources(), *sorted((ROOT / "tests").glob("**/*.py"))]:
        wanted |= imports_of(ast.parse(path.read_text()))
    entry_points = {"main", "cli", "__init__", "__main__"}
    for path in sources():
        dotted = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        assert path.stem in entry_points or dotted in wanted, f"nobody imports {dotted}"


def test_nothing_names_a_machine() -> None:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a git checkout")
    for name in listed.stdout.split():
        path = ROOT / name
        if path.suffix in (".png",) or not path.is_file():
            continue
        text = path.read_text()
        for word in ("/" + "work/", "index" + "-url", "/" + "root/"):
            assert word not in text, f"{name} holds {word}"
