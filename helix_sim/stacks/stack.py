"""A serving stack as its YAML file says it: what it has kernels for, what it refuses and in which words."""

from __future__ import annotations

import functools
from collections.abc import Collection
from pathlib import Path
from typing import Literal

from pydantic import Field

from helix_sim.specs.load import parse, read_yaml
from helix_sim.specs.values import Count, MathFormat, NumberFormat, Record, Text

NAMES = ("trtllm", "vllm", "sglang")
"""The stacks that are described, in the order in which they are asked."""


class Support(Record):
    """A number format that a stack has kernels for, and on which machines and kinds of attention."""

    option: Text | None = Field(default=None, description="the stack's own name of the format [text]")
    needs: MathFormat | None = Field(
        default=None, description="arithmetic without which a machine has no such kernel [format]"
    )
    not_with: MathFormat | None = Field(
        default=None, description="arithmetic with which a machine has no such kernel [format]"
    )
    or_attention: list[Text] = Field(
        default=[],
        description="kinds of attention of models for which a machine without that arithmetic has one [list of names]",
    )
    on_amd: bool = Field(default=True, description="whether AMD's machines have such a kernel [yes or no]")
    attention: list[Text] | None = Field(
        default=None, description="kinds of attention whose cache may have the format; all unless said [list of names]"
    )
    source: Text = Field(description="file or page of the stack that says so [text]")


class RuleText(Record):
    """A rule in a stack's own terms. Names in braces are filled with the layout's numbers."""

    sentence: Text = Field(description="what the stack refuses, of one layout [text]")
    change: Text | None = Field(default=None, description="what would mend it [text]")
    source: Text = Field(description="file and function, or page, of the stack that refuses [text]")


class Override(Record):
    """How a stack is told to take a longer context than the model's config allows."""

    env: Text = Field(description="environment variable that lifts the limit [name]")
    value: Text = Field(description="its value [text]")
    otherwise: Text = Field(description="what the stack does without it [text]")
    source: Text = Field(description="file and function of the stack [text]")


class Backends(Record):
    """A choice that depends on the machine: on one with FP4 arithmetic (Blackwell), or on another."""

    blackwell: Text = Field(description="on a machine with FP4 arithmetic [name]")
    other: Text = Field(description="on any other machine [name]")


class KvpKinds(Record):
    """Kinds of attention that a stack runs side by side under KV parallelism, and what it takes."""

    kinds: list[Text] = Field(description="the kinds; a model may have some of them alone [list of names]")
    needs: MathFormat | None = Field(
        default=None, description="arithmetic without which a machine has no such kernels [format]"
    )
    index: Literal["copied", "sharded"] | None = Field(
        default=None, description="an indexer's cache: copied to every KV shard, or sharded as the keys are [name]"
    )
    one_group: bool = Field(
        default=False, description="whether attention may not be data-parallel beside it [yes or no]"
    )
    block_tokens: Count | None = Field(default=None, description="tokens of a KV block, where it fixes them [tokens]")
    backend: Backends | None = Field(default=None, description="attention back end that it needs [mapping]")
    transceiver: Text | None = Field(
        default=None, description="back end that carries caches and states from prefill servers, beside its own [name]"
    )
    remark: Text | None = Field(default=None, description="what a deployment has to know beyond options [text]")
    source: Text = Field(description="file or page of the stack that has it [text]")


class Dispatch(Record):
    """Back end that sends tokens to their experts, by how far NVLink reaches."""

    one_domain: Text = Field(description="where NVLink reaches beyond a tray (NVL72) [name]")
    several: Text = Field(description="where a tray is the NVLink domain (HGX) [name]")
    amd: Text | None = Field(default=None, description="on AMD's machines [name]")
    on_board: bool = Field(
        default=True,
        description="whether it sends tokens where a stage is one board and that the NVLink domain, or gathers all "
        "[yes or no]",
    )
    source: Text = Field(description="file or page of the stack [text]")


class Option(Record):
    """An option of a launch: what it takes, and where the stack documents it."""

    takes: Literal["count", "flag", "yes or no", "share", "name", "text", "mapping"] = Field(
        description="what the option takes [name]"
    )
    one_of: list[Text] | None = Field(default=None, description="the names it takes [list]")
    source: Text = Field(description="file or page of the stack that has the option [text]")


