"""Pareto frontiers of interactivity against throughput: points that nothing beats on both."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from helix_sim.core.display import Shown
from helix_sim.core.errors import SpecError

if TYPE_CHECKING:
    import pandas as pd

Columns = dict[str, npt.NDArray[Any]]

COSTS = ("usd_per_million_tokens", "joules_per_token")
"""Columns of which less is better."""

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
class Frontier(Shown):
    """A Pareto frontier, by rising interactivity: columns of layouts and what a user sees of them.

    families: the names that the whole numbers of the column `family` stand for; tables and points have the names.
    """

    name: str
    columns: Columns
    families: tuple[str, ...] = ()

    def __repr__(self) -> str:
        if not len(self):
            return f"<Frontier {self.name}: no layout runs>"
        ends = f"{self.interactivity[0]:.4g} to {self.interactivity[-1]:.4g} tokens/s/user"
        return f"<Frontier {self.name}: {len(self)} layouts, {ends}>"

    def __len__(self) -> int:
        return len(next(iter(self.columns.values()), ()))

    @property
    def interactivity(self) -> npt.NDArray[Any]:
        """Tokens/s/user of each point, rising."""
        return self.columns.get("tokens_per_s_user", np.zeros(0))

    @property
    def throughput(self) -> npt.NDArray[Any]:
        """Tokens/s/GPU of each point, falling."""
        return self.columns.get("tokens_per_s_gpu", np.zeros(0))

    def index_at(self, interactivity: Any) -> Any:
        """The point with the best throughput among those at least that interactive; len(self) where there is none."""
        return np.searchsorted(self.interactivity, interactivity, side="left")

    def attained(self, interactivity: Any) -> npt.NDArray[Any]:
        """Best tokens/s/GPU at an interactivity of at least this; 0 where the frontier does not reach it."""
        best: npt.NDArray[Any] = np.append(self.throughput, 0.0)[self.index_at(interactivity)]
        return best

    def point(self, index: int) -> dict[str, Any]:
        """One point as plain numbers, its family by name."""
        return {name: column[index : index + 1 or None].tolist()[0] for name, column in self._named().items()}

    def _named(self) -> Columns:
        """The columns, families by name."""
        if not (self.families and len(self)):
            return self.columns
        names = np.array(self.families, dtype=object)[self.columns["family"]]
        return {**self.columns, "family": names}

    def to_frame(self) -> pd.DataFrame:
        """The points as a pandas table, a row each, families by name."""
        import pandas as pd

        return pd.DataFrame(self._named())


def frontier(
    table: Columns | pd.DataFrame,
    name: str = "frontier",
    families: tuple[str, ...] = (),
    against: str = "tokens_per_s_gpu",
) -> Frontier:
    """The Pareto frontier of a table of evaluated layouts.

    against: what interactivity is traded for: throughput, or a cost of which less is better, usd_per_million_tokens or
    joules_per_token. On one machine a cost is a constant over the throughput, so that all three have the same layouts:
    a search by throughput is exact for each. Across machines, in a table of several searches, they differ.
    table: arrays by name, or a pandas table such as `evaluate` returns, a row a layout; at least tokens_per_s_user and
    tokens_per_s_gpu; rows that do not run (NaN) are left out. Of layouts alike in both, the one with the least ttl_s
    stays (two may round to one interactivity), then the first by id. families: names of a column of whole numbers.
    SpecError where a column is missing.
    """
    columns = {str(key): np.asarray(column) for key, column in table.items()}
    axes = ("tokens_per_s_user", against)
    if missing := [axis for axis in axes if axis not in columns]:
        raise SpecError([f"the table has no column {missing[0]}; a frontier is of {axes[0]} against {axes[1]}"])
    sign = -1.0 if against in COSTS else 1.0
    x, y = columns[axes[0]], sign * columns[against]
    if not (runs := ~(np.isnan(x) | np.isnan(y))).all():
        columns = {key: column[runs] for key, column in columns.items()}
        x, y = x[runs], y[runs]
    keep = pareto_order(x, y, *(columns[tie] for tie in ("ttl_s", "id") if tie in columns))
    return Frontier(name=name, columns={key: column[keep] for key, column in columns.items()}, families=families)


def merge(frontiers: Iterable[Frontier], name: str) -> Frontier:
    """The frontier of the union of several, whatever their order."""
    parts = [part for part in frontiers if len(part)]
    if not parts:
        return Frontier(name=name, columns={})
    columns = {key: np.concatenate([part.columns[key] for part in parts]) for key in parts[0].columns}
    return frontier(columns, name, parts[0].families)
