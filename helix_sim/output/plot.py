"""Pictures in one style: axes with units, colours that a colour-blind reader can tell apart, PNG and SVG."""

from __future__ import annotations

import io
import textwrap
import warnings
from collections.abc import Iterable, Mapping
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.patheffects import withStroke
from matplotlib.text import Annotation
from matplotlib.ticker import FuncFormatter

from helix_sim.core.escape import plot_text, terminal_line
from helix_sim.core.files import appearing
from helix_sim.core.units import format_size
from helix_sim.search.pareto import COSTS, Frontier, merge
from helix_sim.search.sweep import SweepResult

if TYPE_CHECKING:
    pass

STYLE: Any = {
    "figure.dpi": 110,
    "savefig.dpi": 160,
    "font.size": 9.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "legend.frameon": False,
    "lines.linewidth": 1.6,
    "svg.hashsalt": "helix_sim",
    "svg.fonttype": "none",
}

BARS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#404040", "#A08000")
"""Colours of machines side by side, of the same palette."""
COLOURS = {
    "helix": "#0072B2",
    "helix-dp": "#56B4E9",
    "helix-pp": "#6A3D9A",
    "baseline": "#404040",
    "tp": "#D55E00",
    "pp": "#E69F00",
    "ep": "#009E73",
    "tp-ep": "#CC79A7",
    "medha": "#A08000",
}
"""Okabe and Ito's palette, by family and group."""

DRAWN = {
    "tokens_per_s_gpu": "throughput (tokens/s/GPU)",
    "usd_per_million_tokens": "cost (USD per million tokens)",
    "joules_per_token": "energy (J per token)",
}
"""What interactivity is drawn against, by column: the name of the axis."""

MARKERS = {
    "helix": "o",
    "helix-dp": "s",
    "helix-pp": "p",
    "tp": "^",
    "pp": "v",
    "ep": "D",
    "tp-ep": "P",
    "medha": "X",
    "baseline": ".",
}


def save(figure: Figure, stem: Path, formats: Iterable[str] = ("png", "svg")) -> list[Path]:
    """The figure as stem.png and stem.svg, the same bytes in every run; it is laid out once, for all formats."""
    written = []
    for suffix in formats:
        path = stem.with_name(f"{stem.name}.{suffix}")
        with appearing(path) as partial, plt.rc_context(STYLE), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Glyph .* missing from")  # drawn as a box: a user can do nothing about it
            figure.savefig(partial, format=suffix, metadata={"Date": None} if suffix == "svg" else {"Software": None})
        figure.set_layout_engine("none")  # axes stay where the first format has put them
        written.append(path)
    plt.close(figure)
    return written


def short_label(point: Mapping[str, Any]) -> str:
    """A layout as a few characters: its widths other than one, and its batch."""
    names = {"tpa": "TPA", "kvp": "KVP", "dp": "DP", "ep": "EP", "pp": "PP"}
    widths = " ".join(f"{text}{point[key]}" for key, text in names.items() if point[key] != 1)
    return f"{widths or '1 GPU'} · B{point['batch']}"


MOST_BANDS = 2
"""Intervals of frontiers that can be told apart as bands; of more, each is drawn at a few points."""


def draw_frontier(
    axes: Axes,
    curve: Frontier,
    *,
    label: str,
    colour: str,
    marker: str | None = None,
    band: bool = True,
    whiskers: int = 3,
    against: str = "tokens_per_s_gpu",
    **style: Any,
) -> None:
    """A frontier as the staircase it is: at an interactivity, the best of a point at least that fast.

    band: its interval, where it has one, as a band; else as this many whiskers at its knees. against: the column of
    what is best, one of DRAWN.
    """
    if len(curve):
        x, y = curve.interactivity, curve.columns[against]
        axes.step(x, y, where="pre", color=colour, label=_lines(label), **style)
        if band and len(curve) > 1:
            draw_band(axes, curve, colour, against)
        else:
            draw_whiskers(axes, curve, colour, against, whiskers)
        if (marker and len(curve) <= 60) or len(curve) == 1:  # a staircase of one point has no line
            axes.plot(x, y, marker or "o", color=colour, markersize=2.6 if len(curve) > 1 else 5, alpha=0.8)


