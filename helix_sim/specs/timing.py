"""A timing as its YAML file says it: constants that turn Work into seconds, assumed or measured."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cached_property
from types import MappingProxyType
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import Field, model_validator

from helix_sim.core.units import FORMAT_BITS, MICRO
from helix_sim.specs.kernel_parameters import SHAPES, TIMES
from helix_sim.specs.public_tables import MicrobatchOrder, ServedMemory
from helix_sim.specs.values import Flag, Fraction, Name, NaturalCount, Number, Quantity, Record, Share, Source, Text

R = TypeVar("R", bound=Record)


class OpConstants(Record):
    """What a class of ops reaches: a latency for each launch, and a share of each datasheet rate."""

    latency_us: Quantity = Field(description="latency of one launch [µs]")
    bandwidth_share: Share = Field(description="share of HBM's datasheet rate that is reached [1]")
    math_share: Share = Field(description="share of the tensor cores' dense datasheet rate that is reached [1]")

    @property
    def latency_s(self) -> float:
        """Latency of one launch [s]."""
        return self.latency_us.value * MICRO


class CollectiveConstants(Record):
    """What collectives reach: a latency for each phase, and a share of each link's datasheet rate."""

    latency_us: Quantity = Field(description="latency of one phase inside an NVLink domain [µs]")
    network_latency_us: Quantity = Field(
        description="latency of one phase between NVLink domains, on top of the phase inside [µs]"
    )
    nvlink_share: Share = Field(description="share of NVLink's datasheet rate that is reached [1]")
    network_share: Share = Field(description="share of the scale-out network's datasheet rate that is reached [1]")

    @property
    def latency_s(self) -> float:
        """Latency of one phase inside an NVLink domain [s]."""
        return self.latency_us.value * MICRO

    @property
    def network_latency_s(self) -> float:
        """Latency of one phase between NVLink domains, on top of the phase inside [s]."""
        return self.network_latency_us.value * MICRO


class Residuals(Record):
    """Measured over modelled time on cells kept out of the fit, as natural logarithms: quantiles and errors."""

    count: NaturalCount = Field(description="cells kept out of the fit [cells]")
    low: Number = Field(
        description="tenth centile of ln(measured / modelled): a tenth of the cells are faster still [1]"
    )
    median: Number = Field(description="median of ln(measured / modelled) [1]")
    high: Number = Field(description="ninetieth centile of ln(measured / modelled): a tenth are slower still [1]")
    median_error: Annotated[Number, Field(ge=0)] = Field(description="median of |modelled / measured - 1| [1]")
    mean_error: Annotated[Number, Field(ge=0)] = Field(description="mean of |modelled / measured - 1| [1]")

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if not self.low <= self.median <= self.high:
            raise ValueError(f"low {self.low}, median {self.median} and high {self.high} do not rise")
        return self


class KernelClass(Record):
    """One class of kernels as measured: the name of its shape, the shape's parameters, what was measured, how well."""

    shape: Text = Field(description="the equation of its time, by its name in timing.kernel_shapes [name]")
    source: Source = Field(description="the tables it was fitted to, how many rows, and when [text]")
    parameters: dict[Text, Quantity] = Field(description="the shape's parameters, units in their names [mapping]")
    largest: dict[Text, Annotated[Number, Field(gt=0)]] = Field(
        {}, description="largest measured size by name of a Work's field; what is larger is extrapolated [mapping]"
    )
    borrowed: Text | None = Field(
        None, description="whose kernel stands in, and why; its own was measured where not said [text]"
    )
    includes: list[Text] | None = Field(
        None,
        description="ops of a step beside its own that its measured time includes, as rope_and_append, activation or "
        "quantisation of inputs: they take no time of their own [list of names]",
    )
    widened: bool | None = Field(
        None,
        description="whether its residuals hold what standing in for another adds, as its source says it; else the "
        "timing's unknowns do [yes or no]",
    )
    dispatched: bool | None = Field(
        None, description="whether it serves experts behind a dispatch alone; all experts where not said [yes or no]"
    )
    domains: Literal["one", "several"] | None = Field(
        None,
        description="whether it serves groups in one NVLink domain or across several; both where not said [name]",
    )
    residuals: Residuals = Field(description="how well it predicts the cells kept out of the fit [mapping]")

    @cached_property
    def values(self) -> Mapping[str, float]:
        """Parameters by name, without their sources; read-only, for everybody has the same."""
        return MappingProxyType({name: quantity.value for name, quantity in self.parameters.items()})


