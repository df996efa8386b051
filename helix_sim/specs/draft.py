"""A way to draft as its YAML file says it: what runs between two verifications, and how much of it is accepted."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

import numpy as np
from pydantic import Field, model_validator

from helix_sim.core.numeric import Column, smaller
from helix_sim.specs.model import Attention, Entry, Ffn
from helix_sim.specs.precision import Precision
from helix_sim.specs.values import (
    SOURCE,
    Count,
    MathFormat,
    Name,
    NamesFiles,
    NaturalCount,
    Number,
    NumberFormat,
    Record,
    Source,
    Text,
    WholeQuantity,
    Word,
)

MOST_DRAFTS = 64
"""Draft tokens of a step, at most: far beyond what any chain of drafts pays."""


class Acceptance(Record):
    """Tokens that a step yields with n drafts: those accepted, and the one that verification itself always gives."""

    lengths: Annotated[list[Number], Field(min_length=1, max_length=MOST_DRAFTS)] | None = Field(
        default=None, description="mean tokens of a step with 1, 2, … drafts, the verification's own among them [list]"
    )
    probabilities: Annotated[list[Annotated[Number, Field(ge=0, le=1)]], Field(min_length=1)] | None = Field(
        default=None,
        description="share of drafts that are accepted where all before them were, by position; the last holds for all "
        "further positions [list of shares]",
    )
    source: Source = Field(
        description="where it comes from: datasheet, measured or assumed, then which, with a public one's URL [text]"
    )

    @model_validator(mode="after")
    def _one_of_two(self) -> Self:
        if (self.lengths is None) == (self.probabilities is None):
            raise ValueError("give lengths or probabilities, one of the two")
        for n, length in enumerate(self.lengths or [], 1):
            if not 1 <= length <= n + 1:
                raise ValueError(f"lengths: a step of {n} drafts yields 1 to {n + 1} tokens, not {length:g}")
        return self

    @property
    def longest(self) -> int:
        """Drafts of a step up to which the acceptance is known."""
        return len(self.lengths) if self.lengths else MOST_DRAFTS

    def tokens(self, drafts: Column) -> Any:
        """Mean tokens of a step with that many drafts: 1 with none, and 1 + p1 + p1·p2 + … by probabilities.

        >>> float(Acceptance(probabilities=[0.5], source="assumed: an example").tokens(2))
        1.75
        """
        if self.lengths:
            curve = [1.0, *self.lengths]
        else:
            given = self.probabilities or []
            shares = given + given[-1:] * (MOST_DRAFTS - len(given))
            curve = [1.0, *(1.0 + np.cumsum(np.cumprod(shares)))]
        return np.asarray(curve)[np.asarray(drafts, dtype=np.intp)]

    def scale(self, factor: float) -> Self:
        """The acceptance with `factor` times as many drafts accepted of each length, at most all of them."""
        if factor == 1:
            return self
        drafts = np.arange(1, self.longest + 1)
        more = smaller(1 + factor * (self.tokens(drafts) - 1), drafts + 1)
        source = f"assumed: {factor:g} times as many drafts accepted as in ({self.source})"
        return self.model_copy(update={"lengths": more.tolist(), "probabilities": None, "source": source})


class DraftFormats(Record):
    """Number formats of a draft's own layers in place of the model's, with where they come from."""

    weights: NumberFormat = Field(description="weights of its layers in memory [format]")
    math: MathFormat = Field(description="arithmetic of its layers' products [format]")
    source: Source = Field(description=SOURCE)

    def within(self, precision: Precision) -> Precision:
        """A model's formats with these in its layers: cache, attention core, head, activations and wire are its own."""
        kept = ("kv", "wire", "activations", "attention_math", "head_weights", "head_math", "embedding_weights")
        formats = {name: precision.format_of(name) for name in kept}
        return Precision.model_validate({**formats, "weights": self.weights, "math": self.math})