def draw_band(axes: Axes, curve: Frontier, colour: str, against: str = "tokens_per_s_gpu") -> None:
    """The 80 % interval of a frontier on measured kernels: a step that is slower loses in both directions at once."""
    if "ttl_low_s" not in curve.columns:
        return
    (x_fast, x_slow), (y_fast, y_slow) = _interval_ends(curve, against)
    axes.fill(
        np.concatenate([x_fast, x_slow[::-1]]), np.concatenate([y_fast, y_slow[::-1]]), color=colour, alpha=0.13,
        linewidth=0,
    )  # fmt: skip


def draw_whiskers(axes: Axes, curve: Frontier, colour: str, against: str = "tokens_per_s_gpu", count: int = 3) -> None:
    """The 80 % interval of a frontier on measured kernels at its knees, from the slower end to the faster one."""
    if "ttl_low_s" not in curve.columns:
        return
    ends = _interval_ends(curve, against)
    for index in knees(curve, count):
        x, y = ([end[index] for end in both] for both in ends)
        axes.plot(x, y, color=colour, linewidth=1.0, alpha=0.75, marker="|", markersize=5)


def _interval_ends(curve: Frontier, against: str) -> tuple[tuple[Any, Any], tuple[Any, Any]]:
    """Interactivity, and what it is drawn against, at the lower and at the upper end of the TTL's interval."""
    faster, slower = (curve.columns["ttl_s"] / curve.columns[f"ttl_{end}_s"] for end in ("low", "high"))
    y = curve.columns[against]
    ends = (y / faster, y / slower) if against in COSTS else (y * faster, y * slower)
    return (curve.interactivity * faster, curve.interactivity * slower), ends


def knees(curve: Frontier, count: int = 3) -> list[int]:
    """Points worth a label: both ends, and those that stand out most from the line between them (on log axes)."""
    if len(curve) <= count:
        return list(range(len(curve)))
    x, y = np.log(curve.interactivity), np.log(curve.throughput)
    x, y = (x - x[0]) / (x[-1] - x[0]), (y - y[-1]) / (y[0] - y[-1])
    chosen = [0, len(curve) - 1]
    while len(chosen) < count:
        spread = np.min([np.abs(x - x[i]) + np.abs(y - y[i]) for i in chosen], axis=0)
        chosen.append(int(np.argmax((x + y) * spread)))
    return sorted(chosen)


def label_knees(
    axes: Axes,
    curve: Frontier,
    colour: str,
    count: int = 3,
    other: Frontier | None = None,
    against: str = "tokens_per_s_gpu",
) -> None:
    """Write the layouts at a frontier's knees beside them: outside of it, or inside where `other` is further out.

    Where a text stands there already, the label goes to the other side of its point. Outside of a curve of cost is
    below it.
    """
    up = -6 if against in COSTS else 6
    for index in knees(curve, count):
        point = curve.point(index)
        inside = other is not None and other.attained(point["tokens_per_s_user"]) > point["tokens_per_s_gpu"]
        place = (point["tokens_per_s_user"], point[against])
        axes.plot(*place, "o", color=colour, markersize=4.5)
        label = axes.annotate(
            short_label(point), place, xytext=(0, 0), textcoords="offset points", fontsize=7.5, color=colour,
            path_effects=[withStroke(linewidth=2.5, foreground="white")],
        )  # fmt: skip
        sides = [(-6, -up), (6, up)] if inside else [(6, up), (-6, -up)]
        for offset in (sides[0], sides[1], (6, -up), (-6, up), sides[0]):
            label.set(position=offset, ha="left" if offset[0] > 0 else "right", va="bottom" if offset[1] > 0 else "top")
            if not _covers_another(axes, label):
                break


