"""What one GPU must hold: weights, the KV cache of every resident request, activations."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import reduce
from typing import Any

import numpy as np

from helix_sim.core.layout import Layout
from helix_sim.core.numeric import Column, chosen, larger, total
from helix_sim.core.units import GIBI, GIGA, MEBI
from helix_sim.core.work import Work
from helix_sim.ops.drafts import draft_cache
from helix_sim.ops.layers import Half, kv_bytes_per_layer
from helix_sim.ops.stages import Stage
from helix_sim.ops.step_input import StepInput
from helix_sim.specs.machine import Machine
from helix_sim.specs.public_tables import ServedMemory
from helix_sim.specs.values import Quantity


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """Bytes of the fullest GPU: what is resident, by kind, and what weights, KV cache and activations may fill.

    capacity: memory of the GPU as its driver sees it. fillable: what of it the three kinds may fill, after the
    machine's reserve or what the framework of a measured timing leaves. share: how much of each further byte of
    capacity they may fill. stages: the same of a GPU of each stage that may be the fullest: at another batch, another.
    """

    weights: Column
    kv_cache: Column
    activations: Column
    capacity: float
    fillable: Column
    share: float = 1.0
    stages: tuple[Memory, ...] = ()

    @property
    def resident_bytes(self) -> Any:
        """Weights, KV cache and activations together [bytes]."""
        return self.weights + self.kv_cache + self.activations

    @property
    def reserve(self) -> Any:
        """What must stay free of the three kinds [bytes]: context, graphs, buffers, and what a framework leaves."""
        return self.capacity - self.fillable

    @property
    def left_bytes(self) -> Any:
        """What is left of what may be filled [bytes]; below zero where the layout does not fit."""
        return self.fillable - self.resident_bytes

    @property
    def kv_room_bytes(self) -> Any:
        """What the KV cache may take [bytes]: what may be filled, less weights and activations; at least nothing."""
        return larger(self.fillable - self.weights - self.activations, 0.0)

    @property
    def capacity_needed(self) -> Any:
        """The memory that a GPU would need for the layout to fit exactly [bytes]."""
        return self.capacity - self.left_bytes / self.share


def kv_tokens_that_fit(memory: Memory, layout: Layout, context: Column) -> Any:
    """Cached tokens that one attention group has memory for, with requests of `context` tokens, in all its stages.

    What the cache may take, over what one of its tokens takes, on a GPU of the stage where that is least: a stage with
    the head has less room, and another more layers. Divided by the context and rounded down they are the requests of a
    group that fit; times `layout.dp`, those of the whole layout.
    """
    cached = layout.batch * layout.pp * context
    stages = memory.stages or (memory,)
    with np.errstate(divide="ignore", invalid="ignore"):  # a stage may have no cache, and then as many as one likes fit
        fits = [np.divide(each.kv_room_bytes, each.kv_cache) * cached for each in stages]
    return np.floor(np.fmin.reduce(fits))


def resident_weights(tables: Iterable[tuple[Half, Mapping[str, Work]]], stage: Stage) -> Any:
    """Bytes of weights on a GPU of a stage: what the ops read in a step, and the experts and tables they do not."""
    held = (
        (stage[half.key], (work.resident_weight_bytes for name, work in ops.items() if name not in half.elsewhere))
        for half, ops in tables
        if half.holds
    )
    return total(*(count * total(*sizes) for count, sizes in held))


def memory_of(
    s: StepInput,
    stages: Iterable[Stage],
    weights: Iterable[Column],
    machine: Machine,
    served: ServedMemory | None = None,
) -> Memory:
    """Memory of the fullest GPU, of whichever of the stages that is; weights: bytes of each.

    KV: B · PP · layers · ceil(K/TPA) · width · S/KVP, for each microbatch in flight holds its requests' cache of a
    stage's layers; a draft's module adds its own where the model ends. Activations: four [tokens, H] buffers, the
    dispatch and combine buffers of every token where there are several groups, and on the last stage the logits.

    served: what the framework of a measured timing leaves free by its defaults, in place of the machine's reserve.
    """
    m, x = s.model, s.layout
    per_layer = {("attention", name): kv_bytes_per_layer(s, a) for name, a in m.attention.items()} | draft_cache(s)
    tokens, sent = s.tokens, s.tokens
    if served:
        tokens, sent = larger(tokens, served.activation_tokens.value), larger(sent, served.exchange_tokens.value)
    buffers = 4 * tokens * m.hidden_size + 2 * (x.dp > 1) * sent * x.dp * m.hidden_size
    found: list[Memory] = []
    for stage, held in zip(stages, weights, strict=True):
        per_request = sum(stage[key] * size for key, size in per_layer.items())
        logits = stage["ends", "closing"] * s.tokens * m.vocab_size
        activations = (buffers + logits) * s.activation_bytes
        found.append(
            Memory(
                weights=held,
                kv_cache=x.batch * x.pp * per_request,
                activations=activations,
                capacity=machine.memory_GB.value * GIGA,
                fillable=_fillable(machine, served, x, held + activations) if served else machine.memory_bytes,
                share=served.share.value if served else 1.0,
            )
        )
    return replace(reduce(_fuller, found), stages=tuple(found))


def _fuller(a: Memory, b: Memory) -> Memory:
    """Layout by layout, the one of two that has less left; the first among equals."""
    less = b.left_bytes < a.left_bytes
    kinds = ("weights", "kv_cache", "activations", "fillable")
    return replace(a, **{kind: chosen(less, getattr(b, kind), getattr(a, kind)) for kind in kinds})


def _fillable(machine: Machine, served: ServedMemory, x: Layout, placed: Column) -> Any:
    """Bytes that weights, cache and activations may fill under a framework; `placed`: what is there before the cache.

    A share of all memory: share · memory - outside - set aside.
    A share of what is free, for the cache: placed + share · (memory - outside - set aside - placed).
    """
    size, aside = machine.memory_GB.value * GIGA, np.asarray(0.0)
    for each in served.set_aside:  # the last that holds is the one
        here = (size >= each.memory_from_GiB.value * GIBI) & (x.gpus >= each.gpus_from.value)
        if each.groups_from:
            here = here & (x.dp >= each.groups_from.value)
        groups = x.dp * (x.dp > 1)
        parts: list[tuple[Quantity | None, Any]] = [
            (each.fixed_MiB, MEBI),
            (each.gpu_MiB, MEBI * x.gpus),
            (each.group_MiB, MEBI * groups),
            (each.memory_share, size),
        ]
        aside = np.where(here, sum(part.value * times for part, times in parts if part), aside)
    outside = served.outside_GiB.value * GIBI + aside
    share = served.share.value
    if served.of == "all":
        return share * size - outside
    return placed + share * larger(size - outside - placed, 0.0)
