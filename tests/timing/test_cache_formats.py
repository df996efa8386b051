"""The KV cache's format on measured timings: one that kernels read, unless another is asked for, which is said."""

import pytest

from helix_sim.core.layout import Layout
from helix_sim.search.frame import decode_step
from helix_sim.search.layout_source import Options, pick
from helix_sim.specs.load import load_machine, load_model, load_timing, shipped
from helix_sim.specs.precision import Precision
from helix_sim.step import cache_with_kernels, default_precision

LLAMA, GB200 = load_model("llama-3.1-405b"), load_machine("gb200-nvl72")
NARROW = {"weights": "fp4", "kv": "fp4", "math": "fp4"}
MEASURED = [name for name in shipped("timing") if load_timing(name).calibration]


@pytest.mark.parametrize("name", MEASURED)
def test_every_measured_timing_reads_fp8_and_bf16_caches_and_no_narrower(name):
    assert load_timing(name).calibration.cache_formats == ["fp8", "bf16"]


def test_a_default_cache_has_kernels_on_a_measured_timing_and_is_the_narrowest_on_an_assumed_one():
    bare = LLAMA.model_copy(update={"formats": {}})
    assert default_precision(bare, GB200).kv == "fp4"
    assert default_precision(bare, GB200, load_timing("paper")).kv == "fp4"
    measured = default_precision(bare, GB200, load_timing("gb200-trtllm"))
    assert (measured.kv, measured.weights, measured.attention_math) == ("fp8", "fp4", "bf16")


def test_a_cache_that_has_kernels_stays():
    timing = load_timing("gb200-trtllm")
    for kv in ("fp8", "bf16"):
        assert cache_with_kernels(LLAMA, GB200, timing, NARROW | {"kv": kv}) == NARROW | {"kv": kv}


def test_latent_attention_multiplies_in_its_caches_format_where_kernels_do():
    r1, h100 = load_model("deepseek-r1"), load_machine("h100-hgx")
    assert cache_with_kernels(r1, GB200, load_timing("gb200-trtllm"), NARROW)["attention_math"] == "fp8"
    assert cache_with_kernels(r1, h100, load_timing("h100-trtllm"), NARROW)["attention_math"] == "bf16"


def picked(**options):
    return pick("llama-3.1-405b", "gb200-nvl72", Options(timing="gb200-trtllm", context=8192, **options))


def test_an_fp4_cache_is_used_when_asked_for_and_says_what_it_rests_on():
    widths = {"tpa": 8}
    assert not picked(widths=widths, formats={"kv": "fp8"}).remarks
    asked = picked(widths=widths, formats={"kv": "fp4"})
    assert asked.step.precision.kv == "fp4"
    assert "no attention kernel for a cache in fp4: it rests on fp8's kernels, with fp4's bytes" in asked.remarks[0]


def test_an_fp4_cache_is_timed_on_fp8s_constants_with_half_of_the_bytes():
    x = Layout(batch=8, tpa=8, tpf=8)
    steps = {
        kv: decode_step(LLAMA, GB200, x, 100_000, precision=Precision(**NARROW | {"kv": kv, "attention_math": "bf16"}),
                        timing=load_timing("gb200-trtllm"))
        for kv in ("fp4", "fp8")
    }  # fmt: skip
    halved = [float(steps[kv].ops["attention_core"].kv_bytes) for kv in ("fp4", "fp8")]
    assert halved[0] == pytest.approx(halved[1] / 2)
    assert float(steps["fp4"].times["attention_core"].seconds) < float(steps["fp8"].times["attention_core"].seconds)
