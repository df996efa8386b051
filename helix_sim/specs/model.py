"""A decoder as its YAML file says it: a list of layers, each a kind of attention and a kind of feed-forward network.

A kind is data: what its equations need, in widths and counts. `layers` lists runs of kinds in order, or a pattern that
repeats; two kinds of one type (a wide and a narrow attention, say) are two entries with two names.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from functools import cached_property
from itertools import groupby
from typing import Annotated, Any, Literal, Self

from pydantic import Discriminator, Field, Tag, model_validator

from helix_sim.core.text import said
from helix_sim.core.units import GIGA
from helix_sim.specs.precision import StoredFormats
from helix_sim.specs.values import (
    LIMIT,
    SOURCE,
    Count,
    MathFormat,
    Name,
    NaturalCount,
    Number,
    NumberFormat,
    Record,
    Source,
    Text,
    Word,
)


class Indexer(Record):
    """What chooses the keys that a query attends to: it scores every key with narrow queries, and keeps the best.

    A score is the sum over the index heads of their weighted products with one narrow key per token.
    """

    heads: Count = Field(description="index queries of a token [count]")
    width: Count = Field(description="dimensions of an index query, and of the one index key of a token [values]")
    key_bytes: Count = Field(description="cache of one index key, its scales included [bytes]")
    math: MathFormat = Field(description="arithmetic of the scores [format]")
    top_k: Count = Field(description="keys, or blocks of keys, that a query attends to [count]")
    block_tokens: Count = Field(
        default=1, description="neighbouring keys that are chosen together, by the best of their scores [tokens]"
    )

    @property
    def picked(self) -> int:
        """Keys that a query attends to, where there are as many."""
        return self.top_k * self.block_tokens


class HeadAttention(Record):
    """Attention whose heads of keys and values are cached whole, each shared by q_heads / kv_heads query heads."""

    kind: str = Field(description="type of the attention [name]")
    q_heads: Count = Field(description="query heads, Q in the paper [count]")
    kv_heads: Count = Field(description="heads of keys and values, K in the paper; 1 is multi-query attention [count]")
    head_size: Count = Field(description="dimensions of one head's query, key and value, Hsz in the paper [values]")
    sinks: bool | None = Field(
        default=None,
        description="whether each query head has a learned sink beside its scores; no if absent [yes or no]",
    )
    output_gate: bool | None = Field(
        default=None,
        description="whether a gate of the layer's input multiplies the heads' output; no if absent [yes or no]",
    )

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

    @property
    def kv_values_per_token(self) -> float:
        """Values by which one layer's cache of a request grows with a token, at any context."""
        return self.kv_heads * self.cache_width

    def parameters(self, hidden_size: int) -> int:
        """Weights of the attention block of one layer."""
        gate = self.q_heads * bool(self.output_gate)
        projections = hidden_size * self.head_size * (2 * self.q_heads + 2 * self.kv_heads + gate)
        return projections + self.q_heads * bool(self.sinks)


class GqaAttention(HeadAttention):
    """Grouped-query attention: `kv_heads` heads of keys and values, shared by q_heads / kv_heads queries each."""

    kind: Literal["gqa"] = Field(description="type of the attention: gqa [name]")


class WindowAttention(HeadAttention):
    """Grouped-query attention over the last tokens only: a window that slides, or chunks that follow each other.

    Its cache ends at the window. It runs tensor-parallel over all ranks that share a group's tokens, as layers beside
    Helix do in TensorRT-LLM (https://github.com/NVIDIA/TensorRT-LLM/pull/17796): a window is too short to shard.
    """

    kind: Literal["window"] = Field(description="type of the attention: window [name]")
    window_tokens: Count = Field(description="tokens that a query sees, itself among them [tokens]")
    chunked: bool | None = Field(
        default=None,
        description="whether a query sees its chunk from its start instead of a window; no if absent [yes or no]",
    )

    @property
    def kv_values_per_token(self) -> float:
        """Nothing: past the window the cache does not grow."""
        return 0


