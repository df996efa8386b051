"""The equations against a layer that really runs: what N ranks compute, and what they counted while they did.

Every rank of `helix_layer` works on real tensors and counts its own FLOP, HBM bytes and link bytes. Those of the
busiest rank must be the equations' Work, op by op and to the last byte. Where an equation states something else (an
expectation over random routing, a ring of equal pieces), `compare` bounds the difference, and the routing tests measure
it.
"""

import functools
import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from witness.counted import Rank, busiest, one_shot_all_reduce, ring_all_reduce
from witness.helix_layer import BLOCK_TOKENS, HelixLayer, Parts, partial_attention
from witness.plain_layer import attention_shapes, dense_shapes, moe_shapes, plain_layer, random_weights

from helix_sim.core.collectives import all_reduce
from helix_sim.core.layout import Layout
from helix_sim.core.units import FORMAT_BITS
from helix_sim.feasibility import shape_reasons
from helix_sim.kernels.twin import combine
from helix_sim.ops.attention import Decode, kv_bytes_per_layer, kv_tokens_per_rank
from helix_sim.ops.ffn import share_of_tokens_here
from helix_sim.specs.load import load_machine
from helix_sim.specs.model import Model
from helix_sim.specs.precision import Precision
from helix_sim.step import attention_ops, dense_ops, moe_ops

GB200 = load_machine("gb200-nvl72")
QUANTITIES = ("flops", "weight_bytes", "kv_bytes", "activation_bytes", "link_bytes")
FP8 = Precision(weights="fp8", kv="fp8", math="fp8", wire="fp8", activations="fp8")
MIXED = Precision(
    weights="nvfp4",
    kv="fp8",
    math="fp4",
    wire="bf16",
    activations="bf16",
    attention_weights="fp8-block",
    dispatch="mxfp4",
)


def model_of(attention, *, hidden, dense, experts=None):
    """A model of one dense layer and, where it has experts, one MoE layer."""
    return Model.model_validate(
        {
            "kind": "model",
            "name": "small",
            "source": "made up",
            "published_parameters_B": 1,
            "hidden_size": hidden,
            "vocab_size": 16,
            "attention": attention,
            "dense_layers": 1,
            "dense_intermediate_size": dense,
            "moe_layers": 1 if experts else 0,
            "experts": experts,
        }
    )


def gqa(q_heads, kv_heads, head_size):
    return {"kind": "gqa", "q_heads": q_heads, "kv_heads": kv_heads, "head_size": head_size}


def mla(q_heads, q_lora_rank, kv_lora_rank, rope_width, nope_width, output_width):
    return {
        "kind": "mla",
        "q_heads": q_heads,
        "q_lora_rank": q_lora_rank,
        "kv_lora_rank": kv_lora_rank,
        "rope_width": rope_width,
        "nope_width": nope_width,
        "output_width": output_width,
    }


def experts_of(routed, top_k, width, shared=0, shared_width=0):
    return {
        "routed": routed,
        "top_k": top_k,
        "intermediate_size": width,
        "shared": shared,
        "shared_intermediate_size": shared_width,
    }


GQA = model_of(gqa(12, 3, 4), hidden=12, dense=24, experts=experts_of(6, 2, 10, 1, 9))
MLA = model_of(mla(12, 6, 5, 2, 3, 3), hidden=12, dense=24, experts=experts_of(6, 2, 10, 1, 9))


def kinds(model):
    return ("dense", "moe") if model.experts else ("dense",)


def weights_of(model, kind, rng):
    ffn = moe_shapes(model, model.experts) if kind == "moe" else dense_shapes(model)
    return random_weights(attention_shapes(model), rng), random_weights(ffn, rng)


