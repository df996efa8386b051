"""Shapes of measured kernels: how a kernel's time grows with its work, in a few parameters fitted to measurements.

Every shape is a fixed latency and what saturates: the share of HBM's rate, of the tensor cores' rate or of a link's
that a kernel reaches, none of them above one, so that no shape is faster than the datasheet. What joins two limits is
a p-norm, (a^p + b^p)^(1/p): smooth, at least the larger of the two, and rising in both. Kinks are those of the
machine: tiles (a 257th row opens a second row tile), waves over the streaming multiprocessors (SMs), the edge of a
board. Each shape splits its time into what HBM, tensor cores and links need at the rate they reach, and all the rest,
which is latency: launches, dependent steps, partly filled waves.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from helix_sim.core.numeric import Column, alike_rows, ceil_div
from helix_sim.core.units import MICRO, bytes_per_value
from helix_sim.core.work import Work
from helix_sim.ops.attention import LSE_BYTES
from helix_sim.specs.machine import Machine

NANO = 1e-9


class Terms(NamedTuple):
    """Seconds of one op: latency and, at the rates that are reached, tensor cores, HBM and links."""

    latency_s: Column
    math_s: Column
    hbm_s: Column
    link_s: Column


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """What a shape asks of the machine: datasheet rates, and the sizes at which kernels change their behaviour.

    l2_warm: a benchmark's repeated operands stay in the L2 cache where they fit. In a decode step they never do: all
    layers' weights pass between two visits to one layer's cache.
    """

    hbm_bytes_per_s: float
    nvlink_bytes_per_s: float
    network_bytes_per_s: float
    network_peak_bytes_per_s: float
    network_latency_s: float
    domain: int
    tray: int
    sms: int
    l2_bytes: float
    l2_warm: bool = False


def gpu_of(machine: Machine, *, network_share: float = 1.0, network_latency_s: float = 0.0) -> Gpu:
    """What the shapes ask of a machine, whose network reaches a share of its rate, each phase after a latency [s]."""
    sms, l2_bytes, tray = machine.kernel_facts
    return Gpu(
        hbm_bytes_per_s=machine.hbm_bytes_per_s,
        nvlink_bytes_per_s=machine.nvlink_bytes_per_s,
        network_bytes_per_s=machine.network_bytes_per_s * network_share,
        network_peak_bytes_per_s=machine.network_bytes_per_s,
        network_latency_s=network_latency_s,
        domain=machine.domain,
        tray=tray,
        sms=sms,
        l2_bytes=l2_bytes,
    )


ShapeTime = Callable[[Work, Gpu, float, Mapping[str, float]], Terms]
"""A shape: what an op asks, the GPU, the rate of its arithmetic [FLOP/s], and its parameters by name."""


def norm(p: float, *terms: Column) -> Any:
    """Smooth maximum of non-negative terms: (sum of a^p)^(1/p).

    Seconds are squared and cubed as they are, for numpy's power takes five times as long; any other p is scaled so that
    nothing overflows.

    >>> float(norm(2, 3.0, 4.0)), float(norm(2, 0.0, 0.0))
    (5.0, 0.0)
    """
    if len(terms) == 1:
        return terms[0]
    if p == 2:
        return np.sqrt(sum(term * term for term in terms))
    if p == 3:
        return np.cbrt(sum(term * term * term for term in terms))
    largest: Any = 0.0
    for term in terms:
        largest = np.maximum(largest, term)
    unit = np.where(largest > 0, largest, 1.0)
    return largest * sum((term / unit) ** p for term in terms) ** (1 / p)


def _at_least(total: Column, *, math_s: Column = 0.0, hbm_s: Column = 0.0) -> Terms:
    """The split of a kernel's time: what exceeds its slower rate is latency."""
    return Terms(total - np.maximum(math_s, hbm_s), math_s, hbm_s, 0.0)


# --- One pass over memory --------------------------------------------------------------------------------------------


def stream(work: Work, gpu: Gpu, flops_per_s: float, p: Mapping[str, float]) -> Terms:
    """Elementwise kernels: launches · latency + bytes / (share · HBM bandwidth)."""
    hbm_s = work.hbm_bytes / (p["bandwidth_share"] * gpu.hbm_bytes_per_s)
    return Terms(work.kernels * p["latency_us"] * MICRO, 0.0, hbm_s, 0.0)


