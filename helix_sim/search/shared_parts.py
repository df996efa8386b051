"""A step as a sum of parts, each of which looks at a few widths of a layout: many layouts share each part.

Attention does not see the expert grid, the FFN does not see the context, neither sees the pipeline. So a sweep
evaluates each kind of the model once for its distinct widths and adds: ttl_s = pp · (sum of repeats · part) on the
busiest stage, from the ops and equations of `step`.
Columns are shapes (n, 1), batches (b,), HOP-B chunk counts (c, 1, b) and contexts (m, 1, 1, 1): what an op does not see
is no axis of its time, so that of attention over many contexts all but its core is evaluated once. A part is (n, b) or,
of several contexts, (m, c, n, b).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from helix_sim.core.collectives import narrowest_piece
from helix_sim.core.layout import Layout
from helix_sim.core.numeric import Column, distinct, floor_div
from helix_sim.ops.layers import Half
from helix_sim.specs.setting import Setting
from helix_sim.step import hidden_times, step_input
from helix_sim.timing.roofline import op_time

Shapes = dict[str, npt.NDArray[Any]]
"""Columns of widths by axis, and of where their groups lie by "places", one row a shape."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shared:
    """A part's seconds (…, n, b) at n distinct widths, a shape of each, and where every shape finds its own."""

    seconds: npt.NDArray[Any]
    first: npt.NDArray[np.intp]
    place: npt.NDArray[np.intp]


def part_seconds(setting: Setting, half: Half, x: Layout, context: Column) -> Any:
    """Seconds of one layer of a kind: its ops, less what overlap hides; columns of most axes are added last."""
    s = step_input(setting, x, context)
    ops = half.ops(s)
    times = {name: op_time(work, setting.machine, setting.timing) for name, work in ops.items()}
    hidden = hidden_times(half, ops, times, half.input(s).layout.chunks, setting.timing)
    sums: dict[int, Any] = {}
    for name, time in times.items():
        seconds = time.seconds - hidden[name] if name in hidden else time.seconds
        sums[np.ndim(seconds)] = sums.get(np.ndim(seconds), 0.0) + seconds
    return sum(sums[axes] for axes in sorted(sums))


def op_seconds(setting: Setting, half: Half, x: Layout, context: Column) -> dict[str, Any]:
    """Seconds of each op of one layer of a kind, less what overlap within the kind hides; the batch in one piece."""
    ops = half.ops(step_input(setting, x, context))
    times = {name: op_time(work, setting.machine, setting.timing) for name, work in ops.items()}
    hidden = hidden_times(half, ops, times, 1, setting.timing)
    return {name: time.seconds - hidden.get(name, 0.0) for name, time in times.items()}


def places_in_domains(shapes: Shapes, domain: int) -> npt.NDArray[np.int64]:
    """A number (n,) for how NVLink domains of `domain` ranks cut the groups of every kind of collective of shapes.

    It is the same where the smallest pieces are; 0 where no group is cut, and what a collective sees are its widths.
    """
    x = Layout(**shapes)
    blocks = (
        (x.attention_group, x.attention_groups),
        (x.token_group, x.attention_groups),
        (x.token_group * x.pooled_groups, floor_div(x.attention_groups, x.pooled_groups)),
        (x.ffn_group, x.pp),
    )
    pieces = ((narrowest_piece(width, count, domain), width) for width, count in blocks)
    cut = [np.asarray(np.where(piece < width, piece, 0), dtype=np.int64) for piece, width in pieces]
    return np.broadcast_to(distinct(cut)[1], np.shape(shapes["tpa"]))


def widths_of(half: Half, shapes: Shapes) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
    """The first shape of each distinct combination of what a kind sees of shapes, and the place of each among those.

    shapes: columns of widths, and of `places_in_domains`, in a column "places".
    """
    given = layout_of(shapes)
    return distinct((*half.kind.sees(given), given.draft_tokens, shapes["places"]))


def layout_of(shapes: Shapes, **sizes: Any) -> Layout:
    """Shapes as a layout, with other sizes of it."""
    return Layout(**{axis: column for axis, column in shapes.items() if axis != "places"}, **sizes)


def shared_seconds(
    setting: Setting, half: Half, shapes: Shapes, batch: npt.NDArray[np.int64], context: Column, chunks: Any = 1
) -> Shared:
    """A kind's seconds at the distinct widths that it sees among `shapes`, which have their places in domains."""
    first, place = widths_of(half, shapes)
    x = layout_of({name: column[first, None] for name, column in shapes.items()}, batch=batch, chunks=chunks)
    cells = np.broadcast_shapes(np.shape(context), np.shape(chunks), (len(first), len(batch)))
    seconds = np.broadcast_to(part_seconds(setting, half, x, context), cells)
    return Shared(seconds=seconds, first=first, place=place)
