"""The feed-forward network of one layer: dense, or routed and shared experts on the tpf x ep grid.

A dense FFN is sharded over the dense group; where that spans several attention groups, their tokens are gathered first.
Experts see the tokens of all attention groups: dispatch brings what other groups hold, combine takes the results back,
and an all-reduce over the token group completes the sum. With one attention group every rank holds every token already,
and only the all-reduce is left.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.special import ndtri

from helix_sim.core.collectives import direct
from helix_sim.core.numeric import Column, ceil_div, larger, smaller
from helix_sim.core.work import Work
from helix_sim.ops.attention import Decode, matmul
from helix_sim.specs.model import Experts

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
        if not free.any():
            break
        picked[free] *= (experts.top_k - (~free).sum()) / picked[free].sum()
        picked = np.minimum(1.0, picked)
    starts = [2**i for i in range(experts.routed.bit_length())]
    classes = [picked[start - 1 : 2 * start - 1] for start in starts]
    return [(len(members), float(members.mean())) for members in classes]


EXACT_UP_TO = 16
"""Experts or tokens up to which the spread of the busiest rank is summed exactly; beyond it, a normal law is close."""


def largest_binomial(n: Column, p: Column, ranks: Column) -> Any:
    """Expected largest of `ranks` independent binomial(n, p) counts.

    Up to n = 16 the exact sum over j of 1 - P(count <= j)^ranks. Beyond: mean + sd · z + (1 - 2p) · (z² - 1) / 6, with
    z the expected largest of that many standard normals (Blom's approximation) and the binomial's skewness, which fades
    with a spread below one count.

    >>> float(largest_binomial(32, 1.0, ranks=8))
    32.0
    """
    z, spread = ndtri((ranks - 0.375) / (ranks + 0.25)), np.sqrt(n * p * (1 - p))
    skewness = (ranks > 1) * (1 - 2 * p) * (z**2 - 1) / 6 * np.minimum(spread, 1)
    normal = n * p + spread * z + skewness
    largest = np.array(np.clip(normal, 0, n))
    few = np.broadcast_to(n <= EXACT_UP_TO, np.shape(largest))
    largest[few] = _largest_of_few(*(np.broadcast_to(size, np.shape(largest))[few] for size in (n, p, ranks)))
    return largest[()]


def _largest_of_few(n: Any, p: Any, ranks: Any) -> Any:
    """The exact sum, for columns of n up to EXACT_UP_TO."""
    least = np.exp2(-60 / ranks)  # its power vanishes beside 1; numpy takes 40 times as long where a power underflows
    q = np.minimum(p, 1 - 1e-12)
    pmf = (1 - q) ** n
    below, largest = pmf, np.zeros_like(pmf)
    for j in range(int(np.max(n, initial=0))):
        largest += (n > j) * (1 - np.clip(below, least, 1.0) ** ranks)
        pmf = pmf * (n - j) / (j + 1) * q / (1 - q)
        below = below + pmf
    return largest


@dataclass(frozen=True, slots=True, kw_only=True)
class BusiestRank:
    """Routing as the busiest EP rank sees it: experts it holds and reads, token-expert pairs it computes.

    foreign: tokens of other attention groups that picked an expert here, each once.
    """

    held: Column
    read: Column
    pairs: Column
    foreign: Column


def busiest_rank(d: Decode, moe: Experts) -> BusiestRank:
    """Expectation over random routing of what the busiest of ep ranks reads and computes.

    Distinct experts: E/ep · (1 - (1 - k/E)^T) on average, and the largest of ep binomial counts on the busiest. Pairs:
    T·k/ep on average, plus the largest deviation of ep such loads. Both are held against a simulation in the tests.
    """
    x = d.layout
    held = ceil_div(moe.routed, x.ep)
    classes, share = expert_popularity(moe), moe.top_k / moe.routed
    hit = sum(count / moe.routed * -np.expm1(x.tokens * np.log1p(-min(picked, 1 - 1e-12))) for count, picked in classes)
    read = np.clip(largest_binomial(held, hit, x.ep), 1, smaller(held, x.tokens * moe.top_k))

    picked_or_not = sum(count * picked * (1 - picked) for count, picked in classes) / moe.routed
    popularity = sum(count * (picked - share) ** 2 for count, picked in classes) / moe.routed
    others = 1 - 1 / x.ep
    deviation = np.sqrt(held * others * (x.tokens * picked_or_not + x.tokens**2 * popularity))
    z = ndtri((x.ep - 0.375) / (x.ep + 0.25))
    skewness = others * (1 - 2 * share) * (z**2 - 1) / 6 * np.minimum(deviation, 1)
    pairs = x.tokens * moe.top_k * held / moe.routed + deviation * z + skewness
    pairs = np.clip(pairs, read, x.tokens * smaller(held, moe.top_k))
    foreign = largest_binomial(x.batch * (x.dp - 1), share_of_tokens_here(d, moe), x.ep)
    return BusiestRank(held=held, read=read, pairs=pairs, foreign=foreign)


def share_of_tokens_here(d: Decode, moe: Experts) -> Any:
    """Probability that a token picks at least one expert of a given EP rank, under uniform routing.

    1 - C(E - E/ep, k) / C(E, k): each of the k picks misses what is left.
    """
    local = ceil_div(moe.routed, d.layout.ep)
    missed: Any = 1.0
    for pick in range(moe.top_k):
        missed = missed * larger(1 - local / (moe.routed - pick), 0)
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


def dispatch(d: Decode, rank: BusiestRank) -> Work:
    """Tokens of other attention groups that picked an expert here arrive, each once per rank, at the busiest of ep.

    Without their expert numbers and gates, top_k of each beside H values.
    """
    return _route(d, rank, "dispatch", d.precision.bytes_of("dispatch"))


def combine(d: Decode, rank: BusiestRank) -> Work:
    """Partial sums of other groups' tokens go back, each to one rank of the group that owns the token.

    The sums themselves, and the gates' weighting, ride in the kernels around it.
    """
    return _route(d, rank, "combine", d.wire_bytes)


def _route(d: Decode, rank: BusiestRank, op_class: str, value_bytes: float) -> Work:
    x = d.layout
    return Work(
        op_class=op_class,
        kernels=0,
        collective=direct(
            "all-to-all",
            payload=rank.foreign * d.model.hidden_size * value_bytes,
            group=1 + (x.ffn_group - 1) * (x.dp > 1),
        ),
        rows=x.batch,
        needed=rank.foreign / larger(x.batch * (x.dp - 1), 1),
    )


def routed_up(d: Decode, moe: Experts, rank: BusiestRank) -> Work:
    """Gate and up projection of the local experts, a grouped matrix multiply."""
    return _grouped(d, rank, d.model.hidden_size, 2 * ceil_div(moe.intermediate_size, d.layout.tpf))


def routed_activation(d: Decode, moe: Experts, rank: BusiestRank) -> Work:
    """SiLU(gate)·up of the routed tokens."""
    width = ceil_div(moe.intermediate_size, d.layout.tpf)
    return _activation(d, rank.pairs, width, "grouped-pointwise")


def routed_down(d: Decode, moe: Experts, rank: BusiestRank) -> Work:
    """Down projection of the local experts, a grouped matrix multiply."""
    return _grouped(d, rank, ceil_div(moe.intermediate_size, d.layout.tpf), d.model.hidden_size)


def _grouped(d: Decode, rank: BusiestRank, inner: Column, outer: Column) -> Work:
    expert_bytes = inner * outer * d.precision.bytes_of("weights")
    return Work(
        op_class="grouped-gemm",
        flops=2 * rank.pairs * inner * outer,
        weight_bytes=rank.read * expert_bytes,
        idle_weight_bytes=(rank.held - rank.read) * expert_bytes,
        activation_bytes=rank.pairs * (inner + outer) * d.activation_bytes,
        math=d.precision.format_of("math"),
        weights=d.precision.weights,
        rows=rank.pairs,
        inner=inner,
        outer=outer,
        copies=rank.held,
        experts_read=rank.read,
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
