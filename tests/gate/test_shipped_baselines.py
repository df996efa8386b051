"""What the shipped baselines hold: paper timings and measured ones."""

from __future__ import annotations

import functools
from dataclasses import replace

import pytest

from helix_sim.core.layout import Layout
from helix_sim.gate import baseline, regress
from helix_sim.gate.blame import evaluate_today
from helix_sim.search.plan import Plan, plan
from helix_sim.search.sweep import run_plan
from helix_sim.specs.load import data_folder, load_sweep, load_timing, shipped
from helix_sim.specs.timing import Timing
from helix_sim.step import evaluate_step
from helix_sim.timing.roofline import measured_classes

MEASURED = [name for name in shipped("sweep") if load_timing(load_sweep(name).timing).calibration is not None]


def test_every_shipped_sweep_has_a_baseline_and_some_of_them_a_measured_timing() -> None:
    stored = {path.stem for path in (data_folder("sweeps") / "baselines").glob("*.csv")}
    assert stored == set(shipped("sweep"))
    assert MEASURED


@functools.cache
def today(name: str) -> tuple[Plan, baseline.Baseline]:
    """A shipped sweep, and a baseline of it as it is now."""
    planned = plan(load_sweep(name))
    return planned, baseline.snapshot(run_plan(planned), name, "2026-01-01")


def slower(timing: Timing, name: str) -> Timing:
    """A timing, all kernels of one measured class slower: parameters that are times 1 % larger, shares 1 % smaller."""
    assert timing.calibration is not None
    classes = dict(timing.calibration.classes)
    for key, measured in timing.calibration.classes.items():
        if key.partition("/")[0] == name:
            factors = {part: 0.99 if part.endswith("_share") else 1.01 for part in measured.parameters}
            parameters = {part: measured.parameters[part].scale(factor) for part, factor in factors.items()}
            classes[key] = measured.model_copy(update={"parameters": parameters})
    return timing.model_copy(update={"calibration": timing.calibration.model_copy(update={"classes": classes})})


@pytest.mark.parametrize("name", MEASURED)
def test_a_measured_class_that_is_one_percent_slower_is_caught(name: str) -> None:
    planned, stored = today(name)
    setting = planned.setting
    step = evaluate_step(setting, Layout(batch=8, tpa=2, kvp=2, dp=2, ep=8, chunks=2), 131_072)
    running = [work for name, work in step.ops.items() if float(step.times[name].seconds) > 0]
    classes = {name.partition("/")[0] for work in running for name in measured_classes(work, setting.timing)}
    assert len(classes) >= 8
    for measured in sorted(classes):
        wrong = replace(planned, setting=replace(setting, timing=slower(setting.timing, measured)))
        assert evaluate_today(stored, wrong, regress.RTOL).moves(), measured
    assert not evaluate_today(stored, planned, regress.RTOL).moves()
