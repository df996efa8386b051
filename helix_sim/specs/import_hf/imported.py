"""A model from a config.json: its files read, its fields made a Model, and what was found out on the way."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from helix_sim.core.display import Short
from helix_sim.core.errors import SpecError
from helix_sim.core.text import said
from helix_sim.specs.import_hf.fields import Config, Fields, decoder_config, short
from helix_sim.specs.import_hf.kinds import attention_of_layers, blocks, ffn_of_layers, layers_of_blocks, refusals
from helix_sim.specs.import_hf.quantisation import checkpoint_formats, modules
from helix_sim.specs.load import parse_json, read_bytes
from helix_sim.specs.model import Model, listed_runs
from helix_sim.specs.precision import StoredFormats

KNOWN_TYPES = (
    "llama", "mistral", "mistral3", "ministral3", "qwen2", "qwen2_moe", "qwen2_vl_text", "qwen2_5_vl_text", "qwen3",
    "qwen3_moe", "qwen3_vl_text", "qwen3_vl_moe_text", "mixtral", "deepseek_v2", "deepseek_v3", "kimi_k2", "gpt_oss",
    "llama4_text", "glm", "glm4", "glm4_moe", "minimax_m2", "mimo", "phi3", "phimoe", "olmo", "olmo2", "olmo3", "olmoe",
    "granite", "granitemoe", "granitemoeshared", "seed_oss", "ernie4_5", "ernie4_5_moe", "hunyuan_v1_dense",
    "hunyuan_v1_moe", "smollm3", "exaone4", "dots1", "internlm2", "internlm3", "cohere", "cohere2",
    "minimax_m3", "deepseek_v4", "kimi_linear", "nemotron_h", "gemma4_text",
    "qwen3_next", "qwen3_5_text", "qwen3_5_moe_text", "deepseek_v32", "glm_moe_dsa",
)  # fmt: skip
"""Types of decoders whose fields mean what they are read as: gated FFNs, RMSNorm, rotary embedding."""

TIED_TYPES = ("cohere", "cohere2", "gemma", "gemma2", "gemma3", "gemma3_text", "gemma4_text")
"""Types whose head is the embedding where a config does not say, as Transformers takes them to be."""

NO_DECODERS = ("bert", "roberta", "xlm-roberta", "t5", "mt5", "whisper", "clip", "siglip", "vit", "bart")
"""Types of models that do not decode, or not alone."""

MOST_CONFIG_BYTES = 2**24
"""Of a config: those of mixed precision name every module, in some three million bytes."""


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Imported(Short):
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

    @property
    def stored_bytes(self) -> float | None:
        """Bytes of the weights as the checkpoint stores them, scales included; None where its formats are not known."""
        if not self.model.formats:
            return None
        return stored_bytes(self.model, next(iter(self.model.formats.values())))

    def record(self) -> dict[str, Any]:
        """All of it as plain data."""
        return {
            "imported": self.model.model_dump(exclude_none=True, exclude_unset=True),
            "parameters_B": self.model.total_parameters / 1e9,
            "active_parameters_B": self.active_parameters / 1e9,
            "named_B": self.named_B,
            "precision": self.precision,
            "stored_bytes": self.stored_bytes,
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
    changes: Mapping[str, Any] | None = None,
) -> Imported:
    """A model from a config.json (or the folder that holds it), and from hf_quant_config.json beside it.

    full_attention: read sliding-window and chunked layers as full attention, an upper bound of their cache and time.
    changes: fields of the decoder's config that are read with another value than it has.
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
        changes=changes,
        shown=str(path),
    )


def read_json(path: Path) -> Config:
    """The mapping in a JSON file; SpecError with the place of the problem otherwise."""
    return parse_json(read_bytes(path, str(path), MOST_CONFIG_BYTES), str(path))


def parse_changes(texts: Iterable[str]) -> dict[str, Any]:
    """Fields and values of texts such as `sliding_window=null`: a value is JSON, or else text.

    >>> parse_changes(["sliding_window=null", "hidden_act=silu"])
    {'sliding_window': None, 'hidden_act': 'silu'}
    """
    changes: dict[str, Any] = {}
    for text in texts:
        field, sign, value = text.partition("=")
        if not sign or not field.strip():
            raise SpecError([f"--set: {said(text)} is not FIELD=VALUE, such as sliding_window=null"])
        try:
            changes[field.strip()] = parse_json(f'{{"value": {value}}}'.encode(), "--set")["value"]
        except SpecError:
            changes[field.strip()] = value
    return changes


