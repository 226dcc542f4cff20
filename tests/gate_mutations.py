"""Mutation run over what decides about entries: would a test notice a wrong sign?

    python tests/gate_mutations.py                    everything; prints the survivors
    python tests/gate_mutations.py --only gate        one module
    python tests/gate_mutations.py --share 0.2 --seed 7      a sample

Every comparison is flipped to its neighbours, every `and` to `or`, every sign of arithmetic is
turned, every number is moved one step up and down. A mutant's code takes the place of the real
one in this process, in the very function objects that everybody imported, and the direct tests of
these modules run until one fails. One that none of them notices has survived. Equivalent mutants,
which no test can notice, are named below with the reason; a name that fits no mutant is an error.
"""

from __future__ import annotations

import argparse
import ast
import copy
import importlib
import inspect
import itertools
import random
import sys
import time
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
for folder in (str(ROOT), str(ROOT / "tests")):
    if folder not in sys.path:
        sys.path.insert(0, folder)

MODULES = ("gate", "rotation", "arming", "instruments", "breakers")
TESTS = ("test_risk_gate", "test_risk_gate_bounds", "test_risk_breakers", "test_risk_rotation")
SLOW = {  # storms of many steps; what they would notice, a direct test has to
    "test_never_a_fourth_and_no_entry_twice_under_random_interleavings",
    "test_after_the_storm_our_books_are_the_exchanges",
}
FLIPS: dict[type[ast.cmpop], tuple[type[ast.cmpop], ...]] = {
    ast.Lt: (ast.LtE, ast.GtE),
    ast.LtE: (ast.Lt, ast.Gt),
    ast.Gt: (ast.GtE, ast.LtE),
    ast.GtE: (ast.Gt, ast.Lt),
    ast.Eq: (ast.NotEq,),
    ast.NotEq: (ast.Eq,),
    ast.Is: (ast.IsNot,),
    ast.IsNot: (ast.Is,),
    ast.In: (ast.NotIn,),
    ast.NotIn: (ast.In,),
}
SIGNS: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.Mult,
}
# No test can tell these from the real thing: "module:place:what" -> why.
_SIGN = "the sign of a side is 1 or -1: times and by are one"
_EXPONENT = "quantize reads the exponent alone"
EQUIVALENT: dict[str, str] = {
    "gate:risk_share:(signal.target - case.touch) * signal.sign -> "
    "(signal.target - case.touch) / signal.sign": _SIGN,
    "gate:plan_entry:(case.touch - stop) * signal.sign -> "
    "(case.touch - stop) / signal.sign": _SIGN,
    "gate:check_cost:(case.touch - plan.stop) * case.signal.sign -> "
    "(case.touch - plan.stop) / case.signal.sign": _SIGN,
    "gate:check_funding:case.funding.rate * case.signal.sign -> "
    "case.funding.rate / case.signal.sign": _SIGN,
    "gate:check_funding:(case.touch - plan.stop) * case.signal.sign -> "
    "(case.touch - plan.stop) / case.signal.sign": _SIGN,
    "gate:check_collar:(plan.price - case.touch) / case.touch * BPS * sign -> "
    "(plan.price - case.touch) / case.touch * BPS / sign": _SIGN,
    "gate:check_collar:(bound - plan.price) * sign -> (bound - plan.price) / sign": _SIGN,
    "gate:check_collar:(plan.price - plan.stop) * sign -> "
    "(plan.price - plan.stop) / sign": _SIGN,
    "gate:check_collar:(plan.target - plan.price) * sign -> "
    "(plan.target - plan.price) / sign": _SIGN,
    "gate:_text:Decimal('1e-10') -> Decimal('2E-10')": _EXPONENT,
    "gate:_text:Decimal('1e-10') -> Decimal('0E-10')": _EXPONENT,
    "breakers:SHARE_UNIT:Decimal('0.0001') -> Decimal('0.0002')": _EXPONENT,
    "breakers:SHARE_UNIT:Decimal('0.0001') -> Decimal('0.0000')": _EXPONENT,
    "breakers:follow:facts.result <= tally.peak -> facts.result < tally.peak":
        "a peak that is reached again is the same peak",
    "breakers:share_of:equity > 0 -> equity >= 0":
        "with nothing left, what was lost is all of it by either branch",
}  # fmt: skip


