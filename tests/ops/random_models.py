"""Random models of one or several kinds of layers, and layouts of them, for laws that hold for any."""

from hypothesis import strategies as st

from helix_sim.core.layout import Layout
from helix_sim.core.units import FORMAT_BITS
from helix_sim.specs.model import Model, listed_runs
from helix_sim.specs.precision import Precision


@st.composite
def gqa(draw):
    kv_heads = draw(st.integers(1, 8))
    sizes = {"kv_heads": kv_heads, "q_heads": kv_heads * draw(st.integers(1, 16))}
    return {"kind": "gqa", **sizes, "head_size": draw(st.sampled_from([64, 128]))}


@st.composite
def mla(draw):
    widths = ("q_lora_rank", "kv_lora_rank", "rope_width", "nope_width", "output_width")
    return {"kind": "mla", "q_heads": draw(st.integers(1, 64)), **{name: draw(st.integers(16, 600)) for name in widths}}


@st.composite
def dense(draw):
    return {
        "kind": "dense",
        "intermediate_size": draw(st.integers(128, 20_000)),
        "gated": draw(st.sampled_from([None, False])),
    }


@st.composite
def routed(draw):
    experts = draw(st.integers(2, 256))
    return {
        "kind": "routed",
        "routed": experts,
        "top_k": draw(st.integers(1, min(8, experts))),
        "intermediate_size": draw(st.integers(128, 4096)),
        "shared": draw(st.integers(0, 2)),
        "shared_intermediate_size": 512,
        "routing_skew": draw(st.sampled_from([0.0, 0.8])),
        "gated": draw(st.sampled_from([None, False])),
    }


def model_of(attention, ffn, layers, **changes):
    """A model of these kinds by name, and of the listed (attention, ffn) layers."""
    content = {
        "kind": "model",
        "name": "random",
        "source": "made up",
        "published_parameters_B": 1.0,
        "hidden_size": 512,
        "vocab_size": 1000,
        "attention": attention,
        "ffn": ffn,
        "layers": listed_runs(layers),
    }
    return Model.model_validate(content | changes)


@st.composite
def models(draw, kinds=1, layers=12):
    """A model of up to `kinds` kinds of attention, and of FFN, in any order of up to `layers` layers."""
    attention = draw(st.lists(gqa() | mla(), min_size=1, max_size=kinds))
    ffn = draw(st.lists(dense() | routed(), min_size=1, max_size=kinds))
    named = [{f"{half}-{i}": spec for i, spec in enumerate(specs)} for half, specs in (("a", attention), ("f", ffn))]
    pair = st.tuples(*(st.sampled_from(list(specs)) for specs in named))
    listed = draw(st.lists(pair, min_size=1, max_size=layers))
    names = [set(column) for column in zip(*listed, strict=True)]
    used = [{name: specs[name] for name in specs if name in some} for specs, some in zip(named, names, strict=True)]
    sizes = {"hidden_size": draw(st.integers(64, 8192)), "vocab_size": draw(st.integers(100, 200_000))}
    return model_of(*used, listed, **sizes)


@st.composite
def layouts(draw, model):
    """A layout of a model whose FFN grid spans its attention groups, or in Medha's way one KV shard of each."""
    tpa = draw(st.integers(1, min(12, model.fewest_q_heads)))
    kvp, dp, pp = draw(st.integers(1, 9)), draw(st.integers(1, 6)), draw(st.integers(1, 3))
    grid = tpa * dp * draw(st.sampled_from([1, kvp]))
    ep = draw(st.sampled_from([n for n in range(1, grid + 1) if grid % n == 0]))
    batch = draw(st.integers(1, 64))
    chunks = draw(st.integers(1, batch)) if kvp > 1 else 1
    return Layout(batch=batch, tpa=tpa, kvp=kvp, dp=dp, tpf=grid // ep, ep=ep, pp=pp, chunks=chunks)


@st.composite
def precisions(draw):
    formats, math = st.sampled_from(sorted(FORMAT_BITS)), st.sampled_from(["fp4", "fp8", "bf16"])
    names = ("weights", "kv", "wire", "activations", "attention_weights", "dispatch")
    return Precision.model_validate({"math": draw(math)} | {name: draw(formats) for name in names})
