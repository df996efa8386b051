"""Why a layout cannot run: one bit a reason, one sentence a bit."""

from __future__ import annotations

from enum import IntFlag, auto
from typing import Any

import numpy as np

from helix_sim.core.layout import Layout
from helix_sim.core.numeric import Column
from helix_sim.core.units import GIGA
from helix_sim.ops.attention import KV_BLOCK_TOKENS
from helix_sim.ops.memory import Memory
from helix_sim.specs.machine import Machine
from helix_sim.specs.model import Model


class Reason(IntFlag):
    """Bits of a layout's refusal; 0 is a layout that runs."""

    FFN_GRID = auto()
    TOO_MANY_GPUS = auto()
    MORE_RANKS_THAN_HEADS = auto()
    EP_WITHOUT_EXPERTS = auto()
    FFN_TOO_NARROW = auto()
    MORE_STAGES_THAN_LAYERS = auto()
    EMPTY_KV_SHARD = auto()
    MORE_CHUNKS_THAN_BATCH = auto()
    NOTHING_TO_OVERLAP = auto()
    OUT_OF_MEMORY = auto()


def shape_reasons(model: Model, machine: Machine, x: Layout, context: Column) -> Any:
    """Reasons that need no memory count: widths against the model and the machine. One flag, or a column of them."""
    a, moe = model.attention, model.experts
    experts = moe.routed if moe else 1
    width = min([w for w in (model.dense_intermediate_size, moe.intermediate_size if moe else 0) if w])
    full_grid = x.ffn_group == x.dp * x.attention_group
    one_shard = x.ffn_group == x.dp * x.tpa
    checks = {
        Reason.FFN_GRID: ~np.logical_or(full_grid, one_shard),
        Reason.TOO_MANY_GPUS: np.asarray(x.gpus > machine.gpus.value),
        Reason.MORE_RANKS_THAN_HEADS: np.asarray(np.maximum(x.tpa, x.ffn_group // x.dp) > a.q_heads),
        Reason.EP_WITHOUT_EXPERTS: np.asarray(x.ep > experts),
        Reason.FFN_TOO_NARROW: np.asarray(x.tpf > width),
        Reason.MORE_STAGES_THAN_LAYERS: np.asarray(x.pp > model.layers),
        Reason.EMPTY_KV_SHARD: np.asarray((x.kvp - 1) * KV_BLOCK_TOKENS >= context),
        Reason.MORE_CHUNKS_THAN_BATCH: np.asarray(x.chunks > x.batch),
        Reason.NOTHING_TO_OVERLAP: np.logical_and(x.chunks > 1, np.asarray(x.kvp == 1)),
    }
    flags: Any = 0
    for reason, holds in checks.items():
        flags = flags | holds * int(reason)
    return flags


def memory_reason(memory: Memory, machine: Machine) -> Any:
    """OUT_OF_MEMORY where the fullest GPU holds more than it has."""
    return np.asarray(memory.resident_bytes > machine.memory_bytes) * int(Reason.OUT_OF_MEMORY)


def sentences(
    flags: int, model: Model, machine: Machine, x: Layout, context: int, memory: Memory | None = None
) -> list[str]:
    """Each reason of one layout as a sentence with its numbers and the way out."""
    a, moe = model.attention, model.experts
    resident = float(memory.resident_bytes) / GIGA if memory else 0.0
    group = x.ffn_group // x.dp
    texts = {
        Reason.FFN_GRID: f"tpf·ep = {x.ffn_group} spans neither all {x.dp * x.attention_group} GPUs of a stage "
        f"(dp·tpa·kvp) nor the {x.dp * x.tpa} of one KV shard (dp·tpa); set --tpf and --ep so that it does",
        Reason.TOO_MANY_GPUS: f"the layout needs {x.gpus} GPUs, and {machine.name} has {machine.gpus.value}",
        Reason.MORE_RANKS_THAN_HEADS: f"{max(x.tpa, group)} ranks share {a.q_heads} query heads, so some would have "
        f"none; lower tpa, or tpf·ep/dp, to {a.q_heads} at most",
        Reason.EP_WITHOUT_EXPERTS: f"ep = {x.ep} is more than the {moe.routed} routed experts of {model.name}"
        if moe
        else f"{model.name} has no experts: a dense FFN is one expert, so ep must be 1",
        Reason.FFN_TOO_NARROW: f"tpf = {x.tpf} is more than the FFN is wide",
        Reason.MORE_STAGES_THAN_LAYERS: f"pp = {x.pp} is more than the {model.layers} layers of {model.name}",
        Reason.EMPTY_KV_SHARD: f"kvp = {x.kvp} leaves a rank without a block of {KV_BLOCK_TOKENS} tokens at context "
        f"{context}; lower kvp",
        Reason.MORE_CHUNKS_THAN_BATCH: f"chunks = {x.chunks} is more than the batch of {x.batch}",
        Reason.NOTHING_TO_OVERLAP: f"chunks = {x.chunks} has nothing to overlap: kvp is 1, so there is no exchange",
        Reason.OUT_OF_MEMORY: f"it needs {resident:.1f} GB on the fullest GPU, and {machine.name} has "
        f"{machine.memory_bytes / GIGA:.1f} GB after its reserve",
    }
    return [texts[reason] for reason in Reason if flags & reason]
