"""Laws of the shapes of measured kernels, on every shipped calibration."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from helix_sim.answers.explain import borrowed_ops
from helix_sim.core.layout import Layout
from helix_sim.ops.step_input import StepInput
from helix_sim.search.plan import digest
from helix_sim.silicon.systems import machine_of as machine_of_system
from helix_sim.specs import kernel_parameters
from helix_sim.specs.load import data_folder, load_machine, load_model, load_timing
from helix_sim.specs.precision import Precision, narrowest_precision
from helix_sim.specs.setting import Setting
from helix_sim.step import evaluate_step, step_ops
from helix_sim.timing.kernel_shapes import norm
from helix_sim.timing.roofline import measured_classes, measured_within, op_time

CALIBRATIONS = sorted(path.stem for path in data_folder("hardware_profiles/measured_timings").glob("*.yaml"))
MODELS = ("deepseek-r1", "llama-3.1-405b", "qwen3-235b-a22b", "qwen3-32b")
FORMATS = (
    {"weights": "bf16", "kv": "bf16", "math": "bf16"},
    {"weights": "fp8-block", "kv": "fp8", "math": "fp8", "head_weights": "bf16", "head_math": "bf16"},
    {"weights": "nvfp4", "kv": "fp8", "math": "fp4", "attention_math": "fp8"},
)
SEEN = settings(max_examples=60, deadline=None)

widths = st.sampled_from([1, 2, 4, 8, 16])
layouts = st.builds(
    lambda batch, tpa, kvp, dp, ep: Layout(
        batch=batch, tpa=tpa, kvp=kvp, dp=dp, ep=min(ep, tpa * kvp * dp), tpf=max(tpa * kvp * dp // ep, 1)
    ),
    st.integers(1, 2000),
    widths,
    st.sampled_from([1, 2, 8]),
    st.sampled_from([1, 4]),
    widths,
)
timings = st.sampled_from(CALIBRATIONS)
models = st.sampled_from(MODELS)


def machine_of(timing):
    return machine_of_system(load_timing(timing).calibration.system)


def precision_for(machine, index):
    narrow = index if "fp4" in machine.math_formats else min(index, 1)
    return Precision.model_validate(FORMATS[narrow])


def ops_of(model, layout, context, precision):
    return step_ops(StepInput(model=load_model(model), precision=precision, layout=layout, context=context))


def on(model, machine, timing, precision):
    return Setting(model=load_model(model), machine=machine, timing=timing, precision=precision)


@SEEN
@given(timings, models, layouts, st.integers(64, 4_000_000), st.integers(0, 2))
def test_no_measured_op_is_faster_than_the_datasheet(timing, model, layout, context, formats):
    machine = machine_of(timing)
    for name, work in ops_of(model, layout, context, precision_for(machine, formats)).items():
        if measured_within(work, load_timing(timing)):
            continue  # its time is that of the kernel around it
        measured = float(op_time(work, machine, load_timing(timing)).seconds)
        light = float(op_time(work, machine, load_timing("ideal")).seconds)
        assert measured >= light * (1 - 1e-9), name


@SEEN
@given(timings, models, layouts, st.integers(64, 4_000_000), st.integers(0, 2), st.integers(1, 200))
def test_more_requests_never_take_less_time(timing, model, layout, context, formats, more):
    machine = machine_of(timing)
    precision = precision_for(machine, formats)
    fewer = ops_of(model, layout, context, precision)
    greater = ops_of(model, replace(layout, batch=layout.batch + more), context, precision)
    for name, work in fewer.items():
        if name in ("routed_up", "routed_down"):
            continue  # experts read and rows move together there; their own law is below
        before, after = (float(op_time(w, machine, load_timing(timing)).seconds) for w in (work, greater[name]))
        assert after >= before * (1 - 1e-9), name


@SEEN
@given(timings, st.integers(1, 2000), st.integers(1, 256), st.floats(1.0, 50.0), st.floats(1.0, 8.0))
@example("b200-vllm", 1291, 128, 1.0, 1.5)  # tiles that leave SMs idle
def test_more_rows_or_more_experts_never_take_less_time(timing, batch, ep, rows, experts):
    machine = machine_of(timing)
    work = ops_of("deepseek-r1", Layout(batch=batch, ep=ep, tpa=ep), 4096, precision_for(machine, 1))["routed_up"]
    more_rows = replace(
        work, rows=work.rows * rows, flops=work.flops * rows, activation_bytes=work.activation_bytes * rows
    )
    read = np.minimum(work.experts_read * experts, work.rows)
    more_experts = replace(work, experts_read=read, weight_bytes=work.weight_bytes * read / work.experts_read)
    base, *others = (float(op_time(w, machine, load_timing(timing)).seconds) for w in (work, more_rows, more_experts))
    for other in others:
        assert other >= base * (1 - 1e-9)


@SEEN
@given(timings, models, layouts, st.integers(64, 2_000_000), st.integers(1, 2_000_000), st.integers(0, 2))
def test_a_longer_context_never_takes_less_time(timing, model, layout, context, more, formats):
    machine = machine_of(timing)
    precision = precision_for(machine, formats)
    seconds = [
        float(op_time(ops_of(model, layout, tokens, precision)["attention_core"], machine, load_timing(timing)).seconds)
        for tokens in (context, context + more)
    ]
    assert seconds[1] >= seconds[0] * (1 - 1e-9)


@pytest.mark.parametrize("timing", CALIBRATIONS)
def test_one_layout_equals_its_row_in_a_column_of_layouts(timing):
    machine = machine_of(timing)
    column = Layout(
        batch=np.array([[1, 8, 64, 300]]), tpa=np.array([[1], [8], [2]]), dp=1, ep=1, tpf=np.array([[1], [8], [2]])
    )
    setting = on("deepseek-r1", machine, load_timing(timing), precision_for(machine, 1))
    many = evaluate_step(setting, column, 100_000)
    low, high = many.ttl_interval_s
    for i, tpa in enumerate((1, 8, 2)):
        for j, batch in enumerate((1, 8, 64, 300)):
            one = evaluate_step(setting, Layout(batch=batch, tpa=tpa, tpf=tpa), 100_000)
            assert float(one.ttl_s) == pytest.approx(many.ttl_s[i, j], rel=1e-12)
            assert [float(end) for end in one.ttl_interval_s] == pytest.approx([low[i, j], high[i, j]], rel=1e-12)
            assert bool(one.rests_on_extrapolation) == bool(many.rests_on_extrapolation[i, j])


SECONDS = st.just(0.0) | st.floats(1e-15, 1e3)  # smaller ones vanish in a power of six


@given(st.lists(SECONDS, min_size=1, max_size=5), st.floats(1, 6))
def test_a_smooth_maximum_is_at_least_the_maximum_and_at_most_the_sum(terms, p):
    assert max(terms) * (1 - 1e-9) <= float(norm(p, *terms)) <= sum(terms) * (1 + 1e-9)


def test_the_257th_row_opens_a_second_row_of_tiles():
    timing, machine = load_timing("gb200-trtllm"), load_machine("gb200-nvl72")
    precision = Precision(weights="nvfp4", kv="fp8", math="fp4", attention_math="fp8")

    def seconds(rows):
        work = ops_of("llama-3.1-405b", Layout(batch=rows), 4096, precision)["dense_up"]
        return float(op_time(work, machine, timing).seconds)

    assert seconds(257) / seconds(256) > 1.2
    assert seconds(256) / seconds(255) < 1.02


def test_what_leaves_the_board_pays_for_it():
    timing, machine = load_timing("gb200-trtllm"), load_machine("gb200-nvl72")
    precision = narrowest_precision(machine)

    def seconds(dp):
        layout = Layout(batch=1, dp=dp, ep=dp)
        return float(op_time(ops_of("deepseek-r1", layout, 4096, precision)["combine"], machine, timing).seconds)

    steps = [seconds(2 * dp) - seconds(dp) for dp in (2, 4, 8)]
    assert steps[1] > steps[0] + 3e-6
    assert steps[1] > steps[2] + 3e-6


def test_long_contexts_bind_on_hbm_and_short_ones_on_latency():
    timing, machine = load_timing("gb200-trtllm"), load_machine("gb200-nvl72")
    precision = Precision(weights="fp8-block", kv="fp8", math="fp8")
    for context, batch, binds in ((131_072, 64, "hbm"), (512, 1, "latency")):
        work = ops_of("llama-3.1-405b", Layout(batch=batch, tpa=8, tpf=8), context, precision)["attention_core"]
        assert op_time(work, machine, timing).binds == binds


def test_a_step_beyond_the_measured_context_says_so():
    timing, machine = load_timing("gb200-trtllm"), load_machine("gb200-nvl72")
    for context, beyond in ((131_072, False), (262_144, True)):
        setting = on("llama-3.1-405b", machine, timing, Precision(weights="fp8-block", kv="fp8", math="fp8"))
        step = evaluate_step(setting, Layout(batch=4, tpa=4, tpf=4), context)
        assert bool(step.extrapolated["attention_core"]) is beyond


def test_hop_b_pieces_of_a_measured_kernel_each_pay_their_latency():
    timing, machine = load_timing("gb200-trtllm"), load_machine("gb200-nvl72")
    precision = Precision(weights="fp8-block", kv="fp8", math="fp8")
    whole, pieces = (
        ops_of("llama-3.1-405b", Layout(batch=8, tpa=8, kvp=4, tpf=32, chunks=chunks), 100_000, precision)
        for chunks in (1, 8)
    )
    one = ops_of("llama-3.1-405b", Layout(batch=1, tpa=8, kvp=4, tpf=32), 100_000, precision)
    for name in ("attention_core", "exchange"):
        times = [float(op_time(ops[name], machine, timing).seconds) for ops in (whole, pieces, one)]
        assert times[1] == pytest.approx(8 * times[2])
        assert times[1] > times[0]


def test_every_op_of_a_step_has_a_measured_class():
    timing, machine = load_timing("gb200-trtllm"), load_machine("gb200-nvl72")
    ops = ops_of("deepseek-r1", Layout(batch=8, kvp=4, dp=2, ep=8), 100_000, narrowest_precision(machine))
    timed = {name for name, work in ops.items() if measured_classes(work, timing) or measured_within(work, timing)}
    assert timed == set(ops)


def test_timings_without_a_calibration_keep_their_digest():
    assert digest(load_timing("paper")) == "d530595fa7af"
    assert digest(load_timing("ideal")) == "cc1b9c32b5c9"


def test_every_parameter_of_a_shape_may_start_where_it_is_allowed():
    for shape in kernel_parameters.SHAPES.values():
        for parameter in shape.parameters.values():
            assert parameter.low <= parameter.start <= parameter.high


def wide_ep(timing, dp=72, batch=256, **changes):
    """The step of DeepSeek R1 in FP8 with as many experts' ranks as attention groups, on H100 at a context of 2000."""
    formats = {"weights": "fp8-block", "math": "fp8", "kv": "bf16", "attention_math": "bf16", "dispatch": "fp8-block"}
    precision = Precision.model_validate(formats | {"head_weights": "bf16", "head_math": "bf16"})
    setting = on("deepseek-r1", load_machine("h100-hgx"), timing, precision)
    return evaluate_step(setting, Layout(batch=batch, dp=dp, ep=dp, **changes), 2000)


