"""What limits a layout or a whole frontier: elasticities, and what-ifs that search again.

The elasticity of y to x is d ln y / d ln x: 1 % more of x changes y by that many percent. It is taken by central finite
differences through the same equations, never by a formula of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from helix_sim.answers.explain import answer_record
from helix_sim.core.display import Short
from helix_sim.core.errors import SpecError
from helix_sim.core.layout import AXES, Layout
from helix_sim.core.units import format_size, parse_size
from helix_sim.feasibility import memory_reason, shape_reasons
from helix_sim.ops.attention import KV_BLOCK_TOKENS
from helix_sim.search.layout_source import Options, Picked, pick
from helix_sim.search.pareto import Frontier, merge
from helix_sim.search.plan import Plan
from helix_sim.search.sweep import SweepResult, run_plan
from helix_sim.specs.setting import KNOBS as SETTING_KNOBS
from helix_sim.specs.setting import Setting
from helix_sim.step import Step, evaluate_step

SMALL = 0.01
"""Relative step of a layout's elasticities: its equations are smooth but for the steps of the context."""
COARSE = 0.1
"""Relative step of a frontier's elasticities: its layouts and batches are whole numbers, so it moves in jumps."""

KNOBS = (*SETTING_KNOBS, "context", "batch")
"""The knobs of one layout: those of its setting, its context and its batch."""
LATENCIES = [name for name, knob in SETTING_KNOBS.items() if knob.unit == "µs"]
"""The knobs that may be turned to nothing."""
SEARCH_KNOBS = KNOBS[:-1]
"""The knobs of a frontier: its batch is searched, not set."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Elasticity:
    """Percent that TTL and tokens/s/GPU change by for one percent more of a knob."""

    knob: str
    ttl: float
    throughput: float

    def record(self) -> dict[str, Any]:
        """The elasticities as plain data."""
        return {"knob": self.knob, "ttl": self.ttl, "throughput": self.throughput}


# --- Turning a knob --------------------------------------------------------------------------------------------------


def scaled_plan(planned: Plan, knob: str, factor: float) -> Plan:
    """The search with a knob turned."""
    sweep = planned.sweep
    if knob == "context":
        contexts = [max(1, round(c * factor)) for c in sweep.contexts]
        return replace(planned, sweep=sweep.model_copy(update={"contexts": contexts}))
    return replace(planned, setting=planned.setting.scaled(knob, factor))


def scaled_step(step: Step, knob: str, factor: float) -> Step:
    """The step with a knob turned; a batch may become a fraction, of which the equations take any."""
    setting, x, context = step.setting, step.layout, step.context
    if knob == "batch":
        x = replace(x, batch=x.batch * factor)
    elif knob == "context":
        context = context * factor
    else:
        setting = setting.scaled(knob, factor)
    return evaluate_step(setting, x, context, step.query_tokens)


def _turned(knobs: tuple[str, ...], setting: Setting) -> list[str]:
    """The knobs that there are something to turn of: the acceptance of drafts only where something drafts."""
    return [knob for knob in knobs if knob != "acceptance" or setting.drafter]


# --- A layout --------------------------------------------------------------------------------------------------------


def elasticities(step: Step) -> list[Elasticity]:
    """What TTL and throughput of one layout depend on, knob by knob; memory decides only whether it fits."""
    found = []
    for knob in _turned(KNOBS, step.setting):
        more, less = _factors(step, knob)
        high, low = scaled_step(step, knob, more), scaled_step(step, knob, less)
        apart = np.log(more / less)
        found.append(
            Elasticity(
                knob=knob,
                ttl=float(np.log(high.ttl_s / low.ttl_s) / apart),
                throughput=float(np.log(high.tokens_per_s_gpu / low.tokens_per_s_gpu) / apart),
            )
        )
    return found


def _factors(step: Step, knob: str) -> tuple[float, float]:
    """Two factors around 1; those of the context end at whole rounds of blocks, lest the dealing of blocks be seen."""
    if knob != "context":
        return 1 + SMALL, 1 / (1 + SMALL)
    rounds = float(step.context / (KV_BLOCK_TOKENS * step.layout.kvp))
    less = max(np.floor(rounds / (1 + SMALL)), 1.0)
    more = max(np.ceil(rounds * (1 + SMALL)), less + 1)
    return float(more / rounds), float(less / rounds)


# --- A frontier ------------------------------------------------------------------------------------------------------

Point = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Ends:
    """Where a search gets to: its fastest layout, and the one with the best throughput within a TTL; None if none."""

    fastest: Point | None
    best: Point | None


def ends(result: SweepResult, ttl_s: float | None = None) -> Ends:
    """The two ends of all families' common frontier, at the sweep's first context."""
    curve: Frontier = merge(result.frontiers[result.sweep.contexts[0]].values(), "all")
    if not len(curve):
        return Ends(fastest=None, best=None)
    at = int(curve.index_at(1 / ttl_s)) if ttl_s else 0
    return Ends(fastest=curve.point(-1), best=curve.point(at) if at < len(curve) else None)


def frontier_elasticities(planned: Plan, ttl_s: float | None = None) -> list[Elasticity]:
    """What the lowest TTL and the best throughput of a whole search depend on, each layout chosen anew.

    ttl_s: the best throughput is that within this TTL; without, the search's best. nan where nothing reaches it.
    """
    found = []
    for knob in _turned(SEARCH_KNOBS, planned.setting):
        high, low = (ends(run_plan(scaled_plan(planned, knob, f)), ttl_s) for f in (1 + COARSE, 1 / (1 + COARSE)))
        found.append(
            Elasticity(
                knob=knob,
                ttl=_slope(high.fastest, low.fastest, "ttl_s"),
                throughput=_slope(high.best, low.best, "tokens_per_s_gpu"),
            )
        )
    return found


def _slope(high: Point | None, low: Point | None, of: str) -> float:
    if high is None or low is None:
        return float("nan")
    return float(np.log(high[of] / low[of]) / (2 * np.log(1 + COARSE)))


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Sensitivity(Short):
    """What limits a layout, or the best of a search.

    of: what it is of, in words. panels: what the two elasticities are of. ttl_s, tokens_per_s_gpu: where it stands now;
    None where no layout of a search gets there.
    """

    of: str
    timing: str
    panels: tuple[str, str]
    ttl_s: float | None
    tokens_per_s_gpu: float | None
    elasticities: list[Elasticity]
    layout: Mapping[str, Any] = field(default_factory=dict)
    """What an answer says of the one layout; nothing of a search."""

    def record(self) -> dict[str, Any]:
        """The sensitivity as plain data, None for an elasticity that there is not."""
        rows = [each.record() for each in self.elasticities]
        return {
            **self.layout,
            "of": self.of,
            "timing": self.timing,
            "panels": list(self.panels),
            "ttl_s": self.ttl_s,
            "tokens_per_s_gpu": self.tokens_per_s_gpu,
            "elasticities": [{k: v if v == v else None for k, v in row.items()} for row in rows],
        }


def sensitivity(
    layout: Step | Picked | str | Path, machine: str | None = None, options: Options | None = None
) -> Sensitivity:
    """What limits one layout: percent that its TTL and throughput change by for one percent more of each knob.

    layout, machine, options: as `helix_sim.search.layout_source.pick` takes them.
    """
    picked = pick(layout, machine, options)
    step = picked.step
    context = format_size(int(step.context))
    return Sensitivity(
        of=f"{step.model.name} on {step.machine.name}, {context} tokens, {step.layout}",
        timing=step.timing.name,
        panels=("TTL of this layout", "throughput of this layout"),
        ttl_s=float(step.ttl_s),
        tokens_per_s_gpu=float(step.tokens_per_s_gpu),
        elasticities=elasticities(step),
        layout=answer_record(step, picked.inputs, picked.longest_context),
    )


def frontier_sensitivity(planned: Plan, ttl_s: float | None = None) -> Sensitivity:
    """What limits the best of a whole search, at the sweep's first context: each layout is chosen anew.

    ttl_s: the best throughput is that within this TTL; without, the search's best.
    """
    now = ends(run_plan(planned), ttl_s)
    context = format_size(planned.sweep.contexts[0])
    within = f" within {ttl_s * 1e3:g} ms" if ttl_s else ""
    return Sensitivity(
        of=f"{planned.model.name} on {planned.machine.name}, {context} tokens, best of {planned.layouts:,} layouts",
        timing=planned.timing.name,
        panels=("lowest TTL", f"best throughput{within}"),
        ttl_s=now.fastest["ttl_s"] if now.fastest else None,
        tokens_per_s_gpu=now.best["tokens_per_s_gpu"] if now.best else None,
        elasticities=frontier_elasticities(planned, ttl_s),
    )


# --- What if ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One knob and the factor it is turned by."""

    knob: str
    factor: float


