"""What a table's latency includes is not paid twice: an op that was measured inside another's kernel takes no time."""

import numpy as np
import pytest

from helix_sim.core.layout import Layout
from helix_sim.silicon.systems import machine_of
from helix_sim.specs.load import load_framework, load_machine, load_model, load_timing, shipped
from helix_sim.specs.precision import Precision
from helix_sim.specs.setting import Setting
from helix_sim.step import evaluate_step
from helix_sim.timing.uncertainty import borrowed_kernel, doublings_beyond

FP8 = Precision(weights="fp8-block", kv="fp8", math="fp8")
MEASURED = [name for name in shipped("timing") if load_timing(name).calibration]


def step(timing, model, layout=None, machine=None, context=8192, **formats):
    timing = load_timing(timing) if isinstance(timing, str) else timing
    machine = load_machine(machine) if machine else machine_of(timing.calibration.system)
    precision = FP8.model_copy(update=formats)
    setting = Setting(model=load_model(model), machine=machine, timing=timing, precision=precision)
    return evaluate_step(setting, layout or Layout(batch=8, tpa=8, tpf=8), context)


def without(timing, part):
    """The timing as if no class had been measured with that part."""
    classes = {
        name: each.model_copy(update={"includes": [p for p in each.includes or () if p != part]})
        for name, each in timing.calibration.classes.items()
    }
    return timing.model_copy(update={"calibration": timing.calibration.model_copy(update={"classes": classes})})


@pytest.mark.parametrize("timing", ["gb200-trtllm", "gb200-sglang", "b200-vllm", "h100-trtllm"])
def test_the_activation_of_routed_experts_rides_in_their_kernel_and_is_paid_where_it_does_not(timing):
    found = step(timing, "deepseek-r1")
    assert float(found.times["routed_activation"].seconds) == 0
    assert float(found.times["shared_activation"].seconds) > 0
    apart = step(without(load_timing(timing), "activation"), "deepseek-r1")
    assert float(apart.times["routed_activation"].seconds) > 0
    assert float(apart.ttl_s) > float(found.ttl_s)
    assert float(apart.times["routed_up"].seconds) == float(found.times["routed_up"].seconds)


def test_rotating_and_appending_are_paid_once_as_each_table_was_measured():
    # (timing, model): whether its attention's table was measured with them
    tables = {
        ("gb200-trtllm", "llama-3.1-405b"): True,
        ("gb200-sglang", "llama-3.1-405b"): False,
        ("gb200-trtllm", "deepseek-r1"): False,
        ("gb200-sglang", "deepseek-r1"): True,
        ("b200-vllm", "deepseek-r1"): True,
        ("h100-sglang", "deepseek-r1"): False,
    }
    for (timing, model), inside in tables.items():
        assert (float(step(timing, model).times["rope_and_append"].seconds) == 0) == inside, (timing, model)


@pytest.mark.parametrize("timing", MEASURED)
def test_every_class_says_what_its_frameworks_file_says_that_it_includes(timing):
    calibration = load_timing(timing).calibration
    records = load_framework(calibration.framework).includes
    for name, each in calibration.classes.items():
        said = [
            part
            for record in records
            if name.startswith(record.of) and (record.kernel is None or f"({record.kernel})" in each.source)
            for part in record.parts
        ]
        assert (each.includes or []) == list(dict.fromkeys(said)), name


@pytest.mark.parametrize("timing", MEASURED)
def test_products_in_a_narrow_format_quantise_their_inputs_inside_as_measured(timing):
    classes = load_timing(timing).calibration.classes
    narrow = [name for name in classes if name.startswith(("gemm-", "grouped-gemm-")) and "-bf16" not in name]
    assert narrow
    assert all("quantisation" in classes[name].includes for name in narrow)
    assert not any("quantisation" in (classes[name].includes or ()) for name in classes if name.endswith("gemm-bf16"))


@pytest.mark.parametrize("timing", MEASURED)
def test_a_collective_that_another_stands_in_for_names_it_and_is_wider(timing):
    classes = load_timing(timing).calibration.classes
    assert classes["all-gather"].borrowed is None
    staged = step(timing, "llama-3.1-405b", Layout(batch=8, tpa=4, tpf=4, pp=2))
    found = borrowed_kernel(staged.ops["stage_handover"], staged.machine, staged.timing)
    assert found.reason == classes["broadcast"].borrowed == "NCCL's all-gather stands in for it"
    assert found.high > classes["send"].residuals.high


