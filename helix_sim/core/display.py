"""How an object shows itself in a notebook: as HTML that `helix_sim.output.html` draws when it is first shown."""

from __future__ import annotations

import importlib


class Shown:
    """An object that Jupyter shows as a table or a plot."""

    __slots__ = ()

    def _repr_html_(self) -> str:
        """The object as HTML, for Jupyter."""
        text: str = importlib.import_module("helix_sim.output.html").html_of(self)
        return text
