"""The equations against a layer that really runs: what N ranks compute, and what they counted while they did.

Every rank of `helix_layer` works on real tensors and counts its own FLOP, HBM bytes and link bytes. Those of the
busiest rank must be the equations' Work, op by op and to the last byte. Where an equation states something else (an
expectation over random routing, a ring of equal pieces), `compare` bounds the difference, and the routing tests measure
it.
"""

import functools
import itertools
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from witness.counted import Rank, busiest, one_shot_all_reduce, ring_all_reduce
from witness.helix_layer import BLOCK_TOKENS, HelixLayer, Parts, first_ones, partial_attention
from witness.plain_kinds import kind_shapes, plain_kind_layer, seen_keys
from witness.plain_layer import LayerSpec, ffn_shapes, plain_layer, random_weights, rms_norm

from helix_sim.core.collectives import all_reduce
from helix_sim.core.layout import Layout
from helix_sim.core.units import FORMAT_BITS
from helix_sim.feasibility import shape_reasons
from helix_sim.kernels.twin import combine
from helix_sim.ops.attention import kv_tokens_per_rank
from helix_sim.ops.layers import KINDS, kv_bytes_per_layer, routed_ops
from helix_sim.ops.routing import share_of_tokens_here
from helix_sim.ops.step_input import StepInput
from helix_sim.specs.load import load_machine
from helix_sim.specs.model import Model
from helix_sim.specs.precision import Precision

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
    output_weights="bf16",
    dispatch="mxfp4",
)


def model_of(attention, *, hidden, dense, experts=None, gated=True):
    """A model of one dense layer and, where it has experts, one MoE layer."""
    kinds = {"dense": {"kind": "dense", "intermediate_size": dense}} | ({"moe": experts} if experts else {})
    ffn = {name: {**kind, "gated": gated} for name, kind in kinds.items()}
    return Model.model_validate(
        {
            "kind": "model",
            "name": "small",
            "source": "made up",
            "published_parameters_B": 1,
            "hidden_size": hidden,
            "vocab_size": 16,
            "attention": {"attention": attention},
            "ffn": ffn,
            "layers": [{"attention": "attention", "ffn": name} for name in ffn],
        }
    )


def layer_of(model, ffn):
    """The layer of a small model that has that feed-forward network."""
    return LayerSpec(hidden_size=model.hidden_size, attention=model.attention["attention"], ffn=model.ffn[ffn])


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
        "kind": "routed",
        "routed": routed,
        "top_k": top_k,
        "intermediate_size": width,
        "shared": shared,
        "shared_intermediate_size": shared_width,
    }


def indexer(**sizes):
    return {"heads": 2, "width": 3, "key_bytes": 7, "math": "fp8", "top_k": 9} | sizes


def linear(key_heads, value_heads, *, gates, **changes):
    sizes = {"key_heads": key_heads, "value_heads": value_heads, "key_width": 3, "value_width": 4}
    return {"kind": "linear", **sizes, "head_gates": gates, "delta_rule": True, "output_gate": True} | changes


COMPRESSED = {
    "kind": "compressed",
    "q_heads": 12,
    "q_lora_rank": 6,
    "head_size": 4,
    "window_tokens": 10,
    "ratio": 5,
    "output_groups": 3,
    "output_lora_rank": 2,
    "sinks": True,
}
ATTENTIONS = {
    "gqa with sinks and a gate": gqa(12, 3, 4) | {"sinks": True, "output_gate": True},
    "mla with a gate": mla(12, 6, 5, 2, 3, 3) | {"output_gate": True},
    "window": gqa(12, 3, 4) | {"kind": "window", "window_tokens": 20, "sinks": True, "output_gate": True},
    "chunked": gqa(12, 3, 4) | {"kind": "window", "window_tokens": 24, "chunked": True},
    "block-sparse": gqa(12, 3, 4)
    | {"kind": "block-sparse", "indexer": indexer(heads=3, top_k=2, block_tokens=8), "output_gate": True},
    "sparse": mla(12, 6, 5, 2, 3, 3) | {"kind": "sparse", "indexer": indexer(), "output_gate": True},
    "compressed and picked": COMPRESSED | {"overlapping": True, "indexer": indexer(top_k=4)},
    "compressed": COMPRESSED,
    "nothing compressed": {name: value for name, value in COMPRESSED.items() if name != "ratio"},
    "gated delta net": linear(6, 12, gates=2, conv_tokens=4),
    "kda": linear(12, 12, gates=1, conv_tokens=4, decay_rank=5),
    "mamba-2": linear(2, 12, gates=1, conv_tokens=4, delta_rule=False, state_format="bf16"),
    "lightning": linear(12, 12, gates=0, delta_rule=False),
}
"""A small attention of every kind beside plain GQA and MLA, and of what these can have."""

