"""The NumPy twin against plain softmax and against itself, and the Triton kernels against the twin.

The kernels run natively where torch sees a CUDA device, and in Triton's interpreter elsewhere.
"""

import importlib.util
import os
import subprocess
import sys
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helix_sim.kernels import flash_decode, twin

BF16_ERROR = 1e-2
SHARED_MEMORY_BYTES = 227 * 1024  # that one thread block may have, on Hopper and Blackwell alike


def random_shard(seed, *, batch=2, q_heads=4, kv_heads=2, tokens=50, width=8):
    rng = np.random.default_rng(seed)
    q = rng.normal(size=(batch, q_heads, width))
    k, v = rng.normal(size=(2, batch, kv_heads, tokens, width))
    return q, k, v


# --- the twin ---------------------------------------------------------------------------------------------------------


def test_twin_is_softmax_written_out():
    q, k, v = random_shard(1)
    out, lse = twin.partial_attention(q, k, v, [50, 20], scale=0.5)
    for request, head, length in ((0, 3, 50), (1, 1, 20)):
        weights = np.exp(0.5 * k[request, head // 2, :length] @ q[request, head])
        assert out[request, head] == pytest.approx(weights @ v[request, head // 2, :length] / weights.sum(), rel=1e-12)
        assert lse[request, head] == pytest.approx(np.log(weights.sum()), rel=1e-12)


@given(seed=st.integers(0, 2**32 - 1), shards=st.lists(st.integers(0, 30), min_size=1, max_size=6))
@settings(max_examples=50, deadline=None)
def test_twin_of_shards_combines_to_the_whole(seed, shards):
    tokens = sum(shards)
    q, k, v = random_shard(seed, tokens=tokens)
    whole, whole_lse = twin.partial_attention(q, k, v, [tokens, tokens], scale=3.0)
    ends = np.cumsum(shards)
    pieces = [
        twin.partial_attention(q, k[:, :, end - n : end], v[:, :, end - n : end], [n, n], scale=3.0)
        for n, end in zip(shards, ends, strict=True)
    ]
    out, lse = twin.combine([out for out, _ in pieces], [lse for _, lse in pieces])
    np.testing.assert_allclose(out, whole, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(lse, whole_lse, rtol=1e-12)


def test_twin_of_no_tokens_at_all_is_zero_with_an_lse_of_minus_infinity():
    q, k, v = random_shard(2, tokens=0)
    out, lse = twin.partial_attention(q, k, v, [0, 0], scale=1.0)
    assert np.all(out == 0)
    assert np.all(np.isneginf(lse))
    out, lse = twin.combine([out, out], [lse, lse])
    assert np.all(out == 0)
    assert np.all(np.isneginf(lse))


def test_twin_of_logits_beyond_exp_stays_finite():
    q, k, v = random_shard(3)
    out, lse = twin.partial_attention(q, k, v, [50, 50], scale=1e5)
    assert np.all(np.isfinite(out))
    assert lse.max() > 1e5


# --- the launch -------------------------------------------------------------------------------------------------------


@given(
    blocks=st.integers(1, 3000),
    tokens=st.integers(1, 1 << 21),
    slots=st.integers(1, 500),
    block_n=st.sampled_from((32, 64)),
)
@settings(max_examples=100, deadline=None)
def test_splits_never_shrink_below_four_tiles(blocks, tokens, slots, block_n):
    splits = flash_decode.splits_to_fill(blocks=blocks, tokens=tokens, slots=slots, block_n=block_n)
    assert splits >= 1
    assert splits == 1 or tokens / splits >= 4 * block_n


# --- the kernels ------------------------------------------------------------------------------------------------------

installed = all(importlib.util.find_spec(name) for name in ("torch", "triton"))
needs_triton = pytest.mark.skipif(not installed, reason="torch and triton are not installed (the extra [gpu])")


@dataclass(frozen=True, kw_only=True)
class Shape:
    q_heads: int
    kv_heads: int
    width: int
    rope: int = 0


GQA_8 = Shape(q_heads=8, kv_heads=1, width=128)
MLA = Shape(q_heads=128, kv_heads=1, width=512, rope=64)
SHAPES = [
    GQA_8,
    Shape(q_heads=32, kv_heads=2, width=64),  # Q/K = 16 fills the tile
    Shape(q_heads=3, kv_heads=3, width=256),  # one query head a KV head
    Shape(q_heads=14, kv_heads=2, width=64),  # Q/K = 7 pads it
    Shape(q_heads=72, kv_heads=1, width=64),  # more than one tile, the last one padded
    Shape(q_heads=16, kv_heads=1, width=512, rope=64),  # MLA's heads over TPA = 8
    MLA,
]


class Case:
    """Random queries and cache rows on the device under test, and float64 attention over the same numbers."""

    def __init__(self, shape, lengths, *, stored="bf16", tokens=None, scale=None, seed=0, spread=1.0):
        import torch

        from helix_sim.kernels.triton_kernels import INTERPRETED

        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        if self.device == "cpu" and not INTERPRETED:
            pytest.skip("neither a CUDA device nor Triton's interpreter (TRITON_INTERPRET=1)")
        torch.manual_seed(seed)
        dtype = {"bf16": torch.bfloat16, "fp8": torch.float8_e4m3fn}[stored]
        rows = (len(lengths), shape.kv_heads, max(lengths) if tokens is None else tokens)

        def draw(*size, to):
            return (spread * torch.randn(size)).to(to).to(self.device)

        self.q = draw(len(lengths), shape.q_heads, shape.width + shape.rope, to=torch.bfloat16)
        self.k = draw(*rows, shape.width + shape.rope, to=dtype)
        self.v = self.k[..., : shape.width] if shape.rope else draw(*rows, shape.width, to=dtype)
        self.lengths = torch.tensor(lengths, dtype=torch.int32, device=self.device)
        self.scale = (shape.width + shape.rope) ** -0.5 if scale is None else scale

    def partials(self, splits=None):
        return flash_decode.decode_partials(self.q, self.k, self.v, self.lengths, scale=self.scale, splits=splits)

    def decode(self, splits=None):
        return flash_decode.decode(self.q, self.k, self.v, self.lengths, scale=self.scale, splits=splits)

    def truth(self):
        q, k, v = (numbers(x) for x in (self.q, self.k, self.v))
        return twin.partial_attention(q, k, v, numbers(self.lengths), scale=self.scale)


def numbers(tensor):
    return tensor.cpu().double().numpy()


def worst_error(out, truth):
    """Largest relative error of a (token, head), in the Euclidean norm; an output that should be zero has to be."""
    out = numbers(out)
    size = np.linalg.norm(truth, axis=-1)
    assert np.all(out[size == 0] == 0)
    return np.max(np.linalg.norm(out - truth, axis=-1)[size > 0] / size[size > 0], initial=0.0)


def assert_agrees(found, truth, *, error=BF16_ERROR):
    assert worst_error(found[0], truth[0]) < error
    np.testing.assert_allclose(numbers(found[1]), truth[1], rtol=1e-5, atol=1e-4)


@needs_triton
@pytest.mark.parametrize("stored", ["bf16", "fp8"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("splits", [1, 3])
def test_kernel_agrees_with_float64(shape, stored, splits):
    case = Case(shape, [200, 0, 1, 131], stored=stored)
    assert_agrees(case.decode(splits), case.truth())


@needs_triton
@pytest.mark.parametrize("shape", [GQA_8, MLA], ids=["gqa", "mla"])
@pytest.mark.parametrize("length", [1, 31, 32, 33, 64, 65, 128, 257])
def test_lengths_need_not_divide_the_block(shape, length):
    case = Case(shape, [length], tokens=300)
    assert_agrees(case.decode(splits=2), case.truth())


@needs_triton
@pytest.mark.parametrize("shape", [GQA_8, MLA], ids=["gqa", "mla"])
def test_a_rank_that_owns_no_token_contributes_nothing(shape):
    case = Case(shape, [0, 0], tokens=70)
    out, lse = case.decode(splits=2)
    assert np.all(numbers(out) == 0)
    assert np.all(np.isneginf(numbers(lse)))
    empty = Case(shape, [0, 0])  # not even memory for a token
    out, lse = empty.decode()
    assert np.all(numbers(out) == 0)
    assert np.all(np.isneginf(numbers(lse)))


@needs_triton
@pytest.mark.parametrize("shape", [GQA_8, MLA], ids=["gqa", "mla"])
def test_cache_rows_past_a_requests_length_are_never_used(shape):
    case = Case(shape, [40, 70], tokens=130)
    truth = case.truth()
    case.k[0, :, 40:] = float("nan")
    case.k[1, :, 70:] = float("nan")
    case.v[0, :, 40:] = float("nan")
    case.v[1, :, 70:] = float("nan")
    assert_agrees(case.decode(splits=2), truth)


@needs_triton
@pytest.mark.parametrize("stored", ["bf16", "fp8"])
@pytest.mark.parametrize("shape", [GQA_8, MLA], ids=["gqa", "mla"])
def test_logits_far_beyond_exp_stay_exact(shape, stored):
    case = Case(shape, [150, 90], stored=stored, scale=50.0)
    truth = case.truth()
    assert truth[1].max() > 1000
    assert_agrees(case.decode(splits=2), truth)


@needs_triton
@pytest.mark.parametrize("shape", [GQA_8, MLA], ids=["gqa", "mla"])
def test_equal_logits_give_the_mean_and_the_log_of_the_count(shape):
    case = Case(shape, [150, 90])
    case.q.zero_()
    out, lse = case.decode(splits=2)
    mean = np.stack([numbers(case.v)[request, 0, :length].mean(axis=0) for request, length in enumerate((150, 90))])
    assert worst_error(out, np.broadcast_to(mean[:, None], out.shape)) < 1e-5
    np.testing.assert_allclose(numbers(lse)[:, 0], np.log([150, 90]), rtol=1e-6)


@needs_triton
@pytest.mark.parametrize("stored", ["bf16", "fp8"])
@pytest.mark.parametrize("shape", [GQA_8, MLA], ids=["gqa", "mla"])
def test_kvp_shards_combine_to_the_unsharded_attention(shape, stored):
    import torch

    case = Case(shape, [100, 37], stored=stored)
    outs, sums = [], []
    for rank in range(3):  # blocks of 16 tokens in turn; of the second request, rank 2 owns only five tokens
        rows = [row for row in range(100) if row // 16 % 3 == rank]
        owned = case.lengths.new_tensor([sum(row < length for row in rows) for length in (100, 37)])
        k = case.k[:, :, rows].contiguous()
        v = k[..., : shape.width] if shape.rope else case.v[:, :, rows].contiguous()
        out, lse = flash_decode.decode(case.q, k, v, owned, scale=case.scale)
        outs.append(out)
        sums.append(lse)
    empty = [outs[0].new_full(outs[0].shape, float("nan")), sums[0].new_full(sums[0].shape, float("-inf"))]
    together = flash_decode.combine(torch.stack([*outs, empty[0]]), torch.stack([*sums, empty[1]]))
    assert_agrees(together, case.truth())
    whole, whole_lse = case.decode(splits=1)
    assert worst_error(together[0], numbers(whole)) < BF16_ERROR
    np.testing.assert_allclose(numbers(together[1]), numbers(whole_lse), rtol=1e-5, atol=1e-5)


@needs_triton
def test_the_combine_kernel_is_its_twin():
    case = Case(GQA_8, [300, 5])
    for splits in (1, 2, 4, 5):
        out, lse = case.partials(splits)
        assert len(out) == splits
        truth = twin.combine(numbers(out), numbers(lse))
        found = flash_decode.combine(out, lse)
        assert worst_error(found[0], truth[0]) < 1e-6
        np.testing.assert_allclose(numbers(found[1]), truth[1], rtol=1e-6)


@needs_triton
def test_partials_in_bf16_combine_within_its_rounding():
    import torch

    case = Case(GQA_8, [300, 5])
    out, lse = case.partials(4)
    on_the_wire = out.to(torch.bfloat16)
    combined, combined_lse = flash_decode.combine(on_the_wire, lse, dtype=torch.bfloat16)
    assert combined.dtype is torch.bfloat16
    assert_agrees((combined, combined_lse), case.truth())


@needs_triton
def test_a_cache_laid_out_token_first_is_read_through_its_strides():
    case = Case(Shape(q_heads=16, kv_heads=2, width=64), [100, 61])
    truth = case.truth()
    case.k, case.v = (x.transpose(1, 2).contiguous().transpose(1, 2) for x in (case.k, case.v))
    assert_agrees(case.decode(splits=2), truth)


@needs_triton
@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda case: setattr(case, "q", case.q[:, :7]), "7 query heads do not divide over 2 KV heads"),
        (lambda case: setattr(case, "q", case.q[..., :32]), "queries are 32 wide, keys 64"),
        (lambda case: setattr(case, "v", case.v[..., :32]), "must be a view of k's first columns"),
        (lambda case: setattr(case, "k", case.k.float()), "keys must be BF16 or FP8 e4m3"),
        (lambda case: setattr(case, "k", case.k.mT.contiguous().mT), "last dimension"),
    ],
)
def test_tensors_that_are_no_attention_are_refused_in_words(change, sentence):
    case = Case(Shape(q_heads=8, kv_heads=2, width=64), [40])
    change(case)
    with pytest.raises(ValueError, match=sentence):
        case.decode()


COMPILE = """
import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from helix_sim.kernels.flash_decode import launch_for
from helix_sim.kernels.triton_kernels import partial_kernel

pointers = {"q": "*bf16", "lengths": "*i32", "out": "*fp32", "lse": "*fp32", "scale_log2": "fp32"}
for arch in (90, 100):
    for stored, math in (("bf16", tl.bfloat16), ("fp8e4nv", tl.float16)):
        for group, width, rope in ((8, 128, 0), (128, 512, 64)):
            launch = launch_for(group=group, width=width, rope=rope)
            constants = {
                "GROUP": group, "BLOCK_H": launch.block_h, "BLOCK_N": launch.block_n, "WIDTH": width, "ROPE": rope,
                "ROUND": math, "MATH": math, "k_token": width + rope, "v_token": width + rope,
            }
            types = {name: pointers.get(name, "i32") for name in partial_kernel.arg_names}
            types |= {"k": "*" + stored, "v": "*" + stored} | dict.fromkeys(constants, "constexpr")
            aligned = {
                (index,): [["tt.divisibility", 16]]
                for index, name in enumerate(types)
                if types[name].startswith("*") or "_" in name and types[name] == "i32"
            }
            source = triton.compiler.ASTSource(partial_kernel, types, constants, aligned)
            options = {"num_warps": launch.warps, "num_stages": launch.stages}
            print(triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options).metadata.shared)
"""


@needs_triton
def test_gqa_and_mla_compile_for_hopper_and_blackwell_within_shared_memory():
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    done = subprocess.run([sys.executable, "-c", COMPILE], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    sizes = [int(line) for line in done.stdout.split()]
    assert len(sizes) == 8
    assert max(sizes) <= SHARED_MEMORY_BYTES
