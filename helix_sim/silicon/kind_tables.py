"""Measured tables of windowed, sparse, compressed, block-sparse and linear attention, read in place and made tidy.

Of the package that `silicon.aic_tables` reads, with its conventions. How each was collected is public
(https://github.com/ai-dynamo/aiconfigurator, folder `collector/`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from helix_sim.silicon import aic_tables as silicon

if TYPE_CHECKING:
    import pandas as pd

Kind = Literal["sparse", "csa", "hca", "block-sparse"]

MODULES: dict[Kind, tuple[str, str]] = {
    "sparse": ("sparse_attention", "dsa_generation_module_perf"),
    "csa": ("sparse_attention", "dsv4_csa_generation_module_perf"),
    "hca": ("sparse_attention", "dsv4_hca_generation_module_perf"),
    "block-sparse": ("msa", "msa_generation_module_perf"),
}
"""Family and table of whole modules of a kind."""

STEP_IS_BEFORE = ("msa",)
"""Families whose `step` counts the tokens before the new one (1, 3, 7, …), and not the context itself (2, 4, 8, …)."""


def attention_module(system: str, framework: str, kind: Kind) -> pd.DataFrame:
    """Decode attention of one layer, whole, of a kind that reads a part of the context; one new token a request.

    Columns: model, batch, context, q_heads (on this GPU), kv_format, gemm_format, seconds, kernel, source. From the
    first projection to the last one's partial sums: the indexer and its cache, the core, the output projection; no norm
    of the residual stream and no all-reduce (the public collector calls the attention module alone, on one GPU, whose
    heads it cuts to a rank's). A context within `top_k` skips the indexer's scores.

    Checked: milliseconds: GB200, TensorRT-LLM, 16 heads of DeepSeek-V3.2, 131,072 tokens: 128 more requests take 555 µs
    more, 2.2 GB of index keys at 4.0 TB/s of 8.0. Weights are dummies, so what is picked is the same everywhere.
    """
    family, name = MODULES[kind]
    raw = silicon.read(system, family, framework, name)
    raw = raw[~raw["op_name"].str.contains("skip_indexer")]
    tidy = raw.assign(
        batch=raw["batch_size"],
        context=raw["step"] + (1 if family in STEP_IS_BEFORE else 0),
        q_heads=raw["num_heads"],
        kv_format=raw["kv_cache_dtype"].replace({"bfloat16": "bf16"}),
        gemm_format=raw["gemm_type"].replace({"bfloat16": "bf16"}),
    )
    return silicon.by_cell(tidy, ["model", "batch", "context", "q_heads", "kv_format", "gemm_format"])


def index_logits(system: str) -> pd.DataFrame:
    """DeepGEMM's paged scores of one new token's 64 index queries against compressed keys, FP8, as SGLang runs it.

    Columns: batch, context (4 tokens leave one key of 128 values and a scale, 132 bytes), seconds, kernel, source.

    Checked: `isl` counts new tokens and `step` those before them; milliseconds.
    """
    raw = silicon.read(system, "sparse_attention", "sglang", "dsv4_paged_mqa_logits_module_perf")
    raw = raw[raw["isl"] == 1]
    return silicon.by_cell(raw.assign(batch=raw["batch_size"], context=raw["step"] + 1), ["batch", "context"])


def index_top_k(system: str, *, alike: bool) -> pd.DataFrame:
    """SGLang's choice of the best 2,048 of a token's scores: of scores that are all alike, or the last of which are
    best.

    All alike is what modules with dummy weights have: every digit of every score has to be looked at.

    Columns: batch, context, seconds, kernel, source.

    Checked: a row of no time is of a context within 2,048 tokens, which has nothing to choose; left out here.
    """
    raw = silicon.read(system, "sparse_attention", "sglang", "glm5_topk_module_perf")
    raw = raw[(raw["isl"] == 1) & (raw["score_mode"] == ("flat" if alike else "top_last")) & (raw["latency"] > 0)]
    return silicon.by_cell(raw.assign(batch=raw["batch_size"], context=raw["step"] + 1), ["batch", "context"])


def linear_attention(system: str, framework: str) -> pd.DataFrame:
    """Decode kernels of gated delta nets, KDA and Mamba-2: the short convolution and the update of the state.

    Columns: kind (gdn, kda, mamba2), op ("convolution" or "state"), batch, query_tokens (new tokens of a request: one,
    or those of a draft that is verified), key_heads, value_heads, key_width, value_width, conv_tokens, state_format,
    seconds, kernel, source. Heads are of one GPU. Kernels that fuse the convolution with the update are "state".

    Checked: milliseconds: 64 value heads of 512 requests take 525 µs in TensorRT-LLM on GB200, which would be 8.2 TB/s
    of 8.0 for FP32 states; the public collector makes them BF16 there, and FP32 in SGLang's and vLLM's. Of Mamba-2 in
    TensorRT-LLM only the convolution was measured.
    """
    import pandas as pd

    found = []
    for family, kind in (("linear_attention", "gdn"), ("kda", "kda"), ("linear_attention", "mamba2")):
        if not silicon.versions(system, family, framework, f"{kind}_perf"):
            continue
        raw = silicon.read(system, family, framework, f"{kind}_perf")
        raw = raw[raw["phase"] != "context"]
        mamba = kind == "mamba2"
        tidy = raw.assign(
            kind=kind,
            op=raw["kernel_source"].str.contains("conv1d").map({True: "convolution", False: "state"}),
            batch=raw["batch_size"],
            query_tokens=raw["seq_len"],
            key_heads=raw["n_groups" if mamba else "num_k_heads"],
            value_heads=raw["nheads" if mamba else "num_v_heads"],
            key_width=raw["d_state" if mamba else "head_k_dim"],
            value_width=raw["head_dim" if mamba else "head_v_dim"],
            conv_tokens=raw["d_conv"],
            state_format="bf16" if framework == "trtllm" else "fp32",
        )
        keys = ["kind", "op", "batch", "query_tokens", "key_heads", "value_heads", "key_width", "value_width"]
        found.append(silicon.by_cell(tidy, [*keys, "conv_tokens", "state_format"]))
    return pd.concat(found, ignore_index=True)