def _covers_another(axes: Axes, label: Annotation) -> bool:
    """Whether a label lies over a text that was written before it, or over the legend."""
    mine, legend = label.get_window_extent(), axes.get_legend()
    others = [each for each in axes.texts if each is not label]
    return any(mine.overlaps(each.get_window_extent()) for each in (*others, *([legend] if legend else [])))


def pareto_axes(axes: Axes, title: str, against: str = "tokens_per_s_gpu") -> None:
    """Name and scale the axes of a Pareto plot."""
    axes.set(xscale="log", yscale="log", xlabel="interactivity (tokens/s/user)", ylabel=DRAWN[against])
    axes.set_title(_lines(wrapped(title, axes)))
    plain_log_ticks(axes)
    axes.tick_params(which="both", labelsize=8)
    axes.margins(x=0.26, y=0.08)


def wrapped(title: str, axes: Axes, most_lines: int = 3) -> str:
    """A title on as many lines as its axes are wide, and cut where even they do not hold it."""
    width = axes.get_window_extent().width * 72 / axes.figure.dpi
    size = FontProperties(size=plt.rcParams["axes.titlesize"]).get_size_in_points()
    lines = textwrap.wrap(terminal_line(title), max(20, int(width / (0.64 * size)))) or [""]
    return "\n".join(lines if len(lines) <= most_lines else [*lines[: most_lines - 1], f"{lines[most_lines - 1]} …"])


def plain_log_ticks(axes: Axes, *, across: bool = True) -> None:
    """Numbers without powers of ten on log axes, at 1, 2 and 5, or at every tick where those are fewer than three.

    across: the horizontal axis too; else the vertical one alone.
    """
    for axis in (axes.xaxis, axes.yaxis) if across else (axes.yaxis,):
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.set_minor_formatter(FuncFormatter(lambda value, _, axis=axis: _minor_tick(value, axis)))


def _minor_tick(value: float, axis: Any) -> str:
    """What stands at a minor tick of a log axis."""
    low, high = sorted(axis.get_view_interval())
    decades = range(int(np.floor(np.log10(low))), int(np.ceil(np.log10(high))) + 1)
    usual = [digit * 10.0**decade for decade in decades for digit in (1, 2, 5)]
    few = sum(low <= tick <= high for tick in usual) < 3
    return f"{value:g}" if few or f"{value:e}"[0] in "25" else ""


def pareto(result: SweepResult, context: int | None = None, against: str | None = None) -> Figure:
    """Every family's frontier of a sweep, layouts written at the knees of Helix's and of the conventional ones.

    against: the column that interactivity is drawn against, one of DRAWN; as the sweep says unless given.
    """
    context = context or result.sweep.contexts[0]
    against = against or result.sweep.against or "tokens_per_s_gpu"
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(7.6, 5.0), layout="constrained")
        looks, found = looks_of(result.sweep.families), result.frontiers[context]
        for name, family in result.sweep.families.items():
            draw_frontier(
                axes, found[name], label=textwrap.fill(family.title, LEGEND_WIDTH), colour=looks[name][0],
                marker=looks[name][1], band=len(found) <= MOST_BANDS, whiskers=3 if len(found) <= 4 else 2,
                against=against, alpha=0.9,
            )  # fmt: skip
        if empty := [name for name, curve in found.items() if not len(curve)]:
            text = textwrap.fill(f"no layout runs: {', '.join(empty)}", LEGEND_WIDTH)
            axes.plot([], [], " ", label=_lines(text))
        families = result.sweep.families.items()
        helix = _of_group(result, context, "all-helix", [name for name, each in families if each.is_helix])
        baseline = _of_group(result, context, "baseline", [name for name, each in families if each.is_conventional])
        if not len(helix) and not len(baseline):
            baseline = merge(found.values(), "all")
        pareto_axes(axes, pareto_title(result, context), against)
        measured = ", with 80 % intervals" if result.plan.timing.calibration else ""
        _place_legend(axes, plot_text(f"timing: {result.plan.timing.name}{measured}"), found.values(), against)
        label_knees(axes, helix, COLOURS["helix"], 4, baseline, against)
        label_knees(axes, baseline, COLOURS["baseline"], 3, helix, against)
    return figure


