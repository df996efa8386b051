"""What shipped models of every kind keep for a request, against numbers worked out by hand from their configs."""

import pytest

from helix_sim.core.layout import Layout
from helix_sim.core.numeric import total
from helix_sim.ops.layers import kv_bytes_per_layer
from helix_sim.ops.step_input import StepInput
from helix_sim.specs.load import load_model
from helix_sim.specs.precision import Precision

BF16 = Precision(weights="bf16", kv="bf16", math="bf16")
FP8 = Precision(weights="fp8", kv="fp8", math="fp8")
MI = 2**20


def kept(name, context, precision=BF16, new=1, **widths):
    """Bytes that one request keeps on the fullest rank, over all layers of a model."""
    model = load_model(name)
    s = StepInput(model=model, precision=precision, layout=Layout(**widths), context=context, query_tokens=new)
    counts = {name: n for (half, name), n in model.kind_counts.items() if half == "attention"}
    return total(*(n * kv_bytes_per_layer(s, model.attention[name]) for name, n in counts.items()))


def grown(name, precision=BF16, **widths):
    """Bytes a token by which that grows, over a quarter of a million tokens of a long context."""
    return (kept(name, MI, precision, **widths) - kept(name, MI - 2**18, precision, **widths)) / 2**18


@pytest.mark.parametrize(
    ("name", "layers_and_bytes"),
    [
        ("deepseek-v3.2", 61 * (576 * 2 + 132)),  # the latent, and an index key of 128 bytes and its scale
        ("glm-5", 78 * (576 * 2 + 132)),
        ("deepseek-v4-flash", 21 * (512 * 2 + 64) / 4 + 20 * 512 * 2 / 128),  # one vector for 4 tokens, or for 128
        ("deepseek-v4-pro", 30 * (512 * 2 + 64) / 4 + 31 * 512 * 2 / 128),
        ("kimi-k3", 24 * 576 * 2),  # 69 layers have a state instead
        ("qwen3.5-397b-a17b", 15 * 2 * 2 * 256 * 2),
        ("qwen3-next-80b", 12 * 2 * 2 * 256 * 2),
        ("gpt-oss-120b", 18 * 2 * 8 * 64 * 2),  # the other 18 layers have a window
        ("llama-4-maverick", 12 * 2 * 8 * 128 * 2),
        ("gemma-3-27b", 10 * 2 * 16 * 128 * 2),
        ("nemotron-h", 10 * 2 * 8 * 128 * 2),  # 54 layers of Mamba-2
        ("minimax-m2", 62 * 2 * 8 * 128 * 2),
        ("minimax-m3", 60 * 2 * 4 * 128 * 2 + 57 * 256),
    ],
)
def test_the_cache_of_a_request_grows_by_the_bytes_a_token_of_its_layers(name, layers_and_bytes):
    assert grown(name) == pytest.approx(layers_and_bytes, rel=1e-12)


@pytest.mark.parametrize(
    ("name", "matrices", "convolution"),
    [
        ("kimi-k3", 69 * 96 * 128 * 128 * 4, 69 * 3 * 3 * 96 * 128 * 2),
        ("qwen3.5-397b-a17b", 45 * 64 * 128 * 128 * 4, 45 * 3 * (2 * 16 + 64) * 128 * 2),
        ("nemotron-h", 54 * 256 * 256 * 64 * 4, 54 * 3 * (2 * 8 * 256 + 256 * 64) * 2),
        ("qwen3-next-80b", 36 * 32 * 128 * 128 * 4, 36 * 3 * (2 * 16 + 32) * 128 * 2),
    ],
)
def test_a_state_is_its_matrices_in_fp32_and_the_last_inputs_of_its_convolution(name, matrices, convolution):
    per_token = grown(name)
    state = kept(name, MI) - MI * per_token
    assert state == matrices + convolution
    # a draft of three leaves four states to go back to, and as many inputs more
    assert kept(name, MI, new=4) - MI * per_token == 4 * matrices + convolution / 3 * 6


def test_windows_keep_their_tokens_and_no_more():
    assert kept("gpt-oss-120b", 100) == 100 * 36 * 2 * 8 * 64 * 2
    assert kept("gpt-oss-120b", MI) == (18 * MI + 18 * 128) * 2 * 8 * 64 * 2
    assert kept("gemma-3-27b", MI, FP8) == (10 * MI + 52 * 1024) * 2 * 16 * 128
    assert kept("llama-4-maverick", MI, FP8) == (12 * MI + 36 * 8192) * 2 * 8 * 128


def test_compressed_layers_keep_a_window_and_the_state_of_open_vectors():
    vectors = 43 * 128 * 512 * 2
    csa, hca = 2 * 8 * 2 * (512 + 128) * 4, 2 * 128 * 512 * 4
    open_ones = 21 * csa + 20 * hca
    assert kept("deepseek-v4-flash", MI) - MI * grown("deepseek-v4-flash") == vectors + open_ones


def test_the_elements_of_v4_pros_checkpoint_are_its_parameters_and_those_of_its_prediction_module():
    """The Hub counts 862 billion elements: two FP4 values of an expert in one, a scale for each 32 of them.

    The module is a layer of its own without compression, and a projection from two hidden states.
    https://huggingface.co/deepseek-ai/DeepSeek-V4-Pro
    """
    model, h = load_model("deepseek-v4-pro"), 7168
    a_layer = model.ffn["moe"].parameters(h)
    experts = model.parameters()["routed experts"] + a_layer["routed experts"]
    window = model.attention["hca"].model_copy(update={"ratio": None})
    module = sum(a_layer.values()) + window.parameters(h) + 2 * h * h
    every = model.total_parameters + module
    assert every == pytest.approx(1.6e12, rel=1e-3)
    assert every - experts + experts / 2 + experts / 32 == pytest.approx(862e9, rel=1e-3)


def test_kv_shards_hold_a_share_of_what_grows_and_all_of_the_rest():
    shards = 8
    alone, of_eight = kept("kimi-k3", MI), kept("kimi-k3", MI, kvp=shards, tpf=shards)
    state = alone - MI * grown("kimi-k3")
    assert of_eight == (alone - state) / shards + state / shards  # the state by its heads, the cache by its tokens
    index = 61 * 132 * MI
    latents = kept("deepseek-v3.2", MI) - index
    assert kept("deepseek-v3.2", MI, kvp=shards, tpf=shards) == latents / shards + index
