"""Attention of one layer: projections, the core over the local KV shard, the KVP exchange, the output projection.

Each equation is a function of `Decode`, what one step is: a model, its number formats, a layout and a context. All
return the Work of the busiest GPU. GQA and MLA (in its absorbed form) differ in their widths and their projections.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from helix_sim.core.collectives import all_reduce, direct
from helix_sim.core.layout import Layout
from helix_sim.specs.model import MlaAttention, Model
from helix_sim.specs.precision import Precision
from helix_sim.core.numeric import Column, ceil_div, larger, smaller
from helix_sim.core.units import bytes_per_value
from helix_sim.core.work import Work

KV_BLOCK_TOKENS = 16
"""Tokens that are appended to one KVP rank before the next one's turn [Helix 2025, section 2.3]."""

LSE_BYTES = 4
"""A log-sum-exp travels as FP32 whatever the wire format of the partial outputs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Decode:
    """What an equation may look at: one decode step of `model` in `precision`, sharded as `layout`, at `context`."""

    model: Model
    precision: Precision
    layout: Layout
    context: Column

    @property
    def activation_bytes(self) -> float:
        """Bytes of one activation value in HBM."""
        return self.precision.bytes_of("activations")

    @property
    def wire_bytes(self) -> float:
        """Bytes of one activation value on a link."""
        return self.precision.bytes_of("wire")


def q_heads_per_rank(d: Decode) -> Any:
    """Query heads on the busiest TPA rank; a KV head's queries stay with (a copy of) that KV head.

    Q/TPA where it divides. Past TPA = K each KV head has floor(TPA/K) copies, over which its Q/K queries are dealt.
    """
    a = d.model.attention
    copies = larger(d.layout.tpa // a.kv_heads, 1)
    return kv_heads_per_rank(d) * ceil_div(a.q_heads // a.kv_heads, copies)


def kv_heads_per_rank(d: Decode) -> Any:
    """ceil(K/TPA): past TPA = K each rank still holds one whole KV head, duplicated [Helix 2025, appendix A]."""
    return ceil_div(d.model.attention.kv_heads, d.layout.tpa)


def kv_tokens_per_rank(d: Decode) -> Any:
    """Tokens of one request on the fullest KVP rank, appended round-robin in blocks of 16; S where KVP = 1.

    S/KVP rounded up by less than one block [Helix 2025, section 2.3].
    """
    one_round = KV_BLOCK_TOKENS * d.layout.kvp
    return d.context // one_round * KV_BLOCK_TOKENS + smaller(d.context % one_round, KV_BLOCK_TOKENS)


def output_heads_per_rank(d: Decode) -> Any:
    """Heads whose full output a rank of the token group owns after the exchange: Q/N, in whole heads.

    The exchange deals a TPA rank's heads to the KV shards of its own column, never to another column: where TPA does
    not divide K, the rank with the most query heads still has the most after it.
    """
    return ceil_div(q_heads_per_rank(d), d.layout.token_group // d.layout.tpa)


def matmul(
    d: Decode,
    *,
    rows: Column,
    inner: Column,
    outer: Column,
    weights: str = "weights",
    math: str = "math",
    op_class: str = "gemm",
    copies: Column = 1,
) -> Work:
    """[rows, inner] x [inner, outer], `copies` times with different weights: 2·m·k·n FLOP, weights read once."""
    return Work(
        op_class=op_class,
        flops=2 * copies * rows * inner * outer,
        weight_bytes=copies * inner * outer * d.precision.bytes_of(weights),
        activation_bytes=copies * rows * (inner + outer) * d.activation_bytes,
        math=d.precision.format_of(math),
        weights=d.precision.format_of(weights),
        rows=rows,
        inner=inner,
        outer=outer,
        copies=copies,
    )


def row_norm(d: Decode, *, width: Column, tensors: int = 1, kernels: Column = 1) -> Work:
    """RMSNorm: reads and writes each of `tensors` rows of that width. Its FLOP are not counted."""
    moved = 2 * tensors * d.layout.batch * width * d.activation_bytes
    return Work(op_class="elementwise", activation_bytes=moved, kernels=kernels, rows=d.layout.batch)


def hidden_norm(d: Decode) -> Work:
    """The norm in front of a block, on the full [B, H] of the group, on every rank: of the row, added to the residual.

    It runs inside the kernel of the all-reduce before it, as serving stacks do, and is a kernel of its own only where
    one GPU holds the group's tokens and there is no all-reduce.
    """
    return row_norm(d, width=d.model.hidden_size, tensors=2, kernels=(d.layout.token_group == 1) * 1)


# --- Projections -----------------------------------------------------------------------------------------------------


def qkv_projection(d: Decode) -> Work:
    """GQA: H x (Q/TPA + 2·ceil(K/TPA))·Hsz; every KVP rank repeats it instead of gathering Q [Helix 2025, 2.1.1]."""
    outer = (q_heads_per_rank(d) + 2 * kv_heads_per_rank(d)) * d.model.attention.score_width
    return matmul(d, rows=d.layout.batch, inner=d.model.hidden_size, outer=outer, **PROJECTION)


def latent_down_projection(d: Decode, a: MlaAttention) -> Work:
    """MLA: H x (q_lora + kv_lora + rope), whole on every rank: the latents have no heads to shard."""
    outer = a.q_lora_rank + a.cache_width
    return matmul(d, rows=d.layout.batch, inner=d.model.hidden_size, outer=outer, **PROJECTION)


def latent_norm(d: Decode, a: MlaAttention) -> Work:
    """MLA: the norms of both latents, in one kernel; they have no residual."""
    return row_norm(d, width=a.q_lora_rank + a.kv_lora_rank)


def query_up_projection(d: Decode, a: MlaAttention) -> Work:
    """MLA: q_lora x Q/TPA·(nope + rope)."""
    outer = q_heads_per_rank(d) * (a.nope_width + a.rope_width)
    return matmul(d, rows=d.layout.batch, inner=a.q_lora_rank, outer=outer, **PROJECTION)


def key_absorption(d: Decode, a: MlaAttention) -> Work:
    """MLA, absorbed: each query head through its own nope x kv_lora key up-projection."""
    heads = q_heads_per_rank(d)
    return matmul(
        d, rows=d.layout.batch, inner=a.nope_width, outer=a.kv_lora_rank, copies=heads, **PROJECTION | BATCHED
    )


def rope_and_append(d: Decode) -> Work:
    """Rotary embedding of the queries, and the new token's K and V into the cache of one KVP rank.

    The whole query is read and written: in MLA this is where its absorbed and its rotary part come together.
    """
    a = d.model.attention
    rotated = 2 * q_heads_per_rank(d) * a.score_width + kv_heads_per_rank(d) * a.cache_width
    return Work(
        op_class="pointwise",
        activation_bytes=d.layout.batch * rotated * d.activation_bytes,
        kv_bytes=d.layout.batch * kv_heads_per_rank(d) * a.cache_width * d.precision.bytes_of("kv"),
        rows=d.layout.batch,
    )


def value_up_projection(d: Decode, a: MlaAttention) -> Work:
    """MLA, absorbed: each owned head's latent output through its kv_lora x v value up-projection."""
    heads = output_heads_per_rank(d)
    return matmul(
        d, rows=d.layout.batch, inner=a.kv_lora_rank, outer=a.output_width, copies=heads, **PROJECTION | BATCHED
    )


