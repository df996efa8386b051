"""How many tokens of cache a layout has memory for, how many users that is, and what would buy more."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from helix_sim import feasibility
from helix_sim.answers.explain import answer_record, kv_tokens
from helix_sim.answers.request import Mix
from helix_sim.core.display import Short
from helix_sim.core.layout import Layout
from helix_sim.core.units import FORMAT_BITS
from helix_sim.one_layout import LayoutError
from helix_sim.ops.memory import Memory
from helix_sim.search.family import divisors
from helix_sim.search.identity import Input
from helix_sim.search.layout_source import Options, Picked, pick
from helix_sim.specs.load import load_model
from helix_sim.specs.precision import Precision
from helix_sim.specs.setting import Setting
from helix_sim.stacks.rules import start_flags
from helix_sim.stacks.stack import NAMES
from helix_sim.step import Step, evaluate_step, stored_formats

LONG_CONTEXT = 10**6
"""Tokens of a request where none are asked for, unless the model's own limit is lower, as a server's is."""

SMALL_CONTEXT = 4096
"""Tokens of the one request with which a layout is looked at that has no room for what was asked for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Alternative:
    """A change that leaves room for more tokens: what it is, of which kind, and how many tokens fit then."""

    change: str
    kind: str
    kv_tokens: int

    def record(self) -> dict[str, Any]:
        """The alternative as plain data."""
        return {"change": self.change, "kind": self.kind, "kv_tokens": self.kv_tokens}


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Capacity(Short):
    """What a layout has room for.

    step: the layout with the requests that were asked about, or with one short one where those do not fit. mix: their
    contexts. users: requests of the mix that all attention groups together hold at once. more: changes that buy more
    tokens, the best of each kind. inputs: the files that it was read from.
    """

    step: Step
    inputs: Mapping[str, Input]
    mix: Mix
    users: int
    more: tuple[Alternative, ...]
    remarks: tuple[str, ...] = ()

    @property
    def memory(self) -> Memory:
        """Memory of the fullest GPU, by kind [bytes]."""
        return self.step.memory

    @property
    def kv_tokens_per_group(self) -> int:
        """Cached tokens that one attention group has memory for: what a server prints as its KV cache's size."""
        return self.kv_tokens // int(self.step.layout.dp)

    @property
    def kv_tokens(self) -> int:
        """Cached tokens that all attention groups have memory for."""
        return kv_tokens(self.step)

    @property
    def concurrency(self) -> float:
        """Requests of the mix's mean context whose tokens fit in one group: a server's maximum concurrency."""
        return self.kv_tokens_per_group / self.mix.mean

    def record(self) -> dict[str, Any]:
        """The capacity as plain data: what `capacity --json` prints."""
        return {
            **answer_record(self.step, self.inputs, max(self.mix.contexts)),
            "mix": self.mix.record(),
            "kv_tokens": self.kv_tokens,
            "kv_tokens_per_group": self.kv_tokens_per_group,
            "attention_groups": int(self.step.layout.dp),
            "maximum_concurrency_per_group": self.concurrency,
            "users_that_fit": self.users,
            "more": [each.record() for each in self.more],
        }


def capacity(
    layout: Step | Picked | str | Path,
    machine: str | None = None,
    options: Options | None = None,
    mix: Mix | None = None,
) -> Capacity:
    """How many tokens and users a layout has memory for, under what its machine or its framework keeps free.

    layout, machine, options: as `helix_sim.search.layout_source.pick` takes them. mix: the requests' contexts; those of
    the layout unless given, and for a model and a machine the longest that the model is published for, a million tokens
    at most. LayoutError where the weights alone do not fit, or the layout is none.
    """
    options = options or Options()
    if machine is not None and not options.context:
        longest = load_model(str(layout)).max_position_embeddings or LONG_CONTEXT
        options = replace(options, context=min(longest, LONG_CONTEXT))
    picked = _with_room(layout, machine, options)
    asked = mix or Mix(contexts=(_context(picked, options),), shares=(1.0,))
    step = evaluate_step(picked.step.setting, replace(picked.step.layout, batch=1, chunks=1), asked.of_batch(1).item())
    return Capacity(
        step=step,
        inputs=picked.inputs,
        mix=asked,
        users=users_that_fit(step, asked),
        more=tuple(_more(step)),
        remarks=picked.remarks,
    )


