"""A setting's recorded arithmetic says what the equations say that left it behind, for any layout."""

import random

import pytest
from cases import GB200, LLAMA, MILLION, MOE, PAPER, R1

from helix_sim import feasibility
from helix_sim.core.errors import SpecError
from helix_sim.core.layout import Layout
from helix_sim.one_layout import DIRECT, USED, LayoutError, checked_step, record
from helix_sim.specs.ffn import Placement, RepeatedExperts
from helix_sim.specs.load import load_draft, load_timing, shipped
from helix_sim.step import evaluate_step, setting_of

DRAFTS = {load_draft(name).target: name for name in shipped("draft")}
WIDTHS = (1, 1, 1, 2, 2, 3, 4, 5, 8, 8, 16, 24, 32, 64)
LAYOUTS = 6
"""Layouts that run of each model and timing."""


def random_others(rng, setting):
    """Axes that a recording fixes, and the new tokens of each request."""
    drafts = rng.choice([0, 1, 2]) if setting.drafter else 0
    others = {
        "pp": rng.choice([1, 1, 2, 3, 4, 7]),
        "index_kvp": rng.choice([1, 1, 2]) if setting.model.has_indexer else 1,
        "q_shards": rng.choice([1, 1, 1, 2]),
        "redundant_experts": rng.choice([0, 0, 32]) if setting.model.routed_kinds else 0,
        "draft_tokens": drafts,
        "microbatches": rng.choice([1, 1, 2]) if setting.model.routed_kinds else 1,
    }
    return others, rng.choice([1, 1, 5]) if not drafts else 1


def random_layout(rng, others, hop_b):
    widths = {name: rng.choice(WIDTHS) for name in ("tpa", "kvp", "dp", "ep")}
    if rng.random() < 0.3:  # the FFN on one KV shard
        widths["tpf"] = max(widths["dp"] * widths["tpa"] // widths["ep"], 1)
    chunks = rng.choice([2, 3, 8]) if hop_b else 1
    return Layout(batch=rng.choice([1, 2, 7, 16, 33, 512]), chunks=chunks, **widths, **others)


@pytest.mark.parametrize("model", shipped("model"))
@pytest.mark.parametrize(
    ("machine", "timing"), [("gb200-nvl72", "paper"), ("gb200-nvl72", "gb200-trtllm"), ("h200-hgx", "h200-sglang")]
)
def test_recorded_arithmetic_is_the_equations(model, machine, timing):
    rng = random.Random(f"{model} {timing}")
    setting = setting_of(model, machine, timing=timing, draft=DRAFTS.get(model) if rng.random() < 0.5 else None)
    others, query_tokens = random_others(rng, setting)
    hop_b = others["microbatches"] == 1 and rng.random() < 0.4
    try:
        recording = record(setting, random_layout(rng, others, hop_b), query_tokens)
    except SpecError:
        pytest.skip(f"{machine} lacks an arithmetic of {model}")
    compared = tried = 0
    while compared < LAYOUTS and tried < 3000:
        tried += 1
        x, context = random_layout(rng, others, hop_b), rng.choice([512, 8192, 100_000, 1_234_567])
        new = query_tokens if query_tokens == 1 else rng.choice([2, 5, 300])
        sizes = [float(getattr(x, name)) for name in USED] + [float(context), float(new)]
        flags = int(feasibility.shape_reasons(setting.model, setting.machine, x, context))
        assert recording.flags(*sizes) == (flags,)
        if flags:
            continue
        compared += 1
        step = evaluate_step(setting, x, context, new)
        full, step_s, *shared = recording.step(*sizes)
        shorter, longer, extrapolated = recording.doubts(*sizes, *shared)
        assert full == feasibility.memory_reason(step.memory)
        assert step_s == pytest.approx(float(step.step_s), rel=1e-12)
        assert (shorter, longer) == pytest.approx(tuple(map(float, step.spread_s)), rel=1e-12, abs=1e-18)
        assert extrapolated == step.rests_on_extrapolation
    assert compared


SOURCE = "assumed: a test"


@pytest.mark.parametrize(
    "routing",
    [
        {"routing_skew": 0.7},
        {"routing_skew": 0.7, "placement": Placement(value="balanced", source=SOURCE)},
        {"repeated": RepeatedExperts(value=0.5, source=SOURCE)},
    ],
    ids=lambda routing: ", ".join(routing),
)
def test_experts_that_are_picked_unevenly_are_recorded_too(routing):
    model = R1.model_copy(update={"ffn": R1.ffn | {"moe": MOE.model_copy(update=routing)}})
    setting, even = (setting_of(each, GB200, timing=load_timing("gb200-trtllm")) for each in (model, R1))
    recording = record(setting, Layout(), 3)
    for x in (Layout(batch=3, dp=4, kvp=2, ep=8), Layout(batch=2, dp=16, ep=16), Layout(batch=8, tpa=8, ep=8)):
        sizes = [float(getattr(x, name)) for name in USED] + [float(MILLION), 3.0]
        step_s = float(evaluate_step(setting, x, MILLION, 3).step_s)
        assert recording.step(*sizes)[1] == pytest.approx(step_s, rel=1e-12)
        assert step_s != pytest.approx(float(evaluate_step(even, x, MILLION, 3).step_s), rel=1e-6)


@pytest.mark.parametrize("timing", [PAPER, load_timing("gb200-trtllm")], ids=lambda timing: timing.name)
def test_a_step_that_was_recorded_is_the_step(timing):
    setting = setting_of(R1, GB200, timing=timing)
    x = Layout(batch=2, dp=8, kvp=8, ep=64)
    for _ in range(DIRECT):
        assert checked_step(setting, x, MILLION).recalled is None
    quick, whole = checked_step(setting, x, MILLION), evaluate_step(setting, x, MILLION)
    assert quick.recalled is not None
    assert quick.ttl_s == pytest.approx(float(whole.ttl_s), rel=1e-12)
    assert quick.ttl_interval_s == pytest.approx(tuple(map(float, whole.ttl_interval_s)), rel=1e-12)
    assert quick.rests_on_extrapolation == whole.rests_on_extrapolation
    assert quick == whole
    assert quick.to_frame().equals(whole.to_frame())


def test_a_layout_that_cannot_run_says_why_however_often_it_is_asked():
    setting = setting_of(LLAMA, GB200, timing=PAPER)
    wide, full = Layout(batch=1, tpa=256, tpf=256), Layout(batch=4096, tpa=8)
    said = {}
    for number in range(DIRECT + 2):
        for x in (wide, full):
            with pytest.raises(LayoutError) as error:
                checked_step(setting, x, MILLION)
            assert said.setdefault(x.batch, str(error.value)) == str(error.value), number


def test_a_knob_that_is_turned_is_recorded_apart():
    setting = setting_of(LLAMA, GB200, timing=PAPER)
    faster, x = setting.scaled("hbm_bandwidth", 2.0), Layout(batch=8, tpa=8)
    for _ in range(DIRECT + 1):
        slow, fast = checked_step(setting, x, 8192), checked_step(faster, x, 8192)
    assert fast.recalled is not None
    assert fast.ttl_s < slow.ttl_s
    assert fast.ttl_s == pytest.approx(float(evaluate_step(faster, x, 8192).ttl_s), rel=1e-12)
