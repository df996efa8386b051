"""Elasticities by the laws they obey, and what-ifs against searches of a changed machine."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from helix_sim.answers.request import Request, parse_mix, search_plan
from helix_sim.answers.sensitivity import (
    KNOBS,
    SEARCH_KNOBS,
    Change,
    elasticities,
    ends,
    frontier_elasticities,
    parse_change,
    scaled_plan,
    what_if,
)
from helix_sim.cli import app
from helix_sim.core.errors import SpecError
from helix_sim.core.layout import Layout
from helix_sim.feasibility import shape_reasons
from helix_sim.search.frame import decode_step
from helix_sim.search.plan import Plan
from helix_sim.search.sweep import run_plan
from helix_sim.specs.load import load_machine, load_model, load_timing, shipped
from helix_sim.specs.precision import Precision
from helix_sim.specs.setting import KNOBS as SETTING_KNOBS
from helix_sim.step import Step, evaluate_step, setting_of

TIMES = [name for name, knob in SETTING_KNOBS.items() if knob.unit == "µs"]
RATES = [name for name, knob in SETTING_KNOBS.items() if knob.unit != "µs" and knob.takes_time]


def step_of(model: str, timing: str = "paper", context: int = 10**6, **widths: int) -> Step:
    widths.setdefault("tpf", widths.get("dp", 1) * widths.get("tpa", 1) * widths.get("kvp", 1) // widths.get("ep", 1))
    return decode_step(
        load_model(model),
        load_machine("gb200-nvl72"),
        Layout(**widths),
        context,
        timing=load_timing(timing),
        precision=Precision(weights="fp4", kv="fp4", math="fp4"),
    )


def ttl_of(step: Step) -> dict[str, float]:
    return {found.knob: found.ttl for found in elasticities(step)}


@pytest.fixture(scope="module")
def planned() -> Plan:
    """A small search: Llama-8B on up to 8 GPUs."""
    return search_plan(
        Request(model="llama-3.1-8b", machine="h100-hgx", mix=parse_mix("64K"), ttl_s=1.0, gpus=(1, 8), stack="none",
                families=("tp", "helix"))
    )  # fmt: skip


@pytest.mark.parametrize("timing", shipped("timing"))
def test_what_takes_time_and_what_saves_it_add_up_to_one(timing: str) -> None:
    """All latencies twice as long and all rates half as high double the TTL: it is homogeneous (Euler's theorem).

    Of 50 random layouts on every shipped timing, on its own machine where it was measured on one.
    """
    rng = random.Random(f"elasticities of {timing}")
    measured = load_timing(timing).calibration
    machines = [name for name in shipped("machine") if measured is None or name.startswith(f"{measured.system}-")]
    found = 0
    while found < 50:
        machine = load_machine(rng.choice(machines))
        model = load_model(rng.choice(["deepseek-r1", "llama-3.1-70b", "qwen3-235b-a22b"]))
        tpa, kvp, dp, pp = (2 ** rng.randint(0, most) for most in (3, 3, 4, 1))
        grid = tpa * kvp * dp
        ep = rng.choice([n for n in (1, 2, 4, 8, 16, 32, 64) if grid % n == 0]) if model.routed_kinds else 1
        batch, context = round(2 ** rng.uniform(0, 9)), round(10 ** rng.uniform(2.5, 6.3))
        x = Layout(batch=batch, tpa=tpa, kvp=kvp, dp=dp, pp=pp, tpf=grid // ep, ep=ep)
        if shape_reasons(model, machine, x, context):
            continue
        setting = setting_of(model, machine, timing=load_timing(timing))
        ttl = ttl_of(evaluate_step(setting, x, context))
        assert sum(ttl[knob] for knob in TIMES) - sum(ttl[knob] for knob in RATES) == pytest.approx(1, abs=0.01), x
        found += 1


@pytest.mark.parametrize("timing", [name for name in shipped("timing") if name not in ("ideal", "paper")])
def test_a_measured_latency_moves_the_ttl(timing: str) -> None:
    # both were 0 once: measured classes passed by what was scaled
    system = timing.partition("-")[0]
    machines = [name for name in shipped("machine") if name.startswith(f"{system}-")]
    if not machines:
        pytest.skip("a timing that others extend")
    model, machine = load_model("llama-3.1-8b"), load_machine(machines[0])
    step = evaluate_step(setting_of(model, machine, timing=load_timing(timing)), Layout(tpa=8, tpf=8), 1000)
    ttl = ttl_of(step)
    assert ttl["kernel_latency"] > 0.2
    assert ttl["collective_latency"] > 0.05


def test_an_elasticity_is_the_share_of_the_ttl_that_its_term_takes() -> None:
    step = step_of("llama-3.1-405b", tpa=8, batch=4, context=10**5)
    launches = sum(
        float(step.repeats[name] * step.times[name].latency_s)
        for name, work in step.ops.items()
        if work.collective is None
    )
    assert ttl_of(step)["kernel_latency"] == pytest.approx(launches / float(step.ttl_s), rel=1e-3)


def test_nothing_depends_on_what_it_does_not_use() -> None:
    alone = ttl_of(step_of("llama-3.1-8b", batch=1, context=1000))
    for knob in ("nvlink_bandwidth", "network_bandwidth", "collective_latency", "hbm_capacity"):
        assert alone[knob] == 0
    ideal = ttl_of(step_of("llama-3.1-405b", "ideal", tpa=8, batch=4))
    assert ideal["kernel_latency"] == ideal["collective_latency"] == 0


def test_long_contexts_scale_with_the_cache_and_short_ones_do_not() -> None:
    long, short = (ttl_of(step_of("llama-3.1-8b", "ideal", batch=1, context=c))["context"] for c in (3 * 10**6, 2000))
    assert long > 0.9
    assert 0 <= short < 0.1


def test_the_context_counts_though_its_blocks_come_in_rounds() -> None:
    """kvp 32 deals 512 tokens a round: a step smaller than a round must not be read as no change, or as a jump."""
    slopes = [ttl_of(step_of("llama-3.1-8b", batch=8, tpa=1, kvp=32, context=c))["context"] for c in (400_000, 400_300)]
    assert slopes[0] == pytest.approx(slopes[1], rel=1e-3)
    tiny = ttl_of(step_of("llama-3.1-8b", batch=8, kvp=4, context=100))["context"]
    assert np.isfinite(tiny)


def test_throughput_moves_against_the_ttl_and_the_batch_adds_one() -> None:
    for found in elasticities(step_of("deepseek-r1", kvp=8, ep=8, batch=16)):
        users = 1 if found.knob == "batch" else 0
        assert found.throughput == pytest.approx(users - found.ttl, abs=1e-12)
        assert found.knob in KNOBS


# --- Frontiers -------------------------------------------------------------------------------------------------------


def test_a_frontier_obeys_the_same_law_at_its_fast_end(planned: Plan) -> None:
    ttl = {found.knob: found.ttl for found in frontier_elasticities(planned)}
    assert tuple(ttl) == tuple(knob for knob in SEARCH_KNOBS if knob != "acceptance")
    assert sum(ttl[knob] for knob in TIMES) - sum(ttl[knob] for knob in RATES) == pytest.approx(1, abs=0.02)


def test_more_of_a_good_thing_never_hurts_a_frontier(planned: Plan) -> None:
    before = ends(run_plan(planned), 0.01)
    assert before.fastest is not None
    assert before.best is not None
    for knob in ("hbm_bandwidth", "hbm_capacity", "nvlink_bandwidth", "math_rate"):
        after = ends(run_plan(scaled_plan(planned, knob, 1.5)), 0.01)
        assert after.fastest is not None
        assert after.best is not None
        assert after.fastest["ttl_s"] <= before.fastest["ttl_s"] * (1 + 1e-12)
        assert after.best["tokens_per_s_gpu"] >= before.best["tokens_per_s_gpu"] * (1 - 1e-12)


def test_a_ttl_that_nothing_reaches_has_no_elasticity(planned: Plan) -> None:
    found = frontier_elasticities(planned, ttl_s=1e-6)
    assert all(np.isnan(elasticity.throughput) for elasticity in found)
    assert all(np.isfinite(elasticity.ttl) for elasticity in found)


# --- What if ---------------------------------------------------------------------------------------------------------


def test_a_new_search_is_never_worse_than_the_old_layout_on_the_new_machine(planned: Plan) -> None:
    found = what_if(
        planned, [Change(knob="nvlink_bandwidth", factor=0.05), Change(knob="hbm_bandwidth", factor=3)], 0.01
    )
    assert found.after.best is not None
    assert found.after.fastest is not None
    assert found.kept.fastest is not None
    assert found.after.fastest["ttl_s"] <= found.kept.fastest["ttl_s"]
    if found.kept.best is not None:
        assert found.after.best["tokens_per_s_gpu"] >= found.kept.best["tokens_per_s_gpu"] * (1 - 1e-12)


def test_a_layout_that_no_longer_fits_is_said_to(planned: Plan) -> None:
    found = what_if(planned, [Change(knob="hbm_capacity", factor=0.25)])
    assert found.before.best is not None
    assert found.kept.best is None


def test_changing_nothing_changes_nothing(planned: Plan) -> None:
    found = what_if(planned, [Change(knob="math_rate", factor=1.0)])
    assert found.before == found.after
    assert found.kept.fastest is not None
    assert found.before.fastest is not None
    assert found.kept.fastest["ttl_s"] == pytest.approx(found.before.fastest["ttl_s"], rel=1e-12)


def test_a_value_and_the_factor_it_means_are_one_change(planned: Plan) -> None:
    now = planned.machine.hbm_bandwidth_GBps.value
    assert parse_change(f"hbm_bandwidth={2 * now}", planned) == parse_change("hbm_bandwidth=2x", planned)
    assert parse_change("context=128K", planned).factor == 2


@pytest.mark.parametrize(
    "text",
    ["", "batch=2x", "hbm_bandwidth", "hbm_bandwidth=", "hbm_bandwidth=x", "hbm_bandwidth=0", "hbm_bandwidth=-1x",
     "hbm_bandwidth=nan", "hbm_bandwidth=1e999", "math_rate=5000", "context=1.5", "speed=2x"],
)  # fmt: skip
def test_a_change_that_is_none_is_refused(text: str, planned: Plan) -> None:
    with pytest.raises(SpecError, match="--set"):
        parse_change(text, planned)


# --- The command -----------------------------------------------------------------------------------------------------


def test_the_command_draws_a_tornado_and_prints_what_it_draws(tmp_path: Path) -> None:
    words = ["sensitivity", "llama-3.1-8b", "h100-hgx", "--tpa", "4", "--batch", "8", "--context", "64K", "--json"]
    shown = CliRunner().invoke(app, [*words, "--out", str(tmp_path)])
    assert shown.exit_code == 0, shown.output
    assert [row["knob"] for row in json.loads(shown.stdout)["elasticities"]] == [k for k in KNOBS if k != "acceptance"]
    assert (tmp_path / "tornado.png").stat().st_size > 10_000
    assert "hbm bandwidth" in (tmp_path / "tornado.svg").read_text()


def test_the_command_searches_where_a_frontier_or_a_change_is_asked_for() -> None:
    base = ["sensitivity", "llama-3.1-8b", "h100-hgx", "--context", "64K", "--family", "tp"]
    frontier = CliRunner().invoke(app, [*base, "--frontier", "--ttl-ms", "0.001", "--json"])
    assert frontier.exit_code == 0, frontier.output
    assert json.loads(frontier.stdout)["elasticities"][0]["throughput"] is None
    changed = CliRunner().invoke(app, [*base, "--set", "hbm_bandwidth=2x", "--json"])
    content = json.loads(changed.stdout)
    assert content["changes"] == {"hbm_bandwidth": 2}
    assert content["after"]["fastest"]["ttl_s"] < content["before"]["fastest"]["ttl_s"]
    for wrong in ([*base, "--frontier", "--tpa", "4"], ["sensitivity", "no-such-sweep"]):
        assert isinstance(CliRunner().invoke(app, wrong).exception, SpecError)
