"""What one GPU must hold: weights, the KV cache of every resident request, activations."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from helix_sim.core.numeric import Column, ceil_div
from helix_sim.core.work import Work
from helix_sim.ops.attention import Decode, kv_bytes_per_layer


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """Resident bytes of the fullest GPU, by kind."""

    weights: Column
    kv_cache: Column
    activations: Column

    @property
    def resident_bytes(self) -> Any:
        """All of it."""
        return self.weights + self.kv_cache + self.activations


def stage_layers(layers: int, pp: Column) -> Any:
    """Decoder layers on the largest pipeline stage."""
    return ceil_div(layers, pp)


def memory_of(d: Decode, ops: Mapping[str, Work]) -> Memory:
    """Memory of the fullest GPU of the largest stage, which is charged with both ends of the model.

    Weights: what the ops read, and the experts they do not. KV: B · PP · layers/PP · ceil(K/TPA) · width · S/KVP, for
    each microbatch in flight holds its requests' cache of this stage's layers. Activations: four [B, H] buffers, the
    dispatch and combine buffers of every token where there are several groups, and the logits.
    """
    m, x = d.model, d.layout
    layers = stage_layers(m.layers, x.pp)
    buffers = 4 * x.batch * m.hidden_size + 2 * (x.dp > 1) * x.tokens * m.hidden_size + x.batch * m.vocab_size
    return Memory(
        weights=sum(work.repeats * work.resident_weight_bytes for work in ops.values()),
        kv_cache=x.batch * x.pp * layers * kv_bytes_per_layer(d),
        activations=buffers * d.activation_bytes,
    )
