"""Hugging Face config to model spec: a Model's widths, the checkpoint's number formats, and what is refused.

Fields are read by what they mean, not by the model's class: a list of known `model_type`s says whose fields are
understood, and every field that the equations cannot express (windows, sparse or linear attention, state spaces) is
refused by name.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from helix_sim.core.errors import SpecError
from helix_sim.specs.load import parse_json, read_bytes
from helix_sim.specs.model import MOST_LAYERS, Model, listed_runs
from helix_sim.specs.precision import Precision

Config = dict[str, Any]

TEXT_CONFIGS = ("text_config", "llm_config", "language_config")
"""Where a multimodal model keeps its decoder's config."""

MODEL_TYPES = (
    "llama", "mistral", "qwen2", "qwen3", "mixtral", "qwen3_moe", "deepseek_v2", "deepseek_v3", "kimi_k2", "gpt_oss",
    "llama4_text",
)  # fmt: skip
"""Decoders whose fields are understood: gated FFNs, RMSNorm, rotary embedding, GQA or MLA."""

UNMODELLED = {
    "index_topk": "sparse attention: a query reads only the tokens an indexer picks",
    "sparse_attention_config": "sparse attention: a query reads only part of the cache",
    "linear_num_value_heads": "linear attention: layers with a state instead of a KV cache",
    "linear_attn_config": "linear attention: layers with a state instead of a KV cache",
    "full_attention_interval": "linear attention in all but every n-th layer",
    "attn_type_list": "linear attention in some of the layers",
    "hybrid_override_pattern": "Mamba layers",
    "layers_block_type": "Mamba layers",
    "mamba_d_state": "Mamba layers",
    "mamba_num_heads": "Mamba layers",
    "attn_layer_period": "Mamba layers between attention layers",
    "ssm_cfg": "state-space layers",
    "state_size": "state-space layers",
    "num_kv_shared_layers": "layers that share another layer's KV cache",
    "cross_attention_layers": "cross-attention layers",
    "block_configs": "layers that differ from each other one by one",
}
"""Fields that mean something no equation here expresses, and what that is."""

WINDOWED = ("sliding_attention", "chunked_attention")
"""Layer types that attend to a part of the context, which can be read as full attention for an upper bound."""

DTYPES = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32"}

