"""Kinds of half a layer, as data: which ops each has, which widths they see, what of them runs at the same time.

A layer is an attention and a feed-forward network; a model is a list of such pairs. A kind of either is one row here:
a function from (step, spec of the kind) to its ops in order, and what the search and the timing must know of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from helix_sim.core.layout import Layout
from helix_sim.core.numeric import Column
from helix_sim.core.work import Work
from helix_sim.ops import attention, ffn, linear, sparse
from helix_sim.ops.elementwise import hidden_norm
from helix_sim.ops.ends import closing_ops, handover_ops, opening_ops
from helix_sim.ops.exchange import (
    combine_partials,
    gather_queries,
    gather_tokens,
    group_all_reduce,
    partial_exchange,
    scatter_sums,
    spread_to_shards,
)
from helix_sim.ops.routing import BusiestRank, busiest_rank
from helix_sim.ops.step_input import StepInput
from helix_sim.specs.attention import (
    AttentionKind,
    BlockSparseAttention,
    CompressedAttention,
    GqaAttention,
    HeadAttention,
    LatentAttention,
    LinearAttention,
    MlaAttention,
    SparseAttention,
    WindowAttention,
)
from helix_sim.specs.ffn import DenseFfn, RoutedFfn
from helix_sim.specs.model import Model

OpTable = dict[str, Work]
"""Ops by name, in the order in which they run."""


# --- Op tables -------------------------------------------------------------------------------------------------------


def gqa_ops(s: StepInput, a: GqaAttention) -> OpTable:
    """Ops of one layer's grouped-query attention, in order."""
    return _head_ops(s, a, attention.attention_core(s, a))


def window_ops(s: StepInput, a: WindowAttention) -> OpTable:
    """Ops of one layer's windowed attention, in order: grouped-query attention without KV shards."""
    t = attention.head_parallel(s)
    ops = _head_ops(t, a, attention.window_core(t, a))
    shards = ("query_gather", "exchange", "combine_partials")
    return {name: op for name, op in ops.items() if name not in shards} | _around(s)


def block_sparse_ops(s: StepInput, a: BlockSparseAttention) -> OpTable:
    """Ops of one layer's block-sparse attention, in order: grouped-query attention over what an indexer picks."""
    return _head_ops(s, a, sparse.sparse_core(s, a), _index_ops(s, a))


def mla_ops(s: StepInput, a: MlaAttention) -> OpTable:
    """Ops of one layer's multi-head latent attention, absorbed, in order."""
    return _latent_ops(s, a, attention.attention_core(s, a))


def sparse_ops(s: StepInput, a: SparseAttention) -> OpTable:
    """Ops of one layer's sparse latent attention, in order: the indexer, then MLA over what it picked."""
    return _latent_ops(s, a, sparse.sparse_core(s, a), None if a.picks_shared else _index_ops(s, a))


def compressed_ops(s: StepInput, a: CompressedAttention) -> OpTable:
    """Ops of one layer's attention over a window and compressed tokens, in order."""
    return {
        "attention_norm": hidden_norm(s),
        "latent_down_projection": attention.latent_down_projection(s, a),
        "latent_norm": attention.latent_norm(s, a),
        "query_up_projection": attention.query_up_projection(s, a),
        **(_compressor_ops(s, a) if a.ratio else {}),
        **(_index_ops(s, a) if a.indexer else {}),
        **_core_ops(s, a, sparse.compressed_core(s, a)),
        "output_down_projection": sparse.output_down_projection(s, a),
        "output_projection": sparse.grouped_output_projection(s, a),
        "attention_all_reduce": group_all_reduce(s),
    }


def _compressor_ops(s: StepInput, a: CompressedAttention) -> OpTable:
    return {"compressor_projection": sparse.compressor_projection(s, a), "compress": sparse.compress(s, a)}