class BlockSparseAttention(HeadAttention):
    """Grouped-query attention over the blocks of keys that an indexer picks for each KV head's queries (MiniMax's MSA).

    The index heads are dealt to ranks with the KV heads; all of them share one index key per token.
    """

    kind: Literal["block-sparse"] = Field(description="type of the attention: block-sparse [name]")
    indexer: Indexer = Field(description="what picks the blocks [mapping]")

    @model_validator(mode="after")
    def _index_heads_are_kv_heads(self) -> Self:
        if self.indexer.heads != self.kv_heads:
            raise ValueError(f"indexer.heads {self.indexer.heads} is not kv_heads {self.kv_heads}: each picks for one")
        return self

    @property
    def ratio(self) -> int:
        """Tokens that leave one index key: each its own."""
        return 1

    @property
    def kv_values_per_token(self) -> float:
        """Values by which one layer's cache of a request grows with a token: keys, values and an index key."""
        return self.kv_heads * self.cache_width + self.indexer.width

    def parameters(self, hidden_size: int) -> int:
        """Weights of the attention block of one layer, the index projection among them."""
        index = hidden_size * self.indexer.width * (self.indexer.heads + 1)
        return HeadAttention.parameters(self, hidden_size) + index


class LatentAttention(Record):
    """Attention whose keys and values of all heads are cached as one latent, decoded in its absorbed form."""

    kind: str = Field(description="type of the attention [name]")
    q_heads: Count = Field(description="query heads, Q in the paper [count]")
    q_lora_rank: NaturalCount = Field(
        description="width of the query's latent; 0 where queries come from the residual stream [values]"
    )
    kv_lora_rank: Count = Field(description="width of the latent that is cached for keys and values [values]")
    rope_width: Count = Field(description="width of the rotary key that is cached beside the latent [values]")
    nope_width: Count = Field(description="width of a head's query and key without position [values]")
    output_width: Count = Field(description="width of a head's value, its input to the output projection [values]")
    output_gate: bool | None = Field(
        default=None,
        description="whether a gate of the layer's input multiplies the heads' output; no if absent [yes or no]",
    )

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

    @property
    def query_width(self) -> int:
        """Dimensions of one head's query, projected from the query's latent."""
        return self.nope_width + self.rope_width

    @property
    def normed_width(self) -> int:
        """Values of both latents, which are normed."""
        return self.q_lora_rank + self.kv_lora_rank

    @property
    def kv_values_per_token(self) -> float:
        """Values by which one layer's cache of a request grows with a token, at any context."""
        return self.cache_width

    def parameters(self, hidden_size: int) -> int:
        """Weights of the attention block of one layer, with the norms of its two latents."""
        down = hidden_size * (self.q_lora_rank + self.cache_width)
        q_up = (self.q_lora_rank or hidden_size) * self.q_heads * (self.nope_width + self.rope_width)
        kv_up = self.kv_lora_rank * self.q_heads * (self.nope_width + self.output_width)
        out = self.q_heads * self.output_width * hidden_size * (1 + bool(self.output_gate))
        return down + q_up + kv_up + out + self.q_lora_rank + self.kv_lora_rank


class MlaAttention(LatentAttention):
    """Multi-head latent attention, decoded in its absorbed form: one latent per token, shared by all heads."""

    kind: Literal["mla"] = Field(description="type of the attention: mla [name]")


class SparseAttention(LatentAttention):
    """Multi-head latent attention over the tokens that an indexer picks for each query (DeepSeek's DSA, GLM-5).

    The indexer reads every token of the context in a narrow cache of its own, with queries from the query's latent.
    Every rank has all of its heads, as in TensorRT-LLM, vLLM and SGLang.
    """

    kind: Literal["sparse"] = Field(description="type of the attention: sparse [name]")
    indexer: Indexer = Field(description="what picks the tokens [mapping]")
    picks_shared: bool | None = Field(
        default=None,
        description="whether a query attends to what the indexer of an earlier layer picked, this layer having neither "
        "an indexer nor index keys of its own; no if absent [yes or no]",
    )

    @property
    def ratio(self) -> int:
        """Tokens that leave one index key: each its own."""
        return 1

    @property
    def kv_values_per_token(self) -> float:
        """Values by which one layer's cache of a request grows with a token: the latent's and an index key."""
        return self.cache_width + self.indexer.width * (not self.picks_shared)

    def parameters(self, hidden_size: int) -> int:
        """Weights of the attention block of one layer, those of the indexer among them."""
        i = self.indexer
        index = self.q_lora_rank * i.heads * i.width + hidden_size * (i.width + i.heads)
        return LatentAttention.parameters(self, hidden_size) + index * (not self.picks_shared)