class Unknowns(Record):
    """What a timing does not know of a step: halves of 80 % intervals of ln(measured / modelled), from kernels."""

    beyond_per_doubling: Quantity = Field(
        description="of an op's time, for each doubling of a size beyond the largest that its class was measured at [1]"
    )
    borrowed_kernel: Quantity = Field(
        description="of a kernel's time where another format's or framework's kernel, or an assumed one, stands in [1]"
    )
    borrowed_collective: Quantity = Field(description="of a collective's time where another stands in for it [1]")
    unmeasured: Quantity = Field(
        description="upwards, of a kernel's time that constants give, where no class of it was measured [1]"
    )
    collective: Quantity = Field(
        description="of all collectives together, which were measured alone, not in a step [1]"
    )
    routing_low: Quantity = Field(
        description="of routed experts that are spread over ranks, where routing is more even than assumed, or less [1]"
    )
    routing_high: Quantity = Field(description="the same, upwards: the busiest rank has more to do than assumed [1]")


class Composition(Record):
    """How well kernels add up: whole modules of a step, timed as one, over the sum of their kernels."""

    source: Source = Field(description="the tables of whole modules, and how many rows [text]")
    low: Annotated[Number, Field(gt=-1, le=0)] = Field(
        description="lower end of an 80 % interval, of the sum, less what the kernels' own residuals explain [1]"
    )
    high: Annotated[Number, Field(ge=0)] = Field(description="upper end of the same interval [1]")
    residuals: Residuals = Field(description="measured over summed time, as it is [mapping]")


class Calibration(Record):
    """Measured kernels of one framework on one system, by class, and what its steps take outside of kernels."""

    system: Text = Field(description="the machine's short name in the public tables: gb200, b200, h100 [name]")
    framework: Text = Field(description="the framework's short name: trtllm, sglang, vllm [name]")
    package: Text = Field(description="the package of measurements and its version [text]")
    step_overhead_us: Quantity = Field(description="host and launch overhead of one step, outside all kernels [µs]")
    empty_rows: bool = Field(
        False,
        description="whether behind a dispatch the experts' kernel passes over a row for every token of the group, "
        "empty where the token went elsewhere, or over those that arrived [yes or no]",
    )
    composition: Composition | None = Field(
        None, description="what all kernels of a step share of its interval [mapping]"
    )
    memory: ServedMemory | None = Field(
        None, description="what servers leave free of memory; the framework's file says it unless given [mapping]"
    )
    microbatches: MicrobatchOrder | None = Field(
        None, description="how two microbatches take turns; the framework's file says it unless given [mapping]"
    )
    classes: dict[Text, KernelClass] = Field(
        description="by op class and number format (gemm-nvfp4); an op class alone serves all formats [mapping]"
    )

    @cached_property
    def kernels(self) -> dict[str, tuple[str, ...]]:
        """Names of the classes by what they serve: under a class those of its kernels, of which the fastest runs."""
        found: dict[str, list[str]] = {}
        for name in self.classes:
            found.setdefault(name.partition("/")[0], []).append(name)
        return {served: tuple(names) for served, names in found.items()}

    @property
    def cache_formats(self) -> list[str]:
        """Formats of a KV cache that measured kernels of full attention read, narrowest first."""
        kinds: dict[str, set[str]] = {}
        for name in self.classes:
            if found := re.fullmatch(r"(attention-(?:gqa|mla))-([^/]+)(/.*)?", name):
                kinds.setdefault(found[1], set()).add(found[2])
        shared = set.intersection(*kinds.values()) if kinds else set()
        return sorted(shared, key=lambda name: FORMAT_BITS[name])


class HopB(Record):
    """What a piece of a batch costs under HOP-B: shares of a latency that come again with every chunk.

    An exchange's latency has three parts. Its issue holds the GPU, and the next chunk's attention waits for it; its
    occupancy holds the link, and the next chunk's exchange waits for it, as for its bytes; what is left is flight,
    during which both go on: flights overlap, and only the last chunk's is waited for.
    """

    kernel_issue: Fraction = Field(
        description="share of the attention kernel's latency that each chunk after the first pays again [1]"
    )
    exchange_issue: Fraction = Field(
        description="share of the exchange's latency for which a chunk's exchange holds the GPU [1]"
    )
    exchange_occupancy: Fraction = Field(
        description="share of the exchange's latency for which a chunk's exchange holds the link, beside its bytes [1]"
    )
    searched: Flag = Field(
        description="whether searches try chunks; where the kernels cannot overlap, only if a sweep insists [yes or no]"
    )

    @model_validator(mode="after")
    def _some_is_flight(self) -> Self:
        if self.exchange_issue.value + self.exchange_occupancy.value > 1:
            raise ValueError("exchange_issue and exchange_occupancy are shares of one latency, and sum to more than 1")
        return self

    @property
    def exchange_again(self) -> float:
        """Share of the exchange's latency that each chunk pays: issue and occupancy."""
        return self.exchange_issue.value + self.exchange_occupancy.value


