"""Drafting beside a step: the passes of a draft's module, on the stage that has the model's end.

A step with n drafts verifies them with n + 1 new tokens a request, and then drafts n anew, one after another. The
first pass takes in all that was verified, n + 1 tokens, which its cache has yet to see; each of the n - 1 that follow
takes in the draft of the one before [MTP Eagle, https://github.com/NVIDIA/TensorRT-LLM, docs/source/blogs/tech_blog/
blog2_DeepSeek_R1_MTP_Implementation_and_Optimization.md]. Every pass ends in the head at one position a request.
DSpark instead drafts in one pass: a block of n tokens sees the states of what was verified, and each draft of it is
then corrected by the one before it [https://arxiv.org/abs/2607.05147]; its tokens and what the verified
ones add to its cache are counted as n + 1 tokens.
Rejected drafts are in the step's work, and not in what it yields. The host's time is once a step, as where one CUDA
graph has them all.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from helix_sim.core.numeric import Column, ceil_div, larger, smaller
from helix_sim.core.work import Work
from helix_sim.ops.ends import closing_ops, opening_ops
from helix_sim.ops.exchange import group_all_reduce
from helix_sim.ops.layers import Half, Kind, OpTable, halves_of, kv_bytes_per_layer
from helix_sim.ops.matmul import PROJECTION, matmul
from helix_sim.ops.stages import Stage
from helix_sim.ops.step_input import StepInput
from helix_sim.specs.drafter import Drafter
from helix_sim.specs.model import Model


@dataclass(frozen=True, slots=True, kw_only=True)
class Passes:
    """Passes of a draft's module that are alike: what they are called, new tokens a request, how many, of n drafts."""

    name: str
    new_tokens: Callable[[Any], Any]
    count: Callable[[Any], Any]


FIRST = Passes(name="first draft", new_tokens=lambda n: n + 1, count=lambda n: smaller(n, 1))
BLOCK = Passes(name="block", new_tokens=lambda n: n + 1, count=lambda n: smaller(n, 1))
OF_BLOCK = Passes(name="block", new_tokens=lambda n: larger(n, 1), count=lambda n: smaller(n, 1))
LATER = Passes(name="later draft", new_tokens=lambda n: 1, count=lambda n: larger(n - 1, 0))
EACH = Passes(name="draft", new_tokens=lambda n: 1, count=lambda n: n)


def pass_input(s: StepInput, module: Model, passes: Passes) -> StepInput:
    """A pass of a draft's module beside a step: its model and formats, its new tokens, the layout without HOP-B."""
    x = s.layout
    return replace(
        s,
        model=module,
        precision=s.drafter.draft.precision(s.precision) if s.drafter else s.precision,
        drafter=None,
        layout=replace(x, chunks=1),
        query_tokens=passes.new_tokens(x.draft_tokens),
    )


def fuse(s: StepInput, states: int) -> Work:
    """The projection of several states, side by side, to one: cut by its rows over the token group.

    [EAGLE-3, https://arxiv.org/abs/2503.01840; DeepSeek-V3, section 2.2]
    """
    inner = ceil_div(states * s.model.hidden_size, s.layout.token_group)
    return matmul(s, rows=s.tokens, inner=inner, outer=s.model.hidden_size, **PROJECTION)


def markov_correction(s: StepInput, rank: int) -> Work:
    """Bias of a draft's logits from the draft before it: its row of a table, rank x vocabulary / N on each of N ranks.

    [DSpark, https://arxiv.org/abs/2607.05147]
    """
    shard = ceil_div(s.model.vocab_size, s.layout.token_group)
    product = matmul(s, rows=s.tokens, inner=rank, outer=shard, weights="head_weights", math="head_math")
    table = rank * s.model.vocab_size * s.precision.bytes_of("head_weights")
    return replace(product, idle_weight_bytes=product.idle_weight_bytes + table)


def _block_head(s: StepInput) -> OpTable:
    """A block's logits as its layers give them."""
    return {name: work for name, work in closing_ops(s).items() if name in ("final_norm", "head")}


def _corrected(s: StepInput, drafter: Drafter) -> OpTable:
    """What one draft of a block takes after the block's pass, by the draft before it."""
    return {
        "markov_correction": markov_correction(s, drafter.draft.markov_rank),
        **{name: work for name, work in closing_ops(s).items() if name in ("logits_gather", "sampling")},
    }


