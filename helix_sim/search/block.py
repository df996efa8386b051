"""One block of a sweep: admit what can run, time it in shared parts, keep what no other layout beats."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from helix_sim.core.heap import keep_freed_columns
from helix_sim.core.layout import AXES, Layout
from helix_sim.core.numeric import Column, ceil_div, distinct
from helix_sim.feasibility import Reason, memory_reason, shape_reasons
from helix_sim.ops.drafts import draft_halves, with_drafts
from helix_sim.ops.layers import Half, halves_of
from helix_sim.ops.memory import Memory, memory_of, resident_weights
from helix_sim.ops.microbatches import split_kinds, split_layers, split_stage
from helix_sim.ops.stages import Stage, heavy_stages
from helix_sim.ops.step_input import StepInput
from helix_sim.search.evaluated import Dropped, Evaluated, Frontiers
from helix_sim.search.pareto import Columns, Frontier, frontier, merge, pareto_order
from helix_sim.search.plan import Block, Plan, layouts_of
from helix_sim.search.shared_parts import (
    Shapes,
    Shared,
    layout_of,
    op_seconds,
    places_in_domains,
    shared_seconds,
    widths_of,
)
from helix_sim.specs.setting import Setting
from helix_sim.stacks.rules import REASONS, first_reason, start_flags
from helix_sim.step import (
    evaluate_step,
    host_seconds,
    layer_turns,
    op_tables,
    served_memory,
    stage_seconds,
    step_input,
)

ALIKE = range(4)
"""What `Rows.alike` says of a row."""

CELLS = 2**16
"""Shapes times batches that are added up at a time: enough to amortise numpy's calls, few enough to stay in cache."""

ATTENTION_CELLS = 2**17
"""Widths times batches, chunk counts and contexts at which attention is evaluated at a time, where that is several."""

Ints = npt.NDArray[np.intp]
Seconds = npt.NDArray[np.float64]

OnPoints = Callable[[Columns], None]
"""Called with the columns of layouts that run, some at a time; `error_bars` has theirs."""


def evaluate_block(
    planned: Plan, block: Block, on_points: OnPoints | None = None, within_s: float = np.inf
) -> Evaluated:
    """Evaluate one block; on_points, where given, is called with every layout of it that runs within that TTL [s]."""
    keep_freed_columns()
    rows = Rows.of(planned, block)
    admitted = Admitted(rows)
    kept = Kept(admitted, on_points, within_s)
    for some in timed_slices(admitted, longest=len(planned.hop_b_chunks) if on_points else 1):
        kept.add(some)
    frontiers = with_error_bars(planned, kept.frontiers())
    return Evaluated(layouts=layouts_of(planned, block), frontiers=frontiers, dropped=admitted.dropped())


