"""The parameters of measured kernels: for each shape their names, meanings, units and ranges, and where a fit begins.

The equations that read them are `timing.kernel_shapes`; a name's end is its unit (`_us`, `_ns`, `_kB`), or it says
`share` (of a datasheet rate) or counts something.
"""

from __future__ import annotations

from dataclasses import dataclass

TIMES = ("_us", "_ns")
"""How the name of a parameter ends that is a time: what a knob of latencies scales."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Parameter:
    """What a parameter means, with its unit; where a fit begins, and what it may become."""

    meaning: str
    start: float
    low: float
    high: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ShapeParameters:
    """A shape's parameters by name, and whether it is a collective's (or a kernel's on one GPU)."""

    parameters: dict[str, Parameter]
    collective: bool = False


def _share(of: str, start: float = 0.7) -> Parameter:
    return Parameter(meaning=f"share of {of} that the kernel reaches [1]", start=start, low=0.02, high=1.0)


HBM, MATH, NVLINK = "HBM's datasheet rate", "the tensor cores' dense datasheet rate", "NVLink's datasheet rate"

L2: dict[str, Parameter] = {
    "l2_share": Parameter(
        meaning="share of the L2 cache that keeps a benchmark's data [1]", start=0.7, low=0.2, high=1.2
    ),
    "l2_gain": Parameter(
        meaning="by how much of HBM's rate reading from L2 is faster than from HBM [1]", start=1.0, low=0.01, high=20.0
    ),
}
CORE: dict[str, Parameter] = {
    "latency_us": Parameter(meaning="latency of a launch [µs]", start=10.0, low=0.5, high=100.0),
    "bandwidth_share": _share(HBM, start=0.85),
    "math_share": _share(MATH),
    "merge_us": Parameter(
        meaning="merging one more split of a request's cache, at most [µs]", start=0.2, low=0.001, high=10.0
    ),
    "chunk_tokens": Parameter(
        meaning="fewest tokens of cache in a split [tokens]", start=1000.0, low=64.0, high=20000.0
    ),
    "token_ns": Parameter(meaning="a block's walk along its split, a token [ns]", start=3.0, low=0.01, high=100.0),
    "request_us": Parameter(
        meaning="a request's (or KV head's) turn on a streaming multiprocessor [µs]", start=2.0, low=0.01, high=100.0
    ),
    "heads_half": Parameter(meaning="query heads that double such a turn [heads]", start=32.0, low=0.5, high=10000.0),
    **L2,
}
LINKS: dict[str, Parameter] = {
    "doubling_us": Parameter(meaning="latency of each doubling of the ranks [µs]", start=1.0, low=0.0, high=30.0),
    "beyond_tray_us": Parameter(meaning="latency of leaving the board [µs]", start=1.0, low=0.0, high=100.0),
}
EXCHANGE: dict[str, Parameter] = {
    "latency_us": Parameter(meaning="latency of a phase [µs]", start=9.0, low=0.2, high=300.0),
    **LINKS,
    "link_share": _share(NVLINK),
    "ramp_kB": Parameter(
        meaning="bytes b of a message cost those of sqrt(b · ramp) more [kB]", start=10.0, low=0.001, high=1e5
    ),
}
NETWORK: dict[str, Parameter] = {
    "network_us": Parameter(meaning="latency of leaving the NVLink domain [µs]", start=8.0, low=0.0, high=100.0),
    "network_share": _share("the network's datasheet rate", start=0.9),
}
PRODUCT: dict[str, Parameter] = {
    "latency_us": Parameter(meaning="latency of a launch [µs]", start=4.0, low=0.2, high=50.0),
    "bandwidth_share": _share(HBM),
    "math_share": _share(MATH),
    "wave_us": Parameter(meaning="start and end of a wave of tiles [µs]", start=1.0, low=0.01, high=20.0),
    "split_us": Parameter(
        meaning="each doubling of the splits of the inner dimension [µs]", start=1.0, low=0.01, high=20.0
    ),
    "input_passes": Parameter(
        meaning="passes over the input that quantise it, as BF16 from HBM [passes]", start=1.0, low=0.01, high=20.0
    ),
    "load_share": Parameter(
        meaning="rate at which blocks load tiles, over HBM's: what L2 serves twice counts [1]",
        start=1.5,
        low=0.1,
        high=20.0,
    ),
    "step_ns": Parameter(
        meaning="least time of a step along the inner dimension [ns]", start=1.0, low=0.001, high=20.0
    ),
}
SHAPES: dict[str, ShapeParameters] = {
    "stream": ShapeParameters(
        parameters={
            "latency_us": Parameter(meaning="latency of a launch [µs]", start=2.0, low=0.0, high=50.0),
            "bandwidth_share": _share(HBM),
        }
    ),
    "gemm": ShapeParameters(parameters=PRODUCT),
    "batched-gemm": ShapeParameters(parameters={**PRODUCT, **L2}),
    "grouped": ShapeParameters(
        parameters={
            "latency_us": Parameter(meaning="latency of a launch [µs]", start=10.0, low=0.2, high=100.0),
            "bandwidth_share": _share(HBM),
            "math_share": _share(MATH),
            "step_ns": Parameter(
                meaning="least time of a step along the inner dimension [ns]", start=1.0, low=0.001, high=30.0
            ),
            "sort_us": Parameter(meaning="sorting many tokens by expert [µs]", start=4.0, low=0.01, high=60.0),
            "sort_half_tokens": Parameter(
                meaning="tokens whose sorting takes half of that [tokens]", start=100.0, low=1.0, high=3000.0
            ),
            "local_expert_ns": Parameter(meaning="each expert held here [ns]", start=30.0, low=0.01, high=2000.0),
            "read_expert_ns": Parameter(meaning="each expert read [ns]", start=50.0, low=0.01, high=2000.0),
            "inner_ns": Parameter(
                meaning="a block's start and end, an element of the inner dimension [ns]", start=0.5, low=0.0, high=10.0
            ),
            "ramp_kB": Parameter(
                meaning="weights of w bytes cost those of sqrt(w · ramp) more [kB]", start=100.0, low=0.001, high=1e6
            ),
            "pair_passes": Parameter(
                meaning="passes over each token-expert pair, as BF16 from HBM [passes]", start=1.0, low=0.01, high=50.0
            ),
            "token_passes": Parameter(
                meaning="passes over each token, as BF16 from HBM [passes]", start=1.0, low=0.01, high=50.0
            ),
            "least_tile_rows": Parameter(
                meaning="rows of the smallest tile of the kernel library [rows]", start=32.0, low=1.0, high=128.0
            ),
        }
    ),
    "latent-attention": ShapeParameters(
        parameters={
            **CORE,
            "reread_share": Parameter(
                meaning="share of the cache that 17 to 32 heads read again [1]", start=0.4, low=0.001, high=2.0
            ),
        }
    ),
    "head-attention": ShapeParameters(
        parameters={
            **CORE,
            "first_read_us": Parameter(
                meaning="first loads that wait for HBM and not for L2 [µs]", start=4.0, low=0.001, high=50.0
            ),
        }
    ),
    "exchange": ShapeParameters(parameters=EXCHANGE, collective=True),
    "network-exchange": ShapeParameters(parameters={**EXCHANGE, **NETWORK}, collective=True),
    "gather": ShapeParameters(
        parameters={
            **EXCHANGE,
            "value_bytes": Parameter(
                meaning="a value as it is gathered, 0 in the format of the dispatch [bytes]",
                start=0.0,
                low=0.0,
                high=4.0,
            ),
        },
        collective=True,
    ),
    "partial-exchange": ShapeParameters(
        parameters={
            **EXCHANGE,
            "collectives": Parameter(
                meaning="collectives that carry it: one, or another for the statistics [1]",
                start=1.0,
                low=1.0,
                high=3.0,
            ),
            "statistics_bytes": Parameter(
                meaning="softmax statistics of a head and token on the wire [bytes]", start=4.0, low=0.0, high=64.0
            ),
        },
        collective=True,
    ),
    "all-reduce": ShapeParameters(
        collective=True,
        parameters={
            "one_shot_us": Parameter(meaning="latency of the one-shot form [µs]", start=4.0, low=0.2, high=100.0),
            "two_shot_us": Parameter(meaning="latency of the two-shot form [µs]", start=10.0, low=0.2, high=300.0),
            **LINKS,
            "nccl_us": Parameter(
                meaning="latency of NCCL, which serves several NVLink domains [µs]", start=15.0, low=0.2, high=300.0
            ),
            "one_shot_share": _share(NVLINK),
            "two_shot_share": _share(NVLINK),
        },
    ),
    "picked-attention": ShapeParameters(
        parameters={
            "latency_us": Parameter(meaning="latency of a launch [µs]", start=6.0, low=0.1, high=300.0),
            "bandwidth_share": _share(HBM),
            "math_share": Parameter(
                meaning="share of the tensor cores' dense datasheet rate that the kernel reaches [1]",
                start=0.5,
                low=0.001,
                high=1.0,
            ),
            "request_us": CORE["request_us"],
            "heads_half": CORE["heads_half"],
            "token_ns": Parameter(
                meaning="a block's walk along a request's tokens, a token [ns]", start=0.1, low=0.0001, high=100.0
            ),
            "splits": Parameter(
                meaning="blocks that share a request's tokens, at most [blocks]", start=4.0, low=1.0, high=256.0
            ),
            "lone_head": Parameter(
                meaning="by how much longer than for several heads reading takes for one [1]",
                start=1.0,
                low=0.0,
                high=50.0,
            ),
            **L2,
        }
    ),
    "row-walk": ShapeParameters(
        parameters={
            "latency_us": Parameter(meaning="latency of a launch [µs]", start=8.0, low=0.1, high=100.0),
            "bandwidth_share": _share(HBM),
            "kB_ns": Parameter(
                meaning="a block's walk along a row of scores, a kB of it [ns]", start=90.0, low=0.01, high=5000.0
            ),
            "splits": Parameter(
                meaning="blocks that share a row of at least split_kB; 1 where none is shared [blocks]",
                start=1.0,
                low=1.0,
                high=256.0,
            ),
            "split_kB": Parameter(
                meaning="row of scores from which blocks share it, and another kernel merges their choices [kB]",
                start=1.0,
                low=0.0,
                high=1e9,
            ),
        }
    ),
    "state": ShapeParameters(
        parameters={
            "latency_us": Parameter(meaning="latency of a launch [µs]", start=5.0, low=0.1, high=100.0),
            "bandwidth_share": _share(HBM),
            "token_us": Parameter(
                meaning="each new token of a request after its first [µs]", start=0.5, low=0.001, high=20.0
            ),
            "head_us": Parameter(
                meaning="a head's turn on a streaming multiprocessor [µs]", start=1.0, low=0.001, high=50.0
            ),
            "verify_us": Parameter(
                meaning="how much longer that turn is where several tokens are verified [µs]",
                start=0.5,
                low=0.001,
                high=50.0,
            ),
            "verify_latency_us": Parameter(
                meaning="latency of the kernel that verifies beyond the other's [µs]", start=1.0, low=0.001, high=50.0
            ),
            **L2,
        }
    ),
}
"""Every shape that a class of a timing may have; the equation of each is in `timing.kernel_shapes.SHAPES`."""