QUANT_ALGOS = {
    "NVFP4": ("nvfp4", "fp4"),
    "FP8": ("fp8", "fp8"),
    "FP8_PER_CHANNEL_PER_TOKEN": ("fp8", "fp8"),
    "FP8_BLOCK_SCALES": ("fp8-block", "fp8"),
    "FP8_PB_WO": ("fp8-block", "fp8"),
    "W4A16_AWQ": ("int4", "bf16"),
    "W4A8_AWQ": ("int4", "fp8"),
    "W8A16": ("int8", "bf16"),
    "W4A8_MXFP4_FP8": ("mxfp4", "fp8"),
}
"""TensorRT Model Optimizer's quant_algo: (weights, arithmetic)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Imported:
    """A model read from a config: the record, the text of its file, and what was found out on the way.

    named_B: billions of parameters that the publisher or, failing that, the name says (said_by tells which).
    precision: the checkpoint's number formats as a sweep's `precision` writes them, empty where they are not known.
    remarks: sentences on what was left out or read differently.
    """

    model: Model
    text: str
    named_B: float | None
    said_by: str
    precision: dict[str, str]
    remarks: list[str]

    @property
    def active_parameters(self) -> int:
        """Parameters a token passes through: the routed experts count top_k times instead of all."""
        counts, hidden = self.model.kind_counts, self.model.hidden_size
        idle = sum(
            counts["ffn", name] * ffn.parameters(hidden)["routed experts"] * (ffn.routed - ffn.top_k) // ffn.routed
            for name, ffn in self.model.routed_kinds.items()
        )
        return self.model.total_parameters - idle

    @property
    def counts(self) -> str:
        """One line: parameters counted, beside those in the name or published."""
        total, active = self.model.total_parameters / 1e9, self.active_parameters / 1e9
        text = f"{self.model.name}: {total:,.2f} B parameters" + (f", {active:,.2f} B active" if active < total else "")
        if self.named_B is None:
            return f"{text}; the name says no number to hold this against"
        counts_active = abs(active - self.named_B) < abs(total - self.named_B)
        counted = active if counts_active else total
        which = " (its active parameters)" if counts_active and active < total else ""
        return f"{text}; {self.said_by} {self.named_B:g} B{which}: {counted / self.named_B - 1:+.2%}"

    def record(self) -> dict[str, Any]:
        """All of it as plain data."""
        return {
            "model": self.model.model_dump(exclude_none=True),
            "parameters_B": self.model.total_parameters / 1e9,
            "active_parameters_B": self.active_parameters / 1e9,
            "named_B": self.named_B,
            "precision": self.precision,
            "remarks": self.remarks,
        }


# --- Files -----------------------------------------------------------------------------------------------------------


def import_file(
    path: Path,
    *,
    name: str | None = None,
    source: str | None = None,
    published_B: float | None = None,
    full_attention: bool = False,
) -> Imported:
    """A model from a config.json (or the folder that holds it), and from hf_quant_config.json beside it.

    full_attention: read sliding-window and chunked layers as full attention, an upper bound of their cache and time.
    """
    path = path / "config.json" if path.is_dir() else path
    config = read_json(path)
    beside = path.with_name(path.name.replace("config.json", "hf_quant_config.json"))
    quantisation = read_json(beside) if beside != path and beside.is_file() else None
    found = name or _name_of(config, path)
    return import_config(
        config,
        name=found,
        source=source or _source_of(config, path),
        quantisation=quantisation,
        published_B=published_B,
        full_attention=full_attention,
        shown=str(path),
    )


def read_json(path: Path) -> Config:
    """The mapping in a JSON file; SpecError with the place of the problem otherwise."""
    return parse_json(read_bytes(path, str(path)), str(path))


def _name_of(config: Config, path: Path) -> str:
    """The checkpoint's name: as the config says it, or from the file's, the hub cache's or the folder's name."""
    said = config.get("_name_or_path")
    if isinstance(said, str) and said.strip("/. "):
        return said.strip("/").split("/")[-1]
    cached = [part for part in path.parts if part.startswith("models--")]
    stem = re.sub(r"_?config$", "", path.stem)
    return (cached[-1] if cached else stem or path.absolute().parent.name or "model").split("--")[-1]


def _source_of(config: Config, path: Path) -> str:
    said = config.get("_name_or_path")
    if isinstance(said, str) and re.fullmatch(r"[\w.-]+/[\w.-]+", said):
        return f"https://huggingface.co/{said}/blob/main/config.json"
    return f"imported from {path.name}"


def number_in_name(name: str) -> float | None:
    """Billions of parameters that a name says; none where it says only active ones (A22B) or a product (8x7B).

    >>> number_in_name("Qwen3-235B-A22B"), number_in_name("gpt-oss-120b"), number_in_name("Mixtral-8x7B")
    (235.0, 120.0, None)
    """
    match = re.search(r"(?<![A-Za-z0-9.])(\d+(?:\.\d+)?)([bBmMtT])(?![A-Za-z0-9])", name)
    return float(match[1]) * {"b": 1.0, "m": 1e-3, "t": 1e3}[match[2].lower()] if match else None


# --- Config to model -------------------------------------------------------------------------------------------------


def import_config(
    config: Config,
    *,
    name: str,
    source: str,
    quantisation: Config | None = None,
    published_B: float | None = None,
    full_attention: bool = False,
    shown: str = "config",
) -> Imported:
    """A model from the contents of a config; SpecError with every field that is missing or cannot be modelled."""
    inner, prefix, remarks = _decoder_config(config)
    problems, read_as_full = _refusals(inner, prefix, full_attention)
    fields = _Fields(inner, prefix, problems)
    content = _content(fields, name, source) if not problems else {}
    if problems:
        raise SpecError([f"{shown}: {problem}" for problem in problems])
    named = published_B or number_in_name(name)
    said_by = "published are" if published_B else "the name says"
    try:
        model = Model.model_validate({**content, "published_parameters_B": 1.0})
    except ValidationError as error:
        raise SpecError([f"{shown}: {'.'.join(map(str, p['loc']))}: {p['msg']}" for p in error.errors()]) from None
    total = model.total_parameters / 1e9
    of_all = named is not None and (published_B is not None or abs(named / total - 1) < 0.15)
    model = model.model_copy(update={"published_parameters_B": named if of_all else round(total, 2)})
    precision, on_formats = checkpoint_precision({**config, **inner}, quantisation)
    remarks += read_as_full + _left_out(inner) + on_formats
    origin = "" if published_B else "as the name says" if of_all else "counted: neither the config nor the name says"
    return Imported(
        model=model,
        text=_text(model, precision, remarks, origin),
        named_B=named,
        said_by=said_by,
        precision=precision,
        remarks=remarks,
    )


def _decoder_config(config: Config) -> tuple[Config, str, list[str]]:
    """The decoder's own fields, the path to them, and a remark where there is more than a decoder."""
    for key in TEXT_CONFIGS:
        if isinstance(config.get(key), dict):
            tied = {"tie_word_embeddings": config["tie_word_embeddings"]} if "tie_word_embeddings" in config else {}
            return tied | config[key], f"{key}.", [f"only the decoder of {key} is read; encoders are left out"]
    return config, "", []


