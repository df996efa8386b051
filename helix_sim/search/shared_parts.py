"""A step as a sum of parts, each of which looks at a few widths of a layout: many layouts share each part.

Attention does not see the expert grid, the FFN does not see the context, neither sees the pipeline. So a sweep
evaluates each part once for its distinct widths and adds: ttl_s = pp · (sum of repeats · part), from the ops and
equations of `step`.
Columns are shapes (n, 1), batches (b,) and HOP-B chunk counts (c, 1, b); a part is (n, b) or, with chunks, (c, n, b).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from helix_sim.core.layout import Layout
from helix_sim.core.numeric import Column, ceil_div
from helix_sim.core.work import Work
from helix_sim.ops import ffn
from helix_sim.ops.attention import Decode
from helix_sim.specs.machine import Machine
from helix_sim.specs.model import Model
from helix_sim.specs.precision import Precision
from helix_sim.specs.timing import Timing
from helix_sim.step import attention_ops, dense_ops, end_ops, hidden_times, moe_ops
from helix_sim.timing.roofline import op_time

Shapes = dict[str, npt.NDArray[Any]]
"""Columns of widths by axis, one row a shape."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """Ops that run equally often, and what of a layout they look at besides the batch, the context and the chunks."""

    ops: Callable[[Decode], dict[str, Work]]
    sees: Callable[[Layout], tuple[Column, ...]]


def parts_of(model: Model) -> dict[str, Part]:
    """The parts of a model's step, by the names of `step.stage_repeats`."""
    found = {
        "ends": Part(ops=end_ops, sees=lambda x: (x.token_group, np.minimum(x.pp, 2), x.dp * x.attention_group)),
        "attention": Part(ops=attention_ops, sees=lambda x: (x.tpa, x.kvp, x.token_group)),
    }
    if model.dense_layers:
        found["dense"] = Part(ops=dense_ops, sees=lambda x: (x.token_group, x.idle_shards, x.pooled_groups))
    if model.moe_layers:
        found["moe"] = Part(ops=_moe_ops, sees=lambda x: (x.dp, x.tpf, x.ep, x.idle_shards))
    return found


def _moe_ops(d: Decode) -> dict[str, Work]:
    """The MoE ops of columns of shapes, with routing, the costliest equation, once for each distinct (ep, dp).

    Wide EP, where each rank holds so few experts that they are summed exactly, apart from the rest, where a law does.
    """
    moe, x = d.model.experts, d.layout
    assert moe is not None
    ep, dp = np.ravel(x.ep), np.ravel(x.dp)
    first, place = distinct((ep, dp))
    few = int(np.sum(ceil_div(moe.routed, ep[first]) > ffn.EXACT_UP_TO))
    ranks = [
        ffn.busiest_rank(replace(d, layout=Layout(batch=x.batch, dp=dp[rows, None], ep=ep[rows, None])), moe)
        for rows in (first[:few], first[few:])
    ]
    names = [field.name for field in fields(ffn.BusiestRank)]
    spread = {name: np.concatenate([getattr(r, name) for r in ranks])[place] for name in names}
    return moe_ops(d, ffn.BusiestRank(**spread))


@dataclass(frozen=True, slots=True, kw_only=True)
class Shared:
    """A part's seconds (…, n, b) at n distinct widths, a shape of each, and where every shape finds its own."""

    seconds: npt.NDArray[Any]
    first: npt.NDArray[np.intp]
    place: npt.NDArray[np.intp]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sums:
    """What turns a part into seconds: the model, the machine, the timing and the formats of a sweep."""

    model: Model
    machine: Machine
    timing: Timing
    precision: Precision

    def seconds(self, part: Part, x: Layout, context: Column) -> Any:
        """One execution of a part: its ops, less what overlap hides; ops in pieces, the long columns, last."""
        x = x.as_floats()
        d = Decode(model=self.model, precision=self.precision, layout=x, context=np.multiply(context, 1.0))
        ops = part.ops(d)
        times = {name: op_time(work, self.machine, self.timing) for name, work in ops.items()}
        hidden = hidden_times(d, ops, times, self.timing)
        whole: Any = 0.0
        pieces: Any = 0.0
        for name, time in times.items():
            seconds = time.seconds - hidden[name] if name in hidden else time.seconds
            if np.ndim(ops[name].pieces):
                pieces = pieces + seconds
            else:
                whole = whole + seconds
        return whole + pieces

    def of_distinct(
        self, part: Part, shapes: Shapes, batch: npt.NDArray[Any], context: Column, chunks: Any = 1
    ) -> Shared:
        """A part's seconds at the distinct widths that it sees among `shapes`."""
        first, place = distinct(part.sees(Layout(**shapes)))
        x = Layout(batch=batch, chunks=chunks, **{name: column[first, None] for name, column in shapes.items()})
        cells = np.broadcast_shapes(np.shape(chunks), (len(first), len(batch)))
        return Shared(seconds=np.broadcast_to(self.seconds(part, x, context), cells), first=first, place=place)


def distinct(columns: Iterable[Column]) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
    """The first row of each distinct combination of whole numbers, and the place of every row among those.

    >>> first, place = distinct((np.array([2, 1, 2]), np.array([1, 5, 1])))
    >>> first.tolist(), place.tolist()
    ([1, 0], [1, 0, 1])
    """
    code: npt.NDArray[Any] = np.zeros(1, dtype=np.int64)
    for column in columns:
        code = code * (np.max(column, initial=0) + 1) + column
    _, first, place = np.unique(code, return_index=True, return_inverse=True)
    return first, place.reshape(-1)