class CompressedAttention(Record):
    """One shared key-value vector per token, seen as it is in a window and compressed beyond it (DeepSeek-V4).

    Every `ratio` tokens leave one compressed vector, or none do. With an indexer (CSA) a query attends to those that it
    picks, by index keys that are compressed alike; without (HCA) to all of them. The output projection is low-rank, in
    groups of heads. Queries come from a latent; keys are values.
    """

    kind: Literal["compressed"] = Field(description="type of the attention: compressed [name]")
    q_heads: Count = Field(description="query heads, Q in the paper [count]")
    q_lora_rank: Count = Field(description="width of the query's latent [values]")
    head_size: Count = Field(
        description="dimensions of a head's query, and of the vector that is key and value [values]"
    )
    window_tokens: Count = Field(description="tokens whose own vectors a query sees, itself among them [tokens]")
    ratio: Count | None = Field(
        default=None, description="tokens that leave one compressed vector; there are none if absent [tokens]"
    )
    overlapping: bool | None = Field(
        default=None,
        description="whether a compressed vector draws on twice as many tokens; no if absent [yes or no]",
    )
    output_groups: Count = Field(description="groups of heads that the output projection takes apart [count]")
    output_lora_rank: Count = Field(
        description="width that the output projection has between its parts, a group [values]"
    )
    sinks: bool | None = Field(
        default=None,
        description="whether each query head has a learned sink beside its scores; no if absent [yes or no]",
    )
    indexer: Indexer | None = Field(
        default=None, description="what picks compressed vectors; a query attends to all of them if absent [mapping]"
    )

    @model_validator(mode="after")
    def _groups_divide(self) -> Self:
        if self.indexer and not self.ratio:
            raise ValueError("an indexer picks among compressed vectors: give their ratio, or leave it out")
        if self.q_heads % self.output_groups:
            raise ValueError(f"q_heads {self.q_heads} is not a multiple of output_groups {self.output_groups}")
        return self

    @property
    def kv_heads(self) -> int:
        """One vector serves every query head."""
        return 1

    @property
    def cache_width(self) -> int:
        """Values of a cached vector, which is key and value."""
        return self.head_size

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

    @property
    def query_width(self) -> int:
        """Dimensions of one head's query, projected from the query's latent."""
        return self.head_size

    @property
    def normed_width(self) -> int:
        """Values of the query's latent and of the vector, which are normed."""
        return self.q_lora_rank + self.head_size

    @property
    def series(self) -> int:
        """Vectors and gates that a token contributes to compressed ones: two where these overlap."""
        return 1 + bool(self.overlapping)

    @property
    def compressed_width(self) -> int:
        """Values that are compressed of a token: its vector, and an index key where there is an indexer."""
        return (self.head_size + (self.indexer.width if self.indexer else 0)) if self.ratio else 0

    @property
    def state_values(self) -> int:
        """FP32 values that a request's compressor keeps: vectors and gates of the tokens of open compressed ones."""
        return 2 * self.series**2 * (self.ratio or 0) * self.compressed_width

    @property
    def kv_values_per_token(self) -> float:
        """Values by which one layer's cache of a request grows with a token, past the window."""
        return self.compressed_width / (self.ratio or 1)

    def parameters(self, hidden_size: int) -> int:
        """Weights of the attention block of one layer: projections, compressors and indexer, norms and sinks."""
        h, queries, between = hidden_size, self.q_heads * self.head_size, self.output_groups * self.output_lora_rank
        found = h * (self.q_lora_rank + self.head_size) + self.q_lora_rank * queries
        found += queries * self.output_lora_rank + between * h
        found += self.series * self.compressed_width * (2 * h + (self.ratio or 0))
        if self.indexer:
            found += self.q_lora_rank * self.indexer.heads * self.indexer.width + h * self.indexer.heads
        return found + self.q_lora_rank + self.head_size + self.compressed_width + self.q_heads * bool(self.sinks)