def _with_room(layout: Step | Picked | str | Path, machine: str | None, options: Options) -> Picked:
    """The layout as it is, or with one short request where what it says does not fit."""
    try:
        return pick(layout, machine, options)
    except LayoutError:
        few = {**options.widths, "batch": 1, "chunks": 1}
        return pick(layout, machine, replace(options, context=SMALL_CONTEXT, query_tokens=None, widths=few))


def _context(picked: Picked, options: Options) -> int:
    """Tokens of a request that was asked about: the option, the layout's own, or a million where that did not fit."""
    if options.context:
        return options.context
    return picked.longest_context if picked.longest_context != SMALL_CONTEXT else LONG_CONTEXT


def users_that_fit(step: Step, mix: Mix) -> int:
    """Requests of a mix that all attention groups hold at once: the largest batch whose memory fits, times the groups.

    A batch has one request of the longest context, and the mix for the rest.
    """

    def fits(batch: int) -> bool:
        several = evaluate_step(step.setting, replace(step.layout, batch=batch), mix.of_batch(batch).item())
        return not int(feasibility.memory_reason(several.memory))

    if not fits(1):
        return 0
    most = 2
    while fits(most):
        most *= 2
    least = most // 2
    while most - least > 1:
        middle = (least + most) // 2
        least, most = (middle, most) if fits(middle) else (least, middle)
    return int(replace(step.layout, batch=least).users)


# --- What would buy more ---------------------------------------------------------------------------------------------


def _more(step: Step) -> Iterator[Alternative]:
    """The best change of each kind that leaves room for more tokens on as many GPUs, the best kind first.

    Where a serving stack starts the layout, one starts it with the change as well.
    """
    now = kv_tokens(step)
    stacks = NAMES if _starts(step.setting, step.layout, NAMES) else ()
    changes = [
        *(("layout", x.widths, step.setting, x) for x in _splits(step)),
        *(("KV cache", f"--kv {kv}", _with(step.setting, kv=kv), step.layout) for kv in _narrower_caches(step)),
        *(("formats", f"--formats {name}", setting, step.layout) for name, setting in _other_formats(step)),
    ]
    best: dict[str, Alternative] = {}
    for kind, change, setting, x in changes:
        if int(feasibility.shape_reasons(setting.model, setting.machine, x, step.context)):
            continue
        if not _starts(setting, x, stacks):
            continue
        tokens = kv_tokens(evaluate_step(setting, x, step.context))
        if tokens > max(now, best[kind].kv_tokens if kind in best else 0):
            best[kind] = Alternative(change=change, kind=kind, kv_tokens=tokens)
    yield from sorted(best.values(), key=lambda each: -each.kv_tokens)


def _starts(setting: Setting, x: Layout, stacks: tuple[str, ...]) -> bool:
    """Whether one of the stacks starts a layout; true where none is asked."""
    return not int(start_flags(stacks, setting.model, setting.machine, setting.precision, x))


def _splits(step: Step) -> Iterator[Layout]:
    """Every way to split a stage's GPUs over tpa, kvp and dp, the FFN's grid as it is."""
    x = step.layout
    stage = int(x.dp * x.tpa * x.kvp)
    if int(x.tpf * x.ep) != stage:  # the FFN runs on one shard alone: its grid follows tpa
        return
    for dp in divisors(stage):
        for tpa in divisors(stage // dp):
            yield replace(x, dp=dp, tpa=tpa, kvp=stage // dp // tpa)


def _narrower_caches(step: Step) -> list[str]:
    """Formats of the KV cache with fewer bits that servers have, where the machine multiplies in them."""
    formats = {"fp8": "fp8", "nvfp4": "fp4"}
    return [
        name
        for name, math in formats.items()
        if FORMAT_BITS[name] < FORMAT_BITS[step.precision.kv] and math in step.machine.math_formats
    ]


def _other_formats(step: Step) -> Iterator[tuple[str, Setting]]:
    """The model's checkpoints in other formats, with the cache as it is."""
    model, machine = step.model, step.machine
    for name, stored in model.formats.items():
        formats = stored_formats(model, machine, stored, {"kv": step.precision.kv})
        yield name, replace(step.setting, precision=Precision.model_validate(formats))


def _with(setting: Setting, **formats: str) -> Setting:
    return replace(setting, precision=setting.precision.model_copy(update=formats))
