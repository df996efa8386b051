"""Measured kernels and servings: the tables of `aiconfigurator-core` 0.12.0, read in place and made tidy.

Source: PyPI package `aiconfigurator-core`, NVIDIA, Apache-2.0, folder `systems/`. Nothing of it is copied here.
Every function returns a pandas frame whose columns are physical and in helix_sim's units (seconds, bytes), one row
per measured cell, with `kernel` (what ran) and `source` (which table). The first paragraph of each docstring says what
is measured; the second, how meaning and unit were checked. Nothing is judged or left out on the way: rows that look
wrong stay in, so that whoever fits them says which they leave out.

What holds for all kernel tables:
- kernels are timed alone on otherwise idle GPUs, inside CUDA graphs unless `kernel` says eager; on Blackwell the timer
  resolves about 2 µs, which shows as plateaus at 11, 13, 15, ... µs;
- `latency` is in milliseconds, but for the `moe_a2a` and `deepep` tables, which are in microseconds;
- the attention tables repeat one cache that fits into L2 when small (see `attention_gqa`); the GEMM weights do not.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from importlib import metadata
from pathlib import Path

import pandas as pd
import yaml

from helix_sim.silicon.systems import machine_of, tables_of
from helix_sim.specs.load import load_framework

DISTRIBUTION = "aiconfigurator-core"
VERSION = "0.12.0"

_FORMAT = {"bfloat16": "bf16", "half": "fp16"}
_DTYPE_BYTES = {"bfloat16": 2, "half": 2, "int8": 1}
_MICROSECONDS = 1e-6
_MILLISECONDS = 1e-3
# Experts of two matrices (up, down) and squared ReLU; TensorRT-LLM's table labels them, the others' do not.
_UNGATED = {(2688, 1856), (1024, 2688), (4096, 2688), (2048, 5120), (8192, 5120)}


class TablesMissing(RuntimeError):
    """The package of measured tables is absent, or is not the version whose meaning was checked."""


class NoSuchTable(LookupError):
    """The package is there, but does not have this table for this system and framework."""


@cache
def root() -> Path:
    """Folder `systems/` of the installed package."""
    how = f"pip install 'helix-sim[silicon]' brings {DISTRIBUTION} {VERSION} (wheels for Linux x86-64 only)"
    try:
        distribution = metadata.distribution(DISTRIBUTION)
    except metadata.PackageNotFoundError:
        raise TablesMissing(f"The measured tables are not installed: {how}.") from None
    if distribution.version != VERSION:
        found = f"{DISTRIBUTION} {distribution.version} is installed, but its tables were checked at {VERSION}"
        raise TablesMissing(f"{found}: {how}.")
    folder = Path(str(distribution.locate_file("aiconfigurator_core"))) / "systems"
    if not (folder / "data").is_dir():
        raise TablesMissing(f"{DISTRIBUTION} {VERSION} is installed without its tables ({folder / 'data'}): {how}.")
    return folder


def versions(system: str, family: str, framework: str, name: str) -> tuple[str, ...]:
    """Framework versions that have this table, oldest first."""
    folder = root() / "data" / tables_of(system).folder / family / framework
    return tuple(sorted((p.parent.name for p in folder.glob(f"*/{name}.parquet")), key=_version_key))


_software: ContextVar[Mapping[str, str] | None] = ContextVar("software", default=None)


@contextmanager
def software(framework: str, version: str) -> Iterator[None]:
    """Inside, this framework's tables are those of the time of a version: see `default_version`."""
    before = _software.set({**(_software.get() or {}), framework: version})
    try:
        yield
    finally:
        _software.reset(before)


def default_version(system: str, family: str, framework: str, name: str) -> str:
    """The version that the package declares current for this framework; where that lacks the table, the newest with it.

    Versions newer than the declared are partial collections for one new model (trtllm 1.3.0rc23 has 2 MoE shapes of
    45). Inside `software` it is the newest that is not newer than the named version, else the oldest there is.
    """
    have = versions(system, family, framework, name)
    if not have:
        raise NoSuchTable(f"{DISTRIBUTION} {VERSION} has no {family}/{name} for {framework} on {system}.")
    if wanted := (_software.get() or {}).get(framework):
        return max((v for v in have if _version_key(v) <= _version_key(wanted)), key=_version_key, default=have[0])
    declared = _declared_versions(system).get(framework)
    return declared if declared in have else have[-1]


