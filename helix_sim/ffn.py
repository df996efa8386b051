"""The feed-forward network of one layer: dense, or routed and shared experts on the tpf x ep grid.

A dense FFN is sharded over the dense group; where that spans several attention groups, their tokens are gathered first.
Experts see the tokens of all attention groups: dispatch brings what other groups hold, combine takes the results back,
and an all-reduce over the token group completes the sum. With one attention group every rank holds every token already,
and only the all-reduce is left.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.special import ndtri

from helix_sim.attention import Decode, matmul
from helix_sim.collectives import direct
from helix_sim.spec import Experts
from helix_sim.units import Column, ceil_div
from helix_sim.work import Work

# --- Dense -----------------------------------------------------------------------------------------------------------


def dense_up(d: Decode) -> Work:
    """Gate and up projection: H x 2·F/TPF for all pooled tokens."""
    x = d.layout
    shard = ceil_div(d.model.dense_intermediate_size, x.dense_group)
    return matmul(d, rows=x.batch * x.pooled_groups, inner=d.model.hidden_size, outer=2 * shard)


def dense_activation(d: Decode) -> Work:
    """SiLU(gate)·up on the local shard."""
    x = d.layout
    return _activation(d, x.batch * x.pooled_groups, ceil_div(d.model.dense_intermediate_size, x.dense_group))


def dense_down(d: Decode) -> Work:
    """Down projection: F/TPF x H, a partial sum of every pooled token."""
    x = d.layout
    shard = ceil_div(d.model.dense_intermediate_size, x.dense_group)
    return matmul(d, rows=x.batch * x.pooled_groups, inner=shard, outer=d.model.hidden_size)


def gather_tokens(d: Decode) -> Work:
    """All-gather of the other pooled groups' tokens in front of a dense FFN."""
    return _pool(d, "all-gather")


def scatter_sums(d: Decode) -> Work:
    """Reduce-scatter of the partial sums back to the groups that own the tokens."""
    return _pool(d, "reduce-scatter")


def _pool(d: Decode, kind: str) -> Work:
    x = d.layout
    payload = x.batch * (x.pooled_groups - 1) * d.model.hidden_size * d.wire_bytes
    collective = direct(kind, payload, group=x.pooled_groups, stride=x.token_group)
    return Work(op_class=kind, kernels=0, collective=collective, rows=x.batch)


def _activation(d: Decode, rows: Column, width: Column, op_class: str = "pointwise") -> Work:
    return Work(op_class=op_class, activation_bytes=3 * rows * width * d.activation_bytes, rows=rows)


# --- Routing ---------------------------------------------------------------------------------------------------------


def expert_popularity(experts: Experts) -> list[tuple[int, float]]:
    """(experts, probability that a token picks each of them) in classes from hot to cold; one class if uniform.

    Popularity falls as rank^-skew; classes double in size, and no probability exceeds one.

    >>> expert_popularity(Experts(routed=256, top_k=8, intermediate_size=2048))
    [(256, 0.03125)]
    """
    if not experts.routing_skew:
        return [(experts.routed, experts.top_k / experts.routed)]
    rank = np.arange(1, experts.routed + 1)
    weight = rank**-experts.routing_skew
    picked = np.minimum(1.0, experts.top_k * weight / weight.sum())
    for _ in range(experts.top_k):  # what the cap takes from the hottest goes to the rest
        free = picked < 1
        picked[free] *= (experts.top_k - (~free).sum()) / picked[free].sum()
        picked = np.minimum(1.0, picked)
    starts = [2**i for i in range(experts.routed.bit_length())]
    classes = [picked[start - 1 : 2 * start - 1] for start in starts]
    return [(len(members), float(members.mean())) for members in classes]


def _busiest(mean: Column, variance: Column, ranks: Column) -> Any:
    """Expected largest of `ranks` loads of that mean and variance: mean + sd · E[max of n standard normals] (Blom)."""
    return mean + np.sqrt(variance) * ndtri((ranks - 0.375) / (ranks + 0.25))


def experts_read(d: Decode, moe: Experts) -> Any:
    """Distinct experts that the busiest EP rank reads in a step: expectation over random routing.

    mean = E/ep · (1 - (1 - k/E)^T), plus the spread of the busiest of ep ranks; at least 1, at most E/ep.
    Held against a simulation of random routing in the tests.
    """
    x = d.layout
    local = ceil_div(moe.routed, x.ep)
    hit = sum(
        count / moe.routed * -np.expm1(x.tokens * np.log1p(-min(p, 1 - 1e-12))) for count, p in expert_popularity(moe)
    )
    spread = local * hit * (1 - hit) * (1 - 1 / x.ep)
    return np.clip(_busiest(local * hit, spread, x.ep), 1, np.minimum(local, x.tokens * moe.top_k))


