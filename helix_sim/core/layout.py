"""Layout: how one decode step is spread over GPUs. Fields are whole numbers, or columns of them."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from helix_sim.core.kept import kept_property
from helix_sim.core.numeric import Column, common_divisor, floor_div, larger


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Widths of every way to shard, and the batch that runs on them.

    One pipeline stage is `dp` attention groups of tpa·kvp GPUs; each group decodes `batch` requests at a time. The same
    GPUs then form a tpf x ep grid for the feed-forward network (FFN), which sees the tokens of all groups.

    | field  | paper | meaning |
    |--------|-------|---------|
    | batch  | B     | requests that one attention group decodes in one step |
    | tpa    | TPA   | tensor-parallel width of attention (heads) |
    | kvp    | KVP   | KV-parallel width (sequence shards of the KV cache) |
    | dp     |       | data-parallel attention groups |
    | tpf    | TPF   | tensor-parallel width of the FFN; what ep leaves of dp·tpa·kvp unless given |
    | ep     | EP    | expert-parallel width of the FFN |
    | pp     | PP    | pipeline stages; each keeps its own microbatch of `batch` requests in flight |
    | chunks |       | HOP-B pieces of the batch; 1 is HOP-B off |
    | index_kvp |    | sequence shards of an indexer's cache, a divisor of kvp; 1 is a copy on every rank |
    | q_shards |     | KV shards that share a projection of queries and gather them, a divisor of kvp; 1 repeats it |
    | redundant_experts | | copies of busy experts beside the model's own, over all of ep; 0 is none |
    | draft_tokens | | draft tokens of each request that a step verifies; 0 is no drafting |
    | microbatches | | parts of the batch, 2 of which take turns in layers with experts; 1 is the whole batch |

    >>> x = Layout(batch=8, tpa=8, kvp=8)
    >>> x.gpus, x.users, x.tpf, x.token_group
    (64, 8, 64, 64)
    """

    batch: Column = 1
    tpa: Column = 1
    kvp: Column = 1
    dp: Column = 1
    tpf: Column = None  # type: ignore[assignment]
    ep: Column = 1
    pp: Column = 1
    chunks: Column = 1
    index_kvp: Column = 1
    q_shards: Column = 1
    redundant_experts: Column = 0
    draft_tokens: Column = 0
    microbatches: Column = 1

    def __post_init__(self) -> None:
        for name, value in self.columns().items():
            if isinstance(value, list | tuple | range):
                object.__setattr__(self, name, np.asarray(value))
        if self.tpf is None:
            object.__setattr__(self, "tpf", self._tpf_left())

    def _tpf_left(self) -> Any:
        """What ep leaves of dp·tpa·kvp; 1 where a width is no number, which whoever uses the layout refuses."""
        try:
            return larger(floor_div(self.dp * self.tpa * self.kvp, self.ep), 1)
        except (TypeError, ArithmeticError):
            return 1

    @kept_property
    def attention_group(self) -> Any:
        """GPUs that hold the KV cache of one attention group."""
        return self.tpa * self.kvp

    @kept_property
    def attention_groups(self) -> Any:
        """Attention groups of the whole layout, one after another: those of every stage."""
        return self.dp * self.pp

    @kept_property
    def ffn_group(self) -> Any:
        """GPUs of one stage's FFN grid."""
        return self.tpf * self.ep

    @kept_property
    def token_group(self) -> Any:
        """GPUs that share one attention group's tokens after attention: the width of the output projection.

        All tpa·kvp of them in Helix; the tpa of one KV shard in Medha, where the other shards idle.
        """
        return floor_div(self.ffn_group, self.dp)

    @kept_property
    def idle_shards(self) -> Any:
        """KV shards of an attention group whose GPUs have no part in the FFN: none in Helix, all but one in Medha."""
        return (self.token_group < self.attention_group) * (self.kvp - 1)

    @kept_property
    def dense_group(self) -> Any:
        """GPUs that a dense FFN is sharded over: its token group, widened to tpf where tpf spans several groups."""
        return self.token_group * self.pooled_groups

    @kept_property
    def pooled_groups(self) -> Any:
        """Attention groups whose tokens are gathered for a dense FFN: one, unless tpf spans several.

        Every pool has as many: where the groups that tpf spans do not divide dp, the largest number that divides both.

        >>> [int(Layout(dp=dp, tpa=2, tpf=2 * dp // ep, ep=ep).pooled_groups) for dp, ep in ((4, 8), (4, 2), (5, 2))]
        [1, 2, 1]
        """
        return common_divisor(larger(floor_div(self.tpf, self.token_group), 1), self.dp)

    @kept_property
    def users(self) -> Any:
        """Requests in flight: every group of every stage holds a batch."""
        return self.batch * self.dp * self.pp

    @kept_property
    def gpus(self) -> Any:
        """GPUs of the whole layout."""
        return self.dp * self.tpa * self.kvp * self.pp

    def as_floats(self) -> Layout:
        """The same sizes in double precision: whole up to 2^53, and products of them that cannot wrap around."""
        return Layout(**{name: value * 1.0 for name, value in self.columns().items()})

    def columns(self) -> dict[str, Column]:
        """The fields by name, in order."""
        return {name: getattr(self, name) for name in AXES}

    def __str__(self) -> str:
        return ", ".join(filter(None, (f"batch {self.batch}", self.widths)))

    @property
    def widths(self) -> str:
        """The widths that one layout uses, in words without its batch; empty where it is one GPU."""
        columns = self.columns().items()
        return ", ".join(f"{n} {value}" for n, value in columns if n != "batch" and value != NONE.get(n, 1))


AXES = tuple(field.name for field in fields(Layout))

NONE = {"redundant_experts": 0, "draft_tokens": 0}
"""The smallest value of the axes that may be less than 1: that of a layout which does not use them."""

LATER = ("index_kvp", "q_shards", "redundant_experts", "draft_tokens", "microbatches")
"""Axes that answers and baselines of earlier versions lack: where they are absent, a layout does not use them."""
