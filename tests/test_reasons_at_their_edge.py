"""Every reason at its edge: the last layout that runs, and the first that does not."""

from __future__ import annotations

import numpy as np
import pytest
from cases import GB200, LLAMA, R1

from helix_sim.core.layout import Layout
from helix_sim.feasibility import Candidate, Reason, memory_reason, sentences, shape_reasons
from helix_sim.ops.memory import Memory
from helix_sim.specs.load import load_model

SMALL = load_model("llama-3.1-8b")


def reasons(model, context=1_000_000, **sizes) -> set[str]:
    """Names of why a layout cannot run, its memory left out."""
    flags = int(shape_reasons(model, GB200, Layout(**sizes), context))
    return {reason.name for reason in Reason if flags & reason.flag}


EDGES = {
    "TOO_MANY_GPUS": (
        (LLAMA, {"tpa": 8, "tpf": 8, "pp": 72}),
        (LLAMA, {"tpa": 8, "tpf": 8, "pp": 73}),
    ),
    "MORE_RANKS_THAN_HEADS": (
        (SMALL, {"tpa": 32, "tpf": 32}),
        (SMALL, {"tpa": 33, "tpf": 33}),
    ),
    "EP_WITHOUT_EXPERTS": (
        (LLAMA, {"dp": 2, "tpf": 2, "ep": 1}),
        (LLAMA, {"dp": 2, "tpf": 1, "ep": 2}),
    ),
    "EMPTY_KV_SHARD": (
        (LLAMA, {"kvp": 4, "tpf": 4, "context": 49}),
        (LLAMA, {"kvp": 4, "tpf": 4, "context": 48}),
    ),
    "MORE_CHUNKS_THAN_BATCH": (
        (LLAMA, {"kvp": 4, "tpf": 4, "batch": 3, "chunks": 3}),
        (LLAMA, {"kvp": 4, "tpf": 4, "batch": 3, "chunks": 4}),
    ),
    "NOTHING_TO_OVERLAP": (
        (LLAMA, {"kvp": 2, "tpf": 2, "batch": 4, "chunks": 2}),
        (LLAMA, {"kvp": 1, "tpf": 1, "batch": 4, "chunks": 2}),
    ),
    "QUERY_SHARDS": (
        (LLAMA, {"kvp": 6, "tpf": 6, "q_shards": 3}),
        (LLAMA, {"kvp": 6, "tpf": 6, "q_shards": 4}),
    ),
    "MORE_MICROBATCHES_THAN_BATCH": (
        (R1, {"dp": 32, "ep": 32, "batch": 2, "microbatches": 2}),
        (R1, {"dp": 32, "ep": 32, "batch": 1, "microbatches": 2}),
    ),
    "NO_DISPATCH_TO_HIDE": (
        (R1, {"dp": 2, "tpf": 1, "ep": 2, "batch": 2, "microbatches": 2}),
        (R1, {"dp": 1, "tpf": 1, "ep": 1, "batch": 2, "microbatches": 2}),
    ),
    "SPLIT_TWICE": (
        (R1, {"dp": 2, "kvp": 2, "tpf": 1, "ep": 4, "batch": 2, "microbatches": 2}),
        (R1, {"dp": 2, "kvp": 2, "tpf": 1, "ep": 4, "batch": 2, "microbatches": 2, "chunks": 2}),
    ),
    "REDUNDANT_EXPERTS": (
        (R1, {"dp": 32, "ep": 32, "redundant_experts": 32}),
        (R1, {"dp": 32, "ep": 32, "redundant_experts": 33}),
    ),
    "FFN_GRID": (
        (LLAMA, {"tpa": 2, "kvp": 2, "tpf": 2}),
        (LLAMA, {"tpa": 2, "kvp": 2, "tpf": 3}),
    ),
}


@pytest.mark.parametrize("reason", EDGES)
def test_one_step_past_its_edge_a_layout_has_that_reason_alone(reason):
    (model, last), (_, first) = EDGES[reason]
    assert reasons(model, **last) == set()
    assert reasons(model, **first) == {reason}


def test_a_grid_spans_the_whole_stage_or_one_shard_of_it_and_with_it_all_groups():
    assert reasons(LLAMA, dp=3, tpa=2, kvp=2, tpf=12) == set()
    assert reasons(LLAMA, dp=3, tpa=2, kvp=2, tpf=6) == set()
    assert reasons(LLAMA, dp=3, tpa=2, kvp=2, tpf=4) == {"FFN_GRID"}
    assert reasons(R1, dp=3, tpa=2, kvp=2, tpf=4, ep=3) == set()


