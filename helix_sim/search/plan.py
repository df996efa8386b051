"""A plan: a sweep with its files loaded and its shapes listed, and the blocks in which it is evaluated."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt

from helix_sim.core.errors import SpecError
from helix_sim.core.layout import Layout
from helix_sim.search.family import SHAPE_AXES, shapes
from helix_sim.search.identity import Input, digest, digest_of, input_of, sweep_input
from helix_sim.specs.draft import Draft
from helix_sim.specs.drafter import draft_problems, drafter_of
from helix_sim.specs.load import load_machine, load_model, load_timing
from helix_sim.specs.machine import Machine
from helix_sim.specs.model import Model
from helix_sim.specs.setting import InSetting, Setting, hop_b_doubt, require_measured_here
from helix_sim.specs.sweep import USUAL_DRAFTS, Sweep
from helix_sim.specs.timing import Timing

CONTEXTS, ROWS, CELLS = 16, 4096, 2**22
"""Contexts, shapes, and shapes times batches times contexts in a block, at most: some 0.3 seconds. The FFN is timed
once for all contexts of a block, so that shapes are cut first. No result depends on them."""

LAYOUTS = 2**26
"""Layouts in a block unless a caller says otherwise, at most."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan(InSetting):
    """A sweep with its files loaded and its shapes listed: what the flat index of a layout means."""

    sweep: Sweep
    setting: Setting
    shapes: dict[str, dict[str, npt.NDArray[Any]]]
    batches: npt.NDArray[Any]
    files: dict[str, str]
    """The name or the path of the model, machine and timing; empty of a record that was made in Python."""

    def __repr__(self) -> str:
        return f"<Plan of {self.sweep.name}: {self.setting!r}, {self.layouts:,} layouts>"

    @property
    def hop_b_chunks(self) -> list[int | str]:
        """Chunk counts of families with HOP-B: the sweep's list, but off where the timing's kernels cannot overlap."""
        tried = self.timing.hop_b.searched.value or self.sweep.chunks_anyway
        return list(self.sweep.chunks) if tried else [1]

    def chunk_axis(self, family: str) -> list[int | str]:
        """HOP-B chunk counts of a family: those of the plan, or off."""
        return self.hop_b_chunks if self.sweep.families[family].hop_b else [1]

    def sizes(self, family: str) -> tuple[int, int, int]:
        """Shapes, batches and chunk counts of a family at one context."""
        return len(self.shapes[family]["tpa"]), len(self.batches), len(self.chunk_axis(family))

    @property
    def layouts(self) -> int:
        """Layouts of the whole sweep, over all contexts."""
        return len(self.sweep.contexts) * int(self.first_ids[-1])

    @property
    def digests(self) -> dict[str, str]:
        """A short hash of each input: what was searched, the model, the machine, the timing, the draft if one is."""
        parts = {"sweep": self.sweep, "model": self.model, "machine": self.machine, "timing": self.timing}
        if self.setting.drafter:
            parts["draft"] = self.setting.drafter.draft
        return {name: digest(record) for name, record in parts.items()}

    @property
    def digest(self) -> str:
        """One short hash of all inputs and of the order of families: while it stays, an id means the same step."""
        return digest_of({**self.digests, "families": list(self.sweep.families)})

    @property
    def remarks(self) -> list[str]:
        """Sentences for the user on the inputs."""
        found = [require_measured_here(self.machine, self.timing)]
        if self.hop_b_chunks != list(self.sweep.chunks):
            found.append(f"HOP-B is off: {hop_b_doubt(self.timing)}; chunks_anyway: true in the sweep tries it")
        return [remark for remark in found if remark]

    @property
    def inputs(self) -> dict[str, Input]:
        """Where the sweep, the model, the machine and the timing came from, and what was in them."""
        drafter = self.setting.drafter
        draft = {"draft": input_of(self.files["draft"], drafter.draft)} if drafter else {}
        return {
            "sweep": sweep_input(self.sweep),
            "model": input_of(self.files["model"], self.model),
            "machine": input_of(self.files["machine"], self.machine),
            "timing": input_of(self.files["timing"], self.timing),
            **draft,
        }

    @property
    def first_ids(self) -> npt.NDArray[np.int64]:
        """Flat index of each family's first layout at the first context, then of the second context's first layout."""
        counts = [math.prod(self.sizes(name)) for name in self.sweep.families]
        return np.cumsum([0, *counts], dtype=np.int64)

    def row_families(self, rows: tuple[int, int]) -> npt.NDArray[np.intp]:
        """The family, as its place in the sweep's list, of each row of a range."""
        ends = np.cumsum([self.sizes(name)[0] for name in self.sweep.families])
        found: npt.NDArray[np.intp] = np.searchsorted(ends, np.arange(*rows), side="right")
        return found

    def row_shapes(self, rows: tuple[int, int]) -> dict[str, npt.NDArray[Any]]:
        """The widths of a range of rows."""
        axes = (*SHAPE_AXES, *(("draft_tokens",) if self.setting.drafter else ()))
        found: dict[str, list[npt.NDArray[Any]]] = {axis: [] for axis in axes}
        first = 0
        for shapes_of_family in self.shapes.values():
            for axis, column in shapes_of_family.items():
                found[axis].append(column[max(rows[0] - first, 0) : max(rows[1] - first, 0)])
            first += len(shapes_of_family["tpa"])
        return {axis: np.concatenate(parts).astype(np.int64) for axis, parts in found.items()}

    def ids(self, context_index: Any, rows: Any, batch: Any, chunk: Any) -> npt.NDArray[np.int64]:
        """Flat indices of layouts, by the places of context, row and batch in their lists, of chunks in their axis."""
        names = list(self.sweep.families)
        shapes, chunks = (np.array([self.sizes(name)[axis] for name in names], dtype=np.int64) for axis in (0, 2))
        ends = np.cumsum(shapes)
        family = np.searchsorted(ends, rows, side="right")
        *first, per_context = self.first_ids
        in_family = rows - (ends - shapes)[family]
        in_context = np.array(first)[family] + (in_family * len(self.batches) + batch) * chunks[family] + chunk
        found: npt.NDArray[np.int64] = context_index * per_context + in_context
        return found

    def layout_at(self, index: int) -> tuple[str, int, Layout]:
        """Family, context and layout of a flat index."""
        *first, per_context = self.first_ids.tolist()
        for context_index, context in enumerate(self.sweep.contexts):
            for family, before in zip(self.sweep.families, first, strict=True):
                offset = index - context_index * per_context - before
                if 0 <= offset < math.prod(self.sizes(family)):
                    row, batch, chunk = (int(i) for i in np.unravel_index(offset, self.sizes(family)))
                    users = int(self.batches[batch])
                    axis = self.chunk_axis(family)[chunk]
                    shape = {name: int(column[row]) for name, column in self.shapes[family].items()}
                    chunks = users if axis == "batch" else int(axis)
                    return family, context, Layout(batch=users, chunks=chunks, **shape)
        raise IndexError(f"layout {index} of a sweep of {self.layouts}")