def output_projection(d: Decode) -> Work:
    """(H/N) x H on each of the N ranks of the token group, for the full batch [Helix 2025, 2.1.2]."""
    inner = output_heads_per_rank(d) * d.model.attention.output_width
    return matmul(d, rows=d.layout.batch, inner=inner, outer=d.model.hidden_size, **OUTPUT)


PROJECTION: Any = {"weights": "attention_weights", "math": "projection_math"}
OUTPUT: Any = {"weights": "output_weights", "math": "output_math"}
BATCHED: Any = {"op_class": "batched-gemm"}


# --- Core and exchange -----------------------------------------------------------------------------------------------


def attention_core(d: Decode) -> Work:
    """FlashAttention of one new token over the local KV shard.

    bytes: B · ceil(K/TPA) · (cached values per token) · (S/KVP) · bytes_kv       [Helix 2025, appendix A: t_kv]
    FLOP:  2 · B · Q/TPA · (score width + value width) · S/KVP; the softmax itself is not counted.
    Activations: the query, and the output with, where KVP > 1, the log-sum-exp that the exchange sends.
    """
    a, p, x = d.model.attention, d.precision, d.layout
    tokens = kv_tokens_per_rank(d)
    heads = q_heads_per_rank(d)
    head_bytes = (a.score_width + a.value_width) * d.activation_bytes + LSE_BYTES * (x.kvp > 1)
    return Work(
        op_class=f"attention-{a.kind}",
        flops=2 * x.batch * heads * (a.score_width + a.value_width) * tokens,
        kv_bytes=x.batch * kv_heads_per_rank(d) * a.cache_width * tokens * p.bytes_of("kv"),
        activation_bytes=x.batch * heads * head_bytes,
        pieces=x.chunks,
        math=p.format_of("attention_math"),
        weights=p.format_of("kv"),
        rows=x.batch,
        inner=a.score_width,
        outer=a.value_width,
        copies=kv_heads_per_rank(d),
        heads=heads,
        tokens=tokens,
    )


