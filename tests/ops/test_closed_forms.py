"""Closed forms against what they sum, and formats that change nothing but what is stored or sent in them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from helix_sim.core.layout import Layout
from helix_sim.ops.attention import _summed_shares, chunk_keys_seen
from helix_sim.ops.linear import linear_projection, state_update
from helix_sim.ops.sparse import candidates, grouped_output_projection, index_top_k, output_groups_per_rank
from helix_sim.ops.step_input import StepInput
from helix_sim.specs.attention import CompressedAttention, LinearAttention, SparseAttention
from helix_sim.specs.load import load_model
from helix_sim.specs.precision import Precision
from helix_sim.step import step_ops

KINDS = ("deepseek-r1", "llama-3.1-8b", "qwen3-next-80b", "kimi-k3", "deepseek-v4-flash", "deepseek-v3.2", "minimax-m3")


@pytest.mark.parametrize("kvp", [1, 2, 5])
def test_the_sum_of_fullest_shares_is_their_sum(kvp: int) -> None:
    block, one_round = 16, 16 * kvp

    def fullest(t: int) -> int:  # whole rounds give every shard a block; what is left fills the first shard's block
        return t // one_round * block + min(t % one_round, block)

    for tokens in range(4 * one_round + 3):
        assert int(_summed_shares(tokens, one_round)) == sum(fullest(t) for t in range(1, tokens + 1)), tokens


@pytest.mark.parametrize("chunk", [4, 7])
def test_products_in_chunks_are_those_of_the_worst_place(chunk: int) -> None:
    for q in range(1, 3 * chunk + 2):
        s = SimpleNamespace(query_tokens=q, context=1000)
        counts = [sum((start + i) % chunk + 1 for i in range(q)) for start in range(chunk)]
        assert float(chunk_keys_seen(s, chunk)) == max(counts), q


def ops_of(name: str, **formats: str) -> dict[str, Any]:
    precision = Precision(**{"weights": "fp8", "kv": "fp8", "math": "fp8", **formats})
    layout = Layout(batch=4, dp=2, tpa=2, kvp=2, ep=4 if load_model(name).routed_kinds else 1)
    return step_ops(StepInput(model=load_model(name), precision=precision, layout=layout, context=9999))


@pytest.mark.parametrize("name", KINDS)
def test_a_format_of_the_wire_changes_only_what_is_sent(name: str) -> None:
    wide, narrow = ops_of(name, wire="bf16"), ops_of(name, wire="fp8")
    assert any(np.any(work.collective.link_bytes != narrow[op].collective.link_bytes) for op, work in wide.items()
               if work.collective is not None)  # fmt: skip
    for op, work in wide.items():
        fields = ["flops", "weight_bytes", "kv_bytes", "rows", "inner", "outer"]
        if not op.startswith("combine_partials"):  # which reads what arrived, as it was sent
            fields.append("activation_bytes")
        for field in fields:
            assert np.all(getattr(work, field) == getattr(narrow[op], field)), (op, field)


@pytest.mark.parametrize("name", KINDS)
def test_a_format_of_activations_changes_nothing_that_is_sent_or_kept(name: str) -> None:
    wide, narrow = ops_of(name, activations="bf16", wire="bf16"), ops_of(name, activations="fp8", wire="bf16")
    for op, work in wide.items():
        fields = ["flops", "rows", "inner", "outer"]
        if not op.startswith("convolution"):  # whose few past inputs are kept as they came
            fields.append("kv_bytes")
        for field in fields:
            assert np.all(getattr(work, field) == getattr(narrow[op], field)), (op, field)
        if work.collective is not None:
            assert np.all(work.collective.link_bytes == narrow[op].collective.link_bytes), op


@pytest.mark.parametrize("name", ["qwen3-next-80b", "kimi-k3"])
def test_an_output_gate_adds_a_projection_of_the_values_width(name: str) -> None:
    model = load_model(name)
    (kind, linear) = next((key, a) for key, a in model.attention.items() if isinstance(a, LinearAttention))
    s = StepInput(model=model, precision=Precision(weights="fp8", kv="fp8", math="fp8"), layout=Layout(), context=999)
    gated, plain = (linear_projection(s, linear.model_copy(update={"output_gate": gate})) for gate in (True, False))
    assert int(gated.outer - plain.outer) == linear.q_heads * linear.value_width, kind


@pytest.mark.parametrize("batch", [1, 3])
def test_a_state_is_updated_a_row_for_each_request(batch: int) -> None:
    model = load_model("qwen3-next-80b")
    linear = next(a for a in model.attention.values() if isinstance(a, LinearAttention))
    precision = Precision(weights="fp8", kv="fp8", math="fp8")
    s = StepInput(model=model, precision=precision, layout=Layout(batch=batch), context=999, query_tokens=2)
    assert int(state_update(s, linear).rows) == batch


def test_scores_are_written_with_the_choices_only_where_they_are_sharded() -> None:
    model = load_model("deepseek-v3.2")
    sparse = next(a for a in model.attention.values() if isinstance(a, SparseAttention))
    precision = Precision(weights="fp8", kv="fp8", math="fp8")
    whole, halved = (
        StepInput(model=model, precision=precision, layout=Layout(kvp=2, index_kvp=n), context=2**16) for n in (1, 2)
    )
    choices = candidates(whole, sparse)
    assert float(index_top_k(whole, sparse).activation_bytes) == 4 * (2**16 + choices)
    assert float(index_top_k(halved, sparse).activation_bytes) == 4 * (2**15 + 2 * choices)


@pytest.mark.parametrize("tpa", [1, 2, 4, 8, 16, 32, 64])
def test_output_groups_of_a_rank_are_those_that_its_neighbouring_heads_touch_at_worst(tpa: int) -> None:
    model = load_model("deepseek-v4-flash")
    compressed = next(a for a in model.attention.values() if isinstance(a, CompressedAttention))
    precision = Precision(weights="fp8", kv="fp8", math="fp8")
    s = StepInput(model=model, precision=precision, layout=Layout(tpa=tpa), context=999)
    heads, group = compressed.q_heads // tpa, compressed.q_heads // compressed.output_groups
    touched = [len({head // group for head in range(rank * heads, (rank + 1) * heads)}) for rank in range(tpa)]
    assert int(output_groups_per_rank(s, compressed)) == max(touched)
    assert int(grouped_output_projection(s, compressed).inner) == max(touched) * compressed.output_lora_rank