# --- Matrix products -------------------------------------------------------------------------------------------------

TILES = ((64, 64), (64, 128), (128, 64), (128, 128), (128, 256), (256, 128), (256, 256))
"""(rows, columns) of the output tiles that a kernel library has to choose from."""
SPLITS = (1, 2, 4, 8)
"""Pieces of the inner dimension that several blocks may share, at the price of adding their results."""
FEW_PRODUCTS = 1024
"""Products up to which all tiles are tried in one call; of more, a tile at a time stays in cache."""


def gemm(work: Work, gpu: Gpu, flops_per_s: float, p: Mapping[str, float]) -> Terms:
    """Matrix product: latency + quantising the input + norm(waves of tiles, bytes / bandwidth).

    A block walks the inner dimension at the pace of its tile's loads, of its SM's tensor cores or of a dependent load,
    whichever is slowest; tiles run in ceil(tiles · splits / SMs) waves, and the library picks the best tile and split.
    At 257 rows every tile has a second row of tiles; below the first full wave time follows the inner dimension alone.
    Of columns of shapes (n, 1) it is evaluated once for the rows that are alike: many layouts share a product.
    """
    sizes = (work.rows, work.inner, work.outer, work.copies, work.weight_bytes, work.activation_bytes, work.flops)
    if (alike := alike_rows(*sizes)) is None:
        return _gemm(work, gpu, flops_per_s, p)
    *columns, place = alike
    once = _gemm(replace(work, **dict(zip(PRODUCT, columns, strict=True))), gpu, flops_per_s, p)
    return Terms(*(np.asarray(term)[place] if np.ndim(term) > 1 else term for term in once))


PRODUCT = ("rows", "inner", "outer", "copies", "weight_bytes", "activation_bytes", "flops")
"""Fields of a Work on which the time of a product depends."""


def _gemm(work: Work, gpu: Gpu, flops_per_s: float, p: Mapping[str, float]) -> Terms:
    weight_bytes = work.weight_bytes * _cold_share(work.weight_bytes, gpu, p)
    hbm_s = (weight_bytes + work.activation_bytes) / (p["bandwidth_share"] * gpu.hbm_bytes_per_s)
    math_s = work.flops / (p["math_share"] * flops_per_s)
    quantise_s = p["input_passes"] * work.copies * work.rows * work.inner * 2 / gpu.hbm_bytes_per_s
    total = p["latency_us"] * MICRO + quantise_s + norm(3, _best_tiling(work, gpu, flops_per_s, p), hbm_s)
    return _at_least(total, math_s=math_s, hbm_s=hbm_s)


def _cold_share(moved: Column, gpu: Gpu, p: Mapping[str, float]) -> Any:
    """Time of a read over that from HBM: below one only where a benchmark's operands stay in L2 while they fit.

    The step is at a share of L2's size: some of it holds other lines. Cold bytes b against capacity c: b⁴ / (b⁴ + c⁴).
    """
    if not gpu.l2_warm:
        return 1.0
    ratio = (moved / (p["l2_share"] * gpu.l2_bytes)) ** 4
    cold = ratio / (1 + ratio)
    return cold + (1 - cold) / (1 + p["l2_gain"])


def _best_tiling(work: Work, gpu: Gpu, flops_per_s: float, p: Mapping[str, float]) -> Any:
    """Seconds of the waves of the fastest tile shape and split."""
    value_bytes = bytes_per_value(work.weights)
    sm_flops, sm_bytes = p["math_share"] * flops_per_s / gpu.sms, p["load_share"] * gpu.hbm_bytes_per_s / gpu.sms
    shape = np.broadcast(work.copies, work.rows, work.outer, work.inner).shape
    splits = _ahead(SPLITS, len(shape))
    split_inner, sums = work.inner / splits, 4.0 * work.copies * work.rows * work.outer * splits / gpu.hbm_bytes_per_s
    split_s = (splits > 1) * (p["split_us"] * MICRO * np.log2(splits) + sums)
    together = len(TILES) if math.prod(shape) <= FEW_PRODUCTS else 1
    best: Any = np.inf
    for first in range(0, len(TILES), together):
        sides = zip(*TILES[first : first + together], strict=True)
        rows, columns = (_ahead(side, len(shape) + 1) for side in sides)
        tiles = work.copies * ceil_div(work.rows, rows) * ceil_div(work.outer, columns)
        load_s = (np.minimum(work.rows, rows) + columns) * value_bytes / sm_bytes
        per_k = np.maximum(np.maximum(load_s, 2.0 * rows * columns / sm_flops), p["step_ns"] * NANO)
        waves = ceil_div(tiles * splits, gpu.sms)
        seconds = waves * (p["wave_us"] * MICRO + split_inner * per_k) + split_s
        best = np.minimum(best, seconds.min(axis=(0, 1)))
    return best


