"""What lies in a GPU's memory, against the model's own totals."""

import numpy as np
import pytest
from cases import GB200, IDEAL, LLAMA, R1, step

from helix_sim.core.layout import Layout
from helix_sim.ops.memory import kv_tokens_that_fit
from helix_sim.specs.load import load_framework, load_machine, load_model, load_timing
from helix_sim.specs.precision import Precision
from helix_sim.specs.setting import Setting
from helix_sim.specs.values import Share
from helix_sim.step import evaluate_step

SHARDED = [
    (LLAMA, {"tpa": 8, "tpf": 8}, 8),
    (LLAMA, {"tpa": 8, "kvp": 8, "tpf": 64}, 64),
    (R1, {"tpa": 8, "tpf": 2, "ep": 4}, 8),
]


@pytest.mark.parametrize(("model", "sizes", "gpus"), SHARDED)
def test_weights_on_one_gpu_are_those_of_the_unsharded_model(model, sizes, gpus):
    weights = step(
        model, timing=IDEAL, precision=Precision(weights="fp8", kv="fp4", math="fp4"), **sizes
    ).memory.weights
    assert gpus * weights >= (model.total_parameters - model.parameters()["norms"]) * 0.999
    if model is LLAMA and sizes.get("kvp", 1) == 1:
        # every weight is on exactly one GPU: the shards sum to the model
        assert gpus * weights == pytest.approx(model.total_parameters - model.parameters()["norms"], rel=1e-12)


def test_unsharded_memory_is_the_model():
    fp8 = Precision(weights="fp8", kv="fp8", math="fp8")
    single = evaluate_step(Setting(model=R1, machine=GB200, timing=IDEAL, precision=fp8), Layout(), 1000)
    p = R1.parameters()
    latent_norms = R1.layer_count * (1536 + 512)
    router_in_bf16 = p["router"]
    expected = R1.total_parameters - p["norms"] - latent_norms + router_in_bf16
    assert single.memory.weights == pytest.approx(expected, rel=1e-9)
    assert single.memory.kv_cache == 61 * 576 * 1000


# --- What a server leaves --------------------------------------------------------------------------------------------

NVFP4 = Precision(weights="nvfp4", kv="fp8", math="fp4", attention_weights="bf16", head_weights="bf16")
FP8 = Precision(weights="bf16", kv="fp8", math="bf16")


def served(system, framework, layout, context, *, model="deepseek-r1", precision=None):
    machine = {"gb200": "gb200-nvl72", "gb300": "gb300-nvl72", "h100": "h100-hgx"}[system]
    timing = load_timing(f"{system}-{framework}" if framework else "paper")
    precision = precision or (FP8 if system == "h100" else NVFP4)
    setting = Setting(model=load_model(model), machine=load_machine(machine), timing=timing, precision=precision)
    return evaluate_step(setting, layout, context).memory


def test_a_measured_timing_leaves_what_its_framework_leaves_and_an_assumed_one_the_machines_reserve():
    x = Layout(batch=8, dp=8, ep=8)
    assert served("gb200", None, x, 8192).fillable == GB200.memory_bytes
    for framework in ("trtllm", "sglang", "vllm"):
        asked = load_framework(framework).memory
        assert load_timing(f"gb200-{framework}").calibration.memory == asked
        assert float(served("gb200", framework, x, 8192).reserve) > asked.outside_GiB.value * 2**30


def test_vllm_may_fill_its_share_of_what_is_not_outside():
    memory = served("h100", "vllm", Layout(), 32768, model="llama-3.1-8b")
    assert float(memory.fillable) == pytest.approx(0.92 * 85.521e9 - 3.88 * 2**30, rel=1e-12)


def test_trtllm_keeps_a_tenth_of_what_weights_and_activations_leave():
    memory = served("gb200", "trtllm", Layout(dp=8, ep=8), 32768)
    free = memory.capacity - 3.88 * 2**30 - memory.weights - memory.activations
    assert float(memory.kv_room_bytes) == pytest.approx(0.9 * float(free), rel=1e-12)


def test_sglang_sets_aside_what_its_server_computes():
    # 512 MiB + 1.5·16384 + 8·1024/8 + 2·512, and with 8 attention groups 4.5·512 of each
    aside = 512 + 1.5 * 16384 + 1024 + 1024 + 4.5 * 512 * 8
    memory = served("gb200", "sglang", Layout(dp=8, ep=8), 32768)
    assert float(memory.reserve) == pytest.approx((aside + 0.92 * 1024) * 2**20, rel=1e-12)
    smaller = served("h100", "sglang", Layout(tpa=2, tpf=2), 32768, model="llama-3.1-8b")
    assert float(smaller.reserve) == pytest.approx((512 + 1.5 * 8192 + 2 * 256 + 256 + 0.92 * 1024) * 2**20, rel=1e-12)


def test_published_residencies_are_met_within_a_twentieth():
    # SGLang, 128K in and 8K out, DEP8: 288 requests on GB300; 40 and 24 a GPU at larger groups on GB300 and GB200
    # https://www.lmsys.org/blog/2026-02-19-gb300-longctx
    context = 131_072 + 4_096
    for system, groups, published in (("gb300", 8, 36), ("gb300", 16, 40), ("gb200", 16, 24)):
        x = Layout(dp=groups, ep=groups)
        fits = float(kv_tokens_that_fit(served(system, "sglang", x, context), x, context)) // context
        assert fits == pytest.approx(published, rel=0.05)
        assert fits < float(kv_tokens_that_fit(served(system, None, x, context), x, context)) // context


