"""One layout: whether it can run and its step; of one after another, the equations are recorded as they run.

`evaluate_step` holds the equations. After a setting's first layouts they are called once with numbers that remember
what is done to them (`helix_sim.core.recorded`), and what they leave behind serves the layouts that follow.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from helix_sim import feasibility
from helix_sim.core.errors import SpecError
from helix_sim.core.kept import kept_for_records
from helix_sim.core.layout import AXES, NONE, Layout
from helix_sim.core.recorded import Tape
from helix_sim.core.text import said
from helix_sim.specs.drafter import draft_problems
from helix_sim.specs.setting import Setting
from helix_sim.specs.values import LIMIT
from helix_sim.step import Recalled, Step, evaluate_step

DIRECT = 40
"""Layouts of a setting that are evaluated before its equations are recorded, which takes about as long."""

MOST_RECORDED = 64
"""Kinds of layouts of a setting that are kept at most, counted or recorded; then all of them are forgotten."""

USED = ("batch", "tpa", "kvp", "dp", "tpf", "ep", "chunks")
"""Axes that recorded arithmetic is given as numbers, with the context and the new tokens of each request.

Chunks and new tokens where a layout has several: one of either is written into the arithmetic, which it makes shorter.
"""

OTHERS = tuple(name for name in AXES if name not in USED)
"""Axes whose values are written into recorded arithmetic: each has few, and most layouts do not use most of them."""


@dataclass(frozen=True, kw_only=True)
class Recording:
    """A setting's equations as the straight lines of arithmetic that they left behind, for layouts alike in OTHERS.

    flags: of the values of USED, the context and the new tokens, the reasons that need no memory count. step: of the
    same, memory's flag, the step's seconds, and what `doubts` is given beside them. doubts: both ends of the step's
    spread, and whether it rests on extrapolation.
    """

    flags: Callable[..., tuple[Any, ...]]
    step: Callable[..., tuple[Any, ...]]
    doubts: Callable[..., tuple[Any, ...]]


def record(setting: Setting, layout: Layout, query_tokens: int = 1) -> Recording:
    """The equations of a setting, recorded for layouts alike in OTHERS, in having chunks, and in having new tokens."""
    tape = Tape()
    inputs = [tape.input() for _ in (*USED, "context", "query_tokens")]
    context: Any
    new: Any
    *widths, context, new = inputs
    sizes = dict(zip(USED, widths, strict=True))
    x = replace(layout, **(sizes if layout.chunks > 1 else sizes | {"chunks": 1}))
    flags = (feasibility.shape_reasons(setting.model, setting.machine, x, context),)
    step = evaluate_step(setting, x, context, new if query_tokens > 1 else 1)
    told = (feasibility.memory_reason(step.memory), step.step_s)
    doubts = (*step.spread_s, step.rests_on_extrapolation)
    shared = tape.shared(inputs, told, doubts)
    return Recording(
        flags=tape.function(inputs, flags),
        step=tape.function(inputs, (*told, *shared)),
        doubts=tape.function([*inputs, *shared], doubts),
    )


@kept_for_records
def _recordings(*setting: Any) -> dict[Any, Any]:
    """What is kept for a setting's records: by the axes in common, how many layouts there were, then a Recording."""
    return {}


def _recording(setting: Setting, layout: Layout, query_tokens: int) -> Recording | None:
    """The recording for a layout, where a setting has had enough of the kind to be worth it."""
    known = _recordings(setting.model, setting.machine, setting.timing, setting.precision, setting.drafter)
    key = query_tokens > 1, layout.chunks > 1, *(getattr(layout, name) for name in OTHERS)
    found = known.get(key, 0)
    if isinstance(found, Recording):
        return found
    if key not in known and len(known) >= MOST_RECORDED:
        known.clear()
    if found < DIRECT:
        known[key] = found + 1
        return None
    made = known[key] = record(setting, layout, query_tokens)
    return made


def _recalled_step(
    recording: Recording, setting: Setting, layout: Layout, context: int, query_tokens: int
) -> Step | None:
    """The step of a layout by its recording; None where it cannot run."""
    sizes = *(float(getattr(layout, name)) for name in USED), float(context), float(query_tokens)
    if recording.flags(*sizes)[0]:
        return None
    flag, step_s, *shared = recording.step(*sizes)
    if flag:
        return None
    step = object.__new__(Step)
    step.__dict__.update(
        setting=setting,
        layout=layout,
        context=context,
        query_tokens=query_tokens,
        step_s=step_s,
        recalled=Recalled(tell=recording.doubts, numbers=(*sizes, *shared)),
    )
    return step


# --- A layout that was asked for ------------------------------------------------------------------------------------


class LayoutError(SpecError):
    """A layout that cannot run, with a sentence for each reason."""


def checked_step(setting: Setting, layout: Layout, context: int, query_tokens: int = 1) -> Step:
    """One step of one layout in a setting; raises LayoutError with every reason where it cannot run."""
    sizes = {**layout.columns(), "context": context, "query_tokens": query_tokens}
    problems = [
        f"{name} is {said(value)}; it must be a whole number from {NONE.get(name, 1)} to 10^12"
        for name, value in sizes.items()
        if isinstance(value, bool) or not isinstance(value, int) or not NONE.get(name, 1) <= value <= LIMIT
    ]
    problems = problems or draft_problems(setting.drafter, setting.model, layout.draft_tokens)
    if not problems and layout.draft_tokens and query_tokens != 1:
        problems = [f"draft_tokens {layout.draft_tokens} are new tokens already: leave query_tokens at 1"]
    if not problems and query_tokens > context:
        problems = [
            f"query_tokens {query_tokens} is more than the context of {context}, which the new tokens are part of"
        ]
    if problems:
        raise LayoutError(problems)
    recording = _recording(setting, layout, query_tokens)
    if recording and (quick := _recalled_step(recording, setting, layout, context, query_tokens)):
        return quick
    flags = int(feasibility.shape_reasons(setting.model, setting.machine, layout, context))
    if flags:
        raise LayoutError(feasibility.sentences(flags, setting.model, setting.machine, layout, context))
    step = evaluate_step(setting, layout, context, query_tokens)
    flags = int(feasibility.memory_reason(step.memory))
    if flags:
        raise LayoutError(feasibility.sentences(flags, setting.model, setting.machine, layout, context, step.memory))
    return step
