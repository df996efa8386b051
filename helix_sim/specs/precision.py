"""Number formats of weights, KV cache, arithmetic and wire, tensor by tensor."""

from __future__ import annotations

from functools import cached_property
from typing import Any

from pydantic import Field

from helix_sim.core.units import bytes_per_value
from helix_sim.specs.machine import Machine
from helix_sim.specs.values import MathFormat, NumberFormat, Record, Text

FOLLOWS = {
    "attention_weights": "weights",
    "routed_weights": "weights",
    "shared_weights": "weights",
    "dense_weights": "weights",
    "head_weights": "weights",
    "attention_math": "math",
    "projection_math": "math",
    "routed_math": "math",
    "shared_math": "math",
    "dense_math": "math",
    "output_weights": "attention_weights",
    "output_math": "projection_math",
    "head_math": "math",
    "embedding_weights": "head_weights",
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
    activations: NumberFormat = Field(default="bf16", description="activations in memory [format]")
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
    router_weights: NumberFormat | None = Field(
        default=None, description="weights of the router; in the format of `activations` unless given [format]"
    )
    routed_weights: NumberFormat | None = Field(
        default=None, description="weights of the routed experts; those of `weights` unless given [format]"
    )
    routed_math: MathFormat | None = Field(
        default=None, description="arithmetic of the routed experts; that of `math` unless given [format]"
    )
    shared_weights: NumberFormat | None = Field(
        default=None, description="weights of the shared experts; those of `weights` unless given [format]"
    )
    shared_math: MathFormat | None = Field(
        default=None, description="arithmetic of the shared experts; that of `math` unless given [format]"
    )
    dense_weights: NumberFormat | None = Field(
        default=None, description="weights of dense layers' FFNs; those of `weights` unless given [format]"
    )
    dense_math: MathFormat | None = Field(
        default=None, description="arithmetic of dense layers' FFNs; that of `math` unless given [format]"
    )
    head_weights: NumberFormat | None = Field(
        default=None, description="weights of the LM head; those of `weights` unless given [format]"
    )
    head_math: MathFormat | None = Field(
        default=None, description="arithmetic of the LM head; that of `math` unless given [format]"
    )
    embedding_weights: NumberFormat | None = Field(
        default=None, description="the embedding's table; that of `head_weights` unless given [format]"
    )
    dispatch: NumberFormat | None = Field(
        default=None, description="tokens on their way to their experts; that of `wire` unless given [format]"
    )

    def format_of(self, tensor: str) -> str:
        """The format of a tensor or an arithmetic, following its default where the file is silent."""
        return self.formats[tensor]

    @cached_property
    def formats(self) -> dict[str, str]:
        """The format of every tensor and arithmetic by name, defaults followed."""

        def found(tensor: str) -> str:
            named: str | None = getattr(self, tensor)
            return named or found(FOLLOWS[tensor])

        return {**{tensor: found(tensor) for tensor in type(self).model_fields}, "router_math": "bf16"}

    def bytes_of(self, tensor: str) -> float:
        """Bytes a value of that tensor takes, block scales included."""
        return bytes_per_value(self.format_of(tensor))

    def __str__(self) -> str:
        """The formats in one line: weights, KV and arithmetic, then each tensor that differs from what it follows.

        >>> str(Precision(weights="nvfp4", kv="fp8", math="fp4", head_weights="bf16", head_math="bf16"))
        'weights nvfp4, KV fp8, math fp4, wire bf16; head weights bf16, head math bf16'
        """
        others = [
            f"{name.replace('_', ' ')} {self.format_of(name)}"
            for name, followed in FOLLOWS.items()
            if self.format_of(name) != self.format_of(followed)
        ]
        return "; ".join(
            filter(
                None, (f"weights {self.weights}, KV {self.kv}, math {self.math}, wire {self.wire}", ", ".join(others))
            )
        )


class StoredFormats(Precision):
    """The number formats of a published checkpoint, as its config says them."""

    source: Text = Field(description="the checkpoint, or the config that says so, such as its address [text]")

    @property
    def said(self) -> dict[str, Any]:
        """The formats that the file says, by name."""
        return self.model_dump(exclude_none=True, exclude_unset=True, exclude={"source"})


def narrowest_precision(machine: Machine) -> Precision:
    """The narrowest arithmetic of the machine for weights, KV cache and products; BF16 on the wire."""
    narrow = machine.math_formats[0]
    return Precision.model_validate({"weights": narrow, "kv": narrow, "math": narrow})
