"""Interactivity against throughput, cost or energy: sweeps' pictures, the report, a comparison's slides."""

from __future__ import annotations

import json
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.image import imread
from typer.testing import CliRunner

import helix_sim as hs
from helix_sim.answers.compare import compare
from helix_sim.cli import app
from helix_sim.output import comparison_plots, plot, report
from helix_sim.output.comparison_files import write_comparison
from helix_sim.output.sweep_folder import against_of
from helix_sim.search.pareto import COSTS

PARTS = {"contexts": "64K", "families": ["tp", "helix"], "gpus": (1, 4), "chunks": [1]}


def search(**parts: object) -> hs.SweepResult:
    return hs.run_sweep(model="llama-3.1-8b", machine="h100-hgx", **{**PARTS, **parts})


@pytest.mark.parametrize("against", plot.DRAWN)
def test_a_picture_draws_what_the_sweep_says(against: str) -> None:
    found = search(against=against)
    figure = plot.pareto(found)
    (axes,) = figure.axes
    drawn = {line.get_label(): line.get_ydata() for line in axes.lines}
    plt.close(figure)
    assert axes.get_ylabel() == plot.DRAWN[against]
    for name in ("tp", "helix"):
        wanted = found.frontiers[64_000][name].columns[against]
        assert np.array_equal(drawn[found.sweep.families[name].title], wanted)


def test_costs_on_a_frontier_are_those_of_its_machine_and_of_a_given_price() -> None:
    found = search()
    curve, dear = found.group("helix"), found.at_price(36.0).group("helix")
    machine = found.plan.machine
    assert curve.columns["usd_per_million_tokens"] == pytest.approx(machine.usd_per_million_tokens(curve.throughput))
    assert curve.columns["joules_per_token"] == pytest.approx(machine.power.watts / curve.throughput)
    assert dear.columns["usd_per_million_tokens"] == pytest.approx(1e4 / curve.throughput)


@pytest.mark.parametrize("against", COSTS)
def test_outside_of_a_curve_of_cost_is_below_it(against: str) -> None:
    curve = search().group("tp")
    figure, axes = plt.subplots()
    plot.label_knees(axes, curve, "blue", 3, None, against)
    plot.label_knees(axes, curve, "blue", 3, None)
    sides = [text.get_position()[1] for text in axes.texts]
    plt.close(figure)
    assert [side < 0 for side in sides[:3]] != [side < 0 for side in sides[3:]]


def test_an_interval_of_cost_is_the_other_way_round() -> None:
    found = search(timing="h100-trtllm").frontiers[64_000]["tp"]
    (fast, slow), (cheap, dear) = plot._interval_ends(found, "usd_per_million_tokens")
    assert (fast > slow).all()
    assert (cheap < dear).all()
    assert cheap * fast == pytest.approx(found.interactivity * found.columns["usd_per_million_tokens"])


def test_what_cannot_be_drawn_is_one_sentence(tmp_path: Path) -> None:
    free, priced = hs.load_machine("h20-hgx"), hs.load_machine("h200-hgx")
    sweep = search().sweep
    assert against_of(sweep, None, free) == "tokens_per_s_gpu"
    assert against_of(sweep, "joules_per_token", priced) == "joules_per_token"
    assert against_of(sweep.model_copy(update={"against": COSTS[0]}), None, priced) == COSTS[0]
    with pytest.raises(hs.SpecError, match="h20-hgx has no usd_per_gpu_hour in its file: give --usd-per-gpu-hour"):
        against_of(sweep, COSTS[0], free)
    assert against_of(sweep, COSTS[0], free.at_price(3.0)) == COSTS[0]
    with pytest.raises(hs.SpecError, match="against 'cost': it is none of tokens_per_s_gpu, usd_per_million_tokens"):
        against_of(sweep, "cost", priced)
    words = ["sweep", "paper-deepseek-r1", "--out", str(tmp_path / "x"), "--against", "cost"]
    assert isinstance(CliRunner().invoke(app, words).exception, hs.SpecError)
    assert list(tmp_path.iterdir()) == []


