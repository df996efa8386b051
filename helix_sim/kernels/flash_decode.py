"""Split-KV flash-decode on a GPU: attention of one decode step as partials with log-sum-exp, and their exact sum.

Needs torch and triton (the extra `[gpu]`), imported on the first call. On a CPU it runs in Triton's interpreter, for
tests: TRITON_INTERPRET=1 must be set before triton is imported.

Arithmetic is BF16 over a BF16 cache. Over an FP8 (e4m3) cache it is FP16, which holds every e4m3 value exactly and is
one instruction away; queries must then stay below its largest number, 65504. Sums are FP32. A cache's scale is the
caller's: into `scale` for the keys, onto the output for the values.

No GPU has timed these kernels yet. By the code compiled for Hopper, GQA keeps two tiles in flight in each of three
blocks an SM and spills nothing. MLA over 64 heads and more will be bound by its scores: Triton gives both warp groups
of a block the same 64 rows, so scores are computed twice, and the products are 1.5 times what its bound counts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

LOG2_E = 1.4426950408889634
HEAD_WIDTHS = (16, 32, 64, 128, 256)  # models use 64, 128 and 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """How one thread block works: the query heads and token rows of its tile, its warps and its pipeline's depth."""

    block_h: int
    block_n: int
    warps: int
    stages: int
    resident: int
    """Thread blocks that share one SM, by its shared memory and the registers of a BF16 cache's code."""


