"""Classes of windowed, sparse, compressed, block-sparse and linear attention: rows as the served ops, and how well."""

from __future__ import annotations

from importlib import metadata

import numpy as np
import pytest

from helix_sim.core.layout import Layout
from helix_sim.ops import linear
from helix_sim.ops.attention import head_parallel, window_core
from helix_sim.ops.layers import KINDS
from helix_sim.ops.step_input import StepInput
from helix_sim.silicon import aic_tables as silicon
from helix_sim.silicon import attention_kinds, kind_tables
from helix_sim.silicon.attention_kinds import OUTSIDE
from helix_sim.silicon.module_fit import Group, Modules, fit_modules
from helix_sim.specs.load import load_framework, load_machine, load_model, load_timing, shipped
from helix_sim.specs.precision import Precision
from helix_sim.timing import kernel_shapes
from helix_sim.timing.roofline import measured_classes, op_time

try:
    installed = metadata.version(silicon.DISTRIBUTION)
except metadata.PackageNotFoundError:
    installed = None

measured = pytest.mark.skipif(
    installed != silicon.VERSION,
    reason=f"needs {silicon.DISTRIBUTION} {silicon.VERSION} (pip install 'helix-sim[silicon]'), found {installed}",
)

GB200 = load_machine("gb200-nvl72")
GPU = kernel_shapes.gpu_of(GB200)
NVFP4 = Precision(weights="nvfp4", math="fp4", kv="fp8", attention_math="fp8")
CALIBRATED = [
    name
    for name in shipped("timing")
    if (made := load_timing(name).calibration) and any(each.startswith("attention-sparse") for each in made.classes)
]


def test_timings_of_tensorrt_llm_vllm_and_sglang_on_gb200_and_gb300_have_classes_of_every_kind():
    assert {f"{s}-{f}" for s in ("gb200", "gb300") for f in ("trtllm", "sglang", "vllm")} <= set(CALIBRATED)


@pytest.mark.parametrize("name", CALIBRATED)
def test_a_timing_shares_long_rows_of_scores_among_blocks_as_its_framework_does(name):
    calibration = load_timing(name).calibration
    shared = load_framework(calibration.framework).long_rows
    parameters = calibration.classes["index-top-k"].parameters
    blocks, row_kB = (shared.blocks.value, shared.from_scores.value * 4 / 1e3) if shared else (1, 0)
    assert (parameters["splits"].value, parameters["split_kB"].value) == (blocks, row_kB)
    assert "tokens" in calibration.classes["index-top-k"].largest, "an interval widens beyond the longest row"


@pytest.mark.parametrize("name", CALIBRATED)
def test_ops_of_every_kind_of_attention_are_timed_by_measured_kernels(name):
    timing = load_timing(name)
    kinds = {op.partition("/")[0] for op in timing.calibration.classes}
    for model, attention in (("gpt-oss-120b", "window"), ("deepseek-v3.2", "sparse"), ("qwen3-next-80b", "gdn")):
        spec = load_model(model).attention.get(attention) or next(
            each for each in load_model(model).attention.values() if each.kind == "linear"
        )
        precision = NVFP4.model_copy(update={"kv": "bf16", "attention_math": "bf16"})  # Hopper's DSA has no other
        step = StepInput(
            model=load_model(model), precision=precision, layout=Layout(batch=4, tpa=2, tpf=2), context=100_000
        )
        for op, work in KINDS[spec.kind].ops(step, spec).items():
            if work.collective is None and op not in OUTSIDE:
                assert measured_classes(work, timing), (op, sorted(kinds))


@pytest.mark.parametrize("name", ["gb200-trtllm", "gb300-trtllm", "gb200-vllm", "gb300-vllm"])
def test_held_out_modules_of_sparse_and_compressed_attention_come_out_within_six_per_cent(name):
    classes = load_timing(name).calibration.classes
    for served in ("attention-sparse-fp8", "attention-sparse-bf16", "attention-compressed-fp8", "index-logits-fp8"):
        assert classes[served].residuals.median_error <= 0.06, served
        assert classes[served].residuals.count >= 100


