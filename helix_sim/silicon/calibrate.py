"""A timing of one framework on one system: every class fitted, and what a step takes outside of kernels."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from functools import cache
from typing import Any

import numpy as np

from helix_sim.core.errors import SpecError
from helix_sim.core.text import said
from helix_sim.silicon import aic_tables as silicon
from helix_sim.silicon.attention_kinds import kind_classes
from helix_sim.silicon.composition import borrowed_composition, composition
from helix_sim.silicon.fit import Calibrated, Fitted, Measured, fit
from helix_sim.silicon.measured_kernels import SECTIONS, apart, lent_class, measurements
from helix_sim.silicon.systems import machine_of
from helix_sim.specs import kernel_parameters
from helix_sim.specs.load import load_framework, load_timing, parse
from helix_sim.specs.machine import Machine
from helix_sim.specs.timing import KernelClass, Timing
from helix_sim.specs.values import Quantity
from helix_sim.timing.kernel_shapes import gpu_of

BASE = "serving-stack"
"""The timing that every timing of a serving framework extends."""


def calibrate(
    system: str, framework: str, *, software: str | None = None, say: Callable[[str], None] = lambda _: None
) -> Calibrated:
    """Fit every class of one framework on one system, and make a timing of them.

    software: the framework's version whose time the tables should be of, where the package has several; its current
    one unless given.
    """
    if software and not re.fullmatch(r"\d+(\.\d+)+\w*(\.\w+)*", software):
        raise SpecError([f"--as-of: {said(software)} is not a version of {framework}, such as 1.2.0rc6"])
    borrowed_composition(system, framework)  # refuses before the fits, where a lender's timing is not there yet
    with silicon.software(framework, software) if software else nullcontext():
        found = measurements(system, framework)
    machine = machine_of(system)
    fitted: dict[str, Fitted] = {}
    for measured in found:
        fitted[measured.name] = fit(measured, gpu_of(machine), machine.flops_per_s)
        errors = fitted[measured.name].record.residuals
        say(f"{measured.name}: {errors.count} held out, median {errors.median_error:.1%}, mean {errors.mean_error:.1%}")
    made = _timing(system, framework, fitted)
    with silicon.software(framework, software) if software else nullcontext():
        made, kinds = with_kinds(made, say)
    fitted |= kinds
    assert made.calibration is not None
    sums = composition(made)
    say(f"whole modules over the sum of their kernels, beyond what each misses: {sums.low:+.1%} to {sums.high:+.1%}")
    changed: dict[str, Any] = {"calibration": made.calibration.model_copy(update={"composition": sums})}
    if software:
        changed |= {"name": f"{made.name}-{software}", "description": f"{made.description}, as of {software}"}
    return Calibrated(timing=made.model_copy(update=changed), fitted=fitted)


def with_kinds(timing: Timing, say: Callable[[str], None] = lambda _: None) -> tuple[Timing, dict[str, Fitted]]:
    """A timing of full attention's kernels, with classes of every other kind that was measured beside its own."""
    assert timing.calibration is not None
    fitted = kind_classes(timing, say)
    classes = {**timing.calibration.classes, **{name: each.record for name, each in fitted.items()}}
    update = {"calibration": timing.calibration.model_copy(update={"classes": classes})}
    return timing.model_copy(update=update), fitted


def as_served(name: str, version: str) -> Timing:
    """A shipped timing, and anew those of its classes that the package measured on software nearer to this version."""
    calibration = load_timing(name).calibration
    assert calibration is not None
    today = silicon.selection(calibration.system, calibration.framework)
    with silicon.software(calibration.framework, version):
        then = silicon.selection(calibration.system, calibration.framework)
    older = {family for family, table in today if then[family, table] != today[family, table]}
    return _refitted(name, version, tuple(sorted(older & set(SECTIONS)))) if older else load_timing(name)


@cache
def _refitted(name: str, version: str, families: tuple[str, ...]) -> Timing:
    timing = load_timing(name)
    assert timing.calibration is not None
    system, framework, classes = timing.calibration.system, timing.calibration.framework, timing.calibration.classes
    machine, changed = machine_of(system), {}
    with silicon.software(framework, version):
        for measured in measurements(system, framework, families):
            if measured.name in classes and measured.source not in classes[measured.name].source:
                changed[measured.name] = _fitted_once(measured, machine)
    update = timing.calibration.model_copy(update={"classes": {**classes, **changed}})
    return timing.model_copy(update={"calibration": update})


_fits: dict[tuple[str, str], KernelClass] = {}