LEGEND_WIDTH = 44
"""Characters of a line in a legend."""


def _lines(text: str) -> str:
    """Lines of any text, each as matplotlib shows it."""
    return "\n".join(map(plot_text, text.split("\n")))


def looks_of(families: Iterable[str]) -> dict[str, tuple[str, str]]:
    """Colour and marker of each family by name; those of one's own have what the shipped ones leave."""
    names = list(families)
    taken = {COLOURS[name] for name in names if name in COLOURS}
    free = cycle([each for each in (*COLOURS.values(), "#8C564B", "#17202A") if each not in taken])
    marks = cycle(dict.fromkeys(MARKERS.values()))
    return {name: (COLOURS[name], MARKERS[name]) if name in COLOURS else (next(free), next(marks)) for name in names}


def _staircase(axes: Axes, curve: Frontier, against: str) -> Any:
    """Places along the drawn line of a frontier, dense enough that none crosses a legend unseen [pixels]."""
    x, y = (np.repeat(each, 2) for each in (curve.interactivity, curve.columns[against]))
    corners = axes.transData.transform(np.column_stack([x[:-1], y[1:]]) if len(curve) > 1 else np.column_stack([x, y]))
    along = np.linspace(0, 1, 16)[:, None, None]
    return (corners[:-1] * (1 - along) + corners[1:] * along).reshape(-1, 2)


def _place_legend(axes: Axes, title: str, curves: Iterable[Frontier], against: str) -> None:
    """The legend in the corner that the curves leave free, or that fewest of their points lie in."""
    drawn = [_staircase(axes, each, against) for each in curves if len(each)]
    points = np.concatenate(drawn) if drawn else np.zeros((0, 2))

    def covered(place: Any) -> int:
        box = axes.legend(fontsize=8, loc=place, title=title, title_fontsize=8, alignment="left").get_window_extent()
        return int(((points >= box.min) & (points <= box.max)).all(axis=1).sum())

    corners = ("upper left", "lower right") if against in COSTS else ("lower left", "upper right")
    covered(min(corners, key=covered))


def _of_group(result: SweepResult, context: int, group: str, families: Iterable[str]) -> Frontier:
    """The frontier of a group, which are these families where the sweep has none of that name."""
    if group in result.sweep.groups:
        return result.group(group, context)
    return merge((result.frontiers[context][name] for name in families), group)


def pareto_title(result: SweepResult, context: int) -> str:
    """What a sweep says that it is, and which of its contexts this is where it has several."""
    several = f", {format_size(context)} tokens" if len(result.sweep.contexts) > 1 else ""
    return f"{result.sweep.description}{several}"


def one_frontier(curve: Frontier) -> Figure:
    """A frontier alone, layouts written at its knees where the table says them."""
    colour = COLOURS.get(curve.name, COLOURS["helix"])
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(6.4, 4.0), layout="constrained")
        draw_frontier(axes, curve, label=curve.name, colour=colour)
        pareto_axes(axes, f"{curve.name}: {len(curve)} layouts that nothing beats")
        if "batch" in curve.columns:
            label_knees(axes, curve, colour)
    return figure


def svg_text(figure: Figure) -> str:
    """A figure as an SVG element, for a page; the figure is closed."""
    text = io.StringIO()
    figure.savefig(text, format="svg")
    plt.close(figure)
    return text.getvalue()[text.getvalue().index("<svg") :]


# --- Sensitivity -----------------------------------------------------------------------------------------------------