def selection(system: str, framework: str) -> dict[tuple[str, str], str]:
    """(family, table) → version that is read, of every table that a framework has on a system."""
    folder = root() / "data" / tables_of(system).folder
    tables = {(path.parts[-4], path.stem) for path in folder.glob(f"*/{framework}/*/*.parquet")}
    return {table: default_version(system, table[0], framework, table[1]) for table in sorted(tables)}


def read(system: str, family: str, framework: str, name: str, version: str | None = None) -> pd.DataFrame:
    """One table as stored, with its coordinates in `source`."""
    chosen = version or default_version(system, family, framework, name)
    path = root() / "data" / tables_of(system).folder / family / framework / chosen / f"{name}.parquet"
    if not path.is_file():
        have = ", ".join(versions(system, family, framework, name)) or "none"
        raise NoSuchTable(f"{family}/{name} of {framework} {chosen} on {system} is not there; versions: {have}.")
    return pd.read_parquet(path).assign(source=f"{system}/{family}/{framework}/{chosen}/{name}")


def attention_mla(system: str, framework: str, version: str | None = None) -> pd.DataFrame:
    """Decode MLA core, absorbed: `batch` queries of `q_heads` local heads against a latent cache of `context` tokens.

    Columns: batch, context, q_heads (on this GPU), kv_heads (1), kv_format, math_format, seconds, kernel, source.
    TensorRT-LLM and SGLang; vLLM has `mla_module` only. No projection, no up-projection: those are `mla_up_projection`
    and `gemm`.

    Checked: `step` is the cache before this token (1, 3, 7, … 131,071), so context = step + 1. `num_heads` is local:
    tp_size · num_heads = 128 throughout and time falls with it. At batch 1024, context 16,384 and one head 576-wide
    FP8 rows give 7.1 TB/s of 8.0 on GB200, so milliseconds and one read of the latent per query. With an FP8 cache
    and 128 heads GB200 reaches 3.0 PFLOP/s, above its 2.5 of BF16: arithmetic follows the cache there (the label
    mla_dtype says bfloat16 throughout); Hopper stays below BF16's peak. SGLang's FP8 cache on Hopper is ten times
    slower than its BF16 one (35 ms at the far end): real rows, of a kernel nobody would choose.
    """
    raw = read(system, "mla", framework, "generation_mla_perf", version)
    kv = raw["kv_cache_dtype"].replace(_FORMAT)
    tidy = raw.assign(
        batch=raw["batch_size"],
        context=raw["step"] + 1,
        q_heads=raw["num_heads"],
        kv_heads=1,
        kv_format=kv,
        math_format=kv if multiplies_in_fp8(system) else "bf16",
    )
    return by_cell(tidy, ["batch", "context", "q_heads", "kv_heads", "kv_format", "math_format"])


def multiplies_in_fp8(system: str) -> bool:
    """Whether a system's attention multiplies in FP8 where its cache is FP8."""
    fact = machine_of(system).fp8_attention
    assert fact is not None
    return fact.value


