"""A decoder as its YAML file says it: its layers, and the kinds of attention and FFN that they are made of."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from helix_sim.specs.values import Count, NaturalCount, Number, Record, Text


class GqaAttention(Record):
    """Grouped-query attention: `kv_heads` heads of keys and values, shared by q_heads / kv_heads queries each."""

    kind: Literal["gqa"]
    q_heads: Count
    kv_heads: Count
    head_size: Count

    @model_validator(mode="after")
    def _heads_divide(self) -> Self:
        if self.q_heads % self.kv_heads:
            raise ValueError(f"q_heads {self.q_heads} is not a multiple of kv_heads {self.kv_heads}")
        return self

    @property
    def cache_width(self) -> int:
        """Values cached per token and KV head: a key and a value."""
        return 2 * self.head_size

    @property
    def score_width(self) -> int:
        """Dimensions of one query-key product."""
        return self.head_size

    @property
    def value_width(self) -> int:
        """Dimensions of one head's (partial) attention output."""
        return self.head_size

    @property
    def output_width(self) -> int:
        """Dimensions of one head's input to the output projection."""
        return self.head_size

    def parameters(self, hidden_size: int) -> int:
        """Weights of the attention block of one layer."""
        return hidden_size * self.head_size * (2 * self.q_heads + 2 * self.kv_heads)


class MlaAttention(Record):
    """Multi-head latent attention, decoded in its absorbed form: one latent per token, shared by all heads."""

    kind: Literal["mla"]
    q_heads: Count
    q_lora_rank: Count
    kv_lora_rank: Count
    rope_width: Count
    nope_width: Count
    output_width: Count

    @property
    def kv_heads(self) -> int:
        """One latent serves every query head."""
        return 1

    @property
    def cache_width(self) -> int:
        """Values cached per token: the latent and the rotary key."""
        return self.kv_lora_rank + self.rope_width

    @property
    def score_width(self) -> int:
        """Dimensions of one absorbed query-key product."""
        return self.kv_lora_rank + self.rope_width

    @property
    def value_width(self) -> int:
        """Dimensions of one head's attention output, still in latent space."""
        return self.kv_lora_rank

    def parameters(self, hidden_size: int) -> int:
        """Weights of the attention block of one layer, with the norms of its two latents."""
        down = hidden_size * (self.q_lora_rank + self.cache_width)
        q_up = self.q_lora_rank * self.q_heads * (self.nope_width + self.rope_width)
        kv_up = self.kv_lora_rank * self.q_heads * (self.nope_width + self.output_width)
        return (
            down + q_up + kv_up + self.q_heads * self.output_width * hidden_size + self.q_lora_rank + self.kv_lora_rank
        )


class Experts(Record):
    """Routed and shared experts of a mixture-of-experts (MoE) layer, each a gated FFN."""

    routed: Count
    top_k: Count
    intermediate_size: Count
    shared: NaturalCount = 0
    shared_intermediate_size: NaturalCount = 0
    routing_skew: Annotated[Number, Field(ge=0, le=4)] = 0.0
    """Exponent of the power law of expert popularity; 0 is uniform routing."""

    @model_validator(mode="after")
    def _top_k_fits(self) -> Self:
        if self.top_k > self.routed:
            raise ValueError(f"top_k {self.top_k} is more than the {self.routed} routed experts")
        if self.shared and not self.shared_intermediate_size:
            raise ValueError("shared experts need shared_intermediate_size, the width of each")
        return self


class Model(Record):
    """A decoder: its attention, its dense layers and its MoE layers."""

    kind: Literal["model"]
    name: Text
    source: Text
    published_parameters_B: Annotated[Number, Field(gt=0)]
    hidden_size: Count
    vocab_size: Count
    tied_embeddings: bool = False
    attention: Annotated[GqaAttention | MlaAttention, Field(discriminator="kind")]
    dense_layers: NaturalCount
    dense_intermediate_size: NaturalCount = 0
    moe_layers: NaturalCount = 0
    experts: Experts | None = None

    @model_validator(mode="after")
    def _layers_are_described(self) -> Self:
        if self.layers == 0:
            raise ValueError("dense_layers and moe_layers are both 0: the model has no layer")
        if self.dense_layers and not self.dense_intermediate_size:
            raise ValueError(f"{self.dense_layers} dense_layers need dense_intermediate_size")
        if bool(self.moe_layers) != (self.experts is not None):
            raise ValueError("moe_layers and experts go together: give both, or neither")
        return self

    @property
    def layers(self) -> int:
        """Decoder layers of any kind."""
        return self.dense_layers + self.moe_layers

    def parameters(self) -> dict[str, int]:
        """Parameters by group; they sum to the model's published count."""
        h, moe = self.hidden_size, self.experts
        return {
            "embedding": self.vocab_size * h,
            "head": 0 if self.tied_embeddings else self.vocab_size * h,
            "norms": h * (2 * self.layers + 1),
            "attention": self.layers * self.attention.parameters(h),
            "dense FFN": self.dense_layers * 3 * h * self.dense_intermediate_size,
            "routed experts": self.moe_layers * moe.routed * 3 * h * moe.intermediate_size if moe else 0,
            "shared experts": self.moe_layers * moe.shared * 3 * h * moe.shared_intermediate_size if moe else 0,
            "router": self.moe_layers * moe.routed * h if moe else 0,
        }

    @property
    def total_parameters(self) -> int:
        """All parameters, without multi-token-prediction modules."""
        return sum(self.parameters().values())

    @property
    def kv_values_per_token(self) -> int:
        """Values cached per token and layer: 2·K·Hsz, or the latent of MLA."""
        return self.attention.kv_heads * self.attention.cache_width