def parse_change(text: str, planned: Plan) -> Change:
    """KNOB=2x, a factor, or KNOB=VALUE in the unit of the knob's file (GB/s, GB, µs, tokens)."""
    knob, _, amount = text.partition("=")
    if knob not in SEARCH_KNOBS or not amount:
        raise SpecError([f"--set: {text!r} is not KNOB=2x or KNOB=VALUE; knobs: {', '.join(SEARCH_KNOBS)}"])
    try:
        factor = float(amount[:-1]) if amount.endswith("x") else _value(knob, amount) / _now(planned, knob)
    except (ValueError, ZeroDivisionError):
        raise SpecError([f"--set: {amount!r} is no factor such as 2x and no value of {knob}"]) from None
    if knob == "acceptance" and planned.setting.drafter is None:
        raise SpecError([f"--set: {planned.sweep.name} drafts nothing that is accepted: name a draft in the sweep"])
    if not 0 <= factor < np.inf or (factor == 0 and knob not in LATENCIES):
        raise SpecError([f"--set: {text!r} would make {knob} {factor:g} times what it is"])
    return Change(knob=knob, factor=factor)


def _value(knob: str, amount: str) -> float:
    return float(parse_size(amount)) if knob == "context" else float(amount)


def _now(planned: Plan, knob: str) -> float:
    """What a knob stands at, in the unit of its file; a knob of several fields has only factors."""
    if knob == "context":
        return float(planned.sweep.contexts[0])
    return planned.setting.value_of(knob)


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class WhatIf(Short):
    """A search before and after changes; `kept` is the layouts of before, run after: None where they no longer fit.

    ttl_s: the TTL within which the best throughput is taken, if any.
    """

    changes: list[Change]
    ttl_s: float | None
    before: Ends
    after: Ends
    kept: Ends

    def record(self) -> dict[str, Any]:
        """The comparison as plain data."""
        return {
            "changes": {change.knob: change.factor for change in self.changes},
            **{
                name: {"fastest": _point_record(part.fastest), "best": _point_record(part.best)}
                for name, part in (("before", self.before), ("after", self.after), ("kept", self.kept))
            },
        }


