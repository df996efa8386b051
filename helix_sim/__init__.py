"""helix_sim: how fast a model decodes, sharded every way a rack allows.

An analytical simulator of LLM decoding and an explorer of its layouts: tensor, pipeline, expert and data parallelism,
and KV parallelism (Helix) with its overlap HOP-B, on Blackwell and Hopper machines, at contexts of millions of tokens.

    >>> import helix_sim as hs
    >>> model, machine = hs.load_model("llama-3.1-405b"), hs.load_machine("gb200-nvl72")
    >>> step = hs.decode_step(model, machine, hs.Layout(batch=8, tpa=8, kvp=8, tpf=64), context=1_000_000)
    >>> step.layout.gpus, f"{step.ttl_s * 1e3:.2f} ms"
    (64, '7.39 ms')

Start here:
    load_model, load_machine, load_timing, load_sweep    a shipped name, or the path of your own YAML file
    decode_step(model, machine, layout, context)        one layout: .ttl_s, .tokens_per_s_user, .to_frame() of ops
    run_sweep(name_or_sweep)                             a search: .group("helix") is a Frontier; .to_frame()
    frontier(columns)                                    the Pareto frontier of any table of points
    parse_size("1M")                                     1000000

Units are bytes, FLOP and seconds, per GPU; GB is 1e9. A layout that cannot run raises LayoutError with a sentence for
each reason; a bad file raises SpecError with all of its problems.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from helix_sim.core.errors import SpecError
    from helix_sim.core.layout import Layout
    from helix_sim.core.units import parse_size
    from helix_sim.search.frame import evaluate
    from helix_sim.search.pareto import Frontier, frontier
    from helix_sim.search.sweep import SweepResult, run_sweep
    from helix_sim.specs.load import load_machine, load_model, load_sweep, load_timing
    from helix_sim.specs.machine import Machine
    from helix_sim.specs.model import Model
    from helix_sim.specs.precision import Precision
    from helix_sim.specs.setting import KNOBS, Setting
    from helix_sim.specs.sweep import Sweep
    from helix_sim.specs.timing import Timing
    from helix_sim.step import LayoutError, Step, decode_step, setting_of

__version__ = "0.1.0"

_HOME = {
    "core.errors": ("SpecError",),
    "core.layout": ("Layout",),
    "core.units": ("parse_size",),
    "search.frame": ("evaluate",),
    "search.pareto": ("Frontier", "frontier"),
    "search.sweep": ("SweepResult", "run_sweep"),
    "specs.load": ("load_machine", "load_model", "load_sweep", "load_timing"),
    "specs.machine": ("Machine",),
    "specs.model": ("Model",),
    "specs.precision": ("Precision",),
    "specs.setting": ("KNOBS", "Setting"),
    "specs.sweep": ("Sweep",),
    "specs.timing": ("Timing",),
    "step": ("LayoutError", "Step", "decode_step", "setting_of"),
}
_MODULE_OF = {name: module for module, names in _HOME.items() for name in names}

__all__ = [
    "KNOBS",
    "Frontier",
    "Layout",
    "LayoutError",
    "Machine",
    "Model",
    "Precision",
    "Setting",
    "SpecError",
    "Step",
    "Sweep",
    "SweepResult",
    "Timing",
    "decode_step",
    "evaluate",
    "frontier",
    "load_machine",
    "load_model",
    "load_sweep",
    "load_timing",
    "parse_size",
    "run_sweep",
    "setting_of",
]


def __getattr__(name: str) -> Any:
    """Public names load their module at first use, so that `helix-sim --help` loads none."""
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'helix_sim' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"helix_sim.{_MODULE_OF[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
