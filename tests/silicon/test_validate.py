"""The judge: errors on kernels and servings, intervals against simulation, and what may not be looked at."""

from importlib import metadata
from types import SimpleNamespace

import numpy as np
import pytest
from docs.accuracy_page import percents, region, rows_of, section

from helix_sim.answers.explain import borrowed_ops
from helix_sim.core.layout import Layout
from helix_sim.silicon import aic_tables as silicon
from helix_sim.silicon import validate
from helix_sim.silicon.systems import systems
from helix_sim.specs.load import load_machine, load_model, load_timing
from helix_sim.specs.precision import Precision
from helix_sim.specs.setting import Setting
from helix_sim.step import evaluate_step
from helix_sim.timing.uncertainty import interval_deviations

try:
    installed = metadata.version(silicon.DISTRIBUTION)
except metadata.PackageNotFoundError:
    installed = None

measured = pytest.mark.skipif(
    installed != silicon.VERSION,
    reason=f"needs {silicon.DISTRIBUTION} {silicon.VERSION} (pip install 'helix-sim[silicon]'), found {installed}",
)


def serving(**changed):
    row = {
        "model": "deepseek-ai/DeepSeek-V3",
        "system": "gb200",
        "framework": "trtllm",
        "precision": "fp4",
        "tp": 1,
        "dp": 8,
        "pp": 1,
        "moe_tp": 1,
        "moe_ep": 8,
        "gpus": 8,
        "context": 8704.0,
    }
    return SimpleNamespace(**row | changed)


def on(model, timing, precision):
    return Setting(model=load_model(model), machine=load_machine("gb200-nvl72"), timing=timing, precision=precision)


@pytest.fixture(scope="module")
def table():
    return validate.end_to_end()


def drawn_steps(step, count=100_000):
    """Synthetic measurements of a step: each cause draws one error, which all ops that share it make."""
    rng, total, drawn = np.random.default_rng(5), np.full(count, float(step.ttl_s)), {}
    for each in step.deviations:
        error = drawn.setdefault(each.cause, rng.normal(size=count)) / 1.2816  # a tenth of normal draws lie beyond
        logs = np.where(error < 0, -error * min(float(each.low), 0), error * max(float(each.high), 0))
        total += float(each.seconds) * np.expm1(logs)
    return total


KINDS_OF_LAYOUT = {
    "TP": Layout(batch=8, tpa=8, tpf=8),
    "DEP": Layout(batch=64, dp=8, ep=8),
    "KVP": Layout(batch=8, tpa=1, kvp=16, tpf=2, ep=8),
    "wide EP": Layout(batch=64, dp=64, ep=64),
}


@pytest.mark.parametrize("kind", KINDS_OF_LAYOUT)
@pytest.mark.parametrize("context", [8192, 1_000_000])
@pytest.mark.parametrize("name", ["gb200-trtllm", "gb200-sglang"])
def test_an_interval_covers_of_synthetic_measurements_what_it_claims(name, context, kind):
    precision = Precision(weights="nvfp4", kv="fp8", math="fp4", attention_math="fp8", head_weights="bf16")
    step = evaluate_step(on("deepseek-r1", load_timing(name), precision), KINDS_OF_LAYOUT[kind], context)
    low, high = (float(end) for end in step.ttl_interval_s)
    measured = drawn_steps(step)
    assert np.mean((measured >= low) & (measured <= high)) == pytest.approx(0.8, abs=0.05)


NEW_KINDS = ("attention-window", "attention-sparse", "attention-compressed", "index-", "linear-state", "convolution")


def dense_kernels(name="gb200-trtllm"):
    """A measured timing with classes of grouped-query and latent attention alone."""
    timing = load_timing(name)
    kept = {key: each for key, each in timing.calibration.classes.items() if not key.startswith(NEW_KINDS)}
    return timing.model_copy(update={"calibration": timing.calibration.model_copy(update={"classes": kept})})


def interval_of(name, layout, context=8192, **formats):
    given = {"weights": "nvfp4", "kv": "fp8", "math": "fp4", "attention_math": "fp8", "head_weights": "bf16"}
    setting = on("deepseek-r1", load_timing(name), Precision(**given | formats))
    step = evaluate_step(setting, layout, context)
    low, high = (float(end) for end in step.ttl_interval_s)
    return (high - low) / float(step.ttl_s)


