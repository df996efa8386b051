"""Sweeps that keep to what stacks start, and GPU counts one by one."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import pytest

from helix_sim.core.errors import SpecError
from helix_sim.feasibility import memory_reason, shape_reasons
from helix_sim.search.plan import plan
from helix_sim.search.sweep import run_plan
from helix_sim.specs.load import check_content
from helix_sim.specs.sweep import Sweep
from helix_sim.stacks.rules import REASONS, first_reason, start_flags
from helix_sim.step import evaluate_step


def sweep(**changes: Any) -> Sweep:
    content = {
        "kind": "sweep",
        "name": "small",
        "description": "small",
        "model": "deepseek-r1",
        "machine": "gb200-nvl72",
        "timing": "paper",
        "precision": {"weights": "nvfp4", "kv": "fp8", "math": "fp4"},
        "contexts": ["100K"],
        "gpus": [4, 6, 8, 24],
        "batch": {"dense_to": 4, "growth": 2, "to": 8},
        "chunks": [1, 2],
        "families": ["helix-dp", "ep", "medha"],
    }
    checked = check_content(content | changes, "small.yaml")
    assert isinstance(checked, Sweep)
    return checked


@pytest.mark.parametrize("stacks", [["vllm"], ["trtllm", "vllm", "sglang"]])
def test_a_sweeps_dropped_layouts_are_those_that_no_stack_starts(stacks: list[str]) -> None:
    planned = plan(sweep(stacks=stacks))
    counted: Counter[tuple[str, str]] = Counter()
    names = list(REASONS)
    for index in range(planned.layouts):
        family, context, x = planned.layout_at(index)
        flags = 0
        for each in (replace(x, chunks=1), x):  # what stands against its widths is counted before its chunks
            flags = flags or int(shape_reasons(planned.model, planned.machine, each, context)) | int(
                start_flags(stacks, planned.model, planned.machine, planned.setting.precision, each)
            )
        if not flags:
            flags = int(memory_reason(evaluate_step(planned.setting, x, context).memory))
        if flags:
            counted[family, names[int(first_reason(flags))]] += 1
    found = run_plan(planned).dropped
    assert {(f, r): n for f, reasons in found.items() for r, n in reasons.items()} == dict(counted)
    assert any(reason == "HOP_B" for _, reason in counted)


def test_without_stacks_physics_alone_drops() -> None:
    dropped = run_plan(plan(sweep())).dropped
    assert not {"HOP_B", "WHOLE_TRAYS"} & {reason for reasons in dropped.values() for reason in reasons}


def test_gpu_counts_one_by_one_are_those_of_the_range() -> None:
    one_by_one, every = plan(sweep(gpus=[8, 4, 8, 5])), plan(sweep(gpus={"from": 4, "to": 8}))
    assert one_by_one.sweep.gpu_counts == [4, 5, 8]
    assert one_by_one.sweep.searched_gpus == "4, 5, 8"
    assert every.sweep.searched_gpus == "4 to 8"

    def searched(planned: Any) -> set[int]:
        shapes = planned.shapes["helix-dp"]
        return set((shapes["tpa"] * shapes["kvp"] * shapes["dp"] * shapes["pp"]).tolist())

    assert searched(one_by_one) == {4, 5, 8} & searched(every)


@pytest.mark.parametrize("gpus", [[], [0], [8, 5000], ["8"], "8"])
def test_gpu_counts_that_are_none_are_refused(gpus: Any) -> None:
    with pytest.raises(SpecError, match="gpus"):
        sweep(gpus=gpus)
