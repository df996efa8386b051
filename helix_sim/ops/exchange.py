"""What ranks send each other in a layer: partial outputs among KV shards, sums, and tokens of a pooled FFN."""

from __future__ import annotations

from typing import Any

from helix_sim.core.collectives import all_reduce, direct
from helix_sim.core.numeric import Column, floor_div
from helix_sim.core.work import Work
from helix_sim.ops.attention import LSE_BYTES, Heads, output_heads_per_rank, q_heads_projected
from helix_sim.ops.elementwise import memory_pass
from helix_sim.ops.step_input import StepInput, once_a_step


def sent(
    op_class: str,
    kind: str,
    payload: Column,
    group: Column,
    *,
    rows: Column,
    stride: Column = 1,
    blocks: Column = 1,
    **sizes: Any,
) -> Work:
    """A direct collective: `payload` bytes leave or enter the busiest of `group` ranks that stand `stride` apart.

    blocks: how many blocks of such groups stand one after another; most of them start inside an NVLink domain.
    """
    collective = direct(kind, payload, group, stride, blocks)
    return Work(op_class=op_class, kernels=0, collective=collective, rows=rows, **sizes)


def gather_queries(s: StepInput, a: Heads) -> Work:
    """All-gather of the queries, rotated and in MLA absorbed, among the KV shards that share their projection.

    Each sends its share of the heads to `q_shards` - 1 others; nothing where every KV shard projects all of them. As
    vLLM has it (https://github.com/vllm-project/vllm, vllm/model_executor/layers/attention/mla_attention.py).
    """
    x = s.layout
    payload = (x.q_shards - 1) * s.tokens * q_heads_projected(s, a) * a.score_width * s.wire_bytes
    return sent("all-gather", "all-gather", payload, x.q_shards, stride=x.tpa, rows=s.tokens)


def partial_exchange(s: StepInput, a: Heads) -> Work:
    """The all-to-all of partial outputs and their log-sum-exps inside each KVP group; its volume has no S in it.

    A slice of B·Q/N heads to each of the other KVP - 1 ranks [Helix 2025, 2.1.1]; where the FFN runs on one KV shard
    alone (Medha), its ranks receive that slice, of B·Q/TPA heads, from each of the others.
    """
    x = s.layout
    head_bytes = a.value_width * s.wire_bytes + LSE_BYTES
    payload = (x.kvp - 1) * s.tokens * output_heads_per_rank(s, a) * head_bytes
    return sent(
        "partial-exchange",
        "all-to-all",
        payload,
        x.kvp,
        stride=x.tpa,
        blocks=x.attention_groups,
        rows=s.tokens,
        heads=output_heads_per_rank(s, a),
        pieces=x.chunks,
    )


def combine_partials(s: StepInput, a: Heads) -> Work:
    """Rescale and sum of KVP partial outputs by their log-sum-exps: exact softmax. No kernel where KVP = 1."""
    x = s.layout
    split = (x.kvp > 1) * 1
    moved = x.kvp * (a.value_width * s.wire_bytes + LSE_BYTES) + a.value_width * s.activation_bytes
    return memory_pass(
        "elementwise", moved_bytes=split * s.tokens * output_heads_per_rank(s, a) * moved, rows=s.tokens, kernels=split
    )


@once_a_step
def group_all_reduce(s: StepInput) -> Work:
    """Sum of the [tokens, H] partial results over the token group, after a row-sharded projection.

    Token groups stand side by side as far as their places in NVLink domains go, also where shards between them idle.
    """
    payload = s.model.hidden_size * s.wire_bytes * s.tokens
    collective = all_reduce(payload, s.layout.token_group, s.layout.attention_groups)
    return Work(op_class="all-reduce", kernels=0, collective=collective, rows=s.tokens)


@once_a_step
def spread_to_shards(s: StepInput) -> Work:
    """[tokens, H] from the ranks that ran the FFN to the KV shards that idled (Medha); nothing where all ranks ran it.

    No rank sends it twice: the switch multicasts it, or each shard passes it on while it arrives. Written to each idle
    shard in turn, it would cost the owner KVP - 1 times as much.
    """
    x = s.layout
    payload = s.model.hidden_size * s.wire_bytes * s.tokens
    return sent(
        "broadcast",
        "broadcast",
        payload,
        1 + x.idle_shards,
        stride=x.tpa,
        blocks=x.attention_groups,
        rows=s.tokens,
    )


def gather_tokens(s: StepInput) -> Work:
    """All-gather of the other pooled groups' tokens in front of a dense FFN."""
    return _pool(s, "all-gather")


def scatter_sums(s: StepInput) -> Work:
    """Reduce-scatter of the partial sums back to the groups that own the tokens."""
    return _pool(s, "reduce-scatter")


def _pool(s: StepInput, kind: str) -> Work:
    x = s.layout
    payload = s.tokens * (x.pooled_groups - 1) * s.model.hidden_size * s.wire_bytes
    pools = floor_div(x.attention_groups, x.pooled_groups)
    return sent(kind, kind, payload, x.pooled_groups, stride=x.token_group, blocks=pools, rows=s.tokens)