class LinearAttention(Record):
    """A state instead of a cache: gated delta nets, KDA, lightning attention, Mamba-2.

    A request's state has a [key_width, value_width] matrix for each value head, which every token decays and adds to,
    and the last inputs of a short convolution. It does not grow with the context and is never sharded by sequence: the
    layer runs tensor-parallel over all ranks that share a group's tokens
    (https://github.com/NVIDIA/TensorRT-LLM/pull/17796).
    """

    kind: Literal["linear"] = Field(description="type of the attention: linear [name]")
    key_heads: Count = Field(
        description="heads of keys and queries; of B and C, its groups, in Mamba-2 [count]",
    )
    value_heads: Count = Field(description="heads of values, each with a state; heads of Mamba-2 [count]")
    key_width: Count = Field(description="dimensions of a key and a query; state size of Mamba-2 [values]")
    value_width: Count = Field(description="dimensions of a head's value; head size of Mamba-2 [values]")
    conv_tokens: Count = Field(
        default=1, description="tokens that the convolution over queries, keys and values spans; 1 is none [tokens]"
    )
    delta_rule: bool = Field(
        description="whether a token reads what the state has under its key before it writes (delta nets) [yes or no]"
    )
    head_gates: NaturalCount = Field(
        description="numbers that a token projects for each value head: a decay, a step or a strength [count]"
    )
    output_gate: bool = Field(description="whether a gate of the layer's input multiplies the output [yes or no]")
    decay_rank: Count | None = Field(
        default=None,
        description="width of the projection to a decay of each key channel (KDA); none if absent [values]",
    )
    state_format: NumberFormat = Field(default="fp32", description="the state's matrices in memory [format]")

    @model_validator(mode="after")
    def _heads_divide(self) -> Self:
        if self.value_heads % self.key_heads:
            raise ValueError(f"value_heads {self.value_heads} is not a multiple of key_heads {self.key_heads}")
        return self

    @property
    def q_heads(self) -> int:
        """Heads that are dealt to ranks, with their states: the value heads."""
        return self.value_heads

    @property
    def kv_heads(self) -> int:
        """Heads of keys, which value heads share as query heads share a KV head."""
        return self.key_heads

    @property
    def output_width(self) -> int:
        """Dimensions of one head's input to the output projection."""
        return self.value_width

    @property
    def kv_values_per_token(self) -> float:
        """Nothing: the state does not grow."""
        return 0

    @property
    def channels(self) -> int:
        """Values of a token that pass the convolution: queries, keys and values."""
        return 2 * self.key_heads * self.key_width + self.value_heads * self.value_width

    @property
    def state_values(self) -> int:
        """Values of one request's matrices in one layer."""
        return self.value_heads * self.key_width * self.value_width

    def parameters(self, hidden_size: int) -> int:
        """Weights of the block of one layer: projections, convolution, decays and the norm of its output."""
        values, keys, rank = self.value_heads * self.value_width, self.key_heads * self.key_width, self.decay_rank or 0
        into = self.channels + values * self.output_gate + self.value_heads * self.head_gates + rank
        convolution = self.conv_tokens * self.channels * (self.conv_tokens > 1)
        return hidden_size * (into + values) + rank * keys + convolution + 2 * self.value_heads + self.value_width


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


AttentionKind = (
    GqaAttention
    | WindowAttention
    | BlockSparseAttention
    | MlaAttention
    | SparseAttention
    | CompressedAttention
    | LinearAttention
)
FfnKind = DenseFfn | RoutedFfn | NoFfn
Attention = Annotated[AttentionKind, Field(discriminator="kind")]
Ffn = Annotated[FfnKind, Field(discriminator="kind")]


class Run(Record):
    """Neighbouring layers of one pair of kinds."""

    attention: Text = Field(description="name of an entry of `attention` [name]")
    ffn: Text = Field(description="name of an entry of `ffn` [name]")
    repeat: Count = Field(default=1, description="layers in a row [count]")


class Pattern(Record):
    """Runs that come again and again, in the same order."""

    pattern: Annotated[list[Run], Field(min_length=1)] = Field(description="the runs of one round [list of runs]")
    repeat: Count = Field(default=1, description="rounds in a row [count]")


def _entry(value: Any) -> str:
    """Which of the two an entry of `layers` is."""
    return "pattern" if isinstance(value, Pattern) or (isinstance(value, dict) and "pattern" in value) else "run"


Entry = Annotated[Annotated[Run, Tag("run")] | Annotated[Pattern, Tag("pattern")], Discriminator(_entry)]

MOST_LAYERS = 10_000
"""Layers of a model, at most: more than any, and few enough to list."""


FAR_FROM_PUBLISHED = 0.1
"""From this share on, a count is remarked upon: names round to two digits, and the shipped models are within 0.005."""