def test_the_report_holds_each_cost_as_what_is_over_the_throughput() -> None:
    content = report.content(search().at_price(36.0), [])
    over = {each["column"]: each["over"] for each in content["against"]}
    assert over["tokens_per_s_gpu"] is None
    assert over["usd_per_million_tokens"] == pytest.approx(1e4)
    assert content["first_against"] == "tokens_per_s_gpu"
    free = report.content(hs.run_sweep(model="llama-3.1-8b", machine="h20-hgx", **PARTS), [])
    assert [each["column"] for each in free["against"]] == ["tokens_per_s_gpu"]


def question(**given: object) -> hs.Comparison:
    asked = {"models": ["llama-3.1-8b"], "machines": ["h100-hgx", "h20-hgx"], "contexts": [64_000], "ttl_ms": [10.0],
             "timings": ["paper"], "families": ["tp"], "gpus": [4]}  # fmt: skip
    return hs.Comparison.model_validate({"kind": "comparison", **asked, **given})


@pytest.fixture(scope="module")
def slides(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("slides")
    write_comparison(compare(question(against="usd_per_million_tokens")), out)
    return out


def test_slides_are_16_to_9_at_the_size_of_a_screen(slides: Path) -> None:
    for name in ("bars.png", "frontiers.png"):
        assert imread(slides / name).shape[:2] == (1080, 1920)


def test_points_behind_the_curves_are_a_table_that_stacks(slides: Path) -> None:
    table = pd.read_csv(slides / "frontiers.csv")
    assert set(table["machine"]) == {"h100-hgx", "h20-hgx"}
    assert table.groupby("machine")["usd_per_million_tokens"].count()["h20-hgx"] == 0
    cheapest = hs.frontier(table, against="usd_per_million_tokens")
    assert set(cheapest.columns["machine"]) == {"h100-hgx"}


def test_a_machine_of_no_price_is_said_to_be_so_on_the_slide() -> None:
    found = compare(question())
    (figure,) = comparison_plots.comparison_bars(pd.DataFrame(found.rows()), "usd_per_million_tokens")
    texts = [text.get_text() for text in figure.axes[0].texts]
    plt.close(figure)
    assert texts[0].startswith(r"\$")
    assert texts[1].startswith("not known; ")
    (figure,) = comparison_plots.comparison_frontiers(found.curves(), [10.0], "usd_per_million_tokens")
    legend = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    plt.close(figure)
    assert legend == ["h100-hgx, paper"]


def test_many_rows_are_several_slides() -> None:
    row = compare(question(machines=["h100-hgx"])).rows()[0]
    table = pd.DataFrame([row | {"machine": f"machine-{number}"} for number in range(30)])
    figures = comparison_plots.comparison_bars(table)
    bars = [len(axes.patches) for figure in figures for axes in figure.axes]
    for figure in figures:
        plt.close(figure)
    assert sum(bars) == 30
    assert max(bars) < comparison_plots.ROWS


def test_against_without_a_picture_is_refused() -> None:
    words = ["compare", "--model", "llama-3.1-8b", "--machine", "h100-hgx", "--context", "8K", "--ttl-ms", "9"]
    for each in ([*words, "--against", COSTS[0]], ["sweep", "x", "--out", "x", "--no-plots", "--against", COSTS[0]]):
        found = CliRunner().invoke(app, each)
        assert isinstance(found.exception, hs.SpecError)
        assert "leave" in found.exception.problems[0]


def test_a_search_says_its_least_cost(tmp_path: Path) -> None:
    small = hs.load_sweep("paper-llama-3.1-405b").model_dump(mode="json", by_alias=True, exclude_none=True)
    small |= {"gpus": [8], "families": {"tp": small["families"]["tp"]}, "groups": {}}
    (tmp_path / "small.yaml").write_text(json.dumps(small))
    words = ["sweep", str(tmp_path / "small.yaml"), "--out", str(tmp_path / "out"), "--json", "--no-plots"]
    (curve,) = json.loads(CliRunner().invoke(app, words).stdout)["curves"]
    machine = hs.load_machine("gb200-nvl72")
    assert curve["least_usd_per_million_tokens"] == machine.usd_per_million_tokens(curve["best_tokens_per_s_gpu"])
    assert curve["least_joules_per_token"] == machine.joules_per_token(curve["best_tokens_per_s_gpu"])