# --- The kernel that runs --------------------------------------------------------------------------------------------


def causes(found, op_class):
    """Deviations of a class by cause: their width as ln, and seconds."""
    return {
        each.cause: (float(np.max(each.low)), float(np.max(each.high)), float(np.max(each.seconds)))
        for each in found.deviations
        if each.cause.endswith(f" {op_class}")
    }


def test_inside_a_board_the_width_of_the_exchange_that_is_lent_between_boards_does_not_count():
    timing = load_timing("h100-trtllm")
    classes = timing.calibration.classes
    own, lent = (classes[f"dispatch/{kernel}"].residuals for kernel in ("gather", "sglang"))
    assert own.high < lent.high
    for groups, runs in ((8, own), (16, lent)):
        found = causes(step(timing, "deepseek-r1", Layout(batch=8, dp=groups, ep=groups)), "dispatch")
        assert found["kernels of dispatch"][:2] == (runs.low, runs.high)
        assert found.get("borrowed dispatch", (0.0, 0.0))[:2] == (0.0, 0.0), "its residuals have it"


@pytest.mark.parametrize("timing", ["gb200-trtllm", "b200-vllm"])
def test_an_exchange_that_is_uncertain_by_a_factor_is_widened_once(timing):
    found = causes(step(timing, "llama-3.1-405b", Layout(batch=8, tpa=2, kvp=2, tpf=4)), "partial-exchange")
    assert found["kernels of partial-exchange"][1] == pytest.approx(np.log(2), rel=1e-3)
    assert "borrowed partial-exchange" not in found


def test_a_column_of_layouts_has_the_width_of_the_kernel_that_runs_in_each():
    timing = load_timing("h100-trtllm")
    many = step(timing, "deepseek-r1", Layout(batch=8, dp=np.array([8, 16]), ep=np.array([8, 16])))
    low, high = many.ttl_interval_s
    for place, groups in enumerate((8, 16)):
        one = step(timing, "deepseek-r1", Layout(batch=8, dp=groups, ep=groups))
        assert [float(end) for end in one.ttl_interval_s] == pytest.approx([low[place], high[place]], rel=1e-12)
    assert doublings_beyond(many.ops["dispatch"], [timing.calibration.classes["dispatch/gather"]])[1] > 0


# --- Gathered inside a board -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("timing", "width"), [("b200-sglang", 2), ("h100-sglang", 2), ("b200-vllm", 1), ("h100-vllm", 1)]
)
def test_inside_a_board_tokens_are_gathered_and_experts_pass_over_every_one(timing, width):
    board, across = (step(timing, "deepseek-r1", Layout(batch=32, dp=n, ep=n), dispatch="fp8") for n in (8, 16))
    classes = load_timing(timing).calibration.classes
    # every token of the seven other ranks arrives whole: SGLang's in BF16, vLLM's as quantised, here in FP8
    rate = board.machine.nvlink_bytes_per_s * classes["dispatch/gather"].values["link_share"]
    assert float(board.times["dispatch"].link_s) == pytest.approx(7 * 32 * 7168 * width / rate, rel=1e-9)
    none = load_timing(timing).model_copy(
        update={
            "calibration": load_timing(timing).calibration.model_copy(
                update={"classes": {name: each for name, each in classes.items() if not name.endswith("/gather")}}
            )
        }
    )
    sent = [step(none, "deepseek-r1", Layout(batch=32, dp=n, ep=n), dispatch="fp8") for n in (8, 16)]
    assert float(sent[0].times["routed_up"].seconds) < float(board.times["routed_up"].seconds)
    assert float(sent[1].ttl_s) == float(across.ttl_s), "between boards tokens are sent to their experts"


def test_on_nvl72_sglang_sends_tokens_to_their_experts():
    classes = load_timing("gb200-sglang").calibration.classes
    assert [name for name in classes if name.startswith("dispatch")] == ["dispatch"]
