"""Attention of every kind but plain GQA and MLA on one device in float64, from the first token on: no cache, no shards.

The truth for the sharded layers. Shapes as in `plain_layer`, but x [B, S, H] are the normed inputs of a whole request,
and what comes back are the outputs of all its tokens, [B, S, H]. Which keys a token sees is a mask, [B, heads, S, S].
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from witness.counted import Array
from witness.plain_layer import LayerSpec, Weights, plain_ffn, rms_norm, rotate, score_scale, softmax

from helix_sim.specs.attention import (
    AttentionKind,
    BlockSparseAttention,
    CompressedAttention,
    HeadAttention,
    Indexer,
    LatentAttention,
    LinearAttention,
    SparseAttention,
    WindowAttention,
)

Mask = npt.NDArray[np.bool_]

FIXED_DECAY = 0.9
"""Decay of a linear layer that computes none, one for each token."""


# --- Weights ---------------------------------------------------------------------------------------------------------


def kind_shapes(layer: LayerSpec) -> dict[str, tuple[int, ...]]:
    """Tensors of the attention block of any kind; the last axis but one is what a product sums over."""
    a, h = layer.attention, layer.hidden_size
    if isinstance(a, LinearAttention):
        k, v = (a.key_heads, a.key_width), (a.value_heads, a.value_width)
        found = {"q": (k[0], h, k[1]), "k": (k[0], h, k[1]), "v": (v[0], h, v[1]), "o": (v[0], v[1], h)}
        found |= {"z": (v[0], h, v[1])} if a.output_gate else {}
        found |= {"gates": (v[0], h, a.head_gates)}
        found |= {"decay_down": (h, a.decay_rank), "decay_up": (k[0], a.decay_rank, k[1])} if a.decay_rank else {}
        return found | {f"conv_{name}": (*sizes, a.conv_tokens) for name, sizes in (("q", k), ("k", k), ("v", v))}
    found = _attention_shapes(a, h)
    if getattr(a, "sinks", None):
        found["sinks"] = (1, a.q_heads)
    if getattr(a, "output_gate", None):
        found["gate"] = (a.q_heads, h, a.output_width)
    return found | _indexer_shapes(a, h)


def _attention_shapes(a: AttentionKind, h: int) -> dict[str, tuple[int, ...]]:
    if isinstance(a, HeadAttention):
        q, k, v = a.q_heads, a.kv_heads, a.head_size
        return {"q": (q, h, v), "k": (k, h, v), "v": (k, h, v), "o": (q, v, h)}
    if isinstance(a, CompressedAttention):
        wide = a.series * a.compressed_width
        return {
            "q_down": (h, a.q_lora_rank),
            "kv_down": (h, a.head_size),
            "q_up": (a.q_heads, a.q_lora_rank, a.head_size),
            "compressed": (h, wide),
            "weighed": (h, wide),
            "place": (a.ratio or 1, wide),
            "o_down": (a.q_heads, a.head_size, a.output_lora_rank),
            "o_up": (a.output_groups, a.output_lora_rank, h),
        }
    assert isinstance(a, LatentAttention)
    return {
        "q_down": (h, a.q_lora_rank),
        "kv_down": (h, a.kv_lora_rank + a.rope_width),
        "q_up": (a.q_heads, a.q_lora_rank, a.nope_width + a.rope_width),
        "k_up": (a.q_heads, a.nope_width, a.kv_lora_rank),
        "v_up": (a.q_heads, a.kv_lora_rank, a.output_width),
        "o": (a.q_heads, a.output_width, h),
    }


def _indexer_shapes(a: AttentionKind, h: int) -> dict[str, tuple[int, ...]]:
    i: Indexer | None = getattr(a, "indexer", None)
    if i is None or getattr(a, "picks_shared", None):
        return {}
    if isinstance(a, BlockSparseAttention):
        return {"index_q": (i.heads, h, i.width), "index_k": (h, i.width)}
    found: dict[str, tuple[int, ...]] = {"index_q": (i.heads, a.q_lora_rank, i.width), "index_w": (h, i.heads)}  # type: ignore[union-attr]
    return found | ({"index_k": (h, i.width)} if isinstance(a, SparseAttention) else {})


# --- Which keys a token sees -----------------------------------------------------------------------------------------


def best(scores: Array, seen: Mask, top_k: int) -> Mask:
    """The top_k best of the entries that each row sees, of equals the earliest: a mask like `scores` [..., entries]."""
    order = np.argsort(np.where(seen, -scores, np.inf), axis=-1, kind="stable")
    found = np.zeros(scores.shape, dtype=bool)
    np.put_along_axis(found, order[..., :top_k], True, axis=-1)
    return found & seen


def summed_scores(queries: Array, keys: Array, weights: Array) -> Array:
    """Index scores [..., n, entries]: over heads, the sum of weight times what of query·key is positive.

    queries [..., n, heads, width], keys [..., entries, width], weights [..., n, heads].
    """
    products = np.maximum(np.einsum("...nhw,...sw->...nhs", queries, keys), 0.0)
    return np.einsum("...nhs,...nh->...ns", products, weights)


def _causal(tokens: int) -> Mask:
    place = np.arange(tokens)
    return place[None, :] <= place[:, None]


def seen_keys(a: AttentionKind, w: Weights, x: Array) -> Mask:
    """Keys that each token sees, [B, heads or 1, S, S]."""
    tokens = x.shape[1]
    place, causal = np.arange(tokens), _causal(tokens)
    if isinstance(a, WindowAttention):
        near = place[:, None] // a.window_tokens == place // a.window_tokens
        near = near if a.chunked else place[:, None] - place < a.window_tokens
        return (causal & near)[None, None]
    if isinstance(a, SparseAttention):
        queries = np.einsum("bsr,irw->bsiw", rms_norm(x @ w["q_down"]), w["index_q"])
        scores = summed_scores(queries, x @ w["index_k"], x @ w["index_w"])
        return best(scores, causal, a.indexer.top_k)[:, None]
    if isinstance(a, BlockSparseAttention):
        return _seen_blocks(a, w, x, causal)
    return causal[None, None]


def _seen_blocks(a: BlockSparseAttention, w: Weights, x: Array, causal: Mask) -> Mask:
    """Each index head picks blocks by their best key, its own block first; the query heads of its KV head see those."""
    block, tokens = a.indexer.block_tokens, x.shape[1]
    products = np.einsum("bsh,ihw,btw->bist", x, w["index_q"], x @ w["index_k"], optimize=True)
    products = np.where(causal, products, -np.inf)
    starts = np.arange(0, tokens, block)
    scores = np.maximum.reduceat(products, starts, axis=-1)
    own = np.arange(tokens)[:, None] // block == np.arange(len(starts))
    picked = best(np.where(own, np.inf, scores), np.isfinite(scores), a.indexer.top_k)
    return causal & picked.repeat(block, axis=-1)[..., :tokens].repeat(a.q_heads // a.kv_heads, axis=1)


# --- Attention -------------------------------------------------------------------------------------------------------


def _attend(scores: Array, values: Array, seen: Mask, sinks: Array | None) -> Array:
    """Softmax over keys seen, and each head's sink: scores [B, Q, S, T], values [B, T, Q, width] → [B, S, Q, width]."""
    masked = np.where(seen, scores, -np.inf)
    if sinks is not None:
        column = np.broadcast_to(sinks[0][None, :, None, None], (*masked.shape[:3], 1))
        masked = np.concatenate([masked, column], axis=-1)
    shares = softmax(masked)[..., : scores.shape[-1]]
    return np.einsum("bqst,btqd->bsqd", shares, values)


