"""Number formats of weights, KV cache, arithmetic and wire."""

from __future__ import annotations

from pydantic import Field

from helix_sim.core.units import bytes_per_value
from helix_sim.specs.values import MathFormat, NumberFormat, Record

FOLLOWS = {
    "attention_weights": "weights",
    "head_weights": "weights",
    "attention_math": "math",
    "projection_math": "math",
    "output_weights": "attention_weights",
    "output_math": "projection_math",
    "head_math": "math",
    "dispatch": "wire",
    "router_weights": "activations",
}
"""Which format a tensor or an arithmetic has where the file is silent."""


class Precision(Record):
    """Number formats of weights, KV cache, arithmetic and wire; the optional ones follow the first four."""

    weights: NumberFormat = Field(description="weights in memory, those of every product unless said below [format]")
    kv: NumberFormat = Field(description="the KV cache in memory [format]")
    math: MathFormat = Field(description="arithmetic of every product unless said below [format]")
    wire: NumberFormat = Field(default="bf16", description="activations on a link [format]")
    activations: NumberFormat = Field(
        default="bf16", description="activations in memory, and the router's weights [format]"
    )
    attention_weights: NumberFormat | None = Field(
        default=None, description="weights of attention's projections; those of `weights` unless given [format]"
    )
    attention_math: MathFormat | None = Field(
        default=None, description="arithmetic of the attention core; that of `math` unless given [format]"
    )
    projection_math: MathFormat | None = Field(
        default=None, description="arithmetic of attention's projections; that of `math` unless given [format]"
    )
    output_weights: NumberFormat | None = Field(
        default=None,
        description="weights of attention's output projection, which checkpoints may quantise where they leave the "
        "others in BF16; those of `attention_weights` unless given [format]",
    )
    output_math: MathFormat | None = Field(
        default=None, description="arithmetic of the output projection; that of `projection_math` unless given [format]"
    )
    head_weights: NumberFormat | None = Field(
        default=None, description="weights of the LM head and the embedding; those of `weights` unless given [format]"
    )
    head_math: MathFormat | None = Field(
        default=None, description="arithmetic of the LM head; that of `math` unless given [format]"
    )
    dispatch: NumberFormat | None = Field(
        default=None, description="tokens on their way to their experts; that of `wire` unless given [format]"
    )

    def format_of(self, tensor: str) -> str:
        """The format of a tensor or an arithmetic, following its default where the file is silent."""
        if tensor == "router_math":
            return "bf16"
        named: str | None = None if tensor == "router_weights" else getattr(self, tensor)
        return named or self.format_of(FOLLOWS[tensor])

    def bytes_of(self, tensor: str) -> float:
        """Bytes a value of that tensor takes, block scales included."""
        return bytes_per_value(self.format_of(tensor))