def mla_module(system: str, framework: str, version: str | None = None) -> pd.DataFrame:
    """Decode MLA of one layer, whole: projections, up-projections, rope, core and output projection of the local heads.

    Columns: batch, context, q_heads, kv_format, gemm_format (of the projections), seconds, kernel, source.
    SGLang's is its "wideep" table (FP8 cache, fp8_block projections). For judging sums of kernels, not for fitting.

    Checked: `step` counts 2, 4, … 131,072 here: the context itself (SGLang's keeps it in `isl`, `step` is 0). Less
    the core at the same cell, TensorRT-LLM's BF16 module on GB200 at batch 1 leaves 75 µs for 128 heads: 374 MB of
    projection weights at 5.0 TB/s. The remainder does not depend on context.
    """
    sglang = framework == "sglang"
    name = "wideep_generation_mla_perf" if sglang else "mla_generation_module_perf"
    raw = read(system, "mla", framework, name, version)
    tidy = raw.assign(
        batch=raw["batch_size"],
        context=raw["isl"] if sglang else raw["step"],
        q_heads=raw["num_heads"],
        kv_format=raw["kv_cache_dtype"].replace(_FORMAT),
        gemm_format=raw["gemm_type"].replace(_FORMAT),
    )
    return by_cell(tidy, ["batch", "context", "q_heads", "kv_format", "gemm_format"])


def attention_gqa(system: str, framework: str, version: str | None = None) -> pd.DataFrame:
    """Decode attention core over `kv_heads` local heads of K and of V, `head_dim` wide.

    Columns: batch, context, q_heads, kv_heads, head_dim, window (0: full attention), kv_format, math_format (as
    labelled; bandwidth binds long before it), seconds, kernel, source.

    Checked: context = step + 1; heads are local. K and V of head_dim 256 read at 7.7 TB/s of 8.0 on GB200, so
    milliseconds, one read of either. `window` cuts what is read (70 times the datasheet rate if it did not). The
    benchmark repeats one cache: while that fits into L2 (126 MB on Blackwell, 50 MB on Hopper) it is served from
    there, and time drops by half between 134 and 67 MB, at every shape. A decode step streams all layers' weights
    between two visits to one layer's cache, so what is warm here is cold there: a fit has to know.
    """
    raw = read(system, "attention", framework, "generation_attention_perf", version)
    tidy = raw.assign(
        batch=raw["batch_size"],
        context=raw["step"] + 1,
        q_heads=raw["num_heads"],
        kv_heads=raw["num_key_value_heads"],
        window=raw["window_size"],
        kv_format=raw["kv_cache_dtype"].replace(_FORMAT),
        math_format=raw["attn_dtype"].replace(_FORMAT),
    )
    keys = ["batch", "context", "q_heads", "kv_heads", "head_dim", "window", "kv_format", "math_format"]
    return by_cell(tidy, keys)


def gemm(system: str, framework: str, version: str | None = None) -> pd.DataFrame:
    """Linear layer y[m, n] = x[m, k] · w[k, n] of one GPU, BF16 in and out, weights (and arithmetic) in `format`.

    Columns: m (tokens), n, k, format, seconds, kernel, source. `fp8` is per tensor, `fp8_block` 128×128 blocks,
    `nvfp4` 16-value blocks. What TensorRT-LLM times includes quantising x: floors are 1.8 µs (bf16), 5 (fp8_block),
    6 (nvfp4) and 12 µs (fp8, two more kernels).

    Checked: 3.36 GB of FP8 weights (65,536 × 51,200) take 0.485 ms on GB200, 6.9 TB/s of 8.0: milliseconds. BF16
    reaches 0.77 of 2.5 PFLOP/s, nvfp4 0.52 of 10. Weights come from HBM (no step at the L2's size), activations may
    not: 23 rows with n = 32 and m ≥ 8192 are up to 1.32 times faster than HBM would give x.
    """
    raw = read(system, "gemm", framework, "gemm_perf", version)
    return by_cell(raw.assign(format=raw["gemm_dtype"].replace(_FORMAT)), ["m", "n", "k", "format"])


