"""helix_sim: how fast a model decodes, sharded every way a rack allows.

An analytical simulator of LLM decoding and an explorer of its layouts: tensor, pipeline, expert and data parallelism,
and KV parallelism (Helix) with its overlap HOP-B, on Blackwell and Hopper machines, at contexts of millions of tokens.

    >>> import helix_sim as hs
    >>> model, machine = hs.load_model("llama-3.1-405b"), hs.load_machine("gb200-nvl72")
    >>> step = hs.decode_step(model, machine, hs.Layout(batch=8, tpa=8, kvp=8, tpf=64), context=1_000_000)
    >>> step.layout.gpus, f"{step.ttl_s * 1e3:.2f} ms"
    (64, '14.54 ms')

Start here:
    load_model, load_machine, load_timing, load_sweep    a shipped name, or the path of your own YAML file
    load_draft(name)                                     what drafts tokens, for decode_step(…, draft=…)
    decode_step(model, machine, layout, context)         one layout: .ttl_s, .tokens_per_s_user, .to_frame() of ops
    setting_of(model, machine), Setting.scaled(knob, x)  a setting made once, and its knobs
    evaluate(setting, frame)                             a DataFrame of layouts in; times, memory and reasons out
    run_sweep(name_or_sweep)                             a search: .group("helix") is a Frontier; .to_frame()
    frontier(columns)                                    the Pareto frontier of any table of points
    parse_size("1M")                                     1000000

Every verb of the command line is one call: explain, capacity, recommend, compare, export, trace, sensitivity, what_if,
run_sweep, write_sweep, write_report, regress and update_baselines, reproduce, calibrate_silicon, calibrate_gpu,
validate_kernels, validate_servings, validate_measurements, import_hf, models, machines, check and json_schema (schema).

Units are bytes, FLOP and seconds, per GPU; GB is 1e9. A layout that cannot run raises LayoutError with a sentence for
each reason; a bad file raises SpecError with all of its problems.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from helix_sim.core.display import drawn_by
from helix_sim.core.version import __version__ as __version__

if TYPE_CHECKING:
    from helix_sim.answers.capacity import Capacity, capacity
    from helix_sim.answers.compare import compare
    from helix_sim.answers.explain import Explanation, explain
    from helix_sim.answers.recommend import recommend
    from helix_sim.answers.request import Request, parse_mix
    from helix_sim.answers.sensitivity import elasticities, frontier_sensitivity, sensitivity, what_if
    from helix_sim.core.errors import Exit, SpecError
    from helix_sim.core.layout import Layout
    from helix_sim.core.units import parse_size
    from helix_sim.gate.regress import regress
    from helix_sim.gate.regress import update as update_baselines
    from helix_sim.one_layout import LayoutError
    from helix_sim.output.beyond_files import write_beyond as reproduce_beyond
    from helix_sim.output.calibration import (
        calibrate_gpu,
        calibrate_silicon,
        validate_kernels,
        validate_measurements,
        validate_servings,
    )
    from helix_sim.output.export import export
    from helix_sim.output.paper_files import redraw as reproduce
    from helix_sim.output.report import write_report
    from helix_sim.output.sweep_folder import write_sweep
    from helix_sim.output.trace import trace
    from helix_sim.search.frame import decode_step, evaluate
    from helix_sim.search.layout_source import Options, Picked, pick
    from helix_sim.search.pareto import Frontier, frontier
    from helix_sim.search.sweep import SweepResult, run_sweep
    from helix_sim.specs.catalogue import check, machines, models
    from helix_sim.specs.comparison import Comparison
    from helix_sim.specs.draft import Draft
    from helix_sim.specs.import_hf import import_file as import_hf
    from helix_sim.specs.load import check_file, load_draft, load_machine, load_model, load_sweep, load_timing, shipped
    from helix_sim.specs.machine import Machine
    from helix_sim.specs.model import Model
    from helix_sim.specs.precision import Precision
    from helix_sim.specs.schema import json_schema
    from helix_sim.specs.setting import KNOBS, Setting
    from helix_sim.specs.sweep import Sweep
    from helix_sim.specs.timing import Timing
    from helix_sim.step import Step, setting_of

_HOME = {
    "one_layout": ("LayoutError",),
    "answers.capacity": (
        "Capacity",
        "capacity",
    ),
    "answers.compare": ("compare",),
    "answers.explain": (
        "Explanation",
        "explain",
    ),
    "answers.recommend": ("recommend",),
    "answers.request": (
        "Request",
        "parse_mix",
    ),
    "answers.sensitivity": (
        "elasticities",
        "frontier_sensitivity",
        "sensitivity",
        "what_if",
    ),
    "core.errors": (
        "Exit",
        "SpecError",
    ),
    "core.layout": ("Layout",),
    "core.units": ("parse_size",),
    "gate.regress": (
        "regress",
        "update_baselines",
    ),
    "output.beyond_files": ("reproduce_beyond",),
    "output.calibration": (
        "calibrate_gpu",
        "calibrate_silicon",
        "validate_kernels",
        "validate_measurements",
        "validate_servings",
    ),
    "output.export": ("export",),
    "output.paper_files": ("reproduce",),
    "output.report": ("write_report",),
    "output.sweep_folder": ("write_sweep",),
    "output.trace": ("trace",),
    "search.frame": (
        "decode_step",
        "evaluate",
    ),
    "search.layout_source": (
        "Options",
        "Picked",
        "pick",
    ),
    "search.pareto": (
        "Frontier",
        "frontier",
    ),
    "search.sweep": (
        "SweepResult",
        "run_sweep",
    ),
    "specs.comparison": ("Comparison",),
    "specs.catalogue": (
        "check",
        "machines",
        "models",
    ),
    "specs.draft": ("Draft",),
    "specs.import_hf": ("import_hf",),
    "specs.load": (
        "check_file",
        "load_draft",
        "load_machine",
        "load_model",
        "load_sweep",
        "load_timing",
        "shipped",
    ),
    "specs.machine": ("Machine",),
    "specs.model": ("Model",),
    "specs.precision": ("Precision",),
    "specs.schema": ("json_schema",),
    "specs.setting": (
        "KNOBS",
        "Setting",
    ),
    "specs.sweep": ("Sweep",),
    "specs.timing": ("Timing",),
    "step": (
        "Step",
        "setting_of",
    ),
}
"""Public names by the module they live in."""
_RENAMED = {
    "update_baselines": "update",
    "reproduce": "redraw",
    "reproduce_beyond": "write_beyond",
    "import_hf": "import_file",
}
"""Public names that their module knows by a shorter one."""
_MODULE_OF = {name: module for module, names in _HOME.items() for name in names}

__all__ = [
    "KNOBS",
    "Capacity",
    "Comparison",
    "Draft",
    "Exit",
    "Explanation",
    "Frontier",
    "Layout",
    "LayoutError",
    "Machine",
    "Model",
    "Options",
    "Picked",
    "Precision",
    "Request",
    "Setting",
    "SpecError",
    "Step",
    "Sweep",
    "SweepResult",
    "Timing",
    "calibrate_gpu",
    "calibrate_silicon",
    "capacity",
    "check",
    "check_file",
    "compare",
    "decode_step",
    "elasticities",
    "evaluate",
    "explain",
    "export",
    "frontier",
    "frontier_sensitivity",
    "import_hf",
    "json_schema",
    "load_draft",
    "load_machine",
    "load_model",
    "load_sweep",
    "load_timing",
    "machines",
    "models",
    "parse_mix",
    "parse_size",
    "pick",
    "recommend",
    "regress",
    "reproduce",
    "reproduce_beyond",
    "run_sweep",
    "sensitivity",
    "setting_of",
    "shipped",
    "trace",
    "update_baselines",
    "validate_kernels",
    "validate_measurements",
    "validate_servings",
    "what_if",
    "write_report",
    "write_sweep",
]


def _drawn(shown: object) -> str:
    """An object as HTML, by the module that is loaded when the first one is shown."""
    from helix_sim.output.html import html_of

    return html_of(shown)


drawn_by(_drawn)


def __getattr__(name: str) -> Any:
    """Public names load their module at first use, so that `helix-sim --help` loads none."""
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'helix_sim' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"helix_sim.{_MODULE_OF[name]}"), _RENAMED.get(name, name))
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """What tab completion shows: the public names alone."""
    return sorted({*__all__, "__version__", "__doc__"})