@lru_cache(maxsize=64)
def _ahead(choices: tuple[int, ...], axes: int) -> Any:
    """Choices along an axis in front of `axes` others."""
    return np.reshape(choices, (-1, *(1 for _ in range(axes)))) * 1.0


# --- Routed experts --------------------------------------------------------------------------------------------------

MOST_TILE_ROWS = 128


def grouped(work: Work, gpu: Gpu, flops_per_s: float, p: Mapping[str, float]) -> Terms:
    """One of the two products of routed experts in a fused MoE kernel, with its half of permuting and summing.

    latency + sorting the tokens by expert + a share for each local and each read expert + passes over tokens and pairs
    + a block's walk along the inner dimension + norm(bytes / bandwidth + its ramp, waves of tiles at the pace of their
    tensor cores or loads). Sorting takes longer with more tokens until they fill the blocks that sort: T / (T + T_1/2).
    An expert's rows fill whole tiles: with loads spread geometrically about their mean r, 1 / (1 - e^(-tile/r)) tiles,
    each of r rows, but within what the kernel library has. Tiles that leave SMs idle are cut smaller, so that a wave
    takes as long as its tiles fill it, and at least one walk at the pace of the smallest tile.
    """
    read = np.maximum(work.experts_read, 1e-9)
    mean_rows = np.maximum(work.rows, 1e-9) / read
    tile = np.clip(mean_rows, p["least_tile_rows"], MOST_TILE_ROWS)
    tiles = read / -np.expm1(-tile / mean_rows)
    waves_per_k = tiles * work.outer / 128 / gpu.sms * _per_k(tile, gpu, flops_per_s, p)
    loop_s = work.inner * np.maximum(waves_per_k, _per_k(p["least_tile_rows"], gpu, flops_per_s, p))
    hbm_s = work.hbm_bytes / (p["bandwidth_share"] * gpu.hbm_bytes_per_s)
    math_s = work.flops / (p["math_share"] * flops_per_s)
    sort_s = p["sort_us"] * MICRO * work.tokens / (work.tokens + p["sort_half_tokens"])
    experts_s = (p["local_expert_ns"] * work.copies + p["read_expert_ns"] * work.experts_read) * NANO
    moved = (p["pair_passes"] * work.rows + p["token_passes"] * work.tokens) * (work.inner + work.outer) * 2
    extra_s = moved / gpu.hbm_bytes_per_s + p["inner_ns"] * NANO * work.inner
    ramp_s = np.sqrt(work.weight_bytes * p["ramp_kB"] * 1e3) / gpu.hbm_bytes_per_s
    total = p["latency_us"] * MICRO + sort_s + experts_s + extra_s + norm(2, hbm_s + ramp_s, loop_s)
    return _at_least(total, math_s=math_s, hbm_s=hbm_s)


def _per_k(tile_rows: Column, gpu: Gpu, flops_per_s: float, p: Mapping[str, float]) -> Any:
    """Seconds in which a block of 128 columns goes one step along the inner dimension."""
    return norm(3, 2.0 * tile_rows * 128 / (p["math_share"] * flops_per_s / gpu.sms), p["step_ns"] * NANO)


# --- Attention -------------------------------------------------------------------------------------------------------


