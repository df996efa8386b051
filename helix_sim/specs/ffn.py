"""Kinds of feed-forward network: what their equations need, in widths and counts, as a model's YAML file says it."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from helix_sim.specs.values import LIMIT, SOURCE, Count, NaturalCount, Number, Record, Source


class FeedForward(Record):
    """What feed-forward networks have in common: projections into the inner width, and one out of it."""

    gated: bool | None = Field(
        default=None,
        description="whether a gate projection stands beside the one up, as SwiGLU has it and squared ReLU has not; "
        "yes if absent [yes or no]",
    )

    @property
    def projections_in(self) -> int:
        """Matrices from the residual stream into the inner width: gate and up, or up alone."""
        return 1 if self.gated is False else 2


class DenseFfn(FeedForward):
    """A feed-forward network that every token passes: gate and up projection, or up alone, and down projection."""

    kind: Literal["dense"] = Field(description="type of the feed-forward network: dense [name]")
    intermediate_size: Count = Field(description="inner width, F in the paper [values]")

    @property
    def narrowest(self) -> int:
        """The inner width that tpf cuts."""
        return self.intermediate_size

    def parameters(self, hidden_size: int) -> dict[str, int]:
        """Weights of one layer's FFN, by group."""
        return {"dense FFN": (self.projections_in + 1) * hidden_size * self.intermediate_size}


class Placement(Record):
    """How experts come to lie on the ranks of expert parallelism, and where that comes from."""

    value: Literal["random", "balanced"] = Field(
        description="random: whatever their popularity; balanced: packed by it, as EPLB does [name]"
    )
    source: Source = Field(description=SOURCE)


class RepeatedExperts(Record):
    """How far the tokens of one request go to the same experts, and where that comes from."""

    value: Annotated[Number, Field(ge=0, le=1)] = Field(
        description="share of a token's experts that it repeats from the token before it, beyond chance [share]"
    )
    source: Source = Field(description=SOURCE)


class RoutedFfn(FeedForward):
    """Routed and shared experts of a mixture-of-experts (MoE) layer, each a feed-forward network."""

    kind: Literal["routed"] = Field(description="type of the feed-forward network: routed [name]")
    routed: Count = Field(description="experts among which the router chooses [count]")
    top_k: Count = Field(description="experts that each token is sent to [count]")
    intermediate_size: Count = Field(description="inner width of one routed expert [values]")
    shared: NaturalCount = Field(default=0, description="experts that every token passes [count]")
    shared_intermediate_size: NaturalCount = Field(default=0, description="inner width of one shared expert [values]")
    latent_size: Count | None = Field(
        default=None,
        description="width into which a token is projected for its routed experts, and out of which their sum comes; "
        "they see the residual stream if absent [values]",
    )
    routing_skew: Annotated[Number, Field(ge=0, le=4)] = Field(
        default=0.0, description="exponent of the power law of expert popularity; 0 is uniform routing [number]"
    )
    routing_source: Source | None = Field(
        default=None, description="where the popularity comes from: measured or assumed, then where [text]"
    )
    repeated: RepeatedExperts | None = Field(
        default=None,
        description="how far neighbouring tokens of a request go to the same experts, of which a step of several new "
        "tokens then reads fewer; each token chooses anew if absent [mapping]",
    )
    placement: Placement | None = Field(
        default=None, description="how experts come to lie on ranks; at random if absent [mapping]"
    )

    @model_validator(mode="after")
    def _top_k_fits(self) -> Self:
        if self.top_k > self.routed:
            raise ValueError(f"top_k {self.top_k} is more than the {self.routed} routed experts")
        if self.shared and not self.shared_intermediate_size:
            raise ValueError("shared experts need shared_intermediate_size, the width of each")
        return self

    @property
    def narrowest(self) -> int:
        """The inner width that tpf cuts."""
        return self.intermediate_size

    @property
    def chosen_anew(self) -> float:
        """Share of a token's experts that do not come from the token before it in its request."""
        return 1 - self.repeated.value if self.repeated else 1.0

    @property
    def balanced(self) -> bool:
        """Whether experts are packed by popularity, copies or not."""
        return self.placement is not None and self.placement.value == "balanced"

    def parameters(self, hidden_size: int) -> dict[str, int]:
        """Weights of one layer's FFN, by group."""
        matrices = self.projections_in + 1
        return {
            "routed experts": self.routed * matrices * self.expert_width(hidden_size) * self.intermediate_size,
            "shared experts": self.shared * matrices * hidden_size * self.shared_intermediate_size,
            "router": self.routed * hidden_size + 2 * hidden_size * (self.latent_size or 0),
        }

    def expert_width(self, hidden_size: int) -> int:
        """Values of a token that its routed experts see: the residual stream's, or the latent's."""
        return self.latent_size or hidden_size


class NoFfn(Record):
    """No feed-forward network: a layer that is attention alone."""

    kind: Literal["none"] = Field(description="type of the feed-forward network: none [name]")

    @property
    def narrowest(self) -> int:
        """Nothing that tpf cuts: as wide as can be."""
        return LIMIT

    def parameters(self, hidden_size: int) -> dict[str, int]:
        """No weights."""
        return {}


FfnKind = DenseFfn | RoutedFfn | NoFfn