@dataclass(frozen=True)
class Mutant:
    """One change of one module. `place`: the function or the constant that it is in."""

    module: str
    place: str
    line: int
    what: str  # the expression before -> after
    kind: str  # comparison, boolean, sign, number
    order: int  # of the changed node in a walk of the tree
    changed: ast.AST
    original: ast.Module

    @property
    def name(self) -> str:
        return f"{self.module}:{self.place}:{self.what}"

    def tree(self) -> ast.Module:
        """The whole module with the one node changed."""
        made = copy.deepcopy(self.original)
        old = next(itertools.islice(ast.walk(made), self.order, None))
        changed = copy.deepcopy(self.changed)

        class Swap(ast.NodeTransformer):
            def visit(self, node: ast.AST) -> Any:
                return ast.copy_location(changed, node) if node is old else self.generic_visit(node)

        return ast.fix_missing_locations(Swap().visit(made))  # type: ignore[no-any-return]


# --- making them -------------------------------------------------------------------------------


def _step(text: str) -> Decimal:
    """One in the last written digit."""
    exponent = Decimal(text.replace("_", "")).as_tuple().exponent
    assert isinstance(exponent, int)
    return Decimal(1).scaleb(min(exponent, 0))


def _moved(node: ast.expr) -> list[ast.expr]:
    """A number one step up and down; the text of a Decimal too."""
    if isinstance(node, ast.Constant) and type(node.value) in (int, float):
        whole = float(node.value).is_integer()
        step = type(node.value)(1 if whole else _step(repr(node.value)))
        return [ast.Constant(node.value + step), ast.Constant(node.value - step)]
    is_text = isinstance(node, ast.Call) and ast.unparse(node.func) == "Decimal" and node.args
    if is_text and isinstance(node.args[0], ast.Constant):  # type: ignore[union-attr]
        text = str(node.args[0].value)  # type: ignore[union-attr]
        try:
            made = [str(Decimal(text) + _step(text)), str(Decimal(text) - _step(text))]
        except (ArithmeticError, AssertionError):
            return []  # Infinity
        return [ast.Call(node.func, [ast.Constant(text)], []) for text in made]  # type: ignore[union-attr]
    return []


def _changes(node: ast.AST) -> Iterator[tuple[str, ast.AST]]:
    """(kind, replacement) of one node."""
    if isinstance(node, ast.Compare):
        for index, op in enumerate(node.ops):
            for flipped in FLIPS[type(op)]:
                made = copy.deepcopy(node)
                made.ops[index] = flipped()
                yield "comparison", made
    elif isinstance(node, ast.BoolOp):
        other = ast.Or() if isinstance(node.op, ast.And) else ast.And()
        yield "boolean", ast.BoolOp(other, node.values)
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        yield "boolean", node.operand
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        yield "sign", node.operand
    elif isinstance(node, ast.BinOp) and type(node.op) in SIGNS:
        yield "sign", ast.BinOp(node.left, SIGNS[type(node.op)](), node.right)
    elif isinstance(node, ast.IfExp):
        yield "boolean", ast.IfExp(ast.UnaryOp(ast.Not(), node.test), node.body, node.orelse)
    elif isinstance(node, ast.Call | ast.Constant):
        for moved in _moved(node):
            yield "number", moved


def _skipped(tree: ast.Module) -> set[int]:
    """Nodes that are no decisions: annotations, asserts, the numbers inside a Decimal's text."""
    found: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            inner: list[ast.AST | None] = [arg.annotation for arg in node.args.args]
            inner += [node.returns, *node.decorator_list]
        elif isinstance(node, ast.AnnAssign):
            inner = [node.annotation]
        elif isinstance(node, ast.Assert):
            inner = [node]
        elif isinstance(node, ast.Call) and ast.unparse(node.func) == "Decimal":
            inner = list(node.args)
        elif isinstance(node, ast.Assign) and ast.unparse(node.value).startswith("TypeVar"):
            inner = [node]
        else:
            continue
        found |= {id(part) for each in inner if each is not None for part in ast.walk(each)}
    return found


