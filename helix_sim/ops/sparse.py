"""Attention that reads a part of the context: what an indexer picks, by tokens or in blocks, and compressed tokens.

An indexer scores every key of the context in a narrow cache of its own and keeps the best; the core then attends to
those. Which they are depends on the data: of what lies on the fullest KV shard the equations take the expectation,
picks falling on each part of the context alike. `ops.attention` has what these kinds share with others.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from helix_sim.core.numeric import Column, ceil_div, chosen, common_divisor, floor_div, larger, smaller
from helix_sim.core.recorded import called_whole
from helix_sim.core.units import bytes_per_value
from helix_sim.core.work import Work
from helix_sim.ops.attention import (
    KV_BLOCK_TOKENS,
    cached_bytes,
    core_over,
    fullest_share,
    kv_heads_per_rank,
    output_heads_per_rank,
    rising,
    summed_fullest_shares,
    window_keys_seen,
    window_tokens_read,
)
from helix_sim.ops.elementwise import memory_pass
from helix_sim.ops.exchange import sent
from helix_sim.ops.matmul import BATCHED, OUTPUT, PROJECTION, matmul
from helix_sim.ops.routing import largest_binomial
from helix_sim.ops.step_input import StepInput, once_a_step
from helix_sim.specs.attention import BlockSparseAttention, CompressedAttention, Indexer, SparseAttention

Indexed = SparseAttention | BlockSparseAttention | CompressedAttention
"""Kinds that can have an indexer."""

SCORE_BYTES = 4
"""A score of the indexer is FP32, and so wide is the number of the key that it belongs to."""

STATE_BYTES = bytes_per_value("fp32")
"""A value of a compressor's state, FP32 as in DeepSeek-V4's reference inference code."""


def indexer_of(a: Indexed) -> Indexer:
    """The indexer of a kind that has one."""
    assert a.indexer is not None
    return a.indexer


def ratio_of(a: Indexed) -> int:
    """Tokens for each entry that a kind's indexer, or its core, sees."""
    assert a.ratio is not None
    return a.ratio


# --- What a rank holds and sees --------------------------------------------------------------------------------------


def index_shards(s: StepInput) -> Any:
    """Shards of the index cache in an attention group: 1 is a copy on every rank, as SGLang has it.

    https://github.com/sgl-project/sglang/pull/36990. With more, neighbouring KV shards hold one each, and what stands
    beside them copies; they choose in two stages.
    """
    return s.layout.index_kvp


def index_heads_per_rank(s: StepInput, a: Indexed) -> Any:
    """Index queries of a token on a rank: one for each of its KV heads where blocks are picked, else all of them."""
    return kv_heads_per_rank(s, a) if isinstance(a, BlockSparseAttention) else indexer_of(a).heads


def choices_per_rank(s: StepInput, a: Indexed) -> Any:
    """Choices that a rank makes for a new token: one for each of its index heads where these choose apart, else one."""
    return index_heads_per_rank(s, a) if isinstance(a, BlockSparseAttention) else 1


def index_block(i: Indexer) -> int:
    """Neighbouring index keys that stay on one shard: a block of the cache, or all that are chosen together."""
    return max(KV_BLOCK_TOKENS, i.block_tokens)


@once_a_step
def index_keys_per_rank(s: StepInput, a: Indexed) -> Any:
    """Index keys of one request on the fullest rank: of every token, or of every `ratio` tokens."""
    return fullest_share(floor_div(s.context, ratio_of(a)), index_shards(s), index_block(indexer_of(a)))


def index_bytes(s: StepInput, a: Indexed) -> Any:
    """Index cache of one layer and one request on the fullest rank; TPA ranks hold copies."""
    return index_keys_per_rank(s, a) * indexer_of(a).key_bytes


def candidates(s: StepInput, a: Indexed) -> Any:
    """Keys, or blocks, that one shard of the index cache has to offer for a choice: top_k, or all that it holds."""
    i = indexer_of(a)
    return smaller(i.top_k, ceil_div(index_keys_per_rank(s, a), i.block_tokens))


