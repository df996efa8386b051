"""Pareto frontiers of interactivity against throughput: points that nothing beats on both."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import pandas as pd

Columns = dict[str, npt.NDArray[Any]]


SAMPLED = 4096
"""Points from which on a sample of them is asked first which of the others are beaten."""


def pareto_order(x: npt.NDArray[Any], y: npt.NDArray[Any], *ties: npt.NDArray[Any]) -> npt.NDArray[np.intp]:
    """Indices of the points that no other equals or beats in both x and y, by rising x.

    Of points alike in both, the one with the smallest of `ties` stays, the first of them first.

    >>> pareto_order(np.array([1.0, 2, 3, 2]), np.array([9.0, 5, 1, 4]), np.arange(4)).tolist()
    [0, 1, 2]
    """
    if len(x) <= SAMPLED:
        return _sorted_out(x, y, ties)
    sample = slice(None, None, int(len(x) ** 0.5))
    best = _sorted_out(x[sample], y[sample], ())
    ahead = np.append(y[sample][best], -np.inf)[np.searchsorted(x[sample][best], x)]
    left = np.flatnonzero(y >= ahead)
    kept: npt.NDArray[np.intp] = left[_sorted_out(x[left], y[left], [tie[left] for tie in ties])]
    return kept


def _sorted_out(x: npt.NDArray[Any], y: npt.NDArray[Any], ties: Sequence[npt.NDArray[Any]]) -> npt.NDArray[np.intp]:
    order: npt.NDArray[np.intp] = np.lexsort((*reversed(ties), -y, -x))
    best = np.maximum.accumulate(y[order])
    new = np.concatenate([[True], best[1:] > best[:-1]]) if len(order) else np.zeros(0, dtype=bool)
    kept: npt.NDArray[np.intp] = order[new][::-1]
    return kept


@dataclass(frozen=True, slots=True, kw_only=True)
class Frontier:
    """A Pareto frontier, by rising interactivity: columns of layouts and what a user sees of them."""

    name: str
    columns: Columns

    def __len__(self) -> int:
        return len(next(iter(self.columns.values()), ()))

    @property
    def interactivity(self) -> npt.NDArray[Any]:
        """Tokens/s/user of each point, rising."""
        return self.columns["tokens_per_s_user"]

    @property
    def throughput(self) -> npt.NDArray[Any]:
        """Tokens/s/GPU of each point, falling."""
        return self.columns["tokens_per_s_gpu"]

    def index_at(self, interactivity: Any) -> Any:
        """The point with the best throughput among those at least that interactive; len(self) where there is none."""
        return np.searchsorted(self.interactivity, interactivity, side="left")

    def attained(self, interactivity: Any) -> npt.NDArray[Any]:
        """Best tokens/s/GPU at an interactivity of at least this; 0 where the frontier does not reach it."""
        best: npt.NDArray[Any] = np.append(self.throughput, 0.0)[self.index_at(interactivity)]
        return best

    def point(self, index: int) -> dict[str, Any]:
        """One point as plain numbers."""
        return {name: column[index].item() for name, column in self.columns.items()}

    def to_frame(self) -> pd.DataFrame:
        """The points as a pandas table, a row each."""
        import pandas as pd

        return pd.DataFrame(self.columns)


def frontier(columns: Columns, name: str = "frontier") -> Frontier:
    """The Pareto frontier of a table of evaluated layouts.

    columns: at least tokens_per_s_user, tokens_per_s_gpu and id, one row a layout. Of layouts alike in both, the one
    with the least ttl_s stays (two may round to one interactivity), then the first.
    """
    ties = [columns[name] for name in ("ttl_s", "id") if name in columns]
    keep = pareto_order(columns["tokens_per_s_user"], columns["tokens_per_s_gpu"], *ties)
    return Frontier(name=name, columns={key: column[keep] for key, column in columns.items()})


def merge(frontiers: Iterable[Frontier], name: str) -> Frontier:
    """The frontier of the union of several, whatever their order."""
    parts = [part.columns for part in frontiers if len(part)]
    if not parts:
        return Frontier(name=name, columns={})
    return frontier({key: np.concatenate([part[key] for part in parts]) for key in parts[0]}, name)
