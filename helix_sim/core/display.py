"""How an object shows itself in a notebook: as HTML, drawn by whoever the package says (`helix_sim.output.html`)."""

from __future__ import annotations

from collections.abc import Callable
from html import escape

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
