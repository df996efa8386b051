"""One decoder layer on one device in float64, written as the model is published: the truth for the sharded layer.

Shapes: B requests, q new tokens of each, H hidden, Q query heads, K KV heads, S cached tokens with the new ones, F FFN
width, E routed experts. MLA is computed in its expanded form here, with a key and a value for every head and token, so
that the absorbed form is checked too. Norms have unit gains.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
from witness.counted import Array

from helix_sim.specs.attention import AttentionKind, GqaAttention, LinearAttention, MlaAttention
from helix_sim.specs.ffn import FfnKind, RoutedFfn

Weights: TypeAlias = dict[str, Array]
"""Tensors of one layer by name; `attention_shapes` and its neighbours say which, and their shapes."""

ROPE_BASE = 10_000.0
NORM_EPSILON = 1e-6


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerSpec:
    """What one layer of a model is made of; `plain_kinds` has the attentions but GQA and MLA."""

    hidden_size: int
    attention: AttentionKind
    ffn: FfnKind


# --- Weights ---------------------------------------------------------------------------------------------------------


def attention_shapes(layer: LayerSpec) -> dict[str, tuple[int, ...]]:
    """Tensors of the attention block; the last axis but one is what a product sums over."""
    a, h = layer.attention, layer.hidden_size
    if isinstance(a, GqaAttention):
        q, k, v = a.q_heads, a.kv_heads, a.head_size
        return {"q": (q, h, v), "k": (k, h, v), "v": (k, h, v), "o": (q, v, h)}
    return {
        "q_down": (h, a.q_lora_rank),
        "kv_down": (h, a.kv_lora_rank + a.rope_width),
        "q_up": (a.q_heads, a.q_lora_rank, a.nope_width + a.rope_width),
        "k_up": (a.q_heads, a.nope_width, a.kv_lora_rank),
        "v_up": (a.q_heads, a.kv_lora_rank, a.output_width),
        "o": (a.q_heads, a.output_width, h),
    }


def ffn_shapes(layer: LayerSpec) -> dict[str, tuple[int, ...]]:
    """Tensors of the FFN: gate and up H x F, down F x H; of every expert, and of the shared ones side by side.

    An FFN that is not gated has no gate.
    """
    shapes = _gated_shapes(layer)
    return {name: shape for name, shape in shapes.items() if layer.ffn.gated is not False or not name.endswith("gate")}


def _gated_shapes(layer: LayerSpec) -> dict[str, tuple[int, ...]]:
    h, f = layer.hidden_size, layer.ffn.intermediate_size
    if not isinstance(layer.ffn, RoutedFfn):
        return {"gate": (h, f), "up": (h, f), "down": (f, h)}
    routed, wide = layer.ffn.routed, layer.ffn.shared * layer.ffn.shared_intermediate_size
    seen = layer.ffn.expert_width(h)
    latent = {"latent_down": (h, seen), "latent_up": (seen, h)} if layer.ffn.latent_size else {}
    return latent | {
        "router": (h, routed),
        "gate": (routed, seen, f),
        "up": (routed, seen, f),
        "down": (routed, f, seen),
        "shared_gate": (h, wide),
        "shared_up": (h, wide),
        "shared_down": (wide, h),
    }


def random_weights(shapes: dict[str, tuple[int, ...]], rng: np.random.Generator) -> Weights:
    """Normal weights, scaled so that a product keeps its input's size."""
    return {name: rng.normal(size=shape) / np.sqrt(max(shape[-2], 1)) for name, shape in shapes.items()}


# --- Pieces that have no shards --------------------------------------------------------------------------------------


def rms_norm(x: Array) -> Array:
    """Each row divided by its root mean square."""
    normed: Array = x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + NORM_EPSILON)
    return normed


def rotate(x: Array, positions: npt.NDArray[np.int64]) -> Array:
    """Rotary embedding of the last axis of x [B, q, heads, width], each of the q tokens at its own position.

    Pairs (i, i + half) turn by position / base^(i / half).
    """
    half = x.shape[-1] // 2
    angle = positions[:, None, None] * ROPE_BASE ** (-np.arange(half) / max(half, 1))
    first, second, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    turned = (first * np.cos(angle) - second * np.sin(angle), second * np.cos(angle) + first * np.sin(angle), rest)
    return np.concatenate(turned, axis=-1)


def activated(*inward: Array) -> Array:
    """SiLU(gate)·up of (gate, up); the square of ReLU(up) of up alone."""
    *gate, up = inward
    opened: Array = gate[0] / (1 + np.exp(-gate[0])) * up if gate else np.maximum(up, 0) ** 2
    return opened


def tensors_in(w: Weights, of: str = "") -> list[Array]:
    """The projections into an FFN's inner width: gate and up, or up alone; `of` starts their names."""
    return [w[name] for name in (f"{of}gate", f"{of}up") if name in w]


def choose_experts(scores: Array, top_k: int) -> tuple[npt.NDArray[np.int64], Array]:
    """The top_k experts of each row of scores [rows, E], and their gates, softmax over the chosen: [rows, top_k]."""
    chosen = np.argsort(-scores, axis=-1, kind="stable")[:, :top_k]
    return chosen, softmax(np.take_along_axis(scores, chosen, axis=-1))


def score_scale(attention: AttentionKind) -> float:
    """1 / sqrt of the dimensions that a published score sums over; absorption does not change it."""
    assert not isinstance(attention, LinearAttention)
    if hasattr(attention, "head_size"):
        return float(attention.head_size**-0.5)
    return float((attention.nope_width + attention.rope_width) ** -0.5)


