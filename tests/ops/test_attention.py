"""Equations against numbers worked out by hand, against laws, and against the model's own totals."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import binom

from helix_sim.core.layout import Layout
from helix_sim.ops import attention, ffn
from helix_sim.ops.attention import Decode
from helix_sim.specs.load import load_machine, load_model, load_timing
from helix_sim.specs.model import Experts
from helix_sim.specs.precision import Precision
from helix_sim.step import LayoutError, decode_step, evaluate, layer_ops
from helix_sim.timing.overlap import hidden_by_pipelining, pipelined

FP4 = Precision(weights="fp4", kv="fp4", math="fp4")
GB200 = load_machine("gb200-nvl72")
PAPER = load_timing("paper")
IDEAL = load_timing("ideal")
R1 = load_model("deepseek-r1")
LLAMA = load_model("llama-3.1-405b")
MILLION = 1_000_000


def decode(model, context=MILLION, precision=FP4, **sizes):
    return Decode(model=model, precision=precision, layout=Layout(**sizes), context=context)


def step(model, context=MILLION, timing=PAPER, precision=FP4, machine=GB200, **sizes):
    return decode_step(model, machine, Layout(**sizes), context, precision=precision, timing=timing)


# --- Hand numbers ----------------------------------------------------------------------------------------------------


def test_r1_reads_576_values_a_token_and_layer():
    core = attention.attention_core(decode(R1))
    assert core.kv_bytes == 576 * MILLION * 0.5


def test_llama_at_tp_8_reads_one_kv_head_of_each_layer():
    core = attention.attention_core(decode(LLAMA, batch=8, tpa=8, tpf=8))
    assert core.kv_bytes == 8 * 1 * 2 * 128 * MILLION * 0.5
    assert core.flops == 2 * 8 * 16 * (128 + 128) * MILLION


def test_mla_core_scores_576_and_sums_512_dimensions_per_head():
    assert attention.attention_core(decode(R1)).flops == 2 * 128 * (576 + 512) * MILLION


def test_past_kv_heads_the_cache_is_only_duplicated():
    kv = [attention.attention_core(decode(LLAMA, tpa=tp, tpf=tp)).kv_bytes for tp in (1, 2, 4, 8, 16, 32, 64)]
    assert [kv[0] / part for part in kv] == [1, 2, 4, 8, 8, 8, 8]
    steps = [step(LLAMA, tpa=tp, tpf=tp) for tp in (8, 16, 64)]
    seconds = [float(s.times["attention_core"].hbm_s) for s in steps]
    assert seconds[1] == pytest.approx(seconds[0], rel=1e-3)
    assert steps[2].memory.kv_cache == steps[0].memory.kv_cache


def test_mla_under_tp_copies_the_whole_cache_to_every_rank():
    one, many = (attention.attention_core(decode(R1, tpa=tp, tpf=tp)).kv_bytes for tp in (1, 64))
    assert one == many


def test_kvp_shards_the_cache_to_within_one_block():
    for kvp in (1, 2, 3, 7, 16, 64):
        tokens = attention.kv_tokens_per_rank(decode(LLAMA, kvp=kvp))
        assert MILLION / kvp <= tokens < MILLION / kvp + attention.KV_BLOCK_TOKENS


def test_the_exchange_moves_the_slices_of_the_paper():
    # B·H/(KVP·TPA) values and their log-sum-exps to each of KVP - 1 ranks; nothing of it depends on S
    d = decode(LLAMA, batch=8, tpa=8, kvp=8, tpf=64)
    slice_bytes = 8 * (128 // 64) * (128 * 2 + 4)
    assert attention.exchange(d).link_bytes == 7 * slice_bytes
    assert attention.exchange(replace(d, context=4 * MILLION)).link_bytes == 7 * slice_bytes


def test_medha_gathers_onto_one_shard():
    # each owner rank receives its B·Q/TPA heads from the 7 others, and 56 of 64 GPUs idle in the FFN
    d = decode(LLAMA, batch=8, tpa=8, kvp=8, tpf=8)
    assert attention.exchange(d).link_bytes == 7 * 8 * 16 * (128 * 2 + 4)
    assert ffn.dense_up(d).flops == 8 * ffn.dense_up(decode(LLAMA, batch=8, tpa=8, kvp=8, tpf=64)).flops
    assert attention.spread_to_shards(d).link_bytes == 8 * 16384 * 2


def test_helix_spreads_nothing_and_tp_exchanges_nothing():
    assert attention.spread_to_shards(decode(LLAMA, tpa=8, kvp=8, tpf=64)).link_bytes == 0
    tp = decode(LLAMA, tpa=8, tpf=8)
    assert attention.exchange(tp).link_bytes == 0
    assert attention.combine_partials(tp).kernels == 0


def test_a_ring_all_reduce_sends_each_byte_almost_twice():
    work = attention.group_all_reduce(decode(LLAMA, batch=4, tpa=8, tpf=8))
    assert work.link_bytes == 2 * 7 / 8 * 4 * 16384 * 2


def test_dispatch_carries_each_foreign_token_once_to_a_rank_that_it_picks():
    # 64 groups of one GPU, 4 experts each: P(hit) = 1 - C(252, 8) / C(256, 8), of 126 foreign tokens
    d = decode(R1, batch=2, dp=64, tpf=1, ep=64)
    hit = 1 - np.prod([(252 - i) / (256 - i) for i in range(8)])
    assert ffn.share_of_tokens_here(d, R1.experts) == pytest.approx(hit, rel=1e-12)
    busiest_of_64 = np.sum(1 - binom.cdf(np.arange(126), 126, hit) ** 64)
    assert ffn.dispatch(d, ffn.busiest_rank(d, R1.experts)).link_bytes == pytest.approx(
        busiest_of_64 * 7168 * 2, rel=0.01
    )
    alone = decode(R1, batch=2, kvp=64, tpf=1, ep=64)
    assert ffn.dispatch(alone, ffn.busiest_rank(alone, R1.experts)).link_bytes == 0


# --- Routing, against a simulation of it -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tokens", "ep"), [(1, 64), (1, 8), (4, 64), (8, 8), (16, 64), (32, 32), (64, 1), (256, 16), (1024, 64)]
)
def test_the_busiest_rank_of_random_routing(tokens, ep):
    moe, rng, trials = R1.experts, np.random.default_rng(7), 300
    distinct, load = [], []
    for _ in range(trials):
        picks = np.argsort(rng.random((tokens, moe.routed)), axis=1)[:, : moe.top_k]
        counts = np.bincount(picks.ravel(), minlength=moe.routed).reshape(ep, -1)
        distinct.append((counts > 0).sum(axis=1).max())
        load.append(counts.sum(axis=1).max())
    d = decode(R1, batch=tokens, kvp=ep, tpf=1, ep=ep)
    busiest = ffn.busiest_rank(d, moe)
    assert busiest.read == pytest.approx(np.mean(distinct), rel=0.05)
    assert busiest.pairs == pytest.approx(np.mean(load), rel=0.10 if tokens > 2 else 0.30)


def test_on_one_rank_the_expected_distinct_experts_are_exact():
    d = decode(R1, batch=32)
    rank = ffn.busiest_rank(d, R1.experts)
    assert rank.read == pytest.approx(256 * (1 - (1 - 8 / 256) ** 32), rel=1e-12)
    assert rank.pairs == 32 * 8


@pytest.mark.parametrize("skew", [0.0, 0.5, 1.2, 3.0])
@pytest.mark.parametrize(("routed", "top_k"), [(256, 8), (2, 2), (5, 4), (8, 1)])
def test_popularity_sums_to_the_experts_a_token_picks(routed, top_k, skew):
    moe = Experts(routed=routed, top_k=top_k, intermediate_size=64, routing_skew=skew)
    classes = ffn.expert_popularity(moe)
    assert sum(count for count, _ in classes) == routed
    assert sum(count * picked for count, picked in classes) == pytest.approx(top_k, rel=1e-3)
    assert all(0 <= picked <= 1 for _, picked in classes)


def test_skewed_routing_reads_fewer_experts_but_loads_the_busiest_rank_more():
    skewed = R1.experts.model_copy(update={"routing_skew": 1.0})
    d = decode(R1, batch=32, kvp=8, tpf=1, ep=8)
    uniform, uneven = ffn.busiest_rank(d, R1.experts), ffn.busiest_rank(d, skewed)
    assert uneven.read < uniform.read
    assert uneven.pairs > uniform.pairs


# --- Accounting ------------------------------------------------------------------------------------------------------

SHARDED = [
    (LLAMA, {"tpa": 8, "tpf": 8}, 8),
    (LLAMA, {"tpa": 8, "kvp": 8, "tpf": 64}, 64),
    (R1, {"tpa": 8, "tpf": 2, "ep": 4}, 8),
]


@pytest.mark.parametrize(("model", "sizes", "gpus"), SHARDED)
def test_weights_on_one_gpu_are_those_of_the_unsharded_model(model, sizes, gpus):
    weights = step(
        model, timing=IDEAL, precision=Precision(weights="fp8", kv="fp4", math="fp4"), **sizes
    ).memory.weights
    assert gpus * weights >= (model.total_parameters - model.parameters()["norms"]) * 0.999
    if model.attention.kind == "gqa" and sizes.get("kvp", 1) == 1:
        # every weight is on exactly one GPU: the shards sum to the model
        assert gpus * weights == pytest.approx(model.total_parameters - model.parameters()["norms"], rel=1e-12)


def test_unsharded_memory_is_the_model():
    single = evaluate(R1, GB200, IDEAL, Precision(weights="fp8", kv="fp8", math="fp8"), Layout(), 1000)
    p = R1.parameters()
    latent_norms = R1.layers * (1536 + 512)
    router_in_bf16 = p["router"]
    expected = R1.total_parameters - p["norms"] - latent_norms + router_in_bf16
    assert single.memory.weights == pytest.approx(expected, rel=1e-9)
    assert single.memory.kv_cache == 61 * 576 * 1000


@pytest.mark.parametrize(
    ("model", "sizes"),
    [
        (R1, {"batch": 8, "kvp": 16, "tpf": 4, "ep": 4, "chunks": 4}),
        (R1, {"batch": 4, "dp": 8, "tpf": 1, "ep": 8}),
        (R1, {"batch": 4, "dp": 4, "kvp": 4, "tpf": 4, "ep": 4}),
        (LLAMA, {"batch": 4, "tpa": 8, "pp": 3, "tpf": 8}),
        (LLAMA, {"batch": 4, "tpa": 8, "kvp": 4, "tpf": 8}),
        (LLAMA, {"batch": 4, "dp": 2, "tpa": 8, "tpf": 16}),
    ],
)
def test_ops_minus_hidden_time_are_the_ttl(model, sizes):
    s = step(model, **sizes)
    ops = s.to_frame()
    assert ops["seconds"].sum() - ops["hidden_s"].sum() == pytest.approx(float(s.ttl_s), rel=1e-12)
    assert ops["share"].sum() == pytest.approx(1.0, rel=1e-12)
    assert (ops["hidden_s"] <= ops["seconds"]).all()


def test_pipeline_stages_pass_a_token_on_and_keep_all_users_in_flight():
    one, three = step(LLAMA, batch=4, tpa=8, tpf=8), step(LLAMA, batch=4, tpa=8, pp=3, tpf=8)
    assert three.layout.users == 12
    assert three.tokens_per_s_user < one.tokens_per_s_user
    assert three.memory.weights < one.memory.weights / 2


# --- Laws ------------------------------------------------------------------------------------------------------------


def test_the_ideal_timing_is_a_bound():
    for sizes in ({"batch": 8, "tpa": 8, "kvp": 8, "tpf": 64}, {"batch": 1, "tpa": 64, "tpf": 64}):
        assert step(LLAMA, timing=IDEAL, **sizes).ttl_s < step(LLAMA, timing=PAPER, **sizes).ttl_s


def test_without_latencies_helix_wins_as_much_as_a_plain_roofline_says():
    # the paper's digest: no fixed latencies at all gives 2.7x (Llama) and 6.6x (R1); attention and weight reads alone
    def ratio(model, tp, helix):
        return float(step(model, timing=IDEAL, **tp).ttl_s / step(model, timing=IDEAL, **helix).ttl_s)

    llama = ratio(LLAMA, {"tpa": 64, "tpf": 64}, {"tpa": 8, "kvp": 8, "tpf": 64})
    assert llama == pytest.approx(2.7, rel=0.25)


def test_hop_b_reproduces_figure_3():
    assert pipelined(16.0, 9.6, chunks=1) == pytest.approx(25.6)
    assert pipelined(2.0, 1.2, chunks=8) == pytest.approx(17.2)


def test_hop_b_never_costs_more_than_lockstep_and_never_less_than_the_longer_part():
    rng = np.random.default_rng(3)
    a, c, n = rng.random(1000), rng.random(1000), rng.integers(1, 64, 1000)
    hidden = hidden_by_pipelining(a, c, n)
    assert (hidden >= -1e-15).all()
    assert (a + c - hidden >= np.maximum(a, c) - 1e-12).all()


def test_a_chunk_pays_its_own_latencies():
    off, on = (step(LLAMA, batch=8, tpa=8, kvp=8, tpf=64, chunks=n) for n in (1, 8))
    kernel, phase = PAPER.kernel.latency_s, PAPER.collective.latency_s
    assert on.times["attention_core"].latency_s == pytest.approx(8 * kernel)
    assert on.times["exchange"].latency_s == pytest.approx(8 * phase)
    assert on.ttl_s > off.ttl_s


def test_twice_the_gpus_beyond_the_domain_pay_the_network():
    h100 = load_machine("h100-hgx")
    fp8 = Precision(weights="fp8", kv="fp8", math="fp8")
    model = load_model("llama-3.1-70b")
    inside = step(model, 100_000, machine=h100, precision=fp8, tpa=8, tpf=8)
    outside = step(model, 100_000, machine=h100, precision=fp8, tpa=16, tpf=16)
    assert outside.times["attention_all_reduce"].seconds > inside.times["attention_all_reduce"].seconds


# --- Refusals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "sizes", "sentence"),
    [
        (LLAMA, {"tpa": 256, "tpf": 256}, "256 ranks share 128 query heads"),
        (LLAMA, {"tpa": 8, "tpf": 4}, r"tpf·ep = 4 spans neither all 8 GPUs"),
        (LLAMA, {"tpa": 8, "tpf": 4, "ep": 2}, "a dense FFN is one expert"),
        (LLAMA, {"tpa": 8, "tpf": 8, "pp": 127}, "more than the 126 layers"),
        (LLAMA, {"tpa": 8, "tpf": 8, "chunks": 2}, "more than the batch of 1"),
        (LLAMA, {"batch": 4, "tpa": 8, "tpf": 8, "chunks": 2}, "nothing to overlap"),
        (LLAMA, {"tpa": 1, "tpf": 1}, r"needs 3\d\d\.\d GB on the fullest GPU"),
        (LLAMA, {"batch": 0}, "batch is 0; it must be a whole number from 1"),
        (R1, {"dp": 512, "tpf": 1, "ep": 512}, "512 is more than the 256 routed experts"),
        (R1, {"dp": 1024, "tpf": 4, "ep": 256}, "needs 1024 GPUs"),
    ],
)
def test_a_layout_that_cannot_run_says_why(model, sizes, sentence):
    with pytest.raises(LayoutError, match=sentence):
        step(model, **sizes)


def test_sizes_beyond_any_machine_do_not_wrap_around():
    roomy = GB200.model_copy(update={"memory_GB": GB200.memory_GB.model_copy(update={"value": 1e30})})
    one = step(LLAMA, 10**9, machine=roomy, batch=10**3, tpa=8, tpf=8)
    many = step(LLAMA, 10**12, machine=roomy, batch=10**9, tpa=8, tpf=8)
    core = "attention_core"
    assert many.ops[core].flops == pytest.approx(one.ops[core].flops * 1e9, rel=1e-9)
    with pytest.raises(LayoutError, match="context is 1000000000001; it must be a whole number from 1 to 10"):
        step(LLAMA, 10**12 + 1, tpa=8, tpf=8)


def test_every_reason_is_told_at_once():
    with pytest.raises(LayoutError) as caught:
        step(LLAMA, tpa=8, tpf=4, pp=500, chunks=3)
    assert len(caught.value.problems) >= 3


def test_a_format_the_machine_cannot_multiply_is_named_with_those_it_can():
    with pytest.raises(ValueError, match="h200-hgx has no fp4 arithmetic; use fp8 or bf16"):
        step(load_model("llama-3.1-8b"), 1000, machine=load_machine("h200-hgx"))


def test_op_names_are_those_of_the_model_never_of_the_layout():
    for model in (R1, LLAMA):
        names = {tuple(layer_ops(decode(model, **sizes))) for sizes in ({}, {"kvp": 8, "tpf": 8}, {"dp": 8, "tpf": 8})}
        assert len(names) == 1
