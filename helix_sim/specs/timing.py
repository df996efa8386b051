"""A timing as its YAML file says it: constants that turn Work into seconds, assumed or measured."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from helix_sim.core.units import MICRO
from helix_sim.specs.values import (
    Fraction,
    NaturalCount,
    Number,
    Positive,
    Quantity,
    Record,
    Share,
    Source,
    Text,
    WholeQuantity,
)


class OpConstants(Record):
    """What a class of ops reaches: a latency for each launch, and a share of each datasheet rate."""

    latency_us: Quantity
    bandwidth_share: Share
    math_share: Share

    @property
    def latency_s(self) -> float:
        """Latency of one launch."""
        return self.latency_us.value * MICRO


class CollectiveConstants(Record):
    """What collectives reach: a latency for each phase, and a share of each link's datasheet rate."""

    latency_us: Quantity
    network_latency_us: Quantity
    nvlink_share: Share
    network_share: Share

    @property
    def latency_s(self) -> float:
        """Latency of one phase inside a domain."""
        return self.latency_us.value * MICRO

    @property
    def network_latency_s(self) -> float:
        """Latency of one phase between domains, on top of the phase inside."""
        return self.network_latency_us.value * MICRO


class Residuals(Record):
    """Measured over modelled time on cells kept out of the fit, as natural logarithms: quantiles and errors."""

    count: NaturalCount
    low: Number
    """A tenth of the cells lie below: they are faster than modelled by this much."""
    median: Number
    high: Number
    """A tenth of the cells lie above."""
    median_error: Annotated[Number, Field(ge=0)]
    mean_error: Annotated[Number, Field(ge=0)]
    """Absolute errors |modelled / measured - 1|."""

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if not self.low <= self.median <= self.high:
            raise ValueError(f"low {self.low}, median {self.median} and high {self.high} do not rise")
        return self


class KernelClass(Record):
    """One class of kernels as measured: the name of its shape, the shape's parameters, what was measured, how well."""

    shape: Text
    source: Source
    parameters: dict[Text, Quantity]
    largest: dict[Text, Annotated[Number, Field(gt=0)]] = {}
    """Largest measured size by name of a Work's field; what is larger is extrapolated."""
    residuals: Residuals

    @property
    def values(self) -> dict[str, float]:
        """Parameters by name, without their sources."""
        return {name: quantity.value for name, quantity in self.parameters.items()}


class Composition(Record):
    """How well kernels add up: whole modules of a step, timed as one, over the sum of their kernels."""

    source: Source
    low: Annotated[Number, Field(gt=-1, le=0)]
    """Of the sum: an 80 % interval's lower end, less what the kernels' own residuals explain."""
    high: Annotated[Number, Field(ge=0)]
    residuals: Residuals
    """Measured over summed, as it is."""


class Calibration(Record):
    """Measured kernels of one framework on one system, by class, and what its steps take outside of kernels."""

    system: Text
    framework: Text
    package: Text
    sms: WholeQuantity
    l2_MB: Positive
    tray_gpus: WholeQuantity
    """GPUs that share a board; collectives that leave it pay another latency."""
    step_overhead_us: Quantity
    """Host and launch overhead of one step, outside all kernels."""
    composition: Composition | None = None
    """What all kernels of a step share of its interval."""
    classes: dict[Text, KernelClass]
    """By op class and number format: gemm-nvfp4; an op class alone serves all formats."""


class Timing(Record):
    """Constants that turn Work into seconds: the same for every model, layout and figure."""

    kind: Literal["timing"]
    name: Text
    description: Text
    kernel: OpConstants
    pointwise: OpConstants
    collective: CollectiveConstants
    all_reduce_overlap: Fraction
    """Share of an all-reduce's transfer, or of the product before it, that runs behind the other."""
    chunk_latency: Fraction
    """Share of its latencies that each HOP-B chunk after the first pays; 0 splits one latency among all."""
    shared_expert_overlap: Fraction
    """Share of the shared experts' launch latency that runs behind the routed experts."""
    calibration: Calibration | None = None
    """Measured kernels; the constants above stand in where a class was not measured."""

    def of(self, op_class: str) -> OpConstants:
        """Constants of a class of kernels."""
        return self.pointwise if op_class in ("pointwise", "grouped-pointwise") else self.kernel


COLLECTIVE_SHAPES = ("exchange", "gather", "all-reduce")
"""Shapes of measured collectives; all others are those of kernels."""
