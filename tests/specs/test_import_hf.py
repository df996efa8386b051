"""Hugging Face configs to model specs: counts against published ones, refusals by field, formats."""

from __future__ import annotations

import contextlib
import json
import re
from pathlib import Path
from typing import Any

import pytest
from hf_configs import (
    DEEPSEEK,
    DEEPSEEK_V2_LITE,
    ERNIE_300B,
    GLM_46,
    GPT_OSS,
    GRANITE_8B,
    HUNYUAN_A13B,
    KIMI,
    LLAMA,
    LLAMA_70B,
    MAVERICK,
    MINIMAX_M2,
    MIXTRAL,
    OLMO2_32B,
    PHI_3_MEDIUM,
    QWEN2_7B,
    QWEN3,
    QWEN3_MOE,
    SEED_OSS_36B,
)
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from helix_sim.cli import app
from helix_sim.core.errors import SpecError
from helix_sim.core.layout import Layout
from helix_sim.search.frame import decode_step
from helix_sim.specs.import_hf import import_config, import_file, number_in_name, parse_changes
from helix_sim.specs.load import load_machine, load_model
from helix_sim.specs.model import Model


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


def in_config(model: Model) -> Model:
    """A shipped model without what no config says: how far tokens repeat experts was measured."""
    ffn = {name: kind.model_copy(update={"repeated": None}) if kind.kind == "routed" else kind
           for name, kind in model.ffn.items()}  # fmt: skip
    return model.model_copy(update={"ffn": ffn})


@pytest.mark.parametrize(
    ("config", "shipped"), [pytest.param(LLAMA, "llama-3.1-405b"), pytest.param(DEEPSEEK, "deepseek-r1")]
)
def test_an_imported_model_equals_the_shipped_one(config: dict[str, Any], shipped: str) -> None:
    ours = in_config(load_model(shipped))
    found = read(config, name=shipped, published_B=ours.published_parameters_B).model
    left = {"formats", "max_position_embeddings"} & set(type(ours).model_fields)
    kept = {name: getattr(ours, name) for name in left} | {"source": ours.source}
    assert found.model_copy(update=kept) == ours


@pytest.mark.parametrize("config", [LLAMA, QWEN3_MOE, MIXTRAL, DEEPSEEK, GPT_OSS, MAVERICK])
def test_the_written_file_loads_as_the_model_that_was_read(config: dict[str, Any], tmp_path: Path) -> None:
    found = read(config, full_attention=True)
    path = tmp_path / "model.yaml"
    path.write_text(found.text, encoding="utf-8")
    assert load_model(path) == found.model


