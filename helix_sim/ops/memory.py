"""What one GPU must hold: weights, the KV cache of every resident request, activations."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from helix_sim.core.numeric import Column, chosen, total
from helix_sim.core.work import Work
from helix_sim.ops.attention import kv_bytes_per_layer
from helix_sim.ops.layers import Half
from helix_sim.ops.stages import Stage
from helix_sim.ops.step_input import StepInput


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """Resident bytes of the fullest GPU, by kind."""

    weights: Column
    kv_cache: Column
    activations: Column

    @property
    def resident_bytes(self) -> Any:
        """Weights, KV cache and activations together [bytes]."""
        return self.weights + self.kv_cache + self.activations


def resident_weights(tables: Iterable[tuple[Half, Mapping[str, Work]]], stage: Stage) -> Any:
    """Bytes of weights on a GPU of a stage: what the ops read in a step, and the experts and tables they do not."""
    held = ((stage[half.key], work.resident_weight_bytes) for half, ops in tables for work in ops.values())
    return total(*(count * size if np.ndim(size) or size else 0 for count, size in held))


def memory_of(s: StepInput, stages: Iterable[Stage], weights: Iterable[Column]) -> Memory:
    """Memory of the fullest GPU, of whichever of the stages that is; weights: bytes of each.

    KV: B · PP · layers · ceil(K/TPA) · width · S/KVP, for each microbatch in flight holds its requests' cache of a
    stage's layers. Activations: four [tokens, H] buffers, the dispatch and combine buffers of every token where there
    are several groups, and on the last stage the logits.
    """
    m, x = s.model, s.layout
    per_layer = {name: kv_bytes_per_layer(s, a) for name, a in m.attention.items()}
    buffers = 4 * s.tokens * m.hidden_size + 2 * (x.dp > 1) * s.stage_tokens * m.hidden_size
    found: Memory | None = None
    for stage, held in zip(stages, weights, strict=True):
        per_request = sum(stage["attention", name] * size for name, size in per_layer.items())
        logits = stage["ends", "closing"] * s.tokens * m.vocab_size
        memory = Memory(
            weights=held,
            kv_cache=x.batch * x.pp * per_request,
            activations=(buffers + logits) * s.activation_bytes,
        )
        found = memory if found is None else _fuller(memory, found)
    assert found is not None
    return found


def _fuller(a: Memory, b: Memory) -> Memory:
    """Layout by layout, the one of two that holds more; the second among equals."""
    more = a.resident_bytes > b.resident_bytes
    kinds = ("weights", "kv_cache", "activations")
    return Memory(**{kind: chosen(more, getattr(a, kind), getattr(b, kind)) for kind in kinds})
