"""One layout, op by op, as an answer that other verbs read back."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from helix_sim.core.display import Shown
from helix_sim.core.version import __version__
from helix_sim.ops.memory import kv_tokens_that_fit
from helix_sim.search.identity import Input
from helix_sim.search.layout_source import Options, Picked, pick
from helix_sim.specs.ffn import RoutedFfn
from helix_sim.specs.quantities import ANSWER_VERSION
from helix_sim.step import Step, op_rows
from helix_sim.timing.uncertainty import borrowed_kernel


def answer_record(step: Step, inputs: Mapping[str, Input], longest_context: int) -> dict[str, Any]:
    """What every answer says of a layout, as plain data: inputs, widths, formats, contexts, and what a user sees.

    `helix_sim.search.layout_source.pick` reads it back, and checks that the inputs hold what they held.
    """
    drafter = step.setting.drafter
    drafting: dict[str, Any] = {}
    if drafter and step.layout.draft_tokens:
        drafting = {
            "draft": drafter.draft.name,
            "step_s": float(step.step_s),
            "accepted_tokens": float(step.accepted_tokens),
        }
    return {
        "helix_sim": __version__,
        "answer_version": ANSWER_VERSION,
        "model": step.model.name,
        "machine": step.machine.name,
        "timing": step.timing.name,
        "inputs": {kind: inputs[kind].record() for kind in ("model", "machine", "timing", "draft") if kind in inputs},
        "context": int(step.context),
        "longest_context": longest_context,
        "query_tokens": int(step.query_tokens),
        "precision": step.precision.model_dump(exclude_none=True),
        "layout": step.layout.columns(),
        "gpus": int(step.layout.gpus),
        "users": int(step.layout.users),
        "kv_tokens": kv_tokens(step),
        "memory_bytes": memory_record(step),
        **drafting,
        "ttl_s": float(step.ttl_s),
        "tokens_per_s_user": float(step.tokens_per_s_user),
        "tokens_per_s_gpu": float(step.tokens_per_s_gpu),
        "usd_per_million_tokens": known(step.usd_per_million_tokens),
        "joules_per_token": known(step.joules_per_token),
    }


def memory_record(step: Step) -> dict[str, float]:
    """Memory of a layout's fullest GPU by kind, as plain data [B]."""
    memory = step.memory
    return {
        "weights": float(memory.weights),
        "kv_cache": float(memory.kv_cache),
        "activations": float(memory.activations),
        "resident": float(memory.resident_bytes),
        "reserve": float(memory.reserve),
        "free": float(memory.left_bytes),
        "kv_cache_room": float(memory.kv_room_bytes),
        "capacity": float(memory.capacity),
    }


def kv_tokens(step: Step) -> int:
    """Cached tokens that all attention groups of a layout have memory for, with requests of the step's context."""
    return int(kv_tokens_that_fit(step.memory, step.layout, step.context)) * int(step.layout.dp)


def known(value: float) -> float | None:
    """A number as plain data, none where it is not known (NaN)."""
    return None if math.isnan(value) else float(value)


def routing_of(step: Step) -> dict[str, str]:
    """How tokens are taken to choose experts and how those lie on ranks, in words, by kind of FFN with experts."""
    several = int(step.query_tokens + step.layout.draft_tokens) > 1
    return {
        name: _routing(ffn, int(step.layout.redundant_experts)) + _repeating(ffn) * several
        for name, ffn in step.model.routed_kinds.items()
    }


def _routing(ffn: RoutedFfn, copies: int) -> str:
    popularity = f"the n-th of {ffn.routed} experts is picked as n^-{ffn.routing_skew:g}"
    if not ffn.routing_skew:
        popularity = f"uniform over {ffn.routed} experts, of which it reads the most"
    place = "packed by popularity" if copies or ffn.balanced else "on ranks at random"
    source = ffn.placement.source if ffn.placement and (ffn.balanced or not copies) else "assumed"
    held = f"experts and {copies} copies of the busiest" if copies else "experts"
    return f"{popularity} ({ffn.routing_source or 'assumed'}); {held} {place} ({source})"


def _repeating(ffn: RoutedFfn) -> str:
    """What is said of new tokens of one request, where a step has several."""
    if ffn.repeated is None:
        return "; each new token of a request chooses anew (assumed)"
    return f"; a token repeats {ffn.repeated.value:.0%} of the experts of the one before it ({ffn.repeated.source})"


def borrowed_ops(step: Step) -> dict[str, dict[str, Any]]:
    """Ops of one layout that no kernel of the framework's own times, by name: another's does, or constants do.

    reason: whose it is, and why. low, high: what the op may take over what it is said to take, in an 80 % interval.
    """
    found: dict[str, dict[str, Any]] = {}
    for name, work in step.ops.items():
        if not float(step.repeats[name] * step.times[name].seconds):
            continue
        if lent := borrowed_kernel(work, step.machine, step.timing):
            found[name] = {"reason": lent.reason, "low": float(np.exp(lent.low)), "high": float(np.exp(lent.high))}
    return found


def extrapolated_ops(step: Step) -> list[str]:
    """Ops of one layout that are larger than anything their class was measured at, by name."""
    return [name for name, beyond in step.extrapolated.items() if beyond]


def uncertainty_record(step: Step) -> dict[str, Any]:
    """What a measured timing knows of its own errors on a layout, as plain data; nothing of another timing.

    The TTL's 80 % interval [s], the ops beyond measured sizes, and those on borrowed kernels.
    """
    if step.timing.calibration is None:
        return {}
    low, high = (float(end) for end in step.ttl_interval_s)
    beyond, borrowed = extrapolated_ops(step), borrowed_ops(step)
    return {"ttl_low_s": low, "ttl_high_s": high, "extrapolated_ops": beyond, "borrowed_ops": borrowed}


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation(Shown):
    """A layout taken apart: `picked.step` has each op's work and time, the memory, the latency and the throughput."""

    picked: Picked

    def __repr__(self) -> str:
        return f"<Explanation of {self.picked.step!r}>"

    @property
    def step(self) -> Step:
        """The layout's decode step."""
        return self.picked.step

    def record(self) -> dict[str, Any]:
        """The explanation as plain data: what `explain --json` prints."""
        step = self.step
        return {
            **answer_record(step, self.picked.inputs, self.picked.longest_context),
            **uncertainty_record(step),
            "pass_s": float(step.pass_s),
            **({"routing": routing} if (routing := routing_of(step)) else {}),
            "ops": op_rows(step),
        }


def explain(
    layout: Step | Picked | str | Path, machine: str | None = None, options: Options | None = None
) -> Explanation:
    """One layout, op by op: work, seconds and what binds each op, memory by kind, latency and throughput.

    layout, machine, options: as `helix_sim.search.layout_source.pick` takes them: a model and a machine with widths, an
    answer's file, SWEEP:ID, or a Step. SpecError with every reason where the layout cannot run.
    """
    return Explanation(picked=pick(layout, machine, options))