def grouped_gemm(system: str, framework: str, version: str | None = None) -> pd.DataFrame:
    """Routed experts of one GPU: permute, gate-up, activation, down, weighted sum, for the experts it holds.

    Columns: tokens (of the whole expert-parallel group, not of one GPU), hidden, intermediate (of a whole expert),
    experts (in all), top_k, moe_tp (inside an expert), moe_ep (GPUs over which experts are spread), format, routing
    ("balanced" or "power_law_A"), skew (A, 0 for balanced), gated, seconds, kernel, source. No router, no shared
    expert, no communication. One shape may have several kernels (TensorRT-LLM: cutlass and min_latency): a server runs
    one. SGLang's Blackwell tables hold a quarter of the cells twice: they differ by 0.8 % in the median, 4 % at the
    ninth decile, which is the noise that no model can get below.

    Checked: balanced fp8_block on GB200 at 256 experts, moe_ep = 1 grows linearly up to 32 tokens × top 8 = 256
    distinct experts, then stays at 1.9 ms until 1024 tokens: 11.3 GB at 6.0 TB/s, so milliseconds, distinct experts,
    three matrices of a gated expert. Arithmetic at 16,384 tokens falls as 1 / moe_ep, so `tokens` is the group's. How
    loads are drawn is known from the collector's public source (ai-dynamo/aiconfigurator, collector/helper.py): an
    expert's load follows a truncated power law x^-A between 1 and 0.8 tokens (0.01 and 2 where tokens · top_k ≤
    experts), scaled to tokens · top_k; the GPU measured is the one with the largest sum.
    """
    return _experts(read(system, "moe", framework, "moe_perf", version))


def _experts(raw: pd.DataFrame) -> pd.DataFrame:
    """A table of experts by physical columns."""
    tidy = raw.assign(
        tokens=raw["num_tokens"],
        hidden=raw["hidden_size"],
        intermediate=raw["inter_size"],
        experts=raw["num_experts"],
        top_k=raw["topk"],
        moe_tp=raw["moe_tp_size"],
        moe_ep=raw["moe_ep_size"],
        format=raw["moe_dtype"].replace(_FORMAT),
        routing=raw["distribution"],
        skew=raw["distribution"].str.extract(r"power_law_([\d.]+)$")[0].astype(float).fillna(0.0),
        gated=[pair not in _UNGATED for pair in zip(raw["hidden_size"], raw["inter_size"], strict=True)],
    )
    keys = ["tokens", "hidden", "intermediate", "experts", "top_k", "moe_tp", "moe_ep", "format", "routing", "skew"]
    return by_cell(tidy, [*keys, "gated"])


def dispatched_experts(system: str, framework: str, version: str | None = None) -> pd.DataFrame:
    """Routed experts of one GPU behind a dispatch: masked products over the rows that came for each expert it holds.

    Columns: as `grouped_gemm`. SGLang alone, DeepSeek's experts in 128x128 FP8 blocks, over 2 to 256 GPUs.

    Checked: `num_tokens` is of the whole group: the public collector (ai-dynamo/aiconfigurator, collect_deepep_moe)
    multiplies a rank's tokens by its ranks, and 1 to 128 a rank are there. "uniform" at 32 tokens over 4 GPUs reads 64
    experts of 44 MB in 1.05 ms on H100: 2.7 TB/s of 3.35, and no more with 16 times the tokens.
    """
    raw = read(system, "moe", framework, "wideep_generation_moe_perf", version)
    return _experts(raw.assign(distribution=raw["distribution"].replace("uniform", "balanced")))


def mla_up_projection(system: str, framework: str, version: str | None = None) -> pd.DataFrame:
    """Batched product of absorbed MLA, one small matrix per local head: [heads, tokens, k] · [heads, k, n].

    Columns: stage ("query": 128 → 512 before the core, "value": 512 → 128 behind it), tokens, heads, k, n, format,
    seconds, kernel, source.

    Checked: 20,480 tokens of 128 heads move 3.4 GB in 0.556 ms on GB200, 6.0 TB/s with k and n as above. "fp8" of
    TensorRT-LLM keeps BF16 arithmetic (dequantised weights, same times); SGLang's FP8 is its own, slower kernel.
    """
    raw = read(system, "mla_bmm", framework, "mla_bmm_perf", version)
    query = raw["op_name"] == "mla_gen_pre"
    tidy = raw.assign(
        stage=query.map({True: "query", False: "value"}),
        tokens=raw["num_tokens"],
        heads=raw["num_heads"],
        k=query.map({True: 128, False: 512}),
        n=query.map({True: 512, False: 128}),
        format=raw["bmm_dtype"].replace(_FORMAT),
    )
    return by_cell(tidy, ["stage", "tokens", "heads", "k", "n", "format"])