def plain_kind(a: AttentionKind, w: Weights, x: Array, seen: Mask | None = None) -> Array:
    """The attention block of any kind on the normed inputs x [B, S, H] of whole requests: [B, S, H].

    seen: the keys that each token sees, where an earlier layer has picked them.
    """
    if isinstance(a, LinearAttention):
        return plain_linear(a, w, x)
    if isinstance(a, CompressedAttention):
        return plain_compressed(a, w, x)
    places = np.arange(x.shape[1])
    if isinstance(a, HeadAttention):
        share = a.q_heads // a.kv_heads
        query = rotate(np.einsum("bsh,qhd->bsqd", x, w["q"]), places)
        keys = rotate(np.einsum("bsh,khd->bskd", x, w["k"]), places).repeat(share, axis=2)
        values = np.einsum("bsh,khd->bskd", x, w["v"]).repeat(share, axis=2)
    else:
        assert isinstance(a, LatentAttention)
        down = (x @ w["kv_down"])[:, :, None]
        latents, turned = rms_norm(down[..., : a.kv_lora_rank]), rotate(down[..., a.kv_lora_rank :], places)
        query = np.einsum("bsr,qrd->bsqd", rms_norm(x @ w["q_down"]), w["q_up"])
        query = np.concatenate([query[..., : a.nope_width], rotate(query[..., a.nope_width :], places)], axis=-1)
        keys = np.einsum("bsr,qdr->bsqd", latents[:, :, 0], w["k_up"])
        keys = np.concatenate([keys, np.repeat(turned, a.q_heads, axis=2)], axis=-1)
        values = np.einsum("bsr,qrd->bsqd", latents[:, :, 0], w["v_up"])
    scores = np.einsum("bsqd,btqd->bqst", query, keys) * score_scale(a)
    out = _attend(scores, values, seen_keys(a, w, x) if seen is None else seen, w.get("sinks"))
    if "gate" in w:
        out = out / (1 + np.exp(-np.einsum("bsh,qhd->bsqd", x, w["gate"])))
    result: Array = np.einsum("bsqd,qdh->bsh", out, w["o"], optimize=True)
    return result