# --- The rows of a block ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Rows:
    """The rows of a block, sorted by family and attention group; a row is a shape of a family, (n,) each.

    row: its number in the plan. family: the place of its family in the sweep's list. group: its tpa·kvp GPUs. hop_b:
    whether its family splits batches. alike: rows with the same have the same reasons against batches and chunks.
    """

    plan: Plan
    block: Block
    row: Ints
    family: Ints
    group: Ints
    shapes: Shapes

    @classmethod
    def of(cls, planned: Plan, block: Block) -> Rows:
        """The rows of a block of a plan."""
        family, shapes = planned.row_families(block.rows), planned.row_shapes(block.rows)
        group = shapes["tpa"] * shapes["kvp"]
        order = np.lexsort((group, family))
        return cls(
            plan=planned,
            block=block,
            row=np.arange(*block.rows)[order],
            family=family[order],
            group=group[order],
            shapes={axis: column[order] for axis, column in shapes.items()},
        )

    @cached_property
    def names(self) -> list[str]:
        """The families' names, in the sweep's order."""
        return list(self.plan.sweep.families)

    @cached_property
    def hop_b(self) -> npt.NDArray[np.bool_]:
        """Whether each row's family has HOP-B."""
        return np.array([self.plan.sweep.families[name].hop_b for name in self.names])[self.family]

    @cached_property
    def alike(self) -> npt.NDArray[np.intp]:
        """Whether each row has several KV shards, and so an exchange, and whether microbatches: one of ALIKE."""
        found: npt.NDArray[np.intp] = (self.shapes["kvp"] > 1) + 2 * self.turns
        return found

    @cached_property
    def turns(self) -> npt.NDArray[np.bool_]:
        """Whether microbatches take turns in each row's layers with experts."""
        found: npt.NDArray[np.bool_] = self.shapes["microbatches"] > 1
        return found

    @cached_property
    def places(self) -> npt.NDArray[np.int64]:
        """Where each row's groups lie in NVLink domains, (n,)."""
        return places_in_domains(self.shapes, self.plan.machine.domain)

    def shapes_at(self, rows: Ints) -> Shapes:
        """The widths of some rows, and where their groups lie."""
        return {axis: column[rows] for axis, column in {**self.shapes, "places": self.places}.items()}

    @cached_property
    def contexts(self) -> dict[int, int]:
        """The block's contexts by their place in the sweep's list."""
        return {index: self.plan.sweep.contexts[index] for index in range(*self.block.contexts)}

    @cached_property
    def halves(self) -> tuple[Half, ...]:
        """The kinds of the model, and of what drafts for it."""
        return (*halves_of(self.plan.model), *draft_halves(self.plan.setting.drafter))

    @cached_property
    def stages(self) -> tuple[Stage, ...]:
        """The stages of which one is each row's busiest and one its fullest: counts of kinds, (n,) each."""
        stages = heavy_stages(self.plan.model, self.shapes["pp"])
        return with_drafts(stages, self.plan.setting.drafter, self.shapes.get("draft_tokens", 0))

    @cached_property
    def attention_at(self) -> list[dict[tuple[str, str], Any]]:
        """Layers (n,) of each kind that attends on each level of stages; the first level is that of the first stage."""
        return self._levels[1]

    @cached_property
    def levels(self) -> Ints:
        """Which level each stage of each row is of, (stage, n): equal where it has the same layers of attention.

        -1 where a row's first stage comes again.
        """
        return self._levels[0]

    @cached_property
    def attending(self) -> tuple[Half, ...]:
        """Kinds of attention whose time depends on the context or the chunks; of a model without such, all it has."""
        kinds = tuple(half for half in self.halves if half.half == "attention")
        return tuple(half for half in kinds if not half.kind.steady) or kinds

    @cached_property
    def _levels(self) -> tuple[Ints, list[dict[tuple[str, str], Any]]]:
        kinds = [half.key for half in self.attending]
        levels = np.full((len(self.stages), len(self.row)), -1)
        counts: list[dict[tuple[str, str], Any]] = []
        for stage, level in zip(self.stages, levels, strict=True):
            left = np.any([stage[key] != self.stages[0][key] for key in stage], axis=0)
            left |= stage is self.stages[0]
            for number, known in enumerate(counts):
                equal = left & np.all([stage[key] == known[key] for key in kinds], axis=0)
                level[equal], left = number, left & ~equal
            for number, known in enumerate(counts):  # levels that these rows have no stage of yet
                free = left & (known[kinds[0]] < 0)
                level[free], left = number, left & ~free
                counts[number] = {key: np.where(free, stage[key], known[key]) for key in kinds}
            if left.any():
                level[left] = len(counts)
                counts.append({key: np.where(left, stage[key], -1.0) for key in kinds})
        return levels, counts

    @cached_property
    def accepted(self) -> npt.NDArray[Any]:
        """Tokens that a step of each row yields, (n,)."""
        drafter = self.plan.setting.drafter
        return np.asarray(drafter.tokens(self.shapes["draft_tokens"])) if drafter else np.ones(len(self.row))

    def batches(self, span: tuple[int, int]) -> npt.NDArray[Any]:
        """The batch sizes of a range of the plan's list."""
        return self.plan.batches[slice(*span)]

    def chunks(self, hop_b: bool, batch: npt.NDArray[Any]) -> Any:
        """Chunk counts (c, 1, b) of families with or without HOP-B; 1 where that is the only one."""
        axis = self.plan.hop_b_chunks if hop_b else [1]
        if axis == [1]:
            return 1
        return np.stack([batch if count == "batch" else np.full_like(batch, int(count)) for count in axis])[:, None]

    def chunks_at(self, rows: Ints, batch: Ints, chunk: Ints) -> npt.NDArray[np.int64]:
        """Chunk counts of layouts, by places of rows, batches in the plan's list, and chunk counts in their axis."""
        axis = [0 if count == "batch" else int(count) for count in self.plan.hop_b_chunks]
        found = np.where(self.hop_b[rows], np.array(axis, dtype=np.int64)[chunk], 1)
        return np.where(found, found, self.plan.batches[batch])

    def step_input(self, rows: Any, context: Column, batch: Column = 1) -> StepInput:
        """One decode step of some rows' shapes, a column entry each."""
        x = Layout(batch=batch, **{axis: column[rows] for axis, column in self.shapes.items()})
        return step_input(self.plan.setting, x, context)


