"""One step of one layer, really run: N in-process ranks with real tensors, sharded as a Layout says.

The independent witness of the equations. Each rank holds its own weights and KV shard, computes in float64, exchanges
arrays with the others and counts what that takes, under the op names of the step. It shares no arithmetic with the
equations: which heads, experts and tokens a rank holds is dealt out here, thing by thing.

Shapes on one rank: B requests of its attention group, n new tokens of each, H hidden, q and k of the Q query and K KV
heads, S cached tokens; `rows` are the B·n new tokens, those of one request side by side. Ranks are placed in order:
attention group, then KV shard, then tpa column. Tokens are appended to the KV shards round-robin in blocks of 16
[Helix 2025, section 2.3].
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from itertools import pairwise
from math import gcd

import numpy as np
import numpy.typing as npt
from witness.counted import Array, Rank, ring_all_reduce, send
from witness.plain_kinds import FIXED_DECAY, compressed_entry, places, sigmoid
from witness.plain_layer import (
    LayerSpec,
    Weights,
    activated,
    choose_experts,
    rms_norm,
    rotate,
    score_scale,
    tensors_in,
)

from helix_sim.core.layout import Layout
from helix_sim.core.units import bytes_per_value
from helix_sim.kernels.twin import combine
from helix_sim.specs.attention import (
    AttentionKind,
    BlockSparseAttention,
    CompressedAttention,
    HeadAttention,
    Indexer,
    LatentAttention,
    LinearAttention,
    WindowAttention,
)
from helix_sim.specs.ffn import RoutedFfn
from helix_sim.specs.precision import Precision

Positions = npt.NDArray[np.int64]
"""Places of tokens in their request, from 0."""

BLOCK_TOKENS = 16
"""Tokens that one KV shard takes before it is the next one's turn."""


# --- Who holds what --------------------------------------------------------------------------------------------------


def deal(things: int, ranks: int) -> list[range]:
    """Neighbouring shares of `things`, one a rank, sizes within one of each other and the larger ones first.

    >>> deal(5, 3)
    [range(0, 2), range(2, 4), range(4, 5)]
    """
    small, larger = divmod(things, ranks)
    starts = [small * r + min(r, larger) for r in range(ranks + 1)]
    return [range(a, b) for a, b in pairwise(starts)]


def deal_heads(q_heads: int, kv_heads: int, tpa: int) -> list[tuple[range, range]]:
    """(query heads, KV heads) of each tpa column; queries stay with their KV head, or with a copy of it.

    Up to TPA = K the KV heads are dealt to columns. Past it the columns are dealt to KV heads as copies, and each
    head's queries to its copies.

    >>> deal_heads(8, 2, 4)
    [(range(0, 2), range(0, 1)), (range(2, 4), range(0, 1)), (range(4, 6), range(1, 2)), (range(6, 8), range(1, 2))]
    """
    share = q_heads // kv_heads
    if tpa <= kv_heads:
        return [(range(share * kv.start, share * kv.stop), kv) for kv in deal(kv_heads, tpa)]
    return [
        (range(share * head + part.start, share * head + part.stop), range(head, head + 1))
        for head, copies in enumerate(deal(tpa, kv_heads))
        for part in deal(share, len(copies))
    ]


@dataclass(frozen=True, slots=True, kw_only=True)
class Widths:
    """One layout, in whole numbers, of one pipeline stage."""

    batch: int
    tpa: int
    kvp: int
    dp: int
    tpf: int
    ep: int
    chunks: int
    index_kvp: int
    q_shards: int

    @classmethod
    def of(cls, layout: Layout) -> Widths:
        """The widths of a layout; it must be one layout, not a column of them."""
        return cls(**{field.name: int(getattr(layout, field.name)) for field in fields(cls)})

    @property
    def keepers(self) -> int:
        """KV shards that keep tokens after the exchange: those whose ranks are in the FFN grid."""
        return self.kvp if self.tpf * self.ep == self.dp * self.tpa * self.kvp else 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Seat:
    """Where a rank stands, and the heads it has: `kept` are those of its query heads whose full output it owns.

    holds: the KV shard that it keeps; all ranks the first, and the whole, where a layer has no KV shards. projects:
    those of its query heads that it projects; it gathers the others from its peers.
    """

    group: int
    shard: int
    holds: int
    q_heads: range
    kv_heads: range
    kept: range
    projects: range


def seats_of(a: AttentionKind, x: Widths) -> list[Seat]:
    """Every rank of a pipeline stage, in order. The exchange deals a column's heads to the shards that keep tokens.

    A window or a state is not sharded: heads are dealt to all ranks that keep tokens, and others have none.
    """
    if isinstance(a, WindowAttention | LinearAttention):
        dealt = deal_heads(a.q_heads, a.kv_heads, x.keepers * x.tpa)
        dealt += [(range(0), range(0))] * (x.tpa * (x.kvp - x.keepers))
        return [
            Seat(
                group=group,
                shard=place // x.tpa,
                holds=0,
                q_heads=q,
                kv_heads=kv,
                kept=range(len(q)),
                projects=range(len(q)),
            )
            for group in range(x.dp)
            for place, (q, kv) in enumerate(dealt)
        ]
    columns = deal_heads(a.q_heads, a.kv_heads, x.tpa)
    return [
        Seat(group=group, shard=shard, holds=shard, q_heads=q, kv_heads=kv, kept=kept, projects=projects)
        for group in range(x.dp)
        for shard in range(x.kvp)
        for q, kv in columns
        for kept in [deal(len(q), x.keepers)[shard] if shard < x.keepers else range(0)]
        for projects in [deal(len(q), x.q_shards)[shard % x.q_shards]]
    ]


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """Which values of a cached vector are key and value, and which are rotated (the query's are in the same place)."""

    key: slice
    value: slice
    rotated: slice


def parts_of(a: AttentionKind) -> Parts:
    """GQA caches a rotated key beside a value; MLA a latent, which is the value, beside a rotary key.

    A compressed layer's vector is rotated and both.
    """
    if isinstance(a, HeadAttention):
        return Parts(key=slice(a.head_size), value=slice(a.head_size, None), rotated=slice(a.head_size))
    if isinstance(a, CompressedAttention):
        return Parts(key=slice(None), value=slice(None), rotated=slice(None))
    assert isinstance(a, LatentAttention)
    return Parts(key=slice(None), value=slice(a.kv_lora_rank), rotated=slice(a.kv_lora_rank, None))


class KvShard:
    """The cached vectors of one rank, [B, tokens, k, cached values], and the position of each token in its request."""

    def __init__(self, batch: int, kv_heads: int, width: int) -> None:
        self.values: Array = np.empty((batch, 0, kv_heads, width))
        self.positions: Positions = np.empty(0, dtype=np.int64)

    @property
    def tokens(self) -> int:
        """Tokens of each request that are cached so far."""
        return len(self.positions)

    def append(self, entries: Array, positions: Positions) -> None:
        """More tokens of every request, [B, tokens, k, cached values]."""
        self.values = np.concatenate([self.values, entries], axis=1)
        self.positions = np.concatenate([self.positions, positions])

    def roll_back_to(self, position: int) -> None:
        """Leaves what is at a position or behind it."""
        kept = self.positions < position
        self.values, self.positions = self.values[:, kept], self.positions[kept]

    def forget_before(self, position: int) -> None:
        """Leaves what is older than a position."""
        kept = self.positions >= position
        self.values, self.positions = self.values[:, kept], self.positions[kept]