class Dynamo(Record):
    """How NVIDIA Dynamo runs a worker of the stack."""

    module: Text = Field(description="the worker's Python module [name]")
    model_option: Text = Field(description="the option that names the checkpoint [name]")
    image: Text = Field(description="the runtime's image, without a version [name]")
    instead: dict[Text, Text | None] = Field(
        description="options that Dynamo sets itself, and the flag that it wants in their place [mapping]"
    )
    source: Text = Field(description="file of ai-dynamo/dynamo [text]")


class SrtSlurm(Record):
    """How srt-slurm runs the stack."""

    frontend: Text = Field(description="the frontend that serves one aggregate worker [name]")
    owned: list[Text] = Field(description="options that srt-slurm sets itself [list of names]")
    source: Text = Field(description="file of NVIDIA/srt-slurm [text]")


class Stack(Record):
    """What a serving stack accepts, in the version that was read."""

    kind: Literal["stack"] = Field(description="what this file describes [name]")
    name: Literal["trtllm", "vllm", "sglang"] = Field(description="the stack's name on the command line [name]")
    title: Text = Field(description="the stack's own name [text]")
    version: Text = Field(description="version whose source and documentation were read [text]")
    read: Text = Field(description="when they were read [date]")
    url: Text = Field(description="where they lie [URL]")
    on_amd: bool = Field(default=True, description="whether it runs on AMD's machines [yes or no]")
    kv_heads_over: Literal["tpa", "group"] = Field(
        description="ranks that share the KV heads: tpa alone, or all tpa·kvp of a group [name]"
    )
    dense_over: Literal["group", "stage", "fitted"] = Field(
        description="ranks that shard a dense FFN: an attention group, a whole stage, or as many as fit [name]"
    )
    shared_over: Literal["group", "stage", "fitted"] = Field(
        description="ranks that shard the shared experts, likewise [name]"
    )
    redundant_experts_need_dp: bool = Field(
        description="whether copies of experts need data-parallel attention [yes or no]"
    )
    vocabulary_multiple: Count | None = Field(
        default=None, description="the vocabulary is padded to a multiple of this, then cut [count]"
    )
    kvp: list[KvpKinds] = Field(description="kinds of attention that have KV parallelism, and how [list of mappings]")
    one_stage: list[list[Text]] = Field(
        default=[],
        description="kinds of attention that it runs side by side in one pipeline stage alone [list of lists of names]",
    )
    gathers_queries: bool = Field(
        description="whether all KV shards may share the projection of queries and gather them [yes or no]"
    )
    microbatch_kinds: list[Text] = Field(
        default=[],
        description="kinds of attention of models whose microbatches take turns, where tokens are dispatched; none "
        "where the stack does not split a batch [list of names]",
    )
    shard_multiples: dict[NumberFormat, Count] = Field(
        description="a shard's width must be a multiple of this, by weight format [mapping of values]"
    )
    attention_shard_multiples: dict[NumberFormat, Count] = Field(
        default={}, description="the same for what a rank makes of queries, keys and values [mapping of values]"
    )
    weights: dict[NumberFormat, Support] = Field(description="weight formats with kernels [mapping]")
    kv: dict[NumberFormat, Support] = Field(description="KV cache formats with kernels [mapping]")
    context_override: Override = Field(description="how a longer context is allowed [mapping]")
    dispatch: Dispatch = Field(description="back end of dispatch and combine [mapping]")
    draft_methods: dict[Literal["mtp", "eagle3", "dspark", "external"], Text] = Field(
        description="the stack's own names of the ways to draft [mapping of names]"
    )
    serve: Text = Field(description="the command that starts the stack, before the checkpoint's name [text]")
    options: dict[Text, Option] = Field(description="options that a launch may say, nested ones with dots [mapping]")
    dynamo: Dynamo = Field(description="the stack under NVIDIA Dynamo [mapping]")
    srt_slurm: SrtSlurm = Field(description="the stack under srt-slurm [mapping]")
    rules: dict[Text, RuleText] = Field(description="what the stack refuses, by rule [mapping]")

    def kvp_of(self, kinds: Collection[str]) -> KvpKinds | None:
        """How the stack runs a model's kinds of attention under KV parallelism; None where it does not."""
        return next((each for each in self.kvp if set(kinds) <= set(each.kinds)), None)


@functools.cache
def load_stack(name: str) -> Stack:
    """A stack by its name: trtllm, vllm or sglang."""
    path = Path(__file__).parent / f"{name}.yaml"
    return parse(Stack, read_yaml(path), path.name)
