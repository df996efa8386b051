"""Hugging Face configs to model specs: counts against published ones, refusals by field, formats."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from helix_sim.cli import app
from helix_sim.core.errors import SpecError
from helix_sim.specs.import_hf import import_config, import_file, number_in_name
from helix_sim.specs.load import load_model

LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 16384,
    "intermediate_size": 53248,
    "num_attention_heads": 128,
    "num_key_value_heads": 8,
    "num_hidden_layers": 126,
    "vocab_size": 128256,
    "torch_dtype": "bfloat16",
}
QWEN3 = LLAMA | {
    "model_type": "qwen3",
    "hidden_size": 5120,
    "intermediate_size": 25600,
    "head_dim": 128,
    "num_attention_heads": 64,
    "num_hidden_layers": 64,
    "vocab_size": 151936,
    "sliding_window": None,
    "use_sliding_window": False,
}
QWEN3_MOE = QWEN3 | {
    "model_type": "qwen3_moe",
    "hidden_size": 4096,
    "intermediate_size": 12288,
    "num_key_value_heads": 4,
    "num_hidden_layers": 94,
    "moe_intermediate_size": 1536,
    "num_experts": 128,
    "num_experts_per_tok": 8,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
}
MIXTRAL = LLAMA | {
    "model_type": "mixtral",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_local_experts": 8,
    "num_experts_per_tok": 2,
    "vocab_size": 32000,
}
DEEPSEEK = {
    "model_type": "deepseek_v3",
    "hidden_size": 7168,
    "intermediate_size": 18432,
    "moe_intermediate_size": 2048,
    "num_hidden_layers": 61,
    "num_attention_heads": 128,
    "num_key_value_heads": 128,
    "vocab_size": 129280,
    "q_lora_rank": 1536,
    "kv_lora_rank": 512,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "v_head_dim": 128,
    "n_routed_experts": 256,
    "n_shared_experts": 1,
    "num_experts_per_tok": 8,
    "first_k_dense_replace": 3,
    "moe_layer_freq": 1,
    "num_nextn_predict_layers": 1,
    "quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]},
}
KIMI = DEEPSEEK | {
    "model_type": "kimi_k2",
    "num_attention_heads": 64,
    "n_routed_experts": 384,
    "first_k_dense_replace": 1,
    "vocab_size": 163840,
}
GPT_OSS = {
    "model_type": "gpt_oss",
    "hidden_size": 2880,
    "intermediate_size": 2880,
    "head_dim": 64,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "num_hidden_layers": 36,
    "num_local_experts": 128,
    "num_experts_per_tok": 4,
    "vocab_size": 201088,
    "sliding_window": 128,
    "layer_types": ["sliding_attention", "full_attention"] * 18,
    "quantization_config": {"quant_method": "mxfp4", "modules_to_not_convert": ["model.layers.*.self_attn", "lm_head"]},
}
MAVERICK = {
    "model_type": "llama4",
    "text_config": {
        "model_type": "llama4_text",
        "hidden_size": 5120,
        "intermediate_size": 8192,
        "intermediate_size_mlp": 16384,
        "head_dim": 128,
        "num_attention_heads": 40,
        "num_key_value_heads": 8,
        "num_hidden_layers": 48,
        "num_local_experts": 128,
        "num_experts_per_tok": 1,
        "interleave_moe_layer_step": 2,
        "attention_chunk_size": 8192,
        "vocab_size": 202048,
        "torch_dtype": "bfloat16",
    },
}


def read(config: dict[str, Any], name: str = "model", **options: Any) -> Any:
    return import_config(config, name=name, source="tests", **options)


@pytest.mark.parametrize(
    ("config", "published_B", "within"),
    [
        pytest.param(LLAMA, 405.85, 1e-4, id="llama-3.1-405b"),
        pytest.param(QWEN3, 32.76, 1e-3, id="qwen3-32b"),
        pytest.param(QWEN3_MOE, 235.09, 1e-3, id="qwen3-235b-a22b"),
        pytest.param(MIXTRAL, 46.70, 1e-3, id="mixtral-8x7b"),
        pytest.param(DEEPSEEK, 671.03, 1e-3, id="deepseek-r1"),
        pytest.param(KIMI, 1026.4, 1e-3, id="kimi-k2"),
        pytest.param(GPT_OSS, 116.83, 5e-3, id="gpt-oss-120b"),
        pytest.param(MAVERICK, 400.7, 1e-3, id="llama-4-maverick"),
    ],
)
def test_parameters_are_those_that_the_publisher_counts(
    config: dict[str, Any], published_B: float, within: float
) -> None:
    model = read(config, full_attention=True).model
    assert model.total_parameters / 1e9 == pytest.approx(published_B, rel=within)


@pytest.mark.parametrize(
    ("config", "shipped"), [pytest.param(LLAMA, "llama-3.1-405b"), pytest.param(DEEPSEEK, "deepseek-r1")]
)
def test_an_imported_model_equals_the_shipped_one(config: dict[str, Any], shipped: str) -> None:
    ours = load_model(shipped)
    found = read(config, name=shipped, published_B=ours.published_parameters_B).model
    assert found.model_copy(update={"source": ours.source}) == ours


@pytest.mark.parametrize("config", [LLAMA, QWEN3_MOE, MIXTRAL, DEEPSEEK, GPT_OSS, MAVERICK])
def test_the_written_file_loads_as_the_model_that_was_read(config: dict[str, Any], tmp_path: Path) -> None:
    found = read(config, full_attention=True)
    path = tmp_path / "model.yaml"
    path.write_text(found.text, encoding="utf-8")
    assert load_model(path) == found.model


@pytest.mark.parametrize(
    ("config", "field"),
    [
        pytest.param(DEEPSEEK | {"index_topk": 2048}, "index_topk", id="sparse"),
        pytest.param(GPT_OSS, "layer_types", id="alternating windows"),
        pytest.param(GPT_OSS, "sliding_window", id="window"),
        pytest.param(MAVERICK, "text_config.attention_chunk_size", id="chunked"),
        pytest.param(QWEN3 | {"layer_types": ["linear_attention"] * 64}, "layer_types", id="linear"),
        pytest.param(QWEN3 | {"full_attention_interval": 4}, "full_attention_interval", id="mostly linear"),
        pytest.param(LLAMA | {"hybrid_override_pattern": "M-M*"}, "hybrid_override_pattern", id="mamba"),
        pytest.param(LLAMA | {"model_type": "bert"}, "model_type", id="no decoder"),
        pytest.param(DEEPSEEK | {"q_lora_rank": None}, "q_lora_rank", id="no query latent"),
        pytest.param({k: v for k, v in LLAMA.items() if k != "hidden_size"}, "hidden_size", id="missing"),
        pytest.param(LLAMA | {"num_hidden_layers": "many"}, "num_hidden_layers", id="no number"),
        pytest.param(LLAMA | {"num_attention_heads": 100}, "kv_heads", id="heads that do not divide"),
    ],
)
def test_what_cannot_be_modelled_is_refused_by_its_field(config: dict[str, Any], field: str) -> None:
    with pytest.raises(SpecError, match=field.replace(".", r"\.")):
        read(config)


def test_linear_layers_are_refused_even_where_windows_are_read_as_full() -> None:
    mixed = GPT_OSS | {"layer_types": ["sliding_attention", "linear_attention"] * 18}
    with pytest.raises(SpecError, match="linear_attention"):
        read(mixed, full_attention=True)


def test_windows_read_as_full_attention_are_remarked_upon() -> None:
    found = read(GPT_OSS, full_attention=True)
    assert any("18 of 36 layers" in remark and "upper bound" in remark for remark in found.remarks)
    assert "# layer_types: 18 of 36 layers" in found.text


def test_a_window_that_is_switched_off_is_no_window() -> None:
    assert read(QWEN3 | {"sliding_window": 4096}).model.layer_count == 64


@pytest.mark.parametrize(
    ("config", "dense", "moe"),
    [
        pytest.param(DEEPSEEK, 3, 58, id="first layers dense"),
        pytest.param(QWEN3_MOE | {"mlp_only_layers": [0, 5]}, 2, 92, id="listed layers dense"),
        pytest.param(QWEN3_MOE | {"decoder_sparse_step": 2}, 47, 47, id="every second"),
        pytest.param(MAVERICK["text_config"], 24, 24, id="interleaved"),
        pytest.param(MAVERICK["text_config"] | {"moe_layers": [1, 2, 3]}, 45, 3, id="given as a list"),
        pytest.param(QWEN3_MOE | {"num_experts": 0}, 94, 0, id="no experts"),
    ],
)
def test_moe_layers_are_counted_as_the_config_places_them(config: dict[str, Any], dense: int, moe: int) -> None:
    model = read(config, full_attention=True).model
    assert (model.kind_counts["ffn", "dense"], model.kind_counts["ffn", "moe"]) == (dense, moe)


@pytest.mark.parametrize(
    ("quantisation", "expected"),
    [
        (None, {"weights": "bf16", "kv": "bf16", "math": "bf16"}),
        ({"quant_method": "fp8", "weight_block_size": [128, 128]}, {"weights": "fp8-block", "head_weights": "bf16"}),
        ({"quant_method": "fp8"}, {"weights": "fp8", "math": "fp8"}),
        ({"quant_method": "awq", "bits": 4}, {"weights": "int4", "math": "bf16"}),
        ({"quant_algo": "NVFP4", "kv_cache_quant_algo": "FP8"}, {"weights": "nvfp4", "kv": "fp8", "math": "fp4"}),
        (
            {
                "quant_method": "compressed-tensors",
                "config_groups": {"group_0": {"weights": {"type": "int", "num_bits": 4}, "input_activations": None}},
                "kv_cache_scheme": {"num_bits": 8},
            },
            {"weights": "int4", "kv": "fp8", "math": "bf16"},
        ),
    ],
)
def test_number_formats_come_from_the_quantisation(
    quantisation: dict[str, Any] | None, expected: dict[str, str]
) -> None:
    found = read(LLAMA | {"quantization_config": quantisation}).precision
    assert expected.items() <= found.items()


def test_an_unknown_quantisation_is_said_and_not_guessed() -> None:
    found = read(LLAMA | {"quantization_config": {"quant_method": "magic"}})
    assert not found.precision
    assert any("magic" in remark for remark in found.remarks)


def test_hf_quant_config_beside_the_config_is_read(tmp_path: Path) -> None:
    plain = {key: value for key, value in DEEPSEEK.items() if key != "quantization_config"}
    kept = ["lm_head", "model.layers.0.self_attn.kv_b_proj"]
    quantised = {"quantization": {"quant_algo": "NVFP4", "kv_cache_quant_algo": "FP8", "exclude_modules": kept}}
    folder = tmp_path / "DeepSeek-671B"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(plain))
    (folder / "hf_quant_config.json").write_text(json.dumps(quantised))
    found = import_file(folder)
    assert found.precision["weights"] == "nvfp4"
    assert found.precision["attention_weights"] == "bf16"
    assert found.precision["head_weights"] == "bf16"
    assert found.named_B == 671
    assert any("kv_b_proj" in remark for remark in found.remarks)


@pytest.mark.parametrize(
    ("name", "billions"),
    [
        ("Qwen3-235B-A22B-FP8", 235.0),
        ("Meta-Llama-3.1-405B", 405.0),
        ("gpt-oss-120b", 120.0),
        ("Qwen3-0.6B", 0.6),
        ("Kimi-K2-1T", 1000.0),
        ("SmolLM-135M", 0.135),
        ("Mixtral-8x7B-v0.1", None),
        ("DeepSeek-R1", None),
    ],
)
def test_the_number_in_a_name_counts_all_parameters(name: str, billions: float | None) -> None:
    assert number_in_name(name) == billions


def test_the_count_is_held_against_the_active_parameters_where_the_name_says_those() -> None:
    found = read(MAVERICK, name="Llama-4-Maverick-17B-128E", full_attention=True)
    assert found.active_parameters / 1e9 == pytest.approx(17.2, rel=0.01)
    assert "active" in found.counts
    assert found.model.published_parameters_B == pytest.approx(400.7, rel=1e-3)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 10**7) | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


@given(field=st.sampled_from([*DEEPSEEK, *GPT_OSS, "moe_layers", "mlp_only_layers", "text_config"]), value=VALUES)
def test_no_value_of_any_field_is_worse_than_a_refusal(field: str, value: Any) -> None:
    with contextlib.suppress(SpecError):
        assert read({**GPT_OSS, **DEEPSEEK, field: value}, full_attention=True).model.total_parameters > 0


@pytest.mark.parametrize(
    "raw", [b"", b"[1]", b"{", b"\xff", b"[" * 100_000, b'{"num_hidden_layers": ' + b"9" * 5000 + b"}"]
)
def test_a_file_that_is_no_config_is_one_sentence_and_exit_code_2(raw: bytes, tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(raw)
    with pytest.raises(SpecError):
        import_file(path)


def test_the_command_prints_the_file_and_remarks_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "Llama-405B_config.json"
    path.write_text(json.dumps(LLAMA))
    shown = CliRunner().invoke(app, ["import-hf", str(path)])
    assert shown.exit_code == 0
    assert "kind: model" in shown.stdout
    assert "405.85 B parameters; the name says 405 B" in shown.stderr
    written = CliRunner().invoke(app, ["import-hf", str(path), "--out", str(tmp_path / "m.yaml"), "--json"])
    assert json.loads(written.stdout)["model"] == load_model(tmp_path / "m.yaml").model_dump(exclude_none=True)
