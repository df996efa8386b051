"""The number formats that a checkpoint is stored in, tensor by tensor, as quantisers write them.

A scheme says formats by quantiser, by groups with targets, or layer by layer, and which modules it leaves alone. Each
kind of tensor of the model is looked up by the names that its modules have, in every layer; where layers differ, the
format of most parameters is taken, and a remark says how much is stored otherwise.
"""

from __future__ import annotations

import fnmatch
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

from helix_sim.specs.ffn import DenseFfn, RoutedFfn
from helix_sim.specs.import_hf.fields import Config, listed, mapping, short
from helix_sim.specs.import_hf.kinds import blocks
from helix_sim.specs.model import Model
from helix_sim.specs.precision import FOLLOWS

Format = tuple[str, str]
"""(weights, arithmetic) of a product."""

DTYPES = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32"}

QUANT_ALGOS: dict[str, Format] = {
    "NVFP4": ("nvfp4", "fp4"),
    "NVFP4_AWQ": ("nvfp4", "fp4"),
    "W4A16_NVFP4": ("nvfp4", "bf16"),
    "W4A8_NVFP4_FP8": ("nvfp4", "fp8"),
    "MXFP4": ("mxfp4", "fp4"),
    "W4A8_MXFP4_FP8": ("mxfp4", "fp8"),
    "W4A16_MXFP4": ("mxfp4", "bf16"),
    "MXFP8": ("mxfp8", "fp8"),
    "FP8": ("fp8", "fp8"),
    "FP8_PER_CHANNEL_PER_TOKEN": ("fp8", "fp8"),
    "FP8_BLOCK_SCALES": ("fp8-block", "fp8"),
    "FP8_PB_WO": ("fp8-block", "fp8"),
    "W4A16_AWQ": ("int4", "bf16"),
    "INT4_AWQ": ("int4", "bf16"),
    "W4A8_AWQ": ("int4", "fp8"),
    "W8A16": ("int8", "bf16"),
}
"""TensorRT Model Optimizer's quant_algo: (weights, arithmetic), INT4 in groups of 128."""

BY_BITS = ("awq", "gptq", "auto-round", "intel/auto-round")
"""Quantisers that say a format by its bits and the values that share a scale, and others module by module."""

HEAD_KEPT = (*BY_BITS, "fp8", "fbgemm_fp8", "bitsandbytes", "mxfp4", "modelopt", "modelopt_fp4")
"""Quantisers that leave the head alone unless told otherwise."""

FLOATS = {
    "mx_fp": {4: "mxfp4", 8: "mxfp8"},
    "nv_fp": {4: "nvfp4"},
    "fp": {8: "fp8"},
}
"""AutoRound's data types that are no integers, by their bits."""