def test_an_interval_widens_beyond_the_tables_with_every_doubling():
    x = Layout(batch=8, tpa=8, tpf=8)
    widths = [interval_of("gb200-trtllm", x, context) for context in (131_072, 2 * 131_072, 8 * 131_072)]
    assert widths[0] < widths[1] < widths[2]


def test_an_interval_widens_with_a_borrowed_kernel():
    x = Layout(batch=8, tpa=8, tpf=8)
    assert interval_of("gb200-trtllm", x, 100_000, kv="fp4") > interval_of("gb200-trtllm", x, 100_000)


def test_a_kind_without_kernels_is_said_and_less_certain_than_one_that_another_stands_in_for():
    timing, x = dense_kernels(), Layout(batch=8, tpa=8, tpf=8)
    precision = Precision(weights="nvfp4", kv="fp8", math="fp4", attention_math="fp8")

    windows = borrowed_ops(evaluate_step(on("gpt-oss-120b", timing, precision), x, 131_072))
    assert windows["attention_core[window]"]["reason"] == "attention-gqa-fp8 stands in for attention-window of fp8"
    assert "attention_core[full]" not in windows

    step = evaluate_step(on("deepseek-v3.2", timing, precision), x, 131_072)
    found, width, up = borrowed_ops(step), timing.unknowns.borrowed_kernel.value, timing.unknowns.unmeasured.value
    assert up > width
    for op, kind in (
        ("index_logits", "index-logits"),
        ("index_top_k", "index-top-k"),
        ("attention_core", "attention-sparse"),
    ):
        assert found[op]["reason"] == f"no {kind} was measured: by the timing's constants"
        assert np.log([found[op]["low"], found[op]["high"]]) == pytest.approx([-width, up])
        assert {(each.low, each.high) for each in step.deviations if each.cause == f"unmeasured {kind}"} == {
            (-width, up)
        }
    states = borrowed_ops(evaluate_step(on("kimi-k3", timing, precision), x, 131_072))
    assert {"convolution[kda]", "state_update[kda]"} <= states.keys()


@pytest.mark.parametrize(("model", "moved"), [("deepseek-v3.2", True), ("kimi-k3", True), ("deepseek-r1", False)])
def test_what_constants_may_miss_moves_the_upper_end_alone_of_models_with_such_ops(model, moved):
    timing, x = dense_kernels(), Layout(batch=8, tpa=8, tpf=8)
    precision = Precision(weights="nvfp4", kv="fp8", math="fp4", attention_math="fp8")
    wider = timing.unknowns.model_copy(update={"unmeasured": timing.unknowns.unmeasured.scale(2)})
    one, other = (
        evaluate_step(on(model, each, precision), x, 131_072)
        for each in (timing, timing.model_copy(update={"unknowns": wider}))
    )
    assert float(one.ttl_s) == float(other.ttl_s)
    assert float(one.ttl_interval_s[0]) == float(other.ttl_interval_s[0])
    assert (float(other.ttl_interval_s[1]) > float(one.ttl_interval_s[1])) is moved


def test_an_interval_widens_with_the_share_of_communication_and_of_unknown_routing():
    step = evaluate_step(
        on("deepseek-r1", load_timing("gb200-trtllm"), Precision(weights="nvfp4", kv="fp8", math="fp4")),
        KINDS_OF_LAYOUT["DEP"],
        8192,
    )
    causes = {each.cause for each in step.deviations}
    assert {"summing attention", "summing ffn", "collectives", "routing"} <= causes
    for cause in ("collectives", "routing"):
        without = [each for each in step.deviations if each.cause != cause]
        assert all(
            float(less) < float(whole)
            for less, whole in zip(interval_deviations(without), interval_deviations(step.deviations), strict=True)
        )


def test_an_interval_holds_its_prediction_and_a_timing_without_residuals_has_none():
    for name, widens in (("gb200-trtllm", True), ("paper", False)):
        precision = Precision(weights="fp8-block", kv="fp8", math="fp8")
        step = evaluate_step(on("llama-3.1-405b", load_timing(name), precision), Layout(batch=8, tpa=8, tpf=8), 100_000)
        low, high = (float(end) for end in step.ttl_interval_s)
        assert low <= float(step.ttl_s) <= high
        assert (low < high) is widens