@pytest.mark.parametrize(
    ("config", "field"),
    [
        pytest.param(DEEPSEEK | {"index_topk": 2048}, "index_head_dim", id="an indexer without a width"),
        pytest.param(LLAMA | {"sparse_attention_config": {"a": 1}}, "sparse_attention_config", id="sparse"),
        pytest.param(GPT_OSS | {"swa_head_dim": 32}, "swa_head_dim", id="a window with heads of its own"),
        pytest.param(QWEN3 | {"layer_types": ["linear_attention"] * 64}, "linear_num_value_heads", id="linear"),
        pytest.param(QWEN3 | {"full_attention_interval": 4}, "linear_num_value_heads", id="mostly linear"),
        pytest.param(LLAMA | {"hybrid_override_pattern": "M-X*"}, 'block 2, "X"', id="an unknown block"),
        pytest.param(LLAMA | {"hybrid_override_pattern": "M--*"}, 'block 2, "mlp"', id="an FFN behind an FFN"),
        pytest.param(LLAMA | {"model_type": "bert"}, "model_type", id="no decoder"),
        pytest.param(LLAMA | {"head_dim": 192, "v_head_dim": 128}, "v_head_dim", id="narrower values"),
        pytest.param(LLAMA | {"use_cla": True}, "use_cla", id="shared caches"),
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
    with pytest.raises(SpecError, match="linear attention"):
        read(mixed, full_attention=True)


def test_windows_read_as_full_attention_are_remarked_upon() -> None:
    found = read(GPT_OSS, full_attention=True)
    assert any("18 of 36 layers" in remark and "upper bound" in remark for remark in found.remarks)
    assert "# layer_types = " in found.text


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
        ({"quant_method": "awq", "bits": 4}, {"weights": "int4-zero", "math": "bf16", "head_weights": "bf16"}),
        ({"quant_algo": "NVFP4", "kv_cache_quant_algo": "FP8"}, {"weights": "nvfp4", "kv": "fp8", "math": "fp4"}),
        (
            {
                "quant_method": "compressed-tensors",
                "config_groups": {
                    "group_0": {"weights": {"type": "int", "num_bits": 4, "group_size": 32}, "input_activations": None}
                },
                "kv_cache_scheme": {"num_bits": 8},
            },
            {"weights": "int4-g32", "kv": "fp8", "math": "bf16"},
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
    assert found.precision["head_weights"] == "bf16"
    assert found.named_B == 671
    assert any(remark.startswith("attention: ") and "bf16 beside nvfp4" in remark for remark in found.remarks)


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
    printed = type(load_model("llama-3.1-8b")).model_validate(json.loads(written.stdout)["imported"])
    assert printed == load_model(tmp_path / "m.yaml")


# --- Families by their fields ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "published_B"),
    [
        pytest.param(GLM_46, 352.8, id="glm-4.6 without its draft layer"),
        pytest.param(MINIMAX_M2, 228.7, id="minimax-m2"),
        pytest.param(DEEPSEEK_V2_LITE, 15.7, id="deepseek-v2-lite"),
        pytest.param(QWEN2_7B, 7.62, id="qwen2.5-7b"),
        pytest.param(SEED_OSS_36B, 36.15, id="seed-oss-36b"),
        pytest.param(ERNIE_300B, 300.0, id="ernie-4.5-300b"),
        pytest.param(PHI_3_MEDIUM, 13.96, id="phi-3-medium"),
        pytest.param(HUNYUAN_A13B, 80.4, id="hunyuan-a13b"),
        pytest.param(OLMO2_32B, 32.2, id="olmo-2-32b"),
        pytest.param(GRANITE_8B, 8.17, id="granite-3.3-8b"),
    ],
)
def test_a_family_is_read_by_its_fields(config: dict[str, Any], published_B: float) -> None:
    found = read(config)
    assert found.model.total_parameters / 1e9 == pytest.approx(published_B, rel=0.01)
    assert not any(remark.startswith(("not read", "model_type")) for remark in found.remarks)


def test_glm_4_6_caches_eight_heads_of_keys_and_values_in_each_layer() -> None:
    assert 2 * read(GLM_46).model.kv_values_per_token == 376_832


def test_an_unknown_family_with_known_fields_is_read_with_a_remark() -> None:
    found = read(LLAMA | {"model_type": "llama9"})
    assert found.model == read(LLAMA).model
    assert any("'llama9' is not one that was held against a published count" in remark for remark in found.remarks)


def test_a_field_about_layers_that_is_not_read_is_named() -> None:
    found = read(LLAMA | {"layer_share_factor": 2, "rope_theta": 1e6, "attention_dropout": 0.1})
    assert [remark for remark in found.remarks if "not read" in remark] == [
        "not read, and perhaps about layers: 'layer_share_factor'"
    ]


def test_a_field_can_be_set_to_another_value() -> None:
    found = read(LLAMA | {"sliding_window": 4096}, changes=parse_changes(["sliding_window=null", "vocab_size=1000"]))
    assert found.model.vocab_size == 1000
    assert "vocab_size is read as 1000, as --set says" in found.remarks
    with pytest.raises(SpecError, match="'vocab_size' is not FIELD=VALUE"):
        parse_changes(["vocab_size"])


@pytest.mark.parametrize(
    ("fields", "full"),
    [
        pytest.param({"sliding_window_pattern": 6}, 126 // 6, id="one of six"),
        pytest.param({"_sliding_window_pattern": 1}, 126, id="every one"),
        pytest.param({"sliding_window_pattern": "LLG"}, 126 // 3, id="local and global in letters"),
        pytest.param({"use_sliding_window": True, "max_window_layers": 100}, 100, id="the first hundred"),
        pytest.param({"use_sliding_window": True, "max_window_layers": 126}, 126, id="as many as there are"),
        pytest.param({"use_sliding_window": False}, 126, id="switched off"),
        pytest.param({"layer_types": ["full_attention"] * 126}, 126, id="by type"),
    ],
)
def test_layers_beside_windows_attend_to_everything(fields: dict[str, Any], full: int) -> None:
    counts = read(LLAMA | {"sliding_window": 4096} | fields).model.kind_counts
    assert counts["attention", "gqa"] == full
    assert counts["attention", "window"] == 126 - full


def test_a_hybrid_without_linear_layers_is_full_attention() -> None:
    for fields in ({"full_attention_interval": 1}, {"attn_type_list": [1] * 64},
                   {"linear_attn_config": {"full_attn_layers": list(range(1, 65))}}):  # fmt: skip
        linear = {name: value for name, value in DELTA.items() if name != "layer_types"}
        assert list(read(QWEN3 | linear | fields).model.attention) == ["gqa"]


def test_a_window_as_long_as_the_longest_context_is_none() -> None:
    assert read(LLAMA | {"sliding_window": 131072, "max_position_embeddings": 131072}).model.layer_count == 126
    shorter = read(LLAMA | {"sliding_window": 131071, "max_position_embeddings": 131072}).model
    assert shorter.attention["window"].window_tokens == 131071


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        pytest.param({"layer_types": ["linear_attention", "full_attention"] * 63, "full_attention_interval": 2,
                      "attn_type_list": [0] * 126}, "linear attention", id="linear"),
        pytest.param({"mamba_num_heads": 4, "ssm_cfg": {"n": 1}}, "Mamba", id="mamba"),
        pytest.param({"index_topk": 64, "index_n_heads": 1, "index_head_dim": 128, "indexer_types": ["full", "odd"]},
                     "sparse attention", id="sparse"),
    ],
)  # fmt: skip
def test_a_kind_of_attention_is_refused_once_and_by_its_name(fields: dict[str, Any], named: str) -> None:
    with pytest.raises(SpecError) as refused:
        read(LLAMA | fields)
    assert len(refused.value.problems) == 1
    assert named in refused.value.problems[0]


SPARSE = DEEPSEEK | {"index_topk": 2048, "index_n_heads": 64, "index_head_dim": 128}
DELTA = {
    "layer_types": (["linear_attention"] * 3 + ["full_attention"]) * 16,
    "linear_num_key_heads": 16,
    "linear_num_value_heads": 48,
    "linear_key_head_dim": 128,
    "linear_value_head_dim": 128,
    "linear_conv_kernel_dim": 4,
    "attn_output_gate": True,
}


@pytest.mark.parametrize(
    ("config", "shipped", "kinds"),
    [
        pytest.param(GPT_OSS, "gpt-oss-120b", {"window": 18, "gqa": 18}, id="windows"),
        pytest.param(MAVERICK, "llama-4-maverick", {"chunked": 36, "gqa": 12}, id="chunks"),
        pytest.param(SPARSE, "deepseek-v3.2", {"sparse": 61}, id="sparse"),
    ],
)
def test_a_kind_of_attention_is_read_as_the_shipped_model_has_it(
    config: dict[str, Any], shipped: str, kinds: dict[str, int]
) -> None:
    ours, found = load_model(shipped), read(config).model
    assert {name: found.kind_counts["attention", name] for name in found.attention} == kinds
    assert sorted(map(str, found.attention.values())) == sorted(map(str, ours.attention.values()))
    assert found.total_parameters == ours.total_parameters


def test_delta_nets_are_read_with_their_gates() -> None:
    model = read(QWEN3 | DELTA).model
    assert model.kind_counts["attention", "linear"] == 48
    assert model.attention["linear"].head_gates == 2
    assert model.attention["gqa"].output_gate


# --- Number formats, tensor by tensor --------------------------------------------------------------------------------

NVFP4_GROUP = {
    "weights": {"type": "float", "num_bits": 4, "group_size": 16},
    "input_activations": {"type": "float", "num_bits": 4, "group_size": 16},
    "targets": ["Linear"],
}
FP8_GROUP = {
    "weights": {"type": "float", "num_bits": 8, "strategy": "channel"},
    "input_activations": {"type": "float", "num_bits": 8},
    "targets": ["re:.*self_attn.*"],
}
COMPRESSED = {"quant_method": "compressed-tensors", "ignore": ["lm_head"]}
"""compressed-tensors, groups to be added."""


def weights(config: dict[str, Any], scheme: dict[str, Any]) -> dict[str, str]:
    """The stored format of each tensor of a checkpoint."""
    found = read(config | {"quantization_config": scheme}).model
    (formats,) = found.formats.values()
    tensors = ("attention", "output", "router", "routed", "shared", "dense", "head", "embedding")
    return {tensor: formats.format_of(f"{tensor}_weights") for tensor in tensors}


@pytest.mark.parametrize(
    ("scheme", "bf16", "quantised"),
    [
        pytest.param({"quant_method": "fp8", "weight_block_size": [128, 128]}, set(), "fp8-block", id="fp8 blocks"),
        pytest.param({"quant_algo": "NVFP4", "ignore": ["lm_head", "model.layers.*.self_attn*"]},
                     {"attention", "output"}, "nvfp4", id="a pattern keeps attention"),
        pytest.param({"quant_algo": "NVFP4",
                      "exclude_modules": [f"model.layers.{i}.mlp.shared_experts*" for i in range(61)]},
                     {"shared"}, "nvfp4", id="names keep the shared experts"),
        pytest.param({"quant_algo": "NVFP4", "exclude_modules": [f"model.layers.{i}.mlp.{p}_proj" for i in range(3)
                                                                 for p in ("gate", "up", "down")]},
                     {"dense"}, "nvfp4", id="names keep the dense layers"),
        pytest.param({"quant_algo": "NVFP4",
                      "ignore": [f"language_model.model.layers.{i}.self_attn.{p}" for i in range(61)
                                 for p in ("q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj")]},
                     {"attention"}, "nvfp4", id="all but the output projection"),
        pytest.param(COMPRESSED | {"config_groups": {"g": NVFP4_GROUP}, "ignore": ["lm_head", "re:.*self_attn.*",
                                   "re:.*shared_experts.*", "re:.*mlp\\.(gate|up|gate_up|down)_proj.*"]},
                     {"attention", "output", "shared", "dense"}, "nvfp4", id="expressions"),
        pytest.param({"quant_method": "mxfp4", "modules_to_not_convert": ["model.layers.*.self_attn", "lm_head"]},
                     {"attention", "output", "shared", "dense"}, "mxfp4", id="experts alone"),
        pytest.param({"quant_algo": "MIXED_PRECISION", "quantized_layers": {f"model.layers.{i}.mlp.experts": {
                      "quant_algo": "NVFP4", "group_size": 16} for i in range(61)}},
                     {"attention", "output", "shared", "dense"}, "nvfp4", id="layer by layer"),
        pytest.param({"quant_method": "gptq", "bits": 4, "group_size": 32, "sym": True}, set(),
                     "int4-g32-zero", id="gptq"),
        pytest.param({"quant_method": "awq", "w_bit": 4, "q_group_size": 64, "zero_point": True}, set(),
                     "int4-g64-zero", id="awq, its older words"),
        pytest.param({"quant_method": "gptq", "bits": 4, "group_size": 128, "dynamic": {"-:.*self_attn.*": {}}},
                     {"attention", "output"}, "int4-zero", id="gptq keeps attention by an expression"),
        pytest.param({"quant_method": "intel/auto-round", "bits": 4, "group_size": 128, "extra_config": {
                      f"model.layers.{i}.mlp.shared_experts.{p}_proj": {"bits": 16} for i in range(61)
                      for p in ("gate", "up", "down")}},
                     {"shared"}, "int4-zero", id="auto-round keeps shared experts by name"),
        pytest.param({"quant_method": "auto-round", "bits": 4, "group_size": 32, "data_type": "mx_fp", "act_bits": 4},
                     set(), "mxfp4", id="auto-round in mxfp4"),
        pytest.param({"quant_method": "fp8", "modules_to_not_convert": ["re:.*shared_mlp.*"]}, {"shared"}, "fp8",
                     id="shared experts by another family's name"),
        pytest.param({"quant_method": "quark", "global_quant_config": {"weight": {"dtype": "fp4", "group_size": 32},
                      "input_tensors": {"dtype": "fp4"}}, "exclude": ["lm_head", "re:.*self_attn.*"]},
                     {"attention", "output"}, "mxfp4", id="quark"),
    ],
)  # fmt: skip
def test_each_tensor_has_the_format_that_the_scheme_gives_it(
    scheme: dict[str, Any], bf16: set[str], quantised: str
) -> None:
    plain = bf16 | {"head", "embedding", "router"}
    found = weights(DEEPSEEK, scheme)
    assert found == {tensor: "bf16" if tensor in plain else quantised for tensor in found}


def test_groups_of_a_scheme_go_to_their_targets() -> None:
    found = weights(LLAMA_70B, COMPRESSED | {"config_groups": {"a": FP8_GROUP, "b": NVFP4_GROUP}})
    assert (found["attention"], found["output"], found["dense"], found["head"]) == ("fp8", "fp8", "nvfp4", "bf16")
    named = FP8_GROUP | {"targets": [f"model.layers.{i}.self_attn.{p}_proj" for i in range(80) for p in "qkvo"]}
    found = weights(LLAMA_70B, COMPRESSED | {"config_groups": {"a": named, "b": NVFP4_GROUP}})
    assert (found["attention"], found["output"], found["dense"]) == ("fp8", "fp8", "nvfp4")


def test_modules_of_a_scheme_may_have_bits_of_their_own() -> None:
    scheme = {"quant_method": "gptq", "bits": 4, "group_size": 128, "dynamic": {"+:.*o_proj": {"bits": 8}}}
    assert weights(LLAMA_70B, scheme)["output"] == "int8-g128-zero"
    assert weights(LLAMA_70B, scheme)["attention"] == "int4-zero"
    named = {"*down_proj": {"weight": {"dtype": "fp8_e4m3"}}, "*up_proj": {"weight": {"dtype": "fp8_e4m3"}}}
    scheme = {"quant_method": "quark", "global_quant_config": {"weight": {"dtype": "fp4", "group_size": 32}}}
    found = weights(LLAMA_70B, scheme | {"layer_quant_config": named})
    assert (found["dense"], found["attention"]) == ("fp8", "mxfp4")


def test_bits_without_a_format_are_said_to_be_in_the_way() -> None:
    found = read(LLAMA | {"quantization_config": {"quant_method": "gptq", "bits": 3, "group_size": 128}})
    assert 'quantisation "gptq" of 3 bits is not known here; choose the number formats yourself' in found.remarks


def test_where_layers_differ_the_format_of_most_is_taken_and_the_rest_remarked_upon() -> None:
    kept = [f"model.layers.{i}.mlp.*" for i in range(8)]
    found = read(LLAMA_70B | {"quantization_config": {"quant_algo": "FP8", "ignore": [*kept, "lm_head"]}})
    assert found.precision["weights"] == "fp8"
    assert "dense: 10.0% bf16 beside fp8, which is taken for all of it" in found.remarks


def test_a_name_without_layers_is_a_part_of_modules_and_not_of_words() -> None:
    scheme = {"quant_method": "fp8", "modules_to_not_convert": ["gate", "e_score_correction_bias", "lm_head"]}
    assert weights(MINIMAX_M2, scheme)["routed"] == "fp8"
    assert weights(MINIMAX_M2, scheme | {"modules_to_not_convert": ["model.layers.1"]})["attention"] == "fp8"


@pytest.mark.parametrize(
    ("scheme", "kv"),
    [
        ({"kv_cache_scheme": "FP8"}, "fp8"),
        ({"kv_cache_scheme": {"num_bits": 8, "type": "float", "dynamic": False}}, "fp8"),
        ({"kv_cache_scheme": {"num_bits": 4, "type": "float"}}, "nvfp4"),
        ({"kv_cache_quant_algo": "NVFP4"}, "nvfp4"),
        ({"kv_cache_quant_algo": "INT8"}, "int8"),
        ({"kv_cache_dtype": "e5m2"}, "fp8"),
        ({"layer_quant_config": {"*k_proj": {"output_tensors": {"dtype": "fp8_e4m3"}}}}, "fp8"),
        ({"kv_cache_quant_config": {"*": {"output_tensors": {"dtype": "int8"}}}}, "int8"),
        ({"kv_cache_quant_algo": None, "kv_cache_scheme": None}, "bf16"),
    ],
)
def test_a_kv_scheme_is_read_as_text_and_as_a_mapping(scheme: dict[str, Any], kv: str) -> None:
    assert read(QWEN3 | {"quantization_config": {"quant_algo": "FP8"} | scheme}).precision["kv"] == kv


def test_an_unknown_kv_scheme_is_remarked_upon() -> None:
    found = read(QWEN3 | {"quantization_config": {"quant_algo": "FP8", "kv_cache_scheme": "TURBO3"}})
    assert any("kv_cache_scheme" in remark and "TURBO3" in remark for remark in found.remarks)


def test_a_quantiser_that_names_every_expert_of_every_layer_is_read(tmp_path: Path) -> None:
    layers = {
        f"model.layers.{i}.mlp.experts.{e}.{p}_proj": {"quant_algo": "NVFP4", "group_size": 16}
        for i in range(94)
        for e in range(128)
        for p in ("gate", "up", "down")
    }
    content = {
        "quantization": {"quant_algo": "MIXED_PRECISION", "kv_cache_quant_algo": "FP8", "quantized_layers": layers}
    }
    (tmp_path / "hf_quant_config.json").write_text(json.dumps(content))
    (tmp_path / "config.json").write_text(json.dumps(QWEN3_MOE))
    assert (tmp_path / "hf_quant_config.json").stat().st_size > 3e6
    found = import_file(tmp_path, name="qwen3-235b")
    assert (found.precision["weights"], found.precision["attention_weights"]) == ("nvfp4", "bf16")


def test_an_expression_that_could_run_away_matches_nothing() -> None:
    scheme = COMPRESSED | {
        "config_groups": {"g": NVFP4_GROUP},
        "ignore": ["re:(a+)+$", "re:.*.*.*.*.*.*x", "re:(", "lm_head"],
    }
    assert weights(LLAMA_70B, scheme)["attention"] == "nvfp4"


def test_shared_experts_that_are_kept_take_3_8_gb_more() -> None:
    scheme = {"quant_algo": "NVFP4", "ignore": ["lm_head", "model.layers.*.self_attn*"]}
    kept = [f"model.layers.{i}.mlp.shared_experts*" for i in range(1, 61)]
    stored = [
        read(KIMI | {"quantization_config": scheme | {"ignore": scheme["ignore"] + more}}).stored_bytes
        for more in ([], kept)
    ]
    assert stored[1] - stored[0] == pytest.approx(3.8e9, rel=0.01)


def test_gpt_oss_takes_65_gb_and_73_728_bytes_of_cache_a_token() -> None:
    model = read(GPT_OSS, full_attention=True).model
    step = decode_step(model, load_machine("b200-hgx"), Layout(), 78_384)
    assert float(step.memory.weights) == pytest.approx(65.249e9, rel=0.003)
    assert float(step.memory.kv_cache) == 73_728 * 78_384


# --- Real configs ----------------------------------------------------------------------------------------------------

OTHER_ATTENTION = re.compile(
    "linear attention|Mamba|sparse attention|compressed attention|a window|inside chunks|hyper-connections|one by one"
    "|of this form|keys that are values|residuals that attend|gate on each head|num_hidden_layers|v_head_dim"
)


def test_every_plain_config_of_the_public_package_is_read_and_the_others_are_refused_by_their_kind() -> None:
    package = pytest.importorskip("aiconfigurator_core", reason="the configs are the package's")
    folder = Path(package.__file__).parent / "model_configs"
    paths = [path for path in sorted(folder.glob("*_config.json")) if "hf_quant" not in path.name]
    read_ones: list[str] = []
    refused: list[str] = []
    for path in paths:
        try:
            read_ones += [path.name] if import_file(path).precision else []
        except SpecError as error:
            refused.append(error.problems[0])
    assert [sentence for sentence in refused if not OTHER_ATTENTION.search(sentence)] == []
    assert (len(paths), len(read_ones) + len(refused)) == (89, 89)
    plain = ("MiniMax-M2", "Qwen3-", "DeepSeek-R1", "DeepSeek-V3_", "DeepSeek-V3.1", "Meta-Llama", "Mixtral", "Kimi-K2",
             "MiMo-7B", "Llama-3.1")  # fmt: skip
    expected = [path.name for path in paths if path.name.split("--")[1].startswith(plain)]
    assert set(expected) <= set(read_ones)
    assert len(expected) == 38
    assert len(read_ones) == 87
    assert [sentence.partition(": ")[2] for sentence in refused] == [
        "v_head_dim = 128: values of another width than keys are not modelled",
        "block_configs = "
        '[{"attention": {"n_heads_in_group": 8, "no_op...: layers that differ from each other one by one; '
        "it is not modelled",
    ]


@pytest.mark.parametrize(
    ("config", "published_B"),
    [
        ("deepseek-ai--DeepSeek-V4-Flash", 284),
        ("MiniMaxAI--MiniMax-M3", 428),
        ("moonshotai--Kimi-K3", 2800),
        ("zai-org--GLM-5.2", 744),
        ("nvidia--NVIDIA-Nemotron-3-Nano-30B-A3B-BF16", 31.6),
        ("nvidia--NVIDIA-Nemotron-3-Super-120B-A12B-FP8", 120.6),
        ("nvidia--NVIDIA-Nemotron-3-Ultra-550B-A55B-BF16", 550),
        ("nvidia--Nemotron-H-56B-Base-8K", 56),
        ("nvidia--Gemma-4-31B-IT-NVFP4", 30.7),
        ("google--gemma-4-26B-A4B", 25.2),
    ],
)
def test_hybrids_and_sparse_models_have_the_parameters_that_their_publishers_count(
    config: str, published_B: float
) -> None:
    package = pytest.importorskip("aiconfigurator_core", reason="the configs are the package's")
    read_one = import_file(Path(package.__file__).parent / "model_configs" / f"{config}_config.json")
    assert read_one.model.total_parameters / 1e9 == pytest.approx(published_B, rel=0.01)


@pytest.mark.parametrize(
    ("config", "shipped"),
    [
        ("deepseek-ai--DeepSeek-V3.2", "deepseek-v3.2"),
        ("deepseek-ai--DeepSeek-V4-Flash", "deepseek-v4-flash"),
        ("MiniMaxAI--MiniMax-M3", "minimax-m3"),
        ("moonshotai--Kimi-K3", "kimi-k3"),
        ("nvidia--Nemotron-H-56B-Base-8K", "nemotron-h"),
        ("openai--gpt-oss-120b", "gpt-oss-120b"),
    ],
)
def test_a_read_config_is_the_shipped_model_but_for_its_names(config: str, shipped: str) -> None:
    package = pytest.importorskip("aiconfigurator_core", reason="the configs are the package's")
    read_one = import_file(Path(package.__file__).parent / "model_configs" / f"{config}_config.json").model
    ours = in_config(load_model(shipped))
    kinds = [[(model.attention[a], model.ffn[f]) for a, f in model.layer_list] for model in (read_one, ours)]
    assert kinds[0] == kinds[1]
    assert (read_one.hidden_size, read_one.vocab_size) == (ours.hidden_size, ours.vocab_size)


def test_a_layer_that_shares_picks_has_no_index_keys_and_no_indexer_but_reads_as_few_tokens() -> None:
    package = pytest.importorskip("aiconfigurator_core", reason="the configs are the package's")
    model = import_file(Path(package.__file__).parent / "model_configs" / "zai-org--GLM-5.2_config.json").model
    own, shared = model.attention["sparse"], model.attention["sparse-shared"]
    step = decode_step(model, load_machine("gb300-nvl72"), Layout(batch=4, tpa=8, tpf=8), 100_000)
    names = {op.partition("[")[0] for op in step.ops if op.endswith("[sparse-shared]")}
    assert "attention_core" in names
    assert not any(name.startswith("index_") for name in names)
    cores = [step.ops[f"attention_core[{name}]"] for name in ("sparse", "sparse-shared")]
    assert float(cores[0].kv_bytes) == float(cores[1].kv_bytes)
    index_parameters = 2048 * 32 * 128 + 6144 * (128 + 32)
    assert own.parameters(6144) - shared.parameters(6144) == index_parameters
    assert (own.kv_values_per_token, shared.kv_values_per_token) == (576 + 128, 576)


GEMMA_3 = {
    "model_type": "gemma3_text", "hidden_size": 5376, "num_hidden_layers": 62, "num_attention_heads": 32,
    "num_key_value_heads": 16, "head_dim": 128, "intermediate_size": 21504, "vocab_size": 262208,
    "sliding_window": 1024, "max_position_embeddings": 131072, "hidden_activation": "gelu_pytorch_tanh",
}  # fmt: skip


def test_what_a_type_takes_for_granted_is_read_as_it_is():
    # the released config says neither a pattern nor tied embeddings: all layers were windows, and 5 % too many weights
    model = import_config(GEMMA_3, name="gemma-3-27b", source="a test", published_B=27.0).model
    windows = sum(count for (half, name), count in model.kind_counts.items()
                  if half == "attention" and model.attention[name].kind == "window")  # fmt: skip
    assert windows == 52
    assert model.layer_count - windows == 10
    assert model.total_parameters == pytest.approx(27.0e9, rel=0.01)


@pytest.mark.parametrize("field", ["zero_expert_num", "parallel_attn_mlp_res", "share_q_dim"])
def test_what_stands_beside_a_layer_is_refused_by_its_name(field):
    with pytest.raises(SpecError, match=f"{field} = .*; it is not modelled"):
        import_config(GEMMA_3 | {field: 8}, name="x", source="a test", published_B=27.0)
