"""Two microbatches: layers with experts run half of the batch at a time, one's exchange behind the other's attention.

A layer without experts runs the whole batch [SGLang, operations_strategy.py in python/sglang/srt/batch_overlap: "dense
layer TBO not yet implemented", https://github.com/sgl-project/sglang].
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from helix_sim.core.numeric import ceil_div
from helix_sim.ops.layers import Half, halves_of
from helix_sim.ops.stages import Stage
from helix_sim.ops.step_input import StepInput
from helix_sim.specs.ffn import RoutedFfn
from helix_sim.specs.model import Model

HALF = "half"
"""What is appended to the name of a kind that runs half of the batch, and in brackets to the names of its ops."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitLayer:
    """A kind of layer that runs half of the batch at a time: its attention and its FFN, each of half the batch."""

    attention: Half
    ffn: Half
    whole: tuple[str, str]

    @property
    def key(self) -> tuple[str, str]:
        """("layer", names): what a stage counts it under."""
        return "layer", ", ".join(self.whole)

    def parts(self, attention: Iterable[str], ffn: Iterable[str]) -> dict[str, list[tuple[Half, str]]]:
        """The layer's ops, each with its half, by what can run behind what: by the names of `LayerTimes`' fields.

        attention, ffn: names of the ops of both halves, in order.
        """
        before, own = list(attention), list(ffn)
        core, sent, back = before.index(self.attention.kind.core), own.index("dispatch"), own.index("combine")
        first, last = ([(self.attention, op) for op in ops] for ops in (before[:core], before[core:]))
        begun, between, after = ([(self.ffn, op) for op in own[a:b]] for a, b in _cuts(sent, back, len(own)))
        return {
            "prepare": first + after,
            "attend": last + begun,
            "shared": [each for each in between if each[1].startswith("shared_")],
            "experts": [each for each in between if not each[1].startswith("shared_")],
            "dispatch": [(self.ffn, "dispatch")],
            "combine": [(self.ffn, "combine")],
        }


def _cuts(sent: int, back: int, end: int) -> list[tuple[int, int]]:
    """Before the dispatch, between it and the combine, and after."""
    return [(0, sent), (sent + 1, back), (back + 1, end)]


def _one_microbatch(s: StepInput) -> StepInput:
    x = s.layout
    return replace(s, layout=replace(x, batch=ceil_div(x.batch, x.microbatches)), in_turns=True)


def of_half(half: Half) -> Half:
    """The kind as it runs on the larger half of the batch, its shared experts not beside the routed ones."""
    kind = replace(half.kind, beside=())
    name, suffix = f"{half.name}, {HALF}", f"{half.suffix}[{HALF}]"
    return replace(half, name=name, suffix=suffix, kind=kind, input=_one_microbatch, holds=False)


def split_layers(model: Model) -> tuple[SplitLayer, ...]:
    """The kinds of layers of a model that run half of the batch at a time: those with experts."""
    halves = {half.key: of_half(half) for half in halves_of(model)}
    return tuple(
        SplitLayer(attention=halves["attention", a], ffn=halves["ffn", f], whole=(a, f))
        for a, f in dict.fromkeys(model.layer_list)
        if isinstance(model.ffn[f], RoutedFfn) and ("attention", a) in halves
    )


def split_kinds(layers: Iterable[SplitLayer]) -> list[Half]:
    """Each kind of the layers once, attention before the FFN."""
    halves = {half.key: half for each in layers for half in (each.attention, each.ffn)}
    return sorted(halves.values(), key=lambda half: half.half)


def split_stage(stage: Stage, layers: Iterable[SplitLayer], microbatches: Any) -> Stage:
    """A stage's counts where layers with experts run once for each microbatch.

    Such a layer counts under its own key; its kinds of half a batch run as often as there are microbatches, its whole
    ones not at all. With one microbatch nothing of it runs, and the counts are the stage's.
    """
    found: dict[tuple[str, str], Any] = dict(stage)
    on = microbatches > 1
    for each in layers:
        count = on * stage[each.key]
        found[each.key] = count
        for half, name in zip((each.attention, each.ffn), each.whole, strict=True):
            found[half.key] = found.get(half.key, 0) + microbatches * count
            found[half.half, name] = found[half.half, name] - count
    return found
