"""A calibration as pictures: measured against modelled kernels, and whole servings."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import cycle
from typing import TYPE_CHECKING

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from helix_sim.core.escape import plot_text

if TYPE_CHECKING:
    import pandas as pd

    from helix_sim.silicon.fit import Fitted
from helix_sim.output.plot import COLOURS, STYLE


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
