"""Why a layout cannot run: each reason is a predicate over columns of layouts, a sentence, and what to change."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from functools import reduce
from typing import Any

import numpy as np

from helix_sim.core.layout import Layout
from helix_sim.core.numeric import Column
from helix_sim.core.units import GIGA
from helix_sim.ops.attention import KV_BLOCK_TOKENS
from helix_sim.ops.memory import Memory
from helix_sim.specs.machine import Machine
from helix_sim.specs.model import Model


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A layout, or a column of them, of a model on a machine at a context; memory where it was counted."""

    model: Model
    machine: Machine
    layout: Layout
    context: Column
    memory: Memory | None = None

    @property
    def group(self) -> Any:
        """Ranks that share the heads of one attention group behind the exchange."""
        return self.layout.ffn_group // self.layout.dp

    @property
    def experts(self) -> int:
        """Experts of the layers that have most; a dense FFN is one."""
        return max((ffn.routed for ffn in self.model.routed_kinds.values()), default=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """Why a candidate is refused, by physics or by a serving stack (`helix_sim.stacks`).

    holds: where a candidate is refused. sentence: what is wrong, of one layout. change: what would mend it.
    """

    title: str
    holds: Callable[[Any], Any]
    sentence: Callable[[Any], str]
    change: Callable[[Any], str] | None = None

    def describe(self, candidate: Candidate) -> str:
        """The rule of one candidate that it refuses, with its numbers, and what to change."""
        return self.sentence(candidate) + (f"; {self.change(candidate)}" if self.change else "")


class Reason(Enum):
    """Why a layout cannot run, in the order in which a dropped layout is counted; `flag` is a reason's bit."""

    FFN_GRID = Rule(
        title="the FFN grid spans neither the whole stage nor one KV shard",
        holds=lambda c: np.logical_and(
            c.layout.ffn_group != c.layout.dp * c.layout.attention_group,
            c.layout.ffn_group != c.layout.dp * c.layout.tpa,
        ),
        sentence=lambda c: (
            f"tpf·ep = {c.layout.ffn_group} spans neither all {c.layout.dp * c.layout.attention_group} "
            f"GPUs of a stage (dp·tpa·kvp) nor the {c.layout.dp * c.layout.tpa} of one KV shard (dp·tpa)"
        ),
        change=lambda c: "set --tpf and --ep so that it does",
    )
    TOO_MANY_GPUS = Rule(
        title="more GPUs than the machine has",
        holds=lambda c: c.layout.gpus > c.machine.gpus.value,
        sentence=lambda c: f"the layout needs {c.layout.gpus} GPUs, and {c.machine.name} has {c.machine.gpus.value}",
    )
    MORE_RANKS_THAN_HEADS = Rule(
        title="more ranks than query heads",
        holds=lambda c: np.maximum(c.layout.tpa, c.group) > c.model.fewest_q_heads,
        sentence=lambda c: (
            f"{max(c.layout.tpa, c.group)} ranks share {c.model.fewest_q_heads} query heads, so some would have none"
        ),
        change=lambda c: f"lower tpa, or tpf·ep/dp, to {c.model.fewest_q_heads} at most",
    )
    EP_WITHOUT_EXPERTS = Rule(
        title="expert parallelism wider than the experts there are (a dense FFN is one)",
        holds=lambda c: c.layout.ep > c.experts + c.layout.redundant_experts,
        sentence=lambda c: (
            f"ep = {c.layout.ep} is more than the {c.experts} routed experts of {c.model.name}"
            + (f" and {c.layout.redundant_experts} copies" if c.layout.redundant_experts else "")
            if c.model.routed_kinds
            else f"{c.model.name} has no experts: a dense FFN is one expert, so ep must be 1"
        ),
    )
    FFN_TOO_NARROW = Rule(
        title="the FFN's tensor parallelism wider than the FFN",
        holds=lambda c: c.layout.tpf > min(ffn.narrowest for ffn in c.model.ffn.values()),
        sentence=lambda c: f"tpf = {c.layout.tpf} is more than the FFN is wide",
    )
    MORE_STAGES_THAN_LAYERS = Rule(
        title="more pipeline stages than layers",
        holds=lambda c: c.layout.pp > c.model.layer_count,
        sentence=lambda c: f"pp = {c.layout.pp} is more than the {c.model.layer_count} layers of {c.model.name}",
    )
    EMPTY_KV_SHARD = Rule(
        title="a KV shard without a block of tokens",
        holds=lambda c: (c.layout.kvp - 1) * KV_BLOCK_TOKENS >= c.context,
        sentence=lambda c: (
            f"kvp = {c.layout.kvp} leaves a rank without a block of {KV_BLOCK_TOKENS} tokens at context {c.context}"
        ),
        change=lambda c: "lower kvp",
    )
    MORE_CHUNKS_THAN_BATCH = Rule(
        title="more HOP-B chunks than requests in the batch",
        holds=lambda c: c.layout.chunks > c.layout.batch,
        sentence=lambda c: f"chunks = {c.layout.chunks} is more than the batch of {c.layout.batch}",
    )
    NOTHING_TO_OVERLAP = Rule(
        title="HOP-B chunks without an exchange to hide",
        holds=lambda c: np.logical_and(c.layout.chunks > 1, c.layout.kvp == 1),
        sentence=lambda c: f"chunks = {c.layout.chunks} has nothing to overlap: kvp is 1, so there is no exchange",
    )
    OUT_OF_MEMORY = Rule(
        title="weights and KV cache do not fit the fullest GPU",
        holds=lambda c: c.memory is not None and c.memory.resident_bytes > c.memory.fillable,
        sentence=lambda c: (
            f"it needs {float(c.memory.resident_bytes) / GIGA if c.memory else 0.0:.1f} GB on the fullest GPU, and "
            f"{c.machine.name} has {float(c.memory.fillable) / GIGA if c.memory else 0.0:.1f} GB after its reserve: "
            "shard it wider, or recommend finds what fits"
        ),
    )

    INDEX_SHARDS = Rule(
        title="shards of an index cache that there is not, or that do not divide the KV shards",
        holds=lambda c: np.logical_and(
            c.layout.index_kvp > 1,
            np.logical_or(not c.model.has_indexer, c.layout.kvp % c.layout.index_kvp != 0),
        ),
        sentence=lambda c: (
            f"index_kvp = {c.layout.index_kvp} does not divide kvp = {c.layout.kvp}"
            if c.model.has_indexer
            else f"index_kvp = {c.layout.index_kvp} shards an index cache, and {c.model.name} has no indexer"
        ),
        change=lambda c: "set --index-kvp to a divisor of kvp" if c.model.has_indexer else "leave --index-kvp out",
    )
    QUERY_SHARDS = Rule(
        title="KV shards that share the projection of queries and do not divide the KV shards",
        holds=lambda c: np.logical_and(c.layout.q_shards > 1, c.layout.kvp % c.layout.q_shards != 0),
        sentence=lambda c: f"q_shards = {c.layout.q_shards} does not divide kvp = {c.layout.kvp}",
        change=lambda c: "set --q-shards to a divisor of kvp",
    )
    REDUNDANT_EXPERTS = Rule(
        title="copies of experts that there are not, or that do not fill the ranks evenly",
        holds=lambda c: np.logical_and(
            c.layout.redundant_experts > 0,
            reduce(
                np.logical_or,
                [
                    ((f.routed + c.layout.redundant_experts) % c.layout.ep != 0)
                    | (c.layout.redundant_experts > f.routed * (c.layout.ep - 1))
                    for f in c.model.routed_kinds.values()
                ]
                or [True],
            ),
        ),
        sentence=lambda c: (
            f"{c.experts} experts and {c.layout.redundant_experts} copies do not lie on {c.layout.ep} ranks (ep) "
            "as many on each, and none twice on one"
            if c.model.routed_kinds
            else f"redundant_experts = {c.layout.redundant_experts} copies experts, and {c.model.name} has none"
        ),
        change=lambda c: (
            f"set --redundant-experts to {c.layout.ep - c.experts % c.layout.ep}, or a multiple of ep more"
            if c.model.routed_kinds and c.layout.ep > 1
            else "leave --redundant-experts out"
        ),
    )
    MORE_MICROBATCHES_THAN_BATCH = Rule(
        title="more microbatches than two, or than requests in the batch",
        holds=lambda c: c.layout.microbatches > np.minimum(c.layout.batch, 2),
        sentence=lambda c: (
            f"microbatches = {c.layout.microbatches} is more than the {min(c.layout.batch, 2)} that a batch of "
            f"{c.layout.batch} is split into at most"
        ),
    )
    NO_DISPATCH_TO_HIDE = Rule(
        title="microbatches without a dispatch to hide",
        holds=lambda c: np.logical_and(
            c.layout.microbatches > 1, np.logical_or(c.layout.dp == 1, not c.model.routed_kinds)
        ),
        sentence=lambda c: (
            f"microbatches = {c.layout.microbatches} has nothing to hide: "
            + (f"dp is {c.layout.dp}, so" if c.model.routed_kinds else f"{c.model.name} has no experts, so")
            + " no token is dispatched"
        ),
        change=lambda c: "leave --microbatches out",
    )
    SPLIT_TWICE = Rule(
        title="a batch split into microbatches and into HOP-B chunks",
        holds=lambda c: np.logical_and(c.layout.microbatches > 1, c.layout.chunks > 1),
        sentence=lambda c: (
            f"chunks = {c.layout.chunks} and microbatches = {c.layout.microbatches} split the same batch"
        ),
        change=lambda c: "set --chunks or --microbatches to 1",
    )

    @property
    def flag(self) -> int:
        """The reason's bit in a layout's flags; 0 is a layout that runs."""
        return FLAGS[self]

    @property
    def title(self) -> str:
        """The reason in a few words, for tables."""
        return self.value.title

    def sentence(self, c: Candidate) -> str:
        """The reason of one layout with its numbers, and what to change."""
        return self.value.describe(c)


FLAGS: dict[Reason, int] = {reason: 1 << place for place, reason in enumerate(Reason)}


def shape_reasons(model: Model, machine: Machine, x: Layout, context: Column) -> Any:
    """Flags of the reasons that need no memory count: widths against the model and the machine.

    One whole number, or a column of them; 0 where nothing stands against a layout.
    """
    candidate = Candidate(model=model, machine=machine, layout=x, context=context)
    flags: Any = 0
    for reason, flag in FLAGS.items():
        if reason is not Reason.OUT_OF_MEMORY:
            flags = flags | reason.value.holds(candidate) * flag
    return flags


def memory_reason(memory: Memory) -> Any:
    """OUT_OF_MEMORY's flag where the fullest GPU holds more than it may, else 0."""
    return (memory.resident_bytes > memory.fillable) * Reason.OUT_OF_MEMORY.flag


def sentences(
    flags: int, model: Model, machine: Machine, x: Layout, context: int, memory: Memory | None = None
) -> list[str]:
    """Each reason of one layout as a sentence with its numbers and the way out."""
    candidate = Candidate(model=model, machine=machine, layout=x, context=context, memory=memory)
    return [reason.sentence(candidate) for reason in Reason if flags & reason.flag]
