"""A sweep as its YAML file says it: what is searched."""

from __future__ import annotations

import os
from typing import Annotated, Any, Literal, Self

from pydantic import ConfigDict, Discriminator, Field, StrictInt, Tag, model_validator

from helix_sim.core.text import is_path, said
from helix_sim.specs.draft import MOST_DRAFTS
from helix_sim.specs.precision import Precision
from helix_sim.specs.values import Count, Name, NamesFiles, NaturalCount, Number, Record, Size, Text, Word

USUAL_DRAFTS = 8
"""Drafts of a step that a sweep with a draft tries at most, unless it says others."""

Axis = Literal["free", "many"] | Count
"""A width of a family: every divisor (`free`), every divisor of at least 2 (`many`), or one number."""


Against = Literal["tokens_per_s_gpu", "usd_per_million_tokens", "joules_per_token"]
"""What interactivity is traded for: throughput, or a cost of which less is better."""
AGAINST = (
    "what pictures draw interactivity against: throughput unless given, cost or energy; a machine's frontier has the "
    "same layouts for each, as its cost is a constant over the throughput [name]"
)


class Family(Record):
    """A way to shard, as data: which widths are free, and what the FFN grid spans; tpf is what is left of it."""

    title: Name = Field(description="the family in legends and reports [text]")
    tpa: Axis = Field(default=1, description="tensor-parallel width of attention [GPUs, or free, or many]")
    kvp: Axis = Field(default=1, description="KV-parallel width: sequence shards of the cache [GPUs, or free, or many]")
    dp: Axis = Field(default=1, description="data-parallel attention groups [count, or free, or many]")
    pp: Axis = Field(default=1, description="pipeline stages [count, or free, or many]")
    ep: Axis = Field(default=1, description="expert-parallel width of the FFN [GPUs, or free, or many]")
    index_kvp: Axis | None = Field(
        default=None,
        description="sequence shards of an indexer's cache, of models that have one; every divisor of kvp if absent "
        "[count, or free, or many]",
    )
    q_shards: Axis | None = Field(
        default=None,
        description="KV shards that share a projection of queries and gather them, a divisor of kvp; 1, which repeats "
        "it on each, if absent [count, or free, or many]",
    )
    redundant_experts: Annotated[list[NaturalCount], Field(min_length=1)] | None = Field(
        default=None,
        description="copies of busy experts, over all of ep, that are tried where they lie on its ranks evenly; none "
        "if absent [list of counts]",
    )
    microbatches: Annotated[list[Literal[1, 2]], Field(min_length=1)] | None = Field(
        default=None,
        description="parts of the batch that take turns in layers with experts, 2 where tokens are dispatched there; "
        "the whole batch alone if absent [list of 1 and 2]",
    )
    ffn_on: Literal["all", "tpa"] = Field(
        default="all",
        description="the FFN grid tpf·ep spans all GPUs of a stage, or the tpa GPUs of one KV shard (Medha) [name]",
    )
    hop_b: bool = Field(default=False, description="whether the sweep's chunk counts above 1 are tried [yes or no]")
    tpa_at_most_kv_heads: bool = Field(
        default=False, description="no tpa above the model's KV heads, where it would duplicate the cache [yes or no]"
    )

    @property
    def is_conventional(self) -> bool:
        """Whether no layout of it shards a KV cache by sequence: tensor, data, expert and pipeline parallelism."""
        return self.kvp == 1

    @property
    def is_helix(self) -> bool:
        """Whether its layouts shard a KV cache by sequence, and the FFN over all GPUs of a stage."""
        return self.kvp != 1 and self.ffn_on == "all"


class Families(Record):
    """A file of families by name, which sweeps list; the shipped one is sweeps/families.yaml."""

    kind: Literal["families"] = Field(description="what this file describes [name]")
    families: dict[Word, Family] = Field(min_length=1, description="ways to shard by name [mapping]")


class GpuRange(Record):
    """GPU counts from the first to the last, each one of them."""

    model_config = ConfigDict(populate_by_name=True)

    first: Count = Field(default=1, alias="from", description="the smallest layout tried [GPUs]")
    last: Count = Field(alias="to", description="the largest layout tried, at most 4096 [GPUs]")

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.first > self.last:
            raise ValueError(f"from {self.first} is more than to {self.last}")
        if self.last > 4096:
            raise ValueError(f"to {self.last} is more than 4096 GPUs")
        return self


def _range_or_list(value: Any) -> str:
    """Which of the two `gpus` is."""
    return "list" if isinstance(value, list) else "range"


GpuList = Annotated[list[Annotated[StrictInt, Field(ge=1, le=4096)]], Field(min_length=1)]
Gpus = Annotated[Annotated[GpuRange, Tag("range")] | Annotated[GpuList, Tag("list")], Discriminator(_range_or_list)]
"""GPU counts: a range, or one by one."""


class DraftRange(Record):
    """Draft lengths from the first to the last, each one of them."""

    model_config = ConfigDict(populate_by_name=True)

    first: NaturalCount = Field(default=0, alias="from", description="the fewest drafts of a step [tokens]")
    last: NaturalCount = Field(alias="to", description="the most drafts of a step [tokens]")

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if not self.first <= self.last <= MOST_DRAFTS:
            raise ValueError(f"from {self.first} to {self.last} is no range within 0 to {MOST_DRAFTS} drafts")
        return self


DraftList = Annotated[list[Annotated[StrictInt, Field(ge=0, le=MOST_DRAFTS)]], Field(min_length=1)]
Drafts = Annotated[
    Annotated[DraftRange, Tag("range")] | Annotated[DraftList, Tag("list")], Discriminator(_range_or_list)
]
"""Draft lengths: a range, or one by one."""


