"""The feed-forward network of one layer: dense, or routed and shared experts on the tpf x ep grid.

A dense FFN is sharded over the dense group; where that spans several attention groups, their tokens are gathered first.
Experts see the tokens of all attention groups: dispatch brings what other groups hold, combine takes the results back,
and an all-reduce over the token group completes the sum. With one attention group every rank holds every token already,
and only the all-reduce is left.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from helix_sim.core.collectives import direct
from helix_sim.core.numeric import Column, ceil_div, larger
from helix_sim.core.work import Work
from helix_sim.ops.elementwise import gated_activation, memory_pass
from helix_sim.ops.exchange import sent
from helix_sim.ops.matmul import DENSE, SHARED, grouped_matmul, matmul
from helix_sim.ops.routing import BusiestRank
from helix_sim.ops.step_input import StepInput
from helix_sim.specs.ffn import DenseFfn, RoutedFfn

# --- Dense -----------------------------------------------------------------------------------------------------------


def pooled_tokens(s: StepInput) -> Any:
    """Tokens that a dense FFN sees: those of every attention group whose tokens are gathered for it."""
    return s.tokens * s.layout.pooled_groups


def dense_up(s: StepInput, ffn: DenseFfn) -> Work:
    """Gate and up projection: H x 2·F/TPF for all pooled tokens; up alone, H x F/TPF, where nothing gates."""
    shard = ceil_div(ffn.intermediate_size, s.layout.dense_group)
    return matmul(s, rows=pooled_tokens(s), inner=s.model.hidden_size, outer=ffn.projections_in * shard, **DENSE)


def dense_activation(s: StepInput, ffn: DenseFfn) -> Work:
    """SiLU(gate)·up on the local shard of a dense FFN; of up alone where nothing gates."""
    shard = ceil_div(ffn.intermediate_size, s.layout.dense_group)
    return gated_activation(s, pooled_tokens(s), shard, read=ffn.projections_in)


def dense_down(s: StepInput, ffn: DenseFfn) -> Work:
    """Down projection: F/TPF x H, a partial sum of every pooled token."""
    shard = ceil_div(ffn.intermediate_size, s.layout.dense_group)
    return matmul(s, rows=pooled_tokens(s), inner=shard, outer=s.model.hidden_size, **DENSE)


# --- Experts ---------------------------------------------------------------------------------------------------------


def router(s: StepInput, ffn: RoutedFfn) -> Work:
    """Scores of every expert for the group's own tokens; the router is whole on every rank."""
    return matmul(
        s,
        rows=s.tokens,
        inner=s.model.hidden_size,
        outer=ffn.routed,
        weights="router_weights",
        math="router_math",
    )


def top_k(s: StepInput, ffn: RoutedFfn) -> Work:
    """The choice of experts: one pass over the scores."""
    moved = s.tokens * (ffn.routed + 2 * ffn.top_k) * s.activation_bytes
    return memory_pass("elementwise", moved_bytes=moved, rows=s.tokens)


def expert_latent_down(s: StepInput, ffn: RoutedFfn) -> Work:
    """The group's own tokens into the width that their routed experts see: H x latent, whole on every rank."""
    return matmul(s, rows=s.tokens, inner=s.model.hidden_size, outer=ffn.expert_width(s.model.hidden_size))


def expert_latent_up(s: StepInput, ffn: RoutedFfn) -> Work:
    """The routed experts' sums back to the residual stream, latent x H, on every rank for its own partial sums.

    Without the norm that some models have between: the all-reduce behind it adds up what a norm would see whole.
    """
    return matmul(s, rows=s.tokens, inner=ffn.expert_width(s.model.hidden_size), outer=s.model.hidden_size)


def dispatch(s: StepInput, rank: BusiestRank, width: int | None = None) -> Work:
    """Tokens of other attention groups that picked an expert here arrive, each once per rank, at the busiest of ep.

    Without their expert numbers and gates, top_k of each beside H values (or `width`, where experts see a latent).
    """
    sent_as = s.precision.format_of("dispatch")
    return replace(routed_exchange(s, rank, "dispatch", s.precision.bytes_of("dispatch"), width), weights=sent_as)


