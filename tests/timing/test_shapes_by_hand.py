"""Shapes of measured kernels by hand: round machines and round parameters, so that each term is a number one can check.

The machine has 1 TB/s of HBM, 100 GB/s of NVLink, 10 GB/s of network and 10 µs on it, 100 SMs, 100 MB of L2. In every
case the terms that it is not about are zero, or small enough to lose a maximum.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from helix_sim.core.collectives import Collective, direct
from helix_sim.core.work import Work
from helix_sim.timing import kernel_shapes as shapes
from helix_sim.timing.kernel_shapes import Gpu, Terms

GPU = Gpu(
    hbm_bytes_per_s=1e12,
    nvlink_bytes_per_s=1e11,
    network_bytes_per_s=1e10,
    network_peak_bytes_per_s=1e10,
    network_latency_s=10e-6,
    domain=8,
    tray=4,
    sms=100,
    l2_bytes=1e8,
)
WARM = replace(GPU, l2_warm=True)
PETA = 1e15


def seconds(terms: Terms) -> float:
    """What a kernel takes: its latency, then the slowest of its bodies."""
    return float(terms.latency_s + max(terms.math_s, terms.hbm_s, terms.link_s))


def approx(microseconds: float) -> Any:
    """Microseconds as seconds, to the last digits."""
    return pytest.approx(microseconds * 1e-6, rel=1e-9)


def smooth(p: float, *terms: float) -> float:
    """The p-norm by its definition."""
    return sum(term**p for term in terms) ** (1 / p)


# --- One pass over memory --------------------------------------------------------------------------------------------


def test_a_pass_over_memory_is_its_launches_and_its_bytes():
    work = Work(op_class="elementwise", kernels=2, activation_bytes=1e6, weight_bytes=5e5, kv_bytes=5e5)
    terms = shapes.stream(work, GPU, PETA, {"latency_us": 3.0, "bandwidth_share": 0.5})
    assert (terms.latency_s, terms.hbm_s) == (approx(6), approx(4))
    assert (terms.math_s, terms.link_s) == (0, 0)


# --- A choice along rows of scores ------------------------------------------------------------------------------------

WALK = {"latency_us": 3.0, "bandwidth_share": 1.0, "kB_ns": 40.0, "splits": 10.0, "split_kB": 800.0}


def chosen_in(row_kB: float, rows: float, **changed: float) -> float:
    """Seconds of a choice among rows of so many kB each."""
    work = Work(op_class="index-top-k", activation_bytes=row_kB * 1e3 * rows, rows=rows)
    return seconds(shapes.row_walk(work, GPU, PETA, WALK | changed))


def test_a_block_walks_a_row_and_ten_share_a_long_one_which_a_second_launch_merges():
    # 400 kB at 40 ns a kB are 16 µs, and 0.4 µs of HBM; 4 MB are 160 µs by one block and 16 by ten
    assert chosen_in(400, 1) == approx(3 + smooth(2, 16, 0.4))
    assert chosen_in(4000, 1) == approx(6 + smooth(2, 16, 4))
    assert chosen_in(4000, 1, splits=1) == approx(3 + smooth(2, 160, 4))


def test_the_blocks_of_long_rows_need_sms_as_those_of_short_ones_do():
    # 20 rows of ten blocks are two waves over 100 SMs; 200 rows of one block each as well
    assert chosen_in(4000, 20) == approx(6 + smooth(2, 32, 80))
    assert chosen_in(400, 200) == approx(3 + smooth(2, 32, 80))


# --- Matrix products -------------------------------------------------------------------------------------------------

PRODUCT = Work(op_class="gemm", rows=64, inner=1000, outer=64, weights="fp8", math="fp8")
FREE = {"latency_us": 5.0, "bandwidth_share": 0.5, "math_share": 0.5, "wave_us": 2.0, "split_us": 1000.0}
FREE |= {"input_passes": 0.0, "load_share": 2.0, "step_ns": 10.0, "l2_share": 0.5, "l2_gain": 3.0}


def product(flops_per_s: float = PETA, gpu: Gpu = GPU, work: Work = PRODUCT, **changed: float) -> float:
    """Microseconds of a matrix product, those of the changed parameters replaced."""
    return seconds(shapes.gemm(work, gpu, flops_per_s, FREE | changed)) * 1e6


def test_a_block_walks_the_inner_dimension_at_the_pace_of_a_dependent_load():
    # latency 5, one wave 2, and 1000 steps of 10 ns: the tile's loads take 6.4 ns, its arithmetic 1.6
    assert product() == pytest.approx(5 + 2 + 10)


def test_a_block_walks_the_inner_dimension_at_the_pace_of_its_loads():
    # (64 + 64) bytes a step at 1 TB/s · 2 / 100 SMs: 6.4 ns; in BF16 twice; 8 rows load 72 bytes
    assert product(step_ns=1.0) == pytest.approx(5 + 2 + 6.4)
    assert product(step_ns=1.0, work=replace(PRODUCT, weights="bf16")) == pytest.approx(5 + 2 + 12.8)
    assert product(step_ns=1.0, work=replace(PRODUCT, rows=8)) == pytest.approx(5 + 2 + 3.6)
    assert product(step_ns=1.0, load_share=4.0) == pytest.approx(5 + 2 + 3.2)


def test_a_block_walks_the_inner_dimension_at_the_pace_of_its_tensor_cores():
    # 2·64·64 FLOP a step at half of 100 TFLOP/s over 100 SMs: 16.384 ns
    assert product(flops_per_s=1e14) == pytest.approx(5 + 2 + 16.384)
    assert product(flops_per_s=1e14, math_share=0.25) == pytest.approx(5 + 2 + 32.768)


def test_the_101st_tile_opens_a_second_wave():
    for work, waves in (
        (replace(PRODUCT, copies=100), 1),
        (replace(PRODUCT, copies=101), 2),
        (replace(PRODUCT, copies=50, rows=257), 1),
        (replace(PRODUCT, copies=51, rows=257), 2),
        (replace(PRODUCT, copies=25, rows=512, outer=512), 1),
        (replace(PRODUCT, copies=25, rows=512, outer=513), 2),
        (replace(PRODUCT, copies=201), 3),
    ):
        assert product(1e18, work=work, load_share=1e3) == pytest.approx(5 + waves * 12)


@pytest.mark.parametrize(("rows", "columns"), shapes.TILES)
def test_every_tile_is_the_best_of_its_own_product(rows: int, columns: int):
    # 100 such tiles fill the SMs once; arithmetic sets the pace, so that a larger tile is a longer walk, and a smaller
    # one another wave
    work = replace(PRODUCT, copies=100, rows=rows, outer=columns)
    pace = 2 * rows * columns / (0.5 * 1e14 / 100) * 1e9
    one_wave = 5 + 2 + pace
    assert product(flops_per_s=1e14, step_ns=0.0, load_share=1e6, work=work) <= one_wave * (1 + 1e-9)
    without = tuple(tile for tile in shapes.TILES if tile != (rows, columns))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shapes, "TILES", without)
        assert product(flops_per_s=1e14, step_ns=0.0, load_share=1e6, work=work, wave_us=2.0) > one_wave * 1.001


def test_a_tile_is_whole_pieces_of_64_which_a_group_of_warps_multiplies():
    assert all(side % 64 == 0 for tile in shapes.TILES for side in tile)


def test_a_long_inner_dimension_is_split_where_adding_up_is_cheaper():
    # 8000 steps: 80 µs whole. Eight pieces of 1000 steps: 10 µs, log2(8) = 3 merges, and 4·64·64·8 bytes of sums
    long = replace(PRODUCT, inner=8000)
    assert product(work=long) == pytest.approx(5 + 2 + 80)
    assert product(work=long, split_us=1.0) == pytest.approx(5 + 2 + 10 + 3 + 0.131072)
    # three µs a merge more: two pieces are 2 + 40 + 30, four 2 + 20 + 60
    assert product(work=long, split_us=30.0) == pytest.approx(5 + 2 + 40 + 30 + 0.032768)
    assert product(work=long, split_us=12.0) == pytest.approx(5 + 2 + 20 + 24 + 0.065536)


def test_pieces_of_a_split_product_need_sms_too():
    # 50 copies in two pieces fill the SMs; in four they are two waves of 2 + 20 µs
    work = replace(PRODUCT, inner=8000, copies=50)
    sums = 4 * 50 * 64 * 64 / 1e12 * 1e6
    assert product(work=work, split_us=1.0) == pytest.approx(5 + 2 + 40 + 1 + 2 * sums)


def test_quantising_the_input_passes_over_it():
    # two passes over 3 copies of 64 x 1000 values of two bytes
    assert product(input_passes=2.0, work=replace(PRODUCT, copies=3)) == pytest.approx(5 + 2 + 10 + 0.768)


def test_a_products_bytes_and_waves_join_in_a_norm_and_each_rate_is_shown():
    work = replace(PRODUCT, weight_bytes=5e6, activation_bytes=1e6, flops=1e9)
    terms = shapes.gemm(work, GPU, PETA, FREE)
    assert (terms.hbm_s, terms.math_s, terms.link_s) == (approx(12), approx(2), 0)
    assert seconds(terms) == approx(5 + smooth(3, 12, 12))


def test_operands_that_a_benchmark_keeps_in_l2_are_read_faster():
    # half of 100 MB holds them: at 50 MB half is cold, and the rest is read 1 + 3 times as fast
    work = replace(PRODUCT, weight_bytes=5e7)
    warm, cold = shapes.gemm(work, WARM, PETA, FREE), shapes.gemm(work, GPU, PETA, FREE)
    assert (cold.hbm_s, warm.hbm_s) == (approx(100), approx(100 * (0.5 + 0.5 / 4)))
    # twice as many are cold but for 1 / 17
    work = replace(PRODUCT, weight_bytes=1e8)
    assert shapes.gemm(work, WARM, PETA, FREE).hbm_s == approx(200 * (16 / 17 + 1 / 17 / 4))


# --- Routed experts --------------------------------------------------------------------------------------------------

EXPERTS = Work(op_class="grouped-gemm", rows=1000, experts_read=10, copies=20, tokens=500, inner=1000, outer=1280)
NOTHING = {"latency_us": 0.0, "bandwidth_share": 0.5, "math_share": 0.5, "step_ns": 0.0, "sort_us": 0.0}
NOTHING |= {"sort_half_tokens": 500.0, "local_expert_ns": 0.0, "read_expert_ns": 0.0, "inner_ns": 0.0, "ramp_kB": 0.0}
NOTHING |= {"pair_passes": 0.0, "token_passes": 0.0, "least_tile_rows": 8.0}


@pytest.mark.parametrize(
    ("changed", "microseconds"),
    [
        ({"latency_us": 5.0}, 5.0),
        ({"sort_us": 10.0}, 5.0),  # 500 tokens of 500 for half of it
        ({"sort_us": 10.0, "sort_half_tokens": 1500.0}, 2.5),
        ({"local_expert_ns": 100.0}, 2.0),
        ({"read_expert_ns": 100.0}, 1.0),
        ({"inner_ns": 1.0}, 1.0),
        ({"pair_passes": 1.0}, 4.56),  # 1000 pairs of 1000 + 1280 values of two bytes
        ({"token_passes": 1.0}, 2.28),
        ({"local_expert_ns": 100.0, "read_expert_ns": 100.0}, 3.0),
        ({"pair_passes": 1.0, "token_passes": 1.0, "latency_us": 5.0, "inner_ns": 1.0}, 12.84),
    ],
)
def test_each_term_of_the_routed_experts_adds(changed, microseconds):
    assert seconds(shapes.grouped(EXPERTS, GPU, float("inf"), NOTHING | changed)) == approx(microseconds)


def test_the_bytes_of_routed_experts_begin_with_a_ramp():
    # 4 GB at half of 1 TB/s: 8 ms; the ramp sqrt(4e9 · 1e3) / 1e12 = 2 µs; other tensors have none
    work = replace(EXPERTS, weight_bytes=4e9)
    assert seconds(shapes.grouped(work, GPU, float("inf"), NOTHING | {"ramp_kB": 1.0})) == approx(8002)
    work = replace(EXPERTS, activation_bytes=4e9)
    assert seconds(shapes.grouped(work, GPU, float("inf"), NOTHING | {"ramp_kB": 1.0})) == approx(8000)


def walk(work: Work, **changed: float) -> float:
    """Microseconds of the tiles alone, at half of 1 PFLOP/s over 100 SMs: 2·128/5e12 s a row of a step."""
    return seconds(shapes.grouped(work, GPU, PETA, NOTHING | changed)) * 1e6


def test_the_tiles_of_an_experts_rows_are_waves_over_the_sms():
    # 10 experts of 100 rows on average: tiles of 100, 10 / (1 - 1/e) of them, ten columns of 128 each, on 100 SMs
    tiles = 10 / (1 - np.exp(-1))
    assert walk(EXPERTS) == pytest.approx(1000 * tiles * 10 / 100 * 100 * 256 / 5e12 * 1e6)
    # 1000 rows each: tiles of 128 at most
    crowded = replace(EXPERTS, rows=10_000)
    tiles = 10 / (1 - np.exp(-0.128))
    assert walk(crowded) == pytest.approx(1000 * tiles * 10 / 100 * 128 * 256 / 5e12 * 1e6)
    # two rows each: tiles of eight at least
    tiles = 500 / (1 - np.exp(-4))
    assert walk(replace(EXPERTS, experts_read=500)) == pytest.approx(1000 * tiles * 10 / 100 * 8 * 256 / 5e12 * 1e6)


def test_a_walk_is_never_quicker_than_the_smallest_tile():
    lonely = replace(EXPERTS, rows=1, experts_read=1, outer=128)
    assert walk(lonely) == pytest.approx(1000 * 8 * 256 / 5e12 * 1e6)
    assert walk(lonely, step_ns=1.0) == pytest.approx(1000 * smooth(3, 0.4096e-9, 1e-9) * 1e6)


def test_an_experts_bytes_and_tiles_join_in_a_norm_and_each_rate_is_shown():
    tiles_s = 1000 * 10 / (1 - np.exp(-1)) * 10 / 100 * 100 * 256 / 5e12
    work = replace(EXPERTS, weight_bytes=4e6, flops=1e9)
    terms = shapes.grouped(work, GPU, PETA, NOTHING)
    assert (terms.hbm_s, terms.math_s, terms.link_s) == (approx(8), approx(2), 0)
    assert seconds(terms) == approx(smooth(2, 8, tiles_s * 1e6))


def test_a_rank_that_nobody_chose_takes_its_latency():
    work = replace(EXPERTS, rows=0, experts_read=0, copies=0, tokens=0, flops=0)
    assert seconds(shapes.grouped(work, GPU, float("inf"), NOTHING | {"latency_us": 5.0})) == approx(5)


# --- Attention -------------------------------------------------------------------------------------------------------

CORE = Work(op_class="attention", rows=10, copies=2, tokens=10_000, heads=64, inner=256)
SILENT = {"latency_us": 0.0, "bandwidth_share": 0.5, "math_share": 0.5, "merge_us": 0.0, "chunk_tokens": 1000.0}
SILENT |= {"token_ns": 0.0, "request_us": 0.0, "heads_half": 64.0, "l2_share": 0.5, "l2_gain": 3.0}
SILENT |= {"reread_share": 0.0, "first_read_us": 0.0}


def latent(work: Work = CORE, gpu: Gpu = GPU, rate: float = PETA, **changed: float) -> float:
    """Microseconds of the core of latent attention."""
    return seconds(shapes.latent_attention(work, gpu, rate, SILENT | changed)) * 1e6


def heads(work: Work = CORE, gpu: Gpu = GPU, rate: float = PETA, **changed: float) -> float:
    """Microseconds of the core of attention with KV heads."""
    return seconds(shapes.head_attention(work, gpu, rate, SILENT | changed)) * 1e6


@pytest.mark.parametrize("core", [latent, heads])
def test_a_core_takes_its_launch_its_bytes_or_its_flop(core):
    assert core(latency_us=5.0) == pytest.approx(5)
    assert core(replace(CORE, kv_bytes=1e8)) == pytest.approx(200)
    assert core(replace(CORE, activation_bytes=1e8)) == pytest.approx(200)
    assert core(replace(CORE, flops=1e12)) == pytest.approx(2000)
    p = 2 if core is latent else 3
    both = replace(CORE, kv_bytes=1e8, flops=1e11)
    assert core(both) == pytest.approx(smooth(p, 200, 200))


@pytest.mark.parametrize("core", [latent, heads])
def test_splits_of_a_request_are_merged_at_most_at_the_price_of_reading_one(core):
    # ten chunks of 1000 tokens, but 100 SMs for 10 · 2 lanes: five splits, four merges
    assert core(replace(CORE, kv_bytes=4e8), merge_us=1.0) == pytest.approx(800 + 4)
    # 4e8 bytes over 20 · 10,000 are 2000 a token: 4 ns; a chunk is read in 4 µs, so no merge takes more
    assert core(replace(CORE, kv_bytes=4e8), merge_us=7.0) == pytest.approx(800 + 16)
    # two lanes: ten splits; 200 lanes: one
    assert core(replace(CORE, kv_bytes=4e8, rows=1), merge_us=1.0) == pytest.approx(800 + 9)
    assert core(replace(CORE, kv_bytes=4e8, rows=100), merge_us=1.0) == pytest.approx(800)
    # half a chunk is no split
    assert core(replace(CORE, kv_bytes=4e8, tokens=500), merge_us=1.0) == pytest.approx(800)


def test_a_block_of_latent_attention_follows_its_tokens():
    assert latent(token_ns=1.0) == pytest.approx(10_000 / 5 * 1e-3)
    assert latent(replace(CORE, kv_bytes=1e6), token_ns=1.0) == pytest.approx(smooth(2, 2, 2))
    assert latent(replace(CORE, kv_bytes=1e6, flops=1e9), token_ns=1.0) == pytest.approx(smooth(2, 2, 2, 2))


def test_waves_of_requests_grow_with_their_heads():
    # 3 µs · (1 + 64 / 64) · 10 requests / 100 SMs
    assert latent(request_us=3.0) == pytest.approx(0.6)
    assert latent(replace(CORE, heads=128), request_us=3.0) == pytest.approx(0.9)
    # per KV head: 256 / 128 · 3 µs · (1 + 32 / 64) · 20 lanes / 100
    assert heads(request_us=3.0) == pytest.approx(1.8)
    assert heads(replace(CORE, copies=4), request_us=3.0) == pytest.approx(2 * 3 * 1.25 * 40 / 100)


@pytest.mark.parametrize(("of", "again"), [(16, 1.0), (17, 1.25), (32, 1.25), (33, 1.0)])
def test_between_16_and_32_heads_the_latent_cache_is_read_again(of, again):
    work = replace(CORE, heads=of, kv_bytes=1e8)
    assert latent(work, reread_share=0.25) == pytest.approx(200 * again)


def test_a_block_with_kv_heads_reads_and_then_follows_its_tokens():
    # 256 / 128 · 1 ns · 10,000 / 5; the chain comes behind the bytes, not beside them
    assert heads(token_ns=1.0) == pytest.approx(4)
    assert heads(replace(CORE, kv_bytes=1e6), token_ns=1.0) == pytest.approx(2 + 4)
    assert heads(replace(CORE, kv_bytes=1e6), token_ns=1.0, request_us=10.0) == pytest.approx(smooth(3, 6, 6))


def test_the_first_read_waits_for_hbm_and_not_for_l2():
    work = replace(CORE, kv_bytes=5e7)
    assert heads(work, first_read_us=8.0) == pytest.approx(100 + 8)
    assert heads(work, WARM, first_read_us=8.0) == pytest.approx(100 * (0.5 + 0.5 / 4) + 4)
    work = replace(CORE, kv_bytes=1e8)
    assert heads(work, WARM, first_read_us=8.0) == pytest.approx(200 * (16 + 0.25) / 17 + 8 * 16 / 17)


@pytest.mark.parametrize("core", [latent, heads])
def test_a_cache_that_a_benchmark_keeps_in_l2_is_read_and_merged_faster(core):
    work, cold = replace(CORE, kv_bytes=5e7), 0.5 + 0.5 / 4
    assert core(work, WARM) == pytest.approx(100 * cold)
    # a chunk is read in 1000 · 5e7 / (20 · 10,000) / 0.5e12 s = 0.5 µs, if cold
    assert core(work, WARM, merge_us=7.0) == pytest.approx(100 * cold + 4 * 0.5 * cold)
    assert core(replace(work, activation_bytes=5e7), WARM) == pytest.approx(100 * cold + 100)


def test_a_core_shows_each_rate_that_it_reaches():
    for shape in (shapes.latent_attention, shapes.head_attention):
        terms = shape(replace(CORE, kv_bytes=1e8, flops=1e10), GPU, PETA, SILENT | {"latency_us": 5.0})
        assert (terms.hbm_s, terms.math_s, terms.link_s) == (approx(200), approx(20), 0)


# --- Collectives -----------------------------------------------------------------------------------------------------

LINK = {"latency_us": 5.0, "doubling_us": 1.0, "beyond_tray_us": 2.0, "link_share": 0.5, "ramp_kB": 0.0}


def among(group: int, stride: int = 1, payload: float = 0.0, **changed: float) -> float:
    """Microseconds of a direct exchange among ranks that stand apart."""
    work = Work(op_class="all-to-all", collective=direct("all-to-all", payload, group, stride))
    return seconds(shapes.exchange(work, GPU, 1.0, LINK | changed)) * 1e6


def test_an_exchange_takes_a_step_for_each_doubling_and_one_beyond_the_board():
    assert among(2) == pytest.approx(5 + 1)
    assert among(4) == pytest.approx(5 + 2)
    assert among(5) == pytest.approx(5 + np.log2(5) + 2)
    assert among(8) == pytest.approx(5 + 3 + 2)
    assert among(1) == 0


def test_the_edge_of_the_board_is_counted_in_ranks_times_their_stride():
    assert among(2, stride=2) == pytest.approx(5 + 1)
    assert among(2, stride=3) == pytest.approx(5 + 1 + 2)
    assert among(4, stride=2) == pytest.approx(5 + 2 + 2)


def test_a_links_share_rises_with_the_message():
    # 4 MB at half of 100 GB/s: 80 µs; the ramp sqrt(4e6 · 1e6) / 1e11: 20 µs
    assert among(2, payload=4e6) == pytest.approx(6 + 80)
    assert among(2, payload=4e6, ramp_kB=1e3) == pytest.approx(6 + 80 + 20)


def test_what_leaves_the_domain_waits_for_the_network_and_crosses_it_at_its_rate():
    # 16 ranks, 8 a domain: 8 of 15 peers are outside
    assert among(16) == pytest.approx(5 + 4 + 2 + 10)
    assert among(16, payload=15e3) == pytest.approx(5 + 4 + 2 + 10 + 8e3 / 1e10 * 1e6)
    # a domain holds 8 / 4 ranks that stand 4 apart: of 3 peers 2 are outside
    assert among(4, stride=4, payload=3e3) == pytest.approx(5 + 2 + 2 + 10 + 2e3 / 1e10 * 1e6)
    inside = replace(GPU, network_bytes_per_s=1e18)
    work = Work(op_class="all-to-all", collective=direct("all-to-all", 15e6, 16))
    assert seconds(shapes.exchange(work, inside, 1.0, LINK)) == approx(5 + 4 + 2 + 10 + 7e6 / 0.5e11 * 1e6)


def test_a_gather_brings_what_nobody_needed_too():
    work = Work(op_class="dispatch", needed=0.25, collective=direct("all-to-all", 1e6, 2))
    assert seconds(shapes.gather(work, GPU, 1.0, LINK | {"value_bytes": 0.0})) == approx(6 + 80)
    work = Work(op_class="dispatch", needed=0.25, collective=direct("all-to-all", 1e3, 16))
    assert seconds(shapes.gather(work, GPU, 1.0, LINK | {"value_bytes": 0.0})) == approx(
        11 + 10 + 4e3 * 8 / 15 / 1e10 * 1e6
    )


SUM = {"one_shot_us": 4.0, "two_shot_us": 6.0, "doubling_us": 1.0, "beyond_tray_us": 2.0, "nccl_us": 20.0}
SUM |= {"one_shot_share": 0.5, "two_shot_share": 0.8}


def summed(group: int, payload: float, stride: int = 1) -> Terms:
    """The terms of an all-reduce."""
    collective = Collective(kind="all-reduce", payload=payload, group=group, stride=stride)
    return shapes.all_reduce(Work(op_class="all-reduce", collective=collective), GPU, 1.0, SUM)


def test_a_small_sum_is_one_shot_and_a_large_one_two():
    # one shot among 4: 4 + 2 and 3 payloads at half rate; two shots: 6 + 2 and 1.5 payloads at 0.8 of it
    small, large = summed(4, 1e3), summed(4, 1e8)
    assert (small.latency_s, small.link_s) == (approx(6), approx(0.06))
    assert (large.latency_s, large.link_s) == (approx(8), approx(1875))
    assert (small.math_s, small.hbm_s) == (0, 0)
    assert seconds(summed(8, 1e3)) == approx(4 + 3 + 2 + 0.14)
    assert seconds(summed(2, 1e3, stride=4)) == approx(4 + 1 + 2 + 0.02)
    assert seconds(summed(1, 1e8)) == 0


def test_a_sum_across_domains_is_nccls():
    # two domains of 8: the ring's two network phases, 2·(1/2)·payload/8 over the network, 2·(7/8)·payload inside;
    # one shot has one phase, and 8 of 15 payloads over the network
    ring, shot = summed(16, 1e8), summed(16, 15.0)
    assert (ring.latency_s, ring.link_s) == (approx(20 + 20), approx(1.75e8 / 0.8e11 * 1e6))
    assert (shot.latency_s, shot.link_s) == (approx(20 + 10), approx(8 * 15 / 1e10 * 1e6))


# --- Pieces ----------------------------------------------------------------------------------------------------------


def test_a_piece_is_its_share_of_everything_that_is_moved_and_of_no_width():
    whole = Work(
        op_class="attention-gqa", flops=80.0, weight_bytes=8.0, kv_bytes=16.0, activation_bytes=24.0, rows=32, inner=5,
        outer=6, copies=7, heads=9, tokens=11, pieces=8, collective=direct("all-to-all", 40.0, 4, 2),
    )  # fmt: skip
    one = shapes.one_piece(whole)
    assert (one.flops, one.weight_bytes, one.kv_bytes, one.activation_bytes, one.rows) == (10, 1, 2, 3, 4)
    assert (one.inner, one.outer, one.copies, one.heads, one.tokens, one.pieces) == (5, 6, 7, 9, 11, 1)
    assert one.collective == direct("all-to-all", 5.0, 4, 2)


def test_a_smooth_maximum_of_one_term_is_that_term():
    assert shapes.norm(3, 2.5) == 2.5
    assert shapes.norm(3, 1.0, 2.0) == pytest.approx(9 ** (1 / 3))
    assert shapes.norm(2, np.array([0.0, 3.0]), np.array([0.0, 4.0])).tolist() == [0, 5]
    assert float(shapes.norm(6, 1e300, 1e300)) == pytest.approx(1e300 * 2 ** (1 / 6))


@pytest.mark.parametrize("varied", shapes.PRODUCT)
def test_products_that_are_alike_are_found_once_and_those_that_differ_are_not(varied: str):
    # 2,000 rows of seven products; where rows are a table, the last of each row's three batches differs as well
    whole = replace(PRODUCT, weight_bytes=1e6, activation_bytes=1e5, flops=1e8)
    steps = 1 + np.arange(2000.0)[::-1, None] % 7
    for column in (getattr(whole, varied) * steps, getattr(whole, varied) * (steps + np.array([[0, 0, 1]]))):
        many = shapes.gemm(replace(whole, **{varied: column}), GPU, PETA, FREE)
        for row in range(0, 2000, 173):
            alone = shapes.gemm(replace(whole, **{varied: column[row]}), GPU, PETA, FREE)
            for of_many, of_one in zip(many, alone, strict=True):
                assert np.broadcast_to(of_many, (2000, column.shape[1]))[row] == pytest.approx(of_one, rel=1e-12)
