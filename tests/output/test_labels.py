"""Labels and intervals of Pareto plots: on the side that no other curve is on, and legible where curves are many."""

from __future__ import annotations

from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pytest

from helix_sim.output import plot
from helix_sim.search.pareto import Frontier
from helix_sim.search.sweep import run_sweep


def curve(name: str, x: list[float], y: list[float]) -> Frontier:
    columns: dict[str, Any] = {"tokens_per_s_user": np.array(x), "tokens_per_s_gpu": np.array(y)}
    columns |= {width: np.ones(len(x), dtype=int) for width in ("tpa", "kvp", "dp", "ep", "pp", "batch")}
    columns |= {"ttl_s": 1 / columns["tokens_per_s_user"]}
    columns |= {"ttl_low_s": columns["ttl_s"] * 0.9, "ttl_high_s": columns["ttl_s"] * 1.2}
    return Frontier(name=name, columns=columns)


CROSSED = (curve("helix", [10, 20, 30], [900, 500, 5]), curve("tp", [12, 18, 40], [400, 200, 6]))
"""Two curves that change places before they end, as Helix and TP do on a small context."""


def test_where_curves_cross_each_label_is_on_its_own_side() -> None:
    helix, tp = CROSSED
    figure, axes = plt.subplots()
    plot.label_knees(axes, helix, "blue", 3, tp)
    plot.label_knees(axes, tp, "black", 3, helix)
    sides = [(text.xy, text.get_position()) for text in axes.texts]
    outside = [position == (6, 6) for _, position in sides]
    plt.close(figure)
    assert outside == [True, True, False, False, False, True]


def test_ends_that_meet_have_labels_that_do_not_cover_each_other() -> None:
    alike = (curve("helix", [10, 20, 30], [905, 500, 5]), curve("tp", [10.5, 18, 40], [900, 200, 6]))
    figure, axes = plt.subplots()
    for each in alike:
        plot.draw_frontier(axes, each, label=each.name, colour="blue")
    plot.pareto_axes(axes, "two curves whose ends meet")
    plot.label_knees(axes, alike[0], "blue", 3, alike[1])
    plot.label_knees(axes, alike[1], "black", 3, alike[0])
    boxes = [text.get_window_extent() for text in axes.texts]
    plt.close(figure)
    assert len(boxes) == 6
    assert not any(a.overlaps(b) for number, a in enumerate(boxes) for b in boxes[:number])


@pytest.mark.parametrize(("families", "bands"), [(["tp", "ep"], True), (["tp", "pp", "helix"], False)])
def test_many_intervals_are_whiskers_and_few_are_bands(families: list[str], bands: bool) -> None:
    found = run_sweep(
        model="gpt-oss-120b", machine="h200-hgx", timing="h200-vllm", contexts="8K", families=families, gpus=(1, 4)
    )
    figure = plot.pareto(found)
    (axes,) = figure.axes
    whiskers = [line for line in axes.lines if line.get_marker() == "|"]
    plt.close(figure)
    assert (len(axes.patches) == len(families), len(whiskers) == 0) == (bands, bands)
    assert axes.get_legend().get_title().get_text() == "timing: h200-vllm, with 80 % intervals"


def test_a_whisker_spans_the_interval_of_both_axes_at_once() -> None:
    figure, axes = plt.subplots()
    plot.draw_whiskers(axes, CROSSED[0], "blue")
    first = axes.lines[0]
    plt.close(figure)
    assert first.get_xdata() == pytest.approx([10 / 0.9, 10 / 1.2])
    assert first.get_ydata() == pytest.approx([900 / 0.9, 900 / 1.2])


def test_a_title_is_what_the_sweeps_file_says() -> None:
    named = run_sweep("gb200-trtllm-deepseek-r1")
    made = run_sweep(model="llama-3.1-8b", machine="h100-hgx", contexts="8K", families="tp", gpus=1, chunks=[1])
    context = named.sweep.contexts[0]
    assert plot.pareto_title(named, context) == "DeepSeek-R1 on GB200 NVL72 with TensorRT-LLM's measured kernels"
    assert plot.pareto_title(made, 8000) == "llama-3.1-8b at 8K tokens on h100-hgx"
    both = run_sweep(model="llama-3.1-8b", machine="h100-hgx", contexts=["8K", "1K"], families="tp", gpus=1, chunks=[1])
    assert plot.pareto_title(both, 1000) == "llama-3.1-8b on h100-hgx, 1K tokens"


def test_a_long_title_is_on_several_lines_within_its_picture() -> None:
    with plt.rc_context(plot.STYLE):
        figure, axes = plt.subplots(figsize=(7.6, 5.0), layout="constrained")
        plot.draw_frontier(axes, CROSSED[0], label="x", colour="blue")
        plot.pareto_axes(axes, "a description that goes on and on " * 4)
        figure.canvas.draw()
        title = axes.title if axes.title.get_text() else axes._left_title
        right, text = title.get_window_extent().x1, title.get_text()
        plt.close(figure)
    assert text.count("\n") == 2
    assert right <= figure.bbox.x1


def test_families_of_ones_own_have_colours_and_markers_of_their_own() -> None:
    looks = plot.looks_of(["tp", "mine", "yours", "theirs"])
    assert looks["tp"] == (plot.COLOURS["tp"], plot.MARKERS["tp"])
    assert len({colour for colour, _ in looks.values()}) == 4
    assert len({mark for _, mark in list(looks.values())[1:]}) == 3


def test_families_without_a_layout_are_in_the_legend_and_a_single_family_has_labels() -> None:
    found = run_sweep(model="llama-3.1-8b", machine="h100-hgx", contexts="8K", families=["medha", "tp-ep"], gpus=8)
    figure = plot.pareto(found)
    (axes,) = figure.axes
    entries = [text.get_text() for text in axes.get_legend().get_texts()]
    plt.close(figure)
    assert entries == [found.sweep.families["medha"].title, "no layout runs: tp-ep"]
    assert axes.texts


def test_the_legend_lies_on_no_curve() -> None:
    low = curve("low", [1, 10], [9, 0.1])
    figure, axes = plt.subplots()
    plot.draw_frontier(axes, low, label="low", colour="blue")
    axes.set(xscale="log", yscale="log")
    plot._place_legend(axes, "timing", [low], "tokens_per_s_gpu")
    inside = axes.get_legend().get_window_extent()
    points = plot._staircase(axes, low, "tokens_per_s_gpu")
    plt.close(figure)
    assert not ((points >= inside.min) & (points <= inside.max)).all(axis=1).any()


@pytest.mark.parametrize(("ends", "least"), [((3.1, 4.9), 1), ((20, 900), 4), ((0.88, 0.92), 2)])
def test_a_log_axis_of_any_range_has_numbers(ends: tuple[float, float], least: int) -> None:
    figure, axes = plt.subplots()
    axes.plot([1, 2], ends)
    plot.pareto_axes(axes, "")
    figure.canvas.draw()
    numbers = [text.get_text() for which in ("major", "minor") for text in axes.yaxis.get_ticklabels(which=which)]
    plt.close(figure)
    assert len([text for text in numbers if text]) >= least
