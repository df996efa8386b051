"""A setting: a model on a machine, under a timing, in number formats. Made once, and handed down.

Two settings are a disaggregated deployment. A knob turns what a setting says of the hardware, in one place, for assumed
and for measured timings alike: sensitivities, what-ifs and varied assumptions all turn the same knobs.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from helix_sim.core.display import Named, Shown
from helix_sim.core.errors import SpecError
from helix_sim.core.text import said
from helix_sim.specs.drafter import Drafter
from helix_sim.specs.machine import Machine
from helix_sim.specs.model import Model
from helix_sim.specs.precision import Precision
from helix_sim.specs.timing import Timing


@dataclass(frozen=True, slots=True, kw_only=True)
class Knob:
    """What a knob scales: fields of the machine, or one of the timing's latencies; `unit` is that of its file.

    latency: an argument of `Timing.scale_latencies`, which scales measured classes as well. constant: the (part, field)
    of the timing that has its value where nothing is measured.
    """

    meaning: str
    unit: str
    machine: tuple[str, ...] = ()
    latency: str = ""
    constant: tuple[str, str] | None = None
    takes_time: bool = True
    """Whether it is a rate or a latency: a step's elasticities to all of these sum to minus and plus one together."""


KNOBS: Named[Knob] = Named(
    {
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
            latency="kernel",
            constant=("kernel", "latency_us"),
        ),
        "collective_latency": Knob(
            meaning="latency of a collective inside an NVLink domain",
            unit="µs",
            latency="collective",
            constant=("collective", "latency_us"),
        ),
        "network_latency": Knob(
            meaning="latency of a collective's phase between NVLink domains",
            unit="µs",
            latency="network",
            constant=("collective", "network_latency_us"),
        ),
        "host_overhead": Knob(
            meaning="what a step takes outside of its kernels",
            unit="µs",
            latency="host",
            constant=("calibration", "step_overhead_us"),
        ),
        "acceptance": Knob(meaning="drafts of a step that are accepted", unit="drafts", takes_time=False),
    }
)
"""Every knob of a setting by name; a layout's own (context, batch) are turned on the layout."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting(Shown):
    """A model on a machine, under a timing, in number formats; and what drafts for it, where something does."""

    model: Model
    machine: Machine
    timing: Timing
    precision: Precision
    drafter: Drafter | None = None

    def __repr__(self) -> str:
        return f"<{self.model.name} on {self.machine.name}, timing {self.timing.name}>"

    def at_price(self, usd_per_gpu_hour: float | None) -> Setting:
        """The setting with another price of a GPU [USD/hour]; itself without one. No time depends on it."""
        return replace(self, machine=self.machine.at_price(usd_per_gpu_hour))

    def scaled(self, knob: str, factor: float) -> Setting:
        """The setting with what a knob names times `factor`, each value with a source that says so.

        knob: a name of KNOBS; SpecError for another.
        """
        if knob not in KNOBS:
            raise SpecError([f"{said(knob)} is no knob of a setting; known: {', '.join(KNOBS)}"])
        turned = KNOBS[knob]
        if knob == "acceptance":
            return replace(self, drafter=self.drafter.scaled(factor) if self.drafter else None)
        given = {name: getattr(self.machine, name) for name in turned.machine}
        changed = {name: quantity.scale(factor) for name, quantity in given.items() if quantity is not None}
        machine = self.machine.model_copy(update=changed)
        timing = self.timing.scale_latencies(**{turned.latency: factor}) if turned.latency else self.timing
        return replace(self, machine=machine, timing=timing)

    def value_of(self, knob: str) -> float:
        """What a knob stands at, in its unit; ValueError for one that scales several fields or measured classes."""
        turned = KNOBS[knob]
        fields = [getattr(self.machine, name) for name in turned.machine]
        if turned.constant and (turned.latency not in ("kernel", "collective") or self.timing.calibration is None):
            part, name = turned.constant
            fields.append(getattr(getattr(self.timing, part), name, None))
        if len(fields) != 1 or fields[0] is None:
            raise ValueError(knob)
        return float(fields[0].value)


class InSetting:
    """What stands in a setting: its parts are at hand, `step.model` for `step.setting.model`."""

    __slots__ = ()

    if TYPE_CHECKING:
        setting: Setting

    @property
    def model(self) -> Model:
        """The model of its setting."""
        return self.setting.model

    @property
    def machine(self) -> Machine:
        """The machine of its setting."""
        return self.setting.machine

    @property
    def timing(self) -> Timing:
        """The timing of its setting."""
        return self.setting.timing

    @property
    def precision(self) -> Precision:
        """The number formats of its setting."""
        return self.setting.precision


def hop_b_doubt(timing: Timing) -> str | None:
    """A sentence on why a timing's kernels cannot run an exchange behind attention; None where they can."""
    searched = timing.hop_b.searched
    return None if searched.value else f"timing {timing.name} says, {searched.source}"


def require_measured_here(machine: Machine, timing: Timing) -> str | None:
    """SpecError where a timing was measured on another system than the machine's file says it is.

    Returns a sentence for the user where that file names no system, since then nothing tells whose kernels these are;
    None where all is well.
    """
    if timing.calibration is None:
        return None
    measured = timing.calibration.system
    if machine.public_tables is None:
        return f"{machine.name} names no public_tables.system: its kernels are taken to be those measured on {measured}"
    if machine.public_tables.system == measured:
        return None
    on = f"timing {timing.name} was measured on {measured}, and {machine.name} is {machine.public_tables.system}"
    use = f"use a timing measured on that, or a machine's file that says public_tables.system {measured}"
    raise SpecError([f"{on}: {use}"])
