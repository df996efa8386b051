"""Pictures in one style: axes with units, colours that a colour-blind reader can tell apart, PNG and SVG."""

from __future__ import annotations

import io
import textwrap
import warnings
from collections.abc import Iterable, Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import numpy.typing as npt
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
    import pandas as pd

    from helix_sim.paper.beyond import Gain
    from helix_sim.silicon.fit import Fitted

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


SLIDE = (12.0, 6.75)
"""Inches of a slide's picture, 16 to 9: 1920 x 1080 pixels."""
SLIDE_STYLE = STYLE | {"font.size": 11.5}
ROWS = 12
"""Bars that one slide holds, a panel's title counted as one."""


def comparison_bars(table: pd.DataFrame, against: str = "tokens_per_s_gpu") -> list[Figure]:
    """Each row of a comparison as a bar, a panel each model, context and latency; measured ones with intervals.

    against: the column that the bars are of, one of DRAWN. As many slides as keep them legible.
    """
    panels = []
    for asked, part in table.groupby(["model", "context", "ttl_budget_ms"], sort=False):
        panels += [(asked, part.iloc[start : start + ROWS - 1]) for start in range(0, len(part), ROWS - 1)]
    slides: list[list[Any]] = [[]]
    for panel in panels:
        if slides[-1] and sum(len(part) + 1 for _, part in (*slides[-1], panel)) > ROWS:
            slides.append([])
        slides[-1].append(panel)
    machines = list(dict.fromkeys(table["machine"]))
    colours = dict(zip(machines, cycle(BARS), strict=False))
    return [_bars(slide, colours, against) for slide in slides]


def _bars(panels: list[Any], colours: Mapping[str, str], against: str) -> Figure:
    """One slide of bars."""
    sizes = [len(part) + 1 for _, part in panels]
    with plt.rc_context(SLIDE_STYLE):
        figure, all_axes = plt.subplots(
            len(panels), 1, figsize=SLIDE, layout="constrained", squeeze=False,
            gridspec_kw={"height_ratios": sizes},
        )  # fmt: skip
        for axes, ((model, context, budget), part) in zip(all_axes[:, 0], panels, strict=True):
            values, low, high = _with_interval(part, against)
            places = np.arange(len(part))
            axes.barh(places, np.nan_to_num(values), color=[colours[name] for name in part["machine"]], height=0.6)
            if np.isfinite(low).any():
                axes.errorbar(values, places, xerr=[values - low, high - values], fmt="none", ecolor="#404040",
                              elinewidth=1, capsize=2)  # fmt: skip
            names = [
                f"{plot_text(machine)}\n{plot_text(timing)}"
                for machine, timing in zip(part["machine"], part["timing"], strict=True)
            ]
            axes.set_yticks(places, names, fontsize=9.5)
            ends = np.nan_to_num(np.fmax(values, high))
            most = float(ends.max()) or 1.0
            for place, end, row in zip(places, ends, part.to_dict("records"), strict=True):
                axes.text(end + 0.01 * most, place, plot_text(_beside_bar(row, against)), va="center", fontsize=9.5)
            axes.invert_yaxis()
            axes.set_xlim(0, most * 1.45)
            axes.set_title(
                plot_text(f"{model}, {format_size(context)} tokens, within {budget:g} ms a token"), fontsize=12
            )
            axes.grid(axis="y", visible=False)
        measured = any(part["ttl_low_ms"].notna().any() for _, part in panels if "ttl_low_ms" in part)
        lines = "; lines: 80 % intervals of measured kernels" if measured else ""
        all_axes[-1, 0].set_xlabel(f"{DRAWN[against]}{lines}")
    return figure


def _with_interval(part: pd.DataFrame, against: str) -> tuple[Any, Any, Any]:
    """A column of a comparison and its interval's ends, NaN where none: rates fall with the TTL, costs rise."""
    values, ttl, low, high = (
        part[name].to_numpy(float) if name in part else np.full(len(part), np.nan)
        for name in (against, "ttl_ms", "ttl_low_ms", "ttl_high_ms")
    )
    return (values, values * low / ttl, values * high / ttl) if against in COSTS else (
        values, values * ttl / high, values * ttl / low
    )  # fmt: skip


