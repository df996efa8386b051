"""What a public package of measured kernels has: a machine's name in it, a framework's ways, what tables borrow.

A machine's file says under which name its tables lie, a framework's file what is the same on every machine. Where a
table lacks rows that a framework needs, a `Borrowed` record names whose rows stand in, and why.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from helix_sim.specs.values import (
    SOURCE,
    Flag,
    Name,
    Number,
    NumberFormat,
    Positive,
    Quantity,
    Record,
    Share,
    Source,
    Text,
    WholeQuantity,
)

TableName = Literal[
    "attention_mla", "gemm", "grouped_gemm", "dispatched_experts", "all_reduce", "expert_exchange", "mla_module"
]
"""Tables that may borrow, by the functions of `silicon.aic_tables` that read them."""


class Borrowed(Record):
    """Rows of another system's or another framework's table that stand in for a table's own."""

    table: TableName = Field(description="the table that lacks the rows [name]")
    framework: Text | None = Field(None, description="whose table lacks them; every framework's where not said [name]")
    from_system: Text | None = Field(
        None, description="the system that lends, by its short name; the same where not said [name]"
    )
    from_framework: Text | None = Field(None, description="the framework that lends; the same where not said [name]")
    format: Text | None = Field(None, description="rows of this number format alone, as the table spells it [name]")
    kernel: Text | None = Field(None, description="rows of this kernel alone, as the table spells it [name]")
    from_version: Text | None = Field(
        None, description="the version of the lender's tables; its current one where not said [name]"
    )
    more_ranks: bool = Field(
        False, description="rows of more ranks than the table itself has, and no others [yes or no]"
    )
    reason: Text = Field(description="why these rows stand in; the classes fitted to them say it too [text]")


class PublicTables(Record):
    """Where the package `aiconfigurator-core` has a machine's measured kernels, and what they borrow."""

    system: Text = Field(
        description="the machine's short name, as commands and measured timings have it: gb200, b200, h100 [name]"
    )
    folder: Text = Field(description="the machine's folder in the package's `systems/data` [name]")
    frameworks: list[Text] = Field(
        min_length=1, description="the frameworks whose kernels were measured on it [list of names]"
    )
    borrowed: list[Borrowed] = Field([], description="rows that this machine's tables lack, and whose stand in [list]")
    network: LentNetwork | None = Field(
        None,
        description="whose exchanges between NVLink domains stand in where none were measured [mapping]",
    )


class LentNetwork(Record):
    """Another system whose exchanges between NVLink domains were measured, and tell what the same network reaches."""

    from_system: Text = Field(description="the system that lends, by its short name [name]")
    from_framework: Text = Field(description="the framework whose exchanges were measured there [name]")
    reason: Text = Field(description="why it may stand in; the classes that use it say it too [text]")


class LentKernels(Record):
    """Another framework whose fitted kernels stand in for what this one runs and nobody measured."""

    from_framework: Text = Field(description="the framework that lends, on the same system [name]")
    kernels: list[Text] = Field(
        min_length=1,
        description="its own kernels of that kind, as measured inside one domain: how far they lie from the lender's "
        "there widens the interval [list of names]",
    )
    reason: Text = Field(description="why its kernels stand in; the classes say it too [text]")


class FusedExchange(Record):
    """A fused kernel that exchanges partial attention outputs, as it was published."""

    published_us: list[Annotated[Number, Field(gt=0)]] = Field(
        min_length=1, description="its time as published, at rising numbers of tokens [list of µs]"
    )
    source: Source = Field(description="where it was published, and of what [text]")
    ranks: WholeQuantity = Field(description="ranks that it was measured over [GPUs]")
    reason: Text = Field(description="what was published, and its doubts; the class says it too [text]")


class PartialExchange(Record):
    """How KV shards exchange partial attention outputs and their softmax statistics."""

    collectives: WholeQuantity = Field(description="collectives that carry it where no kernel fuses them [1]")
    statistics_bytes: Quantity = Field(description="softmax statistics of a head and token on the wire [bytes]")
    uncertainty: Positive = Field(description="factor by which its time may be too high or too low [1]")
    reason: Text = Field(description="what stands in for it where no kernel fuses it; the class says it too [text]")
    fused: FusedExchange | None = Field(
        None, description="the kernel that fuses it inside an NVLink domain of several boards [mapping]"
    )


class WireFormat(Record):
    """A number format and where it is known from."""

    value: NumberFormat = Field(description="the number format [format]")
    source: Source = Field(description="where it is known from [text]")


class Gather(Record):
    """A gather of all tokens in place of sending each to its experts."""

    format: NumberFormat | None = Field(
        default=None, description="in which tokens are gathered; that of the dispatch where not said [format]"
    )
    reason: Text = Field(description="what it does, and how that is known; the classes say it too [text]")


