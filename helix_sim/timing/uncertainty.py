"""What a timing knows of its own errors, and what it does not: how far a step's time may be off, by cause.

Errors of one cause are one error: they add up over the ops that share it (all ops of a class err together, since one
fit serves them). Different causes know nothing of each other: their deviations add in squares. The causes:

| cause | shared by | how wide, as ln(measured / modelled) |
| --- | --- | --- |
| kernels of a class | its ops | centiles of the residuals of cells kept out of the fit, of the kernel that runs |
| beyond | the ops of a class | a width for each doubling beyond the largest size measured |
| borrowed | the ops of a class | a width where another's kernel, or an assumed one, stands in, unless in the above |
| unmeasured | the ops of a class | by constants: down as borrowed, up as far as measured kernels lie above theirs |
| summing | the kernels of a half of a layer, or of the ends | whole measured modules over the sum of their kernels |
| collectives | all collectives | a width: they were measured alone, not in a step |
| routing | routed experts on several ranks | measured between even and skewed loads |

The widths are a timing's `unknowns`, each from tables of kernels; no serving sets one.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np

from helix_sim.core.numeric import picked
from helix_sim.core.work import Work
from helix_sim.specs.machine import Machine
from helix_sim.specs.timing import KernelClass, Timing
from helix_sim.timing.kernel_shapes import one_piece
from helix_sim.timing.roofline import HOST, measured_classes, running_kernel


@dataclass(frozen=True, slots=True, kw_only=True)
class Deviation:
    """How far one cause may move a part of a step: `seconds` of it, times e^low to e^high in 80 of 100 cases."""

    cause: str
    seconds: Any
    low: Any
    high: Any


def step_deviations(
    ops: Iterable[tuple[Work, Any, str]], machine: Machine, timing: Timing, *, ranks_of_experts: Any = 1
) -> list[Deviation]:
    """What may move a step whose ops, with the seconds that each adds, are these; nothing without measured kernels.

    ops: work, seconds, and the half of a layer that the op is in, whose kernels share how they add up: halves are
    modules of their own. ranks_of_experts: over how many ranks the routed experts are spread, for one layout or a
    column of them.
    """
    if timing.calibration is None:
        return []
    found: list[Deviation] = []
    for work, seconds, half in ops:
        if work.op_class != HOST:
            found += _op_deviations(work, seconds, half, machine, timing, ranks_of_experts)
    return found


def _op_deviations(
    work: Work, seconds: Any, half: str, machine: Machine, timing: Timing, ranks_of_experts: Any
) -> list[Deviation]:
    calibration, unknowns = timing.calibration, timing.unknowns
    assert calibration is not None
    names, place = running_kernel(work, machine, timing)
    measured = [calibration.classes[name] for name in names]
    if not names and unknowns is None:
        return []
    served = names[0].partition("/")[0] if names else work.op_class
    found = []

    def add(cause: str, low: Any, high: Any) -> None:
        found.append(Deviation(cause=cause, seconds=seconds, low=low, high=high))

    if names:
        lows, highs = ([getattr(each.residuals, end) for each in measured] for end in ("low", "high"))
        add(f"kernels of {served}", picked(lows, place), picked(highs, place))
    if unknowns:
        borrows = picked([stands_in(work, served, each) for each in measured], place) if names else False
        low, high = stand_in_range(work, timing)
        if not names:
            add(f"unmeasured {served}", low, high)
        elif np.any(borrows):
            add(f"borrowed {served}", low * borrows, high * borrows)
        beyond = doublings_beyond(work, measured)
        width = unknowns.beyond_per_doubling.value * beyond
        add(f"beyond {served}", -width, width)
    if work.collective is None:
        add(f"summing {half}", *composition_range(timing))
    elif unknowns:
        add("collectives", -unknowns.collective.value, unknowns.collective.value)
    if unknowns and served.startswith("grouped"):
        spread = ranks_of_experts > 1
        add("routing", -unknowns.routing_low.value * spread, unknowns.routing_high.value * spread)
    return found


def stands_in(work: Work, served: str, measured: KernelClass) -> bool:
    """Whether a kernel of class `served` is not an op's own: of another format, or borrowed and not widened for it."""
    of_another = served not in (work.op_class, f"{work.op_class}-{work.weights}")
    return of_another or (measured.borrowed is not None and not measured.widened)


def stand_in_range(work: Work, timing: Timing) -> tuple[float, float]:
    """ln of both ends of what an op may take over what another's kernel, or a timing's constants, say of it.

    (0, 0) where the timing's unknowns are not known. A collective without a class is as one that another stands in for.
    """
    unknowns = timing.unknowns
    if unknowns is None:
        return 0.0, 0.0
    width = (unknowns.borrowed_collective if work.collective else unknowns.borrowed_kernel).value
    if work.collective or measured_classes(work, timing):
        return -width, width
    return -width, max(width, unknowns.unmeasured.value)


@dataclass(frozen=True, slots=True, kw_only=True)
class Borrowed:
    """What times an op in place of the op's own kernel, and ln of both ends of what it may take over that."""

    reason: str
    low: float
    high: float


