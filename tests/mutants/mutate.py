"""Mutants: one operator, comparison, constant, factor or letter of the equations is made wrong; a fast test must fail.

    python tests/mutants/mutate.py                              a sample, its score beside the survivors
    python tests/mutants/mutate.py --sample 0                   every mutant
    python tests/mutants/mutate.py --only helix_sim/timing      those of a file or a folder

Each mutant is a process of its own, forked once all tests are collected: it puts the wrong functions in the place of
the true ones, runs the tests that run that line, quickest first, and ends at the first failure. What runs while a
module is imported (constants, bodies of classes) is forked before that, and imported wrong. Which tests run a line is
found by coverage.py, and kept under out/. Recorded numbers (`held_still`, the gate's baselines) are left out: they kill
almost all, and cannot say which of two numbers is right.

A tool of our own, for mutmut 3 leaves out decorated functions, lambdas and class bodies by its documentation, which is
where most equations, properties and rules of this package are.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import csv
import datetime
import gc
import hashlib
import importlib.abc
import importlib.util
import itertools
import json
import math
import os
import random
import resource
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from inspect import CO_OPTIMIZED
from pathlib import Path
from types import CodeType, FunctionType
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).resolve().parent
CACHE = ROOT / "out" / "mutants"
KILLER = CACHE / f"killer-{os.getpid()}"
"""Where a mutant's process says which test failed."""

EQUAL, SCORE = HERE / "equal.yaml", HERE / "score.csv"

SUBJECTS = (
    *("helix_sim/ops", "helix_sim/timing", "helix_sim/core/collectives.py", "helix_sim/feasibility.py"),
    *("helix_sim/search/pareto.py", "helix_sim/search/family.py", "helix_sim/search/block.py"),
    *("helix_sim/search/evaluated.py", "helix_sim/search/shared_parts.py"),
)
"""What is mutated: the equations, the timing, what can exist, and the arithmetic of a search."""

TESTS = (
    *("helix_sim/core", "helix_sim/ops", "helix_sim/timing", "helix_sim/search", "tests/mutants", "tests/ops"),
    *("tests/timing", "tests/test_step.py", "tests/test_feasibility.py", "tests/test_reasons_at_their_edge.py"),
    *("tests/core", "tests/test_properties.py", "tests/search", "tests/witness"),
)
"""Where the tests are looked for, in the order in which they are measured; those that take longer than LONGEST_S are
left out."""

SLOW = ("tests/search/test_durable.py",)
"""Tests of processes that are killed: none of them would be fast."""

LONGEST_S = 3.0
"""What a test may take to be called fast, coverage included."""

BUDGET_S = 20.0
"""How long a mutant's tests may take together, the quickest of them; what they let live counts as a survivor."""

MOST_FILES = 12
"""Files of tests that are collected anew for a mutant of what import runs: those with the most tests of its file."""

AIM = 0.95


# --- What can go wrong -----------------------------------------------------------------------------------------------

OPERATORS: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.Pow: ast.Mult,
    ast.BitAnd: ast.BitOr,
}
COMPARISONS: dict[type[ast.cmpop], tuple[type[ast.cmpop], ...]] = {
    ast.Lt: (ast.LtE, ast.GtE),
    ast.LtE: (ast.Lt, ast.Gt),
    ast.Gt: (ast.GtE, ast.LtE),
    ast.GtE: (ast.Gt, ast.Lt),
    ast.Eq: (ast.NotEq,),
    ast.NotEq: (ast.Eq,),
    ast.In: (ast.NotIn,),
    ast.NotIn: (ast.In,),
    ast.Is: (ast.IsNot,),
    ast.IsNot: (ast.Is,),
}


def both_ways(pairs: str) -> dict[str, str]:
    """Names that are easily mistaken for each other, "a/b c/d", each by the other."""
    found = [pair.split("/") for pair in pairs.split()]
    return dict(found) | {b: a for a, b in found}


