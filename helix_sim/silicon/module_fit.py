"""Classes fitted to whole modules: of a module's time, what is left to the kernels that no table has alone.

A module is a sum of ops. Those whose classes a timing has already are taken at their modelled time, times a factor for
the least that they take and one for what more requests and heads add (launches overlap, a benchmark's weights stay in
L2), a pair for each model and format; the classes of the others are fitted together, so that the sum comes out.
Residuals are those of whole modules.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from helix_sim.core.work import Work
from helix_sim.silicon.fit import Fitted, Measured, record_of, rows_of
from helix_sim.specs import kernel_parameters
from helix_sim.timing.kernel_shapes import SHAPES, Gpu

MOST_ROWS = 2500
"""Rows that enter a fit, of all groups together; larger tables are sampled, with a fixed seed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Modules of one group of rows: the ops to be fitted by their class, the seconds of all others, and the whole's.

    alike: what the factors on the others are shared by, a kind of a model and its weights' format.
    """

    alike: str
    works: Mapping[str, Work]
    rest_s: npt.NDArray[np.float64]
    seconds: npt.NDArray[np.float64]
    held: npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True, kw_only=True)
class Modules:
    """Groups of measured modules, and the shape of each class that is to be fitted to them.

    known: parameters that these measurements cannot tell, by class. told: where some of those are known from.
    """

    groups: Sequence[Group]
    shapes: Mapping[str, str]
    source: str
    known: Mapping[str, Mapping[str, float]]
    told: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    borrowed: bool = False


REST = (0.6, 1.5)
"""Least and largest factor on the modelled time of a module's other ops."""


def fit_modules(modules: Modules, gpu: Gpu, rate: Callable[[str], float]) -> dict[str, Fitted]:
    """Each class's parameters, and how well the modules come out that were kept out of the fit."""
    from scipy.optimize import least_squares

    gpu = replace(gpu, l2_warm=True)
    alike = sorted({group.alike for group in modules.groups})
    least_s = {name: min(g.rest_s.min() for g in modules.groups if g.alike == name) for name in alike}
    free = [
        (name, key, parameter)
        for name, shape in modules.shapes.items()
        for key, parameter in kernel_parameters.SHAPES[shape].parameters.items()
        if key not in modules.known.get(name, {})
    ]
    low = np.log([*(max(p.low, 1e-4) for *_, p in free), *(REST[0] for _ in 2 * alike)])
    high = np.log([*(p.high for *_, p in free), *(REST[1] for _ in 2 * alike)])
    start = np.log([*(p.start for *_, p in free), *(0.9 for _ in 2 * alike)])
    rows = sum(int((~group.held).sum()) for group in modules.groups)
    train = [_sample(group, min(MOST_ROWS / rows, 1.0)) for group in modules.groups]

    def values(logs: Any) -> dict[str, dict[str, float]]:
        found = {name: dict(modules.known.get(name, {})) for name in modules.shapes}
        for (name, key, _), log in zip(free, logs, strict=False):
            found[name][key] = float(np.exp(log))
        return found

    def total_s(group: Group, of: Mapping[str, Mapping[str, float]], factors: Any) -> Any:
        least, more = factors[alike.index(group.alike)], factors[len(alike) + alike.index(group.alike)]
        total: Any = least * least_s[group.alike] + more * (group.rest_s - least_s[group.alike])
        for name, work in group.works.items():
            terms = SHAPES[modules.shapes[name]](work, gpu, rate(work.math), of[name])
            total = total + terms.latency_s + np.maximum(terms.math_s, terms.hbm_s)
        return total

    def residual(logs: Any) -> Any:
        of, factors = values(logs), np.exp(logs[len(free) :])
        return np.concatenate([np.log(total_s(group, of, factors) / group.seconds) for group in train])

    best = least_squares(
        residual, np.clip(start, low + 1e-6, high - 1e-6), bounds=(low, high), loss="soft_l1", f_scale=0.05, max_nfev=60
    )
    chosen, factors = values(best.x), np.exp(best.x[len(free) :])
    modelled = [total_s(group, chosen, factors) for group in modules.groups]
    at = ", ".join(f"{factors[i]:.2f} and {factors[len(alike) + i]:.2f} ({name})" for i, name in enumerate(alike))
    remark = "whole modules, their other kernels at these shares of their sum, for the least and for what is beyond it"
    source = f"{modules.source}; {remark}: {at}"
    found = {}
    for name, shape in modules.shapes.items():
        having = [i for i, group in enumerate(modules.groups) if name in group.works]
        works = [modules.groups[i].works[name] for i in having]
        measured = Measured(
            name=name,
            shape=shape,
            works=(works[0],),
            seconds=np.concatenate([modules.groups[i].seconds for i in having]),
            held=np.concatenate([modules.groups[i].held for i in having]),
            source=source,
            largest={size: float(max(np.max(getattr(work, size)) for work in works)) for size in ("tokens", "rows")},
            known=modules.known.get(name),
            told=modules.told.get(name, {}),
            borrowed=modules.borrowed,
        )
        whole_s = np.concatenate([modelled[i] for i in having])
        record = record_of(measured, chosen[name], modules.known.get(name, {}), whole_s)
        found[name] = Fitted(measured=measured, record=record, modelled_s=whole_s)
    return found


def _sample(group: Group, share: float) -> Group:
    """The rows of a group that enter the fit: those not held out, or a share of them."""
    train = np.flatnonzero(~group.held)
    train = np.random.default_rng(0).choice(train, max(int(len(train) * share), 1), replace=False)
    return Group(
        alike=group.alike,
        works={name: rows_of(work, train) for name, work in group.works.items()},
        rest_s=group.rest_s[train],
        seconds=group.seconds[train],
        held=group.held[train],
    )
