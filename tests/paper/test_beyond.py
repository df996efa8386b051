"""What KV parallelism buys beyond the paper's models: gains, their intervals, and the op that decides."""

import numpy as np
import pytest
from typer.testing import CliRunner

from helix_sim.cli import app
from helix_sim.core.errors import SpecError
from helix_sim.paper import beyond
from helix_sim.paper.beyond import BEYOND_SWEEPS, gains, gpu_seconds_per_token, search_beyond
from helix_sim.specs.load import load_sweep


@pytest.fixture(scope="module")
def searches():
    return {found.plan.model.name: found for found in search_beyond()}


def gain_of(searches, model, context, family="kvp", budget_ms=25.0):
    return next(gain for gain in gains(searches[model], budget_ms) if (gain.context, gain.family) == (context, family))


@pytest.mark.parametrize("name", BEYOND_SWEEPS)
def test_families_of_a_sweep_differ_in_kv_shards_and_in_the_index_cache_alone(name):
    families = {key: family.model_dump(exclude={"title"}) for key, family in load_sweep(name).families.items()}
    plain = families.pop("no-kvp")
    assert plain["kvp"] == 1
    for family in families.values():
        assert family["kvp"] == "many"
        assert family | {"kvp": 1, "index_kvp": plain["index_kvp"]} == plain
    index = {key: family["index_kvp"] for key, family in families.items()}
    assert index in ({"kvp": None}, {"kvp-copies": 1, "kvp-shards": "many"})


def test_a_gain_is_that_of_the_best_throughputs_within_the_latency(searches):
    for found in searches.values():
        for gain in gains(found, 40.0):
            curves = found.frontiers[gain.context]
            plain, sharded = (float(curves[name].attained(25.0)) for name in ("no-kvp", gain.family))
            assert gain.ratio == (pytest.approx(sharded / plain, rel=1e-9) if plain and sharded else None)


def test_a_speedup_is_at_no_less_throughput_than_that_of_the_layout_without_shards(searches):
    for found in searches.values():
        for gain in gains(found):
            curve, least = found.frontiers[gain.context][gain.family], float(gain.fastest.tokens_per_s_gpu)
            as_high = curve.interactivity[curve.throughput >= least * (1 - 1e-12)]
            best = as_high.max() / float(gain.fastest.tokens_per_s_user) if len(as_high) else None
            assert gain.interactivity == (pytest.approx(best, rel=1e-9) if best else None)


def test_what_ops_move_adds_up_to_the_gain(searches):
    for found in searches.values():
        for gain in gains(found):
            if gain.ratio is not None:
                assert sum(gain.moved().values()) == pytest.approx(1 / gain.ratio - 1, abs=1e-9)
                total = sum(gpu_seconds_per_token(gain.without).values())
                assert total == pytest.approx(1 / float(gain.without.tokens_per_s_gpu), rel=1e-9)


def test_errors_that_two_layouts_share_leave_their_ratio_alone(searches):
    gain = gain_of(searches, "deepseek-r1", 1_000_000)
    assert beyond._ratio_range(gain.without, gain.without) == (1.0, 1.0)
    low, high = gain.interval
    assert low < gain.ratio < high
    ends = [end / float(step.ttl_s) for step in gain.pair for end in step.ttl_interval_s]
    assert high / low < (ends[1] / ends[0]) * (ends[3] / ends[2]), "no wider than if errors were not shared"


def test_a_latency_that_only_shards_keep_has_no_ratio_but_a_verdict(searches):
    fast = searches["deepseek-r1"].frontiers[4_000_000]
    budgets = [1e3 / (factor * float(fast["kvp"].interactivity[-1])) for factor in (0.99, 1.01)]
    only, neither = (gain_of(searches, "deepseek-r1", 4_000_000, budget_ms=budget) for budget in budgets)
    assert (only.verdict, only.ratio, only.interval) == ("only KVP", None, None)
    assert (neither.verdict, neither.ratio) == ("neither", None)
    assert only.decider() == max(only.moved().items(), key=lambda each: -each[1])


def test_sharding_pays_from_a_million_tokens_where_every_layer_sees_them_and_earlier_where_few_do(searches):
    for model in ("llama-3.1-405b", "deepseek-r1"):
        assert gain_of(searches, model, 128_000).verdict == "loses"
        assert gain_of(searches, model, 1_000_000).verdict == "pays"
        assert gain_of(searches, model, 1_000_000).decider()[0] == "attention_core"
    assert all(gain_of(searches, "kimi-k3", context).verdict == "pays" for context in (128_000, 1_000_000, 4_000_000))


def test_with_copies_of_the_index_cache_sharding_never_pays_and_the_indexer_is_why(searches):
    for model in ("deepseek-v3.2", "deepseek-v4-pro"):
        for context in (128_000, 1_000_000, 4_000_000):
            gain = gain_of(searches, model, context, "kvp-copies")
            assert gain.verdict == "loses"
            assert gain.decider()[0].startswith("index_logits")
    shards = gain_of(searches, "deepseek-v3.2", 4_000_000, "kvp-shards")
    assert shards.verdict == "pays"
    assert shards.decider()[0] == "index_top_k"


def test_other_timings_and_contexts_are_searched_alike():
    [found] = search_beyond("gb300-sglang", [256_000], ["beyond-kimi-k3"])
    assert found.plan.timing.name == "gb300-sglang"
    [gain] = gains(found)
    assert (gain.context, gain.model) == (256_000, "kimi-k3")
    [paper] = search_beyond("paper", [256_000], ["beyond-kimi-k3"])
    assert gains(paper)[0].interval is None


def test_the_command_prints_within_80_columns_and_writes_what_it_says(tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    said = CliRunner().invoke(app, ["reproduce", "beyond", "--out", str(tmp_path), "--ttl-ms", "25"])
    assert said.exit_code == 0, said.output
    assert max(map(len, said.stdout.splitlines())) <= 80
    assert said.stdout.count("decides") == 1 + len(BEYOND_SWEEPS), "no table is cut in two"
    written = {path.name for path in tmp_path.iterdir()}
    assert written == {"beyond.csv", *(f"beyond{part}.{kind}" for part in ("", "-gains") for kind in ("png", "svg"))}
    assert np.isfinite(float((tmp_path / "beyond.csv").read_text().splitlines()[1].split(",")[5]))


def test_a_budget_is_for_this_study_alone():
    with pytest.raises(SpecError, match="--ttl-ms is for reproduce beyond; leave it out"):
        CliRunner().invoke(app, ["reproduce", "claims", "--ttl-ms", "20"], catch_exceptions=False)