def _point_record(point: Point | None) -> dict[str, Any] | None:
    """A layout of a search as an answer has it: its widths together."""
    if point is None:
        return None
    return {"layout": {name: point[name] for name in AXES}} | {k: v for k, v in point.items() if k not in AXES}


def what_if(planned: Plan, changes: list[Change], ttl_s: float | None = None) -> WhatIf:
    """Search with and without the changes, since the best layout changes with the machine."""
    changed = planned
    for change in changes:
        changed = scaled_plan(changed, change.knob, change.factor)
    before, after = ends(run_plan(planned), ttl_s), ends(run_plan(changed), ttl_s)
    kept = Ends(fastest=_rerun(before.fastest, changed), best=_rerun(before.best, changed, ttl_s))
    return WhatIf(changes=changes, ttl_s=ttl_s, before=before, after=after, kept=kept)


def _rerun(point: Point | None, planned: Plan, ttl_s: float | None = None) -> Point | None:
    """A layout of another search in this one; None where it does not fit or no longer keeps the TTL."""
    if point is None:
        return None
    x = Layout(**{name: point[name] for name in AXES})
    context = planned.sweep.contexts[0]
    if shape_reasons(planned.model, planned.machine, x, context):
        return None
    step = evaluate_step(planned.setting, x, context)
    if memory_reason(step.memory) or (ttl_s is not None and step.ttl_s > ttl_s):
        return None
    ttl = float(step.ttl_s)
    return point | {
        "context": context,
        "ttl_s": ttl,
        "tokens_per_s_user": 1 / ttl,
        "tokens_per_s_gpu": float(step.tokens_per_s_gpu),
        "resident_bytes": float(step.memory.resident_bytes),
    }
