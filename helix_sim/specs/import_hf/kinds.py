"""Which kind of attention and of feed-forward network each layer of a config has, and the reader of each kind.

To read a kind of attention that is refused here, give its row in ATTENTION a `read`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from helix_sim.specs.attention import GqaAttention, MlaAttention
from helix_sim.specs.ffn import DenseFfn, RoutedFfn
from helix_sim.specs.import_hf.fields import Config, Fields, listed, mapping, short
from helix_sim.specs.model import MOST_LAYERS, listed_runs

Found = tuple[str, set[int]]
"""The field that says that layers have a kind, and these layers' numbers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionKind:
    """A kind of attention that a config can say.

    title: what it is, for sentences. found: the field that says so and the layers that have it, of a config and its
    number of layers; None where no layer has. read: the spec of those layers' attention; None where no equation here
    expresses it. a_part: whether full attention is an upper bound of its cache and time.
    """

    title: str
    found: Callable[[Config, int], Found | None]
    read: Callable[[Fields], dict[str, Any]] | None = None
    a_part: bool = False


# --- Which layers have a kind ----------------------------------------------------------------------------------------


def _of_types(config: Config, *types: str) -> Found | None:
    """Layers that layer_types gives one of these types."""
    layers = {i for i, kind in enumerate(listed(config.get("layer_types"))) if str(kind) in types}
    return ("layer_types", layers) if layers else None


def _first(config: Config, layers: int, *fields: str) -> Found | None:
    """Every layer, by the first of these fields that says something."""
    said = next((field for field in fields if config.get(field)), None)
    return (said, set(range(layers))) if said else None


def _linear(config: Config, layers: int) -> Found | None:
    """Layers that layer_types, attn_type_list (0 is linear) or an interval says are linear."""
    if listed(config.get("layer_types")):
        return _of_types(config, "linear_attention", "lightning_attention")
    kinds = listed(config.get("attn_type_list"))
    if kinds:
        linear = {i for i, kind in enumerate(kinds) if kind == 0}
        return ("attn_type_list", linear) if linear else None
    full = mapping(config.get("linear_attn_config")).get("full_attn_layers")
    if isinstance(full, list):
        return "linear_attn_config", set(range(layers)) - {i - 1 for i in full if isinstance(i, int)}
    every = config.get("full_attention_interval")
    if isinstance(every, int) and every > 0:
        return "full_attention_interval", {i for i in range(layers) if (i + 1) % every}
    return _first(config, layers, "linear_attn_config", "full_attention_interval", "linear_num_value_heads")


def _mamba(config: Config, layers: int) -> Found | None:
    """Layers of a state-space model, or the whole model where only a width of such layers is given."""
    fields = ("hybrid_override_pattern", "layers_block_type", "mamba_num_heads", "mamba_d_state", "attn_layer_period",
              "ssm_cfg", "state_size")  # fmt: skip
    return _of_types(config, "mamba", "mamba2", "ssm") or _first(config, layers, *fields)


def _sparse(config: Config, layers: int) -> Found | None:
    return _first(config, layers, "index_topk") or _of_types(config, "deepseek_sparse_attention", "sparse_attention")


def _shared_picks(config: Config, layers: int) -> Found | None:
    """Layers that attend to what an earlier layer's indexer picked, by indexer_types."""
    shared = {i for i, kind in enumerate(listed(config.get("indexer_types"))) if kind == "shared"}
    return ("indexer_types", shared) if shared else None


def _block_sparse(config: Config, layers: int) -> Found | None:
    """Layers whose indexer picks blocks, by sparse_attention_freq (1 is sparse) of sparse_attention_config."""
    said = mapping(config.get("sparse_attention_config"))
    if not said or said.get("use_sparse_attention") is False:
        return None
    by_layer = listed(said.get("sparse_attention_freq"))
    sparse = {i for i, kind in enumerate(by_layer) if kind} if by_layer else set(range(layers))
    return ("sparse_attention_config", sparse) if sparse else None


