"""A sweep: every layout of every family at every batch and context, a block of them at a time.

Equations are those of a single layout, each part of a step evaluated once for the widths it sees (shared_parts.py). No
result depends on how the sweep is cut into blocks.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from helix_sim.search.block import OnPoints, evaluate_block
from helix_sim.search.evaluated import Evaluated, Total
from helix_sim.search.pareto import Frontier, merge
from helix_sim.search.plan import Plan, blocks, plan
from helix_sim.specs.load import load_sweep
from helix_sim.specs.sweep import Sweep
from helix_sim.stacks.rules import REASONS

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepResult:
    """What a sweep found: a frontier for each context and family, and what was dropped.

    frontiers[context][family]; `group(context, name)` merges the families that the sweep's `groups` lists.
    """

    plan: Plan
    frontiers: dict[int, dict[str, Frontier]]
    dropped: dict[str, dict[str, int]]

    @property
    def sweep(self) -> Sweep:
        """What was searched."""
        return self.plan.sweep

    @property
    def layouts(self) -> int:
        """Layouts evaluated or dropped."""
        return self.plan.layouts

    def group(self, name: str, context: int | None = None) -> Frontier:
        """The frontier of a family, or of a named group of families, at a context (the first one unless given)."""
        by_family = self.frontiers[context or self.sweep.contexts[0]]
        members = self.sweep.groups.get(name, [name])
        return merge((by_family[member] for member in members), name)

    def to_frame(self) -> pd.DataFrame:
        """Every family's frontier as one pandas table, a row each point, the family by name."""
        import pandas as pd

        frames = [part.to_frame() for by_family in self.frontiers.values() for part in by_family.values() if len(part)]
        table = pd.concat(frames, ignore_index=True) if frames else pd.DataFrame()
        names = list(self.sweep.families)
        return table.assign(family=[names[index] for index in table["family"]]) if len(table) else table


def run_sweep(sweep: Sweep | str | Path) -> SweepResult:
    """Evaluate a whole sweep: a Sweep, or the name or path of its file."""
    return run_plan(plan(sweep if isinstance(sweep, Sweep) else load_sweep(sweep)))


def run_plan(
    planned: Plan, *, on_block: Callable[[Evaluated], None] = lambda _: None, on_points: OnPoints | None = None
) -> SweepResult:
    """Evaluate a plan in this process, block by block.

    on_block sees each block after it, for a progress bar; on_points every layout that runs, at every chunk count.
    """
    total = Total()
    for block in blocks(planned):
        evaluated = evaluate_block(planned, block, on_points)
        total.add(evaluated)
        on_block(evaluated)
    return result_of(planned, total.sum)


def result_of(planned: Plan, found: Evaluated) -> SweepResult:
    """The result of a sweep whose every block is in `found`, in the sweep's order."""
    names = list(planned.sweep.families)
    none: dict[str, Frontier] = {}
    frontiers = {
        context: {name: found.frontiers.get(context, none).get(name, Frontier(name=name, columns={})) for name in names}
        for context in planned.sweep.contexts
    }
    counts = {name: found.dropped.get(name, {}) for name in names}
    dropped = {name: {reason: mine[reason] for reason in REASONS if reason in mine} for name, mine in counts.items()}
    return SweepResult(plan=planned, frontiers=frontiers, dropped=dropped)