def _beside_bar(row: Mapping[str, Any], against: str) -> str:
    """What stands at the end of a bar: the value, the other measures that are known, and the family in words."""
    if not row.get("tokens_per_s_gpu", np.nan) > 0:
        return "no layout keeps it"
    forms = {"tokens_per_s_gpu": "{:.4g} tokens/s/GPU", "usd_per_million_tokens": "${:.3g}/M",
             "joules_per_token": "{:.3g} J"}  # fmt: skip
    first = [against, *(name for name in forms if name != against)]
    values = [forms[name].format(row[name]) for name in first if row[name] is not None and row[name] == row[name]]
    unknown = "" if row[against] == row[against] and row[against] is not None else "not known; "
    return f"{unknown}{'  '.join(values)}  {row['title']}"


def comparison_frontiers(
    curves: Mapping[tuple[str, int], Mapping[tuple[str, str], Frontier]],
    budgets_ms: Iterable[float],
    against: str = "tokens_per_s_gpu",
) -> list[Figure]:
    """Each machine's frontier over all families, two models or contexts a slide, the budgets as dotted lines.

    against: the column that interactivity is drawn against, one of DRAWN; machines of which it is not known are left
    out.
    """
    panels = list(curves.items())
    machines = list(dict.fromkeys(machine for found in curves.values() for machine, _ in found))
    slides = [panels[start : start + 2] for start in range(0, len(panels), 2)]
    return [_frontiers(slide, machines, list(budgets_ms), against) for slide in slides]


LINES = ("-", "--", ":", "-.")
"""Of the timings of one machine."""


def _frontiers(panels: list[Any], machines: list[str], budgets_ms: list[float], against: str) -> Figure:
    """One slide of frontiers."""
    with plt.rc_context(SLIDE_STYLE):
        figure, all_axes = plt.subplots(1, len(panels), figsize=SLIDE, layout="constrained", squeeze=False)
        for axes, ((model, context), found) in zip(all_axes[0], panels, strict=True):
            drawn = {where: curve for where, curve in found.items()
                     if len(curve) and not np.isnan(curve.columns[against]).all()}  # fmt: skip
            timings: dict[str, list[str]] = {}
            for (machine, timing), curve in drawn.items():
                timings.setdefault(machine, []).append(timing)
                place, line = machines.index(machine), len(timings[machine]) - 1
                draw_frontier(
                    axes, curve, label=f"{machine}, {timing}", colour=BARS[place % len(BARS)],
                    band=len(drawn) <= MOST_BANDS, against=against, linestyle=LINES[line % len(LINES)],
                )  # fmt: skip
            pareto_axes(axes, f"{model}, {format_size(context)} tokens", against)
            if not drawn:
                axes.text(
                    0.5, 0.5, "no layout runs, or none whose cost is known", transform=axes.transAxes, ha="center"
                )
                continue
            left, right = axes.get_xlim()
            for budget in (each for each in budgets_ms if left < 1e3 / each < right):
                axes.axvline(1e3 / budget, color="#808080", linewidth=0.9, linestyle=":")
                up = against not in COSTS
                axes.annotate(f"{budget:g} ms", (1e3 / budget, 0.99 if up else 0.01), rotation=90, ha="right",
                              xycoords=("data", "axes fraction"), fontsize=9, va="top" if up else "bottom",
                              color="#606060")  # fmt: skip
            axes.legend(fontsize=9.5, loc="upper left" if against in COSTS else "lower left", framealpha=0.85,
                        frameon=True, edgecolor="none")  # fmt: skip
    return figure


# --- Beyond the paper ------------------------------------------------------------------------------------------------


BEYOND_CURVES = {
    "no-kvp": ("no KVP", COLOURS["baseline"]),
    "kvp": ("KVP", COLOURS["helix"]),
    "kvp-copies": ("KVP, index copied", COLOURS["tp"]),
    "kvp-shards": ("KVP, index sharded", COLOURS["helix"]),
}
"""Labels and colours of the sweeps' families."""

