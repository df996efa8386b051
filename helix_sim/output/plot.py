"""Pictures in one style: axes with units, colours that a colour-blind reader can tell apart, PNG and SVG."""

from __future__ import annotations

import io
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
from matplotlib.patheffects import withStroke
from matplotlib.text import Annotation
from matplotlib.ticker import FuncFormatter

from helix_sim.core.escape import plot_text
from helix_sim.core.files import appearing
from helix_sim.core.units import format_size
from helix_sim.search.pareto import Frontier
from helix_sim.search.sweep import SweepResult

if TYPE_CHECKING:
    import pandas as pd

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
    **style: Any,
) -> None:
    """A frontier as the staircase it is: at an interactivity, the best throughput of a point at least that fast.

    band: its interval, where it has one, as a band; else as whiskers at its knees.
    """
    if len(curve):
        axes.step(curve.interactivity, curve.throughput, where="pre", color=colour, label=plot_text(label), **style)
        (draw_band if band else draw_whiskers)(axes, curve, colour)
        if (marker and len(curve) <= 60) or len(curve) == 1:  # a staircase of one point has no line
            axes.plot(curve.interactivity, curve.throughput, marker or "o", color=colour, markersize=2.6, alpha=0.8)


def draw_band(axes: Axes, curve: Frontier, colour: str) -> None:
    """The 80 % interval of a frontier on measured kernels: a step that is slower loses in both directions at once."""
    if "ttl_low_s" not in curve.columns or len(curve) < 2:
        return
    faster, slower = _interval_factors(curve)
    x = np.concatenate([curve.interactivity * faster, (curve.interactivity * slower)[::-1]])
    y = np.concatenate([curve.throughput * faster, (curve.throughput * slower)[::-1]])
    axes.fill(x, y, color=colour, alpha=0.13, linewidth=0)


def draw_whiskers(axes: Axes, curve: Frontier, colour: str) -> None:
    """The 80 % interval of a frontier on measured kernels at its knees, from the slower end to the faster one."""
    if "ttl_low_s" not in curve.columns:
        return
    ends = np.stack(_interval_factors(curve))
    for index in knees(curve):
        x, y = (values[index] * ends[:, index] for values in (curve.interactivity, curve.throughput))
        axes.plot(x, y, color=colour, linewidth=1.0, alpha=0.75, marker="|", markersize=5)


def _interval_factors(curve: Frontier) -> tuple[Any, Any]:
    """Speed at the lower and at the upper end of the TTL's interval, over that of the TTL itself."""
    return tuple(curve.columns["ttl_s"] / curve.columns[f"ttl_{end}_s"] for end in ("low", "high"))  # type: ignore[return-value]


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


def label_knees(axes: Axes, curve: Frontier, colour: str, count: int = 3, other: Frontier | None = None) -> None:
    """Write the layouts at a frontier's knees beside them: outside of it, or inside where `other` is further out.

    Where a text stands there already, the label goes to the other side of its point.
    """
    for index in knees(curve, count):
        point = curve.point(index)
        inside = other is not None and other.attained(point["tokens_per_s_user"]) > point["tokens_per_s_gpu"]
        place = (point["tokens_per_s_user"], point["tokens_per_s_gpu"])
        axes.plot(*place, "o", color=colour, markersize=4.5)
        label = axes.annotate(
            short_label(point), place, xytext=(0, 0), textcoords="offset points", fontsize=7.5, color=colour,
            path_effects=[withStroke(linewidth=2.5, foreground="white")],
        )  # fmt: skip
        sides = [(-6, -6), (6, 6)] if inside else [(6, 6), (-6, -6)]
        for offset in (sides[0], sides[1], (6, -6), (-6, 6), sides[0]):
            label.set(position=offset, ha="left" if offset[0] > 0 else "right", va="bottom" if offset[1] > 0 else "top")
            if not _covers_another(axes, label):
                break


def _covers_another(axes: Axes, label: Annotation) -> bool:
    """Whether a label lies over a text that was written before it."""
    mine = label.get_window_extent()
    return any(mine.overlaps(each.get_window_extent()) for each in axes.texts if each is not label)


def pareto_axes(axes: Axes, title: str) -> None:
    """Name and scale the axes of a Pareto plot."""
    axes.set(xscale="log", yscale="log", xlabel="interactivity (tokens/s/user)", ylabel="throughput (tokens/s/GPU)")
    axes.set_title(plot_text(title))
    _plain_log_ticks(axes)
    axes.tick_params(which="minor", labelsize=8)
    axes.margins(x=0.26, y=0.08)


