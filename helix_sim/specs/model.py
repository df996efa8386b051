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
from helix_sim.specs.attention import AttentionKind
from helix_sim.specs.ffn import FfnKind, RoutedFfn
from helix_sim.specs.precision import StoredFormats
from helix_sim.specs.values import (
    Count,
    Name,
    Number,
    Record,
    Text,
    Word,
)

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
