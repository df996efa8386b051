"""Attention over the local KV shard: which heads and tokens a rank holds, the projections of GQA and MLA, the core.

Each equation is a function of the step and of a kind of attention, and returns the Work of the busiest GPU. GQA and MLA
(in its absorbed form) differ in their widths and their projections; a window is GQA over the end of the context, on a
step without KV shards (`head_parallel`). `ops.sparse` has what reads a part of the context, `ops.linear` what has a
state instead.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from helix_sim.core.numeric import Column, ceil_div, chosen, floor_div, larger, smaller
from helix_sim.core.work import Work
from helix_sim.ops.elementwise import gated_activation, row_norm
from helix_sim.ops.matmul import BATCHED, OUTPUT, PROJECTION, matmul
from helix_sim.ops.step_input import StepInput, once_a_step
from helix_sim.specs.attention import (
    CompressedAttention,
    HeadAttention,
    LatentAttention,
    LinearAttention,
    WindowAttention,
)

KV_BLOCK_TOKENS = 16
"""Tokens that are appended to one KVP rank before the next one's turn [Helix 2025, section 2.3]."""

LSE_BYTES = 4
"""A log-sum-exp travels as FP32 whatever the wire format of the partial outputs."""


Heads = HeadAttention | LatentAttention | CompressedAttention
"""Kinds whose queries meet cached keys."""

Dealt = Heads | LinearAttention
"""Kinds whose heads are dealt to ranks: all of them."""


# --- Which heads and tokens a rank holds -----------------------------------------------------------------------------


@once_a_step
def head_parallel(s: StepInput) -> StepInput:
    """The step with every rank that shares a group's tokens in a TPA of its own, no KV shards and no pieces.

    How a layer runs that has nothing to shard by sequence (a window, a state): heads over all N ranks, as in
    TensorRT-LLM's hybrid models under Helix (https://github.com/NVIDIA/TensorRT-LLM/pull/17796). Its equations are
    those of TPA = N, KVP = 1.
    """
    return replace(s, layout=replace(s.layout, tpa=s.layout.token_group, kvp=1, chunks=1, q_shards=1))