GROUPS = {4: {128: "int4", 64: "int4-g64", 32: "int4-g32"}, 8: {128: "int8-g128", -1: "int8"}}
"""Formats of integers by their bits and the values that share a scale; -1 is a whole row."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """A checkpoint's formats, and what they leave open.

    formats: fields of a Precision by name, empty where the scheme is not known. remarks: sentences for the user.
    """

    formats: dict[str, str]
    remarks: list[str]


def checkpoint_formats(config: Config, quantisation: Config | None, model: Model) -> Stored:
    """The formats of a checkpoint: by quantization_config, else by hf_quant_config.json, else its dtype."""
    scheme = mapping(config.get("quantization_config")) or mapping(mapping(quantisation).get("quantization"))
    dtype = DTYPES.get(str(config.get("torch_dtype") or config.get("dtype")))
    if not scheme:
        return Stored(formats={"weights": dtype, "kv": "bf16", "math": "bf16"} if dtype else {}, remarks=[])
    rules = Rules(scheme, (dtype if dtype and dtype != "fp32" else "bf16", "bf16"), config)
    if rules.unknown:
        return Stored(formats={}, remarks=[f"{rules.unknown}; choose the number formats yourself"])
    found: dict[str, Counter[Format]] = {}
    for tensor, module, parameters in modules(model, MOST_LAYERS, in_blocks=bool(blocks(config))):
        found.setdefault(tensor, Counter())[rules.format_of(tensor, module)] += parameters
    kv, kv_remarks = kv_format(scheme)
    formats = _as_precision({tensor: of.most_common(1)[0][0] for tensor, of in found.items()}, kv)
    return Stored(formats=formats, remarks=[*rules.remarks, *kv_remarks, *_mixed(found)])


def _mixed(found: dict[str, Counter[Format]]) -> list[str]:
    """A remark for each tensor that is stored in several formats."""
    remarks = []
    for tensor, of in found.items():
        (most, _), *others = of.most_common()
        if others:
            share = {stored: 0.0 for (stored, _), _ in others}
            for (stored, _), parameters in others:
                share[stored] += parameters / of.total()
            said = ", ".join(f"{part:.1%} {stored}" for stored, part in share.items() if stored != most[0])
            if said:
                remarks.append(f"{tensor}: {said} beside {most[0]}, which is taken for all of it")
    return remarks


def _as_precision(found: dict[str, Format], kv: str) -> dict[str, str]:
    """Formats by the fields of a Precision, each tensor only where it differs from what it follows."""
    main = next(found[tensor] for tensor in ("routed", "dense", "attention", "head") if tensor in found)
    formats = {"weights": main[0], "kv": kv, "math": main[1]}

    def effective(field: str) -> str:
        return formats.get(field) or ("bf16" if field in ("activations", "wire") else effective(FOLLOWS[field]))

    pairs = {
        "attention": ("attention_weights", "projection_math"),
        "output": ("output_weights", "output_math"),
        "router": ("router_weights", ""),
        "routed": ("routed_weights", "routed_math"),
        "shared": ("shared_weights", "shared_math"),
        "dense": ("dense_weights", "dense_math"),
        "head": ("head_weights", "head_math"),
        "embedding": ("embedding_weights", ""),
    }
    for tensor, fields in pairs.items():
        for field, value in zip(fields, found.get(tensor, ()), strict=False):
            if field and effective(field) != value:
                formats[field] = value
    return formats


# --- Modules ---------------------------------------------------------------------------------------------------------


def modules(model: Model, most_layers: int | None = None, *, in_blocks: bool = False) -> Iterator[tuple[str, str, int]]:
    """(tensor, module, parameters) of products and the embedding, in canonical names; of the first layers.

    in_blocks: a mixer and an FFN are numbered one by one, each the `mixer` of its layer, as Nemotron-H has them.
    """
    h = model.hidden_size
    block = 0
    yield "embedding", "embed_tokens", model.vocab_size * h
    if not model.tied_embeddings:
        yield "head", "lm_head", model.vocab_size * h
    for i, (attention, ffn) in enumerate(model.layer_list[:most_layers]):
        a, f = model.attention[attention], model.ffn[ffn]
        mixer, behind = (f"layers.{block}.mixer", f"layers.{block + 1}.mixer") if in_blocks else (
            f"layers.{i}.self_attn", f"layers.{i}.mlp")  # fmt: skip
        block += 1 + (f.kind != "none")
        for name, parameters in _projections(a, h, in_blocks).items():
            yield "attention", f"{mixer}.{name}", parameters
        yield "output", f"{mixer}.{'out_proj' if a.kind == 'linear' else 'o_proj'}", _output(a, h)
        if isinstance(f, DenseFfn):
            yield from _ffn("dense", behind, h * f.intermediate_size, f.projections_in)
        if isinstance(f, RoutedFfn):
            yield "router", f"{behind}.gate", f.routed * h
            experts = f.routed * f.expert_width(h) * f.intermediate_size // 2
            for e in dict.fromkeys((0, f.routed - 1)):
                yield from _ffn("routed", f"{behind}.experts.{e}", experts, f.projections_in)
            if f.shared:
                yield from _ffn(
                    "shared", f"{behind}.shared_experts", f.shared * h * f.shared_intermediate_size, f.projections_in
                )


def _output(a: Any, h: int) -> int:
    """Parameters of attention's last projection."""
    if a.kind == "compressed":
        between = a.output_groups * a.output_lora_rank
        return int(a.q_heads * a.output_width * a.output_lora_rank + between * h)
    return int(a.q_heads * a.output_width * h)


