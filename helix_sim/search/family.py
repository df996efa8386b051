"""Families as axes: every divisor layout of every GPU count, as columns in a fixed order."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from helix_sim.specs.model import Model
from helix_sim.specs.sweep import Family, Sweep

WIDTH = np.int16
"""What a width is kept as: a sweep has at most 4096 GPUs, and may have millions of shapes."""

SHAPE_AXES = (
    "tpa", "kvp", "dp", "pp", "tpf", "ep", "index_kvp", "q_shards", "redundant_experts", "microbatches",
)  # fmt: skip


@functools.cache
def divisors(n: int) -> tuple[int, ...]:
    """Divisors of n, rising.

    >>> divisors(12)
    (1, 2, 3, 4, 6, 12)
    """
    return tuple(k for k in range(1, n + 1) if n % k == 0)


def allowed(axis: str | int, n: int) -> tuple[int, ...]:
    """Divisors of n that an axis takes: every one (`free`), those from 2 up (`many`), or one number."""
    if axis == "free":
        return divisors(n)
    if axis == "many":
        return divisors(n)[1:]
    return (int(axis),) if n % int(axis) == 0 else ()


def _copies(family: Family, model: Model, ep: int) -> list[int]:
    """Numbers of copies of experts that a family tries and that lie on ep ranks evenly."""
    experts = [ffn.routed for ffn in model.routed_kinds.values()]
    return [
        copies
        for copies in family.redundant_experts or [0]
        if not copies or (experts and all((routed + copies) % ep == 0 for routed in experts))
    ]


def _shapes_of(family: Family, gpus: int, most_tpa: int, model: Model) -> Iterator[tuple[int, ...]]:
    for kvp in allowed(family.kvp, gpus):
        index = allowed(family.index_kvp or "free", kvp) if model.has_indexer else (1,)
        queries = allowed(family.q_shards or 1, kvp)
        for tpa in allowed(family.tpa, gpus // kvp):
            if tpa > most_tpa:
                continue
            for dp in allowed(family.dp, gpus // (kvp * tpa)):
                pp = gpus // (kvp * tpa * dp)
                if pp not in allowed(family.pp, pp):
                    continue
                grid = dp * tpa * (kvp if family.ffn_on == "all" else 1)
                for ep in allowed(family.ep, grid):
                    turns = [n for n in family.microbatches or [1] if n == 1 or (dp > 1 and model.routed_kinds)]
                    more = itertools.product(index, queries, _copies(family, model, ep), turns)
                    yield from ((tpa, kvp, dp, pp, grid // ep, ep, *each) for each in more)


def shapes(sweep: Sweep, name: str, model: Model) -> dict[str, npt.NDArray[Any]]:
    """Columns of SHAPE_AXES of a family, one row a shape; the order is the same in every run.

    A sweep that drafts has a row for each of its draft lengths, too, in a column draft_tokens.

    Rows are sorted by kvp, so that neighbours hold about as much KV cache per request.
    """
    family = sweep.families[name]
    most_tpa = model.fewest_kv_heads if family.tpa_at_most_kv_heads else sweep.most_gpus
    rows = (shape for gpus in sweep.gpu_counts for shape in _shapes_of(family, gpus, most_tpa, model))
    table = np.fromiter(itertools.chain.from_iterable(rows), dtype=WIDTH).reshape(-1, len(SHAPE_AXES))
    table = table[np.argsort(table[:, 1], kind="stable")]
    columns = dict(zip(SHAPE_AXES, table.T, strict=True))
    if sweep.draft is None:
        return columns
    drafts, count = np.array(sweep.draft_counts, dtype=WIDTH), len(table)
    columns = {axis: np.repeat(column, len(drafts)) for axis, column in columns.items()}
    return columns | {"draft_tokens": np.tile(drafts, count)}