def _places(tree: ast.Module) -> Iterator[tuple[str, ast.AST]]:
    """Each function and constant with its dotted name."""
    for node in tree.body:
        if isinstance(node, ast.ClassDef):
            for inner in node.body:
                if isinstance(inner, ast.FunctionDef):
                    yield f"{node.name}.{inner.name}", inner
                elif isinstance(inner, ast.AnnAssign) and inner.value is not None:
                    yield f"{node.name}.{ast.unparse(inner.target)}", inner
        elif isinstance(node, ast.FunctionDef):
            yield node.name, node
        elif isinstance(node, ast.AnnAssign | ast.Assign) and node.value is not None:
            target = node.target if isinstance(node, ast.AnnAssign) else node.targets[0]
            yield ast.unparse(target), node


def mutants(source: str, module: str) -> Iterator[Mutant]:
    """Every mutant of a module's source."""
    tree = ast.parse(source)
    skipped = _skipped(tree)
    orders = {id(node): order for order, node in enumerate(ast.walk(tree))}
    for place, where in _places(tree):
        for node in ast.walk(where):
            if id(node) in skipped:
                continue
            for kind, changed in _changes(node):
                what = f"{ast.unparse(node)} -> {ast.unparse(changed)}"
                line, order = getattr(node, "lineno", 0), orders[id(node)]
                yield Mutant(module, place, line, what, kind, order, changed, tree)


# --- putting one in the real one's place -------------------------------------------------------


def _code(module_code: types.CodeType, place: str) -> types.CodeType:
    code = module_code
    for name in place.split("."):
        code = next(c for c in code.co_consts if inspect.iscode(c) and c.co_name == name)
    return code


def install(mutant: Mutant, module: types.ModuleType) -> Callable[[], None]:
    """Make the module behave like the mutant; the answer puts it right again."""
    compiled = compile(mutant.tree(), str(module.__file__), "exec")
    head, _, tail = mutant.place.partition(".")
    target = getattr(module, head)
    if isinstance(target, type) and tail:
        member = inspect.getattr_static(target, tail)
        if isinstance(member, property):
            return _swap_code(member.fget, _code(compiled, mutant.place))
        if inspect.isfunction(member):
            return _swap_code(member, _code(compiled, mutant.place))
        return _swap_default(target, tail, compiled, module)
    if inspect.isfunction(target):
        return _swap_code(target, _code(compiled, mutant.place))
    fresh = _run(compiled, module)[head]
    others = [each for name, each in sys.modules.items() if name.startswith("risk.")]
    users = [module, *(each for each in others if vars(each).get(head) is target)]
    for each in users:  # whoever imported the name
        setattr(each, head, fresh)

    def restore() -> None:
        for each in users:
            setattr(each, head, target)

    return restore


def _swap_code(function: Any, code: types.CodeType) -> Callable[[], None]:
    real = function.__code__
    function.__code__ = code

    def restore() -> None:
        function.__code__ = real

    return restore


def _swap_default(
    cls: type, name: str, compiled: types.CodeType, module: types.ModuleType
) -> Callable[[], None]:
    """A default of a dataclass stands in its __init__."""
    made: Any = getattr(types.SimpleNamespace(**_run(compiled, module)), cls.__name__)
    init: Any = cls.__init__
    real = init.__defaults__
    init.__defaults__ = made.__init__.__defaults__

    def restore() -> None:
        init.__defaults__ = real

    return restore


def _run(compiled: types.CodeType, module: types.ModuleType) -> dict[str, Any]:
    """The mutant's own namespace, for its constants."""
    shadow = types.ModuleType(module.__name__)
    shadow.__file__ = module.__file__
    real = sys.modules[module.__name__]
    sys.modules[module.__name__] = shadow  # dataclasses look their module up
    try:
        exec(compiled, shadow.__dict__)
    finally:
        sys.modules[module.__name__] = real
    return shadow.__dict__


