"""Device code: the two Triton kernels, launched by flash_decode. Needs the extra `[gpu]` to import."""

import triton
import triton.language as tl

# Triton's interpreter multiplies BF16 operands by their bit patterns; there, operands are rounded alike, then widened.
INTERPRETED = bool(triton.knobs.runtime.interpret)


@triton.jit
def partial_kernel(
    q,
    k,
    v,
    lengths,
    out,
    lse,
    scale_log2,
    q_heads,
    chunk,
    q_batch,
    q_head,
    k_batch,
    k_head,
    k_token: tl.constexpr,
    v_batch,
    v_head,
    v_token: tl.constexpr,
    GROUP: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_N: tl.constexpr,
    WIDTH: tl.constexpr,
    ROPE: tl.constexpr,
    ROUND: tl.constexpr,
    MATH: tl.constexpr,
):
    """Attention of BLOCK_H query heads of one KV head over one chunk of one request's tokens, by online softmax.

    ROPE > 0 is MLA: a row is WIDTH + ROPE wide, all of it scores, and its first WIDTH columns are the value as well, so
    `v` is not read. ROUND is the arithmetic's format; MATH equals it, or is FP32 in the interpreter. Row strides are
    constants: a tile's addresses are then one base and immediates, and MLA spills fewer registers (96 bytes, not 144).
    """
    head_blocks: tl.constexpr = (GROUP + BLOCK_H - 1) // BLOCK_H
    # The head blocks of one KV head are neighbours in launch order: the second finds the rows in L2.
    kv_head = tl.program_id(0) // head_blocks
    split = tl.program_id(1)
    request = tl.program_id(2)
    in_group = (tl.program_id(0) % head_blocks) * BLOCK_H + tl.arange(0, BLOCK_H)
    heads = kv_head * GROUP + in_group
    real = in_group < GROUP
    columns = tl.arange(0, WIDTH)
    tokens = tl.arange(0, BLOCK_N)

    first = split * chunk
    last = tl.minimum(first + chunk, tl.load(lengths + request))

    q_rows = q + request.to(tl.int64) * q_batch + heads[:, None] * q_head
    q_tile = tl.load(q_rows + columns[None, :], mask=real[:, None], other=0.0).to(ROUND).to(MATH)
    # Scalars carry the 64-bit part of an address; a tile's own offsets fit in 32 bits.
    k_base = k + request.to(tl.int64) * k_batch + kv_head.to(tl.int64) * k_head
    v_base = v + request.to(tl.int64) * v_batch + kv_head.to(tl.int64) * v_head
    k_tile_at = tokens[:, None] * k_token + columns[None, :]
    v_tile_at = tokens[:, None] * v_token + columns[None, :]
    if ROPE > 0:
        rope = WIDTH + tl.arange(0, ROPE)
        q_rope = tl.load(q_rows + rope[None, :], mask=real[:, None], other=0.0).to(ROUND).to(MATH)
        rope_tile_at = tokens[:, None] * k_token + rope[None, :]

    top = tl.full([BLOCK_H], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_H], tl.float32)
    acc = tl.zeros([BLOCK_H, WIDTH], tl.float32)
    for start in tl.range(first, last, BLOCK_N):
        live = tokens < last - start
        at = tl.cast(start, tl.int64)
        k_tile = tl.load(k_base + at * k_token + k_tile_at, mask=live[:, None], other=0.0).to(ROUND).to(MATH)
        scores = tl.dot(q_tile, tl.trans(k_tile))
        if ROPE > 0:
            k_rope = tl.load(k_base + at * k_token + rope_tile_at, mask=live[:, None], other=0.0).to(ROUND).to(MATH)
            scores = tl.dot(q_rope, tl.trans(k_rope), scores)
        scores = tl.where(live[None, :], scores * scale_log2, float("-inf"))
        new_top = tl.maximum(top, tl.max(scores, 1))
        weights = tl.exp2(scores - new_top[:, None])
        fade = tl.exp2(top - new_top)
        total = total * fade + tl.sum(weights, 1)
        top = new_top
        if ROPE > 0:
            v_tile = k_tile
        else:
            v_tile = tl.load(v_base + at * v_token + v_tile_at, mask=live[:, None], other=0.0).to(ROUND).to(MATH)
        acc = tl.dot(weights.to(ROUND).to(MATH), v_tile, acc * fade[:, None])

    # An empty chunk leaves total = 0 and top = -inf: zeros, with a log-sum-exp of -inf, and no 0 / 0.
    divisor = tl.where(total > 0.0, total, 1.0)
    row = (split.to(tl.int64) * tl.num_programs(2) + request) * q_heads + heads
    tl.store(out + row[:, None] * WIDTH + columns[None, :], acc / divisor[:, None], mask=real[:, None])
    tl.store(lse + row, (top + tl.log2(divisor)) * 0.6931471805599453, mask=real)


@triton.jit
def combine_kernel(
    out,
    lse,
    combined,
    combined_lse,
    rows,
    partials,
    width,
    PARTIALS: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """BLOCK_D columns of one (request, head): the partial outputs weighted by their share of the softmax's sum."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    index = tl.arange(0, PARTIALS).to(tl.int64)
    sums = tl.load(lse + index * rows + row, mask=index < partials, other=float("-inf"))
    top = tl.max(sums, 0)
    top = tl.where(top == float("-inf"), 0.0, top)
    weights = tl.exp(sums - top)
    total = tl.sum(weights, 0)
    divisor = tl.where(total > 0.0, total, 1.0)
    # A partial of weight 0 is not read at all: whatever an empty shard holds, NaN included, stays there.
    read = (weights > 0.0)[:, None] & (columns < width)[None, :]
    values = tl.load(out + (index[:, None] * rows + row) * width + columns[None, :], mask=read, other=0.0)
    result = tl.sum(values.to(tl.float32) * (weights / divisor)[:, None], 0)
    tl.store(combined + row * width + columns, result.to(combined.dtype.element_ty), mask=columns < width)
    summed = tl.where(total > 0.0, top + tl.log(divisor), float("-inf"))
    tl.store(combined_lse + row, summed)


@triton.jit
def touch_kernel(word):
    """The least a kernel can do: one store, so that a train of them costs launches alone."""
    tl.store(word, 1.0)