# --- Compressed ------------------------------------------------------------------------------------------------------


def compressed_entry(a: CompressedAttention, kinds: Array, gates: Array, place: Array) -> Array:
    """One compressed vector of [..., series·ratio tokens, compressed width] and its gates, normed; index key behind it.

    With two series it weighs what the tokens before last left for the next vector with what the last ones left for
    theirs; missing tokens have gates of minus infinity.
    """
    entry = np.sum(kinds * softmax((gates + place).swapaxes(-1, -2)).swapaxes(-1, -2), axis=-2)
    return np.concatenate([rms_norm(entry[..., : a.head_size]), rms_norm(entry[..., a.head_size :])], axis=-1)


def sources(a: CompressedAttention, values: Array, entry: int, missing: float) -> Array:
    """What entry number `entry` draws on, of values [..., S, series·width]: [..., series·ratio, width]."""
    assert a.ratio is not None
    width, start = a.compressed_width, entry * a.ratio
    own = values[..., start : start + a.ratio, -width:]
    if a.series == 1:
        return own
    before = values[..., max(start - a.ratio, 0) : start, :width]
    gap = np.full((*before.shape[:-2], a.ratio - before.shape[-2], width), missing)
    return np.concatenate([gap, before, own], axis=-2)


def places(a: CompressedAttention, w: Weights) -> Array:
    """Gates' biases of the tokens that an entry draws on, by their place in it: [series·ratio, width]."""
    width = a.compressed_width
    return w["place"] if a.series == 1 else np.concatenate([w["place"][:, :width], w["place"][:, -width:]])


def plain_compressed(a: CompressedAttention, w: Weights, x: Array) -> Array:
    """A window's vectors and compressed ones behind each other, key and value in one."""
    tokens, at = x.shape[1], np.arange(x.shape[1])
    latent = rms_norm(x @ w["q_down"])
    query = rotate(np.einsum("bsr,qrd->bsqd", latent, w["q_up"]), at)
    near = rotate(rms_norm(x @ w["kv_down"])[:, :, None], at)[:, :, 0]
    kinds, gates = x @ w["compressed"], x @ w["weighed"]
    count = tokens // a.ratio if a.ratio else 0
    made = [
        compressed_entry(a, sources(a, kinds, j, 0.0), sources(a, gates, j, -np.inf), places(a, w))
        for j in range(count)
    ]
    entries = np.stack(made, axis=1) if made else np.zeros((len(x), 0, a.head_size))
    ratio = a.ratio or 1
    far = rotate(entries[:, :, None, : a.head_size], ratio * np.arange(count))[:, :, 0]
    window = (_causal(tokens) & (at[:, None] - at < a.window_tokens))[None, None]
    closed = np.broadcast_to((np.arange(count) + 1) * ratio <= at[:, None] + 1, (len(x), tokens, count))
    if a.indexer:
        queries = np.einsum("bsr,irw->bsiw", latent, w["index_q"])
        scores = summed_scores(queries, entries[..., a.head_size :], x @ w["index_w"])
        closed = best(scores, closed, a.indexer.top_k)
    vectors = np.concatenate([near, far], axis=1)
    seen = np.concatenate([np.broadcast_to(window, (len(x), 1, tokens, tokens)), closed[:, None]], axis=-1)
    scores = np.einsum("bsqd,btd->bqst", query, vectors) * score_scale(a)
    out = _attend(scores, vectors[:, :, None].repeat(a.q_heads, axis=2), seen, w.get("sinks"))
    out = rotate(out, -at)
    groups = np.einsum("bsgqd,gqdr->bsgr", *_by_group(a, out, w["o_down"]), optimize=True)
    result: Array = np.einsum("bsgr,grh->bsh", groups, w["o_up"])
    return result