def linear_ops(s: StepInput, a: LinearAttention) -> OpTable:
    """Ops of one layer's linear attention, in order, on a step without KV shards."""
    t = attention.head_parallel(s)
    return {
        "attention_norm": hidden_norm(s),
        "linear_projection": linear.linear_projection(t, a),
        **({"decay_projection": linear.decay_projection(t, a)} if a.decay_rank else {}),
        **({"convolution": linear.convolution(t, a)} if a.conv_tokens > 1 else {}),
        "state_update": linear.state_update(t, a),
        "output_norm": linear.output_norm(t, a),
        "output_projection": attention.output_projection(t, a),
        "attention_all_reduce": group_all_reduce(s),
    }


def _head_ops(s: StepInput, a: HeadAttention, core: Work, index: OpTable | None = None) -> OpTable:
    return {
        "attention_norm": hidden_norm(s),
        "qkv_projection": attention.qkv_projection(s, a),
        **(index or {}),
        **_core_ops(s, a, core),
        **_gate_ops(s, a),
        "output_projection": attention.output_projection(s, a),
        "attention_all_reduce": group_all_reduce(s),
    }


def _latent_ops(s: StepInput, a: LatentAttention, core: Work, index: OpTable | None = None) -> OpTable:
    return {
        "attention_norm": hidden_norm(s),
        "latent_down_projection": attention.latent_down_projection(s, a),
        "latent_norm": attention.latent_norm(s, a),
        "query_up_projection": attention.query_up_projection(s, a),
        **(index or {}),
        "key_absorption": attention.key_absorption(s, a),
        **_core_ops(s, a, core),
        "value_up_projection": attention.value_up_projection(s, a),
        **_gate_ops(s, a),
        "output_projection": attention.output_projection(s, a),
        "attention_all_reduce": group_all_reduce(s),
    }


def _core_ops(s: StepInput, a: attention.Heads, core: Work) -> OpTable:
    return {
        "rope_and_append": attention.rope_and_append(s, a),
        "query_gather": gather_queries(s, a),
        "attention_core": core,
        "exchange": partial_exchange(s, a),
        "combine_partials": combine_partials(s, a),
    }


def _gate_ops(s: StepInput, a: HeadAttention | LatentAttention) -> OpTable:
    if not a.output_gate:
        return {}
    return {"gate_projection": attention.gate_projection(s, a), "output_gate": attention.output_gate(s, a)}


def _index_ops(s: StepInput, a: sparse.Indexed) -> OpTable:
    query_up = {} if isinstance(a, BlockSparseAttention) else {"index_query_up": sparse.index_query_up(s, a)}
    return {
        "index_projection": sparse.index_projection(s, a),
        **query_up,
        "index_append": sparse.index_append(s, a),
        "index_logits": sparse.index_logits(s, a),
        "index_top_k": sparse.index_top_k(s, a),
        "index_exchange": sparse.index_exchange(s, a),
        "index_merge": sparse.index_merge(s, a),
    }


def _around(s: StepInput) -> OpTable:
    """What stands before and after a layer without KV shards: of the step as it is, shared with its other kinds."""
    return {"attention_norm": hidden_norm(s), "attention_all_reduce": group_all_reduce(s)}


def dense_ops(s: StepInput, f: DenseFfn) -> OpTable:
    """Ops of a dense layer's feed-forward network, in order."""
    return {
        "dense_norm": hidden_norm(s),
        "dense_gather": gather_tokens(s),
        "dense_up": ffn.dense_up(s, f),
        "dense_activation": ffn.dense_activation(s, f),
        "dense_down": ffn.dense_down(s, f),
        "dense_scatter": scatter_sums(s),
        "dense_all_reduce": group_all_reduce(s),
        "dense_spread": spread_to_shards(s),
    }