def _name_of(config: Config, path: Path) -> str:
    """The checkpoint's name: as the config says it, or from the file's, the hub cache's or the folder's name."""
    written = config.get("_name_or_path")
    if isinstance(written, str) and written.strip("/. "):
        return written.strip("/").split("/")[-1]
    cached = [part for part in path.parts if part.startswith("models--")]
    stem = re.sub(r"_?config$", "", path.stem)
    return (cached[-1] if cached else stem or path.absolute().parent.name or "model").split("--")[-1]


def _source_of(config: Config, path: Path) -> str:
    written = config.get("_name_or_path")
    if isinstance(written, str) and re.fullmatch(r"[\w.-]+/[\w.-]+", written):
        return f"https://huggingface.co/{written}/blob/main/config.json"
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
    changes: Mapping[str, Any] | None = None,
    shown: str = "config",
) -> Imported:
    """A model from the contents of a config; SpecError with every field that is missing or cannot be modelled."""
    inner, prefix, remarks = decoder_config(config)
    inner = inner | dict(changes or {})
    remarks += [f"{prefix}{field} is read as {short(value)}, as --set says" for field, value in (changes or {}).items()]
    problems: list[str] = []
    fields = Fields(inner, prefix, problems)
    content, read_as_full = _content(fields, name, source, full_attention)
    if problems:
        raise SpecError([f"{shown}: {problem}" for problem in dict.fromkeys(problems)])
    named = published_B or number_in_name(name)
    said_by = "published are" if published_B else "the name says"
    try:
        model = Model.model_validate({**content, "published_parameters_B": 1.0})
    except ValidationError as error:
        raise SpecError([f"{shown}: {'.'.join(map(str, p['loc']))}: {p['msg']}" for p in error.errors()]) from None
    total = model.total_parameters / 1e9
    of_all = named is not None and (published_B is not None or abs(named / total - 1) < 0.15)
    stored = checkpoint_formats(inner, quantisation, model)
    update: dict[str, Any] = {"published_parameters_B": named if of_all else round(total, 2)}
    if stored.formats:
        update["formats"] = {
            stored.formats["weights"].partition("-")[0]: StoredFormats.model_validate(
                stored.formats | {"source": source}
            )
        }
    model = model.model_copy(update=update)
    remarks += read_as_full + _left_out(inner) + _unknown(fields) + stored.remarks
    origin = "" if published_B else "as the name says" if of_all else "counted: neither the config nor the name says"
    return Imported(
        model=model,
        text=_text(model, remarks, origin),
        named_B=named,
        said_by=said_by,
        precision=stored.formats,
        remarks=remarks,
    )


def stored_bytes(model: Model, formats: StoredFormats) -> float:
    """Bytes of a model's weights in a checkpoint's formats: products and embedding as they say, norms in BF16."""
    tensors = {"attention": "attention_weights", "output": "output_weights", "embedding": "embedding_weights"}
    counts: dict[str, int] = {}
    for tensor, _, parameters in modules(model):
        counts[tensor] = counts.get(tensor, 0) + parameters
    exact = model.parameters()
    for tensor, group in (("routed", "routed experts"), ("shared", "shared experts"), ("dense", "dense FFN")):
        if tensor in counts:
            counts[tensor] = exact[group]
    named = sum(count * formats.bytes_of(tensors.get(tensor, f"{tensor}_weights")) for tensor, count in counts.items())
    return named + 2 * max(model.total_parameters - sum(counts.values()), 0)


def _content(f: Fields, name: str, source: str, full_attention: bool) -> tuple[dict[str, Any], list[str]]:
    """The spec's keys and values, but for the published count and formats, and remarks on layers read as full ones."""
    kind = f.config.get("model_type")
    if kind in NO_DECODERS:
        f.problems.append(f"{f.prefix}model_type = {short(kind)}: no decoder, and only decoders are modelled")
    f.problems += refusals(f)
    if blocks(f.config):
        attention, ffn, runs = layers_of_blocks(f)
        remarks = ["each block of the config is a mixer or an FFN: a mixer and the FFN behind it are one layer here"]
    else:
        layers = f.count("num_hidden_layers", "num_layers", "n_layer")
        attention, names, remarks = attention_of_layers(f, layers, full_attention)
        if f.problems:
            return {}, remarks
        ffn, ffn_names = ffn_of_layers(f, layers)
        runs = listed_runs(list(zip(names, ffn_names, strict=True)))
    if f.problems:
        return {}, remarks
    f.read.update(("model_type", "tie_word_embeddings", "max_position_embeddings", *LEFT_OUT))
    longest = f.config.get("max_position_embeddings")
    positions = isinstance(longest, int) and not isinstance(longest, bool) and longest > 0
    content = {
        "kind": "model",
        "name": re.sub(r"[^a-z0-9.]+", "-", name.lower()).strip("-") or "model",
        "source": source,
        "hidden_size": f.count("hidden_size", "n_embd"),
        "vocab_size": f.count("vocab_size", "padded_vocab_size"),
        "tied_embeddings": bool(f.config.get("tie_word_embeddings", f.config.get("model_type") in TIED_TYPES)),
        "attention": attention,
        "ffn": ffn,
        "layers": runs,
    }
    if positions and "max_position_embeddings" in Model.model_fields:
        content["max_position_embeddings"] = longest
    return content, remarks


