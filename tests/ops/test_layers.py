"""Models whose layers are of several kinds: no op takes another's place, and the busiest stage is a real one."""

import json
from collections import Counter

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from ops.random_models import model_of, models
from typer.testing import CliRunner

from helix_sim.cli import app
from helix_sim.core.layout import AXES, Layout
from helix_sim.ops.layers import halves_of
from helix_sim.ops.step_input import StepInput
from helix_sim.output import report
from helix_sim.output.trace import chrome_trace, timeline
from helix_sim.search.frame import decode_step
from helix_sim.search.plan import plan
from helix_sim.search.shared_parts import part_seconds
from helix_sim.search.sweep import run_plan
from helix_sim.specs.load import load_machine, load_model, load_sweep, load_timing
from helix_sim.specs.precision import Precision
from helix_sim.specs.setting import Setting
from helix_sim.step import evaluate_step, step_ops

GB200 = load_machine("gb200-nvl72")
FP8 = Precision(weights="fp8", kv="fp8", math="fp8")
TIMINGS = ["ideal", "paper", "gb200-trtllm"]

WIDE = {"kind": "gqa", "q_heads": 64, "kv_heads": 8, "head_size": 128}
NARROW = {"kind": "gqa", "q_heads": 32, "kv_heads": 2, "head_size": 64}
LATENT = {
    "kind": "mla",
    "q_heads": 64,
    "q_lora_rank": 512,
    "kv_lora_rank": 256,
    "rope_width": 32,
    "nope_width": 64,
    "output_width": 64,
}
STATE = {
    "kind": "linear",
    "key_heads": 16,
    "value_heads": 32,
    "key_width": 64,
    "value_width": 64,
    "conv_tokens": 4,
    "delta_rule": True,
    "head_gates": 2,
    "output_gate": True,
}
BIG = {"kind": "dense", "intermediate_size": 16384}
SMALL = {"kind": "dense", "intermediate_size": 4096}
MOE = {"kind": "routed", "routed": 64, "top_k": 4, "intermediate_size": 1024}
SHARING = MOE | {"routed": 16, "shared": 1, "shared_intermediate_size": 2048}

SPECS = {
    "attention": {"wide": WIDE, "narrow": NARROW, "latent": LATENT, "state": STATE},
    "ffn": {"big": BIG, "small": SMALL, "moe": MOE, "sharing": SHARING},
}


def model_with(*layers):
    """A model of these (attention, ffn) layers, by the names above."""
    used = [set(names) for names in zip(*layers, strict=True)]
    attention, ffn = (
        {name: spec for name, spec in SPECS[half].items() if name in names}
        for half, names in zip(SPECS, used, strict=True)
    )
    return model_of(attention, ffn, list(layers), hidden_size=4096, vocab_size=32000)


TWO_KINDS = model_with(*4 * [("wide", "big"), ("narrow", "small"), ("narrow", "small")])
MIXED = model_with(
    ("latent", "big"), *3 * [("wide", "moe"), ("narrow", "sharing"), ("latent", "small"), ("latent", "moe")]
)

HYBRID = model_with(*3 * [("state", "moe"), ("state", "moe"), ("latent", "moe")])
STATES = model_with(*4 * [("state", "small"), ("state", "big")])

LAYOUTS = {
    "one GPU": Layout(batch=4),
    "tp": Layout(batch=4, tpa=8, tpf=8),
    "helix, hop-b": Layout(batch=4, tpa=2, kvp=8, tpf=16, chunks=4),
    "medha": Layout(batch=4, tpa=4, kvp=4, tpf=4),
    "dp": Layout(batch=4, dp=4, tpa=2, tpf=8),
}


def step_of(model, layout, timing="paper", context=100_000):
    setting = Setting(model=model, machine=GB200, timing=load_timing(timing), precision=FP8)
    return evaluate_step(setting, layout, context)


# --- Names -----------------------------------------------------------------------------------------------------------


@settings(max_examples=100)
@given(models(kinds=3))
def test_no_op_of_a_kind_takes_the_place_of_anothers(model):
    s = StepInput(model=model, precision=FP8, layout=Layout(), context=1000)
    tables = [(half, half.ops(s)) for half in halves_of(model)]
    assert len(step_ops(s)) == sum(len(ops) for _, ops in tables)
    for half, ops in tables:
        for name, work in ops.items():
            assert step_ops(s)[half.op_name(name)] == work