def quantise(system: str, framework: str, version: str | None = None) -> pd.DataFrame:
    """Elementwise pass: [m, k] of BF16 read, FP8 written at a scale known beforehand; 3 bytes a value.

    Columns: m, k, bytes, seconds, kernel, source. The stand-in for every elementwise kernel, for want of others.

    Checked: 32,768 × 65,536 values take 0.937 ms on GB200: 6.9 TB/s of 8.0; floor 1.8 µs. SGLang's op has another
    meaning (it derives the scale as well), with a floor of 5.5 µs.
    """
    raw = read(system, "quantize", framework, "scale_matrix_perf", version)
    return by_cell(raw.assign(bytes=3.0 * raw["m"] * raw["k"]), ["m", "k", "bytes"])


def all_reduce(system: str, framework: str, version: str | None = None) -> pd.DataFrame:
    """The framework's own all-reduce inside a captured graph (one-shot or two-shot; large messages fall back to NCCL).

    Columns: ranks, bytes (of the buffer on each rank), seconds, kernel, source. Ranks: 2 and 4 on GB200 (one tray), up
    to 8 on HGX, up to 16 on GB300 (TensorRT-LLM's kernels across trays: one-shot to 128 KiB over 8 ranks, 64 KiB over
    16, two-shot beyond). Eager rows (tens of µs of launch) are left out.

    Checked: `message_size` counts BF16 elements: at equal counts large messages equal NCCL's `half` rows within 6 %,
    and NCCL's `half` takes what `int8` takes at twice the count. 4 GPUs, 2^29 elements, 2.57 ms: 2 · 3/4 · 1.07 GB
    move at 626 GB/s of 900.
    """
    raw = read(system, "comm", framework, "custom_allreduce_perf", version)
    raw = raw[~raw["kernel_source"].str.contains("eager")]
    size = raw["allreduce_dtype"].map(_DTYPE_BYTES)
    return by_cell(raw.assign(ranks=raw["num_gpus"], bytes=size * raw["message_size"]), ["ranks", "bytes"])


def nccl(system: str, version: str | None = None) -> pd.DataFrame:
    """NCCL collectives inside one NVLink node.

    Columns: op (all_reduce, all_gather, reduce_scatter, all_to_all), ranks, bytes (the larger buffer: all ranks' parts
    together), seconds, kernel, source. Equal bytes of two dtypes are one cell, as are repeated collections: the median.

    Checked: as in `all_reduce`. all_gather of 2^28 `half` over 4 GPUs takes 0.705 ms: 571 GB/s a GPU if the count is
    of the gathered buffer, 2.3 TB/s, impossible, if of one rank's part. reduce_scatter and all-to-all likewise.
    """
    raw = read(system, "comm", "nccl", "nccl_perf", version)
    tidy = raw.assign(
        op=raw["op_name"].replace({"alltoall": "all_to_all"}),
        ranks=raw["num_gpus"],
        bytes=raw["nccl_dtype"].map(_DTYPE_BYTES) * raw["message_size"],
    )
    return by_cell(tidy, ["op", "ranks", "bytes"])


