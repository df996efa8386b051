"""A sweep: every layout of every family at every batch, evaluated a block of shapes at a time.

A block is columns of shape (shapes, 1, 1), batches (1, batches, 1) and chunks (1, 1, chunks): an equation that does not
ask about an axis is evaluated once for all of it, and the equations are those of a single layout.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from helix_sim.attention import Decode
from helix_sim.family import shapes
from helix_sim.feasibility import Reason, memory_reason, shape_reasons
from helix_sim.layout import Layout
from helix_sim.load import load_clock, load_hardware, load_model, load_sweep
from helix_sim.memory import memory_of
from helix_sim.pareto import Columns, Frontier, frontier, merge
from helix_sim.spec import Clock, Hardware, Model, Record, Sweep
from helix_sim.step import evaluate, layer_ops

if TYPE_CHECKING:
    import pandas as pd

BLOCK_SHAPES = 24
"""Shapes in a block: enough to amortise numpy's calls, few enough that a block's columns stay in cache."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A sweep with its files loaded and its shapes listed: what the flat index of a layout means."""

    sweep: Sweep
    model: Model
    hardware: Hardware
    clock: Clock
    shapes: dict[str, dict[str, npt.NDArray[Any]]]
    batches: npt.NDArray[Any]

    def chunk_axis(self, family: str) -> list[int | str]:
        """HOP-B chunk counts of a family: the sweep's list, or off."""
        return list(self.sweep.chunks) if self.sweep.families[family].hop_b else [1]

    def sizes(self, family: str) -> tuple[int, int, int]:
        """Shapes, batches and chunk counts of a family at one context."""
        return len(self.shapes[family]["tpa"]), len(self.batches), len(self.chunk_axis(family))

    @property
    def layouts(self) -> int:
        """Layouts of the whole sweep, over all contexts."""
        return len(self.sweep.contexts) * sum(int(np.prod(self.sizes(name))) for name in self.sweep.families)

    @property
    def digests(self) -> dict[str, str]:
        """A short hash of each input: what was searched, the model, the machine, the clock."""
        parts = {"sweep": self.sweep, "model": self.model, "hardware": self.hardware, "clock": self.clock}
        return {name: digest(record) for name, record in parts.items()}

    def first_id(self, context_index: int, family: str) -> int:
        """Flat index of a family's first layout at a context."""
        per_context = {name: int(np.prod(self.sizes(name))) for name in self.sweep.families}
        before = list(per_context).index(family)
        return context_index * sum(per_context.values()) + sum(list(per_context.values())[:before])

    def layout_at(self, index: int) -> tuple[str, int, Layout]:
        """Family, context and layout of a flat index."""
        for context_index, context in enumerate(self.sweep.contexts):
            for family in self.sweep.families:
                offset = index - self.first_id(context_index, family)
                if 0 <= offset < np.prod(self.sizes(family)):
                    row, batch, chunk = (int(i) for i in np.unravel_index(offset, self.sizes(family)))
                    users = int(self.batches[batch])
                    axis = self.chunk_axis(family)[chunk]
                    shape = {name: int(column[row]) for name, column in self.shapes[family].items()}
                    chunks = users if axis == "batch" else int(axis)
                    return family, context, Layout(batch=users, chunks=chunks, **shape)
        raise IndexError(f"layout {index} of a sweep of {self.layouts}")