def test_ops_say_whose_they_are_where_two_kinds_share_them_and_nowhere_else():
    def ops(model):
        return step_ops(StepInput(model=model, precision=FP8, layout=Layout(), context=1000))

    two = ops(TWO_KINDS)
    for op, here in {"attention_core": ("wide", "narrow"), "dense_up": ("big", "small")}.items():
        assert op not in two
        assert {f"{op}[{name}]" for name in here} <= set(two)
    # one kind of each, or FFNs that share no name
    for model in (model_with(("wide", "big")), load_model("deepseek-r1")):
        assert not [name for name in ops(model) if "[" in name]
    assert two["attention_core[wide]"].kv_bytes == 8 * 2 * 128 * 1000
    assert two["attention_core[narrow]"].kv_bytes == 2 * 2 * 64 * 1000
    assert two["dense_up[big]"].flops == 2 * 4096 * 2 * 16384
    assert two["dense_up[small]"].flops == 2 * 4096 * 2 * 4096


# --- Sums ------------------------------------------------------------------------------------------------------------


def one_layer(layout, timing, attention, ffn):
    """Seconds, weights and KV bytes that one more such layer brings to a model of nothing else."""
    one, two = (step_of(model_with(*n * [(attention, ffn)]), layout, timing) for n in (1, 2))
    return np.array([two.ttl_s - one.ttl_s, *(_memory(two) - _memory(one))])


def no_layer(layout, timing):
    """What the two ends of such a model take, without any layer."""
    one = step_of(model_with(("wide", "big")), layout, timing)
    return np.array([one.ttl_s, *_memory(one)]) - one_layer(layout, timing, "wide", "big")


def _memory(step):
    return np.array([step.memory.weights, step.memory.kv_cache])


@pytest.mark.parametrize("timing", TIMINGS)
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("model", [TWO_KINDS, MIXED], ids=["two kinds", "seven kinds"])
def test_a_step_is_the_sum_of_what_each_layer_takes_in_a_model_of_its_own(model, layout, timing):
    parts = [count * one_layer(layout, timing, *pair) for pair, count in Counter(model.layer_list).items()]
    step = step_of(model, layout, timing)
    np.testing.assert_allclose([step.ttl_s, *_memory(step)], no_layer(layout, timing) + sum(parts), rtol=1e-9)


def test_the_order_of_layers_changes_nothing_on_one_stage():
    shuffled = model_with(*np.random.default_rng(0).permutation(np.array(MIXED.layer_list)).tolist())
    for layout in LAYOUTS.values():
        assert step_of(shuffled, layout).ttl_s == pytest.approx(step_of(MIXED, layout).ttl_s, rel=1e-12)


def test_layers_listed_one_by_one_or_in_a_pattern_are_the_same_model():
    run = [{"attention": a, "ffn": f} for a, f in TWO_KINDS.layer_list]
    pattern = [{"pattern": [run[0], run[1] | {"repeat": 2}], "repeat": 4}]
    for layers in (run, pattern):
        model = type(TWO_KINDS).model_validate(TWO_KINDS.model_dump() | {"layers": layers})
        assert model.layer_list == TWO_KINDS.layer_list
        assert step_of(model, LAYOUTS["tp"]).ttl_s == step_of(TWO_KINDS, LAYOUTS["tp"]).ttl_s


def test_a_kind_is_steady_where_neither_the_context_nor_the_chunks_change_its_ops():
    for model in map(load_model, ("kimi-k3", "qwen3-next-80b", "nemotron-h", "gpt-oss-120b", "deepseek-v4-pro")):
        setting = Setting(model=model, machine=GB200, timing=load_timing("paper"), precision=FP8)
        for half in halves_of(model):
            if half.half == "attention":
                seconds = {
                    float(part_seconds(setting, half, Layout(batch=8, kvp=2, tpf=2, chunks=chunks), context))
                    for chunks in (1, 4)
                    for context in (100, 1_000_000)
                }
                assert half.kind.steady is (len(seconds) == 1), half.key


# --- Sweeps ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sweep_of(tmp_path_factory):
    """A small sweep of a model, over every family that there is."""

    def written(model, timing="paper"):
        path = tmp_path_factory.mktemp("sweep") / "model.yaml"
        path.write_text(yaml.safe_dump(model.model_dump()))
        every = [
            family for name in ("paper-deepseek-r1", "paper-llama-3.1-405b") for family in load_sweep(name).families
        ]
        spec = {
            "kind": "sweep",
            "name": "several kinds",
            "description": "a small search of a model of several kinds",
            "model": str(path),
            "machine": "gb200-nvl72",
            "timing": timing,
            "precision": FP8.model_dump(exclude_none=True),
            "contexts": ["100K", 12_345],
            "gpus": {"from": 1, "to": 12},
            "batch": {"dense_to": 3, "growth": 2, "to": 24},
            "chunks": [1, 4, "batch"],
            "families": every,
        }
        path = path.with_name("sweep.yaml")
        path.write_text(yaml.safe_dump(spec))
        return load_sweep(path)

    return written