def _compressed(config: Config, layers: int, named: str) -> Found | None:
    """Layers by their compress_ratios: 4 has an indexer, any other compresses without one, 0 has the window alone."""
    ratios = listed(config.get("compress_ratios"))[:layers]
    kinds = ["window" if not ratio else "csa" if ratio == INDEXED_RATIO else "hca" for ratio in ratios]
    found = {i for i, kind in enumerate(kinds) if kind == named}
    return ("compress_ratios", found) if found else None


INDEXED_RATIO = 4
"""Tokens for each compressed vector where an indexer picks among them, as DeepSeek-V4's inference code has it."""


WINDOW_PATTERNS = {"gemma2": 2, "gemma3": 6, "gemma3_text": 6, "cohere2": 4}
"""One of so many layers attends to everything where a config does not say, as Transformers takes each type to be
(https://github.com/huggingface/transformers, src/transformers/models/*/configuration_*.py)."""


def _window(config: Config, layers: int) -> Found | None:
    """Layers with a sliding window, where it is switched on and shorter than the longest context."""
    window, longest = config.get("sliding_window"), config.get("max_position_embeddings")
    if listed(config.get("layer_types")):
        return _of_types(config, "sliding_attention")
    if not window or not config.get("use_sliding_window", True):
        return None
    if isinstance(window, int) and isinstance(longest, int) and window >= longest:
        return None
    pattern = listed(config.get("hybrid_layer_pattern"))
    if pattern:
        return "hybrid_layer_pattern", {i for i, kind in enumerate(pattern) if kind}
    every = config.get("sliding_window_pattern") or config.get("_sliding_window_pattern")
    every = every or WINDOW_PATTERNS.get(str(config.get("model_type")))
    if isinstance(every, int) and every > 0:  # Gemma 3, Cohere 2: one of so many layers attends to everything
        return "sliding_window", {i for i in range(layers) if (i + 1) % every}
    if isinstance(every, str) and set(every) <= {"L", "G"}:  # EXAONE 4: local and global layers
        return "sliding_window", {i for i in range(layers) if every[i % len(every)] == "L"}
    first = config.get("max_window_layers") if config.get("use_sliding_window") else None
    return "sliding_window", set(range(first if isinstance(first, int) and first >= 0 else 0, layers))


def _chunked(config: Config, layers: int) -> Found | None:
    if listed(config.get("layer_types")):
        return _of_types(config, "chunked_attention")
    if not config.get("attention_chunk_size"):
        return None
    rotary = listed(config.get("no_rope_layers"))  # Llama 4: a layer without rotary embedding attends to everything
    every = config.get("nope_layer_interval", 4)
    every = every if isinstance(every, int) and every > 0 else 4
    return "attention_chunk_size", {
        i for i in range(layers) if (bool(rotary[i]) if len(rotary) == layers else (i + 1) % every)
    }


# --- Readers ---------------------------------------------------------------------------------------------------------


def read_full(f: Fields) -> dict[str, Any]:
    """Attention to the whole context: latent where there is a latent's rank, else grouped-query.

    Gemma 4 has heads of its own for it, whose keys are projected values as well; what is cached are both.
    """
    return _heads(f, ("global_head_dim",), ("num_global_key_value_heads",))


def _heads(f: Fields, own_size: tuple[str, ...] = (), own_heads: tuple[str, ...] = ()) -> dict[str, Any]:
    heads = f.count("num_attention_heads", "n_head")
    if f.config.get("kv_lora_rank"):
        f.read.add("num_key_value_heads")
        spec = {
            "kind": "mla",
            "q_heads": heads,
            "q_lora_rank": f.count("q_lora_rank", default=0),
            "kv_lora_rank": f.count("kv_lora_rank"),
            "rope_width": f.count("qk_rope_head_dim"),
            "nope_width": f.count("qk_nope_head_dim"),
            "output_width": f.count("v_head_dim"),
        }
        return spec | _express(f, MlaAttention, ATTENTION_FEATURES)
    kv_heads = (*own_heads, "num_key_value_heads", "num_attention_groups", "multi_query_group_num", "n_head_kv")
    size = f.count(
        *own_size, "head_dim", "attention_head_dim", "kv_channels", default=f.count("hidden_size") // max(heads, 1)
    )
    if f.config.get("v_head_dim") not in (None, size):
        f.problems.append(f"{f.prefix}v_head_dim = {short(f.config['v_head_dim'])}: values of another width than keys "
                          "are not modelled")  # fmt: skip
    spec = {"kind": "gqa", "q_heads": heads, "kv_heads": f.count(*kv_heads, default=heads), "head_size": size}
    return spec | _express(f, GqaAttention, ATTENTION_FEATURES)


