"""Laws that hold for any model, machine and layout, over thousands of random ones."""

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from helix_sim.core.layout import Layout
from helix_sim.one_layout import LayoutError
from helix_sim.search.frame import decode_step
from helix_sim.specs.load import load_machine, load_timing, shipped
from helix_sim.specs.machine import Machine
from helix_sim.specs.model import Model
from helix_sim.specs.precision import Precision
from helix_sim.specs.setting import Setting
from helix_sim.step import evaluate_step

TIMINGS = {name: load_timing(name) for name in ("ideal", "paper")}
MACHINES = {name: load_machine(name) for name in shipped("machine")}
ROOMY = {"value": 1e9, "source": "assumed: memory is not what these laws are about"}


@st.composite
def models(draw):
    """A random decoder: GQA or MLA, dense or MoE."""
    kv_heads = draw(st.sampled_from([1, 2, 4, 8]))
    head = draw(st.sampled_from([64, 128]))
    if draw(st.booleans()):
        attention = {
            "kind": "gqa",
            "q_heads": kv_heads * draw(st.integers(1, 16)),
            "kv_heads": kv_heads,
            "head_size": head,
        }
    else:
        attention = {
            "kind": "mla",
            "q_heads": draw(st.integers(1, 128)),
            "q_lora_rank": draw(st.integers(64, 2048)),
            "kv_lora_rank": draw(st.integers(64, 1024)),
            "rope_width": draw(st.integers(16, 128)),
            "nope_width": head,
            "output_width": head,
        }
    content = {
        "kind": "model",
        "name": "random",
        "source": "hypothesis",
        "published_parameters_B": 1.0,
        "hidden_size": draw(st.integers(64, 16384)),
        "vocab_size": draw(st.integers(100, 300_000)),
        "attention": {"own": attention},
        "ffn": {"dense": {"kind": "dense", "intermediate_size": draw(st.integers(128, 60_000))}},
        "layers": [{"attention": "own", "ffn": "dense", "repeat": draw(st.integers(1, 40))}],
    }
    if draw(st.booleans()):
        experts = draw(st.integers(2, 512))
        content["ffn"]["moe"] = {
            "kind": "routed",
            "routed": experts,
            "top_k": draw(st.integers(1, min(8, experts))),
            "intermediate_size": draw(st.integers(128, 8192)),
            "shared": draw(st.integers(0, 2)),
            "shared_intermediate_size": 512,
            "routing_skew": draw(st.sampled_from([0.0, 0.5, 1.2])),
        }
        content["layers"].append({"attention": "own", "ffn": "moe", "repeat": draw(st.integers(1, 60))})
    return Model.model_validate(content)


@st.composite
def layouts(draw, model):
    """A random layout whose FFN grid spans its attention groups."""
    tpa = draw(st.integers(1, min(16, model.fewest_q_heads)))
    kvp, dp, pp = draw(st.integers(1, 12)), draw(st.integers(1, 8)), draw(st.integers(1, 4))
    ranks = tpa * kvp * dp
    divisors = [ep for ep in range(1, ranks + 1) if ranks % ep == 0]
    ep = draw(st.sampled_from(divisors)) if model.routed_kinds else 1
    batch = draw(st.integers(1, 300))
    chunks = draw(st.integers(1, batch)) if kvp > 1 else 1
    return Layout(batch=batch, tpa=tpa, kvp=kvp, dp=dp, tpf=ranks // ep, ep=ep, pp=pp, chunks=chunks)


@st.composite
def cases(draw):
    """A model, a machine, a layout that runs on it, a context and formats."""
    model = draw(models())
    machine = MACHINES[draw(st.sampled_from(sorted(MACHINES)))]
    machine = Machine.model_validate(machine.model_dump() | {"memory_GB": ROOMY})
    narrow = machine.math_formats[0]
    formats = Precision(weights=draw(st.sampled_from(["nvfp4", "fp8", "bf16"])), kv="fp8", math=narrow)
    return model, machine, draw(layouts(model)), draw(st.integers(200, 4_000_000)), formats


def run(case, timing="paper", **changes):
    model, machine, layout, context, formats = case
    machine = Machine.model_validate(machine.model_dump() | changes.pop("machine", {}))
    context = changes.pop("context", context)
    try:
        return decode_step(model, machine, layout, context, precision=formats, timing=TIMINGS[timing])
    except LayoutError:
        assume(False)


def scaled(quantity, factor):
    return {"value": quantity.value * factor, "source": quantity.source}


@settings(max_examples=300, deadline=None)
@given(cases(), st.sampled_from(["ideal", "paper"]))
def test_no_time_is_negative_or_nan(case, timing):
    step = run(case, timing)
    for name, time in step.times.items():
        for term in (time.latency_s, time.math_s, time.hbm_s, time.link_s):
            assert np.isfinite(term), name
            assert term >= 0, name
    for name, hidden in step.hidden_s.items():
        assert np.isfinite(hidden), name
        assert -1e-15 <= hidden <= step.times[name].seconds + 1e-15, name
    assert 0 < step.ttl_s < 1e5


@settings(max_examples=150, deadline=None)
@given(cases(), st.sampled_from(["hbm_bandwidth_GBps", "nvlink_per_direction_GBps", "network_per_direction_GBps"]))
def test_more_bandwidth_is_never_slower(case, name):
    faster = {name: scaled(getattr(case[1], name), 1.7)}
    assert run(case, machine=faster).ttl_s <= run(case).ttl_s * (1 + 1e-12)


@settings(max_examples=100, deadline=None)
@given(cases())
def test_more_arithmetic_is_never_slower(case):
    rate = f"{case[4].math}_dense_TFLOPs"
    assert run(case, machine={rate: scaled(getattr(case[1], rate), 2)}).ttl_s <= run(case).ttl_s * (1 + 1e-12)


@settings(max_examples=100, deadline=None)
@given(cases())
def test_twice_the_context_is_never_faster_and_never_smaller(case):
    short, long = run(case), run(case, context=2 * case[3])
    assert long.ttl_s >= short.ttl_s * (1 - 1e-12)
    assert long.memory.kv_cache >= short.memory.kv_cache


@settings(max_examples=100, deadline=None)
@given(cases())
def test_the_ideal_timing_is_never_slower_than_the_papers(case):
    assert run(case, "ideal").ttl_s <= run(case).ttl_s * (1 + 1e-12)


@settings(max_examples=100, deadline=None)
@given(cases())
def test_ops_minus_hidden_time_are_the_ttl_of_any_layout(case):
    step = run(case)
    rows = step.to_frame()
    assert rows["seconds"].sum() - rows["hidden_s"].sum() == pytest.approx(float(step.ttl_s), rel=1e-9)


@settings(max_examples=60, deadline=None)
@given(cases(), st.integers(2, 50))
def test_a_column_of_batches_equals_each_batch(case, count):
    model, machine, layout, context, formats = case
    run(case)
    batches = np.arange(1, count + 1)
    sizes = layout.columns() | {"chunks": 1}
    setting = Setting(model=model, machine=machine, timing=TIMINGS["paper"], precision=formats)
    many = evaluate_step(setting, Layout(**sizes | {"batch": batches}), context)
    for i in (0, count // 2, count - 1):
        one = evaluate_step(setting, Layout(**sizes | {"batch": int(batches[i])}), context)
        assert float(one.ttl_s) == pytest.approx(float(np.broadcast_to(many.ttl_s, count)[i]), rel=1e-12)