def _projections(a: Any, h: int, in_blocks: bool = False) -> dict[str, int]:
    """Parameters of attention's projections but the last, by module."""
    if a.kind == "linear" and in_blocks:
        return {"in_proj": h * (a.channels + a.q_heads * a.output_width)}
    if a.kind == "compressed":
        queries = {"q_a_proj": h * a.q_lora_rank, "q_b_proj": a.q_lora_rank * a.q_heads * a.head_size}
        return queries | {"kv_proj": h * a.head_size}
    if a.kind == "linear":
        return {"in_proj_qkv": h * a.channels, "in_proj_z": h * a.q_heads * a.output_width}
    if not hasattr(a, "kv_lora_rank"):
        keys = h * a.kv_heads * a.output_width
        return {"q_proj": h * a.q_heads * a.output_width, "k_proj": keys, "v_proj": keys}
    query = a.q_heads * (a.nope_width + a.rope_width)
    queries = (
        {"q_a_proj": h * a.q_lora_rank, "q_b_proj": a.q_lora_rank * query} if a.q_lora_rank else {"q_proj": h * query}
    )
    return queries | {
        "kv_a_proj_with_mqa": h * a.cache_width,
        "kv_b_proj": a.kv_lora_rank * a.q_heads * (a.nope_width + a.output_width),
    }


def _ffn(tensor: str, at: str, parameters: int, projections_in: int) -> Iterator[tuple[str, str, int]]:
    for name in ("gate_proj", "up_proj", "down_proj")[2 - projections_in :]:
        yield tensor, f"{at}.{name}", parameters


# --- Names -----------------------------------------------------------------------------------------------------------

_PREFIX = re.compile(r"^(?:language_model\.|model\.|backbone\.)+")
_WORDS = (
    (re.compile(r"(?<!\w)(?:block_sparse_moe|feed_forward|ffn)(?!\w)"), "mlp"),
    (re.compile(r"(?<!\w)(?:attn|attention|linear_attn)(?!\w)"), "self_attn"),
    (re.compile(r"(?<!\w)(?:shared?_expert(?!s)|shared_mlp)"), "shared_experts"),
    (re.compile(r"(?<=mlp\.)router(?!\w)"), "gate"),
    (re.compile(r"(?<=\.)w1(?!\w)"), "gate_proj"),
    (re.compile(r"(?<=\.)w3(?!\w)"), "up_proj"),
    (re.compile(r"(?<=\.)w2(?!\w)"), "down_proj"),
)
_ANY = re.compile("|".join(word.pattern for word, _ in _WORDS))
_ALSO = {
    **dict.fromkeys(("q_proj", "k_proj", "v_proj"), "qkv_proj"),
    **dict.fromkeys(("gate_proj", "up_proj"), "gate_up_proj"),
    **dict.fromkeys(("q_a_proj", "kv_a_proj_with_mqa"), "fused_qkv_a_proj"),
}
"""Modules that some checkpoints keep as one."""
_REGEX_PREFIXES = ("", "model.", "language_model.model.", "model.language_model.")
MOST_PATTERN = 500
"""Characters of a name or a pattern; longer ones are no module's."""
MOST_LAYERS = 512
"""Layers whose modules are looked up, more than any model has."""
MOST_NAMES = 2**17
"""Modules that a list may name; mixed precision of the largest models names some twenty thousand."""
MOST_WILD = 128
"""Patterns with wildcards, and expressions, that are matched; no quantiser writes more."""


def canonical(name: str) -> str:
    """A module's name as this file writes it, whatever the family calls its parts.

    >>> canonical("language_model.model.layers.3.block_sparse_moe.experts.7.w2")
    'layers.3.mlp.experts.7.down_proj'
    """
    name = _PREFIX.sub("", name)
    if _ANY.search(name):
        for word, ours in _WORDS:
            name = word.sub(ours, name)
    return name


