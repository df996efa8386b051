"""A published serving of wide expert parallelism across boards, as it was served, on every timing of its machine."""

import pytest

from helix_sim import setting_of
from helix_sim.core.layout import Layout
from helix_sim.specs.precision import Precision
from helix_sim.step import evaluate_step

# SGLang, 2025-05-05, https://lmsys.org/blog/2025-05-05-large-scale-ep/: decode on 9 nodes of 8 H100 with prompts of
# 2000 tokens, 256 requests a GPU, 22,282 output tokens/s a node; EP72 by DeepEP's low-latency kernels, which send FP8
# with block scales (https://github.com/deepseek-ai/DeepEP), EPLB with 32 copies beside the 256 experts, two-batch
# overlap.
PUBLISHED_S = 256 * 8 / 22_282
SERVED = Layout(batch=256, dp=72, ep=72, redundant_experts=32, microbatches=2)
FORMATS = Precision(weights="fp8-block", math="fp8", kv="bf16", dispatch="fp8-block")
CONTEXT = 2048


@pytest.mark.parametrize("timing", ["h100-sglang", "h100-vllm", "h100-trtllm"])
def test_ep72_on_h100_takes_what_was_published_within_a_quarter(timing):
    setting = setting_of("deepseek-r1", "h100-hgx", timing=timing, precision=FORMATS)
    assert float(evaluate_step(setting, SERVED, CONTEXT).ttl_s) == pytest.approx(PUBLISHED_S, rel=0.25)


def test_the_interval_of_the_stack_that_served_holds_what_was_published():
    setting = setting_of("deepseek-r1", "h100-hgx", timing="h100-sglang", precision=FORMATS)
    low, high = evaluate_step(setting, SERVED, CONTEXT).ttl_interval_s
    assert low < PUBLISHED_S < high
