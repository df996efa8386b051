"""A sweep: every layout of every family at every batch and context, a block of them at a time.

Equations are those of a single layout, each part of a step evaluated once for the widths it sees (parts.py). No result
depends on how the sweep is cut into blocks.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from helix_sim.core.layout import Layout
from helix_sim.core.numeric import Column
from helix_sim.feasibility import Reason, shape_reasons
from helix_sim.ops.attention import Decode
from helix_sim.ops.memory import memory_of
from helix_sim.search.pareto import Columns, Frontier, frontier, merge, pareto_order
from helix_sim.search.plan import Block, Plan, blocks, layouts_of, plan
from helix_sim.search.shared_parts import Sums, parts_of
from helix_sim.specs.load import load_sweep
from helix_sim.specs.sweep import Sweep
from helix_sim.step import evaluate, host_seconds, layer_ops, stage_repeats

if TYPE_CHECKING:
    import pandas as pd

CELLS = 2**16
"""Shapes times batches that are added up at a time: enough to amortise numpy's calls, few enough to stay in cache."""

Frontiers = dict[int, dict[str, Frontier]]
"""A frontier for each context and family."""

Dropped = dict[str, dict[str, int]]
"""How many layouts of each family were dropped, by their first reason."""

OnPoints = Callable[[Columns], None]
"""Called with the columns of layouts that run, some at a time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluated:
    """What one block, or several, have shown: how many layouts, the frontiers of those that run, those dropped."""

    layouts: int = 0
    frontiers: Frontiers = field(default_factory=dict)
    dropped: Dropped = field(default_factory=dict)

    def __add__(self, other: Evaluated) -> Evaluated:
        frontiers = {context: dict(families) for context, families in self.frontiers.items()}
        for context, families in other.frontiers.items():
            here = frontiers.setdefault(context, {})
            for name, found in families.items():
                here[name] = merge([here[name], found], name) if name in here else found
        dropped = {name: dict(reasons) for name, reasons in self.dropped.items()}
        for name, reasons in other.dropped.items():
            counts = dropped.setdefault(name, {})
            for reason, count in reasons.items():
                counts[reason] = counts.get(reason, 0) + count
        return Evaluated(layouts=self.layouts + other.layouts, frontiers=frontiers, dropped=dropped)

    @property
    def dropped_layouts(self) -> int:
        """Layouts that cannot run."""
        return sum(sum(reasons.values()) for reasons in self.dropped.values())

    @property
    def frontier_points(self) -> int:
        """Points of all frontiers."""
        return sum(len(found) for families in self.frontiers.values() for found in families.values())


class Total:
    """The sum of many blocks, added in pairs like a tree, so that adding stays cheap; any order gives the same sum."""

    def __init__(self) -> None:
        self._levels: list[Evaluated | None] = []

    def add(self, part: Evaluated) -> None:
        """Take one more."""
        for level, waiting in enumerate(self._levels):
            if waiting is None:
                self._levels[level] = part
                return
            part, self._levels[level] = waiting + part, None
        self._levels.append(part)

    @property
    def sum(self) -> Evaluated:
        """All that was taken so far."""
        return sum((part for part in self._levels if part is not None), Evaluated())


def evaluate_block(planned: Plan, block: Block, on_points: OnPoints | None = None) -> Evaluated:
    """Evaluate one block; on_points, where given, is called with every layout of it that runs."""
    return _Evaluation(planned, block, on_points).run()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Slice:
    """Rows and batches (a half-open range of the plan's list) whose layouts are added up together, at one context."""

    context: int
    rows: npt.NDArray[np.intp]
    span: tuple[int, int]
    attention: npt.NDArray[Any]
    """Seconds (c, k, b) of attention at its k distinct widths; infinite where a chunk count cannot be."""
    place: npt.NDArray[np.intp]
    """Where each row finds its widths among those."""


class _Evaluation:
    """One block under way: its rows, sorted by family and attention group, and the batches each has memory for.

    Two facts make a frontier cheap, and both are exact. At one shape and batch, users and GPUs are the same, so the
    fastest chunk count has the best of both axes. At one batch and attention group (tpa·kvp GPUs), users per GPU are
    the same whatever dp, pp, tpf and ep, so again the lowest TTL has the best of both.
    """

    def __init__(self, planned: Plan, block: Block, on_points: OnPoints | None) -> None:
        self.plan, self.block, self.on_points = planned, block, on_points
        self.names = list(planned.sweep.families)
        self.sums = Sums(
            model=planned.model, machine=planned.machine, timing=planned.timing, precision=planned.sweep.precision
        )
        family, shapes = planned.row_families(block.rows), planned.row_shapes(block.rows)
        group = shapes["tpa"] * shapes["kvp"]
        order = np.lexsort((group, family))
        self.row, self.family, self.group = np.arange(*block.rows)[order], family[order], group[order]
        self.shapes = {axis: column[order] for axis, column in shapes.items()}
        self.hop_b = np.array([planned.sweep.families[name].hop_b for name in self.names])[self.family]
        repeats = stage_repeats(planned.model, self.shapes["pp"])
        self.repeats = {name: np.broadcast_to(count, self.row.shape)[:, None] for name, count in repeats.items()}
        self.contexts = {index: planned.sweep.contexts[index] for index in range(*block.contexts)}
        self.found: Frontiers = {
            context: {name: Frontier(name=name, columns={}) for name in self.names}
            for context in self.contexts.values()
        }
        self._refuse()

    def run(self) -> Evaluated:
        """Every slice of batches at every context."""
        first, stop = self.block.batches
        longest = len(self.plan.sweep.chunks) if self.on_points else 1
        while first < stop and (some := np.flatnonzero(self.most > first)).size:
            last = min(first + max(CELLS // some.size // longest, 16), stop)
            rest = self._rest(some, self.plan.batches[first:last])
            for index in self.contexts:
                for hop_b in (False, True):
                    mine = np.flatnonzero((self.fits[index][some] > first) & (self.hop_b[some] == hop_b))
                    if mine.size:
                        self._add(self._with_attention(index, hop_b, some[mine], (first, last)), rest[mine])
            first = last
        layouts = layouts_of(self.plan, self.block)
        return Evaluated(layouts=layouts, frontiers=self.found, dropped=self._dropped())

    # --- What cannot run ---

    def _refuse(self) -> None:
        """Flags of each context's shapes, the batches they have memory for, and flags of batch and chunks together."""
        x = Layout(**self.shapes)
        self.flags = {
            index: np.broadcast_to(shape_reasons(self.plan.model, self.plan.machine, x, context), self.row.shape)
            for index, context in self.contexts.items()
        }
        able = np.flatnonzero(np.any([flags == 0 for flags in self.flags.values()], axis=0))
        d = self._decode(able, self.plan.sweep.contexts[0])
        self.weights = np.zeros(len(self.row))
        self.weights[able] = memory_of(d, layer_ops(d)).weights if able.size else 0.0
        self.fits = {index: self._fits(flags == 0, self.contexts[index]) for index, flags in self.flags.items()}
        self.most = np.max(list(self.fits.values()), axis=0)
        self.split = self.shapes["kvp"] > 1
        self.chunk_flags = {
            (hop_b, split): self._chunk_flags(alike[0], hop_b)
            for hop_b in (False, True)
            for split in (False, True)
            if (alike := able[(self.hop_b[able] == hop_b) & (self.split[able] == split)]).size
        }

    def _decode(self, rows: Any, context: Column, batch: Column = 1) -> Decode:
        """One decode step of these rows' shapes, a column entry each."""
        x = Layout(batch=batch, **{axis: column[rows] for axis, column in self.shapes.items()}).as_floats()
        tokens = np.multiply(context, 1.0)
        return Decode(model=self.plan.model, precision=self.plan.sweep.precision, layout=x, context=tokens)

    def _resident(self, rows: Any, batch: Any, context: Column) -> Any:
        """Bytes on the fullest GPU, for each row at its batch; weights depend on neither batch nor context."""
        return replace(memory_of(self._decode(rows, context, batch), {}), weights=self.weights[rows]).resident_bytes

    def _fits(self, able: npt.NDArray[Any], context: int) -> npt.NDArray[np.intp]:
        """How many batch sizes of the list each row has memory for, by bisection: memory only grows with the batch."""
        rows, batches = np.flatnonzero(able), self.plan.batches
        low, high = np.zeros(len(rows), dtype=np.intp), np.full(len(rows), len(batches), dtype=np.intp)
        while (low < high).any():
            middle = np.minimum((low + high) // 2, len(batches) - 1)
            fits = self._resident(rows, batches[middle], context) <= self.plan.machine.memory_bytes
            low, high = np.where(fits & (low < high), middle + 1, low), np.where(fits, high, np.minimum(middle, high))
        found = np.zeros(len(able), dtype=np.intp)
        found[rows] = low
        return found

    def _chunks(self, hop_b: bool, batch: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Chunk counts (c, 1, b) of families with or without HOP-B."""
        axis = self.plan.sweep.chunks if hop_b else [1]
        return np.stack([batch if count == "batch" else np.full_like(batch, int(count)) for count in axis])[:, None]

    def _chunk_flags(self, row: int, hop_b: bool) -> npt.NDArray[Any]:
        """Flags (c, b) of every chunk count and batch of one row; all rows with KVP, or all without, have the same."""
        batch = self.plan.batches[slice(*self.block.batches)]
        x = Layout(batch=batch, chunks=self._chunks(hop_b, batch), **{k: v[row] for k, v in self.shapes.items()})
        context = next(self.contexts[index] for index, flags in self.flags.items() if flags[row] == 0)
        flags = shape_reasons(self.plan.model, self.plan.machine, x, context)
        return np.asarray(flags)[:, 0]

    def _dropped(self) -> Dropped:
        """Every context's dropped layouts by family and first reason."""
        batches = self.block.batches[1] - self.block.batches[0]
        chunks = np.array([len(self.plan.chunk_axis(name)) for name in self.names])
        counts = np.zeros((len(self.names), 2 * max(Reason)), dtype=np.int64)
        for index, flags in self.flags.items():
            dead = flags != 0
            np.add.at(counts, (self.family[dead], _lowest(flags[dead])), chunks[self.family[dead]] * batches)
            held = np.clip(self.fits[index] - self.block.batches[0], 0, batches)
            for (hop_b, split), cells in self.chunk_flags.items():
                mine = ~dead & (self.hop_b == hop_b) & (self.split == split)
                refused = np.bincount(_lowest(cells[cells != 0]), minlength=counts.shape[1])
                counts += np.bincount(self.family[mine], minlength=len(self.names))[:, None] * refused
                running = np.concatenate([[0], np.cumsum((cells == 0).sum(axis=0))])
                beyond = running[-1] - running[held[mine]]
                np.add.at(counts, (self.family[mine], int(Reason.OUT_OF_MEMORY)), beyond)
        return {
            name: {reason.name or "": int(row[reason]) for reason in Reason if row[reason]}
            for name, row in zip(self.names, counts, strict=True)
        }

    # --- What runs ---

    def _rest(self, rows: npt.NDArray[np.intp], batch: npt.NDArray[Any]) -> Any:
        """Seconds (n, b) of one stage without its attention; there is no context in them."""
        shapes = {axis: column[rows] for axis, column in self.shapes.items()}
        total: Any = host_seconds(self.plan.machine, self.plan.timing)
        for name, part in parts_of(self.plan.model).items():
            if name != "attention":
                found = self.sums.of_distinct(part, shapes, batch, self.plan.sweep.contexts[0])
                total = total + self.repeats[name][rows] * found.seconds[found.place]
        return total

    def _with_attention(self, index: int, hop_b: bool, rows: Any, span: tuple[int, int]) -> _Slice:
        """Attention of rows with or without HOP-B at a context, for every chunk count."""
        batch = self.plan.batches[slice(*span)]
        shapes = {axis: column[rows] for axis, column in self.shapes.items()}
        attention = parts_of(self.plan.model)["attention"]
        chunks = self._chunks(hop_b, batch)
        found = self.sums.of_distinct(attention, shapes, batch, self.contexts[index], chunks)
        here = slice(*(edge - self.block.batches[0] for edge in span))
        seconds = np.array(found.seconds)
        for split in (False, True):
            alike = self.split[rows[found.first]] == split
            if alike.any():
                flags = self.chunk_flags[hop_b, split][:, None, here]
                seconds[:, alike] = np.where(flags == 0, seconds[:, alike], np.inf)
        return _Slice(context=index, rows=rows, span=span, attention=seconds, place=found.place)

    def _ttl(self, some: _Slice, attention: Any, rest: Any) -> Any:
        """TTL (n, b), or (c, n, b) with chunks; infinite where a layout does not run."""
        rows, columns = some.rows, np.arange(*some.span)
        ttl = attention[..., some.place, :]
        ttl *= self.repeats["attention"][rows]
        ttl += rest
        ttl *= self.shapes["pp"][rows, None]
        beyond = columns >= self.fits[some.context][rows, None]
        if beyond.any():
            ttl[..., beyond] = np.inf
        return ttl

    def _add(self, some: _Slice, rest: Any) -> None:
        """Keep what a slice adds to the frontiers; hand on every point if somebody asks."""
        ttl = self._ttl(some, some.attention.min(axis=0), rest)
        starts = np.flatnonzero(np.diff(self.family[some.rows] * 2**32 + self.group[some.rows], prepend=-1))
        lowest = np.minimum.reduceat(ttl, starts, axis=0)
        batch = self.plan.batches[slice(*some.span)]
        x, y = 1 / lowest, batch / self.group[some.rows[starts], None] / lowest
        families = self.family[some.rows[starts]]
        here = self.found[self.contexts[some.context]]
        for family in np.unique(families):
            name, mine = self.names[family], slice(*np.searchsorted(families, [family, family + 1]))
            left = (lowest[mine] < np.inf) & (y[mine] >= (here[name].attained(x[mine]) if len(here[name]) else 0))
            group, column = np.nonzero(left)
            best = pareto_order(x[mine][left], y[mine][left], lowest[mine][left])
            if best.size:
                points = self._points(some, ttl, np.append(starts, len(ttl)), mine.start + group[best], column[best])
                here[name] = merge([here[name], frontier(points, name)], name)
        if self.on_points:
            ttl = self._ttl(some, some.attention, rest)
            chunk, place, column = np.nonzero(ttl < np.inf)
            if chunk.size:
                self.on_points(self._columns(some, place, column, chunk, ttl[chunk, place, column]))

    def _points(self, some: _Slice, ttl: Any, edges: Any, groups: Any, columns: Any) -> Columns:
        """Columns of the fastest row of each group at a batch (the first, of equals), at its fastest chunk count."""
        place = np.array(
            [
                edges[group] + ttl[edges[group] : edges[group + 1], column].argmin()
                for group, column in zip(groups, columns, strict=True)
            ]
        )
        chunk = some.attention[:, some.place[place], columns].argmin(axis=0)
        return self._columns(some, place, columns, chunk, ttl[place, columns])

    def _columns(self, some: _Slice, place: Any, column: Any, chunk: Any, seconds: Any) -> Columns:
        """Columns of layouts: id, widths, what a user sees, memory."""
        rows, batch, context = some.rows[place], some.span[0] + column, self.contexts[some.context]
        family = self.family[rows]
        chunks = self._chunks(bool(self.hop_b[rows[0]]), self.plan.batches[slice(*some.span)])[chunk, 0, column]
        shape = {axis: values[rows] for axis, values in self.shapes.items()}
        x = Layout(batch=self.plan.batches[batch], chunks=chunks, **shape)
        return {
            "id": self.plan.ids(some.context, self.row[rows], batch, chunk),
            "family": family.astype(np.int16),
            "context": np.full(len(rows), context, dtype=np.int64),
            **{name: np.asarray(values) for name, values in x.columns().items()},
            "gpus": x.gpus,
            "users": x.users,
            "ttl_s": seconds,
            "tokens_per_s_user": 1 / seconds,
            "tokens_per_s_gpu": x.users / x.gpus / seconds,
            "resident_bytes": self._resident(rows, x.batch, context),
            **self._error_bars(x, context),
        }

    def _error_bars(self, x: Layout, context: int) -> Columns:
        """Ends of the TTL's interval, and whether it rests on sizes beyond the measured; none without a calibration."""
        planned = self.plan
        if planned.timing.calibration is None:
            return {}
        step = evaluate(planned.model, planned.machine, planned.timing, planned.sweep.precision, x, context)
        low, high = step.ttl_interval_s
        found = {"ttl_low_s": low, "ttl_high_s": high, "extrapolated": step.rests_on_extrapolation}
        return {name: np.broadcast_to(values, np.shape(x.batch)) for name, values in found.items()}


def _lowest(flags: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """The first reason among each layout's."""
    lowest: npt.NDArray[Any] = flags & -flags
    return lowest


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
    names, reasons = list(planned.sweep.families), [reason.name or "" for reason in Reason]
    none: dict[str, Frontier] = {}
    frontiers = {
        context: {name: found.frontiers.get(context, none).get(name, Frontier(name=name, columns={})) for name in names}
        for context in planned.sweep.contexts
    }
    counts = {name: found.dropped.get(name, {}) for name in names}
    dropped = {name: {reason: mine[reason] for reason in reasons if reason in mine} for name, mine in counts.items()}
    return SweepResult(plan=planned, frontiers=frontiers, dropped=dropped)