class Exchange(Record):
    """How a framework sends tokens to their experts and back."""

    kernels: list[Text] = Field(
        min_length=1, description="the kernels it runs, as the public tables spell them [list of names]"
    )
    partials: PartialExchange = Field(description="how KV shards exchange partial attention outputs [mapping]")
    empty_rows: Flag = Field(
        description="whether behind a dispatch the experts' kernel passes over a row for every token of the group, "
        "empty where the token went elsewhere, or over those that arrived [yes or no]"
    )
    over_every_gpu: Flag | None = Field(
        None,
        description="whether experts are spread over every GPU of a server where tokens are sent to them, whatever "
        "width was asked for; as asked where not said [yes or no]",
    )
    redundant_experts: dict[Text, WholeQuantity] = Field(
        {}, description="copies of experts in published deployments that send tokens, by model [mapping of experts]"
    )
    masked_experts: Text | None = Field(
        None, description="the products that it runs behind a dispatch, where they are not those without one [text]"
    )
    between_domains: LentKernels | None = Field(
        None, description="whose exchange stands in between NVLink domains, where its own serves one domain [mapping]"
    )
    doubling_us: Quantity | None = Field(
        None, description="latency of each doubling of the ranks, where tables of one board cannot tell it [µs]"
    )
    remark: Text | None = Field(
        None, description="what its measurements leave open, as the fitted classes say it [text]"
    )
    gathers: Text | None = Field(
        None,
        description="what it does where none of these was measured: gather all tokens and scatter the sums [text]",
    )
    gathers_on_board: Gather | None = Field(
        None,
        description="where it gathers all tokens inside an NVLink domain that is one board, and sends them to their "
        "experts across several alone [mapping]",
    )


class Included(Record):
    """What the measured time of some classes of kernels includes beside their own op."""

    of: Text = Field(description="how the classes' names begin [name]")
    kernel: Text | None = Field(None, description="of this kernel's rows alone, as the table spells it [name]")
    parts: list[Text] = Field(
        min_length=1, description="the ops that are measured with it, or quantisation of its inputs [list of names]"
    )
    source: Source = Field(description="where that is known from [text]")


class Releases(Record):
    """A framework's own version inside the releases of a distribution that servings name."""

    source: Source = Field(description="where the versions are known from [text]")
    versions: dict[Text, Text] = Field(description="the framework's version by the release's [mapping]")


class SetAside(Record):
    """Memory that a framework sets aside on GPUs of some size, in layouts of some width."""

    memory_from_GiB: Quantity = Field(description="memory of a GPU from which this holds [GiB]")
    gpus_from: Quantity = Field(description="GPUs of a layout from which this holds [GPUs]")
    groups_from: Quantity | None = Field(
        None, description="attention groups of a layout from which this holds; any number unless said [groups]"
    )
    fixed_MiB: Quantity | None = Field(None, description="set aside in every layout [MiB]")
    gpu_MiB: Quantity | None = Field(None, description="set aside for each GPU of the layout [MiB]")
    group_MiB: Quantity | None = Field(
        None, description="set aside for each attention group, where there are several [MiB]"
    )
    memory_share: Quantity | None = Field(None, description="share of the GPU's memory that is set aside [1]")


class ServedMemory(Record):
    """What a framework leaves free of a GPU's memory by its defaults: shares, graphs, workspaces, buffers."""

    version: Text = Field(description="the framework's version whose defaults were read [text]")
    share: Share = Field(description="share that weights, KV cache and activations may fill of what `of` names [1]")
    of: Literal["all", "free"] = Field(
        description="all: the GPU's memory. free: what weights and activations leave of it, for the cache [name]"
    )
    outside_GiB: Quantity = Field(
        description="memory that is never the framework's to share: CUDA context, communicators, workspaces [GiB]"
    )
    activation_tokens: Quantity = Field(
        description="tokens of the largest step, whose activations are kept free; 0 keeps those of the step [tokens]"
    )
    exchange_tokens: Quantity = Field(
        description="tokens of a group that the buffers of dispatch and combine are made for; 0: the step's [tokens]"
    )
    set_aside: list[SetAside] = Field(
        [], description="set aside besides, by size of the GPU and the layout; the last that holds [list]"
    )


class MicrobatchOrder(Record):
    """In which order two microbatches take turns, where a framework has them."""

    value: Literal["attention-in-two", "attention-whole"] = Field(
        description="attention-in-two: the exchanges of one run behind the two parts of the other's attention alone; "
        "attention-whole: behind its attention, and behind its experts [name]"
    )
    source: Source = Field(description=SOURCE)


class LongRows(Record):
    """How an indexer's choice shares a long row of scores among blocks."""

    blocks: Quantity = Field(description="blocks that share a row [blocks]")
    from_scores: Quantity = Field(description="scores of a row from which they do [scores]")


class Framework(Record):
    """A serving framework as the public tables and servings show it: the same on every machine."""

    kind: Literal["framework"] = Field(description="says that the file is a framework's [name]")
    name: Name = Field(description="its short name, as commands, tables and measured timings have it [name]")
    title: Text = Field(description="its name as its makers write it [text]")
    step_overhead_us: Quantity = Field(description="host and launch overhead of one decode step, outside kernels [µs]")
    memory: ServedMemory = Field(description="what it leaves free of a GPU's memory by its defaults [mapping]")
    microbatches: MicrobatchOrder | None = Field(
        None, description="how two microbatches take turns; it has none where not said [mapping]"
    )
    dispatch: dict[Literal["fp4", "fp8"], WireFormat] = Field(
        description="the format in which tokens travel to their experts, by the precision of the checkpoint [mapping]"
    )
    exchange: Exchange = Field(description="how tokens travel to their experts and back [mapping]")
    long_rows: LongRows | None = Field(
        None, description="how an indexer's choice shares long rows of scores; a block a row where not said [mapping]"
    )
    releases: Releases | None = Field(
        None, description="its versions inside releases by which servings name it [mapping]"
    )
    borrowed: list[Borrowed] = Field(
        [], description="rows that its tables lack on every machine, and whose stand in [list]"
    )
    includes: list[Included] = Field(
        [], description="what the measured time of its kernels includes beside their own op [list]"
    )
