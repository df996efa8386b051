"""What a step remembers of its own results: of the kind that asked, in the step that was asked."""

from dataclasses import replace

from cases import LLAMA, decode

from helix_sim.ops.attention import kv_heads_per_rank, q_heads_per_rank
from helix_sim.ops.layers import gqa_ops
from helix_sim.specs.attention import GqaAttention


def test_a_step_never_answers_for_a_kind_that_is_gone():
    s = decode(LLAMA, 1000)
    for heads in range(1, 200):
        assert kv_heads_per_rank(s, GqaAttention(kind="gqa", q_heads=heads, kv_heads=heads, head_size=8)) == heads


def test_a_step_with_other_sizes_remembers_nothing_of_this_one():
    s, wide = decode(LLAMA, 1000), LLAMA.attention["gqa"]
    assert q_heads_per_rank(s, wide) == 128
    gqa_ops(s, wide)
    sharded = replace(s, layout=replace(s.layout, tpa=8, tpf=8))
    assert q_heads_per_rank(sharded, wide) == 16
    assert gqa_ops(sharded, wide) == gqa_ops(decode(LLAMA, 1000, tpa=8, tpf=8), wide)