def _refusals(config: Config, prefix: str, full_attention: bool) -> tuple[list[str], list[str]]:
    """Sentences on fields that cannot be modelled, and on those read as full attention instead."""
    problems = [
        f"{prefix}{field} = {_short(config[field])}: {why}; it is not modelled"
        for field, why in UNMODELLED.items()
        if config.get(field)
    ]
    kinds = _layer_types(config)
    other = sorted(set(kinds) - {"full_attention", *WINDOWED})
    if other:
        problems.append(f"{prefix}layer_types has {', '.join(other)}: only full_attention is modelled")
    windows = _windows(config, kinds)
    if full_attention:
        read = [f"{prefix}{field}: {why}, read as full attention: an upper bound" for field, why in windows.items()]
        windows = {}
    else:
        read = []
    problems += [
        f"{prefix}{field} = {_short(config[field])}: {why}; it is not modelled (--full-attention reads such layers as "
        "full ones, an upper bound)"
        for field, why in windows.items()
    ]
    kind = config.get("model_type")
    if not problems and kind not in MODEL_TYPES:
        problems.append(f"{prefix}model_type = {_short(kind)} is not one of those understood: {', '.join(MODEL_TYPES)}")
    return problems, read


def _layer_types(config: Config) -> list[str]:
    kinds = config.get("layer_types")
    return [str(kind) for kind in kinds] if isinstance(kinds, list) else []


def _windows(config: Config, kinds: list[str]) -> dict[str, str]:
    """Fields by which layers attend to a part of the context only, and how."""
    found = {}
    part = sum(kind in WINDOWED for kind in kinds)
    if part:
        found["layer_types"] = f"{part} of {len(kinds)} layers attend to a window or a chunk"
    window = config.get("sliding_window") if config.get("use_sliding_window", True) else None
    if window and (not kinds or "sliding_attention" in kinds):
        found["sliding_window"] = f"attention over the last {window} tokens"
    if config.get("attention_chunk_size") and (not kinds or "chunked_attention" in kinds):
        found["attention_chunk_size"] = f"attention inside chunks of {config['attention_chunk_size']} tokens"
    return found


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 48 else f"{text[:45]}..."


class _Fields:
    """Whole numbers of a config by name; what is missing or no number is added to `problems`."""

    def __init__(self, config: Config, prefix: str, problems: list[str]) -> None:
        self.config, self.prefix, self.problems = config, prefix, problems

    def count(self, *names: str, default: int | None = None) -> int:
        """The first of several spellings of a field."""
        for name in names:
            value = self.config.get(name)
            if value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, int) or value < 0:
                self.problems.append(f"{self.prefix}{name} = {_short(value)} is not a whole number")
                return 1
            return value
        if default is None:
            self.problems.append(f"{self.prefix}{names[0]} is missing")
            return 1
        return default

    def layers(self, name: str) -> set[int] | None:
        """A list of layer numbers; None where the field is absent."""
        value = self.config.get(name)
        if value is None:
            return None
        if not isinstance(value, list) or not all(isinstance(v, int) and not isinstance(v, bool) for v in value):
            self.problems.append(f"{self.prefix}{name} = {_short(value)} is not a list of layer numbers")
            return set()
        return set(value)