def tornado(bars: Mapping[str, tuple[float, float]], title: str, what: tuple[str, str]) -> Figure:
    """Elasticities of TTL and throughput to each knob, the strongest on top, one panel each.

    bars: knob: (elasticity of TTL, of throughput). what: the titles of the panels.
    """
    order = sorted(bars, key=lambda knob: max(abs(value) for value in (*bars[knob], 0.0) if value == value))
    with plt.rc_context(STYLE):
        figure, panels = plt.subplots(
            1, 2, figsize=(9.6, 0.42 * len(order) + 1.5), layout="constrained", sharex=True, sharey=True
        )
        for side, (axes, label) in enumerate(zip(panels, what, strict=True)):
            values = [bars[knob][side] for knob in order]
            helps = [value < 0 if side == 0 else value > 0 for value in values]
            colours = [COLOURS["helix"] if good else COLOURS["tp"] for good in helps]
            axes.barh(range(len(order)), values, color=colours, height=0.62)
            axes.axvline(0, color="#404040", linewidth=0.8)
            axes.set_yticks(range(len(order)), [plot_text(knob.replace("_", " ")) for knob in order])
            axes.grid(axis="y", visible=False)
            axes.set_xlabel("% for 1 % more (blue helps, orange hurts)")
            axes.set_title(plot_text(label))
            for row, value in enumerate(values):
                _value_beside_bar(axes, row, value)
        panels[0].margins(x=0.16)
        figure.suptitle(plot_text(title), fontsize=9.5, x=0.01, ha="left")
    return figure


def _value_beside_bar(axes: Axes, row: int, value: float) -> None:
    """A bar's value at its end; a dash where the search reached nothing."""
    text = f"{value:+.2f}" if value == value and abs(value) >= 0.005 else "0" if value == value else "-"
    left = value == value and value < -0.005
    axes.annotate(
        text, (value if value == value else 0, row), xytext=(-4 if left else 4, 0), textcoords="offset points",
        ha="right" if left else "left", va="center", fontsize=8, color="#404040",
    )  # fmt: skip


# --- A gate ----------------------------------------------------------------------------------------------------------


def overlay(
    curves: Mapping[str, tuple[Frontier, Frontier]],
    moves: Mapping[str, list[tuple[float, float]]],
    title: str,
    note: str,
) -> Figure:
    """Stored frontiers (dashed) under today's, and below them how far each point moved: moves by curve, (x, share)."""
    colours = dict(zip(curves, (COLOURS[name] for name in ("baseline", "helix", *COLOURS)), strict=False))
    with plt.rc_context(STYLE):
        figure, (top, low) = plt.subplots(
            2, 1, figsize=(7.6, 6.2), layout="constrained", sharex=True, height_ratios=(3, 1)
        )
        for name, (before, after) in curves.items():
            colour = COLOURS.get(name, colours.get(name, "#888888"))
            draw_frontier(top, after, label=name, colour=colour, linewidth=1.8)
            draw_frontier(top, before, label=f"{name}, stored", colour=colour, linestyle=(0, (4, 2)), linewidth=1.0)
            _fill_between(top, before, after, colour)
            x, share = zip(*moves.get(name, []) or [(np.nan, np.nan)], strict=True)
            low.plot(x, np.array(share) * 100, ".", color=colour, markersize=4)
        pareto_axes(top, title)
        top.set_xlabel("")
        top.legend(fontsize=8, loc="lower left", title=plot_text(note), title_fontsize=8, alignment="left")
        low.axhline(0, color="#888888", linewidth=0.8)
        low.set(xlabel="interactivity (tokens/s/user)", ylabel="move, both axes (%)")
    return figure


def _fill_between(axes: Axes, before: Frontier, after: Frontier, colour: str) -> None:
    if len(before) and len(after):
        x = np.unique(np.concatenate([before.interactivity, after.interactivity]))
        low, high = before.attained(x), after.attained(x)
        floor = min(before.throughput[-1], after.throughput[-1])
        axes.fill_between(
            x, np.maximum(low, floor), np.maximum(high, floor), step="pre", color=colour, alpha=0.25, linewidth=0
        )
