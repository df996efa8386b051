"""The rules by which stacks refuse layouts: predicates over columns, told in each stack's own terms.

A layout is placed on a stack as its options would place it: attention is tensor-parallel over the tpa·kvp ranks of a
group, of which kvp share a KV head's cache; dp groups form a stage; experts lie on a tpf x ep grid of the same ranks.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

import numpy as np

from helix_sim.core.layout import Layout
from helix_sim.core.numeric import Column
from helix_sim.core.units import FORMAT_BITS
from helix_sim.feasibility import Candidate, Reason, Rule
from helix_sim.specs.attention import HeadAttention, LatentAttention, LinearAttention
from helix_sim.specs.ffn import DenseFfn
from helix_sim.specs.machine import Machine
from helix_sim.specs.model import Model
from helix_sim.specs.precision import Precision
from helix_sim.stacks.stack import NAMES, KvpKinds, Stack, Support, load_stack


@dataclass(frozen=True, slots=True, kw_only=True)
class Placed(Candidate):
    """A layout, or a column of them, as a stack would place it, in the number formats that it would run."""

    stack: Stack
    precision: Precision

    @property
    def stage(self) -> Any:
        """GPUs of one pipeline stage."""
        return self.layout.dp * self.layout.attention_group

    @property
    def grouped(self) -> list[Any]:
        """The kinds of attention whose KV heads are cached whole."""
        return [a for a in self.model.attention.values() if isinstance(a, HeadAttention)]

    @property
    def kv_ranks(self) -> Any:
        """Ranks that the KV heads are dealt to."""
        return self.layout.tpa if self.stack.kv_heads_over == "tpa" else self.layout.attention_group

    @property
    def kvp(self) -> KvpKinds | None:
        """How the stack runs the model under KV parallelism; None where it does not."""
        return self.stack.kvp_of(_kinds(self.model))

    @property
    def index_shards(self) -> Any:
        """Shards of an indexer's cache, as the stack lays it out; the layout's own where it says nothing."""
        index = self.kvp.index if self.kvp else None
        return {"copied": 1, "sharded": self.layout.kvp, None: self.layout.index_kvp}[index]

    @property
    def dense(self) -> list[int]:
        """Inner widths of the dense feed-forward networks."""
        return [ffn.intermediate_size for ffn in self.model.ffn.values() if isinstance(ffn, DenseFfn)]

    @property
    def dense_ranks(self) -> Any:
        """Ranks that shard a dense FFN; 1 where the stack takes as many as fit."""
        return self._ranks(self.stack.dense_over)

    @property
    def shared(self) -> list[int]:
        """Inner widths of the shared experts, all of a layer side by side."""
        return [f.shared * f.shared_intermediate_size for f in self.model.routed_kinds.values() if f.shared]

    @property
    def shared_ranks(self) -> Any:
        """Ranks that shard the shared experts; 1 where each rank holds them whole, beside dispatched experts."""
        return np.where(self.dispatched, 1, self._ranks(self.stack.shared_over))

    @property
    def whole_ffns(self) -> list[tuple[list[int], Any, str]]:
        """Widths of what every token passes, the ranks that share them, and the tensor whose format they have."""
        return [(self.dense, self.dense_ranks, "dense_weights"), (self.shared, self.shared_ranks, "shared_weights")]

    @property
    def dispatched(self) -> Any:
        """Whether tokens are sent to their experts: data-parallel attention, and experts over the whole stage."""
        x = self.layout
        return np.logical_and(np.asarray(x.dp) > 1, np.logical_and(np.asarray(x.ep) > 1, x.ep == self.stage))

    def _ranks(self, over: str) -> Any:
        x = self.layout
        if over == "group":
            return x.attention_group
        if over == "fitted":
            return 1 if self.model.routed_kinds else x.attention_group
        return np.where(np.logical_and(np.asarray(x.dp) > 1, x.attention_group == 1), 1, self.stage)

    def multiple_of(self, tensor: str, of_attention: bool = False) -> int:
        """What a shard's width must be a multiple of, in the format of a tensor; 1 where nothing is asked."""
        named = self.stack.attention_shard_multiples if of_attention else self.stack.shard_multiples
        return named.get(_group(self.precision.format_of(tensor)), 1)