def test_sparse_attention_overtakes_dense_between_8_and_32_requests_of_131_072_tokens_as_measured():
    """TensorRT-LLM's modules on GB200, 16 heads: dense 0.089, 0.152, 0.421, 0.775 ms, sparse 0.141 to 0.379."""
    timing, batches = load_timing("gb200-trtllm"), (1, 8, 32, 64)
    published = {
        ("deepseek-r1", "mla"): (0.089, 0.152, 0.421, 0.775),
        ("deepseek-v3.2", "sparse"): (0.141, 0.185, 0.265, 0.379),
    }
    modelled = {}
    for name, attention in published:
        model = load_model(name)
        step = StepInput(
            model=model, precision=NVFP4, layout=Layout(batch=np.array(batches), tpa=8, tpf=8), context=131_072
        )
        ops = KINDS[attention].ops(step, model.attention[attention])
        modelled[name] = 1e3 * sum(
            op_time(work, GB200, timing).seconds * np.ones(4) for op, work in ops.items() if op not in OUTSIDE
        )
    for (name, _), milliseconds in published.items():
        assert modelled[name] == pytest.approx(milliseconds, rel=0.18), name
    assert list(modelled["deepseek-v3.2"] < modelled["deepseek-r1"]) == [False, False, True, True]


def test_parameters_come_back_from_modules_that_the_shapes_made():
    """Noiseless modules of a known core, half of whose other kernels' time shows."""
    batch = np.repeat(2.0 ** np.arange(9), 4)
    heads = np.tile([8.0, 16.0, 32.0, 64.0], 9)
    model = load_model("deepseek-v3.2")
    spec = model.attention["sparse"]
    step = StepInput(
        model=model,
        precision=NVFP4,
        layout=Layout(batch=batch, tpa=128 / heads, tpf=128 / heads),
        context=50_000.0,
    )
    core = KINDS["sparse"].ops(step, spec)["attention_core"]
    truth = {"latency_us": 7.0, "bandwidth_share": 0.5, "math_share": 0.4, "request_us": 3.0, "heads_half": 50.0,
             "token_ns": 0.001, "splits": 1.0, "lone_head": 0.0, "l2_share": 0.5, "l2_gain": 1.0}  # fmt: skip
    terms = kernel_shapes.picked_attention(core, GPU, GB200.flops_per_s(core.math), truth)
    rest_s = 1e-5 * (3 + batch / 30 + heads / 20)
    seconds = 0.8 * rest_s + terms.latency_s + np.maximum(terms.math_s, terms.hbm_s)
    group = Group(alike="a", works={"attention-sparse-fp8": core}, rest_s=rest_s, seconds=seconds, held=batch == 16.0)
    modules = Modules(groups=[group], shapes={"attention-sparse-fp8": "picked-attention"}, source="made", known={})
    found = fit_modules(modules, GPU, GB200.flops_per_s)["attention-sparse-fp8"]
    assert found.record.residuals.median_error < 0.01


@measured
def test_a_row_of_windowed_attention_is_the_op_that_serves_it():
    row = attention_kinds.window_work("fp8", 8.0, 5000.0, 16.0, 2.0, 64.0, 128.0)
    model = load_model("gpt-oss-120b")
    step = StepInput(model=model, precision=NVFP4.model_copy(update={"attention_math": "bf16"}),
                     layout=Layout(batch=8, tpa=4, tpf=4), context=5000)  # fmt: skip
    served = window_core(head_parallel(step), model.attention["window"])
    for size in ("op_class", "flops", "kv_bytes", "rows", "inner", "copies", "tokens", "weights"):
        assert getattr(row, size) == getattr(served, size), size


@measured
def test_rows_of_linear_attention_read_and_write_the_state_that_a_step_does():
    frame = kind_tables.linear_attention("gb200", "sglang")
    rows = frame[(frame["kind"] == "kda") & (frame["op"] == "state") & (frame["query_tokens"] == 4)]
    work = attention_kinds.linear_work("state", rows)
    spec = load_model("kimi-k3").attention["kda"]
    row = rows.iloc[0]
    step = StepInput(model=load_model("kimi-k3"), precision=NVFP4, context=10,
                     layout=Layout(batch=int(row["batch"]), tpa=96 // int(row["value_heads"]), tpf=1),
                     query_tokens=4)  # fmt: skip
    assert work.kv_bytes[0] == float(linear.state_update(head_parallel(step), spec).kv_bytes)


@measured
def test_contexts_whose_choice_degenerates_are_left_out_and_no_others():
    frame = kind_tables.attention_module("gb200", "trtllm", "csa")
    flash = frame[(frame["model"] == "sgl-project/DeepSeek-V4-Flash-FP8") & (frame["q_heads"] == 16)]
    out = flash[attention_kinds._undercut(flash)]
    assert set(out["context"]) <= {4096, 6144, 8192}
    assert {6144, 8192} <= set(out["context"])