def test_the_ranks_of_a_group_share_its_heads_behind_the_exchange_too():
    # 32 query heads: 2 · 17 ranks own the output; on one KV shard alone they are 2
    assert reasons(SMALL, tpa=2, kvp=17, tpf=34) == {"MORE_RANKS_THAN_HEADS"}
    assert reasons(SMALL, tpa=2, kvp=16, tpf=32) == set()
    assert reasons(SMALL, tpa=2, kvp=17, tpf=2) == set()
    assert reasons(SMALL, dp=2, tpa=2, kvp=16, tpf=64) == set()


def test_stages_are_at_most_the_layers_and_an_ffn_is_at_most_cut_to_ones():
    # 32 layers
    assert reasons(SMALL, pp=32) == set()
    assert reasons(SMALL, pp=33) == {"MORE_STAGES_THAN_LAYERS"}
    thin = SMALL.model_copy(
        update={"ffn": {name: f.model_copy(update={"intermediate_size": 16}) for name, f in SMALL.ffn.items()}}
    )
    assert reasons(thin, tpa=16, tpf=16) == set()
    assert reasons(thin, tpa=17, tpf=17) == {"FFN_TOO_NARROW"}


def test_the_narrowest_ffn_and_the_most_experts_of_a_model_decide():
    two = R1.ffn | {"small": R1.ffn["moe"].model_copy(update={"routed": 4, "intermediate_size": 2})}
    mixed = R1.model_copy(update={"ffn": two})
    assert reasons(mixed, tpa=8, tpf=1, ep=8) == set()
    assert reasons(mixed, tpa=8, tpf=2, ep=4) == set()
    assert reasons(mixed, tpa=8, tpf=4, ep=2) == {"FFN_TOO_NARROW"}


def test_a_layout_that_fills_the_last_byte_fits():
    full = GB200.memory_bytes
    for bytes_there, fits in ((full, True), (full + 1, False)):
        memory = Memory(weights=bytes_there - 3, kv_cache=2, activations=1, capacity=full + 9, fillable=full)
        assert memory.resident_bytes == bytes_there
        assert bool(memory_reason(memory)) is not fits
        c = Candidate(model=LLAMA, machine=GB200, layout=Layout(), context=1, memory=memory)
        assert bool(Reason.OUT_OF_MEMORY.value.holds(c)) is not fits
    assert not Reason.OUT_OF_MEMORY.value.holds(Candidate(model=LLAMA, machine=GB200, layout=Layout(), context=1))


def test_every_reason_has_a_bit_of_its_own():
    assert [reason.flag for reason in Reason] == [2**place for place in range(len(Reason))]


def test_a_column_has_the_reasons_of_each_of_its_rows():
    column = shape_reasons(LLAMA, GB200, Layout(tpa=np.array([8, 8]), tpf=np.array([8, 4])), 1_000_000)
    assert column.tolist() == [0, Reason.FFN_GRID.flag]


SENTENCES = {
    "FFN_GRID": (
        {"dp": 3, "tpa": 2, "kvp": 2, "tpf": 5},
        "tpf·ep = 5 spans neither all 12 GPUs of a stage (dp·tpa·kvp) nor the 6 of one KV shard (dp·tpa); "
        "set --tpf and --ep so that it does",
    ),
    "MORE_RANKS_THAN_HEADS": (
        {"tpa": 2, "kvp": 65, "tpf": 130},
        "130 ranks share 128 query heads, so some would have none; lower tpa, or tpf·ep/dp, to 128 at most",
    ),
    "EMPTY_KV_SHARD": (
        {"kvp": 65, "tpf": 65},
        "kvp = 65 leaves a rank without a block of 16 tokens at context 1000; lower kvp",
    ),
    "TOO_MANY_GPUS": (
        {"tpa": 8, "tpf": 8, "pp": 73},
        "the layout needs 584 GPUs, and gb200-nvl72 has 576",
    ),
    "FFN_TOO_NARROW": ({"tpf": 99999}, "tpf = 99999 is more than the FFN is wide"),
    "OUT_OF_MEMORY": (
        {},
        "it needs 300.0 GB on the fullest GPU, and gb200-nvl72 has 182.0 GB after its reserve: "
        "shard it wider, or recommend finds what fits",
    ),
}


@pytest.mark.parametrize("reason", SENTENCES)
def test_a_sentence_has_the_numbers_and_what_to_change(reason):
    sizes, said = SENTENCES[reason]
    memory = Memory(weights=100e9, kv_cache=150e9, activations=50e9, capacity=189e9, fillable=182e9)
    assert sentences(Reason[reason].flag, LLAMA, GB200, Layout(**sizes), 1000, memory) == [said]


def test_copies_are_enough_where_every_rank_has_every_expert():
    # 256 experts on 2 ranks: with 256 copies each rank has all, and more would lie twice on one
    assert not reasons(R1, dp=2, ep=2, redundant_experts=256) & {"REDUNDANT_EXPERTS"}
    assert reasons(R1, dp=2, ep=2, redundant_experts=258) & {"REDUNDANT_EXPERTS"}