def with_empty_rows(timing, said):
    calibration = timing.calibration.model_copy(update={"empty_rows": said})
    return timing.model_copy(update={"calibration": calibration})


def test_behind_a_dispatch_experts_pass_over_what_arrived_unless_every_token_has_a_row():
    timing = load_timing("h100-sglang")
    arrived, rows = (wide_ep(with_empty_rows(timing, said), batch=16) for said in (False, True))
    assert rows.times["routed_up"].seconds > arrived.times["routed_up"].seconds
    one_group = [
        evaluate_step(
            on("deepseek-r1", load_machine("h100-hgx"), with_empty_rows(timing, said), arrived.precision),
            Layout(batch=64, tpa=8, ep=8),
            2000,
        )
        .times["routed_up"]
        .seconds
        for said in (False, True)
    ]
    assert one_group[0] == one_group[1], "of one group alone nothing is dispatched"


def test_a_gather_measured_on_one_board_is_not_run_across_boards():
    timing = load_timing("h100-trtllm")
    classes = timing.calibration.classes
    names = {name: each.domains for name, each in classes.items() if name.startswith("dispatch")}
    assert names == {"dispatch/gather": "one", "dispatch/sglang": "several"}
    assert "SGLang" in classes["dispatch/sglang"].borrowed
    lender = wide_ep(load_timing("h100-sglang"))
    for op in ("dispatch", "combine"):
        assert wide_ep(timing).times[op].seconds == pytest.approx(lender.times[op].seconds, rel=1e-12)
        low, high = (getattr(classes[f"{op}/sglang"].residuals, end) for end in ("low", "high"))
        lent = load_timing("h100-sglang").calibration.classes[f"{op}/across"].residuals
        assert low <= lent.low, "a borrowed kernel is no surer than its lender's"
        assert high > lent.high, "TensorRT-LLM's own kernels of this kind are slower than SGLang's on one board"
    board = wide_ep(timing, dp=8)
    gathered = {name: each for name, each in classes.items() if name != "dispatch/sglang"}
    alone = timing.model_copy(update={"calibration": timing.calibration.model_copy(update={"classes": gathered})})
    assert board.times["dispatch"].seconds == wide_ep(alone, dp=8).times["dispatch"].seconds


