"""What one GPU must hold: weights, the KV cache of every resident request, activations."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from helix_sim.core.numeric import Column, total
from helix_sim.core.work import Work
from helix_sim.ops.attention import kv_bytes_per_layer
from helix_sim.ops.layers import cached_layers, stage_size
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


def resident_weights(ops: Mapping[str, Work], repeats: Mapping[str, Any]) -> Any:
    """Bytes of weights on the fullest GPU: what the ops read in a step, and the experts and tables they do not."""
    held = {name: work.resident_weight_bytes for name, work in ops.items()}
    return total(*(repeats[name] * size if np.ndim(size) or size else 0 for name, size in held.items()))


def memory_of(s: StepInput, weights: Column) -> Memory:
    """Memory of the fullest GPU of the largest stage, which is charged with both ends of the model.

    KV: B · PP · layers/PP · ceil(K/TPA) · width · S/KVP, for each microbatch in flight holds its requests' cache of a
    stage's layers, those of the stage that caches most. Activations: four [tokens, H] buffers, the dispatch and combine
    buffers of every token where there are several groups, and the logits.
    """
    m, x = s.model, s.layout
    layers = stage_size(m, x.pp)
    per_request = sum(cached_layers(m, name, layers) * kv_bytes_per_layer(s, a) for name, a in m.attention.items())
    buffers = 4 * s.tokens * m.hidden_size + 2 * (x.dp > 1) * s.stage_tokens * m.hidden_size + s.tokens * m.vocab_size
    return Memory(
        weights=weights,
        kv_cache=x.batch * x.pp * per_request,
        activations=buffers * s.activation_bytes,
    )
