"""Imports point down, nothing imports in a circle, and the heavy packages are where design says they are."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import helix_sim

PACKAGE = Path(helix_sim.__file__).parent
WITNESS = Path(__file__).parent / "witness"

ORDER = [
    {"cli", "__main__"},
    {"output"},
    {"answers", "gate", "paper"},
    {"silicon"},
    {"search"},
    {"stacks", "one_layout"},
    {"step", "feasibility"},
    {"timing"},
    {"ops"},
    {"specs"},
    {"core"},
]
"""Folders, and modules beside them, from the top down; each imports from its own row or below."""

RANK = {name: rank for rank, row in enumerate(ORDER) for name in row}
EQUATIONS = {"core", "specs", "ops", "timing", "feasibility", "step", "one_layout"}


def files() -> list[Path]:
    return sorted(path for path in PACKAGE.rglob("*.py") if "data" not in path.relative_to(PACKAGE).parts)


def name_of(path: Path) -> str:
    """A file's module, `helix_sim.core.layout`; a folder's `__init__.py` is the folder."""
    parts = ("helix_sim", *path.relative_to(PACKAGE).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)


MODULES = {name_of(path): path for path in files()}


def place(module: str) -> str:
    """The folder, or the module beside the folders, that a module belongs to; "" for the package itself."""
    return [*module.split("."), ""][1]


def imports(path: Path) -> Iterator[tuple[str, list[str], bool]]:
    """(module, names, whether at the file's top level) of each import that runs, those inside functions too."""

    def walk(node: ast.AST, top: bool) -> Iterator[tuple[str, list[str], bool]]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.If) and getattr(child.test, "id", "") == "TYPE_CHECKING":
                continue
            if isinstance(child, ast.ImportFrom):
                assert not child.level, f"{path}: imports are absolute"
                yield child.module or "", [alias.name for alias in child.names], top
            elif isinstance(child, ast.Import):
                yield from ((alias.name, [], top) for alias in child.names)
            yield from walk(child, top and not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef))

    return walk(ast.parse(path.read_text(encoding="utf-8")), True)


def imported(path: Path) -> set[str]:
    """Modules of helix_sim that a file imports; of `from helix_sim.ops import attention`, helix_sim.ops.attention."""
    found = set()
    for module, names, _ in imports(path):
        if module.split(".")[0] == "helix_sim":
            inner = {f"{module}.{name}" for name in names} & set(MODULES)
            found |= inner | ({module} if not names or len(inner) < len(names) else set())
    return found


def who_imports(package: str) -> set[str]:
    return {
        module for module, path in MODULES.items() if any(name.split(".")[0] == package for name, _, _ in imports(path))
    }


@pytest.mark.parametrize("module", [module for module in MODULES if place(module) in RANK])
def test_imports_point_down(module):
    here = place(module)
    above = {name for name in imported(MODULES[module]) if RANK.get(place(name), len(ORDER)) < RANK[here]}
    assert not above, f"{module} imports {sorted(above)} from above"


def test_every_module_has_its_place_in_the_order():
    # the package itself names modules that are loaded at first use; kernels stand apart
    assert {place(module) for module in MODULES} <= set(RANK) | {"", "kernels"}


def test_no_module_imports_itself_by_way_of_others():
    below = {module: {name for name in imported(path) if name != "helix_sim"} for module, path in MODULES.items()}
    del below["helix_sim"]
    while leaves := {module for module, names in below.items() if not names & set(below)}:
        below = {module: names for module, names in below.items() if module not in leaves}
    assert not below, f"each of {sorted(below)} is in a circle or imports one that is"


def test_kernels_stand_apart():
    for module in MODULES:
        if place(module) == "kernels":
            assert {place(name) for name in imported(MODULES[module])} <= {"", "kernels", "core", "specs"}, module


@pytest.mark.parametrize("path", sorted(WITNESS.glob("[!t]*.py")), ids=lambda path: path.stem)
def test_the_witness_imports_no_equation(path):
    seen = imported(path)
    assert {place(name) for name in seen - {"helix_sim.kernels.twin"}} <= {"core", "specs"}, sorted(seen)


def test_only_the_command_line_imports_typer():
    assert {place(module) for module in who_imports("typer")} == {"cli"}


def test_only_pictures_import_matplotlib():
    pictures = ("plot", "comparison_plots", "paper_plots", "calibration_plots")
    assert who_imports("matplotlib") == {f"helix_sim.output.{name}" for name in pictures}


def test_equations_import_no_pandas():
    # a step's table of ops is a frame, made where it is asked for
    assert {module for module in who_imports("pandas") if place(module) in EQUATIONS} <= {"helix_sim.step"}
    assert not [name for name, _, top in imports(MODULES["helix_sim.step"]) if top and name.split(".")[0] == "pandas"]