def picked_per_rank(s: StepInput, a: Indexed) -> Any:
    """Entries that a query attends to on the fullest KV shard, of the context's S, or S / ratio.

    All of a shard's while there are no more than `top_k` blocks of them. Beyond, each pick lies on one shard, and the
    fullest has the largest of KVP binomial counts, taken to be independent: of few picks up to 6 % too few, since what
    one shard misses another has. A block of several cache blocks lies on as many neighbours, which have one count; one
    that spans every shard has its even part on each. The block that a token is in is taken to be full.
    """
    i, shards = indexer_of(a), s.layout.kvp
    entries = floor_div(s.context, ratio_of(a))
    pieces = max(i.block_tokens // KV_BLOCK_TOKENS, 1)
    counts = shards / common_divisor(shards, pieces)
    in_pieces = largest_binomial(i.top_k, smaller(pieces / shards, 1.0), counts) * min(i.block_tokens, KV_BLOCK_TOKENS)
    picked = chosen(shards <= pieces, i.picked / shards, in_pieces)
    held = fullest_share(entries, shards)
    return chosen(entries <= i.picked, held, smaller(picked, held))


def picked_keys_seen(s: StepInput, a: Indexed) -> Any:
    """Query-key products of a request and head on the fullest KV shard, over the picks of its new tokens.

    The t-th token has min(floor(t / ratio), picks), and of them the fullest shard the part that it has of the last's.
    """
    i = indexer_of(a)
    entries = floor_div(s.context, ratio_of(a))

    def up_to(tokens: Column) -> Any:
        whole = floor_div(tokens, ratio_of(a))
        return ratio_of(a) * rising(larger(whole - 1, 0), i.picked) + (tokens - ratio_of(a) * whole + 1) * smaller(
            whole, i.picked
        )

    picks = up_to(s.context) - up_to(s.context - s.query_tokens)
    share = picked_per_rank(s, a) / larger(smaller(entries, i.picked), 1)
    every = summed_fullest_shares(s, s.layout.kvp, ratio=ratio_of(a))
    return chosen(entries <= i.picked, every, picks * share)


def picked_tokens_read(s: StepInput, a: Indexed) -> Any:
    """Cached entries of a request that a rank reads: its picks of each new token, all that it holds at most."""
    held = fullest_share(floor_div(s.context, ratio_of(a)), s.layout.kvp)
    return smaller(s.query_tokens * picked_per_rank(s, a), held)


# --- The indexer -----------------------------------------------------------------------------------------------------


def index_projection(s: StepInput, a: Indexed) -> Work:
    """From the residual stream: the index key and each head's weight (DSA); the weights alone of compressed keys.

    Where index heads are dealt with the KV heads: their queries and the one key.
    """
    i = indexer_of(a)
    if isinstance(a, BlockSparseAttention):
        outer: Any = (index_heads_per_rank(s, a) + 1) * i.width
    else:
        outer = i.heads + i.width * isinstance(a, SparseAttention)
    return matmul(s, rows=s.tokens, inner=s.model.hidden_size, outer=outer, **PROJECTION)


def index_query_up(s: StepInput, a: SparseAttention | CompressedAttention) -> Work:
    """Index queries from the query's latent: q_lora x heads·width, whole on every rank."""
    i = indexer_of(a)
    return matmul(s, rows=s.tokens, inner=a.q_lora_rank, outer=i.heads * i.width, **PROJECTION)


def index_append(s: StepInput, a: Indexed) -> Work:
    """Index queries made ready (rotated, quantised), and the new tokens' index keys into the shard that takes most.

    Compressed keys are written where they are made, in `compress`.
    """
    i = indexer_of(a)
    new = fullest_share(s.query_tokens, index_shards(s), index_block(i)) * (not isinstance(a, CompressedAttention))
    queries = 2 * s.tokens * index_heads_per_rank(s, a) * i.width
    return Work(
        op_class="pointwise",
        activation_bytes=(queries + s.layout.batch * new * i.width) * s.activation_bytes,
        kv_bytes=s.layout.batch * new * i.key_bytes,
        rows=s.tokens,
    )


@once_a_step
def index_scores(s: StepInput, a: Indexed) -> Any:
    """Scores of a request that a rank's indexer leaves behind: one a key that a new token sees, or one a block."""
    i = indexer_of(a)
    keys = summed_fullest_shares(s, index_shards(s), ratio=ratio_of(a), block=index_block(i))
    return choices_per_rank(s, a) * keys / i.block_tokens


def index_logits(s: StepInput, a: Indexed) -> Work:
    """Every index key of the context against the index queries of the new tokens.

    bytes: B · (keys on a rank) · (bytes of a key), once a request however many its new tokens
    FLOP:  2 · B · heads · width · keys seen; the sum over heads, or the best of a block, is not counted
    Activations: the queries, their weights where scores are summed over heads, and the scores, FP32.
    """
    i, x = indexer_of(a), s.layout
    heads = index_heads_per_rank(s, a)
    keys = index_scores(s, a) * i.block_tokens / choices_per_rank(s, a)
    weights = 0 if isinstance(a, BlockSparseAttention) else heads
    queries = s.tokens * (heads * i.width + weights) * s.activation_bytes
    return Work(
        op_class="index-logits",
        flops=2 * x.batch * heads * i.width * keys,
        kv_bytes=x.batch * index_bytes(s, a),
        activation_bytes=queries + x.batch * index_scores(s, a) * SCORE_BYTES,
        math=i.math,
        weights="fp8" if i.math == "fp8" else i.math,
        rows=x.batch,
        inner=i.width,
        outer=1,
        copies=1,
        heads=heads * s.query_tokens,
        tokens=index_keys_per_rank(s, a),
    )


def index_top_k(s: StepInput, a: Indexed) -> Work:
    """The best of a rank's scores: read once, and the numbers of those chosen written, with their scores if sharded.

    tokens: the scores of a row, which is a choice of one new token.
    """
    split = (index_shards(s) > 1) * 1
    chosen_here = s.tokens * choices_per_rank(s, a) * candidates(s, a)
    moved = s.layout.batch * index_scores(s, a) + chosen_here * (1 + split)
    row = ceil_div(index_keys_per_rank(s, a), indexer_of(a).block_tokens)
    return replace(memory_pass("index-top-k", moved_bytes=moved * SCORE_BYTES, rows=s.tokens), tokens=row)


def index_exchange(s: StepInput, a: Indexed) -> Work:
    """All-gather of each shard's candidates, a score and a number each; nothing where every rank has the whole cache.

    The best top_k of the context are among the best top_k of every shard: the choice stays exact.
    """
    shards = index_shards(s)
    payload = (shards - 1) * s.tokens * choices_per_rank(s, a) * candidates(s, a) * 2 * SCORE_BYTES
    return sent("all-gather", "all-gather", payload, shards, stride=s.layout.tpa, rows=s.tokens)


def index_merge(s: StepInput, a: Indexed) -> Work:
    """The best of all shards' candidates, read with their scores; no kernel where the index cache is not sharded."""
    shards, i = index_shards(s), indexer_of(a)
    split = (shards > 1) * 1
    kept = smaller(i.top_k, ceil_div(floor_div(s.context, ratio_of(a)), i.block_tokens))
    moved = split * s.tokens * choices_per_rank(s, a) * (2 * shards * candidates(s, a) + kept) * SCORE_BYTES
    return memory_pass("index-top-k", moved_bytes=moved, rows=s.tokens, kernels=split)


# --- Cores over what was picked --------------------------------------------------------------------------------------


def sparse_core(s: StepInput, a: SparseAttention | BlockSparseAttention) -> Work:
    """Attention of the new tokens over what the indexer picked for each: `attention_core` with fewer tokens.

    Each new token reads its own picks, until together they are the whole shard. Without the list of picks, four bytes
    of each beside hundreds of its keys and values.
    """
    tokens, keys = picked_tokens_read(s, a), picked_keys_seen(s, a)
    return core_over(s, a, op_class=f"attention-{a.kind}", tokens=tokens, keys=keys)


def indexed_bytes(s: StepInput, a: SparseAttention | BlockSparseAttention) -> Any:
    """Cache of one layer and one request on the fullest rank: keys and values, sharded, and index keys of its own."""
    shared = isinstance(a, SparseAttention) and a.picks_shared
    return cached_bytes(s, a) + (0 if shared else index_bytes(s, a))


# --- Compressed tokens -----------------------------------------------------------------------------------------------


def compressor_projection(s: StepInput, a: CompressedAttention) -> Work:
    """H x 2·(series)·(vector, and index key): what a token puts into compressed ones, and its gates; on every rank."""
    outer = 2 * a.series * a.compressed_width
    return matmul(s, rows=s.tokens, inner=s.model.hidden_size, outer=outer, **PROJECTION)


def compress(s: StepInput, a: CompressedAttention) -> Work:
    """The compressor's state gains the new tokens, and every `ratio` of them leave one compressed vector.

    Requests are at different places: on average a step closes T / ratio vectors, each from the state of (series)·ratio
    tokens, and writes it, with its index key, into the cache of the KVP rank whose turn it is. The state is FP32 and
    whole on every rank.
    """
    new = s.tokens * 2 * a.series * a.compressed_width
    i = a.indexer
    entry_bytes = a.cache_width * s.precision.bytes_of("kv") + (i.key_bytes if i else 0)
    return Work(
        op_class="elementwise",
        activation_bytes=new * s.activation_bytes,
        kv_bytes=2 * new * STATE_BYTES + s.tokens / ratio_of(a) * entry_bytes,
        rows=s.tokens,
    )


def compressed_core(s: StepInput, a: CompressedAttention) -> Work:
    """Attention of the new tokens over their windows and over compressed vectors: those picked, or all of them.

    The window's tokens are dealt to KV shards as any are, and so are compressed vectors, in blocks of 16. One vector is
    key and value: read once.
    """
    x, window = s.layout, a.window_tokens
    near = fullest_share(window_tokens_read(s, window), x.kvp)
    near_keys = _window_keys_per_rank(s, window)
    far: Any = 0
    far_keys: Any = 0
    if a.indexer:
        far, far_keys = picked_tokens_read(s, a), picked_keys_seen(s, a)
    elif a.ratio:
        far = fullest_share(floor_div(s.context, ratio_of(a)), x.kvp)
        far_keys = summed_fullest_shares(s, x.kvp, ratio=ratio_of(a))
    return core_over(s, a, op_class="attention-compressed", tokens=near + far, keys=near_keys + far_keys)


def _window_keys_per_rank(s: StepInput, window: int) -> Any:
    """Query-key products of a request and head in its window, on the fullest KV shard: its share of each token's."""
    seen = window_keys_seen(s, window)
    widest = smaller(s.context, window)
    return chosen(s.layout.kvp == 1, seen, s.query_tokens * fullest_share(widest, s.layout.kvp))


def compressed_bytes(s: StepInput, a: CompressedAttention) -> Any:
    """Cache of one layer and one request on the fullest rank: window, compressed vectors, index keys, and the state."""
    x = s.layout
    vectors = fullest_share(window_tokens_read(s, a.window_tokens), x.kvp)
    if a.ratio:
        vectors = vectors + fullest_share(floor_div(s.context, a.ratio), x.kvp)
    index = index_bytes(s, a) if a.indexer else 0
    return vectors * a.cache_width * s.precision.bytes_of("kv") + index + a.state_values * STATE_BYTES


@once_a_step
def output_groups_per_rank(s: StepInput, a: CompressedAttention) -> Any:
    """Groups that the heads which a rank owns are of, on the rank where they are most: read off how heads are dealt.

    Not in closed form where ranks own unequally many heads; no stack starts such a layout.
    """
    shards = larger(floor_div(s.layout.token_group, s.layout.tpa), 1)
    return _most_groups_of(a.q_heads, a.q_heads // a.output_groups, s.layout.tpa, shards)


@called_whole
def _most_groups_of(heads: int, group: int, columns: Column, shards: Column) -> Any:
    """`most_groups` of columns of them."""
    found = np.frompyfunc(functools.partial(most_groups, heads, group), 2, 1)(columns, shards)
    return found.astype(np.float64) if isinstance(found, np.ndarray) else float(found)


@functools.cache
def most_groups(heads: int, group: int, columns: int, shards: int) -> int:
    """Groups of `group` neighbours that a rank's share of the heads is of, at most: dealt to columns, then to shards.

    Neighbours stay together, and the first shares are larger by one where they do not come out even.

    >>> [most_groups(12, 4, 2, shards) for shards in (1, 2, 4)]
    [2, 2, 1]
    """
    spans = [
        (head + own - 1) // group - head // group + 1
        for first, several in _dealt(0, heads, columns)
        for head, own in _dealt(first, several, shards)
        if own
    ]
    return max(spans, default=1)


def _dealt(first: int, things: int, ranks: int) -> Iterator[tuple[int, int]]:
    """(where it begins, how many) of each rank's share of neighbours that begin at `first`."""
    small, more = divmod(things, int(ranks))
    return ((first + small * rank + min(rank, more), small + (rank < more)) for rank in range(int(ranks)))


def output_down_projection(s: StepInput, a: CompressedAttention) -> Work:
    """Each group's heads to the group's output latent: (heads·width) x o_lora, for the heads that a rank owns."""
    groups = output_groups_per_rank(s, a)
    inner = output_heads_per_rank(s, a) / groups * a.output_width
    return matmul(s, rows=s.tokens, inner=inner, outer=a.output_lora_rank, copies=groups, **PROJECTION | BATCHED)


def grouped_output_projection(s: StepInput, a: CompressedAttention) -> Work:
    """The output latents of a rank's groups to the residual stream, a partial sum: groups·o_lora x H."""
    inner = output_groups_per_rank(s, a) * a.output_lora_rank
    return matmul(s, rows=s.tokens, inner=inner, outer=s.model.hidden_size, **OUTPUT)