FUNCTIONS = both_ways("larger/smaller maximum/minimum max/min ceil_div/floor_div any/all")
LETTERS = both_ways("tpa/kvp dp/pp ep/tpf q_heads/kv_heads low/high") | {"batch": "chunks"}
OF_RECORDS = {
    "work": both_ways("tokens/rows inner/outer heads/copies weights/math"),
    "s": both_ways("stage_tokens/tokens activation_bytes/wire_bytes"),
    "rank": both_ways("held/read"),
    "form": both_ways("nvlink_bytes/network_bytes phases/network_phases"),
}
"""Letters that only a record of that name has both of."""

DROPPED = {
    "Work": "kernels flops weight_bytes kv_bytes activation_bytes idle_weight_bytes collective pieces math weights rows"
    " inner outer copies heads tokens experts_read needed",
    "sent": "stride pieces needed",
    "matmul": "weights math op_class copies",
    "memory_pass": "kernels",
}
"""Arguments that a call may go without, by function."""

NO_EQUATION = (ast.JoinedStr, ast.Raise, ast.Assert, ast.Import, ast.ImportFrom)
"""What is not mutated: sentences, refusals, imports."""
KEPT_KEYWORDS = {"strict", "kw_only", "init", "repr", "compare", "title", "sentence", "change", "kind", "dtype"}


def variants(node: ast.AST) -> Iterator[ast.expr]:
    """What may stand in a node's place."""
    match node:
        case ast.BinOp(left, op, right):
            if type(op) in OPERATORS:
                yield ast.BinOp(left, OPERATORS[type(op)](), right)
            yield left
            if isinstance(op, ast.Add | ast.Mult | ast.BitOr | ast.BitAnd):
                yield right
        case ast.Compare(left, [op], rest):
            for other in COMPARISONS[type(op)]:
                yield ast.Compare(left, [other()], rest)
        case ast.BoolOp(op, values):
            yield ast.BoolOp(ast.Or() if isinstance(op, ast.And) else ast.And(), values)
        case ast.UnaryOp(ast.Not() | ast.USub(), operand):
            yield operand
        case ast.Constant(bool(value)):
            yield ast.Constant(not value)
        case ast.Constant(int(value)):
            yield ast.Constant(value + 1)
        case ast.Constant(float(value)):
            yield ast.Constant(1.5 * value if value else 1.0)
        case ast.IfExp(_, body, orelse):
            yield body
            yield orelse
        case ast.Name(name, context) if name in FUNCTIONS:
            yield ast.Name(FUNCTIONS[name], context)
        case ast.Attribute(of, name, ast.Load()):
            known = FUNCTIONS if ast.unparse(of) == "np" else OF_RECORDS.get(ast.unparse(of), {}) | LETTERS
            if other := known.get(name):
                yield ast.Attribute(of, other, ast.Load())
        case ast.Call(ast.Name(name), arguments, keywords) if name in DROPPED:
            for left_out in keywords:
                if left_out.arg in DROPPED[name].split():
                    yield ast.Call(node.func, arguments, [keyword for keyword in keywords if keyword is not left_out])


def change_of(node: ast.AST, other: ast.expr) -> str:
    """What became what, in one line."""
    if isinstance(node, ast.Call) and isinstance(other, ast.Call):
        (gone,) = (keyword for keyword in node.keywords if keyword not in other.keywords)
        return f"{ast.unparse(node.func)}(… {ast.unparse(gone)} …) → without it"
    return f"{ast.unparse(node)} → {ast.unparse(ast.fix_missing_locations(ast.Expression(other)))}"


@dataclass(frozen=True, kw_only=True)
class Mutant:
    """One wrong module. set: makes its syntax tree wrong, and returns what makes it true again. where: the function or
    class. change: what became what, with a number where a function has it several times.
    """

    path: str
    line: int
    where: str
    change: str
    set: Callable[[], Callable[[], None]]

    @property
    def name(self) -> tuple[str, str, str]:
        """What a mutant is called, wherever its line is."""
        return self.path, self.where, self.change

    @contextlib.contextmanager
    def made(self, tree: ast.Module) -> Iterator[None]:
        """The tree, wrong while the block runs."""
        true = self.set()
        try:
            yield
        finally:
            true()


