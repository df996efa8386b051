"""The timing: Work to seconds, with a machine's rates and a timing's constants. It knows no model and no layout."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from helix_sim.core.collectives import Collective
from helix_sim.core.kept import kept_for_records, kept_property
from helix_sim.core.numeric import Column, chosen, larger, largest, smaller
from helix_sim.core.units import MICRO
from helix_sim.core.work import Work
from helix_sim.specs.machine import Machine
from helix_sim.specs.timing import CollectiveConstants, KernelClass, Timing
from helix_sim.timing.kernel_shapes import SHAPES, Gpu, gpu_of, one_piece

TERMS = ("latency", "math", "hbm", "link")


@dataclass(frozen=True, kw_only=True)
class OpTime:
    """Seconds of one op, once, by term: latency, then whichever of math, HBM and link takes longest."""

    latency_s: Column
    math_s: Column
    hbm_s: Column
    link_s: Column

    @kept_property
    def body_s(self) -> Any:
        """Time at full rate: the slowest of arithmetic, memory and link."""
        return largest(self.math_s, self.hbm_s, self.link_s)

    @kept_property
    def seconds(self) -> Any:
        """Latency, then the body."""
        return self.latency_s + self.body_s

    @property
    def binds(self) -> str:
        """The largest term, for one layout."""
        terms = (self.latency_s, self.math_s, self.hbm_s, self.link_s)
        return TERMS[int(np.argmax([float(term) for term in terms]))]


def op_time(work: Work, machine: Machine, timing: Timing) -> OpTime:
    """Time of one op on one GPU.

    kernels:     launches · latency + max(FLOP / (share · rate), bytes / (share · HBM bandwidth))
    collectives: phases · latency + max(NVLink bytes / bandwidth, network bytes / bandwidth), in its fastest form
    measured:    the shape of its class, where the timing has a calibration with that class; nothing where another class
                 was measured with the op inside
    """
    if work.op_class == HOST:
        return OpTime(latency_s=_overhead_s(timing), math_s=0.0, hbm_s=0.0, link_s=0.0)
    if measured_within(work, timing):
        return OpTime(latency_s=0.0, math_s=0.0, hbm_s=0.0, link_s=0.0)
    if names := measured_classes(work, timing):
        return _fastest([_measured_time(work, machine, timing, name) for name in names])
    if work.collective is not None:
        return _collective_time(work, machine, timing)
    constants = timing.of(work.op_class)
    rate = machine.flops_per_s(work.math) * constants.math_share.value
    bandwidth = machine.hbm_bytes_per_s * constants.bandwidth_share.value
    return OpTime(
        latency_s=work.kernels * _launches(work, timing) * constants.latency_s,
        math_s=work.flops / rate,
        hbm_s=work.hbm_bytes / bandwidth,
        link_s=0.0,
    )


# --- Measured kernels ------------------------------------------------------------------------------------------------

HOST = "host"
"""Op class of what a step takes outside of its kernels."""

SAME_KERNEL = {
    "fp4": ("nvfp4", "fp8"),
    "nvfp4": ("fp8",),
    "mxfp4": ("nvfp4", "fp8"),
    "fp8-block": ("fp8",),
    "fp8": ("fp8-block",),
    "mxfp8": ("fp8-block", "fp8"),
    "fp16": ("bf16",),
}
"""Number formats whose kernels stand in for those of a format without measurements."""

SAME_KIND = {"attention-window": "attention-gqa", "convolution": "pointwise"}
"""Op classes whose kernels stand in for those of a class without measurements: full attention that is told where to
begin, and a pass over values."""


def measured_classes(work: Work, timing: Timing) -> tuple[str, ...]:
    """Names of the calibration's classes for an op: by its stored format, by its arithmetic, or for all formats.

    Where its kind was not measured, those of a kind that stands in. Several where a framework has kernels to choose
    from, as class/kernel.
    """
    if timing.calibration is None:
        return ()
    kernels, (stored, computed) = timing.calibration.kernels, (work.weights, work.math)
    formats = (stored, *SAME_KERNEL.get(stored, ()), computed, *SAME_KERNEL.get(computed, ()))
    for kind in (work.op_class, SAME_KIND.get(work.op_class, work.op_class)):
        for wanted in (*(f"{kind}-{number_format}" for number_format in formats), kind):
            if names := kernels.get(wanted):
                return names
    return ()


def measured_within(work: Work, timing: Timing) -> bool:
    """Whether an op's time is inside that of the kernels that it is a part of, as these were measured."""
    if work.part is None or work.part_of is None or timing.calibration is None:
        return False
    names = measured_classes(replace(work, op_class=work.part_of), timing)
    return bool(names) and all(work.part in (timing.calibration.classes[name].includes or ()) for name in names)


def running_kernel(work: Work, machine: Machine, timing: Timing) -> tuple[tuple[str, ...], Any]:
    """Names of an op's measured classes and, for each layout of a column, the place of the one that runs, the fastest.

    No names, and place 0, where nothing was measured for the op.
    """
    names = measured_classes(work, timing)
    if len(names) < 2:
        return names, 0
    least, place = np.inf, 0
    for number, name in enumerate(names):
        seconds = _measured_time(work, machine, timing, name).seconds
        place, least = chosen(seconds < least, number, place), smaller(seconds, least)
    return names, place