class Model(Record):
    """A decoder: its kinds of attention and of feed-forward network, and the list of layers made of them."""

    kind: Literal["model"] = Field(description="what the file is: model [name]")
    name: Name = Field(description="the model's name [text]")
    source: Text = Field(description="where its numbers come from, such as the config's address [text]")
    published_parameters_B: Annotated[Number, Field(gt=0)] = Field(
        description="parameters that its publisher counts [billions]"
    )
    hidden_size: Count = Field(description="width of the residual stream, H in the paper [values]")
    vocab_size: Count = Field(description="tokens of the vocabulary [count]")
    max_position_embeddings: Count | None = Field(
        default=None,
        description="longest context that the config allows, where `source` says one; stacks refuse more [tokens]",
    )
    tied_embeddings: bool = Field(default=False, description="whether the head's table is the embedding's [yes or no]")
    attention: Annotated[dict[Word, Attention], Field(min_length=1)] = Field(
        description="kinds of attention by a name of one's own [mapping]"
    )
    ffn: Annotated[dict[Word, Ffn], Field(min_length=1)] = Field(
        description="kinds of feed-forward network by a name of one's own [mapping]"
    )
    layers: Annotated[list[Entry], Field(min_length=1)] = Field(
        description="the layers in order: runs of (attention, ffn), or patterns that repeat [list]"
    )
    formats: dict[Text, StoredFormats] = Field(
        default={},
        description="number formats of its checkpoints by a name of one's own, the default one first [mapping]",
    )

    @model_validator(mode="after")
    def _layers_name_kinds(self) -> Self:
        count, used = 0, set()
        for place, entry in enumerate(self.layers):
            runs = entry.pattern if isinstance(entry, Pattern) else [entry]
            rounds = entry.repeat if isinstance(entry, Pattern) else 1
            for run in runs:
                for half, known in (("attention", self.attention), ("ffn", self.ffn)):
                    name = getattr(run, half)
                    if name not in known:
                        raise ValueError(f"layers.{place}: {half} {said(name)} is not one of {', '.join(known)}")
                    used.add((half, name))
                count += run.repeat * rounds
        if count > MOST_LAYERS:
            raise ValueError(f"layers: {count} layers are more than {MOST_LAYERS}")
        for half, known in (("attention", self.attention), ("ffn", self.ffn)):
            for name in known:
                if (half, name) not in used:
                    raise ValueError(f"{half}.{name}: no layer uses it; leave it out, or name it in layers")
        return self

    @cached_property
    def layer_list(self) -> tuple[tuple[str, str], ...]:
        """(attention, ffn) of every layer by name, in order."""
        found: list[tuple[str, str]] = []
        for entry in self.layers:
            runs = entry.pattern if isinstance(entry, Pattern) else [entry]
            one = [(run.attention, run.ffn) for run in runs for _ in range(run.repeat)]
            found += one * (entry.repeat if isinstance(entry, Pattern) else 1)
        return tuple(found)

    @property
    def layer_count(self) -> int:
        """Decoder layers of any kind."""
        return len(self.layer_list)

    @cached_property
    def kind_counts(self) -> Counter[tuple[str, str]]:
        """Layers of each kind: by ("attention", name) and ("ffn", name)."""
        return Counter(_kinds(self.layer_list))

    @property
    def routed_kinds(self) -> dict[str, RoutedFfn]:
        """The kinds of feed-forward network that have experts, by name."""
        return {name: ffn for name, ffn in self.ffn.items() if isinstance(ffn, RoutedFfn)}

    @property
    def has_indexer(self) -> bool:
        """Whether some attention has an indexer, whose cache a layout can shard."""
        return any(getattr(a, "indexer", None) for a in self.attention.values())

    @property
    def fewest_q_heads(self) -> int:
        """Query heads of the attention that has the fewest: more ranks than these would leave some without."""
        return min(a.q_heads for a in self.attention.values())

    @property
    def fewest_kv_heads(self) -> int:
        """KV heads of the attention that has the fewest: past them TPA holds copies."""
        return min(a.kv_heads for a in self.attention.values())

    def parameters(self) -> dict[str, int]:
        """Parameters by group; they sum to the model's published count."""
        h = self.hidden_size
        groups = {
            "embedding": self.vocab_size * h,
            "head": 0 if self.tied_embeddings else self.vocab_size * h,
            "norms": h * (2 * self.layer_count + 1),
            "attention": 0,
            "dense FFN": 0,
            "routed experts": 0,
            "shared experts": 0,
            "router": 0,
        }
        for (half, name), count in self.kind_counts.items():
            found: dict[str, Any] = (
                {"attention": self.attention[name].parameters(h)}
                if half == "attention"
                else self.ffn[name].parameters(h)
            )
            for group, parameters in found.items():
                groups[group] += count * parameters
        return groups

    @property
    def total_parameters(self) -> int:
        """All parameters, without multi-token-prediction modules."""
        return sum(self.parameters().values())

    @property
    def doubt(self) -> str | None:
        """A sentence for the user where the count is far from what the publisher says; None where it is near."""
        counted, published = self.total_parameters / GIGA, self.published_parameters_B
        if abs(counted / published - 1) <= FAR_FROM_PUBLISHED:
            return None
        return (
            f"{self.name} has {counted:.4g} B parameters by its widths, and its published_parameters_B says "
            f"{published:.4g}: one of the two is wrong, or something of the model is not in its file"
        )

    @property
    def kv_values_per_token(self) -> int:
        """Values cached per token over all layers: 2·K·Hsz a layer of GQA, the latent and its rotary key of MLA.

        At long contexts: a window and a linear layer's state do not grow. Index keys count as their width; a part of
        a value, of layers that compress, is rounded down.
        """
        counts = self.kind_counts.items()
        return int(
            sum(n * self.attention[name].kv_values_per_token for (half, name), n in counts if half == "attention")
        )