def is_type(node: ast.AST) -> bool:
    """Whether a node may be part of a union of types, as `HeadAttention | LatentAttention` is: nothing computes it."""
    if isinstance(node, ast.Name):
        return node.id[:1].isupper() and not node.id.isupper()
    return isinstance(node, ast.BinOp | ast.BitOr | ast.Load)


def mutants_of(path: str, tree: ast.Module) -> list[Mutant]:
    """Every mutant of a module, in the order of its lines."""
    found: list[Mutant] = []
    seen: Counter[tuple[str, str]] = Counter()

    def visit(node: ast.AST, where: str) -> None:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            where = f"{where}.{node.name}".lstrip(".")
        for name, child in ast.iter_fields(node):
            if name in ("decorator_list", "annotation", "returns", "args") and not isinstance(node, ast.Call):
                if isinstance(child, ast.arguments):
                    for place, default in enumerate(child.defaults):
                        consider(child.defaults, place, default, where)
                continue
            if isinstance(child, list):
                for place, each in enumerate(child):
                    consider(child, place, each, where)
            else:
                consider(node, name, child, where)

    def consider(parent: Any, key: Any, child: Any, where: str) -> None:
        if not isinstance(child, ast.AST) or isinstance(child, NO_EQUATION):
            return
        if isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING":
            return
        if isinstance(child, ast.keyword) and child.arg in KEPT_KEYWORDS:
            return
        if isinstance(child, ast.BinOp) and all(map(is_type, ast.walk(child))):
            return
        if isinstance(child, ast.Call) and ast.unparse(child.func) in ("field", "Rule"):
            visit(child, where)
            return
        for other in variants(child):
            change = change_of(child, other)
            seen[where, change] += 1
            number = f" ({seen[where, change]})" if seen[where, change] > 1 else ""
            found.append(
                Mutant(
                    path=path,
                    line=getattr(child, "lineno", 1),
                    where=where,
                    change=change + number,
                    set=lambda other=other: setter(parent, key, other),
                )
            )
        visit(child, where)

    visit(tree, "")
    return found


def setter(parent: Any, key: Any, value: ast.AST) -> Callable[[], None]:
    """Put a node in its place in a list of nodes, or in a node's field; what puts the old one back."""
    if isinstance(parent, list):
        old, parent[key] = parent[key], value
    else:
        old = getattr(parent, key)
        setattr(parent, key, value)
    return lambda: setter(parent, key, old) and None


def files(subjects: Sequence[str]) -> list[str]:
    """Python files of files and folders, as paths from the root."""
    found = [
        path for each in subjects for path in ([ROOT / each] if each.endswith(".py") else (ROOT / each).glob("*.py"))
    ]
    return sorted(path.relative_to(ROOT).as_posix() for path in found)


def all_mutants(paths: Sequence[str]) -> tuple[dict[str, ast.Module], list[Mutant]]:
    """The syntax tree of each file, and the mutants of all."""
    trees = {path: ast.parse((ROOT / path).read_text(encoding="utf-8")) for path in paths}
    return trees, [mutant for path, tree in trees.items() for mutant in mutants_of(path, tree)]


# --- Which tests run a line ------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Coverage:
    """seconds: of each test. tests: of each file and line, those that run it; line 0 has those of the whole file.

    budget_s: how long a mutant's tests may take together.
    """

    seconds: dict[str, float]
    tests: dict[str, dict[int, set[str]]]
    budget_s: float = BUDGET_S

    def of(self, mutant: Mutant) -> list[str]:
        """Tests that a mutant must pass, quickest first: those that run its line, or its file where import runs it."""
        lines = self.tests.get(mutant.path, {})
        found = sorted(lines.get(mutant.line) or lines.get(0, set()), key=lambda test: self.seconds[test])
        ends = itertools.accumulate(self.seconds[test] for test in found)
        return [
            test
            for test, end in zip(found, ends, strict=True)
            if self.seconds[test] <= LONGEST_S and end <= self.budget_s
        ]


