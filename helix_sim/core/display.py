"""How an object shows itself: short in a terminal, and in a notebook as HTML, drawn by whoever the package says."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from html import escape
from typing import Any, TypeVar

V = TypeVar("V")
MOST = 60
"""Characters of a value within a short repr."""

_drawers: list[Callable[[object], str]] = []


def drawn_by(draw: Callable[[object], str]) -> None:
    """From now on every object that is shown is drawn by `draw`, which makes HTML of it."""
    _drawers[:] = [draw]


class Shown:
    """An object that Jupyter shows as a table or a plot."""

    __slots__ = ()

    def _repr_html_(self) -> str:
        """The object as HTML, for Jupyter."""
        return _drawers[0](self) if _drawers else f"<pre>{escape(repr(self))}</pre>"


class Short:
    """A dataclass (made with repr=False) whose repr has its short values, and of the others what they are."""

    __slots__ = ()

    def __repr__(self) -> str:
        values: dict[str, Any] = {each.name: getattr(self, each.name) for each in fields(self)}  # type: ignore[arg-type]
        return f"<{type(self).__name__}: {', '.join(f'{name} {_brief(value)}' for name, value in values.items())}>"


def _brief(value: Any) -> str:
    """A value in at most MOST characters."""
    if isinstance(value, list | tuple | dict) and len(repr(value)) > MOST:
        return f"({len(value)} of them)"
    text = str(value)
    return text if len(text) <= MOST else f"{text[: MOST - 1].splitlines()[0]}…"


class Rows(list[dict[str, Any]], Shown):
    """Rows of plain data: a list, short in a terminal and a table in a notebook.

    >>> Rows([{"name": "a", "layers": 2}])
    <1 rows of name, layers>
    """

    def __repr__(self) -> str:
        return f"<{len(self)} rows of {', '.join(self[0])}>" if self else "<no rows>"


class Named(dict[str, V]):
    """Things by name: a dict, of which a terminal shows the names.

    >>> Named(a=1, b=2)
    <2 by name: a, b>
    """

    def __repr__(self) -> str:
        names = ", ".join(self)
        return f"<{len(self)} by name: {names if len(names) <= 400 else f'{names[:400]}…'}>"