class Timing(Record):
    """Constants that turn Work into seconds: the same for every model, layout and figure."""

    kind: Literal["timing"] = Field(description="says that the file is a timing's [name]")
    name: Name = Field(description="the file's name without its ending [name]")
    description: Text = Field(description="what the timing stands for, in a line [text]")
    extends: Text | None = Field(
        None,
        exclude=True,  # how the file says the values, not one of them: copies and digests are of what holds
        description="timing whose values hold where this file says none: shipped, or a path beside this file [name]",
    )
    kernel: OpConstants = Field(description="of kernels that were not measured [mapping]")
    pointwise: OpConstants = Field(
        description="of pointwise kernels (RoPE, activations) that were not measured [mapping]"
    )
    collective: CollectiveConstants = Field(description="of collectives that were not measured [mapping]")
    all_reduce_overlap: Fraction = Field(
        description="share of an all-reduce's transfer, or of the product before it, that runs behind the other [1]"
    )
    hop_b: HopB = Field(description="what pieces of a batch cost, whose exchanges run behind attention [mapping]")
    shared_expert_overlap: Fraction = Field(
        description="share of the shared experts' launch latency that runs behind the routed experts [1]"
    )
    unknowns: Unknowns | None = Field(
        None, description="what widens the interval of a measured timing beyond its kernels' residuals [mapping]"
    )
    calibration: Calibration | None = Field(
        None, description="measured kernels; the constants above stand in where a class was not measured [mapping]"
    )

    @property
    def microbatch_order(self) -> str:
        """How two microbatches take turns: as the measured framework has it, or as DeepSeek and SGLang do."""
        order = self.calibration.microbatches if self.calibration else None
        return order.value if order else "attention-in-two"

    def of(self, op_class: str) -> OpConstants:
        """Constants of a class of kernels."""
        return self.pointwise if op_class in ("pointwise", "grouped-pointwise", "convolution") else self.kernel

    def scale_latencies(
        self, *, kernel: float = 1, collective: float = 1, network: float = 1, host: float = 1
    ) -> Timing:
        """The timing with its latencies times a factor, and every other time that no datasheet rate sets.

        kernel: launches and all times in the parameters of measured kernels. collective: phases inside an NVLink domain
        and all times in the parameters of measured collectives. network: phases between domains. host: the step's
        overhead. Rates divided by x and all four times x make every op take x times as long.
        """
        phases, calibration = self.collective, self.calibration
        changed: dict[str, Any] = {
            "kernel": _scaled(self.kernel, kernel, "latency_us"),
            "pointwise": _scaled(self.pointwise, kernel, "latency_us"),
            "collective": _scaled(_scaled(phases, collective, "latency_us"), network, "network_latency_us"),
        }
        if calibration:
            classes = {
                name: _scaled_class(each, collective if SHAPES[each.shape].collective else kernel)
                for name, each in calibration.classes.items()
            }
            scaled = _scaled(calibration, host, "step_overhead_us")
            changed["calibration"] = scaled.model_copy(update={"classes": classes})
        return self.model_copy(update=changed)


def _scaled(record: R, factor: float, name: str) -> R:
    """The record with one of its quantities times a factor."""
    return record.model_copy(update={name: getattr(record, name).scale(factor)})


def _scaled_class(measured: KernelClass, factor: float) -> KernelClass:
    """The class with every parameter that is a time times a factor."""
    times = {name: each.scale(factor) for name, each in measured.parameters.items() if name.endswith(TIMES)}
    return measured.model_copy(update={"parameters": {**measured.parameters, **times}})


def shape_problems(calibration: Calibration) -> list[str]:
    """What is wrong with a calibration's classes against their shapes, a sentence each, the place in front."""
    problems = []
    for name, measured in calibration.classes.items():
        if measured.shape not in SHAPES:
            problems.append(f"{name}.shape: {measured.shape!r} is not one of {', '.join(SHAPES)}")
            continue
        needed = SHAPES[measured.shape].parameters
        for key in [key for key in needed if key not in measured.parameters]:
            problems.append(f"{name}.parameters.{key}: missing; shape {measured.shape} needs it")
        for key, given in measured.parameters.items():
            at = f"{name}.parameters.{key}"
            if key not in needed:
                problems.append(f"{at}: unknown; shape {measured.shape} has {', '.join(needed)}")
            elif not needed[key].low <= given.value <= needed[key].high:
                problems.append(f"{at}: {given.value} is not between {needed[key].low:g} and {needed[key].high:g}")
    return problems
