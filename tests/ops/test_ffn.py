"""FFN and routing by hand, and against a simulation of random routing."""

import numpy as np
import pytest
from cases import DENSE, LLAMA, MOE, R1, decode
from scipy.stats import binom

from helix_sim.ops import ffn, routing
from helix_sim.specs.ffn import RoutedFfn


def test_dispatch_carries_each_foreign_token_once_to_a_rank_that_it_picks():
    # 64 groups of one GPU, 4 experts each: P(hit) = 1 - C(252, 8) / C(256, 8), of 126 foreign tokens
    d = decode(R1, batch=2, dp=64, tpf=1, ep=64)
    hit = 1 - np.prod([(252 - i) / (256 - i) for i in range(8)])
    assert routing.share_of_tokens_here(d, MOE) == pytest.approx(hit, rel=1e-12)
    busiest_of_64 = np.sum(1 - binom.cdf(np.arange(126), 126, hit) ** 64)
    assert ffn.dispatch(d, routing.busiest_rank(d, MOE)).link_bytes == pytest.approx(busiest_of_64 * 7168 * 2, rel=0.01)
    alone = decode(R1, batch=2, kvp=64, tpf=1, ep=64)
    assert ffn.dispatch(alone, routing.busiest_rank(alone, MOE)).link_bytes == 0


@pytest.mark.parametrize(
    ("tokens", "ep"), [(1, 64), (1, 8), (4, 64), (8, 8), (16, 64), (32, 32), (64, 1), (256, 16), (1024, 64)]
)
def test_the_busiest_rank_of_random_routing(tokens, ep):
    moe, rng, trials = MOE, np.random.default_rng(7), 300
    distinct, load = [], []
    for _ in range(trials):
        picks = np.argsort(rng.random((tokens, moe.routed)), axis=1)[:, : moe.top_k]
        counts = np.bincount(picks.ravel(), minlength=moe.routed).reshape(ep, -1)
        distinct.append((counts > 0).sum(axis=1).max())
        load.append(counts.sum(axis=1).max())
    d = decode(R1, batch=tokens, kvp=ep, tpf=1, ep=ep)
    busiest = routing.busiest_rank(d, moe)
    assert busiest.read == pytest.approx(np.mean(distinct), rel=0.05)
    assert busiest.pairs == pytest.approx(np.mean(load), rel=0.10 if tokens > 2 else 0.30)


def test_on_one_rank_the_expected_distinct_experts_are_exact():
    d = decode(R1, batch=32)
    rank = routing.busiest_rank(d, MOE)
    assert rank.read == pytest.approx(256 * (1 - (1 - 8 / 256) ** 32), rel=1e-12)
    assert rank.pairs == 32 * 8


@pytest.mark.parametrize("skew", [0.0, 0.5, 1.2, 3.0])
@pytest.mark.parametrize(("routed", "top_k"), [(256, 8), (2, 2), (5, 4), (8, 1)])
def test_popularity_sums_to_the_experts_a_token_picks(routed, top_k, skew):
    moe = RoutedFfn(kind="routed", routed=routed, top_k=top_k, intermediate_size=64, routing_skew=skew)
    classes = routing.expert_popularity(moe)
    assert sum(count for count, _ in classes) == routed
    assert sum(count * picked for count, picked in classes) == pytest.approx(top_k, rel=1e-3)
    assert all(0 <= picked <= 1 for _, picked in classes)


def test_skewed_routing_reads_fewer_experts_but_loads_the_busiest_rank_more():
    skewed = MOE.model_copy(update={"routing_skew": 1.0})
    d = decode(R1, batch=32, kvp=8, tpf=1, ep=8)
    uniform, uneven = routing.busiest_rank(d, MOE), routing.busiest_rank(d, skewed)
    assert uneven.read < uniform.read
    assert uneven.pairs > uniform.pairs


def test_the_rank_of_the_hottest_expert_has_that_one_and_an_average_share_of_the_others():
    # of 256 experts each token picks 8, the hottest always; a rank of 2 has it beside one of the 255 that share 7 picks
    hot = MOE.model_copy(update={"routing_skew": 2.0})
    assert routing.expert_popularity(hot)[0] == (1, 1.0)
    rank = routing.busiest_rank(decode(R1, batch=4096, kvp=128, tpf=1, ep=128), hot)
    assert rank.pairs == pytest.approx(4096 * (1 + 7 / 255), rel=1e-12)


@pytest.mark.parametrize(("dp", "ep", "tpf"), [(8, 8, 1), (16, 8, 2), (8, 64, 1)])
def test_a_dispatch_leaves_a_rank_the_tokens_that_picked_an_expert_there(dp, ep, tpf):
    tokens, rng, trials = 32, np.random.default_rng(3), 100
    d = decode(R1, batch=tokens, tpa=ep * tpf // dp, dp=dp, tpf=tpf, ep=ep)
    here = []
    for _ in range(trials):
        picks = np.argsort(rng.random((tokens * dp, MOE.routed)), axis=1)[:, : MOE.top_k] // (MOE.routed // ep)
        here.append(max((picks == rank).any(axis=1).sum() for rank in range(ep)))
    work = ffn.routed_up(d, MOE, routing.busiest_rank(d, MOE))
    assert work.arrived == pytest.approx(np.mean(here), rel=0.05)
    assert work.arrived < work.tokens == tokens * dp


def test_without_a_dispatch_every_token_is_already_there():
    d = decode(R1, batch=32, kvp=8, tpf=1, ep=8)
    work = ffn.routed_up(d, MOE, routing.busiest_rank(d, MOE))
    assert work.arrived == work.tokens == 32


def test_a_squared_relu_has_two_matrices_and_a_gated_ffn_three():
    # Llama 405B on TPF 8: F/8 = 6,656 columns of up, at batch 2
    plain, s = DENSE.model_copy(update={"gated": False}), decode(LLAMA, batch=2, tpa=8, tpf=8)
    assert ffn.dense_up(s, plain).flops == 2 * 2 * 16_384 * 6_656
    assert ffn.dense_activation(s, plain).activation_bytes == 2 * (6_656 + 6_656) * 2
    assert plain.parameters(16_384) == {"dense FFN": 2 * 16_384 * 53_248}
    assert DENSE.parameters(16_384) == {"dense FFN": 3 * 16_384 * 53_248}
    experts, busiest = MOE.model_copy(update={"gated": False}), routing.busiest_rank(decode(R1, batch=2, tpf=1), MOE)
    r = decode(R1, batch=2, tpf=1)
    assert 2 * ffn.routed_up(r, experts, busiest).flops == ffn.routed_up(r, MOE, busiest).flops
    assert 2 * ffn.shared_up(r, experts).flops == ffn.shared_up(r, MOE).flops
    assert 3 * ffn.shared_activation(r, experts).activation_bytes == 2 * ffn.shared_activation(r, MOE).activation_bytes
    assert 3 * experts.parameters(7168)["routed experts"] == 2 * MOE.parameters(7168)["routed experts"]