def plan(sweep: Sweep, records: Mapping[str, Model | Machine | Timing | Draft] = MappingProxyType({})) -> Plan:
    """The sweep's model, machine, timing and draft loaded, its shapes listed; the usual drafts as far as it knows them.

    records: those of them, by kind, that were made in Python and no file holds.
    """
    kinds = ("model", "machine", "timing", *(("draft",) if sweep.draft else ()))
    files = {kind: "" if kind in records else sweep.name_of(kind) for kind in kinds}
    model: Any = load_model(records.get("model") or files["model"])  # type: ignore[arg-type]
    machine: Any = load_machine(records.get("machine") or files["machine"])  # type: ignore[arg-type]
    timing: Any = load_timing(records.get("timing") or files["timing"])  # type: ignore[arg-type]
    require_measured_here(machine, timing)
    drafter = drafter_of(records.get("draft") or files["draft"], model) if sweep.draft else None  # type: ignore[arg-type]
    if drafter and sweep.draft_tokens is None:
        last = min(USUAL_DRAFTS, drafter.draft.acceptance.longest)
        sweep = sweep.model_copy(update={"draft_tokens": list(range(last + 1))})
    if problems := draft_problems(drafter, model, np.array(sweep.draft_counts)):
        raise SpecError([f"{sweep.name}: {problem}" for problem in problems])
    return Plan(
        sweep=sweep,
        setting=Setting(model=model, machine=machine, timing=timing, precision=sweep.precision, drafter=drafter),
        shapes={name: shapes(sweep, name, model) for name in sweep.families},
        batches=np.array(sweep.batch.values(), dtype=np.int64),
        files=files,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """Neighbouring contexts, rows and batch sizes, as half-open ranges; a row is a shape of a family."""

    contexts: tuple[int, int]
    rows: tuple[int, int]
    batches: tuple[int, int]


def ranges(count: int, most: int) -> list[tuple[int, int]]:
    """0 to `count` in even ranges of at most `most`.

    >>> ranges(10, 4)
    [(0, 4), (4, 8), (8, 10)]
    """
    step = max(-(-count // max(-(-count // most), 1)), 1)
    return [(start, min(start + step, count)) for start in range(0, count, step)]


def blocks(planned: Plan, layouts: int = LAYOUTS) -> Iterator[Block]:
    """The whole sweep in blocks of at most that many layouts, always in the same order."""
    rows = sum(planned.sizes(family)[0] for family in planned.sweep.families)
    room = max(min(layouts // len(planned.hop_b_chunks), CELLS), 1)
    most_contexts = min(CONTEXTS, len(planned.sweep.contexts), room)
    most_batches = min(len(planned.batches), room // most_contexts)
    most_rows = min(ROWS, rows, room // most_contexts // most_batches)
    sizes = ((len(planned.sweep.contexts), most_contexts), (rows, most_rows), (len(planned.batches), most_batches))
    for contexts, span, batches in itertools.product(*(ranges(*size) for size in sizes)):
        yield Block(contexts=contexts, rows=span, batches=batches)


def layouts_of(planned: Plan, block: Block) -> int:
    """Layouts of a block."""
    rows = planned.row_families(block.rows)
    chunks = np.array([len(planned.chunk_axis(name)) for name in planned.sweep.families])
    contexts, batches = (last - first for first, last in (block.contexts, block.batches))
    return int(chunks[rows].sum()) * contexts * batches