def _splits(work: Work, gpu: Gpu, p: Mapping[str, float], token_s: Column) -> tuple[Any, Any]:
    """How many blocks share one request's cache, and the cost of merging them.

    A block takes at least a chunk of tokens, and no more blocks run than there are SMs. Merging a chunk is never dearer
    than reading it: the kernel would not split there.
    """
    lanes = np.maximum(work.rows * work.copies, 1)
    splits = np.clip(work.tokens / p["chunk_tokens"], 1, np.maximum(gpu.sms / lanes, 1))
    merge_s = np.minimum(p["merge_us"] * MICRO, p["chunk_tokens"] * token_s)
    return splits, merge_s * (splits - 1)


def latent_attention(work: Work, gpu: Gpu, flops_per_s: float, p: Mapping[str, float]) -> Terms:
    """MLA core: latency + merging splits + waves of requests + norm(norm(bytes, a block's chain), FLOP).

    Between 16 and 32 heads no head tile fits, and the cache is read more than once.
    """
    again = 1 + p["reread_share"] * ((work.heads > 16) & (work.heads <= 32))
    bandwidth = p["bandwidth_share"] * gpu.hbm_bytes_per_s
    cold = _cold_share(work.kv_bytes, gpu, p)
    hbm_s = (work.kv_bytes * again * cold + work.activation_bytes) / bandwidth
    math_s = work.flops / (p["math_share"] * flops_per_s)
    token_s = work.kv_bytes / (work.rows * work.copies * work.tokens) / bandwidth * cold
    splits, merging_s = _splits(work, gpu, p, token_s)
    chain_s = p["token_ns"] * NANO * work.tokens / splits
    waves_s = p["request_us"] * MICRO * (1 + work.heads / p["heads_half"]) * work.rows / gpu.sms
    total = p["latency_us"] * MICRO + merging_s + waves_s + norm(2, norm(2, hbm_s, chain_s), math_s)
    return _at_least(total, math_s=math_s, hbm_s=hbm_s)


def head_attention(work: Work, gpu: Gpu, flops_per_s: float, p: Mapping[str, float]) -> Terms:
    """GQA core: latency + merging splits + norm(bytes + a block's chain, waves of KV heads and their queries, FLOP).

    From HBM the first loads wait once more than from L2.
    """
    bandwidth = p["bandwidth_share"] * gpu.hbm_bytes_per_s
    cold = _cold_share(work.kv_bytes, gpu, p)
    hbm_s = (work.kv_bytes * cold + work.activation_bytes) / bandwidth
    math_s = work.flops / (p["math_share"] * flops_per_s)
    lanes = work.rows * work.copies
    token_s = work.kv_bytes / (lanes * work.tokens) / bandwidth * cold
    splits, merging_s = _splits(work, gpu, p, token_s)
    width = work.inner / 128
    chain_s = p["token_ns"] * NANO * width * work.tokens / splits
    waves_s = p["request_us"] * MICRO * width * (1 + work.heads / work.copies / p["heads_half"]) * lanes / gpu.sms
    first_s = p["first_read_us"] * MICRO * _first_read(work.kv_bytes, gpu, p)
    total = p["latency_us"] * MICRO + merging_s + first_s + norm(3, hbm_s + chain_s, waves_s, math_s)
    return _at_least(total, math_s=math_s, hbm_s=hbm_s)


def _first_read(moved: Column, gpu: Gpu, p: Mapping[str, float]) -> Any:
    """1 where the cache comes from HBM, 0 where a benchmark holds it in L2."""
    if not gpu.l2_warm:
        return 1.0
    ratio = (moved / (p["l2_share"] * gpu.l2_bytes)) ** 4
    return ratio / (1 + ratio)


# --- Collectives -----------------------------------------------------------------------------------------------------


def exchange(work: Work, gpu: Gpu, flops_per_s: float, p: Mapping[str, float]) -> Terms:
    """Every rank writes to every other: latency, more with each doubling of ranks and beyond the board; then bytes.

    The link's share rises with the message: bytes / (share · rate) + sqrt(bytes · ramp) / rate.
    """
    return _collective(work, gpu, p, 1.0)


def network_exchange(work: Work, gpu: Gpu, flops_per_s: float, p: Mapping[str, float]) -> Terms:
    """An exchange whose latency and share of the rate between NVLink domains were measured as well."""
    rate = gpu.network_peak_bytes_per_s * p["network_share"]
    return _collective(work, replace(gpu, network_bytes_per_s=rate, network_latency_s=p["network_us"] * MICRO), p, 1.0)