OPTIONS = ("-q", "-p", "no:cacheprovider", "-o", "addopts=", "--doctest-modules", "--import-mode=importlib")
OPTIONS += ("--assert=plain", "--rootdir", str(ROOT))


def test_files() -> list[str]:
    """Files with fast tests: those that pytest would collect in TESTS."""
    found = [path for each in TESTS for path in files([each])]
    return [path for path in found if path not in SLOW and ("/test_" in path or path.startswith("helix_sim"))]


def kept(path: str) -> Path:
    """Where the coverage of a file of tests is kept: it changes with that file, what is mutated, and what tests share.

    Not with the rest of the package: what that changes in which tests run a line can let a mutant live, never kill one.
    """
    shared = {each for each in (ROOT / "tests").rglob("*.py") if not each.name.startswith("test_")}
    shared = {ROOT / path for path in files(SUBJECTS)} | (shared - {Path(__file__).resolve()})
    found = hashlib.sha256((ROOT / path).read_bytes())
    for each in sorted(shared):
        found.update(each.relative_to(ROOT).as_posix().encode() + each.read_bytes())
    return CACHE / f"{path.replace('/', '.')}-{found.hexdigest()[:16]}.json"


def measure(places: Mapping[str, Path]) -> None:
    """In a process of its own: run files of tests under coverage.py, and keep in a place each which lines they run.

    What is measured of one file stays measured where a later one is interrupted.
    """
    import coverage
    import pytest

    subjects = [str(ROOT / path) for path in files(SUBJECTS)]
    watched = coverage.Coverage(data_file=None, config_file=False, include=subjects)
    seconds: dict[str, float] = {}

    class Watch:
        @pytest.hookimpl(wrapper=True)
        def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
            watched.switch_context(item.nodeid)
            begin = time.process_time()  # a loaded machine makes no test slower
            result = yield
            seconds[item.nodeid] = round(time.process_time() - begin, 4)
            watched.switch_context("between tests")
            return result

    CACHE.mkdir(parents=True, exist_ok=True)
    for path, place in places.items():
        seconds.clear()
        watched.erase()
        watched.start()
        code = pytest.main([*OPTIONS, "-x", path], plugins=[Watch()])
        watched.stop()
        if code not in (0, 5):
            sys.exit(f"the tests of {path} do not pass as they are (pytest ends with {int(code)})")
        data = watched.get_data()
        lines: dict[str, dict[str, list[int]]] = {}
        for subject in data.measured_files():
            for line, contexts in data.contexts_by_lineno(subject).items():
                for test in set(contexts) & seconds.keys():
                    lines.setdefault(test, {}).setdefault(Path(subject).relative_to(ROOT).as_posix(), []).append(line)
        place.write_text(json.dumps({test: {"s": seconds[test], "lines": lines.get(test, {})} for test in seconds}))


def coverage_now(*, as_it_is: bool = False, budget_s: float = BUDGET_S) -> Coverage:
    """Which tests run which lines of the code of today. as_it_is: by the tests that were measured before, alone."""
    places = {path: kept(path) for path in test_files()}
    missing = {path: place for path, place in places.items() if not place.exists()}
    if missing and not as_it_is:
        if (status := run_forked(lambda: measure(missing), most_cpu_s=None, quiet=False)) != 0:
            sys.exit(status)
        missing = {}
    places = {path: place for path, place in places.items() if path not in missing}
    found = Coverage(seconds={}, tests={}, budget_s=budget_s)
    for place in places.values():
        for test, each in json.loads(place.read_text()).items():
            found.seconds[test] = each["s"]
            for subject, lines in each["lines"].items():
                for line in (0, *lines):
                    found.tests.setdefault(subject, {}).setdefault(line, set()).add(test)
    return found


# --- Running them ----------------------------------------------------------------------------------------------------


