"""Times the reference kernels and the ceilings on this machine's GPU, by device events around CUDA graphs.

A graph takes launches out of the times, and a train of calls over rotating buffers makes every call read from HBM what
it would read there in service. Needs torch, triton and an NVIDIA GPU; without them `measure` raises NoGpu.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime
from functools import partial
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from helix_sim.core.version import __version__
from helix_sim.kernels.measurements import FORMAT_BYTES, Cell, Measurement, attention_cell, combine_cell

if TYPE_CHECKING:
    import torch

    Call = Callable[[], object]
    Clock = Callable[[Sequence[Call]], Sequence[float]]
    Prepared = tuple[Cell, Sequence[Call]]

SAMPLES = 30
TRAIN_S = 2e-3  # a timed train of calls lasts at least this: a thousand times an event's resolution
TRAIN_CALLS = 1000  # and is at most this long, so that its graph stays small
ROTATED_L2S = 4  # buffers rotate over this many times the L2 cache
PIECE = 1 << 27  # random numbers drawn at a time
MEMORY_SHARE = 0.5  # of the GPU's memory: cells that need more are left out


class NoGpu(RuntimeError):
    """There is no GPU to measure on."""


def measure(cells: Sequence[Cell] | None = None) -> Iterator[Measurement]:
    """Measurements of the given cells, or of the whole grid that fits the GPU's memory, one by one as taken."""
    memory_bytes = _gpu_memory_bytes()
    return _measured(grid(memory_bytes) if cells is None else cells, device="cuda", clock=device_clock)


def grid(memory_bytes: float) -> list[Cell]:
    """Every cell that fits: ceilings, launch, combine, and decode attention over (batch, context, heads) and formats.

    GQA: 128-wide heads, 8 or 16 query heads on each of 1 or 8 KV heads. MLA: 576 + 512, from the 16
    heads of an eighth to all 128.

    >>> all(cell.hbm_bytes < 1e9 for cell in grid(2e9))
    True
    """
    copies = [
        Cell(op="copy", stored="bf16", math="bf16", batch=1, context=size // 2, hbm_bytes=2.0 * size)
        for size in (1 << 26, 1 << 28, 1 << 30, 1 << 32)
    ]
    matmuls = [matmul_cell(size, stored) for stored, size in product(("bf16", "fp8"), (2048, 4096, 8192))]
    launch = Cell(op="launch", stored="fp32", math="fp32")
    combines = [
        combine_cell(partials=partials, batch=batch, q_heads=128, value_width=width)
        for partials, batch, width in product((2, 8, 32), (1, 8, 64, 256), (128, 512))
    ]
    heads = [(q, kv, 128, 128) for q, kv in ((8, 1), (16, 1), (64, 8), (128, 8))]
    heads += [(q, 1, 576, 512) for q in (16, 32, 64, 128)]
    attentions = [
        attention_cell(
            stored=stored,
            batch=batch,
            context=context,
            q_heads=q_heads,
            kv_heads=kv_heads,
            score_width=score_width,
            value_width=value_width,
        )
        for stored, (q_heads, kv_heads, score_width, value_width), batch, context in product(
            ("bf16", "fp8"), heads, (1, 4, 16, 64, 256), (1024, 4096, 16384, 65536, 262144, 1048576)
        )
        if batch * context <= 1 << 22
    ]
    cells = [*copies, *matmuls, launch, *combines, *attentions]
    return [cell for cell in cells if cell.hbm_bytes <= MEMORY_SHARE * memory_bytes]


def matmul_cell(size: int, stored: str) -> Cell:
    """A square matrix product of `size`, its result in BF16.

    >>> int(matmul_cell(1000, "bf16").flops), int(matmul_cell(1000, "bf16").hbm_bytes)
    (2000000000, 6000000)
    """
    return Cell(
        op="matmul",
        stored=stored,
        math=stored,
        batch=size,
        context=size,
        value_width=size,
        hbm_bytes=size**2 * (2.0 * FORMAT_BYTES[stored] + FORMAT_BYTES["bf16"]),
        flops=2.0 * size**3,
    )


def provenance() -> dict[str, str]:
    """What the measurements were taken with: GPU, driver, versions, date (UTC) and this package's commit."""
    _gpu_memory_bytes()
    import torch
    import triton

    query = ("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader", "--id=0")
    commit = ("git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=12")
    return {
        "gpu": torch.cuda.get_device_name(),
        "driver": _output(query),
        "cuda": str(torch.version.cuda),
        "torch": torch.__version__,
        "triton": triton.__version__,
        "helix_sim": __version__,
        "commit": _output(commit),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def device_clock(calls: Sequence[Call]) -> list[float]:
    """SAMPLES times of one call [s]: trains of the calls in turn, replayed as one CUDA graph between two events."""
    import torch

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):  # compiles and warms up, which a capture must not do
        for call in calls:
            call()
    torch.cuda.synchronize()
    rounds = 1
    graph = _graph(calls, rounds)
    estimate_s = min(_replay_s(graph) for _ in range(3))
    wanted = min(int(TRAIN_S / estimate_s) + 1, TRAIN_CALLS // len(calls) + 1)
    if wanted > rounds:
        rounds = wanted
        graph = _graph(calls, rounds)
        _replay_s(graph)
    return [_replay_s(graph) / (rounds * len(calls)) for _ in range(SAMPLES)]


def _measured(cells: Sequence[Cell], *, device: str, clock: Clock) -> Iterator[Measurement]:
    """Each cell that this GPU can run, measured."""
    for cell in cells:
        if cell.op != "matmul" or cell.math != "fp8" or _has_fp8_matmul():
            yield _timed(cell, device, clock)


def _timed(cell: Cell, device: str, clock: Clock) -> Measurement:
    """A cell with the quantiles of its clock's samples; its buffers are free again when this returns."""
    known, calls = _PREPARE[cell.op](cell, device)
    samples = clock(calls)
    low, median, high = np.quantile(samples, (0.1, 0.5, 0.9)).tolist()
    return Measurement(**asdict(known), low_s=low, median_s=median, high_s=high, samples=len(samples))


def _graph(calls: Sequence[Call], rounds: int) -> torch.cuda.CUDAGraph:
    import torch

    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(rounds):
            for call in calls:
                call()
    return graph


def _replay_s(graph: torch.cuda.CUDAGraph) -> float:
    import torch

    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    graph.replay()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end)) * 1e-3