def gather(work: Work, gpu: Gpu, flops_per_s: float, p: Mapping[str, float]) -> Terms:
    """An exchange by which each rank gets everything, needed or not, in a format of its own where it has one."""
    wider = p["value_bytes"] / bytes_per_value(work.weights) if p["value_bytes"] else 1.0
    return _collective(work, gpu, p, np.maximum(work.needed, 1e-9) / wider)


def partial_exchange(work: Work, gpu: Gpu, flops_per_s: float, p: Mapping[str, float]) -> Terms:
    """The KV shards' exchange of partial outputs: an exchange whose latency each of its collectives pays.

    A stack may send the softmax statistics in a collective of their own, and more of them than one log-sum-exp a head:
    what they have beyond its four bytes joins the payload.
    """
    sent = work.collective
    assert sent is not None
    more = (sent.group - 1) * work.rows * work.heads * (p["statistics_bytes"] - LSE_BYTES)
    carried = replace(work, collective=replace(sent, payload=sent.payload + more))
    once = _collective(carried, gpu, p, 1.0)
    (form,) = sent.forms(gpu.domain, False)
    latency_s = form.phases * _hops(work, gpu, p, "latency_us") + form.network_phases * gpu.network_latency_s
    return once._replace(latency_s=once.latency_s + (p["collectives"] - 1) * latency_s)


def _collective(work: Work, gpu: Gpu, p: Mapping[str, float], needed: Column) -> Terms:
    assert work.collective is not None
    (form,) = work.collective.forms(gpu.domain, False)
    nvlink, network = form.nvlink_bytes / needed, form.network_bytes / needed
    latency_s = form.phases * _hops(work, gpu, p, "latency_us") + form.network_phases * gpu.network_latency_s
    ramp_s = np.sqrt(nvlink * p["ramp_kB"] * 1e3) / gpu.nvlink_bytes_per_s
    link_s = np.maximum(nvlink / (p["link_share"] * gpu.nvlink_bytes_per_s), network / gpu.network_bytes_per_s)
    return Terms(latency_s + ramp_s, 0.0, 0.0, link_s)


def _hops(work: Work, gpu: Gpu, p: Mapping[str, float], latency: str) -> Any:
    """Latency of a collective: fixed, a step for each doubling of the ranks, and a step where they leave the board."""
    assert work.collective is not None
    ranks = np.maximum(work.collective.group, 1)
    beyond = (ranks * work.collective.stride > gpu.tray) * 1
    return (p[latency] + p["doubling_us"] * np.log2(ranks) + p["beyond_tray_us"] * beyond) * MICRO


def all_reduce(work: Work, gpu: Gpu, flops_per_s: float, p: Mapping[str, float]) -> Terms:
    """The framework's own all-reduce, in the faster of two forms: one-shot, or reduce-scatter and all-gather.

    Across NVLink domains there is no such kernel: NCCL's latency, and the network's for each of its phases.
    """
    assert work.collective is not None
    one_shot, two_shot = work.collective.forms(gpu.domain, False)
    best: Any = np.inf
    best_link: Any = np.inf
    for form, name in ((one_shot, "one_shot"), (two_shot, "two_shot")):
        calls = work.collective.calls
        share = p[f"{name}_share"] * gpu.nvlink_bytes_per_s
        inside_s = np.where(form.network_phases > 0, p["nccl_us"] * MICRO, _hops(work, gpu, p, f"{name}_us"))
        latency_s = calls * inside_s + form.network_phases * gpu.network_latency_s
        link_s = np.maximum(form.nvlink_bytes / share, form.network_bytes / gpu.network_bytes_per_s)
        total = latency_s + link_s
        best_link = np.where(total < best, link_s, best_link)
        best = np.minimum(total, best)
    return Terms(best - best_link, 0.0, 0.0, best_link)


# --- Attention to a part of the context, and states ------------------------------------------------------------------