@once_a_step
def q_heads_per_rank(s: StepInput, a: Dealt) -> Any:
    """Query heads on the busiest TPA rank; a KV head's queries stay with (a copy of) that KV head.

    Q/TPA where it divides. Past TPA = K each KV head has floor(TPA/K) copies, over which its Q/K queries are dealt.
    """
    copies = larger(floor_div(s.layout.tpa, a.kv_heads), 1)
    return kv_heads_per_rank(s, a) * ceil_div(a.q_heads // a.kv_heads, copies)


@once_a_step
def q_heads_projected(s: StepInput, a: Dealt) -> Any:
    """Query heads that the busiest rank projects: all of its TPA rank's, or its share where KV shards gather them.

    Helix repeats the projection on every KVP rank [Helix 2025, 2.1.1], and so does TensorRT-LLM; vLLM and SGLang deal
    it to the KV shards and gather the queries, unless told to repeat it.
    """
    return ceil_div(q_heads_per_rank(s, a), s.layout.q_shards)


@once_a_step
def kv_heads_per_rank(s: StepInput, a: Dealt) -> Any:
    """ceil(K/TPA): past TPA = K each rank still holds one whole KV head, duplicated [Helix 2025, appendix A]."""
    return ceil_div(a.kv_heads, s.layout.tpa)


def fullest_share(tokens: Column, kvp: Column, block: int = KV_BLOCK_TOKENS) -> Any:
    """Of `tokens` neighbouring tokens, those on the KVP rank that holds most: dealt round-robin in blocks of 16.

    S/KVP rounded up by less than one block [Helix 2025, section 2.3]; all of them where KVP = 1. The tokens of a window
    are as many at the worst place that it can have among the blocks, where it begins with one.

    >>> [fullest_share(tokens, 4) for tokens in (16, 64, 80, 1000)]
    [16, 16, 32, 256]
    """
    one_round = block * kvp
    rounds = floor_div(tokens, one_round)
    return rounds * block + smaller(tokens - rounds * one_round, block)


@once_a_step
def kv_tokens_per_rank(s: StepInput) -> Any:
    """Tokens of one request in the cache of the fullest KVP rank."""
    return fullest_share(s.context, s.layout.kvp)


def keys_seen_per_rank(s: StepInput) -> Any:
    """Query-key products of a request and head on the fullest KVP rank: summed over its new tokens, what each sees.

    The last new token sees the whole context, each one before it one token less: q·S - q·(q - 1)/2 in all, the causal
    triangle. The first KVP rank is the fullest at every length, so its shares are summed: those of whole rounds of
    blocks before the first new token, and the rest in closed form, by `_summed_shares`.
    """
    q, one_round = s.query_tokens, KV_BLOCK_TOKENS * s.layout.kvp
    rounds = floor_div(larger(s.context - q, 0), one_round)
    left = s.context - rounds * one_round
    return q * (rounds * KV_BLOCK_TOKENS) + (_summed_shares(left, one_round) - _summed_shares(left - q, one_round))


def _summed_shares(tokens: Column, one_round: Column, block: int = KV_BLOCK_TOKENS) -> Any:
    """The sum of `fullest_share(t)` over t = 1 … tokens, in closed form.

    k whole rounds of R tokens, each of which adds b = 16 to all shares after it, and what is left of a round.
    """
    b, k = block, floor_div(tokens, one_round)
    left, one = tokens - k * one_round, rising(one_round - 1, b)
    return one_round * b * (k * (k - 1) / 2) + k * one + (left + 1) * k * b + rising(left, b)


def rising(tokens: Column, most: Column) -> Any:
    """The sum of min(t, most) over t = 1 … tokens.

    >>> rising(5, 3)
    12.0
    """
    m = smaller(tokens, most)
    return m * (m + 1) / 2 + most * (tokens - m)


def summed_fullest_shares(s: StepInput, shards: Column, *, ratio: int = 1, block: int = KV_BLOCK_TOKENS) -> Any:
    """What the new tokens of a request see on the fullest of `shards`, together, of one entry for every `ratio` tokens.

    A token that is the t-th sees floor(t/ratio) entries, dealt in blocks: the sum of fullest_share(floor(t/ratio)) over
    t = S - q + 1 … S. The first shard is the fullest at every length.
    """

    def up_to(tokens: Column) -> Any:
        entries, one_round = floor_div(tokens, ratio), block * shards
        before = ratio * _summed_shares(larger(entries - 1, 0), one_round, block)
        return before + (tokens - ratio * entries + 1) * fullest_share(entries, shards, block)

    return up_to(s.context) - up_to(s.context - s.query_tokens)


@once_a_step
def output_heads_per_rank(s: StepInput, a: Dealt) -> Any:
    """Heads whose full output a rank of the token group owns after the exchange: Q/N, in whole heads.

    The exchange deals a TPA rank's heads to the KV shards of its own column, never to another column: where TPA does
    not divide K, the rank with the most query heads still has the most after it.
    """
    return ceil_div(q_heads_per_rank(s, a), floor_div(s.layout.token_group, s.layout.tpa))


def cached_bytes(s: StepInput, a: Heads) -> Any:
    """KV cache of one layer and one request on the fullest rank, in an attention that keeps every token."""
    return kv_heads_per_rank(s, a) * a.cache_width * kv_tokens_per_rank(s) * s.precision.bytes_of("kv")


def window_bytes(s: StepInput, a: WindowAttention) -> Any:
    """KV cache of one layer and one request in a window: of the tokens that a step reads, on every rank of the group.

    Past N = K a rank holds a copy of a KV head, as past TPA = K.
    """
    t = head_parallel(s)
    return kv_heads_per_rank(t, a) * a.cache_width * window_tokens_read(s, a.window_tokens) * s.precision.bytes_of("kv")


# --- Projections -----------------------------------------------------------------------------------------------------


def qkv_projection(s: StepInput, a: HeadAttention) -> Work:
    """GQA: H x (Q/TPA + 2·ceil(K/TPA))·Hsz; every KVP rank repeats it instead of gathering Q [Helix 2025, 2.1.1].

    Where `q_shards` KV shards gather the queries, a rank projects its share of them, and its keys and values all the
    same.
    """
    outer = (q_heads_projected(s, a) + 2 * kv_heads_per_rank(s, a)) * a.score_width
    return matmul(s, rows=s.tokens, inner=s.model.hidden_size, outer=outer, **PROJECTION)


Latent = LatentAttention | CompressedAttention
"""Kinds whose queries, and keys and values, come from latents."""


def latent_down_projection(s: StepInput, a: Latent) -> Work:
    """MLA: H x (q_lora + kv_lora + rope), whole on every rank: the latents have no heads to shard."""
    outer = a.q_lora_rank + a.cache_width
    return matmul(s, rows=s.tokens, inner=s.model.hidden_size, outer=outer, **PROJECTION)


def latent_norm(s: StepInput, a: Latent) -> Work:
    """MLA: the norms of both latents, in one kernel; they have no residual."""
    return row_norm(s, width=a.normed_width)


def query_up_projection(s: StepInput, a: Latent) -> Work:
    """MLA: q_lora x Q/TPA·(nope + rope), of the heads that a rank projects."""
    outer = q_heads_projected(s, a) * a.query_width
    return matmul(s, rows=s.tokens, inner=a.q_lora_rank or s.model.hidden_size, outer=outer, **PROJECTION)


def key_absorption(s: StepInput, a: LatentAttention) -> Work:
    """MLA, absorbed: each query head that a rank projects through its own nope x kv_lora key up-projection."""
    heads = q_heads_projected(s, a)
    return matmul(s, rows=s.tokens, inner=a.nope_width, outer=a.kv_lora_rank, copies=heads, **PROJECTION | BATCHED)


def rope_and_append(s: StepInput, a: Heads) -> Work:
    """Rotary embedding of the queries, and the new tokens' K and V into the cache of the KVP rank that takes most.

    The whole query that a rank projects is read and written: in MLA this is where its absorbed and its rotary part come
    together. Of the new K and V a rank reads those whose turn in the cache is its own: as many as `fullest_share` of
    the new tokens where the first of them opens a block, and no more at any other place. Where KV shards project
    unequal shares of the queries, the one with most is taken to append most.
    """
    rotated = 2 * s.tokens * q_heads_projected(s, a) * a.score_width
    appended = s.layout.batch * fullest_share(s.query_tokens, s.layout.kvp) * kv_heads_per_rank(s, a) * a.cache_width
    return Work(
        op_class="pointwise",
        activation_bytes=(rotated + appended) * s.activation_bytes,
        kv_bytes=appended * s.precision.bytes_of("kv"),
        rows=s.tokens,
        math=s.precision.format_of("attention_math"),
        weights=s.precision.format_of("kv"),
        part="rope_and_append",
        part_of=f"attention-{a.kind}",
    )


def value_up_projection(s: StepInput, a: LatentAttention) -> Work:
    """MLA, absorbed: each owned head's latent output through its kv_lora x v value up-projection."""
    heads = output_heads_per_rank(s, a)
    return matmul(s, rows=s.tokens, inner=a.kv_lora_rank, outer=a.output_width, copies=heads, **PROJECTION | BATCHED)


def output_projection(s: StepInput, a: Dealt) -> Work:
    """(H/N) x H on each of the N ranks of the token group, for the full batch [Helix 2025, 2.1.2]."""
    inner = output_heads_per_rank(s, a) * a.output_width
    return matmul(s, rows=s.tokens, inner=inner, outer=s.model.hidden_size, **OUTPUT)


def gate_projection(s: StepInput, a: HeadAttention | LatentAttention) -> Work:
    """Output gate: H x Q/N·(output width), for the heads whose output a rank owns.

    Stacks join it to the queries' projection where KVP = 1, and spare this launch; under Helix a KVP rank needs the
    gates of its own heads alone.
    """
    outer = output_heads_per_rank(s, a) * a.output_width
    return matmul(s, rows=s.tokens, inner=s.model.hidden_size, outer=outer, **PROJECTION)


def output_gate(s: StepInput, a: HeadAttention | LatentAttention) -> Work:
    """The gate's sigmoid times the heads' output: two rows read, one written."""
    return gated_activation(s, s.tokens, output_heads_per_rank(s, a) * a.output_width)


# --- Core ------------------------------------------------------------------------------------------------------------


def attention_core(s: StepInput, a: Heads) -> Work:
    """FlashAttention of the new tokens of each request over the local KV shard.

    bytes: B · ceil(K/TPA) · (cached values per token) · (S/KVP) · bytes_kv, once a request however many its new tokens
           [Helix 2025, appendix A: t_kv]
    FLOP:  2 · B · Q/TPA · (score width + value width) · keys seen, S/KVP of them for one new token; the softmax itself
           is not counted.
    Activations: the query, and the output with, where KVP > 1, the log-sum-exp that the exchange sends.
    """
    return core_over(s, a, op_class=f"attention-{a.kind}", tokens=kv_tokens_per_rank(s), keys=keys_seen_per_rank(s))


def window_core(s: StepInput, a: WindowAttention) -> Work:
    """Attention of the new tokens over their windows, on a step without KV shards: `attention_core` with fewer tokens.

    A kernel of grouped-query attention that is told where to begin.
    """
    keys = chunk_keys_seen(s, a.window_tokens) if a.chunked else window_keys_seen(s, a.window_tokens)
    return core_over(s, a, op_class="attention-window", tokens=window_tokens_read(s, a.window_tokens), keys=keys)


def window_tokens_read(s: StepInput, window: int) -> Any:
    """Cached tokens of a request that its new tokens see in their windows, together: min(S, W + q - 1).

    In chunks as many at the worst place, where the last new token closes one (or the first opens the next).
    """
    return smaller(s.context, window + s.query_tokens - 1)


def window_keys_seen(s: StepInput, window: int) -> Any:
    """Query-key products of a request and head in sliding windows: the sum of min(t, W) over t = S - q + 1 … S."""
    return rising(s.context, window) - rising(s.context - s.query_tokens, window)


def chunk_keys_seen(s: StepInput, chunk: int) -> Any:
    """Query-key products of a request and head in chunks of C tokens, at the worst place of the new ones.

    Whole chunks of them, C·(C + 1)/2 products each, and the last r before the end of another: r·C - r·(r - 1)/2. Up to
    the first chunk's end it is the causal triangle. Over a decode the mean is about half of a full chunk.
    """
    q = s.query_tokens
    chunks = floor_div(q, chunk)
    left = q - chunks * chunk
    worst = chunks * (chunk * (chunk + 1) / 2) + left * chunk - left * (left - 1) / 2
    return chosen(s.context <= chunk, q * s.context - q * (q - 1) / 2, worst)


def core_over(s: StepInput, a: Heads, *, op_class: str, tokens: Column, keys: Column) -> Work:
    """An attention core over `tokens` cached tokens of each request, `keys` query-key products a request and head."""
    p, x = s.precision, s.layout
    heads, kv_heads = q_heads_per_rank(s, a), kv_heads_per_rank(s, a)
    head_bytes = (a.score_width + a.value_width) * s.activation_bytes + LSE_BYTES * (x.kvp > 1)
    return Work(
        op_class=op_class,
        flops=2 * x.batch * heads * (a.score_width + a.value_width) * keys,
        kv_bytes=x.batch * kv_heads * a.cache_width * tokens * p.bytes_of("kv"),
        activation_bytes=s.tokens * heads * head_bytes,
        pieces=x.chunks,
        math=p.format_of("attention_math"),
        weights=p.format_of("kv"),
        rows=x.batch,
        inner=a.score_width,
        outer=a.value_width,
        copies=kv_heads,
        heads=heads * s.query_tokens,
        tokens=tokens,
    )
