"""A checkpoint's bytes by its imported spec are within a hundredth of those that are published of it.

A size to the byte is `total_size` of the checkpoint's model.safetensors.index.json on huggingface.co (of a repository
without an index, the bytes of its tensors). A size of GB_OF_FILES is the sum of its weight files as the repository's
page lists them, to three digits a file. Draft layers that a spec leaves out are added as copies of the last layer, with
an embedding and a head of their own, as DeepSeek stores them.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from hf_configs import DEEPSEEK, DEEPSEEK_V2_LITE, GPT_OSS, KIMI, LLAMA, LLAMA_70B, MIXTRAL, QWEN2_7B, QWEN3

from helix_sim.specs.import_hf import import_config, import_file
from helix_sim.specs.load import load_model, shipped

LLAMA_8B = LLAMA | {
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
}
QWEN3_30B = QWEN3 | {
    "model_type": "qwen3_moe",
    "hidden_size": 2048,
    "intermediate_size": 6144,
    "moe_intermediate_size": 768,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
    "num_hidden_layers": 48,
    "num_experts": 128,
    "num_experts_per_tok": 8,
}
QWEN3_14B = QWEN3 | {"intermediate_size": 17408, "num_attention_heads": 40, "num_hidden_layers": 40}
QWEN3_8B = QWEN3 | {
    "hidden_size": 4096,
    "intermediate_size": 12288,
    "num_attention_heads": 32,
    "num_hidden_layers": 36,
}
QWEN3_4B = QWEN3_8B | {"hidden_size": 2560, "intermediate_size": 9728, "tie_word_embeddings": True}
MISTRAL_7B = LLAMA_8B | {"model_type": "mistral", "vocab_size": 32000}
GPT_OSS_20B = GPT_OSS | {
    "num_hidden_layers": 24,
    "num_local_experts": 32,
    "layer_types": ["sliding_attention", "full_attention"] * 12,
}
KIMI_K2 = {name: value for name, value in KIMI.items() if name != "num_nextn_predict_layers"}
INT4_EXPERTS = {
    "quant_method": "compressed-tensors",
    "config_groups": {
        "group_0": {
            "targets": ["Linear"],
            "weights": {"type": "int", "num_bits": 4, "group_size": 32, "strategy": "group", "symmetric": True},
            "input_activations": None,
        }
    },
    "ignore": ["lm_head", "re:.*self_attn.*", "re:.*shared_experts.*", "re:.*mlp\\.(gate|up|gate_up|down)_proj.*"],
}
"""Kimi-K2-Thinking's and K2.5's: routed experts alone."""
AWQ = {"quant_method": "awq", "bits": 4, "group_size": 128, "zero_point": True}
GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 128, "sym": True, "desc_act": False}
QWEN25_7B = QWEN2_7B | {"torch_dtype": "bfloat16"}
QWEN25_32B = QWEN3 | {
    "model_type": "qwen2",
    "intermediate_size": 27648,
    "num_attention_heads": 40,
    "vocab_size": 152064,
}
PHI_4 = LLAMA | {
    "model_type": "phi3",
    "hidden_size": 5120,
    "intermediate_size": 17920,
    "num_attention_heads": 40,
    "num_key_value_heads": 10,
    "num_hidden_layers": 40,
    "vocab_size": 100352,
}


def bitsandbytes(*, double: bool) -> dict[str, Any]:
    """A quantization_config of bitsandbytes in NF4, its scales quantised in turn or not."""
    return {
        "quant_method": "bitsandbytes",
        "load_in_4bit": True,
        "bnb_4bit_quant_type": "nf4",
        "bnb_4bit_use_double_quant": double,
    }


def compressed(kind: str, bits: int, group: int | None) -> dict[str, Any]:
    """A quantization_config of compressed-tensors: one group of every product but the head."""
    strategy = "group" if group else "channel"
    weights = {"type": kind, "num_bits": bits, "group_size": group, "strategy": strategy, "symmetric": True}
    return {
        "quant_method": "compressed-tensors",
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights, "input_activations": None}},
        "ignore": ["lm_head"],
    }


def modelopt(algo: str) -> dict[str, Any]:
    """A quantization_config of TensorRT Model Optimizer: every product but the head."""
    return {"quant_method": "modelopt", "quant_algo": algo, "ignore": ["lm_head"]}


GB_OF_FILES: dict[str, tuple[dict[str, Any], list[float]]] = {
    "nvidia/Phi-4-reasoning-plus-FP4, modelopt nvfp4": (
        PHI_4 | {"quantization_config": modelopt("NVFP4")}, [4.99, 4.73]),
    "nvidia/Llama-3.1-8B-Instruct-FP8, modelopt fp8": (
        LLAMA_8B | {"quantization_config": modelopt("FP8")}, [5.00, 4.08]),
    "neuralmagic/Meta-Llama-3-8B-Instruct-FP8, fp8 by AutoFP8": (
        LLAMA_8B | {"quantization_config": {"quant_method": "fp8", "activation_scheme": "static"}}, [5.00, 4.08]),
    "Qwen/Qwen2.5-32B-Instruct-GPTQ-Int4, gptq": (
        QWEN25_32B | {"quantization_config": GPTQ}, [3.95, 3.98, 3.95, 3.98, 3.48]),
    "mzayed/Qwen2.5-7B-Instruct-1M-AWQ, awq": (
        QWEN25_7B | {"quantization_config": AWQ}, [4.48, 1.09]),
    "RedHatAI/phi-4-quantized.w4a16, compressed-tensors int4": (
        PHI_4 | {"quantization_config": compressed("int", 4, 128)}, [4.93, 4.16]),
    "neuralmagic/Meta-Llama-3.1-8B-Instruct-quantized.w8a8, compressed-tensors int8": (
        LLAMA_8B | {"quantization_config": compressed("int", 8, None)}, [5.00, 4.08]),
    "unsloth/Meta-Llama-3.1-8B-bnb-4bit, bitsandbytes": (
        LLAMA_8B | {"quantization_config": bitsandbytes(double=True)}, [5.70]),
    "RichardErkhov/Qwen_-_Qwen2.5-7B-Instruct-4bits, bitsandbytes": (
        QWEN25_7B | {"quantization_config": bitsandbytes(double=False)}, [4.76, 1.09]),
}  # fmt: skip
"""Checkpoints by repository: a config, and the GB of each weight file by https://huggingface.co/<repository>/tree/main."""