def routed_ops(s: StepInput, f: RoutedFfn, rank: BusiestRank | None = None) -> OpTable:
    """Ops of an MoE layer's feed-forward network, in order; `rank` where a caller knows the routing."""
    rank = rank or busiest_rank(s, f)
    shared = {
        "shared_up": ffn.shared_up(s, f),
        "shared_activation": ffn.shared_activation(s, f),
        "shared_down": ffn.shared_down(s, f),
    }
    latent = f.latent_size is not None
    return {
        "moe_norm": hidden_norm(s),
        "router": ffn.router(s, f),
        "top_k": ffn.top_k(s, f),
        **({"expert_latent_down": ffn.expert_latent_down(s, f)} if latent else {}),
        "dispatch": ffn.dispatch(s, rank, f.latent_size),
        **(shared if f.shared else {}),
        "routed_up": ffn.routed_up(s, f, rank),
        "routed_activation": ffn.routed_activation(s, f, rank),
        "routed_down": ffn.routed_down(s, f, rank),
        "combine": ffn.combine(s, rank, f.latent_size),
        **({"expert_latent_up": ffn.expert_latent_up(s, f)} if latent else {}),
        "moe_all_reduce": group_all_reduce(s),
        "moe_spread": spread_to_shards(s),
    }


# --- Kinds -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Streamed:
    """An all-reduce into which the tiles of the product before it stream; `between` would stand between the two."""

    product: str
    reduced: str
    between: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """What is known of a kind of half a layer besides its equations.

    ops: the op table of (step, spec). cached: bytes that one request keeps in one layer on the fullest rank. sees: the
    widths of a layout that its ops look at, besides the batch, the context and the chunks: where they are the same, so
    are its times. core: the op that divides attention in two where microbatches take turns. pipelined: (op in pieces,
    the exchange that follows each piece and runs behind the next). streamed: see Streamed. beside: (op of the shared
    experts, op of the routed ones that it runs beside); they share HBM, but not their latencies. steady: of attention,
    whether its ops look at neither the context nor the chunks.
    """

    title: str
    ops: Callable[[StepInput, Any], OpTable]
    cached: Callable[[StepInput, Any], Any] = lambda s, spec: 0
    sees: Callable[[Layout], tuple[Column, ...]]
    core: str = "attention_core"
    pipelined: tuple[tuple[str, str], ...] = ()
    streamed: tuple[Streamed, ...] = ()
    beside: tuple[tuple[str, str], ...] = ()
    steady: bool = False


STREAMED = (Streamed(product="output_projection", reduced="attention_all_reduce"),)
ATTENTION: dict[str, Any] = {
    "sees": lambda x: (x.tpa, x.kvp, x.token_group, x.q_shards),
    "pipelined": (("attention_core", "exchange"),),
    "streamed": STREAMED,
}
"""What attention over KV shards has in common."""
INDEXED: dict[str, Any] = {**ATTENTION, "sees": lambda x: (x.tpa, x.kvp, x.token_group, x.index_kvp, x.q_shards)}
"""What attention with an indexer has in common."""
HEAD_PARALLEL: dict[str, Any] = {"sees": lambda x: (x.token_group,), "streamed": STREAMED}
"""What attention without KV shards has in common."""

KINDS: dict[str, Kind] = {
    "gqa": Kind(title="grouped-query attention", ops=gqa_ops, cached=attention.cached_bytes, **ATTENTION),
    "window": Kind(title="windowed attention", ops=window_ops, cached=attention.window_bytes, **HEAD_PARALLEL),
    "block-sparse": Kind(title="block-sparse attention", ops=block_sparse_ops, cached=sparse.indexed_bytes, **INDEXED),
    "mla": Kind(title="multi-head latent attention", ops=mla_ops, cached=attention.cached_bytes, **ATTENTION),
    "sparse": Kind(title="sparse latent attention", ops=sparse_ops, cached=sparse.indexed_bytes, **INDEXED),
    "compressed": Kind(title="compressed attention", ops=compressed_ops, cached=sparse.compressed_bytes, **INDEXED),
    "linear": Kind(
        title="linear attention",
        ops=linear_ops,
        cached=linear.state_bytes,
        core="state_update",
        steady=True,
        **HEAD_PARALLEL,
    ),
    "dense": Kind(
        title="dense",
        ops=dense_ops,
        sees=lambda x: (x.token_group, x.idle_shards, x.pooled_groups),
        streamed=(Streamed(product="dense_down", reduced="dense_all_reduce", between="dense_scatter"),),
    ),
    "routed": Kind(
        title="MoE",
        ops=routed_ops,
        sees=lambda x: (x.dp, x.tpf, x.ep, x.idle_shards, x.redundant_experts),
        streamed=(Streamed(product="routed_down", reduced="moe_all_reduce", between="combine"),),
        beside=(("shared_up", "routed_up"), ("shared_down", "routed_down")),
    ),
}
"""Kinds by the `kind` of their spec; `none`, which has no ops, has no row."""


