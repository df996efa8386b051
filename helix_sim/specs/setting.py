"""A setting: a model on a machine, under a timing, in number formats. Made once, and handed down.

Two settings are a disaggregated deployment. A knob turns what a setting says of the hardware, in one place, for assumed
and for measured timings alike: sensitivities, what-ifs and varied assumptions all turn the same knobs.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TypeVar

from helix_sim.core.errors import SpecError
from helix_sim.core.text import said
from helix_sim.specs.machine import Machine
from helix_sim.specs.model import Model
from helix_sim.specs.precision import Precision
from helix_sim.specs.timing import COLLECTIVE_SHAPES, Timing
from helix_sim.specs.values import Quantity, Record

R = TypeVar("R", bound=Record)


@dataclass(frozen=True, slots=True, kw_only=True)
class Knob:
    """What a knob scales: fields of the machine, or constants of the timing; `unit` is that of its file.

    timing: (part, field) of constants. measured: which classes of measured kernels have their times scaled with it:
    "kernel", "collective", or none.
    """

    meaning: str
    unit: str
    machine: tuple[str, ...] = ()
    timing: tuple[tuple[str, str], ...] = ()
    measured: str = ""
    takes_time: bool = True
    """Whether it is a rate or a latency: a step's elasticities to all of these sum to minus and plus one together."""


KNOBS: dict[str, Knob] = {
    "hbm_bandwidth": Knob(meaning="HBM bandwidth", unit="GB/s", machine=("hbm_bandwidth_GBps",)),
    "hbm_capacity": Knob(meaning="memory of a GPU", unit="GB", machine=("memory_GB",), takes_time=False),
    "nvlink_bandwidth": Knob(
        meaning="NVLink bandwidth in one direction", unit="GB/s", machine=("nvlink_per_direction_GBps",)
    ),
    "network_bandwidth": Knob(
        meaning="scale-out bandwidth in one direction", unit="GB/s", machine=("network_per_direction_GBps",)
    ),
    "math_rate": Knob(
        meaning="dense tensor-core rates, all formats",
        unit="TFLOP/s",
        machine=("bf16_dense_TFLOPs", "fp8_dense_TFLOPs", "fp4_dense_TFLOPs"),
    ),
    "kernel_latency": Knob(
        meaning="every time inside a kernel that no rate explains: launches, dependent steps, waves",
        unit="µs",
        timing=(("kernel", "latency_us"), ("pointwise", "latency_us")),
        measured="kernel",
    ),
    "collective_latency": Knob(
        meaning="latency of a collective inside an NVLink domain",
        unit="µs",
        timing=(("collective", "latency_us"),),
        measured="collective",
    ),
    "network_latency": Knob(
        meaning="latency of a collective's phase between NVLink domains",
        unit="µs",
        timing=(("collective", "network_latency_us"),),
    ),
    "host_overhead": Knob(
        meaning="what a step takes outside of its kernels", unit="µs", timing=(("calibration", "step_overhead_us"),)
    ),
}
"""Every knob of a setting by name; a layout's own (context, batch) are turned on the layout."""

TIMES = ("_us", "_ns")
"""How the names of a measured class's parameters end that are times."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """A model on a machine, under a timing, in number formats."""

    model: Model
    machine: Machine
    timing: Timing
    precision: Precision

    def scaled(self, knob: str, factor: float) -> Setting:
        """The setting with what a knob names times `factor`, each value with a source that says so.

        knob: a name of KNOBS; SpecError for another.
        """
        if knob not in KNOBS:
            raise SpecError([f"{said(knob)} is no knob of a setting; known: {', '.join(KNOBS)}"])
        turned = KNOBS[knob]
        given = {name: getattr(self.machine, name) for name in turned.machine}
        machine = _with(self.machine, {k: _scaled(v, factor) for k, v in given.items() if v is not None})
        timing = self.timing
        for part, name in turned.timing:
            constants = getattr(timing, part)
            if constants is not None:
                timing = _with(timing, {part: _with(constants, {name: _scaled(getattr(constants, name), factor)})})
        if turned.measured and timing.calibration is not None:
            timing = _with(timing, {"calibration": _with_scaled_classes(timing, turned.measured, factor)})
        return replace(self, machine=machine, timing=timing)

    def value_of(self, knob: str) -> float:
        """What a knob stands at, in its unit; ValueError for one that scales several fields or measured classes."""
        turned = KNOBS[knob]
        fields = [getattr(self.machine, name) for name in turned.machine]
        fields += [getattr(getattr(self.timing, part), name) for part, name in turned.timing[:1]]
        if len(fields) != 1 or (turned.measured and self.timing.calibration is not None):
            raise ValueError(knob)
        return float(fields[0].value)


def _with_scaled_classes(timing: Timing, of: str, factor: float) -> Record:
    """The timing's measured classes with every time of those of kernels, or of collectives, scaled."""
    assert timing.calibration is not None
    classes = {}
    for name, measured in timing.calibration.classes.items():
        if (measured.shape in COLLECTIVE_SHAPES) == (of == "collective"):
            scaled = {k: _scaled(v, factor) if k.endswith(TIMES) else v for k, v in measured.parameters.items()}
            measured = _with(measured, {"parameters": scaled})
        classes[name] = measured
    return _with(timing.calibration, {"classes": classes})


def _with(record: R, changed: dict[str, object]) -> R:
    return record.model_copy(update=changed)


def _scaled(quantity: Quantity, factor: float) -> Quantity:
    source = f"assumed: {factor:g} times what it was ({quantity.source})"
    return quantity.model_copy(update={"value": quantity.value * factor, "source": source})