# --- running the tests -------------------------------------------------------------------------


Case = tuple[str, Callable[[], None]]


def cases(names: tuple[str, ...] = TESTS) -> list[Case]:
    """Every test that needs no fixture, each of its parametrized rows by itself."""
    made: list[Case] = []
    for name in names:
        module = importlib.import_module(name)
        for test, function in vars(module).items():
            if test.startswith("test_") and test not in SLOW and inspect.isfunction(function):
                made += _rows(f"{name}.{test}", function)
    return made


def _rows(name: str, function: Callable[..., None]) -> list[Case]:
    marks = [m for m in getattr(function, "pytestmark", []) if m.name == "parametrize"]
    tables = []
    for mark in marks:
        names = mark.args[0]
        keys = [k.strip() for k in names.split(",")] if isinstance(names, str) else list(names)
        rows = [row if len(keys) > 1 else (row,) for row in mark.args[1]]
        tables.append([dict(zip(keys, row, strict=True)) for row in rows])
    wanted = set(inspect.signature(function).parameters)
    made = []
    for combination in itertools.product(*tables):
        arguments = {k: v for row in combination for k, v in row.items()}
        if set(arguments) == wanted:
            made.append((name, lambda f=function, a=arguments: f(**a)))
    return made


def noticed_by(tests: list[Case]) -> str:
    """The first test that fails; empty when none does."""
    for name, test in tests:
        try:
            test()
        except (KeyboardInterrupt, MemoryError):
            raise
        except BaseException:  # noqa: BLE001 - pytest.raises fails with an outcome of its own
            return name
    return ""


def survivors(
    made: list[Mutant], tests: list[Case], modules: dict[str, types.ModuleType]
) -> list[Mutant]:
    """Those that no test notices. The test that noticed the last one of a place goes first."""
    assert not noticed_by(tests), "the tests must pass on the real thing"
    last: dict[str, str] = {}
    found = []
    for mutant in made:
        restore = install(mutant, modules[mutant.module])
        try:
            first = last.get(mutant.place, "")
            ordered = sorted(tests, key=lambda case: case[0] != first)
            name = noticed_by(ordered)
        finally:
            restore()
        last[mutant.place] = name or first
        if not name:
            found.append(mutant)
    return found


def everything(only: str = "") -> tuple[list[Mutant], dict[str, types.ModuleType]]:
    made: list[Mutant] = []
    modules = {}
    for name in MODULES:
        if only in ("", name):
            modules[name] = importlib.import_module(f"risk.{name}")
            made += mutants((ROOT / "risk" / f"{name}.py").read_text(), name)
    return made, modules


def unknown_names(made: list[Mutant]) -> list[str]:
    """Equivalents that name no mutant (any more)."""
    names = {mutant.name for mutant in made}
    return [name for name in EQUIVALENT if name not in names]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", choices=("", *MODULES))
    parser.add_argument("--share", type=float, default=1.0, help="of all mutants, at random")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1 << 31))
    args = parser.parse_args()
    made, modules = everything(args.only)
    stale = [] if args.only else unknown_names(made)
    wanted = [mutant for mutant in made if mutant.name not in EQUIVALENT]
    if args.share < 1.0:
        chance = random.Random(args.seed)
        wanted = [mutant for mutant in wanted if chance.random() < args.share]
        print(f"seed {args.seed}")
    tests = cases()
    started = time.monotonic()
    found = survivors(wanted, tests, modules)
    for mutant in found:
        print(f"SURVIVED {mutant.kind:10} line {mutant.line:3} {mutant.name}")
    for name in stale:
        print(f"NO SUCH MUTANT {name}")
    kinds = {kind: sum(1 for m in wanted if m.kind == kind) for kind in
             ("comparison", "boolean", "sign", "number")}  # fmt: skip
    print(
        f"{len(wanted)} mutants {kinds}, {len(EQUIVALENT)} equivalent ones left out, "
        f"{len(tests)} test rows, {len(found)} survivors, {time.monotonic() - started:.0f} s"
    )
    return 1 if found or stale else 0


if __name__ == "__main__":
    raise SystemExit(main())
