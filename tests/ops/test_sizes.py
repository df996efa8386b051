"""The sizes by which measured kernels are timed, and who talks to whom, by hand: op by op, on one layout of each model.

Six requests a group on three groups of four TPA by two KVP ranks, two stages and three HOP-B chunks; 1000 tokens.
DeepSeek-R1: H = 7168, 128 heads of 128 + 64, latents of 1536 and 512 + 64, 256 experts of 2048. Llama-3.1-405B:
H = 16384, 128 heads and 8 KV heads of 128, a dense FFN of 53248.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
from cases import GB200, LLAMA, R1, decode

from helix_sim.core.layout import Layout
from helix_sim.core.work import Work
from helix_sim.ops.attention import keys_seen_per_rank, kv_tokens_per_rank
from helix_sim.ops.memory import Memory, kv_tokens_that_fit, memory_of
from helix_sim.ops.stages import heavy_stages
from helix_sim.specs.precision import Precision
from helix_sim.step import step_ops

EIGHT = {"batch": 6, "tpa": 4, "kvp": 2, "dp": 3, "pp": 2, "chunks": 3}
MIXED = Precision(
    weights="fp4", attention_weights="fp8", output_weights="nvfp4", head_weights="bf16",
    kv="fp8", math="fp4", projection_math="fp8", output_math="fp4", attention_math="fp8",
    head_math="bf16", activations="bf16", wire="fp8", dispatch="fp8",
)  # fmt: skip


def ops_of(model, **sizes) -> dict[str, Work]:
    """Every op of one step of a model on the layout of this page."""
    return step_ops(decode(model, context=1000, precision=MIXED, **EIGHT, **sizes))


def r1() -> dict[str, Work]:
    """Ops of DeepSeek-R1."""
    return ops_of(R1, tpf=4, ep=6)


def llama() -> dict[str, Work]:
    """Ops of Llama."""
    return ops_of(LLAMA, tpf=24)


PRODUCTS = {  # m, k, n, weight matrices, stored, computed, class
    ("r1", "latent_down_projection"): (6, 7168, 1536 + 512 + 64, 1, "fp8", "fp8", "gemm"),
    ("r1", "query_up_projection"): (6, 1536, 32 * 192, 1, "fp8", "fp8", "gemm"),
    ("r1", "key_absorption"): (6, 128, 512, 32, "fp8", "fp8", "batched-gemm"),
    ("r1", "value_up_projection"): (6, 512, 128, 16, "fp8", "fp8", "batched-gemm"),
    ("r1", "output_projection"): (6, 16 * 128, 7168, 1, "nvfp4", "fp4", "gemm"),
    ("r1", "dense_up"): (6, 7168, 2 * 18432 // 8, 1, "fp4", "fp4", "gemm"),
    ("r1", "dense_down"): (6, 18432 // 8, 7168, 1, "fp4", "fp4", "gemm"),
    ("r1", "router"): (6, 7168, 256, 1, "bf16", "bf16", "gemm"),
    ("r1", "shared_up"): (6, 7168, 2 * 2048 // 8, 1, "fp4", "fp4", "gemm"),
    ("r1", "shared_down"): (6, 2048 // 8, 7168, 1, "fp4", "fp4", "gemm"),
    ("r1", "head"): (6, 7168, 129280 // 8, 1, "bf16", "bf16", "gemm"),
    ("llama", "qkv_projection"): (6, 16384, (32 + 2 * 2) * 128, 1, "fp8", "fp8", "gemm"),
    ("llama", "output_projection"): (6, 16 * 128, 16384, 1, "nvfp4", "fp4", "gemm"),
    ("llama", "dense_up"): (18, 16384, 2 * 2219, 1, "fp4", "fp4", "gemm"),  # 53248 / 24, rounded up
    ("llama", "dense_down"): (18, 2219, 16384, 1, "fp4", "fp4", "gemm"),
    ("llama", "head"): (6, 16384, 128256 // 8, 1, "bf16", "bf16", "gemm"),
}
OPS = {"r1": r1, "llama": llama}


@pytest.mark.parametrize(("model", "op"), PRODUCTS)
def test_a_product_is_as_large_as_its_matrices(model, op):
    work, (m, k, n, copies, stored, computed, op_class) = OPS[model]()[op], PRODUCTS[model, op]
    assert (work.rows, work.inner, work.outer, work.copies) == (m, k, n, copies)
    assert (work.weights, work.math, work.op_class) == (stored, computed, op_class)
    width = {"bf16": 2, "fp8": 1, "nvfp4": 0.5625, "fp4": 0.5}[stored]
    assert work.flops == 2 * copies * m * k * n
    assert work.weight_bytes == copies * k * n * width
    assert work.activation_bytes == copies * m * (k + n) * 2
    assert (work.kernels, work.pieces, work.kv_bytes, work.idle_weight_bytes) == (1, 1, 0, 0)


def test_every_product_of_both_models_is_on_this_page():
    found = {(model, op) for model, ops in OPS.items() for op, work in ops().items() if work.op_class.endswith("gemm")}
    assert found == {*PRODUCTS, ("r1", "routed_up"), ("r1", "routed_down")}


def test_routed_experts_are_as_large_as_their_matrices():
    for op, inner, outer in (("routed_up", 7168, 2 * 2048 // 4), ("routed_down", 2048 // 4, 7168)):
        work = r1()[op]
        assert (work.inner, work.outer, work.copies, work.tokens) == (inner, outer, 43, 18)  # 256 / 6, rounded up
        assert (work.weights, work.math, work.op_class) == ("fp4", "fp4", "grouped-gemm")
        assert work.flops == 2 * work.rows * inner * outer
        assert work.weight_bytes == work.experts_read * inner * outer * 0.5
        assert work.weight_bytes + work.idle_weight_bytes == pytest.approx(43 * inner * outer * 0.5)
        assert work.activation_bytes == work.rows * (inner + outer) * 2
        assert work.experts_read < 43
    assert r1()["routed_activation"].rows == r1()["routed_up"].rows
    assert r1()["routed_activation"].activation_bytes == 3 * r1()["routed_up"].rows * 512 * 2


def test_a_core_is_as_large_as_its_shard():
    # 1000 tokens in blocks of 16 over two ranks: 31 rounds of 32, and the first 8 of the next block
    for work, kv_heads, widths in (
        (r1()["attention_core"], 1, (576, 512)),
        (llama()["attention_core"], 2, (128, 128)),
    ):
        assert (work.rows, work.copies, work.heads, work.tokens) == (6, kv_heads, 32, 31 * 16 + 8)
        assert (work.inner, work.outer) == widths
        assert (work.weights, work.math, work.pieces, work.kernels) == ("fp8", "fp8", 3, 1)
    assert r1()["attention_core"].op_class == "attention-mla"
    assert llama()["attention_core"].op_class == "attention-gqa"
    wide = step_ops(decode(LLAMA, context=1000, batch=6, tpa=4, tpf=4))["attention_core"]
    assert (wide.tokens, wide.heads) == (1000, 32)


NEIGHBOURS = {  # kind, ranks, ranks between them
    ("r1", "embedding_all_reduce"): ("all-reduce", 8, 1),
    ("r1", "exchange"): ("all-to-all", 2, 4),
    ("r1", "attention_all_reduce"): ("all-reduce", 8, 1),
    ("r1", "dispatch"): ("all-to-all", 24, 1),
    ("r1", "combine"): ("all-to-all", 24, 1),
    ("r1", "moe_all_reduce"): ("all-reduce", 8, 1),
    ("r1", "logits_gather"): ("all-gather", 8, 1),
    ("r1", "stage_handover"): ("send", 2, 24),
    ("llama", "dense_gather"): ("all-gather", 3, 8),
    ("llama", "dense_scatter"): ("reduce-scatter", 3, 8),
    ("llama", "dense_all_reduce"): ("all-reduce", 8, 1),
}


@pytest.mark.parametrize(("model", "op"), NEIGHBOURS)
def test_ranks_that_talk_are_as_many_and_as_far_apart_as_the_layout_says(model, op):
    work = OPS[model]()[op]
    assert (work.collective.kind, work.collective.group, work.collective.stride) == NEIGHBOURS[model, op]
    assert work.kernels == 0


def test_only_the_core_and_its_exchange_come_in_pieces():
    for ops in (r1(), llama()):
        assert {name for name, work in ops.items() if work.pieces == 3} == {"attention_core", "exchange"}
        assert {work.pieces for name, work in ops.items() if name not in ("attention_core", "exchange")} == {1}


def test_a_dispatch_says_which_share_of_the_others_tokens_it_needs():
    # of the 12 tokens of the other two groups, those that picked one of 43 experts of 256, on the busiest of six ranks
    for op, width in (("dispatch", 1), ("combine", 1)):
        work = r1()[op]
        assert work.needed == pytest.approx(work.collective.payload / (7168 * width) / 12)
        assert 1 - (213 / 256) ** 8 < work.needed < 1
    alone = step_ops(decode(R1, context=1000, batch=6, tpa=4, kvp=2, tpf=4, ep=2))["dispatch"]
    assert (alone.needed, alone.link_bytes, alone.collective.group) == (0, 0, 1)


def test_medha_spreads_to_the_shards_that_idle():
    op = step_ops(decode(LLAMA, context=1000, batch=6, tpa=4, kvp=3, tpf=4))["dense_spread"]
    assert (op.collective.kind, op.collective.group, op.collective.stride) == ("broadcast", 3, 4)
    assert op.link_bytes == 6 * 16384 * 2


def test_a_norm_is_a_kernel_only_where_no_all_reduce_carries_it():
    alone = step_ops(decode(LLAMA, context=1000, batch=6))
    for name in ("attention_norm", "dense_norm", "final_norm"):
        assert (alone[name].kernels, llama()[name].kernels) == (1, 0)
        assert llama()[name].activation_bytes == 2 * 2 * 6 * 16384 * 2
    assert r1()["latent_norm"].activation_bytes == 2 * 6 * (1536 + 512) * 2
    assert r1()["latent_norm"].kernels == 1


def test_queries_are_dealt_over_the_copies_of_their_kv_head():
    # 8 KV heads on 24 ranks: three copies of each, over which its 16 queries are dealt: 6, 5 and 5
    core = step_ops(decode(LLAMA, context=1000, batch=6, tpa=24, tpf=24))["attention_core"]
    assert (core.copies, core.heads) == (1, 6)
    # on 20 ranks there are two whole copies, and four ranks with none
    core = step_ops(decode(LLAMA, context=1000, batch=6, tpa=20, tpf=20))["attention_core"]
    assert (core.copies, core.heads) == (1, 8)
    # on 3 ranks the busiest has 3 of 8
    core = step_ops(decode(LLAMA, context=1000, batch=6, tpa=3, tpf=3))["attention_core"]
    assert (core.copies, core.heads) == (3, 48)


def test_the_choice_of_experts_reads_the_scores_and_writes_the_choice():
    assert r1()["top_k"].activation_bytes == 6 * (256 + 2 * 8) * 2


def test_combining_partials_reads_each_shards_and_writes_one():
    # 16 owned heads of 512 values (R1, in the latent) on a wire of one byte, and a log-sum-exp of four
    assert r1()["combine_partials"].activation_bytes == 6 * 16 * (2 * (512 * 1 + 4) + 512 * 2)
    assert r1()["exchange"].link_bytes == 6 * 16 * (512 * 1 + 4)
    one = step_ops(decode(R1, context=1000, batch=6, tpa=4, tpf=4))["combine_partials"]
    assert (one.kernels, one.activation_bytes) == (0, 0)


def test_rope_touches_every_query_and_appends_to_the_cache():
    # 32 heads of 576 values read and written, and 6 new tokens of 576 in FP8
    assert r1()["rope_and_append"].kv_bytes == 6 * 576
    assert r1()["rope_and_append"].activation_bytes == (2 * 6 * 32 * 576 + 6 * 576) * 2
    assert llama()["rope_and_append"].kv_bytes == 6 * 2 * 256


@pytest.mark.parametrize("kvp", [1, 2, 3])
@pytest.mark.parametrize("new", [1, 2, 17, 50, 200])
def test_keys_seen_are_those_of_each_new_token_on_the_first_shard(kvp, new):
    # dealt one by one in blocks of 16: how many of the first t tokens lie on the first of the shards
    for context in (200, 207, 216, 333, 1000):
        first = [sum(token // 16 % kvp == 0 for token in range(t)) for t in range(context - new + 1, context + 1)]
        s = replace(decode(LLAMA, context=context, batch=6, kvp=kvp, tpf=kvp), query_tokens=new)
        assert keys_seen_per_rank(s) == sum(first)
        assert kv_tokens_per_rank(s) == first[-1]


def test_an_op_sees_the_tokens_of_its_own_group_but_for_pooled_ffns_and_experts():
    pooled = {"dense_up": 18, "dense_activation": 18, "dense_down": 18}
    for ops, others in ((r1(), {}), (llama(), pooled)):
        rows = {name: work.rows for name, work in ops.items() if not name.startswith("routed_")}
        assert rows == dict.fromkeys(rows, 6) | others


def test_a_step_opens_with_the_embedding_and_closes_with_the_hand_over():
    for ops in (r1(), llama()):
        assert list(ops)[:3] == ["embedding", "embedding_all_reduce", "attention_norm"]
        assert list(ops)[-5:] == ["final_norm", "head", "logits_gather", "sampling", "stage_handover"]


def test_both_ends_move_the_tokens_of_their_own_group():
    ops = r1()
    assert ops["embedding"].activation_bytes == 2 * 6 * 7168 * 2
    assert ops["sampling"].activation_bytes == 6 * 129280 * 2
    assert ops["embedding_all_reduce"].collective.payload == 6 * 7168
    assert ops["stage_handover"].link_bytes == 6 * 7168
    assert ops["logits_gather"].link_bytes == 6 * 7 * 129280 // 8
    assert llama()["dense_gather"].link_bytes == llama()["dense_scatter"].link_bytes == 6 * 2 * 16384


def test_a_core_reads_its_queries_and_writes_its_output_and_what_the_exchange_needs():
    # 32 heads of six requests: the query, the output and, where there is an exchange, a log-sum-exp
    assert r1()["attention_core"].activation_bytes == 6 * 32 * ((576 + 512) * 2 + 4)
    assert r1()["attention_core"].kv_bytes == 6 * 504 * 576
    assert r1()["attention_core"].flops == 2 * 6 * 32 * (576 + 512) * 504
    alone = step_ops(decode(R1, context=1000, batch=6, tpa=4, tpf=4))["attention_core"]
    assert alone.activation_bytes == 6 * 32 * (576 + 512) * 2


def test_memory_is_the_cache_of_every_request_in_flight_and_the_buffers_of_one_step():
    s = decode(R1, context=1000, precision=MIXED, **EIGHT, tpf=4, ep=6)
    opening, closing = heavy_stages(R1, 2)
    for stage, layers, logits in ((opening, 31, 0), (closing, 30, 6 * 129280)):
        memory = memory_of(s, [stage], [7e9], GB200)
        # six requests on each of two stages; 504 of 1000 tokens on the fullest shard
        assert memory.kv_cache == 6 * 2 * layers * 504 * 576
        # four buffers of 6 tokens, two of the 18 of all groups, and on the last stage the logits
        assert memory.activations == (4 * 6 * 7168 + 2 * 18 * 7168 + logits) * 2
        assert (memory.weights, memory.fillable) == (7e9, GB200.memory_bytes)
        assert memory.resident_bytes == 7e9 + memory.kv_cache + memory.activations
    alone = memory_of(decode(R1, context=1000, batch=6), heavy_stages(R1, 1), [0.0], GB200)
    assert alone.activations == (4 * 6 * 7168 + 6 * 129280) * 2


def test_as_many_cached_tokens_fit_as_there_is_room_for():
    memory = Memory(weights=10, kv_cache=100, activations=5, capacity=200, fillable=115)
    x = Layout(batch=6, tpa=4, pp=2, tpf=4)
    assert (memory.kv_room_bytes, memory.left_bytes, memory.reserve) == (100, 0, 85)
    assert kv_tokens_that_fit(memory, x, 1000) == 12_000
    assert kv_tokens_that_fit(replace(memory, fillable=65), x, 1000) == 6_000
    assert replace(memory, fillable=14).kv_room_bytes == 0
    assert replace(memory, fillable=100, share=0.5).capacity_needed == 200 + 15 / 0.5