def exchange(d: Decode) -> Work:
    """The all-to-all of partial outputs and their log-sum-exps inside each KVP group; its volume has no S in it.

    A slice of B·Q/N heads to each of the other KVP - 1 ranks [Helix 2025, 2.1.1]; where the FFN runs on one KV shard
    alone (Medha), its ranks receive that slice, of B·Q/TPA heads, from each of the others.
    """
    a, x = d.model.attention, d.layout
    head_bytes = a.value_width * d.wire_bytes + LSE_BYTES
    return Work(
        op_class="all-to-all",
        kernels=0,
        pieces=x.chunks,
        collective=direct(
            "all-to-all",
            payload=(x.kvp - 1) * x.batch * output_heads_per_rank(d) * head_bytes,
            group=x.kvp,
            stride=x.tpa,
        ),
        rows=x.batch,
    )


def combine_partials(d: Decode) -> Work:
    """Rescale and sum of KVP partial outputs by their log-sum-exps: exact softmax. No kernel where KVP = 1."""
    a, x = d.model.attention, d.layout
    split = (x.kvp > 1) * 1
    moved = x.kvp * (a.value_width * d.wire_bytes + LSE_BYTES) + a.value_width * d.activation_bytes
    return Work(
        op_class="elementwise",
        activation_bytes=split * x.batch * output_heads_per_rank(d) * moved,
        kernels=split,
        rows=x.batch,
    )


def group_all_reduce(d: Decode) -> Work:
    """Sum of the [B, H] partial results over the token group, after a row-sharded projection."""
    x = d.layout
    return Work(
        op_class="all-reduce",
        kernels=0,
        collective=all_reduce(x.batch * d.model.hidden_size * d.wire_bytes, x.token_group),
        rows=x.batch,
    )


def spread_to_shards(d: Decode) -> Work:
    """[B, H] from the ranks that ran the FFN to the KV shards that idled (Medha); nothing where all ranks ran it.

    No rank sends it twice: the switch multicasts it, or each shard passes it on while it arrives. Written to each idle
    shard in turn, it would cost the owner KVP - 1 times as much.
    """
    x = d.layout
    return Work(
        op_class="broadcast",
        kernels=0,
        collective=direct(
            "broadcast",
            payload=x.batch * d.model.hidden_size * d.wire_bytes,
            group=1 + x.idle_shards,
            stride=x.tpa,
        ),
        rows=x.batch,
    )


def kv_bytes_per_layer(d: Decode) -> Any:
    """KV cache of one layer and one request on the fullest rank."""
    a = d.model.attention
    return kv_heads_per_rank(d) * a.cache_width * kv_tokens_per_rank(d) * bytes_per_value(d.precision.kv)