def test_wide_ep_across_boards_takes_what_deepep_was_measured_to_take():
    # aiconfigurator-core 0.12.0, h100/comm/sglang/0.5.6.post2: 64 ranks, 256 tokens each: 302 and 583 µs
    step = wide_ep(load_timing("h100-sglang"), dp=64)
    assert float(step.times["dispatch"].seconds) == pytest.approx(302e-6, rel=0.15)
    assert float(step.times["combine"].seconds) == pytest.approx(583e-6, rel=0.15)


def shards(timing, machine, kvp=4, batch=1, **changes):
    """The step of Llama with its KV cache over `kvp` shards on a measured timing, or one with changed parameters."""
    setting = on("llama-3.1-405b", load_machine(machine), timing, Precision(weights="fp8-block", kv="fp8", math="fp8"))
    return evaluate_step(setting, Layout(batch=batch, tpa=8, kvp=kvp, tpf=8 * kvp, **changes), 100_000)


def with_exchange(timing, **values):
    """The timing with other parameters of the exchange of partial outputs."""
    measured = timing.calibration.classes["partial-exchange"]
    changed = {name: measured.parameters[name].model_copy(update={"value": value}) for name, value in values.items()}
    exchange = measured.model_copy(update={"parameters": {**measured.parameters, **changed}})
    classes = {**timing.calibration.classes, "partial-exchange": exchange}
    return timing.model_copy(update={"calibration": timing.calibration.model_copy(update={"classes": classes})})


