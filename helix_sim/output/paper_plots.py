"""The pictures of `reproduce`: the paper's figures, and what KV parallelism buys beyond it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import matplotlib.pyplot as plt
import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from helix_sim.core.escape import plot_text
from helix_sim.core.units import format_size
from helix_sim.search.sweep import SweepResult

if TYPE_CHECKING:
    import pandas as pd

    from helix_sim.paper.beyond import Gain
from helix_sim.output.plot import COLOURS, STYLE, draw_frontier, label_knees, pareto_axes, plain_log_ticks

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