def borrowed_kernel(work: Work, machine: Machine, timing: Timing) -> Borrowed | None:
    """What stands in for the kernel of an op of one layout: another's, or a timing's constants; None for its own.

    None of a timing without measured kernels too, and of what is outside of kernels.
    """
    if timing.calibration is None or work.op_class == HOST:
        return None
    names, place = running_kernel(work, machine, timing)
    low, high = stand_in_range(work, timing)
    if not names:
        return Borrowed(reason=f"no {work.op_class} was measured: by the timing's constants", low=low, high=high)
    runs, served = timing.calibration.classes[names[int(place)]], names[0].partition("/")[0]
    own = runs.residuals
    if not stands_in(work, served, runs):
        return Borrowed(reason=runs.borrowed, low=own.low, high=own.high) if runs.borrowed else None
    why = runs.borrowed or f"{served} stands in for {work.op_class} of {work.weights}"
    return Borrowed(reason=why, low=-float(np.hypot(own.low, low)), high=float(np.hypot(own.high, high)))


def doublings_beyond(work: Work, measured: list[KernelClass]) -> Any:
    """How often the sizes that an op's class was measured at have to be doubled to reach the op; 0 inside.

    Several sizes beyond the largest add in squares; of several kernels, the one that was measured nearest counts.
    """
    one, nearest = one_piece(work), np.inf
    for each in measured:
        squares: Any = 0.0
        for name, largest in each.largest.items():
            squares = squares + np.log2(np.maximum(size_of(one, name) / largest, 1.0)) ** 2
        nearest = np.minimum(nearest, np.sqrt(squares))
    return nearest if measured else 0.0


def beyond_measured(work: Work, measured: KernelClass) -> Any:
    """Whether an op is larger than anything its class was measured at, for one layout or a column of them."""
    return doublings_beyond(work, [measured]) > 0


def size_of(work: Work, name: str) -> Any:
    """A size of an op, or of its collective, by its name in `KernelClass.largest`."""
    if work.collective is None:
        return getattr(work, name)
    return {"ranks": work.collective.group, "payload": work.collective.payload}[name]


def residual_range(name: str, timing: Timing) -> tuple[float, float]:
    """The tenth and the ninetieth centile of ln(measured / modelled) of a class; the widest of its kernels."""
    assert timing.calibration is not None
    found = [timing.calibration.classes[key].residuals for key in timing.calibration.kernels[name]]
    return min(each.low for each in found), max(each.high for each in found)


def composition_range(timing: Timing) -> tuple[float, float]:
    """ln of both ends of the 80 % interval of whole modules over the sum of their kernels; (0, 0) where not measured.

    What the kernels' own residuals explain of it is not in it.
    """
    found = timing.calibration.composition if timing.calibration else None
    return (float(np.log1p(found.low)), float(np.log1p(found.high))) if found else (0.0, 0.0)


def interval_deviations(parts: Iterable[Deviation]) -> tuple[Any, Any]:
    """Seconds below and above a sum: T·(1 - e^low) and T·(e^high - 1), added within a cause, in squares across causes.

    >>> half = [Deviation(cause="a", seconds=1.5, low=-0.1, high=0.0)] * 2
    >>> below, above = interval_deviations([*half, Deviation(cause="b", seconds=4.0, low=-0.1, high=0.2)])
    >>> round(float(below), 4), round(float(above), 4)
    (0.4758, 0.8856)
    """
    below: dict[str, Any] = {}
    above: dict[str, Any] = {}
    for part in parts:
        down = part.seconds * -np.expm1(np.minimum(part.low, 0.0))
        up = part.seconds * np.expm1(np.maximum(part.high, 0.0))
        below[part.cause] = below.get(part.cause, 0.0) + down
        above[part.cause] = above.get(part.cause, 0.0) + up
    return np.sqrt(sum(each**2 for each in below.values())), np.sqrt(sum(each**2 for each in above.values()))


CENTILE = NormalDist().inv_cdf(0.9)
"""Standard deviations from a normal's middle to the upper end of its 80 % interval."""


def held_at(confidence: float, middle: Any, high: Any) -> Any:
    """What a quantity stays below with a chance of `confidence`, 0.5 or more, by its middle and its 90th centile.

    Above its middle it is taken to be one half of a normal curve.

    >>> held_at(0.9, 10.0, 12.0), held_at(0.5, 10.0, 12.0)
    (12.0, 10.0)
    """
    return middle + (high - middle) * (NormalDist().inv_cdf(confidence) / CENTILE)


def chance_below(limit: float, middle: float, low: float, high: float) -> float:
    """Chance that a quantity is at most `limit`, by its middle and both ends of its 80 % interval.

    It is taken to be two halves of normal curves, one below its middle and one above.

    >>> [round(chance_below(limit, 10.0, 9.0, 12.0), 3) for limit in (9.0, 10.0, 12.0, 14.0)]
    [0.1, 0.5, 0.9, 0.995]
    """
    spread = high - middle if limit >= middle else middle - low
    if not spread:
        return float(limit >= middle)
    return NormalDist().cdf(CENTILE * (limit - middle) / spread)
