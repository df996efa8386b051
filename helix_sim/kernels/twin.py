"""The truth in NumPy float64: attention of one decode step over a KV shard, and the exact sum of shards' partials.

B requests, Q query heads over K KV heads (Q / K neighbours share one), S token rows of which a request owns the first
`lengths[b]`. MLA is K = 1 with values that are the first columns of the keys' rows: `v = k[..., :512]`.
"""

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Float64 = NDArray[np.float64]


def partial_attention(
    q: ArrayLike, k: ArrayLike, v: ArrayLike, lengths: ArrayLike, *, scale: float
) -> tuple[Float64, Float64]:
    """Softmax attention over the tokens that this shard owns, and the log of its softmax's sum.

    out = Σ_s exp(z_s) v_s / Σ_s exp(z_s), lse = log Σ_s exp(z_s), with z_s = scale · q·k_s        [Helix 2025, step 2]

    q [B, Q, score width], k [B, K, S, score width], v [B, K, S, value width], lengths [B] ->
    out [B, Q, value width], lse [B, Q] in nats. A shard without tokens gives zeros and an lse of -inf.

    >>> q, k, v = [[[1.0]]], [[[[0.0], [0.0]]]], [[[[2.0], [4.0]]]]
    >>> out, lse = partial_attention(q, k, v, [2], scale=1.0)  # equal scores: the mean, and log 2
    >>> out.item(), round(lse.item(), 4)
    (3.0, 0.6931)
    """
    queries, keys, values = (np.asarray(x, dtype=np.float64) for x in (q, k, v))
    batch, q_heads, width = queries.shape
    kv_heads, tokens = keys.shape[1:3]
    grouped = queries.reshape(batch, kv_heads, q_heads // kv_heads, width)
    scores = scale * np.einsum("bkgd,bksd->bkgs", grouped, keys)
    owned = np.arange(tokens) < np.asarray(lengths)[:, None]
    scores = np.where(owned[:, None, None, :], scores, -np.inf)
    top, weights, total = _softmax_parts(scores, axis=-1)
    rows = np.where(owned[:, None, :, None], values, 0.0)  # what lies past a request's length may be anything
    out = np.einsum("bkgs,bksd->bkgd", weights, rows) / _one_if_zero(total)
    lse = (top + np.log(_one_if_zero(total)))[..., 0]
    lse = np.where(total[..., 0] > 0, lse, -np.inf)
    return out.reshape(batch, q_heads, values.shape[-1]), lse.reshape(batch, q_heads)


def combine(out: ArrayLike, lse: ArrayLike) -> tuple[Float64, Float64]:
    """Attention over the union of P shards (or splits) from their partials: each weighted by its softmax's sum.

    out = Σ_p exp(lse_p - lse) out_p, lse = log Σ_p exp(lse_p)                                     [Helix 2025, step 3]

    out [P, B, Q, value width], lse [P, B, Q] -> out [B, Q, value width], lse [B, Q]. A partial whose lse is -inf adds
    nothing, whatever it holds.

    >>> out, lse = combine([[[[3.0]]], [[[9.0]]]], np.log([[[2.0]], [[1.0]]]))  # two tokens' mean and one token
    >>> round(out.item(), 4), round(np.exp(lse).item(), 4)
    (5.0, 3.0)
    """
    partials, sums = np.asarray(out, dtype=np.float64), np.asarray(lse, dtype=np.float64)
    top, weights, total = _softmax_parts(sums, axis=0)
    share = weights / _one_if_zero(total)
    combined = np.sum(share[..., None] * np.where(weights[..., None] > 0, partials, 0.0), axis=0)
    combined_lse = np.where(total > 0, top + np.log(_one_if_zero(total)), -np.inf)[0]
    return combined, combined_lse


def _softmax_parts(scores: Float64, *, axis: int) -> tuple[Float64, Float64, Float64]:
    """Largest score (0 where there is none), exp(score - largest), and their sum: safe for large and absent scores."""
    top = np.max(scores, axis=axis, keepdims=True, initial=-np.inf)
    top = np.where(np.isneginf(top), 0.0, top)
    weights = np.exp(scores - top)
    return top, weights, np.sum(weights, axis=axis, keepdims=True)


def _one_if_zero(total: Float64) -> NDArray[Any]:
    return np.where(total > 0, total, 1.0)