def _fitted_once(measured: Measured, machine: Machine) -> KernelClass:
    """A class's record; several versions of a framework may find the same tables."""
    key = (measured.name, measured.source)
    if key not in _fits:
        _fits[key] = fit(measured, gpu_of(machine), machine.flops_per_s).record
    return _fits[key]


def _timing(system: str, framework: str, fitted: Mapping[str, Fitted]) -> Timing:
    classes = {name: each.record for name, each in fitted.items()}
    classes |= _between_domains(system, framework, classes)
    classes["partial-exchange"] = _partial_exchange(machine_of(system), framework, classes)
    package = f"{silicon.DISTRIBUTION} {silicon.VERSION}"
    content = {
        "kind": "timing",
        "name": f"{system}-{framework}",
        "description": f"kernels of {framework} as measured on {system.upper()}, {package}",
        "extends": BASE,
        "calibration": {
            "system": system,
            "framework": framework,
            "package": package,
            "step_overhead_us": load_framework(framework).step_overhead_us.model_dump(),
            "empty_rows": load_framework(framework).exchange.empty_rows.value,
            "classes": {name: record.model_dump() for name, record in classes.items()},
        },
    }
    return parse(Timing, content, f"{system}-{framework}")


def _between_domains(system: str, framework: str, classes: Mapping[str, KernelClass]) -> dict[str, KernelClass]:
    """dispatch and combine across NVLink domains, where a framework's own serve one domain: another's stand in.

    Its residuals widen by how far frameworks' own kernels of the same kind lie apart where several were measured.
    """
    lent = load_framework(framework).exchange.between_domains
    if lent is None or "dispatch/gather" not in classes:
        return {}
    found = {}
    for name in ("dispatch", "combine"):
        of = lent_class(system, lent.from_framework, name)
        lower, upper = apart(system, framework, name)
        low, high = float(f"{of.residuals.low + lower:.4g}"), float(f"{of.residuals.high + upper:.4g}")
        found[f"{name}/{lent.from_framework}"] = of.model_copy(
            update={
                "source": f"{of.source}; borrowed: {lent.reason}",
                "borrowed": lent.reason,
                "widened": True,
                "domains": "several",
                "residuals": of.residuals.model_copy(update={"low": low, "high": high}),
            }
        )
    return found


def _partial_exchange(machine: Machine, framework: str, classes: Mapping[str, KernelClass]) -> KernelClass:
    """The KV shards' exchange of partial outputs: a fused kernel as published, or NCCL's all-to-all in its place.

    Of the fused kernel the floor was published; more ranks and bytes cost what the framework's dispatch pays for them.
    """
    facts = load_framework(framework).exchange.partials
    _, _, tray = machine.kernel_facts
    fused = facts.fused if machine.domain > tray else None
    of = classes["dispatch"] if fused else classes["all-to-all"]
    taken = {name: of.parameters[name] for name in kernel_parameters.EXCHANGE}
    wide = float(f"{np.log(facts.uncertainty.value):.4g}")
    spread: dict[str, float] = {"low": -wide, "median": 0.0, "high": wide}
    largest = of.largest
    if fused:
        median_us = float(np.median(fused.published_us))
        floor_us = median_us - np.log2(fused.ranks.value) * taken["doubling_us"].value
        taken["latency_us"] = Quantity(
            value=float(f"{floor_us:.4g}"), source=f"{fused.source}; their median, less what the doublings cost"
        )
        errors = np.abs(median_us / np.array(fused.published_us) - 1)
        median_error, mean_error = (float(f"{each:.4g}") for each in (np.median(errors), errors.mean()))
        spread |= {"count": len(errors), "median_error": median_error, "mean_error": mean_error}
        largest = {"ranks": float(fused.ranks.value)}
    collectives = Quantity(value=1, source="measured: one kernel carries both") if fused else facts.collectives
    extra = {"collectives": collectives.model_dump(), "statistics_bytes": facts.statistics_bytes.model_dump()}
    parameters = {name: each.model_dump() for name, each in taken.items()} | extra
    reason = fused.reason if fused else facts.reason
    content = of.model_dump() | {"shape": "partial-exchange", "parameters": parameters, "largest": largest}
    content |= {"residuals": of.residuals.model_dump() | spread, "borrowed": reason, "widened": True}
    source = f"{fused.source}; ranks and bytes, {of.source}" if fused else of.source
    content |= {"source": f"{source}; {reason}; uncertain by a factor of {facts.uncertainty.value:g}"}
    return KernelClass.model_validate(content)