def test_odd_layouts_are_predicted_and_not_refused():
    for changed in (
        {"moe_tp": 8, "moe_ep": 1},
        {"dp": 32, "gpus": 32, "moe_tp": 32, "moe_ep": 1, "framework": "sglang"},
    ):
        assert 1e-3 < float(validate.predict(serving(**changed), 4.0).ttl_s) < 1.0


def test_an_unstated_expert_grid_is_tensor_parallel():
    layout = validate.layout_of(serving(tp=4, dp=1, gpus=4, moe_tp=0, moe_ep=0), 8)
    assert (layout.tpa, layout.tpf, layout.ep, layout.gpus) == (4, 4, 1, 4)


def test_no_step_runs_with_less_than_one_request():
    assert float(validate.predict(serving(), 0.3).ttl_s) == float(validate.predict(serving(), 1.0).ttl_s)


def test_the_cache_is_what_the_checkpoint_says():
    assert [validate.formats(serving(precision=p)).kv for p in ("fp4", "fp8")] == ["fp8", "bf16"]


def test_checkpoints_keep_what_they_keep_in_bf16():
    deepseek, kimi = (validate.formats(serving(model=m)) for m in ("deepseek-ai/DeepSeek-V3", "moonshotai/Kimi-K2.5"))
    assert (deepseek.format_of("attention_weights"), deepseek.format_of("output_weights")) == ("bf16", "nvfp4")
    assert (kimi.format_of("attention_weights"), kimi.format_of("output_weights")) == ("bf16", "bf16")
    assert validate.formats(serving(precision="fp8")).format_of("output_weights") == "fp8-block"


def test_dispatching_to_more_boards_takes_longer():
    ttl = [float(validate.predict(serving(dp=n, moe_ep=n, gpus=n), 8).ttl_s) for n in (4, 8)]
    assert ttl[1] > 0
    assert ttl[0] > ttl[1] * 0.8


@measured
def test_kernels_kept_out_of_the_fit_are_predicted():
    judged = validate.kernels("gb200", "trtllm").set_index("class")
    for group in ("attention", "gemm", "collectives"):
        assert judged.loc[f"all {group}", "target"] == "met"
    assert judged.loc["all grouped-gemm", "median"] < 0.07
    assert judged.loc["all grouped-gemm", "mean"] <= 0.10
    (row,) = (row for row in rows_of(region("kernels")) if row["timing"] == "gb200-trtllm")
    for group in validate.GROUPS:
        said = judged.loc[f"all {group}", ["median", "mean"]].tolist()
        assert percents(row[group]) == pytest.approx(said, abs=0.001), f"docs/accuracy.md: {group}"


def test_a_framework_that_spreads_experts_over_every_gpu_is_read_so_whatever_the_label_says():
    row = SimpleNamespace(
        model="deepseek-ai/DeepSeek-V3", system="gb200", framework="sglang", tp=1, dp=32, gpus=32, moe_tp=32, moe_ep=1
    )
    wide = validate.layout_of(row, 8)
    assert (wide.ep, wide.tpf, wide.redundant_experts) == (32, 1, 32)
    as_labelled = {"framework": "trtllm"}, {"dp": 4, "gpus": 4, "moe_tp": 4}, {"tp": 32, "dp": 1}
    for change in as_labelled:
        x = validate.layout_of(SimpleNamespace(**{**vars(row), **change}), 8)
        assert (x.ep, x.redundant_experts) == (1, 0), change


@measured
def test_every_serving_is_predicted_and_none_is_refused(table):
    assert len(table) == 274
    assert table["effective_s"].between(1e-3, 1).all()
    for reading in validate.BATCHES:
        assert (table[f"{reading}_low_s"] <= table[f"{reading}_s"]).all()
        assert (table[f"{reading}_s"] <= table[f"{reading}_high_s"]).all()
        assert (table[f"{reading}_s"] > 0).all()


@measured
def test_no_prediction_is_faster_than_light(table):
    assert (table["as_given_s"] > table["light_s"]).all()