class LargeBatches(Record):
    """What deployments draft for attention groups of many requests."""

    requests: Count = Field(description="requests of an attention group from which that holds [requests]")
    draft_tokens: WholeQuantity = Field(description="drafts of a step [tokens]")


class Served(Record):
    """How published deployments of a framework draft: how long, and what is known of their acceptance."""

    draft_tokens: WholeQuantity = Field(description="drafts of a step [tokens]")
    large_batches: LargeBatches | None = Field(
        default=None, description="where groups of many requests draft less; as the others if absent [mapping]"
    )
    acceptance: Acceptance | None = Field(
        default=None, description="what of their drafts is accepted, where it differs from the draft's own [mapping]"
    )

    def drafts(self, requests: float) -> int:
        """Drafts of a step of attention groups that are set up for so many requests."""
        large = self.large_batches
        return large.draft_tokens.value if large and requests >= large.requests else self.draft_tokens.value


class Draft(NamesFiles):
    """A way to draft for a model: its own layers, or a model of its own, and what of its drafts is accepted.

    A chain: each draft follows from the one before it. `mtp` is the multi-token-prediction module of a checkpoint, run
    again for each draft; `eagle3` a trained layer with a head of its own, fed with states of the model's layers;
    `dspark` trained layers that draft a block at once, each draft then corrected by the one before it; `external`
    another model.
    """

    kind: Literal["draft"] = Field(description="what the file is: draft [name]")
    name: Name = Field(description="the draft's name [text]")
    method: Literal["mtp", "eagle3", "dspark", "external"] = Field(description="how it drafts [name]")
    target: Text = Field(description="name of the model that it drafts for [name]")
    source: Text = Field(description="where its layers are described, such as the config's address [text]")
    model: Text | None = Field(
        default=None, description="of an external draft: a shipped model, or the path of a model's file [name]"
    )
    fused_states: NaturalCount = Field(
        default=0,
        description="states as wide as the model's that a projection makes one of, in front of the layers: 2 of MTP, "
        "the model's state and the token's embedding; 3 of EAGLE-3, states of three layers; 0 is none [count]",
    )
    attention: dict[Word, Attention] = Field(
        default={}, description="its own kinds of attention by name; layers may name the model's as well [mapping]"
    )
    ffn: dict[Word, Ffn] = Field(
        default={}, description="its own kinds of feed-forward network by name; the model's as well [mapping]"
    )
    layers: list[Entry] = Field(default=[], description="its layers in order, as a model's [list]")
    own_head: bool = Field(
        default=False, description="whether its head has weights of its own, beside the model's [yes or no]"
    )
    vocab_size: Count | None = Field(
        default=None, description="tokens that its head chooses among; the model's vocabulary if absent [count]"
    )
    formats: dict[NumberFormat, DraftFormats] = Field(
        default={},
        description="number formats of its layers, by the format of the model's weights beside which they are stored "
        "so; the model's own where none is given [mapping]",
    )
    markov_rank: NaturalCount = Field(
        default=0,
        description="width between the two matrices by which dspark corrects a draft's logits from the draft before "
        "it: vocabulary x rank, rank x vocabulary [values]",
    )
    acceptance: Acceptance = Field(description="what of its drafts is accepted [mapping]")
    served: dict[Text, Served] = Field(
        default={}, description="how published deployments draft, by framework, such as trtllm [mapping]"
    )

    def precision(self, precision: Precision) -> Precision:
        """The formats of its layers beside a model in `precision`."""
        own = self.formats.get(precision.weights)
        return own.within(precision) if own else precision

    @model_validator(mode="after")
    def _layers_or_model(self) -> Self:
        if (self.method == "external") != (self.model is not None):
            raise ValueError("an external draft names its model, and no other does")
        if (self.model is None) != bool(self.layers):
            raise ValueError("give layers, or the model of an external draft")
        if (self.method == "dspark") != bool(self.markov_rank):
            raise ValueError("dspark has a markov_rank, and no other method does")
        if self.vocab_size and not self.own_head:
            raise ValueError("vocab_size is of a head of its own: say own_head: yes, or leave it out")
        return self
