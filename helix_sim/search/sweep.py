"""A sweep: every layout of every family at every batch and context, a block of them at a time.

Equations are those of a single layout, each part of a step evaluated once for the widths it sees (shared_parts.py). No
result depends on how the sweep is cut into blocks.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from helix_sim.core.display import Shown
from helix_sim.core.errors import SpecError
from helix_sim.core.units import format_size
from helix_sim.search.block import OnPoints, evaluate_block
from helix_sim.search.evaluated import Evaluated, Total
from helix_sim.search.pareto import COSTS, Frontier, merge
from helix_sim.search.plan import Plan, blocks, plan
from helix_sim.specs.draft import Draft
from helix_sim.specs.load import load_machine, load_model, load_sweep, parse, shipped_families
from helix_sim.specs.machine import Machine
from helix_sim.specs.model import Model
from helix_sim.specs.sweep import Sweep
from helix_sim.specs.timing import Timing
from helix_sim.specs.values import Record
from helix_sim.stacks.rules import REASONS
from helix_sim.step import default_precision

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepResult(Shown):
    """What a sweep found: a frontier for each context and family, and what was dropped.

    frontiers[context][family]; `group(context, name)` merges the families that the sweep's `groups` lists.
    """

    plan: Plan
    frontiers: dict[int, dict[str, Frontier]]
    dropped: dict[str, dict[str, int]]

    def __repr__(self) -> str:
        points = sum(len(part) for found in self.frontiers.values() for part in found.values())
        return f"<SweepResult {self.sweep.name}: {self.layouts:,} layouts, {points} on frontiers; {self.plan!r}>"

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

    @property
    def searched(self) -> dict[str, str]:
        """Model, machine, timing and formats by name: columns with which tables of several searches can be stacked."""
        names = {kind: getattr(self.plan, kind).name for kind in ("model", "machine", "timing")}
        return names | {"formats": str(self.plan.setting.precision)}

    def at_price(self, usd_per_gpu_hour: float | None) -> SweepResult:
        """The result with another price of a GPU [USD/hour]; itself without one. No point moves by it."""
        planned = replace(self.plan, setting=self.plan.setting.at_price(usd_per_gpu_hour))
        frontiers = {
            context: {name: _with_costs(part, planned.machine) for name, part in by_family.items()}
            for context, by_family in self.frontiers.items()
        }
        return replace(self, plan=planned, frontiers=frontiers)

    def to_frame(self) -> pd.DataFrame:
        """Every family's frontier as one pandas table, a row a point, with what was searched: it can be stacked."""
        import pandas as pd

        frames = [part.to_frame() for by_family in self.frontiers.values() for part in by_family.values() if len(part)]
        if not frames:
            return pd.DataFrame()
        return pd.concat(frames, ignore_index=True).assign(**self.searched)


def run_sweep(
    sweep: Sweep | str | Path | None = None,
    *,
    model: Model | str | None = None,
    machine: Machine | str | None = None,
    timing: Timing | str | None = None,
    draft: Draft | str | None = None,
    **parts: Any,
) -> SweepResult:
    """Evaluate a whole sweep: a Sweep, the name or path of its file, or one that is made here of its parts.

    model, machine, timing, draft: records, or their names or files, in place of the sweep's. parts: other fields of a
    sweep's file, in place of its own: contexts (such as ["128K", "1M"], or one of them), families (names, or Family
    records by name), gpus (a number, a pair of fewest and most, or as in the file), batch, chunks, draft_tokens,
    groups, precision, name.

    Without `sweep`, model, machine and contexts must be given; the rest is the `paper` timing, the checkpoint's
    formats, every shipped family, and every layout of one NVLink domain. SpecError with every problem.
    """
    given = {"model": model, "machine": machine, "timing": timing, "draft": draft}
    records: dict[str, Any] = {kind: each for kind, each in given.items() if isinstance(each, Record)}
    names = {kind: getattr(each, "name", each) for kind, each in given.items() if each is not None}
    if sweep is not None and not (names or parts):
        return run_plan(plan(load_sweep(sweep)))
    base = _as_file(load_sweep(sweep)) if sweep is not None else _whole_domain(model, machine)
    made = parse(Sweep, base | names | _as_lists(parts), "run_sweep")
    if "description" not in parts:  # what a file says of its own sweep is not true of another
        only = f" at {format_size(made.contexts[0])} tokens" if len(made.contexts) == 1 else ""
        made = made.model_copy(update={"description": f"{made.model}{only} on {made.machine}"})
    return run_plan(plan(made, records))


