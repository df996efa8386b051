"""What a timing knows of its own errors: residuals of measured kernels, how they add up, and what lies beyond them."""

from __future__ import annotations

from typing import Any

import numpy as np

from helix_sim.core.work import Work
from helix_sim.specs.timing import KernelClass, Timing
from helix_sim.timing.kernel_shapes import one_piece


def beyond_measured(work: Work, measured: KernelClass) -> Any:
    """Whether an op is larger than anything its class was measured at, for one layout or a column of them."""
    one = one_piece(work)
    beyond: Any = np.asarray(False)
    for name, largest in measured.largest.items():
        beyond = beyond | np.asarray(size_of(one, name) > largest)
    return beyond


def size_of(work: Work, name: str) -> Any:
    """A size of an op, or of its collective, by its name in `KernelClass.largest`."""
    if work.collective is None:
        return getattr(work, name)
    return {"ranks": work.collective.group, "payload": work.collective.payload}[name]


def residual_range(name: str, timing: Timing) -> tuple[float, float]:
    """The tenth and the ninetieth centile of ln(measured / modelled) of a class; the widest of its kernels."""
    assert timing.calibration is not None
    found = [each.residuals for key, each in timing.calibration.classes.items() if key.partition("/")[0] == name]
    return min(each.low for each in found), max(each.high for each in found)


def composition_range(timing: Timing) -> tuple[float, float]:
    """ln of both ends of the 80 % interval of whole modules over the sum of their kernels; (0, 0) where not measured.

    What the kernels' own residuals explain of it is not in it.
    """
    found = timing.calibration.composition if timing.calibration else None
    return (float(np.log1p(found.low)), float(np.log1p(found.high))) if found else (0.0, 0.0)


def interval_deviations(parts: list[tuple[Any, tuple[float, float]]]) -> tuple[Any, Any]:
    """Seconds below and above a sum of independent parts (seconds, (low, high) of ln): T·(1 - e^low), in squares.

    >>> below, above = interval_deviations([(3.0, (-0.1, 0.0)), (4.0, (-0.1, 0.2))])
    >>> round(float(below), 4), round(float(above), 4)
    (0.4758, 0.8856)
    """
    below = sum((seconds * -np.expm1(min(low, 0.0))) ** 2 for seconds, (low, _) in parts)
    above = sum((seconds * np.expm1(max(high, 0.0))) ** 2 for seconds, (_, high) in parts)
    return np.sqrt(below), np.sqrt(above)