def softmax(scores: Array) -> Array:
    """Shares of the last axis."""
    raised = np.exp(scores - scores.max(axis=-1, keepdims=True))
    shares: Array = raised / raised.sum(axis=-1, keepdims=True)
    return shares


# --- The layer -------------------------------------------------------------------------------------------------------


def plain_attention(a: AttentionKind, w: Weights, x: Array, cache: Array) -> tuple[Array, Array]:
    """Attention of the new tokens [B, q, H] after cache [B, S - q, K, cached values]; their output, the grown cache.

    What is cached is rotated already: key and value side by side for GQA, latent and rotary key for MLA. A new token
    sees what was cached before it, the new ones among it, and itself.
    """
    positions = cache.shape[1] + np.arange(x.shape[1])
    new = _gqa_entry(a, w, x, positions) if isinstance(a, GqaAttention) else _mla_entry(a, w, x, positions)
    grown = np.concatenate([cache, new], axis=1)
    heads = _gqa_heads if isinstance(a, GqaAttention) else _mla_heads
    query, keys, values = heads(a, w, x, grown, positions)
    scores = np.einsum("bnqd,bsqd->bnqs", query, keys) * score_scale(a)
    seen = np.arange(grown.shape[1]) <= positions[:, None]
    shares = softmax(np.where(seen[:, None], scores, -np.inf))
    output: Array = np.einsum("bnqs,bsqd,qdh->bnh", shares, values, w["o"], optimize=True)
    return output, grown


def _gqa_entry(a: GqaAttention, w: Weights, x: Array, positions: npt.NDArray[np.int64]) -> Array:
    """The new tokens' rotated keys and their values, [B, q, K, 2·Hsz]."""
    key, value = (np.einsum("bnh,khd->bnkd", x, w[name]) for name in ("k", "v"))
    return np.concatenate([rotate(key, positions), value], axis=-1)


def _gqa_heads(
    a: GqaAttention, w: Weights, x: Array, grown: Array, positions: npt.NDArray[np.int64]
) -> tuple[Array, Array, Array]:
    """Queries [B, q, Q, Hsz], and a key and a value [B, S, Q, Hsz] of every token for every query head."""
    query = rotate(np.einsum("bnh,qhd->bnqd", x, w["q"]), positions)
    repeated = grown.repeat(a.q_heads // a.kv_heads, axis=2)
    return query, repeated[..., : a.head_size], repeated[..., a.head_size :]


def _mla_entry(a: MlaAttention, w: Weights, x: Array, positions: npt.NDArray[np.int64]) -> Array:
    """The new tokens' normed latents and their rotary keys, [B, q, 1, kv_lora + rope]."""
    down = (x @ w["kv_down"])[:, :, None]
    latent, turning = rms_norm(down[..., : a.kv_lora_rank]), rotate(down[..., a.kv_lora_rank :], positions)
    return np.concatenate([latent, turning], axis=-1)


def _mla_heads(
    a: MlaAttention, w: Weights, x: Array, grown: Array, positions: npt.NDArray[np.int64]
) -> tuple[Array, Array, Array]:
    """Queries [B, q, Q, nope + rope], keys [B, S, Q, nope + rope] and values [B, S, Q, v], each latent expanded."""
    latents, turned = grown[:, :, 0, : a.kv_lora_rank], grown[..., a.kv_lora_rank :]
    query = np.einsum("bnr,qrd->bnqd", rms_norm(x @ w["q_down"]), w["q_up"])
    query = np.concatenate([query[..., : a.nope_width], rotate(query[..., a.nope_width :], positions)], axis=-1)
    keys = np.einsum("bsr,qdr->bsqd", latents, w["k_up"])
    keys = np.concatenate([keys, np.repeat(turned, a.q_heads, axis=2)], axis=-1)
    return query, keys, np.einsum("bsr,qrd->bsqd", latents, w["v_up"])


def plain_ffn(f: FfnKind, w: Weights, x: Array) -> Array:
    """FFN of [rows, H]: dense, or of every expert times its gate, plus the shared ones."""
    if not isinstance(f, RoutedFfn):
        return activated(*(x @ tensor for tensor in tensors_in(w))) @ w["down"]
    chosen, gates = choose_experts(x @ w["router"], f.top_k)
    share = np.zeros((len(x), f.routed))
    np.put_along_axis(share, chosen, gates, axis=-1)
    seen = x @ w["latent_down"] if f.latent_size else x
    inner = activated(*(np.einsum("bh,ehf->bef", seen, tensor) for tensor in tensors_in(w)))
    routed: Array = np.einsum("be,bef,efh->bh", share, inner, w["down"], optimize=True)
    routed = routed @ w["latent_up"] if f.latent_size else routed
    shared = activated(*(x @ tensor for tensor in tensors_in(w, "shared_"))) @ w["shared_down"]
    return routed + shared


def plain_layer(layer: LayerSpec, attention: Weights, ffn: Weights, hidden: Array, cache: Array) -> tuple[Array, Array]:
    """hidden [B, q, H] through attention and FFN, each behind its norm and added to the residual; the grown cache."""
    attended, grown = plain_attention(layer.attention, attention, rms_norm(hidden), cache)
    hidden = hidden + attended
    rows = rms_norm(hidden).reshape(-1, layer.hidden_size)
    return hidden + plain_ffn(layer.ffn, ffn, rows).reshape(hidden.shape), grown