def _copy(cell: Cell, device: str) -> Prepared:
    sources = [_random((cell.context,), cell.stored, device) for _ in range(_sets(cell, device))]
    targets = [source.clone() for source in sources]
    return cell, [partial(target.copy_, source) for target, source in zip(targets, sources, strict=True)]


def _matmul(cell: Cell, device: str) -> Prepared:
    import torch

    left = _random((cell.batch, cell.context), cell.stored, device)
    right = _random((cell.value_width, cell.context), cell.stored, device).t()
    if cell.math == "bf16":
        return cell, [partial(torch.mm, left, right)]
    one = torch.ones((), device=device)
    return cell, [partial(torch._scaled_mm, left, right, scale_a=one, scale_b=one, out_dtype=torch.bfloat16)]


def _launch(cell: Cell, device: str) -> Prepared:
    import torch

    from helix_sim.kernels.triton_kernels import touch_kernel

    return cell, [partial(touch_kernel[(1,)], torch.zeros(1, device=device))]


def _combine(cell: Cell, device: str) -> Prepared:
    from helix_sim.kernels.flash_decode import combine

    shape = (_sets(cell, device), cell.partials, cell.batch, cell.q_heads)
    outs = _random((*shape, cell.value_width), cell.stored, device)
    sums = _random(shape, cell.stored, device)
    return cell, [partial(combine, out, lse) for out, lse in zip(outs, sums, strict=True)]


def _attention(cell: Cell, device: str) -> Prepared:
    import torch

    from helix_sim.kernels.flash_decode import decode_partials

    sets = _sets(cell, device)
    rows = (sets, cell.batch, cell.kv_heads, cell.context)
    queries = _random((sets, cell.batch, cell.q_heads, cell.score_width), "bf16", device)
    keys = _random((*rows, cell.score_width), cell.stored, device)
    latent = cell.op == "attention-mla"
    values = keys[..., : cell.value_width] if latent else _random((*rows, cell.value_width), cell.stored, device)
    lengths = torch.full((cell.batch,), cell.context, dtype=torch.int32, device=device)
    run = partial(decode_partials, lengths=lengths, scale=float(cell.score_width**-0.5))
    calls = [partial(run, q, k, v) for q, k, v in zip(queries, keys, values, strict=True)]
    return replace(cell, partials=len(calls[0]()[1])), calls


_PREPARE: dict[str, Callable[[Cell, str], Prepared]] = {
    "copy": _copy,
    "matmul": _matmul,
    "launch": _launch,
    "combine": _combine,
    "attention-gqa": _attention,
    "attention-mla": _attention,
}


def _random(shape: tuple[int, ...], stored: str, device: str) -> torch.Tensor:
    """Normal numbers, drawn in pieces: an FP8 tensor must not pass through a BF16 one of its full size."""
    import torch

    dtype = {"bf16": torch.bfloat16, "fp8": torch.float8_e4m3fn, "fp32": torch.float32}[stored]
    tensor = torch.empty(shape, dtype=dtype, device=device)
    for piece in tensor.view(-1).chunk(1 + tensor.numel() // PIECE):
        piece.copy_(torch.randn(len(piece), dtype=torch.bfloat16, device=device))
    return tensor


def _sets(cell: Cell, device: str) -> int:
    """Buffers to rotate over so that none is still in the L2 cache when its turn comes again."""
    import torch

    cache_bytes = torch.cuda.get_device_properties(device).L2_cache_size if device == "cuda" else 0
    return min(TRAIN_CALLS // 2, 1 + int(ROTATED_L2S * cache_bytes / cell.hbm_bytes))


def _has_fp8_matmul() -> bool:
    import torch

    return bool(torch.cuda.is_available() and torch.cuda.get_device_capability() >= (8, 9))


def _gpu_memory_bytes() -> int:
    """Free memory of the GPU; NoGpu where there is none to measure on."""
    try:
        import torch
        import triton  # noqa: F401
    except ImportError as missing:
        raise NoGpu(f"No GPU to measure: {missing.name} is not installed (pip install 'helix-sim[gpu]').") from None
    if not torch.cuda.is_available():
        raise NoGpu(f"No GPU to measure: torch {torch.__version__} sees no CUDA device.")
    return int(torch.cuda.mem_get_info()[0])


def _output(command: tuple[str, ...]) -> str:
    """First line that a tool prints, or "unknown" where the tool or its answer is missing."""
    if shutil.which(command[0]) is None:
        return "unknown"
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip().splitlines()[0] if done.returncode == 0 and done.stdout.strip() else "unknown"