def at_rows(stage: Stage, rows: Any) -> dict[tuple[str, str], Any]:
    """A stage's counts at some rows."""
    return {key: counts[rows] for key, counts in stage.items()}


# --- Admit -----------------------------------------------------------------------------------------------------------


class Admitted:
    """What of a block can run: flags of each context's shapes, the batches they have memory for, and of chunk counts.

    flags[context]: why each row cannot run, (n,). fits[context]: how many batch sizes of the plan's list each row has
    memory for, (n,). most: the largest of these over the contexts. chunk_flags[hop_b, alike]: why chunk counts cannot
    be at each batch of the block, (c, b).
    """

    def __init__(self, rows: Rows) -> None:
        self.rows, planned = rows, rows.plan
        x = Layout(batch=rows.shapes["microbatches"], **rows.shapes)  # of one request each, which no batch is short of
        flags = reasons_against(planned, x, np.array(list(rows.contexts.values()))[:, None])
        flags = np.broadcast_to(flags, (len(rows.contexts), len(rows.row)))
        self.flags = dict(zip(rows.contexts, flags, strict=True))
        able = np.flatnonzero(np.any([flags == 0 for flags in self.flags.values()], axis=0))
        self.weights = np.zeros((len(rows.stages), len(rows.row)))
        if able.size:
            self.weights[:, able] = self._weights(able)
        self.fits = dict(zip(rows.contexts, self._fits(flags == 0), strict=True))
        self.most = np.max(list(self.fits.values()), axis=0)
        self.chunk_flags = {
            (hop_b, kind): self._chunk_flags(alike[0], hop_b)
            for hop_b in (False, True)
            for kind in ALIKE
            if (alike := able[(rows.hop_b[able] == hop_b) & (rows.alike[able] == kind)]).size
        }

    def memory(self, rows: Any, batch: Any, context: Column) -> Memory:
        """Memory of the fullest GPU, for each row at its batch; weights depend on neither batch nor context."""
        planned, stages = self.rows.plan, [at_rows(stage, rows) for stage in self.rows.stages]
        s, weights = self.rows.step_input(rows, context, batch), self.weights[:, rows]
        return memory_of(s, stages, weights, planned.machine, served_memory(planned.timing))

    def _weights(self, rows: Ints) -> Any:
        """Bytes (stage, n) of weights on a GPU of each stage."""
        tables = op_tables(self.rows.step_input(rows, self.rows.plan.sweep.contexts[0]))
        return np.stack([resident_weights(tables, at_rows(stage, rows)) for stage in self.rows.stages])

    def _fits(self, able: npt.NDArray[Any]) -> Ints:
        """How many batch sizes of the list (context, n) have memory, by bisection: memory only grows with the batch."""
        (place, rows), batches = np.nonzero(able), self.rows.plan.batches
        context = np.array(list(self.rows.contexts.values()))[place]
        low, high = np.zeros(len(rows), dtype=np.intp), np.full(len(rows), len(batches), dtype=np.intp)
        while (low < high).any():
            middle = np.minimum((low + high) // 2, len(batches) - 1)
            fits = memory_reason(self.memory(rows, batches[middle], context)) == 0
            low, high = np.where(fits & (low < high), middle + 1, low), np.where(fits, high, np.minimum(middle, high))
        found = np.zeros(able.shape, dtype=np.intp)
        found[place, rows] = low
        return found

    def _chunk_flags(self, row: int, hop_b: bool) -> npt.NDArray[Any]:
        """Flags (c, b) of every chunk count and batch of one row; all that are alike have the same."""
        batch = self.rows.batches(self.rows.block.batches)
        shape = {axis: column[row] for axis, column in self.rows.shapes.items()}
        x = Layout(batch=batch, chunks=self.rows.chunks(hop_b, batch), **shape)
        context = next(self.rows.contexts[index] for index, flags in self.flags.items() if flags[row] == 0)
        return np.asarray(reasons_against(self.rows.plan, x, context)).reshape(-1, len(batch))

    def dropped(self) -> Dropped:
        """Every context's dropped layouts by family and first reason."""
        rows, first = self.rows, self.rows.block.batches[0]
        batches = rows.block.batches[1] - first
        chunks = np.array([len(rows.plan.chunk_axis(name)) for name in rows.names])
        counts = np.zeros((len(rows.names), len(REASONS)), dtype=np.int64)
        for index, flags in self.flags.items():
            dead = flags != 0
            np.add.at(counts, (rows.family[dead], first_reason(flags[dead])), chunks[rows.family[dead]] * batches)
            held = np.clip(self.fits[index] - first, 0, batches)
            for (hop_b, kind), cells in self.chunk_flags.items():
                mine = ~dead & (rows.hop_b == hop_b) & (rows.alike == kind)
                refused = np.bincount(first_reason(cells[cells != 0]), minlength=counts.shape[1])
                counts += np.bincount(rows.family[mine], minlength=len(rows.names))[:, None] * refused
                running = np.concatenate([[0], np.cumsum((cells == 0).sum(axis=0))])
                beyond = running[-1] - running[held[mine]]
                np.add.at(counts, (rows.family[mine], list(Reason).index(Reason.OUT_OF_MEMORY)), beyond)
        return {
            name: {reason: int(count) for reason, count in zip(REASONS, row, strict=True) if count}
            for name, row in zip(rows.names, counts, strict=True)
        }


def reasons_against(planned: Plan, x: Layout, context: Column) -> Any:
    """Flags of the reasons against layouts of a plan that need no memory count, those of its stacks after physics'."""
    flags = shape_reasons(planned.model, planned.machine, x, context)
    if stacks := planned.sweep.stacks:
        flags = flags | start_flags(stacks, planned.model, planned.machine, planned.setting.precision, x)
    return flags


# --- Time ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Level:
    """The stages of some rows that have the same layers of attention: seconds are times · attention + rest.

    rows: places in the slice. attention: seconds (c, k, b), of several contexts (m, c, k, b), at its k distinct widths,
    infinite where a chunk count cannot be; place: where each row finds its own among those; times: how often it runs,
    (n, 1). rest: seconds (n, b) of all else on the busiest of these stages.
    """

    rows: Ints
    attention: Seconds
    place: Ints
    times: Any
    rest: Seconds

    def at(self, attention: Seconds, runs: npt.NDArray[np.bool_]) -> Level:
        """The same with the attention of one of several contexts, of the rows that run there."""
        if runs.all():
            return replace(self, attention=attention)
        own = runs[self.rows]
        return Level(
            rows=(np.cumsum(runs) - 1)[self.rows[own]],
            attention=attention,
            place=self.place[own],
            times=self.times[own],
            rest=self.rest[own],
        )

    def seconds(self, attention: Seconds) -> Any:
        """Seconds of a stage, (n, b) or, with chunks, (c, n, b)."""
        found: Any = attention.take(self.place, axis=-2)
        if np.all(self.times):
            found *= self.times
        else:  # stages without what attends: a chunk count that cannot be, cannot be there either
            np.multiply(found, self.times, out=found, where=np.isfinite(found))
        found += self.rest
        return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Slice:
    """Rows and batches (a half-open range of the plan's list) whose layouts are added up together, at one context.

    levels: the stages among which each row's busiest is; the first is of all rows. fits: batch sizes of the plan's list
    that each row has memory for. stages: pipeline stages of each row. accepted: tokens that its step yields.
    """

    context: int
    rows: Ints
    span: tuple[int, int]
    levels: tuple[Level, ...]
    fits: Ints
    stages: npt.NDArray[Any]
    accepted: npt.NDArray[Any]

    @property
    def attend_alike(self) -> bool:
        """Whether all levels have the same attention, which differs in how often it runs alone."""
        return all(level.attention is self.levels[0].attention for level in self.levels)

    def ttl_s(self, fastest: bool) -> Any:
        """TTL (c, n, b) by chunk count, or (n, b) of the fastest; infinite where a layout does not run."""
        # one kind of attention: what is fastest for it is fastest for every stage
        alike = self.attend_alike
        first, *others = (
            (level, level.seconds(level.attention.min(axis=0) if fastest and alike else level.attention))
            for level in self.levels
        )
        ttl = first[1]
        for level, seconds in others:
            ttl[..., level.rows, :] = np.maximum(ttl[..., level.rows, :], seconds)
        if fastest and not alike:
            ttl = ttl.min(axis=0)
        ttl *= self.stages[:, None]
        if (self.accepted != 1).any():
            ttl /= self.accepted[:, None]
        if self.fits.min() < self.span[1]:
            np.copyto(ttl, np.inf, where=np.arange(*self.span) >= self.fits[:, None])
        return ttl

    def chunk_at(self, place: Ints, column: Ints) -> Ints:
        """The fastest chunk count of some rows, each at a batch; the first of equals."""
        first = self.levels[0]
        if self.attend_alike:
            return np.asarray(first.attention[:, first.place[place], column].argmin(axis=0))
        found: Any = -np.inf
        for level in self.levels:
            its = np.full(len(self.rows), -1)
            its[level.rows] = np.arange(len(level.place))
            its = its[place]
            own = level.times[its, 0] * level.attention[:, level.place[its], column] + level.rest[its, column]
            found = np.maximum(found, np.where(its >= 0, own, -np.inf))
        fastest: Ints = found.argmin(axis=0)
        return fastest


@dataclass(frozen=True, slots=True, kw_only=True)
class Rest:
    """All of a stage but what attends, for the stages of some rows that have the same layers of that.

    place: of each row asked for among those that have such a stage; -1 of others. counts: layers (n,) of each kind of
    attention. seconds: (n, b).
    """

    place: Ints
    counts: dict[tuple[str, str], Any]
    seconds: Seconds


def timed_slices(admitted: Admitted, longest: int) -> Iterator[Slice]:
    """Every slice of batches of a block at every context; `longest`: chunk counts that are kept at once."""
    rows, contexts = admitted.rows, list(admitted.rows.contexts)
    first, stop = rows.block.batches
    while first < stop and (some := np.flatnonzero(admitted.most > first)).size:
        last = min(first + max(CELLS // some.size // longest, 16), stop)
        together = [[index] for index in contexts] if rows.plan.setting.drafter else [contexts]
        for indices in together:
            rests = _rests(rows, some, (first, last), rows.contexts[indices[0]])
            for hop_b in (False, True):
                here = np.flatnonzero(rows.hop_b[some] == hop_b)
                turns = rows.turns[some[here]]
                yield from _slices(admitted, indices, hop_b, some, here[~turns], (first, last), rests)
                for index in indices if turns.any() else ():
                    mine = some[here[turns]]
                    if (mine := mine[admitted.fits[index][mine] > first]).size:
                        yield _slice_of_turns(admitted, index, hop_b, mine, (first, last))
        first = last


def _rests(rows: Rows, some: Ints, span: tuple[int, int], context: int) -> list[Rest]:
    """Seconds of stages without what attends: drafts alone see the context. The first is of all rows."""
    setting, batch = rows.plan.setting, rows.batches(span)
    shapes = rows.shapes_at(some)
    parts = {
        half.key: shared_seconds(setting, half, shapes, batch, context)
        for half in rows.halves
        if half not in rows.attending
    }
    host, levels = host_seconds(setting), rows.levels[:, some]
    busiest = [np.full((len(some), len(batch)), -np.inf) for _ in range(levels.max() + 1)]
    for stage, level in zip(rows.stages, levels, strict=True):
        here = np.flatnonzero(level >= 0)
        counts = at_rows(stage, some[here])
        seconds: Any = np.full((len(here), len(batch)), float(host))
        for key, part in parts.items():
            if counts[key].any():
                own = part.seconds.take(part.place[here], axis=0)
                own *= counts[key][:, None]
                seconds += own
        for number, most in enumerate(busiest):
            its = level[here] == number
            most[here[its]] = np.maximum(most[here[its]], seconds[its])
    found = [Rest(place=np.arange(len(some)), counts=at_rows(rows.attention_at[0], some), seconds=busiest[0])]
    for counts, most in zip(rows.attention_at[1:], busiest[1:], strict=False):
        # a stage with no more of any kind of attention than the first, and no more of all else, is never the busiest
        fewer = np.all([counts[key] <= first for key, first in rows.attention_at[0].items()], axis=0)[some]
        here = np.flatnonzero((most > np.where(fewer[:, None], busiest[0], -np.inf)).any(axis=1))
        if here.size:
            place = np.full(len(some), -1)
            place[here] = np.arange(len(here))
            found.append(Rest(place=place, counts=at_rows(counts, some[here]), seconds=most[here]))
    return found


def _slices(
    admitted: Admitted,
    indices: list[int],
    hop_b: bool,
    some: Ints,
    here: Ints,
    span: tuple[int, int],
    rests: list[Rest],
) -> Iterator[Slice]:
    """Slices of rows with or without HOP-B at some contexts, as many of which are evaluated at a time as are cheap.

    here: places of the rows among `some`, which the rests are of.
    """
    rows, batch = admitted.rows, admitted.rows.batches(span)
    chunks = rows.chunks(hop_b, batch)
    while indices:
        mine = here[admitted.fits[indices[0]][some[here]] > span[0]]
        widths = len(distinct((rows.shapes["tpa"][some[mine]], rows.shapes["kvp"][some[mine]]))[0])
        count = max(ATTENTION_CELLS // (max(widths, 1) * np.size(chunks + batch)), 1)
        group, indices = indices[:count], indices[count:]
        fits = np.stack([admitted.fits[index][some[here]] > span[0] for index in group])
        if not fits.any():
            continue
        mine = here[fits.any(axis=0)]
        levels = list(_attended(admitted, group, hop_b, some, mine, span, rests))
        for number, index in enumerate(group):
            runs = admitted.fits[index][some[mine]] > span[0]
            if not runs.any():
                continue
            own = some[mine[runs]]
            here_at = {id(level.attention): level.attention[number] for level in levels}
            yield Slice(
                context=index,
                rows=own,
                span=span,
                levels=tuple(
                    level.at(here_at[id(level.attention)], runs) for level in levels if runs[level.rows].any()
                ),
                fits=admitted.fits[index][own],
                stages=rows.shapes["pp"][own],
                accepted=rows.accepted[own],
            )


def _attended(
    admitted: Admitted,
    indices: list[int],
    hop_b: bool,
    some: Ints,
    mine: Ints,
    span: tuple[int, int],
    rests: list[Rest],
) -> Iterator[Level]:
    """Attention of rows at some contexts, for every chunk count, beside each rest of their step that they have."""
    rows, own = admitted.rows, some[mine]
    parts = _attention(rows, own, rows.batches(span), [rows.contexts[index] for index in indices], hop_b)
    here = slice(*(edge - rows.block.batches[0] for edge in span))
    refused = {kind: np.where(flags[:, here] == 0, 0.0, np.inf) for (of, kind), flags in admitted.chunk_flags.items()
               if of == hop_b}  # fmt: skip

    def possible(seconds: Any, widths: Ints) -> Any:
        """Seconds (m, c, k, b) at some rows' widths, infinite where a chunk count cannot be."""
        kinds, place = np.unique(rows.alike[widths], return_inverse=True)
        if not any(refused[kind].any() for kind in kinds.tolist()):
            return seconds
        return seconds + np.stack([refused[kind] for kind in kinds.tolist()], axis=1).take(place, axis=1)

    alone = possible(parts[0][1].seconds, own[parts[0][1].first]) if len(parts) == 1 else None
    for rest in rests:
        its = rest.place[mine]
        at = np.flatnonzero(its >= 0)
        if not at.size:
            continue
        its = its[at]
        counts = {key: values[its] for key, values in rest.counts.items()}
        attention, place, times = alone, parts[0][1].place[at], counts[parts[0][0].key][:, None]
        if attention is None:  # kinds are added up, each as often as it runs on such a stage
            first, place = distinct((*(shared.place[at] for _, shared in parts), *counts.values()))
            total = sum(
                counts[half.key][first][:, None] * shared.seconds[..., shared.place[at][first], :]
                for half, shared in parts
            )
            attention, times = possible(total, own[at[first]]), np.ones((len(at), 1))
        yield Level(rows=at, attention=attention, place=place, times=times, rest=rest.seconds.take(its, axis=0))


def _slice_of_turns(admitted: Admitted, index: int, hop_b: bool, own: Ints, span: tuple[int, int]) -> Slice:
    """Rows whose microbatches take turns, at a context: their layers couple attention with the FFN, row by row.

    The kinds' ops are still evaluated at distinct widths alone.
    """
    rows, planned = admitted.rows, admitted.rows.plan
    setting, batch, context = planned.setting, rows.batches(span), rows.contexts[index]
    shapes = rows.shapes_at(own)
    layers = split_layers(planned.model)
    parts = int(shapes.pop("microbatches")[0])  # two, of every row
    part = ceil_div(batch, parts)
    ops = {half.key: _op_seconds(setting, half, shapes, part, context) for half in split_kinds(layers)}
    turns = {each.key: layer_turns(each, ops[each.attention.key], ops[each.ffn.key], parts, setting.timing)
             for each in layers}  # fmt: skip
    whole = {half.key: shared_seconds(setting, half, shapes, batch, context) for half in rows.halves}
    busiest: Any = 0.0
    stages = heavy_stages(planned.model, shapes["pp"], layers=True)
    for stage in with_drafts(stages, setting.drafter, shapes.get("draft_tokens", 0)):
        counts = {key: count[:, None] for key, count in split_stage(stage, layers, parts).items()}
        alone = {key: shared.seconds[shared.place] for key, shared in whole.items() if counts[key].any()}
        busiest = np.maximum(busiest, stage_seconds(counts, alone, host_seconds(setting), turns))
    here = slice(*(edge - rows.block.batches[0] for edge in span))
    kinds, place = np.unique(rows.alike[own], return_inverse=True)
    flags = np.stack([admitted.chunk_flags[hop_b, kind][:, here] for kind in kinds.tolist()], axis=1)
    level = Level(
        rows=np.arange(len(own)), attention=np.where(flags == 0, 0.0, np.inf), place=place,
        times=np.ones((len(own), 1)), rest=np.broadcast_to(busiest, (len(own), len(batch))),
    )  # fmt: skip
    return Slice(
        context=index, rows=own, span=span, levels=(level,), fits=admitted.fits[index][own], stages=shapes["pp"],
        accepted=rows.accepted[own],
    )  # fmt: skip


def _op_seconds(setting: Setting, half: Half, shapes: Shapes, batch: Any, context: int) -> dict[str, Any]:
    """Seconds (n, b) of each op of a microbatch, evaluated at the distinct widths of some shapes."""
    first, place = widths_of(half, shapes)
    x = layout_of({name: column[first, None] for name, column in shapes.items()}, batch=batch)
    size = (len(first), len(batch))
    return {
        name: np.broadcast_to(seconds, size)[place] for name, seconds in op_seconds(setting, half, x, context).items()
    }


def _attention(rows: Rows, some: Ints, batch: Any, contexts: list[int], hop_b: bool) -> list[tuple[Half, Shared]]:
    """Seconds (m, c, k, b) of each kind that attends at m contexts and c chunk counts, at its k distinct widths."""
    shapes = rows.shapes_at(some)
    context, chunks = np.array(contexts).reshape(-1, 1, 1, 1), rows.chunks(hop_b, batch)
    setting = rows.plan.setting
    return [(half, shared_seconds(setting, half, shapes, batch, context, chunks)) for half in rows.attending]


# --- Keep ------------------------------------------------------------------------------------------------------------


class Kept:
    """The frontiers of a block so far, by context and family; hands on every layout within a TTL if somebody asks.

    Two facts make a frontier cheap, and both are exact. At one shape and batch, users and GPUs are the same, so the
    fastest chunk count has the best of both axes. At one batch and attention group (tpa·kvp GPUs), users per GPU are
    the same whatever dp, pp, tpf and ep, so again the lowest TTL has the best of both.
    """

    def __init__(self, admitted: Admitted, on_points: OnPoints | None, within_s: float) -> None:
        self.admitted, self.rows, self.on_points = admitted, admitted.rows, on_points
        self.longest_s = min(within_s, np.finfo(float).max)  # what does not run has an infinite TTL
        self._best = {
            index: {name: Frontier(name=name, columns={}) for name in self.rows.names} for index in self.rows.contexts
        }

    def frontiers(self) -> Frontiers:
        """A frontier for each context and family, whose columns are found for all their points in one call."""
        found = [each.columns for families in self._best.values() for each in families.values() if len(each)]
        places = {name: np.concatenate([each[name] for each in found]) for name in found[0]} if found else {}
        parts = np.cumsum([len(each["id"]) for each in found])[:-1]
        columns = (
            {name: iter(np.split(column, parts)) for name, column in self._columns(**places).items()} if found else {}
        )
        return {
            self.rows.contexts[index]: {
                name: Frontier(
                    name=name, columns={key: next(part) for key, part in columns.items()} if len(each) else {}
                )
                for name, each in families.items()
            }
            for index, families in self._best.items()
        }

    def add(self, some: Slice) -> None:
        """Keep what a slice adds to the frontiers; hand on every point of it if somebody asks."""
        rows, ttl = self.rows, some.ttl_s(fastest=True)
        starts = np.flatnonzero(np.diff(rows.family[some.rows] * 2**32 + rows.group[some.rows], prepend=-1))
        lowest = np.minimum.reduceat(ttl, starts, axis=0)
        x = 1 / lowest
        y = rows.batches(some.span) / rows.group[some.rows[starts], None] / lowest
        families = rows.family[some.rows[starts]]
        here = self._best[some.context]
        for family in np.unique(families):
            name, mine = rows.names[family], slice(*np.searchsorted(families, [family, family + 1]))
            left = (lowest[mine] < np.inf) & (y[mine] >= (here[name].attained(x[mine]) if len(here[name]) else 0))
            group, column = np.nonzero(left)
            best = pareto_order(x[mine][left], y[mine][left], lowest[mine][left])
            if best.size:
                points = self._points(some, ttl, np.append(starts, len(ttl)), mine.start + group[best], column[best])
                points |= {"tokens_per_s_user": x[mine][left][best], "tokens_per_s_gpu": y[mine][left][best]}
                here[name] = merge([here[name], frontier(points, name)], name)
        if self.on_points:
            ttl = some.ttl_s(fastest=False)
            chunk, place, column = np.nonzero(ttl <= self.longest_s)
            if chunk.size:
                self.on_points(self._columns(**self._places(some, place, column, chunk, ttl[chunk, place, column])))

    def _points(self, some: Slice, ttl: Any, edges: Any, groups: Any, columns: Any) -> Columns:
        """Places of the fastest row of each group at a batch (the first, of equals), at its fastest chunk count."""
        place = np.array(
            [
                edges[group] + ttl[edges[group] : edges[group + 1], column].argmin()
                for group, column in zip(groups, columns, strict=True)
            ]
        )
        return self._places(some, place, columns, some.chunk_at(place, columns), ttl[place, columns])

    def _places(self, some: Slice, place: Any, column: Any, chunk: Any, seconds: Any) -> Columns:
        """Layouts of a slice: ids, places of contexts, rows, batches and chunk counts, TTL."""
        row, batch = some.rows[place], some.span[0] + column
        return {
            "id": self.rows.plan.ids(some.context, self.rows.row[row], batch, chunk),
            "index": np.full(len(row), some.context),
            "row": row,
            "batch": batch,
            "chunk": chunk,
            "ttl_s": seconds,
        }

    def _columns(self, *, id: Any, index: Any, row: Any, batch: Any, chunk: Any, ttl_s: Any, **_: Any) -> Columns:
        """Columns of layouts: id, widths, what a user sees, memory."""
        own, planned = self.rows, self.rows.plan
        context = np.array(planned.sweep.contexts, dtype=np.int64)[index]
        shape = {axis: values[row] for axis, values in own.shapes.items()}
        x = Layout(batch=planned.batches[batch], chunks=own.chunks_at(row, batch, chunk), **shape)
        return {
            "id": id,
            "family": own.family[row].astype(np.int16),
            "context": context,
            **{name: np.broadcast_to(values, len(row)) for name, values in x.columns().items()},
            "gpus": x.gpus,
            "users": x.users,
            "ttl_s": ttl_s,
            "tokens_per_s_user": 1 / ttl_s,
            "tokens_per_s_gpu": x.users / x.gpus / ttl_s,
            "resident_bytes": self.admitted.memory(row, x.batch, context).resident_bytes,
        }


# --- How far it may be off -------------------------------------------------------------------------------------------


def with_error_bars(planned: Plan, frontiers: Frontiers) -> Frontiers:
    """Frontiers with the columns of `error_bars`, which are evaluated for all their points in one call."""
    found = [each for families in frontiers.values() for each in families.values() if len(each)]
    if planned.timing.calibration is None or not found:
        return frontiers
    every = {name: np.concatenate([each.columns[name] for each in found]) for name in (*AXES, "context")}
    parts = np.cumsum([len(each) for each in found])[:-1]
    bars = {name: iter(np.split(column, parts)) for name, column in error_bars(planned, every).items()}
    return {
        context: {
            key: replace(each, columns={**each.columns, **{name: next(part) for name, part in bars.items()}})
            if len(each)
            else each
            for key, each in families.items()
        }
        for context, families in frontiers.items()
    }


def error_bars(planned: Plan, columns: Columns) -> Columns:
    """Ends of the TTL's interval [s] of layouts, ttl_low_s and ttl_high_s, and `extrapolated`: whether sizes beyond the
    measured make up a hundredth of it; no columns on an unmeasured timing.

    They take as long as the whole step of each layout, so that searches ask for what they keep alone.
    """
    if planned.timing.calibration is None:
        return {}
    starts = range(0, len(columns["context"]), BARS)
    parts = [
        _error_bars(planned, {name: columns[name][at : at + BARS] for name in (*AXES, "context")}) for at in starts
    ]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]} if parts else {}


BARS = 4096
"""Layouts whose intervals are found at a time: a whole step's columns of them stay small. No result depends on it."""


def _error_bars(planned: Plan, columns: Columns) -> Columns:
    step = evaluate_step(planned.setting, Layout(**{name: columns[name] for name in AXES}), columns["context"])
    low, high = step.ttl_interval_s
    found = {"ttl_low_s": low, "ttl_high_s": high, "extrapolated": step.rests_on_extrapolation}
    return {name: np.broadcast_to(values, np.shape(columns["context"])) for name, values in found.items()}
