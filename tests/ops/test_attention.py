"""Attention by hand: what a rank reads, computes and exchanges, from the published widths."""

from dataclasses import replace

import pytest
from cases import DENSE, GQA, LLAMA, MILLION, MLA, R1, decode, step

from helix_sim.ops import attention, exchange, ffn


def test_r1_reads_576_values_a_token_and_layer():
    core = attention.attention_core(decode(R1), MLA)
    assert core.kv_bytes == 576 * MILLION * 0.5


def test_llama_at_tp_8_reads_one_kv_head_of_each_layer():
    core = attention.attention_core(decode(LLAMA, batch=8, tpa=8, tpf=8), GQA)
    assert core.kv_bytes == 8 * 1 * 2 * 128 * MILLION * 0.5
    assert core.flops == 2 * 8 * 16 * (128 + 128) * MILLION


def test_mla_core_scores_576_and_sums_512_dimensions_per_head():
    assert attention.attention_core(decode(R1), MLA).flops == 2 * 128 * (576 + 512) * MILLION


def test_past_kv_heads_the_cache_is_only_duplicated():
    kv = [attention.attention_core(decode(LLAMA, tpa=tp, tpf=tp), GQA).kv_bytes for tp in (1, 2, 4, 8, 16, 32, 64)]
    assert [kv[0] / part for part in kv] == [1, 2, 4, 8, 8, 8, 8]
    steps = [step(LLAMA, tpa=tp, tpf=tp) for tp in (8, 16, 64)]
    seconds = [float(s.times["attention_core"].hbm_s) for s in steps]
    assert seconds[1] == pytest.approx(seconds[0], rel=1e-3)
    assert steps[2].memory.kv_cache == steps[0].memory.kv_cache


def test_mla_under_tp_copies_the_whole_cache_to_every_rank():
    one, many = (attention.attention_core(decode(R1, tpa=tp, tpf=tp), MLA).kv_bytes for tp in (1, 64))
    assert one == many


def test_kvp_shards_the_cache_to_within_one_block():
    for kvp in (1, 2, 3, 7, 16, 64):
        tokens = attention.kv_tokens_per_rank(decode(LLAMA, kvp=kvp))
        assert MILLION / kvp <= tokens < MILLION / kvp + attention.KV_BLOCK_TOKENS


def test_the_exchange_moves_the_slices_of_the_paper():
    # B·H/(KVP·TPA) values and their log-sum-exps to each of KVP - 1 ranks; nothing of it depends on S
    d = decode(LLAMA, batch=8, tpa=8, kvp=8, tpf=64)
    slice_bytes = 8 * (128 // 64) * (128 * 2 + 4)
    assert exchange.partial_exchange(d, GQA).link_bytes == 7 * slice_bytes
    assert exchange.partial_exchange(replace(d, context=4 * MILLION), GQA).link_bytes == 7 * slice_bytes


def test_medha_gathers_onto_one_shard():
    # each owner rank receives its B·Q/TPA heads from the 7 others, and 56 of 64 GPUs idle in the FFN
    d = decode(LLAMA, batch=8, tpa=8, kvp=8, tpf=8)
    assert exchange.partial_exchange(d, GQA).link_bytes == 7 * 8 * 16 * (128 * 2 + 4)
    assert ffn.dense_up(d, DENSE).flops == 8 * ffn.dense_up(decode(LLAMA, batch=8, tpa=8, kvp=8, tpf=64), DENSE).flops
    assert exchange.spread_to_shards(d).link_bytes == 8 * 16384 * 2


def test_helix_spreads_nothing_and_tp_exchanges_nothing():
    assert exchange.spread_to_shards(decode(LLAMA, tpa=8, kvp=8, tpf=64)).link_bytes == 0
    tp = decode(LLAMA, tpa=8, tpf=8)
    assert exchange.partial_exchange(tp, GQA).link_bytes == 0
    assert exchange.combine_partials(tp, GQA).kernels == 0


def test_a_ring_all_reduce_sends_each_byte_almost_twice():
    work = exchange.group_all_reduce(decode(LLAMA, batch=4, tpa=8, tpf=8))
    assert work.link_bytes == 2 * 7 / 8 * 4 * 16384 * 2