@measured
def test_the_blind_half_sets_nothing(table):
    blind = table["half"] == "blind"
    changed = table.assign(tpot_s=table["tpot_s"].where(~blind, 3 * table["tpot_s"]))
    assert validate.overheads(changed) == validate.overheads(table)
    assert (table.loc[table["system"] == "gb300", "half"] == "blind").all()


@measured
def test_the_shipped_overheads_are_those_the_development_half_asks_for(table):
    for asked in validate.overheads(table):
        shipped = {
            load_timing(f"{system}-{asked.framework}").calibration.step_overhead_us.value for system in systems()
        }
        assert len(shipped) == 1
        assert shipped.pop() == pytest.approx(asked.microseconds, abs=20)


@measured
def test_the_report_counts_every_row_once(table):
    report = validate.report(table)
    split = report["batch effective: by half, all rows"].set_index("half")
    assert split.loc["development", "count"] + split.loc["blind", "count"] == split.loc["all", "count"] == 274
    assert report["batch effective: DeepSeek by system"].set_index("system").loc["all", "count"] == 235
    kinds = report["batch effective: by kind of layout"].set_index("kind")
    assert kinds.loc["TP", "count"] + kinds.loc["DEP", "count"] == kinds.loc["all", "count"] == 274


@measured
def test_intervals_hold_eight_of_ten_servings_of_each_kind_of_layout(table):
    # the widths come from tables of kernels; no serving set one
    kinds = validate.report(table)["batch effective: by kind of layout"].set_index("kind")
    assert kinds.loc[["TP", "DEP"], "covered"].between(0.72, 0.92).all()


@measured
def test_no_serving_of_the_unlabelled_table_drafted_as_far_as_rows_alike_can_tell(table):
    found = validate.report(table)["speculation, which the table does not label"]
    assert found["rows"].tolist() == [245, 0, 29]
    for count, sentence in zip([245, 0, 29], ["no drafts", "left out as drafting", "no row alike"], strict=True):
        assert found.loc[found["finding"].str.contains(sentence), "rows"].tolist() == [count]


@measured
def test_a_serving_that_drafted_is_told_from_those_alike_and_left_out(table):
    beside = table.join(validate.drafting_doubt(table))
    busiest = beside[beside["alike"] > 1].sort_values("effective_batch").index[-1]
    drafted = table.assign(tpot_s=table["tpot_s"].where(table.index != busiest, table["tpot_s"] / 2.2))
    assert validate.drafting_doubt(drafted).loc[lambda found: found["seems_drafted"]].index.tolist() == [busiest]
    split = validate.report(drafted)["batch effective: by half, all rows"].set_index("half")
    assert split.loc["all", "count"] == 273


STALE = "docs/accuracy.md is stale: python docs/generate.py --measured --page accuracy.md"


@measured
@pytest.mark.parametrize("reading", ["effective", "as given"])
def test_the_accuracy_page_says_what_the_tables_give(table, reading):
    report, page = validate.report(table), region("servings")
    for row in rows_of(section(page, f"Batch {reading}: by half")):
        found = report[f"batch {reading}: by half, {row['rows']}"].set_index("half").loc[row["half"]]
        assert int(row["count"]) == found["count"], STALE
        assert percents(row["median / mean error, %"]) == pytest.approx([found["median"], found["mean"]], abs=0.002), (
            STALE
        )
        assert percents(row["inside the interval, %"]) == pytest.approx([found["covered"]], abs=0.01), STALE
    by_system = report[f"batch {reading}: DeepSeek by system"].set_index("system")
    for row in rows_of(section(page, f"Batch {reading}: DeepSeek by system, median / mean error in percent")):
        found = by_system.loc[row["system"]]
        assert int(row["rows"]) == found["count"], STALE
        assert percents(row["ours"]) == pytest.approx([found["median"], found["mean"]], abs=0.002), STALE


@measured
def test_the_accuracy_page_says_what_todays_software_gives(table):
    report = validate.report(table)
    (found,) = (frame.set_index("half") for title, frame in report.items() if "shipped timings" in title)
    rows = rows_of(section(region("servings"), "Batch effective, on the shipped timings of today's software"))
    assert {row["half"] for row in rows} == set(found.index)
    for row in rows:
        said = found.loc[row["half"], ["median", "mean"]].tolist()
        assert percents(row["median / mean error, %"]) == pytest.approx(said, abs=0.002), STALE