@pytest.mark.parametrize(("batch", "published"), [(1, 35), (16, 34), (64, 33), (128, 32)])
def test_the_fused_exchange_takes_what_was_published_of_it(batch, published):
    # 4 GPUs of a GB200 NVL72, https://github.com/flashinfer-ai/flashinfer/pull/2951; heads not stated: 8 of 128 here
    timing = load_timing("gb200-trtllm")
    step = evaluate_step(
        on("llama-3.1-405b", load_machine("gb200-nvl72"), timing, Precision(weights="bf16", kv="bf16", math="bf16")),
        Layout(batch=batch, tpa=8, kvp=4, tpf=32),
        100_000,
    )
    assert float(step.times["exchange"].seconds) * 1e6 == pytest.approx(published, rel=0.15)


def test_statistics_that_travel_apart_pay_another_collective():
    timing = load_timing("gb200-vllm")
    assert timing.calibration.classes["partial-exchange"].values["collectives"] == 2
    apart, fused = (shards(with_exchange(timing, collectives=n), "gb200-nvl72").times["exchange"] for n in (2.0, 1.0))
    assert float(apart.seconds) > 1.8 * float(fused.seconds)
    assert float(apart.link_s) == float(fused.link_s)


def test_more_statistics_a_head_join_the_payload():
    timing = load_timing("gb200-trtllm")
    four, eight = (shards(with_exchange(timing, statistics_bytes=n), "gb200-nvl72", batch=64) for n in (4.0, 8.0))
    rate = 900e9 * timing.calibration.classes["partial-exchange"].values["link_share"]
    heads = 128 / 32  # those of a rank after the exchange
    more = float(eight.times["exchange"].link_s) - float(four.times["exchange"].link_s)
    assert more == pytest.approx(3 * 64 * heads * 4 / rate, rel=1e-9)


@pytest.mark.parametrize("timing", CALIBRATIONS)
def test_the_exchange_of_every_timing_is_named_as_borrowed_and_wide(timing):
    measured = load_timing(timing).calibration.classes["partial-exchange"]
    assert measured.borrowed
    assert measured.residuals.low <= -np.log(1.9)
    assert measured.residuals.high >= np.log(1.9)
    found = borrowed_ops(shards(load_timing(timing), machine_of(timing).name, kvp=2))
    assert found["exchange"]["reason"] == measured.borrowed
