"""Matrix products: one weight matrix, several of them side by side, or the experts of a grouped product.

Every product of a step, and every row of a public table of products, is made here.
"""

from __future__ import annotations

from typing import Any

from helix_sim.core.numeric import Column
from helix_sim.core.work import Work
from helix_sim.ops.step_input import StepInput

PROJECTION: Any = {"weights": "attention_weights", "math": "projection_math"}
"""Tensors of the projections of attention but the last."""
OUTPUT: Any = {"weights": "output_weights", "math": "output_math"}
"""Tensors of attention's output projection."""
DENSE: Any = {"weights": "dense_weights", "math": "dense_math"}
"""Tensors of a dense layer's feed-forward network."""
SHARED: Any = {"weights": "shared_weights", "math": "shared_math"}
"""Tensors of the shared experts."""
BATCHED: Any = {"op_class": "batched-gemm"}
"""Many small products side by side, one a head."""


def matmul(
    s: StepInput,
    *,
    rows: Column,
    inner: Column,
    outer: Column,
    weights: str = "weights",
    math: str = "math",
    op_class: str = "gemm",
    copies: Column = 1,
) -> Work:
    """[rows, inner] x [inner, outer], `copies` times with different weights: 2·m·k·n FLOP, weights read once."""
    return Work(
        op_class=op_class,
        flops=2 * copies * inner * outer * rows,
        weight_bytes=copies * inner * outer * s.precision.bytes_of(weights),
        activation_bytes=s.activation_bytes * copies * (inner + outer) * rows,
        math=s.precision.format_of(math),
        weights=s.precision.format_of(weights),
        rows=rows,
        inner=inner,
        outer=outer,
        copies=copies,
    )


def grouped_matmul(
    s: StepInput, *, pairs: Column, held: Column, read: Column, arrived: Column, inner: Column, outer: Column
) -> Work:
    """Each of `pairs` token-expert pairs through its expert's [inner, outer], on a rank that holds `held` experts.

    2·pairs·k·n FLOP; of the experts it holds only those that a token picked, `read`, are read; the rest stay resident.
    arrived: tokens that the pairs belong to, where a dispatch brings no others.
    """
    expert_bytes = inner * outer * s.precision.bytes_of("routed_weights")
    return Work(
        op_class="grouped-gemm",
        flops=2 * inner * outer * pairs,
        weight_bytes=read * expert_bytes,
        idle_weight_bytes=(held - read) * expert_bytes,
        activation_bytes=s.activation_bytes * (inner + outer) * pairs,
        math=s.precision.format_of("routed_math"),
        weights=s.precision.format_of("routed_weights"),
        rows=pairs,
        inner=inner,
        outer=outer,
        copies=held,
        experts_read=read,
        tokens=s.stage_tokens,
        arrived=arrived,
    )
