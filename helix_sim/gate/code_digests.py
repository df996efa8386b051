"""Digests of the code that a frontier's numbers come from, by which a gate says which file changed."""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Mapping
from functools import cache
from pathlib import Path

PACKAGE = Path(__file__).parent.parent

READERS = frozenset(
    (
        "core/display",
        "core/escape",
        "core/files",
        "search/identity",
        "specs/comparison",
        "specs/extending",
        "specs/load",
    )
) | {"specs/older_words"}
"""Modules that a search imports and no number comes from: they read files and write text."""


@cache
def engine() -> tuple[str, ...]:
    """Modules that a frontier's numbers come from: those that a search imports, and what these import, but READERS."""
    found: set[str] = set()
    ahead = ["search/sweep"]
    while ahead:
        name = ahead.pop()
        found.add(name)
        ahead += [other for other in _imported(_text(name)) if other not in found]
    return tuple(sorted(found - READERS))


def _imported(text: str) -> list[str]:
    """The package's modules that a module imports."""
    found = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.ImportFrom)]
    names = [n for node in found for n in (node.module or "", *(f"{node.module}.{each.name}" for each in node.names))]
    paths = [name.removeprefix("helix_sim.").replace(".", "/") for name in names if name.startswith("helix_sim.")]
    return [path for path in paths if (PACKAGE / f"{path}.py").is_file()]


def _text(name: str) -> str:
    return (PACKAGE / f"{name}.py").read_text(encoding="utf-8")


def code_digests() -> dict[str, str]:
    """A short hash of what each module of the engine does: its code without imports, docstrings and comments.

    So a file that only moved, with the imports that follow it, keeps its digest, and so does one only reworded.
    """
    return {name: code_digest(_text(name)) for name in engine()}


def code_digest(text: str) -> str:
    """A short hash of a module's code without imports, docstrings and comments.

    >>> code_digest("import math; x = 1  # one") == code_digest("x = 1") != code_digest("x = 2")
    True
    """
    tree = ast.parse(text)
    for node in ast.walk(tree):
        if isinstance(body := getattr(node, "body", None), list):
            kept = [part for part in body if not isinstance(part, ast.Import | ast.ImportFrom) and not _is_text(part)]
            node.body = kept or [ast.Pass()]  # type: ignore[attr-defined]
    return short_hash(ast.unparse(tree))


def _is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def changed_modules(before: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """Files of the engine whose code is not what it was, by name -> digest of then and of now; a moved one is none.

    A module that is gone is blamed unless one of today's has its code, a new one unless one of then had it.

    >>> changed_modules({"ffn": "a", "step": "b"}, {"ops/ffn": "a", "step": "c", "setting": "d"})
    ['helix_sim/setting.py (new)', 'helix_sim/step.py']
    """
    moved_from, moved_to = set(before.values()), set(now.values())
    found = [f"helix_sim/{name}.py" for name in before.keys() & now.keys() if before[name] != now[name]]
    found += [f"helix_sim/{name}.py (gone)" for name in before.keys() - now.keys() if before[name] not in moved_to]
    found += [f"helix_sim/{name}.py (new)" for name in now.keys() - before.keys() if now[name] not in moved_from]
    return sorted(found)


def short_hash(text: str) -> str:
    """Twelve digits that stand for a text."""
    return hashlib.sha256(text.encode()).hexdigest()[:12]
