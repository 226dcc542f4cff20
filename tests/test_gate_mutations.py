"""The mutation run over the gate: no mutant survives, and the run itself can tell."""

from __future__ import annotations

import importlib.util
import inspect
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path

import gate_mutations
import pytest
from gate_mutations import Mutant, cases, everything, install, mutants, survivors, unknown_names

from risk import gate, state

ROOT = Path(__file__).resolve().parent.parent
PLANTED = '''
LIMIT = 10
SLACK: int = 2


def allowed(age: int, known: bool = True) -> bool:
    """Within the limit."""
    return known and -SLACK <= age <= LIMIT
'''


@pytest.fixture
def planted(tmp_path: Path) -> types.ModuleType:
    path = tmp_path / "planted.py"
    path.write_text(PLANTED)
    spec = importlib.util.spec_from_file_location("planted", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["planted"] = module
    spec.loader.exec_module(module)
    return module


def run(module: types.ModuleType, test: Callable[[], None]) -> set[str]:
    made = list(mutants(PLANTED, "planted"))
    return {m.name for m in survivors(made, [("planted", test)], {"planted": module})}


def test_a_weak_test_lets_mutants_survive_and_a_strong_one_lets_none(
    planted: types.ModuleType,
) -> None:
    def weak() -> None:
        assert planted.allowed(0) and not planted.allowed(99) and not planted.allowed(-99)

    def strong() -> None:
        for age in range(-5, 15):
            assert planted.allowed(age) is (-2 <= age <= 10)
        assert not planted.allowed(0, known=False)

    survived = run(planted, weak)
    assert "planted:allowed:-SLACK <= age <= LIMIT -> -SLACK <= age < LIMIT" in survived
    assert "planted:LIMIT:10 -> 11" in survived and "planted:SLACK:2 -> 1" in survived
    assert "planted:allowed:-SLACK <= age <= LIMIT -> -SLACK <= age > LIMIT" not in survived
    assert run(planted, strong) == set()


def test_a_run_begins_with_tests_that_pass(planted: types.ModuleType) -> None:
    def broken() -> None:
        raise AssertionError

    with pytest.raises(AssertionError, match="must pass on the real thing"):
        run(planted, broken)


def made_in(place: str, kind: str) -> list[Mutant]:
    return [m for m in everything("gate")[0] if m.place == place and m.kind == kind]


def test_a_mutant_stands_in_for_the_real_thing_and_leaves_no_trace() -> None:
    before = gate.check_stale.__code__
    restore = install(made_in("check_stale", "comparison")[0], gate)
    assert gate.check_stale.__code__ is not before and gate.check_stale in gate.CHECKS
    restore()
    assert gate.check_stale.__code__ is before
    restore = install(made_in("Limits.positions_max", "number")[0], gate)
    assert gate.Limits().positions_max == 4 and state.Limits is gate.Limits
    restore()
    assert gate.Limits().positions_max == 3
    restore = install(made_in("Case.capital", "comparison")[0], gate)
    restore()
    restore = install(made_in("QUOTE_AGE_MS_MAX", "number")[0], gate)
    assert gate.QUOTE_AGE_MS_MAX == 1_001.0
    restore()
    assert gate.QUOTE_AGE_MS_MAX == 1_000.0


def test_every_comparison_of_the_gate_is_flipped_in_every_check() -> None:
    flipped = {m.place for m in everything("gate")[0] if m.kind == "comparison"}
    without = {c.__name__ for c in gate.CHECKS} - flipped
    assert without == {"check_breakers", "check_ownership", "check_quarantine"}  # a `not` each
    assert not {"plan_entry", "leverage_wanted", "risk_share"} - flipped


def test_equivalent_mutants_exist_and_have_a_reason() -> None:
    made, _ = everything()
    assert unknown_names(made) == []
    assert all(len(reason) > 20 for reason in gate_mutations.EQUIVALENT.values())
    assert not [n for n in gate_mutations.EQUIVALENT if " <= " in n and n.startswith("gate")]


def test_the_direct_runner_runs_rows_of_parametrized_tests() -> None:
    rows = cases(("test_risk_gate",))
    stale = [test for name, test in rows if name.endswith("refuses_only_past_the_limit")]
    assert len(stale) == 5 and all(inspect.isfunction(test) for test in stale)


def test_no_mutant_of_the_gate_survives() -> None:
    """All of them: a minute at most; tests/gate_mutations.py prints the same."""
    done = subprocess.run(
        [sys.executable, "tests/gate_mutations.py"], cwd=ROOT, capture_output=True, text=True,
        timeout=280, check=False,
    )  # fmt: skip
    print(done.stdout[-2_000:])
    assert done.returncode == 0, done.stdout[-4_000:] + done.stderr[-2_000:]
    assert " 0 survivors" in done.stdout