GQA = model_of(gqa(12, 3, 4), hidden=12, dense=24, experts=experts_of(6, 2, 10, 1, 9))
MLA = model_of(mla(12, 6, 5, 2, 3, 3), hidden=12, dense=24, experts=experts_of(6, 2, 10, 1, 9))
LATENT = model_of(gqa(12, 3, 4), hidden=12, dense=24, experts=experts_of(6, 2, 10, 1, 9) | {"latent_size": 7})
SMALL = {name: model_of(a, hidden=12, dense=24, experts=experts_of(6, 2, 10, 1, 9)) for name, a in ATTENTIONS.items()}


def weights_of(layer, rng):
    return random_weights(kind_shapes(layer), rng), random_weights(ffn_shapes(layer), rng)


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
    width = min(ffn.narrowest for ffn in model.ffn.values())
    experts = max((ffn.routed for ffn in model.routed_kinds.values()), default=1)
    most_kvp = -(-context // BLOCK_TOKENS)
    return legal_shapes(model.fewest_q_heads, experts, width, min(most_kvp, gpus), gpus)


def run_step(layer, layout, precision, context, rng, new=1):
    """One step of `new` tokens a request, up to `context`: what ran, every rank's output, the unsharded layer's."""
    a, rows = layer.attention, layout.dp * layout.batch
    attention, ffn = weights_of(layer, rng)
    ran = HelixLayer(layer, precision, layout, attention, ffn)
    residual, delta = rng.normal(size=(2, rows, new, layer.hidden_size))
    if a.kind in ("gqa", "mla") and not {"sinks", "gate"} & set(attention):
        cache = rng.normal(size=(rows, context - new, a.kv_heads, a.cache_width))
        ran.fill(cache)
        expected, _ = plain_layer(layer, attention, ffn, residual + delta, cache)
        return ran, ran.step(residual, delta), expected
    before = rng.normal(size=(rows, context - new, layer.hidden_size))
    ran.remember(before)
    expected = plain_kind_layer(layer, attention, ffn, np.concatenate([before, residual + delta], axis=1), new)
    return ran, ran.step(residual, delta), expected


def largest_error(ran, outputs, expected):
    batch = ran.widths.batch
    rows = [expected[batch * seat.group : batch * (seat.group + 1)] for seat in ran.seats]
    return max(np.abs(got - want).max() for got, want in zip(outputs, rows, strict=True))


def step_input(model, layout, precision, context, new=1):
    return StepInput(model=model, precision=precision, layout=layout, context=context, query_tokens=new)


def work_of(s, layer):
    """The equations' ops of a layer of those kinds."""
    return {name: work for kind in (layer.attention, layer.ffn) for name, work in KINDS[kind.kind].ops(s, kind).items()}


def certain(moe, layout, op, quantity):
    """Whether no chance is left in a routed quantity: the equation must then be exact, and else is an expectation."""
    held = -(-moe.routed // layout.ep)
    if op in ("dispatch", "combine"):
        return layout.dp == 1 or moe.routed - held < moe.top_k
    return moe.top_k == moe.routed or (layout.ep == 1 and quantity != "weight_bytes")


def compare(s, layer, op, work, most, counted):
    """Counted against modelled: equal to the last byte, or within what the equation's docstring leaves open.

    An all-reduce of unequal pieces sends a value more in either phase. What random routing brings is an expectation,
    exact only where no chance is left. The append is stated for the worst place that the new tokens can have among the
    blocks of the KV shards: it is attained where the first of them opens a block.
    """
    x, new = s.layout, s.query_tokens
    for quantity in QUANTITIES:
        got, modelled = float(getattr(counted, quantity)), float(getattr(work, quantity))
        case = f"{op} {quantity}: counted {got}, modelled {modelled}, on {x}, {new} new tokens of {s.context}"
        if op.endswith("all_reduce") and quantity == "link_bytes":
            values = s.tokens * layer.hidden_size
            ragged = 0 if values % x.token_group == 0 else 2 * s.precision.bytes_of("wire")
            assert modelled * (1 - 1e-12) <= got <= modelled * (1 + 1e-12) + ragged, case
        elif op.startswith("routed") or op in ("dispatch", "combine"):
            if certain(layer.ffn, x, op, quantity):
                assert got == pytest.approx(modelled, rel=1e-9), case
            assert got <= float(getattr(most, quantity)) * (1 + 1e-9), case
        elif op == "rope_and_append" and ((s.context - new) % BLOCK_TOKENS or projects_unevenly(s, layer.attention)):
            assert got <= modelled, case
            assert got == modelled or (x.kvp > 1 and new > 1) or projects_unevenly(s, layer.attention), case
        elif left_open(s, layer.attention, op, quantity):
            assert got <= float(getattr(most, quantity)) * (1 + 1e-12), case
        elif layer.attention.kind not in ("gqa", "mla"):
            assert got == pytest.approx(modelled, rel=1e-12), case
        else:
            assert got == modelled, case


def projects_unevenly(s, a):
    """Whether some KV shards project more queries than others: another than the busiest may append the new token."""
    return s.layout.q_shards > 1 and a.q_heads % (s.layout.tpa * s.layout.q_shards) != 0


def left_open(s, a, op, quantity):
    """Whether an attention's equation states the worst place of its tokens, or an expectation, of a quantity.

    Chunks: a full one at the end. Windows on several KV shards: one that begins with a block. Picks on several KV
    shards: what random picks put on the fullest; a token's own block is taken to be full. Output groups, where ranks
    own unequally many heads: most heads and most groups, which may be two ranks'.
    """
    x, new = s.layout, s.query_tokens
    if a.kind == "compressed" and op == "output_down_projection" and quantity == "activation_bytes":
        return bool(a.q_heads % x.token_group)  # the rank with most heads may not be the one with most groups
    if op == "index_append":
        return x.index_kvp > 1 and (s.context - new) % max(BLOCK_TOKENS, a.indexer.block_tokens) != 0
    if op != "attention_core" or quantity not in ("flops", "kv_bytes"):
        return False
    if a.kind == "window":
        whole = s.context % a.window_tokens == 0 and new <= a.window_tokens
        return bool(a.chunked) and s.context > a.window_tokens and not (whole and quantity == "flops")
    if a.kind == "block-sparse" and s.context > a.indexer.picked and (new > 1 or s.context % a.indexer.block_tokens):
        return True
    return x.kvp > 1 and (a.kind == "compressed" or (hasattr(a, "indexer") and s.context > a.indexer.picked))


def picking_everything(layer):
    """The layer whose tokens pick all experts, and all keys: it bounds what choices can bring to a rank."""
    ffn, a = layer.ffn, layer.attention
    if ffn.kind == "routed":
        layer = replace(layer, ffn=ffn.model_copy(update={"top_k": ffn.routed}))
    if getattr(a, "indexer", None):
        every = a.indexer.model_copy(update={"top_k": 10**6})
        layer = replace(layer, attention=a.model_copy(update={"indexer": every}))
    return layer


def check_step(model, ffn, layout, precision, context, seed, new=1):
    layer, s = layer_of(model, ffn), step_input(model, layout, precision, context, new)
    ran, outputs, expected = run_step(layer, layout, precision, context, np.random.default_rng(seed), new)
    assert largest_error(ran, outputs, expected) < 1e-10
    works, most = work_of(s, layer), work_of(s, picking_everything(layer))
    assert {op for rank in ran.ranks for op in rank.counts} <= set(works)
    for op, work in works.items():
        compare(s, layer, op, work, most[op], busiest(ran.ranks, op))


# --- Every layout ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", [GQA, MLA], ids=["gqa", "mla"])
@pytest.mark.parametrize("ffn", ["dense", "moe"])
@pytest.mark.parametrize(("ranks", "context", "new"), [(12, 77, 1), (8, 83, 19)])
def test_every_legal_layout_computes_the_layer_and_counts_the_work(model, ffn, ranks, context, new):
    for shape in legal_layouts(model, context, ranks):
        check_step(model, ffn, Layout(batch=3, **shape), MIXED, context, seed=0, new=new)


def test_experts_of_a_latent_run_on_every_legal_layout_and_count_their_work():
    for shape in legal_layouts(LATENT, 77, 8):
        check_step(LATENT, "moe", Layout(batch=3, **shape), MIXED, 77, seed=1)


@pytest.mark.parametrize("name", ["gqa", "mla", *SMALL])
def test_gathered_queries_compute_the_layer_and_count_their_traffic_instead_of_the_projection(name):
    model = {"gqa": GQA, "mla": MLA, **SMALL}[name]
    for place, shape in enumerate(legal_layouts(model, 80, 8)):
        for shards in (n for n in range(2, shape["kvp"] + 1) if shape["kvp"] % n == 0):
            check_step(model, "dense", Layout(batch=2, q_shards=shards, **shape), MIXED, 80, seed=place, new=5)


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize(("ranks", "context", "new"), [(8, 80, 5), (6, 83, 20), (4, 12, 10), (4, 96, 1)])
def test_every_kind_runs_on_every_legal_layout_and_counts_its_work(name, ranks, context, new):
    new = new if new % (getattr(SMALL[name].attention["attention"], "ratio", 1) or 1) == 0 else 5
    for place, shape in enumerate(legal_layouts(SMALL[name], context, ranks)):
        index = [n for n in range(1, shape["kvp"] + 1) if shape["kvp"] % n == 0] if SMALL[name].has_indexer else [1]
        for shards in index:
            layout = Layout(batch=2, index_kvp=shards, **shape)
            assert shape_reasons(SMALL[name], GB200, layout, context) == 0
            check_step(SMALL[name], "dense", layout, MIXED, context, seed=place, new=new)


SHARING = model_of(
    ATTENTIONS["sparse"] | {"picks_shared": True}, hidden=12, dense=24, experts=experts_of(6, 2, 10, 1, 9)
)
"""Its layers attend to what the indexer of a layer before them picked."""


def check_shared_picks(layout, context, new, seed):
    """A layer that picks and one behind it that does not: what the second computes, counts and keeps."""
    picking, sharing = layer_of(SMALL["sparse"], "dense"), layer_of(SHARING, "dense")
    rng, rows = np.random.default_rng(seed), layout.dp * layout.batch
    weights = [weights_of(layer, rng) for layer in (picking, sharing)]
    first, second = (
        HelixLayer(layer, MIXED, layout, *of) for layer, of in zip((picking, sharing), weights, strict=True)
    )
    hidden = rng.normal(size=(rows, context, picking.hidden_size))
    between = plain_kind_layer(picking, *weights[0], hidden, context)
    seen = seen_keys(picking.attention, weights[0][0], rms_norm(hidden))
    expected = plain_kind_layer(sharing, *weights[1], between, new, seen)
    first.remember(hidden[:, :-new])
    second.remember(between[:, :-new])
    out = first.step(hidden[:, -new:], np.zeros_like(hidden[:, -new:]))
    second.chosen = first.chosen
    outputs = second.step(between[:, -new:], np.zeros_like(between[:, -new:]))
    assert largest_error(first, out, between[:, -new:]) < 1e-10
    assert largest_error(second, outputs, expected) < 1e-10
    s = step_input(SHARING, layout, MIXED, context, new)
    works, most = work_of(s, sharing), work_of(s, picking_everything(sharing))
    assert {op for rank in second.ranks for op in rank.counts} <= set(works)
    assert not [op for op in works if op.startswith("index")]
    for op, work in works.items():
        compare(s, sharing, op, work, most[op], busiest(second.ranks, op))
        check_residency(s, second, op, work)
    cached = max(shard.values.size for shard in second.cache) * MIXED.bytes_of("kv")
    assert layout.batch * float(kv_bytes_per_layer(s, sharing.attention)) == cached, "and no index keys"


@pytest.mark.parametrize(("ranks", "context", "new"), [(8, 80, 5), (6, 83, 20), (4, 12, 10), (4, 96, 1)])
def test_a_layer_that_shares_picks_runs_on_every_legal_layout_without_an_indexer(ranks, context, new):
    for place, shape in enumerate(legal_layouts(SHARING, context, ranks)):
        for shards in (n for n in range(1, shape["kvp"] + 1) if shape["kvp"] % n == 0):
            check_shared_picks(Layout(batch=2, index_kvp=shards, **shape), context, new, seed=place)


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
        return model_of(attention, hidden=hidden, dense=dense, gated=draw(st.booleans()))
    routed = draw(st.integers(1, 8))
    moe = experts_of(
        routed, draw(st.integers(1, routed)), draw(st.integers(1, 8)), draw(st.integers(0, 2)), draw(small)
    )
    return model_of(attention, hidden=hidden, dense=dense, experts=moe, gated=draw(st.booleans()))


@st.composite
def steps(draw):
    model, context, batch = draw(models()), draw(st.integers(1, 120)), draw(st.integers(1, 4))
    ffn, new = draw(st.sampled_from(list(model.ffn))), draw(st.integers(1, min(context, 40)))
    shape = draw(st.sampled_from(legal_layouts(model, context, 10)))
    chunks = draw(st.integers(1, batch)) if shape["kvp"] > 1 else 1
    shards = draw(st.sampled_from([n for n in range(1, shape["kvp"] + 1) if shape["kvp"] % n == 0]))
    return model, ffn, Layout(batch=batch, chunks=chunks, q_shards=shards, **shape), context, new


@st.composite
def precisions(draw):
    formats, math = st.sampled_from(sorted(FORMAT_BITS)), st.sampled_from(["fp4", "fp8", "bf16"])
    ffns = ("dense_weights", "shared_weights", "routed_weights", "router_weights")
    names = ("weights", "kv", "wire", "activations", "attention_weights", "output_weights", *ffns, "dispatch")
    return Precision.model_validate({"math": draw(math)} | {name: draw(formats) for name in names})


@settings(max_examples=400)
@given(steps(), precisions(), st.integers(0, 2**32 - 1))
def test_any_step_computes_the_unsharded_layer_and_counts_what_the_equations_say(step, precision, seed):
    model, ffn, layout, context, new = step
    check_step(model, ffn, layout, precision, context, seed, new)


@settings(max_examples=100)
@given(models(), st.integers(1, 40), st.integers(1, 40), st.integers(2, 6), st.booleans(), st.integers(0, 2**32 - 1))
def test_shards_without_a_token_change_nothing(model, context, new, kvp, medha, seed):
    # the simulator refuses such layouts; the arithmetic holds all the same
    layout = Layout(batch=2, kvp=kvp, tpf=1 if medha else kvp)
    if layout.token_group <= model.fewest_q_heads:
        check_step(model, "dense", layout, FP8, context, seed, min(new, context))


# --- New tokens at once, or one after another ------------------------------------------------------------------------

SHARDED = {
    "tp": {"tpa": 3, "tpf": 3},
    "tp past the KV heads": {"tpa": 6, "tpf": 6},
    "helix": {"tpa": 2, "kvp": 3, "tpf": 2, "ep": 3},
    "hop-b": {"tpa": 1, "kvp": 4, "tpf": 4, "chunks": 3},
    "dp": {"dp": 3, "tpa": 2, "tpf": 6},
    "dp, kvp": {"dp": 2, "kvp": 3, "tpf": 3, "ep": 2},
    "dp, ep": {"dp": 6, "tpf": 1, "ep": 6},
    "ep of several groups": {"dp": 2, "tpa": 3, "tpf": 2, "ep": 3},
    "medha": {"tpa": 2, "kvp": 3, "tpf": 2},
    "medha, dp": {"dp": 2, "kvp": 2, "tpf": 2},
}


def at_once_and_one_after_another(layer, layout, old, new, seed):
    """A layer that ran `new` tokens in one step, and its twin that ran them in as many; each with its outputs."""
    rng = np.random.default_rng(seed)
    weights, a, rows = weights_of(layer, rng), layer.attention, layout.dp * layout.batch
    cache = rng.normal(size=(rows, old, a.kv_heads, a.cache_width))
    hidden, delta = rng.normal(size=(2, rows, new, layer.hidden_size))
    one, many = (HelixLayer(layer, MIXED, layout, *weights) for _ in range(2))
    for ran in (one, many):
        ran.fill(cache)
    alone = [many.step(hidden[:, i : i + 1], delta[:, i : i + 1]) for i in range(new)]
    return (one, one.step(hidden, delta)), (many, [np.concatenate(parts, axis=1) for parts in zip(*alone, strict=True)])


@pytest.mark.parametrize("sizes", SHARDED.values(), ids=SHARDED)
@pytest.mark.parametrize("ffn", ["dense", "moe"])
@pytest.mark.parametrize("model", [GQA, MLA], ids=["gqa", "mla"])
def test_new_tokens_at_once_equal_steps_one_after_another(model, ffn, sizes):
    layout = Layout(batch=3, **sizes)
    # the first into an empty cache, the others across an edge of a block of 16, and of two
    for old, new in ((0, 5), (43, 7), (77, 35)):
        (one, at_once), (many, apart) = at_once_and_one_after_another(layer_of(model, ffn), layout, old, new, seed=3)
        for got, want in zip(at_once, apart, strict=True):
            assert got.shape == (3, new, model.hidden_size)
            np.testing.assert_allclose(got, want, rtol=0, atol=1e-10)
        for mine, theirs in zip(one.cache, many.cache, strict=True):
            np.testing.assert_array_equal(mine.positions, theirs.positions)
            np.testing.assert_allclose(mine.values, theirs.values, rtol=0, atol=1e-10)


@pytest.mark.parametrize("sizes", SHARDED.values(), ids=SHARDED)
@pytest.mark.parametrize("ffn", ["dense", "moe"])
def test_new_tokens_at_once_do_the_arithmetic_of_as_many_steps_and_read_weights_and_cache_once(ffn, sizes):
    old, new = 60, 9
    (one, _), (many, _) = at_once_and_one_after_another(layer_of(GQA, ffn), Layout(batch=3, **sizes), old, new, seed=4)
    for mine, theirs in zip(one.ranks, many.ranks, strict=True):
        assert set(mine.counts) == set(theirs.counts)
        for op, at_once in mine.counts.items():
            apart = theirs.counts[op]
            assert at_once.flops == apart.flops, op
            assert at_once.activation_bytes == apart.activation_bytes, op
            assert (at_once.sent_bytes, at_once.received_bytes) == (apart.sent_bytes, apart.received_bytes), op
            if not op.startswith("routed"):  # an expert that no token of a step picks is not read in it
                assert new * at_once.weight_bytes == apart.weight_bytes, op
    for shard, mine, theirs in zip(one.cache, one.ranks, many.ranks, strict=True):
        core = mine.counts["attention_core"]
        assert core.kv_bytes == shard.values.size * MIXED.bytes_of("kv")
        assert core.kv_bytes <= theirs.counts["attention_core"].kv_bytes <= new * core.kv_bytes


# --- Weights in memory -----------------------------------------------------------------------------------------------

PROJECTIONS = (
    "qkv_projection",
    "latent_down_projection",
    "query_up_projection",
    "key_absorption",
    "value_up_projection",
    "gate_projection",
    "index_projection",
    "index_query_up",
    "compressor_projection",
    "output_down_projection",
    "linear_projection",
    "decay_projection",
)
TENSORS = {
    **dict.fromkeys(PROJECTIONS, "attention_weights"),
    "output_projection": "output_weights",
    "router": "router_weights",
    **dict.fromkeys(("dense_up", "dense_down"), "dense_weights"),
    **dict.fromkeys(("shared_up", "shared_down"), "shared_weights"),
    **dict.fromkeys(("routed_up", "routed_down"), "routed_weights"),
}
"""Which tensor of a precision an op's weights are, where they are not `weights`."""


def check_residency(s, ran, op, work):
    """What the fullest rank holds of an op's weights, whether it reads them or not: equal to the last byte."""
    held = max(ran.held(r).get(op, 0) for r in range(len(ran.ranks))) * s.precision.bytes_of(TENSORS.get(op, "weights"))
    assert float(work.resident_weight_bytes) == pytest.approx(held, rel=1e-12), f"{op} on {s.layout}"


@pytest.mark.parametrize("sizes", SHARDED.values(), ids=SHARDED)
@pytest.mark.parametrize("ffn", ["dense", "moe"])
@pytest.mark.parametrize("model", [GQA, MLA, LATENT, *SMALL.values()], ids=["gqa", "mla", "latent", *SMALL])
def test_the_fullest_rank_holds_the_weights_that_the_equations_keep(model, ffn, sizes):
    layer, s = layer_of(model, ffn), step_input(model, Layout(batch=3, **sizes), MIXED, 83, new=5)
    ran = HelixLayer(layer, MIXED, s.layout, *weights_of(layer, np.random.default_rng(0)))
    works = work_of(s, layer)
    assert {op for r in range(len(ran.ranks)) for op in ran.held(r)} <= set(works)
    for op, work in works.items():
        check_residency(s, ran, op, work)


# --- The append ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("new", [1, 5, 16, 17, 40, 90])
@pytest.mark.parametrize("kvp", [1, 2, 5])
def test_the_append_is_as_large_as_stated_at_the_worst_place_and_nowhere_larger(kvp, new):
    layer, layout, counted = layer_of(MLA, "dense"), Layout(batch=1, kvp=kvp, tpf=kvp), []
    for old in range(80, 80 + BLOCK_TOKENS):
        ran, _, _ = run_step(layer, layout, FP8, old + new, np.random.default_rng(0), new)
        counted.append(busiest(ran.ranks, "rope_and_append"))
    stated = work_of(step_input(MLA, layout, FP8, 80 + new, new), layer)["rope_and_append"]
    for quantity in ("kv_bytes", "activation_bytes"):
        assert max(getattr(count, quantity) for count in counted) == getattr(stated, quantity)


# --- The KV cache ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("model", "ffn", "tpa", "kvp"), [(GQA, "dense", 2, 3), (MLA, "moe", 1, 4)], ids=["gqa", "mla"])
def test_a_decode_of_a_thousand_steps_stays_exact_and_balanced_to_within_one_block(model, ffn, tpa, kvp):
    rng, layer = np.random.default_rng(5), layer_of(model, ffn)
    a, layout = layer.attention, Layout(batch=2, tpa=tpa, kvp=kvp, tpf=tpa * kvp)
    weights = weights_of(layer, rng)
    ran = HelixLayer(layer, FP8, layout, *weights)
    cache = np.zeros((2, 0, a.kv_heads, a.cache_width))
    for context in range(1, 1001):
        hidden = rng.normal(size=(2, 1, layer.hidden_size))
        outputs = ran.step(hidden, np.zeros_like(hidden))
        expected, cache = plain_layer(layer, *weights, hidden, cache)
        assert largest_error(ran, outputs, expected) < 1e-10
        check_balance(ran, model, layout, context)


@pytest.mark.parametrize("kvp", [1, 2, 5, 7, 16])
def test_a_cache_of_any_width_stays_balanced_to_within_one_block(kvp):
    layer, layout = layer_of(MLA, "dense"), Layout(batch=1, kvp=kvp, tpf=kvp)
    ran = HelixLayer(layer, FP8, layout, *weights_of(layer, np.random.default_rng(6)))
    for context in range(1, 1001):
        ran.fill(np.zeros((1, 1, 1, layer.attention.cache_width)))
        check_balance(ran, MLA, layout, context)


def check_balance(ran, model, layout, context):
    tokens = [shard.tokens for shard in ran.cache]
    assert max(tokens) - min(tokens) <= BLOCK_TOKENS
    assert sum(tokens) == context * layout.tpa
    s = step_input(model, layout, FP8, context)
    assert max(tokens) == kv_tokens_per_rank(s)
    held = layout.batch * kv_bytes_per_layer(s, model.attention["attention"])
    assert max(shard.values.size for shard in ran.cache) == held


def test_past_kv_heads_the_ranks_hold_copies_and_the_exchange_of_helix_does_not():
    rng, layer = np.random.default_rng(7), layer_of(GQA, "dense")

    def cached(**shape):
        ran, _, _ = run_step(layer, Layout(batch=1, **shape), FP8, 96, rng)
        return sum(shard.values.size for shard in ran.cache)

    assert layer.attention.kv_heads == 3
    assert cached(tpa=12, tpf=12) == 4 * cached(tpa=3, tpf=3)
    assert cached(tpa=3, kvp=4, tpf=12) == cached(tpa=3, tpf=3)


# --- Empty shards ----------------------------------------------------------------------------------------------------

PARTS = Parts(key=slice(2), value=slice(2, None), rotated=slice(2))


def test_an_empty_shard_contributes_nothing():
    rng = np.random.default_rng(8)
    query, cached, seen = rng.normal(size=(2, 3, 4, 2)), rng.normal(size=(2, 9, 2, 4)), np.array([7, 8, 9])
    full = partial_attention(Rank(FP8), query, cached, first_ones(2, 2, seen), PARTS, 1.0)
    empty = partial_attention(Rank(FP8), query, cached[:, :0], first_ones(2, 2, 0 * seen), PARTS, 1.0)
    assert (empty[0] == 0).all()
    assert np.isneginf(empty[1]).all()
    outs, lses = ([part.reshape(6, *part.shape[2:]) for part in (e, f, e)] for e, f in zip(empty, full, strict=True))
    combined, _ = combine(np.stack(outs), np.stack(lses))
    np.testing.assert_array_equal(combined, outs[1])


def test_only_empty_shards_give_zeros_and_no_nan():
    rank = Rank(FP8)
    nothing = first_ones(1, 1, np.zeros(1, int))
    out, lse = partial_attention(rank, np.ones((1, 1, 2, 2)), np.zeros((1, 0, 1, 4)), nothing, PARTS, 1.0)
    combined, _ = combine(np.stack([out[0], out[0]]), np.stack([lse[0], lse[0]]))
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
    layout = Layout(batch=2, tpa=2, kvp=3, tpf=2)
    ran, _, _ = run_step(layer_of(GQA, "moe"), layout, FP8, 77, np.random.default_rng(10))
    for rank, seat in zip(ran.ranks, ran.seats, strict=True):
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
    layer = layer_of(model, "moe")
    attention, ffn = weights_of(layer, rng)
    ffn["router"] = np.linalg.qr(rng.normal(size=(32, 32)))[0][:, :routed]
    return HelixLayer(layer, FP8, layout, attention, ffn), step_input(model, layout, FP8, 100), layer.ffn


def feed(ran, hidden):
    """The FFN alone on hidden [dp, rows, H], counted from zero."""
    for rank in ran.ranks:
        rank.counts.clear()
    rows = {r: hidden[ran.seats[r].group] for r in ran.grid}
    ran.feed_forward(rows, {r: np.zeros_like(row) for r, row in rows.items()})


@pytest.mark.parametrize("new", [1, 4])
@pytest.mark.parametrize(("routed", "top_k", "sizes"), ROUTINGS)
def test_random_routing_counts_on_average_what_is_expected_of_the_busiest_rank(routed, top_k, sizes, new):
    rng, trials = np.random.default_rng(11), 150
    ran, s, moe = moe_layer(routed, top_k, sizes, rng)
    works = routed_ops(replace(s, query_tokens=new), moe)
    seen = {"pairs": [], "read": [], "foreign": []}
    for _ in range(trials):
        feed(ran, rng.normal(size=(sizes.get("dp", 1), sizes["batch"] * new, 32)))
        up = busiest(ran.ranks, "routed_up")
        seen["pairs"].append(up.flops)
        seen["read"].append(up.weight_bytes)
        seen["foreign"].append(busiest(ran.ranks, "dispatch").link_bytes)
    assert np.mean(seen["pairs"]) == pytest.approx(works["routed_up"].flops, rel=0.10)
    assert np.mean(seen["read"]) == pytest.approx(works["routed_up"].weight_bytes, rel=0.10)
    assert np.mean(seen["foreign"]) == pytest.approx(works["dispatch"].link_bytes, rel=0.10)


@pytest.mark.parametrize(("ep", "tpf"), [(1, 6), (2, 3), (3, 2), (6, 1)])
def test_over_every_choice_of_experts_the_share_of_tokens_that_come_is_exact(ep, tpf):
    # one token for each of the C(6, 2) choices in each of three groups: no chance is left
    choices = np.array(list(itertools.combinations(range(6), 2)))
    sizes = {"batch": len(choices), "dp": 3, "ep": ep, "tpf": tpf}
    ran, s, moe = moe_layer(6, 2, sizes, np.random.default_rng(12))
    picks = np.zeros((len(choices), 6))
    np.put_along_axis(picks, choices, 1.0, axis=1)
    feed(ran, np.broadcast_to(picks @ ran.router.T, (3, len(choices), 32)))
    foreign = 2 * len(choices) * share_of_tokens_here(s, moe)
    for op, rank in itertools.product(("dispatch", "combine"), ran.ranks):
        assert rank.counts[op].sent_bytes == pytest.approx(foreign * 32, rel=1e-12)
        assert rank.counts[op].received_bytes == pytest.approx(foreign * 32, rel=1e-12)


@pytest.mark.parametrize("sizes", [{"batch": 5, "tpa": 4, "ep": 4}, {"batch": 3, "dp": 4, "tpf": 2, "ep": 2}])
def test_the_experts_together_compute_every_pair_once_and_hold_every_weight_once(sizes):
    rng = np.random.default_rng(13)
    ran, s, moe = moe_layer(16, 4, sizes, rng)
    feed(ran, rng.normal(size=(ran.widths.dp, ran.widths.batch, 32)))
    pairs = ran.widths.dp * ran.widths.batch * 4
    assert sum(rank.counts["routed_down"].flops for rank in ran.ranks) == 2 * pairs * 4 * 32
    held = sum(w["down"].size for w in ran.expert_weights.values())
    one = routed_ops(s, moe)["routed_down"].resident_weight_bytes
    assert held == 16 * 4 * 32 == pytest.approx(len(ran.ranks) * one)
