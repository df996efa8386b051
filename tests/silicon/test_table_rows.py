"""A row of a public table is the served op's Work for the same sizes, term by term: there is one set of equations."""

from dataclasses import fields

import numpy as np
import pytest

from helix_sim.core.collectives import Collective
from helix_sim.core.layout import Layout
from helix_sim.core.work import Work
from helix_sim.ops.routing import busiest_rank
from helix_sim.ops.step_input import StepInput
from helix_sim.silicon.measured_kernels import (
    all_reduce_work,
    expert_works,
    gqa_work,
    mla_work,
    product_work,
    routed_work,
)
from helix_sim.specs.load import load_model
from helix_sim.specs.precision import Precision
from helix_sim.step import step_ops

FORMATS = Precision(weights="fp8-block", kv="fp8", math="fp8", attention_math="bf16", dispatch="fp8-block")
CONTEXT = 100_000


def served(model: str, **widths: int) -> tuple[StepInput, dict[str, Work]]:
    x = Layout(**widths).as_floats()
    s = StepInput(model=load_model(model), precision=FORMATS, layout=x, context=float(CONTEXT))
    return s, step_ops(s)


def assert_same(row: Work, op: Work, *but: str) -> None:
    for field in fields(Work):
        mine, theirs = getattr(row, field.name), getattr(op, field.name)
        if field.name in but:
            continue
        if isinstance(mine, Collective):
            assert mine.kind == theirs.kind
            for size in ("payload", "group"):
                assert getattr(mine, size) == pytest.approx(getattr(theirs, size), rel=1e-12), size
        elif isinstance(mine, str) or mine is None:
            assert mine == theirs, field.name
        else:
            np.testing.assert_allclose(
                np.asarray(mine, float), np.asarray(theirs, float), rtol=1e-12, err_msg=field.name
            )


@pytest.mark.parametrize("tpa", [1, 2, 8, 16])
@pytest.mark.parametrize("batch", [1, 37])
def test_latent_attention(tpa: int, batch: int) -> None:
    _, ops = served("deepseek-r1", batch=batch, tpa=tpa, tpf=tpa)
    assert_same(mla_work("fp8", "bf16", float(batch), float(CONTEXT), 128.0 / tpa), ops["attention_core"])


@pytest.mark.parametrize("tpa", [1, 2, 8])
def test_grouped_query_attention(tpa: int) -> None:
    _, ops = served("llama-3.1-405b", batch=5, tpa=tpa, tpf=tpa)
    row = gqa_work("fp8", 5.0, float(CONTEXT), 128.0 / tpa, 8.0 / tpa, 128.0)
    assert_same(row, ops["attention_core"])


def test_every_product_of_a_step() -> None:
    _, ops = served("deepseek-r1", batch=24, tpa=4, tpf=4)
    products = {name: work for name, work in ops.items() if work.op_class in ("gemm", "batched-gemm")}
    assert len(products) >= 10
    for name, work in products.items():
        if work.weights == "fp8-block":
            row = product_work(
                "fp8-block", work.rows, work.inner, work.outer, copies=work.copies, op_class=work.op_class
            )
            assert_same(row, work, *(("math",) if name == "head" else ()))


@pytest.mark.parametrize(("tpf", "ep"), [(1, 8), (2, 4), (8, 1)])
def test_both_products_of_routed_experts(tpf: int, ep: int) -> None:
    s, ops = served("deepseek-r1", batch=64, tpa=8, tpf=tpf, ep=ep)
    rank = busiest_rank(s, s.model.ffn["moe"])
    up, down = expert_works("fp8-block", 7168.0, 2048.0, tpf, 256.0, ep, rank.read, rank.pairs, 64.0)
    assert_same(up, ops["routed_up"])
    assert_same(down, ops["routed_down"])


def test_the_all_reduce() -> None:
    _, ops = served("llama-3.1-405b", batch=3, tpa=8, tpf=8)
    assert_same(all_reduce_work(3 * 16384 * 2.0, 8.0), ops["attention_all_reduce"], "rows")


@pytest.mark.parametrize("op", ["dispatch", "combine"])
def test_dispatch_and_combine(op: str) -> None:
    s, ops = served("deepseek-r1", batch=16, dp=32, ep=32)
    foreign = busiest_rank(s, s.model.ffn["moe"]).foreign
    value = s.precision.bytes_of("dispatch") if op == "dispatch" else s.wire_bytes
    assert_same(routed_work(op, 32.0, 16.0, foreign, 7168.0, value), ops[op], "weights")