LEFT_OUT = {
    "hc_mult": "hyper-connections (several residual streams) are left out",
    "num_hash_layers": "the routing of the first layers by hash is read as that of all others",
    "attn_res_block_size": "attention over earlier layers' residuals is left out",
    "attention_k_eq_v": "keys of full attention are values as well: a projection is counted that is not there",
}
"""Fields of what a decode step takes little for, and the remark on each."""


def _left_out(config: Config) -> list[str]:
    """Remarks on what the record leaves out, too small or too far from decoding to matter."""
    remarks = []
    drafts = ("num_nextn_predict_layers", "num_mtp_modules", "mtp_num_hidden_layers")
    if draft := next((config[name] for name in drafts if config.get(name)), None):
        remarks.append(f"{short(draft)} multi-token-prediction layer(s) are not counted")
    remarks += [f"{sentence} ({field})" for field, sentence in LEFT_OUT.items() if config.get(field)]
    if config.get("attention_bias") or config.get("qkv_bias") or str(config.get("model_type")).startswith("qwen2"):
        remarks.append("biases of the attention projections are not counted")
    if config.get("mlp_bias") or config.get("use_bias"):
        remarks.append("biases of the feed-forward network are not counted")
    step = config.get("interleave_moe_layer_step")
    if isinstance(step, int) and step > 1:
        remarks.append(
            "dense and MoE layers alternate; the largest of several pipeline stages is charged as if MoE came first"
        )
    kind = config.get("model_type")
    if kind not in KNOWN_TYPES:
        remarks.append(
            f"model_type {said(kind)} is not one that was held against a published count: its fields are read by their "
            "names, so hold the count above against its publisher's"
        )
    return remarks


WIDTHS = re.compile(r"(head|layer|expert|rank|attn|attention|window|conv|ssm|gate|proj|mlp|ffn|hidden|kv|share|width)")
"""What a field is about that may change a layer."""

HARMLESS = re.compile(
    r"(bias|dropout|_act$|hidden_act|initializer|rms_norm|layer_?norm|_eps|norm_|qk_norm|use_qk|rope|rotary|aux|router_"
    r"|output_attentions|output_hidden|output_router|attn_implementation|scaling|multiplier|softcap|cross_attention"
    r"|chunk_size_feed_forward|pruned_heads|mtp|nextn|n_group|head_dim$|hidden_layers$|swiglu|clip|scale|temperature"
    r"|no_rope|bidirectional|time_step|vocab_size_per_layer|attn_factor|floor|tie_|fused|_dtype|deepstack|mrope|ep_size|indexer_rope|qk_head|residual|pad|logit)"
)
"""Fields that change no width, no count and no byte of a decode step."""


def _unknown(f: Fields) -> list[str]:
    """A remark on fields that may change a layer and are not read."""
    found = [
        name
        for name, value in f.config.items()
        if value not in (None, False, 0, 1, 1.0, "", [], {})
        and name not in f.read
        and WIDTHS.search(name)
        and not HARMLESS.search(name)
    ]
    if not found:
        return []
    more = f" and {len(found) - 6} more" if len(found) > 6 else ""
    return [f"not read, and perhaps about layers: {', '.join(map(said, found[:6]))}{more}"]


def _text(model: Model, remarks: list[str], origin: str) -> str:
    """The spec file: what was found out as comments, then the record; `origin` says where its count is from."""
    content = model.model_dump(exclude_none=True, exclude_unset=True) | {"kind": "model"}
    if not model.tied_embeddings:
        content.pop("tied_embeddings", None)
    body = yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=120)
    lines = [f"# {remark}" for remark in remarks]
    if origin:
        body = re.sub(r"(?m)^(published_parameters_B: .*)$", rf"\1  # {origin}", body)
    return "\n".join([*lines, body])
