"""From measured kernels to a class of a timing: least squares of its shape, cells kept out, residuals.

A class is fitted in the logarithms of its parameters to the logarithm of measured over modelled time, with a loss that
large residuals enter linearly (soft L1). A fifth of the grid's cells is kept out: whole curves, chosen by the CRC-32 of
their coordinates, so that a held-out point has no neighbour of its own curve in the fit. Errors and residual quantiles
are those of the held-out cells.
"""

from __future__ import annotations

import datetime
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from helix_sim.core.escape import yaml_text as dumped
from helix_sim.core.work import Work
from helix_sim.specs import kernel_parameters
from helix_sim.specs.extending import differences
from helix_sim.specs.load import load_timing
from helix_sim.specs.timing import KernelClass, Residuals, Timing
from helix_sim.timing.kernel_shapes import SHAPES, Gpu

if TYPE_CHECKING:
    import pandas as pd

MOST_ROWS = 4000
"""Rows that enter a fit; larger tables are sampled, with a fixed seed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """One class's measurements: the ops that each measured kernel does, its seconds, and what is kept out of the fit.

    A fused kernel is several ops, whose times add up to the measured one.
    """

    name: str
    shape: str
    works: tuple[Work, ...]
    seconds: npt.NDArray[np.float64]
    held: npt.NDArray[np.bool_]
    source: str
    largest: dict[str, float]
    l2_warm: bool = False
    borrowed: bool = False
    """Whether all of it is of another framework's or system's kernels."""
    of_another: str | None = None
    """Which other op's kernel was measured in place of the class's own; its own where not said."""
    includes: tuple[str, ...] = ()
    """Ops of a step beside its own that its time includes."""
    dispatched: bool | None = None
    """Whether it serves experts behind a dispatch alone; all experts where not said."""
    domains: Literal["one", "several"] | None = None
    """Whether it serves groups inside one NVLink domain or across several; both where not said."""
    known: Mapping[str, float] | None = None
    """Parameters that these measurements cannot tell, and the values they are set to."""
    told: Mapping[str, str] = field(default_factory=dict)
    """Where such a parameter is known from instead, if it is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fitted:
    """A class as fitted, with each measurement's modelled time."""

    measured: Measured
    record: KernelClass
    modelled_s: npt.NDArray[np.float64]

    @property
    def log_residuals(self) -> npt.NDArray[np.float64]:
        """Logarithm of measured over modelled time."""
        logs: npt.NDArray[np.float64] = np.log(self.measured.seconds / self.modelled_s)
        return logs


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibrated:
    """A timing from measured kernels, and each class as fitted."""

    timing: Timing
    fitted: dict[str, Fitted]


def held_out(cells: pd.DataFrame) -> npt.NDArray[np.bool_]:
    """Whether each row's cell is kept out of the fit: CRC-32 of its coordinates divisible by five."""
    text = cells.astype(str).agg("|".join, axis=1)
    chosen = {cell: zlib.crc32(cell.encode()) % 5 == 0 for cell in text.unique()}
    return text.map(chosen).to_numpy(dtype=bool)


def rows_of(work: Work, keep: npt.NDArray[Any]) -> Work:
    """Some rows of a column of ops."""

    def cut(value: Any) -> Any:
        return value[keep] if isinstance(value, np.ndarray) and value.ndim else value

    changed: dict[str, Any] = {name: cut(getattr(work, name)) for name in _SIZES}
    sent = work.collective
    if sent is not None:
        changed["collective"] = replace(sent, payload=cut(sent.payload), group=cut(sent.group))
    return replace(work, **changed)


_SIZES = (
    *("flops", "weight_bytes", "idle_weight_bytes", "kv_bytes", "activation_bytes", "rows", "inner", "outer", "copies"),
    *("experts_read", "heads", "tokens", "arrived", "needed", "kernels"),
)


def modelled_s(
    shape: str, works: Sequence[Work], gpu: Gpu, rate: Callable[[str], float], p: Mapping[str, float]
) -> Any:
    """Seconds of a kernel that does these ops, one after the other."""
    total: Any = 0.0
    for work in works:
        terms = SHAPES[shape](work, gpu, rate(work.math) if work.collective is None else 1.0, p)
        total = total + terms.latency_s + np.maximum(np.maximum(terms.math_s, terms.hbm_s), terms.link_s)
    return total