def _kinds(layers: tuple[tuple[str, str], ...]) -> Iterator[tuple[str, str]]:
    """("attention", name) and ("ffn", name) of every layer."""
    return (kind for layer in layers for kind in zip(("attention", "ffn"), layer, strict=True))


def listed_runs(layers: list[tuple[str, str]]) -> list[dict[str, Any]]:
    """(attention, ffn) of every layer as the shortest `layers` of a file: runs, or a pattern that repeats.

    >>> listed_runs([("a", "dense")] + 2 * [("a", "moe")])
    [{'attention': 'a', 'ffn': 'dense'}, {'attention': 'a', 'ffn': 'moe', 'repeat': 2}]
    >>> listed_runs(24 * [("a", "dense"), ("a", "moe")])
    [{'pattern': [{'attention': 'a', 'ffn': 'dense'}, {'attention': 'a', 'ffn': 'moe'}], 'repeat': 24}]
    """

    def runs(some: list[tuple[str, str]]) -> list[dict[str, Any]]:
        found = [(pair, len(list(same))) for pair, same in groupby(some)]
        return [{"attention": a, "ffn": f, **({"repeat": count} if count > 1 else {})} for (a, f), count in found]

    whole = runs(layers)
    rounds = (n for n in range(1, len(layers) // 2 + 1) if len(layers) % n == 0)
    period = next((n for n in rounds if layers == layers[:n] * (len(layers) // n)), None)
    if period is None or len(whole) <= 2:
        return whole
    return [{"pattern": runs(layers[:period]), "repeat": len(layers) // period}]


def listed_layers(content: dict[str, Any]) -> dict[str, Any]:
    """A model's content with `layers`, of one in the form with one attention and counts of dense and MoE layers.

    attention: {kind: …}, dense_layers and dense_intermediate_size, moe_layers and experts; dense layers come first.
    Anything else is returned as it is.
    """
    if "layers" in content or not isinstance(attention := content.get("attention"), dict) or "kind" not in attention:
        return content
    old = ("dense_layers", "dense_intermediate_size", "moe_layers", "experts")
    kept = {key: value for key, value in content.items() if key not in old}
    counts = {"dense": content.get("dense_layers", 0), "moe": content.get("moe_layers", 0)}
    specs = {"dense": {"intermediate_size": content.get("dense_intermediate_size")}, "moe": content.get("experts")}
    name = attention["kind"] if isinstance(attention["kind"], str) else "attention"
    ffn, layers = {}, []
    for label, kind in (("dense", "dense"), ("moe", "routed")):
        if counts[label] not in (0, None):
            spec = specs[label]
            ffn[label] = {"kind": kind, **spec} if isinstance(spec, dict) else spec
            layers.append({"attention": name, "ffn": label, "repeat": counts[label]})
    return kept | {"attention": {name: attention}, "ffn": ffn, "layers": layers}
