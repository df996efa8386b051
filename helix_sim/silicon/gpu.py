"""From measurements of this package's own kernels on one GPU to a timing, by the same fit as any other measurements.

The attention core takes the shapes of measured attention, the combine kernel that of one pass over memory. Ceilings
(copy, matmul) and the launch latency inside a CUDA graph set the constants of all other kernels. Collectives cannot be
measured on one GPU: they keep the constants of the timing that serving frameworks share, with their source, and so do
what widens an interval and HOP-B.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from helix_sim.core.errors import SpecError
from helix_sim.core.work import Work
from helix_sim.kernels.measurements import Measurement, ceilings
from helix_sim.ops.attention import attention_core
from helix_sim.ops.elementwise import memory_pass
from helix_sim.silicon.calibrate import BASE
from helix_sim.silicon.fit import Calibrated, Fitted, Measured, fit
from helix_sim.silicon.measured_kernels import row_step
from helix_sim.silicon.systems import machine_of, systems
from helix_sim.specs.attention import GqaAttention, MlaAttention
from helix_sim.specs.load import parse
from helix_sim.specs.machine import Machine
from helix_sim.specs.timing import Timing
from helix_sim.timing.kernel_shapes import gpu_of

if TYPE_CHECKING:
    from helix_sim.specs.timing import KernelClass

FEWEST = 20
"""Cells that a class needs for a fit."""


def system_of(gpu: str) -> str:
    """The system that a GPU's own name means; SpecError with the known ones where none does.

    >>> system_of("NVIDIA H200"), system_of("NVIDIA GB200")
    ('h200', 'gb200')
    """
    for name in sorted(systems(), key=len, reverse=True):
        if name.upper() in gpu.upper():
            return name
    raise SpecError([f"no machine profile for the GPU {gpu!r}; known: {', '.join(systems())}"])


def measured_classes(rows: Sequence[Measurement]) -> list[Measured]:
    """The measured kernels by class, as the equations say their work."""
    found = []
    for name in sorted({row.op_class for row in rows if row.op.startswith("attention") or row.op == "combine"}):
        mine = [row for row in rows if row.op_class == name]
        if len(mine) < FEWEST:
            raise SpecError([f"{name}: {len(mine)} measured cells; a fit needs at least {FEWEST}"])
        columns = {key: np.array([getattr(row, key) for row in mine]) for key in NUMBERS}
        combine = mine[0].op == "combine"
        found.append(
            Measured(
                name="elementwise" if combine else name,
                shape="stream" if combine else SHAPE[mine[0].op],
                works=(_combine(columns) if combine else _attention(mine[0], columns),),
                seconds=columns["median_s"],
                held=np.array([row.held_out for row in mine]),
                source=f"helix_sim's reference {mine[0].op} kernel, {mine[0].stored}",
                largest={} if combine else {key: float(columns[of].max()) for key, of in LARGEST.items()},
            )
        )
    return found


SHAPE = {"attention-gqa": "head-attention", "attention-mla": "latent-attention"}
LARGEST = {"tokens": "context", "rows": "batch"}
NUMBERS = ("batch", "context", "q_heads", "kv_heads", "score_width", "value_width", "hbm_bytes", "flops", "median_s")


def _attention(row: Measurement, columns: Mapping[str, Any]) -> Work:
    """The Work of `ops.attention.attention_core` for the measured sizes."""
    score, value = columns["score_width"], columns["value_width"]
    heads = {"q_heads": columns["q_heads"], "kind": row.op.removeprefix("attention-")}
    kind: Any = (
        GqaAttention.model_construct(**heads, kv_heads=columns["kv_heads"], head_size=score)
        if row.op == "attention-gqa"
        else MlaAttention.model_construct(**heads, kv_lora_rank=value, rope_width=score - value)
    )
    step = row_step(kv=row.stored, attention_math=row.math, batch=columns["batch"], context=columns["context"])
    return attention_core(step, kind)


def _combine(columns: Mapping[str, Any]) -> Work:
    return memory_pass("elementwise", moved_bytes=columns["hbm_bytes"], rows=columns["batch"])


def calibrate(
    rows: Sequence[Measurement], provenance: Mapping[str, str], say: Callable[[str], None] = lambda _: None
) -> Calibrated:
    """The timing of one GPU's measurements; SpecError says what they lack.

    provenance: gpu, driver, versions, date and commit, as `kernels.measure.provenance` tells them.
    """
    system = system_of(provenance.get("gpu", "unknown"))
    machine = machine_of(system)
    try:
        best = ceilings(rows)
    except ValueError as error:
        raise SpecError([str(error)]) from None
    fitted: dict[str, Fitted] = {}
    for measured in measured_classes(rows):
        fitted[measured.name] = fit(measured, gpu_of(machine), machine.flops_per_s)
        errors = fitted[measured.name].record.residuals
        say(f"{measured.name}: {errors.count} held out, median {errors.median_error:.1%}, mean {errors.mean_error:.1%}")
    classes = {name: each.record for name, each in fitted.items()}
    return Calibrated(timing=_timing(system, machine, rows, best, classes, provenance), fitted=fitted)


def _timing(
    system: str,
    machine: Machine,
    rows: Sequence[Measurement],
    best: Mapping[str, float],
    classes: Mapping[str, KernelClass],
    provenance: Mapping[str, str],
) -> Timing:
    taken = ", ".join(f"{key} {value}" for key, value in provenance.items())
    launches = [row.median_s for row in rows if row.op == "launch"]
    kernel = {"bandwidth_share": _share("best copy", best["hbm_bytes_per_s"] / machine.hbm_bytes_per_s)}
    if "bf16_flops_per_s" in best:
        kernel["math_share"] = _share("best BF16 matmul", best["bf16_flops_per_s"] / machine.flops_per_s("bf16"))
    if launches:
        kernel["latency_us"] = {"value": _rounded(min(launches) * 1e6), "source": "measured: launch in a CUDA graph"}
    content = {
        "kind": "timing",
        "name": f"{system}-reference",
        "description": f"helix_sim's reference kernels as measured: {taken}",
        "extends": BASE,
        "kernel": kernel,
        "calibration": {
            "system": system,
            "framework": "helix_sim",
            "package": f"helix_sim {provenance.get('helix_sim', 'unknown')}",
            "step_overhead_us": {"value": 0, "source": "assumed: none; a step was not measured"},
            "classes": {name: record.model_dump() for name, record in classes.items()},
        },
    }
    return parse(Timing, content, f"{system}-reference")


def _share(what: str, value: float) -> dict[str, Any]:
    return {"value": min(_rounded(value), 1.0), "source": f"measured: {what} over the datasheet rate"}


def _rounded(value: float) -> float:
    return float(f"{value:.4g}")