MOST_TICKS = 6
"""Contexts that a narrow panel has room to name; of more, every other."""


def beyond_frontiers(searches: Sequence[SweepResult], budget_ms: float) -> Figure:
    """Frontiers with their intervals: a row a context, a column a model, a dotted line at the latency of the table."""
    contexts = searches[0].sweep.contexts
    with plt.rc_context(STYLE):
        figure, all_axes = plt.subplots(
            len(contexts), len(searches), figsize=(2.75 * len(searches), 2.5 * len(contexts)), layout="constrained",
            sharex=True, sharey="col", squeeze=False,
        )  # fmt: skip
        for column, found in zip(all_axes.T, searches, strict=True):
            for axes, context in zip(column, contexts, strict=True):
                for name in found.sweep.families:
                    label, colour = BEYOND_CURVES[name]
                    draw_frontier(axes, found.frontiers[context][name], label=label, colour=colour)
                axes.axvline(1e3 / budget_ms, color="#888888", linewidth=0.8, linestyle=":")
                axes.set(xscale="log", yscale="log")
                plain_log_ticks(axes)
                axes.tick_params(which="both", labelsize=7)
            column[0].set_title(plot_text(found.plan.model.name))
            column[-1].set_xlabel("tokens/s/user", fontsize=8)
        for row, context in zip(all_axes, contexts, strict=True):
            row[0].set_ylabel(f"{format_size(context)} tokens\ntokens/s/GPU", fontsize=8)
        _legend(figure, all_axes)
        timing = searches[0].plan.timing
        measured = ", 80 % intervals" if timing.calibration else ""
        figure.suptitle(plot_text(f"{searches[0].plan.machine.name}, {timing.name}{measured}"), fontsize=9)
    return figure


