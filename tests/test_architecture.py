"""Imports point down, and the heavy ones are where design says they are."""

import ast
from pathlib import Path

import pytest

import helix_sim

PACKAGE = Path(helix_sim.__file__).parent

ORDER = [
    {"cli", "__main__"},
    {"studies", "plot", "report", "export", "trace"},
    {"calibration"},
    {"pick"},
    {"executors", "journal"},
    {"sweep"},
    {"plan", "parts"},
    {"tables", "silicon", "pareto", "family", "import_hf"},
    {"step"},
    {"feasibility"},
    {"memory", "ffn"},
    {"attention", "overlap", "roofline"},
    {"load"},
    {"kernel_time"},
    {"work"},
    {"collectives", "layout"},
    {"spec"},
    {"units"},
]
"""Modules from the top down; a module imports from its own row or below."""

RANK = {name: rank for rank, row in enumerate(ORDER) for name in row}
WITNESS_MAY_IMPORT = {"spec", "layout", "units"}


def modules() -> list[Path]:
    return sorted(path for path in PACKAGE.rglob("*.py") if "data" not in path.parts)


def part(path: Path) -> str:
    """The module, or the sub-package, that a file belongs to."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(path: Path) -> set[str]:
    """Parts of helix_sim that a file imports at run time, those inside functions too."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    typing_only = {
        id(child)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and getattr(node.test, "id", "") == "TYPE_CHECKING"
        for child in ast.walk(node)
    }
    found = set()
    for node in ast.walk(tree):
        if id(node) in typing_only or not isinstance(node, ast.ImportFrom | ast.Import):
            continue
        if isinstance(node, ast.ImportFrom) and node.module == "helix_sim":
            found |= {alias.name for alias in node.names if alias.name in RANK or alias.name == "kernels"}
        names = [node.module or ""] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
        found |= {name.split(".")[1] for name in names if name.startswith("helix_sim.")}
    return found


def outside(path: Path) -> set[str]:
    """Other packages that a file imports anywhere."""
    nodes = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
    names = [
        name
        for node in nodes
        if isinstance(node, ast.ImportFrom | ast.Import)
        for name in ([node.module or ""] if isinstance(node, ast.ImportFrom) else [a.name for a in node.names])
    ]
    return {name.split(".")[0] for name in names}


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_down(path):
    here = part(path)
    if here in ("__init__", "kernels"):
        return
    above = {name for name in imported(path) if name != here and name in RANK and RANK[name] < RANK[here]}
    assert not above, f"{here} imports {above} from above"


def test_every_module_has_its_place_in_the_order():
    assert {part(path) for path in modules()} <= set(RANK) | {"__init__", "kernels"}


def test_the_witness_imports_no_equation():
    for path in (PACKAGE / "kernels").glob("*.py"):
        assert imported(path) <= WITNESS_MAY_IMPORT | {"kernels"}, path.name


def test_only_the_command_line_imports_typer():
    assert {part(path) for path in modules() if "typer" in outside(path)} == {"cli"}


def test_only_pictures_import_matplotlib():
    assert {part(path) for path in modules() if "matplotlib" in outside(path)} <= {"plot", "report", "studies"}


def test_equations_do_not_import_pandas():
    equations = {"units", "spec", "layout", "collectives", "work", "attention", "ffn", "memory", "overlap", "roofline"}
    assert not [path for path in modules() if part(path) in equations and "pandas" in outside(path)]