def read_window(f: Fields) -> dict[str, Any]:
    """Grouped-query attention to the last tokens, with the heads of the full one."""
    return _part(f, f.count("sliding_window"))


def read_chunked(f: Fields) -> dict[str, Any]:
    """Grouped-query attention inside chunks, with the heads of the full one."""
    return {**_part(f, f.count("attention_chunk_size")), "chunked": True}


def _part(f: Fields, tokens: int) -> dict[str, Any]:
    spec = _heads(f)
    own = [field for field in f.config if field.startswith("swa_") and "theta" not in field]
    if own or spec["kind"] != "gqa":
        written = f"{own[0]} = {short(f.config[own[0]])}" if own else "kv_lora_rank"
        f.problems.append(f"{f.prefix}{written}: a window with heads of its own is not modelled")
    return {**spec, "kind": "window", "window_tokens": tokens}


def read_sparse(f: Fields) -> dict[str, Any]:
    """Latent attention to the tokens that an indexer picks, whose keys are FP8 with an FP32 scale for 128 values."""
    f.read.update(("index_topk", "indexer_types", "index_topk_freq", "index_skip_topk_offset"))
    odd = set(map(str, listed(f.config.get("indexer_types")))) - {"full", "shared"}
    if f.config.get("index_topk_pattern") or odd:
        field = "index_topk_pattern" if f.config.get("index_topk_pattern") else "indexer_types"
        f.problems.append(f"{f.prefix}{field} = {short(f.config[field])}: sparse attention of this form is not read")
        return {}
    width = f.count("index_head_dim")
    indexer = {
        "heads": f.count("index_n_heads"),
        "width": width,
        "key_bytes": width + 4 * -(-width // 128),
        "math": "fp8",
        "top_k": f.count("index_topk"),
    }
    return {**read_full(f), "kind": "sparse", "indexer": indexer}


def read_shared_picks(f: Fields) -> dict[str, Any]:
    """Latent attention to the tokens that the indexer of an earlier layer picked."""
    return {**read_sparse(f), "picks_shared": True}


def read_block_sparse(f: Fields) -> dict[str, Any]:
    """Grouped-query attention to the blocks that an indexer picks, whose keys are taken as BF16, as stored."""
    f.read.add("sparse_attention_config")
    said = Fields(mapping(f.config.get("sparse_attention_config")), f"{f.prefix}sparse_attention_config.", f.problems)
    width = said.count("sparse_index_dim")
    indexer = {
        "heads": said.count("sparse_num_index_heads"),
        "width": width,
        "key_bytes": 2 * width,
        "math": "bf16",
        "top_k": said.count("sparse_topk_blocks"),
        "block_tokens": said.count("sparse_block_size"),
    }
    return {**_heads(f), "kind": "block-sparse", "indexer": indexer}


def read_csa(f: Fields) -> dict[str, Any]:
    """A window and compressed vectors of which an indexer picks; its keys are taken as FP4, half a byte a value."""
    width = f.count("index_head_dim")
    indexer = {
        "heads": f.count("index_n_heads"),
        "width": width,
        "key_bytes": width // 2,
        "math": "fp4",
        "top_k": f.count("index_topk"),
    }
    return {**_compressing(f), "ratio": INDEXED_RATIO, "overlapping": True, "indexer": indexer}


def read_hca(f: Fields) -> dict[str, Any]:
    """A window and all compressed vectors, many tokens each."""
    ratios = {ratio for ratio in listed(f.config.get("compress_ratios")) if ratio not in (0, INDEXED_RATIO)}
    if len(ratios) != 1 or not isinstance(ratio := ratios.pop(), int):
        f.problems.append(
            f"{f.prefix}compress_ratios = {short(f.config['compress_ratios'])}: more than two are not read"
        )
        return {}
    return {**_compressing(f), "ratio": ratio}


def _compressing(f: Fields) -> dict[str, Any]:
    """DeepSeek-V4's attention without compressed vectors: a window, and an output projection in groups."""
    f.read.update(("compress_ratios", "num_key_value_heads", "qk_rope_head_dim", "compress_rope_theta"))
    return {
        "kind": "compressed",
        "q_heads": f.count("num_attention_heads"),
        "q_lora_rank": f.count("q_lora_rank"),
        "head_size": f.count("head_dim"),
        "window_tokens": f.count("sliding_window"),
        "output_groups": f.count("o_groups"),
        "output_lora_rank": f.count("o_lora_rank"),
        "sinks": True,
    }


def read_linear(f: Fields) -> dict[str, Any]:
    """Gated delta nets as Qwen writes them: two gates a value head, a gate on the output, a short convolution.

    KDA as Kimi writes it: one gate a head, and a decay of each key channel through a latent as wide as a head.
    """
    if kda := mapping(f.config.get("linear_attn_config")):
        f.read.add("linear_attn_config")
        said = Fields(kda, f"{f.prefix}linear_attn_config.", f.problems)
        heads, width = said.count("num_heads"), said.count("head_dim")
        return {
            "kind": "linear",
            "key_heads": heads,
            "value_heads": heads,
            "key_width": width,
            "value_width": width,
            "conv_tokens": said.count("short_conv_kernel_size", default=1),
            "delta_rule": True,
            "head_gates": 1,
            "decay_rank": width,
            "output_gate": True,
        }
    if not f.config.get("linear_num_value_heads"):
        f.problems.append(f"{f.prefix}linear_num_value_heads is missing: linear attention of this form is not read")
        return {}
    return {
        "kind": "linear",
        "key_heads": f.count("linear_num_key_heads"),
        "value_heads": f.count("linear_num_value_heads"),
        "key_width": f.count("linear_key_head_dim"),
        "value_width": f.count("linear_value_head_dim"),
        "conv_tokens": f.count("linear_conv_kernel_dim", default=1),
        "delta_rule": True,
        "head_gates": 2,
        "output_gate": True,
    }


def read_mamba(f: Fields) -> dict[str, Any]:
    """Mamba-2: groups share B and C as heads share a key, the state's width is the key's, a head's size the value's."""
    f.read.update(("expand", "mamba_ssm_cache_dtype", "chunk_size"))
    return {
        "kind": "linear",
        "key_heads": f.count("n_groups"),
        "value_heads": f.count("mamba_num_heads"),
        "key_width": f.count("ssm_state_size"),
        "value_width": f.count("mamba_head_dim"),
        "conv_tokens": f.count("conv_kernel", default=1),
        "delta_rule": False,
        "head_gates": 1,
        "output_gate": True,
    }


ATTENTION: dict[str, AttentionKind] = {
    "csa": AttentionKind(
        title="compressed attention: an indexer picks among vectors of several tokens",
        found=lambda config, layers: _compressed(config, layers, "csa"),
        read=read_csa,
    ),
    "hca": AttentionKind(
        title="compressed attention: older tokens are cached many to one",
        found=lambda config, layers: _compressed(config, layers, "hca"),
        read=read_hca,
    ),
    "near": AttentionKind(
        title="compressed attention: the window alone",
        found=lambda config, layers: _compressed(config, layers, "window"),
        read=_compressing,
    ),
    "linear": AttentionKind(title="linear attention: a state instead of a KV cache", found=_linear, read=read_linear),
    "mamba": AttentionKind(title="Mamba layers: a state instead of a KV cache", found=_mamba),
    "block-sparse": AttentionKind(
        title="block-sparse attention: a query reads the blocks that an indexer picks",
        found=_block_sparse,
        read=read_block_sparse,
    ),
    "sparse-shared": AttentionKind(
        title="sparse attention: a query reads the tokens that another layer's indexer picked",
        found=_shared_picks,
        read=read_shared_picks,
    ),
    "sparse": AttentionKind(
        title="sparse attention: a query reads the tokens that an indexer picks", found=_sparse, read=read_sparse
    ),
    "window": AttentionKind(
        title="attention to a window of the last tokens", found=_window, read=read_window, a_part=True
    ),
    "chunked": AttentionKind(title="attention inside chunks of tokens", found=_chunked, read=read_chunked, a_part=True),
}
"""Kinds of attention beside full attention, in the order in which they claim a layer."""

PLAIN_TYPES = ("full_attention", "attention")
"""What layer_types calls full attention."""


def attention_of_layers(f: Fields, layers: int, full_attention: bool) -> tuple[dict[str, Any], list[str], list[str]]:
    """Specs of attention by name, each layer's name, and remarks; a kind that is not modelled becomes a problem.

    full_attention: read kinds that attend to a part of the context as full attention, an upper bound.
    """
    names, remarks = ["full"] * min(layers, MOST_LAYERS), []
    f.read.update(("layer_types", "sliding_window", "use_sliding_window", "attn_type_list", "hybrid_layer_pattern",
                   "attention_chunk_size", "max_window_layers", "no_rope_layers", "nope_layer_interval",
                   "sliding_window_pattern", "_sliding_window_pattern", "full_attention_interval"))  # fmt: skip
    for name, kind in ATTENTION.items():
        found = kind.found(f.config, len(names))
        claimed = [i for i in found[1] if i < len(names) and names[i] == "full"] if found else []
        if not found or not claimed:
            continue
        written = f"{f.prefix}{found[0]} = {short(f.config[found[0]])}"
        said = f"{written}: {kind.title}, in {len(claimed)} of {len(names)} layers"
        if kind.read is not None and not (full_attention and kind.a_part):
            for i in claimed:
                names[i] = name
        elif kind.a_part and full_attention:
            remarks.append(f"{said}; read as full attention: an upper bound")
        else:
            hint = " (--full-attention reads such layers as full ones, an upper bound)" if kind.a_part else ""
            f.problems.append(f"{said}; it is not modelled{hint}")
            for i in claimed:
                names[i] = name
    known = {*PLAIN_TYPES, "sliding_attention", "chunked_attention", "linear_attention", "lightning_attention", "mamba",
             "mamba2", "ssm", "deepseek_sparse_attention", "sparse_attention"}  # fmt: skip
    if not f.problems and (odd := sorted({str(kind) for kind in listed(f.config.get("layer_types"))} - known)):
        f.problems.append(f"{f.prefix}layer_types has {', '.join(odd)}: not a kind that is known here")
    if f.problems:
        return {}, names, remarks
    specs = {}
    for name in dict.fromkeys(names):
        reader = read_full if name == "full" else ATTENTION[name].read
        assert reader is not None
        specs[name] = reader(f)
    if f.problems:
        return {}, names, remarks
    called = {name: spec["kind"] if name == "full" else name for name, spec in specs.items()}
    return {called[name]: spec for name, spec in specs.items()}, [called[name] for name in names], remarks


# --- What a spec says by a key of its own ----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Feature:
    """Something that changes a layer: the fields that say so, and the key by which a spec expresses it.

    value: what the key is set to, of the field's value; None where the field says no such thing.
    """

    fields: tuple[str, ...]
    key: str
    title: str
    value: Callable[[Any], Any] = lambda given: True if given else None


ATTENTION_FEATURES = (
    Feature(
        fields=("attn_output_gate", "attention_output_gate", "mla_use_output_gate"),
        key="output_gate",
        title="a gate on attention's output",
    ),
    Feature(
        fields=("model_type",),
        key="sinks",
        title="a learned sink beside the scores of each head",
        value=lambda given: True if given == "gpt_oss" else None,
    ),
)
FFN_FEATURES = (
    Feature(
        fields=("hidden_act", "mlp_hidden_act", "hidden_activation", "activation_function"),
        key="gated",
        title="an FFN without a gate",
        value=lambda given: False if given in ("relu2", "relu", "gelu_new", "gelu_fast", "xielu") else None,
    ),
)
ROUTED_FEATURES = (
    *FFN_FEATURES,
    Feature(
        fields=("moe_latent_size", "routed_expert_hidden_size"),
        key="latent_size",
        title="experts that see a projection of the residual stream",
        value=lambda given: given or None,
    ),
)


def _express(f: Fields, record: Any, features: tuple[Feature, ...]) -> dict[str, Any]:
    """The keys by which a spec says what the config has; what the record has no key for is a problem."""
    said: dict[str, Any] = {}
    for feature in features:
        f.read.update(feature.fields)
        for field in feature.fields:
            value = feature.value(f.config.get(field))
            if value is None:
                continue
            if feature.key in record.model_fields:
                said[feature.key] = value
            else:
                f.problems.append(f"{f.prefix}{field} = {short(f.config[field])}: {feature.title}; it is not modelled")
            break
    return said


REFUSED = {
    "num_kv_shared_layers": "layers that share another layer's KV cache",
    "use_cla": "layers that share another layer's KV cache",
    "cross_attention_layers": "cross-attention layers",
    "add_cross_attention": "cross-attention layers",
    "is_encoder_decoder": "an encoder beside the decoder",
    "block_configs": "layers that differ from each other one by one",
    "hidden_size_per_layer_input": "an embedding for each layer",
    "use_head_wise_attn_gate": "a gate on each head's output",
    "zero_expert_num": "experts that return a token as it is, beside layers with two attentions (LongCat-Flash)",
    "parallel_attn_mlp_res": "a dense FFN beside the experts of a layer (Arctic)",
    "share_q_dim": "queries through a low rank that heads share (Step-3)",
}
"""Fields that change a layer in a way that no equation here expresses, and what they mean."""


def refusals(f: Fields) -> list[str]:
    """A sentence for each field that changes a layer in a way that is not modelled."""
    f.read.update(REFUSED)
    return [
        f"{f.prefix}{field} = {short(f.config[field])}: {why}; it is not modelled"
        for field, why in REFUSED.items()
        if f.config.get(field)
    ]


# --- Feed-forward networks -------------------------------------------------------------------------------------------

ROUTED = ("n_routed_experts", "num_local_experts", "num_experts", "moe_num_experts")
TOP_K = ("num_experts_per_tok", "experts_per_token", "num_experts_per_token", "moe_k", "moe_topk", "top_k_experts")
SHARED = ("n_shared_experts", "num_shared_experts", "num_shared_expert", "moe_num_shared_experts")
SHARED_WIDTH = ("moe_shared_expert_intermediate_size", "shared_expert_intermediate_size", "shared_intermediate_size",
                "share_expert_dim")  # fmt: skip


BLOCKS = {"M": "mamba", "*": "attention", "-": "mlp", "E": "moe"}
"""Letters of hybrid_override_pattern, and the words of layers_block_type."""


def blocks(config: Config) -> list[str]:
    """The blocks of a config that lists mixers and FFNs one by one, by the words of layers_block_type; else none."""
    pattern = config.get("hybrid_override_pattern")
    if isinstance(pattern, str):
        return [BLOCKS.get(letter, letter) for letter in pattern]
    return [str(each) for each in listed(config.get("layers_block_type"))]


def layers_of_blocks(f: Fields) -> tuple[dict[str, Any], dict[str, Any], list[dict[str, Any]]]:
    """Attention, FFNs and layers of a config that lists blocks: a mixer and the FFN behind it, if there is one."""
    f.read.update(("hybrid_override_pattern", "layers_block_type", "num_hidden_layers", "moe_layer_freq"))
    pairs: list[list[str]] = []
    for place, block in enumerate(blocks(f.config)[:MOST_LAYERS]):
        if block in ("mamba", "attention"):
            pairs.append(["mamba" if block == "mamba" else "gqa", "none"])
        elif block in ("mlp", "moe") and pairs and pairs[-1][1] == "none":
            pairs[-1][1] = "dense" if block == "mlp" else "moe"
        else:
            f.problems.append(f"{f.prefix}block {place}, {short(block)}: no mixer, and no FFN behind one")
            return {}, {}, []
    attention: dict[str, Callable[[Fields], dict[str, Any]]] = {"mamba": read_mamba, "gqa": read_full}
    ffn: dict[str, Callable[[Fields], dict[str, Any]]] = {
        "dense": _dense,
        "moe": _routed,
        "none": lambda f: {"kind": "none"},
    }
    found = [{name: reader(f) for name, reader in readers.items() if any(pair[i] == name for pair in pairs)}
             for i, readers in enumerate((attention, ffn))]  # fmt: skip
    return found[0], found[1], listed_runs([(mixer, behind) for mixer, behind in pairs])


def _dense(f: Fields) -> dict[str, Any]:
    width = f.count("intermediate_size_mlp", "dense_intermediate_size", "intermediate_size", "ffn_hidden_size")
    return {"kind": "dense", "intermediate_size": width, **_express(f, DenseFfn, FFN_FEATURES)}


def _routed(f: Fields) -> dict[str, Any]:
    return {"kind": "routed", **_experts(f), **_express(f, RoutedFfn, ROUTED_FEATURES)}


def ffn_of_layers(f: Fields, layers: int) -> tuple[dict[str, Any], list[str]]:
    """Specs of feed-forward networks by name, and each layer's name."""
    moe = moe_layers(f, layers)
    specs: dict[str, Any] = {}
    if not all(moe):
        specs["dense"] = _dense(f)
    if any(moe):
        specs["moe"] = _routed(f)
    return specs, ["moe" if routed else "dense" for routed in moe]


def moe_layers(f: Fields, layers: int) -> list[bool]:
    """Which layers have experts: all but the first few, every n-th, or those listed; none without experts."""
    numbers = range(min(layers, MOST_LAYERS))
    if f.count(*ROUTED, default=0) <= 1:
        return [False for _ in numbers]
    f.read.update(("mlp_layer_types", "moe_layer_freq"))
    listed_moe = f.layers("moe_layers")
    if listed_moe is not None:
        return [i in listed_moe for i in numbers]
    by_type = listed(f.config.get("mlp_layer_types"))
    if len(by_type) >= len(numbers):
        return [by_type[i] == "sparse" for i in numbers]
    by_layer = listed(f.config.get("moe_layer_freq"))
    if by_layer:
        return [i < len(by_layer) and bool(by_layer[i]) for i in numbers]
    first = f.count("first_k_dense_replace", "moe_layer_start_index", "num_dense_layers", default=0)
    last = f.config.get("moe_layer_end_index")
    f.read.add("moe_layer_end_index")
    last = last if isinstance(last, int) and last >= 0 else len(numbers)
    every = f.count("moe_layer_freq", default=1)
    step = f.count("decoder_sparse_step", "interleave_moe_layer_step", "moe_layer_interval", default=1)
    dense = f.layers("mlp_only_layers") or set()
    return [
        first <= i <= last and i % max(every, 1) == 0 and (i + 1) % max(step, 1) == 0 and i not in dense
        for i in numbers
    ]


def _experts(f: Fields) -> dict[str, Any]:
    """Counts and widths of experts; shared ones by their number, by their width, or by both."""
    width = f.count("moe_intermediate_size", "expert_intermediate_size", "moe_ffn_hidden_size", "intermediate_size",
                    "ffn_hidden_size")  # fmt: skip
    # Llama 4 has one shared expert as wide as a routed one, and no field for it
    shared_width = f.count(*SHARED_WIDTH, default=0)
    default = 1 if f.config.get("model_type") == "llama4_text" or shared_width else 0
    shared = f.count(*SHARED, default=default)
    f.read.add("enable_moe_block")
    if f.config.get("enable_moe_block"):  # Gemma 4: every token passes a dense FFN beside its experts
        shared, shared_width = 1, f.count("intermediate_size")
    return {
        "routed": f.count(*ROUTED),
        "top_k": f.count(*TOP_K),
        "intermediate_size": width,
        "shared": shared,
        "shared_intermediate_size": (shared_width or width) if shared else 0,
    }