def expert_exchange(system: str, framework: str, version: str | None = None) -> pd.DataFrame:
    """MoE all-to-all over `ranks` GPUs, each holding `tokens` tokens: to their experts and back.

    Columns: op (prepare, dispatch, combine, combine_low_precision), tokens (per rank), hidden, top_k, experts, ranks,
    format (on the wire), sms (0: not a choice), routing, seconds, kernel, source. TensorRT-LLM on GB200: its NVLink
    kernels over 2 to 64 GPUs (two-sided: prepare + dispatch + combine; one-sided: dispatch + combine), else its DeepEP
    over one node; SGLang: DeepEP low-latency, over one node (on Hopper up to 8 nodes in its older version 0.5.6.post2);
    vLLM: DeepEP over one node.

    Checked: TensorRT-LLM's NVLink rows are milliseconds; 65,536 tokens of 7168 BF16 over 8 ranks go to 7 others each,
    combine in 12.8 ms: 514 GB/s of 900. The DeepEP tables are microseconds (their `latency`, too: one token, 51). In
    SGLang's the stated bandwidth times time is 8 copies · (7168 bytes + scales) out, FP8, and 8 · 7168 · 2 bytes
    back, BF16, for each token of a rank.
    """
    if framework == "sglang":
        return _deepep_low_latency(system, version)
    if framework == "trtllm" and versions(system, "comm", framework, "trtllm_alltoall_perf"):
        raw = read(system, "comm", framework, "trtllm_alltoall_perf", version)
        raw = raw.assign(op=raw["op_name"].str.removeprefix("alltoall_"), ranks=raw["moe_ep_size"], sms=0)
        raw = raw.assign(format=raw["moe_dtype"].replace(_FORMAT), routing=raw["distribution"])
        unit = _MILLISECONDS
    else:
        raw = read(system, "comm", framework, "moe_a2a_perf", version)
        raw = raw.assign(op=raw["phase"], ranks=raw["ep_size"], kernel_source=raw["comm_backend"], routing="unknown")
        raw = raw.assign(format=raw["comm_dtype"].replace(_FORMAT))
        unit = _MICROSECONDS
    raw = raw.rename(
        columns={"num_tokens": "tokens", "hidden_size": "hidden", "topk": "top_k", "num_experts": "experts"}
    )
    return by_cell(raw, _EXCHANGE_KEYS, unit)


def end_to_end() -> pd.DataFrame:
    """All 5,221 measured servings (`silicon_sample.csv`), SI units, with the half each row belongs to.

    Columns as stored, but for: framework (`backend`), framework_version, model (`model_path`), system (without _sxm),
    ttft_s, tpot_s, concurrency (from `silicon_data_source`, NaN where not stated), half ("development": even
    CRC-32 of the id, and not GB300; else "blind": reported, never looked at to decide).

    Checked: milliseconds: the development rows of DeepSeek lie between 5 and 61; a GPU of GB200 that reads an eighth of
    its NVFP4 weights takes 6. TPOT is taken as the client's time per token after the first; the file does not spell it
    out. No column speaks of speculation.
    """
    raw = pd.read_csv(root() / "silicon_sample.csv")
    even = raw["id"].map(lambda name: zlib.crc32(name.encode()) % 2 == 0)
    tidy = raw.rename(columns={"backend": "framework", "backend_version": "framework_version", "model_path": "model"})
    return tidy.drop(columns=["silicon_ttft_ms", "silicon_tpot_ms"]).assign(
        system=raw["system"].str.removesuffix("_sxm"),
        concurrency=raw["silicon_data_source"].str.extract(r"silicon_concurrency=(\d+)")[0].astype(float),
        ttft_s=raw["silicon_ttft_ms"] * _MILLISECONDS,
        tpot_s=raw["silicon_tpot_ms"] * _MILLISECONDS,
        half=(even & (raw["system"] != "gb300")).map({True: "development", False: "blind"}),
    )


def served_version(framework: str, named: str) -> str:
    """A framework's own version, of the release that a serving names."""
    releases = load_framework(framework).releases
    return releases.versions.get(named, named) if releases else named


