"""Kinds of attention: what their equations need, in widths and counts, as a model's YAML file says it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal, Self

from pydantic import Field, model_validator

from helix_sim.specs.values import Count, MathFormat, NaturalCount, NumberFormat, Record

Sinks = Annotated[
    bool | None,
    Field(description="whether each query head has a learned sink beside its scores; no if absent [yes or no]"),
]
OutputGate = Annotated[
    bool | None,
    Field(description="whether a gate of the layer's input multiplies the heads' output; no if absent [yes or no]"),
]


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


class OneHeadSize:
    """Widths of attention whose queries, keys and values of a head are of one, `head_size`."""

    if TYPE_CHECKING:
        head_size: int

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


class HeadAttention(OneHeadSize, Record):
    """Attention whose heads of keys and values are cached whole, each shared by q_heads / kv_heads query heads."""

    kind: str = Field(description="type of the attention [name]")
    q_heads: Count = Field(description="query heads, Q in the paper [count]")
    kv_heads: Count = Field(description="heads of keys and values, K in the paper; 1 is multi-query attention [count]")
    head_size: Count = Field(description="dimensions of one head's query, key and value, Hsz in the paper [values]")
    sinks: Sinks = None
    output_gate: OutputGate = None

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
    output_gate: OutputGate = None

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


class CompressedAttention(OneHeadSize, Record):
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
    sinks: Sinks = None
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


AttentionKind = (
    GqaAttention
    | WindowAttention
    | BlockSparseAttention
    | MlaAttention
    | SparseAttention
    | CompressedAttention
    | LinearAttention
)