def beyond_gains(searches: Sequence[SweepResult], found: Mapping[str, list[Gain]], budget_ms: float) -> Figure:
    """Throughput with KV shards over that without, within a latency, by context: a panel a model; lines: intervals."""
    with plt.rc_context(STYLE):
        figure, all_axes = plt.subplots(
            1, len(searches), figsize=(2.75 * len(searches), 3.1), layout="constrained", sharey=True, squeeze=False
        )
        for axes, each in zip(all_axes[0], searches, strict=True):
            for family in dict.fromkeys(gain.family for gain in found[each.sweep.name]):
                _draw_gains(axes, [gain for gain in found[each.sweep.name] if gain.family == family], family)
            axes.axhline(1.0, color=BEYOND_CURVES["no-kvp"][1], linewidth=1, linestyle="--")
            axes.set(xscale="log", yscale="log", xlabel="context (tokens)")
            shown = each.sweep.contexts[:: 1 + len(each.sweep.contexts) // MOST_TICKS]
            axes.set_xticks(shown, [format_size(context) for context in shown], fontsize=8)
            plain_log_ticks(axes, across=False)
            axes.tick_params(axis="x", which="minor", length=0)
            axes.set_title(plot_text(each.plan.model.name))
            axes.margins(x=0.12)
        all_axes[0, 0].set_ylabel(f"tokens/s/GPU over no KVP,\nwithin {budget_ms:g} ms a token", fontsize=8)
        _legend(figure, all_axes)
    return figure


def _draw_gains(axes: Axes, of_family: Sequence[Gain], family: str) -> None:
    label, colour = BEYOND_CURVES[family]
    known = [gain for gain in of_family if gain.ratio is not None]
    if not known:
        return
    contexts = np.array([gain.context for gain in known], dtype=float)
    ratios = np.array([gain.ratio for gain in known], dtype=float)
    ends = np.array([gain.interval or (gain.ratio, gain.ratio) for gain in known], dtype=float)
    axes.errorbar(
        contexts, ratios, yerr=[ratios - ends[:, 0], ends[:, 1] - ratios], color=colour, label=label, marker="o",
        markersize=3.5, capsize=2, elinewidth=1,
    )  # fmt: skip


def _legend(figure: Figure, all_axes: npt.NDArray[Any]) -> None:
    """One legend for all panels, below them."""
    entries: dict[str, Any] = {}
    for axes in all_axes.flat:
        entries |= {label: handle for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    figure.legend(list(entries.values()), list(entries), loc="outside lower center", ncols=len(entries), fontsize=8)


# --- The paper's figures ---------------------------------------------------------------------------------------------


def figure_1(table: pd.DataFrame) -> Figure:
    """KV and weight reads of one layer, three panels [Helix 2025, figure 1]."""
    with plt.rc_context(STYLE):
        figure, all_axes = plt.subplots(1, 3, figsize=(10.5, 3.5), layout="constrained", sharey=True)
        panels = (
            ("left", "tp", "TP width (TPA = TPF = TP)", "1M tokens, KVP 1"),
            ("middle", "context", "context S (tokens)", "TP 8, KVP 1"),
            ("right", "kvp", "KVP width (TPA 8, TPF = 8·KVP)", "1M tokens, TPA 8"),
        )
        for axes, (panel, column, xlabel, title) in zip(all_axes, panels, strict=True):
            rows = table[table["panel"] == panel]
            axes.plot(rows[column], rows["kv_read_s"] * 1e6, "o-", color=COLOURS["tp"], markersize=4, label="KV cache")
            axes.plot(
                rows[column], rows["weight_read_s"] * 1e6, "s-", color=COLOURS["helix"], markersize=4, label="weights"
            )
            axes.set(xscale="log", yscale="log", xlabel=xlabel)
            axes.set_title(title)
            ticks = rows[column] if panel != "middle" else [1e3, 1e4, 1e5, 1e6, 4e6]
            axes.set_xticks(list(ticks), [format_size(tick) for tick in ticks])
            axes.minorticks_off()
        all_axes[0].axvline(8, color="#888888", linewidth=0.8, linestyle=":")
        all_axes[0].annotate("K = 8: past it,\nonly copies", (8, 1.0), xytext=(10, 40), fontsize=8, color="#555555",
                             textcoords="data")  # fmt: skip
        all_axes[0].set_ylabel("read time of one layer (µs)")
        all_axes[0].legend(fontsize=8)
    return figure


def figure_3(table: pd.DataFrame) -> Figure:
    """HOP-B's timeline beside lockstep [Helix 2025, figure 3]."""
    with plt.rc_context(STYLE):
        figure, all_axes = plt.subplots(2, 1, figsize=(8.6, 3.4), layout="constrained", sharex=True)
        colours = [plt.get_cmap("viridis")(i / 8) for i in range(8)]
        for axes, mode in zip(all_axes, ("lockstep", "hop-b"), strict=True):
            rows = table[table["mode"] == mode]
            for row in rows.to_dict("records"):
                height, colour = (1 if row["lane"] == "attention" else 0), colours[row["request"] % 8]
                length, middle = row["end"] - row["start"], (row["start"] + row["end"]) / 2
                axes.barh(height, length, left=row["start"], color=colour, edgecolor="white", height=0.8)
                ink = "white" if row["request"] < 5 else "black"
                axes.text(middle, height, str(row["request"] + 1), ha="center", va="center", color=ink, fontsize=7.5)
            end = rows["end"].max()
            axes.axvline(end, color=COLOURS["tp"], linewidth=1.2)
            axes.text(end + 0.2, 0.5, f"{end:.1f}", color=COLOURS["tp"], va="center", fontweight="bold")
            axes.set_yticks([0, 1], ["all-to-all", "attention"])
            axes.grid(axis="y", visible=False)
            axes.set_title(
                "Lockstep" if mode == "lockstep" else "HOP-B: each request's exchange runs behind the next one"
            )
        all_axes[1].set_xlabel("time (the paper's units)")
        all_axes[1].set_xlim(0, 27.5)
    return figure


def figure_pareto(result: SweepResult, title: str, claims: Iterable[str] = ()) -> Figure:
    """Helix against every baseline family, relative to the best baseline [Helix 2025, figures 5 and 6]."""
    baseline, helix = result.group("baseline"), result.group("all-helix")
    x0, y0 = baseline.interactivity[-1], baseline.throughput[0]
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(7.4, 4.9), layout="constrained")
        for name in result.sweep.groups.get("baseline", []):
            curve = result.group(name)
            draw_frontier(
                axes, curve, label=result.sweep.families[name].title, colour=COLOURS[name], linewidth=1.1, alpha=0.8
            )
        draw_frontier(axes, baseline, label="best baseline", colour=COLOURS["baseline"], linestyle="--")
        draw_frontier(axes, helix, label="Helix", colour=COLOURS["helix"], marker="o", linewidth=2)
        pareto_axes(axes, title)
        label_knees(axes, helix, COLOURS["helix"], 4)
        label_knees(axes, baseline, COLOURS["baseline"], 2, helix)
        _relative_axes(axes, x0, y0)
        axes.legend(fontsize=8, loc="lower left", title="\n".join(claims) or None, title_fontsize=8, alignment="left")
    return figure


def _scale_by(unit: float) -> Any:
    """The two ways between a quantity and its multiples of a unit, for a second axis."""
    return (lambda value: value / unit), (lambda value: value * unit)


def _relative_axes(axes: Axes, interactivity: float, throughput: float) -> None:
    """Second scales at the top and the right, in multiples of the best baseline."""
    across = axes.secondary_xaxis("top", functions=_scale_by(interactivity))
    up = axes.secondary_yaxis("right", functions=_scale_by(throughput))
    for axis, ticks in ((across.xaxis, [0.25, 0.5, 0.75, 1, 1.25, 1.5, 2]), (up.yaxis, [0.01, 0.03, 0.1, 0.3, 1])):
        axis.set_ticks(ticks, [f"{tick:g}x" for tick in ticks])
        axis.set_minor_formatter(FuncFormatter(lambda value, _: ""))
        axis.set_tick_params(labelsize=8, colors="#666666", which="both")
    across.set_xlabel("relative to the best baseline", fontsize=8, color="#666666")


def figure_7(
    on: dict[str, SweepResult],
    off: dict[str, SweepResult],
    paying: dict[str, SweepResult],
    losses: Mapping[str, tuple[float, float]],
) -> Figure:
    """Helix with HOP-B, without, and with chunks that each pay their latencies [Helix 2025, figure 7].

    losses: of each model, the largest share of tokens/s/user lost without HOP-B, under both assumptions.
    """
    with plt.rc_context(STYLE):
        figure, all_axes = plt.subplots(1, 2, figsize=(9.6, 4.4), layout="constrained")
        for axes, (key, result) in zip(all_axes, on.items(), strict=True):
            own, one = losses[key]
            curves = (
                (paying, f"HOP-B, each chunk pays its latencies: off loses {one:.1%}", "ep", "-", 1.2),
                (on, f"HOP-B, flights overlap: off loses {own:.1%}", "helix", "-", 2.4),
                (off, "HOP-B off", "tp", "--", 1.2),
            )
            for source, label, colour, linestyle, width in curves:
                curve = source[key].group("all-helix")
                draw_frontier(axes, curve, label=label, colour=COLOURS[colour], linestyle=linestyle, linewidth=width)
            pareto_axes(axes, result.plan.model.name)
            axes.legend(fontsize=8, loc="lower left")
    return figure


# --- Calibration -----------------------------------------------------------------------------------------------------


def calibration(fitted: Mapping[str, Fitted], title: str) -> Figure:
    """Measured against modelled time of every class; held-out cells stand out."""
    columns = 5
    rows = -(-len(fitted) // columns)
    rng = np.random.default_rng(0)
    with plt.rc_context(STYLE):
        figure, grid = plt.subplots(
            rows, columns, figsize=(2.6 * columns, 2.5 * rows), layout="constrained", squeeze=False
        )
        for axes in grid.flat[len(fitted) :]:
            axes.set_visible(False)
        for axes, (name, each) in zip(grid.flat, fitted.items(), strict=False):
            x, y, held = each.measured.seconds * 1e6, each.modelled_s * 1e6, each.measured.held
            chosen = rng.permutation(len(x))[:3000]
            for keep, colour, label in ((~held, "#A0A0A0", "fitted"), (held, COLOURS["helix"], "held out")):
                shown = chosen[keep[chosen]]
                axes.plot(x[shown], y[shown], ".", color=colour, markersize=1.6, label=label, rasterized=True)
            ends = [min(x.min(), y.min()), max(x.max(), y.max())]
            axes.plot(ends, ends, color=COLOURS["tp"], linewidth=0.8)
            axes.set(xscale="log", yscale="log")
            for axis in (axes.xaxis, axes.yaxis):
                axis.set_minor_formatter(FuncFormatter(lambda value, _: ""))
            axes.set_title(plot_text(name).replace("/", "\n"), fontsize=7.5)
            r = each.record.residuals
            text = f"{r.count} held out\nmedian {r.median_error:.1%}\nmean {r.mean_error:.1%}"
            axes.text(0.05, 0.95, text, transform=axes.transAxes, va="top", fontsize=7)
            axes.tick_params(labelsize=7)
        figure.suptitle(plot_text(title), x=0.01, ha="left", fontweight="bold")
        figure.supxlabel("measured (µs)")
        figure.supylabel("modelled (µs)")
    return figure


SYSTEM_COLOURS = ("#0072B2", "#56B4E9", "#009E73", "#E69F00", "#D55E00", "#CC79A7", "#666666")
FRAMEWORK_MARKERS = ("o", "s", "^", "D", "v")
"""Of the systems and the frameworks of a table, each in alphabetical order."""


def end_to_end(table: pd.DataFrame, reading: str, title: str) -> Figure:
    """Measured against predicted time per token of every serving, each half by itself, with the 80 % intervals."""
    colours = dict(zip(sorted(table["system"].unique()), cycle(SYSTEM_COLOURS), strict=False))
    markers = dict(zip(sorted(table["framework"].unique()), cycle(FRAMEWORK_MARKERS), strict=False))
    measured, predicted = table["tpot_s"] * 1e3, table[f"{reading}_s"] * 1e3
    low, high = table[f"{reading}_low_s"] * 1e3, table[f"{reading}_high_s"] * 1e3
    ends = [0.9 * min(measured.min(), predicted.min()), 1.1 * max(measured.max(), predicted.max())]
    with plt.rc_context(STYLE):
        figure, both = plt.subplots(1, 2, figsize=(10.4, 5.2), layout="constrained", sharex=True, sharey=True)
        for axes, half in zip(both, ("development", "blind"), strict=True):
            axes.plot(ends, ends, color="#404040", linewidth=0.9)
            axes.fill_between(ends, [e / 1.1 for e in ends], [e * 1.1 for e in ends], color="#404040", alpha=0.08)
            for key, part in table[table["half"] == half].groupby(["system", "framework"]):
                system, framework = map(str, key)
                at = part.index
                axes.errorbar(
                    measured[at],
                    predicted[at],
                    yerr=[predicted[at] - low[at], high[at] - predicted[at]],
                    fmt=markers[framework],
                    color=colours[system],
                    markersize=4,
                    elinewidth=0.6,
                    alpha=0.8,
                    label=plot_text(f"{system} {framework}"),
                )
            odd = table[(table["half"] == half) & table["beyond_light"]].index
            axes.plot(measured[odd], predicted[odd], "x", color="black", markersize=7, label="doubtful row")
            axes.set(xscale="log", yscale="log", xlabel="measured time per token (ms)", xlim=ends, ylim=ends)
            axes.set_title(f"{half} half, {int((table['half'] == half).sum())} rows")
            for axis in (axes.xaxis, axes.yaxis):
                axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
                axis.set_minor_formatter(
                    FuncFormatter(lambda value, _: f"{value:g}" if f"{value:e}"[0] in "25" else "")
                )
            axes.legend(fontsize=7, loc="upper left")
        both[0].set_ylabel("predicted time per token (ms), 80 % interval")
        figure.suptitle(plot_text(title), x=0.01, ha="left", fontweight="bold")
    return figure


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