@functools.cache
def legal_shapes(q_heads, routed, width, most_kvp, gpus):
    """Every (tpa, kvp, dp, tpf, ep) of up to `gpus` ranks that a model of these sizes can run, Medha's among them."""
    found = []
    for tpa, kvp, dp in itertools.product(range(1, gpus + 1), range(1, most_kvp + 1), range(1, gpus + 1)):
        if tpa * kvp * dp > gpus:
            continue
        for grid in sorted({dp * tpa * kvp, dp * tpa}):
            for ep in (n for n in range(1, grid + 1) if grid % n == 0):
                if max(tpa, grid // dp) <= q_heads and ep <= routed and grid // ep <= width:
                    found.append({"tpa": tpa, "kvp": kvp, "dp": dp, "tpf": grid // ep, "ep": ep})
    return found


def legal_layouts(model, context, gpus):
    moe = model.experts
    width = min([model.dense_intermediate_size, *([moe.intermediate_size] if moe else [])])
    most_kvp = -(-context // BLOCK_TOKENS)
    return legal_shapes(model.attention.q_heads, moe.routed if moe else 1, width, min(most_kvp, gpus), gpus)


def run_step(model, kind, layout, precision, context, rng):
    """One decode step at `context`: the layer after it, every rank's output, and the unsharded layer's."""
    a, rows = model.attention, layout.dp * layout.batch
    attention, ffn = weights_of(model, kind, rng)
    cache = rng.normal(size=(rows, context - 1, a.kv_heads, a.cache_width))
    residual, delta = rng.normal(size=(2, rows, model.hidden_size))
    layer = HelixLayer(model, precision, layout, attention, ffn)
    layer.fill(cache)
    outputs = layer.step(residual, delta)
    expected, _ = plain_layer(model, attention, ffn, residual + delta, cache)
    return layer, outputs, expected


def largest_error(layer, outputs, expected):
    batch = layer.widths.batch
    rows = [expected[batch * seat.group : batch * (seat.group + 1)] for seat in layer.seats]
    return max(np.abs(got - want).max() for got, want in zip(outputs, rows, strict=True))


def work_of(model, kind, layout, precision, context):
    """The equations' ops of a layer of that kind."""
    d = Decode(model=model, precision=precision, layout=layout, context=context)
    return attention_ops(d) | (moe_ops(d) if kind == "moe" else dense_ops(d))


def certain(model, layout, op, quantity):
    """Whether no chance is left in a routed quantity: the equation must then be exact, and else is an expectation."""
    moe, held = model.experts, -(-model.experts.routed // layout.ep)
    if op in ("dispatch", "combine"):
        return layout.dp == 1 or moe.routed - held < moe.top_k
    return moe.top_k == moe.routed or (layout.ep == 1 and quantity != "weight_bytes")


def compare(model, layout, precision, op, work, most, counted):
    """Counted against modelled: equal to the last byte, or within what the equation's docstring leaves open."""
    for quantity in QUANTITIES:
        got, modelled = float(getattr(counted, quantity)), float(getattr(work, quantity))
        case = f"{op} {quantity}: counted {got}, modelled {modelled}, on {layout}"
        if op.endswith("all_reduce") and quantity == "link_bytes":
            group, values = layout.token_group, layout.batch * model.hidden_size
            ragged = 0 if values % group == 0 else 2 * precision.bytes_of("wire")
            assert modelled * (1 - 1e-12) <= got <= modelled * (1 + 1e-12) + ragged, case
        elif op.startswith("routed") or op in ("dispatch", "combine"):
            if certain(model, layout, op, quantity):
                assert got == pytest.approx(modelled, rel=1e-9), case
            assert got <= float(getattr(most, quantity)) * (1 + 1e-9), case
        else:
            assert got == modelled, case


def picking_every_expert(model):
    """The model whose tokens pick all experts: it bounds what routing can bring to a rank."""
    moe = model.experts
    return model.model_copy(update={"experts": moe and moe.model_copy(update={"top_k": moe.routed})})


def check_step(model, kind, layout, precision, context, seed):
    layer, outputs, expected = run_step(model, kind, layout, precision, context, np.random.default_rng(seed))
    assert largest_error(layer, outputs, expected) < 1e-10
    works = work_of(model, kind, layout, precision, context)
    most = work_of(picking_every_expert(model), kind, layout, precision, context)
    assert {op for rank in layer.ranks for op in rank.counts} <= set(works)
    for op, work in works.items():
        compare(model, layout, precision, op, work, most[op], busiest(layer.ranks, op))


# --- Every layout ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", [GQA, MLA], ids=["gqa", "mla"])
@pytest.mark.parametrize("kind", ["dense", "moe"])
def test_every_legal_layout_of_twelve_ranks_computes_the_layer_and_counts_the_work(model, kind):
    for shape in legal_layouts(model, 77, 12):
        check_step(model, kind, Layout(batch=3, **shape), MIXED, 77, seed=0)


def test_the_layouts_that_run_here_are_those_that_the_simulator_admits():
    for model in (GQA, MLA):
        legal = {tuple(shape.values()) for shape in legal_layouts(model, 77, 8)}
        grid = itertools.product(range(1, 9), range(1, 9), range(1, 9), range(1, 9), range(1, 9))
        table = np.array([row for row in grid if row[0] * row[1] * row[2] <= 8])
        tpa, kvp, dp, tpf, ep = table.T
        flags = shape_reasons(model, GB200, Layout(tpa=tpa, kvp=kvp, dp=dp, tpf=tpf, ep=ep), 77)
        assert {tuple(map(int, row)) for row in table[flags == 0]} == legal


# --- Random models, layouts, formats and contexts --------------------------------------------------------------------


@st.composite
def models(draw):
    small = st.integers(1, 5)
    kv_heads, share = draw(st.integers(1, 4)), draw(st.integers(1, 4))
    latent = draw(st.booleans())
    attention = (
        mla(kv_heads * share, *(draw(small) for _ in range(5))) if latent else gqa(kv_heads * share, kv_heads, 3)
    )
    hidden, dense = draw(st.integers(3, 12)), draw(st.integers(1, 20))
    if draw(st.booleans()):
        return model_of(attention, hidden=hidden, dense=dense)
    routed = draw(st.integers(1, 8))
    moe = experts_of(
        routed, draw(st.integers(1, routed)), draw(st.integers(1, 8)), draw(st.integers(0, 2)), draw(small)
    )
    return model_of(attention, hidden=hidden, dense=dense, experts=moe)


@st.composite
def steps(draw):
    model, context, batch = draw(models()), draw(st.integers(1, 120)), draw(st.integers(1, 4))
    kind = draw(st.sampled_from(kinds(model)))
    shape = draw(st.sampled_from(legal_layouts(model, context, 10)))
    chunks = draw(st.integers(1, batch)) if shape["kvp"] > 1 else 1
    return model, kind, Layout(batch=batch, chunks=chunks, **shape), context


@st.composite
def precisions(draw):
    formats, math = st.sampled_from(sorted(FORMAT_BITS)), st.sampled_from(["fp4", "fp8", "bf16"])
    names = ("weights", "kv", "wire", "activations", "attention_weights", "dispatch")
    return Precision.model_validate({"math": draw(math)} | {name: draw(formats) for name in names})


@settings(max_examples=400, deadline=None)
@given(steps(), precisions(), st.integers(0, 2**32 - 1))
def test_any_step_computes_the_unsharded_layer_and_counts_what_the_equations_say(step, precision, seed):
    model, kind, layout, context = step
    check_step(model, kind, layout, precision, context, seed)


@settings(max_examples=100, deadline=None)
@given(models(), st.integers(1, 40), st.integers(2, 6), st.booleans(), st.integers(0, 2**32 - 1))
def test_shards_without_a_token_change_nothing(model, context, kvp, medha, seed):
    # the simulator refuses such layouts; the arithmetic holds all the same
    layout = Layout(batch=2, kvp=kvp, tpf=1 if medha else kvp)
    if layout.token_group <= model.attention.q_heads:
        check_step(model, "dense", layout, FP8, context, seed)


# --- The KV cache ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "kind", "tpa", "kvp"), [(GQA, "dense", 2, 3), (MLA, "moe", 1, 4)], ids=["gqa", "mla"]
)
def test_a_decode_of_a_thousand_steps_stays_exact_and_balanced_to_within_one_block(model, kind, tpa, kvp):
    rng = np.random.default_rng(5)
    a, layout = model.attention, Layout(batch=2, tpa=tpa, kvp=kvp, tpf=tpa * kvp)
    attention, ffn = weights_of(model, kind, rng)
    layer = HelixLayer(model, FP8, layout, attention, ffn)
    cache = np.zeros((2, 0, a.kv_heads, a.cache_width))
    for context in range(1, 1001):
        hidden = rng.normal(size=(2, model.hidden_size))
        outputs = layer.step(hidden, np.zeros_like(hidden))
        expected, cache = plain_layer(model, attention, ffn, hidden, cache)
        assert largest_error(layer, outputs, expected) < 1e-10
        check_balance(layer, model, layout, context)


@pytest.mark.parametrize("kvp", [1, 2, 5, 7, 16])
def test_a_cache_of_any_width_stays_balanced_to_within_one_block(kvp):
    model, layout = MLA, Layout(batch=1, kvp=kvp, tpf=kvp)
    layer = HelixLayer(model, FP8, layout, *weights_of(model, "dense", np.random.default_rng(6)))
    for context in range(1, 1001):
        layer.fill(np.zeros((1, 1, 1, model.attention.cache_width)))
        check_balance(layer, model, layout, context)


def check_balance(layer, model, layout, context):
    tokens = [shard.tokens for shard in layer.cache]
    assert max(tokens) - min(tokens) <= BLOCK_TOKENS
    assert sum(tokens) == context * layout.tpa
    d = Decode(model=model, precision=FP8, layout=layout, context=context)
    assert max(tokens) == kv_tokens_per_rank(d)
    assert max(shard.values.size for shard in layer.cache) == layout.batch * kv_bytes_per_layer(d)


def test_past_kv_heads_the_ranks_hold_copies_and_the_exchange_of_helix_does_not():
    rng = np.random.default_rng(7)

    def cached(**shape):
        layer, _, _ = run_step(GQA, "dense", Layout(batch=1, **shape), FP8, 96, rng)
        return sum(shard.values.size for shard in layer.cache)

    assert GQA.attention.kv_heads == 3
    assert cached(tpa=12, tpf=12) == 4 * cached(tpa=3, tpf=3)
    assert cached(tpa=3, kvp=4, tpf=12) == cached(tpa=3, tpf=3)


# --- Empty shards ----------------------------------------------------------------------------------------------------

PARTS = Parts(key=slice(2), value=slice(2, None), rotated=slice(2))


def test_an_empty_shard_contributes_nothing():
    rng = np.random.default_rng(8)
    query, cached = rng.normal(size=(2, 4, 2)), rng.normal(size=(2, 9, 2, 4))
    full = partial_attention(Rank(FP8), query, cached, PARTS, 1.0)
    empty = partial_attention(Rank(FP8), query, cached[:, :0], PARTS, 1.0)
    assert (empty[0] == 0).all()
    assert np.isneginf(empty[1]).all()
    combined, _ = combine(np.stack([empty[0], full[0], empty[0]]), np.stack([empty[1], full[1], empty[1]]))
    np.testing.assert_array_equal(combined, full[0])


def test_only_empty_shards_give_zeros_and_no_nan():
    rank = Rank(FP8)
    out, lse = partial_attention(rank, np.ones((1, 2, 2)), np.zeros((1, 0, 1, 4)), PARTS, 1.0)
    combined, _ = combine(np.stack([out, out]), np.stack([lse, lse]))
    assert (combined == 0).all()
    assert rank.counts["attention_core"].kv_bytes == rank.counts["attention_core"].flops == 0


# --- Collectives -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 2, 3, 4, 8])
def test_all_reduces_send_what_each_of_their_forms_says(n):
    parts = list(np.random.default_rng(9).normal(size=(n, 6, 4)))
    one_shot, ring = all_reduce(24.0, n).forms(domain=72, switch_reduces=False)
    for run, form in ((one_shot_all_reduce, one_shot), (ring_all_reduce, ring)):
        ranks = [Rank(FP8) for _ in range(n)]
        for total in run("sum", ranks, parts):
            np.testing.assert_allclose(total, np.sum(parts, axis=0), atol=1e-12)
        sent = busiest(ranks, "sum").sent_bytes
        assert sent == pytest.approx(form.nvlink_bytes, rel=1e-12)


def test_medha_leaves_the_other_shards_idle_until_they_are_told():
    layer, _, _ = run_step(GQA, "moe", Layout(batch=2, tpa=2, kvp=3, tpf=2), FP8, 77, np.random.default_rng(10))
    for rank, seat in zip(layer.ranks, layer.seats, strict=True):
        if seat.shard > 0:
            after = set(rank.counts) - {"attention_norm", "qkv_projection", "rope_and_append", "attention_core"}
            assert after == {"exchange", "moe_spread"}


# --- Routing: expectations against what random routing counts --------------------------------------------------------

ROUTINGS = [
    # routed, top_k, sizes
    (16, 2, {"batch": 1, "dp": 4, "ep": 4}),
    (16, 2, {"batch": 32, "dp": 8, "ep": 8}),
    (16, 2, {"batch": 8, "dp": 8, "tpf": 2, "ep": 4, "tpa": 1}),
    (16, 2, {"batch": 4, "tpa": 4, "tpf": 4}),
    (24, 1, {"batch": 8, "dp": 4, "ep": 4}),
    (32, 8, {"batch": 2, "dp": 8, "ep": 8}),
    (32, 8, {"batch": 4, "tpa": 8, "ep": 8}),
    (10, 3, {"batch": 8, "dp": 4, "ep": 4}),
]


def moe_layer(routed, top_k, sizes, rng):
    """A layer whose router is orthonormal, so that an isotropic row picks every set of experts equally often."""
    model = model_of(gqa(8, 8, 2), hidden=32, dense=8, experts=experts_of(routed, top_k, 4))
    layout = Layout(**{"tpa": max(1, sizes.get("tpf", 1) * sizes.get("ep", 1) // sizes.get("dp", 1))} | sizes)
    attention, ffn = weights_of(model, "moe", rng)
    ffn["router"] = np.linalg.qr(rng.normal(size=(32, 32)))[0][:, :routed]
    d = Decode(model=model, precision=FP8, layout=layout, context=100)
    return HelixLayer(model, FP8, layout, attention, ffn), d


def feed(layer, hidden):
    """The FFN alone on hidden [dp, B, H], counted from zero."""
    for rank in layer.ranks:
        rank.counts.clear()
    rows = {r: hidden[layer.seats[r].group] for r in layer.grid}
    layer.feed_forward(rows, {r: np.zeros_like(row) for r, row in rows.items()})


@pytest.mark.parametrize(("routed", "top_k", "sizes"), ROUTINGS)
def test_random_routing_counts_on_average_what_is_expected_of_the_busiest_rank(routed, top_k, sizes):
    rng, trials = np.random.default_rng(11), 150
    layer, d = moe_layer(routed, top_k, sizes, rng)
    works = moe_ops(d)
    seen = {"pairs": [], "read": [], "foreign": []}
    for _ in range(trials):
        feed(layer, rng.normal(size=(sizes.get("dp", 1), sizes["batch"], 32)))
        up = busiest(layer.ranks, "routed_up")
        seen["pairs"].append(up.flops)
        seen["read"].append(up.weight_bytes)
        seen["foreign"].append(busiest(layer.ranks, "dispatch").link_bytes)
    assert np.mean(seen["pairs"]) == pytest.approx(works["routed_up"].flops, rel=0.10)
    assert np.mean(seen["read"]) == pytest.approx(works["routed_up"].weight_bytes, rel=0.10)
    assert np.mean(seen["foreign"]) == pytest.approx(works["dispatch"].link_bytes, rel=0.10)


@pytest.mark.parametrize(("ep", "tpf"), [(1, 6), (2, 3), (3, 2), (6, 1)])
def test_over_every_choice_of_experts_the_share_of_tokens_that_come_is_exact(ep, tpf):
    # one token for each of the C(6, 2) choices in each of three groups: no chance is left
    choices = np.array(list(itertools.combinations(range(6), 2)))
    layer, d = moe_layer(6, 2, {"batch": len(choices), "dp": 3, "ep": ep, "tpf": tpf}, np.random.default_rng(12))
    picks = np.zeros((len(choices), 6))
    np.put_along_axis(picks, choices, 1.0, axis=1)
    feed(layer, np.broadcast_to(picks @ layer.router.T, (3, len(choices), 32)))
    foreign = 2 * len(choices) * share_of_tokens_here(d, d.model.experts)
    for op, rank in itertools.product(("dispatch", "combine"), layer.ranks):
        assert rank.counts[op].sent_bytes == pytest.approx(foreign * 32, rel=1e-12)
        assert rank.counts[op].received_bytes == pytest.approx(foreign * 32, rel=1e-12)


@pytest.mark.parametrize("sizes", [{"batch": 5, "tpa": 4, "ep": 4}, {"batch": 3, "dp": 4, "tpf": 2, "ep": 2}])
def test_the_experts_together_compute_every_pair_once_and_hold_every_weight_once(sizes):
    rng = np.random.default_rng(13)
    layer, d = moe_layer(16, 4, sizes, rng)
    feed(layer, rng.normal(size=(layer.widths.dp, layer.widths.batch, 32)))
    pairs = layer.widths.dp * layer.widths.batch * 4
    assert sum(rank.counts["routed_down"].flops for rank in layer.ranks) == 2 * pairs * 4 * 32
    held = sum(w["down"].size for w in layer.expert_weights.values())
    assert held == 16 * 4 * 32 == pytest.approx(len(layer.ranks) * moe_ops(d)["routed_down"].resident_weight_bytes)