def _content(f: _Fields, name: str, source: str) -> dict[str, Any]:
    """The spec's keys and values, but for the published parameter count."""
    moe = _moe_layers(f, f.count("num_hidden_layers"))
    attention = _attention(f)
    ffn: dict[str, Any] = {}
    if not all(moe):
        ffn["dense"] = {"kind": "dense", "intermediate_size": f.count("intermediate_size_mlp", "intermediate_size")}
    if any(moe):
        ffn["moe"] = {"kind": "routed", **_experts(f)}
    return {
        "kind": "model",
        "name": re.sub(r"[^a-z0-9.]+", "-", name.lower()).strip("-") or "model",
        "source": source,
        "hidden_size": f.count("hidden_size"),
        "vocab_size": f.count("vocab_size"),
        "tied_embeddings": bool(f.config.get("tie_word_embeddings")),
        "attention": {attention["kind"]: attention},
        "ffn": ffn,
        "layers": listed_runs([(attention["kind"], "moe" if routed else "dense") for routed in moe]),
    }


def _attention(f: _Fields) -> dict[str, Any]:
    heads = f.count("num_attention_heads")
    if f.config.get("kv_lora_rank"):
        if "q_lora_rank" in f.config and f.config["q_lora_rank"] is None:
            f.problems.append(f"{f.prefix}q_lora_rank is null: MLA without a query latent is not modelled")
        return {
            "kind": "mla",
            "q_heads": heads,
            "q_lora_rank": f.count("q_lora_rank", default=1),
            "kv_lora_rank": f.count("kv_lora_rank"),
            "rope_width": f.count("qk_rope_head_dim"),
            "nope_width": f.count("qk_nope_head_dim"),
            "output_width": f.count("v_head_dim"),
        }
    return {
        "kind": "gqa",
        "q_heads": heads,
        "kv_heads": f.count("num_key_value_heads", default=heads),
        "head_size": f.count("head_dim", default=f.count("hidden_size") // max(heads, 1)),
    }


def _moe_layers(f: _Fields, layers: int) -> list[bool]:
    """Which layers have experts: all but the first few, every n-th, or those listed; none without experts."""
    numbers = range(min(layers, MOST_LAYERS))
    if not f.count("n_routed_experts", "num_local_experts", "num_experts", default=0):
        return [False for _ in numbers]
    listed = f.layers("moe_layers")
    if listed is not None:
        return [i in listed for i in numbers]
    dense_first, every = f.count("first_k_dense_replace", default=0), f.count("moe_layer_freq", default=1)
    step = f.count("decoder_sparse_step", "interleave_moe_layer_step", default=1)
    dense = f.layers("mlp_only_layers") or set()
    return [
        i >= dense_first and i % max(every, 1) == 0 and (i + 1) % max(step, 1) == 0 and i not in dense for i in numbers
    ]


def _experts(f: _Fields) -> dict[str, Any]:
    width = f.count("moe_intermediate_size", "intermediate_size")
    # Llama 4 has one shared expert as wide as a routed one, and no field for it
    shared = f.count("n_shared_experts", default=1 if f.config.get("model_type") == "llama4_text" else 0)
    return {
        "routed": f.count("n_routed_experts", "num_local_experts", "num_experts"),
        "top_k": f.count("num_experts_per_tok", "experts_per_token"),
        "intermediate_size": width,
        "shared": shared,
        "shared_intermediate_size": width if shared else 0,
    }


def _left_out(config: Config) -> list[str]:
    """Remarks on what the record leaves out, too small or too far from decoding to matter."""
    remarks = []
    if config.get("num_nextn_predict_layers"):
        remarks.append(f"{config['num_nextn_predict_layers']} multi-token-prediction layer(s) are not counted")
    if config.get("attention_bias") or config.get("model_type") == "qwen2":
        remarks.append("biases of the attention projections are not counted")
    step = config.get("interleave_moe_layer_step")
    if isinstance(step, int) and step > 1:
        remarks.append(
            "dense and MoE layers alternate; the largest of several pipeline stages is charged as if MoE came first"
        )
    return remarks


def _text(model: Model, precision: dict[str, str], remarks: list[str], origin: str) -> str:
    """The spec file: what was found out as comments, then the record; `origin` says where its count is from."""
    content = model.model_dump(exclude_none=True, exclude_defaults=True) | {"kind": "model"}
    body = yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=120)
    lines = [f"# {remark}" for remark in remarks]
    if precision:
        formats = ", ".join(f"{key}: {value}" for key, value in precision.items())
        lines.append(f"# the checkpoint's formats, for a sweep or explain's options: precision: {{{formats}}}")
    if origin:
        body = re.sub(r"(?m)^(published_parameters_B: .*)$", rf"\1  # {origin}", body)
    return "\n".join([*lines, body])