def digest(record: Record) -> str:
    """Twelve hex digits that change with any value of a record, and with nothing else."""
    text = json.dumps(record.model_dump(mode="json"), sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def plan(sweep: Sweep) -> Plan:
    """The sweep's model, machine and clock loaded, its shapes listed."""
    model = load_model(sweep.model)
    return Plan(
        sweep=sweep,
        model=model,
        hardware=load_hardware(sweep.hardware),
        clock=load_clock(sweep.clock),
        shapes={name: shapes(sweep, name, model) for name in sweep.families},
        batches=np.array(sweep.batch.values(), dtype=np.int64),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """Neighbouring shapes of one family at one context."""

    family: str
    context_index: int
    start: int
    stop: int


def blocks(planned: Plan) -> Iterator[Block]:
    """The whole sweep in order, a block at a time."""
    for context_index in range(len(planned.sweep.contexts)):
        for family in planned.sweep.families:
            count = planned.sizes(family)[0]
            for start in range(0, count, BLOCK_SHAPES):
                stop = min(start + BLOCK_SHAPES, count)
                yield Block(family=family, context_index=context_index, start=start, stop=stop)


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluated:
    """One block's layouts that run: their columns, and how many were dropped for which reason."""

    block: Block
    layouts: int
    columns: Columns
    dropped: dict[str, int]


def evaluate_block(planned: Plan, block: Block, *, best_chunks: bool) -> Evaluated:
    """Evaluate one block; with `best_chunks`, only the fastest chunk count of each shape and batch is kept.

    Nothing is lost for a frontier: at one shape and batch, users and GPUs are the same, so the lowest TTL has both the
    best interactivity and the best throughput.
    """
    context = planned.sweep.contexts[block.context_index]
    axis = planned.chunk_axis(block.family)
    shape = {k: column[block.start : block.stop, None, None] for k, column in planned.shapes[block.family].items()}
    batch = planned.batches[None, :, None]
    chunks = np.concatenate([batch if c == "batch" else np.full_like(batch, int(c)) for c in axis], axis=2)
    cells = (block.stop - block.start, len(planned.batches), len(axis))
    x = Layout(batch=batch, chunks=chunks, **shape)
    flags = np.broadcast_to(shape_reasons(planned.model, planned.hardware, x, context), cells).copy()
    rows = np.flatnonzero((flags == 0).any(axis=(1, 2)))
    shape = {name: column[rows] for name, column in shape.items()}
    fits = _batches_that_fit(planned, Layout(**shape), context)
    flags[rows, fits:] |= (flags[rows, fits:] == 0) * int(Reason.OUT_OF_MEMORY)

    ttl = np.full(cells, np.inf)
    resident = np.zeros(cells[:2])
    if rows.size and fits:
        x = Layout(batch=batch[:, :fits], chunks=chunks[:, :fits], **shape)
        step = evaluate(planned.model, planned.hardware, planned.clock, planned.sweep.precision, x, context)
        flags[rows, :fits] |= memory_reason(step.memory, planned.hardware)
        ttl[rows, :fits] = step.ttl_s
        resident[rows, :fits] = step.memory.resident_bytes[:, :, 0]
    kept = flags == 0
    if best_chunks:
        ttl[~kept] = np.inf
        kept &= np.arange(len(axis)) == ttl.argmin(axis=2)[:, :, None]
    columns = _columns(planned, block, chunks, ttl, resident, kept)
    return Evaluated(block=block, layouts=flags.size, columns=columns, dropped=_count(flags))


def _batches_that_fit(planned: Plan, one: Layout, context: int) -> int:
    """How many batch sizes of the list can fit any of these shapes: memory is weights plus a term linear in batch."""
    if not np.size(one.tpa):
        return 0
    d = Decode(model=planned.model, precision=planned.sweep.precision, layout=one.as_floats(), context=context)
    memory = memory_of(d, layer_ops(d))
    room = planned.hardware.memory_bytes - memory.weights
    largest = np.max(room / (memory.kv_cache + memory.activations))
    return int(np.searchsorted(planned.batches, largest + 1, side="right"))


def _columns(planned: Plan, block: Block, chunks: Any, ttl: Any, resident: Any, kept: Any) -> Columns:
    """Columns of the kept cells: id, widths, what a user sees, memory."""
    row, batch, chunk = np.nonzero(kept)
    shape = {name: column[block.start + row] for name, column in planned.shapes[block.family].items()}
    sizes = planned.sizes(block.family)
    first = planned.first_id(block.context_index, block.family)
    x = Layout(batch=planned.batches[batch], chunks=chunks[0, batch, chunk], **shape)
    seconds = ttl[row, batch, chunk]
    return {
        "id": first + np.ravel_multi_index((block.start + row, batch, chunk), sizes),
        "family": np.full(len(row), list(planned.sweep.families).index(block.family), dtype=np.int16),
        "context": np.full(len(row), planned.sweep.contexts[block.context_index], dtype=np.int64),
        **{name: np.asarray(column) for name, column in x.columns().items()},
        "gpus": x.gpus,
        "users": x.users,
        "ttl_s": seconds,
        "tokens_per_s_user": 1 / seconds,
        "tokens_per_s_gpu": x.users / seconds / x.gpus,
        "resident_bytes": resident[row, batch],
    }


def _count(flags: npt.NDArray[Any]) -> dict[str, int]:
    """Dropped layouts by their first reason."""
    dropped = flags[flags != 0]
    lowest = dropped & -dropped
    return {reason.name or "": int(n) for reason in Reason if (n := (lowest == reason).sum())}


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
    planned: Plan, *, on_block: Callable[[Evaluated], None] = lambda _: None, every_chunk_count: bool = False
) -> SweepResult:
    """Evaluate a plan, block by block.

    on_block sees each block after it, for a progress bar or to write its points; every_chunk_count shows it all HOP-B
    chunk counts, not only the fastest of each shape and batch.
    """
    contexts, families = planned.sweep.contexts, list(planned.sweep.families)
    found = {c: {name: Frontier(name=name, columns={}) for name in families} for c in contexts}
    dropped: dict[str, dict[str, int]] = {name: {} for name in families}
    for block in blocks(planned):
        evaluated = evaluate_block(planned, block, best_chunks=not every_chunk_count)
        by_family = found[contexts[block.context_index]]
        part = frontier(evaluated.columns, block.family)
        by_family[block.family] = merge([by_family[block.family], part], block.family)
        for reason, count in evaluated.dropped.items():
            dropped[block.family][reason] = dropped[block.family].get(reason, 0) + count
        on_block(evaluated)
    return SweepResult(plan=planned, frontiers=found, dropped=dropped)