def launch_for(*, group: int, width: int, rope: int) -> Launch:
    """Tile shapes for `group` query heads per KV head, `width` value columns and `rope` further score columns (MLA).

    The tensor core's smallest tile has 16 rows and Hopper's wide instruction 64, so query heads are padded to a power
    of two in [16, 64]: 128 rows of 512 FP32 sums would be an SM's whole register file. GQA streams K and V tiles of at
    most 8192 values (16 KiB in BF16): two of each in flight, three blocks an SM. MLA's 64 queries of 576 take 72 KiB of
    the 227, so its latent tiles are 32 rows (36 KiB), which leaves room for three.

    >>> launch_for(group=8, width=128, rope=0)
    Launch(block_h=16, block_n=64, warps=4, stages=3, resident=3)
    >>> launch_for(group=128, width=512, rope=64)
    Launch(block_h=64, block_n=32, warps=8, stages=3, resident=1)
    """
    block_h = min(64, max(16, _power_of_two(group)))
    block_n = 32 if rope else min(128, max(32, 8192 // width))
    warps = 8 if block_h * width > 64 * 128 else 4
    light = not rope and block_h == 16
    return Launch(block_h=block_h, block_n=block_n, warps=warps, stages=3, resident=3 if light else 8 // warps)


def splits_to_fill(*, blocks: int, tokens: int, slots: int, block_n: int) -> int:
    """Fewest token splits whose thread blocks fill the GPU's slots to 95 % of the best filling.

    `blocks` is thread blocks per split (requests × KV heads × head blocks); filling is blocks · splits over whole waves
    of `slots`. A split has at least four tiles, so that its pipeline fills.

    >>> splits_to_fill(blocks=64, tokens=65536, slots=396, block_n=64)  # 64 · 6 = 384 of 396: 97 %
    6
    >>> splits_to_fill(blocks=64, tokens=100, slots=396, block_n=64)
    1
    """
    most = max(1, tokens // (4 * block_n))

    def filling(splits: int) -> float:
        waves = -(-blocks * splits // slots)
        return blocks * splits / (waves * slots)

    choices = range(1, min(most, slots) + 1)
    best = max(filling(splits) for splits in choices)
    return next(splits for splits in choices if filling(splits) >= 0.95 * best)


def decode_partials(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    lengths: torch.Tensor,
    *,
    scale: float,
    splits: int | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention of one decode step over P token splits of a KV shard, each with its log-sum-exp.

    q [B, Q, score width] BF16; k [B, K, S, score width] and v [B, K, S, value width], BF16 or FP8 e4m3, any strides
    but the last; lengths [B] int32, at most S -> out [P, B, Q, value width], lse [P, B, Q] (nats), FP32. Splits past a
    request's end give zeros and -inf. MLA: v is the view k[..., :512], and each row is then read once for both uses.
    """
    import torch
    import triton.language as tl

    from helix_sim.kernels.triton_kernels import INTERPRETED, partial_kernel

    rope = _rope_columns(q, k, v)
    batch, q_heads, _ = q.shape
    kv_heads, tokens, width = v.shape[1:]
    group = q_heads // kv_heads
    launch = launch_for(group=group, width=width, rope=rope)
    blocks = kv_heads * -(-group // launch.block_h)
    if splits is None:
        slots = launch.resident * _processors(q)
        splits = splits_to_fill(blocks=batch * blocks, tokens=tokens, slots=slots, block_n=launch.block_n)
    chunk = -(-tokens // (splits * launch.block_n)) * launch.block_n
    out = torch.empty((splits, batch, q_heads, width), dtype=torch.float32, device=q.device)
    lse = torch.empty((splits, batch, q_heads), dtype=torch.float32, device=q.device)
    rounding = tl.bfloat16 if k.dtype is torch.bfloat16 else tl.float16
    partial_kernel[(blocks, splits, batch)](
        q,
        k,
        v,
        lengths,
        out,
        lse,
        scale * LOG2_E,
        q_heads,
        chunk,
        q.stride(0),
        q.stride(1),
        *k.stride()[:3],
        *v.stride()[:3],
        GROUP=group,
        BLOCK_H=launch.block_h,
        BLOCK_N=launch.block_n,
        WIDTH=width,
        ROPE=rope,
        ROUND=rounding,
        MATH=tl.float32 if INTERPRETED else rounding,
        num_warps=launch.warps,
        num_stages=launch.stages,
    )
    return out, lse


def combine(
    out: torch.Tensor, lse: torch.Tensor, *, dtype: torch.dtype | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Exact sum of P partials, of splits or of KVP shards alike: each rescaled by its share of the softmax's sum.

    out [P, B, Q, value width], lse [P, B, Q] -> out [B, Q, value width] in `dtype` (default: as given), lse [B, Q]. A
    partial whose lse is -inf is not read.
    """
    import torch

    from helix_sim.kernels.triton_kernels import combine_kernel

    partials, batch, q_heads, width = out.shape
    rows = batch * q_heads
    padded = _power_of_two(partials)
    block_d = min(_power_of_two(width), max(16, 8192 // padded))
    combined = torch.empty((batch, q_heads, width), dtype=dtype or out.dtype, device=out.device)
    combined_lse = torch.empty((batch, q_heads), dtype=torch.float32, device=out.device)
    combine_kernel[(rows, -(-width // block_d))](
        out.contiguous(),
        lse.contiguous(),
        combined,
        combined_lse,
        rows,
        partials,
        width,
        PARTIALS=padded,
        BLOCK_D=block_d,
    )
    return combined, combined_lse


def decode(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    lengths: torch.Tensor,
    *,
    scale: float,
    splits: int | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention of one decode step over a KV shard, as this rank's partial: out [B, Q, value width], lse [B, Q], FP32.

    Shapes as in `decode_partials`; one split needs no sum.
    """
    out, lse = decode_partials(q, k, v, lengths, scale=scale, splits=splits)
    return (out[0], lse[0]) if len(out) == 1 else combine(out, lse)


def _rope_columns(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> int:
    """Score columns past the value's (MLA), 0 for GQA; ValueError where the tensors are neither."""
    import torch

    score_width, width = k.shape[-1], v.shape[-1]
    shared = v.data_ptr() == k.data_ptr() and v.stride() == k.stride() and score_width > width
    rope = score_width - width if shared else 0
    problems = {
        f"keys must be BF16 or FP8 e4m3, values alike; found {k.dtype} and {v.dtype}": k.dtype != v.dtype
        or k.dtype not in (torch.bfloat16, torch.float8_e4m3fn),
        f"{q.shape[1]} query heads do not divide over {k.shape[1]} KV heads": q.shape[1] % k.shape[1] != 0,
        f"queries are {q.shape[-1]} wide, keys {score_width}": q.shape[-1] != score_width,
        f"keys are {score_width} wide, values {width}: equal for GQA; for MLA v must be a view of k's first columns": (
            not shared and score_width != width
        ),
        f"widths must be powers of two: a head of {HEAD_WIDTHS}, or MLA's 512 + 64; found {width} + {rope}": (
            width not in (*HEAD_WIDTHS, 512) or (rope != 0 and rope not in HEAD_WIDTHS)
        ),
        "the last dimension of q, k and v must be contiguous": not q.stride(-1) == k.stride(-1) == v.stride(-1) == 1,
    }
    wrong = [problem for problem, found in problems.items() if found]
    if wrong:
        raise ValueError("; ".join(wrong))
    return rope


def _processors(tensor: torch.Tensor) -> int:
    import torch

    return torch.cuda.get_device_properties(tensor.device).multi_processor_count if tensor.is_cuda else 1


def _power_of_two(n: int) -> int:
    return 1 << (n - 1).bit_length()
