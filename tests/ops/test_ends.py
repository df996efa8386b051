"""Both ends of the model by hand: what the embedding, the head and the hand-over to the next stage cost one GPU.

Llama-3.1-405B: H = 16384 and a vocabulary of 128256, in FP4 with BF16 activations and BF16 on the wire.
"""

from dataclasses import replace

import pytest
from cases import LLAMA, R1, decode, step

from helix_sim.ops import layers
from helix_sim.specs.precision import Precision

EIGHT_BY_FOUR = {"batch": 4, "tpa": 8, "tpf": 8}


def ends(query_tokens=1, model=LLAMA, precision=None, **sizes):
    """The ops of both ends, where a step looks them up."""
    given = {"precision": precision} if precision else {}
    s = replace(decode(model, **given, **sizes), query_tokens=query_tokens)
    return {name: work for kind in layers.ENDS.values() for name, work in kind.ops(s, None).items()}


def test_the_embedding_reads_and_writes_one_row_a_token():
    assert ends(**EIGHT_BY_FOUR)["embedding"].activation_bytes == 2 * 4 * 16384 * 2
    assert ends(**EIGHT_BY_FOUR, query_tokens=3)["embedding"].activation_bytes == 2 * 12 * 16384 * 2


def test_the_embedding_keeps_its_share_of_the_table_and_reads_none_of_it_whole():
    assert ends(**EIGHT_BY_FOUR)["embedding"].idle_weight_bytes == 16384 * 16032 * 0.5
    assert ends(batch=4, tpa=5, tpf=5)["embedding"].idle_weight_bytes == 16384 * 25652 * 0.5
    assert ends(**EIGHT_BY_FOUR)["embedding"].weight_bytes == 0


def test_a_table_that_is_also_the_heads_is_kept_once():
    tied = LLAMA.model_copy(update={"tied_embeddings": True})
    assert ends(model=tied, **EIGHT_BY_FOUR)["embedding"].idle_weight_bytes == 0
    assert ends(model=tied, **EIGHT_BY_FOUR)["head"].weight_bytes == 16384 * 16032 * 0.5


def test_the_rows_that_each_rank_looked_up_are_summed_over_the_token_group():
    op = ends(**EIGHT_BY_FOUR)["embedding_all_reduce"]
    assert op.collective.payload == 4 * 16384 * 2
    assert op.link_bytes == 2 * 7 / 8 * 4 * 16384 * 2


def test_the_last_norm_reads_and_writes_the_row_and_the_residual():
    assert ends(**EIGHT_BY_FOUR)["final_norm"].activation_bytes == 2 * 2 * 4 * 16384 * 2


def test_the_head_multiplies_every_new_token_by_its_share_of_the_vocabulary():
    head = ends(**EIGHT_BY_FOUR, query_tokens=3)["head"]
    assert head.flops == 2 * 12 * 16384 * 16032
    assert head.weight_bytes == 16384 * 16032 * 0.5
    assert head.activation_bytes == 12 * (16384 + 16032) * 2
    assert ends(batch=4, tpa=5, tpf=5)["head"].flops == 2 * 4 * 16384 * 25652


def test_the_head_and_the_embedding_have_a_format_of_their_own():
    mixed = Precision(weights="fp4", kv="fp4", math="fp4", head_weights="bf16", head_math="bf16")
    found = ends(precision=mixed, **EIGHT_BY_FOUR)
    assert found["head"].weight_bytes == found["embedding"].idle_weight_bytes == 16384 * 16032 * 2
    assert found["head"].math == "bf16"


def test_the_logits_of_the_other_ranks_are_gathered():
    # each of 8 ranks receives 7 shares of 16032 logits a token
    assert ends(**EIGHT_BY_FOUR)["logits_gather"].link_bytes == 4 * 7 * 16032 * 2
    assert ends(batch=4)["logits_gather"].link_bytes == 0


def test_sampling_reads_every_logit_once():
    assert ends(**EIGHT_BY_FOUR)["sampling"].activation_bytes == 4 * 128256 * 2
    assert ends(**EIGHT_BY_FOUR, query_tokens=3)["sampling"].activation_bytes == 12 * 128256 * 2


def test_a_stage_hands_over_one_row_a_token_to_the_next_if_there_is_one():
    assert ends(**EIGHT_BY_FOUR, pp=3)["stage_handover"].link_bytes == 4 * 16384 * 2
    assert ends(**EIGHT_BY_FOUR, pp=3, query_tokens=3)["stage_handover"].link_bytes == 12 * 16384 * 2
    assert ends(**EIGHT_BY_FOUR)["stage_handover"].link_bytes == 0


def test_a_hand_over_spans_the_whole_stage():
    # the same rank of the next stage stands dp·tpa·kvp ranks on
    op = ends(batch=4, dp=2, tpa=4, kvp=3, tpf=24, pp=3)["stage_handover"]
    assert (op.collective.group, op.collective.stride) == (2, 24)


@pytest.mark.parametrize(("model", "width", "vocabulary"), [(LLAMA, 16384, 128256), (R1, 7168, 129280)])
def test_both_ends_are_the_share_of_the_models_tables(model, width, vocabulary):
    found = step(model, tpa=8, tpf=8).ops
    kept = found["embedding"].resident_weight_bytes + found["head"].resident_weight_bytes
    assert 8 * kept == 2 * width * vocabulary * 0.5
