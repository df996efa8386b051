"""Number formats of weights, KV cache, arithmetic and wire."""

from __future__ import annotations

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

    weights: NumberFormat
    kv: NumberFormat
    math: MathFormat
    wire: NumberFormat = "bf16"
    activations: NumberFormat = "bf16"
    attention_weights: NumberFormat | None = None
    attention_math: MathFormat | None = None
    projection_math: MathFormat | None = None
    output_weights: NumberFormat | None = None
    """Of the attention's output projection, which checkpoints may quantise where they leave the others in BF16."""
    output_math: MathFormat | None = None
    head_weights: NumberFormat | None = None
    head_math: MathFormat | None = None
    dispatch: NumberFormat | None = None

    def format_of(self, tensor: str) -> str:
        """The format of a tensor or an arithmetic, following its default where the file is silent."""
        if tensor == "router_math":
            return "bf16"
        named: str | None = None if tensor == "router_weights" else getattr(self, tensor)
        return named or self.format_of(FOLLOWS[tensor])

    def bytes_of(self, tensor: str) -> float:
        """Bytes a value of that tensor takes, block scales included."""
        return bytes_per_value(self.format_of(tensor))
