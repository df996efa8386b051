"""From measurements to a calibration: latency, share of each ceiling, and how the shares saturate with size.

    t = latency + max( bytes / (bandwidth · share · fill), flops / (rate · share · fill) )

with fill = 1 - exp(-amount / fill amount) for each of the two: too little work to occupy the whole GPU runs at a rate
in proportion to it. Both terms grow with their amount, so a larger shape is never predicted faster. Five numbers per op
class; the ceilings (bandwidth, rate) are the best copy and matmul of the same measurements.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import least_squares

from helix_sim.kernels.measurements import Measurement

Float64 = NDArray[np.float64]
PARAMETERS = {  # and the range that each is sought in
    "latency_us": (0.1, 1e3),
    "bandwidth_share": (0.01, 1.5),
    "math_share": (0.01, 1.5),
    "fill_bytes": (1e2, 1e10),
    "fill_flops": (1e3, 1e14),
}
STARTS = {"bandwidth_share": (0.3, 0.9), "math_share": (0.3, 0.9), "fill_bytes": (1e4, 1e7), "fill_flops": (1e6, 1e9)}
UNLIMITED = {"latency_us": 0.0, "bandwidth_share": 1.0, "math_share": 1.0, "fill_bytes": 0.0, "fill_flops": 0.0}
FEWEST_CELLS = 2 * len(PARAMETERS)
ASSUMED = "assumed: never the bound in these measurements"


@dataclass(frozen=True, slots=True)
class Resource:
    """What an amount of work is called among a measurement's fields, and its two parameters."""

    amount: str
    share: str
    fill: str


MEMORY = Resource("hbm_bytes", "bandwidth_share", "fill_bytes")
MATH = Resource("flops", "math_share", "fill_flops")


def fit(rows: Sequence[Measurement]) -> dict[str, Any]:
    """Calibration fitted to measurements: ceilings, launch latency, and five numbers with residuals per op class.

    Every number is {value, source}. `residuals` holds quantiles of modelled / measured - 1 over the fitted cells and
    over the fifth of the cells held out. ValueError says in one sentence what the measurements lack.
    """
    if not rows:
        raise ValueError("no measurements to fit")
    limits = ceilings(rows)
    classes = sorted({row.op_class for row in rows if row.op.startswith("attention") or row.op == "combine"})
    launches = [row for row in rows if row.op == "launch"]
    return {
        "ceilings": {name: _stated(value, "best of", rows) for name, value in limits.items()},
        "launch_us": _stated(min(row.median_s for row in launches) * 1e6, "best of", launches) if launches else None,
        "op_classes": {name: _fit_class(name, [r for r in rows if r.op_class == name], limits) for name in classes},
    }


def ceilings(rows: Sequence[Measurement]) -> dict[str, float]:
    """Best measured rates: copy bandwidth [bytes/s], counting bytes read and written, and FLOP/s by format.

    >>> copy = Measurement(op="copy", stored="bf16", math="bf16", hbm_bytes=8e9, median_s=2e-3, low_s=2e-3, high_s=2e-3,
    ...     samples=9)
    >>> ceilings([copy])
    {'hbm_bytes_per_s': 4000000000000.0}
    """
    copies = [row.hbm_bytes / row.median_s for row in rows if row.op == "copy"]
    if not copies:
        raise ValueError("no copy among the measurements: without it there is no bandwidth to take a share of")
    best = {"hbm_bytes_per_s": max(copies)}
    for row in rows:
        if row.op == "matmul":
            name = f"{row.math}_flops_per_s"
            best[name] = max(best.get(name, 0.0), row.flops / row.median_s)
    return best


def times_the_bound(row: Measurement, limits: Mapping[str, float]) -> float:
    """Measured time over the larger of its two bounds at the measured ceilings: 1 is perfect.

    >>> row = Measurement(op="combine", stored="fp32", math="fp32", hbm_bytes=4e9, median_s=2e-3, low_s=2e-3,
    ...     high_s=2e-3, samples=9)
    >>> times_the_bound(row, {"hbm_bytes_per_s": 4e12})
    2.0
    """
    return row.median_s / max(row.hbm_bytes / limits["hbm_bytes_per_s"], row.flops / _rate(row, limits))


def predict(values: Mapping[str, float], rows: Sequence[Measurement], limits: Mapping[str, float]) -> Float64:
    """Modelled time of each row [s]; `values` by the names in PARAMETERS."""
    bounds = (_term(resource, values, rows, limits) for resource in (MEMORY, MATH))
    return np.asarray(values["latency_us"] * 1e-6 + np.maximum(*bounds))