def kv_bytes_per_layer(s: StepInput, a: AttentionKind) -> Any:
    """What one request keeps in one layer on the fullest rank: its KV cache, index keys, state [bytes]."""
    return KINDS[a.kind].cached(s, a)


ENDS: dict[str, Kind] = {
    "opening": Kind(title="opening", ops=lambda s, _: opening_ops(s), sees=lambda x: (x.token_group,)),
    "closing": Kind(title="closing", ops=lambda s, _: closing_ops(s), sees=lambda x: (x.token_group,)),
    "handover": Kind(
        title="hand-over",
        ops=lambda s, _: handover_ops(s),
        sees=lambda x: (np.minimum(x.pp, 2), x.dp * x.attention_group),
    ),
}
"""What is no layer's: in front of the first, behind the last, and between two pipeline stages."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Half:
    """A kind of half a layer as a model has it: `half` is "attention", "ffn" or "ends", `name` the model's own name.

    suffix: what is appended to the names of its ops, where another kind of the model has ops of the same names. A
    draft's ("draft") has an input of its own beside a step; holds: whether its weights are its own to hold, but for
    those of the ops in `elsewhere`.
    """

    half: str
    name: str
    kind: Kind
    spec: Any
    suffix: str = ""
    input: Callable[[StepInput], StepInput] = lambda s: s
    holds: bool = True
    elsewhere: tuple[str, ...] = ()

    @property
    def key(self) -> tuple[str, str]:
        """(half, name): what a stage counts it under."""
        return self.half, self.name

    def ops(self, s: StepInput) -> OpTable:
        """Its ops for one layer, by their names within the kind."""
        return self.kind.ops(self.input(s), self.spec)

    def op_name(self, op: str) -> str:
        """An op's name in the step: its own, with the kind's in brackets where two kinds of the model share it."""
        return op + self.suffix


def halves_of(model: Model) -> tuple[Half, ...]:
    """The kinds of a model in the order of the op table: what is no layer's, then every attention, then every FFN."""
    specs: list[tuple[str, str, Any]] = [
        (half, name, getattr(model, half)[name])
        for half, name in sorted(model.kind_counts, key=lambda k: k[0])
        if getattr(model, half)[name].kind in KINDS
    ]
    both = [Half(half="ends", name=name, kind=kind, spec=None) for name, kind in ENDS.items()]
    for half, name, spec in specs:
        rivals = [other for of, _, other in specs if of == half and (half == "attention" or other.kind == spec.kind)]
        both.append(
            Half(
                half=half,
                name=name,
                kind=KINDS[spec.kind],
                spec=spec,
                suffix=f"[{name}]" if len(rivals) > 1 else "",
            )
        )
    return tuple(both)


def ordered(tables: Iterable[tuple[Half, Mapping[str, Any]]]) -> dict[str, Any]:
    """The halves' tables as one by the names in the step, in its order: opening, attentions, FFNs, closing, drafts."""
    opening: dict[str, Any] = {}
    body: dict[str, Any] = {}
    closing: dict[str, Any] = {}
    drafts: dict[str, Any] = {}
    for half, table in tables:
        for op, value in table.items():
            if half.half == "draft":
                drafts[half.op_name(op)] = value
            elif half.half != "ends":
                body[half.op_name(op)] = value
            else:
                (opening if op.startswith("embedding") else closing)[op] = value
    return opening | body | closing | drafts