def _layer_passes(drafter: Drafter) -> tuple[Passes, ...]:
    """The sorts of passes that a draft's layers run in; the first holds their weights and cache."""
    return (BLOCK,) if drafter.draft.method == "dspark" else (FIRST, LATER)


def _ends(drafter: Drafter) -> list[tuple[str, Passes, Callable[[StepInput], OpTable]]]:
    """What comes behind a draft's layers, with the passes that it runs in: name, passes, ops."""
    if drafter.draft.method == "dspark":
        return [("closing", OF_BLOCK, _block_head), ("correction", EACH, partial(_corrected, drafter=drafter))]
    return [("closing", EACH, closing_ops)]


def _name(half: str, name: str, passes: Passes) -> str:
    """A kind of a draft's module in some passes, as stages count it."""
    return f"{half} {name}, {passes.name}"


def _opening(s: StepInput, drafter: Drafter) -> OpTable:
    states = drafter.draft.fused_states
    return opening_ops(s) | ({"fuse": fuse(s, states), "fuse_all_reduce": group_all_reduce(s)} if states else {})


def draft_halves(drafter: Drafter | None) -> tuple[Half, ...]:
    """The kinds of a draft's module, once for each sort of pass; none without a draft."""
    if drafter is None:
        return ()
    module = drafter.module
    first, *_ = _layer_passes(drafter)
    opening = Half(half="ends", name="opening", kind=_end(partial(_opening, drafter=drafter)), spec=None)
    layers = [half for half in halves_of(module) if half.half != "ends"]
    found = [
        replace(half, half="draft", name=_name(half.half, half.name, p), suffix=f"{half.suffix}[{p.name}]",
                input=partial(pass_input, module=module, passes=p), holds=p is first)
        for p in _layer_passes(drafter)
        for half in (opening, *layers)
    ]  # fmt: skip
    held_by_model = ("head",) if drafter.shares_head else ()
    found += [
        Half(half="draft", name=_name("ends", name, p), kind=_end(ops), spec=None, suffix=f"[{p.name}]",
             input=partial(pass_input, module=module, passes=p), elsewhere=held_by_model)
        for name, p, ops in _ends(drafter)
    ]  # fmt: skip
    return tuple(found)


def _end(ops: Callable[[StepInput], OpTable]) -> Kind:
    return Kind(title="drafting", ops=lambda s, _: ops(s), sees=lambda x: (x.token_group,))


def draft_counts(drafter: Drafter | None, drafts: Column) -> dict[tuple[str, str], Any]:
    """How often each kind of a draft's module runs in a step with that many drafts."""
    if drafter is None:
        return {}
    once = {("ends", "opening"): 1, **drafter.module.kind_counts}
    counts = {
        ("draft", _name(*key, p)): count * p.count(drafts)
        for p in _layer_passes(drafter)
        for key, count in once.items()
    }
    return counts | {("draft", _name("ends", name, p)): p.count(drafts) for name, p, _ in _ends(drafter)}


def pass_of(drafter: Drafter | None, number: int) -> list[tuple[str, str]]:
    """The kinds of a draft's module as the first, second, … pass of a step runs them, layer by layer."""
    if drafter is None:
        return []
    sorts = _layer_passes(drafter)
    running = sorts[min(number, len(sorts)) - 1]
    layers = [of for layer in drafter.module.layer_list for of in zip(("attention", "ffn"), layer, strict=True)]
    begun = number == 1 or len(sorts) > 1  # a block's layers run once, for all of its drafts
    return [
        *(("draft", _name(*key, running)) for key in (("ends", "opening"), *layers) if begun),
        *(("draft", _name("ends", name, p)) for name, p, _ in _ends(drafter) if begun or p is EACH),
    ]


def with_drafts(stages: tuple[Stage, ...], drafter: Drafter | None, drafts: Column) -> tuple[Stage, ...]:
    """Pipeline stages with the passes of a draft: all on the one that has the model's end."""
    counts = draft_counts(drafter, drafts)
    return tuple(
        {**stage, **{key: stage["ends", "closing"] * count for key, count in counts.items()}} for stage in stages
    )


def draft_cache(s: StepInput) -> dict[tuple[str, str], Any]:
    """What one request keeps in one layer of a draft's module on the fullest rank [bytes], by kind."""
    if s.drafter is None:
        return {}
    first, *_ = _layer_passes(s.drafter)
    t = pass_input(s, s.drafter.module, first)
    return {
        ("draft", _name("attention", name, first)): kv_bytes_per_layer(t, a)
        for name, a in s.drafter.module.attention.items()
    }