class Wrong(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Imports one module from a syntax tree."""

    def __init__(self, path: str, tree: ast.Module) -> None:
        self.name, self.path, self.tree = path.removesuffix(".py").replace("/", "."), path, tree

    def find_spec(self, name: str, path: Any, target: Any = None) -> Any:
        """The module's own spec, with this loader."""
        return (
            importlib.util.spec_from_file_location(name, ROOT / self.path, loader=self) if name == self.name else None
        )

    def exec_module(self, module: Any) -> None:
        """Run the wrong module."""
        exec(compile(ast.fix_missing_locations(self.tree), str(ROOT / self.path), "exec"), module.__dict__)


def run_forked(work: Callable[[], None], *, most_cpu_s: int | None = None, quiet: bool = True) -> int:
    """What a function ends with in a process of its own; a signal's number, below zero, where one ended it."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.setsid()
            if quiet:
                nothing = os.open(os.devnull, os.O_RDWR)
                for stream in (0, 1, 2):
                    os.dup2(nothing, stream)
            if most_cpu_s:
                resource.setrlimit(resource.RLIMIT_CPU, (most_cpu_s, most_cpu_s))
            work()
            code = 0
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else 1
            if isinstance(stop.code, str):
                print(stop.code, file=sys.stderr)
        except BaseException:
            import traceback

            traceback.print_exc()
        finally:
            sys.stdout.flush()
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def wrong_functions(mutant: Mutant, tree: ast.Module) -> list[tuple[CodeType, CodeType]] | None:
    """Each function of a module that the mutant changes, as it is and wrong; None where what import runs is changed."""
    true = compile((ROOT / mutant.path).read_text(encoding="utf-8"), str(ROOT / mutant.path), "exec")
    with mutant.made(tree):
        wrong = compile(ast.fix_missing_locations(tree), str(ROOT / mutant.path), "exec")
    found: list[tuple[CodeType, CodeType]] = []

    def walk(a: CodeType, b: CodeType) -> bool:
        inside = [[each for each in code.co_consts if isinstance(each, CodeType)] for code in (a, b)]
        plain = [[repr(each) for each in code.co_consts if not isinstance(each, CodeType)] for code in (a, b)]
        if len(inside[0]) != len(inside[1]):
            return False
        if a != b and a.co_flags & CO_OPTIMIZED:
            found.append((a, b))
            return a.co_freevars == b.co_freevars
        alike = a.co_code == b.co_code and plain[0] == plain[1]
        return alike and all(walk(*pair) for pair in zip(*inside, strict=True))

    return found if walk(true, wrong) else None


def put_wrong(functions: Sequence[tuple[CodeType, CodeType]], there: Sequence[FunctionType]) -> None:
    """Give every function that is there its wrong code."""
    for each in there:
        for true, wrong in functions:
            if each.__code__ == true:
                each.__code__ = wrong
                break


def functions_of(paths: Iterable[str]) -> dict[str, list[FunctionType]]:
    """Every function that there is now of each module."""
    modules = {path.removesuffix(".py").replace("/", "."): path for path in paths}
    found: dict[str, list[FunctionType]] = {path: [] for path in paths}
    for each in gc.get_objects():
        if isinstance(each, FunctionType) and each.__module__ in modules:
            found[modules[each.__module__]].append(each)
    return found


def imported_wrong(mutant: Mutant, tree: ast.Module, tests: Sequence[str]) -> None:
    """In a process that has not imported helix_sim: import a wrong module, and run tests on it."""
    import pytest

    mutant.set()
    sys.meta_path.insert(0, Wrong(mutant.path, tree))
    importlib.import_module(mutant.path.removesuffix(".py").replace("/", "."))
    paths = [path for path, _ in Counter(test.partition("::")[0] for test in tests).most_common(MOST_FILES)]
    place = {test: index for index, test in enumerate(tests)}

    class Choose:
        def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
            if report.failed:
                KILLER.write_text(report.nodeid)

        def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
            items[:] = sorted((item for item in items if item.nodeid in place), key=lambda item: place[item.nodeid])

    sys.exit(int(pytest.main([*OPTIONS, "-x", *paths], plugins=[Choose()])))


def survivors(
    chosen: Sequence[Mutant],
    trees: Mapping[str, ast.Module],
    covered: Coverage,
    say: Callable[[Mutant], None],
    until_s: float = math.inf,
) -> tuple[list[Mutant], Sequence[Mutant]]:
    """Mutants on which no test fails, `say` hears of each; one that cannot be imported or does not end is none.

    And the mutants that were judged: all, or those of the draw up to where time.perf_counter() came to until_s. One
    that takes ten seconds of a processor more than its tests may does not end, and is killed.

    A test that fails is run once on the true equations too: what fails there kills nothing.
    """
    import pytest

    alive: list[Mutant] = []
    later: list[tuple[Mutant, list[tuple[CodeType, CodeType]]]] = []
    unjudged: list[Mutant] = []
    right: set[str] = set()

    def passes(test: str) -> bool:
        if test not in right and run_forked(lambda: sys.exit(int(pytest.main([*OPTIONS, test])))) == 0:
            right.add(test)
        return test in right

    def judge(mutant: Mutant, work: Callable[[], None]) -> None:
        while covered.of(mutant):
            KILLER.unlink(missing_ok=True)
            if run_forked(work, most_cpu_s=int(covered.budget_s) + 10) == 0:
                break
            if not KILLER.exists() or passes(test := KILLER.read_text()):
                return
            print(f"left out, for it fails on the true equations: {test}", file=sys.stderr)
            covered.seconds[test] = float("inf")
        alive.append(mutant)
        say(mutant)

    def import_and_run(mutant: Mutant) -> None:
        imported_wrong(mutant, trees[mutant.path], covered.of(mutant))

    for mutant in chosen:
        functions = wrong_functions(mutant, trees[mutant.path])
        if functions is None:
            judge(mutant, partial(import_and_run, mutant))
        else:
            later.append((mutant, functions))

    class Loop:
        def pytest_runtestloop(self, session: pytest.Session) -> bool:
            items = {item.nodeid: item for item in session.items}
            there = functions_of(trees)
            gc.freeze()  # so that a child that collects garbage copies none of it

            def work(mutant: Mutant, functions: Sequence[tuple[CodeType, CodeType]]) -> None:
                session.config.pluginmanager.unregister(name="terminalreporter")
                put_wrong(functions, there[mutant.path])
                mine = [items[test] for test in covered.of(mutant) if test in items]
                for item, following in zip(mine, [*mine[1:], None], strict=True):
                    item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
                    if session.testsfailed:
                        KILLER.write_text(item.nodeid)
                        sys.exit(1)

            for mutant, functions in later:
                if time.perf_counter() > until_s:
                    unjudged.append(mutant)
                    break
                judge(mutant, partial(work, mutant, functions))
            return True

    status = pytest.main([*OPTIONS, *test_files()], plugins=[Loop()])
    if status != 0:
        sys.exit(f"the tests cannot be collected (pytest ends with {int(status)})")
    judged = chosen[: chosen.index(unjudged[0])] if unjudged else chosen
    return [mutant for mutant in alive if mutant in judged], judged


def no_shrinking() -> None:
    """Let a property's first counterexample be enough: to make it small takes a minute, and kills no better."""
    from hypothesis import Phase, settings

    phases = (Phase.explicit, Phase.reuse, Phase.generate)
    settings.register_profile("mutants", phases=phases, database=None, deadline=None, print_blob=False)
    settings.load_profile("mutants")


def warm() -> None:
    """Import what every mutant needs, but nothing of helix_sim."""
    os.environ.update(CI="1", PYTEST_DISABLE_PLUGIN_AUTOLOAD="1", PYTHONDONTWRITEBYTECODE="1")
    os.environ.update(OPENBLAS_NUM_THREADS="1", OMP_NUM_THREADS="1")
    sys.dont_write_bytecode = True
    os.chdir(ROOT)
    sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
    for name in ("numpy", "pandas", "scipy.special", "pydantic", "yaml", "hypothesis.strategies", "pytest", "doctest"):
        importlib.import_module(name)
    no_shrinking()
    assert not any(name.startswith("helix_sim") for name in sys.modules)


# --- The score -------------------------------------------------------------------------------------------------------


def known_equal() -> dict[tuple[str, str, str], str]:
    """Mutants that are no different, and why, from `equal.yaml`."""
    import yaml

    return {
        (each["path"], each["where"], each["change"]): each["why"] for each in yaml.safe_load(EQUAL.read_text()) or []
    }


def interval(killed: int, of: int) -> tuple[float, float]:
    """Where the share of all mutants that are killed lies with a chance of 95 %, by that of a draw [Wilson, 1927].

    >>> [round(end, 3) for end in interval(95, 100)]
    [0.888, 0.978]
    """
    z, share = 1.96, killed / max(of, 1)
    middle, scale = share + z * z / (2 * max(of, 1)), 1 + z * z / max(of, 1)
    reach = z * math.sqrt(share * (1 - share) / max(of, 1) + (z / (2 * max(of, 1))) ** 2)
    return max((middle - reach) / scale, 0.0), min((middle + reach) / scale, 1.0)


def write_score(chosen: Sequence[Mutant], alive: Sequence[Mutant], equal: Mapping[Any, str], head: str) -> None:
    """The score of every file, for the documentation."""
    with SCORE.open("w", newline="") as file:
        file.write(f"# {head}\n")
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow(["path", "mutants", "killed", "equal", "survived"])
        for path in sorted({mutant.path for mutant in chosen}):
            mine = [mutant for mutant in chosen if mutant.path == path]
            left = [mutant for mutant in alive if mutant.path == path]
            same = sum(mutant.name in equal for mutant in left)
            rows.writerow([path, len(mine), len(mine) - len(left), same, len(left) - same])


def main() -> int:
    """Exit code 0 where the aim is reached and every survivor is known to be equal."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--sample", type=int, default=400, help="how many mutants are drawn; 0 for all")
    parser.add_argument("--seed", type=int, default=12, help="of the draw")
    parser.add_argument("--only", action="append", default=[], help="a file or a folder; may be given again")
    parser.add_argument("--minutes", type=float, help="after which the rest of the draw is left")
    parser.add_argument("--budget", type=float, default=BUDGET_S, help="seconds that a mutant's tests take at most")
    parser.add_argument("--measured", action="store_true", help="tests whose lines are known from before, alone")
    parser.add_argument("--write", action="store_true", help="keep the score for the documentation")
    given = parser.parse_args()
    warm()
    covered = coverage_now(as_it_is=given.measured, budget_s=given.budget)
    trees, found = all_mutants(files(given.only or SUBJECTS))
    chosen = random.Random(given.seed).sample(found, min(given.sample or len(found), len(found)))
    equal, begin = known_equal(), time.perf_counter()
    shown = os.fdopen(os.dup(2), "w")  # pytest takes the other

    def say(mutant: Mutant) -> None:
        fate = f"equal: {equal[mutant.name]}" if mutant.name in equal else "SURVIVED"
        print(f"{mutant.path}:{mutant.line} {mutant.where}: {mutant.change}: {fate}", file=shown, flush=True)

    until_s = begin + 60 * given.minutes if given.minutes else math.inf
    alive, judged = survivors(chosen, trees, covered, say, until_s)
    chosen = list(judged)
    left = [mutant for mutant in alive if mutant.name not in equal]
    killed, differ = len(chosen) - len(alive), len(chosen) - (len(alive) - len(left))
    low, high = interval(killed, differ) if len(chosen) < len(found) else (killed / differ, killed / differ)
    command = " ".join(["python tests/mutants/mutate.py", *sys.argv[1:]])
    head = f"{command}: {len(chosen)} of {len(found)} mutants, {datetime.date.today().isoformat()}"
    head += f"; of those that differ {killed / differ:.1%} are killed"
    head += f", and of all {low:.1%} to {high:.1%} with a chance of 95 %" * (len(chosen) < len(found))
    print(f"{head}, {time.perf_counter() - begin:.0f} s: {killed} killed, ", end="")
    print(f"{len(alive) - len(left)} equal, {len(left)} survived")
    if given.write:
        write_score(chosen, alive, equal, head)
    return 0 if killed / differ >= AIM else 1


if __name__ == "__main__":
    sys.exit(main())