def _as_file(sweep: Sweep) -> dict[str, Any]:
    """A sweep as its file would say it, paths so that they can be opened."""
    kinds = ("model", "machine", "timing", *(("draft",) if sweep.draft else ()))
    return sweep.model_dump() | {kind: sweep.name_of(kind) for kind in kinds}


def _whole_domain(model: Model | str | None, machine: Machine | str | None) -> dict[str, Any]:
    """What a sweep searches where nothing else is said: every layout of one NVLink domain of a machine."""
    if model is None or machine is None:
        raise SpecError(["run_sweep needs a sweep, or a model, a machine and contexts"])
    found = load_machine(machine)
    return {
        "kind": "sweep",
        "name": "sweep",
        "description": "made of its parts",
        "timing": "paper",
        "precision": default_precision(load_model(model), found),
        "gpus": {"from": 1, "to": min(found.domain, found.gpus.value)},
        "batch": {"dense_to": 64, "growth": 1.05, "to": 8192},
        "chunks": [1, 2, 4, 8, 16, 32, "batch"],
        "families": list(shipped_families()),
    }


def _as_lists(parts: dict[str, Any]) -> dict[str, Any]:
    """A sweep's fields as its file says them: one context or family as a list of one, GPUs as a range."""
    found = dict(parts)
    for name in ("contexts", "families"):
        if isinstance(found.get(name), str | int):
            found[name] = [found[name]]
    match found.get("gpus"):
        case int(count):
            found["gpus"] = {"from": count, "to": count}
        case (first, last) if isinstance(found["gpus"], tuple):
            found["gpus"] = {"from": first, "to": last}
    return found


def run_plan(
    planned: Plan,
    *,
    on_block: Callable[[Evaluated], None] = lambda _: None,
    on_points: OnPoints | None = None,
    within_s: float = np.inf,
) -> SweepResult:
    """Evaluate a plan in this process, block by block.

    on_block sees each block after it, for a progress bar; on_points every layout that runs within a TTL of `within_s`
    [s], at every chunk count.
    """
    total = Total()
    for block in blocks(planned):
        evaluated = evaluate_block(planned, block, on_points, within_s)
        total.add(evaluated)
        on_block(evaluated)
    return result_of(planned, total.sum)


def result_of(planned: Plan, found: Evaluated) -> SweepResult:
    """The result of a sweep whose every block is in `found`, in the sweep's order."""
    names = list(planned.sweep.families)

    def part(context: int, name: str) -> Frontier:
        kept = found.frontiers.get(context, {}).get(name)
        curve = Frontier(name=name, columns=kept.columns if kept else {}, families=tuple(names))
        return _with_costs(curve, planned.machine)

    frontiers = {context: {name: part(context, name) for name in names} for context in planned.sweep.contexts}
    counts = {name: found.dropped.get(name, {}) for name in names}
    dropped = {name: {reason: mine[reason] for reason in REASONS if reason in mine} for name, mine in counts.items()}
    return SweepResult(plan=planned, frontiers=frontiers, dropped=dropped)


def _with_costs(curve: Frontier, machine: Machine) -> Frontier:
    """A frontier with the columns of its cost and energy on a machine; NaN where the machine's file has none."""
    if not len(curve):
        return curve
    costs = {name: getattr(machine, name)(curve.throughput) for name in COSTS}
    return replace(curve, columns={**curve.columns, **costs})