def _fastest(times: list[OpTime]) -> OpTime:
    """The fastest kernel of several, layout by layout."""
    best = times[0]
    for time in times[1:]:
        better = time.seconds < best.seconds
        best = OpTime(**{f"{t}_s": np.where(better, getattr(time, f"{t}_s"), getattr(best, f"{t}_s")) for t in TERMS})
    return best


def _measured_time(work: Work, machine: Machine, timing: Timing, name: str) -> OpTime:
    """Pieces one after another, each as its class was measured; later pieces may share the first one's latency."""
    assert timing.calibration is not None
    measured = timing.calibration.classes[name]
    gpu = _gpu_under(machine, timing.collective)
    rate = machine.flops_per_s(work.math) if work.collective is None else 1.0
    terms = SHAPES[measured.shape](one_piece(_passed_over(work, machine, timing)), gpu, rate, measured.values)
    latency_s = terms.latency_s
    if measured.domains or measured.dispatched:
        latency_s = latency_s + np.where(_serves(work, machine, timing, measured), 0.0, np.inf)
    return OpTime(
        latency_s=_launches(work, timing) * latency_s,
        math_s=work.pieces * terms.math_s,
        hbm_s=work.pieces * terms.hbm_s,
        link_s=work.pieces * terms.link_s,
    )


@kept_for_records
def _gpu_under(machine: Machine, constants: CollectiveConstants) -> Gpu:
    """What the shapes ask of a machine, with a timing's constants of its network."""
    return gpu_of(machine, network_share=constants.network_share.value, network_latency_s=constants.network_latency_s)


def _passed_over(work: Work, machine: Machine, timing: Timing) -> Work:
    """The op with the tokens that its kernel passes over: those that arrived, where a dispatch leaves no empty rows."""
    assert timing.calibration is not None
    if work.arrived is None or timing.calibration.empty_rows:
        return work
    return replace(work, tokens=_arrived(work, machine, timing))


def _arrived(work: Work, machine: Machine, timing: Timing) -> Any:
    """Tokens that reach experts: all of them where the framework gathers inside an NVLink domain, else those sent.

    Those of two microbatches that take turns are sent: frameworks have them behind a dispatch alone.
    """
    assert timing.calibration is not None
    if work.arrived is None:
        return work.tokens
    if work.brought_by is None or work.in_turns or "dispatch/gather" not in timing.calibration.classes:
        return work.arrived
    return np.where(_in_one_domain(work.brought_by, machine), work.tokens, work.arrived)


def _serves(work: Work, machine: Machine, timing: Timing, measured: KernelClass) -> Any:
    """Whether a class serves an op: another of the framework's kernels runs where it does not."""
    if work.collective is None:
        return _arrived(work, machine, timing) < work.tokens
    return (_in_one_domain(work.collective, machine) & (not work.in_turns)) == (measured.domains == "one")


def _in_one_domain(collective: Collective, machine: Machine) -> Any:
    fewest, _ = collective.neighbours(machine.domain)
    return fewest >= collective.group


def _overhead_s(timing: Timing) -> float:
    return timing.calibration.step_overhead_us.value * MICRO if timing.calibration else 0.0


def _launches(work: Work, timing: Timing) -> Any:
    """Latencies that an op's pieces pay together: all of the first one's, and of each other what comes again."""
    if isinstance(work.pieces, int) and work.pieces == 1:
        return 1
    again = timing.hop_b.kernel_issue.value if work.collective is None else timing.hop_b.exchange_again
    return 1 + (work.pieces - 1) * again


@dataclass(frozen=True, slots=True, kw_only=True)
class PieceTime:
    """One of equal pieces of attention and its exchange [s]: what it holds the GPU and the link for, and its flight."""

    compute_s: Column
    issue_s: Column
    occupancy_s: Column
    flight_s: Column


def piece_time(core: OpTime, sent: OpTime, chunks: Column, timing: Timing) -> PieceTime:
    """What one of `chunks` pieces takes, of an attention core and its exchange, whose times are of all pieces."""
    shares = timing.hop_b
    latency_s = sent.latency_s / (1 + (chunks - 1) * shares.exchange_again)
    return PieceTime(
        compute_s=core.seconds / chunks,
        issue_s=shares.exchange_issue.value * latency_s,
        occupancy_s=sent.body_s / chunks + shares.exchange_occupancy.value * latency_s,
        flight_s=(1 - shares.exchange_again) * latency_s,
    )


def _collective_time(work: Work, machine: Machine, timing: Timing) -> OpTime:
    assert work.collective is not None
    constants = timing.collective
    nvlink = machine.nvlink_bytes_per_s * constants.nvlink_share.value
    network = machine.network_bytes_per_s * constants.network_share.value
    launches = _launches(work, timing)
    (latency, link), *others = (
        (
            launches * (form.phases * constants.latency_s + form.network_phases * constants.network_latency_s),
            larger(form.nvlink_bytes / nvlink, form.network_bytes / network),
        )
        for form in work.collective.forms(machine.domain, machine.nvlink_switch_reduces.value)
    )
    for other_latency, other_link in others:
        better = other_latency + other_link < latency + link
        latency, link = chosen(better, other_latency, latency), chosen(better, other_link, link)
    return OpTime(latency_s=latency, math_s=0.0, hbm_s=0.0, link_s=link)