# --- Number formats --------------------------------------------------------------------------------------------------


def checkpoint_precision(config: Config, quantisation: Config | None = None) -> tuple[dict[str, str], list[str]]:
    """The number formats a checkpoint is stored in, as a Precision's keys, and remarks on what they leave open.

    From quantization_config, else hf_quant_config.json, else the dtype. Empty where the scheme is not known.
    """
    scheme = _mapping(config.get("quantization_config")) or _mapping(_mapping(quantisation).get("quantization"))
    if not scheme:
        stored = DTYPES.get(str(config.get("torch_dtype") or config.get("dtype")))
        return ({"weights": stored, "kv": "bf16", "math": "bf16"}, []) if stored else ({}, [])
    formats = _scheme_formats(scheme)
    if formats is None:
        said = scheme.get("quant_algo") or scheme.get("quant_method")
        return {}, [f"quantisation {_short(said)} is not known here; choose the number formats yourself"]
    weights, math = formats
    precision = {"weights": weights, "kv": _kv_format(scheme), "math": math}
    lists = (scheme.get(key) for key in ("modules_to_not_convert", "exclude_modules", "ignore"))
    kept = [str(module) for modules in lists if isinstance(modules, list) for module in modules]
    attention = sorted({m.split("self_attn.")[-1] for m in kept if "self_attn" in m})
    if attention:
        precision |= {"attention_weights": "bf16", "projection_math": "bf16"}
    if any("lm_head" in module for module in kept) or scheme.get("quant_method") == "fp8":
        precision |= {"head_weights": "bf16", "head_math": "bf16"}
    Precision.model_validate(precision)
    partly = [module for module in attention if re.fullmatch(r"\w+_proj\w*", module)]
    if not partly:
        return precision, []
    return precision, [f"{', '.join(partly)} are kept in BF16; attention_weights makes that all attention weights"]


def _scheme_formats(scheme: Config) -> tuple[str, str] | None:
    """(weights, arithmetic) of a quantisation scheme; None where it is not known."""
    if "quant_algo" in scheme:
        return QUANT_ALGOS.get(str(scheme["quant_algo"]))
    method, bits = scheme.get("quant_method"), scheme.get("bits")
    if method == "fp8":
        return "fp8-block" if scheme.get("weight_block_size") else "fp8", "fp8"
    if method == "mxfp4":
        return "mxfp4", "bf16"
    if method in ("awq", "gptq") and bits in (4, 8):
        return f"int{bits}", "bf16"
    if method == "compressed-tensors":
        return _compressed(scheme)
    return None


def _compressed(scheme: Config) -> tuple[str, str] | None:
    """compressed-tensors: the first group's weights and input activations."""
    groups = _mapping(scheme.get("config_groups"))
    group = _mapping(next(iter(groups.values()), None))
    weights, inputs = _mapping(group.get("weights")), _mapping(group.get("input_activations"))
    blocks = "fp8-block" if weights.get("block_structure") else "fp8"
    kinds = {"float-8": blocks, "float-4": "nvfp4", "int-8": "int8", "int-4": "int4"}
    stored = kinds.get(f"{weights.get('type')}-{weights.get('num_bits')}")
    math = {"float-4": "fp4", "float-8": "fp8"}.get(f"{inputs.get('type')}-{inputs.get('num_bits')}", "bf16")
    return (stored, math) if stored else None


def _mapping(value: Any) -> Config:
    return value if isinstance(value, dict) else {}


def _kv_format(scheme: Config) -> str:
    """The KV cache's format: what the scheme quantises it to, else BF16."""
    algo = scheme.get("kv_cache_quant_algo")
    cached = scheme.get("kv_cache_scheme")
    if isinstance(cached, dict) and cached.get("num_bits") == 8:
        return "fp8"
    return {"FP8": "fp8", "NVFP4": "nvfp4", "INT8": "int8"}.get(str(algo), "bf16")
