"""The notebooks: each runs top to bottom, prints what it printed when it was saved, and ends by checking its answer."""

import ast
import importlib.util
import os
import re
import sys
from pathlib import Path

import pytest

nbformat = pytest.importorskip("nbformat", reason="the extra `test` is not installed")
pytest.importorskip("nbclient", reason="the extra `test` is not installed")
pytest.importorskip("ipykernel", reason="the extra `test` is not installed")

FOLDER = Path(__file__).parents[2] / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
QUESTIONS = ["quickstart", "the-papers-figures", "why-tp-stops-at-k", "what-hop-b-buys-and-when"]
QUESTIONS += ["which-layout-for-my-budget", "what-limits-me", "when-does-drafting-pay", "does-helix-still-pay"]
MOST_BYTES = 300_000
MAY_IMPORT = {"helix_sim", "matplotlib", "numpy", "pandas"}
MAY_DEFINE = {"better"}
"""Helpers of a notebook: `better` copies a machine or a timing with one value changed. No equation is among them."""

each = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def code(notebook):
    """The code cells as one program, magics left out."""
    cells = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
    return ast.parse("\n".join(re.sub(r"^%.*$", "", source, flags=re.MULTILINE) for source in cells))


def printed(notebook):
    """What each code cell wrote to stdout; anything on stderr is a failure."""
    texts = []
    for cell in notebook.cells:
        streams = [output for output in cell.get("outputs", []) if output.output_type == "stream"]
        assert all(stream.name == "stdout" for stream in streams), [stream.text for stream in streams]
        texts.append("".join(stream.text for stream in streams))
    return texts


@pytest.fixture(scope="module")
def execute():
    """The script behind `make notebooks`."""
    spec = importlib.util.spec_from_file_location("execute", FOLDER / "execute.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_there_is_one_for_each_question():
    assert [path.stem[3:] for path in NOTEBOOKS] == QUESTIONS


@each
def test_it_runs_top_to_bottom_and_prints_what_it_did(execute, path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(os.path.abspath(part) for part in sys.path))
    again, saved = execute.executed(path), nbformat.read(path, as_version=4)
    assert printed(again) == printed(saved), "run `make notebooks`, read what changed, and commit it"


@each
def test_it_asks_one_question_and_ends_by_checking_its_answer(path):
    notebook = nbformat.read(path, as_version=4)
    heading = notebook.cells[0].source.splitlines()[0]
    assert notebook.cells[0].cell_type == "markdown"
    assert re.fullmatch(r"# [^?]+\?", heading)
    assert "number from elsewhere?" in notebook.cells[-2].source
    last = ast.parse(notebook.cells[-1].source)
    assert any(isinstance(node, ast.Assert) for node in ast.walk(last))


@each
def test_it_imports_everything_and_defines_no_equation(path):
    tree = code(nbformat.read(path, as_version=4))
    modules = {
        name.split(".")[0]
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in ([node.module] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names])
    }
    assert "helix_sim" in modules
    assert modules <= MAY_IMPORT
    defined = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    assert defined <= MAY_DEFINE
    assert not any(isinstance(node, ast.Lambda) for node in ast.walk(tree))


@each
def test_it_is_small_and_names_no_place_on_a_disk(path):
    assert path.stat().st_size < MOST_BYTES
    notebook = nbformat.read(path, as_version=4)
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            output.get("data", {}).pop("image/png", None)
    assert not re.search(r"/(root|home|Users|tmp|workspace|opt)/|0x[0-9a-f]{8}", nbformat.writes(notebook))


@each
def test_it_is_saved_without_what_changes_from_run_to_run(execute, path):
    notebook = nbformat.read(path, as_version=4)
    assert notebook.metadata == {"kernelspec": execute.KERNEL, "language_info": {"name": "python"}}
    assert [cell.id for cell in notebook.cells] == [f"cell-{i:02}" for i in range(1, len(notebook.cells) + 1)]
    assert not any(cell.metadata for cell in notebook.cells)
    counts = [cell.execution_count for cell in notebook.cells if cell.cell_type == "code"]
    assert counts == list(range(1, len(counts) + 1))
