"""How long the main jobs take: `pytest tests/benchmarks --benchmark-enable`. Nothing asserts a time."""

from helix_sim.core.layout import Layout
from helix_sim.search.frame import decode_step
from helix_sim.search.plan import plan
from helix_sim.search.sweep import run_plan
from helix_sim.specs.load import load_machine, load_model, load_sweep, load_timing


def test_explain_of_one_layout(benchmark):
    model, machine, timing = load_model("deepseek-r1"), load_machine("gb200-nvl72"), load_timing("paper")
    layout = Layout(batch=8, kvp=64, tpf=2, ep=32)
    step = benchmark(decode_step, model, machine, layout, 1_000_000, timing=timing)
    assert step.layout.gpus == 64


def test_the_whole_search_of_figure_5(benchmark):
    planned = plan(load_sweep("paper-deepseek-r1"))
    result = benchmark.pedantic(run_plan, args=(planned,), rounds=3, warmup_rounds=1)
    benchmark.extra_info["layouts"] = result.layouts
    assert result.layouts > 1_000_000


def test_the_whole_search_of_figure_6(benchmark):
    planned = plan(load_sweep("paper-llama-3.1-405b"))
    result = benchmark.pedantic(run_plan, args=(planned,), rounds=3, warmup_rounds=1)
    benchmark.extra_info["layouts"] = result.layouts
    assert result.layouts > 1_000_000