def picked_attention(work: Work, gpu: Gpu, flops_per_s: float, p: Mapping[str, float]) -> Terms:
    """A core over gathered tokens, or an indexer's scores: latency + norm(bytes, FLOP, a block's walk) + waves.

    A request's (and KV head's) turn on an SM is longer the more queries it has. Few tokens: no splits to merge. Where a
    rank has one query head alone, a kernel that packs heads may read at a fraction of its rate.
    """
    bandwidth = p["bandwidth_share"] * gpu.hbm_bytes_per_s
    hbm_s = (work.kv_bytes * _cold_share(work.kv_bytes, gpu, p) + work.activation_bytes) / bandwidth
    math_s = work.flops / (p["math_share"] * flops_per_s)
    turn_s = p["request_us"] * MICRO * (1 + work.heads / work.copies / p["heads_half"])
    waves_s = turn_s * work.rows * work.copies / gpu.sms
    read_s = hbm_s * (1 + p["lone_head"] * (work.heads <= 1))
    idle = gpu.sms / np.maximum(work.rows * work.copies, 1e-9)
    walk_s = p["token_ns"] * NANO * work.tokens / np.clip(idle, 1, p["splits"])
    total = p["latency_us"] * MICRO + waves_s + norm(2, read_s, math_s, walk_s)
    return _at_least(total, math_s=math_s, hbm_s=hbm_s)


def row_walk(work: Work, gpu: Gpu, flops_per_s: float, p: Mapping[str, float]) -> Terms:
    """A choice among the scores of each row: latency + norm(bytes, waves of rows that a block walks along).

    Several blocks may share a long row, whose choices a second launch merges.
    """
    hbm_s = work.hbm_bytes / (p["bandwidth_share"] * gpu.hbm_bytes_per_s)
    row_kb = work.hbm_bytes / np.maximum(work.rows, 1e-9) / 1e3
    shared = (p["splits"] > 1) & (row_kb >= p["split_kB"])
    blocks = np.where(shared, p["splits"], 1.0)
    walk_s = p["kB_ns"] * NANO * row_kb / blocks * np.maximum(work.rows * blocks / gpu.sms, 1.0)
    total = work.kernels * (1 + shared) * p["latency_us"] * MICRO + norm(2, hbm_s, walk_s)
    return _at_least(total, hbm_s=hbm_s)


def state_pass(work: Work, gpu: Gpu, flops_per_s: float, p: Mapping[str, float]) -> Terms:
    """A recurrence over states: latency, the new tokens one after another, norm(bytes, waves of heads).

    A kernel that verifies drafts, several new tokens a request, may take a longer turn for each head.
    """
    bandwidth = p["bandwidth_share"] * gpu.hbm_bytes_per_s
    hbm_s = (work.kv_bytes * _cold_share(work.kv_bytes, gpu, p) + work.activation_bytes) / bandwidth
    several = (work.tokens > 1) * 1
    turn_s = (p["head_us"] + several * p["verify_us"]) * MICRO
    waves_s = turn_s * work.rows * work.copies / gpu.sms
    first_s = (p["latency_us"] + several * p["verify_latency_us"] + p["token_us"] * (work.tokens - 1)) * MICRO
    return _at_least(first_s + norm(3, hbm_s, waves_s), hbm_s=hbm_s)


SHAPES: dict[str, ShapeTime] = {
    "stream": stream,
    "gemm": gemm,
    "batched-gemm": gemm,
    "grouped": grouped,
    "latent-attention": latent_attention,
    "head-attention": head_attention,
    "exchange": exchange,
    "network-exchange": network_exchange,
    "gather": gather,
    "partial-exchange": partial_exchange,
    "all-reduce": all_reduce,
    "picked-attention": picked_attention,
    "row-walk": row_walk,
    "state": state_pass,
}
"""Each shape's equation by its name in a timing's file; its parameters are in `specs.kernel_parameters`."""


def one_piece(work: Work) -> Work:
    """One of an op's equal pieces: as many launches, its share of the requests, bytes, FLOP and payload."""
    if isinstance(work.pieces, int | float) and work.pieces == 1:
        return work
    share = 1 / work.pieces
    sent = work.collective
    return replace(
        work,
        flops=work.flops * share,
        weight_bytes=work.weight_bytes * share,
        kv_bytes=work.kv_bytes * share,
        activation_bytes=work.activation_bytes * share,
        rows=work.rows * share,
        pieces=1,
        collective=None if sent is None else replace(sent, payload=sent.payload * share),
    )
