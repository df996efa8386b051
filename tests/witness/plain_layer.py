"""One decoder layer on one device in float64, written as the model is published: the truth for the sharded layer.

Shapes: B requests, H hidden, Q query heads, K KV heads, S cached tokens, F FFN width, E routed experts. MLA is computed
in its expanded form here, with a key and a value for every head and token, so that the absorbed form is checked too.
Norms have unit gains.
"""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
import numpy.typing as npt
from witness.counted import Array

from helix_sim.specs.model import Experts, GqaAttention, MlaAttention, Model

Weights: TypeAlias = dict[str, Array]
"""Tensors of one layer by name; `attention_shapes` and its neighbours say which, and their shapes."""

ROPE_BASE = 10_000.0
NORM_EPSILON = 1e-6


# --- Weights ---------------------------------------------------------------------------------------------------------


def attention_shapes(model: Model) -> dict[str, tuple[int, ...]]:
    """Tensors of the attention block; the last axis but one is what a product sums over."""
    a, h = model.attention, model.hidden_size
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


def dense_shapes(model: Model) -> dict[str, tuple[int, ...]]:
    """Tensors of a dense FFN: gate and up H x F, down F x H."""
    h, f = model.hidden_size, model.dense_intermediate_size
    return {"gate": (h, f), "up": (h, f), "down": (f, h)}