def tokens_routed(d: Decode, moe: Experts) -> Any:
    """Token-expert pairs on the busiest EP rank: mean T·k/ep, plus the spread of the busiest of ep ranks."""
    x = d.layout
    local = ceil_div(moe.routed, x.ep)
    classes = expert_popularity(moe)
    share = moe.top_k / moe.routed
    binomial = sum(count * p * (1 - p) for count, p in classes) / moe.routed
    popularity = sum(count * (p - share) ** 2 for count, p in classes) / moe.routed
    variance = local * (1 - 1 / x.ep) * (x.tokens * binomial + x.tokens**2 * popularity)
    mean = x.tokens * moe.top_k * local / moe.routed
    return np.clip(_busiest(mean, variance, x.ep), 1, x.tokens * np.minimum(local, moe.top_k))


def share_of_tokens_here(d: Decode, moe: Experts) -> Any:
    """Probability that a token picks at least one expert of a given EP rank, under uniform routing.

    1 - C(E - E/ep, k) / C(E, k): each of the k picks misses what is left.
    """
    local = ceil_div(moe.routed, d.layout.ep)
    missed: Any = 1.0
    for pick in range(moe.top_k):
        missed = missed * np.maximum(1 - local / (moe.routed - pick), 0)
    return 1 - missed


# --- Experts ---------------------------------------------------------------------------------------------------------


def router(d: Decode, moe: Experts) -> Work:
    """Scores of every expert for the group's own tokens; the router is whole on every rank, in activation format."""
    return matmul(
        d,
        rows=d.layout.batch,
        inner=d.model.hidden_size,
        outer=moe.routed,
        weights="router_weights",
        math="router_math",
    )


def top_k(d: Decode, moe: Experts) -> Work:
    """The choice of experts: one pass over the scores."""
    return Work(
        op_class="elementwise",
        activation_bytes=d.layout.batch * (moe.routed + 2 * moe.top_k) * d.activation_bytes,
        rows=d.layout.batch,
    )


def dispatch(d: Decode, moe: Experts) -> Work:
    """Tokens of other attention groups that picked an expert here arrive, each once per rank."""
    return _route(d, moe, "dispatch", d.precision.bytes_of("dispatch"))


def combine(d: Decode, moe: Experts) -> Work:
    """Partial sums of other groups' tokens go back, each to one rank of the group that owns the token."""
    return _route(d, moe, "combine", d.wire_bytes)


def _route(d: Decode, moe: Experts, op_class: str, value_bytes: float) -> Work:
    x = d.layout
    needed = share_of_tokens_here(d, moe)
    foreign = x.batch * (x.dp - 1) * needed
    return Work(
        op_class=op_class,
        kernels=0,
        collective=direct(
            "all-to-all", payload=foreign * d.model.hidden_size * value_bytes, group=1 + (x.ffn_group - 1) * (x.dp > 1)
        ),
        rows=x.batch,
        needed=needed,
    )


def routed_up(d: Decode, moe: Experts) -> Work:
    """Gate and up projection of the local experts, a grouped matrix multiply."""
    return _grouped(d, moe, d.model.hidden_size, 2 * ceil_div(moe.intermediate_size, d.layout.tpf))


def routed_activation(d: Decode, moe: Experts) -> Work:
    """SiLU(gate)·up of the routed tokens."""
    width = ceil_div(moe.intermediate_size, d.layout.tpf)
    return _activation(d, tokens_routed(d, moe), width, "grouped-pointwise")


def routed_down(d: Decode, moe: Experts) -> Work:
    """Down projection of the local experts, a grouped matrix multiply."""
    return _grouped(d, moe, ceil_div(moe.intermediate_size, d.layout.tpf), d.model.hidden_size)


def _grouped(d: Decode, moe: Experts, inner: Column, outer: Column) -> Work:
    rows, read = tokens_routed(d, moe), experts_read(d, moe)
    expert_bytes = inner * outer * d.precision.bytes_of("weights")
    return Work(
        op_class="grouped-gemm",
        flops=2 * rows * inner * outer,
        weight_bytes=read * expert_bytes,
        idle_weight_bytes=(ceil_div(moe.routed, d.layout.ep) - read) * expert_bytes,
        activation_bytes=rows * (inner + outer) * d.activation_bytes,
        math=d.precision.format_of("math"),
        weights=d.precision.weights,
        rows=rows,
        inner=inner,
        outer=outer,
        copies=ceil_div(moe.routed, d.layout.ep),
        experts_read=read,
        tokens=d.layout.tokens,
    )


def shared_up(d: Decode, moe: Experts) -> Work:
    """Gate and up projection of the shared experts, sharded over the token group, for its own tokens."""
    return matmul(d, rows=d.layout.batch, inner=d.model.hidden_size, outer=2 * _shared_shard(d, moe))


def shared_activation(d: Decode, moe: Experts) -> Work:
    """SiLU(gate)·up of the shared experts."""
    return _activation(d, d.layout.batch, _shared_shard(d, moe))


def shared_down(d: Decode, moe: Experts) -> Work:
    """Down projection of the shared experts; its sum rides on the all-reduce of the routed ones."""
    return matmul(d, rows=d.layout.batch, inner=_shared_shard(d, moe), outer=d.model.hidden_size)


def _shared_shard(d: Decode, moe: Experts) -> Any:
    return ceil_div(moe.shared * moe.shared_intermediate_size, d.layout.token_group)