def _plain_log_ticks(axes: Axes) -> None:
    """Numbers without powers of ten on log axes, at 1, 2 and 5."""
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.set_minor_formatter(FuncFormatter(lambda value, _: f"{value:g}" if f"{value:e}"[0] in "25" else ""))


def pareto(result: SweepResult, context: int | None = None) -> Figure:
    """Every family's frontier of a sweep, and the groups' in bold, layouts written at the knees."""
    context = context or result.sweep.contexts[0]
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(7.6, 5.0), layout="constrained")
        for name, family in result.sweep.families.items():
            draw_frontier(
                axes,
                result.frontiers[context][name],
                label=family.title,
                colour=COLOURS.get(name, "#888888"),
                marker=MARKERS.get(name),
                band=len(result.sweep.families) <= MOST_BANDS,
                alpha=0.9,
            )
        helix = result.group("all-helix", context) if "all-helix" in result.sweep.groups else None
        baseline = result.group("baseline", context) if "baseline" in result.sweep.groups else None
        pareto_axes(axes, pareto_title(result, context))
        if helix is not None and len(helix):
            label_knees(axes, helix, COLOURS["helix"], 4, baseline)
        if baseline is not None and len(baseline):
            label_knees(axes, baseline, COLOURS["baseline"], 3, helix)
        measured = ", with 80 % intervals" if result.plan.timing.calibration else ""
        about = plot_text(f"timing: {result.plan.timing.name}{measured}")
        axes.legend(fontsize=8, loc="lower left", title=about, title_fontsize=8)
    return figure


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


def comparison_bars(table: pd.DataFrame) -> Figure:
    """Throughput of each row of a comparison, a panel each model, context and latency; measured ones with intervals."""
    panels: list[Any] = list(table.groupby(["model", "context", "ttl_budget_ms"], sort=False))
    rows = sum(len(part) for _, part in panels)
    with plt.rc_context(STYLE):
        figure, all_axes = plt.subplots(
            len(panels), 1, figsize=(9.6, min(1.0 * len(panels) + 0.42 * rows, 60)), layout="constrained",
            squeeze=False, gridspec_kw={"height_ratios": [len(part) + 1 for _, part in panels]},
        )  # fmt: skip
        machines = list(dict.fromkeys(table["machine"]))
        for axes, ((model, context, budget), part) in zip(all_axes[:, 0], panels, strict=True):
            rates = part["tokens_per_s_gpu"].fillna(0.0).to_numpy(float)
            colours = [BARS[machines.index(name) % len(BARS)] for name in part["machine"]]
            places = np.arange(len(part))
            axes.barh(places, rates, color=colours, height=0.7)
            ends = rates
            if part["ttl_low_ms"].notna().any():
                ttl, low, high = (part[f"ttl{end}_ms"].to_numpy(float) for end in ("", "_low", "_high"))
                ends = np.nan_to_num(rates * ttl / low, nan=0.0)
                axes.errorbar(rates, places, xerr=[rates * (1 - ttl / high), rates * (ttl / low - 1)], fmt="none",
                              ecolor="#404040", elinewidth=1, capsize=2)  # fmt: skip
            names = [
                f"{plot_text(machine)}\n{plot_text(timing)}"
                for machine, timing in zip(part["machine"], part["timing"], strict=True)
            ]
            axes.set_yticks(places, names, fontsize=8)
            most = float(np.nanmax(np.append(rates, 0)))
            for place, rate, end, row in zip(places, rates, ends, part.to_dict("records"), strict=True):
                price = row.get("usd_per_million_tokens")
                cost = f"  ${price:.3g}/M" if price is not None and price == price else ""
                text = f" {rate:.4g}{cost}  {row.get('family') or ''}" if rate else " no layout keeps it"
                axes.text(max(rate, end) + 0.01 * most, place, plot_text(text), va="center", fontsize=7.5)
            axes.invert_yaxis()
            axes.set_xlim(0, max(most, *ends) * 1.35 or 1)
            axes.set_title(plot_text(f"{model}, {format_size(context)} tokens, within {budget:g} ms a token"))
            axes.grid(axis="y", visible=False)
        all_axes[-1, 0].set_xlabel("throughput (tokens/s/GPU); lines: 80 % intervals of measured kernels")
    return figure


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
