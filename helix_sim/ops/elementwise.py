"""Kernels that pass over memory once: norms, activations, the choice of experts."""

from __future__ import annotations

from helix_sim.core.numeric import Column
from helix_sim.core.work import Work
from helix_sim.ops.step_input import StepInput, once_a_step


def memory_pass(op_class: str, *, moved_bytes: Column, rows: Column, kernels: Column = 1) -> Work:
    """One pass over `moved_bytes` of HBM, reads and writes together, for `rows` rows. Its FLOP are not counted."""
    return Work(op_class=op_class, activation_bytes=moved_bytes, rows=rows, kernels=kernels)


def row_norm(s: StepInput, *, width: Column, tensors: int = 1, kernels: Column = 1) -> Work:
    """RMSNorm: reads and writes each of `tensors` rows of that width."""
    moved = 2 * tensors * s.activation_bytes * width * s.tokens
    return memory_pass("elementwise", moved_bytes=moved, rows=s.tokens, kernels=kernels)


@once_a_step
def hidden_norm(s: StepInput) -> Work:
    """The norm in front of a block, on the full [tokens, H] of the group, on every rank: of the row and the residual.

    It runs inside the kernel of the all-reduce before it, as serving stacks do, and is a kernel of its own only where
    one GPU holds the group's tokens and there is no all-reduce.
    """
    return row_norm(s, width=s.model.hidden_size, tensors=2, kernels=(s.layout.token_group == 1) * 1)


def gated_activation(s: StepInput, rows: Column, width: Column, op_class: str = "pointwise", read: int = 2) -> Work:
    """SiLU(gate)·up: two rows of that width read, one written; where nothing gates, `read` 1: one row of up alone."""
    return memory_pass(op_class, moved_bytes=(read + 1) * s.activation_bytes * width * rows, rows=rows)