class BatchRange(Record):
    """Batch sizes: every whole number up to `dense_to`, then steps of `growth` up to `to`."""

    model_config = ConfigDict(populate_by_name=True)

    dense_to: Count = Field(description="every batch up to this one is tried [requests of one attention group]")
    growth: Annotated[Number, Field(gt=1, le=4)] = Field(description="from there, each batch over the last [number]")
    last: Annotated[StrictInt, Field(ge=1, le=10**6)] = Field(
        alias="to", description="the largest batch tried [requests of one attention group]"
    )

    def values(self) -> list[int]:
        """The batch sizes, rising.

        >>> BatchRange.model_validate({"dense_to": 4, "growth": 1.5, "to": 14}).values()
        [1, 2, 3, 4, 6, 9, 13]
        """
        sizes = list(range(1, min(self.dense_to, self.last) + 1))
        while (following := max(sizes[-1] + 1, int(sizes[-1] * self.growth))) <= self.last:
            sizes.append(following)
        return sizes


class Sweep(NamesFiles):
    """A search: one model on one machine, every layout of the families, every batch, every context."""

    kind: Literal["sweep"] = Field(description="what this file describes [name]")
    name: Name = Field(description="the sweep in tables, and of its baseline's file [name]")
    description: Text = Field(description="one line for titles [text]")
    model: Text = Field(description="a shipped model, or the path of a model's file [name]")
    machine: Text = Field(description="a shipped machine, or the path of a machine's file [name]")
    timing: Text = Field(description="a shipped timing, or the path of a timing's file [name]")
    precision: Precision = Field(description="number formats, the same for every layout [mapping]")
    contexts: Annotated[list[Size], Field(min_length=1)] = Field(
        description="tokens in each request's KV cache, such as 128K or 1M; a search each [list of tokens]"
    )
    gpus: Gpus = Field(
        description="GPU counts of a layout: every one of a range, or a list such as [8, 16, 32] [mapping or list]"
    )
    batch: BatchRange = Field(description="requests that one attention group decodes at a time [mapping]")
    chunks: Annotated[list[Count | Literal["batch"]], Field(min_length=1)] = Field(
        default=[1],
        description="HOP-B pieces of the batch that families with hop_b try; 1 is off, batch one a request [list]",
    )
    chunks_anyway: bool = Field(
        default=False,
        description="whether chunks above 1 are tried on a timing whose kernels cannot overlap, too [yes or no]",
    )
    draft: Text | None = Field(
        default=None, description="a shipped draft of the model, or the path of a draft's file; none drafts [name]"
    )
    draft_tokens: Drafts | None = Field(
        default=None,
        description="drafts of a step that are tried, each with every layout: a range, or a list such as [0, 1, 3]; 0 "
        "to 8 if a draft is named and this is absent, as far as its acceptance is known [mapping or list]",
    )
    families: Annotated[dict[Word, Family], Field(min_length=1)] = Field(
        description="ways to shard: names from sweeps/families.yaml, or your own by name [list or mapping]"
    )
    stacks: Annotated[list[Literal["trtllm", "vllm", "sglang"]], Field(min_length=1)] | None = Field(
        default=None,
        description="serving stacks of which one must start a layout, or it is dropped by the rule that stands against "
        "it; unless given, physics alone decides [list of names]",
    )
    groups: dict[Word, Annotated[list[Text], Field(min_length=1)]] = Field(
        default={},
        description="unions of families whose frontiers are compared, such as all-helix [mapping of lists]",
    )
    against: Against | None = Field(default=None, description=AGAINST)

    @property
    def gpu_counts(self) -> list[int]:
        """GPU counts that are searched, rising."""
        if isinstance(self.gpus, GpuRange):
            return list(range(self.gpus.first, self.gpus.last + 1))
        return sorted(set(self.gpus))

    @property
    def draft_counts(self) -> list[int]:
        """Drafts of a step that are tried, rising; none without a draft."""
        if self.draft is None:
            return [0]
        given = self.draft_tokens or DraftRange.model_validate({"to": USUAL_DRAFTS})
        return list(range(given.first, given.last + 1)) if isinstance(given, DraftRange) else sorted(set(given))

    @property
    def most_gpus(self) -> int:
        """The largest layout that is searched [GPUs]."""
        return self.gpu_counts[-1]

    @property
    def searched_gpus(self) -> str:
        """The GPU counts in words: `1 to 72`, or `8, 16, 32`."""
        counts = self.gpu_counts
        return f"{counts[0]} to {counts[-1]}" if isinstance(self.gpus, GpuRange) else ", ".join(map(str, counts))

    def name_of(self, part: Literal["model", "machine", "timing", "draft"]) -> str:
        """The sweep's model, machine or timing, as a loader takes it: a shipped name, or a path that can be opened."""
        return self.located(getattr(self, part))

    def with_timing(self, timing: str | None) -> Self:
        """The sweep under another timing; a path starts where the process stands. None changes nothing."""
        if timing is None:
            return self
        return self.model_copy(update={"timing": os.path.abspath(timing) if is_path(timing) else timing})

    @model_validator(mode="after")
    def _drafts_have_a_draft(self) -> Self:
        if self.draft_tokens is not None and self.draft is None:
            raise ValueError("draft_tokens says how many, and draft, which must be named too, what drafts them")
        return self

    @model_validator(mode="after")
    def _groups_name_families(self) -> Self:
        for group, members in self.groups.items():
            if group in self.families:
                raise ValueError(f"groups.{group} has the name of a family; give the group another")
            for member in members:
                if member not in self.families:
                    raise ValueError(f"groups.{group} names {said(member)}, which is not a family of this sweep")
        return self