def _by_group(a: CompressedAttention, out: Array, down: Array) -> tuple[Array, Array]:
    """out [B, S, Q, width] and down [Q, width, rank] with heads by groups."""
    groups = (a.output_groups, a.q_heads // a.output_groups)
    return out.reshape(*out.shape[:2], *groups, -1), down.reshape(*groups, *down.shape[1:])


# --- Linear ----------------------------------------------------------------------------------------------------------


def sigmoid(x: Array) -> Array:
    """1 / (1 + e^-x)."""
    opened: Array = 1 / (1 + np.exp(-x))
    return opened


def convolved(x: Array, kernel: Array) -> Array:
    """SiLU of the causal convolution over tokens of x [B, S, heads, width] with kernel [heads, width, tokens]."""
    span = kernel.shape[-1]
    if span == 1:
        return x
    before = np.concatenate([np.zeros_like(x[:, : span - 1]), x], axis=1)[:, -(x.shape[1] + span - 1) :]
    if before.shape[1] < x.shape[1] + span - 1:
        lacking = x.shape[1] + span - 1 - before.shape[1]
        before = np.concatenate([np.zeros((len(x), lacking, *x.shape[2:])), before], axis=1)
    summed = sum(before[:, i : i + x.shape[1]] * kernel[..., i] for i in range(span))
    return summed * sigmoid(np.asarray(summed))


def gates_of(a: LinearAttention, numbers: Array, channels: Array | None) -> tuple[Array, Array]:
    """(decay [..., heads, key width or 1], strength [..., heads]) from what a token projects for them."""
    strength = sigmoid(numbers[..., -1]) if a.delta_rule and a.head_gates else np.ones(numbers.shape[:-1])
    left = a.head_gates - bool(a.delta_rule and a.head_gates)
    if channels is not None:
        return sigmoid(channels), strength
    decay = sigmoid(numbers[..., 0]) if left else np.full(numbers.shape[:-1], FIXED_DECAY)
    return decay[..., None], strength


def plain_linear(a: LinearAttention, w: Weights, x: Array) -> Array:
    """The recurrence, token by token, from an empty state."""
    share = a.value_heads // a.key_heads
    q, k, v = (convolved(np.einsum("bsh,nhd->bsnd", x, w[name]), w[f"conv_{name}"]) for name in ("q", "k", "v"))
    q, k = (each.repeat(share, axis=2) for each in (q, k))
    numbers = np.einsum("bsh,nhg->bsng", x, w["gates"])
    channels = None
    if a.decay_rank:
        channels = np.einsum("bsr,nrd->bsnd", x @ w["decay_down"], w["decay_up"]).repeat(share, axis=2)
    decay, strength = gates_of(a, numbers, channels)
    state = np.zeros((len(x), a.value_heads, a.key_width, a.value_width))
    outs = []
    for t in range(x.shape[1]):
        state = state * decay[:, t, ..., None]
        written = v[:, t]
        if a.delta_rule:
            written = written - np.einsum("bnk,bnkv->bnv", k[:, t], state) / a.key_width
        state = state + np.einsum("bnk,bnv,bn->bnkv", k[:, t], written, strength[:, t])
        outs.append(np.einsum("bnk,bnkv->bnv", q[:, t], state))
    out = rms_norm(np.stack(outs, axis=1))
    if a.output_gate:
        opened = np.einsum("bsh,nhd->bsnd", x, w["z"])
        out = out * opened * sigmoid(opened)
    result: Array = np.einsum("bsnd,ndh->bsh", out, w["o"], optimize=True)
    return result


# --- The layer -------------------------------------------------------------------------------------------------------


def plain_kind_layer(
    layer: LayerSpec, attention: Weights, ffn: Weights, hidden: Array, new: int, seen: Mask | None = None
) -> Array:
    """hidden [B, S, H] of whole requests through attention and FFN: the hidden states of the last `new` tokens.

    seen: the keys that each token sees, where an earlier layer has picked them.
    """
    attended = plain_kind(layer.attention, attention, rms_norm(hidden), seen)[:, -new:]
    after = hidden[:, -new:] + attended
    rows = rms_norm(after).reshape(-1, layer.hidden_size)
    return after + plain_ffn(layer.ffn, ffn, rows).reshape(after.shape)
