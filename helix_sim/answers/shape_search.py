"""Of every shape (its widths) the batch that a request likes best: the search that `recommend` ranks.

The search is a sweep written in code: every family, every divisor layout of every GPU count, every batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from helix_sim.answers.request import Limits, Mix, Score, throughput
from helix_sim.core.layout import AXES, Layout
from helix_sim.feasibility import memory_reason
from helix_sim.search.pareto import Columns
from helix_sim.search.plan import Plan
from helix_sim.search.sweep import SweepResult, run_plan
from helix_sim.stacks.rules import start_flags
from helix_sim.step import evaluate_step


def best_of_each_shape(
    planned: Plan, mix: Mix, limits: Limits, score: Score = throughput, stacks: Sequence[str] = ()
) -> Columns:
    """The table of `search_shapes`."""
    return search_shapes(planned, mix, limits, score, stacks)[0]


def search_shapes(
    planned: Plan, mix: Mix, limits: Limits, score: Score = throughput, stacks: Sequence[str] = ()
) -> tuple[Columns, SweepResult]:
    """Of every shape that has a batch within the limits, the batch with the best score, best first; and the search.

    A shape has two rows where it has HOP-B: the best of its unsplit batches, and of the others. stacks: of which one
    must start a layout, or it is left out.
    """
    found: list[Columns] = []
    starts = _starts(planned, stacks)

    def on_points(columns: Columns) -> None:
        # a longer context only adds time and memory: what fails at the mean fails in a batch of the mix
        columns = rows_of(columns, limits.kept(columns))
        if stacks:
            columns = rows_of(columns, (columns["chunks"] == 1) & starts[_shape_of(planned, columns)])
        if len(columns["id"]) and (len(mix.contexts) > 1 or limits.confidence is not None):
            columns = _at_mix(planned, columns, mix, limits)
            columns = rows_of(columns, limits.kept(columns))
        if len(columns["id"]):
            found.append(_best_batches(planned, columns, score))

    result = run_plan(planned, on_points=on_points, within_s=limits.ttl_s)
    if not found:
        return {}, result
    table = {name: np.concatenate([part[name] for part in found]) for name in found[0]}
    table = _best_batches(planned, table, score)
    return rows_of(table, np.lexsort((table["id"], -score(table)))), result


def rows_of(columns: Columns, which: Any) -> Columns:
    """Some rows of columns."""
    return {name: column[which] for name, column in columns.items()}


def _starts(planned: Plan, stacks: Sequence[str]) -> Any:
    """Whether one of the stacks starts each shape of a plan, in the plan's order."""
    shapes = sum(planned.sizes(family)[0] for family in planned.sweep.families)
    x = Layout(**planned.row_shapes((0, shapes)))
    return start_flags(stacks, planned.model, planned.machine, planned.setting.precision, x) == 0


def _shape_of(planned: Plan, columns: Columns) -> Any:
    """The place of each row's shape in the plan."""
    shape, before = np.zeros(len(columns["id"]), dtype=np.int64), 0
    for index, family in enumerate(planned.sweep.families):
        shapes, batches, chunks = planned.sizes(family)
        mine = columns["family"] == index
        shape[mine] = before + (columns["id"][mine] - planned.first_ids[index]) // (batches * chunks)
        before += shapes
    return shape


def _best_batches(planned: Plan, columns: Columns, score: Score) -> Columns:
    """Of each shape among the rows, split and unsplit, the batch with the best score; of equals, the first layout."""
    shape = 2 * _shape_of(planned, columns) + (columns["chunks"] > 1)
    order = np.lexsort((columns["id"], -score(columns), shape))
    _, first = np.unique(shape[order], return_index=True)
    return rows_of(columns, order[first])


def _at_mix(planned: Plan, columns: Columns, mix: Mix, limits: Limits) -> Columns:
    """Rows whose batches hold the mix: time, throughput and memory evaluated anew; those that no longer fit drop."""
    x = Layout(**{name: columns[name] for name in AXES})
    context = mix.of_batch(x.batch)
    step = evaluate_step(planned.setting, x, context)
    seconds = np.asarray(step.ttl_s)
    columns = {
        **columns,
        "context": context,
        "ttl_s": seconds,
        "held_s": np.asarray(limits.held_s(step)),
        "tokens_per_s_user": 1 / seconds,
        "tokens_per_s_gpu": np.asarray(step.tokens_per_s_gpu),
        "resident_bytes": np.broadcast_to(step.memory.resident_bytes, seconds.shape),
    }
    return rows_of(columns, memory_reason(step.memory) == 0)
