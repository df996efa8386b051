"""A comparison as slides: bars and frontiers side by side, each as large as a slide."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import cycle
from typing import TYPE_CHECKING, Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from helix_sim.core.escape import plot_text
from helix_sim.core.units import format_size
from helix_sim.search.pareto import COSTS, Frontier

if TYPE_CHECKING:
    import pandas as pd

from helix_sim.output.plot import BARS, DRAWN, MOST_BANDS, STYLE, draw_frontier, pareto_axes

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