class Names:
    """A set of modules as quantisers write it: names, parts of names, wildcards, and `re:` expressions."""

    def __init__(self, patterns: Iterable[Any]) -> None:
        self.literal: set[str] = set()
        self.starts: set[str] = set()
        self.expressions: list[re.Pattern[str]] = []
        self.of_layers: list[re.Pattern[str]] = []
        self.known: dict[str, bool] = {}
        wild: list[str] = []
        for pattern in islice(dict.fromkeys(each for each in patterns if isinstance(each, str)), MOST_NAMES):
            if len(pattern) > MOST_PATTERN:
                continue
            if pattern.startswith("re:"):
                (self.of_layers if any(map(str.isdigit, pattern)) else self.expressions).append(_compiled(pattern[3:]))
            elif pattern.endswith("*") and not any(char in pattern[:-1] for char in "*?["):
                self.starts.add(canonical(pattern[:-1]))
            elif any(char in pattern for char in "*?["):
                wild.append(fnmatch.translate(canonical(pattern)).removesuffix(r"\Z").removesuffix(r"\z"))
            else:
                self.literal.add(canonical(pattern))
        del wild[MOST_WILD:], self.expressions[MOST_WILD:], self.of_layers[MOST_WILD // 8 :]
        self.wild = re.compile("|".join(rf"(?:^|.*?\.){each}(?:\.|$)" for each in wild)) if wild else None

    def __contains__(self, module: str) -> bool:
        """Whether a module is named, or a part of its name or a module that holds it is."""
        return any(self._names(each) for each in _spellings(module))

    def _names(self, module: str) -> bool:
        parts = module.split(".")
        rests = [".".join(parts[i:]) for i in range(len(parts))]
        runs = (".".join(parts[i:j]) for i in range(len(parts)) for j in range(i + 1, len(parts) + 1))
        if self.literal and not self.literal.isdisjoint(runs):
            return True
        if self.starts and not self.starts.isdisjoint(rest[:end] for rest in rests for end in range(1, len(rest) + 1)):
            return True
        if (self.wild and self.wild.match(module)) or _matches(self.of_layers, module):
            return True
        anywhere = re.sub(r"\d+", "0", module)
        if anywhere not in self.known:
            self.known[anywhere] = _matches(self.expressions, anywhere)
        return self.known[anywhere]


def _matches(expressions: list[re.Pattern[str]], module: str) -> bool:
    """Whether an expression matches a module under one of the names that frameworks give it."""
    return any(each.match(prefix + module) for each in expressions for prefix in _REGEX_PREFIXES)


def _spellings(module: str) -> list[str]:
    """A module's name, and that of the fused one that may hold it."""
    parent, _, last = module.rpartition(".")
    return [module, *([f"{parent}.{_ALSO[last]}"] if last in _ALSO else [])]


def _compiled(expression: str) -> re.Pattern[str]:
    """A regular expression of a config; one that is none matches nothing, and one that could run away is none."""
    nested = re.search(r"[*+]\)?[*+{]|\([^)]*[*+][^)]*\)[*+{]", expression) or len(re.findall(r"[*+{]", expression)) > 3
    try:
        return re.compile("(?!)" if nested else canonical(expression))
    except (re.error, RecursionError, OverflowError):
        return re.compile("(?!)")


# --- Rules -----------------------------------------------------------------------------------------------------------


class Rules:
    """What a scheme says of a module. `unknown` is a sentence where the scheme is none that is known here."""

    def __init__(self, scheme: Config, plain: Format, config: Config) -> None:
        self.scheme, self.plain, self.remarks = scheme, plain, list[str]()
        self.method, self.algo = str(scheme.get("quant_method") or ""), str(scheme.get("quant_algo") or "")
        keys = (
            "modules_to_not_convert",
            "exclude_modules",
            "ignore",
            "exclude",
            "ignored_layers",
            "llm_int8_skip_modules",
        )
        self.kept = Names(module for key in keys for module in listed(scheme.get(key)))
        layers = {**mapping(scheme.get("quantized_layers")), **mapping(scheme.get("extra_config"))}
        self.layers = {canonical(name): mapping(said) for name, said in islice(layers.items(), MOST_NAMES)}
        groups = [mapping(group) for group in mapping(scheme.get("config_groups")).values()]
        self.groups = [(Names(listed(g.get("targets"))), g) for g in groups]
        self.groups += [
            (Names([pattern]), mapping(group)) for pattern, group in _few(scheme.get("layer_quant_config")).items()
        ]
        self.dynamic = [  # GPTQModel's expressions: -: leaves a module alone, +: or nothing has bits of its own
            (Names([f"re:{text.removeprefix('-:').removeprefix('+:')}"]), None if text[:2] == "-:" else mapping(said))
            for text, said in _few(scheme.get("dynamic")).items()
        ]
        self.head = scheme.get("lm_head") is True
        self.experts: Format | None = ("mxfp4", "fp8") if config.get("expert_dtype") == "fp4" else None
        bits = scheme.get("bits", scheme.get("w_bit"))
        of_bits = f" of {short(bits)} bits" if self.method in BY_BITS and bits not in GROUPS else ""
        self.unknown = "" if mapping(scheme.get("quantized_layers")) or self._default() else (
            f"quantisation {short(self.algo or self.method)}{of_bits} is not known here")  # fmt: skip

    def format_of(self, tensor: str, module: str) -> Format:
        """The format of a module, which is of one kind of tensor."""
        named = self._of_layer(module)
        if named is not None:
            return named
        if module in self.kept:
            return self.plain
        for names, said in self.dynamic:
            if module in names:
                return self._of_bits(said) if said is not None else self.plain
        for names, group in self.groups:
            if module in names:
                return self._of_group(group) or self.plain
        if tensor in ("embedding", "router"):
            return self.plain
        if tensor == "head" and not self.head and self._keeps_head():
            return self.plain
        if self.algo == "MIXED_PRECISION" and self.layers and self.method not in ("fp8",):
            return self.plain
        if tensor == "routed" and self.experts:
            return self.experts
        if tensor != "routed" and self.method == "mxfp4":
            return self.plain
        return self._default() or self.plain

    def _keeps_head(self) -> bool:
        return self.method in HEAD_KEPT or bool(self.algo)

    def _of_layer(self, module: str) -> Format | None:
        """What quantized_layers says of a module, or of one that holds it."""
        if not self.layers:
            return None
        for spelling in _spellings(module):
            parts = spelling.split(".")
            for end in range(len(parts), 1 if len(parts) > 1 else 0, -1):
                said = self.layers.get(".".join(parts[:end]))
                if said is not None and "quant_algo" in said:
                    return self._of_algo(str(said.get("quant_algo")), said.get("group_size"))
                if said is not None:
                    return self._of_bits(said)
        return None

    def _of_bits(self, said: Config) -> Format:
        """A format by its bits and group, each the scheme's where not said; 16 bits are none."""
        s = {**self.scheme, **said}
        bits, group = s.get("bits", s.get("w_bit")), s.get("group_size", s.get("q_group_size", 128))
        if bits not in GROUPS:
            return self.plain
        kind = str(s.get("data_type") or "int")
        floats = next((of for name, of in FLOATS.items() if kind.startswith(name)), {})
        if bits in floats:
            return floats[bits], {4: "fp4", 8: "fp8"}.get(s.get("act_bits") or 16, "bf16")
        # GPTQ stores zero points whether its grid is symmetric or not
        zero = self.method != "awq" or bool(s.get("zero_point", True))
        return self._integer(bits, group, zero), "bf16"

    def _of_algo(self, algo: str, group: Any) -> Format | None:
        found = QUANT_ALGOS.get(algo.upper())
        if found and found[0].startswith("int") and isinstance(group, int):
            return self._integer(int(found[0][3]), group, False), found[1]
        return found

    def _default(self) -> Format | None:
        """What the scheme says of every product that it does not name."""
        s = self.scheme
        groups = [] if self.method == "quark" else self.groups
        linear = [g for names, g in groups if "Linear" in names.literal] or [g for _, g in groups[:1]]
        if self.method == "fp8":
            return "fp8-block" if s.get("weight_block_size") else "fp8", "fp8"
        if self.algo and self.algo != "MIXED_PRECISION":
            return self._of_algo(self.algo, s.get("group_size")) or (self._of_group(linear[0]) if linear else None)
        if self.method == "fbgemm_fp8":
            return "fp8", "fp8"
        if self.method == "mxfp4":
            return "mxfp4", "bf16"
        if self.method == "bitsandbytes":
            return (self._bitsandbytes(), "bf16") if s.get("load_in_4bit") else ("int8", "bf16")
        if self.method in BY_BITS:
            return self._of_bits({}) if s.get("bits", s.get("w_bit")) in GROUPS else None
        if self.method == "quark":
            return self._of_group(mapping(s.get("global_quant_config")))
        return self._of_group(linear[0]) if linear else None

    def _bitsandbytes(self) -> str:
        """Its 4-bit values share a 32-bit scale by 64, or an 8-bit one where scales are quantised in turn."""
        double = self.scheme.get("bnb_4bit_use_double_quant") is True
        self._remark(f"bitsandbytes' 4 bits are counted as int4 in groups of {128 if double else 32}, as many bytes")
        return "int4" if double else "int4-g32"

    def _of_group(self, group: Config) -> Format | None:
        """compressed-tensors, modelopt and Quark: the format of a group's weights, and of their arithmetic."""
        weights = mapping(group.get("weights") or group.get("weight"))
        inputs = mapping(group.get("input_activations") or group.get("input_tensors"))
        stored = self._values(weights)
        if stored is None:
            return None
        bits = inputs.get("num_bits") or {"fp4": 4, "fp8_e4m3": 8, "int8": 8}.get(str(inputs.get("dtype")))
        kind = str(inputs.get("type") or inputs.get("dtype") or "")
        return stored, {4: "fp4", 8: "fp8"}.get(bits or 0, "bf16") if kind.startswith(("float", "fp")) else "bf16"

    def _values(self, weights: Config) -> str | None:
        """The format of stored values by their type, their bits and what shares a scale."""
        bits, group = weights.get("num_bits"), weights.get("group_size")
        kind = str(weights.get("type") or weights.get("dtype") or "")
        bits = bits or {"fp4": 4, "fp8_e4m3": 8, "int4": 4, "uint4": 4, "int8": 8}.get(kind)
        if kind.startswith(("float", "fp")):
            if bits == 4:
                return "mxfp4" if group == 32 else "nvfp4"
            if bits == 8:
                blocks = weights.get("block_structure") or weights.get("strategy") == "block"
                return "fp8-block" if blocks else "mxfp8" if group == 32 else "fp8"
            return None
        if kind.startswith(("int", "uint")) and bits in (4, 8):
            zero = weights.get("symmetric") is False
            return self._integer(bits, group if group is not None else -1, zero)
        return None

    def _integer(self, bits: int, group: Any, zero: bool) -> str:
        """Integers of 4 or 8 bits; of a group without a format of its own, that of the nearest."""
        known = GROUPS[bits]
        found = known.get(group if isinstance(group, int) and group > 0 else -1)
        if found is None:
            sizes = [size for size in known if size > 0]
            wanted = group if isinstance(group, int) and group > 0 else 10**6
            near = min(sizes, key=lambda size: abs(size - wanted))
            found = known[near]
            self._remark(f"int{bits} in groups of {short(group)} is counted as in groups of {near}")
        return f"{found}-zero" if zero and found != "int8" else found

    def _remark(self, sentence: str) -> None:
        """Says it once, however many modules it is found for."""
        if sentence not in self.remarks:
            self.remarks.append(sentence)


def _few(said: Any) -> Config:
    """The first of a mapping's patterns, no more than quantisers write."""
    return dict(islice(mapping(said).items(), MOST_WILD))


def kv_format(scheme: Config) -> tuple[str, list[str]]:
    """The KV cache's format, which a scheme says as text or as a mapping, and a remark where it says an unknown one."""
    for key in ("kv_cache_scheme", "kv_cache_quant_algo", "kv_cache_dtype"):
        said = scheme.get(key)
        if isinstance(said, dict) and said:
            kind, bits = str(said.get("type", "float")), said.get("num_bits") or 0
            found = {("float", 8): "fp8", ("int", 8): "int8", ("float", 4): "nvfp4"}.get((kind, bits))
        elif isinstance(said, str) and said.strip():
            word = said.strip().upper()
            if word in ("NONE", "AUTO", "BF16", "BFLOAT16", "FP16", "FLOAT16"):
                return "bf16", []
            found = next((ours for name, ours in KV_WORDS.items() if word.startswith(name)), None)
        else:
            continue
        if found is None:
            return "bf16", [f"{key} = {short(said)} is not known here; the KV cache is taken as BF16"]
        return found, []
    for key in ("kv_cache_quant_config", "layer_quant_config"):  # Quark: what keys' and values' projections put out
        for pattern, group in _few(scheme.get(key)).items():
            if key == "kv_cache_quant_config" or pattern.endswith(("k_proj", "v_proj")):
                word = str(mapping(mapping(group).get("output_tensors")).get("dtype") or "").upper()
                if found := next((ours for name, ours in KV_WORDS.items() if word.startswith(name)), None):
                    return found, []
    return "bf16", []


KV_WORDS = {
    "FP8": "fp8",
    "FLOAT8": "fp8",
    "E4M3": "fp8",
    "E5M2": "fp8",
    "NVFP4": "nvfp4",
    "FP4": "nvfp4",
    "INT8": "int8",
}
"""How a KV scheme in words begins."""
