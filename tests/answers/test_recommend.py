"""Recommendations: within their limits, not beaten by a full search, and relaxed by just enough where there is none."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from helix_sim.answers.recommend import recommend
from helix_sim.answers.request import Limits, Mix, Request, parse_mix, search_plan
from helix_sim.cli import app
from helix_sim.core.errors import SpecError
from helix_sim.one_layout import LayoutError
from helix_sim.output.export import export
from helix_sim.search.frame import decode_step
from helix_sim.search.layout_source import Options, pick
from helix_sim.search.sweep import run_plan, run_sweep
from helix_sim.specs.load import data_folder
from helix_sim.specs.precision import Precision

SMALL = Request(
    model="llama-3.1-8b",
    machine="h100-hgx",
    mix=parse_mix("64K"),
    ttl_s=10e-3,
    gpus=(1, 8),
    stack="none",
    precision=Precision(weights="fp8", kv="fp8", math="fp8"),
)
LARGE = Request(
    model="deepseek-r1",
    machine="gb200-nvl72",
    mix=parse_mix("1M"),
    ttl_s=20e-3,
    gpus=(1, 16),
    stack="none",
    precision=Precision(weights="fp4", kv="fp4", math="fp4"),
)


def best(request: Request) -> float:
    """Best tokens/s/GPU, 0 where no layout keeps the limits."""
    choices = recommend(request).choices
    return float(choices[0].step.tokens_per_s_gpu) if choices else 0.0


@pytest.mark.parametrize("request_", [SMALL, LARGE, replace(LARGE, min_users=40, families=("helix", "ep"))])
def test_every_choice_runs_and_keeps_every_limit(request_: Request) -> None:
    found = recommend(request_)
    for choice in found.choices + found.by_family:
        step = choice.step
        again = decode_step(
            step.model, step.machine, step.layout, int(step.context), precision=step.precision, timing=step.timing
        )
        assert float(again.ttl_s) == pytest.approx(float(step.ttl_s), rel=1e-12)
        assert float(again.ttl_s) <= request_.ttl_s
        assert step.layout.users >= request_.min_users
        assert step.layout.gpus <= 16
        assert choice.headroom_bytes >= 0
        assert not request_.families or choice.family in request_.families


@pytest.mark.parametrize("request_", [SMALL, LARGE])
def test_no_layout_of_a_full_search_within_the_limits_is_better(request_: Request) -> None:
    rates = [0.0]

    def on_points(columns: Any) -> None:
        rates.extend(columns["tokens_per_s_gpu"][columns["ttl_s"] <= request_.ttl_s])

    run_plan(search_plan(request_), on_points=on_points)
    assert best(request_) >= max(rates) * (1 - 1e-12) > 0


def test_one_more_request_breaks_what_the_choice_says() -> None:
    for choice in recommend(LARGE).choices:
        step = choice.step
        larger = replace(step.layout, batch=step.layout.batch + 1)
        try:
            ttl = float(decode_step(step.model, step.machine, larger, 10**6, precision=step.precision).ttl_s)
            broken = "ttl" if ttl > LARGE.ttl_s else "nothing"
        except LayoutError:
            broken = "memory"
        assert choice.stopped_by == broken


def test_choices_are_ordered_by_what_they_lose_and_each_has_its_own_attention_group() -> None:
    found = recommend(LARGE)
    lost = [choice.throughput_lost for choice in found.choices]
    assert lost == sorted(lost)
    assert lost[0] == 0
    groups = {(c.family, c.step.layout.tpa, c.step.layout.kvp, c.step.layout.pp) for c in found.choices}
    assert len(groups) == len(found.choices) == 5
    second = found.choices[1]
    assert second.throughput_lost == pytest.approx(1 - float(second.step.tokens_per_s_gpu) / best(LARGE))


@given(ttl_ms=st.floats(5, 40), factor=st.floats(1, 3))
@settings(max_examples=10, deadline=None)
def test_a_looser_budget_never_costs_throughput(ttl_ms: float, factor: float) -> None:
    tight = replace(SMALL, ttl_s=ttl_ms / 1e3)
    assert best(tight) <= best(replace(tight, ttl_s=tight.ttl_s * factor)) * (1 + 1e-12)


def test_more_limits_never_help() -> None:
    assert best(replace(SMALL, gpus=(1, 4))) <= best(SMALL)
    assert best(replace(SMALL, families=("tp",))) <= best(SMALL)
    assert best(replace(SMALL, min_users=100)) <= best(SMALL)


# --- A total of GPUs -------------------------------------------------------------------------------------------------

FLEET = replace(SMALL, total_gpus=22)


def test_no_layout_of_a_full_search_fills_the_gpus_better() -> None:
    found = recommend(FLEET)
    best = found.choices[0].filled
    rates = [0.0]

    def on_points(columns: Any) -> None:
        kept = columns["ttl_s"] <= FLEET.ttl_s
        gpus = columns["gpus"][kept]
        replicas = 2 * (8 // gpus) + 6 // gpus
        rates.extend(columns["tokens_per_s_gpu"][kept] * gpus * replicas)

    run_plan(search_plan(FLEET), on_points=on_points)
    assert best is not None
    assert found.whole is not None
    assert found.whole.filled.tokens_per_s >= best.tokens_per_s >= max(rates) * (1 - 1e-12) > 0
    assert best.idle_gpus == 22 - best.replicas * found.choices[0].step.layout.gpus >= 0
    assert best.users == best.replicas * found.choices[0].step.layout.users


def test_a_mix_of_replicas_is_said_where_it_wins() -> None:
    whole = recommend(replace(FLEET, gpus=(4, 8), families=("tp",))).whole
    assert whole is not None
    sizes = {int(choice.step.layout.gpus): count for count, choice in whole.parts}
    assert sum(size * count for size, count in sizes.items()) + whole.filled.idle_gpus == 22
    one = recommend(replace(FLEET, gpus=(4, 8), families=("tp",), objective="per-gpu"))
    filled = one.choices[0].filled
    assert filled is not None
    assert one.whole is not None
    assert one.whole.adds == 0
    assert whole.filled.tokens_per_s > filled.tokens_per_s
    assert whole.adds > 0
    assert len(sizes) == 2


def test_per_gpu_is_the_order_without_a_total() -> None:
    layouts = [[str(c.step.layout) for c in recommend(r).choices]
               for r in (SMALL, replace(FLEET, objective="per-gpu"))]  # fmt: skip
    assert layouts[0] == layouts[1]


@pytest.mark.parametrize(("change", "sentence"), [
    ({"total_gpus": 0}, "--total-gpus: 0 is not a whole number"),
    ({"total_gpus": 4, "gpus": (8, 8)}, "--total-gpus: a layout of 8 GPUs does not fit into 4"),
    ({"objective": "fleet"}, "--objective is of a total of GPUs"),
    ({"objective": "users", "total_gpus": 8}, "--objective: 'users' is not one of fleet, per-gpu"),
    ({"confidence": 0.9}, "--confidence: timing paper has no interval"),
    ({"confidence": 0.4}, "--confidence: 0.4 is not between 0.5 and 1"),
    ({"families": ("helx",)}, "--family: there is no family named 'helx'; did you mean helix?"),
])  # fmt: skip
def test_a_fleet_or_a_chance_that_cannot_be_is_one_sentence(change: dict[str, Any], sentence: str) -> None:
    with pytest.raises(SpecError) as raised:
        recommend(replace(SMALL, **change))
    (problem,) = raised.value.problems
    assert problem.startswith(sentence)


# --- Chances, families without a layout, costs -----------------------------------------------------------------------

MEASURED = replace(SMALL, timing="h100-trtllm", gpus=(1, 4), families=("tp", "helix", "ep"))


def test_a_confidence_keeps_what_holds_the_budget_with_that_chance() -> None:
    plain, sure = recommend(MEASURED), recommend(replace(MEASURED, confidence=0.9))
    for choice in sure.choices:
        assert float(choice.step.ttl_interval_s[1]) <= MEASURED.ttl_s
        assert (choice.chance or 0) >= 0.9 - 1e-9
    assert (plain.choices[0].chance or 1) < 0.9
    assert best(replace(MEASURED, confidence=0.9)) < best(replace(MEASURED, confidence=0.5)) == best(MEASURED)
    assert any(choice.stopped_by == "ttl" for choice in sure.choices)


def test_a_measured_choice_says_what_it_rests_on_and_a_computed_one_does_not() -> None:
    measured, computed = (recommend(r).record()["choices"][0] for r in (MEASURED, SMALL))
    own = {"ttl_low_s", "ttl_high_s", "extrapolated_ops", "borrowed_ops", "chance_within_budget"}
    assert own <= measured.keys()
    assert not own & computed.keys()
    assert measured["ttl_low_s"] < measured["ttl_s"] < measured["ttl_high_s"]


def test_a_family_with_no_layout_says_why() -> None:
    few = recommend(replace(SMALL, gpus=(1, 1))).without
    assert few["helix"] == "no layout of these GPUs has its widths"
    fast = recommend(replace(SMALL, ttl_s=1e-3, gpus=(1, 2))).without
    assert fast["tp"].startswith("its fastest layout takes ")
    assert fast["tp-ep"].startswith("no layout runs: ")
    assert "expert parallelism wider than the experts" in fast["tp-ep"]
    users = recommend(replace(SMALL, min_users=200)).without
    assert "none within the budget serves 200 users of these contexts" in users.values()


def test_helix_is_set_against_the_best_layout_that_keeps_each_cache_whole() -> None:
    found = recommend(LARGE)
    helix = found.helix
    assert helix is not None
    assert helix.choice.step.layout.kvp > 1 == helix.conventional.step.layout.kvp
    rates = [float(c.step.tokens_per_s_gpu) for c in (helix.choice, helix.conventional)]
    assert helix.gain == pytest.approx(rates[0] / rates[1] - 1)
    assert recommend(replace(LARGE, families=("helix",))).helix is None


def test_a_price_that_is_given_moves_cost_alone_and_the_answer_is_still_read(tmp_path: Path) -> None:
    own, given_ = recommend(SMALL), recommend(replace(SMALL, usd_per_gpu_hour=7.2))
    step = given_.choices[0].step
    assert float(step.usd_per_million_tokens) == pytest.approx(7.2 / 3600 / float(step.tokens_per_s_gpu) * 1e6)
    assert [c.step.layout for c in own.choices] == [c.step.layout for c in given_.choices]
    path = tmp_path / "answer.json"
    path.write_text(json.dumps(given_.record()))
    assert float(pick(f"{path}:1").step.ttl_s) == float(step.ttl_s)


# --- Mixes -----------------------------------------------------------------------------------------------------------


def test_a_mix_of_one_context_with_itself_is_that_context() -> None:
    twice = replace(LARGE, mix=Mix(contexts=(10**6, 10**6), shares=(0.25, 0.75)))
    assert best(twice) == pytest.approx(best(LARGE), rel=1e-12)


def test_a_mix_lies_between_its_contexts() -> None:
    short, mixed, long = (best(replace(LARGE, mix=parse_mix(text))) for text in ("32K", "32K:0.5,1M:0.5", "1M"))
    assert long < mixed < short


def test_a_batch_of_one_must_carry_the_longest_context() -> None:
    mix = parse_mix("32K:0.7,1M:0.3")
    assert mix.mean == pytest.approx(322_400)
    assert mix.of_batch(np.array([1])) == 10**6
    assert mix.of_batch(np.array([10**9])) == 322_401


def test_a_choice_of_a_mix_is_evaluated_at_the_context_of_its_own_batch() -> None:
    request = replace(LARGE, mix=parse_mix("32K:0.7,1M:0.3"))
    for choice in recommend(request).choices:
        assert choice.step.context == request.mix.of_batch(choice.step.layout.batch)


def test_a_choice_of_a_mix_says_its_longest_request_and_is_exported_by_it(tmp_path: Path) -> None:
    found = recommend(replace(LARGE, mix=parse_mix("32K:0.7,1M:0.3"), families=("ep",)))
    path = tmp_path / "answer.json"
    path.write_text(json.dumps(found.record()))
    for number, choice in enumerate(found.choices, start=1):
        picked = pick(f"{path}:{number}")
        assert picked.longest_context == 10**6 > picked.step.context or choice.step.layout.batch == 1
        assert float(picked.step.ttl_s) == pytest.approx(float(choice.step.ttl_s), rel=1e-12)
        assert export(picked, to="sglang").options["--context-length"] == 10**6


def test_shares_of_one_context_given_twice_are_added() -> None:
    assert parse_mix("1M:0.25,32K:0.5,1M:0.25") == Mix(contexts=(10**6, 32_000), shares=(0.5, 0.5))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "1M,2M",
        "9999999999G",
        "10T:0.5,1M:0.5",
        "1M:nan,1M:nan",
        "1M:0.5,2M:0.6",
        "1M:x",
        "1M:0.5:2,2M:0.5",
        "1M:-1,2M:2",
        "0",
        "nan",
    ],
)
def test_a_mix_that_is_none_is_refused_in_a_sentence(text: str) -> None:
    with pytest.raises(SpecError, match="--context"):
        parse_mix(text)


# --- Nothing fits ----------------------------------------------------------------------------------------------------

IMPOSSIBLE = {
    "ttl_ms": replace(LARGE, ttl_s=2e-3),
    "gpus": replace(LARGE, gpus=(1, 1)),
    "users": replace(LARGE, min_users=5000, mix=parse_mix("4M")),
    "memory_GB": replace(LARGE, gpus=(1, 1), ttl_s=0.2),
    "context": replace(LARGE, gpus=(3, 3), mix=parse_mix("40M"), ttl_s=0.1),
    "families": replace(LARGE, families=("tp",), min_users=30),
}


@pytest.fixture
def machine(tmp_path: Path) -> Callable[..., str]:
    """A GB200 rack of 24 GPUs, with other memory if wanted: small enough to search whole."""
    text = (data_folder("hardware_profiles") / "gb200-nvl72.yaml").read_text(encoding="utf-8")

    def write(memory_GB: float | None = None) -> str:
        changed = re.sub(r"(?m)^gpus: {value: \d+", "gpus: {value: 24", text)
        if memory_GB:
            changed = re.sub(r"(?m)^memory_GB: {value: [\d.]+", f"memory_GB: {{value: {memory_GB!r}", changed)
        path = tmp_path / "machine.yaml"
        path.write_text(changed, encoding="utf-8")
        return str(path)

    return write


def relaxed(request: Request, limit: str, amount: float) -> Request:
    """The request with one limit moved."""
    if limit == "ttl_ms":
        return replace(request, ttl_s=amount / 1e3)
    if limit == "gpus":
        return replace(request, gpus=(1, int(amount)))
    if limit == "users":
        return replace(request, min_users=int(amount))
    return replace(request, mix=request.mix.scaled(amount / request.mix.mean))


@pytest.mark.parametrize(
    ("limit", "just_short"), [("ttl_ms", 0.999), ("gpus", 0.999), ("users", 1.001), ("context", 1.02)]
)
def test_a_limit_relaxed_as_said_lets_a_layout_through_and_less_does_not(
    limit: str, just_short: float, machine: Callable[..., str]
) -> None:
    request = replace(IMPOSSIBLE[limit], machine=machine())
    found = recommend(request)
    assert not found.choices
    (answer,) = [r for r in found.relaxations if r.limit == limit]
    hair = 1 + 1e-12 * (limit == "ttl_ms")
    assert recommend(relaxed(request, limit, answer.needed * hair)).choices
    less = np.ceil if limit == "users" else np.floor if limit == "gpus" else float
    assert not recommend(relaxed(request, limit, less(answer.needed * just_short))).choices


def test_the_memory_needed_is_that_of_a_machine_on_which_a_layout_fits(machine: Callable[..., str]) -> None:
    request = IMPOSSIBLE["memory_GB"]
    (answer,) = [r for r in recommend(replace(request, machine=machine())).relaxations if r.limit == "memory_GB"]
    assert recommend(replace(request, machine=machine(answer.needed * (1 + 1e-9)))).choices
    assert not recommend(replace(request, machine=machine(answer.needed * 0.999))).choices


def test_families_are_a_limit_like_any_other(machine: Callable[..., str]) -> None:
    request = replace(IMPOSSIBLE["families"], machine=machine())
    assert "families" in [relaxation.limit for relaxation in recommend(request).relaxations]
    assert recommend(replace(request, families=())).choices


def test_relaxations_come_with_the_least_move_first(machine: Callable[..., str]) -> None:
    factors = [r.factor for r in recommend(replace(IMPOSSIBLE["gpus"], machine=machine())).relaxations]
    assert len(factors) > 1
    assert factors == sorted(factors)


# --- Requests, and layouts picked from answers -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [
        {"families": ("helx",)},
        {"gpus": (0, 4)},
        {"gpus": (1, 10**6)},
        {"ttl_s": 0.0},
        {"ttl_s": float("nan")},
        {"min_users": 0},
        {"min_users": 10**30},
        {"ttl_s": float("inf")},
        {"choices": 0},
        {"model": "no-such-model"},
    ],
)
def test_a_request_that_makes_no_sense_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(SpecError):
        recommend(replace(SMALL, **change))


def test_a_choice_is_picked_back_from_the_json_that_the_command_prints(tmp_path: Path) -> None:
    shown = CliRunner().invoke(
        app, ["recommend", "llama-3.1-8b", "h100-hgx", "--context", "64K", "--ttl-ms", "10", "--json"]
    )
    assert shown.exit_code == 0
    path = tmp_path / "answer.json"
    path.write_text(shown.stdout)
    for number, choice in enumerate(json.loads(shown.stdout)["choices"], start=1):
        step = pick(f"{path}:{number}").step
        assert float(step.ttl_s) == pytest.approx(choice["ttl_s"], rel=1e-12)
    with pytest.raises(SpecError, match="choices"):
        pick(f"{path}:99")


def test_a_layout_is_picked_by_its_number_in_a_sweep() -> None:
    result = run_sweep("paper-llama-3.1-405b")
    for point in map(result.group("helix").point, (0, -1)):
        step = pick(f"paper-llama-3.1-405b:{point['id']}").step
        assert {**step.layout.columns(), "context": step.context}.items() <= point.items()
        assert float(step.ttl_s) == pytest.approx(point["ttl_s"], rel=1e-12)


def test_options_go_before_what_a_source_says() -> None:
    said = pick("paper-llama-3.1-405b:0", None, Options(widths={"tpa": 8}, context=1000)).step
    more = Options(widths={"tpa": 8, "pp": 2}, formats={"kv": "fp8"}, context=1000, timing="ideal")
    step = pick("paper-llama-3.1-405b:0", None, more).step
    assert (step.layout, step.precision.kv, step.timing.name) == (replace(said.layout, pp=2), "fp8", "ideal")
    assert step.precision.weights == said.precision.weights


@pytest.mark.parametrize(
    "source",
    ["deepseek-r1", "paper-deepseek-r1:x", "paper-deepseek-r1:999999999999", "no-sweep:1", "missing.json", "sweeps:"],
)
def test_a_source_that_is_no_layout_is_refused(source: str) -> None:
    with pytest.raises(SpecError):
        pick(source)


@pytest.mark.parametrize(
    "content",
    ["[]", "{}", "{", '{"choices": []}', '{"choices": [3]}', '{"model": "m", "machine": "h", "layout": {"tpa": 1.5}}',
     '{"model": "deepseek-r1", "machine": "gb200-nvl72", "layout": {"wide": 2}}',
     '{"model": "deepseek-r1", "machine": "gb200-nvl72", "layout": {}, "precision": {"kv": "fp3"}}'],
)  # fmt: skip
def test_json_that_holds_no_layout_is_refused(content: str, tmp_path: Path) -> None:
    path = tmp_path / "step.json"
    path.write_text(content)
    with pytest.raises(SpecError):
        pick(str(path))


def test_widths_given_without_tpf_let_it_follow() -> None:
    step = pick("llama-3.1-405b", "gb200-nvl72", Options(widths={"tpa": 8, "kvp": 4, "batch": 8})).step
    assert step.layout.tpf == 32


def test_limits_are_kept_at_equality() -> None:
    columns = {"ttl_s": np.array([1.0, 1.0, 2.0]), "users": np.array([4, 3, 9])}
    assert Limits(ttl_s=1.0, min_users=4).kept(columns).tolist() == [True, False, False]


def test_the_command_ends_with_1_where_nothing_fits_and_2_where_the_request_is_wrong() -> None:
    base = ["recommend", "llama-3.1-8b", "h100-hgx", "--context", "64K"]
    assert CliRunner().invoke(app, [*base, "--ttl-ms", "10"]).exit_code == 0
    assert CliRunner().invoke(app, [*base, "--ttl-ms", "0.001", "--family", "tp"]).exit_code == 1
    fast = CliRunner().invoke(app, [*base, "--tokens-per-second", "100", "--json"])
    assert json.loads(fast.stdout)["ttl_s"] == 0.01
    for budgets in ([], ["--ttl-ms", "9", "--tokens-per-second", "100"]):
        assert isinstance(CliRunner().invoke(app, [*base, *budgets]).exception, SpecError)
    both = CliRunner().invoke(app, [*base, "--ttl-ms", "9", "--gpus", "4", "--gpus-at-most", "8"])
    assert isinstance(both.exception, SpecError)