def fit(measured: Measured, gpu: Gpu, rate: Callable[[str], float], *, starts: int = 3) -> Fitted:
    """The class's parameters, and how well they predict the cells kept out."""
    from scipy.optimize import least_squares

    known = dict(measured.known or {})
    free = {k: v for k, v in kernel_parameters.SHAPES[measured.shape].parameters.items() if k not in known}
    gpu = replace(gpu, l2_warm=measured.l2_warm)
    train = np.flatnonzero(~measured.held)
    train = train if len(train) <= MOST_ROWS else np.random.default_rng(0).choice(train, MOST_ROWS, replace=False)
    works = [rows_of(work, train) for work in measured.works]
    target = np.log(measured.seconds[train])

    def values(logs: Any) -> dict[str, float]:
        return {**known, **dict(zip(free, np.exp(logs).tolist(), strict=True))}

    def residual(logs: Any) -> Any:
        return np.log(modelled_s(measured.shape, works, gpu, rate, values(logs))) - target

    low = np.log([max(p.low, 1e-4) for p in free.values()])
    high = np.log([p.high for p in free.values()])
    start = np.log([p.start for p in free.values()])
    rng, best = np.random.default_rng(1), None
    for attempt in range(starts):
        first = np.clip(start + attempt * rng.normal(0, 0.4, len(start)), low + 1e-6, high - 1e-6)
        found = least_squares(residual, first, bounds=(low, high), loss="soft_l1", f_scale=0.08, max_nfev=100)
        best = found if best is None or found.cost < best.cost else best
    assert best is not None
    chosen = values(best.x)
    modelled = modelled_s(measured.shape, measured.works, gpu, rate, chosen)
    return Fitted(measured=measured, record=record_of(measured, chosen, known, modelled), modelled_s=modelled)


def record_of(
    measured: Measured, values: Mapping[str, float], known: Mapping[str, float], modelled: Any
) -> KernelClass:
    """The fitted class as a timing's file says it."""
    today = datetime.datetime.now(tz=datetime.UTC).date().isoformat()
    used = int((~measured.held).sum())
    parameters = {
        name: {
            "value": float(f"{values[name]:.4g}"),
            "source": measured.told.get(name, "assumed: not told by these measurements")
            if name in known
            else "measured: fitted, see the class",
        }
        for name in kernel_parameters.SHAPES[measured.shape].parameters
    }
    return KernelClass.model_validate(
        {
            "shape": measured.shape,
            "source": f"measured: {measured.source}; {used} rows fitted, {len(modelled) - used} held out; {today}",
            "parameters": parameters,
            "largest": measured.largest,
            "borrowed": measured.of_another,
            "includes": list(measured.includes) or None,
            "dispatched": measured.dispatched,
            "domains": measured.domains,
            "residuals": residuals(measured.seconds, modelled, measured.held),
        }
    )


def residuals(seconds: Any, modelled: Any, held: Any) -> Residuals:
    """Quantiles of ln(measured / modelled), and errors, over the held-out rows (over all where none is held out)."""
    keep = held if held.any() else np.ones_like(held)
    logs = np.log(seconds[keep] / modelled[keep])
    errors = np.abs(np.expm1(-logs))
    low, median, high = (float(f"{q:.4g}") for q in np.quantile(logs, [0.1, 0.5, 0.9]))
    return Residuals(
        count=int(keep.sum()),
        low=low,
        median=median,
        high=high,
        median_error=float(f"{np.median(errors):.4g}"),
        mean_error=float(f"{errors.mean():.4g}"),
    )


def yaml_text(timing: Timing) -> str:
    """The timing as its file: what it extends, and what differs from that; numbers with their sources, one a line."""
    content = timing.model_dump(exclude_none=True, exclude={"calibration": {"memory"}})  # the framework's file has it
    if timing.extends:
        said = differences(content, load_timing(timing.extends).model_dump(exclude_none=True))
        first = {"kind": timing.kind, "name": timing.name, "description": timing.description}
        content = first | {"extends": timing.extends} | said
    head = "# Written by `helix-sim calibrate`; refit instead of editing. Only parameters are here, no measurement.\n"
    return head + dumped(content, width=100000, default_flow_style=None)