def moe_shapes(model: Model, moe: Experts) -> dict[str, tuple[int, ...]]:
    """Tensors of an MoE FFN; the shared experts side by side are one wide gated FFN."""
    h, f, wide = model.hidden_size, moe.intermediate_size, moe.shared * moe.shared_intermediate_size
    return {
        "router": (h, moe.routed),
        "gate": (moe.routed, h, f),
        "up": (moe.routed, h, f),
        "down": (moe.routed, f, h),
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


def rotate(x: Array, position: int) -> Array:
    """Rotary embedding of the last axis at one position: pairs (i, i + half) turn by position / base^(i / half)."""
    half = x.shape[-1] // 2
    angle = position * ROPE_BASE ** (-np.arange(half) / max(half, 1))
    first, second, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    turned = (first * np.cos(angle) - second * np.sin(angle), second * np.cos(angle) + first * np.sin(angle), rest)
    return np.concatenate(turned, axis=-1)


def gated(gate: Array, up: Array) -> Array:
    """SiLU(gate)·up."""
    opened: Array = gate / (1 + np.exp(-gate)) * up
    return opened


def choose_experts(scores: Array, top_k: int) -> tuple[npt.NDArray[np.int64], Array]:
    """The top_k experts of each row of scores [B, E], and their gates: softmax over the chosen, both [B, top_k]."""
    chosen = np.argsort(-scores, axis=-1, kind="stable")[:, :top_k]
    return chosen, _softmax(np.take_along_axis(scores, chosen, axis=-1))


def score_scale(attention: GqaAttention | MlaAttention) -> float:
    """1 / sqrt of the dimensions that a published score sums over; absorption does not change it."""
    if isinstance(attention, GqaAttention):
        return float(attention.head_size**-0.5)
    return float((attention.nope_width + attention.rope_width) ** -0.5)


def _softmax(scores: Array) -> Array:
    raised = np.exp(scores - scores.max(axis=-1, keepdims=True))
    shares: Array = raised / raised.sum(axis=-1, keepdims=True)
    return shares


# --- The layer -------------------------------------------------------------------------------------------------------


def plain_attention(model: Model, w: Weights, x: Array, cache: Array) -> tuple[Array, Array]:
    """Attention of one new token [B, H] after cache [B, S - 1, K, cached values]; the output [B, H], the grown cache.

    What is cached is rotated already: key and value side by side for GQA, latent and rotary key for MLA.
    """
    a, position = model.attention, cache.shape[1]
    new = _gqa_entry(a, w, x, position) if isinstance(a, GqaAttention) else _mla_entry(a, w, x, position)
    grown = np.concatenate([cache, new[:, None]], axis=1)
    query, keys, values = _gqa_heads(a, w, x, grown) if isinstance(a, GqaAttention) else _mla_heads(a, w, x, grown)
    shares = _softmax(np.einsum("bqd,bsqd->bqs", query, keys) * score_scale(a))
    output: Array = np.einsum("bqs,bsqd,qdh->bh", shares, values, w["o"], optimize=True)
    return output, grown


def _gqa_entry(a: GqaAttention, w: Weights, x: Array, position: int) -> Array:
    """The new token's rotated key and its value, [B, K, 2·Hsz]."""
    key, value = (np.einsum("bh,khd->bkd", x, w[name]) for name in ("k", "v"))
    return np.concatenate([rotate(key, position), value], axis=-1)


def _gqa_heads(a: GqaAttention, w: Weights, x: Array, grown: Array) -> tuple[Array, Array, Array]:
    """Query [B, Q, Hsz], and a key and a value [B, S, Q, Hsz] of every token for every query head."""
    query = rotate(np.einsum("bh,qhd->bqd", x, w["q"]), grown.shape[1] - 1)
    repeated = grown.repeat(a.q_heads // a.kv_heads, axis=2)
    return query, repeated[..., : a.head_size], repeated[..., a.head_size :]


def _mla_entry(a: MlaAttention, w: Weights, x: Array, position: int) -> Array:
    """The new token's normed latent and its rotary key, [B, 1, kv_lora + rope]."""
    down = x @ w["kv_down"]
    latent, turning = rms_norm(down[:, : a.kv_lora_rank]), rotate(down[:, a.kv_lora_rank :], position)
    return np.concatenate([latent, turning], axis=-1)[:, None]


def _mla_heads(a: MlaAttention, w: Weights, x: Array, grown: Array) -> tuple[Array, Array, Array]:
    """Query, key [B, S, Q, nope + rope] and value [B, S, Q, v] of every head, each latent expanded."""
    latents, turned = grown[:, :, 0, : a.kv_lora_rank], grown[..., a.kv_lora_rank :]
    query = np.einsum("br,qrd->bqd", rms_norm(x @ w["q_down"]), w["q_up"])
    turning = rotate(query[..., a.nope_width :], grown.shape[1] - 1)
    query = np.concatenate([query[..., : a.nope_width], turning], axis=-1)
    keys = np.einsum("bsr,qdr->bsqd", latents, w["k_up"])
    keys = np.concatenate([keys, np.repeat(turned, a.q_heads, axis=2)], axis=-1)
    return query, keys, np.einsum("bsr,qrd->bsqd", latents, w["v_up"])


def plain_ffn(model: Model, w: Weights, x: Array) -> Array:
    """Gated FFN of [B, H]: dense, or where there is a router every expert times its gate, plus the shared ones."""
    if "router" not in w:
        return gated(x @ w["gate"], x @ w["up"]) @ w["down"]
    assert model.experts is not None
    chosen, gates = choose_experts(x @ w["router"], model.experts.top_k)
    share = np.zeros((len(x), model.experts.routed))
    np.put_along_axis(share, chosen, gates, axis=-1)
    inner = gated(np.einsum("bh,ehf->bef", x, w["gate"]), np.einsum("bh,ehf->bef", x, w["up"]))
    routed: Array = np.einsum("be,bef,efh->bh", share, inner, w["down"], optimize=True)
    shared = gated(x @ w["shared_gate"], x @ w["shared_up"]) @ w["shared_down"]
    return routed + shared


def plain_layer(model: Model, attention: Weights, ffn: Weights, hidden: Array, cache: Array) -> tuple[Array, Array]:
    """hidden [B, H] through attention and FFN, each behind its norm and added to the residual; and the grown cache."""
    attended, grown = plain_attention(model, attention, rms_norm(hidden), cache)
    hidden = hidden + attended
    return hidden + plain_ffn(model, ffn, rms_norm(hidden)), grown