@pytest.mark.parametrize(
    ("config", "published"),
    [
        pytest.param(LLAMA_8B, 16_060_522_496, id="meta-llama/Llama-3.1-8B-Instruct, bf16"),
        pytest.param(LLAMA_70B, 141_107_412_992, id="meta-llama/Llama-3.1-70B-Instruct, bf16"),
        pytest.param(QWEN3, 65_524_246_528, id="Qwen/Qwen3-32B, bf16"),
        pytest.param(QWEN3_30B, 61_064_245_248, id="Qwen/Qwen3-30B-A3B-Instruct-2507, bf16"),
        pytest.param(QWEN3_14B, 29_536_614_400, id="Qwen/Qwen3-14B, bf16"),
        pytest.param(QWEN3_8B, 16_381_470_720, id="Qwen/Qwen3-8B, bf16"),
        pytest.param(QWEN3_4B, 8_044_936_192, id="Qwen/Qwen3-4B, bf16, tied"),
        pytest.param(QWEN25_7B, 15_231_233_024, id="Qwen/Qwen2.5-7B-Instruct, bf16"),
        pytest.param(MISTRAL_7B, 14_483_464_192, id="mistralai/Mistral-7B-v0.1, bf16"),
        pytest.param(DEEPSEEK_V2_LITE | {"torch_dtype": "bfloat16"}, 31_412_968_448,
                     id="deepseek-ai/DeepSeek-V2-Lite, bf16"),
        pytest.param(MIXTRAL, 93_405_585_408, id="mistralai/Mixtral-8x7B-v0.1, bf16"),
        pytest.param(LLAMA_70B | {"quantization_config": AWQ}, 39_767_785_472, id="Llama 70B, AWQ"),
        pytest.param(GPT_OSS, 65_248_815_744, id="openai/gpt-oss-120b, mxfp4"),
        pytest.param(GPT_OSS_20B, 13_761_264_768, id="openai/gpt-oss-20b, mxfp4"),
        pytest.param(KIMI_K2, 1_029_173_256_720, id="moonshotai/Kimi-K2-Instruct, fp8 blocks"),
        pytest.param(KIMI_K2 | {"quantization_config": INT4_EXPERTS}, 594_205_920_512,
                     id="moonshotai/Kimi-K2-Thinking, int4 in groups of 32"),
        pytest.param(KIMI_K2 | {"quantization_config": INT4_EXPERTS}, 595_148_192_736,
                     id="moonshotai/Kimi-K2.5, int4 in groups of 32, its encoder left out"),
        pytest.param(DEEPSEEK, 688_586_727_753, id="deepseek-ai/DeepSeek-R1, fp8 blocks"),
    ],
)  # fmt: skip
def test_bytes_by_the_spec_are_those_that_the_publisher_counts(config: dict[str, Any], published: int) -> None:
    found = import_config(config, name="model", source="tests", full_attention=True)
    stored = found.stored_bytes
    assert stored is not None
    if drafts := config.get("num_nextn_predict_layers"):
        longer = config | {"num_hidden_layers": config["num_hidden_layers"] + drafts}
        deeper = import_config(longer, name="model", source="tests").stored_bytes
        assert deeper is not None
        stored = deeper + drafts * 2 * 2 * found.model.vocab_size * found.model.hidden_size
    assert stored == pytest.approx(published, rel=0.01)


@pytest.mark.parametrize("checkpoint", GB_OF_FILES)
def test_bytes_by_the_spec_are_those_of_the_files_that_a_repository_lists(checkpoint: str) -> None:
    config, sizes = GB_OF_FILES[checkpoint]
    stored = import_config(config, name="model", source="tests").stored_bytes
    assert stored == pytest.approx(1e9 * sum(sizes), rel=0.01)


@pytest.mark.parametrize("name", shipped("model"))
def test_every_shipped_model_has_the_formats_of_a_checkpoint_as_its_config_says_them(name: str) -> None:
    formats = load_model(name).formats
    assert formats
    package = pytest.importorskip("aiconfigurator_core", reason="the configs are the package's")
    folder = Path(package.__file__).parent / "model_configs"
    for stored in formats.values():
        owner, repository = re.search(r"huggingface.co/([^/]+)/([^/]+)/", stored.source).groups()
        config = folder / f"{owner}--{repository}_config.json"
        if config.is_file():
            assert stored.said == import_file(config).precision
