"""Linear attention: a state of each request instead of a cache (gated delta nets, KDA, lightning attention, Mamba-2).

Every equation is of a step whose heads are dealt over all ranks that share a group's tokens (`head_parallel`): a state
is not sharded by sequence. Value heads are dealt with the key head that they share, as query heads with a KV head.
"""

from __future__ import annotations

from typing import Any

from helix_sim.core.numeric import smaller
from helix_sim.core.units import bytes_per_value
from helix_sim.core.work import Work
from helix_sim.ops.attention import head_parallel, kv_heads_per_rank, q_heads_per_rank
from helix_sim.ops.elementwise import memory_pass
from helix_sim.ops.matmul import PROJECTION, matmul
from helix_sim.ops.step_input import StepInput
from helix_sim.specs.attention import LinearAttention

MOST_STATES = 16
"""States of a request that a step keeps, at most: one for each new token, to go back to where a draft is rejected.

Assumed. Drafts are shorter; a chunk of prefill needs its last state alone, beside which these are little.
"""


def states_kept(s: StepInput) -> Any:
    """States of a request that a step leaves behind: one after each new token, so that a draft can be taken back.

    As SGLang and vLLM keep them when they verify drafts; 16 at most, for a chunk of prefill.
    """
    return smaller(s.query_tokens, MOST_STATES)


def channels_per_rank(s: StepInput, a: LinearAttention) -> Any:
    """Values of a token that pass the convolution on a rank: queries and keys of its key heads, values of its own."""
    return 2 * kv_heads_per_rank(s, a) * a.key_width + q_heads_per_rank(s, a) * a.value_width


def matrix_bytes(s: StepInput, a: LinearAttention) -> Any:
    """One request's matrices on a rank, once."""
    return q_heads_per_rank(s, a) * a.key_width * a.value_width * bytes_per_value(a.state_format)


def state_bytes(s: StepInput, a: LinearAttention) -> Any:
    """State of one layer and one request on the fullest rank, of every new token of a step; the context is not in it.

    Matrices, and the inputs of the convolution that the next token needs.
    """
    t, kept = head_parallel(s), states_kept(s)
    inputs = (a.conv_tokens + kept - 2) * (a.conv_tokens > 1) * channels_per_rank(t, a)
    return kept * matrix_bytes(t, a) + inputs * s.activation_bytes


def linear_projection(s: StepInput, a: LinearAttention) -> Work:
    """H x (queries, keys, values, output gate, numbers of each head) of a rank's heads; the decays' latent is whole."""
    heads = q_heads_per_rank(s, a)
    outer = channels_per_rank(s, a) + heads * (a.value_width * a.output_gate + a.head_gates) + (a.decay_rank or 0)
    return matmul(s, rows=s.tokens, inner=s.model.hidden_size, outer=outer, **PROJECTION)


def decay_projection(s: StepInput, a: LinearAttention) -> Work:
    """KDA: the decays' latent to a decay of each channel of a rank's keys."""
    outer = kv_heads_per_rank(s, a) * a.key_width
    return matmul(s, rows=s.tokens, inner=a.decay_rank or 0, outer=outer, **PROJECTION)


def convolution(s: StepInput, a: LinearAttention) -> Work:
    """The short convolution over time: each channel of the new tokens with the inputs that the state keeps.

    Its multiplications are one for each of `conv_tokens` a channel: not counted, as those of norms are not.
    """
    channels, kept = channels_per_rank(s, a), states_kept(s)
    inputs = (a.conv_tokens - 1) + (a.conv_tokens + kept - 2)
    return Work(
        op_class="convolution",
        activation_bytes=2 * s.tokens * channels * s.activation_bytes,
        kv_bytes=s.layout.batch * inputs * channels * s.activation_bytes,
        rows=s.tokens,
    )


def state_update(s: StepInput, a: LinearAttention) -> Work:
    """The recurrence: each new token decays a head's matrix, adds key x value to it, and reads it with its query.

    bytes: B · (one state read, and one written for each new token) · (heads/N)·key·value·bytes_state
    FLOP:  2 · T · (heads/N)·key·value for each product with the matrix: two, and a third where the delta rule first
           reads what is under the key. A kernel that takes a chunk of prefill at once does more arithmetic than this.
    Activations: queries, keys, values, the numbers of each head and decay of each channel in, the output out.
    """
    heads, kept = q_heads_per_rank(s, a), states_kept(s)
    decays = kv_heads_per_rank(s, a) * a.key_width * (a.decay_rank is not None)
    values = channels_per_rank(s, a) + heads * (a.value_width + a.head_gates) + decays
    return Work(
        op_class="linear-state",
        flops=2 * (2 + a.delta_rule) * s.tokens * heads * a.key_width * a.value_width,
        kv_bytes=s.layout.batch * (1 + kept) * matrix_bytes(s, a),
        activation_bytes=s.tokens * values * s.activation_bytes,
        weights=a.state_format,
        rows=s.layout.batch,
        inner=a.key_width,
        outer=a.value_width,
        copies=heads,
        heads=heads * s.query_tokens,
        tokens=kept,
    )


def output_norm(s: StepInput, a: LinearAttention) -> Work:
    """Norm of each head's output, times the gate where there is one: rows read, one written."""
    rows = 2 + a.output_gate
    moved = rows * s.tokens * q_heads_per_rank(s, a) * a.value_width * s.activation_bytes
    return memory_pass("elementwise", moved_bytes=moved, rows=s.tokens)
