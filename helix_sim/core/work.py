"""Work: what one op asks of one GPU. The only currency between the equations and the timing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from helix_sim.core.collectives import Collective
from helix_sim.core.numeric import Column, total

COMPUTE_CLASSES = (
    "attention-gqa",
    "attention-mla",
    "attention-window",
    "attention-block-sparse",
    "attention-sparse",
    "attention-compressed",
    "index-logits",
    "index-top-k",
    "linear-state",
    "convolution",
    "gemm",
    "grouped-gemm",
    "batched-gemm",
    "elementwise",
    "pointwise",
    "grouped-pointwise",
)
"""Kinds of kernel that a calibration tells apart. An elementwise kernel reduces over a row (norm, top-k, combine); a
pointwise one (RoPE, activation) can ride in the epilogue of its neighbour; a grouped pointwise one (the activation of
routed experts) stands between the two products of a fused MoE kernel."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """One op on the busiest GPU, once: matrix-multiply FLOP, HBM bytes by tensor, kernels, and what it sends.

    An op is `pieces` equal launches after another (HOP-B chunks): totals are over all pieces, and each piece pays its
    own latency. How often it runs in a step is the step's to say.

    The last fields are the sizes that decide how well a real kernel fills a GPU; only calibrated timings read them:

    | op         | rows               | inner, outer       | copies          | others                                |
    |------------|--------------------|--------------------|-----------------|---------------------------------------|
    | matmul     | m                  | k, n               | weight matrices |                                       |
    | grouped    | token-expert pairs | k, n               | experts here    | experts_read: those with a token;     |
    |            |                    |                    |                 | tokens: of all groups; arrived: those |
    |            |                    |                    |                 | of them that picked an expert here;   |
    |            |                    |                    |                 | brought_by: what sends them; in_turns |
    | attention  | requests           | score, value width | KV heads        | heads: of queries; tokens: cached     |
    | index-top-k | choices           |                 |                 | tokens: scores of each                |
    | collective | tokens             |                    |                 | needed: share of others' that is sent;|
    |            |                    |                    |                 | heads: whose partial outputs are sent;|
    |            |                    |                    |                 | in_turns: tokens of a microbatch,     |
    |            |                    |                    |                 | which no framework gathers            |

    part, part_of: what the op is called as a part of another class's kernel, which may have been measured with it.
    """

    op_class: str
    flops: Column = 0
    weight_bytes: Column = 0
    kv_bytes: Column = 0
    activation_bytes: Column = 0
    kernels: Column = 1
    pieces: Column = 1
    collective: Collective | None = None
    math: str = "bf16"
    weights: str = "bf16"
    idle_weight_bytes: Column = 0
    rows: Column = 1
    inner: Column = 1
    outer: Column = 1
    copies: Column = 1
    experts_read: Column = 1
    heads: Column = 1
    tokens: Column = 1
    arrived: Column | None = None
    brought_by: Collective | None = None
    in_turns: bool = False
    needed: Column = 1
    part: str | None = None
    part_of: str | None = None

    @property
    def hbm_bytes(self) -> Any:
        """Bytes read from and written to HBM, whatever the tensor."""
        return total(self.weight_bytes, self.kv_bytes, self.activation_bytes)

    @property
    def resident_weight_bytes(self) -> Any:
        """Bytes of weights the op keeps in memory: those it reads in a step, and the experts that sit idle."""
        return total(self.weight_bytes, self.idle_weight_bytes)

    @property
    def link_bytes(self) -> Any:
        """Bytes that the busiest rank sends, in the form of the collective that sends least."""
        return 0 if self.collective is None else self.collective.link_bytes