@pytest.mark.parametrize("timing", ["paper", "gb200-trtllm"])
@pytest.mark.parametrize(
    "model", [TWO_KINDS, MIXED, HYBRID, STATES], ids=["two kinds", "seven kinds", "hybrid", "states alone"]
)
def test_every_layout_of_a_sweep_equals_its_step_evaluated_directly(sweep_of, model, timing):
    planned, parts = plan(sweep_of(model, timing)), []
    run_plan(planned, on_points=parts.append)
    rows = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    assert len(rows["id"]) > 1000
    assert max(rows["pp"]) > 3
    x = Layout(**{axis: rows[axis] for axis in AXES})
    step = evaluate_step(planned.setting, x, rows["context"].astype(float))
    for name, found in (
        ("ttl_s", step.ttl_s),
        ("tokens_per_s_gpu", step.tokens_per_s_gpu),
        ("resident_bytes", step.memory.resident_bytes),
    ):
        np.testing.assert_allclose(rows[name], found, rtol=1e-12, atol=0)
    for place in np.random.default_rng(1).choice(len(rows["id"]), 20, replace=False):
        layout = Layout(**{axis: int(rows[axis][place]) for axis in AXES})
        one = decode_step(
            planned.model,
            planned.machine,
            layout,
            int(rows["context"][place]),
            precision=planned.sweep.precision,
            timing=planned.timing,
        )
        assert float(one.ttl_s) == pytest.approx(rows["ttl_s"][place], rel=1e-12)


# --- Everything that shows a step ------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", [TWO_KINDS, MIXED], ids=["two kinds", "seven kinds"])
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_a_timeline_of_several_kinds_runs_each_layers_own_ops_in_its_order(model, layout):
    step = step_of(model, layout)
    slices = timeline(step)
    path = [piece for piece in slices if piece.track == "critical path"]
    assert sum(piece.end_s - piece.start_s for piece in path) == pytest.approx(float(step.ttl_s), rel=1e-9)
    names = {(half.half, half.name): set(ops) for half, ops in step.kinds}
    titles = [piece.name for piece in slices if piece.track == "layers"]
    assert len(titles) == model.layer_count + 2
    for title, (attention, ffn) in zip(titles[1:-1], model.layer_list, strict=True):
        assert f"[{attention}]" in title
        drawn = {piece.op for piece in path if piece.layer == title}
        own = names["attention", attention] | names["ffn", ffn]
        assert drawn <= own
        assert drawn >= {op for op in own if step.times[op].seconds > step.hidden_s.get(op, 0)}
    assert len(chrome_trace(step)["traceEvents"]) > len(slices)


def test_the_command_line_explains_a_model_of_several_kinds(tmp_path):
    path = tmp_path / "mixed.yaml"
    path.write_text(yaml.safe_dump(MIXED.model_dump()))
    options = ["--batch", "4", "--tpa", "2", "--kvp", "4", "--context", "100K", "--json"]
    ran = CliRunner().invoke(app, ["explain", str(path), "gb200-nvl72", *options])
    assert ran.exit_code == 0, ran.output
    found = json.loads(ran.stdout)
    shown = {row["op"]: row for row in found["ops"]}
    assert shown["attention_core[latent]"]["repeats"] == 7
    assert shown["attention_core[wide]"]["repeats"] == shown["routed_up[sharing]"]["repeats"] == 3
    assert sum(row["seconds"] - row["hidden_s"] for row in found["ops"]) == pytest.approx(found["ttl_s"], rel=1e-9)


def test_a_report_of_several_kinds_has_the_ops_of_each(sweep_of):
    planned = plan(sweep_of(TWO_KINDS))
    found = report.content(run_plan(planned), [])
    ops = [curve["ops"] for context in found["contexts"] for curve in context["curves"].values() if "ops" in curve]
    assert ops
    for listed in ops:
        assert {"attention_core[wide]", "attention_core[narrow]", "dense_up[big]", "dense_up[small]"} <= set(listed)
    assert json.dumps(found, default=report.plain)