def _rate(row: Measurement, limits: Mapping[str, float]) -> float:
    """FLOP/s ceiling of the row's arithmetic; infinite for a row without any."""
    if row.flops == 0:
        return np.inf
    name = f"{row.math}_flops_per_s"
    if name not in limits:
        raise ValueError(f"no {row.math} matmul among the measurements, which {row.op} takes a share of")
    return limits[name]


def _term(
    resource: Resource, values: Mapping[str, float], rows: Sequence[Measurement], limits: Mapping[str, float]
) -> Float64:
    """Time [s] that one resource alone needs for each row: amount / (ceiling · share · fill)."""
    amount = np.array([getattr(row, resource.amount) for row in rows], dtype=np.float64)
    if resource is MEMORY:
        ceiling = np.full(len(rows), limits["hbm_bytes_per_s"])
    else:
        ceiling = np.array([_rate(row, limits) for row in rows])
    # 1e-9 stands for no saturation at all; no work takes no time.
    fill = -np.expm1(-np.maximum(amount, 1.0) / max(values[resource.fill], 1e-9))
    return np.asarray(amount / (ceiling * values[resource.share] * fill))


def _fit_class(name: str, rows: Sequence[Measurement], limits: Mapping[str, float]) -> dict[str, Any]:
    """One op class: five numbers from the cells not held out, judged on the others."""
    fitted = [row for row in rows if not row.held_out]
    judges = [row for row in rows if row.held_out]
    if len(fitted) < FEWEST_CELLS:
        raise ValueError(f"{name}: {len(fitted)} measured cells to fit, at least {FEWEST_CELLS} needed")
    values = _solve(fitted, limits)
    entry = {key: _stated(value, "fitted to", fitted) for key, value in values.items()}
    for own, other in (MEMORY, MATH), (MATH, MEMORY):
        if not np.any(_term(own, values, fitted, limits) > _term(other, values, fitted, limits)):
            values |= {own.share: 1.0, own.fill: 0.0}
            entry |= {key: {"value": values[key], "source": ASSUMED} for key in (own.share, own.fill)}
    spread = {"fitted": _quantiles(values, fitted, limits), "held_out": _quantiles(values, judges, limits)}
    return {**entry, "residuals": spread}


def _solve(rows: Sequence[Measurement], limits: Mapping[str, float]) -> dict[str, float]:
    """Robust least squares of relative errors, in the parameters' logarithms.

    Several starts, since a maximum of two terms has a valley for each choice of which term binds. A resource whose
    ideal time nowhere reaches a quarter of the other's was not tested: left free, it would only bend to the noise.
    """
    measured = np.array([row.median_s for row in rows])
    ideal = {resource: _term(resource, UNLIMITED, rows, limits) for resource in (MEMORY, MATH)}
    free = ["latency_us"]
    for own, other in (MEMORY, MATH), (MATH, MEMORY):
        if np.any(ideal[own] > 0.25 * ideal[other]):
            free += [own.share, own.fill]

    def values(logs: Float64) -> dict[str, float]:
        return UNLIMITED | dict(zip(free, np.exp(logs).tolist(), strict=True))

    def errors(logs: Float64) -> Float64:
        return np.asarray(predict(values(logs), rows, limits) / measured - 1)

    lowest, highest = np.log([PARAMETERS[name] for name in free]).T
    guesses = STARTS | {"latency_us": (measured.min() * 1e6 / 2,)}
    solutions = [
        least_squares(
            errors,
            np.clip(np.log(start), lowest, highest),
            bounds=(lowest, highest),
            loss="soft_l1",
            f_scale=0.05,
        )
        for start in product(*(guesses[name] for name in free))
    ]
    return values(min(solutions, key=lambda solution: float(solution.cost)).x)


def _quantiles(
    values: Mapping[str, float], rows: Sequence[Measurement], limits: Mapping[str, float]
) -> dict[str, float | int]:
    """Spread of modelled / measured - 1 over the rows."""
    if not rows:
        return {"cells": 0}
    errors = predict(values, rows, limits) / np.array([row.median_s for row in rows]) - 1
    p10, p50, p90 = np.quantile(errors, (0.1, 0.5, 0.9)).tolist()
    return {
        "cells": len(rows),
        "mean_abs": float(np.mean(np.abs(errors))),
        "p10": p10,
        "p50": p50,
        "p90": p90,
        "max_abs": float(np.max(np.abs(errors))),
    }


def _stated(value: float, how: str, rows: Sequence[Measurement]) -> dict[str, Any]:
    return {"value": float(f"{value:.6g}"), "source": f"measured: {how} {len(rows)} cells"}