def disaggregated_decode() -> pd.DataFrame:
    """The 274 servings whose decode workers' batch and layout are stated, one row each.

    Columns: id, half, framework, framework_version, model, system, precision, isl, osl, concurrency, workers, batch
    (per attention-DP rank, nominal), effective_batch, context (mean, isl + osl/2), tp (attention, inside one DP rank),
    dp (attention DP ranks), pp, moe_tp, moe_ep, gpus (of one decode worker), gemm_format, moe_format, ttft_s, tpot_s.

    gpus = tp · dp · pp = moe_tp · moe_ep on all rows of DeepSeek and Kimi. Dense models say 1 and 1, or 0 and 0 in the
    three vLLM rows of Qwen (two of them MoE, layout of experts unstated). `batch` is concurrency / (workers · dp)
    exactly, wherever that is stated; requests that wait for their first
    token are not being decoded, so effective_batch = batch · osl·TPOT / (TTFT + osl·TPOT), from the row's own
    measurements, never from a prediction.
    """
    rows = end_to_end()
    rows = rows[(rows["mode"] == "disagg") & rows["decode_batch_size"].notna()]
    decoding_s = rows["osl"] * rows["tpot_s"]
    tidy = rows.assign(
        workers=rows["decode_num_workers"].astype(int),
        batch=rows["decode_batch_size"],
        effective_batch=rows["decode_batch_size"] * decoding_s / (rows["ttft_s"] + decoding_s),
        context=rows["isl"] + rows["osl"] / 2,
        tp=rows["decode_tp_size"].astype(int),
        dp=rows["decode_attention_dp_size"].astype(int),
        pp=rows["decode_pp_size"].astype(int),
        moe_tp=rows["decode_moe_tp_size"].astype(int),
        moe_ep=rows["decode_moe_ep_size"].astype(int),
        gemm_format=rows["gemm_quant_mode"],
        moe_format=rows["moe_quant_mode"],
    )
    tidy = tidy.assign(gpus=tidy["tp"] * tidy["dp"] * tidy["pp"])
    columns = (
        "id half framework framework_version model system precision isl osl concurrency workers batch effective_batch "
        "context tp dp pp moe_tp moe_ep gpus gemm_format moe_format ttft_s tpot_s"
    )
    return tidy[columns.split()].reset_index(drop=True)


_EXCHANGE_KEYS = ["op", "tokens", "hidden", "top_k", "experts", "ranks", "format", "sms", "routing"]


def _deepep_low_latency(system: str, version: str | None) -> pd.DataFrame:
    raw = read(system, "comm", "sglang", "wideep_deepep_ll_perf", version)
    names = {"num_token": "tokens", "hidden_size": "hidden", "num_topk": "top_k", "num_experts": "experts"}
    raw = raw.rename(columns=names)
    raw = raw.assign(ranks=raw["node_num"] * machine_of(system).kernel_facts[2], sms=0, routing="unknown")
    out = raw.assign(op="dispatch", format="fp8_block", latency=raw["dispatch_avg_t_us"])
    back = raw.assign(op="combine", format="bf16", latency=raw["combine_avg_t_us"])
    return by_cell(pd.concat([out, back]), _EXCHANGE_KEYS, _MICROSECONDS)


def by_cell(raw: pd.DataFrame, keys: Sequence[str], unit: float = _MILLISECONDS) -> pd.DataFrame:
    """Keys, seconds, kernel, source; the median where one cell was collected more than once."""
    by = [*keys, "kernel", "source"]
    frame = raw.assign(seconds=raw["latency"] * unit, kernel=raw["kernel_source"])[[*by, "seconds"]]
    return frame.groupby(by, sort=False)["seconds"].median().reset_index()[[*keys, "seconds", "kernel", "source"]]


@cache
def _declared_versions(system: str) -> Mapping[str, str]:
    """Framework → version that `query_versions.yaml` calls current on this system."""
    declared = yaml.safe_load((root() / "query_versions.yaml").read_text(encoding="utf-8"))
    merged = {**declared["defaults"], **declared["overrides"].get(tables_of(system).folder, {})}
    return {framework: entry["current"] for framework, entry in merged.items()}


def _version_key(version: str) -> tuple[tuple[int, str], ...]:
    """Order of framework versions: numbers by value, so that rc9 comes before rc10.

    >>> sorted(["1.3.0rc20", "1.3.0rc9", "1.2.0"], key=_version_key)
    ['1.2.0', '1.3.0rc9', '1.3.0rc20']
    """
    return tuple((int(n or 0), s) for n, s in re.findall(r"(\d+)|([a-z]+)", version))