def test_a_published_server_of_72_groups_holds_the_requests_that_it_was_measured_with():
    # SGLang on 9 nodes of H100: 18,432 requests of 2,000 tokens in and 100 out, https://lmsys.org/blog/2025-05-05-large-scale-ep/
    x = Layout(batch=256, dp=72, ep=72, redundant_experts=32)
    memory = served("h100", "sglang", x, 2050, precision=load_model("deepseek-r1").formats["fp8"])
    assert float(memory.left_bytes) > 0


def test_sharding_the_cache_alone_multiplies_the_tokens_that_fit():
    # vLLM, Llama-3.1-8B, FP8 cache: 860,320 tokens are 52.51 GiB, and decode context parallel 2, 4 and 8 hold 1.98,
    # 3.96 and 7.85 times as many; weights are not sharded further there
    token = float(served("h100", "vllm", Layout(), 2**20, model="llama-3.1-8b").kv_cache) / 2**20
    assert 860_320 * token / 2**30 == pytest.approx(52.51, abs=0.005)
    room = 52.51 * 2**30
    # an 80 GB GPU, whose 0.9 of then vLLM shared: within 2 % of what it printed
    timing, x = load_timing("h100-vllm"), Layout()
    then = timing.calibration.memory.model_copy(update={"share": Share(value=0.9, source="datasheet: before 0.22")})
    old = timing.model_copy(update={"calibration": timing.calibration.model_copy(update={"memory": then})})
    machine = load_machine("h100-hgx")
    setting = Setting(model=load_model("llama-3.1-8b"), machine=machine, timing=old, precision=FP8)
    assert float(kv_tokens_that_fit(evaluate_step(setting, x, 131_072).memory, x, 131_072)) == pytest.approx(
        860_320, rel=0.02
    )
    for width, measured in ((2, 1.98), (4, 3.96), (8, 7.85)):
        x = Layout(kvp=width, tpf=width)
        memory = served("h100", "vllm", x, 131_072, model="llama-3.1-8b")
        assert room / (float(memory.kv_cache) / 131_072) / 860_320 == pytest.approx(measured, rel=0.03)


def test_a_layout_fits_exactly_the_memory_that_it_is_said_to_need():
    x = Layout(batch=np.array([1, 64, 4096]), dp=8, ep=8)
    for framework in (None, "trtllm", "vllm"):
        memory = served("gb200", framework, x, 100_000)
        needed = memory.capacity_needed
        assert ((needed <= memory.capacity) == (memory.left_bytes >= 0)).all()
        timing = load_timing(f"gb200-{framework}" if framework else "paper")
        for i, bytes_needed in enumerate(np.asarray(needed, dtype=float)):
            larger = GB200.memory_GB.model_copy(update={"value": bytes_needed / 1e9})
            machine = GB200.model_copy(update={"memory_GB": larger})
            setting = Setting(model=R1, machine=machine, timing=timing, precision=NVFP4)
            one = evaluate_step(setting, Layout(batch=int(x.batch[i]), dp=8, ep=8), 100_000).memory
            assert float(one.left_bytes) == pytest.approx(0, abs=1e-3 * float(one.capacity) * 1e-3)


def test_the_tokens_that_fit_do_fit_and_one_request_more_does_not():
    for framework in (None, "trtllm", "vllm", "sglang"):
        x = Layout(batch=1, dp=8, ep=8)
        users = int(kv_tokens_that_fit(served("gb200", framework, x, 100_000), x, 100_000) // 100_000)
        assert users > 3
        # activations grow with the batch as well, by far less than a request's cache
        assert float(served("gb200", framework, Layout(batch=users - 1, dp=8, ep=8), 100_000).left_bytes) >= 0
        assert float(served("gb200", framework, Layout(batch=users + 1, dp=8, ep=8), 100_000).left_bytes) < 0


def test_the_tokens_that_fit_are_those_of_the_stage_that_is_full_first_at_their_own_batch_not_at_the_given_one():
    # the last of four stages has the head beside 15 layers, the third 16: at one request the head's stage is fullest
    x = Layout(batch=1, tpa=8, pp=4)
    model = load_model("llama-3.1-405b")
    setting = Setting(model=model, machine=GB200, timing=IDEAL, precision=FP8)
    tokens = int(kv_tokens_that_fit(evaluate_step(setting, x, 16_384).memory, x, 16_384))
    users = tokens // 16_384 // x.pp
    assert evaluate_step(setting, Layout(batch=users, tpa=8, pp=4), 16_384).memory.left_bytes >= 0
    assert evaluate_step(setting, Layout(batch=users + 2, tpa=8, pp=4), 16_384).memory.left_bytes < 0
    for batch in (1, 8, users):
        y = Layout(batch=batch, tpa=8, pp=4)
        again = kv_tokens_that_fit(evaluate_step(setting, y, 16_384).memory, y, 16_384)
        assert int(again) == pytest.approx(tokens, rel=0.01)


def test_gathering_queries_shrinks_their_projection_and_its_weights_and_pays_their_traffic():
    def decoded(shards):
        setting = Setting(model=R1, machine=GB200, timing=IDEAL, precision=NVFP4)
        return evaluate_step(setting, Layout(batch=4, tpa=2, kvp=4, tpf=8, q_shards=shards), 65_536)

    repeated, gathered = decoded(1), decoded(4)
    # 64 query heads of a TPA rank, 1536 x 192 to project each and 128 x 512 to absorb it, BF16, on 61 layers
    head = (1536 * 192 + 128 * 512) * 2
    assert repeated.memory.weights - gathered.memory.weights == 61 * 48 * head
    for op in ("query_up_projection", "key_absorption"):
        assert repeated.ops[op].flops == 4 * gathered.ops[op].flops
    assert repeated.ops["query_gather"].link_bytes == 0
    assert gathered.ops["query_gather"].link_bytes == 3 * 4 * 16 * 576 * 2
    assert gathered.ops["exchange"].link_bytes == repeated.ops["exchange"].link_bytes