# --- Predicates ------------------------------------------------------------------------------------------------------


def _any(parts: Sequence[Any]) -> Any:
    return np.any(np.broadcast_arrays(*parts), axis=0) if parts else np.asarray(False)


def _uneven(width: Any, ranks: Any) -> Any:
    return np.asarray(width % np.asarray(ranks) != 0)


def _off_tile(width: Any, ranks: Any, multiple: int) -> Any:
    """Whether an even share of a width is no multiple."""
    ranks = np.asarray(ranks)
    return (multiple > 1) & ~_uneven(width, ranks) & (width // ranks % multiple != 0)


def _not_replicated(heads: int, ranks: Any) -> Any:
    """KV heads that neither divide over ranks nor are copied to a whole number of them each."""
    ranks = np.asarray(ranks)
    return np.where(ranks <= heads, heads % ranks, ranks % heads) != 0


def _experts(p: Placed) -> Any:
    """Experts that do not divide over ep, and cannot be filled up with copies of some."""
    uneven = _any([_uneven(f.routed, p.layout.ep) for f in p.model.routed_kinds.values()])
    return uneven & (np.asarray(p.layout.redundant_experts) == 0) & ~_copied(p)


def _copied(p: Placed) -> Any:
    """Whether the stack copies experts on such a layout."""
    x = p.layout
    return np.logical_and(np.asarray(x.ep == p.stage), np.asarray(x.dp) > p.stack.redundant_experts_need_dp)


def _attention_tiles(p: Placed) -> Any:
    """Queries, keys or values of a rank that are no multiple of the tile of block-quantised projections."""
    multiple, ranks = p.multiple_of("attention_weights", of_attention=True), np.asarray(p.layout.attention_group)
    found = []
    for a in p.model.attention.values():
        if isinstance(a, LatentAttention):
            widths: tuple[Any, ...] = (a.nope_width + a.rope_width, a.nope_width + a.output_width)
            found += [_off_tile(a.q_heads * width, ranks, multiple) for width in widths]
        elif isinstance(a, HeadAttention):
            found.append(_off_tile(a.q_heads * a.head_size, ranks, multiple))
            kept = np.maximum(a.kv_heads // ranks, 1) * a.head_size
            found.append((multiple > 1) & (kept % multiple != 0))
    return _any(found) & (ranks > 1)


def _query_heads(model: Model) -> list[int]:
    """Query heads of each kind of attention that has a cache."""
    return [a.q_heads for a in model.attention.values() if not isinstance(a, LinearAttention)]


def _state_heads(model: Model) -> list[int]:
    """Heads of each kind of linear layer: of values, and of a delta net's keys; Mamba-2 copies its groups."""
    linear = [a for a in model.attention.values() if isinstance(a, LinearAttention)]
    return [heads for a in linear for heads in (a.value_heads, a.key_heads if a.delta_rule else a.value_heads)]


def _vocabulary(p: Placed) -> Any:
    multiple = p.stack.vocabulary_multiple or 1
    return _uneven(-(-p.model.vocab_size // multiple) * multiple, p.layout.attention_group)


def _unsupported(support: Support | None, machine: Machine, kinds: Sequence[str] = ()) -> bool:
    """Whether a machine, or one of the kinds of attention, has no kernel for a format."""
    if support is None:
        return True
    arithmetic = machine.math_formats
    lacks = support.needs is not None and support.needs not in arithmetic
    lacks = lacks and not (support.or_attention and kinds and set(kinds) <= set(support.or_attention))
    lacks = lacks or (machine.maker == "amd" and not support.on_amd)
    has = support.not_with is not None and support.not_with in arithmetic
    return lacks or has or (support.attention is not None and not set(kinds) <= set(support.attention))


def _kinds(model: Model) -> list[str]:
    return [a.kind for a in model.attention.values()]


def _group(number_format: str) -> str:
    """A format without its zero points, which change neither kernels nor how it is cut."""
    return number_format.removesuffix("-zero")


def weight_tensors(precision: Precision) -> list[str]:
    """The fields of Precision that are formats of weights."""
    return [name for name in type(precision).model_fields if name == "weights" or name.endswith("_weights")]


def unsupported_weights(p: Placed) -> list[str]:
    """Weight formats of a placed layout that the stack has no kernel for on the machine."""
    formats = dict.fromkeys(p.precision.format_of(tensor) for tensor in weight_tensors(p.precision))
    found: list[str] = [f for f in formats if _unsupported(p.stack.weights.get(_group(f)), p.machine, _kinds(p.model))]
    return found


def _whole(truth: bool, p: Placed) -> Any:
    return np.broadcast_to(truth, np.shape(p.layout.gpus))


def _tray(machine: Machine) -> int:
    return machine.tray_gpus.value if machine.tray_gpus else 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """What a rule is called in tables, and where it refuses a placed layout."""

    title: str
    holds: Callable[[Placed], Any]


class StackRule(Enum):
    """Why a stack does not start a layout, in the order in which a dropped layout is counted."""

    MACHINE = Refusal(
        title="a machine that the stack does not run on",
        holds=lambda p: _whole(p.machine.maker == "amd" and not p.stack.on_amd, p),
    )
    WEIGHT_FORMAT = Refusal(
        title="a weight format without kernels on the machine",
        holds=lambda p: _whole(bool(unsupported_weights(p)), p),
    )
    KV_FORMAT = Refusal(
        title="a KV cache format without kernels on the machine, or for the kind of attention",
        holds=lambda p: _whole(_unsupported(p.stack.kv.get(p.precision.kv), p.machine, _kinds(p.model)), p),
    )
    IDLE_GPUS = Refusal(
        title="GPUs that idle through the FFN", holds=lambda p: np.asarray(p.layout.ffn_group != p.stage)
    )
    WHOLE_TRAYS = Refusal(
        title="part of a tray or node",
        holds=lambda p: (np.asarray(p.layout.gpus) > _tray(p.machine)) & _uneven(p.layout.gpus, _tray(p.machine)),
    )
    PIPELINE = Refusal(
        title="a pipeline stage without a layer", holds=lambda p: np.asarray(p.layout.pp) > p.model.layer_count
    )
    PIPELINE_KIND = Refusal(
        title="a pipeline of kinds of attention that the stack runs in one stage",
        holds=lambda p: (np.asarray(p.layout.pp) > 1) & (set(_kinds(p.model)) in [set(k) for k in p.stack.one_stage]),
    )
    QUERY_HEADS = Refusal(
        title="query heads that do not divide over tensor parallelism",
        holds=lambda p: _any([_uneven(heads, p.layout.attention_group) for heads in _query_heads(p.model)]),
    )
    STATE_HEADS = Refusal(
        title="heads of linear layers that do not divide over tensor parallelism",
        holds=lambda p: _any([_uneven(heads, p.layout.attention_group) for heads in _state_heads(p.model)]),
    )
    KV_HEADS = Refusal(
        title="KV heads that neither divide over tensor parallelism nor are copied evenly",
        holds=lambda p: _any([_not_replicated(a.kv_heads, p.kv_ranks) for a in p.grouped]),
    )
    KVP_KIND = Refusal(
        title="KV parallelism of a kind of attention that the stack does not have it for",
        holds=lambda p: (np.asarray(p.layout.kvp) > 1) & (p.kvp is None),
    )
    KVP_HEADS = Refusal(
        title="KV parallelism over ranks that hold different KV heads",
        holds=lambda p: (
            (np.asarray(p.layout.kvp) > 1) & _any([np.asarray(p.layout.tpa) < a.kv_heads for a in p.grouped])
        ),
    )
    KVP_QUERIES = Refusal(
        title="queries of a KV head that do not divide over KV parallelism",
        holds=lambda p: _any([_uneven(a.q_heads // a.kv_heads, p.layout.kvp) for a in p.grouped]),
    )
    KVP_MACHINE = Refusal(
        title="KV parallelism on a machine that is not supported",
        holds=lambda p: (
            (np.asarray(p.layout.kvp) > 1)
            & bool(
                p.machine.maker == "amd"  # the back ends that are described are CUDA's
                or (p.kvp and p.kvp.needs is not None and p.kvp.needs not in p.machine.math_formats)
            )
        ),
    )
    KVP_DP = Refusal(
        title="KV parallelism of several attention groups",
        holds=lambda p: (
            (np.asarray(p.layout.kvp) > 1) & (np.asarray(p.layout.dp) > 1) & bool(p.kvp and p.kvp.one_group)
        ),
    )
    INDEX_CACHE = Refusal(
        title="an index cache that is copied where the stack shards it, or sharded where it copies it",
        holds=lambda p: (
            p.model.has_indexer
            & (np.asarray(p.layout.kvp) > 1)
            & (np.asarray(p.layout.index_kvp) != np.asarray(p.index_shards))
        ),
    )
    ATTENTION_DP = Refusal(
        title="attention that is data-parallel and tensor-parallel at once",
        holds=lambda p: (np.asarray(p.layout.dp) > 1) & (np.asarray(p.layout.tpa) > 1),
    )
    DENSE_DP = Refusal(
        title="data-parallel attention of a model without experts",
        holds=lambda p: (np.asarray(p.layout.dp) > 1) & (not p.model.routed_kinds),
    )
    EXPERT_GRID = Refusal(
        title="experts on a grid that the stack does not form",
        holds=lambda p: np.asarray(p.layout.ep != 1) & np.asarray(p.layout.ep != p.stage) & bool(p.model.routed_kinds),
    )
    EXPERTS = Refusal(title="experts that do not divide over expert parallelism", holds=_experts)
    EXPERT_COPIES = Refusal(
        title="copies of experts without expert parallelism over the whole stage",
        holds=lambda p: (np.asarray(p.layout.redundant_experts) > 0) & ~_copied(p),
    )
    EXPERT_SHARDS = Refusal(
        title="an expert that does not divide over tpf",
        holds=lambda p: _any([_uneven(f.intermediate_size, p.layout.tpf) for f in p.model.routed_kinds.values()]),
    )
    EXPERT_TILES = Refusal(
        title="shards of experts that cut quantised tiles",
        holds=lambda p: _any(
            [
                _off_tile(f.intermediate_size, p.layout.tpf, p.multiple_of("routed_weights"))
                for f in p.model.routed_kinds.values()
            ]
        ),
    )
    DENSE_SHARDS = Refusal(
        title="a dense FFN, or shared experts, that do not divide over their ranks",
        holds=lambda p: _any(
            [_uneven(width, p.dense_ranks) for width in p.dense]
            + [_uneven(width, p.shared_ranks) for width in p.shared]
        ),
    )
    DENSE_TILES = Refusal(
        title="shards of a dense FFN, or of shared experts, that cut quantised tiles",
        holds=lambda p: _any(
            [
                _off_tile(width, ranks, p.multiple_of(tensor))
                for widths, ranks, tensor in p.whole_ffns
                for width in widths
            ]
        ),
    )
    ATTENTION_TILES = Refusal(title="projections of a rank that cut quantised tiles", holds=_attention_tiles)
    VOCABULARY = Refusal(title="a vocabulary that does not divide over tensor parallelism", holds=_vocabulary)
    KVP_DRAFTS = Refusal(
        title="drafts verified under KV parallelism",
        holds=lambda p: (np.asarray(p.layout.kvp) > 1) & (np.asarray(p.layout.draft_tokens) > 0),
    )
    HOP_B = Refusal(title="HOP-B: the stack does not split a batch", holds=lambda p: np.asarray(p.layout.chunks) > 1)
    GATHERED_QUERIES = Refusal(
        title="a projection of queries shared by KV shards as the stack does not share it",
        holds=lambda p: (
            (np.asarray(p.layout.q_shards) > 1)
            & ((not p.stack.gathers_queries) | np.asarray(p.layout.q_shards != p.layout.kvp))
        ),
    )
    MICROBATCHES = Refusal(
        title="microbatches that take turns where the stack does not split a batch",
        holds=lambda p: (
            (np.asarray(p.layout.microbatches) > 1)
            & (~p.dispatched | (not set(_kinds(p.model)) <= set(p.stack.microbatch_kinds)) | (p.machine.maker == "amd"))
        ),
    )
    NO_ONE_STACK = Refusal(
        title="every stack refuses it, each by another rule",
        holds=lambda p: np.zeros(np.shape(p.layout.gpus), dtype=bool),
    )

    @property
    def flag(self) -> int:
        """The rule's bit in a layout's flags, above those of `feasibility.Reason`."""
        return FLAGS[self]

    @property
    def title(self) -> str:
        """The rule in a few words, for tables."""
        return self.value.title


FLAGS: dict[StackRule, int] = {rule: 1 << (len(Reason) + place) for place, rule in enumerate(StackRule)}

REASONS: dict[str, int] = {reason.name: reason.flag for reason in Reason} | {r.name: r.flag for r in FLAGS}
"""The flag of each reason, physical ones first, by its name."""


def first_reason(flags: Any) -> Any:
    """The name of the first reason among flags, as its place in REASONS; only where there is one."""
    flags = np.asarray(flags, dtype=np.int64)
    return np.log2((flags & -flags).astype(np.float64)).astype(np.intp)


# --- Told in a stack's terms -----------------------------------------------------------------------------------------


@functools.cache
def rules_of(name: str) -> dict[StackRule, Rule]:
    """The rules of a stack, each as `feasibility.Rule` with the stack's own sentence."""
    stack = load_stack(name)
    unknown = stack.rules.keys() - StackRule.__members__.keys()
    assert not unknown, f"{name}.yaml: no predicate for {', '.join(sorted(unknown))}"
    return {
        rule: Rule(
            title=rule.title,
            holds=rule.value.holds,
            sentence=functools.partial(_filled, text.sentence),
            change=functools.partial(_filled, text.change) if text.change else None,
        )
        for rule, text in ((rule, stack.rules[rule.name]) for rule in StackRule if rule.name in stack.rules)
    }


def _filled(text: str, p: Placed) -> str:
    """A sentence with the numbers of one layout in place of names in braces."""
    return text.format_map(_facts(p))


def _facts(p: Placed) -> dict[str, Any]:
    """What sentences may name, of one layout."""
    x, model = p.layout, p.model
    heads, states = _query_heads(model), _state_heads(model)
    kv_heads = [a.kv_heads for a in p.grouped] or [1]
    odd = [q for q in heads if q % x.attention_group] or heads or [1]
    routed = list(model.routed_kinds.values())
    tile = p.multiple_of("routed_weights")
    cut = [f.intermediate_size for f in routed if f.intermediate_size % (x.tpf * tile)]
    width = (cut or [f.intermediate_size for f in routed] or [1])[0]
    dense = [(w, int(ranks), tensor) for widths, ranks, tensor in p.whole_ffns for w in widths]
    dense = [each for each in dense if each[0] % (each[1] * p.multiple_of(each[2]))] or dense or [(1, 1, "weights")]
    inner, ranks, tensor = dense[0]
    multiple = p.stack.vocabulary_multiple or 1
    return x.columns() | {
        "stack": p.stack.title,
        "model": model.name,
        "machine": p.machine.name,
        "tp": x.attention_group,
        "gpus": x.gpus,
        "tray": _tray(p.machine),
        "stage": p.stage,
        "ffn_group": x.ffn_group,
        "layers": model.layer_count,
        "q_heads": odd[0],
        "state_heads": next((n for n in states if n % x.attention_group), (states or [1])[0]),
        "index_shards": p.index_shards,
        "kv_heads": max(kv_heads),
        "kv_ranks": p.kv_ranks,
        "queries": min((a.q_heads // a.kv_heads for a in p.grouped), default=1),
        "experts": p.experts,
        "width": width,
        "shard": f"{width / x.tpf:g}",
        "format": p.precision.format_of("routed_weights"),
        "multiple": tile,
        "dense": inner,
        "dense_ranks": ranks,
        "dense_shard": f"{inner / ranks:g}",
        "dense_format": p.precision.format_of(tensor),
        "dense_multiple": p.multiple_of(tensor),
        "attention_format": p.precision.format_of("attention_weights"),
        "attention_multiple": p.multiple_of("attention_weights", of_attention=True),
        "unsupported": ", ".join(unsupported_weights(p)),
        "kv": p.precision.kv,
        "attention": ", ".join(dict.fromkeys(_kinds(model))),
        "microbatch_kinds": ", ".join(p.stack.microbatch_kinds),
        "vocabulary": -(-model.vocab_size // multiple) * multiple,
    }


# --- What starts -----------------------------------------------------------------------------------------------------


def names_of(stack: str) -> tuple[str, ...]:
    """The stacks that a choice means: one of them, all for `any`, none for `none`."""
    return {"any": NAMES, "none": ()}.get(stack, (stack,))


def stack_flags(stack: str, model: Model, machine: Machine, precision: Precision, x: Layout) -> Any:
    """Flags of the rules by which one stack refuses each layout; 0 where it starts it."""
    placed = Placed(model=model, machine=machine, layout=x, context=1, stack=load_stack(stack), precision=precision)
    flags: Any = np.zeros(np.shape(x.gpus), dtype=np.int64)
    for rule, told in rules_of(stack).items():
        flags = flags | np.asarray(told.holds(placed)) * rule.flag
    return flags


def start_flags(stacks: Sequence[str], model: Model, machine: Machine, precision: Precision, x: Layout) -> Any:
    """Flags of the rules that keep each layout from every one of some stacks; 0 where one starts it, or none is asked.

    Where stacks refuse a layout by different rules alone, the flag is NO_ONE_STACK's.
    """
    if not stacks:
        return np.zeros(np.shape(x.gpus), dtype=np.int64)
    each = [stack_flags(name, model, machine, precision, x) for name in stacks]
    common = functools.reduce(np.bitwise_and, each)
    started = functools.reduce(np.logical_or, [flags == 0 for flags in each])
    return np.where(started, 0, np.where(common == 0, StackRule.NO_ONE_STACK.flag, common))


def stack_sentences(stack: str, placed: Candidate, precision: Precision) -> list[str]:
    """Each rule by which a stack refuses one layout, as a sentence with its numbers and the way out."""
    one = Placed(
        model=placed.model, machine=placed.machine, layout=placed.layout, context=placed.context,
        stack=load_stack(stack), precision=precision,
    )  # fmt: skip
    return [rule.describe(one) for rule in rules_of(stack).values() if np.asarray(rule.holds(one)).any()]


# --- Number formats --------------------------------------------------------------------------------------------------


def formats_on_stacks(precision: Precision, stacks: Sequence[str], machine: Machine, model: Model) -> Precision:
    """The formats that stacks store: 4-bit values with block scales, a KV cache one of them has, BF16 on the links.

    A KV format that no stack has on the machine gives way to the narrowest wider one that some stack has.
    """
    if not stacks:
        return precision
    blocks = "mxfp4" if machine.maker == "amd" else "nvfp4"
    weights = {t: blocks for t in weight_tensors(precision) if getattr(precision, t) == "fp4"}
    here = [stack for stack in map(load_stack, stacks) if stack.on_amd or machine.maker != "amd"]
    support = [stack.kv for stack in here]
    had = {
        f for each in support for f, s in each.items() if not _unsupported(s, machine, _kinds(model))
    }  # fmt: skip
    wide = [f for f in had if FORMAT_BITS[f] >= FORMAT_BITS[precision.kv]]
    kv = precision.kv if precision.kv in had else min(wide, key=FORMAT_BITS.__getitem__, default="bf16")
    return precision.model_copy(update={**weights, "kv": kv, "wire": "bf16", "dispatch": None})


def longest_context(model: Model, tokens: Column) -> Any:
    """Where tokens are more than the model's config allows, so that a stack must be told to take them."""
    limit = model.max_position_embeddings
    return np.asarray(tokens) > limit if limit else np.zeros(np.shape(tokens), dtype=bool)
