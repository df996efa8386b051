"""How well kernels add up: whole MLA modules, timed as one, against the sum of their kernels as the timing has them.

A decode step is a sum of kernels that were each timed alone. Whole attention modules were timed as well, from the down
projections to the output projection: what is left between the two is launches that overlap, fused passes, weights
that stay in L2. Nothing is fitted to it. It is the one direct witness of summing, and is taken to hold for the rest of
a step: an interval's term that all kernels share. What the kernels' own residuals explain of it is taken off, in
squares, since an interval has those already.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from helix_sim.core.errors import SpecError
from helix_sim.core.layout import Layout
from helix_sim.core.work import Work
from helix_sim.ops.layers import KINDS
from helix_sim.ops.step_input import StepInput
from helix_sim.silicon import aic_tables as silicon
from helix_sim.silicon.fit import modelled_s, residuals
from helix_sim.silicon.measured_kernels import MATH, TABLE_FORMAT
from helix_sim.silicon.systems import borrowed, machine_of
from helix_sim.specs import kernel_parameters
from helix_sim.specs.load import load_model, load_timing, shipped
from helix_sim.specs.precision import Precision
from helix_sim.specs.timing import Composition, Timing
from helix_sim.timing.kernel_shapes import gpu_of
from helix_sim.timing.roofline import measured_classes, measured_within
from helix_sim.timing.uncertainty import Deviation, interval_deviations, residual_range

if TYPE_CHECKING:
    import pandas as pd

MODULE = (
    *("latent_down_projection", "latent_norm", "query_up_projection", "key_absorption", "rope_and_append"),
    *("attention_core", "value_up_projection", "output_projection"),
)
"""Ops of a step that one measured module runs; its norm and its all-reduce lie outside."""


def borrowed_composition(system: str, framework: str) -> Composition | None:
    """How well the kernels of another framework or system add up, where data says that it stands in; else None.

    It is read from the lender's shipped timing: SpecError where that has to be made first.
    """
    for record, *lender in borrowed(system, framework, "mla_module"):
        name = "-".join(lender)
        lent = load_timing(name).calibration if name in shipped("timing") else None
        if lent is None or lent.composition is None:
            why = f"{framework} on {system} borrows the whole modules of {name}, which is no shipped timing yet"
            raise SpecError([f"{why}; calibrate {name} first, into hardware_profiles/measured_timings"])
        return lent.composition.model_copy(update={"source": f"{lent.composition.source}; borrowed: {record.reason}"})
    return None


def composition(timing: Timing) -> Composition:
    """Measured over summed time of a framework's whole modules, or what is borrowed in their place."""
    assert timing.calibration is not None
    system, framework = timing.calibration.system, timing.calibration.framework
    if lent := borrowed_composition(system, framework):
        return lent
    frame = silicon.mla_module(system, framework)
    frame = frame[frame["gemm_format"].isin(list(TABLE_FORMAT))]
    parts = [_kernels_s(rows, timing, *key) for key, rows in frame.groupby(["kv_format", "gemm_format"])]
    measured = np.concatenate([rows["seconds"] for _, rows in frame.groupby(["kv_format", "gemm_format"])])
    summed, below, above = (np.concatenate(columns) for columns in zip(*parts, strict=True))
    tables = ", ".join(sorted(frame["source"].unique()))
    found = residuals(measured, summed, np.ones(len(measured), dtype=bool))
    low = max(np.expm1(found.low) ** 2 - np.mean((below / summed) ** 2), 0.0) ** 0.5
    high = max(np.expm1(found.high) ** 2 - np.mean((above / summed) ** 2), 0.0) ** 0.5
    return Composition(
        source=f"measured: {silicon.DISTRIBUTION} {silicon.VERSION}, {tables}; {len(frame)} whole modules, none fitted",
        low=-float(f"{low:.4g}"),
        high=float(f"{high:.4g}"),
        residuals=found,
    )


def _kernels_s(rows: pd.DataFrame, timing: Timing, kv: Any, gemm_format: Any) -> tuple[Any, Any, Any]:
    """Seconds of the kernels of some modules of one format, and the deviations that the kernels' own residuals explain.

    Operands are in L2 as a benchmark that repeats one module has them. q_heads of 128 heads: TP of 128 / q_heads.
    """
    assert timing.calibration is not None
    weights = TABLE_FORMAT[gemm_format]
    in_fp8 = kv == "fp8" and silicon.multiplies_in_fp8(timing.calibration.system)
    precision = Precision.model_validate(
        {
            "weights": weights,
            "math": MATH[weights],
            "kv": kv,
            "attention_math": "fp8" if in_fp8 else "bf16",
        }
    )
    batch, context, heads = (rows[name].to_numpy(dtype=float) for name in ("batch", "context", "q_heads"))
    layout = Layout(batch=batch, tpa=128 / heads, tpf=128 / heads)
    model = load_model("deepseek-r1")
    step = StepInput(model=model, precision=precision, layout=layout, context=context)
    ops = KINDS["mla"].ops(step, model.attention["mla"])
    by_class: dict[str, Any] = {}
    for name in MODULE:
        if measured_within(ops[name], timing):
            continue
        key = measured_classes(ops[name], timing)[0].partition("/")[0]
        by_class[key] = by_class.get(key, 0.0) + alone_s(ops[name], timing) * np.ones(len(rows))
    ranges = {name: residual_range(name, timing) for name in by_class}
    below, above = interval_deviations(
        Deviation(cause=name, seconds=seconds, low=ranges[name][0], high=ranges[name][1])
        for name, seconds in by_class.items()
    )
    return sum(by_class.values()), below, above


def alone_s(work: Work, timing: Timing) -> Any:
    """Seconds of one op on the fastest of its measured kernels, as a benchmark that repeats it finds it."""
    assert timing.calibration is not None
    machine = machine_of(timing.calibration.system)
    gpu, best = gpu_of(machine), np.inf
    for name in measured_classes(work, timing):
        record = timing.calibration.classes[name]
        warm = replace(gpu, l2_warm="l2_share" in kernel_parameters.SHAPES[record.shape].parameters)
        best = np.minimum(best, modelled_s(record.shape, [work], warm, machine.flops_per_s, record.values))
    return best