def combine(s: StepInput, rank: BusiestRank, width: int | None = None) -> Work:
    """Partial sums of other groups' tokens go back, each to one rank of the group that owns the token.

    The sums themselves, and the gates' weighting, ride in the kernels around it.
    """
    return routed_exchange(s, rank, "combine", s.wire_bytes, width)


def routed_exchange(
    s: StepInput, rank: BusiestRank, op_class: str, value_bytes: Column, width: int | None = None
) -> Work:
    """All-to-all among the ranks of the FFN grid: `foreign` tokens of H values come to, or leave, the busiest rank."""
    x = s.layout
    return sent(
        op_class,
        "all-to-all",
        rank.foreign * (width or s.model.hidden_size) * value_bytes,
        routed_group(s),
        blocks=x.pp,
        rows=s.tokens,
        needed=rank.foreign / larger(s.tokens * (x.dp - 1), 1),
        in_turns=s.in_turns,
    )


def routed_group(s: StepInput) -> Any:
    """Ranks among which tokens are dispatched: those of the FFN grid; one where there is one attention group."""
    return 1 + (s.layout.ffn_group - 1) * (s.layout.dp > 1)


def routed_up(s: StepInput, ffn: RoutedFfn, rank: BusiestRank) -> Work:
    """Gate and up projection of the local experts, a grouped matrix multiply; up alone where nothing gates."""
    outer = ffn.projections_in * ceil_div(ffn.intermediate_size, s.layout.tpf)
    return _experts(s, rank, ffn.expert_width(s.model.hidden_size), outer)


def routed_activation(s: StepInput, ffn: RoutedFfn, rank: BusiestRank) -> Work:
    """SiLU(gate)·up of the routed tokens; of up alone where nothing gates."""
    shard = ceil_div(ffn.intermediate_size, s.layout.tpf)
    activation = gated_activation(s, rank.pairs, shard, "grouped-pointwise", ffn.projections_in)
    formats: dict[str, Any] = {
        "math": s.precision.format_of("routed_math"),
        "weights": s.precision.format_of("routed_weights"),
    }
    return replace(activation, part="activation", part_of="grouped-gemm", **formats)


def routed_down(s: StepInput, ffn: RoutedFfn, rank: BusiestRank) -> Work:
    """Down projection of the local experts, a grouped matrix multiply."""
    return _experts(s, rank, ceil_div(ffn.intermediate_size, s.layout.tpf), ffn.expert_width(s.model.hidden_size))


def _experts(s: StepInput, rank: BusiestRank, inner: Any, outer: Any) -> Work:
    sizes = {"pairs": rank.pairs, "held": rank.held, "read": rank.read, "arrived": rank.arrived}
    brought_by = direct("all-to-all", 0, routed_group(s), blocks=s.layout.pp)  # of which only its places are asked
    product = grouped_matmul(s, **sizes, inner=inner, outer=outer)
    return replace(product, brought_by=brought_by, in_turns=s.in_turns)


def shared_up(s: StepInput, ffn: RoutedFfn) -> Work:
    """Gate and up projection of the shared experts, or up alone, over the token group, for its own tokens."""
    outer = ffn.projections_in * _shared_shard(s, ffn)
    return matmul(s, rows=s.tokens, inner=s.model.hidden_size, outer=outer, **SHARED)


def shared_activation(s: StepInput, ffn: RoutedFfn) -> Work:
    """SiLU(gate)·up of the shared experts; of up alone where nothing gates."""
    return gated_activation(s, s.tokens, _shared_shard(s, ffn), read=ffn.projections_in)


def shared_down(s: StepInput, ffn: RoutedFfn) -> Work:
    """Down projection of the shared experts; its sum rides on the all-reduce of the routed ones."""
    return matmul(s, rows=s.tokens, inner=_shared_shard(s, ffn), outer=s.model.hidden_size, **SHARED)


def _shared_shard(s: StepInput, ffn: RoutedFfn) -> Any:
    return ceil_div(ffn.shared * ffn.shared_intermediate_size, s.layout.token_group)
