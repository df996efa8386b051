"""Where a narrower number format is slower: as measured, and as shipped timings have it, size by size of the tables.

`python tests/silicon/narrower.py` prints the table of the accuracy page.
"""

from __future__ import annotations

import functools
import itertools
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from helix_sim.core.units import bytes_per_value
from helix_sim.silicon.fit import modelled_s
from helix_sim.silicon.measured_kernels import gemm_classes, gqa_classes, mla_classes
from helix_sim.silicon.systems import machine_of
from helix_sim.specs.load import load_timing, shipped
from helix_sim.timing.kernel_shapes import gpu_of

MEASURED = [name for name in shipped("timing") if load_timing(name).calibration is not None]
KINDS = {"attention-mla": mla_classes, "attention-gqa": gqa_classes, "gemm": gemm_classes}
SIZES = ("rows", "inner", "outer", "copies", "heads", "tokens")

SLOWER = 1.1
"""From which ratio on a narrower format is called slower on the accuracy page."""
NARROWER = 0.9
"""Formats are a pair where one takes less than this share of the other's bytes; FP8 with and without blocks do not."""


@dataclass(frozen=True, kw_only=True)
class Pair:
    """A class of kernels in two formats: times of the narrower over those of the wider, a ratio each common size.

    error: median errors of both fits together; a modelled ratio within it of 1 says nothing.
    """

    kind: str
    wide: str
    narrow: str
    measured: npt.NDArray[np.float64]
    modelled: npt.NDArray[np.float64]
    error: float

    @property
    def slower_measured(self) -> float:
        """Share of the sizes at which the narrower is slower, as measured."""
        return float(np.mean(self.measured > SLOWER))

    @property
    def slower_modelled(self) -> float:
        """The same, as the timing has it."""
        return float(np.mean(self.modelled > SLOWER))


@functools.cache
def pairs(timing: str, kind: str) -> tuple[Pair, ...]:
    """Every pair of formats of a class on a timing."""
    calibration = load_timing(timing).calibration
    assert calibration is not None
    machine, times = machine_of(calibration.system), {}
    for each in KINDS[kind](calibration.system, calibration.framework):
        record, (work,) = calibration.classes[each.name], each.works
        gpu = replace(gpu_of(machine), l2_warm=each.l2_warm)
        modelled = modelled_s(record.shape, each.works, gpu, machine.flops_per_s, record.values)
        sizes = np.broadcast_arrays(each.seconds, *(np.asarray(getattr(work, name), float) for name in SIZES))[1:]
        times[each.name.removeprefix(f"{kind}-")] = dict(
            zip(
                zip(*(size.tolist() for size in sizes), strict=True),
                zip(each.seconds, modelled, strict=True),
                strict=True,
            )
        )
    found = []
    for wide, narrow in itertools.permutations(times, 2):
        both = times[wide].keys() & times[narrow].keys()
        if both and bytes_per_value(narrow) < NARROWER * bytes_per_value(wide):
            ratios = np.array([np.divide(times[narrow][cell], times[wide][cell]) for cell in sorted(both)])
            error = sum(calibration.classes[f"{kind}-{name}"].residuals.median_error for name in (wide, narrow))
            pair = Pair(kind=kind, wide=wide, narrow=narrow, measured=ratios[:, 0], modelled=ratios[:, 1], error=error)
            found.append(pair)
    return tuple(found)


def table() -> str:
    """Pairs of which some sizes are slower in the narrower format, as Markdown."""
    lines = ["| timing | class | formats | slower, measured | slower, modelled |", "| --- | --- | --- | ---: | ---: |"]
    for timing in MEASURED:
        for pair in (pair for kind in KINDS for pair in pairs(timing, kind)):
            if max(pair.slower_measured, pair.slower_modelled) >= 0.1:
                shares = f"{100 * pair.slower_measured:.0f} % | {100 * pair.slower_modelled:.0f} %"
                lines.append(f"| `{timing}` | {pair.kind} | {pair.narrow} for {pair.wide} | {shares} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(table())