# --- Attention on one rank -------------------------------------------------------------------------------------------


def hold_attention(a: AttentionKind, w: Weights, seat: Seat) -> Weights:
    """A rank's shard of the attention weights: its heads' columns side by side, and the rows of the heads it keeps."""
    q, kv = list(seat.q_heads), list(seat.kv_heads)
    kept, projected = [q[i] for i in seat.kept], [q[i] for i in seat.projects]
    if isinstance(a, LinearAttention):
        return _hold_linear(a, w, q, kv)
    held = _hold_indexer(a, w, kv)
    held |= {"gate": _side_by_side(w["gate"][kept])} if "gate" in w else {}
    held |= {"sinks": w["sinks"][:, kept]} if "sinks" in w else {}
    if isinstance(a, CompressedAttention):
        share = a.q_heads // a.output_groups
        groups = sorted({head // share for head in kept})
        down = np.concatenate([w["q_down"], w["kv_down"]], axis=1)
        into = np.concatenate([w["compressed"], w["weighed"]], axis=1)
        held |= {"down": down, "q_up": _side_by_side(w["q_up"][projected]), "o_down": w["o_down"][kept]}
        held |= {"into": into} if a.ratio else {}
        return held | {"o_up": w["o_up"][groups].reshape(-1, w["o_up"].shape[-1])}
    held |= {"o": w["o"][kept].reshape(-1, w["o"].shape[-1])}
    if isinstance(a, HeadAttention):
        return held | {"qkv": _side_by_side(np.concatenate([w["q"][projected], w["k"][kv], w["v"][kv]]))}
    down = np.concatenate([w["q_down"], w["kv_down"]], axis=1)
    held |= {"down": down, "q_up": _side_by_side(w["q_up"][projected]), "k_up": w["k_up"][projected]}
    return held | {"v_up": w["v_up"][kept]}


def _hold_indexer(a: AttentionKind, w: Weights, kv: list[int]) -> Weights:
    """The whole indexer, or of index heads that belong to KV heads those of a rank's own, and the one index key."""
    if getattr(a, "indexer", None) is None or getattr(a, "picks_shared", None):
        return {}
    if isinstance(a, BlockSparseAttention):
        return {"index": np.concatenate([_side_by_side(w["index_q"][kv]), w["index_k"]], axis=1)}
    index = np.concatenate([w["index_k"], w["index_w"]], axis=1) if "index_k" in w else w["index_w"]
    return {"index": index, "index_q": _side_by_side(w["index_q"])}


def _hold_linear(a: LinearAttention, w: Weights, values: list[int], keys: list[int]) -> Weights:
    """Every projection of a rank's heads side by side; the decays' latent is whole; the convolution's kernels apart."""
    hidden = w["o"].shape[-1]
    parts = [w["q"][keys], w["k"][keys], w["v"][values], *([w["z"][values]] if "z" in w else []), w["gates"][values]]
    found = [_side_by_side(part) for part in parts] + ([w["decay_down"]] if "decay_down" in w else [])
    held = {"linear": np.concatenate(found, axis=1), "o": w["o"][values].reshape(-1, hidden)}
    held |= {"decay": _side_by_side(w["decay_up"][keys])} if "decay_up" in w else {}
    return held | {
        f"conv_{name}": w[f"conv_{name}"][heads] for name, heads in (("q", keys), ("k", keys), ("v", values))
    }


MULTIPLIED_BY = {
    "qkv": "qkv_projection",
    "down": "latent_down_projection",
    "q_up": "query_up_projection",
    "k_up": "key_absorption",
    "v_up": "value_up_projection",
    "o": "output_projection",
    "gate": "gate_projection",
    "index": "index_projection",
    "index_q": "index_query_up",
    "into": "compressor_projection",
    "o_down": "output_down_projection",
    "o_up": "output_projection",
    "linear": "linear_projection",
    "decay": "decay_projection",
}
"""The op for which a rank holds each matrix of its attention; sinks and a convolution's kernels are not counted."""


def _side_by_side(heads: Array) -> Array:
    """[heads, inner, width] as one matrix [inner, heads·width]."""
    return heads.transpose(1, 0, 2).reshape(heads.shape[1], -1)


def project(a: AttentionKind, rank: Rank, seat: Seat, w: Weights, x: Array) -> tuple[Array, Array, Array]:
    """x [rows, H] to the queries [rows, q, score width], what to cache [rows, k, cached values], the query's latent.

    Not yet rotated. Where there is no latent, x itself is what index queries come from.
    """
    tensor = "attention_weights"
    if isinstance(a, HeadAttention):
        heads = rank.linear("qkv_projection", x, w["qkv"], tensor).reshape(len(x), -1, a.head_size)
        ends = [len(seat.projects), len(seat.projects) + len(seat.kv_heads)]
        query, key, value = np.split(heads, ends, axis=1)
        return query, np.concatenate([key, value], axis=-1), x
    assert isinstance(a, LatentAttention | CompressedAttention)
    down = rank.linear("latent_down_projection", x, w["down"], tensor)
    q_latent, latent, turning = np.split(down, [a.q_lora_rank, a.normed_width], axis=1)
    normed = rms_norm(q_latent), rms_norm(latent)
    rank.moves("latent_norm", q_latent, latent, *normed)
    query = rank.linear("query_up_projection", normed[0], w["q_up"], tensor)
    query = query.reshape(len(x), len(seat.projects), a.query_width)
    entry = np.concatenate([normed[1], turning], axis=-1)[:, None]
    if isinstance(a, CompressedAttention):
        return query, entry, normed[0]
    absorbed = each_head("key_absorption", rank, query[..., : a.nope_width], w["k_up"])
    return np.concatenate([absorbed, query[..., a.nope_width :]], axis=-1), entry, normed[0]


def each_head(op: str, rank: Rank, x: Array, w: Array) -> Array:
    """x [rows, heads, inner], each head through its own weights w [heads, inner, outer]."""
    outputs = [rank.linear(op, x[:, head], w[head], "attention_weights") for head in range(len(w))]
    return np.stack(outputs, axis=1) if outputs else np.zeros((len(x), 0, w.shape[2]))


def rotated(values: Array, part: slice, positions: Positions) -> Array:
    """A copy of values [B, n, heads, width] whose `part` of the last axis is turned to the n tokens' positions."""
    turned = values.copy()
    turned[..., part] = rotate(values[..., part], positions)
    return turned


Picks = Sequence[Sequence[Sequence[Positions]]]
"""Places in a rank's cache that each new token sees, by request, new token and KV head."""


def first_ones(batch: int, kv_heads: int, seen: Positions) -> Picks:
    """Of every request and KV head, the first `seen` places of the cache for each new token."""
    return [[[np.arange(count)] * kv_heads for count in seen]] * batch


def partial_attention(
    rank: Rank, query: Array, cached: Array, picks: Picks, parts: Parts, scale: float
) -> tuple[Array, Array]:
    """Attention over the local shard alone: partial outputs [B, n, q, value width] and log-sum-exps [B, n, q].

    query [B, n, q, score width], cached [B, tokens, k, cached values]; each of the n new tokens sees its picks. Cached
    vectors are read once for each new token that picked them, or all of them once where that is less. Where nothing is
    seen the answer is zeros and a log-sum-exp of minus infinity: it has no say in the sum.
    """
    heads, kv_heads = query.shape[2], cached.shape[2]
    out = np.zeros((*query.shape[:3], cached[..., parts.value].shape[-1]))
    lse = np.full(query.shape[:3], -np.inf)
    share = heads // kv_heads if kv_heads else 0
    for row, head in np.ndindex(len(query), kv_heads if cached.shape[1] and heads else 0):
        mine, vectors = slice(share * head, share * (head + 1)), cached[row, :, head]
        rank.moves_kv("attention_core", vectors[: sum(len(new[head]) for new in picks[row])])
        for new, each in enumerate(picks[row]):
            if not len(each[head]):
                continue
            seen = vectors[each[head]]
            scores = rank.product("attention_core", query[row, new, mine], seen[:, parts.key].T) * scale
            top = scores.max(axis=1, keepdims=True)
            raised = np.exp(scores - top)
            total = raised.sum(axis=1, keepdims=True)
            out[row, new, mine] = rank.product("attention_core", raised, seen[:, parts.value]) / total
            lse[row, new, mine] = (top + np.log(total))[:, 0]
    rank.moves("attention_core", query, out)
    return out, lse


# --- The indexer on one rank -----------------------------------------------------------------------------------------

SCORE_BYTES = 4
"""A score, and the number of the key that it belongs to."""


def unit_of(i: Indexer) -> int:
    """Neighbouring index keys that stay on one shard."""
    return max(BLOCK_TOKENS, i.block_tokens)


@dataclass(frozen=True, slots=True, kw_only=True)
class Offers:
    """What one shard of the index cache has to offer: scores and numbers [B, n, choices, candidates], -1 for none."""

    scores: Array
    numbers: Positions


def score_shard(
    a: AttentionKind,
    rank: Rank,
    queries: Array,
    weights: Array | None,
    cache: KvShard,
    closed: Positions,
    new: Positions,
) -> Offers:
    """Each new token's best keys, or blocks, among those of a rank's shard of the index cache.

    queries [B, n, heads, width]; weights [B, n, heads] where scores are summed over heads, None where each head chooses
    blocks by their best key. closed: index keys of the request that each new token sees; new: the tokens' positions.
    """
    i: Indexer = a.indexer  # type: ignore[union-attr,assignment]
    block, heads = i.block_tokens, queries.shape[2]
    numbers_here = np.unique(cache.positions // block)
    kept = min(i.top_k, len(numbers_here))
    choices = heads if weights is None else 1
    scores = np.full((*queries.shape[:2], choices, kept), -np.inf)
    numbers = np.full(scores.shape, -1)
    rank.moves_kv("index_logits", cache.values[..., :1], i.key_bytes)
    counted = 0
    for row, at in np.ndindex(queries.shape[:2]):
        seen = np.searchsorted(cache.positions, closed[at])
        products = rank.product("index_logits", queries[row, at], cache.values[row, :seen, 0].T)
        places = cache.positions[:seen] // block
        if weights is not None:
            found, here = (weights[row, at] @ np.maximum(products, 0.0))[None], places
        else:
            starts = np.flatnonzero(np.diff(places, prepend=-1))
            here = places[starts]
            found = np.maximum.reduceat(products, starts, axis=1) if seen else products
            found = np.where(here == new[at] // block, np.inf, found)
        counted += len(found) * seen / block
        order = np.argsort(-found, axis=1, kind="stable")[:, :kept]
        scores[row, at, :, : order.shape[1]] = np.take_along_axis(found, order, axis=1)
        numbers[row, at, :, : order.shape[1]] = here[order]
    rank.moves("index_logits", queries, *([weights] if weights is not None else []))
    for op in ("index_logits", "index_top_k"):
        rank.counts[op].activation_bytes += counted * SCORE_BYTES
    return Offers(scores=scores, numbers=numbers)


def merged(a: AttentionKind, rank: Rank, offers: Sequence[Offers], entries: int) -> Positions:
    """The best of all shards' offers, of equals the earliest: numbers [B, n, choices, top_k or all], -1 for none."""
    i: Indexer = a.indexer  # type: ignore[union-attr,assignment]
    scores, numbers = (np.concatenate([getattr(o, name) for o in offers], axis=-1) for name in ("scores", "numbers"))
    rank.moves("index_top_k", offers[0].numbers, tensor="lse")
    kept = min(i.top_k, -(-entries // i.block_tokens))
    if len(offers) > 1:
        rank.moves("index_top_k", offers[0].scores, tensor="lse")
        rank.moves("index_merge", scores, numbers, numbers[..., :kept], tensor="lse")
    order = np.lexsort((numbers, -scores), axis=-1)[..., :kept]
    return np.take_along_axis(numbers, order, axis=-1)


def padded(values: Array, most: int, gap: float) -> Array:
    """Values [..., candidates] with gaps behind them up to `most`: ranks of an all-gather send equally much."""
    lacking = most - values.shape[-1]
    return np.concatenate([values, np.full((*values.shape[:-1], lacking), gap, dtype=values.dtype)], axis=-1)


# --- Linear attention on one rank ------------------------------------------------------------------------------------

MOST_STATES = 16
"""States of a request that a step leaves behind, at most."""


class LinearState:
    """The states of one rank: matrices [B, heads, key width, value width], and the last inputs of the convolution."""

    def __init__(self, a: LinearAttention, batch: int, seat: Seat) -> None:
        self.heads, self.keys = len(seat.q_heads), len(seat.kv_heads)
        self.matrices = np.zeros((batch, self.heads, a.key_width, a.value_width))
        self.inputs = np.zeros((batch, a.conv_tokens - 1, self.channels(a)))
        self.after: list[Array] = []
        self.every_input: Array = self.inputs

    def roll_back_to(self, accepted: int) -> None:
        """The state as it was after that many tokens of the last step, each of which left one."""
        self.matrices = self.after[accepted - 1]
        self.inputs = self.every_input[:, accepted : accepted + self.inputs.shape[1]]

    def channels(self, a: LinearAttention) -> int:
        """Values of a token that pass the convolution."""
        return 2 * self.keys * a.key_width + self.heads * a.value_width


def run_linear(a: LinearAttention, rank: Rank, state: LinearState, w: Weights, x: Array) -> Array:
    """x [B, n, H] through the recurrence of a rank's heads: [B·n, heads, value width], normed and gated."""
    batch, new = x.shape[:2]
    keys, heads, kept = state.keys, state.heads, min(new, MOST_STATES)
    made = rank.linear("linear_projection", x.reshape(batch * new, -1), w["linear"], "attention_weights")
    widths = (state.channels(a), heads * a.value_width * a.output_gate, heads * a.head_gates, a.decay_rank or 0)
    mixed, opened, numbers, latent = np.split(made.reshape(batch, new, -1), np.cumsum(widths)[:-1], axis=-1)
    mixed = _convolve(a, rank, state, w, mixed, kept)
    cuts = np.cumsum([keys * a.key_width] * 2)
    q, k, v = np.split(mixed, cuts, axis=-1)
    share = heads // keys if keys else 1
    q, k = (each.reshape(batch, new, keys, a.key_width).repeat(share, axis=2) for each in (q, k))
    v, numbers = v.reshape(batch, new, heads, a.value_width), numbers.reshape(batch, new, heads, a.head_gates)
    decay, strength = np.full((batch, new, heads, 1), FIXED_DECAY), np.ones((batch, new, heads))
    given = list(np.moveaxis(numbers, -1, 0))
    if a.delta_rule and given:
        strength = sigmoid(given.pop())
    if a.decay_rank:
        decays = rank.linear("decay_projection", latent.reshape(batch * new, -1), w["decay"], "attention_weights")
        rank.moves("state_update", decays)
        decay = sigmoid(decays.reshape(batch, new, keys, a.key_width).repeat(share, axis=2))
    elif given:
        decay = sigmoid(given[0])[..., None]
    out = np.zeros(v.shape)
    state.after = []
    for t in range(new):
        out[:, t] = _recur(a, rank, state, q[:, t], k[:, t], v[:, t], decay[:, t], strength[:, t])
        state.after.append(state.matrices)
    rank.moves_kv("state_update", state.matrices, (1 + kept) * bytes_per_value(a.state_format))
    rank.moves("state_update", mixed, numbers, out)
    normed = rms_norm(out)
    gate = opened.reshape(out.shape) if a.output_gate else np.zeros(0)
    final = normed * gate * sigmoid(gate) if a.output_gate else normed
    rank.moves("output_norm", out, gate, final)
    return final.reshape(batch * new, heads, a.value_width)


def _convolve(a: LinearAttention, rank: Rank, state: LinearState, w: Weights, mixed: Array, kept: int) -> Array:
    """SiLU of each channel's short convolution over the state's inputs and the new ones, which the state then keeps."""
    if a.conv_tokens == 1:
        return mixed
    kernel = np.concatenate([w[f"conv_{name}"].reshape(-1, a.conv_tokens) for name in ("q", "k", "v")])
    inputs = state.every_input = np.concatenate([state.inputs, mixed], axis=1)
    summed = np.asarray(sum(inputs[:, i : i + mixed.shape[1]] * kernel[:, i] for i in range(a.conv_tokens)))
    rank.moves_kv("convolution", state.inputs, rank.bytes_of("activations"))
    state.inputs = inputs[:, -(a.conv_tokens - 1) :]
    written = inputs[:, -1:].repeat(a.conv_tokens + kept - 2, axis=1)
    rank.moves_kv("convolution", written, rank.bytes_of("activations"))
    out = summed * sigmoid(summed)
    rank.moves("convolution", mixed, out)
    return out


def _recur(
    a: LinearAttention, rank: Rank, state: LinearState, q: Array, k: Array, v: Array, decay: Array, strength: Array
) -> Array:
    """One token [B, heads, width]: the matrices decay and take its key x value, and its query reads them."""
    state.matrices = state.matrices * decay[..., None]
    if a.delta_rule:
        v = v - rank.product("state_update", k[..., None, :], state.matrices)[..., 0, :] / a.key_width
    state.matrices = state.matrices + rank.product(
        "state_update", k[..., None], (v * strength[..., None])[..., None, :]
    )
    return rank.product("state_update", q[..., None, :], state.matrices)[..., 0, :]


# --- Feed-forward shards ---------------------------------------------------------------------------------------------


def hold_ffn(inward: list[Array], down: Array, columns: range) -> Weights:
    """A shard of an FFN: its columns of gate and up side by side, or of up alone, and its rows of down."""
    mine = list(columns)
    return {"up": np.concatenate([tensor[:, mine] for tensor in inward], axis=1), "down": down[mine]}


def run_ffn(rank: Rank, name: str, x: Array, w: Weights, count: int) -> Array:
    """x [rows, H] through a shard of an FFN: a partial sum [rows, H]; `name` starts the names of its three ops.

    count: projections into the inner width, two where it is gated.
    """
    inward = np.split(rank.linear(f"{name}_up", x, w["up"], f"{name}_weights"), count, axis=1)
    inner = activated(*inward)
    rank.moves(f"{name}_activation", *inward, inner)
    return rank.linear(f"{name}_down", inner, w["down"], f"{name}_weights")


# --- The layer -------------------------------------------------------------------------------------------------------

Held = dict[int, Array]
"""A tensor by rank, for the ranks that have one."""


class HelixLayer:
    """One decoder layer on the dp·tpa·kvp ranks of a pipeline stage, and its KV cache.

    The same code runs plain TP (kvp = 1, past TPA = K with duplicated KV heads), data-parallel attention with expert
    parallelism (dp > 1), Helix (kvp > 1, the FFN grid on every rank) and Medha (kvp > 1, the FFN grid on the first KV
    shard's ranks). `attention` and `ffn` hold the tensors that the layer's two kinds have.
    """

    def __init__(
        self, layer: LayerSpec, precision: Precision, layout: Layout, attention: Weights, ffn: Weights
    ) -> None:
        self.spec, self.attention, self.widths = layer, layer.attention, Widths.of(layout)
        self.experts = layer.ffn if isinstance(layer.ffn, RoutedFfn) else None
        self.inward = layer.ffn.projections_in
        self.seats = seats_of(layer.attention, self.widths)
        self.ranks = [Rank(precision) for _ in self.seats]
        self.weights = [hold_attention(layer.attention, attention, seat) for seat in self.seats]
        if isinstance(layer.attention, CompressedAttention):
            self.places = places(layer.attention, attention)
        self._hold_nothing_yet()
        self.groups = self._token_groups()
        self.grid = [rank for group in self.groups for rank in group]
        self._hold_ffn(ffn)

    def _hold_nothing_yet(self) -> None:
        """Empty caches, index caches and states of every rank."""
        a, batch = self.attention, self.widths.batch
        self.tokens = 0
        self.whole = isinstance(a, WindowAttention | LinearAttention)
        if isinstance(a, LinearAttention):
            self.states = [LinearState(a, batch, seat) for seat in self.seats]
            return
        self.cache = [KvShard(batch, len(seat.kv_heads), a.cache_width) for seat in self.seats]
        self.entries = [KvShard(batch, 1, a.cache_width) for _ in self.seats]
        self.indexer: Indexer | None = getattr(a, "indexer", None)
        self.picks_itself = self.indexer is not None and not getattr(a, "picks_shared", None)
        self.chosen: dict[int, Positions] = {}
        if self.indexer:
            self.index = [KvShard(batch, 1, self.indexer.width) for _ in self.seats]
        if isinstance(a, CompressedAttention):
            wide = a.series * a.compressed_width
            self.opened: list[Array] = [np.zeros((batch, 0, 2 * wide)) for _ in self.seats]

    def _token_groups(self) -> list[list[int]]:
        """Ranks that keep each attention group's tokens after the exchange."""
        return [
            [r for r, seat in enumerate(self.seats) if seat.group == group and seat.shard < self.widths.keepers]
            for group in range(self.widths.dp)
        ]

    # Set-up of the FFN: shards by rank

    def _hold_ffn(self, ffn: Weights) -> None:
        self.ffn: dict[int, Weights] = {}
        self.local_experts: dict[int, range] = {}
        if self.experts is None:
            for pool in self.pools():
                self._shard_ffn(pool, tensors_in(ffn), ffn["down"])
            return
        self.router = ffn["router"]
        self.latent = {name: ffn[f"latent_{name}"] for name in ("down", "up") if self.experts.latent_size}
        for group in self.groups:
            self._shard_ffn(group, tensors_in(ffn, "shared_"), ffn["shared_down"])
        self._shard_experts(ffn)

    def _shard_ffn(self, members: list[int], inward: list[Array], down: Array) -> None:
        for rank, columns in zip(members, deal(down.shape[0], len(members)), strict=True):
            self.ffn[rank] = hold_ffn(inward, down, columns)

    def _shard_experts(self, ffn: Weights) -> None:
        """tpf neighbours of the grid share a group of experts, each with a slice of every expert's width."""
        x, moe = self.widths, self.experts
        assert moe is not None
        widths, shares = deal(moe.intermediate_size, x.tpf), deal(moe.routed, x.ep)
        self.expert_weights: dict[tuple[int, int], Weights] = {}
        for place, rank in enumerate(self.grid):
            self.local_experts[rank] = shares[place // x.tpf]
            for e in self.local_experts[rank]:
                inward = [tensor[e] for tensor in tensors_in(ffn)]
                self.expert_weights[rank, e] = hold_ffn(inward, ffn["down"][e], widths[place % x.tpf])

    def pools(self) -> list[list[int]]:
        """Ranks that share a dense FFN: whole token groups, equally many, as wide as tpf or one group at least."""
        spanned = max(self.widths.tpf // len(self.groups[0]), 1)
        pooled = gcd(self.widths.dp, spanned)
        starts = range(0, self.widths.dp, pooled)
        return [[rank for group in self.groups[at : at + pooled] for rank in group] for at in starts]

    def held(self, r: int) -> dict[str, int]:
        """Values of the weights that a rank holds, whether a step reads them or not, by the op that they are for."""
        found = {MULTIPLIED_BY[name]: w.size for name, w in self.weights[r].items() if name in MULTIPLIED_BY}
        if r in self.ffn:
            name = "dense" if self.experts is None else "shared"
            found |= {f"{name}_{tensor}": values.size for tensor, values in self.ffn[r].items()}
        if r in self.local_experts:
            mine = [self.expert_weights[r, e] for e in self.local_experts[r]]
            found |= {f"routed_{tensor}": sum(w[tensor].size for w in mine) for tensor in ("up", "down")}
            found["router"] = self.router.size
            found |= {f"expert_latent_{name}": w.size for name, w in self.latent.items()}
        return found

    # One step

    def fill(self, cache: Array) -> None:
        """Appends earlier tokens [dp·B, tokens, K, cached values], as earlier steps would have; nothing is counted."""
        positions = self._next_positions(cache.shape[1])
        for r, seat in enumerate(self.seats):
            mine = self._turns(positions) == seat.holds
            self.cache[r].append(self._own(seat, cache)[:, mine][:, :, list(seat.kv_heads)], positions[mine])
        self.tokens += len(positions)

    def remember(self, hidden: Array) -> None:
        """Earlier tokens [dp·B, tokens, H], as earlier steps would have left them; nothing is counted."""
        if not hidden.shape[1]:
            return
        rows = {r: rms_norm(self._own(seat, hidden).reshape(-1, hidden.shape[2])) for r, seat in enumerate(self.seats)}
        positions = self._next_positions(hidden.shape[1])
        if isinstance(self.attention, LinearAttention):
            self._run_linear(rows)
        else:
            self._project_and_append(rows, positions)
        for rank in self.ranks:
            rank.counts.clear()

    def step(self, residual: Array, delta: Array) -> list[Array]:
        """New tokens of every request: residual + delta [dp·B, n, H] in, every rank's new hidden state [B, n, H] out.

        `delta` is what the layer before left in its all-reduce, which the first norm adds to the residual.
        """
        hidden = residual.shape[2]
        residuals, deltas = (
            {r: self._own(seat, given).reshape(-1, hidden) for r, seat in enumerate(self.seats)}
            for given in (residual, delta)
        )
        residuals, deltas = self.attend(residuals, deltas)
        return [rows.reshape(self.widths.batch, -1, hidden) for rows in self.feed_forward(residuals, deltas)]

    def roll_back(self, new: int, accepted: int) -> None:
        """Takes back what the last step's `new` tokens left, but for the first `accepted`: the others are rejected."""
        a, self.tokens = self.attention, self.tokens - new + accepted
        if isinstance(a, LinearAttention):
            for state in self.states:
                state.roll_back_to(accepted)
            return
        compressed = isinstance(a, CompressedAttention)
        closed = self.tokens // (getattr(a, "ratio", None) or 1)  # compressed vectors, and index keys made of these
        for r in range(len(self.seats)):
            self.cache[r].roll_back_to(self.tokens)
            self.entries[r].roll_back_to(closed)
            if self.indexer:
                self.index[r].roll_back_to(closed if compressed else self.tokens)
            if compressed:
                self.opened[r] = self.opened[r][:, : self.tokens]

    def _own(self, seat: Seat, values: Array) -> Array:
        """What belongs to the requests of a rank's own attention group."""
        return values[self.widths.batch * seat.group : self.widths.batch * (seat.group + 1)]

    def _next_positions(self, new: int) -> Positions:
        """Places of the next tokens in their request."""
        return self.tokens + np.arange(new)

    def _turns(self, positions: Positions) -> Positions:
        """The KV shard that the token at each position goes to."""
        return positions // BLOCK_TOKENS % (1 if self.whole else self.widths.kvp)

    def _norm(self, op: str, residuals: Held, deltas: Held) -> tuple[Held, Held]:
        """residual + delta, and its norm: two tensors read and two written."""
        sums = {r: residuals[r] + delta for r, delta in deltas.items()}
        normed = {r: rms_norm(total) for r, total in sums.items()}
        for r in sums:
            self.ranks[r].moves(op, residuals[r], deltas[r], sums[r], normed[r])
        return sums, normed

    def _all_reduce(self, op: str, members: list[int], parts: Held) -> Held:
        """The sum over some ranks, on each of them."""
        sums = ring_all_reduce(op, [self.ranks[r] for r in members], [parts[r] for r in members])
        return dict(zip(members, sums, strict=True))

    # Attention

    def attend(self, residuals: Held, deltas: Held) -> tuple[Held, Held]:
        """Attention of every group; the residual, and what is to be added to it, on the ranks that keep the tokens."""
        residuals, normed = self._norm("attention_norm", residuals, deltas)
        kept = self._heads_kept(normed)
        projected = {r: self._project_output(r, out, normed[r]) for r, out in kept.items()}
        sums: Held = {}
        for group in self.groups:
            sums |= self._all_reduce("attention_all_reduce", group, projected)
        return {r: residuals[r] for r in self.grid}, sums

    def _heads_kept(self, normed: Held) -> Held:
        """[rows, kept heads, value width] of every rank that keeps tokens, before the output projection."""
        if isinstance(self.attention, LinearAttention):
            return self._run_linear(normed)
        positions = self._next_positions(len(normed[0]) // self.widths.batch)
        queries, latents = self._project_and_append(normed, positions)
        picks = self._picks(normed, latents, positions)
        chunks = 1 if self.whole else self.widths.chunks
        pieces = [self._attend_piece(queries, picks, some) for some in deal(self.widths.batch, chunks)]
        kept = {r: np.concatenate([piece[r] for piece in pieces]) for r in self.grid}
        if isinstance(self.attention, CompressedAttention):
            by_token = {r: out.reshape(self.widths.batch, len(positions), *out.shape[1:]) for r, out in kept.items()}
            kept = {r: rotate(out, -positions).reshape(kept[r].shape) for r, out in by_token.items()}
        return kept

    def _run_linear(self, normed: Held) -> Held:
        a, batch = self.attention, self.widths.batch
        assert isinstance(a, LinearAttention)
        self.tokens += len(normed[0]) // batch
        rows = {r: normed[r].reshape(batch, -1, normed[r].shape[-1]) for r in self.grid}
        return {r: run_linear(a, self.ranks[r], self.states[r], self.weights[r], x) for r, x in rows.items()}

    @property
    def attending(self) -> range | list[int]:
        """Ranks that have a part in attention: all, or those that keep tokens where there are no KV shards."""
        return self.grid if self.whole else range(len(self.seats))

    def _project_and_append(self, normed: Held, positions: Positions) -> tuple[Held, Held]:
        """Rotated queries [B, n, q, score width] of every rank, and the latents [rows, …] that index queries come from.

        Each new token joins the KV shard whose turn it is; its index key joins a shard of the index cache.
        """
        part, queries, latents = parts_of(self.attention).rotated, {}, {}
        for r in self.attending:
            seat, rank = self.seats[r], self.ranks[r]
            mine = self._turns(positions) == seat.holds
            query, entries, latents[r] = project(self.attention, rank, seat, self.weights[r], normed[r])
            query, entries = (
                rows.reshape(self.widths.batch, len(positions), *rows.shape[1:]) for rows in (query, entries)
            )
            queries[r] = rotated(query, part, positions)
            kept = rotated(entries[:, mine], part, positions[mine])
            self.cache[r].append(kept, positions[mine])
            self._forget(r, int(positions[0]))
            rank.moves("rope_and_append", query, queries[r], kept)
            rank.moves_kv("rope_and_append", kept)
            if isinstance(self.attention, CompressedAttention) and self.attention.ratio:
                self._compress(r, normed[r], positions)
        self.tokens += len(positions)
        if self.picks_itself and not isinstance(self.attention, CompressedAttention):
            self._append_index(normed, positions)
        return queries if self.whole else {r: self._gathered(r, queries) for r in queries}, latents

    def _gathered(self, r: int, queries: Held) -> Array:
        """All queries [B, n, q, score width] of a rank, of which its peers in its column projected their shares."""
        columns, shards = self.widths.tpa, self.widths.q_shards
        first = r - self.seats[r].shard % shards * columns
        peers = range(first, first + shards * columns, columns)
        return np.concatenate([send("query_gather", self.ranks[p], self.ranks[r], queries[p]) for p in peers], axis=2)

    def _forget(self, r: int, first: int) -> None:
        """Of a window, what no new token sees, the first of which is at position `first`."""
        a = self.attention
        if isinstance(a, WindowAttention | CompressedAttention):
            chunk = isinstance(a, WindowAttention) and a.chunked
            start = first // a.window_tokens * a.window_tokens if chunk else first - a.window_tokens + 1
            self.cache[r].forget_before(start)

    # Compressed vectors

    def _compress(self, r: int, normed: Array, positions: Positions) -> None:
        """The new tokens into a rank's open vectors; each that is closed joins the shards whose turn it is."""
        a, rank = self.attention, self.ranks[r]
        assert isinstance(a, CompressedAttention)
        assert a.ratio is not None
        made = rank.linear("compressor_projection", normed, self.weights[r]["into"], "attention_weights")
        made = made.reshape(self.widths.batch, len(positions), -1)
        rank.moves("compress", made)
        rank.moves_kv("compress", made, 4)
        self.opened[r] = np.concatenate([self.opened[r], made], axis=1)
        kinds, gates = np.split(self.opened[r], 2, axis=-1)
        for number in range(int(positions[0]) // a.ratio, int(positions[-1] + 1) // a.ratio):
            drawn = self._sources(kinds, number, 0.0), self._sources(gates, number, -np.inf)
            for part in drawn:
                rank.moves_kv("compress", part, 4)
            entry = compressed_entry(a, *drawn, self.places)[:, None, None]
            vector, key = entry[..., : a.head_size], entry[..., a.head_size :]
            here = np.array([number])
            if number // BLOCK_TOKENS % self.widths.kvp == self.seats[r].holds:
                vector = rotate(vector, a.ratio * here)
                self.entries[r].append(vector, here)
                rank.moves_kv("compress", vector)
            if a.indexer and number // BLOCK_TOKENS % self.widths.index_kvp == self._index_shard(r):
                self.index[r].append(key, here)
                rank.moves_kv("compress", key[..., :1], a.indexer.key_bytes)

    def _sources(self, values: Array, entry: int, missing: float) -> Array:
        """What entry number `entry` draws on: its own tokens, behind those before them where there are two series."""
        a = self.attention
        assert isinstance(a, CompressedAttention)
        assert a.ratio is not None
        width, end = a.compressed_width, (entry + 1) * a.ratio
        own = values[:, end - a.ratio : end, -width:]
        if a.series == 1:
            return own
        if entry == 0:
            return np.concatenate([np.full(own.shape, missing), own], axis=1)
        return np.concatenate([values[:, end - 2 * a.ratio : end - a.ratio, :width], own], axis=1)

    # The indexer

    def _index_shard(self, r: int) -> int:
        """The shard of the index cache that a rank holds."""
        return self.seats[r].shard % self.widths.index_kvp

    def _append_index(self, normed: Held, positions: Positions) -> None:
        """The new tokens' index keys into the shards of the index cache."""
        i, self.projected = self.indexer, {}
        assert i is not None
        for r, x in normed.items():
            rank = self.ranks[r]
            made = rank.linear("index_projection", x, self.weights[r]["index"], "attention_weights")
            self.projected[r] = made.reshape(self.widths.batch, len(positions), -1)
            at = self._key_at(r)
            mine = positions // unit_of(i) % self.widths.index_kvp == self._index_shard(r)
            keys = self.projected[r][:, mine, None, at : at + i.width]
            self.index[r].append(keys, positions[mine])
            rank.moves("index_append", keys)
            rank.moves_kv("index_append", keys[..., :1], i.key_bytes)

    def _key_at(self, r: int) -> int:
        """Where the index key stands in what the index projection makes: behind the queries that it makes, if any."""
        i = self.indexer
        assert i is not None
        return len(self.seats[r].kv_heads) * i.width if isinstance(self.attention, BlockSparseAttention) else 0

    def _index_queries(self, r: int, x: Array, latent: Array) -> tuple[Array, Array | None]:
        """Index queries [B, n, heads, width] of a rank, and their weights [B, n, heads] where scores are summed."""
        a, i, rank, batch = self.attention, self.indexer, self.ranks[r], self.widths.batch
        assert i is not None
        if isinstance(a, BlockSparseAttention):
            queries = self.projected[r][..., : self._key_at(r)].reshape(batch, -1, len(self.seats[r].kv_heads), i.width)
            weights = None
        else:
            made = rank.linear("index_query_up", latent, self.weights[r]["index_q"], "attention_weights")
            queries = made.reshape(batch, -1, i.heads, i.width)
            if isinstance(a, CompressedAttention):
                rows = rank.linear("index_projection", x, self.weights[r]["index"], "attention_weights")
                weights = rows.reshape(batch, -1, i.heads)
            else:
                weights = self.projected[r][..., i.width :]
        rank.moves("index_append", queries, queries)
        return queries, weights

    def _chosen(self, normed: Held, latents: Held, positions: Positions) -> dict[int, Positions]:
        """What each rank's indexer picked of the whole context: numbers [B, n, choices, picks], -1 for none."""
        a, x = self.attention, self.widths
        ratio = (a.ratio or 1) if isinstance(a, CompressedAttention) else 1
        closed, offers = (positions + 1) // ratio, {}
        for r in normed:
            queries, weights = self._index_queries(r, normed[r], latents[r])
            offers[r] = score_shard(a, self.ranks[r], queries, weights, self.index[r], closed, positions)
        found = {}
        for r in normed:
            first = r - (self.seats[r].shard % x.index_kvp) * x.tpa
            peers = range(first, first + x.index_kvp * x.tpa, x.tpa)
            most = max(offers[p].scores.shape[-1] for p in peers)
            got = []
            for p in (r, *(p for p in peers if p != r)):
                scores, numbers = (
                    send("index_exchange", self.ranks[p], self.ranks[r], padded(values, most, gap), "lse")
                    for values, gap in ((offers[p].scores, -np.inf), (offers[p].numbers, -1))
                )
                got.append(Offers(scores=scores, numbers=numbers))
            found[r] = merged(a, self.ranks[r], got, self.tokens // ratio)
        return found

    # The core

    def _picks(self, normed: Held, latents: Held, positions: Positions) -> dict[int, Picks]:
        """Places in each rank's cache that each new token sees; of a compressed layer, its window's, then vectors'.

        What an indexer chose stays in `chosen`: a layer that shares picks is given those of the layer that made them.
        """
        a, batch = self.attention, self.widths.batch
        if self.picks_itself:
            self.chosen = self._chosen(normed, latents, positions)
        chosen = self.chosen
        found: dict[int, Picks] = {}
        for r in self.attending:
            cache, heads = self.cache[r], len(self.seats[r].kv_heads)
            ends = np.searchsorted(cache.positions, positions, side="right")
            if isinstance(a, WindowAttention | CompressedAttention):
                firsts = positions - a.window_tokens + 1
                if isinstance(a, WindowAttention) and a.chunked:
                    firsts = positions // a.window_tokens * a.window_tokens
                starts = np.searchsorted(cache.positions, firsts)
                near = [np.arange(start, end) for start, end in zip(starts, ends, strict=True)]
                found[r] = [[[mine] * heads for mine in near]] * batch
                if isinstance(a, CompressedAttention):
                    found[r] = self._with_compressed(r, near, positions, chosen.get(r))
            elif self.indexer:
                found[r] = [
                    [
                        [self._local(cache.positions[:end], picked) for picked in each]
                        for each, end in zip(row, ends, strict=True)
                    ]
                    for row in chosen[r]
                ]
                if not isinstance(a, BlockSparseAttention):
                    found[r] = [[list(each) * heads for each in row] for row in found[r]]
            else:
                found[r] = first_ones(batch, heads, ends)
        return found

    def _local(self, held: Positions, picked: Positions) -> Positions:
        """Places, among the positions that a rank holds, of those in the picked blocks."""
        assert self.indexer is not None
        return np.flatnonzero(np.isin(held // self.indexer.block_tokens, picked))

    def _with_compressed(
        self, r: int, near: list[Positions], positions: Positions, chosen: Positions | None
    ) -> list[list[list[Positions]]]:
        """The window's places, and behind them those of compressed vectors: of all closed ones, or of those chosen."""
        a, entries = self.attention, self.entries[r].positions
        assert isinstance(a, CompressedAttention)
        closed = (positions + 1) // a.ratio if a.ratio else 0 * positions
        found: list[list[list[Positions]]] = []
        for row in range(self.widths.batch):
            far = [np.flatnonzero(entries < end) for end in closed]
            if chosen is not None:
                far = [places[np.isin(entries[places], chosen[row, at, 0])] for at, places in enumerate(far)]
            found.append(
                [[np.concatenate([mine, self.cache[r].tokens + more])] for mine, more in zip(near, far, strict=True)]
            )
        return found

    def _attend_piece(self, queries: Held, picks: dict[int, Picks], some: range) -> Held:
        """One HOP-B piece of the requests: local attention on every rank, the exchange, and the combined heads kept.

        [rows of the piece, kept heads, value width] of every rank that keeps tokens.
        """
        piece, scale = slice(some.start, some.stop), score_scale(self.attention)
        partial = {}
        for r, query in queries.items():
            values = (
                np.concatenate([self.cache[r].values, self.entries[r].values], axis=1)[piece]
                if isinstance(self.attention, CompressedAttention)
                else self.cache[r].values[piece]
            )
            each = partial_attention(
                self.ranks[r], query[piece], values, picks[r][piece], parts_of(self.attention), scale
            )
            partial[r] = tuple(values.reshape(-1, *values.shape[2:]) for values in each)
        if self.whole or self.widths.kvp == 1:
            return {r: self._beside_sinks(r, out, lse) for r, (out, lse) in partial.items()}
        for r, (_, lse) in partial.items():
            self.ranks[r].moves("attention_core", lse, tensor="lse")
        return {r: self._exchange(r, partial) for r in self.grid}

    def _beside_sinks(self, r: int, out: Array, lse: Array) -> Array:
        """Whole heads [rows, kept, width] after each one's sink has taken its share of the softmax."""
        if "sinks" not in self.weights[r]:
            return out
        return out * sigmoid(lse - self.weights[r]["sinks"])[..., None]

    def _exchange(self, target: int, partial: dict[int, tuple[Array, ...]]) -> Array:
        """The heads that a rank keeps, from every shard of its column: one row of the all-to-all, and the exact sum."""
        seat, rank, columns = self.seats[target], self.ranks[target], self.widths.tpa
        first = target - seat.shard * columns
        mine = list(seat.kept)
        sources = [(self.ranks[r], *partial[r]) for r in range(first, first + columns * self.widths.kvp, columns)]
        outs = np.stack([send("exchange", source, rank, out[:, mine]) for source, out, _ in sources])
        lses = np.stack([send("exchange", source, rank, lse[:, mine], "lse") for source, _, lse in sources])
        combined, summed = combine(outs, lses)
        rank.moves("combine_partials", outs, tensor="wire")
        rank.moves("combine_partials", lses, tensor="lse")
        rank.moves("combine_partials", combined)
        return self._beside_sinks(target, combined, summed)

    def _project_output(self, r: int, out: Array, x: Array) -> Array:
        """The kept heads [rows, kept, value width] through their part of the output projection: a partial sum."""
        rank, w, seat = self.ranks[r], self.weights[r], self.seats[r]
        if isinstance(self.attention, CompressedAttention):
            return self._project_groups(r, out)
        if "v_up" in w:
            out = each_head("value_up_projection", rank, out, w["v_up"])
        if "gate" in w:
            gate = rank.linear("gate_projection", x, w["gate"], "attention_weights").reshape(out.shape)
            opened = out * sigmoid(gate)
            rank.moves("output_gate", out, gate, opened)
            out = opened
        return rank.linear(
            "output_projection", out.reshape(len(out), len(seat.kept) * out.shape[-1]), w["o"], "output_weights"
        )

    def _project_groups(self, r: int, out: Array) -> Array:
        """The kept heads to their groups' output latents, those of a group summed, and on: a partial sum [rows, H]."""
        a, rank, w, seat = self.attention, self.ranks[r], self.weights[r], self.seats[r]
        assert isinstance(a, CompressedAttention)
        group_of = [seat.q_heads[i] * a.output_groups // a.q_heads for i in seat.kept]
        latents = []
        for group in sorted(set(group_of)):
            heads = [i for i, of in enumerate(group_of) if of == group]
            inner, down = out[:, heads].reshape(len(out), -1), w["o_down"][heads].reshape(-1, a.output_lora_rank)
            latents.append(rank.linear("output_down_projection", inner, down, "attention_weights"))
        joined = np.concatenate(latents, axis=1) if latents else np.zeros((len(out), 0))
        return rank.linear("output_projection", joined, w["o_up"], "output_weights")

    # Feed-forward

    def feed_forward(self, residuals: Held, deltas: Held) -> list[Array]:
        """Norm, FFN and its sum; where only one KV shard ran it, the others are told. Every rank's hidden state."""
        name = "dense" if self.experts is None else "moe"
        residuals, normed = self._norm(f"{name}_norm", residuals, deltas)
        partial = self._dense(normed) if self.experts is None else self._moe(normed, self.experts)
        hidden: Held = {}
        for group in self.groups:
            sums = self._all_reduce(f"{name}_all_reduce", group, partial)
            hidden |= {r: residuals[r] + sums[r] for r in group}
        for r in range(len(self.seats)):
            if r not in hidden:  # a chain along the column: each shard passes the rows on to the next
                before = r - self.widths.tpa
                hidden[r] = send(f"{name}_spread", self.ranks[before], self.ranks[r], hidden[before])
        return [hidden[r] for r in range(len(self.seats))]

    def _dense(self, normed: Held) -> Held:
        """Partial sums [rows, H] of each rank's own tokens, from the rows of all token groups in its pool."""
        partial: Held = {}
        for pool in self.pools():
            inner: dict[int, list[Array]] = {}
            for r in pool:
                rows = [send("dense_gather", self.ranks[p], self.ranks[r], normed[p]) for p in self._peers(r, pool)]
                inner[r] = np.split(
                    run_ffn(self.ranks[r], "dense", np.concatenate(rows), self.ffn[r], self.inward), len(rows)
                )
            for r in pool:
                peers = self._peers(r, pool)
                mine = peers.index(r)
                sums = [send("dense_scatter", self.ranks[p], self.ranks[r], inner[p][mine]) for p in peers]
                partial[r] = np.sum(sums, axis=0)
        return partial

    def _peers(self, r: int, pool: Sequence[int]) -> list[int]:
        """Ranks of a pool that stand where `r` stands in its own token group, one a group, itself included."""
        width = len(self.groups[0])
        return [pool[at] for at in range(pool.index(r) % width, len(pool), width)]

    def _moe(self, normed: Held, moe: RoutedFfn) -> Held:
        """Partial sums [rows, H] of each rank's own tokens: its experts', those of ranks it asked, and shared ones.

        A rank asks its peers of other groups for the rows that picked an expert here, and answers with a partial sum.
        """
        routes = {r: self._route(self.ranks[r], x, moe) for r, x in normed.items()}
        seen = {r: self._latent(r, "down", x) for r, x in normed.items()}
        sums_of = {r: np.zeros_like(x) for r, x in seen.items()}
        for r in self.grid:
            rank, peers = self.ranks[r], self._peers(r, self.grid)
            picked = {p: np.flatnonzero(np.isin(routes[p][0], self.local_experts[r]).any(axis=1)) for p in peers}
            rows = [send("dispatch", self.ranks[p], rank, seen[p][picked[p]], "dispatch") for p in peers]
            chosen, gates = (np.concatenate([routes[p][i][picked[p]] for p in peers]) for i in (0, 1))
            sums = self._run_experts(r, np.concatenate(rows), chosen, gates)
            for p, answer in zip(peers, np.split(sums, np.cumsum([len(part) for part in rows])[:-1]), strict=True):
                sums_of[p][picked[p]] += send("combine", rank, self.ranks[p], answer)
        partial = {r: self._latent(r, "up", sums) for r, sums in sums_of.items()}
        for r in self.grid if moe.shared else ():
            partial[r] = partial[r] + run_ffn(self.ranks[r], "shared", normed[r], self.ffn[r], self.inward)
        return partial

    def _latent(self, r: int, way: str, x: Array) -> Array:
        """x into the width that routed experts see, or back out of it; as it is where they see the residual stream."""
        return self.ranks[r].linear(f"expert_latent_{way}", x, self.latent[way]) if self.latent else x

    def _route(self, rank: Rank, x: Array, moe: RoutedFfn) -> tuple[npt.NDArray[np.int64], Array]:
        """The experts of each of the group's own tokens and their gates, both [rows, top_k]; every rank finds them."""
        scores = rank.linear("router", x, self.router, "router_weights")
        chosen, gates = choose_experts(scores, moe.top_k)
        rank.moves("top_k", scores, chosen, gates)
        return chosen, gates

    def _run_experts(self, r: int, x: Array, chosen: npt.NDArray[np.int64], gates: Array) -> Array:
        """x [rows, H] through those of its chosen experts that are here, weighted by their gates: [rows, H]."""
        sums = np.zeros_like(x)
        for e in self.local_experts[r]:
            rows, slot = np.nonzero(chosen == e)
            if rows.size:
                out = run_ffn(self.ranks[r], "routed", x[rows], self.expert_weights[r, e], self.inward)
                sums[rows] += gates[rows, slot][:, None] * out
        return sums
