"""What a step is: requests, the new tokens of each, and the context that they attend to, on a layout of a model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from helix_sim.core.layout import Layout
from helix_sim.core.numeric import Column
from helix_sim.specs.model import Model
from helix_sim.specs.precision import Precision


@dataclass(frozen=True, slots=True, kw_only=True)
class StepInput:
    """What an equation may look at: one step of `model` in `precision`, sharded as `layout`.

    Every attention group runs `batch` requests of its layout, each with `query_tokens` new tokens over `context` cached
    ones, the new ones among them. Decoding is one new token, verifying a draft a few, a chunk of prefill thousands. The
    KV cache is read once a request; all else sees requests times new tokens.
    """

    model: Model
    precision: Precision
    layout: Layout
    context: Column
    query_tokens: Column = 1

    @property
    def tokens(self) -> Any:
        """New tokens of one attention group in this step: requests · new tokens of each."""
        return self.layout.batch * self.query_tokens

    @property
    def stage_tokens(self) -> Any:
        """New tokens of all attention groups of a pipeline stage: what its experts see."""
        return self.tokens * self.layout.dp

    @property
    def activation_bytes(self) -> float:
        """Bytes of one activation value in HBM."""
        return self.precision.bytes_of("activations")

    @property
    def wire_bytes(self) -> float:
        """Bytes of one activation value on a link."""
        return self.precision.bytes_of("wire")
